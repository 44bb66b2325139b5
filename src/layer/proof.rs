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
        /// The layer's tar was compared with it since, and has the diff_id.
        confirmed: bool,
    },
    /// For a layer that is still being read: only in memory, never stored.
    Unproven,
}

/// The format of an index that was not built on this machine.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Format {
    /// Another machine's own index, imported by the user.
    Exported,
    /// The same, found in a registry that the user named.
    Pushed,
    /// The table of contents of zstd:chunked, which the layer ends with.
    ZstdChunked,
    /// That of eStargz.
    EStargz,
    /// A zTOC of SOCI, named by the index that the image's manifest binds.
    Soci,
    /// The same, named by an index that refers to the manifest, in a registry that the user named.
    SociReferrer,
}

impl Format {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exported => "an exported index",
            Self::Pushed => "a pushed index",
            Self::ZstdChunked => "zstd:chunked",
            Self::EStargz => "eStargz",
            Self::Soci => "SOCI",
            Self::SociReferrer => "SOCI v1",
        }
    }

    /// Whether it comes with the layer itself, and the image's manifest says what it must be.
    pub fn is_in_layer(self) -> bool {
        matches!(self, Self::ZstdChunked | Self::EStargz)
    }
}

/// What a layer's decoded stream consists of, in which spans and the bytes of files have their places.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    /// The layer's tar.
    Tar,
    /// The bodies of its files alone, one after the other, each at a multiple of 512. Between two of them lies nothing that
    /// could be read, and each span has an end of its own in the blob.
    Bodies,
    /// The blob, which is one file. Its name is not in the index.
    Blob,
}

impl Stream {
    /// The number on disk.
    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Tar => 0,
            Self::Bodies => 1,
            Self::Blob => 2,
        }
    }

    /// `None` for a kind of a later version.
    pub(super) fn from_kind(kind: u8) -> Option<Self> {
        [Self::Tar, Self::Bodies, Self::Blob].into_iter().find(|stream| stream.kind() == kind)
    }
}

impl Proof {
    /// Limit for the maker's name, in bytes.
    pub const BY: usize = 1024;

    /// The proof of an index made by `by`, truncated to [`Proof::BY`] bytes.
    pub fn vouched(format: Format, by: &str) -> Self {
        let fits = by.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= Self::BY);
        Self::Vouched { format, by: by[..fits.last().unwrap_or(0)].into(), confirmed: false }
    }

    /// Whether the layer's tar was compared with the index, here or by a machine that is trusted.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Built | Self::Vouched { confirmed: true, .. })
    }

    /// The proof of this index once it is confirmed; `None` where that is not told of an index.
    pub fn confirmed(&self) -> Option<Self> {
        match self {
            Self::Vouched { format: format @ Format::ZstdChunked, by, .. } => {
                Some(Self::Vouched { format: *format, by: by.clone(), confirmed: true })
            }
            Self::Vouched { .. } | Self::Built | Self::Unproven => None,
        }
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
            Self::Vouched { format: Format::ZstdChunked, confirmed, .. } => {
                if *confirmed {
                    7
                } else {
                    2
                }
            }
            Self::Vouched { format: Format::EStargz, .. } => 3,
            Self::Vouched { format: Format::Soci, .. } => 4,
            Self::Vouched { format: Format::SociReferrer, .. } => 5,
            Self::Vouched { format: Format::Pushed, .. } => 6,
            Self::Unproven => 255,
        }
    }

    /// The proof of this kind and name; `None` for a kind of a later version.
    pub(super) fn from_kind(kind: u8, by: &str) -> Option<Self> {
        let vouched = |format| Some(Self::Vouched { format, by: by.into(), confirmed: false });
        match kind {
            0 => Some(Self::Built),
            1 => vouched(Format::Exported),
            2 => vouched(Format::ZstdChunked),
            3 => vouched(Format::EStargz),
            4 => vouched(Format::Soci),
            5 => vouched(Format::SociReferrer),
            6 => vouched(Format::Pushed),
            7 => vouched(Format::ZstdChunked)?.confirmed(),
            255 => Some(Self::Unproven),
            _ => None,
        }
    }
}
