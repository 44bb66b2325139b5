//! Cached windows of a layer's index that has them in a blob of their own: a sparse file with the blob's bytes at their
//! places.
//!
//! Nothing says what of it is cached: the index has a check of each window, and what does not match is missing. So no order
//! of writes, crash or damage needs care, and processes write it side by side.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::files::Files;
use super::open_files::Pooled;
use super::{INDEX, Store, StoreError};
use crate::digest::Digest;

/// The cached windows of a layer. The file is opened, and created, on first use.
#[derive(Debug)]
pub struct WindowsFile {
    file: Pooled<File>,
    files: Files,
    path: PathBuf,
}

impl WindowsFile {
    /// Fills `buf` from offset `at` of the blob; zeros where nothing is cached.
    ///
    /// # Errors
    /// [`io::Error`]; of kind [`io::ErrorKind::UnexpectedEof`] if nothing is cached so far behind.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let open = || self.files.open_write(&self.path).map_err(io::Error::other);
        self.file.get(open)?.read_exact_at(buf, at)
    }

    /// Stores bytes of the blob that begin at offset `at`.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> Result<(), StoreError> {
        let file = self.file.get(|| self.files.open_write(&self.path))?;
        self.files.write_all_at(&file, &self.path, bytes, at).map_err(StoreError::io("write", &self.path))
    }
}

impl Store {
    /// The cached windows of a blob's index.
    pub fn windows(&self, blob: &Digest) -> WindowsFile {
        WindowsFile { file: self.files.pool.place(), files: self.files.clone(), path: self.windows_path(blob) }
    }

    /// The same, if any are cached.
    pub fn existing_windows(&self, blob: &Digest) -> Option<WindowsFile> {
        self.files.look(&self.windows_path(blob)).is_ok_and(|found| found.is_file()).then(|| self.windows(blob))
    }

    /// Removes the cached windows of a blob's index.
    pub fn drop_windows(&self, blob: &Digest) {
        self.files.remove(&self.windows_path(blob));
    }

    /// The blobs whose indexes have cached windows.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read.
    pub fn with_windows(&self) -> Result<Vec<Digest>, StoreError> {
        let mut blobs = Vec::new();
        self.files.each(&self.root.join(INDEX), &mut |path, _| {
            if path.extension().is_some_and(|extension| extension == WINDOWS) {
                blobs.extend(super::evict::digest_of(path));
            }
        })?;
        Ok(blobs)
    }

    pub(super) fn windows_path(&self, blob: &Digest) -> PathBuf {
        self.path(INDEX, blob).with_extension(WINDOWS)
    }
}

/// Beside the index of the files that a blob holds.
const WINDOWS: &str = "windows";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn what_was_stored_is_read_by_any_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let blob = Digest::of(Algorithm::Sha256, b"x");
        assert!(store.existing_windows(&blob).is_none() && store.with_windows().unwrap().is_empty());
        let (one, other) = (store.windows(&blob), store.windows(&blob));
        let mut read = [7; 4];
        assert!(one.read_exact_at(&mut read, 0).is_err());
        one.write_all_at(b"window", 70_000).unwrap();
        other.read_exact_at(&mut read, 70_002).unwrap();
        assert_eq!(&read, b"ndow");
        other.read_exact_at(&mut read, 5).unwrap();
        assert_eq!(read, [0; 4], "a hole");
        assert!(store.existing_windows(&blob).is_some());
        assert_eq!(store.with_windows().unwrap(), std::slice::from_ref(&blob));
        store.drop_indexes(&blob);
        assert!(store.existing_windows(&blob).is_none());
    }
}
