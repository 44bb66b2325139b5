//! Mounts a file system that only answers: the cost of a read without reading or verifying anything.
//!
//!     cargo run --release -p peelfs-bench-tools --bin empty_fuse -- --from 1048576 TREE MOUNTPOINT
//!
//! It shows a file of zeros for each file of such a size below TREE, named by number, and serves as peelfs does: files
//! are not opened, the kernel caches answers, and the read-ahead is the same. It says `mounted` when it is, and ends
//! when it is unmounted.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Parser;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};

/// Mounts a file system that does nothing but answer.
#[derive(Parser)]
struct Args {
    /// The tree whose files lend their sizes
    tree: PathBuf,
    /// The mount point
    at: PathBuf,
    /// The smallest file that counts, in bytes
    #[arg(long, default_value_t = 1 << 20)]
    from: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut sizes = Vec::new();
    add_sizes(&args.tree, args.from, &mut sizes)?;
    let mut config = fuser::Config::default();
    config.n_threads = Some(2);
    let session = fuser::Session::new(Empty { sizes }, &args.at, &config);
    let session = session.with_context(|| format!("cannot mount on {}", args.at.display()))?;
    // It asks the mount, which has to answer meanwhile.
    let at = args.at.clone();
    let raised = std::thread::spawn(move || raise_read_ahead(&at).map(|()| println!("mounted")));
    session.run()?;
    raised.join().expect("it does not panic")
}

fn add_sizes(directory: &Path, from: u64, sizes: &mut Vec<u64>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let known = entry.metadata()?;
        if known.is_dir() {
            add_sizes(&entry.path(), from, sizes)?;
        } else if known.is_file() && known.len() >= from {
            sizes.push(known.len());
        }
    }
    Ok(())
}

/// As peelfs does, see `fuse::session`.
fn raise_read_ahead(at: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(at)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "512").context("cannot raise the read-ahead")
}

/// A directory of files that hold zeros.
struct Empty {
    sizes: Vec<u64>,
}

impl Empty {
    fn attr(&self, node: u64) -> Option<FileAttr> {
        let (kind, size) = match node.checked_sub(FIRST) {
            None => (FileType::Directory, 0),
            Some(number) => (FileType::RegularFile, *self.sizes.get(usize::try_from(number).ok()?)?),
        };
        Some(FileAttr {
            ino: INodeNo(node),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o555,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Empty {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // What the kernel does not have costs it time, and peelfs, too.
        let _ = config.add_capabilities(wanted);
        let _ = config.set_max_write(ZEROS.len() as u32);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        match number.and_then(|number| self.attr(number.checked_add(FIRST)?)) {
            Some(attr) => reply.entry(&FOR_EVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(node.0) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.attr(node.0).map_or(0, |attr| attr.size.saturating_sub(offset));
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(size as usize).min(ZEROS.len());
        reply.data(&ZEROS[..length]);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for number in offset..self.sizes.len() as u64 {
            if reply.add(INodeNo(number + FIRST), number + 1, FileType::RegularFile, number.to_string()) {
                break;
            }
        }
        reply.ok();
    }
}

/// The number of the first file; that of the root is 1.
const FIRST: u64 = 2;
const FOR_EVER: Duration = Duration::from_secs(1 << 30);
/// As much as the kernel asks for at once.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
