//! Directories of the merged tree, and which layers take part in each.

use std::sync::{Arc, Mutex};

use super::node::{LayerNo, NodeId};
use super::{Layer, Overlay, Unknown, damaged, lock};
use crate::layer::{EntryId, Flags, Kind};

/// A directory that has been looked at.
///
/// Its path is remembered through its parents. A layer's tree is refused when it is too deep, so the
/// chain of parents is short.
#[derive(Debug)]
pub struct Dir {
    id: NodeId,
    parent: Option<Arc<Dir>>,
    name: Box<[u8]>,
    parts: Mutex<Parts>,
}

/// The layers that take part in a directory, from the top, as far as they have been looked for.
#[derive(Debug)]
struct Parts {
    found: Vec<Part>,
    /// The next layer below to be examined, plus one; 0 when nothing below takes part.
    unexamined: u16,
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
        let parts = Parts { found: Vec::new(), unexamined: layers };
        Self { id: NodeId::ROOT, parent: None, name: Box::default(), parts: Mutex::new(parts) }
    }

    /// A directory whose uppermost entry is `entry` of `layer`.
    pub(super) fn child(parent: &Arc<Self>, name: &[u8], layer: LayerNo, entry: EntryId) -> Self {
        // `layer` itself is examined like those below: it finds `entry` again, and whether that is opaque.
        let parts = Parts { found: Vec::new(), unexamined: layer.0 + 1 };
        Self {
            id: NodeId::new(layer, entry),
            parent: Some(Arc::clone(parent)),
            name: name.into(),
            parts: Mutex::new(parts),
        }
    }

    /// The node this directory is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The directory it lies in; `None` for the root.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Its name in there; empty for the root.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The names from the root to here, joined by `/`; empty for the root.
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

    fn examined(&self, layer: LayerNo) -> bool {
        lock(&self.parts).unexamined <= layer.0
    }
}

impl Overlay {
    /// The `place`-th layer, counted from the top, that takes part in `dir`.
    pub(super) fn part(&self, dir: &Arc<Dir>, place: usize) -> Result<Option<Part>, Unknown> {
        loop {
            let next = {
                let parts = lock(&dir.parts);
                if let Some(part) = parts.found.get(place) {
                    return Ok(Some(*part));
                }
                match parts.unexamined.checked_sub(1) {
                    Some(next) => LayerNo(next),
                    None => return Ok(None),
                }
            };
            if matches!(self.layer(next), Ok(Layer::Growing(_))) {
                return self.growing_part(dir, next, place);
            }
            self.examine_down_to(dir, next)?;
        }
    }

    /// The part that a layer still being read has in `dir`. It is not remembered: the layer may yet turn
    /// out to be opaque there, so nothing below it is asked before it is whole.
    fn growing_part(&self, dir: &Arc<Dir>, number: LayerNo, place: usize) -> Result<Option<Part>, Unknown> {
        if place > lock(&dir.parts).found.len() {
            return Err(Unknown::Needs(number));
        }
        if let Some(parent) = &dir.parent {
            if !parent.examined(LayerNo(number.0 + 1)) {
                self.examine_down_to(parent, LayerNo(number.0 + 1))?;
            }
            if lock(&parent.parts).unexamined == 0 {
                lock(&dir.parts).unexamined = 0;
                return Ok(None);
            }
        }
        let layer = self.layer(number)?;
        let mut at = EntryId::ROOT;
        for name in dir.path().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = layer.index.child(at, name).map_err(damaged(number))?.ok_or(Unknown::Needs(number))?;
        }
        match layer.index.entry(at).map_err(damaged(number))?.kind() {
            Kind::Directory => Ok(Some(Part { layer: number, entry: at })),
            _ => Err(Unknown::Needs(number)),
        }
    }

    /// Finds out which layers, from the top down to `layer`, take part in `dir`.
    ///
    /// Whether a layer takes part depends on the parents, so those that have not been examined as far
    /// are examined first, from the root on: a loop, since a path may be deep.
    fn examine_down_to(&self, dir: &Arc<Dir>, layer: LayerNo) -> Result<(), Unknown> {
        let mut chain = vec![dir];
        while let Some(parent) = chain.last().and_then(|dir| dir.parent.as_ref()) {
            if parent.examined(layer) {
                break;
            }
            chain.push(parent);
        }
        for dir in chain.into_iter().rev() {
            loop {
                let next = match lock(&dir.parts).unexamined.checked_sub(1) {
                    Some(next) if next >= layer.0 => LayerNo(next),
                    _ => break,
                };
                let seen = self.examine(dir, next)?;
                let mut parts = lock(&dir.parts);
                if parts.unexamined != next.0 + 1 {
                    continue; // another thread was here meanwhile, and found the same
                }
                parts.unexamined = match seen {
                    Seen::Absent => next.0,
                    Seen::Part(part) => {
                        parts.found.push(part);
                        next.0
                    }
                    Seen::LastPart(part) => {
                        parts.found.push(part);
                        0
                    }
                    Seen::End => 0,
                };
            }
        }
        Ok(())
    }

    fn examine(&self, dir: &Arc<Dir>, number: LayerNo) -> Result<Seen, Unknown> {
        let index = &self.whole(number)?.index;
        let found = match &dir.parent {
            None => Some(EntryId::ROOT),
            Some(parent) => {
                let parts = lock(&parent.parts);
                match parts.found.iter().rev().find(|part| part.layer == number) {
                    Some(part) => index.child(part.entry, &dir.name).map_err(damaged(number))?,
                    // Once no layer below takes part in the parent, none does here.
                    None if parts.unexamined == 0 && parts.found.last().is_none_or(|part| part.layer > number) => {
                        return Ok(Seen::End);
                    }
                    None => None,
                }
            }
        };
        let Some(id) = found else { return Ok(Seen::Absent) };
        let entry = index.entry(id).map_err(damaged(number))?;
        let part = Part { layer: number, entry: id };
        Ok(match entry.kind() {
            Kind::Directory if entry.is(Flags::OPAQUE) => Seen::LastPart(part),
            Kind::Directory => Seen::Part(part),
            // A whiteout, or something else that a directory above has replaced.
            _ => Seen::End,
        })
    }

    /// The uppermost layer and entry that describe `dir`; `None` when layers only have something inside it.
    ///
    /// A layer whose opaque marker stands in a directory that it does not describe hides what lower
    /// layers have in there, not what they say about the directory itself.
    pub(super) fn described(&self, dir: &Arc<Dir>) -> Result<Option<(LayerNo, EntryId)>, Unknown> {
        let mut dir = Arc::clone(dir);
        loop {
            let mut place = 0;
            let mut last = None;
            while let Some(part) = self.part(&dir, place)? {
                let entry = self.layer(part.layer)?.index.entry(part.entry).map_err(damaged(part.layer))?;
                if !entry.is(Flags::IMPLIED) {
                    return Ok(Some((part.layer, part.entry)));
                }
                let only_inside = entry.is(Flags::OPAQUE) && !entry.is(Flags::HIDES_LOWER);
                last = only_inside.then_some(part.layer);
                place += 1;
            }
            let Some(marked) = last else { return Ok(None) };
            match self.same_below(&dir, marked)? {
                Some(below) => dir = below,
                None => return Ok(None),
            }
        }
    }

    /// The directory of the same name in the layers below `layer`, unless that layer hides a parent.
    fn same_below(&self, dir: &Arc<Dir>, layer: LayerNo) -> Result<Option<Arc<Dir>>, Unknown> {
        let mut names = Vec::new();
        let mut at = dir;
        while let Some(parent) = at.parent() {
            names.push(at.name());
            let last = lock(&parent.parts).found.last().copied();
            if let Some(part) = last.filter(|part| part.layer == layer) {
                let entry = self.layer(layer)?.index.entry(part.entry).map_err(damaged(layer))?;
                if entry.is(Flags::OPAQUE) {
                    return Ok(None);
                }
            }
            at = parent;
        }
        let mut here = Arc::new(Dir::root(layer.0));
        for name in names.into_iter().rev() {
            let Some(node) = self.lookup(&here, name)? else { return Ok(None) };
            let (number, id) = self.parse(node)?;
            if self.layer(number)?.index.entry(id).map_err(damaged(number))?.kind() != Kind::Directory {
                return Ok(None);
            }
            here = Arc::new(Dir::child(&here, name, number, id));
        }
        Ok(Some(here))
    }

    /// The directory that `node` is.
    ///
    /// # Errors
    /// [`Unknown::NoSuchNode`] when the node is not a directory of the merged tree.
    pub fn dir(&self, node: NodeId) -> Result<Arc<Dir>, Unknown> {
        if node == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(dir) = lock(&self.dirs).get(&node) {
            return Ok(Arc::clone(dir));
        }
        self.find_again(node)
    }

    /// The directory called `name` in `parent`, which was found to be `node`.
    pub(super) fn child_dir(&self, parent: &Arc<Dir>, name: &[u8], node: NodeId) -> Result<Arc<Dir>, Unknown> {
        let (layer, entry) = self.parse(node)?;
        let mut dirs = lock(&self.dirs);
        let dir = dirs.entry(node).or_insert_with(|| Arc::new(Dir::child(parent, name, layer, entry)));
        Ok(Arc::clone(dir))
    }

    /// The directory called `name` in `parent`; `None` when that is something else or nothing.
    ///
    /// A hard link to a lower layer's file must not be entered: its number says nothing about which
    /// layers take part in a directory of that name.
    pub(super) fn subdirectory(&self, parent: &Arc<Dir>, name: &[u8]) -> Result<Option<Arc<Dir>>, Unknown> {
        let Some(node) = self.lookup(parent, name)? else { return Ok(None) };
        let (layer, entry) = self.parse(node)?;
        if self.layer(layer)?.index.entry(entry).map_err(damaged(layer))?.kind() != Kind::Directory {
            return Ok(None);
        }
        self.child_dir(parent, name, node).map(Some)
    }

    /// Remembers where a directory lies, so that its number alone finds it later.
    ///
    /// # Errors
    /// [`Unknown::NoSuchNode`]
    pub fn remember(&self, parent: &Arc<Dir>, name: &[u8], node: NodeId) -> Result<(), Unknown> {
        self.child_dir(parent, name, node).map(drop)
    }

    /// Finds a directory by the names that lead to it in its own layer.
    fn find_again(&self, node: NodeId) -> Result<Arc<Dir>, Unknown> {
        let no_such = || Unknown::NoSuchNode(node.get());
        let (number, id) = self.parse(node)?;
        let mut dir = Arc::clone(&self.root);
        for name in self.names_to(number, id)? {
            dir = self.subdirectory(&dir, &name)?.ok_or_else(no_such)?;
        }
        if dir.id() == node { Ok(dir) } else { Err(no_such()) }
    }

    /// The names from the root to an entry of a layer.
    pub(super) fn names_to(&self, number: LayerNo, mut id: EntryId) -> Result<Vec<Vec<u8>>, Unknown> {
        let index = self.index(number)?;
        let mut names = Vec::new();
        while id != EntryId::ROOT {
            // More steps than a path has components mean that the index runs in a circle.
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

/// A layer's tree is no deeper than this.
const MAX_DEPTH: usize = 4096;
