//! Read-ahead: which spans to fetch beside those that were asked for.
//!
//! A layer's spans lie in the order of its tar, so what is read next is often a neighbour: the rest of a
//! large file, or the next small file of a directory. A reader that goes on where it was is followed
//! with windows that grow. A reader who comes from nowhere may be given a few neighbours as a guess;
//! see [`super::Traffic`]. Here is only the bookkeeping, in span numbers.

use std::ops::Range;

/// The places in one layer where readers were last seen.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The one that moved last stands last.
    followed: Vec<Followed>,
}

/// One reader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Followed {
    /// The first span that was not fetched on its behalf.
    next: u32,
    /// How many were fetched ahead the last time.
    window: u32,
}

impl Ahead {
    /// How many spans behind `run` a reader wants that has to wait for `run`; `guess` when it was not there before.
    pub(super) fn missed(&mut self, run: &Range<u32>, guess: u32) -> u32 {
        let near = |reader: &Followed| (run.start.saturating_sub(SKIPPED)..=run.start).contains(&reader.next);
        match self.followed.iter().rposition(near) {
            Some(at) => self.followed.remove(at).window.max(guess).max(1),
            None => guess,
        }
    }

    /// What to fetch when `span`, which is here or on its way, is read: the next window, once a reader is
    /// at the end of the one before, or, where it has long gone on in order, in its second half. The reader
    /// is forgotten until [`Ahead::reached`] is told.
    pub(super) fn touched(&mut self, span: u32) -> Option<(u32, u32)> {
        let close = |reader: &Followed| {
            let early = if reader.window < LONG { reader.window.min(1) } else { reader.window / 2 };
            reader.next > span && reader.next - span <= early
        };
        let reader = self.followed.iter().rposition(close).map(|at| self.followed.remove(at))?;
        Some((reader.next, wider(reader.window)))
    }

    /// All up to `next` was asked for, by a window of so many.
    pub(super) fn reached(&mut self, next: u32, window: u32) {
        if self.followed.len() == READERS {
            self.followed.remove(0);
        }
        self.followed.push(Followed { next, window });
    }
}

/// The window after one that was read to its end.
fn wider(window: u32) -> u32 {
    let more = if window < LONG { (window / 2).max(1) } else { window };
    (window + more).min(WIDEST)
}

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
        let mut ahead = Ahead::default();
        assert_eq!(ahead.missed(&(5..6), 0), 0, "nobody knows whether it will");
        ahead.reached(6, 0);
        assert_eq!(ahead.touched(5), None);
        assert_eq!(ahead.missed(&(6..7), 0), 1);
        ahead.reached(8, 1);
        let mut next = 8;
        for window in [2, 3, 4, 6, 9, 18, 36, 64, 64] {
            assert_eq!(ahead.touched(next - 1), Some((next, window)));
            next += window;
            ahead.reached(next, window);
        }
        assert_eq!(ahead.touched(next - 33), None, "still in the first half");
        assert_eq!(ahead.touched(next - 32), Some((next, 64)));
    }

    #[test]
    fn a_reader_that_jumps_is_a_new_one() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.missed(&(5..6), 2), 2);
        ahead.reached(8, 2);
        assert_eq!(ahead.missed(&(500..501), 2), 2);
        ahead.reached(503, 2);
        assert_eq!(ahead.missed(&(4..5), 2), 2);
        assert_eq!(ahead.missed(&(10..11), 1), 2, "two spans left out");
    }

    #[test]
    fn only_so_many_readers_are_remembered() {
        let mut ahead = Ahead::default();
        for place in 0..100 {
            ahead.reached(place * 10, 1);
        }
        assert_eq!(ahead.followed.len(), READERS);
        assert_eq!(ahead.missed(&(10..11), 0), 0);
        assert_eq!(ahead.missed(&(990..991), 0), 1);
    }
}
