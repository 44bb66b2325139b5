//! Zstd (RFC 8878): libzstd decodes the frames, this module parses their structure.
//!
//! To find frames and blocks, their headers are parsed here, a few bytes each, before libzstd gets them. That also limits
//! the window, and so memory: if a frame asks for more, libzstd gets its header with the limit instead. Most such frames
//! are shorter than their window.
//!
//! Frames are starts. So are blocks inside a long frame, by what a [`Recorder`] notes of the blocks beside libzstd. Should
//! it not understand one, which libzstd does, the frame gets marks that only split it into spans of a useful size.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::frame::{self, Checkpoint, Recorder, Resumed, Unreadable};
use super::marks::{FirstPass, Mark};
use super::output::OutputBuffer;
use super::start::StartKind;
use super::window::Window;
use super::{CodecError, Feed, Limits, SMALLEST_WINDOW_LOG, Status};
use crate::offsets::{BlobOffset, DecodedOffset};

/// A zstd layer being decoded.
pub(super) struct Zstd {
    context: DCtx<'static>,
    window_log: u32,
    part: Part,
    /// Offset of the current part.
    part_at: BlobOffset,
    /// Remaining bytes of the current part.
    left: u64,
    /// The first bytes of the current part, as far as needed.
    head: [u8; 14],
    have: usize,
    /// Whether the current frame has a checksum after its last block.
    checksum: bool,
    /// Whether libzstd took the current part and may hold back output.
    flush: bool,
    /// libzstd's last return value: 0 at the end of a frame.
    expects: usize,
    /// Whether there was any frame.
    any: bool,
    /// The first frame whose window exceeds the limit.
    narrowed: Option<CodecError>,
    /// The current frame, if its window exceeds the limit.
    narrow: Option<CodecError>,
    /// Follows the current frame of a first pass, as long as it understands its blocks.
    recorder: Option<Recorder>,
    /// Decodes the current frame in the place of libzstd, from a checkpoint on.
    resumed: Option<Box<Resumed>>,
    block: BlockSoFar,
}

/// What there is of the current block.
#[derive(Default)]
struct BlockSoFar {
    /// Its bytes, if they come in pieces.
    bytes: Vec<u8>,
    /// Where its output begins.
    at: DecodedOffset,
    /// Whether all of it was seen.
    seen: bool,
    /// The length of its output, as far as that is known.
    decoded: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Magic,
    SkippableSize,
    Skippable,
    Descriptor,
    /// The rest of a frame header.
    FrameHeader,
    BlockHeader,
    Block {
        last: bool,
        kind: BlockKind,
        size: u32,
    },
    Checksum,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum BlockKind {
    Raw,
    Repeated,
    Compressed,
}

impl Zstd {
    /// A decoder before the first frame.
    pub(super) fn new(limits: &Limits) -> Result<Self, CodecError> {
        let failed = |code| CodecError::Zstd { at: BlobOffset(0), reason: get_error_name(code) };
        let mut context = DCtx::try_create().ok_or(CodecError::Zstd { at: BlobOffset(0), reason: "out of memory" })?;
        // libzstd's own bounds; this module enforces the exact limit.
        let window_log = limits.zstd_window_log.clamp(SMALLEST_WINDOW_LOG, 31);
        context.set_parameter(DParameter::WindowLogMax(window_log)).map_err(failed)?;
        Ok(Self {
            context,
            window_log,
            part: Part::Magic,
            part_at: BlobOffset(0),
            left: 4,
            head: [0; 14],
            have: 0,
            checksum: false,
            flush: false,
            expects: 0,
            any: false,
            narrowed: None,
            narrow: None,
            recorder: None,
            resumed: None,
            block: BlockSoFar::default(),
        })
    }

    /// A decoder before the header of a block inside a frame.
    pub(super) fn at_checkpoint(limits: &Limits, checkpoint: &Checkpoint, at: BlobOffset) -> Result<Self, CodecError> {
        let window = 1_u64.checked_shl(limits.zstd_window_log).unwrap_or(u64::MAX);
        let resumed = Resumed::new(checkpoint, window).map_err(|Unreadable(reason)| CodecError::Zstd { at, reason })?;
        let mut zstd = Self::new(limits)?;
        (zstd.part, zstd.left, zstd.part_at) = (Part::BlockHeader, 3, at);
        (zstd.any, zstd.checksum, zstd.resumed) = (true, checkpoint.has_checksum(), Some(Box::new(resumed)));
        Ok(zstd)
    }

    /// See [`LayerDecoder::narrowed`](super::LayerDecoder::narrowed).
    pub(super) fn narrowed(&self) -> Option<CodecError> {
        self.narrowed.clone()
    }

    /// Whether the input may end here.
    pub(super) fn may_end(&self) -> bool {
        self.any && self.part == Part::Magic && self.have == 0
    }

    pub(super) fn decode(
        &mut self,
        feed: &mut Feed<'_, '_>,
        out: &mut OutputBuffer,
        mut pass: Option<&mut FirstPass>,
    ) -> Result<Status, CodecError> {
        loop {
            if let Some(pass) = &mut pass {
                pass.decoded(out.end());
            }
            if self.flush {
                if out.is_full() {
                    return Ok(Status::OutputFull);
                }
                if let Some(resumed) = &mut self.resumed {
                    let taken = resumed.take(out.room());
                    out.fill(taken);
                    self.flush = !resumed.is_taken();
                } else {
                    self.feed_libzstd(&mut &[][..], out)?;
                    self.flush = out.is_full();
                }
                continue;
            }
            if self.left == 0 {
                if let (Part::Block { kind, size, .. }, Some(resumed), false) =
                    (self.part, &mut self.resumed, self.block.seen)
                {
                    resume_block(resumed, kind, size, &self.block.bytes)
                        .map_err(|Unreadable(reason)| CodecError::Zstd { at: self.part_at, reason })?;
                    (self.block.seen, self.flush) = (true, true);
                    continue;
                }
                self.part_ended(feed, out, pass.as_deref_mut())?;
                continue;
            }
            if feed.rest.is_empty() {
                return Ok(Status::NeedInput);
            }
            let (now, later) = feed.rest.split_at(self.left.min(feed.rest.len() as u64) as usize);
            let taken = match self.part {
                // Whether libzstd gets the part is decided once the whole header is there.
                Part::Magic | Part::SkippableSize | Part::Skippable | Part::Descriptor | Part::FrameHeader => now.len(),
                Part::Block { .. } if self.resumed.is_some() => {
                    self.block.bytes.extend_from_slice(now);
                    now.len()
                }
                Part::Checksum if self.resumed.is_some() => now.len(),
                Part::BlockHeader if self.resumed.is_some() => now.len(),
                _ => {
                    if out.is_full() {
                        return Ok(Status::OutputFull);
                    }
                    self.record(now);
                    let mut rest = now;
                    self.feed_libzstd(&mut rest, out)?;
                    self.flush = out.is_full();
                    let taken = now.len() - rest.len();
                    if self.recorder.is_some() && !self.block.seen {
                        self.block.bytes.extend_from_slice(&now[..taken]);
                    }
                    taken
                }
            };
            if let Some(head) = self.head.get_mut(self.have..) {
                let length = taken.min(head.len());
                head[..length].copy_from_slice(&now[..length]);
                self.have += length;
            }
            self.left -= taken as u64;
            *feed.rest = if taken == now.len() { later } else { &feed.rest[taken..] };
        }
    }

    fn part_ended(
        &mut self,
        feed: &Feed<'_, '_>,
        out: &mut OutputBuffer,
        pass: Option<&mut FirstPass>,
    ) -> Result<(), CodecError> {
        let at = feed.at();
        let head = self.head;
        let word = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let (part, left) = match self.part {
            Part::Magic => {
                let start = BlobOffset(at.0 - 4);
                self.any = true;
                match word {
                    FRAME => {
                        if let Some(pass) = pass
                            && pass.start_wanted(out.end())
                        {
                            pass.offer(Mark { blob: start, bit: 0, decoded: out.end(), kind: StartKind::Frame });
                        }
                        (Part::Descriptor, 1)
                    }
                    SKIPPABLE_FIRST..=SKIPPABLE_LAST => (Part::SkippableSize, 4),
                    _ => return Err(CodecError::NoFrame { at: start }),
                }
            }
            Part::SkippableSize => (Part::Skippable, u64::from(word)),
            Part::Skippable => (Part::Magic, 4),
            Part::Descriptor => {
                self.checksum = head[0] & CHECKSUM != 0;
                (Part::FrameHeader, header_length(head[0]) - 1)
            }
            Part::FrameHeader => {
                let head = self.narrowed_header(at);
                for mut header in [&FRAME.to_le_bytes()[..], &head] {
                    self.feed_libzstd(&mut header, out)?;
                }
                if pass.is_some() {
                    self.recorder =
                        Some(Recorder::new(self.window().min(1_u64 << self.window_log.min(31)), self.checksum));
                }
                (Part::BlockHeader, 3)
            }
            Part::BlockHeader => {
                let last = head[0] & 1 != 0;
                let size = u64::from(word & 0xff_ffff) >> 3;
                let (kind, length) = match head[0] >> 1 & 3 {
                    0 => (BlockKind::Raw, size),
                    1 => (BlockKind::Repeated, 1),
                    2 => (BlockKind::Compressed, size),
                    _ => return Err(CodecError::Zstd { at, reason: "reserved block type" }),
                };
                let decoded = (kind != BlockKind::Compressed).then_some(size);
                let bytes = std::mem::take(&mut self.block.bytes);
                self.block = BlockSoFar { bytes, at: out.end(), seen: false, decoded };
                self.block.bytes.clear();
                (Part::Block { last, kind, size: size as u32 }, length)
            }
            Part::Block { last: true, .. } if self.checksum => {
                self.block_ended(true, at, out, pass);
                (Part::Checksum, 4)
            }
            Part::Block { last: true, .. } | Part::Checksum => {
                if self.resumed.take().is_none() && self.expects != 0 {
                    return Err(CodecError::Zstd { at, reason: "the frame does not end with its last block" });
                }
                self.block_ended(true, at, out, pass);
                (Part::Magic, 4)
            }
            Part::Block { last: false, .. } => {
                self.block_ended(false, at, out, pass);
                (Part::BlockHeader, 3)
            }
        };
        // The descriptor is parsed again with the rest of its header.
        if part != Part::FrameHeader {
            self.have = 0;
        }
        self.part = part;
        self.part_at = at;
        self.left = left;
        Ok(())
    }

    /// Has the recorder read a block before libzstd gets the last bytes of it, `now`.
    fn record(&mut self, now: &[u8]) {
        let Part::Block { kind: BlockKind::Compressed, .. } = self.part else { return };
        let Some(recorder) = self.recorder.as_mut().filter(|_| !self.block.seen && now.len() as u64 == self.left)
        else {
            return;
        };
        let mut block = now;
        if !self.block.bytes.is_empty() {
            self.block.bytes.extend_from_slice(now);
            block = &self.block.bytes;
        }
        match recorder.read(block, self.block.at) {
            Ok(decoded) => self.block.decoded = decoded,
            Err(why) => self.give_up_recording(why),
        }
        self.block.seen = true;
    }

    fn give_up_recording(&mut self, _why: Unreadable) {
        self.recorder = None;
    }

    /// Makes marks at the end of a block, at `at` of the blob.
    fn block_ended(&mut self, last: bool, at: BlobOffset, out: &OutputBuffer, pass: Option<&mut FirstPass>) {
        let Some(pass) = pass else { return };
        let end = out.end();
        if self.recorder.is_some() && self.block.decoded.is_some_and(|decoded| decoded != end - self.block.at) {
            self.give_up_recording(Unreadable("a block of another length"));
        }
        let Some(recorder) = &mut self.recorder else {
            if !last && end >= pass.next_continued() {
                pass.offer(Mark { blob: at, bit: 0, decoded: end, kind: StartKind::Continued });
            }
            return;
        };
        let collected = recorder.collected();
        if collected > LARGEST_WINDOW {
            self.give_up_recording(Unreadable("too many bytes before a checkpoint"));
            return;
        }
        let wanted = !last && pass.block_wanted(end, at, collected);
        if (last || wanted)
            && let Some((mark, checkpoint)) = recorder.end()
        {
            pass.count_window(collected);
            pass.window_complete(mark, || Window::of_block(checkpoint));
        }
        if last {
            // What follows is not of this frame.
            pass.withdraw(StartKind::Block);
            self.recorder = None;
        } else if wanted {
            match recorder.begin(end) {
                Ok(()) => pass.offer(Mark { blob: at, bit: 0, decoded: end, kind: StartKind::Block }),
                Err(why) => self.give_up_recording(why),
            }
        } else if end >= pass.next_continued_block() {
            pass.offer(Mark { blob: at, bit: 0, decoded: end, kind: StartKind::Continued });
        }
    }

    /// The header in `head`, with its window reduced to the limit.
    fn narrowed_header(&mut self, at: BlobOffset) -> Vec<u8> {
        let (window, limit) = (self.window(), 1_u64.checked_shl(self.window_log).unwrap_or(u64::MAX));
        let mut header = self.head[..self.have].to_vec();
        self.narrow = (window > limit).then_some(CodecError::ZstdWindow { at, window, limit });
        if self.narrow.is_some() {
            self.narrowed = self.narrowed.take().or_else(|| self.narrow.clone());
            let window = ((self.window_log - 10) << 3) as u8;
            // A single-segment frame uses its content size as window, and has no window byte.
            if header[0] & SINGLE_SEGMENT == 0 {
                header[1] = window;
            } else {
                header[0] &= !SINGLE_SEGMENT;
                header.insert(1, window);
            }
        }
        header
    }

    /// The window of the frame whose header is in `head`.
    fn window(&self) -> u64 {
        let descriptor = self.head[0];
        if descriptor & SINGLE_SEGMENT == 0 {
            let (exponent, mantissa) = (u32::from(self.head[1] >> 3), u64::from(self.head[1] & 7));
            let base = 1_u64 << (10 + exponent);
            base + base / 8 * mantissa
        } else {
            let size = content_size_length(descriptor);
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&self.head[header_length(descriptor) as usize - size..][..size]);
            u64::from_le_bytes(bytes).saturating_add(if size == 2 { 256 } else { 0 })
        }
    }

    /// Feeds libzstd as much of `input` as it takes.
    fn feed_libzstd(&mut self, input: &mut &[u8], out: &mut OutputBuffer) -> Result<(), CodecError> {
        let mut source = InBuffer::around(input);
        let room = out.room();
        let mut target = OutBuffer::around(room);
        let expects = self
            .context
            .decompress_stream(&mut target, &mut source)
            .map_err(|code| CodecError::Zstd { at: self.part_at, reason: get_error_name(code) })
            // It may refer to bytes beyond the reduced window.
            .map_err(|error| self.narrow.clone().unwrap_or(error))?;
        let (taken, filled) = (source.pos, target.pos());
        *input = &input[taken..];
        out.fill(filled);
        if taken > 0 {
            self.expects = expects;
        }
        if let Some(recorder) = &mut self.recorder
            && let Err(why) = recorder.collect(out.start(), out.decoded())
        {
            self.give_up_recording(why);
        }
        Ok(())
    }
}

/// Decodes a block from its bytes; one that is repeated has one.
fn resume_block(resumed: &mut Resumed, kind: BlockKind, size: u32, bytes: &[u8]) -> Result<(), Unreadable> {
    match (kind, bytes) {
        _ if size as usize > frame::BLOCK => Err(Unreadable("a block of too many bytes")),
        (BlockKind::Raw, _) => {
            resumed.raw(bytes);
            Ok(())
        }
        (BlockKind::Repeated, [byte, ..]) => {
            resumed.repeated(*byte, size as usize);
            Ok(())
        }
        // As libzstd has it.
        (BlockKind::Compressed, []) => Ok(()),
        (BlockKind::Repeated, []) => Err(Unreadable("a block that is cut short")),
        (BlockKind::Compressed, _) => resumed.compressed(bytes),
    }
}

/// Length of a frame header with this descriptor, the descriptor included.
fn header_length(descriptor: u8) -> u64 {
    let window = u64::from(descriptor & SINGLE_SEGMENT == 0);
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    1 + window + dictionary + content_size_length(descriptor) as u64
}

fn content_size_length(descriptor: u8) -> usize {
    match descriptor >> 6 {
        0 => usize::from(descriptor & SINGLE_SEGMENT != 0),
        log => 1 << log,
    }
}

/// The most bytes before a checkpoint that are kept.
const LARGEST_WINDOW: u64 = 64 << 20;
const FRAME: u32 = 0xfd2f_b528;
const SKIPPABLE_FIRST: u32 = 0x184d_2a50;
const SKIPPABLE_LAST: u32 = 0x184d_2a5f;
const SINGLE_SEGMENT: u8 = 1 << 5;
const CHECKSUM: u8 = 1 << 2;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::super::LayerDecoder;
    use super::*;
    use crate::Compression;

    fn frame(data: &[u8]) -> Vec<u8> {
        ::zstd::bulk::compress(data, 3).unwrap()
    }

    fn decode(blob: &[u8], limits: Limits) -> Result<Vec<u8>, CodecError> {
        let decoded = [blob.len().max(1), 1].map(|piece| {
            let mut decoder = LayerDecoder::first_pass(Compression::Zstd, limits)?;
            let mut out = OutputBuffer::new(1 << 20);
            for mut input in blob.chunks(piece) {
                decoder.decode(&mut input, &mut out)?;
            }
            decoder.finish()?;
            Ok(out.decoded().to_vec())
        });
        assert_eq!(decoded[0], decoded[1]);
        let [decoded, _] = decoded;
        decoded
    }

    #[test]
    fn skippable_frames_are_skipped_wherever_they_stand() {
        let skippable = [&0x184d_2a5e_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"toc"].concat();
        let empty = [&0x184d_2a50_u32.to_le_bytes()[..], &0_u32.to_le_bytes()].concat();
        let blob = [&skippable, &frame(b"abc"), &empty, &skippable, &frame(b""), &frame(b"def"), &skippable];
        assert_eq!(decode(&blob.map(|part| &part[..]).concat(), Limits::default()).unwrap(), b"abcdef");
    }

    #[test]
    fn data_that_is_no_frame_is_an_error_anywhere() {
        for (blob, at) in [(b"PK\x03\x04".to_vec(), 0), ([frame(b"abc"), vec![0; 4]].concat(), frame(b"abc").len())] {
            assert_eq!(decode(&blob, Limits::default()), Err(CodecError::NoFrame { at: BlobOffset(at as u64) }));
        }
    }

    /// A single frame, written for a window of this many bytes, as a power of two.
    fn far(data: &[u8], window_log: u32, size: bool) -> Vec<u8> {
        let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 19).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.set_pledged_src_size(size.then_some(data.len() as u64)).unwrap();
        encoder.include_contentsize(size).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_frame_fails_only_if_it_needs_a_window_beyond_the_limit() {
        let limits = Limits { zstd_window_log: 17, ..Limits::default() };
        let mut random = super::super::samples::Random::new(1);
        let part: Vec<u8> = (0..400_000).map(|_| random.below(256) as u8).collect();
        let twice = [&part[..], &part].concat();
        for size in [false, true] {
            let near = &part[..100_000];
            assert_eq!(decode(&far(near, 21, size), limits).unwrap(), near);
            let error = decode(&far(&twice, 21, size), limits).unwrap_err();
            assert!(matches!(error, CodecError::ZstdWindow { limit: 0x2_0000, .. }), "{error}");
            assert_eq!(decode(&far(&twice, 21, size), Limits::default()).unwrap(), twice);
        }
        // A single-segment frame above the limit, which is its window.
        assert_eq!(decode(&frame(&[7; 500_000]), limits).unwrap(), [7; 500_000]);
    }

    #[test]
    fn the_largest_window_of_all_is_no_more_than_the_blob_can_need() {
        // `zstd --long=31` from a pipe.
        let mut blob = far(&[9; 1000], 17, false);
        assert_eq!(blob[4] & SINGLE_SEGMENT, 0);
        blob[5] = 21 << 3;
        let mut decoder =
            LayerDecoder::first_pass(Compression::Zstd, Limits::default().of_blob(blob.len() as u64)).unwrap();
        let mut out = OutputBuffer::new(1 << 20);
        decoder.decode(&mut &blob[..], &mut out).unwrap();
        decoder.finish().unwrap();
        assert_eq!(out.decoded(), [9; 1000]);
        let told = decoder.narrowed().unwrap().to_string();
        assert!(told.contains("needs a window of 2048 MiB; the limit is 1 MiB"), "{told}");
    }

    #[test]
    fn a_wrong_checksum_is_an_error() {
        let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(b"abc").unwrap();
        let mut blob = encoder.finish().unwrap();
        assert_eq!(decode(&blob, Limits::default()).unwrap(), b"abc");
        *blob.last_mut().unwrap() ^= 1;
        assert!(matches!(decode(&blob, Limits::default()), Err(CodecError::Zstd { .. })));
    }

    #[test]
    fn header_lengths_are_those_of_the_specification() {
        // RFC 8878, 3.1.1.1: descriptor, window, dictionary and content size.
        for (descriptor, length) in [(0x00, 2), (0x20, 2), (0x40, 4), (0x60, 3), (0x83, 10), (0xa0, 5), (0xc3, 14)] {
            assert_eq!(header_length(descriptor), length, "{descriptor:#x}");
        }
    }
}
