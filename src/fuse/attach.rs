//! Attaching: mounts a connection to the kernel on a directory that is held by descriptor.
//!
//! Between checking a mount point and mounting the image, a registry is asked, for up to a minute. A path would be
//! resolved again at the end, and the owner of a parent directory could have put a symlink in its place. So the
//! directory is opened once, and that directory is mounted on, wherever its path leads by then.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

use super::fs_context::by_descriptor;
use super::mounts::{self, MountPoint};
use super::session::{MountError, MountOptions};

/// A directory to mount on, held by descriptor.
#[derive(Debug)]
pub struct Target {
    directory: OwnedFd,
    path: PathBuf,
}

impl Target {
    /// The directory that `at` leads to now. Does not trigger an automounter.
    ///
    /// # Errors
    /// [`MountError::NoDirectory`]
    pub fn open(at: &Path) -> Result<Self, MountError> {
        Self::try_open(at).map_err(|cause| MountError::NoDirectory { at: at.to_owned(), cause })
    }

    fn try_open(at: &Path) -> io::Result<Self> {
        // `O_DIRECTORY` would trigger an automounter.
        let directory = rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let path = std::fs::read_link(by_descriptor(&directory))?;
        Ok(Self { directory, path })
    }

    /// Its path when it was opened, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path is still the same.
    pub fn is_in_place(&self) -> bool {
        // The kernel appends `(deleted)` to the path of a removed directory; another directory may have that name.
        let is_linked = rustix::fs::fstat(&self.directory).is_ok_and(|found| found.st_nlink > 0);
        is_linked && std::fs::read_link(by_descriptor(&self.directory)).is_ok_and(|path| path == self.path)
    }

    /// The parent directory, which can be opened without triggering an automounter on this one.
    pub(super) fn parent(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, "..", flags, Mode::empty())?.into())
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// A connection to the kernel, and its mount.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) connection: OwnedFd,
    /// `None` if it cannot be found: the helper has mounted elsewhere, or it is unmounted already.
    pub(super) mount: Option<MountPoint>,
}

/// Mounts on `target`: with the system call if that is permitted, else with fusermount3.
///
/// # Errors
/// The error of the kernel or of fusermount3.
pub(super) fn attach(target: &Target, options: &MountOptions) -> io::Result<Attached> {
    let before = mounts::all();
    let connection = match attach_by_system_call(target, options) {
        // The helper can open a device that only root may open.
        Err(Errno::PERM | Errno::ACCESS) => attach_by_helper(target, options)?,
        attached => attached?,
    };
    let now = std::fs::read_link(by_descriptor(&target.directory))?;
    // The kernel reuses the number of a mount that went meanwhile, elsewhere.
    let was_there = |mount: &MountPoint| before.iter().any(|old| old.id == mount.id && old.path == now);
    let new = |mount: &MountPoint| mount.is_peelfs() && mount.path == now && !was_there(mount);
    Ok(Attached { connection, mount: mounts::all().into_iter().rev().find(new) })
}

fn attach_by_system_call(target: &Target, options: &MountOptions) -> Result<OwnedFd, Errno> {
    let connection = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut flags = MountFlags::RDONLY | MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, options.noexec);
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},default_permissions,subtype=peelfs",
        connection.as_raw_fd()
    );
    if options.lets_others_in() {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let source = source(&options.source);
    rustix::mount::mount(source, by_descriptor(&target.directory), "fuse", flags, data.as_c_str())?;
    Ok(connection)
}

/// fusermount3 takes a path. It runs in the directory and mounts on `.`, so the kernel resolves the path at that
/// moment; and it mounts only where its user may write.
fn attach_by_helper(target: &Target, options: &MountOptions) -> io::Result<OwnedFd> {
    let mut words = vec![
        format!("fsname={}", source(&options.source).replace([',', '\\', '\n'], "_")),
        "subtype=peelfs".to_owned(),
        "ro,noatime,default_permissions".to_owned(),
    ];
    for (wanted, word) in [
        (options.suid, "suid"),
        (options.dev, "dev"),
        (options.noexec, "noexec"),
        (options.lets_others_in(), "allow_other"),
    ] {
        if wanted {
            words.push(word.to_owned());
        }
    }
    let (own, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let child = helper(|command| {
        command.args(["-o", &words.join(","), "--", "."]).current_dir(by_descriptor(&target.directory));
        // It sends the connection to its stdin.
        let stdin = other.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
        command.env("_FUSE_COMMFD", "0").stdin(stdin).stdout(Stdio::null());
    })?;
    // So that the end of the helper is noticed at the other end.
    drop(other);
    let connection = receive(&own);
    let said = said(child)?;
    match connection {
        Ok(Some(connection)) if said.is_none() => Ok(connection),
        Err(error) if said.is_none() => Err(error),
        _ => Err(said.unwrap_or_else(|| io::Error::other("fusermount3 sent no connection"))),
    }
}

/// The connection, if the helper sends one.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let parts = &mut [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut connections) => connections.next(),
        _ => None,
    }))
}

/// Starts fusermount3, or fusermount if that is missing.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if both are missing.
pub(super) fn helper(prepare: impl Fn(&mut Command)) -> io::Result<Child> {
    for program in helpers() {
        let mut command = Command::new(program);
        command.stderr(Stdio::piped());
        prepare(&mut command);
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            spawned => return spawned,
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "fusermount3 is not installed"))
}

/// The helper that mounts and unmounts for users other than root, if it is installed.
pub fn installed_helper() -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: OsString| {
        let program = PathBuf::from(program);
        let places = match program.components().count() {
            1 => std::env::split_paths(&search).map(|directory| directory.join(&program)).collect(),
            _ => vec![program],
        };
        places.into_iter().find(|place| place.is_file())
    };
    helpers().into_iter().find_map(found)
}

/// The programs that may be the helper, preferred first.
fn helpers() -> Vec<OsString> {
    let usual = ["fusermount3", "/bin/fusermount3", "/usr/local/bin/fusermount3", "fusermount", "/bin/fusermount"];
    std::env::var_os("FUSERMOUNT_PATH").map_or_else(|| usual.map(Into::into).to_vec(), |named| vec![named])
}

/// Waits for the helper; returns its output as one line if it failed.
///
/// # Errors
/// If it cannot be waited for.
pub(super) fn said(mut child: Child) -> io::Result<Option<io::Error>> {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(SAID_AT_MOST).read_to_end(&mut text)?;
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = if lines.is_empty() { format!("fusermount3 failed ({status})") } else { lines.join("; ") };
    let refused = ["user_allow_other", "Permission denied", "no write access", "not owned by user"];
    let is_refused = refused.iter().any(|words| text.contains(words));
    let kind = if is_refused { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
    Ok(Some(io::Error::new(kind, text)))
}

/// The kernel needs a non-empty name that fits a page.
fn source(source: &str) -> String {
    if source.is_empty() { "peelfs".to_owned() } else { source.replace('\0', "_") }
}

const DEVICE: &str = "/dev/fuse";
const SAID_AT_MOST: u64 = 16 << 10;
