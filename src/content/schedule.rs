//! Scheduling: reports reads of one layer to the predictors, and runs their requests within the mount's budget.
//!
//! The read path calls the scheduler when a piece is read, when a reader starts to wait for a missing run, and when it
//! has got that run. Reads do not depend on it, so failures are logged and dropped: a later read of the same place
//! returns the error.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::activity::{Cause, Reason};
use super::budget::in_kib;
use super::demand::Demand;
use super::fetch::{Along, Fetcher};
use crate::layer::IndexError;
use crate::offsets::DecodedOffset;
use crate::predict::{
    Event, Found, Group, Layout as _, Piece, Priority, REQUEST, ReadAhead, Siblings, Speculation, StreamId, Suggestion,
    Urgency, siblings,
};
use crate::span::{SpanId, SpanRange};
use crate::sync::lock;

/// Prefetch for the readers of one layer in one mount.
pub(super) struct Scheduler {
    fetcher: Arc<Fetcher>,
    pub(super) demand: Demand,
    readahead: Mutex<ReadAhead>,
    siblings: Mutex<Siblings>,
    /// The span near which nothing was missing at the last look; small files share a span.
    all_near: AtomicU32,
    streams: Streams,
}

/// Sequential readers of large files.
struct Streams {
    /// One queue per stream: its lock is held while a request of the stream runs.
    queues: Mutex<HashMap<StreamId, Weak<Queue>>>,
    /// What all of them may have on the link, and what the rest of files that are read here and there may.
    ahead: OnLink,
    rest: OnLink,
}

/// A share of the link.
#[derive(Clone)]
struct OnLink {
    room: Arc<Semaphore>,
    kib: usize,
}

type Queue = tokio::sync::Mutex<()>;

impl Scheduler {
    pub(super) fn new(fetcher: Arc<Fetcher>) -> Self {
        let spans = fetcher.layer.index.span_count();
        Self {
            fetcher,
            demand: Demand::new(spans),
            readahead: Mutex::default(),
            siblings: Mutex::default(),
            all_near: AtomicU32::new(u32::MAX),
            streams: Streams {
                queues: Mutex::default(),
                ahead: OnLink::new(ON_LINK_KIB),
                rest: OnLink::new(REST_ON_LINK_KIB),
            },
        }
    }

    /// Whether speculation is allowed in this layer: not if a profile predicts better, nor if it would evict what
    /// readers need.
    pub(super) fn may_speculate(&self) -> bool {
        self.speculation() == Speculation::Allowed && !self.demand.has_profile() && !self.fetcher.layer.is_crowded()
    }

    fn speculation(&self) -> Speculation {
        self.fetcher.scope.budget().speculation()
    }

    /// Reports a piece that was read from the cache.
    pub(super) fn read(&self, piece: &Piece) {
        let suggestions = self.predict_read(piece, Found::Cached);
        if piece.place.before == 0 {
            self.opened(piece);
        }
        self.run(suggestions, Cause::ahead(piece.place.entry));
    }

    /// Reports a piece with missing spans. Starts the reader's own window, and returns the other requests for
    /// [`Scheduler::run`] after the reader's own.
    #[must_use]
    pub(super) fn read_missing(&self, piece: &Piece) -> Vec<Suggestion> {
        let (now, later) = self
            .predict_read(piece, Found::Missing)
            .into_iter()
            .partition(|suggestion| suggestion.urgency == Urgency::Window);
        self.run(now, Cause::ahead(piece.place.entry));
        later
    }

    /// Records spans that a reader has and returns those that are new.
    pub(super) fn record(&self, spans: SpanRange) -> Vec<SpanId> {
        let first = self.demand.record(spans, || self.fetcher.scope.start());
        if !first.is_empty() {
            let mut siblings = lock(&self.siblings);
            first.iter().for_each(|span| siblings.read(*span));
        }
        first
    }

    fn predict_read(&self, piece: &Piece, found: Found) -> Vec<Suggestion> {
        let mut first = self.record(piece.spans);
        first.retain(|span| !self.demand.is_in_profile(*span));
        let speculation = if self.fetcher.layer.is_crowded() { Speculation::Off } else { self.speculation() };
        // Nothing is asked about it otherwise.
        let waiting = if first.is_empty() { 0 } else { self.fetcher.scope.budget().waiting_reads() };
        self.predict(Event::Read { piece, found, first: &first, speculation, waiting })
    }

    /// Reports that a reader starts to wait for `run` of a piece; returns what to fetch along with it.
    pub(super) fn missed(&self, piece: &Piece, run: SpanRange) -> Option<Along> {
        let suggestion = self.predict(Event::Missed { piece, run, speculation: self.speculation() }).pop()?;
        let along = self.room_for(&suggestion);
        if along.is_none() {
            lock(&self.readahead).declined(&suggestion);
        }
        along
    }

    /// Reports that a reader that missed `run` has it now.
    pub(super) fn answered(&self, piece: &Piece, run: SpanRange) {
        let suggestions = self.predict(Event::Answered { piece, run, speculation: self.speculation() });
        self.run(suggestions, Cause::ahead(piece.place.entry));
    }

    /// Whether all of `run` is in flight, or will be.
    pub(super) fn is_expected(&self, run: SpanRange) -> bool {
        run.iter().all(|span| self.demand.is_in_profile(span) || self.fetcher.layer.in_flight.has(span))
    }

    fn predict(&self, event: Event<'_>) -> Vec<Suggestion> {
        if !event.is_news() {
            return Vec::new();
        }
        let suggestions = lock(&self.readahead).on(event, &*self.fetcher.layer.index);
        suggestions.unwrap_or_else(|error| dropped(&error))
    }

    /// Reports a file read from its start: predicts siblings.
    pub(super) fn opened(&self, piece: &Piece) {
        let (layer, start) = (&self.fetcher.layer, piece.spans.start);
        // Usually nothing is missing, and this check is cheaper than looking at entries.
        if self.all_near.load(Ordering::Relaxed) == start.0 || !self.may_speculate() {
            return;
        }
        if self.fetcher.scope.start().is_none() {
            return;
        }
        let near = NEAR * layer.index.region();
        let end = piece.spans.end.forward(near).min(SpanId(layer.index.span_count()));
        if layer.content.has_all(SpanRange::new(start.back(near), end)) {
            return self.all_near.store(start.0, Ordering::Relaxed);
        }
        let suggestions = self.siblings_of(piece);
        self.run(suggestions.unwrap_or_else(|error| dropped(&error)), Cause::spans(Reason::Siblings));
    }

    fn siblings_of(&self, piece: &Piece) -> Result<Vec<Suggestion>, IndexError> {
        let (layer, file) = (&self.fetcher.layer, piece.place.entry);
        let Some(group) = Group::of(&layer.index, file)? else { return Ok(Vec::new()) };
        let allowance = lock(&self.siblings).opened(file, &group);
        if allowance == 0 {
            return Ok(Vec::new());
        }
        let chosen = group.choose(&layer.index, file, allowance, |span| layer.is_missing(span))?;
        lock(&self.siblings).chosen(&group, &chosen);
        Ok(siblings::suggestions(&chosen))
    }

    /// Runs the requests of predictors in order; speculative ones one after another.
    pub(super) fn run(&self, suggestions: Vec<Suggestion>, cause: Cause) {
        let mut speculative = Vec::new();
        for suggestion in suggestions {
            match suggestion.urgency {
                Urgency::Window | Urgency::Along => self.run_window(&suggestion, cause),
                Urgency::Stream(id) | Urgency::Rest(id) => self.run_stream(suggestion, id, cause),
                Urgency::Speculation(priority) => speculative.push((suggestion.spans, priority)),
            }
        }
        if !speculative.is_empty() {
            let fetcher = Arc::clone(&self.fetcher);
            self.fetcher.scope.spawn(async move {
                for (spans, priority) in speculative {
                    speculate(&fetcher, spans, priority, cause).await;
                }
            });
        }
    }

    fn run_window(&self, suggestion: &Suggestion, cause: Cause) {
        let Some(along) = self.room_for(suggestion) else {
            return lock(&self.readahead).declined(suggestion);
        };
        if let Err(error) = self.fetcher.start_ahead(along, cause) {
            tracing::debug!(%error, "cannot read ahead");
        }
    }

    fn run_stream(&self, mut suggestion: Suggestion, id: StreamId, cause: Cause) {
        let mut along = self.room_for(&suggestion);
        if along.is_none() {
            // As much as earlier ones and other readers leave room for, if that is worth a request.
            let (spans, index) = (suggestion.spans, &self.fetcher.layer.index);
            let part = index.within(spans.start, spans.count(), self.room_left(suggestion.urgency));
            let is_enough = |part: &SpanRange| index.blob_bytes(*part).is_ok_and(|bytes| bytes >= REQUEST / 2);
            let part = part.ok().filter(is_enough);
            along = part.and_then(|spans| self.room_for(&Suggestion { spans, ..suggestion }));
            suggestion.spans.start = along.as_ref().map_or(suggestion.spans.start, |along| along.spans.end);
            lock(&self.readahead).declined(&suggestion);
        }
        let Some(along) = along else { return };
        let (fetcher, queue) = (Arc::clone(&self.fetcher), self.streams.queue(id));
        let on_link = match suggestion.urgency {
            Urgency::Rest(_) => self.streams.rest.clone(),
            _ => self.streams.ahead.clone(),
        };
        self.fetcher.scope.spawn(async move {
            let _turn = queue.lock().await;
            fetcher.in_order(along, cause, |bytes| on_link.room_for(bytes)).await;
        });
    }

    /// Bytes for which [`Scheduler::room_for`] has room now.
    fn room_left(&self, urgency: Urgency) -> u64 {
        let budget = self.fetcher.scope.budget();
        match urgency {
            Urgency::Rest(_) => budget.rest_left(),
            _ => budget.ahead_left(),
        }
    }

    /// Budget for what is fetched before it is read, if available now.
    fn room_for(&self, suggestion: &Suggestion) -> Option<Along> {
        let (spans, budget) = (suggestion.spans, self.fetcher.scope.budget());
        let bytes = self.fetcher.layer.blob_bytes(spans).ok()?;
        let room = match suggestion.urgency {
            Urgency::Rest(_) => budget.rest(bytes),
            _ => budget.ahead(bytes),
        };
        Some(Along { spans, room: room? })
    }

    /// Fetches the missing part of some decoded bytes speculatively, once the budget allows it; returns when the bytes
    /// are cached or the fetch has failed.
    pub(super) async fn speculate(&self, bytes: Range<DecodedOffset>, priority: Priority, cause: Cause) {
        if bytes.is_empty() {
            return;
        }
        match self.fetcher.layer.spans_of(bytes) {
            Ok(spans) => self.speculate_on(spans, priority, cause).await,
            Err(error) => tracing::debug!(%error, "cannot speculate"),
        }
    }

    /// As [`Scheduler::speculate`], on spans.
    pub(super) async fn speculate_on(&self, spans: SpanRange, priority: Priority, cause: Cause) {
        if self.may_speculate() {
            speculate(&self.fetcher, spans, priority, cause).await;
        }
    }

    /// Whether these decoded bytes fit into one speculative request.
    pub(super) fn is_one_request(&self, bytes: Range<DecodedOffset>) -> bool {
        let layer = &self.fetcher.layer;
        let all = || layer.blob_bytes(layer.spans_of(bytes.clone())?);
        !bytes.is_empty() && all().is_ok_and(|all: u64| all <= PIECE)
    }
}

impl Streams {
    fn queue(&self, id: StreamId) -> Arc<Queue> {
        let mut queues = lock(&self.queues);
        queues.retain(|_, queue| queue.strong_count() > 0);
        if let Some(queue) = queues.get(&id).and_then(Weak::upgrade) {
            return queue;
        }
        let queue = Arc::<Queue>::default();
        queues.insert(id, Arc::downgrade(&queue));
        queue
    }
}

impl OnLink {
    fn new(kib: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(kib)), kib }
    }

    /// Waits for room for `bytes`.
    async fn room_for(&self, bytes: u64) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.room).acquire_many_owned(in_kib(bytes, self.kib));
        room.await.expect("it is never closed")
    }
}

async fn speculate(fetcher: &Arc<Fetcher>, spans: SpanRange, priority: Priority, cause: Cause) {
    let layer = &fetcher.layer;
    let mut requests = JoinSet::new();
    let mut at = spans.start;
    while let Some(from) = SpanRange::new(at, spans.end).iter().find(|span| layer.is_missing(*span)) {
        let mut request = SpanRange::one(from);
        let fits = |end| layer.blob_bytes(SpanRange::new(from, end)).is_ok_and(|bytes| bytes <= PIECE);
        while request.end < spans.end && layer.is_missing(request.end) && fits(request.end.next()) {
            request.end = request.end.next();
        }
        let Ok(bytes) = layer.blob_bytes(request) else { break };
        let room = fetcher.scope.budget().speculative(bytes, priority).await;
        let fetcher = Arc::clone(fetcher);
        requests.spawn(async move {
            fetcher.on_speculation(request, cause).await;
            drop(room);
        });
        at = request.end;
    }
    requests.join_all().await;
    // Spans in flight elsewhere arrive soon or not at all.
    let mut pause = SHORTEST_LOOK;
    let is_coming = |span| layer.content.generation(span).is_none() && layer.in_flight.has(span);
    while spans.iter().any(is_coming) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

fn dropped(error: &IndexError) -> Vec<Suggestion> {
    tracing::debug!(%error, "cannot predict what is read next");
    Vec::new()
}

/// Limit for streams on the link. Above the bandwidth-delay product (0.5 MiB at 200 Mbit/s and 20 ms, or at 50 Mbit/s
/// and 80 ms), so that the link does not idle while the reader waits for the first request; and not far above, so that
/// the first request does not share the link with many others.
const ON_LINK_KIB: usize = 2 << 10;
/// The same for the rest of files: two requests, so that a reader of something else waits no longer than for a round trip or
/// two more.
const REST_ON_LINK_KIB: usize = 1536;
/// Largest speculative request, in bytes of the blob: small, so that demand is not delayed.
const PIECE: u64 = 512 << 10;
/// First and longest pause between two checks whether spans are still in flight elsewhere. Waiting like a reader would
/// count as demand.
const SHORTEST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// If no ordinary span within this distance is missing, siblings are not searched.
const NEAR: u32 = 32;
