//! Images that are mounted: the lower directories of overlays.
//!
//! ```text
//! lowers/CHAIN/fuse/fs      by a process, which outlives this one (see `peelfs::host`)
//! lowers/CHAIN/kernel/fs    by the kernel itself, once all of the image is cached
//! ```
//! There is one mount for each chain of layers, shared by all containers on it. It has its own directory, since engines
//! map the owners of everything mounted beside a lower directory. The kernel's table of mounts is the only record: a
//! restarted process reads it.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use peelfs::digest::Digest;
use peelfs::fuse::mounts::{self, MountPoint};
use peelfs::fuse::{MountPlace, OpenFiles, unmount_with_cover};
use peelfs::host::error::HostError;
use peelfs::host::kernel::{self, KernelError, Outcome};
use peelfs::host::report::{Code, Report};
use peelfs::host::spec::{ImageSpec, KernelOptions, MountSpec, Policy};
use peelfs::host::{Silent, background};
use peelfs::image::Verify;

use crate::config::Config;
use crate::images::Images;
use crate::records::Remote;
use crate::root::LOWERS;

/// The mounts of a snapshotter.
pub(crate) struct Lowers {
    root: PathBuf,
    config: Arc<Config>,
    images: Arc<Images>,
    /// By chain.
    state: Mutex<HashMap<Digest, Arc<State>>>,
    /// Served by a process until the kernel mounts them; by chain.
    watched: Mutex<HashMap<Digest, Watched>>,
}

/// The state of a chain, besides its mounts.
#[derive(Default)]
struct State {
    mounting: Mutex<()>,
    /// When the kernel mount was made.
    upgraded: Mutex<Option<Instant>>,
}

/// An image that is checked again later.
struct Watched {
    remote: Remote,
    next: Instant,
    wait: Duration,
}

/// Whether an image may get a kernel mount later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Later {
    Maybe,
    Never,
}

impl State {
    fn upgraded(&self) {
        *lock(&self.upgraded) = Some(Instant::now());
    }
}

impl Lowers {
    pub(crate) fn new(root: &Path, config: Arc<Config>, images: Arc<Images>) -> Self {
        Self { root: root.join(LOWERS), config, images, state: Mutex::default(), watched: Mutex::default() }
    }

    /// The directory of the layers of `remote`, mounted if needed. Blocks.
    ///
    /// # Errors
    /// [`Report`]
    pub(crate) fn directory(&self, remote: &Remote) -> Result<PathBuf, Report> {
        let state = self.state(&remote.chain);
        let _mounting = lock(&state.mounting);
        for form in [Form::Kernel, Form::Fuse] {
            let path = self.path(&remote.chain, form);
            match mounted(&path) {
                Some(mount) if mount.is_shown_by_kernel() => return Ok(path),
                Some(_) if mounts::is_served(&path) => {
                    // It may be from an earlier snapshotter process.
                    self.watch(remote);
                    return Ok(path);
                }
                Some(mount) => {
                    tracing::warn!(at = %path.display(), "the process that served an image is gone; mounting it again");
                    unmount_with_cover(&mount, OpenFiles::Keep).map_err(HostError::from)?;
                }
                None => {}
            }
        }
        self.mount(remote)
    }

    fn mount(&self, remote: &Remote) -> Result<PathBuf, Report> {
        self.images.restore(&remote.manifest);
        if self.config.kernel
            && let Ok(path) = self.by_kernel(remote)
        {
            return Ok(path);
        }
        let spec = self.spec(remote, Form::Fuse)?;
        let begun = Instant::now();
        let mounted = match background::mount_shared(&spec, &mut Silent) {
            // The process of the other images was started with other limits.
            Err(HostError::Reported(report)) if report.code == Code::Usage => {
                tracing::warn!(why = report.message, "this image gets its own process");
                background::mount(&spec, background::Keeper::Process, &mut Silent)
            }
            mounted => mounted,
        };
        mounted?;
        tracing::info!(chain = %remote.chain, reference = remote.reference, took = ?begun.elapsed(), "mounted");
        self.watch(remote);
        Ok(spec.at)
    }

    /// Makes a kernel mount; on failure returns the reason, and whether it may work later.
    fn by_kernel(&self, remote: &Remote) -> Result<PathBuf, (String, Later)> {
        let never = |error: Report| (error.message, Later::Never);
        let spec = self.spec(remote, Form::Kernel).map_err(never)?;
        match kernel::mount_if_whole(&spec).map_err(|error| never(error.into()))? {
            Outcome::Mounted => {}
            Outcome::Not(why @ KernelError::NotWhole) => return Err((why.to_string(), Later::Maybe)),
            Outcome::Not(why) => return Err((why.to_string(), Later::Never)),
        }
        self.state(&remote.chain).upgraded();
        Ok(spec.at)
    }

    /// A process serves the image: once all of it is cached, later containers get a kernel mount.
    fn watch(&self, remote: &Remote) {
        if self.config.kernel {
            let watched = || Watched { remote: remote.clone(), next: Instant::now() + FIRST_LOOK, wait: FIRST_LOOK };
            lock(&self.watched).entry(remote.chain.clone()).or_insert_with(watched);
        }
    }

    /// A container of the image has ended: more of it may be cached now.
    pub(crate) fn look_soon(&self, remote: &Remote) {
        if let Some(watched) = lock(&self.watched).get_mut(&remote.chain) {
            watched.next = Instant::now();
        }
    }

    /// Checks the images that are due, and makes kernel mounts where possible. Blocks.
    pub(crate) fn upgrade(&self) {
        let due: Vec<_> = {
            let watched = lock(&self.watched);
            let due = watched.values().filter(|watched| watched.next <= Instant::now());
            due.map(|watched| watched.remote.clone()).collect()
        };
        for remote in due {
            let is_served = mounted(&self.path(&remote.chain, Form::Fuse)).is_some();
            let is_done = mounted(&self.path(&remote.chain, Form::Kernel)).is_some();
            let later = if !is_served || is_done {
                Later::Never
            } else {
                match self.by_kernel(&remote) {
                    Ok(_) => Later::Never,
                    Err((why, later)) => {
                        tracing::debug!(chain = %remote.chain, why, "served by a process");
                        later
                    }
                }
            };
            let mut watched = lock(&self.watched);
            match (later, watched.get_mut(&remote.chain)) {
                (Later::Maybe, Some(watched)) => {
                    watched.wait = (watched.wait * 2).min(LAST_LOOK);
                    watched.next = Instant::now() + watched.wait;
                }
                _ => drop(watched.remove(&remote.chain)),
            }
        }
    }

    /// Unmounts what no snapshot needs any more. Blocks.
    pub(crate) fn sweep(&self, is_used: impl Fn(&str) -> bool) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(hex) = name.to_str() else { continue };
            let state = {
                let states = lock(&self.state);
                states.iter().find(|(chain, _)| chain.hex() == hex).map(|(_, state)| Arc::clone(state))
            };
            let upgraded = state.as_ref().and_then(|state| *lock(&state.upgraded));
            // It is being mounted, so it is in use.
            let mounting = state.as_ref().map(|state| state.mounting.try_lock());
            if matches!(mounting, Some(Err(TryLockError::WouldBlock))) {
                continue;
            }
            if !is_used(hex) {
                let forms = [Form::Kernel, Form::Fuse].map(|form| self.of(hex, form));
                if forms.iter().all(|path| take_away(path)) {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            // After a kernel mount, an answer that names the old directory may be in flight.
            } else if mounted(&self.of(hex, Form::Kernel)).is_some()
                && upgraded.is_none_or(|when| when.elapsed() > ANSWERED_WITHIN)
            {
                take_away(&self.of(hex, Form::Fuse));
            }
        }
        let mut state = lock(&self.state);
        state.retain(|chain, state| Arc::strong_count(state) > 1 || self.root.join(chain.hex()).exists());
    }

    fn spec(&self, remote: &Remote, form: Form) -> Result<MountSpec, Report> {
        let at = self.path(&remote.chain, form);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&at);
        made.map_err(|cause| HostError::RunState { path: at.clone(), cause })?;
        let reference: peelfs::reference::Reference = remote.reference.parse()?;
        let image = self.images.spec(reference.pinned(&remote.manifest));
        let up_to = NonZeroU16::new(remote.layers).filter(|_| remote.layers < remote.of);
        let verify = if self.config.verify_behind { Verify::Behind } else { Verify::BeforeShowing };
        let spec = MountSpec::new(ImageSpec { up_to, ..image }, at);
        // As an engine's root file system: protection is set in the container's configuration.
        let kernel = KernelOptions { suid: true, dev: true, allow_other: true, ..KernelOptions::default() };
        Ok(MountSpec { kernel, policy: Policy { verify, ..spec.policy }, ..spec })
    }

    fn state(&self, chain: &Digest) -> Arc<State> {
        Arc::clone(lock(&self.state).entry(chain.clone()).or_default())
    }

    fn path(&self, chain: &Digest, form: Form) -> PathBuf {
        self.of(chain.hex(), form)
    }

    fn of(&self, hex: &str, form: Form) -> PathBuf {
        let form = match form {
            Form::Fuse => "fuse",
            Form::Kernel => "kernel",
        };
        self.root.join(hex).join(form).join("fs")
    }
}

/// The form of a mount.
#[derive(Clone, Copy, Debug)]
enum Form {
    Fuse,
    Kernel,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mounted(path: &Path) -> Option<MountPoint> {
    mounts::at(path).filter(MountPoint::is_peelfs)
}

/// Unmounts it; overlays on it keep it alive.
fn take_away(path: &Path) -> bool {
    while let Some(mount) = mounted(path) {
        if let Err(error) = MountPlace::of(&mount).take_away() {
            tracing::warn!(error = peelfs::image::chain(&error), "cannot unmount an unused image");
            return false;
        }
    }
    true
}

/// Time limit for containerd to mount what it got in an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// Interval of checks of an image that a process serves; doubled each time.
const FIRST_LOOK: Duration = Duration::from_secs(2);
const LAST_LOOK: Duration = Duration::from_secs(300);
