//! Gzip (RFC 1952): members around deflate streams.
//!
//! A layer is a sequence of members: one from most tools, one per file in eStargz. RFC 1952 does not say what may
//! follow the last member. Like gzip(1), which warns, this decoder ignores zero padding and anything else that does not
//! start like a member. Data that starts like a member must be one.
//!
//! A member's CRC-32 is not computed: all bytes of a layer are checked against digests. Its length is checked if its
//! start was decoded, for a clear error.

use super::block_state::BlockState;
use super::inflate::{Inflate, InflateError, Stop};
use super::marks::{FirstPass, Mark};
use super::output::OutputBuffer;
use super::start::StartKind;
use super::window::{References, Unwatched, Watched, Window};
use super::{CodecError, Feed, Status};
use crate::offsets::{BlobOffset, DecodedOffset};

/// A gzip layer being decoded.
pub(super) struct Gzip {
    phase: Phase,
    inflate: Inflate,
    /// Where the current member's output begins, or its known part: matches reach no further back.
    history: DecodedOffset,
    /// Whether `history` is where the member begins.
    whole_member: bool,
    /// Checkpoints whose windows are being recorded, in order, and room for those of others.
    watched: Vec<Checkpoint>,
    spare: Vec<References>,
    /// The starts that are noted, if they are.
    log: Option<BlockLog>,
}

/// A place where decoding can start, with all that is before it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlockStart {
    /// The place, a checkpoint.
    pub mark: Mark,
    /// The bytes before it, at most [`Window::MAX`].
    pub history: Box<[u8]>,
}

/// A checkpoint whose window is being recorded.
struct Checkpoint {
    at: DecodedOffset,
    /// The state of the block that it lies in, if it lies in one.
    inside: Option<BlockState>,
    references: References,
}

/// Notes starts as zran does (zlib, examples/zran.c): the first block of the layer, and then each that begins more than
/// `spacing` decoded bytes behind the last one noted.
struct BlockLog {
    spacing: u64,
    last: Option<DecodedOffset>,
    found: Vec<BlockStart>,
}

impl BlockLog {
    fn block(&mut self, blob: BlobOffset, bit: u8, out: &OutputBuffer) {
        let decoded = out.end();
        if self.last.is_none_or(|last| decoded - last > self.spacing) {
            let known = decoded.0.min(Window::MAX as u64) as usize;
            let history = out.history()[Window::MAX - known..].into();
            self.found.push(BlockStart { mark: Mark { blob, bit, decoded, kind: StartKind::Checkpoint }, history });
            self.last = Some(decoded);
        }
    }
}

enum Phase {
    Header(Header),
    Body,
    Trailer {
        have: u8,
        length: u32,
    },
    Between(Between),
    /// Data that is not a member follows the last one.
    Junk,
}

/// What has followed a member so far.
#[derive(Clone, Copy)]
enum Between {
    Nothing,
    Zeros,
    /// The first byte of a member's header, at this offset.
    HalfMagic(BlobOffset),
}

impl Gzip {
    /// A decoder before the first member, which must exist.
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Header(Header::new()),
            inflate: Inflate::new(),
            history: DecodedOffset(0),
            whole_member: true,
            watched: Vec::new(),
            spare: Vec::new(),
            log: None,
        }
    }

    /// A decoder that notes starts more than `spacing` decoded bytes apart.
    pub(super) fn logging(spacing: u64) -> Self {
        Self { log: Some(BlockLog { spacing, last: None, found: Vec::new() }), ..Self::new() }
    }

    /// The starts that were noted since the last call.
    pub(super) fn take_starts(&mut self) -> Vec<BlockStart> {
        self.log.as_mut().map_or_else(Vec::new, |log| std::mem::take(&mut log.found))
    }

    /// A decoder before the header of a member whose output begins at `at`.
    pub(super) fn at_member(at: DecodedOffset) -> Self {
        Self { history: at, ..Self::new() }
    }

    /// A decoder at a deflate block, with `window` bytes before it.
    pub(super) fn at_checkpoint(at: DecodedOffset, bit: u8, window: usize) -> Self {
        let mut gzip = Self::new();
        gzip.phase = Phase::Body;
        gzip.inflate.begin_at_bit(bit);
        gzip.history = DecodedOffset(at.0.saturating_sub(window as u64));
        gzip.whole_member = false;
        gzip
    }

    /// A decoder inside a deflate block with this state, with `window` bytes before it.
    pub(super) fn inside_block(
        at: DecodedOffset,
        bit: u8,
        state: &BlockState,
        window: usize,
    ) -> Result<Self, InflateError> {
        let mut gzip = Self::at_checkpoint(at, 0, window);
        gzip.inflate.resume_at_bit(bit, state)?;
        Ok(gzip)
    }

    /// Whether the input may end here.
    pub(super) fn may_end(&self) -> bool {
        matches!(self.phase, Phase::Between(_) | Phase::Junk)
    }

    pub(super) fn decode(
        &mut self,
        feed: &mut Feed<'_, '_>,
        out: &mut OutputBuffer,
        mut pass: Option<&mut FirstPass>,
    ) -> Result<Status, CodecError> {
        loop {
            let at = self.at(feed);
            match &mut self.phase {
                Phase::Header(header) => {
                    let Some(byte) = self.inflate.next_byte(feed.rest) else { return Ok(Status::NeedInput) };
                    if header.push(byte, at)? {
                        self.inflate.begin_at_bit(0);
                        self.phase = Phase::Body;
                        if let Some(log) = &mut self.log {
                            log.block(at + 1, 0, out);
                        }
                        if let Some(pass) = &mut pass {
                            pass.block_begins(8 * (at.0 + 1), out.end());
                        }
                    }
                }
                Phase::Body => match self.body(feed, out, pass.as_deref_mut())? {
                    Stop::Input => return Ok(Status::NeedInput),
                    Stop::Output if out.is_full() => return Ok(Status::OutputFull),
                    Stop::Output | Stop::Block | Stop::Stored => {}
                    Stop::Stream => self.phase = Phase::Trailer { have: 0, length: 0 },
                },
                Phase::Trailer { have, length } => {
                    let Some(byte) = self.inflate.next_byte(feed.rest) else { return Ok(Status::NeedInput) };
                    *have += 1;
                    if *have > 4 {
                        *length |= u32::from(byte) << (8 * (*have - 5));
                    }
                    if *have == 8 {
                        let got = (out.end() - self.history) as u32;
                        if self.whole_member && *length != got {
                            return Err(CodecError::MemberLength { at, stated: *length, got });
                        }
                        self.phase = Phase::Between(Between::Nothing);
                    }
                }
                Phase::Between(between) => {
                    let Some(byte) = self.inflate.next_byte(feed.rest) else { return Ok(Status::NeedInput) };
                    self.phase = match (*between, byte) {
                        (Between::Nothing | Between::Zeros, 0) => Phase::Between(Between::Zeros),
                        (Between::Nothing, MAGIC_1) => Phase::Between(Between::HalfMagic(at)),
                        (Between::HalfMagic(start), MAGIC_2) => {
                            self.begin_member(start, out.end(), pass.as_deref_mut());
                            Phase::Header(Header::after_magic())
                        }
                        _ => Phase::Junk,
                    };
                }
                Phase::Junk => {
                    *feed.rest = &[];
                    return Ok(Status::End);
                }
            }
        }
    }

    /// The offset of the next unused byte.
    fn at(&self, feed: &Feed<'_, '_>) -> BlobOffset {
        BlobOffset(feed.at().0 - u64::from(self.inflate.unused_bits() / 8))
    }

    fn begin_member(&mut self, blob: BlobOffset, decoded: DecodedOffset, pass: Option<&mut FirstPass>) {
        self.history = decoded;
        self.whole_member = true;
        if let Some(pass) = pass
            && pass.start_wanted(decoded)
        {
            pass.offer(Mark { blob, bit: 0, decoded, kind: StartKind::Member });
        }
    }

    /// Inflates up to the next stop, or the next mark or window.
    fn body(
        &mut self,
        feed: &mut Feed<'_, '_>,
        out: &mut OutputBuffer,
        pass: Option<&mut FirstPass>,
    ) -> Result<Stop, CodecError> {
        let mut until = DecodedOffset(u64::MAX / 2);
        if let Some(pass) = &pass {
            // Inside a stored block, only its own starts are looked for.
            let inside = match self.inflate.left_of_stored() {
                0 => pass.next_inside(),
                left => pass.next_inside_stored(out.end(), left),
            };
            until = pass.next_continued().min(inside);
        }
        let stop = if let Some(first) = self.watched.first() {
            let until = until.min(first.at + Window::MAX as u64);
            for checkpoint in &mut self.watched {
                let index = out.index(checkpoint.at);
                checkpoint.references.mark = index.expect("a window is complete before its mark leaves the history");
            }
            let mut target = out.target(until, self.history);
            let mut watched = Watched(self.watched.iter_mut().map(|checkpoint| &mut checkpoint.references).collect());
            let stop = self.inflate.run(feed.rest, &mut target, &mut watched);
            let end = target.at;
            out.filled_to(end);
            stop
        } else {
            let mut target = out.target(until, self.history);
            let stop = self.inflate.run(feed.rest, &mut target, &mut Unwatched);
            let end = target.at;
            out.filled_to(end);
            stop
        }
        .map_err(|source| CodecError::Inflate { at: self.at(feed), source })?;
        if let Some(pass) = pass {
            self.note(stop, feed, out, pass);
        }
        if let Some(log) = self.log.as_mut().filter(|_| stop == Stop::Block) {
            let bits = 8 * feed.at().0 - u64::from(self.inflate.unused_bits());
            log.block(BlobOffset(bits / 8), (bits % 8) as u8, out);
        }
        Ok(stop)
    }

    /// Records marks and windows after a run.
    fn note(&mut self, stop: Stop, feed: &Feed<'_, '_>, out: &OutputBuffer, pass: &mut FirstPass) {
        let decoded = out.end();
        pass.decoded(decoded);
        let is_complete =
            |checkpoint: &mut Checkpoint| decoded - checkpoint.at >= Window::MAX as u64 || stop == Stop::Stream;
        for Checkpoint { at, inside, references } in self.watched.extract_if(.., is_complete) {
            pass.window_recorded(references.weight());
            pass.window_complete(at, || references.window(inside));
            self.spare.push(references);
        }
        let bits = 8 * feed.at().0 - u64::from(self.inflate.unused_bits());
        let mark = |kind| Mark { blob: BlobOffset(bits / 8), bit: (bits % 8) as u8, decoded, kind };
        let is_behind_stored = self.inflate.ended_stored() >= LONG_STORED;
        let is_wanted = pass.start_wanted(decoded)
            || is_behind_stored && pass.start_wanted_behind_stored(decoded)
            || pass.start_wanted_where_cheap(decoded);
        if stop == Stop::Block && is_wanted {
            pass.offer(mark(StartKind::Checkpoint));
            self.watch_from(decoded, None, out);
        } else if stop == Stop::Output
            && match self.inflate.left_of_stored() {
                0 => pass.start_wanted_inside(bits, decoded),
                left => pass.next_inside_stored(decoded, left) == decoded,
            }
            && let Some(state) = self.inflate.block_state()
        {
            pass.offer(mark(StartKind::InsideBlock));
            self.watch_from(decoded, Some(state), out);
        } else if decoded >= pass.next_continued() {
            pass.offer(mark(StartKind::Continued));
        }
        if stop == Stop::Block {
            pass.block_begins(bits, decoded);
        }
    }

    /// Records the window of a mark at the end of the decoded bytes.
    fn watch_from(&mut self, at: DecodedOffset, inside: Option<BlockState>, out: &OutputBuffer) {
        // Empty blocks move the mark, but not its window.
        self.spare.extend(self.watched.pop_if(|last| last.at == at).map(|last| last.references));
        let mut references = self.spare.pop().unwrap_or_else(References::new);
        references.begin(out.history());
        self.watched.push(Checkpoint { at, inside, references });
    }
}

/// A member's header, parsed byte by byte.
struct Header {
    field: Field,
    flags: u8,
    crc: u32,
}

#[derive(Clone, Copy)]
enum Field {
    Fixed { have: u8 },
    ExtraLength { low: Option<u8> },
    Extra { left: u16 },
    Name { length: u32 },
    Comment { length: u32 },
    Check { low: Option<u8> },
    Done,
}

impl Header {
    fn new() -> Self {
        Self { field: Field::Fixed { have: 0 }, flags: 0, crc: 0 }
    }

    fn after_magic() -> Self {
        let mut header = Self::new();
        header.crc = crc32(crc32(0, MAGIC_1), MAGIC_2);
        header.field = Field::Fixed { have: 2 };
        header
    }

    /// Parses the byte at `at`; `true` if it was the last.
    fn push(&mut self, byte: u8, at: BlobOffset) -> Result<bool, CodecError> {
        if !matches!(self.field, Field::Check { .. }) {
            self.crc = crc32(self.crc, byte);
        }
        let ended = match &mut self.field {
            Field::Fixed { have } => {
                match *have {
                    0 if byte != MAGIC_1 => return Err(CodecError::NoMember { at }),
                    1 if byte != MAGIC_2 => return Err(CodecError::NoMember { at: BlobOffset(at.0 - 1) }),
                    2 if byte != DEFLATE => return Err(CodecError::GzipMethod { at, method: byte }),
                    3 if byte & RESERVED != 0 => return Err(CodecError::GzipFlags { at, flags: byte }),
                    3 => self.flags = byte,
                    _ => {}
                }
                *have += 1;
                *have == 10
            }
            Field::ExtraLength { low: low @ None } => {
                *low = Some(byte);
                false
            }
            Field::ExtraLength { low: Some(low) } => {
                let left = u16::from_le_bytes([*low, byte]);
                self.field = Field::Extra { left };
                left == 0
            }
            Field::Extra { left } => {
                *left -= 1;
                *left == 0
            }
            Field::Name { length } | Field::Comment { length } => {
                *length += 1;
                if *length > LONGEST_TEXT {
                    return Err(CodecError::GzipHeader { at });
                }
                byte == 0
            }
            Field::Check { low: low @ None } => {
                *low = Some(byte);
                false
            }
            Field::Check { low: Some(low) } => {
                if u16::from_le_bytes([*low, byte]) != self.crc as u16 {
                    return Err(CodecError::GzipHeaderCheck { at });
                }
                true
            }
            Field::Done => true,
        };
        if ended {
            self.field = self.following();
        }
        Ok(matches!(self.field, Field::Done))
    }

    /// The field after the current one.
    fn following(&self) -> Field {
        let fields = [
            (EXTRA, Field::ExtraLength { low: None }),
            (NAME, Field::Name { length: 0 }),
            (COMMENT, Field::Comment { length: 0 }),
            (HEADER_CHECK, Field::Check { low: None }),
        ];
        let passed = match self.field {
            Field::Fixed { .. } => 0,
            Field::ExtraLength { .. } | Field::Extra { .. } => 1,
            Field::Name { .. } => 2,
            Field::Comment { .. } => 3,
            Field::Check { .. } | Field::Done => 4,
        };
        fields[passed..].iter().find(|(flag, _)| self.flags & flag != 0).map_or(Field::Done, |&(_, field)| field)
    }
}

/// Updates a CRC-32 by one byte, bit by bit: headers are short.
fn crc32(crc: u32, byte: u8) -> u32 {
    let mut crc = !crc ^ u32::from(byte);
    for _ in 0..8 {
        crc = (crc >> 1) ^ ((crc & 1) * 0xedb8_8320);
    }
    !crc
}

/// A stored block of at least this many bytes is one of data that cannot be compressed.
const LONG_STORED: u16 = 8 << 10;
const MAGIC_1: u8 = 0x1f;
const MAGIC_2: u8 = 0x8b;
const DEFLATE: u8 = 8;

const HEADER_CHECK: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Limit for a file name or comment that is skipped, in bytes; RFC 1952 sets none.
const LONGEST_TEXT: u32 = 64 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::super::{InflateError, LayerDecoder, Limits};
    use super::*;
    use crate::Compression;

    fn member(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// A member of "abc" with this header after the magic number and the method.
    fn with_header(rest: &[u8]) -> Vec<u8> {
        [&[MAGIC_1, MAGIC_2, DEFLATE], rest, &member(b"abc")[10..]].concat()
    }

    /// Decodes a blob that fits in one buffer, whole and byte by byte.
    fn decode(blob: &[u8]) -> Result<Vec<u8>, CodecError> {
        let decoded = [blob.len().max(1), 1].map(|piece| {
            let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default())?;
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
    fn every_header_field_is_read_over() {
        let time_and_system = [0, 0, 0, 0, 0, 255];
        for flags in 0..32 {
            let mut header = vec![flags];
            header.extend(time_and_system);
            if flags & EXTRA != 0 {
                header.extend(b"\x05\x00extra");
            }
            if flags & NAME != 0 {
                header.extend(b"layer.tar\0");
            }
            if flags & COMMENT != 0 {
                header.extend(b"no comment\0");
            }
            if flags & HEADER_CHECK != 0 {
                let sum = [MAGIC_1, MAGIC_2, DEFLATE].iter().chain(&header).fold(0, |crc, &byte| crc32(crc, byte));
                header.extend((sum as u16).to_le_bytes());
            }
            let blob = with_header(&header);
            assert_eq!(decode(&blob).unwrap(), b"abc", "flags {flags:#x}");
            assert_eq!(decode(&[&blob[..], &blob].concat()).unwrap(), b"abcabc", "flags {flags:#x}");
            let mut other = flate2::bufread::GzDecoder::new(&blob[..]);
            assert_eq!(std::io::copy(&mut other, &mut std::io::sink()).unwrap(), 3);
        }
        assert_eq!(decode(&with_header(b"\x04\0\0\0\0\0\0\0\0")).unwrap(), b"abc", "an empty extra field");
    }

    #[test]
    fn headers_that_are_wrong_have_their_errors() {
        let at = BlobOffset;
        let endless = [b"\x08\0\0\0\0\0\0", &[b'x'; 70_000][..]].concat();
        for (blob, error) in [
            (b"PK\x03\x04".to_vec(), CodecError::NoMember { at: at(0) }),
            (b"\x1f\x9d\x90".to_vec(), CodecError::NoMember { at: at(0) }),
            (b"\x1f\x8b\x07".to_vec(), CodecError::GzipMethod { at: at(2), method: 7 }),
            (with_header(b"\x40"), CodecError::GzipFlags { at: at(3), flags: 0x40 }),
            (with_header(&endless), CodecError::GzipHeader { at: at(10 + (64 << 10)) }),
            (with_header(b"\x02\0\0\0\0\0\0??"), CodecError::GzipHeaderCheck { at: at(11) }),
            ([member(b"a"), b"\x1f\x8b\x07".to_vec()].concat(), CodecError::GzipMethod { at: at(23), method: 7 }),
        ] {
            assert_eq!(decode(&blob), Err(error));
        }
    }

    #[test]
    fn a_members_length_must_be_what_its_trailer_says() {
        let mut blob = member(b"abc");
        let end = blob.len();
        blob[end - 4] = 4;
        let at = BlobOffset(end as u64 - 1);
        assert_eq!(decode(&blob), Err(CodecError::MemberLength { at, stated: 4, got: 3 }));
    }

    #[test]
    fn what_follows_the_last_member_is_ignored_unless_a_member() {
        let members = [member(b"abc"), member(b""), member(b"def")].concat();
        for tail in [&b""[..], &[0; 1000], b"\0\0\x1f\x8b", b"\x1f", b"\x1f\x1f\x8b", b"junk", b"\0junk"] {
            assert_eq!(decode(&[&members, tail].concat()).unwrap(), b"abcdef", "{tail:?}");
        }
        assert!(decode(&[&members[..], b"\x1f\x8b"].concat()).is_err());
    }

    #[test]
    fn a_match_does_not_reach_into_the_member_before() {
        // A fixed block with a match one byte back, in a member without any byte before it.
        let bad = with_header(&[0, 0, 0, 0, 0, 0, 255, 0x03, 0x02, 0x00]);
        let decoded = decode(&[member(b"abcd"), bad].concat());
        let Err(CodecError::Inflate { source, .. }) = decoded else { panic!("{decoded:?}") };
        assert_eq!(source, InflateError::Distance { distance: 1, reach: 0 });
    }

    #[test]
    fn a_million_empty_members_are_one_mark() {
        let one = member(b"");
        let blob = [one.repeat(1_000_000), member(b"abc")].concat();
        let mut decoder = LayerDecoder::first_pass(Compression::Gzip, Limits::default()).unwrap();
        let mut out = OutputBuffer::new(100);
        assert_eq!(decoder.decode(&mut &blob[..], &mut out).unwrap(), Status::NeedInput);
        decoder.finish().unwrap();
        assert_eq!(out.decoded(), b"abc");
        assert_eq!(decoder.take_marks().len(), 1);
    }
}
