//! Indexes of first passes, compressed for a registry: their windows in blobs of their own, of which others fetch ranges.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use super::layer_ref::LayerRef;
use super::origin::{Origin, open_stored};
use super::transfer::{TransferError, check};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::documents::{PushedBlob, PushedIndex, PushedWindows};
use crate::layer::{LayerIndex, TakeApartError, WindowsBlob, WriteError, write_without_windows};
use crate::store::Store;

/// An index that is ready to be pushed.
#[derive(Debug)]
pub struct PackedIndex {
    /// How it is described.
    pub index: PushedIndex,
    /// The compressed bytes, from the start of the file.
    pub file: Arc<File>,
    /// Its windows, likewise, if it is without them.
    pub windows: Option<Arc<File>>,
}

/// Checks and compresses the index that this machine has made of a layer. The same index always yields the same bytes.
///
/// # Errors
/// [`TransferError::Missing`] if there is none, or it was made elsewhere.
pub fn pack_index(store: &Store, layer: &LayerRef) -> Result<PackedIndex, TransferError> {
    let name = &layer.blob.digest;
    let missing = || TransferError::Missing { layer: name.clone() };
    let index = open_stored(layer, &[Origin::Store], store).map_err(|_| missing())?.index;
    check(&index).map_err(|cause| TransferError::Index { layer: name.clone(), cause })?;
    let failed = |error| match error {
        TakeApartError::Index(cause) => TransferError::Index { layer: name.clone(), cause },
        TakeApartError::Write(WriteError::Io { cause }) => cause.into(),
        TakeApartError::Write(cause) => io::Error::other(cause).into(),
    };
    let windows = windows_of(&index, store).map_err(failed)?;
    let from = store.index(layer.index_name()).ok_or_else(missing)?;
    let file = Arc::new(store.unnamed_file()?);
    let mut encoder = zstd::stream::write::Encoder::new(Hashed::new(&file), LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    let (size, version) = match &windows {
        Some((blob, _)) => {
            let mut out = Counted { out: &mut encoder, written: 0 };
            write_without_windows(&index, blob, &mut out).map_err(failed)?;
            (out.written, LayerIndex::VERSION_WITHOUT_WINDOWS)
        }
        None => {
            let size = from.size();
            encoder.set_pledged_src_size(Some(size))?;
            let mut room = vec![0; PIECE.min(size) as usize];
            for at in (0..size).step_by(PIECE as usize) {
                let piece = &mut room[..PIECE.min(size - at) as usize];
                from.read_exact_at(piece, at)?;
                encoder.write_all(piece)?;
            }
            (size, index.version())
        }
    };
    let (digest, packed) = encoder.finish()?.finish();
    let blob = PushedBlob { digest, size: packed, decoded: size };
    let (described, windows) = match windows {
        Some((WindowsBlob { digest, size }, file)) => (Some(PushedWindows { digest, size }), Some(file)),
        None => (None, None),
    };
    let index = PushedIndex { layer: name.clone(), version, blob, windows: described };
    Ok(PackedIndex { index, file, windows })
}

/// The windows of an index in a file of their own, if that is worth it.
fn windows_of(index: &LayerIndex, store: &Store) -> Result<Option<(WindowsBlob, Arc<File>)>, TakeApartError> {
    if index.window_bytes() <= INSIDE {
        return Ok(None);
    }
    let file = Arc::new(store.unnamed_file().map_err(WriteError::from)?);
    let mut out = Hashed::new(&file);
    index.copy_windows(&mut out)?;
    let (digest, size) = out.finish();
    Ok(Some((WindowsBlob { digest, size }, file)))
}

/// Compresses some bytes likewise, in memory.
///
/// # Errors
/// [`io::Error`]
pub fn pack(bytes: &[u8]) -> io::Result<(PushedBlob, Vec<u8>)> {
    let packed = zstd::bulk::compress(bytes, LEVEL)?;
    let digest = Digest::of(Algorithm::Sha256, &packed);
    Ok((PushedBlob { digest, size: packed.len() as u64, decoded: bytes.len() as u64 }, packed))
}

/// A file that is hashed as it is written.
struct Hashed<'a> {
    file: &'a File,
    hasher: Hasher,
    written: u64,
}

impl<'a> Hashed<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, hasher: Hasher::new(Algorithm::Sha256), written: 0 }
    }

    fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.written)
    }
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written.
struct Counted<W> {
    out: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// So many bytes of windows stay in their index: a request costs more.
const INSIDE: u64 = 8 << 10;
/// Bytes of an index that are read at a time.
const PIECE: u64 = 1 << 20;
/// The window is what readers accept. A higher level takes several times as long for a percent or two.
const LEVEL: i32 = 15;
const WINDOW_LOG: u32 = 23;
