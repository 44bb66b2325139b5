//! Layers that bring a table of contents (TOC) along, in formats of other makers: from its bytes to tree and spans.
//!
//! | format | table | its place and digest |
//! |---|---|---|
//! | zstd:chunked ([`zstd_chunked`]) | JSON in a zstd frame that readers skip, near the layer's end | annotations of the layer in the manifest |
//! | eStargz ([`estargz`]) | JSON, the last file of the tar, in gzip members of its own | place in the layer's last bytes, digest in an annotation |
//!
//! A table says of each file where its pieces lie in the blob, and what they must hash to. It does not say where the tar
//! has them, so the decoded stream of such a layer is that of the bodies alone ([`Stream::Bodies`](super::Stream)).
//!
//! Nothing proves that a table and the tar say the same. So a table that contradicts itself, or could be read in two ways,
//! is no table: all of the layer is read instead, and its tar counts. That also goes for what a tar may say and a table
//! need not: two entries of one name, hard links to files of other layers, names that lead upwards, names that JSON cannot
//! hold.

mod bodies;
pub mod estargz;
mod record;
pub mod soci;
pub mod tar_split;
pub mod zstd_chunked;

use super::entry::EntryId;
use super::proof::Format;
use super::spans::{Span, SpanSource};
use super::tree::{LayerTree, Limits, TreeError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;

/// A table of contents, as a manifest names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Toc {
    /// Of zstd:chunked.
    ZstdChunked(zstd_chunked::Toc),
    /// Of eStargz.
    EStargz(estargz::Toc),
}

impl Toc {
    /// The table of this format that the annotations of `layer` name; `None` where they name none.
    ///
    /// # Errors
    /// [`PlaceError`]
    pub fn of(layer: &Descriptor, format: Format) -> Result<Option<Self>, PlaceError> {
        match format {
            Format::ZstdChunked => Ok(zstd_chunked::toc_of(layer)?.map(Self::ZstdChunked)),
            Format::EStargz => Ok(estargz::toc_of(layer)?.map(Self::EStargz)),
            Format::Exported | Format::Pushed | Format::Soci | Format::SociReferrer => Ok(None),
        }
    }

    /// What the manifest says that it hashes to.
    pub fn digest(&self) -> &Digest {
        match self {
            Self::ZstdChunked(toc) => &toc.packed.digest,
            Self::EStargz(toc) => &toc.digest,
        }
    }
}

/// Why annotations name no table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlaceError {
    /// There are annotations of both families.
    #[error("there are annotations of zstd:chunked of two kinds")]
    Twice,
    /// One of the annotations is missing, or no digest or place.
    #[error("the annotations are incomplete or malformed")]
    Malformed,
    /// The place is none in the blob.
    #[error("the annotations name a place outside the layer")]
    Outside,
    /// A table of this kind is unknown.
    #[error("the table of contents is of kind {0}")]
    Kind(u64),
    /// It is larger than any that is written.
    #[error("the table of contents has {0} bytes, and the limit is {LARGEST_TOC}")]
    TooLarge(u64),
}

/// As containers/storage has it, for tables of zstd:chunked.
const LARGEST_TOC: u64 = 150 << 20;

/// What a table of contents says of its layer.
#[derive(Debug)]
pub struct ForeignLayer {
    /// Its names.
    pub tree: LayerTree,
    /// The pieces of its files, in the order of the blob.
    pub spans: Vec<Span>,
    /// What each of them is decoded from.
    pub sources: Vec<SpanSource>,
    /// How long the stream of its bodies is.
    pub decoded_size: u64,
}

/// What a table is held to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of the tree.
    pub tree: Limits,
    /// How many bytes all files together may have, holes apart.
    pub decoded: u64,
}

/// Why a table of contents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// It is not what such a table is.
    #[error("the table of contents is none")]
    Json(#[source] serde_json::Error),
    /// It is no flatbuffer, or none of a zTOC.
    #[error("its bytes are not a zTOC: {0}")]
    Buffer(String),
    /// It is of a version that nothing is known of.
    #[error("the table of contents has version {0}")]
    Version(i64),
    /// What it says of an entry cannot be.
    #[error("the table of contents contradicts itself at `{}`: {what}", .name.escape_ascii())]
    Contradiction {
        /// The entry's name, at most 256 bytes of it.
        name: Vec<u8>,
        /// What cannot be.
        what: &'static str,
    },
    /// It is not the one that the manifest names.
    #[error("the table of contents is not the one that the manifest names: expected {expected}, got {actual}")]
    Other {
        /// The manifest's digest.
        expected: Digest,
        /// That of what came.
        actual: Digest,
    },
    /// What says where something lies is malformed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It is more than a layer may have, or means something else than it says.
    #[error("the table of contents cannot be used: {what}")]
    Unusable {
        /// What is wrong.
        what: &'static str,
    },
    /// What it says of an entry makes no tree.
    #[error("the table of contents makes no tree")]
    Tree(#[source] TreeError),
}

/// Checks what a tar may say and a table need not.
fn is_plain(tree: &LayerTree) -> Result<(), TocError> {
    if let Some(id) = tree.lower_links().next() {
        return Err(TocError::Contradiction { name: tree.path(id), what: "it is a hard link to nothing" });
    }
    has_no_name_twice(tree)
}

/// Checks that no entry was replaced by a later one.
fn has_no_name_twice(tree: &LayerTree) -> Result<(), TocError> {
    let contradiction = |id, what| TocError::Contradiction { name: tree.path(id), what };
    let replaced = (1..tree.len()).map(EntryId).find(|id| tree.entry(*id).is(super::entry::Flags::DETACHED));
    replaced.map_or(Ok(()), |id| Err(contradiction(id, "there are two entries of this name")))
}
