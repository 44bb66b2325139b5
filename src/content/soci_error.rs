//! Why a zTOC of SOCI is not used.

use std::sync::Arc;

use crate::digest::Digest;
use crate::documents::ArtifactError;
use crate::source::SourceError;
use crate::trust::Mismatch;

/// Why a zTOC is not used.
#[derive(Debug, thiserror::Error)]
pub enum SociError {
    /// There is no index.
    #[error("{0}")]
    Index(Arc<NoIndex>),
    /// The registry cannot be reached, and may have the index later.
    #[error("the SOCI index cannot be fetched: {0}")]
    Away(SourceError),
    /// The index has none of the layer, as of those that are small or zstd.
    #[error("the SOCI index has no zTOC of this layer")]
    NoZtoc,
    /// It is larger than one of this layer may be.
    #[error("it has {size} bytes, and {limit} are read at most")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// It cannot be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not what the index says.
    #[error("blob {blob} is not what its digest says")]
    Corrupt {
        /// The blob.
        blob: Digest,
    },
    /// What comes beside it is not what it should be.
    #[error(transparent)]
    Document(#[from] ArtifactError),
}

/// Why there is no index to be used.
#[derive(Debug, thiserror::Error)]
pub enum NoIndex {
    /// It cannot be fetched.
    #[error("the SOCI index cannot be fetched: {0}")]
    Source(#[from] SourceError),
    /// What is there cannot be listed.
    #[error("it cannot be looked for: {why}")]
    NotListed {
        /// Why.
        why: Arc<str>,
    },
    /// It is another document than the manifest binds.
    #[error("the SOCI index is not the one that the manifest binds: {0}")]
    Other(Box<Mismatch>),
    /// It is none.
    #[error("the SOCI index cannot be used: {0}")]
    Document(#[from] ArtifactError),
    /// No artifact of the image is an index.
    #[error("{place} has no SOCI index of this image{}", if unusable.is_empty() { String::new() } else { format!(" that can be used: {}", unusable.join("; ")) })]
    None {
        /// Registry and repository.
        place: String,
        /// Why artifacts of the image cannot be used.
        unusable: Vec<String>,
    },
}
