//! Activity: what one mount has fetched, why, and how long its readers waited, by layer and file.
//!
//! Counters are added to on the read path, so they are atomic, one set a layer and mount. Files are recorded only when
//! something of them is fetched or waited for, in a table of bounded size that drops the file that was active longest
//! ago. A file that readers get from the cache costs nothing and is not recorded.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::digest::Digest;
use crate::layer::{EntryId, LayerIndex};
use crate::span::SpanId;
use crate::sync::lock;

/// Why bytes are fetched.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Reason {
    /// A reader waits for them.
    Demand,
    /// They follow what a reader has read.
    Readahead,
    /// They are files of the kind and the directory that a program reads.
    Siblings,
    /// A program that is loaded names them.
    Program,
    /// Earlier runs of the image have read them, or its maker says that runs do.
    Profile,
    /// Everything is fetched, with `--prefetch=all`.
    Fill,
    /// The layer was not known yet and is read once.
    FirstPass,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Demand, Self::Readahead, Self::Siblings, Self::Program, Self::Profile, Self::Fill, Self::FirstPass];

    /// Its name in status, metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Readahead => "readahead",
            Self::Siblings => "siblings",
            Self::Program => "program",
            Self::Profile => "profile",
            Self::Fill => "fill",
            Self::FirstPass => "first_pass",
        }
    }
}

/// A number for each reason.
pub type ByReason = [u64; Reason::ALL.len()];

/// Why spans are fetched, and for which file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cause {
    pub(super) reason: Reason,
    /// `None` if that is found from the spans when it is asked for.
    pub(super) file: Option<EntryId>,
}

impl Cause {
    /// For a file.
    pub fn of(reason: Reason, file: EntryId) -> Self {
        Self { reason, file: Some(file) }
    }

    /// For a reader of a file, ahead of it.
    pub(super) fn ahead(file: EntryId) -> Self {
        Self::of(Reason::Readahead, file)
    }

    /// For whatever the spans hold.
    pub(super) fn spans(reason: Reason) -> Self {
        Self { reason, file: None }
    }
}

/// The activity of one mount.
#[derive(Debug)]
pub struct Activity {
    layers: Mutex<HashMap<Digest, Arc<LayerActivity>>>,
}

/// The activity of one mount in one layer.
#[derive(Debug)]
pub struct LayerActivity {
    requests: [AtomicU64; Reason::ALL.len()],
    bytes: [AtomicU64; Reason::ALL.len()],
    reads: AtomicU64,
    read_bytes: AtomicU64,
    waits: AtomicU64,
    waited_us: AtomicU64,
    failures: AtomicU64,
    files: Mutex<LruCache<Place, FileActivity>>,
}

/// Where a file is: its entry, or a span that holds it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Place {
    Entry(EntryId),
    Span(SpanId),
}

/// What was fetched and waited for of one file.
#[derive(Clone, Copy, Debug)]
pub struct FileActivity {
    /// Blob bytes.
    pub bytes: ByReason,
    /// Reads that had to wait.
    pub waits: u64,
    /// How long, all together.
    pub waited: Duration,
    /// The longest of them.
    pub longest: Duration,
    /// When something of it was last fetched or waited for.
    pub last: Instant,
}

/// The counters of a layer in one mount.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LayerCounts {
    /// Requests for ranges of the blob.
    pub requests: ByReason,
    /// Blob bytes of these.
    pub bytes: ByReason,
    /// Reads of pieces of files.
    pub reads: u64,
    /// Decoded bytes of these.
    pub read_bytes: u64,
    /// Reads that had to wait for bytes.
    pub waits: u64,
    /// How long they waited, all together, in microseconds.
    pub waited_us: u64,
    /// Reads that failed.
    pub failures: u64,
}

/// A read that waits; records the time when it is dropped.
pub(super) struct ReadWait<'a> {
    layer: &'a LayerActivity,
    file: EntryId,
    begun: Instant,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { layers: Mutex::default() }
    }

    /// That of the layer with this blob.
    pub fn layer(&self, blob: &Digest) -> Arc<LayerActivity> {
        let mut layers = lock(&self.layers);
        if let Some(known) = layers.get(blob) {
            return Arc::clone(known);
        }
        let new = Arc::new(LayerActivity::new());
        layers.insert(blob.clone(), Arc::clone(&new));
        new
    }
}

impl LayerActivity {
    fn new() -> Self {
        let counters = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            requests: counters(),
            bytes: counters(),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            files: Mutex::new(LruCache::new(MOST_FILES)),
        }
    }

    /// The counters so far.
    pub fn counts(&self) -> LayerCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LayerCounts {
            requests: std::array::from_fn(|reason| read(&self.requests[reason])),
            bytes: std::array::from_fn(|reason| read(&self.bytes[reason])),
            reads: read(&self.reads),
            read_bytes: read(&self.read_bytes),
            waits: read(&self.waits),
            waited_us: read(&self.waited_us),
            failures: read(&self.failures),
        }
    }

    /// A piece of a file is read, from the cache or not.
    pub(super) fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A read of `file` waits for bytes.
    pub(super) fn waits(&self, file: EntryId) -> ReadWait<'_> {
        ReadWait { layer: self, file, begun: Instant::now() }
    }

    /// A read has failed.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// `bytes` of the blob are requested, in one request, for a reason. Parts of them are for files; what is left over is
    /// read on the way to them.
    pub(super) fn fetches(&self, bytes: u64, parts: &[(Cause, SpanId, u64)]) {
        let Some((first, ..)) = parts.first() else { return };
        self.requests[first.reason as usize].fetch_add(1, Ordering::Relaxed);
        let for_parts: u64 = parts.iter().map(|(.., bytes)| bytes).sum();
        self.bytes[first.reason as usize].fetch_add(bytes.saturating_sub(for_parts), Ordering::Relaxed);
        let mut files = lock(&self.files);
        for (Cause { reason, file }, span, bytes) in parts {
            self.bytes[*reason as usize].fetch_add(*bytes, Ordering::Relaxed);
            // These would push out all others.
            if *reason != Reason::Fill {
                let place = file.map_or(Place::Span(*span), Place::Entry);
                let file = files.get_or_insert_mut(place, FileActivity::new);
                file.bytes[*reason as usize] += bytes;
                file.last = Instant::now();
            }
        }
    }

    /// The files that were active last, in no order. `index` is the layer's own.
    pub fn files(&self, index: &LayerIndex) -> HashMap<EntryId, FileActivity> {
        let places: Vec<_> = lock(&self.files).iter().map(|(place, file)| (*place, *file)).collect();
        let mut files = HashMap::new();
        for (place, file) in places {
            let entry = match place {
                Place::Entry(entry) => Some(entry),
                // Faults of the index are reported where bytes are read.
                Place::Span(span) => index.span(span).and_then(|span| index.file_at(span.decoded.start)).ok().flatten(),
            };
            let Some(entry) = entry else { continue };
            files.entry(entry).and_modify(|known: &mut FileActivity| known.add(&file)).or_insert(file);
        }
        files
    }

    #[cfg(test)]
    fn places(&self) -> Vec<(Place, FileActivity)> {
        lock(&self.files).iter().map(|(place, file)| (*place, *file)).collect()
    }
}

impl FileActivity {
    fn new() -> Self {
        let none = Duration::ZERO;
        Self { bytes: ByReason::default(), waits: 0, waited: none, longest: none, last: Instant::now() }
    }

    /// With what is known of the same file by another place.
    fn add(&mut self, other: &Self) {
        self.bytes.iter_mut().zip(other.bytes).for_each(|(sum, bytes)| *sum += bytes);
        self.waits += other.waits;
        self.waited += other.waited;
        self.longest = self.longest.max(other.longest);
        self.last = self.last.max(other.last);
    }
}

impl Drop for ReadWait<'_> {
    fn drop(&mut self) {
        let waited = self.begun.elapsed();
        self.layer.waits.fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.layer.waited_us.fetch_add(us, Ordering::Relaxed);
        let mut files = lock(&self.layer.files);
        let file = files.get_or_insert_mut(Place::Entry(self.file), FileActivity::new);
        file.waits += 1;
        file.waited += waited;
        file.longest = file.longest.max(waited);
        file.last = Instant::now();
    }
}

/// Limit of recorded files per layer and mount: at some 150 bytes each, no more than 40 KiB.
const MOST_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("it is not 0");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_numbers() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number, "{reason:?}");
        }
    }

    /// Bytes that belong to no span of a request are those that decoding has to start from.
    #[test]
    fn all_requested_bytes_have_a_reason() {
        let layer = LayerActivity::new();
        let demanded = Cause::of(Reason::Demand, EntryId(7));
        let ahead = Cause::of(Reason::Readahead, EntryId(7));
        layer.fetches(1000, &[(demanded, SpanId(1), 300), (ahead, SpanId(2), 400)]);
        layer.fetches(50, &[(Cause::spans(Reason::Profile), SpanId(9), 50)]);
        let counts = layer.counts();
        assert_eq!(counts.bytes, [600, 400, 0, 0, 50, 0, 0]);
        assert_eq!(counts.requests, [1, 0, 0, 0, 1, 0, 0]);
        let files = layer.places();
        assert_eq!(files.len(), 2);
        let of = |place| files.iter().find(|(known, _)| *known == place).map(|(_, file)| file.bytes);
        assert_eq!(of(Place::Entry(EntryId(7))), Some([300, 400, 0, 0, 0, 0, 0]));
        assert_eq!(of(Place::Span(SpanId(9))), Some([0, 0, 0, 0, 50, 0, 0]));
    }

    #[test]
    fn files_are_bounded_and_filling_records_none() {
        let layer = LayerActivity::new();
        for number in 0..1000 {
            layer.fetches(1, &[(Cause::of(Reason::Demand, EntryId(number)), SpanId(number), 1)]);
            layer.fetches(1, &[(Cause::spans(Reason::Fill), SpanId(number), 1)]);
        }
        assert_eq!(layer.places().len(), MOST_FILES.get());
        assert!(layer.places().iter().all(|(place, _)| matches!(place, Place::Entry(EntryId(744..)))));
        assert_eq!(layer.counts().bytes, [1000, 0, 0, 0, 0, 1000, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_recorded_when_it_ends_in_any_way() {
        let layer = LayerActivity::new();
        let wait = layer.waits(EntryId(3));
        assert_eq!(layer.counts().waits, 0);
        tokio::time::advance(Duration::from_millis(20)).await;
        drop(wait);
        drop(layer.waits(EntryId(3)));
        let counts = layer.counts();
        assert_eq!((counts.waits, counts.waited_us), (2, 20_000));
        let [(Place::Entry(EntryId(3)), file)] = layer.places()[..] else { panic!("one file") };
        assert_eq!((file.waits, file.longest), (2, Duration::from_millis(20)));
    }
}
