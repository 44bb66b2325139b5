//! Silences: for how long nothing has come of what a source was asked for.
//!
//! A request has failed when its connection breaks or its own limits are over, and those are long, since a
//! slow link is no fault. A reader that waits for at most N seconds learns here that nothing comes.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::digest::Digest;
use crate::sync::lock;

/// The transfers of a source, by number.
#[derive(Debug, Default)]
pub(super) struct Silences(Mutex<BTreeMap<u64, Listened>>);

#[derive(Debug)]
struct Listened {
    blob: Digest,
    /// Since when, by the source's clock, it is waited for in vain; none while what has come is being made use of.
    since: Option<Duration>,
    told: bool,
}

/// Bytes that make up for a second: what brings fewer is as good as silent (see `Deadlines::least_progress`).
const SECOND: u64 = 1 << 10;

/// The silence that is left of `silent` when so many bytes have come.
pub(super) fn broken_by(silent: Duration, bytes: u64) -> Duration {
    silent.saturating_sub(Duration::from_secs(1).mul_f64(bytes as f64 / SECOND as f64))
}

impl Silences {
    /// A transfer of `blob`, which no reader waits for yet.
    pub(super) fn add(&self, number: u64, blob: &Digest) {
        lock(&self.0).insert(number, Listened { blob: blob.clone(), since: None, told: false });
    }

    pub(super) fn remove(&self, number: u64) {
        lock(&self.0).remove(&number);
    }

    /// The transfer `number` is waited for and has brought nothing since so long, or is not waited for.
    pub(super) fn set(&self, number: u64, since: Option<Duration>) {
        if let Some(listened) = lock(&self.0).get_mut(&number) {
            listened.told &= since.is_some();
            listened.since = since;
        }
    }

    /// Since when nothing has come of `blob`, by its liveliest transfer. Where there is none, as all is busy with
    /// other blobs: since when nothing has come of any.
    pub(super) fn since(&self, blob: &Digest, now: Duration) -> Option<Duration> {
        let all = lock(&self.0);
        let since = |listened: &Listened| listened.since.unwrap_or(now);
        let of_blob = all.values().filter(|listened| listened.blob == *blob).map(since).max();
        of_blob.or_else(|| all.values().map(since).max())
    }

    /// Blobs of which nothing has come to some transfer since `limit` or longer, and since when.
    pub(super) fn since_before(&self, limit: Duration) -> BTreeMap<Digest, Duration> {
        let mut silent = BTreeMap::new();
        for Listened { blob, since, .. } in lock(&self.0).values() {
            if let Some(since) = since.filter(|since| *since <= limit) {
                let first = silent.entry(blob.clone()).or_insert(since);
                *first = since.min(*first);
            }
        }
        silent
    }

    /// Whether this is the first time that a reader gives up on `blob` since these transfers brought something.
    pub(super) fn tell(&self, blob: &Digest) -> bool {
        let mut untold = false;
        for listened in lock(&self.0).values_mut().filter(|listened| listened.blob == *blob) {
            untold |= !std::mem::replace(&mut listened.told, true);
        }
        untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn bytes_break_a_silence_by_what_they_are_worth() {
        let seconds = Duration::from_secs;
        assert_eq!(broken_by(seconds(9), 0), seconds(9));
        assert_eq!(broken_by(seconds(9), 2 << 10), seconds(7), "a drip does not");
        assert_eq!(broken_by(seconds(9), 64 << 10), Duration::ZERO);
        assert_eq!(broken_by(seconds(9), u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_blob_is_as_silent_as_its_liveliest_transfer() {
        let [one, other, third] = ["1", "2", "3"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
        let seconds = Duration::from_secs;
        let silences = Silences::default();
        let since = |blob| silences.since(blob, seconds(20));
        assert_eq!(since(&one), None);
        for (number, blob) in [(1, &one), (2, &one), (3, &other)] {
            silences.add(number, blob);
            silences.set(number, Some(seconds(3 + 2 * number)));
        }
        assert_eq!(since(&one), Some(seconds(7)));
        assert_eq!(since(&third), Some(seconds(9)), "it waits for its turn");
        assert_eq!(silences.since_before(seconds(8)), BTreeMap::from([(one.clone(), seconds(5))]));
        assert!(silences.tell(&one) && !silences.tell(&one));
        silences.set(1, None);
        assert_eq!(since(&one), Some(seconds(20)), "what has come is made use of");
        silences.remove(1);
        assert_eq!(since(&one), Some(seconds(7)));
    }
}
