//! Evicts all content of a layer and keeps its index, also while mounts show the layer.

use std::ops::Range;

use super::open_layer::{map_of, name_of};
use crate::digest::Digest;
use crate::layer::{LayerIndex, Span};
use crate::offsets::DecodedOffset;
use crate::span::SpanRange;
use crate::store::{IndexName, Store, StoreError};

/// Removes the cached content of a layer; returns the number of bytes freed.
///
/// A process that shows the layer fetches the spans again on its next read: spans are evicted, some at a time, under the
/// lock that guards filling them.
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
    let content = store.content(name_of(index), index.layer().decoded_size, map_of(index))?;
    let before = content.disk_bytes();
    // Neighbours go together, with the pages that they share.
    let mut run = None::<(SpanRange, Range<DecodedOffset>)>;
    for span in index.spans().iter() {
        // Absent spans too: a process that died during eviction may have left their blocks allocated. Readers detect a
        // damaged index themselves.
        let Ok(Span { decoded, .. }) = index.span(span) else { continue };
        match &mut run {
            Some((spans, bytes)) if spans.end == span && bytes.end == decoded.start && spans.count() < TOGETHER => {
                (spans.end, bytes.end) = (span.next(), decoded.end);
            }
            _ => {
                if let Some((spans, bytes)) = run.replace((SpanRange::one(span), decoded)) {
                    content.evict(spans, bytes)?;
                }
            }
        }
    }
    if let Some((spans, bytes)) = run {
        content.evict(spans, bytes)?;
    }
    Ok(before.saturating_sub(content.disk_bytes()))
}

/// Spans that are evicted at once; those who fill spans wait for as long.
const TOGETHER: u32 = 256;
