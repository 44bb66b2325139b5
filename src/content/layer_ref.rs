//! The identity of a layer, before its index is known.

use std::borrow::Cow;
use std::sync::Arc;

use crate::descriptor::{Compression, Descriptor};
use crate::digest::Digest;
use crate::layer::{LayerIndex, NamedFile, Stream, stream_of_blob};
use crate::store::IndexName;

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
    /// The SOCI index that the image's manifest binds.
    pub soci: Option<Digest>,
}

/// What a layer's blob holds.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Payload {
    /// A tar with the compression that the media type states.
    Tar(Compression),
    /// One file, which is the blob; its name and metadata are those that the manifest gives it.
    File(Arc<NamedFile>),
}

impl LayerRef {
    /// The name of the decoded content: the diff_id, or the blob's digest if there is no diff_id.
    pub fn content(&self) -> &Digest {
        self.diff_id.as_ref().unwrap_or(&self.blob.digest)
    }

    /// How it is compressed, says its media type; `None` if it is one file.
    pub fn compression(&self) -> Option<Compression> {
        match &self.payload {
            Payload::Tar(compression) => Some(*compression),
            Payload::File(_) => None,
        }
    }

    /// The name and metadata of the file that the blob is, if it is one.
    pub fn file(&self) -> Option<&Arc<NamedFile>> {
        match &self.payload {
            Payload::Tar(_) => None,
            Payload::File(file) => Some(file),
        }
    }

    /// The second half of the layer's name in the store until its index provides the verified diff_id; the first is the
    /// blob's digest.
    pub fn stream_name(&self) -> Cow<'_, Digest> {
        match &self.payload {
            Payload::Tar(_) => Cow::Borrowed(self.content()),
            Payload::File(_) => Cow::Owned(stream_of_blob(&self.blob.digest)),
        }
    }

    /// The name of its index in the store.
    pub fn index_name(&self) -> IndexName<'_> {
        match &self.payload {
            Payload::Tar(_) => (&self.blob.digest).into(),
            Payload::File(_) => IndexName::of_file(&self.blob.digest),
        }
    }

    /// Whether an index belongs to this layer.
    pub fn is(&self, index: &LayerIndex) -> bool {
        let indexed = index.layer();
        let same_content = self.diff_id.as_ref().is_none_or(|diff_id| *diff_id == indexed.diff_id);
        let same_kind = self.file().is_some() == (index.stream() == Stream::Blob);
        indexed.blob == self.blob.digest && indexed.blob_size == self.blob.size && same_content && same_kind
    }
}
