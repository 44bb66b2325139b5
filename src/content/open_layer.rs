//! One layer whose index is known, as one process has it: what is cached of it, and which of that is verified.
//!
//! Mounts that show a layer share this; how each of them fetches what is missing is in [`super::fetch`].
//!
//! A warm read is one `pread` from the layer's content file, after the span was compared with its digest at this
//! process's first touch. The file's change time is looked at with every read: if another process has written to it,
//! everything verified is verified again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::error::ReadError;
use super::in_flight::InFlight;
use super::spans::{self, Stored};
use crate::digest::Digest;
use crate::layer::{EntryId, IndexError, LayerIndex, Span};
use crate::offsets::DecodedOffset;
use crate::predict::Layout as _;
use crate::span::{SpanId, SpanRange};
use crate::store::{Content, Generation, LayerName, Stamp, Store, StoreError};

/// What a process has of a layer whose index is known.
pub struct OpenLayer {
    pub(super) index: Arc<LayerIndex>,
    pub(super) content: Content,
    pub(super) store: Arc<Store>,
    /// For each span, the generation under which this process has verified it; 0 while it has not.
    verified: Box<[AtomicU8]>,
    /// The content's stamp as of which `verified` holds; see [`Content::stamp`].
    stamp: AtomicU64,
    pub(super) in_flight: InFlight,
    pub(super) counters: Counters,
    /// The span at which the search for something to evict continues.
    evict_cursor: AtomicU32,
    /// Files of entries that this process has found right, and as of which change.
    pub(super) passthrough_copies: Mutex<HashMap<EntryId, Stamp>>,
}

/// What a layer's reads have cost so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) looks: AtomicU64,
    pub(super) fetched_spans: AtomicU64,
    pub(super) fetched_bytes: AtomicU64,
    repeated_spans: AtomicU64,
    damaged_spans: AtomicU64,
    unkept_spans: AtomicU64,
}

/// A snapshot of a layer's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct ContentStats {
    /// How often the store was asked whether spans are cached, before they were read or fetched.
    #[serde(skip)]
    pub looks: u64,
    /// Spans fetched after the first pass.
    pub fetched_spans: u64,
    /// Blob bytes asked for on their behalf.
    pub fetched_bytes: u64,
    /// Fetched spans that were cached when they came, as when two processes fetched them at the same time.
    pub repeated_spans: u64,
    /// Spans found damaged in the store and fetched again.
    pub damaged_spans: u64,
    /// Spans that the store could not keep, as when the disk is full.
    pub unkept_spans: u64,
}

/// What a look at the store has found of some spans.
pub(super) enum Looked<'a> {
    /// All of them are cached.
    Cached(Look<'a>),
    /// These are missing.
    Missing(Vec<SpanRange>),
}

/// Spans that were all cached at one moment.
pub(super) struct Look<'a> {
    layer: &'a OpenLayer,
    spans: SpanRange,
    /// The content's stamp at that moment.
    stamp: u64,
    /// The generation of each span, noted before anything is read: bytes that were read while a span was absent may be
    /// followed by a writing that is verified as well.
    generations: Vec<u8>,
    /// Those that have to be compared with their digests.
    unverified: Vec<SpanId>,
}

/// What came of reading cached spans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Cached {
    /// All bytes, as they were verified.
    Bytes,
    /// These spans are missing after all.
    Missing(Vec<SpanRange>),
}

/// Which spans a read believes without comparing them itself.
///
/// A read that meets a change begins anew and believes nothing. One that meets another change then is tried once more,
/// and after that its spans count as missing: what is fetched need not be read from the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trust {
    /// Those that were verified.
    Verified,
    /// None.
    Compared,
    /// None, for the last time.
    ComparedAgain,
}

/// What came of one attempt to read cached spans.
enum Attempt {
    Bytes,
    /// These are damaged, or were evicted meanwhile.
    Missing(Vec<SpanRange>),
    /// A span was evicted, or written anew, while it was read.
    Changed,
    Unreadable(StoreError),
}

impl Trust {
    /// How to read again after a change.
    fn after_change(self) -> Option<Self> {
        match self {
            Self::Verified => Some(Self::Compared),
            Self::Compared => Some(Self::ComparedAgain),
            Self::ComparedAgain => None,
        }
    }
}

impl OpenLayer {
    /// What `store` has of the layer with this index.
    pub(super) fn new(index: Arc<LayerIndex>, store: &Arc<Store>) -> Self {
        let spans = index.span_count();
        let content = store.content_when_wanted(name_of(&index), index.proof().decoded_size, spans);
        Self {
            index,
            content,
            store: Arc::clone(store),
            verified: (0..spans).map(|_| AtomicU8::new(0)).collect(),
            stamp: AtomicU64::new(0),
            in_flight: InFlight::default(),
            counters: Counters::default(),
            evict_cursor: AtomicU32::new(0),
            passthrough_copies: Mutex::default(),
        }
    }

    /// The layer's own index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        &self.index
    }

    /// Whether the cache may keep all of the layer without giving most of the rest away.
    pub(super) fn has_room_for_all(&self) -> bool {
        self.store.limit().is_none_or(|limit| self.index.proof().decoded_size <= limit / 2)
    }

    /// What reads have cost so far.
    pub fn stats(&self) -> ContentStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ContentStats {
            looks: read(&self.counters.looks),
            fetched_spans: read(&self.counters.fetched_spans),
            fetched_bytes: read(&self.counters.fetched_bytes),
            repeated_spans: read(&self.counters.repeated_spans),
            damaged_spans: read(&self.counters.damaged_spans),
            unkept_spans: read(&self.counters.unkept_spans),
        }
    }

    /// Whether all of `bytes` is cached, as far as the presence map says.
    pub fn has(&self, bytes: Range<DecodedOffset>) -> bool {
        bytes.is_empty() || self.index.spans_of(bytes).is_ok_and(|spans| self.content.has_all(spans))
    }

    /// Whether a span is neither cached nor in flight.
    pub(super) fn is_missing(&self, span: SpanId) -> bool {
        self.content.generation(span).is_none() && !self.in_flight.has(span)
    }

    /// The spans that hold `bytes`, which are not empty.
    pub(super) fn spans_of(&self, bytes: Range<DecodedOffset>) -> Result<SpanRange, ReadError> {
        self.index.spans_of(bytes).map_err(|cause| self.index_error(cause))
    }

    pub(super) fn span(&self, span: SpanId) -> Result<Span, ReadError> {
        self.index.span(span).map_err(|cause| self.index_error(cause))
    }

    /// The bytes of the blob that hold some spans.
    pub(super) fn blob_bytes(&self, spans: SpanRange) -> Result<u64, ReadError> {
        self.index.blob_bytes(spans).map_err(|cause| self.index_error(cause))
    }

    pub(super) fn index_error(&self, cause: IndexError) -> ReadError {
        ReadError::Index { layer: self.blob().clone(), cause: Arc::new(cause) }
    }

    /// The layer's blob.
    pub(super) fn blob(&self) -> &Digest {
        &self.index.proof().blob
    }

    /// Looks whether some spans are cached: the one time that a read asks, before it reads or fetches them.
    pub(super) fn look(&self, spans: SpanRange) -> Looked<'_> {
        self.look_with(spans, Trust::Verified)
    }

    fn look_with(&self, spans: SpanRange, trust: Trust) -> Looked<'_> {
        self.counters.looks.fetch_add(1, Ordering::Relaxed);
        let stamp = self.distrust_if_changed();
        let trusted = |span| if trust == Trust::Verified { self.verified_generation(span) } else { 0 };
        let mut generations: Vec<u8> = spans.iter().map(trusted).collect();
        let mut unverified = Vec::new();
        if generations.contains(&0) {
            let (found, mut missing) = (self.content.generations(spans), Vec::new());
            for ((span, verified), found) in spans.iter().zip(&mut generations).zip(found) {
                match found.map(Generation::get) {
                    None => missing.push(span),
                    Some(found) if found == *verified => {}
                    Some(found) => {
                        *verified = found;
                        unverified.push(span);
                    }
                }
            }
            if !missing.is_empty() {
                return Looked::Missing(SpanRange::join(missing));
            }
        }
        Looked::Cached(Look { layer: self, spans, stamp, generations, unverified })
    }

    /// Reads decoded bytes, which are not empty, if they are cached. Never waits for the network, and calls
    /// `before_wait` before it waits for the disk or compares very much.
    pub(super) fn read_cached(
        &self,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<Cached, ReadError> {
        match self.look(self.spans_of(from..from + buf.len() as u64)?) {
            Looked::Cached(look) => look.read(from, buf, before_wait),
            Looked::Missing(missing) => Ok(Cached::Missing(missing)),
        }
    }

    /// A span's bytes, if it is cached.
    pub(super) fn cached_span(&self, span: SpanId) -> Option<Bytes> {
        let known = self.index.span(span).ok()?;
        let mut bytes = vec![0; spans::length(&known)];
        let cached = self.read_cached(known.decoded.start, &mut bytes, &mut || ()).ok()?;
        (cached == Cached::Bytes).then(|| bytes.into())
    }

    /// Takes note of what the store, since it had `stamp`, was found to have of a span; whether that is its bytes.
    fn found(&self, span: SpanId, found: Stored, stamp: u64) -> bool {
        match found {
            Stored::Intact(generation) => {
                self.note_verified(span, generation, stamp);
                true
            }
            Stored::Damaged => {
                tracing::warn!(layer = %self.blob(), %span, "a cached span was damaged; it will be fetched again");
                self.counters.damaged_spans.fetch_add(1, Ordering::Relaxed);
                false
            }
            Stored::Absent | Stored::Changing => false,
        }
    }

    /// A span was found right, or made so, while the content had `stamp`.
    fn note_verified(&self, span: SpanId, generation: u8, stamp: u64) {
        let verified = &self.verified[span.index()];
        verified.store(generation, Ordering::SeqCst);
        // If another process has written since, it may have been to these bytes.
        if self.stamp.load(Ordering::SeqCst) != stamp {
            verified.store(0, Ordering::SeqCst);
        }
    }

    /// Forgets what was verified when another process has written to the content since; returns its stamp.
    fn distrust_if_changed(&self) -> u64 {
        let now = self.content.stamp();
        if self.stamp.load(Ordering::SeqCst) != now {
            let forget = || self.verified.iter().for_each(|span| span.store(0, Ordering::SeqCst));
            // First, so that a thread that sees the new stamp sees that nothing is verified; then what was noted
            // meanwhile by threads that have not seen it.
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

    pub(super) fn verified_generation(&self, span: SpanId) -> u8 {
        self.verified[span.index()].load(Ordering::Acquire)
    }

    /// Keeps a span that was fetched and is right, if there is room for it.
    pub(super) fn keep(&self, span: SpanId, known: &Span, bytes: &[u8]) {
        if self.content.generation(span).is_some() {
            self.counters.repeated_spans.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let kept = |generation: Generation, before, after| {
            self.own_change(before, after);
            self.note_verified(span, generation.get(), after);
        };
        match self.content.fill(span, known.decoded.start, bytes, kept) {
            Ok(()) => self.make_room(bytes.len() as u64),
            Err(error) => {
                self.counters.unkept_spans.fetch_add(1, Ordering::Relaxed);
                self.store.cannot_keep("what was fetched", &error);
            }
        }
    }

    /// Whether the cache has had to evict spans of this layer, or could not keep one: what is fetched before it is read
    /// would push out what is.
    pub(super) fn is_crowded(&self) -> bool {
        self.evict_cursor.load(Ordering::Relaxed) > 0 || self.counters.unkept_spans.load(Ordering::Relaxed) > 0
    }

    /// Keeps the cache within its limit after `bytes` were kept.
    fn make_room(&self, bytes: u64) {
        if let Some(over) = self.content.too_much_in_memory() {
            return self.evict_spans(over);
        }
        if self.store.should_look(bytes) {
            self.keep_within_limit();
        }
    }

    /// Evicts what the cache has beyond its limit: of layers that are not in use, and then of this one.
    pub fn keep_within_limit(&self) {
        match self.store.make_room(0) {
            Ok(0) => {}
            // Copies of what spans hold go before these.
            Ok(over) => self.evict_spans(over.saturating_sub(self.store.drop_passthrough_copies(self.blob()))),
            Err(error) => tracing::warn!(%error, "cannot tell how full the cache is"),
        }
    }

    /// Evicts spans, one after the other, until `over` bytes are free or all of them were tried.
    fn evict_spans(&self, over: u64) {
        let mut freed = 0;
        for _ in 0..self.content.spans() {
            if freed >= over {
                return;
            }
            let span = SpanId(self.evict_cursor.fetch_add(1, Ordering::Relaxed) % self.content.spans());
            let Ok(known) = self.index.span(span) else { continue };
            // One that is absent may still take room, if the process that evicted it died in between.
            if self.content.generation(span).is_none() && !self.content.takes_room(&known.decoded) {
                continue;
            }
            // A block that holds the end of another span as well stays.
            let taken = self.content.disk_bytes();
            let evicted = self.content.evict(span, known.decoded, |before, after| {
                // First, as no other process has changed the data: a map with a flipped bit may call the hole present.
                self.verified[span.index()].store(0, Ordering::SeqCst);
                self.own_change(before, after);
            });
            match evicted {
                Ok(()) => freed += taken.saturating_sub(self.content.disk_bytes()),
                Err(error) => return tracing::warn!(%error, "cannot make room in the cache"),
            }
        }
    }
}

impl Look<'_> {
    /// The first of the spans that is not verified yet.
    pub(super) fn first_unverified(&self) -> Option<SpanId> {
        self.unverified.first().copied()
    }

    /// Reads the decoded bytes at `from`, which these spans hold, comparing with their digests those that are not
    /// verified yet.
    pub(super) fn read(
        self,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<Cached, ReadError> {
        let (layer, spans) = (self.layer, self.spans);
        let (mut look, mut trust) = (self, Trust::Verified);
        loop {
            match look.attempt(from, buf, before_wait)? {
                Attempt::Bytes => return Ok(Cached::Bytes),
                Attempt::Missing(missing) => return Ok(Cached::Missing(missing)),
                Attempt::Changed => {}
                // Compared anew, what cannot be read is found damaged, and what is fetched takes its place.
                Attempt::Unreadable(error) => {
                    tracing::warn!(layer = %layer.blob(), %error, "cannot read the cache; fetching instead");
                }
            }
            spans.iter().for_each(|span| layer.verified[span.index()].store(0, Ordering::Release));
            let Some(next) = trust.after_change() else { return Ok(Cached::Missing(vec![spans])) };
            trust = next;
            look = match layer.look_with(spans, trust) {
                Looked::Cached(look) => look,
                Looked::Missing(missing) => return Ok(Cached::Missing(missing)),
            };
        }
    }

    fn attempt(
        &self,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<Attempt, ReadError> {
        let (layer, content) = (self.layer, &self.layer.content);
        let end = from + buf.len() as u64;
        let whole = |known: &Span| from <= known.decoded.start && known.decoded.end <= end;
        let unverified = self.unverified.iter().map(|span| Ok((*span, layer.span(*span)?)));
        let unverified = unverified.collect::<Result<Vec<_>, ReadError>>()?;
        let compared = unverified.len() == self.generations.len();
        if unverified.iter().map(|(_, known)| spans::length(known)).sum::<usize>() > LONG_CHECK {
            before_wait();
        }
        // Spans that are read in part are read again to be checked: if there is nothing else, not before that.
        let in_parts = compared && !unverified.iter().any(|(_, known)| whole(known));
        let read = if in_parts { Ok(()) } else { content.read_telling(from, buf, before_wait) };
        let mut missing = Vec::new();
        for (span, known) in unverified {
            let found = if read.is_ok() && whole(&known) {
                let place = (known.decoded.start - from) as usize..(known.decoded.end - from) as usize;
                spans::judge(content, span, &known, self.generation(span), &buf[place])
            } else {
                spans::check(content, &known, span, before_wait, |bytes| {
                    let part = known.decoded.start.max(from)..known.decoded.end.min(end);
                    let place = (part.start - from) as usize..(part.end - from) as usize;
                    let skip = (part.start - known.decoded.start) as usize;
                    buf[place.clone()].copy_from_slice(&bytes[skip..skip + place.len()]);
                })
            };
            if !layer.found(span, found, self.stamp) {
                missing.push(span);
            }
        }
        if !missing.is_empty() {
            return Ok(Attempt::Missing(SpanRange::join(missing)));
        }
        if let Err(error) = read {
            return Ok(Attempt::Unreadable(error));
        }
        // What was not compared just now must have been read while no process wrote.
        let still =
            content.still(self.spans, |span| self.generation(span)) && (compared || content.stamp() == self.stamp);
        Ok(if still { Attempt::Bytes } else { Attempt::Changed })
    }

    fn generation(&self, span: SpanId) -> u8 {
        self.generations[(span.0 - self.spans.start.0) as usize]
    }
}

/// What the store knows a layer by.
pub(super) fn name_of(index: &LayerIndex) -> LayerName<'_> {
    let proof = index.proof();
    LayerName { blob: &proof.blob, diff_id: &proof.diff_id }
}

/// Comparing so many bytes takes longer than waking another thread and going on there.
const LONG_CHECK: usize = 1 << 20;
