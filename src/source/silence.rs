//! Silences: how long a source has sent nothing for a transfer.
//!
//! A request fails when its connection breaks or its own limits pass, and those are long, since a slow link is no
//! fault. A reader that waits for at most N seconds needs to know earlier that nothing arrives.

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
    /// Since when, by the source's clock, bytes are due and none has arrived; `None` while no bytes are due.
    since: Option<Duration>,
    told: bool,
}

/// Bytes that make up for one second: fewer count as silence (see `Deadlines::least_progress`).
const SECOND: u64 = 1 << 10;

/// The rest of the silence `silent` after this many bytes have arrived.
pub(super) fn broken_by(silent: Duration, bytes: u64) -> Duration {
    silent.saturating_sub(Duration::from_secs(1).mul_f64(bytes as f64 / SECOND as f64))
}

impl Silences {
    /// Adds a transfer of `blob` without a waiting reader.
    pub(super) fn add(&self, number: u64, blob: &Digest) {
        lock(&self.0).insert(number, Listened { blob: blob.clone(), since: None, told: false });
    }

    pub(super) fn remove(&self, number: u64) {
        lock(&self.0).remove(&number);
    }

    /// Sets since when the transfer `number` has received nothing, or `None` if no bytes are due.
    pub(super) fn set(&self, number: u64, since: Option<Duration>) {
        if let Some(listened) = lock(&self.0).get_mut(&number) {
            listened.told &= since.is_some();
            listened.since = since;
        }
    }

    /// Since when nothing has arrived for `blob`, by its most active transfer. If it has no transfer, since all run for
    /// other blobs: since when nothing has arrived at all.
    pub(super) fn since(&self, blob: &Digest, now: Duration) -> Option<Duration> {
        let all = lock(&self.0);
        let since = |listened: &Listened| listened.since.unwrap_or(now);
        let of_blob = all.values().filter(|listened| listened.blob == *blob).map(since).max();
        of_blob.or_else(|| all.values().map(since).max())
    }

    /// Blobs with a transfer that has received nothing since `limit` or longer, and since when.
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

    /// Whether this is the first time a reader gives up on `blob` since its transfers last received something.
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
