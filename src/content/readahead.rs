//! Read-ahead: which spans to fetch beside those that were asked for.
//!
//! A layer's spans lie in the order of its tar, so what is read next is often a neighbour: the rest of a
//! large file, or the next small file of a directory. A reader that goes on where it was is followed
//! with windows that grow. A reader who comes from nowhere may be given a few neighbours as a guess;
//! see [`super::MountScope`]. Here is only the bookkeeping, in span numbers.

use std::ops::Range;
use std::sync::Arc;

use crate::offsets::DecodedOffset;

/// The places in one layer where readers were last seen.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    followed: Recent<Window, READERS>,
    /// Those who read much at a time.
    streams: Recent<Stream, STREAMS>,
}

/// The last `N` that were put here; the last one stands last.
#[derive(Debug)]
struct Recent<T, const N: usize>(Vec<T>);

/// One reader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Window {
    /// The first span that was not fetched on its behalf.
    next: u32,
    /// How many were fetched ahead the last time.
    window: u32,
}

/// A reader of large pieces, one behind the other.
#[derive(Debug)]
struct Stream {
    /// Its last piece.
    piece: Piece,
    /// Behind what was fetched on its behalf.
    next: u32,
    /// Large pieces that it has waited for, in order; [`SURE`] and more once there is another reason to be.
    pieces: u32,
    queue: Queue,
}

/// What is fetched on behalf of one reader, one request behind the other: whose turn it is holds the lock.
pub(super) type Queue = Arc<tokio::sync::Mutex<()>>;

/// What is read at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    /// The spans that hold it.
    pub(super) spans: Range<u32>,
    pub(super) bytes: Range<DecodedOffset>,
    /// Its file begins with it.
    pub(super) is_first: bool,
    /// Where its file ends, as no other file does.
    pub(super) file_end: DecodedOffset,
}

impl Piece {
    fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether a file is read from its beginning in pieces as large as `cat`, `cp` and their like make them.
    fn opens(&self) -> bool {
        self.is_first && self.length() == OPENING
    }

    /// Whether the kernel's read-ahead has grown from `before` to this, which it does for a file that is read, not
    /// mapped, from its beginning.
    fn grows_from(&self, before: &Self) -> bool {
        before.bytes.end == self.bytes.start && self.length() >= 2 * before.length()
    }
}

impl ReadAhead {
    /// A piece is read: behind which span what follows is to be fetched, and in which queue, when it is one of many
    /// large ones in a row, or of some that grow, or the first of a file that is read as a whole. Then
    /// [`ReadAhead::streamed_to`] is to be told. A row begins with a piece that is `waited` for.
    pub(super) fn streams(&mut self, piece: Piece, waited: bool) -> Option<(u32, Queue)> {
        if piece.length() < REMEMBERED {
            return None;
        }
        let stream = match self.stream_of(&piece) {
            Some(stream) => stream.gone_on(piece, waited),
            None if waited => {
                let pieces = if piece.opens() { SURE } else { u32::from(piece.length() >= LARGE) };
                Stream { next: piece.spans.end, piece, pieces, queue: Queue::default() }
            }
            None => return None,
        };
        let next = (stream.pieces >= SURE).then(|| (stream.next, Arc::clone(&stream.queue)));
        if next.is_some() {
            // From here on it goes no further than its file; it would if it were followed by spans as well.
            self.followed.take(|reader| (stream.piece.spans.start..=stream.next).contains(&reader.next));
        }
        self.streams.put(stream);
        next
    }

    /// Takes the stream that `piece` belongs to. Two pieces may share a span, small ones are not told of, and the kernel
    /// asks for two at once.
    fn stream_of(&mut self, piece: &Piece) -> Option<Stream> {
        let start = piece.spans.start;
        let near = start.saturating_sub(UNSEEN)..=start.saturating_add(UNSEEN);
        self.streams.take(|stream| stream.piece.file_end == piece.file_end && near.contains(&stream.piece.spans.end))
    }

    /// What follows was asked for up to `to` in this queue.
    pub(super) fn streamed_to(&mut self, queue: &Queue, to: u32) {
        if let Some(stream) = self.streams.take(|stream| Arc::ptr_eq(&stream.queue, queue)) {
            self.streams.put(Stream { next: stream.next.max(to), ..stream });
        }
    }

    /// How many spans behind `run` a reader wants that has to wait for `run`; `guess` when it was not there before.
    pub(super) fn missed(&mut self, run: &Range<u32>, guess: u32) -> u32 {
        let near = |reader: &Window| (run.start.saturating_sub(SKIPPED)..=run.start).contains(&reader.next);
        self.followed.take(near).map_or(guess, |reader| reader.window.max(guess).max(1))
    }

    /// What to fetch when `span`, which is here or on its way, is read: the next window, once a reader is
    /// at the end of the one before, or, where it has long gone on in order, in its second half. The reader
    /// is forgotten until [`ReadAhead::reached`] is told.
    pub(super) fn touched(&mut self, span: u32) -> Option<(u32, u32)> {
        let close = |reader: &Window| {
            let early = if reader.window < LONG { reader.window.min(1) } else { reader.window / 2 };
            reader.next > span && reader.next - span <= early
        };
        let reader = self.followed.take(close)?;
        Some((reader.next, wider(reader.window)))
    }

    /// All up to `next` was asked for, by a window of so many.
    pub(super) fn reached(&mut self, next: u32, window: u32) {
        self.followed.put(Window { next, window });
    }
}

impl Stream {
    fn gone_on(self, piece: Piece, waited: bool) -> Self {
        if piece.bytes.end <= self.piece.bytes.end {
            return self;
        }
        let sure = if piece.grows_from(&self.piece) { SURE } else { self.pieces };
        let pieces = sure + u32::from(waited && piece.length() >= LARGE);
        Self { next: self.next.max(piece.spans.end), pieces, piece, queue: self.queue }
    }
}

impl<T, const N: usize> Recent<T, N> {
    /// Takes the one that was put last of those that `test` means.
    fn take(&mut self, test: impl Fn(&T) -> bool) -> Option<T> {
        self.0.iter().rposition(test).map(|at| self.0.remove(at))
    }

    /// Puts one here; the first one goes if there are too many.
    fn put(&mut self, one: T) {
        if self.0.len() == N {
            self.0.remove(0);
        }
        self.0.push(one);
    }
}

impl<T, const N: usize> Default for Recent<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The window after one that was read to its end.
fn wider(window: u32) -> u32 {
    let more = if window < LONG { (window / 2).max(1) } else { window };
    (window + more).min(WIDEST)
}

/// Streams that are followed at once in a layer.
const STREAMS: usize = 4;
/// Spans that a stream may go through unseen.
const UNSEEN: u32 = 16;
/// So many large pieces in order are a file that is read to its end, and no program that starts.
const SURE: u32 = 4;
/// A piece of so many bytes is large: the kernel asks for no more at once, but where it reads ahead itself.
const LARGE: u64 = 512 << 10;
/// The kernel's first read-ahead for who reads 128 KiB of a file at a time, where it may read ahead four times that; who
/// reads less is given less, and who reads more is found out by the next piece. A page of a mapped file comes with more
/// (`get_init_ra_size` and `do_sync_mmap_readahead` of Linux).
const OPENING: u64 = 256 << 10;
/// A piece of so many bytes may be one that larger ones follow.
pub(super) const REMEMBERED: u64 = 128 << 10;
/// Readers that are followed at once in a layer.
const READERS: usize = 16;
/// A reader that leaves out so many spans still counts as going on.
const SKIPPED: u32 = 2;
/// A window of so many spans comes of reading in order, not of luck.
const LONG: u32 = 8;
/// The widest window, in spans; what bounds it is bytes.
const WIDEST: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_on_is_given_windows_that_grow() {
        let mut readahead = ReadAhead::default();
        assert_eq!(readahead.missed(&(5..6), 0), 0, "nobody knows whether it will");
        readahead.reached(6, 0);
        assert_eq!(readahead.touched(5), None);
        assert_eq!(readahead.missed(&(6..7), 0), 1);
        readahead.reached(8, 1);
        let mut next = 8;
        for window in [2, 3, 4, 6, 9, 18, 36, 64, 64] {
            assert_eq!(readahead.touched(next - 1), Some((next, window)));
            next += window;
            readahead.reached(next, window);
        }
        assert_eq!(readahead.touched(next - 33), None, "still in the first half");
        assert_eq!(readahead.touched(next - 32), Some((next, 64)));
    }

    #[test]
    fn a_reader_that_jumps_is_a_new_one() {
        let mut readahead = ReadAhead::default();
        assert_eq!(readahead.missed(&(5..6), 2), 2);
        readahead.reached(8, 2);
        assert_eq!(readahead.missed(&(500..501), 2), 2);
        readahead.reached(503, 2);
        assert_eq!(readahead.missed(&(4..5), 2), 2);
        assert_eq!(readahead.missed(&(10..11), 1), 2, "two spans left out");
    }

    /// A piece of whole spans.
    fn piece(spans: Range<u32>) -> Piece {
        let at = |span: u32| DecodedOffset(u64::from(span) << 18);
        Piece { bytes: at(spans.start)..at(spans.end), spans, is_first: false, file_end: at(u32::MAX) }
    }

    /// Behind which span what follows this piece is to be fetched.
    fn streams(readahead: &mut ReadAhead, piece: Piece) -> Option<u32> {
        readahead.streams(piece, true).map(|(next, _)| next)
    }

    #[test]
    fn large_pieces_in_order_are_a_stream() {
        let mut readahead = ReadAhead::default();
        assert_eq!([0..4, 3..7, 90..95, 7..11].map(|spans| streams(&mut readahead, piece(spans))), [None; 4]);
        let (next, queue) = readahead.streams(piece(11..15), true).expect("the fourth");
        assert_eq!(next, 15);
        readahead.streamed_to(&queue, 40);
        assert_eq!(streams(&mut readahead, piece(14..19)), Some(40), "that far it was asked for");
        assert_eq!(streams(&mut readahead, piece(19 + UNSEEN..40)), Some(40), "what lay between was here");
        assert_eq!(streams(&mut readahead, piece(90..94)), None);
        for number in 0..10 {
            assert_eq!(streams(&mut readahead, piece(1000 * number..1000 * number + 4)), None);
        }
        assert_eq!(streams(&mut readahead, piece(40..44)), None, "forgotten for others");
    }

    #[test]
    fn pieces_that_grow_are_a_stream() {
        let mut readahead = ReadAhead::default();
        assert_eq!(streams(&mut readahead, piece(10..11)), None);
        assert_eq!(streams(&mut readahead, piece(11..13)), Some(13), "twice as much, right behind it");
        assert_eq!(streams(&mut readahead, piece(50..51)), None);
        assert_eq!(streams(&mut readahead, piece(52..54)), None, "something lies between");
        assert_eq!(streams(&mut readahead, piece(70..71)), None);
        assert_eq!(streams(&mut readahead, piece(71..72)), None, "no more than before");
        let little = Piece { bytes: DecodedOffset(80 << 18)..DecodedOffset((80 << 18) + 4096), ..piece(80..81) };
        assert_eq!(streams(&mut readahead, little), None);
        assert_eq!(streams(&mut readahead, piece(80..81)), None, "the one before was a small read");
    }

    #[test]
    fn a_file_that_is_read_as_a_whole_is_a_stream_from_its_first_piece_on() {
        let first = |spans| Piece { is_first: true, ..piece(spans) };
        assert_eq!(streams(&mut ReadAhead::default(), first(10..11)), Some(11));
        assert_eq!(streams(&mut ReadAhead::default(), first(10..12)), None, "so much comes with a page that is mapped");
        assert_eq!(streams(&mut ReadAhead::default(), piece(10..11)), None, "in the middle");
    }

    #[test]
    fn pieces_that_were_here_count() {
        let mut readahead = ReadAhead::default();
        assert_eq!(streams(&mut readahead, piece(10..11)), None);
        assert_eq!(readahead.streams(piece(11..13), false).map(|(next, _)| next), Some(13));
        assert!(readahead.streams(piece(50..51), false).is_none());
        assert_eq!(streams(&mut readahead, piece(51..53)), None, "nobody had waited there");
    }

    #[test]
    fn pieces_may_come_in_the_wrong_order() {
        let mut readahead = ReadAhead::default();
        assert_eq!(streams(&mut readahead, piece(10..12)), None);
        assert_eq!(streams(&mut readahead, piece(12..16)), Some(16));
        let (next, queue) = readahead.streams(piece(20..24), true).expect("it is one");
        assert_eq!(next, 24);
        readahead.streamed_to(&queue, 60);
        assert_eq!(streams(&mut readahead, piece(16..20)), Some(60), "of the same stream");
        assert_eq!(streams(&mut readahead, piece(24..28)), Some(60));
    }

    #[test]
    fn neighbouring_files_are_streams_of_their_own() {
        let mut readahead = ReadAhead::default();
        let other = |spans| Piece { file_end: DecodedOffset(1 << 40), ..piece(spans) };
        assert_eq!(streams(&mut readahead, piece(10..12)), None);
        assert_eq!(streams(&mut readahead, piece(12..16)), Some(16));
        assert_eq!(streams(&mut readahead, other(16..20)), None);
        assert_eq!(streams(&mut readahead, piece(16..20)), Some(20));
    }

    #[test]
    fn only_so_many_readers_are_remembered() {
        let mut readahead = ReadAhead::default();
        for place in 0..100 {
            readahead.reached(place * 10, 1);
        }
        assert_eq!(readahead.followed.0.len(), READERS);
        assert_eq!(readahead.missed(&(10..11), 0), 0);
        assert_eq!(readahead.missed(&(990..991), 0), 1);
    }
}
