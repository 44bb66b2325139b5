//! The store: everything cached about images on this machine, shared by all processes of a user.
//!
//! ```text
//! CACHE/
//!   index-v2/ALG/HEX          layer index, named by the layer's blob digest      (docs/formats.md)
//!   index-v2/ALG/HEX.beside   one made of another maker's table, where there is the first (`--index foreign`)
//!   index-v2/ALG/HEX.file     that of the blob as one file
//!   index-v2/ALG/HEX.windows  decoder windows of an index that has them in a blob of their own: what is fetched of them
//!   content-v2/ALG/HEX.DIFF.data  the layer's decoded stream; spans lie at their decoded offset, the rest are holes
//!   content-v2/ALG/HEX.DIFF.map   one byte a span: 0 = absent, else the generation in which it was written
//!   document-v1/ALG/HEX       manifests, image indexes, configurations
//!   tag-v1/SHA256-OF-NAME     the last known target of a tag (JSON)
//!   mirror-v1/SHA256-OF-NAME  until when a mirror that was slow is not asked (JSON)
//!   profile-v2/ALG/HEX        the start-up reads of images in a layer (JSON)
//!   whole-v2/ALG/HEX.DIFF.ENTRY   a copy of a large file, which the kernel reads directly (`mount --passthrough`)
//!   erofs-v1/ALG/HEX          an EROFS image for the kernel, named by the chain of its layers
//!   lock-v1/ALG/HEX[.RANK]    held while a process makes that layer's first pass, see [`PassLock`]
//!   lock-v1/in-use            a locked byte for each layer that a process uses
//!   tmp/                      files being written
//! ```
//!
//! `HEX` is the blob's digest. One blob can be both a valid tar and a valid gzip file, which are two layers: so names
//! of decoded bytes contain `DIFF`, a prefix of the layer's diff_id, and an index states its layer.
//!
//! Files are published by rename, complete or not at all. Nothing here is trusted: documents are hashed, index pages
//! carry checksums, spans carry digests, and all are verified when a process first uses them. So a crash, a torn write
//! or an edited file costs a fetch and never yields a wrong byte. That is why a mount does not wait for `fsync`, except
//! for indexes so large that a second pass would be expensive. Any file may be deleted at any time, and storing may
//! fail: see [`Store::cannot_keep`].

mod check;
mod content;
mod evict;
mod files;
mod in_use;
mod index_file;
mod kernel_image;
mod open_files;
mod pass_lock;
mod passthrough_copy;
mod seal;
mod superseded;
mod verity;
mod windows_file;

use std::collections::HashSet;
use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use check::{Checked, Shape};
use content::ContentPaths;
pub use content::{Content, Generation, MapSize, NewContent};
pub use evict::{Freed, Keep, LayerUsage, Usage};
use files::Files;
pub use files::{Disk, Effect, NotKept};
use in_use::Marks;
pub use index_file::{IndexFile, IndexName};
pub use kernel_image::{SealedContent, is_verified_by_kernel};
pub use open_files::descriptor_limit;
pub use pass_lock::{PassLock, PassNote};
pub use passthrough_copy::PassthroughCopy;
pub use seal::Stamp;
pub use verity::NoVerity;
pub use windows_file::WindowsFile;

use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};

use crate::trust::Untrusted;

/// The name of a layer in the store.
#[derive(Clone, Copy, Debug)]
pub struct LayerName<'a> {
    /// Digest of its blob.
    pub blob: &'a Digest,
    /// Digest of its decoded bytes.
    pub diff_id: &'a Digest,
}

/// An open cache directory.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limit: Option<u64>,
    files: Files,
    serial: AtomicU64,
    /// Bytes stored since the limit was last checked.
    unchecked: AtomicU64,
    /// Held while room is made: who looks at what another one is removing would evict more than is needed.
    making_room: Mutex<()>,
    marks: Arc<Marks>,
    /// Damaged indexes that cannot be removed, by device and inode.
    damaged: Arc<Mutex<HashSet<(u64, u64)>>>,
}

/// The target of a tag when a registry was last asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TagRecord {
    /// The canonical reference.
    pub reference: String,
    /// Digest of the root document.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

impl TagRecord {
    /// That `reference` (canonical) names this root document.
    pub fn new(reference: String, root: &Descriptor) -> Self {
        let media_type = root.media_type.as_str().to_owned();
        Self { reference, digest: root.digest.clone(), media_type, size: root.size }
    }
}

/// A file written under a temporary name, and renamed once it is complete.
#[derive(Debug)]
pub struct NewFile {
    files: Files,
    file: File,
    temp: PathBuf,
    target: PathBuf,
    /// Bytes appended so far.
    length: u64,
    published: bool,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the cache could not be read or written.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// The operation, as in `create`.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// Content that the kernel reads directly is not written again.
    #[error("`{}` is read by the kernel, and is not written again", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
    },
    /// The cache directory is not safe for this user.
    #[error("the cache directory `{}` is not safe to use: {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl StoreError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io { doing, path, cause }
    }
}

impl Store {
    /// Opens the cache directory, and creates it (mode 0700) if it is missing.
    ///
    /// `limit` is the maximum disk usage of layers, in bytes; see [`Store::make_room`].
    ///
    /// # Errors
    /// [`StoreError::Unsafe`] if it is a symlink, belongs to another user, or is writable by others; [`StoreError::Io`]
    /// if it cannot be created.
    pub fn open(root: &Path, limit: Option<u64>) -> Result<Self, StoreError> {
        let store = Self::new(root, limit, None);
        store.make().map(|()| store)
    }

    /// Opens an existing cache directory, to read or remove only: creates nothing.
    ///
    /// # Errors
    /// [`StoreError::Unsafe`]; [`StoreError::Io`] if it cannot be read.
    pub fn open_existing(root: &Path, limit: Option<u64>) -> Result<Self, StoreError> {
        match files::check_private_dir(root) {
            Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
            checked => drop(checked?),
        }
        Ok(Self::new(root, limit, None))
    }

    /// As [`Store::open`], with an observer of all changes of the directory.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_watched(root: &Path, limit: Option<u64>, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let store = Self::new(root, limit, Some(disk));
        store.make().map(|()| store)
    }

    /// As [`Store::open`], but a directory that cannot be created is no error: existing files are read, and what cannot
    /// be stored is fetched again.
    ///
    /// # Errors
    /// [`StoreError::Unsafe`]
    pub fn open_best_effort(root: &Path, limit: Option<u64>) -> Result<Self, StoreError> {
        let store = Self::new(root, limit, None);
        match store.make() {
            Err(error @ StoreError::Io { .. }) => store.cannot_keep("anything", &error),
            made => made?,
        }
        Ok(store)
    }

    fn new(root: &Path, limit: Option<u64>, disk: Option<Arc<dyn Disk>>) -> Self {
        let files = Files::new(root, disk);
        Self {
            root: root.to_owned(),
            limit,
            marks: Marks::new(&files, root.join(LOCK).join("in-use")),
            files,
            serial: AtomicU64::new(0),
            unchecked: AtomicU64::new(0),
            making_room: Mutex::default(),
            damaged: Arc::default(),
        }
    }

    fn make(&self) -> Result<(), StoreError> {
        self.files.make_private_dir()?;
        for bucket in [INDEX, CONTENT, WHOLE, EROFS, DOCUMENT, PROFILE, LOCK] {
            for algorithm in Algorithm::ALL {
                self.files.make_dir(&self.root.join(bucket).join(algorithm.name()))?;
            }
        }
        self.files.make_dir(&self.root.join(TAG))?;
        self.files.make_dir(&self.root.join(MIRROR))?;
        self.files.make_dir(&self.root.join(TMP))
    }

    /// Runs `act`, which creates a file; once more after its directories were removed and created again.
    fn in_place<T>(&self, act: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match act() {
            Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                self.make()?;
                act()
            }
            done => done,
        }
    }

    /// Logs that something cannot be stored: as a warning the first time, then at debug level.
    pub fn cannot_keep(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        self.files.cannot_keep(what, error);
    }

    /// What this process could not store the last time that it tried.
    pub fn not_kept(&self) -> Option<NotKept> {
        self.files.not_kept()
    }

    /// Notes that content was stored.
    pub(crate) fn has_kept(&self) {
        self.files.has_kept();
    }

    /// The path of the cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// An unnamed file on the cache's disk, removed when its last user closes it; on failure, one in the system's
    /// temporary directory.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn unnamed_file(&self) -> io::Result<File> {
        let dir = self.root.join(TMP);
        let named = || {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{}-{serial}", std::process::id()));
            let file = self.files.create_new(&path).map_err(io::Error::other)?;
            self.files.remove(&path);
            Ok(file)
        };
        let elsewhere = |_: io::Error| {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?;
            Ok(File::from(file))
        };
        self.files.create_unnamed(&dir).or_else(|_| named()).or_else(elsewhere)
    }

    /// The maximum disk usage of layers, in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// A document by digest, if it is cached and intact.
    pub fn document(&self, digest: &Digest, size: u64) -> Option<Bytes> {
        let path = self.path(DOCUMENT, digest);
        let bytes = self.files.read_small(&path, size).ok()?;
        match Untrusted::new(Bytes::from(bytes)).verify(digest, size) {
            Ok(bytes) => Some(bytes),
            Err(mismatch) => {
                tracing::warn!(path = %path.display(), %mismatch, "a cached document is damaged; it will be fetched again");
                self.files.remove(&path);
                None
            }
        }
    }

    /// A cached document whose size is not known, of at most `limit` bytes.
    pub fn document_by_digest(&self, digest: &Digest, limit: u64) -> Option<Bytes> {
        let size = self.files.read_small(&self.path(DOCUMENT, digest), limit).ok()?.len() as u64;
        self.document(digest, size).filter(|_| size <= limit)
    }

    /// Stores a verified document.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep_document(&self, digest: &Digest, verified: &Bytes) -> Result<(), StoreError> {
        let mut new = self.new_file(self.path(DOCUMENT, digest))?;
        new.write_all(verified)?;
        new.publish()
    }

    /// The last known target of `reference` (canonical).
    pub fn tag(&self, reference: &str) -> Option<TagRecord> {
        let bytes = self.files.read_small(&self.tag_path(reference), 64 << 10).ok()?;
        let record: TagRecord = serde_json::from_slice(&bytes).ok()?;
        // Digest and size are verified with the document; damage to the media type is detected here.
        let media_type = MediaType::parse(&record.media_type);
        (record.reference == reference && (media_type.is_index() || media_type.is_manifest())).then_some(record)
    }

    /// Some of the tags whose targets are known, at most `most`.
    pub fn tags(&self, most: usize) -> Vec<TagRecord> {
        let Ok(files) = std::fs::read_dir(self.root.join(TAG)) else { return Vec::new() };
        let read = |path: PathBuf| {
            let bytes = self.files.read_small(&path, 64 << 10).ok()?;
            serde_json::from_slice::<TagRecord>(&bytes).ok()
        };
        files.filter_map(|file| read(file.ok()?.path())).take(most).collect()
    }

    /// Stores the target of a tag.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep_tag(&self, record: &TagRecord) -> Result<(), StoreError> {
        let mut new = self.new_file(self.tag_path(&record.reference))?;
        new.write_all(&serde_json::to_vec(record).expect("a tag record is plain strings and a number"))?;
        new.publish()
    }

    /// What a process has noted of a mirror; not to be trusted.
    pub fn mirror_note(&self, server: &str) -> Option<Vec<u8>> {
        self.files.read_small(&self.mirror_path(server), 4 << 10).ok()
    }

    /// Notes something of a mirror for other processes, or removes the note.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep_mirror_note(&self, server: &str, note: Option<&[u8]>) -> Result<(), StoreError> {
        let path = self.mirror_path(server);
        let Some(note) = note else {
            self.files.remove(&path);
            return Ok(());
        };
        let mut new = self.new_file(path)?;
        new.write_all(note)?;
        new.publish()
    }

    /// The stored profile of a layer.
    pub fn profile(&self, blob: &Digest) -> Option<Vec<u8>> {
        self.files.read_small(&self.path(PROFILE, blob), PROFILE_LIMIT).ok()
    }

    /// Stores the profile of a layer.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep_profile(&self, blob: &Digest, profile: &[u8]) -> Result<(), StoreError> {
        let mut new = self.new_file(self.path(PROFILE, blob))?;
        new.write_all(profile)?;
        new.publish()
    }

    /// Opens a layer's content, and creates it empty if it is missing; in memory if the disk is full.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn content(
        &self,
        layer: LayerName<'_>,
        decoded_size: u64,
        map: impl Into<MapSize>,
    ) -> Result<Content, StoreError> {
        Content::new(self.files.clone(), self.content_paths(layer), decoded_size, map.into()).opened()
    }

    /// As [`Store::content`], opened on first use, which also marks the layer as used.
    pub fn content_on_demand(&self, layer: LayerName<'_>, decoded_size: u64, map: MapSize) -> Content {
        Content::new(self.files.clone(), self.content_paths(layer), decoded_size, map).opened_on_demand()
    }

    /// Starts writing a layer's whole content, for a first pass.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn new_content(&self, layer: LayerName<'_>) -> Result<NewContent, StoreError> {
        let ContentPaths { data, map } = self.content_paths(layer);
        Ok(NewContent::new(self.new_file(data)?, self.new_file(map)?))
    }

    /// Publishes a layer's content; it takes effect once the layer's index is published.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn publish_content(
        &self,
        content: NewContent,
        layer: LayerName<'_>,
        decoded_size: u64,
    ) -> Result<(), StoreError> {
        content.publish(self.content_paths(layer), decoded_size)
    }

    fn new_file(&self, target: PathBuf) -> Result<NewFile, StoreError> {
        loop {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            let temp = self.root.join(TMP).join(format!("{}-{serial}", std::process::id()));
            let file = match self.in_place(|| self.files.create_new(&temp)) {
                // A leftover, or the file of a process with this id in another container.
                Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            // Locked while it is written, so that leftovers differ from work in progress. Another process may have
            // locked or removed it between the two calls; then create another file.
            if !matches!(self.files.try_lock(&file, &temp), Err(TryLockError::WouldBlock))
                && file.metadata().is_ok_and(|found| found.nlink() > 0)
            {
                let files = self.files.clone();
                return Ok(NewFile { files, file, temp, target, length: 0, published: false });
            }
        }
    }

    /// Free bytes of the disk that this user may take; `None` if the system does not tell.
    pub fn free_on_disk(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.root).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Disk usage of a layer's index and content: bytes and number of files.
    pub fn disk_usage(&self, layer: LayerName<'_>) -> (u64, u64) {
        let ContentPaths { data, map } = self.content_paths(layer);
        let found = [self.path(INDEX, layer.blob), self.windows_path(layer.blob), data, map]
            .into_iter()
            .filter_map(|path| std::fs::metadata(path).ok());
        found.fold((0, 0), |(bytes, files), found| (bytes + 512 * found.blocks(), files + 1))
    }

    fn mirror_path(&self, server: &str) -> PathBuf {
        self.root.join(MIRROR).join(Digest::of(Algorithm::Sha256, server.as_bytes()).hex())
    }

    fn path(&self, bucket: &str, digest: &Digest) -> PathBuf {
        self.root.join(bucket).join(digest.algorithm().name()).join(digest.hex())
    }

    /// As [`Store::path`], for decoded bytes of the blob.
    fn decoded_path(&self, bucket: &str, LayerName { blob, diff_id }: LayerName<'_>, extension: &str) -> PathBuf {
        let diff = &diff_id.hex()[..DIFF];
        self.root.join(bucket).join(blob.algorithm().name()).join(format!("{}.{diff}.{extension}", blob.hex()))
    }

    fn content_paths(&self, layer: LayerName<'_>) -> ContentPaths {
        let path = |extension| self.decoded_path(CONTENT, layer, extension);
        ContentPaths { data: path("data"), map: path("map") }
    }

    fn tag_path(&self, reference: &str) -> PathBuf {
        self.root.join(TAG).join(Digest::of(Algorithm::Sha256, reference.as_bytes()).hex())
    }
}

impl NewFile {
    /// The open file, for reading back.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The number of bytes appended.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        io::Write::write_all(self, bytes).map_err(StoreError::io("write", &self.temp))
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.files.write_all_at(&self.file, &self.temp, bytes, at)
    }

    /// Sets the length; unwritten bytes are zeros.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn set_len(&self, length: u64) -> Result<(), StoreError> {
        self.files.set_len(&self.file, &self.temp, length).map_err(StoreError::io("extend", &self.temp))
    }

    /// Truncates the file to `length` bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn cut(&mut self, length: u64) -> Result<(), StoreError> {
        self.set_len(length)?;
        self.length = length;
        Ok(())
    }

    /// Takes disk space for `bytes` bytes, so that writing them cannot fail for want of it. What is not written is given
    /// back by [`NewFile::cut`].
    ///
    /// # Errors
    /// [`StoreError::Io`], also where the file system cannot do that.
    pub fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let taken = rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, bytes);
        taken.map_err(|errno| StoreError::io("extend", &self.temp)(errno.into()))
    }

    /// Syncs the file to the disk, if it is expensive to rebuild.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn sync(&self) -> Result<(), StoreError> {
        self.files.sync(&self.file, &self.temp).map_err(StoreError::io("write", &self.temp))
    }

    /// Renames the file to its final name atomically, replacing an existing file.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn publish(mut self) -> Result<(), StoreError> {
        self.files.rename(&self.temp, &self.target)?;
        let _ = self.file.unlock();
        self.published = true;
        Ok(())
    }
}

impl io::Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.published {
            self.files.remove(&self.temp);
        }
    }
}

/// Identity of a file: device and inode.
fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Digits of a diff_id in a name: enough to be unique, and short enough for names with sha512.
const DIFF: usize = 32;
const INDEX: &str = "index-v2";
const CONTENT: &str = "content-v2";
const WHOLE: &str = "whole-v2";
const DOCUMENT: &str = "document-v1";
const TAG: &str = "tag-v1";
const MIRROR: &str = "mirror-v1";
const PROFILE: &str = "profile-v2";
const LOCK: &str = "lock-v1";
const EROFS: &str = "erofs-v1";
const TMP: &str = "tmp";
/// Limit for a profile, in bytes.
pub(crate) const PROFILE_LIMIT: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().join("cache"), None).unwrap()
    }

    #[test]
    fn a_document_changed_on_disk_is_forgotten_not_returned() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let bytes = Bytes::from_static(b"{}");
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        store.keep_document(&digest, &bytes).unwrap();
        assert_eq!(store.document(&digest, 2), Some(bytes));
        std::fs::write(store.path(DOCUMENT, &digest), b"[]").unwrap();
        assert_eq!(store.document(&digest, 2), None);
        assert!(!store.path(DOCUMENT, &digest).exists());
    }

    #[test]
    fn a_cache_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cache");
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Store::open(&root, None), Err(StoreError::Unsafe { .. })));
        std::fs::remove_dir(&root).unwrap();
        std::os::unix::fs::symlink("/tmp", &root).unwrap();
        assert!(matches!(Store::open(&root, None), Err(StoreError::Unsafe { .. })));
    }

    #[test]
    fn an_unpublished_file_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let digest = Digest::of(Algorithm::Sha256, b"x");
        drop(store.new_index(&digest).unwrap());
        assert_eq!(std::fs::read_dir(store.root().join(TMP)).unwrap().count(), 0);
        assert!(store.index(&digest).is_none());
    }

    #[derive(Debug)]
    struct NothingGoes;

    impl Disk for NothingGoes {
        fn before(&self, effect: Effect<'_>) -> io::Result<()> {
            match effect {
                Effect::Remove(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn a_damaged_index_that_cannot_be_removed_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_watched(&dir.path().join("cache"), None, Arc::new(NothingGoes)).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        store.new_index(&digest).unwrap().publish().unwrap();
        let drop_it = store.index_dropper((&digest).into(), &store.index(&digest).unwrap());
        drop_it();
        assert!(store.index(&digest).is_none());
        store.new_index(&digest).unwrap().publish().unwrap();
        assert!(store.index(&digest).is_some(), "another one");
    }

    #[derive(Debug)]
    struct NoLocks;

    impl Disk for NoLocks {
        fn before(&self, effect: Effect<'_>) -> io::Result<()> {
            match effect {
                Effect::Lock(_) => Err(io::ErrorKind::Unsupported.into()),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn where_locks_fail_each_process_makes_a_pass() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_watched(&dir.path().join("cache"), None, Arc::new(NoLocks)).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let held = store.try_lock_pass(&digest);
        assert!(held.is_some_and(|lock| !lock.is_real()));
    }

    /// Counts published and removed content files, and how many of them could be opened half-published.
    #[derive(Debug, Default)]
    struct Halves {
        seen: std::sync::atomic::AtomicUsize,
        open: std::sync::atomic::AtomicUsize,
    }

    impl Disk for Halves {
        fn before(&self, effect: Effect<'_>) -> io::Result<()> {
            let (Effect::Rename(_, path) | Effect::Remove(path)) = effect else { return Ok(()) };
            if path.extension().is_some_and(|extension| extension == "data" || extension == "map") {
                self.seen.fetch_add(1, Ordering::Relaxed);
                let map = std::fs::File::open(path.with_extension("map")).unwrap();
                if map.try_lock().is_ok() {
                    self.open.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        }
    }

    #[test]
    fn content_is_published_and_removed_under_its_map_lock() {
        let dir = tempfile::tempdir().unwrap();
        let halves = Arc::new(Halves::default());
        let store = Store::open_watched(&dir.path().join("cache"), None, Arc::clone(&halves) as _).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for _ in 0..2 {
            let mut new = store.new_content(LayerName { blob: &digest, diff_id: &digest }).unwrap();
            new.span_done(true);
            store.publish_content(new, LayerName { blob: &digest, diff_id: &digest }, 100).unwrap();
        }
        assert!(store.drop_unused_content(&digest).is_some());
        assert_eq!(halves.seen.load(Ordering::Relaxed), 6);
        assert_eq!(halves.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_pass_at_a_time_over_a_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (store(&dir), store(&dir));
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let held = a.try_lock_pass(&digest);
        held.as_ref().unwrap().note(5);
        assert!(b.try_lock_pass(&digest).is_none());
        assert_eq!(b.pass_note(&digest, 0), Some(PassNote { pid: std::process::id(), received: 5, beats: 0 }));
        drop(held);
        assert!(b.try_lock_pass(&digest).is_some());
    }
}
