//! Set-up of processes that read images: a runtime, file limits, and the signals that end them.

use nix::libc;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::error::HostError;
use super::room;
pub use super::room::Purpose;
use crate::image::OpaqueMark;

/// A runtime; raises the limit of open files, and disables core dumps.
///
/// Each layer's files are opened once if there are enough descriptors; the usual limit of 1024 is meant for programs
/// that use select(2). A core dump would contain passwords and tokens; a limit of one byte also disables dumps that are
/// piped to a program, for which a limit of zero is ignored (core(5)).
///
/// # Errors
/// [`HostError::System`], [`HostError::NoFiles`], [`HostError::NoRoom`], [`HostError::NoThreads`]
pub fn runtime(purpose: Purpose) -> Result<tokio::runtime::Runtime, HostError> {
    runtime_with(purpose, Some(1))
}

/// As [`runtime`], for a process that starts programs other than peelfs, which may get the previous limits back.
///
/// # Errors
/// As [`runtime`].
pub fn runtime_of_parent() -> Result<tokio::runtime::Runtime, HostError> {
    runtime_with(Purpose::Starting, getrlimit(Resource::Core).maximum)
}

fn runtime_with(purpose: Purpose, core_maximum: Option<u64>) -> Result<tokio::runtime::Runtime, HostError> {
    raise_file_limit();
    let current = Some(core_maximum.unwrap_or(u64::MAX).min(1));
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current, maximum: core_maximum }) {
        tracing::debug!(%error, "cannot forbid core dumps");
    }
    make_room_for_files();
    let workers = room::workers(purpose)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(workers).enable_all().build().map_err(HostError::system("start threads"))
}

/// A single-threaded runtime, for a process that reads no image.
pub(super) fn small_runtime() -> Result<tokio::runtime::Runtime, HostError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HostError::system("start"))
}

/// The attribute of opaque directories in an overlay mounted by this user: overlayfs reads `trusted.` attributes only
/// for the machine's root.
pub(super) fn opaque_mark() -> OpaqueMark {
    let is_root = has_all_users() == Some(true) && rustix::process::geteuid().is_root();
    if is_root { OpaqueMark::Trusted } else { OpaqueMark::User }
}

/// Whether this process is in a user namespace other than the initial one.
pub fn is_in_user_namespace() -> bool {
    has_all_users() == Some(false)
}

/// Whether this user namespace maps all users of the machine (user_namespaces(7)); `None` if unknown.
fn has_all_users() -> Option<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map").ok().filter(|map| !map.is_empty())?;
    Some(map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Raises this process's limit of open files to the maximum.
pub fn raise_file_limit() {
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Makes the kernel's table of open files large at once, by opening a high number.
///
/// The kernel grows a full table; in a process with threads each growth takes some 10 ms, until no CPU uses the old
/// table (`expand_fdtable`), and five hundred layers would take five of them.
fn make_room_for_files() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let last = limit.min(ROOM_FOR_FILES).saturating_sub(1) as i32;
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last) {
        tracing::debug!(%error, "cannot enlarge the table of open files");
    }
}

/// For some 700 layers; 8 bytes each.
const ROOM_FOR_FILES: u64 = 2048;

/// The signals that end a mount.
#[derive(Debug)]
pub(super) struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Ends {
    pub(super) fn new() -> Result<Self, HostError> {
        let listen = |kind| signal(kind).map_err(HostError::system("listen to signals"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn wait(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }
}

/// Whether a process runs; a zombie does not.
///
/// Counts as running if that cannot be read, as when no file descriptor is left: files of ended processes are removed.
pub(super) fn is_running(pid: u32) -> bool {
    match told(pid) {
        Ok(told) => !matches!(state_in(&told), None | Some('Z' | 'X' | 'x')),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound && error.raw_os_error() != Some(libc::ESRCH),
    }
}

/// Whether a process was killed but a thread of it is blocked in the kernel.
pub(super) fn hangs(pid: u32) -> bool {
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state(pid) == Some('Z') && threads() > 1
}

/// Whether a process is stopped by a signal or a tracer.
pub(super) fn is_stopped(pid: u32) -> bool {
    matches!(state(pid), Some('T' | 't'))
}

fn state(pid: u32) -> Option<char> {
    state_in(&told(pid).ok()?)
}

fn told(pid: u32) -> std::io::Result<String> {
    // Not `stat`, which blocks while a process starts or ends.
    std::fs::read_to_string(format!("/proc/{pid}/status"))
}

fn state_in(told: &str) -> Option<char> {
    told.lines().find_map(|line| line.strip_prefix("State:"))?.trim_start().chars().next()
}

/// Starts a new session for this process, so that the terminal's signals do not reach it.
pub(super) fn leave_terminal() {
    // Fails only for the leader of a process group, which needs no new session.
    let _ = rustix::process::setsid();
}

/// Leaves the parent's working directory, so that it can be unmounted, and restricts new files to this user.
pub(super) fn leave_directory() {
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "cannot leave the working directory");
    }
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}
