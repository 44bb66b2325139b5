//! `peelfs host guard`: ends a container when its `peelfs run` has ended, however it ended.
//!
//! The guard's stdin is a pipe; `peelfs run` holds the other end and writes the runtime's process id to it. When that
//! end is closed, by `peelfs run` or by the kernel, the guard removes everything of the container.

use std::io::{self, BufRead as _, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(super) fn run(runtime: &Path, directory: &Path, name: &str) {
    // Signals of the terminal are meant for the container.
    let _ = rustix::process::setsid();
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    let told = stdin.read_line(&mut line).unwrap_or(0);
    let process = (told > 0).then(|| open(line.trim())).flatten();
    let _ = io::copy(&mut stdin.by_ref(), &mut io::sink());
    if let Some(process) = process {
        // Kill the runtime first, so that it creates nothing more; no effect if it has ended.
        let _ = pidfd_send_signal(&process, Signal::KILL);
        while poll(&mut [PollFd::new(&process, PollFlags::IN)], None) == Err(Errno::INTR) {}
    }
    let state = directory.join(STATE);
    if state.join(name).exists() {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(&state).args(["delete", "--force", name]);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    // Including the mounts below; the processes that serve the image then exit.
    let _ = rustix::mount::unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = std::fs::remove_dir(directory);
}

fn open(pid: &str) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.parse().ok()?)?, PidfdFlags::empty()).ok()
}

/// The runtime's state, in the directory of a container.
pub(super) const STATE: &str = "state";
