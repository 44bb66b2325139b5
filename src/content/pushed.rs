//! Indexes that other machines have pushed to a registry: found beside the image, fetched, and put into the store.
//!
//! What a machine has learnt in a first pass is valid for all of them, so an artifact holds the indexes of an image's
//! layers ([`IndexArtifact`]). It is looked for once for each image, when the first layer needs it. Nothing proves that
//! the names and digests in such an index belong to the layer: those who can write to the repository vouch for them, so
//! it is used only where the user has named the repository, and, where that is asked for, if [`ArtifactCheck`] allows the artifact
//! it is from. All else is checked, here and when bytes are fetched: an
//! index that cannot be used, or contradicts the layer, is given up, and the layer is opened otherwise.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::artifact_check::{ArtifactCheck, ArtifactChecks, Refusal, artifact_of, name_of, parse_name};
use super::layer_ref::LayerRef;
use super::origin::{NotOpened, Opened, Origin, PassedOver, open_stored};
use super::profiles::{Profiles, keep_profile, load_profile};
use super::pushed_error::PushedError;
use super::referrer::{Referring, described, keep, manifest_of};
use super::soci::WantedLayer;
use super::soci_error::{NoIndex, SociError};
use super::soci_referrers::SociReferrers;
use super::superseded::drop_superseded;
use super::transfer;
use super::windows::WindowSource;
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::documents::{INDEX_ARTIFACT, IndexArtifact, PushedBlob, PushedIndex, PushedWindows};
use crate::layer::{Format, IndexError, LayerIndex, Proof, WindowsBlob};
use crate::offsets::BlobOffset;
use crate::source::registry::RegistrySource;
use crate::source::{BlobSource, MANIFEST_LIMIT};
use crate::store::{NewFile, Store};

/// The pushed indexes of one image.
pub struct PushedIndexes {
    /// Where they are looked for; `None` without a network.
    registry: Option<Arc<RegistrySource>>,
    /// What refers to the image there.
    referring: Option<Arc<Referring>>,
    /// The image's manifest.
    image: Digest,
    /// Registry and repository.
    place: Box<str>,
    /// The layers that are looked for.
    layers: Vec<Digest>,
    found: OnceCell<Result<Found, Arc<str>>>,
    profiles: OnceCell<()>,
    checks: Arc<ArtifactChecks>,
    /// A SOCI index in the same place.
    soci: Option<SociReferrers>,
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    /// By layer, each with its artifact.
    indexes: HashMap<Digest, (PushedIndex, Digest)>,
    profiles: Option<PushedBlob>,
    /// Artifacts that cannot be used.
    unusable: Vec<String>,
}

impl PushedIndexes {
    /// Those of the image with the manifest `image` and these layers, in `place`, the repository of `registry`; only those whose
    /// artifact `check` allows.
    pub fn new<'a>(
        registry: Option<Arc<RegistrySource>>,
        place: &str,
        image: &Digest,
        layers: impl IntoIterator<Item = &'a Descriptor>,
        check: Option<Arc<dyn ArtifactCheck>>,
    ) -> Self {
        let checks = Arc::new(ArtifactChecks::new(check));
        let referring = registry.as_ref().map(|registry| Referring::new(Arc::clone(registry), place, image));
        let soci = registry.as_ref().zip(referring.as_ref()).map(|(registry, referring)| {
            SociReferrers::new(Arc::clone(registry), (place, image), Arc::clone(referring), Arc::clone(&checks))
        });
        let layers = layers.into_iter().map(|layer| layer.digest.clone()).collect();
        Self {
            registry,
            referring,
            image: image.clone(),
            place: place.into(),
            layers,
            found: OnceCell::new(),
            profiles: OnceCell::new(),
            checks,
            soci,
        }
    }

    /// Where the windows of indexes are that are without them; `None` without a network.
    pub fn window_source(&self) -> Option<WindowSource> {
        Some(WindowSource::new(Arc::clone(self.registry.as_ref()?), &self.place))
    }

    /// Asks the registry what there is, before any layer needs it.
    pub async fn look_ahead(&self) {
        if let Some(referring) = &self.referring {
            // The layer that needs it is told of an error.
            let _ = tokio::time::timeout(FIND_LIMIT, referring.of_type(INDEX_ARTIFACT)).await;
        }
    }

    /// Whether an index with this proof may be used, by the answers so far ([`PushedIndexes::ask_about`]).
    pub fn admit(&self, proof: &Proof) -> bool {
        self.checks.admit(proof)
    }

    /// Asks about the artifact that the stored index of a layer is from, if it is from one.
    pub async fn ask_about(&self, layer: &LayerRef, store: &Store) {
        if self.checks.is_asked()
            && let Ok(stored) = open_stored(layer, &FROM_ARTIFACTS, store)
        {
            // Whether it is used is seen by the answer.
            let _ = self.allowed(stored.index.proof(), store).await;
        }
    }

    /// Whether an index with this proof may be used.
    async fn allowed(&self, proof: &Proof, store: &Store) -> Result<(), PushedError> {
        let Some(name) = artifact_of(proof).filter(|_| self.checks.is_asked()) else { return Ok(()) };
        let answer = match self.checks.answer(name) {
            Some(answer) => answer,
            None => {
                let artifact = self.described(name, store).await.map_err(|why| PushedError::NotAsked { why })?;
                self.checks.ask(name, &artifact).await
            }
        };
        answer.map_err(PushedError::Refused)
    }

    /// The manifest of the artifact with this name.
    async fn described(&self, name: &str, store: &Store) -> Result<Descriptor, String> {
        let (place, digest) = parse_name(name).ok_or("it does not say which artifact it is from")?;
        let bytes = match (store.document_by_digest(&digest, MANIFEST_LIMIT), &self.registry) {
            (Some(bytes), _) => bytes,
            (None, Some(registry)) if place == &*self.place => {
                let within = tokio::time::timeout(FIND_LIMIT, registry.manifest_by_digest(&digest)).await;
                let bytes = within.map_err(|_| format!("no answer within {} s", FIND_LIMIT.as_secs()))?;
                let bytes = bytes.map_err(|error| error.to_string())?;
                let length = bytes.length() as u64;
                let bytes = bytes.verify(&digest, length).map_err(|error| error.to_string())?;
                keep(store, &digest, &bytes);
                bytes
            }
            (None, _) => return Err(format!("the manifest of {name} is not cached")),
        };
        Ok(described(&digest, &bytes))
    }

    /// Opens a layer by a zTOC in the same place.
    ///
    /// # Errors
    /// [`NotOpened`]
    pub(super) async fn open_by_ztoc(&self, wanted: &WantedLayer<'_>) -> Result<Opened, NotOpened> {
        let origin = Origin::Vouched(Format::SociReferrer);
        match &self.soci {
            Some(soci) => {
                let stored = open_stored(wanted.layer, &[origin], wanted.store);
                match stored {
                    Ok(stored) if self.allowed(stored.index.proof(), wanted.store).await.is_ok() => Ok(stored),
                    _ => soci.open(wanted).await,
                }
            }
            None => {
                let stored = open_stored(wanted.layer, &[origin], wanted.store)?;
                self.allowed(stored.index.proof(), wanted.store).await?;
                Ok(stored)
            }
        }
    }

    /// Looks for a zTOC of a layer, and says what there is, for `--explain`.
    pub async fn look_for_ztoc(&self, layer: &LayerRef) -> String {
        match &self.soci {
            Some(soci) => soci.look(&layer.blob.digest).await,
            None => NOT_OFFLINE.to_owned(),
        }
    }

    /// Opens a layer by its pushed index.
    ///
    /// # Errors
    /// [`NotOpened`]
    pub(super) async fn open(&self, layer: &LayerRef, store: &Arc<Store>) -> Result<Opened, NotOpened> {
        let origin = Origin::Vouched(Format::Pushed);
        let mut refused = None;
        if let Ok(stored) = open_stored(layer, &[origin], store) {
            match self.allowed(stored.index.proof(), store).await {
                Ok(()) => return Ok(stored),
                Err(why) => refused = Some(why),
            }
        }
        let Some(registry) = &self.registry else {
            return Err(refused.map_or(NotOpened::None, NotOpened::from));
        };
        let found = self.found(registry, Some(store)).await.map_err(|why| {
            self.referring.iter().for_each(|referring| referring.tell_failure());
            PushedError::NotListed { why }
        })?;
        let Some((pushed, artifact)) = found.indexes.get(&layer.blob.digest) else {
            let (place, mut unusable) = (self.place.to_string(), found.unusable.clone());
            if let Some(PushedError::Refused(Refusal { why, .. })) = refused {
                let is_new = unusable.iter().all(|known| **known != *why);
                unusable.extend(is_new.then(|| why.to_string()));
            }
            return Err(PushedError::None { place, unusable }.into());
        };
        let profiles = self.profiles.get_or_init(|| async {
            if let Some(blob) = &found.profiles
                && let Err(error) = self.take_profiles(registry, blob, store).await
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(place = &*self.place, error, "pushed profiles are not used");
            }
        });
        let (index, _) = tokio::join!(self.index(registry, (pushed, artifact), layer, store), profiles);
        Ok(Opened { index: index?, origin, passed_over: Vec::new() })
    }

    /// Looks for the index of a layer, and says what there is, for `--explain`.
    pub async fn look(&self, layer: &LayerRef) -> String {
        let Some(registry) = &self.registry else { return NOT_OFFLINE.to_owned() };
        match self.found(registry, None).await {
            Err(why) => PushedError::NotListed { why }.to_string(),
            Ok(found) => match found.indexes.get(&layer.blob.digest) {
                Some((index, _)) => {
                    format!("{} has one of {} bytes; it is not needed yet", self.place, index.blob.size)
                }
                None => {
                    PushedError::None { place: self.place.to_string(), unusable: found.unusable.clone() }.to_string()
                }
            },
        }
    }

    /// Says once that there is no index of any layer, if a layer was opened otherwise because of that: `passed_over` are the
    /// origins that it was asked of.
    pub(super) fn tell_absence(&self, passed_over: &[PassedOver]) {
        let has_nothing = |found: &Found| found.indexes.is_empty() && found.unusable.is_empty();
        let is_absent = |over: &PassedOver| match &over.why {
            NotOpened::Pushed(PushedError::None { .. }) => true,
            NotOpened::Soci(SociError::Index(why)) => matches!(**why, NoIndex::None { .. }) && over.why.is_absence(),
            _ => false,
        };
        let mut asked = passed_over.iter().filter(|over| FROM_ARTIFACTS.contains(&over.origin));
        if matches!(self.found.get(), Some(Ok(found)) if has_nothing(found)) && asked.all(is_absent) {
            self.referring.iter().for_each(|referring| referring.tell_absence());
        }
    }

    /// What there is to say of all layers, if no index of them is found.
    pub fn said(&self) -> Option<&str> {
        self.referring.as_ref()?.said()
    }

    async fn found(&self, registry: &RegistrySource, store: Option<&Store>) -> Result<&Found, Arc<str>> {
        self.found.get_or_init(|| self.find(registry, store)).await.as_ref().map_err(Arc::clone)
    }

    /// Looks at the artifacts of the image, the newest first, until each layer has an index.
    async fn find(&self, registry: &RegistrySource, store: Option<&Store>) -> Result<Found, Arc<str>> {
        let Some(referring) = &self.referring else { return Ok(Found::default()) };
        let mut patience = Patience { left: FIND_LIMIT };
        let late =
            || referring.fail(&PushedError::Late { place: self.place.to_string(), seconds: FIND_LIMIT.as_secs() });
        let candidates = referring.of_type(INDEX_ARTIFACT);
        let candidates = patience.within(candidates).await.ok_or_else(late)??;
        let mut found = Found::default();
        for candidate in candidates {
            let artifact = patience.within(self.artifact(registry, &candidate, store)).await.ok_or_else(late)?;
            let (artifact, manifest) = match artifact {
                Ok(read) => read,
                Err(why) => {
                    tracing::warn!(place = &*self.place, artifact = %candidate.digest, why, "a pushed index is not used");
                    found.unusable.push(why);
                    continue;
                }
            };
            if let Err(refusal) = self.checks.ask(&name_of(&self.place, &candidate.digest), &manifest).await {
                found.unusable.push(refusal.why.to_string());
                match refusal.others_may_be {
                    true => continue,
                    false => break,
                }
            }
            for index in artifact.layers {
                if LayerIndex::reads(index.version) {
                    let artifact = || candidate.digest.clone();
                    found.indexes.entry(index.layer.clone()).or_insert_with(|| (index, artifact()));
                } else {
                    let PushedIndex { layer, version, .. } = index;
                    let why = format!("the index of layer {layer} has version {version}");
                    tracing::warn!(place = &*self.place, artifact = %candidate.digest, why, "a pushed index is not used");
                    found.unusable.push(why);
                }
            }
            if found.profiles.is_none() {
                found.profiles = artifact.profiles;
            }
            if self.layers.iter().all(|layer| found.indexes.contains_key(layer)) {
                break;
            }
        }
        Ok(found)
    }

    async fn artifact(
        &self,
        registry: &RegistrySource,
        candidate: &Descriptor,
        store: Option<&Store>,
    ) -> Result<(IndexArtifact, Descriptor), String> {
        let bytes = manifest_of(registry, candidate, store).await?;
        let artifact = IndexArtifact::parse(&bytes, &self.image);
        let artifact = artifact.map_err(|error| format!("{}: {error}", candidate.digest))?;
        Ok((artifact, described(&candidate.digest, &bytes)))
    }

    /// Fetches an index, and puts it into the store; without room, into memory.
    async fn index(
        &self,
        registry: &RegistrySource,
        (pushed, artifact): (&PushedIndex, &Digest),
        layer: &LayerRef,
        store: &Arc<Store>,
    ) -> Result<Arc<LayerIndex>, PushedError> {
        let limit = INDEX_AT_LEAST.saturating_add(layer.blob.size.saturating_mul(INDEX_PER_BYTE));
        let sink = loop {
            let file = match store.new_index(layer.index_name()) {
                Ok(file) => Sink::File(file),
                Err(error) => {
                    store.cannot_keep("the index of a layer", &error);
                    Sink::Memory(Vec::new())
                }
            };
            match self.decoded(registry, &pushed.blob, limit, file).await {
                Err(PushedError::Corrupt { others: true, .. }) => {}
                decoded => break decoded?,
            }
        };
        let (of, store) =
            (Expected { layer: layer.clone(), windows: pushed.windows.clone(), limit }, Arc::clone(store));
        let proof = Proof::vouched(Format::Pushed, &name_of(&self.place, artifact));
        let taken = tokio::task::spawn_blocking(move || take(sink, &of, proof, &store));
        taken.await.map_err(|_| PushedError::Decode { why: "the process is ending".to_owned() })?
    }

    async fn take_profiles(
        &self,
        registry: &RegistrySource,
        blob: &PushedBlob,
        store: &Store,
    ) -> Result<(), PushedError> {
        let sink = self.decoded(registry, blob, Profiles::LIMIT, Sink::Memory(Vec::new())).await?;
        let Sink::Memory(text) = sink else { return Ok(()) };
        let profiles = Profiles::parse(&text).map_err(|why| PushedError::Decode { why: format!("it holds {why}") })?;
        for profile in profiles.layers {
            let name =
                profile.diff_id.as_ref().map(|diff_id| crate::store::LayerName { blob: &profile.layer, diff_id });
            let is_of_image = self.layers.contains(&profile.layer)
                && profile.runs.len() == 1
                && profile.runs.iter().all(|run| run.image == self.image);
            let known = name.and_then(|name| load_profile(store, name));
            // What this machine's runs have read is a better guess.
            if is_of_image && known.is_none_or(|known| known.runs.iter().all(|run| run.image != self.image)) {
                keep_profile(store, profile)?;
            }
        }
        Ok(())
    }

    /// Fetches a blob into `sink`, decompressed.
    async fn decoded(
        &self,
        registry: &RegistrySource,
        blob: &PushedBlob,
        limit: u64,
        sink: Sink,
    ) -> Result<Sink, PushedError> {
        if blob.decoded > limit || blob.size > blob.decoded.saturating_add(FRAME) {
            return Err(PushedError::TooLarge { decoded: blob.decoded.max(blob.size), limit });
        }
        let seconds = FETCH_LIMIT.as_secs().saturating_add(blob.size / LEAST_RATE);
        let fetched = tokio::time::timeout(Duration::from_secs(seconds), fetch(registry, blob, sink));
        fetched.await.map_err(|_| PushedError::Late { place: self.place.to_string(), seconds })?
    }
}

impl std::fmt::Debug for PushedIndexes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { image, place, found, .. } = self;
        f.debug_struct("PushedIndexes").field("place", place).field("image", image).field("found", found).finish()
    }
}

async fn fetch(registry: &RegistrySource, blob: &PushedBlob, sink: Sink) -> Result<Sink, PushedError> {
    let descriptor = blob.descriptor();
    let decode = |error: io::Error| PushedError::Decode { why: error.to_string() };
    let mut decoder = zstd::stream::write::Decoder::new(Bounded { sink, left: blob.decoded }).map_err(decode)?;
    decoder.window_log_max(WINDOW_LOG).map_err(decode)?;
    let mut hasher = Hasher::new(blob.digest.algorithm());
    let mut stream = registry.stream(&descriptor, BlobOffset(0)..BlobOffset(blob.size)).await?;
    let senders = stream.senders();
    // Of several hosts, another may have the right bytes.
    let wrong = |error: io::Error| match senders.pass_over() {
        true => PushedError::Corrupt { blob: blob.digest.clone(), others: true },
        false => decode(error),
    };
    while let Some(piece) = stream.next().await {
        // What it decodes to is not used before the digest is known to be right.
        let piece = piece?.into_unverified();
        hasher.update(&piece);
        decoder.write_all(&piece).map_err(wrong)?;
    }
    if hasher.finish() != blob.digest {
        return Err(PushedError::Corrupt { blob: blob.digest.clone(), others: senders.pass_over() });
    }
    decoder.flush().map_err(decode)?;
    let Bounded { sink, left } = decoder.into_inner();
    match left {
        0 => Ok(sink),
        left => Err(PushedError::Decode { why: format!("{left} of {} bytes are missing", blob.decoded) }),
    }
}

/// Checks an index, and publishes it.
fn take(sink: Sink, of: &Expected, proof: Proof, store: &Store) -> Result<Arc<LayerIndex>, PushedError> {
    let mut file = match sink {
        Sink::File(file) => file,
        Sink::Memory(mut bytes) => {
            let index = checked(bytes.clone(), of)?;
            let (end_at, end) = index.end_with(proof);
            bytes.truncate(end_at as usize);
            bytes.extend(end);
            return Ok(Arc::new(LayerIndex::open(bytes)?));
        }
    };
    let opened = file.file().try_clone().map_err(|cause| IndexError::Io { cause })?;
    let (end_at, end) = checked(opened, of)?.end_with(proof.clone());
    file.cut(end_at)?;
    file.write_all(&end)?;
    file.publish()?;
    drop_superseded(store, &of.layer.blob.digest);
    match open_stored(&of.layer, &[Origin::Vouched(Format::Pushed)], store) {
        Ok(stored) if *stored.index.proof() == proof => Ok(stored.index),
        // That process may ask other verifiers, or none.
        Ok(_) => Err(PushedError::Decode { why: "another process has replaced it".to_owned() }),
        Err(why) => Err(PushedError::Decode { why: why.to_string() }),
    }
}

/// The time that the registry has for all its answers; that of checks is not counted.
struct Patience {
    left: Duration,
}

impl Patience {
    /// The answer, if it comes in time.
    async fn within<T>(&mut self, answer: impl Future<Output = T>) -> Option<T> {
        let begun = tokio::time::Instant::now();
        let answer = tokio::time::timeout(self.left, answer).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        answer.ok()
    }
}

/// Origins of indexes that are in artifacts.
const FROM_ARTIFACTS: [Origin; 2] = [Origin::Vouched(Format::Pushed), Origin::Vouched(Format::SociReferrer)];

/// What an index must be about.
struct Expected {
    layer: LayerRef,
    /// The windows that its artifact has for it.
    windows: Option<PushedWindows>,
    /// The most bytes of windows.
    limit: u64,
}

fn checked(index: impl crate::layer::ReadAt + 'static, of: &Expected) -> Result<LayerIndex, PushedError> {
    let index = LayerIndex::open(index)?;
    if !of.layer.is(&index) {
        let indexed = index.layer();
        return Err(PushedError::OtherLayer { blob: indexed.blob.clone(), diff_id: indexed.diff_id.clone() });
    }
    transfer::check(&index)?;
    let in_artifact = of.windows.clone().map(|PushedWindows { digest, size }| WindowsBlob { digest, size });
    let said = index.windows_blob()?;
    if said != in_artifact {
        return Err(PushedError::OtherWindows);
    }
    if let Some(WindowsBlob { size, .. }) = said {
        if size > of.limit {
            return Err(PushedError::TooLarge { decoded: size, limit: of.limit });
        }
        index.check_windows_within(size)?;
    }
    Ok(index)
}

/// Where a blob is written to.
#[derive(Debug)]
enum Sink {
    File(NewFile),
    Memory(Vec<u8>),
}

/// A sink that takes so many bytes and no more.
struct Bounded {
    sink: Sink,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        self.left = self.left.checked_sub(length).ok_or_else(|| io::Error::other("it is longer than it should be"))?;
        match &mut self.sink {
            Sink::File(file) => Write::write_all(file, bytes)?,
            Sink::Memory(all) => all.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why nothing is looked for.
const NOT_OFFLINE: &str = "nothing is looked for offline";
/// Time limit for finding what there is: a first pass does as well.
const FIND_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for fetching, besides that for its bytes.
const FETCH_LIMIT: Duration = Duration::from_secs(20);
/// A transfer at this rate, in bytes a second, is within the limit.
const LEAST_RATE: u64 = 64 << 10;
/// Limit for a decoded index: so many bytes, and so many for each byte of the blob. A layer of large files has 0.02 for each, one
/// of small files less than 1.
const INDEX_AT_LEAST: u64 = 64 << 20;
const INDEX_PER_BYTE: u64 = 2;
/// Bytes that a frame of zstd may have above its content.
const FRAME: u64 = 64 << 10;
/// The largest window of a frame: 8 MiB.
const WINDOW_LOG: u32 = 23;
