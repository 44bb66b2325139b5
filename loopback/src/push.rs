//! Pushing (distribution-spec, "Push"): blobs in one piece, manifests by tag and digest.

use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use serde_json::Value;

use super::answer::Answer;
use super::catalog::Catalog;
use super::http::Request;
use super::registry::Route;
use peelfs::descriptor::MediaType;
use peelfs::digest::Digest;

/// Answers a POST or PUT.
pub(super) fn answer(request: &Request, route: Route<'_>, catalog: &RwLock<Catalog>) -> Answer {
    let mut catalog = catalog.write().unwrap_or_else(PoisonError::into_inner);
    if !catalog.takes_pushes() {
        return Answer::error(405, "UNSUPPORTED", "this registry is for reading");
    }
    match (request.method.as_str(), route) {
        ("POST", Route::Blob { name, digest: "uploads/" }) => {
            Answer::new(202, "text/plain", "").header("Location", &format!("/v2/{name}/blobs/uploads/1?_state=x"))
        }
        ("PUT", Route::Blob { name, digest }) if digest.starts_with("uploads/") => {
            let claimed = request.parameter("digest").and_then(|text| text.parse::<Digest>().ok());
            let bytes = Bytes::copy_from_slice(&request.body);
            match claimed.filter(|claimed| Digest::of(claimed.algorithm(), &bytes) == *claimed) {
                Some(digest) => {
                    catalog.put_blob(name, &digest, bytes);
                    Answer::new(201, "text/plain", "").header("Docker-Content-Digest", &digest.to_string())
                }
                None => Answer::error(400, "DIGEST_INVALID", "the blob is not what its digest says"),
            }
        }
        ("PUT", Route::Manifest { name, reference }) => {
            let Ok(document) = serde_json::from_slice::<Value>(&request.body) else {
                return Answer::error(400, "MANIFEST_INVALID", "the manifest is not JSON");
            };
            let blobs = [&document["config"]].into_iter().chain(document["layers"].as_array().into_iter().flatten());
            let blobs = blobs.filter_map(|blob| blob["digest"].as_str()?.parse::<Digest>().ok());
            if let Some(missing) = blobs.into_iter().find(|digest| catalog.blob(name, digest).is_none()) {
                return Answer::error(400, "MANIFEST_BLOB_UNKNOWN", &missing.to_string());
            }
            let media_type = MediaType::parse(request.header("content-type").unwrap_or_default());
            let bytes = Bytes::copy_from_slice(&request.body);
            let digest = catalog.put_document(name, reference, media_type, bytes);
            let answer = Answer::new(201, "text/plain", "").header("Docker-Content-Digest", &digest.to_string());
            match document["subject"]["digest"].as_str().filter(|_| catalog.lists_referrers()) {
                Some(subject) => answer.header("OCI-Subject", subject),
                None => answer,
            }
        }
        _ => Answer::error(405, "UNSUPPORTED", "there is nothing to be written at this path"),
    }
}
