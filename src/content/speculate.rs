//! Guesses: what is fetched on the chance that somebody will want it, one behind the other.
//!
//! A reader who waits has the link to himself but for what was guessed before, so of that only so much is on its way
//! as the link needs to be busy. What has not had its turn is not on its way: whoever wants it until then fetches it at
//! once. Where a profile knows what is wanted, nothing is guessed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::fetch;
use super::scope::Urgency;
use super::siblings::{Group, kind};
use super::{LayerReader, PlaceInFile, ReadError};
use crate::layer::{EntryId, Kind};
use crate::offsets::DecodedOffset;
use crate::sync::lock;

impl LayerReader {
    /// Whether anything is to be guessed in this layer.
    pub fn may_speculate(&self) -> bool {
        self.scope.speculates() && !self.demand.has_profile() && !self.is_crowded()
    }

    /// Whether a guess of these decoded bytes is no more than one request.
    pub fn is_one_request(&self, bytes: Range<DecodedOffset>) -> bool {
        !bytes.is_empty()
            && self.spans_of(bytes).and_then(|spans| self.blob_bytes(&spans)).is_ok_and(|all| all <= PIECE)
    }

    /// Fetches what is missing of some decoded bytes, when it is their turn; returns when they are here or cannot be had.
    pub async fn speculate(self: &Arc<Self>, bytes: Range<DecodedOffset>, urgency: Urgency) {
        if bytes.is_empty() || !self.may_speculate() {
            return;
        }
        match self.spans_of(bytes) {
            Ok(spans) => self.speculate_spans(spans, urgency).await,
            // Whoever reads will be told.
            Err(error) => tracing::debug!(%error, "cannot guess"),
        }
    }

    pub(super) async fn speculate_spans(self: &Arc<Self>, spans: Range<u32>, urgency: Urgency) {
        let mut fetching = JoinSet::new();
        let mut at = spans.start;
        while let Some(from) = (at..spans.end).find(|span| self.is_missing(*span)) {
            let mut to = from + 1;
            let fits = |to: u32| self.blob_bytes(&(from..to + 1)).is_ok_and(|bytes| bytes <= PIECE);
            while to < spans.end && self.is_missing(to) && fits(to) {
                to += 1;
            }
            let Ok(bytes) = self.blob_bytes(&(from..to)) else { break };
            let room = self.scope.room_to_speculate(bytes, urgency).await;
            let layer = Arc::clone(self);
            fetching.spawn(async move {
                fetch::on_the_chance(&layer, from..to).await;
                drop(room);
            });
            at = to;
        }
        fetching.join_all().await;
        // What somebody else has on its way comes soon, or not at all.
        let mut pause = SHORTEST_LOOK;
        while spans.clone().any(|span| self.is_on_its_way(span)) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    }

    /// A file is read from its beginning: others of its kind beside it may be wanted, too.
    pub(super) fn speculate_siblings(self: &Arc<Self>, place: PlaceInFile, spans: &Range<u32>) {
        if place.before > 0 || self.scope.start().is_none() || !self.may_speculate() {
            return;
        }
        // Mostly there is nothing to be fetched; and looking at entries takes longer than looking at this.
        let near = spans.start.saturating_sub(NEAR)..spans.end.saturating_add(NEAR).min(self.index.span_count());
        if self.demand.all_near.load(Ordering::Relaxed) == spans.start {
            return;
        }
        if self.content.has_all(near) {
            return self.demand.all_near.store(spans.start, Ordering::Relaxed);
        }
        match self.siblings_of(place.entry) {
            Ok(siblings) if siblings.is_empty() => {}
            Ok(siblings) => {
                let layer = Arc::clone(self);
                self.scope.spawn(async move {
                    for spans in siblings {
                        layer.speculate_spans(spans, Urgency::Some).await;
                    }
                });
            }
            // Whoever reads will be told.
            Err(error) => tracing::debug!(%error, "cannot guess"),
        }
    }

    /// Missing spans of the family of `file`, nearest first to be chosen and then in order.
    fn siblings_of(&self, file: EntryId) -> Result<Vec<Range<u32>>, ReadError> {
        let index = &self.index;
        let group_of = |id: EntryId| {
            let entry = index.entry(id)?;
            let group = |name| Group { directory: entry.parent(), kind: kind(name).into() };
            Ok((entry.kind() == Kind::File).then_some(group(index.name(id)?)))
        };
        let group_of = |id| group_of(id).map_err(|cause| self.index_error(cause));
        let Some(group) = group_of(file)? else { return Ok(Vec::new()) };
        let mut room = lock(&self.demand.siblings).opened(file, &group);
        let mut chosen = Vec::new();
        if room == 0 {
            return Ok(Vec::new());
        }
        // Entries are numbered as they stand in the tar.
        let mut strangers = [0; 2];
        'walk: for step in 1..=FURTHEST {
            for (side, id) in [file.0.checked_sub(step), file.0.checked_add(step)].into_iter().enumerate() {
                let Some(id) = id.filter(|id| *id < index.len() && strangers[side] < STRANGERS).map(EntryId) else {
                    continue;
                };
                if group_of(id)?.as_ref() != Some(&group) {
                    strangers[side] += 1;
                    continue;
                }
                strangers[side] = 0;
                let entry = index.entry(id).map_err(|cause| self.index_error(cause))?;
                let Some(data) = entry.data().filter(|_| entry.size() > 0) else { continue };
                for span in self.spans_of(data..data + entry.size())? {
                    if chosen.contains(&span) || !self.is_missing(span) {
                        continue;
                    }
                    let bytes = self.blob_bytes(&(span..span + 1))?;
                    if bytes > room || chosen.len() == AT_ONCE {
                        break 'walk;
                    }
                    room -= bytes;
                    lock(&self.demand.siblings).speculated(&group, span, bytes);
                    chosen.push(span);
                }
            }
            if strangers == [STRANGERS; 2] {
                break;
            }
        }
        chosen.sort_unstable();
        let mut runs: Vec<Range<u32>> = Vec::new();
        for span in chosen {
            match runs.last_mut() {
                Some(run) if run.end == span => run.end += 1,
                _ => runs.push(span..span + 1),
            }
        }
        Ok(runs)
    }

    /// Whether a span is neither here nor on its way.
    fn is_missing(&self, span: u32) -> bool {
        self.content.generation(span).is_none() && fetch::in_flight_for(span, &lock(&self.in_flight)).next().is_none()
    }

    fn is_on_its_way(&self, span: u32) -> bool {
        self.content.generation(span).is_none()
            && fetch::in_flight_for(span, &lock(&self.in_flight)).any(fetch::is_in_flight)
    }
}

/// A request is no larger, in bytes of the blob, so that what is wanted first comes first.
const PIECE: u64 = 512 << 10;
/// Pauses between two looks at whether what others fetch has come, the first and the longest. To wait for it as readers
/// do would count as one of them.
const SHORTEST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// Where no span is missing that lies so near, no family is looked at.
const NEAR: u32 = 32;
/// Entries that are looked at on either side of a file.
const FURTHEST: u32 = 256;
/// So many in a row that are not of its family are the end of its directory.
const STRANGERS: u32 = 32;
/// Spans that are guessed because of one file.
const AT_ONCE: usize = 8;
