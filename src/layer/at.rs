//! Which file a place of the decoded stream belongs to.

use super::entry::EntryId;
use super::index::{IndexError, LayerIndex};
use crate::offsets::DecodedOffset;

impl LayerIndex {
    /// The file whose bytes hold `at`, or else the next one in the stream; `None` if there is none nearby, as among
    /// sparse files.
    ///
    /// # Errors
    /// The index is damaged.
    pub fn file_at(&self, at: DecodedOffset) -> Result<Option<EntryId>, IndexError> {
        // Entry numbers follow tar order. `low` begins after the last file known to end at or before `at`.
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next_file(middle, high)? {
                Some((id, end)) if end <= at => low = id + 1,
                _ => high = middle,
            }
        }
        Ok(self.next_file(low, self.len())?.filter(|(_, end)| *end > at).map(|(id, _)| EntryId(id)))
    }

    /// The next file that has bytes, and their end.
    fn next_file(&self, from: u32, before: u32) -> Result<Option<(u32, DecodedOffset)>, IndexError> {
        for id in from..before.min(from.saturating_add(OTHERS)) {
            let entry = self.entry(EntryId(id))?;
            if let Some(data) = entry.data().filter(|_| entry.size() > 0) {
                return Ok(Some((id, data + entry.size())));
            }
        }
        Ok(None)
    }
}

/// Entries without bytes that are passed over.
const OTHERS: u32 = 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::{Tar, tree, written};
    use super::*;

    #[test]
    fn a_place_belongs_to_the_file_that_holds_it() {
        let mut tar = Tar::default().file("first", &[1; 700]);
        for number in 0..50 {
            tar = tar.symlink(&format!("d/link{number}"), "x").file(&format!("d/{number}"), &vec![2; number * 100]);
        }
        let index = LayerIndex::open(written(&tree(&tar.end()).unwrap())).unwrap();
        let mut seen = 0;
        for id in (0..index.len()).map(EntryId) {
            let entry = index.entry(id).unwrap();
            let Some(data) = entry.data().filter(|_| entry.size() > 0) else { continue };
            seen += 1;
            assert_eq!(index.file_at(data).unwrap(), Some(id));
            assert_eq!(index.file_at(DecodedOffset(data.0 - 1)).unwrap(), Some(id), "its header");
            assert_eq!(index.file_at(DecodedOffset(data.0 + entry.size() - 1)).unwrap(), Some(id));
        }
        assert_eq!(seen, 50);
        assert_eq!(index.file_at(DecodedOffset(index.layer().decoded_size)).unwrap(), None);
    }
}
