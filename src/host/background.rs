//! Background mounts: the command returns when the mount is ready, other processes serve it.
//!
//! A process with threads cannot fork, so the keeper is a new process of this program, started before any thread runs,
//! with one end of a channel as its stdin. Over that it receives the request, and sends the progress of the first
//! passes and the result.

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

/// Whether a keeper takes the mount over when its process dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keeper {
    /// A keeper does.
    Process,
    /// The mount ends with its process.
    None,
}

/// Mounts with new background processes; returns when the mount is ready.
///
/// # Errors
/// [`HostError`]; nothing is mounted then.
pub fn mount(spec: &MountSpec, kept_by: Keeper, progress: &mut dyn Progress) -> Result<(), HostError> {
    mount_in(spec, kept_by, None, progress)
}

/// As [`mount`], with the processes in this control group, which is created if it is missing. They survive when the
/// caller's control group is killed.
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
            // By then its mount is unmounted and its files are removed.
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Mounts with the process that serves this user's shared mounts of the cache; starts one if there is none.
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
        // It was about to end with its last mount; try again with a new one.
    }
    Err(HostError::SharedEnded)
}

/// The socket of the keeper of a cache's shared mounts.
fn shared_socket(cache: &Path) -> Result<PathBuf, HostError> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = Digest::of(Algorithm::Sha256, cache.as_os_str().as_bytes());
    Ok(status::make_directory()?.join(format!("{}.share", &name.hex()[..16])))
}

/// A channel to the keeper of shared mounts; starts one if there is none. `None` if the keeper ended before it
/// answered.
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
    // A lock ensures a single keeper. Only this user can enter the directory.
    let directory = socket.parent().expect("it lies in a directory");
    let failed_to_lock = |cause| HostError::RunState { path: directory.to_owned(), cause };
    let starting = File::open(directory).map_err(failed_to_lock)?;
    let begun = Instant::now();
    loop {
        match starting.try_lock() {
            Ok(()) => break,
            // Do not wait for a command that was stopped while it holds the lock.
            Err(TryLockError::WouldBlock) if begun.elapsed() < STARTED_WITHIN => std::thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => {
                let why = "another `peelfs mount --share` is stalled while it starts a process for shared mounts";
                return Err(failed_to_lock(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
            Err(TryLockError::Error(cause)) => return Err(failed_to_lock(cause)),
        }
    }
    if let Some(channel) = connected() {
        return channel;
    }
    // The keeper answers the offer once it listens on the socket.
    let (_, channel) = start(KEEPER, Some(socket), None)?;
    drop(starting);
    Ok(Some(channel))
}

/// Starts a process in the background; a keeper of shared mounts if `socket` is given.
fn start(role: [&str; 2], socket: Option<&Path>, cgroup: Option<&Path>) -> Result<(Child, Channel), HostError> {
    // The child has the same limits, and cannot report errors yet.
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
    // It starts no process before it gets a request.
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

/// Moves a process to a control group (cgroups(7)).
fn put_into(cgroup: &Path, child: &Child) -> Result<(), HostError> {
    let processes = cgroup.join("cgroup.procs");
    let put = match std::fs::create_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // Do not create the file: if it is missing, this is not a control group.
        _ => File::options().write(true).open(&processes).and_then(|mut file| write!(file, "{}", child.id())),
    };
    put.map_err(|cause| HostError::RunState { path: processes, cause })
}

/// Requests a mount; `false` if the other process ended before it answered.
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

/// Shows the messages of the other process until it sends the result.
///
/// # Errors
/// [`ChannelError`] if there is no result.
pub(super) fn outcome(channel: &Channel, progress: &mut dyn Progress) -> Result<Result<(), HostError>, ChannelError> {
    let mut told = || loop {
        let (text, _) = channel.receive()?.ok_or(ChannelError::Gone)?;
        match wire::parse(&text)? {
            Word::Progress { total, done } => progress.show(total, done),
            Word::Note(note) => progress.note(&note),
            Word::Ready => return Ok(Ok(())),
            Word::Failed(failure) => return Ok(Err(HostError::Reported(failure.into()))),
        }
    };
    let told = told();
    progress.end();
    told
}

/// Makes the C library return large buffers to the system at once. By default it raises the size limit for that and
/// keeps what a first pass needed: 70 MiB instead of 10 with the node image.
fn allocator_settings() -> Option<(&'static str, &'static str)> {
    const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
    std::env::var_os(THRESHOLD).is_none().then_some((THRESHOLD, "131072"))
}

/// A log to append to, readable only by this user.
///
/// # Errors
/// [`HostError::Log`]
pub(super) fn open_log(path: &Path) -> Result<File, HostError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let opened = File::options().create(true).append(true).mode(0o600).open(path);
    opened.map_err(|cause| HostError::Log { path: path.to_owned(), cause })
}

/// Whether this process writes a log in the runtime directory, whose size peelfs limits.
pub fn log_is_own() -> bool {
    LOG_IS_OWN.load(Ordering::Relaxed)
}

static LOG_IS_OWN: AtomicBool = AtomicBool::new(false);

/// Whether stderr of this process is its log, and no longer what a command's user sees.
pub fn has_log() -> bool {
    HAS_LOG.load(Ordering::Relaxed)
}

/// Notes that stderr of this process is a log that another process has opened.
pub fn inherits_log() {
    HAS_LOG.store(true, Ordering::Relaxed);
}

static HAS_LOG: AtomicBool = AtomicBool::new(false);

/// Detaches from the terminal: further output goes to `log`.
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
    HAS_LOG.store(true, Ordering::Relaxed);
    Ok(())
}

/// The arguments of a keeper and a server.
const KEEPER: [&str; 2] = ["host", "keeper"];
const ALONE: [&str; 2] = ["host", "alone"];
pub(super) const SERVER: [&str; 2] = ["host", "server"];
/// Writes the time on log lines.
pub(super) const QUIET: &str = "--in-background";
const SHARED: &str = "--shared";
/// Time limit for another command that starts a keeper.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);
/// Attempts to reach a keeper that is about to end.
const TRIES: usize = 5;
