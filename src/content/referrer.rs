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

/// What refers to one image, asked for once: where there is no endpoint that lists it, one document has artifacts of all types.
pub(super) struct Referring {
    registry: Arc<RegistrySource>,
    /// The image's manifest.
    image: Digest,
    /// By type.
    listed: Mutex<HashMap<&'static str, Listed>>,
    /// The document under the tag, or that there is none.
    tagged: OnceLock<Option<Bytes>>,
}

type Listed = Arc<OnceCell<Result<Vec<Descriptor>, Arc<SourceError>>>>;

impl Referring {
    pub(super) fn new(registry: Arc<RegistrySource>, image: &Digest) -> Arc<Self> {
        Arc::new(Self { registry, image: image.clone(), listed: Mutex::default(), tagged: OnceLock::new() })
    }

    /// As [`candidates`].
    ///
    /// # Errors
    /// [`SourceError`]
    pub(super) async fn of_type(&self, kind: &'static str) -> Result<Vec<Descriptor>, Arc<SourceError>> {
        let listed = Arc::clone(lock(&self.listed).entry(kind).or_default());
        listed.get_or_init(|| async { self.ask(kind).await.map_err(Arc::new) }).await.clone()
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
