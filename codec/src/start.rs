//! Starts: what decoding from a place in a layer needs.

use crate::Compression;

/// Whether and how decoding can start at a mark.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum StartKind {
    /// Stored bytes.
    Stored,
    /// At a gzip member's header.
    Member,
    /// At a deflate block, with the mark's [`Window`](super::Window).
    Checkpoint,
    /// Inside a deflate block, with the mark's [`Window`](super::Window), which has the block's codes.
    InsideBlock,
    /// At a zstd frame's header.
    Frame,
    /// At a block of a zstd frame, with the mark's [`Window`](super::Window).
    Block,
    /// Not a start: decode from the nearest start before it.
    Continued,
}

impl StartKind {
    /// The compression of a layer with such a mark; `None` for [`StartKind::Continued`].
    pub fn compression(self) -> Option<Compression> {
        match self {
            Self::Stored => Some(Compression::Stored),
            Self::Member | Self::Checkpoint | Self::InsideBlock => Some(Compression::Gzip),
            Self::Frame | Self::Block => Some(Compression::Zstd),
            Self::Continued => None,
        }
    }

    /// Whether decoding can start at a mark of this kind.
    pub fn is_start(self) -> bool {
        self != Self::Continued
    }
}
