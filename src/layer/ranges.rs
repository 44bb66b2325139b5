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

    /// Where the spans end that decode from the same start as the one before `end`, as far as they begin within `most`
    /// bytes of the blob from that start on.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`], or the index is damaged.
    pub fn end_of_group(&self, mut end: SpanId, most: u64) -> Result<SpanId, IndexError> {
        let count = SpanId(self.span_count());
        if end == SpanId(0) || end >= count {
            return Ok(end);
        }
        let start = self.span(self.decode_start(end.back(1))?)?.blob;
        while end < count {
            let span = self.span(end)?;
            if span.kind != StartKind::Continued || span.blob.0.saturating_sub(start.0) >= most {
                break;
            }
            end = end.next();
        }
        Ok(end)
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
