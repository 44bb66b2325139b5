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
    /// The same the other way around.
    pub(super) links_to: HashMap<NodeId, Vec<EntryId>>,
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
        Ok(Prepared::alone(index, false).with_lower_links(lower_links))
    }

    /// Moves what lies in implied directories to where lower symlinks lead.
    fn write_through_symlinks(
        &self,
        number: LayerNo,
        below: &Arc<Dir>,
        index: &Arc<LayerIndex>,
    ) -> Result<Arc<LayerIndex>, Unknown> {
        let mut index = Arc::clone(index);
        for _ in 0..MAX_ROUNDS {
            let moves = self.implied_over_symlinks(number, below, &index)?;
            if moves.is_empty() {
                return Ok(index);
            }
            index = Arc::new(moved(&index, &moves).map_err(damaged(number))?);
        }
        tracing::warn!(layer = %number, "directories lie over symlinks of lower layers in more than {MAX_ROUNDS} ways; the rest replace them");
        Ok(index)
    }

    /// The implied directories in whose place the layers below have a symlink, and where it leads.
    ///
    /// What a move puts over yet another symlink is found in the next round.
    fn implied_over_symlinks(
        &self,
        number: LayerNo,
        below: &Arc<Dir>,
        index: &LayerIndex,
    ) -> Result<Vec<(EntryId, Vec<u8>)>, Unknown> {
        let mut rest = Vec::new();
        for root in index.implied_roots() {
            let root = root.map_err(damaged(number))?;
            if !is_hidden_below(index, root).map_err(damaged(number))? {
                rest.push(root);
            }
        }
        rest.reverse();
        let mut moves = Vec::new();
        while let Some(dir) = rest.pop() {
            let entry = index.entry(dir).map_err(damaged(number))?;
            if entry.is(Flags::HIDES_LOWER) {
                continue; // an unpacker finds no symlink to follow, here or further down
            }
            if !entry.is(Flags::OPAQUE) {
                for child in index.children(dir).map_err(damaged(number))? {
                    let child = child.map_err(damaged(number))?;
                    let entry = index.entry(child).map_err(damaged(number))?;
                    if entry.kind() == Kind::Directory && entry.is(Flags::IMPLIED) {
                        rest.push(child);
                    }
                }
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
                    moves.push((dir, target));
                }
                _ => {}
            }
        }
        Ok(moves)
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
        Self { growing, index, lower_links: HashMap::new(), links_to: HashMap::new(), names: OnceLock::new() }
    }

    fn with_lower_links(mut self, lower_links: HashMap<EntryId, NodeId>) -> Self {
        for (link, node) in &lower_links {
            self.links_to.entry(*node).or_default().push(*link);
        }
        Self { lower_links, ..self }
    }
}

pub(super) fn depends_on_lower(index: &LayerIndex) -> bool {
    index.contents().has(Contents::IMPLIED) || index.contents().has(Contents::LOWER_LINKS)
}

/// Whether a directory that `id` lies in hides what the layers below have there.
fn is_hidden_below(index: &LayerIndex, id: EntryId) -> Result<bool, IndexError> {
    let mut at = index.entry(id)?.parent();
    for _ in 0..index.len() {
        let entry = index.entry(at)?;
        if entry.is(Flags::OPAQUE) {
            return Ok(true);
        }
        if at == EntryId::ROOT {
            break;
        }
        at = entry.parent();
    }
    Ok(false)
}

/// The same layer with everything in each implied directory of `moves` moved to the path beside it.
fn moved(index: &LayerIndex, moves: &[(EntryId, Vec<u8>)]) -> Result<LayerIndex, IndexError> {
    let mut tree = LayerTree::from_index(index)?;
    for (from, to) in moves {
        tree.graft(*from, to).map_err(|cause| IndexError::Tree { cause })?;
    }
    let mut bytes = Vec::new();
    // Spans and windows stay with the layer's own index, which its content is read by.
    write_index(&tree, &[], &[], index.proof(), &mut bytes).map_err(|cause| IndexError::Rewrite { cause })?;
    LayerIndex::open(bytes)
}

/// Symlinks on one path of a layer that lead through further symlinks of lower layers.
const MAX_ROUNDS: usize = 255;
