//! The budget of one mount: how many bytes may be in flight ahead of its readers.
//!
//! Sequential readahead gets 8 MiB of blobs, the rest of large files that are read here and there 4 MiB. Speculation gets
//! 1 MiB, so that demand never waits for more than that on the link. Profile replay and background fill share 2 MiB.
//! Demand is not limited. Speculation that waits for its budget is not in flight: a reader that needs its spans fetches
//! them at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::predict::{Priority, Speculation};

/// What is fetched before it is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Prefetch {
    /// Readahead for sequential readers only.
    None,
    /// Also what earlier runs of the image read, in their order, and speculation.
    #[default]
    Profile,
    /// Also everything else, while no read waits.
    All,
}

/// Limits on what one mount has in flight, over all its layers.
#[derive(Debug)]
pub(super) struct Budget {
    prefetch: AtomicU8,
    /// The number of reads that wait for the source.
    waiting: watch::Sender<u32>,
    /// KiB of blobs that sequential readahead may have in flight.
    ahead: Arc<Semaphore>,
    /// KiB of blobs that may be in flight of the rest of large files.
    rest: Arc<Semaphore>,
    /// KiB of blobs that replay and background fill may have in flight.
    background: Arc<Semaphore>,
    /// KiB of blobs that speculation may have in flight.
    speculative: Arc<Semaphore>,
    /// Held by the low-priority request that is queued.
    low: Mutex<()>,
}

/// Watches for reads that wait for the source, on behalf of fetches that no reader waits for.
pub(super) struct Quiet(watch::Receiver<u32>);

/// A read that waits for the source; dropped when the wait ends.
pub(super) struct Waiting<'a>(&'a Budget);

impl Budget {
    /// Nothing in flight; speculation is off until [`Budget::set_prefetch`].
    pub(super) fn new() -> Self {
        Self {
            prefetch: AtomicU8::new(Prefetch::None as u8),
            waiting: watch::Sender::new(0),
            ahead: Arc::new(Semaphore::new(AHEAD_KIB)),
            rest: Arc::new(Semaphore::new(REST_KIB)),
            background: Arc::new(Semaphore::new(BACKGROUND_KIB)),
            speculative: Arc::new(Semaphore::new(SPECULATIVE_KIB)),
            low: Mutex::default(),
        }
    }

    /// Sets the prefetch policy.
    pub(super) fn set_prefetch(&self, prefetch: Prefetch) {
        self.prefetch.store(prefetch as u8, Ordering::Relaxed);
    }

    /// Whether speculation is allowed.
    pub(super) fn speculation(&self) -> Speculation {
        let none = self.prefetch.load(Ordering::Relaxed) == Prefetch::None as u8;
        if none { Speculation::Off } else { Speculation::Allowed }
    }

    /// Registers a waiting read.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.send_modify(|count| *count += 1);
        Waiting(self)
    }

    /// How many reads wait.
    pub(super) fn waiting_reads(&self) -> u32 {
        *self.waiting.borrow()
    }

    /// Whether any read waits.
    pub(super) fn has_waiting_reads(&self) -> bool {
        self.waiting_reads() > 0
    }

    /// Watches from now on whether reads wait.
    pub(super) fn quiet(&self) -> Quiet {
        let mut waiting = self.waiting.subscribe();
        waiting.mark_changed();
        Quiet(waiting)
    }

    /// Budget for `bytes` of readahead, if available now.
    pub(super) fn ahead(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_many_owned(in_kib(bytes, AHEAD_KIB)).ok()
    }

    /// Budget for `bytes` of the rest of a large file, if available now.
    pub(super) fn rest(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.rest).try_acquire_many_owned(in_kib(bytes, REST_KIB)).ok()
    }

    /// Bytes for which [`Budget::ahead`] has room now.
    pub(super) fn ahead_left(&self) -> u64 {
        (self.ahead.available_permits() as u64) << 10
    }

    /// Bytes for which [`Budget::rest`] has room now.
    pub(super) fn rest_left(&self) -> u64 {
        (self.rest.available_permits() as u64) << 10
    }

    /// Waits for budget for `bytes` of background fetches.
    pub(super) async fn background(&self, bytes: u64) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.background).acquire_many_owned(in_kib(bytes, BACKGROUND_KIB));
        room.await.expect("the budget is never closed")
    }

    /// Waits for budget for `bytes` of speculation. At most one low-priority request can be queued ahead of one of high
    /// priority.
    pub(super) async fn speculative(&self, bytes: u64, priority: Priority) -> OwnedSemaphorePermit {
        let _low = match priority {
            Priority::High => None,
            Priority::Low => Some(self.low.lock().await),
        };
        let room = Arc::clone(&self.speculative).acquire_many_owned(in_kib(bytes, SPECULATIVE_KIB));
        room.await.expect("the budget is never closed")
    }
}

impl Quiet {
    /// Whether any read has waited since the last call. If so, returns when none has waited for [`PAUSE`]: one read of a
    /// program usually follows another, and each would wait behind what was begun between them.
    pub(super) async fn disturbed(&mut self) -> bool {
        // Fails only when the mount has ended, as its tasks do.
        if !self.0.has_changed().unwrap_or(false) {
            return false;
        }
        loop {
            let ended = self.0.wait_for(|count| *count == 0).await.is_err();
            if ended || tokio::time::timeout(PAUSE, self.0.changed()).await.is_err() {
                return true;
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|count| *count -= 1);
    }
}

/// Bytes in KiB, clamped to the whole budget: a larger request takes all of it.
pub(super) fn in_kib(bytes: u64, most: usize) -> u32 {
    u32::try_from((bytes >> 10).clamp(1, most as u64)).expect("budgets are far smaller")
}

/// A program that computes for longer between two reads that wait is not one that reads in a row. A few round trips.
const PAUSE: Duration = Duration::from_millis(100);
/// Twice the widest window of one reader.
const AHEAD_KIB: usize = 8 << 10;
/// Twice what streams may have on the link, so that it does not idle while a reader waits for one answer.
const REST_KIB: usize = 4 << 10;
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

    #[tokio::test(start_paused = true)]
    async fn background_fetches_begin_once_reads_have_paused() {
        let (budget, begun) = (Budget::new(), tokio::time::Instant::now());
        let mut quiet = budget.quiet();
        assert!(quiet.disturbed().await && begun.elapsed() >= PAUSE, "the first read may come with the mount");
        assert!(!quiet.disturbed().await, "no read has waited since");
        let waiting = budget.wait();
        assert!(quiet.disturbed().now_or_never().is_none());
        drop(waiting);
        let (begun, mut reads) = (tokio::time::Instant::now(), 0);
        let reader = async {
            loop {
                tokio::time::sleep(PAUSE / 2).await;
                drop(budget.wait());
                reads += 1;
                if reads == 10 {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            disturbed = quiet.disturbed() => assert!(disturbed),
            () = reader => {}
        }
        assert!(begun.elapsed() >= 6 * PAUSE, "ten reads in a row, and a pause");
    }

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
