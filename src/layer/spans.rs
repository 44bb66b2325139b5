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
    }
}

const KINDS: [StartKind; 5] =
    [StartKind::Stored, StartKind::Member, StartKind::Checkpoint, StartKind::Frame, StartKind::Continued];

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
    /// First byte; at most [`WindowAt::MAX_START`].
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u16,
}

impl WindowAt {
    /// The largest start the disk form can hold (40 bits).
    pub const MAX_START: u64 = (1 << 40) - 1;
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
        let window = self.window.unwrap_or(WindowAt { start: 0, len: 0 });
        let fits = window.start <= WindowAt::MAX_START && self.blob.0 <= MAX_BLOB && self.bit <= 7;
        if !fits || (self.window.is_some() && window.len == 0) {
            return None;
        }
        let mut out = [0; Self::BYTES];
        out[0..8].copy_from_slice(&self.decoded.start.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.decoded.end.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.blob.0.to_le_bytes());
        out[23] = self.check.kind();
        out[24..29].copy_from_slice(&window.start.to_le_bytes()[..5]);
        out[29..31].copy_from_slice(&window.len.to_le_bytes());
        out[31] = nibble_of_kind(self.kind) | self.bit << 4;
        out[32..64].copy_from_slice(self.check.bytes());
        Some(out)
    }

    /// `None` if a kind or the bit is unknown or the range is reversed.
    pub(super) fn from_bytes(raw: &[u8; Self::BYTES]) -> Option<Self> {
        let decoded = DecodedOffset(le64(raw, 0))..DecodedOffset(le64(raw, 8));
        let start = le64(raw, 24) & WindowAt::MAX_START;
        let len = u16::from_le_bytes([raw[29], raw[30]]);
        let bit = raw[31] >> 4;
        if decoded.end < decoded.start || bit > 7 {
            return None;
        }
        Some(Self {
            decoded,
            blob: BlobOffset(le64(raw, 16) & MAX_BLOB),
            bit,
            kind: kind_of_nibble(raw[31] & 15)?,
            check: Check::from_kind(raw[23], raw[32..64].try_into().expect("32 bytes were cut"))?,
            window: (len > 0).then_some(WindowAt { start, len }),
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
        for kind in
            [StartKind::Stored, StartKind::Member, StartKind::Checkpoint, StartKind::Frame, StartKind::Continued]
        {
            let span = Span {
                decoded: DecodedOffset(5)..DecodedOffset(u64::MAX),
                blob: BlobOffset(MAX_BLOB),
                bit: 7,
                kind,
                check: Check::Sha256([9; 32]),
                window: Some(WindowAt { start: WindowAt::MAX_START, len: 65_535 }),
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
        assert_eq!(Span { bit: 8, window: None, ..span.clone() }.to_bytes(), None);
        assert_eq!(Span { blob: BlobOffset(1 << 56), window: None, ..span }.to_bytes(), None);
    }
}
