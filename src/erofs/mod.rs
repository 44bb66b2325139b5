//! Writes an image as EROFS metadata over content files, for kernel mounts.
//!
//! A layer's content file is its decoded tar, in which file bodies start at multiples of 512 bytes. So a file system
//! with blocks of that size needs only the merged tree, and uses the content files as extra devices: no file is copied,
//! and no process has to serve it. The kernel mounts such an image from files (see [`host`](crate::host));
//! `docs/formats.md` describes the format.
//!
//! One walk of the tree writes it, with memory for the open directories, for inodes with several names, and for a bounded
//! part of the layer indexes. The same layers always give the same bytes.

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

pub use attach::{AttachError, Files, Terms, attach, file_system_without_read_folio, is_possible};
pub use space::Output;

/// The result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Encoded {
    /// Bytes of the image.
    pub size: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Bytes of files that were copied into it.
    pub copied: u64,
    /// One layer for each device, in the order that the kernel expects.
    pub devices: Vec<LayerNo>,
}

/// Why an image cannot be written as EROFS.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tree cannot be walked.
    #[error(transparent)]
    Image(#[from] FsError),
    /// A layer is not indexed, or bytes to copy are not cached.
    #[error("not all of layer {0} is cached")]
    Missing(LayerNo),
    /// A file has an extended attribute that EROFS does not support.
    #[error("EROFS cannot hold the extended attribute `{name}` of a file: {why}")]
    Xattr {
        /// Its name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// It exceeds the limits of the format.
    #[error("the image is larger than EROFS can describe")]
    TooLarge,
    /// The file cannot be written.
    #[error("cannot write the file system image")]
    Write(#[source] io::Error),
}

/// Writes `fs`, all of whose layers are indexed, to `out`, without attributes that control an overlay on top of it. Blocks
/// this thread.
///
/// # Errors
/// [`EncodeError`]
pub fn encode(fs: &ImageFs, out: &mut dyn Output) -> Result<Encoded, EncodeError> {
    walk::Encoder::new(fs, out)?.encode()
}
