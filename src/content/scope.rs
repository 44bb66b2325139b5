//! The scope of one mount: its tasks, its clock, its budget, and its activity.
//!
//! Mounts of one process share their layers; work done for one mount belongs to its scope and ends with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::activity::Activity;
use super::budget::{Budget, Prefetch};

/// State shared by the layers of one mount.
#[derive(Debug)]
pub struct MountScope {
    id: MountId,
    tasks: Handle,
    ended: watch::Sender<bool>,
    begun: Instant,
    /// The age of the mount in milliseconds when this process took it over.
    before_ms: AtomicU64,
    budget: Budget,
    activity: Activity,
}

/// Identifies a mount within the process; never reused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct MountId(u64);

impl MountId {
    pub(super) const FIRST: Self = Self(0);
    pub(super) const LAST: Self = Self(u64::MAX);
}

impl MountScope {
    /// What is fetched before it is read, from now on.
    pub fn set_prefetch(&self, prefetch: Prefetch) {
        self.budget().set_prefetch(prefetch);
    }

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
            activity: Activity::new(),
        }
    }

    pub(super) fn id(&self) -> MountId {
        self.id
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What the mount fetches, and how long its readers wait.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Runs `task` until it or the mount ends. The threads that serve the kernel's requests have no runtime of their
    /// own.
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

    /// Ends the mount and its tasks.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// After a take-over: another process had served the mount for `before`, so reads may no longer count as start-up.
    pub fn set_prior_age(&self, before: Duration) {
        self.before_ms.store(u64::try_from(before.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The age of the mount while it is starting up; `None` after that.
    pub(super) fn start(&self) -> Option<Duration> {
        Some(self.age()).filter(|age| *age < START)
    }

    /// Waits until the mount's start-up is over.
    pub async fn started(&self) {
        tokio::time::sleep(START.saturating_sub(self.age())).await;
    }

    /// The age of the mount.
    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed().saturating_add(Duration::from_millis(self.before_ms.load(Ordering::Relaxed)))
    }
}

impl Default for MountScope {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads within this time after the mount count as start-up and go into the profile.
const START: Duration = Duration::from_secs(60);
