//! A store's life: made or taken over, served, ended. As that of a [mount](crate::host::mount), of another tree.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::records::{Lock, Records};
use super::server::{self, Store};
use super::{ImageStoreError, StoreSpec};
use crate::fuse::{self, MountOptions, MountPlace, Mounted, Target};
use crate::host::activity::Tell;
use crate::host::channel::Listener;
use crate::host::endpoint::{self, Endpoint};
use crate::host::error::HostError;
use crate::host::handover::now;
use crate::host::mount::Asker;
use crate::host::status::{self, MountState};
use crate::host::supervisor::Supervisor;
use crate::host::{Silent, ending, failures, mount_point};
use crate::image::{SharedLayers, Tree};
use crate::image_store::empty;

/// A store that is mounted, as another process could take it over; its connection to the kernel goes beside.
#[derive(Clone, Debug)]
pub struct StoreHandover {
    /// What was asked for.
    pub spec: StoreSpec,
    /// Where it is mounted.
    pub place: MountPlace,
    /// Where the log is written; none in the foreground.
    pub log: Option<PathBuf>,
    /// Seconds since 1970 at which it was mounted.
    pub since: u64,
    /// How often another process has taken it over.
    pub takeovers: u32,
    /// How the process before ended, if it died.
    pub ended: Option<String>,
    /// The process that asked for it has not been told yet that it is ready.
    pub awaited: bool,
}

impl StoreHandover {
    /// As it is told to the next process; `ended` says how the one before died.
    #[must_use]
    pub fn to_next(&self, ended: Option<String>) -> Self {
        Self { takeovers: self.takeovers + 1, ended, ..self.clone() }
    }
}

/// A store that this process is to take over.
pub(in crate::host) struct Handed {
    pub(in crate::host) handover: StoreHandover,
    pub(in crate::host) connection: OwnedFd,
}

/// A store that this process serves.
pub(in crate::host) struct StoreMount {
    handover: StoreHandover,
    store: Arc<Store>,
    mounted: Mounted,
    listener: Listener,
    supervisor: Supervisor,
    /// For the supervisor, once.
    connection: Option<OwnedFd>,
    /// Where its metrics are; after a take-over it is made later.
    endpoint: Option<Endpoint>,
    serving: Lock,
}

/// A store of another process that this one is ready to take over.
pub(in crate::host) struct PreparedStore {
    handed: Handed,
    store: Arc<Store>,
}

impl StoreMount {
    /// Opens the images and mounts the store; `log` is where this process will write its log.
    ///
    /// # Errors
    /// [`HostError`]; nothing is mounted then.
    pub(in crate::host) async fn make(
        spec: &StoreSpec,
        shared_layers: &SharedLayers,
        log: Option<&Path>,
        supervisor: Supervisor,
    ) -> Result<Self, HostError> {
        let records = Records::open(&spec.at)?;
        let serving = records.join()?;
        let endpoint = endpoint::bind(spec.metrics).await?;
        let at = mount_point::find(&spec.at, &mut Silent)?;
        empty::make(&at).map_err(ImageStoreError::file(&at))?;
        let target = Target::open(&at)?;
        records.forget_removed()?;
        let store = Store::new(spec, records, shared_layers);
        match store.records.remembered() {
            Ok(before) => before.into_iter().for_each(|before| store.tree.go_on(before)),
            // The kernel knows nothing of this mount yet.
            Err(error) => {
                tracing::warn!(error = crate::image::chain(&error), "node numbers of an earlier mount are ignored");
            }
        }
        store.look().await?;
        let listener = listen(&store)?;
        let options = MountOptions {
            source: SOURCE.to_owned(),
            allow_other: spec.allow_other,
            refuse_own_requests: true,
            ..MountOptions::default()
        };
        let mounted = fuse::mount(Arc::clone(&store.tree) as Arc<dyn Tree>, &target, &options)?;
        let connection = mounted.connection().and_then(|connection| connection.try_clone_to_owned().ok());
        let handover = StoreHandover {
            spec: spec.clone(),
            place: mounted.place(),
            log: log.map(Path::to_owned),
            since: now(),
            takeovers: 0,
            ended: None,
            awaited: true,
        };
        Ok(Self { handover, store, mounted, listener, supervisor, connection, endpoint, serving })
    }

    /// Where it is mounted.
    pub(in crate::host) fn place(&self) -> MountPlace {
        self.mounted.place()
    }

    /// Serves until it is unmounted and its last file is closed.
    pub(in crate::host) async fn serve(self, asker: &mut impl Asker) {
        let Self { mut handover, store, mounted, listener, mut supervisor, connection, endpoint, serving } = self;
        let (place, requests) = (mounted.place(), mounted.requests());
        ending::look_after(mounted.disconnect());
        let served = tokio::spawn(mounted.served());
        supervisor.serving_store(&handover, connection.as_ref().map(OwnedFd::as_fd)).await;
        drop(connection);
        let listening = tokio::spawn(server::listen(listener, Arc::clone(&store)));
        let endpoint = endpoint::or_again(endpoint, handover.spec.metrics).await;
        let mut state = MountState::of_store(&handover, &supervisor);
        state.metrics = endpoint.as_ref().map(Endpoint::address);
        let (health, told) = (Arc::clone(&store), Arc::clone(&store));
        let tell: Tell = Arc::new(move |files| told.activity(&requests, files));
        endpoint.iter().for_each(|endpoint| endpoint.tells_of(state.clone(), Arc::clone(&tell)));
        let published = status::publish(state, move || health.health(), tell);
        if handover.awaited {
            handover.awaited = false;
            supervisor.serving_store(&handover, None).await;
        }
        asker.ready().await;
        failures::log(true);
        tracing::info!(at = %place.at().display(), images = store.images(), "the store is served");
        match served.await {
            Ok(Err(error)) => tracing::error!(%error, at = %place.at().display(), "a store is served no more"),
            Ok(Ok(())) => {}
            Err(error) => tracing::error!(%error, at = %place.at().display(), "the task that served a store ended"),
        }
        listening.abort();
        let _ = std::fs::remove_file(store.records.socket());
        supervisor.ended().await;
        drop((published, endpoint, serving));
    }
}

impl PreparedStore {
    /// Opens the images of a store that another process serves, or has served.
    ///
    /// # Errors
    /// [`HostError`]
    pub(in crate::host) async fn open(handed: Handed, shared_layers: &SharedLayers) -> Result<Self, HostError> {
        let spec = &handed.handover.spec;
        let store = Store::new(spec, Records::open(&spec.at)?, shared_layers);
        store.prepare().await?;
        Ok(Self { handed, store })
    }

    /// The store that is to be taken over.
    pub(in crate::host) fn handover(&self) -> &StoreHandover {
        &self.handed.handover
    }

    /// Takes it over; the process before serves no more. Images that came meanwhile are opened now.
    ///
    /// # Errors
    /// [`HostError`]
    pub(in crate::host) async fn take_over(self, supervisor: Supervisor) -> Result<StoreMount, HostError> {
        let Self { handed: Handed { handover, connection }, store } = self;
        let serving = store.records.join()?;
        // There are none where nothing has ever been shown by a number.
        store.records.remembered()?.into_iter().for_each(|before| store.tree.go_on(before));
        store.look().await?;
        let listener = listen(&store)?;
        let (tree, place) = (Arc::clone(&store.tree) as Arc<dyn Tree>, handover.place.clone());
        let mounted = fuse::take_over(connection, tree, place, None, false, false)?;
        if let Some(how) = &handover.ended {
            let (at, takeovers) = (handover.place.at().display(), handover.takeovers);
            tracing::warn!(how, takeovers, %at, "the process that served this store died; this one takes over");
        }
        Ok(StoreMount { handover, store, mounted, listener, supervisor, connection: None, endpoint: None, serving })
    }
}

/// Listens where commands ask; what a process before has left there is removed.
fn listen(store: &Store) -> Result<Listener, HostError> {
    let socket = store.records.socket();
    let _ = std::fs::remove_file(&socket);
    Listener::bind(&socket).map_err(HostError::system("listen at a socket"))
}

/// What `mount` and `df` show as the source.
pub const SOURCE: &str = "image store";
