//! `peelfs mount`

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::background::{self, Parent, Word};
use super::handover::{Channel, Handed, Handover, KeptBy, Message};
use super::keeper;
use super::open::{self, Around, Opened};
use super::probe;
use super::server;
use super::status::{self, MountState};
use super::systemd::ServiceManager;
use crate::cli::args::{MountArgs, PrefetchArg, VerifyArg};
use crate::cli::log;
use crate::cli::options;
use crate::cli::progress::Bar;
use crate::cli::report::{Code, Report};
use crate::fuse::{self, MountError, MountOptions, MountPlace, Mounted, OpenFiles, Passthrough, mounts};
use crate::image::{Eagerness, ImageFs, Plan, Prefetch, Verify};

pub(crate) fn run(mut args: MountArgs) -> Result<(), Report> {
    let mut kernel = options::apply(&mut args)?;
    if args.share {
        return server::run(args, kernel);
    }
    if args.foreground && args.log_file.is_some() {
        return Err(Report::usage("a mount in the foreground writes its log to stderr")
            .hint("leave out `--log-file`, and write `2>>FILE`"));
    }
    open::make_absolute(&mut args.image)?;
    args.log_file = args.log_file.take().map(open::absolute);
    // Nobody serves a mount that is to be gone on with: it must not be looked at.
    let found = Supervisor::find(&args)?;
    if let Some((supervisor, Some(handed))) = found {
        let awaited = args.background_child && handed.handover.awaited;
        let mut parent = if awaited { Parent::leave_terminal() } else { Parent::none() };
        let done = in_runtime(go_on(&args, supervisor, *handed, &mut parent));
        return if awaited { told(done, &mut parent) } else { done };
    }
    let supervisor = found.map(|(supervisor, _)| supervisor);
    kernel.source.clone_from(&args.image.reference);
    let at = mount_point(&args.at);
    if !args.foreground && !args.background_child {
        return at.and_then(|_| background::start(&mut Bar::new()));
    }
    let mut parent = if args.background_child { Parent::leave_terminal() } else { Parent::none() };
    let done = at.and_then(|at| {
        if args.kept || args.no_keeper {
            return in_runtime(serve(&args, &at, &kernel, &mut parent, supervisor));
        }
        match keeper::keep(&at, args.background_child) {
            // What there was to say has been said by the process that served.
            Ok(code) if code != 0 => std::process::exit(code.into()),
            kept => kept.map(drop),
        }
    });
    if args.background_child { told(done, &mut parent) } else { done }
}

/// How it went, which the parent prints: of a process in the background nobody would read it.
pub(crate) fn told(done: Result<(), Report>, parent: &mut Parent) -> Result<(), Report> {
    match done {
        Err(report) => {
            let code = report.code;
            parent.tell(&Word::Failed(report));
            std::process::exit(code.number().into());
        }
        Ok(()) => Ok(()),
    }
}

pub(crate) fn in_runtime(serving: impl Future<Output = Result<(), Report>>) -> Result<(), Report> {
    let runtime = runtime()?;
    let served = runtime.block_on(serving);
    // Fetches that hang must not hold up the end.
    runtime.shutdown_background();
    served
}

/// Who starts another process when this one dies.
enum Supervisor {
    Keeper { channel: Channel, by: KeptBy },
    ServiceManager(ServiceManager),
}

/// A supervisor, and the mount that it has this process go on with, if that is what it was started for.
type Found = (Supervisor, Option<Box<Handed>>);

impl Supervisor {
    /// Who has started this process. Before any thread runs.
    fn find(args: &MountArgs) -> Result<Option<Found>, Report> {
        if args.kept {
            return Self::listen(args).map(Some);
        }
        let service = if args.foreground && args.no_keeper { ServiceManager::find(args) } else { None };
        Ok(service.map(|(manager, handed)| (Self::ServiceManager(manager), handed.map(Box::new))))
    }

    /// Hears what the keeper wants.
    fn listen(args: &MountArgs) -> Result<Found, Report> {
        let failed = || Report::usage("`--kept` is for peelfs itself").hint("leave it out");
        let channel = Channel::of_stdin().map_err(|_| failed())?;
        match channel.receive().map_err(|_| failed())? {
            Some((Message::Begin(by), _)) => Ok((Self::Keeper { channel, by }, None)),
            Some((Message::TakeOver(by, handover), Some(connection))) => {
                // From the first word on, unless whoever asked for the mount still waits for it.
                if args.background_child
                    && !handover.awaited
                    && let Some(log) = &handover.log
                {
                    let opened = background::open_log(log).and_then(|log| Parent::none().let_go(&log));
                    opened.map_err(|error| log_error(log, &error))?;
                }
                let opens = args.passthrough.then(|| File::options().read(true).write(true).open(by.opens()));
                let opens = opens.transpose().map_err(|error| opens_error(&error))?;
                let handed = Handed { handover: *handover, connection, opens };
                Ok((Self::Keeper { channel, by }, Some(Box::new(handed))))
            }
            _ => Err(failed()),
        }
    }

    fn kept_by(&self) -> Option<KeptBy> {
        match self {
            Self::Keeper { by, .. } => Some(by.clone()),
            Self::ServiceManager(_) => None,
        }
    }

    /// An empty file for the files that are open, which the next process will have.
    fn opens(&mut self) -> Result<File, Report> {
        let opens = match self {
            Self::Keeper { by, .. } => {
                File::options().write(true).create(true).truncate(true).mode(0o600).open(by.opens())
            }
            Self::ServiceManager(manager) => manager.opens(),
        };
        opens.map_err(|error| opens_error(&error))
    }

    /// This process is ready to go on with a mount; returns when it is to serve.
    fn prepared(&self) -> Result<(), Report> {
        let Self::Keeper { channel, .. } = self else { return Ok(()) };
        match channel.send(&Message::Prepared, None).and_then(|()| channel.receive()) {
            Ok(Some((Message::Go, _))) => Ok(()),
            _ => Err(Report::new(Code::Failure, "the keeper is gone")),
        }
    }

    /// This is how another process could go on; with the connection at the first time, if one could.
    fn serving(&mut self, handover: Handover, connection: Option<BorrowedFd<'_>>) {
        match self {
            Self::Keeper { channel, .. } => {
                if let Err(error) = channel.send(&Message::Serving(Box::new(handover)), connection) {
                    tracing::warn!(%error, "the keeper is gone; nobody goes on with this mount if this process dies");
                }
            }
            Self::ServiceManager(manager) => manager.serving(handover, connection),
        }
    }

    /// The mount has ended.
    fn ended(&mut self) {
        if let Self::ServiceManager(manager) = self {
            manager.ended();
        }
    }
}

pub(crate) fn verify(args: &MountArgs) -> Verify {
    match args.verify {
        VerifyArg::Strict => Verify::BeforeShowing,
        VerifyArg::Behind => Verify::Behind,
    }
}

/// Begins to fetch what the command line says ahead of its readers, and to record what they read at the mount's start.
pub(crate) fn start_prefetching(args: &MountArgs, plan: &Plan, fs: &Arc<ImageFs>) -> tokio::task::JoinHandle<()> {
    let what = match args.prefetch {
        PrefetchArg::All => Prefetch::All,
        PrefetchArg::Profile => Prefetch::Profile,
        PrefetchArg::None => Prefetch::None,
    };
    let (command, fs) = (plan.configuration.command(), Arc::clone(fs));
    tokio::spawn(async move {
        let foresee = async {
            if what != Prefetch::None {
                fs.prefetch_programs(&command).await;
            }
        };
        // In this order: where a profile speaks, nothing is guessed.
        tokio::join!(biased; fs.prefetch(what), foresee, fs.record());
    })
}

/// From now on the source is tried for as long as it takes, and readers wait as the user has said.
pub(crate) fn outlast(opened: &Opened, args: &MountArgs) {
    if let Some(outages) = opened.source.outages() {
        outages.outlast(args.on_outage);
    }
}

/// Mounts and serves until somebody unmounts.
async fn serve(
    args: &MountArgs,
    at: &Path,
    kernel: &MountOptions,
    parent: &mut Parent,
    mut supervisor: Option<Supervisor>,
) -> Result<(), Report> {
    let mut ends = Ends::new()?;
    let opened = tokio::select! {
        opened = open::open(&args.image) => opened?,
        _ = ends.wait() => return Err(Report::new(Code::Failure, "interrupted before the image was mounted")),
    };
    let fs = opened.files(Eagerness::Background, verify(args));
    let mut kernel = kernel.clone();
    if args.passthrough {
        let opens = supervisor.as_mut().map(Supervisor::opens).transpose()?;
        kernel.passthrough = Some(Arc::new(Passthrough { trial: opened.store.trial_file()?, opens }));
    }
    let mounted = fuse::mount(Arc::clone(&fs), at, &kernel)?;
    if let Some(by) = supervisor.as_ref().and_then(Supervisor::kept_by) {
        by.keep_documents(0, &opened.plan.documents);
    }
    let connection = supervisor.as_ref().and_then(|_| mounted.connection()?.try_clone_to_owned().ok());
    let log = if args.background_child { Some(log_file(args, std::process::id())?) } else { None };
    let handover = handover(mounted.place(), &opened, log);
    Serving { args, opened, fs, mounted, handover }.until_unmounted(supervisor, connection, parent, ends).await
}

/// Goes on with a mount that another process has served.
async fn go_on(args: &MountArgs, supervisor: Supervisor, handed: Handed, parent: &mut Parent) -> Result<(), Report> {
    let Handed { handover, connection, opens } = handed;
    let ends = Ends::new()?;
    let before = supervisor.kept_by().map(|by| by.kept_documents(0)).unwrap_or_default();
    let around = Around::of_process(&args.image)?;
    let opened = open::open_again(&args.image, &handover.root, &before, &around).await?;
    same_manifest(&opened, &handover)?;
    let fs = opened.files(Eagerness::Background, verify(args));
    fs.goes_on_after(handover.age());
    supervisor.prepared()?;
    let mounted = fuse::take_over(connection, Arc::clone(&fs), handover.place.clone(), opens, args.let_cpus_sleep)?;
    if let Some(how) = &handover.ended {
        tracing::warn!(
            how,
            takeovers = handover.takeovers,
            "the process that served this mount died; going on with it"
        );
    }
    Serving { args, opened, fs, mounted, handover }.until_unmounted(Some(supervisor), None, parent, ends).await
}

/// A mount that this process serves.
struct Serving<'a> {
    args: &'a MountArgs,
    opened: Opened,
    fs: Arc<ImageFs>,
    mounted: Mounted,
    handover: Handover,
}

impl Serving<'_> {
    /// Serves until somebody unmounts.
    async fn until_unmounted(
        self,
        mut supervisor: Option<Supervisor>,
        connection: Option<OwnedFd>,
        parent: &mut Parent,
        mut ends: Ends,
    ) -> Result<(), Report> {
        let Self { args, opened, fs, mounted, mut handover } = self;
        let (place, gone) = (mounted.place(), mounted.gone());
        let served = tokio::spawn(mounted.served());
        let prefetching = start_prefetching(args, &opened.plan, &fs);
        if let Some(supervisor) = &mut supervisor {
            supervisor.serving(handover.clone(), connection.as_ref().map(OwnedFd::as_fd));
        }
        let mut own = MountState::of_this_process(&handover, &opened);
        own.service = matches!(supervisor, Some(Supervisor::ServiceManager(_)));
        own.keeper = supervisor.as_ref().and_then(Supervisor::kept_by);
        let published = status::publish(own, Arc::clone(&fs), opened.registry.clone());
        if handover.awaited {
            let log = match begin(args, handover.log.as_deref(), &fs, parent, gone, &mut ends).await {
                Ok(log) => log,
                Err(report) => {
                    if !served.is_finished() {
                        end(&place);
                    }
                    supervisor.iter_mut().for_each(Supervisor::ended);
                    return Err(report);
                }
            };
            handover.awaited = false;
            if let Some(supervisor) = &mut supervisor {
                supervisor.serving(handover, None);
            }
            parent.tell(&Word::Ready);
            if let Some(log) = log
                && let Err(error) = parent.let_go(&log)
            {
                tracing::warn!(%error, "cannot let go of the terminal");
            }
        }
        log::log_failures();
        outlast(&opened, args);
        wait_for_end(served, &place, &mut ends).await;
        supervisor.iter_mut().for_each(Supervisor::ended);
        prefetching.abort();
        fs.keep_profiles();
        drop(published);
        Ok(())
    }
}

/// Whether what was opened is what was mounted.
pub(crate) fn same_manifest(opened: &Opened, handover: &Handover) -> Result<(), Report> {
    if opened.plan.manifest.digest == handover.manifest {
        return Ok(());
    }
    let message = format!("{} is not what was mounted: it names another manifest now", opened.reference);
    Err(Report::new(Code::Verification, message))
}

/// How another process could go on with a mount that was just made.
pub(crate) fn handover(place: MountPlace, opened: &Opened, log: Option<PathBuf>) -> Handover {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Handover {
        place,
        root: opened.plan.root.digest.clone(),
        manifest: opened.plan.manifest.digest.clone(),
        log,
        since: since.as_secs(),
        takeovers: 0,
        ended: None,
        awaited: true,
        shared: None,
    }
}

/// What lies between the mount and the moment at which the user's command returns; gives the log that is written to
/// from then on.
async fn begin(
    args: &MountArgs,
    log: Option<&Path>,
    fs: &Arc<ImageFs>,
    parent: &mut Parent,
    gone: impl Future<Output = ()>,
    ends: &mut Ends,
) -> Result<Option<File>, Report> {
    // Before anybody is told that all is well.
    let log = log.map(|log| background::open_log(log).map_err(|error| log_error(log, &error))).transpose()?;
    if args.wait {
        let mut bar = Bar::new();
        let known = all_known(fs, gone, |total, done| {
            if !parent.is_listening() {
                bar.show(total, done);
                return Ok(());
            }
            parent.tell(&Word::Progress(total, done));
            if parent.is_listening() { Ok(()) } else { Err(interrupted_early()) }
        });
        tokio::select! {
            known = known => known?,
            _ = ends.wait() => return Err(interrupted_early()),
        }
        bar.end();
    }
    Ok(log)
}

/// Waits until every layer is indexed and verified, saying now and then how many bytes there are to read and how
/// many have been; an error of `tell` ends the wait, and so does an unmount.
pub(crate) async fn all_known(
    fs: &Arc<ImageFs>,
    gone: impl Future<Output = ()>,
    mut tell: impl FnMut(u64, u64) -> Result<(), Report>,
) -> Result<(), Report> {
    let all = fs.all_known();
    tokio::pin!(all, gone);
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            known = &mut all => return Ok(known?),
            () = &mut gone => return Err(unmounted_early()),
            _ = ticks.tick() => {
                let (total, done) = fs.progress();
                tell(total, done)?;
            }
        }
    }
}

/// Somebody has unmounted what others wait for.
fn unmounted_early() -> Report {
    Report::new(Code::Failure, "unmounted before every layer was verified")
}

fn interrupted_early() -> Report {
    Report::new(Code::Failure, "interrupted before every layer was verified")
}

fn opens_error(error: &std::io::Error) -> Report {
    Report::new(Code::Failure, format!("cannot keep which files are open: {error}"))
}

pub(crate) fn log_error(log: &Path, error: &std::io::Error) -> Report {
    Report::new(Code::Failure, format!("cannot write the log `{}`: {error}", log.display()))
}

/// Serves until somebody unmounts, or a signal does: the first one frees the path and lets open files
/// be read to their end, a second one ends the process.
async fn wait_for_end(served: tokio::task::JoinHandle<std::io::Result<()>>, place: &MountPlace, ends: &mut Ends) {
    tokio::pin!(served);
    tokio::select! {
        _ = &mut served => return,
        _ = ends.wait() => end(place),
    }
    tokio::select! {
        _ = &mut served => {}
        _ = ends.wait() => {}
    }
}

/// Unmounts; open files can be read to their end.
pub(crate) fn end(place: &MountPlace) {
    if let Err(error) = place.take_away() {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
    }
}

/// The directory to mount on, absolute, and fit for it.
pub(crate) fn mount_point(typed: &Path) -> Result<PathBuf, Report> {
    let shown = typed.display();
    let at = mounts::followed(typed).map_err(|error| {
        Report::new(Code::NotFound, format!("cannot mount on `{shown}`: {error}"))
            .hint(format!("make it with `mkdir -p {shown}`"))
    })?;
    // First this: a mount whose server hangs must not be looked at.
    if let Some(mounted) = mounts::at(&at).filter(mounts::MountPoint::is_peelfs) {
        if probe::ask(&at) != probe::Answer::Gone {
            return Err(MountError::Taken { at: typed.to_owned(), reference: mounted.source }.into());
        }
        eprintln!("note: clearing a mount on `{shown}` whose process is gone");
        fuse::unmount(&at, OpenFiles::Keep)?;
        return mount_point(typed);
    }
    match std::fs::metadata(&at) {
        Err(error) => Err(Report::new(Code::NotFound, format!("cannot mount on `{shown}`: {error}"))
            .hint(format!("make it with `mkdir -p {shown}`"))),
        Ok(found) if !found.is_dir() => Err(Report::usage(format!("cannot mount on `{shown}`: it is not a directory"))),
        Ok(_) => Ok(at),
    }
}

pub(crate) fn log_file(args: &MountArgs, pid: u32) -> Result<PathBuf, Report> {
    match &args.log_file {
        Some(path) => Ok(path.clone()),
        None => Ok(status::make_directory()?.join(format!("{pid}.log"))),
    }
}

/// A runtime, as many open files as this process may have, and no core dumps.
///
/// Each layer keeps three files open, and the usual limit of 1024 is there for programs that use select(2).
/// A core dump would hold passwords and tokens; a limit of one byte forbids also those that are piped to a
/// program, where a limit of zero is ignored (core(5)).
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Report> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    raise_file_limit();
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) }) {
        tracing::debug!(%error, "cannot forbid core dumps");
    }
    make_room_for_files();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Report::new(Code::Failure, format!("cannot start: {error}")))
}

/// Lets this process have as many files open as it may.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Lets the kernel make its table of this process's open files large at once, by opening one with a high number.
///
/// It makes a larger table whenever the last one is full; in a process with threads each time takes some 10 ms,
/// until no CPU looks at the old one (`expand_fdtable`), and five hundred layers would pay for five of them.
fn make_room_for_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let last = limit.min(ROOM_FOR_FILES).saturating_sub(1) as i32;
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last) {
        tracing::debug!(%error, "no room for many files is made ahead");
    }
}

/// Those of some 700 layers; 8 bytes each.
const ROOM_FOR_FILES: u64 = 2048;

/// The signals that end a mount.
pub(crate) struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Ends {
    pub(crate) fn new() -> Result<Self, Report> {
        let listen = |kind| {
            signal(kind).map_err(|error| Report::new(Code::Failure, format!("cannot listen to signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn wait(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }
}

const TICK: Duration = Duration::from_millis(100);
