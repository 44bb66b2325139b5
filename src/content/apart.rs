//! Decoding spans that stand alone: each from bytes of its own, and between two of them lies what no reader needs.

use tokio::sync::mpsc;

use bytes::Bytes;

use super::error::ReadError;
use super::fetch::{Fetcher, OUTPUT, SpanRun};
use super::spans;
use crate::codec::{CodecError, LayerDecoder, Limits, Mark, OutputBuffer, Status};
use crate::descriptor::Compression;
use crate::layer::{IndexError, Span};
use crate::offsets::BlobOffset;
use crate::span::SpanRange;
use crate::trust::Untrusted;

impl Fetcher {
    /// Decodes `spans`, checking and keeping each of them; readers wait for those of `runs`. The bytes that come begin at
    /// `from`.
    pub(super) fn decode_apart(
        &self,
        spans: SpanRange,
        runs: [&SpanRun; 2],
        from: BlobOffset,
        pieces: mpsc::Receiver<Untrusted<Bytes>>,
    ) -> Result<(), ReadError> {
        let mut input = Input::new(pieces, from);
        let mut out = OutputBuffer::new(OUTPUT);
        let index_error = |cause| self.layer.index_error(cause);
        let (mut encoded, mut at) = (Vec::new(), BlobOffset(0)..BlobOffset(0));
        for span in spans.iter() {
            let (known, index) = (self.layer.span(span)?, &self.layer.index);
            let range = index.blob_range(span, span).map_err(index_error)?;
            let skip = index.source_of(span).map_err(index_error)?.map_or(0, |source| source.skip);
            // Small files may be decoded from the same bytes.
            if range != at {
                encoded.clear();
                if range.start < input.at {
                    let cause = IndexError::Malformed { what: "spans do not follow one another in the blob" };
                    return Err(index_error(cause));
                }
                input.skip_to(range.start).ok_or_else(|| self.ended())?;
                at = range;
            }
            // A table may say that few bytes are decoded from very many of the blob.
            let most = most_encoded(skip + spans::length(&known) as u64);
            let end = BlobOffset(at.start.0.saturating_add(most)).min(at.end);
            input.take_to(end, &mut encoded).ok_or_else(|| self.ended())?;
            let decoded = decoder_of(&known, skip)
                .and_then(|mut decoder| decode(&mut decoder, skip, spans::length(&known), &encoded, &mut out))
                .map_err(|cause| self.codec_error(cause))?;
            self.arrived(span, &known, decoded.into(), runs)?;
        }
        Ok(())
    }
}

/// The most bytes that any encoder makes of so many, with room for headers and for what it adds to bytes that it cannot
/// compress.
fn most_encoded(decoded: u64) -> u64 {
    decoded + decoded / 64 + (64 << 10)
}

/// A decoder at the start of a span that is decoded from the `skip` bytes before it.
fn decoder_of(known: &Span, skip: u64) -> Result<LayerDecoder, CodecError> {
    let mark = Mark { blob: known.blob, bit: known.bit, decoded: known.decoded.start, kind: known.kind };
    let compression = known.kind.compression().unwrap_or(Compression::Stored);
    let limits = Limits::of_known(spans::length(known) as u64 + skip + OUTPUT as u64);
    LayerDecoder::resume(compression, limits, &mark, None)
}

/// What `encoded` decodes to without the first `skip` bytes: the first `wanted` of it, or as many as there are.
fn decode(
    decoder: &mut LayerDecoder,
    skip: u64,
    wanted: usize,
    encoded: &[u8],
    out: &mut OutputBuffer,
) -> Result<Vec<u8>, CodecError> {
    let (mut input, mut decoded, mut skip) = (encoded, Vec::with_capacity(wanted), skip);
    out.discard();
    while decoded.len() < wanted {
        let status = decoder.decode(&mut input, out)?;
        let more = out.decoded();
        let skipped = skip.min(more.len() as u64);
        let more = &more[skipped as usize..];
        decoded.extend_from_slice(&more[..more.len().min(wanted - decoded.len())]);
        skip -= skipped;
        out.discard();
        if status != Status::OutputFull {
            break;
        }
    }
    Ok(decoded)
}

/// Bytes of the blob, in order.
pub(super) struct Input {
    pieces: mpsc::Receiver<Untrusted<Bytes>>,
    piece: Bytes,
    /// Where `piece` begins.
    pub(super) at: BlobOffset,
}

impl Input {
    /// Those that come, beginning at `at`.
    pub(super) fn new(pieces: mpsc::Receiver<Untrusted<Bytes>>, at: BlobOffset) -> Self {
        Self { pieces, piece: Bytes::new(), at }
    }

    /// `None` where the bytes end before.
    pub(super) fn skip_to(&mut self, to: BlobOffset) -> Option<()> {
        while self.at < to {
            self.next(to)?;
        }
        Some(())
    }

    pub(super) fn take_to(&mut self, to: BlobOffset, into: &mut Vec<u8>) -> Option<()> {
        while self.at < to {
            into.extend_from_slice(&self.next(to)?);
        }
        Some(())
    }

    /// Takes what there is of one piece before `to`.
    pub(super) fn take_some(&mut self, to: BlobOffset, into: &mut Vec<u8>) -> Option<()> {
        into.extend_from_slice(&self.next(to)?);
        Some(())
    }

    /// The next bytes, as many as there are of one piece before `to`.
    fn next(&mut self, to: BlobOffset) -> Option<Bytes> {
        if self.piece.is_empty() {
            self.piece = self.pieces.blocking_recv()?.into_unverified();
        }
        let wanted = usize::try_from(to - self.at).unwrap_or(usize::MAX);
        let taken = self.piece.split_to(wanted.min(self.piece.len()));
        self.at = self.at + taken.len() as u64;
        Some(taken)
    }
}
