//! Ends a serving process even if its threads hang.
//!
//! A signal unmounts, lets open files be read to their end, and ends the process. Threads that hang, as on a dead disk,
//! prevent that: readers get no answer, and keep the mount busy. Then the connection to the kernel is aborted, so that
//! every reader gets an error, and the process exits. A separate thread does that, since those of the runtime may hang.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::error::HostError;
use super::process::{self, Ends};
use crate::fuse::Disconnect;
use crate::sync::lock;

/// Watches the end of a mount of this process. Call it within the runtime that serves the mount.
pub(super) fn look_after(mount: Disconnect) {
    let mut mounts = lock(&MOUNTS);
    mounts.retain(|mount| mount.connection.is_alive());
    mounts.push(Mount { connection: mount, stands: None });
    drop(mounts);
    if !WATCHED.swap(true, Ordering::Relaxed) {
        let workers = Handle::current();
        let watch = std::thread::Builder::new().name("ending".into()).spawn(move || watch(&workers));
        if let Err(error) = watch {
            tracing::warn!(%error, "cannot watch for hanging threads; only SIGKILL ends this process then");
        }
    }
}

/// Aborts the remaining connections: this process is about to exit.
pub(super) fn disconnect() {
    // Not under the lock: it may take a moment.
    let mounts = std::mem::take(&mut *lock(&MOUNTS));
    mounts.iter().for_each(|mount| mount.connection.abort());
}

struct Mount {
    connection: Disconnect,
    /// The number of requests received when more were pending, and since when it has not changed.
    stands: Option<(u64, Instant)>,
}

static MOUNTS: Mutex<Vec<Mount>> = Mutex::new(Vec::new());
static WATCHED: AtomicBool = AtomicBool::new(false);

fn watch(workers: &Handle) {
    let watched = process::small_runtime().and_then(|runtime| runtime.block_on(until_stuck(workers)));
    match watched {
        Ok(()) => {
            tracing::error!("threads hang and keep a mount from ending; its readers get an error");
            disconnect();
            std::thread::sleep(PATIENCE);
            // Nothing else can end it.
            std::process::exit(1);
        }
        Err(error) => {
            tracing::warn!(error = %crate::image::chain(&error), "cannot watch for hanging threads; only SIGKILL ends this process then");
        }
    }
}

/// Returns when a signal has requested the end and hanging threads prevent it.
async fn until_stuck(workers: &Handle) -> Result<(), HostError> {
    let mut ends = Ends::new()?;
    ends.wait().await;
    let mut again = None;
    let mut beat = Beat::new(workers);
    loop {
        tokio::select! {
            _ = ends.wait() => drop(again.get_or_insert_with(Instant::now)),
            () = tokio::time::sleep(LOOK) => {}
        }
        let overdue = again.is_some_and(|again| again.elapsed() > PATIENCE);
        if overdue || beat.is_missed(workers) || requests_stand() {
            return Ok(());
        }
    }
}

/// A task that some worker should run soon.
struct Beat {
    has_run: Arc<AtomicBool>,
    since: Instant,
}

impl Beat {
    fn new(workers: &Handle) -> Self {
        let has_run = Arc::new(AtomicBool::new(false));
        let run = Arc::clone(&has_run);
        workers.spawn(async move { run.store(true, Ordering::Relaxed) });
        Self { has_run, since: Instant::now() }
    }

    fn is_missed(&mut self, workers: &Handle) -> bool {
        if self.has_run.load(Ordering::Relaxed) {
            *self = Self::new(workers);
        }
        self.since.elapsed() > PATIENCE
    }
}

/// Whether requests of a mount have been pending longer than [`PATIENCE`].
fn requests_stand() -> bool {
    let now = Instant::now();
    lock(&MOUNTS).iter_mut().any(|mount| {
        let stands = mount.connection.stands_at();
        mount.stands = stands.map(|at| match mount.stands {
            Some((before, since)) if before == at => (at, since),
            _ => (at, now),
        });
        mount.stands.is_some_and(|(_, since)| now.duration_since(since) > PATIENCE)
    })
}

const LOOK: Duration = Duration::from_millis(250);
/// Threads that do nothing for this long count as hanging.
const PATIENCE: Duration = Duration::from_secs(5);
