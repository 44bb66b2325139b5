//! Outages: which requests of a source are failing, and how long readers wait for them.
//!
//! Retrying and waiting are separate. A first pass continues through an outage and resumes its download where it was
//! interrupted, however long the outage takes; a reader of the layer waits as long as `--on-outage` says. So retries do
//! not end when a reader gives up, and a mount recovers as soon as its registry does.

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

/// How long a read waits for an unreachable source. Cached bytes are served in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnOutage {
    /// Until the source is back.
    Block,
    /// Fail after this long without data. A read that starts more than 1 s after a failed one gets the full time again.
    /// Slow progress does not count as an outage: it gets at least 3 s.
    Deadline(Duration),
    /// Fail at once while the source is unreachable. It counts as unreachable after three failed tries in a row, which
    /// takes less than a second if connections are refused, or after one request without any answer.
    Offline,
}

/// The requests of a source that are failing at present. Clones share state.
#[derive(Clone, Debug)]
pub struct Outages(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    /// The policy of the readers, once it is set.
    policy: watch::Sender<Option<OnOutage>>,
    /// Set once a mount serves readers; until then the source gives up by itself.
    unlimited_retries: watch::Sender<bool>,
    waits: watch::Sender<BTreeMap<u64, Wait>>,
    silences: Silences,
    /// Notified when a retry has become more likely to succeed.
    retry: watch::Sender<()>,
    refusal: Mutex<Option<String>>,
    /// When a reader last gave up, per blob.
    given_up: Mutex<BTreeMap<Digest, Duration>>,
    serial: AtomicU64,
}

#[derive(Clone, Debug)]
struct Wait {
    what: String,
    blob: Option<Digest>,
    since: Duration,
    failed: u32,
    /// A try failed because nothing arrived, so this is no short-lived failure.
    silent: bool,
    last: String,
    told: bool,
}

/// A failing request, for status output.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WaitStatus {
    /// What is requested, as in `blob sha256:…`.
    pub what: String,
    /// Seconds since the first failure.
    pub seconds: u64,
    /// The number of tries.
    pub tries: u32,
    /// The error of the last try.
    pub last_error: String,
}

/// Held by a transfer; measures how long it has received nothing while bytes were due.
#[derive(Debug)]
pub(super) struct SilenceTimer {
    shared: Arc<Shared>,
    number: u64,
    /// Silence so far, without the current wait.
    silent: Duration,
    /// Requests repeated since the last bytes.
    again: u32,
    /// Start of the current wait.
    begun: Option<Duration>,
}

/// Registers an ongoing failure; dropped on success or when the caller gives up.
#[derive(Debug)]
pub struct Failing {
    shared: Arc<Shared>,
    number: u64,
}

impl Default for OnOutage {
    /// One minute: longer than a registry restart, short enough for interactive use.
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
    /// A source without failures that uses `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            clock,
            policy: watch::Sender::default(),
            unlimited_retries: watch::Sender::default(),
            waits: watch::Sender::default(),
            silences: Silences::default(),
            retry: watch::Sender::default(),
            refusal: Mutex::default(),
            given_up: Mutex::default(),
            serial: AtomicU64::new(0),
        }))
    }

    /// Sets the policy of readers, including those that wait already. Only the first call has an effect.
    pub fn wait_as(&self, policy: OnOutage) {
        self.0.policy.send_if_modified(|said| {
            let first = said.is_none();
            // Keep the first policy: readers already wait by it.
            said.get_or_insert(policy);
            first
        });
    }

    /// As [`Outages::wait_as`]; the source then retries passing failures without limit.
    pub fn retry_without_limit(&self, policy: OnOutage) {
        self.wait_as(policy);
        self.0.unlimited_retries.send_replace(true);
    }

    /// Whether the source retries without limit.
    pub fn retries_without_limit(&self) -> bool {
        *self.0.unlimited_retries.borrow()
    }

    /// The policy of the readers, if it is set.
    pub(super) fn policy(&self) -> Option<OnOutage> {
        *self.0.policy.borrow()
    }

    /// Whether readers wait for a source that is away.
    pub(super) fn is_waited_out(&self) -> bool {
        matches!(self.policy(), Some(OnOutage::Deadline(_) | OnOutage::Block))
    }

    /// The failing requests.
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
            // Several requests for one blob are shown as one.
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
                told.push(WaitStatus { what, seconds, tries: 1, last_error: NO_DATA.to_owned() });
            }
        }
        told
    }

    /// Starts measuring the silence of a transfer of `blob`.
    pub(super) fn time_silence(&self, blob: &Digest) -> SilenceTimer {
        let number = self.0.serial.fetch_add(1, Ordering::Relaxed);
        self.0.silences.add(number, blob);
        SilenceTimer { shared: Arc::clone(&self.0), number, silent: Duration::ZERO, again: 0, begun: None }
    }

    /// The last refusal, if no request has been granted since.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.0.refusal).clone()
    }

    /// Whether requests for `blob` are failing at present.
    pub fn concern(&self, blob: &Digest) -> bool {
        self.0.waits.borrow().values().any(|wait| wait.blob.as_ref() == Some(blob))
    }

    /// Records a failed try; `before` is the record of earlier ones.
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

    /// Records that another process fetches `blob`; not a failure while that process makes progress.
    pub fn elsewhere(&self, blob: &Digest) -> Failing {
        let failing = self.failed(None, &format!("blob {blob}"), Some(blob), "another process is reading it");
        failing.change(|wait, _| wait.failed = 0);
        failing
    }

    /// Records a refusal, or that a request was granted.
    pub(super) fn refused(&self, why: Option<&SourceError>) {
        *lock(&self.0.refusal) = why.map(ToString::to_string);
    }

    /// Waits for `time`, or less if a retry has become more likely to succeed: the source has delivered something, or
    /// another reader needs what failed.
    pub async fn pause(&self, time: Duration) {
        let mut retry = self.0.retry.subscribe();
        let shortest = time.min(SHORTEST_PAUSE.max(time / 8));
        self.0.clock.pause(shortest).await;
        tokio::select! {
            biased;
            () = self.0.clock.pause(time - shortest) => {}
            changed = retry.changed() => changed.expect("the sender is ours"),
        }
    }

    /// Wakes retries early, as they have become more likely to succeed.
    pub fn retry_soon(&self) {
        if self.0.retry.receiver_count() > 0 {
            self.0.retry.send_replace(());
        }
    }

    /// Returns when `blob` has been failing for longer than a reader that comes now waits, with the error for that
    /// reader.
    pub async fn timed_out(&self, blob: &Digest, place: &str) -> SourceError {
        let begun = self.0.clock.now();
        let mut policy = self.0.policy.subscribe();
        let policy = *policy.wait_for(Option::is_some).await.expect("the sender is ours");
        self.retry_soon();
        let (mut patience, tries, mut silence) = match policy.expect("waited until there is one") {
            OnOutage::Deadline(patience) => (patience, 1, patience.max(SHORTEST_SILENCE)),
            OnOutage::Offline => (Duration::ZERO, HICCUPS + 1, Duration::MAX),
            OnOutage::Block => return std::future::pending().await,
        };
        // A reader right after one that gave up has waited along with it.
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

    /// Returns when `blob`, without which its readers can be served otherwise, has been failing for half of the time that they
    /// wait, or for [`DISPENSABLE`].
    pub async fn dispensable(&self, blob: &Digest) {
        let limit = match self.policy() {
            Some(OnOutage::Deadline(patience)) => (patience.max(SHORTEST_SILENCE) / 2).min(DISPENSABLE),
            Some(OnOutage::Offline) => SHORTEST_SILENCE / 2,
            Some(OnOutage::Block) | None => DISPENSABLE,
        };
        let begun = self.0.clock.now();
        loop {
            let now = self.0.clock.now();
            let failing = self
                .0
                .waits
                .borrow()
                .values()
                .filter(|wait| wait.blob.as_ref() == Some(blob))
                .map(|wait| wait.since)
                .min();
            let since = failing.into_iter().chain(self.0.silences.since(blob, now)).min().unwrap_or(now);
            let left = since.max(begun).saturating_add(limit).saturating_sub(now);
            if left.is_zero() {
                return;
            }
            self.0.clock.pause(left).await;
        }
    }

    fn silent(&self, blob: &Digest, silent: Duration, waited: Duration, place: &str) -> SourceError {
        let (silent, waited) = (silent.as_secs_f64(), waited.as_secs_f64());
        let (what, why) = (blob_name(blob), format!("{NO_DATA} for {silent:.1} s (waited {waited:.1} s)"));
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
    tracing::error!(target: "peelfs::failure", what, why, "unavailable; reads of it fail");
}

/// Failed tries in a row that are not an outage yet: connections break occasionally.
const HICCUPS: u32 = 2;
/// Lower limit between retries that are woken early; so is an eighth of the pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest time that what readers can do without is waited for while nothing comes.
const DISPENSABLE: Duration = Duration::from_secs(20);
/// A shorter silence counts as slow, even for readers that wait less.
pub(super) const SHORTEST_SILENCE: Duration = Duration::from_secs(3);
/// The kernel queues readers of the same name or page one behind another, and repeats failed readahead. So a reader
/// that comes this soon after one that gave up has already waited, and waits no longer than this, or than
/// [`SHORTEST_SILENCE`] if nothing is received.
const HANDED_ON: Duration = Duration::from_secs(1);
/// After this long without bytes, an early retry repeats the request.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(5);
const NO_DATA: &str = "no data received";

impl SilenceTimer {
    /// The next bytes are due from now on.
    pub(super) fn begin(&mut self) {
        let now = self.shared.clock.now();
        self.begun = Some(now);
        self.shared.silences.set(self.number, Some(self.since(now)));
    }

    /// Returns when the request should be repeated: nothing was received for a while and a retry has become more likely
    /// to succeed, as a connection may be dead without a sign. The interval doubles each time, since a slow source
    /// would never answer. Returns how long the transfer was silent.
    pub(super) async fn should_retry(&mut self) -> Duration {
        let shared = Arc::clone(&self.shared);
        // A source that gives up by itself keeps to its own number of tries.
        let retries = shared.unlimited_retries.subscribe().wait_for(|unlimited| *unlimited).await.is_ok();
        debug_assert!(retries, "the sender is ours");
        let since = self.since(shared.clock.now());
        let patience = SHORTEST_PATIENCE.saturating_mul(1 << self.again.min(16));
        shared.clock.pause(since.saturating_add(patience).saturating_sub(shared.clock.now())).await;
        shared.retry.subscribe().changed().await.expect("the sender is ours");
        self.again += 1;
        shared.clock.now().saturating_sub(since)
    }

    /// How long nothing was received while bytes were due.
    pub(super) fn silent_for(&self) -> Duration {
        let now = self.shared.clock.now();
        now.saturating_sub(self.since(now))
    }

    /// When the last bytes were received.
    fn since(&self, now: Duration) -> Duration {
        self.begun.unwrap_or(now).saturating_sub(self.silent)
    }

    /// `bytes` were received, or none are due at present.
    pub(super) fn end(&mut self, bytes: u64) {
        let waited = self.begun.take().map_or(Duration::ZERO, |begun| self.shared.clock.now().saturating_sub(begun));
        self.silent = silence::broken_by(self.silent + waited, bytes);
        if self.silent.is_zero() {
            self.again = 0;
        }
        self.shared.silences.set(self.number, None);
    }
}

impl Drop for SilenceTimer {
    fn drop(&mut self) {
        self.shared.silences.remove(self.number);
    }
}

impl Failing {
    /// Records that nothing was received before the failure, measured by `timer`; `silence` if that was the reason.
    pub(super) fn was_silent(&self, timer: &SilenceTimer, silence: bool) {
        self.change(|wait, now| {
            wait.since = wait.since.min(timer.since(now));
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
    async fn a_reader_from_before_the_policy_gives_up_by_it() {
        let outages = Outages::new(Arc::new(MonotonicClock::default()));
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let _failing = outages.failed(None, "blob 1", Some(&blob), "no route");
        let mut told = Box::pin(outages.timed_out(&blob, "image"));
        tokio::select! {
            biased;
            _ = &mut told => panic!("no policy is set yet"),
            () = std::future::ready(()) => {}
        }
        outages.retry_without_limit(OnOutage::Deadline(Duration::ZERO));
        outages.retry_without_limit(OnOutage::Block);
        assert!(told.await.to_string().contains("no route (tried 1 time,"));
    }

    /// A clock on which pauses below one second end at once, and longer ones never.
    #[derive(Debug)]
    struct SkippingClock;

    impl Clock for SkippingClock {
        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn pause(&self, time: Duration) -> crate::source::BoxFuture<'_, ()> {
            if time.as_secs() < 1 { Box::pin(std::future::ready(())) } else { Box::pin(std::future::pending()) }
        }
    }

    #[tokio::test]
    async fn a_pause_ends_early_when_a_retry_may_succeed() {
        let outages = Outages::new(Arc::new(SkippingClock));
        let pause = || outages.pause(Duration::from_secs(5));
        assert_eq!(pause().now_or_never(), None);
        let mut during = Box::pin(pause());
        assert_eq!((&mut during).now_or_never(), None);
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let _failing = outages.failed(None, "blob 1", Some(&blob), "no route");
        outages.retry_soon();
        assert_eq!(during.now_or_never(), Some(()));
        assert_eq!(pause().now_or_never(), None, "that was before");
    }

    #[tokio::test]
    async fn a_reader_gives_up_only_on_what_it_waits_for() {
        let outages = Outages::new(Arc::new(MonotonicClock::default()));
        outages.retry_without_limit(OnOutage::Deadline(Duration::from_millis(1)));
        let [one, other] = ["1", "2"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
        let failing = outages.failed(None, "blob 1", Some(&one), "no route");
        let failing = outages.failed(Some(failing), "blob 1", Some(&one), "still no route");
        let told = outages.timed_out(&one, "image").await.to_string();
        assert!(told.contains("still no route (tried 2 times"), "{told}");
        let other = outages.timed_out(&other, "image");
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
        outages.retry_without_limit(OnOutage::Deadline(Duration::ZERO));
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let waiting = outages.elsewhere(&blob);
        waiting.stalled("process 7 has 5 of 9 bytes");
        assert!(outages.timed_out(&blob, "image").await.to_string().contains("process 7 has 5 of 9 bytes"));
        waiting.progressed("process 7 has 6 of 9 bytes");
        assert_eq!(outages.status()[0].last_error, "process 7 has 6 of 9 bytes");
        tokio::select! {
            biased;
            _ = outages.timed_out(&blob, "image") => panic!("it makes progress"),
            () = std::future::ready(()) => {}
        }
    }

    /// The clock of a runtime whose time advances only when idle.
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
    async fn queued_readers_give_up_one_after_another() {
        let seconds = Duration::from_secs;
        let outages = Outages::new(Arc::new(RuntimeClock(tokio::time::Instant::now())));
        outages.retry_without_limit(OnOutage::Deadline(seconds(5)));
        let blob = Digest::of(Algorithm::Sha256, b"1");
        let failing = outages.failed(None, "blob 1", Some(&blob), "no route");
        let time_to_give_up = async || {
            let begun = tokio::time::Instant::now();
            outages.timed_out(&blob, "image").await;
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
