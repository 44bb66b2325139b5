//! Export and import of layer indexes: written to one file here, read into another machine's store there.
//!
//! A built index is proven: its bytes were derived from a blob with the right digest and diff_id. An imported index is
//! not: nothing in it proves that its names, attributes and span digests belong to the blob. Importing it means
//! trusting its maker like this machine, so its origin is recorded ([`Proof::Vouched`]). All other properties are
//! checked on import, so that a damaged or malformed file fails at once.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use super::layer_ref::LayerRef;
use super::superseded::drop_superseded;
use super::windows::{WindowSource, WindowsError, complete_windows};
use crate::digest::Digest;
use crate::layer::{Format, IndexError, LayerIndex, Proof, ReadAt, Stream, TakeApartError, write_with_windows};
use crate::offsets::{BlobOffset, DecodedOffset};
use crate::store::{IndexFile, IndexName, NewFile, Store, StoreError};

/// Why indexes could not be exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store has no index of a layer.
    #[error("there is no index of layer {layer}")]
    Missing {
        /// The layer.
        layer: Digest,
    },
    /// All layers were opened by tables of contents.
    #[error("every layer was opened by the table of contents that it brings along, and no such index is carried")]
    TablesOnly,
    /// The file could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not an export, or is truncated.
    #[error("not a file of exported indexes: {why}")]
    NotAnExport {
        /// What is wrong.
        why: &'static str,
    },
    /// An index in the file is not usable.
    #[error("the index of layer {layer} cannot be used")]
    Index {
        /// The layer it claims to be of.
        layer: Digest,
        /// Why.
        #[source]
        cause: IndexError,
    },
    /// An index is without its windows, and they cannot be had.
    #[error("windows of the index of layer {layer} cannot be fetched")]
    Windows {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        cause: WindowsError,
    },
    /// The store cannot store the index.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Result of an import.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Imported {
    /// Indexes that were added.
    pub new: u32,
    /// Indexes that the store already had; it keeps its own.
    pub known: u32,
}

/// An import that did not take every index.
#[derive(Debug, thiserror::Error)]
#[error("{} of {of} indexes were not taken", of.saturating_sub(imported.new.saturating_add(imported.known)))]
pub struct ImportError {
    /// What was taken.
    pub imported: Imported,
    /// How many indexes the file says that it has; 0 if it was not read so far.
    pub of: u32,
    /// What is wrong with the file, or with its first index that was not taken.
    #[source]
    pub cause: Box<TransferError>,
}

/// Fetches the windows that indexes of some layers are without, so that they can be exported.
///
/// # Errors
/// [`TransferError::Windows`]
pub async fn complete_indexes(
    store: &Arc<Store>,
    layers: &[LayerRef],
    source: Option<&WindowSource>,
) -> Result<(), TransferError> {
    for layer in layers {
        let Some(index) = store.index(layer.index_name()).and_then(|file| LayerIndex::open(file).ok()) else {
            continue;
        };
        let completed = complete_windows(store, &Arc::new(index), source).await;
        completed.map_err(|cause| TransferError::Windows { layer: layer.blob.digest.clone(), cause })?;
    }
    Ok(())
}

/// Writes the indexes of some layers; returns how many were left out, as they were made of tables of contents, which other
/// machines read themselves.
///
/// # Errors
/// [`TransferError::Missing`] if the store lacks one of them; [`TransferError::TablesOnly`] if all are left out;
/// [`TransferError::Index`], [`TransferError::Io`].
pub fn export_indexes(store: &Store, layers: &[LayerRef], out: &mut impl Write) -> Result<usize, TransferError> {
    let mut files = Vec::new();
    for layer in layers {
        let digest = &layer.blob.digest;
        let missing = || TransferError::Missing { layer: digest.clone() };
        let unusable = |cause| TransferError::Index { layer: digest.clone(), cause };
        let index = LayerIndex::open(store.index(layer.index_name()).ok_or_else(missing)?).map_err(unusable)?;
        if index.stream() == Stream::Bodies {
            continue;
        }
        files.push(match index.windows_blob().map_err(unusable)? {
            None => (digest, Exported::AsItIs(store.index(layer.index_name()).ok_or_else(missing)?)),
            Some(_) => (digest, Exported::whole(store, &index)?),
        });
    }
    if files.is_empty() && !layers.is_empty() {
        return Err(TransferError::TablesOnly);
    }
    let left_out = layers.len() - files.len();
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&u32::try_from(files.len()).unwrap_or(u32::MAX).to_le_bytes())?;
    for (layer, file) in files {
        let name = layer.to_string();
        out.write_all(&[u8::try_from(name.len()).expect("a digest has at most 135 characters")])?;
        out.write_all(name.as_bytes())?;
        let size = file.size()?;
        out.write_all(&size.to_le_bytes())?;
        let mut room = vec![0; PIECE.min(size) as usize];
        for at in (0..size).step_by(PIECE as usize) {
            let piece = &mut room[..PIECE.min(size - at) as usize];
            file.read_exact_at(piece, at)?;
            out.write_all(piece)?;
        }
    }
    Ok(left_out)
}

/// An index with its windows.
enum Exported {
    AsItIs(IndexFile),
    /// It was without them.
    PutTogether(File),
}

impl Exported {
    fn whole(store: &Store, index: &LayerIndex) -> Result<Self, TransferError> {
        let layer = || index.layer().blob.clone();
        let windows = store.windows(&index.layer().blob);
        let mut out = BufWriter::new(store.unnamed_file()?);
        let written = write_with_windows(index, |buf, at| windows.read_exact_at(buf, at), &mut out);
        written.map_err(|error| match error {
            TakeApartError::Index(cause) => TransferError::Index { layer: layer(), cause },
            TakeApartError::Write(cause) => io::Error::other(cause).into(),
        })?;
        Ok(Self::PutTogether(out.into_inner().map_err(io::IntoInnerError::into_error)?))
    }

    fn size(&self) -> io::Result<u64> {
        match self {
            Self::AsItIs(file) => Ok(file.size()),
            Self::PutTogether(file) => Ok(file.metadata()?.len()),
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::AsItIs(file) => file.read_exact_at(buf, at),
            Self::PutTogether(file) => std::os::unix::fs::FileExt::read_exact_at(file, buf, at),
        }
    }
}

/// Reads exported indexes, for which `by` vouches, into the store. Before an index is published, its pages and spans
/// are checked, and that it names the layer that it is stored under. One that cannot be used is left out.
///
/// # Errors
/// [`ImportError`], which says what was taken all the same.
pub fn import_indexes(store: &Store, from: &mut impl Read, by: &str) -> Result<Imported, ImportError> {
    let mut imported = Imported::default();
    let mut unusable = None;
    let mut of = 0;
    let done = import_all(store, from, by, (&mut imported, &mut unusable, &mut of));
    match unusable.map_or(done, Err) {
        Ok(()) => Ok(imported),
        Err(cause) => Err(ImportError { imported, of, cause: Box::new(cause) }),
    }
}

/// As [`import_indexes`], with what was taken, the first index that cannot be used, and how many the file says that it has.
fn import_all(
    store: &Store,
    from: &mut impl Read,
    by: &str,
    (imported, unusable, of): (&mut Imported, &mut Option<TransferError>, &mut u32),
) -> Result<(), TransferError> {
    let mut head = [0; 16];
    whole(from, &mut head)?;
    if head[..8] != *MAGIC || head[8..12] != VERSION.to_le_bytes() {
        return Err(TransferError::NotAnExport { why: "unknown header" });
    }
    *of = u32::from_le_bytes(head[12..].try_into().expect("4 bytes were cut"));
    for _ in 0..*of {
        match import_one(store, from, by) {
            Ok(Taken::New) => imported.new += 1,
            Ok(Taken::Known) => imported.known += 1,
            Err(error @ TransferError::Index { .. }) => drop(unusable.get_or_insert(error)),
            Err(error) => return Err(error),
        }
    }
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(TransferError::NotAnExport { why: "data after its last index" }),
    }
}

/// What became of an index.
enum Taken {
    New,
    Known,
}

/// Reads the next index.
fn import_one(store: &Store, from: &mut impl Read, by: &str) -> Result<Taken, TransferError> {
    let mut length = [0];
    whole(from, &mut length)?;
    let mut name = vec![0; length[0].into()];
    whole(from, &mut name)?;
    let layer: Option<Digest> = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
    let layer = layer.ok_or(TransferError::NotAnExport { why: "a layer's name is not a digest" })?;
    let mut length = [0; 8];
    whole(from, &mut length)?;
    let mut new = store.new_index(&layer)?;
    copy(from, &mut new, u64::from_le_bytes(length))?;
    let unusable = |cause| TransferError::Index { layer: layer.clone(), cause };
    let index = checked(new.file().try_clone()?, &layer).map_err(unusable)?;
    let name = match index.stream() {
        Stream::Blob => IndexName::of_file(&layer),
        Stream::Tar | Stream::Bodies => (&layer).into(),
    };
    if store.index(name).is_some_and(|known| checked(known, &layer).is_ok()) {
        return Ok(Taken::Known);
    }
    store.call_index(&mut new, name);
    let (end_at, end) = index.end_with(Proof::vouched(Format::Exported, by));
    new.cut(end_at)?;
    new.write_all(&end)?;
    new.publish()?;
    drop_superseded(store, &layer);
    Ok(Taken::New)
}

/// Copies so many bytes. An error says whether reading or writing has failed.
fn copy(from: &mut impl Read, to: &mut NewFile, length: u64) -> Result<(), TransferError> {
    let mut room = vec![0; PIECE.min(length) as usize];
    let mut left = length;
    while left > 0 {
        let piece = &mut room[..PIECE.min(left) as usize];
        whole(from, piece)?;
        to.write_all(piece)?;
        left -= piece.len() as u64;
    }
    Ok(())
}

fn whole(from: &mut impl Read, buf: &mut [u8]) -> Result<(), TransferError> {
    from.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => TransferError::NotAnExport { why: "it is cut short" },
        _ => error.into(),
    })
}

/// Opens and checks an index, which must be of the layer with this blob.
fn checked(file: impl ReadAt + 'static, layer: &Digest) -> Result<LayerIndex, IndexError> {
    let index = LayerIndex::open(file)?;
    if index.layer().blob != *layer {
        return Err(IndexError::Malformed { what: "the index is of another layer" });
    }
    if index.windows_blob()?.is_some() {
        return Err(IndexError::Malformed { what: "its windows are in a blob of their own" });
    }
    check(&index)?;
    Ok(index)
}

/// Checks an index that was made elsewhere: all pages are sound, it was not made of a table of contents, and the spans are
/// contiguous.
pub(super) fn check(index: &LayerIndex) -> Result<(), IndexError> {
    index.check_all()?;
    if index.stream() == Stream::Bodies {
        return Err(IndexError::Malformed { what: "it was made of a table of contents, which is not for others" });
    }
    let (mut decoded, mut blob) = (DecodedOffset(0), BlobOffset(0));
    for number in index.spans().iter() {
        let span = index.span(number)?;
        if span.decoded.start != decoded || span.decoded.end <= decoded || span.blob < blob {
            return Err(IndexError::Malformed { what: "spans are not contiguous" });
        }
        (decoded, blob) = (span.decoded.end, span.blob);
    }
    if decoded.0 != index.layer().decoded_size {
        return Err(IndexError::Malformed { what: "the spans do not end with the layer" });
    }
    Ok(())
}

/// Bytes of an index copied at a time.
const PIECE: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"PEELIDXS";
const VERSION: u32 = 1;
