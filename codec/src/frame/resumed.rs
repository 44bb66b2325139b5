//! Resumed: decodes the blocks of a frame from a checkpoint on.

use super::block::{Carried, Literals, Sequence};
use super::checkpoint::{Checkpoint, Run};
use super::huffman::Codes;
use super::{BLOCK, Unreadable};

/// The decoder of a frame from one of its checkpoints on, up to the next one.
pub(crate) struct Resumed {
    carried: Carried,
    /// The carried Huffman codes, once they are needed.
    codes: Option<Codes>,
    before: Before,
    output: Output,
    literals: Vec<u8>,
    /// How far matches reach back, at most.
    window: usize,
}

/// The bytes before the checkpoint that are copied from.
struct Before {
    reach: u32,
    runs: Vec<Run>,
    /// Where the bytes of each run begin.
    places: Vec<usize>,
    bytes: Vec<u8>,
}

/// The bytes from the checkpoint on, without the first `dropped`.
struct Output {
    /// With [`SLACK`] bytes behind `end`, which have no meaning.
    bytes: Vec<u8>,
    end: usize,
    dropped: u64,
    /// What was taken.
    taken: usize,
}

impl Resumed {
    /// A decoder at a checkpoint; matches reach at most `window` bytes back.
    pub(crate) fn new(checkpoint: &Checkpoint, window: u64) -> Result<Self, Unreadable> {
        let Checkpoint { state, reach, runs, bytes, .. } = checkpoint;
        let places = runs.iter().scan(0, |end, run| {
            let place = *end;
            *end += run.length as usize;
            Some(place)
        });
        let before = Before { reach: *reach, places: places.collect(), runs: runs.clone(), bytes: bytes.clone() };
        Ok(Self {
            carried: state.to_carried()?,
            codes: None,
            before,
            output: Output { bytes: Vec::new(), end: 0, dropped: 0, taken: 0 },
            literals: Vec::new(),
            window: usize::try_from(window).unwrap_or(usize::MAX / 4),
        })
    }

    /// Decodes a block that is stored.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.output.begin(bytes.len(), self.window);
        self.output.literals(bytes);
    }

    /// Decodes a block of one byte, `length` times.
    pub(crate) fn repeated(&mut self, byte: u8, length: usize) {
        self.output.begin(length, self.window);
        let end = self.output.end;
        self.output.bytes[end..end + length].fill(byte);
        self.output.end += length;
    }

    /// Decodes a compressed block.
    pub(crate) fn compressed(&mut self, block: &[u8]) -> Result<(), Unreadable> {
        let parsed = self.carried.block(block)?;
        self.output.begin(BLOCK, self.window);
        self.literals.clear();
        self.literals.resize(parsed.literals.len() + SLACK, 0);
        let length = parsed.literals.len();
        match parsed.literals {
            Literals::Raw(bytes) => self.literals[..length].copy_from_slice(bytes),
            Literals::Repeated(byte, _) => self.literals[..length].fill(byte),
            Literals::Coded { streams, four, .. } => {
                let codes = match &self.codes {
                    Some(codes) if codes.are(&self.carried.huffman) => codes,
                    _ => self.codes.insert(Codes::read(&self.carried.huffman)?),
                };
                let literals = &mut self.literals[..length];
                if four { codes.four(streams, literals)? } else { codes.one(streams, literals)? }
            }
        }
        let (before, output, literals) = (&self.before, &mut self.output, &self.literals[..]);
        let room = output.end + BLOCK;
        let mut at = 0;
        let mut failed = None;
        self.carried.sequences(&parsed, |sequence| {
            if failed.is_none() {
                failed = execute(sequence, &mut at, literals, before, output, room).err();
            }
        })?;
        if let Some(failed) = failed {
            return Err(failed);
        }
        let rest = &literals[at..length];
        if rest.len() > room - output.end {
            return Err(TOO_LONG);
        }
        output.literals(rest);
        Ok(())
    }

    /// Moves decoded bytes to `room`, as many as it has room for; returns their number.
    pub(crate) fn take(&mut self, room: &mut [u8]) -> usize {
        let Output { bytes, end, taken, .. } = &mut self.output;
        let length = room.len().min(*end - *taken);
        room[..length].copy_from_slice(&bytes[*taken..*taken + length]);
        *taken += length;
        length
    }

    /// Whether all decoded bytes were taken.
    pub(crate) fn is_taken(&self) -> bool {
        self.output.taken == self.output.end
    }
}

#[inline(always)]
fn execute(
    Sequence { literals: count, length, offset }: Sequence,
    at: &mut usize,
    literals: &[u8],
    before: &Before,
    output: &mut Output,
    room: usize,
) -> Result<(), Unreadable> {
    let (count, length, offset) = (count as usize, length as usize, offset as usize);
    if count > literals.len() - SLACK - *at || count + length > room - output.end {
        return Err(TOO_LONG);
    }
    output.some_literals(&literals[*at..], count);
    *at += count;
    let mut length = length;
    if offset == 0 {
        return Err(Unreadable("a match without an offset"));
    }
    if offset > output.end {
        let known = output.dropped as usize + output.end;
        let back =
            offset.checked_sub(known).filter(|_| output.dropped == 0).ok_or(Unreadable("a match beyond the window"))?;
        let copied = length.min(back);
        output.literals(before.bytes(back, copied)?);
        length -= copied;
    }
    if length > 0 {
        output.copy(offset, length);
    }
    Ok(())
}

impl Before {
    /// Bytes from this distance before the checkpoint.
    fn bytes(&self, back: usize, length: usize) -> Result<&[u8], Unreadable> {
        let missing = Unreadable("a match of bytes that were not kept");
        let start = (self.reach as usize).checked_sub(back).ok_or(missing)?;
        let number = self.runs.partition_point(|run| run.start as usize <= start).checked_sub(1).ok_or(missing)?;
        let (run, place) = (self.runs[number], self.places[number]);
        let within = start - run.start as usize;
        if within + length > run.length as usize {
            return Err(missing);
        }
        self.bytes.get(place + within..place + within + length).ok_or(missing)
    }
}

impl Output {
    /// Makes room for `length` bytes more, and drops taken ones beyond the window.
    fn begin(&mut self, length: usize, window: usize) {
        let kept = window.max(LEAST_KEPT);
        if self.taken > 2 * kept {
            let drop = self.taken - kept;
            self.bytes.copy_within(drop..self.end, 0);
            (self.end, self.taken, self.dropped) = (self.end - drop, self.taken - drop, self.dropped + drop as u64);
        }
        let needed = self.end + length + SLACK;
        if self.bytes.len() < needed {
            self.bytes.resize(needed.max(self.bytes.len() * 3 / 2), 0);
        }
    }

    /// Appends these bytes, for which there is room.
    fn literals(&mut self, bytes: &[u8]) {
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// As [`Output::literals`], of the first bytes, with [`SLACK`] bytes behind them.
    #[inline(always)]
    fn some_literals(&mut self, bytes: &[u8], count: usize) {
        if count <= WORD
            && let (Some(from), Some(to)) =
                (bytes.first_chunk::<WORD>(), self.bytes[self.end..].first_chunk_mut::<WORD>())
        {
            *to = *from;
            self.end += count;
        } else {
            self.literals(&bytes[..count]);
        }
    }

    /// Appends `length` bytes, for which there is room, from `offset` bytes back on; these may overlap.
    #[inline(always)]
    fn copy(&mut self, offset: usize, length: usize) {
        let (from, end) = (self.end - offset, self.end);
        self.end += length;
        if offset >= WORD && length <= WORD {
            if let Some(word) = self.bytes[from..].first_chunk::<WORD>().copied()
                && let Some(to) = self.bytes[end..].first_chunk_mut::<WORD>()
            {
                *to = word;
            }
        } else if offset >= length {
            self.bytes.copy_within(from..from + length, end);
        } else {
            // Each round copies what the rounds before have made.
            let mut done = 0;
            while done < length {
                let now = (offset + done).min(length - done);
                self.bytes.copy_within(from..from + now, end + done);
                done += now;
            }
        }
    }
}

/// Bytes behind the end of literals and output that may be read and written.
const SLACK: usize = 32;
/// Short copies are of this many bytes.
const WORD: usize = 16;
/// Output that is kept even if the window is smaller.
const LEAST_KEPT: usize = 1 << 20;
const TOO_LONG: Unreadable = Unreadable("a block of too many bytes");
