//! Decoding spans whose digests are of the blob's bytes: each is compared as a whole before anything of it is stored or shown.
//!
//! It is decoded as it comes, since a span of SOCI has some MiB: a reader would wait for its bytes, and then for their decoder.
//!
//! Neighbours share a byte of the blob where the second begins in the middle of it, and the second's window is the end of the
//! first.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::apart::Input;
use super::error::ReadError;
use super::fetch::{Fetcher, OUTPUT, SpanRun};
use super::spans;
use crate::codec::{CodecError, LayerDecoder, OutputBuffer, Status};
use crate::layer::{Check, IndexError};
use crate::offsets::BlobOffset;
use crate::span::{SpanId, SpanRange};
use crate::trust::Untrusted;

impl Fetcher {
    /// Compares, decodes and keeps `spans`; readers wait for those of `runs`. The bytes that come begin at `from`.
    pub(super) fn decode_compared(
        &self,
        spans: SpanRange,
        runs: [&SpanRun; 2],
        from: BlobOffset,
        pieces: mpsc::Receiver<Untrusted<Bytes>>,
    ) -> Result<(), ReadError> {
        let mut input = Input::new(pieces, from);
        let mut out = OutputBuffer::new(OUTPUT);
        let index_error = |cause| self.layer.index_error(cause);
        let codec_error = |cause: CodecError| self.codec_error(cause);
        let mut encoded: Vec<u8> = Vec::new();
        for span in spans.iter() {
            let range = self.layer.index.blob_range(span, span).map_err(index_error)?;
            let shared = input.at - range.start.min(input.at);
            if shared > encoded.len().min(1) as u64 {
                return Err(index_error(IndexError::Malformed { what: "spans do not follow one another in the blob" }));
            }
            // What comes is what is asked for, so the memory is that of a span of this blob.
            encoded.drain(..encoded.len() - shared as usize);
            if shared == 0 {
                input.skip_to(range.start).ok_or_else(|| self.ended())?;
            }
            let (mut decoder, known) = self.decoder_for(SpanRange::one(span), codec_error)?;
            let wanted = spans::length(&known);
            // While the rest comes: a reader waits for all of it.
            let (mut decoded, mut failed, mut seen) = (Vec::with_capacity(wanted.min(USUAL)), None, 0);
            loop {
                if failed.is_none() {
                    failed = decode(&mut decoder, wanted, &encoded[seen..], &mut out, &mut decoded).err();
                }
                seen = encoded.len();
                if input.at >= range.end {
                    break;
                }
                input.take_some(range.end, &mut encoded).ok_or_else(|| self.ended())?;
            }
            if known.check.is_of_blob() {
                self.compare(span, &known, &encoded)?;
            }
            if let Some(error) = failed {
                return Err(codec_error(error));
            }
            if decoded.len() < wanted {
                // The bytes are those that were promised, and what is said of them is not.
                return Err(codec_error(CodecError::Truncated { at: decoder.blob_offset() }));
            }
            let decoded = Bytes::from(decoded);
            self.arrived(span, &known, decoded.clone(), runs)?;
            self.compare_window(span.next(), &decoded)?;
        }
        Ok(())
    }

    /// Compares the window of `span` with the bytes `before` it, now that these are known: nothing else says that it is right.
    fn compare_window(&self, span: SpanId, before: &[u8]) -> Result<(), ReadError> {
        if span >= self.layer.index.spans().end {
            return Ok(());
        }
        let (_, window) = self.layer.start_of(span)?;
        let Some(window) = window.of_deflate() else { return Ok(()) };
        let shared = window.len().min(before.len());
        let (said, found) = (&window[window.len() - shared..], &before[before.len() - shared..]);
        if said == found {
            return Ok(());
        }
        let [expected, actual] = [said, found].map(|bytes| Check::blake3(bytes).to_string().into());
        Err(ReadError::Corrupt { layer: self.layer.blob().clone(), span, expected, actual })
    }
}

/// Decodes more of a span until `decoded` has the `wanted` bytes, or there are none.
fn decode(
    decoder: &mut LayerDecoder,
    wanted: usize,
    mut encoded: &[u8],
    out: &mut OutputBuffer,
    decoded: &mut Vec<u8>,
) -> Result<(), CodecError> {
    out.discard();
    while decoded.len() < wanted {
        let status = decoder.decode(&mut encoded, out)?;
        let more = out.decoded();
        decoded.extend_from_slice(&more[..more.len().min(wanted - decoded.len())]);
        out.discard();
        if status != Status::OutputFull {
            break;
        }
    }
    Ok(())
}

/// Memory for a span before any of it has come.
const USUAL: usize = 8 << 20;
