//! Storing blobs and manifests (distribution-spec, "Push").
//!
//! A blob that the registry has is not sent again. What is sent is checked by the registry, which knows its digest.
//! An artifact that refers to another manifest is put on the list of its referrers by the registry, or, where that does
//! not keep such lists, by this client (see `referrers`).

use bytes::Bytes;
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};

use super::client::{Ask, Thing, Wanted};
use super::http::{Content, Reply};
use super::patience::Tries;
use super::{RegistrySource, manifest_name, origin, referrers};
use crate::descriptor::MediaType;
use crate::digest::{Algorithm, Digest};
use crate::source::{MANIFEST_LIMIT, SourceError};

/// Uploads of one blob that are begun, as one that broke cannot always be continued.
const UPLOADS: usize = 3;
/// How often the list under a tag is written, as another client may write it at the same time.
const LISTINGS: usize = 4;
/// A transfer at this rate, in bytes a second, is within the time limit of an upload.
const LEAST_RATE: u64 = 64 << 10;

/// Why something cannot be stored in a registry.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry cannot be reached, denies access, or answers what it must not.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It does not take it.
    #[error("{place} does not accept {what}: {said}")]
    Refused {
        /// Registry and repository.
        place: String,
        /// What was sent.
        what: String,
        /// Its answer.
        said: String,
    },
    /// The list of referrers under the tag cannot be extended.
    #[error("the list of referrers at {place} cannot be extended: {why}")]
    List {
        /// Registry, repository and tag.
        place: String,
        /// Why.
        why: String,
    },
}

/// What became of a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stored {
    /// It was sent.
    New,
    /// The registry had it.
    Known,
}

impl RegistrySource {
    /// Stores a blob, unless the repository has it.
    ///
    /// # Errors
    /// [`PushError`]
    pub async fn push_blob(&self, digest: &Digest, content: &Content) -> Result<Stored, PushError> {
        let what = crate::source::blob_name(digest);
        let bytes = 0..content.size();
        let blob = Thing::Blob(Wanted { digest, size: content.size(), bytes: &bytes, whole: true });
        if self.has(blob, &what).await? {
            return Ok(Stored::Known);
        }
        for last in (0..UPLOADS).map(|upload| upload + 1 == UPLOADS) {
            let url = self.new_upload(digest, &what).await?;
            let mut reply = self.sent(Method::PUT, Thing::Upload { url: &url, content }, &what, content.size()).await?;
            match reply.status() {
                status if status.is_success() => return Ok(Stored::New),
                // What a broken connection left behind.
                StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::CONFLICT if !last => {}
                _ => return Err(self.refused(&mut reply, &what).await),
            }
        }
        unreachable!("the last upload is stored or refused")
    }

    /// Stores a manifest, whose entry for a list is `entry`, and makes sure that it is listed as a referrer of `subject`.
    ///
    /// # Errors
    /// [`PushError`]
    pub async fn push_referrer(&self, subject: &Digest, bytes: &Bytes, entry: &Value) -> Result<Digest, PushError> {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let media_type = MediaType::OciManifest;
        let reply = self.push_manifest(&digest.to_string(), media_type.as_str(), bytes).await?;
        // The registry says that it has understood the subject ("Pushing Manifests with Subject").
        if reply.header("oci-subject").is_none() {
            self.list(subject, &digest, entry).await?;
        }
        Ok(digest)
    }

    /// Stores a manifest under a tag, in place of what is there.
    ///
    /// # Errors
    /// [`PushError`]
    pub async fn push_tagged(&self, tag: &str, media_type: &str, bytes: &Bytes) -> Result<(), PushError> {
        self.push_manifest(tag, media_type, bytes).await.map(drop)
    }

    async fn push_manifest(&self, reference: &str, media_type: &str, bytes: &Bytes) -> Result<Reply, PushError> {
        let what = manifest_name(reference);
        let thing = Thing::NewManifest { reference, media_type, bytes };
        let mut reply = self.sent(Method::PUT, thing, &what, bytes.len() as u64).await?;
        match reply.status().is_success() {
            true => Ok(reply),
            false => Err(self.refused(&mut reply, &what).await),
        }
    }

    /// Puts `entry`, which is of `digest`, on the list under the tag of `subject`.
    async fn list(&self, subject: &Digest, digest: &Digest, entry: &Value) -> Result<(), PushError> {
        let tag = referrers::tag(subject);
        let unusable = |why: String| PushError::List { place: format!("{}:{tag}", self.client.place()), why };
        for _ in 0..LISTINGS {
            let listed = self.tagged(&tag).await?;
            let mut index = match listed {
                Some(bytes) => serde_json::from_slice(&bytes.into_unverified())
                    .map_err(|error| unusable(format!("it is not an image index: {error}")))?,
                None => json!({ "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": [] }),
            };
            let Some(Value::Array(manifests)) = index.get_mut("manifests") else {
                return Err(unusable("it is not an image index".to_owned()));
            };
            if manifests.iter().any(|listed| listed["digest"] == digest.to_string()) {
                return Ok(());
            }
            manifests.push(entry.clone());
            let bytes = Bytes::from(index.to_string());
            if bytes.len() as u64 > MANIFEST_LIMIT {
                return Err(unusable("it is full; remove old artifacts from it".to_owned()));
            }
            self.push_manifest(&tag, MediaType::OciIndex.as_str(), &bytes).await?;
        }
        Err(unusable("other clients keep writing it".to_owned()))
    }

    /// Where the registry takes a blob.
    async fn new_upload(&self, digest: &Digest, what: &str) -> Result<Url, PushError> {
        let mut reply = self.sent(Method::POST, Thing::NewUpload, what, 0).await?;
        if reply.status() != StatusCode::ACCEPTED {
            return Err(self.refused(&mut reply, what).await);
        }
        let location = reply.headers().get(LOCATION).and_then(|location| location.to_str().ok()).unwrap_or_default();
        let verify = self.client.transport.verify;
        let place = origin::follow(&reply.url, location, verify);
        let mut url = place.map_err(|why| {
            let why = format!("it names no place for an upload that may be used: {why}");
            self.client.protocol(what, why)
        })?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        Ok(url)
    }

    async fn sent(&self, method: Method, thing: Thing<'_>, what: &str, size: u64) -> Result<Reply, SourceError> {
        let _permit = self.client.long.acquire().await.expect("the queues are never closed");
        let ask = Ask { method, thing, what, overcomes: u32::MAX };
        let mut deadlines = self.client.deadlines.clone();
        deadlines.patience = deadlines.patience.saturating_add(std::time::Duration::from_secs(size / LEAST_RATE));
        self.client.ask(&ask, &mut Tries::new(self.client.clock.clone(), &deadlines)).await
    }

    async fn refused(&self, reply: &mut Reply, what: &str) -> PushError {
        match reply.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.client.refusal(reply, what).await.into(),
            _ => {
                let said = reply.said().await;
                PushError::Refused { place: self.client.place(), what: what.to_owned(), said }
            }
        }
    }
}
