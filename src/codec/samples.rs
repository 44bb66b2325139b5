//! Data for the codecs' tests: seeded, so that a failure comes back.

/// Xorshift64*: small, and the same everywhere.
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
    /// All of them in turn, and copies of what was there before.
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
