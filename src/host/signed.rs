//! Signatures of an image, found where cosign stores them, and verified with keys.
//!
//! They are stored beside the image: in the manifest with the tag `sha256-HEX.sig`, and since cosign 3 in manifests
//! whose subject is the image, listed by the registry as referrers or in the image index with the tag `sha256-HEX`.
//! Anyone with write access to the repository can put them there; only the key decides what a signature is worth.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::error::HostError;
use super::open::{self, Sources};
use super::spec::ImageSpec;
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::documents::Entry;
use crate::image::Network;
use crate::reference::{Place, Reference, RegistryName};
use crate::signature::{self, PublicKey, SIGNATURE, SIMPLE_SIGNING, SignatureError, Statement};
use crate::source::registry::{Referrers, referrers_tag};
use crate::source::{BlobSource, SourceError};
use crate::store::{Store, TagRecord};
use crate::trust::Untrusted;

/// The requirement for a signature.
#[derive(Clone, Debug)]
pub struct Demand {
    /// One of these keys made it.
    pub keys: Vec<PublicKey>,
    /// It was made for the repository under whose name the image is used.
    pub same_repository: bool,
}

/// Why an image counts as not signed.
#[derive(Debug, thiserror::Error)]
pub enum NotSigned {
    /// No signature was found.
    #[error("no signature of {digest} was found beside {name}")]
    None {
        /// The image.
        name: String,
        /// Its digest.
        digest: Digest,
    },
    /// No signature meets the requirement.
    #[error("none of {count} signatures of {digest} beside {name} counts: {first}")]
    NoneCounts {
        /// The image.
        name: String,
        /// Its digest.
        digest: Digest,
        /// How many were checked.
        count: usize,
        /// The problem of the first.
        first: Wrong,
    },
    /// They cannot be read.
    #[error(transparent)]
    Host(#[from] Box<HostError>),
}

/// Why a signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// Not made by one of the keys.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It belongs to another image.
    #[error("it is about {}", digests.first().map_or_else(|| "nothing".to_owned(), Digest::to_string))]
    OtherImage {
        /// The digests it is about.
        digests: Vec<Digest>,
    },
    /// It was made for another repository.
    #[error("it was made for `{}`", reference.escape_debug())]
    OtherRepository {
        /// As written in the signature.
        reference: String,
    },
    /// It names no repository.
    #[error("it names no repository")]
    NoRepository,
    /// It cannot be read.
    #[error("{why}")]
    Unreadable {
        /// Why.
        why: String,
    },
}

impl From<SourceError> for NotSigned {
    fn from(error: SourceError) -> Self {
        Self::Host(Box::new(error.into()))
    }
}

/// The first signature of `digest`, stored beside the image, that meets the demand.
///
/// # Errors
/// [`NotSigned`]
pub async fn verify(image: &ImageSpec, digest: &Digest, demand: &Demand) -> Result<Statement, NotSigned> {
    let store =
        Arc::new(Store::open_best_effort(&image.cache.dir, image.cache.limit).map_err(|error| Box::new(error.into()))?);
    let mut search = Search { image, digest, demand, store, count: 0, first: None };
    if let Some(statement) = search.by_tag().await? {
        return Ok(statement);
    }
    if let Some(statement) = search.by_subject().await? {
        return Ok(statement);
    }
    let (name, digest) = (image.reference.canonical(), digest.clone());
    Err(match search.first {
        None => NotSigned::None { name, digest },
        Some(first) => NotSigned::NoneCounts { name, digest, count: search.count, first },
    })
}

struct Search<'a> {
    image: &'a ImageSpec,
    digest: &'a Digest,
    demand: &'a Demand,
    store: Arc<Store>,
    count: usize,
    first: Option<Wrong>,
}

/// A manifest whose layers are signatures.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default, deserialize_with = "readable")]
    layers: Vec<Entry>,
}

/// What an image index lists.
#[derive(Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "readable")]
    manifests: Vec<Entry>,
}

/// The readable items of a list; the others are skipped.
fn readable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect())
}

type Found = Result<Option<Statement>, NotSigned>;

impl Search<'_> {
    /// In the manifest with the tag `ALGORITHM-HEX.sig`.
    async fn by_tag(&mut self) -> Found {
        let Some((reference, (source, _))) = self.beside(&signature::tag(self.digest)).await? else { return Ok(None) };
        let asked = source.root().await.map(Document::from);
        let Some(bytes) = self.remembered(&reference, asked)? else { return Ok(None) };
        self.manifest(&*source, &bytes).await
    }

    /// In manifests whose subject is the image.
    async fn by_subject(&mut self) -> Found {
        let Some((reference, (source, registry))) = self.beside(&referrers_tag(self.digest)).await? else {
            return Ok(None);
        };
        let asked = match registry {
            Some(registry) => match registry.referrers(self.digest, None).await {
                Ok(Referrers::Listed(pages)) => match one_list(pages) {
                    Ok(list) => Ok(Document(None, list)),
                    Err(error) => return Ok(self.wrong(unreadable(error))),
                },
                Ok(Referrers::Tagged(list)) => list.map(Document::from).ok_or_else(|| absent(&reference)),
                Err(error) => Err(error),
            },
            None => source.root().await.map(Document::from),
        };
        let Some(listed) = self.remembered(&reference, asked)? else { return Ok(None) };
        // Neither the list nor its items prove anything before a signature is verified.
        let index: Index = match serde_json::from_slice(&listed) {
            Ok(index) => index,
            Err(error) => return Ok(self.wrong(unreadable(error))),
        };
        let may_be = |entry: &&Entry| entry.artifact_type.as_deref().is_none_or(is_signature);
        for entry in index.manifests.iter().filter(may_be).take(MANIFESTS_LIMIT) {
            let found = match self.fetched(&*source, entry, Kind::Manifest).await? {
                Ok(bytes) => self.manifest(&*source, &bytes).await?,
                Err(wrong) => self.wrong(wrong),
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// What the registry has under a tag that belongs to the image (cosign, distribution specification).
    async fn beside(&self, tag: &str) -> Result<Option<(Reference, Sources)>, NotSigned> {
        let Some(reference) = beside(&self.image.reference, tag) else { return Ok(None) };
        match open::source(&reference, &self.image.access, &self.store).await {
            Ok(sources) => Ok(Some((reference, sources))),
            Err(HostError::Source(SourceError::NotFound { .. })) => Ok(None),
            Err(error) => Err(Box::new(error).into()),
        }
    }

    /// The document under this reference; if the registry cannot be reached, the last one cached: a signature does not
    /// expire.
    fn remembered(
        &self,
        reference: &Reference,
        asked: Result<Document, SourceError>,
    ) -> Result<Option<Bytes>, NotSigned> {
        let canonical = reference.canonical();
        let may_ask = self.image.access.network == Network::Allowed;
        match asked {
            Ok(Document(media_type, bytes)) => {
                let (media_type, digest) =
                    (media_type.unwrap_or(MediaType::OciIndex), Digest::of(Algorithm::Sha256, &bytes));
                let record = TagRecord::new(canonical, &Descriptor::new(media_type, digest, bytes.len() as u64));
                self.keep(&record.digest, &bytes);
                if let Err(error) = self.store.keep_tag(&record) {
                    self.store.cannot_keep("where signatures are", &error);
                }
                Ok(Some(bytes))
            }
            Err(SourceError::NotFound { .. }) if may_ask => Ok(None),
            Err(error @ (SourceError::NotFound { .. } | SourceError::Unreachable { .. })) => {
                let record = self.store.tag(&canonical);
                let kept = record.and_then(|record| self.store.document(&record.digest, record.size));
                match (kept, error) {
                    (None, error @ SourceError::Unreachable { .. }) => Err(error.into()),
                    (kept, _) => Ok(kept),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn keep(&self, digest: &Digest, bytes: &Bytes) {
        if let Err(error) = self.store.keep_document(digest, bytes) {
            self.store.cannot_keep("a signature", &error);
        }
    }

    /// What a descriptor names, verified; from the cache if possible.
    async fn fetched(
        &self,
        source: &dyn BlobSource,
        of: &Entry,
        kind: Kind,
    ) -> Result<Result<Bytes, Wrong>, NotSigned> {
        let descriptor = of.descriptor();
        if descriptor.size > CONTENT_LIMIT {
            let why = format!("it has {} bytes; at most {CONTENT_LIMIT} are read", descriptor.size);
            return Ok(Err(unreadable(why)));
        }
        if let Some(bytes) = self.store.document(&descriptor.digest, descriptor.size) {
            return Ok(Ok(bytes));
        }
        let fetched = match kind {
            Kind::Manifest => source.manifest(&descriptor).await,
            // Fetched whole like a configuration, whether or not the registry serves ranges.
            Kind::Signature => source.config(&descriptor).await,
        };
        match fetched {
            Ok(bytes) => Ok(match bytes.verify(&descriptor.digest, descriptor.size) {
                Ok(bytes) => {
                    self.keep(&descriptor.digest, &bytes);
                    Ok(bytes)
                }
                Err(error) => Err(unreadable(error)),
            }),
            Err(error @ (SourceError::Unreachable { .. } | SourceError::Denied { .. })) => Err(error.into()),
            Err(error) => Ok(Err(unreadable(error))),
        }
    }

    /// The layers of a manifest, one signature each.
    async fn manifest(&mut self, source: &dyn BlobSource, bytes: &Bytes) -> Found {
        let manifest: Manifest = match serde_json::from_slice(bytes) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(self.wrong(unreadable(error))),
        };
        for layer in manifest.layers.iter().filter(|layer| is_signature(&layer.media_type)).take(MANIFESTS_LIMIT) {
            let judged = match self.fetched(source, layer, Kind::Signature).await? {
                Ok(content) => self.judge(layer, &content),
                Err(wrong) => Err(wrong),
            };
            match judged {
                Ok(statement) => return Ok(Some(statement)),
                Err(wrong) => self.wrong(wrong),
            };
        }
        Ok(None)
    }

    fn judge(&self, layer: &Entry, content: &[u8]) -> Result<Statement, Wrong> {
        let keys = &self.demand.keys;
        let statement = if layer.media_type == SIMPLE_SIGNING {
            let none = || SignatureError::Malformed { why: format!("it has no annotation `{SIGNATURE}`") };
            let signature = layer.annotations.get(SIGNATURE).ok_or_else(none)?;
            signature::simple_signing(content, signature, keys)?
        } else {
            signature::bundle(content, keys)?
        };
        if !statement.is_about(self.digest) {
            return Err(Wrong::OtherImage { digests: statement.digests });
        }
        if self.demand.same_repository {
            let Some(reference) = &statement.reference else { return Err(Wrong::NoRepository) };
            if !is_same_repository(reference, &self.image.reference) {
                return Err(Wrong::OtherRepository { reference: reference.clone() });
            }
        }
        Ok(statement)
    }

    fn wrong(&mut self, wrong: Wrong) -> Option<Statement> {
        self.count += 1;
        // A wrong key says least: keys are rotated, and others sign as well.
        let says_least = matches!(self.first, Some(Wrong::Signature(SignatureError::OtherKey)));
        if self.first.is_none() || says_least {
            self.first = Some(wrong);
        }
        None
    }
}

/// What is fetched.
#[derive(Clone, Copy)]
enum Kind {
    Manifest,
    Signature,
}

/// A document, and its media type if known.
struct Document(Option<MediaType>, Bytes);

impl From<(Descriptor, Untrusted<Bytes>)> for Document {
    fn from((descriptor, bytes): (Descriptor, Untrusted<Bytes>)) -> Self {
        Self(Some(descriptor.media_type), bytes.into_unverified())
    }
}

impl From<Untrusted<Bytes>> for Document {
    fn from(bytes: Untrusted<Bytes>) -> Self {
        Self(None, bytes.into_unverified())
    }
}

/// The image index of all pages.
fn one_list(pages: Vec<Untrusted<Bytes>>) -> Result<Bytes, serde_json::Error> {
    let mut list = serde_json::json!({ "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str() });
    let mut manifests = Vec::new();
    for page in pages {
        let mut page: serde_json::Value = serde_json::from_slice(&page.into_unverified())?;
        if let Some(serde_json::Value::Array(more)) = page.get_mut("manifests").map(serde_json::Value::take) {
            manifests.extend(more);
        }
    }
    list["manifests"] = manifests.into();
    Ok(list.to_string().into())
}

fn absent(reference: &Reference) -> SourceError {
    let (what, place) = ("a list of referrers".to_owned(), reference.canonical());
    SourceError::NotFound { what, place, said: None, hint: None }
}

fn unreadable(why: impl ToString) -> Wrong {
    Wrong::Unreadable { why: why.to_string() }
}

/// Whether artifacts, manifests or layers of this type are supported signatures.
fn is_signature(kind: &str) -> bool {
    kind == SIMPLE_SIGNING || kind == ARTIFACT || kind.starts_with(BUNDLE)
}

/// The reference with another tag; `None` if nothing can be stored beside the image.
fn beside(reference: &Reference, tag: &str) -> Option<Reference> {
    let typed = match reference.place() {
        Place::Registry(name) => format!("docker://{}/{}:{tag}", name.authority(), name.repository()),
        Place::Layout(local) => {
            let path = local.reading(|path| path.symlink_metadata().is_ok()).path;
            format!("oci:{}:{tag}", path.display())
        }
        Place::OciArchive(local) => {
            let path = local.reading(|path| path.symlink_metadata().is_ok()).path;
            format!("oci-archive:{}:{tag}", path.display())
        }
        Place::DockerArchive(_) | Place::Directory(_) | Place::ContainersStorage(_) | Place::DockerDaemon(_) => {
            return None;
        }
    };
    typed.parse().ok()
}

fn is_same_repository(signed: &str, used: &Reference) -> bool {
    let Place::Registry(used) = used.place() else { return false };
    let same =
        |signed: RegistryName| signed.authority() == used.authority() && signed.repository() == used.repository();
    signed.parse().is_ok_and(same)
}

/// The artifact type of a manifest with such payloads that has a subject.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// The media type of a bundle, before its version.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// Payloads have some 250 bytes; bundles with certificates and log proofs some 10 KiB.
const CONTENT_LIMIT: u64 = 1 << 20;
/// Limit of manifests, and of signatures in each.
const MANIFESTS_LIMIT: usize = 64;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_the_same_by_whatever_name() {
        let same = |signed: &str, used: &str| is_same_repository(signed, &used.parse().unwrap());
        assert!(same("index.docker.io/library/python", "python:3.12"));
        assert!(same("registry.example/a/b:v1", "registry.example/a/b:v2"));
        assert!(!same("registry.example/a/b", "registry.example/a/c"));
        assert!(!same("registry.example/a", "registry.example/a/b"));
        assert!(!same("registry.example:5000/a", "registry.example/a"));
        assert!(!same("a/b\u{1b}", "docker.io/a/b"));
        assert!(!same("registry.example/a", "oci:registry.example/a"));
    }

    #[test]
    fn signatures_lie_beside_the_image() {
        let beside =
            |reference: &str| beside(&reference.parse().unwrap(), "sha256-1.sig").map(|found| found.canonical());
        assert_eq!(beside("python:3.12").unwrap(), "docker.io/library/python:sha256-1.sig");
        assert_eq!(beside("[::1]:5000/a/b").unwrap(), "[::1]:5000/a/b:sha256-1.sig");
        assert_eq!(beside("oci:/nonexistent/lay:v1").unwrap(), "oci:/nonexistent/lay:sha256-1.sig");
        assert_eq!(beside("docker-archive:/nonexistent"), None);
    }
}
