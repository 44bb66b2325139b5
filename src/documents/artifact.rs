//! Artifacts: manifests whose layers are files, or tars of files, rather than changes of a root file system.
//!
//! How a layer is read is decided by its media type and annotations, as the specification of its kind has it:
//!
//! - CNCF ModelPack (model-spec, docs/spec.md): `….raw` is one file, `….tar`, `….tar+gzip` and `….tar+zstd` are unpacked;
//!   `org.cncf.model.filepath` is the path, `org.cncf.model.file.metadata+json` has mode, owner and time. Until 2025 both had
//!   the prefix `org.cnai.model.`.
//! - Docker's models (`application/vnd.docker.ai.…`): files, with the same annotations; types with `.tar` are unpacked.
//! - ORAS: files named by `org.opencontainers.image.title`; a directory is a tar with `io.deis.oras.content.unpack`, and
//!   `io.deis.oras.content.digest` is the digest of its tar. Its Python client (oras 0.2) says so by the media type alone, of a
//!   layer whose title is no name of an archive.
//! - Helm: the chart is unpacked, as by `helm pull --untar`; its provenance file is named as by `helm pull --prov`.
//!
//! A layer of any other type is one file, also if it is a tar: tools label files with types of tars.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Manifest;
use crate::descriptor::{Compression, Descriptor, MediaType};
use crate::digest::Digest;

use super::DocumentError;

/// A manifest that is not one of an image (image-spec, manifest.md, "Guidelines for Artifact Usage").
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Artifact {
    /// [`MediaType::OciManifest`] or [`MediaType::DockerManifest`].
    pub media_type: MediaType,
    /// `artifactType`, or the media type of its configuration.
    pub artifact_type: MediaType,
    /// Its configuration: any blob, often the empty descriptor.
    pub config: Descriptor,
    /// Its layers, of any type.
    pub layers: Vec<Descriptor>,
    /// `annotations` of the manifest itself.
    pub annotations: BTreeMap<String, String>,
    /// It claims to be an image, and this is why it is none.
    pub no_image: Option<DocumentError>,
}

/// What an artifact is, as far as peelfs knows its specification.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ArtifactKind {
    /// A CNCF ModelPack.
    ModelPack,
    /// A model of Docker Model Runner.
    DockerModel,
    /// A Helm chart.
    HelmChart,
    /// Files, as ORAS and others push them.
    Files,
}

/// What a layer of an artifact is shown as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Part {
    /// One file, the blob itself.
    File(FileNote),
    /// The files in a tar.
    Tar {
        /// Its compression.
        compression: Compression,
        /// The digest of the decoded tar, if the manifest has it.
        diff_id: Option<Digest>,
    },
}

/// What a manifest says of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileNote {
    /// The path as written, or a name made from the digest.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in nanoseconds since 1970.
    pub mtime: i128,
    /// Why the note on its metadata is not used, if it cannot be.
    pub unusable: Option<String>,
}

impl ArtifactKind {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ModelPack => "ModelPack",
            Self::DockerModel => "Docker model",
            Self::HelmChart => "Helm chart",
            Self::Files => "files",
        }
    }
}

impl Artifact {
    /// The layers of an image, to be shown as files.
    pub fn of_image(image: Manifest) -> Self {
        let Manifest { media_type, config, layers, annotations } = image;
        let artifact_type = config.media_type.clone();
        Self { media_type, artifact_type, config, layers, annotations, no_image: None }
    }

    /// Its kind, by the types of the artifact, its configuration and its layers.
    pub fn kind(&self) -> ArtifactKind {
        let layers = self.layers.iter().map(|layer| &layer.media_type);
        let types = [&self.artifact_type, &self.config.media_type].into_iter().chain(layers);
        let known = types.filter_map(|media_type| {
            let has = |prefixes: &[&str]| prefixes.iter().any(|prefix| media_type.as_str().starts_with(prefix));
            match () {
                () if has(&MODEL_PACK) => Some(ArtifactKind::ModelPack),
                () if has(&[DOCKER_MODEL]) => Some(ArtifactKind::DockerModel),
                () if has(&[HELM]) => Some(ArtifactKind::HelmChart),
                () => None,
            }
        });
        known.into_iter().next().unwrap_or(ArtifactKind::Files)
    }

    /// What `layer` is shown as; `config` is the configuration, if it is known.
    pub fn part(&self, layer: &Descriptor, config: &str) -> Part {
        let media_type = layer.media_type.as_str();
        let note = |key: &str| layer.annotations.get(key).filter(|value| !value.is_empty());
        if note(UNPACK).is_some_and(|value| value == "true") {
            let diff_id = note(UNPACKED_DIGEST).and_then(|digest| digest.parse().ok());
            return Part::Tar { compression: compression_of(media_type).unwrap_or(Compression::Gzip), diff_id };
        }
        if media_type == ORAS_DIRECTORY && note(TITLE).is_some_and(|title| !title.ends_with("gz")) {
            return Part::Tar { compression: Compression::Gzip, diff_id: None };
        }
        let packs_tars = MODEL_PACK.iter().chain([&DOCKER_MODEL, &HELM_CHART]);
        if packs_tars.into_iter().any(|prefix| media_type.starts_with(prefix))
            && let Some(compression) = compression_of(media_type)
        {
            return Part::Tar { compression, diff_id: None };
        }
        let named = FILE_PATH.iter().find_map(|key| note(key)).or_else(|| note(TITLE)).cloned();
        let path = named.or_else(|| provenance_of(media_type, config)).unwrap_or_else(|| nameless(layer));
        let usual = FileNote { path, mode: 0o644, uid: 0, gid: 0, mtime: 0, unusable: None };
        let Some(metadata) = METADATA.iter().find_map(|key| note(key)) else { return Part::File(usual) };
        let read = || {
            let metadata = serde_json::from_str::<Metadata>(metadata).map_err(|error| error.to_string())?;
            let mtime = metadata.mtime().map_err(|error| error.to_string())?;
            Ok((metadata, mtime))
        };
        Part::File(match read() {
            Ok((Metadata { mode, uid, gid, .. }, mtime)) => {
                FileNote { mode: (mode.unwrap_or(0o644) & 0o7777) as u16, uid, gid, mtime, ..usual }
            }
            Err(why) => FileNote { unusable: Some(why), ..usual },
        })
    }
}

/// `org.cncf.model.file.metadata+json` (model-spec, docs/annotations.md); what is left out of it has no say here.
#[derive(Deserialize)]
struct Metadata {
    mode: Option<u32>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    mtime: Option<String>,
}

impl Metadata {
    /// The time in nanoseconds since 1970.
    fn mtime(&self) -> Result<i128, jiff::Error> {
        self.mtime.as_ref().map_or(Ok(0), |mtime| Ok(mtime.parse::<jiff::Timestamp>()?.as_nanosecond()))
    }
}

/// The compression of a tar, by the end of its media type; `None` if it is none.
fn compression_of(media_type: &str) -> Option<Compression> {
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| media_type.ends_with(suffix));
    match () {
        () if ends(&[".tar"]) => Some(Compression::Stored),
        () if ends(&[".tar+gzip", ".tar.gzip"]) => Some(Compression::Gzip),
        () if ends(&[".tar+zstd", ".tar.zstd"]) => Some(Compression::Zstd),
        () => None,
    }
}

/// The name that `helm pull --prov` gives to a provenance file.
fn provenance_of(media_type: &str, config: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Chart {
        name: String,
        version: String,
    }
    let chart =
        media_type.starts_with(HELM_PROVENANCE).then(|| serde_json::from_str::<Chart>(config).ok()).flatten()?;
    let name = format!("{}-{}.tgz.prov", chart.name, chart.version);
    (!name.contains(['/', '\0'])).then_some(name)
}

/// A name for a file without one.
fn nameless(layer: &Descriptor) -> String {
    let media_type = layer.media_type.as_str();
    let extension = EXTENSIONS.iter().find(|(end, _)| media_type.ends_with(end)).or_else(|| {
        let within = |(part, _): &&(&str, &str)| part.starts_with('.') && media_type.contains(&format!("{part}."));
        EXTENSIONS.iter().find(within)
    });
    format!("{}{}", layer.digest.hex(), extension.map_or("", |(_, extension)| extension))
}

/// Types of CNCF ModelPack, and those before it was given to the CNCF's model-spec project.
const MODEL_PACK: [&str; 2] = ["application/vnd.cncf.model.", "application/vnd.cnai.model."];
const DOCKER_MODEL: &str = "application/vnd.docker.ai.";
const HELM: &str = "application/vnd.cncf.helm.";
const HELM_CHART: &str = "application/vnd.cncf.helm.chart.content.";
const HELM_PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.";
/// The annotation that marks a tar to be unpacked (oras-go, content/file).
const UNPACK: &str = "io.deis.oras.content.unpack";
/// The digest of that tar.
const UNPACKED_DIGEST: &str = "io.deis.oras.content.digest";
/// The type that oras-py gives to a directory, and to nothing else by itself.
const ORAS_DIRECTORY: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TITLE: &str = "org.opencontainers.image.title";
const FILE_PATH: [&str; 2] = ["org.cncf.model.filepath", "org.cnai.model.filepath"];
const METADATA: [&str; 2] = ["org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json"];
/// Extensions of files without a name, by how their media types end; those with a dot also before a version.
const EXTENSIONS: [(&str, &str); 20] = [
    (".tar+gzip", ".tar.gz"),
    (".tar.gzip", ".tar.gz"),
    (".tar+zstd", ".tar.zst"),
    (".tar.zstd", ".tar.zst"),
    (".tar", ".tar"),
    (".gguf", ".gguf"),
    (".mmproj", ".mmproj"),
    (".safetensors", ".safetensors"),
    (".dduf", ".dduf"),
    (".jinja", ".jinja"),
    (".license", ".txt"),
    ("+json", ".json"),
    ("/json", ".json"),
    ("/yaml", ".yaml"),
    ("+yaml", ".yaml"),
    ("/wasm", ".wasm"),
    ("+wasm", ".wasm"),
    ("/markdown", ".md"),
    ("/plain", ".txt"),
    ("+gzip", ".gz"),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn layer(media_type: &str, annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let digest = Digest::of(Algorithm::Sha256, b"blob");
        Descriptor { media_type: MediaType::parse(media_type), digest, size: 4, data: None, annotations }
    }

    fn artifact(artifact_type: &str, layers: Vec<Descriptor>) -> Artifact {
        Artifact {
            media_type: MediaType::OciManifest,
            artifact_type: MediaType::parse(artifact_type),
            config: layer("application/vnd.oci.empty.v1+json", &[]),
            layers,
            annotations: BTreeMap::new(),
            no_image: None,
        }
    }

    fn part(media_type: &str, annotations: &[(&str, &str)], config: &str) -> Part {
        let of = artifact("application/x", vec![layer(media_type, annotations)]);
        of.part(&of.layers[0], config)
    }

    #[test]
    fn tars_are_unpacked_where_their_kind_says_so() {
        let oras = [("io.deis.oras.content.unpack", "true"), ("org.opencontainers.image.title", "dir")];
        let table = [
            ("application/vnd.cncf.model.weight.v1.tar", &[][..], Some(Compression::Stored)),
            ("application/vnd.cncf.model.doc.v1.tar+gzip", &[], Some(Compression::Gzip)),
            ("application/vnd.cncf.model.code.v1.tar+zstd", &[], Some(Compression::Zstd)),
            ("application/vnd.cnai.model.layer.v1.tar", &[], Some(Compression::Stored)),
            ("application/vnd.docker.ai.vllm.config.tar", &[], Some(Compression::Stored)),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", &[], Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &oras, Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &oras[1..], Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &[("org.opencontainers.image.title", "a.tgz")], None),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &[], None),
            ("application/vnd.oci.image.layer.v1.tar", &[("org.opencontainers.image.title", "a.bin")], None),
            ("application/vnd.cncf.model.weight.v1.raw", &[], None),
            ("application/x-tar", &[], None),
        ];
        for (media_type, annotations, expected) in table {
            let found = match part(media_type, annotations, "") {
                Part::Tar { compression, .. } => Some(compression),
                Part::File(_) => None,
            };
            assert_eq!(found, expected, "{media_type}");
        }
    }

    #[test]
    fn a_files_name_is_what_its_annotations_say() {
        let chart = r#"{"name":"web","version":"1.2.3"}"#;
        let (path, title) = (("org.cncf.model.filepath", "w/a.bin"), ("org.opencontainers.image.title", "b.bin"));
        let hex = "fa2c8cc4f28176bbeed4b736df569a34c79cd3723e9ec42f9674b4d46ac6b8b8";
        let table = [
            ("application/x", &[path, title][..], "w/a.bin".to_owned()),
            ("application/x", &[title], "b.bin".to_owned()),
            ("application/x", &[("org.cnai.model.filepath", "old")], "old".to_owned()),
            ("application/x", &[("org.opencontainers.image.title", "")], hex.to_owned()),
            ("application/vnd.docker.ai.gguf.v3", &[], format!("{hex}.gguf")),
            ("application/vnd.docker.ai.safetensors", &[], format!("{hex}.safetensors")),
            ("application/vnd.cncf.model.weight.v1.gguf", &[], format!("{hex}.gguf")),
            ("application/vnd.in-toto+json", &[], format!("{hex}.json")),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &[], format!("{hex}.tar.gz")),
            ("application/vnd.cncf.helm.chart.provenance.v1.prov", &[], "web-1.2.3.tgz.prov".to_owned()),
        ];
        for (media_type, annotations, expected) in table {
            let Part::File(file) = part(media_type, annotations, chart) else { panic!("{media_type}") };
            assert_eq!(file.path, expected, "{media_type}");
            assert_eq!((file.mode, file.mtime), (0o644, 0));
        }
    }

    #[test]
    fn metadata_is_taken_from_its_annotation() {
        let metadata =
            r#"{"name":"a","mode":33261,"uid":7,"gid":8,"size":4,"mtime":"2025-01-02T03:04:05.5Z","typeflag":48}"#;
        let of = |metadata| match part("application/x", &[("org.cncf.model.file.metadata+json", metadata)], "") {
            Part::File(file) => file,
            Part::Tar { .. } => panic!("a file"),
        };
        let file = of(metadata);
        assert_eq!((file.mode, file.uid, file.gid), (0o755, 7, 8));
        assert_eq!(file.mtime, 1_735_787_045_500_000_000);
        let file = of("{\"mode\":\"rw\"}");
        assert!(file.mode == 0o644 && file.unusable.is_some());
    }

    #[test]
    fn kinds_are_told_by_any_of_their_types() {
        let of = |artifact_type: &str, layer_type: &str| artifact(artifact_type, vec![layer(layer_type, &[])]).kind();
        assert_eq!(of("application/vnd.cncf.model.manifest.v1+json", "x/y"), ArtifactKind::ModelPack);
        assert_eq!(of("x/y", "application/vnd.docker.ai.gguf.v3"), ArtifactKind::DockerModel);
        assert_eq!(of("application/vnd.cncf.helm.config.v1+json", "x/y"), ArtifactKind::HelmChart);
        assert_eq!(of("x/y", "application/vnd.oci.image.layer.v1.tar"), ArtifactKind::Files);
    }
}
