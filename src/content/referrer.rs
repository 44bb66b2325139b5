//! The manifest of an artifact that refers to an image.

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::source::registry::RegistrySource;
use crate::source::{BlobSource, MANIFEST_LIMIT};

/// Fetches and verifies the manifest of `candidate`, an entry of a list of referrers; the error says why it is not used.
pub(super) async fn manifest_of(registry: &RegistrySource, candidate: &Descriptor) -> Result<Bytes, String> {
    if candidate.size > MANIFEST_LIMIT {
        return Err(format!("{} has {} bytes; at most {MANIFEST_LIMIT} are read", candidate.digest, candidate.size));
    }
    let bytes = registry.manifest(candidate).await.map_err(|error| error.to_string())?;
    bytes.verify(&candidate.digest, candidate.size).map_err(|error| error.to_string())
}
