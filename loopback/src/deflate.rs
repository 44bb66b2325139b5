//! A gzip member of one deflate block, however long (RFC 1951, RFC 1952).
//!
//! Most compressors begin a block every few ten kilobytes. `igzip -0` does not, nor does level 1 of zlib-ng: they write
//! all of a stream as one block, the former with codes of its own, the latter with the fixed ones.

use flate2::Crc;

/// The codes of the block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Codes {
    /// Those of RFC 1951, 3.2.6.
    Fixed,
    /// Made for the data; every symbol has a code, as with igzip.
    Dynamic,
}

/// A member that holds `data` in one block.
pub fn one_block(data: &[u8], codes: Codes) -> Vec<u8> {
    let symbols = symbols(data);
    let (literals, distances) = match codes {
        Codes::Fixed => {
            let literals = (0..288).map(|symbol| match symbol {
                144..256 => 9,
                256..280 => 7,
                _ => 8,
            });
            (literals.collect(), vec![5; 30])
        }
        Codes::Dynamic => {
            let (mut literals, mut distances) = (vec![1; LITERALS], vec![1; DISTANCES]);
            for symbol in &symbols {
                literals[symbol.code().0] += 1;
                if let Symbol::Match { distance, .. } = *symbol {
                    distances[distance_code(distance).0] += 1;
                }
            }
            (code_lengths(literals), code_lengths(distances))
        }
    };

    let mut out = Bits::default();
    out.bytes.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
    out.put(1, 1);
    match codes {
        Codes::Fixed => out.put(1, 2),
        Codes::Dynamic => {
            out.put(2, 2);
            out.put(literals.len() - 257, 5);
            out.put(distances.len() - 1, 5);
            // Code lengths of 0 to 15 are written as they are, four bits each.
            out.put(15, 4);
            for symbol in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15] {
                out.put(if symbol < 16 { 4 } else { 0 }, 3);
            }
            for length in literals.iter().chain(&distances) {
                out.code((usize::from(*length), 4));
            }
        }
    }
    let (literals, distances) = (canonical(&literals), canonical(&distances));
    for symbol in symbols {
        let (code, extra, bits) = symbol.code();
        out.code(literals[code]);
        out.put(extra, bits);
        if let Symbol::Match { distance, .. } = symbol {
            let (code, extra, bits) = distance_code(distance);
            out.code(distances[code]);
            out.put(extra, bits);
        }
    }
    let mut crc = Crc::new();
    crc.update(data);
    let mut bytes = out.bytes;
    bytes.extend(crc.sum().to_le_bytes());
    bytes.extend(crc.amount().to_le_bytes());
    bytes
}

#[derive(Clone, Copy, Debug)]
enum Symbol {
    Literal(u8),
    Match { length: usize, distance: usize },
    End,
}

impl Symbol {
    /// Its number among literals and lengths, its extra bits, and how many they are.
    fn code(self) -> (usize, usize, u32) {
        match self {
            Self::Literal(byte) => (byte.into(), 0, 0),
            Self::End => (256, 0, 0),
            Self::Match { length: 258, .. } => (285, 0, 0),
            Self::Match { length: length @ ..11, .. } => (254 + length, 0, 0),
            Self::Match { length, .. } => {
                let bits = (length - 3).ilog2() - 2;
                (257 + 4 * bits as usize + ((length - 3) >> bits), (length - 3) & ((1 << bits) - 1), bits)
            }
        }
    }
}

/// The number of a distance, its extra bits, and how many they are.
fn distance_code(distance: usize) -> (usize, usize, u32) {
    if distance < 3 {
        return (distance - 1, 0, 0);
    }
    let bits = (distance - 1).ilog2() - 1;
    (2 * bits as usize + ((distance - 1) >> bits), (distance - 1) & ((1 << bits) - 1), bits)
}

/// The data as literals and matches with what has last begun with the same four bytes, and the end of the block.
fn symbols(data: &[u8]) -> Vec<Symbol> {
    let mut last = vec![usize::MAX; 1 << 15];
    let (mut symbols, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let mut symbol = Symbol::Literal(data[at]);
        if let Some(next) = data[at..].first_chunk::<4>() {
            let hash = u32::from_le_bytes(*next).wrapping_mul(0x9e37_79b1) >> 17;
            let found = std::mem::replace(&mut last[hash as usize], at);
            if found != usize::MAX && at - found <= 32 << 10 {
                let pairs = data[found..].iter().zip(&data[at..]).take(258);
                let length = pairs.take_while(|(one, two)| one == two).count();
                if length >= 4 {
                    symbol = Symbol::Match { length, distance: at - found };
                }
            }
        }
        at += if let Symbol::Match { length, .. } = symbol { length } else { 1 };
        symbols.push(symbol);
    }
    symbols.push(Symbol::End);
    symbols
}

/// Huffman's code lengths, of at most 15 bits, for symbols that all occur.
fn code_lengths(mut counts: Vec<u64>) -> Vec<u8> {
    loop {
        let mut lengths = vec![0_u8; counts.len()];
        let mut groups: Vec<(u64, Vec<usize>)> =
            counts.iter().enumerate().map(|(symbol, count)| (*count, vec![symbol])).collect();
        while groups.len() > 1 {
            groups.sort_by_key(|group| std::cmp::Reverse(group.0));
            let [one, two] = [groups.pop(), groups.pop()].map(|group| group.expect("there are two"));
            let joined = [one.1, two.1].concat();
            joined.iter().for_each(|symbol| lengths[*symbol] += 1);
            groups.push((one.0 + two.0, joined));
        }
        if lengths.iter().all(|length| *length <= 15) {
            return lengths;
        }
        counts.iter_mut().for_each(|count| *count = count.div_ceil(2));
    }
}

/// The code of each symbol and its length (RFC 1951, 3.2.2).
fn canonical(lengths: &[u8]) -> Vec<(usize, u32)> {
    let (mut codes, mut code) = (vec![(0, 0); lengths.len()], 0);
    for length in 1..=15 {
        code <<= 1;
        for (symbol, _) in lengths.iter().enumerate().filter(|(_, of)| **of == length) {
            codes[symbol] = (code, u32::from(length));
            code += 1;
        }
    }
    codes
}

/// Bytes whose last one may have room.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    free: u32,
}

impl Bits {
    fn put(&mut self, value: usize, bits: u32) {
        for bit in 0..bits {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            let last = self.bytes.last_mut().expect("it has room");
            *last |= ((value >> bit & 1) as u8) << (8 - self.free);
            self.free -= 1;
        }
    }

    /// Codes begin with the top bit.
    fn code(&mut self, (code, bits): (usize, u32)) {
        self.put(code.reverse_bits() >> (usize::BITS - bits), bits);
    }
}

const LITERALS: usize = 286;
const DISTANCES: usize = 30;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_member_of_one_block_unpacks_to_its_data() {
        let mut number = 1_u32;
        let mut data: Vec<u8> = (0..100_000)
            .map(|_| {
                number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                (number >> (20 + number % 3 * 4)) as u8
            })
            .collect();
        // Matches of all lengths and many distances.
        for length in 1..=600 {
            let from = data.len() - 1 - length * 50;
            data.extend_from_within(from..from + length);
            data.push(length as u8);
        }
        data.extend([7; 5000]);
        for codes in [Codes::Fixed, Codes::Dynamic] {
            for data in [&data[..], b"", b"a"] {
                let mut found = Vec::new();
                flate2::read::GzDecoder::new(&one_block(data, codes)[..]).read_to_end(&mut found).unwrap();
                assert!(found == data, "{codes:?}, {} bytes", data.len());
            }
        }
    }
}
