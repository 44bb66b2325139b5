//! Content that no index of its layer describes: an index was replaced by one that reads the layer otherwise.
//!
//! Each index reads the content that has its name ([`LayerName`]), and a blob usually has one index. So when a first pass
//! replaces an index that was made of another maker's table, what was fetched by that lies in the cache without being of
//! use, and without anything that says what it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::content::{ContentPaths, MapInPlace};
use super::evict::digest_of;
use super::files::Found;
use super::seal::seal_of;
use super::{CONTENT, LayerName, Store, StoreError, WHOLE};
use crate::digest::Digest;

impl Store {
    /// Bytes of a blob's content, passthrough copies included, that is none of the layers `known`.
    pub fn other_content(&self, blob: &Digest, known: &[Digest]) -> u64 {
        let mut bytes = 0;
        self.each_other(blob, known, &mut |_, found| bytes += found.disk_bytes());
        bytes
    }

    /// Removes a blob's content that is none of the layers `known`, unless a process uses the blob: it may have opened it by an
    /// index that was replaced since. Returns the bytes freed.
    pub fn drop_other_content(&self, blob: &Digest, known: &[Digest]) -> u64 {
        let Some(_unused) = self.marks.unused(blob) else { return 0 };
        let (mut before, mut files) = (0, Vec::new());
        self.each_other(blob, known, &mut |path, found| {
            before += found.disk_bytes();
            files.push(path.to_owned());
        });
        if files.is_empty() {
            return 0;
        }
        self.drop_files(files);
        before.saturating_sub(self.other_content(blob, known))
    }

    /// Removes the content of one layer, also if it is used. Processes that have it open continue to read it; its disk space is
    /// freed when they close it.
    pub fn drop_content_of(&self, layer: LayerName<'_>) {
        let wanted = self.decoded_path(CONTENT, layer, "data");
        let mut found = Vec::new();
        for bucket in [CONTENT, WHOLE] {
            self.each_of(bucket, layer.blob, &mut |path, _| {
                if stream_of(path) == stream_of(&wanted) {
                    found.push(path.to_owned());
                }
            });
        }
        self.drop_files(found);
    }

    /// Removes files of contents, and passthrough copies.
    fn drop_files(&self, files: Vec<PathBuf>) {
        let contents: BTreeSet<_> = files.iter().filter_map(|path| ContentPaths::of(path)).collect();
        for ContentPaths { data, map } in contents {
            let _held = MapInPlace::hold(&self.files, &map);
            // In this order: a map alone takes no space, and has no effect without its data.
            self.files.remove(&seal_of(&data));
            self.files.remove(&data);
            self.files.remove(&map);
        }
        files.iter().filter(|path| ContentPaths::of(path).is_none()).for_each(|path| self.files.remove(path));
    }

    /// The blobs that have more than one content, of which one may be superseded.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn with_several_contents(&self) -> Result<Vec<Digest>, StoreError> {
        let mut contents = BTreeMap::<Digest, BTreeSet<Vec<u8>>>::new();
        for bucket in [CONTENT, WHOLE] {
            self.files.each(&self.root.join(bucket), &mut |path, _| {
                if let Some((digest, stream)) = digest_of(path).zip(stream_of(path)) {
                    contents.entry(digest).or_default().insert(stream.to_vec());
                }
            })?;
        }
        Ok(contents.into_iter().filter(|(_, streams)| streams.len() > 1).map(|(digest, _)| digest).collect())
    }

    fn each_other(&self, blob: &Digest, known: &[Digest], seen: &mut dyn FnMut(&Path, &Found)) {
        let known: Vec<_> = known
            .iter()
            .map(|diff_id| self.decoded_path(CONTENT, LayerName { blob, diff_id }, "data"))
            .filter_map(|path| stream_of(&path).map(<[u8]>::to_vec))
            .collect();
        for bucket in [CONTENT, WHOLE] {
            self.each_of(bucket, blob, &mut |path, found| {
                if stream_of(path).is_some_and(|stream| known.iter().all(|known| known != stream)) {
                    seen(path, found);
                }
            });
        }
    }
}

/// What the name of a content file, or of a passthrough copy, has of its stream: the part behind the blob's digest.
fn stream_of(path: &Path) -> Option<&[u8]> {
    path.file_name()?.as_encoded_bytes().split(|byte| *byte == b'.').nth(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;
    use crate::offsets::DecodedOffset;
    use crate::span::SpanId;

    #[test]
    fn content_that_no_index_names_goes_and_readers_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let digests = [b"blob", b"tar.", b"soci"].map(|text| Digest::of(Algorithm::Sha256, text));
        let [blob, own, foreign] = &digests;
        let filled = |diff_id: &Digest| {
            let content = store.content(LayerName { blob, diff_id }, 5000, 1).unwrap();
            content.fill(SpanId(0), DecodedOffset(0), &[7; 5000]).unwrap();
            content
        };
        let (read_by_own, read_by_foreign) = (filled(own), filled(foreign));
        let copy = store.new_passthrough_copy(LayerName { blob, diff_id: foreign }, 3).unwrap();
        store.publish_passthrough_copy(copy).unwrap();
        assert_eq!(store.with_several_contents().unwrap(), std::slice::from_ref(blob));
        let used = || store.usage().unwrap().layers[0].content;
        let (before, superseded) = (used(), store.other_content(blob, std::slice::from_ref(own)));
        assert!(superseded >= 5000 && before >= 2 * 5000);
        assert_eq!(store.drop_other_content(blob, &[own.clone(), foreign.clone()]), 0);
        let mark = store.marks.mark(blob);
        assert_eq!(store.drop_other_content(blob, std::slice::from_ref(own)), 0, "a process uses it");
        drop(mark);
        assert_eq!(store.drop_other_content(blob, std::slice::from_ref(own)), superseded);
        assert_eq!(used(), before - superseded);
        assert!(store.with_several_contents().unwrap().is_empty());
        assert!(store.passthrough_copies(LayerName { blob, diff_id: foreign }).is_empty());
        let mut bytes = [0; 5000];
        for content in [read_by_own, read_by_foreign] {
            content.read(DecodedOffset(0), &mut bytes).unwrap();
            assert_eq!(bytes, [7; 5000]);
        }
        store.drop_content_of(LayerName { blob, diff_id: own });
        assert!(store.usage().unwrap().layers.is_empty());
    }
}
