//! Resolution: from a reference to the layers that make up an image.
//!
//! Every document is verified by digest and size before it is used, and stored, so that a known image is resolved
//! without the network (by digest) or with one HEAD request (by tag).

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::artifact::{self, View};
use crate::content::{LayerRef, Payload};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;
use crate::documents::{
    self, Artifact, ArtifactKind, Document, DocumentError, ImageConfig, IndexEntry, Manifest, SOCI_INDEX, Step,
};
use crate::layer::NameError;
use crate::platform::{self, Platform};
use crate::reference::{Place, Reference};
use crate::source::{BlobSource, CONFIG_LIMIT, MANIFEST_LIMIT, SourceError};
use crate::store::{Store, StoreError, TagRecord};
use crate::sync::lock;
use crate::trust::{Mismatch, Untrusted};

/// A resolved image.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The document that the reference names: an image index, or the manifest itself.
    pub root: Descriptor,
    /// The selected manifest.
    pub manifest: Descriptor,
    /// The image configuration's descriptor.
    pub config: Descriptor,
    /// The configuration.
    pub configuration: ImageConfig,
    /// The layers, base first.
    pub layers: Vec<LayerRef>,
    /// The platform of the manifest, if it is stated.
    pub platform: Option<Platform>,
    /// The platforms that the reference offers.
    pub offered: Vec<Platform>,
    /// Its kind, if it is an artifact, or shown as one.
    pub artifact: Option<ArtifactKind>,
    /// The documents used.
    pub documents: Documents,
}

/// The documents of a resolved image: with them it can be resolved again if neither the store nor the source has them.
/// They are verified again when they are used.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Documents {
    root: Option<TagRecord>,
    texts: Vec<(Digest, String)>,
}

impl Documents {
    fn note(&mut self, descriptor: &Descriptor, bytes: &Bytes) {
        // Others would not have been parsed.
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.texts.push((descriptor.digest.clone(), text.to_owned()));
        }
    }

    /// A document's text.
    pub fn text(&self, digest: &Digest) -> Option<&str> {
        self.texts.iter().find(|(known, _)| known == digest).map(|(_, text)| text.as_str())
    }

    fn has(&self, digest: &Digest) -> bool {
        self.texts.iter().any(|(known, _)| known == digest)
    }

    /// Adds them to a store, which may have evicted them; the image can then be resolved by digest without a source.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn restore(&self, store: &Store) -> Result<(), StoreError> {
        for (digest, text) in &self.texts {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            if store.document(digest, bytes.len() as u64).is_none() {
                // They may come from a damaged file.
                let verified = Untrusted::new(bytes.clone()).verify(digest, bytes.len() as u64);
                verified.ok().map(|bytes| store.keep_document(digest, &bytes)).transpose()?;
            }
        }
        match &self.root {
            Some(record) if store.tag(&record.reference).as_ref() != Some(record) => store.keep_tag(record),
            _ => Ok(()),
        }
    }

    fn document(&self, digest: &Digest, size: u64) -> Option<Bytes> {
        let (_, text) = self.texts.iter().find(|(known, _)| known == digest)?;
        Untrusted::new(Bytes::copy_from_slice(text.as_bytes())).verify(digest, size).ok()
    }
}

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Network {
    /// It may.
    Allowed,
    /// Only the cache.
    Offline,
}

/// When a registry is asked what a tag names, where the network may be asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Pull {
    /// Each time; while it cannot be reached, the tag names what it did when it was last asked.
    #[default]
    Newer,
    /// Each time; it is an error if it cannot be reached.
    Always,
    /// Only where the store does not know what the tag named when it was last asked.
    Missing,
}

/// Why a reference could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A document cannot be used.
    #[error("{what} {digest} of {reference} cannot be used")]
    Document {
        /// The reference.
        reference: String,
        /// What it should be.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// Why it cannot be used.
        #[source]
        cause: DocumentError,
    },
    /// A document's bytes do not match its descriptor.
    #[error("{what} of {reference} is not what its digest says")]
    Corrupt {
        /// The reference.
        reference: String,
        /// The document.
        what: &'static str,
        /// Both digests.
        #[source]
        mismatch: Box<Mismatch>,
    },
    /// Inlined data does not match its descriptor.
    #[error("the inlined data of {what} of {reference} is not what its digest says")]
    Inlined {
        /// The reference.
        reference: String,
        /// The object of the descriptor.
        what: &'static str,
        /// Both digests.
        #[source]
        mismatch: Box<Mismatch>,
    },
    /// A file of an artifact cannot be shown under its name.
    #[error("{reference} cannot be shown: the name of layer {number}, {digest}, is not usable")]
    Name {
        /// The reference.
        reference: String,
        /// The layer; the first is 1.
        number: usize,
        /// Its digest.
        digest: Digest,
        /// Why its name is not usable.
        #[source]
        cause: NameError,
    },
    /// No manifest fits.
    #[error("{reference}: {cause}")]
    Choice {
        /// The reference.
        reference: String,
        /// Why none fits.
        cause: Box<documents::ResolveError>,
    },
    /// A document is larger than the limit.
    #[error("{what} {digest} of {reference} has {size} bytes; more than {limit} are not read")]
    TooLarge {
        /// The reference.
        reference: String,
        /// The document.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The target of the reference is unknown, and the network may not be used.
    #[error("{reference} is not in the cache, and the network may not be used")]
    Offline {
        /// The reference.
        reference: String,
    },
}

impl PlanError {
    /// Whether an object listed in an image index is missing.
    fn is_missing(&self) -> bool {
        matches!(self, Self::Source(SourceError::NotFound { .. }) | Self::Offline { .. })
    }
}

/// Whether an image for another platform than the requested one is accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fit {
    /// No.
    Required,
    /// If the reference has no other image: then its platform was not chosen.
    Lone,
    /// Yes, if none fits.
    Any,
}

/// Resolves `reference` for `wanted`.
///
/// # Errors
/// [`PlanError`]
pub async fn resolve(
    reference: &Reference,
    source: &Arc<dyn BlobSource>,
    store: &Store,
    wanted: &Platform,
    network: Network,
) -> Result<Plan, PlanError> {
    let wanted =
        Wanted { platform: wanted, fit: Fit::Required, pull: Pull::default(), view: &View::Auto, on_manifest: None };
    resolve_again(reference, source, store, wanted, network, &Documents::default()).await
}

/// Which image is wanted of those that a reference can lead to.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// For this platform.
    pub platform: &'a Platform,
    /// With this regard to it.
    pub fit: Fit,
    /// What a tag names now, or did.
    pub pull: Pull,
    /// What is shown of it.
    pub view: &'a View,
    /// Is told of a manifest while its configuration is fetched.
    pub on_manifest: Option<&'a dyn OnManifest>,
}

/// Makes use of a manifest as soon as it is known.
pub trait OnManifest: std::fmt::Debug + Sync {
    /// This manifest has these layers. It may turn out to be of another platform than the one that is wanted.
    fn on_manifest(&self, manifest: &Descriptor, layers: &[Descriptor]);
}

/// As [`resolve`], with the documents of an earlier resolution as a fallback, and a choice of what is acceptable.
///
/// # Errors
/// [`PlanError`]
pub async fn resolve_again(
    reference: &Reference,
    source: &Arc<dyn BlobSource>,
    store: &Store,
    Wanted { platform: wanted, fit, pull, view, on_manifest }: Wanted<'_>,
    network: Network,
    before: &Documents,
) -> Result<Plan, PlanError> {
    let documents = Mutex::default();
    let resolver = Resolver { reference, source, store, network, pull, view, on_manifest, before, documents };
    let (root, bytes) = resolver.root().await?;
    resolver.remember(&root, &bytes);
    let document = resolver.parse(&root, &bytes)?;
    let offered = match &document {
        Document::Index(index) => index.offered(),
        Document::Manifest(_) | Document::Artifact(_) => Vec::new(),
    };

    // Candidates, best first; a stack, as an entry may be an index itself.
    let mut rest = vec![Candidate { descriptor: root.clone(), document: Some(document), platform: None, depth: 0 }];
    let (mut unfit, mut missing, mut files) = (None, None, None);
    while let Some(candidate) = rest.pop() {
        let found = match resolver.look_into(candidate, wanted, fit).await {
            // A mirror or an export may lack some entries of an index.
            Err(error) if error.is_missing() => {
                missing.get_or_insert(error);
                continue;
            }
            found => found?,
        };
        match found {
            Found::Image(image) => {
                let (manifest, config, candidate) = *image;
                let platform = candidate.platform.or_else(|| config.platform.clone());
                resolver.tell(missing.as_ref(), platform.as_ref(), wanted);
                let offered = if offered.is_empty() { platform.iter().cloned().collect() } else { offered };
                for layer in &manifest.layers {
                    resolver.inlined("a layer", layer)?;
                }
                if *view == View::Artifact {
                    let candidate = Candidate { platform, ..candidate };
                    return resolver.files(root, candidate, Artifact::of_image(manifest), config, offered);
                }
                let blobs = [std::slice::from_ref(&manifest.config), &manifest.layers].concat();
                let plan = assemble(root, candidate.descriptor, manifest, config, platform, offered);
                return Ok(resolver.finish(plan, blobs));
            }
            // Of an index, images come first.
            Found::Files(found) if found.1.depth > 0 && !rest.is_empty() => {
                files.get_or_insert(found);
            }
            Found::Files(found) => {
                let (artifact, candidate) = *files.take().unwrap_or(found);
                let config = resolver.artifact_config(&artifact).await?;
                return resolver.files(root, candidate, artifact, config, offered);
            }
            Found::Inside(candidates) => rest.extend(candidates.into_iter().rev()),
            Found::Unfit(error) => {
                unfit.get_or_insert(error);
            }
        }
    }
    if let Some(found) = files {
        let (artifact, candidate) = *found;
        let config = resolver.artifact_config(&artifact).await?;
        return resolver.files(root, candidate, artifact, config, offered);
    }
    let no_platform = || documents::ResolveError::NoPlatform { wanted: wanted.clone(), offered };
    let choice = |cause| PlanError::Choice { reference: reference.to_string(), cause: Box::new(cause) };
    Err(missing.unwrap_or_else(|| choice(unfit.unwrap_or_else(no_platform))))
}

/// Result of examining a candidate.
enum Found {
    /// The image.
    Image(Box<(Manifest, ImageConfig, Candidate)>),
    /// An artifact.
    Files(Box<(Artifact, Candidate)>),
    /// Its entries, best first.
    Inside(Vec<Candidate>),
    /// Nothing that fits.
    Unfit(documents::ResolveError),
}

struct Candidate {
    descriptor: Descriptor,
    document: Option<Document>,
    platform: Option<Platform>,
    depth: usize,
}

fn assemble(
    root: Descriptor,
    descriptor: Descriptor,
    manifest: Manifest,
    configuration: ImageConfig,
    platform: Option<Platform>,
    offered: Vec<Platform>,
) -> Plan {
    let soci = soci_index(&manifest);
    let layers = manifest
        .layers
        .into_iter()
        .zip(&configuration.diff_ids)
        .map(|(blob, diff_id)| {
            let MediaType::Layer(compression, _) = blob.media_type else {
                unreachable!("a parsed manifest has layers of known types only");
            };
            LayerRef { blob, diff_id: Some(diff_id.clone()), payload: Payload::Tar(compression), soci: soci.clone() }
        })
        .collect();
    let (config, documents, artifact) = (manifest.config, Documents::default(), None);
    Plan { root, manifest: descriptor, config, configuration, layers, platform, offered, artifact, documents }
}

/// The SOCI index that a manifest binds.
fn soci_index(manifest: &Manifest) -> Option<Digest> {
    let text = manifest.annotations.get(SOCI_INDEX)?;
    text.parse().inspect_err(|error| tracing::warn!(%error, "the manifest's `{SOCI_INDEX}` is not used")).ok()
}

struct Resolver<'a> {
    reference: &'a Reference,
    source: &'a Arc<dyn BlobSource>,
    store: &'a Store,
    network: Network,
    pull: Pull,
    view: &'a View,
    on_manifest: Option<&'a dyn OnManifest>,
    /// The documents of an earlier resolution.
    before: &'a Documents,
    /// The documents used now.
    documents: Mutex<Documents>,
}

impl Resolver<'_> {
    async fn look_into(&self, mut candidate: Candidate, wanted: &Platform, fit: Fit) -> Result<Found, PlanError> {
        let document = match candidate.document.take() {
            Some(document) => document,
            None => {
                let bytes = self.manifest(&candidate.descriptor).await?;
                self.parse(&candidate.descriptor, &bytes)?
            }
        };
        let all = match &document {
            Document::Index(index) => Some(index.clone()),
            _ => None,
        };
        let entries = match documents::resolve_step(document, candidate.depth, wanted) {
            Ok(Step::Arrived(manifest)) => {
                if let Some(listener) = self.on_manifest {
                    listener.on_manifest(&candidate.descriptor, &manifest.layers);
                }
                let config = self.config(&manifest).await?;
                let lone = candidate.depth == 0 && fit != Fit::Required;
                return Ok(match config.require(wanted) {
                    Err(error) if candidate.platform.is_none() && !lone => Found::Unfit(error),
                    _ => Found::Image(Box::new((manifest, config, candidate))),
                });
            }
            Ok(Step::Files(artifact)) => return self.artifact(artifact, candidate),
            Ok(Step::Descend(entries)) => entries,
            Err(error @ documents::ResolveError::NoPlatform { .. }) => match all {
                Some(index) if *self.view != View::Image && !index.entries.iter().any(IndexEntry::may_be_image) => {
                    match documents::lone_artifact(&index, wanted) {
                        Ok(entry) => vec![entry.clone()],
                        Err(error) => return Ok(Found::Unfit(error)),
                    }
                }
                Some(index) if fit == Fit::Any => {
                    let images: Vec<_> = index.entries.into_iter().filter(IndexEntry::may_be_image).collect();
                    if images.is_empty() {
                        return Ok(Found::Unfit(error));
                    }
                    images
                }
                _ => return Ok(Found::Unfit(error)),
            },
            Err(error) => return Ok(Found::Unfit(error)),
        };
        // An image that was resolved before keeps its manifest, even if others were added to the index since.
        let before = |entry: &IndexEntry| self.before.has(&entry.descriptor.digest);
        let known = entries.iter().any(before);
        let inside = |entry: IndexEntry| Candidate {
            descriptor: entry.descriptor,
            document: None,
            platform: entry.platform,
            depth: candidate.depth + 1,
        };
        Ok(Found::Inside(entries.into_iter().filter(|entry| !known || before(entry)).map(inside).collect()))
    }

    /// An artifact where a manifest was looked for.
    fn artifact(&self, artifact: Artifact, candidate: Candidate) -> Result<Found, PlanError> {
        let refused = match &artifact.no_image {
            Some(why) if *self.view != View::Artifact => Some(why.clone()),
            _ if *self.view == View::Image => {
                Some(DocumentError::NotAnImage { kind: artifact.artifact_type.to_string() })
            }
            _ => None,
        };
        match refused {
            Some(cause) => Err(self.document_error("the manifest", &candidate.descriptor, cause)),
            None => Ok(Found::Files(Box::new((artifact, candidate)))),
        }
    }

    /// The configuration of an artifact: JSON of a usual size, or nothing that is needed to show it.
    async fn artifact_config(&self, artifact: &Artifact) -> Result<ImageConfig, PlanError> {
        let descriptor = &artifact.config;
        let is_json = descriptor.media_type.as_str().ends_with("json");
        if !is_json || descriptor.size > CONFIG_LIMIT {
            return Ok(ImageConfig::of_artifact(b"null"));
        }
        if descriptor.size == EMPTY.len() as u64 && descriptor.digest.is_of(EMPTY) {
            return Ok(ImageConfig::of_artifact(EMPTY));
        }
        Ok(ImageConfig::of_artifact(&self.config_text(descriptor).await?))
    }

    /// The plan of an artifact.
    fn files(
        self,
        root: Descriptor,
        candidate: Candidate,
        artifact: Artifact,
        configuration: ImageConfig,
        offered: Vec<Platform>,
    ) -> Result<Plan, PlanError> {
        for layer in &artifact.layers {
            self.inlined("a layer", layer)?;
        }
        let layers =
            artifact::layers(&artifact, configuration.raw.get()).map_err(|(number, cause)| PlanError::Name {
                reference: self.reference.to_string(),
                number: number + 1,
                digest: artifact.layers[number].digest.clone(),
                cause,
            })?;
        // A process that takes over a mount need not say it again.
        let is_told = self.before.has(&candidate.descriptor.digest) || matches!(self.view, View::Layout { .. });
        for note in artifact::notes(&layers, &self.reference.to_string()).iter().filter(|_| !is_told) {
            tracing::info!(target: "peelfs::note", "{note}");
        }
        let blobs = [std::slice::from_ref(&artifact.config), &artifact.layers].concat();
        let plan = Plan {
            root,
            manifest: candidate.descriptor,
            config: artifact.config.clone(),
            configuration,
            layers,
            platform: candidate.platform,
            offered,
            artifact: Some(artifact.kind()),
            documents: Documents::default(),
        };
        Ok(self.finish(plan, blobs))
    }

    /// A plan with the documents that were used, as the view wants it; `blobs` are what its manifest lists.
    fn finish(self, plan: Plan, blobs: Vec<Descriptor>) -> Plan {
        let documents = self.documents.into_inner().unwrap_or_default();
        let layers = match (documents.text(&plan.manifest.digest), self.view) {
            (Some(text), View::Layout { name }) => {
                let (manifest, platform) = (&plan.manifest, plan.platform.as_ref());
                artifact::layout(&artifact::Listed { manifest, text, platform, name }, blobs)
            }
            _ => plan.layers,
        };
        Plan { layers, documents, ..plan }
    }

    /// Warns if the image differs from what was requested.
    fn tell(&self, missing: Option<&PlanError>, platform: Option<&Platform>, wanted: &Platform) {
        let shown = platform.map_or_else(|| "an unknown platform".to_owned(), Platform::to_string);
        if let Some(missing) = missing {
            tracing::warn!("{missing}; using the image for {shown} instead");
        }
        if platform.is_some_and(|platform| platform::best_first(wanted, std::slice::from_ref(platform)).is_empty()) {
            tracing::warn!("{} is for {shown}, not for {wanted}", self.reference);
        }
    }

    /// The root document: from the store if it is current.
    async fn root(&self) -> Result<(Descriptor, Bytes), PlanError> {
        let Place::Registry(name) = self.reference.place() else {
            return self.fetch_root().await;
        };
        // With a digest, the tag has no meaning.
        let pinned = name.digest().map(|digest| self.reference.clone().pinned(digest));
        let canonical = pinned.as_ref().unwrap_or(self.reference).canonical();
        let stored = self.store.tag(&canonical).and_then(|record| {
            let bytes = self.store.document(&record.digest, record.size)?;
            Some((record, bytes))
        });
        let before = || {
            let record = self.before.root.clone()?;
            let bytes = self.before.document(&record.digest, record.size)?;
            Some((record, bytes))
        };
        match (stored.or_else(before), self.network) {
            // A digest never changes its target.
            (Some((record, bytes)), _) if name.digest() == Some(&record.digest) => Ok((described(&record), bytes)),
            (Some((record, bytes)), Network::Offline) => Ok((described(&record), bytes)),
            (Some((record, bytes)), Network::Allowed) if self.pull == Pull::Missing => Ok((described(&record), bytes)),
            (None, Network::Offline) => Err(PlanError::Offline { reference: self.reference.to_string() }),
            (Some((record, bytes)), Network::Allowed) => {
                let now = match self.source.head().await {
                    Ok(now) => now.digest,
                    // Fall back to the last known target; but a refusal is final.
                    Err(error @ SourceError::Unreachable { .. }) if self.pull != Pull::Always => {
                        tracing::warn!("{error}; using the last known target of {}", self.reference);
                        record.digest.clone()
                    }
                    Err(error) => return Err(error.into()),
                };
                if now == record.digest { Ok((described(&record), bytes)) } else { self.fetch_root().await }
            }
            (None, Network::Allowed) => self.fetch_root().await,
        }
    }

    async fn fetch_root(&self) -> Result<(Descriptor, Bytes), PlanError> {
        let (descriptor, bytes) = self.source.root().await?;
        // An image layout may have it in `index.json`.
        let bytes = match self.inlined("the manifest", &descriptor)? {
            Some(inlined) => inlined,
            None => self.verified("the manifest", &descriptor, bytes)?,
        };
        self.keep(&descriptor, &bytes);
        Ok((descriptor, bytes))
    }

    /// Stores the target of the reference, also under its digest: a process that takes over a mount looks for that,
    /// possibly while the registry is unreachable.
    fn remember(&self, root: &Descriptor, bytes: &Bytes) {
        lock(&self.documents).note(root, bytes);
        for reference in [self.reference.canonical(), self.reference.clone().pinned(&root.digest).canonical()] {
            let record = TagRecord::new(reference, root);
            lock(&self.documents).root = Some(record.clone());
            if self.store.tag(&record.reference).as_ref() == Some(&record) {
                continue;
            }
            if let Err(error) = self.store.keep_tag(&record) {
                self.store.cannot_keep("the target of the reference", &error);
            }
        }
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlanError> {
        self.check_size("manifest", descriptor, MANIFEST_LIMIT)?;
        let bytes = match self.at_hand("the manifest", descriptor)? {
            Some(bytes) => bytes,
            None => {
                let bytes = self.source.manifest(descriptor).await?;
                let bytes = self.verified("the manifest", descriptor, bytes)?;
                self.keep(descriptor, &bytes);
                bytes
            }
        };
        lock(&self.documents).note(descriptor, &bytes);
        Ok(bytes)
    }

    async fn config(&self, manifest: &Manifest) -> Result<ImageConfig, PlanError> {
        let descriptor = &manifest.config;
        let bytes = self.config_text(descriptor).await?;
        ImageConfig::parse(&bytes, manifest.layers.len())
            .map_err(|cause| self.document_error("the configuration", descriptor, cause))
    }

    async fn config_text(&self, descriptor: &Descriptor) -> Result<Bytes, PlanError> {
        self.check_size("configuration", descriptor, CONFIG_LIMIT)?;
        let bytes = match self.at_hand("the configuration", descriptor)? {
            Some(bytes) => bytes,
            None => {
                let bytes = self.source.config(descriptor).await?;
                let bytes = self.verified("the configuration", descriptor, bytes)?;
                self.keep(descriptor, &bytes);
                bytes
            }
        };
        lock(&self.documents).note(descriptor, &bytes);
        Ok(bytes)
    }

    /// A document that need not be fetched: inlined in its descriptor, or in the store.
    fn at_hand(&self, what: &'static str, descriptor: &Descriptor) -> Result<Option<Bytes>, PlanError> {
        if let Some(inlined) = self.inlined(what, descriptor)? {
            return Ok(Some(inlined));
        }
        let before = || self.before.document(&descriptor.digest, descriptor.size);
        match self.store.document(&descriptor.digest, descriptor.size).or_else(before) {
            Some(bytes) => Ok(Some(bytes)),
            None if self.network == Network::Offline && matches!(self.reference.place(), Place::Registry(_)) => {
                Err(PlanError::Offline { reference: self.reference.to_string() })
            }
            None => Ok(None),
        }
    }

    /// The inlined data of a descriptor.
    fn inlined(&self, what: &'static str, descriptor: &Descriptor) -> Result<Option<Bytes>, PlanError> {
        descriptor.inlined().map_err(|mismatch| PlanError::Inlined {
            reference: self.reference.to_string(),
            what,
            mismatch: Box::new(mismatch),
        })
    }

    fn verified(&self, what: &'static str, wanted: &Descriptor, got: Untrusted<Bytes>) -> Result<Bytes, PlanError> {
        got.verify(&wanted.digest, wanted.size).map_err(|mismatch| PlanError::Corrupt {
            reference: self.reference.to_string(),
            what,
            mismatch: Box::new(mismatch),
        })
    }

    fn keep(&self, descriptor: &Descriptor, bytes: &Bytes) {
        if let Err(error) = self.store.keep_document(&descriptor.digest, bytes) {
            self.store.cannot_keep("a document", &error);
        }
    }

    fn parse(&self, descriptor: &Descriptor, bytes: &Bytes) -> Result<Document, PlanError> {
        Document::parse(bytes, Some(&descriptor.media_type))
            .map_err(|cause| self.document_error("the manifest", descriptor, cause))
    }

    fn document_error(&self, what: &'static str, descriptor: &Descriptor, cause: DocumentError) -> PlanError {
        PlanError::Document { reference: self.reference.to_string(), what, digest: descriptor.digest.clone(), cause }
    }

    fn check_size(&self, what: &'static str, descriptor: &Descriptor, limit: u64) -> Result<(), PlanError> {
        if descriptor.size <= limit {
            return Ok(());
        }
        Err(PlanError::TooLarge {
            reference: self.reference.to_string(),
            what,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            limit,
        })
    }
}

fn described(record: &TagRecord) -> Descriptor {
    Descriptor::new(MediaType::parse(&record.media_type), record.digest.clone(), record.size)
}

/// The empty descriptor's content (image-spec, manifest.md).
const EMPTY: &[u8] = b"{}";
