//! From the records of a table of contents to a layer's tree and spans.
//!
//! Files lie one after the other in a stream of their bodies, each at a multiple of 512, as in a tar without headers. What
//! is all zeros takes no place there: it is a hole of its file.

use base64::Engine as _;
use sha2::Digest as _;

use super::record::Record;
use super::{Bounds, ForeignLayer, TocError, is_plain};
use crate::codec::StartKind;
use crate::layer::check::Check;
use crate::layer::entry::{DataExtent, Device, Timestamp};
use crate::layer::pax::Xattr;
use crate::layer::spans::{Span, SpanSource};
use crate::layer::tar::{TarEntry, TarKind};
use crate::layer::tree::LayerTree;
use crate::offsets::{BlobOffset, DecodedOffset, FileOffset};

/// Takes records, in order.
pub(super) struct Bodies {
    bounds: Bounds,
    kind: StartKind,
    tree: LayerTree,
    spans: Vec<Span>,
    /// What each of them is decoded from; the last ones end at 0 as long as it is not known where.
    sources: Vec<SpanSource>,
    /// Where the stream ends so far.
    at: u64,
    /// Where what was taken of the blob ends so far.
    blob: u64,
    /// Where the last piece began there, and how many bytes of what decodes from there were taken.
    last: (u64, u64),
    /// Where pieces of files end in the blob.
    pieces_end: BlobOffset,
    /// The file whose pieces come.
    open: Option<File>,
    /// How many zeros may still be hashed.
    zeros: u64,
}

/// A file, of which more pieces may come.
struct File {
    path: Vec<u8>,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Vec<Xattr>,
    size: u64,
    /// Where its last piece ends in the blob; 0 where the format does not say it.
    blob_end: u64,
    pieces: Vec<Piece>,
}

struct Piece {
    blob: u64,
    /// Bytes that are decoded from there before those of the piece.
    skip: u64,
    /// In the file.
    at: u64,
    /// 0 where it goes on to the end of the file.
    size: u64,
    check: Check,
    /// It is said to be zeros, which need not be read.
    zeros: bool,
}

impl Bodies {
    pub(super) fn new(bounds: Bounds, kind: StartKind, pieces_end: BlobOffset) -> Self {
        let tree = LayerTree::new(bounds.tree);
        let (spans, sources, last) = (Vec::new(), Vec::new(), (u64::MAX, 0));
        Self { bounds, kind, tree, spans, sources, at: 0, blob: 0, last, pieces_end, open: None, zeros: MOST_ZEROS }
    }

    pub(super) fn take(&mut self, record: &Record<'_>) -> Result<(), TocError> {
        let name = record.name.as_bytes();
        let contradiction = |what| contradiction(name, what);
        if record.kind == "chunk" {
            let piece = piece(record)?;
            let file = self.open.as_mut().ok_or(contradiction("its pieces follow no file"))?;
            // Some writers give pieces no name.
            if !name.is_empty() && name != file.path {
                return Err(contradiction("its pieces follow another file"));
            }
            file.pieces.push(piece);
            return Ok(());
        }
        self.close()?;
        for text in [&record.name, &record.link_name] {
            if text.contains(char::REPLACEMENT_CHARACTER) {
                return Err(contradiction("JSON cannot hold its name"));
            }
        }
        let linked = if record.kind == "hardlink" { &*record.link_name } else { "" };
        if [&*record.name, linked].iter().any(|path| path.split('/').any(|part| part == "..")) {
            return Err(contradiction("its name leads upwards"));
        }
        let xattrs = xattrs(record)?;
        let (mtime, number) = (mtime(record)?, |number| u32::try_from(number).ok());
        let (Some(uid), Some(gid)) = (number(record.uid), number(record.gid)) else {
            return Err(contradiction("its owner is out of range"));
        };
        let mode = (record.mode & 0o7777) as u16;
        // Only the root has none, which is a directory.
        let has_name = record.name.split('/').any(|part| !matches!(part, "" | "."));
        if !has_name && record.kind != "dir" {
            return Err(contradiction("it has no name"));
        }
        if record.kind == "reg" {
            let mut file = File {
                path: name.to_vec(),
                mode,
                uid,
                gid,
                mtime,
                xattrs,
                size: record.size,
                blob_end: record.end_offset,
                pieces: Vec::new(),
            };
            if record.size > 0 {
                file.pieces.push(piece(record)?);
            }
            self.open = Some(file);
            return Ok(());
        }
        let device = Device { major: record.dev_major, minor: record.dev_minor };
        let kind = match &*record.kind {
            "dir" => TarKind::Directory,
            "symlink" => TarKind::Symlink(record.link_name.as_bytes()),
            "hardlink" => TarKind::HardLink(record.link_name.as_bytes()),
            "char" => TarKind::CharDevice(device),
            "block" => TarKind::BlockDevice(device),
            "fifo" => TarKind::Fifo,
            _ => return Err(contradiction("its type is unknown")),
        };
        let entry = TarEntry { at: DecodedOffset(self.at), path: name, kind, mode, uid, gid, mtime, xattrs: &xattrs };
        self.tree.add(&entry).map_err(TocError::Tree)
    }

    /// All records were taken.
    pub(super) fn finish(mut self) -> Result<ForeignLayer, TocError> {
        self.close()?;
        self.end_last(self.pieces_end);
        is_plain(&self.tree)?;
        // The stream ends with a block, as files begin with one.
        let Self { tree, spans, sources, at, .. } = self;
        Ok(ForeignLayer { tree, spans, sources, decoded_size: at.next_multiple_of(BLOCK) })
    }

    /// The pieces of a file have come.
    fn close(&mut self) -> Result<(), TocError> {
        let Some(file) = self.open.take() else { return Ok(()) };
        let runs = self.lay(&file)?;
        let File { path, mode, uid, gid, mtime, xattrs, size, .. } = &file;
        // In one piece, it is a file as any other.
        let (data, extents) = match &runs[..] {
            [] if *size == 0 => (DecodedOffset(self.at), None),
            [run] if run.len == *size => (run.decoded, None),
            runs => (DecodedOffset(self.at), Some(runs)),
        };
        let kind = TarKind::File { size: *size, data, extents };
        let (at, mode, uid, gid, mtime) = (data, *mode, *uid, *gid, *mtime);
        self.tree.add(&TarEntry { at, path, kind, mode, uid, gid, mtime, xattrs }).map_err(TocError::Tree)
    }

    /// Makes spans of a file's pieces; returns its runs of data.
    fn lay(&mut self, file: &File) -> Result<Vec<DataExtent>, TocError> {
        let contradiction = |what| contradiction(&file.path, what);
        let (mut runs, mut done): (Vec<DataExtent>, u64) = (Vec::new(), 0);
        for (number, piece) in file.pieces.iter().enumerate() {
            let next = file.pieces.get(number + 1);
            let rest = file.size.checked_sub(done).filter(|rest| *rest > 0);
            let rest = rest.ok_or(contradiction("it has more pieces than bytes"))?;
            let size = if piece.size == 0 && next.is_none() { rest } else { piece.size };
            if piece.at != done || size == 0 || size > rest {
                return Err(contradiction("its pieces do not follow one another"));
            }
            // Pieces of small files may be decoded from one place; then the next one does not say where this one ends.
            let end = next.map_or(file.blob_end, |next| if next.blob == piece.blob { 0 } else { next.blob });
            self.take_blob(piece, size, end).map_err(contradiction)?;
            if end > 0 {
                // Those before it in the same member end with it.
                self.end_last(BlobOffset(end));
            }
            if !self.is_hole(piece, size).map_err(contradiction)? {
                if size > LARGEST_PIECE {
                    return Err(contradiction("it has a piece that is too large to be read at once"));
                }
                let follows = runs.last().is_some_and(|run| run.file.0 + run.len == done);
                let start = if follows { self.at } else { self.at.next_multiple_of(BLOCK) };
                self.at = start + size;
                if self.at > self.bounds.decoded {
                    return Err(TocError::Unusable { what: "its files have more bytes than a layer may have" });
                }
                match runs.last_mut().filter(|_| follows) {
                    Some(run) => run.len += size,
                    None => runs.push(DataExtent { file: FileOffset(done), decoded: DecodedOffset(start), len: size }),
                }
                self.spans.push(Span {
                    decoded: DecodedOffset(start)..DecodedOffset(self.at),
                    blob: BlobOffset(piece.blob),
                    bit: 0,
                    kind: self.kind,
                    check: piece.check.clone(),
                    window: None,
                });
                self.sources.push(SpanSource { end: BlobOffset(end), skip: piece.skip });
            }
            done += size;
        }
        if done == file.size { Ok(runs) } else { Err(contradiction("its pieces do not add up to its size")) }
    }

    /// Whether a piece is zeros, as is said of it. Of very many zeros that is not looked at: they are read like other bytes.
    fn is_hole(&mut self, piece: &Piece, size: u64) -> Result<bool, &'static str> {
        let Some(left) = self.zeros.checked_sub(size).filter(|_| piece.zeros) else { return Ok(false) };
        self.zeros = left;
        if piece.check == sha256_of_zeros(size) {
            Ok(true)
        } else {
            Err("a piece of it is said to be zeros, and is not")
        }
    }

    /// Pieces lie one after the other, none in another. Where one of `size` bytes ends is not known before the next begins,
    /// if `end` is 0.
    fn take_blob(&mut self, piece: &Piece, size: u64, end: u64) -> Result<(), &'static str> {
        let start = piece.blob;
        let beside = start == self.last.0 && piece.skip >= self.last.1;
        if !beside {
            if start < self.blob {
                return Err("a piece of it overlaps another, or lies before");
            }
            self.end_last(BlobOffset(start));
        }
        let stated = if end == 0 { start.saturating_add(1) } else { end };
        if stated <= start || stated > self.pieces_end.0 || piece.skip > LARGEST_PIECE {
            return Err("a piece of it lies outside the layer's data");
        }
        self.blob = stated;
        self.last = (start, piece.skip.saturating_add(size));
        Ok(())
    }

    /// The last pieces end at the latest here.
    fn end_last(&mut self, end: BlobOffset) {
        self.sources.iter_mut().rev().take_while(|source| source.end.0 == 0).for_each(|source| source.end = end);
    }

    /// Adds a file that no record is of: `entry`, a file that lies behind the pieces of all others, at `place`. Its `size`
    /// bytes come behind `skip` others there.
    pub(super) fn add(
        &mut self,
        entry: &TarEntry<'_>,
        (skip, size): (u64, u64),
        check: Check,
        place: &std::ops::Range<BlobOffset>,
    ) -> Result<(), TocError> {
        self.close()?;
        self.end_last(self.pieces_end);
        self.pieces_end = place.end;
        let piece = Piece { blob: place.start.0, skip, at: 0, size, check, zeros: false };
        self.open = Some(File {
            path: entry.path.to_vec(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.to_vec(),
            size,
            blob_end: place.end.0,
            pieces: vec![piece],
        });
        Ok(())
    }
}

/// The piece that a record is of.
fn piece(record: &Record<'_>) -> Result<Piece, TocError> {
    let contradiction = |what| contradiction(record.name.as_bytes(), what);
    let zeros = match &*record.chunk_type {
        "" => false,
        "zeros" => true,
        _ => return Err(contradiction("a piece of it is of an unknown type")),
    };
    // One that is all of its file may have no digest but that of the file.
    let text = if record.chunk_digest.is_empty() { &record.digest } else { &record.chunk_digest };
    let check = text.parse().ok().and_then(|digest| Check::of_sha256(&digest));
    let check = check.ok_or(contradiction("a piece of it has no SHA-256 digest"))?;
    let (blob, skip, at, size) = (record.offset, record.inner_offset, record.chunk_offset, record.chunk_size);
    Ok(Piece { blob, skip, at, size, check, zeros })
}

fn sha256_of_zeros(size: u64) -> Check {
    let (mut hasher, block, mut left) = (sha2::Sha256::new(), vec![0; ZEROS.min(size) as usize], size);
    while left > 0 {
        let now = left.min(ZEROS);
        hasher.update(&block[..now as usize]);
        left -= now;
    }
    Check::Sha256(hasher.finalize().into())
}

fn mtime(record: &Record<'_>) -> Result<Timestamp, TocError> {
    if record.modtime.is_empty() {
        return Ok(Timestamp::default());
    }
    let time = record.modtime.parse::<jiff::Timestamp>();
    let time = time.map_err(|_| contradiction(record.name.as_bytes(), "its time is none"))?;
    let nanos = time.as_nanosecond();
    let within = u32::try_from(nanos.rem_euclid(SECOND)).expect("a remainder of 10⁹");
    // As many seconds as jiff can hold.
    Ok(Timestamp { seconds: i64::try_from(nanos.div_euclid(SECOND)).unwrap_or(0), nanos: within })
}

fn xattrs(record: &Record<'_>) -> Result<Vec<Xattr>, TocError> {
    let decoded = record.xattrs.iter().map(|(name, value)| {
        let value = base64::engine::general_purpose::STANDARD.decode(&**value).ok()?;
        let is_whole = !name.contains(char::REPLACEMENT_CHARACTER);
        is_whole.then(|| Xattr { name: name.as_bytes().to_vec(), value })
    });
    let decoded: Option<Vec<_>> = decoded.collect();
    decoded.ok_or_else(|| contradiction(record.name.as_bytes(), "it has an attribute that cannot be read"))
}

fn contradiction(name: &[u8], what: &'static str) -> TocError {
    TocError::Contradiction { name: name[..name.len().min(256)].to_vec(), what }
}

/// The longest piece, and what may be decoded before one, in bytes: readers hold a piece in memory. Tools write pieces of 4 MiB
/// at most, older ones each file in one.
const LARGEST_PIECE: u64 = 64 << 20;
/// Files begin at a multiple of this, as in a tar.
const BLOCK: u64 = 512;
const SECOND: i128 = 1_000_000_000;
/// Zeros of one layer that are hashed to see that they are what a table says: a quarter of a second.
const MOST_ZEROS: u64 = 256 << 20;
/// Zeros that are hashed at once.
const ZEROS: u64 = 64 << 10;
