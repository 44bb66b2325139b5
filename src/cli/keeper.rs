//! The keeper: a small process that outlives the one that serves a mount.
//!
//! It starts the serving process, holds the connection to the kernel, and starts another one when that
//! dies other than by its own will: the new process asks the kernel to send again what was not answered,
//! so that open files, working directories and readers in flight notice nothing but a pause. The keeper
//! reads no image and no network. It also exchanges the serving process for one of another program
//! (`peelfs upgrade`).
//!
//! Signals that end a mount are passed on to the process that serves it; the keeper ends after that.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::handover::{AsyncChannel, Channel, Handover, KeptBy, Message};
use super::mount::Ends;
use super::report::{Code, Report};
use super::state;
use crate::fuse::{OpenFiles, mounts, unmount};

/// Serves the mount that this command line asks for by another process, and keeps it alive. Returns that
/// process' exit code once the mount has ended.
pub(super) fn keep(at: &Path, in_background: bool) -> Result<u8, Report> {
    let failed = |error: io::Error| Report::new(Code::Failure, format!("cannot keep the mount: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut keeper = Keeper::new(at, in_background)?;
        let ended = keeper.run().await.map_err(failed);
        // Leftovers are also removed by whoever finds them.
        let _ = std::fs::remove_file(&keeper.kept_by.socket);
        ended
    })
}

/// What `peelfs upgrade` asks for: that this program serves the mount from now on.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Upgrade {
    pub(super) program: PathBuf,
}

/// How an upgrade went.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Upgraded {
    /// Another process serves now; for so many microseconds none did.
    Done { pid: u32, pause_us: u64 },
    /// The process before goes on serving.
    Refused(String),
}

struct Keeper {
    at: PathBuf,
    program: PathBuf,
    line: Vec<OsString>,
    in_background: bool,
    kept_by: KeptBy,
    upgrades: UnixListener,
    ends: Ends,
    /// How another process could go on; known once the mount is up.
    kept: Option<(OwnedFd, Box<Handover>)>,
}

/// A process that serves, or gets ready to.
struct Server {
    process: Child,
    channel: AsyncChannel,
    began: Instant,
}

/// What the keeper waits for.
enum Event {
    Said(Message, Option<OwnedFd>),
    Ended(ExitStatus),
    Signal(Signal),
    Asked(UnixStream),
}

impl Keeper {
    fn new(at: &Path, in_background: bool) -> Result<Self, Report> {
        let failed = |error: io::Error| Report::new(Code::Failure, format!("cannot keep the mount: {error}"));
        let directory = state::make_directory()?;
        let pid = std::process::id();
        let socket = directory.join(format!("{pid}.keeper"));
        // Whoever had this number before is gone.
        let _ = std::fs::remove_file(&socket);
        let mut line: Vec<OsString> = std::env::args_os().skip(1).collect();
        line.insert(1.min(line.len()), "--kept".into());
        Ok(Self {
            at: at.to_owned(),
            program: std::env::current_exe().map_err(failed)?,
            line,
            in_background,
            upgrades: UnixListener::bind(&socket).map_err(failed)?,
            kept_by: KeptBy { pid, socket },
            ends: Ends::new()?,
            kept: None,
        })
    }

    async fn run(&mut self) -> io::Result<u8> {
        let mut server = Server::start(&self.program, &self.line)?;
        server.channel.send(&Message::Begin(self.kept_by.clone()), None)?;
        let mut soon_dead = 0;
        loop {
            match self.event(&mut server).await? {
                Event::Said(Message::Serving(handover), Some(connection)) => {
                    self.let_go()?;
                    self.kept = Some((connection, handover));
                }
                // What a process says that goes on with a mount is known, or waited for elsewhere.
                Event::Said(..) => {}
                Event::Signal(signal) => server.send_signal(signal),
                Event::Asked(asker) => server = self.upgrade(asker, server).await?,
                Event::Ended(status) if died(status) => {
                    soon_dead = if server.began.elapsed() < SOON { soon_dead + 1 } else { 0 };
                    if soon_dead > SOON_DEAD_AT_MOST {
                        // Who kills it may have reasons that pass, as when memory is short; what it dies of by
                        // itself is most likely a request that is sent again to each next one.
                        if status.signal() != Some(Signal::KILL.as_raw()) {
                            tracing::error!("the serving process dies again and again; giving the mount up");
                            return self.give_up();
                        }
                        tokio::time::sleep(BREATH).await;
                    }
                    match self.go_on(died_of(status)).await? {
                        Some(next) => server = next,
                        None => return self.give_up(),
                    }
                }
                Event::Ended(status) => return Ok(code(status)),
            }
        }
    }

    async fn event(&mut self, server: &mut Server) -> io::Result<Event> {
        tokio::select! {
            // What was said before the end counts.
            biased;
            said = server.channel.receive() => {
                match said? {
                    Some((message, connection)) => Ok(Event::Said(message, connection)),
                    None => server.process.wait().await.map(Event::Ended),
                }
            }
            signal = self.ends.wait() => Ok(Event::Signal(signal)),
            asked = self.upgrades.accept() => asked.map(|(asker, _)| Event::Asked(asker)),
        }
    }

    /// Starts a process that is ready to go on with the mount, if that is possible at all.
    async fn prepare(&mut self, program: &Path, ended: Option<String>) -> io::Result<Result<Server, String>> {
        let Some((connection, handover)) = &mut self.kept else {
            return Ok(Err("there is no mount yet, or this kernel cannot hand it to another process".into()));
        };
        let mut server = match Server::start(program, &self.line) {
            Ok(server) => server,
            Err(error) => return Ok(Err(format!("cannot start `{}`: {error}", program.display()))),
        };
        let next = Handover { takeovers: handover.takeovers + 1, ended, ..(**handover).clone() };
        let words = Message::TakeOver(self.kept_by.clone(), Box::new(next.clone()));
        let sent = server.channel.send(&words, Some(connection.as_fd()));
        let said = timeout(READY_WITHIN, server.channel.receive()).await;
        if sent.is_ok() && matches!(said, Ok(Ok(Some((Message::Prepared, _))))) {
            **handover = next;
            return Ok(Ok(server));
        }
        let _ = server.process.start_kill();
        let status = server.process.wait().await?;
        Ok(Err(format!("`{}` could not get ready to serve ({status})", program.display())))
    }

    /// After the serving process died: the next one, unless there can be none.
    async fn go_on(&mut self, ended: String) -> io::Result<Option<Server>> {
        // The program may have been removed since; the keeper itself still runs what it was.
        for program in [self.program.clone(), self.program.clone(), PathBuf::from(OWN_PROGRAM)] {
            match self.prepare(&program, Some(ended.clone())).await? {
                Ok(server) => {
                    // If it is gone already, its end is the next event.
                    let _ = server.channel.send(&Message::Go, None);
                    return Ok(Some(server));
                }
                Err(why) => tracing::error!(%why, ended, "the process that served the mount is gone"),
            }
            if self.kept.is_none() {
                break;
            }
        }
        Ok(None)
    }

    /// Exchanges the serving process for one of another program; the one before goes on if that cannot be.
    async fn upgrade(&mut self, mut asker: UnixStream, mut server: Server) -> io::Result<Server> {
        let answer = match timeout(ASKED_WITHIN, asked(&mut asker)).await {
            Ok(Some(Upgrade { program })) => match self.prepare(&program, None).await? {
                Ok(next) => {
                    let begun = Instant::now();
                    let _ = server.process.start_kill();
                    server.process.wait().await?;
                    let _ = next.channel.send(&Message::Go, None);
                    server = next;
                    // It says so when it serves.
                    let _ = timeout(READY_WITHIN, server.channel.receive()).await;
                    self.program = program;
                    let pause_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    Upgraded::Done { pid: server.process.id().unwrap_or(0), pause_us }
                }
                Err(why) => Upgraded::Refused(why),
            },
            _ => Upgraded::Refused("what was asked for cannot be understood".into()),
        };
        // Whoever asked may have gone.
        let _ = asker.write_all(&serde_json::to_vec(&answer)?).await;
        Ok(server)
    }

    /// The mount is up and talk goes to its log: lets go of the terminal of whoever mounted.
    fn let_go(&self) -> io::Result<()> {
        if !self.in_background || self.kept.is_some() {
            return Ok(());
        }
        let _ = io::stdout().flush();
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(rustix::stdio::dup2_stderr(&null)?)
    }

    /// Nobody can serve the mount: it is taken away rather than left to hang.
    fn give_up(&mut self) -> io::Result<u8> {
        drop(self.kept.take());
        if mounts::at(&self.at).is_some_and(|mount| mount.is_peelfs()) && !mounts::is_served(&self.at) {
            let _ = unmount(&self.at, OpenFiles::Keep);
        }
        Ok(Code::Failure.number())
    }
}

impl Server {
    fn start(program: &Path, line: &[OsString]) -> io::Result<Self> {
        let (own, other) = Channel::pair()?;
        // In a group of its own: Ctrl-C reaches the keeper, which passes it on, once.
        let process = Command::new(program).args(line).stdin(Stdio::from(other)).process_group(0).spawn()?;
        Ok(Self { process, channel: AsyncChannel::new(own)?, began: Instant::now() })
    }

    fn send_signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        // It fails only when it has ended, which is noticed soon.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

async fn asked(asker: &mut UnixStream) -> Option<Upgrade> {
    let mut text = Vec::new();
    asker.take(ASKED_AT_MOST).read_to_end(&mut text).await.ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether a process ended other than by its own will: by a signal, or by a panic of its main thread.
fn died(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code() == Some(PANICKED)
}

fn died_of(status: ExitStatus) -> String {
    status.signal().map_or_else(|| "a panic".into(), |signal| format!("signal {signal}"))
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Code::Failure.number())
}

/// The exit code of a Rust program whose main thread panicked.
const PANICKED: i32 = 101;
/// A process that lives shorter than this has died soon.
const SOON: Duration = Duration::from_millis(200);
/// How many in a row may die soon before the keeper gives up or at least takes a breath.
const SOON_DEAD_AT_MOST: u32 = 10;
const BREATH: Duration = Duration::from_millis(50);
const OWN_PROGRAM: &str = "/proc/self/exe";
const READY_WITHIN: Duration = Duration::from_secs(60);
const ASKED_WITHIN: Duration = Duration::from_secs(5);
const ASKED_AT_MOST: u64 = 64 << 10;
