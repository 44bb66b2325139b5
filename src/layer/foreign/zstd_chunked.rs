//! zstd:chunked, as containers/storage writes it: a zstd layer of one frame for each piece of a file, and behind them, in
//! frames that decoders skip, a table of contents and what is needed to make the tar again (tar-split).
//!
//! Where the table lies and what it must hash to is said by annotations of the layer in the manifest, and only they
//! count: the footer of the blob is not read. Two families of annotations say the same: containers/storage has written
//! `io.github.containers.zstd-chunked.*` since 2022, and before, as stargz-snapshotter still does for eStargz in zstd,
//! `io.containers.zstd-chunked.*`. In tables of the latter a piece that is the last of its file ends where the next one of
//! the blob begins. The tar-split data are not read either: they would give the bytes of headers,
//! which no reader of files needs.

use std::ops::Range;

use super::bodies::Bodies;
use super::{Bounds, ForeignLayer, LARGEST_TOC, PlaceError, TocError, record};
use crate::codec::{CodecError, LayerDecoder, Limits, OutputBuffer, StartKind, Status};
use crate::descriptor::{Compression, Descriptor};
use crate::digest::Digest;
use crate::offsets::BlobOffset;

/// The annotations with the digest of the table, as it is compressed, and with its place: offset, length, length when
/// decoded, and the kind of table, with colons between. Of two families.
const ANNOTATIONS: [[&str; 2]; 2] = [
    ["io.github.containers.zstd-chunked.manifest-checksum", "io.github.containers.zstd-chunked.manifest-position"],
    ["io.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-position"],
];

/// A table of contents, as a manifest names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Toc {
    /// Its bytes in the blob.
    pub packed: Packed,
}

/// A frame of the blob by itself, with its digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packed {
    /// Its first byte in the blob.
    pub at: BlobOffset,
    /// How many bytes it has there.
    pub length: u64,
    /// How many bytes it decodes to.
    pub decoded: u64,
    /// What it hashes to, as it is in the blob.
    pub digest: Digest,
}

/// The table that the annotations of `layer` name; `None` where they name none.
///
/// # Errors
/// [`PlaceError`]
pub fn toc_of(layer: &Descriptor) -> Result<Option<Toc>, PlaceError> {
    let families = ANNOTATIONS.map(|family| family.map(|name| layer.annotations.get(name)));
    let mut found = families.into_iter().filter(|family| family.iter().any(Option::is_some));
    let Some([checksum, position]) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(PlaceError::Twice);
    }
    let digest = checksum.and_then(|text| text.parse().ok()).ok_or(PlaceError::Malformed)?;
    let numbers: Option<Vec<u64>> =
        position.ok_or(PlaceError::Malformed)?.split(':').map(|number| number.parse().ok()).collect();
    let Some(&[at, length, decoded, kind]) = numbers.as_deref() else { return Err(PlaceError::Malformed) };
    if kind != KIND {
        return Err(PlaceError::Kind(kind));
    }
    let inside = at.checked_add(length).is_some_and(|end| end <= layer.size);
    if !inside || length == 0 || at < SKIPPABLE_HEADER {
        return Err(PlaceError::Outside);
    }
    match [length, decoded].into_iter().find(|size| *size > LARGEST_TOC) {
        Some(size) => Err(PlaceError::TooLarge(size)),
        None => Ok(Some(Toc { packed: Packed { at: BlobOffset(at), length, decoded, digest } })),
    }
}

impl Toc {
    /// What the table says, whose bytes in the blob are these.
    ///
    /// # Errors
    /// [`TocError`]
    pub fn read(&self, bytes: &[u8], bounds: Bounds) -> Result<ForeignLayer, TocError> {
        let json = self.packed.unpack(bytes)?;
        parse(&json, BlobOffset(self.packed.at.0 - SKIPPABLE_HEADER), bounds)
    }
}

impl Packed {
    /// Where it is in the blob.
    pub fn range(&self) -> Range<BlobOffset> {
        self.at..self.at + self.length
    }

    /// What it decodes to, if these are its bytes.
    ///
    /// # Errors
    /// [`TocError::Other`], [`TocError::Unusable`]
    pub fn unpack(&self, bytes: &[u8]) -> Result<Vec<u8>, TocError> {
        let (expected, actual) = (self.digest.clone(), Digest::of(self.digest.algorithm(), bytes));
        if expected != actual {
            return Err(TocError::Other { expected, actual });
        }
        self.decode(bytes).map_err(|_| TocError::Unusable { what: "it does not decode to what it should" })
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Undecoded> {
        let limits = Limits { decoded: self.decoded, ..Limits::of_known(self.decoded) };
        let mut decoder = LayerDecoder::first_pass(Compression::Zstd, limits)?;
        let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
        let (mut json, mut input) = (Vec::new(), bytes);
        loop {
            let status = decoder.decode(&mut input, &mut out)?;
            json.extend_from_slice(out.decoded());
            out.discard();
            if status != Status::OutputFull {
                break;
            }
        }
        decoder.finish()?;
        if json.len() as u64 == self.decoded { Ok(json) } else { Err(Undecoded) }
    }
}

/// What a table says whose JSON this is, in a layer whose pieces of files end at `end`.
///
/// # Errors
/// [`TocError`]
pub fn parse(json: &[u8], end: BlobOffset, bounds: Bounds) -> Result<ForeignLayer, TocError> {
    let mut bodies = Bodies::new(bounds, StartKind::Frame, end);
    record::read(json, |record| bodies.take(&record))?;
    bodies.finish()
}

struct Undecoded;

impl From<CodecError> for Undecoded {
    fn from(_: CodecError) -> Self {
        Self
    }
}

/// The kind of table that there is.
const KIND: u64 = 1;
/// Magic number and length of a frame that decoders skip.
const SKIPPABLE_HEADER: u64 = 8;
