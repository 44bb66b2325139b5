//! The keeper: a small process that outlives the process serving its mounts.
//!
//! It starts the serving process, holds the connections to the kernel, and starts another serving process when one
//! dies. The new one asks the kernel to resend unanswered requests, so open files, working directories and pending
//! reads see only a pause. The keeper reads no image and no network. It also replaces the serving process by one of
//! another version (`peelfs upgrade`).
//!
//! A malformed message is refused; it ends neither the keeper nor the mounts. A silent peer blocks nothing. Signals
//! that end a mount are forwarded to the serving process; the keeper ends after it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::channel::{AsyncChannel, Channel, ChannelError, Listener};
use super::child::{self, End, Next, Server};
use super::error::HostError;
use super::guard::Guard;
use super::handover::KeeperId;
use super::process::{self, Ends};
use super::report::{Code, Report};
use super::requests::{self, IncomingRequest};
use super::spec::MountSpec;
use super::target::{TargetSpec, TargetState};
use super::wire::v1::{Message, Request, Upgraded, Word};
use super::wire::{self, WireError, WirePath};
use super::{Progress, background, status, systemd};
use crate::fuse::{self, OpenFiles};

/// Serves what is `wanted` with another process, in the foreground, and restarts that until the mount has ended.
///
/// # Errors
/// [`HostError`], also one reported by the serving process.
pub fn keep_in_foreground(wanted: TargetSpec, progress: Box<dyn Progress>) -> Result<(), HostError> {
    process::small_runtime()?.block_on(async {
        let mut keeper = Keeper::new(None, Service::Foreground)?;
        let ended = keeper.run(wanted, Asker::Here(progress)).await;
        keeper.clean_up();
        ended
    })
}

/// Runs this process as a keeper in the background: of one mount, or of all mounts requested at `shared`.
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
        // The sockets exist now: the requesting process may let others connect.
        let asked = requests::receive_request(channel).await;
        let ended = match asked {
            Ok((Request::Mount(spec), channel)) => match MountSpec::try_from(*spec) {
                Ok(spec) => keeper.run(spec.into(), Asker::Elsewhere(channel)).await,
                Err(error) => Err(HostError::Channel { peer: "command", cause: error.into() }),
            },
            Ok((Request::Upgrade { .. }, _)) => Err(HostError::NotStartedByPeelfs),
            Err(cause) => Err(HostError::Channel { peer: "command", cause }),
        };
        keeper.clean_up();
        match ended {
            // The command has it, and reports it to the user.
            Err(HostError::Reported(_)) => Ok(()),
            ended => ended,
        }
    })
}

/// Which mounts a keeper holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Service {
    /// One, in the foreground.
    Foreground,
    /// One, in the background.
    Alone,
    /// All mounts requested at a socket.
    Shared,
}

/// The requester of a mount.
enum Asker {
    /// A command, over a channel.
    Elsewhere(AsyncChannel),
    /// This process.
    Here(Box<dyn Progress>),
}

/// A mount that is up.
struct LiveMount {
    /// Its connection, if the kernel supports a take-over.
    connection: Option<OwnedFd>,
    shown: TargetState,
}

struct Keeper {
    service: Service,
    program: PathBuf,
    id: KeeperId,
    /// The socket for further mounts.
    shared: Option<PathBuf>,
    requests: mpsc::Receiver<IncomingRequest>,
    ends: Option<Ends>,
    /// When signals asked the serving process to end.
    told_to_end: Vec<Instant>,
    /// Number of serving processes in a row that died soon after their start.
    soon_dead: u32,
    log: Option<PathBuf>,
    /// Mounts that are up, by number.
    mounts: BTreeMap<u64, LiveMount>,
    /// Requesters of mounts that are not ready yet.
    askers: HashMap<u64, Asker>,
    /// Of an image store.
    guard: Option<Guard>,
    next: u64,
    /// Why the only mount failed.
    failure: Option<Report>,
    has_terminal: bool,
}

/// Events of the main loop.
enum Event {
    Message(Vec<u8>, Option<OwnedFd>),
    End(End),
    Signal(Signal),
    /// The serving process was asked twice to end, and has not.
    Overdue,
    Request(Box<IncomingRequest>),
    /// No mount and no requester is left.
    Idle,
}

impl Keeper {
    fn new(shared: Option<&Path>, service: Service) -> Result<Self, HostError> {
        let directory = status::make_directory()?;
        process::leave_directory();
        let pid = std::process::id();
        let socket = directory.join(format!("{pid}.keeper"));
        let (sender, requests) = mpsc::channel(requests::PENDING);
        for path in std::iter::once(socket.as_path()).chain(shared) {
            // Left by an earlier process with the same number.
            let _ = std::fs::remove_file(path);
            let listener =
                Listener::bind(path).map_err(|cause| HostError::RunState { path: path.to_owned(), cause })?;
            tokio::spawn(requests::listen(listener, sender.clone()));
        }
        Ok(Self {
            service,
            program: std::env::current_exe().map_err(HostError::system("tell which program this is"))?,
            id: KeeperId { pid, socket },
            shared: shared.map(Path::to_owned),
            requests,
            ends: Some(Ends::new()?),
            told_to_end: Vec::new(),
            soon_dead: 0,
            log: None,
            mounts: BTreeMap::new(),
            askers: HashMap::new(),
            guard: None,
            next: 0,
            failure: None,
            has_terminal: true,
        })
    }

    /// Starts a process for the first mount, and keeps its mounts until the last has ended.
    async fn run(&mut self, wanted: TargetSpec, asker: Asker) -> Result<(), HostError> {
        if let TargetSpec::Store(_) = wanted {
            self.guard = Some(Guard::new().map_err(HostError::system("make a pipe"))?);
        }
        if let Err(error) = self.open_log(&wanted) {
            let report = Report::from(error);
            self.answer(asker, &report).await;
            return Err(HostError::Reported(report));
        }
        let mut server = match self.start(&self.program.clone(), 0).await {
            Ok(server) => server,
            Err(why) => {
                let report = Report::new(Code::Failure, why);
                self.answer(asker, &report).await;
                return Err(HostError::Reported(report));
            }
        };
        self.begin(wanted, asker, &server).await;
        loop {
            match self.event(&mut server).await? {
                Event::Message(text, connection) => {
                    self.heard(&text, connection, &server).await;
                    server.notice_threads();
                }
                Event::Request(request) => server = self.handle_request(*request, server).await?,
                // The server ends when this end of the channel is closed.
                Event::Idle => {
                    tokio::select! {
                        () = server.hang_up() => {}
                        Some(_) = signal(&mut self.ends) => {}
                    }
                    return self.failure.take().map_or(Ok(()), |failure| Err(HostError::Reported(failure)));
                }
                Event::Signal(signal) => {
                    self.told_to_end.push(Instant::now());
                    server.send_signal(signal);
                }
                Event::Overdue => {
                    let ended = server.end().await;
                    tracing::error!(ended, "the serving process did not end on request");
                    return self.give_up(&ended);
                }
                Event::End(End::NotYet) => server.notice_threads(),
                Event::End(End::Hangs) => {
                    tracing::error!("the serving process was killed but its threads hang");
                    // The next one would most likely hang as well.
                    if !self.told_to_end.is_empty() {
                        return self.give_up(HANGS);
                    }
                    match self.replace(HANGS.to_owned()).await? {
                        Some(next) => server = next,
                        None => return self.give_up(HANGS),
                    }
                }
                Event::End(End::Ended(status)) if child::died(status) => match self.died(&server, status).await? {
                    Some(next) => server = next,
                    None => return self.give_up(&status.to_string()),
                },
                Event::End(End::Ended(status)) => return self.ended(status),
            }
        }
    }

    /// After the serving process has died: starts the next one, if there is to be one.
    async fn died(&mut self, server: &Server, status: ExitStatus) -> Result<Option<Server>, HostError> {
        self.soon_dead = if server.is_young() { self.soon_dead + 1 } else { 0 };
        if self.soon_dead > SOON_DEAD_AT_MOST {
            // A kill may have a temporary cause, such as lack of memory; a crash is most likely caused by a request
            // that the kernel resends to every successor.
            if status.signal() != Some(Signal::KILL.as_raw()) {
                tracing::error!("the serving process keeps crashing; giving the mount up");
                return Ok(None);
            }
            tokio::time::sleep(BREATH).await;
        }
        // A mount that is not up may be incomplete; a command that asks again gets an answer.
        self.askers.retain(|number, _| self.mounts.contains_key(number));
        self.replace(child::died_of(status)).await
    }

    /// After the serving process has ended by itself.
    fn ended(&mut self, status: ExitStatus) -> Result<(), HostError> {
        match self.failure.take() {
            Some(failure) => Err(HostError::Reported(failure)),
            None if status.success() => Ok(()),
            None => Err(HostError::BackgroundEnded { status: status.to_string() }),
        }
    }

    /// Opens the log of all mounts; none in the foreground.
    fn open_log(&mut self, wanted: &TargetSpec) -> Result<(), HostError> {
        if self.service == Service::Foreground {
            return Ok(());
        }
        let log = match wanted.log() {
            Some(log) => log.clone(),
            None => status::make_directory()?.join(format!("{}.log", self.id.pid)),
        };
        background::open_log(&log)?;
        self.log = Some(log);
        Ok(())
    }

    /// Requests a mount from the serving process.
    async fn begin(&mut self, wanted: TargetSpec, asker: Asker, server: &Server) {
        if let Err(error) = wanted.check_size() {
            return self.answer(asker, &error.into()).await;
        }
        self.next += 1;
        let number = self.next;
        match server.channel.deliver(&wanted.message(number), None).await {
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
            Asker::Elsewhere(channel) => requests::last_word(channel, Word::Failed(failure.into())).await,
            Asker::Here(_) => self.failure = Some(failure.clone()),
        }
    }

    /// Handles a request from a socket.
    async fn handle_request(
        &mut self,
        (request, channel): IncomingRequest,
        server: Server,
    ) -> Result<Server, HostError> {
        match request {
            Request::Mount(spec) if self.service == Service::Shared => {
                match MountSpec::try_from(*spec) {
                    Ok(spec) => self.begin(spec.into(), Asker::Elsewhere(channel), &server).await,
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
                // Little was sent to the requester, so its channel has room; it may be gone.
                let _ = channel.send(&answer, None);
                Ok(server)
            }
        }
    }

    /// Handles a message of the serving process.
    async fn heard(&mut self, text: &[u8], connection: Option<OwnedFd>, server: &Server) {
        match wire::parse(text) {
            Ok(Message::Serving { number, handover }) => self.serves(number, TargetState::image(*handover), connection),
            Ok(Message::ServingStore { number, handover }) => {
                self.serves(number, TargetState::store(*handover), connection);
            }
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
            // Sent by a process that prepares; awaited there.
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "a message of the serving process cannot be parsed");
                let refused = Message::Refused { number: None, why: error.to_string() };
                let _ = server.channel.send(&refused, None);
            }
        }
    }

    fn serves(&mut self, number: u64, shown: Result<TargetState, WireError>, connection: Option<OwnedFd>) {
        match shown {
            Ok(shown) => {
                self.guard.iter_mut().for_each(|guard| guard.watch(shown.place()));
                let before = self.mounts.remove(&number).and_then(|mount| mount.connection);
                let connection = connection.or(before);
                self.mounts.insert(number, LiveMount { connection, shown });
            }
            Err(error) => tracing::error!(%error, number, "cannot hold a mount's connection"),
        }
    }

    /// Forwards a message to a requester; returns whether that is gone and its mount is not ready.
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
            // Progress that does not fit is dropped, as more follows; the final message is waited for.
            Some(Asker::Elsewhere(channel)) if waits => channel.send(&word, None).is_err_and(|error| !error.is_full()),
            Some(Asker::Elsewhere(_)) => false,
        };
        if matches!(word, Word::Ready) {
            self.let_go();
            if self.service == Service::Foreground {
                systemd::tell_ready();
            }
        }
        if (gone || !waits)
            && let Some(Asker::Elsewhere(channel)) = self.askers.remove(&number)
            && !gone
        {
            requests::last_word(channel, word).await;
        }
        // A mount that is ready stays, with or without its requester.
        gone && waits
    }

    /// The first mount is ready and messages go to its log: detaches from the command's terminal.
    fn let_go(&mut self) {
        if std::mem::take(&mut self.has_terminal)
            && let Some(log) = &self.log
            && let Err(error) = background::redirect_to(log)
        {
            tracing::warn!(%error, "cannot detach from the terminal");
        }
    }

    async fn event(&mut self, server: &mut Server) -> Result<Event, HostError> {
        let idle = self.mounts.is_empty() && self.askers.is_empty();
        let failed = HostError::system("wait for the serving process");
        let overdue = self.told_to_end.get(1).map(|told| *told + ENDS_WITHIN);
        tokio::select! {
            // Messages come before the other events.
            biased;
            next = server.next() => match next.map_err(failed)? {
                Next::Message(text, connection) => Ok(Event::Message(text, connection)),
                Next::End(end) => Ok(Event::End(end)),
            },
            Some(signal) = signal(&mut self.ends) => Ok(Event::Signal(signal)),
            () = tokio::time::sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => Ok(Event::Overdue),
            Some(request) = self.requests.recv() => Ok(Event::Request(Box::new(request))),
            () = std::future::ready(()), if idle => Ok(Event::Idle),
        }
    }

    /// Starts a process of `program`, which takes over `mounts` mounts.
    async fn start(&self, program: &Path, mounts: usize) -> Result<Server, String> {
        let begin = Message::Begin {
            keeper: (&self.id).into(),
            mounts,
            log: self.log.as_ref().map(WirePath::from),
            shared: self.service == Service::Shared,
        };
        let held = self.guard.as_ref().map(Guard::held);
        Server::start(program, self.service != Service::Foreground, &begin, held).await
    }

    /// Starts a process and prepares it to take over every mount.
    async fn prepare(&mut self, program: &Path, ended: Option<String>) -> Result<Server, String> {
        if self.mounts.is_empty() || self.mounts.values().any(|mount| mount.connection.is_none()) {
            return Err("there is no mount yet, or this kernel cannot hand it to another process".into());
        }
        let mut server = self.start(program, self.mounts.len()).await?;
        match timeout(READY_WITHIN, self.hand_over(&server, ended)).await {
            Ok(Ok(())) => {
                self.mounts.values_mut().for_each(|mount| mount.shown.was_taken_over());
                Ok(server)
            }
            outcome => {
                // It is about to end, and logs why.
                let status = server.end_soon().await;
                let why = match outcome {
                    Ok(Err(ChannelError::Wire(error))) => error.to_string(),
                    _ => format!("{status}; its log may say why"),
                };
                Err(format!("`{}` could not prepare to serve ({why})", program.display()))
            }
        }
    }

    /// Sends all mounts to a new process, and waits until it is ready to take them over.
    async fn hand_over(&mut self, server: &Server, ended: Option<String>) -> Result<(), ChannelError> {
        for (number, mount) in &self.mounts {
            let message = mount.shown.to_next(*number, ended.clone());
            server.channel.deliver(&message, mount.connection.as_ref().map(OwnedFd::as_fd)).await?;
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

    /// After the serving process died: starts the next one, if possible.
    async fn replace(&mut self, ended: String) -> Result<Option<Server>, HostError> {
        // It was asked to end, and does not serve the remaining mounts any more.
        if self.told_to_end.len() > 1 {
            return Ok(None);
        }
        // The program file may have been removed; the keeper itself still runs it.
        for program in [self.program.clone(), self.program.clone(), PathBuf::from(OWN_PROGRAM)] {
            if self.mounts.is_empty() {
                return Ok(None);
            }
            let mut ends = self.ends.take();
            let prepared = tokio::select! {
                prepared = self.prepare(&program, Some(ended.clone())) => Some(prepared),
                Some(_) = signal(&mut ends) => None,
            };
            self.ends = ends;
            // The next process may be blocked by what blocked the previous one.
            let Some(prepared) = prepared else { return Ok(None) };
            match prepared {
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

    /// Replaces the serving process by one of another program; on failure the old one continues.
    async fn upgrade(&mut self, program: PathBuf, mut server: Server) -> Result<(Server, Upgraded), HostError> {
        if !self.askers.is_empty() || self.mounts.values().any(|mount| mount.shown.is_awaited()) {
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
        // It reports when it serves.
        if let Ok(Ok(Some((text, connection)))) = timeout(READY_WITHIN, next.channel.receive()).await {
            self.heard(&text, connection, &next).await;
        }
        self.program = program;
        let pause_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let pid = next.pid();
        Ok((next, Upgraded::Done { pid, pause_us }))
    }

    /// No process can serve the mounts: aborts them, so that readers do not hang.
    fn give_up(&mut self, status: &str) -> Result<(), HostError> {
        for LiveMount { connection, shown } in std::mem::take(&mut self.mounts).into_values() {
            // A process with hanging threads has the connection as well: closing it here would not end it.
            let place = shown.place();
            let is_alive = connection.as_ref().is_none_or(|connection| fuse::is_alive(connection.as_fd()));
            if is_alive
                && place.is_mounted()
                && let Err(error) = place.abort()
            {
                tracing::error!(%error, at = %place.at().display(), "cannot abort the connection of a mount");
            }
            drop(connection);
            if let Err(error) = place.unmount(OpenFiles::Keep) {
                tracing::error!(error = %crate::image::chain(&error), "cannot unmount a mount without a server");
            }
        }
        Err(HostError::BackgroundEnded { status: status.to_owned() })
    }

    /// Removes this process's files in the runtime directory; the next scan removes what is left.
    fn clean_up(&self) {
        // First the socket for mounts: a command that comes later then starts another keeper.
        for path in self.shared.iter().chain([&self.id.socket]) {
            let _ = std::fs::remove_file(path);
        }
        (1..=self.next).for_each(|number| self.id.forget(number));
        self.log.iter().for_each(|log| status::remove_empty_log(log));
    }
}

/// The next signal that ends a mount.
async fn signal(ends: &mut Option<Ends>) -> Option<Signal> {
    Some(ends.as_mut()?.wait().await)
}

/// Early deaths in a row after which the keeper gives up, or at least pauses.
const SOON_DEAD_AT_MOST: u32 = 10;
const BREATH: Duration = Duration::from_millis(50);
const HANGS: &str = "it was killed, and threads of it hang";
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Time limit for a process that was asked a second time to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const READY_WITHIN: Duration = Duration::from_secs(60);
