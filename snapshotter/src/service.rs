//! The gRPC service: requests into calls, results into messages.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use peelfs::host::report::Report;
use peelfs::image::chain;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status};

use crate::filter::Filters;
use crate::images::Refusal;
use crate::labels::Wanted;
use crate::proto::containerd::services::snapshots::v1 as api;
use crate::proto::containerd::types;
use crate::records::{self, Kind, Record, RecordError, Remote};
use crate::root::Root;
use crate::snapshots::{LazyError, Mount, SnapshotError, Snapshots};

/// The snapshots service.
pub(crate) struct Service {
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) root: PathBuf,
    pub(crate) lazy: bool,
    pub(crate) owner: Mutex<Owner>,
}

/// The containerd that owns the snapshots. Another one would remove snapshots unknown to it.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// The plugin's name in containerd; stored on disk.
    pub(crate) plugin: Option<String>,
    /// The process, as long as it runs.
    pub(crate) process: Option<i32>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Admits one containerd, with one plugin name.
    fn admit<T>(&self, request: Request<T>, plugin: impl Fn(&T) -> &str) -> Result<T, Status> {
        let process = request.extensions().get::<UdsConnectInfo>().and_then(|peer| peer.peer_cred?.pid());
        let request = request.into_inner();
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = process.filter(|process| owner.process != Some(*process)) {
            match owner.process.filter(|before| PathBuf::from(format!("/proc/{before}")).exists()) {
                Some(before) if self.has_snapshots() => {
                    tracing::error!(process, before, "refused a second containerd");
                    return Err(Status::permission_denied(format!(
                        "process {before} uses this snapshotter; process {process} needs its own, with another `--address` and `--root`: each containerd removes snapshots unknown to it"
                    )));
                }
                _ => owner.process = Some(process),
            }
        }
        let name = plugin(&request);
        match &owner.plugin {
            Some(own) if own == name || name.is_empty() => {}
            None if name.is_empty() => {}
            Some(own) if self.has_snapshots() => {
                tracing::error!(own, name, "refused a second name");
                return Err(Status::permission_denied(format!(
                    "this snapshotter's directory belongs to the plugin `{own}` of containerd; `{name}` needs its own snapshotter, with another `--address` and `--root`"
                )));
            }
            _ => {
                if let Err(error) = Root::note_plugin(&self.root, name) {
                    return Err(Status::unavailable(format!("cannot write to `{}`: {error}", self.root.display())));
                }
                owner.plugin = Some(name.to_owned());
            }
        }
        Ok(request)
    }

    fn has_snapshots(&self) -> bool {
        self.snapshots.records.known().iter().next().is_some()
    }

    /// Runs blocking code.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Snapshots) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshots = Arc::clone(&self.snapshots);
        let called = tokio::task::spawn_blocking(move || call(&snapshots)).await;
        called.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| status(&error))
    }

    /// Whether a layer needs no unpacking, as its image is mounted. An error if the image is not to be used at all.
    async fn is_lazy(&self, parent: Option<&str>, labels: &BTreeMap<String, String>) -> Result<bool, Status> {
        if !self.lazy {
            return Ok(false);
        }
        let wanted = match Wanted::of(labels) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return Ok(false),
            Err(error) => {
                tracing::warn!(why = %error, "an image is unpacked, not mounted");
                return Ok(false);
            }
        };
        match self.snapshots.lazily(&wanted, parent, labels).await {
            Ok(top) => {
                top.into_iter().for_each(|top| self.mount_soon(top));
                Ok(true)
            }
            Err(LazyError::Refused(Refusal::NotAllowed(report))) => {
                tracing::warn!(image = %wanted.reference, why = report.message, "this image is not allowed");
                Err(Status::permission_denied(format!("{}: {}", wanted.reference, told(&report))))
            }
            Err(error) => {
                let why = chain(&error);
                tracing::warn!(image = %wanted.reference, why, "this image is unpacked, not mounted");
                Ok(false)
            }
        }
    }

    /// Mounts an image that was just pulled, before its first container starts.
    fn mount_soon(&self, remote: Remote) {
        let snapshots = Arc::clone(&self.snapshots);
        tokio::task::spawn_blocking(move || {
            if let Err(report) = snapshots.lowers.directory(&remote) {
                tracing::warn!(reference = remote.reference, why = report.message, "cannot mount an image ahead");
            }
        });
    }

    /// Removes files of removed snapshots, after the answer.
    fn discard_soon(&self, record: Record) {
        let snapshots = Arc::clone(&self.snapshots);
        tokio::task::spawn_blocking(move || snapshots.discard(&record));
    }
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(&self, request: Request<api::PrepareSnapshotRequest>) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = self.admit(request, |of| &of.snapshotter)?;
        let (parent, labels) = (named(parent), sorted(labels));
        if self.is_lazy(parent.as_deref(), &labels).await? {
            let layer = labels.get(crate::labels::REF).map_or("", String::as_str);
            return Err(Status::already_exists(format!("target snapshot {layer} exists")));
        }
        let made = self.blocking(move |all| all.create(Kind::Active, &key, parent.as_deref(), labels)).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: messages(made) }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = self.admit(request, |of| &of.snapshotter)?;
        let (parent, labels) = (named(parent), sorted(labels));
        let made = self.blocking(move |all| all.create(Kind::View, &key, parent.as_deref(), labels)).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: messages(made) }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let request = self.admit(request, |of| &of.snapshotter)?;
        let mounts = self.blocking(move |all| all.mounts(&request.key)).await?;
        Ok(Response::new(api::MountsResponse { mounts: messages(mounts) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, parent, .. } = self.admit(request, |of| &of.snapshotter)?;
        let (parent, labels, committed) = (named(parent), sorted(labels), name.clone());
        self.blocking(move |all| all.commit(&name, &key, labels, parent.as_deref())).await?;
        // It walks all files: do not wait for it.
        let snapshots = Arc::clone(&self.snapshots);
        tokio::task::spawn_blocking(move || snapshots.usage(&committed));
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let request = self.admit(request, |of| &of.snapshotter)?;
        let record = self.blocking(move |all| all.remove(&request.key)).await?;
        self.discard_soon(record);
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let request = self.admit(request, |of| &of.snapshotter)?;
        let known = self.snapshots.records.known();
        let record = known.get(&request.key).map_err(|error| status(&error.into()))?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info(&request.key, record)) }))
    }

    async fn update(&self, request: Request<api::UpdateSnapshotRequest>) -> Answer<api::UpdateSnapshotResponse> {
        let request = self.admit(request, |of| &of.snapshotter)?;
        let fields = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let Some(api::Info { name, labels, .. }) = request.info else {
            return Err(Status::invalid_argument("no snapshot is named"));
        };
        let updated = name.clone();
        let record = self.blocking(move |all| all.update(&updated, sorted(labels), &fields)).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info(&name, &record)) }))
    }

    type ListStream = BoxStream<'static, Result<api::ListSnapshotsResponse, Status>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let request = self.admit(request, |of| &of.snapshotter)?;
        let filters = Filters::parse(&request.filters).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let known = self.snapshots.records.known();
        let fit = known.iter().filter(|(name, record)| filters.fit(name, record));
        let all: Vec<api::Info> = fit.map(|(name, record)| info(name, record)).collect();
        let pages: Vec<_> =
            all.chunks(PAGE).map(|page| Ok(api::ListSnapshotsResponse { info: page.to_vec() })).collect();
        Ok(Response::new(stream::iter(pages).boxed()))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let request = self.admit(request, |of| &of.snapshotter)?;
        let usage = self.blocking(move |all| all.usage(&request.key)).await?;
        let (size, inodes) = (usage.bytes.cast_signed(), usage.inodes.cast_signed());
        Ok(Response::new(api::UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Answer<()> {
        self.admit(request, |of| &of.snapshotter)?;
        self.blocking(Snapshots::cleanup).await?;
        Ok(Response::new(()))
    }
}

fn named(name: String) -> Option<String> {
    Some(name).filter(|name| !name.is_empty())
}

fn sorted(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}

fn messages(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let message = |Mount { kind, source, options }| types::Mount {
        r#type: String::from(kind),
        source,
        target: String::new(),
        options,
    };
    mounts.into_iter().map(message).collect()
}

fn info(name: &str, record: &Record) -> api::Info {
    let time = |time: records::Time| Some(prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos });
    let kind = match record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: name.to_owned(),
        parent: record.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: time(record.created),
        updated_at: time(record.updated),
        labels: record.labels.clone().into_iter().collect(),
    }
}

/// containerd evaluates the code (its `errdefs`); the text is for users.
fn status(error: &SnapshotError) -> Status {
    let code = match error {
        SnapshotError::Record(RecordError::NotFound(_)) => Code::NotFound,
        SnapshotError::Record(RecordError::Exists(_)) => Code::AlreadyExists,
        SnapshotError::Record(RecordError::Precondition { .. }) => Code::FailedPrecondition,
        SnapshotError::Mapping(_) | SnapshotError::Field { .. } | SnapshotError::Unnamed => Code::InvalidArgument,
        SnapshotError::Lower(_) => Code::Unavailable,
        SnapshotError::Record(RecordError::Write { .. } | RecordError::Read { .. })
        | SnapshotError::Directory { .. } => Code::Internal,
    };
    let text = match error {
        SnapshotError::Lower(report) => format!("cannot mount the image: {}", told(report)),
        error => chain(error),
    };
    if code == Code::Internal {
        tracing::error!("{text}");
    }
    Status::new(code, text)
}

/// Message and hint: containerd shows one line.
fn told(report: &Report) -> String {
    match &report.hint {
        Some(hint) => format!("{}; {hint}", report.message),
        None => report.message.clone(),
    }
}

const PAGE: usize = 100;
