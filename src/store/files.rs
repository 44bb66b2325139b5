//! The few ways in which the store touches the file system.
//!
//! Every open refuses symlinks and anything that is not a regular file, so that a planted FIFO or link
//! can neither hang nor redirect a process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::StoreError;

/// Makes the cache's own directory, or checks that the one there is safe: ours, real, and writable
/// by nobody else.
pub(super) fn make_private_dir(path: &Path) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            builder.create(path).map_err(StoreError::io("create", path))?;
        }
        Err(error) => return Err(StoreError::io("read", path)(error)),
        Ok(_) => {}
    }
    let found = std::fs::symlink_metadata(path).map_err(StoreError::io("read", path))?;
    let refuse = |why| Err(StoreError::Unsafe { path: path.to_owned(), why });
    if found.is_symlink() {
        return refuse("it is a symbolic link");
    }
    if !found.is_dir() {
        return refuse("it is not a directory");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return refuse("others may write to it");
    }
    Ok(())
}

pub(super) fn make_dir(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("create", path))
}

pub(super) fn open_read(path: &Path) -> Result<File, StoreError> {
    open(path, OpenOptions::new().read(true))
}

/// Opens for reading and writing, making an empty file when there is none; on a file system that is
/// read-only, opens what is there for reading.
pub(super) fn open_write(path: &Path) -> Result<File, StoreError> {
    match open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false)) {
        Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => open_read(path),
        opened => opened,
    }
}

pub(super) fn open_lock(path: &Path) -> Result<File, StoreError> {
    open_write(path)
}

pub(super) fn create_new(path: &Path) -> Result<File, StoreError> {
    open(path, OpenOptions::new().read(true).write(true).create_new(true))
}

/// The whole of a file of at most `limit` bytes.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    open_read(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    Ok(bytes)
}

/// Removes a file; that it is not there any more is what was wanted.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file of the cache");
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, StoreError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    let file =
        options.custom_flags(flags.cast_signed()).mode(0o600).open(path).map_err(StoreError::io("open", path))?;
    let found = file.metadata().map_err(StoreError::io("read", path))?;
    if !found.is_file() {
        return Err(StoreError::Unsafe { path: path.to_owned(), why: "it holds something that is not a plain file" });
    }
    Ok(file)
}
