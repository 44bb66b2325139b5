//! One mount's life: prepared, made or taken over, served, ended.
//!
//! It is the same for a mount with its own process and for one of many in a process; they differ in what takes the
//! mount over when the process dies, the [`Supervisor`].

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::activity::{Activity, Tell};
use super::endpoint::{self, Endpoint};
use super::error::HostError;
use super::handover::{Handed, Handover};
use super::open::{self, Opened};
use super::spec::{self, KernelOptions, MountSpec, Policy};
use super::status::{self, Health, MountState};
use super::supervisor::Supervisor;
use super::writable::UpperLock;
use super::{ending, failures, mount_point, process, writable};
use crate::fuse::{self, MountError, MountOptions, MountPlace, Mounted, Passthrough, Target};
use crate::image::{Documents, Eagerness, ImageFs, Plan, Prefetch, Programs, SharedLayers, Shown};
use crate::overlay::NodeId;
use crate::source::outage::OnOutage;

/// A mount that this process serves.
pub(super) struct Mount {
    handover: Handover,
    opened: Opened,
    shown: Shown,
    /// `None` for a single layer: its programs depend on other layers.
    programs: Option<Programs>,
    mounted: Mounted,
    /// The directory for changes, until the mount is ready; then the overlay holds it.
    upper_lock: Option<UpperLock>,
    /// Where its metrics are; after a take-over it is made later.
    endpoint: Option<Endpoint>,
    supervisor: Supervisor,
    /// For the supervisor, once.
    connection: Option<OwnedFd>,
}

/// A mount of another process, prepared for the take-over.
pub(super) struct Prepared {
    handover: Handover,
    connection: OwnedFd,
    opens: Option<std::fs::File>,
    opened: Opened,
    shown: Shown,
    /// `None` for a single layer: its programs depend on other layers.
    programs: Option<Programs>,
}

/// Messages to the process that requested a mount.
pub(super) trait Asker {
    /// Bytes that the first passes have to read, and have read.
    fn progress(&mut self, total: u64, done: u64) -> impl Future<Output = Result<(), HostError>> + Send;

    /// The mount is ready.
    fn ready(&mut self) -> impl Future<Output = ()> + Send;

    /// The mount failed and is being unmounted.
    fn failed(&mut self, error: HostError) -> impl Future<Output = ()> + Send;
}

impl Mount {
    /// Opens the image and mounts it; `log` is the future log file of this process.
    ///
    /// # Errors
    /// [`HostError`]; nothing is mounted then.
    pub(super) async fn make(
        spec: &MountSpec,
        shared_layers: &SharedLayers,
        log: Option<&Path>,
        mut supervisor: Supervisor,
    ) -> Result<Self, HostError> {
        // Hold it now: until the image is open, its path may come to lead elsewhere.
        let target = mount_point::hold(spec, &spec.at)?;
        let endpoint = endpoint::bind(spec.metrics).await?;
        let opened = open::open(&spec.image, shared_layers).await?;
        let shown = opened.shown(Eagerness::Background, spec.policy.verify);
        let programs = programs_of(&shown);
        let upper_lock = writable::take(spec.writable.as_ref(), &spec.at, &opened.plan.manifest.digest)?;
        let (spec, mounted) = show(spec, &opened, &shown, &target, &mut supervisor)?;
        supervisor.keep_documents(&opened.plan.documents);
        let connection = mounted.connection().and_then(|connection| connection.try_clone_to_owned().ok());
        let handover = Handover::of(&spec, mounted.place(), &opened, log.map(Path::to_owned));
        Ok(Self { handover, opened, shown, programs, mounted, upper_lock, endpoint, supervisor, connection })
    }

    /// The mount point.
    pub(super) fn place(&self) -> MountPlace {
        self.mounted.place()
    }

    /// Serves until it is unmounted and its last file is closed. A mount that waits for all layers is unmounted if one
    /// of them fails.
    pub(super) async fn serve(self, asker: &mut impl Asker) {
        let Self {
            mut handover,
            opened,
            shown,
            programs,
            mounted,
            mut upper_lock,
            endpoint,
            mut supervisor,
            connection,
        } = self;
        let fs = Arc::clone(shown.image());
        let (place, gone, requests) = (mounted.place(), mounted.gone(), mounted.requests());
        ending::look_after(mounted.disconnect());
        let policy = handover.spec.policy;
        let served = tokio::spawn(mounted.served());
        let prefetching = start_prefetching(&policy, &opened.plan, &fs, programs);
        supervisor.serving(&handover, connection.as_ref().map(OwnedFd::as_fd)).await;
        drop(connection);
        let endpoint = endpoint::or_again(endpoint, handover.spec.metrics).await;
        let mut state = MountState::of(&handover, &opened, &supervisor);
        state.metrics = endpoint.as_ref().map(Endpoint::address);
        let (shown_fs, registry) = (Arc::clone(&fs), opened.registry.clone());
        let (told_fs, told_registry) = (Arc::clone(&fs), opened.registry.clone());
        let tell: Tell = Arc::new(move |files| Activity::of(&told_fs, told_registry.as_deref(), &requests, files));
        endpoint.iter().for_each(|endpoint| endpoint.tells_of(state.clone(), Arc::clone(&tell)));
        let published = status::publish(state, move || Health::of(&shown_fs, registry.as_deref()), tell);
        let known = async {
            if !handover.awaited {
                return Ok(());
            }
            tokio::pin!(gone);
            if let (Some(_), Shown::Image(fs)) = (&handover.spec.writable, &shown) {
                // The kernel reads the image's root for an overlay, and would say of an image that cannot be read only that
                // there was an error.
                let root = async { fs.awaited(|fs| fs.attr(NodeId::ROOT)).await.map(drop) };
                awaited(root, &shown, gone.as_mut(), asker).await?;
            }
            writable::cover_by_another(&handover).await?;
            upper_lock.iter_mut().for_each(UpperLock::used);
            match policy.wait {
                true => awaited(shown.all_known(), &shown, gone, asker).await,
                false => Ok(()),
            }
        };
        match known.await {
            Ok(()) => {
                upper_lock.iter_mut().for_each(UpperLock::keep);
                drop(upper_lock);
                if handover.awaited {
                    handover.awaited = false;
                    supervisor.serving(&handover, None).await;
                }
                // After a take-over this is repeated: the previous process may have died before it.
                asker.ready().await;
                failures::log(true);
                set_outage_policy(&opened, handover.spec.image.access.on_outage);
            }
            Err(error) => {
                if !served.is_finished() {
                    take_away(&place);
                }
                // Removes what was made for it, before the user is told.
                drop(upper_lock);
                asker.failed(error).await;
            }
        }
        match served.await {
            Ok(Err(error)) => tracing::error!(%error, at = %place.at().display(), "a mount is no longer served"),
            Ok(Ok(())) => {}
            Err(error) => tracing::error!(%error, at = %place.at().display(), "the task that served a mount ended"),
        }
        supervisor.ended().await;
        prefetching.abort();
        fs.keep_profiles();
        drop((fs, shown, opened, published, endpoint));
    }
}

impl Prepared {
    /// Opens the image of a mount that another process serves or has served, by the digest and the documents of that
    /// time.
    ///
    /// # Errors
    /// [`HostError`]
    pub(super) async fn open(
        handed: Handed,
        documents: &Documents,
        shared_layers: &SharedLayers,
    ) -> Result<Self, (HostError, Handed)> {
        let spec = &handed.handover.spec;
        let opened = match open::open_again(&spec.image, &handed.handover.root, documents, shared_layers).await {
            Ok(opened) => opened,
            Err(error) => return Err((error, handed)),
        };
        if opened.plan.manifest.digest != handed.handover.manifest {
            return Err((HostError::OtherManifest { reference: opened.reference }, handed));
        }
        let shown = opened.shown(Eagerness::Background, spec.policy.verify);
        shown.image().set_prior_age(handed.handover.age());
        let Handed { handover, connection, opens } = handed;
        let programs = programs_of(&shown);
        Ok(Self { handover, connection, opens, opened, shown, programs })
    }

    /// The mount to take over.
    pub(super) fn handover(&self) -> &Handover {
        &self.handover
    }

    /// Takes the mount over; the previous process must have stopped serving.
    ///
    /// # Errors
    /// [`HostError::Mount`]
    pub(super) fn take_over(self, supervisor: Supervisor) -> Result<Mount, HostError> {
        let Self { handover, connection, opens, opened, shown, programs } = self;
        let KernelOptions { let_cpus_sleep, allow_root, allow_other, .. } = handover.spec.kernel;
        let (place, allow_root) = (handover.place.clone(), allow_root && !allow_other);
        let mounted = fuse::take_over(connection, shown.tree(), place, opens, let_cpus_sleep, allow_root)?;
        if let Some(how) = &handover.ended {
            let (at, takeovers) = (handover.place.at().display(), handover.takeovers);
            tracing::warn!(how, takeovers, %at, "the process that served this mount died; this one takes over");
        }
        Ok(Mount {
            handover,
            opened,
            shown,
            programs,
            mounted,
            upper_lock: None,
            endpoint: None,
            supervisor,
            connection: None,
        })
    }
}

fn programs_of(shown: &Shown) -> Option<Programs> {
    match shown {
        Shown::Image(fs) => Some(Programs::observe(fs)),
        Shown::Layer(_) => None,
    }
}

/// Makes the mount. Returns the spec, with automatic choices resolved.
fn show(
    spec: &MountSpec,
    opened: &Opened,
    shown: &Shown,
    target: &Target,
    supervisor: &mut Supervisor,
) -> Result<(MountSpec, Mounted), HostError> {
    let asked = spec.policy.passthrough;
    let with = |passthrough| MountSpec { policy: Policy { passthrough, ..spec.policy }, ..spec.clone() };
    if asked == spec::Passthrough::Always || asked == spec::Passthrough::Auto && is_for_passthrough(shown) {
        let chosen = with(spec::Passthrough::Always);
        match fuse::mount(shown.tree(), target, &kernel_options(&chosen, opened, supervisor)?) {
            Err(MountError::NoPassthrough | MountError::RefusedPassthrough(_)) if asked == spec::Passthrough::Auto => {
                tracing::debug!("the kernel has no passthrough; serving without it");
            }
            made => return Ok((chosen, made?)),
        }
    }
    let chosen = with(spec::Passthrough::Never);
    let mounted = fuse::mount(shown.tree(), target, &kernel_options(&chosen, opened, supervisor)?)?;
    Ok((chosen, mounted))
}

/// Whether most of the image is in large files, as far as it is indexed.
fn is_for_passthrough(shown: &Shown) -> bool {
    rustix::process::geteuid().is_root() && shown.image().is_mostly_large(fuse::LARGE_FILE) == Some(true)
}

/// The options of the mount.
fn kernel_options(spec: &MountSpec, opened: &Opened, supervisor: &mut Supervisor) -> Result<MountOptions, HostError> {
    let kernel = spec.kernel;
    let passthrough = if spec.policy.passthrough == spec::Passthrough::Always {
        let opens = supervisor.opens().map_err(HostError::Opens)?;
        Some(Arc::new(Passthrough { trial: opened.store.trial_file()?, opens }))
    } else {
        None
    };
    Ok(MountOptions {
        source: match opened.layer {
            Some(layer) => format!("{}#layer={layer}", spec.image.reference),
            None => spec.image.reference.to_string(),
        },
        allow_other: kernel.allow_other,
        allow_root: kernel.allow_root,
        suid: kernel.suid,
        dev: kernel.dev,
        noexec: kernel.noexec,
        let_cpus_sleep: kernel.let_cpus_sleep,
        passthrough,
        refuse_own_requests: true,
    })
}

/// Starts prefetching, and records what is read during the mount's start.
fn start_prefetching(
    policy: &Policy,
    plan: &Plan,
    fs: &Arc<ImageFs>,
    programs: Option<Programs>,
) -> tokio::task::JoinHandle<()> {
    let what = policy.prefetch;
    let (command, fs) = (plan.configuration.command(), Arc::clone(fs));
    tokio::spawn(async move {
        let programs = async {
            if what != Prefetch::None
                && let Some(programs) = programs
            {
                programs.prefetch(&command).await;
            }
        };
        // In this order: layers with a profile need no other prediction.
        tokio::join!(biased; fs.prefetch(what), programs, fs.record());
    })
}

/// Retries from now on as long as the user has set; before, failures are reported at once.
fn set_outage_policy(opened: &Opened, on_outage: OnOutage) {
    if let Some(outages) = opened.source.outages() {
        outages.retry_without_limit(on_outage);
    }
}

/// Waits for what a mount must have before it is shown; ends early if the requester is gone, or at an unmount.
async fn awaited<E: Into<HostError>>(
    needed: impl Future<Output = Result<(), E>>,
    shown: &Shown,
    mut gone: Pin<&mut impl Future<Output = ()>>,
    asker: &mut impl Asker,
) -> Result<(), HostError> {
    tokio::pin!(needed);
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            known = &mut needed => return known.map_err(Into::into),
            () = &mut gone => return Err(HostError::UnmountedBeforeVerified),
            _ = ticks.tick() => {
                let (total, done) = shown.image().progress();
                asker.progress(total, done).await?;
            }
        }
    }
}

/// Unmounts; open files can be read to their end.
pub(super) fn take_away(place: &MountPlace) {
    if let Err(error) = place.take_away() {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
    }
}

/// Runs `serving`; hanging fetches do not delay the end.
pub(super) fn in_runtime<T>(serving: impl Future<Output = Result<T, HostError>>) -> Result<T, HostError> {
    let runtime = process::runtime(process::Purpose::Serving)?;
    let served = runtime.block_on(serving);
    runtime.shutdown_background();
    served
}

pub(super) const TICK: Duration = Duration::from_millis(100);
