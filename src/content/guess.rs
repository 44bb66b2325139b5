//! Guesses: what is fetched on the chance that somebody will want it, one behind the other.
//!
//! A reader who waits has the link to himself but for what was guessed before, so of that only so much is on its way
//! as the link needs to be busy. What has not had its turn is not on its way: whoever wants it until then fetches it at
//! once. Where a profile knows what is wanted, nothing is guessed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::LayerContent;
use super::fetch::{self, Manners};
use super::traffic::Urgency;
use crate::offsets::DecodedOffset;
use crate::sync::lock;

impl LayerContent {
    /// Whether anything is to be guessed in this layer.
    pub fn may_guess(&self) -> bool {
        self.traffic.guesses() && !self.wanted.is_foretold_at_all() && !self.is_crowded()
    }

    /// Whether a guess of these decoded bytes is no more than one request.
    pub fn is_one_request(&self, bytes: Range<DecodedOffset>) -> bool {
        !bytes.is_empty()
            && self.spans_of(bytes).and_then(|spans| self.blob_bytes(&spans)).is_ok_and(|all| all <= PIECE)
    }

    /// Fetches what is missing of some decoded bytes, when it is their turn; returns when they are here or cannot be had.
    pub async fn guess(self: &Arc<Self>, bytes: Range<DecodedOffset>, urgency: Urgency) {
        if bytes.is_empty() || !self.may_guess() {
            return;
        }
        match self.spans_of(bytes) {
            Ok(spans) => self.guess_spans(spans, urgency).await,
            // Whoever reads will be told.
            Err(error) => tracing::debug!(%error, "cannot guess"),
        }
    }

    pub(super) async fn guess_spans(self: &Arc<Self>, spans: Range<u32>, urgency: Urgency) {
        let mut flying = JoinSet::new();
        let mut at = spans.start;
        while let Some(from) = (at..spans.end).find(|span| self.is_missing(*span)) {
            let mut to = from + 1;
            let fits = |to: u32| self.blob_bytes(&(from..to + 1)).is_ok_and(|bytes| bytes <= PIECE);
            while to < spans.end && self.is_missing(to) && fits(to) {
                to += 1;
            }
            let Ok(bytes) = self.blob_bytes(&(from..to)) else { break };
            let room = self.traffic.room_for_guess(bytes, urgency).await;
            let layer = Arc::clone(self);
            flying.spawn(async move {
                fetch::in_background(&layer, from..to, Manners::Stay).await;
                drop(room);
            });
            at = to;
        }
        flying.join_all().await;
        // What somebody else has on its way comes soon, or not at all.
        while spans.clone().any(|span| self.is_on_its_way(span)) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether a span is neither here nor on its way.
    fn is_missing(&self, span: u32) -> bool {
        self.content.generation(span).is_none() && fetch::flights_of(span, &lock(&self.flights)).next().is_none()
    }

    fn is_on_its_way(&self, span: u32) -> bool {
        self.content.generation(span).is_none() && fetch::flights_of(span, &lock(&self.flights)).any(fetch::is_flying)
    }
}

/// A request is no larger, in bytes of the blob, so that what is wanted first comes first.
const PIECE: u64 = 512 << 10;
/// How often it is looked whether what others fetch has come.
const LOOK: Duration = Duration::from_millis(2);
