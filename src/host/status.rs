//! The published state of a mount: a file that names its process, and a socket for its status.
//!
//! Both are in a directory that only the user can enter: `$XDG_RUNTIME_DIR/peelfs`, else `run` in the user's cache
//! directory. The mount's `--cache-dir` is not used: `peelfs status` is run without it. A file whose process is gone is
//! removed by the next scan of the directory.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::activity::{self, Activity, ActivityError, Tell};
use super::channel;
use super::error::HostError;
use super::handover::{self, Handover, KeeperId};
use super::image_store::{self, StoreHandover};
use super::open::{self, Opened};
use super::process::{self, is_running};
use super::spec::Passthrough;
use super::supervisor::Supervisor;
use crate::erofs::Files;
use crate::fuse::mounts::{self, MountPoint};
use crate::image::{ImageFs, LayerStatus};
use crate::source::BlobSource;
use crate::source::outage::{Outages, WaitStatus};
use crate::source::registry::{HostStatus, RegistrySource};
use crate::store::{NotKept, is_verified_by_kernel};

/// The process that serves a mount.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct MountState {
    /// The mount point.
    pub at: PathBuf,
    /// The device number of its file system, which identifies a mount that was moved.
    #[serde(default)]
    pub device: Option<String>,
    /// As typed by the user.
    pub reference: String,
    /// The manifest's digest.
    pub manifest: String,
    /// The only layer that is shown.
    #[serde(default)]
    pub layer: Option<ShownLayer>,
    /// The process.
    pub pid: u32,
    /// Seconds since 1970.
    pub since: u64,
    /// The log file; none in the foreground.
    pub log: Option<PathBuf>,
    /// The cache it uses.
    pub cache: PathBuf,
    /// The keeper, and its socket for upgrade requests.
    #[serde(default)]
    pub keeper: Option<KeeperId>,
    /// A service manager acts as the keeper.
    #[serde(default)]
    pub service: bool,
    /// How often the mount was taken over.
    #[serde(default)]
    pub takeovers: u32,
    /// The process serves other mounts, too.
    #[serde(default)]
    pub shared: bool,
    /// Why a process serves it although a kernel mount was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_fuse: Option<String>,
    /// The kernel reads large files directly.
    #[serde(default)]
    pub passthrough: bool,
    /// It is an image store.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub store: bool,
    /// Where its metrics are, over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// The socket for questions, of the versioned wire.
    #[serde(default)]
    questions: Option<PathBuf>,
    /// The socket for status requests.
    socket: PathBuf,
}

/// The only layer of an image that is shown.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ShownLayer {
    /// Its number; the lowest is 1.
    pub number: usize,
    /// How many the image has.
    pub count: usize,
    /// Its blob.
    pub digest: String,
}

/// A kernel mount made by this session.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KernelMount {
    /// The device number of its file system.
    device: String,
    /// The number of the mount. Another one gets it, and the device's, once this is unmounted.
    id: u64,
    /// Where it was mounted.
    #[serde(default)]
    path: Option<PathBuf>,
    /// The number of the mount that no other gets (Linux 6.8).
    #[serde(default)]
    unique_id: Option<u64>,
    /// The manifest's digest.
    pub manifest: String,
    /// Seconds since 1970.
    pub since: u64,
    /// The cache it was made from.
    pub cache: PathBuf,
    /// How many layers' files the kernel has.
    #[serde(default)]
    pub layers: Option<usize>,
    /// Bytes of these files, and of the image over them, which are given back at the unmount at the latest.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Whether the kernel verifies what it reads of all of them (fs-verity).
    #[serde(default)]
    pub fs_verity: Option<bool>,
    /// Why it does not.
    #[serde(default)]
    pub no_fs_verity: Option<String>,
}

/// The current status of a mount.
#[derive(Debug, Deserialize, Serialize)]
pub struct Health {
    /// How many images an image store shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Bytes of all layers' blobs.
    pub image_bytes: u64,
    /// Bytes received from the registry since the mount began.
    pub received_bytes: u64,
    /// Requests made to the registry since the mount began.
    pub requests: u64,
    /// The mirrors of the registry, and the registry itself as the last; empty if there are no mirrors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostStatus>,
    /// Requests to the registry that keep failing, the longest first.
    pub waiting: Vec<WaitStatus>,
    /// Its last refusal, unless a request has succeeded since.
    pub refused: Option<String>,
    /// What the cache cannot keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<NotKept>,
    /// Why no index of its layers that others have pushed is used, if it is the same for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_pushed_index: Option<String>,
    /// The state of each layer, base first.
    pub layers: Vec<LayerStatus>,
}

/// The files of a mount that is being served; removed when dropped, the log only if it is empty.
pub struct Published {
    file: PathBuf,
    socket: PathBuf,
    questions: PathBuf,
    /// What answers at the sockets.
    answering: Vec<AbortHandle>,
    /// A log that no other mount writes to.
    log: Option<PathBuf>,
}

/// The directory of published state.
///
/// Logs are written there and its files are trusted, so a directory that another user could write to or replace is
/// refused. A runtime directory of another user, as one kept over `su`, counts as none (XDG base directory
/// specification).
///
/// # Errors
/// [`HostError::UnsafeDirectory`]
pub fn directory() -> Result<PathBuf, HostError> {
    let own = rustix::process::geteuid().as_raw();
    let of_session = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|runtime| runtime.is_absolute() && std::fs::metadata(runtime).map_or(true, |found| found.uid() == own));
    let path = match of_session {
        Some(runtime) => runtime.join("peelfs"),
        None => open::default_cache_dir()?.join("run"),
    };
    let safe = match std::fs::symlink_metadata(&path) {
        Ok(found) => found.is_dir() && found.uid() == own && found.mode() & 0o022 == 0,
        Err(_) => true,
    };
    if !safe {
        return Err(HostError::UnsafeDirectory { path });
    }
    match path.parent().map(|above| (above, std::fs::metadata(above))) {
        Some((above, Ok(found))) if !keeps_names(&found, own) => {
            Err(HostError::UnsafeDirectory { path: above.to_owned() })
        }
        _ => Ok(path),
    }
}

/// Whether other users, root excepted, cannot rename or replace the entry `own` of a directory.
fn keeps_names(directory: &std::fs::Metadata, own: u32) -> bool {
    let (owner, mode) = (directory.uid(), directory.mode());
    (owner == own || owner == 0) && (mode & 0o022 == 0 || mode & 0o1000 != 0)
}

/// [`directory`], created if it is missing, and closed to others if it is open to them.
///
/// # Errors
/// [`HostError`]
pub fn make_directory() -> Result<PathBuf, HostError> {
    let path = directory()?;
    let make = || -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let mode = std::fs::symlink_metadata(&path)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
            tracing::warn!(path = %path.display(), "changed the mode of a directory from {mode:o} to 700, as other users could enter it");
        }
        Ok(())
    };
    match make() {
        Ok(()) => Ok(path),
        Err(cause) => Err(HostError::RunState { path, cause }),
    }
}

/// Publishes a mount, and answers status requests, until dropped. The mount works without: failures are only logged.
pub(super) fn publish(
    state: MountState,
    health: impl Fn() -> Health + Send + Sync + 'static,
    tell: Tell,
) -> Option<Published> {
    let published = try_publish(state, Arc::new(health), tell);
    published
        .map_err(|error| {
            tracing::warn!(error = crate::image::chain(&error), "cannot publish this mount for `peelfs status`");
        })
        .ok()
}

fn try_publish(
    mut state: MountState,
    health: Arc<dyn Fn() -> Health + Send + Sync>,
    tell: Tell,
) -> Result<Published, HostError> {
    let directory = make_directory()?;
    let failed = |path: &Path, cause| HostError::RunState { path: path.to_owned(), cause };
    let name = format!("{}-{}", state.pid, serial());
    let mut published = Published {
        file: directory.join(format!("{name}.json")),
        socket: directory.join(format!("{name}.sock")),
        questions: directory.join(format!("{name}.ask")),
        answering: Vec::new(),
        log: state.log.clone().filter(|_| !state.shared),
    };
    state.socket.clone_from(&published.socket);
    state.questions = Some(published.questions.clone());
    // Left by a process with the same number that was killed.
    let _ = std::fs::remove_file(&published.socket);
    let listener = UnixListener::bind(&published.socket).map_err(|e| failed(&published.socket, e))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&published.socket, private).map_err(|e| failed(&published.socket, e))?;
    published.answering.push(tokio::spawn(answer(listener, health)).abort_handle());
    let answering = activity::listen(&published.questions, tell).map_err(|e| failed(&published.questions, e))?;
    published.answering.push(answering);
    let text = serde_json::to_vec(&state).expect("plain data");
    let written = handover::create_private(&published.file).and_then(|mut file| file.write_all(&text));
    written.map_err(|e| failed(&published.file, e))?;
    Ok(published)
}

/// Sends the status of a mount to each process of this user that connects. One that does not read blocks no other.
async fn answer(listener: UnixListener, health: Arc<dyn Fn() -> Health + Send + Sync>) {
    let room = Arc::new(Semaphore::new(ANSWERED_AT_ONCE));
    loop {
        let Ok(room) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut asker, _)) if channel::is_trusted(&asker).unwrap_or(false) => {
                let health = serde_json::to_vec(&health()).expect("plain data");
                tokio::spawn(async move {
                    // The requester may be gone.
                    let _ = timeout(ANSWER_WITHIN, asker.write_all(&health)).await;
                    drop(room);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

impl MountState {
    /// Of a mount that this process serves.
    pub(super) fn of(handover: &Handover, opened: &Opened, supervisor: &Supervisor) -> Self {
        let kept = supervisor.keeper();
        Self {
            at: handover.place.at().to_owned(),
            device: handover.place.device().map(str::to_owned),
            reference: opened.reference.to_string(),
            manifest: handover.manifest.to_string(),
            layer: opened.layer.map(|layer| ShownLayer {
                number: usize::from(layer.0) + 1,
                count: opened.plan.layers.len(),
                digest: opened.plan.layers[usize::from(layer.0)].blob.digest.to_string(),
            }),
            pid: std::process::id(),
            since: handover.since,
            log: handover.log.clone(),
            cache: opened.store.root().to_owned(),
            keeper: kept.map(|kept| kept.keeper.clone()),
            service: matches!(supervisor, Supervisor::ServiceManager(_)),
            takeovers: handover.takeovers,
            shared: kept.is_some_and(|kept| kept.shared),
            by_fuse: handover.spec.by_fuse.clone(),
            passthrough: handover.spec.policy.passthrough == Passthrough::Always,
            store: false,
            metrics: None,
            questions: None,
            socket: PathBuf::new(),
        }
    }

    /// Of an image store that this process serves.
    pub(super) fn of_store(handover: &StoreHandover, supervisor: &Supervisor) -> Self {
        Self {
            at: handover.place.at().to_owned(),
            device: handover.place.device().map(str::to_owned),
            reference: image_store::SOURCE.to_owned(),
            manifest: String::new(),
            layer: None,
            pid: std::process::id(),
            since: handover.since,
            log: handover.log.clone(),
            cache: handover.spec.cache.dir.clone(),
            keeper: supervisor.keeper().map(|kept| kept.keeper.clone()),
            service: false,
            takeovers: handover.takeovers,
            shared: false,
            by_fuse: None,
            passthrough: false,
            store: true,
            metrics: None,
            questions: None,
            socket: PathBuf::new(),
        }
    }

    /// Whether it describes this mount.
    pub fn is_of(&self, mount: &MountPoint) -> bool {
        self.device.as_ref().map_or_else(|| self.at == mount.path, |device| *device == mount.device)
    }

    /// What it has fetched and who waits; `files` is how many files are told at most. Blocks for a short time.
    ///
    /// # Errors
    /// [`ActivityError`]
    pub fn activity(&self, files: u32) -> Result<Activity, ActivityError> {
        Activity::ask(self.questions.as_deref(), files)
    }

    /// Whether its process is stopped, as by Ctrl-Z.
    pub fn is_stopped(&self) -> bool {
        process::is_stopped(self.pid)
    }

    /// Whether the file exists: it does until the mount has released its resources.
    pub fn is_published(&self) -> bool {
        self.socket.with_extension("json").exists()
    }

    /// The mount's status; `None` if its process does not answer.
    pub fn health(&self) -> Option<Health> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        if !channel::is_trusted(&stream).ok()? {
            return None;
        }
        stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
        let mut text = Vec::new();
        (&mut stream).take(HEALTH_LIMIT).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// All mounts published in `directory`; removes files of ended processes.
pub fn all(directory: &Path) -> Vec<MountState> {
    let mut states = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => {}
            Some("keeper" | "opens" | "image") => {
                let pid = path.file_name().and_then(|name| name.to_str()?.split('.').next()?.parse().ok());
                if !pid.is_some_and(is_running) {
                    let _ = std::fs::remove_file(&path);
                }
                continue;
            }
            Some("log") => {
                remove_old_log(&path);
                continue;
            }
            _ => continue,
        }
        let Ok(text) = read_own(&path) else { continue };
        match serde_json::from_slice::<MountState>(&text) {
            Ok(state) if is_running(state.pid) => states.push(state),
            // Until it is gone, its file tells which process keeps a mount busy.
            Ok(state) if process::hangs(state.pid) => {}
            _ => drop(Published {
                socket: path.with_extension("sock"),
                questions: path.with_extension("ask"),
                file: path,
                answering: Vec::new(),
                log: None,
            }),
        }
    }
    states.sort_by_key(|state| state.since);
    states
}

/// Records a kernel mount for this session's `status` and `umount --all`. It works without, too.
pub(super) fn note_kernel_mount(mount: &MountPoint, opened: &Opened, files: &Files) {
    let size = |file: &File| file.metadata().map_or(0, |found| found.len());
    let all = || files.devices.iter().chain([&files.image]);
    let unverified = all().find_map(|file| is_verified_by_kernel(file).err());
    let noted = KernelMount {
        device: mount.device.clone(),
        id: mount.id,
        path: Some(mount.path.clone()),
        unique_id: mount.unique_id(),
        manifest: opened.plan.manifest.digest.to_string(),
        since: handover::now(),
        cache: opened.store.root().to_owned(),
        layers: Some(files.devices.len()),
        bytes: Some(all().map(size).sum()),
        fs_verity: Some(unverified.is_none()),
        no_fs_verity: unverified.map(|why| crate::image::chain(&why)),
    };
    let write = || -> Result<(), HostError> {
        let path = make_directory()?.join(format!("{}-{}.kernel", mount.device.replace(':', "-"), mount.id));
        let text = serde_json::to_vec(&noted).expect("plain data");
        let written = handover::create_private(&path).and_then(|mut file| file.write_all(&text));
        written.map_err(|cause| HostError::RunState { path, cause })
    };
    if let Err(error) = write() {
        tracing::warn!(error = crate::image::chain(&error), "cannot record this mount for `peelfs umount --all`");
    }
}

/// The kernel mounts recorded in `directory`; records of unmounted ones are removed, unless the record or the table of
/// mounts cannot be read.
pub fn kernel_mounts(directory: &Path) -> Vec<KernelMount> {
    let mounted = mounts::all();
    let mut known = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "kernel") {
            continue;
        }
        let Ok(text) = read_own(&path) else { continue };
        let noted = serde_json::from_slice::<KernelMount>(&text).ok();
        match noted.filter(|noted| mounted.iter().any(|mount| noted.is_of(mount))) {
            Some(noted) => known.push(noted),
            None if mounted.is_empty() => {}
            None => drop(std::fs::remove_file(&path)),
        }
    }
    known
}

impl KernelMount {
    /// Whether it describes this mount.
    pub fn is_of(&self, mount: &MountPoint) -> bool {
        // One that was moved is where it was not mounted; nothing can be asked of one that another covers.
        mount.is_shown_by_kernel()
            && mount.device == self.device
            && mount.id == self.id
            && (self.path.as_ref().is_none_or(|path| *path == mount.path)
                || self.unique_id.is_some_and(|id| mount.unique_id() == Some(id)))
    }
}

/// A killed process that serves this mount and hangs: it serves no more, and blocks a successor.
pub fn hanging_server(directory: &Path, mount: &MountPoint) -> Option<u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let states = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut states = states.filter_map(|path| serde_json::from_slice::<MountState>(&read_own(&path).ok()?).ok());
    states.find(|state| state.is_of(mount) && process::hangs(state.pid)).map(|state| state.pid)
}

/// A file that this user has written.
fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(OPEN_PLAIN).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut text = Vec::new();
    file.take(STATE_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

/// Removes an empty log, unless the user named it.
pub fn remove_empty_log(log: &Path) {
    let own = directory().is_ok_and(|directory| log.parent() == Some(&directory));
    if own && std::fs::symlink_metadata(log).is_ok_and(|found| found.len() == 0) {
        let _ = std::fs::remove_file(log);
    }
}

/// Removes the log of an ended process once it is old.
fn remove_old_log(log: &Path) {
    let Some(pid) = log.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else { return };
    let written = std::fs::symlink_metadata(log).and_then(|found| found.modified());
    let is_old = written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > LOGS_STAY));
    if is_old && !is_running(pid) {
        let _ = std::fs::remove_file(log);
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.answering.iter().for_each(AbortHandle::abort);
        // Leftovers are also removed by the next scan of the directory.
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(&self.questions);
        self.log.iter().for_each(|log| remove_empty_log(log));
    }
}

impl Health {
    /// Of an image.
    pub(super) fn of(fs: &ImageFs, registry: Option<&RegistrySource>) -> Self {
        let stats = registry.map(RegistrySource::stats).unwrap_or_default();
        let outages = registry.and_then(BlobSource::outages);
        Self {
            images: None,
            image_bytes: fs.size(),
            received_bytes: stats.bytes_received,
            requests: stats.requests,
            hosts: registry.map(RegistrySource::hosts).filter(|hosts| hosts.len() > 1).unwrap_or_default(),
            waiting: outages.map(Outages::status).unwrap_or_default(),
            refused: outages.and_then(Outages::refusal),
            not_kept: fs.not_kept(),
            no_pushed_index: fs.no_pushed_index().map(ToOwned::to_owned),
            layers: fs.layer_status(),
        }
    }
}

/// A number that no other mount of the process has.
fn serial() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Open neither a symlink nor anything that would block.
const OPEN_PLAIN: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;
/// A bound in bytes; state files are smaller.
const STATE_LIMIT: u64 = 1 << 20;
/// Limit of connections answered at the same time; further ones wait.
const ANSWERED_AT_ONCE: usize = 64;
const BREATH: Duration = Duration::from_millis(50);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Logs of ended processes are kept for a week.
const LOGS_STAY: Duration = Duration::from_secs(7 * 24 * 3600);
const HEALTH_LIMIT: u64 = 16 << 20;
