//! Artifacts that refer to an image: which there are, and their manifests.

use bytes::Bytes;

use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;
use crate::documents::referrers;
use crate::source::registry::RegistrySource;
use crate::source::{BlobSource, MANIFEST_LIMIT, SourceError};
use crate::store::Store;
use crate::trust::Untrusted;

/// The manifests of artifacts of type `kind` that the registry lists as referrers of `image`, as [`referrers`] has them.
///
/// # Errors
/// [`SourceError`] if there is no list to be had.
pub async fn candidates(registry: &RegistrySource, image: &Digest, kind: &str) -> Result<Vec<Descriptor>, SourceError> {
    let pages = registry.referrers(image, Some(kind)).await?.into_pages();
    let pages: Vec<_> = pages.into_iter().map(Untrusted::into_unverified).collect();
    Ok(referrers(pages.iter().map(|page| &**page), kind))
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
