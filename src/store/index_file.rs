//! Layer indexes as files of the store: found by blob, marked as used, open on demand.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use rustix::io::Errno;

use super::files::Files;
use super::in_use::Mark;
use super::open_files::{InUse, Pooled};
use super::{INDEX, NewFile, Store, StoreError, identity};
use crate::digest::Digest;
use crate::sync::lock;

/// A layer index of the store, for reading. It is closed when the descriptor is needed elsewhere, and reopened by name.
#[derive(Debug)]
pub struct IndexFile {
    file: Pooled<File>,
    files: Files,
    path: PathBuf,
    size: u64,
    last: Arc<LastOpened>,
    _mark: Mark,
}

/// Result of the last opening of an index.
#[derive(Debug)]
struct LastOpened {
    /// Device and inode.
    identity: Mutex<(u64, u64)>,
    failed: AtomicBool,
}

/// Which index of a blob: one blob can be a layer of an image, and a file of an artifact or of a layout.
#[derive(Clone, Copy, Debug)]
pub struct IndexName<'a> {
    blob: &'a Digest,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Of the files that the blob holds.
    Files,
    /// The same, made of another maker's table although there is the first.
    Beside,
    /// Of the blob as one file.
    File,
}

impl<'a> IndexName<'a> {
    /// The index of the blob as one file.
    pub fn of_file(blob: &'a Digest) -> Self {
        Self { blob, kind: Kind::File }
    }

    /// Another index of the files that the blob holds, made of another maker's table although this machine has its own.
    pub fn beside(blob: &'a Digest) -> Self {
        Self { blob, kind: Kind::Beside }
    }

    /// All that a blob can have.
    pub fn all(blob: &'a Digest) -> [Self; 3] {
        [blob.into(), Self::beside(blob), Self::of_file(blob)]
    }

    /// Under which an index may be in place of this one, itself first.
    pub fn alternatives(self) -> impl Iterator<Item = Self> {
        let other = matches!(self.kind, Kind::Files).then(|| Self::beside(self.blob));
        std::iter::once(self).chain(other)
    }
}

impl<'a> From<&'a Digest> for IndexName<'a> {
    /// The index of the files that the blob holds.
    fn from(blob: &'a Digest) -> Self {
        Self { blob, kind: Kind::Files }
    }
}

impl IndexFile {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from offset `at`.
    ///
    /// # Errors
    /// [`io::Error`]; of kind [`io::ErrorKind::UnexpectedEof`] if there are fewer bytes.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.open()?.read_exact_at(buf, at)
    }

    /// The open file. A replacement under the same name is fine: checksums verify what is read.
    fn open(&self) -> io::Result<InUse<'_, File>> {
        let opened = self.file.get(|| {
            let mut tries = 0..TRIES;
            loop {
                match self.files.open_found(&self.path) {
                    Ok((file, found)) => {
                        *lock(&self.last.identity) = identity(&found);
                        return Ok(file);
                    }
                    Err(StoreError::Io { cause, .. }) if is_lack_of_descriptors(&cause) && tries.next().is_some() => {
                        std::thread::sleep(PAUSE);
                    }
                    Err(StoreError::Io { cause, .. }) => return Err(cause),
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
        });
        self.last.failed.store(opened.is_err(), Ordering::Relaxed);
        opened
    }
}

fn is_lack_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

impl Store {
    /// The layer index of a blob; in use, and not evicted, while this exists.
    pub fn index<'a>(&self, name: impl Into<IndexName<'a>>) -> Option<IndexFile> {
        let name = name.into();
        let path = self.index_path(name);
        // Mark first, so that it is not removed before it is opened.
        let mark = self.marks.mark(name.blob);
        let (file, found) = self.files.open_found(&path).ok()?;
        let last = LastOpened { identity: Mutex::new(identity(&found)), failed: AtomicBool::new(false) };
        if lock(&self.damaged).contains(&identity(&found)) {
            return None;
        }
        let file = self.files.pool.place().with(file);
        let (files, size) = (self.files.clone(), found.len());
        Some(IndexFile { file, files, path, size, last: Arc::new(last), _mark: mark })
    }

    /// Starts writing a layer index.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn new_index<'a>(&self, name: impl Into<IndexName<'a>>) -> Result<NewFile, StoreError> {
        self.new_file(self.index_path(name.into()))
    }

    /// Publishes an index that is being written under another name.
    pub fn call_index(&self, new: &mut NewFile, name: IndexName<'_>) {
        new.target = self.index_path(name);
    }

    /// Removes a damaged layer index.
    pub fn drop_index<'a>(&self, name: impl Into<IndexName<'a>>) {
        self.files.remove(&self.index_path(name.into()));
    }

    /// Removes all indexes of a blob, and what is cached of their windows.
    pub fn drop_indexes(&self, blob: &Digest) {
        IndexName::all(blob).into_iter().for_each(|name| self.drop_index(name));
        self.drop_windows(blob);
    }

    /// Whether there is any index of a blob.
    pub(super) fn has_index(&self, blob: &Digest) -> bool {
        IndexName::all(blob).into_iter().any(|name| self.index_path(name).exists())
    }

    pub(super) fn index_path(&self, name: IndexName<'_>) -> PathBuf {
        let path = self.path(INDEX, name.blob);
        match name.kind {
            Kind::Files => path,
            Kind::Beside => path.with_extension("beside"),
            Kind::File => path.with_extension("file"),
        }
    }

    /// A function that drops the layer index read as `file`, even if it cannot be removed; it keeps a replacement, and
    /// an index that could not be opened.
    pub fn index_dropper(&self, name: IndexName<'_>, file: &IndexFile) -> impl Fn() + Send + Sync + use<> + 'static {
        let (path, last, once) = (self.index_path(name), Arc::clone(&file.last), Once::new());
        let (files, damaged) = (self.files.clone(), Arc::clone(&self.damaged));
        move || {
            if last.failed.load(Ordering::Relaxed) {
                return;
            }
            once.call_once(|| {
                tracing::warn!(path = %path.display(), "a cached layer index is damaged; the layer will be read again");
                let opened = *lock(&last.identity);
                let still_there = || files.look(&path).is_ok_and(|found| found.identity() == opened);
                if still_there() {
                    files.remove(&path);
                }
                if still_there() {
                    lock(&damaged).insert(opened);
                }
            });
        }
    }
}

/// Tries to open an index while no descriptor is free, and the pause between them.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(1);
