//! Hard links across layers: counts the names of an inode.
//!
//! A layer index counts an inode's names within its own layer. Upper layers may remove or replace some of them, or add
//! links, so the link count is computed in the merged tree. Only inodes that may have a second name are counted; all
//! others have one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::dir::MAX_DEPTH;
use super::prepare::Prepared;
use super::{Dir, LayerNo, NodeId, Overlay, Unknown, damaged, lock, steps};
use crate::layer::{Entry, EntryId, Flags, IndexError, Kind};

impl Overlay {
    /// The number of names of `node` in the merged tree.
    pub(super) fn nlink(&self, node: NodeId, entry: &Entry) -> Result<u32, Unknown> {
        let (number, id) = self.parse(node)?;
        if entry.nlink() <= 1 && !self.is_linked_above(number, node)? {
            return Ok(1);
        }
        if let Some(known) = lock(&self.link_counts).get(&node) {
            return Ok(*known);
        }
        let mut names = self.names_above(number, node)?;
        let own = self.layer(number)?.names_of(number, id)?;
        names.extend(own.into_iter().map(|name| (number, name)));
        // Several layers may give the same name to an inode.
        let mut places = HashSet::new();
        self.each_name(node, &names, &mut |dir, name| {
            places.insert((dir, name));
            true
        })?;
        let count = u32::try_from(places.len()).unwrap_or(u32::MAX).max(1);
        let partial = |number| self.layer(LayerNo(number)).map_or(true, |layer| layer.partial);
        if !(number.0..self.layer_count()).any(partial) {
            lock(&self.link_counts).put(node, count);
        }
        Ok(count)
    }

    /// Whether the merged tree has `node`: upper layers may have removed or replaced all its names.
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
        let mut names: Vec<_> = layer.names_of(number, id)?.into_iter().map(|name| (number, name)).collect();
        names.extend(self.names_above(number, node)?);
        let mut shown = false;
        self.each_name(node, &names, &mut |_, _| {
            shown = true;
            false
        })?;
        Ok(shown)
    }

    /// Whether a layer above `number` links to its node.
    fn is_linked_above(&self, number: LayerNo, node: NodeId) -> Result<bool, Unknown> {
        for upper in (number.0 + 1..self.layer_count()).map(LayerNo) {
            if self.layer(upper)?.links_to.contains_key(&node) {
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
                steps::take(1)?;
                names.extend(layer.names_of(upper, *link)?.into_iter().map(|name| (upper, name)));
            }
        }
        Ok(names)
    }

    /// The number of names in one layer that lead to `node` in the merged tree, for these inodes of the layer.
    pub(super) fn names_within(&self, number: LayerNo, inodes: &[EntryId], node: NodeId) -> Result<u32, Unknown> {
        let layer = self.layer(number)?;
        let mut names = Vec::new();
        for inode in inodes {
            names.extend(layer.names_of(number, *inode)?.into_iter().map(|name| (number, name)));
        }
        let mut count = 0;
        self.each_name(node, &names, &mut |_, _| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    /// Calls `each` with the directory and name of those `names` that lead to `node` in the merged tree, until it
    /// returns `false`.
    fn each_name(
        &self,
        node: NodeId,
        names: &[(LayerNo, EntryId)],
        each: &mut dyn FnMut(NodeId, Vec<u8>) -> bool,
    ) -> Result<(), Unknown> {
        let mut directories = HashMap::new();
        for &(layer, id) in names {
            steps::take(1)?;
            let index = self.index(layer)?;
            let parent = index.entry(id).map_err(damaged(layer))?.parent();
            let Some(dir) = self.directory_of(layer, parent, &mut directories)? else { continue };
            let name = index.name(id).map_err(damaged(layer))?;
            if self.lookup(&dir, name)? == Some(node) && !each(dir.id(), name.to_vec()) {
                break;
            }
        }
        Ok(())
    }

    /// The directory of the merged tree at the path of a layer's directory; caches those on the way in `known`.
    fn directory_of(
        &self,
        layer: LayerNo,
        directory: EntryId,
        known: &mut HashMap<(LayerNo, EntryId), Option<Arc<Dir>>>,
    ) -> Result<Option<Arc<Dir>>, Unknown> {
        let index = self.index(layer)?;
        let mut chain = Vec::new();
        let mut at = directory;
        let mut dir = loop {
            if at == EntryId::ROOT {
                break Some(Arc::clone(self.root()));
            }
            if let Some(dir) = known.get(&(layer, at)) {
                break dir.clone();
            }
            steps::take(1)?;
            if chain.len() > MAX_DEPTH {
                return Err(Unknown::NoSuchNode(directory.0.into()));
            }
            chain.push(at);
            at = index.entry(at).map_err(damaged(layer))?.parent();
        };
        for id in chain.into_iter().rev() {
            if let Some(parent) = dir {
                dir = self.subdirectory(&parent, index.name(id).map_err(damaged(layer))?)?;
            }
            known.insert((layer, id), dir.clone());
        }
        Ok(dir)
    }
}

impl Prepared {
    /// The entries of this layer that name an inode.
    fn names_of(&self, number: LayerNo, inode: EntryId) -> Result<Vec<EntryId>, Unknown> {
        let names = match self.names.get() {
            Some(names) => names,
            None => {
                steps::take(u64::from(self.index.len()) / ENTRIES_A_STEP)?;
                let found = self.find_names().map_err(damaged(number))?;
                self.names.get_or_init(|| found)
            }
        };
        Ok(names.get(&inode).cloned().unwrap_or_else(|| vec![inode]))
    }

    fn find_names(&self) -> Result<HashMap<EntryId, Vec<EntryId>>, IndexError> {
        let mut names = HashMap::<_, Vec<_>>::new();
        let all = 0..self.index.len();
        for first in all.clone().step_by(ENTRIES_AT_ONCE as usize) {
            // A fresh index for each batch, so that the scan keeps none of them in memory.
            let index = self.index.afresh();
            for id in (first..all.end.min(first.saturating_add(ENTRIES_AT_ONCE))).map(EntryId) {
                let entry = index.entry(id)?;
                // The inode's only name may be another entry than the one that carries it.
                let linked = entry.nlink() > 1 || entry.inode() != id;
                if linked && entry.kind() != Kind::Directory && !entry.is(Flags::DETACHED) {
                    names.entry(entry.inode()).or_default().push(id);
                }
            }
        }
        Ok(names)
    }
}

/// Entries whose part of an index is in memory at once.
const ENTRIES_AT_ONCE: u32 = 1 << 16;
/// Entries scanned per step.
const ENTRIES_A_STEP: u64 = 16;
