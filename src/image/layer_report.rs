//! What a mount has fetched of one layer.

use super::layer_state::LayerProgress;
use crate::content::{ContentStats, LayerCounts};
use crate::digest::Digest;
use crate::overlay::LayerNo;

/// The activity in one layer.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// Its number in the image.
    pub number: LayerNo,
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its state.
    pub state: LayerProgress,
    /// Bytes of the decoded stream, once that is known.
    pub decoded_size: Option<u64>,
    /// Bytes of the decoded stream in the cache, all processes together.
    pub cached_bytes: u64,
    /// The counters of this mount.
    pub counts: LayerCounts,
    /// The counters of this process.
    pub stats: ContentStats,
}
