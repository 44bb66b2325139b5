//! Into the background: the command returns when the mount answers, other processes keep serving it.
//!
//! A process with threads cannot fork, so the keeper is another start of this program, made before any thread runs,
//! with one end of a channel as its stdin. Over that it is told what to mount, and says how far the first passes are,
//! that the mount is ready, or why it is not.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Progress;
use super::channel::{Channel, ChannelError};
use super::error::HostError;
use super::requests;
use super::room;
use super::spec::MountSpec;
use super::status;
use super::wire;
use super::wire::v1::{Request, Word};
use crate::digest::{Algorithm, Digest};

/// Whether a keeper takes the mount over when the process that serves it dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keeper {
    /// One does.
    Process,
    /// The mount ends with the process that serves it.
    None,
}

/// Mounts by processes of its own; returns when the mount is ready.
///
/// # Errors
/// [`HostError`]; nothing is mounted then.
pub fn mount(spec: &MountSpec, kept_by: Keeper, progress: &mut dyn Progress) -> Result<(), HostError> {
    mount_in(spec, kept_by, None, progress)
}

/// As [`mount`], by processes in this control group, which is made if it is missing. They go on when those of the caller's
/// own are ended.
///
/// # Errors
/// [`HostError`]; nothing is mounted then.
pub fn mount_in(
    spec: &MountSpec,
    kept_by: Keeper,
    cgroup: Option<&Path>,
    progress: &mut dyn Progress,
) -> Result<(), HostError> {
    let role = match kept_by {
        Keeper::Process => KEEPER,
        Keeper::None => ALONE,
    };
    let (mut child, channel) = start(role, None, cgroup)?;
    let told = ask(&channel, spec, progress);
    drop(channel);
    match told {
        Ok(true) => Ok(()),
        Ok(false) => {
            let status = child.wait().map_err(HostError::system("wait for the background process"))?;
            Err(HostError::BackgroundEnded { status: status.to_string() })
        }
        Err(error) => {
            // What it had mounted is unmounted by then, and its files are removed.
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Mounts by the process that serves this user's shared mounts of the same cache, which is started if there is none.
///
/// # Errors
/// [`HostError`]; nothing is mounted then.
pub fn mount_shared(spec: &MountSpec, progress: &mut dyn Progress) -> Result<(), HostError> {
    let socket = shared_socket(&spec.image.cache.dir)?;
    for _ in 0..TRIES {
        if let Some(channel) = connect(&socket)?
            && ask(&channel, spec, progress)?
        {
            return Ok(());
        }
        // It was about to end with its last mount; the next one takes its place.
    }
    Err(HostError::SharedEnded)
}

/// Where the keeper of the shared mounts of a cache can be asked.
fn shared_socket(cache: &Path) -> Result<PathBuf, HostError> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = Digest::of(Algorithm::Sha256, cache.as_os_str().as_bytes());
    Ok(status::make_directory()?.join(format!("{}.share", &name.hex()[..16])))
}

/// A channel to the keeper of shared mounts, which is started if there is none; `None` when the keeper ended before it
/// could answer.
fn connect(socket: &Path) -> Result<Option<Channel>, HostError> {
    let connected = || {
        let channel = Channel::connect(socket).ok()?;
        Some(match channel.offer() {
            Ok(_) => Ok(Some(channel)),
            Err(ChannelError::Gone) => Ok(None),
            Err(cause) => Err(HostError::Channel { peer: "keeper of shared mounts", cause }),
        })
    };
    if let Some(channel) = connected() {
        return channel;
    }
    // One at a time, so that there is one keeper. Only this user may enter the directory, let alone lock it.
    let directory = socket.parent().expect("it lies in a directory");
    let failed_to_lock = |cause| HostError::RunState { path: directory.to_owned(), cause };
    let starting = File::open(directory).map_err(failed_to_lock)?;
    let begun = Instant::now();
    loop {
        match starting.try_lock() {
            Ok(()) => break,
            // A command that was stopped in between is not waited for.
            Err(TryLockError::WouldBlock) if begun.elapsed() < STARTED_WITHIN => std::thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => {
                let why = "another `peelfs mount --share` that starts a process for shared mounts stands still";
                return Err(failed_to_lock(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
            Err(TryLockError::Error(cause)) => return Err(failed_to_lock(cause)),
        }
    }
    if let Some(channel) = connected() {
        return channel;
    }
    // When the offer is answered, the keeper listens at the socket.
    let (_, channel) = start(KEEPER, Some(socket), None)?;
    drop(starting);
    Ok(Some(channel))
}

/// Starts a process in the background; a keeper of shared mounts if it is to listen at `socket`.
fn start(role: [&str; 2], socket: Option<&Path>, cgroup: Option<&Path>) -> Result<(Child, Channel), HostError> {
    // The other process has the same limits, and no way to tell of it yet.
    room::workers(room::Purpose::Starting)?;
    let failed = HostError::system("start the background process");
    let program = std::env::current_exe().map_err(&failed)?;
    let (own, other) = Channel::pair().map_err(&failed)?;
    let mut command = Command::new(program);
    command.args(role).arg(QUIET).args(socket.map(|_| SHARED)).args(socket);
    command.envs(allocator_settings()).stdin(Stdio::from(other)).stdout(Stdio::null());
    let mut child = command.spawn().map_err(&failed)?;
    // The command holds the other end.
    drop(command);
    // It starts no process before it is asked to mount.
    if let Some(Err(error)) = cgroup.map(|cgroup| put_into(cgroup, &child)) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    match own.offer() {
        Ok(_) => Ok((child, own)),
        Err(ChannelError::Gone) => {
            let status = child.wait().map_err(failed)?;
            Err(HostError::BackgroundEnded { status: status.to_string() })
        }
        Err(cause) => Err(HostError::Channel { peer: "background process", cause }),
    }
}

/// Puts a process into a control group (cgroups(7)).
fn put_into(cgroup: &Path, child: &Child) -> Result<(), HostError> {
    let processes = cgroup.join("cgroup.procs");
    let put = match std::fs::create_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // A file that is not there is none of a control group: it must not be made.
        _ => File::options().write(true).open(&processes).and_then(|mut file| write!(file, "{}", child.id())),
    };
    put.map_err(|cause| HostError::RunState { path: processes, cause })
}

/// Asks for a mount; false when the other process ended before it could say anything.
fn ask(channel: &Channel, spec: &MountSpec, progress: &mut dyn Progress) -> Result<bool, HostError> {
    let failed = |cause| HostError::Channel { peer: "background process", cause };
    requests::check_size(spec)?;
    match channel.send(&Request::Mount(Box::new(spec.into())), None) {
        Ok(()) => {}
        Err(ChannelError::Gone) => return Ok(false),
        Err(error) => return Err(failed(error)),
    }
    match outcome(channel, progress) {
        Ok(outcome) => outcome.map(|()| true),
        Err(error @ ChannelError::Wire(_)) => Err(failed(error)),
        Err(_) => Ok(false),
    }
}

/// Shows what the other process tells until it says how what it was asked for has ended.
///
/// # Errors
/// [`ChannelError`] if it does not come to that.
pub(super) fn outcome(channel: &Channel, progress: &mut dyn Progress) -> Result<Result<(), HostError>, ChannelError> {
    let mut told = || loop {
        let (text, _) = channel.receive()?.ok_or(ChannelError::Gone)?;
        match wire::parse(&text)? {
            Word::Progress { total, done } => progress.show(total, done),
            Word::Note(note) => progress.note(&note),
            Word::Ready => return Ok(Ok(())),
            Word::Failed(failure) => return Ok(Err(HostError::Told(failure.into()))),
        }
    };
    let told = told();
    progress.end();
    told
}

/// Lets the C library give large buffers back at once. Left to itself it raises the size from which
/// it does so, and what a first pass needed stays: 70 MiB instead of 10 after the node image's.
fn allocator_settings() -> Option<(&'static str, &'static str)> {
    const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
    std::env::var_os(THRESHOLD).is_none().then_some((THRESHOLD, "131072"))
}

/// A log to append to, which only this user can read.
///
/// # Errors
/// [`HostError::Log`]
pub(super) fn open_log(path: &Path) -> Result<File, HostError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let opened = File::options().create(true).append(true).mode(0o600).open(path);
    opened.map_err(|cause| HostError::Log { path: path.to_owned(), cause })
}

/// Whether this process writes to a log in the runtime directory, which peelfs keeps small by itself.
pub fn log_is_own() -> bool {
    LOG_IS_OWN.load(Ordering::Relaxed)
}

static LOG_IS_OWN: AtomicBool = AtomicBool::new(false);

/// Lets go of the terminal: from here on, what this process says goes to `log`.
///
/// # Errors
/// [`HostError::Log`]
pub(super) fn redirect_to(log: &Path) -> Result<(), HostError> {
    let file = open_log(log)?;
    let redirected = || -> io::Result<()> {
        io::stdout().flush()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        rustix::stdio::dup2_stdout(&file)?;
        Ok(rustix::stdio::dup2_stderr(&file)?)
    };
    redirected().map_err(|cause| HostError::Log { path: log.to_owned(), cause })?;
    let own = status::directory().is_ok_and(|directory| log.parent() == Some(&directory));
    LOG_IS_OWN.store(own, Ordering::Relaxed);
    Ok(())
}

/// How a keeper and a server are started.
const KEEPER: [&str; 2] = ["host", "keeper"];
const ALONE: [&str; 2] = ["host", "alone"];
pub(super) const SERVER: [&str; 2] = ["host", "server"];
/// Its log lines carry their time.
pub(super) const QUIET: &str = "--in-background";
const SHARED: &str = "--shared";
/// How long another command may take to start a keeper.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);
/// How many keepers may be about to end when they are asked.
const TRIES: usize = 5;
