//! A mount served by the calling process, without a keeper.

use std::path::PathBuf;

use super::channel::AsyncChannel;
use super::error::HostError;
use super::handover::Handed;
use super::mount::{self, Asker, Mount, Prepared};
use super::process::{self, Ends};
use super::report::Report;
use super::spec::MountSpec;
use super::supervisor::Supervisor;
use super::systemd::ServiceManager;
use super::wire::v1::Word;
use super::{Progress, background, ending, mount_point, open, requests, status};
use crate::image::Documents;

/// Mounts in the foreground, or takes over what a service manager has stored, and serves until the mount has ended.
///
/// # Errors
/// [`HostError`]
pub fn serve(spec: &MountSpec, progress: Box<dyn Progress>) -> Result<(), HostError> {
    // Must come before any thread starts.
    let (supervisor, handed) = match ServiceManager::find(spec) {
        Some((manager, handed)) => (Supervisor::ServiceManager(manager), handed),
        None => (Supervisor::None, None),
    };
    if matches!(supervisor, Supervisor::ServiceManager(_)) {
        requests::check_size(spec)?;
    }
    let mut here = Here { progress, failure: None };
    let spec = match handed {
        Some(_) => spec.clone(),
        None => {
            let found = MountSpec { at: mount_point::find(&spec.at, here.progress.as_mut())?, ..spec.clone() };
            mount_point::hold(&found, &spec.at)?;
            found
        }
    };
    let mut interrupted = false;
    mount::in_runtime(async {
        interrupted = run(&spec, supervisor, handed, None, &mut here).await? == Ended::BySignal;
        Ok(())
    })?;
    match here.failure {
        None => Ok(()),
        Some(HostError::UnmountedBeforeVerified) if interrupted => Err(HostError::InterruptedBeforeVerified),
        Some(failure) => Err(failure),
    }
}

/// Runs this process in the background for the command that started it.
///
/// # Errors
/// [`HostError`]
pub fn run_in_background() -> Result<(), HostError> {
    process::leave_terminal();
    process::leave_directory();
    let (spec, channel) = requests::receive_mount("command")?;
    let log = match &spec.log {
        Some(log) => log.clone(),
        None => status::make_directory()?.join(format!("{}.log", std::process::id())),
    };
    mount::in_runtime(async move {
        let channel = AsyncChannel::new(channel).map_err(HostError::system("talk to the command"))?;
        let mut caller = Caller { channel, log };
        let log = caller.log.clone();
        let done = match background::open_log(&log) {
            Ok(_) => run(&spec, Supervisor::None, None, Some(log), &mut caller).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            caller.failed(error).await;
        }
        Ok(())
    })
}

async fn run(
    spec: &MountSpec,
    supervisor: Supervisor,
    handed: Option<Handed>,
    log: Option<PathBuf>,
    asker: &mut impl Asker,
) -> Result<Ended, HostError> {
    let mut ends = Ends::new()?;
    let shared_layers = open::shared_layers(&spec.image.cache)?;
    let mount = match handed {
        Some(handed) => {
            let prepared = Prepared::open(handed, &Documents::default(), &shared_layers).await;
            prepared.map_err(|(error, _)| error)?.take_over(supervisor)?
        }
        None => tokio::select! {
            made = Mount::make(spec, &shared_layers, log.as_deref(), supervisor) => made?,
            _ = ends.wait() => return Err(HostError::InterruptedBeforeMount),
        },
    };
    let place = mount.place();
    let served = mount.serve(asker);
    tokio::pin!(served);
    // The first signal unmounts, while open files can be read to their end; the second ends the process.
    tokio::select! {
        () = &mut served => return Ok(Ended::ByUnmount),
        _ = ends.wait() => mount::take_away(&place),
    }
    tokio::select! {
        () = &mut served => {}
        _ = ends.wait() => ending::disconnect(),
    }
    Ok(Ended::BySignal)
}

/// Why a mount ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    ByUnmount,
    BySignal,
}

/// This process is the requester.
struct Here {
    progress: Box<dyn Progress>,
    failure: Option<HostError>,
}

impl Asker for Here {
    async fn progress(&mut self, total: u64, done: u64) -> Result<(), HostError> {
        self.progress.show(total, done);
        Ok(())
    }

    async fn ready(&mut self) {
        self.progress.end();
    }

    async fn failed(&mut self, error: HostError) {
        self.progress.end();
        self.failure = Some(error);
    }
}

/// The command that started this process.
struct Caller {
    channel: AsyncChannel,
    log: PathBuf,
}

impl Asker for Caller {
    async fn progress(&mut self, total: u64, done: u64) -> Result<(), HostError> {
        match self.channel.send(&Word::Progress { total, done }, None) {
            // Progress that does not fit is dropped, as more follows.
            Err(error) if !error.is_full() => Err(HostError::InterruptedBeforeVerified),
            _ => Ok(()),
        }
    }

    async fn ready(&mut self) {
        // The command may be gone; a mount that is ready stays.
        let _ = self.channel.deliver(&Word::Ready, None).await;
        if let Err(error) = background::redirect_to(&self.log) {
            tracing::warn!(%error, "cannot detach from the terminal");
        }
    }

    async fn failed(&mut self, error: HostError) {
        let _ = self.channel.deliver(&Word::Failed((&Report::from(error)).into()), None).await;
        status::remove_empty_log(&self.log);
    }
}
