//! Why bytes of a layer cannot be read.

use std::sync::Arc;

use super::windows::WindowsError;
use crate::codec::CodecError;
use crate::digest::Digest;
use crate::layer::IndexError;
use crate::source::SourceError;
use crate::span::SpanId;

/// Why bytes of a layer cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The source's bytes decode to other bytes than the index says.
    #[error("span {span} of layer {layer} is corrupt: expected {expected}, got {actual}")]
    Corrupt {
        /// The layer's blob.
        layer: Digest,
        /// The span's number.
        span: SpanId,
        /// The digest in the index.
        expected: Box<str>,
        /// The digest of the decoded bytes.
        actual: Box<str>,
    },
    /// The source's bytes do not decode.
    #[error("layer {layer} does not decode")]
    Codec {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: Arc<CodecError>,
    },
    /// A window that is needed to decode cannot be had.
    #[error("windows of layer {layer} cannot be fetched")]
    Windows {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: Arc<WindowsError>,
    },
    /// The index of the layer, which was not made here, cannot be used any more. The layer is read as a whole, and then the
    /// read can be tried again.
    #[error("the index of layer {layer} is not used any more")]
    Refuted {
        /// The layer's blob.
        layer: Digest,
        /// Why: what has come of the layer's bytes, or of windows.
        #[source]
        cause: Arc<Self>,
    },
    /// The source failed.
    #[error("layer {layer} cannot be fetched")]
    Source {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: Arc<SourceError>,
    },
    /// The layer index is damaged.
    #[error("the index of layer {layer} is damaged")]
    Index {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: Arc<IndexError>,
    },
    /// The fetching task was cancelled, as at unmount.
    #[error("the fetch of layer {layer} was ended")]
    Ended {
        /// The layer's blob.
        layer: Digest,
    },
}
