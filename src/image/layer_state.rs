//! The state of a layer, with everything that is available in that state.
//!
//! ```text
//!                needed, or its turn                    opened
//!        Idle ----------------------> Opening ------------------------> Ready <------+
//!                                      ^  |  \                       ^    |          |
//!                                      |  |   \  a pass is shown     |    | its index is damaged or wrong
//!                                      |  |    +-----> Showing ------+    v          |
//!                                      |  |               |            Mending ------+
//!                      needed again,   |  | fails         | fails         |  rebuilt
//!                      after a pause   |  v               v               |
//!                                      +--------------- Failed <----------+ fails
//! ```
//!
//! A verified layer stays available: while it is mended, or after mending has failed, the parts in memory are served.
//! Such a `Failed` can return to `Mending`. The available part follows from the state alone ([`LayerState::known`]),
//! and the overlay asks for it; no other record exists.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::layer_failure::LayerFailure;
use crate::content::{Closed, LayerReader, LayerRef, PartialLayer};
use crate::layer::LayerIndex;
use crate::overlay::KnownLayer;
use crate::sync::lock;

/// The state of a layer.
pub(super) enum LayerState {
    /// Not opened yet.
    Idle,
    /// Being opened: waits for another process or mount that reads it, or makes a first pass.
    Opening,
    /// Being opened, and shown as far as the pass has read it (`--verify behind`).
    Showing(Arc<Showing>),
    /// Verified.
    Ready(Arc<LayerReader>),
    /// Its index is damaged, or made from a wrong table of contents; the layer is read again to rebuild it.
    Mending(Arc<LayerReader>),
    /// It could not be opened or mended.
    Failed(Failed),
}

/// A failure to open a layer.
pub(super) struct Failed {
    pub(super) why: Arc<LayerFailure>,
    pub(super) at: Instant,
    /// The number of earlier failures.
    pub(super) times: u32,
    /// The reader that is still served.
    pub(super) still: Option<Arc<LayerReader>>,
}

/// The state of a layer, for status.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerProgress {
    /// Not needed yet, or queued.
    Waiting,
    /// The first pass is running.
    Reading,
    /// It is verified.
    Ready,
    /// It cannot be shown.
    Failed,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

impl LayerState {
    /// The verified layer, as far as it is available.
    pub(super) fn reader(&self) -> Option<&Arc<LayerReader>> {
        match self {
            Self::Ready(reader) | Self::Mending(reader) => Some(reader),
            Self::Failed(failed) => failed.still.as_ref(),
            Self::Idle | Self::Opening | Self::Showing(_) => None,
        }
    }

    /// The pass that is shown.
    pub(super) fn showing(&self) -> Option<&Arc<Showing>> {
        match self {
            Self::Showing(showing) => Some(showing),
            _ => None,
        }
    }

    /// The available part of the layer's tree.
    pub(super) fn known(&self) -> KnownLayer {
        let whole = || self.reader().map(|reader| KnownLayer::Whole(Arc::clone(reader.index())));
        let partial = || self.showing()?.latest().map(KnownLayer::Partial);
        whole().or_else(partial).unwrap_or(KnownLayer::Nothing)
    }

    /// Whether opening has ended, with success or failure.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::Failed(_))
    }

    /// Starts opening a layer whose turn has come; returns whether it has to be opened.
    pub(super) fn begin(&mut self) -> bool {
        let idle = matches!(self, Self::Idle);
        if idle {
            *self = Self::Opening;
        }
        idle
    }

    /// Records that the layer is needed; returns whether it has to be opened or mended. A failure is dropped if
    /// `may_retry` agrees.
    pub(super) fn needed(&mut self, may_retry: impl FnOnce(&Failed) -> bool) -> bool {
        *self = match self {
            Self::Ready(reader) if reader.is_to_be_replaced() => Self::Mending(Arc::clone(reader)),
            Self::Failed(failed) if may_retry(failed) => failed.still.take().map_or(Self::Opening, Self::Mending),
            _ => return self.begin(),
        };
        true
    }

    pub(super) fn progress(&self) -> LayerProgress {
        match self {
            Self::Idle => LayerProgress::Waiting,
            Self::Opening | Self::Showing(_) | Self::Mending(_) => LayerProgress::Reading,
            Self::Ready(_) => LayerProgress::Ready,
            Self::Failed(_) => LayerProgress::Failed,
        }
    }
}

/// A pass that is shown while it runs.
#[derive(Default)]
pub(super) struct Showing {
    /// The part read so far.
    pub(super) partial: Arc<PartialLayer>,
    latest: Mutex<Option<Arc<LayerIndex>>>,
    /// Held by the task that builds a snapshot.
    making: tokio::sync::Mutex<()>,
    /// Entries in the latest snapshot.
    entries: AtomicU32,
}

impl Showing {
    /// The latest snapshot of its tree.
    fn latest(&self) -> Option<Arc<LayerIndex>> {
        lock(&self.latest).clone()
    }

    /// Waits until a snapshot of `layer` has noticeably more entries than `before`.
    ///
    /// # Errors
    /// [`Closed`]: the pass has ended.
    pub(super) async fn further(&self, layer: &LayerRef, before: u32) -> Result<(), Closed> {
        let _making = self.making.lock().await;
        if self.entries() > before {
            return Ok(()); // another task has made it meanwhile
        }
        self.partial.more_than(before, 1 + before / SNAPSHOT_GROWTH).await;
        let (partial, layer) = (Arc::clone(&self.partial), layer.clone());
        // The work is proportional to the layer's entries.
        let made = tokio::task::spawn_blocking(move || partial.snapshot(&layer)).await;
        let index = made.map_err(|_| Closed)??;
        self.entries.store(index.len(), Ordering::Release);
        *lock(&self.latest) = Some(Arc::new(index));
        Ok(())
    }

    /// Number of entries in the latest snapshot.
    pub(super) fn entries(&self) -> u32 {
        self.entries.load(Ordering::Acquire)
    }
}

/// A snapshot is built once the tree has grown by an eighth, so that all snapshots of a layer together cost a few times
/// its index.
const SNAPSHOT_GROWTH: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::PassError;
    use crate::digest::{Algorithm, Digest};

    fn failed() -> LayerState {
        let why = PassError::Ended { layer: Digest::of(Algorithm::Sha256, b"blob") };
        LayerState::Failed(Failed { why: Arc::new(why.into()), at: Instant::now(), times: 0, still: None })
    }

    #[test]
    fn a_layer_is_opened_once_however_often_it_is_needed() {
        for mut state in [LayerState::Opening, LayerState::Showing(Arc::default())] {
            assert!(!state.begin() && !state.needed(|_| true), "{:?}", state.progress());
            assert!(!state.is_settled() && state.progress() == LayerProgress::Reading);
        }
        let starts: [fn(&mut LayerState) -> bool; 2] = [LayerState::begin, |state| state.needed(|_| false)];
        for start in starts {
            let mut state = LayerState::Idle;
            assert!(start(&mut state) && !start(&mut state));
            assert_eq!(state.progress(), LayerProgress::Reading);
        }
    }

    #[test]
    fn a_failure_counts_until_it_may_be_tried_again() {
        let mut state = failed();
        assert!(state.is_settled() && !state.begin() && !state.needed(|_| false));
        assert_eq!(state.progress(), LayerProgress::Failed);
        assert!(state.needed(|_| true) && matches!(state, LayerState::Opening));
    }

    #[test]
    fn nothing_is_known_of_a_layer_before_something_was_read() {
        for state in [LayerState::Idle, LayerState::Opening, LayerState::Showing(Arc::default()), failed()] {
            assert!(matches!(state.known(), KnownLayer::Nothing) && state.reader().is_none());
        }
    }

    #[test]
    fn a_state_of_a_later_version_is_read_as_such() {
        let read = |text: &str| serde_json::from_str::<LayerProgress>(text).ok();
        assert_eq!(read("\"ready\""), Some(LayerProgress::Ready));
        assert_eq!(read("\"thawing\""), Some(LayerProgress::Other));
    }
}
