//! A mount's life in one process: from the negotiation with the kernel to its end.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Session, SessionACL};
use rustix::io::Errno;

use super::attach::{self, Attached, Target};
use super::device::Device;
use super::nodes::View;
use super::pending::Requests;
use super::place::MountPlace;
use super::serve::{Handler, Service};
use super::through::{self, Passthrough, Through};
use super::{Adapter, mounts, wire};
use crate::image::Tree;

/// The options of a mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// What `mount` and `df` show as the source; the reference.
    pub source: String,
    /// Other users may access the mount.
    pub allow_other: bool,
    /// Root may access the mount, besides the user who mounts.
    pub allow_root: bool,
    /// Set-user-id programs of the image work.
    pub suid: bool,
    /// Device nodes of the image work.
    pub dev: bool,
    /// Programs of the image do not run.
    pub noexec: bool,
    /// Let idle CPUs sleep while requests come in quick succession.
    pub let_cpus_sleep: bool,
    /// The kernel reads large files directly from the cache.
    pub passthrough: Option<Arc<Passthrough>>,
    /// Requests of the serving process itself fail: it may be accessing a cache that the mount hides, and would wait
    /// for its own answer.
    pub refuse_own_requests: bool,
}

impl MountOptions {
    /// Whether the kernel admits other users.
    pub(super) fn lets_others_in(&self) -> bool {
        self.allow_other || self.private_to().is_some()
    }

    /// The user who may access the mount besides root, if the kernel admits all users.
    fn private_to(&self) -> Option<u32> {
        private_to(self.allow_root && !self.allow_other)
    }
}

/// As in libfuse, root is admitted by admitting all users and refusing others. A mount of root itself is open to root
/// alone in any case.
fn private_to(allow_root: bool) -> Option<u32> {
    let user = rustix::process::getuid();
    (allow_root && !user.is_root()).then(|| user.as_raw())
}

/// Why a directory could not become a mount point.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// An image is mounted there.
    #[error("`{}` is already a peelfs mount of {reference}", at.display())]
    Taken {
        /// The mount point.
        at: PathBuf,
        /// The reference of that image.
        reference: String,
    },
    /// Its path leads elsewhere than when it was opened.
    #[error("cannot mount on `{}`: the directory was moved or replaced meanwhile", at.display())]
    Moved {
        /// The mount point.
        at: PathBuf,
    },
    /// It does not exist, or is not a directory.
    #[error("cannot mount on `{}`", at.display())]
    NoDirectory {
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on `{}`", at.display())]
    Refused {
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel has no passthrough.
    #[error("this kernel has no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)")]
    NoPassthrough,
    /// The kernel does not accept files of the cache for passthrough.
    #[error("the kernel refuses passthrough")]
    RefusedPassthrough(#[source] io::Error),
}

/// A mounted tree being served. Dropping it unmounts.
pub struct Mounted {
    service: Service,
    place: MountPlace,
    device: Arc<Device>,
    adapter: Arc<Adapter>,
    can_be_taken_over: bool,
    /// `None` in a process that has taken the mount over.
    _ends: Option<Ends>,
}

/// Unmounts when dropped. Holds the connection until then, which identifies the mount.
struct Ends(MountPlace, Arc<Device>);

impl Drop for Ends {
    fn drop(&mut self) {
        // Otherwise it is gone, and its numbers may belong to another mount.
        if self.1.is_alive()
            && let Err(error) = self.0.take_away()
        {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
        }
    }
}

/// Mounts `tree` on the directory `target`. Must be called within a tokio runtime, which runs pending requests.
///
/// # Errors
/// [`MountError`]
pub fn mount(tree: Arc<dyn Tree>, target: &Target, options: &MountOptions) -> Result<Mounted, MountError> {
    let at = || target.path().to_owned();
    let refused = |cause| MountError::Refused { at: at(), cause };
    // No other process mounts between the two checks of the directory: the uppermost mount is this one.
    let claimed = claim(target);
    if let Some(taken) = mounts::peelfs_at(target.path()) {
        return Err(MountError::Taken { at: at(), reference: taken.reference().to_owned() });
    }
    if !target.is_in_place() {
        return Err(MountError::Moved { at: at() });
    }
    let Attached { connection, mount } = attach::attach(target, options).map_err(refused)?;
    drop(claimed);
    let device = Arc::new(Device::new(connection.try_clone().map_err(refused)?));
    let generation = tree.generation();
    let place = mount
        .map(|mount| MountPlace::new(mount.path, Some(mount.device), Some(mount.id), generation).served_over(&device));
    let ends = place.clone().map(|place| Ends(place, Arc::clone(&device)));
    // On an error, the mount is unmounted, or is dead as soon as the connection is closed.
    let (Some(place), true) = (place, target.is_in_place()) else { return Err(MountError::Moved { at: at() }) };
    let agreed = Arc::new(Agreed::default());
    let terms = Terms { passthrough: options.passthrough.is_some(), agreed: Arc::clone(&agreed) };
    let acl = if options.lets_others_in() { SessionACL::All } else { SessionACL::Owner };
    drop(Session::from_fd(terms, connection, acl, Config::default()).map_err(refused)?);
    if let Some(device) = place.device() {
        raise_read_ahead(device);
    }
    let view = View { generation: place.generation(), private_to: options.private_to() };
    let through = match &options.passthrough {
        Some(_) if !agreed.passthrough.load(Ordering::Acquire) => return Err(MountError::NoPassthrough),
        Some(passthrough) => {
            through::try_out(&device, &passthrough.trial).map_err(MountError::RefusedPassthrough)?;
            Some(Through::new(Arc::clone(&device), passthrough).map_err(refused)?)
        }
        None => None,
    };
    let adapter = Arc::new(Adapter::new(tree, view, tokio::runtime::Handle::current(), through));
    let handler = Arc::clone(&adapter) as Arc<dyn Handler>;
    let own = options.refuse_own_requests;
    let service = Service::start(&device, &handler, options.let_cpus_sleep, own).map_err(refused)?;
    take_back(&adapter.tree, &device, &service);
    let can_be_taken_over = agreed.resends.load(Ordering::Acquire);
    Ok(Mounted { service, place, device, adapter, can_be_taken_over, _ends: ends })
}

/// Takes over a mount whose process is gone: `connection` is from [`Mounted::connection`], and `tree` must show the
/// same; `opens` is [`Passthrough::opens`], if the mount has passthrough; `let_cpus_sleep` and `allow_root` are as in
/// [`MountOptions`]. Requests that the previous process had not answered are answered now; waiting readers see only a
/// pause.
///
/// # Errors
/// [`MountError::Refused`] if the kernel cannot resend requests (before Linux 6.9).
pub fn take_over(
    connection: OwnedFd,
    tree: Arc<dyn Tree>,
    place: MountPlace,
    opens: Option<File>,
    let_cpus_sleep: bool,
    allow_root: bool,
) -> Result<Mounted, MountError> {
    let device = Arc::new(Device::new(connection));
    let place = place.served_over(&device);
    let refused = |cause| MountError::Refused { at: place.at().to_owned(), cause };
    let through = opens.map(|opens| Through::go_on(Arc::clone(&device), opens));
    let through = through.transpose().map_err(refused)?;
    let view = View { generation: place.generation(), private_to: private_to(allow_root) };
    let adapter = Arc::new(Adapter::new(tree, view, tokio::runtime::Handle::current(), through));
    // Before anything is received: the kernel would resend what this process has received already, and a RELEASE must
    // not count twice.
    match device.resend() {
        // Unmounted meanwhile; the service notices that, too.
        Ok(()) | Err(Errno::NODEV) => {}
        Err(errno) => return Err(refused(errno.into())),
    }
    let handler = Arc::clone(&adapter) as Arc<dyn Handler>;
    let service = Service::start(&device, &handler, let_cpus_sleep, true).map_err(refused)?;
    take_back(&adapter.tree, &device, &service);
    Ok(Mounted { service, place, device, adapter, can_be_taken_over: true, _ends: None })
}

/// While the mount lives, data that was shown before verification and turns out wrong is revoked: the kernel drops it,
/// asks again, and gets an error.
fn take_back(tree: &Arc<dyn Tree>, device: &Arc<Device>, service: &Service) {
    let (tree, device, mut gone) = (Arc::clone(tree), Arc::clone(device), service.gone());
    tokio::spawn(async move {
        let Some(content) = tree.kernel_content() else { return };
        loop {
            let nodes = tokio::select! {
                _ = gone.wait_for(|gone| *gone) => return,
                nodes = content.revoked() => nodes,
            };
            let device = Arc::clone(&device);
            let forgotten = move || nodes.for_each(|node| device.forget_content(node.get()));
            if tokio::task::spawn_blocking(forgotten).await.is_err() {
                return; // the process ends
            }
        }
    });
}

/// The negotiation when a connection starts; fuser is not used after it.
struct Terms {
    /// Whether the kernel shall read large files. Files then need OPEN.
    passthrough: bool,
    agreed: Arc<Agreed>,
}

#[derive(Default)]
struct Agreed {
    /// The kernel can resend what a previous process has left unanswered.
    resends: AtomicBool,
    /// The kernel reads large files directly.
    passthrough: AtomicBool,
}

impl Filesystem for Terms {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let open = if self.passthrough { InitFlags::FUSE_PASSTHROUGH } else { InitFlags::FUSE_NO_OPEN_SUPPORT };
        for flag in [
            open,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // File handles outlive the kernel's cached inodes.
            InitFlags::FUSE_EXPORT_SUPPORT,
            // Clones of the mount can map owners (Linux 6.12). With this flag the kernel refuses a mount without
            // permission checks of its own, and hides the caller of some requests; nothing here uses that.
            InitFlags::FUSE_ALLOW_IDMAP,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel lacks a FUSE feature");
            }
        }
        let offered = |flag| config.capabilities().contains(flag);
        self.agreed.resends.store(offered(InitFlags::FUSE_HAS_RESEND), Ordering::Release);
        self.agreed.passthrough.store(self.passthrough && offered(InitFlags::FUSE_PASSTHROUGH), Ordering::Release);
        // Backing files are never on a stacked file system, so this one can be a lower layer of an overlay.
        if self.passthrough && config.set_max_stack_depth(1).is_err() {
            tracing::debug!("the kernel does not accept the stack depth");
        }
        // The limit of pending read-aheads. At three quarters of it the kernel stops reading ahead, even cached data,
        // and reads single pages. Both values are within the kernel's bounds.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(wire::MAX_WRITE);
        Ok(())
    }
}

impl Mounted {
    /// The mount point.
    pub fn place(&self) -> MountPlace {
        self.place.clone()
    }

    /// The connection to the kernel, if another process could take it over ([`take_over`]).
    pub fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.can_be_taken_over.then(|| self.device.as_fd())
    }

    /// Aborts its connection if nothing else ends it.
    pub fn disconnect(&self) -> Disconnect {
        let received = self.service.received();
        Disconnect { place: self.place.clone(), device: Arc::downgrade(&self.device), received }
    }

    /// Its requests, for status.
    pub fn requests(&self) -> Requests {
        let (waiting, received) = (Arc::clone(&self.adapter.waiting), self.service.received());
        Requests { waiting, received, device: Arc::downgrade(&self.device) }
    }

    /// Whether it is unmounted and its last file closed.
    pub fn is_gone(&self) -> bool {
        *self.service.gone().borrow()
    }

    /// Returns when it is unmounted and its last file closed.
    pub fn gone(&self) -> impl Future<Output = ()> + use<> {
        let mut gone = self.service.gone();
        async move {
            // A service that is gone has no threads.
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Serves until the image is unmounted and its last file is closed.
    ///
    /// # Errors
    /// The error that ended the session, unless it was unmounted.
    pub async fn served(self) -> io::Result<()> {
        let served = self.service.ended().await;
        self.adapter.end();
        served
    }
}

/// Aborts a mount's connection to the kernel if hanging threads keep it from ending. Keeps nothing alive.
#[derive(Clone, Debug)]
pub struct Disconnect {
    place: MountPlace,
    device: Weak<Device>,
    received: Arc<AtomicU64>,
}

impl Disconnect {
    /// Whether the connection still exists.
    pub fn is_alive(&self) -> bool {
        self.device.upgrade().is_some_and(|device| device.is_alive())
    }

    /// How many requests have been received, if more are pending: the same number twice means that no thread reads
    /// them.
    pub fn stands_at(&self) -> Option<u64> {
        let waits = self.device.upgrade().is_some_and(|device| device.has_more());
        waits.then(|| self.received.load(Ordering::Relaxed))
    }

    /// Aborts it now, and unmounts; every pending request fails.
    pub fn abort(&self) {
        if self.is_alive()
            && let Err(error) = self.place.abort()
        {
            tracing::error!(%error, at = %self.place.at().display(), "cannot abort the connection of a mount");
        }
    }
}

/// Prevents other processes of peelfs, of any user, from mounting on `target` until dropped, with a lock of the parent
/// directory, which leaves nothing behind; opening `target` itself could make an automounter wait for this very mount.
/// Works without the lock if the directory cannot be locked, as one that its user may not read, or if another process
/// holds the lock longer than a mount takes.
pub fn claim(target: &Target) -> Option<File> {
    claim_in(target.parent().ok()?)
}

/// As [`claim`], for a mount point that cannot be opened because no process serves the mount on it.
pub fn claim_path(at: &Path) -> Option<File> {
    claim_in(File::open(at.parent()?).ok()?)
}

fn claim_in(directory: File) -> Option<File> {
    let begun = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Some(directory),
            Err(TryLockError::WouldBlock) if begun.elapsed() < CLAIMED_WITHIN => std::thread::sleep(CLAIM_AGAIN),
            Err(error) => {
                tracing::debug!(%error, "cannot lock the mount point");
                return None;
            }
        }
    }
}

/// The kernel gives FUSE 128 KiB of read-ahead, little for cached files; root may raise it. A page fault of a mapped
/// file that is not cached waits for as much around it, so more would fetch bytes at start-up that are never read.
fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB) {
        tracing::debug!(path, %error, "cannot raise the kernel's read-ahead");
    }
}

const READ_AHEAD_KIB: &str = "512";
const CLAIMED_WITHIN: Duration = Duration::from_secs(5);
const CLAIM_AGAIN: Duration = Duration::from_millis(5);
const MAX_BACKGROUND: u16 = 1024;
