//! Hard links across layers: how many names an inode really has.
//!
//! A layer index counts the names that its own layer gives an inode. Upper layers may remove or
//! replace some of them, or add links of their own, so the count shown is taken in the merged tree.
//! Only inodes that could have a second name are counted; all others have one.

use std::collections::HashMap;

use super::prepare::Prepared;
use super::{LayerNo, NodeId, Overlay, Unknown, damaged};
use crate::layer::{Entry, EntryId, Flags, IndexError, Kind};

impl Overlay {
    /// How many names of the merged tree lead to `node`.
    pub(super) fn nlink(&self, node: NodeId, entry: &Entry) -> Result<u32, Unknown> {
        let (number, id) = self.parse(node)?;
        let mut names: Vec<(LayerNo, EntryId)> = Vec::new();
        for upper in number.0 + 1..self.layer_count() {
            let upper = LayerNo(upper);
            let layer = self.layer(upper)?;
            for (link, _) in layer.lower_links.iter().filter(|(_, target)| **target == node) {
                names.extend(layer.names_of(*link).map_err(damaged(upper))?.into_iter().map(|name| (upper, name)));
            }
        }
        if entry.nlink() <= 1 && names.is_empty() {
            return Ok(1);
        }
        let own = self.layer(number)?.names_of(id).map_err(damaged(number))?;
        names.extend(own.into_iter().map(|name| (number, name)));
        let mut count = 0;
        for (layer, name) in names {
            if self.leads_to(layer, name, node)? {
                count += 1;
            }
        }
        Ok(count.max(1))
    }

    /// Whether the path that `entry` has in its layer leads to `node` in the merged tree.
    fn leads_to(&self, layer: LayerNo, entry: EntryId, node: NodeId) -> Result<bool, Unknown> {
        let mut names = self.names_to(layer, entry)?;
        let Some(last) = names.pop() else { return Ok(false) };
        let mut dir = std::sync::Arc::clone(self.root());
        for name in names {
            match self.lookup(&dir, &name)? {
                Some(next) => dir = self.child_dir(&dir, &name, next)?,
                None => return Ok(false),
            }
        }
        Ok(self.lookup(&dir, &last)? == Some(node))
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
            if entry.nlink() > 1 && entry.kind() != Kind::Directory && !entry.is(Flags::DETACHED) {
                names.entry(entry.inode()).or_default().push(id);
            }
        }
        Ok(names)
    }
}
