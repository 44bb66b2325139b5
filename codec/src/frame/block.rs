//! Compressed blocks (RFC 8878, 3.1.1.3): the headers of their literals, their tables, and their sequences.

use std::sync::LazyLock;

use super::Unreadable;
use super::bits::BackwardBits;
use super::fse::{MOST, Shares};
use super::huffman;

/// What a block leaves to the next one of its frame: Huffman codes, three tables and three offsets.
#[derive(Clone)]
pub(super) struct Carried {
    /// The last description of Huffman codes; empty before the first.
    pub(super) huffman: Vec<u8>,
    pub(super) literal_lengths: Table,
    pub(super) offsets: Table,
    pub(super) match_lengths: Table,
    pub(super) repeats: [u32; 3],
}

/// A table that decodes one of the three numbers of a sequence, and where it is from.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) described: Described,
    log: u32,
    states: Box<States>,
}

type States = [State; 1 << MOST];

/// How a table was described.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Described {
    Predefined,
    /// All sequences have this code.
    One(u8),
    /// By its shares.
    Shares(Vec<u8>),
}

/// What a state of a table stands for and leads to, in one word: from the lowest bit, 32 of what the symbol's additional bits
/// are added to, 16 of what the bits that lead to the next state are added to; from bit 52, six of the number of these;
/// six of the number of the additional bits.
#[derive(Clone, Copy, Default)]
struct State(u64);

impl State {
    fn new((base, extra): (u32, u8), next: u16, bits: u8) -> Self {
        Self(u64::from(base) | u64::from(next) << 32 | u64::from(bits) << 52 | u64::from(extra) << 58)
    }

    #[inline(always)]
    fn base(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    fn next(self) -> usize {
        usize::from((self.0 >> 32) as u16)
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        (self.0 >> 52) as u32 & 63
    }

    #[inline(always)]
    fn extra(self) -> u32 {
        (self.0 >> 58) as u32
    }
}

/// One of the three alphabets.
#[derive(Clone, Copy)]
pub(super) struct Alphabet {
    last: u8,
    most: u32,
    number: fn(u8) -> (u32, u8),
    predefined: &'static LazyLock<Table>,
}

impl Alphabet {
    fn predefined(&self) -> Table {
        Table::clone(self.predefined)
    }
}

/// The literals of a compressed block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Literals<'a> {
    Raw(&'a [u8]),
    Repeated(u8, usize),
    /// Streams of codes, four or one; the codes are those that are carried.
    Coded {
        streams: &'a [u8],
        four: bool,
        length: usize,
    },
}

/// A compressed block whose literals and tables have been read.
pub(super) struct Block<'a> {
    pub(super) literals: Literals<'a>,
    /// The number of its sequences.
    pub(super) sequences: usize,
    bits: &'a [u8],
}

/// Some literals, and bytes that are copied from earlier output.
#[derive(Clone, Copy)]
pub(super) struct Sequence {
    pub(super) literals: u32,
    pub(super) length: u32,
    /// 0 if the block cannot be read, which is said after all sequences.
    pub(super) offset: u32,
}

impl Literals<'_> {
    pub(super) fn len(&self) -> usize {
        match *self {
            Self::Raw(bytes) => bytes.len(),
            Self::Repeated(_, length) | Self::Coded { length, .. } => length,
        }
    }
}

impl Default for Carried {
    /// What the first block of a frame finds.
    fn default() -> Self {
        Self {
            huffman: Vec::new(),
            literal_lengths: LITERAL_LENGTHS.predefined(),
            offsets: OFFSETS.predefined(),
            match_lengths: MATCH_LENGTHS.predefined(),
            repeats: [1, 4, 8],
        }
    }
}

impl Carried {
    /// Reads a block up to its sequences.
    pub(super) fn block<'a>(&mut self, block: &'a [u8]) -> Result<Block<'a>, Unreadable> {
        let (literals, rest) = self.literals(block)?;
        let (sequences, header) = match *rest {
            [first @ ..=127, ..] => (usize::from(first), 1),
            [first @ ..=254, second, ..] => (((usize::from(first) - 128) << 8) + usize::from(second), 2),
            [255, second, third, ..] => (usize::from(u16::from_le_bytes([second, third])) + 0x7f00, 3),
            _ => return Err(SHORT),
        };
        let mut bits = &rest[header..];
        if sequences > 0 {
            let (&modes, tables) = bits.split_first().ok_or(SHORT)?;
            bits = self.literal_lengths.update(&LITERAL_LENGTHS, modes >> 6, tables)?;
            bits = self.offsets.update(&OFFSETS, modes >> 4 & 3, bits)?;
            bits = self.match_lengths.update(&MATCH_LENGTHS, modes >> 2 & 3, bits)?;
        }
        Ok(Block { literals, sequences, bits })
    }

    /// The literals, and what follows them.
    fn literals<'a>(&mut self, block: &'a [u8]) -> Result<(Literals<'a>, &'a [u8]), Unreadable> {
        let first = *block.first().ok_or(SHORT)?;
        let (kind, size) = (first & 3, first >> 2 & 3);
        let header_length = match (kind, size) {
            (0 | 1, 0 | 2) => 1,
            (0 | 1, 1) => 2,
            (0 | 1, _) | (_, 0 | 1) => 3,
            (_, 2) => 4,
            _ => 5,
        };
        let (header, rest) = block.split_at_checked(header_length).ok_or(SHORT)?;
        let mut number = [0; 8];
        number[..header_length].copy_from_slice(header);
        let number = u64::from_le_bytes(number) as usize;
        if kind < 2 {
            let length = if header_length == 1 { number >> 3 } else { number >> 4 };
            return match kind {
                0 => {
                    let (bytes, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
                    Ok((Literals::Raw(bytes), rest))
                }
                _ => {
                    let (&byte, rest) = rest.split_first().ok_or(SHORT)?;
                    in_block(length).map(|length| (Literals::Repeated(byte, length), rest))
                }
            };
        }
        let width = [10, 10, 14, 18][usize::from(size)];
        let mask = (1 << width) - 1;
        let (length, coded) = (in_block(number >> 4 & mask)?, number >> (4 + width) & mask);
        let (mut streams, rest) = rest.split_at_checked(coded).ok_or(SHORT)?;
        if kind == 2 {
            let description = huffman::description_length(streams).ok_or(SHORT)?;
            self.huffman.clear();
            self.huffman.extend_from_slice(&streams[..description]);
            streams = &streams[description..];
        }
        Ok((Literals::Coded { streams, four: size != 0, length }, rest))
    }

    /// Calls `each` with the sequences of a block, in order.
    #[inline(always)]
    pub(super) fn sequences(&mut self, block: &Block<'_>, mut each: impl FnMut(Sequence)) -> Result<(), Unreadable> {
        let mut is_zero = false;
        if block.sequences == 0 {
            return Ok(());
        }
        let mut bits = BackwardBits::new(block.bits)?;
        let (of_literals, of_offset, of_match) =
            (&*self.literal_lengths.states, &*self.offsets.states, &*self.match_lengths.states);
        let mut literals_at = bits.take(self.literal_lengths.log) as usize;
        let mut offset_at = bits.take(self.offsets.log) as usize;
        let mut match_at = bits.take(self.match_lengths.log) as usize;
        let [mut first, mut second, mut third] = self.repeats;
        for left in (0..block.sequences).rev() {
            let l = of_literals[literals_at & (of_literals.len() - 1)];
            let o = of_offset[offset_at & (of_offset.len() - 1)];
            let m = of_match[match_at & (of_match.len() - 1)];
            bits.refill();
            let (offset_bits, match_bits, literals_bits) = (o.extra(), m.extra(), l.extra());
            let value = o.base() + bits.take(offset_bits) as u32;
            // Most of the 57 bits are left for what leads to the next states: 26 at most.
            let far = offset_bits + match_bits + literals_bits > 57 - 26;
            if far {
                bits.refill();
            }
            let length = m.base() + bits.take(match_bits) as u32;
            let literals = l.base() + bits.take(literals_bits) as u32;
            if far {
                bits.refill();
            }
            let offset = if offset_bits > 1 {
                (second, third) = (first, second);
                first = value - 3;
                first
            } else {
                // Values 1 to 3 repeat an offset; without literals, the next one (RFC 8878, 3.1.1.5).
                let repeat = value - u32::from(literals != 0);
                let offset = match repeat {
                    0 => first,
                    1 => second,
                    2 => third,
                    _ => first.wrapping_sub(1),
                };
                is_zero |= offset == 0;
                if repeat > 1 {
                    third = second;
                }
                if repeat > 0 {
                    (second, first) = (first, offset);
                }
                offset
            };
            each(Sequence { literals, length, offset });
            if left > 0 {
                literals_at = l.next() + bits.take(l.bits()) as usize;
                match_at = m.next() + bits.take(m.bits()) as usize;
                offset_at = o.next() + bits.take(o.bits()) as usize;
            }
        }
        self.repeats = [first, second, third];
        if is_zero {
            return Err(Unreadable("a match without an offset"));
        }
        if bits.overrun() { Err(SHORT) } else { Ok(()) }
    }
}

impl Table {
    /// A table that was described so.
    pub(super) fn new(alphabet: &Alphabet, described: Described) -> Result<Self, Unreadable> {
        let (log, states) = (0, Box::new([State::default(); 1 << MOST]));
        let mut table = Self { described: Described::Predefined, log, states };
        match &described {
            Described::Predefined => return Ok(alphabet.predefined()),
            Described::One(code) => table.update(alphabet, 1, &[*code]).map(|_| ())?,
            Described::Shares(bytes) => table.update(alphabet, 2, bytes).map(|_| ())?,
        }
        Ok(table)
    }

    fn of_shares(alphabet_number: fn(u8) -> (u32, u8), described: Described, shares: &Shares) -> Self {
        let mut table = Self { described, log: shares.log, states: Box::new([State::default(); 1 << MOST]) };
        table.set(alphabet_number, shares);
        table
    }

    fn set(&mut self, number: fn(u8) -> (u32, u8), shares: &Shares) {
        self.log = shares.log;
        let mut numbers = [(0, 0); 64];
        for (symbol, slot) in (0..).zip(&mut numbers[..shares.counts.len()]) {
            *slot = number(symbol);
        }
        shares.states(|state, symbol, bits, next| {
            self.states[state] = State::new(numbers[usize::from(symbol)], next, bits);
        });
    }

    /// Takes the table that a block says in `mode`; returns what follows its description.
    fn update<'a>(&mut self, alphabet: &Alphabet, mode: u8, bytes: &'a [u8]) -> Result<&'a [u8], Unreadable> {
        match mode {
            0 => {
                if self.described != Described::Predefined {
                    *self = alphabet.predefined();
                }
                Ok(bytes)
            }
            1 => {
                let (&code, rest) = bytes.split_first().ok_or(SHORT)?;
                if code > alphabet.last {
                    return Err(Unreadable("a code of no meaning"));
                }
                self.described = Described::One(code);
                self.log = 0;
                self.states[0] = State::new((alphabet.number)(code), 0, 0);
                Ok(rest)
            }
            2 => {
                let (shares, used) = Shares::read(bytes, alphabet.last.into(), alphabet.most)?;
                self.described = Described::Shares(bytes[..used].to_vec());
                self.set(alphabet.number, &shares);
                Ok(&bytes[used..])
            }
            _ => Ok(bytes),
        }
    }
}

fn in_block(length: usize) -> Result<usize, Unreadable> {
    if length > super::BLOCK { Err(Unreadable("a block of too many bytes")) } else { Ok(length) }
}

fn literal_length(code: u8) -> (u32, u8) {
    const EXTRA: [u8; 20] = [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    number(code, 16, 16, &EXTRA)
}

fn match_length(code: u8) -> (u32, u8) {
    const EXTRA: [u8; 21] = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let (base, extra) = number(code, 32, 32, &EXTRA);
    (base + 3, extra)
}

fn offset(code: u8) -> (u32, u8) {
    (1 << (code & 31), code)
}

/// The first `plain` codes are numbers; later ones go on from there, each with as many additional bits.
fn number(code: u8, plain: u8, from: u32, extra: &[u8]) -> (u32, u8) {
    match code.checked_sub(plain) {
        None => (code.into(), 0),
        Some(code) => {
            let code = usize::from(code).min(extra.len() - 1);
            (from + extra[..code].iter().map(|bits| 1 << bits).sum::<u32>(), extra[code])
        }
    }
}

pub(super) const LITERAL_LENGTHS: Alphabet =
    Alphabet { last: 35, most: 9, number: literal_length, predefined: &PREDEFINED_LITERAL_LENGTHS };
pub(super) const OFFSETS: Alphabet = Alphabet { last: 31, most: 8, number: offset, predefined: &PREDEFINED_OFFSETS };
pub(super) const MATCH_LENGTHS: Alphabet =
    Alphabet { last: 52, most: 9, number: match_length, predefined: &PREDEFINED_MATCH_LENGTHS };

/// RFC 8878, 3.1.1.3.2.2.
static PREDEFINED_LITERAL_LENGTHS: LazyLock<Table> = LazyLock::new(|| {
    predefined(
        literal_length,
        6,
        &[
            4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1,
            -1,
        ],
    )
});
static PREDEFINED_MATCH_LENGTHS: LazyLock<Table> = LazyLock::new(|| {
    let mut counts = [1; 53];
    counts[1..10].copy_from_slice(&[4, 3, 2, 2, 2, 2, 2, 2, 1]);
    counts[46..].fill(-1);
    predefined(match_length, 6, &counts)
});
static PREDEFINED_OFFSETS: LazyLock<Table> = LazyLock::new(|| {
    let mut counts = [1; 29];
    counts[6..9].fill(2);
    counts[24..].fill(-1);
    predefined(offset, 5, &counts)
});

fn predefined(number: fn(u8) -> (u32, u8), log: u32, counts: &[i16]) -> Table {
    Table::of_shares(number, Described::Predefined, &Shares { log, counts: counts.to_vec() })
}

const SHORT: Unreadable = Unreadable("a block that is cut short");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_for_the_numbers_of_the_specification() {
        // RFC 8878, tables 16 and 17.
        for (code, number) in [(15, (15, 0)), (16, (16, 1)), (20, (24, 2)), (25, (64, 6)), (35, (65_536, 16))] {
            assert_eq!(literal_length(code), number);
        }
        for (code, number) in [
            (0, (3, 0)),
            (31, (34, 0)),
            (32, (35, 1)),
            (38, (51, 3)),
            (42, (99, 5)),
            (43, (131, 7)),
            (52, (65_539, 16)),
        ] {
            assert_eq!(match_length(code), number);
        }
        assert_eq!(offset(31), (1 << 31, 31));
    }

    #[test]
    fn predefined_shares_fill_their_tables() {
        for table in [&PREDEFINED_LITERAL_LENGTHS, &PREDEFINED_MATCH_LENGTHS, &PREDEFINED_OFFSETS] {
            let size = 1 << table.log;
            assert!(table.states[..size].iter().all(|state| state.next() + (1 << state.bits()) <= size));
        }
    }
}
