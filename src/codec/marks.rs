//! Marks: places in a layer where decoding can start, and their spacing.
//!
//! Marks split a layer into spans. Close marks make reads cheap and tables long: one per 256 KiB costs about 2 % of a
//! gzip layer, nearly all of it windows. The spacing doubles as a layer grows beyond 1 GiB, so that the number of marks
//! is bounded: about 4,000 for the first GiB and 2,000 for each doubling.
//!
//! Marks of stored bytes have no window and cost 64 bytes. Who looks up a row in a data file needs no 256 KiB, so in
//! uncompressed layers they are sixteen times as close, and within 1 MiB; and in gzip layers, blocks of data that could
//! not be compressed begin with one every 32 KiB, the least distance of two windows.

use super::window::{References, Window};
use crate::descriptor::Compression;
use crate::offsets::{BlobOffset, DecodedOffset};

/// A place in a layer; the bytes up to the next mark are one span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark {
    /// Offset in the blob. The bytes before it, and this one if `bit` is not 0, suffice to decode everything before
    /// `decoded`.
    pub blob: BlobOffset,
    /// Number of bits of that byte that belong to the previous span, from the lowest; below 8.
    pub bit: u8,
    /// Offset in the decoded stream.
    pub decoded: DecodedOffset,
    /// What is needed to start here.
    pub kind: StartKind,
}

/// Whether and how decoding can start at a mark.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum StartKind {
    /// Stored bytes.
    Stored,
    /// At a gzip member's header.
    Member,
    /// At a deflate block, with the mark's [`Window`].
    Checkpoint,
    /// At a zstd frame's header.
    Frame,
    /// Not a start: decode from the nearest start before it.
    Continued,
}

impl StartKind {
    /// The compression of a layer with such a mark; `None` for [`StartKind::Continued`].
    pub fn compression(self) -> Option<Compression> {
        match self {
            Self::Stored => Some(Compression::Stored),
            Self::Member | Self::Checkpoint => Some(Compression::Gzip),
            Self::Frame => Some(Compression::Zstd),
            Self::Continued => None,
        }
    }

    /// Whether decoding can start at a mark of this kind.
    pub fn is_start(self) -> bool {
        self != Self::Continued
    }
}

/// The marks and windows found by a first pass.
pub(super) struct FirstPass {
    is_stored: bool,
    marks: Vec<Mark>,
    windows: Vec<(usize, Window)>,
    /// Number of marks so far, including those taken.
    count: usize,
    /// Number and offset of the last mark that is a start.
    last_start: (usize, DecodedOffset),
    /// Offset of the last mark of any kind, including an offered one.
    last: DecodedOffset,
    /// A mark at the end of the decoded bytes; it takes effect if bytes follow, so that no span is empty.
    offered: Option<Mark>,
}

impl FirstPass {
    /// A pass whose first mark is the start of the layer.
    pub(super) fn new(kind: StartKind) -> Self {
        let zero = Mark { blob: BlobOffset(0), bit: 0, decoded: DecodedOffset(0), kind };
        Self {
            is_stored: kind == StartKind::Stored,
            marks: vec![zero],
            windows: Vec::new(),
            count: 1,
            last_start: (0, zero.decoded),
            last: zero.decoded,
            offered: None,
        }
    }

    /// Whether a start at `at` is useful.
    pub(super) fn start_wanted(&self, at: DecodedOffset) -> bool {
        at >= self.next_start()
    }

    /// The offset from which a start is useful.
    pub(super) fn next_start(&self) -> DecodedOffset {
        let last = self.last_start.1;
        last + if self.is_stored { (spacing(last) / CLOSER_STORED).min(WIDEST_STORED) } else { spacing(last) }
    }

    /// Whether a start at `at` is useful, behind a deflate block of bytes that could not be compressed.
    pub(super) fn start_wanted_behind_stored(&self, at: DecodedOffset) -> bool {
        let last = self.last_start.1;
        at >= last + (spacing(last) / CLOSER_STORED).clamp(Window::MAX as u64, WIDEST_STORED)
    }

    /// The offset from which a mark is useful even if it is not a start.
    pub(super) fn next_continued(&self) -> DecodedOffset {
        self.last + CONTINUED * spacing(self.last)
    }

    /// Offers a mark at the end of the decoded bytes; replaces an earlier offer there.
    pub(super) fn offer(&mut self, mark: Mark) {
        self.last = mark.decoded;
        self.offered = Some(mark);
    }

    /// Records that everything before `end` is decoded.
    pub(super) fn decoded(&mut self, end: DecodedOffset) {
        if let Some(mark) = self.offered.take_if(|mark| mark.decoded < end) {
            if mark.kind.is_start() {
                self.last_start = (self.count, mark.decoded);
            }
            self.marks.push(mark);
            self.count += 1;
        }
    }

    /// Keeps the window of the last start, unless its mark was dropped.
    pub(super) fn window_complete(&mut self, references: &References, mark: DecodedOffset) {
        if mark == self.last_start.1 {
            self.windows.push((self.last_start.0, references.window()));
        }
    }

    pub(super) fn take_marks(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.marks)
    }

    pub(super) fn take_windows(&mut self) -> Vec<(usize, Window)> {
        std::mem::take(&mut self.windows)
    }
}

/// Distance from a start at `at` to the next one, in decoded bytes.
fn spacing(at: DecodedOffset) -> u64 {
    SPACING << (at.0 >> 30).checked_ilog2().map_or(0, |doublings| doublings + 1)
}

/// Widest spacing of stored bytes, and how much closer their marks are.
const WIDEST_STORED: u64 = 1 << 20;
const CLOSER_STORED: u64 = 16;
/// Spacing in the first GiB.
const SPACING: u64 = 256 << 10;
/// Number of spacings without a start after which a mark is set that is not a start.
const CONTINUED: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacing_doubles_with_each_doubling_after_a_gib() {
        for (at, kib) in
            [(0, 256), ((1 << 30) - 1, 256), (1 << 30, 512), (2 << 30, 1024), (3 << 30, 1024), (4 << 30, 2048)]
        {
            assert_eq!(spacing(DecodedOffset(at)), kib << 10, "at {at}");
        }
        assert!(spacing(DecodedOffset(u64::MAX)) > 0);
    }

    #[test]
    fn stored_bytes_have_close_marks() {
        let mut pass = FirstPass::new(StartKind::Stored);
        for (at, kib, in_gzip) in [(0, 16, 32), (3 << 30, 64, 64), (100 << 30, 1024, 1024)] {
            pass.last_start.1 = DecodedOffset(at);
            assert_eq!(pass.next_start(), DecodedOffset(at + (kib << 10)));
            assert!(pass.start_wanted_behind_stored(DecodedOffset(at + (in_gzip << 10))));
            assert!(!pass.start_wanted_behind_stored(DecodedOffset(at + (in_gzip << 10) - 1)));
        }
    }

    #[test]
    fn an_offer_becomes_a_mark_when_bytes_follow_it() {
        let mut pass = FirstPass::new(StartKind::Stored);
        assert_eq!(pass.take_marks().len(), 1);
        let mark = |blob| Mark { blob: BlobOffset(blob), bit: 0, decoded: pass.next_start(), kind: StartKind::Stored };
        let (early, late) = (mark(10), mark(20));
        pass.offer(early);
        pass.decoded(early.decoded);
        assert_eq!(pass.take_marks(), []);
        pass.offer(late);
        pass.decoded(late.decoded + 1);
        assert_eq!(pass.take_marks(), [late]);
    }
}
