//! FUSE: serves a [`Tree`] to the kernel. The only module that uses fuser and the kernel's protocol.
//!
//! A tree never changes, so the kernel may cache every answer for ever: names, absent names, attributes, symlinks,
//! listings and pages. OPEN and OPENDIR are answered with ENOSYS, after which the kernel does not send them any more
//! and reads by inode number alone (`FUSE_NO_OPEN_SUPPORT`); that makes warm small files as fast as on a local file
//! system. With [passthrough](Passthrough), OPEN is answered, and the kernel reads large files directly from the cache.
//!
//! A thread of the [dispatch loop](serve) answers from memory and from the store. If a layer or content has to be
//! fetched, the reply is handed to a task, which a signal to the requesting process can cancel: a slow registry neither
//! delays a cached read nor blocks any reader for ever.

mod asked;
mod attach;
mod backing;
mod device;
mod eager;
mod errno;
pub(crate) mod fs_context;
pub mod mounts;
mod nodes;
mod own;
mod pending;
mod place;
mod serve;
mod session;
mod standby;
mod through;
mod trial;
mod wire;
mod xattrs;

use std::cell::RefCell;
use std::fs::File;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

#[doc(hidden)]
pub use wire::is_request;

pub use attach::{Target, installed_helper};
pub use device::is_alive;
pub use pending::{PendingRequest, RequestCounts, Requests, WAIT_BOUNDS};
pub use place::{MountPlace, OpenFiles, UnmountError, unmount, unmount_with_cover};
pub use session::{Disconnect, MountError, MountOptions, Mounted, claim, claim_path, mount, take_over};
pub use through::Passthrough;
pub use trial::{Offers, try_mount};

use crate::image::{Answer, Apart, FsError, NoAnswer, ReadNow, SeekTo, Totals, Tree, briefly};
use crate::offsets::FileOffset;
use crate::overlay::NodeId;
use device::Reply;
use nodes::View;
use pending::Waiting;
use serve::{Handler, Threads};
use through::Through;
use wire::{Listing, Opened, Operation, Request};
use xattrs::Attributes;

/// Translates the kernel's requests for a tree.
struct Adapter {
    tree: Arc<dyn Tree>,
    view: View,
    tasks: tokio::runtime::Handle,
    waiting: Arc<Waiting>,
    apart: Apart,
    /// The extended attributes that occur in the tree, once known.
    attributes: OnceLock<Attributes>,
    /// `None` if files are read without OPEN.
    through: Option<Arc<Through>>,
}

impl Adapter {
    fn new(tree: Arc<dyn Tree>, view: View, tasks: tokio::runtime::Handle, through: Option<Through>) -> Self {
        let through = through.map(Arc::new);
        let (waiting, apart, attributes) = (Arc::default(), Apart::default(), OnceLock::new());
        Self { tree, view, tasks, waiting, apart, attributes, through }
    }

    /// The mount is gone, and so are pending requests.
    fn end(&self) {
        self.waiting.end();
        self.tree.end();
    }

    /// Answers now, or in a task that waits for the layers it needs.
    fn answer<T: Send + 'static>(
        &self,
        reply: Reply,
        mut question: impl FnMut(&dyn Tree) -> Answer<T> + Send + 'static,
        send: impl FnOnce(Reply, T) + Send + 'static,
    ) {
        match briefly(|| question(&*self.tree)) {
            Ok(answer) => send(reply, answer),
            Err(NoAnswer::Never(error)) => reply.error(errno::of(&error)),
            Err(NoAnswer::Later(_) | NoAnswer::TakesLong) => {
                self.wait(reply, self.apart.awaited(Arc::clone(&self.tree), question), send);
            }
        }
    }

    /// Sends an answer once it is available.
    fn wait<T: Send + 'static>(
        &self,
        reply: Reply,
        answer: impl Future<Output = Result<T, FsError>> + Send + 'static,
        send: impl FnOnce(Reply, T) + Send + 'static,
    ) {
        self.waiting.wait(&self.tasks, reply, |reply| {
            let sent = async move {
                match answer.await {
                    Ok(answer) => send(reply, answer),
                    Err(error) => reply.error(errno::of(&error)),
                }
            };
            sent.boxed()
        });
    }

    /// Data in memory is answered by the listening thread. Handing listening to another thread meanwhile was measured,
    /// also with several readers, and is slower, as threads and their data move between CPUs. Other threads are called
    /// when requests queue up, or when this one is about to wait.
    fn read(&self, node: NodeId, at: FileOffset, length: usize, reply: Reply, threads: &Threads) {
        let now = BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            self.tree.read_now(node, at, &mut buffer[..length], &mut || threads.slow())
        });
        match now {
            Ok(ReadNow::Bytes(got)) => BUFFER.with_borrow(|buffer| reply.bytes(&buffer[..got])),
            Err(NoAnswer::Never(error)) => reply.error(errno::of(&error)),
            Ok(ReadNow::Later(read)) => self.wait(reply, read, |reply, bytes| reply.bytes(&bytes)),
            Err(NoAnswer::Later(_) | NoAnswer::TakesLong) => {
                let read = Arc::clone(&self.tree).read(node, at, length);
                self.wait(reply, read, |reply, bytes| reply.bytes(&bytes));
            }
        }
    }

    /// Answers OPEN: the kernel reads large, completely cached files directly. The first open waits a moment until such
    /// a file has been copied to a file of its own; a file that is not cached yet is served while it is fetched.
    fn open(&self, through: &Arc<Through>, node: NodeId, reply: Reply, threads: &Threads) {
        // First: after a take-over the file's size may not be known yet.
        if let Some(opened) = through.again(node) {
            return reply.bytes(opened.as_bytes());
        }
        match briefly(|| self.tree.attr(node)) {
            Ok(attr) if attr.size >= LARGE_FILE => {}
            Ok(_) => return reply.bytes(Opened::cached().as_bytes()),
            Err(NoAnswer::Never(error)) => return reply.error(errno::of(&error)),
            // The layer was indexed when the kernel looked the file up; a later problem shows in a read. The file may
            // be large, so count it.
            Err(NoAnswer::Later(_) | NoAnswer::TakesLong) => return reply.bytes(through.first(node, None).as_bytes()),
        }
        threads.slow();
        let first = |whole: Option<File>| through.first(node, whole.as_ref());
        let Some(content) = self.tree.kernel_content() else { return reply.bytes(first(None).as_bytes()) };
        match content.copy_now(node) {
            Ok(Some(whole)) => return reply.bytes(first(Some(whole)).as_bytes()),
            Ok(None) => {}
            Err(NoAnswer::Never(error)) => return reply.error(errno::of(&error)),
            Err(NoAnswer::Later(_) | NoAnswer::TakesLong) => return reply.bytes(first(None).as_bytes()),
        }
        match content.make_copy(node) {
            Ok(Some(made)) => {
                let made = async move { Ok(tokio::time::timeout(OPEN_WAITS, made).await.ok().flatten()) };
                let through = Arc::clone(through);
                self.wait(reply, made, move |reply, whole: Option<File>| {
                    reply.bytes(through.first(node, whole.as_ref()).as_bytes());
                });
            }
            _ => reply.bytes(first(None).as_bytes()),
        }
    }

    fn seek(&self, node: NodeId, offset: u64, whence: u32, reply: Reply) {
        if offset > i64::MAX as u64 || !matches!(whence, SEEK_DATA | SEEK_HOLE) {
            return reply.error(Errno::INVAL);
        }
        let to = if whence == SEEK_DATA { SeekTo::Data } else { SeekTo::Hole };
        self.answer(
            reply,
            move |tree| tree.seek(node, FileOffset(offset), to),
            |reply, found| match found {
                Some(found) => reply.bytes(found.0.as_bytes()),
                None => reply.error(Errno::NXIO),
            },
        );
    }
}

impl Handler for Adapter {
    fn handle(&self, request: &Request<'_>, reply: Reply, threads: &Threads) {
        let Some(node) = NodeId::from_number(request.node) else { return reply.error(Errno::STALE) };
        match request.operation {
            Operation::Lookup { name } if name.len() > NAME_MAX => reply.error(Errno::NAMETOOLONG),
            Operation::Lookup { name } => {
                let (name, view): (Arc<[u8]>, _) = (name.into(), self.view);
                let reply = reply.for_name(&name);
                let lookup = move |tree: &dyn Tree| nodes::lookup(tree, view, node, &name);
                self.answer(reply, lookup, |reply, entry| reply.bytes(entry.as_bytes()));
            }
            Operation::GetAttr => {
                let view = self.view;
                let attr = move |tree: &dyn Tree| tree.attr(node).map(|found| nodes::attr_out(tree, view, &found));
                self.answer(reply, attr, |reply, attr| reply.bytes(attr.as_bytes()));
            }
            Operation::ReadLink => {
                self.answer(reply, move |tree| tree.symlink_target(node), |reply, target| reply.bytes(&target));
            }
            Operation::Read { offset, size } => {
                self.read(node, FileOffset(offset), size.min(wire::MAX_WRITE) as usize, reply, threads);
            }
            Operation::ReadDir { offset, size } => {
                let list = move |tree: &dyn Tree| nodes::names(tree, node, offset, Listing::new(size));
                self.answer(reply, list, |reply, listing| reply.bytes(listing.as_bytes()));
            }
            Operation::ReadDirPlus { offset, size } => {
                let view = self.view;
                let list = move |tree: &dyn Tree| nodes::entries(tree, view, node, offset, Listing::new(size));
                self.answer(reply, list, |reply, listing| reply.bytes(listing.as_bytes()));
            }
            Operation::StatFs => {
                let Totals { entries, bytes } = self.tree.totals();
                let stat = wire::StatFs {
                    blocks: bytes.div_ceil(BLOCK.into()),
                    files: entries,
                    bsize: BLOCK,
                    namelen: NAME_MAX as u32,
                    frsize: BLOCK,
                    ..Default::default()
                };
                reply.bytes(stat.as_bytes());
            }
            Operation::GetXattr { name, size } => self.xattr(node, name, size, reply),
            Operation::ListXattr { size } => self.xattr_names(node, size, reply),
            // The kernel checks modes itself (`default_permissions`), but does not know that the file system is
            // read-only.
            Operation::Access { mask } if mask & W_OK != 0 => reply.error(Errno::ROFS),
            Operation::Seek { offset, whence } => self.seek(node, offset, whence, reply),
            Operation::Release => {
                reply.ok();
                if let Some(through) = &self.through {
                    through.closed(node);
                }
            }
            Operation::Access { .. } | Operation::ReleaseDir | Operation::Destroy => reply.ok(),
            Operation::Ioctl => reply.error(Errno::NOTTY),
            Operation::Open if let Some(through) = &self.through => self.open(through, node, reply, threads),
            // After this answer the kernel does not send them again; see the module documentation. FLUSH: nothing is
            // ever written.
            Operation::Open | Operation::OpenDir | Operation::Flush | Operation::Other(_) => reply.error(Errno::NOSYS),
            // The dispatch loop handles these.
            Operation::Forget | Operation::BatchForget { .. } | Operation::Interrupt { .. } => drop(reply),
        }
    }

    fn forget(&self, request: &Request<'_>) {
        let forget = |number| NodeId::from_number(number).into_iter().for_each(|node| self.tree.forget(node));
        match request.operation {
            Operation::BatchForget { nodes } => wire::forgotten(nodes).for_each(forget),
            _ => forget(request.node),
        }
    }

    fn interrupt(&self, unique: u64) {
        self.waiting.interrupt(unique);
    }
}

thread_local! {
    /// A thread's read buffer: as large as the kernel's largest request, allocated once.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const BLOCK: u32 = 4096;
/// Minimum size in bytes of a file for [passthrough](Passthrough): reading a smaller one takes hardly longer than
/// opening it.
pub const LARGE_FILE: u64 = 1 << 20;
/// How long an open waits for the passthrough copy.
const OPEN_WAITS: Duration = Duration::from_secs(2);
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
const W_OK: u32 = 2;
/// The longest name in Linux, in bytes.
const NAME_MAX: usize = 255;
