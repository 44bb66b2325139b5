//! What a layer means on top of the layers below it.
//!
//! A layer index is made from the layer alone. Two things in it depend on what lies below:
//!
//! - a hard link to a file that a lower layer brought;
//! - an *implied* directory: the layer has `bin/tool` but no `bin`. Where the lower layers have a
//!   symlink `bin -> usr/bin`, an unpacker writes through it, and so `bin/tool` is `usr/bin/tool`.
//!
//! Both are settled here, once, as soon as all layers below are known. A layer that has neither
//! needs no layer below, and most have neither.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::{Dir, Last, LayerNo, NodeId, Overlay, Unknown, Walked, damaged};
use crate::layer::{Contents, EntryId, Flags, IndexError, Kind, LayerIndex, LayerTree, write_index};

/// A layer as this image sees it.
pub(super) struct Prepared {
    /// The layer still grows: what it has is shown, what it has not may yet come.
    pub(super) growing: bool,
    pub(super) index: Arc<LayerIndex>,
    /// Hard links to lower layers' files, and the nodes they name; those whose target is missing are not here.
    pub(super) lower_links: HashMap<EntryId, NodeId>,
    /// The names of each inode that has several; made when one of them is first asked for.
    pub(super) names: OnceLock<HashMap<EntryId, Vec<EntryId>>>,
}

impl Overlay {
    /// Prepares `number`, and before it whatever layer below has not been.
    pub(super) fn prepare_up_to(&self, number: LayerNo) -> Result<&Prepared, Unknown> {
        let supplied =
            |number: LayerNo| self.layers[usize::from(number.0)].supplied.get().ok_or(Unknown::Needs(number));
        let first = if depends_on_lower(supplied(number)?) { 0 } else { number.0 };
        for below in first..=number.0 {
            let below = LayerNo(below);
            let slot = &self.layers[usize::from(below.0)];
            if slot.prepared.get().is_none() {
                // Two threads may do this at once; they come to the same result.
                let _ = slot.prepared.set(self.prepare(below, supplied(below)?)?);
            }
        }
        Ok(self.layers[usize::from(number.0)].prepared.get().expect("the loop above ends with it"))
    }

    fn prepare(&self, number: LayerNo, index: &Arc<LayerIndex>) -> Result<Prepared, Unknown> {
        if !depends_on_lower(index) {
            return Ok(Prepared::alone(Arc::clone(index), false));
        }
        let below = Arc::new(Dir::root(number.0));
        let index = self.write_through_symlinks(number, &below, index)?;
        let lower_links = self.resolve_lower_links(number, &below, &index)?;
        Ok(Prepared { lower_links, ..Prepared::alone(index, false) })
    }

    /// Moves what lies in implied directories to where lower symlinks lead.
    fn write_through_symlinks(
        &self,
        number: LayerNo,
        below: &Arc<Dir>,
        index: &Arc<LayerIndex>,
    ) -> Result<Arc<LayerIndex>, Unknown> {
        let mut index = Arc::clone(index);
        for _ in 0..MAX_MOVES {
            let Some((dir, target)) = self.implied_over_symlink(number, below, &index)? else { return Ok(index) };
            index = Arc::new(moved(&index, dir, &target).map_err(damaged(number))?);
        }
        tracing::warn!(layer = %number, "more than {MAX_MOVES} directories lie over symlinks of lower layers; the rest replace them");
        Ok(index)
    }

    /// The first implied directory in whose place the layers below have a symlink, and where it leads.
    fn implied_over_symlink(
        &self,
        number: LayerNo,
        below: &Arc<Dir>,
        index: &LayerIndex,
    ) -> Result<Option<(EntryId, Vec<u8>)>, Unknown> {
        let mut rest = Vec::new();
        for root in index.implied_roots() {
            rest.push(root.map_err(damaged(number))?);
        }
        rest.reverse();
        while let Some(dir) = rest.pop() {
            for child in index.children(dir).map_err(damaged(number))? {
                let child = child.map_err(damaged(number))?;
                let entry = index.entry(child).map_err(damaged(number))?;
                if entry.kind() == Kind::Directory && entry.is(Flags::IMPLIED) {
                    rest.push(child);
                }
            }
            // Where the layer itself hides what lies below, an unpacker finds no symlink to follow.
            if index.entry(dir).map_err(damaged(number))?.is(Flags::HIDES_LOWER) {
                continue;
            }
            let path = index.path(dir).map_err(damaged(number))?;
            let Walked::Found { kind: Kind::Symlink, path: real, .. } = self.walk_below(below, &path, Last::Keep)?
            else {
                continue;
            };
            if real != path {
                continue; // a directory above it leads elsewhere, and has its own turn
            }
            match self.walk_below(below, &path, Last::Follow)? {
                Walked::Found { kind: Kind::Directory, path: target, .. } | Walked::Missing { path: target } => {
                    return Ok(Some((dir, target)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn resolve_lower_links(
        &self,
        number: LayerNo,
        below: &Arc<Dir>,
        index: &LayerIndex,
    ) -> Result<HashMap<EntryId, NodeId>, Unknown> {
        let mut resolved = HashMap::new();
        for link in index.lower_links() {
            let link = link.map_err(damaged(number))?;
            let target = index.link_target(link).map_err(damaged(number))?.unwrap_or_default();
            match self.walk_below(below, target, Last::Keep)? {
                Walked::Found { node, kind, .. } if kind != Kind::Directory => {
                    resolved.insert(link, node);
                }
                _ => tracing::warn!(
                    layer = %number,
                    target = %target.escape_ascii(),
                    "a hard link leads to a file that no layer below has; its name is left out"
                ),
            }
        }
        Ok(resolved)
    }
}

impl Prepared {
    /// A layer that needs nothing of those below.
    pub(super) fn alone(index: Arc<LayerIndex>, growing: bool) -> Self {
        Self { growing, index, lower_links: HashMap::new(), names: OnceLock::new() }
    }
}

pub(super) fn depends_on_lower(index: &LayerIndex) -> bool {
    index.contents().has(Contents::IMPLIED) || index.contents().has(Contents::LOWER_LINKS)
}

/// The same layer with everything in the implied directory `from` moved to the path `to`.
fn moved(index: &LayerIndex, from: EntryId, to: &[u8]) -> Result<LayerIndex, IndexError> {
    let mut tree = LayerTree::from_index(index)?;
    tree.graft(from, to).map_err(|cause| IndexError::Tree { cause })?;
    let mut bytes = Vec::new();
    // Spans and windows stay with the layer's own index, which its content is read by.
    write_index(&tree, &[], &[], index.proof(), &mut bytes).map_err(|cause| IndexError::Rewrite { cause })?;
    LayerIndex::open(bytes)
}

/// Symlinks of lower layers that one layer may write through.
const MAX_MOVES: usize = 1024;
