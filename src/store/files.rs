//! All file system operations of the store.
//!
//! The cache directory is held by a descriptor, and all paths are resolved from there: another user who may rename a
//! directory above it can remove it, but not replace it. Every open refuses symlinks, anything that is not a regular
//! file, and files of other users, so that a planted FIFO or link can neither hang nor redirect a process. All changes
//! are announced to a [`Disk`] first, where tests simulate full disks and crashes.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{File, Metadata, TryLockError};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::open_files::OpenFiles;
use super::verity::{self, Measured, NoVerity};
use crate::sync::lock;

/// A change of a cache directory, announced before it happens.
#[derive(Clone, Copy, Debug)]
pub enum Effect<'a> {
    /// Creates a directory.
    MakeDir(&'a Path),
    /// Creates a file, or opens it for writing.
    Create(&'a Path),
    /// Writes bytes to a file opened under this name.
    Write(&'a File, &'a Path, u64, &'a [u8]),
    /// Truncates or extends a file.
    Resize(&'a File, &'a Path, u64),
    /// Punches a hole of this length at an offset.
    Punch(&'a File, &'a Path, u64, u64),
    /// Syncs a file's bytes to the disk.
    Sync(&'a File, &'a Path),
    /// Renames a file.
    Rename(&'a Path, &'a Path),
    /// Removes a name.
    Remove(&'a Path),
    /// Takes a lock.
    Lock(&'a Path),
    /// Sets a file's modification time.
    Touch(&'a Path),
    /// Has the kernel verify a file, and refuse writes to it.
    Verity(&'a File, &'a Path),
}

/// The disk seam: called before every change of a cache directory.
pub trait Disk: Debug + Send + Sync {
    /// Called before `effect`, which happens if this returns `Ok`.
    ///
    /// # Errors
    /// The error that replaces the effect.
    fn before(&self, effect: Effect<'_>) -> io::Result<()>;
}

/// What a process cannot store in its cache.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NotKept {
    /// What was to be stored last.
    pub what: String,
    /// Why it was not.
    pub why: String,
    /// Whether the disk is full.
    pub full: bool,
    /// When that began, in seconds since 1970.
    pub since: u64,
}

impl NotKept {
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = || std::iter::successors(Some(error), |error| error.source());
        let why = causes().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let mut kinds = causes().filter_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
        let full = kinds.any(|kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded));
        Self { what: String::new(), why, full, since: 0 }
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The files of a cache directory, and the observer of their changes. Clones share state.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: Arc<Path>,
    /// The directory, opened on first use.
    held: Arc<Mutex<Option<Arc<OwnedFd>>>>,
    disk: Option<Arc<dyn Disk>>,
    /// Whether a failure to store something was already logged as a warning.
    told: Arc<AtomicBool>,
    not_kept: Arc<Mutex<Option<NotKept>>>,
    /// When a lock last timed out.
    lock_timed_out: Arc<Mutex<Option<Instant>>>,
    pub(super) pool: OpenFiles,
}

impl Files {
    pub(super) fn new(root: &Path, disk: Option<Arc<dyn Disk>>) -> Self {
        Self {
            root: root.into(),
            held: Arc::default(),
            disk,
            told: Arc::default(),
            not_kept: Arc::default(),
            lock_timed_out: Arc::default(),
            pool: OpenFiles::default(),
        }
    }

    /// The same for files outside any directory.
    pub(super) fn unwatched(&self) -> Self {
        Self { disk: None, ..self.clone() }
    }

    /// The cache directory; [checked](check_private_dir) when it is opened, and again after it was removed.
    fn dir(&self) -> Result<Arc<OwnedFd>, StoreError> {
        let mut held = lock(&self.held);
        if let Some(dir) = held.as_ref()
            && rustix::fs::fstat(dir).is_ok_and(|found| found.st_nlink > 0)
        {
            return Ok(Arc::clone(dir));
        }
        let dir = Arc::new(check_private_dir(&self.root)?);
        *held = Some(Arc::clone(&dir));
        Ok(dir)
    }

    /// The cache directory, and `path` relative to it.
    fn seen_from_dir<'a>(&self, path: &'a Path) -> io::Result<(Arc<OwnedFd>, &'a Path)> {
        let dir = self.dir().map_err(|error| match error {
            StoreError::Io { cause, .. } => cause,
            error @ (StoreError::Unsafe { .. } | StoreError::Sealed { .. }) => io::Error::other(error),
        })?;
        let own = path.strip_prefix(&self.root).unwrap_or(path);
        Ok((dir, if own.as_os_str().is_empty() { Path::new(".") } else { own }))
    }

    /// Runs `act` with `path` relative to the cache directory.
    fn at<T>(&self, path: &Path, act: impl FnOnce(&OwnedFd, &Path) -> rustix::io::Result<T>) -> io::Result<T> {
        let (dir, path) = self.seen_from_dir(path)?;
        Ok(act(&dir, path)?)
    }

    /// Lists a directory, without entries that vanish meanwhile; a missing directory is empty.
    pub(super) fn list(&self, dir: &Path) -> Result<Vec<(PathBuf, Found)>, StoreError> {
        self.list_some(dir, |_| true)
    }

    /// As [`Files::list`], limited to names that are `wanted`.
    pub(super) fn list_some(
        &self,
        dir: &Path,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<(PathBuf, Found)>, StoreError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match self.at(dir, |at, path| rustix::fs::openat(at, path, flags, Mode::empty())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened.map_err(StoreError::io("list", dir))?,
        };
        let listed = Dir::read_from(&opened).map_err(|error| StoreError::io("list", dir)(error.into()))?;
        let names = listed.flatten().map(|entry| entry.file_name().to_bytes().to_vec());
        let names = names.filter(|name| name != b"." && name != b".." && wanted(name)).map(OsString::from_vec);
        let found = |name: OsString| {
            let stat = rustix::fs::statat(&opened, Path::new(&name), AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((dir.join(name), Found(stat)))
        };
        Ok(names.filter_map(found).collect())
    }

    /// Calls `seen` for every file in a directory and its subdirectories.
    pub(super) fn each(&self, dir: &Path, seen: &mut dyn FnMut(&Path, &Found)) -> Result<(), StoreError> {
        for (path, found) in self.list(dir)? {
            if found.is_dir() {
                self.each(&path, seen)?;
            } else {
                seen(&path, &found);
            }
        }
        Ok(())
    }

    /// The entry at `path`, without following symlinks.
    pub(super) fn look(&self, path: &Path) -> io::Result<Found> {
        self.at(path, |at, path| rustix::fs::statat(at, path, AtFlags::SYMLINK_NOFOLLOW)).map(Found)
    }

    pub(super) fn open_read(&self, path: &Path) -> Result<File, StoreError> {
        self.open_found(path).map(|(file, _)| file)
    }

    /// Opens a file for reading; returns its metadata, too.
    pub(super) fn open_found(&self, path: &Path) -> Result<(File, Metadata), StoreError> {
        self.open(path, OFlags::RDONLY)
    }

    /// Reads a file of at most `limit` bytes.
    pub(super) fn read_small(&self, path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.open_read(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
        Ok(bytes)
    }

    fn open(&self, path: &Path, how: OFlags) -> Result<(File, Metadata), StoreError> {
        let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || self.at(path, |at, path| rustix::fs::openat(at, path, flags, PRIVATE));
        let opened = open().or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE) => {
                self.pool.close_half();
                open()
            }
            _ => Err(error),
        });
        let file = File::from(opened.map_err(StoreError::io("open", path))?);
        let found = file.metadata().map_err(StoreError::io("read", path))?;
        let refuse = |why| Err(StoreError::Unsafe { path: path.to_owned(), why });
        if !found.is_file() {
            return refuse("it holds an object that is not a regular file");
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return refuse("it holds a file that belongs to another user");
        }
        Ok((file, found))
    }

    fn before(&self, effect: Effect<'_>) -> io::Result<()> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk.before(effect))
    }

    /// What could not be stored the last time that it was tried.
    pub(super) fn not_kept(&self) -> Option<NotKept> {
        lock(&self.not_kept).clone()
    }

    /// Notes that content was stored.
    pub(super) fn has_kept(&self) {
        if self.told.load(Ordering::Relaxed) {
            lock(&self.not_kept).take();
        }
    }

    /// Logs that something cannot be stored: as a warning the first time, then at debug level.
    pub(super) fn cannot_keep(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        {
            let mut not_kept = lock(&self.not_kept);
            let since = not_kept.as_ref().map_or_else(unix_time, |before| before.since);
            *not_kept = Some(NotKept { what: what.to_owned(), since, ..NotKept::of(error) });
        }
        if self.told.swap(true, Ordering::Relaxed) {
            tracing::debug!(error, "the cache cannot keep {what}");
        } else {
            let root = self.root.display();
            tracing::warn!(error, "the cache `{root}` cannot keep {what}; it is fetched again when it is read");
        }
    }

    /// Creates the cache directory, or [checks](check_private_dir) that an existing one is safe.
    pub(super) fn make_private_dir(&self) -> Result<(), StoreError> {
        let path = &*self.root;
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let make = || std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
                let made = self.before(Effect::MakeDir(path)).and_then(|()| make());
                made.map_err(StoreError::io("create", path))?;
            }
            Err(error) => return Err(StoreError::io("read", path)(error)),
            Ok(_) => {}
        }
        self.dir().map(drop)
    }

    /// Creates a directory within the cache directory.
    pub(super) fn make_dir(&self, path: &Path) -> Result<(), StoreError> {
        if self.look(path).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        let above = path.parent().filter(|above| above.starts_with(&self.root) && **above != *self.root);
        above.map_or(Ok(()), |above| self.make_dir(above))?;
        let make = || match self.at(path, |at, path| rustix::fs::mkdirat(at, path, Mode::RWXU)) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.look(path).and_then(|found| if found.is_dir() { Ok(()) } else { Err(error) })
            }
            made => made,
        };
        self.before(Effect::MakeDir(path)).and_then(|()| make()).map_err(StoreError::io("create", path))
    }

    /// Opens for reading and writing, and creates a missing file; on a read-only file system, opens an existing file
    /// for reading.
    pub(super) fn open_write(&self, path: &Path) -> Result<File, StoreError> {
        self.before(Effect::Create(path)).map_err(StoreError::io("open", path))?;
        let open = || self.open(path, OFlags::RDWR | OFlags::CREATE).map(|(file, _)| file);
        match open() {
            Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                self.open_read(path)
            }
            Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::IsADirectory => {
                self.remove(path);
                open()
            }
            opened => opened,
        }
    }

    pub(super) fn create_new(&self, path: &Path) -> Result<File, StoreError> {
        self.before(Effect::Create(path)).map_err(StoreError::io("create", path))?;
        self.open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map(|(file, _)| file)
    }

    /// Creates an unnamed file in a directory, if its file system supports that.
    pub(super) fn create_unnamed(&self, dir: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        self.at(dir, |at, path| rustix::fs::openat(at, path, flags, Mode::RUSR | Mode::WUSR)).map(File::from)
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

    /// Has the kernel verify a file that is open for reading, and returns the digest of what it is compared with.
    pub(super) fn enable_verity(&self, file: &File, path: &Path) -> Result<Measured, NoVerity> {
        let enabled =
            self.before(Effect::Verity(file, path)).map_err(NoVerity::Refused).and_then(|()| verity::enable(file));
        if let Err(error) = &enabled {
            tracing::debug!(path = %path.display(), %error, "the kernel does not verify a file of the cache");
        }
        enabled
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let rename = || {
            let ((dir, from), (_, to)) = (self.seen_from_dir(from)?, self.seen_from_dir(to)?);
            io::Result::Ok(rustix::fs::renameat(&dir, from, &dir, to)?)
        };
        let renamed = self.before(Effect::Rename(from, to)).and_then(|()| match rename() {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.remove(to);
                rename()
            }
            done => done,
        });
        renamed.map_err(StoreError::io("rename", to))
    }

    /// Removes a file or whatever is in its place; a missing one is no error.
    pub(super) fn remove(&self, path: &Path) {
        let remove = || match self.at(path, |at, path| rustix::fs::unlinkat(at, path, AtFlags::empty())) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => self.remove_all(path),
            done => done,
        };
        if let Err(error) = self.before(Effect::Remove(path)).and_then(|()| remove())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file of the cache");
        }
    }

    pub(super) fn remove_dir(&self, path: &Path) -> Result<(), StoreError> {
        let removed = self.before(Effect::Remove(path)).and_then(|()| self.remove_all(path));
        removed.map_err(StoreError::io("remove", path))
    }

    /// Removes a directory and its content; a link in its place is only unlinked.
    fn remove_all(&self, path: &Path) -> io::Result<()> {
        let (dir, path) = self.seen_from_dir(path)?;
        // Through the kernel's name for the open directory.
        std::fs::remove_dir_all(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(path))
    }

    /// Waits for a lock that is held only briefly; gives up on a process that was stopped while holding it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after [`LOCK_TIMEOUT`].
    pub(super) fn lock(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Effect::Lock(path))?;
        // After a timeout, do not wait again at each span.
        let lost = lock(&self.lock_timed_out).is_some_and(|lost| lost.elapsed() < WAIT_FOR_LOCKS_AGAIN);
        let patience = if lost { LONGEST_PAUSE } else { LOCK_TIMEOUT };
        let (begun, mut pause) = (Instant::now(), SHORTEST_PAUSE);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {}
                Err(TryLockError::WouldBlock) => {
                    *lock(&self.lock_timed_out) = Some(Instant::now());
                    let why = "another process holds its lock and has stalled";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub(super) fn try_lock(&self, file: &File, path: &Path) -> Result<(), TryLockError> {
        self.before(Effect::Lock(path)).map_err(TryLockError::Error)?;
        file.try_lock()
    }

    /// Announces that a part of a file is about to be locked.
    pub(super) fn announce_lock(&self, path: &Path) -> io::Result<()> {
        self.before(Effect::Lock(path))
    }

    /// Sets a file's modification time to now.
    pub(super) fn touch(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Effect::Touch(path))?;
        file.set_modified(std::time::SystemTime::now())
    }
}

/// Metadata of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found(Stat);

impl Found {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.st_mode)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind() == FileType::RegularFile
    }

    /// Its type and permissions.
    pub(super) fn mode(&self) -> u32 {
        self.0.st_mode
    }

    pub(super) fn length(&self) -> u64 {
        u64::try_from(self.0.st_size).unwrap_or(0)
    }

    /// Disk usage in bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        u64::try_from(self.0.st_blocks).unwrap_or(0) * 512
    }

    /// The modification time; the epoch for earlier times.
    pub(super) fn modified(&self) -> SystemTime {
        let seconds = u64::try_from(self.0.st_mtime).unwrap_or(0);
        let since = Duration::new(seconds, u32::try_from(self.0.st_mtime_nsec).unwrap_or(0));
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Its identity: device and inode.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.0.st_dev, self.0.st_ino)
    }
}

/// Opens a cache directory if it is safe: owned by this user, not a link, and writable by no other user.
pub(super) fn check_private_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    let failed = |error: Errno| StoreError::io("read", path)(error.into());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let found = rustix::fs::fstat(&dir).map_err(failed)?;
    let refuse = |why| Err(StoreError::Unsafe { path: path.to_owned(), why });
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return refuse("it is a symbolic link"),
        _ => return refuse("it is not a directory"),
    }
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if found.st_mode & 0o022 != 0 {
        return refuse("others may write to it");
    }
    Ok(dir)
}

/// Time limit for a lock that others hold while they write a span or publish two files.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after a timeout until a lock is awaited again.
const WAIT_FOR_LOCKS_AGAIN: Duration = Duration::from_secs(30);
/// Pauses between tries to lock.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// Mode of new files.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
