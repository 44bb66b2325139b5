//! Circuit breakers: which mirrors are not asked for a while, as they have failed.
//!
//! Each request to a mirror that is away costs its reader a time limit. So after some failures in a row a mirror is not
//! asked; after a pause one request tries it again. A process has one breaker for a server, whichever mounts and layers
//! ask it.
//!
//! Bytes are found to be wrong only after they were delivered, so what a server delivers beside them does not count against
//! that: as many blobs of which it sent wrong bytes within ten minutes open its breaker, and then earlier requests do not
//! close it.
//!
//! ```text
//!             failures in a row                 pause is over
//!     Closed ------------------> Open --------------------------> Trying
//!        ^  ^                     ^  |  an earlier request succeeds  |  |
//!        |  +---------------------+--+            fails              |  |
//!        |                        +----------------------------------+  |
//!        +--------------------------- succeeds ------------------------+
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::origin::Origin;
use super::patience::{Clock, MonotonicClock};
use crate::sync::lock;

/// Failures in a row after which a server is not asked; one that took a time limit counts for all of them.
const FAILURES: u32 = 3;
/// The first pause; each further one is twice as long.
const SHORTEST: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_secs(600);
/// For how long wrong bytes are remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// After this time the outcome of a trial is not awaited: its reader may have given up.
const TRIAL: Duration = Duration::from_secs(60);

/// The breakers of a process.
#[derive(Clone, Debug)]
pub struct Circuits {
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<HashMap<Origin, Arc<Mutex<Breaker>>>>>,
}

/// The breaker of one server.
#[derive(Debug)]
pub(super) struct Circuit {
    clock: Arc<dyn Clock>,
    breaker: Arc<Mutex<Breaker>>,
}

#[derive(Debug, Default)]
struct Breaker {
    state: State,
    /// Blobs of which it has sent wrong bytes, and when it did so last.
    wrong: (u32, Duration),
}

#[derive(Clone, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration, pause: Duration, why: String },
    Trying { since: Duration, pause: Duration, why: String },
}

/// How a request has failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// At once.
    Quick,
    /// After a time limit.
    Slow,
    /// It has delivered wrong bytes of a blob.
    Wrong,
}

impl Circuits {
    /// Those of a process, or of a test.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, known: Arc::default() }
    }

    /// Those of this process.
    pub fn of_process() -> Self {
        static OWN: OnceLock<Circuits> = OnceLock::new();
        OWN.get_or_init(|| Self::new(Arc::new(MonotonicClock::default()))).clone()
    }

    /// The breaker of `server`.
    pub(super) fn of(&self, server: &Origin) -> Circuit {
        let breaker = Arc::clone(lock(&self.known).entry(server.clone()).or_default());
        Circuit { clock: Arc::clone(&self.clock), breaker }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Forgets wrong bytes of long ago.
    fn at(&mut self, now: Duration) -> &mut Self {
        if now >= self.wrong.1 + REMEMBERED {
            self.wrong.0 = 0;
        }
        self
    }
}

impl Circuit {
    /// Whether the server may be asked now. After a pause, the first caller tries it.
    pub(super) fn admits(&self) -> bool {
        let (mut breaker, now) = (lock(&self.breaker), self.clock.now());
        let state = &mut breaker.state;
        let due = match state {
            State::Closed { .. } => return true,
            State::Open { until, .. } => now >= *until,
            State::Trying { since, .. } => now >= *since + TRIAL,
        };
        if due && let State::Open { pause, why, .. } | State::Trying { pause, why, .. } = state.clone() {
            *state = State::Trying { since: now, pause, why };
        }
        due
    }

    /// The server has delivered something.
    pub(super) fn succeeded(&self) {
        let (mut breaker, now) = (lock(&self.breaker), self.clock.now());
        let breaker = breaker.at(now);
        // What it delivers may be wrong as well.
        let is_open = matches!(breaker.state, State::Open { .. });
        if !is_open || breaker.wrong.0 < FAILURES {
            breaker.state = State::default();
        }
    }

    /// A request has failed; for how long the server is not asked now, if that is new.
    pub(super) fn failed(&self, failure: Failure, why: &str) -> Option<Duration> {
        let (mut breaker, now) = (lock(&self.breaker), self.clock.now());
        let Breaker { state, wrong } = breaker.at(now);
        if failure == Failure::Wrong {
            *wrong = (wrong.0.saturating_add(1), now);
        }
        let pause = match state {
            State::Closed { failures } => {
                *failures = match failure {
                    Failure::Slow => FAILURES,
                    Failure::Quick => *failures + 1,
                    Failure::Wrong => (*failures + 1).max(wrong.0),
                };
                (*failures >= FAILURES).then_some(SHORTEST)?
            }
            State::Trying { pause, .. } => (*pause * 2).min(LONGEST),
            // Asked as there was no other.
            State::Open { .. } => return None,
        };
        *state = State::Open { until: now + pause, pause, why: why.to_owned() };
        Some(pause)
    }

    /// Why the server is not asked, and for how long.
    pub(super) fn open(&self) -> Option<(String, Duration)> {
        match &lock(&self.breaker).state {
            State::Closed { .. } => None,
            State::Open { until, why, .. } => Some((why.clone(), until.saturating_sub(self.clock.now()))),
            State::Trying { why, .. } => Some((why.clone(), Duration::ZERO)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use reqwest::Url;

    use super::super::patience::tests::FakeClock;
    use super::*;

    fn circuits() -> (Arc<FakeClock>, Circuits) {
        let clock = Arc::new(FakeClock::default());
        (clock.clone(), Circuits::new(clock))
    }

    fn origin(url: &str) -> Origin {
        Origin::of(&Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn three_failures_in_a_row_open_it_and_success_closes_it() {
        let (_, circuits) = circuits();
        let circuit = circuits.of(&origin("https://m.example"));
        let fail = || circuit.failed(Failure::Quick, "refused");
        assert_eq!((fail(), fail()), (None, None));
        circuit.succeeded();
        assert_eq!((fail(), fail()), (None, None));
        assert!(circuit.admits() && circuit.open().is_none());
        assert_eq!(fail(), Some(SHORTEST));
        assert!(!circuit.admits());
        assert_eq!(circuit.open().unwrap(), ("refused".to_owned(), SHORTEST));
        circuit.succeeded();
        assert!(circuit.admits(), "an earlier request has succeeded");
    }

    #[test]
    fn a_server_that_uses_up_a_time_limit_is_not_asked_again() {
        let (_, circuits) = circuits();
        let circuit = circuits.of(&origin("https://m.example"));
        assert_eq!(circuit.failed(Failure::Slow, "silent"), Some(SHORTEST));
        assert!(!circuit.admits());
    }

    #[test]
    fn after_a_pause_one_request_tries_it() {
        let (clock, circuits) = circuits();
        let circuit = circuits.of(&origin("https://m.example"));
        circuit.failed(Failure::Slow, "silent");
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let (_, pause) = circuit.open().unwrap();
            clock.advance(pause - Duration::from_millis(1));
            assert!(!circuit.admits());
            clock.advance(Duration::from_millis(1));
            assert!(circuit.admits() && !circuit.admits(), "one alone");
            pauses.push(circuit.failed(Failure::Quick, "refused").unwrap().as_secs());
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        clock.advance(LONGEST);
        assert!(circuit.admits());
        clock.advance(TRIAL);
        assert!(circuit.admits(), "the one before it was given up");
        circuit.succeeded();
        assert!(circuit.admits() && circuit.admits());
    }

    /// They are found to be wrong only after they were delivered.
    #[test]
    fn wrong_bytes_of_three_blobs_open_it_whatever_is_delivered() {
        let (clock, circuits) = circuits();
        let circuit = circuits.of(&origin("https://m.example"));
        let wrong = || {
            circuit.succeeded();
            circuit.failed(Failure::Wrong, "wrong")
        };
        assert_eq!((wrong(), wrong(), wrong()), (None, None, Some(SHORTEST)));
        circuit.succeeded();
        assert!(!circuit.admits(), "an earlier request");
        clock.advance(SHORTEST);
        assert!(circuit.admits());
        circuit.succeeded();
        assert!(circuit.admits() && circuit.open().is_none());
        assert_eq!(wrong(), Some(SHORTEST), "it still sends them");
        clock.advance(REMEMBERED);
        circuit.succeeded();
        assert_eq!((wrong(), wrong()), (None, None));
    }

    #[test]
    fn a_process_has_one_for_a_server() {
        let (_, circuits) = circuits();
        let [one, same, other] =
            ["https://m.example", "https://m.example:443/x", "http://m.example"].map(|url| circuits.of(&origin(url)));
        one.failed(Failure::Slow, "silent");
        assert!(!same.admits() && other.admits());
    }
}
