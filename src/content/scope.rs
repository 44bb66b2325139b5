//! The scope of one mount: its tasks, its clock, and what it may have in flight.
//!
//! A link carries one byte at a time, so whatever is fetched before anybody asks for it delays those who
//! ask. What is fetched ahead is therefore bounded by a budget in bytes, and what is fetched merely
//! because the link is idle stops while anybody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// What is fetched before it is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Prefetch {
    /// What a reader that goes on in order will want next, and nothing else.
    None,
    /// Also what earlier runs wanted, in their order, and near neighbours of what is read.
    #[default]
    Profile,
    /// Also everything else, while nobody waits.
    All,
}

/// What the layers of one mount have on their way.
#[derive(Debug)]
pub struct MountScope {
    mount: MountId,
    tasks: Handle,
    ended: watch::Sender<bool>,
    begun: Instant,
    /// For how many milliseconds another process had served the mount before.
    before_ms: AtomicU64,
    prefetch: AtomicU8,
    /// Reads that wait for the source.
    waiting: watch::Sender<u32>,
    /// KiB of blobs that may be on their way ahead of readers.
    ahead: Arc<Semaphore>,
    /// KiB of blobs that may be on their way for nobody in particular.
    background: Arc<Semaphore>,
    /// KiB of blobs that may be on their way as guesses.
    speculated: Arc<Semaphore>,
    /// Held by the one who waits for room for a guess that is not urgent.
    low_priority: Mutex<()>,
}

/// Tells the mounts of one process apart; never used twice.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct MountId(u64);

impl MountId {
    pub(super) const FIRST: Self = Self(0);
    pub(super) const LAST: Self = Self(u64::MAX);
}

/// Which guesses go first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// What is wanted next if anything is.
    Next,
    /// What some reader may come to.
    Some,
}

/// A read that waits for the source, until dropped.
pub(super) struct Waiting<'a>(&'a MountScope);

impl MountScope {
    /// Nothing on its way, and nothing fetched before it is read. Must be called within a tokio runtime.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            mount: MountId(NEXT.fetch_add(1, Ordering::Relaxed)),
            tasks: Handle::current(),
            ended: watch::Sender::new(false),
            begun: Instant::now(),
            before_ms: AtomicU64::new(0),
            prefetch: AtomicU8::new(Prefetch::None as u8),
            waiting: watch::Sender::new(0),
            ahead: Arc::new(Semaphore::new(AHEAD_KIB)),
            background: Arc::new(Semaphore::new(BACKGROUND_KIB)),
            speculated: Arc::new(Semaphore::new(GUESSED_KIB)),
            low_priority: Mutex::default(),
        }
    }

    /// Which mount this is.
    pub(super) fn mount(&self) -> MountId {
        self.mount
    }

    /// Says what is to be fetched before it is read.
    pub(super) fn set_prefetch(&self, prefetch: Prefetch) {
        self.prefetch.store(prefetch as u8, Ordering::Relaxed);
    }

    /// Whether neighbours of what is read may be fetched on the chance that they are wanted.
    pub(super) fn speculates(&self) -> bool {
        self.prefetch.load(Ordering::Relaxed) != Prefetch::None as u8
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

    /// The mount has ended, and what runs for it.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Another process has served the mount for so long before.
    pub fn goes_on_after(&self, before: Duration) {
        self.before_ms.store(u64::try_from(before.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago the mount began, for as long as what is read belongs to its start.
    pub(super) fn start(&self) -> Option<Duration> {
        Some(self.age()).filter(|age| *age < START)
    }

    /// Waits until the mount's start is over.
    pub async fn started(&self) {
        tokio::time::sleep(START.saturating_sub(self.age())).await;
    }

    fn age(&self) -> Duration {
        self.begun.elapsed().saturating_add(Duration::from_millis(self.before_ms.load(Ordering::Relaxed)))
    }

    /// A read begins to wait.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.send_modify(|count| *count += 1);
        Waiting(self)
    }

    /// Whether a read waits.
    pub(super) fn has_waiting_reads(&self) -> bool {
        *self.waiting.borrow() > 0
    }

    /// Waits until no read waits.
    pub(super) async fn idle(&self) {
        // The sender lives in `self`.
        let _ = self.waiting.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Room for so many bytes of a blob ahead of a reader, if there is any now.
    pub(super) fn room_ahead(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_many_owned(in_kib(bytes, AHEAD_KIB)).ok()
    }

    /// Room for so many bytes of a blob in the background, as soon as there is any.
    pub(super) async fn room_behind(&self, bytes: u64) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.background).acquire_many_owned(in_kib(bytes, BACKGROUND_KIB));
        room.await.expect("the budget is never closed")
    }

    /// Room for a guess of so many bytes of a blob, as soon as there is any. Of those that are not urgent only one waits
    /// in front of those that are.
    pub(super) async fn room_to_speculate(&self, bytes: u64, urgency: Urgency) -> OwnedSemaphorePermit {
        let _turn = match urgency {
            Urgency::Next => None,
            Urgency::Some => Some(self.low_priority.lock().await),
        };
        let room = Arc::clone(&self.speculated).acquire_many_owned(in_kib(bytes, GUESSED_KIB));
        room.await.expect("the budget is never closed")
    }
}

impl Default for MountScope {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|count| *count -= 1);
    }
}

/// What is larger than the whole budget has to be alone.
pub(super) fn in_kib(bytes: u64, most: usize) -> u32 {
    u32::try_from((bytes >> 10).clamp(1, most as u64)).expect("budgets are far smaller")
}

/// What is read in so much time from its beginning is what a mount is made for.
const START: Duration = Duration::from_secs(60);
/// Twice the widest window of one reader.
const AHEAD_KIB: usize = 8 << 10;
/// A few times what a link holds (200 Mbit/s and 20 ms, or 50 Mbit/s and 80 ms: 0.5 MiB), so that it never idles;
/// and a read that comes in between waits behind no more than this.
const BACKGROUND_KIB: usize = 2 << 10;
/// Twice what a link holds, as above: it does not fall idle, and a read that comes in between waits no longer behind it
/// than for a round trip or two.
const GUESSED_KIB: usize = 1 << 10;
/// The same as the background's, in bytes.
pub(super) const BACKGROUND: u64 = (BACKGROUND_KIB as u64) << 10;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_guess_that_is_urgent_waits_for_one_that_is_not_at_most() {
        let scope = MountScope::new();
        let all = (GUESSED_KIB as u64) << 10;
        let on_link = scope.room_to_speculate(all, Urgency::Some).await;
        let mut first = Box::pin(scope.room_to_speculate(all / 2, Urgency::Some));
        let mut second = Box::pin(scope.room_to_speculate(all / 2, Urgency::Some));
        let mut urgent = Box::pin(scope.room_to_speculate(all / 2, Urgency::Next));
        for waiting in [&mut first, &mut second, &mut urgent] {
            assert!(waiting.as_mut().now_or_never().is_none(), "the link is full");
        }
        drop(on_link);
        let _first = first.await;
        assert!(second.as_mut().now_or_never().is_none());
        let _urgent = urgent.await;
    }
}
