//! One layer with a known index, as shared by the mounts of a process: its cached spans, and which of them are
//! verified.
//!
//! Fetching missing spans is per mount, in [`super::fetch`].
//!
//! A warm read is one `preadv` from the layer's content file. The first access of the process compares the span with
//! its digest; later reads compare blocks with the checksums recorded then ([`BlockSums`]). So no unverified byte is
//! served, even if other processes change the file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::block_sums::{self, BLOCK, BlockSums};
use super::error::ReadError;
use super::in_flight::InFlight;
use super::spans::{self, Stored};
use super::windows::{LayerWindows, WindowSource, WindowsError};
use crate::codec::{StartKind, Window};
use crate::digest::Digest;
use crate::layer::{EntryId, IndexError, LayerIndex, Proof, Span, Stream};
use crate::offsets::DecodedOffset;
use crate::predict::Layout as _;
use crate::span::{SpanId, SpanRange};
use crate::store::{Content, Generation, IndexName, LayerName, MapSize, Stamp, Store, StoreError};

/// The state of a layer with a known index, shared by the mounts of a process.
pub struct OpenLayer {
    pub(super) index: Arc<LayerIndex>,
    pub(super) content: Content,
    pub(super) store: Arc<Store>,
    /// The spans that this process has verified.
    verified: BlockSums,
    pub(super) in_flight: InFlight,
    pub(super) counters: Counters,
    /// If they are in a blob of their own.
    windows: Option<LayerWindows>,
    /// The span at which the search for something to evict continues.
    evict_cursor: AtomicU32,
    /// Trusted passthrough copies, each with the stamp of the file when it was compared.
    pub(super) passthrough_copies: Mutex<HashMap<EntryId, Stamp>>,
    /// The layer's bytes are not those that its index says, or windows cannot be had.
    refuted: OnceLock<GivenUp>,
    /// The layer's tar is what its index says.
    confirmed: AtomicBool,
}

/// Why an index is not used any more.
struct GivenUp {
    why: Box<str>,
    /// The layer has other bytes than it says.
    is_wrong: bool,
}

/// Counters of a layer's reads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) looks: AtomicU64,
    pub(super) fetched_spans: AtomicU64,
    pub(super) fetched_bytes: AtomicU64,
    window_bytes: AtomicU64,
    repeated_spans: AtomicU64,
    damaged_spans: AtomicU64,
    unkept_spans: AtomicU64,
}

/// A snapshot of a layer's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct ContentStats {
    /// Looks at the store, one before each read or fetch.
    #[serde(skip)]
    pub looks: u64,
    /// Spans fetched after the first pass.
    pub fetched_spans: u64,
    /// Blob bytes requested for them.
    pub fetched_bytes: u64,
    /// Bytes of decoder windows that were fetched for them, if these are in a blob of their own.
    #[serde(default, skip_serializing_if = "is_none")]
    pub window_bytes: u64,
    /// Fetched spans that were already cached on arrival, as when two processes fetch the same span.
    pub repeated_spans: u64,
    /// Spans found damaged in the store and fetched again.
    pub damaged_spans: u64,
    /// Spans that the store could not keep, as on a full disk.
    pub unkept_spans: u64,
}

/// Result of a look at the store.
pub(super) enum Looked<'a> {
    /// All spans are cached.
    Cached(Look<'a>),
    /// These spans are missing.
    Missing(Vec<SpanRange>),
}

/// Spans that were all cached at the time of the look, according to the presence map.
pub(super) struct Look<'a> {
    layer: &'a OpenLayer,
    spans: SpanRange,
    /// Spans to be compared with their digests, each with its generation, noted before the read.
    unverified: Vec<(SpanId, u8)>,
}

/// Result of reading cached spans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Cached {
    /// All bytes were read and verified.
    Bytes,
    /// These spans turned out to be missing.
    Missing(Vec<SpanRange>),
}

impl OpenLayer {
    /// The state that `store` has of the layer with this index.
    pub(super) fn new(index: Arc<LayerIndex>, store: &Arc<Store>) -> Self {
        let (spans, confirmed) = (index.span_count(), index.proof().is_confirmed());
        let content = store.content_on_demand(name_of(&index), index.layer().decoded_size, map_of(&index));
        // If that is damaged, the index says so wherever a window is asked for.
        let windows = LayerWindows::of(&index, store).ok().flatten();
        Self {
            index,
            content,
            store: Arc::clone(store),
            verified: BlockSums::new(spans),
            in_flight: InFlight::default(),
            counters: Counters::default(),
            windows,
            evict_cursor: AtomicU32::new(0),
            passthrough_copies: Mutex::default(),
            refuted: OnceLock::new(),
            confirmed: AtomicBool::new(confirmed),
        }
    }

    /// Whether the index, made elsewhere or of a table of contents, has turned out to be wrong about the layer, or cannot be
    /// used for another reason.
    pub fn is_refuted(&self) -> bool {
        self.refuted().is_some()
    }

    /// How that was found.
    pub fn refuted(&self) -> Option<&str> {
        self.refuted.get().map(|given_up| &*given_up.why)
    }

    /// Whether it was wrong about the layer, so that nothing of it is believed any more.
    pub fn is_wrong(&self) -> bool {
        self.refuted.get().is_some_and(|given_up| given_up.is_wrong)
    }

    /// The layer's bytes are not those that the index says, for a reason `why`. If it was made elsewhere, or of a table of
    /// contents, it is not used any more, and `true` returned.
    pub(super) fn refute(&self, why: &(dyn std::error::Error + 'static)) -> bool {
        let given_up = GivenUp { why: format!("it is wrong about the layer: {why}").into(), is_wrong: true };
        self.give_up(given_up, || {
            let (layer, format, error) = (self.blob(), self.format(), why);
            // The reader gets its bytes, so nothing else reports it.
            tracing::warn!(
                %layer, format, error,
                "an index that was not made here is wrong about its layer; all of the layer is read instead"
            );
            self.drop_stored();
        })
    }

    /// Windows of the index cannot be had, for a reason `why`. Nothing more is fetched by it, and `true` returned.
    pub(super) fn lacks_windows(&self, why: &(dyn std::error::Error + 'static)) -> bool {
        let given_up = GivenUp { why: format!("its windows cannot be fetched: {why}").into(), is_wrong: false };
        self.give_up(given_up, || {
            let (layer, format, error) = (self.blob(), self.format(), why);
            tracing::warn!(
                %layer, format, error,
                "windows of an index that was not made here cannot be fetched; all of the layer is read instead"
            );
        })
    }

    fn format(&self) -> &'static str {
        match self.index.proof() {
            Proof::Vouched { format, .. } => format.name(),
            Proof::Built | Proof::Unproven => "own index",
        }
    }

    fn give_up(&self, given_up: GivenUp, tell: impl FnOnce()) -> bool {
        let is_of_others = matches!(self.index.proof(), Proof::Vouched { .. });
        if is_of_others && self.refuted.set(given_up).is_ok() {
            tell();
        }
        is_of_others
    }

    /// Removes the index from the cache, so that no other process uses it.
    fn drop_stored(&self) {
        let layer = self.blob();
        let name = match self.index.stream() {
            Stream::Blob => IndexName::of_file(layer),
            Stream::Tar | Stream::Bodies => layer.into(),
        };
        for name in name.alternatives() {
            let stored = self.store.index(name).and_then(|file| LayerIndex::open(file).ok());
            if stored.is_some_and(|stored| stored.proof() == self.index.proof()) {
                self.store.drop_index(name);
            }
        }
    }

    /// Whether the layer's tar was compared with the index: in a first pass, or since.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// The layer's tar is what its index says.
    pub(super) fn set_confirmed(&self) {
        self.confirmed.store(true, Ordering::Relaxed);
    }

    /// The layer's own index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        &self.index
    }

    /// Whether the whole layer fits into half of the cache's limit.
    pub(super) fn has_room_for_all(&self) -> bool {
        self.store.limit().is_none_or(|limit| self.index.layer().decoded_size <= limit / 2)
    }

    /// Counters of reads so far.
    pub fn stats(&self) -> ContentStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ContentStats {
            looks: read(&self.counters.looks),
            fetched_spans: read(&self.counters.fetched_spans),
            fetched_bytes: read(&self.counters.fetched_bytes),
            window_bytes: read(&self.counters.window_bytes),
            repeated_spans: read(&self.counters.repeated_spans),
            damaged_spans: read(&self.counters.damaged_spans),
            unkept_spans: read(&self.counters.unkept_spans),
        }
    }

    /// Bytes of the decoded stream in the cache.
    pub fn cached_bytes(&self) -> u64 {
        self.content.disk_bytes()
    }

    /// Whether the presence map has all of `bytes`.
    pub fn has(&self, bytes: Range<DecodedOffset>) -> bool {
        bytes.is_empty() || self.index.spans_of(bytes).is_ok_and(|spans| self.content.has_all(spans))
    }

    /// Whether a span is neither cached nor in flight.
    pub(super) fn is_missing(&self, span: SpanId) -> bool {
        self.content.generation(span).is_none() && !self.in_flight.has(span)
    }

    /// The spans that hold `bytes`; `bytes` is not empty.
    pub(super) fn spans_of(&self, bytes: Range<DecodedOffset>) -> Result<SpanRange, ReadError> {
        self.index.spans_of(bytes).map_err(|cause| self.index_error(cause))
    }

    pub(super) fn span(&self, span: SpanId) -> Result<Span, ReadError> {
        self.index.span(span).map_err(|cause| self.index_error(cause))
    }

    /// A span and its window.
    pub(super) fn start_of(&self, span: SpanId) -> Result<(Span, Window), ReadError> {
        let known = self.span(span)?;
        let window = match &self.windows {
            // It was fetched with the request for the span.
            Some(windows) => {
                let blob = || WindowsError::Others { blob: self.blob().clone() };
                let window = windows.get(span).map_err(|cause| self.index_error(cause))?;
                window.ok_or_else(|| self.windows_error(blob()))?
            }
            None => self.index.window(span).map_err(|cause| self.index_error(cause))?.unwrap_or_default().into(),
        };
        let window = Window::from_bytes(known.kind, &window)
            .map_err(|_| self.index_error(IndexError::Malformed { what: "a window does not unpack" }))?;
        Ok((known, window))
    }

    /// Fetches what decoding of `spans`, from the first one on, needs of windows that are in a blob of their own.
    pub(super) async fn fetch_windows(&self, spans: SpanRange, source: Option<&WindowSource>) -> Result<(), ReadError> {
        if self.windows.is_none() {
            return Ok(());
        }
        let mut needed = vec![spans.start];
        // Decoding begins anew at each block of a zstd frame.
        if self.span(spans.start)?.kind == StartKind::Block {
            for next in SpanRange::new(spans.start.next(), spans.end).iter() {
                needed.extend((self.span(next)?.kind == StartKind::Block).then_some(next));
            }
        }
        self.fetch_windows_of(&needed, source, None).await
    }

    /// Fetches the windows of `spans` that are in a blob of their own and not here; see [`LayerWindows::fetch`].
    pub(super) async fn fetch_windows_of(
        &self,
        spans: &[SpanId],
        source: Option<&WindowSource>,
        begun: Option<oneshot::Sender<()>>,
    ) -> Result<(), ReadError> {
        let Some(windows) = &self.windows else { return Ok(()) };
        let fetched = windows.fetch(spans, source, begun).await.map_err(|cause| self.windows_error(cause))?;
        self.counters.window_bytes.fetch_add(fetched, Ordering::Relaxed);
        Ok(())
    }

    fn windows_error(&self, cause: WindowsError) -> ReadError {
        match cause {
            WindowsError::Index(cause) => self.index_error(cause),
            cause => ReadError::Windows { layer: self.blob().clone(), cause: Arc::new(cause) },
        }
    }

    /// Number of blob bytes that hold some spans.
    pub(super) fn blob_bytes(&self, spans: SpanRange) -> Result<u64, ReadError> {
        self.index.blob_bytes(spans).map_err(|cause| self.index_error(cause))
    }

    pub(super) fn index_error(&self, cause: IndexError) -> ReadError {
        ReadError::Index { layer: self.blob().clone(), cause: Arc::new(cause) }
    }

    /// The layer's blob.
    pub(super) fn blob(&self) -> &Digest {
        &self.index.layer().blob
    }

    /// Looks up whether spans are cached; each read does so once. Verified spans count as cached until they are read.
    pub(super) fn look(&self, spans: SpanRange) -> Looked<'_> {
        self.counters.looks.fetch_add(1, Ordering::Relaxed);
        let mut unverified = Vec::new();
        if spans.iter().any(|span| self.verified.of(span).is_none()) {
            let (found, mut missing) = (self.content.generations(spans), Vec::new());
            for (span, found) in spans.iter().zip(found) {
                match found.map(Generation::get) {
                    None => missing.push(span),
                    Some(generation) if self.verified.of(span).is_none() => unverified.push((span, generation)),
                    Some(_) => {}
                }
            }
            if !missing.is_empty() {
                return Looked::Missing(SpanRange::join(missing));
            }
        }
        Looked::Cached(Look { layer: self, spans, unverified })
    }

    /// Reads decoded bytes if they are cached; `buf` is not empty. Never waits for the network; calls `before_wait`
    /// before it waits for the disk or runs a long check.
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

    /// Whether a check found the span intact; counts and logs a damaged one.
    fn is_intact(&self, span: SpanId, found: &Stored) -> bool {
        if matches!(found, Stored::Damaged) {
            tracing::warn!(layer = %self.blob(), %span, "a cached span was damaged; it will be fetched again");
            self.counters.damaged_spans.fetch_add(1, Ordering::Relaxed);
        }
        matches!(found, Stored::Intact)
    }

    /// Compares a whole cached span with its digest and copies the part of it that overlaps `buf`, which begins at
    /// `from`; `false` if the span is missing.
    fn copy_compared(
        &self,
        span: SpanId,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<bool, ReadError> {
        let known = self.span(span)?;
        let part = known.decoded.start.max(from)..known.decoded.end.min(from + buf.len() as u64);
        let place = (part.start - from) as usize..(part.end - from) as usize;
        let skip = (part.start - known.decoded.start) as usize;
        let mut compare = || {
            spans::check(&self.content, &known, span, before_wait, |bytes| {
                buf[place.clone()].copy_from_slice(&bytes[skip..skip + place.len()]);
                self.verified.note(span, bytes);
            })
        };
        let mut found = compare();
        for _ in 0..TRIES_WHILE_CHANGING {
            if !matches!(found, Stored::Changing) {
                break;
            }
            found = compare();
        }
        Ok(self.is_intact(span, &found))
    }

    /// Stores a fetched and verified span, if the cache has room.
    pub(super) fn keep(&self, span: SpanId, known: &Span, bytes: &[u8]) {
        if self.content.generation(span).is_some() {
            self.counters.repeated_spans.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.content.fill(span, known.decoded.start, bytes) {
            Ok(()) => {
                self.verified.note(span, bytes);
                self.make_room(bytes.len() as u64);
            }
            Err(error) => {
                self.counters.unkept_spans.fetch_add(1, Ordering::Relaxed);
                self.store.cannot_keep("a fetched span", &error);
            }
        }
    }

    /// Whether this process had to evict spans of this layer or could not keep one: more prefetch would evict what
    /// readers need.
    pub(super) fn is_crowded(&self) -> bool {
        self.evict_cursor.load(Ordering::Relaxed) > 0 || self.counters.unkept_spans.load(Ordering::Relaxed) > 0
    }

    /// Keeps the cache within its limit after `bytes` were added.
    fn make_room(&self, bytes: u64) {
        if let Some(over) = self.content.excess_in_memory() {
            return self.evict_spans(over);
        }
        if self.store.should_check_limit(bytes) {
            self.keep_within_limit();
        }
    }

    /// Evicts what exceeds the cache's limit: unused layers first, then spans of this one.
    pub fn keep_within_limit(&self) {
        match self.store.make_room(0) {
            Ok(0) => {}
            // Passthrough copies duplicate spans, so they are evicted first.
            Ok(over) => self.evict_spans(over.saturating_sub(self.store.drop_passthrough_copies(self.blob()))),
            Err(error) => tracing::warn!(%error, "cannot determine the size of the cache"),
        }
    }

    /// Evicts spans in turn until `over` bytes are freed or each was tried once.
    fn evict_spans(&self, over: u64) {
        let mut freed = 0;
        for _ in 0..self.content.spans() {
            if freed >= over {
                return;
            }
            let span = SpanId(self.evict_cursor.fetch_add(1, Ordering::Relaxed) % self.content.spans());
            let Ok(known) = self.index.span(span) else { continue };
            // An absent span may still use blocks, if the process that evicted it died before it freed them.
            if self.content.generation(span).is_none() && !self.content.takes_room(&known.decoded) {
                continue;
            }
            // A block that also holds the end of another span stays.
            let taken = self.content.disk_bytes();
            match self.content.evict(SpanRange::one(span), known.decoded) {
                Ok(()) => freed += taken.saturating_sub(self.content.disk_bytes()),
                Err(error) => return tracing::warn!(%error, "cannot make room in the cache"),
            }
        }
    }
}

impl Look<'_> {
    /// The first span that is not verified yet.
    pub(super) fn first_unverified(&self) -> Option<SpanId> {
        self.unverified.first().map(|(span, _)| *span)
    }

    /// Reads the decoded bytes at `from` and compares them: unverified spans with their digests, verified ones with
    /// their block checksums.
    pub(super) fn read(
        self,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<Cached, ReadError> {
        let (layer, end) = (self.layer, from + buf.len() as u64);
        let (mut whole, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (span, generation) in &self.unverified {
            let known = layer.span(*span)?;
            bytes += spans::length(&known);
            match from <= known.decoded.start && known.decoded.end <= end {
                true => whole.push((*span, known, *generation)),
                false => parts.push(*span),
            }
        }
        if bytes > LONG_CHECK {
            before_wait();
        }
        let mut missing = Vec::new();
        // Partly needed spans are read and compared as a whole below; skip this read if there are no others.
        if parts.len() < self.spans.count() as usize {
            match self.read_verified(from, buf, before_wait)? {
                Ok(changed) => {
                    for (span, known, generation) in whole {
                        let bytes = &buf[(known.decoded.start - from) as usize..(known.decoded.end - from) as usize];
                        let found = spans::judge(&layer.content, span, &known, generation, bytes);
                        match layer.is_intact(span, &found) {
                            true => layer.verified.note(span, bytes),
                            false => missing.push(span),
                        }
                    }
                    parts.extend(changed);
                }
                // Check spans one by one: unreadable ones are found damaged and fetched again.
                Err(error) => {
                    tracing::warn!(layer = %layer.blob(), %error, "cannot read the cache; fetching instead");
                    parts = self.spans.iter().collect();
                }
            }
        }
        for span in parts {
            if !layer.copy_compared(span, from, buf, before_wait)? {
                missing.push(span);
            }
        }
        missing.sort_unstable();
        Ok(if missing.is_empty() { Cached::Bytes } else { Cached::Missing(SpanRange::join(missing)) })
    }

    /// Fills `buf` and returns the verified spans whose bytes have changed. The first and the last block are read as a
    /// whole for the comparison.
    fn read_verified(
        &self,
        from: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<Result<Vec<SpanId>, StoreError>, ReadError> {
        let (layer, end) = (self.layer, from + buf.len() as u64);
        let is_verified = |span| layer.verified.of(span).is_some();
        let (first, last) = (self.spans.start, self.spans.end.back(1));
        let before = if is_verified(first) { (from - layer.span(first)?.decoded.start) as usize % BLOCK } else { 0 };
        let behind = if is_verified(last) {
            let known = layer.span(last)?.decoded;
            (end - known.start).next_multiple_of(BLOCK as u64).min(known.end - known.start) - (end - known.start)
        } else {
            0
        } as usize;
        EDGES.with_borrow_mut(|[head, tail, joined]| {
            let (head, tail) = (&mut head[..before], &mut tail[..behind]);
            let start = DecodedOffset(from.0 - before as u64);
            if let Err(error) = layer.content.read_parts(start, [&mut *head, &mut *buf, &mut *tail], before_wait) {
                return Ok(Err(error));
            }
            let mut changed = Vec::new();
            for span in self.spans.iter() {
                let Some(sums) = layer.verified.of(span) else { continue };
                let known = layer.span(span)?.decoded;
                let into = (from.max(known.start) - known.start) as usize / BLOCK;
                let up_to = ((end.min(known.end) - known.start) as usize).div_ceil(BLOCK);
                let intact = (into..up_to).all(|number| {
                    let block = known.start + (number * BLOCK) as u64;
                    let block = block..(block + BLOCK as u64).min(known.end);
                    if from <= block.start && block.end <= end {
                        let place = (block.start - from) as usize..(block.end - from) as usize;
                        return block_sums::is_intact(&buf[place], sums[number]);
                    }
                    // At an edge of the piece, a part of the block is in `head` or `tail`.
                    let length = (block.end - block.start) as usize;
                    let (mut done, parts) = (0, [(start, &*head), (from, &*buf), (end, &*tail)]);
                    for (at, part) in parts {
                        let shared = block.start.max(at)..block.end.min(at + part.len() as u64);
                        if shared.start < shared.end {
                            let part = &part[(shared.start - at) as usize..(shared.end - at) as usize];
                            joined[done..done + part.len()].copy_from_slice(part);
                            done += part.len();
                        }
                    }
                    done == length && block_sums::is_intact(&joined[..length], sums[number])
                });
                if !intact {
                    changed.push(span);
                }
            }
            Ok(Ok(changed))
        })
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

/// The layer's name in the store.
pub(super) fn name_of(index: &LayerIndex) -> LayerName<'_> {
    let layer = index.layer();
    LayerName { blob: &layer.blob, diff_id: index.stream_name() }
}

/// The layer's name for profiles, which hold offsets in its decoded stream.
pub(super) fn profile_name_of(index: &LayerIndex) -> LayerName<'_> {
    let layer = index.layer();
    let diff_id = if index.stream() == Stream::Tar { &layer.diff_id } else { index.stream_name() };
    LayerName { blob: &layer.blob, diff_id }
}

/// What the store's map of the layer's content has.
pub(super) fn map_of(index: &LayerIndex) -> MapSize {
    MapSize { spans: index.span_count(), digests: index.checks_blob() }
}

/// Comparing more bytes than this takes longer than waking another thread to receive requests.
const LONG_CHECK: usize = 1 << 20;
/// Tries to compare a span that was written or evicted during the read.
const TRIES_WHILE_CHANGING: usize = 2;

thread_local! {
    /// Buffers of a thread for the bytes before and after a piece and for one joined block, allocated once.
    static EDGES: RefCell<[Box<[u8]>; 3]> = RefCell::new([(); 3].map(|()| vec![0; BLOCK].into()));
}
