//! A layer's tar, byte by byte, and which of its bytes are those of files that the layer shows.

use std::sync::Arc;

use super::fs::{FsError, NotNow};
use super::layer_fs::LayerFs;
use crate::content::{LayerReader, Local};
use crate::layer::{EntryId, Kind};
use crate::offsets::{DecodedOffset, FileOffset};
use crate::predict::PlaceInFile;

/// The tar of one layer.
pub struct LayerTar {
    reader: Arc<LayerReader>,
    size: u64,
}

/// A file that the tar holds in one piece.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileInTar {
    /// Its path in the layer.
    pub path: String,
    /// Its first byte in the tar.
    pub at: u64,
    /// Bytes of it.
    pub size: u64,
}

impl LayerFs {
    /// The layer's tar, and the files of it that stand there in one piece, in their order. Whatever is not among them, as
    /// what a later entry replaces, is to be had of the tar alone.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn tar(&self) -> Result<(LayerTar, Vec<FileInTar>), FsError> {
        self.all_known().await?;
        let number = self.number();
        let reader = self.image().awaited(|fs| fs.known_content(number).ok_or(NotNow::Needs(number))).await?;
        let listed = Arc::clone(&reader);
        let files = tokio::task::spawn_blocking(move || files(&listed));
        let files = files.await.map_err(|_| FsError::TakesTooLong)?;
        let files = files.map_err(|cause| FsError::Malformed { number, cause: Arc::new(cause) })?;
        Ok((LayerTar { size: reader.index().layer().decoded_size, reader }, files))
    }
}

fn files(reader: &LayerReader) -> Result<Vec<FileInTar>, crate::layer::IndexError> {
    let index = reader.index();
    let mut files = Vec::new();
    for id in (1..index.len()).map(EntryId) {
        let entry = index.entry(id)?;
        // Of several names of one file one is enough.
        if entry.kind() != Kind::File
            || entry.inode() != id
            || entry.size() == 0
            || entry.is(crate::layer::Flags::DETACHED)
        {
            continue;
        }
        let extents = index.extents(id, FileOffset(0)..FileOffset(entry.size()))?;
        let [extent] = &extents[..] else { continue };
        let Some(at) = extent.decoded else { continue };
        let path = index.path(id)?;
        // What has another layer's names for whiteouts is not shown.
        let hidden = path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".wh."));
        if let (false, Ok(path)) = (hidden, String::from_utf8(path)) {
            files.push(FileInTar { path, at: at.0, size: entry.size() });
        }
    }
    files.sort_unstable_by_key(|file| file.at);
    // Nothing says that no two entries name the same bytes.
    let mut end = 0;
    files.retain(|file| {
        let apart = file.at >= end;
        end = end.max(file.at + file.size);
        apart
    });
    Ok(files)
}

impl LayerTar {
    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads as many of its bytes as `buf` has, from `at` on; all of them have to be within it.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), FsError> {
        // As of one large file, which is read in order.
        let behind = self.size.saturating_sub(at + buf.len() as u64);
        let place = PlaceInFile { entry: EntryId::ROOT, before: at, behind };
        match self.reader.read_now(DecodedOffset(at), buf, place, &mut || ())? {
            Local::Missing(missing) => Ok(self.reader.read_missing(missing, buf).await?),
            Local::Read => Ok(()),
        }
    }
}
