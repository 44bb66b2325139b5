//! The place of a mount, and its unmounting.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};

use super::attach;
use super::device::Device;
use super::mounts::{self, MountPoint};

/// The place of a mount: its path, and the kernel's numbers of this mount.
#[derive(Clone, Debug)]
pub struct MountPlace {
    at: PathBuf,
    /// Of its file system; a later one may reuse it.
    device: Option<String>,
    /// Of the mount, wherever it is moved to. `None` if an older version made it.
    id: Option<u64>,
    /// The generation of its node numbers.
    generation: u32,
    /// Its connection, in the process that serves it.
    connection: Option<Weak<Device>>,
}

/// How an unmount treats open files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpenFiles {
    /// It fails.
    Refuse,
    /// They stay readable until closed; the path is free at once.
    Keep,
}

/// Why a mount could not be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Files are open, or a process works in it.
    #[error("cannot unmount `{}`: files on it are open, or a process works in it", at.display())]
    Busy {
        /// The mount point.
        at: PathBuf,
    },
    /// Another mount is on one of its directories.
    #[error("cannot unmount `{}`: `{}` is mounted below it", at.display(), below.path.display())]
    Below {
        /// The mount point.
        at: PathBuf,
        /// The other mount.
        below: Box<MountPoint>,
    },
    /// fusermount3 is needed and missing.
    #[error("cannot run fusermount3 to unmount `{}`", at.display())]
    NoHelper {
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot unmount `{}`: {said}", at.display())]
    Refused {
        /// The mount point.
        at: PathBuf,
        /// The error message.
        said: String,
    },
}

impl MountPlace {
    /// A mount at `at`, with the kernel's numbers of its file system (`MAJOR:MINOR`) and of the mount, and the
    /// generation of its nodes.
    pub fn new(at: PathBuf, device: Option<String>, id: Option<u64>, generation: u32) -> Self {
        Self { at, device, id, generation, connection: None }
    }

    /// The same, for a mount that this process serves over `connection`.
    pub(super) fn served_over(self, connection: &Arc<Device>) -> Self {
        Self { connection: Some(Arc::downgrade(connection)), ..self }
    }

    /// The kernel's number of the mount.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// An existing mount.
    pub fn of(mount: &MountPoint) -> Self {
        // Not used for a take-over.
        Self::new(mount.path.clone(), Some(mount.device.clone()), Some(mount.id), 0)
    }

    /// The generation of its node numbers.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Its mount point when it was mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The kernel's number of the file system.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Whether it is still mounted, anywhere.
    pub fn is_mounted(&self) -> bool {
        self.find().is_some()
    }

    /// The mount, wherever it has been moved to.
    ///
    /// The kernel reuses the numbers of a mount that is gone. While its connection is alive they are its own; a process
    /// without the connection also compares the path.
    fn find(&self) -> Option<MountPoint> {
        let device = self.device.as_ref()?;
        let all = mounts::all().into_iter().rev().filter(|mount| mount.device == *device);
        let own = |mount: &MountPoint| self.id.is_none_or(|id| mount.id == id);
        match &self.connection {
            None => { all }.find(|mount| mount.path == self.at && own(mount)),
            Some(connection) => {
                connection.upgrade().filter(|connection| connection.is_alive())?;
                { all }.find(own)
            }
        }
    }

    /// Unmounts it if it still exists; leaves another mount on the same path alone.
    ///
    /// # Errors
    /// [`UnmountError`]
    pub fn unmount(&self, open_files: OpenFiles) -> Result<(), UnmountError> {
        let Some(own) = self.find() else { return Ok(()) };
        match mounts::at(&own.path) {
            Some(uppermost) if uppermost.id == own.id || uppermost.covers(&own) => unmount_with_cover(&own, open_files),
            _ => Ok(()),
        }
    }

    /// Unmounts it; a busy mount stays readable to processes that have files open.
    ///
    /// # Errors
    /// [`UnmountError`]
    pub fn take_away(&self) -> Result<(), UnmountError> {
        self.unmount(OpenFiles::Refuse).or_else(|_| self.unmount(OpenFiles::Keep))
    }

    /// Aborts the connection to the kernel, and unmounts: pending requests fail, even those of uninterruptible
    /// processes, and so does every later one.
    ///
    /// The kernel reuses the number of a file system that is gone. The caller must know that this one still exists: it
    /// is mounted, or its connection is alive.
    ///
    /// # Errors
    /// If this process may not do that.
    pub fn abort(&self) -> io::Result<()> {
        let aborted = match self.device.as_deref().and_then(|device| device.split_once(':')) {
            Some((_, number)) => abort(number),
            None => Err(io::Error::other("the number of its connection is unknown")),
        };
        let forced = self.find().map(|mount| {
            if mounts::cover_of(&mount).is_some()
                && let Err(error) = unmount(&mount.path, OpenFiles::Keep)
            {
                return Err(io::Error::other(error));
            }
            let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE;
            rustix::mount::unmount(&mount.path, flags).map_err(io::Error::from)
        });
        match (aborted, forced) {
            (Ok(()), Some(Err(_))) => self.unmount(OpenFiles::Keep).map_err(io::Error::other),
            (Ok(()), _) | (Err(_), Some(Ok(()))) => Ok(()),
            (Err(error), _) => Err(error),
        }
    }
}

/// Aborts the connection of the file system with this minor number, with its file in the kernel's control file system:
/// where that is mounted, or, as root, without a mount.
fn abort(number: &str) -> io::Result<()> {
    let file = Path::new(number).join("abort");
    let write = |connections: rustix::fd::BorrowedFd<'_>, file: &Path| -> Result<(), Errno> {
        let abort = rustix::fs::openat(connections, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&abort, b"1").map(drop)
    };
    match write(CWD, &Path::new("/sys/fs/fuse/connections").join(&file)) {
        // Not mounted there, or the connection is gone.
        Err(Errno::NOENT) => {}
        written => return Ok(written?),
    }
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let mounted = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    match write(rustix::fd::AsFd::as_fd(&mounted), &file) {
        Err(Errno::NOENT) => Ok(()), // gone
        written => Ok(written?),
    }
}

/// Unmounts a mount, and before it the overlay that peelfs has mounted over it. The two must be the uppermost ones.
///
/// # Errors
/// [`UnmountError`]
pub fn unmount_with_cover(mount: &MountPoint, open_files: OpenFiles) -> Result<(), UnmountError> {
    if mounts::cover_of(mount).is_some()
        && let Err(error) = unmount(&mount.path, open_files)
        && mounts::cover_of(mount).is_some()
    {
        return Err(error);
    }
    let is_left = || mounts::at(&mount.path).is_some_and(|at| at.id == mount.id && at.device == mount.device);
    match unmount(&mount.path, open_files) {
        // An overlay that was mounted meanwhile has been unmounted instead.
        Ok(()) if is_left() => unmount(&mount.path, open_files),
        // Its process ended at the same time, and has unmounted it.
        Err(_) if !is_left() => Ok(()),
        taken => taken,
    }
}

/// Unmounts the uppermost mount on `at`: with the system call if that is permitted, else with fusermount3.
///
/// # Errors
/// [`UnmountError`]
pub fn unmount(at: &Path, open_files: OpenFiles) -> Result<(), UnmountError> {
    let flags = match open_files {
        OpenFiles::Refuse => UnmountFlags::NOFOLLOW,
        OpenFiles::Keep => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(at, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_helper(at, open_files),
        Err(Errno::BUSY) => Err(busy(at)),
        Err(errno) => Err(UnmountError::Refused { at: at.to_owned(), said: io::Error::from(errno).to_string() }),
    }
}

fn unmount_by_helper(at: &Path, open_files: OpenFiles) -> Result<(), UnmountError> {
    let child = attach::helper(|command| {
        let lazily = (open_files == OpenFiles::Keep).then_some("-z");
        command.arg("-u").args(lazily).arg("--").arg(at).stdin(Stdio::null()).stdout(Stdio::null());
    });
    let said = child.and_then(attach::said);
    match said.map_err(|cause| UnmountError::NoHelper { at: at.to_owned(), cause })? {
        None => Ok(()),
        Some(said) => {
            let said = said.to_string();
            if said.contains("busy") { Err(busy(at)) } else { Err(UnmountError::Refused { at: at.to_owned(), said }) }
        }
    }
}

/// What keeps a mount busy, according to the table of mounts.
fn busy(at: &Path) -> UnmountError {
    let all = mounts::all();
    let own = all.iter().rev().find(|mount| mount.path == at);
    let below = own.and_then(|own| all.iter().rev().find(|mount| mount.parent == own.id));
    match below.cloned() {
        Some(below) => UnmountError::Below { at: at.to_owned(), below: Box::new(below) },
        None => UnmountError::Busy { at: at.to_owned() },
    }
}
