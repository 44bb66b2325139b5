//! Marks: places in a layer where decoding can start, and their spacing.
//!
//! Marks split a layer into spans. Close marks make reads cheap and tables long: one per 256 KiB costs about 2 % of a
//! gzip layer, nearly all of it windows. The spacing doubles as a layer grows beyond 1 GiB, so that the number of marks
//! is bounded: about 4,000 for the first GiB and 2,000 for each doubling.
//!
//! Marks of stored bytes have hardly a window and cost 64 to 80 bytes. Who looks up a row in a data file needs no 256 KiB,
//! so in uncompressed layers they are sixteen times as close, and within 1 MiB; and so they are in gzip layers, in and
//! between blocks of data that could not be compressed. Data that hardly can be (weights, encrypted rows with short heads)
//! have windows of next to nothing as well: where the last one was, starts are an eighth as far apart.
//!
//! A mark inside a deflate block has the block's codes, and an index with one is of no use to release 0.1.0. So there
//! are such marks only in blocks that are longer than a span and 64 KiB of the blob, where no ordinary compressor's are;
//! and in stored ones, where GNU gzip, whose blocks are twice as long as those of zlib and Go, would have spans of 32 KiB.

use super::Limits;
use super::start::StartKind;
use super::window::Window;
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

/// The marks and windows found by a first pass.
pub(super) struct FirstPass {
    is_stored: bool,
    /// Bytes of the blob between two starts within a zstd frame, if windows are small.
    blocks: u64,
    /// Bytes of the windows of all blocks so far.
    windows_of_blocks: u64,
    marks: Vec<Mark>,
    windows: Vec<(usize, Window)>,
    /// Number of marks so far, including those taken.
    count: usize,
    /// Number and offset of the last marks that are starts, as many as there are within a window.
    last_starts: [(usize, DecodedOffset); STARTS_IN_WINDOW],
    /// Its offset in the blob.
    last_blob: BlobOffset,
    /// Offset of the last mark of any kind, including an offered one.
    last: DecodedOffset,
    /// Bytes of the last window that are not zero; many at first.
    last_window: usize,
    /// Inside a deflate block: where the next start is looked for.
    inside: InsideBlock,
    /// A mark at the end of the decoded bytes; it takes effect if bytes follow, so that no span is empty.
    offered: Option<Mark>,
}

/// Starts inside the current deflate block.
struct InsideBlock {
    /// Bytes of the blob between two starts, at least.
    coded: u64,
    /// Where the block or the last start inside it begins, in bits of the blob.
    from: u64,
    /// Where another start may be useful.
    next: DecodedOffset,
}

impl FirstPass {
    /// A pass whose first mark is the start of the layer.
    pub(super) fn new(kind: StartKind, limits: &Limits) -> Self {
        let zero = Mark { blob: BlobOffset(0), bit: 0, decoded: DecodedOffset(0), kind };
        Self {
            is_stored: kind == StartKind::Stored,
            blocks: limits.zstd_spacing,
            windows_of_blocks: 0,
            marks: vec![zero],
            windows: Vec::new(),
            count: 1,
            last_starts: [(0, zero.decoded); STARTS_IN_WINDOW],
            last_blob: zero.blob,
            last: zero.decoded,
            last_window: usize::MAX,
            inside: InsideBlock { coded: limits.deflate_spacing, from: 0, next: DecodedOffset(u64::MAX) },
            offered: None,
        }
    }

    /// Whether a start at `at` is useful.
    pub(super) fn start_wanted(&self, at: DecodedOffset) -> bool {
        at >= self.next_start()
    }

    /// The offset from which a start is useful.
    pub(super) fn next_start(&self) -> DecodedOffset {
        let last = self.last_start();
        last + if self.is_stored { (spacing(last) / CLOSER_STORED).min(WIDEST_STORED) } else { spacing(last) }
    }

    /// Whether a start at `at` is useful, behind a deflate block of bytes that could not be compressed.
    pub(super) fn start_wanted_behind_stored(&self, at: DecodedOffset) -> bool {
        at + STORED_SHORTER >= self.last_start() + self.stored_distance()
    }

    /// Whether a start at `at`, a deflate block, is useful because it costs next to nothing.
    pub(super) fn start_wanted_where_cheap(&self, at: DecodedOffset) -> bool {
        let distance = (spacing(self.last_start()) / CLOSER_CHEAP).min(WIDEST_STORED);
        self.last_window <= CHEAP_WINDOW && at + STORED_SHORTER >= self.last_start() + distance
    }

    /// Records how many bytes of the last window are not zero.
    pub(super) fn window_recorded(&mut self, weight: usize) {
        self.last_window = weight;
    }

    /// The offset from which a start is useful inside a stored block, at `at` with `left` bytes left of it.
    pub(super) fn next_inside_stored(&self, at: DecodedOffset, left: usize) -> DecodedOffset {
        let last = self.offered.map_or(self.last_start(), |mark| mark.decoded);
        let next = at.max(last + self.stored_distance());
        // Near the end, another block begins soon enough.
        if next + STORED_LEFT > at + left as u64 { DecodedOffset(u64::MAX / 2) } else { next }
    }

    fn stored_distance(&self) -> u64 {
        (spacing(self.last_start()) / CLOSER_STORED).min(WIDEST_STORED)
    }

    fn last_start(&self) -> DecodedOffset {
        self.last_starts[0].1
    }

    /// The offset from which a mark is useful even if it is not a start.
    pub(super) fn next_continued(&self) -> DecodedOffset {
        self.last + CONTINUED * spacing(self.last)
    }

    /// Records that a deflate block begins at this bit of the blob.
    pub(super) fn block_begins(&mut self, bit: u64, at: DecodedOffset) {
        self.inside.from = bit;
        self.inside.next = at + self.inside_distance();
    }

    /// The offset from which [`FirstPass::start_wanted_inside`] must be asked.
    pub(super) fn next_inside(&self) -> DecodedOffset {
        self.inside.next
    }

    /// Whether a start is useful at this bit of the blob, inside a deflate block.
    pub(super) fn start_wanted_inside(&mut self, bit: u64, at: DecodedOffset) -> bool {
        if at < self.inside.next {
            return false;
        }
        let distance = self.inside_distance();
        let scale = spacing(self.last_start()) / SPACING;
        if (bit - self.inside.from) / 8 < self.inside.coded.saturating_mul(scale) {
            self.inside.next = at + distance / 4;
            return false;
        }
        self.inside.from = bit;
        self.inside.next = at + distance;
        true
    }

    /// Decoded bytes between two starts inside a deflate block, at least.
    fn inside_distance(&self) -> u64 {
        let scale = spacing(self.last_start()) / SPACING;
        self.inside.coded.saturating_mul(4).clamp(Window::MAX as u64, SPACING) * scale
    }

    /// Whether a start at this block of a zstd frame is useful, if its window has as many bytes as the last one has so
    /// far. A window costs about a third of its bytes, and has the more of them the closer starts are.
    pub(super) fn block_wanted(&self, at: DecodedOffset, blob: BlobOffset, window: u64) -> bool {
        let (last, coded) = (self.last_start(), blob - self.last_blob);
        let (decoded, scale) = (at - last, spacing(last) / SPACING);
        let is_cheap = window.saturating_mul(WINDOW_SHARE) <= decoded;
        let spacing = self.blocks.saturating_mul(scale);
        let is_far = coded >= spacing.saturating_mul(BLOCKS_MOST) || decoded >= BLOCKS_DECODED * scale;
        // A few bytes can copy all of a large window, which is more than they are worth.
        let is_within = self.windows_of_blocks + window <= blob.0 / 2 + WINDOWS_FREE;
        is_within && (is_far || (coded >= spacing && is_cheap))
    }

    /// Counts the bytes of a block's window.
    pub(super) fn count_window(&mut self, window: u64) {
        self.windows_of_blocks += window;
    }

    /// As [`FirstPass::next_continued`], within a zstd frame that has starts of its own.
    pub(super) fn next_continued_block(&self) -> DecodedOffset {
        self.last + BLOCKS_CONTINUED
    }

    /// Offers a mark at the end of the decoded bytes; replaces an earlier offer there.
    pub(super) fn offer(&mut self, mark: Mark) {
        self.last = mark.decoded;
        self.offered = Some(mark);
    }

    /// Drops an offer of this kind that has not taken effect.
    pub(super) fn withdraw(&mut self, kind: StartKind) {
        self.offered.take_if(|mark| mark.kind == kind);
    }

    /// Records that everything before `end` is decoded.
    pub(super) fn decoded(&mut self, end: DecodedOffset) {
        if let Some(mark) = self.offered.take_if(|mark| mark.decoded < end) {
            if mark.kind.is_start() {
                self.last_starts.rotate_right(1);
                self.last_starts[0] = (self.count, mark.decoded);
                self.last_blob = mark.blob;
            }
            self.marks.push(mark);
            self.count += 1;
        }
    }

    /// Keeps the window of one of the last starts, unless its mark was dropped.
    pub(super) fn window_complete(&mut self, mark: DecodedOffset, window: impl FnOnce() -> Window) {
        if let Some((number, _)) = self.last_starts.iter().find(|(number, at)| *at == mark && *number > 0) {
            self.windows.push((*number, window()));
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
/// How much closer marks are where windows have at most so many bytes.
const CLOSER_CHEAP: u64 = 8;
const CHEAP_WINDOW: usize = 256;
/// By how much a span of stored bytes may be shorter, to end with a block.
const STORED_SHORTER: u64 = 1 << 10;
/// Bytes of a stored block behind a start in it, at least.
const STORED_LEFT: u64 = 8 << 10;
/// The most starts of which a window reaches behind the last one.
const STARTS_IN_WINDOW: usize = 4;
/// Spacing in the first GiB.
const SPACING: u64 = 256 << 10;
/// Spacings between two starts within a zstd frame, if windows are large.
const BLOCKS_MOST: u64 = 20;
/// Decoded bytes per byte of a small window.
const WINDOW_SHARE: u64 = 16;
/// Decoded bytes between two starts within a zstd frame: what a reader waits for.
const BLOCKS_DECODED: u64 = 64 << 20;
/// Bytes of windows of blocks beyond half the bytes of their blob.
const WINDOWS_FREE: u64 = 1 << 20;
/// Decoded bytes without a mark within a zstd frame: a reader waits for no more of what decodes from one start.
const BLOCKS_CONTINUED: u64 = 512 << 10;
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
        let mut pass = FirstPass::new(StartKind::Stored, &Limits::default());
        for (at, kib) in [(0, 16), (3 << 30, 64), (100 << 30, 1024)] {
            let at = |kib: u64| DecodedOffset(at + (kib << 10));
            pass.last_starts[0].1 = at(0);
            assert_eq!(pass.next_start(), at(kib));
            assert!(pass.start_wanted_behind_stored(at(kib - 1)));
            assert!(!pass.start_wanted_behind_stored(DecodedOffset(at(kib - 1).0 - 1)));
            let next = |from: u64, to: u64| pass.next_inside_stored(at(from), ((to - from) as usize) << 10);
            assert_eq!(next(1, kib + 8), at(kib));
            assert_eq!(next(kib + 5, kib + 13), at(kib + 5), "a block that begins behind it");
            assert!(next(1, kib + 7) > at(kib) && next(kib + 5, kib + 12) > at(kib + 5), "its end is near");
        }
    }

    #[test]
    fn starts_inside_a_block_are_far_enough_from_each_other() {
        let mut pass = FirstPass::new(StartKind::Member, &Limits::default());
        let (kib, bits) = (|kib: u64| DecodedOffset(kib << 10), |kib: u64| 8 * (kib << 10));
        pass.block_begins(bits(10), kib(50));
        assert_eq!(pass.next_inside(), kib(50 + 256));
        assert!(!pass.start_wanted_inside(bits(200), DecodedOffset(kib(306).0 - 1)), "too few decoded bytes");
        assert!(!pass.start_wanted_inside(bits(74) - 1, kib(306)), "too few bytes of the blob");
        assert_eq!(pass.next_inside(), kib(306 + 64), "where it is asked again");
        assert!(pass.start_wanted_inside(bits(75), kib(370)));
        assert_eq!(pass.next_inside(), kib(370 + 256));
        assert!(!pass.start_wanted_inside(bits(75 + 63), kib(700)));
        assert!(pass.start_wanted_inside(bits(75 + 64), kib(800)));
        pass.last_starts[0].1 = DecodedOffset(3 << 30);
        pass.block_begins(bits(0), DecodedOffset(3 << 30));
        assert_eq!(pass.next_inside(), DecodedOffset((3 << 30) + (1 << 20)));
    }

    #[test]
    fn an_offer_becomes_a_mark_when_bytes_follow_it() {
        let mut pass = FirstPass::new(StartKind::Stored, &Limits::default());
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
