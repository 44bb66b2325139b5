//! An image as a file system that the kernel shows by itself: metadata in the form of EROFS, over content files.
//!
//! A layer's content file is its decoded tar, in which the bodies of files begin at multiples of 512 bytes. So a file
//! system of blocks of that size needs the merged tree only, and names the content files as further devices: no byte of a
//! file is copied, and no process has to answer for it. The kernel mounts such an image from files ([`host`](crate::host)
//! does); `docs/formats.md` says what stands where.
//!
//! One walk through the tree writes it, with memory for the directories on the way to where the walk is, and for inodes that
//! have several names. The same layers make the same bytes.

mod attach;
mod chunks;
mod dirents;
mod format;
mod space;
mod walk;
mod xattrs;

use std::io;

use crate::image::{FsError, ImageFs};
use crate::overlay::LayerNo;

pub use attach::{AttachError, Files, Terms, attach, is_possible};
pub use space::Output;

/// What was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Encoded {
    /// Bytes of the image.
    pub size: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Bytes of files that were copied into it.
    pub copied: u64,
    /// One layer for each device, in the order in which the kernel has to be given them.
    pub devices: Vec<LayerNo>,
}

/// Which extended attributes are shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    /// All.
    All,
    /// Those by which an image could not steer an overlay that lies on it.
    UnderOverlay,
}

/// Why an image cannot have this form.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tree cannot be walked.
    #[error(transparent)]
    Image(#[from] FsError),
    /// A layer is not known, or bytes that have to be copied are not cached.
    #[error("not all of layer {0} is cached")]
    Missing(LayerNo),
    /// A file has an extended attribute that EROFS cannot hold.
    #[error("EROFS cannot hold the extended attribute `{name}` of a file: {why}")]
    Xattr {
        /// Its name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// It is beyond what the format can count.
    #[error("the image is larger than EROFS can describe")]
    TooLarge,
    /// The file cannot be written.
    #[error("cannot write the file system image")]
    Write(#[source] io::Error),
}

/// Writes `fs`, all of whose layers are known, to `out`. Blocks this thread.
///
/// # Errors
/// [`EncodeError`]
pub fn encode(fs: &ImageFs, out: &mut dyn Output, shown: Shown) -> Result<Encoded, EncodeError> {
    walk::Encoder::new(fs, out, shown)?.encode()
}
