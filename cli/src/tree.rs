//! Writes a tree from an untrusted image to this machine.
//!
//! Every name is resolved relative to an open directory, opened or created without following symlinks. So neither the
//! image (`a -> /etc`, then `a/passwd`) nor what was in the destination before can lead a write out of it. Anything but
//! a directory appears under its name by rename, complete or not at all, and replaces what was there; directories
//! merge.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// The destination, and the current directory in it.
pub(super) struct Target {
    /// The open directories from the top to the current one.
    dirs: Vec<OwnedFd>,
    /// The names of those below the top.
    names: Vec<Vec<u8>>,
    owners: Owners,
    skipped: Skipped,
    serial: u64,
}

/// The owner of the copies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Owners {
    /// As the image says.
    OfTheImage,
    /// The calling user.
    TheCaller,
}

/// The metadata of a copy.
pub(super) struct Entry {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What to create under a name.
pub(super) enum What {
    File(NewFile),
    Symlink(Vec<u8>),
    Fifo,
    CharDevice((u32, u32)),
    BlockDevice((u32, u32)),
}

/// A file being written, under a temporary name.
pub(super) struct NewFile {
    file: File,
    temp: Temp,
}

/// Counts of what could not be kept.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skipped {
    pub(super) xattrs: u64,
    pub(super) set_ids: u64,
}

/// Why something cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("cannot {doing}")]
    Io {
        doing: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot give it to {uid}:{gid}")]
    Owner {
        uid: u32,
        gid: u32,
        #[source]
        cause: io::Error,
    },
    #[error("a directory is in the way")]
    Directory,
    #[error("a device, FIFO or socket is in the way; remove it first")]
    Special,
    #[error("something that is not a directory is in the way")]
    NotADirectory,
    #[error("`{}` is not a name", .0.escape_ascii())]
    Name(Vec<u8>),
    #[error("this user cannot create devices")]
    NoDevice,
}

impl TargetError {
    fn io(doing: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Io { doing, cause: errno.into() }
    }
}

impl Target {
    /// Starts in a directory named by the user; follows symlinks in that name.
    pub(super) fn open(dir: &Path, owners: Owners) -> Result<Self, TargetError> {
        // One directory is open per level; if the limit stays low, very deep trees fail with an error.
        peelfs::host::process::raise_file_limit();
        let dir = rustix::fs::open(dir, DIR.difference(OFlags::NOFOLLOW), Mode::empty());
        let dir = dir.map_err(TargetError::io("open the directory"))?;
        Ok(Self { dirs: vec![dir], names: Vec::new(), owners, skipped: Skipped::default(), serial: 0 })
    }

    /// Enters a directory, creating it if it is missing.
    pub(super) fn enter(&mut self, name: &[u8]) -> Result<(), TargetError> {
        let path = checked(name)?;
        match rustix::fs::mkdirat(self.here(), path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(TargetError::io("make the directory")(errno)),
        }
        let dir = rustix::fs::openat(self.here(), path, DIR, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => TargetError::NotADirectory,
            errno => TargetError::io("open the directory")(errno),
        })?;
        self.dirs.push(dir);
        self.names.push(name.to_vec());
        Ok(())
    }

    /// Sets the directory's metadata, after its last change, and goes up.
    pub(super) fn leave(&mut self, entry: &Entry) -> Result<(), TargetError> {
        let dir = self.dirs.pop().expect("as many directories are left as were entered, and the uppermost");
        self.names.pop();
        self.set_metadata(MetadataTarget::Open(dir.as_fd()), entry, FileType::Directory)
    }

    /// Creates a file of `size` bytes, all a hole.
    pub(super) fn new_file(&mut self, name: &[u8], size: u64) -> Result<NewFile, TargetError> {
        checked(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, temp) = self.make(|dir, temp| rustix::fs::openat(dir, temp, flags, Mode::RUSR | Mode::WUSR))?;
        let new = NewFile { file: fd.into(), temp };
        new.file.set_len(size).map_err(|cause| TargetError::Io { doing: "write it", cause })?;
        Ok(new)
    }

    /// Puts something under `name`, replacing anything but a directory.
    pub(super) fn put(&mut self, name: &[u8], what: What, entry: &Entry) -> Result<(), TargetError> {
        checked(name)?;
        let node = |kind, (major, minor): (u32, u32)| {
            move |dir: BorrowedFd<'_>, temp: &OsStr| {
                rustix::fs::mknodat(dir, temp, kind, Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor))
            }
        };
        let (temp, kind) = match what {
            What::File(new) => {
                self.set_metadata(MetadataTarget::Open(new.file.as_fd()), entry, FileType::RegularFile)?;
                return self.rename(new.temp, name);
            }
            What::Symlink(target) => {
                let target = OsStr::from_bytes(&target);
                (self.make(|dir, temp| rustix::fs::symlinkat(target, dir, temp))?.1, FileType::Symlink)
            }
            What::Fifo => (self.make(node(FileType::Fifo, (0, 0)))?.1, FileType::Fifo),
            What::CharDevice(number) => {
                (self.device(node(FileType::CharacterDevice, number))?, FileType::CharacterDevice)
            }
            What::BlockDevice(number) => (self.device(node(FileType::BlockDevice, number))?, FileType::BlockDevice),
        };
        let held = temp.dir.try_clone().map_err(|cause| TargetError::Io { doing: "open the directory", cause })?;
        let temp_name = temp.name.clone();
        self.set_metadata(MetadataTarget::Named(held.as_fd(), OsStr::new(&temp_name)), entry, kind)?;
        self.rename(temp, name)
    }

    /// Links what was put at `place` to another name here.
    pub(super) fn link(&mut self, place: &[Vec<u8>], name: &[u8]) -> Result<(), TargetError> {
        checked(name)?;
        let (last, parents) = place.split_last().expect("a place ends in a name");
        let mut dir =
            self.dirs[0].try_clone().map_err(|cause| TargetError::Io { doing: "open the directory", cause })?;
        for parent in parents {
            dir = rustix::fs::openat(&dir, checked(parent)?, DIR | OFlags::PATH, Mode::empty())
                .map_err(TargetError::io("find what it is a hard link to"))?;
        }
        let first = checked(last)?;
        let (_, temp) = self.make(|here, temp| rustix::fs::linkat(&dir, first, here, temp, AtFlags::empty()))?;
        self.rename(temp, name)
    }

    /// The path of a name in the current directory, from the top.
    pub(super) fn place(&self, name: &[u8]) -> Vec<Vec<u8>> {
        self.names.iter().cloned().chain([name.to_vec()]).collect()
    }

    /// What could not be kept so far.
    pub(super) fn skipped(&self) -> Skipped {
        self.skipped
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.dirs.last().expect("the uppermost directory stays").as_fd()
    }

    fn device(&mut self, make: impl Fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<()>) -> Result<Temp, TargetError> {
        match self.make(make) {
            Ok(((), temp)) => Ok(temp),
            Err(TargetError::Io { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied => {
                Err(TargetError::NoDevice)
            }
            Err(error) => Err(error),
        }
    }

    /// Creates something under an unused name.
    fn make<T>(
        &mut self,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<(T, Temp), TargetError> {
        let dir = self.here().try_clone_to_owned().map_err(|cause| TargetError::Io { doing: "make it", cause })?;
        loop {
            self.serial += 1;
            let name = format!(".peelfs-{}-{}", std::process::id(), self.serial);
            match make(dir.as_fd(), OsStr::new(&name)) {
                Ok(made) => return Ok((made, Temp { dir, name })),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(TargetError::io("make it")(errno)),
            }
        }
    }

    fn rename(&self, temp: Temp, name: &[u8]) -> Result<(), TargetError> {
        let kind_of = |name: &OsStr| {
            let found = rustix::fs::statat(&temp.dir, name, AtFlags::SYMLINK_NOFOLLOW);
            found.map(|found| FileType::from_raw_mode(found.st_mode))
        };
        let special = [FileType::CharacterDevice, FileType::BlockDevice, FileType::Fifo, FileType::Socket];
        if let Ok(there) = kind_of(checked(name)?)
            && special.contains(&there)
            && kind_of(OsStr::new(&temp.name)) != Ok(there)
        {
            return Err(TargetError::Special);
        }
        rustix::fs::renameat(&temp.dir, &temp.name, &temp.dir, checked(name)?).map_err(|errno| match errno {
            Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => TargetError::Directory,
            errno => TargetError::io("rename it")(errno),
        })
        // Dropping `temp` removes its name if a rename found the same inode under `name` and kept both.
    }

    /// Sets owner, attributes, mode and times, in an order in which no step undoes another.
    fn set_metadata(&mut self, to: MetadataTarget<'_>, entry: &Entry, kind: FileType) -> Result<(), TargetError> {
        let (uid, gid) = (entry.uid, entry.gid);
        if self.owners == Owners::OfTheImage {
            to.chown(uid, gid).map_err(|errno| TargetError::Owner { uid, gid, cause: errno.into() })?;
        }
        let privileged = rustix::process::geteuid().is_root();
        for (name, value) in &entry.xattrs {
            if !privileged && (name.starts_with(b"security.") || name.starts_with(b"trusted.")) {
                self.skipped.xattrs += 1;
                continue;
            }
            match to.set_xattr(name, value) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => self.skipped.xattrs += 1,
                Err(errno) => return Err(TargetError::io("set an extended attribute")(errno)),
            }
        }
        if kind != FileType::Symlink {
            let mut mode = u32::from(entry.mode);
            // A set-id program must not change its owner: it would run as the user who copied it.
            if mode & SET_IDS != 0 && kind != FileType::Directory && !self.keeps(uid, gid) {
                mode &= !SET_IDS;
                self.skipped.set_ids += 1;
            }
            to.chmod(Mode::from_raw_mode(mode)).map_err(TargetError::io("set its mode"))?;
        }
        let (seconds, nanos) = entry.mtime;
        to.set_mtime(seconds, nanos).map_err(TargetError::io("set its time"))
    }

    /// Whether a copy has the image's owner and group.
    fn keeps(&self, uid: u32, gid: u32) -> bool {
        self.owners == Owners::OfTheImage
            || (uid == rustix::process::geteuid().as_raw() && gid == rustix::process::getegid().as_raw())
    }
}

impl NewFile {
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), TargetError> {
        self.file.write_all_at(bytes, at).map_err(|cause| TargetError::Io { doing: "write it", cause })
    }
}

/// A temporary name, removed on drop; after a rename nothing is left to remove.
struct Temp {
    dir: OwnedFd,
    name: String,
}

impl Drop for Temp {
    fn drop(&mut self) {
        match rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!(name = self.name, %errno, "cannot remove a temporary file"),
        }
    }
}

/// A target for metadata: an open file, or a name that is neither followed nor opened.
#[derive(Clone, Copy)]
enum MetadataTarget<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a OsStr),
}

impl MetadataTarget<'_> {
    fn chown(self, uid: u32, gid: u32) -> rustix::io::Result<()> {
        // All ones means "unchanged" to the kernel; no file can have this id.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(fd) => rustix::fs::fchown(fd, uid, gid),
            Self::Named(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn chmod(self, mode: Mode) -> rustix::io::Result<()> {
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            // Only for names that this process has just created, in a directory that it holds open.
            Self::Named(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty()),
        }
    }

    fn set_mtime(self, seconds: i64, nanos: u32) -> rustix::io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        };
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, &times),
            Self::Named(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn set_xattr(self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        let attribute = OsStr::from_bytes(name);
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, attribute, value, XattrFlags::empty()),
            // This call has no variant relative to a directory; the path leads into the open one.
            Self::Named(dir, name) => {
                let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
                rustix::fs::lsetxattr(&path, attribute, value, XattrFlags::empty())
            }
        }
    }
}

/// A name as a path of one component; the overlay has no others, and nothing here depends on that.
fn checked(name: &[u8]) -> Result<&OsStr, TargetError> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(TargetError::Name(name.to_vec()));
    }
    Ok(OsStr::from_bytes(name))
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const SET_IDS: u32 = 0o6000;
