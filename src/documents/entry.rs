//! Descriptors in lists that others have written: read leniently, since one that is not understood is only left out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};

/// A descriptor of an artifact's manifest or of a list of referrers (image-spec, descriptor.md).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `mediaType`, as it is written.
    pub media_type: String,
    /// `digest`
    pub digest: Digest,
    /// `size`, in bytes.
    pub size: u64,
    /// `artifactType`
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// `annotations`
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Entry {
    /// What it names, without its annotations.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(MediaType::parse(&self.media_type), self.digest.clone(), self.size)
    }

    /// The entry of an artifact's manifest for `of`.
    pub(super) fn described(of: &Descriptor) -> Value {
        json!({ "mediaType": of.media_type.as_str(), "digest": of.digest.to_string(), "size": of.size })
    }

    /// The entry of a list of referrers for `manifest`, an artifact of type `kind`.
    pub(super) fn listed(manifest: &[u8], kind: &str, annotations: Value) -> Value {
        json!({
            "mediaType": MediaType::OciManifest.as_str(),
            "digest": Digest::of(Algorithm::Sha256, manifest).to_string(),
            "size": manifest.len(),
            "artifactType": kind,
            "annotations": annotations,
        })
    }
}
