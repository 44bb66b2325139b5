//! `peelfs mount --share`: one process serves many mounts of one user and cache.
//!
//! The command asks the [keeper](super::keeper) of that process over a socket whose name comes from the
//! cache directory, and starts one where there is none. The keeper passes the request on and holds the
//! connections of all mounts, so that another process can go on with all of them. What mounts of one
//! process share is said in [`crate::content::SharedLayers`]; each has its own options, source and credentials.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::background::{self, Parent, Word};
use super::handover::{AsyncChannel, Channel, Handover, KeptBy, Message, Request};
use super::keeper;
use super::mount::{self, Ends};
use super::open::{self, Around, Opened};
use super::status::{self, MountState};
use crate::cli::args::MountArgs;
use crate::cli::progress::Bar;
use crate::cli::report::{Code, Report};
use crate::digest::{Algorithm, Digest};
use crate::fuse::{self, MountOptions, MountPlace, Mounted};
use crate::image::{Eagerness, ImageFs, SharedLayers};
use crate::reference::Reference;
use crate::source::registry::Surroundings;

pub(crate) fn run(args: MountArgs, kernel: MountOptions) -> Result<(), Report> {
    if args.kept {
        return serve_kept(args);
    }
    if args.background_child {
        return keep(&args);
    }
    if args.foreground || args.no_keeper {
        return Err(Report::usage("a shared mount is served in the background and has a keeper"));
    }
    if args.passthrough {
        let hint = "leave out `--share` or `--passthrough`";
        return Err(Report::usage("a mount with passthrough has a process of its own").hint(hint));
    }
    let socket = socket(&args)?;
    let request = request(args, kernel)?;
    for _ in 0..TRIES {
        mount::mount_point(&request.args.at)?;
        if let Some(told) = ask(&connect(&socket)?, &request)? {
            return told;
        }
        // It was about to end with its last mount; the next one takes its place.
    }
    Err(Report::new(Code::Failure, "the process that serves shared mounts ended early")
        .hint("its log is in the directory that `peelfs status` shows; mount without `--share`"))
}

/// Where the keeper of the shared mounts of a cache can be asked.
fn socket(args: &MountArgs) -> Result<PathBuf, Report> {
    use std::os::unix::ffi::OsStrExt as _;
    let cache = open::cache_dir(&args.image.access.cache)?;
    let name = Digest::of(Algorithm::Sha256, cache.as_os_str().as_bytes());
    Ok(status::make_directory()?.join(format!("{}.share", &name.hex()[..16])))
}

/// The log of all shared mounts of a cache.
fn log(args: &MountArgs, keeper: u32) -> Result<PathBuf, Report> {
    mount::log_file(args, keeper).map(open::absolute)
}

/// What this command line asks for, so that it means the same in another directory and environment.
fn request(mut args: MountArgs, mut kernel: MountOptions) -> Result<Request, Report> {
    let reference: Reference = args.image.reference.parse()?;
    open::tell_notes(&reference);
    open::check_authfile(&args.image.access)?;
    open::make_absolute(&mut args.image)?;
    kernel.source.clone_from(&args.image.reference);
    let cache = &mut args.image.access.cache;
    cache.cache_dir = Some(open::cache_dir(cache)?);
    args.log_file = args.log_file.take().map(open::absolute);
    args.at = mount::mount_point(&args.at)?;
    Ok(Request { args, kernel, surroundings: Surroundings::of_process() })
}

/// A connection to the keeper, which is started if there is none.
fn connect(socket: &Path) -> Result<UnixStream, Report> {
    let failed = |error: io::Error| Report::new(Code::Failure, format!("cannot share a process: {error}"));
    if let Ok(stream) = UnixStream::connect(socket) {
        return Ok(stream);
    }
    // One at a time, so that there is one keeper. Nobody else may enter the directory, let alone lock it.
    let starting = socket.parent().map(File::open).expect("it lies in a directory");
    let starting = starting.and_then(|directory| directory.lock().map(|()| directory)).map_err(failed)?;
    if let Ok(stream) = UnixStream::connect(socket) {
        return Ok(stream);
    }
    background::start(&mut Bar::new())?;
    drop(starting);
    UnixStream::connect(socket).map_err(failed)
}

/// Asks for a mount; `None` when the keeper has ended before it could say anything.
fn ask(mut stream: &UnixStream, request: &Request) -> Result<Option<Result<(), Report>>, Report> {
    let asked = serde_json::to_vec(request)
        .map_err(|error| Report::usage(format!("cannot share a process: {error}")).hint("mount without `--share`"))?;
    if stream.write_all(&asked).and_then(|()| stream.shutdown(Shutdown::Write)).is_err() {
        return Ok(None);
    }
    let mut bar = Bar::new();
    for word in BufReader::new(stream).lines() {
        let Ok(word) = word else { break };
        match serde_json::from_str(&word) {
            Ok(Word::Progress(total, done)) => bar.show(total, done),
            Ok(Word::Ready) => {
                bar.end();
                return Ok(Some(Ok(())));
            }
            Ok(Word::Failed(report)) => {
                bar.end();
                return Ok(Some(Err(report)));
            }
            Err(error) => tracing::debug!(%error, "the keeper said something else"),
        }
    }
    bar.end();
    Ok(None)
}

/// The process in the background that keeps the mounts.
fn keep(args: &MountArgs) -> Result<(), Report> {
    let mut parent = Parent::leave_terminal();
    let done = socket(args).and_then(|socket| {
        let log = log(args, std::process::id())?;
        background::open_log(&log).map_err(|error| mount::log_error(&log, &error))?;
        keeper::keep_shared(&socket, &log, &mut parent)
    });
    mount::told(done, &mut parent)
}

/// The process that serves: all that its mounts have in common.
struct Server {
    channel: AsyncChannel,
    by: KeptBy,
    log: PathBuf,
    shared_layers: SharedLayers,
}

fn serve_kept(args: MountArgs) -> Result<(), Report> {
    let failed = || Report::usage("`--kept` is for peelfs itself").hint("leave it out");
    let channel = Channel::of_stdin().map_err(|_| failed())?;
    let (by, count) = match channel.receive().map_err(|_| failed())? {
        Some((Message::Resume(by, count), _)) => (by, count),
        _ => return Err(failed()),
    };
    let mut handed = Vec::new();
    for _ in 0..count {
        match channel.receive().map_err(|_| failed())? {
            Some((Message::TakeOver(_, handover), Some(connection))) => handed.push((*handover, connection)),
            _ => return Err(failed()),
        }
    }
    mount::in_runtime(async move {
        let log = log(&args, by.pid)?;
        let shared_layers = open::shared_layers(&args.image.access.cache)?;
        let channel = AsyncChannel::new(channel).map_err(|_| failed())?;
        Arc::new(Server { channel, by, log, shared_layers }).run(handed).await
    })
}

/// A mount that is ready to be gone on with.
struct Resumed {
    handover: Handover,
    connection: OwnedFd,
    opened: Opened,
    fs: Arc<ImageFs>,
}

impl Server {
    /// Serves until the last mount has ended and nobody asks for another one.
    async fn run(self: Arc<Self>, handed: Vec<(Handover, OwnedFd)>) -> Result<(), Report> {
        let mut ends = Ends::new()?;
        let mut mounts = JoinSet::new();
        let mut places = HashMap::new();
        for resumed in self.prepare(handed).await? {
            if let Some((number, place, served)) = self.resume(resumed).await {
                places.insert(number, place);
                mounts.spawn(served);
            }
        }
        let (made, mut to_serve) = tokio::sync::mpsc::unbounded_channel();
        let mut kept = true;
        let mut ending = false;
        while kept || !mounts.is_empty() {
            tokio::select! {
                message = self.channel.receive(), if kept => match message {
                    Ok(Some((Message::Mount(number, request), _))) => {
                        let (server, made) = (Arc::clone(&self), made.clone());
                        tokio::spawn(async move {
                            match Arc::clone(&server).mount(number, *request).await {
                                // The receiver lives as long as the process.
                                Ok(mounted) => drop(made.send(mounted)),
                                Err(report) => server.tell(number, Word::Failed(report)).await,
                            }
                        });
                    }
                    Ok(Some((Message::GivenUp(number), _))) => places.get(&number).into_iter().for_each(mount::end),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => kept = false,
                },
                Some((number, place, served)) = to_serve.recv() => {
                    places.insert(number, place);
                    mounts.spawn(served);
                }
                Some(number) = mounts.join_next() => {
                    if let Ok(number) = number {
                        places.remove(&number);
                        self.say(&Message::Ended(number), None).await;
                    }
                }
                _ = ends.wait() => {
                    if ending {
                        return Ok(());
                    }
                    ending = true;
                    places.values().for_each(mount::end);
                }
            }
        }
        Ok(())
    }

    /// Opens what another process has served, and waits until that one is gone.
    async fn prepare(&self, handed: Vec<(Handover, OwnedFd)>) -> Result<Vec<Resumed>, Report> {
        if handed.is_empty() {
            return Ok(Vec::new());
        }
        let mut ready = Vec::new();
        for (handover, connection) in handed {
            match self.reopen(&handover).await {
                Ok((opened, fs)) => ready.push(Resumed { handover, connection, opened, fs }),
                // Nobody else can serve it any more.
                Err(report) if handover.ended.is_some() => {
                    tracing::error!(at = %handover.place.at().display(), error = %report.message, "cannot go on with a mount");
                    drop(connection);
                    mount::end(&handover.place);
                    let number = handover.shared.map_or(0, |(number, _)| number);
                    self.say(&Message::Ended(number), None).await;
                }
                Err(report) => return Err(report),
            }
        }
        self.say(&Message::Prepared, None).await;
        match self.channel.receive().await {
            Ok(Some((Message::Go, _))) => Ok(ready),
            _ => Err(Report::new(Code::Failure, "the keeper is gone")),
        }
    }

    async fn reopen(&self, handover: &Handover) -> Result<(Opened, Arc<ImageFs>), Report> {
        let Some((number, request)) = &handover.shared else {
            return Err(Report::new(Code::Failure, "it is not known what was asked for"));
        };
        let around = self.around(request);
        let before = self.by.kept_documents(*number);
        let opened = open::open_again(&request.args.image, &handover.root, &before, &around).await?;
        mount::same_manifest(&opened, handover)?;
        let fs = opened.files(Eagerness::Background, mount::verify(&request.args));
        fs.goes_on_after(handover.age());
        Ok((opened, fs))
    }

    /// Goes on with a mount.
    async fn resume(self: &Arc<Self>, resumed: Resumed) -> Option<Serving<impl Future<Output = u64> + use<>>> {
        let Resumed { handover, connection, opened, fs } = resumed;
        let (number, request) = handover.shared.clone()?;
        let let_cpus_sleep = request.args.let_cpus_sleep;
        let place = handover.place.clone();
        let mounted = match fuse::take_over(connection, Arc::clone(&fs), place, None, let_cpus_sleep) {
            Ok(mounted) => mounted,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot go on with a mount");
                self.say(&Message::Ended(number), None).await;
                return None;
            }
        };
        if let Some(how) = &handover.ended {
            let at = handover.place.at().display();
            tracing::warn!(how, %at, "the process that served this mount died; going on with it");
        }
        self.say(&Message::Serving(Box::new(handover.clone())), None).await;
        let place = mounted.place();
        Some((number, place, Arc::clone(self).serve(number, *request, opened, fs, mounted, handover)))
    }

    /// Mounts what was asked for.
    async fn mount(
        self: Arc<Self>,
        number: u64,
        request: Request,
    ) -> Result<Serving<impl Future<Output = u64> + use<>>, Report> {
        self.refuse_conflicts(&request.args)?;
        let opened = open::open_for(&request.args.image, &self.around(&request)).await?;
        let fs = opened.files(Eagerness::Background, mount::verify(&request.args));
        let mounted = fuse::mount(Arc::clone(&fs), &request.args.at, &request.kernel)?;
        self.by.keep_documents(number, &opened.plan.documents);
        let place = mounted.place();
        let shared = Some((number, Box::new(request.clone())));
        let handover = Handover { shared, ..mount::handover(place.clone(), &opened, Some(self.log.clone())) };
        let connection = mounted.connection().and_then(|connection| connection.try_clone_to_owned().ok());
        let words = Message::Serving(Box::new(handover.clone()));
        self.say(&words, connection.as_ref().map(|connection| connection.as_fd())).await;
        Ok((number, place, self.serve(number, request, opened, fs, mounted, handover)))
    }

    /// Serves a mount until it ends.
    async fn serve(
        self: Arc<Self>,
        number: u64,
        request: Request,
        opened: Opened,
        fs: Arc<ImageFs>,
        mounted: Mounted,
        mut handover: Handover,
    ) -> u64 {
        let mut own = MountState::of_this_process(&handover, &opened);
        (own.keeper, own.shared) = (Some(self.by.clone()), true);
        let published = status::publish(own, Arc::clone(&fs), opened.registry.clone());
        let prefetching = mount::start_prefetching(&request.args, &opened.plan, &fs);
        let waited = if request.args.wait && handover.awaited {
            let tell = |total, done| {
                // If the keeper cannot take that now, it soon hears of it again. It is who knows whether somebody waits.
                let _ = self.channel.send(&Message::Tell(number, Word::Progress(total, done)), None);
                Ok(())
            };
            mount::all_known(&fs, mounted.gone(), tell).await
        } else {
            Ok(())
        };
        match waited {
            Ok(()) => {
                mount::outlast(&opened, &request.args);
                if handover.awaited {
                    handover.awaited = false;
                    self.say(&Message::Serving(Box::new(handover)), None).await;
                }
                // A process that goes on says it once more: the one before may have died before it could.
                self.tell(number, Word::Ready).await;
            }
            Err(report) => {
                if !mounted.is_gone() {
                    mount::end(&mounted.place());
                }
                self.tell(number, Word::Failed(report)).await;
            }
        }
        if let Err(error) = mounted.served().await {
            tracing::error!(%error, "a mount is served no more");
        }
        prefetching.abort();
        fs.keep_profiles();
        drop((fs, opened));
        drop(published);
        number
    }

    /// What concerns the process was settled by the first mount.
    fn refuse_conflicts(&self, wanted: &MountArgs) -> Result<(), Report> {
        let refuse = |what: &str| {
            let message = format!("the process that serves shared mounts of this cache has another {what}");
            Err(Report::usage(message).hint(format!("leave out `--{what}`, or mount without `--share`")))
        };
        let size = wanted.image.access.cache.cache_size;
        if size.is_some() && size != self.shared_layers.store().limit() {
            return refuse("cache-size");
        }
        if wanted.log_file.as_ref().is_some_and(|log| *log != self.log) {
            return refuse("log-file");
        }
        Ok(())
    }

    fn around(&self, request: &Request) -> Around {
        Around { surroundings: request.surroundings.clone(), shared_layers: self.shared_layers.clone() }
    }

    async fn tell(&self, number: u64, word: Word) {
        self.say(&Message::Tell(number, word), None).await;
    }

    async fn say(&self, message: &Message, connection: Option<std::os::fd::BorrowedFd<'_>>) {
        if let Err(error) = self.channel.deliver(message, connection).await {
            tracing::warn!(%error, "the keeper is gone; nobody goes on with these mounts if this process dies");
        }
    }
}

/// A mount's number, its place, and what serves it to its end.
type Serving<F> = (u64, MountPlace, F);

/// How many keepers may be about to end when they are asked.
const TRIES: usize = 5;
