//! The guard of an image store: unmounts it when neither its keeper nor its server is left.
//!
//! Engines fail on a mount that no process serves, but not on the empty directory below it. The keeper and its servers
//! hold one end of a pipe, the guard the other: it reads the end of the pipe when the last of them is gone, however
//! they ended. The guard is a separate process, small and not named `peelfs`, so that what kills those two (the kernel
//! without memory, `killall`) spares it. The keeper starts another one if it ends all the same.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use rustix::pipe::PipeFlags;
use tokio::process::{Child, Command};

use super::process;
use crate::fuse::{self, MountPlace, OpenFiles, mounts};

/// A guard, as its keeper has it.
#[derive(Debug)]
pub(super) struct Guard {
    /// Held by the keeper and its servers.
    held: OwnedFd,
    /// The guard's stdin, until one is started.
    watched: Option<OwnedFd>,
}

impl Guard {
    /// Makes the pipe; no process runs yet.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(super) fn new() -> io::Result<Self> {
        let (watched, held) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { held, watched: Some(watched) })
    }

    /// The end of the pipe for servers to hold.
    pub(super) fn held(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }

    /// Guards the mount at `place` from now on. Must be called within a tokio runtime.
    pub(super) fn watch(&mut self, place: &MountPlace) {
        if let Some(watched) = self.watched.take() {
            tokio::spawn(keep_up(watched, place.clone()));
        }
    }
}

/// Starts a guard, and another one whenever it ends.
async fn keep_up(watched: OwnedFd, place: MountPlace) {
    for _ in 0..STARTED_AT_MOST {
        let ended = match start(&watched, &place) {
            Ok(mut guard) => guard.wait().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "no process unmounts the store if those that serve it are killed");
            return;
        }
    }
}

fn start(watched: &OwnedFd, place: &MountPlace) -> io::Result<Child> {
    let (Some(device), Some(id)) = (place.device(), place.id()) else { return Err(io::ErrorKind::NotFound.into()) };
    let mut command = Command::new(OWN_PROGRAM);
    command.args(ROLE).args(["--device", device, "--id", &id.to_string(), "--"]).arg(place.at());
    command.stdin(Stdio::from(watched.try_clone()?)).stdout(Stdio::null()).spawn()
}

/// Runs this process as the guard of the mount at `at` with the kernel's numbers `device` and `id`.
pub fn run(at: &Path, device: &str, id: u64) {
    process::leave_terminal();
    process::leave_directory();
    let _ = rustix::thread::set_name(NAME);
    // Permitted only to root.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", NEVER_KILLED) {
        tracing::debug!(%error, "the kernel may kill this process when memory runs out");
    }
    // Nothing is ever written.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    // A command that serves the store anew clears the mount as well: one at a time.
    let _claimed = fuse::claim_path(at);
    let place = MountPlace::new(at.to_owned(), Some(device.to_owned()), Some(id), 0);
    if !place.is_mounted() || mounts::is_served(at) {
        return;
    }
    match place.unmount(OpenFiles::Keep) {
        Ok(()) => tracing::error!(
            at = %at.display(),
            "the processes that served the store were killed; it is unmounted, and has no images until it is served again"
        ),
        Err(error) => {
            let error = crate::image::chain(&error);
            tracing::error!(error, at = %at.display(), "cannot unmount a store whose processes were killed");
        }
    }
}

/// The arguments of a guard.
const ROLE: [&str; 2] = ["host", "store-guard"];
const OWN_PROGRAM: &str = "/proc/self/exe";
/// What `ps` and `killall` call the process.
const NAME: &std::ffi::CStr = c"store-guard";
/// The lowest value for the kernel's choice of a process to kill (proc(5)).
const NEVER_KILLED: &str = "-1000";
/// Something kills each of them.
const STARTED_AT_MOST: u32 = 100;
