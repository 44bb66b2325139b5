//! One content a layer: what was fetched by an index is dropped once another index, which reads the layer otherwise, is in
//! its place.
//!
//! The index of a first pass replaces one that was made of another maker's table, whose spans are others, so that what was
//! fetched by it serves nothing any more, and cannot be checked. Only `--index foreign` keeps both: then the other index lies
//! beside the layer's own.

use std::sync::Arc;

use super::layer_ref::LayerRef;
use super::origin::{NotOpened, Origin, open_stored};
use crate::digest::Digest;
use crate::layer::{LayerIndex, Proof};
use crate::store::{IndexName, PassLock, Store, StoreError};

/// Removes leftovers of ended processes, as [`Store::tidy`] does, and superseded content. Returns the bytes freed.
///
/// # Errors
/// [`StoreError::Io`] if a directory cannot be read.
pub fn tidy(store: &Store) -> Result<u64, StoreError> {
    let mut freed = store.tidy()?;
    for blob in store.with_several_contents()? {
        freed += drop_superseded(store, &blob);
    }
    for blob in store.with_windows()? {
        drop_unneeded_windows(store, &blob);
    }
    Ok(freed)
}

/// Removes cached windows of a layer none of whose indexes has them in a blob of their own.
pub(super) fn drop_unneeded_windows(store: &Store, blob: &Digest) {
    let indexes = IndexName::all(blob).into_iter().filter_map(|name| LayerIndex::open(store.index(name)?).ok());
    if !indexes.into_iter().any(|index| index.windows_blob().is_ok_and(|windows| windows.is_some())) {
        store.drop_windows(blob);
    }
}

/// Removes content of a layer that none of its indexes describes, unless a process uses the layer or makes its first pass.
/// Returns the bytes freed.
pub fn drop_superseded(store: &Store, blob: &Digest) -> u64 {
    // A pass publishes the content before the index, and holds this lock meanwhile.
    let Some(_held) = store.try_lock_pass(blob).filter(PassLock::is_real) else { return 0 };
    let freed = described(store, blob).map_or(0, |known| store.drop_other_content(blob, &known));
    if freed > 0 {
        tracing::debug!(layer = %blob, freed, "dropped content of an index that was replaced");
    }
    freed
}

/// What the index of a layer that a first pass replaces has its content named by, if that is not the name of the pass's own
/// content, and both are of the same tar. One blob may also be two layers, of which each keeps its content.
pub(super) fn replaced_by_pass(store: &Store, layer: &LayerRef) -> Option<Digest> {
    let index = LayerIndex::open(store.index(layer.index_name())?).ok()?;
    let is_another = *index.stream_name() != *layer.stream_name();
    (layer.is(&index) && is_another).then(|| index.stream_name().clone())
}

/// Bytes of a layer's content that no index in the store describes. 0 if an index cannot be read, as that of another
/// release.
pub(super) fn undescribed(store: &Store, blob: &Digest) -> u64 {
    let has_index = || IndexName::all(blob).into_iter().any(|name| store.index(name).is_some());
    match described(store, blob) {
        Some(known) => store.other_content(blob, &known),
        None if has_index() => 0,
        None => store.other_content(blob, &[]),
    }
}

/// The names of the content that the indexes of a blob are about; `None` if one of them cannot be read, or there is none.
fn described(store: &Store, blob: &Digest) -> Option<Vec<Digest>> {
    let mut known = Vec::new();
    for file in IndexName::all(blob).into_iter().filter_map(|name| store.index(name)) {
        known.push(LayerIndex::open(file).ok()?.stream_name().clone());
    }
    (!known.is_empty()).then_some(known)
}

/// Opens an index that was made of another maker's table: from the store, or, if it cannot be kept there, in memory, for as
/// long as this process runs.
///
/// # Errors
/// [`NotOpened::Unusable`]
pub(super) fn open_foreign(
    layer: &LayerRef,
    bytes: Vec<u8>,
    (origin, proof): (Origin, &Proof),
    store: &Store,
) -> Result<Arc<LayerIndex>, NotOpened> {
    match keep_foreign(layer, &bytes, origin, store) {
        // Another process may have replaced it.
        Some(stored) if stored.proof() == proof => Ok(stored),
        _ => LayerIndex::open(bytes).map(Arc::new).map_err(NotOpened::Unusable),
    }
}

/// Stores it in the place of another such one, or beside what a first pass has made, which is worth more. `None` if it cannot
/// be stored.
fn keep_foreign(layer: &LayerRef, bytes: &[u8], origin: Origin, store: &Store) -> Option<Arc<LayerIndex>> {
    let blob = &layer.blob.digest;
    let has_own = open_stored(layer, &[Origin::Store], store).is_ok();
    let name = if has_own { IndexName::beside(blob) } else { layer.index_name() };
    let kept = store.new_index(name).and_then(|mut file| {
        file.write_all(bytes)?;
        file.publish()
    });
    if let Err(error) = kept {
        store.cannot_keep("the index of a layer", &error);
        return None;
    }
    drop_superseded(store, blob);
    open_stored(layer, &[origin], store).ok().map(|stored| stored.index)
}
