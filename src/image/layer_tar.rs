//! A layer's tar, and which of its bytes belong to files that the layer shows.

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

/// A file stored contiguously in the tar.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileInTar {
    /// Its path in the layer.
    pub path: String,
    /// Offset of its first byte in the tar.
    pub at: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl LayerFs {
    /// The layer's tar, and its contiguous files, in order. Other content, such as replaced entries, is available only
    /// through the tar.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn tar(&self) -> Result<(LayerTar, Vec<FileInTar>), FsError> {
        self.all_known().await?;
        let number = self.number();
        let reader = self.image().awaited(|fs| fs.known_content(number).ok_or(NotNow::Needs(number))).await?;
        let listed = Arc::clone(&reader);
        let files = tokio::task::spawn_blocking(move || files(&listed));
        let files = files.await.map_err(|_| FsError::Ended)?;
        let files = files.map_err(|cause| FsError::Malformed { number, cause: Arc::new(cause) })?;
        Ok((LayerTar { size: reader.index().layer().decoded_size, reader }, files))
    }
}

fn files(reader: &LayerReader) -> Result<Vec<FileInTar>, crate::layer::IndexError> {
    let index = reader.index();
    let mut files = Vec::new();
    for id in (1..index.len()).map(EntryId) {
        let entry = index.entry(id)?;
        // One of several names of a file suffices.
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
        let Some(path) = index.path_within(id, PATH_MOST)? else { continue };
        // Names that look like whiteouts are not shown.
        let hidden = path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".wh."));
        if let (false, Ok(path)) = (hidden, String::from_utf8(path)) {
            files.push(FileInTar { path, at: at.0, size: entry.size() });
        }
    }
    files.sort_unstable_by_key(|file| file.at);
    // Two entries may share bytes.
    let mut end = 0;
    files.retain(|file| {
        let apart = file.at >= end;
        end = end.max(file.at + file.size);
        apart
    });
    Ok(files)
}

impl LayerTar {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from offset `at`; the range must lie within the tar.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), FsError> {
        // Like a sequential read of one large file.
        let behind = self.size.saturating_sub(at + buf.len() as u64);
        let place = PlaceInFile { entry: EntryId::ROOT, before: at, behind };
        match self.reader.read_now(DecodedOffset(at), buf, place, &mut || ())? {
            Local::Missing(missing) => Ok(self.reader.read_missing(missing, buf).await?),
            Local::Read => Ok(()),
        }
    }
}

/// Bytes of a path that Linux resolves at once: who has only the tar asks for no other files by name.
const PATH_MOST: usize = 4095;
