//! Recorder: reads the blocks of a frame beside libzstd, and keeps what decoding from their middle needs.

use super::Unreadable;
use super::block::Carried;
use super::checkpoint::{Checkpoint, Run, State};
use super::copies::{Copied, Copies};
use crate::offsets::DecodedOffset;

/// Follows a frame block by block.
pub(crate) struct Recorder {
    blocks: Blocks,
    checksum: bool,
    /// The last checkpoint, whose bytes are being collected.
    open: Option<(DecodedOffset, State)>,
    /// Copies from before the checkpoint to bytes that are not in the output yet.
    copies: Copies,
    window: Window,
}

/// The compressed blocks so far. Most frames are too short for checkpoints, so none is read before the first checkpoint.
enum Blocks {
    /// The length of each, in four bytes, and its bytes.
    Unread(Vec<u8>),
    Read(Carried),
}

/// The bytes before a checkpoint, as far as they were copied from.
struct Window {
    size: usize,
    /// End at the checkpoint; none before the first one.
    bytes: Vec<u8>,
    /// Which of them were copied from.
    used: Vec<u64>,
    /// The first word of `used` that may be other than 0.
    first: usize,
    count: usize,
}

impl Recorder {
    /// A recorder at the beginning of a frame whose matches reach at most `window` bytes back.
    pub(crate) fn new(window: u64, checksum: bool) -> Self {
        let size = (window.min(LARGEST) as usize).next_multiple_of(64);
        Self {
            blocks: Blocks::Unread(Vec::new()),
            checksum,
            open: None,
            copies: Copies::default(),
            window: Window { size, bytes: Vec::new(), used: Vec::new(), first: size / 64, count: 0 },
        }
    }

    /// Reads a compressed block whose output will begin at `at`, before any of it is there; returns its length, if it was
    /// read already.
    pub(crate) fn read(&mut self, block: &[u8], at: DecodedOffset) -> Result<Option<u64>, Unreadable> {
        let carried = match &mut self.blocks {
            Blocks::Unread(blocks) => {
                blocks.extend_from_slice(&(block.len() as u32).to_le_bytes());
                blocks.extend_from_slice(block);
                return Ok(None);
            }
            Blocks::Read(carried) => carried,
        };
        let block = carried.block(block)?;
        let begin = match &self.open {
            None => EVERYTHING,
            Some((checkpoint, _)) => {
                u32::try_from(at - *checkpoint).map_err(|_| Unreadable("a checkpoint too far back"))?
            }
        };
        self.copies.of_block(carried, &block, begin).map(Some)
    }

    /// Takes the copies that are in the output by now, of which `decoded`, from `start` on, is at hand.
    pub(crate) fn collect(&mut self, start: DecodedOffset, decoded: &[u8]) -> Result<(), Unreadable> {
        let Some((checkpoint, _)) = &self.open else { return Ok(()) };
        while let Some(copy) = self.copies.first() {
            let at = *checkpoint + u64::from(copy.at);
            let from = at.0.checked_sub(start.0).ok_or(Unreadable("output that was taken"))? as usize;
            let Some(bytes) = decoded.get(from..).filter(|bytes| !bytes.is_empty()) else { break };
            let bytes = &bytes[..bytes.len().min(copy.length as usize)];
            self.window.note(copy.back, bytes)?;
            let taken = bytes.len() as u32;
            if taken < copy.length {
                *copy = Copied { at: copy.at + taken, back: copy.back - taken, length: copy.length - taken };
                break;
            }
            self.copies.drop_first();
        }
        Ok(())
    }

    /// Begins a checkpoint at the end of the blocks read so far, whose output must be collected.
    pub(crate) fn begin(&mut self, at: DecodedOffset) -> Result<(), Unreadable> {
        if let Blocks::Unread(blocks) = &mut self.blocks {
            let blocks = std::mem::take(blocks);
            self.blocks = Blocks::Read(Carried::default());
            let mut rest = &blocks[..];
            while let Some((length, later)) = rest.split_first_chunk::<4>() {
                let (block, later) = later.split_at(u32::from_le_bytes(*length) as usize);
                self.read(block, at)?;
                rest = later;
            }
        }
        let Blocks::Read(carried) = &self.blocks else { return Ok(()) };
        self.copies.clear();
        self.window.clear();
        self.open = Some((at, State::of(carried)));
        Ok(())
    }

    /// Ends the open checkpoint, if any: no block from here on belongs to it.
    pub(crate) fn end(&mut self) -> Option<(DecodedOffset, Checkpoint)> {
        let (at, state) = self.open.take()?;
        let (reach, runs, bytes) = self.window.taken();
        Some((at, Checkpoint { checksum: self.checksum, state, reach, runs, bytes }))
    }

    /// The bytes collected for the open checkpoint.
    pub(crate) fn collected(&self) -> u64 {
        self.window.count as u64
    }
}

impl Window {
    fn clear(&mut self) {
        if self.bytes.is_empty() {
            // Zeroed by the kernel, so only what is written takes memory.
            self.bytes = vec![0; self.size];
            self.used = vec![0; self.size / 64];
        }
        self.used[self.first..].fill(0);
        (self.first, self.count) = (self.used.len(), 0);
    }

    fn note(&mut self, back: u32, bytes: &[u8]) -> Result<(), Unreadable> {
        let mut start = self.size.checked_sub(back as usize).ok_or(Unreadable("a match beyond the window"))?;
        let end = start + bytes.len();
        self.bytes.get_mut(start..end).ok_or(Unreadable("a match beyond the checkpoint"))?.copy_from_slice(bytes);
        self.first = self.first.min(start / 64);
        while start < end {
            let bits = (64 - start % 64).min(end - start);
            let (mask, word) = ((u64::MAX >> (64 - bits)) << (start % 64), &mut self.used[start / 64]);
            self.count += (mask & !*word).count_ones() as usize;
            *word |= mask;
            start += bits;
        }
        Ok(())
    }

    /// The distance of the first used byte from the end, and the used bytes.
    fn taken(&self) -> (u32, Vec<Run>, Vec<u8>) {
        let mut runs: Vec<Run> = Vec::new();
        let mut bytes = Vec::with_capacity(self.count);
        let mut origin = None;
        for (at, &used) in (0_usize..).step_by(64).zip(&self.used).skip(self.first) {
            let mut used = used;
            while used != 0 {
                let skipped = used.trailing_zeros();
                let length = (used >> skipped).trailing_ones();
                let from = at + skipped as usize;
                let start = (from - *origin.get_or_insert(from)) as u32;
                match runs.last_mut() {
                    Some(run) if run.start + run.length == start => run.length += length,
                    _ => runs.push(Run { start, length }),
                }
                bytes.extend_from_slice(&self.bytes[from..from + length as usize]);
                used &= u64::MAX.checked_shl(skipped + length).unwrap_or(0);
            }
        }
        (origin.map_or(0, |origin| (self.size - origin) as u32), runs, bytes)
    }
}

/// So far behind a checkpoint that nothing is copied from before it.
const EVERYTHING: u32 = u32::MAX - (1 << 20);
/// Windows beyond are of no use: libzstd does not decode them either ([`Limits`](crate::Limits)).
const LARGEST: u64 = 1 << 31;
