//! Profiles: which parts of a layer a run wanted first, and in which order.
//!
//! A profile is a hint. It names places in the decoded stream, not spans, so it means the same to
//! whoever cut the layer's spans elsewhere; one that is wrong or made up costs bytes and never shows any.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::{IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::store::{Store, StoreError};

/// What earlier runs wanted of one layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Profile {
    /// The layer's blob.
    pub layer: Digest,
    /// Milliseconds since the mount began, and a decoded offset that was wanted then; in this order.
    pub wanted: Vec<(u32, u64)>,
}

impl Profile {
    /// The profile that the store has of a layer.
    pub fn load(store: &Store, layer: &Digest) -> Option<Self> {
        let profile: Self = serde_json::from_slice(&store.profile(layer)?).ok()?;
        (profile.layer == *layer).then(|| profile.in_order())
    }

    /// Puts the profile into the store, in place of the one that is there.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep(&self, store: &Store) -> Result<(), StoreError> {
        store.keep_profile(&self.layer, &serde_json::to_vec(self).expect("digests and numbers"))
    }

    /// Sorted, and no longer than any layer has spans to tell of.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.wanted.sort_unstable();
        self.wanted.truncate(MOST);
        self
    }

    /// The spans that it speaks of, each once, with its time; places outside the layer are left out.
    pub(super) fn spans(&self, index: &LayerIndex) -> Result<Vec<(u32, u32)>, IndexError> {
        let mut seen = HashSet::new();
        let mut spans = Vec::new();
        for (at, offset) in &self.wanted {
            match index.span_at(DecodedOffset(*offset)) {
                Ok(span) if seen.insert(span.0) => spans.push((*at, span.0)),
                Ok(_) | Err(IndexError::NoSpan { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(spans)
    }
}

/// More places than this are not remembered of a layer.
const MOST: usize = 1 << 18;
