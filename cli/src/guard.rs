//! `peelfs host guard`: ends a container when its `peelfs run` has ended, however it ended.
//!
//! The guard's stdin is a pipe; `peelfs run` holds the other end and writes the runtime's process id to it. When that
//! end is closed, by `peelfs run` or by the kernel, the guard removes everything of the container.

use std::io::{self, BufRead as _, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::container::ROOTFS;

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
        kill(&process);
    }
    let state = directory.join(STATE);
    if state.join(name).exists() {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(&state).args(["delete", "--force", name]);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    kill_all(&directory.join(ROOTFS));
    // Including the mounts below; the processes that serve the image then exit.
    let _ = rustix::mount::unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = std::fs::remove_dir(directory);
}

/// Kills what the runtime has left: processes whose root directory is the container's. Without one the image stays mounted for
/// them.
fn kill_all(rootfs: &Path) {
    let Ok(own) = std::fs::metadata(rootfs) else { return };
    // Every overlay has a device number of its own.
    let is_own = |process: &Path| std::fs::metadata(process.join("root")).is_ok_and(|root| root.dev() == own.dev());
    // One that starts others while it is looked for is found again.
    for _ in 0..ROUNDS {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        let mut left = all.filter(|process| is_own(process)).peekable();
        if left.peek().is_none() {
            return;
        }
        for process in left {
            let opened = process.file_name().and_then(|pid| open(pid.to_str()?));
            // Its number may belong to another process meanwhile.
            if let Some(opened) = opened.filter(|_| is_own(&process)) {
                kill(&opened);
            }
        }
    }
}

/// Kills a process, and waits until it has ended.
fn kill(process: &OwnedFd) {
    let _ = pidfd_send_signal(process, Signal::KILL);
    while poll(&mut [PollFd::new(process, PollFlags::IN)], None) == Err(Errno::INTR) {}
}

fn open(pid: &str) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.parse().ok()?)?, PidfdFlags::empty()).ok()
}

const ROUNDS: usize = 100;
/// The runtime's state, in the directory of a container.
pub(super) const STATE: &str = "state";
