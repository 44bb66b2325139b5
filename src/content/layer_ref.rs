//! Which layer is meant, before anything of it is known.

use crate::descriptor::{Compression, Descriptor};
use crate::digest::Digest;
use crate::layer::IndexedLayer;
use crate::store::LayerName;

/// A layer as verified documents name it.
#[derive(Clone, Debug)]
pub struct LayerRef {
    /// The layer's blob.
    pub blob: Descriptor,
    /// What its decoded stream must hash to (image-spec, config.md, "rootfs"); `None` where nothing says it, and the
    /// blob's digest alone counts.
    pub diff_id: Option<Digest>,
    /// What the blob holds.
    pub payload: Payload,
}

/// What a layer's blob holds. A layer that is one raw file is to be another variant.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Payload {
    /// A tar, said to be compressed so.
    Tar(Compression),
}

impl LayerRef {
    /// What its decoded stream is known by: its diff_id, or the blob it comes from.
    pub fn content(&self) -> &Digest {
        self.diff_id.as_ref().unwrap_or(&self.blob.digest)
    }

    /// What the store knows it by, as long as its index does not say more.
    pub fn name(&self) -> LayerName<'_> {
        LayerName { blob: &self.blob.digest, diff_id: self.content() }
    }

    /// Whether an index of `indexed` is one of this layer.
    pub fn is(&self, indexed: &IndexedLayer) -> bool {
        let same_content = self.diff_id.as_ref().is_none_or(|diff_id| *diff_id == indexed.diff_id);
        indexed.blob == self.blob.digest && indexed.blob_size == self.blob.size && same_content
    }
}
