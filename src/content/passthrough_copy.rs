//! Copies of large files for the kernel, made from verified spans once all of these are cached.
//!
//! With `mount --passthrough` the kernel reads such a file itself. The kernel needs a backing file that starts with the
//! file's first byte, so the bytes of a file in a tar are written a second time; the copy is made from verified spans, or
//! compared with them, before the kernel gets it. A file that is not fully cached, has holes, or does not fit under the
//! cache's limit is read through FUSE. [`crate::store`] documents how long a copy is trusted.
//!
//! A file that is all of its layer, as those of artifacts are, needs no copy: the kernel gets the layer's content file,
//! [sealed](super::sealed).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::error::ReadError;
use super::open_layer::{Cached, name_of};
use super::reader::LayerReader;
use super::sealed::{ByKernel, SealError};
use crate::layer::{EntryId, IndexError, LayerIndex};
use crate::offsets::{DecodedOffset, FileOffset};
use crate::store::{PassthroughCopy, StoreError};
use crate::sync::lock;

/// Why a file cannot have a passthrough copy.
#[derive(Debug, thiserror::Error)]
pub enum PassthroughCopyError {
    /// Its bytes cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The cache cannot store the copy.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Result of comparing a copy with its entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Compared {
    Same,
    Differs,
    /// Some bytes of the entry are not cached.
    Unknown,
}

impl LayerReader {
    /// The entry's copy, if there is one that this process or a seal vouches for.
    pub fn passthrough_copy_now(&self, entry: EntryId) -> Option<File> {
        if self.is_all_of_its_layer(entry) {
            return self.content_file_now(entry);
        }
        let copy = self.layer.store.passthrough_copy(name_of(self.index()), entry.0)?;
        let known = lock(&self.layer.passthrough_copies).get(&entry) == Some(&copy.stamp());
        if !known {
            if !self.layer.store.is_sealed(name_of(self.index()), entry.0, &copy) {
                return None;
            }
            lock(&self.layer.passthrough_copies).insert(entry, copy.stamp());
        }
        Some(copy.into_file())
    }

    /// Whether a copy of an entry can be made: the entry has no holes, and the presence map has all its bytes.
    pub fn could_have_passthrough_copy(&self, entry: EntryId) -> bool {
        matches!(decoded_range(self.index(), entry), Ok(Some(run)) if self.layer.has(run.clone()))
    }

    /// The entry's copy, made if missing; `None` if some bytes are not cached or the cache is full. Reads and writes
    /// the whole file and blocks the thread.
    ///
    /// # Errors
    /// [`PassthroughCopyError`]
    pub fn make_passthrough_copy(&self, entry: EntryId) -> Result<Option<File>, PassthroughCopyError> {
        if let Some(file) = self.passthrough_copy_now(entry) {
            return Ok(Some(file));
        }
        let layer = name_of(self.index());
        let index_error = |cause| PassthroughCopyError::Read(self.layer.index_error(cause));
        let Some(run) = decoded_range(self.index(), entry).map_err(index_error)? else { return Ok(None) };
        if is_all(self.index(), &run) {
            return self.seal_content_file(entry);
        }
        let mut read = |from, buf: &mut [u8]| {
            let cached = matches!(self.layer.read_cached(from, buf, &mut || ()), Ok(Cached::Bytes));
            if cached && let Ok(spans) = self.layer.spans_of(from..from + buf.len() as u64) {
                // The kernel reads a copy without asking, so record the demand now.
                self.scheduler.record(spans);
            }
            cached
        };
        if let Some(copy) = self.layer.store.passthrough_copy(layer, entry.0) {
            match compare(&run, &copy, &mut read) {
                Compared::Same => return Ok(Some(self.trust(entry, copy))),
                Compared::Unknown => return Ok(None),
                Compared::Differs => {
                    tracing::warn!(layer = %layer.blob, %entry, "the copy of a file for the kernel was damaged; it is made again");
                    self.layer.store.drop_passthrough_copy(layer, entry.0);
                }
            }
        }
        if self.layer.store.make_room(run.end - run.start)? > 0 {
            return Ok(None);
        }
        let mut new = self.layer.store.new_passthrough_copy(layer, entry.0)?;
        let mut room = vec![0; PIECE];
        for piece in pieces(&run) {
            let bytes = &mut room[..(piece.end - piece.start) as usize];
            if !read(piece.start, bytes) {
                return Ok(None);
            }
            new.write_all(bytes)?;
            // The kernel will cache the pages of the copy; drop the duplicates of the content file.
            self.layer.content.drop_pages(piece);
        }
        Ok(self.layer.store.publish_passthrough_copy(new)?.map(|copy| self.trust(entry, copy)))
    }

    fn is_all_of_its_layer(&self, entry: EntryId) -> bool {
        // Faults of an index are reported where it is used.
        matches!(decoded_range(self.index(), entry), Ok(Some(run)) if is_all(self.index(), &run))
    }

    /// The layer's content file, if this process or a seal vouches for all of it.
    fn content_file_now(&self, entry: EntryId) -> Option<File> {
        let (store, name) = (&self.layer.store, name_of(self.index()));
        if let Some(sealed) = store.verified_content(name) {
            return Some(sealed.file);
        }
        let found = store.content_file(name)?;
        (lock(&self.layer.passthrough_copies).get(&entry) == Some(&found.stamp())).then_some(found.file)
    }

    /// Seals the layer's content and compares it with its digests; `None` if some of it is not cached.
    fn seal_content_file(&self, entry: EntryId) -> Result<Option<File>, PassthroughCopyError> {
        let sealed = match self.layer.compared(ByKernel::No) {
            Ok(sealed) => sealed,
            Err(SealError::Missing(_)) => return Ok(None),
            Err(SealError::Read(error)) => return Err(error.into()),
            Err(SealError::Store(error)) => return Err(error.into()),
        };
        lock(&self.layer.passthrough_copies).insert(entry, sealed.stamp());
        // The kernel reads without asking, so record the demand now.
        self.scheduler.record(self.index().spans());
        // Opened anew: for reading only, and if it is still what was compared.
        Ok(self.content_file_now(entry))
    }

    /// Marks a copy from [`LayerReader::make_passthrough_copy`] as trusted for other processes. Waits for the disk.
    pub fn seal_passthrough_copy(&self, entry: EntryId) {
        if self.is_all_of_its_layer(entry) {
            return self.record_content_file(entry);
        }
        let Some(copy) = self.layer.store.passthrough_copy(name_of(self.index()), entry.0) else { return };
        if lock(&self.layer.passthrough_copies).get(&entry) != Some(&copy.stamp())
            || self.layer.store.is_sealed(name_of(self.index()), entry.0, &copy)
        {
            return;
        }
        if let Err(error) = self.layer.store.seal_passthrough_copy(name_of(self.index()), entry.0, &copy) {
            tracing::debug!(layer = %self.blob().digest, %entry, %error, "other processes will compare the copy of a file again");
        }
    }

    fn record_content_file(&self, entry: EntryId) {
        let (store, name) = (&self.layer.store, name_of(self.index()));
        let Some(sealed) = store.content_file(name) else { return };
        let known = lock(&self.layer.passthrough_copies).get(&entry) == Some(&sealed.stamp());
        if !known || store.verified_content(name).is_some() {
            return;
        }
        if let Err(error) = store.record_verified(name, &self.layer.content, &sealed) {
            tracing::debug!(layer = %self.blob().digest, %error, "other processes will compare the content of a layer again");
        }
    }

    fn trust(&self, entry: EntryId, copy: PassthroughCopy) -> File {
        lock(&self.layer.passthrough_copies).insert(entry, copy.stamp());
        copy.into_file()
    }
}

/// Compares a copy with the layer's bytes; `read` returns `false` for bytes that are not cached.
pub(super) fn compare(
    run: &Range<DecodedOffset>,
    copy: &PassthroughCopy,
    read: &mut dyn FnMut(DecodedOffset, &mut [u8]) -> bool,
) -> Compared {
    if copy.size() != run.end - run.start {
        return Compared::Differs;
    }
    let (mut expected, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    for piece in pieces(run) {
        let length = (piece.end - piece.start) as usize;
        let (expected, found) = (&mut expected[..length], &mut found[..length]);
        if !read(piece.start, expected) {
            return Compared::Unknown;
        }
        if copy.file().read_exact_at(found, piece.start - run.start).is_err() || expected != found {
            return Compared::Differs;
        }
    }
    Compared::Same
}

/// The range of a file in its layer's decoded stream; `None` if the file has holes or is empty.
pub(super) fn decoded_range(index: &LayerIndex, entry: EntryId) -> Result<Option<Range<DecodedOffset>>, IndexError> {
    let size = index.entry(entry)?.size();
    let extents = index.extents(entry, FileOffset(0)..FileOffset(size))?;
    Ok(match &extents[..] {
        [only] if only.file.end.0 == size => only.decoded.map(|from| from..from + size),
        _ => None,
    })
}

/// Whether a file is the whole decoded stream of its layer.
fn is_all(index: &LayerIndex, run: &Range<DecodedOffset>) -> bool {
    *run == (DecodedOffset(0)..DecodedOffset(index.layer().decoded_size))
}

fn pieces(run: &Range<DecodedOffset>) -> impl Iterator<Item = Range<DecodedOffset>> + use<> {
    let Range { start, end } = *run;
    (start.0..end.0).step_by(PIECE).map(move |at| DecodedOffset(at)..DecodedOffset((at + PIECE as u64).min(end.0)))
}

/// Bytes read and written at a time.
const PIECE: usize = 1 << 20;
