//! Into the background: the command returns when the mount answers, a child keeps serving it.
//!
//! A process with threads cannot fork, so the child is a second start of the same program, made
//! before any thread runs: same arguments, its stdout a pipe to the parent. Over the pipe come lines of
//! JSON ([`Word`]): how far the first pass is, that the mount is ready, or why it is not.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::cli::progress::Bar;
use crate::cli::report::{Code, Report};

/// What the background process tells the one that started it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Word {
    /// Bytes to read, and bytes read.
    Progress(u64, u64),
    /// The mount is up (and, where asked for, verified).
    Ready,
    /// It failed.
    Failed(Report),
}

/// Starts this command line once more in the background and waits until it is ready or has failed.
pub(crate) fn start(bar: &mut Bar) -> Result<(), Report> {
    let failed =
        |error: std::io::Error| Report::new(Code::Failure, format!("cannot start the background process: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut line = std::env::args_os().skip(1);
    let mut child = Command::new(program)
        .args(line.next())
        .arg("--background-child")
        .args(line)
        .envs(allocator_settings())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let words = BufReader::new(child.stdout.take().expect("it was asked for"));
    for word in words.lines() {
        match serde_json::from_str(&word.map_err(failed)?) {
            Ok(Word::Progress(total, done)) => bar.show(total, done),
            Ok(Word::Ready) => {
                bar.end();
                return Ok(());
            }
            Ok(Word::Failed(report)) => {
                bar.end();
                // It says this last, and what it had mounted is unmounted by then.
                let _ = child.wait();
                return Err(report);
            }
            Err(error) => tracing::debug!(%error, "the background process said something else"),
        }
    }
    bar.end();
    let status = child.wait().map_err(failed)?;
    Err(Report::new(Code::Failure, format!("the background process ended early ({status})")))
}

/// Lets the C library give large buffers back at once. Left to itself it raises the size from which
/// it does so, and what a first pass needed stays: 70 MiB instead of 10 after the node image's.
fn allocator_settings() -> Option<(&'static str, &'static str)> {
    const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
    std::env::var_os(THRESHOLD).is_none().then_some((THRESHOLD, "131072"))
}

/// A log to append to.
///
/// # Errors
/// When it cannot be opened or made.
pub(crate) fn open_log(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The child's end of the pipe.
pub(crate) struct Parent {
    listening: bool,
}

impl Parent {
    /// Makes this process a session of its own, so that the terminal's signals do not reach it.
    pub(crate) fn leave_terminal() -> Self {
        // It fails only for a process that leads a group already, and then there is nothing to leave.
        let _ = rustix::process::setsid();
        Self { listening: true }
    }

    /// Nobody is to be told anything: the foreground.
    pub(crate) fn none() -> Self {
        Self { listening: false }
    }

    /// Whether somebody waits at the other end of the pipe.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening
    }

    pub(crate) fn tell(&mut self, word: &Word) {
        if self.listening {
            let mut out = std::io::stdout().lock();
            let line = serde_json::to_string(word).expect("words are plain data");
            // Whether a parent that is gone (Ctrl-C) ends what it asked for, others decide.
            self.listening = writeln!(out, "{line}").and_then(|()| out.flush()).is_ok();
        }
    }

    /// Lets go of the parent's terminal and directory: from here on, talk goes to `log`.
    pub(crate) fn let_go(&mut self, log: &File) -> std::io::Result<()> {
        self.listening = false;
        let null = File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(log)?;
        rustix::stdio::dup2_stderr(log)?;
        std::env::set_current_dir("/")
    }
}
