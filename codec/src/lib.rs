//! Codecs: decode a layer's compressed blob, from its start or from the middle.
//!
//! Compressed layers are made to be unpacked once, front to back. A lazy mount needs random access, so the one
//! necessary front-to-back pass ([`LayerDecoder::first_pass`]) records where decoding can restart ([`Mark`]) and what
//! that requires ([`Window`]); later, [`LayerDecoder::resume`] starts there.
//!
//! Decoders take input in pieces of any size from the caller. Nothing here does I/O, waits or locks. Input is untrusted
//! until a digest is verified, which is last; so every blob yields bytes or one error, in time linear in its input and
//! output, and with memory bounded by [`Limits`] and the current piece.
//!
//! ```
//! use peelfs_codec::{Compression, LayerDecoder, Limits, OutputBuffer, Status};
//!
//! let mut decoder = LayerDecoder::first_pass(Compression::Stored, Limits::default())?;
//! let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
//! let mut input = &b"a layer"[..];
//! assert_eq!(decoder.decode(&mut input, &mut out)?, Status::NeedInput);
//! decoder.finish()?;
//! assert_eq!(out.decoded(), b"a layer");
//! # Ok::<(), peelfs_codec::CodecError>(())
//! ```

mod block_state;
mod codes;
mod compression;
mod fast;
mod frame;
mod gzip;
mod inflate;
mod marks;
pub mod offsets;
mod output;
#[cfg(test)]
mod samples;
mod sniff;
mod start;
mod stored;
pub mod tar_split;
mod window;
mod zstd;

use crate::offsets::{BlobOffset, DecodedOffset};

pub use self::compression::Compression;
pub use self::gzip::BlockStart;
pub use self::inflate::{Alphabet, InflateError};
pub use self::marks::Mark;
pub use self::output::{Filled, OutputBuffer};
pub use self::sniff::{MAGIC, compression_of};
pub use self::start::StartKind;
pub use self::window::{Window, WindowError, WindowPacker};

use self::block_state::BlockKind;
use self::gzip::Gzip;
use self::marks::FirstPass;
use self::zstd::Zstd;

/// A decoder of a layer, from its start or from a mark.
pub struct LayerDecoder {
    format: Format,
    limits: Limits,
    first_pass: Option<FirstPass>,
    /// The bytes before the first one to decode, until the first call puts them into the output buffer.
    window: Option<Box<[u8]>>,
    blob: BlobOffset,
    decoded: DecodedOffset,
    failed: Option<CodecError>,
}

/// Limits of a layer; exceeding one is an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Decoded bytes of a layer.
    pub decoded: u64,
    /// The largest zstd window, as a power of two in bytes: libzstd allocates that much. A frame with a larger window
    /// is decoded with this one, and fails only if it refers further back. At least 17.
    pub zstd_window_log: u32,
    /// Decoded bytes per byte of zstd on average, beyond [`Limits::ratio_free`] decoded bytes. Deflate needs no such
    /// limit: its ratio is at most 1032.
    pub zstd_ratio: u64,
    /// Decoded bytes to which `zstd_ratio` does not apply: sparse files compress extremely well.
    pub ratio_free: u64,
    /// Bytes of a zstd frame between two blocks at which decoding can start, at least; at most 20 times that, unless they
    /// decode to very much.
    pub zstd_spacing: u64,
    /// Bytes of the blob between two places inside a deflate block at which decoding can start, at least. Decoded, there
    /// are at least four times as many between them, or 32 KiB, but 256 KiB suffice.
    pub deflate_spacing: u64,
}

/// Why [`LayerDecoder::decode`] returned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// The input is used up and its output is complete; more may follow.
    NeedInput,
    /// The output is full: take it and call again, even without input.
    OutputFull,
    /// The layer has ended; all further input is dropped.
    End,
}

/// Why a blob does not decode.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The blob, or data after a member's magic number, is not gzip.
    #[error("no gzip member at byte {at} of the blob")]
    NoMember {
        /// Where a member should begin.
        at: BlobOffset,
    },
    /// RFC 1952 knows method 8 only.
    #[error("gzip member with unknown compression method {method} at byte {at} of the blob")]
    GzipMethod {
        /// Offset of the method.
        at: BlobOffset,
        /// CM
        method: u8,
    },
    /// Reserved bits must be zero (RFC 1952, 2.3.1.2).
    #[error("gzip member with reserved flags {flags:#04x} at byte {at} of the blob")]
    GzipFlags {
        /// Offset of the flags.
        at: BlobOffset,
        /// FLG
        flags: u8,
    },
    /// A file name or comment beyond 64 KiB.
    #[error("endless gzip header at byte {at} of the blob")]
    GzipHeader {
        /// Offset up to which it was read.
        at: BlobOffset,
    },
    /// FHCRC is set and CRC16 is wrong.
    #[error("gzip header with a wrong checksum at byte {at} of the blob")]
    GzipHeaderCheck {
        /// Offset of the header's end.
        at: BlobOffset,
    },
    /// A member with another length than its trailer states.
    #[error("gzip member of {got} bytes where its trailer at byte {at} of the blob says {stated} (both modulo 2^32)")]
    MemberLength {
        /// Offset of the trailer's end.
        at: BlobOffset,
        /// ISIZE
        stated: u32,
        /// Bytes decoded, modulo 2^32.
        got: u32,
    },
    /// A corrupt deflate stream.
    #[error("corrupt deflate stream at byte {at} of the blob")]
    Inflate {
        /// Approximate offset.
        at: BlobOffset,
        /// What is wrong.
        source: InflateError,
    },
    /// The compression is not allowed for layers.
    #[error("the blob is compressed with {format}, as no layer may be")]
    Foreign {
        /// Offset of its magic number.
        at: BlobOffset,
        /// Its format.
        format: &'static str,
    },
    /// The blob, or data after a frame, is not zstd.
    #[error("no zstd frame at byte {at} of the blob")]
    NoFrame {
        /// Where a frame should begin.
        at: BlobOffset,
    },
    /// A frame that needs too much memory.
    #[error("zstd frame at byte {at} of the blob needs a window of {}; the limit is {}", shown(*window), shown(*limit))]
    ZstdWindow {
        /// Offset of its header's end.
        at: BlobOffset,
        /// The window of the frame.
        window: u64,
        /// The limit.
        limit: u64,
    },
    /// A corrupt zstd frame.
    #[error("corrupt zstd frame at byte {at} of the blob: {reason}")]
    Zstd {
        /// Approximate offset.
        at: BlobOffset,
        /// libzstd's message.
        reason: &'static str,
    },
    /// The blob ends inside a member or frame, or is empty.
    #[error("compressed blob cut short at byte {at}")]
    Truncated {
        /// Its size.
        at: BlobOffset,
    },
    /// [`Limits::decoded`] is exceeded.
    #[error("layer decodes to more than the limit of {limit} bytes")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// [`Limits::zstd_ratio`] is exceeded.
    #[error("layer decodes to {decoded} bytes from {blob}; the limit is {limit} bytes for each")]
    Ratio {
        /// Bytes decoded.
        decoded: u64,
        /// Bytes of the blob they came from.
        blob: u64,
        /// The limit.
        limit: u64,
    },
    /// Decoding cannot start at this mark.
    #[error("decoding of a {compression:?} layer cannot begin at {mark:?}")]
    NoStart {
        /// How the layer is compressed.
        compression: Compression,
        /// The mark.
        mark: Mark,
    },
    /// The output buffer belongs to another decoder.
    #[error("output buffer stands at {buffer} of the decoded stream, the decoder at {decoder}")]
    StrangeBuffer {
        /// Offset of the buffer's next byte.
        buffer: DecodedOffset,
        /// Offset of the decoder's next byte.
        decoder: DecodedOffset,
    },
}

enum Format {
    Stored,
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

/// Input, and its position in the blob.
struct Feed<'a, 'b> {
    rest: &'a mut &'b [u8],
    end: BlobOffset,
}

impl Feed<'_, '_> {
    /// The offset of the next byte of the input.
    fn at(&self) -> BlobOffset {
        BlobOffset(self.end.0 - self.rest.len() as u64)
    }
}

impl LayerDecoder {
    /// Decodes a layer from its start and finds its marks; the first mark is the start.
    ///
    /// # Errors
    /// [`CodecError::Zstd`] if there is no memory for libzstd.
    pub fn first_pass(compression: Compression, limits: Limits) -> Result<Self, CodecError> {
        let (format, kind) = match compression {
            Compression::Stored => (Format::Stored, StartKind::Stored),
            Compression::Gzip => (Format::Gzip(Box::new(Gzip::new())), StartKind::Member),
            Compression::Zstd => (Format::Zstd(Box::new(Zstd::new(&limits)?)), StartKind::Frame),
        };
        Ok(Self {
            format,
            limits,
            first_pass: Some(FirstPass::new(kind, &limits)),
            window: Some(Box::default()),
            blob: BlobOffset(0),
            decoded: DecodedOffset(0),
            failed: None,
        })
    }

    /// Decodes a gzip layer from its start, and notes where blocks begin: the first one, and then each that does so more than
    /// `spacing` decoded bytes behind the last one noted ([`LayerDecoder::take_starts`]).
    pub fn noting_blocks(limits: Limits, spacing: u64) -> Self {
        Self {
            format: Format::Gzip(Box::new(Gzip::logging(spacing))),
            limits,
            first_pass: None,
            window: Some(Box::default()),
            blob: BlobOffset(0),
            decoded: DecodedOffset(0),
            failed: None,
        }
    }

    /// The starts that were noted since the last call; any later one lies behind the input so far, but for eight bytes.
    pub fn take_starts(&mut self) -> Vec<BlockStart> {
        match &mut self.format {
            Format::Gzip(gzip) => gzip.take_starts(),
            Format::Stored | Format::Zstd(_) => Vec::new(),
        }
    }

    /// Decodes from a mark, through all members or frames that follow; the input begins with the byte at `start.blob`.
    /// Offsets in errors and buffers are those of the whole layer.
    ///
    /// # Errors
    /// [`CodecError::NoStart`] if the mark is not a start of such a layer, or a checkpoint lacks its window;
    /// [`CodecError::Inflate`] or [`CodecError::Zstd`] if the window is one that no block can have.
    pub fn resume(
        compression: Compression,
        limits: Limits,
        start: &Mark,
        window: Option<&Window>,
    ) -> Result<Self, CodecError> {
        let no_start = || CodecError::NoStart { compression, mark: *start };
        let in_byte = matches!(start.kind, StartKind::Checkpoint | StartKind::InsideBlock);
        // Marks may come from a damaged file; sums of offsets must not overflow.
        if start.blob.0 > FARTHEST || start.decoded.0 > FARTHEST || start.bit > if in_byte { 7 } else { 0 } {
            return Err(no_start());
        }
        let mut before = &[][..];
        let format = match (compression, start.kind) {
            (Compression::Stored, StartKind::Stored) => Format::Stored,
            (Compression::Gzip, StartKind::Member) => Format::Gzip(Box::new(Gzip::at_member(start.decoded))),
            (Compression::Gzip, StartKind::Checkpoint) => {
                before = window.and_then(Window::of_deflate).ok_or_else(no_start)?;
                Format::Gzip(Box::new(Gzip::at_checkpoint(start.decoded, start.bit, before.len())))
            }
            (Compression::Gzip, StartKind::InsideBlock) => {
                let (state, history) = window.and_then(Window::inside_block).ok_or_else(no_start)?;
                // A stored block consists of whole bytes.
                if matches!(state.kind, BlockKind::Stored { .. }) && start.bit > 0 {
                    return Err(no_start());
                }
                before = history;
                let gzip = Gzip::inside_block(start.decoded, start.bit, state, history.len());
                Format::Gzip(Box::new(gzip.map_err(|source| CodecError::Inflate { at: start.blob, source })?))
            }
            (Compression::Zstd, StartKind::Frame) => Format::Zstd(Box::new(Zstd::new(&limits)?)),
            (Compression::Zstd, StartKind::Block) => {
                let checkpoint = window.and_then(Window::of_zstd).ok_or_else(no_start)?;
                Format::Zstd(Box::new(Zstd::at_checkpoint(&limits, checkpoint, start.blob)?))
            }
            _ => return Err(no_start()),
        };
        Ok(Self {
            format,
            limits,
            first_pass: None,
            window: Some(before.into()),
            blob: start.blob,
            decoded: start.decoded,
            failed: None,
        })
    }

    /// Decodes from the start of `input` to the end of `out`, until one of them is used up. Unused input stays in
    /// `input` and must come first in the next call.
    ///
    /// # Errors
    /// Any fault of the blob; later calls return the same error. Bytes in `out` from before the error are unverified,
    /// like all others.
    pub fn decode(&mut self, input: &mut &[u8], out: &mut OutputBuffer) -> Result<Status, CodecError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.try_decode(input, out).inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Signals the end of the blob.
    ///
    /// # Errors
    /// [`CodecError::Truncated`] if the blob is incomplete.
    pub fn finish(&mut self) -> Result<(), CodecError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let may_end = match &self.format {
            Format::Stored => true,
            Format::Gzip(gzip) => gzip.may_end(),
            Format::Zstd(zstd) => zstd.may_end(),
        };
        if may_end { Ok(()) } else { Err(CodecError::Truncated { at: self.blob }) }
    }

    /// The marks found since the last call. A mark is found when the byte at it is decoded, the first one at once; so
    /// every mark except the first is followed by bytes.
    pub fn take_marks(&mut self) -> Vec<Mark> {
        self.first_pass.as_mut().map_or_else(Vec::new, FirstPass::take_marks)
    }

    /// The windows completed since the last call, with the numbers of their marks, counted from 0 over all marks. Each
    /// checkpoint gets one, once 32 KiB after it are decoded or its member ends.
    pub fn take_windows(&mut self) -> Vec<(usize, Window)> {
        self.first_pass.as_mut().map_or_else(Vec::new, FirstPass::take_windows)
    }

    /// The frame whose window exceeded the limit, if any: its output is right only if it refers no further back than
    /// the limit.
    pub fn narrowed(&self) -> Option<CodecError> {
        match &self.format {
            Format::Zstd(zstd) => zstd.narrowed(),
            Format::Stored | Format::Gzip(_) => None,
        }
    }

    /// Offset of the next input byte in the blob.
    pub fn blob_offset(&self) -> BlobOffset {
        self.blob
    }

    fn try_decode(&mut self, input: &mut &[u8], out: &mut OutputBuffer) -> Result<Status, CodecError> {
        let begun = match self.window.take() {
            Some(window) => out.begin(self.decoded, &window),
            None => out.end() == self.decoded,
        };
        if !begun {
            return Err(CodecError::StrangeBuffer { buffer: out.end(), decoder: self.decoded });
        }
        let mut feed = Feed { end: self.blob + input.len() as u64, rest: input };
        let pass = self.first_pass.as_mut();
        let status = match &mut self.format {
            Format::Stored => stored::decode(&mut feed, out, pass),
            Format::Gzip(gzip) => gzip.decode(&mut feed, out, pass)?,
            Format::Zstd(zstd) => zstd.decode(&mut feed, out, pass)?,
        };
        self.blob = feed.at();
        self.decoded = out.end();
        self.check_limits()?;
        Ok(status)
    }

    fn check_limits(&self) -> Result<(), CodecError> {
        if self.decoded.0 > self.limits.decoded {
            return Err(CodecError::TooLong { limit: self.limits.decoded });
        }
        let limit = self.limits.zstd_ratio;
        if matches!(self.format, Format::Zstd(_))
            && self.decoded.0 > self.limits.ratio_free
            && self.decoded.0 > self.blob.0.saturating_mul(limit)
        {
            return Err(CodecError::Ratio { decoded: self.decoded.0, blob: self.blob.0, limit });
        }
        Ok(())
    }
}

impl Limits {
    /// Limits for a part of a layer that passed a first pass, of which at most `decoded` bytes are decoded: only memory
    /// needs a limit. A ratio just within the limit may exceed it if decoding starts elsewhere.
    pub fn of_known(decoded: u64) -> Self {
        Self { decoded: u64::MAX, zstd_ratio: u64::MAX, ..Self::default() }.within(decoded)
    }

    /// These limits for a blob of `size` bytes: it cannot refer further back than its maximum decoded size.
    #[must_use]
    pub fn of_blob(self, size: u64) -> Self {
        self.within(size.saturating_mul(ZSTD_MOST))
    }

    /// These limits, if nothing refers further back than `decoded` bytes.
    fn within(self, decoded: u64) -> Self {
        let log = decoded.checked_next_power_of_two().map_or(u64::BITS, u64::trailing_zeros);
        Self { zstd_window_log: self.zstd_window_log.min(log.max(SMALLEST_WINDOW_LOG)), ..self }
    }
}

impl Default for Limits {
    /// 64 GiB, windows of 256 MiB, a ratio of 2000 beyond 1 GiB, and a start each 96 KiB of a zstd frame, and each 64 KiB
    /// of a long deflate block.
    fn default() -> Self {
        Self {
            decoded: 64 << 30,
            zstd_window_log: 28,
            zstd_ratio: 2000,
            ratio_free: 1 << 30,
            zstd_spacing: 96 << 10,
            deflate_spacing: 64 << 10,
        }
    }
}

/// A size for messages.
fn shown(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{bytes} bytes") } else { format!("{} MiB", bytes.div_ceil(1 << 20)) }
}

/// Maximum decoded bytes per byte of zstd: four make a block of 128 KiB (RFC 8878, 3.1.1.2.2, "RLE_Block").
const ZSTD_MOST: u64 = 32 << 10;
/// Blocks are at most as large as the window, and at most 128 KiB (RFC 8878, 3.1.1.2.4): a smaller window would refuse
/// blocks.
const SMALLEST_WINDOW_LOG: u32 = 17;
/// Larger than any offset of a layer, and small enough that sums cannot overflow.
const FARTHEST: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use peelfs_loopback::deflate::{Codes, one_block};

    use super::samples::{KINDS, Kind, Random, Writer, lengths, sample};
    use super::*;

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8], level: i32) -> Vec<u8> {
        ::zstd::bulk::compress(data, level).unwrap()
    }

    struct Decoded {
        data: Vec<u8>,
        marks: Vec<Mark>,
        windows: Vec<(usize, Window)>,
    }

    /// Decodes `blob` in pieces of `piece()` bytes with a buffer of `capacity`, and checks the decoder's guarantees.
    fn push(
        decoder: &mut LayerDecoder,
        blob: &[u8],
        capacity: usize,
        piece: impl FnMut() -> usize,
    ) -> Result<Decoded, CodecError> {
        let all = push_part(decoder, blob, capacity, piece)?;
        decoder.finish()?;
        Ok(all)
    }

    /// As [`push`], of a blob that may go on.
    fn push_part(
        decoder: &mut LayerDecoder,
        blob: &[u8],
        capacity: usize,
        mut piece: impl FnMut() -> usize,
    ) -> Result<Decoded, CodecError> {
        let mut out = OutputBuffer::new(capacity);
        let mut all = Decoded { data: Vec::new(), marks: decoder.take_marks(), windows: Vec::new() };
        let mut recycled = None;
        let mut rest = blob;
        let start = decoder.decoded.0;
        loop {
            let (mut now, later) = rest.split_at(piece().min(rest.len()));
            loop {
                let before = decoder.decoded;
                let status = decoder.decode(&mut now, &mut out)?;
                for mark in decoder.take_marks() {
                    assert!(before <= mark.decoded && mark.decoded < decoder.decoded, "{mark:?} not in this call");
                    all.marks.push(mark);
                }
                all.windows.extend(decoder.take_windows());
                match status {
                    Status::OutputFull => {
                        assert!(out.is_full() && out.decoded().len() < capacity + 258);
                        let filled = out.hand_over(recycled.take());
                        assert_eq!(filled.start().0 - start, all.data.len() as u64);
                        all.data.extend_from_slice(&filled);
                        recycled = Some(filled);
                    }
                    Status::NeedInput | Status::End => {
                        assert_eq!(now, b"");
                        break;
                    }
                }
            }
            rest = later;
            if rest.is_empty() {
                all.data.extend_from_slice(out.decoded());
                return Ok(all);
            }
        }
    }

    fn first_pass(compression: Compression, blob: &[u8]) -> Result<Decoded, CodecError> {
        push(&mut LayerDecoder::first_pass(compression, Limits::default())?, blob, OutputBuffer::CAPACITY, || {
            usize::MAX
        })
    }

    /// Resumes at every start and compares everything from there, or the first `check` bytes.
    fn resume_everywhere(compression: Compression, blob: &[u8], pass: &Decoded, check: usize, random: &mut Random) {
        assert_eq!((pass.marks[0].decoded.0, pass.marks[0].blob.0), (0, 0));
        assert!(pass.marks.windows(2).all(|pair| {
            pair[0].decoded < pair[1].decoded && (pair[0].blob, pair[0].bit) <= (pair[1].blob, pair[1].bit)
        }));
        let has_window =
            |mark: &Mark| matches!(mark.kind, StartKind::Checkpoint | StartKind::InsideBlock | StartKind::Block);
        let with_window = pass.marks.iter().enumerate().filter(|(_, mark)| has_window(mark));
        assert!(with_window.map(|(number, _)| number).eq(pass.windows.iter().map(|(number, _)| *number)));
        for (number, mark) in pass.marks.iter().enumerate() {
            if !mark.kind.is_start() {
                assert!(LayerDecoder::resume(compression, Limits::default(), mark, None).is_err());
                continue;
            }
            let window = pass.windows.iter().find(|(n, _)| *n == number).map(|(_, w)| w.to_bytes());
            let window = window.map(|bytes| Window::from_bytes(mark.kind, &bytes).unwrap());
            let decoder = || LayerDecoder::resume(compression, Limits::default(), mark, window.as_ref()).unwrap();
            let (from, at) = (mark.blob.0 as usize, mark.decoded.0 as usize);
            // From a block on, only what is before the next one can be decoded.
            let is_next_block = |next: &&Mark| mark.kind == StartKind::Block && next.kind == StartKind::Block;
            let last = pass.marks[number + 1..].iter().find(is_next_block);
            // The bytes before a later mark are decoded from the bytes before it in the blob.
            let next = pass.marks.get(number + 1 + random.below(3));
            let next = last.into_iter().chain(next).min_by_key(|mark| mark.decoded);
            let blob_end = next.map_or(blob.len(), |next| next.blob.0 as usize + usize::from(next.bit > 0));
            let end = next.map_or(pass.data.len(), |next| next.decoded.0 as usize);
            let mut out = OutputBuffer::new(pass.data.len() - at + 1);
            assert_ne!(decoder().decode(&mut &blob[from..blob_end], &mut out), Ok(Status::OutputFull));
            assert!(out.decoded().len() >= end - at, "{mark:?} to {next:?}");
            assert!(pass.data[at..].starts_with(out.decoded()), "{mark:?}");

            if pass.data.len() - at <= check {
                let (blob_end, end) =
                    last.map_or((blob.len(), pass.data.len()), |last| (last.blob.0 as usize, last.decoded.0 as usize));
                let rest =
                    push_part(&mut decoder(), &blob[from..blob_end], 70_000, || 1 + random.below(50_000)).unwrap();
                assert!(rest.data == pass.data[at..end], "{mark:?}");
                assert_eq!((rest.marks.len(), rest.windows.len()), (0, 0));
            }
        }
    }

    #[test]
    fn gzip_layers_decode_whatever_the_level_and_the_pieces() {
        let mut random = Random::new(1);
        for kind in KINDS {
            for level in 0..10 {
                for length in [0, 1, 300, 40_000, 300_000] {
                    let data = sample(kind, length, &mut random);
                    let blob = gzip(&data, level);
                    let largest = 1 << random.below(18);
                    let capacity = 1 + length / 1000 + random.magnitude(19);
                    let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default()).unwrap();
                    let decoded = push(&mut decoder, &blob, capacity, || 1 + random.below(largest)).unwrap();
                    assert!(decoded.data == data, "{kind:?} {level} {length}");
                }
            }
        }
    }

    #[test]
    fn gzip_layers_decode_again_from_every_mark() {
        let mut random = Random::new(2);
        for kind in KINDS {
            for level in [0, 1, 6, 9] {
                let data = sample(kind, 1_500_000 + random.below(1_000_000), &mut random);
                let blob = gzip(&data, level);
                let pass = first_pass(Compression::Gzip, &blob).unwrap();
                assert!(pass.data == data);
                assert!(pass.marks.len() >= 2);
                resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
            }
        }
    }

    #[test]
    fn members_of_all_sizes_decode_again_from_every_mark() {
        let mut random = Random::new(3);
        let (mut blob, mut data) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            let length = random.magnitude(19);
            // Blocks that are not compressed have marks of their own, and few members would need one.
            let member = sample(Kind::Text, length, &mut random);
            blob.extend(gzip(&member, 1 + random.below(9) as u32));
            data.extend(member);
        }
        let pass = first_pass(Compression::Gzip, &blob).unwrap();
        assert!(pass.data == data);
        let kinds = |kind| pass.marks.iter().filter(|mark| mark.kind == kind).count();
        assert!(kinds(StartKind::Member) > 1 && kinds(StartKind::Checkpoint) > 1);
        resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
    }

    #[test]
    fn marks_and_windows_do_not_depend_on_the_pieces() {
        let mut random = Random::new(4);
        let data = sample(Kind::Mixed, 3_000_000, &mut random);
        for (compression, blob) in [
            (Compression::Stored, data.clone()),
            (Compression::Gzip, gzip(&data, 6)),
            (Compression::Zstd, [zstd(&data[..400_000], 3), zstd(&data[400_000..], 3)].concat()),
        ] {
            let whole = first_pass(compression, &blob).unwrap();
            for capacity in [700, 100_000] {
                let mut decoder = LayerDecoder::first_pass(compression, Limits::default()).unwrap();
                let pieces = push(&mut decoder, &blob, capacity, || 1 + random.below(4 * capacity)).unwrap();
                assert!(pieces.data == whole.data);
                assert_eq!(pieces.marks, whole.marks);
                assert!(pieces.windows == whole.windows);
            }
        }
    }

    #[test]
    fn a_span_without_a_start_is_cut_every_mebibyte() {
        // Long matches: blocks of many MiB.
        let mut random = Random::new(12);
        let data: Vec<u8> = (0..40).flat_map(|byte| vec![byte; 500_000 + random.below(9)]).collect();
        let blob = gzip(&data, 6);
        let pass = first_pass(Compression::Gzip, &blob).unwrap();
        assert!(pass.marks.iter().any(|mark| mark.kind == StartKind::Continued));
        assert!(pass.marks.windows(2).all(|pair| pair[1].decoded - pair[0].decoded < (1 << 20) + 258));
        resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
        let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default()).unwrap();
        let pieces = push(&mut decoder, &blob, 100_000, || 1).unwrap();
        assert_eq!(pieces.marks, pass.marks);
    }

    #[test]
    fn marks_a_few_bits_apart_are_in_order() {
        let literals = lengths(&[(97, 2), (256, 2), (285, 1)], 286);
        let (end, match_258) = ((0b11, 2), (0b00, 2));
        for first in 1..9 {
            let mut writer = Writer::default().put(0, 1).dynamic(&literals, &[1]);
            for _ in 0..first {
                writer = writer.code(0b10, 2);
            }
            // One match beyond a mebibyte: a mark, a literal and the end of the block; then another block.
            for _ in 0..(1 << 20) / 258 + 1 {
                writer = writer.put(match_258.0, match_258.1);
            }
            writer = writer.code(0b10, 2).code(end.0, end.1);
            let writer = writer.put(1, 1).dynamic(&literals, &[1]).code(0b10, 2).code(end.0, end.1);
            let length = first + ((1 << 20) / 258 + 1) * 258 + 2_u32;
            let header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
            let blob = [header, &writer.bytes[..], &[0; 4], &length.to_le_bytes()].concat();
            let pass = first_pass(Compression::Gzip, &blob).unwrap();
            let kinds: Vec<_> = pass.marks.iter().map(|mark| mark.kind).collect();
            assert_eq!(kinds, [StartKind::Member, StartKind::Continued, StartKind::Checkpoint]);
            resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut Random::new(13));
        }
    }

    #[test]
    fn windows_hold_far_less_than_32_kib() {
        let data = sample(Kind::Text, 4_000_000, &mut Random::new(5));
        let pass = first_pass(Compression::Gzip, &gzip(&data, 6)).unwrap();
        assert!(pass.windows.len() > 5);
        let kept: usize = pass.windows.iter().map(|(_, window)| window.to_bytes().len()).sum();
        assert!(kept / pass.windows.len() < 8 << 10, "{} bytes each", kept / pass.windows.len());
    }

    #[test]
    fn zstd_layers_decode_whatever_the_level_and_the_pieces() {
        let mut random = Random::new(6);
        for kind in KINDS {
            for level in [-5, 1, 3, 9] {
                for length in [0, 1, 300, 40_000, 300_000] {
                    let data = sample(kind, length, &mut random);
                    let blob = zstd(&data, level);
                    let largest = 1 << random.below(18);
                    let capacity = 1 + length / 1000 + random.magnitude(19);
                    let mut decoder = LayerDecoder::first_pass(Compression::Zstd, Limits::default()).unwrap();
                    let decoded = push(&mut decoder, &blob, capacity, || 1 + random.below(largest)).unwrap();
                    assert!(decoded.data == data, "{kind:?} {level} {length}");
                }
            }
        }
    }

    #[test]
    fn frames_of_all_sizes_decode_again_from_every_frame_mark() {
        let mut random = Random::new(7);
        let (mut blob, mut data) = (Vec::new(), Vec::new());
        for i in 0..60 {
            let length = random.magnitude(20);
            let frame = sample(Kind::Mixed, length, &mut random);
            let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 1 + i % 3).unwrap();
            encoder.include_checksum(i % 2 == 0).unwrap();
            encoder.include_contentsize(i % 5 == 0).unwrap();
            if i % 5 == 0 {
                encoder.set_pledged_src_size(Some(frame.len() as u64)).unwrap();
            }
            encoder.write_all(&frame).unwrap();
            blob.extend(encoder.finish().unwrap());
            if i % 7 == 0 {
                let skipped = random.below(100);
                blob.extend((0x184d_2a50 + i as u32 % 16).to_le_bytes());
                blob.extend((skipped as u32).to_le_bytes());
                blob.resize(blob.len() + skipped, 0xfd);
            }
            data.extend(frame);
        }
        let long = sample(Kind::Mixed, 4_000_000, &mut random);
        blob.extend(zstd(&long, 1));
        data.extend(long);
        let pass = first_pass(Compression::Zstd, &blob).unwrap();
        assert!(pass.data == data);
        let kinds = |kind| pass.marks.iter().filter(|mark| mark.kind == kind).count();
        assert!(kinds(StartKind::Frame) > 1 && kinds(StartKind::Block) > 1);
        resume_everywhere(Compression::Zstd, &blob, &pass, usize::MAX, &mut random);
    }

    /// Limits with many starts in a frame, and in a deflate block.
    const DENSE: Limits = Limits {
        decoded: 64 << 30,
        zstd_window_log: 28,
        zstd_ratio: u64::MAX,
        ratio_free: 1 << 30,
        zstd_spacing: 5000,
        deflate_spacing: 3000,
    };

    fn dense_pass(compression: Compression, blob: &[u8], random: &mut Random) -> Decoded {
        let mut decoder = LayerDecoder::first_pass(compression, DENSE).unwrap();
        let largest = 1 << (8 + random.below(12));
        push(&mut decoder, blob, 1 + random.magnitude(20), || 1 + random.below(largest)).unwrap()
    }

    fn blocks_of(pass: &Decoded) -> usize {
        marks_of(StartKind::Block, pass)
    }

    fn marks_of(kind: StartKind, pass: &Decoded) -> usize {
        pass.marks.iter().filter(|mark| mark.kind == kind).count()
    }

    #[test]
    fn a_gzip_layer_of_one_block_has_starts_inside_it() {
        let (mut random, mut all) = (Random::new(41), 0);
        for codes in [Codes::Fixed, Codes::Dynamic] {
            for kind in KINDS {
                let data = sample(kind, 2_000_000 + random.below(1_000_000), &mut random);
                let blob = one_block(&data, codes);
                let pass = first_pass(Compression::Gzip, &blob).unwrap();
                assert!(pass.data == data);
                let inside: Vec<_> = pass.marks.iter().filter(|mark| mark.kind == StartKind::InsideBlock).collect();
                all += inside.len();
                // 256 KiB decoded, unless these are less than 64 KiB of the blob.
                let wanted = (data.len() >> 18).min(blob.len() >> 16) / 2;
                assert!(inside.len() >= wanted, "{kind:?} {codes:?}: {} of {wanted}", inside.len());
                assert!(inside.windows(2).all(|pair| {
                    pair[1].decoded - pair[0].decoded >= 256 << 10 && pair[1].blob - pair[0].blob >= (64 << 10) - 1
                }));
                resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
                let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default()).unwrap();
                let pieces = push(&mut decoder, &blob, 70_000, || 1 + random.below(3000)).unwrap();
                assert_eq!(pieces.marks, pass.marks);
                assert!(pieces.windows == pass.windows);
            }
        }
        assert!(all > 30, "{all}");
    }

    /// Blocks of all kinds and lengths, in members of several blocks and in members of one.
    #[test]
    fn starts_inside_blocks_of_all_kinds_decode_to_the_same_bytes() {
        let (mut random, mut inside) = (Random::new(42), 0);
        for round in 0..25 {
            let (mut blob, mut data) = (Vec::new(), Vec::new());
            for _ in 0..1 + random.below(3) {
                let length = random.magnitude(18) + random.below(500_000);
                let member = sample(KINDS[random.below(4)], length, &mut random);
                match random.below(5) {
                    0 => blob.extend(one_block(&member, Codes::Fixed)),
                    1 | 2 => blob.extend(one_block(&member, Codes::Dynamic)),
                    _ => blob.extend(gzip(&member, random.below(10) as u32)),
                }
                data.extend(member);
            }
            let pass = dense_pass(Compression::Gzip, &blob, &mut random);
            assert!(pass.data == data, "{round}");
            inside += marks_of(StartKind::InsideBlock, &pass);
            resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
        }
        assert!(inside > 200, "{inside}");
    }

    /// A gzip layer whose blocks are stored, and at most this long.
    fn stored_blocks(data: &[u8], longest: usize) -> Vec<u8> {
        let header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
        let mut blob = data.chunks(longest).fold(header, |mut blob, block| {
            let length = block.len() as u16;
            blob.push(0);
            blob.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
            blob.extend(block);
            blob
        });
        blob.extend(b"\x01\0\0\xff\xff\0\0\0\0");
        blob.extend((data.len() as u32).to_le_bytes());
        blob
    }

    #[test]
    fn starts_inside_stored_blocks_decode_to_the_same_bytes() {
        let mut random = Random::new(43);
        let data = sample(Kind::Random, 1_000_000, &mut random);
        // GNU gzip's, the longest, and others.
        for longest in [32_767, 65_535, 40_000, 20_000, 1 + random.below(65_535)] {
            let blob = stored_blocks(&data, longest);
            let pass = first_pass(Compression::Gzip, &blob).unwrap();
            assert!(pass.data == data);
            let spans: Vec<_> = pass.marks.windows(2).map(|pair| pair[1].decoded - pair[0].decoded).collect();
            assert!(longest < 8 << 10 || spans.iter().all(|span| (15 << 10..=40 << 10).contains(span)), "{spans:?}");
            if [32_767, 65_535].contains(&longest) {
                assert!(spans.iter().all(|span| *span <= 16 << 10), "{longest}: {spans:?}");
                assert!(marks_of(StartKind::InsideBlock, &pass) > 29);
                let kept: usize = pass.windows.iter().map(|(_, window)| window.to_bytes().len()).sum();
                assert!(kept <= 16 * pass.windows.len(), "{kept} bytes of {} windows", pass.windows.len());
            }
            resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
            let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default()).unwrap();
            let pieces = push(&mut decoder, &blob, 70_000, || 1 + random.below(3000)).unwrap();
            assert!(pieces.marks == pass.marks && pieces.windows == pass.windows);
        }
    }

    /// Between noise and what refers to it, several windows are recorded at a time.
    #[test]
    fn stored_blocks_among_others_decode_from_every_mark() {
        let mut random = Random::new(47);
        for round in 0..20 {
            let noise = sample(Kind::Random, 30_000, &mut random);
            let mut data = Vec::new();
            for _ in 0..8 {
                match random.below(3) {
                    0 => data.extend(sample(Kind::Random, 20_000 + random.below(90_000), &mut random)),
                    1 => data.extend(sample(KINDS[random.below(4)], random.below(60_000), &mut random)),
                    // Copied from what was stored, if that is near.
                    _ => data.extend(&noise[..random.below(30_000)]),
                }
            }
            let blob = gzip(&data, [2, 6, 9][round % 3]);
            let pass = first_pass(Compression::Gzip, &blob).unwrap();
            assert!(pass.data == data);
            resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
            let pass = dense_pass(Compression::Gzip, &blob, &mut random);
            resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
        }
    }

    /// So that older releases can use their indexes.
    #[test]
    fn ordinary_gzip_layers_have_no_starts_inside_blocks() {
        let mut random = Random::new(44);
        // Others have stored blocks.
        for kind in [Kind::Text, Kind::Runs] {
            // Level 1 of this compressor is that of zlib-ng, which writes one block.
            for level in [2, 5, 6, 9] {
                let data = sample(kind, 3_000_000, &mut random);
                let pass = first_pass(Compression::Gzip, &gzip(&data, level)).unwrap();
                assert_eq!(marks_of(StartKind::InsideBlock, &pass), 0, "{kind:?} {level}");
            }
        }
        let pass = first_pass(Compression::Gzip, &gzip(&vec![0; 20 << 20], 6)).unwrap();
        assert_eq!(marks_of(StartKind::InsideBlock, &pass), 0, "whose blocks decode to some MiB");
    }

    /// SOCI's readers begin at blocks only.
    #[test]
    fn places_for_other_readers_are_at_blocks_only() {
        let data = sample(Kind::Text, 3_000_000, &mut Random::new(45));
        let blob = one_block(&data, Codes::Dynamic);
        let mut decoder = LayerDecoder::noting_blocks(Limits::default(), 100_000);
        assert!(push(&mut decoder, &blob, 1 << 20, || 70_000).unwrap().data == data);
        let places: Vec<_> = decoder.take_starts().into_iter().map(|start| start.mark.blob.0).collect();
        assert_eq!(places, [10]);
    }

    #[test]
    fn states_of_blocks_that_lie_give_an_error_or_bytes() {
        let mut random = Random::new(46);
        let data = sample(Kind::Text, 600_000, &mut random);
        let blob = one_block(&data, Codes::Dynamic);
        let pass = first_pass(Compression::Gzip, &blob).unwrap();
        let (number, window) =
            pass.windows.iter().find(|(n, _)| pass.marks[*n].kind == StartKind::InsideBlock).unwrap();
        let mark = pass.marks[*number];
        let good = ::zstd::bulk::decompress(&window.to_bytes(), 1 << 20).unwrap();
        let (mut refused, mut decoded) = (0, 0);
        for _ in 0..3000 {
            let mut bytes = good.clone();
            // Lengths that change places still make a code.
            match random.below(2) {
                0 => (0..5).for_each(|_| bytes.swap(4 + random.below(128), 4 + random.below(128))),
                _ => bytes[random.below(170)] = random.next() as u8,
            }
            if random.below(4) == 0 {
                bytes.truncate(random.below(good.len()));
            }
            let Ok(window) = Window::from_bytes(mark.kind, &zstd(&bytes, 1)) else {
                refused += 1;
                continue;
            };
            assert_eq!(::zstd::bulk::decompress(&window.to_bytes(), 1 << 20).unwrap(), bytes, "stored as it was");
            let mark = Mark { bit: random.below(9) as u8, ..mark };
            let Ok(mut decoder) = LayerDecoder::resume(Compression::Gzip, Limits::default(), &mark, Some(&window))
            else {
                refused += 1;
                continue;
            };
            decoded += 1;
            let mut out = OutputBuffer::new(1 << 20);
            let _ = decoder.decode(&mut &blob[mark.blob.0 as usize..], &mut out);
        }
        assert!(refused > 500 && decoded > 500, "{refused} {decoded}");
    }

    #[test]
    fn blocks_of_one_frame_are_starts_whatever_the_level() {
        let (mut random, mut with_blocks) = (Random::new(31), 0);
        for level in (-5..=22).filter(|level| *level != 0) {
            for kind in [Kind::Mixed, KINDS[random.below(3)]] {
                let data = sample(kind, 300_000 + random.below(300_000), &mut random);
                let blob = zstd(&data, level);
                let pass = dense_pass(Compression::Zstd, &blob, &mut random);
                assert!(pass.data == data);
                with_blocks += usize::from(blocks_of(&pass) > 0);
                resume_everywhere(Compression::Zstd, &blob, &pass, usize::MAX, &mut random);
            }
        }
        // A blob of a few KiB, whose windows would be larger, may have none.
        assert!(with_blocks > 27, "{with_blocks} of 54");
    }

    /// Blocks of all sizes, since the writer flushes anywhere; long windows; checksums; one frame after the other.
    #[test]
    fn blocks_of_all_sizes_are_starts_in_frames_of_all_kinds() {
        let mut random = Random::new(32);
        for round in 0..20 {
            let (mut blob, mut data) = (Vec::new(), Vec::new());
            for _ in 0..1 + random.below(4) {
                let mut encoder =
                    ::zstd::stream::write::Encoder::new(&mut blob, [-3, 1, 3, 7, 12, 19][random.below(6)]).unwrap();
                encoder.include_checksum(random.below(2) == 0).unwrap();
                if random.below(2) == 0 {
                    encoder.window_log(10 + random.below(18) as u32).unwrap();
                    encoder.long_distance_matching(random.below(2) == 0).unwrap();
                }
                for _ in 0..random.below(30) {
                    let (kind, length) = (KINDS[random.below(4)], random.magnitude(18));
                    let again = data.len().min(length);
                    let from = random.below(data.len() - again + 1);
                    let piece = match random.below(3) {
                        0 => data[from..from + again].to_vec(),
                        _ => sample(kind, length, &mut random),
                    };
                    encoder.write_all(&piece).unwrap();
                    data.extend(piece);
                    if random.below(2) == 0 {
                        encoder.flush().unwrap();
                    }
                }
                encoder.finish().unwrap();
                if random.below(3) == 0 {
                    blob.extend(0x184d_2a50_u32.to_le_bytes());
                    blob.extend(3_u32.to_le_bytes());
                    blob.extend(b"toc");
                }
            }
            let pass = dense_pass(Compression::Zstd, &blob, &mut random);
            assert!(pass.data == data, "{round}");
            resume_everywhere(Compression::Zstd, &blob, &pass, usize::MAX, &mut random);
        }
    }

    #[test]
    fn stored_layers_have_a_mark_every_16_kib() {
        let mut random = Random::new(8);
        let data = sample(Kind::Random, 100_000, &mut random);
        let pass = first_pass(Compression::Stored, &data).unwrap();
        let places: Vec<_> = pass.marks.iter().map(|mark| (mark.blob.0, mark.decoded.0)).collect();
        assert_eq!(places, [0, 1, 2, 3, 4, 5, 6].map(|number| (number << 14, number << 14)));
        resume_everywhere(Compression::Stored, &data, &pass, usize::MAX, &mut random);
    }

    #[test]
    fn data_that_gzip_cannot_compress_has_close_marks() {
        let mut random = Random::new(8);
        let (text, noise) = (sample(Kind::Text, 500_000, &mut random), sample(Kind::Random, 500_000, &mut random));
        let blob = gzip(&[&text[..], &noise, &text].concat(), 6);
        let pass = first_pass(Compression::Gzip, &blob).unwrap();
        let marks = |from: u64, to: u64| pass.marks.iter().filter(|mark| (from..to).contains(&mark.decoded.0)).count();
        assert!((20..=32).contains(&marks(500_000, 1_000_000)), "one every 16 to 24 KiB");
        assert!(marks(0, 500_000) <= 3 && marks(1_000_000, 1_500_000) <= 3, "as usual elsewhere");
        assert!(pass.data.len() == 1_500_000);
        resume_everywhere(Compression::Gzip, &blob, &pass, usize::MAX, &mut random);
    }

    /// Rows of noise with short heads, and numbers that differ in their lower bytes.
    #[test]
    fn data_that_gzip_hardly_compresses_has_close_marks() {
        let mut random = Random::new(48);
        let noise = sample(Kind::Random, 2_000_000, &mut random);
        let rows = noise.chunks(140).flat_map(|row| [&[0, 0, 0, 0, 0, 0, 1, 140], row].concat()).collect::<Vec<_>>();
        let numbers = noise.chunks(3).flat_map(|low| [low, &[0x3f ^ low[0] & 3]].concat()).collect::<Vec<_>>();
        let text = sample(Kind::Text, 2_000_000, &mut random);
        for (data, is_close) in [(rows, true), (numbers, true), (text, false)] {
            let blob = gzip(&data, 6);
            let pass = first_pass(Compression::Gzip, &blob).unwrap();
            let kept: usize = pass.windows.iter().map(|(_, window)| window.to_bytes().len()).sum();
            let marks = pass.marks.iter().filter(|mark| mark.decoded.0 > 300_000).count();
            assert_eq!(marks > 25, is_close, "{marks} in {} of {}", blob.len(), data.len());
            assert!(!is_close || kept < blob.len() / 80, "{kept} bytes of windows");
            resume_everywhere(Compression::Gzip, &blob, &pass, 300_000, &mut random);
        }
    }

    #[test]
    fn no_span_is_empty_at_the_end_of_a_layer() {
        let data = sample(Kind::Text, 262_144, &mut Random::new(9));
        let members = [gzip(&data, 6), gzip(b"", 6)].concat();
        let frames = [zstd(&data, 1), zstd(b"", 1)].concat();
        for (compression, blob) in
            [(Compression::Stored, &data), (Compression::Gzip, &members), (Compression::Zstd, &frames)]
        {
            let pass = first_pass(compression, blob).unwrap();
            assert!(pass.marks.iter().all(|mark| mark.decoded.0 == 0 || mark.decoded.0 < 262_144));
        }
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let data = sample(Kind::Mixed, 3000, &mut Random::new(10));
        let checked = {
            let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        };
        for (compression, blob) in [
            (Compression::Gzip, gzip(&data, 6)),
            (Compression::Gzip, gzip(&data, 0)),
            (Compression::Zstd, zstd(&data, 3)),
            (Compression::Zstd, checked),
        ] {
            assert!(first_pass(compression, &blob).is_ok());
            for cut in 0..blob.len() {
                let at = BlobOffset(cut as u64);
                let result = first_pass(compression, &blob[..cut]);
                assert_eq!(result.err(), Some(CodecError::Truncated { at }), "{compression:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_layer_beyond_its_limit_is_an_error_and_stays_one() {
        let limits = Limits { decoded: 10_000, ..Limits::default() };
        for (compression, blob) in [
            (Compression::Stored, vec![0; 10_001]),
            (Compression::Gzip, gzip(&[0; 10_001], 6)),
            (Compression::Zstd, zstd(&[0; 10_001], 3)),
        ] {
            let mut decoder = LayerDecoder::first_pass(compression, limits).unwrap();
            let mut out = OutputBuffer::new(1 << 20);
            let error = Err(CodecError::TooLong { limit: 10_000 });
            assert_eq!(decoder.decode(&mut &blob[..], &mut out), error);
            assert_eq!(decoder.decode(&mut &b""[..], &mut out), error);
            assert_eq!(decoder.finish().err(), error.err());
        }
    }

    #[test]
    fn zstd_bombs_are_an_error_once_the_free_bytes_are_spent() {
        let blob = zstd(&vec![0; 8 << 20], 3);
        let limits = Limits { ratio_free: 4 << 20, ..Limits::default() };
        let mut decoder = LayerDecoder::first_pass(Compression::Zstd, limits).unwrap();
        let result = push(&mut decoder, &blob, 1 << 20, || usize::MAX);
        assert!(matches!(result, Err(CodecError::Ratio { limit: 2000, .. })));
        assert!(first_pass(Compression::Zstd, &blob).is_ok());
    }

    #[test]
    fn marks_that_are_no_starts_are_refused() {
        let mark = |kind, bit, blob| Mark { blob: BlobOffset(blob), bit, decoded: DecodedOffset(5), kind };
        for (compression, mark) in [
            (Compression::Gzip, mark(StartKind::Stored, 0, 5)),
            (Compression::Gzip, mark(StartKind::Frame, 0, 5)),
            (Compression::Gzip, mark(StartKind::Checkpoint, 0, 5)),
            (Compression::Gzip, mark(StartKind::Checkpoint, 8, 5)),
            (Compression::Gzip, mark(StartKind::Member, 1, 5)),
            (Compression::Gzip, mark(StartKind::InsideBlock, 0, 5)),
            (Compression::Gzip, mark(StartKind::InsideBlock, 8, 5)),
            (Compression::Zstd, mark(StartKind::InsideBlock, 0, 5)),
            (Compression::Zstd, mark(StartKind::Continued, 0, 5)),
            (Compression::Stored, mark(StartKind::Stored, 0, u64::MAX)),
        ] {
            let decoder = LayerDecoder::resume(compression, Limits::default(), &mark, None);
            assert_eq!(decoder.err(), Some(CodecError::NoStart { compression, mark }));
        }
    }

    #[test]
    fn a_decoder_refuses_the_buffer_of_another() {
        let mut decoder = LayerDecoder::first_pass(Compression::Stored, Limits::default()).unwrap();
        let mut out = OutputBuffer::new(100);
        decoder.decode(&mut &b"abc"[..], &mut out).unwrap();
        let mut other = LayerDecoder::first_pass(Compression::Stored, Limits::default()).unwrap();
        assert!(matches!(other.decode(&mut &b"x"[..], &mut out), Err(CodecError::StrangeBuffer { .. })));
        assert!(matches!(
            decoder.decode(&mut &b"x"[..], &mut OutputBuffer::new(100)),
            Err(CodecError::StrangeBuffer { .. })
        ));
    }

    #[test]
    fn damaged_layers_give_an_error_or_bytes_and_never_a_panic() {
        let mut random = Random::new(11);
        let data = sample(Kind::Mixed, 20_000, &mut random);
        for (compression, blob) in [(Compression::Gzip, gzip(&data, 6)), (Compression::Zstd, zstd(&data, 3))] {
            for _ in 0..2000 {
                let mut damaged = blob.clone();
                for _ in 0..1 + random.below(3) {
                    let at = random.below(damaged.len());
                    damaged[at] = random.next() as u8;
                }
                let mut decoder = LayerDecoder::first_pass(compression, Limits::default()).unwrap();
                let _ = push(&mut decoder, &damaged, 10_000, || 1 + random.below(5000));
            }
        }
    }
}
