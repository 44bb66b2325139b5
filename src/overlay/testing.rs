//! Layers for the tests of this module.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use super::{KnownLayer, KnownLayers, LayerNo, Overlay, steps};
use crate::digest::{Algorithm, Digest};
use crate::layer::{IndexedLayer, LayerIndex, LayerTree, Proof, TarWalker, write_index};
use crate::sync::lock;
use peelfs_loopback::tar::{Entry, append_end};

/// The index of a layer with these entries.
pub(crate) fn index(entries: impl IntoIterator<Item = Entry>) -> Arc<LayerIndex> {
    let mut tar = Vec::new();
    entries.into_iter().for_each(|entry| entry.write(&mut tar));
    append_end(&mut tar);
    let (mut walker, mut tree) = (TarWalker::new(), LayerTree::default());
    walker.push(&tar, &mut tree).unwrap();
    walker.finish().unwrap();
    let digest = Digest::of(Algorithm::Sha256, &tar);
    let size = tar.len() as u64;
    let of = IndexedLayer { blob: digest.clone(), blob_size: size, diff_id: digest, decoded_size: size };
    let mut bytes = Vec::new();
    write_index(&tree, &[], &[], &of, &Proof::Built, &mut bytes).unwrap();
    Arc::new(LayerIndex::open(bytes).unwrap())
}

/// Layers whose available part is set by a test.
pub(super) struct SettableLayers(pub(super) Mutex<Vec<KnownLayer>>);

impl SettableLayers {
    pub(super) fn set(&self, layer: LayerNo, known: KnownLayer) {
        lock(&self.0)[usize::from(layer.0)] = known;
    }
}

impl KnownLayers for SettableLayers {
    fn known(&self, layer: LayerNo) -> KnownLayer {
        lock(&self.0)[usize::from(layer.0)].clone()
    }
}

/// A view of `count` layers whose available part is set by the test.
pub(super) fn settable(count: u16) -> (Overlay, Arc<SettableLayers>) {
    let settable = Arc::new(SettableLayers(Mutex::new(vec![KnownLayer::Nothing; usize::from(count)])));
    (Overlay::new(count, Arc::clone(&settable) as _), settable)
}

/// A view of these complete layers, base first.
pub(super) fn of(layers: impl IntoIterator<Item = Arc<LayerIndex>>) -> Overlay {
    let known: Vec<_> = layers.into_iter().map(KnownLayer::Whole).collect();
    let count = u16::try_from(known.len()).unwrap();
    Overlay::new(count, Arc::new(SettableLayers(Mutex::new(known))))
}

/// A view of these layers, base first, and the steps to prepare each of them.
pub(super) fn over(layers: &[Arc<LayerIndex>]) -> (Overlay, Vec<u64>) {
    let overlay = of(layers.iter().cloned());
    let prepare = |number: LayerNo| {
        let before = overlay.steps_left.load(std::sync::atomic::Ordering::Relaxed);
        overlay.prepare(number).unwrap();
        before - overlay.steps_left.load(std::sync::atomic::Ordering::Relaxed)
    };
    let steps = (0..overlay.layer_count()).map(LayerNo).map(prepare).collect();
    (overlay, steps)
}

/// The number of steps that `what` takes.
pub(super) fn steps_of(what: impl FnOnce()) -> u64 {
    steps::within(u64::MAX, None, || {
        what();
        u64::MAX - steps::left()
    })
}
