//! Layer indexes as files of the store: found by blob, marked as used, open in turns.

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

/// A layer index of the store, for reading. It is closed when others need the descriptor, and opened by name again.
#[derive(Debug)]
pub struct IndexFile {
    file: Pooled<File>,
    files: Files,
    path: PathBuf,
    size: u64,
    last: Arc<LastOpened>,
    _mark: Mark,
}

/// What came of opening an index the last time.
#[derive(Debug)]
struct LastOpened {
    /// Device and inode.
    identity: Mutex<(u64, u64)>,
    failed: AtomicBool,
}

impl IndexFile {
    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from the bytes at `at`.
    ///
    /// # Errors
    /// [`io::Error`]; of kind [`io::ErrorKind::UnexpectedEof`] if there are fewer bytes.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.open()?.read_exact_at(buf, at)
    }

    /// The file. Another one that has its name by now serves as well: what is read is compared with checksums.
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
    /// The layer index of a blob, which is in use, and kept from eviction, for as long as this exists.
    pub fn index(&self, blob: &Digest) -> Option<IndexFile> {
        let path = self.path(INDEX, blob);
        // Before it is opened, so that it is not removed in between.
        let mark = self.marks.mark(blob);
        let (file, found) = self.files.open_found(&path).ok()?;
        let last = LastOpened { identity: Mutex::new(identity(&found)), failed: AtomicBool::new(false) };
        if lock(&self.spoilt).contains(&identity(&found)) {
            return None;
        }
        let file = self.files.pool.place().with(file);
        let (files, size) = (self.files.clone(), found.len());
        Some(IndexFile { file, files, path, size, last: Arc::new(last), _mark: mark })
    }

    /// Begins to write a layer index.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn new_index(&self, blob: &Digest) -> Result<NewFile, StoreError> {
        self.new_file(self.path(INDEX, blob))
    }

    /// Forgets a layer index that turned out to be damaged.
    pub fn drop_index(&self, blob: &Digest) {
        self.files.remove(&self.path(INDEX, blob));
    }

    /// Forgets, when it is called, the layer index that is read as `file`, also where it cannot be removed; one
    /// that has taken its place since stays, and so does one that could not be opened.
    pub fn index_dropper(&self, blob: &Digest, file: &IndexFile) -> impl Fn() + Send + Sync + 'static {
        let (path, last, once) = (self.path(INDEX, blob), Arc::clone(&file.last), Once::new());
        let (files, spoilt) = (self.files.clone(), Arc::clone(&self.spoilt));
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
                    lock(&spoilt).insert(opened);
                }
            });
        }
    }
}

/// How often an index is tried to be opened while the process has no descriptor left, and the pauses between.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(1);
