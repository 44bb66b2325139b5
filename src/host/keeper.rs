//! The keeper: a small process that outlives the one that serves a mount, or all mounts that share one.
//!
//! It starts the serving process, holds the connections to the kernel, and starts another one when that
//! dies other than by its own will: the new process asks the kernel to send again what was not answered,
//! so that open files, working directories and readers in flight notice nothing but a pause. The keeper
//! reads no image and no network. It also exchanges the serving process for one of another program
//! (`peelfs upgrade`).
//!
//! A message that is malformed is refused, and neither ends the keeper nor counts as the end of the process that sent it;
//! a peer that says nothing holds up nothing. Signals that end a mount are passed on to the process that serves it; the
//! keeper ends after that.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use super::background;
use super::channel::{AsyncChannel, Channel, ChannelError, Listener};
use super::error::HostError;
use super::handover::{Handover, KeeperId};
use super::process::{self, Ends};
use super::report::{Code, Report};
use super::spec::MountSpec;
use super::status;
use super::wire::v1::{Message, MountHandover, Request, Upgraded, Word};
use super::wire::{self, WirePath};
use super::{Progress, probe};
use crate::fuse::{OpenFiles, mounts, unmount};

/// Serves `spec` by another process, in the foreground, and keeps it alive until the mount has ended.
///
/// # Errors
/// [`HostError`], also one that the serving process told.
pub fn keep_in_foreground(spec: MountSpec, progress: Box<dyn Progress>) -> Result<(), HostError> {
    process::small_runtime()?.block_on(async {
        let mut keeper = Keeper::new(None, Service::Foreground)?;
        let ended = keeper.run(spec, Asker::Here(progress)).await;
        keeper.clean_up();
        ended
    })
}

/// Runs this process as a keeper in the background: of one mount, or of those that are asked for at `shared`.
///
/// # Errors
/// [`HostError`]
pub fn run(shared: Option<&Path>) -> Result<(), HostError> {
    let channel = Channel::of_stdin().map_err(|_| HostError::NotStartedByPeelfs)?;
    process::leave_terminal();
    process::small_runtime()?.block_on(async {
        let service = if shared.is_some() { Service::Shared } else { Service::Alone };
        let mut keeper = Keeper::new(shared, service)?;
        let channel = AsyncChannel::new(channel).map_err(HostError::system("talk to the command"))?;
        // The sockets are there: the process that asks may let others come.
        let asked = asked(channel).await;
        let ended = match asked {
            Ok((Request::Mount(spec), channel)) => match MountSpec::try_from(*spec) {
                Ok(spec) => keeper.run(spec, Asker::Elsewhere(channel)).await,
                Err(error) => Err(HostError::Channel { peer: "command", cause: error.into() }),
            },
            Ok((Request::Upgrade { .. }, _)) => Err(HostError::NotStartedByPeelfs),
            Err(cause) => Err(HostError::Channel { peer: "command", cause }),
        };
        keeper.clean_up();
        match ended {
            // The command was told, and tells the user.
            Err(HostError::Told(_)) => Ok(()),
            ended => ended,
        }
    })
}

/// Which mounts a keeper keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Service {
    /// One, in the foreground.
    Foreground,
    /// One, in the background.
    Alone,
    /// All that are asked for.
    Shared,
}

/// What waits for a mount.
enum Asker {
    /// A command, at the other end of a channel.
    Elsewhere(AsyncChannel),
    /// This process.
    Here(Box<dyn Progress>),
}

/// A mount that is up.
struct Kept {
    /// Its connection, if the kernel lets another process take it over.
    connection: Option<OwnedFd>,
    handover: Handover,
}

struct Keeper {
    service: Service,
    program: PathBuf,
    id: KeeperId,
    /// The socket for further mounts.
    shared: Option<PathBuf>,
    requests: mpsc::Receiver<Asked>,
    ends: Ends,
    log: Option<PathBuf>,
    /// Mounts that are up, by number.
    mounts: BTreeMap<u64, Kept>,
    /// What waits for mounts that are not ready yet.
    askers: HashMap<u64, Asker>,
    next: u64,
    /// Why the one mount failed.
    failure: Option<Report>,
    has_terminal: bool,
}

type Asked = (Request, AsyncChannel);

/// A process that serves, or prepares to.
struct Server {
    process: Child,
    channel: AsyncChannel,
    began: Instant,
}

/// What the keeper waits for.
enum Event {
    Said(Vec<u8>, Option<OwnedFd>),
    Ended(ExitStatus),
    Signal(Signal),
    Asked(Box<Asked>),
    /// There is no mount and no process that asks for one.
    Idle,
}

impl Keeper {
    fn new(shared: Option<&Path>, service: Service) -> Result<Self, HostError> {
        let directory = status::make_directory()?;
        process::leave_directory();
        let pid = std::process::id();
        let socket = directory.join(format!("{pid}.keeper"));
        let (sender, requests) = mpsc::channel(PENDING);
        for path in std::iter::once(socket.as_path()).chain(shared) {
            // A process that had this number, or kept these mounts, before is gone.
            let _ = std::fs::remove_file(path);
            let listener =
                Listener::bind(path).map_err(|cause| HostError::RunState { path: path.to_owned(), cause })?;
            tokio::spawn(listen(listener, sender.clone()));
        }
        Ok(Self {
            service,
            program: std::env::current_exe().map_err(HostError::system("tell which program this is"))?,
            id: KeeperId { pid, socket },
            shared: shared.map(Path::to_owned),
            requests,
            ends: Ends::new()?,
            log: None,
            mounts: BTreeMap::new(),
            askers: HashMap::new(),
            next: 0,
            failure: None,
            has_terminal: true,
        })
    }

    /// Starts a process for a first mount and keeps what it serves until that has ended.
    async fn run(&mut self, spec: MountSpec, asker: Asker) -> Result<(), HostError> {
        if let Err(error) = self.open_log(&spec) {
            let report = Report::from(error);
            self.answer(asker, &report).await;
            return Err(HostError::Told(report));
        }
        let mut server = match self.start(&self.program.clone(), 0).await {
            Ok(server) => server,
            Err(why) => {
                let report = Report::new(Code::Failure, why);
                self.answer(asker, &report).await;
                return Err(HostError::Told(report));
            }
        };
        self.begin(spec, asker, &server).await;
        let mut soon_dead = 0;
        loop {
            match self.event(&mut server).await? {
                Event::Said(text, connection) => self.heard(&text, connection, &server).await,
                Event::Asked(asked) => server = self.asked(*asked, server).await?,
                // The server ends when this end of the channel is gone.
                Event::Idle => {
                    let Server { mut process, channel, .. } = server;
                    drop(channel);
                    let _ = process.wait().await;
                    return self.failure.take().map_or(Ok(()), |failure| Err(HostError::Told(failure)));
                }
                Event::Signal(signal) => server.send_signal(signal),
                Event::Ended(status) if died(status) => {
                    soon_dead = if server.began.elapsed() < SOON { soon_dead + 1 } else { 0 };
                    if soon_dead > SOON_DEAD_AT_MOST {
                        // What kills it may have reasons that pass, as when memory is short; what it dies of by
                        // itself is most likely a request that is sent again to each next one.
                        if status.signal() != Some(Signal::KILL.as_raw()) {
                            tracing::error!("the serving process dies again and again; giving the mount up");
                            return self.give_up(&status.to_string());
                        }
                        tokio::time::sleep(BREATH).await;
                    }
                    // A mount that is not up may be half made; a command that asks again will be told.
                    self.askers.retain(|number, _| self.mounts.contains_key(number));
                    match self.replace(died_of(status)).await? {
                        Some(next) => server = next,
                        None => return self.give_up(&status.to_string()),
                    }
                }
                Event::Ended(status) => return self.ended(status),
            }
        }
    }

    /// The serving process has ended by itself.
    fn ended(&mut self, status: ExitStatus) -> Result<(), HostError> {
        match self.failure.take() {
            Some(failure) => Err(HostError::Told(failure)),
            None if status.success() => Ok(()),
            None => Err(HostError::BackgroundEnded { status: status.to_string() }),
        }
    }

    /// Where the log of all mounts goes; none in the foreground.
    fn open_log(&mut self, spec: &MountSpec) -> Result<(), HostError> {
        if self.service == Service::Foreground {
            return Ok(());
        }
        let log = match &spec.log {
            Some(log) => log.clone(),
            None => status::make_directory()?.join(format!("{}.log", self.id.pid)),
        };
        background::open_log(&log)?;
        self.log = Some(log);
        Ok(())
    }

    /// Asks the serving process for a mount.
    async fn begin(&mut self, spec: MountSpec, asker: Asker, server: &Server) {
        if let Err(error) = check_size(&spec) {
            return self.answer(asker, &error.into()).await;
        }
        self.next += 1;
        let (number, spec) = (self.next, Box::new((&spec).into()));
        match server.channel.deliver(&Message::Mount { number, spec }, None).await {
            Ok(()) => drop(self.askers.insert(number, asker)),
            // If the process is gone, its end is the next event.
            Err(error) => {
                let report = Report::from(HostError::Channel { peer: "serving process", cause: error });
                self.answer(asker, &report).await;
            }
        }
    }

    async fn answer(&mut self, asker: Asker, failure: &Report) {
        match asker {
            Asker::Elsewhere(channel) => last_word(channel, Word::Failed(failure.into())).await,
            Asker::Here(_) => self.failure = Some(failure.clone()),
        }
    }

    /// Does what another process asks for at a socket.
    async fn asked(&mut self, (request, channel): Asked, server: Server) -> Result<Server, HostError> {
        match request {
            Request::Mount(spec) if self.service == Service::Shared => {
                match MountSpec::try_from(*spec) {
                    Ok(spec) => self.begin(spec, Asker::Elsewhere(channel), &server).await,
                    Err(error) => self.answer(Asker::Elsewhere(channel), &Report::usage(error)).await,
                }
                Ok(server)
            }
            Request::Mount(_) => {
                let report = Report::new(Code::Failure, "this process keeps one mount and takes no other");
                self.answer(Asker::Elsewhere(channel), &report).await;
                Ok(server)
            }
            Request::Upgrade { program } => {
                let (server, answer) = match PathBuf::try_from(program) {
                    Ok(program) => self.upgrade(program, server).await?,
                    Err(error) => (server, Upgraded::Refused { why: error.to_string() }),
                };
                // The process that asked may have gone, and has been told nothing that could fill the channel.
                let _ = channel.send(&answer, None);
                Ok(server)
            }
        }
    }

    /// Takes note of what the serving process says.
    async fn heard(&mut self, text: &[u8], connection: Option<OwnedFd>, server: &Server) {
        match wire::parse(text) {
            Ok(Message::Serving { number, handover }) => self.serves(number, *handover, connection),
            Ok(Message::Ended { number }) => {
                drop(self.mounts.remove(&number));
                self.id.forget(number);
            }
            Ok(Message::Tell { number, word }) => {
                if self.told(number, word).await {
                    // If it is gone, its end is the next event.
                    let _ = server.channel.send(&Message::GivenUp { number }, None);
                }
            }
            Ok(Message::Refused { number, why }) => {
                tracing::error!(?number, why, "the serving process refused a message");
                if let Some(asker) = number.and_then(|number| self.askers.remove(&number)) {
                    self.answer(asker, &Report::new(Code::Failure, why)).await;
                }
            }
            // Said by a process that prepares, and waited for there.
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "the serving process said something that cannot be understood");
                let refused = Message::Refused { number: None, why: error.to_string() };
                let _ = server.channel.send(&refused, None);
            }
        }
    }

    fn serves(&mut self, number: u64, handover: MountHandover, connection: Option<OwnedFd>) {
        match Handover::try_from(handover) {
            Ok(handover) => {
                let before = self.mounts.remove(&number).and_then(|kept| kept.connection);
                let connection = connection.or(before);
                self.mounts.insert(number, Kept { connection, handover });
            }
            Err(error) => tracing::error!(%error, number, "a mount cannot be kept"),
        }
    }

    /// Passes on what a process that asked is told; whether it is gone and its mount is not ready.
    async fn told(&mut self, number: u64, word: Word) -> bool {
        let waits = matches!(word, Word::Progress { .. } | Word::Note(_));
        let gone = match self.askers.get_mut(&number) {
            None => true,
            Some(Asker::Here(progress)) => {
                match &word {
                    Word::Progress { total, done } => progress.show(*total, *done),
                    Word::Note(note) => progress.note(note),
                    Word::Ready | Word::Failed(_) => progress.end(),
                }
                if let Word::Failed(failure) = &word {
                    self.failure = Some(failure.clone().into());
                }
                false
            }
            // What it cannot take now it soon hears again; the last word is waited for.
            Some(Asker::Elsewhere(channel)) if waits => {
                matches!(channel.send(&word, None), Err(ChannelError::Io(error)) if error.kind() != io::ErrorKind::WouldBlock)
            }
            Some(Asker::Elsewhere(_)) => false,
        };
        if matches!(word, Word::Ready) {
            self.let_go();
        }
        if (gone || !waits)
            && let Some(Asker::Elsewhere(channel)) = self.askers.remove(&number)
            && !gone
        {
            last_word(channel, word).await;
        }
        // A mount that is ready stays, as it does without a keeper in between.
        gone && waits
    }

    /// The first mount is ready and talk goes to its log: lets go of the terminal of the command.
    fn let_go(&mut self) {
        if std::mem::take(&mut self.has_terminal)
            && let Some(log) = &self.log
            && let Err(error) = background::redirect_to(log)
        {
            tracing::warn!(%error, "cannot let go of the terminal");
        }
    }

    async fn event(&mut self, server: &mut Server) -> Result<Event, HostError> {
        let idle = self.mounts.is_empty() && self.askers.is_empty();
        let failed = HostError::system("wait for the serving process");
        tokio::select! {
            // What was said before the end counts.
            biased;
            said = server.channel.receive() => match said {
                Ok(Some((text, connection))) => Ok(Event::Said(text, connection)),
                Ok(None) | Err(_) => server.process.wait().await.map(Event::Ended).map_err(failed),
            },
            signal = self.ends.wait() => Ok(Event::Signal(signal)),
            Some(asked) = self.requests.recv() => Ok(Event::Asked(Box::new(asked))),
            () = std::future::ready(()), if idle => Ok(Event::Idle),
        }
    }

    /// Starts a process of `program`, with which a version is agreed upon, for so many mounts that follow.
    async fn start(&self, program: &Path, mounts: usize) -> Result<Server, String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot start `{}`: {error}", program.display());
        let (own, other) = Channel::pair().map_err(|error| cannot(&error))?;
        let mut command = Command::new(program);
        command.args(background::SERVER).args((self.service != Service::Foreground).then_some(background::QUIET));
        // In a group of its own: Ctrl-C reaches the keeper, which passes it on, once.
        let process = command.stdin(Stdio::from(other)).process_group(0).spawn().map_err(|error| cannot(&error))?;
        // It holds the other end: the process would never seem to be gone.
        drop(command);
        let channel = AsyncChannel::new(own).map_err(|error| cannot(&error))?;
        let mut server = Server { process, channel, began: Instant::now() };
        let begin = Message::Begin {
            keeper: (&self.id).into(),
            mounts,
            log: self.log.as_ref().map(WirePath::from),
            shared: self.service == Service::Shared,
        };
        let begun = async {
            server.channel.offer(READY_WITHIN).await?;
            server.channel.deliver(&begin, None).await
        };
        match begun.await {
            Ok(()) => Ok(server),
            Err(error) => {
                server.end().await;
                Err(cannot(&error))
            }
        }
    }

    /// Starts a process that is ready to take every mount over.
    async fn prepare(&mut self, program: &Path, ended: Option<String>) -> Result<Server, String> {
        if self.mounts.is_empty() || self.mounts.values().any(|kept| kept.connection.is_none()) {
            return Err("there is no mount yet, or this kernel cannot hand it to another process".into());
        }
        let mut server = self.start(program, self.mounts.len()).await?;
        match timeout(READY_WITHIN, self.hand_over(&server, ended)).await {
            Ok(Ok(())) => {
                self.mounts.values_mut().for_each(|kept| kept.handover.takeovers += 1);
                Ok(server)
            }
            outcome => {
                // It is about to end, and to say why in its log.
                let _ = timeout(LAST_WORDS, server.process.wait()).await;
                let status = server.end().await;
                let why = match outcome {
                    Ok(Err(ChannelError::Wire(error))) => error.to_string(),
                    _ => format!("{status}; its log may say why"),
                };
                Err(format!("`{}` could not get ready to serve ({why})", program.display()))
            }
        }
    }

    /// Tells a new process all mounts, and waits until it is ready to take them over.
    async fn hand_over(&mut self, server: &Server, ended: Option<String>) -> Result<(), ChannelError> {
        for (number, kept) in &self.mounts {
            let handover = Box::new((&kept.handover.to_next(ended.clone())).into());
            let message = Message::TakeOver { number: *number, handover };
            server.channel.deliver(&message, kept.connection.as_ref().map(OwnedFd::as_fd)).await?;
        }
        loop {
            let Some((text, connection)) = server.channel.receive().await? else { return Err(ChannelError::Gone) };
            match wire::parse(&text)? {
                Message::Prepared => return Ok(()),
                Message::Refused { why, .. } => return Err(wire::WireError::Refused { why }.into()),
                _ => self.heard(&text, connection, server).await,
            }
        }
    }

    /// After the serving process died: the next one, unless there can be none.
    async fn replace(&mut self, ended: String) -> Result<Option<Server>, HostError> {
        // The program may have been removed since; the keeper itself still runs what it was.
        for program in [self.program.clone(), self.program.clone(), PathBuf::from(OWN_PROGRAM)] {
            if self.mounts.is_empty() {
                return Ok(None);
            }
            match self.prepare(&program, Some(ended.clone())).await {
                Ok(server) => {
                    // If it is gone already, its end is the next event.
                    let _ = server.channel.send(&Message::Go, None);
                    return Ok(Some(server));
                }
                Err(why) => tracing::error!(why, ended, "the process that served the mount is gone"),
            }
        }
        Ok(None)
    }

    /// Exchanges the serving process for one of another program; the one before stays if that cannot be.
    async fn upgrade(&mut self, program: PathBuf, mut server: Server) -> Result<(Server, Upgraded), HostError> {
        if !self.askers.is_empty() || self.mounts.values().any(|kept| kept.handover.awaited) {
            let why = "its process is making a mount that is still waited for; try again".into();
            return Ok((server, Upgraded::Refused { why }));
        }
        let next = match self.prepare(&program, None).await {
            Ok(next) => next,
            Err(why) => return Ok((server, Upgraded::Refused { why })),
        };
        let begun = Instant::now();
        server.end().await;
        let _ = next.channel.send(&Message::Go, None);
        // It says so when it serves.
        if let Ok(Ok(Some((text, connection)))) = timeout(READY_WITHIN, next.channel.receive()).await {
            self.heard(&text, connection, &next).await;
        }
        self.program = program;
        let pause_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let pid = next.process.id().unwrap_or(0);
        Ok((next, Upgraded::Done { pid, pause_us }))
    }

    /// No process can serve what is mounted: it is taken away rather than left to hang.
    fn give_up(&mut self, status: &str) -> Result<(), HostError> {
        let mounts = std::mem::take(&mut self.mounts);
        let places: Vec<PathBuf> = mounts.values().map(|kept| kept.handover.place.at().to_owned()).collect();
        drop(mounts);
        for at in &places {
            if mounts::at(at).is_some_and(|mount| mount.is_peelfs()) && probe::ask(at) != probe::Answer::Served {
                let _ = unmount(at, OpenFiles::Keep);
            }
        }
        Err(HostError::BackgroundEnded { status: status.to_owned() })
    }

    /// Removes what this process has left in the runtime directory; what stays is removed by the next look at it.
    fn clean_up(&self) {
        // First the name under which mounts are asked for: a command that comes later starts another keeper.
        for path in self.shared.iter().chain([&self.id.socket]) {
            let _ = std::fs::remove_file(path);
        }
        (1..=self.next).for_each(|number| self.id.forget(number));
        self.log.iter().for_each(|log| status::remove_empty_log(log));
    }
}

impl Server {
    fn send_signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        // It fails only when it has ended, which is noticed soon.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Ends the process.
    async fn end(&mut self) -> String {
        let _ = self.process.start_kill();
        match self.process.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

/// Passes on what processes ask for at a socket. Each has its own task: one that says nothing holds up no other.
async fn listen(listener: Listener, requests: mpsc::Sender<Asked>) {
    let room = Arc::new(Semaphore::new(PENDING));
    loop {
        let Ok(room) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(channel) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    match asked(channel).await {
                        Ok(asked) => drop(requests.send(asked).await),
                        Err(error) => {
                            tracing::debug!(%error, "a process asked for something that cannot be understood");
                        }
                    }
                    drop(room);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// What a process asks for; what cannot be understood is refused with the reason.
async fn asked(channel: AsyncChannel) -> Result<Asked, ChannelError> {
    channel.accept(ASKED_WITHIN).await?;
    let received = timeout(ASKED_WITHIN, channel.receive()).await.map_err(|_| ChannelError::Silent)?;
    let (text, _) = received?.ok_or(ChannelError::Gone)?;
    let understood = if text.len() > LARGEST_REQUEST {
        Err(wire::WireError::TooLarge { size: text.len(), limit: LARGEST_REQUEST })
    } else {
        wire::parse::<Request>(&text)
    };
    match understood {
        Ok(request) => Ok((request, channel)),
        Err(error) => {
            let report = Report::new(Code::Failure, format!("the keeper does not understand the request: {error}"));
            channel.deliver(&Word::Failed((&report).into()), None).await?;
            Err(error.into())
        }
    }
}

/// Refuses a mount of which another process could not be told: what it is told by has to fit into a message.
pub(super) fn check_size(spec: &MountSpec) -> Result<(), HostError> {
    let text = wire::text(&Request::Mount(Box::new(spec.into())));
    let checked = text.map(|text| text.len()).and_then(|size| match size {
        0..=LARGEST_REQUEST => Ok(()),
        _ => Err(wire::WireError::TooLarge { size, limit: LARGEST_REQUEST }),
    });
    checked.map_err(|error| HostError::Channel { peer: "background process", cause: error.into() })
}

/// Tells a process that asked how it went. One that does not read what it is told holds up nothing: it is waited for
/// beside everything else.
async fn last_word(channel: AsyncChannel, word: Word) {
    // Mostly there is room at once, and this process may be about to end.
    if !matches!(channel.send(&word, None), Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock) {
        return;
    }
    tokio::spawn(async move { timeout(TOLD_WITHIN, channel.deliver(&word, None)).await });
}

/// Whether a process ended other than by its own will: by a signal, or by a panic of its main thread.
fn died(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code() == Some(PANICKED)
}

fn died_of(status: ExitStatus) -> String {
    status.signal().map_or_else(|| "a panic".into(), |signal| format!("signal {signal}"))
}

/// The exit code of a Rust program whose main thread panicked.
const PANICKED: i32 = 101;
/// A process that lives shorter than this has died soon.
const SOON: Duration = Duration::from_millis(200);
/// How many in a row may die soon before the keeper gives up or at least pauses.
const SOON_DEAD_AT_MOST: u32 = 10;
const BREATH: Duration = Duration::from_millis(50);
const OWN_PROGRAM: &str = "/proc/self/exe";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a process that cannot take over may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a process that asks may take to say what for.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// How long the last word to a process that asked is waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Connections that may be about to ask for something at the same time; further ones wait.
const PENDING: usize = 64;
/// Bytes of the largest request: what a mount that was made is told by has to hold it and some paths more.
const LARGEST_REQUEST: usize = wire::LARGEST / 4 * 3;
