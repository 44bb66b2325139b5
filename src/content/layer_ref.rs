//! The identity of a layer, before its index is known.

use crate::descriptor::{Compression, Descriptor};
use crate::digest::Digest;
use crate::layer::IndexedLayer;
use crate::store::LayerName;

/// A layer as verified documents name it.
#[derive(Clone, Debug)]
pub struct LayerRef {
    /// The layer's blob.
    pub blob: Descriptor,
    /// Expected digest of the decoded stream (image-spec, config.md, "rootfs"). `None` if no document states it; then
    /// only the blob's digest is checked.
    pub diff_id: Option<Digest>,
    /// What the blob holds.
    pub payload: Payload,
}

/// What a layer's blob holds.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Payload {
    /// A tar with the compression that the media type states.
    Tar(Compression),
}

impl LayerRef {
    /// The name of the decoded content: the diff_id, or the blob's digest if there is no diff_id.
    pub fn content(&self) -> &Digest {
        self.diff_id.as_ref().unwrap_or(&self.blob.digest)
    }

    /// The layer's name in the store until its index provides the verified diff_id.
    pub fn name(&self) -> LayerName<'_> {
        LayerName { blob: &self.blob.digest, diff_id: self.content() }
    }

    /// Whether an index of `indexed` belongs to this layer.
    pub fn is(&self, indexed: &IndexedLayer) -> bool {
        let same_content = self.diff_id.as_ref().is_none_or(|diff_id| *diff_id == indexed.diff_id);
        indexed.blob == self.blob.digest && indexed.blob_size == self.blob.size && same_content
    }
}
