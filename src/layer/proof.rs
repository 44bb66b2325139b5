//! The layer of an index, and why the index is trusted.

use crate::digest::Digest;

/// The layer of an index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexedLayer {
    /// The blob.
    pub blob: Digest,
    /// Its size in bytes.
    pub blob_size: u64,
    /// The decoded stream.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub decoded_size: u64,
}

/// Why an index is trusted to belong to its layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Proof {
    /// Built on this machine, from bytes that match the blob's digest and the diff_id.
    Built,
    /// Built elsewhere by a trusted maker.
    Vouched {
        /// The format of its import.
        format: Format,
        /// The maker, for messages: a file, a digest; at most [`Proof::BY`] bytes.
        by: Box<str>,
    },
    /// For a layer that is still being read: only in memory, never stored.
    Unproven,
}

/// The format of an index that was not built on this machine.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Format {
    /// Another machine's own index, imported by the user.
    Exported,
}

impl Proof {
    /// Limit for the maker's name, in bytes.
    pub const BY: usize = 1024;

    /// The proof of an index made by `by`, truncated to [`Proof::BY`] bytes.
    pub fn vouched(format: Format, by: &str) -> Self {
        let fits = by.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= Self::BY);
        Self::Vouched { format, by: by[..fits.last().unwrap_or(0)].into() }
    }

    /// The maker, if the index was not built on this machine.
    pub fn vouched_by(&self) -> Option<&str> {
        match self {
            Self::Vouched { by, .. } => Some(by),
            Self::Built | Self::Unproven => None,
        }
    }

    /// The number on disk.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Built => 0,
            Self::Vouched { format: Format::Exported, .. } => 1,
            Self::Unproven => 255,
        }
    }

    /// The proof of this kind and name; `None` for a kind of a later version.
    pub(super) fn from_kind(kind: u8, by: &str) -> Option<Self> {
        match kind {
            0 => Some(Self::Built),
            1 => Some(Self::Vouched { format: Format::Exported, by: by.into() }),
            255 => Some(Self::Unproven),
            _ => None,
        }
    }
}
