//! Spans in the layer index: where decoding can start, and the check of the result.

use std::ops::Range;

use crate::offsets::{BlobOffset, DecodedOffset};

use super::check::Check;
use super::entry::le64;
use crate::codec::StartKind;

/// The kind of a start is stored in the low four bits of a span's last word.
fn kind_of_nibble(nibble: u8) -> Option<StartKind> {
    KINDS.get(usize::from(nibble)).copied()
}

fn nibble_of_kind(kind: StartKind) -> u8 {
    match kind {
        StartKind::Stored => 0,
        StartKind::Member => 1,
        StartKind::Checkpoint => 2,
        StartKind::Frame => 3,
        StartKind::Continued => 4,
        StartKind::Block => 5,
        StartKind::InsideBlock => 6,
    }
}

const KINDS: [StartKind; 7] = [
    StartKind::Stored,
    StartKind::Member,
    StartKind::Checkpoint,
    StartKind::Frame,
    StartKind::Continued,
    StartKind::Block,
    StartKind::InsideBlock,
];

/// The smallest piece of a layer that can be fetched, decoded and verified alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Span {
    /// The decoded bytes it covers.
    pub decoded: Range<DecodedOffset>,
    /// The blob byte where decoding starts.
    pub blob: BlobOffset,
    /// The bit of that byte where decoding starts, 0 to 7; 0 unless a checkpoint.
    pub bit: u8,
    /// The kind of start.
    pub kind: StartKind,
    /// The check of its decoded bytes.
    pub check: Check,
    /// Place of its window in the windows section, if it needs one.
    pub window: Option<WindowAt>,
}

/// Place of a stored window in the windows section.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WindowAt {
    /// First byte.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u32,
}

impl WindowAt {
    /// Whether a window of any kind can have this place.
    pub fn fits(start: usize, len: usize) -> bool {
        start as u64 >> 32 == 0 && len < 1 << 24
    }

    /// The disk form: seven bytes, of which the start has so many. Windows of zstd blocks are long, and few.
    fn start_bytes(kind: StartKind) -> usize {
        if kind == StartKind::Block { 4 } else { 5 }
    }

    /// `None` if it does not fit.
    fn to_bytes(self, kind: StartKind) -> Option<[u8; 7]> {
        let split = Self::start_bytes(kind);
        let (start, len) = (self.start.to_le_bytes(), self.len.to_le_bytes());
        let fits = self.len != 0 && start[split..] == [0; 8][split..] && u64::from(self.len) >> (8 * (7 - split)) == 0;
        let mut out = [0; 7];
        out[..split].copy_from_slice(&start[..split]);
        out[split..].copy_from_slice(&len[..7 - split]);
        fits.then_some(out)
    }

    fn from_bytes(kind: StartKind, raw: [u8; 7]) -> Option<Self> {
        let split = Self::start_bytes(kind);
        let (mut start, mut len) = ([0; 8], [0; 4]);
        start[..split].copy_from_slice(&raw[..split]);
        len[..7 - split].copy_from_slice(&raw[split..]);
        let (start, len) = (u64::from_le_bytes(start), u32::from_le_bytes(len));
        (len > 0).then_some(Self { start, len })
    }
}

/// What a span that stands alone is decoded from, beside where that begins ([`Stream::Bodies`](super::Stream)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpanSource {
    /// The byte of the blob behind it.
    pub end: BlobOffset,
    /// Decoded bytes that come before the span's.
    pub skip: u64,
}

impl SpanSource {
    pub(super) const BYTES: usize = 16;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.end.0.to_le_bytes());
        out[8..].copy_from_slice(&self.skip.to_le_bytes());
        out
    }

    pub(super) fn from_bytes(raw: &[u8; Self::BYTES]) -> Self {
        Self { end: BlobOffset(le64(raw, 0)), skip: le64(raw, 8) }
    }
}

impl Span {
    pub(super) const BYTES: usize = 64;

    /// Limit for the decoded bytes of a span. Marks are far closer, up to layers of 128 GiB; readers hold a span in
    /// memory, so longer ones are refused.
    pub const MAX: u64 = 256 << 20;

    /// `None` if a value does not fit the disk format.
    pub(super) fn to_bytes(&self) -> Option<[u8; Self::BYTES]> {
        let window = match self.window {
            Some(window) => window.to_bytes(self.kind)?,
            None => [0; 7],
        };
        if self.blob.0 > MAX_BLOB || self.bit > 7 {
            return None;
        }
        let mut out = [0; Self::BYTES];
        out[0..8].copy_from_slice(&self.decoded.start.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.decoded.end.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.blob.0.to_le_bytes());
        out[23] = self.check.kind();
        out[24..31].copy_from_slice(&window);
        out[31] = nibble_of_kind(self.kind) | self.bit << 4;
        out[32..64].copy_from_slice(self.check.bytes());
        Some(out)
    }

    /// `None` if a kind or the bit is unknown or the range is reversed.
    pub(super) fn from_bytes(raw: &[u8; Self::BYTES]) -> Option<Self> {
        let decoded = DecodedOffset(le64(raw, 0))..DecodedOffset(le64(raw, 8));
        let (bit, kind) = (raw[31] >> 4, kind_of_nibble(raw[31] & 15)?);
        if decoded.end < decoded.start || bit > 7 {
            return None;
        }
        Some(Self {
            decoded,
            blob: BlobOffset(le64(raw, 16) & MAX_BLOB),
            bit,
            kind,
            check: Check::from_kind(raw[23], raw[32..64].try_into().expect("32 bytes were cut"))?,
            window: WindowAt::from_bytes(kind, raw[24..31].try_into().expect("seven bytes were cut")),
        })
    }
}

/// The largest blob offset that the disk format can hold (56 bits).
const MAX_BLOB: u64 = (1 << 56) - 1;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn span_survives_its_disk_form() {
        for kind in KINDS {
            let window = match kind {
                StartKind::Block => WindowAt { start: (1 << 32) - 1, len: (1 << 24) - 1 },
                _ => WindowAt { start: (1 << 40) - 1, len: 65_535 },
            };
            let span = Span {
                decoded: DecodedOffset(5)..DecodedOffset(u64::MAX),
                blob: BlobOffset(MAX_BLOB),
                bit: 7,
                kind,
                check: Check::Sha256([9; 32]),
                window: Some(window),
            };
            assert_eq!(Span::from_bytes(&span.to_bytes().unwrap()), Some(span));
        }
    }

    #[test]
    fn span_that_does_not_fit_is_refused() {
        let span = Span {
            decoded: DecodedOffset(0)..DecodedOffset(1),
            blob: BlobOffset(0),
            bit: 0,
            kind: StartKind::Stored,
            check: Check::Blake3([0; 32]),
            window: Some(WindowAt { start: 1 << 40, len: 1 }),
        };
        assert_eq!(span.to_bytes(), None);
        let long = Some(WindowAt { start: 0, len: 1 << 16 });
        assert_eq!(Span { window: long, ..span.clone() }.to_bytes(), None);
        assert!(Span { window: long, kind: StartKind::Block, ..span.clone() }.to_bytes().is_some());
        assert_eq!(Span { window: Some(WindowAt { start: 0, len: 0 }), ..span.clone() }.to_bytes(), None);
        assert_eq!(Span { bit: 8, window: None, ..span.clone() }.to_bytes(), None);
        assert_eq!(Span { blob: BlobOffset(1 << 56), window: None, ..span }.to_bytes(), None);
    }
}
