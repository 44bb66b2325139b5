//! Fetching: requests of one mount to its source, for one layer.
//!
//! Neighbouring spans are requested together in one range request, up to a size limit; larger runs are split into
//! several concurrent requests. Each span is decoded, compared with the digest that the verified pass recorded, stored,
//! and delivered to the waiting readers while later spans are still in flight. Spans that another process or mount
//! fetches are awaited for a limited time; those of another process are then taken from the store.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::activity::{Cause, LayerActivity, Reason};
use super::budget::in_kib;
use super::error::ReadError;
use super::in_flight::{Arrival, Locked, Outcome};
use super::open_layer::OpenLayer;
use super::scope::MountScope;
use super::spans;
use super::windows::WindowSource;
use crate::codec::{CodecError, LayerDecoder, Limits, Mark, OutputBuffer, StartKind, Status};
use crate::descriptor::{Compression, Descriptor};
use crate::layer::{IndexError, Span, Stream};
use crate::offsets::BlobOffset;
use crate::predict::{Layout as _, REQUEST};
use crate::source::{BlobSource, ByteStream, SentBy, SourceError};
use crate::span::{SpanId, SpanRange};
use crate::sync::lock;
use crate::trust::Untrusted;

/// Fetches missing spans of a layer for one mount.
pub(super) struct Fetcher {
    pub(super) layer: Arc<OpenLayer>,
    pub(super) scope: Arc<MountScope>,
    blob: Descriptor,
    source: Arc<dyn BlobSource>,
    /// Has the windows of indexes that are in blobs of their own.
    windows: Option<WindowSource>,
    /// What this mount fetches of the layer.
    pub(super) activity: Arc<LayerActivity>,
    /// Held by the request that receives the whole blob, if the source ignores ranges.
    taking_all: Semaphore,
    /// The error of the last failed read, if no span has arrived since.
    last_error: Mutex<Failure>,
}

/// Neighbouring spans of one request.
pub(super) type SpanRun = Vec<Fetching>;

/// The last failure of a read.
#[derive(Default)]
struct Failure {
    /// Counted from 1.
    number: u64,
    /// `None` once something has arrived that was requested after it, or anything, if the source was not reachable.
    error: Option<ReadError>,
    is_outage: bool,
}

/// A span in flight.
pub(super) struct Fetching {
    span: SpanId,
    cause: Cause,
    outcome: watch::Sender<Outcome>,
    /// Failures before it was requested.
    failures: u64,
    /// Released after `outcome` is set; `None` if another process has the span in flight, too.
    claim: Option<Claim>,
}

/// This process's claim to fetch a span, released on drop; do not drop it under the lock of the spans in flight.
struct Claim {
    layer: Arc<OpenLayer>,
    span: SpanId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // All threads of a process share one claim: a request that has begun since takes it over.
        self.layer.in_flight.unless_fetched(self.span, || self.layer.content.unclaim(self.span));
    }
}

/// Spans fetched along with demanded ones.
pub(super) struct Along {
    /// Spans behind the demanded ones.
    pub(super) spans: SpanRange,
    pub(super) room: OwnedSemaphorePermit,
}

/// Whose requests a reader may join.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Join {
    /// Requests of any mount or process that has the span in flight.
    Any,
    /// Requests of its own mount only, also for spans that seem cached or that another mount has not delivered.
    Own,
}

/// The response to a request.
struct Incoming<'a> {
    /// The spans that arrive, in order.
    spans: SpanRange,
    /// Those of them that do not belong to the requested run.
    rest: SpanRun,
    /// Held while the whole blob arrives.
    all: Option<SemaphorePermit<'a>>,
}

/// A response, and its pieces.
struct Body<'a> {
    what: Incoming<'a>,
    pieces: Pieces,
}

/// Pieces of a response.
struct Pieces {
    /// Those that came before they could be decoded.
    held: VecDeque<Result<Untrusted<Bytes>, SourceError>>,
    stream: ByteStream,
    ended: bool,
}

/// Result of requesting a run.
enum Requested<'a> {
    Receiving(Incoming<'a>, ByteStream),
    /// The source would send the whole blob, which another request already receives.
    ReceivedByAnother,
}

/// Result of [`Fetcher::reserve`].
#[derive(Default)]
struct Reserved {
    /// Runs to request, one request each.
    runs: Vec<SpanRun>,
    /// Spans in flight in another process.
    elsewhere: SpanRun,
    /// The arrivals for which readers wait.
    arrivals: Vec<(SpanId, Arrival)>,
}

/// Result of reserving one span.
enum Reservation {
    /// The span was cached meanwhile, or is not worth waiting for.
    Nothing,
    /// The span is already in flight.
    Joined(Arrival),
    /// The span must be requested; without a claim, it is awaited from another process.
    New(Fetching, Arrival),
}

impl Fetcher {
    pub(super) fn new(
        layer: Arc<OpenLayer>,
        blob: Descriptor,
        (source, windows): (Arc<dyn BlobSource>, Option<WindowSource>),
        scope: Arc<MountScope>,
    ) -> Self {
        let activity = scope.activity().layer(&blob.digest);
        Self {
            layer,
            scope,
            blob,
            source,
            windows,
            activity,
            taking_all: Semaphore::new(1),
            last_error: Mutex::default(),
        }
    }

    /// The error of the last failed read, if nothing has arrived since that disproves it.
    pub(super) fn last_error(&self) -> Option<ReadError> {
        lock(&self.last_error).error.clone()
    }

    /// Notes that the source is not reachable.
    pub(super) fn set_outage(&self, why: &ReadError) {
        self.note_failure(why, true);
    }

    fn note_failure(&self, why: &ReadError, is_outage: bool) {
        let mut last = lock(&self.last_error);
        *last = Failure { number: last.number + 1, error: Some(why.clone()), is_outage };
    }

    /// Ends the failures before `arrived` was requested. Other spans of a failed read arrive after it, and prove nothing.
    fn clear_error(&self, arrived: &Fetching) {
        let mut last = lock(&self.last_error);
        if last.is_outage || last.number <= arrived.failures {
            last.error = None;
        }
    }

    pub(super) fn ended(&self) -> ReadError {
        ReadError::Ended { layer: self.blob.digest.clone() }
    }

    /// Starts fetching `wanted`, which a reader waits for, and the missing spans of `along`, which follows it. Returns
    /// an arrival for each span of `wanted` that is fetched. `cause` is that of `along`.
    pub(super) fn start(
        self: &Arc<Self>,
        wanted: SpanRange,
        along: Option<Along>,
        join: Join,
        cause: Cause,
    ) -> Result<Vec<(SpanId, Arrival)>, ReadError> {
        let end = along.as_ref().map_or(wanted.end, |along| along.spans.end);
        let Reserved { runs, elsewhere, arrivals } = self.reserve(wanted, end, join, cause)?;
        self.follow_all(elsewhere);
        let room = along.map(|along| Arc::new(along.room));
        for run in runs {
            self.request_holding(run, None, room.clone());
        }
        Ok(arrivals)
    }

    /// Starts fetching the missing spans of `along`, which no reader waits for yet.
    pub(super) fn start_ahead(self: &Arc<Self>, along: Along, cause: Cause) -> Result<(), ReadError> {
        self.start(SpanRange::none_at(along.spans.start), Some(along), Join::Any, cause).map(drop)
    }

    /// Fetches the missing spans of `along` for a sequential reader, a few requests at a time as `on_link` allows, so
    /// that the first request does not share the link with all later ones. Spans not requested yet are not in flight: a
    /// reader that needs them earlier fetches them at once.
    pub(super) async fn in_order<F>(self: &Arc<Self>, along: Along, cause: Cause, on_link: impl Fn(u64) -> F)
    where
        F: Future<Output = OwnedSemaphorePermit>,
    {
        let Along { spans, mut room } = along;
        let mut from = spans.start;
        while from < spans.end {
            let Ok(request) = self.request_from(from, spans.end) else { return };
            let Ok(bytes) = self.layer.blob_bytes(request) else { return };
            let mut on_link = on_link(bytes).await;
            let reserved = self.reserve(SpanRange::none_at(from), request.end, Join::Any, cause);
            let Ok(Reserved { runs, elsewhere, .. }) = reserved else { return };
            self.follow_all(elsewhere);
            let of_room = room.split(in_kib(bytes, room.num_permits().max(1)) as usize).map(Arc::new);
            for run in runs {
                let bytes = self.layer.blob_bytes(range_of(&run)).unwrap_or(bytes);
                let of_link = on_link.split(in_kib(bytes, on_link.num_permits().max(1)) as usize);
                self.request_holding(run, of_link, of_room.clone());
            }
            from = request.end;
        }
    }

    /// The spans of one request that begins at `from` and ends by `last`. Spans that decode only from an earlier start
    /// are not split from it.
    fn request_from(&self, from: SpanId, last: SpanId) -> Result<SpanRange, ReadError> {
        let index = &self.layer.index;
        let index_error = |cause| self.layer.index_error(cause);
        let mut request = index.within(from, last.0 - from.0, REQUEST).map_err(index_error)?;
        request.end = request.end.max(from.next());
        while request.end < last && !index.starts_anew(request.end).map_err(index_error)? {
            request.end = request.end.next();
        }
        Ok(request)
    }

    /// Fetches the missing `spans` for no particular reader; `false` if some could not be fetched. The requests run to
    /// their end even if readers come to wait: what is on the link would be asked for again.
    ///
    /// One request after the other: spans that are not requested yet are not in flight, and a reader that needs them
    /// overtakes.
    pub(super) async fn in_background(self: &Arc<Self>, spans: SpanRange, cause: Cause) -> bool {
        let (mut from, mut good) = (spans.start, true);
        while from < spans.end {
            let Ok(request) = self.request_from(from, spans.end) else { return false };
            let reserved = self.reserve(SpanRange::none_at(from), request.end, Join::Any, cause);
            let Ok(Reserved { runs, .. }) = reserved else { return false };
            for run in runs {
                good &= self.request(&Arc::new(run), None).await;
            }
            from = request.end;
        }
        good
    }

    /// As [`Fetcher::in_background`], by one request where all of `spans` is missing.
    pub(super) async fn at_once(self: &Arc<Self>, spans: SpanRange, cause: Cause) {
        let nothing = SpanRange::none_at(spans.start);
        let Ok(Reserved { runs, .. }) = self.reserve(nothing, spans.end, Join::Any, cause) else { return };
        let mut joined = Vec::<SpanRun>::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if range_of(last).end == range_of(&run).start => last.extend(run),
                _ => joined.push(run),
            }
        }
        for run in joined {
            self.request(&Arc::new(run), None).await;
        }
    }

    /// As [`Fetcher::in_background`], for speculation: gives up while the source is failing.
    pub(super) async fn on_speculation(self: &Arc<Self>, spans: SpanRange, cause: Cause) {
        let nothing = SpanRange::none_at(spans.start);
        let Ok(Reserved { runs, .. }) = self.reserve(nothing, spans.end, Join::Any, cause) else { return };
        for run in runs {
            self.request_while_demanded(&Arc::new(run), None).await;
        }
    }

    /// Reserves `wanted`, and for `cause` the missing spans from there up to `end`, split into runs. Spans that decode only
    /// from an earlier start, and those before them, come in the same bytes, so that all of them are reserved.
    fn reserve(
        self: &Arc<Self>,
        wanted: SpanRange,
        end: SpanId,
        join: Join,
        cause: Cause,
    ) -> Result<Reserved, ReadError> {
        if self.layer.is_refuted() {
            let (layer, cause) = (self.blob.digest.clone(), Arc::new(self.ended()));
            return Err(ReadError::Refuted { layer, cause });
        }
        let index_error = |cause| self.layer.index_error(cause);
        let (first, count) = (wanted.start, SpanId(self.layer.index.span_count()));
        let begin = if first < count { self.layer.index.decode_start(first).map_err(index_error)? } else { first };
        let end = self.layer.index.end_of_group(end, GROUP).map_err(index_error)?;
        let absent = |around: SpanRange| {
            let cached = self.layer.content.generations(around);
            around.iter().zip(cached).filter(|(_, cached)| cached.is_none()).map(|(span, _)| span)
        };
        let (before, after) = (SpanRange::new(begin, wanted.start), SpanRange::new(wanted.end, end));
        let todo = absent(before).chain(wanted.iter()).chain(absent(after));
        let todo = todo.map(|span| Ok((span, self.layer.span(span)?)));
        let todo = todo.collect::<Result<Vec<_>, ReadError>>()?;
        let mut reserved = Reserved::default();
        let mut begun = BlobOffset(0);
        let patience = Instant::now() + PATIENCE;
        let mut in_flight = self.layer.in_flight.lock();
        for (span, known) in todo {
            let is_wanted = wanted.contains(span);
            let (join, cause) = match is_wanted {
                true => (join, Cause { reason: Reason::Demand, ..cause }),
                false => (Join::Any, cause),
            };
            let (fetching, arrival) = match self.reserve_one(&mut in_flight, (span, cause), is_wanted, join, patience) {
                Reservation::Nothing => continue,
                Reservation::Joined(arrival) => (None, arrival),
                Reservation::New(fetching, arrival) => (Some(fetching), arrival),
            };
            if is_wanted {
                reserved.arrivals.push((span, arrival));
            }
            let Some(fetching) = fetching else { continue };
            if fetching.claim.is_none() {
                reserved.elsewhere.push(fetching);
                continue;
            }
            // A span that decodes only from an earlier start stays in its run; else that start would be fetched twice.
            let is_start = known.kind != StartKind::Continued;
            let is_full = known.blob.0.saturating_sub(begun.0) >= REQUEST || span == wanted.start;
            match reserved.runs.last_mut() {
                Some(run) if range_of(run).end == span && !(is_start && is_full) => run.push(fetching),
                _ => {
                    begun = known.blob;
                    reserved.runs.push(vec![fetching]);
                }
            }
        }
        // Demand first.
        reserved.runs.sort_by_key(|run| !run.iter().any(|fetching| wanted.contains(fetching.span)));
        Ok(reserved)
    }

    fn reserve_one(
        &self,
        in_flight: &mut Locked<'_>,
        (span, cause): (SpanId, Cause),
        is_wanted: bool,
        join: Join,
        patience: Instant,
    ) -> Reservation {
        let any = || (join == Join::Any).then(|| in_flight.any(span, patience)).flatten();
        if let Some(arrival) = in_flight.own(span, self.scope.id()).or_else(any) {
            return Reservation::Joined(arrival);
        }
        let content = &self.layer.content;
        let claimed = content.claim(span);
        // A request ends after it has stored its span: a span that was missing before and is not in flight now may be
        // cached.
        let is_cached = join == Join::Any && content.generation(span).is_some();
        if is_cached || !(claimed || is_wanted) {
            if claimed {
                content.unclaim(span);
            }
            return Reservation::Nothing;
        }
        let (outcome, arrival) = in_flight.insert(span, self.scope.id());
        let claim = claimed.then(|| Claim { layer: Arc::clone(&self.layer), span });
        let failures = lock(&self.last_error).number;
        Reservation::New(Fetching { span, cause, outcome, failures, claim }, arrival)
    }

    /// Starts waiting for spans that other processes fetch.
    fn follow_all(self: &Arc<Self>, elsewhere: SpanRun) {
        for fetching in elsewhere {
            let fetcher = Arc::clone(self);
            self.scope.spawn(async move { fetcher.follow(fetching).await });
        }
    }

    /// Waits for a span that another process fetches; fetches it here if it does not arrive in time.
    async fn follow(self: &Arc<Self>, mut fetching: Fetching) {
        let begun = Instant::now();
        let mut pause = SHORTEST_LOOK;
        let (layer, span) = (&self.layer, fetching.span);
        loop {
            // Claim first, then look: a process stores the span before it releases its claim.
            fetching.claim = layer.content.claim(span).then(|| Claim { layer: Arc::clone(layer), span });
            if layer.content.generation(span).is_some()
                && let Some(bytes) = layer.cached_span(span)
            {
                self.clear_error(&fetching);
                return self.complete(&fetching, bytes);
            }
            if fetching.claim.is_some() || begun.elapsed() > PATIENCE {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
        self.request_while_demanded(&Arc::new(vec![fetching]), None).await;
    }

    /// Starts the request for a run. `held` is released at its end, the link budget as bytes arrive.
    fn request_holding(
        self: &Arc<Self>,
        run: SpanRun,
        on_link: Option<OwnedSemaphorePermit>,
        held: Option<Arc<OwnedSemaphorePermit>>,
    ) {
        let (fetcher, run) = (Arc::clone(self), Arc::new(run));
        self.scope.spawn(async move {
            fetcher.request_while_demanded(&run, on_link).await;
            drop(held);
        });
    }

    /// As [`Fetcher::request`], for readers that wait or may come: while the source is failing, continues only while a
    /// reader waits.
    async fn request_while_demanded(self: &Arc<Self>, run: &Arc<SpanRun>, on_link: Option<OwnedSemaphorePermit>) {
        let deserted = async {
            let Some(outages) = self.source.outages() else { return std::future::pending().await };
            loop {
                tokio::time::sleep(LOOK_FOR_READERS).await;
                if outages.concern(&self.blob.digest) && !self.give_up(run, |waiting| waiting == 0).is_empty() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            _ = self.request(run, on_link) => {}
            () = deserted => {}
        }
    }

    /// Fetches one run of neighbouring spans; retries a corrupt run once, and as long as there are other hosts to ask.
    /// Releases the link budget as bytes arrive.
    async fn request(self: &Arc<Self>, run: &Arc<SpanRun>, mut on_link: Option<OwnedSemaphorePermit>) -> bool {
        let (mut senders, mut retried) = (SentBy::default(), false);
        let result = loop {
            let result = self.stream_and_decode(run, &mut on_link, &mut senders).await;
            let corrupt = matches!(result, Err(ReadError::Corrupt { .. } | ReadError::Codec { .. }));
            if !corrupt || (!senders.pass_over() && std::mem::replace(&mut retried, true)) {
                break result;
            }
        };
        drop(on_link);
        let Err(mut error) = result else { return true };
        if let ReadError::Corrupt { span, .. } = &error
            && let Some(cause) = self.explain(*span).await
        {
            error = ReadError::Source { layer: self.blob.digest.clone(), cause: Arc::new(cause) };
        }
        let is_wrong = match &error {
            ReadError::Corrupt { .. } | ReadError::Codec { .. } => true,
            // Nothing has damaged it, so it came like that.
            ReadError::Index { cause, .. } => !cause.is_damage(),
            _ => false,
        };
        let is_given_up = match &error {
            ReadError::Windows { cause, .. } => self.layer.lacks_windows(cause),
            error => is_wrong && self.layer.refute(error),
        };
        if is_given_up {
            error = ReadError::Refuted { layer: self.blob.digest.clone(), cause: Arc::new(error) };
        }
        let open = self.give_up(run, |_| true);
        let why = &error as &dyn std::error::Error;
        if open.iter().any(|outcome| outcome.receiver_count() > 0) {
            tracing::error!(target: "peelfs::failure", layer = %self.blob.digest, error = why, "a span cannot be fetched");
            self.note_failure(&error, false);
        } else {
            tracing::warn!(layer = %self.blob.digest, error = why, "spans that no reader waits for cannot be fetched");
        }
        for outcome in open {
            // The decoder may have delivered it since.
            outcome.send_modify(|outcome| {
                outcome.get_or_insert_with(|| Err(error.clone()));
            });
        }
        false
    }

    /// Removes the spans of a run without an outcome from those in flight, if `may` accepts the number of readers that
    /// wait for them.
    fn give_up<'a>(&self, run: &'a SpanRun, may: impl Fn(usize) -> bool) -> Vec<&'a watch::Sender<Outcome>> {
        let mut in_flight = self.layer.in_flight.lock();
        let open = || run.iter().filter(|fetching| fetching.outcome.borrow().is_none());
        // One receiver belongs to the table itself, unless the span is being completed.
        if !may(open().map(|fetching| fetching.outcome.receiver_count().saturating_sub(1)).sum()) {
            return Vec::new();
        }
        open().for_each(|fetching| in_flight.remove(fetching.span, self.scope.id()));
        open().map(|fetching| &fetching.outcome).collect()
    }

    async fn stream_and_decode(
        self: &Arc<Self>,
        run: &Arc<SpanRun>,
        on_link: &mut Option<OwnedSemaphorePermit>,
        senders: &mut SentBy,
    ) -> Result<(), ReadError> {
        let (start, bytes) = self.to_decode(range_of(run)).map_err(|cause| self.layer.index_error(cause))?;

        // Ask first: the runtime has a bounded number of threads, and none should wait for an unreachable source.
        let spans = SpanRange::new(start, range_of(run).end);
        let Some(mut body) = self.begin(run, on_link, spans, &bytes).await? else { return Ok(()) };
        let Incoming { spans, rest, all } = body.what;
        *senders = body.pieces.stream.senders();
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let decoding = {
            let (fetcher, run) = (Arc::clone(self), Arc::clone(run));
            let from = if all.is_some() { BlobOffset(0) } else { bytes.start };
            tokio::task::spawn_blocking(move || match fetcher.layer.index.stream() {
                _ if fetcher.layer.index.checks_blob() => fetcher.decode_compared(spans, [&run, &rest], from, receiver),
                Stream::Tar | Stream::Blob => fetcher.decode(spans, [&run, &rest], receiver),
                Stream::Bodies => fetcher.decode_apart(spans, [&run, &rest], from, receiver),
            })
        };
        let mut received = 0;
        while let Some(piece) = body.pieces.next().await {
            let piece = piece.map_err(|cause| self.source_error(cause))?;
            received += piece.length();
            if let Some(room) = on_link {
                drop(room.split((received >> 10).min(room.num_permits())));
                received %= 1 << 10;
            }
            if sender.send(piece).await.is_err() {
                break; // the decoder has all it needs, or has failed
            }
        }
        drop(sender);
        decoding.await.map_err(|_| self.ended())?
    }

    /// Fetches the windows of `spans` that are in a blob of their own and not here, for requests to come. `begun` is dropped as
    /// soon as these wait for it.
    pub(super) async fn windows_ahead(&self, spans: &[SpanId], begun: oneshot::Sender<()>) {
        if let Err(error) = self.layer.fetch_windows_of(spans, self.windows.as_ref(), Some(begun)).await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(layer = %self.blob.digest, error, "windows are not fetched ahead");
        }
    }

    /// Requests `spans`, which lie in these `bytes`, and the windows that they are decoded with; `None` if another request has
    /// brought them.
    async fn begin(
        self: &Arc<Self>,
        run: &SpanRun,
        on_link: &mut Option<OwnedSemaphorePermit>,
        spans: SpanRange,
        bytes: &Range<BlobOffset>,
    ) -> Result<Option<Body<'_>>, ReadError> {
        let asked = async {
            loop {
                if let Requested::Receiving(what, stream) =
                    self.ask(run, spans, bytes.clone()).await.map_err(|cause| self.source_error(cause))?
                {
                    return Ok::<_, ReadError>(Some((what, stream)));
                }
                *on_link = None;
                if self.wait_for_another(run).await {
                    return Ok(None);
                }
            }
        };
        let mut asked = std::pin::pin!(asked);
        // Asked for at the same time: no round trip is added.
        let mut windows = std::pin::pin!(self.layer.fetch_windows(spans, self.windows.as_ref()));
        let mut are_here = None;
        let asked = loop {
            tokio::select! {
                biased;
                asked = &mut asked => break asked?,
                fetched = &mut windows, if are_here.is_none() => are_here = Some(fetched),
            }
        };
        let Some((what, stream)) = asked else { return Ok(None) };
        if matches!(are_here, Some(Err(_))) {
            // If one registry has both, one outage ended both, and is over.
            windows.set(self.layer.fetch_windows(spans, self.windows.as_ref()));
            are_here = None;
        }
        let mut pieces = Pieces { held: VecDeque::new(), stream, ended: false };
        // All of the blob is decoded from its beginning.
        if what.all.is_none() {
            match are_here {
                Some(fetched) => fetched?,
                None => pieces.hold_until(windows).await?,
            }
        }
        Ok(Some(Body { what, pieces }))
    }

    fn source_error(&self, cause: SourceError) -> ReadError {
        ReadError::Source { layer: self.blob.digest.clone(), cause: Arc::new(cause) }
    }

    /// Requests `range`, which holds `spans`. A source that ignores ranges would send the whole blob again for each
    /// read. So one request at a time receives all of it and stores it, and its spans are in flight for readers.
    /// Other requests are dropped once their responses begin.
    async fn ask(
        self: &Arc<Self>,
        run: &SpanRun,
        spans: SpanRange,
        range: Range<BlobOffset>,
    ) -> Result<Requested<'_>, SourceError> {
        let fetched = |bytes: &Range<BlobOffset>| self.note(run, bytes.end - bytes.start);
        let alone = Incoming { spans, rest: SpanRun::new(), all: None };
        if !self.layer.has_room_for_all() {
            fetched(&range);
            return Ok(Requested::Receiving(alone, self.source.stream(&self.blob, range).await?));
        }
        let (range_received, stream) = self.source.stream_or_whole(&self.blob, range.clone()).await?;
        if range_received == range {
            fetched(&range_received);
            return Ok(Requested::Receiving(alone, stream));
        }
        let Ok(all) = self.taking_all.try_acquire() else { return Ok(Requested::ReceivedByAnother) };
        // After a late response, another request may have received the whole blob.
        if self.complete_cached(run) {
            return Ok(Requested::ReceivedByAnother);
        }
        fetched(&range_received);
        tracing::debug!(layer = %self.blob.digest, "the source ignores ranges; receiving the whole blob");
        let spans = SpanRange::new(SpanId(0), SpanId(self.layer.index.span_count()));
        // Spans that cannot be reserved are stored all the same.
        let rest = self.reserve(SpanRange::none_at(spans.start), spans.end, Join::Any, run[0].cause);
        let rest = rest.unwrap_or_default().runs.into_iter().flatten().collect();
        Ok(Requested::Receiving(Incoming { spans, rest, all: Some(all) }, stream))
    }

    /// Takes note of a request for a run, of `bytes` of the blob.
    fn note(&self, run: &SpanRun, bytes: u64) {
        self.layer.counters.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        let of_span = |span| self.layer.blob_bytes(SpanRange::one(span)).unwrap_or(0);
        let parts: Vec<_> = run.iter().map(|known| (known.cause, known.span, of_span(known.span))).collect();
        self.activity.fetches(bytes, &parts);
    }

    /// Waits for the spans of a run while another request receives the whole blob; `false` if that request ended
    /// without delivering all of them.
    async fn wait_for_another(&self, run: &SpanRun) -> bool {
        let mut pause = SHORTEST_LOOK;
        loop {
            // Check this first: the other request stores its spans before it ends.
            let ended = self.taking_all.available_permits() > 0;
            let complete = self.complete_cached(run);
            if ended || complete {
                return complete;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    }

    /// Completes the spans of a run that are cached; true when none is left.
    fn complete_cached(&self, run: &SpanRun) -> bool {
        let mut complete = true;
        for fetching in run.iter().filter(|fetching| fetching.outcome.borrow().is_none()) {
            let is_cached = self.layer.content.generation(fetching.span).is_some();
            match is_cached.then(|| self.layer.cached_span(fetching.span)).flatten() {
                Some(bytes) => self.complete(fetching, bytes),
                None => complete = false,
            }
        }
        complete
    }

    /// The span at which decoding of `spans` begins, and the range of the blob to decode.
    fn to_decode(&self, spans: SpanRange) -> Result<(SpanId, Range<BlobOffset>), IndexError> {
        let start = self.layer.index.decode_start(spans.start)?;
        Ok((start, self.layer.index.blob_range(start, spans.end.back(1))?))
    }

    /// Decodes, checks and stores `spans`; readers wait for those of `runs`.
    fn decode(
        &self,
        spans: SpanRange,
        runs: [&SpanRun; 2],
        mut pieces: mpsc::Receiver<Untrusted<Bytes>>,
    ) -> Result<(), ReadError> {
        let codec_error = |cause: CodecError| self.codec_error(cause);
        let (mut decoder, mut known) = self.decoder_for(spans, codec_error)?;
        let mut anew = self.next_block(spans, &known)?;
        let mut out = OutputBuffer::new(OUTPUT);
        let (mut at, last) = (spans.start, spans.end.back(1));
        let mut bytes = Vec::with_capacity(spans::length(&known));
        loop {
            let piece = pieces.blocking_recv().map(Untrusted::into_unverified);
            let ended = piece.is_none();
            let piece = piece.unwrap_or_default();
            let mut input: &[u8] = &piece;
            loop {
                let before = anew.map_or(u64::MAX, |(_, blob)| blob.0.saturating_sub(decoder.blob_offset().0));
                let (mut now, later) = input.split_at(before.min(input.len() as u64) as usize);
                let status = decoder.decode(&mut now, &mut out).map_err(codec_error)?;
                input = &input[input.len() - later.len() - now.len()..];
                let mut decoded = out.decoded();
                while !decoded.is_empty() {
                    let room = spans::length(&known) - bytes.len();
                    let (now, later) = decoded.split_at(room.min(decoded.len()));
                    bytes.extend_from_slice(now);
                    decoded = later;
                    if bytes.len() == spans::length(&known) {
                        self.arrived(at, &known, std::mem::take(&mut bytes).into(), runs)?;
                        if at == last {
                            return Ok(());
                        }
                        at = at.next();
                        known = self.layer.span(at)?;
                        bytes.reserve(spans::length(&known));
                    }
                }
                out.discard();
                if status == Status::OutputFull {
                    continue;
                }
                match anew {
                    Some((span, blob)) if decoder.blob_offset() == blob && at == span => {
                        let rest = SpanRange::new(span, spans.end);
                        (decoder, known) = self.decoder_for(rest, codec_error)?;
                        anew = self.next_block(rest, &known)?;
                    }
                    _ => break,
                }
            }
            if ended {
                decoder.finish().map_err(codec_error)?;
                return Err(self.ended());
            }
        }
    }

    /// Where decoding of `spans`, which begins at `first`, must begin anew: from a block of a zstd frame on, only what comes
    /// before the next such block can be decoded.
    fn next_block(&self, spans: SpanRange, first: &Span) -> Result<Option<(SpanId, BlobOffset)>, ReadError> {
        if first.kind != StartKind::Block {
            return Ok(None);
        }
        for next in SpanRange::new(spans.start.next(), spans.end).iter() {
            let span = self.layer.span(next)?;
            if span.kind == StartKind::Block {
                return Ok(Some((next, span.blob)));
            }
        }
        Ok(None)
    }

    /// A decoder positioned at the first of `spans`, and that span.
    pub(super) fn decoder_for(
        &self,
        spans: SpanRange,
        codec_error: impl Fn(CodecError) -> ReadError,
    ) -> Result<(LayerDecoder, Span), ReadError> {
        let (begin, window) = self.layer.start_of(spans.start)?;
        let end = self.layer.span(spans.end.back(1))?.decoded.end;
        let mark = Mark { blob: begin.blob, bit: begin.bit, decoded: begin.decoded.start, kind: begin.kind };
        // The actual compression, not the declared one.
        let compression = begin.kind.compression().unwrap_or(Compression::Stored);
        // The decoder may run past the last span by its output buffer and one block.
        let limits = Limits::of_known(end - begin.decoded.start + 2 * OUTPUT as u64);
        let decoder = LayerDecoder::resume(compression, limits, &mark, Some(&window));
        Ok((decoder.map_err(codec_error)?, begin))
    }

    /// Why the source has other bytes for a span, if it knows.
    async fn explain(&self, span: SpanId) -> Option<SourceError> {
        let start = self.layer.span(span).ok()?.blob;
        let length = self.layer.blob_bytes(SpanRange::one(span)).ok()?;
        self.source.explain(&self.blob, start..start + length).await
    }

    pub(super) fn source(&self) -> &Arc<dyn BlobSource> {
        &self.source
    }

    pub(super) fn codec_error(&self, cause: CodecError) -> ReadError {
        ReadError::Codec { layer: self.blob.digest.clone(), cause: Arc::new(cause) }
    }

    /// Compares a span's bytes, decoded or of the blob, with its digest.
    pub(super) fn compare(&self, span: SpanId, known: &Span, bytes: &[u8]) -> Result<(), ReadError> {
        let actual = known.check.of_same_kind(bytes);
        if actual == known.check {
            return Ok(());
        }
        Err(ReadError::Corrupt {
            layer: self.blob.digest.clone(),
            span,
            expected: known.check.to_string().into(),
            actual: actual.to_string().into(),
        })
    }

    /// Checks a decoded span, whose digest is of these bytes or was compared before, stores it, and delivers it to the
    /// readers that wait for it.
    pub(super) fn arrived(
        &self,
        span: SpanId,
        known: &Span,
        bytes: Bytes,
        runs: [&SpanRun; 2],
    ) -> Result<(), ReadError> {
        if !known.check.is_of_blob() {
            self.compare(span, known, &bytes)?;
        }
        self.layer.counters.fetched_spans.fetch_add(1, Ordering::Relaxed);
        // Store first, then deliver: a reader that has the span finds it cached.
        self.layer.keep(span, known, &bytes);
        let of_run = |run: &'_ SpanRun| run.binary_search_by_key(&span, |fetching| fetching.span).ok();
        let found = runs.into_iter().find_map(|run| Some(&run[of_run(run)?]));
        found.inspect(|fetching| self.clear_error(fetching));
        if let Some(fetching) = found.filter(|fetching| fetching.outcome.borrow().is_none()) {
            self.complete(fetching, bytes);
        }
        Ok(())
    }

    /// Removes a span from those in flight and delivers it to the readers that wait for it.
    fn complete(&self, Fetching { span, outcome, .. }: &Fetching, bytes: Bytes) {
        self.layer.in_flight.remove_if_reported_by(*span, self.scope.id(), outcome);
        // Without a waiting reader the span is only stored; free its memory before the run ends.
        let waited_for = outcome.receiver_count() > 0;
        outcome.send_replace(Some(Ok(if waited_for { bytes } else { Bytes::new() })));
    }
}

impl Pieces {
    /// The next one.
    async fn next(&mut self) -> Option<Result<Untrusted<Bytes>, SourceError>> {
        match self.held.pop_front() {
            Some(piece) => Some(piece),
            None if self.ended => None,
            None => self.stream.next().await,
        }
    }

    /// Holds what comes until the `windows` are there that it is decoded with.
    ///
    /// A short transfer has a place in a queue until all of it has come, and windows wait in the same queue.
    async fn hold_until(
        &mut self,
        mut windows: Pin<&mut impl Future<Output = Result<(), ReadError>>>,
    ) -> Result<(), ReadError> {
        let mut bytes = 0;
        loop {
            tokio::select! {
                biased;
                fetched = &mut windows => return fetched,
                piece = self.stream.next(), if !self.ended && bytes < HELD => match piece {
                    Some(piece) => {
                        bytes += piece.as_ref().map_or(0, Untrusted::length);
                        self.held.push_back(piece);
                    }
                    None => self.ended = true,
                },
            }
        }
    }
}

/// The spans of a run; the run is not empty.
fn range_of(run: &SpanRun) -> SpanRange {
    SpanRange::new(run[0].span, run[run.len() - 1].span.next())
}

/// Bytes of the blob from a start on within which all that decodes from it is fetched.
const GROUP: u64 = 4 << 20;
/// Interval at which a request to a failing source checks whether a reader still waits.
const LOOK_FOR_READERS: Duration = Duration::from_secs(1);
/// Time that another process or mount may take to deliver a span before this one fetches it, too.
const PATIENCE: Duration = Duration::from_secs(5);
/// First and longest pause between two looks for spans of another process.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(16);
/// Pieces of a body held between the network and the decoder.
const PIECES_AHEAD: usize = 8;
/// Bytes of a body that are held until windows have come: those of a short transfer.
const HELD: usize = 1 << 20;
/// Decoded bytes produced at a time.
pub(super) const OUTPUT: usize = 256 << 10;
