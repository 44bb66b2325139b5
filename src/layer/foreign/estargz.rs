//! eStargz, as stargz-snapshotter writes it: a gzip layer with members that begin at the pieces of files, and behind them, as
//! the last file of the tar and in members of its own, a table of contents.
//!
//! A member holds a piece and what follows it in the tar up to the next one. The blob's last bytes, an empty member, say
//! where the table's member begins; the digest of the table's JSON is an annotation of the layer in the manifest. Where they
//! say that it is elsewhere (`--estargz-external-toc`), the table is a layer of another image, whose tag ends with
//! [`TOC_IMAGE`]; that layer has an annotation with the digest of the layer that it is of.
//!
//! Landmarks (`.prefetch.landmark`, `.no.prefetch.landmark`) and the table itself (`stargz.index.json`) are files of the
//! tar, and shown like any others, as every tool shows them that unpacks the layer.

use std::ops::Range;

use super::bodies::Bodies;
use super::record;
use super::zstd_chunked;
use super::{Bounds, ForeignLayer, LARGEST_TOC, PlaceError, TocError};
use crate::codec::{CodecError, LayerDecoder, Limits, OutputBuffer, StartKind, Status};
use crate::descriptor::{Compression, Descriptor};
use crate::digest::Digest;
use crate::layer::check::Check;
use crate::layer::entry::{EntryId, Kind};
use crate::layer::index::{IndexError, LayerIndex};
use crate::layer::tar::{TarEntry, TarKind, TarSink, TarWalker};
use crate::layer::tree::TreeError;
use crate::offsets::{BlobOffset, DecodedOffset};
use crate::span::{SpanId, SpanRange};

/// The annotation with the digest of the table's JSON.
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// The annotation of a table that is a layer of another image: the layer that it is of.
const TOC_OF: &str = "containerd.io/snapshot/stargz/layer.digest";
/// How the tag of that image ends.
pub const TOC_IMAGE: &str = "-esgztoc";
/// The table's name in the tar.
const TOC_NAME: &[u8] = b"stargz.index.json";
/// What comes before this file is read when a container starts, says who made the layer.
const LANDMARK: &[u8] = b".prefetch.landmark";

/// A table of contents, as a manifest names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Toc {
    /// What its JSON hashes to.
    pub digest: Digest,
    /// How many bytes the blob has.
    pub blob_size: u64,
}

/// The table that the annotations of `layer` name; `None` where they name none, or one in zstd.
///
/// # Errors
/// [`PlaceError`]
pub fn toc_of(layer: &Descriptor) -> Result<Option<Toc>, PlaceError> {
    let Some(digest) = layer.annotations.get(TOC_DIGEST) else { return Ok(None) };
    if !matches!(zstd_chunked::toc_of(layer), Ok(None)) {
        return Ok(None);
    }
    let digest: Digest = digest.parse().map_err(|_| PlaceError::Malformed)?;
    if Check::of_sha256(&digest).is_none() {
        return Err(PlaceError::Malformed);
    }
    if layer.size <= FOOTER as u64 {
        return Err(PlaceError::Outside);
    }
    Ok(Some(Toc { digest, blob_size: layer.size }))
}

/// Where a table is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// In members of the layer.
    Here(Range<BlobOffset>),
    /// In another image.
    Elsewhere,
}

/// The table of `blob`, among the layers of an image of tables.
///
/// # Errors
/// [`PlaceError::TooLarge`], or there is none.
pub fn toc_among<'a>(layers: &'a [Descriptor], blob: &Digest) -> Result<&'a Descriptor, TocError> {
    let of_blob = |layer: &&Descriptor| layer.annotations.get(TOC_OF).is_some_and(|of| *of == blob.to_string());
    let found = layers.iter().find(of_blob);
    let found = found.ok_or(TocError::Unusable { what: "the image that has the tables has none of this layer" })?;
    if found.size > LARGEST_TOC {
        return Err(PlaceError::TooLarge(found.size).into());
    }
    Ok(found)
}

impl Toc {
    /// Which of the blob's last bytes to look at first: where the table begins, and likely all of it.
    pub fn tail(&self) -> Range<BlobOffset> {
        let guess = (self.blob_size / TAIL_SHARE).clamp(SHORTEST_TAIL, LONGEST_TAIL).min(self.blob_size);
        BlobOffset(self.blob_size - guess)..BlobOffset(self.blob_size)
    }

    /// Where the table is, says the end of the blob.
    ///
    /// # Errors
    /// [`TocError`]
    pub fn place(&self, tail: &[u8]) -> Result<Place, TocError> {
        let unusable = |what| TocError::Unusable { what };
        let found = FOOTERS.iter().find_map(|(length, extra)| {
            let footer = tail.get(tail.len().checked_sub(*length)?..)?;
            let rest = footer.strip_prefix(&GZIP[..])?.strip_prefix(*extra)?;
            let (offset, rest) = rest.split_at_checked(16)?;
            rest.starts_with(b"STARGZ").then_some((*length, offset))
        });
        let Some((length, offset)) = found else {
            let footer = tail.len().checked_sub(EXTERNAL_FOOTER).map(|at| &tail[at..]);
            let footer = footer.and_then(|footer| footer.strip_prefix(&GZIP[..]));
            return match footer.is_some_and(|footer| footer.starts_with(EXTERNAL)) {
                true => Ok(Place::Elsewhere),
                false => Err(unusable("the layer does not end with its place")),
            };
        };
        let offset = std::str::from_utf8(offset).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let (start, end) = (offset.unwrap_or(u64::MAX), self.blob_size - length as u64);
        if start >= end {
            return Err(unusable("its place is outside the layer"));
        }
        if end - start > LARGEST_TOC {
            return Err(unusable("it is larger than any that is written"));
        }
        Ok(Place::Here(BlobOffset(start)..BlobOffset(end)))
    }

    /// What the table says, which is at `place` and whose members have these bytes.
    ///
    /// # Errors
    /// [`TocError`]
    pub fn read(&self, place: &Place, bytes: &[u8], bounds: Bounds) -> Result<ForeignLayer, TocError> {
        let tar = decode(bytes).map_err(|_| TocError::Unusable { what: "it does not decode" })?;
        let mut found = Found::default();
        let walked = TarWalker::new().push(&tar, &mut found);
        let own =
            found.own.filter(|_| walked.is_ok()).ok_or(TocError::Unusable { what: "it is no tar of one file" })?;
        let (start, size) = (own.data.0 as usize, usize::try_from(own.size).unwrap_or(usize::MAX));
        let json =
            tar.get(start..).and_then(|rest| rest.get(..size)).ok_or(TocError::Unusable { what: "it is cut short" })?;
        let (expected, actual) = (self.digest.clone(), Digest::of(self.digest.algorithm(), json));
        if expected != actual {
            return Err(TocError::Other { expected, actual });
        }
        match place {
            Place::Here(place) => parse(json, Some(&own), place, bounds),
            Place::Elsewhere => {
                let end = BlobOffset(self.blob_size.saturating_sub(EXTERNAL_FOOTER as u64));
                parse(json, None, &(end..end), bounds)
            }
        }
    }
}

/// What a table says whose JSON this is, and which is at `place` of its layer, behind the pieces of all files but its own.
///
/// # Errors
/// [`TocError`]
pub fn parse(
    json: &[u8],
    own: Option<&OwnEntry>,
    place: &Range<BlobOffset>,
    bounds: Bounds,
) -> Result<ForeignLayer, TocError> {
    let mut bodies = Bodies::new(bounds, StartKind::Member, place.start);
    record::read(json, |record| bodies.take(&record))?;
    if let Some(own) = own {
        let OwnEntry { mode, uid, gid, mtime, size, data } = own;
        let kind = TarKind::File { size: *size, data: *data, extents: None };
        let (mode, uid, gid, mtime) = (*mode, *uid, *gid, *mtime);
        let entry = TarEntry { at: *data, path: TOC_NAME, kind, mode, uid, gid, mtime, xattrs: &[] };
        bodies.add(&entry, (data.0, *size), Check::sha256(json), place)?;
    }
    bodies.finish()
}

/// The table as a file of the tar.
pub struct OwnEntry {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: crate::layer::entry::Timestamp,
    size: u64,
    /// In what its members decode to.
    data: DecodedOffset,
}

/// Looks for the table in the tar of its members.
#[derive(Default)]
struct Found {
    own: Option<OwnEntry>,
}

impl TarSink for Found {
    type Error = TreeError;

    fn accept(&mut self, entry: &TarEntry<'_>) -> Result<(), TreeError> {
        if let TarKind::File { size, data, extents: None } = entry.kind
            && entry.path == TOC_NAME
            && self.own.is_none()
        {
            let TarEntry { mode, uid, gid, mtime, .. } = *entry;
            self.own = Some(OwnEntry { mode, uid, gid, mtime, size, data });
        }
        Ok(())
    }
}

/// The spans that are read when a container starts, says who made the layer: those before the landmark.
///
/// # Errors
/// The index is damaged.
pub fn prioritized(index: &LayerIndex) -> Result<SpanRange, IndexError> {
    let Some(landmark) = index.child(EntryId::ROOT, LANDMARK)? else { return Ok(SpanRange::first(0)) };
    let entry = index.entry(landmark)?;
    match entry.data().filter(|_| entry.kind() == Kind::File && entry.size() > 0) {
        Some(data) => Ok(SpanRange::new(SpanId(0), index.span_at(data)?)),
        None => Ok(SpanRange::first(0)),
    }
}

fn decode(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    let limits = Limits { decoded: LARGEST_TOC, ..Limits::default() };
    let mut decoder = LayerDecoder::first_pass(Compression::Gzip, limits)?;
    let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
    let (mut tar, mut input) = (Vec::new(), bytes);
    loop {
        let status = decoder.decode(&mut input, &mut out)?;
        tar.extend_from_slice(out.decoded());
        out.discard();
        if status != Status::OutputFull {
            break;
        }
    }
    decoder.finish()?;
    Ok(tar)
}

/// The longest that a blob may end with.
const FOOTER: usize = 51;
/// The header of the empty member at the end: with an extra field, and nothing of time and system.
const GZIP: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
/// How long the end is, and with what its extra field begins: today's has a subfield `SG`, that of stargz none.
const FOOTERS: [(usize, &[u8]); 2] = [(FOOTER, &[26, 0, b'S', b'G', 22, 0]), (47, &[22, 0])];
/// The extra field at the end of a layer whose table is elsewhere, and how long that end is.
const EXTERNAL: &[u8] = b"\x15\0SG\x11\0STARGZEXTERNALTOC";
const EXTERNAL_FOOTER: usize = 46;
/// A table takes about so much of its layer.
const TAIL_SHARE: u64 = 64;
const SHORTEST_TAIL: u64 = 64 << 10;
const LONGEST_TAIL: u64 = 1 << 20;
