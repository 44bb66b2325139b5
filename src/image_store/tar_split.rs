//! The data to rebuild a layer's tar from its files: the format of the Go package tar-split, version 2,
//! gzip-compressed.
//!
//! An engine that saves or pushes an image needs each layer's original tar, byte by byte. It takes headers and padding
//! from this file, in order, and between them files by name, each with a checksum (CRC-64 of ISO 3309). Tar content
//! that is not shown as a file may be included like a header.
//!
//! Most engines never read it. So it is made when its size is requested, which happens at the first read.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use base64::Engine as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::FutureExt as _;
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::codec::tar_split::{Crc64, FILE, SEGMENT};
use crate::image::{Answer, FileInTar, FsError, LayerFs, LayerTar, NoAnswer};
use crate::offsets::FileOffset;

/// Makes an unnamed file, deleted with this process.
pub type MakeFile = Arc<dyn Fn() -> io::Result<File> + Send + Sync>;

/// The file of one layer, made on demand.
pub(super) struct TarSplit {
    fs: Arc<LayerFs>,
    make_file: MakeFile,
    made: Arc<OnceCell<Arc<Made>>>,
}

/// The file.
pub(super) struct Made {
    file: File,
    size: u64,
}

impl TarSplit {
    pub(super) fn new(fs: Arc<LayerFs>, make_file: MakeFile) -> Self {
        Self { fs, make_file, made: Arc::default() }
    }

    /// Its size, if it was made.
    pub(super) fn size(&self) -> Option<u64> {
        self.made.get().map(|made| made.size)
    }

    /// The file, or the task that makes it.
    pub(super) fn made(&self) -> Answer<Arc<Made>> {
        if let Some(made) = self.made.get() {
            return Ok(Arc::clone(made));
        }
        let (fs, make_file, place) = (Arc::clone(&self.fs), Arc::clone(&self.make_file), Arc::clone(&self.made));
        let make = async move {
            let made = place.get_or_try_init(|| async { make(&fs, &make_file).await.map(Arc::new) });
            made.await.map(drop)
        };
        Err(NoAnswer::Later(make.boxed()))
    }
}

impl Made {
    pub(super) fn read(&self, at: FileOffset, buf: &mut [u8]) -> Answer<usize> {
        self.file.read_at(buf, at.0).map_err(|cause| NoAnswer::Never(failed(cause)))
    }
}

fn failed(cause: io::Error) -> FsError {
    tracing::error!(%cause, "cannot make the tar-split file of a layer");
    FsError::Disk(Arc::new(cause))
}

async fn make(fs: &LayerFs, make_file: &MakeFile) -> Result<Made, FsError> {
    let (tar, files) = fs.tar().await?;
    let file = make_file().map_err(failed)?;
    let mut writer = Writer::new(io::BufWriter::new(file));
    write(&tar, &files, &mut writer).await?;
    let file = writer.finish().map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    Ok(Made { file, size })
}

async fn write(tar: &LayerTar, files: &[FileInTar], writer: &mut Writer<impl Write>) -> Result<(), FsError> {
    let (mut at, mut buf) = (0, Vec::new());
    for file in files {
        segments(tar, at..file.at, writer, &mut buf).await?;
        let mut sum = Crc64::new();
        at = file.at;
        while at < file.at + file.size {
            buf.resize((file.at + file.size - at).min(PIECE) as usize, 0);
            tar.read(at, &mut buf).await?;
            sum.add(&buf);
            at += buf.len() as u64;
        }
        writer.file(file, sum.finish()).map_err(failed)?;
    }
    segments(tar, at..tar.size(), writer, &mut buf).await
}

/// Literal bytes.
async fn segments(
    tar: &LayerTar,
    range: std::ops::Range<u64>,
    writer: &mut Writer<impl Write>,
    buf: &mut Vec<u8>,
) -> Result<(), FsError> {
    let mut at = range.start;
    while at < range.end {
        buf.resize((range.end - at).min(PIECE) as usize, 0);
        tar.read(at, buf).await?;
        writer.segment(buf).map_err(failed)?;
        at += buf.len() as u64;
    }
    Ok(())
}

/// One line.
#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: String,
    position: u64,
}

struct Writer<W: Write> {
    to: GzEncoder<W>,
    position: u64,
}

impl<W: Write> Writer<W> {
    fn new(to: W) -> Self {
        Self { to: GzEncoder::new(to, Compression::fast()), position: 0 }
    }

    fn segment(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.entry(SEGMENT, None, None, bytes)
    }

    fn file(&mut self, file: &FileInTar, sum: u64) -> io::Result<()> {
        self.entry(FILE, Some(&file.path), Some(file.size), &sum.to_be_bytes())
    }

    fn entry(&mut self, kind: u8, name: Option<&str>, size: Option<u64>, payload: &[u8]) -> io::Result<()> {
        let payload = base64::engine::general_purpose::STANDARD.encode(payload);
        serde_json::to_writer(&mut self.to, &Entry { kind, name, size, payload, position: self.position })?;
        self.position += 1;
        self.to.write_all(b"\n")
    }
}

impl<W: Write> Writer<io::BufWriter<W>> {
    fn finish(self) -> io::Result<W> {
        self.to.finish()?.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// Bytes per read.
const PIECE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use super::*;

    #[test]
    fn lines_are_those_of_tar_split() {
        let mut writer = Writer::new(io::BufWriter::new(Vec::new()));
        writer.segment(b"head").unwrap();
        writer.file(&FileInTar { path: "a/b".into(), at: 4, size: 3 }, 0x3420_0000_0000_0000).unwrap();
        let text = writer.finish().unwrap();
        let mut lines = String::new();
        flate2::read::GzDecoder::new(&text[..]).read_to_string(&mut lines).unwrap();
        assert_eq!(
            lines,
            "{\"type\":2,\"payload\":\"aGVhZA==\",\"position\":0}\n\
             {\"type\":1,\"name\":\"a/b\",\"size\":3,\"payload\":\"NCAAAAAAAAA=\",\"position\":1}\n"
        );
    }
}
