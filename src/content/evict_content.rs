//! Evicting all content of a layer while its index stays, also under mounts that show it.

use super::open_layer::name_of;
use crate::digest::Digest;
use crate::layer::LayerIndex;
use crate::store::{Store, StoreError};

/// Removes the cached content of a layer; returns how many bytes that has freed.
///
/// A process that shows the layer fetches again what it reads: spans are evicted one by one, under the lock under which
/// they are filled.
///
/// # Errors
/// [`StoreError::Io`]
pub fn evict_content(store: &Store, blob: &Digest) -> Result<u64, StoreError> {
    if let Some(freed) = store.drop_unused_content(blob) {
        return Ok(freed);
    }
    let Some(index) = store.index(blob).and_then(|found| LayerIndex::open(found).ok()) else { return Ok(0) };
    let content = store.content(name_of(&index), index.layer().decoded_size, index.span_count())?;
    let before = content.disk_bytes();
    let passthrough_copies = store.drop_passthrough_copies(blob);
    for span in index.spans().iter() {
        // Also one that is absent: the process that evicted it may have died before it freed the room. That an index is
        // damaged, readers find themselves.
        if let Ok(known) = index.span(span) {
            content.evict(span, known.decoded)?;
        }
    }
    Ok(before.saturating_sub(content.disk_bytes()) + passthrough_copies)
}
