//! Readahead: what follows a read in the tar, or in its file.
//!
//! Spans are in tar order, so the next read is often a neighbour: the rest of a large file, or the next small file of a
//! directory.
//!
//! - *Window.* A reader that continues where a known reader stopped gets a window that grows up to 64 spans or 4 MiB of
//!   the blob. Up to 16 readers per layer are remembered; a reader may skip two spans. Small reads at random places of a
//!   large file have none ([`Coverage`]).
//! - *Stream.* A reader is a stream if its pieces grow like the kernel's readahead, or if its first read of a file is
//!   as large as those of `cat` and `cp`, or if it has waited for four of the kernel's largest reads in a row. The next
//!   6 MiB of the blob are then suggested, in order, or four times what it has read, if that is less.
//! - *Neighbours.* A random read also fetches up to five following spans (at most 512 KiB), about what the link carries
//!   in the saved round trip; the two preceding spans are fetched after the reader was answered. In a large file, that
//!   ends while nothing reads them ([`Coverage`]). Spans covered by a profile are left to the profile.
//!
//! Numbers of spans are those of ordinary spans; of smaller ones, more are meant ([`Layout::region_at`]).
//!
//! This module only does bookkeeping with span numbers.

use super::coverage::Coverage;
use super::event::{
    Event, Found, LARGE, LARGE_FILE, Piece, Priority, STREAMED, Speculation, StreamId, Suggestion, Urgency,
};
use super::layout::{Layout, REQUEST};
use crate::layer::IndexError;
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// The last known positions of readers in a layer.
#[derive(Debug, Default)]
pub struct ReadAhead {
    windows: Recent<Window, READERS>,
    streams: Recent<Stream, STREAMS>,
    coverage: Coverage,
    /// Number of streams so far.
    begun: u64,
}

/// The last `N` values, latest last.
#[derive(Debug)]
struct Recent<T, const N: usize>(Vec<T>);

/// A reader that may continue in tar order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Window {
    /// The first span that was not fetched for it.
    next: SpanId,
    /// Size of its last window, in spans.
    size: u32,
}

/// A sequential reader of large pieces of one file.
#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// The last piece.
    piece: Piece,
    /// The first span that was not fetched for it.
    next: SpanId,
    /// Where its first piece began.
    from: DecodedOffset,
    /// Number of large pieces it has waited for in a row; at least [`SURE`] once there is other evidence.
    pieces: u32,
}

impl Piece {
    /// Whether it is the first read of a copy, by `cat`, `cp` and the like.
    fn begins_copy(&self) -> bool {
        self.place.before == 0 && self.length() == OPENING
    }

    /// Whether the kernel's readahead has grown from `before` to this piece, as it does when a file is read from its
    /// start, not mapped.
    fn grows_from(&self, before: &Self) -> bool {
        before.bytes.end == self.bytes.start && self.length() >= 2 * before.length()
    }
}

impl ReadAhead {
    /// Handles an event; returns what to fetch, most urgent first.
    ///
    /// Suggestions count as accepted; [`ReadAhead::declined`] withdraws one.
    ///
    /// # Errors
    /// The index is damaged.
    pub fn on(&mut self, event: Event<'_>, layout: &impl Layout) -> Result<Vec<Suggestion>, IndexError> {
        match event {
            Event::Read { piece, found, first, speculation, waiting } => {
                let mut suggestions = Vec::new();
                let rest = self.coverage.read(piece, (first, waiting), &mut self.begun, layout)?;
                if !first.is_empty() && !self.coverage.is_at_random(piece, layout)? {
                    for span in first {
                        suggestions.extend(self.follow(*span, layout)?);
                    }
                }
                if piece.may_be_streamed() {
                    suggestions.extend(self.stream(piece, found, layout)?);
                }
                match rest {
                    Some(rest) if speculation == Speculation::Allowed => suggestions.push(rest),
                    Some(rest) => self.declined(&rest),
                    None => {}
                }
                Ok(suggestions)
            }
            Event::Missed { piece, run, speculation } => {
                Ok(self.missed(piece, run, speculation, layout)?.into_iter().collect())
            }
            Event::Answered { piece, run, speculation } => {
                // A large piece belongs to a large file; what lies before that is unrelated.
                if speculation == Speculation::Off || piece.length() >= STREAMED {
                    return Ok(Vec::new());
                }
                let spans = near_before(run.start, layout)?;
                if layout.blob_bytes(spans)? > self.coverage.allowance(piece, layout)? {
                    return Ok(Vec::new());
                }
                self.coverage.guessed(piece, spans, layout)?;
                Ok(Vec::from_iter(
                    (!spans.is_empty()).then_some(Suggestion { spans, urgency: Urgency::Speculation(Priority::Low) }),
                ))
            }
        }
    }

    /// Records that the budget declined a suggestion, or the rest of one: its spans are not fetched.
    pub fn declined(&mut self, suggestion: &Suggestion) {
        let SpanRange { start, end } = suggestion.spans;
        match suggestion.urgency {
            Urgency::Window | Urgency::Along => {
                self.coverage.withdraw(suggestion.spans);
                if let Some(reader) = self.windows.take(|reader| reader.next == end) {
                    let size = if suggestion.urgency == Urgency::Window { reader.size / 2 } else { 0 };
                    self.windows.put(Window { next: start, size });
                }
            }
            Urgency::Stream(id) => {
                if let Some(stream) = self.streams.take(|stream| stream.id == id) {
                    self.streams.put(Stream { next: stream.next.min(start), ..stream });
                }
            }
            Urgency::Rest(id) => self.coverage.declined(id, suggestion.spans),
            Urgency::Speculation(_) => {}
        }
    }

    /// The next window, once the reader of `span` has reached the end of the last one, or, after a long sequential run,
    /// its second half.
    fn follow(&mut self, span: SpanId, layout: &impl Layout) -> Result<Option<Suggestion>, IndexError> {
        let region = layout.region_at(span)?;
        let close = |reader: &Window| {
            let early = if reader.size < LONG * region { reader.size.min(region) } else { reader.size / 2 };
            reader.next > span && reader.next.0 - span.0 <= early
        };
        let Some(reader) = self.windows.take(close) else { return Ok(None) };
        let spans = layout.within(reader.next, wider(reader.size, region), WINDOW_BYTES)?;
        self.windows.put(Window { next: spans.end, size: spans.count() });
        Ok((!spans.is_empty()).then_some(Suggestion { spans, urgency: Urgency::Window }))
    }

    /// What to fetch along with `run`: the window of its reader, or some neighbours.
    fn missed(
        &mut self,
        piece: &Piece,
        run: SpanRange,
        speculation: Speculation,
        layout: &impl Layout,
    ) -> Result<Option<Suggestion>, IndexError> {
        let region = layout.region_at(run.start)?;
        let neighbours = if speculation == Speculation::Allowed { NEAR_AFTER * region } else { 0 };
        let is_at_random = self.coverage.is_at_random(piece, layout)?;
        let near = |reader: &Window| (run.start.back(SKIPPED * region)..=run.start).contains(&reader.next);
        let reader = self.windows.take(near).filter(|_| !is_at_random);
        let continues = reader.is_some_and(|reader| reader.next == run.start);
        let least = if continues { (2 * run.count()).min(region) } else { 1 };
        let window = reader.map_or(neighbours, |reader| reader.size.max(neighbours).max(least));
        let is_guess = window <= NEAR_AFTER * region;
        let bytes = match is_guess {
            // Not all at once: what the first ones bring says what others are worth.
            true => NEAR_BYTES.min(self.coverage.allowance(piece, layout)? / 2),
            false => WINDOW_BYTES,
        };
        let mut spans = layout.within(run.end, window, bytes)?;
        if continues {
            // If slowly, where guesses bring nothing.
            spans.end = spans.end.max(layout.within(run.end, least, NEAR_BYTES)?.end);
        }
        if is_guess && piece.file_size() >= LARGE_FILE {
            // Who reads the tail of a large file does not go on with the next one.
            spans.end = spans.end.min(layout.end_of(piece.file_end())?).max(spans.start);
        }
        if layout.blob_bytes(spans)? == 0 {
            spans.end = spans.start;
        }
        if is_guess && speculation == Speculation::Allowed {
            self.coverage.guessed(piece, spans, layout)?;
        }
        self.windows.put(Window { next: spans.end, size: spans.count() });
        Ok((!spans.is_empty()).then_some(Suggestion { spans, urgency: Urgency::Along }))
    }

    /// What follows in the file of `piece`, if the piece is one of many large ones in a row, or of growing ones, or the
    /// first one of a copy. A row begins with a missing piece.
    fn stream(&mut self, piece: &Piece, found: Found, layout: &impl Layout) -> Result<Option<Suggestion>, IndexError> {
        let stream = match (self.stream_of(piece, layout)?, found) {
            (Some(stream), _) => stream.continued(piece, found),
            (None, Found::Missing) => {
                self.begun += 1;
                let pieces = if piece.begins_copy() { SURE } else { u32::from(piece.length() >= LARGE) };
                let (id, next, from) = (StreamId(self.begun), piece.spans.end, piece.bytes.start);
                Stream { id, next, piece: piece.clone(), from, pieces }
            }
            (None, Found::Cached) => return Ok(None),
        };
        let (id, next, is_sure) = (stream.id, stream.next, stream.pieces >= SURE);
        let most = (MORE_THAN_READ * (stream.piece.bytes.end - stream.from)).min(STREAM_BYTES);
        if is_sure {
            // The stream ends with its file; a window would continue beyond it.
            let start = stream.piece.spans.start;
            self.windows.take(|reader| (start..=next).contains(&reader.next));
        }
        self.streams.put(stream);
        if !is_sure {
            return Ok(None);
        }
        let last = layout.end_of(piece.file_end())?;
        let in_flight = layout.blob_bytes(SpanRange::new(piece.spans.end, next))?;
        let more = most.saturating_sub(in_flight);
        // Too little for a request.
        if next >= last || more < REQUEST {
            return Ok(None);
        }
        let spans = layout.within(next, last.0 - next.0, more)?;
        if let Some(stream) = self.streams.last_mut() {
            stream.next = spans.end;
        }
        Ok((!spans.is_empty()).then_some(Suggestion { spans, urgency: Urgency::Stream(id) }))
    }

    /// Removes and returns the stream of `piece`. Two pieces may share a span, small pieces are not reported, and the
    /// kernel sends two reads at once.
    fn stream_of(&mut self, piece: &Piece, layout: &impl Layout) -> Result<Option<Stream>, IndexError> {
        let start = piece.spans.start;
        let unseen = UNSEEN * layout.region_at(start)?;
        let near = start.back(unseen)..=start.forward(unseen);
        let continues = |stream: &Stream| near.contains(&stream.piece.spans.end);
        Ok(self.streams.take(|stream| stream.piece.file_end() == piece.file_end() && continues(stream)))
    }
}

impl Stream {
    fn continued(self, piece: &Piece, found: Found) -> Self {
        if piece.bytes.end <= self.piece.bytes.end {
            return self;
        }
        let sure = if piece.grows_from(&self.piece) { SURE } else { self.pieces };
        let pieces = sure + u32::from(found == Found::Missing && piece.length() >= LARGE);
        Self { id: self.id, next: self.next.max(piece.spans.end), pieces, from: self.from, piece: piece.clone() }
    }
}

impl<T, const N: usize> Recent<T, N> {
    /// Removes and returns the latest value that passes `test`.
    fn take(&mut self, test: impl Fn(&T) -> bool) -> Option<T> {
        self.0.iter().rposition(test).map(|at| self.0.remove(at))
    }

    /// Adds a value; drops the oldest if there are too many.
    fn put(&mut self, one: T) {
        if self.0.len() == N {
            self.0.remove(0);
        }
        self.0.push(one);
    }

    fn last_mut(&mut self) -> Option<&mut T> {
        self.0.last_mut()
    }
}

impl<T, const N: usize> Default for Recent<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The neighbours before `span`; empty if decoding them starts further away.
fn near_before(span: SpanId, layout: &impl Layout) -> Result<SpanRange, IndexError> {
    let mut near = SpanRange::none_at(span);
    let before = NEAR_BEFORE * layout.region_at(span)?;
    for before in SpanRange::new(span.back(before), span).iter().rev() {
        let wider = SpanRange::new(before, span);
        if !layout.starts_anew(near.start)? || !layout.starts_anew(before)? || layout.blob_bytes(wider)? > NEAR_BYTES {
            break;
        }
        near = wider;
    }
    Ok(near)
}

/// The window after one that was read to its end.
fn wider(window: u32, region: u32) -> u32 {
    let more = if window < LONG * region { (window / 2).max(region.min(window)) } else { window };
    (window + more).min(WIDEST * region)
}

/// Limit for streams per layer.
const STREAMS: usize = 4;
/// Spans between two pieces of a stream that may be read without an event.
const UNSEEN: u32 = 16;
/// This many large pieces in order are a sequential read, not the start of a program.
const SURE: u32 = 4;
/// The kernel's first readahead for reads of 128 KiB, if its limit is four times that; smaller reads get less, and
/// larger ones are detected at the next piece. A page of a mapped file comes with more (`get_init_ra_size` and
/// `do_sync_mmap_readahead` of Linux).
const OPENING: u64 = 256 << 10;
/// Bytes of the blob suggested ahead of a stream.
const STREAM_BYTES: u64 = 6 << 20;
/// Bytes suggested for each one that was read of it: some first reads are like those of a copy, and no others follow.
const MORE_THAN_READ: u64 = 4;
/// Limit for readers per layer.
const READERS: usize = 16;
/// A reader that skips up to this many spans still counts as sequential.
const SKIPPED: u32 = 2;
/// A window of this many spans results from sequential reading, not from chance.
const LONG: u32 = 8;
/// Limits of a window, in spans and in bytes of the blob.
const WIDEST: u32 = 64;
const WINDOW_BYTES: u64 = 4 << 20;
/// Speculative neighbours. Replayed at 200 Mbit/s and 20 ms, start-up traces of Python, Node.js, TensorFlow and
/// PostgreSQL wait between half and two thirds as often with these numbers as without, and fetch 23 to 50 % more; with
/// larger numbers they fetch even more and wait hardly less.
const NEAR_BEFORE: u32 = 2;
const NEAR_AFTER: u32 = 5;
/// Fetching neighbours may take about as long as the round trip that it saves: the bandwidth-delay product at 200
/// Mbit/s and 20 ms, or at 50 Mbit/s and 80 ms.
const NEAR_BYTES: u64 = 512 << 10;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layer::EntryId;
    use crate::offsets::DecodedOffset;
    use crate::predict::event::PlaceInFile;
    use crate::predict::layout::testing::Even;

    /// A layer of spans so small that only their number limits windows.
    const SMALL: Even = Even { spans: 10_000, bytes: 1 << 10, region: 1 };
    /// Spans as large as those of a first pass.
    const USUAL: Even = Even { spans: 20_000, bytes: 256 << 10, region: 1 };

    fn spans(start: u32, end: u32) -> SpanRange {
        SpanRange::new(SpanId(start), SpanId(end))
    }

    fn suggestion(start: u32, end: u32, urgency: Urgency) -> Suggestion {
        Suggestion { spans: spans(start, end), urgency }
    }

    fn missed(ahead: &mut ReadAhead, start: u32, speculation: Speculation) -> Vec<Suggestion> {
        let run = spans(start, start + 1);
        ahead.on(Event::Missed { piece: &small_piece(run), run, speculation }, &SMALL).unwrap()
    }

    /// A read of one byte of a small file.
    fn small_piece(spans: SpanRange) -> Piece {
        let place = PlaceInFile { entry: EntryId(1), before: 0, behind: 0 };
        Piece { bytes: DecodedOffset(0)..DecodedOffset(1), spans, place }
    }

    /// The event of a read of which these spans are read for the first time.
    fn read<'a>(piece: &'a Piece, found: Found, first: &'a [SpanId]) -> Event<'a> {
        Event::Read { piece, found, first, speculation: Speculation::Off, waiting: 1 }
    }

    /// One span is read for the first time.
    fn touched(ahead: &mut ReadAhead, span: u32) -> Vec<Suggestion> {
        ahead.on(read(&small_piece(spans(span, span + 1)), Found::Cached, &[SpanId(span)]), &SMALL).unwrap()
    }

    #[test]
    fn a_reader_that_continues_is_given_growing_windows() {
        let mut ahead = ReadAhead::default();
        assert_eq!(missed(&mut ahead, 5, Speculation::Off), [], "it is not known whether it continues");
        assert_eq!(touched(&mut ahead, 5), []);
        assert_eq!(missed(&mut ahead, 6, Speculation::Off), [suggestion(7, 8, Urgency::Along)]);
        let mut next = 8;
        for window in [2, 3, 4, 6, 9, 18, 36, 64, 64] {
            assert_eq!(touched(&mut ahead, next - 1), [suggestion(next, next + window, Urgency::Window)]);
            next += window;
        }
        assert_eq!(touched(&mut ahead, next - 33), [], "still in the first half");
        assert_eq!(touched(&mut ahead, next - 32), [suggestion(next, next + 64, Urgency::Window)]);
    }

    #[test]
    fn a_window_is_bounded_by_bytes_and_by_the_layer() {
        let mut ahead = ReadAhead::default();
        ahead.windows.put(Window { next: SpanId(100), size: 64 });
        let piece = small_piece(spans(99, 100));
        assert_eq!(
            ahead.on(read(&piece, Found::Cached, &[SpanId(99)]), &USUAL).unwrap(),
            [suggestion(100, 116, Urgency::Window)],
            "4 MiB"
        );
        let short = Even { spans: 117, ..USUAL };
        assert_eq!(
            ahead.on(read(&piece, Found::Cached, &[SpanId(115)]), &short).unwrap(),
            [suggestion(116, 117, Urgency::Window)],
            "the layer ends"
        );
    }

    #[test]
    fn a_window_without_room_is_tried_again_at_half_the_size() {
        let mut ahead = ReadAhead::default();
        ahead.windows.put(Window { next: SpanId(100), size: 8 });
        let suggestions = touched(&mut ahead, 96);
        assert_eq!(suggestions, [suggestion(100, 116, Urgency::Window)]);
        ahead.declined(&suggestions[0]);
        assert_eq!(ahead.windows.0, [Window { next: SpanId(100), size: 8 }]);
        assert_eq!(touched(&mut ahead, 99), [suggestion(100, 116, Urgency::Window)]);
    }

    #[test]
    fn a_reader_that_jumps_is_a_new_one() {
        let mut ahead = ReadAhead::default();
        let allowed = Speculation::Allowed;
        assert_eq!(missed(&mut ahead, 5, allowed), [suggestion(6, 11, Urgency::Along)], "neighbours");
        assert_eq!(missed(&mut ahead, 500, allowed), [suggestion(501, 506, Urgency::Along)]);
        assert_eq!(missed(&mut ahead, 4, Speculation::Off), []);
        assert_eq!(
            missed(&mut ahead, 13, Speculation::Off),
            [suggestion(14, 19, Urgency::Along)],
            "two spans left out"
        );
    }

    #[test]
    fn spans_not_fetched_along_are_missed_again() {
        let mut ahead = ReadAhead::default();
        let suggestions = missed(&mut ahead, 5, Speculation::Allowed);
        ahead.declined(&suggestions[0]);
        assert_eq!(ahead.windows.0, [Window { next: SpanId(6), size: 0 }]);
    }

    #[test]
    fn neighbours_before_follow_the_answer() {
        let mut ahead = ReadAhead::default();
        let place = PlaceInFile { entry: EntryId(1), before: 0, behind: 0 };
        let piece = |length| Piece { bytes: DecodedOffset(0)..DecodedOffset(length), spans: spans(9, 10), place };
        let mut answered = |piece, speculation, layout| {
            ahead.on(Event::Answered { piece: &piece, run: spans(9, 10), speculation }, layout).unwrap()
        };
        let allowed = Speculation::Allowed;
        assert_eq!(answered(piece(100), allowed, &SMALL), [suggestion(7, 9, Urgency::Speculation(Priority::Low))]);
        assert_eq!(answered(piece(100), Speculation::Off, &SMALL), []);
        assert_eq!(answered(piece(STREAMED), allowed, &SMALL), [], "of a large file");
        assert_eq!(
            answered(piece(100), allowed, &Even { bytes: NEAR_BYTES, ..SMALL }),
            [suggestion(8, 9, Urgency::Speculation(Priority::Low))]
        );
    }

    const FILE_END: u64 = 4 << 30;

    /// A piece of whole spans of a file that ends far after it.
    fn piece(start: u32, end: u32) -> Piece {
        let at = |span: u32| DecodedOffset(u64::from(span) << 18);
        let place = PlaceInFile { entry: EntryId(1), before: 1, behind: FILE_END - at(end).0 };
        Piece { bytes: at(start)..at(end), spans: spans(start, end), place }
    }

    /// The first span suggested after this piece, if any.
    fn streamed(ahead: &mut ReadAhead, piece: &Piece, found: Found) -> Option<u32> {
        let suggestions = ahead.on(read(piece, found, &[]), &USUAL).unwrap();
        assert!(suggestions.len() <= 1);
        suggestions.first().map(|suggestion| suggestion.spans.start.0)
    }

    fn waited(ahead: &mut ReadAhead, start: u32, end: u32) -> Option<u32> {
        streamed(ahead, &piece(start, end), Found::Missing)
    }

    #[test]
    fn large_pieces_in_order_are_a_stream() {
        let mut ahead = ReadAhead::default();
        let pieces = [(0, 4), (3, 7), (90, 95), (7, 11)];
        assert_eq!(pieces.map(|(start, end)| waited(&mut ahead, start, end)), [None; 4]);
        assert_eq!(waited(&mut ahead, 11, 15), Some(15), "the fourth");
        assert_eq!(ahead.streams.last_mut().unwrap().next, SpanId(39), "6 MiB");
        assert_eq!(waited(&mut ahead, 14, 19), Some(39), "that far it was asked for");
        assert_eq!(waited(&mut ahead, 19 + UNSEEN, 40), Some(43), "what lay between was cached");
        assert_eq!(waited(&mut ahead, 90, 94), None);
        for number in 0..10 {
            assert_eq!(waited(&mut ahead, 1000 * number, 1000 * number + 4), None);
        }
        assert_eq!(waited(&mut ahead, 40, 44), None, "forgotten for others");
    }

    #[test]
    fn a_stream_ends_with_its_file_and_asks_for_no_scraps() {
        let mut ahead = ReadAhead::default();
        let last = |start, end| {
            let piece = piece(start, end);
            let place = PlaceInFile { behind: 10 << 18, ..piece.place };
            Piece { place: PlaceInFile { behind: (30 - u64::from(end)) << 18, ..place }, ..piece }
        };
        assert_eq!(streamed(&mut ahead, &last(10, 12), Found::Missing), None);
        let suggestions = ahead.on(read(&last(12, 16), Found::Missing, &[]), &USUAL).unwrap();
        assert_eq!(suggestions.iter().map(|suggestion| suggestion.spans).collect::<Vec<_>>(), [spans(16, 30)]);
        assert_eq!(streamed(&mut ahead, &last(16, 18), Found::Missing), None, "all of it is asked for");
        let mut ahead = ReadAhead::default();
        assert_eq!(waited(&mut ahead, 10, 12), None);
        assert_eq!(waited(&mut ahead, 12, 16), Some(16));
        assert_eq!(waited(&mut ahead, 16, 18), None, "512 KiB are not worth a request");
        assert_eq!(waited(&mut ahead, 18, 19), Some(40));
    }

    #[test]
    fn what_a_stream_was_denied_it_wishes_for_again() {
        let mut ahead = ReadAhead::default();
        assert_eq!(waited(&mut ahead, 10, 12), None);
        let suggestions = ahead.on(read(&piece(12, 16), Found::Missing, &[]), &USUAL).unwrap();
        let rest = Suggestion { spans: SpanRange::new(SpanId(19), suggestions[0].spans.end), ..suggestions[0] };
        ahead.declined(&rest);
        assert_eq!(waited(&mut ahead, 16, 19), Some(19));
    }

    #[test]
    fn pieces_that_grow_are_a_stream() {
        let mut ahead = ReadAhead::default();
        assert_eq!(waited(&mut ahead, 10, 11), None);
        assert_eq!(waited(&mut ahead, 11, 13), Some(13), "twice as much, right behind it");
        assert_eq!(waited(&mut ahead, 50, 51), None);
        assert_eq!(waited(&mut ahead, 52, 54), None, "something lies between");
        assert_eq!(waited(&mut ahead, 70, 71), None);
        assert_eq!(waited(&mut ahead, 71, 72), None, "no more than before");
        let whole = piece(80, 81);
        let little = Piece { bytes: whole.bytes.start..whole.bytes.start + 4096, ..whole };
        assert_eq!(streamed(&mut ahead, &little, Found::Missing), None);
        assert_eq!(waited(&mut ahead, 80, 81), None, "the one before was a small read");
    }

    #[test]
    fn a_file_read_as_a_whole_is_a_stream_from_its_first_piece() {
        let first = |start, end| {
            let piece = piece(start, end);
            Piece { place: PlaceInFile { before: 0, ..piece.place }, ..piece }
        };
        assert_eq!(streamed(&mut ReadAhead::default(), &first(10, 11), Found::Missing), Some(11));
        let mapped = streamed(&mut ReadAhead::default(), &first(10, 12), Found::Missing);
        assert_eq!(mapped, None, "so much comes with a page that is mapped");
        assert_eq!(waited(&mut ReadAhead::default(), 10, 11), None, "in the middle");
    }

    #[test]
    fn cached_pieces_continue_a_stream_but_begin_none() {
        let mut ahead = ReadAhead::default();
        assert_eq!(waited(&mut ahead, 10, 11), None);
        assert_eq!(streamed(&mut ahead, &piece(11, 13), Found::Cached), Some(13));
        assert_eq!(streamed(&mut ahead, &piece(50, 51), Found::Cached), None);
        assert_eq!(waited(&mut ahead, 51, 53), None, "no reader had waited there");
    }

    #[test]
    fn pieces_of_a_stream_may_come_in_the_wrong_order() {
        let mut ahead = ReadAhead::default();
        assert_eq!(waited(&mut ahead, 10, 12), None);
        assert_eq!(waited(&mut ahead, 12, 16), Some(16));
        assert_eq!(waited(&mut ahead, 20, 24), Some(40), "that far it was asked for");
        assert_eq!(waited(&mut ahead, 16, 20), None, "of the same stream, which has enough in flight");
        assert_eq!(waited(&mut ahead, 24, 28), Some(48));
    }

    #[test]
    fn neighbouring_files_are_streams_of_their_own() {
        let mut ahead = ReadAhead::default();
        let mut other = piece(16, 20);
        other.place.behind += 1 << 30;
        assert_eq!(waited(&mut ahead, 10, 12), None);
        assert_eq!(waited(&mut ahead, 12, 16), Some(16));
        assert_eq!(streamed(&mut ahead, &other, Found::Missing), None);
        assert_eq!(waited(&mut ahead, 16, 20), Some(40));
    }

    #[test]
    fn smaller_spans_are_read_ahead_by_as_many_bytes() {
        let fine = Even { spans: 200_000, bytes: 16 << 10, region: 16 };
        let sizes = [USUAL, fine].map(|layout| {
            let mut ahead = ReadAhead::default();
            let first = spans(100 * layout.region, 101 * layout.region);
            let event = Event::Missed { piece: &small_piece(first), run: first, speculation: Speculation::Allowed };
            let mut found = ahead.on(event, &layout).unwrap();
            let mut sizes = Vec::new();
            while let Some(suggestion) = found.pop() {
                sizes.push(u64::from(suggestion.spans.count()) * layout.bytes);
                let last = suggestion.spans.end.back(1);
                found = ahead.on(read(&small_piece(SpanRange::one(last)), Found::Cached, &[last]), &layout).unwrap();
                if sizes.len() == 8 {
                    break;
                }
            }
            sizes
        });
        assert!(
            sizes[0].iter().zip(&sizes[1]).all(|(usual, fine)| usual <= fine && fine * 3 <= usual * 4),
            "{sizes:?}"
        );
        assert_eq!(sizes.map(|mut sizes| sizes.pop()), [Some(WINDOW_BYTES); 2]);
    }

    #[test]
    fn neighbours_in_a_large_file_have_to_be_read_now_and_then() {
        let mut ahead = ReadAhead::default();
        let missed = |ahead: &mut ReadAhead, start: u32| {
            let piece = piece(start, start + 1);
            let event = Event::Missed { piece: &piece, run: piece.spans, speculation: Speculation::Allowed };
            ahead.on(event, &USUAL).unwrap().iter().map(|suggestion| suggestion.spans.count()).sum::<u32>()
        };
        let guessed: u32 = (0..50).map(|read| missed(&mut ahead, 100 * read)).sum();
        assert!((1..=4).contains(&guessed), "{guessed} spans that nothing reads");
        assert_eq!(missed(&mut ahead, 10_000), 0);
        assert_eq!(missed(&mut ahead, 10_001), 1, "a reader in order");
    }

    #[test]
    fn a_bounded_number_of_readers_is_remembered() {
        let mut ahead = ReadAhead::default();
        for place in 0..100 {
            ahead.windows.put(Window { next: SpanId(place * 10), size: 1 });
        }
        assert_eq!(ahead.windows.0.len(), READERS);
        assert_eq!(missed(&mut ahead, 10, Speculation::Off), []);
        assert_eq!(missed(&mut ahead, 990, Speculation::Off), [suggestion(991, 992, Urgency::Along)]);
    }
}
