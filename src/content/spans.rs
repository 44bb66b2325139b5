//! Arithmetic on spans.

use std::ops::Range;

use crate::codec::StartKind;
use crate::layer::{IndexError, LayerIndex, Span, SpanId};
use crate::offsets::BlobOffset;

/// A span's decoded bytes; spans are far smaller than memory.
pub(super) fn length(span: &Span) -> usize {
    usize::try_from(span.decoded.end - span.decoded.start).expect("the index refuses spans larger than 4 GiB")
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
