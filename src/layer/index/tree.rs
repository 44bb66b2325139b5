//! The tree of an index: entries, their names, targets, attributes and extents.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{IndexError, LayerIndex};
use crate::layer::entry::{DataExtent, Entry, EntryId, Extent, Flags, Kind, Record, le32, le64};
use crate::layer::extents::{Laying, whole_extent};
use crate::layer::footer::{EXTENT_BYTES, Place, Section};
use crate::layer::paged::PAGE;
use crate::layer::xattrs;
use crate::offsets::{DecodedOffset, FileOffset};

impl LayerIndex {
    /// The metadata of an entry.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn entry(&self, id: EntryId) -> Result<Entry, IndexError> {
        Ok(Entry { record: self.record(id)? })
    }

    /// An entry's name in its directory; the root's is empty.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn name(&self, id: EntryId) -> Result<&[u8], IndexError> {
        let raw = self.raw(id)?;
        self.bytes(Section::Names, u64::from(le32(raw, 4)), usize::from(raw[8]))
    }

    /// The entry with this name in a directory; `None` also if `directory` is not a directory.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn child(&self, directory: EntryId, name: &[u8]) -> Result<Option<EntryId>, IndexError> {
        let (first, count) = self.child_run(directory)?;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let id = self.id_at(Section::Children, first + middle)?;
            match self.name(id)?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(id)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// Number of entries of a directory, including whiteouts; 0 for other entries.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn child_count(&self, directory: EntryId) -> Result<u32, IndexError> {
        Ok(self.child_run(directory)?.1 as u32)
    }

    /// The entry at `position` of a directory, ordered by name.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn child_at(&self, directory: EntryId, position: u32) -> Result<Option<EntryId>, IndexError> {
        let (first, count) = self.child_run(directory)?;
        if u64::from(position) >= count {
            return Ok(None);
        }
        self.id_at(Section::Children, first + u64::from(position)).map(Some)
    }

    /// The entries of a directory, ordered by name.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged; the latter may be the last item.
    pub fn children(
        &self,
        directory: EntryId,
    ) -> Result<impl Iterator<Item = Result<EntryId, IndexError>> + '_, IndexError> {
        let (first, count) = self.child_run(directory)?;
        Ok((first..first + count).map(|at| self.id_at(Section::Children, at)))
    }

    /// The target of a symlink, as written; `None` for other entries.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn symlink_target(&self, id: EntryId) -> Result<Option<&[u8]>, IndexError> {
        self.target(id, Kind::Symlink)
    }

    /// The target path of a [`Kind::LowerLink`], from the root, without a leading slash.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn link_target(&self, id: EntryId) -> Result<Option<&[u8]>, IndexError> {
        self.target(id, Kind::LowerLink)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn xattr(&self, id: EntryId, name: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let set = self.xattr_set(self.record(id)?.xattrs)?;
        for xattr in xattrs::parse(&set) {
            let (found, value) = xattr.ok_or(IndexError::Malformed { what: "an attribute set is truncated" })?;
            if found == name {
                return Ok(Some(value.to_vec()));
            }
        }
        Ok(None)
    }

    /// The names of an entry's extended attributes, sorted.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn xattr_names(&self, id: EntryId) -> Result<Vec<Vec<u8>>, IndexError> {
        let set = self.xattr_set(self.record(id)?.xattrs)?;
        xattrs::parse(&set)
            .map(|xattr| match xattr {
                Some((name, _)) => Ok(name.to_vec()),
                None => Err(IndexError::Malformed { what: "an attribute set is truncated" }),
            })
            .collect()
    }

    /// The names of all extended attributes; `None` if names and values exceed `left` bytes, from which the scanned
    /// bytes are subtracted.
    ///
    /// # Errors
    /// The index is damaged.
    pub fn all_xattr_names(&self, left: &mut u64) -> Result<Option<BTreeSet<Vec<u8>>>, IndexError> {
        let mut names = BTreeSet::new();
        if self.place(Section::Xattrs).count > *left {
            return Ok(None);
        }
        for number in 1..=self.place(Section::XattrSets).count.min(u32::MAX.into()) as u32 {
            let set = self.xattr_set(number)?;
            // An empty set counts as one byte.
            match left.checked_sub(set.len() as u64 + 1) {
                Some(rest) => *left = rest,
                None => return Ok(None),
            }
            for xattr in xattrs::parse(&set) {
                let (name, _) = xattr.ok_or(IndexError::Malformed { what: "an attribute set is truncated" })?;
                if !names.contains(name) {
                    names.insert(name.to_vec());
                }
            }
        }
        Ok(Some(names))
    }

    /// The extents of a file within `range`, including holes; empty for other entries.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn extents(&self, id: EntryId, range: Range<FileOffset>) -> Result<Vec<Extent>, IndexError> {
        let record = self.record(id)?;
        if record.kind != Kind::File {
            return Ok(Vec::new());
        }
        let end = range.end.0.min(record.a);
        if !record.flags.has(Flags::SPARSE) {
            self.inside(record.b, record.a)?;
            return Ok(whole_extent(record.b, range.start.0, end));
        }
        let (first, count) = self.extent_run(&record)?;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let run = self.run(first + middle, record.a)?;
            if run.file.0 + run.len <= range.start.0 { low = middle + 1 } else { high = middle }
        }
        let mut lay = Laying::new(range.start.0, end);
        let mut last = 0;
        for at in low..count {
            let run = self.run(first + at, record.a)?;
            if run.file.0 < last {
                return Err(IndexError::Malformed { what: "runs of a sparse file overlap" });
            }
            last = run.file.0 + run.len;
            if !lay.run(run) {
                break;
            }
        }
        Ok(lay.finish())
    }

    /// The data runs of a sparse file; empty for other entries.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged; the latter may be the last item.
    pub fn runs(
        &self,
        id: EntryId,
    ) -> Result<(u64, impl Iterator<Item = Result<DataExtent, IndexError>> + '_), IndexError> {
        let record = self.record(id)?;
        let sparse = record.kind == Kind::File && record.flags.has(Flags::SPARSE);
        let (first, count) = if sparse { self.extent_run(&record)? } else { (0, 0) };
        Ok((count, (first..first + count).map(move |at| self.run(at, record.a))))
    }

    /// Topmost implied directories; see [`LayerTree::implied_roots`](crate::layer::LayerTree::implied_roots).
    ///
    /// # Errors
    /// The index is damaged; reported as the last item.
    pub fn implied_roots(&self) -> impl Iterator<Item = Result<EntryId, IndexError>> + '_ {
        (0..self.place(Section::Implied).count).map(|at| self.id_at(Section::Implied, at))
    }

    /// Hard links into lower layers; see [`LayerTree::lower_links`](crate::layer::LayerTree::lower_links).
    ///
    /// # Errors
    /// The index is damaged; reported as the last item.
    pub fn lower_links(&self) -> impl Iterator<Item = Result<EntryId, IndexError>> + '_ {
        (0..self.place(Section::LowerLinks).count).map(|at| self.id_at(Section::LowerLinks, at))
    }

    /// The path of an entry from the root, without a leading slash.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn path(&self, id: EntryId) -> Result<Vec<u8>, IndexError> {
        let path = self.path_within(id, usize::MAX)?;
        path.ok_or(IndexError::Malformed { what: "a directory is deeper than any layer has" })
    }

    /// As [`LayerIndex::path`]; `None` for one of more than `most` bytes, of which the rest is not looked at.
    ///
    /// # Errors
    /// [`IndexError::NoEntry`], or the index is damaged.
    pub fn path_within(&self, id: EntryId, most: usize) -> Result<Option<Vec<u8>>, IndexError> {
        let mut parts = Vec::new();
        let (mut at, mut length) = (id, 0);
        // Brent's search for a cycle: one of a few entries ends after a few steps.
        let (mut seen, mut until) = (id, 1);
        while at != EntryId::ROOT {
            let name = self.name(at)?;
            length += name.len() + usize::from(length > 0);
            if length > most || parts.len() >= PATH_PARTS {
                return Ok(None);
            }
            parts.push(name);
            at = EntryId(self.record(at)?.parent);
            if at == seen {
                return Err(IndexError::Malformed { what: "a directory is in itself" });
            }
            if parts.len() == until {
                (seen, until) = (at, 2 * until);
            }
        }
        parts.reverse();
        Ok(Some(parts.join(&b'/')))
    }

    fn raw(&self, id: EntryId) -> Result<&[u8; Record::BYTES], IndexError> {
        let Place { start, count } = self.place(Section::Entries);
        if u64::from(id.0) >= count {
            return Err(IndexError::NoEntry { id });
        }
        self.pages.array(start + u64::from(id.0) * Record::BYTES as u64)
    }

    pub(super) fn record(&self, id: EntryId) -> Result<Record, IndexError> {
        let record = Record::from_bytes(self.raw(id)?);
        let record = record.ok_or(IndexError::Malformed { what: "an entry's kind is unknown" })?;
        let count = self.len();
        if record.parent >= count || record.inode >= count {
            return Err(IndexError::Malformed { what: "an entry refers to one that does not exist" });
        }
        Ok(record)
    }

    /// A range of bytes in a section, within one page.
    fn bytes(&self, section: Section, at: u64, len: usize) -> Result<&[u8], IndexError> {
        let Place { start, count } = self.place(section);
        if at.checked_add(len as u64).is_none_or(|end| end > count) {
            return Err(IndexError::Malformed { what: "a name lies outside" });
        }
        self.pages.slice(start + at, len)
    }

    pub(super) fn id_at(&self, section: Section, at: u64) -> Result<EntryId, IndexError> {
        let Place { start, count } = self.place(section);
        if at >= count {
            return Err(IndexError::Malformed { what: "a list of entries lies outside" });
        }
        let id = u32::from_le_bytes(*self.pages.array(start + at * 4)?);
        if id >= self.len() {
            return Err(IndexError::Malformed { what: "an entry refers to one that does not exist" });
        }
        Ok(EntryId(id))
    }

    /// Position of the first child, and number of children.
    pub(super) fn child_run(&self, directory: EntryId) -> Result<(u64, u64), IndexError> {
        let raw = self.raw(directory)?;
        if raw[9] != Kind::Directory as u8 {
            return Ok((0, 0));
        }
        let (count, first) = (le64(raw, 40), le64(raw, 48));
        if first.checked_add(count).is_none_or(|end| end > self.place(Section::Children).count) {
            return Err(IndexError::Malformed { what: "a directory lies outside" });
        }
        Ok((first, count))
    }

    pub(super) fn target(&self, id: EntryId, kind: Kind) -> Result<Option<&[u8]>, IndexError> {
        let record = self.record(id)?;
        if record.kind != kind {
            return Ok(None);
        }
        let len = usize::try_from(record.a).map_err(|_| IndexError::Malformed { what: "a target is too long" })?;
        if len > PAGE {
            return Err(IndexError::Malformed { what: "a target is too long" });
        }
        self.bytes(Section::Names, record.b, len).map(Some)
    }

    pub(super) fn xattr_set(&self, number: u32) -> Result<Vec<u8>, IndexError> {
        let Some(at) = u64::from(number).checked_sub(1) else { return Ok(Vec::new()) };
        let sets = self.place(Section::XattrSets);
        if at >= sets.count {
            return Err(IndexError::Malformed { what: "an attribute set does not exist" });
        }
        let raw: &[u8; 8] = self.pages.array(sets.start + at * 8)?;
        let (start, len) = (u64::from(le32(raw, 0)), le32(raw, 4));
        let bytes = self.place(Section::Xattrs);
        if start + u64::from(len) > bytes.count {
            return Err(IndexError::Malformed { what: "an attribute set lies outside" });
        }
        self.pages.copy(bytes.start + start, len as usize)
    }

    pub(super) fn extent_run(&self, record: &Record) -> Result<(u64, u64), IndexError> {
        let (first, count) = record.extent_run();
        if first + count > self.place(Section::Extents).count {
            return Err(IndexError::Malformed { what: "a list of runs lies outside" });
        }
        Ok((first, count))
    }

    /// The run at `at`, for a file of `size` bytes.
    pub(super) fn run(&self, at: u64, size: u64) -> Result<DataExtent, IndexError> {
        let raw: &[u8; EXTENT_BYTES] =
            self.pages.array(self.place(Section::Extents).start + at * EXTENT_BYTES as u64)?;
        let (file, decoded, len) = (le64(raw, 0), le64(raw, 8), le64(raw, 16));
        self.inside(decoded, len)?;
        if file.checked_add(len).is_none_or(|end| end > size) {
            return Err(IndexError::Malformed { what: "a run lies outside its file" });
        }
        Ok(DataExtent { file: FileOffset(file), decoded: DecodedOffset(decoded), len })
    }

    /// Checks that a range lies within the layer.
    pub(super) fn inside(&self, decoded: u64, len: u64) -> Result<(), IndexError> {
        if decoded.checked_add(len).is_none_or(|end| end > self.footer.layer.decoded_size) {
            return Err(IndexError::Malformed { what: "a file lies outside the layer" });
        }
        Ok(())
    }
}

/// Deeper than any tree after valid grafts.
const PATH_PARTS: usize = 65_536;
