//! Siblings: after a program reads two files with one suffix in a directory, more of them are fetched.
//!
//! A program that imports reads many files of one directory (modules, libraries, templates) in an order that cannot be
//! known. How many, the directory itself shows: siblings that lie near the file in the tar are fetched, 512 KiB at
//! first, then twice what was right so far, less what has not been read yet. So a directory in which predictions come
//! true gets more of them, and one in which they do not stops costing.
//!
//! Reading names takes a moment, so it is done apart from the state that readers share: [`Siblings::opened`] says how
//! much may be fetched, [`Group::choose`] finds it, and [`Siblings::chosen`] takes note.

use std::collections::{HashMap, HashSet};

use super::event::{Priority, Urgency, Wish};
use super::layout::Layout as _;
use crate::layer::{EntryId, IndexError, Kind, LayerIndex};
use crate::span::{SpanId, SpanRange};

/// What was fetched on speculation in the directories of one layer, and whether it was right.
#[derive(Debug, Default)]
pub struct Siblings {
    groups: HashMap<Group, Record>,
    /// Spans that were fetched on speculation and not read yet, with their bytes.
    open: HashMap<SpanId, (Group, u64)>,
    /// Files that were read.
    read: HashSet<EntryId>,
}

/// The files with one suffix in one directory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Group {
    directory: EntryId,
    suffix: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Record {
    files: u32,
    /// Bytes of the blob that were fetched on speculation: those that were read since, and those that were not.
    right: u64,
    open: u64,
}

impl Siblings {
    /// A file is read from its beginning: how many bytes of the blob may be fetched of others of its group. 0 where it
    /// was read before.
    pub fn opened(&mut self, file: EntryId, group: &Group) -> u64 {
        if self.read.len() >= MOST_FILES || !self.read.insert(file) {
            return 0;
        }
        let record = self.groups.entry(group.clone()).or_default();
        record.files += 1;
        if record.files < SOME { 0 } else { (FIRST + GAIN * record.right).saturating_sub(record.open) }
    }

    /// These spans, with their bytes in the blob, are fetched because of a group.
    pub fn chosen(&mut self, group: &Group, spans: &[(SpanId, u64)]) {
        let Some(record) = self.groups.get_mut(group) else { return };
        for (span, bytes) in spans {
            if self.open.insert(*span, (group.clone(), *bytes)).is_none() {
                record.open += bytes;
            }
        }
    }

    /// A span is read.
    pub fn read(&mut self, span: SpanId) {
        if let Some((group, bytes)) = self.open.remove(&span)
            && let Some(record) = self.groups.get_mut(&group)
        {
            record.open = record.open.saturating_sub(bytes);
            record.right += bytes;
        }
    }
}

impl Group {
    /// That of a file; `None` for what is no file.
    ///
    /// # Errors
    /// The index is damaged.
    pub fn of(index: &LayerIndex, id: EntryId) -> Result<Option<Self>, IndexError> {
        let entry = index.entry(id)?;
        if entry.kind() != Kind::File {
            return Ok(None);
        }
        Ok(Some(Self { directory: entry.parent(), suffix: suffix(index.name(id)?).into() }))
    }

    /// Spans of `file`'s siblings that `is_missing` says are, nearest first, with their bytes in the blob: up to
    /// `allowance` bytes.
    ///
    /// # Errors
    /// The index is damaged.
    pub fn choose(
        &self,
        index: &LayerIndex,
        file: EntryId,
        mut allowance: u64,
        is_missing: impl Fn(SpanId) -> bool,
    ) -> Result<Vec<(SpanId, u64)>, IndexError> {
        let mut chosen: Vec<(SpanId, u64)> = Vec::new();
        // Entries are numbered as they stand in the tar.
        let mut others = [0; 2];
        for step in 1..=FURTHEST {
            for (side, id) in [file.0.checked_sub(step), file.0.checked_add(step)].into_iter().enumerate() {
                let Some(id) = id.filter(|id| *id < index.len() && others[side] < OTHERS).map(EntryId) else {
                    continue;
                };
                if Self::of(index, id)?.as_ref() != Some(self) {
                    others[side] += 1;
                    continue;
                }
                others[side] = 0;
                let entry = index.entry(id)?;
                let Some(data) = entry.data().filter(|_| entry.size() > 0) else { continue };
                for span in index.spans_of(data..data + entry.size())?.iter() {
                    if chosen.iter().any(|(known, _)| *known == span) || !is_missing(span) {
                        continue;
                    }
                    let bytes = index.blob_bytes(SpanRange::one(span))?;
                    if bytes > allowance || chosen.len() == AT_ONCE {
                        return Ok(chosen);
                    }
                    allowance -= bytes;
                    chosen.push((span, bytes));
                }
            }
            if others == [OTHERS; 2] {
                break;
            }
        }
        Ok(chosen)
    }
}

/// Wishes for what was chosen, in the order of the tar.
pub fn wishes(chosen: &[(SpanId, u64)]) -> Vec<Wish> {
    let mut spans: Vec<_> = chosen.iter().map(|(span, _)| *span).collect();
    spans.sort_unstable();
    SpanRange::join(spans)
        .into_iter()
        .map(|spans| Wish { spans, urgency: Urgency::Speculation(Priority::Low) })
        .collect()
}

/// What stands behind the last dot of a name, but for numbers of versions.
fn suffix(name: &[u8]) -> &[u8] {
    let mut parts = name.split(|byte| *byte == b'.').rev();
    let last = parts.find(|part| !part.iter().all(u8::is_ascii_digit)).unwrap_or_default();
    // The first part is the name itself.
    if parts.next().is_some() { last } else { b"" }
}

/// Others of a group are fetched from its second file on.
const SOME: u32 = 2;
/// Bytes of the blob that are fetched of a group of which nothing else is known: a few spans.
const FIRST: u64 = 512 << 10;
/// Bytes that may be wrong for each that was right.
const GAIN: u64 = 2;
/// Files that are remembered of a layer; a program that reads more of them is not starting.
const MOST_FILES: usize = 1 << 14;
/// Entries that are looked at on either side of a file.
const FURTHEST: u32 = 256;
/// This many entries in a row that are not of the group are the end of its directory.
const OTHERS: u32 = 32;
/// Spans that are fetched because of one file.
const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn group(suffix: &[u8]) -> Group {
        Group { directory: EntryId(7), suffix: suffix.into() }
    }

    #[test]
    fn a_suffix_stands_behind_the_name() {
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
            assert_eq!(suffix(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn the_second_file_of_a_group_lets_a_few_others_be_fetched() {
        let mut siblings = Siblings::default();
        assert_eq!(siblings.opened(EntryId(1), &group(b"js")), 0);
        assert_eq!(siblings.opened(EntryId(2), &group(b"ts")), 0, "another suffix");
        assert_eq!(siblings.opened(EntryId(1), &group(b"js")), 0, "the same one");
        assert_eq!(siblings.opened(EntryId(3), &group(b"js")), FIRST);
    }

    #[test]
    fn right_predictions_earn_more_and_wrong_ones_use_it_up() {
        let (mut siblings, group) = (Siblings::default(), group(b"js"));
        siblings.opened(EntryId(1), &group);
        siblings.chosen(&group, &[(SpanId(5), FIRST)]);
        siblings.chosen(&group, &[(SpanId(5), FIRST)]);
        assert_eq!(siblings.opened(EntryId(2), &group), 0, "nothing of it was read yet");
        siblings.read(SpanId(5));
        siblings.read(SpanId(5));
        assert_eq!(siblings.opened(EntryId(3), &group), FIRST + GAIN * FIRST);
    }

    #[test]
    fn wishes_follow_the_tar() {
        let chosen = [9, 3, 4, 2].map(|span| (SpanId(span), 1));
        let found: Vec<_> = wishes(&chosen).iter().map(|wish| (wish.spans.start.0, wish.spans.end.0)).collect();
        assert_eq!(found, [(2, 5), (9, 10)]);
    }
}
