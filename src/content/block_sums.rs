//! What was verified stays verified: checksums of the blocks of spans that this process has compared with their digests.
//!
//! The cache's files can change at any time, also in ways that leave no trace: through a mapping, or by one long write
//! whose beginning was seen. So bytes are not served because their span was verified earlier, but because they are still
//! the bytes that were verified. Comparing a whole span each time would cost more than reading it; a checksum a block
//! costs less than asking whether the file was changed. The checksums are keyed by secrets of this process, so bytes that
//! fit them cannot be made up.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{LazyLock, OnceLock};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use crate::span::SpanId;

/// Bytes of a block; the last one of a span may be shorter. Blocks are counted from the beginning of their span.
pub(super) const BLOCK: usize = 8 << 10;

/// The checksums of a layer's spans.
pub(super) struct BlockSums(Box<[OnceLock<Box<[u64]>>]>);

impl BlockSums {
    /// Of a layer with so many spans, none of which is verified yet.
    pub(super) fn new(spans: u32) -> Self {
        Self((0..spans).map(|_| OnceLock::new()).collect())
    }

    /// Takes note of a span's bytes, which were just compared with its digest.
    pub(super) fn note(&self, span: SpanId, verified: &[u8]) {
        self.0[span.index()].get_or_init(|| verified.chunks(BLOCK).map(sum).collect());
    }

    /// The checksums of a span's blocks, if it was verified.
    pub(super) fn of(&self, span: SpanId) -> Option<&[u64]> {
        self.0[span.index()].get().map(AsRef::as_ref)
    }
}

/// Whether `block` is the block that was verified with this checksum.
pub(super) fn is_intact(block: &[u8], expected: u64) -> bool {
    sum(block) == expected
}

fn sum(block: &[u8]) -> u64 {
    static KEYS: LazyLock<(u64, SharedSeed)> = LazyLock::new(|| {
        // The standard library's own keys come from the system.
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
