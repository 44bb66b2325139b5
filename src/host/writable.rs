//! An overlay on a mount: it makes an image writable as a root file system, or adds directories that the image lacks.
//!
//! The kernel's overlayfs is mounted on the same directory as the image, which is its lower layer. Both are one mount
//! to the user: they are made, listed and unmounted together; [`mounts::cover_of`] finds the pair.
//!
//! While the kernel mounts an overlay it reads the lower layer, so the serving process must not do it.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};

use super::channel::{AsyncChannel, Channel, ChannelError};
use super::error::HostError;
use super::handover::Handover;
use super::report::Report;
use super::spec::{KernelOptions, MountSpec, Writable};
use super::wire;
use super::wire::v1::{Request, Word};
use super::{background, process, requests};
use crate::digest::Digest;
use crate::fuse::fs_context::{self, by_descriptor};
use crate::fuse::mounts::{self, MountPoint};

/// An overlay for an image.
#[derive(Clone, Debug)]
pub struct Overlay<'a> {
    /// Where changes go; read-only if `None`.
    pub upper: Option<&'a Writable>,
    /// A directory with what the image may lack; the image takes precedence.
    pub below: Option<&'a Path>,
    /// The kernel options of the image, which hold for the overlay as well.
    pub kernel: KernelOptions,
    /// The image, as shown in tables of mounts.
    pub source: &'a str,
}

/// Why there is no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A directory that it needs cannot be made or opened.
    #[error("cannot use `{}`", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Another overlay uses the directory.
    #[error("`{}` is in use by another mount or container", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The mount itself would hide it.
    #[error("`{}` is the mount point `{}`, or below it", path.display(), at.display())]
    Covered {
        /// The directory.
        path: PathBuf,
        /// The mount point.
        at: PathBuf,
    },
    /// The changes belong to another image.
    #[error("the changes in `{}` belong to another image, {manifest}", path.display())]
    OtherImage {
        /// The directory.
        path: PathBuf,
        /// The manifest of that image.
        manifest: String,
    },
    /// This user may not mount one.
    #[error("only root can mount an overlay")]
    NotAllowed,
    /// The kernel refused.
    #[error("cannot mount an overlay on `{}`{said}", at.display())]
    Refused {
        /// The mount point.
        at: PathBuf,
        /// The kernel's message.
        said: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// A directory that keeps changes; locked while it is in use.
///
/// What was made of it is removed again when this is dropped, unless [`UpperLock::keep`] was called: a refused command
/// leaves nothing behind, and no claim of its image to the directory. Changes, and what was there before, always stay.
#[derive(Debug)]
pub struct UpperLock {
    directory: PathBuf,
    lock: Option<File>,
    /// Directories on the way that were missing, outermost first.
    made: Vec<PathBuf>,
    /// The names in the directory that were missing.
    missing: Vec<&'static str>,
    /// The overlay was mounted: there may be changes.
    used: bool,
    kept: bool,
}

impl UpperLock {
    /// Keeps the directory: what it is for has been done.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Notes that the overlay is mounted: changes may be written from now on.
    pub fn used(&mut self) {
        self.used = true;
    }

    /// Locks `directory` for changes to the image with this manifest; creates it if it is missing.
    fn take(directory: &Path, manifest: &str) -> Result<Self, OverlayError> {
        let (directory, made, missing) = (directory.to_owned(), Vec::new(), Vec::new());
        let mut own = Self { directory, lock: None, made, missing, used: false, kept: false };
        let directory = &own.directory.clone();
        own.make_directory()?;
        let lock = File::open(directory).map_err(unusable(directory))?;
        let in_use = || OverlayError::InUse { path: directory.to_owned() };
        match lock.try_lock() {
            Ok(()) => own.lock = Some(lock),
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(cause)) => return Err(unusable(directory)(cause)),
        }
        if is_in_use(directory).map_err(unusable(directory))? {
            return Err(in_use());
        }
        let is_missing = |name: &&str| std::fs::symlink_metadata(directory.join(name)).is_err();
        own.missing = [DIFF, WORK, IMAGE].into_iter().filter(is_missing).collect();
        // A process that was killed before it had mounted the overlay has left its claim, and no changes.
        if [DIFF, WORK].iter().all(is_missing) {
            let _ = std::fs::remove_file(directory.join(IMAGE));
            own.missing = vec![DIFF, WORK, IMAGE];
        }
        own.claim(manifest)?;
        Ok(own)
    }

    fn make_directory(&mut self) -> Result<(), OverlayError> {
        let missing: Vec<&Path> = self.directory.ancestors().take_while(|above| !above.exists()).collect();
        for path in missing.into_iter().rev().filter(|path| !path.as_os_str().is_empty()) {
            match std::fs::create_dir(path) {
                Ok(()) => self.made.push(path.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(unusable(&self.directory)(cause)),
            }
        }
        Ok(())
    }

    /// Notes the image that the changes belong to, or compares it.
    fn claim(&self, manifest: &str) -> Result<(), OverlayError> {
        let image = self.directory.join(IMAGE);
        match std::fs::read_to_string(&image) {
            Ok(before) if before.trim() == manifest => Ok(()),
            // A machine that lost power has left it empty.
            Ok(before) if !before.trim().is_empty() => {
                let manifest = before.trim().chars().filter(|char| !char.is_control()).take(MANIFEST_SHOWN).collect();
                Err(OverlayError::OtherImage { path: self.directory.clone(), manifest })
            }
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(unusable(&image)(cause)),
            Ok(_) | Err(_) => std::fs::write(&image, format!("{manifest}\n")).map_err(unusable(&image)),
        }
    }
}

impl Drop for UpperLock {
    fn drop(&mut self) {
        // Without the lock, another process may be using it.
        if self.kept || self.lock.is_none() || is_in_use(&self.directory).unwrap_or(true) {
            return;
        }
        let was_missing = |name| self.missing.contains(&name);
        // Only if it is empty: it may hold changes by now, which need the rest.
        if was_missing(DIFF) {
            let _ = std::fs::remove_dir(self.directory.join(DIFF));
        }
        if !self.used || !self.directory.join(DIFF).exists() {
            if was_missing(WORK) {
                // The kernel has made directories in it.
                let _ = std::fs::remove_dir_all(self.directory.join(WORK));
            }
            if was_missing(IMAGE) {
                let _ = std::fs::remove_file(self.directory.join(IMAGE));
            }
        }
        for made in self.made.iter().rev() {
            let _ = std::fs::remove_dir(made);
        }
    }
}

/// Whether an overlay keeps its changes in `directory`.
fn is_in_use(directory: &Path) -> io::Result<bool> {
    let canonical = directory.canonicalize()?;
    Ok(mounts::all().iter().any(|mount| mount.upper().is_some_and(|upper| upper.starts_with(&canonical))))
}

/// Whether `directory` holds the changes of an image.
pub fn is_kept(directory: &Path) -> bool {
    directory.join(IMAGE).is_file() && directory.join(DIFF).is_dir()
}

/// Locks the directory for changes to the image with this manifest on `at`, if changes are kept.
///
/// # Errors
/// [`OverlayError`]
pub fn take(writable: Option<&Writable>, at: &Path, manifest: &Digest) -> Result<Option<UpperLock>, OverlayError> {
    match writable {
        Some(Writable::Directory(directory)) => {
            not_below(directory, at)?;
            UpperLock::take(directory, &manifest.to_string()).map(Some)
        }
        Some(Writable::Memory) | None => Ok(None),
    }
}

/// The directory, which may be missing, must be outside the mount point: the mount hides what is below.
fn not_below(directory: &Path, at: &Path) -> Result<(), OverlayError> {
    let existing = directory.ancestors().find_map(|above| above.canonicalize().ok());
    match (existing, at.canonicalize()) {
        (Some(existing), Ok(place)) if existing.starts_with(&place) => {
            Err(OverlayError::Covered { path: directory.to_owned(), at: at.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Mounts the overlay over a mount of this process, with a child process; if there is to be one and it is not there
/// yet.
pub(super) async fn cover_by_another(handover: &Handover) -> Result<(), HostError> {
    let own = |mount: &MountPoint| mount.path == handover.place.at() && handover.place.id() == Some(mount.id);
    let covered = || mounts::all().iter().find(|mount| own(mount)).is_some_and(|own| mounts::cover_of(own).is_some());
    if handover.spec.writable.is_none() || covered() {
        return Ok(());
    }
    let spec = MountSpec { at: handover.place.at().to_owned(), ..handover.spec.clone() };
    let failed = HostError::system("mount an overlay");
    let (own, other) = Channel::pair().map_err(&failed)?;
    let program = std::env::current_exe().map_err(&failed)?;
    let mut command = tokio::process::Command::new(program);
    command.args(COVER).args(background::has_log().then_some(background::QUIET));
    command.stdin(Stdio::from(other)).kill_on_drop(true);
    let mut child = command.spawn().map_err(&failed)?;
    // The child holds the other end.
    drop(command);
    let channel = AsyncChannel::new(own).map_err(&failed)?;
    let told = async {
        channel.offer(READY_WITHIN).await?;
        channel.deliver(&Request::Mount(Box::new((&spec).into())), None).await?;
        Ok::<_, ChannelError>(channel.receive().await?)
    };
    let told = told.await.map_err(|cause| HostError::Channel { peer: "process that mounts an overlay", cause })?;
    let word = told.map(|(text, _)| wire::parse::<Word>(&text));
    // It has sent its last message.
    let status = child.wait().await;
    match word {
        Some(Ok(Word::Ready)) => Ok(()),
        Some(Ok(Word::Failed(failure))) => Err(HostError::Reported(failure.into())),
        _ => Err(HostError::BackgroundEnded { status: status.map_err(failed)?.to_string() }),
    }
}

/// Runs this process as the child that [`cover_by_another`] starts.
///
/// # Errors
/// [`HostError`]
pub fn run() -> Result<(), HostError> {
    let (spec, channel) = requests::receive_mount("serving process")?;
    let source = spec.image.reference.to_string();
    let overlay = Overlay { upper: spec.writable.as_ref(), below: None, kernel: spec.kernel, source: &source };
    let word = match cover(&spec.at, &overlay) {
        Ok(()) => Word::Ready,
        Err(error) => Word::Failed((&Report::from(error)).into()),
    };
    channel.send(&word, None).map_err(|cause| HostError::Channel { peer: "serving process", cause })
}

/// Mounts an overlay over the image that is mounted on `at`. The caller must not serve that image.
///
/// # Errors
/// [`OverlayError`]; `at` is unchanged then.
pub fn cover(at: &Path, overlay: &Overlay<'_>) -> Result<(), OverlayError> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
    // Before anything is made for it: this fails for a user who may not mount one.
    let context = context.map_err(|errno| refused(at, String::new(), errno))?;
    let image = rustix::fs::open(at, DIRECTORY, Mode::empty()).map_err(unusable(at))?;
    // The kernel copies the cached mode of the root, and has none for a mount that was not accessed yet.
    rustix::fs::fstat(&image).map_err(unusable(at))?;
    let below = overlay.below.map(|below| rustix::fs::open(below, DIRECTORY, Mode::empty()).map_err(unusable(below)));
    let below = below.transpose()?;
    // Needed only while the overlay is being made, which then holds it.
    let mut memory = None;
    let upper = match overlay.upper {
        None => None,
        Some(Writable::Memory) => {
            let tmpfs = Tmpfs::mount(&image).map_err(|cause| refused(at, String::new(), cause))?;
            let root = tmpfs.path();
            memory = Some(tmpfs);
            Some(root)
        }
        Some(Writable::Directory(directory)) => Some(directory.canonicalize().map_err(unusable(directory))?),
    };
    if let Some(upper) = &upper {
        make_upper(upper, image.as_fd())?;
    }
    let made = make(&context, overlay, &image, below.as_ref(), upper.as_deref())
        .map_err(|errno| refused(at, said(&context), errno))?;
    drop(memory);
    fs_context::move_onto(made, &image).map_err(|errno| refused(at, String::new(), errno))
}

/// Wraps the error of a directory or file.
fn unusable<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> OverlayError {
    let path = path.to_owned();
    move |cause| OverlayError::Directory { path, cause: cause.into() }
}

fn refused(at: &Path, said: String, errno: Errno) -> OverlayError {
    match errno {
        Errno::PERM => OverlayError::NotAllowed,
        errno => OverlayError::Refused { at: at.to_owned(), said, cause: errno.into() },
    }
}

/// The upper directory, with the metadata of the image's root, and the work directory.
fn make_upper(upper: &Path, image: BorrowedFd<'_>) -> Result<(), OverlayError> {
    let (diff, work) = (upper.join(DIFF), upper.join(WORK));
    match std::fs::DirBuilder::new().mode(0o700).create(&work) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(&work)(error)),
        _ => {}
    }
    match std::fs::DirBuilder::new().mode(0o755).create(&diff) {
        Ok(()) => like_root(&diff, image).map_err(unusable(&diff)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(unusable(&diff)(error)),
    }
}

/// The root of an overlay has the metadata of its upper directory.
fn like_root(diff: &Path, image: BorrowedFd<'_>) -> Result<(), Errno> {
    let root = rustix::fs::openat(image, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&root)?;
    let diff = rustix::fs::open(diff, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let owner = (rustix::fs::Uid::from_raw(found.st_uid), rustix::fs::Gid::from_raw(found.st_gid));
    match rustix::fs::fchown(&diff, Some(owner.0), Some(owner.1)) {
        // An owner that the user namespace does not have.
        Ok(()) | Err(Errno::INVAL | Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::fchmod(&diff, Mode::from_raw_mode(found.st_mode & 0o7777))?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: found.st_mtime, tv_nsec: found.st_mtime_nsec as _ },
    };
    rustix::fs::futimens(&diff, &times)
}

/// Makes an overlay that is not mounted yet.
fn make(
    context: &OwnedFd,
    overlay: &Overlay<'_>,
    image: &OwnedFd,
    below: Option<&OwnedFd>,
    upper: Option<&Path>,
) -> Result<OwnedFd, Errno> {
    rustix::mount::fsconfig_set_string(context, "source", format!("{}{}", mounts::COVER, overlay.source))?;
    // By descriptor, since each kernel escapes colons in paths differently.
    let lower: Vec<String> = std::iter::once(image).chain(below).map(by_descriptor).collect();
    let lower = match (lower.len(), upper) {
        // Without an upper directory two lower ones are required; the image then lies on an empty one.
        (1, None) => return Err(Errno::INVAL),
        _ => lower.join(":"),
    };
    rustix::mount::fsconfig_set_string(context, "lowerdir", lower)?;
    if let Some(upper) = upper {
        rustix::mount::fsconfig_set_string(context, "upperdir", escaped(&upper.join(DIFF)))?;
        rustix::mount::fsconfig_set_string(context, "workdir", escaped(&upper.join(WORK)))?;
    }
    // Only the machine's root may set the `trusted.` attributes that control an overlay.
    if process::is_in_user_namespace() {
        rustix::mount::fsconfig_set_flag(context, "userxattr")?;
    }
    rustix::mount::fsconfig_create(context)?;
    let KernelOptions { suid, dev, noexec, .. } = overlay.kernel;
    let mut flags = fs_context::attributes(suid, dev, noexec);
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, upper.is_none());
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Escapes a path for overlayfs, in which a backslash never stands for itself.
fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    OsString::from_vec(bytes.flat_map(|byte| if *byte == b'\\' { vec![b'\\', b'\\'] } else { vec![*byte] }).collect())
}

/// The kernel's message about a refused mount, to append to a message.
fn said(context: &OwnedFd) -> String {
    let text = fs_context::said_by(context);
    if text.is_empty() { text } else { format!(" ({text})") }
}

/// A tmpfs, mounted over the image until it is dropped.
struct Tmpfs {
    root: OwnedFd,
}

impl Tmpfs {
    fn mount(image: &OwnedFd) -> Result<Self, Errno> {
        let root = fs_context::tmpfs(&[("source", "peelfs"), ("mode", "0700")])?;
        fs_context::move_onto(&root, image)?;
        Ok(Self { root })
    }

    fn path(&self) -> PathBuf {
        by_descriptor(&self.root).into()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(self.path(), UnmountFlags::DETACH) {
            tracing::error!(%errno, "a tmpfs stays mounted below an overlay");
        }
    }
}

const READY_WITHIN: Duration = Duration::from_secs(60);
/// The arguments of the child process that mounts an overlay.
const COVER: [&str; 2] = ["host", "cover"];
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// In a directory that keeps changes: the changes, the kernel's work directory, and the image's manifest.
const DIFF: &str = "diff";
const WORK: &str = "work";
const IMAGE: &str = "image";
const MANIFEST_SHOWN: usize = 100;
