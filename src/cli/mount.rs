//! `peelfs mount`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::args::{MountArgs, VerifyArg};
use super::daemon::{self, Parent, Word};
use super::open::{self, Opened};
use super::options;
use super::progress::Bar;
use super::report::{Code, Report};
use super::state::{self, MountState, Published};
use crate::fuse::{self, MountOptions, MountPlace, OpenFiles, mounts};
use crate::image::{Eagerness, ImageFs, Verify};
use crate::reference::Reference;

pub(super) fn run(mut args: MountArgs) -> Result<(), Report> {
    let mut kernel = options::apply(&mut args)?;
    kernel.source = args.image.reference.parse::<Reference>()?.to_string();
    let at = mount_point(&args.at)?;
    if !args.foreground && !args.background_child {
        return daemon::start(&mut Bar::new());
    }
    let mut parent = if args.background_child { Parent::leave_terminal() } else { Parent::none() };
    let runtime = runtime()?;
    let served = runtime.block_on(serve(&args, &at, &kernel, &mut parent));
    // Fetches that hang must not hold up the end.
    runtime.shutdown_background();
    match served {
        // The parent prints it; here nobody would read it.
        Err(report) if args.background_child => {
            parent.tell(&Word::Failed(report));
            Ok(())
        }
        served => served,
    }
}

/// Mounts and serves until somebody unmounts.
async fn serve(args: &MountArgs, at: &Path, kernel: &MountOptions, parent: &mut Parent) -> Result<(), Report> {
    let mut ends = Ends::new()?;
    let opened = tokio::select! {
        opened = open::open(&args.image) => opened?,
        () = ends.wait() => return Err(Report::new(Code::Failure, "interrupted before the image was mounted")),
    };
    let verify = match args.verify {
        VerifyArg::Strict => Verify::BeforeShowing,
        VerifyArg::Behind => Verify::Behind,
    };
    let fs = opened.files(Eagerness::Background, verify);
    let mounted = fuse::mount(Arc::clone(&fs), at, kernel)?;
    let place = mounted.place();
    let served = tokio::task::spawn_blocking(move || mounted.wait());
    let begun = begin(args, at, &opened, &fs, parent, &mut ends).await;
    let published = match begun {
        Ok(published) => published,
        Err(report) => {
            end(&place);
            return Err(report);
        }
    };
    wait_for_end(served, &place, &mut ends).await;
    drop(published);
    Ok(())
}

/// What lies between the mount and the moment at which the user's command returns.
async fn begin(
    args: &MountArgs,
    at: &Path,
    opened: &Opened,
    fs: &Arc<ImageFs>,
    parent: &mut Parent,
    ends: &mut Ends,
) -> Result<Published, Report> {
    let cache = opened.store.root();
    let manifest = opened.plan.manifest.digest.to_string();
    let mut own = MountState::of_this_process(at, opened.reference.to_string(), manifest, cache);
    let log = log_file(args, own.pid)?;
    own.log = args.background_child.then(|| log.clone());
    let published = state::publish(own, Arc::clone(fs), opened.registry.clone())?;
    if args.wait {
        tokio::select! {
            known = all_known(fs, parent) => known?,
            () = ends.wait() => return Err(Report::new(Code::Failure, "interrupted before every layer was verified")),
        }
    }
    parent.tell(&Word::Ready);
    parent
        .let_go(&log)
        .map_err(|error| Report::new(Code::Failure, format!("cannot write the log `{}`: {error}", log.display())))?;
    Ok(published)
}

/// Serves until somebody unmounts, or a signal does: the first one frees the path and lets open files
/// be read to their end, a second one ends the process.
async fn wait_for_end(served: tokio::task::JoinHandle<std::io::Result<()>>, place: &MountPlace, ends: &mut Ends) {
    tokio::pin!(served);
    tokio::select! {
        _ = &mut served => return,
        () = ends.wait() => end(place),
    }
    tokio::select! {
        _ = &mut served => {}
        () = ends.wait() => {}
    }
}

/// Waits until every layer is indexed and verified, telling how far it is.
async fn all_known(fs: &Arc<ImageFs>, parent: &mut Parent) -> Result<(), Report> {
    let mut bar = Bar::new();
    let all = fs.all_known();
    tokio::pin!(all);
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            known = &mut all => {
                bar.end();
                return Ok(known?);
            }
            _ = ticks.tick() => {
                let (total, done) = fs.progress();
                if parent.is_listening() {
                    parent.tell(&Word::Progress(total, done));
                } else {
                    bar.show(total, done);
                }
            }
        }
    }
}

/// Unmounts; open files can be read to their end.
fn end(place: &MountPlace) {
    if place.unmount(OpenFiles::Refuse).is_ok() {
        return;
    }
    if let Err(error) = place.unmount(OpenFiles::Keep) {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
    }
}

/// The directory to mount on, absolute, and fit for it.
fn mount_point(typed: &Path) -> Result<PathBuf, Report> {
    let shown = typed.display();
    let at = mounts::absolute(typed).map_err(|error| {
        Report::new(Code::NotFound, format!("cannot mount on `{shown}`: {error}"))
            .hint(format!("make it with `mkdir -p {shown}`"))
    })?;
    let mounted = mounts::at(&at).filter(mounts::MountPoint::is_peelfs);
    match (std::fs::metadata(&at), mounted) {
        (_, Some(_)) if !mounts::is_served(&at) => {
            eprintln!("note: clearing a mount on `{shown}` whose process is gone");
            fuse::unmount(&at, OpenFiles::Keep)?;
            mount_point(typed)
        }
        (_, Some(mounted)) => Err(Report::usage(format!("`{shown}` is already a peelfs mount of {}", mounted.source))
            .hint(format!("unmount it with `peelfs umount {shown}`"))),
        (Err(error), None) => Err(Report::new(Code::NotFound, format!("cannot mount on `{shown}`: {error}"))
            .hint(format!("make it with `mkdir -p {shown}`"))),
        (Ok(found), None) if !found.is_dir() => {
            Err(Report::usage(format!("cannot mount on `{shown}`: it is not a directory")))
        }
        (Ok(_), None) => Ok(at),
    }
}

fn log_file(args: &MountArgs, pid: u32) -> Result<PathBuf, Report> {
    match &args.log_file {
        Some(path) => Ok(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        None => Ok(state::directory()?.join(format!("{pid}.log"))),
    }
}

/// A runtime, and as many open files as this process may have: each layer keeps three, and the usual
/// limit of 1024 is there for programs that use select(2).
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Report> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Report::new(Code::Failure, format!("cannot start: {error}")))
}

/// The signals that end a mount.
struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> Result<Self, Report> {
        let listen = |kind| {
            signal(kind).map_err(|error| Report::new(Code::Failure, format!("cannot listen to signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

const TICK: Duration = Duration::from_millis(100);
