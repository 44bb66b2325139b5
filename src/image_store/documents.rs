//! The files that engines read of a store: lists of images and layers, and each image's documents.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use bytes::Bytes;
use serde::Serialize;

use crate::digest::{Algorithm, Digest};
use crate::image::Plan;

/// An image of the store, as shown to engines.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The digest of its configuration: its id in engines.
    pub config: Digest,
    /// Its manifest.
    pub manifest: Digest,
    /// Its full names, as `docker.io/library/alpine:3`.
    pub names: Vec<String>,
    /// When it was created, or added to the store.
    pub created: String,
    /// Its documents by their names in the store.
    pub documents: Vec<(String, Bytes)>,
    /// The layers, base first.
    pub layers: Vec<StoredLayer>,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct StoredLayer {
    /// Its id in engines.
    pub id: String,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The digest of its blob.
    pub blob: Digest,
    /// Bytes of its blob.
    pub blob_size: u64,
}

/// The ids that containers/image gives the layers with these diff_ids, base first: the digest of the tar for the first,
/// of the lower id and the tar for others.
pub fn layer_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        ids.push(match ids.last() {
            None => diff_id.hex().to_owned(),
            Some(below) => {
                Digest::of(Algorithm::Sha256, format!("{below}+{}", diff_id.hex()).as_bytes()).hex().to_owned()
            }
        });
    }
    ids
}

impl Stored {
    /// A resolved image, added at `added` (RFC 3339). `None` if a document is missing.
    pub fn new(plan: &Plan, names: Vec<String>, added: &str) -> Option<Self> {
        let text = |digest: &Digest| plan.documents.text(digest).map(|text| Bytes::copy_from_slice(text.as_bytes()));
        let manifest = text(&plan.manifest.digest)?;
        let mut documents = vec![
            (MANIFEST.to_owned(), manifest.clone()),
            (format!("{MANIFEST}-{}", plan.manifest.digest), manifest),
            (plan.config.digest.to_string(), text(&plan.config.digest)?),
        ];
        // Engines look up an image by the digest of its image index, too.
        if plan.root.digest != plan.manifest.digest {
            documents.push((format!("{MANIFEST}-{}", plan.root.digest), text(&plan.root.digest)?));
        }
        let diff_ids = &plan.configuration.diff_ids;
        let layers = layer_ids(diff_ids).into_iter().zip(diff_ids).zip(&plan.layers);
        let layers = layers.map(|((id, diff_id), layer)| StoredLayer {
            id,
            diff_id: diff_id.clone(),
            blob: layer.blob.digest.clone(),
            blob_size: layer.blob.size,
        });
        Some(Self {
            config: plan.config.digest.clone(),
            manifest: plan.manifest.digest.clone(),
            names,
            created: created(plan).unwrap_or_else(|| added.to_owned()),
            documents,
            layers: layers.collect(),
        })
    }
}

/// The creation time in an image's configuration, if engines can parse it.
fn created(plan: &Plan) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Times {
        created: Option<String>,
    }
    let times: Times = serde_json::from_str(plan.configuration.raw.get()).ok()?;
    times.created.filter(|text| text.parse::<jiff::Timestamp>().is_ok())
}

/// An entry of `images.json`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageEntry<'a> {
    id: &'a str,
    digest: &'a Digest,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    names: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<&'a str>,
    metadata: &'static str,
    big_data_names: Vec<&'a str>,
    big_data_sizes: BTreeMap<&'a str, usize>,
    big_data_digests: BTreeMap<&'a str, Digest>,
    created: &'a str,
}

/// An entry of `layers.json`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct LayerEntry<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    created: &'a str,
    compressed_diff_digest: &'a Digest,
    compressed_size: u64,
    diff_digest: &'a Digest,
    diff_size: u64,
}

/// `images.json`
pub(super) fn images_json<'a>(images: impl Iterator<Item = &'a Stored>) -> Bytes {
    let entries: Vec<_> = images
        .map(|image| ImageEntry {
            id: image.config.hex(),
            digest: &image.manifest,
            names: &image.names,
            layer: image.layers.last().map(|layer| layer.id.as_str()),
            metadata: "{}",
            big_data_names: image.documents.iter().map(|(name, _)| name.as_str()).collect(),
            big_data_sizes: image.documents.iter().map(|(name, bytes)| (name.as_str(), bytes.len())).collect(),
            big_data_digests: image
                .documents
                .iter()
                .map(|(name, bytes)| (name.as_str(), Digest::of(Algorithm::Sha256, bytes)))
                .collect(),
            created: &image.created,
        })
        .collect();
    serde_json::to_vec(&entries).expect("plain data").into()
}

/// `layers.json`; `size` returns the bytes of a layer's tar, if known.
pub(super) fn layers_json<'a>(images: impl Iterator<Item = &'a Stored>, size: impl Fn(&str) -> Option<u64>) -> Bytes {
    let (mut entries, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    for image in images {
        let mut parent = None;
        for layer in &image.layers {
            if seen.insert(layer.id.as_str()) {
                entries.push(LayerEntry {
                    id: &layer.id,
                    parent,
                    created: &image.created,
                    compressed_diff_digest: &layer.blob,
                    compressed_size: layer.blob_size,
                    diff_digest: &layer.diff_id,
                    // Without a size, all commands of an engine that list images fail.
                    diff_size: size(&layer.id).unwrap_or(layer.blob_size),
                });
            }
            parent = Some(layer.id.as_str());
        }
    }
    serde_json::to_vec(&entries).expect("plain data").into()
}

/// The content of a lock file: engines compare it with what it was when they read the list.
pub(super) fn lock_text(list: &[u8], generation: u64) -> Bytes {
    let text = Digest::of(Algorithm::Sha256, &[list, &generation.to_le_bytes()].concat());
    Bytes::copy_from_slice(text.hex().as_bytes())
}

/// The short name of a layer.
pub(super) fn link(layer: &str) -> String {
    // Its letters and digits are in every base32 alphabet.
    let hash = Digest::of(Algorithm::Sha256, format!("link of {layer}").as_bytes());
    let mut number = u128::from_str_radix(&hash.hex()[..32], 16).expect("a digest is hexadecimal");
    let mut name = String::with_capacity(LINK_LENGTH);
    for _ in 0..LINK_LENGTH {
        name.push(char::from(BASE32[(number % 32) as usize]));
        number /= 32;
    }
    name
}

/// The content of a layer's file `lower`: the short names of the layers below, nearest first; empty for the lowest.
pub(super) fn lower(below: &[StoredLayer]) -> String {
    let mut text = String::new();
    for layer in below.iter().rev() {
        let separator = if text.is_empty() { "" } else { ":" };
        let _ = write!(text, "{separator}l/{}", link(&layer.id));
    }
    text
}

/// The file name of a document in an image's directory.
pub(super) fn file_name(document: &str) -> String {
    let plain = |byte: u8| byte == b'.' || byte.is_ascii_digit() || byte.is_ascii_lowercase();
    if document.bytes().all(plain) {
        document.to_owned()
    } else {
        format!("={}", base64::engine::general_purpose::STANDARD.encode(document))
    }
}

const MANIFEST: &str = "manifest";
const LINK_LENGTH: usize = 26;
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn stored(layers: &[&str]) -> Stored {
        let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
        let layers = layer_ids(&diff_ids).into_iter().zip(diff_ids).map(|(id, diff_id)| StoredLayer {
            id,
            blob: digest(&format!("blob of {diff_id}")),
            diff_id,
            blob_size: 7,
        });
        Stored {
            config: digest("config"),
            manifest: digest("manifest"),
            names: vec!["docker.io/library/a:1".into()],
            created: "2026-01-02T03:04:05Z".into(),
            documents: vec![("manifest".into(), Bytes::from_static(b"{}"))],
            layers: layers.collect(),
        }
    }

    /// As `storageImageDestination` computes them; the numbers are those of podman 4.3.1 for two layers.
    #[test]
    fn layer_ids_are_those_of_containers_image() {
        let [a, b] = [digest("a"), digest("b")];
        let ids = layer_ids(&[a.clone(), b.clone(), b.clone()]);
        assert_eq!(ids[0], a.hex());
        assert_eq!(ids[1], Digest::of(Algorithm::Sha256, format!("{}+{}", a.hex(), b.hex()).as_bytes()).hex());
        assert_ne!(ids[1], ids[2], "the same layer once more is another one");
        assert!(layer_ids(&[]).is_empty());
    }

    #[test]
    fn layers_that_images_share_are_listed_once() {
        let (one, two) = (stored(&["base", "one"]), stored(&["base", "two"]));
        let text = layers_json([&one, &two].into_iter(), |id| (id == one.layers[0].id).then_some(1024));
        let listed: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), 3);
        assert_eq!(listed[0]["diff-size"], 1024);
        assert_eq!(listed[1]["diff-size"], 7, "that of its blob, until more is known");
        assert_eq!(listed[1]["parent"], one.layers[0].id);
        assert_eq!(listed[2]["parent"], one.layers[0].id);
        assert!(listed[0].get("parent").is_none());
    }

    #[test]
    fn an_image_without_layers_names_none() {
        let listed: serde_json::Value = serde_json::from_slice(&images_json([&stored(&[])].into_iter())).unwrap();
        assert!(listed[0].get("layer").is_none());
        assert_eq!(listed[0]["big-data-sizes"]["manifest"], 2);
    }

    #[test]
    fn names_of_documents_are_files_as_engines_look_for_them() {
        assert_eq!(file_name("manifest"), "manifest");
        assert_eq!(file_name("sha256:ab"), "=c2hhMjU2OmFi");
        assert_eq!(file_name("manifest-sha256:ab"), "=bWFuaWZlc3Qtc2hhMjU2OmFi");
    }

    #[test]
    fn a_short_name_has_26_letters_and_digits() {
        let (one, two) = (link("a"), link("b"));
        assert!(one.len() == 26 && one.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()), "{one}");
        assert_ne!(one, two);
        let layers = stored(&["1", "2", "3"]).layers;
        assert_eq!(lower(&layers[..2]), format!("l/{}:l/{}", link(&layers[1].id), link(&layers[0].id)));
        assert_eq!(lower(&[]), "");
    }
}
