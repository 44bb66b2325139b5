//! The process that serves, as its keeper sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::channel::{AsyncChannel, Channel};
use super::wire::v1::Message;
use super::{background, process};

/// A process that serves, or prepares to.
pub(super) struct Server {
    process: Child,
    pub(super) channel: AsyncChannel,
    began: Instant,
    /// Hears the end of a thread of it, besides the first one: that is gone at once when the process is ended, also where
    /// other threads hang and the process does not go.
    thread: Option<watch::Receiver<bool>>,
}

/// What a keeper hears of it.
#[derive(Debug)]
pub(super) enum Next {
    /// A message, and the connection that comes with some.
    Said(Vec<u8>, Option<OwnedFd>),
    /// It has ended, more or less.
    End(End),
}

/// How a process ended.
#[derive(Debug)]
pub(super) enum End {
    /// It has ended.
    Ended(ExitStatus),
    /// It was ended, and threads of it hang.
    Hangs,
    /// A thread has ended and the process has not.
    NotYet,
}

impl Server {
    /// Starts a process of `program`, with which a version is agreed upon, and tells it `begin`.
    ///
    /// # Errors
    /// Why that cannot be, in words.
    pub(super) async fn start(program: &Path, in_background: bool, begin: &Message) -> Result<Self, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot start `{}`: {error}", program.display());
        let (own, other) = Channel::pair().map_err(|error| cannot(&error))?;
        let mut command = Command::new(program);
        command.args(background::SERVER).args(in_background.then_some(background::QUIET));
        // In a group of its own: Ctrl-C reaches the keeper, which passes it on, once.
        command.stdin(Stdio::from(other)).process_group(0).kill_on_drop(true);
        let process = command.spawn().map_err(|error| cannot(&error))?;
        // It holds the other end: the process would never seem to be gone.
        drop(command);
        let channel = AsyncChannel::new(own).map_err(|error| cannot(&error))?;
        let mut server = Self { process, channel, began: Instant::now(), thread: None };
        let begun = async {
            server.channel.offer(READY_WITHIN).await?;
            server.channel.deliver(begin, None).await
        };
        match begun.await {
            Ok(()) => Ok(server),
            Err(error) => {
                server.end().await;
                Err(cannot(&error))
            }
        }
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Whether it began a moment ago.
    pub(super) fn is_young(&self) -> bool {
        self.began.elapsed() < SOON
    }

    /// Begins to look at a thread of the process, once it has more than one.
    pub(super) fn notice_threads(&mut self) {
        if self.thread.is_none() {
            self.thread = self.process.id().and_then(other_thread);
        }
    }

    pub(super) fn send_signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        // It fails only when it has ended, which is noticed soon.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Closes the channel, whereupon a process that serves nothing ends, and waits for that.
    pub(super) async fn hang_up(self) {
        let Self { mut process, channel, .. } = self;
        drop(channel);
        // However it ended, it has.
        let _ = process.wait().await;
    }

    /// What it says next, or how it ended. What was said before the end counts.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(super) async fn next(&mut self) -> io::Result<Next> {
        let Self { process, channel, thread, .. } = self;
        tokio::select! {
            biased;
            said = channel.receive() => match said {
                Ok(Some((text, connection))) => Ok(Next::Said(text, connection)),
                Ok(None) | Err(_) => process.wait().await.map(|status| Next::End(End::Ended(status))),
            },
            () = ended(thread) => {
                let end = match timeout(LAST_WORDS, process.wait()).await {
                    Ok(status) => End::Ended(status?),
                    Err(_) if process::hangs(process.id().unwrap_or(0)) => End::Hangs,
                    Err(_) => End::NotYet,
                };
                *thread = None;
                Ok(Next::End(end))
            }
        }
    }

    /// Ends the process; it may be that threads of it hang for longer. Says how it ended.
    pub(super) async fn end(&mut self) -> String {
        let _ = self.process.start_kill();
        match timeout(LAST_WORDS, self.process.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "killed, and threads of it hang".to_owned(),
        }
    }

    /// Lets it end by itself, for a moment, and ends it then.
    pub(super) async fn end_soon(&mut self) -> String {
        let _ = timeout(LAST_WORDS, self.process.wait()).await;
        self.end().await
    }
}

/// The end of a thread of a process, besides the first one. None on kernels before Linux 6.9, on which no process takes
/// over either.
fn other_thread(pid: u32) -> Option<watch::Receiver<bool>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<u32>().ok());
    let thread = threads.filter(|thread| *thread != pid).min()?;
    let thread = pidfd_open(Pid::from_raw(thread.cast_signed())?, OF_THREAD).ok()?;
    let (sender, ended) = watch::channel(false);
    let wait = move || {
        while poll(&mut [PollFd::new(&thread, PollFlags::IN)], None) == Err(Errno::INTR) {}
        // The keeper may have other things to wait for by now.
        let _ = sender.send(true);
    };
    std::thread::Builder::new().name("server-ends".into()).stack_size(SMALL_STACK).spawn(wait).ok()?;
    Some(ended)
}

/// Returns when a thread has ended; never, if there is none to look at.
async fn ended(thread: &mut Option<watch::Receiver<bool>>) {
    match thread {
        // An error means that it is not looked at any more.
        Some(thread) => drop(thread.wait_for(|ended| *ended).await),
        None => std::future::pending().await,
    }
}

/// `PIDFD_THREAD`
const OF_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(rustix::fs::OFlags::EXCL.bits());

/// Whether a process ended other than by its own will: by a signal, or by a panic of its main thread.
pub(super) fn died(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code() == Some(PANICKED)
}

pub(super) fn died_of(status: ExitStatus) -> String {
    status.signal().map_or_else(|| "a panic".into(), |signal| format!("signal {signal}"))
}

/// The exit code of a Rust program whose main thread panicked.
const PANICKED: i32 = 101;
/// A process that lives shorter than this has died soon.
const SOON: Duration = Duration::from_millis(200);
/// How long a process may take to agree upon a version.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a process that is about to end may take to say why, or one that was ended to go.
const LAST_WORDS: Duration = Duration::from_secs(1);
const SMALL_STACK: usize = 64 << 10;
