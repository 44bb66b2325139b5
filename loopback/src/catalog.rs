//! What a registry serves: repositories with tags, documents and blobs, from memory or from OCI layouts.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::image::{Image, REF_NAME};
use peelfs::descriptor::MediaType;
use peelfs::digest::{Algorithm, Digest};

/// Repositories by name. Cloning is cheap enough to serve the same images twice.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    repositories: BTreeMap<String, Repository>,
    /// How many referrers there are on a page; 0 if they are not listed.
    referrers_a_page: usize,
    takes_pushes: bool,
}

#[derive(Clone, Debug, Default)]
struct Repository {
    tags: BTreeMap<String, Digest>,
    documents: HashMap<Digest, (MediaType, Bytes)>,
    blobs: HashMap<Digest, Bytes>,
    layouts: Vec<PathBuf>,
}

impl Catalog {
    /// A catalog without repositories.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an image, as `library/demo` and `1`.
    #[must_use]
    pub fn image(mut self, name: &str, tag: &str, image: &Image) -> Self {
        self.push(name, tag, image);
        self
    }

    /// Adds the tagged images of an OCI layout; its blobs stay where they are.
    ///
    /// # Errors
    /// If `index.json` or a document that it leads to cannot be read or is no JSON.
    pub fn layout(mut self, name: &str, dir: &Path) -> io::Result<Self> {
        let repository = self.repositories.entry(name.to_owned()).or_default();
        repository.layouts.push(dir.to_owned());
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
        let mut pending = Vec::new();
        for entry in index["manifests"].as_array().into_iter().flatten() {
            let digest = digest_of(entry)?;
            if let Some(tag) = entry["annotations"][REF_NAME].as_str() {
                repository.tags.insert(tag.to_owned(), digest);
            }
            pending.push(entry.clone());
        }
        while let Some(entry) = pending.pop() {
            let digest = digest_of(&entry)?;
            let media_type = MediaType::parse(entry["mediaType"].as_str().unwrap_or_default());
            let bytes = std::fs::read(layout_path(dir, &digest))?;
            let document: Value = serde_json::from_slice(&bytes)?;
            if repository.documents.insert(digest, (media_type, bytes.into())).is_none() {
                pending.extend(document["manifests"].as_array().into_iter().flatten().cloned());
            }
        }
        Ok(self)
    }

    /// Adds an image or moves its tag.
    pub(super) fn push(&mut self, name: &str, tag: &str, image: &Image) {
        let repository = self.repositories.entry(name.to_owned()).or_default();
        repository.tags.insert(tag.to_owned(), image.root().digest.clone());
        for (digest, media_type, bytes) in image.documents() {
            repository.documents.insert(digest.clone(), (media_type.clone(), bytes.clone()));
        }
        repository.blobs.extend(image.blobs().map(|(digest, bytes)| (digest.clone(), bytes.clone())));
    }

    /// The same, of which the registry also lists what refers to a manifest; docker-registry does not.
    #[must_use]
    pub fn listing_referrers(self) -> Self {
        self.listing_referrers_by(usize::MAX)
    }

    /// The same, in pages of so many.
    #[must_use]
    pub fn listing_referrers_by(mut self, page: usize) -> Self {
        self.referrers_a_page = page;
        self
    }

    /// The same, to which clients may push.
    #[must_use]
    pub fn taking_pushes(mut self) -> Self {
        self.takes_pushes = true;
        self
    }

    pub(super) fn takes_pushes(&self) -> bool {
        self.takes_pushes
    }

    pub(super) fn lists_referrers(&self) -> bool {
        self.referrers_a_page > 0
    }

    /// Stores a blob.
    pub(super) fn put_blob(&mut self, name: &str, digest: &Digest, bytes: Bytes) {
        self.repositories.entry(name.to_owned()).or_default().blobs.insert(digest.clone(), bytes);
    }

    /// Stores a document under its digest, and under a tag if `reference` is one.
    pub fn put_document(&mut self, name: &str, reference: &str, media_type: MediaType, bytes: Bytes) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let repository = self.repositories.entry(name.to_owned()).or_default();
        repository.documents.insert(digest.clone(), (media_type, bytes));
        if reference.parse::<Digest>().is_err() {
            repository.tags.insert(reference.to_owned(), digest.clone());
        }
        digest
    }

    /// A page of the documents whose subject is this one, as an image index, and whether there are more; `None` where
    /// they are not listed.
    pub(super) fn referrers(&self, name: &str, subject: &str, page: usize) -> Option<(Value, bool)> {
        let none = Repository::default();
        let repository = self.repositories.get(name).unwrap_or(&none);
        if self.referrers_a_page == 0 {
            return None;
        }
        let referring = repository.documents.iter().filter_map(|(digest, (media_type, bytes))| {
            let document: Value = serde_json::from_slice(bytes).ok()?;
            (document["subject"]["digest"] == subject).then(|| {
                let mut entry = json!({
                    "mediaType": media_type.as_str(), "digest": digest.to_string(), "size": bytes.len(),
                });
                for field in ["artifactType", "annotations"] {
                    if let Some(value) = document.get(field) {
                        entry[field] = value.clone();
                    }
                }
                // distribution-spec, "Listing Referrers"
                if entry["artifactType"].is_null() {
                    entry["artifactType"] = document["config"]["mediaType"].clone();
                }
                entry
            })
        });
        let mut rest = referring.skip(page.saturating_mul(self.referrers_a_page));
        let manifests: Vec<_> = rest.by_ref().take(self.referrers_a_page).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": manifests });
        Some((index, rest.next().is_some()))
    }

    /// The names of all repositories.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.repositories.keys().map(String::as_str)
    }

    /// The tags of a repository in order.
    pub fn tags(&self, name: &str) -> Option<Vec<&str>> {
        Some(self.repositories.get(name)?.tags.keys().map(String::as_str).collect())
    }

    /// A document by tag or digest.
    pub(super) fn document(&self, name: &str, reference: &str) -> Option<(Digest, MediaType, Bytes)> {
        let repository = self.repositories.get(name)?;
        let digest = match reference.parse() {
            Ok(digest) => digest,
            Err(_) => repository.tags.get(reference)?.clone(),
        };
        let (media_type, bytes) = repository.documents.get(&digest)?.clone();
        Some((digest, media_type, bytes))
    }

    /// A blob by digest, opened.
    pub(super) fn blob(&self, name: &str, digest: &Digest) -> Option<Content> {
        let repository = self.repositories.get(name)?;
        if let Some(bytes) = repository.blobs.get(digest) {
            return Some(Content::Memory(bytes.clone()));
        }
        repository.layouts.iter().find_map(|dir| Content::open(&layout_path(dir, digest)).ok())
    }
}

/// Bytes in memory or in a file.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Memory(Bytes),
    File { file: Arc<File>, size: u64 },
}

impl Content {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Self::File { file: Arc::new(file), size })
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// Up to `len` bytes from `at`, at least one; positions past the end start again at the beginning.
    pub(super) fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let at = at.checked_rem(self.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let len = u64::min(len as u64, self.len() - at) as usize;
        match self {
            Self::Memory(bytes) => Ok(bytes[at as usize..][..len].to_vec()),
            Self::File { file, .. } => {
                let mut piece = vec![0; len];
                file.read_exact_at(&mut piece, at)?;
                Ok(piece)
            }
        }
    }
}

fn layout_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

fn digest_of(descriptor: &Value) -> io::Result<Digest> {
    let text = descriptor["digest"].as_str().unwrap_or_default();
    text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::image::{ImageBuilder, IndexBuilder, LayerBuilder};

    #[test]
    fn a_layout_serves_what_the_image_in_memory_serves() {
        let image = ImageBuilder::new().layer(LayerBuilder::new().file("f", "content")).build();
        let index = IndexBuilder::new().image(&image).build();
        let dir = tempfile::tempdir().unwrap();
        index.write_layout(dir.path(), "1").unwrap();
        let memory = Catalog::new().image("a/b", "1", &index);
        let layout = Catalog::new().layout("a/b", dir.path()).unwrap();
        assert_eq!(layout.tags("a/b"), Some(vec!["1"]));
        for reference in ["1", &image.root().digest.to_string()] {
            assert!(memory.document("a/b", reference).is_some());
            assert_eq!(memory.document("a/b", reference), layout.document("a/b", reference));
        }
        for (digest, bytes) in index.blobs() {
            assert_eq!(layout.blob("a/b", digest).unwrap().read(0, 1 << 20).unwrap(), *bytes);
        }
        assert!(layout.blob("a/c", &image.layers()[0].digest).is_none());
    }

    #[test]
    fn reading_past_the_end_starts_again() {
        let content = Content::Memory(Bytes::from_static(b"abc"));
        assert_eq!(content.read(4, 9).unwrap(), b"bc");
        assert!(Content::Memory(Bytes::new()).read(0, 1).is_err());
    }
}
