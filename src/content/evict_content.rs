//! Evicts all content of a layer and keeps its index, also while mounts show the layer.

use super::open_layer::name_of;
use crate::digest::Digest;
use crate::layer::LayerIndex;
use crate::store::{IndexName, Store, StoreError};

/// Removes the cached content of a layer; returns the number of bytes freed.
///
/// A process that shows the layer fetches the spans again on its next read: spans are evicted one by one under the lock
/// that guards filling them.
///
/// # Errors
/// [`StoreError::Io`]
pub fn evict_content(store: &Store, blob: &Digest) -> Result<u64, StoreError> {
    if let Some(freed) = store.drop_unused_content(blob) {
        return Ok(freed);
    }
    let mut freed = store.drop_passthrough_copies(blob);
    for name in IndexName::all(blob) {
        if let Some(index) = store.index(name).and_then(|found| LayerIndex::open(found).ok()) {
            freed += evict_spans(store, &index)?;
        }
    }
    Ok(freed)
}

fn evict_spans(store: &Store, index: &LayerIndex) -> Result<u64, StoreError> {
    let content = store.content(name_of(index), index.layer().decoded_size, index.span_count())?;
    let before = content.disk_bytes();
    for span in index.spans().iter() {
        // Absent spans too: a process that died during eviction may have left their blocks allocated. Readers detect a
        // damaged index themselves.
        if let Ok(known) = index.span(span) {
            content.evict(span, known.decoded)?;
        }
    }
    Ok(before.saturating_sub(content.disk_bytes()))
}
