//! What is shown of a reference other than an image's root file system: the files of an artifact, or an image layout.
//!
//! Both are layers like those of an image: one for each blob, which is one file or a tar. So whatever reads, verifies, caches
//! and mounts an image does the same with them.

use std::collections::HashMap;
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

/// A file that is not shown, or not under the name that the manifest gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShownOtherwise {
    /// The number of its layer, from 1.
    pub number: usize,
    /// The path in the manifest.
    pub path: Vec<u8>,
    /// The path under which it is shown, if that is another one.
    pub shown_as: Option<Vec<u8>>,
    /// The number of the layer whose file is shown in its place, or in that of a directory that it is in.
    pub hidden_by: Option<usize>,
}

/// The files among these layers that are shown otherwise than the manifest says. What is in tars is not known here.
pub fn shown_otherwise(layers: &[LayerRef]) -> Vec<ShownOtherwise> {
    let files = (1..).zip(layers).filter_map(|(number, layer)| Some((number, &**layer.file()?)));
    let files: Vec<(usize, &NamedFile, Vec<u8>)> =
        files.map(|(number, file)| (number, file, file.shown_path())).collect();
    let last: HashMap<&[u8], usize> = files.iter().map(|(number, _, shown)| (&**shown, *number)).collect();
    let above = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/');
    let found = files.iter().filter_map(|(number, file, shown)| {
        let paths = std::iter::successors(Some(&**shown), |path| Some(&path[..above(path)?]));
        let hidden_by = paths.filter_map(|path| last.get(path).copied()).find(|by| by > number);
        let shown_as = (file.path() != &**shown).then(|| shown.clone());
        let is_otherwise = hidden_by.is_some() || shown_as.is_some();
        is_otherwise.then(|| ShownOtherwise { number: *number, path: file.path().to_vec(), shown_as, hidden_by })
    });
    found.collect()
}

/// What to tell the user of files that are shown otherwise: those that are hidden, and those whose names lead out of the
/// artifact.
pub(super) fn notes(layers: &[LayerRef], reference: &str) -> Vec<String> {
    let all = shown_otherwise(layers);
    let name = |path: &[u8]| format!("`{}`", path.escape_ascii());
    let hidden = |file: &ShownOtherwise| {
        Some(format!("{} of layer {} by layer {}", name(&file.path), file.number, file.hidden_by?))
    };
    let renamed = |file: &ShownOtherwise| {
        let leads_out = file.path.split(|byte| *byte == b'/').any(|part| part == b"..");
        Some(format!("{} as {}", name(&file.path), name(file.shown_as.as_ref().filter(|_| leads_out)?)))
    };
    let listed = |of: &dyn Fn(&ShownOtherwise) -> Option<String>| {
        let told: Vec<String> = all.iter().filter_map(of).collect();
        let more = told.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        (!told.is_empty()).then(|| format!("{}{more}", told[..told.len().min(NAMED)].join(", ")))
    };
    let hidden = listed(&hidden).map(|told| {
        format!("files of {reference} are hidden by later ones: {told}; `peelfs mount --as-layout` shows every blob")
    });
    let renamed = listed(&renamed)
        .map(|told| format!("names of {reference} lead out of it, and files are shown within it: {told}"));
    hidden.into_iter().chain(renamed).collect()
}

/// Files named in a note.
const NAMED: usize = 3;

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
