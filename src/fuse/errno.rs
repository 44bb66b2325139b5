//! Turns errors into the errnos that processes see; the only place that does.

use rustix::io::Errno;

use crate::content::ReadError;
use crate::image::FsError;

pub(super) fn of(error: &FsError) -> Errno {
    match error {
        // Data that failed verification is not shown.
        FsError::Layer { .. } | FsError::Malformed { .. } | FsError::Refused { .. } => Errno::IO,
        FsError::TakesTooLong | FsError::Ended => Errno::IO,
        // A full disk is what the reader can do something about.
        FsError::Disk(cause) => Errno::from_io_error(cause).unwrap_or(Errno::IO),
        FsError::Read(
            ReadError::Corrupt { .. }
            | ReadError::Codec { .. }
            | ReadError::Windows { .. }
            | ReadError::Refuted { .. }
            | ReadError::Source { .. }
            | ReadError::Index { .. }
            | ReadError::Ended { .. },
        ) => Errno::IO,
        FsError::NoSuchNode(_) => Errno::STALE,
        FsError::NotADirectory => Errno::NOTDIR,
        FsError::IsADirectory => Errno::ISDIR,
        FsError::NotAFile => Errno::INVAL,
        FsError::NotFound => Errno::NOENT,
        FsError::Loop => Errno::LOOP,
    }
}
