//! Checksums per block of spans that this process has verified, so that later reads need not compare whole spans.
//!
//! The cache's files can change at any time, also without a trace: through a mapping, or by one long write that began
//! before the check. So a read does not rely on an earlier verification; it checks that the bytes are still the
//! verified ones. Comparing a whole span on each read would cost more than the read; one checksum per block costs less
//! than a stat call. Secrets of this process key the checksums, so matching bytes cannot be crafted.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{LazyLock, OnceLock};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use crate::span::SpanId;

/// Block size in bytes; the last block of a span may be shorter. Blocks are counted from the start of their span.
pub(super) const BLOCK: usize = 8 << 10;

/// The block checksums of a layer's verified spans.
pub(super) struct BlockSums(Box<[OnceLock<Box<[u64]>>]>);

impl BlockSums {
    /// For a layer of `spans` spans, none of them verified yet.
    pub(super) fn new(spans: u32) -> Self {
        Self((0..spans).map(|_| OnceLock::new()).collect())
    }

    /// Records the bytes of a span that has just been verified.
    pub(super) fn note(&self, span: SpanId, verified: &[u8]) {
        self.0[span.index()].get_or_init(|| verified.chunks(BLOCK).map(sum).collect());
    }

    /// The checksums of a span's blocks, if the span is verified.
    pub(super) fn of(&self, span: SpanId) -> Option<&[u64]> {
        self.0[span.index()].get().map(AsRef::as_ref)
    }
}

/// Whether `block` still has the checksum that was recorded.
pub(super) fn is_intact(block: &[u8], expected: u64) -> bool {
    sum(block) == expected
}

fn sum(block: &[u8]) -> u64 {
    static KEYS: LazyLock<(u64, SharedSeed)> = LazyLock::new(|| {
        // The standard library seeds its hasher with random keys from the system.
        let random = || RandomState::new().hash_one(());
        (random(), SharedSeed::from_u64(random()))
    });
    let (key, shared) = &*KEYS;
    let mut hasher = SeedableRandomState::with_seed(*key, shared).build_hasher();
    hasher.write(block);
    hasher.write_usize(block.len());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_of_a_block_is_noticed() {
        let sums = BlockSums::new(2);
        let mut bytes: Vec<u8> = (0..BLOCK + 100).map(|at| (at / 3) as u8).collect();
        assert!(sums.of(SpanId(1)).is_none());
        sums.note(SpanId(1), &bytes);
        sums.note(SpanId(1), b"verified again");
        let noted = sums.of(SpanId(1)).unwrap_or_default();
        assert_eq!((noted.len(), sums.of(SpanId(0))), (2, None));
        let intact =
            |bytes: &[u8]| [0, 1].map(|at| is_intact(&bytes[at * BLOCK..bytes.len().min((at + 1) * BLOCK)], noted[at]));
        assert_eq!(intact(&bytes), [true, true]);
        for at in (0..bytes.len()).step_by(97) {
            bytes[at] ^= 0x10;
            assert_eq!(intact(&bytes), [at >= BLOCK, at < BLOCK], "{at}");
            bytes[at] ^= 0x10;
        }
        assert!(!is_intact(&bytes[BLOCK..BLOCK + 99], noted[1]) && !is_intact(&[0; BLOCK], noted[0]));
    }
}
