//! The keeper: a small process that outlives the one that serves a mount, or all mounts that share one.
//!
//! It starts the serving process, holds the connections to the kernel, and starts another one when that
//! dies other than by its own will: the new process asks the kernel to send again what was not answered,
//! so that open files, working directories and readers in flight notice nothing but a pause. The keeper
//! reads no image and no network. It also exchanges the serving process for one of another program
//! (`peelfs upgrade`).
//!
//! Signals that end a mount are passed on to the process that serves it; the keeper ends after that.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::background::{Parent, Word};
use super::handover::{AsyncChannel, Channel, Handover, KeptBy, Message, Request};
use super::mount::Ends;
use super::probe;
use super::status;
use crate::cli::report::{Code, Report};
use crate::fuse::{OpenFiles, mounts, unmount};

/// Serves the mount that this command line asks for by another process, and keeps it alive. Returns that
/// process' exit code once the mount has ended.
pub(crate) fn keep(at: &Path, in_background: bool) -> Result<u8, Report> {
    let failed = |error: io::Error| Report::new(Code::Failure, format!("cannot keep the mount: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut keeper = Keeper::new(in_background)?;
        keeper.at = Some(at.to_owned());
        let ended = keeper.run(Message::Begin(keeper.kept_by.clone())).await.map_err(failed);
        // Leftovers are also removed by whoever finds them.
        let _ = std::fs::remove_file(&keeper.kept_by.socket);
        let _ = std::fs::remove_file(keeper.kept_by.opens());
        let _ = std::fs::remove_file(keeper.kept_by.documents(0));
        ended
    })
}

/// Keeps the mounts that are asked for at `socket`, from when the first one is until the last one has ended.
pub(crate) fn keep_shared(socket: &Path, log: &Path, parent: &mut Parent) -> Result<(), Report> {
    let failed = |error: io::Error| Report::new(Code::Failure, format!("cannot keep the mounts: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut keeper = Keeper::new(true)?;
        // Nobody listens there any more, or this process would not have been started.
        let _ = std::fs::remove_file(socket);
        keeper.shared = Some(Shared {
            requests: UnixListener::bind(socket).map_err(failed)?,
            asking: HashMap::new(),
            next: 0,
            begun: false,
        });
        parent.tell(&Word::Ready);
        talk_to(log).map_err(failed)?;
        let ended = keeper.run(Message::Resume(keeper.kept_by.clone(), 0)).await;
        // First the name: whoever comes later finds none and starts another keeper.
        let _ = std::fs::remove_file(socket);
        let _ = std::fs::remove_file(&keeper.kept_by.socket);
        status::remove_empty_log(log);
        ended.map(drop).map_err(failed)
    })
}

/// Lets go of the terminal of whoever mounted; the directory stays, for relative paths in the command line.
fn talk_to(log: &Path) -> io::Result<()> {
    let _ = io::stdout().flush();
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(rustix::stdio::dup2_stderr(&log)?)
}

/// What `peelfs upgrade` asks for: that this program serves the mount from now on.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Upgrade {
    pub(crate) program: PathBuf,
}

/// How an upgrade went.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Upgraded {
    /// Another process serves now; for so many microseconds none did.
    Done { pid: u32, pause_us: u64 },
    /// The process before goes on serving.
    Refused(String),
}

struct Keeper {
    /// Where the one mount is to be; shared ones say it themselves.
    at: Option<PathBuf>,
    program: PathBuf,
    line: Vec<OsString>,
    in_background: bool,
    kept_by: KeptBy,
    upgrades: UnixListener,
    ends: Ends,
    /// How another process could go on with each mount that is up, and its connection if the kernel allows that.
    kept: BTreeMap<u64, (Option<OwnedFd>, Box<Handover>)>,
    shared: Option<Shared>,
}

/// What a keeper of shared mounts has beside.
struct Shared {
    /// Where further mounts are asked for.
    requests: UnixListener,
    /// Who waits for which mount.
    asking: HashMap<u64, UnixStream>,
    next: u64,
    /// There has been a mount, or the attempt at one.
    begun: bool,
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
    Requested(UnixStream),
    /// Nobody has a mount here, and nobody asks for one.
    Idle,
}

impl Keeper {
    fn new(in_background: bool) -> Result<Self, Report> {
        let failed = |error: io::Error| Report::new(Code::Failure, format!("cannot keep the mount: {error}"));
        let directory = status::make_directory()?;
        let pid = std::process::id();
        let socket = directory.join(format!("{pid}.keeper"));
        // Whoever had this number before is gone.
        let _ = std::fs::remove_file(&socket);
        let mut line: Vec<OsString> = std::env::args_os().skip(1).collect();
        line.insert(1.min(line.len()), "--kept".into());
        Ok(Self {
            at: None,
            program: std::env::current_exe().map_err(failed)?,
            line,
            in_background,
            upgrades: UnixListener::bind(&socket).map_err(failed)?,
            kept_by: KeptBy { pid, socket },
            ends: Ends::new()?,
            kept: BTreeMap::new(),
            shared: None,
        })
    }

    /// Starts a process with `first` and keeps what it serves; returns its exit code.
    async fn run(&mut self, first: Message) -> io::Result<u8> {
        let mut server = Server::start(&self.program, &self.line)?;
        server.channel.send(&first, None)?;
        let mut soon_dead = 0;
        loop {
            match self.event(&mut server).await? {
                Event::Said(message, connection) => {
                    if let Some(answer) = self.heard(message, connection)? {
                        // If it is gone, its end is the next event.
                        let _ = server.channel.send(&answer, None);
                    }
                }
                Event::Requested(asker) => self.request(asker, &server).await?,
                // It ends when this end of the channel is gone.
                Event::Idle => {
                    let Server { mut process, channel, .. } = server;
                    drop(channel);
                    return process.wait().await.map(code);
                }
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
                    if let Some(shared) = &mut self.shared {
                        // What is not kept may be half done; whoever asks again will be told.
                        shared.asking.retain(|number, _| self.kept.contains_key(number));
                        if self.kept.is_empty() {
                            return Ok(Code::Failure.number());
                        }
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

    /// Takes note of what the serving process says; returns what it is to be told.
    fn heard(&mut self, message: Message, connection: Option<OwnedFd>) -> io::Result<Option<Message>> {
        match message {
            Message::Serving(handover) => {
                let number = handover.shared.as_ref().map_or(0, |(number, _)| *number);
                if !handover.awaited {
                    self.let_go()?;
                }
                let before = self.kept.remove(&number).and_then(|(connection, _)| connection);
                self.kept.insert(number, (connection.or(before), handover));
            }
            Message::Ended(number) => {
                drop(self.kept.remove(&number));
                let _ = std::fs::remove_file(self.kept_by.documents(number));
            }
            Message::Tell(number, word) => {
                let Some(shared) = &mut self.shared else { return Ok(None) };
                let waits = matches!(word, Word::Progress(..));
                shared.begun |= !waits;
                let mut line = serde_json::to_vec(&word)?;
                line.push(b'\n');
                let told = shared.asking.get(&number).map(|asker| asker.try_write(&line));
                let gone = told.is_none_or(|told| told.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock));
                if gone || !waits {
                    shared.asking.remove(&number);
                }
                // A mount that is ready stays, as it does without a keeper in between.
                return Ok((gone && waits).then_some(Message::GivenUp(number)));
            }
            // Said by a process that gets ready, and waited for there.
            _ => {}
        }
        Ok(None)
    }

    /// Passes on what somebody wants mounted.
    async fn request(&mut self, mut asker: UnixStream, server: &Server) -> io::Result<()> {
        let asked = timeout(ASKED_WITHIN, asked::<Request>(&mut asker)).await;
        let (Some(shared), Ok(Some(request))) = (&mut self.shared, asked) else { return Ok(()) };
        shared.next += 1;
        shared.asking.insert(shared.next, asker);
        // If it is gone, its end is the next event.
        let _ = server.channel.deliver(&Message::Mount(shared.next, Box::new(request)), None).await;
        Ok(())
    }

    async fn event(&mut self, server: &mut Server) -> io::Result<Event> {
        let (requests, idle) = match &self.shared {
            Some(shared) => {
                let idle = self.kept.is_empty() && shared.asking.is_empty();
                (Some(&shared.requests), idle.then_some(if shared.begun { Duration::ZERO } else { UNASKED_FOR }))
            }
            None => (None, None),
        };
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
            asked = async { requests.expect("looked at below").accept().await }, if requests.is_some() => {
                asked.map(|(asker, _)| Event::Requested(asker))
            }
            () = tokio::time::sleep(idle.unwrap_or_default()), if idle.is_some() => Ok(Event::Idle),
        }
    }

    /// Starts a process that is ready to go on with the mount, if that is possible at all.
    async fn prepare(&mut self, program: &Path, ended: Option<String>) -> io::Result<Result<Server, String>> {
        if self.kept.is_empty() || self.kept.values().any(|(connection, _)| connection.is_none()) {
            return Ok(Err("there is no mount yet, or this kernel cannot hand it to another process".into()));
        }
        let mut server = match Server::start(program, &self.line) {
            Ok(server) => server,
            Err(error) => return Ok(Err(format!("cannot start `{}`: {error}", program.display()))),
        };
        match timeout(READY_WITHIN, self.hand_over(&server, ended)).await {
            Ok(Ok(())) => {
                self.kept.values_mut().for_each(|(_, handover)| handover.takeovers += 1);
                return Ok(Ok(server));
            }
            // It is about to end, and to say why in its log.
            Ok(Err(_)) => drop(timeout(LAST_WORDS, server.process.wait()).await),
            Err(_) => {}
        }
        let _ = server.process.start_kill();
        let status = server.process.wait().await?;
        Ok(Err(format!("`{}` could not get ready to serve ({status}; its log may say why)", program.display())))
    }

    /// Tells a new process all mounts, and waits until it is ready to go on with them.
    async fn hand_over(&mut self, server: &Server, ended: Option<String>) -> io::Result<()> {
        if self.shared.is_some() {
            server.channel.deliver(&Message::Resume(self.kept_by.clone(), self.kept.len()), None).await?;
        }
        for (connection, handover) in self.kept.values() {
            let ended = ended.clone();
            let next = Handover { takeovers: handover.takeovers + 1, ended, ..(**handover).clone() };
            let words = Message::TakeOver(self.kept_by.clone(), Box::new(next));
            server.channel.deliver(&words, connection.as_ref().map(OwnedFd::as_fd)).await?;
        }
        loop {
            match server.channel.receive().await? {
                Some((Message::Prepared, _)) => return Ok(()),
                Some((message, connection)) => drop(self.heard(message, connection)?),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
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
            if self.kept.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    /// Exchanges the serving process for one of another program; the one before goes on if that cannot be.
    async fn upgrade(&mut self, mut asker: UnixStream, mut server: Server) -> io::Result<Server> {
        let answer = match timeout(ASKED_WITHIN, asked(&mut asker)).await {
            Ok(Some(Upgrade { .. })) if self.is_awaited() => {
                Upgraded::Refused("its process is making a mount that somebody waits for; try again".into())
            }
            Ok(Some(Upgrade { program })) => match self.prepare(&program, None).await? {
                Ok(next) => {
                    let begun = Instant::now();
                    let _ = server.process.start_kill();
                    server.process.wait().await?;
                    let _ = next.channel.send(&Message::Go, None);
                    server = next;
                    // It says so when it serves.
                    if let Ok(Ok(Some((message, connection)))) = timeout(READY_WITHIN, server.channel.receive()).await {
                        self.heard(message, connection)?;
                    }
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

    /// Whether somebody waits for a mount.
    fn is_awaited(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| !shared.asking.is_empty())
            || self.kept.values().any(|(_, handover)| handover.awaited)
    }

    /// The mount is ready and talk goes to its log: lets go of the terminal of whoever mounted.
    fn let_go(&self) -> io::Result<()> {
        if !self.in_background || self.shared.is_some() {
            return Ok(());
        }
        talk_to(Path::new("/dev/null"))
    }

    /// Nobody can serve what is mounted: it is taken away rather than left to hang.
    fn give_up(&mut self) -> io::Result<u8> {
        let kept = std::mem::take(&mut self.kept);
        let places: Vec<PathBuf> = kept.values().map(|(_, handover)| handover.place.at().to_owned()).collect();
        drop(kept);
        for at in self.at.iter().chain(&places) {
            if mounts::at(at).is_some_and(|mount| mount.is_peelfs()) && probe::ask(at) != probe::Answer::Served {
                let _ = unmount(at, OpenFiles::Keep);
            }
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

async fn asked<T: DeserializeOwned>(asker: &mut UnixStream) -> Option<T> {
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
/// A keeper that nobody has asked for a mount for so long ends.
const UNASKED_FOR: Duration = Duration::from_secs(10);
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a process that cannot go on may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);
const ASKED_WITHIN: Duration = Duration::from_secs(5);
const ASKED_AT_MOST: u64 = 64 << 10;
