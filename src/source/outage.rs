//! Outages: what a source keeps trying to get at present, and how long readers wait for it.
//!
//! What is tried and who waits are different things. A layer's first pass goes on through an outage and
//! takes up its download where it was cut, however long that takes; a reader who needs the layer waits as
//! long as the user has said. So trying does not end with a reader's patience, and a mount is well again as
//! soon as its registry is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::registry::Clock;
use super::silence::{self, Silences};
use super::{Outage, SourceError, blob_name};
use crate::digest::Digest;
use crate::sync::lock;

/// How long a reader waits for a source that is away; what is cached is served in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnOutage {
    /// Until it is back.
    Block,
    /// So long, then the read is an error; one that comes more than a second later waits anew. The time runs while nothing comes, failed
    /// tries or not, but what is merely slow is given three seconds.
    Deadline(Duration),
    /// Not at all: while the source is away, what is not cached is an error. It is away when three tries in
    /// a row have failed, which takes less than a second where connections are refused, or when it did not answer
    /// one of them at all.
    Offline,
}

/// What a source tries in vain at present. Clones are the same.
#[derive(Clone, Debug)]
pub struct Outages(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    /// How long readers wait, once that is known.
    policy: watch::Sender<Option<OnOutage>>,
    /// Set once a mount serves readers for as long as it is there; until then the source gives up by itself.
    outlasted: watch::Sender<bool>,
    waits: watch::Sender<BTreeMap<u64, Wait>>,
    silences: Silences,
    /// Changes when something says that another try may do better than those before.
    hope: watch::Sender<()>,
    refusal: Mutex<Option<String>>,
    /// When a reader gave up last, by blob.
    given_up: Mutex<BTreeMap<Digest, Duration>>,
    serial: AtomicU64,
}

#[derive(Clone, Debug)]
struct Wait {
    what: String,
    blob: Option<Digest>,
    since: Duration,
    failed: u32,
    /// A try failed as nothing came, which no mishap explains.
    silent: bool,
    last: String,
    told: bool,
}

/// Something that is being waited for, for people.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WaitStatus {
    /// What is wanted, as in `blob sha256:…`.
    pub what: String,
    /// For how long, in seconds.
    pub seconds: u64,
    /// How often it was tried.
    pub tries: u32,
    /// What happened the last time.
    pub last_error: String,
}

/// Held by a transfer; knows for how long it has brought nothing while it was waited for.
#[derive(Debug)]
pub(super) struct Listening {
    shared: Arc<Shared>,
    number: u64,
    /// So far, without the present wait.
    silent: Duration,
    /// How often it was asked for again since it brought something.
    again: u32,
    /// When the present wait began.
    begun: Option<Duration>,
}

/// Registers an ongoing failure; dropped on success or when the caller gives up.
#[derive(Debug)]
pub struct Failing {
    shared: Arc<Shared>,
    number: u64,
}

impl Default for OnOutage {
    /// A minute: long enough for a registry that is restarted, short enough for a person who watches.
    fn default() -> Self {
        Self::Deadline(Duration::from_secs(60))
    }
}

impl std::str::FromStr for OnOutage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
        match text.split_once('=') {
            None if text == "block" => Ok(Self::Block),
            None if text == "offline" => Ok(Self::Offline),
            Some(("deadline", given)) => {
                seconds(given).map(Self::Deadline).ok_or_else(|| format!("`{given}` is not a number of seconds"))
            }
            _ => Err("write `block`, `deadline=SECONDS` or `offline`".to_owned()),
        }
    }
}

impl Outages {
    /// Of a source with which nothing is wrong yet, and which tells the time by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            clock,
            policy: watch::Sender::default(),
            outlasted: watch::Sender::default(),
            waits: watch::Sender::default(),
            silences: Silences::default(),
            hope: watch::Sender::default(),
            refusal: Mutex::default(),
            given_up: Mutex::default(),
            serial: AtomicU64::new(0),
        }))
    }

    /// From now on readers wait as `policy` says, also those who wait already. The first policy counts.
    pub fn wait_as(&self, policy: OnOutage) {
        self.0.policy.send_if_modified(|said| {
            let first = said.is_none();
            // Said once; a second opinion would surprise those who wait by the first.
            said.get_or_insert(policy);
            first
        });
    }

    /// As [`Outages::wait_as`]; and the source never gives up what may still succeed.
    pub fn outlast(&self, policy: OnOutage) {
        self.wait_as(policy);
        self.0.outlasted.send_replace(true);
    }

    /// Whether the source never gives up.
    pub fn are_outlasted(&self) -> bool {
        *self.0.outlasted.borrow()
    }

    /// How long readers wait, if that is known.
    pub(super) fn policy(&self) -> Option<OnOutage> {
        *self.0.policy.borrow()
    }

    /// What is being waited for, longest first.
    pub fn status(&self) -> Vec<WaitStatus> {
        let now = self.0.clock.now();
        let status = |wait: &Wait| WaitStatus {
            what: wait.what.clone(),
            seconds: now.saturating_sub(wait.since).as_secs(),
            tries: wait.failed,
            last_error: wait.last.clone(),
        };
        let mut told: Vec<WaitStatus> = Vec::new();
        for wait in self.0.waits.borrow().values().map(status) {
            // Many parts of one blob are one thing to wait for.
            match told.iter_mut().find(|known| known.what == wait.what) {
                Some(known) if known.seconds >= wait.seconds => {}
                Some(known) => *known = wait,
                None => told.push(wait),
            }
        }
        for (blob, since) in self.0.silences.since_before(now.saturating_sub(SHORTEST_SILENCE)) {
            let what = blob_name(&blob);
            if !told.iter().any(|wait| wait.what == what) {
                let seconds = now.saturating_sub(since).as_secs();
                told.push(WaitStatus { what, seconds, tries: 1, last_error: NOTHING_COMES.to_owned() });
            }
        }
        told
    }

    /// For a transfer of `blob` that is about to begin.
    pub(super) fn listen(&self, blob: &Digest) -> Listening {
        let number = self.0.serial.fetch_add(1, Ordering::Relaxed);
        self.0.silences.add(number, blob);
        Listening { shared: Arc::clone(&self.0), number, silent: Duration::ZERO, again: 0, begun: None }
    }

    /// The last refusal, if nothing was granted since.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.0.refusal).clone()
    }

    /// Whether `blob` is one of the things that cannot be had at present.
    pub fn concern(&self, blob: &Digest) -> bool {
        self.0.waits.borrow().values().any(|wait| wait.blob.as_ref() == Some(blob))
    }

    /// Notes a failed try, with the note about those before it.
    pub fn failed(&self, before: Option<Failing>, what: &str, blob: Option<&Digest>, why: &str) -> Failing {
        let failing = before.unwrap_or_else(|| {
            let number = self.0.serial.fetch_add(1, Ordering::Relaxed);
            Failing { shared: Arc::clone(&self.0), number }
        });
        self.0.waits.send_modify(|waits| {
            let wait = waits.entry(failing.number).or_insert_with(|| Wait {
                what: what.to_owned(),
                blob: blob.cloned(),
                since: self.0.clock.now(),
                failed: 0,
                silent: false,
                last: String::new(),
                told: false,
            });
            wait.failed += 1;
            why.clone_into(&mut wait.last);
        });
        failing
    }

    /// Notes that another process gets `blob` and is waited for, which is no failure as long as that one gets on.
    pub fn elsewhere(&self, blob: &Digest) -> Failing {
        let failing = self.failed(None, &format!("blob {blob}"), Some(blob), "another process is reading it");
        failing.change(|wait, _| wait.failed = 0);
        failing
    }

    /// Notes what the source refused, or that it did not.
    pub(super) fn refused(&self, why: Option<&SourceError>) {
        *lock(&self.0.refusal) = why.map(ToString::to_string);
    }

    /// Returns when `time` has passed, or before, when there is hope: something of the source has come, or
    /// another reader wants what could not be fetched.
    pub async fn pause(&self, time: Duration) {
        let mut hope = self.0.hope.subscribe();
        let shortest = time.min(SHORTEST_HOPEFUL_PAUSE.max(time / 8));
        self.0.clock.pause(shortest).await;
        tokio::select! {
            biased;
            () = self.0.clock.pause(time - shortest) => {}
            changed = hope.changed() => changed.expect("the sender is ours"),
        }
    }

    /// Something says that what is tried in vain may do better now.
    pub fn hope(&self) {
        if self.0.hope.receiver_count() > 0 {
            self.0.hope.send_replace(());
        }
    }

    /// Returns when `blob` cannot be had for longer than a reader who comes now is to wait, with the
    /// error for that reader.
    pub async fn outlived(&self, blob: &Digest, place: &str) -> SourceError {
        let begun = self.0.clock.now();
        let mut policy = self.0.policy.subscribe();
        let policy = *policy.wait_for(Option::is_some).await.expect("the sender is ours");
        self.hope();
        let (mut patience, tries, mut silence) = match policy.expect("waited until there is one") {
            OnOutage::Deadline(patience) => (patience, 1, patience.max(SHORTEST_SILENCE)),
            OnOutage::Offline => (Duration::ZERO, HICCUPS + 1, Duration::MAX),
            OnOutage::Block => return std::future::pending().await,
        };
        // A reader that comes right after one that gave up has waited along.
        let given_up = lock(&self.0.given_up).get(blob).copied();
        if given_up.is_some_and(|given_up| begun.saturating_sub(given_up) < HANDED_ON) {
            (patience, silence) = (patience.min(HANDED_ON), silence.min(SHORTEST_SILENCE));
        }
        let mut changes = self.0.waits.subscribe();
        loop {
            let has_failed = |wait: &Wait| wait.blob.as_ref() == Some(blob) && (wait.failed >= tries || wait.silent);
            let of_blob = |waits: &BTreeMap<u64, Wait>| {
                waits.iter().find(|(_, wait)| has_failed(wait)).map(|(number, wait)| (*number, wait.clone()))
            };
            let found = of_blob(&changes.borrow_and_update());
            let now = self.0.clock.now();
            let left = |since: Duration, time| since.max(begun).saturating_add(time).saturating_sub(now);
            let mut look_again = silence;
            if let Some((number, wait)) = found {
                look_again = left(wait.since, patience);
                if look_again.is_zero() {
                    lock(&self.0.given_up).insert(blob.clone(), now);
                    return self.given_up(number, &wait, now - begun, place);
                }
            }
            if let Some(since) = self.0.silences.since(blob, now) {
                let left = left(since, silence);
                if left.is_zero() {
                    lock(&self.0.given_up).insert(blob.clone(), now);
                    return self.silent(blob, now - since, now - begun, place);
                }
                look_again = look_again.min(left);
            }
            tokio::select! {
                changed = changes.changed() => changed.expect("the sender is ours"),
                () = self.0.clock.pause(look_again) => {}
            }
        }
    }

    fn silent(&self, blob: &Digest, silent: Duration, waited: Duration, place: &str) -> SourceError {
        let (silent, waited) = (silent.as_secs_f64(), waited.as_secs_f64());
        let (what, why) = (blob_name(blob), format!("{NOTHING_COMES} since {silent:.1} s (waited {waited:.1} s)"));
        if self.0.silences.tell(blob) {
            tell(&what, &why);
        }
        SourceError::Unreachable { what, place: place.to_owned(), why, hint: Outage::Silent.hint() }
    }

    fn given_up(&self, number: u64, wait: &Wait, waited: Duration, place: &str) -> SourceError {
        let times = if wait.failed == 1 { "time" } else { "times" };
        let why = format!("{} (tried {} {times}, waited {:.1} s)", wait.last, wait.failed, waited.as_secs_f64());
        let first = self.0.waits.send_if_modified(|waits| {
            let told = waits.get_mut(&number).map(|wait| &mut wait.told);
            told.is_some_and(|told| !std::mem::replace(told, true))
        });
        if first {
            tell(&wait.what, &why);
        }
        let outage = if wait.silent { Outage::Silent } else { Outage::Away };
        SourceError::Unreachable { what: wait.what.clone(), place: place.to_owned(), why, hint: outage.hint() }
    }
}

fn tell(what: &str, why: &str) {
    tracing::error!(target: "peelfs::failure", what, why, "cannot be had now; reads of it fail");
}

/// Failed tries in a row that are no outage yet: connections break now and then.
const HICCUPS: u32 = 2;
/// However much hope there is, a source in trouble is not asked more often than this, nor before an eighth of its
/// pause has passed.
const SHORTEST_HOPEFUL_PAUSE: Duration = Duration::from_millis(250);
/// What takes less is slow at most, however little patience a reader has.
pub(super) const SHORTEST_SILENCE: Duration = Duration::from_secs(3);
/// The kernel lets those who want the same name or page wait in a row, each for the one before, and asks again for what
/// it could not read ahead. So a reader that comes so soon after one has given up has waited as long, and waits no longer than
/// this; or than [`SHORTEST_SILENCE`], where nothing is heard.
const HANDED_ON: Duration = Duration::from_secs(1);
/// What has brought nothing for so long is asked for again when there is hope.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(5);
const NOTHING_COMES: &str = "it was asked, and nothing comes";

impl Listening {
    /// From now on the source owes the next bytes.
    pub(super) fn begin(&mut self) {
        let now = self.shared.clock.now();
        self.begun = Some(now);
        self.shared.silences.set(self.number, Some(self.since(now)));
    }

    /// Returns when it has brought nothing for a while and there is hope that it does so when it is asked for anew: a
    /// connection may be dead without any sign of it. The while doubles each time, as a slow source answers no reader that
    /// does not wait. Returns how long it was silent.
    pub(super) async fn worth_another_try(&mut self) -> Duration {
        let shared = Arc::clone(&self.shared);
        // A source that gives up by itself tries no more often than it says.
        let outlasted = shared.outlasted.subscribe().wait_for(|outlasted| *outlasted).await.is_ok();
        debug_assert!(outlasted, "the sender is ours");
        let since = self.since(shared.clock.now());
        let patience = SHORTEST_PATIENCE.saturating_mul(1 << self.again.min(16));
        shared.clock.pause(since.saturating_add(patience).saturating_sub(shared.clock.now())).await;
        shared.hope.subscribe().changed().await.expect("the sender is ours");
        self.again += 1;
        shared.clock.now().saturating_sub(since)
    }

    /// For how long it has brought nothing while it was waited for.
    pub(super) fn silent_for(&self) -> Duration {
        let now = self.shared.clock.now();
        now.saturating_sub(self.since(now))
    }

    /// When it brought its last bytes, as it is `now`.
    fn since(&self, now: Duration) -> Duration {
        self.begun.unwrap_or(now).saturating_sub(self.silent)
    }

    /// So many bytes have come, or none are wanted at present.
    pub(super) fn end(&mut self, bytes: u64) {
        let waited = self.begun.take().map_or(Duration::ZERO, |begun| self.shared.clock.now().saturating_sub(begun));
        self.silent = silence::broken_by(self.silent + waited, bytes);
        if self.silent.is_zero() {
            self.again = 0;
        }
        self.shared.silences.set(self.number, None);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared.silences.remove(self.number);
    }
}

impl Failing {
    /// It brought nothing before it failed, for so long by `listening`; in `silence` when that was why it failed.
    pub(super) fn brought_nothing(&self, listening: &Listening, silence: bool) {
        self.change(|wait, now| {
            wait.since = wait.since.min(listening.since(now));
            wait.silent |= silence;
        });
    }

    /// The other process has made no progress since the last look.
    pub fn stalled(&self, why: &str) {
        self.change(|wait, _| {
            wait.failed += 1;
            why.clone_into(&mut wait.last);
        });
    }

    /// The other process has made progress: restarts the reader's wait.
    pub fn progressed(&self, why: &str) {
        self.change(|wait, now| {
            (wait.failed, wait.silent, wait.since, wait.told) = (0, false, now, false);
            why.clone_into(&mut wait.last);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Wait, Duration)) {
        let now = self.shared.clock.now();
        self.shared.waits.send_modify(|waits| {
            if let Some(wait) = waits.get_mut(&self.number) {
                change(wait, now);
            }
        });
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.shared.waits.send_modify(|waits| drop(waits.remove(&self.number)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::digest::Algorithm;
    use crate::source::registry::MonotonicClock;

    #[test]
    fn policies_are_read() {
        let seconds = |seconds| Ok(OnOutage::Deadline(Duration::from_secs_f64(seconds)));
        assert_eq!("block".parse(), Ok(OnOutage::Block));
        assert_eq!("offline".parse(), Ok(OnOutage::Offline));
        assert_eq!("deadline=5".parse(), seconds(5.0));
        assert_eq!("deadline=0.25".parse(), seconds(0.25));
        for text in ["", "deadline", "deadline=", "deadline=-1", "deadline=x", "deadline=inf", "block=1", "5"] {
            assert!(text.parse::<OnOutage>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_reader_who_waits_before_the_policy_is_known_gives_up_by_it() {
        let outages = Outages::new(Arc::new(MonotonicClock::default()));
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let _failing = outages.failed(None, "blob 1", Some(&blob), "no route");
        let mut told = Box::pin(outages.outlived(&blob, "image"));
        tokio::select! {
            biased;
            _ = &mut told => panic!("no policy says how long to wait"),
            () = std::future::ready(()) => {}
        }
        outages.outlast(OnOutage::Deadline(Duration::ZERO));
        outages.outlast(OnOutage::Block);
        assert!(told.await.to_string().contains("no route (tried 1 time,"));
    }

    /// A clock on which a second passes at once, and more does not pass.
    #[derive(Debug)]
    struct Impatient;

    impl Clock for Impatient {
        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn pause(&self, time: Duration) -> crate::source::BoxFuture<'_, ()> {
            if time.as_secs() < 1 { Box::pin(std::future::ready(())) } else { Box::pin(std::future::pending()) }
        }
    }

    #[tokio::test]
    async fn one_that_pauses_tries_again_when_there_is_hope() {
        let outages = Outages::new(Arc::new(Impatient));
        let pause = || outages.pause(Duration::from_secs(5));
        assert_eq!(pause().now_or_never(), None);
        let mut during = Box::pin(pause());
        assert_eq!((&mut during).now_or_never(), None);
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let _failing = outages.failed(None, "blob 1", Some(&blob), "no route");
        outages.hope();
        assert_eq!(during.now_or_never(), Some(()));
        assert_eq!(pause().now_or_never(), None, "that was before");
    }

    #[tokio::test]
    async fn a_reader_gives_up_only_on_what_it_waits_for() {
        let outages = Outages::new(Arc::new(MonotonicClock::default()));
        outages.outlast(OnOutage::Deadline(Duration::from_millis(1)));
        let [one, other] = ["1", "2"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
        let failing = outages.failed(None, "blob 1", Some(&one), "no route");
        let failing = outages.failed(Some(failing), "blob 1", Some(&one), "still no route");
        let told = outages.outlived(&one, "image").await.to_string();
        assert!(told.contains("still no route (tried 2 times"), "{told}");
        let other = outages.outlived(&other, "image");
        tokio::select! {
            biased;
            _ = other => panic!("nothing is wrong with it"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(outages.status()[0].tries, 2);
        drop(failing);
        assert!(outages.status().is_empty());
    }

    #[tokio::test]
    async fn a_pass_of_another_process_is_no_outage_while_it_progresses() {
        let outages = Outages::new(Arc::new(MonotonicClock::default()));
        outages.outlast(OnOutage::Deadline(Duration::ZERO));
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let waiting = outages.elsewhere(&blob);
        waiting.stalled("process 7 has 5 of 9 bytes");
        assert!(outages.outlived(&blob, "image").await.to_string().contains("process 7 has 5 of 9 bytes"));
        waiting.progressed("process 7 has 6 of 9 bytes");
        assert_eq!(outages.status()[0].last_error, "process 7 has 6 of 9 bytes");
        tokio::select! {
            biased;
            _ = outages.outlived(&blob, "image") => panic!("it makes progress"),
            () = std::future::ready(()) => {}
        }
    }

    /// The time of a runtime in which time passes only while nothing is done.
    #[derive(Debug)]
    struct RuntimeClock(tokio::time::Instant);

    impl Clock for RuntimeClock {
        fn now(&self) -> Duration {
            self.0.elapsed()
        }

        fn pause(&self, time: Duration) -> crate::source::BoxFuture<'_, ()> {
            Box::pin(tokio::time::sleep(time))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_wait_in_a_row_give_up_in_a_row() {
        let seconds = Duration::from_secs;
        let outages = Outages::new(Arc::new(RuntimeClock(tokio::time::Instant::now())));
        outages.outlast(OnOutage::Deadline(seconds(5)));
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let failing = outages.failed(None, "blob 1", Some(&blob), "no route");
        let time_to_give_up = async || {
            let begun = tokio::time::Instant::now();
            outages.outlived(&blob, "image").await;
            begun.elapsed()
        };
        tokio::time::sleep(seconds(60)).await;
        assert_eq!(time_to_give_up().await, seconds(5));
        for _ in 0..8 {
            assert_eq!(time_to_give_up().await, HANDED_ON);
        }
        tokio::time::sleep(HANDED_ON).await;
        assert_eq!(time_to_give_up().await, seconds(5), "that is another read");
        drop(failing);
    }
}
