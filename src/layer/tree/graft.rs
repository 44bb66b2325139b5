//! Grafting: what stands in a directory that nobody described moves to where a lower layer's symlink leads.

use super::apply::{Found, Missing};
use super::path::{clean, shown, split_last};
use super::{EntryId, Flags, Kind, LayerTree, TreeError};

impl LayerTree {
    /// Moves everything in the implied directory `from` to the path `to`, because a lower layer has
    /// a symlink where `from` stands. `from` leaves the tree; ids of what stood in it stay.
    ///
    /// Where both places have a name, the one that came later in the tar wins, as if both had been
    /// written to one place. Hard links into lower layers that now find their target are joined.
    ///
    /// # Errors
    /// [`TreeError`] if `to` leads through something that is no directory, or below `from`.
    pub fn graft(&mut self, from: EntryId, to: &[u8]) -> Result<(), TreeError> {
        let to = clean(to, self.limits.path)?;
        let destination = match self.walk(&to, Missing::Create)? {
            Found::Directory(id) => id,
            Found::Elsewhere(_) => unreachable!("missing directories are created"),
        };
        let mut above = destination;
        loop {
            if above == from {
                return Err(TreeError::GraftIntoItself { path: shown(&to) });
            }
            if above == EntryId::ROOT {
                break;
            }
            above = EntryId(self.nodes[above.index()].record.parent);
        }
        self.last_parent = None;
        let mut pairs = vec![(from, destination)];
        while let Some((source, target)) = pairs.pop() {
            let flags = self.nodes[source.index()].record.flags & (Flags::OPAQUE | Flags::HIDES_LOWER);
            if source != from {
                self.nodes[target.index()].record.flags.set(flags);
            } else if flags.has(Flags::OPAQUE) {
                self.nodes[target.index()].record.flags.set(Flags::OPAQUE);
            }
            let moving: Vec<EntryId> = self.children(source).collect();
            for id in moving {
                self.unhook(id);
                if let Some(pair) = self.merge(id, target) {
                    pairs.push(pair);
                }
            }
        }
        self.detach(from);
        self.join_lower_links()
    }

    /// Hooks `id`, which stands nowhere, into `target`; a pair of directories is left to the caller.
    fn merge(&mut self, id: EntryId, target: EntryId) -> Option<(EntryId, EntryId)> {
        let name = self.name(id).to_vec();
        let Some(there) = self.child(target, &name) else {
            self.hook(id, target);
            return None;
        };
        let (mine, other) = (self.nodes[id.index()].record, self.nodes[there.index()].record);
        if mine.kind == Kind::Directory && other.kind == Kind::Directory {
            let described = !mine.flags.has(Flags::IMPLIED);
            if described && (other.flags.has(Flags::IMPLIED) || id > there) {
                let kept = &mut self.nodes[there.index()].record;
                kept.flags.clear(Flags::IMPLIED);
                (kept.mode, kept.uid, kept.gid) = (mine.mode, mine.uid, mine.gid);
                (kept.mtime, kept.mtime_nanos, kept.xattrs) = (mine.mtime, mine.mtime_nanos, mine.xattrs);
            }
            // Its children move on; itself it is gone. Nothing may look for it by name any more.
            self.nodes[id.index()].record.flags.set(Flags::DETACHED);
            return Some((id, there));
        }
        let mine_wins = match (mine.kind, other.kind) {
            (Kind::Whiteout, _) => false,
            (_, Kind::Whiteout) => true,
            _ => id > there,
        };
        if mine_wins {
            self.detach(there);
            self.hook(id, target);
            self.hides_lower(id);
        } else {
            self.hook(id, target);
            self.detach(id);
            self.hides_lower(there);
        }
        None
    }

    /// Turns hard links into lower layers whose target is in this layer into ordinary ones.
    fn join_lower_links(&mut self) -> Result<(), TreeError> {
        let links: Vec<EntryId> = self.lower_links().collect();
        if links.is_empty() {
            return Ok(());
        }
        let mut joined: Vec<(u32, EntryId)> = Vec::new();
        for link in links {
            let path = self.link_target(link).expect("only such links were listed").to_vec();
            let (parent_path, name) = split_last(&path);
            if let Found::Directory(parent) = self.walk(parent_path, Missing::Report)?
                && let Some(target) = self.child(parent, name)
                // What came after the link in the tar is not what it names.
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
