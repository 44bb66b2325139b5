//! Siblings: files of one kind in one directory, of which others may be read when some are.
//!
//! A program that imports reads many files of one directory, in an order that nobody knows: its modules, libraries,
//! templates. How many of them, the directory itself tells: what was fetched there on the chance and then read earns
//! more of it, and what nobody reads uses it up. Here is only the bookkeeping.

use std::collections::{HashMap, HashSet};

use crate::layer::EntryId;

/// What was guessed in the directories of one layer.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    families: HashMap<Group, Record>,
    /// Spans that were fetched on the chance and not read yet, with their bytes.
    open: HashMap<u32, (Group, u64)>,
    /// Files that were read.
    read: HashSet<EntryId>,
}

/// The files of one kind in one directory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Group {
    pub(super) directory: EntryId,
    pub(super) kind: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Record {
    files: u32,
    /// Bytes of the blob that were fetched on the chance: those that were read since, and those that were not.
    good: u64,
    open: u64,
}

impl Siblings {
    /// A file is read: how many bytes of the blob may be fetched of others of its family, 0 when it was read before.
    pub(super) fn opened(&mut self, file: EntryId, group: &Group) -> u64 {
        if self.read.len() >= MOST_FILES || !self.read.insert(file) {
            return 0;
        }
        let record = self.families.entry(group.clone()).or_default();
        record.files += 1;
        if record.files < SOME { 0 } else { (FIRST + GAIN * record.good).saturating_sub(record.open) }
    }

    /// A span is fetched because of a family.
    pub(super) fn speculated(&mut self, group: &Group, span: u32, bytes: u64) {
        if let Some(record) = self.families.get_mut(group)
            && self.open.insert(span, (group.clone(), bytes)).is_none()
        {
            record.open += bytes;
        }
    }

    /// A span is read.
    pub(super) fn touched(&mut self, span: u32) {
        if let Some((group, bytes)) = self.open.remove(&span)
            && let Some(record) = self.families.get_mut(&group)
        {
            record.open = record.open.saturating_sub(bytes);
            record.good += bytes;
        }
    }
}

/// Of which kind a file is, by its name: what stands behind the last dot, but for numbers of versions.
pub(super) fn kind(name: &[u8]) -> &[u8] {
    let mut parts = name.split(|byte| *byte == b'.').rev();
    let last = parts.find(|part| !part.iter().all(u8::is_ascii_digit)).unwrap_or_default();
    // The first part is the name itself.
    if parts.next().is_some() { last } else { b"" }
}

/// From so many files of a family on others are guessed.
const SOME: u32 = 2;
/// Bytes of the blob that are guessed of a family of which nothing else is known: a few spans.
const FIRST: u64 = 512 << 10;
/// Bytes that may be wrong for each that was right.
const GAIN: u64 = 2;
/// Files that are remembered of a layer; what reads more of them is no start.
const MOST_FILES: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: &[u8]) -> Group {
        Group { directory: EntryId(7), kind: kind.into() }
    }

    #[test]
    fn a_kind_is_what_stands_behind_the_name() {
        for (name, expected) in [
            ("a.py", "py"),
            ("a.cpython-311.pyc", "pyc"),
            ("libc.so.6", "so"),
            ("libz.so.1.2.13", "so"),
            ("python3.11", ""),
            ("README", ""),
            (".profile", "profile"),
            ("", ""),
            ("1.2", ""),
        ] {
            assert_eq!(kind(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn the_second_file_of_a_family_lets_a_few_others_be_guessed() {
        let mut siblings = Siblings::default();
        assert_eq!(siblings.opened(EntryId(1), &group(b"js")), 0);
        assert_eq!(siblings.opened(EntryId(2), &group(b"ts")), 0, "of another kind");
        assert_eq!(siblings.opened(EntryId(1), &group(b"js")), 0, "the same one");
        assert_eq!(siblings.opened(EntryId(3), &group(b"js")), FIRST);
    }

    #[test]
    fn right_guesses_earn_more_and_wrong_ones_use_it_up() {
        let (mut siblings, group) = (Siblings::default(), group(b"js"));
        siblings.opened(EntryId(1), &group);
        siblings.speculated(&group, 5, FIRST);
        siblings.speculated(&group, 5, FIRST);
        assert_eq!(siblings.opened(EntryId(2), &group), 0, "nothing of it was read yet");
        siblings.touched(5);
        siblings.touched(5);
        assert_eq!(siblings.opened(EntryId(3), &group), FIRST + GAIN * FIRST);
    }
}
