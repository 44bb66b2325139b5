//! The few ways in which the store touches the file system.
//!
//! Every open refuses symlinks and anything that is not a regular file, so that a planted FIFO or link
//! can neither hang nor redirect a process. Whatever changes the directory is announced to a [`Disk`]
//! first, which is where tests let disks fill up and processes die.

use std::fmt::Debug;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags};

use super::StoreError;

/// What is done to a cache directory, just before it is done.
#[derive(Clone, Copy, Debug)]
pub enum Effect<'a> {
    /// A directory is made.
    MakeDir(&'a Path),
    /// A file is made, or opened for writing.
    Create(&'a Path),
    /// Bytes are written to a file that was opened under this name.
    Write(&'a File, &'a Path, u64, &'a [u8]),
    /// A file is cut or made longer.
    Resize(&'a File, &'a Path, u64),
    /// A hole of so many bytes is punched at a place.
    Punch(&'a File, &'a Path, u64, u64),
    /// A file's bytes are brought to the disk.
    Sync(&'a File, &'a Path),
    /// A file gets another name.
    Rename(&'a Path, &'a Path),
    /// A name is removed.
    Remove(&'a Path),
    /// A lock is asked for.
    Lock(&'a Path),
    /// A file is noted as used.
    Touch(&'a Path),
}

/// The disk seam: told of everything that is about to change a cache directory.
pub trait Disk: Debug + Send + Sync {
    /// `effect` happens when this returns `Ok`.
    ///
    /// # Errors
    /// What happens instead.
    fn before(&self, effect: Effect<'_>) -> io::Result<()>;
}

/// The files of a cache directory, and who is told what is done to them. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: Arc<Path>,
    disk: Option<Arc<dyn Disk>>,
    /// Whether it was said that something cannot be kept.
    told: Arc<AtomicBool>,
}

impl Files {
    pub(super) fn new(root: &Path, disk: Option<Arc<dyn Disk>>) -> Self {
        Self { root: root.into(), disk, told: Arc::default() }
    }

    /// The same, for files that are in no directory.
    pub(super) fn unwatched(&self) -> Self {
        Self { disk: None, ..self.clone() }
    }

    fn before(&self, effect: Effect<'_>) -> io::Result<()> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk.before(effect))
    }

    /// Says that something is not kept: the first time as a warning, and then for those who want to know.
    pub(super) fn cannot_keep(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        if self.told.swap(true, Ordering::Relaxed) {
            tracing::debug!(error, "the cache cannot keep {what}");
        } else {
            let root = self.root.display();
            tracing::warn!(
                error,
                "the cache `{root}` cannot keep {what}; what it does not take is fetched when it is read"
            );
        }
    }

    /// Makes the cache's own directory, or [checks](check_private_dir) that the one there is safe.
    pub(super) fn make_private_dir(&self, path: &Path) -> Result<(), StoreError> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = self.before(Effect::MakeDir(path)).and_then(|()| builder.create(path));
                made.map_err(StoreError::io("create", path))?;
            }
            Err(error) => return Err(StoreError::io("read", path)(error)),
            Ok(_) => {}
        }
        check_private_dir(path)
    }

    pub(super) fn make_dir(&self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        let made = self.before(Effect::MakeDir(path));
        made.and_then(|()| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
            .map_err(StoreError::io("create", path))
    }

    /// Opens for reading and writing, making an empty file when there is none; on a file system that is
    /// read-only, opens what is there for reading.
    pub(super) fn open_write(&self, path: &Path) -> Result<File, StoreError> {
        self.before(Effect::Create(path)).map_err(StoreError::io("open", path))?;
        let open = || {
            let opened = open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
            opened.map(|(file, _)| file)
        };
        match open() {
            Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => open_read(path),
            Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::IsADirectory => {
                self.remove(path);
                open()
            }
            opened => opened,
        }
    }

    pub(super) fn create_new(&self, path: &Path) -> Result<File, StoreError> {
        self.before(Effect::Create(path)).map_err(StoreError::io("create", path))?;
        open(path, OpenOptions::new().read(true).write(true).create_new(true)).map(|(file, _)| file)
    }

    pub(super) fn write_all_at(&self, file: &File, path: &Path, bytes: &[u8], at: u64) -> io::Result<()> {
        self.before(Effect::Write(file, path, at, bytes))?;
        file.write_all_at(bytes, at)
    }

    pub(super) fn set_len(&self, file: &File, path: &Path, length: u64) -> io::Result<()> {
        self.before(Effect::Resize(file, path, length))?;
        file.set_len(length)
    }

    pub(super) fn punch_hole(&self, file: &File, path: &Path, at: u64, length: u64) -> io::Result<()> {
        self.before(Effect::Punch(file, path, at, length))?;
        Ok(rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length)?)
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Effect::Sync(file, path))?;
        file.sync_data()
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let rename = || match std::fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.remove(to);
                std::fs::rename(from, to)
            }
            done => done,
        };
        let renamed = self.before(Effect::Rename(from, to)).and_then(|()| rename());
        renamed.map_err(StoreError::io("rename", to))
    }

    /// Removes a file, or what somebody has put in its place; that it is not there any more is what was wanted.
    pub(super) fn remove(&self, path: &Path) {
        let remove = || match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => std::fs::remove_dir_all(path),
            done => done,
        };
        if let Err(error) = self.before(Effect::Remove(path)).and_then(|()| remove())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file of the cache");
        }
    }

    pub(super) fn remove_dir(&self, path: &Path) -> Result<(), StoreError> {
        let removed = self.before(Effect::Remove(path)).and_then(|()| std::fs::remove_dir_all(path));
        removed.map_err(StoreError::io("remove", path))
    }

    pub(super) fn lock(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Effect::Lock(path))?;
        file.lock()
    }

    pub(super) fn try_lock(&self, file: &File, path: &Path) -> Result<(), TryLockError> {
        self.before(Effect::Lock(path)).map_err(TryLockError::Error)?;
        file.try_lock()
    }

    pub(super) fn try_lock_shared(&self, file: &File, path: &Path) -> Result<(), TryLockError> {
        self.before(Effect::Lock(path)).map_err(TryLockError::Error)?;
        file.try_lock_shared()
    }

    /// Sets a file's modification time to now.
    pub(super) fn touch(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Effect::Touch(path))?;
        file.set_modified(std::time::SystemTime::now())
    }
}

/// Whether a cache's own directory is safe: ours, real, and writable by nobody else.
pub(super) fn check_private_dir(path: &Path) -> Result<(), StoreError> {
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

pub(super) fn open_read(path: &Path) -> Result<File, StoreError> {
    open_found(path).map(|(file, _)| file)
}

/// A file to read, and what it is.
pub(super) fn open_found(path: &Path) -> Result<(File, Metadata), StoreError> {
    open(path, OpenOptions::new().read(true))
}

/// The whole of a file of at most `limit` bytes.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    open_read(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    Ok(bytes)
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<(File, Metadata), StoreError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    let file =
        options.custom_flags(flags.cast_signed()).mode(0o600).open(path).map_err(StoreError::io("open", path))?;
    let found = file.metadata().map_err(StoreError::io("read", path))?;
    if !found.is_file() {
        return Err(StoreError::Unsafe { path: path.to_owned(), why: "it holds something that is not a plain file" });
    }
    Ok((file, found))
}
