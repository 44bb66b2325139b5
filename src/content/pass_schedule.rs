//! Scheduling of first passes: which layer the link and the CPUs serve first.
//!
//! First passes share one link and a few CPUs; layers that a reader waits for go first. While such a layer could decode
//! more than it gets, the other passes take nothing from their streams, and TCP flow control leaves the link to it. A
//! pass that cannot keep up with the link, or that has received nothing for half a second, holds up none. The threads of
//! passes that are not waited for run at a nice value ten higher, where the process may raise it again later (root, or
//! RLIMIT_NICE).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::store::descriptor_limit;

/// The first passes of a process, which share a link.
#[derive(Debug)]
pub struct PassScheduler {
    link: watch::Sender<Urgent>,
    /// How many layers are waited for.
    urgent: AtomicUsize,
    /// As many may run at a time as there are descriptors for.
    places: Semaphore,
}

/// The first pass over one layer, among the others.
#[derive(Debug)]
pub struct ScheduledPass {
    scheduler: Arc<PassScheduler>,
    urgent: Arc<AtomicBool>,
}

/// The priority of one thread that works for a layer; dropping it restores the one before.
pub(super) struct ThreadPriority {
    scheduler: Arc<PassScheduler>,
    urgent: Arc<AtomicBool>,
    /// The thread's own nice value, and what it has now.
    own: i32,
    now: i32,
}

/// What passes that are waited for get of the link.
#[derive(Clone, Copy, Debug)]
struct Urgent {
    /// How many of them could decode more.
    starved: usize,
    /// When one of them last received bytes, or began.
    progressed: Instant,
}

/// The right to take a layer's stream, piece by piece.
pub(super) struct Lease<'a> {
    schedule: &'a ScheduledPass,
    starved: bool,
}

impl PassScheduler {
    /// No passes yet.
    pub fn new() -> Arc<Self> {
        let link = watch::Sender::new(Urgent { starved: 0, progressed: Instant::now() });
        Arc::new(Self { link, urgent: AtomicUsize::new(0), places: Semaphore::new(passes_at_once()) })
    }
}

impl ScheduledPass {
    /// One more pass, over a layer that is not waited for.
    pub fn new(scheduler: &Arc<PassScheduler>) -> Self {
        Self { scheduler: Arc::clone(scheduler), urgent: Arc::default() }
    }

    /// Says whether a reader waits for this layer.
    pub fn set_urgent(&self, urgent: bool) {
        if self.urgent.swap(urgent, Ordering::Relaxed) != urgent {
            if urgent {
                self.scheduler.urgent.fetch_add(1, Ordering::Relaxed);
            } else {
                self.scheduler.urgent.fetch_sub(1, Ordering::Relaxed);
            }
            // It may be waiting in `Lease::next`.
            self.scheduler.link.send_modify(|_| {});
        }
    }

    /// Whether a reader waits for this layer.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// Waits until there are descriptors for one more pass.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.scheduler.places.acquire().await.ok()
    }

    pub(super) fn take(&self) -> Lease<'_> {
        Lease { schedule: self, starved: false }
    }

    /// The priority of a thread that is about to work for this layer, and calls [`ThreadPriority::settle`] now and then.
    pub(super) fn priority(&self) -> impl FnOnce() -> ThreadPriority + Send + use<> {
        let (scheduler, urgent) = (Arc::clone(&self.scheduler), Arc::clone(&self.urgent));
        move || {
            let own = getpriority_process(None).unwrap_or_default();
            ThreadPriority { scheduler, urgent, own, now: own }
        }
    }
}

impl Drop for ScheduledPass {
    fn drop(&mut self) {
        self.set_urgent(false);
    }
}

impl ThreadPriority {
    /// Yields to threads of layers that are waited for, while this one's is not.
    pub(super) fn settle(&mut self) {
        let yields = !self.urgent.load(Ordering::Relaxed) && self.scheduler.urgent.load(Ordering::Relaxed) > 0;
        self.set(if yields { self.own + YIELDS } else { self.own });
    }

    fn set(&mut self, priority: i32) {
        if self.now != priority && can_be_raised() && setpriority_process(None, priority).is_ok() {
            self.now = priority;
        }
    }
}

impl Drop for ThreadPriority {
    fn drop(&mut self) {
        self.set(self.own);
    }
}

/// Whether a thread whose priority was lowered can have it back: root's can, others' by their limit (setpriority(2)).
fn can_be_raised() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        // In a thread of its own: it may keep the lower priority, and ends.
        let tried = std::thread::Builder::new().spawn(|| {
            let own = getpriority_process(None)?;
            setpriority_process(None, own + 1)?;
            setpriority_process(None, own)
        });
        tried.is_ok_and(|thread| matches!(thread.join(), Ok(Ok(()))))
    })
}

impl Lease<'_> {
    /// Returns when this layer may take its next piece.
    pub(super) async fn next(&mut self) {
        let mut changes = self.schedule.scheduler.link.subscribe();
        loop {
            if self.schedule.is_urgent() {
                self.set_starved(true);
                return;
            }
            let Urgent { starved, progressed } = *changes.borrow_and_update();
            let silent = progressed.elapsed();
            if starved == 0 || silent >= SILENCE {
                return;
            }
            // Either way all is looked at again.
            let _ = tokio::time::timeout(SILENCE - silent, changes.changed()).await;
        }
    }

    /// A piece has been received.
    pub(super) fn progressed(&self) {
        if self.starved {
            self.schedule.scheduler.link.send_modify(|urgent| urgent.progressed = Instant::now());
        }
    }

    /// More has been received than can be decoded now.
    pub(super) fn full(&mut self) {
        self.set_starved(false);
    }

    fn set_starved(&mut self, starved: bool) {
        if self.starved == starved {
            return;
        }
        self.starved = starved;
        self.schedule.scheduler.link.send_modify(|urgent| {
            if starved {
                *urgent = Urgent { starved: urgent.starved + 1, progressed: Instant::now() };
            } else {
                urgent.starved -= 1;
            }
        });
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.set_starved(false);
    }
}

/// How many first passes this process has descriptors for.
pub fn passes_at_once() -> usize {
    (descriptor_limit().saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS).clamp(1, Semaphore::MAX_PERMITS)
}

/// A pass has up to this many files and connections open: a lock, an index, two files of content, one of them twice, and
/// a stream.
const DESCRIPTORS: usize = 8;
/// What a process has open beside passes, at the least.
const OTHER_DESCRIPTORS: usize = 40;
/// Added to the nice value: nine tenths of the CPU then go to other threads.
const YIELDS: i32 = 10;
/// The lowest priority, as setpriority(2) has it.
#[cfg(test)]
const LOWEST: i32 = 19;
/// A layer that is waited for and gets nothing for this long does not need the link.
const SILENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;

    use super::*;

    fn may_take(lease: &mut Lease<'_>) -> bool {
        lease.next().now_or_never().is_some()
    }

    #[tokio::test]
    async fn a_layer_that_is_waited_for_goes_first() {
        let scheduler = PassScheduler::new();
        let (wanted, other) = (ScheduledPass::new(&scheduler), ScheduledPass::new(&scheduler));
        let (mut first, mut second) = (wanted.take(), other.take());
        assert!(may_take(&mut first) && may_take(&mut second), "no reader waits for either");
        wanted.set_urgent(true);
        assert!(may_take(&mut first));
        assert!(!may_take(&mut second), "the link is the first one's");
        first.progressed();
        assert!(!may_take(&mut second));
        first.full();
        assert!(may_take(&mut second), "the first one has more than it can use");
        assert!(may_take(&mut first));
        assert!(!may_take(&mut second));
        other.set_urgent(true);
        assert!(may_take(&mut second), "both are waited for");
        other.set_urgent(false);
        second.full();
        drop(first);
        assert!(may_take(&mut second), "the first one has ended");
    }

    #[tokio::test]
    async fn a_layer_that_gets_nothing_holds_up_no_other() {
        let scheduler = PassScheduler::new();
        let (wanted, other) = (ScheduledPass::new(&scheduler), ScheduledPass::new(&scheduler));
        wanted.set_urgent(true);
        let mut first = wanted.take();
        assert!(may_take(&mut first));
        scheduler.link.send_modify(|urgent| urgent.progressed = Instant::now().checked_sub(SILENCE).unwrap());
        assert!(may_take(&mut other.take()));
    }

    #[test]
    fn threads_of_layers_not_waited_for_yield() {
        if !can_be_raised() {
            eprintln!("skipped: this process may not raise a priority that it has lowered");
            return;
        }
        let scheduler = PassScheduler::new();
        let (wanted, other) = (ScheduledPass::new(&scheduler), ScheduledPass::new(&scheduler));
        let own = getpriority_process(None).unwrap();
        // The kernel clamps nice values, and the test itself may run under nice.
        let lowered = (own + YIELDS).min(LOWEST) - own;
        let seen = |priority: &mut ThreadPriority| {
            priority.settle();
            getpriority_process(None).unwrap() - own
        };
        let (mut first, mut second) = (wanted.priority()(), other.priority()());
        assert_eq!([seen(&mut first), seen(&mut second)], [0, 0], "no reader waits for either");
        wanted.set_urgent(true);
        assert_eq!([seen(&mut first), seen(&mut second)], [0, lowered]);
        other.set_urgent(true);
        assert_eq!(seen(&mut second), 0, "both are waited for");
        other.set_urgent(false);
        assert_eq!(seen(&mut second), lowered);
        drop(second);
        assert_eq!(getpriority_process(None).unwrap(), own, "the thread may serve another layer next");
        let mut third = other.priority()();
        assert_eq!(seen(&mut third), lowered);
        drop(wanted);
        assert_eq!(seen(&mut third), 0, "the layer that was waited for is gone");
    }
}
