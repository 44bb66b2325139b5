//! Building images: layers, configuration, manifest and image index, in memory or as an OCI layout.
//!
//! Tests say what an image holds and how its layers are packed; digests and documents follow. A document
//! that must be wrong is given as bytes ([`Image::from_document`], [`ImageBuilder::edit_manifest`]).

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::deflate::{Codes, one_block};
use super::tar::{Entry, append_end};
use peelfs::descriptor::{Descriptor, MediaType};
use peelfs::digest::{Algorithm, Digest};

/// Whose media types an image uses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Family {
    /// `application/vnd.oci.image.…`
    #[default]
    Oci,
    /// `application/vnd.docker.…`
    Docker,
}

/// How a layer's tar becomes its blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packing {
    /// Not at all.
    Stored,
    /// Gzip members (RFC 1952).
    Gzip {
        /// The level, 0 to 9.
        level: u32,
        /// Decoded bytes in each member but the last; `None` for one member.
        member: Option<usize>,
    },
    /// One gzip member of one deflate block that has codes of its own, as `igzip -0` writes it.
    OneBlock,
    /// Zstandard frames (RFC 8878).
    Zstd {
        /// The level.
        level: i32,
        /// Decoded bytes in each frame but the last; `None` for one frame.
        frame: Option<usize>,
        /// Puts a skippable frame before each frame and one at the end.
        skippable: bool,
    },
}

impl Packing {
    /// One gzip member, as most images have it.
    pub const GZIP: Self = Self::Gzip { level: 6, member: None };
    /// One zstd frame.
    pub const ZSTD: Self = Self::Zstd { level: 3, frame: None, skippable: false };

    fn pack(self, tar: &[u8]) -> io::Result<Vec<u8>> {
        let pieces = |size: Option<usize>| {
            let whole = std::iter::once(tar).filter(|tar| tar.is_empty());
            tar.chunks(size.unwrap_or(tar.len()).max(1)).chain(whole)
        };
        let mut blob = Vec::new();
        match self {
            Self::Stored => blob.extend_from_slice(tar),
            Self::Gzip { level, member } => {
                for piece in pieces(member) {
                    let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::new(level));
                    encoder.write_all(piece)?;
                    encoder.finish()?;
                }
            }
            Self::OneBlock => blob = one_block(tar, Codes::Dynamic),
            Self::Zstd { level, frame, skippable } => {
                for piece in pieces(frame) {
                    if skippable {
                        blob.extend_from_slice(&SKIPPABLE_FRAME);
                    }
                    blob.extend_from_slice(&zstd::encode_all(piece, level)?);
                }
                if skippable {
                    blob.extend_from_slice(&SKIPPABLE_FRAME);
                }
            }
        }
        Ok(blob)
    }

    fn media_type(self, family: Family) -> &'static str {
        match (family, self) {
            (Family::Oci, Self::Stored) => "application/vnd.oci.image.layer.v1.tar",
            (Family::Oci, Self::Gzip { .. } | Self::OneBlock) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Family::Oci, Self::Zstd { .. }) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Family::Docker, Self::Stored) => "application/vnd.docker.image.rootfs.diff.tar",
            (Family::Docker, Self::Gzip { .. } | Self::OneBlock) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Family::Docker, Self::Zstd { .. }) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// A layer: its tar, its blob and how the one became the other.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The uncompressed archive.
    pub tar: Bytes,
    /// What a registry keeps.
    pub blob: Bytes,
    /// The digest of `tar`.
    pub diff_id: Digest,
    /// The digest of `blob`.
    pub digest: Digest,
    pub(crate) packing: Packing,
    pub(crate) media_type: Option<String>,
}

impl Layer {
    /// A layer whose `blob` decodes to `tar`; `packing` says how for its media type.
    pub fn of(tar: impl Into<Bytes>, blob: impl Into<Bytes>, packing: Packing) -> Self {
        let (tar, blob) = (tar.into(), blob.into());
        let [diff_id, digest] = [&tar, &blob].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
        Self { tar, blob, diff_id, digest, packing, media_type: None }
    }
}

/// Collects what a layer holds, in the order in which it will stand in the archive.
#[derive(Clone, Debug)]
pub struct LayerBuilder {
    tar: Vec<u8>,
    end: bool,
    packing: Packing,
    trailer: Vec<u8>,
    media_type: Option<String>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self { tar: Vec::new(), end: true, packing: Packing::GZIP, trailer: Vec::new(), media_type: None }
    }
}

impl LayerBuilder {
    /// A layer with nothing in it, packed as one gzip member.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer made of these entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut builder = Self::new();
        entries.into_iter().for_each(|entry| entry.write(&mut builder.tar));
        builder
    }

    /// Appends an entry.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        entry.write(&mut self.tar);
        self
    }

    /// Appends a directory, 0755.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.entry(Entry::dir(path))
    }

    /// Appends a file, 0644.
    #[must_use]
    pub fn file(self, path: &str, content: impl Into<Bytes>) -> Self {
        self.entry(Entry::file(path, content))
    }

    /// Appends a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::symlink(path, target))
    }

    /// Appends a hard link.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Entry::hard_link(path, target))
    }

    /// Appends the whiteout of `path`.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        self.entry(Entry::whiteout(path))
    }

    /// Appends the opaque whiteout in the directory `path`.
    #[must_use]
    pub fn opaque(self, path: &str) -> Self {
        self.entry(Entry::opaque(path))
    }

    /// Appends bytes to the archive as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// Leaves out the two blocks that end an archive.
    #[must_use]
    pub fn without_end(mut self) -> Self {
        self.end = false;
        self
    }

    /// Packs the tar otherwise.
    #[must_use]
    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// Appends bytes to the packed blob as they are.
    #[must_use]
    pub fn trailer(mut self, bytes: &[u8]) -> Self {
        self.trailer.extend_from_slice(bytes);
        self
    }

    /// Another media type than family and packing call for.
    #[must_use]
    pub fn media_type(mut self, media_type: &str) -> Self {
        self.media_type = Some(media_type.to_owned());
        self
    }

    /// Ends the archive, packs it, and computes both digests.
    pub fn build(self) -> Layer {
        let mut tar = self.tar;
        if self.end {
            append_end(&mut tar);
        }
        let mut blob = self.packing.pack(&tar).expect("packing memory into memory needs no I/O");
        blob.extend_from_slice(&self.trailer);
        Layer {
            diff_id: Digest::of(Algorithm::Sha256, &tar),
            digest: Digest::of(Algorithm::Sha256, &blob),
            tar: tar.into(),
            blob: blob.into(),
            packing: self.packing,
            media_type: self.media_type,
        }
    }
}

impl From<LayerBuilder> for Layer {
    fn from(builder: LayerBuilder) -> Self {
        builder.build()
    }
}

/// An image manifest or image index with all that it leads to.
#[derive(Clone, Debug)]
pub struct Image {
    root: Descriptor,
    platform: Option<String>,
    documents: BTreeMap<Digest, (MediaType, Bytes)>,
    blobs: BTreeMap<Digest, Bytes>,
    layers: Vec<Layer>,
}

impl Image {
    /// An image whose root document is whatever the bytes say; blobs can be added.
    pub fn from_document(media_type: &str, document: impl Into<Bytes>) -> Self {
        let document = document.into();
        let root = descriptor(media_type, &document);
        let documents = BTreeMap::from([(root.digest.clone(), (root.media_type.clone(), document))]);
        Self { root, platform: None, documents, blobs: BTreeMap::new(), layers: Vec::new() }
    }

    /// Adds a blob that may be asked for.
    #[must_use]
    pub fn with_blob(mut self, blob: impl Into<Bytes>) -> Self {
        let blob = blob.into();
        self.blobs.insert(Digest::of(Algorithm::Sha256, &blob), blob);
        self
    }

    /// Takes in another image's documents, blobs and layers, as a document that names them needs.
    #[must_use]
    pub fn with_image(mut self, other: &Self) -> Self {
        self.documents.extend(other.documents.clone());
        self.blobs.extend(other.blobs.clone());
        self.layers.extend(other.layers.iter().cloned());
        self
    }

    /// The root document's descriptor.
    pub fn root(&self) -> &Descriptor {
        &self.root
    }

    /// The layers, base first; those of an index one image after the other.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Manifests and image indexes.
    pub fn documents(&self) -> impl Iterator<Item = (&Digest, &MediaType, &Bytes)> {
        self.documents.iter().map(|(digest, (media_type, bytes))| (digest, media_type, bytes))
    }

    /// Configurations and layers.
    pub fn blobs(&self) -> impl Iterator<Item = (&Digest, &Bytes)> {
        self.blobs.iter()
    }

    /// The size of all blobs in bytes.
    pub fn blob_size(&self) -> u64 {
        self.blobs.values().map(|blob| blob.len() as u64).sum()
    }

    /// Writes the image into the OCI layout at `dir` under `tag`, beside what is there
    /// (image-spec, image-layout.md).
    ///
    /// # Errors
    /// Of the file system; an `index.json` that is none is replaced.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> io::Result<()> {
        let documents = self.documents.iter().map(|(digest, (_, bytes))| (digest, bytes));
        for (digest, bytes) in documents.chain(&self.blobs) {
            let folder = dir.join("blobs").join(digest.algorithm().name());
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(digest.hex()), bytes)?;
        }
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = dir.join("index.json");
        let before: Option<Value> = std::fs::read(&index).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut manifests = before.and_then(|value| value["manifests"].as_array().cloned()).unwrap_or_default();
        manifests.retain(|entry| entry["annotations"][REF_NAME] != tag);
        let mut entry = descriptor_json(&self.root);
        entry["annotations"] = json!({ REF_NAME: tag });
        manifests.push(entry);
        let document = json!({ "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": manifests });
        std::fs::write(index, document.to_string())
    }
}

/// Collects layers and configuration of one image.
#[derive(Debug)]
pub struct ImageBuilder {
    family: Family,
    platform: String,
    layers: Vec<Layer>,
    config: Value,
    annotations: BTreeMap<String, String>,
    inlined: bool,
    edits: Vec<Edit>,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self {
            family: Family::Oci,
            platform: host_platform(),
            layers: Vec::new(),
            config: json!({}),
            annotations: BTreeMap::new(),
            inlined: false,
            edits: Vec::new(),
        }
    }
}

impl ImageBuilder {
    /// An OCI image for this host's platform, without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// OCI or Docker media types.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: impl Into<Layer>) -> Self {
        self.layers.push(layer.into());
        self
    }

    /// The platform, `os/architecture[/variant]`.
    #[must_use]
    pub fn platform(mut self, platform: &str) -> Self {
        platform.clone_into(&mut self.platform);
        self
    }

    /// The configuration's `config` object, as `{"Env": […]}`.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// An annotation of the manifest.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Puts configuration and layers into their descriptors (image-spec, descriptor.md, `data`); there are no blobs.
    #[must_use]
    pub fn inlined(mut self) -> Self {
        self.inlined = true;
        self
    }

    /// Changes the manifest's JSON before it is digested; for manifests that must be wrong.
    #[must_use]
    pub fn edit_manifest(mut self, edit: impl FnOnce(&mut Value) + 'static) -> Self {
        self.edits.push(Edit::Manifest(Box::new(edit)));
        self
    }

    /// Changes the configuration's JSON before it is digested.
    #[must_use]
    pub fn edit_config(mut self, edit: impl FnOnce(&mut Value) + 'static) -> Self {
        self.edits.push(Edit::Config(Box::new(edit)));
        self
    }

    /// Computes documents and digests.
    pub fn build(self) -> Image {
        let (manifest_type, config_type) = match self.family {
            Family::Oci => (MediaType::OciManifest, "application/vnd.oci.image.config.v1+json"),
            Family::Docker => (MediaType::DockerManifest, "application/vnd.docker.container.image.v1+json"),
        };
        let (mut edit_config, mut edit_manifest) = (Vec::new(), Vec::new());
        for edit in self.edits {
            match edit {
                Edit::Config(edit) => edit_config.push(edit),
                Edit::Manifest(edit) => edit_manifest.push(edit),
            }
        }

        let mut config = platform_json(&self.platform);
        config["created"] = json!("2023-11-14T22:13:20Z");
        config["config"] = self.config;
        let diff_ids: Vec<&Digest> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let history = json!({ "created": "2023-11-14T22:13:20Z", "created_by": "peelfs loopback image" });
        config["history"] = Value::Array(vec![history; self.layers.len()]);
        edit_config.into_iter().for_each(|edit| edit(&mut config));
        let config = Bytes::from(config.to_string());

        let layers = self.layers.iter().map(|layer| {
            let media_type = layer.media_type.as_deref().unwrap_or(layer.packing.media_type(self.family));
            json!({ "mediaType": media_type, "digest": layer.digest, "size": layer.blob.len() })
        });
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type.as_str(),
            "config": descriptor_json(&descriptor(config_type, &config)),
            "layers": layers.collect::<Vec<_>>(),
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        if self.inlined {
            let data = |bytes: &[u8]| json!(base64::engine::general_purpose::STANDARD.encode(bytes));
            manifest["config"]["data"] = data(&config);
            for (at, layer) in self.layers.iter().enumerate() {
                manifest["layers"][at]["data"] = data(&layer.blob);
            }
        }
        edit_manifest.into_iter().for_each(|edit| edit(&mut manifest));

        let mut image = Image::from_document(manifest_type.as_str(), manifest.to_string());
        if !self.inlined {
            image = image.with_blob(config);
        }
        image.platform = Some(self.platform);
        for layer in self.layers {
            if !self.inlined {
                image = image.with_blob(layer.blob.clone());
            }
            image.layers.push(layer);
        }
        image
    }
}

/// Collects the layers of an artifact: any blobs with any types.
#[derive(Clone, Debug)]
pub struct ArtifactBuilder {
    manifest: Value,
    blobs: Vec<Bytes>,
}

impl ArtifactBuilder {
    /// An artifact of this type with the empty configuration and no layers (image-spec, manifest.md, "Guidelines for
    /// Artifact Usage").
    pub fn new(artifact_type: &str) -> Self {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "artifactType": artifact_type,
            "layers": [],
        });
        Self { manifest, blobs: Vec::new() }.config("application/vnd.oci.empty.v1+json", "{}")
    }

    /// Another configuration.
    #[must_use]
    pub fn config(mut self, media_type: &str, config: impl Into<Bytes>) -> Self {
        let config = config.into();
        self.manifest["config"] = descriptor_json(&descriptor(media_type, &config));
        self.blobs.push(config);
        self
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, media_type: &str, blob: impl Into<Bytes>, annotations: &[(&str, &str)]) -> Self {
        let blob = blob.into();
        let mut layer = descriptor_json(&descriptor(media_type, &blob));
        for (key, value) in annotations {
            layer["annotations"][*key] = json!(value);
        }
        self.manifest["layers"].as_array_mut().expect("a list of layers").push(layer);
        self.blobs.push(blob);
        self
    }

    /// Adds a file as ORAS does.
    #[must_use]
    pub fn file(self, title: &str, content: impl Into<Bytes>) -> Self {
        self.layer("application/octet-stream", content, &[("org.opencontainers.image.title", title)])
    }

    /// Changes the manifest's JSON before it is digested.
    #[must_use]
    pub fn edit(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.manifest);
        self
    }

    /// Computes the manifest.
    pub fn build(self) -> Image {
        let image = Image::from_document(MediaType::OciManifest.as_str(), self.manifest.to_string());
        self.blobs.into_iter().fold(image, Image::with_blob)
    }
}

enum Edit {
    Manifest(Box<dyn FnOnce(&mut Value)>),
    Config(Box<dyn FnOnce(&mut Value)>),
}

impl std::fmt::Debug for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Manifest(_) => "Edit::Manifest(…)",
            Self::Config(_) => "Edit::Config(…)",
        })
    }
}

/// Collects the entries of an image index or manifest list.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    family: Family,
    entries: Vec<Value>,
    images: Vec<Image>,
}

impl IndexBuilder {
    /// An OCI image index without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// OCI or Docker media types.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Adds an image under its own platform, or a nested index without one.
    #[must_use]
    pub fn image(mut self, image: &Image) -> Self {
        let mut entry = descriptor_json(&image.root);
        if let Some(platform) = &image.platform {
            entry["platform"] = platform_json(platform);
        }
        self.entries.push(entry);
        self.images.push(image.clone());
        self
    }

    /// Adds a build attestation for an image, as BuildKit does: platform `unknown/unknown` and an
    /// artifact for a layer.
    #[must_use]
    pub fn attestation(self, subject: &Image) -> Self {
        let statement = Bytes::from_static(br#"{"_type":"https://in-toto.io/Statement/v0.1"}"#);
        let layer = descriptor_json(&descriptor("application/vnd.in-toto+json", &statement));
        let attestation = ImageBuilder::new()
            .platform("unknown/unknown")
            .edit_manifest(move |manifest| manifest["layers"] = json!([layer]))
            .build()
            .with_blob(statement);
        let subject = subject.root.digest.to_string();
        self.image(&attestation).edit_last(|entry| {
            entry["annotations"] = json!({
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": subject,
            });
        })
    }

    /// Changes the JSON of the entry added last, as its platform.
    #[must_use]
    pub fn edit_last(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        self.entries.last_mut().map(edit);
        self
    }

    /// Computes the document.
    pub fn build(self) -> Image {
        let media_type = match self.family {
            Family::Oci => MediaType::OciIndex,
            Family::Docker => MediaType::DockerList,
        };
        let document = json!({ "schemaVersion": 2, "mediaType": media_type.as_str(), "manifests": self.entries });
        let index = Image::from_document(media_type.as_str(), document.to_string());
        self.images.iter().fold(index, Image::with_image)
    }
}

/// The descriptor of `content`.
pub fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: MediaType::parse(media_type),
        digest: Digest::of(Algorithm::Sha256, content),
        size: content.len() as u64,
        data: None,
        annotations: BTreeMap::new(),
    }
}

fn descriptor_json(descriptor: &Descriptor) -> Value {
    json!({ "mediaType": descriptor.media_type.as_str(), "digest": descriptor.digest, "size": descriptor.size })
}

fn platform_json(platform: &str) -> Value {
    let mut words = platform.split('/');
    let mut json = json!({ "os": words.next(), "architecture": words.next().unwrap_or_default() });
    if let Some(variant) = words.next() {
        json["variant"] = variant.into();
    }
    json
}

/// The platform this program was built for, in Go's words.
fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The annotation by which a layout names its tags (image-spec, annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// A skippable frame of four bytes (RFC 8878, 3.1.2).
const SKIPPABLE_FRAME: [u8; 12] = [0x5e, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, b's', b'k', b'i', b'p'];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    fn builder() -> LayerBuilder {
        LayerBuilder::new().dir("d").file("d/f", "content ".repeat(1000)).symlink("s", "d/f")
    }

    #[test]
    fn every_packing_unpacks_to_the_same_tar() {
        let plain = builder().packing(Packing::Stored).build();
        assert_eq!(plain.blob, plain.tar);
        let gzip = [None, Some(1000)].map(|member| Packing::Gzip { level: 6, member });
        for packing in gzip.into_iter().chain([Packing::OneBlock]) {
            let layer = builder().packing(packing).build();
            let mut tar = Vec::new();
            flate2::read::MultiGzDecoder::new(&layer.blob[..]).read_to_end(&mut tar).unwrap();
            assert_eq!((&tar, &layer.diff_id), (&plain.tar.to_vec(), &plain.diff_id));
        }
        for (frame, skippable) in [(None, false), (Some(777), false), (Some(4096), true)] {
            let layer = builder().packing(Packing::Zstd { level: 3, frame, skippable }).build();
            assert_eq!(zstd::decode_all(&layer.blob[..]).unwrap(), plain.tar);
        }
    }

    #[test]
    fn the_manifest_names_config_and_layers_by_digest_and_size() {
        for family in [Family::Oci, Family::Docker] {
            let image = ImageBuilder::new().family(family).platform("linux/arm/v7").layer(builder()).build();
            let (digest, media_type, bytes) = image.documents().next().unwrap();
            assert_eq!((digest, media_type), (&image.root().digest, &image.root().media_type));
            let manifest: Value = serde_json::from_slice(bytes).unwrap();
            let blobs: BTreeMap<String, &Bytes> = image.blobs().map(|(d, b)| (d.to_string(), b)).collect();
            for named in [&manifest["config"], &manifest["layers"][0]] {
                let blob = blobs[named["digest"].as_str().unwrap()];
                assert_eq!(named["size"], blob.len());
            }
            let config: Value = serde_json::from_slice(blobs[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
            assert_eq!(config["variant"], "v7");
            assert_eq!(config["rootfs"]["diff_ids"][0], image.layers()[0].diff_id.to_string());
        }
    }

    #[test]
    fn an_index_nests_and_carries_attestations() {
        let amd = ImageBuilder::new().platform("linux/amd64").layer(builder()).build();
        let arm = ImageBuilder::new().platform("linux/arm64/v8").layer(builder().file("x", "y")).build();
        let inner = IndexBuilder::new().image(&amd).attestation(&amd).build();
        let outer = IndexBuilder::new().family(Family::Docker).image(&inner).image(&arm).build();
        assert_eq!(outer.root().media_type, MediaType::DockerList);
        assert_eq!(outer.documents().count(), 5);
        let bytes = outer.documents().find(|(digest, ..)| **digest == outer.root().digest).unwrap().2;
        let value: Value = serde_json::from_slice(bytes).unwrap();
        assert!(value["manifests"][0].get("platform").is_none());
        assert_eq!(value["manifests"][1]["platform"]["variant"], "v8");
    }

    #[test]
    fn a_layout_keeps_the_images_that_were_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = ImageBuilder::new().layer(builder()).build();
        let second = ImageBuilder::new().build();
        first.write_layout(dir.path(), "one").unwrap();
        first.write_layout(dir.path(), "two").unwrap();
        second.write_layout(dir.path(), "two").unwrap();
        let index: Value = serde_json::from_slice(&std::fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        let tags: Vec<&Value> =
            index["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"][REF_NAME]).collect();
        assert_eq!(tags, ["one", "two"]);
        assert_eq!(index["manifests"][1]["digest"], second.root().digest.to_string());
        for (digest, bytes) in first.blobs() {
            assert_eq!(std::fs::read(dir.path().join("blobs/sha256").join(digest.hex())).unwrap(), *bytes);
        }
    }
}
