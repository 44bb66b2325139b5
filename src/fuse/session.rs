//! Mounting and unmounting.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, MountOption, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::device::Device;
use super::mounts::MountPoint;
use super::serve::{Handler, Service};
use super::through::{self, Passthrough, Through};
use super::{Adapter, mounts, wire};
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
    /// Idle CPUs are not kept awake while requests come in quick succession.
    pub let_cpus_sleep: bool,
    /// The kernel reads large files by itself, from the cache.
    pub passthrough: Option<Arc<Passthrough>>,
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

/// A mounted image, being served. Dropping it unmounts.
pub struct Mounted {
    service: Service,
    place: MountPlace,
    device: Arc<Device>,
    adapter: Arc<Adapter>,
    can_be_taken_over: bool,
    /// Not there in a process that has taken the mount over.
    _ends: Option<Ends>,
}

/// Unmounts when dropped, and before fuser does: that one leaves a mount behind that is busy, if only for as long as a
/// program is being started that has yet to close what it inherits.
struct Ends {
    place: MountPlace,
    _session: Session<Terms>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Err(error) = self.place.take_away() {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
        }
    }
}

/// Where an image is mounted: the path, and the kernel's number for this very mount.
#[derive(Clone, Debug)]
pub struct MountPlace {
    at: PathBuf,
    device: Option<String>,
    /// What the kernel knows its nodes by, besides their numbers.
    generation: u32,
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
/// [`MountError`]
pub fn mount(fs: Arc<ImageFs>, at: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let refused = |cause| MountError::Refused { at: at.to_owned(), cause };
    let mut config = Config::default();
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
    let agreed = Arc::new(Agreed::default());
    let terms = Terms { passthrough: options.passthrough.is_some(), agreed: Arc::clone(&agreed) };
    // Between the two looks at what is mounted there, nobody else mounts: the uppermost one is this one.
    let claimed = claim(at);
    if let Some(taken) = mounts::at(at).filter(MountPoint::is_peelfs) {
        return Err(MountError::Taken { at: at.to_owned(), reference: taken.source });
    }
    let session = Session::new(terms, at, &config).map_err(refused)?;
    let device = mounts::at(at).map(|mount| mount.device);
    drop(claimed);
    if let Some(device) = &device {
        raise_read_ahead(device);
    }
    let place = MountPlace { at: at.to_owned(), device, generation: fs.identity().generation() };
    let device = Arc::new(Device::new(session.as_fd().try_clone_to_owned().map_err(refused)?));
    let through = match &options.passthrough {
        Some(_) if !agreed.passthrough.load(Ordering::Acquire) => return Err(MountError::NoPassthrough),
        Some(passthrough) => {
            through::try_out(&device, &passthrough.trial).map_err(MountError::RefusedPassthrough)?;
            Some(Through::new(Arc::clone(&device), passthrough).map_err(refused)?)
        }
        None => None,
    };
    let adapter = Arc::new(Adapter::new(fs, place.generation, tokio::runtime::Handle::current(), through));
    let handler = Arc::clone(&adapter) as Arc<dyn Handler>;
    let service = Service::start(&device, &handler, options.let_cpus_sleep).map_err(refused)?;
    take_back(&adapter.fs, &device, &service);
    let can_be_taken_over = agreed.resends.load(Ordering::Acquire);
    let ends = Some(Ends { place: place.clone(), _session: session });
    Ok(Mounted { service, place, device, adapter, can_be_taken_over, _ends: ends })
}

/// Goes on serving a mount whose process is gone: `connection` is what [`Mounted::connection`] gave, and `fs`
/// must show the same image; `opens` is [`Passthrough::opens`], if the mount began with that, and `let_cpus_sleep` as in
/// [`MountOptions`]. Requests which that process had not answered are answered now; whoever waits notices nothing.
///
/// # Errors
/// [`MountError::Refused`] when the kernel cannot send requests again (before Linux 6.9).
pub fn take_over(
    connection: OwnedFd,
    fs: Arc<ImageFs>,
    place: MountPlace,
    opens: Option<File>,
    let_cpus_sleep: bool,
) -> Result<Mounted, MountError> {
    let refused = |cause| MountError::Refused { at: place.at.clone(), cause };
    let device = Arc::new(Device::new(connection));
    let through = opens.map(|opens| Through::go_on(Arc::clone(&device), opens));
    let through = through.transpose().map_err(refused)?;
    let adapter = Arc::new(Adapter::new(fs, place.generation, tokio::runtime::Handle::current(), through));
    // Before anything is received: what this process has received already would be sent to it again, and a RELEASE
    // must not count twice.
    match device.resend() {
        // Unmounted meanwhile; the service finds out, too.
        Ok(()) | Err(Errno::NODEV) => {}
        Err(errno) => return Err(refused(errno.into())),
    }
    let handler = Arc::clone(&adapter) as Arc<dyn Handler>;
    let service = Service::start(&device, &handler, let_cpus_sleep).map_err(refused)?;
    take_back(&adapter.fs, &device, &service);
    Ok(Mounted { service, place, device, adapter, can_be_taken_over: true, _ends: None })
}

/// While the mount lives, what was shown before it was verified and turns out wrong is taken back: the kernel forgets it
/// and asks again, for an error.
fn take_back(fs: &Arc<ImageFs>, device: &Arc<Device>, service: &Service) {
    let (fs, device, mut gone) = (Arc::clone(fs), Arc::clone(device), service.gone());
    tokio::spawn(async move {
        loop {
            let nodes = tokio::select! {
                _ = gone.wait_for(|gone| *gone) => return,
                nodes = fs.disowned() => nodes,
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

    /// Whether it is unmounted and its last file closed.
    pub fn is_gone(&self) -> bool {
        *self.service.gone().borrow()
    }

    /// Returns when it is unmounted and its last file closed.
    pub fn gone(&self) -> impl Future<Output = ()> + use<> {
        let mut gone = self.service.gone();
        async move {
            // Threads that nobody knows any more have ended.
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

impl MountPlace {
    /// A mount at `at`, by the kernel's number for it (`MAJOR:MINOR`) and the generation of its nodes.
    pub fn new(at: PathBuf, device: Option<String>, generation: u32) -> Self {
        Self { at, device, generation }
    }

    /// What the kernel knows its nodes by, besides their numbers.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The kernel's number for it.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// The mount point.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Whether this very mount is still there.
    pub fn is_mounted(&self) -> bool {
        self.device.is_some() && mounts::at(&self.at).map(|mount| mount.device) == self.device
    }

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

    /// Takes the mount away; one that is busy stays readable to who has files open.
    ///
    /// # Errors
    /// [`UnmountError`]
    pub fn take_away(&self) -> Result<(), UnmountError> {
        self.unmount(OpenFiles::Refuse).or_else(|_| self.unmount(OpenFiles::Keep))
    }
}

/// Keeps other processes of peelfs, whoever's they are, from mounting on `at` until it is dropped: a lock of the
/// directory that holds it, which leaves nothing behind; to open `at` itself could make an automounter wait for this
/// very mount. A directory that cannot be locked, as one that its user may not read, is done without; so is a lock that
/// somebody else holds for longer than a mount takes.
fn claim(at: &Path) -> Option<File> {
    let directory = File::open(at.parent()?).ok()?;
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

/// The kernel offers FUSE 128 KiB of read-ahead, little for files that are here; root may raise it. A page of a mapped
/// file that is not here waits for as much around it, so more would cost a start bytes that nobody reads.
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
