//! What is shown of a reference other than an image's root file system: the files of an artifact, or an image layout.
//!
//! Both are layers like those of an image: one for each blob, which is one file or a tar. So whatever reads, verifies, caches
//! and mounts an image does the same with them.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::content::{LayerRef, Payload};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::documents::{Artifact, FileNote, Part};
use crate::layer::{LayerTree, Limits, NameError, NamedFile, Timestamp};
use crate::platform::Platform;

/// What is shown of a reference.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum View {
    /// The root file system of an image, or the files of an artifact.
    #[default]
    Auto,
    /// The root file system of an image; artifacts are refused.
    Image,
    /// The layers as files, also those of an image.
    Artifact,
    /// An OCI image layout of what [`View::Auto`] shows.
    Layout {
        /// The name of the image in the layout. It stays when a process takes over a mount by the image's digest.
        name: Box<str>,
    },
}

/// The layers of an artifact, whose configuration is `config`.
///
/// # Errors
/// The number of the layer whose file cannot be shown, from 0, and why.
pub(super) fn layers(artifact: &Artifact, config: &str) -> Result<Vec<LayerRef>, (usize, NameError)> {
    let mut names = LayerTree::new(Limits::default());
    let layer = |(number, blob): (usize, &Descriptor)| {
        let (diff_id, payload) = match artifact.part(blob, config) {
            Part::Tar { compression, diff_id } => (diff_id, Payload::Tar(compression)),
            Part::File(note) => {
                let file = file(&note, blob, &mut names).map_err(|cause| (number, cause))?;
                (Some(blob.digest.clone()), Payload::File(Arc::new(file)))
            }
        };
        Ok(LayerRef { blob: blob.clone(), diff_id, payload, soci: None })
    };
    artifact.layers.iter().enumerate().map(layer).collect()
}

fn file(note: &FileNote, blob: &Descriptor, names: &mut LayerTree) -> Result<NamedFile, NameError> {
    if let Some(why) = &note.unusable {
        tracing::warn!(layer = %blob.digest, path = note.path, why, "the metadata of a file cannot be used");
    }
    let seconds = i64::try_from(note.mtime.div_euclid(SECOND)).unwrap_or(0);
    let nanos = u32::try_from(note.mtime.rem_euclid(SECOND)).expect("a remainder of 10⁹");
    NamedFile::new(note.path.as_bytes(), (note.mode, note.uid, note.gid), Timestamp { seconds, nanos }, names)
}

/// A manifest for an image layout.
pub(super) struct Listed<'a> {
    /// The manifest.
    pub(super) manifest: &'a Descriptor,
    /// Its text.
    pub(super) text: &'a str,
    /// Its platform, if it is stated.
    pub(super) platform: Option<&'a Platform>,
    /// Its name in the layout.
    pub(super) name: &'a str,
}

/// The files of an image layout (image-spec, image-layout.md) that has one manifest and the blobs that it lists.
pub(super) fn layout(listed: &Listed<'_>, blobs: Vec<Descriptor>) -> Vec<LayerRef> {
    let entry = entry(listed);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciIndex.as_str(),
        "manifests": [entry],
    });
    let text = |text: String| {
        let (data, media_type) = (Bytes::from(text), MediaType::parse("application/json"));
        let (digest, size) = (Digest::of(Algorithm::Sha256, &data), data.len() as u64);
        Descriptor { media_type, digest, size, data: Some(data), annotations: Default::default() }
    };
    let at_root = [("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })), ("index.json", index)];
    let at_root = at_root.map(|(name, value)| (name.to_owned(), text(value.to_string())));
    let data = Some(Bytes::copy_from_slice(listed.text.as_bytes()));
    let manifest = Descriptor { data, ..listed.manifest.clone() };
    let mut files: Vec<(String, Descriptor)> = at_root.into();
    for blob in [manifest].into_iter().chain(blobs) {
        let path = format!("blobs/{}/{}", blob.digest.algorithm().name(), blob.digest.hex());
        // One blob may be in a manifest several times.
        if !files.iter().any(|(known, _)| *known == path) {
            files.push((path, blob));
        }
    }
    let layer = |(path, blob): (String, Descriptor)| {
        let mut names = LayerTree::new(Limits::default());
        let file = NamedFile::new(path.as_bytes(), (0o644, 0, 0), Timestamp::default(), &mut names);
        let payload = Payload::File(Arc::new(file.expect("a path of a layout")));
        LayerRef { diff_id: Some(blob.digest.clone()), blob, payload, soci: None }
    };
    files.into_iter().map(layer).collect()
}

/// The manifest's entry in `index.json`.
fn entry(Listed { manifest, text, platform, name }: &Listed<'_>) -> Value {
    let Descriptor { media_type, digest, size, .. } = manifest;
    let mut entry = json!({
        "mediaType": media_type.as_str(),
        "digest": digest.to_string(),
        "size": size,
        "annotations": { "org.opencontainers.image.ref.name": name },
    });
    if let Some(platform) = platform {
        entry["platform"] = json!({ "os": platform.os(), "architecture": platform.architecture() });
        if let Some(variant) = platform.variant() {
            entry["platform"]["variant"] = variant.into();
        }
    }
    let written: Value = serde_json::from_str(text).unwrap_or_default();
    if let Some(artifact_type) = written.get("artifactType") {
        entry["artifactType"] = artifact_type.clone();
    }
    entry
}

const SECOND: i128 = 1_000_000_000;
