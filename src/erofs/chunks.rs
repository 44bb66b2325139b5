//! Files: maps each part of a file to bytes of a device.
//!
//! A file is a table of chunks of one size; a chunk is contiguous on one device, or a hole. A file that is contiguous
//! and block-aligned in its layer is one chunk. A sparse file, or one with unaligned pieces, needs chunks small enough
//! that most are contiguous or holes, but not too many; the rest is copied into the image, which keeps the holes.

use super::EncodeError;
use super::format::{BLOCK, BLOCK_BITS, CHUNK_BITS_MAX};

/// Bytes of a file that are contiguous in their layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Run {
    pub(super) file: u64,
    pub(super) decoded: u64,
    pub(super) len: u64,
}

/// One chunk that is not a hole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Chunk {
    /// It starts at this block of the layer.
    Layer(u32),
    /// It has to be copied, from these bytes of the file's runs.
    Copied,
}

/// How a file is divided into chunks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Cut {
    /// A chunk has two to the power of this many blocks.
    pub(super) bits: u8,
    /// How many chunks there are.
    pub(super) count: u64,
    /// Bytes to copy.
    pub(super) copied: u64,
    /// Space of the copied chunks in the image, including holes.
    pub(super) room: u64,
}

/// A file of `size` bytes in a layer of `decoded_size` bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct File<'a> {
    pub(super) size: u64,
    pub(super) decoded_size: u64,
    /// In order, without overlap; merged where possible.
    pub(super) runs: &'a [Run],
}

impl File<'_> {
    /// The cut with the fewest bytes, using at most `room` in the image.
    pub(super) fn cut(self, room: u64) -> Result<Cut, EncodeError> {
        let blocks = self.size.div_ceil(BLOCK).max(1);
        let whole = (blocks.next_power_of_two().trailing_zeros() as u8).min(CHUNK_BITS_MAX);
        let mut best: Option<(u64, Cut)> = None;
        for bits in (0..=whole).rev() {
            let count = blocks.div_ceil(1 << bits);
            let table = count.saturating_mul(8);
            // Smaller chunks only make the table longer.
            if table > TABLE_MAX || best.is_some_and(|(cost, _)| cost <= table) {
                break;
            }
            let (mut copied, mut in_image) = (0, 0);
            self.each_chunk(bits, |chunk, start, end, bytes| {
                if chunk == Chunk::Copied {
                    copied += bytes;
                    in_image += (end - start).next_multiple_of(BLOCK);
                }
                Ok(())
            })?;
            // Space costs no bytes, but block numbers are limited.
            let cost = table + copied + in_image / ROOM_A_BYTE;
            if in_image <= room && best.is_none_or(|(before, _)| cost < before) {
                best = Some((cost, Cut { bits, count, copied, room: in_image }));
            }
        }
        best.map(|(_, cut)| cut).ok_or(EncodeError::TooLarge)
    }

    /// Calls `each` for every chunk that is not a hole, with its range in the file and the number of bytes of runs in
    /// it. Chunks have `2^bits` blocks.
    pub(super) fn each_chunk(
        self,
        bits: u8,
        mut each: impl FnMut(Chunk, u64, u64, u64) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let shift = bits + BLOCK_BITS;
        // The first run that may be in the next chunk, and that chunk's number.
        let (mut first, mut number) = (0, 0);
        while let Some(run) = self.runs.get(first) {
            number = u64::max(number, run.file >> shift);
            let start = number << shift;
            let end = start.saturating_add(1 << shift).min(self.size);
            let behind = first + self.runs[first..].partition_point(|run| run.file < end);
            let inside = &self.runs[first..behind];
            let bytes = inside.iter().map(|run| (run.file + run.len).min(end) - run.file.max(start)).sum();
            each(self.chunk(inside, start, end), start, end, bytes)?;
            // Only the last of them can extend into the next chunk.
            let goes_on = inside.last().is_some_and(|run| run.file + run.len > end);
            first = if goes_on { behind - 1 } else { behind };
            number += 1;
        }
        Ok(())
    }

    fn chunk(self, runs: &[Run], start: u64, end: u64) -> Chunk {
        let [run] = runs else { return Chunk::Copied };
        if run.file > start || run.file + run.len < end {
            return Chunk::Copied;
        }
        let from = run.decoded + (start - run.file);
        // The kernel cannot read a block that is only partly in the content file.
        let whole = from + (end - start).next_multiple_of(BLOCK) <= self.decoded_size;
        match u32::try_from(from / BLOCK) {
            Ok(block) if from.is_multiple_of(BLOCK) && whole && block < u32::MAX => Chunk::Layer(block),
            _ => Chunk::Copied,
        }
    }
}

/// Merges runs that are contiguous in the file and in the layer.
pub(super) fn push(runs: &mut Vec<Run>, next: Run) {
    match runs.last_mut() {
        Some(last) if last.file + last.len == next.file && last.decoded + last.len == next.decoded => {
            last.len += next.len;
        }
        _ => runs.push(next),
    }
}

/// Limit in bytes of the table of one file.
const TABLE_MAX: u64 = 64 << 20;
/// Bytes of space that cost as much as one written byte.
const ROOM_A_BYTE: u64 = 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(size: u64, runs: &[Run]) -> File<'_> {
        File { size, decoded_size: 1 << 50, runs }
    }

    fn chunks(file: File<'_>, bits: u8) -> Vec<(Chunk, u64, u64, u64)> {
        let mut found = Vec::new();
        file.each_chunk(bits, |chunk, start, end, bytes| {
            found.push((chunk, start, end, bytes));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn a_file_in_one_piece_is_one_chunk() {
        for size in [1, 512, 513, 1 << 20, 1 << 40] {
            let runs = [Run { file: 0, decoded: 1024, len: size }];
            let cut = file(size, &runs).cut(0).unwrap();
            assert_eq!((cut.count, cut.copied, cut.room), (1, 0, 0), "{size}");
            assert_eq!(chunks(file(size, &runs), cut.bits), [(Chunk::Layer(2), 0, size, size)]);
        }
    }

    #[test]
    fn a_file_of_holes_has_few_chunks() {
        let cut = file(8 << 40, &[]).cut(0).unwrap();
        assert_eq!((cut.count, cut.copied), (8, 0));
        let runs = [Run { file: 4 << 40, decoded: 1024, len: 4096 }];
        let cut = file(8 << 40, &runs).cut(1 << 40).unwrap();
        assert!(cut.count <= 1 << 15 && cut.copied <= 4096, "{cut:?}");
    }

    #[test]
    fn what_lies_between_blocks_is_copied() {
        let runs = [Run { file: 0, decoded: 1000, len: 700 }];
        assert_eq!(file(700, &runs).cut(1024).unwrap(), Cut { bits: 1, count: 1, copied: 700, room: 1024 });
        assert!(matches!(file(700, &runs).cut(512), Err(EncodeError::TooLarge)));
    }

    #[test]
    fn a_block_that_the_layer_has_only_a_part_of_is_copied() {
        let runs = [Run { file: 0, decoded: 512, len: 1100 }];
        let cut = File { size: 1100, decoded_size: 512 + 1100, runs: &runs }.cut(1 << 20).unwrap();
        assert_eq!((cut.bits, cut.count, cut.copied), (1, 2, 76));
    }

    #[test]
    fn a_layer_beyond_the_reach_of_block_numbers_is_copied() {
        let runs = [Run { file: 0, decoded: BLOCK * u64::from(u32::MAX), len: 10 }];
        assert_eq!(file(10, &runs).cut(512).unwrap().copied, 10);
    }

    /// Runs in order, with or without holes between them, and the size of their file.
    fn sparse() -> impl Strategy<Value = (Vec<Run>, u64)> {
        let piece = (prop_oneof![Just(0_u64), Just(512), 1_u64..5000], prop_oneof![Just(512_u64), 1_u64..5000]);
        (proptest::collection::vec(piece, 0..12), 0_u64..3000).prop_map(|(pieces, tail)| {
            let (mut at, mut decoded, mut runs) = (0, 512, Vec::new());
            for (hole, len) in pieces {
                at += hole;
                push(&mut runs, Run { file: at, decoded, len });
                (at, decoded) = (at + len, decoded + len);
            }
            (runs, at + tail)
        })
    }

    proptest! {
        #[test]
        fn chunks_hold_each_byte_of_a_file_once((runs, size) in sparse(), bits in 0_u8..6) {
            let found = chunks(file(size, &runs), bits);
            let chunk_size = BLOCK << bits;
            let mut last = None;
            for (chunk, start, end, bytes) in &found {
                prop_assert!(start % chunk_size == 0 && *end == size.min(start + chunk_size) && last < Some(*start));
                last = Some(*start);
                let inside: Vec<_> = runs.iter().filter(|run| run.file < *end && run.file + run.len > *start).collect();
                prop_assert!(!inside.is_empty());
                if let Chunk::Layer(block) = chunk {
                    let run = inside[0];
                    prop_assert_eq!(u64::from(*block) * BLOCK, run.decoded + (start - run.file));
                    prop_assert!(run.file <= *start && run.file + run.len >= *end && *bytes == end - start);
                }
            }
            let all: u64 = found.iter().map(|(_, _, _, bytes)| bytes).sum();
            prop_assert_eq!(all, runs.iter().map(|run| run.len).sum::<u64>());
            let cut = file(size, &runs).cut(1 << 30).unwrap();
            prop_assert!(cut.count * (BLOCK << cut.bits) >= size);
        }
    }
}
