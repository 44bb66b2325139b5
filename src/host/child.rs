//! The serving process, as a child of its keeper.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
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
    /// Reports the end of one of its threads besides the first: that thread ends when the process is killed, even if
    /// other threads hang and keep the process.
    thread: Option<watch::Receiver<bool>>,
}

/// An event of the serving process.
#[derive(Debug)]
pub(super) enum Next {
    /// A message, and its connection, if any.
    Message(Vec<u8>, Option<OwnedFd>),
    /// It has ended, or hangs.
    End(End),
}

/// How a process ended.
#[derive(Debug)]
pub(super) enum End {
    /// It has exited.
    Ended(ExitStatus),
    /// It was killed, and threads of it hang.
    Hangs,
    /// A thread has ended, the process has not yet.
    NotYet,
}

impl Server {
    /// Starts a process of `program`, agrees on a version, and sends `begin`, with a descriptor for it to hold.
    ///
    /// # Errors
    /// The reason as text.
    pub(super) async fn start(
        program: &Path,
        in_background: bool,
        begin: &Message,
        held: Option<BorrowedFd<'_>>,
    ) -> Result<Self, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot start `{}`: {error}", program.display());
        let (own, other) = Channel::pair().map_err(|error| cannot(&error))?;
        let mut command = Command::new(program);
        command.args(background::SERVER).args(in_background.then_some(background::QUIET));
        // In a process group of its own: Ctrl-C reaches the keeper, which forwards it once.
        command.stdin(Stdio::from(other)).process_group(0).kill_on_drop(true);
        let process = command.spawn().map_err(|error| cannot(&error))?;
        // It holds the other end, which would never be closed.
        drop(command);
        let channel = AsyncChannel::new(own).map_err(|error| cannot(&error))?;
        let mut server = Self { process, channel, began: Instant::now(), thread: None };
        let begun = async {
            server.channel.offer(READY_WITHIN).await?;
            server.channel.deliver(begin, held).await
        };
        match begun.await {
            Ok(()) => Ok(server),
            Err(error) => {
                server.end().await;
                Err(cannot(&error))
            }
        }
    }

    /// Its process number.
    pub(super) fn pid(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Whether it started just now.
    pub(super) fn is_young(&self) -> bool {
        self.began.elapsed() < SOON
    }

    /// Starts watching a thread of the process, once it has more than one.
    pub(super) fn notice_threads(&mut self) {
        if self.thread.is_none() {
            self.thread = self.process.id().and_then(other_thread);
        }
    }

    pub(super) fn send_signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        // Fails only if it has ended, which is noticed soon.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Closes the channel, so that a process without mounts exits, and waits for that.
    pub(super) async fn hang_up(self) {
        let Self { mut process, channel, .. } = self;
        drop(channel);
        // Its exit status does not matter.
        let _ = process.wait().await;
    }

    /// The next message, or the end. Messages sent before the end come first.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(super) async fn next(&mut self) -> io::Result<Next> {
        let Self { process, channel, thread, .. } = self;
        tokio::select! {
            biased;
            message = channel.receive() => match message {
                Ok(Some((text, connection))) => Ok(Next::Message(text, connection)),
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

    /// Kills the process; its threads may hang. Returns how it ended.
    pub(super) async fn end(&mut self) -> String {
        let _ = self.process.start_kill();
        match timeout(LAST_WORDS, self.process.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "killed, and threads of it hang".to_owned(),
        }
    }

    /// Waits a moment for it to exit, then kills it.
    pub(super) async fn end_soon(&mut self) -> String {
        let _ = timeout(LAST_WORDS, self.process.wait()).await;
        self.end().await
    }
}

/// Watches the end of a thread besides the first. `None` before Linux 6.9, which supports no take-over either.
fn other_thread(pid: u32) -> Option<watch::Receiver<bool>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<u32>().ok());
    let thread = threads.filter(|thread| *thread != pid).min()?;
    let thread = pidfd_open(Pid::from_raw(thread.cast_signed())?, OF_THREAD).ok()?;
    let (sender, ended) = watch::channel(false);
    let wait = move || {
        while poll(&mut [PollFd::new(&thread, PollFlags::IN)], None) == Err(Errno::INTR) {}
        // The receiver may be gone.
        let _ = sender.send(true);
    };
    std::thread::Builder::new().name("server-ends".into()).stack_size(SMALL_STACK).spawn(wait).ok()?;
    Some(ended)
}

/// Returns when a thread has ended; never, if none is watched.
async fn ended(thread: &mut Option<watch::Receiver<bool>>) {
    match thread {
        // An error means that it is no longer watched.
        Some(thread) => drop(thread.wait_for(|ended| *ended).await),
        None => std::future::pending().await,
    }
}

/// `PIDFD_THREAD`
const OF_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(rustix::fs::OFlags::EXCL.bits());

/// Whether a process crashed: by a signal, or by a panic of its main thread.
pub(super) fn died(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code() == Some(PANICKED)
}

pub(super) fn died_of(status: ExitStatus) -> String {
    status.signal().map_or_else(|| "a panic".into(), |signal| format!("signal {signal}"))
}

/// The exit code of a Rust program whose main thread panicked.
const PANICKED: i32 = 101;
/// A process with a shorter life has died soon.
const SOON: Duration = Duration::from_millis(200);
/// Time limit to agree on a version.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Time limit for a process that is about to end to report why, or for one that was killed to disappear.
const LAST_WORDS: Duration = Duration::from_secs(1);
const SMALL_STACK: usize = 64 << 10;
