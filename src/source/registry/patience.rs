//! Patience: how long to wait, how often to retry, and when to give up.
//!
//! A reader waits for each of these decisions. A registry must not be able to hold it forever, for instance by an
//! endless `Retry-After`, and many readers must not retry at the same instant. Time comes from a [`Clock`], which never
//! jumps and which tests replace.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::digest::Digest;
use crate::source::outage::{Failing, OnOutage, Outages, SHORTEST_SILENCE, SilenceTimer};
use crate::source::{BoxFuture, Outage};

/// A monotonic clock, and a way to wait.
pub trait Clock: Debug + Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;

    /// As [`Clock::now`], including the time in which the machine was suspended; for things that expire.
    fn since_boot(&self) -> Duration {
        self.now()
    }

    /// Returns when `time` has passed.
    fn pause(&self, time: Duration) -> BoxFuture<'_, ()>;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn since_boot(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Time since boot is never negative.
        Duration::try_from(now).unwrap_or_default()
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// Time limits of a source.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// To establish a connection.
    pub connect: Duration,
    /// From a request to its response, including the first bytes of the body; then it is late, and still awaited for up
    /// to [`Deadlines::patience`].
    pub header: Duration,
    /// Without [`Deadlines::least_progress`] bytes in this time, a body counts as truncated.
    pub stall: Duration,
    /// Minimum of a body in each [`Deadlines::stall`], in bytes.
    pub least_progress: u64,
    /// Limit for an obeyed `Retry-After` while the source retries without limit.
    pub retry_after: Duration,
    /// For one request with all its retries, and for a late response.
    pub patience: Duration,
    /// From a request to a mirror to its response; then the next server is asked as well, and the first response counts.
    /// Also the limit for establishing a connection to it, and the time over which its throughput is measured.
    pub mirror: Duration,
    /// For a credential helper.
    pub helper: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            header: Duration::from_secs(10),
            stall: Duration::from_secs(20),
            least_progress: 20 << 10,
            retry_after: Duration::from_secs(10),
            patience: Duration::from_secs(60),
            mirror: Duration::from_secs(3),
            helper: Duration::from_secs(10),
        }
    }
}

impl Deadlines {
    /// Adjusts the limits to a reader's `policy`.
    #[must_use]
    pub fn waiting_as(self, policy: OnOutage) -> Self {
        let patience = match policy {
            OnOutage::Block => FOREVER,
            OnOutage::Deadline(patience) => patience.max(SHORTEST_SILENCE),
            OnOutage::Offline => self.late(),
        };
        Self { patience, ..self }
    }

    /// The time after which a response is late.
    pub(super) fn late(&self) -> Duration {
        self.connect + self.header
    }
}

/// Tries of one request, including the first.
const MAX_TRIES: u32 = 6;
/// Tries of a request that exceeds a rate limit, if the server gives no time to retry.
const MAX_TRIES_TOO_MANY: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Limit for a pause that a server asks for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// Practically forever.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The tries of one request.
pub(super) struct Tries {
    clock: Arc<dyn Clock>,
    cap: Duration,
    patience: Duration,
    end: Duration,
    failed: u32,
    /// Whether a server that is away is asked for as long as the time limit allows, however often that is.
    pub(super) by_time: bool,
    /// The queue place of the current try.
    pub(super) place: Option<OwnedSemaphorePermit>,
    failing: Option<Failing>,
    /// Measures the silence; `None` if no reader waits.
    pub(super) timer: Option<SilenceTimer>,
    /// Whether others are asked when this one fails.
    pub(super) turn: Turn,
    /// Why the last one was left, and the time that it asked to wait, where others are asked.
    pub(super) left: Option<(Outage, Option<Duration>)>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    /// The registry, which has no mirrors: a request is repeated until there is an answer.
    Alone,
    /// A mirror: others are asked instead of waiting for it.
    Mirror,
    /// The registry, after its mirrors: they are asked again before it is.
    Last,
}

/// What is tried, for status output.
pub(super) struct Subject<'a> {
    pub(super) what: &'a str,
    pub(super) blob: Option<&'a Digest>,
    /// Why it failed.
    pub(super) trouble: Outage,
}

impl Tries {
    /// Starts the first try now.
    pub(super) fn new(clock: Arc<dyn Clock>, deadlines: &Deadlines) -> Self {
        let (patience, cap) = (deadlines.patience, deadlines.retry_after);
        let end = clock.now().saturating_add(patience);
        let (turn, left) = (Turn::Alone, None);
        Self {
            clock,
            cap,
            patience,
            end,
            failed: 0,
            by_time: false,
            place: None,
            failing: None,
            timer: None,
            turn,
            left,
        }
    }

    /// The same with at most this `patience`.
    #[must_use]
    pub(super) fn within(self, patience: Duration) -> Self {
        let patience = patience.min(self.patience);
        Self { patience, end: self.end.min(self.clock.now().saturating_add(patience)), ..self }
    }

    /// Those of a request that is made at the same time, of the next server.
    pub(super) fn beside(&self) -> Self {
        let Self { clock, cap, patience, end, by_time, .. } = self;
        let (clock, failed, turn) = (Arc::clone(clock), 0, Turn::Alone);
        let (cap, patience, end, by_time) = (*cap, *patience, *end, *by_time);
        Self { clock, cap, patience, end, failed, by_time, place: None, failing: None, timer: None, turn, left: None }
    }

    /// How often it was tried, as messages end.
    pub(super) fn told(&self) -> String {
        match self.failed {
            // Others were asked instead.
            0 => String::new(),
            1 => " (tried 1 time)".to_owned(),
            times => format!(" (tried {times} times)"),
        }
    }

    /// How long the source may still be silent; forever while it retries without limit.
    pub(super) fn left(&self) -> Duration {
        match &self.timer {
            Some(timer) => self.patience.saturating_sub(timer.silent_for()),
            None => self.end.saturating_sub(self.clock.now()),
        }
    }

    /// The initial limit for silence.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Records a late response that is still awaited, and frees the place in the queue.
    pub(super) fn late(&mut self, outages: &Outages, subject: &Subject<'_>, why: &str) {
        self.note(outages, subject, why);
        self.place = None;
    }

    /// A late response has arrived.
    pub(super) fn came(&mut self) {
        if self.failed == 0 {
            self.failing = None;
        }
    }

    /// Restarts the count; a failure stays recorded until [`Tries::went_well`].
    pub(super) fn renewed(&mut self, deadlines: &Deadlines) {
        let fresh = Self { by_time: self.by_time, ..Self::new(self.clock.clone(), deadlines) };
        let Self { place, failing, timer, .. } = std::mem::replace(self, fresh);
        (self.place, self.failing, self.timer) = (place, failing, timer);
    }

    /// A try has succeeded; returns whether earlier ones had failed.
    pub(super) fn went_well(&mut self) -> bool {
        self.failing.take().is_some()
    }

    /// Returns when the request should be repeated; see [`SilenceTimer::should_retry`].
    pub(super) async fn should_retry(&mut self) -> Duration {
        match &mut self.timer {
            Some(timer) => timer.should_retry().await,
            None => std::future::pending().await,
        }
    }

    /// How many tries have failed.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    /// As [`Tries::again`], recording the failure for status; retries without limit if the source does.
    pub(super) async fn again_within(
        &mut self,
        outages: &Outages,
        subject: &Subject<'_>,
        asked: Option<Duration>,
        fault: &str,
    ) -> bool {
        if self.turn != Turn::Alone {
            self.left = Some((subject.trouble, asked));
            return false;
        }
        self.note(outages, subject, fault);
        // A pausing request needs no place.
        self.place = None;
        if !outages.retries_without_limit() {
            return self.again_after(subject.trouble, asked).await;
        }
        self.failed = self.failed.saturating_add(1);
        match asked {
            Some(asked) => self.clock.pause(asked.min(self.cap).max(pause_after(self.failed, jitter()))).await,
            None => outages.pause(pause_after(self.failed, jitter())).await,
        }
        true
    }

    fn note(&mut self, outages: &Outages, subject: &Subject<'_>, why: &str) {
        let failing = outages.failed(self.failing.take(), subject.what, subject.blob, why);
        if let Some(timer) = &self.timer {
            failing.was_silent(timer, subject.trouble == Outage::Silent);
        }
        self.failing = Some(failing);
    }

    /// Waits before the next try; `false` if there is none.
    pub(super) async fn again(&mut self) -> bool {
        self.again_after(Outage::Away, None).await
    }

    /// As [`Tries::again`], by the kind of failure and the time the server `asked` for. If that exceeds the time limit,
    /// gives up: an earlier request is no use.
    pub(super) async fn again_after(&mut self, trouble: Outage, asked: Option<Duration>) -> bool {
        self.failed = self.failed.saturating_add(1);
        let asked = asked.filter(|asked| !asked.is_zero()).map(|asked| asked.min(LONGEST_ASKED));
        let pause = match (trouble, asked) {
            (_, Some(asked)) => asked.max(pause_after(self.failed, jitter())),
            (Outage::TooMany, None) => pause_after_too_many(self.failed, jitter()),
            (_, None) => pause_after(self.failed, jitter()),
        };
        let in_time = self.clock.now().saturating_add(pause) <= self.end;
        let more = match trouble {
            // Silence takes long, so it is limited by time and not by count.
            Outage::Silent => pause < self.left(),
            Outage::TooMany if asked.is_none() => in_time && self.failed < MAX_TRIES_TOO_MANY,
            Outage::Away if self.by_time => in_time,
            _ => in_time && self.failed < MAX_TRIES,
        };
        if !more {
            return false;
        }
        self.clock.pause(pause).await;
        true
    }
}

/// The pause after `failed` rate-limited tries: 1 s, then 4 s.
fn pause_after_too_many(failed: u32, jitter: f64) -> Duration {
    let spaced = Duration::from_secs(1).saturating_mul(1 << (2 * failed.saturating_sub(1)).min(16));
    spaced.min(LONGEST_PAUSE).mul_f64(1.0 - jitter / 2.0)
}

/// The pause after `failed` tries: doubles, shortened by up to half (`jitter` from 0 to 1).
fn pause_after(failed: u32, jitter: f64) -> Duration {
    let doubled = SHORTEST_PAUSE.saturating_mul(1 << failed.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 - jitter / 2.0)
}

/// A number from 0 to 1 that differs between readers; not random enough for other uses.
fn jitter() -> f64 {
    f64::from((RandomState::new().hash_one(0) >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A clock that advances only when a task waits, and then at once.
    #[derive(Debug, Default)]
    pub(in crate::source::registry) struct FakeClock {
        pauses: Mutex<Vec<Duration>>,
        extra: Mutex<Duration>,
        suspended: Mutex<Duration>,
    }

    impl FakeClock {
        pub(in crate::source::registry) fn pauses(&self) -> Vec<Duration> {
            self.pauses.lock().unwrap().clone()
        }

        pub(in crate::source::registry) fn advance(&self, time: Duration) {
            *self.extra.lock().unwrap() += time;
        }

        pub(in crate::source::registry) fn suspend(&self, time: Duration) {
            *self.suspended.lock().unwrap() += time;
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Duration {
            self.pauses.lock().unwrap().iter().sum::<Duration>() + *self.extra.lock().unwrap()
        }

        fn since_boot(&self) -> Duration {
            self.now() + *self.suspended.lock().unwrap()
        }

        fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
            self.pauses.lock().unwrap().push(time);
            Box::pin(std::future::ready(()))
        }
    }

    #[test]
    fn pauses_double_up_to_five_seconds() {
        let steps: Vec<u128> = (1..=10).map(|failed| pause_after(failed, 0.0).as_millis()).collect();
        assert_eq!(steps, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(pause_after(1, 1.0).as_millis(), 25);
        assert_eq!(pause_after(u32::MAX, 0.0).as_millis(), 5000);
        assert!((0..100).all(|_| (0.0..=1.0).contains(&jitter())));
    }

    /// The pauses of a request that always fails in this way.
    async fn pauses(patience: u64, trouble: Outage, asked: Option<u64>) -> Vec<Duration> {
        let clock = Arc::new(FakeClock::default());
        let deadlines = Deadlines { patience: Duration::from_secs(patience), ..Deadlines::default() };
        let mut tries = Tries::new(clock.clone(), &deadlines);
        while tries.again_after(trouble, asked.map(Duration::from_secs)).await {}
        clock.pauses()
    }

    #[tokio::test]
    async fn a_server_that_asks_to_wait_is_obeyed_or_left_alone() {
        let seconds = Duration::from_secs;
        for trouble in [Outage::TooMany, Outage::Unwell] {
            assert_eq!(pauses(60, trouble, Some(1 << 40)).await, [], "{trouble:?}");
            assert_eq!(pauses(60, trouble, Some(61)).await, []);
            assert_eq!(pauses(60, trouble, Some(40)).await, [seconds(40)]);
            assert_eq!(pauses(25, trouble, Some(10)).await, [seconds(10); 2]);
            assert_eq!(pauses(600, trouble, Some(7)).await, [seconds(7); 5]);
        }
    }

    #[tokio::test]
    async fn too_many_requests_are_followed_by_few_and_spaced_ones() {
        for asked in [None, Some(0)] {
            let pauses = pauses(60, Outage::TooMany, asked).await;
            assert_eq!(pauses.len(), 2, "{pauses:?}");
            let millis = |least, most| Duration::from_millis(least)..=Duration::from_millis(most);
            assert!(millis(500, 1000).contains(&pauses[0]) && millis(2000, 4000).contains(&pauses[1]), "{pauses:?}");
        }
        assert_eq!(pauses(60, Outage::Unwell, None).await.len(), 5);
    }

    #[test]
    fn a_source_is_as_patient_as_its_readers() {
        let patience = |policy| Deadlines::default().waiting_as(policy).patience.as_secs();
        assert_eq!(patience(OnOutage::default()), 60);
        assert_eq!(patience(OnOutage::Deadline(Duration::from_secs(300))), 300);
        assert_eq!(patience(OnOutage::Deadline(Duration::ZERO)), 3);
        assert_eq!(patience(OnOutage::Offline), 15);
        assert!(patience(OnOutage::Block) > 1 << 31);
    }
}
