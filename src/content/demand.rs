//! Demand: which spans of a layer one mount has read, and in which order during its start-up.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use crate::digest::Digest;
use crate::layer::{IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::predict::{Lesson, ProfileRun};
use crate::span::{SpanId, SpanRange};
use crate::sync::lock;

/// What one mount has read of a layer.
pub(super) struct Demand {
    /// For each span, [`READ`] and [`IN_PROFILE`].
    marks: Box<[AtomicU8]>,
    /// Spans read during the mount's start-up in the order of their first reads, each with milliseconds since the
    /// mount.
    first: Mutex<Vec<(u32, SpanId)>>,
    has_profile: AtomicBool,
    /// What this mount has not read is counted once.
    aged: AtomicBool,
}

impl Demand {
    /// No demand yet, for a layer of `spans` spans.
    pub(super) fn new(spans: u32) -> Self {
        let marks = (0..spans).map(|_| AtomicU8::new(0)).collect();
        Self { marks, first: Mutex::default(), has_profile: AtomicBool::new(false), aged: AtomicBool::new(false) }
    }

    /// Records spans as read and returns those that are new. `start` returns the age of the mount if it is still
    /// starting up.
    pub(super) fn record(&self, spans: SpanRange, start: impl FnOnce() -> Option<Duration>) -> Vec<SpanId> {
        let is_new = |span: &SpanId| {
            let mark = &self.marks[span.index()];
            mark.load(Ordering::Relaxed) & READ == 0 && mark.fetch_or(READ, Ordering::Relaxed) & READ == 0
        };
        let new: Vec<_> = spans.iter().filter(is_new).collect();
        if !new.is_empty()
            && let Some(start) = start()
        {
            let at = u32::try_from(start.as_millis()).unwrap_or(u32::MAX);
            lock(&self.first).extend(new.iter().map(|span| (at, *span)));
        }
        new
    }

    /// Marks the spans that a profile covers; no other prediction is made for them.
    pub(super) fn mark_in_profile(&self, spans: impl IntoIterator<Item = SpanId>) {
        for span in spans {
            self.has_profile.store(true, Ordering::Relaxed);
            self.marks[span.index()].fetch_or(IN_PROFILE, Ordering::Relaxed);
        }
    }

    pub(super) fn is_in_profile(&self, span: SpanId) -> bool {
        self.marks[span.index()].load(Ordering::Relaxed) & IN_PROFILE != 0
    }

    /// Whether a profile covers any span.
    pub(super) fn has_profile(&self) -> bool {
        self.has_profile.load(Ordering::Relaxed)
    }

    /// When spans were first read during start-up, in milliseconds since the mount.
    pub(super) fn times(&self) -> Vec<u32> {
        lock(&self.first).iter().map(|(at, _)| *at).collect()
    }

    /// The `lesson` of the start-up reads so far, added to the `known` run of `image`. `None` if there are none, or, with
    /// `only_new`, none that change it.
    pub(super) fn run(
        &self,
        index: &LayerIndex,
        image: &Digest,
        known: Option<ProfileRun>,
        (lesson, only_new): (Lesson, bool),
    ) -> Result<Option<ProfileRun>, IndexError> {
        let mut run = known.clone().unwrap_or_else(|| ProfileRun::new(image.clone(), Vec::new()));
        let mut first = lock(&self.first).clone();
        first.retain(|(at, _)| lesson.covers(*at));
        let read: HashSet<SpanId> = first.iter().map(|(_, span)| *span).collect();
        if lesson.ages && !self.aged.swap(true, Ordering::Relaxed) {
            run.age(|offset| index.span_at(DecodedOffset(offset)).is_ok_and(|span| read.contains(&span)));
        }
        let told: HashSet<SpanId> = run.spans(index)?.into_iter().map(|(_, span)| span).collect();
        let some = !first.is_empty() && !only_new;
        for (at, span) in first {
            if !told.contains(&span) {
                run.wanted.push((at, index.span(span)?.decoded.start.0));
            }
        }
        let is_changed = known.map_or(!run.wanted.is_empty(), |known| known != run);
        Ok((some || is_changed).then_some(run))
    }
}

/// A reader has read the span.
const READ: u8 = 1;
/// A profile covers the span.
const IN_PROFILE: u8 = 2;
