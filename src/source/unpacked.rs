//! Images that an engine has unpacked: layers are directories, and their tars are [rebuilt](super::rebuilt).
//!
//! Manifests name compressed blobs, which nothing can rebuild. So this module writes a manifest of its own: the image's
//! configuration, and layers that are tars, named by the diff_ids of the configuration. What is read is verified as any
//! image is: the configuration by its digest, each layer by its diff_id.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::local::{Blobs, LocalSource, Piece};
use super::rebuilt::{Ingredients, RebuiltTar};
use super::spool::Spool;
use super::{Rebuilt, SourceError};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::sync::lock;

/// An image in pieces.
pub(super) struct Unpacked {
    manifest: Bytes,
    config: (Digest, Bytes),
    layers: HashMap<Digest, UnpackedLayer>,
    of: Rebuilt,
}

/// A layer, and its size if that is known.
pub(super) struct LayerFiles {
    pub(super) diff_id: Digest,
    pub(super) size: Option<u64>,
    pub(super) of: Ingredients,
}

struct UnpackedLayer {
    size: u64,
    of: Ingredients,
    /// Made when it is first read.
    tar: Mutex<Option<Arc<RebuiltTar>>>,
}

impl Unpacked {
    /// An image with this configuration, whose digest is `config`.
    ///
    /// # Errors
    /// [`SourceError`] if the size of a layer is unknown, and cannot be found out.
    pub(super) fn new(
        (config, text): (Digest, Bytes),
        layers: Vec<LayerFiles>,
        store: PathBuf,
        id: String,
        original: Option<Digest>,
    ) -> Result<Self, SourceError> {
        let mut entries = Vec::with_capacity(layers.len());
        let mut by_digest = HashMap::new();
        for LayerFiles { diff_id, size, of } in layers {
            let size = size.map_or_else(|| of.size(), Ok)?;
            entries.push(entry("application/vnd.oci.image.layer.v1.tar", &diff_id, size));
            by_digest.insert(diff_id, UnpackedLayer { size, of, tar: Mutex::new(None) });
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "config": entry("application/vnd.oci.image.config.v1+json", &config, text.len() as u64),
            "layers": entries,
        });
        let of = Rebuilt { store, image: id, manifest: original };
        Ok(Self { manifest: manifest.to_string().into(), config: (config, text), layers: by_digest, of })
    }

    /// The digest of the manifest that was written for it.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.manifest)
    }

    /// The source of this image, which the user called `name`.
    pub(super) fn into_source(self, name: String, spool: &Spool) -> LocalSource {
        let root = Descriptor::new(MediaType::OciManifest, self.digest(), self.manifest.len() as u64);
        let blobs = UnpackedBlobs { config: self.config, layers: self.layers, spool: spool.clone() };
        LocalSource::new(name, root, Some(self.manifest), blobs).rebuilt(self.of)
    }
}

fn entry(media_type: &str, digest: &Digest, size: u64) -> serde_json::Value {
    serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size })
}

struct UnpackedBlobs {
    config: (Digest, Bytes),
    layers: HashMap<Digest, UnpackedLayer>,
    spool: Spool,
}

impl Blobs for UnpackedBlobs {
    fn open(&self, blob: &Descriptor) -> Result<Option<Piece>, SourceError> {
        if blob.digest == self.config.0 {
            return Ok(Some(Piece::bytes(&self.config.1, "the configuration")));
        }
        let Some(layer) = self.layers.get(&blob.digest) else { return Ok(None) };
        let mut tar = lock(&layer.tar);
        let made = match &*tar {
            Some(made) => Arc::clone(made),
            None => Arc::clone(tar.insert(Arc::new(RebuiltTar::new(layer.of.clone(), layer.size, &self.spool)?))),
        };
        Ok(Some(Piece::rebuilt(made)))
    }
}
