//! What a process sees when an answer cannot be given: the one place that turns errors into errnos.

use fuser::Errno;

use crate::content::ReadError;
use crate::image::FsError;

pub(super) fn of(error: &FsError) -> Errno {
    match error {
        // What cannot be verified is not shown.
        FsError::Layer { .. } | FsError::Damaged { .. } => Errno::EIO,
        FsError::Read(
            ReadError::Corrupt { .. }
            | ReadError::Codec { .. }
            | ReadError::Source { .. }
            | ReadError::Index { .. }
            | ReadError::Ended { .. },
        ) => Errno::EIO,
        FsError::NoSuchNode(_) => Errno::ESTALE,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotAFile => Errno::EINVAL,
        FsError::NotFound => Errno::ENOENT,
        FsError::Loop => Errno::ELOOP,
    }
}
