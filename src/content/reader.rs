//! Reading: the decoded bytes of one layer, as one mount reads them.
//!
//! A read looks at the store once. Cached bytes are copied at once. Otherwise the look has found the missing spans and
//! the read continues as one that may wait: it requests the missing spans, copies the cached spans meanwhile, then
//! copies the requested spans as they arrive.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::activity::Cause;
use super::error::ReadError;
use super::fetch::{Fetcher, Join};
use super::in_flight::Arrival;
use super::open_layer::{Cached, ContentStats, Look, Looked, OpenLayer};
use super::schedule::Scheduler;
use super::scope::MountScope;
use super::windows::WindowSource;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::layer::LayerIndex;
use crate::offsets::DecodedOffset;
use crate::predict::{Lesson, Piece, PlaceInFile, Priority, ProfileRun};
use crate::source::BlobSource;
use crate::span::{SpanId, SpanRange};

/// The decoded bytes of one layer whose index is known, as one mount reads them.
pub struct LayerReader {
    /// State shared by all mounts.
    pub(super) layer: Arc<OpenLayer>,
    blob: Descriptor,
    /// Fetches for this mount.
    pub(super) fetcher: Arc<Fetcher>,
    /// Prefetches for this mount.
    pub(super) scheduler: Scheduler,
    /// End of the range for which the disk was last advised to read ahead.
    advised_to: AtomicU64,
}

/// Result of a read that may not wait for the network.
#[derive(Debug)]
pub enum Local {
    /// All bytes were read.
    Read,
    /// Some bytes must be fetched.
    Missing(Missing),
}

/// A read that has to wait, with the result of its look at the store.
#[derive(Debug)]
pub struct Missing {
    piece: Piece,
    /// The spans that are not cached.
    runs: Vec<SpanRange>,
}

impl LayerReader {
    /// Reads the cached content of a layer, and fetches the missing rest from `source` on demand; `windows` has the windows
    /// of an index without them.
    pub fn new(
        layer: Arc<OpenLayer>,
        blob: Descriptor,
        (source, windows): (Arc<dyn BlobSource>, Option<WindowSource>),
        scope: Arc<MountScope>,
    ) -> Self {
        let fetcher = Arc::new(Fetcher::new(Arc::clone(&layer), blob.clone(), (source, windows), scope));
        let scheduler = Scheduler::new(Arc::clone(&fetcher));
        Self { layer, blob, fetcher, scheduler, advised_to: AtomicU64::new(0) }
    }

    /// The layer's blob.
    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }

    /// The layer's index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        self.layer.index()
    }

    /// Whether another index has to take the place of this one.
    pub fn is_to_be_replaced(&self) -> bool {
        self.index().is_damaged() || self.layer.is_refuted()
    }

    /// The state of the layer that all mounts of the process share.
    pub fn layer(&self) -> &Arc<OpenLayer> {
        &self.layer
    }

    /// The error of the last failed read, if the source has delivered nothing since.
    pub fn last_error(&self) -> Option<ReadError> {
        self.fetcher.last_error()
    }

    /// Records that the source is not reachable, as a reader was told.
    pub fn set_outage(&self, why: &ReadError) {
        self.fetcher.set_outage(why);
    }

    /// Counters of reads so far.
    pub fn stats(&self) -> ContentStats {
        self.layer.stats()
    }

    /// Reads decoded bytes if they are cached. Never waits for the network; calls `before_wait` before it waits for the
    /// disk or runs a long check.
    ///
    /// # Errors
    /// [`ReadError::Index`]
    pub fn read_now(
        &self,
        from: DecodedOffset,
        buf: &mut [u8],
        place: PlaceInFile,
        before_wait: &mut dyn FnMut(),
    ) -> Result<Local, ReadError> {
        if buf.is_empty() {
            return Ok(Local::Read);
        }
        let bytes = from..from + buf.len() as u64;
        let piece = Piece { spans: self.layer.spans_of(bytes.clone())?, bytes, place };
        let found = match self.layer.look(piece.spans) {
            Looked::Missing(runs) => Cached::Missing(runs),
            Looked::Cached(look) => {
                self.advise_disk(&look, &piece)?;
                look.read(from, buf, before_wait)?
            }
        };
        match found {
            Cached::Missing(runs) => Ok(Local::Missing(Missing { piece, runs })),
            Cached::Bytes => {
                self.fetcher.activity.read(buf.len());
                self.scheduler.read(&piece);
                Ok(Local::Read)
            }
        }
    }

    /// Continues a read that has to wait; `buf` has the same length as in [`LayerReader::read_now`].
    ///
    /// Copies from the fetched bytes, not from the store, so a full disk or an eviction in between does no harm.
    ///
    /// # Errors
    /// [`ReadError`]
    pub async fn read_missing(&self, missing: Missing, buf: &mut [u8]) -> Result<(), ReadError> {
        let activity = &self.fetcher.activity;
        activity.read(buf.len());
        let _recorded = activity.waits(missing.piece.place.entry);
        let read = self.fetch_missing(missing, buf).await;
        if read.is_err() {
            activity.failed();
        }
        read
    }

    async fn fetch_missing(&self, missing: Missing, buf: &mut [u8]) -> Result<(), ReadError> {
        let Missing { piece, runs } = missing;
        let cause = Cause::ahead(piece.place.entry);
        let _waiting = self.fetcher.scope.budget().wait();
        let later = self.scheduler.read_missing(&piece);
        let (mut arriving, mut unexpected) = (HashMap::new(), Vec::new());
        for run in &runs {
            let mut along = None;
            if !self.scheduler.is_expected(*run) {
                along = self.scheduler.missed(&piece, *run);
                unexpected.push(*run);
            }
            arriving.extend(self.fetcher.start(*run, along, Join::Any, cause)?);
        }
        self.scheduler.run(later, cause);
        if piece.place.before == 0 {
            self.scheduler.opened(&piece);
        }
        let unread = self.collect(&piece, piece.spans.iter(), arriving, buf).await?;
        self.read_anew(&piece, unread, buf).await?;
        // Last, so that this prefetch does not compete with the reader's own requests for the link.
        unexpected.iter().for_each(|run| self.scheduler.answered(&piece, *run));
        Ok(())
    }

    /// Fetches, for this mount alone, the spans that were evicted since the look, cannot be read from the store, or
    /// were not delivered by another mount or process.
    async fn read_anew(&self, piece: &Piece, spans: Vec<SpanId>, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut arriving = HashMap::new();
        for run in SpanRange::join(spans.iter().copied()) {
            arriving.extend(self.fetcher.start(run, None, Join::Own, Cause::ahead(piece.place.entry))?);
        }
        let unread = self.collect(piece, spans.into_iter(), arriving, buf).await?;
        if unread.is_empty() { Ok(()) } else { Err(self.fetcher.ended()) }
    }

    /// Copies spans to their places in `buf`: the cached ones first, then those in `arriving`. Returns the spans that
    /// are neither, in order.
    async fn collect(
        &self,
        piece: &Piece,
        spans: impl Iterator<Item = SpanId>,
        mut arriving: HashMap<SpanId, Arrival>,
        buf: &mut [u8],
    ) -> Result<Vec<SpanId>, ReadError> {
        let (mut unread, mut waited) = (Vec::new(), Vec::new());
        for span in spans {
            match arriving.remove(&span) {
                Some(arrival) => waited.push((span, arrival)),
                None => {
                    let (from, place, _) = self.part_of(piece, span)?;
                    if self.layer.read_cached(from, &mut buf[place], &mut || ())? != Cached::Bytes {
                        unread.push(span);
                    }
                }
            }
        }
        for (span, arrival) in waited {
            let Some(bytes) = arrival.outcome().await else {
                unread.push(span);
                continue;
            };
            let (_, place, skip) = self.part_of(piece, span)?;
            let length = place.len();
            buf[place].copy_from_slice(&bytes?[skip..skip + length]);
        }
        unread.sort_unstable();
        Ok(unread)
    }

    /// The part of `piece` that lies in a span: its start in the layer, its place in the buffer, and the number of
    /// bytes of the span before it.
    fn part_of(&self, piece: &Piece, span: SpanId) -> Result<(DecodedOffset, Range<usize>, usize), ReadError> {
        let known = self.layer.span(span)?.decoded;
        let part = known.start.max(piece.bytes.start)..known.end.min(piece.bytes.end);
        let place = (part.start - piece.bytes.start) as usize..(part.end - piece.bytes.start) as usize;
        Ok((part.start, place, (part.start - known.start) as usize))
    }

    /// Starts reading a large file from the disk: from the first unverified span of the piece to [`DISK_AHEAD`] behind
    /// the piece, up to the end of the file or the first missing span. The kernel's own readahead would read past the
    /// end of the file, into the next one in the content file.
    fn advise_disk(&self, look: &Look<'_>, piece: &Piece) -> Result<(), ReadError> {
        let PlaceInFile { before, behind, .. } = piece.place;
        let Some(first) = look.first_unverified() else { return Ok(()) };
        if before + piece.length() + behind < LARGE_FILE {
            return Ok(());
        }
        let (start, end) = (self.layer.span(first)?.decoded.start, piece.bytes.end + behind.min(DISK_AHEAD));
        let content = &self.layer.content;
        let mut last = start;
        for next in SpanRange::new(first, SpanId(content.spans())).iter() {
            if last >= end || content.generation(next).is_none() {
                break;
            }
            last = self.layer.span(next)?.decoded.end;
        }
        let advised = DecodedOffset(self.advised_to.swap(last.0, Ordering::Relaxed));
        let from = if (start..=last).contains(&advised) { advised } else { start };
        if last > from {
            content.read_ahead(from..last);
        }
        Ok(())
    }

    /// Reads decoded bytes for prediction, without counting the read as demand; `false` if some are missing.
    ///
    /// # Errors
    /// [`ReadError::Index`]
    pub fn peek(&self, from: DecodedOffset, buf: &mut [u8]) -> Result<bool, ReadError> {
        Ok(buf.is_empty() || self.layer.read_cached(from, buf, &mut || ())? == Cached::Bytes)
    }

    /// Whether speculative fetches are allowed in this layer.
    pub fn may_speculate(&self) -> bool {
        self.scheduler.may_speculate()
    }

    /// Whether these decoded bytes fit into one speculative request.
    pub fn is_one_request(&self, bytes: Range<DecodedOffset>) -> bool {
        self.scheduler.is_one_request(bytes)
    }

    /// Fetches the missing part of some decoded bytes speculatively, once the budget allows it; returns when the bytes
    /// are cached or the fetch has failed.
    pub async fn speculate(&self, bytes: Range<DecodedOffset>, priority: Priority, cause: Cause) {
        self.scheduler.speculate(bytes, priority, cause).await;
    }

    /// When spans were first read during start-up, in milliseconds since the mount.
    pub(super) fn times(&self) -> Vec<u32> {
        self.scheduler.demand.times()
    }

    /// The reads of `image` so far, as a run for its profile; see [`Demand::run`](super::demand::Demand::run).
    pub(super) fn run(
        &self,
        image: &Digest,
        known: Option<ProfileRun>,
        lesson: (Lesson, bool),
    ) -> Result<Option<ProfileRun>, ReadError> {
        let run = self.scheduler.demand.run(self.index(), image, known, lesson);
        run.map_err(|cause| self.layer.index_error(cause))
    }
}

/// Smaller files are left to the kernel's readahead, as readers often continue with the next file of the tar; in bytes.
const LARGE_FILE: u64 = 1 << 20;
/// How far ahead of a reader of a large file the disk is kept busy, in bytes.
const DISK_AHEAD: u64 = 4 << 20;
