//! zTOCs, as soci-snapshotter writes them: a table of contents and places to start from for a layer that is left as it is.
//!
//! A zTOC has what the tar says of each file, in offsets of the tar, and a digest of the blob's bytes for each span of some
//! MiB: so the decoded stream of such a layer is its tar, and spans have no digests of what they decode to. The places to
//! start from carry what comes before them, 32 KiB each, which nothing proves but the zTOC itself.
//!
//! Entries are taken in the order of the tar, as a first pass takes them, so what hides or links means the same. What a zTOC
//! cannot say, like the map of a sparse file, makes it unusable, and so does what honest tars hardly have: a name twice, or one
//! that leads upwards.

mod buffer;
mod checkpoints;
mod write;

use std::ops::Range;

pub use self::write::{NoZtoc, ZtocSpans, ZtocWriter};

use self::buffer::{CompressionInfo, FileMetadata, Ztoc, root};
use super::{Bounds, LARGEST_TOC, TocError, has_no_name_twice};
use crate::codec::{StartKind, Window, WindowPacker};
use crate::descriptor::{Compression, Descriptor};
use crate::layer::check::Check;
use crate::layer::entry::{Device, Timestamp};
use crate::layer::pax::Xattr;
use crate::layer::spans::{Span, WindowAt};
use crate::layer::tar::{TarEntry, TarKind};
use crate::layer::tree::LayerTree;
use crate::offsets::{BlobOffset, DecodedOffset};

/// What a zTOC says of its layer.
#[derive(Debug)]
pub struct SociLayer {
    /// Its names.
    pub tree: LayerTree,
    /// Its spans, in order.
    pub spans: Vec<Span>,
    /// Their windows, one after the other.
    pub windows: Vec<u8>,
    /// How long the tar is, as far as anything of it is read.
    pub decoded_size: u64,
}

/// The largest zTOC that is read of a layer with a blob of `size` bytes.
pub fn largest(size: u64) -> u64 {
    LARGEST_TOC.min(ZTOC_AT_LEAST.saturating_add(size.saturating_mul(ZTOC_PER_BYTE)))
}

/// What the zTOC with these `bytes` says of a layer with this blob.
///
/// # Errors
/// [`TocError`]
pub fn parse(bytes: &[u8], blob: &Descriptor, compression: Compression, bounds: Bounds) -> Result<SociLayer, TocError> {
    let unusable = |what| TocError::Unusable { what };
    // The reader's message goes on with where it was.
    let first_line = |cause: &dyn std::fmt::Display| cause.to_string().lines().next().unwrap_or_default().to_owned();
    let ztoc = root::<Ztoc<'_>>(bytes).map_err(|cause| TocError::Buffer(first_line(&cause)))?;
    if ztoc.version().map(|version| version.bytes()) != Some(VERSION) {
        return Err(unusable("its version is unknown"));
    }
    if size(ztoc.compressed_archive_size()) != Some(blob.size) {
        return Err(unusable("it is of a layer of another size"));
    }
    let decoded_size = size(ztoc.uncompressed_archive_size()).unwrap_or(0);
    if decoded_size == 0 || decoded_size > bounds.decoded {
        return Err(unusable("its layer has no bytes, or more than a layer may have"));
    }
    let info = ztoc.compression_info().ok_or(unusable("it does not say how its layer is compressed"))?;
    let (spans, windows, decoded_size) = match (info.compression_algorithm().unwrap_or(GZIP), compression) {
        (GZIP, Compression::Gzip) => gzip_spans(&info, blob.size, decoded_size)?,
        // What lies behind the last entry need not be described.
        (UNCOMPRESSED, Compression::Stored) if decoded_size <= blob.size => {
            (tar_spans(&info, blob.size)?, Vec::new(), blob.size)
        }
        _ => return Err(unusable("it is of a layer that is compressed otherwise")),
    };
    let tree = tree(&ztoc, decoded_size, bounds)?;
    Ok(SociLayer { tree, spans, windows, decoded_size })
}

/// The names, in the order of the tar.
fn tree(ztoc: &Ztoc<'_>, decoded_size: u64, bounds: Bounds) -> Result<LayerTree, TocError> {
    let mut tree = LayerTree::new(bounds.tree);
    let Some(entries) = ztoc.toc().and_then(|toc| toc.metadata()) else { return Ok(tree) };
    if entries.len() > bounds.tree.entries as usize {
        return Err(TocError::Unusable { what: "it has more entries than a layer may have" });
    }
    let mut order = Vec::with_capacity(entries.len());
    for (number, entry) in entries.iter().enumerate() {
        let at = size(entry.uncompressed_offset()).ok_or_else(|| contradiction(&entry, "its place is none"))?;
        order.push((at, number as u32));
    }
    order.sort_unstable();
    let mut header = 0;
    for (at, number) in order {
        let entry = entries.get(number as usize);
        header = add(&mut tree, &entry, header, at..decoded_size)?;
    }
    has_no_name_twice(&tree)?;
    Ok(tree)
}

/// Adds an entry, whose headers begin at `header`, and its body where `body` begins; the tar has bytes up to where that ends.
/// Returns where the next headers begin.
fn add(tree: &mut LayerTree, entry: &FileMetadata<'_>, header: u64, body: Range<u64>) -> Result<u64, TocError> {
    let contradiction = |what| contradiction(entry, what);
    let (data, name, target) = (body.start, text(entry.name()), text(entry.linkname()));
    if data % BLOCK != 0 || data < header.saturating_add(BLOCK) || data > body.end {
        return Err(contradiction("its bytes overlap others, or lie outside the layer"));
    }
    let device = || {
        let number = |number: Option<i64>| u32::try_from(number.unwrap_or(0)).ok();
        let device = number(entry.devmajor()).zip(number(entry.devminor()));
        device.map(|(major, minor)| Device { major, minor }).ok_or(contradiction("its device number is out of range"))
    };
    let leads_upwards = |path: &[u8]| path.split(|byte| *byte == b'/').any(|part| part == b"..");
    if leads_upwards(name) || (text(entry.kind()) == b"hardlink" && leads_upwards(target)) {
        return Err(contradiction("its name leads upwards"));
    }
    let mut next = data;
    let kind = match text(entry.kind()) {
        b"reg" => {
            let size = size(entry.uncompressed_size()).ok_or(contradiction("its size is none"))?;
            next = data
                .checked_add(size)
                .filter(|end| *end <= body.end)
                .ok_or(contradiction("its bytes overlap others, or lie outside the layer"))?;
            TarKind::File { size, data: DecodedOffset(data), extents: None }
        }
        b"dir" => TarKind::Directory,
        b"symlink" => TarKind::Symlink(target),
        b"hardlink" => TarKind::HardLink(target),
        b"char" => TarKind::CharDevice(device()?),
        b"block" => TarKind::BlockDevice(device()?),
        b"fifo" => TarKind::Fifo,
        _ => return Err(contradiction("its type is unknown")),
    };
    let xattrs = xattrs(entry)?;
    let entry = TarEntry {
        at: DecodedOffset(data - BLOCK),
        path: name,
        kind,
        mode: (entry.mode().unwrap_or(0) & 0o7777) as u16,
        uid: entry.uid().unwrap_or(0),
        gid: entry.gid().unwrap_or(0),
        mtime: mtime(text(entry.mod_time())).ok_or(contradiction("its time is none"))?,
        xattrs: &xattrs,
    };
    tree.add(&entry).map_err(TocError::Tree)?;
    Ok(next.next_multiple_of(BLOCK))
}

/// The attributes among an entry's PAX records, by name.
fn xattrs(entry: &FileMetadata<'_>) -> Result<Vec<Xattr>, TocError> {
    let mut found: Vec<Xattr> = Vec::new();
    for record in entry.xattrs().into_iter().flat_map(|records| records.iter()) {
        let key = text(record.key());
        if key.starts_with(SPARSE) {
            return Err(contradiction(entry, "it is sparse, and the map of its bytes is not there"));
        }
        if let Some(name) = key.strip_prefix(XATTR) {
            let value = text(record.value());
            found.push(Xattr { name: name.to_vec(), value: value.to_vec() });
        }
    }
    found.sort_by(|left, right| left.name.cmp(&right.name));
    if found.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return Err(contradiction(entry, "it has an attribute twice"));
    }
    Ok(found)
}

/// The spans of a gzip layer, their windows, and where the last one ends.
///
/// `decoded` is where the tar ends, which may be before a block that still is one to start from: the last span is empty then.
fn gzip_spans(info: &CompressionInfo<'_>, blob: u64, decoded: u64) -> Result<(Vec<Span>, Vec<u8>, u64), TocError> {
    let unusable = |what| TocError::Unusable { what };
    let bytes = info.checkpoints().ok_or(unusable("its checkpoints are malformed"))?.bytes();
    let places = checkpoints::of_gzip(bytes)?;
    let digests = digests(info, places.len())?;
    let decoded = places.last().map_or(decoded, |last| decoded.max(last.decoded));
    let (mut spans, mut windows, mut packer) = (Vec::with_capacity(places.len()), Vec::new(), WindowPacker::new());
    for (number, (place, check)) in places.iter().zip(digests).enumerate() {
        let (end, blob_end) = match places.get(number + 1) {
            Some(next) => (next.decoded, next.whole),
            None => (decoded, blob),
        };
        let is_last = number > 0 && number + 1 == places.len();
        let length = end.checked_sub(place.decoded).filter(|length| (*length > 0 || is_last) && end <= decoded);
        let begins = if place.bits == 0 { Some(place.whole) } else { place.whole.checked_sub(1) };
        let encoded = begins.and_then(|begins| blob_end.checked_sub(begins)).filter(|_| blob_end <= blob);
        let (Some(length), Some(begins), Some(encoded)) = (length, begins, encoded.filter(|_| place.whole < blob_end))
        else {
            return Err(unusable("its checkpoints do not follow one another within the layer"));
        };
        if place.bits > 7 || (number == 0 && place.decoded != 0) {
            return Err(unusable("its checkpoints do not follow one another within the layer"));
        }
        if length > Span::MAX || encoded > length.saturating_add(length / 8).saturating_add(SLACK) {
            return Err(unusable("its checkpoints are too far apart"));
        }
        let packed = packer.pack(&Window::of_history(place.window).expect("a checkpoint has no longer one"));
        let at = WindowAt { start: windows.len() as u64, len: packed.len() as u32 };
        windows.extend_from_slice(&packed);
        spans.push(Span {
            decoded: DecodedOffset(place.decoded)..DecodedOffset(end),
            blob: BlobOffset(begins),
            bit: if place.bits == 0 { 0 } else { 8 - place.bits },
            kind: StartKind::Checkpoint,
            check,
            window: (at.len > 0).then_some(at),
        });
    }
    Ok((spans, windows, decoded))
}

/// The spans of a plain tar, whose bytes are those of the blob.
fn tar_spans(info: &CompressionInfo<'_>, blob: u64) -> Result<Vec<Span>, TocError> {
    let bytes = text(info.checkpoints());
    let size = checkpoints::span_size_of_tar(bytes, blob)?;
    if size > Span::MAX {
        return Err(TocError::Unusable { what: "its checkpoints are too far apart" });
    }
    let count = usize::try_from(blob.div_ceil(size)).unwrap_or(usize::MAX);
    let digests = digests(info, count)?;
    let span = |(number, check): (usize, Check)| {
        let start = number as u64 * size;
        let check = Check::Sha256(*check.bytes());
        let (decoded, window) = (DecodedOffset(start)..DecodedOffset((start + size).min(blob)), None);
        Span { decoded, blob: BlobOffset(start), bit: 0, kind: StartKind::Stored, check, window }
    };
    Ok(digests.into_iter().enumerate().map(span).collect())
}

/// The digests of `count` spans, of their bytes in the blob.
fn digests(info: &CompressionInfo<'_>, count: usize) -> Result<Vec<Check>, TocError> {
    let digests = info.span_digests();
    let said = usize::try_from(info.max_span_id().unwrap_or(0)).ok().and_then(|last| last.checked_add(1));
    if said != Some(count) || digests.as_ref().map(flatbuffers::Vector::len) != Some(count) {
        return Err(TocError::Unusable { what: "it has not one digest and one checkpoint for each span" });
    }
    let check = |digest: flatbuffers::Vector<'_, u8>| {
        let digest = std::str::from_utf8(digest.bytes()).ok()?.parse().ok()?;
        Check::of_sha256(&digest).map(|check| Check::BlobSha256(*check.bytes()))
    };
    let digests: Option<Vec<_>> = digests.into_iter().flat_map(|digests| digests.iter()).map(check).collect();
    digests.ok_or(TocError::Unusable { what: "a span has no SHA-256 digest" })
}

/// Go's text of a time (RFC 3339), or nothing for one that has no such text.
fn mtime(text: &[u8]) -> Option<Timestamp> {
    let time: jiff::Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    let nanos = time.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(SECOND)).ok()?;
    Some(Timestamp { seconds, nanos: u32::try_from(nanos.rem_euclid(SECOND)).ok()? })
}

fn size(number: Option<i64>) -> Option<u64> {
    u64::try_from(number.unwrap_or(0)).ok()
}

fn text(bytes: Option<flatbuffers::Vector<'_, u8>>) -> &[u8] {
    bytes.map_or(&[], |bytes| bytes.bytes())
}

fn contradiction(entry: &FileMetadata<'_>, what: &'static str) -> TocError {
    let name = text(entry.name());
    TocError::Contradiction { name: name[..name.len().min(256)].to_vec(), what }
}

/// The version that is written since there are zTOCs.
const VERSION: &[u8] = b"0.9";
/// `CompressionAlgorithm`
const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;
/// Headers and bodies begin at multiples of this.
const BLOCK: u64 = 512;
/// Prefix of PAX records that are attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Prefix of PAX records of sparse files.
const SPARSE: &[u8] = b"GNU.sparse.";
const SECOND: i128 = 1_000_000_000;
/// Bytes that a span may have in the blob above what it decodes to and an eighth of that: what cannot be compressed gets
/// longer by less, and empty members and what follows the last one are short.
const SLACK: u64 = 256 << 10;
/// Limit for a zTOC: so many bytes, and so many for each byte of the blob. One of a layer of text with spans of 4 MiB has 0.04
/// for each.
const ZTOC_AT_LEAST: u64 = 16 << 20;
const ZTOC_PER_BYTE: u64 = 2;
