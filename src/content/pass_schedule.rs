//! Scheduling of first passes: which layer gets the link and the CPUs first.
//!
//! First passes share one link and a few CPUs; layers that a reader waits for go first. While such a layer could decode
//! more than it receives, the other passes stop reading their streams, and TCP flow control leaves the link to it. A
//! pass that cannot keep up with the link, or has received nothing for half a second, does not hold up the others.
//! While a layer is urgent, the threads of other passes run at a nice value ten higher, if the process may lower it again
//! (root, or RLIMIT_NICE).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::store::descriptor_limit;

/// The first passes of a process, which share a link and the CPUs.
#[derive(Debug)]
pub struct PassScheduler {
    link: watch::Sender<Urgent>,
    /// The number of urgent layers.
    urgent: AtomicUsize,
    /// Limits concurrent passes by the number of file descriptors.
    places: Semaphore,
}

/// The first pass over one layer.
#[derive(Debug)]
pub struct ScheduledPass {
    scheduler: Arc<PassScheduler>,
    urgent: Arc<AtomicBool>,
}

/// The priority of one thread of a pass; restored on drop.
pub(super) struct ThreadPriority {
    scheduler: Arc<PassScheduler>,
    urgent: Arc<AtomicBool>,
    /// The thread's original nice value, and its current one.
    own: i32,
    now: i32,
}

/// The link's state as seen by urgent passes.
#[derive(Clone, Copy, Debug)]
struct Urgent {
    /// The number of urgent passes that could decode more than they receive.
    starved: usize,
    /// When an urgent pass last received bytes, or began.
    progressed: Instant,
}

/// The right to read a layer's stream, piece by piece.
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
    /// A pass over a layer that no reader waits for yet.
    pub fn new(scheduler: &Arc<PassScheduler>) -> Self {
        Self { scheduler: Arc::clone(scheduler), urgent: Arc::default() }
    }

    /// Sets whether a reader waits for this layer.
    pub fn set_urgent(&self, urgent: bool) {
        if self.urgent.swap(urgent, Ordering::Relaxed) != urgent {
            if urgent {
                self.scheduler.urgent.fetch_add(1, Ordering::Relaxed);
            } else {
                self.scheduler.urgent.fetch_sub(1, Ordering::Relaxed);
            }
            // Wakes this pass if it waits in `Lease::next`.
            self.scheduler.link.send_modify(|_| {});
        }
    }

    /// Whether a reader waits for this layer.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// Waits until there are file descriptors for one more pass.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.scheduler.places.acquire().await.ok()
    }

    /// Waits for one of `turns`, or until a reader waits for this layer.
    pub(super) async fn turn<'a>(&self, turns: Option<&'a Semaphore>) -> Option<SemaphorePermit<'a>> {
        let turns = turns?;
        // Tells of layers that become urgent, too.
        let mut changes = self.scheduler.link.subscribe();
        let mut turn = std::pin::pin!(turns.acquire());
        while !self.is_urgent() {
            tokio::select! {
                biased;
                turn = &mut turn => return turn.ok(),
                _ = changes.changed() => {}
            }
        }
        // It counts as one of those that run, if there is room.
        turn.now_or_never()?.ok()
    }

    pub(super) fn take(&self) -> Lease<'_> {
        Lease { schedule: self, starved: false }
    }

    /// A function that captures the nice value of the calling thread, which works for this layer; the thread calls
    /// [`ThreadPriority::settle`] regularly.
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
    /// Lowers the priority while this layer is not urgent and another one is.
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

/// Whether a thread may raise its priority again after lowering it: needs root or RLIMIT_NICE (setpriority(2)).
fn can_be_raised() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        // In a separate thread, as it may be left with the lower priority.
        let tried = std::thread::Builder::new().spawn(|| {
            let own = getpriority_process(None)?;
            setpriority_process(None, own + 1)?;
            setpriority_process(None, own)
        });
        tried.is_ok_and(|thread| matches!(thread.join(), Ok(Ok(()))))
    })
}

impl Lease<'_> {
    /// Returns when this pass may read its next piece.
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
            // Re-evaluate after a timeout as well as after a change.
            let _ = tokio::time::timeout(SILENCE - silent, changes.changed()).await;
        }
    }

    /// A piece has been received.
    pub(super) fn progressed(&self) {
        if self.starved {
            self.schedule.scheduler.link.send_modify(|urgent| urgent.progressed = Instant::now());
        }
    }

    /// The decoder is the bottleneck: more has been received than it can take.
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

/// The number of first passes for which this process has file descriptors.
pub fn passes_at_once() -> usize {
    (descriptor_limit().saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS).clamp(1, Semaphore::MAX_PERMITS)
}

/// Descriptors that one pass may hold: a lock, an index, two content files, one of them twice, and a stream.
const DESCRIPTORS: usize = 8;
/// Descriptors that a process has open besides those of passes, at least.
const OTHER_DESCRIPTORS: usize = 40;
/// Added to the nice value: other threads then get nine tenths of the CPU.
const YIELDS: i32 = 10;
/// The lowest priority (setpriority(2)).
#[cfg(test)]
const LOWEST: i32 = 19;
/// An urgent pass that receives nothing for this long does not need the link.
const SILENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn may_take(lease: &mut Lease<'_>) -> bool {
        lease.next().now_or_never().is_some()
    }

    #[tokio::test]
    async fn a_layer_that_is_waited_for_needs_no_turn() {
        let scheduler = PassScheduler::new();
        let (wanted, other, turns) =
            (ScheduledPass::new(&scheduler), ScheduledPass::new(&scheduler), Semaphore::new(1));
        let first = other.turn(Some(&turns)).await;
        assert!(first.is_some() && other.turn(None).await.is_none());
        let mut waiting = Box::pin(wanted.turn(Some(&turns)));
        assert!(waiting.as_mut().now_or_never().is_none(), "another pass has the only turn");
        wanted.set_urgent(true);
        assert!(waiting.now_or_never().is_some_and(|turn| turn.is_none()));
        drop(first);
        let counted = wanted.turn(Some(&turns)).await;
        assert!(counted.is_some() && other.turn(Some(&turns)).now_or_never().is_none(), "it counts as one that runs");
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
