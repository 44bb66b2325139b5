//! Marks: the places of a layer where decoding can begin, and how far apart they are chosen.
//!
//! Marks cut a layer into spans. Close marks make reads cheap and tables long: one per 256 KiB costs about
//! 2 % of a gzip layer, nearly all of it windows. The distance doubles as a layer grows beyond a GiB, so that
//! a layer of any length has a bounded number: some 4,000 for the first GiB and 2,000 for each doubling.

use super::window::{References, Window};
use crate::descriptor::Compression;
use crate::offsets::{BlobOffset, DecodedOffset};

/// A place in a layer: from here to the next mark is one span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark {
    /// Where in the blob. All bytes before it, and this one too if `bit` is not 0, suffice to decode
    /// everything before `decoded`.
    pub blob: BlobOffset,
    /// How many bits of that byte belong to what is before, from the lowest; below 8.
    pub bit: u8,
    /// Where in the decoded stream.
    pub decoded: DecodedOffset,
    /// What must be known to begin here.
    pub kind: StartKind,
}

/// Whether and how decoding may begin at a mark.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum StartKind {
    /// Bytes stored as they are.
    Stored,
    /// At a gzip member's header.
    Member,
    /// At a deflate block, given the mark's [`Window`].
    Checkpoint,
    /// At a zstd frame's header.
    Frame,
    /// Not at all: decode from the nearest mark before that is a start.
    Continued,
}

impl StartKind {
    /// How a layer with such a mark is compressed; a mark where nothing begins does not say it.
    pub fn compression(self) -> Option<Compression> {
        match self {
            Self::Stored => Some(Compression::Stored),
            Self::Member | Self::Checkpoint => Some(Compression::Gzip),
            Self::Frame => Some(Compression::Zstd),
            Self::Continued => None,
        }
    }

    /// Whether decoding can begin at a mark of this kind.
    pub fn is_start(self) -> bool {
        self != Self::Continued
    }
}

/// The marks and windows of a first pass, as they are found.
pub(super) struct FirstPass {
    marks: Vec<Mark>,
    windows: Vec<(usize, Window)>,
    /// How many marks there were, taken ones too.
    count: usize,
    /// The number and place of the last mark that is a start.
    last_start: (usize, DecodedOffset),
    /// The place of the last mark of any kind, offered ones too.
    last: DecodedOffset,
    /// A mark at the end of what is decoded; it becomes one if bytes follow, so no span is empty.
    offered: Option<Mark>,
}

impl FirstPass {
    /// A pass whose first mark is the layer's beginning.
    pub(super) fn new(kind: StartKind) -> Self {
        let zero = Mark { blob: BlobOffset(0), bit: 0, decoded: DecodedOffset(0), kind };
        Self {
            marks: vec![zero],
            windows: Vec::new(),
            count: 1,
            last_start: (0, zero.decoded),
            last: zero.decoded,
            offered: None,
        }
    }

    /// Whether a start at `at` would be wanted.
    pub(super) fn start_wanted(&self, at: DecodedOffset) -> bool {
        at >= self.next_start()
    }

    /// From where on a start is wanted.
    pub(super) fn next_start(&self) -> DecodedOffset {
        let last = self.last_start.1;
        last + spacing(last)
    }

    /// From where on a mark is wanted even if it is no start.
    pub(super) fn next_continued(&self) -> DecodedOffset {
        self.last + CONTINUED * spacing(self.last)
    }

    /// Offers a mark at the end of what is decoded, instead of an earlier offer there.
    pub(super) fn offer(&mut self, mark: Mark) {
        self.last = mark.decoded;
        self.offered = Some(mark);
    }

    /// Hears that everything before `end` is decoded.
    pub(super) fn decoded(&mut self, end: DecodedOffset) {
        if let Some(mark) = self.offered.take_if(|mark| mark.decoded < end) {
            if mark.kind.is_start() {
                self.last_start = (self.count, mark.decoded);
            }
            self.marks.push(mark);
            self.count += 1;
        }
    }

    /// Keeps the window of the last start, unless its mark was offered in vain.
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

/// How far after a start at `at` the next one should be, in decoded bytes.
fn spacing(at: DecodedOffset) -> u64 {
    SPACING << (at.0 >> 30).checked_ilog2().map_or(0, |doublings| doublings + 1)
}

/// The spacing in the first GiB.
const SPACING: u64 = 256 << 10;
/// How many spacings may pass without a start before a mark is set that is none.
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
