//! fs-verity: the kernel verifies each page of a file when it reads it from the disk, and refuses writes to the file.
//!
//! The kernel stores a hash tree with such a file (its documentation, `filesystems/fsverity.rst`). A read of a page that does
//! not match is `EIO`. The digest of the tree is known without reading the file, so it shows at once, also
//! after a reboot, whether a file is one that was verified before.

use std::fs::File;
use std::io;

use composefs_ioctls::fsverity::{self, EnableVerityError, MeasureVerityError};
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest};

/// What the kernel calls the digest of a file: SHA-256 of its size and the root of its hash tree. `fsverity measure` prints
/// the same.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Measured(Digest);

/// Why the kernel does not verify a file.
#[derive(Debug, thiserror::Error)]
pub enum NoVerity {
    /// Neither this one nor any other of its file system.
    #[error("the file system of the cache has no fs-verity")]
    Unsupported,
    /// A process has the file open for writing.
    #[error("a process has the file open for writing")]
    Busy,
    /// That could not be done when the file was verified.
    #[error("fs-verity could not be enabled; a later mount tries again")]
    NotEnabled,
    /// The kernel or the file system refuses.
    #[error("fs-verity is refused")]
    Refused(#[source] io::Error),
}

/// Has the kernel verify the file from now on, and returns the digest of what it is compared with. Reads all of the file.
///
/// That is the file as the disk has it now: who wants to trust the digest verifies the content afterwards.
pub(super) fn enable(file: &File) -> Result<Measured, NoVerity> {
    match fsverity::fs_ioc_enable_verity(file, SHA256, BLOCK) {
        Ok(()) | Err(EnableVerityError::AlreadyEnabled) => measure(file),
        Err(EnableVerityError::FilesystemNotSupported) => Err(NoVerity::Unsupported),
        Err(EnableVerityError::FileOpenedForWrite) => Err(NoVerity::Busy),
        Err(EnableVerityError::Io(cause)) => Err(NoVerity::Refused(cause)),
        Err(error @ EnableVerityError::SignatureVerificationFailed) => Err(NoVerity::Refused(io::Error::other(error))),
    }
}

/// The digest that the kernel compares the file with. Does not read the file.
pub(super) fn measure(file: &File) -> Result<Measured, NoVerity> {
    match fsverity::fs_ioc_measure_verity::<32>(file, SHA256) {
        Ok(raw) => Ok(Measured(Digest::from_raw(Algorithm::Sha256, &raw))),
        Err(MeasureVerityError::FilesystemNotSupported) => Err(NoVerity::Unsupported),
        Err(MeasureVerityError::VerityMissing) => Err(NoVerity::NotEnabled),
        Err(MeasureVerityError::Io(cause)) => Err(NoVerity::Refused(cause)),
        Err(
            error @ (MeasureVerityError::InvalidDigestAlgorithm { .. } | MeasureVerityError::InvalidDigestSize { .. }),
        ) => Err(NoVerity::Refused(io::Error::other(error))),
    }
}

/// `FS_VERITY_HASH_ALG_SHA256`
const SHA256: u8 = 1;
/// Bytes that a hash of the tree is of; what `fsverity enable` takes, too.
const BLOCK: u32 = 4096;
