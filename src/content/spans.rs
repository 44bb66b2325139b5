//! Arithmetic on spans, and the check of one that the store has.

use std::cell::RefCell;
use std::ops::Range;

use crate::codec::StartKind;
use crate::layer::{IndexError, LayerIndex, Span, SpanId};
use crate::offsets::BlobOffset;
use crate::store::{Content, Generation};

/// A span's decoded bytes; at most [`Span::MAX`].
pub(super) fn length(span: &Span) -> usize {
    usize::try_from(span.decoded.end - span.decoded.start).expect("the index refuses longer spans")
}

/// The span at which decoding must begin to reach `wanted`.
pub(super) fn start_of(index: &LayerIndex, wanted: u32) -> Result<u32, IndexError> {
    let mut at = wanted;
    while at > 0 && index.span(SpanId(at))?.kind == StartKind::Continued {
        at -= 1;
    }
    Ok(at)
}

/// The bytes of the blob that decoding from `start` up to the end of span `last` can touch.
pub(super) fn blob_range(index: &LayerIndex, start: u32, last: u32) -> Result<Range<BlobOffset>, IndexError> {
    let from = index.span(SpanId(start))?.blob;
    let mut next = last + 1;
    while next < index.span_count() {
        let span = index.span(SpanId(next))?;
        if span.kind != StartKind::Continued {
            // A checkpoint in the middle of a byte shares that byte with the span before.
            let end = if span.bit > 0 { span.blob + 1 } else { span.blob };
            return Ok(from..end);
        }
        next += 1;
    }
    Ok(from..BlobOffset(index.proof().blob_size))
}

/// What the store has of a span.
pub(super) enum Stored {
    /// Nothing.
    Absent,
    /// Its bytes, as they were verified.
    Intact(Generation),
    /// Other bytes; they are removed.
    Damaged,
    /// It was written or removed while it was read: no verdict.
    Changing,
}

/// Checks a span in the store against its digest, and shows its bytes to `see` when they are right.
pub(super) fn check(
    content: &Content,
    known: &Span,
    span: u32,
    before_wait: &mut dyn FnMut(),
    see: impl FnOnce(&[u8]),
) -> Stored {
    let Some(generation) = content.generation(span) else { return Stored::Absent };
    ROOM.with_borrow_mut(|room| {
        if room.len() < length(known) {
            room.resize(length(known), 0);
        }
        let bytes = &mut room[..length(known)];
        let readable = content.read_telling(known.decoded.start, bytes, before_wait).is_ok();
        let found = judge(content, span, known, generation, if readable { bytes } else { &[] });
        if matches!(found, Stored::Intact(_)) {
            see(bytes);
        }
        found
    })
}

/// Compares what was read of a span, after it had `generation`, with its digest; a damaged one is removed.
pub(super) fn judge(content: &Content, span: u32, known: &Span, generation: Generation, bytes: &[u8]) -> Stored {
    let intact = bytes.len() == length(known) && *blake3::hash(bytes).as_bytes() == known.check;
    if !content.still(span..span + 1, |_| generation.get()) {
        return Stored::Changing;
    }
    if intact {
        return Stored::Intact(generation);
    }
    if let Err(error) = content.evict(span, known.decoded.clone(), |_, _| ()) {
        tracing::warn!(%error, "cannot remove a damaged span from the cache");
    }
    Stored::Damaged
}

thread_local! {
    /// Where a thread that checks spans reads to, made once: fresh memory for each costs as much as reading.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
