//! Which layer an index is of, and why it is believed.

use crate::digest::Digest;

/// Which layer an index is of.
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

/// Why an index is believed to be that of its layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Proof {
    /// It was made on this machine, of bytes that hashed to the blob's digest and the diff_id.
    Built,
    /// It was made elsewhere, and is believed because of who made it.
    Vouched {
        /// How it came.
        format: Format,
        /// By whom, for people: a file, a digest; at most [`Proof::BY`] bytes.
        by: Box<str>,
    },
    /// It is of a layer that is still being read: it lives in memory, and no store has it.
    Unproven,
}

/// How an index came that was not made on this machine.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Format {
    /// Another machine's own index, imported by the user.
    Exported,
}

impl Proof {
    /// The most bytes of a name.
    pub const BY: usize = 1024;

    /// Of an index that `by` vouches for, cut where it is longer than an index holds.
    pub fn vouched(format: Format, by: &str) -> Self {
        let fits = by.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= Self::BY);
        Self::Vouched { format, by: by[..fits.last().unwrap_or(0)].into() }
    }

    /// Who vouches, where the index was not made on this machine.
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

    /// What a kind and a name mean; `None` for a kind of a later version.
    pub(super) fn from_kind(kind: u8, by: &str) -> Option<Self> {
        match kind {
            0 => Some(Self::Built),
            1 => Some(Self::Vouched { format: Format::Exported, by: by.into() }),
            255 => Some(Self::Unproven),
            _ => None,
        }
    }
}
