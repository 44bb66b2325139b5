//! Circuit breakers: which mirrors are not asked for a while, as they have failed.
//!
//! Each request to a mirror that is away costs its reader a time limit. So after some failures in a row a mirror is not
//! asked; after a pause one request tries it again. A process has one breaker for a server, whichever mounts and layers
//! ask it. What took a time limit is also noted for other processes, so that not every command pays for it.
//!
//! Bytes are found to be wrong only after they were delivered, so what a server delivers beside them does not count against
//! that: as many blobs of which it sent wrong bytes within ten minutes open its breaker, and then earlier requests do not
//! close it. Neither do they where another server was far faster (see `rival`), as a slow one delivers, too.
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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::origin::Origin;
use super::patience::{Clock, MonotonicClock};
use crate::sync::lock;

/// Failures in a row after which a server is not asked; one that took a time limit counts for all of them.
const FAILURES: u32 = 3;
/// The first pause; each further one is twice as long.
const SHORTEST: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_secs(600);
/// For how long wrong bytes are remembered, and that it was too slow.
const REMEMBERED: Duration = Duration::from_secs(600);
/// After a server was compared with another, the time until it is compared again; each further one is twice as long.
const COMPARED: Duration = Duration::from_secs(60);
/// For how long a process that starts does not ask a server that another one has found slow.
const NOTED: Duration = Duration::from_secs(60);
/// After this time the outcome of a trial is not awaited: its reader may have given up.
const TRIAL: Duration = Duration::from_secs(60);

/// The breakers of a process.
#[derive(Clone, Debug)]
pub struct Circuits {
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<HashMap<Origin, Arc<Mutex<Breaker>>>>>,
    notes: Option<Arc<dyn Notes>>,
}

/// Where processes find notes of each other. They are not trusted, and none is needed.
pub trait Notes: std::fmt::Debug + Send + Sync {
    /// The note of a server.
    fn read(&self, server: &str) -> Option<Vec<u8>>;

    /// Replaces it, or removes it.
    fn write(&self, server: &str, note: Option<&[u8]>);
}

/// A note: a server takes up a time limit.
#[derive(Debug, Deserialize, Serialize)]
struct Note {
    /// Until when it is not asked, in seconds of Unix time.
    until: u64,
    /// For how long it was not, in seconds.
    pause: u64,
    why: String,
}

/// The breaker of one server.
#[derive(Debug)]
pub(super) struct Circuit {
    clock: Arc<dyn Clock>,
    breaker: Arc<Mutex<Breaker>>,
    /// By the name of the server.
    notes: Option<(Arc<dyn Notes>, String)>,
}

#[derive(Debug, Default)]
struct Breaker {
    state: State,
    /// Blobs of which it has sent wrong bytes, and when it did so last.
    wrong: (u32, Duration),
    /// The pause that followed when it was too slow, and when that was.
    slow: Option<(Duration, Duration)>,
    /// When it may be compared again, and the time after that one.
    comparison: (Duration, Duration),
}

#[derive(Clone, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    /// `holds` whatever earlier requests deliver.
    Open {
        until: Duration,
        pause: Duration,
        why: String,
        holds: bool,
    },
    Trying {
        since: Duration,
        pause: Duration,
        why: String,
    },
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
    /// Another server was far faster.
    Outrun,
}

impl Circuits {
    /// Those of a process, or of a test.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, known: Arc::default(), notes: None }
    }

    /// The same, with notes of other processes and for them.
    #[must_use]
    pub fn noted(self, notes: Arc<dyn Notes>) -> Self {
        Self { notes: Some(notes), ..self }
    }

    /// Those of this process.
    pub fn of_process() -> Self {
        static OWN: OnceLock<Circuits> = OnceLock::new();
        OWN.get_or_init(|| Self::new(Arc::new(MonotonicClock::default()))).clone()
    }

    /// The breaker of `server`.
    pub(super) fn of(&self, server: &Origin) -> Circuit {
        let notes = self.notes.clone().map(|notes| {
            let scheme = if server.is_tls() { "https" } else { "http" };
            (notes, format!("{scheme}://{}", server.host_and_port()))
        });
        let noted = || {
            let text = notes.as_ref().and_then(|(notes, name)| notes.read(name));
            let note = text.and_then(|text| serde_json::from_slice(&text).ok());
            Arc::new(Mutex::new(note.map_or_else(Breaker::default, |note| Breaker::noted(note, self.clock.now()))))
        };
        let breaker = Arc::clone(lock(&self.known).entry(server.clone()).or_insert_with(noted));
        Circuit { clock: Arc::clone(&self.clock), breaker, notes }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// As another process has left it.
    fn noted(Note { until, pause, why }: Note, now: Duration) -> Self {
        let (wall, pause) = (unix_time(), Duration::from_secs(pause).clamp(SHORTEST, LONGEST));
        let left = Duration::from_secs(until.saturating_sub(wall)).min(pause).min(NOTED);
        let since = Duration::from_secs(wall.saturating_sub(until));
        if left.is_zero() {
            let slow = (since < REMEMBERED).then(|| (pause, now.saturating_sub(since)));
            return Self { slow, ..Self::default() };
        }
        let why = super::http::shown(&why);
        let state = State::Open { until: now + left, pause, why, holds: true };
        Self { state, slow: Some((pause, now)), ..Self::default() }
    }

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
        // What it delivers may be wrong as well, or come slowly.
        if matches!(breaker.state, State::Open { holds: true, .. }) {
            return;
        }
        let before = std::mem::take(&mut breaker.state);
        if let (State::Open { .. } | State::Trying { .. }, Some((notes, name))) = (before, &self.notes) {
            notes.write(name, None);
        }
    }

    /// Whether the server may be compared with another now; then it is not for a while, unless it fails.
    pub(super) fn may_be_compared(&self) -> bool {
        let (mut breaker, now) = (lock(&self.breaker), self.clock.now());
        let (from, pause) = breaker.comparison;
        let may = now >= from;
        if may {
            let pause = pause.max(COMPARED);
            breaker.comparison = (now + pause, (pause * 2).min(LONGEST));
        }
        may
    }

    /// A request has failed; for how long the server is not asked now, if that is new.
    pub(super) fn failed(&self, failure: Failure, why: &str) -> Option<Duration> {
        let (mut breaker, now) = (lock(&self.breaker), self.clock.now());
        let Breaker { state, wrong, slow, comparison } = breaker.at(now);
        if failure == Failure::Wrong {
            *wrong = (wrong.0.saturating_add(1), now);
        }
        let pause = match state {
            State::Closed { failures } => {
                *failures = match failure {
                    Failure::Slow | Failure::Outrun => FAILURES,
                    Failure::Quick => *failures + 1,
                    Failure::Wrong => (*failures + 1).max(wrong.0),
                };
                let again = slow.filter(|(_, since)| failure == Failure::Outrun && now < *since + REMEMBERED);
                let pause = again.map_or(SHORTEST, |(pause, _)| (pause * 2).min(LONGEST));
                (*failures >= FAILURES).then_some(pause)?
            }
            State::Trying { pause, .. } => (*pause * 2).min(LONGEST),
            // Asked as there was no other.
            State::Open { .. } => return None,
        };
        if failure == Failure::Outrun {
            (*slow, *comparison) = (Some((pause, now)), Default::default());
        }
        let holds = failure == Failure::Outrun || wrong.0 >= FAILURES;
        *state = State::Open { until: now + pause, pause, why: why.to_owned(), holds };
        if let (Failure::Slow | Failure::Outrun, Some((notes, name))) = (failure, &self.notes) {
            let note = Note { until: unix_time() + pause.as_secs(), pause: pause.as_secs(), why: why.to_owned() };
            notes.write(name, Some(&serde_json::to_vec(&note).expect("numbers and text")));
        }
        Some(pause)
    }

    /// Whether the server is not asked, and was not tried again yet.
    pub(super) fn is_open(&self) -> bool {
        matches!(lock(&self.breaker).state, State::Open { .. })
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

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
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
    fn what_a_slow_server_delivers_does_not_close_it() {
        let (clock, circuits) = circuits();
        let circuit = circuits.of(&origin("https://m.example"));
        let mut pauses = Vec::new();
        for _ in 0..3 {
            pauses.push(circuit.failed(Failure::Outrun, "slow").unwrap().as_secs());
            circuit.succeeded();
            assert!(!circuit.admits(), "an earlier request");
            clock.advance(circuit.open().unwrap().1);
            assert!(circuit.admits());
            // It is small.
            circuit.succeeded();
            assert!(circuit.admits() && circuit.open().is_none());
        }
        assert_eq!(pauses, [15, 30, 60]);
        clock.advance(REMEMBERED);
        assert_eq!(circuit.failed(Failure::Outrun, "slow"), Some(SHORTEST));
    }

    #[test]
    fn a_server_is_compared_less_and_less_often() {
        let (clock, circuits) = circuits();
        let circuit = circuits.of(&origin("https://m.example"));
        for seconds in [60, 120, 240, 480, 600, 600] {
            assert!(circuit.may_be_compared() && !circuit.may_be_compared());
            clock.advance(Duration::from_secs(seconds - 1));
            assert!(!circuit.may_be_compared());
            clock.advance(Duration::from_secs(1));
        }
        circuit.failed(Failure::Outrun, "slow");
        assert!(circuit.may_be_compared(), "when it is tried again");
    }

    #[derive(Debug, Default)]
    struct InMemory(Mutex<HashMap<String, Vec<u8>>>);

    impl Notes for InMemory {
        fn read(&self, server: &str) -> Option<Vec<u8>> {
            lock(&self.0).get(server).cloned()
        }

        fn write(&self, server: &str, note: Option<&[u8]>) {
            match note {
                Some(note) => drop(lock(&self.0).insert(server.to_owned(), note.to_vec())),
                None => drop(lock(&self.0).remove(server)),
            }
        }
    }

    #[test]
    fn another_process_does_not_ask_a_slow_server_either() {
        let (notes, server) = (Arc::new(InMemory::default()), origin("https://m.example"));
        let process = || {
            let (clock, circuits) = circuits();
            (clock, circuits.noted(notes.clone()).of(&server))
        };
        let (clock, first) = process();
        for _ in 0..3 {
            first.failed(Failure::Quick, "refused");
        }
        assert!(process().1.admits(), "what fails at once costs nothing");
        clock.advance(SHORTEST);
        assert!(first.admits());
        first.failed(Failure::Outrun, "slow");
        let (_, second) = process();
        assert!(!second.admits());
        let (why, left) = second.open().unwrap();
        assert!(why == "slow" && left <= 2 * SHORTEST, "{left:?}");
        clock.advance(2 * SHORTEST);
        assert!(first.admits());
        first.succeeded();
        assert!(process().1.admits());
    }

    #[test]
    fn notes_are_not_trusted() {
        let notes = Arc::new(InMemory::default());
        for text in ["", "{}", r#"{"until":18446744073709551615,"pause":18446744073709551615,"why":"x\u001b"}"#] {
            notes.write("https://m.example:443", Some(text.as_bytes()));
            let (clock, circuits) = circuits();
            let circuit = circuits.noted(notes.clone()).of(&origin("https://m.example"));
            if let Some((why, left)) = circuit.open() {
                assert!(!why.contains('\u{1b}') && left <= NOTED, "{why} {left:?}");
            }
            clock.advance(NOTED);
            assert!(circuit.admits(), "{text}");
        }
        let long_ago = format!(r#"{{"until":{},"pause":30,"why":""}}"#, unix_time() - 100);
        notes.write("https://m.example:443", Some(long_ago.as_bytes()));
        let (_, circuits) = circuits();
        let circuit = circuits.noted(notes).of(&origin("https://m.example"));
        assert!(circuit.admits());
        assert_eq!(circuit.failed(Failure::Outrun, "slow"), Some(4 * SHORTEST), "again, and not for the first time");
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
