//! Why a pushed index is not used.

use std::sync::Arc;

use super::artifact_check::Refusal;
use crate::digest::Digest;
use crate::layer::IndexError;
use crate::source::SourceError;
use crate::store::StoreError;

/// Why a pushed index is not used.
#[derive(Debug, thiserror::Error)]
pub enum PushedError {
    /// There is none.
    #[error("{place} has no index of this layer{}", told(unusable))]
    None {
        /// Registry and repository.
        place: String,
        /// Why artifacts of the image cannot be used.
        unusable: Vec<String>,
    },
    /// Its artifact may not be used.
    #[error("the one in the cache is not used: {0}")]
    Refused(Refusal),
    /// Whether it may be used cannot be asked.
    #[error("whether the one in the cache may be used cannot be asked: {why}")]
    NotAsked {
        /// Why.
        why: String,
    },
    /// It cannot be looked for or fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The registry takes too long.
    #[error("{place} gave no answer within {seconds} s")]
    Late {
        /// Registry and repository.
        place: String,
        /// The limit.
        seconds: u64,
    },
    /// What is there cannot be listed, for any layer.
    #[error("it cannot be looked for: {why}")]
    NotListed {
        /// Why.
        why: Arc<str>,
    },
    /// The blob is not what the artifact's manifest says.
    #[error("blob {blob} is not what its digest says")]
    Corrupt {
        /// The blob.
        blob: Digest,
        /// Whether another host may have the right one.
        others: bool,
    },
    /// It says to be larger than an index of this layer may be.
    #[error("it has {decoded} bytes, and an index of this layer may have {limit}")]
    TooLarge {
        /// Its decoded size.
        decoded: u64,
        /// The limit.
        limit: u64,
    },
    /// It cannot be decompressed to its size.
    #[error("it cannot be decompressed: {why}")]
    Decode {
        /// Why.
        why: String,
    },
    /// It cannot be used.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// It is of another layer.
    #[error("it is the index of blob {blob} with diff_id {diff_id}")]
    OtherLayer {
        /// The blob.
        blob: Digest,
        /// The decoded stream.
        diff_id: Digest,
    },
    /// Its windows are not the ones that its artifact has.
    #[error("it is the index of other windows than its artifact has")]
    OtherWindows,
    /// It cannot be cached.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn told(unusable: &[String]) -> String {
    if unusable.is_empty() { String::new() } else { format!(" that can be used: {}", unusable.join("; ")) }
}
