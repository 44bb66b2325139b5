//! Checks of what the store can verify by itself: documents by digest, tags by format.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::{ContentPaths, DOCUMENT, LayerName, MapSize, Store, StoreError, TAG, TagRecord, evict};

/// Result of a check.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Files checked.
    pub checked: u64,
    /// The damaged objects; they have been removed.
    pub damaged: Vec<String>,
}

/// Whether a layer's content has the size that its index states.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// There is no content.
    Absent,
    /// It has the right size.
    Right,
    /// It has another size, and counts as absent.
    Wrong,
}

impl Store {
    /// Checks every document and every tag, and removes those that are damaged.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn check_documents(&self) -> Result<Checked, StoreError> {
        let mut found = Checked::default();
        self.files.each(&self.root.join(DOCUMENT), &mut |path, _| {
            let Some(digest) = evict::digest_of(path) else { return };
            let intact = self.files.read_small(path, DOCUMENT_LIMIT).is_ok_and(|bytes| digest.is_of(&bytes));
            found.note(&self.files, path, intact, || format!("document {digest}"));
        })?;
        self.files.each(&self.root.join(TAG), &mut |path, _| {
            let record = self
                .files
                .read_small(path, DOCUMENT_LIMIT)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<TagRecord>(&bytes).ok());
            let intact = record.is_some_and(|record| self.tag_path(&record.reference) == path);
            found.note(&self.files, path, intact, || format!("tag record {}", path.display()));
        })?;
        Ok(found)
    }

    /// Removes links, FIFOs and other non-files in the place of a layer's content.
    pub fn remove_non_content(&self, layer: LayerName<'_>) {
        let ContentPaths { data, map } = self.content_paths(layer);
        for path in [data, map] {
            if self.files.look(&path).is_ok_and(|found| !found.is_file()) {
                self.files.remove(&path);
            }
        }
    }

    /// Whether the content of a layer has the size that its index states.
    pub fn content_shape(&self, layer: LayerName<'_>, decoded_size: u64, map_size: MapSize) -> Shape {
        let ContentPaths { data, map } = self.content_paths(layer);
        let size = |path: PathBuf| self.files.look(&path).ok().map(|found| found.length());
        match (size(data), size(map)) {
            (None, None) => Shape::Absent,
            (Some(data), Some(map)) if data == decoded_size && map == map_size.length() => Shape::Right,
            _ => Shape::Wrong,
        }
    }
}

impl Checked {
    fn note(&mut self, files: &Files, path: &Path, intact: bool, what: impl FnOnce() -> String) {
        self.checked += 1;
        if !intact {
            self.damaged.push(what());
            files.remove(path);
        }
    }
}

/// Limit for a document, in bytes.
const DOCUMENT_LIMIT: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::digest::{Algorithm, Digest};

    #[test]
    fn a_damaged_document_is_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let digests = [b"one", b"two"].map(|text| {
            let digest = Digest::of(Algorithm::Sha256, text);
            store.keep_document(&digest, &Bytes::from_static(text)).unwrap();
            digest
        });
        let record = TagRecord {
            reference: "host/name:1".into(),
            digest: digests[0].clone(),
            media_type: String::new(),
            size: 3,
        };
        store.keep_tag(&record).unwrap();
        assert!(store.check_documents().unwrap().damaged.is_empty());
        std::fs::write(store.path(DOCUMENT, &digests[1]), b"twO").unwrap();
        std::fs::write(store.tag_path(&record.reference), b"{").unwrap();
        let found = store.check_documents().unwrap();
        assert_eq!((found.checked, found.damaged.len()), (3, 2));
        assert_eq!(store.check_documents().unwrap().checked, 1);
    }
}
