//! Spans by number.
//!
//! A span is the smallest piece of a layer that can be fetched, decoded, verified, cached and evicted alone. A layer's
//! spans are numbered in the order of its decoded stream, so neighbours in number are neighbours in the tar.

use std::ops::Range;

/// Position of a span in its layer's span table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpanId(pub u32);

impl SpanId {
    /// The span behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        self.forward(1)
    }

    /// The span that is `spans` behind this one; stops at the last number.
    #[must_use]
    pub fn forward(self, spans: u32) -> Self {
        Self(self.0.saturating_add(spans))
    }

    /// The span that is `spans` before this one; stops at the first.
    #[must_use]
    pub fn back(self, spans: u32) -> Self {
        Self(self.0.saturating_sub(spans))
    }

    /// For tables with one element a span.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for SpanId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Neighbouring spans: from `start` up to but without `end`; empty where `end` is not behind `start`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpanRange {
    /// The first one.
    pub start: SpanId,
    /// The one behind the last.
    pub end: SpanId,
}

impl SpanRange {
    /// From `start` up to but without `end`.
    pub fn new(start: SpanId, end: SpanId) -> Self {
        Self { start, end }
    }

    /// One span.
    pub fn one(span: SpanId) -> Self {
        Self::new(span, span.next())
    }

    /// None, at `place`.
    pub fn none_at(place: SpanId) -> Self {
        Self::new(place, place)
    }

    /// The first `count` spans of a layer.
    pub fn first(count: u32) -> Self {
        Self::new(SpanId(0), SpanId(count))
    }

    /// How many spans.
    pub fn count(self) -> u32 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.count() == 0
    }

    /// The last one.
    pub fn last(self) -> Option<SpanId> {
        (!self.is_empty()).then(|| self.end.back(1))
    }

    /// Whether `span` is one of them.
    pub fn contains(self, span: SpanId) -> bool {
        (self.start..self.end).contains(&span)
    }

    /// The spans, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = SpanId> + ExactSizeIterator + Clone {
        Range { start: self.start.0, end: self.end.0 }.map(SpanId)
    }

    /// Neighbours among `spans`, which are in order, joined.
    pub fn join(spans: impl IntoIterator<Item = SpanId>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for span in spans {
            match runs.last_mut() {
                Some(run) if run.end == span => run.end = span.next(),
                _ => runs.push(Self::one(span)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined() {
        let spans = [1, 2, 3, 5, 7, 8].map(SpanId);
        let joined: Vec<_> = SpanRange::join(spans).into_iter().map(|run| (run.start.0, run.end.0)).collect();
        assert_eq!(joined, [(1, 4), (5, 6), (7, 9)]);
    }

    #[test]
    fn a_reversed_range_is_empty() {
        let range = SpanRange::new(SpanId(5), SpanId(3));
        assert!(range.is_empty() && range.last().is_none() && range.iter().next().is_none());
        assert!(!range.contains(SpanId(4)));
    }
}
