//! A mount's life in one process: from the terms that are agreed upon with the kernel to its end.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Session, SessionACL};
use rustix::io::Errno;

use super::attach::{self, Attached, Target};
use super::device::Device;
use super::nodes::View;
use super::place::MountPlace;
use super::serve::{Handler, Service};
use super::through::{self, Passthrough, Through};
use super::{Adapter, mounts, wire};
use crate::image::Tree;

/// How a tree is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// What `mount` and `df` show as the source; the reference.
    pub source: String,
    /// Other users may enter.
    pub allow_other: bool,
    /// Root may enter, besides the user who mounts.
    pub allow_root: bool,
    /// Set-user-id programs of the image work.
    pub suid: bool,
    /// Device nodes of the image work.
    pub dev: bool,
    /// Programs of the image do not run.
    pub noexec: bool,
    /// Idle CPUs are not kept awake while requests come in quick succession.
    pub let_cpus_sleep: bool,
    /// The kernel reads large files by itself, from the cache.
    pub passthrough: Option<Arc<Passthrough>>,
    /// A request by a thread of the serving process itself is an error: whatever it wants to know there, as of a cache
    /// that the mount covers, the answer would wait for the one who asks.
    pub refuse_own_requests: bool,
}

impl MountOptions {
    /// Whether the kernel lets other users in.
    pub(super) fn lets_others_in(&self) -> bool {
        self.allow_other || self.private_to().is_some()
    }

    /// The user who may enter besides root, where the kernel lets in all users.
    fn private_to(&self) -> Option<u32> {
        private_to(self.allow_root && !self.allow_other)
    }
}

/// As in libfuse, root is let in by letting all users in and refusing others. A mount of root itself is open to root
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
    /// Its path has come to lead elsewhere since it was opened.
    #[error("cannot mount on `{}`: the directory was moved or replaced meanwhile", at.display())]
    Moved {
        /// The mount point.
        at: PathBuf,
    },
    /// It is not there, or not a directory.
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
    /// The kernel does not do passthrough at all.
    #[error("this kernel has no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)")]
    NoPassthrough,
    /// The kernel does not take files of the cache for passthrough.
    #[error("the kernel refuses passthrough")]
    RefusedPassthrough(#[source] io::Error),
}

/// A mounted tree, being served. Dropping it unmounts.
pub struct Mounted {
    service: Service,
    place: MountPlace,
    device: Arc<Device>,
    adapter: Arc<Adapter>,
    can_be_taken_over: bool,
    /// Not there in a process that has taken the mount over.
    _ends: Option<Ends>,
}

/// Unmounts when dropped. Holds the connection until then: by that the mount is known.
struct Ends(MountPlace, Arc<Device>);

impl Drop for Ends {
    fn drop(&mut self) {
        // Else it is gone, and its numbers may be those of another one.
        if self.1.is_alive()
            && let Err(error) = self.0.take_away()
        {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
        }
    }
}

/// Mounts `tree` on the directory `target`. Must be called within a tokio runtime, which serves what waits.
///
/// # Errors
/// [`MountError`]
pub fn mount(tree: Arc<dyn Tree>, target: &Target, options: &MountOptions) -> Result<Mounted, MountError> {
    let at = || target.path().to_owned();
    let refused = |cause| MountError::Refused { at: at(), cause };
    // Between the two looks at what is mounted there, no other process mounts: the uppermost one is this one.
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
    // Whatever was mounted is taken away again, or is dead as soon as the connection is closed.
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

/// Goes on serving a mount whose process is gone: `connection` is what [`Mounted::connection`] gave, and `tree`
/// must show the same; `opens` is [`Passthrough::opens`], if the mount began with that, and `let_cpus_sleep` and `allow_root`
/// as in [`MountOptions`]. Requests which that process had not answered are answered now; readers that wait notice nothing.
///
/// # Errors
/// [`MountError::Refused`] when the kernel cannot send requests again (before Linux 6.9).
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
    // Before anything is received: what this process has received already would be sent to it again, and a RELEASE
    // must not count twice.
    match device.resend() {
        // Unmounted meanwhile; the service finds out, too.
        Ok(()) | Err(Errno::NODEV) => {}
        Err(errno) => return Err(refused(errno.into())),
    }
    let handler = Arc::clone(&adapter) as Arc<dyn Handler>;
    let service = Service::start(&device, &handler, let_cpus_sleep, true).map_err(refused)?;
    take_back(&adapter.tree, &device, &service);
    Ok(Mounted { service, place, device, adapter, can_be_taken_over: true, _ends: None })
}

/// While the mount lives, what was shown before it was verified and turns out wrong is taken back: the kernel forgets it
/// and asks again, for an error.
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

/// What is agreed upon with the kernel when a connection begins; fuser asks for it and does no more.
struct Terms {
    /// Whether large files are to be read by the kernel. Files have to be opened then.
    passthrough: bool,
    agreed: Arc<Agreed>,
}

#[derive(Default)]
struct Agreed {
    /// The kernel can send again what a process that is gone has left unanswered.
    resends: AtomicBool,
    /// It reads large files by itself.
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
            // File handles outlive what the kernel remembers of their files.
            InitFlags::FUSE_EXPORT_SUPPORT,
            // Clones of the mount can show other owners (Linux 6.12). With this the kernel refuses a mount on which it
            // does not check permissions itself, and says of some requests not who asks; nothing here looks at that.
            InitFlags::FUSE_ALLOW_IDMAP,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel does not offer a FUSE feature; going on without it");
            }
        }
        let offered = |flag| config.capabilities().contains(flag);
        self.agreed.resends.store(offered(InitFlags::FUSE_HAS_RESEND), Ordering::Release);
        self.agreed.passthrough.store(self.passthrough && offered(InitFlags::FUSE_PASSTHROUGH), Ordering::Release);
        // Backing files lie on no stacked file system; so this one can be a lower layer of an overlay.
        if self.passthrough && config.set_max_stack_depth(1).is_err() {
            tracing::debug!("the kernel does not take the depth of a stack of file systems");
        }
        // How many read-aheads may wait at once. From three quarters of them on the kernel reads nothing ahead, not
        // even what is cached, and asks for single pages. Both values are within its own bounds.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(wire::MAX_WRITE);
        Ok(())
    }
}

impl Mounted {
    /// Where it is mounted.
    pub fn place(&self) -> MountPlace {
        self.place.clone()
    }

    /// The connection to the kernel, if another process could go on with it ([`take_over`]).
    pub fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.can_be_taken_over.then(|| self.device.as_fd())
    }

    /// What ends its connection where nothing else does.
    pub fn disconnect(&self) -> Disconnect {
        let received = self.service.received();
        Disconnect { place: self.place.clone(), device: Arc::downgrade(&self.device), received }
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
    /// What ended the session, if not an unmount.
    pub async fn served(self) -> io::Result<()> {
        let served = self.service.ended().await;
        self.adapter.end();
        served
    }
}

/// What ends a mount's connection to the kernel where threads that hang keep it from ending by itself. It keeps nothing
/// alive.
#[derive(Clone, Debug)]
pub struct Disconnect {
    place: MountPlace,
    device: Weak<Device>,
    received: Arc<AtomicU64>,
}

impl Disconnect {
    /// Whether there still is a connection.
    pub fn is_alive(&self) -> bool {
        self.device.upgrade().is_some_and(|device| device.is_alive())
    }

    /// How many requests have been received, if more wait to be: the same number twice means that no thread takes them.
    pub fn stands_at(&self) -> Option<u64> {
        let waits = self.device.upgrade().is_some_and(|device| device.has_more());
        waits.then(|| self.received.load(Ordering::Relaxed))
    }

    /// Ends it now, and the mount; every request fails that waits for an answer.
    pub fn abort(&self) {
        if self.is_alive()
            && let Err(error) = self.place.abort()
        {
            tracing::error!(%error, at = %self.place.at().display(), "cannot end the connection of a mount");
        }
    }
}

/// Keeps other processes of peelfs, of any user, from mounting on `target` until it is dropped: a lock of the
/// directory that holds it, which leaves nothing behind; to open `target` itself could make an automounter wait for this
/// very mount. A directory that cannot be locked, as one that its user may not read, is done without; so is a lock that
/// another process holds for longer than a mount takes.
pub fn claim(target: &Target) -> Option<File> {
    let directory = target.parent().ok()?;
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

/// The kernel offers FUSE 128 KiB of read-ahead, little for files that are here; root may raise it. A page of a mapped
/// file that is not here waits for as much around it, so more would cost a start bytes that are never read.
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
