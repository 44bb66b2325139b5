//! Directories of the merged tree, and the layers that contribute to each.

use std::sync::{Arc, Mutex};

use super::node::{LayerNo, NodeId};
use super::{Layer, Overlay, Unknown, damaged, lock, steps};
use crate::layer::{EntryId, Flags, Kind};

/// A directory that has been accessed.
///
/// Its path follows from its parents.
#[derive(Debug)]
pub struct Dir {
    id: NodeId,
    parent: Option<Arc<Dir>>,
    name: Box<[u8]>,
    parts: Mutex<Parts>,
}

/// The layers that contribute to a directory, from the top, as far as searched.
#[derive(Debug)]
struct Parts {
    found: Vec<Part>,
    /// The parent's part to search next; for the root, the number of layers left.
    next: usize,
    /// No lower layer contributes.
    complete: bool,
}

/// One layer's entry for a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) layer: LayerNo,
    pub(super) entry: EntryId,
}

impl Dir {
    /// The root of a view over the lowest `layers` layers.
    pub(super) fn root(layers: u16) -> Self {
        let parts = Parts { found: Vec::new(), next: layers.into(), complete: false };
        Self { id: NodeId::ROOT, parent: None, name: Box::default(), parts: Mutex::new(parts) }
    }

    /// A directory whose uppermost entry is `entry` of `layer`.
    pub(super) fn child(parent: &Arc<Self>, name: &[u8], layer: LayerNo, entry: EntryId) -> Self {
        // The search starts with `layer` itself: it finds `entry` again, and whether it is opaque.
        let next = lock(&parent.parts).found.partition_point(|part| part.layer > layer);
        Self {
            id: NodeId::new(layer, entry),
            parent: Some(Arc::clone(parent)),
            name: name.into(),
            parts: Mutex::new(Parts { found: Vec::new(), next, complete: false }),
        }
    }

    /// The node of this directory.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The parent directory; `None` for the root.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Its name in the parent; empty for the root.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The path from the root, joined by `/`; empty for the root.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut dir = self;
        while let Some(parent) = &dir.parent {
            names.push(&*dir.name);
            dir = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn next(&self) -> usize {
        lock(&self.parts).next
    }

    fn known(&self, place: usize) -> Known {
        let parts = lock(&self.parts);
        match parts.found.get(place) {
            Some(part) => Known::Part(*part),
            None if parts.complete => Known::NoMore,
            None => Known::NotYet,
        }
    }

    /// Records what was `seen` at position `next`.
    fn record(&self, next: usize, seen: Seen) {
        let mut parts = lock(&self.parts);
        if parts.next != next {
            return; // another thread has recorded the same meanwhile
        }
        parts.next = if self.parent.is_some() { next + 1 } else { next.saturating_sub(1) };
        match seen {
            Seen::Absent => {}
            Seen::Part(part) => parts.found.push(part),
            Seen::LastPart(part) => {
                parts.found.push(part);
                parts.complete = true;
            }
            Seen::End => parts.complete = true,
        }
    }
}

/// Drops a chain of parents in a loop: it may be too long for recursion.
impl Drop for Dir {
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut dir) = next.and_then(Arc::into_inner) {
            next = dir.parent.take();
        }
    }
}

/// What a directory has cached of one of its parts.
enum Known {
    Part(Part),
    NoMore,
    NotYet,
}

impl Overlay {
    /// The `place`-th layer from the top that contributes to `dir`.
    pub(super) fn part(&self, dir: &Arc<Dir>, place: usize) -> Result<Option<Part>, Unknown> {
        loop {
            match dir.known(place) {
                Known::Part(part) => return Ok(Some(part)),
                Known::NoMore => return Ok(None),
                Known::NotYet => {}
            }
            match self.look_further(dir) {
                Err(Unknown::Needs(layer)) if matches!(self.layer(layer), Ok(Layer::Partial(_))) => {
                    return self.partial_part(dir, layer, place);
                }
                looked => looked?,
            }
        }
    }

    /// The part that a partial layer contributes to `dir`, after all layers above were searched. Not cached: the layer
    /// may still turn out to be opaque there, so no lower layer is searched before it is complete.
    fn partial_part(&self, dir: &Arc<Dir>, number: LayerNo, place: usize) -> Result<Option<Part>, Unknown> {
        if place > lock(&dir.parts).found.len() {
            return Err(Unknown::Needs(number));
        }
        let layer = self.layer(number)?;
        let mut at = EntryId::ROOT;
        for name in dir.path().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            steps::take(1)?;
            at = layer.index.child(at, name).map_err(damaged(number))?.ok_or(Unknown::Needs(number))?;
        }
        match layer.index.entry(at).map_err(damaged(number))?.kind() {
            Kind::Directory => Ok(Some(Part { layer: number, entry: at })),
            _ => Err(Unknown::Needs(number)),
        }
    }

    /// Searches one more layer for `dir`: the next one that contributes to its parent.
    ///
    /// Searches for the parents first if necessary, from the root down; a loop, since a path may be deep.
    fn look_further(&self, dir: &Arc<Dir>) -> Result<(), Unknown> {
        let mut chain = vec![dir];
        while let Some(here) = chain.last().copied() {
            let next = here.next();
            let seen = match &here.parent {
                None => self.look_into_layer(next)?,
                Some(parent) => match parent.known(next) {
                    Known::Part(part) => self.look_into(here, part)?,
                    Known::NoMore => Seen::End,
                    Known::NotYet => {
                        chain.push(parent);
                        continue;
                    }
                },
            };
            here.record(next, seen);
            chain.pop();
        }
        Ok(())
    }

    /// What the uppermost of the `left` lowest layers has for the root.
    fn look_into_layer(&self, left: usize) -> Result<Seen, Unknown> {
        let Some(layer) = left.checked_sub(1).and_then(|layer| u16::try_from(layer).ok()).map(LayerNo) else {
            return Ok(Seen::End);
        };
        self.seen(Part { layer, entry: EntryId::ROOT })
    }

    /// What a layer that contributes to the parent of `dir` has for `dir`.
    fn look_into(&self, dir: &Dir, parent: Part) -> Result<Seen, Unknown> {
        let index = &self.whole(parent.layer)?.index;
        let found = index.child(parent.entry, &dir.name).map_err(damaged(parent.layer))?;
        match found {
            Some(entry) => self.seen(Part { layer: parent.layer, entry }),
            None => steps::take(1).map(|()| Seen::Absent),
        }
    }

    fn seen(&self, part: Part) -> Result<Seen, Unknown> {
        steps::take(1)?;
        let entry = self.whole(part.layer)?.index.entry(part.entry).map_err(damaged(part.layer))?;
        Ok(match entry.kind() {
            Kind::Directory if entry.is(Flags::WHITEOUT_PATH | Flags::HIDES_LOWER) => Seen::End,
            Kind::Directory if entry.is(Flags::OPAQUE) => Seen::LastPart(part),
            Kind::Directory => Seen::Part(part),
            // A whiteout, or an entry that was replaced by a directory above.
            _ => Seen::End,
        })
    }

    /// The uppermost layer and entry that describe `dir`; `None` if layers only have entries inside it.
    ///
    /// A layer with an opaque marker in a directory that it does not describe hides the content of lower layers there,
    /// but not their description of the directory itself.
    pub(super) fn described(&self, dir: &Arc<Dir>) -> Result<Option<(LayerNo, EntryId)>, Unknown> {
        let mut place = 0;
        let mut marked = None;
        while let Some(part) = self.part(dir, place)? {
            let entry = self.layer(part.layer)?.index.entry(part.entry).map_err(damaged(part.layer))?;
            if !entry.is(Flags::IMPLIED) {
                return Ok(Some((part.layer, part.entry)));
            }
            let only_inside = entry.is(Flags::OPAQUE) && !entry.is(Flags::HIDES_LOWER);
            marked = only_inside.then_some(part.layer);
            place += 1;
        }
        match (marked, &dir.parent) {
            (None, _) => Ok(None),
            (Some(marked), None) => self.root_described_below(marked),
            (Some(marked), Some(parent)) => self.described_below(parent, &dir.name, marked),
        }
    }

    fn root_described_below(&self, marked: LayerNo) -> Result<Option<(LayerNo, EntryId)>, Unknown> {
        for number in (0..marked.0).rev().map(LayerNo) {
            let layer = self.layer(number)?;
            if !layer.index.entry(EntryId::ROOT).map_err(damaged(number))?.is(Flags::IMPLIED) {
                return Ok(Some((number, EntryId::ROOT)));
            }
            if layer.partial {
                return Err(Unknown::Needs(number));
            }
        }
        Ok(None)
    }

    /// The description of the directory `name` of `parent` in layers below `marked`, which only empties it.
    fn described_below(
        &self,
        parent: &Arc<Dir>,
        name: &[u8],
        marked: LayerNo,
    ) -> Result<Option<(LayerNo, EntryId)>, Unknown> {
        let mut place = 0;
        while let Some(part) = self.part(parent, place)? {
            place += 1;
            if part.layer >= marked {
                continue;
            }
            let layer = self.layer(part.layer)?;
            if let Some(id) = layer.index.child(part.entry, name).map_err(damaged(part.layer))? {
                let entry = layer.index.entry(id).map_err(damaged(part.layer))?;
                let is_directory = entry.kind() == Kind::Directory;
                if is_directory && !entry.is(Flags::IMPLIED) {
                    return Ok(Some((part.layer, id)));
                }
                if !is_directory || entry.is(Flags::HIDES_LOWER) {
                    return Ok(None);
                }
            }
            if layer.partial {
                return Err(Unknown::Needs(part.layer));
            }
        }
        Ok(None)
    }

    /// The directory of `node`.
    ///
    /// # Errors
    /// [`Unknown::NoSuchNode`] if the node is not a directory of the merged tree.
    pub fn dir(&self, node: NodeId) -> Result<Arc<Dir>, Unknown> {
        if node == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(dir) = lock(&self.dirs).get(&node) {
            return Ok(Arc::clone(dir));
        }
        self.find_again(node)
    }

    /// The directory `name` in `parent`, with the node `node`.
    pub(super) fn child_dir(&self, parent: &Arc<Dir>, name: &[u8], node: NodeId) -> Result<Arc<Dir>, Unknown> {
        let (layer, entry) = self.parse(node)?;
        let mut dirs = lock(&self.dirs);
        let dir = dirs.entry(node).or_insert_with(|| Arc::new(Dir::child(parent, name, layer, entry)));
        Ok(Arc::clone(dir))
    }

    /// The directory `name` in `parent`; `None` if there is no such directory.
    ///
    /// A hard link to a lower layer's file must not be entered: its number does not tell which layers contribute to a
    /// directory of that name.
    pub(super) fn subdirectory(&self, parent: &Arc<Dir>, name: &[u8]) -> Result<Option<Arc<Dir>>, Unknown> {
        let Some(node) = self.lookup(parent, name)? else { return Ok(None) };
        let (layer, entry) = self.parse(node)?;
        if self.layer(layer)?.index.entry(entry).map_err(damaged(layer))?.kind() != Kind::Directory {
            return Ok(None);
        }
        let known = lock(&self.dirs).get(&node).map(Arc::clone);
        Ok(Some(known.unwrap_or_else(|| Arc::new(Dir::child(parent, name, layer, entry)))))
    }

    /// Records the place of a directory, so that its number alone finds it later.
    ///
    /// # Errors
    /// [`Unknown::NoSuchNode`]
    pub fn remember(&self, parent: &Arc<Dir>, name: &[u8], node: NodeId) -> Result<(), Unknown> {
        self.child_dir(parent, name, node).map(drop)
    }

    /// Finds a directory by its path in its own layer.
    fn find_again(&self, node: NodeId) -> Result<Arc<Dir>, Unknown> {
        let no_such = || Unknown::NoSuchNode(node.get());
        let (number, id) = self.parse(node)?;
        let mut dir = Arc::clone(&self.root);
        for name in self.names_to(number, id)? {
            dir = self.subdirectory(&dir, &name)?.ok_or_else(no_such)?;
            lock(&self.dirs).entry(dir.id()).or_insert_with(|| Arc::clone(&dir));
        }
        if dir.id() == node { Ok(dir) } else { Err(no_such()) }
    }

    /// The path from the root to an entry of a layer.
    fn names_to(&self, number: LayerNo, mut id: EntryId) -> Result<Vec<Vec<u8>>, Unknown> {
        let index = self.index(number)?;
        let mut names = Vec::new();
        while id != EntryId::ROOT {
            // A path longer than possible means that the index has a cycle.
            if names.len() > MAX_DEPTH {
                return Err(Unknown::NoSuchNode(NodeId::new(number, id).get()));
            }
            names.push(index.name(id).map_err(damaged(number))?.to_vec());
            id = index.entry(id).map_err(damaged(number))?.parent();
        }
        names.reverse();
        Ok(names)
    }
}

enum Seen {
    Absent,
    Part(Part),
    LastPart(Part),
    End,
}

/// More than the depth of a layer's tree: paths are limited, and so are targets of symlinks in lower layers.
pub(super) const MAX_DEPTH: usize = 65_536;
