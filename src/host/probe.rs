//! Checks whether a mount is served, without the risk of hanging.
//!
//! A request that a process has accepted and never answers cannot be cancelled, not even by killing the caller. So a
//! child process asks, and is abandoned if no answer comes.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::fuse::mounts;

/// Whether a mount is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// A process serves it.
    Served,
    /// Its process is gone.
    Gone,
    /// No answer in time.
    Silent,
}

/// Checks the mount at `path`; takes at most two seconds.
pub fn ask(path: &Path) -> Answer {
    let mut command = Command::new("/proc/self/exe");
    command.arg("probe").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut asking) = command.spawn() else { return Answer::Silent };
    let begun = Instant::now();
    while begun.elapsed() < ANSWER_WITHIN {
        match asking.try_wait() {
            Ok(None) => std::thread::sleep(LOOK),
            Ok(Some(status)) if status.code() == Some(GONE.into()) => return Answer::Gone,
            Ok(Some(_)) => return Answer::Served,
            Err(_) => break,
        }
    }
    Answer::Silent
}

/// `peelfs probe`: the child process.
pub fn run(at: &Path) -> ExitCode {
    if mounts::is_served(at) { ExitCode::SUCCESS } else { GONE.into() }
}

const GONE: u8 = 1;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);
