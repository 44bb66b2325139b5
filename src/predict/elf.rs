//! ELF: the parts of a program or library that the loader reads first, and the libraries it names.
//!
//! A loader waits for the first page of a program, then for its dynamic section, then for its symbols and relocations,
//! and then for the same of each library that it names. All this is described at the start of the file and in the
//! dynamic section. Only these parts are parsed here, of little-endian 64-bit files, and none is trusted: a malformed
//! file costs bytes, like any wrong prediction.

use std::ops::Range;

/// Offsets of the parts of a program file, in bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Program {
    /// The mapped segments, in order.
    segments: Vec<Segment>,
    /// The dynamic section; empty if it has none.
    pub dynamic: Range<u64>,
    /// Range of the loader's path.
    pub loader: Option<Range<u64>>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Segment {
    file: Range<u64>,
    address: u64,
    writable: bool,
    executable: bool,
}

/// Offsets of the names that a dynamic section refers to; each ends at the next zero.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// Names of libraries.
    pub needed: Vec<u64>,
    /// Library search directories, separated by colons.
    pub directories: Vec<u64>,
}

/// Magic number of ELF files.
pub const MAGIC: &[u8] = b"\x7fELF";
/// Bytes needed by [`Program::parse`].
pub const HEAD: usize = 4096;

impl Program {
    /// Parses the start of a file; `None` if it is not a program, or one for another kind of machine.
    pub fn parse(head: &[u8]) -> Option<Self> {
        // 64 bits, little-endian.
        if !head.starts_with(MAGIC) || head.get(4..6)? != [2, 1] {
            return None;
        }
        let (table, size, count) = (usize::try_from(u64_at(head, 32)?).ok()?, u16_at(head, 54)?, u16_at(head, 56)?);
        let mut program = Self::default();
        for number in 0..usize::from(count) {
            let at = table.checked_add(number * usize::from(size))?;
            // Headers beyond `head` are ignored.
            let Some(header) = head.get(at..).and_then(|rest| rest.get(..PROGRAM_HEADER)) else { break };
            let (kind, flags) = (u32_at(header, 0)?, u32_at(header, 4)?);
            let start = u64_at(header, 8)?;
            let file = start..start.checked_add(u64_at(header, 32)?)?;
            match kind {
                LOAD => program.segments.push(Segment {
                    file,
                    address: u64_at(header, 16)?,
                    writable: flags & WRITABLE != 0,
                    executable: flags & EXECUTABLE != 0,
                }),
                DYNAMIC => program.dynamic = file,
                INTERPRETER => program.loader = Some(file),
                _ => {}
            }
        }
        Some(program)
    }

    /// The parts that every loader reads: symbols and relocations before the code, and the start of writable segments.
    pub fn tables(&self) -> impl Iterator<Item = Range<u64>> {
        let symbols = self.segments.first().filter(|first| !first.executable).map(|first| &first.file);
        let symbols = symbols.map(|file| file.start..file.end.min(file.start.saturating_add(MOST_SYMBOLS)));
        let written = self.segments.iter().filter(|segment| segment.writable).map(|segment| &segment.file);
        let written = written.map(|file| file.start..file.end.min(file.start.saturating_add(FAULT)));
        symbols.into_iter().chain(written)
    }

    /// The names in `dynamic`, the bytes of the dynamic section.
    pub fn names(&self, dynamic: &[u8]) -> Names {
        let entry = |raw: &[u8]| Some((u64_at(raw, 0)?, u64_at(raw, 8)?));
        let entries = || dynamic.chunks_exact(16).map_while(entry).take_while(|(tag, _)| *tag != END);
        let strings = entries().find(|(tag, _)| *tag == STRINGS).and_then(|(_, address)| self.place_of(address));
        let Some(strings) = strings else { return Names::default() };
        let of = |wanted: &[u64]| {
            let offsets = entries().filter(|(tag, _)| wanted.contains(tag)).take(MOST_NAMES);
            offsets.filter_map(|(_, offset)| strings.checked_add(offset)).collect()
        };
        Names { needed: of(&[NEEDED]), directories: of(&[RPATH, RUNPATH]) }
    }

    /// The file offset of an address.
    fn place_of(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = address.checked_sub(segment.address)?;
            (inside < segment.file.end - segment.file.start).then_some(segment.file.start + inside)
        })
    }
}

fn u16_at(raw: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(raw.get(at..)?.get(..2)?.try_into().ok()?))
}

fn u32_at(raw: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(raw.get(at..)?.get(..4)?.try_into().ok()?))
}

fn u64_at(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(raw.get(at..)?.get(..8)?.try_into().ok()?))
}

const PROGRAM_HEADER: usize = 56;
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const EXECUTABLE: u32 = 1;
const WRITABLE: u32 = 2;
const END: u64 = 0;
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;
const RPATH: u64 = 15;
const RUNPATH: u64 = 29;
/// Limit for names of one kind.
const MOST_NAMES: usize = 256;
/// Limit for symbols and relocations that are prefetched, in bytes: larger tables are not read completely.
const MOST_SYMBOLS: u64 = 2 << 20;
/// Bytes that the kernel reads before and after a missing page of a mapped file.
pub(super) const FAULT: u64 = 256 << 10;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A header of kind, flags, offset, address and size.
    fn header(kind: u32, flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
        let mut raw = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
        for number in [offset, address, address, size, size, 4096] {
            raw.extend(number.to_le_bytes());
        }
        raw
    }

    fn file(headers: &[Vec<u8>]) -> Vec<u8> {
        let mut raw = [MAGIC, &[2, 1, 1]].concat();
        raw.resize(64, 0);
        raw[32] = 64;
        raw[54] = 56;
        raw[56] = u8::try_from(headers.len()).unwrap();
        raw.extend(headers.concat());
        raw
    }

    fn sample() -> Vec<u8> {
        file(&[
            header(INTERPRETER, 4, 0x300, 0x300, 28),
            header(LOAD, 4, 0, 0, 0x2000),
            header(LOAD, 5, 0x2000, 0x2000, 0x10_0000),
            header(LOAD, 6, 0x10_2000, 0x20_3000, 0x8000),
            header(DYNAMIC, 6, 0x10_9000, 0x20_a000, 0x1f0),
        ])
    }

    #[test]
    fn a_program_says_where_its_loader_looks() {
        let program = Program::parse(&sample()).unwrap();
        assert_eq!(program.dynamic, 0x10_9000..0x10_91f0);
        assert_eq!(program.loader, Some(0x300..0x31c));
        assert_eq!(program.tables().collect::<Vec<_>>(), [0..0x2000, 0x10_2000..0x10_a000]);
    }

    #[test]
    fn a_dynamic_section_names_libraries_and_directories() {
        let program = Program::parse(&sample()).unwrap();
        let entries: [(u64, u64); 7] =
            [(NEEDED, 1), (12, 7), (NEEDED, 40), (STRINGS, 0x1000), (RUNPATH, 90), (0, 0), (1, 2)];
        let dynamic: Vec<u8> =
            entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()).collect();
        let names = program.names(&dynamic);
        assert_eq!(names, Names { needed: vec![0x1001, 0x1028], directories: vec![0x105a] });
        assert_eq!(program.names(&dynamic[..40]), Names::default(), "it does not say where strings are");
    }

    #[test]
    fn truncated_or_malformed_programs_yield_little() {
        let whole = sample();
        assert_eq!(Program::parse(b"#!/bin/sh"), None);
        for length in 0..whole.len() {
            if let Some(program) = Program::parse(&whole[..length]) {
                assert!(program.segments.len() <= 3);
            }
        }
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] ^= 0xff;
            if let Some(program) = Program::parse(&wrong) {
                drop(program.tables().collect::<Vec<_>>());
                program.names(&[0xff; 64]);
            }
        }
    }
}
