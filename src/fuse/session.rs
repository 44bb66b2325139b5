//! Mounting and unmounting.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::pin::Pins;
use super::{Adapter, mounts};
use crate::image::ImageFs;

/// How an image is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// What `mount` and `df` show as the source; the reference.
    pub source: String,
    /// Other users may enter.
    pub allow_other: bool,
    /// Set-user-id programs of the image work.
    pub suid: bool,
    /// Device nodes of the image work.
    pub dev: bool,
    /// Programs of the image do not run.
    pub noexec: bool,
}

/// Why a directory could not become a mount point.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on `{}`", at.display())]
    Refused {
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// A mounted image, being served. Dropping it unmounts.
pub struct Mounted {
    session: BackgroundSession,
    place: MountPlace,
}

/// Where an image is mounted: the path, and the kernel's number for this very mount.
#[derive(Clone, Debug)]
pub struct MountPlace {
    at: PathBuf,
    device: Option<String>,
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

/// Mounts `fs` on the directory `at`. Must be called within a tokio runtime, which serves what waits.
///
/// # Errors
/// [`MountError::Refused`]
pub fn mount(fs: Arc<ImageFs>, at: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let refused = |cause| MountError::Refused { at: at.to_owned(), cause };
    let pins = Pins::new();
    let mut config = Config::default();
    config.n_threads = Some(pins.threads());
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.mount_options = vec![
        MountOption::FSName(escape(&options.source)),
        // As an option it reaches the kernel on both ways; fuser keeps its own `Subtype` from mount(2).
        MountOption::CUSTOM("subtype=peelfs".into()),
        MountOption::RO,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    for (wanted, option) in
        [(options.suid, MountOption::Suid), (options.dev, MountOption::Dev), (options.noexec, MountOption::NoExec)]
    {
        if wanted {
            config.mount_options.push(option);
        }
    }
    let adapter = Adapter { fs, tasks: tokio::runtime::Handle::current(), pins, no_xattrs: AtomicBool::new(false) };
    let session = Session::new(adapter, at, &config).map_err(refused)?;
    let device = mounts::at(at).map(|mount| mount.device);
    if let Some(device) = &device {
        raise_read_ahead(device);
    }
    let session = session.spawn().map_err(refused)?;
    Ok(Mounted { session, place: MountPlace { at: at.to_owned(), device } })
}

impl Mounted {
    /// Where it is mounted.
    pub fn place(&self) -> MountPlace {
        self.place.clone()
    }

    /// Serves, blocking this thread, until the image is unmounted and its last file is closed.
    ///
    /// # Errors
    /// What ended the session, if not an unmount.
    pub fn wait(self) -> io::Result<()> {
        self.session.join()
    }
}

impl MountPlace {
    /// Takes the mount away, if it still is there; somebody else's on the same path is left alone.
    ///
    /// # Errors
    /// [`UnmountError`]
    pub fn unmount(&self, open_files: OpenFiles) -> Result<(), UnmountError> {
        match mounts::at(&self.at) {
            Some(mount) if Some(&mount.device) == self.device.as_ref() => unmount(&self.at, open_files),
            _ => Ok(()),
        }
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
        Err(Errno::BUSY) => Err(UnmountError::Busy { at: at.to_owned() }),
        Err(errno) => Err(UnmountError::Refused { at: at.to_owned(), said: io::Error::from(errno).to_string() }),
    }
}

fn unmount_by_helper(at: &Path, open_files: OpenFiles) -> Result<(), UnmountError> {
    let helper = std::env::var_os("FUSERMOUNT_PATH").unwrap_or_else(|| "fusermount3".into());
    let lazily = (open_files == OpenFiles::Keep).then_some("-z");
    let output = Command::new(helper).arg("-u").args(lazily).arg("--").arg(at).output();
    let output = output.map_err(|cause| UnmountError::NoHelper { at: at.to_owned(), cause })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Err(UnmountError::Busy { at: at.to_owned() });
    }
    Err(UnmountError::Refused { at: at.to_owned(), said })
}

/// A comma would end the option, and fusermount3 has no way to write one. The kernel wants some name.
fn escape(source: &str) -> String {
    match source {
        "" => "peelfs".to_owned(),
        _ => source.replace([',', '\\', '\n'], "_"),
    }
}

/// The kernel offers FUSE 128 KiB of read-ahead, too little to keep a link full; root may raise it.
fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB) {
        tracing::debug!(path, %error, "cannot raise the kernel's read-ahead");
    }
}

const READ_AHEAD_KIB: &str = "1024";
