//! Listings: all names of a merged directory.

use std::sync::Arc;

use super::dir::Part;
use super::{Dir, LayerNo, NodeId, Overlay, Unknown, damaged, leaves_to_lower, lock, steps};
use crate::layer::{EntryId, Kind, is_hidden};

/// An entry of a directory listing.
#[derive(Debug)]
pub struct Listed<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its node.
    pub node: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// The position after this name.
    pub next: u64,
}

/// The position of a name of a merged listing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    layer: LayerNo,
    entry: EntryId,
}

impl Overlay {
    /// Calls `each` for the names of `dir`, sorted by bytes, from position `from` (0 is the first), until it returns
    /// `false`. Positions never change.
    ///
    /// # Errors
    /// [`Unknown`]; needs every layer that contributes.
    pub fn list(
        &self,
        dir: &Arc<Dir>,
        from: u64,
        each: &mut dyn FnMut(Listed<'_>) -> Result<bool, Unknown>,
    ) -> Result<(), Unknown> {
        if self.part(dir, 1)?.is_none() {
            return match self.part(dir, 0)? {
                Some(part) => self.list_one_layer(dir, part, from, each),
                None => Ok(()),
            };
        }
        let places = self.merged(dir)?;
        for (at, place) in places.iter().enumerate().skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            if !self.show(dir, *place, at as u64 + 1, each)? {
                break;
            }
        }
        Ok(())
    }

    /// Most directories come from one layer, whose sorted children are the listing.
    fn list_one_layer(
        &self,
        dir: &Arc<Dir>,
        part: Part,
        from: u64,
        each: &mut dyn FnMut(Listed<'_>) -> Result<bool, Unknown>,
    ) -> Result<(), Unknown> {
        let layer = part.layer;
        let index = &self.whole(layer)?.index;
        let count = index.child_count(part.entry).map_err(damaged(layer))?;
        for at in from.min(count.into()) as u32..count {
            let Some(entry) = index.child_at(part.entry, at).map_err(damaged(layer))? else { break };
            if !self.show(dir, Place { layer, entry }, u64::from(at) + 1, each)? {
                break;
            }
        }
        Ok(())
    }

    fn show(
        &self,
        dir: &Arc<Dir>,
        place: Place,
        next: u64,
        each: &mut dyn FnMut(Listed<'_>) -> Result<bool, Unknown>,
    ) -> Result<bool, Unknown> {
        steps::take(1)?;
        let layer = self.whole(place.layer)?;
        let name = layer.index.name(place.entry).map_err(damaged(place.layer))?;
        if is_hidden(name) {
            return Ok(true);
        }
        let entry = layer.index.entry(place.entry).map_err(damaged(place.layer))?;
        let left_to_lower = leaves_to_lower(&entry);
        let node =
            if left_to_lower { self.find(dir, name)? } else { self.decide(place.layer, layer, place.entry, &entry)? };
        let Some(node) = node else { return Ok(true) };
        let kind = match entry.kind() {
            kind if kind != Kind::LowerLink && !left_to_lower => kind,
            _ => self.kind(node)?,
        };
        each(Listed { name, node, kind, next })
    }

    fn kind(&self, node: NodeId) -> Result<Kind, Unknown> {
        let (layer, entry) = self.parse(node)?;
        Ok(self.whole(layer)?.index.entry(entry).map_err(damaged(layer))?.kind())
    }

    /// The names of all contributing layers, the uppermost entry of each, sorted. Whiteouts stay in the list and are
    /// skipped when it is shown.
    fn merged(&self, dir: &Arc<Dir>) -> Result<Arc<[Place]>, Unknown> {
        if let Some(known) = lock(&self.listings).get(&dir.id()) {
            return Ok(Arc::clone(known));
        }
        let mut all: Vec<(&[u8], usize, Place)> = Vec::new();
        let mut rank = 0;
        while let Some(part) = self.part(dir, rank)? {
            let index = &self.whole(part.layer)?.index;
            let count = index.child_count(part.entry).map_err(damaged(part.layer))?;
            steps::take(1 + u64::from(count))?;
            for at in 0..count {
                let Some(entry) = index.child_at(part.entry, at).map_err(damaged(part.layer))? else { break };
                let name = index.name(entry).map_err(damaged(part.layer))?;
                all.push((name, rank, Place { layer: part.layer, entry }));
            }
            rank += 1;
        }
        all.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        all.dedup_by(|later, earlier| later.0 == earlier.0);
        let places: Arc<[Place]> = all.into_iter().map(|(_, _, place)| place).collect();
        lock(&self.listings).put(dir.id(), Arc::clone(&places));
        Ok(places)
    }
}
