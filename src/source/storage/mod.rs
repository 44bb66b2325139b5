//! The storage of podman, buildah and CRI-O (containers/storage), read where it is and never written.
//!
//! ```text
//! ROOT/DRIVER-images/images.json         ids, names and uppermost layers
//! ROOT/DRIVER-images/ID/                 documents: `manifest`, `manifest-DIGEST`, the configuration by its digest
//! ROOT/DRIVER-layers/layers.json         parents, diff_ids and sizes
//! ROOT/DRIVER-layers/ID.tar-split.gz     what is needed to rebuild a layer's tar
//! ROOT/overlay/ID/diff                   its files (driver overlay)
//! ```
//!
//! Engines replace the lists by renaming, so they are read without the locks. A layer that is removed afterwards is an
//! error when its files are next opened.

mod conf;
mod lists;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;

pub(crate) use self::conf::Around;
pub(super) use self::lists::is_name;
use self::lists::{Driver, ImageEntry, LayerEntry, Store};
use super::local::{LocalSource, unusable};
use super::rebuilt::Ingredients;
use super::spool::Spool;
use super::tree::Tree;
use super::unpacked::{LayerFiles, Unpacked};
use super::{CONFIG_LIMIT, MANIFEST_LIMIT, SourceError};
use crate::digest::{Algorithm, Digest};
use crate::documents::{Document, ImageConfig};
use crate::reference::StorageName;

/// The `storage.conf` of this user's engines, if they do not look for images in `store`.
pub fn file_without(store: &Path) -> Option<PathBuf> {
    Around::of_process().file_without(store)
}

/// Opens an image of the storage.
///
/// # Errors
/// [`SourceError`] if there is none, or its layers cannot be rebuilt.
pub(super) fn open(
    name: String,
    wanted: &StorageName,
    around: &Around,
    spool: &Spool,
) -> Result<LocalSource, SourceError> {
    let dirs = around.stores(wanted.store.as_ref())?;
    let mut stores = Vec::new();
    for dir in &dirs {
        match Store::open(dir)? {
            Some(store) => stores.push(store),
            None => tracing::debug!("there is no storage at {}", dir.root.display()),
        }
    }
    if stores.is_empty() {
        return Err(SourceError::NotFound {
            what: format!("image `{}`", wanted.image.typed()),
            place: format!("the storage `{}`", dirs[0].root.display()),
            said: Some("there is no such directory".to_owned()),
            hint: Some("name another storage: `containers-storage:[overlay@/path/to/storage]NAME`".into()),
        });
    }
    let image = match wanted.image.digest() {
        Some(digest) => by_digest(&stores, wanted, digest)?,
        None => {
            let (at, image) = lists::choose(&stores, &wanted.image)?;
            unpacked(&stores, at, image, None)?
        }
    };
    Ok(image.into_source(name, spool))
}

/// The image with this manifest: its own, or the one that was written for it before.
fn by_digest(stores: &[Store], wanted: &StorageName, digest: &Digest) -> Result<Unpacked, SourceError> {
    let (text, key) = (digest.to_string(), format!("manifest-{digest}"));
    let all = || stores.iter().enumerate().flat_map(|(at, store)| store.images.iter().map(move |image| (at, image)));
    let known = all().find(|(_, image)| image.digest.as_ref() == Some(&text) || image.has(&key));
    if let Some((at, image)) = known {
        return unpacked(stores, at, image, Some(digest));
    }
    // Most likely, it still has its name.
    let named = lists::choose(stores, &wanted.image).ok();
    let written = named.into_iter().chain(all()).filter_map(|(at, image)| unpacked(stores, at, image, None).ok());
    written.into_iter().find(|image| image.digest() == *digest).ok_or_else(|| lists::not_found(stores, &wanted.image))
}

/// An image of the store number `at`, whose manifest, or image index, has the digest `pinned`.
fn unpacked(stores: &[Store], at: usize, image: &ImageEntry, pinned: Option<&Digest>) -> Result<Unpacked, SourceError> {
    let store = &stores[at];
    let shown = format!("image `{}` of {}", image.id.escape_debug(), lists::shown(std::slice::from_ref(store)));
    let refused = |why: String| SourceError::Unsupported { place: shown.clone(), why, hint: None };
    if !lists::is_name(&image.id) {
        return Err(refused("its id is not a file name".to_owned()));
    }
    let documents = Documents { store, image, shown: &shown };
    let (manifest, config) = documents.manifest(pinned)?;
    let text = documents.read(&config.to_string(), CONFIG_LIMIT)?;
    if !config.is_of(&text) {
        return Err(refused(format!("its configuration is not what its digest, {config}, says")));
    }
    let chain = lists::chain(stores, image.layer.as_deref())?;
    let parsed = ImageConfig::parse(&text, chain.len()).map_err(|error| unusable(&shown, "configuration", &error))?;
    let layers = chain.into_iter().zip(parsed.diff_ids);
    let layers = layers.map(|((store, layer), diff_id)| files(store, layer, diff_id)).collect::<Result<Vec<_>, _>>()?;
    Unpacked::new((config, text), layers, store.tree.path().to_owned(), image.id.clone(), Some(manifest))
}

/// What a layer is rebuilt from.
fn files(store: &Store, layer: &LayerEntry, diff_id: Digest) -> Result<LayerFiles, SourceError> {
    let shown = format!("layer `{}` of {}", layer.id, lists::shown(std::slice::from_ref(store)));
    let cannot = |why: &str| SourceError::Unsupported {
        place: shown.clone(),
        why: format!("its tar cannot be rebuilt: {why}"),
        hint: Some("copy the image: `skopeo copy containers-storage:NAME oci-archive:image.tar`".to_owned()),
    };
    if layer.is_incomplete() {
        return Err(cannot("an engine has not finished it, or is about to"));
    }
    if layer.diff_digest.as_ref().is_some_and(|known| *known != diff_id.to_string()) {
        return Err(cannot(&format!("it is another layer than {diff_id}, which the configuration names")));
    }
    let path = store.tree.path().join(store.driver.files(&layer.id));
    if store.driver == Driver::Overlay && path.with_file_name("composefs-data").exists() {
        return Err(cannot("its files are kept for composefs, by their content"));
    }
    let Some(tar_split) = store.tree.find(&format!("{}-layers/{}.tar-split.gz", store.driver.name(), layer.id))? else {
        return Err(cannot("it has no tar-split data, as one that was pulled in part (zstd:chunked)"));
    };
    let files = Arc::new(Tree::open(&path)?);
    let hint = "the engine has removed or changed it: remove the image there, and pull it again".to_owned();
    let size = layer.diff_size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0);
    Ok(LayerFiles { diff_id, size, of: Ingredients { layer: shown, hint, tar_split, files } })
}

/// The documents of an image.
struct Documents<'a> {
    store: &'a Store,
    image: &'a ImageEntry,
    shown: &'a str,
}

impl Documents<'_> {
    /// The digests of the image's manifest and of its configuration.
    fn manifest(&self, pinned: Option<&Digest>) -> Result<(Digest, Digest), SourceError> {
        let mut text = self.read("manifest", MANIFEST_LIMIT)?;
        let mut digest = Digest::of(Algorithm::Sha256, &text);
        if let Some(pinned) = pinned.filter(|pinned| **pinned != digest) {
            let refused = |why: String| SourceError::Unsupported { place: self.shown.to_owned(), why, hint: None };
            let pinned_text = self.read(&format!("manifest-{pinned}"), MANIFEST_LIMIT)?;
            if !pinned.is_of(&pinned_text) {
                return Err(refused(format!("its manifest is not what its digest, {pinned}, says")));
            }
            match self.parse(&pinned_text)? {
                Document::Index(index) => {
                    if !index.entries.iter().any(|entry| entry.descriptor.digest == digest) {
                        return Err(refused(format!("{pinned} does not list its manifest, {digest}")));
                    }
                }
                _ => (text, digest) = (pinned_text, pinned.clone()),
            }
        }
        match self.parse(&text)? {
            Document::Manifest(manifest) => Ok((digest, manifest.config.digest)),
            _ => Err(SourceError::Unsupported {
                place: self.shown.to_owned(),
                why: "its manifest is not that of an image".to_owned(),
                hint: None,
            }),
        }
    }

    fn parse(&self, text: &Bytes) -> Result<Document, SourceError> {
        Document::parse(text, None).map_err(|error| unusable(self.shown, "manifest", &error))
    }

    fn read(&self, key: &str, limit: u64) -> Result<Bytes, SourceError> {
        let path = format!("{}-images/{}/{}", self.store.driver.name(), self.image.id, file_name(key));
        match self.store.tree.find(&path)? {
            Some(piece) => piece.read_whole(limit),
            None => Err(SourceError::NotFound {
                what: format!("document `{key}`"),
                place: self.shown.to_owned(),
                said: None,
                hint: Some("the engine may have removed the image; pull it again".into()),
            }),
        }
    }
}

/// The file of a document.
fn file_name(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if key.bytes().all(plain) {
        return key.to_owned();
    }
    format!("={}", base64::engine::general_purpose::STANDARD.encode(key))
}
