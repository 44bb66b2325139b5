//! Hard links across layers: how many names an inode really has.
//!
//! A layer index counts the names that its own layer gives an inode. Upper layers may remove or
//! replace some of them, or add links of their own, so the count shown is taken in the merged tree.
//! Only inodes that could have a second name are counted; all others have one.

use std::collections::{HashMap, HashSet};

use super::prepare::Prepared;
use super::{LayerNo, NodeId, Overlay, Unknown, damaged, lock};
use crate::layer::{Entry, EntryId, Flags, IndexError, Kind};

impl Overlay {
    /// How many names of the merged tree lead to `node`.
    pub(super) fn nlink(&self, node: NodeId, entry: &Entry) -> Result<u32, Unknown> {
        let (number, id) = self.parse(node)?;
        let mut names: Vec<(LayerNo, EntryId)> = Vec::new();
        let mut settled = !self.layer(number)?.growing;
        for upper in number.0 + 1..self.layer_count() {
            let upper = LayerNo(upper);
            let layer = self.layer(upper)?;
            settled &= !layer.growing;
            for link in layer.links_to.get(&node).into_iter().flatten() {
                names.extend(layer.names_of(*link).map_err(damaged(upper))?.into_iter().map(|name| (upper, name)));
            }
        }
        if entry.nlink() <= 1 && names.is_empty() {
            return Ok(1);
        }
        if let Some(known) = lock(&self.link_counts).get(&node) {
            return Ok(*known);
        }
        let own = self.layer(number)?.names_of(id).map_err(damaged(number))?;
        names.extend(own.into_iter().map(|name| (number, name)));
        // Several layers may give one name to the same inode.
        let mut paths = HashSet::new();
        for (layer, name) in names {
            let path = self.names_to(layer, name)?;
            if !paths.contains(&path) && self.leads_to(&path, node)? {
                paths.insert(path);
            }
        }
        let count = u32::try_from(paths.len()).unwrap_or(u32::MAX).max(1);
        if settled {
            lock(&self.link_counts).put(node, count);
        }
        Ok(count)
    }

    /// Whether a path leads to `node` in the merged tree.
    fn leads_to(&self, path: &[Vec<u8>], node: NodeId) -> Result<bool, Unknown> {
        let Some((last, parents)) = path.split_last() else { return Ok(false) };
        let mut dir = std::sync::Arc::clone(self.root());
        for name in parents {
            match self.subdirectory(&dir, name)? {
                Some(next) => dir = next,
                None => return Ok(false),
            }
        }
        Ok(self.lookup(&dir, last)? == Some(node))
    }
}

impl Prepared {
    /// The entries of this layer that name an inode.
    fn names_of(&self, inode: EntryId) -> Result<Vec<EntryId>, IndexError> {
        let names = match self.names.get() {
            Some(names) => names,
            None => {
                let found = self.find_names()?;
                self.names.get_or_init(|| found)
            }
        };
        Ok(names.get(&inode).cloned().unwrap_or_else(|| vec![inode]))
    }

    fn find_names(&self) -> Result<HashMap<EntryId, Vec<EntryId>>, IndexError> {
        let mut names = HashMap::<_, Vec<_>>::new();
        for id in (0..self.index.len()).map(EntryId) {
            let entry = self.index.entry(id)?;
            // The one name that an inode has left may be another than the entry that carries it.
            let linked = entry.nlink() > 1 || entry.inode() != id;
            if linked && entry.kind() != Kind::Directory && !entry.is(Flags::DETACHED) {
                names.entry(entry.inode()).or_default().push(id);
            }
        }
        Ok(names)
    }
}
