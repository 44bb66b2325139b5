//! Why an index cannot be used.

use std::io;

use crate::layer::entry::EntryId;
use crate::layer::footer::VERSIONS;
use crate::layer::tree::TreeError;

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It cannot be read.
    #[error("the layer index cannot be read")]
    Io {
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// It is not a layer index, or its end is truncated or damaged.
    #[error("this is not a complete layer index")]
    NotAnIndex,
    /// It was written by another version of peelfs.
    #[error("the layer index has version {found}, this program reads version {}", VERSIONS.end())]
    Version {
        /// The version found.
        found: u32,
    },
    /// It was written by a later version of peelfs, and uses a feature unknown to this version.
    #[error("the layer index has a kind of {what} that this program does not support")]
    Kind {
        /// What is unknown.
        what: &'static str,
    },
    /// A page does not match its checksum.
    #[error("page {page} of the layer index is damaged")]
    Damaged {
        /// Its number, from 0.
        page: u64,
    },
    /// The checksums are valid, but the content is inconsistent.
    #[error("the layer index is inconsistent: {what}")]
    Malformed {
        /// What is inconsistent.
        what: &'static str,
    },
    /// An entry does not exist.
    #[error("the layer index has no entry {id}")]
    NoEntry {
        /// The entry.
        id: EntryId,
    },
    /// A span does not exist, or no span covers an offset.
    #[error("the layer index has no span for {what}")]
    NoSpan {
        /// The span number or decoded offset.
        what: u64,
    },
    /// The index cannot be rewritten with another tree.
    #[error("the layer index cannot be rewritten")]
    Rewrite {
        /// The writer's reason.
        #[source]
        cause: crate::layer::WriteError,
    },
    /// It holds more entries than a tree may.
    #[error("the layer index cannot be converted to a tree")]
    Tree {
        /// The tree's reason.
        #[source]
        cause: TreeError,
    },
}

impl IndexError {
    /// Whether the index is sound but written by another version of peelfs.
    pub fn is_of_another_version(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Kind { .. })
    }

    /// Whether the file was damaged after it was written, as opposed to malformed content.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Io { .. })
    }
}

/// An index that ends early is not an index.
pub(super) fn unread(cause: io::Error) -> IndexError {
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => IndexError::NotAnIndex,
        _ => IndexError::Io { cause },
    }
}
