//! FUSE: shows an [`ImageFs`] to the kernel. The only module that knows fuser.
//!
//! An image never changes, so every answer may be kept by the kernel for ever: names, absent names,
//! attributes, symlinks, listings and pages. OPEN and OPENDIR are declined with ENOSYS, after which the
//! kernel does not ask again and reads by inode number alone (`FUSE_NO_OPEN_SUPPORT`); that is what
//! makes warm small files as fast as on a local file system.
//!
//! A session thread answers from memory and from the store. Where a layer or content has to be waited
//! for, the reply is handed to a task: a slow registry never holds up somebody else's cached read.

mod errno;
pub mod mounts;
mod pin;
mod session;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

pub use session::{MountError, MountOptions, MountPlace, Mounted, OpenFiles, UnmountError, mount, unmount};

use crate::image::{FsError, ImageFs, NotNow, Now};
use crate::layer::Kind;
use crate::offsets::FileOffset;
use crate::overlay::{NodeAttr, NodeId};

/// The adapter between the kernel's requests and an image.
struct Adapter {
    fs: Arc<ImageFs>,
    tasks: tokio::runtime::Handle,
    pins: pin::Pins,
    /// Set once it is certain that no file of the image has an extended attribute.
    no_xattrs: AtomicBool,
}

impl Adapter {
    /// Answers a question now, or hands it to a task that waits for the layers it needs.
    ///
    /// The question sees the reply, since listings are written into it; one that needs a layer must not
    /// have written anything.
    fn answer<T: Send + 'static, R: Send + 'static>(
        &self,
        mut reply: R,
        mut question: impl FnMut(&ImageFs, &mut R) -> Now<T> + Send + 'static,
        send: impl FnOnce(R, Result<T, FsError>) + Send + 'static,
    ) {
        self.pins.pin_this_thread();
        match question(&self.fs, &mut reply) {
            Ok(answer) => send(reply, Ok(answer)),
            Err(NotNow::Never(error)) => send(reply, Err(error)),
            Err(NotNow::Needs(_)) => {
                let fs = Arc::clone(&self.fs);
                self.tasks.spawn(async move {
                    let answer = fs.awaited(|fs| question(fs, &mut reply)).await;
                    send(reply, answer);
                });
            }
        }
    }

    /// Whether xattr requests can be declined for good.
    fn never_xattrs(&self) -> bool {
        if self.no_xattrs.load(Ordering::Relaxed) {
            return true;
        }
        let none = matches!(self.fs.has_no_xattrs(), Ok(true));
        if none {
            self.no_xattrs.store(true, Ordering::Relaxed);
        }
        none
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel does not offer a FUSE feature; going on without it");
            }
        }
        // How many read-aheads may wait at once. The value is within the kernel's own bounds.
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(parent) = node(parent) else { return reply.error(Errno::ESTALE) };
        let name = name.as_bytes().to_vec();
        self.answer(
            reply,
            move |fs, _| fs.lookup(parent, &name),
            |reply, answer| match answer {
                Ok(Some(attr)) => reply.entry(&life(&attr), &file_attr(&attr), GENERATION),
                // Inode 0 means that there is no such name, and that the kernel may remember it.
                Ok(None) => reply.entry(&FOR_EVER, &no_such_name(), GENERATION),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        if let Some(node) = node(ino) {
            self.fs.forget(node);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        self.answer(
            reply,
            move |fs, _| fs.attr(node),
            |reply, answer| match answer {
                Ok(attr) => reply.attr(&life(&attr), &file_attr(&attr)),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        self.answer(
            reply,
            move |fs, _| fs.symlink_target(node),
            |reply, answer| match answer {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.pins.pin_this_thread();
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        let (at, length) = (FileOffset(offset), size as usize);
        let now = BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            self.fs.read_now(node, at, &mut buffer[..length])
        });
        match now {
            Ok(Some(got)) => BUFFER.with_borrow(|buffer| reply.data(&buffer[..got])),
            Err(NotNow::Never(error)) => reply.error(errno::of(&error)),
            Ok(None) | Err(NotNow::Needs(_)) => {
                let fs = Arc::clone(&self.fs);
                self.tasks.spawn(async move {
                    match fs.read(node, at, length).await {
                        Ok(bytes) => reply.data(&bytes),
                        Err(error) => reply.error(errno::of(&error)),
                    }
                });
            }
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is ever written; after this answer the kernel does not ask again at each close.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        self.answer(
            reply,
            move |fs, reply| list_names(fs, node, offset, reply),
            |reply, listed| match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        self.answer(
            reply,
            move |fs, reply| list_entries(fs, node, offset, reply),
            |reply, listed| match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (entries, bytes) = self.fs.totals();
        reply.statfs(bytes.div_ceil(BLOCK.into()), 0, 0, entries, 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.never_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        let name = name.as_bytes().to_vec();
        self.answer(
            reply,
            move |fs, _| fs.xattr(node, &name),
            move |reply, answer| match answer {
                Ok(Some(value)) => send_xattr(reply, &value, size),
                Ok(None) => reply.error(Errno::ENODATA),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.never_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        self.answer(
            reply,
            move |fs, _| fs.xattr_names(node),
            move |reply, answer| match answer {
                Ok(names) => {
                    let mut list = Vec::new();
                    for name in names {
                        list.extend_from_slice(&name);
                        list.push(0);
                    }
                    send_xattr(reply, &list, size);
                }
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn access(&self, _req: &Request, _ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks modes itself (`default_permissions`); what it does not know is that nothing
        // can be written.
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(node) = node(ino) else { return reply.error(Errno::ESTALE) };
        let (Ok(at), SEEK_DATA | SEEK_HOLE) = (u64::try_from(offset), whence) else {
            return reply.error(Errno::EINVAL);
        };
        self.answer(
            reply,
            move |fs, _| fs.seek(node, FileOffset(at), whence == SEEK_DATA),
            |reply, answer| match answer {
                Ok(Some(found)) => reply.offset(found.0.cast_signed()),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }
}

/// Writes the names of a directory into `reply`, from position `offset` until it is full.
///
/// A layer that is needed in the middle ends the reply early; the kernel asks for the rest.
fn list_names(fs: &ImageFs, node: NodeId, offset: u64, reply: &mut ReplyDirectory) -> Now<()> {
    let mut written = false;
    let dots = [(node, "."), (fs.parent(node)?, "..")];
    for (at, (dot, name)) in dots.into_iter().enumerate().skip(offset.min(DOTS) as usize) {
        if reply.add(INodeNo(dot.get()), at as u64 + 1, FileType::Directory, name) {
            return Ok(());
        }
        written = true;
    }
    let listed = fs.list(node, offset.saturating_sub(DOTS), |entry| {
        let name = OsStr::from_bytes(entry.name);
        let full = reply.add(INodeNo(entry.node.get()), entry.next + DOTS, file_type(entry.kind), name);
        written = true;
        if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if written { Ok(()) } else { listed }
}

/// As [`list_names`], with metadata.
fn list_entries(fs: &ImageFs, node: NodeId, offset: u64, reply: &mut ReplyDirectoryPlus) -> Now<()> {
    let mut written = false;
    if offset < DOTS {
        let dots = [(fs.attr(node)?, "."), (fs.attr(fs.parent(node)?)?, "..")];
        for (at, (dot, name)) in dots.into_iter().enumerate().skip(offset as usize) {
            let ino = INodeNo(dot.node.get());
            if reply.add(ino, at as u64 + 1, name, &life(&dot), &file_attr(&dot), GENERATION) {
                return Ok(());
            }
            written = true;
        }
    }
    let listed = fs.list_with_attrs(node, offset.saturating_sub(DOTS), |entry, attr| {
        let name = OsStr::from_bytes(entry.name);
        let ino = INodeNo(entry.node.get());
        let full = reply.add(ino, entry.next + DOTS, name, &life(attr), &file_attr(attr), GENERATION);
        written = true;
        if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if written { Ok(()) } else { listed }
}

fn send_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

/// How long the kernel may believe what it is told of a node.
fn life(attr: &NodeAttr) -> Duration {
    if attr.settled { FOR_EVER } else { Duration::ZERO }
}

fn node(ino: INodeNo) -> Option<NodeId> {
    NodeId::from_number(ino.0)
}

fn file_attr(attr: &NodeAttr) -> FileAttr {
    let mtime = system_time(attr.mtime, attr.mtime_ns);
    FileAttr {
        ino: INodeNo(attr.node.get()),
        size: attr.size,
        blocks: attr.blocks,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: makedev(attr.device),
        blksize: BLOCK,
        flags: 0,
    }
}

fn no_such_name() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        // The overlay has resolved these two before anybody sees them.
        Kind::File | Kind::Whiteout | Kind::LowerLink => FileType::RegularFile,
    }
}

/// The kernel's 32-bit encoding of a device number (`new_encode_dev`).
fn makedev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn system_time(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(UNIX_EPOCH)
}

thread_local! {
    /// Where a session thread reads to: as large as the kernel's largest request, and made once.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
const GENERATION: fuser::Generation = fuser::Generation(0);
/// Positions that `.` and `..` take before the first name.
const DOTS: u64 = 2;
const BLOCK: u32 = 4096;
const MAX_BACKGROUND: u16 = 128;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
