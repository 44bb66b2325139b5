//! Span arithmetic: which spans hold some bytes, and what to fetch to decode them.

use std::ops::Range;

use super::index::{IndexError, LayerIndex};
use crate::codec::StartKind;
use crate::offsets::{BlobOffset, DecodedOffset};
use crate::span::{SpanId, SpanRange};

impl LayerIndex {
    /// All spans of the layer.
    pub fn spans(&self) -> SpanRange {
        SpanRange::first(self.span_count())
    }

    /// The spans that hold `bytes`; `bytes` is not empty.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`] if some are outside the layer, or the index is damaged.
    pub fn spans_of(&self, bytes: Range<DecodedOffset>) -> Result<SpanRange, IndexError> {
        let last = DecodedOffset(bytes.end.0.saturating_sub(1));
        Ok(SpanRange::new(self.span_at(bytes.start)?, self.span_at(last)?.next()))
    }

    /// The span at which decoding must start to reach `span`.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`], or the index is damaged.
    pub fn decode_start(&self, span: SpanId) -> Result<SpanId, IndexError> {
        let mut at = span;
        while at > SpanId(0) && self.span(at)?.kind == StartKind::Continued {
            at = at.back(1);
        }
        Ok(at)
    }

    /// The bytes of the blob needed to decode from `start` to the end of span `last`.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`], or the index is damaged.
    pub fn blob_range(&self, start: SpanId, last: SpanId) -> Result<Range<BlobOffset>, IndexError> {
        let from = self.span(start)?.blob;
        if let Some(source) = self.source_of(last)? {
            let is_range = from <= source.end;
            return is_range.then_some(from..source.end).ok_or(IndexError::Malformed { what: "a span is of no bytes" });
        }
        for next in SpanRange::new(last.next(), SpanId(self.span_count())).iter() {
            let span = self.span(next)?;
            if span.kind != StartKind::Continued {
                // A checkpoint in the middle of a byte shares that byte with the previous span.
                let end = if span.bit > 0 { span.blob + 1 } else { span.blob };
                return Ok(from..end);
            }
        }
        Ok(from..BlobOffset(self.layer().blob_size))
    }
}
