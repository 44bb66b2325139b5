//! What readers want of a layer: remembered for its profile, and looked at to read ahead of them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::profile::ProfileRun;
use super::readahead::{Piece, REMEMBERED, ReadAhead};
use super::scope::{Urgency, in_kib};
use super::siblings::Siblings;
use super::{LayerReader, PlaceInFile, ReadError, fetch, spans};
use crate::codec::StartKind;
use crate::digest::Digest;
use crate::layer::SpanId;
use crate::offsets::DecodedOffset;
use crate::sync::lock;

/// What readers have wanted of a layer.
pub(super) struct Demand {
    /// For each span, [`READ`] and [`IN_PROFILE`].
    marks: Box<[AtomicU8]>,
    /// The spans that were read soon after the mount began, in order of their first reads, in milliseconds.
    first: Mutex<Vec<(u32, u32)>>,
    readahead: Mutex<ReadAhead>,
    /// Whether a profile speaks of any span.
    in_profile: AtomicBool,
    /// Files that were read, and what was guessed beside them.
    pub(super) siblings: Mutex<Siblings>,
    /// The span around which nothing was missing when that was last looked at; small files share one.
    pub(super) all_near: AtomicU32,
    /// KiB that may be on the link for readers of large pieces.
    on_link: Arc<Semaphore>,
}

impl Demand {
    pub(super) fn new(spans: u32) -> Self {
        let marks = (0..spans).map(|_| AtomicU8::new(0)).collect();
        let on_link = Arc::new(Semaphore::new(ON_LINK_KIB));
        let (first, readahead, in_profile, siblings) = Default::default();
        Self { marks, first, readahead, in_profile, siblings, all_near: AtomicU32::new(u32::MAX), on_link }
    }

    /// Whether a profile speaks of any span.
    pub(super) fn has_profile(&self) -> bool {
        self.in_profile.load(Ordering::Relaxed)
    }

    /// Room on the link for so many bytes that a reader will want in order, as soon as there is any.
    pub(super) async fn on_link(&self, bytes: u64) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.on_link).acquire_many_owned(in_kib(bytes, ON_LINK_KIB));
        room.await.expect("it is never closed")
    }
}

impl LayerReader {
    /// A span is read: the first time, this goes into the profile, and what follows may be fetched.
    pub(super) fn record(self: &Arc<Self>, span: u32) {
        let mark = &self.demand.marks[span as usize];
        if mark.load(Ordering::Relaxed) & READ != 0 || mark.fetch_or(READ, Ordering::Relaxed) & READ != 0 {
            return;
        }
        if let Some(age) = self.scope.start() {
            lock(&self.demand.first).push((age.as_millis() as u32, span));
            lock(&self.demand.siblings).touched(span);
        }
        if self.is_in_profile(span) {
            return;
        }
        let Some((next, window)) = lock(&self.demand.readahead).touched(span) else { return };
        if let Err(error) = self.follow(next, window) {
            // Whoever reads on will be told.
            tracing::debug!(%error, "cannot read ahead");
        }
    }

    /// A reader reads a piece, or waits for it: if it is one of a reader who goes on through a large file, what comes
    /// next in that file is fetched.
    pub(super) fn stream(self: &Arc<Self>, bytes: Range<DecodedOffset>, place: PlaceInFile, waited: bool) {
        let file_end = bytes.end.0.saturating_add(place.behind).min(self.index.proof().decoded_size);
        let file_end = DecodedOffset(file_end);
        if bytes.end >= file_end || bytes.end - bytes.start < REMEMBERED {
            return;
        }
        if let Err(error) = self.try_to_stream(bytes, file_end, place.before == 0, waited) {
            // Whoever reads on will be told.
            tracing::debug!(%error, "cannot read ahead");
        }
    }

    fn try_to_stream(
        self: &Arc<Self>,
        bytes: Range<DecodedOffset>,
        file_end: DecodedOffset,
        is_first: bool,
        waited: bool,
    ) -> Result<(), ReadError> {
        let end = bytes.end;
        let piece = Piece { spans: self.spans_of(bytes.clone())?, bytes, is_first, file_end };
        let behind = piece.spans.end;
        let Some((next, queue)) = lock(&self.demand.readahead).streams(piece, waited) else { return Ok(()) };
        let last = self.spans_of(end..file_end)?.end;
        // A little more is not worth a request, but at the end.
        let under_way = self.blob_bytes(&(behind..next.max(behind)))?;
        let more = STREAM_BYTES.saturating_sub(under_way);
        if next >= last || more < fetch::REQUEST {
            return Ok(());
        }
        // What others have on their way may leave less room than that.
        for more in [more, fetch::REQUEST] {
            let to = self.within(next, last - next, more)?;
            if to > next
                && let Some(room) = self.scope.room_ahead(self.blob_bytes(&(next..to))?)
            {
                fetch::start_in_order(self, next..to, room, Arc::clone(&queue));
                lock(&self.demand.readahead).streamed_to(&queue, to);
                break;
            }
        }
        Ok(())
    }

    /// Where a request ends that begins at `from`, before `last`: what decodes only from an earlier start stays with it.
    pub(super) fn request_end(&self, from: u32, last: u32) -> Result<u32, ReadError> {
        let mut end = self.within(from, last - from, fetch::REQUEST)?.max(from + 1);
        let continues = |span| {
            let known = self.index.span(SpanId(span)).map_err(|cause| self.index_error(cause))?;
            Ok::<_, ReadError>(known.kind == StartKind::Continued)
        };
        while end < last && continues(end)? {
            end += 1;
        }
        Ok(end)
    }

    /// Fetches a window of a reader who goes on in order, if the budget allows it.
    fn follow(self: &Arc<Self>, next: u32, window: u32) -> Result<(), ReadError> {
        let end = self.within(next, window, WINDOW_BYTES)?;
        if end > next {
            let Some(room) = self.scope.room_ahead(self.blob_bytes(&(next..end))?) else {
                lock(&self.demand.readahead).reached(next, window / 2);
                return Ok(());
            };
            fetch::start(self, &(next..next), next..end, Some(room), false)?;
        }
        lock(&self.demand.readahead).reached(end, end - next);
        Ok(())
    }

    /// `run`, for which a reader waits, with what is to be fetched along with it.
    pub(super) fn around(&self, run: &Range<u32>) -> Result<(Range<u32>, Option<OwnedSemaphorePermit>), ReadError> {
        if self.is_expected(run) {
            return Ok((run.clone(), None));
        }
        let guess = if self.scope.speculates() { NEAR_AFTER } else { 0 };
        let window = lock(&self.demand.readahead).missed(run, guess);
        let bytes = if window > NEAR_AFTER { WINDOW_BYTES } else { NEAR_BYTES };
        let mut end = self.within(run.end, window, bytes)?;
        let extra = self.blob_bytes(&(run.end..end))?;
        let room = if extra > 0 { self.scope.room_ahead(extra) } else { None };
        if room.is_none() {
            end = run.end;
        }
        lock(&self.demand.readahead).reached(end, end - run.end);
        Ok((run.start..end, room))
    }

    /// Fetches the near neighbours before `run`, for which a reader of a piece of so many bytes has waited.
    pub(super) fn speculate_before(self: &Arc<Self>, run: &Range<u32>, piece: u64) {
        // A large piece is of a large file, and what lies before that is no neighbour.
        if !self.scope.speculates() || piece >= REMEMBERED {
            return;
        }
        match self.near_before(run.start) {
            Ok(start) if start < run.start => {
                let (layer, before) = (Arc::clone(self), start..run.start);
                self.scope.spawn(async move { layer.speculate_spans(before, Urgency::Some).await });
            }
            Ok(_) => {}
            // Whoever reads that will be told.
            Err(error) => tracing::debug!(%error, "cannot guess"),
        }
    }

    /// Whether all of `run` is on its way, or will be.
    pub(super) fn is_expected(&self, run: &Range<u32>) -> bool {
        let on_its_way =
            |span| self.is_in_profile(span) || fetch::in_flight_for(span, &lock(&self.in_flight)).next().is_some();
        run.clone().all(on_its_way)
    }

    /// Where a window of so many spans and bytes ends that begins at `from`.
    fn within(&self, from: u32, window: u32, bytes: u64) -> Result<u32, ReadError> {
        let last = from.saturating_add(window).min(self.index.span_count());
        let mut end = from;
        while end < last && self.blob_bytes(&(from..end + 1))? <= bytes {
            end += 1;
        }
        Ok(end)
    }

    /// Where the near neighbours before `span` begin; there are none where they decode only from further away.
    fn near_before(&self, span: u32) -> Result<u32, ReadError> {
        let begins = |span| {
            let known = self.index.span(SpanId(span)).map_err(|cause| self.index_error(cause))?;
            Ok(known.kind != StartKind::Continued)
        };
        let mut start = span;
        for before in (span.saturating_sub(NEAR_BEFORE)..span).rev() {
            if !begins(before + 1)? || !begins(before)? || self.blob_bytes(&(before..span))? > NEAR_BYTES {
                break;
            }
            start = before;
        }
        Ok(start)
    }

    /// The bytes of the blob that hold some spans.
    pub(super) fn blob_bytes(&self, spans: &Range<u32>) -> Result<u64, ReadError> {
        if spans.is_empty() {
            return Ok(0);
        }
        let range = spans::blob_range(&self.index, spans.start, spans.end - 1);
        range.map(|range| range.end.0.saturating_sub(range.start.0)).map_err(|cause| self.index_error(cause))
    }

    /// Says which spans a profile foretells; for those nobody needs to guess.
    pub(super) fn mark_in_profile(&self, spans: impl IntoIterator<Item = u32>) {
        for span in spans {
            self.demand.in_profile.store(true, Ordering::Relaxed);
            self.demand.marks[span as usize].fetch_or(IN_PROFILE, Ordering::Relaxed);
        }
    }

    fn is_in_profile(&self, span: u32) -> bool {
        self.demand.marks[span as usize].load(Ordering::Relaxed) & IN_PROFILE != 0
    }

    /// What was wanted so far of this layer for `image`, on top of what is `known`; `None` when that is nothing, or
    /// nothing new and only that counts.
    pub(super) fn run(
        &self,
        image: &Digest,
        known: Option<ProfileRun>,
        only_new: bool,
    ) -> Result<Option<ProfileRun>, ReadError> {
        let mut run = known.unwrap_or_else(|| ProfileRun { image: image.clone(), wanted: Vec::new() });
        let before = run.wanted.len();
        let told: HashSet<u32> = run
            .spans(&self.index)
            .map_err(|cause| self.index_error(cause))?
            .into_iter()
            .map(|(_, span)| span)
            .collect();
        let first = lock(&self.demand.first).clone();
        let some = !first.is_empty() && !only_new;
        for (at, span) in first {
            if !told.contains(&span) {
                let known = self.index.span(SpanId(span)).map_err(|cause| self.index_error(cause))?;
                run.wanted.push((at, known.decoded.start.0));
            }
        }
        Ok((some || run.wanted.len() > before).then_some(run))
    }
}

/// A reader has had it.
const READ: u8 = 1;
/// A profile speaks of it.
const IN_PROFILE: u8 = 2;
/// Neighbours that are guessed to be wanted, too. Replayed over 200 Mbit/s and 20 ms, traces of Python, Node.js,
/// TensorFlow and PostgreSQL that start wait between half and two thirds as often with these numbers as without, and
/// fetch 23 to 50 % more; with larger ones they fetch more than that and wait hardly less.
const NEAR_BEFORE: u32 = 2;
const NEAR_AFTER: u32 = 5;
/// A guess may take about as long as the round trip that it can save: what a link of 200 Mbit/s and 20 ms, or of
/// 50 Mbit/s and 80 ms, holds.
const NEAR_BYTES: u64 = 512 << 10;
/// What is asked for ahead of a reader of large pieces, in bytes of the blob.
const STREAM_BYTES: u64 = 6 << 20;
/// And what of it is on the link: with more than that holds (200 Mbit/s and 20 ms, or 50 Mbit/s and 80 ms: 0.5 MiB), it
/// does not fall idle while he waits for the first; and with not much more, the first does not share it with many.
const ON_LINK_KIB: usize = 2 << 10;
/// The widest window of a reader who goes on in order, in bytes of the blob.
const WINDOW_BYTES: u64 = 4 << 20;
