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
        let mut names = self.names_above(number, node)?;
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
        let growing = |number| self.layer(LayerNo(number)).map_or(true, |layer| layer.growing);
        if !(number.0..self.layer_count()).any(growing) {
            lock(&self.link_counts).put(node, count);
        }
        Ok(count)
    }

    /// Whether the merged tree has `node`: upper layers may have removed or replaced every name that leads to it.
    ///
    /// # Errors
    /// [`Unknown`]; all layers above the node's own are needed.
    pub fn shows(&self, node: NodeId) -> Result<bool, Unknown> {
        if node == NodeId::ROOT {
            return Ok(true);
        }
        let (number, id) = self.parse(node)?;
        let layer = self.layer(number)?;
        let entry = layer.index.entry(id).map_err(damaged(number))?;
        match entry.kind() {
            Kind::Whiteout | Kind::LowerLink => return Ok(false),
            Kind::Directory => {
                return match self.dir(node) {
                    Ok(_) => Ok(true),
                    Err(Unknown::NoSuchNode(_)) => Ok(false),
                    Err(unknown) => Err(unknown),
                };
            }
            _ if entry.inode() != id => return Ok(false),
            _ => {}
        }
        let own = layer.names_of(id).map_err(damaged(number))?.into_iter().map(|name| (number, name));
        for (layer, name) in own.chain(self.names_above(number, node)?) {
            if self.leads_to(&self.names_to(layer, name)?, node)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The names that the layers above `number` give to its node.
    fn names_above(&self, number: LayerNo, node: NodeId) -> Result<Vec<(LayerNo, EntryId)>, Unknown> {
        let mut names = Vec::new();
        for upper in (number.0 + 1..self.layer_count()).map(LayerNo) {
            let layer = self.layer(upper)?;
            for link in layer.links_to.get(&node).into_iter().flatten() {
                names.extend(layer.names_of(*link).map_err(damaged(upper))?.into_iter().map(|name| (upper, name)));
            }
        }
        Ok(names)
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
