//! Verification of one cached span.

use std::cell::RefCell;

use crate::layer::Span;
use crate::span::{SpanId, SpanRange};
use crate::store::Content;

/// A span's decoded bytes; at most [`Span::MAX`].
pub(super) fn length(span: &Span) -> usize {
    usize::try_from(span.decoded.end - span.decoded.start).expect("the index refuses longer spans")
}

/// What a check found in the store.
pub(super) enum Stored {
    /// Nothing.
    Absent,
    /// Its bytes, and they match the digest.
    Intact,
    /// Bytes that do not match; they have been removed.
    Damaged,
    /// The span was written or evicted during the read: no verdict.
    Changing,
}

/// Compares a cached span with its digest, and passes the bytes to `see` if they match.
pub(super) fn check(
    content: &Content,
    known: &Span,
    span: SpanId,
    before_wait: &mut dyn FnMut(),
    see: impl FnOnce(&[u8]),
) -> Stored {
    let Some(generation) = content.generation(span) else { return Stored::Absent };
    ROOM.with_borrow_mut(|room| {
        if room.len() < length(known) {
            *room = vec![0; length(known)];
        }
        let bytes = &mut room[..length(known)];
        let readable = content.read_telling(known.decoded.start, bytes, before_wait).is_ok();
        let found = judge(content, span, known, generation.get(), if readable { bytes } else { &[] });
        if matches!(found, Stored::Intact) {
            see(bytes);
        }
        found
    })
}

/// Whether a present span's decoded bytes are what its digest says, or, where that is of the blob's bytes, what they were
/// when that was compared.
pub(super) fn holds(content: &Content, span: SpanId, known: &Span, decoded: &[u8]) -> bool {
    match known.check.is_of_blob() {
        true => content.is_as_filled(span, decoded),
        false => known.check.holds(decoded),
    }
}

/// Compares the bytes read from a span, which had `generation` before the read, with its digest. Removes a damaged
/// span.
pub(super) fn judge(content: &Content, span: SpanId, known: &Span, generation: u8, bytes: &[u8]) -> Stored {
    let intact = bytes.len() == length(known) && holds(content, span, known, bytes);
    if !content.still(SpanRange::one(span), |_| generation) {
        return Stored::Changing;
    }
    if intact {
        return Stored::Intact;
    }
    if let Err(error) = content.evict(SpanRange::one(span), known.decoded.clone()) {
        tracing::warn!(%error, "cannot remove a damaged span from the cache");
    }
    Stored::Damaged
}

thread_local! {
    /// Read buffer of a thread that checks spans, allocated once: allocating it per span costs as much as the read.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
