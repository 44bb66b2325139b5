//! The artifact in which indexes of an image's layers are pushed to a registry.
//!
//! An image manifest whose `subject` is the image (image-spec, manifest.md, "Guidelines for Artifact Usage"): a layer of
//! it for each index, and one for start-up profiles. Anyone with write access to a repository can put one there, so
//! nothing in it is more than a claim: blobs are what their digests say, and what they hold is checked by others.
//! `docs/formats.md` has the fields.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::LAYERS_LIMIT;
use super::entry::Entry;
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};

/// `artifactType`.
pub const INDEX_ARTIFACT: &str = "application/vnd.peelfs.index.v1";
/// Media type of the index of a layer with its windows.
const LAYER_INDEX: &str = "application/vnd.peelfs.layer-index.v2+zstd";
/// Media type of one without its windows.
const INDEX_HEAD: &str = "application/vnd.peelfs.layer-index-head.v1+zstd";
/// Media type of the windows of an index.
const WINDOWS: &str = "application/vnd.peelfs.windows.v1";
/// Media type of profiles.
const PROFILES: &str = "application/vnd.peelfs.profiles.v2+zstd";
/// The empty configuration (image-spec, manifest.md, "Guidance for an Empty Descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Annotation of an index, or of its windows: the blob of its layer.
const LAYER: &str = "example.peelfs.layer";
/// Annotation of an index: the version of its format.
const VERSION: &str = "example.peelfs.index.version";
/// Annotation of a compressed blob: its decoded size in bytes.
const SIZE: &str = "example.peelfs.size";
const CREATED: &str = "org.opencontainers.image.created";
/// Artifacts of one image that are looked at.
const CANDIDATES: usize = 8;
/// An index and its windows for each layer of an image, and profiles.
const MOST_LAYERS: usize = 2 * LAYERS_LIMIT + 1;
/// Entries of a list that are looked at.
const ENTRIES: usize = 10_000;

/// An artifact with indexes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexArtifact {
    /// The indexes, each of another layer.
    pub layers: Vec<PushedIndex>,
    /// The profiles of the image's runs.
    pub profiles: Option<PushedBlob>,
}

/// The index of a layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PushedIndex {
    /// The layer's blob.
    pub layer: Digest,
    /// The version of its format.
    pub version: u32,
    /// The index.
    pub blob: PushedBlob,
    /// Its windows, if it is without them.
    pub windows: Option<PushedWindows>,
}

/// A blob with the windows of an index, as they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PushedWindows {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A blob that is compressed with zstd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PushedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its decoded size in bytes.
    pub decoded: u64,
}

/// Why a document is not a usable artifact with indexes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ArtifactError {
    /// It cannot be parsed.
    #[error("it is not an image manifest: {why}")]
    NotAManifest {
        /// Why.
        why: String,
    },
    /// It is no list of what to fetch first, or of another version.
    #[error("it is not a list of what to fetch first: {why}")]
    NotAPrefetchList {
        /// Why.
        why: String,
    },
    /// It is of another type.
    #[error("it is an artifact of type `{}`", kind.escape_debug())]
    OtherType {
        /// Its type.
        kind: String,
    },
    /// It refers to another image.
    #[error("its subject is {}", subject.as_ref().map_or_else(|| "missing".to_owned(), Digest::to_string))]
    OtherSubject {
        /// Its subject.
        subject: Option<Digest>,
    },
    /// A layer of it is not described as it must be.
    #[error("blob {blob} is not described by `{annotation}`")]
    Annotation {
        /// The blob.
        blob: Digest,
        /// The annotation that is missing or wrong.
        annotation: &'static str,
    },
    /// The windows of an index are missing.
    #[error("it has no windows of layer {layer}")]
    NoWindows {
        /// The layer.
        layer: Digest,
    },
    /// It has more layers than an image.
    #[error("it has {count} layers; at most {MOST_LAYERS} are read")]
    TooMany {
        /// How many it has.
        count: usize,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    subject: Option<Subject>,
    layers: Vec<Entry>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digest,
}

#[derive(Deserialize)]
struct List {
    manifests: Vec<Value>,
}

/// What an annotation of `entry` says.
fn annotated<T: std::str::FromStr>(entry: &Entry, annotation: &'static str) -> Result<T, ArtifactError> {
    let value = entry.annotations.get(annotation).and_then(|text| text.parse().ok());
    value.ok_or_else(|| ArtifactError::Annotation { blob: entry.digest.clone(), annotation })
}

impl PushedBlob {
    fn of(entry: &Entry) -> Result<Self, ArtifactError> {
        Ok(Self { digest: entry.digest.clone(), size: entry.size, decoded: annotated(entry, SIZE)? })
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(MediaType::parse("application/octet-stream"), self.digest.clone(), self.size)
    }

    fn json(&self, media_type: &str, mut annotations: BTreeMap<&str, String>) -> Value {
        annotations.insert(SIZE, self.decoded.to_string());
        let digest = self.digest.to_string();
        json!({ "mediaType": media_type, "digest": digest, "size": self.size, "annotations": annotations })
    }
}

impl IndexArtifact {
    /// Reads the manifest of an artifact for `subject`. Layers of other media types are left out, and of several indexes
    /// of one layer the first counts, as of several windows.
    ///
    /// # Errors
    /// [`ArtifactError`]
    pub fn parse(bytes: &[u8], subject: &Digest) -> Result<Self, ArtifactError> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| ArtifactError::NotAManifest { why: error.to_string() })?;
        if manifest.artifact_type.as_deref() != Some(INDEX_ARTIFACT) {
            return Err(ArtifactError::OtherType { kind: manifest.artifact_type.unwrap_or_default() });
        }
        let found = manifest.subject.map(|subject| subject.digest);
        if found.as_ref() != Some(subject) {
            return Err(ArtifactError::OtherSubject { subject: found });
        }
        if manifest.layers.len() > MOST_LAYERS {
            return Err(ArtifactError::TooMany { count: manifest.layers.len() });
        }
        let mut windows = BTreeMap::new();
        for entry in manifest.layers.iter().filter(|entry| entry.media_type == WINDOWS) {
            let blob = PushedWindows { digest: entry.digest.clone(), size: entry.size };
            windows.entry(annotated::<Digest>(entry, LAYER)?).or_insert(blob);
        }
        let mut artifact = Self { layers: Vec::new(), profiles: None };
        let mut seen = BTreeSet::new();
        for entry in &manifest.layers {
            match &*entry.media_type {
                kind @ (LAYER_INDEX | INDEX_HEAD) => {
                    let layer: Digest = annotated(entry, LAYER)?;
                    let version = annotated(entry, VERSION)?;
                    let windows = match kind {
                        LAYER_INDEX => None,
                        _ => {
                            let missing = || ArtifactError::NoWindows { layer: layer.clone() };
                            Some(windows.get(&layer).cloned().ok_or_else(missing)?)
                        }
                    };
                    let index = PushedIndex { layer, version, blob: PushedBlob::of(entry)?, windows };
                    if seen.insert(index.layer.to_string()) {
                        artifact.layers.push(index);
                    }
                }
                PROFILES if artifact.profiles.is_none() => artifact.profiles = Some(PushedBlob::of(entry)?),
                _ => {}
            }
        }
        Ok(artifact)
    }

    /// Its manifest, for `subject`; `created` is a time of RFC 3339.
    pub fn manifest(&self, subject: &Descriptor, created: &str) -> Vec<u8> {
        let index = |index: &PushedIndex| {
            let (layer, version) = (index.layer.to_string(), index.version.to_string());
            let kind = if index.windows.is_some() { INDEX_HEAD } else { LAYER_INDEX };
            index.blob.json(kind, BTreeMap::from([(LAYER, layer), (VERSION, version)]))
        };
        let windows = |index: &PushedIndex| {
            let PushedWindows { digest, size } = index.windows.as_ref()?;
            let (digest, annotations) = (digest.to_string(), json!({ LAYER: index.layer.to_string() }));
            Some(json!({ "mediaType": WINDOWS, "digest": digest, "size": size, "annotations": annotations }))
        };
        let mut layers: Vec<Value> = self.layers.iter().map(index).collect();
        layers.extend(self.layers.iter().filter_map(windows));
        layers.extend(self.profiles.iter().map(|profiles| profiles.json(PROFILES, BTreeMap::new())));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "artifactType": INDEX_ARTIFACT,
            "config": {
                "mediaType": EMPTY, "digest": Self::config().0.to_string(), "size": Self::config().1.len(), "data": "e30=",
            },
            "layers": layers,
            "subject": Entry::described(subject),
            "annotations": Self::annotations(created),
        });
        manifest.to_string().into_bytes()
    }

    /// The configuration of all artifacts.
    pub fn config() -> (Digest, &'static [u8]) {
        const CONFIG: &[u8] = b"{}";
        (Digest::of(Algorithm::Sha256, CONFIG), CONFIG)
    }

    /// The entry of a list for its `manifest`.
    pub fn entry(manifest: &[u8], created: &str) -> Value {
        Entry::listed(manifest, INDEX_ARTIFACT, Self::annotations(created))
    }

    /// When the `manifest` of an artifact says that it was made.
    pub fn created(manifest: &[u8]) -> Option<String> {
        let manifest: Value = serde_json::from_slice(manifest).ok()?;
        Some(manifest["annotations"][CREATED].as_str()?.to_owned())
    }

    fn annotations(created: &str) -> Value {
        json!({ CREATED: created })
    }
}

/// The manifests of artifacts of type `kind` in the `pages` of a list of referrers, the newest first; of a long list, only
/// some. What is not readable is left out.
pub fn referrers<'a>(pages: impl IntoIterator<Item = &'a [u8]>, kind: &str) -> Vec<Descriptor> {
    let pages = pages.into_iter().filter_map(|page| serde_json::from_slice::<List>(page).ok());
    let entries = pages.flat_map(|page| page.manifests).take(ENTRIES);
    let entries = entries.filter_map(|entry| serde_json::from_value::<Entry>(entry).ok());
    let ours = entries.filter(|entry| {
        entry.artifact_type.as_deref() == Some(kind) && MediaType::parse(&entry.media_type).is_manifest()
    });
    let created = |entry: &Entry| entry.annotations.get(CREATED)?.parse::<jiff::Timestamp>().ok();
    let mut found: Vec<_> = ours.map(|entry| (created(&entry), entry.digest.to_string(), entry)).collect();
    found.sort_unstable_by(|(at, digest, _), (other_at, other, _)| (other_at, other).cmp(&(at, digest)));
    found.dedup_by(|(_, one, _), (_, other, _)| one == other);
    found.into_iter().take(CANDIDATES).map(|(_, _, entry)| entry.descriptor()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn subject() -> Descriptor {
        Descriptor::new(MediaType::OciManifest, digest("image"), 5)
    }

    fn artifact() -> IndexArtifact {
        let blob = |name: &str| PushedBlob { digest: digest(name), size: 10, decoded: 100 };
        let windows = |name: &str| PushedWindows { digest: digest(&format!("{name} windows")), size: 20 };
        let index = |name: &str, has_windows: bool| PushedIndex {
            layer: digest(name),
            version: 2,
            blob: blob(&format!("{name} index")),
            windows: (!has_windows).then(|| windows(name)),
        };
        IndexArtifact { layers: vec![index("one", true), index("two", false)], profiles: Some(blob("profiles")) }
    }

    fn changed(change: impl FnOnce(&mut Value)) -> Result<IndexArtifact, ArtifactError> {
        let mut manifest: Value =
            serde_json::from_slice(&artifact().manifest(&subject(), "2026-01-02T03:04:05Z")).unwrap();
        change(&mut manifest);
        IndexArtifact::parse(manifest.to_string().as_bytes(), &subject().digest)
    }

    #[test]
    fn an_artifact_is_read_as_it_was_written() {
        assert_eq!(changed(|_| {}), Ok(artifact()));
        let with_more = changed(|manifest| {
            let mut other = manifest["layers"][0].clone();
            other["mediaType"] = "application/vnd.other".into();
            let again = manifest["layers"][0].clone();
            let mut windows = manifest["layers"][2].clone();
            windows["digest"] = digest("other windows").to_string().into();
            manifest["layers"].as_array_mut().unwrap().extend([other, again, windows]);
        });
        assert_eq!(with_more, Ok(artifact()), "what is unknown, or there twice, is left out");
    }

    #[test]
    fn an_artifact_of_another_image_or_kind_is_not_used() {
        assert!(matches!(
            changed(|manifest| manifest["subject"]["digest"] = digest("other").to_string().into()),
            Err(ArtifactError::OtherSubject { subject: Some(_) })
        ));
        assert!(matches!(
            changed(|manifest| drop(manifest.as_object_mut().unwrap().remove("subject"))),
            Err(ArtifactError::OtherSubject { subject: None })
        ));
        assert!(matches!(
            changed(|manifest| manifest["artifactType"] = "application/x".into()),
            Err(ArtifactError::OtherType { .. })
        ));
        for (annotation, value) in [(LAYER, "sha256:0"), (VERSION, "two"), (SIZE, "-1"), (SIZE, "99999999999999999999")]
        {
            let wrong = changed(|manifest| manifest["layers"][0]["annotations"][annotation] = value.into());
            assert!(matches!(wrong, Err(ArtifactError::Annotation { .. })), "{annotation} {value}");
        }
        let none = changed(|manifest| drop(manifest["layers"].as_array_mut().unwrap().remove(2)));
        assert_eq!(none, Err(ArtifactError::NoWindows { layer: digest("two") }));
        let of_none = changed(|manifest| manifest["layers"][2]["annotations"] = json!({}));
        assert!(matches!(of_none, Err(ArtifactError::Annotation { annotation: LAYER, .. })));
        let many = changed(|manifest| {
            manifest["layers"] = vec![manifest["layers"][0].clone(); MOST_LAYERS + 1].into();
        });
        assert_eq!(many, Err(ArtifactError::TooMany { count: MOST_LAYERS + 1 }));
        assert!(IndexArtifact::parse(b"[]", &subject().digest).is_err());
    }

    #[test]
    fn the_newest_artifacts_come_first_in_one_order() {
        let entry = |name: &str, created: &str| IndexArtifact::entry(name.as_bytes(), created);
        let entries = [
            entry("old", "2026-01-01T00:00:00Z"),
            entry("new", "2026-01-02T00:00:00+02:00"),
            entry("newer", "2026-01-02T00:00:00+01:00"),
            entry("timeless", "yesterday"),
        ];
        let of = |order: &[usize]| {
            let page = json!({ "manifests": order.iter().map(|at| entries[*at].clone()).collect::<Vec<_>>() });
            let page = page.to_string();
            let found = referrers([page.as_bytes(), page.as_bytes(), b"no list"], INDEX_ARTIFACT);
            found.into_iter().map(|found| found.digest).collect::<Vec<_>>()
        };
        let wanted = ["newer", "new", "old", "timeless"].map(digest);
        assert_eq!(of(&[0, 1, 2, 3]), wanted);
        assert_eq!(of(&[3, 2, 1, 0]), wanted);
        let many: Vec<_> = (0..100).map(|n| entry(&n.to_string(), "2026-01-01T00:00:00Z")).collect();
        let others = json!({ "manifests": [1, { "digest": "x" }, { "mediaType": "a", "digest": digest("a").to_string(), "size": 1 }] });
        assert_eq!(
            referrers([&*json!({ "manifests": many }).to_string().into_bytes()], INDEX_ARTIFACT).len(),
            CANDIDATES
        );
        assert!(referrers([&*others.to_string().into_bytes()], INDEX_ARTIFACT).is_empty());
    }
}
