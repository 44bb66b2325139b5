//! A tree made of its index again.

use crate::layer::entry::{EntryId, Flags, Kind};
use crate::layer::footer::Section;
use crate::layer::names::ID_LIMIT;
use crate::layer::tree::{LayerTree, Limits};

use super::{IndexError, LayerIndex};

impl LayerTree {
    /// The tree of a written index, with the same entry ids.
    ///
    /// # Errors
    /// [`IndexError`] if the index is damaged or not a tree.
    pub fn from_index(index: &LayerIndex) -> Result<Self, IndexError> {
        let grown = |cause| IndexError::Tree { cause };
        let mut tree = Self::new(Limits { entries: ID_LIMIT, names: u32::MAX as usize, ..Limits::default() });
        let mut sets = vec![0];
        let limit = tree.limits().xattrs;
        for number in 1..=index.place(Section::XattrSets).count {
            let number = u32::try_from(number).map_err(|_| IndexError::Malformed { what: "too many sets" })?;
            let set = tree.xattrs.intern_raw(&index.xattr_set(number)?, limit);
            sets.push(set.ok_or(IndexError::Malformed { what: "the attribute sets are too large" })?);
        }
        for id in 0..index.len() {
            let mut record = index.record(EntryId(id))?;
            let set = sets.get(record.xattrs as usize);
            record.xattrs = *set.ok_or(IndexError::Malformed { what: "an attribute set does not exist" })?;
            if record.inode != id {
                let inode = index.record(EntryId(record.inode))?;
                if inode.inode != record.inode || inode.kind != record.kind || inode.kind == Kind::Directory {
                    return Err(IndexError::Malformed { what: "a hard link has no inode" });
                }
            }
            match record.kind {
                Kind::Symlink | Kind::LowerLink if record.inode == id => {
                    let target = index.target(EntryId(id), record.kind)?.unwrap_or_default();
                    (record.a, record.b) = tree.restore_target(target).map_err(grown)?;
                }
                Kind::File if record.flags.has(Flags::SPARSE) && record.inode == id => {
                    let (first, count) = index.extent_run(&record)?;
                    let runs: Result<Vec<_>, _> = (first..first + count).map(|at| index.run(at, record.a)).collect();
                    let runs = runs?;
                    if runs.windows(2).any(|pair| pair[1].file.0 < pair[0].file.0 + pair[0].len) {
                        return Err(IndexError::Malformed { what: "runs of a sparse file overlap" });
                    }
                    record.b = tree.restore_runs(&runs).map_err(grown)?;
                }
                Kind::File => index.inside(record.b, record.a)?,
                Kind::Directory => record.a = 0,
                _ => {}
            }
            if id == 0 {
                if record.kind != Kind::Directory || record.inode != 0 {
                    return Err(IndexError::Malformed { what: "the root is not a directory" });
                }
                tree.restore_root(record);
            } else {
                tree.restore(record, index.name(EntryId(id))?).map_err(grown)?;
            }
        }
        // Each entry has at most one place, so the walk below ends and finds no cycle.
        let mut placed = vec![false; index.len() as usize];
        placed[0] = true;
        let mut directories = vec![EntryId::ROOT];
        while let Some(directory) = directories.pop() {
            let (first, count) = index.child_run(directory)?;
            // A tree lists children newest first.
            let mut ids: Vec<EntryId> =
                (first..first + count).map(|at| index.id_at(Section::Children, at)).collect::<Result<_, _>>()?;
            ids.sort();
            for id in ids {
                if std::mem::replace(&mut placed[id.index()], true) || index.record(id)?.parent != directory.0 {
                    return Err(IndexError::Malformed { what: "an entry has two places" });
                }
                tree.restore_child(directory, id);
                if index.record(id)?.kind == Kind::Directory {
                    directories.push(id);
                }
            }
        }
        tree.detach_unplaced(&placed);
        Ok(tree)
    }
}
