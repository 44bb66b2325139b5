//! Whether a process answers for a mount, asked without the risk of waiting for ever.
//!
//! A request that a process has taken and never answers cannot be given up, not even by ending the process that asked.
//! So another process asks, and is left behind when no answer comes.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::fuse::mounts;

/// Who answers for a mount.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The process that serves it.
    Served,
    /// None: that process is gone.
    Gone,
    /// None in time.
    Silent,
}

/// Asks who answers for the mount at `path`; takes two seconds at most.
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

/// `peelfs probe`: the process that asks.
pub fn run(at: &Path) -> ExitCode {
    if mounts::is_served(at) { ExitCode::SUCCESS } else { GONE.into() }
}

const GONE: u8 = 1;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);
