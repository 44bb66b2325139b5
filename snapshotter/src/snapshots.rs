//! The snapshotter: what each of containerd's requests does. Everything in here blocks, except [`Snapshots::lazily`]. A
//! chain of snapshots is a chain of directories, as with containerd's own overlay snapshotter, down to the first
//! mounted layer, which has no directory and represents itself and all layers below.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use peelfs::host::report::Report;

use crate::disk_usage;
use crate::images::{Images, Refusal};
use crate::labels::{Mapping, MappingError, Wanted};
use crate::lowers::Lowers;
use crate::records::{Kind, Known, Record, RecordError, Records, Remote, Time, Usage};
use crate::root::SNAPSHOTS;

/// All snapshots of a root directory.
pub(crate) struct Snapshots {
    directory: PathBuf,
    pub(crate) records: Records,
    pub(crate) images: Arc<Images>,
    pub(crate) lowers: Arc<Lowers>,
}

/// A mount for containerd (its `types.Mount`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mount {
    pub(crate) kind: &'static str,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Mapping(#[from] MappingError),
    #[error("cannot change `{field}` of the snapshot `{name}`: only labels change")]
    Field { name: String, field: String },
    #[error("a snapshot needs a name")]
    Unnamed,
    #[error("cannot mount the image: {}", .0.message)]
    Lower(Report),
    #[error("cannot use `{}`", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Snapshots {
    pub(crate) fn open(root: &Path, images: Arc<Images>, lowers: Arc<Lowers>) -> Result<Self, SnapshotError> {
        let directory = root.join(SNAPSHOTS);
        let numbers = listed(&directory).map_err(failed(&directory))?;
        let first = numbers.iter().max().map_or(1, |last| last + 1);
        let records = Records::open(root.join(crate::root::RECORDS), first)?;
        Ok(Self { directory, records, images, lowers })
    }

    /// Makes a writable snapshot or a view.
    pub(crate) fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        if key.is_empty() {
            return Err(SnapshotError::Unnamed);
        }
        let mapping = Mapping::of(&labels)?;
        let record = Record { parent: parent.map(str::to_owned), labels, ..Record::new(0, kind) };
        let below = {
            let known = self.records.known();
            may_be_made(&known, key, parent)?;
            Below::of(&known, &record, self)?
        };
        // This may be slow: no lock is held.
        let lowers = below.directories(self)?;
        let root = match lowers.first() {
            Some(lower) => std::fs::metadata(lower).map(Some).map_err(failed(lower))?,
            None => None,
        };
        let mut change = self.records.change();
        may_be_made(&change.known(), key, parent)?;
        let record = Record { id: change.new_id(), ..record };
        let directory = self.directory.join(record.id.to_string());
        let made = make(&directory, kind, root.as_ref(), mapping.as_ref()).map_err(failed(&directory));
        let made = made.and_then(|()| Ok(change.put(key, record.clone(), None)?));
        if let Err(error) = made {
            let _ = std::fs::remove_dir_all(&directory);
            return Err(error);
        }
        Ok(self.mounts_of(&record, &lowers, mapping.filter(|_| !below.remapped)))
    }

    /// The mounts of a snapshot.
    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let (record, below) = {
            let known = self.records.known();
            let record = known.get(key)?.clone();
            if record.kind == Kind::Committed {
                let why = "is committed: only snapshots on it are mounted";
                return Err(RecordError::Precondition { name: key.to_owned(), why }.into());
            }
            let below = Below::of(&known, &record, self)?;
            (record, below)
        };
        let lowers = below.directories(self)?;
        let mapping = Mapping::of(&record.labels)?.filter(|_| !below.remapped);
        Ok(self.mounts_of(&record, &lowers, mapping))
    }

    fn mounts_of(&self, record: &Record, lowers: &[PathBuf], mapping: Option<Mapping>) -> Vec<Mount> {
        let mut options: Vec<String> = Vec::new();
        if let Some(Mapping { uid, gid, .. }) = mapping {
            options.extend([format!("uidmap={uid}"), format!("gidmap={gid}")]);
        }
        let own = self.directory.join(record.id.to_string());
        let bind = |source: &Path, mode: &str, options: Vec<String>| {
            let options = options.into_iter().chain([mode.to_owned(), "rbind".to_owned()]).collect();
            vec![Mount { kind: "bind", source: source.display().to_string(), options }]
        };
        match (record.kind, lowers) {
            (Kind::View, []) => return bind(&own.join(FS), "ro", options),
            (_, []) => return bind(&own.join(FS), "rw", options),
            (Kind::View, [lower]) => return bind(lower, "ro", options),
            _ => {}
        }
        // Lower layers may change: a kernel mount may replace one served by a process.
        if *INDEX {
            options.push("index=off".to_owned());
        }
        if record.kind == Kind::Active {
            options.push(format!("workdir={}", own.join(WORK).display()));
            options.push(format!("upperdir={}", own.join(FS).display()));
        }
        let lowers: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
        options.push(format!("lowerdir={}", lowers.join(":")));
        vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
    }

    /// Commits a snapshot: it becomes immutable, and may have children.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        labels: BTreeMap<String, String>,
        parent: Option<&str>,
    ) -> Result<(), SnapshotError> {
        if name.is_empty() {
            return Err(SnapshotError::Unnamed);
        }
        let change = self.records.change();
        let before = change.known().get(key)?.clone();
        let refused = |why| RecordError::Precondition { name: key.to_owned(), why };
        if before.kind != Kind::Active {
            return Err(refused("is not active").into());
        }
        if change.known().has(name) {
            return Err(RecordError::Exists(name.to_owned()).into());
        }
        let parent = match (before.parent.as_deref(), parent) {
            (Some(own), Some(other)) if own != other => return Err(refused("has another parent").into()),
            (own, other) => own.or(other).map(str::to_owned),
        };
        if let Some(parent) = &parent
            && change.known().get(parent)?.kind != Kind::Committed
        {
            return Err(refused("cannot lie on one that is not committed").into());
        }
        let now = Time::now();
        let record = Record {
            kind: Kind::Committed,
            parent,
            labels,
            created: now,
            updated: now,
            remapped: key.ends_with(REMAPPED),
            ..before
        };
        Ok(change.put(name, record, Some(key))?)
    }

    /// Removes a snapshot; [`Snapshots::discard`] removes its files later.
    pub(crate) fn remove(&self, key: &str) -> Result<Record, SnapshotError> {
        let record = self.records.change().remove(key)?;
        if let (Kind::Active, Some(parent)) = (record.kind, &record.parent) {
            let known = self.records.known();
            let lower = known.get(parent).ok().and_then(|parent| Below::remote_of(&known, parent));
            lower.iter().for_each(|remote| self.lowers.look_soon(remote));
        }
        Ok(record)
    }

    /// Removes the files of a removed snapshot.
    pub(crate) fn discard(&self, record: &Record) {
        let directory = self.directory.join(record.id.to_string());
        if let Err(error) = std::fs::remove_dir_all(&directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %directory.display(), "cannot remove a snapshot; will retry later");
        }
    }

    /// Changes labels: all of them, or those that are named.
    pub(crate) fn update(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        fields: &[String],
    ) -> Result<Record, SnapshotError> {
        let change = self.records.change();
        let mut record = change.known().get(name)?.clone();
        if fields.is_empty() {
            record.labels = labels;
        } else {
            for field in fields {
                if field == "labels" {
                    record.labels.clone_from(&labels);
                } else if let Some(label) = field.strip_prefix("labels.") {
                    match labels.get(label) {
                        Some(value) => record.labels.insert(label.to_owned(), value.clone()),
                        None => record.labels.remove(label),
                    };
                } else {
                    return Err(SnapshotError::Field { name: name.to_owned(), field: field.clone() });
                }
            }
        }
        record.updated = Time::now();
        change.put(name, record.clone(), None)?;
        Ok(record)
    }

    /// Disk usage of a snapshot, without its parents.
    pub(crate) fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.records.known().get(key)?.clone();
        if let Some(remote) = &record.remote {
            let (bytes, inodes) = self.images.disk_usage(remote);
            return Ok(Usage { bytes, inodes });
        }
        if let Some(usage) = record.usage {
            return Ok(usage);
        }
        let directory = self.directory.join(record.id.to_string()).join(FS);
        let usage = match disk_usage::of(&directory) {
            // It was removed meanwhile.
            Err(_) if !self.records.known().has(key) => return Err(RecordError::NotFound(key.to_owned()).into()),
            usage => usage.map_err(failed(&directory))?,
        };
        if record.kind == Kind::Committed {
            let change = self.records.change();
            let known = change.known().get(key).ok().cloned();
            if let Some(now) = known.filter(|now| now.id == record.id) {
                change.put(key, Record { usage: Some(usage), ..now }, None)?;
            }
        }
        Ok(usage)
    }

    /// Removes everything that is no longer needed.
    pub(crate) fn cleanup(&self) -> Result<(), SnapshotError> {
        let unknown: Vec<u64> = {
            // No snapshot may be made meanwhile.
            let change = self.records.change();
            let known: HashSet<u64> = change.known().iter().map(|(_, record)| record.id).collect();
            let numbers = listed(&self.directory).map_err(failed(&self.directory))?;
            numbers.into_iter().filter(|number| !known.contains(number)).collect()
        };
        for number in unknown {
            self.discard(&Record::new(number, Kind::Active));
        }
        let (chains, manifests) = {
            let known = self.records.known();
            let remotes = || known.iter().filter_map(|(_, record)| record.remote.as_ref());
            let chains: HashSet<String> = remotes().map(|remote| remote.chain.hex().to_owned()).collect();
            let manifests: HashSet<String> = remotes().map(|remote| remote.manifest.hex().to_owned()).collect();
            (chains, manifests)
        };
        self.lowers.sweep(|chain| chains.contains(chain));
        self.images.sweep(|manifest| manifests.contains(manifest));
        Ok(())
    }

    /// Commits a layer that need not be unpacked. Returns `true` if all of its image is present now.
    ///
    /// # Errors
    /// [`Refusal`]: it must be unpacked.
    pub(crate) async fn lazily(
        &self,
        wanted: &Wanted,
        parent: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<Option<Remote>, LazyError> {
        let exists = |known: &Known| known.remote(&wanted.chain, parent).map(|(_, record)| record.remote.clone());
        let before = exists(&self.records.known());
        if let Some(remote) = before {
            return Ok(remote.filter(|remote| remote.layers == remote.of));
        }
        let image = self.images.decide(wanted).await?;
        let remote = image.up_to(&wanted.chain).ok_or_else(|| Refusal::OtherChain { chain: wanted.chain.clone() })?;
        let committed = tokio::task::block_in_place(|| {
            let mut change = self.records.change();
            if exists(&change.known()).is_some() {
                return Ok(());
            }
            if let Some(parent) = parent {
                may_be_made(&change.known(), "", Some(parent))?;
            }
            let id = change.new_id();
            let chain = wanted.chain.to_string();
            // In another namespace, the layer below it may have another name.
            let name = if change.known().has(&chain) { format!("{chain}/{id}") } else { chain };
            let record = Record {
                parent: parent.map(str::to_owned),
                labels: labels.clone(),
                remote: Some(remote.clone()),
                ..Record::new(id, Kind::Committed)
            };
            change.put(&name, record, None)
        });
        committed.map_err(SnapshotError::from)?;
        Ok(Some(remote).filter(|remote| remote.layers == remote.of))
    }
}

/// Why a layer must be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LazyError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Failed(#[from] SnapshotError),
}

/// What lies below a snapshot.
struct Below {
    /// Directories, uppermost first.
    unpacked: Vec<PathBuf>,
    /// The mounted layers below them.
    remote: Vec<Remote>,
    /// containerd has changed owners in one of them already.
    remapped: bool,
}

impl Below {
    fn of(known: &Known, record: &Record, snapshots: &Snapshots) -> Result<Self, RecordError> {
        let mut below = Self { unpacked: Vec::new(), remote: Vec::new(), remapped: false };
        for record in known.below(record) {
            let record = record?;
            below.remapped |= record.remapped;
            if let Some(remote) = &record.remote {
                // Another image with the same layers may have a registry that answers.
                let others = known.iter().filter_map(|(_, record)| record.remote.as_ref());
                let others = others.filter(|other| other.chain == remote.chain && other.reference != remote.reference);
                below.remote = std::iter::once(remote).chain(others).cloned().collect();
                break;
            }
            below.unpacked.push(snapshots.directory.join(record.id.to_string()).join(FS));
        }
        Ok(below)
    }

    fn remote_of(known: &Known, record: &Record) -> Option<Remote> {
        let below = known.below(record).map_while(Result::ok);
        std::iter::once(record).chain(below).find_map(|record| record.remote.clone())
    }

    /// All directories, uppermost first; mounts what is not mounted yet.
    fn directories(&self, snapshots: &Snapshots) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut all = self.unpacked.clone();
        let mut failure = None;
        for remote in &self.remote {
            match snapshots.lowers.directory(remote) {
                Ok(directory) => {
                    all.push(directory);
                    return Ok(all);
                }
                Err(report) => {
                    tracing::warn!(reference = remote.reference, why = report.message, "cannot mount an image");
                    failure.get_or_insert(report);
                }
            }
        }
        failure.map_or(Ok(all), |report| Err(SnapshotError::Lower(report)))
    }
}

fn may_be_made(known: &Known, key: &str, parent: Option<&str>) -> Result<(), RecordError> {
    if known.has(key) {
        return Err(RecordError::Exists(key.to_owned()));
    }
    match parent {
        Some(parent) if known.get(parent)?.kind != Kind::Committed => {
            Err(RecordError::Precondition { name: parent.to_owned(), why: "is not committed" })
        }
        _ => Ok(()),
    }
}

/// Makes the directories of a snapshot. Its root has the owner and the mode of its parent.
fn make(directory: &Path, kind: Kind, root: Option<&std::fs::Metadata>, mapping: Option<&Mapping>) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(directory)?;
    let fs = directory.join(FS);
    std::fs::DirBuilder::new().mode(0o755).create(&fs)?;
    let owner = mapping.map(|mapping| mapping.root).or_else(|| root.map(|root| (root.uid(), root.gid())));
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::lchown(&fs, Some(uid), Some(gid))?;
    }
    let mode = root.map_or(0o755, |root| root.permissions().mode() & 0o7777);
    std::fs::set_permissions(&fs, std::fs::Permissions::from_mode(mode))?;
    if kind == Kind::Active {
        std::fs::DirBuilder::new().mode(0o711).create(directory.join(WORK))?;
    }
    Ok(())
}

/// The numbers of the existing directories.
fn listed(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(numbers)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |cause| SnapshotError::Directory { path: path.to_owned(), cause }
}

/// Whether the kernel's overlayfs supports the option.
static INDEX: LazyLock<bool> = LazyLock::new(|| Path::new("/sys/module/overlay/parameters/index").exists());
const FS: &str = "fs";
const WORK: &str = "work";
/// What the key ends with of a snapshot in which containerd changes owners by itself.
const REMAPPED: &str = "-remap";
