//! Documents: image indexes, manifests and configurations, read strictly.
//!
//! A document that two programs read differently is a way to show a scanner one image and a user
//! another (CVE-2021-41190). So a document must be of one kind by every sign it carries: its fields,
//! its own `mediaType`, and the media type it was served or referenced under; and no key may be read
//! in two ways (`keys`).
//!
//! The wire types are ours: `oci_spec::image` takes any digest algorithm, reads a document with both
//! `layers` and `manifests` as either, and never sees a platform's `os.version`.
//!
//! Everything here is a pure function of bytes. Fetching and checking digests is the caller's work.

mod artifact;
mod choose;
mod config;
mod entry;
mod error;
mod index_artifact;
mod keys;
mod soci;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use bytes::Bytes;
use serde::Deserialize;

use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;
use crate::platform::Platform;

pub use artifact::{Artifact, ArtifactKind, FileNote, Part};
pub use choose::{ResolveError, Step, candidates, lone_artifact, resolve_step, select};
pub use config::{Command, ImageConfig};
pub use entry::Entry;
pub use error::DocumentError;
pub use index_artifact::{
    ArtifactError, INDEX_ARTIFACT, IndexArtifact, PushedBlob, PushedIndex, PushedWindows, referrers,
};
use keys::check_keys;
pub use soci::{SOCI_INDEX, SOCI_V1, SOCI_V2, SociIndex, SociPrefetch};

/// The largest document that is read, in bytes.
pub const DOCUMENT_LIMIT: usize = 4 << 20;
/// The most entries an image index may have.
pub const ENTRIES_LIMIT: usize = 10_000;
/// The most layers a manifest may have.
pub const LAYERS_LIMIT: usize = 1_000;
/// How many image indexes may lie between a reference and its manifest.
pub const NESTING_LIMIT: usize = 3;

/// What a reference can name: an image index or a manifest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Document {
    /// An image index or Docker manifest list.
    Index(Index),
    /// The manifest of an image, OCI or Docker.
    Manifest(Manifest),
    /// A manifest whose layers are not those of an image.
    Artifact(Artifact),
}

/// A list of manifests to choose from (image-spec, image-index.md).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Index {
    /// [`MediaType::OciIndex`] or [`MediaType::DockerList`].
    pub media_type: MediaType,
    /// All entries, attestations and artifacts among them.
    pub entries: Vec<IndexEntry>,
    /// `annotations` of the index itself.
    pub annotations: BTreeMap<String, String>,
}

/// One manifest or nested image index that an [`Index`] lists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexEntry {
    /// The document that is listed.
    pub descriptor: Descriptor,
    /// What it runs on; if none, its configuration has to tell.
    pub platform: Option<Platform>,
    /// `artifactType`, as written.
    pub artifact_type: Option<String>,
}

/// One image: a configuration and layers, base first (image-spec, manifest.md).
///
/// Holding one means that the configuration and every layer have a media type peelfs can read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// [`MediaType::OciManifest`] or [`MediaType::DockerManifest`].
    pub media_type: MediaType,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, base first; each has a [`MediaType::Layer`].
    pub layers: Vec<Descriptor>,
    /// `annotations` of the manifest itself.
    pub annotations: BTreeMap<String, String>,
}

impl Document {
    /// Reads a document that came under the media type `declared`: a Content-Type or a descriptor's.
    ///
    /// `None`, and types that say nothing (`application/json`, `application/octet-stream`,
    /// `text/plain`), leave the decision to the document's own `mediaType`, and then to its fields.
    ///
    /// # Errors
    /// [`DocumentError`] for everything that is not exactly one well-formed index or manifest.
    pub fn parse(bytes: &[u8], declared: Option<&MediaType>) -> Result<Self, DocumentError> {
        let declared = declared.filter(|media_type| !says_nothing(media_type));
        if declared == Some(&MediaType::DockerSchema1) {
            return Err(DocumentError::Schema1);
        }
        let present = check_keys(bytes, keys::DOCUMENT)?;
        let has = |key: &str| present.contains(&key);
        let wire: WireDocument = read(bytes)?;

        if wire.schema_version == Some(1) || (has("fsLayers") && !has("layers") && !has("manifests")) {
            return Err(DocumentError::Schema1);
        }
        if wire.schema_version != Some(2) {
            return Err(DocumentError::SchemaVersion { found: wire.schema_version });
        }
        let manifest_keys: Vec<_> = ["config", "layers", "fsLayers"].into_iter().filter(|key| has(key)).collect();
        if has("manifests") && !manifest_keys.is_empty() {
            return Err(DocumentError::BothKinds { key: manifest_keys[0] });
        }
        if has("fsLayers") {
            return Err(DocumentError::Ambiguous { why: "it has both `fsLayers` and `layers`".to_owned() });
        }
        let kind = kind(declared, wire.media_type.as_deref())?;
        match kind.unwrap_or(if has("manifests") { MediaType::OciIndex } else { MediaType::OciManifest }) {
            media_type if media_type.is_index() => Index::from_wire(media_type, wire).map(Self::Index),
            media_type => Self::of_manifest(media_type, wire),
        }
    }

    /// A manifest: that of an image if its configuration and all layers are of an image's types.
    fn of_manifest(media_type: MediaType, wire: WireDocument<'_>) -> Result<Self, DocumentError> {
        let config = wire.config.ok_or(DocumentError::Missing { key: "config", kind: "a manifest" })?;
        let config = config.descriptor()?;
        let layers = wire.layers.unwrap_or_default();
        at_most("layers", layers.len(), LAYERS_LIMIT)?;
        let layers = layers.into_iter().map(WireDescriptor::descriptor).collect::<Result<Vec<_>, _>>()?;
        let annotations = wire.annotations.unwrap_or_default();
        let unknown = layers.iter().enumerate().find(|(_, layer)| !matches!(layer.media_type, MediaType::Layer(..)));
        let is_image = is_config(&config.media_type);
        if is_image && unknown.is_none() {
            return Ok(Self::Manifest(Manifest { media_type, config, layers, annotations }));
        }
        let artifact_type = wire.artifact_type.as_deref().filter(|kind| !kind.is_empty()).map(MediaType::parse);
        let artifact_type = artifact_type.filter(|kind| !is_config(kind));
        let no_image = unknown.filter(|_| is_image && artifact_type.is_none()).map(|(number, layer)| {
            let (digest, media_type) = (layer.digest.clone(), shown(layer.media_type.as_str()));
            DocumentError::LayerType { number, digest, media_type }
        });
        let artifact_type = artifact_type.unwrap_or_else(|| config.media_type.clone());
        Ok(Self::Artifact(Artifact { media_type, artifact_type, config, layers, annotations, no_image }))
    }

    /// The media type that the document turned out to have.
    pub fn media_type(&self) -> &MediaType {
        match self {
            Self::Index(index) => &index.media_type,
            Self::Manifest(manifest) => &manifest.media_type,
            Self::Artifact(artifact) => &artifact.media_type,
        }
    }
}

impl Index {
    fn from_wire(media_type: MediaType, wire: WireDocument<'_>) -> Result<Self, DocumentError> {
        let manifests = wire.manifests.ok_or(DocumentError::Missing { key: "manifests", kind: "an image index" })?;
        at_most("manifests", manifests.len(), ENTRIES_LIMIT)?;
        let entries = manifests
            .into_iter()
            .map(|wire| {
                let platform = wire.platform.as_ref().and_then(WirePlatform::platform);
                let artifact_type = wire.artifact_type.as_deref().map(str::to_owned);
                Ok(IndexEntry { descriptor: wire.descriptor()?, platform, artifact_type })
            })
            .collect::<Result<_, DocumentError>>()?;
        Ok(Self { media_type, entries, annotations: wire.annotations.unwrap_or_default() })
    }

    /// The platforms that can be chosen, each once, in order.
    pub fn offered(&self) -> Vec<Platform> {
        let images = self.entries.iter().filter(|entry| entry.may_be_image());
        images.filter_map(|entry| entry.platform.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl IndexEntry {
    /// Whether this could lead to an image: no attestation, no artifact, not marked as unknown.
    pub fn may_be_image(&self) -> bool {
        self.is_offered() && !self.is_artifact()
    }

    /// Whether this is said to be an artifact, other than an attestation.
    pub fn may_be_artifact(&self) -> bool {
        self.is_offered() && self.is_artifact()
    }

    fn is_artifact(&self) -> bool {
        self.artifact_type.as_ref().is_some_and(|kind| !is_config(&MediaType::parse(kind)))
    }

    /// Whether it is a document that stands for itself.
    fn is_offered(&self) -> bool {
        let media_type = &self.descriptor.media_type;
        let attestation = self.descriptor.annotations.get(REFERENCE_TYPE).is_some_and(|kind| kind == ATTESTATION);
        (media_type.is_index() || media_type.is_manifest())
            && !attestation
            && !self.platform.as_ref().is_some_and(Platform::is_unknown)
    }
}

// ---- the wire ----

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct WireDocument<'a> {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(borrow, rename = "mediaType")]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "artifactType")]
    artifact_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    config: Option<WireDescriptor<'a>>,
    #[serde(borrow)]
    layers: Option<Vec<WireDescriptor<'a>>>,
    #[serde(borrow)]
    manifests: Option<Vec<WireDescriptor<'a>>>,
    #[serde(default, deserialize_with = "keys::annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct WireDescriptor<'a> {
    #[serde(borrow, rename = "mediaType")]
    media_type: Cow<'a, str>,
    digest: Digest,
    size: u64,
    #[serde(borrow)]
    data: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "keys::annotations")]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    platform: Option<WirePlatform<'a>>,
    #[serde(borrow, rename = "artifactType")]
    artifact_type: Option<Cow<'a, str>>,
}

impl WireDescriptor<'_> {
    fn descriptor(self) -> Result<Descriptor, DocumentError> {
        if i64::try_from(self.size).is_err() {
            return Err(DocumentError::Size { digest: self.digest, size: self.size });
        }
        let data = match self.data.as_deref().filter(|data| !data.is_empty() || self.size == 0) {
            Some(data) => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(data).ok();
                let fitting = decoded.filter(|decoded| decoded.len() as u64 == self.size);
                Some(fitting.ok_or_else(|| DocumentError::Data { digest: self.digest.clone(), size: self.size })?)
            }
            None => None,
        };
        Ok(Descriptor {
            media_type: MediaType::parse(&self.media_type),
            digest: self.digest,
            size: self.size,
            data: data.map(Bytes::from),
            annotations: self.annotations.unwrap_or_default(),
        })
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct WirePlatform<'a> {
    #[serde(borrow)]
    architecture: Option<Cow<'a, str>>,
    #[serde(borrow)]
    os: Option<Cow<'a, str>>,
    #[serde(borrow)]
    variant: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "os.version")]
    os_version: Option<Cow<'a, str>>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
}

impl WirePlatform<'_> {
    fn platform(&self) -> Option<Platform> {
        let os = self.os.as_deref().filter(|os| !os.is_empty())?;
        let architecture = self.architecture.as_deref().filter(|architecture| !architecture.is_empty())?;
        let platform = Platform::new(os, architecture, self.variant.as_deref());
        Some(platform.with_os(self.os_version.as_deref(), self.os_features.as_deref().unwrap_or_default()))
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|cause| DocumentError::Malformed { why: shown(&cause.to_string()) })
}

/// The kind that all signs agree on; `None` if there is no sign but the fields.
fn kind(declared: Option<&MediaType>, own: Option<&str>) -> Result<Option<MediaType>, DocumentError> {
    let own = own.filter(|own| !own.is_empty()).map(MediaType::parse);
    for media_type in declared.iter().copied().chain(&own) {
        if *media_type == MediaType::DockerSchema1 {
            return Err(DocumentError::Schema1);
        }
        if !media_type.is_index() && !media_type.is_manifest() {
            return Err(DocumentError::NoManifest { kind: shown(media_type.as_str()) });
        }
    }
    match (declared, own) {
        (Some(declared), Some(own)) if declared.is_index() != own.is_index() => {
            Err(DocumentError::MediaTypes { declared: shown(declared.as_str()), own: shown(own.as_str()) })
        }
        (declared, own) => Ok(own.or_else(|| declared.cloned())),
    }
}

fn says_nothing(media_type: &MediaType) -> bool {
    let silent = ["", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"];
    matches!(media_type, MediaType::Other(text) if silent.contains(&&**text))
}

fn is_config(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::Config(_))
}

fn at_most(key: &'static str, count: usize, limit: usize) -> Result<(), DocumentError> {
    if count > limit { Err(DocumentError::TooMany { key, count, limit }) } else { Ok(()) }
}

/// Text from a document, made fit for a message: escaped and not too long.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().nth(200).is_some() {
        short.push('…');
    }
    short
}

const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const ATTESTATION: &str = "attestation-manifest";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(media_type: &str, more: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":7{more}}}"#)
    }

    fn manifest(own: &str, layers: &str) -> String {
        format!(r#"{{"schemaVersion":2,{own}"config":{},"layers":[{layers}]}}"#, descriptor(CONFIG_TYPE, ""))
    }

    fn index(entries: &[&str]) -> String {
        let entries: Vec<_> = entries
            .iter()
            .map(|platform| {
                let (os, architecture) = platform.split_once('/').unwrap();
                let (architecture, variant) = architecture.split_once('/').unwrap_or((architecture, ""));
                let more =
                    format!(r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#);
                descriptor(MediaType::MANIFESTS[1], &more)
            })
            .collect();
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","))
    }

    fn parse(text: &str) -> Result<Document, DocumentError> {
        Document::parse(text.as_bytes(), None)
    }

    fn parse_index(text: &str) -> Index {
        match parse(text).unwrap() {
            Document::Index(index) => index,
            other => panic!("{other:?}"),
        }
    }

    fn wanted(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_manifest_and_an_index_are_told_apart_by_their_fields() {
        let Document::Manifest(read) = parse(&manifest("", &descriptor(LAYER_TYPE, ""))).unwrap() else { panic!() };
        assert_eq!(read.media_type, MediaType::OciManifest);
        assert_eq!((read.layers.len(), read.layers[0].size), (1, 7));
        assert_eq!(parse_index(&index(&["linux/amd64"])).media_type, MediaType::OciIndex);
    }

    /// Other forms of the same image, as converters list them beside it.
    #[test]
    fn entries_of_other_image_formats_are_passed_over() {
        let entry = |more: &str, platform: &str| {
            let platform = format!(r#"{more},"platform":{{"os":"linux","architecture":"amd64"{platform}}}"#);
            descriptor(MediaType::MANIFESTS[0], &platform)
        };
        let nydus = r#","artifactType":"application/vnd.nydus.image.manifest.v1+json""#;
        let soci = r#","artifactType":"application/vnd.amazon.soci.index.v2+json""#;
        let plain = entry(r#","annotations":{"plain":"yes"}"#, "");
        for other in [
            entry(nydus, r#","os.features":["nydus.remoteimage.v1"]"#),
            entry("", r#","os.features":["nydus.remoteimage.v1"]"#),
            entry("", r#","os.features":["erofs"]"#),
            entry(soci, ""),
        ] {
            for entries in [[&other, &plain], [&plain, &other]] {
                let text = format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, entries[0], entries[1]);
                let index = parse_index(&text);
                let found = candidates(&index, &wanted("linux/amd64"));
                let found: Vec<_> = found.iter().map(|entry| &entry.descriptor.annotations).collect();
                assert_eq!(found.len(), 1, "{text}");
                assert!(found[0].contains_key("plain"), "{text}");
            }
        }
    }

    #[test]
    fn docker_documents_are_read_like_their_oci_twins() {
        let docker = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
            MediaType::MANIFESTS[3],
            descriptor("application/vnd.docker.container.image.v1+json", ""),
            descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", "")
        );
        assert_eq!(parse(&docker).unwrap().media_type(), &MediaType::DockerManifest);
        let as_list = Document::parse(index(&["linux/amd64"]).as_bytes(), Some(&MediaType::DockerList)).unwrap();
        assert_eq!(as_list.media_type(), &MediaType::DockerList);
    }

    #[test]
    fn a_type_that_says_nothing_leaves_the_decision_to_the_document() {
        for silent in ["application/json", "text/plain; charset=utf-8", ""] {
            let declared = MediaType::parse(silent);
            assert!(Document::parse(manifest("", "").as_bytes(), Some(&declared)).is_ok(), "{silent}");
        }
    }

    #[test]
    fn whatever_can_be_read_in_two_ways_is_refused() {
        let config = descriptor(CONFIG_TYPE, "");
        let own = |media_type: &str| format!(r#""mediaType":"{media_type}","#);
        let oci_manifest = MediaType::parse(MediaType::MANIFESTS[1]);
        let oci_index = MediaType::parse(MediaType::MANIFESTS[0]);
        let table = [
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#), None),
            (format!(r#"{{"schemaVersion":2,"config":{config},"manifests":[]}}"#), None),
            (r#"{"schemaVersion":2,"layers":null,"manifests":[]}"#.to_owned(), None),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"fsLayers":[]}}"#), None),
            (manifest("", ""), Some(&oci_index)),
            (index(&[]), Some(&oci_manifest)),
            (manifest(&own(MediaType::MANIFESTS[0]), ""), None),
            (manifest(&own(MediaType::MANIFESTS[0]), ""), Some(&oci_manifest)),
            (manifest(&own(MediaType::MANIFESTS[3]), ""), Some(&oci_index)),
            (manifest(&own("application/vnd.docker.distribution.manifest.v1+json"), ""), None),
            (r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#.to_owned(), None),
            (manifest("", "").replace(r#""schemaVersion":2,"#, ""), None),
            (manifest("", "").replace("Version\":2", "Version\":3"), None),
            (format!(r#"{{"schemaVersion":2,"layers":[],"layers":[],"config":{config}}}"#), None),
            (format!(r#"{{"schemaVersion":2,"Layers":[],"config":{config}}}"#), None),
            (format!(r#"{{"schemaVersion":2,"manifeſts":[],"layers":[],"config":{config}}}"#), None),
            (manifest("", &descriptor(LAYER_TYPE, r#","size":8"#)), None),
            (manifest("", &descriptor(LAYER_TYPE, r#","Digest":"x""#)), None),
            (manifest("", "").replace(&config, &format!(r#"["{CONFIG_TYPE}","{D}",7]"#)), None),
            (manifest("", "").replace(&config, &format!("[{config}]")), None),
            (format!("[{}]", manifest("", "")), None),
            (manifest("", "") + "{}", None),
        ];
        let mut all = String::new();
        for (text, declared) in &table {
            let error = Document::parse(text.as_bytes(), *declared).unwrap_err();
            all.push_str(&format!("{error}\n"));
        }
        insta::assert_snapshot!(all, @r#"
        the document is ambiguous: it has both `manifests` and `config`
        the document is ambiguous: it has both `manifests` and `config`
        the document is ambiguous: it has both `manifests` and `layers`
        the document is ambiguous: it has both `fsLayers` and `layers`
        the document has no `manifests`, so it is not an image index
        the document has no `config`, so it is not a manifest
        the document has no `manifests`, so it is not an image index
        the document is ambiguous: it came as `application/vnd.oci.image.manifest.v1+json` and calls itself `application/vnd.oci.image.index.v1+json`
        the document is ambiguous: it came as `application/vnd.oci.image.index.v1+json` and calls itself `application/vnd.docker.distribution.manifest.v2+json`
        the manifest has Docker's old schema 1, which names no verifiable layers
        the manifest has Docker's old schema 1, which names no verifiable layers
        `schemaVersion` must be 2, and is missing
        `schemaVersion` must be 2, and is 3
        the document is malformed: the key `layers` is there twice at line 1 column 39
        the document is malformed: the key `layers` is spelt `Layers` at line 1 column 27
        the document is malformed: the key `manifests` is spelt `manifeſts` at line 1 column 31
        the document is malformed: the key `size` is there twice at line 1 column 344
        the document is malformed: the key `digest` is spelt `Digest` at line 1 column 346
        the document is malformed: invalid type: sequence, expected an object at line 1 column 29
        the document is malformed: invalid type: sequence, expected an object at line 1 column 29
        the document is malformed: invalid type: sequence, expected an object at line 1 column 1
        the document is malformed: trailing characters at line 1 column 190
        "#);
    }

    #[test]
    fn what_is_malformed_or_no_image_is_refused() {
        let deep = format!(r#"{{"schemaVersion":2,"config":{}"#, r#"{"platform":"#.repeat(2_000));
        let brackets = format!(r#"{{"schemaVersion":2,"layers":{}"#, "[".repeat(100_000));
        let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        let many = vec![descriptor(LAYER_TYPE, ""); LAYERS_LIMIT + 1].join(",");
        let layer = |from: &str, to: &str| manifest("", &descriptor(LAYER_TYPE, "")).replace(from, to);
        let table = [
            String::new(),
            "null".to_owned(),
            "{".to_owned(),
            deep,
            brackets,
            "{\"schemaVersion\":2}".to_owned(),
            layer("\"size\":7", "\"size\":-7"),
            layer("\"size\":7", "\"size\":7.5"),
            layer("\"size\":7", "\"size\":9223372036854775808"),
            layer("\"size\":7", "\"size\":99999999999999999999"),
            layer(",\"size\":7", ""),
            layer(D, "sha256:../../../../etc/passwd"),
            layer(D, "md5:d41d8cd98f00b204e9800998ecf8427e"),
            manifest("", &descriptor("application/x-\\u001b[31m", "")),
            manifest("", &descriptor(encrypted, "")),
            manifest("", &many),
            manifest("", &descriptor(LAYER_TYPE, r#","data":"AAAA""#)),
            manifest("", &descriptor(LAYER_TYPE, r#","data":"!""#)),
            manifest("", &descriptor(LAYER_TYPE, r#","annotations":{"a":"1","a":"2"}"#)),
            manifest(r#""mediaType":"application/vnd.oci.artifact.manifest.v1+json","#, ""),
        ];
        let mut all = String::new();
        for text in &table {
            let error = match parse(text) {
                Ok(Document::Artifact(Artifact { no_image: Some(why), .. })) => why,
                other => other.unwrap_err(),
            };
            all.push_str(&format!("{error}\n"));
            if let Some(hint) = error.hint() {
                all.push_str(&format!("  hint: {hint}\n"));
            }
        }
        insta::assert_snapshot!(all, @r#"
        the document is malformed: EOF while parsing a value at line 1 column 0
        the document is malformed: invalid type: null, expected an object at line 1 column 4
        the document is malformed: EOF while parsing an object at line 1 column 1
        the document is malformed: EOF while parsing a value at line 1 column 24028
        the document is malformed: invalid type: sequence, expected an object at line 1 column 30
        the document has no `config`, so it is not a manifest
        the document is malformed: invalid value: integer `-7`, expected u64 at line 1 column 176
        the document is malformed: invalid type: floating point `7.5`, expected u64 at line 1 column 177
        the size of sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 is 9223372036854775808 bytes, more than any file can have
        the document is malformed: invalid type: floating point `1e+20`, expected u64 at line 1 column 194
        the document is malformed: missing field `size` at line 1 column 167
        the document is malformed: `sha256:../../../../etc/passwd` is not a usable digest: expected 64 digits, found 22 at line 1 column 124
        the document is malformed: `md5:d41d8cd98f00b204e9800998ecf8427e` is not a usable digest: the algorithm is none of sha256, sha512 and blake3 at line 1 column 131
        layer 0, sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, is of the unknown type `application/x-\u{1b}[31m`
          hint: if this is an artifact, `--artifact` shows its layers as files
        layer 0, sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, is of the unknown type `application/vnd.oci.image.layer.v1.tar+gzip+encrypted`
          hint: decrypt the image first: `skopeo copy --decryption-key KEY …`
        `layers` has 1001 entries; at most 1000 are read
        the inlined data of sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 is not base64 for 7 bytes
        the inlined data of sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 is not base64 for 7 bytes
        the document is malformed: the annotation `a` is there twice at line 1 column 369
        a document of type `application/vnd.oci.artifact.manifest.v1+json` is neither a manifest nor an image index
          hint: the specification has withdrawn this type; push the artifact again with a current client
        "#);
    }

    #[test]
    fn a_manifest_with_other_types_is_an_artifact() {
        let of = |text: &str| match parse(text).unwrap() {
            Document::Artifact(artifact) => (artifact.artifact_type.to_string(), artifact.no_image.is_some()),
            other => panic!("{other:?}"),
        };
        let helm = manifest("", "").replace(CONFIG_TYPE, "application/vnd.cncf.helm.config.v1+json");
        assert_eq!(of(&helm), ("application/vnd.cncf.helm.config.v1+json".to_owned(), false));
        let own = r#""artifactType":"application/vnd.example","#;
        let empty = manifest(own, "").replace(CONFIG_TYPE, "application/vnd.oci.empty.v1+json");
        assert_eq!(of(&empty), ("application/vnd.example".to_owned(), false));
        let raw = descriptor("application/x", "");
        assert_eq!(of(&manifest(own, &raw)), ("application/vnd.example".to_owned(), false));
        assert_eq!(of(&manifest("", &raw)), (CONFIG_TYPE.to_owned(), true), "an image with an unknown layer");
        // Its layers are those of an image, whatever it is there for.
        assert!(matches!(parse(&manifest(own, &descriptor(LAYER_TYPE, ""))).unwrap(), Document::Manifest(_)));
    }

    #[test]
    fn sizes_of_documents_and_lists_are_capped() {
        let padded = |bytes: usize| format!("{}{}", manifest("", ""), " ".repeat(bytes - manifest("", "").len()));
        assert!(parse(&padded(DOCUMENT_LIMIT)).is_ok());
        assert!(matches!(parse(&padded(DOCUMENT_LIMIT + 1)), Err(DocumentError::TooLarge { .. })));
        let layers = |n| manifest("", &vec![descriptor(LAYER_TYPE, ""); n].join(","));
        assert!(parse(&layers(LAYERS_LIMIT)).is_ok());
        let entries = |n| index(&vec!["l/a"; n]);
        assert!(parse(&entries(ENTRIES_LIMIT)).is_ok());
        assert!(matches!(parse(&entries(ENTRIES_LIMIT + 1)), Err(DocumentError::TooMany { .. })));
    }

    #[test]
    fn inlined_data_is_decoded_and_has_the_size() {
        let text = manifest("", "").replace("\"size\":7", r#""size":2,"data":"e30=""#);
        let Document::Manifest(manifest) = parse(&text).unwrap() else { panic!() };
        assert_eq!(manifest.config.data.as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn select_takes_the_best_and_never_an_attestation() {
        let attestation = descriptor(
            MediaType::MANIFESTS[1],
            r#","platform":{"os":"linux","architecture":"amd64"},"annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#,
        );
        let text = index(&["unknown/unknown", "linux/386", "linux/amd64", "linux/arm/v6"]);
        let read = parse_index(&text.replacen("[", &format!("[{attestation},"), 1));
        let place = |entry: &IndexEntry| read.entries.iter().position(|other| other == entry).unwrap();
        assert_eq!(place(select(&read, &wanted("linux/amd64")).unwrap()), 3);
        assert_eq!(place(select(&read, &wanted("linux/arm/v7")).unwrap()), 4);
        let error = select(&read, &wanted("linux/riscv64")).unwrap_err();
        insta::assert_snapshot!(
            format!("{error}\n{}", error.hint().unwrap()),
            @r"
        there is no image for linux/riscv64; it offers linux/386, linux/amd64, linux/arm/v6
        choose one with `--platform linux/386`
        "
        );
    }

    #[test]
    fn offers_are_listed_once_and_not_without_end() {
        let names: Vec<_> = (0..50).map(|n| format!("linux/p{:02}", n % 25)).collect();
        let read = parse_index(&index(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let text = select(&read, &wanted("linux/amd64")).unwrap_err().to_string();
        assert!(text.ends_with("linux/p18, linux/p19 and 5 more"), "{text}");
        let none = select(&parse_index(&index(&[])), &wanted("linux/amd64")).unwrap_err();
        assert_eq!(none.to_string(), "there is no image for linux/amd64; it offers none at all");
        assert_eq!(none.hint(), None);
    }

    #[test]
    fn entries_without_a_platform_come_last_and_are_asked_later() {
        let silent = descriptor(MediaType::MANIFESTS[1], "");
        let text = index(&["linux/arm64", "linux/amd64"]).replacen("[", &format!("[{silent},"), 1);
        let read = parse_index(&text);
        let found = candidates(&read, &wanted("linux/amd64"));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].platform, Some(wanted("linux/amd64")));
        assert_eq!(found[1].platform, None);
    }

    #[test]
    fn os_version_of_an_entry_is_seen() {
        let more = r#","platform":{"os":"windows","architecture":"amd64","os.version":"10.0.17763.1"}"#;
        let text = index(&[]).replacen("[", &format!("[{}", descriptor(MediaType::MANIFESTS[1], more)), 1);
        assert_eq!(parse_index(&text).entries[0].platform.as_ref().unwrap().os_version(), Some("10.0.17763.1"));
    }

    #[test]
    fn resolution_ends_at_a_manifest_or_at_the_nesting_limit() {
        let wanted = wanted("linux/amd64");
        let nested = parse(&index(&["linux/amd64"])).unwrap();
        let step = resolve_step(nested.clone(), NESTING_LIMIT - 1, &wanted).unwrap();
        assert!(matches!(step, Step::Descend(entries) if entries.len() == 1));
        assert_eq!(resolve_step(nested, NESTING_LIMIT, &wanted), Err(ResolveError::TooDeep));
        let image = parse(&manifest("", "")).unwrap();
        assert!(matches!(resolve_step(image, NESTING_LIMIT, &wanted), Ok(Step::Arrived(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_damage_to_a_document_panics(at in 0_usize..400, byte: u8) {
            let mut bytes = manifest("", &descriptor(LAYER_TYPE, "")).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Document::parse(&bytes, None);
        }
    }
}
