//! Making the zTOC of a layer, for machines that read layers with SOCI: one more pass over the blob, which decodes it, hashes
//! each span's bytes, and walks the tar. Nothing is stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::layer_ref::LayerRef;
use super::pass::{PassError, PassProgress};
use crate::codec::{BlockStart, CodecError, LayerDecoder, Limits, OutputBuffer, Status};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::foreign::soci::{NoZtoc, ZtocSpans, ZtocWriter};
use crate::layer::{TarError, TarWalker, WalkError};
use crate::offsets::BlobOffset;
use crate::source::BlobSource;

/// Why no zTOC was made.
#[derive(Debug, thiserror::Error)]
pub enum ZtocError {
    /// The layer cannot be read.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// It is no usable tar.
    #[error("layer {layer} is not a usable tar")]
    Tar {
        /// The blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: TarError,
    },
    /// It cannot be described.
    #[error(transparent)]
    None(#[from] NoZtoc),
}

/// The zTOC of a gzip layer, with spans of `span_size` decoded bytes and some more.
///
/// # Errors
/// [`ZtocError`]
pub async fn make_ztoc(
    layer: &LayerRef,
    source: &Arc<dyn BlobSource>,
    (limits, span_size): (Limits, u64),
    progress: &PassProgress,
) -> Result<Vec<u8>, ZtocError> {
    let digest = || layer.blob.digest.clone();
    let failed = |cause| PassError::Source { layer: digest(), cause };
    let mut stream = source.stream(&layer.blob, BlobOffset(0)..BlobOffset(layer.blob.size)).await.map_err(failed)?;
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let decoding = {
        let (layer, limits) = (layer.clone(), limits.of_blob(layer.blob.size));
        tokio::task::spawn_blocking(move || decode(&layer, (limits, span_size), receiver))
    };
    let mut fetched = Ok(());
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => {
                progress.received.fetch_add(piece.length() as u64, Ordering::Relaxed);
                // What is made of it is used only if the blob has its digest.
                if sender.send(piece.into_unverified()).await.is_err() {
                    break;
                }
            }
            Err(cause) => {
                fetched = Err(failed(cause));
                break;
            }
        }
    }
    drop(sender);
    let made = decoding.await.map_err(|_| PassError::Ended { layer: digest() })?;
    fetched?;
    made
}

fn decode(
    layer: &LayerRef,
    (limits, spacing): (Limits, u64),
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<Vec<u8>, ZtocError> {
    let codec = |cause: CodecError| PassError::Codec { layer: layer.blob.digest.clone(), cause };
    let mut decoder = LayerDecoder::noting_blocks(limits, spacing);
    let (mut out, mut walker, mut writer) =
        (OutputBuffer::new(OutputBuffer::CAPACITY), TarWalker::new(), ZtocWriter::default());
    let (mut blob, mut spans, mut size) = (Hasher::new(layer.blob.digest.algorithm()), Spans::default(), 0);
    let tar = |error: WalkError<NoZtoc>| match error {
        WalkError::Tar(cause) => ZtocError::Tar { layer: layer.blob.digest.clone(), cause },
        WalkError::Entry { cause, .. } => ZtocError::None(cause),
    };
    while let Some(piece) = pieces.blocking_recv() {
        blob.update(&piece);
        size += piece.len() as u64;
        spans.push(&piece);
        let mut input: &[u8] = &piece;
        loop {
            let status = decoder.decode(&mut input, &mut out).map_err(codec)?;
            spans.begin(decoder.take_starts());
            walker.push(out.decoded(), &mut writer).map_err(tar)?;
            out.discard();
            if status != Status::OutputFull {
                break;
            }
        }
        spans.settle();
    }
    decoder.finish().map_err(codec)?;
    let actual = blob.finish();
    if (&actual, size) != (&layer.blob.digest, layer.blob.size) {
        let (expected, expected_size) = (layer.blob.digest.clone(), layer.blob.size);
        return Err(PassError::Blob { expected, expected_size, actual, actual_size: size }.into());
    }
    let decoded_size = walker.position().0;
    walker.finish().map_err(|cause| tar(cause.into()))?;
    let (starts, digests) = spans.finish(decoded_size);
    let spans = ZtocSpans { blob_size: size, decoded_size, spacing, starts: &starts, digests: &digests };
    Ok(writer.finish(&spans)?)
}

/// Hashes the blob's bytes span by span. A span ends where the next one begins, which is known a little later.
#[derive(Default)]
struct Spans {
    starts: Vec<BlockStart>,
    digests: Vec<Digest>,
    /// Of the bytes of the last span, without those in `held`.
    hasher: Option<Hasher>,
    /// The last bytes of the blob.
    held: Vec<u8>,
    /// Where they begin.
    at: u64,
}

impl Spans {
    fn push(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
    }

    fn begin(&mut self, starts: Vec<BlockStart>) {
        for start in starts {
            let (first, end) = (start.mark.blob.0, start.mark.blob.0 + u64::from(start.mark.bit != 0));
            if let Some(mut hasher) = self.hasher.replace(Hasher::new(Algorithm::Sha256)) {
                hasher.update(&self.held[..(end - self.at) as usize]);
                self.digests.push(hasher.finish());
            }
            // A byte that both have a part of is of both.
            self.held.drain(..(first - self.at) as usize);
            self.at = first;
            self.starts.push(start);
        }
    }

    /// Hashes what lies before any start that may still come.
    fn settle(&mut self) {
        let settled = self.held.len().saturating_sub(UNSETTLED);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.held[..settled]);
        }
        self.held.drain(..settled);
        self.at += settled as u64;
    }

    /// The starts, and the digests of their spans.
    fn finish(mut self, decoded_size: u64) -> (Vec<BlockStart>, Vec<Digest>) {
        if let Some(mut hasher) = self.hasher.take() {
            hasher.update(&self.held);
            self.digests.push(hasher.finish());
        }
        debug_assert_eq!(self.starts.len(), self.digests.len());
        debug_assert!(self.starts.iter().all(|start| start.mark.decoded.0 <= decoded_size));
        (self.starts, self.digests)
    }
}

/// Bytes behind which the next start lies, at least.
const UNSETTLED: usize = 64;
/// Pieces of a body held between the network and the decoder.
const PIECES_AHEAD: usize = 8;
