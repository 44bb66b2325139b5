//! The footer of a layer index: sections with their places, sizes and digests.

use crate::digest::Digest;

use super::check::Check;
use super::entry::{Record, le32, le64};
use super::index::{Contents, IndexError};
use super::names::ID_LIMIT;
use super::paged::{CHECK, PAGE};
use super::proof::{IndexedLayer, Proof, Stream};
use super::spans::Span;

pub(super) const MAGIC: &[u8; 8] = b"PEELIDX\n";
/// The versions that can be read. An index is written with the lowest version that suffices: 2 if it was built by a
/// first pass and all its checks are BLAKE3, so that older releases can read it.
pub(super) const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
pub(super) const FOOTER: usize = 512;
/// Bytes at the end of an index that are read to open it.
pub(super) const TAIL: usize = 4096;
/// The footer without its own checksum.
pub(super) const FOOTER_CHECKED: usize = FOOTER - CHECK;
pub(super) const SECTION_ALIGN: u64 = 64;
pub(super) const EXTENT_BYTES: usize = 32;

/// The sections in file order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub(super) enum Section {
    Entries,
    Children,
    Implied,
    LowerLinks,
    Extents,
    Spans,
    XattrSets,
    Names,
    Xattrs,
    Windows,
}

pub(super) const SECTIONS: [Section; 10] = [
    Section::Entries,
    Section::Children,
    Section::Implied,
    Section::LowerLinks,
    Section::Extents,
    Section::Spans,
    Section::XattrSets,
    Section::Names,
    Section::Xattrs,
    Section::Windows,
];

impl Section {
    /// Bytes of one record.
    pub(super) fn record(self) -> u64 {
        match self {
            Self::Entries => Record::BYTES as u64,
            Self::Spans => Span::BYTES as u64,
            Self::Extents => EXTENT_BYTES as u64,
            Self::XattrSets => 8,
            Self::Children | Self::Implied | Self::LowerLinks => 4,
            Self::Names | Self::Xattrs | Self::Windows => 1,
        }
    }
}

/// A section's place in the body.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) start: u64,
    /// Records, not bytes.
    pub(super) count: u64,
}

/// The parsed footer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Footer {
    pub(super) contents: Contents,
    pub(super) body: u64,
    pub(super) places: [Place; SECTIONS.len()],
    pub(super) layer: IndexedLayer,
    pub(super) stream: Stream,
    pub(super) proof: Proof,
    /// The kinds of checks of spans besides BLAKE3, one bit each; and [`Footer::BLOCKS`], [`Footer::INSIDE_BLOCKS`],
    /// [`Footer::WINDOWS_BLOB`].
    pub(super) checks: u32,
}

impl Footer {
    const DIGEST_BYTES: usize = 136;
    /// Beside the kinds of checks: some spans begin at blocks of zstd frames.
    pub(super) const BLOCKS: u32 = 1 << 31;
    /// Likewise: some spans begin inside deflate blocks.
    pub(super) const INSIDE_BLOCKS: u32 = 1 << 30;
    /// Likewise: the windows are in a blob of their own.
    pub(super) const WINDOWS_BLOB: u32 = 1 << 29;

    /// Whether its spans have digests of the blob's bytes.
    pub(super) fn checks_blob(&self) -> bool {
        self.checks & Check::OF_BLOB != 0
    }

    /// Whether the windows are in a blob of their own.
    pub(super) fn has_windows_blob(&self) -> bool {
        self.checks & Self::WINDOWS_BLOB != 0
    }

    pub(super) fn pages(&self) -> u64 {
        self.body.div_ceil(PAGE as u64)
    }

    /// Length of the voucher's name, from a raw footer.
    pub(super) fn name_bytes(raw: &[u8]) -> usize {
        usize::from(u16::from_le_bytes([raw[474], raw[475]]))
    }

    /// Whether two indexes are equal except for their proofs.
    pub(super) fn is_same_but_for_proof(&self, other: &Self) -> bool {
        *self == Self { proof: self.proof.clone(), ..other.clone() }
    }

    /// The bytes after the page checksums: the voucher's name, the footer, and a checksum of all.
    pub(super) fn sealed(&self, page_checks: &[u8]) -> Vec<u8> {
        let (name, raw) = (self.proof.vouched_by().unwrap_or_default().as_bytes(), self.to_bytes());
        let mut hasher = blake3::Hasher::new();
        for part in [page_checks, name, &raw] {
            hasher.update(part);
        }
        [name, &raw, hasher.finalize().as_bytes()].concat()
    }

    /// The version that it is written with.
    pub(super) fn version(&self) -> u32 {
        let is_plain = self.proof == Proof::Built && self.checks == 0 && self.stream == Stream::Tar;
        if is_plain { *VERSIONS.start() } else { *VERSIONS.end() }
    }

    /// The bytes of the footer without its checksum.
    fn to_bytes(&self) -> [u8; FOOTER_CHECKED] {
        let mut out = [0; FOOTER_CHECKED];
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&self.version().to_le_bytes());
        out[12..16].copy_from_slice(&self.contents.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.body.to_le_bytes());
        out[24..32].copy_from_slice(&self.layer.blob_size.to_le_bytes());
        out[32..40].copy_from_slice(&self.layer.decoded_size.to_le_bytes());
        for (place, raw) in self.places.iter().zip(out[40..200].chunks_exact_mut(16)) {
            raw[..8].copy_from_slice(&place.start.to_le_bytes());
            raw[8..].copy_from_slice(&place.count.to_le_bytes());
        }
        for (digest, at) in [(&self.layer.blob, 200), (&self.layer.diff_id, 200 + Self::DIGEST_BYTES)] {
            let text = digest.to_string();
            out[at] = u8::try_from(text.len()).expect("the longest digest has 135 characters");
            out[at + 1..][..text.len()].copy_from_slice(text.as_bytes());
        }
        let name = u16::try_from(self.proof.vouched_by().unwrap_or_default().len())
            .expect("a proof is made with a short name");
        out[472] = self.proof.kind();
        out[473] = self.stream.kind();
        out[474..476].copy_from_slice(&name.to_le_bytes());
        out[476..480].copy_from_slice(&self.checks.to_le_bytes());
        out
    }

    /// Parses a footer with a valid checksum, and the name before it.
    pub(super) fn from_bytes(raw: &[u8], name: &[u8]) -> Result<Self, IndexError> {
        let malformed = |what| IndexError::Malformed { what };
        let checks = le32(raw, 476);
        if checks & !(Check::KNOWN | Self::BLOCKS | Self::INSIDE_BLOCKS | Self::WINDOWS_BLOB) != 0 {
            return Err(IndexError::Kind { what: "check" });
        }
        if name.len() > Proof::BY {
            return Err(malformed("the voucher's name is too long"));
        }
        let name = std::str::from_utf8(name).map_err(|_| malformed("the voucher's name is not UTF-8"))?;
        let proof = Proof::from_kind(raw[472], name).ok_or(IndexError::Kind { what: "proof" })?;
        let stream = Stream::from_kind(raw[473]).ok_or(IndexError::Kind { what: "decoded stream" })?;
        let digest = |at: usize| {
            let text = &raw[at + 1..at + Self::DIGEST_BYTES];
            let text = text.get(..usize::from(raw[at])).and_then(|text| std::str::from_utf8(text).ok());
            text.and_then(|text| text.parse::<Digest>().ok()).ok_or(malformed("a digest is invalid"))
        };
        let body = le64(raw, 16);
        let mut places = [Place::default(); SECTIONS.len()];
        for ((place, section), raw) in places.iter_mut().zip(SECTIONS).zip(raw[40..200].chunks_exact(16)) {
            *place = Place { start: le64(raw, 0), count: le64(raw, 8) };
            let bytes = place.count.checked_mul(section.record());
            let end = bytes.and_then(|bytes| bytes.checked_add(place.start));
            if end.is_none_or(|end| end > body) || place.start % SECTION_ALIGN != 0 {
                return Err(malformed("a section is out of bounds"));
            }
        }
        if !(1..=u64::from(ID_LIMIT)).contains(&places[Section::Entries as usize].count) {
            return Err(malformed("the number of entries is impossible"));
        }
        let layer = IndexedLayer {
            blob: digest(200)?,
            blob_size: le64(raw, 24),
            diff_id: digest(200 + Self::DIGEST_BYTES)?,
            decoded_size: le64(raw, 32),
        };
        Ok(Self { contents: Contents(le32(raw, 12)), body, places, layer, stream, proof, checks })
    }
}
