//! Sibling prediction: after a program reads two files with the same suffix in one directory, fetches more of them.
//!
//! A program that imports modules reads many files of one directory (modules, libraries, templates) in an unknown
//! order. The directory itself shows how many: siblings near the file in the tar are fetched, 512 KiB at first, then
//! twice the bytes predicted right so far, minus those not read yet. So the amount grows where predictions are right,
//! and drops to nothing where they are wrong.
//!
//! Reading names takes time, so it is separate from the shared state: [`Siblings::opened`] returns how much may be
//! fetched, [`Group::choose`] selects it, and [`Siblings::chosen`] records it.

use std::collections::{HashMap, HashSet};

use super::event::{Priority, Suggestion, Urgency};
use super::layout::Layout as _;
use crate::layer::{EntryId, IndexError, Kind, LayerIndex};
use crate::span::{SpanId, SpanRange};

/// The speculative fetches in a layer's directories, and how many were right.
#[derive(Debug, Default)]
pub struct Siblings {
    groups: HashMap<Group, Record>,
    /// Spans fetched speculatively and not read yet, with their bytes.
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
    /// Bytes of the blob fetched speculatively: those read since, and those not read yet.
    right: u64,
    open: u64,
}

impl Siblings {
    /// Records the first read of a file; returns how many bytes of the blob may be fetched for its group. 0 if the file
    /// was read before.
    pub fn opened(&mut self, file: EntryId, group: &Group) -> u64 {
        if self.read.len() >= MOST_FILES || !self.read.insert(file) {
            return 0;
        }
        let record = self.groups.entry(group.clone()).or_default();
        record.files += 1;
        if record.files < SOME { 0 } else { (FIRST + GAIN * record.right).saturating_sub(record.open) }
    }

    /// Records spans fetched for a group, with their bytes in the blob.
    pub fn chosen(&mut self, group: &Group, spans: &[(SpanId, u64)]) {
        let Some(record) = self.groups.get_mut(group) else { return };
        for (span, bytes) in spans {
            if self.open.insert(*span, (group.clone(), *bytes)).is_none() {
                record.open += bytes;
            }
        }
    }

    /// Records that a span is read.
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
    /// The group of a file; `None` for other entries.
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

    /// Missing spans of `file`'s siblings, nearest first, with their bytes in the blob: at most `allowance` bytes.
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
        let at_once = AT_ONCE * index.region() as usize;
        // Entry numbers follow tar order.
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
                    if bytes > allowance || chosen.len() >= at_once {
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

/// Suggestions for the chosen spans, in tar order.
pub fn suggestions(chosen: &[(SpanId, u64)]) -> Vec<Suggestion> {
    let mut spans: Vec<_> = chosen.iter().map(|(span, _)| *span).collect();
    spans.sort_unstable();
    SpanRange::join(spans)
        .into_iter()
        .map(|spans| Suggestion { spans, urgency: Urgency::Speculation(Priority::Low) })
        .collect()
}

/// The part of a name after the last dot, ignoring version numbers.
fn suffix(name: &[u8]) -> &[u8] {
    let mut parts = name.split(|byte| *byte == b'.').rev();
    let last = parts.find(|part| !part.iter().all(u8::is_ascii_digit)).unwrap_or_default();
    // The first part is the name itself.
    if parts.next().is_some() { last } else { b"" }
}

/// Siblings are fetched from the second file of a group on.
const SOME: u32 = 2;
/// Bytes of the blob fetched for a new group: a few spans.
const FIRST: u64 = 512 << 10;
/// Bytes that may be wrong for each byte that was right.
const GAIN: u64 = 2;
/// Limit for files per layer; a program that reads more is not starting up.
const MOST_FILES: usize = 1 << 14;
/// Entries searched on either side of a file.
const FURTHEST: u32 = 256;
/// This many consecutive entries of other groups mark the end of the directory.
const OTHERS: u32 = 32;
/// Limit for spans fetched for one file, if they are ordinary ones.
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
        let found: Vec<_> =
            suggestions(&chosen).iter().map(|suggestion| (suggestion.spans.start.0, suggestion.spans.end.0)).collect();
        assert_eq!(found, [(2, 5), (9, 10)]);
    }
}
