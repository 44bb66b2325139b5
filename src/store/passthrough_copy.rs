//! Copies of large files of layers, one file each, for the kernel to read directly.
//!
//! ```text
//! whole-v2/ALG/HEX.DIFF.ENTRY        the bytes of one entry of the layer, mode 0400
//! whole-v2/ALG/HEX.DIFF.ENTRY.seal   the change time at which they were verified, in this boot (JSON)
//! ```
//!
//! The kernel does not verify its reads. So a copy is trusted only while its change time, which no program can set, is
//! that at which it was compared or made. A seal shares this with other processes ([`seal`](super::seal)).

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::files::Files;
use super::seal::{Seal, Stamp, seal_of};
use super::{LayerName, NewFile, Store, StoreError, WHOLE};
use crate::digest::Digest;

/// A copy of one file of a layer, open for reading.
#[derive(Debug)]
pub struct PassthroughCopy {
    file: File,
    stamp: Stamp,
}

impl PassthroughCopy {
    fn open(files: &Files, path: &Path) -> Result<Self, StoreError> {
        let file = files.open_read(path)?;
        let stamp = Stamp::of(&file).map_err(StoreError::io("read", path))?;
        Ok(Self { file, stamp })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its identity and change time.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.stamp.size()
    }

    /// The file, for the kernel.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Store {
    /// The copy of entry `entry` of a layer, if it exists, verified or not.
    pub fn passthrough_copy(&self, layer: LayerName<'_>, entry: u32) -> Option<PassthroughCopy> {
        PassthroughCopy::open(&self.files, &self.passthrough_copy_path(layer, entry)).ok()
    }

    /// Whether a process has sealed the copy in its current state.
    pub fn is_sealed(&self, layer: LayerName<'_>, entry: u32, copy: &PassthroughCopy) -> bool {
        self.seal_holds(&self.passthrough_copy_path(layer, entry), layer.diff_id, &copy.file, copy.stamp)
    }

    /// Records for other processes that the copy was verified.
    ///
    /// # Errors
    /// [`StoreError::Io`], also if the disk fails to store what was written to the file.
    pub fn seal_passthrough_copy(
        &self,
        layer: LayerName<'_>,
        entry: u32,
        copy: &PassthroughCopy,
    ) -> Result<(), StoreError> {
        let path = self.passthrough_copy_path(layer, entry);
        // Without a sync, the kernel may drop unwritten bytes later without a visible change.
        self.files.sync(&copy.file, &path).map_err(StoreError::io("sync", &path))?;
        self.write_seal(&path, Seal::new(layer.diff_id, copy.stamp))
    }

    /// Starts writing the copy of an entry.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn new_passthrough_copy(&self, layer: LayerName<'_>, entry: u32) -> Result<NewFile, StoreError> {
        self.new_file(self.passthrough_copy_path(layer, entry))
    }

    /// Publishes a written copy and opens it; `None` if another process has just published its own.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn publish_passthrough_copy(&self, new: NewFile) -> Result<Option<PassthroughCopy>, StoreError> {
        let (path, inode) = (new.target.clone(), |file: &File| file.metadata().map(|found| found.ino()).ok());
        let own = inode(new.file());
        new.file().set_permissions(Permissions::from_mode(0o400)).map_err(StoreError::io("protect", &path))?;
        new.publish()?;
        let copy = PassthroughCopy::open(&self.files, &path)?;
        Ok((Some(copy.stamp.inode()) == own).then_some(copy))
    }

    /// Removes the copy of an entry.
    pub fn drop_passthrough_copy(&self, layer: LayerName<'_>, entry: u32) {
        let path = self.passthrough_copy_path(layer, entry);
        self.files.remove(&seal_of(&path));
        self.files.remove(&path);
    }

    /// Revokes the seal of a copy: it must be compared again before it is used.
    pub fn break_seal(&self, layer: LayerName<'_>, entry: u32) {
        self.files.remove(&seal_of(&self.passthrough_copy_path(layer, entry)));
    }

    /// The entries of a layer that have a copy.
    pub fn passthrough_copies(&self, layer: LayerName<'_>) -> Vec<u32> {
        let mut found = Vec::new();
        self.each_of(WHOLE, layer.blob, &mut |path, _| {
            let entry = path.extension().and_then(|entry| entry.to_str()?.parse::<u32>().ok());
            found.extend(entry.filter(|entry| self.passthrough_copy_path(layer, *entry) == path));
        });
        found
    }

    /// Removes all copies of a blob's layers and returns the bytes freed. The kernel keeps reading the copies it has
    /// open, which use disk space until it closes them.
    pub fn drop_passthrough_copies(&self, blob: &Digest) -> u64 {
        let mut freed = 0;
        self.each_of(WHOLE, blob, &mut |path, found| {
            freed += found.disk_bytes();
            self.files.remove(path);
        });
        freed
    }

    fn passthrough_copy_path(&self, layer: LayerName<'_>, entry: u32) -> PathBuf {
        self.decoded_path(WHOLE, layer, &entry.to_string())
    }

    /// An empty, unnamed file on the cache's file system.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn trial_file(&self) -> Result<File, StoreError> {
        let new = self.new_file(self.root.join(WHOLE).join("trial"))?;
        new.file.try_clone().map_err(StoreError::io("open", &new.temp))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;

    fn made(store: &Store, layer: LayerName<'_>, entry: u32) -> PassthroughCopy {
        let mut new = store.new_passthrough_copy(layer, entry).unwrap();
        new.write_all(b"bytes").unwrap();
        store.publish_passthrough_copy(new).unwrap().unwrap()
    }

    #[test]
    fn a_seal_holds_until_the_file_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let [blob, one, other] = [b"layer", b"1stid", b"2ndid"].map(|text| Digest::of(Algorithm::Sha256, text));
        let layer = LayerName { blob: &blob, diff_id: &one };
        let copy = made(&store, layer, 7);
        assert!(!store.is_sealed(layer, 7, &copy));
        store.seal_passthrough_copy(layer, 7, &copy).unwrap();
        assert!(store.is_sealed(layer, 7, &store.passthrough_copy(layer, 7).unwrap()));
        let otherwise_read = LayerName { blob: &blob, diff_id: &other };
        assert!(
            store.passthrough_copy(otherwise_read, 7).is_none() && store.passthrough_copies(otherwise_read).is_empty()
        );
        let path = store.passthrough_copy_path(layer, 7);
        let elsewhere = store.passthrough_copy_path(otherwise_read, 7);
        for (from, to) in [(&path, &elsewhere), (&seal_of(&path), &seal_of(&elsewhere))] {
            std::fs::hard_link(from, to).unwrap();
        }
        assert!(!store.is_sealed(otherwise_read, 7, &store.passthrough_copy(otherwise_read, 7).unwrap()));
        store.seal_passthrough_copy(layer, 7, &store.passthrough_copy(layer, 7).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o400);
        let longer_ago = std::time::Duration::from_secs(1);
        File::open(&path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH + longer_ago).unwrap();
        assert!(!store.is_sealed(layer, 7, &store.passthrough_copy(layer, 7).unwrap()));
    }

    #[test]
    fn the_files_of_one_layer_go_and_those_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let digests = [b"layer", b"other"].map(|text| Digest::of(Algorithm::Sha256, text));
        let [layer, other] = digests.each_ref().map(|blob| LayerName { blob, diff_id: &digests[0] });
        for entry in [3, 44] {
            let copy = made(&store, layer, entry);
            store.seal_passthrough_copy(layer, entry, &copy).unwrap();
        }
        made(&store, other, 3);
        let mut entries = store.passthrough_copies(layer);
        entries.sort_unstable();
        assert_eq!(entries, [3, 44]);
        assert!(store.drop_passthrough_copies(layer.blob) > 0);
        assert_eq!((store.passthrough_copies(layer).len(), store.passthrough_copies(other).len()), (0, 1));
        assert!(store.passthrough_copy(layer, 3).is_none() && store.passthrough_copy(other, 3).is_some());
    }
}
