//! Inside a zstd frame (RFC 8878): what must be known to decode from a block in its middle.
//!
//! libzstd decodes frames, but shows nothing of its state between two blocks. That state is small: the Huffman codes and
//! the three tables that the next block may use again, three offsets, and of the window the bytes that later blocks copy
//! from. A [`Recorder`] reads blocks beside libzstd, without decoding their literals or copying anything, and keeps it; a
//! copy's source need not be at hand, since the copy itself is in the output. [`Resumed`] decodes from there.
//!
//! What is read here has been or will be decoded by libzstd, whose bytes alone count in a first pass; so anything that
//! this reader does not take only means that decoding cannot begin there.

mod bits;
mod block;
mod checkpoint;
mod copies;
mod fse;
mod huffman;
mod recorder;
mod resumed;

pub(super) use self::checkpoint::Checkpoint;
pub(super) use self::recorder::Recorder;
pub(super) use self::resumed::Resumed;

/// Why a block cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unreadable(pub(super) &'static str);

/// The most bytes of a block, coded or decoded (RFC 8878, 3.1.1.2.4).
pub(super) const BLOCK: usize = 128 << 10;
