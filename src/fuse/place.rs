//! Where an image is mounted, and how that ends.

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

/// Where an image is mounted: the path, and the kernel's numbers for this very mount.
#[derive(Clone, Debug)]
pub struct MountPlace {
    at: PathBuf,
    /// Of its file system; a later one may have the same.
    device: Option<String>,
    /// Of the mount, wherever it is moved to. None of one that an older program has made.
    id: Option<u64>,
    /// What the kernel knows its nodes by, besides their numbers.
    generation: u32,
    /// Its connection, in the process that serves it.
    connection: Option<Weak<Device>>,
}

/// What an unmount does with open files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpenFiles {
    /// They make it fail.
    Refuse,
    /// They stay readable until they are closed; the path is free at once.
    Keep,
}

/// Why a mount could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Files are open, or a process works in it.
    #[error("cannot unmount `{}`: files on it are open, or a process works in it", at.display())]
    Busy {
        /// The mount point.
        at: PathBuf,
    },
    /// Something else is mounted on a directory of it.
    #[error("cannot unmount `{}`: `{}` is mounted below it", at.display(), below.path.display())]
    Below {
        /// The mount point.
        at: PathBuf,
        /// What is mounted there.
        below: Box<MountPoint>,
    },
    /// fusermount3 is needed and is not there.
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
        /// What was said.
        said: String,
    },
}

impl MountPlace {
    /// A mount at `at`, by the kernel's numbers for its file system (`MAJOR:MINOR`) and for the mount, and by the
    /// generation of its nodes.
    pub fn new(at: PathBuf, device: Option<String>, id: Option<u64>, generation: u32) -> Self {
        Self { at, device, id, generation, connection: None }
    }

    /// The same, of a mount that this process serves over `connection`.
    pub(super) fn served_over(self, connection: &Arc<Device>) -> Self {
        Self { connection: Some(Arc::downgrade(connection)), ..self }
    }

    /// The kernel's number for the mount.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// A mount that is there.
    pub fn of(mount: &MountPoint) -> Self {
        // No process takes it over by this.
        Self::new(mount.path.clone(), Some(mount.device.clone()), Some(mount.id), 0)
    }

    /// What the kernel knows its nodes by, besides their numbers.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Where it was mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The kernel's number for the file system.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Whether it is still mounted, wherever.
    pub fn is_mounted(&self) -> bool {
        self.find().is_some()
    }

    /// The mount, wherever it has been moved to.
    ///
    /// The kernel gives the numbers of a mount that is gone to the next one that is made, by any process. While its
    /// connection is alive they are its own; a process that does not have the connection goes by the path as well.
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

    /// Takes the mount away, if it still is there; another one on the same path is left alone.
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

    /// Takes the mount away; one that is busy stays readable to processes that have files open.
    ///
    /// # Errors
    /// [`UnmountError`]
    pub fn take_away(&self) -> Result<(), UnmountError> {
        self.unmount(OpenFiles::Refuse).or_else(|_| self.unmount(OpenFiles::Keep))
    }

    /// Ends the connection to the kernel, and then the mount: requests that wait for an answer fail, those of processes
    /// that cannot be interrupted too, and so does everything that is asked from then on.
    ///
    /// The kernel's number of a file system that is gone goes to another one. The caller must know that this one is
    /// there: it is mounted, or its connection is alive.
    ///
    /// # Errors
    /// When this process may not do that.
    pub fn abort(&self) -> io::Result<()> {
        let aborted = match self.device.as_deref().and_then(|device| device.split_once(':')) {
            Some((_, number)) => abort(number),
            None => Err(io::Error::other("the number of its connection is not known")),
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

/// Ends the connection of the file system with this minor number, by the file that the kernel has for it: where the
/// system has mounted those, or, for root, where they are not mounted.
fn abort(number: &str) -> io::Result<()> {
    let file = Path::new(number).join("abort");
    let write = |connections: rustix::fd::BorrowedFd<'_>, file: &Path| -> Result<(), Errno> {
        let abort = rustix::fs::openat(connections, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&abort, b"1").map(drop)
    };
    match write(CWD, &Path::new("/sys/fs/fuse/connections").join(&file)) {
        // Not mounted there, or there is no such connection any more.
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

/// Takes a mount away, and before it the overlay that peelfs has laid over it. The two must be the uppermost ones there.
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
        // An overlay that was laid over it meanwhile was what has been taken away.
        Ok(()) if is_left() => unmount(&mount.path, open_files),
        // Its process ended at the same time, and has taken it away.
        Err(_) if !is_left() => Ok(()),
        taken => taken,
    }
}

/// Takes the uppermost mount on `at` away: by the system call if that is allowed, else by fusermount3.
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

/// What keeps a mount busy, as far as the table of mounts tells.
fn busy(at: &Path) -> UnmountError {
    let all = mounts::all();
    let own = all.iter().rev().find(|mount| mount.path == at);
    let below = own.and_then(|own| all.iter().rev().find(|mount| mount.parent == own.id));
    match below.cloned() {
        Some(below) => UnmountError::Below { at: at.to_owned(), below: Box::new(below) },
        None => UnmountError::Busy { at: at.to_owned() },
    }
}
