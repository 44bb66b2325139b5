//! Patience: how long to wait, how often to try again, and when to give up.
//!
//! A reader hangs on every one of these decisions. A registry must not be able to hold it for as
//! long as it likes, by an endless `Retry-After` for instance, and many readers must not come back
//! in the same instant. Time is taken from a [`Clock`], which never jumps and which tests replace.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::digest::Digest;
use crate::source::BoxFuture;
use crate::source::outage::{Failing, Listening, Outages};

/// Time that only moves forward, and a way to let it pass.
pub trait Clock: Debug + Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;

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

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// The limits of patience.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// Until a connection stands.
    pub connect: Duration,
    /// From the request to the response's header.
    pub header: Duration,
    /// In a body: this long without [`Deadlines::least_progress`] bytes, and the body counts as cut.
    pub stall: Duration,
    /// The least a body must bring in each [`Deadlines::stall`], in bytes.
    pub least_progress: u64,
    /// The longest `Retry-After` that is obeyed.
    pub retry_after: Duration,
    /// For one request with all its retries.
    pub patience: Duration,
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
            helper: Duration::from_secs(10),
        }
    }
}

/// Tries of one request, the first included.
const MAX_TRIES: u32 = 6;
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The tries of one request.
pub(super) struct Tries {
    clock: Arc<dyn Clock>,
    cap: Duration,
    end: Duration,
    failed: u32,
    /// The place in a queue that the present try takes.
    pub(super) place: Option<OwnedSemaphorePermit>,
    failing: Option<Failing>,
    /// For how long it has brought nothing; none where no reader waits by it.
    pub(super) listening: Option<Listening>,
}

/// What is tried, for those who ask what is being waited for.
pub(super) struct Subject<'a> {
    pub(super) what: &'a str,
    pub(super) blob: Option<&'a Digest>,
    /// Whether it failed as nothing came.
    pub(super) silent: bool,
}

impl Tries {
    /// The first try starts now.
    pub(super) fn new(clock: Arc<dyn Clock>, deadlines: &Deadlines) -> Self {
        let end = clock.now() + deadlines.patience;
        Self { clock, cap: deadlines.retry_after, end, failed: 0, place: None, failing: None, listening: None }
    }

    /// Starts counting anew; what is in trouble stays so until [`Tries::went_well`].
    pub(super) fn renewed(&mut self, deadlines: &Deadlines) {
        let fresh = Self::new(self.clock.clone(), deadlines);
        let Self { place, failing, listening, .. } = std::mem::replace(self, fresh);
        (self.place, self.failing, self.listening) = (place, failing, listening);
    }

    /// A try has brought something; says whether those before it had failed.
    pub(super) fn went_well(&mut self) -> bool {
        self.failing.take().is_some()
    }

    /// Returns when what is waited for should rather be asked for again; see [`Listening::worth_another_try`].
    pub(super) async fn worth_another(&mut self) -> Duration {
        match &mut self.listening {
            Some(listening) => listening.worth_another_try().await,
            None => std::future::pending().await,
        }
    }

    /// How many tries have failed.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    /// As [`Tries::again`], telling what is waited for; where outages are outlasted, never gives up.
    pub(super) async fn again_within(
        &mut self,
        outages: &Outages,
        subject: &Subject<'_>,
        asked: Option<Duration>,
        fault: &str,
    ) -> bool {
        let failing = outages.failed(self.failing.take(), subject.what, subject.blob, fault);
        if let Some(listening) = &self.listening {
            failing.brought_nothing(listening, subject.silent);
        }
        self.failing = Some(failing);
        // Whoever pauses needs no place.
        self.place = None;
        if !outages.are_outlasted() {
            return self.again(asked).await;
        }
        self.failed = self.failed.saturating_add(1);
        match asked {
            Some(asked) => self.clock.pause(asked.min(self.cap).max(pause_after(self.failed, jitter()))).await,
            None => outages.pause(pause_after(self.failed, jitter())).await,
        }
        true
    }

    /// Waits before the next try, as long as the server `asked` for within bounds; `false` if there
    /// is to be none.
    pub(super) async fn again(&mut self, asked: Option<Duration>) -> bool {
        self.failed += 1;
        let pause = pause_after(self.failed, jitter()).max(asked.unwrap_or_default().min(self.cap));
        if self.failed >= MAX_TRIES || self.clock.now() + pause > self.end {
            return false;
        }
        self.clock.pause(pause).await;
        true
    }
}

/// The pause after `failed` tries: doubling, and shortened by up to a half (`jitter` of 0 to 1).
fn pause_after(failed: u32, jitter: f64) -> Duration {
    let doubled = SHORTEST_PAUSE.saturating_mul(1 << failed.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 - jitter / 2.0)
}

/// A number from 0 to 1 that differs from reader to reader; not random enough for more than that.
fn jitter() -> f64 {
    f64::from((RandomState::new().hash_one(0) >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A clock that only moves when somebody waits, and then at once.
    #[derive(Debug, Default)]
    pub(in crate::source::registry) struct FakeClock {
        pauses: Mutex<Vec<Duration>>,
        extra: Mutex<Duration>,
    }

    impl FakeClock {
        pub(in crate::source::registry) fn pauses(&self) -> Vec<Duration> {
            self.pauses.lock().unwrap().clone()
        }

        pub(in crate::source::registry) fn advance(&self, time: Duration) {
            *self.extra.lock().unwrap() += time;
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Duration {
            self.pauses.lock().unwrap().iter().sum::<Duration>() + *self.extra.lock().unwrap()
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

    #[tokio::test]
    async fn an_endless_retry_after_is_cut_to_the_cap() {
        let clock = Arc::new(FakeClock::default());
        let mut tries = Tries::new(clock.clone(), &Deadlines::default());
        while tries.again(Some(Duration::from_secs(1 << 40))).await {}
        assert_eq!(clock.pauses(), [Duration::from_secs(10); 5]);
    }

    #[tokio::test]
    async fn no_pause_goes_beyond_the_deadline() {
        let clock = Arc::new(FakeClock::default());
        let mut tries =
            Tries::new(clock.clone(), &Deadlines { patience: Duration::from_secs(25), ..Default::default() });
        while tries.again(Some(Duration::from_secs(10))).await {}
        assert_eq!(clock.pauses().len(), 2);
    }
}
