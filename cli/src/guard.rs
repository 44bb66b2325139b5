//! `peelfs host guard`: ends a container when the command that runs it has ended, however that was.
//!
//! It holds one end of a pipe as its stdin; the command holds the other one, and says which process the runtime is. When
//! that end is closed, by the command or by the kernel, nothing of the container is to be left.

use std::io::{self, BufRead as _, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(super) fn run(runtime: &Path, directory: &Path, name: &str) {
    // The terminal's signals are for the container.
    let _ = rustix::process::setsid();
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    let told = stdin.read_line(&mut line).unwrap_or(0);
    let process = (told > 0).then(|| open(line.trim())).flatten();
    let _ = io::copy(&mut stdin.by_ref(), &mut io::sink());
    if let Some(process) = process {
        // The runtime goes first, so that it makes nothing anew; if it has ended, this does nothing.
        let _ = pidfd_send_signal(&process, Signal::KILL);
        let _ = rustix::event::poll(&mut [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)], None);
    }
    let state = directory.join(STATE);
    if state.join(name).exists() {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(&state).args(["delete", "--force", name]);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    // With all that is mounted below it; the processes that serve the image end by that.
    let _ = rustix::mount::unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = std::fs::remove_dir(directory);
}

fn open(pid: &str) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.parse().ok()?)?, PidfdFlags::empty()).ok()
}

/// Where the runtime keeps its state, in the directory of a container.
pub(super) const STATE: &str = "state";
