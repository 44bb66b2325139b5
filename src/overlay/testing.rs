//! Layers for the tests of this room.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::{LayerNo, Overlay, steps};
use crate::digest::{Algorithm, Digest};
use crate::layer::{IndexedLayer, LayerIndex, LayerTree, Proof, TarWalker, write_index};
use peelfs_loopback::tar::{Entry, append_end};

/// The index of a layer with these entries.
pub(super) fn index(entries: impl IntoIterator<Item = Entry>) -> Arc<LayerIndex> {
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

/// These layers, base first, and the steps that it took to put each over those below.
pub(super) fn over(layers: &[Arc<LayerIndex>]) -> (Overlay, Vec<u64>) {
    let overlay = Overlay::new(u16::try_from(layers.len()).unwrap());
    let prepare = |(number, index): (LayerNo, &Arc<LayerIndex>)| {
        overlay.supply(number, Arc::clone(index));
        let before = overlay.steps_left.load(std::sync::atomic::Ordering::Relaxed);
        overlay.prepare(number).unwrap();
        before - overlay.steps_left.load(std::sync::atomic::Ordering::Relaxed)
    };
    let steps = (0..).map(LayerNo).zip(layers).map(prepare).collect();
    (overlay, steps)
}

/// How many steps something takes.
pub(super) fn steps_of(what: impl FnOnce()) -> u64 {
    steps::within(u64::MAX, None, || {
        what();
        u64::MAX - steps::left()
    })
}
