//! Writing through symlinks: moves entries of implied directories to the targets of symlinks in lower layers.
//!
//! Walks the layer's tree and the tree of the layers below in parallel, from the implied directories down. If a symlink
//! is in the place of an implied directory, the directory's entries move to the symlink's target, and the walk
//! continues with them there. So each entry is visited once, at its final place.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::below::{Below, Child, Target};
use super::{Dir, LayerNo, MergeError, NodeId, Unknown, damaged, steps};
use crate::layer::{Entry, EntryId, Flags, IndexError, Kind, LayerIndex, LayerTree, write_index};

/// A layer's tree, as an index or while it is modified.
trait Entries {
    fn entry(&self, id: EntryId) -> Result<Entry, IndexError>;
    fn name(&self, id: EntryId) -> Result<&[u8], IndexError>;
    fn children(&self, id: EntryId) -> Result<Vec<EntryId>, IndexError>;
}

impl Entries for LayerIndex {
    fn entry(&self, id: EntryId) -> Result<Entry, IndexError> {
        self.entry(id)
    }

    fn name(&self, id: EntryId) -> Result<&[u8], IndexError> {
        self.name(id)
    }

    fn children(&self, id: EntryId) -> Result<Vec<EntryId>, IndexError> {
        self.children(id)?.collect()
    }
}

impl Entries for LayerTree {
    fn entry(&self, id: EntryId) -> Result<Entry, IndexError> {
        Ok(self.entry(id))
    }

    fn name(&self, id: EntryId) -> Result<&[u8], IndexError> {
        Ok(self.name(id))
    }

    fn children(&self, id: EntryId) -> Result<Vec<EntryId>, IndexError> {
        Ok(self.children(id).collect())
    }
}

/// What the layers below have in the place of a directory of the layer.
#[derive(Clone)]
struct Spot {
    /// `None` if there is no directory, or an unrelated one.
    dir: Option<Arc<Dir>>,
    /// The layer hides its content, and so writes nothing through links in there. Whiteouts in it came before the entry
    /// that hides it.
    emptied: bool,
}

/// A symlink in the place of an implied directory.
struct Over {
    implied: EntryId,
    /// The directory that contains both.
    dir: Arc<Dir>,
    link: NodeId,
}

/// The layer, with the entries of implied directories moved to the targets of symlinks.
pub(super) fn write_through_symlinks(
    number: LayerNo,
    index: &Arc<LayerIndex>,
    below: &mut Below<'_>,
) -> Result<Arc<LayerIndex>, Unknown> {
    let walk = SideBySide { number, entries: &**index, below };
    let mut over = VecDeque::new();
    let mut spots = HashMap::new();
    for implied in index.implied_roots() {
        let implied = implied.map_err(damaged(number))?;
        let parent = index.entry(implied).map_err(damaged(number))?.parent();
        let spot = walk.spot(parent, &mut spots)?;
        walk.descend(implied, spot, |entry| entry.is(Flags::IMPLIED), &mut over)?;
    }
    if over.is_empty() {
        return Ok(Arc::clone(index));
    }
    let refused = |cause: MergeError| Unknown::Refused { layer: number, cause: Arc::new(cause) };
    let mut tree = LayerTree::from_index(index).map_err(damaged(number))?;
    tree.may_grow_by(MADE_BY_LINKS);
    while let Some(Over { implied, dir, link }) = over.pop_front() {
        steps::take(1)?;
        // An entry may have taken its place meanwhile.
        if tree.entry(implied).is(Flags::DETACHED) {
            continue;
        }
        let to = match below.follow(&dir, link)? {
            Target::Directory(dir) => dir.path(),
            Target::Missing(path) => path,
            Target::Invalid => continue,
        };
        let before = tree.len();
        let moved = tree.graft(implied, &to).map_err(|cause| refused(cause.into()))?;
        steps::take(u64::from(tree.len() - before) * STEPS_A_DIRECTORY)?;
        let walk = SideBySide { number, entries: &tree, below };
        let mut spots = HashMap::new();
        for id in moved {
            let spot = walk.spot(tree.entry(id).parent(), &mut spots)?;
            walk.descend(id, spot, |_| true, &mut over)?;
        }
    }
    steps::take(tree.lower_links().count() as u64)?;
    tree.join_lower_links().map_err(|cause| refused(cause.into()))?;
    let mut bytes = Vec::new();
    // Spans and windows stay in the layer's own index, which is used for reading content.
    write_index(&tree, &[], &[], index.layer(), index.proof(), &mut bytes).map_err(|cause| refused(cause.into()))?;
    LayerIndex::open(bytes).map(Arc::new).map_err(damaged(number))
}

struct SideBySide<'a, 'b, E> {
    number: LayerNo,
    entries: &'a E,
    below: &'a Below<'b>,
}

impl<E: Entries> SideBySide<'_, '_, E> {
    /// What the layers below have in the place of a directory of the tree.
    fn spot(&self, directory: EntryId, spots: &mut HashMap<EntryId, Spot>) -> Result<Spot, Unknown> {
        let mut chain = Vec::new();
        let mut at = directory;
        let mut spot = loop {
            if let Some(known) = spots.get(&at) {
                break known.clone();
            }
            let entry = self.entry(at)?;
            if at == EntryId::ROOT {
                break Spot { dir: Some(Arc::clone(self.below.root())), emptied: entry.is(Flags::OPAQUE) };
            }
            steps::take(1)?;
            chain.push((at, entry));
            at = entry.parent();
        };
        for (id, entry) in chain.into_iter().rev() {
            spot = self.enter(&spot, id, &entry)?.unwrap_or(Spot { dir: None, emptied: true });
            spots.insert(id, spot.clone());
        }
        Ok(spot)
    }

    /// Walks from `top`, whose place is `spot`, into the directories that `into` accepts, and records those in the
    /// place of a symlink.
    fn descend(
        &self,
        top: EntryId,
        spot: Spot,
        into: impl Fn(&Entry) -> bool,
        over: &mut VecDeque<Over>,
    ) -> Result<(), Unknown> {
        let mut rest = vec![(top, spot)];
        while let Some((id, parent)) = rest.pop() {
            let entry = self.entry(id)?;
            let spot = match self.enter(&parent, id, &entry)? {
                Ok(spot) if spot.dir.is_some() => spot,
                Ok(_) => continue,
                Err(symlink) => {
                    over.push_back(symlink);
                    continue;
                }
            };
            let children = self.entries.children(id).map_err(damaged(self.number))?;
            steps::take(1 + children.len() as u64 / ENTRIES_A_STEP)?;
            for child in children {
                let entry = self.entry(child)?;
                if entry.kind() == Kind::Directory && into(&entry) {
                    rest.push((child, spot.clone()));
                }
            }
        }
        Ok(())
    }

    /// What the layers below have in the place of the directory `id` in `parent`; or a symlink.
    fn enter(&self, parent: &Spot, id: EntryId, entry: &Entry) -> Result<Result<Spot, Over>, Unknown> {
        let nothing = Spot { dir: None, emptied: true };
        let hidden = (parent.emptied || entry.is(Flags::HIDES_LOWER)) && !entry.is(Flags::WHITEOUT_PATH);
        let Some(dir) = parent.dir.as_ref().filter(|_| !hidden) else { return Ok(Ok(nothing)) };
        let name = self.entries.name(id).map_err(damaged(self.number))?;
        Ok(match self.below.child(dir, name)? {
            Child::Directory(dir) => Ok(Spot { dir: Some(dir), emptied: parent.emptied || entry.is(Flags::OPAQUE) }),
            Child::Other { node, kind: Kind::Symlink } if entry.is(Flags::IMPLIED) => {
                Err(Over { implied: id, dir: Arc::clone(dir), link: node })
            }
            // The layer's own entry replaces what is there.
            Child::Other { .. } | Child::Missing => Ok(nothing),
        })
    }

    fn entry(&self, id: EntryId) -> Result<Entry, Unknown> {
        self.entries.entry(id).map_err(damaged(self.number))
    }
}

/// Limit for directories created at the targets of dangling symlinks.
const MADE_BY_LINKS: u32 = 1 << 16;
/// Cost of creating one of them: they stay in memory, and an image may create a million.
const STEPS_A_DIRECTORY: u64 = 256;
/// Entries skipped per step.
const ENTRIES_A_STEP: u64 = 16;
