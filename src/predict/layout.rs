//! The layout of a layer's spans in its blob and in its decoded stream.

use crate::codec::StartKind;
use crate::layer::{IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// The layout of a layer's spans, for predictors.
pub trait Layout {
    /// The number of spans.
    fn span_count(&self) -> u32;

    /// Bytes of the blob to fetch for some spans.
    ///
    /// # Errors
    /// The index is damaged.
    fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError>;

    /// How many spans hold about [`REGION`] decoded bytes; at least 1. What is counted in spans below means such regions: a
    /// layer that decodes in smaller pieces is read the same.
    fn region(&self) -> u32;

    /// How many spans from this one on hold about [`REGION`] decoded bytes; at least 1. Compressed and other files of a layer
    /// differ in that.
    ///
    /// # Errors
    /// The index is damaged.
    fn region_at(&self, span: SpanId) -> Result<u32, IndexError>;

    /// Whether a span can be decoded without the previous one.
    ///
    /// # Errors
    /// The index is damaged.
    fn starts_anew(&self, span: SpanId) -> Result<bool, IndexError>;

    /// The span after those that hold the bytes before `end`; `end` is not 0.
    ///
    /// # Errors
    /// The index is damaged, or the layer is shorter.
    fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError>;

    /// The longest range that begins at `from`, with at most `spans` spans and `bytes` bytes of the blob.
    ///
    /// # Errors
    /// The index is damaged.
    fn within(&self, from: SpanId, spans: u32, bytes: u64) -> Result<SpanRange, IndexError> {
        let last = from.forward(spans).min(SpanId(self.span_count()));
        let mut range = SpanRange::none_at(from);
        while range.end < last && self.blob_bytes(SpanRange::new(from, range.end.next()))? <= bytes {
            range.end = range.end.next();
        }
        Ok(range)
    }
}

impl Layout for LayerIndex {
    fn span_count(&self) -> u32 {
        self.span_count()
    }

    fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError> {
        let Some(last) = spans.last() else { return Ok(0) };
        let range = self.blob_range(spans.start, last)?;
        Ok(range.end.0.saturating_sub(range.start.0))
    }

    fn region(&self) -> u32 {
        let in_regions = self.layer().decoded_size.div_ceil(REGION).max(1);
        u32::try_from(u64::from(self.span_count()) / in_regions).unwrap_or(u32::MAX).max(1)
    }

    fn region_at(&self, span: SpanId) -> Result<u32, IndexError> {
        let size = self.layer().decoded_size;
        let Ok(first) = self.span(span) else { return Ok(1) };
        let behind = DecodedOffset((first.decoded.start.0 + REGION).min(size.saturating_sub(1)));
        Ok((self.span_at(behind)?.0.saturating_sub(span.0)).max(1))
    }

    fn starts_anew(&self, span: SpanId) -> Result<bool, IndexError> {
        Ok(self.span(span)?.kind != StartKind::Continued)
    }

    fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError> {
        let end = end.0.min(self.layer().decoded_size);
        Ok(self.span_at(DecodedOffset(end.saturating_sub(1)))?.next())
    }
}

/// A request ends with the span that reaches this many bytes of the blob: within the source's limit for short
/// transfers.
pub const REQUEST: u64 = 768 << 10;

/// Decoded bytes of an ordinary span, as a first pass over a compressed layer makes it.
pub(super) const REGION: u64 = 256 << 10;

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A layer of uniform spans.
    pub(crate) struct Even {
        pub(crate) spans: u32,
        /// Bytes per span, in the blob and decoded.
        pub(crate) bytes: u64,
        /// Spans of a region.
        pub(crate) region: u32,
    }

    impl Layout for Even {
        fn span_count(&self) -> u32 {
            self.spans
        }

        fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError> {
            Ok(u64::from(spans.count()) * self.bytes)
        }

        fn region(&self) -> u32 {
            self.region
        }

        fn region_at(&self, _: SpanId) -> Result<u32, IndexError> {
            Ok(self.region)
        }

        fn starts_anew(&self, _: SpanId) -> Result<bool, IndexError> {
            Ok(true)
        }

        fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError> {
            Ok(SpanId(u32::try_from(end.0.div_ceil(self.bytes)).unwrap_or(u32::MAX).min(self.spans)))
        }
    }
}
