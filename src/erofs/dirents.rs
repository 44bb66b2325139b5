//! Directories: sorted names in blocks, for a binary search.
//!
//! A block has a table of entries followed by their names; no name crosses blocks. `.` and `..` are names like any
//! others.

use std::ops::Range;

use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U16, U64};

use super::format::{BLOCK, Dirent, name_type};
use crate::layer::Kind;

/// The names of a directory being written, without `.` and `..`.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// All names, concatenated.
    bytes: Vec<u8>,
    pub(super) entries: Vec<Named>,
    sorted: bool,
}

/// One name.
#[derive(Debug)]
pub(super) struct Named {
    name: Range<u32>,
    pub(super) kind: Kind,
    /// The number of its inode, once it has one.
    pub(super) inode: u64,
}

/// The layout of a directory's names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    /// The number of names in each block.
    blocks: Vec<u16>,
    /// Bytes used in the last block.
    pub(super) last: usize,
}

impl Shape {
    /// Bytes of the directory.
    pub(super) fn size(&self) -> u64 {
        (self.blocks.len() as u64 - 1) * BLOCK + self.last as u64
    }

    /// Blocks that are full, or count as full.
    pub(super) fn blocks_before_last(&self) -> u64 {
        self.blocks.len() as u64 - 1
    }
}

impl Names {
    pub(super) fn push(&mut self, name: &[u8], kind: Kind) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.entries.push(Named { name: start..self.bytes.len() as u32, kind, inode: 0 });
    }

    /// Total bytes of the names; a directory must have fewer than 4 GiB.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Sorts the names, including `.` and `..` with the inodes `own` and `parent`.
    pub(super) fn sort(&mut self) {
        debug_assert!(!self.sorted);
        self.push(b".", Kind::Directory);
        self.push(b"..", Kind::Directory);
        let bytes = &self.bytes;
        self.entries.sort_unstable_by(|a, b| name_of(bytes, a).cmp(name_of(bytes, b)));
        self.sorted = true;
    }

    /// Sets the inodes of `.` and `..`.
    pub(super) fn set_dots(&mut self, own: u64, parent: u64) {
        for (name, inode) in [(&b"."[..], own), (b"..", parent)] {
            let found = self.entries.binary_search_by(|entry| name_of(&self.bytes, entry).cmp(name));
            if let Ok(at) = found {
                self.entries[at].inode = inode;
            }
        }
    }

    /// Whether a name is `.` or `..`.
    pub(super) fn is_dot(&self, named: &Named) -> bool {
        matches!(name_of(&self.bytes, named), b"." | b"..")
    }

    /// Lays out the sorted names.
    pub(super) fn shape(&self) -> Shape {
        let (mut blocks, mut used, mut names) = (Vec::new(), 0, 0_u16);
        for entry in &self.entries {
            let takes = DIRENT + entry.name.len();
            if used + takes > BLOCK as usize {
                blocks.push(names);
                (used, names) = (0, 0);
            }
            used += takes;
            names += 1;
        }
        blocks.push(names);
        Shape { blocks, last: used }
    }

    /// The directory's bytes; the last block is cut where its names end.
    pub(super) fn encode(&self, shape: &Shape) -> Vec<u8> {
        let mut out = Vec::with_capacity(shape.size() as usize);
        let mut rest = &self.entries[..];
        for &count in &shape.blocks {
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
            let (here, behind) = rest.split_at(usize::from(count));
            rest = behind;
            let mut name_at = DIRENT * here.len();
            for entry in here {
                let dirent = Dirent {
                    inode: U64::new(entry.inode),
                    name_at: U16::new(name_at as u16),
                    kind: name_type(entry.kind),
                    rest: 0,
                };
                out.extend_from_slice(dirent.as_bytes());
                name_at += entry.name.len();
            }
            here.iter().for_each(|entry| out.extend_from_slice(name_of(&self.bytes, entry)));
        }
        out
    }
}

fn name_of<'a>(bytes: &'a [u8], entry: &Named) -> &'a [u8] {
    &bytes[entry.name.start as usize..entry.name.end as usize]
}

const DIRENT: usize = size_of::<Dirent>();

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads blocks as the kernel does: a name ends where the next starts, or at zeros.
    fn decode(bytes: &[u8]) -> Vec<(Vec<u8>, u64)> {
        let mut found = Vec::new();
        for block in bytes.chunks(BLOCK as usize) {
            let at = |entry: usize| usize::from(u16::from_le_bytes([block[entry * 12 + 8], block[entry * 12 + 9]]));
            let count = at(0) / 12;
            for entry in 0..count {
                let name = &block[at(entry)..if entry + 1 < count { at(entry + 1) } else { block.len() }];
                let name = name.split(|byte| *byte == 0).next().unwrap().to_vec();
                found.push((name, u64::from_le_bytes(block[entry * 12..][..8].try_into().unwrap())));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn names_are_sorted_and_read_back(
            names in proptest::collection::btree_set(proptest::collection::vec(1_u8.., 1..=255), 0..60),
        ) {
            let mut wanted: Vec<Vec<u8>> = names.into_iter().filter(|name| name != b"." && name != b"..").collect();
            let mut all = Names::default();
            wanted.iter().rev().for_each(|name| all.push(name, Kind::File));
            all.sort();
            all.entries.iter_mut().for_each(|entry| entry.inode = 5);
            all.set_dots(7, 8);
            let shape = all.shape();
            let bytes = all.encode(&shape);
            prop_assert_eq!(bytes.len() as u64, shape.size());
            wanted.extend([b".".to_vec(), b"..".to_vec()]);
            wanted.sort();
            let number = |name: &[u8]| match name { b"." => 7, b".." => 8, _ => 5 };
            let wanted: Vec<_> = wanted.into_iter().map(|name| (name.clone(), number(&name))).collect();
            prop_assert_eq!(decode(&bytes), wanted);
        }
    }

    #[test]
    fn an_empty_directory_has_its_dots() {
        let mut none = Names::default();
        none.sort();
        none.set_dots(1, 2);
        let shape = none.shape();
        assert_eq!((shape.size(), shape.blocks_before_last()), (27, 0));
        assert_eq!(decode(&none.encode(&shape)), [(b".".to_vec(), 1), (b"..".to_vec(), 2)]);
    }
}
