//! The budget of one mount: how much may be in flight ahead of its readers.
//!
//! 8 MiB of blobs follow readers that continue; 1 MiB is speculation, so that demand never waits for more than that on
//! the link; 2 MiB replay profiles and fill the cache in the background. Demand is not counted. Speculation that has
//! not got its room is not in flight: a reader that wants its spans meanwhile fetches them at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::predict::{Priority, Speculation};

/// What is fetched before it is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Prefetch {
    /// What a reader that continues in order will want next, and nothing else.
    None,
    /// Also what earlier runs wanted, in their order, and what speculation suggests.
    #[default]
    Profile,
    /// Also everything else, while no read waits.
    All,
}

/// What may be in flight for one mount, in all its layers.
#[derive(Debug)]
pub(super) struct Budget {
    prefetch: AtomicU8,
    /// Reads that wait for the source.
    waiting: watch::Sender<u32>,
    /// KiB of blobs that may be in flight ahead of readers that continue.
    ahead: Arc<Semaphore>,
    /// KiB of blobs that may be in flight for no reader in particular.
    background: Arc<Semaphore>,
    /// KiB of blobs that may be in flight on speculation.
    speculative: Arc<Semaphore>,
    /// Held by the one of low priority that waits for room.
    low: Mutex<()>,
}

/// A read that waits for the source, until dropped.
pub(super) struct Waiting<'a>(&'a Budget);

impl Budget {
    /// Nothing in flight; until [`Budget::set_prefetch`] nothing is fetched on speculation.
    pub(super) fn new() -> Self {
        Self {
            prefetch: AtomicU8::new(Prefetch::None as u8),
            waiting: watch::Sender::new(0),
            ahead: Arc::new(Semaphore::new(AHEAD_KIB)),
            background: Arc::new(Semaphore::new(BACKGROUND_KIB)),
            speculative: Arc::new(Semaphore::new(SPECULATIVE_KIB)),
            low: Mutex::default(),
        }
    }

    /// Says what is to be fetched before it is read.
    pub(super) fn set_prefetch(&self, prefetch: Prefetch) {
        self.prefetch.store(prefetch as u8, Ordering::Relaxed);
    }

    /// Whether spans may be fetched on speculation.
    pub(super) fn speculation(&self) -> Speculation {
        let none = self.prefetch.load(Ordering::Relaxed) == Prefetch::None as u8;
        if none { Speculation::Off } else { Speculation::Allowed }
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

    /// Room for `bytes` of a blob ahead of a reader, if there is any now.
    pub(super) fn ahead(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_many_owned(in_kib(bytes, AHEAD_KIB)).ok()
    }

    /// Room for `bytes` of a blob in the background, as soon as there is any.
    pub(super) async fn background(&self, bytes: u64) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.background).acquire_many_owned(in_kib(bytes, BACKGROUND_KIB));
        room.await.expect("the budget is never closed")
    }

    /// Room for `bytes` of a blob on speculation, as soon as there is any. At most one of low priority can be
    /// queued ahead of one of high priority.
    pub(super) async fn speculative(&self, bytes: u64, priority: Priority) -> OwnedSemaphorePermit {
        let _low = match priority {
            Priority::High => None,
            Priority::Low => Some(self.low.lock().await),
        };
        let room = Arc::clone(&self.speculative).acquire_many_owned(in_kib(bytes, SPECULATIVE_KIB));
        room.await.expect("the budget is never closed")
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|count| *count -= 1);
    }
}

/// Bytes in KiB. What is larger than the whole budget has to be alone.
pub(super) fn in_kib(bytes: u64, most: usize) -> u32 {
    u32::try_from((bytes >> 10).clamp(1, most as u64)).expect("budgets are far smaller")
}

/// Twice the widest window of one reader.
const AHEAD_KIB: usize = 8 << 10;
/// A few times what a link holds (200 Mbit/s and 20 ms, or 50 Mbit/s and 80 ms: 0.5 MiB), so that it never idles;
/// and a read that comes in between waits behind no more than this.
const BACKGROUND_KIB: usize = 2 << 10;
/// Twice what a link holds, as above: it does not fall idle, and a read that comes in between waits no longer behind it
/// than for a round trip or two.
const SPECULATIVE_KIB: usize = 1 << 10;
/// The same as the background's, in bytes.
pub(super) const BACKGROUND: u64 = (BACKGROUND_KIB as u64) << 10;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn high_priority_waits_behind_one_low_priority_at_most() {
        let budget = Budget::new();
        let all = (SPECULATIVE_KIB as u64) << 10;
        let in_flight = budget.speculative(all, Priority::Low).await;
        let mut first = Box::pin(budget.speculative(all / 2, Priority::Low));
        let mut second = Box::pin(budget.speculative(all / 2, Priority::Low));
        let mut high = Box::pin(budget.speculative(all / 2, Priority::High));
        for waiting in [&mut first, &mut second, &mut high] {
            assert!(waiting.as_mut().now_or_never().is_none(), "the budget is used up");
        }
        drop(in_flight);
        let _first = first.await;
        assert!(second.as_mut().now_or_never().is_none());
        let _high = high.await;
    }
}
