//! Whether two indexes show the same tree, wherever the bytes of its files lie.

use super::entry::{EntryId, Flags, Record, Timestamp};
use super::index::{IndexError, LayerIndex};

impl LayerIndex {
    /// Whether every entry of this index is the same in `other`, under the same number: what was shown by this one may be
    /// shown by that one from now on. Where bytes lie, and which of them are holes, may differ, and times by what was
    /// rounded to seconds.
    ///
    /// # Errors
    /// One of the two is damaged.
    pub fn shows_the_same(&self, other: &Self) -> Result<bool, IndexError> {
        Ok(self.first_difference(other)?.is_none())
    }

    /// The first entry that is not the same in `other`, or that one of the two does not have.
    ///
    /// # Errors
    /// One of the two is damaged.
    pub fn first_difference(&self, other: &Self) -> Result<Option<EntryId>, IndexError> {
        for id in (0..self.len().min(other.len())).map(EntryId) {
            let (one, two) = (self.entry(id)?, other.entry(id)?);
            let same = shown(&one.record) == shown(&two.record)
                && same_time(one.mtime(), two.mtime())
                && self.name(id)? == other.name(id)?
                && self.symlink_target(id)? == other.symlink_target(id)?
                && self.link_target(id)? == other.link_target(id)?;
            let names = self.xattr_names(id)?;
            if !same || names != other.xattr_names(id)? {
                return Ok(Some(id));
            }
            for name in names {
                if self.xattr(id, &name)? != other.xattr(id, &name)? {
                    return Ok(Some(id));
                }
            }
        }
        Ok((self.len() != other.len()).then(|| EntryId(self.len().min(other.len()))))
    }
}

/// A record without what says where things lie in the index and in the decoded stream.
fn shown(record: &Record) -> Record {
    let mut shown = *record;
    shown.flags.clear(Flags::SPARSE);
    (shown.name_at, shown.xattrs, shown.b) = (0, u32::from(record.xattrs != 0), 0);
    (shown.mtime, shown.mtime_nanos) = (0, 0);
    shown
}

fn same_time(one: Timestamp, two: Timestamp) -> bool {
    one == two || (one.nanos == 0 && [two.seconds, two.seconds.saturating_add(1)].contains(&one.seconds))
}
