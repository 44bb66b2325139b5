//! Content: makes the bytes of a layer present, verified, on this machine.
//!
//! Above this module nobody knows formats or sources, below it nobody knows files. A layer that was
//! never seen gets a [`pass`]; a span that is not in the store is fetched by [`fetch`]; what is in the
//! store is read by [`LayerReader::read_stored`], and checked when this process first touches it.

mod demand;
pub mod elf;
mod evict_content;
mod fetch;
pub mod fsck;
mod partial;
pub mod pass;
mod pass_schedule;
mod passthrough_copy;
mod prefetch;
mod profile;
mod read_missing;
mod readahead;
mod scope;
mod shared;
mod siblings;
mod spans;
mod speculate;
mod transfer;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::codec::CodecError;
use crate::descriptor::{Compression, Descriptor};
use crate::layer::{EntryId, IndexError, LayerIndex, Span, SpanId};
use crate::offsets::DecodedOffset;
use crate::source::{BlobSource, SourceError};
use crate::store::{Generation, LayerName, Store, StoreError};
use crate::sync::lock;
use spans::Stored;

pub use evict_content::evict_content;
pub use fsck::{CheckedLayer, check_layer};
pub use partial::{Closed, PartialLayer, ShownSpan};
pub use pass::{FirstPass, PassError, PassProgress};
pub use pass_schedule::{PassScheduler, ScheduledPass};
pub use passthrough_copy::PassthroughCopyError;
pub use prefetch::{keep_profiles, prefetch};
pub use profile::{Profile, ProfileRun};
pub use scope::{MountScope, Prefetch, Urgency};
pub use shared::{OpenLayer, SharedLayer, SharedLayers};
pub use transfer::{Imported, TransferError, export_indexes, import_indexes};

/// The decoded bytes of one layer whose index is known, as one mount reads them.
pub struct LayerReader {
    /// What does not depend on the mount.
    open: Arc<OpenLayer>,
    blob: Descriptor,
    compression: Compression,
    source: Arc<dyn BlobSource>,
    store: Arc<Store>,
    /// What the mount has on its way, in all layers.
    scope: Arc<MountScope>,
    /// Which spans were read, and who goes on reading where.
    demand: demand::Demand,
    /// Why a reader did not get a span, if none has come since.
    last_error: Mutex<Option<ReadError>>,
    /// Up to where the disk was told last what is read next.
    advised_to: AtomicU64,
}

impl std::ops::Deref for LayerReader {
    type Target = OpenLayer;

    fn deref(&self) -> &OpenLayer {
        &self.open
    }
}

/// Where in its file a piece lies that is read.
#[derive(Clone, Copy, Debug)]
pub struct PlaceInFile {
    /// The file.
    pub entry: EntryId,
    /// Bytes of the file before it.
    pub before: u64,
    /// Bytes of the file behind it.
    pub behind: u64,
}

/// What a layer's reads have cost so far.
#[derive(Debug, Default)]
struct Counters {
    fetched_spans: AtomicU64,
    fetched_bytes: AtomicU64,
    repeated_spans: AtomicU64,
    damaged_spans: AtomicU64,
    unkept_spans: AtomicU64,
}

/// A snapshot of a layer's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct ContentStats {
    /// Spans fetched after the first pass.
    pub fetched_spans: u64,
    /// Blob bytes asked for on their behalf.
    pub fetched_bytes: u64,
    /// Fetched spans that were in the store when they came, as when two processes fetched them at the same time.
    pub repeated_spans: u64,
    /// Spans found damaged in the store and fetched again.
    pub damaged_spans: u64,
    /// Spans that the store could not keep, as when the disk is full.
    pub unkept_spans: u64,
}

/// Why bytes of a layer cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The source's bytes decode to something else than they should.
    #[error("span {span} of layer {layer} is corrupt: expected {expected}, got {actual}")]
    Corrupt {
        /// The layer's blob.
        layer: Box<str>,
        /// The span's number.
        span: u32,
        /// BLAKE3 of the bytes recorded by the verified pass.
        expected: Box<str>,
        /// BLAKE3 of the bytes that came.
        actual: Box<str>,
    },
    /// The source's bytes do not decode.
    #[error("layer {layer} does not decode")]
    Codec {
        /// The layer's blob.
        layer: Box<str>,
        /// Why.
        #[source]
        cause: Arc<CodecError>,
    },
    /// The source does not deliver.
    #[error("layer {layer} cannot be fetched")]
    Source {
        /// The layer's blob.
        layer: Box<str>,
        /// Why.
        #[source]
        cause: Arc<SourceError>,
    },
    /// The layer index is damaged.
    #[error("the index of layer {layer} is damaged")]
    Index {
        /// The layer's blob.
        layer: Box<str>,
        /// Why.
        #[source]
        cause: Arc<IndexError>,
    },
    /// The task that fetched was ended, as at unmount.
    #[error("the fetch of layer {layer} was ended")]
    Ended {
        /// The layer's blob.
        layer: Box<str>,
    },
}

impl LayerReader {
    /// The content of a layer, as far as the store has it; the rest comes from `source` when read.
    pub fn new(
        open: Arc<OpenLayer>,
        blob: Descriptor,
        compression: Compression,
        source: Arc<dyn BlobSource>,
        store: Arc<Store>,
        scope: Arc<MountScope>,
    ) -> Self {
        let demand = demand::Demand::new(open.index.span_count());
        let (last_error, advised_to) = (Mutex::default(), AtomicU64::new(0));
        Self { open, blob, compression, source, store, scope, demand, last_error, advised_to }
    }

    /// The blob this is the content of.
    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }

    /// Why the last read that failed did, if nothing has come from the source since.
    pub fn last_error(&self) -> Option<ReadError> {
        lock(&self.last_error).clone()
    }

    /// A reader is told that it cannot have what it wants.
    pub fn set_error(&self, why: &ReadError) {
        *lock(&self.last_error) = Some(why.clone());
    }

    /// Something has come.
    fn clear_error(&self) {
        *lock(&self.last_error) = None;
    }

    /// What reads have cost so far.
    pub fn stats(&self) -> ContentStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ContentStats {
            fetched_spans: read(&self.counters.fetched_spans),
            fetched_bytes: read(&self.counters.fetched_bytes),
            repeated_spans: read(&self.counters.repeated_spans),
            damaged_spans: read(&self.counters.damaged_spans),
            unkept_spans: read(&self.counters.unkept_spans),
        }
    }

    /// Reads decoded bytes from the store alone; `false` when some of them are not there.
    ///
    /// Never waits for the network, and tells `before_wait` before it waits for the disk or checks very much. Each span
    /// is checked against its digest when this process first touches it, and again when another writing of it is found
    /// on disk.
    ///
    /// # Errors
    /// [`ReadError::Index`]
    pub fn read_stored(
        self: &Arc<Self>,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<bool, ReadError> {
        if buf.is_empty() {
            return Ok(true);
        }
        let spans = self.spans_of(from..from + buf.len() as u64)?;
        let here = self.read_unwanted(spans.clone(), from, buf, before_wait)?;
        if here {
            spans.for_each(|span| self.record(span));
        }
        Ok(here)
    }

    /// As [`LayerReader::read_stored`], for one who reads to know what a reader may want.
    ///
    /// # Errors
    /// [`ReadError::Index`]
    pub fn peek(self: &Arc<Self>, from: DecodedOffset, buf: &mut [u8]) -> Result<bool, ReadError> {
        if buf.is_empty() {
            return Ok(true);
        }
        self.read_unwanted(self.spans_of(from..from + buf.len() as u64)?, from, buf, &mut || ())
    }

    fn read_unwanted(
        self: &Arc<Self>,
        spans: Range<u32>,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<bool, ReadError> {
        for trust in [Trust::Verified, Trust::Nothing, Trust::Nothing] {
            match self.read_spans(spans.clone(), from, buf, trust, before_wait)? {
                FromStore::All => return Ok(true),
                FromStore::Missing => return Ok(false),
                FromStore::Changed => {}
                // Checked anew, what cannot be read is found damaged, and what is fetched takes its place.
                FromStore::Unreadable(error) => {
                    tracing::warn!(layer = %self.blob.digest, %error, "cannot read the cache; fetching instead");
                }
            }
            spans.clone().for_each(|span| self.verified[span as usize].store(0, Ordering::Release));
        }
        Ok(false)
    }

    /// Fills `buf` from spans that are verified, or are now.
    fn read_spans(
        &self,
        spans: Range<u32>,
        from: DecodedOffset,
        buf: &mut [u8],
        trust: Trust,
        before_wait: &mut dyn FnMut(),
    ) -> Result<FromStore, ReadError> {
        let stamp = self.distrust_if_changed();
        let end = from + buf.len() as u64;
        let whole = |known: &Span| from <= known.decoded.start && known.decoded.end <= end;
        // As of now, before anything is read: bytes that were read while a span was absent may be followed by a
        // writing that is verified as well.
        let trusted = |span| if trust == Trust::Verified { self.verified_generation(span) } else { 0 };
        let mut generations: Vec<u8> = spans.clone().map(trusted).collect();
        let mut unverified = Vec::new();
        for (span, verified) in spans.clone().zip(&mut generations).filter(|(_, verified)| **verified == 0) {
            let Some(generation) = self.content.generation(span) else { return Ok(FromStore::Missing) };
            *verified = generation.get();
            let known = self.index.span(SpanId(span)).map_err(|cause| self.index_error(cause))?;
            unverified.push((span, known, generation));
        }
        // Spans that are read in part are read again to be checked: if there is nothing else, not before that.
        let in_parts = unverified.len() == spans.len() && !unverified.iter().any(|(_, known, _)| whole(known));
        let compared = unverified.len();
        if unverified.iter().map(|(_, known, _)| spans::length(known)).sum::<usize>() > LONG_CHECK {
            before_wait();
        }
        let read = if in_parts { Ok(()) } else { self.content.read_telling(from, buf, before_wait) };
        for (span, known, generation) in unverified {
            let found = if read.is_ok() && whole(&known) {
                let place = (known.decoded.start - from) as usize..(known.decoded.end - from) as usize;
                spans::judge(&self.content, span, &known, generation, &buf[place])
            } else {
                spans::check(&self.content, &known, span, before_wait, |bytes| {
                    let wanted = known.decoded.start.max(from)..known.decoded.end.min(end);
                    let place = (wanted.start - from) as usize..(wanted.end - from) as usize;
                    let skip = (wanted.start - known.decoded.start) as usize;
                    buf[place.clone()].copy_from_slice(&bytes[skip..skip + place.len()]);
                })
            };
            if !self.found(span, found, stamp) {
                return Ok(FromStore::Missing);
            }
        }
        if let Err(error) = read {
            return Ok(FromStore::Unreadable(error));
        }
        // What was not compared just now must have been read while nobody wrote.
        let (first, all) = (spans.start, spans.len());
        let still = self.content.still(spans, |span| generations[(span - first) as usize])
            && (compared == all || self.content.stamp() == stamp);
        Ok(if still { FromStore::All } else { FromStore::Changed })
    }

    /// As [`LayerReader::read_stored`], for a reader.
    ///
    /// # Errors
    /// [`ReadError::Index`]
    pub fn read_now(
        self: &Arc<Self>,
        from: DecodedOffset,
        buf: &mut [u8],
        place: PlaceInFile,
        before_wait: &mut dyn FnMut(),
    ) -> Result<bool, ReadError> {
        let wanted = from..from + buf.len() as u64;
        self.read_ahead_on_disk(&wanted, place)?;
        let here = self.read_stored(from, buf, before_wait)?;
        if here {
            if place.before == 0 && !wanted.is_empty() && self.may_speculate() {
                self.speculate_siblings(place, &self.spans_of(wanted.clone())?);
            }
            self.stream(wanted, place, false);
        }
        Ok(here)
    }

    /// Has the disk bring the spans of a large file that are not verified yet, and some that follow in it. The kernel's
    /// own read-ahead knows no files: behind each of them it would read on for as long as it reads ahead.
    fn read_ahead_on_disk(&self, wanted: &Range<DecodedOffset>, place: PlaceInFile) -> Result<(), ReadError> {
        if wanted.is_empty() || place.before + (wanted.end - wanted.start) + place.behind < LARGE_FILE {
            return Ok(());
        }
        let mut spans = self.spans_of(wanted.clone())?;
        let Some(first) = spans.find(|span| self.verified_generation(*span) == 0) else { return Ok(()) };
        let at = |span| self.index.span(SpanId(span)).map_err(|cause| self.index_error(cause));
        let (known, end) = (at(first)?, wanted.end + place.behind.min(DISK_AHEAD));
        let (mut next, mut last) = (first, known.decoded.start);
        while last < end && next < self.content.spans() && self.content.generation(next).is_some() {
            last = at(next)?.decoded.end;
            next += 1;
        }
        let told = DecodedOffset(self.advised_to.swap(last.0, Ordering::Relaxed));
        let from = if (known.decoded.start..=last).contains(&told) { told } else { known.decoded.start };
        if last > from {
            self.content.read_ahead(from..last);
        }
        Ok(())
    }

    /// Reads decoded bytes, fetching what is not in the store.
    ///
    /// # Errors
    /// [`ReadError`]
    pub async fn read(
        self: &Arc<Self>,
        from: DecodedOffset,
        buf: &mut [u8],
        place: PlaceInFile,
    ) -> Result<(), ReadError> {
        if self.read_now(from, buf, place, &mut || ())? {
            Ok(())
        } else {
            read_missing::read_missing(self, from, buf, place).await
        }
    }

    /// Whether the cache has had to give away spans of this layer, or could not keep one: what is fetched
    /// before it is read would push out what is.
    pub(super) fn is_crowded(&self) -> bool {
        self.evict_cursor.load(Ordering::Relaxed) > 0 || self.counters.unkept_spans.load(Ordering::Relaxed) > 0
    }

    /// Whether all of `range` is in the store, as far as its presence map says.
    pub fn has(&self, range: Range<DecodedOffset>) -> bool {
        range.is_empty() || self.spans_of(range).is_ok_and(|spans| self.content.has_all(spans))
    }

    /// Takes note of what the store, since it had `stamp`, was found to have of a span; whether that is its bytes.
    fn found(&self, span: u32, found: Stored, stamp: u64) -> bool {
        match found {
            Stored::Intact(generation) => {
                self.note_verified(span, generation, stamp);
                true
            }
            Stored::Damaged => {
                tracing::warn!(layer = %self.blob.digest, span, "a cached span was damaged; it will be fetched again");
                self.counters.damaged_spans.fetch_add(1, Ordering::Relaxed);
                false
            }
            Stored::Absent | Stored::Changing => false,
        }
    }

    /// Keeps the cache within its limit after `bytes` were kept: layers nobody uses go first, then spans
    /// of this one.
    fn make_room(&self, bytes: u64) {
        if let Some(over) = self.content.too_much_in_memory() {
            return self.evict_spans(over);
        }
        if self.store.should_look(bytes) {
            self.keep_within_limit();
        }
    }

    /// Gives back what the cache has beyond its limit, of layers nobody uses and then of this one.
    pub fn keep_within_limit(&self) {
        match self.store.make_room(0) {
            Ok(0) => {}
            // What spans hold, too, goes before them.
            Ok(over) => self.evict_spans(over.saturating_sub(self.store.drop_passthrough_copies(&self.blob.digest))),
            Err(error) => tracing::warn!(%error, "cannot tell how full the cache is"),
        }
    }

    /// Evicts spans, in turn, until `over` bytes are free or every span has had its turn.
    fn evict_spans(&self, over: u64) {
        let mut freed = 0;
        for _ in 0..self.content.spans() {
            if freed >= over {
                return;
            }
            let span = self.evict_cursor.fetch_add(1, Ordering::Relaxed) % self.content.spans();
            let Ok(known) = self.index.span(SpanId(span)) else { continue };
            // One that is absent may still take room, if whoever evicted it died in between.
            if self.content.generation(span).is_none() && !self.content.takes_room(&known.decoded) {
                continue;
            }
            // A block that holds the end of another span as well stays.
            let taken = self.content.disk_bytes();
            let evicted = self.content.evict(span, known.decoded, |before, after| {
                // First, as nobody else has changed the data: a map with a flipped bit may call the hole present.
                self.verified[span as usize].store(0, Ordering::SeqCst);
                self.own_change(before, after);
            });
            match evicted {
                Ok(()) => freed += taken.saturating_sub(self.content.disk_bytes()),
                Err(error) => return tracing::warn!(%error, "cannot make room in the cache"),
            }
        }
    }

    /// A span was found right, or made so, while the content had `stamp`.
    fn note_verified(&self, span: u32, generation: Generation, stamp: u64) {
        let verified = &self.verified[span as usize];
        verified.store(generation.get(), Ordering::SeqCst);
        // Somebody has written since: whether to these bytes, nobody knows.
        if self.stamp.load(Ordering::SeqCst) != stamp {
            verified.store(0, Ordering::SeqCst);
        }
    }

    /// Forgets what was verified when somebody else has written to the content since; returns its stamp.
    fn distrust_if_changed(&self) -> u64 {
        let now = self.content.stamp();
        if self.stamp.load(Ordering::SeqCst) != now {
            let forget = || self.verified.iter().for_each(|span| span.store(0, Ordering::SeqCst));
            // First, so that whoever sees the new stamp sees that nothing is verified; then what was noted meanwhile
            // by who has not seen it.
            forget();
            self.stamp.store(now, Ordering::SeqCst);
            forget();
        }
        now
    }

    /// This process has changed the content: when that was the only change since, what was verified stays so. Nothing
    /// was while there was no stamp.
    fn own_change(&self, before: u64, after: u64) {
        let only = |known| (known == before || known == 0).then_some(after);
        let _ = self.stamp.fetch_update(Ordering::SeqCst, Ordering::SeqCst, only);
    }

    fn verified_generation(&self, span: u32) -> u8 {
        self.verified[span as usize].load(Ordering::Acquire)
    }

    /// The spans that hold `range`, which is not empty.
    fn spans_of(&self, range: Range<DecodedOffset>) -> Result<Range<u32>, ReadError> {
        let at = |offset| self.index.span_at(offset).map_err(|cause| self.index_error(cause));
        let first = at(range.start)?;
        let last = at(DecodedOffset(range.end.0 - 1))?;
        Ok(first.0..last.0 + 1)
    }

    fn index_error(&self, cause: IndexError) -> ReadError {
        ReadError::Index { layer: self.layer_name(), cause: Arc::new(cause) }
    }

    fn layer_name(&self) -> Box<str> {
        self.blob.digest.to_string().into()
    }
}

/// What the store keeps the bytes of a layer by.
fn name_of(index: &LayerIndex) -> LayerName<'_> {
    let proof = index.proof();
    LayerName { blob: &proof.blob, diff_id: &proof.diff_id }
}

/// What of the store a reader believes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trust {
    /// What was verified, while nobody writes.
    Verified,
    /// Only what it compares itself.
    Nothing,
}

/// What came of reading from the store.
enum FromStore {
    /// All bytes, as they were verified.
    All,
    /// A span is not there.
    Missing,
    /// A span was evicted, or written anew, while it was read.
    Changed,
    Unreadable(StoreError),
}

/// Readers of smaller files go on with those that follow in the tar, and the kernel's read-ahead with them; in bytes.
const LARGE_FILE: u64 = 1 << 20;
/// How far ahead of who reads a large file the disk is kept busy, in bytes.
const DISK_AHEAD: u64 = 4 << 20;
/// Checking so many bytes takes longer than waking another thread and going on there.
const LONG_CHECK: usize = 1 << 20;
