//! The manifest of a SOCI index: which zTOC belongs to which layer of an image.
//!
//! Both versions are image manifests, told apart by the media type of the configuration. Version 2 is bound: an annotation of
//! the image's manifest has its digest. Version 1 refers to the image by `subject`, and nothing in the image says so.
//! `docs/formats.md` has the fields.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::LAYERS_LIMIT;
use super::entry::Entry;
use super::index_artifact::{ArtifactError, IndexArtifact};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;

/// The annotation of an image's manifest with the digest of its index.
pub const SOCI_INDEX: &str = "com.amazon.soci.index-digest";
/// `artifactType`, and media type of the configuration, of version 1.
pub const SOCI_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// The same of version 2.
pub const SOCI_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// Media type of what should be fetched when a container starts.
const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// Annotation of a zTOC: the blob of its layer.
const LAYER: &str = "com.amazon.soci.image-layer-digest";
/// Annotations of a zTOC: the media type of its layer, and how long its spans should be.
const LAYER_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
/// Annotation of an index: who has made it.
const TOOL: &str = "com.amazon.soci.build-tool-identifier";
/// The version of [`Prefetch`].
const PREFETCH_VERSION: &str = "1.0";
/// The most ranges of spans of one layer that are read.
const RANGES: usize = 10_000;

/// A SOCI index.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SociIndex {
    /// The zTOC of a layer, by the layer's blob.
    ztocs: BTreeMap<String, Descriptor>,
    /// The list of what is fetched at the start, likewise.
    prefetch: BTreeMap<String, Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Entry,
    layers: Vec<Entry>,
    #[serde(default)]
    subject: Option<Entry>,
}

impl SociIndex {
    /// Reads the manifest of an index: of version 1 for `subject`, if there is one, of any version otherwise. Blobs of other
    /// media types are left out, and of several of one layer the first counts.
    ///
    /// # Errors
    /// [`ArtifactError`]
    pub fn parse(bytes: &[u8], subject: Option<&Digest>) -> Result<Self, ArtifactError> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| ArtifactError::NotAManifest { why: error.to_string() })?;
        let kind = &*manifest.config.media_type;
        if kind != SOCI_V1 && (subject.is_some() || kind != SOCI_V2) {
            return Err(ArtifactError::OtherType { kind: kind.to_owned() });
        }
        let found = manifest.subject.map(|subject| subject.digest);
        if subject.is_some() && found.as_ref() != subject {
            return Err(ArtifactError::OtherSubject { subject: found });
        }
        if manifest.layers.len() > 2 * LAYERS_LIMIT {
            return Err(ArtifactError::TooMany { count: manifest.layers.len() });
        }
        let mut index = Self::default();
        for entry in manifest.layers {
            let Some(Ok(layer)) = entry.annotations.get(LAYER).map(|digest| digest.parse::<Digest>()) else { continue };
            let blobs = if entry.media_type == PREFETCH { &mut index.prefetch } else { &mut index.ztocs };
            blobs.entry(layer.to_string()).or_insert_with(|| entry.descriptor());
        }
        Ok(index)
    }

    /// The manifest of an index of version 1 for `subject`, which has these zTOCs: each with its layer. Spans should have
    /// `span_size` decoded bytes.
    pub fn manifest(subject: &Descriptor, ztocs: &[(&Descriptor, Descriptor)], span_size: u64) -> Vec<u8> {
        let layers = ztocs.iter().map(|(layer, ztoc)| {
            let mut entry = Entry::described(ztoc);
            entry["annotations"] = json!({
                LAYER: layer.digest.to_string(),
                LAYER_TYPE: layer.media_type.as_str(),
                SPAN_SIZE: span_size.to_string(),
            });
            entry
        });
        let (config, bytes) = IndexArtifact::config();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "config": { "mediaType": SOCI_V1, "digest": config.to_string(), "size": bytes.len() },
            "layers": layers.collect::<Vec<_>>(),
            "subject": Entry::described(subject),
            "annotations": { TOOL: "peelfs" },
        });
        manifest.to_string().into_bytes()
    }

    /// The entry of a list for its `manifest`.
    pub fn entry(manifest: &[u8]) -> Value {
        Entry::listed(manifest, SOCI_V1, json!({ TOOL: "peelfs" }))
    }

    /// The zTOC of the layer with this blob.
    pub fn ztoc(&self, layer: &Digest) -> Option<&Descriptor> {
        self.ztocs.get(&layer.to_string())
    }

    /// What of the layer with this blob should be fetched when a container starts.
    pub fn prefetch(&self, layer: &Digest) -> Option<&Descriptor> {
        self.prefetch.get(&layer.to_string())
    }
}

/// The spans of a layer that should be fetched when a container starts, first and last of each range.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SociPrefetch(pub Vec<(u32, u32)>);

#[derive(Deserialize)]
struct Prefetch {
    version: String,
    prefetch_spans: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    start_span: u32,
    end_span: u32,
    #[serde(default)]
    priority: i64,
}

impl SociPrefetch {
    /// Reads the list; the ranges to fetch first come first.
    ///
    /// # Errors
    /// [`ArtifactError::NotAPrefetchList`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let not_one = |why: String| ArtifactError::NotAPrefetchList { why };
        let mut list: Prefetch = serde_json::from_slice(bytes).map_err(|error| not_one(error.to_string()))?;
        if list.version != PREFETCH_VERSION {
            return Err(not_one(format!("it has version `{}`", list.version.escape_debug())));
        }
        list.prefetch_spans.truncate(RANGES);
        list.prefetch_spans.sort_by_key(|range| range.priority);
        Ok(Self(list.prefetch_spans.iter().map(|range| (range.start_span, range.end_span)).collect()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn blob(media_type: &str, name: &str, layer: &str) -> Value {
        let annotations = json!({ LAYER: digest(layer).to_string() });
        json!({ "mediaType": media_type, "digest": digest(name).to_string(), "size": 9, "annotations": annotations })
    }

    fn manifest(kind: &str) -> Value {
        json!({
            "schemaVersion": 2,
            "config": { "mediaType": kind, "digest": digest("{}").to_string(), "size": 2 },
            "layers": [
                blob("application/octet-stream", "one's", "one"),
                blob("application/octet-stream", "two's", "two"),
                blob("application/octet-stream", "another of two's", "two"),
                blob(PREFETCH, "start of one's", "one"),
                json!({ "mediaType": "application/octet-stream", "digest": digest("x").to_string(), "size": 9 }),
            ],
        })
    }

    fn parse(manifest: &Value, subject: Option<&Digest>) -> Result<SociIndex, ArtifactError> {
        SociIndex::parse(manifest.to_string().as_bytes(), subject)
    }

    #[test]
    fn layers_have_their_ztocs() {
        let index = parse(&manifest(SOCI_V2), None).unwrap();
        let of = |layer: &str| index.ztoc(&digest(layer)).map(|ztoc| ztoc.digest.clone());
        assert_eq!([of("one"), of("two"), of("three")], [Some(digest("one's")), Some(digest("two's")), None]);
        assert_eq!(index.prefetch(&digest("one")).unwrap().digest, digest("start of one's"));
        assert!(index.prefetch(&digest("two")).is_none());
        assert!(matches!(parse(&manifest("application/x"), None), Err(ArtifactError::OtherType { .. })));
    }

    #[test]
    fn an_index_of_version_1_refers_to_its_image() {
        let image = digest("image");
        assert!(matches!(parse(&manifest(SOCI_V1), Some(&image)), Err(ArtifactError::OtherSubject { subject: None })));
        let refers = |kind: &str, to: &str| {
            let mut manifest = manifest(kind);
            manifest["subject"] = json!({ "mediaType": "a", "digest": digest(to).to_string(), "size": 1 });
            parse(&manifest, Some(&image))
        };
        assert!(refers(SOCI_V1, "image").is_ok());
        assert!(matches!(refers(SOCI_V1, "other"), Err(ArtifactError::OtherSubject { subject: Some(_) })));
        assert!(matches!(refers(SOCI_V2, "image"), Err(ArtifactError::OtherType { .. })));
    }

    #[test]
    fn what_to_fetch_first_comes_first() {
        let list = json!({ "version": "1.0", "prefetch_spans": [
            { "start_span": 3, "end_span": 4, "priority": 2 }, { "start_span": 7, "end_span": 7 },
        ] });
        let parse = |list: &Value| SociPrefetch::parse(list.to_string().as_bytes());
        assert_eq!(parse(&list).unwrap().0, [(7, 7), (3, 4)]);
        assert!(parse(&json!({ "version": "2.0", "prefetch_spans": [] })).is_err());
        assert!(parse(&json!({ "version": "1.0", "prefetch_spans": [{ "start_span": -1, "end_span": 1 }] })).is_err());
    }
}
