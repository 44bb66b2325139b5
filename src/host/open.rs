//! From what a user typed to an open image: the one place that wires sources, store and image together.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::args::{AccessArgs, CacheDirArgs, ImageArgs};
use crate::cli::report::{Code, Report};
use crate::digest::Digest;
use crate::image::{self, Documents, Eagerness, ImageFs, Limits, Network, Plan, SharedLayers, Verify};
use crate::reference::{Place, Reference};
use crate::source::BlobSource;
use crate::source::local::LocalSource;
use crate::source::offline::OfflineSource;
use crate::source::registry::{RegistryOptions, RegistrySource, Surroundings};
use crate::store::Store;

/// An image that has been resolved, with what is needed to read it.
pub(crate) struct Opened {
    pub(crate) reference: Reference,
    pub(crate) plan: Plan,
    shared_layers: SharedLayers,
    pub(crate) store: Arc<Store>,
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) registry: Option<Arc<RegistrySource>>,
}

impl Opened {
    /// Shows the image as a file system.
    pub(crate) fn files(&self, eagerness: Eagerness, verify: Verify) -> Arc<ImageFs> {
        let (source, shared_layers) = (Arc::clone(&self.source), self.shared_layers.clone());
        image::open(&self.plan, source, shared_layers, &Limits::default(), eagerness, verify)
    }
}

/// Resolves the image that `args` names.
pub(crate) async fn open(args: &ImageArgs) -> Result<Opened, Report> {
    let reference: Reference = args.reference.parse()?;
    tell_notes(&reference);
    check_authfile(&args.access)?;
    resolve(reference, args, &Around::of_process(args)?, &Documents::default()).await
}

/// Credentials that somebody names have to be there, also where a registry asks for none.
pub(crate) fn check_authfile(access: &AccessArgs) -> Result<(), Report> {
    let Some(path) = &access.authfile else { return Ok(()) };
    let Err(error) = std::fs::File::open(path) else { return Ok(()) };
    let code = if error.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Failure };
    Err(Report::new(code, format!("cannot read the credentials in `{}`: {error}", path.display())))
}

/// Makes paths absolute: a process that goes to the background leaves the directory they were typed in.
pub(crate) fn make_absolute(args: &mut ImageArgs) -> Result<(), Report> {
    let reference: Reference = args.reference.parse()?;
    if !matches!(reference.place(), Place::Registry(_))
        && let Some((transport, path)) = args.reference.split_once(':')
    {
        args.reference = format!("{transport}:{}", absolute(path.into()).display());
    }
    let access = &mut args.access;
    access.authfile = access.authfile.take().map(absolute);
    access.ca = std::mem::take(&mut access.ca).into_iter().map(absolute).collect();
    access.cache.cache_dir = access.cache.cache_dir.take().map(absolute);
    Ok(())
}

/// The path as it is in any directory.
pub(crate) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Tells what a user may have meant otherwise.
pub(crate) fn tell_notes(reference: &Reference) {
    for note in reference.notes() {
        eprintln!("note: {note}");
    }
}

/// Resolves what `args` named when it was `root`, by the documents of that time where the cache has none.
pub(crate) async fn open_again(
    args: &ImageArgs,
    root: &Digest,
    before: &Documents,
    around: &Around,
) -> Result<Opened, Report> {
    resolve(args.reference.parse::<Reference>()?.pinned(root), args, around, before).await
}

/// Resolves what `args` name, for somebody else than this process.
pub(crate) async fn open_for(args: &ImageArgs, around: &Around) -> Result<Opened, Report> {
    resolve(args.reference.parse()?, args, around, &Documents::default()).await
}

/// What there is when an image is opened.
pub(crate) struct Around {
    /// Of whoever asked for it.
    pub(crate) surroundings: Surroundings,
    /// What the process has of layers.
    pub(crate) shared_layers: SharedLayers,
}

impl Around {
    /// Of this process.
    pub(crate) fn of_process(args: &ImageArgs) -> Result<Self, Report> {
        Ok(Self { surroundings: Surroundings::of_process(), shared_layers: shared_layers(&args.access.cache)? })
    }
}

async fn resolve(
    reference: Reference,
    args: &ImageArgs,
    around: &Around,
    before: &Documents,
) -> Result<Opened, Report> {
    let platform = args.access.platform()?;
    let shared_layers = around.shared_layers.clone();
    let store = Arc::clone(shared_layers.store());
    let (source, registry) = source(&reference, &args.access, &around.surroundings).await?;
    let network = if args.access.offline { Network::Offline } else { Network::Allowed };
    let plan = image::resolve_again(&reference, &source, &store, &platform, network, before).await?;
    Ok(Opened { reference, plan, shared_layers, store, source, registry })
}

/// What a process that shows images has of layers; a cache that takes nothing is done without.
pub(crate) fn shared_layers(args: &CacheDirArgs) -> Result<SharedLayers, Report> {
    Ok(Arc::new(Store::open_or_do_without(&cache_dir(args)?, args.cache_size)?).into())
}

/// Opens the cache.
pub(crate) fn store(args: &CacheDirArgs) -> Result<Store, Report> {
    Ok(Store::open(&cache_dir(args)?, args.cache_size)?)
}

/// Where the cache is: as asked, else where the XDG base directory specification puts it.
pub(crate) fn cache_dir(args: &CacheDirArgs) -> Result<PathBuf, Report> {
    if let Some(dir) = &args.cache_dir {
        return Ok(absolute(dir.clone()));
    }
    default_cache_dir()
}

/// Where the cache is when nobody says.
pub(crate) fn default_cache_dir() -> Result<PathBuf, Report> {
    use etcetera::BaseStrategy as _;
    let base = etcetera::choose_base_strategy().map_err(|error| {
        Report::usage(format!("cannot tell where the cache is: {error}")).hint("name a directory with `--cache-dir`")
    })?;
    Ok(base.cache_dir().join("peelfs"))
}

type Sources = (Arc<dyn BlobSource>, Option<Arc<RegistrySource>>);

async fn source(reference: &Reference, access: &AccessArgs, around: &Surroundings) -> Result<Sources, Report> {
    let Place::Registry(name) = reference.place() else {
        let local = LocalSource::open(reference).await.expect("it is not a registry's")?;
        return Ok((Arc::new(local), None));
    };
    if access.offline {
        return Ok((Arc::new(OfflineSource::new(reference.to_string())), None));
    }
    let options = RegistryOptions {
        insecure: access.insecure,
        ca: access.ca.clone(),
        authfile: access.authfile.clone(),
        ..RegistryOptions::new(around.clone())
    };
    let registry = Arc::new(RegistrySource::new(name.clone(), reference.to_string(), options)?);
    Ok((Arc::clone(&registry) as Arc<dyn BlobSource>, Some(registry)))
}
