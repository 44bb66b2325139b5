//! The overlay view: one tree of many layers, computed on access.
//!
//! Layers are in manifest order, base first. A name is resolved from the top layer down: the first layer with the name
//! or a whiteout for it decides; an opaque directory ends the search (image-spec, layer.md, "Whiteouts"). Nothing is
//! merged in advance: a directory has the list of layers that contribute to it, which is extended downwards only as far
//! as a lookup needs. So a lookup that upper layers decide succeeds before the lower layers are indexed. If a layer
//! that is not indexed yet could change the result, the result is [`Unknown::Needs`] with that layer, and the caller
//! retries once the layer is there.
//!
//! A node is identified by (layer, entry), independent of earlier lookups: inode numbers are stable across mounts and
//! need no table, and hard links are one inode by construction.

mod below;
mod dir;
mod links;
mod list;
mod lower;
mod node;
mod prepare;
mod steps;
#[cfg(test)]
pub(crate) mod testing;
mod through;
mod walk;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use lru::LruCache;

pub use dir::Dir;
pub use list::Listed;
pub use lower::LowerNode;
pub use node::{LayerNo, NodeAttr, NodeId};
pub use prepare::MergeError;
pub use steps::within;
pub use walk::{Last, MAX_LINKS, Walked};

use crate::layer::{Entry, EntryId, Flags, IndexError, Kind, LayerIndex, is_hidden};
use crate::sync::lock;
use prepare::Prepared;

/// The merged view of an image's layers.
pub struct Overlay {
    known: Arc<dyn KnownLayers>,
    layers: Box<[Slot]>,
    root: Arc<Dir>,
    /// Accessed directories; a cache, since a directory can be found again by its path.
    dirs: Mutex<HashMap<NodeId, Arc<Dir>>>,
    listings: Mutex<LruCache<NodeId, Arc<[list::Place]>>>,
    /// Link counts of inodes with several names; counting visits every one of them.
    link_counts: Mutex<LruCache<NodeId, u32>>,
    /// Steps left for preparing layers.
    steps_left: AtomicU64,
    /// Set when the mount has ended.
    ended: Arc<AtomicBool>,
}

/// The available layers of an image.
pub trait KnownLayers: Send + Sync {
    /// The available part of a layer. Layers of an image are numbered from its base.
    fn known(&self, layer: LayerNo) -> KnownLayer;
}

/// The available part of a layer.
#[derive(Clone, Debug)]
pub enum KnownLayer {
    /// Nothing.
    Nothing,
    /// The entries read so far; they keep their numbers.
    Partial(Arc<LayerIndex>),
    /// The complete layer, which never changes again.
    Whole(Arc<LayerIndex>),
}

/// A layer, prepared for the layers below it.
#[derive(Default)]
struct Slot {
    /// Of the complete layer.
    prepared: OnceLock<Result<Prepared, Arc<MergeError>>>,
    /// Of the last partial layer used while the layer is being read.
    partial: Mutex<Option<Arc<Prepared>>>,
}

/// A complete or a partial layer.
enum Layer<'a> {
    Whole(&'a Prepared),
    Partial(Arc<Prepared>),
}

impl std::ops::Deref for Layer<'_> {
    type Target = Prepared;

    fn deref(&self) -> &Prepared {
        match self {
            Self::Whole(layer) => layer,
            Self::Partial(layer) => layer,
        }
    }
}

/// Why a lookup has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unknown {
    /// A layer that could change the result is not available yet, or not [prepared](Overlay::prepare).
    #[error("layer {0} is not known yet")]
    Needs(LayerNo),
    /// A layer index was found damaged.
    #[error("the layer index of layer {layer} is damaged")]
    Damaged {
        /// The layer.
        layer: LayerNo,
        /// The damage.
        #[source]
        cause: Arc<IndexError>,
    },
    /// A layer cannot be merged with those below it, or that takes too long.
    #[error("layer {layer} cannot be shown")]
    Refused {
        /// The layer.
        layer: LayerNo,
        /// Why.
        #[source]
        cause: Arc<MergeError>,
    },
    /// The lookup exceeds its [limit](within) of steps.
    #[error("this takes too many steps")]
    TakesLong,
    /// No node of this image has this number.
    #[error("node {0} does not exist")]
    NoSuchNode(u64),
}

impl Overlay {
    /// A view of `count` layers; `known` is asked for their available part on each access.
    pub fn new(count: u16, known: Arc<dyn KnownLayers>) -> Self {
        Self {
            known,
            layers: (0..count).map(|_| Slot::default()).collect(),
            root: Arc::new(Dir::root(count)),
            dirs: Mutex::default(),
            listings: Mutex::new(LruCache::new(LISTINGS)),
            link_counts: Mutex::new(LruCache::new(LINK_COUNTS)),
            steps_left: AtomicU64::new(prepare::PREPARE_STEPS),
            ended: Arc::default(),
        }
    }

    /// The same view with no index page in memory, for a walk of the whole tree: a view keeps every page that is read.
    /// All layers must be [prepared](Overlay::prepare).
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn afresh(&self) -> Result<Self, Unknown> {
        let fresh = Self::new(self.layer_count(), Arc::clone(&self.known));
        for (number, slot) in (0..self.layer_count()).map(LayerNo).zip(&fresh.layers) {
            let _ = slot.prepared.set(Ok(self.whole(number)?.afresh()));
        }
        Ok(fresh)
    }

    /// Bytes of index pages in memory.
    pub fn resident_bytes(&self) -> usize {
        let prepared = self.layers.iter().filter_map(|slot| slot.prepared.get()?.as_ref().ok());
        prepared.map(|layer| layer.index.resident_bytes()).sum()
    }

    /// Whether a layer is complete; it may still have to be [prepared](Overlay::prepare).
    pub fn knows(&self, layer: LayerNo) -> bool {
        self.is_prepared(layer) || matches!(self.known.known(layer), KnownLayer::Whole(_))
    }

    /// Ends the view: long lookups may stop.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The number of layers of the image.
    pub fn layer_count(&self) -> u16 {
        u16::try_from(self.layers.len()).expect("it was made from a u16")
    }

    /// The root directory.
    pub fn root(&self) -> &Arc<Dir> {
        &self.root
    }

    /// The node at `name` in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn lookup(&self, dir: &Arc<Dir>, name: &[u8]) -> Result<Option<NodeId>, Unknown> {
        if is_hidden(name) { Ok(None) } else { self.find(dir, name) }
    }

    /// As [`Overlay::lookup`], including names that are never shown: hard links may lead to them.
    fn find(&self, dir: &Arc<Dir>, name: &[u8]) -> Result<Option<NodeId>, Unknown> {
        self.find_from(dir, 0, name)
    }

    /// As [`Overlay::find`], without the uppermost `place` layers that contribute to `dir`.
    fn find_from(&self, dir: &Arc<Dir>, mut place: usize, name: &[u8]) -> Result<Option<NodeId>, Unknown> {
        // The uppermost directory of this name that only contains whiteouts.
        let mut passed = None;
        while let Some(part) = self.part(dir, place)? {
            steps::take(1)?;
            let layer = self.layer(part.layer)?;
            if let Some(id) = layer.index.child(part.entry, name).map_err(damaged(part.layer))? {
                let entry = layer.index.entry(id).map_err(damaged(part.layer))?;
                if !leaves_to_lower(&entry) {
                    let found = self.decide(part.layer, &layer, id, &entry)?;
                    return Ok(passed.filter(|_| found.is_some() && entry.kind() == Kind::Directory).or(found));
                }
                passed = passed.or(Some(NodeId::new(part.layer, id)));
            }
            if layer.partial {
                return Err(Unknown::Needs(part.layer));
            }
            place += 1;
        }
        Ok(None)
    }

    /// The node for `entry`, the uppermost one of its name.
    fn decide(&self, number: LayerNo, layer: &Prepared, id: EntryId, entry: &Entry) -> Result<Option<NodeId>, Unknown> {
        Ok(match entry.kind() {
            // The layer's own entry for this name may still follow.
            Kind::Whiteout if layer.partial => return Err(Unknown::Needs(number)),
            Kind::Whiteout => None,
            Kind::LowerLink => layer.lower_links.get(&entry.inode()).copied(),
            Kind::Directory if entry.is(Flags::WHITEOUT_PATH) => None,
            Kind::Directory => Some(NodeId::new(number, id)),
            _ => Some(NodeId::new(number, entry.inode())),
        })
    }

    /// A node's metadata.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn attr(&self, node: NodeId) -> Result<NodeAttr, Unknown> {
        if node == NodeId::ROOT {
            return self.dir_attr(&self.root);
        }
        let (number, id) = self.parse(node)?;
        let layer = self.layer(number)?;
        let entry = layer.index.entry(id).map_err(damaged(number))?;
        if entry.kind() == Kind::Directory {
            return self.dir_attr(&self.dir(node)?);
        }
        let nlink = self.nlink(node, &entry)?;
        let disk_size = if entry.is(Flags::SPARSE) { stored_size(number, &layer.index, id)? } else { entry.size() };
        Ok(NodeAttr { settled: !layer.partial, ..NodeAttr::of(node, &entry, nlink, disk_size) })
    }

    /// Metadata of a directory, from the uppermost layer that describes it.
    fn dir_attr(&self, dir: &Arc<Dir>) -> Result<NodeAttr, Unknown> {
        let Some((number, id)) = self.described(dir)? else { return Ok(NodeAttr::implied_dir(dir.id())) };
        let layer = self.layer(number)?;
        let entry = layer.index.entry(id).map_err(damaged(number))?;
        Ok(NodeAttr { settled: !layer.partial, ..NodeAttr::of(dir.id(), &entry, 1, entry.size()) })
    }

    /// The layer and entry with a directory's metadata and extended attributes.
    pub(crate) fn described_by(&self, node: NodeId) -> Result<Option<(LayerNo, EntryId)>, Unknown> {
        let is_dir = node == NodeId::ROOT || {
            let (number, id) = self.parse(node)?;
            self.layer(number)?.index.entry(id).map_err(damaged(number))?.kind() == Kind::Directory
        };
        if !is_dir {
            return self.parse(node).map(Some);
        }
        self.described(&self.dir(node)?)
    }

    /// The layer and entry of a node other than a directory.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn parse(&self, node: NodeId) -> Result<(LayerNo, EntryId), Unknown> {
        let no_such = || Unknown::NoSuchNode(node.get());
        let (number, id) = node.parts().ok_or_else(no_such)?;
        if number.0 >= self.layer_count() {
            return Err(no_such());
        }
        let layer = self.layer(number)?;
        if id.0 >= layer.index.len() {
            // An earlier mount may have shown more of the layer than is read now.
            return Err(if layer.partial { Unknown::Needs(number) } else { no_such() });
        }
        Ok((number, id))
    }

    /// The index of a layer within this image. It differs from the layer's own index if a lower layer has a symlink in
    /// the place of an implied directory.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn index(&self, layer: LayerNo) -> Result<Arc<LayerIndex>, Unknown> {
        Ok(Arc::clone(&self.layer(layer)?.index))
    }

    /// The kernel has dropped a directory; removes it from the cache.
    pub fn forget(&self, node: NodeId) {
        lock(&self.dirs).remove(&node);
    }

    /// A layer, possibly partial. A layer that depends on those below is not shown before it is prepared.
    fn layer(&self, number: LayerNo) -> Result<Layer<'_>, Unknown> {
        let slot = self.slot(number)?;
        if slot.prepared.get().is_none()
            && let KnownLayer::Partial(index) = self.known.known(number)
        {
            let alone = !prepare::depends_on_lower(&index);
            return alone.then(|| Layer::Partial(slot.partial(index))).ok_or(Unknown::Needs(number));
        }
        self.whole(number).map(Layer::Whole)
    }

    /// A layer that will not change any more.
    fn whole(&self, number: LayerNo) -> Result<&Prepared, Unknown> {
        let slot = self.slot(number)?;
        let prepared = match slot.prepared.get() {
            Some(prepared) => prepared,
            None => match self.known.known(number) {
                KnownLayer::Whole(index) if !prepare::depends_on_lower(&index) => slot.alone(index),
                _ => return Err(Unknown::Needs(number)),
            },
        };
        prepared.as_ref().map_err(|cause| Unknown::Refused { layer: number, cause: Arc::clone(cause) })
    }

    fn slot(&self, number: LayerNo) -> Result<&Slot, Unknown> {
        self.layers.get(usize::from(number.0)).ok_or(Unknown::NoSuchNode(number.0.into()))
    }
}

impl Slot {
    /// A complete layer that does not depend on those below.
    fn alone(&self, index: Arc<LayerIndex>) -> &Result<Prepared, Arc<MergeError>> {
        *lock(&self.partial) = None;
        self.prepared.get_or_init(|| Ok(Prepared::alone(index, false)))
    }

    /// The entries read so far of a layer that does not depend on those below.
    fn partial(&self, index: Arc<LayerIndex>) -> Arc<Prepared> {
        let mut partial = lock(&self.partial);
        match &*partial {
            Some(latest) if Arc::ptr_eq(&latest.index, &index) => Arc::clone(latest),
            _ => Arc::clone(partial.insert(Arc::new(Prepared::alone(index, true)))),
        }
    }
}

/// Whether the layers below decide what the name of `entry` is.
fn leaves_to_lower(entry: &Entry) -> bool {
    entry.is(Flags::WHITEOUT_PATH) && !entry.is(Flags::HIDES_LOWER)
}

/// Bytes of a sparse file outside its holes.
fn stored_size(number: LayerNo, index: &LayerIndex, id: EntryId) -> Result<u64, Unknown> {
    let (count, mut runs) = index.runs(id).map_err(damaged(number))?;
    steps::take(count / RUNS_A_STEP)?;
    runs.try_fold(0_u64, |sum, run| Ok(sum.saturating_add(run?.len))).map_err(damaged(number))
}

fn damaged(layer: LayerNo) -> impl Fn(IndexError) -> Unknown {
    move |cause| Unknown::Damaged { layer, cause: Arc::new(cause) }
}

/// Data runs of sparse files added up per step.
const RUNS_A_STEP: u64 = 16;
/// Limit for cached listings; a dropped listing is recomputed identically.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Limit for cached link counts.
const LINK_COUNTS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use peelfs_loopback::tar::Entry;

    use super::testing::{index, settable};
    use super::*;

    /// A partial layer is not cached; it is queried again until it is complete.
    #[test]
    fn the_available_part_is_queried_every_time() {
        let (overlay, layers) = settable(2);
        let base = LayerNo(0);
        layers.set(LayerNo(1), KnownLayer::Whole(index([Entry::dir("."), Entry::file("top", "")])));
        let look = |name: &[u8]| overlay.lookup(overlay.root(), name);
        let needs = |name: &[u8]| matches!(look(name), Err(Unknown::Needs(LayerNo(0))));
        let some = || index([Entry::dir("."), Entry::file("a", "")]);
        assert!(look(b"top").unwrap().is_some() && needs(b"a"));
        layers.set(base, KnownLayer::Partial(some()));
        let a = look(b"a").unwrap().unwrap();
        assert!(needs(b"b") && !overlay.knows(base) && !overlay.attr(a).unwrap().settled);
        // The pass has failed.
        layers.set(base, KnownLayer::Nothing);
        assert!(needs(b"a") && needs(b"b"));
        // Another pass has read more.
        layers.set(base, KnownLayer::Partial(index([Entry::dir("."), Entry::file("a", ""), Entry::file("b", "")])));
        assert!(look(b"b").unwrap().is_some() && needs(b"c"));
        layers.set(base, KnownLayer::Whole(index([Entry::dir("."), Entry::file("a", ""), Entry::file("b", "")])));
        assert_eq!(look(b"c").unwrap(), None);
        assert!(overlay.knows(base) && overlay.attr(a).unwrap().settled);
    }

    /// Otherwise a layer that is shown alone would need all layers below.
    #[test]
    fn a_layer_that_needs_none_below_is_prepared_when_it_is_known() {
        let (overlay, layers) = settable(2);
        assert!(!overlay.is_prepared(LayerNo(1)));
        layers.set(LayerNo(1), KnownLayer::Partial(index([Entry::dir("."), Entry::file("f", "")])));
        assert!(!overlay.is_prepared(LayerNo(1)) && !overlay.knows(LayerNo(1)));
        layers.set(LayerNo(1), KnownLayer::Whole(index([Entry::dir("."), Entry::file("f", "")])));
        assert!(overlay.is_prepared(LayerNo(1)) && overlay.prepare(LayerNo(1)).is_ok());
        layers.set(LayerNo(0), KnownLayer::Whole(index([Entry::file("d/f", "")])));
        assert!(!overlay.is_prepared(LayerNo(0)) && overlay.knows(LayerNo(0)));
    }

    /// An implied directory may be a symlink below, so its layer is not shown before it is complete.
    #[test]
    fn what_depends_on_lower_layers_is_not_shown_in_part() {
        let (overlay, layers) = settable(1);
        layers.set(LayerNo(0), KnownLayer::Partial(index([Entry::file("d/f", "")])));
        assert!(matches!(overlay.lookup(overlay.root(), b"d"), Err(Unknown::Needs(_))));
        layers.set(LayerNo(0), KnownLayer::Whole(index([Entry::file("d/f", "")])));
        assert!(matches!(overlay.lookup(overlay.root(), b"d"), Err(Unknown::Needs(_))), "it is to be prepared");
        overlay.prepare(LayerNo(0)).unwrap();
        assert!(overlay.lookup(overlay.root(), b"d").unwrap().is_some());
    }
}
