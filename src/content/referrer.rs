//! Artifacts that refer to an image: which there are, and their manifests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;
use crate::documents::referrers;
use crate::source::registry::{Referrers, RegistrySource};
use crate::source::{BlobSource, MANIFEST_LIMIT, SourceError};
use crate::store::Store;
use crate::sync::lock;
use crate::trust::Untrusted;

/// The manifests of artifacts of type `kind` that the registry lists as referrers of `image`, as [`referrers`] has them.
///
/// # Errors
/// [`SourceError`] if there is no list to be had.
pub async fn candidates(registry: &RegistrySource, image: &Digest, kind: &str) -> Result<Vec<Descriptor>, SourceError> {
    Ok(of_pages(registry.referrers(image, Some(kind)).await?, kind))
}

fn of_pages(found: Referrers, kind: &str) -> Vec<Descriptor> {
    let pages: Vec<_> = found.into_pages().into_iter().map(Untrusted::into_unverified).collect();
    referrers(pages.iter().map(|page| &**page), kind)
}

/// What refers to one image, asked for once: where there is no endpoint that lists it, one document has artifacts of all types. Also
/// what is said once of all layers of the image: that there is no list, or that nothing in it has indexes.
pub(super) struct Referring {
    registry: Arc<RegistrySource>,
    /// Registry and repository.
    place: Box<str>,
    /// The image's manifest.
    image: Digest,
    /// By type.
    listed: Mutex<HashMap<&'static str, Listed>>,
    /// The document under the tag, or that there is none.
    tagged: OnceLock<Option<Bytes>>,
    /// Why there is no list.
    failed: OnceLock<Arc<str>>,
    said: OnceLock<String>,
}

type Listed = Arc<OnceCell<Result<Vec<Descriptor>, Arc<str>>>>;

impl Referring {
    /// What refers to `image` in `place`, the repository of `registry`.
    pub(super) fn new(registry: Arc<RegistrySource>, place: &str, image: &Digest) -> Arc<Self> {
        let (image, place) = (image.clone(), place.into());
        let (listed, tagged) = (Mutex::default(), OnceLock::new());
        Arc::new(Self { registry, place, image, listed, tagged, failed: OnceLock::new(), said: OnceLock::new() })
    }

    /// As [`candidates`].
    ///
    /// # Errors
    /// Why there is no list; it is not asked for again, of whichever type.
    pub(super) async fn of_type(&self, kind: &'static str) -> Result<Vec<Descriptor>, Arc<str>> {
        let listed = Arc::clone(lock(&self.listed).entry(kind).or_default());
        let ask = || async {
            match self.failed.get() {
                Some(why) => Err(Arc::clone(why)),
                None => self.ask(kind).await.map_err(|error| self.fail(&error)),
            }
        };
        listed.get_or_init(ask).await.clone()
    }

    /// Notes why there is no list.
    pub(super) fn fail(&self, error: &dyn std::error::Error) -> Arc<str> {
        Arc::clone(self.failed.get_or_init(|| error.to_string().into()))
    }

    /// Logs that there is no list.
    pub(super) fn tell_failure(&self) {
        if let Some(why) = self.failed.get() {
            let said = || format!("{} cannot be asked for indexes of this image: {why}", self.place);
            self.say(said, |said| tracing::warn!("{said}; its layers are opened otherwise"));
        }
    }

    /// Logs that there is no index.
    pub(super) fn tell_absence(&self) {
        let said = || format!("{} has no index of this image", self.place);
        self.say(said, |said| tracing::info!(target: NOTE, "{said}; layers that are not cached are read whole"));
    }

    /// What was logged.
    pub(super) fn said(&self) -> Option<&str> {
        self.said.get().map(String::as_str)
    }

    fn say(&self, said: impl FnOnce() -> String, log: impl FnOnce(&str)) {
        let mut is_first = false;
        let said = self.said.get_or_init(|| {
            is_first = true;
            said()
        });
        if is_first {
            log(said);
        }
    }

    async fn ask(&self, kind: &str) -> Result<Vec<Descriptor>, SourceError> {
        let tagged = match self.tagged.get() {
            Some(tagged) => tagged,
            None => match self.registry.referrers(&self.image, Some(kind)).await? {
                listed @ Referrers::Listed(_) => return Ok(of_pages(listed, kind)),
                Referrers::Tagged(page) => self.tagged.get_or_init(|| page.map(Untrusted::into_unverified)),
            },
        };
        Ok(referrers(tagged.iter().map(|page| &**page), kind))
    }
}

/// Fetches and verifies the manifest of `candidate`, an entry of a list of referrers, and caches it in `store`, so that it can be
/// asked about without the registry; the error says why it is not used.
pub(super) async fn manifest_of(
    registry: &RegistrySource,
    candidate: &Descriptor,
    store: Option<&Store>,
) -> Result<Bytes, String> {
    if candidate.size > MANIFEST_LIMIT {
        return Err(format!("{} has {} bytes; at most {MANIFEST_LIMIT} are read", candidate.digest, candidate.size));
    }
    let bytes = registry.manifest(candidate).await.map_err(|error| error.to_string())?;
    let bytes = bytes.verify(&candidate.digest, candidate.size).map_err(|error| error.to_string())?;
    if let Some(store) = store {
        keep(store, &candidate.digest, &bytes);
    }
    Ok(bytes)
}

/// Caches the manifest of an artifact.
pub(super) fn keep(store: &Store, artifact: &Digest, manifest: &Bytes) {
    if let Err(error) = store.keep_document(artifact, manifest) {
        store.cannot_keep("the manifest of an artifact", &error);
    }
}

/// The descriptor of a verified manifest, by what it says itself: that in a list is the word of those who write the list.
pub(super) fn described(digest: &Digest, manifest: &[u8]) -> Descriptor {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        media_type: String,
    }
    let read = serde_json::from_slice::<Manifest>(manifest);
    let media_type = read.map_or(MediaType::OciManifest, |manifest| MediaType::parse(&manifest.media_type));
    Descriptor::new(media_type, digest.clone(), manifest.len() as u64)
}

/// The target of events that are notes for the user.
const NOTE: &str = "peelfs::note";
