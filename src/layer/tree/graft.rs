//! Grafting: moves entries of an implied directory to the target of a lower layer's symlink.

use super::apply::{Found, Missing};
use super::path::{clean, shown, split_last};
use super::{EntryId, Flags, ID_LIMIT, Kind, LayerTree, NAME_MAX, Record, TreeError};

/// Result of moving an entry to another directory.
enum Merged {
    Moved,
    /// It was merged into this directory.
    Into(EntryId),
    Lost,
}

impl LayerTree {
    /// Raises the limit by `entries` entries, with names of ordinary length.
    pub fn may_grow_by(&mut self, entries: u32) {
        self.limits.entries = self.len().saturating_add(entries).min(ID_LIMIT);
        self.limits.names = self.names.len() + NAME_MAX * entries as usize;
    }

    /// Moves everything in the implied directory `from` to the path `to`, because a lower layer has a symlink in the
    /// place of `from`. `from` leaves the tree; the ids of its entries stay valid. Returns the directories that were
    /// moved.
    ///
    /// If both places have a name, the later one in the tar wins, as if both had been written to one place. Whiteouts
    /// alone create no directory there either; and if `from` is hidden by a whiteout, that whiteout stays. Hard links
    /// into lower layers whose target is now in this layer are joined [later](Self::join_lower_links).
    ///
    /// # Errors
    /// [`TreeError`] if `to` leads through an entry that is not a directory, or below `from`.
    pub fn graft(&mut self, from: EntryId, to: &[u8]) -> Result<Vec<EntryId>, TreeError> {
        let to = clean(to, self.limits.path)?;
        let flags = self.nodes[from.index()].record.flags;
        let missing = if flags.has(Flags::WHITEOUT_PATH) { Missing::PassThrough } else { Missing::Imply };
        let mut moved = Vec::new();
        let (parent, name) = (EntryId(self.nodes[from.index()].record.parent), self.name(from).to_vec());
        if let Found::Directory(destination) = self.walk(&to, missing)? {
            if self.is_below(destination, from) {
                return Err(TreeError::GraftIntoItself { path: shown(&to) });
            }
            if flags.has(Flags::OPAQUE) {
                self.nodes[destination.index()].record.flags.set(Flags::OPAQUE);
            }
            // Remove it first: its entries may move to its place.
            self.unhook(from);
            let mut pairs = vec![(from, destination)];
            while let Some((source, target)) = pairs.pop() {
                let moving: Vec<EntryId> = self.children(source).collect();
                for id in moving {
                    self.unhook(id);
                    match self.merge(id, target) {
                        Merged::Into(there) => pairs.push((id, there)),
                        Merged::Moved if self.nodes[id.index()].record.kind == Kind::Directory => moved.push(id),
                        Merged::Moved | Merged::Lost => {}
                    }
                }
            }
            self.last_parent = None;
            match self.child(parent, &name) {
                None => self.hook(from, parent),
                Some(there) => {
                    self.nodes[from.index()].record.flags.set(Flags::DETACHED);
                    if self.is_whiteout(from) {
                        self.hides_lower(there);
                    }
                }
            }
        }
        if !self.is_whiteout(from) {
            self.detach(from);
        }
        Ok(moved)
    }

    /// Adds the unplaced `id` to `target`; the caller merges the children of a directory that meets another one.
    fn merge(&mut self, id: EntryId, target: EntryId) -> Merged {
        let name = self.name(id).to_vec();
        let Some(there) = self.child(target, &name) else {
            self.hook(id, target);
            return Merged::Moved;
        };
        let (mine, other) = (self.nodes[id.index()].record, self.nodes[there.index()].record);
        if mine.kind == Kind::Directory && other.kind == Kind::Directory {
            self.merge_directories(&mine, there, id > there);
            // Its children move; the directory itself is dropped and must not be found by name.
            self.nodes[id.index()].record.flags.set(Flags::DETACHED);
            return Merged::Into(there);
        }
        let exists = |record: &Record| !record.flags.has(Flags::WHITEOUT_PATH);
        let mine_wins = match (mine.kind, other.kind) {
            (Kind::Whiteout, _) => false,
            (_, Kind::Whiteout) => true,
            _ if exists(&mine) != exists(&other) => exists(&mine),
            _ => id > there,
        };
        if mine_wins {
            self.detach(there);
            self.hook(id, target);
            self.hides_lower(id);
            Merged::Moved
        } else {
            self.hook(id, target);
            self.detach(id);
            self.hides_lower(there);
            Merged::Lost
        }
    }

    /// Merges the metadata of one directory into that of another, which stays.
    fn merge_directories(&mut self, mine: &Record, there: EntryId, later: bool) {
        let kept = &mut self.nodes[there.index()].record;
        if !mine.flags.has(Flags::IMPLIED) && (kept.flags.has(Flags::IMPLIED) || later) {
            kept.flags.clear(Flags::IMPLIED);
            (kept.mode, kept.uid, kept.gid) = (mine.mode, mine.uid, mine.gid);
            (kept.mtime, kept.mtime_nanos, kept.xattrs) = (mine.mtime, mine.mtime_nanos, mine.xattrs);
        }
        kept.flags.set(mine.flags & Flags::OPAQUE);
        if !mine.flags.has(Flags::WHITEOUT_PATH) {
            self.exists(there);
        }
        if mine.flags.has(Flags::HIDES_LOWER) {
            self.hides_lower(there);
        }
    }

    /// After grafts, turns hard links into lower layers whose target is in this layer into ordinary ones.
    ///
    /// # Errors
    /// [`TreeError`] if their paths lead through too many symlinks.
    pub fn join_lower_links(&mut self) -> Result<(), TreeError> {
        let links: Vec<EntryId> = self.lower_links().collect();
        if links.is_empty() {
            return Ok(());
        }
        let mut joined: Vec<(u32, EntryId)> = Vec::new();
        for link in links {
            let path = self.link_target(link).expect("only such links were listed").to_vec();
            let (parent_path, name) = split_last(&path);
            let reached = match self.walk(parent_path, Missing::Report) {
                Err(TreeError::NotADirectory { .. }) => continue,
                reached => reached?,
            };
            if let Found::Directory(parent) = reached
                && let Some(target) = self.child(parent, name)
                // An entry later in the tar than the link is not its target.
                && target < link
            {
                let inode = self.nodes[target.index()].record.inode;
                let kind = self.nodes[inode as usize].record.kind;
                if !matches!(kind, Kind::Directory | Kind::Whiteout | Kind::LowerLink) {
                    joined.push((link.0, EntryId(inode)));
                }
            }
        }
        if joined.is_empty() {
            return Ok(());
        }
        for id in 0..self.nodes.len() {
            if let Ok(at) = joined.binary_search_by_key(&self.nodes[id].record.inode, |pair| pair.0) {
                let inode = joined[at].1;
                self.nodes[id].record.kind = self.nodes[inode.index()].record.kind;
                self.nodes[id].record.inode = inode.0;
            }
        }
        for (link, inode) in joined {
            let described = self.nodes[link as usize].record;
            self.nodes[link as usize].record.nlink = 0;
            self.nodes[inode.index()].record.nlink += described.nlink;
            if link > inode.0 {
                self.redescribe(inode, &described);
            }
        }
        Ok(())
    }
}
