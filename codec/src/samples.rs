//! Test data for codecs, seeded for reproducible failures.

use super::inflate::CODE_LENGTH_ORDER;

/// Xorshift64*: small and portable.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound
    }

    /// Below 2^`bits`, small values as likely as large ones.
    pub(super) fn magnitude(&mut self, bits: usize) -> usize {
        let bits = self.below(bits + 1);
        self.below(1 << bits)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Random,
    Text,
    Runs,
    /// All kinds in turn, and copies of earlier data.
    Mixed,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Random, Kind::Text, Kind::Runs, Kind::Mixed];

pub(super) fn sample(kind: Kind, length: usize, random: &mut Random) -> Vec<u8> {
    let mut data = Vec::with_capacity(length + 4096);
    while data.len() < length {
        match kind {
            Kind::Random => data.extend(random.next().to_le_bytes()),
            Kind::Text => {
                // Few words often, many words seldom.
                let word = random.below(20_000).min(random.below(20_000)).min(random.below(20_000));
                let mut letters = Random::new(word as u64);
                for _ in 0..2 + letters.below(9) {
                    data.push(b"etaoinshrdlucmfw"[letters.below(16)]);
                }
                data.push(if random.below(12) == 0 { b'\n' } else { b' ' });
            }
            Kind::Runs => {
                let byte = random.next() as u8;
                let length = 1 + random.magnitude(11);
                data.resize(data.len() + length, byte);
            }
            Kind::Mixed => {
                let piece = 1 + random.below(9000);
                if random.below(3) == 0 && !data.is_empty() {
                    let from = random.below(data.len());
                    let to = data.len().min(from + piece);
                    data.extend_from_within(from..to);
                } else {
                    let kind = KINDS[random.below(3)];
                    data.extend(sample(kind, piece, random));
                }
            }
        }
    }
    data.truncate(length);
    data
}

/// Writes a deflate stream bit by bit.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    bits: u32,
}

impl Writer {
    pub(super) fn put(mut self, value: u32, bits: u32) -> Self {
        for bit in 0..bits {
            if self.bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().expect("pushed") |= ((value >> bit & 1) as u8) << (self.bits % 8);
            self.bits += 1;
        }
        self
    }

    /// A code; codes are sent from the top bit.
    pub(super) fn code(self, code: u32, bits: u32) -> Self {
        self.put(code.reverse_bits() >> (32 - bits), bits)
    }

    /// The header of a dynamic block, after the bit for the last block; code lengths are written as they are, four bits
    /// each.
    pub(super) fn dynamic(self, literals: &[u8], distances: &[u8]) -> Self {
        let mut writer = self.put(0b10, 2);
        writer = writer.put(literals.len() as u32 - 257, 5).put(distances.len() as u32 - 1, 5).put(15, 4);
        for symbol in CODE_LENGTH_ORDER {
            writer = writer.put(if symbol < 16 { 4 } else { 0 }, 3);
        }
        literals.iter().chain(distances).fold(writer, |writer, &length| writer.code(length.into(), 4))
    }
}

/// Code lengths of an alphabet of `total` symbols, of which only these are used.
pub(super) fn lengths(of: &[(usize, u8)], total: usize) -> Vec<u8> {
    let mut lengths = vec![0; total];
    for &(symbol, length) in of {
        lengths[symbol] = length;
    }
    lengths
}
