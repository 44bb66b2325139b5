//! Inflate (RFC 1951) for layers: fast, resumable at any input byte, and able to record windows.
//!
//! Existing inflaters either are fast and need the whole buffer, or stream and hide their state. A lazy file system
//! needs three things: to stop at deflate block boundaries, where decoding can restart later; to know which of the 32
//! KiB before such a boundary are referenced after it (about a tenth, so a checkpoint costs 2 KiB instead of 32); and
//! full speed, since inflate is the slowest stage of a first pass.
//!
//! A stream is invalid exactly if zlib rejects it: the tests compare both.

use super::block_state::{BlockKind, BlockState};
use super::codes::{
    BASE_SHIFT, DISTANCE_SYMBOLS, DROP, END_OF_BLOCK, EXCEPTIONAL, Incomplete, LITERAL, LITERAL_SYMBOLS, Unbuildable,
    build, extra, look_up, mask,
};
use super::fast::{self, FAST_INPUT, copy_match};
use super::window::Watch;

/// An inflate stream in progress.
pub(super) struct Inflate {
    bits: Bits,
    phase: Phase,
    last_block: bool,
    /// Length of the current block, or the last one, if that is stored; else 0.
    stored_length: u16,
    tables: Box<Tables>,
}

/// Why [`Inflate::run`] returned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// The input is used up.
    Input,
    /// The output has reached `until`, or exceeded it by the end of one match.
    Output,
    /// A block has ended and another one follows: decoding can restart here.
    Block,
    /// A stored block has begun.
    Stored,
    /// The last block has ended.
    Stream,
}

/// The output of [`Inflate::run`].
pub(super) struct Target<'a> {
    /// History and output; at least [`OVERRUN`] bytes longer than `until`.
    pub(super) bytes: &'a mut [u8],
    /// Index of the next byte to write.
    pub(super) at: usize,
    /// Stops once `at` is here; a match in progress is completed first.
    pub(super) until: usize,
    /// The first index a match may refer to.
    pub(super) floor: usize,
}

/// Why a deflate stream is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InflateError {
    /// Block type 3.
    #[error("reserved deflate block type")]
    BlockType,
    /// LEN and NLEN of a stored block do not agree.
    #[error("stored block whose length and its complement disagree")]
    StoredLength,
    /// More than 286 literal and length codes or 30 distance codes.
    #[error("deflate block with {lengths} length and {distances} distance codes")]
    TooManyCodes {
        /// HLIT + 257
        lengths: usize,
        /// HDIST + 1
        distances: usize,
    },
    /// The code lengths do not form a prefix code.
    #[error("{0} code lengths of a deflate block make no code")]
    Code(Alphabet),
    /// A repeat of code lengths with nothing to repeat, or past the end.
    #[error("misplaced repeat of code lengths in a deflate block")]
    Repeat,
    /// The block could never end.
    #[error("deflate block without an end-of-block code")]
    NoEndOfBlock,
    /// Bits that are not a code of the block.
    #[error("invalid {0} code in a deflate block")]
    Symbol(Alphabet),
    /// A match that begins before the stream.
    #[error("match {distance} bytes back where {reach} are known")]
    Distance {
        /// The distance of the match.
        distance: usize,
        /// The number of bytes before it.
        reach: usize,
    },
}

/// The three codes of a deflate block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Alphabet {
    /// The code of the code lengths.
    CodeLength,
    /// Literals, lengths and end of block.
    Literal,
    /// Distances.
    Distance,
}

impl std::fmt::Display for Alphabet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CodeLength => "code length",
            Self::Literal => "literal/length",
            Self::Distance => "distance",
        })
    }
}

/// Bits read from the input and not used yet. Bits above `count` are zero, and `count` is below 64.
#[derive(Default)]
pub(super) struct Bits {
    pub(super) buf: u64,
    pub(super) count: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Before a block, with this many bits to drop first.
    Begin {
        drop: u32,
    },
    /// Inside a block, with this many bits to drop first; of a stored one, with this many bytes left.
    Resume {
        drop: u32,
        stored: Option<u16>,
    },
    StoredLength,
    Stored {
        left: usize,
    },
    DynamicHeader,
    CodeLengths {
        have: usize,
    },
    Lengths {
        have: usize,
    },
    Symbols,
    Ended,
}

pub(super) struct Tables {
    pub(super) literal: [u32; LITERAL_TABLE],
    pub(super) distance: [u32; DISTANCE_TABLE],
    code_length: [u32; 1 << CODE_LENGTH_BITS],
    lengths: [u8; MOST_LITERALS + MOST_DISTANCES],
    code_lengths: [u8; 19],
    literals: usize,
    distances: usize,
    code_length_count: usize,
    /// The tables hold the fixed codes; avoids rebuilding them for streams of tiny blocks.
    fixed: bool,
}

impl Inflate {
    /// A stream at its first block.
    pub(super) fn new() -> Self {
        Self {
            bits: Bits::default(),
            phase: Phase::Begin { drop: 0 },
            last_block: false,
            stored_length: 0,
            tables: Box::new(Tables {
                literal: [0; LITERAL_TABLE],
                distance: [0; DISTANCE_TABLE],
                code_length: [0; 1 << CODE_LENGTH_BITS],
                lengths: [0; MOST_LITERALS + MOST_DISTANCES],
                code_lengths: [0; 19],
                literals: 0,
                distances: 0,
                code_length_count: 0,
                fixed: false,
            }),
        }
    }

    /// The tables of the fixed codes.
    #[cfg(test)]
    pub(super) fn fixed_tables() -> Box<Tables> {
        let mut inflate = Self::new();
        inflate.tables.load_fixed();
        inflate.tables
    }

    /// Starts at a block whose first bit is bit `bit` of the next input byte.
    pub(super) fn begin_at_bit(&mut self, bit: u8) {
        debug_assert!(bit < 8);
        self.phase = Phase::Begin { drop: u32::from(bit) };
        self.last_block = false;
    }

    /// Starts inside a block, with its state, at bit `bit` of the next input byte.
    ///
    /// # Errors
    /// As of the block's header.
    pub(super) fn resume_at_bit(&mut self, bit: u8, state: &BlockState) -> Result<(), InflateError> {
        debug_assert!(bit < 8);
        let mut stored = None;
        match &state.kind {
            BlockKind::Stored { left } => stored = Some(*left),
            BlockKind::Fixed => self.tables.load_fixed(),
            BlockKind::Dynamic { literals, distances } => self.tables.load_lengths(literals, distances)?,
        }
        self.phase = Phase::Resume { drop: u32::from(bit), stored };
        self.last_block = state.last;
        Ok(())
    }

    /// What [`Inflate::resume_at_bit`] needs to start here; `None` between blocks and in their headers.
    pub(super) fn block_state(&self) -> Option<BlockState> {
        let kind = match self.phase {
            Phase::Stored { left } => BlockKind::Stored { left: u16::try_from(left).ok()? },
            Phase::Symbols if self.tables.fixed => BlockKind::Fixed,
            Phase::Symbols => {
                let (literals, rest) = self.tables.lengths.split_at(self.tables.literals);
                let distances = &rest[..self.tables.distances];
                BlockKind::Dynamic { literals: literals.into(), distances: distances.into() }
            }
            _ => return None,
        };
        Some(BlockState { last: self.last_block, kind })
    }

    /// Length of the block that has ended last, if it was stored; else 0.
    pub(super) fn ended_stored(&self) -> u16 {
        self.stored_length
    }

    /// How many bytes of the current block are left, if that is stored; else 0.
    pub(super) fn left_of_stored(&self) -> usize {
        match self.phase {
            Phase::Stored { left } => left,
            _ => 0,
        }
    }

    /// Number of bits taken from the input and not used yet.
    pub(super) fn unused_bits(&self) -> u32 {
        self.bits.count
    }

    /// The next whole byte after the end of a stream: containers read their bytes here, as the inflater may have taken
    /// more input than it used.
    pub(super) fn next_byte(&mut self, input: &mut &[u8]) -> Option<u8> {
        if self.bits.count >= 8 {
            return Some(self.bits.take(8) as u8);
        }
        debug_assert_eq!(self.bits.count, 0, "read between streams, where bits are aligned");
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        Some(byte)
    }

    /// Decodes until one of [`Stop`]'s conditions; calls `watch` for every match.
    pub(super) fn run(
        &mut self,
        input: &mut &[u8],
        target: &mut Target<'_>,
        watch: &mut impl Watch,
    ) -> Result<Stop, InflateError> {
        loop {
            match self.phase {
                Phase::Begin { drop } => {
                    if !self.bits.need(drop + 3, input) {
                        return Ok(Stop::Input);
                    }
                    self.bits.take(drop);
                    self.last_block = self.bits.take(1) == 1;
                    self.stored_length = 0;
                    self.phase = match self.bits.take(2) {
                        0 => {
                            self.bits.take(self.bits.count & 7);
                            Phase::StoredLength
                        }
                        1 => {
                            self.tables.load_fixed();
                            Phase::Symbols
                        }
                        2 => Phase::DynamicHeader,
                        _ => return Err(InflateError::BlockType),
                    };
                }
                Phase::Resume { drop, stored } => {
                    if !self.bits.need(drop, input) {
                        return Ok(Stop::Input);
                    }
                    self.bits.take(drop);
                    self.phase = stored.map_or(Phase::Symbols, |left| Phase::Stored { left: left.into() });
                }
                Phase::StoredLength => {
                    if !self.bits.need(32, input) {
                        return Ok(Stop::Input);
                    }
                    let length = self.bits.take(16);
                    if length != !self.bits.take(16) & 0xffff {
                        return Err(InflateError::StoredLength);
                    }
                    self.stored_length = length as u16;
                    self.phase = Phase::Stored { left: length as usize };
                    return Ok(Stop::Stored);
                }
                Phase::Stored { left } => {
                    let left = self.stored(left, input, target);
                    self.phase = Phase::Stored { left };
                    if left == 0 {
                        return Ok(self.block_ended());
                    }
                    return Ok(if target.at >= target.until { Stop::Output } else { Stop::Input });
                }
                Phase::DynamicHeader => {
                    if !self.bits.need(14, input) {
                        return Ok(Stop::Input);
                    }
                    let tables = &mut self.tables;
                    tables.fixed = false;
                    tables.literals = self.bits.take(5) as usize + 257;
                    tables.distances = self.bits.take(5) as usize + 1;
                    tables.code_length_count = self.bits.take(4) as usize + 4;
                    tables.code_lengths = [0; 19];
                    if tables.literals > MOST_LITERALS || tables.distances > MOST_DISTANCES {
                        return Err(InflateError::TooManyCodes {
                            lengths: tables.literals,
                            distances: tables.distances,
                        });
                    }
                    self.phase = Phase::CodeLengths { have: 0 };
                }
                Phase::CodeLengths { have } => {
                    if have == self.tables.code_length_count {
                        let tables = &mut *self.tables;
                        build(
                            &mut tables.code_length,
                            CODE_LENGTH_BITS,
                            &tables.code_lengths,
                            Incomplete::Never,
                            |s| (s as u32) << BASE_SHIFT,
                        )
                        .map_err(|Unbuildable| InflateError::Code(Alphabet::CodeLength))?;
                        self.phase = Phase::Lengths { have: 0 };
                        continue;
                    }
                    if !self.bits.need(3, input) {
                        return Ok(Stop::Input);
                    }
                    self.tables.code_lengths[CODE_LENGTH_ORDER[have]] = self.bits.take(3) as u8;
                    self.phase = Phase::CodeLengths { have: have + 1 };
                }
                Phase::Lengths { have } => {
                    let have = self.code_lengths(have, input)?;
                    self.phase = Phase::Lengths { have };
                    if have < self.tables.literals + self.tables.distances {
                        return Ok(Stop::Input);
                    }
                    self.tables.load_dynamic()?;
                    self.phase = Phase::Symbols;
                }
                Phase::Symbols => {
                    return Ok(match self.symbols(input, target, watch)? {
                        SymbolStop::Input => Stop::Input,
                        SymbolStop::Output => Stop::Output,
                        SymbolStop::EndOfBlock => self.block_ended(),
                    });
                }
                Phase::Ended => return Ok(Stop::Stream),
            }
        }
    }

    fn block_ended(&mut self) -> Stop {
        if self.last_block {
            self.bits.take(self.bits.count & 7);
            self.phase = Phase::Ended;
            return Stop::Stream;
        }
        self.phase = Phase::Begin { drop: 0 };
        Stop::Block
    }

    /// Copies as much as possible of a stored block and returns the rest.
    fn stored(&mut self, mut left: usize, input: &mut &[u8], target: &mut Target<'_>) -> usize {
        while left > 0 && self.bits.count >= 8 && target.at < target.until {
            target.bytes[target.at] = self.bits.take(8) as u8;
            target.at += 1;
            left -= 1;
        }
        if self.bits.count == 0 {
            let length = left.min(input.len()).min(target.until.saturating_sub(target.at));
            let (now, later) = input.split_at(length);
            target.bytes[target.at..target.at + length].copy_from_slice(now);
            target.at += length;
            left -= length;
            *input = later;
        }
        left
    }

    /// Reads code lengths from number `have` on, and returns how many are known now.
    fn code_lengths(&mut self, mut have: usize, input: &mut &[u8]) -> Result<usize, InflateError> {
        let tables = &mut *self.tables;
        let total = tables.literals + tables.distances;
        while have < total {
            self.bits.need(7 + 7, input);
            let entry = tables.code_length[(self.bits.buf & mask(CODE_LENGTH_BITS)) as usize];
            let symbol = (entry >> BASE_SHIFT) as usize;
            let (extra, base) = match symbol {
                16 => (2, 3),
                17 => (3, 3),
                18 => (7, 11),
                _ => (0, 1),
            };
            let code = entry & DROP;
            if code + extra > self.bits.count {
                return Ok(have);
            }
            self.bits.take(code);
            let repeat = base + self.bits.take(extra) as usize;
            let length = match symbol {
                16 if have == 0 => return Err(InflateError::Repeat),
                16 => tables.lengths[have - 1],
                17 | 18 => 0,
                _ => symbol as u8,
            };
            if have + repeat > total {
                return Err(InflateError::Repeat);
            }
            tables.lengths[have..have + repeat].fill(length);
            have += repeat;
        }
        Ok(have)
    }

    fn symbols(
        &mut self,
        input: &mut &[u8],
        target: &mut Target<'_>,
        watch: &mut impl Watch,
    ) -> Result<SymbolStop, InflateError> {
        loop {
            if target.at + 2 < target.until
                && input.len() >= FAST_INPUT
                && fast::symbols(&self.tables, &mut self.bits, input, target, watch)?
            {
                return Ok(SymbolStop::EndOfBlock);
            }
            if target.at >= target.until {
                return Ok(SymbolStop::Output);
            }
            if let Some(stop) = self.one_symbol(input, target, watch)? {
                return Ok(stop);
            }
        }
    }

    /// Decodes one symbol with the available input; `None` to continue.
    fn one_symbol(
        &mut self,
        input: &mut &[u8],
        target: &mut Target<'_>,
        watch: &mut impl Watch,
    ) -> Result<Option<SymbolStop>, InflateError> {
        self.bits.need(48, input);
        let (buf, count) = (self.bits.buf, self.bits.count);
        let (entry, code) = look_up(&self.tables.literal, LITERAL_BITS, buf);
        let used = code + (entry & DROP);
        if used > count {
            return Ok(Some(SymbolStop::Input));
        }
        if entry & LITERAL != 0 {
            self.bits.take(used);
            target.bytes[target.at] = (entry >> BASE_SHIFT) as u8;
            target.at += 1;
            return Ok(None);
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & END_OF_BLOCK == 0 {
                return Err(InflateError::Symbol(Alphabet::Literal));
            }
            self.bits.take(used);
            return Ok(Some(SymbolStop::EndOfBlock));
        }
        let length = (entry >> BASE_SHIFT) as usize + extra(entry, buf >> code);

        let (entry, code) = look_up(&self.tables.distance, DISTANCE_BITS, buf >> used);
        let used_d = code + (entry & DROP);
        if used + used_d > count {
            return Ok(Some(SymbolStop::Input));
        }
        if entry & EXCEPTIONAL != 0 {
            return Err(InflateError::Symbol(Alphabet::Distance));
        }
        let distance = (entry >> BASE_SHIFT) as usize + extra(entry, buf >> (used + code));
        let reach = target.at - target.floor;
        if distance > reach {
            return Err(InflateError::Distance { distance, reach });
        }
        self.bits.take(used);
        self.bits.take(used_d);
        watch.note(target.at - distance, length);
        copy_match(target.bytes, target.at, distance, length);
        target.at += length;
        Ok(None)
    }
}

enum SymbolStop {
    Input,
    Output,
    EndOfBlock,
}

impl Bits {
    /// Takes input until `bits` (at most 56) are available, or the input ends.
    fn need(&mut self, bits: u32, input: &mut &[u8]) -> bool {
        if self.count < bits {
            if let Some(word) = input.first_chunk::<8>() {
                self.buf |= u64::from_le_bytes(*word) << self.count;
                *input = &input[((63 - self.count) >> 3) as usize..];
                self.count |= 56;
                self.buf &= mask(self.count);
                return true;
            }
            while self.count < 56 {
                let Some((&byte, rest)) = input.split_first() else { break };
                self.buf |= u64::from(byte) << self.count;
                self.count += 8;
                *input = rest;
            }
        }
        self.count >= bits
    }

    /// Drops `bits` (at most 32, all available) and returns them.
    fn take(&mut self, bits: u32) -> u32 {
        debug_assert!(bits <= self.count && bits <= 32);
        let taken = self.buf & mask(bits);
        self.buf >>= bits;
        self.count -= bits;
        taken as u32
    }
}

impl Tables {
    /// Loads the codes with these lengths.
    fn load_lengths(&mut self, literals: &[u8], distances: &[u8]) -> Result<(), InflateError> {
        if literals.len() > MOST_LITERALS || distances.len() > MOST_DISTANCES {
            return Err(InflateError::TooManyCodes { lengths: literals.len(), distances: distances.len() });
        }
        self.fixed = false;
        (self.literals, self.distances) = (literals.len(), distances.len());
        self.lengths[..literals.len()].copy_from_slice(literals);
        self.lengths[literals.len()..][..distances.len()].copy_from_slice(distances);
        self.load_dynamic()
    }

    fn load_dynamic(&mut self) -> Result<(), InflateError> {
        let (literals, rest) = self.lengths.split_at(self.literals);
        let distances = &rest[..self.distances];
        if literals[256] == 0 {
            return Err(InflateError::NoEndOfBlock);
        }
        build(&mut self.literal, LITERAL_BITS, literals, Incomplete::OneCode, |s| LITERAL_SYMBOLS[s])
            .map_err(|Unbuildable| InflateError::Code(Alphabet::Literal))?;
        build(&mut self.distance, DISTANCE_BITS, distances, Incomplete::OneCode, |s| DISTANCE_SYMBOLS[s])
            .map_err(|Unbuildable| InflateError::Code(Alphabet::Distance))
    }

    fn load_fixed(&mut self) {
        if self.fixed {
            return;
        }
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        build(&mut self.literal, LITERAL_BITS, &lengths, Incomplete::Never, |s| LITERAL_SYMBOLS[s])
            .and_then(|()| {
                build(&mut self.distance, DISTANCE_BITS, &[5; 32], Incomplete::Never, |s| DISTANCE_SYMBOLS[s])
            })
            .expect("the fixed codes are complete");
        self.fixed = true;
    }
}

/// Codes of literals and lengths, and of distances, that a block may have.
pub(super) const MOST_LITERALS: usize = 286;
pub(super) const MOST_DISTANCES: usize = 30;
/// Bytes that a run may write past [`Target::until`]: a match, and its last word.
pub(super) const OVERRUN: usize = 258 + 16;

pub(super) const LITERAL_BITS: u32 = 11;
pub(super) const DISTANCE_BITS: u32 = 8;
const CODE_LENGTH_BITS: u32 = 7;
/// At least the worst case for 288 symbols, 11 bits and codes of 15 (2342); a power of two for the mask.
pub(super) const LITERAL_TABLE: usize = 4096;
/// At least the worst case for 32 symbols, 8 bits and codes of 15 (402).
pub(super) const DISTANCE_TABLE: usize = 512;

pub(super) const CODE_LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::samples::{KINDS, Kind, Random, Writer, lengths, sample};
    use super::super::window::Unwatched;
    use super::*;

    const LARGEST: usize = 1 << 16;

    /// Bytes and length of the stream, or `None` if it is invalid or incomplete.
    fn own(stream: &[u8], mut piece: impl FnMut() -> usize) -> Result<(Vec<u8>, usize), Option<InflateError>> {
        let mut inflate = Inflate::new();
        let mut bytes = vec![0; LARGEST + OVERRUN];
        let (mut at, mut rest) = (0, stream);
        loop {
            let (mut now, later) = rest.split_at(piece().min(rest.len()));
            rest = later;
            loop {
                let until = LARGEST.min(at + piece());
                let mut target = Target { bytes: &mut bytes, at, until, floor: 0 };
                let stop = inflate.run(&mut now, &mut target, &mut Unwatched).map_err(Some)?;
                at = target.at;
                match stop {
                    Stop::Input => break,
                    Stop::Output if at >= LARGEST => return Err(None),
                    Stop::Output | Stop::Block | Stop::Stored => {}
                    Stop::Stream => {
                        let unused = now.len() + rest.len() + inflate.unused_bits() as usize / 8;
                        bytes.truncate(at);
                        return Ok((bytes, stream.len() - unused));
                    }
                }
            }
            assert_eq!(now, b"");
            if rest.is_empty() {
                return Err(None);
            }
        }
    }

    fn zlib(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
        let mut inflate = flate2::Decompress::new(false);
        let mut bytes = Vec::with_capacity(LARGEST);
        match inflate.decompress_vec(stream, &mut bytes, flate2::FlushDecompress::Finish) {
            Ok(flate2::Status::StreamEnd) => Some((bytes, inflate.total_in() as usize)),
            _ => None,
        }
    }

    fn deflate(data: &[u8], level: u32) -> Vec<u8> {
        let mut deflate = flate2::Compress::new(flate2::Compression::new(level), false);
        let mut stream = Vec::with_capacity(data.len() + data.len() / 8 + 100);
        deflate.compress_vec(data, &mut stream, flate2::FlushCompress::Finish).unwrap();
        stream
    }

    fn same_verdict(stream: &[u8], random: &mut Random) {
        let expected = zlib(stream);
        assert!(own(stream, || usize::MAX / 2).ok() == expected, "{stream:02x?}");
        let largest = 1 << random.below(12);
        assert!(own(stream, || 1 + random.below(largest)).ok() == expected, "in pieces: {stream:02x?}");
    }

    #[test]
    fn damaged_streams_get_the_verdict_of_zlib() {
        let mut random = Random::new(21);
        let mut both = [0, 0];
        for round in 0..12_000 {
            let kind = KINDS[random.below(4)];
            let length = random.magnitude(12);
            let data = sample(kind, length, &mut random);
            let mut stream = deflate(&data, [0, 1, 6, 9][round % 4]);
            // Damage near the front hits headers and code lengths.
            for _ in 0..1 + random.below(3) {
                let length = stream.len();
                let front = if random.below(2) == 0 { length } else { length.min(100) };
                let at = random.below(front);
                stream[at] ^= 1 << random.below(8);
            }
            same_verdict(&stream, &mut random);
            both[usize::from(zlib(&stream).is_some())] += 1;
        }
        assert!(both[0] > 1000 && both[1] > 1000, "{both:?}");
    }

    #[test]
    fn noise_gets_the_verdict_of_zlib() {
        let mut random = Random::new(22);
        let mut both = [0, 0];
        for round in 0..60_000 {
            let length = 1 + random.below(60);
            let mut stream = sample(Kind::Random, length, &mut random);
            // A dynamic block (mostly), then a fixed one, then anything.
            stream[0] = stream[0] & !7 | [5, 4, 3, 2][(round % 16) / 4];
            same_verdict(&stream, &mut random);
            both[usize::from(zlib(&stream).is_some())] += 1;
        }
        assert!(both[1] > 100, "{both:?}");
    }

    #[test]
    fn each_kind_of_damage_has_its_name() {
        let literal = |of: &[(usize, u8)]| lengths(of, 257);
        let ab = literal(&[(97, 2), (98, 2), (256, 1)]);
        let with_match = lengths(&[(97, 2), (257, 2), (256, 1)], 258);
        let cases: Vec<(Writer, InflateError)> = vec![
            (Writer::default().put(0b111, 3), InflateError::BlockType),
            (Writer::default().put(1, 8).put(5, 16).put(5, 16), InflateError::StoredLength),
            (
                Writer::default().put(0b101, 3).put(30, 5).put(0, 5).put(0, 4),
                InflateError::TooManyCodes { lengths: 287, distances: 1 },
            ),
            (
                Writer::default().put(0b101, 3).put(0, 5).put(30, 5).put(0, 4),
                InflateError::TooManyCodes { lengths: 257, distances: 31 },
            ),
            (
                Writer::default().put(0b101, 3).put(0, 5).put(0, 5).put(0, 4).put(1, 3).put(0, 9),
                InflateError::Code(Alphabet::CodeLength),
            ),
            (
                // Codes 16 and 0 of one bit each; 16 comes first.
                Writer::default().put(0b101, 3).put(0, 10).put(0, 4).put(1, 3).put(0, 6).put(1, 3).put(0b1, 3),
                InflateError::Repeat,
            ),
            (Writer::default().put(1, 1).dynamic(&literal(&[(97, 1)]), &[0]), InflateError::NoEndOfBlock),
            (
                Writer::default().put(1, 1).dynamic(&literal(&[(97, 1), (98, 1), (256, 1)]), &[0]),
                InflateError::Code(Alphabet::Literal),
            ),
            (
                Writer::default().put(1, 1).dynamic(&literal(&[(97, 2), (256, 1)]), &[0]),
                InflateError::Code(Alphabet::Literal),
            ),
            (Writer::default().put(1, 1).dynamic(&ab, &[2]), InflateError::Code(Alphabet::Distance)),
            (Writer::default().put(1, 1).dynamic(&ab, &[1, 1, 1]), InflateError::Code(Alphabet::Distance)),
            (
                Writer::default().put(1, 1).dynamic(&literal(&[(256, 1)]), &[0]).put(1, 1),
                InflateError::Symbol(Alphabet::Literal),
            ),
            (Writer::default().put(0b011, 3).code(0b1100_0110, 8), InflateError::Symbol(Alphabet::Literal)),
            (
                Writer::default().put(1, 1).dynamic(&with_match, &[0]).code(0b10, 2).code(0b11, 2).put(0, 1),
                InflateError::Symbol(Alphabet::Distance),
            ),
            (
                Writer::default().put(1, 1).dynamic(&with_match, &[0, 1]).code(0b10, 2).code(0b11, 2).put(0, 1),
                InflateError::Distance { distance: 2, reach: 1 },
            ),
        ];
        for (writer, error) in cases {
            // Followed by zeros, or by nothing: tests the fast and the careful loop.
            let mut stream = writer.bytes;
            assert_eq!(own(&stream, || usize::MAX / 2), Err(Some(error)), "{stream:02x?}");
            stream.extend([0; 40]);
            assert_eq!(own(&stream, || usize::MAX / 2), Err(Some(error)));
            assert_eq!(own(&stream, || 1), Err(Some(error)));
            assert_eq!(zlib(&stream), None);
        }
    }

    #[test]
    fn a_lone_code_of_one_bit_is_let_through_as_by_zlib() {
        let one_distance = lengths(&[(97, 2), (257, 2), (256, 1)], 258);
        let stream = Writer::default()
            .put(1, 1)
            .dynamic(&one_distance, &[1])
            .code(0b10, 2)
            .code(0b11, 2)
            .put(0, 1)
            .code(0, 1)
            .bytes;
        assert_eq!(own(&stream, || 1).unwrap().0, b"aaaa");
        assert_eq!(zlib(&stream).unwrap().0, b"aaaa");
        let only_end = Writer::default().put(1, 1).dynamic(&lengths(&[(256, 1)], 257), &[0]).put(0, 1).bytes;
        assert_eq!(own(&only_end, || 1).unwrap().0, b"");
        assert_eq!(zlib(&only_end).unwrap().0, b"");
    }

    #[test]
    fn codes_that_no_block_can_have_are_refused_inside_one() {
        let literal = |of: &[(usize, u8)]| lengths(of, 257);
        let ab = literal(&[(97, 2), (98, 2), (256, 1)]);
        for (literals, distances, error) in [
            (literal(&[(97, 1)]), vec![0], InflateError::NoEndOfBlock),
            (literal(&[(97, 1), (98, 1), (256, 1)]), vec![0], InflateError::Code(Alphabet::Literal)),
            (literal(&[(97, 2), (256, 1)]), vec![0], InflateError::Code(Alphabet::Literal)),
            (ab.clone(), vec![2], InflateError::Code(Alphabet::Distance)),
            (ab.clone(), vec![1, 1, 1], InflateError::Code(Alphabet::Distance)),
            (lengths(&[(256, 1)], 287), vec![1], InflateError::TooManyCodes { lengths: 287, distances: 1 }),
            (ab, vec![5; 31], InflateError::TooManyCodes { lengths: 257, distances: 31 }),
        ] {
            let kind = BlockKind::Dynamic { literals: literals.into(), distances: distances.into() };
            let state = BlockState { last: true, kind };
            assert_eq!(Inflate::new().resume_at_bit(3, &state), Err(error));
        }
    }

    /// At every symbol of a block, wherever its bit lies in a byte.
    #[test]
    fn every_symbol_of_a_block_is_a_place_to_start() {
        let mut random = Random::new(33);
        for kind in KINDS {
            let data = sample(kind, 3000, &mut random);
            for stream in [0, 1, 6].map(|level| deflate(&data, level)) {
                let mut inflate = Inflate::new();
                let mut bytes = vec![0; LARGEST + OVERRUN];
                let (mut at, mut rest) = (0, &stream[..]);
                loop {
                    let mut target = Target { bytes: &mut bytes, at, until: at + 1, floor: 0 };
                    let stop = inflate.run(&mut rest, &mut target, &mut Unwatched).unwrap();
                    at = target.at;
                    let bits = 8 * (stream.len() - rest.len()) - inflate.unused_bits() as usize;
                    match (stop, inflate.block_state()) {
                        (Stop::Stream, None) => break,
                        (Stop::Block, None) | (Stop::Stored, Some(_)) => continue,
                        (Stop::Output, Some(state)) => {
                            let mut resumed = Inflate::new();
                            resumed.resume_at_bit((bits % 8) as u8, &state).unwrap();
                            let mut again = [&data[..at], &[0; 9000]].concat();
                            let mut target = Target { bytes: &mut again, at, until: 8000, floor: 0 };
                            let mut from = &stream[bits / 8..];
                            loop {
                                match resumed.run(&mut from, &mut target, &mut Unwatched).unwrap() {
                                    Stop::Block | Stop::Stored => {}
                                    stop => break assert_eq!(stop, Stop::Stream),
                                }
                            }
                            let end = target.at;
                            assert!(again[..end] == data, "from {at} on");
                        }
                        other => panic!("{other:?}"),
                    }
                }
                assert!(bytes[..at] == data);
            }
        }
    }

    #[test]
    fn the_longest_codes_decode() {
        // Codes of 1, 2, … 14, 15 and 15 bits: all ones and a zero, except for the last two.
        let mut literals = vec![0; 286];
        for (length, symbol) in (1..=15).zip([97, 98, 256, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110]) {
            literals[symbol] = length;
        }
        literals[285] = 15;
        let mut distances: Vec<u8> = (1..=15).collect();
        distances.push(15);
        let (end, a, last) = ((0b110, 3), (0, 1), (0x7ffe, 15));
        let mut writer = Writer::default().put(1, 1).dynamic(&literals, &distances);
        for _ in 0..200 {
            writer = writer.code(0x3ffe, 14).code(a.0, a.1).code(last.0, last.1);
        }
        for extra in 0..64 {
            // A match of 258 bytes, 129 and more back (distance symbol 14), between literals.
            writer = writer.code(0x7fff, 15).code(last.0, last.1).put(extra, 6).code(0x1ffe, 13);
        }
        let stream = writer.code(end.0, end.1).bytes;
        let (decoded, length) = own(&stream, || usize::MAX / 2).unwrap();
        assert_eq!((decoded.len(), length), (600 + 64 * 259, stream.len()));
        assert!(zlib(&stream).unwrap().0 == decoded);
        assert!(own(&stream, || 1).unwrap().0 == decoded);
    }
}
