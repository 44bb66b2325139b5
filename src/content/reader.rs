//! Reading: the decoded bytes of one layer, as one mount reads them.
//!
//! A read looks at the store once. What is cached is copied at once; else the look says which spans are missing, and
//! the read continues from there, where it may wait: the missing spans are requested first, then what is cached of the
//! piece is copied, then what was requested, as it comes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ReadError;
use super::fetch::{Fetcher, Join};
use super::in_flight::Arrival;
use super::open_layer::{Cached, ContentStats, Look, Looked, OpenLayer};
use super::schedule::Scheduler;
use super::scope::MountScope;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::layer::LayerIndex;
use crate::offsets::DecodedOffset;
use crate::predict::{Piece, PlaceInFile, Priority, ProfileRun};
use crate::source::BlobSource;
use crate::span::{SpanId, SpanRange};

/// The decoded bytes of one layer whose index is known, as one mount reads them.
pub struct LayerReader {
    /// What mounts share.
    pub(super) layer: Arc<OpenLayer>,
    blob: Descriptor,
    /// How this mount fetches.
    pub(super) fetcher: Arc<Fetcher>,
    /// What it fetches ahead of its readers.
    pub(super) scheduler: Scheduler,
    /// Up to where the disk was advised last what is read next.
    advised_to: AtomicU64,
}

/// What a read came to that may not wait.
#[derive(Debug)]
pub enum Local {
    /// All bytes are read.
    Read,
    /// Some have to be fetched.
    Missing(Missing),
}

/// A read that has to wait, and what its look at the store has found.
#[derive(Debug)]
pub struct Missing {
    piece: Piece,
    /// The spans that are not cached.
    runs: Vec<SpanRange>,
}

impl LayerReader {
    /// The content of a layer, as far as it is cached; the rest comes from `source` when it is read.
    pub fn new(layer: Arc<OpenLayer>, blob: Descriptor, source: Arc<dyn BlobSource>, scope: Arc<MountScope>) -> Self {
        let fetcher = Arc::new(Fetcher::new(Arc::clone(&layer), blob.clone(), source, scope));
        let scheduler = Scheduler::new(Arc::clone(&fetcher));
        Self { layer, blob, fetcher, scheduler, advised_to: AtomicU64::new(0) }
    }

    /// The blob this is the content of.
    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }

    /// The layer's index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        self.layer.index()
    }

    /// What the process has of the layer.
    pub fn layer(&self) -> &Arc<OpenLayer> {
        &self.layer
    }

    /// Why the last read failed, if nothing was received from the source since.
    pub fn last_error(&self) -> Option<ReadError> {
        self.fetcher.last_error()
    }

    /// A reader gets this error.
    pub fn set_error(&self, why: &ReadError) {
        self.fetcher.set_error(why);
    }

    /// What reads have cost so far.
    pub fn stats(&self) -> ContentStats {
        self.layer.stats()
    }

    /// Reads decoded bytes if they are cached. Never waits for the network, and calls `before_wait` before it waits for
    /// the disk or compares very much.
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
                self.scheduler.read(&piece);
                Ok(Local::Read)
            }
        }
    }

    /// Continues a read that has to wait; fills `buf`, which is as long as before.
    ///
    /// The bytes are taken from what was fetched, not read back from the store, so a full disk or an eviction in between
    /// does not matter.
    ///
    /// # Errors
    /// [`ReadError`]
    pub async fn read_missing(&self, missing: Missing, buf: &mut [u8]) -> Result<(), ReadError> {
        let Missing { piece, runs } = missing;
        let _waiting = self.fetcher.scope.budget().wait();
        let later = self.scheduler.read_missing(&piece);
        let (mut arriving, mut unexpected) = (HashMap::new(), Vec::new());
        for run in &runs {
            let mut along = None;
            if !self.scheduler.is_expected(*run) {
                along = self.scheduler.missed(*run);
                unexpected.push(*run);
            }
            arriving.extend(self.fetcher.start(*run, along, Join::Any)?);
        }
        self.scheduler.run(later);
        if piece.place.before == 0 {
            self.scheduler.opened(&piece);
        }
        let unread = self.collect(&piece, piece.spans.iter(), arriving, buf).await?;
        self.read_anew(&piece, unread, buf).await?;
        // Not before: what a reader waits for need not share the link with this.
        unexpected.iter().for_each(|run| self.scheduler.answered(&piece, *run));
        Ok(())
    }

    /// Fetches for this mount alone what was evicted since it was looked for, what cannot be read from the store, and
    /// what another mount or process did not bring.
    async fn read_anew(&self, piece: &Piece, spans: Vec<SpanId>, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut arriving = HashMap::new();
        for run in SpanRange::join(spans.iter().copied()) {
            arriving.extend(self.fetcher.start(run, None, Join::Own)?);
        }
        let unread = self.collect(piece, spans.into_iter(), arriving, buf).await?;
        if unread.is_empty() { Ok(()) } else { Err(self.fetcher.ended()) }
    }

    /// Copies spans into their places in `buf`: first those that are cached, then those that are `arriving`. Returns
    /// those that are neither, in order.
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

    /// The part of a piece that a span holds: where it begins in the layer, its place in the piece, and how many bytes
    /// of the span lie before it.
    fn part_of(&self, piece: &Piece, span: SpanId) -> Result<(DecodedOffset, Range<usize>, usize), ReadError> {
        let known = self.layer.span(span)?.decoded;
        let part = known.start.max(piece.bytes.start)..known.end.min(piece.bytes.end);
        let place = (part.start - piece.bytes.start) as usize..(part.end - piece.bytes.start) as usize;
        Ok((part.start, place, (part.start - known.start) as usize))
    }

    /// Has the disk bring the spans of a large file that are not verified yet, and some that follow in it. The kernel's
    /// own read-ahead knows no files: behind each of them it would read on for as long as it reads ahead.
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

    /// Reads decoded bytes to predict what is read, which counts as no demand; `false` when some of them are missing.
    ///
    /// # Errors
    /// [`ReadError::Index`]
    pub fn peek(&self, from: DecodedOffset, buf: &mut [u8]) -> Result<bool, ReadError> {
        Ok(buf.is_empty() || self.layer.read_cached(from, buf, &mut || ())? == Cached::Bytes)
    }

    /// Whether anything is fetched on speculation in this layer.
    pub fn may_speculate(&self) -> bool {
        self.scheduler.may_speculate()
    }

    /// Whether speculation on these decoded bytes is no more than one request.
    pub fn is_one_request(&self, bytes: Range<DecodedOffset>) -> bool {
        self.scheduler.is_one_request(bytes)
    }

    /// Fetches on speculation what is missing of some decoded bytes, as soon as there is room; returns when they are
    /// cached or cannot be had.
    pub async fn speculate(&self, bytes: Range<DecodedOffset>, priority: Priority) {
        self.scheduler.speculate(bytes, priority).await;
    }

    /// What readers of `image` have read so far, for its profile; see [`Demand::run`](super::demand::Demand::run).
    pub(super) fn run(
        &self,
        image: &Digest,
        known: Option<ProfileRun>,
        only_new: bool,
    ) -> Result<Option<ProfileRun>, ReadError> {
        let run = self.scheduler.demand.run(self.index(), image, known, only_new);
        run.map_err(|cause| self.layer.index_error(cause))
    }
}

/// Readers of smaller files go on with those that follow in the tar, and the kernel's read-ahead with them; in bytes.
const LARGE_FILE: u64 = 1 << 20;
/// How far ahead of a reader of a large file the disk is kept busy, in bytes.
const DISK_AHEAD: u64 = 4 << 20;
