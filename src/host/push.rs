//! `peelfs index push`: what this machine has learnt of an image, as an artifact that refers to it.
//!
//! Only indexes that a first pass of this machine has made are pushed: they were derived from bytes with the right digest.
//! One that was imported or found in a registry would get another voucher without another proof, so such a layer is read
//! first, as one without an index is. Layers that bring a table of contents along are left out: every machine has it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use super::error::HostError;
use super::open::{self, Opened};
use super::report::{Code, Report};
use super::sign::{self, SignError};
use super::spec::ImageSpec;
use crate::content::{
    self, FirstPass, LayerRef, Means, Origin, Others, PackedIndex, PassError, PassProgress, PassScheduler, Profiles,
    ScheduledPass, TransferError, ZtocError, opening, pack_index,
};
use crate::descriptor::{Compression, Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::documents::{INDEX_ARTIFACT, IndexArtifact, SociIndex};
use crate::image::{Limits, Network};
use crate::reference::{Place, RegistryName};
use crate::signature::PrivateKey;
use crate::source::inlined::Inlined;
use crate::source::registry::{Content, PushError, RegistrySource, Rights, Stored};
use crate::source::{BlobSource, SourceError};

/// What was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Registry and repository.
    pub place: String,
    /// The artifact's manifest.
    pub artifact: Digest,
    /// Whether the registry had the artifact with the same indexes and profiles.
    pub was_there: bool,
    /// Layers with an index.
    pub layers: usize,
    /// Layers that bring a table of contents along, and are left out.
    pub left_out: usize,
    /// Indexes and windows that were sent; the registry had the others.
    pub sent: usize,
    /// Bytes of blobs that were sent.
    pub sent_bytes: u64,
    /// Compressed bytes of all indexes.
    pub index_bytes: u64,
    /// Bytes of their windows, of which other machines fetch those that they need.
    pub window_bytes: u64,
    /// Bytes of their layers.
    pub layer_bytes: u64,
    /// Whether it holds start-up profiles.
    pub profiles: bool,
}

/// What takes long in a push.
#[derive(Clone, Debug)]
pub enum Step {
    /// A layer without an index of this machine is read.
    Reading {
        /// Its number; the lowest is 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// Bytes of its blob.
        size: u64,
        /// How far it is.
        progress: Arc<PassProgress>,
    },
    /// A layer is read for its zTOC.
    Describing {
        /// Its number; the lowest is 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// Bytes of its blob.
        size: u64,
        /// How far it is.
        progress: Arc<PassProgress>,
    },
    /// An index is sent.
    Sending {
        /// Its bytes.
        size: u64,
    },
}

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
pub enum IndexPushError {
    /// The image cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The network must not be used.
    #[error("nothing can be pushed offline")]
    Offline,
    /// The image is not in a registry, and no repository was named.
    #[error("{reference} is not in a registry")]
    NoRegistry {
        /// The image.
        reference: String,
    },
    /// All layers bring a table of contents along.
    #[error("every layer of {reference} brings a table of contents along")]
    NothingToPush {
        /// The image.
        reference: String,
    },
    /// No layer can have a zTOC.
    #[error("{reference} has no gzip layer of {least} bytes or more that a zTOC can describe")]
    NoZtocs {
        /// The image.
        reference: String,
        /// The least size of a layer.
        least: u64,
    },
    /// A layer could not be described.
    #[error(transparent)]
    Ztoc(ZtocError),
    /// A layer could not be read.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// An index cannot be packed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The registry does not take it.
    #[error("cannot push to {place}")]
    Push {
        /// Registry and repository.
        place: String,
        /// Why.
        #[source]
        cause: PushError,
    },
    /// It is not signed.
    #[error("cannot sign the artifact {artifact} in {place}")]
    Sign {
        /// Registry and repository.
        place: String,
        /// The artifact's manifest.
        artifact: Digest,
        /// Why.
        #[source]
        cause: SignError,
    },
}

impl From<ZtocError> for IndexPushError {
    fn from(error: ZtocError) -> Self {
        match error {
            ZtocError::Pass(cause) => cause.into(),
            error => Self::Ztoc(error),
        }
    }
}

impl From<IndexPushError> for Report {
    fn from(error: IndexPushError) -> Self {
        let told = |code| Self::of(code, &error);
        let elsewhere = "name a repository that you may write to with `--to REGISTRY/REPOSITORY`";
        match error {
            IndexPushError::Host(cause) => cause.into(),
            IndexPushError::Offline => told(Code::Usage).hint("leave out `--offline`"),
            IndexPushError::NoRegistry { .. } => told(Code::Usage).hint(elsewhere),
            IndexPushError::NothingToPush { .. } => {
                told(Code::Failure).hint("other machines read these tables, too; nothing needs to be pushed")
            }
            IndexPushError::NoZtocs { .. } => {
                told(Code::Failure).hint("say what the smallest may be with `--min-layer-size SIZE`")
            }
            IndexPushError::Ztoc(_) => told(Code::Verification),
            IndexPushError::Pass(cause) => cause.into(),
            IndexPushError::Transfer(cause) => cause.into(),
            IndexPushError::Push { cause: PushError::Refused { .. } | PushError::List { .. }, .. }
            | IndexPushError::Sign {
                cause: SignError::Push(PushError::Refused { .. } | PushError::List { .. }), ..
            } => told(Code::Failure).hint(elsewhere),
            IndexPushError::Sign {
                cause: SignError::NotMade(_) | SignError::Other { .. } | SignError::Full { .. } | SignError::Busy { .. },
                ..
            } => told(Code::Failure),
            IndexPushError::Push { cause: PushError::Source(ref cause), .. }
            | IndexPushError::Sign { cause: SignError::Push(PushError::Source(ref cause)), .. } => {
                let Self { code, hint, .. } = Self::from_source(cause);
                let hint = match (code, cause, hint) {
                    (Code::Authentication, _, Some(hint)) => Some(format!("{hint}; or {elsewhere}")),
                    // Nothing that is cached replaces a push.
                    (_, SourceError::Unreachable { hint: None, .. }, _) => {
                        Some("check the network and the name of the registry, or try again later".to_owned())
                    }
                    (_, _, hint) => hint,
                };
                Self { hint, ..told(code) }
            }
        }
    }
}

/// Pushes the indexes and the profiles of an image to its repository, or to `to`, and signs them with `key`. `tell` is told
/// what begins.
///
/// # Errors
/// [`IndexPushError`]; blobs that were stored before remain.
pub async fn push(
    image: &ImageSpec,
    to: Option<&RegistryName>,
    key: Option<&PrivateKey>,
    tell: impl Fn(Step),
) -> Result<Pushed, IndexPushError> {
    let Target { opened, registry, name, mut pushed } = target(image, to).await?;
    let layers = to_push(&opened);
    let count = opened.plan.layers.len();
    let left_out =
        opened.plan.layers.iter().filter(|layer| !layers.iter().any(|(_, one)| one.blob.digest == layer.blob.digest));
    let left_out = left_out.count();
    if layers.is_empty() {
        return Err(IndexPushError::NothingToPush { reference: opened.reference.to_string() });
    }
    let place = pushed.place.clone();
    let push = |cause| IndexPushError::Push { place: place.clone(), cause };
    (pushed.layers, pushed.left_out) = (layers.len(), left_out);
    pushed.layer_bytes = layers.iter().map(|(_, layer)| layer.blob.size).sum();
    let mut artifact = IndexArtifact { layers: Vec::new(), profiles: None };
    for (number, layer) in &layers {
        if content::open_stored(layer, &[Origin::Store], &opened.store).is_err() {
            let progress = Arc::<PassProgress>::default();
            let size = layer.blob.size;
            tell(Step::Reading { number: *number, count, size, progress: Arc::clone(&progress) });
            make(&opened, layer, &progress).await?;
        }
        let PackedIndex { index, file, windows } = packed(&opened, layer).await?;
        if let Some((blob, file)) = index.windows.as_ref().zip(windows) {
            tell(Step::Sending { size: blob.size });
            let content = Content::File { file, size: blob.size };
            pushed.window_bytes += blob.size;
            if registry.push_blob(&blob.digest, &content).await.map_err(push)? == Stored::New {
                (pushed.sent, pushed.sent_bytes) = (pushed.sent + 1, pushed.sent_bytes + blob.size);
            }
        }
        tell(Step::Sending { size: index.blob.size });
        let content = Content::File { file, size: index.blob.size };
        pushed.index_bytes += index.blob.size;
        if registry.push_blob(&index.blob.digest, &content).await.map_err(push)? == Stored::New {
            pushed.sent += 1;
            pushed.sent_bytes += index.blob.size;
        }
        artifact.layers.push(index);
    }
    let (image, layers) = (&opened.plan.manifest, layers.iter().map(|(_, layer)| *layer));
    let mut profiles = Profiles::of(&opened.store, &image.digest, layers);
    profiles.layers.retain(|profile| profile.runs.iter().all(|run| run.image == image.digest));
    if !profiles.layers.is_empty() {
        let (blob, bytes) = content::pack(&profiles.to_text()).map_err(TransferError::from)?;
        if registry.push_blob(&blob.digest, &Content::Memory(bytes.into())).await.map_err(push)? == Stored::New {
            pushed.sent_bytes += blob.size;
        }
        artifact.profiles = Some(blob);
        pushed.profiles = true;
    }
    match existing(&registry, image, &artifact).await.map_err(|cause| push(cause.into()))? {
        Some(existing) => {
            signed(&registry, &name, &existing, key).await?;
            (pushed.artifact, pushed.was_there) = (existing, true);
        }
        None => {
            let created = jiff::Timestamp::now().to_string();
            let manifest = Bytes::from(artifact.manifest(image, &created));
            signed(&registry, &name, &Digest::of(Algorithm::Sha256, &manifest), key).await?;
            let entry = IndexArtifact::entry(&manifest, &created);
            pushed.artifact = registry.push_referrer(&image.digest, &manifest, &entry).await.map_err(push)?;
        }
    }
    Ok(pushed)
}

/// Signs an artifact before it is listed, so that none is seen without its signature.
async fn signed(
    registry: &RegistrySource,
    name: &RegistryName,
    artifact: &Digest,
    key: Option<&PrivateKey>,
) -> Result<(), IndexPushError> {
    let Some(key) = key else { return Ok(()) };
    let signed = sign::sign(registry, name, artifact, key).await;
    signed.map_err(|cause| {
        let place = format!("{}/{}", name.authority(), name.repository());
        IndexPushError::Sign { place, artifact: artifact.clone(), cause }
    })
}

/// Which layers get a zTOC, and how they are cut.
#[derive(Clone, Copy, Debug)]
pub struct Ztocs {
    /// Smaller layers get none.
    pub min_layer_size: u64,
    /// Decoded bytes of a span, at least; within [`Ztocs::SPAN_SIZES`].
    pub span_size: u64,
}

impl Ztocs {
    /// Each span takes 32 KiB of the zTOC, all of which is fetched before the first name is known; and all of a span is fetched
    /// before any of it is shown.
    pub const SPAN_SIZES: RangeInclusive<u64> = 256 << 10..=64 << 20;
}

/// Pushes zTOCs of an image's gzip layers, and a SOCI index of version 1 that refers to the image, to its repository, or to `to`,
/// and signs the index with `key`. `tell` is told what begins.
///
/// # Errors
/// [`IndexPushError`]; blobs that were stored before remain.
pub async fn push_soci(
    image: &ImageSpec,
    to: Option<&RegistryName>,
    (how, key): (Ztocs, Option<&PrivateKey>),
    tell: impl Fn(Step),
) -> Result<Pushed, IndexPushError> {
    let Target { opened, registry, name, mut pushed } = target(image, to).await?;
    let place = pushed.place.clone();
    let push = |cause| IndexPushError::Push { place: place.clone(), cause };
    let count = opened.plan.layers.len();
    let mut ztocs: Vec<(&Descriptor, Descriptor)> = Vec::new();
    for (number, layer) in opened.plan.layers.iter().enumerate() {
        if ztocs.iter().any(|(known, _)| known.digest == layer.blob.digest) {
            continue;
        }
        if layer.compression() != Some(Compression::Gzip) || layer.blob.size < how.min_layer_size {
            pushed.left_out += 1;
            continue;
        }
        let (progress, size) = (Arc::<PassProgress>::default(), layer.blob.size);
        tell(Step::Describing { number: number + 1, count, size, progress: Arc::clone(&progress) });
        let source: Arc<dyn BlobSource> = Arc::new(Inlined::before(Arc::clone(&opened.source)));
        let ztoc = match content::make_ztoc(layer, &source, (Limits::default().codec, how.span_size), &progress).await {
            Ok(ztoc) => Bytes::from(ztoc),
            Err(ZtocError::None(why)) => {
                tracing::warn!(layer = %layer.blob.digest, %why, "a layer gets no zTOC");
                pushed.left_out += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let digest = Digest::of(Algorithm::Sha256, &ztoc);
        let media_type = MediaType::parse("application/octet-stream");
        let described = Descriptor::new(media_type, digest.clone(), ztoc.len() as u64);
        tell(Step::Sending { size: described.size });
        (pushed.layers, pushed.layer_bytes) = (pushed.layers + 1, pushed.layer_bytes + size);
        pushed.index_bytes += described.size;
        if registry.push_blob(&digest, &Content::Memory(ztoc)).await.map_err(push)? == Stored::New {
            (pushed.sent, pushed.sent_bytes) = (pushed.sent + 1, pushed.sent_bytes + described.size);
        }
        ztocs.push((&layer.blob, described));
    }
    if ztocs.is_empty() {
        return Err(IndexPushError::NoZtocs { reference: opened.reference.to_string(), least: how.min_layer_size });
    }
    let image = &opened.plan.manifest;
    let manifest = Bytes::from(SociIndex::manifest(image, &ztocs, how.span_size));
    signed(&registry, &name, &Digest::of(Algorithm::Sha256, &manifest), key).await?;
    let entry = SociIndex::entry(&manifest);
    pushed.artifact = registry.push_referrer(&image.digest, &manifest, &entry).await.map_err(push)?;
    Ok(pushed)
}

/// An image, and where to push what is known of it.
struct Target {
    opened: Opened,
    registry: Arc<RegistrySource>,
    /// The repository.
    name: RegistryName,
    /// Nothing yet.
    pushed: Pushed,
}

/// Opens the image, and sees whether the repository may be written to at all, before anything takes long.
async fn target(image: &ImageSpec, to: Option<&RegistryName>) -> Result<Target, IndexPushError> {
    if image.access.network == Network::Offline {
        return Err(IndexPushError::Offline);
    }
    let opened = open::open_alone(image).await?;
    let name = match (to, image.reference.place()) {
        (Some(to), _) => to,
        (None, Place::Registry(name)) => name,
        (None, _) => return Err(IndexPushError::NoRegistry { reference: opened.reference.to_string() }),
    };
    let place = format!("{}/{}", name.authority(), name.repository());
    let registry = Arc::new(open::registry(name, &place, &image.access, Rights::Push).map_err(HostError::from)?);
    let (config, empty) = IndexArtifact::config();
    let stored = registry.push_blob(&config, &Content::Memory(Bytes::from_static(empty))).await;
    stored.map_err(|cause| IndexPushError::Push { place: place.clone(), cause })?;
    let pushed = Pushed {
        place,
        artifact: config,
        was_there: false,
        layers: 0,
        left_out: 0,
        sent: 0,
        sent_bytes: 0,
        index_bytes: 0,
        window_bytes: 0,
        layer_bytes: 0,
        profiles: false,
    };
    Ok(Target { opened, registry, name: name.clone(), pushed })
}

/// The layers to push, each once, with their numbers.
fn to_push(opened: &Opened) -> Vec<(usize, &LayerRef)> {
    let mut layers: Vec<(usize, &LayerRef)> = Vec::new();
    for (number, layer) in opened.plan.layers.iter().enumerate() {
        let brings_table = Origin::tables(layer).iter().any(|(_, fault)| fault.is_none());
        let is_known = layers.iter().any(|(_, known)| known.blob.digest == layer.blob.digest);
        let has_own = || content::open_stored(layer, &[Origin::Store], &opened.store).is_ok();
        if !is_known && (!brings_table || has_own()) {
            layers.push((number + 1, layer));
        }
    }
    layers
}

/// Makes a first pass.
async fn make(opened: &Opened, layer: &LayerRef, progress: &Arc<PassProgress>) -> Result<(), PassError> {
    let limits = Limits::default();
    let layer_limits = limits.layer.of_image(opened.plan.layers.len());
    let pass = FirstPass { layer: layer.clone(), codec_limits: limits.codec, layer_limits };
    let source: Arc<dyn BlobSource> = Arc::new(Inlined::before(Arc::clone(&opened.source)));
    let schedule = ScheduledPass::new(&PassScheduler::new());
    let (source, store, schedule) = (&source, &opened.store, &schedule);
    let means = Means {
        source,
        store,
        progress,
        schedule,
        partial: None,
        others: Others::Wait,
        pushed: None,
        soci: None,
        turns: None,
    };
    opening::open(&pass, &[Origin::Store, Origin::FirstPass], &means).await.map(drop)
}

/// Compresses the index of a layer, on another thread.
async fn packed(opened: &Opened, layer: &LayerRef) -> Result<PackedIndex, IndexPushError> {
    let (store, layer) = (Arc::clone(&opened.store), layer.clone());
    let packed = tokio::task::spawn_blocking(move || pack_index(&store, &layer)).await;
    Ok(packed.map_err(|error| TransferError::Io(std::io::Error::other(error)))??)
}

/// The newest artifact, if it is the same but for its time: what others have written there is neither taken for ours nor signed.
async fn existing(
    registry: &RegistrySource,
    image: &Descriptor,
    artifact: &IndexArtifact,
) -> Result<Option<Digest>, crate::source::SourceError> {
    let found = content::referring_artifacts(registry, &image.digest, INDEX_ARTIFACT).await?;
    let Some(newest) = found.into_iter().next() else { return Ok(None) };
    let Ok(bytes) = registry.manifest(&newest).await else { return Ok(None) };
    let Ok(bytes) = bytes.verify(&newest.digest, newest.size) else { return Ok(None) };
    let same = IndexArtifact::created(&bytes).is_some_and(|created| artifact.manifest(image, &created) == bytes);
    Ok(same.then_some(newest.digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_told_of_what_helps_a_push() {
        let hint = |hint| {
            let source = SourceError::Unreachable {
                what: "blob a".to_owned(),
                place: "r.example".to_owned(),
                why: "connection refused".to_owned(),
                hint,
            };
            let place = "r.example/a".to_owned();
            Report::from(IndexPushError::Push { place, cause: source.into() }).hint.unwrap_or_default()
        };
        assert!(hint(None).contains("check the network") && !hint(None).contains("--offline"), "{}", hint(None));
        assert_eq!(hint(Some("log in")), "log in");
    }
}
