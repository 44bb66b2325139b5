//! That a process that serves mounts can be ended, whatever its threads wait for.
//!
//! A signal is to free the mount points, let open files be read to their end, and end the process. Threads that hang,
//! as in a disk that is away, keep it from that: nothing answers what readers wait for, and what they wait for keeps
//! the mount. Then its connection to the kernel is ended, so that every reader gets an error; no process is left that
//! no signal can end. A thread of its own looks after that, since those of the runtime may be the ones that hang.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::error::HostError;
use super::process::{self, Ends};
use crate::fuse::Disconnect;
use crate::sync::lock;

/// Looks after the end of a mount that this process serves. Within the runtime that serves it.
pub(super) fn look_after(mount: Disconnect) {
    let mut mounts = lock(&MOUNTS);
    mounts.retain(|mount| mount.connection.is_alive());
    mounts.push(Mount { connection: mount, stands: None });
    drop(mounts);
    if !WATCHED.swap(true, Ordering::Relaxed) {
        let workers = Handle::current();
        let watch = std::thread::Builder::new().name("ending".into()).spawn(move || watch(&workers));
        if let Err(error) = watch {
            tracing::warn!(%error, "a process whose threads hang can be ended by SIGKILL only");
        }
    }
}

/// Ends the connections that are left: this process is about to end.
pub(super) fn disconnect() {
    // Not under the lock: it may take a moment.
    let mounts = std::mem::take(&mut *lock(&MOUNTS));
    mounts.iter().for_each(|mount| mount.connection.abort());
}

struct Mount {
    connection: Disconnect,
    /// How many requests had been received when more waited, and since when there are as many.
    stands: Option<(u64, Instant)>,
}

static MOUNTS: Mutex<Vec<Mount>> = Mutex::new(Vec::new());
static WATCHED: AtomicBool = AtomicBool::new(false);

fn watch(workers: &Handle) {
    let watched = process::small_runtime().and_then(|runtime| runtime.block_on(until_stuck(workers)));
    match watched {
        Ok(()) => {
            tracing::error!("threads hang that keep a mount from ending; what waits for it gets an error");
            disconnect();
            std::thread::sleep(PATIENCE);
            // All that could let it end has been done.
            std::process::exit(1);
        }
        Err(error) => {
            tracing::warn!(error = %crate::image::chain(&error), "a process whose threads hang can be ended by SIGKILL only");
        }
    }
}

/// Returns when a signal has told the process to end, and its threads keep it from that.
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

/// Whether a mount has requests that no thread has taken for as long as there is patience.
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
/// How long threads may do nothing before they count as hanging.
const PATIENCE: Duration = Duration::from_secs(5);
