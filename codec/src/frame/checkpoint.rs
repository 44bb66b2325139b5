//! Checkpoints: the state between two blocks of a frame, and how it is stored.

use super::Unreadable;
use super::block::{Carried, Described, LITERAL_LENGTHS, MATCH_LENGTHS, OFFSETS, Table};

/// The state between two blocks of a frame, with the bytes before that blocks up to the next checkpoint copy from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Checkpoint {
    /// Whether four bytes of checksum follow the frame's last block.
    pub(super) checksum: bool,
    pub(super) state: State,
    /// Distance of the first byte that is copied from.
    pub(super) reach: u32,
    /// The bytes that are copied from, in order.
    pub(super) runs: Vec<Run>,
    pub(super) bytes: Vec<u8>,
}

/// Tables as they are described, and offsets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct State {
    huffman: Vec<u8>,
    tables: [Described; 3],
    repeats: [u32; 3],
}

/// Some bytes in a row, from this many bytes behind the first one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Run {
    pub(super) start: u32,
    pub(super) length: u32,
}

impl State {
    pub(super) fn of(carried: &Carried) -> Self {
        let tables = [&carried.literal_lengths, &carried.offsets, &carried.match_lengths];
        Self {
            huffman: carried.huffman.clone(),
            tables: tables.map(|table| table.described.clone()),
            repeats: carried.repeats,
        }
    }

    pub(super) fn to_carried(&self) -> Result<Carried, Unreadable> {
        let [literal_lengths, offsets, match_lengths] = self.tables.clone();
        Ok(Carried {
            huffman: self.huffman.clone(),
            literal_lengths: Table::new(&LITERAL_LENGTHS, literal_lengths)?,
            offsets: Table::new(&OFFSETS, offsets)?,
            match_lengths: Table::new(&MATCH_LENGTHS, match_lengths)?,
            repeats: self.repeats,
        })
    }
}

impl Checkpoint {
    /// Whether the frame ends with a checksum.
    pub(crate) fn has_checksum(&self) -> bool {
        self.checksum
    }

    /// The bytes of which the stored form is made; `docs/formats.md` has the layout.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.checksum)];
        let State { huffman, tables, repeats } = &self.state;
        repeats.iter().for_each(|repeat| put(&mut out, *repeat));
        put(&mut out, huffman.len() as u32);
        out.extend_from_slice(huffman);
        for table in tables {
            let (kind, bytes) = match table {
                Described::Predefined => (0, &[][..]),
                Described::One(code) => (1, std::slice::from_ref(code)),
                Described::Shares(bytes) => (2, &bytes[..]),
            };
            out.push(kind);
            put(&mut out, bytes.len() as u32);
            out.extend_from_slice(bytes);
        }
        put(&mut out, self.reach);
        put(&mut out, self.runs.len() as u32);
        let mut end = 0;
        for run in &self.runs {
            put(&mut out, run.start - end);
            end = run.start + run.length;
        }
        self.runs.iter().for_each(|run| put(&mut out, run.length));
        out.extend_from_slice(&self.bytes);
        out
    }

    /// Parses the output of [`Checkpoint::to_bytes`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let checksum = match take(&mut rest, 1)?[0] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let repeats = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let huffman = counted(&mut rest)?;
        let tables = [table(&mut rest)?, table(&mut rest)?, table(&mut rest)?];
        let (reach, count) = (number(&mut rest)?, number(&mut rest)? as usize);
        // Each run has two numbers.
        if count > rest.len() / 2 {
            return None;
        }
        let gaps: Vec<u32> = (0..count).map(|_| number(&mut rest)).collect::<Option<_>>()?;
        let (mut end, mut total) = (0_u32, 0_usize);
        let runs = gaps.into_iter().map(|gap| {
            let run = Run { start: end.checked_add(gap)?, length: number(&mut rest)? };
            end = run.start.checked_add(run.length).filter(|end| *end <= reach && run.length > 0)?;
            total += run.length as usize;
            Some(run)
        });
        let runs: Vec<Run> = runs.collect::<Option<_>>()?;
        let is_whole = rest.len() == total;
        let state = State { huffman, tables, repeats };
        is_whole.then(|| Self { checksum, state, reach, runs, bytes: rest.to_vec() })
    }
}

/// Appends a number, seven bits a byte, low ones first; all bytes but the last have the high bit.
fn put(out: &mut Vec<u8>, mut number: u32) {
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let mut number = 0_u64;
    for shift in (0..35).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return number.try_into().ok();
        }
    }
    None
}

fn counted(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = number(rest)?;
    Some(take(rest, length as usize)?.to_vec())
}

fn table(rest: &mut &[u8]) -> Option<Described> {
    let kind = take(rest, 1)?[0];
    let bytes = counted(rest)?;
    match (kind, &bytes[..]) {
        (0, []) => Some(Described::Predefined),
        (1, [code]) => Some(Described::One(*code)),
        (2, _) => Some(Described::Shares(bytes)),
        _ => None,
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, later) = rest.split_at_checked(length)?;
    *rest = later;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_survives_being_stored() {
        let tables = [Described::Predefined, Described::One(7), Described::Shares(vec![0x10, 0xff, 3])];
        let state = State { huffman: vec![200; 100], tables, repeats: [1, 300, u32::MAX] };
        let runs =
            vec![Run { start: 0, length: 5 }, Run { start: 1_000_000, length: 3 }, Run { start: 1_000_005, length: 2 }];
        let checkpoint = Checkpoint { checksum: true, state, reach: 8 << 20, runs, bytes: b"0123456789".to_vec() };
        let bytes = checkpoint.to_bytes();
        assert_eq!(Checkpoint::from_bytes(&bytes), Some(checkpoint.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(Checkpoint::from_bytes(&bytes[..cut]), None, "cut at {cut}");
        }
        let short = Checkpoint { reach: 1_000_006, ..checkpoint };
        assert_eq!(Checkpoint::from_bytes(&short.to_bytes()), None, "a run beyond the checkpoint");
    }
}
