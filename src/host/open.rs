//! Opens an image from its spec: the one place that wires sources, store and image together.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;

use super::error::HostError;
use super::nearest_tag;
use super::process;
use super::spec::{Access, CacheSpec, ImageSpec, IndexFrom};
use super::verifiers::{self, IndexVerifiers, Question};
use crate::content::{self, ArtifactCheck, LayerRef, Origin, PushedIndexes};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::image::{
    self, Documents, Eagerness, Fit, ImageFs, IndexChoice, Limits, Network, OnManifest, Plan, PlanError, Pull,
    SharedLayers, Shown, Trust, Verify, Wanted,
};
use crate::overlay::LayerNo;
use crate::platform::Platform;
use crate::reference::{Place, Reference, RegistryName};
use crate::source::local::LocalSource;
use crate::source::offline::OfflineSource;
use crate::source::registry::{Notes, RegistryOptions, RegistrySource, Rights};
use crate::source::spool::Spool;
use crate::source::{BlobSource, SourceError};
use crate::store::{Store, TagRecord};
use crate::sync::lock;

/// An image that has been resolved, with what is needed to read it.
pub struct Opened {
    /// As named by the user.
    pub reference: Reference,
    /// The resolved image.
    pub plan: Plan,
    /// The only layer to show.
    pub layer: Option<LayerNo>,
    shared_layers: SharedLayers,
    /// Which indexes of its layers may be used.
    pub index: IndexChoice,
    /// Those that others have pushed, if they may be used.
    pub pushed: Option<Arc<PushedIndexes>>,
    /// The cache.
    pub store: Arc<Store>,
    /// The source of its bytes.
    pub source: Arc<dyn BlobSource>,
    /// The same, if it is a registry.
    pub registry: Option<Arc<RegistrySource>>,
}

impl Opened {
    /// The requested tree: the image, or one layer of it. Must be called within a tokio runtime.
    pub fn shown(&self, eagerness: Eagerness, verify: Verify) -> Shown {
        let Some(layer) = self.layer else { return Shown::Image(self.files(eagerness, verify)) };
        let (source, shared_layers) = (Arc::clone(&self.source), self.shared_layers.clone());
        let (layer, limits) = ((layer, process::opaque_mark()), Limits::default());
        let trust = self.trust(verify);
        Shown::Layer(image::open_layer(&self.plan, layer, source, shared_layers, &limits, eagerness, trust))
    }

    /// Where an index of its layers may come from, in the order in which it is asked for.
    pub fn origins(&self) -> &'static [Origin] {
        self.trust(Verify::BeforeShowing).origins()
    }

    /// The index of a layer in the cache, if it may be used.
    pub async fn stored(&self, layer: &LayerRef) -> Option<content::Opened> {
        if let Some(pushed) = &self.pushed {
            pushed.ask_about(layer, &self.store).await;
        }
        let found = content::open_stored(layer, self.origins(), &self.store).ok()?;
        let admitted = |pushed: &Arc<PushedIndexes>| pushed.admit(found.index.proof());
        self.pushed.as_ref().is_none_or(admitted).then_some(found)
    }

    /// What is believed of its layers.
    pub fn trust(&self, verify: Verify) -> Trust {
        Trust { verify, index: self.index, pushed: self.pushed.clone() }
    }

    /// The whole image as a file system. Must be called within a tokio runtime.
    pub fn files(&self, eagerness: Eagerness, verify: Verify) -> Arc<ImageFs> {
        self.files_by(self.trust(verify), eagerness)
    }

    /// The same, from its layers' tars, whatever tables of contents they have.
    pub fn files_of_tars(&self, eagerness: Eagerness, verify: Verify) -> Arc<ImageFs> {
        self.files_by(Trust { index: self.index.of_tars(), ..self.trust(verify) }, eagerness)
    }

    fn files_by(&self, trust: Trust, eagerness: Eagerness) -> Arc<ImageFs> {
        let (source, shared_layers) = (Arc::clone(&self.source), self.shared_layers.clone());
        image::open(&self.plan, source, shared_layers, &Limits::default(), eagerness, trust)
    }
}

/// Resolves the image, and asks the verifiers whether it may be used; `shared_layers` are the open layers of this
/// process.
///
/// Everything that shows an image calls this. The other functions only describe an image ([`open_to_describe`],
/// [`open_in_cache`]), or it was allowed before ([`open_again`]).
///
/// # Errors
/// [`HostError`]
pub async fn open(image: &ImageSpec, shared_layers: &SharedLayers) -> Result<Opened, HostError> {
    open_pulled(image, shared_layers, Pull::default()).await
}

async fn open_pulled(image: &ImageSpec, shared_layers: &SharedLayers, pull: Pull) -> Result<Opened, HostError> {
    let opened = resolve(image, shared_layers, pull).await?;
    let (name, root) = (image.reference.canonical(), &opened.plan.root);
    let question = Question { name: &name, root, access: &image.access };
    verifiers::ask(&image.verifiers, &question, &verifiers::Limits::default()).await?;
    Ok(opened)
}

/// The digest that the reference contains, or that it resolves to now; if the registry cannot be asked, its last answer.
///
/// # Errors
/// [`HostError`]
pub async fn named(image: &ImageSpec) -> Result<Digest, HostError> {
    check_files(&image.access)?;
    if let Place::Registry(name) = image.reference.place()
        && let Some(digest) = name.digest()
    {
        return Ok(digest.clone());
    }
    let store = Arc::clone(shared_layers(&image.cache)?.store());
    if !matches!(image.reference.place(), Place::Registry(_)) {
        let (source, _) = source(&image.reference, &image.access, &store).await?;
        return Ok(source.head().await?.digest);
    }
    let canonical = image.reference.canonical();
    let known = store.tag(&canonical);
    if image.access.network == Network::Offline {
        let offline = || PlanError::Offline { reference: image.reference.to_string() }.into();
        return known.map(|known| known.digest).ok_or_else(offline);
    }
    let (source, _) = source(&image.reference, &image.access, &store).await?;
    match (source.head().await, known) {
        (Ok(root), known) => {
            // A target that is cached stays what other commands use.
            if known.is_none_or(|known| store.document(&known.digest, known.size).is_none())
                && let Err(error) = store.keep_tag(&TagRecord::new(canonical, &root))
            {
                store.cannot_keep("the target of the reference", &error);
            }
            Ok(root.digest)
        }
        (Err(error @ SourceError::Unreachable { .. }), Some(known)) => {
            tracing::warn!("{error}; using the last known target of {}", image.reference);
            Ok(known.digest)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Resolves an image without showing it, to manage what is cached of it.
///
/// # Errors
/// [`HostError`]
pub async fn open_in_cache(image: &ImageSpec, shared_layers: &SharedLayers) -> Result<Opened, HostError> {
    resolve(image, shared_layers, Pull::default()).await
}

async fn resolve(image: &ImageSpec, shared_layers: &SharedLayers, pull: Pull) -> Result<Opened, HostError> {
    check_files(&image.access)?;
    resolve_by(image.reference.clone(), image, shared_layers, &Documents::default(), (Fit::Required, pull)).await
}

/// As [`open`], for a process that opens one image.
///
/// # Errors
/// [`HostError`]
pub async fn open_alone(image: &ImageSpec) -> Result<Opened, HostError> {
    open_alone_pulled(image, Pull::default()).await
}

/// As [`open_alone`], with a say in when a registry is asked what a tag names.
///
/// # Errors
/// [`HostError`]
pub async fn open_alone_pulled(image: &ImageSpec, pull: Pull) -> Result<Opened, HostError> {
    open_pulled(image, &shared_layers(&image.cache)?, pull).await
}

/// As [`open_alone`], to describe the image only: another platform's image is accepted, unless there are several and a
/// platform was requested.
///
/// # Errors
/// [`HostError`]
pub async fn open_to_describe(image: &ImageSpec) -> Result<Opened, HostError> {
    check_files(&image.access)?;
    let fit = if image.platform.is_some() { Fit::Lone } else { Fit::Any };
    let shared_layers = shared_layers(&image.cache)?;
    resolve_by(image.reference.clone(), image, &shared_layers, &Documents::default(), (fit, Pull::default())).await
}

/// Resolves what `image` named when it was `root`, using the given documents where the cache has none. Verifiers are
/// not asked again: an image in use is not taken away.
///
/// # Errors
/// [`HostError`]
pub async fn open_again(
    image: &ImageSpec,
    root: &Digest,
    before: &Documents,
    shared_layers: &SharedLayers,
) -> Result<Opened, HostError> {
    let how = (Fit::Required, Pull::default());
    resolve_by(image.reference.clone().pinned(root), image, shared_layers, before, how).await
}

/// Files given by the user must exist, even if the image needs none.
fn check_files(access: &Access) -> Result<(), HostError> {
    let authfile = access.authfile.iter().map(|path| ("credentials", path));
    let certificates = access.ca.iter().map(|path| ("certificates", path));
    authfile.chain(certificates).try_for_each(|(what, path)| {
        let opened = std::fs::File::open(path);
        opened.map(drop).map_err(|cause| HostError::Unreadable { what, path: path.clone(), cause })
    })
}

async fn resolve_by(
    reference: Reference,
    image: &ImageSpec,
    shared_layers: &SharedLayers,
    before: &Documents,
    (fit, pull): (Fit, Pull),
) -> Result<Opened, HostError> {
    let platform = image.platform.clone().unwrap_or_else(Platform::host);
    let store = Arc::clone(shared_layers.store());
    let (source, registry) = source(&reference, &image.access, &store).await?;
    let ahead = Ahead { image, own: registry.as_ref(), store: &store, looked_for: Mutex::default() };
    // Who describes an image may need none of its indexes.
    let on_manifest = (fit == Fit::Required).then_some(&ahead as &dyn OnManifest);
    let wanted = Wanted { platform: &platform, fit, pull, view: &image.view, on_manifest };
    let plan = image::resolve_again(&reference, &source, &store, wanted, image.access.network, before).await;
    let mut plan = match plan {
        Err(PlanError::Source(missing @ SourceError::NotFound { .. })) => {
            return Err(with_nearest_tag(missing, &reference, registry.as_deref()).await.into());
        }
        plan => plan?,
    };
    if let Some(count) = image.up_to {
        plan.layers.truncate(usize::from(count.get()));
    }
    let layer = image.layer.as_ref().map(|layer| plan.layer(layer)).transpose();
    let layer = layer.map_err(|cause| HostError::Layer { reference: reference.to_string(), cause: Box::new(cause) })?;
    let pushed = match ahead.of(&plan.manifest.digest) {
        Some(pushed) => Some(pushed),
        None => {
            let layers = plan.layers.iter().map(|layer| &layer.blob);
            pushed(image, &plan.manifest.digest, layers, registry.as_ref())?
        }
    };
    Ok(Opened {
        reference,
        plan,
        layer,
        shared_layers: shared_layers.clone(),
        index: image.index,
        pushed,
        store,
        source,
        registry,
    })
}

/// The error for an image that is not found, with the nearest tag as a hint if its tag is what is missing.
async fn with_nearest_tag(
    missing: SourceError,
    reference: &Reference,
    registry: Option<&RegistrySource>,
) -> SourceError {
    match (missing, reference.place(), registry) {
        (SourceError::NotFound { what, place, said, hint }, Place::Registry(name), Some(registry))
            if what.starts_with("manifest ") =>
        {
            let nearest = nearest_tag::hint(name, registry).await.map(Into::into);
            SourceError::NotFound { what, place, said, hint: nearest.or(hint) }
        }
        (missing, ..) => missing,
    }
}

/// The open layers of a process that shows images; if the cache is not writable, it works without one.
///
/// # Errors
/// [`HostError::Store`]
pub fn shared_layers(cache: &CacheSpec) -> Result<SharedLayers, HostError> {
    let store = Store::open_best_effort(&cache.dir, cache.limit)?;
    drop_unfinished(&store);
    Ok(Arc::new(store).into())
}

/// Removes what interrupted processes were writing. A command may be too short for the search that follows later.
fn drop_unfinished(store: &Store) {
    if let Err(error) = store.drop_unfinished() {
        tracing::debug!(%error, "cannot look for what interrupted processes have left in the cache");
    }
}

/// Opens the cache.
///
/// # Errors
/// [`HostError::Store`]
pub fn store(cache: &CacheSpec) -> Result<Store, HostError> {
    let store = Store::open(&cache.dir, cache.limit)?;
    drop_unfinished(&store);
    Ok(store)
}

/// The path as an absolute one.
pub fn absolute(path: impl AsRef<Path>) -> PathBuf {
    std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned())
}

/// The default cache directory (XDG base directory specification).
///
/// # Errors
/// [`HostError::NoCacheDirectory`]
pub fn default_cache_dir() -> Result<PathBuf, HostError> {
    use etcetera::BaseStrategy as _;
    let base = etcetera::choose_base_strategy();
    let base = base.map_err(|error| HostError::NoCacheDirectory { why: error.to_string() })?;
    Ok(base.cache_dir().join("peelfs"))
}

/// The directory for archives that cannot be read in place.
pub(super) fn spool(store: &Arc<Store>) -> Spool {
    let of = Arc::clone(store);
    Spool::new(store.limit(), move || of.unnamed_file())
}

/// The source, and the same if it is a registry.
pub(super) type Sources = (Arc<dyn BlobSource>, Option<Arc<RegistrySource>>);

pub(super) async fn source(reference: &Reference, access: &Access, store: &Arc<Store>) -> Result<Sources, HostError> {
    let Place::Registry(name) = reference.place() else {
        let local = LocalSource::open(reference, &spool(store)).await.expect("not a registry")?;
        return Ok((Arc::new(local), None));
    };
    if access.network == Network::Offline {
        return Ok((Arc::new(OfflineSource::new(reference.to_string())), None));
    }
    let registry = registry_noting(name, &reference.to_string(), access, (Rights::Pull, Some(store)))?;
    let registry = Arc::new(registry);
    if let Some(outages) = registry.outages() {
        outages.wait_as(access.on_outage);
    }
    Ok((Arc::clone(&registry) as Arc<dyn BlobSource>, Some(registry)))
}

/// A registry, whose user called it `typed`.
pub(super) fn registry(
    name: &RegistryName,
    typed: &str,
    access: &Access,
    rights: Rights,
) -> Result<RegistrySource, SourceError> {
    registry_noting(name, typed, access, (rights, None))
}

/// The same, with notes in the cache of mirrors that are slow.
fn registry_noting(
    name: &RegistryName,
    typed: &str,
    access: &Access,
    (rights, store): (Rights, Option<&Arc<Store>>),
) -> Result<RegistrySource, SourceError> {
    let defaults = RegistryOptions::new(access.surroundings.clone());
    let circuits = defaults.circuits.clone();
    let options = RegistryOptions {
        circuits: match store {
            Some(store) => circuits.noted(Arc::new(MirrorNotes(Arc::clone(store)))),
            None => circuits,
        },
        insecure: access.insecure,
        ca: access.ca.clone(),
        authfile: access.authfile.clone(),
        mirrors: access.mirrors.clone(),
        deadlines: defaults.deadlines.clone().waiting_as(access.on_outage),
        rights,
        ..defaults
    };
    RegistrySource::new(name.clone(), typed.to_owned(), options)
}

/// Notes of mirrors, in the cache.
#[derive(Debug)]
struct MirrorNotes(Arc<Store>);

impl Notes for MirrorNotes {
    fn read(&self, server: &str) -> Option<Vec<u8>> {
        self.0.mirror_note(server)
    }

    fn write(&self, server: &str, note: Option<&[u8]>) {
        if let Err(error) = self.0.keep_mirror_note(server, note) {
            tracing::debug!(%error, "other processes are not told of a slow mirror");
        }
    }
}

/// Looks for pushed indexes while the image's configuration is fetched, where the cache lacks the index of a layer.
struct Ahead<'a> {
    image: &'a ImageSpec,
    own: Option<&'a Arc<RegistrySource>>,
    store: &'a Store,
    looked_for: Mutex<Option<LookedFor>>,
}

/// Indexes that are looked for, and the task that does.
struct LookedFor {
    manifest: Digest,
    pushed: Arc<PushedIndexes>,
    task: AbortHandle,
}

impl Ahead<'_> {
    /// Those of this manifest; others are not looked for any more.
    fn of(&self, manifest: &Digest) -> Option<Arc<PushedIndexes>> {
        let LookedFor { manifest: of, pushed, task } = lock(&self.looked_for).take()?;
        if of != *manifest {
            task.abort();
            return None;
        }
        Some(pushed)
    }
}

impl OnManifest for Ahead<'_> {
    fn on_manifest(&self, manifest: &Descriptor, layers: &[Descriptor]) {
        let layers = &layers[..self.image.up_to.map_or(layers.len(), |count| layers.len().min(count.get().into()))];
        let is_known = |layer: &Descriptor| self.store.index(&layer.digest).is_some();
        if self.image.access.network == Network::Offline || layers.iter().all(is_known) {
            return;
        }
        // An error is told where it is made again.
        let Ok(Some(pushed)) = pushed(self.image, &manifest.digest, layers, self.own) else { return };
        let looking = Arc::clone(&pushed);
        let task = tokio::spawn(async move { looking.look_ahead().await }).abort_handle();
        let before = lock(&self.looked_for).replace(LookedFor { manifest: manifest.digest.clone(), pushed, task });
        before.inspect(|before| before.task.abort());
    }
}

impl std::fmt::Debug for Ahead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("image", &self.image.reference).finish_non_exhaustive()
    }
}

/// The indexes of the image that others have pushed to the repository which the user trusts.
fn pushed<'a>(
    image: &ImageSpec,
    manifest: &Digest,
    layers: impl IntoIterator<Item = &'a Descriptor>,
    own: Option<&Arc<RegistrySource>>,
) -> Result<Option<Arc<PushedIndexes>>, HostError> {
    let own_name = match image.reference.place() {
        Place::Registry(name) => Some(name),
        _ => None,
    };
    let Some(name) = image.index_from.as_ref().and_then(|from| match from {
        IndexFrom::Referrers => own_name,
        IndexFrom::Repository(name) => Some(name),
    }) else {
        return Ok(None);
    };
    let place = format!("{}/{}", name.authority(), name.repository());
    let is_own =
        own_name.is_some_and(|own| (own.authority(), own.repository()) == (name.authority(), name.repository()));
    let source = match own.filter(|_| is_own) {
        Some(own) => Some(Arc::clone(own)),
        None if image.access.network == Network::Offline => None,
        None => Some(Arc::new(registry(name, &place, &image.access, Rights::Pull)?)),
    };
    let check = image.index_verifiers_in_force().map(|directory| -> Arc<dyn ArtifactCheck> {
        Arc::new(IndexVerifiers { directory, access: image.access.clone() })
    });
    Ok(Some(Arc::new(PushedIndexes::new(source, &place, manifest, layers, check))))
}
