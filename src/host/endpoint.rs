//! Where metrics are served over HTTP: of the mounts of this process, or of all mounts of its user.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use hyper::StatusCode;

use super::activity::{Activity, Tell};
use super::http::{self, Server};
use super::status::{self, MountState};
use super::{ask, error::HostError, metrics};
use crate::sync::lock;

/// A part of an endpoint, for one mount or for all. Mounts of a process that name the same address share it.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    number: u64,
}

#[derive(Debug)]
struct Shared {
    sources: Arc<Sources>,
    server: Server,
}

/// What is told, by the number of each part.
#[derive(Default)]
struct Sources(Mutex<BTreeMap<u64, Source>>);

type Source = Arc<dyn Fn() -> Vec<(MountState, Activity)> + Send + Sync>;

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Listens on `address`, or joins what this process has there.
    ///
    /// # Errors
    /// [`HostError::Metrics`]
    async fn bind(address: SocketAddr) -> Result<Self, HostError> {
        Self::try_bind(address).await.map_err(|cause| HostError::Metrics { address, cause })
    }

    /// As [`Endpoint::bind`], where the process before may have listened a moment ago.
    pub(super) async fn bind_again(address: SocketAddr) -> Result<Self, HostError> {
        for _ in 0..TRIES {
            match Self::try_bind(address).await {
                Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => tokio::time::sleep(PAUSE).await,
                bound => return bound.map_err(|cause| HostError::Metrics { address, cause }),
            }
        }
        Self::bind(address).await
    }

    async fn try_bind(address: SocketAddr) -> io::Result<Self> {
        static ALL: Mutex<BTreeMap<SocketAddr, Weak<Shared>>> = Mutex::new(BTreeMap::new());
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if let Some(shared) = { lock(&ALL).get(&address).and_then(Weak::upgrade) } {
            return Ok(Self { shared, number });
        }
        let sources = Arc::<Sources>::default();
        let told = Arc::clone(&sources);
        let server = Server::bind(address, Arc::new(move |request| answer(request, &told))).await?;
        let shared = Arc::new(Shared { sources, server });
        // Each mount that leaves the port to the kernel has one of its own.
        if address.port() != 0 {
            lock(&ALL).insert(address, Arc::downgrade(&shared));
        }
        Ok(Self { shared, number })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.server.address()
    }

    /// Tells about a mount of this process.
    pub(super) fn tells_of(&self, state: MountState, tell: Tell) {
        self.tell(Arc::new(move || vec![(state.clone(), tell(0))]));
    }

    /// At `address`, tells about all mounts of this process's user.
    ///
    /// # Errors
    /// [`HostError::Metrics`]
    pub async fn of_all(address: Option<SocketAddr>) -> Result<Option<Self>, HostError> {
        let endpoint = bind(address).await?;
        endpoint.iter().for_each(Self::tells_of_all);
        Ok(endpoint)
    }

    fn tells_of_all(&self) {
        self.tell(Arc::new(|| match status::directory() {
            Ok(directory) => {
                let told = ask::all(status::all(&directory), 0);
                told.into_iter().filter_map(|(state, activity)| Some((state, activity.ok()?))).collect()
            }
            Err(error) => {
                tracing::warn!(error = crate::image::chain(&error), "mounts are not known");
                Vec::new()
            }
        }));
    }

    fn tell(&self, source: Source) {
        lock(&self.shared.sources.0).insert(self.number, source);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        lock(&self.shared.sources.0).remove(&self.number);
    }
}

/// For a new mount.
pub(super) async fn bind(address: Option<SocketAddr>) -> Result<Option<Endpoint>, HostError> {
    match address {
        Some(address) => Endpoint::bind(address).await.map(Some),
        None => Ok(None),
    }
}

/// For a mount that is up: what is bound, or after a take-over bound now. The mount works without.
pub(super) async fn or_again(bound: Option<Endpoint>, address: Option<SocketAddr>) -> Option<Endpoint> {
    let (None, Some(address)) = (&bound, address) else { return bound };
    Endpoint::bind_again(address)
        .await
        .map_err(|error| tracing::warn!(error = crate::image::chain(&error), "metrics are not served any more"))
        .ok()
}

fn answer(request: &http::Parts, sources: &Sources) -> http::Response {
    match request.uri.path() {
        "/" => http::plain(StatusCode::OK, "peelfs; its metrics are at /metrics"),
        "/metrics" => {
            let sources: Vec<_> = lock(&sources.0).values().cloned().collect();
            let mounts = sources.iter().flat_map(|source| source()).collect();
            http::response(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(mounts))
        }
        _ => http::not_found(),
    }
}

const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
