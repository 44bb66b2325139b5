//! Fetching: one span is asked for once, however many readers wait for it.
//!
//! Neighbouring spans that are wanted together travel in one range request, up to a size; more of them
//! travel in several, side by side. Each span's bytes are decoded, checked against the digest that the
//! verified pass recorded, kept, and handed to whoever waits, span by span, while later ones are still
//! on their way. What another process fetches is waited for, within reason, and taken from the store; so is what
//! another mount of this process fetches, whose source may be away while this one's is not.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use super::readahead::Queue;
use super::scope::{MountId, in_kib};
use super::{LayerReader, ReadError, spans};
use crate::codec::{CodecError, LayerDecoder, Limits, Mark, OutputBuffer, StartKind, Status, Window};
use crate::layer::{IndexError, SpanId};
use crate::source::SourceError;
use crate::sync::lock;
use crate::trust::Untrusted;

/// Spans on their way, each with the mount that fetches it ([`MountId`]), and where their outcome will be
/// told.
pub(super) type InFlightSpans = BTreeMap<(u32, MountId), watch::Receiver<Outcome>>;

/// `None` while a span is on its way.
type Outcome = Option<Result<Bytes, ReadError>>;

/// Neighbouring spans that travel in one request.
type SpanRun = Vec<InFlight>;

/// A span on its way.
struct InFlight {
    span: u32,
    sender: watch::Sender<Outcome>,
    /// Ends behind `sender`; `None` where another process has the span on its way, too.
    claim: Option<Claim>,
}

/// This process's claim to fetch a span, until dropped; not to be dropped under the lock of `in_flight`.
struct Claim {
    layer: Arc<LayerReader>,
    span: u32,
}

impl Claim {
    /// The claim that [`Content::claim`](crate::store::Content::claim) has just granted.
    fn of(layer: &Arc<LayerReader>, span: u32) -> Self {
        Self { layer: Arc::clone(layer), span }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // All threads of a process have one claim: a flight that has begun since goes on with it.
        let in_flight = lock(&self.layer.in_flight);
        if !in_flight_for(self.span, &in_flight).any(is_in_flight) {
            self.layer.content.unclaim(self.span);
        }
    }
}

/// Whether a flight goes on; one whose sender is gone was ended with the mount that had begun it.
pub(super) fn is_in_flight(flight: &watch::Receiver<Outcome>) -> bool {
    flight.has_changed().is_ok()
}

/// The flights of a span, whoever has begun them.
pub(super) fn in_flight_for(span: u32, in_flight: &InFlightSpans) -> impl Iterator<Item = &watch::Receiver<Outcome>> {
    in_flight.range((span, MountId::FIRST)..=(span, MountId::LAST)).map(|(_, flight)| flight)
}

/// A span that is waited for.
pub(super) struct Arrival {
    outcome: watch::Receiver<Outcome>,
    /// How long to wait for it, where another mount fetches it.
    until: Option<Instant>,
}

impl Arrival {
    /// The span, or why the source of this mount does not deliver it; `None` when whoever fetches it was ended, or is
    /// another mount and does not bring it.
    pub(super) async fn outcome(mut self) -> Option<Result<Bytes, ReadError>> {
        let told = async { self.outcome.wait_for(Option::is_some).await.ok()?.clone() };
        match self.until {
            None => told.await,
            Some(until) => tokio::time::timeout_at(until, told).await.ok()?.filter(Result::is_ok),
        }
    }
}

/// Spans that are waited for.
type Arrivals = Vec<(u32, Arrival)>;

/// Whether a run gives way to readers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Preempt {
    /// It goes on to its end.
    Stay,
    /// It ends after the piece at hand when a reader waits for something else.
    ForReaders,
}

/// Starts fetching what is missing of `wanted`, and with it what is neither here nor on its way of
/// `around`; returns an arrival for each span of `wanted` that is fetched. With `again`, all of `wanted` is, also
/// what seems to be here, or what another mount has on its way.
pub(super) fn start(
    layer: &Arc<LayerReader>,
    wanted: &Range<u32>,
    around: Range<u32>,
    room: Option<OwnedSemaphorePermit>,
    again: bool,
) -> Result<Arrivals, ReadError> {
    let (runs, elsewhere, arrivals) = reserve(layer, wanted, around, again)?;
    follow_all(layer, elsewhere);
    let room = room.map(Arc::new);
    for run in runs {
        fetch_holding(layer, run, None, room.clone());
    }
    Ok(arrivals)
}

/// Starts fetching what is neither here nor on its way of `spans`, for a reader who wants them in order: behind what is
/// in his queue, and few requests at a time, so that the first does not share the link with all that come behind it.
/// What has not had its turn is not on its way: whoever wants it until then fetches it at once.
pub(super) fn start_in_order(
    layer: &Arc<LayerReader>,
    spans: Range<u32>,
    mut room: OwnedSemaphorePermit,
    queue: Queue,
) {
    let layer = Arc::clone(layer);
    layer.scope.clone().spawn(async move {
        let _turn = queue.lock().await;
        let mut from = spans.start;
        while from < spans.end {
            let Ok(end) = layer.request_end(from, spans.end) else { return };
            let Ok(bytes) = layer.blob_bytes(&(from..end)) else { return };
            let mut on_link = layer.demand.on_link(bytes).await;
            let Ok((runs, elsewhere, _)) = reserve(&layer, &(from..from), from..end, false) else { return };
            follow_all(&layer, elsewhere);
            let of_room = room.split(in_kib(bytes, room.num_permits().max(1)) as usize).map(Arc::new);
            for run in runs {
                let bytes = layer.blob_bytes(&(run[0].span..run[run.len() - 1].span + 1)).unwrap_or(bytes);
                let of_link = on_link.split(in_kib(bytes, on_link.num_permits().max(1)) as usize);
                fetch_holding(&layer, run, of_link, of_room.clone());
            }
            from = end;
        }
    });
}

/// Starts fetching a run; `held` is dropped when it has ended, and its room on the link as its bytes come.
fn fetch_holding(
    layer: &Arc<LayerReader>,
    run: SpanRun,
    on_link: Option<OwnedSemaphorePermit>,
    held: Option<Arc<OwnedSemaphorePermit>>,
) {
    let (layer, run) = (Arc::clone(layer), Arc::new(run));
    layer.scope.clone().spawn(async move {
        fetch_while_demanded(&layer, &run, on_link).await;
        drop(held);
    });
}

/// As [`fly`], for readers who wait or may come: while the source is in trouble, only as long as one of them waits.
async fn fetch_while_demanded(layer: &Arc<LayerReader>, run: &Arc<SpanRun>, on_link: Option<OwnedSemaphorePermit>) {
    let deserted = async {
        let Some(outages) = layer.source.outages() else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_FOR_READERS).await;
            if outages.concern(&layer.blob.digest) && !complete(layer, run, |waiting| waiting == 0).is_empty() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        _ = fetch(layer, run, Preempt::Stay, on_link) => {}
        () = deserted => {}
    }
}

/// Fetches what is neither here nor on its way of `spans`, for nobody in particular; `false` when some of it
/// cannot be had.
pub(super) async fn in_background(layer: &Arc<LayerReader>, spans: Range<u32>, manners: Preempt) -> bool {
    let Ok((runs, ..)) = reserve(layer, &(spans.start..spans.start), spans, false) else { return false };
    let mut good = true;
    for run in runs {
        good &= fetch(layer, &Arc::new(run), manners, None).await;
    }
    good
}

/// As [`in_background`], on the chance that somebody will want it: while the source is in trouble, it is let go.
pub(super) async fn on_the_chance(layer: &Arc<LayerReader>, spans: Range<u32>) {
    let Ok((runs, ..)) = reserve(layer, &(spans.start..spans.start), spans, false) else { return };
    for run in runs {
        fetch_while_demanded(layer, &Arc::new(run), None).await;
    }
}

/// Notes flights for what is missing, cut into runs, and apart from them for what of `wanted` another process
/// has on its way; `again` takes all that `wanted` has for missing, unless this mount fetches it.
fn reserve(
    layer: &Arc<LayerReader>,
    wanted: &Range<u32>,
    around: Range<u32>,
    again: bool,
) -> Result<(Vec<SpanRun>, SpanRun, Arrivals), ReadError> {
    let mut todo = Vec::new();
    for span in around {
        if wanted.contains(&span) || layer.content.generation(span).is_none() {
            let known = layer.index.span(SpanId(span)).map_err(|cause| layer.index_error(cause))?;
            todo.push((span, known));
        }
    }
    let mut arrivals = Arrivals::new();
    let mut runs: Vec<SpanRun> = Vec::new();
    let mut elsewhere = SpanRun::new();
    let mut begun = None;
    let patience = Instant::now() + PATIENCE;
    let mut in_flight = lock(&layer.in_flight);
    in_flight.retain(|_, flight| is_in_flight(flight));
    for (span, known) in todo {
        let anew = again && wanted.contains(&span);
        let own = in_flight.get(&(span, layer.scope.mount())).map(|flight| (flight, None));
        let others = || in_flight_for(span, &in_flight).next().filter(|_| !anew).map(|flight| (flight, Some(patience)));
        if let Some((flight, until)) = own.or_else(others) {
            if wanted.contains(&span) {
                arrivals.push((span, Arrival { outcome: flight.clone(), until }));
            }
            continue;
        }
        let claimed = layer.content.claim(span);
        // A flight ends after its span was kept: what had no flight and no content above may have landed since.
        let landed = !anew && layer.content.generation(span).is_some();
        if landed || !(claimed || wanted.contains(&span)) {
            if claimed {
                layer.content.unclaim(span);
            }
            continue;
        }
        let (sender, receiver) = watch::channel(None);
        in_flight.insert((span, layer.scope.mount()), receiver.clone());
        if wanted.contains(&span) {
            arrivals.push((span, Arrival { outcome: receiver, until: None }));
        }
        if !claimed {
            elsewhere.push(InFlight { span, sender, claim: None });
            continue;
        }
        let fetching = InFlight { span, sender, claim: Some(Claim::of(layer, span)) };
        // What decodes only from an earlier start stays with it, or would be fetched with it once more.
        let goes_on = runs.last().and_then(|run| run.last()).is_some_and(|before| before.span + 1 == span);
        let full = |begun: u64| known.blob.0.saturating_sub(begun) >= REQUEST && known.kind != StartKind::Continued;
        if goes_on && span != wanted.start && begun.is_some_and(|begun| !full(begun)) {
            runs.last_mut().expect("it goes on").push(fetching);
        } else {
            begun = Some(known.blob.0);
            runs.push(vec![fetching]);
        }
    }
    // Those who wait come first.
    runs.sort_by_key(|run| !wanted.contains(&run[0].span));
    Ok((runs, elsewhere, arrivals))
}

/// Starts waiting for spans that other processes fetch.
fn follow_all(layer: &Arc<LayerReader>, elsewhere: SpanRun) {
    for fetching in elsewhere {
        let layer = Arc::clone(layer);
        layer.scope.clone().spawn(async move { follow(&layer, fetching).await });
    }
}

/// Waits for a span that another process fetches; fetches it when that one has not brought it after a while.
async fn follow(layer: &Arc<LayerReader>, mut fetching: InFlight) {
    let begun = Instant::now();
    let mut pause = SHORTEST_LOOK;
    loop {
        // In this order: whoever gives up its claim has kept the span before.
        fetching.claim = layer.content.claim(fetching.span).then(|| Claim::of(layer, fetching.span));
        if let Some(bytes) = layer.stored(fetching.span) {
            layer.clear_error();
            return layer.landed(&fetching, bytes);
        }
        if fetching.claim.is_some() || begun.elapsed() > PATIENCE {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
    fetch_while_demanded(layer, &Arc::new(vec![fetching]), None).await;
}

/// Fetches one run of neighbouring spans; a run that turns out corrupt is asked for once more. Its room on the link is
/// given back as its bytes come.
async fn fetch(
    layer: &Arc<LayerReader>,
    run: &Arc<SpanRun>,
    manners: Preempt,
    mut on_link: Option<OwnedSemaphorePermit>,
) -> bool {
    let mut result = fetch_run(layer, run, manners, &mut on_link).await;
    if matches!(result, Err(ReadError::Corrupt { .. } | ReadError::Codec { .. })) {
        result = fetch_run(layer, run, manners, &mut on_link).await;
    }
    drop(on_link);
    let Err(error) = result else { return true };
    let open = complete(layer, run, |_| true);
    if open.iter().any(|sender| sender.receiver_count() > 0) {
        tracing::error!(target: "peelfs::failure", layer = %layer.blob.digest, error = &error as &dyn std::error::Error, "a span cannot be had");
        layer.set_error(&error);
    } else {
        tracing::warn!(layer = %layer.blob.digest, error = &error as &dyn std::error::Error, "spans that nobody waits for cannot be had");
    }
    for sender in open {
        // The decoder may have brought it since.
        sender.send_modify(|outcome| {
            outcome.get_or_insert_with(|| Err(error.clone()));
        });
    }
    false
}

/// Ends the flights of a run that have no outcome yet, if `may` agrees to how many wait for them.
fn complete<'a>(layer: &LayerReader, run: &'a SpanRun, may: impl Fn(usize) -> bool) -> Vec<&'a watch::Sender<Outcome>> {
    let mut in_flight = lock(&layer.in_flight);
    let open = || run.iter().filter(|fetching| fetching.sender.borrow().is_none());
    // One receiver is that of the flight itself, unless it is landing.
    if !may(open().map(|fetching| fetching.sender.receiver_count().saturating_sub(1)).sum()) {
        return Vec::new();
    }
    open().for_each(|fetching| drop(in_flight.remove(&(fetching.span, layer.scope.mount()))));
    open().map(|fetching| &fetching.sender).collect()
}

async fn fetch_run(
    layer: &Arc<LayerReader>,
    run: &Arc<SpanRun>,
    manners: Preempt,
    on_link: &mut Option<OwnedSemaphorePermit>,
) -> Result<(), ReadError> {
    let (first, last) = (run[0].span, run[run.len() - 1].span);
    let source_error = |cause: SourceError| ReadError::Source { layer: layer.layer_name(), cause: Arc::new(cause) };
    let start = spans::start_of(&layer.index, first).map_err(|cause| layer.index_error(cause))?;
    let range = spans::blob_range(&layer.index, start, last).map_err(|cause| layer.index_error(cause))?;
    layer.counters.fetched_bytes.fetch_add(range.end - range.start, Ordering::Relaxed);

    // First this: the runtime has only so many threads, and none to wait for a source that is away.
    let mut stream = layer.source.stream(&layer.blob, range).await.map_err(source_error)?;
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let decoding = {
        let (layer, run) = (Arc::clone(layer), Arc::clone(run));
        tokio::task::spawn_blocking(move || decode_run(&layer, start, last, &run, receiver))
    };
    let mut come = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(source_error)?;
        come += piece.length();
        if let Some(room) = on_link {
            drop(room.split((come >> 10).min(room.num_permits())));
            come %= 1 << 10;
        }
        if sender.send(piece).await.is_err() {
            break; // the decoder has all it needs, or has failed
        }
        if manners == Preempt::ForReaders
            && layer.scope.has_waiting_reads()
            && !complete(layer, run, |waiting| waiting == 0).is_empty()
        {
            return Ok(()); // the decoder keeps what is whole and ends
        }
    }
    drop(sender);
    decoding.await.map_err(|_| ReadError::Ended { layer: layer.layer_name() })?
}

/// Decodes from span `start` to span `last`, checking and keeping each span on the way.
fn decode_run(
    layer: &Arc<LayerReader>,
    start: u32,
    last: u32,
    run: &SpanRun,
    mut pieces: mpsc::Receiver<Untrusted<Bytes>>,
) -> Result<(), ReadError> {
    let index_error = |cause: IndexError| layer.index_error(cause);
    let codec_error = |cause: CodecError| ReadError::Codec { layer: layer.layer_name(), cause: Arc::new(cause) };
    let begin = layer.index.span(SpanId(start)).map_err(index_error)?;
    let window = layer.index.window(SpanId(start)).map_err(index_error)?.unwrap_or_default();
    let window = Window::from_bytes(&window)
        .map_err(|_| index_error(IndexError::Malformed { what: "a window does not unpack" }))?;
    let mark = Mark { blob: begin.blob, bit: begin.bit, decoded: begin.decoded.start, kind: begin.kind };
    let decoder = LayerDecoder::resume(layer.compression, Limits::of_known(), &mark, Some(&window));
    let mut decoder = decoder.map_err(codec_error)?;
    let mut out = OutputBuffer::new(OUTPUT);

    let mut at = start;
    let mut known = begin;
    let mut bytes = Vec::with_capacity(spans::length(&known));
    loop {
        let piece = pieces.blocking_recv().map(Untrusted::into_unverified);
        let ended = piece.is_none();
        let piece = piece.unwrap_or_default();
        let mut input: &[u8] = &piece;
        loop {
            let status = decoder.decode(&mut input, &mut out).map_err(codec_error)?;
            let mut decoded = out.decoded();
            while !decoded.is_empty() {
                let room = spans::length(&known) - bytes.len();
                let (now, later) = decoded.split_at(room.min(decoded.len()));
                bytes.extend_from_slice(now);
                decoded = later;
                if bytes.len() == spans::length(&known) {
                    layer.arrived(at, &known, std::mem::take(&mut bytes).into(), run)?;
                    if at == last {
                        return Ok(());
                    }
                    at += 1;
                    known = layer.index.span(SpanId(at)).map_err(index_error)?;
                    bytes.reserve(spans::length(&known));
                }
            }
            out.discard();
            if status != Status::OutputFull {
                break;
            }
        }
        if ended {
            decoder.finish().map_err(codec_error)?;
            return Err(ReadError::Ended { layer: layer.layer_name() });
        }
    }
}

impl LayerReader {
    /// Checks a span that was decoded, keeps it, and tells whoever waits for it.
    fn arrived(&self, span: u32, known: &crate::layer::Span, bytes: Bytes, run: &SpanRun) -> Result<(), ReadError> {
        let actual = blake3::hash(&bytes);
        if *actual.as_bytes() != known.check {
            return Err(ReadError::Corrupt {
                layer: self.layer_name(),
                span,
                expected: blake3::Hash::from_bytes(known.check).to_hex().as_str().into(),
                actual: actual.to_hex().as_str().into(),
            });
        }
        self.counters.fetched_spans.fetch_add(1, Ordering::Relaxed);
        self.clear_error();
        // First kept, then told: whoever has read it will find it here.
        self.keep(span, known, &bytes);
        if let Some(fetching) = run.iter().find(|fetching| fetching.span == span && fetching.sender.borrow().is_none())
        {
            self.landed(fetching, bytes);
        }
        Ok(())
    }

    /// Keeps a span that is right, if there is room for it.
    fn keep(&self, span: u32, known: &crate::layer::Span, bytes: &[u8]) {
        if self.content.generation(span).is_some() {
            self.counters.repeated_spans.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let kept = |generation, before, after| {
            self.own_change(before, after);
            self.note_verified(span, generation, after);
        };
        match self.content.fill(span, known.decoded.start, bytes, kept) {
            Ok(()) => self.make_room(bytes.len() as u64),
            Err(error) => {
                self.counters.unkept_spans.fetch_add(1, Ordering::Relaxed);
                self.store.cannot_keep("what was fetched", &error);
            }
        }
    }

    /// Ends a span's flight and tells whoever waits for it.
    fn landed(&self, InFlight { span, sender, .. }: &InFlight, bytes: Bytes) {
        let mut in_flight = lock(&self.in_flight);
        // Another flight may have begun since this one gave way.
        let flight = (*span, self.scope.mount());
        if in_flight.get(&flight).is_some_and(|flight| flight.same_channel(&sender.subscribe())) {
            in_flight.remove(&flight);
        }
        drop(in_flight);
        // What nobody waits for is in the store, and need not be in memory until the run ends.
        let waited_for = sender.receiver_count() > 0;
        sender.send_replace(Some(Ok(if waited_for { bytes } else { Bytes::new() })));
    }

    /// A span's bytes, if the store has them as they should be.
    fn stored(self: &Arc<Self>, span: u32) -> Option<Bytes> {
        let known = self.index.span(SpanId(span)).ok()?;
        self.content.generation(span)?;
        let mut bytes = vec![0; spans::length(&known)];
        self.read_stored(known.decoded.start, &mut bytes, &mut || ()).ok()?.then(|| bytes.into())
    }
}

/// How often a flight that is in trouble looks whether anybody still waits for it.
const LOOK_FOR_READERS: Duration = Duration::from_secs(1);
/// How long another process or mount may take to bring a span before this one fetches it, too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pauses between two looks at what another process brings, the first and the longest.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(16);

/// Pieces of a body held between the network and the decoder.
const PIECES_AHEAD: usize = 8;
/// A request ends with the span that comes to so many bytes of the blob: as large as the source takes for short.
pub(super) const REQUEST: u64 = 768 << 10;
/// Decoded bytes produced at a time.
const OUTPUT: usize = 256 << 10;
