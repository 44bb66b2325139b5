//! The scope of one mount: its tasks, its clock, and its budget.
//!
//! Layers that several mounts of a process show are shared; what is done for one of those mounts belongs to its scope,
//! and ends with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::budget::Budget;

/// What the layers of one mount have in common.
#[derive(Debug)]
pub struct MountScope {
    id: MountId,
    tasks: Handle,
    ended: watch::Sender<bool>,
    begun: Instant,
    /// For how many milliseconds another process had served the mount before.
    before_ms: AtomicU64,
    budget: Budget,
}

/// Tells the mounts of one process apart; never used twice.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct MountId(u64);

impl MountId {
    pub(super) const FIRST: Self = Self(0);
    pub(super) const LAST: Self = Self(u64::MAX);
}

impl MountScope {
    /// A mount that begins now. Must be called within a tokio runtime.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: MountId(NEXT.fetch_add(1, Ordering::Relaxed)),
            tasks: Handle::current(),
            ended: watch::Sender::new(false),
            begun: Instant::now(),
            before_ms: AtomicU64::new(0),
            budget: Budget::new(),
        }
    }

    pub(super) fn id(&self) -> MountId {
        self.id
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Runs `task` until it or the mount has ended; threads of the kernel's requests have no runtime of their own.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut ended = self.ended.subscribe();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => {}
                () = task => {}
            }
        });
    }

    /// The mount has ended, and its tasks with it.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// After a take-over: another process had served the mount for `before`, so reads may no longer count as start-up.
    pub fn goes_on_after(&self, before: Duration) {
        self.before_ms.store(u64::try_from(before.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago the mount began, for as long as reads count as its start-up.
    pub(super) fn start(&self) -> Option<Duration> {
        Some(self.age()).filter(|age| *age < START)
    }

    /// Waits until the mount's start-up is over.
    pub async fn started(&self) {
        tokio::time::sleep(START.saturating_sub(self.age())).await;
    }

    /// How long ago the mount began.
    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed().saturating_add(Duration::from_millis(self.before_ms.load(Ordering::Relaxed)))
    }
}

impl Default for MountScope {
    fn default() -> Self {
        Self::new()
    }
}

/// What is read in so much time from its beginning is what a mount is made for.
const START: Duration = Duration::from_secs(60);
