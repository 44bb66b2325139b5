//! Trials: reads of a layer are replayed beside a modelled link, to see what predictions bring and cost.
//!
//! Reads depend on each other as they did when they were recorded: each begins some time after those have ended that had
//! ended before it. What misses, what is in flight, budgets and requests are as in [`crate::content`]; transfers that are
//! on the link at a time share it.

use std::collections::{HashSet, VecDeque};

use super::event::{Event, Found, Piece, Speculation, StreamId, Suggestion, Urgency};
use super::layout::{Layout, REQUEST};
use super::readahead::ReadAhead;
use crate::layer::IndexError;
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// A layer's spans: where each begins, decoded and in the blob; and where the last one ends.
pub(super) struct Table {
    pub(super) decoded: Vec<u64>,
    pub(super) blob: Vec<u64>,
}

/// One read of a file.
#[derive(Clone, Debug)]
pub(super) struct Read {
    /// When it began and ended, in milliseconds.
    pub(super) begun: f64,
    pub(super) ended: f64,
    pub(super) piece: Piece,
}

/// What came of a trial.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Milliseconds until the last read has ended.
    pub(super) time: f64,
    /// Bytes of the blob that were asked for.
    pub(super) bytes: u64,
    pub(super) requests: u32,
    /// Reads that waited.
    pub(super) waits: u32,
}

/// A link.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// Milliseconds.
    pub(super) round_trip: f64,
    /// Bytes a millisecond.
    pub(super) rate: f64,
}

/// 200 Mbit/s and 20 ms.
pub(super) const USUAL: Link = Link { round_trip: 22.0, rate: 25_000.0 };

impl Layout for Table {
    fn span_count(&self) -> u32 {
        self.decoded.len() as u32 - 1
    }

    fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError> {
        Ok(if spans.is_empty() { 0 } else { self.blob[spans.end.index()] - self.blob[spans.start.index()] })
    }

    fn region(&self) -> u32 {
        let regions = self.decoded[self.decoded.len() - 1].div_ceil(super::layout::REGION).max(1);
        (u64::from(self.span_count()) / regions).max(1) as u32
    }

    fn region_at(&self, span: SpanId) -> Result<u32, IndexError> {
        let behind = self.decoded[span.index().min(self.decoded.len() - 1)] + super::layout::REGION;
        Ok(self.at(behind).0.saturating_sub(span.0).max(1))
    }

    fn starts_anew(&self, _: SpanId) -> Result<bool, IndexError> {
        Ok(true)
    }

    fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError> {
        Ok(self.at(end.0.saturating_sub(1)).next())
    }
}

impl Table {
    pub(super) fn even(spans: u32, decoded: u64, blob: u64) -> Self {
        let ends = |size: u64| (0..=u64::from(spans)).map(|span| span * size).collect();
        Self { decoded: ends(decoded), blob: ends(blob) }
    }

    fn at(&self, offset: u64) -> SpanId {
        let last = self.decoded.len() - 2;
        SpanId(self.decoded.partition_point(|start| *start <= offset).saturating_sub(1).min(last) as u32)
    }

    /// The spans of some bytes.
    pub(super) fn spans(&self, from: u64, to: u64) -> SpanRange {
        SpanRange::new(self.at(from), self.at(to - 1).next())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Missing,
    InFlight,
    Cached,
}

struct Transfer {
    /// When its first byte comes.
    from: f64,
    spans: VecDeque<SpanId>,
    /// Bytes left of the first of them.
    left: f64,
    holds: Hold,
}

#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    ahead: u64,
    rest: u64,
    speculative: u64,
    on_link: u64,
}

struct Waiting {
    read: usize,
    spans: Vec<SpanId>,
    unexpected: Vec<SpanRange>,
}

struct Trial<'a> {
    table: &'a Table,
    link: Link,
    speculation: Speculation,
    predictor: ReadAhead,
    now: f64,
    states: Vec<State>,
    seen: HashSet<SpanId>,
    transfers: Vec<Transfer>,
    queued: VecDeque<Transfer>,
    waiting: Vec<Waiting>,
    used: Hold,
    /// Queues of streams, with what their suggestions hold of the budgets.
    streams: Vec<(StreamId, VecDeque<(SpanRange, Hold)>)>,
    speculative: VecDeque<SpanRange>,
    outcome: Outcome,
}

const AHEAD: u64 = 8 << 20;
const REST: u64 = 4 << 20;
const SPECULATIVE: u64 = 1 << 20;
const ON_LINK: u64 = 2 << 20;
/// Of the rest of files.
const REST_ON_LINK: u64 = 1536 << 10;
/// Requests at a time.
const SHORT: usize = 16;

/// Replays some reads, in the order of their beginnings.
pub(super) fn run(table: &Table, reads: &[Read], link: Link, speculation: Speculation) -> Outcome {
    let spans = table.span_count() as usize;
    let mut trial = Trial {
        table,
        link,
        speculation,
        predictor: ReadAhead::default(),
        now: 0.0,
        states: vec![State::Missing; spans],
        seen: HashSet::new(),
        transfers: Vec::new(),
        queued: VecDeque::new(),
        waiting: Vec::new(),
        used: Hold::default(),
        streams: Vec::new(),
        speculative: VecDeque::new(),
        outcome: Outcome { time: 0.0, bytes: 0, requests: 0, waits: 0 },
    };
    trial.all(reads);
    trial.outcome
}

impl Trial<'_> {
    fn all(&mut self, reads: &[Read]) {
        // Those that had ended before each began; of a chain, the last one suffices.
        let mut ended = vec![f64::INFINITY; reads.len()];
        let (mut next, mut begun) = (0, vec![false; reads.len()]);
        let after = |at: usize| -> Vec<usize> {
            (0..reads.len())
                .filter(|other| *other != at && reads[*other].ended <= reads[at].begun && *other < at)
                .collect()
        };
        let after: Vec<Vec<usize>> = (0..reads.len())
            .map(|at| {
                let mut all = after(at);
                // Of those, whatever began before another one of them ended late enough is enough to look at.
                let latest = all.iter().map(|other| reads[*other].begun).fold(f64::NEG_INFINITY, f64::max);
                all.retain(|other| reads[*other].ended > latest);
                all
            })
            .collect();
        while next < reads.len() || ended.iter().any(|end| end.is_infinite()) {
            // What can begin, and when.
            let mut soonest: Option<(f64, usize)> = None;
            for at in next..reads.len().min(next + 64) {
                if begun[at] {
                    continue;
                }
                let ready = after[at].iter().map(|other| ended[*other]).fold(0.0, f64::max);
                if ready.is_infinite() {
                    continue;
                }
                let last = after[at].iter().map(|other| reads[*other].ended).fold(0.0, f64::max);
                let when = ready + (reads[at].begun - last).clamp(0.0, 0.5);
                if soonest.is_none_or(|(soonest, _)| when < soonest) {
                    soonest = Some((when, at));
                }
            }
            let arrival = self.next_event();
            match (soonest, arrival) {
                (Some((when, at)), arrival) if arrival.is_none_or(|arrival| when <= arrival) => {
                    self.advance(when.max(self.now), &mut ended, reads);
                    begun[at] = true;
                    if !self.begin(at, &reads[at].piece) {
                        ended[at] = self.now + 0.05;
                    }
                    while next < reads.len() && begun[next] {
                        next += 1;
                    }
                }
                (_, Some(arrival)) => self.advance(arrival, &mut ended, reads),
                (Some(_), None) => unreachable!("taken above"),
                (None, None) => panic!("reads wait for each other"),
            }
        }
        self.outcome.time = ended.iter().copied().fold(0.0, f64::max);
    }

    /// When something happens on the link next.
    fn next_event(&self) -> Option<f64> {
        let active: Vec<_> = self.transfers.iter().filter(|one| one.from <= self.now).collect();
        let share = self.link.rate / active.len().max(1) as f64;
        let done = active.iter().map(|one| self.now + one.left / share);
        let begins = self.transfers.iter().filter(|one| one.from > self.now).map(|one| one.from);
        done.chain(begins).min_by(f64::total_cmp)
    }

    /// Lets time pass, to the next event at most.
    fn advance(&mut self, to: f64, ended: &mut [f64], reads: &[Read]) {
        let active = self.transfers.iter().filter(|one| one.from <= self.now).count();
        let share = self.link.rate / active.max(1) as f64 * (to - self.now);
        let (now, mut arrived) = (self.now, Vec::new());
        for one in &mut self.transfers {
            if one.from > now {
                continue;
            }
            one.left -= share;
            if one.left < 0.5 {
                let span = one.spans.pop_front().expect("it has not ended");
                let bytes = self.table.blob[span.index() + 1] - self.table.blob[span.index()];
                let of_link = one.holds.on_link.min(bytes);
                one.holds.on_link -= of_link;
                self.used.on_link -= of_link;
                arrived.push(span);
                if let Some(next) = one.spans.front() {
                    one.left += (self.table.blob[next.index() + 1] - self.table.blob[next.index()]) as f64;
                }
            }
        }
        self.now = to;
        let (gone, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.transfers).into_iter().partition(|one| one.spans.is_empty());
        self.transfers = left;
        for one in gone {
            self.release(one.holds);
            if let Some(mut next) = self.queued.pop_front() {
                next.from = self.now + self.link.round_trip;
                self.transfers.push(next);
            }
        }
        for span in &arrived {
            self.states[span.index()] = State::Cached;
        }
        if !arrived.is_empty() {
            let mut answered = Vec::new();
            for waiting in &mut self.waiting {
                waiting.spans.retain(|span| !arrived.contains(span));
            }
            let mut at = 0;
            while at < self.waiting.len() {
                if self.waiting[at].spans.is_empty() {
                    answered.push(self.waiting.remove(at));
                } else {
                    at += 1;
                }
            }
            for one in answered {
                ended[one.read] = self.now;
                for run in one.unexpected {
                    let piece = &reads[one.read].piece;
                    let event = Event::Answered { piece, run, speculation: self.speculation };
                    let suggestions = self.predict(event);
                    self.run(suggestions);
                }
            }
        }
        self.pump();
    }

    fn release(&mut self, hold: Hold) {
        self.used.ahead -= hold.ahead;
        self.used.rest -= hold.rest;
        self.used.speculative -= hold.speculative;
        self.used.on_link -= hold.on_link;
    }

    fn predict(&mut self, event: Event<'_>) -> Vec<Suggestion> {
        if !event.is_news() {
            return Vec::new();
        }
        self.predictor.on(event, self.table).expect("the table is sound")
    }

    /// Begins a read; whether it has to wait.
    fn begin(&mut self, at: usize, piece: &Piece) -> bool {
        let first: Vec<_> = piece.spans.iter().filter(|span| self.seen.insert(*span)).collect();
        let absent: Vec<_> = piece.spans.iter().filter(|span| self.states[span.index()] != State::Cached).collect();
        let waiting = self.waiting.len() as u32 + u32::from(!absent.is_empty());
        let found = if absent.is_empty() { Found::Cached } else { Found::Missing };
        let event = Event::Read { piece, found, first: &first, speculation: self.speculation, waiting };
        let suggestions = self.predict(event);
        if found == Found::Cached {
            self.run(suggestions);
            return false;
        }
        self.outcome.waits += 1;
        let (now, later): (Vec<_>, Vec<_>) =
            suggestions.into_iter().partition(|suggestion| suggestion.urgency == Urgency::Window);
        self.run(now);
        let mut unexpected = Vec::new();
        for run in SpanRange::join(absent.iter().copied()) {
            let mut along = None;
            if !run.iter().all(|span| self.states[span.index()] == State::InFlight) {
                unexpected.push(run);
                let event = Event::Missed { piece, run, speculation: self.speculation };
                if let Some(suggestion) = self.predict(event).pop() {
                    along = self.room_for(&suggestion).map(|hold| (suggestion.spans, hold));
                    if along.is_none() {
                        self.predictor.declined(&suggestion);
                    }
                }
            }
            let (spans, hold) = along.unwrap_or((SpanRange::none_at(run.end), Hold::default()));
            self.start(SpanRange::new(run.start, spans.end.max(run.end)), run.start, hold);
        }
        self.run(later);
        self.waiting.push(Waiting { read: at, spans: absent, unexpected });
        true
    }

    /// Asks for the missing spans of a range, as one or several requests.
    fn start(&mut self, spans: SpanRange, wanted: SpanId, hold: Hold) {
        let mut runs: Vec<Vec<SpanId>> = Vec::new();
        let mut begun = 0;
        for span in spans.iter() {
            if self.states[span.index()] != State::Missing {
                continue;
            }
            self.states[span.index()] = State::InFlight;
            let blob = self.table.blob[span.index()];
            let is_full = blob.saturating_sub(begun) >= REQUEST;
            match runs.last_mut() {
                Some(run) if run[run.len() - 1].next() == span && span != wanted && !is_full => run.push(span),
                _ => {
                    begun = blob;
                    runs.push(vec![span]);
                }
            }
        }
        if runs.is_empty() {
            return self.release(hold);
        }
        let last = runs.len() - 1;
        for (number, run) in runs.into_iter().enumerate() {
            // Budgets are released with the last one.
            let holds = if number == last { hold } else { Hold::default() };
            self.transfer(run, holds);
        }
    }

    fn transfer(&mut self, run: Vec<SpanId>, holds: Hold) {
        let size = |span: &SpanId| self.table.blob[span.index() + 1] - self.table.blob[span.index()];
        self.outcome.bytes += run.iter().map(size).sum::<u64>();
        self.outcome.requests += 1;
        let left = size(&run[0]) as f64;
        let from = self.now + self.link.round_trip;
        let transfer = Transfer { from, spans: run.into(), left, holds };
        if self.transfers.len() < SHORT {
            self.transfers.push(transfer);
        } else {
            self.queued.push_back(transfer);
        }
    }

    fn room_for(&mut self, suggestion: &Suggestion) -> Option<Hold> {
        let bytes = self.table.blob_bytes(suggestion.spans).expect("a sound table");
        let is_rest = matches!(suggestion.urgency, Urgency::Rest(_));
        let (used, most) = if is_rest { (&mut self.used.rest, REST) } else { (&mut self.used.ahead, AHEAD) };
        let bytes = bytes.min(most);
        if *used + bytes > most {
            return None;
        }
        *used += bytes;
        Some(if is_rest { Hold { rest: bytes, ..Hold::default() } } else { Hold { ahead: bytes, ..Hold::default() } })
    }

    fn run(&mut self, suggestions: Vec<Suggestion>) {
        for mut suggestion in suggestions {
            match suggestion.urgency {
                Urgency::Window | Urgency::Along => match self.room_for(&suggestion) {
                    Some(hold) => self.start(suggestion.spans, suggestion.spans.start, hold),
                    None => self.predictor.declined(&suggestion),
                },
                Urgency::Stream(id) | Urgency::Rest(id) => {
                    let mut room = self.room_for(&suggestion).map(|hold| (suggestion.spans, hold));
                    if room.is_none() {
                        let spans = suggestion.spans;
                        let room_left = match suggestion.urgency {
                            Urgency::Rest(_) => REST - self.used.rest,
                            _ => AHEAD - self.used.ahead,
                        };
                        let request = self.table.within(spans.start, spans.count(), room_left).expect("a sound table");
                        if self.table.blob_bytes(request).expect("a sound table") >= REQUEST / 2 {
                            let less = Suggestion { spans: request, ..suggestion };
                            room = self.room_for(&less).map(|hold| (request, hold));
                        }
                        suggestion.spans.start = room.map_or(spans.start, |(spans, _)| spans.end);
                        self.predictor.declined(&suggestion);
                    }
                    let Some(room) = room else { continue };
                    match self.streams.iter_mut().find(|(known, _)| *known == id) {
                        Some((_, queue)) => queue.push_back(room),
                        None => self.streams.push((id, VecDeque::from([room]))),
                    }
                }
                Urgency::Speculation(_) => self.speculative.push_back(suggestion.spans),
            }
        }
        self.pump();
    }

    /// Begins what budgets allow.
    fn pump(&mut self) {
        for stream in 0..self.streams.len() {
            while let Some((spans, hold)) = self.streams[stream].1.front().copied() {
                let mut request = self.table.within(spans.start, spans.count(), REQUEST).expect("a sound table");
                request.end = request.end.max(spans.start.next());
                let most = if hold.rest > 0 { REST_ON_LINK } else { ON_LINK };
                let bytes = self.table.blob_bytes(request).expect("a sound table").min(most);
                if self.used.on_link + bytes > most {
                    break;
                }
                let left = SpanRange::new(request.end, spans.end);
                let all = hold.ahead + hold.rest;
                let part = if left.is_empty() { all } else { bytes.min(all) };
                let of = |whole: u64| if whole == 0 { 0 } else { part };
                let mut now = Hold { ahead: of(hold.ahead), rest: of(hold.rest), ..Hold::default() };
                let later = Hold { ahead: hold.ahead - now.ahead, rest: hold.rest - now.rest, ..Hold::default() };
                now.on_link = bytes;
                self.used.on_link += bytes;
                let queue = &mut self.streams[stream].1;
                if left.is_empty() {
                    queue.pop_front();
                } else {
                    queue[0] = (left, later);
                }
                self.start(request, request.start, now);
            }
        }
        while let Some(spans) = self.speculative.front().copied() {
            let Some(from) = spans.iter().find(|span| self.states[span.index()] == State::Missing) else {
                self.speculative.pop_front();
                continue;
            };
            let mut request = SpanRange::one(from);
            let bytes = |request| self.table.blob_bytes(request).expect("a sound table");
            while request.end < spans.end
                && self.states[request.end.index()] == State::Missing
                && bytes(SpanRange::new(from, request.end.next())) <= 512 << 10
            {
                request.end = request.end.next();
            }
            let size = bytes(request).min(SPECULATIVE);
            if self.used.speculative + size > SPECULATIVE {
                break;
            }
            self.used.speculative += size;
            self.speculative[0].start = request.end;
            self.start(request, request.start, Hold { speculative: size, ..Hold::default() });
        }
    }
}

#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layer::EntryId;
    use crate::predict::event::PlaceInFile;

    /// A file that is all of its layer.
    struct Data {
        table: Table,
        reads: Vec<Read>,
    }

    impl Data {
        /// A file of `spans` spans.
        fn of(spans: u32, decoded: u64, blob: u64) -> Self {
            Self { table: Table::even(spans, decoded, blob), reads: Vec::new() }
        }

        /// A compressed database of 72 MiB.
        fn database() -> Self {
            Self::of(240, 300 << 10, 150 << 10)
        }

        fn size(&self) -> u64 {
            *self.table.decoded.last().unwrap()
        }

        /// Reads once `begun` has come, behind all that ended before.
        fn read_at(&mut self, begun: f64, from: u64, length: u64) {
            let (from, end) = (from.min(self.size() - length), self.size());
            let place = PlaceInFile { entry: EntryId(1), before: from, behind: end - from - length };
            let bytes = DecodedOffset(from)..DecodedOffset(from + length);
            let piece = Piece { bytes, spans: self.table.spans(from, from + length), place };
            self.reads.push(Read { begun, ended: begun + 0.5, piece });
        }

        /// Reads behind the last read.
        fn read(&mut self, from: u64, length: u64) {
            self.read_at(self.reads.len() as f64, from, length);
        }

        /// Without and with speculation.
        fn outcomes(&self) -> [Outcome; 2] {
            [Speculation::Off, Speculation::Allowed]
                .map(|speculation| run(&self.table, &self.reads, USUAL, speculation))
        }

        /// Time and bytes with speculation, of those without.
        fn shares(&self) -> (f64, f64) {
            let [none, usual] = self.outcomes();
            (usual.time / none.time, usual.bytes as f64 / none.bytes as f64)
        }

        /// Time with speculation, of that of all bytes at the rate of the link.
        fn of_line(&self) -> f64 {
            self.outcomes()[1].time / (*self.table.blob.last().unwrap() as f64 / USUAL.rate)
        }
    }

    /// Pages, at random but always the same.
    fn places(seed: u64, below: u64) -> impl FnMut() -> u64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % (below / PAGE) * PAGE
        }
    }

    /// All multiples of `step` below `end`, in no order.
    fn shuffled(step: u64, end: u64) -> Vec<u64> {
        let mut all: Vec<_> = (0..end / step).map(|number| number * step).collect();
        let mut place = places(7, u64::MAX >> 20);
        all.sort_by_cached_key(|_| place());
        all
    }

    const PAGE: u64 = 4 << 10;
    const MIB: u64 = 1 << 20;

    /// Rows by an index at the end, as SQLite has them: a page of each, and now and then a page between.
    fn indexed_rows(number: usize) -> Data {
        let mut data = Data::database();
        let (mut rows, mut index) = (places(1, 68 * MIB), places(2, 2 * MIB));
        data.read(0, 4 * PAGE);
        for _ in 0..number {
            data.read(data.size() - 2 * MIB + index(), PAGE);
            data.read(rows(), PAGE);
        }
        data
    }

    #[test]
    fn few_lookups_pay_for_few_wrong_guesses() {
        let (time, bytes) = indexed_rows(20).shares();
        assert!(time < 1.02 && bytes < 1.2, "{time:.2} of the time, {bytes:.2} of the bytes");
        // An index that was read as a whole, and rows.
        let (mut data, mut rows) = (Data::database(), places(3, 68 * MIB));
        data.read(data.size() - 190_000, 190_000);
        (0..20).for_each(|_| data.read(rows(), 2 * PAGE));
        let (time, bytes) = data.shares();
        assert!(time < 1.02 && bytes < 1.2, "{time:.2} of the time, {bytes:.2} of the bytes");
        // A tree whose pages lie anywhere.
        let (mut data, mut rows) = (Data::database(), places(4, 70 * MIB));
        (0..36).for_each(|_| data.read(rows(), PAGE));
        let (time, bytes) = data.shares();
        assert!(time < 1.02 && bytes < 1.2, "{time:.2} of the time, {bytes:.2} of the bytes");
    }

    #[test]
    fn many_lookups_are_worth_all_of_the_file() {
        let (time, bytes) = indexed_rows(150).shares();
        assert!(time < 0.8 && bytes < 2.5, "{time:.2} of the time, {bytes:.2} of the bytes");
        let (time, bytes) = indexed_rows(50).shares();
        assert!(time < 1.1 && bytes < 2.5, "{time:.2} of the time, {bytes:.2} of the bytes, when it ends too soon");
    }

    #[test]
    fn a_cursor_in_another_order_gets_the_line() {
        let mut data = Data::of(300, 340 << 10, 144 << 10);
        shuffled(512 << 10, data.size()).into_iter().for_each(|place| data.read(place, 512 << 10));
        let time = data.of_line();
        assert!(time < 1.25, "{time:.2}");
    }

    #[test]
    fn samples_in_another_order_get_the_line() {
        let mut data = Data::of(4096, 16 << 10, 16 << 10);
        shuffled(256 << 10, data.size()).into_iter().for_each(|place| data.read(place, PAGE));
        let time = data.of_line();
        assert!(time < 1.2, "{time:.2}");
    }

    #[test]
    fn a_walk_backwards_in_many_rounds_gets_the_line() {
        let mut data = Data::of(4096, 16 << 10, 16 << 10);
        let region = 256 << 10;
        (0..6).for_each(|round| (0..40).for_each(|step| data.read((239 - step * 6 - round) * region, PAGE)));
        let time = data.of_line();
        assert!(time < 1.3, "{time:.2}");
    }

    #[test]
    fn few_samples_bring_little_else() {
        let mut data = Data::of(4096, 16 << 10, 16 << 10);
        shuffled(256 << 10, data.size())[..20].iter().for_each(|place| data.read(*place, PAGE));
        let [none, usual] = data.outcomes();
        assert!(usual.bytes < none.bytes + MIB && usual.time < 1.02 * none.time, "{usual:?} {none:?}");
    }

    /// Eight at a time, backwards, as Lance takes rows.
    #[test]
    fn the_same_rows_of_many_columns_bring_little_else() {
        let mut data = Data::of(3400, 16 << 10, 16 << 10);
        let (mut rows, columns) = (places(5, 2 * MIB), 5);
        let mut all: Vec<_> = (0..50).map(|_| rows()).collect();
        all.sort_unstable();
        for column in 0..columns {
            for (number, row) in all.iter().rev().enumerate() {
                let begun = (number / 8 + column * 7) as f64;
                data.read_at(begun, data.size() - 2 * MIB * (column as u64 + 1) + row, 2 * PAGE);
            }
        }
        let (time, bytes) = data.shares();
        assert!(time < 1.1 && bytes < 1.2, "{time:.2} of the time, {bytes:.2} of the bytes");
    }

    #[test]
    fn a_file_in_order_gets_the_line() {
        let mut data = Data::of(300, 340 << 10, 144 << 10);
        (0..data.size() / (512 << 10)).for_each(|number| data.read(number * (512 << 10), 512 << 10));
        let [none, usual] = data.outcomes();
        assert!(data.of_line() < 1.15 && usual.time < 1.02 * none.time, "{usual:?}");
    }
}
