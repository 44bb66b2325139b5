//! Fetching: one span is asked for once, however many readers wait for it.
//!
//! Neighbouring spans that are wanted together travel in one range request. Each span's bytes are
//! decoded, checked against the digest that the verified pass recorded, kept, and handed to whoever
//! waits, span by span, while later ones are still on their way.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{LayerContent, ReadError, spans};
use crate::codec::{CodecError, LayerDecoder, Limits, Mark, OutputBuffer, Status, Window};
use crate::layer::{IndexError, SpanId};
use crate::source::SourceError;
use crate::sync::lock;
use crate::trust::Untrusted;

/// Spans on their way, and where their outcome will be told.
pub(super) type Flights = HashMap<u32, watch::Receiver<Outcome>>;

/// `None` while a span is on its way.
pub(super) type Outcome = Option<Result<Bytes, ReadError>>;

/// Starts fetching what is missing of `wanted`; returns a receiver for each of its spans.
pub(super) fn start(layer: &Arc<LayerContent>, wanted: Range<u32>) -> Vec<(u32, watch::Receiver<Outcome>)> {
    let mut receivers = Vec::new();
    let mut run: Vec<(u32, watch::Sender<Outcome>)> = Vec::new();
    let mut runs = Vec::new();
    {
        let mut flights = lock(&layer.flights);
        for span in wanted {
            let receiver = match flights.get(&span) {
                Some(receiver) => {
                    runs.push(std::mem::take(&mut run));
                    receiver.clone()
                }
                None => {
                    let (sender, receiver) = watch::channel(None);
                    flights.insert(span, receiver.clone());
                    run.push((span, sender));
                    receiver
                }
            };
            receivers.push((span, receiver));
        }
    }
    runs.push(run);
    for run in runs {
        if !run.is_empty() {
            tokio::spawn(fly(Arc::clone(layer), run));
        }
    }
    receivers
}

/// Fetches one run of neighbouring spans; a run that turns out corrupt is asked for once more.
async fn fly(layer: Arc<LayerContent>, run: Vec<(u32, watch::Sender<Outcome>)>) {
    let spans: Vec<u32> = run.iter().map(|(span, _)| *span).collect();
    let run = Arc::new(run);
    let mut result = fetch_run(&layer, &run).await;
    if matches!(result, Err(ReadError::Corrupt { .. } | ReadError::Codec { .. })) {
        result = fetch_run(&layer, &run).await;
    }
    let mut flights = lock(&layer.flights);
    for span in spans {
        flights.remove(&span);
    }
    drop(flights);
    if let Err(error) = result {
        tracing::error!(target: "peelfs::failure", layer = %layer.blob.digest, error = &error as &dyn std::error::Error, "a span cannot be had");
        for (_, sender) in run.iter().filter(|(_, sender)| sender.borrow().is_none()) {
            sender.send_replace(Some(Err(error.clone())));
        }
    }
}

async fn fetch_run(layer: &Arc<LayerContent>, run: &Arc<Vec<(u32, watch::Sender<Outcome>)>>) -> Result<(), ReadError> {
    let (first, last) = (run[0].0, run[run.len() - 1].0);
    let source_error = |cause: SourceError| ReadError::Source { layer: layer.layer_name(), cause: Arc::new(cause) };
    let start = spans::start_of(&layer.index, first).map_err(|cause| layer.index_error(cause))?;
    let range = spans::blob_range(&layer.index, start, last).map_err(|cause| layer.index_error(cause))?;
    layer.counters.fetched_bytes.fetch_add(range.end - range.start, Ordering::Relaxed);

    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let decoding = {
        let (layer, run) = (Arc::clone(layer), Arc::clone(run));
        tokio::task::spawn_blocking(move || decode_run(&layer, start, last, &run, receiver))
    };
    let mut stream = layer.source.stream(&layer.blob, range).await.map_err(source_error)?;
    while let Some(piece) = stream.next().await {
        if sender.send(piece.map_err(source_error)?).await.is_err() {
            break; // the decoder has all it needs, or has failed
        }
    }
    drop(sender);
    decoding.await.map_err(|_| ReadError::Ended { layer: layer.layer_name() })?
}

/// Decodes from span `start` to span `last`, checking and keeping each span on the way.
fn decode_run(
    layer: &Arc<LayerContent>,
    start: u32,
    last: u32,
    run: &[(u32, watch::Sender<Outcome>)],
    mut pieces: mpsc::Receiver<Untrusted<Bytes>>,
) -> Result<(), ReadError> {
    let index_error = |cause: IndexError| layer.index_error(cause);
    let codec_error = |cause: CodecError| ReadError::Codec { layer: layer.layer_name(), cause: Arc::new(cause) };
    let begin = layer.index.span(SpanId(start)).map_err(index_error)?;
    let window = layer.index.window(SpanId(start)).map_err(index_error)?.unwrap_or_default();
    let window = Window::from_bytes(&window)
        .map_err(|_| index_error(IndexError::Malformed { what: "a window does not unpack" }))?;
    let mark = Mark { blob: begin.blob, bit: begin.bit, decoded: begin.decoded.start, kind: begin.kind };
    let limits = Limits { decoded: u64::MAX, ..Limits::default() };
    let mut decoder = LayerDecoder::resume(layer.compression, limits, &mark, Some(&window)).map_err(codec_error)?;
    let mut out = OutputBuffer::new(OUTPUT);

    let mut at = start;
    let mut known = begin;
    let mut bytes = Vec::with_capacity(spans::length(&known));
    loop {
        let piece = pieces.blocking_recv().map(Untrusted::into_unverified);
        let ended = piece.is_none();
        let piece = piece.unwrap_or_default();
        let mut input: &[u8] = &piece;
        loop {
            let status = decoder.decode(&mut input, &mut out).map_err(codec_error)?;
            let mut decoded = out.decoded();
            while !decoded.is_empty() {
                let room = spans::length(&known) - bytes.len();
                let (now, later) = decoded.split_at(room.min(decoded.len()));
                bytes.extend_from_slice(now);
                decoded = later;
                if bytes.len() == spans::length(&known) {
                    layer.arrived(at, &known, std::mem::take(&mut bytes).into(), run)?;
                    if at == last {
                        return Ok(());
                    }
                    at += 1;
                    known = layer.index.span(SpanId(at)).map_err(index_error)?;
                    bytes.reserve(spans::length(&known));
                }
            }
            out.discard();
            if status != Status::OutputFull {
                break;
            }
        }
        if ended {
            decoder.finish().map_err(codec_error)?;
            return Err(ReadError::Ended { layer: layer.layer_name() });
        }
    }
}

impl LayerContent {
    /// Checks a span that was decoded, keeps it, and tells whoever waits for it.
    fn arrived(
        &self,
        span: u32,
        known: &crate::layer::Span,
        bytes: Bytes,
        run: &[(u32, watch::Sender<Outcome>)],
    ) -> Result<(), ReadError> {
        let actual = blake3::hash(&bytes);
        if *actual.as_bytes() != known.check {
            return Err(ReadError::Corrupt {
                layer: self.layer_name(),
                span,
                expected: blake3::Hash::from_bytes(known.check).to_hex().as_str().into(),
                actual: actual.to_hex().as_str().into(),
            });
        }
        self.counters.fetched_spans.fetch_add(1, Ordering::Relaxed);
        if self.content.generation(span).is_none() {
            match self.content.fill(span, known.decoded.start, &bytes) {
                Ok(generation) => {
                    // This was the change; what else is verified stays so.
                    self.stamp.store(self.content.stamp(), Ordering::Release);
                    self.verified[span as usize].store(generation.get(), Ordering::Release);
                    self.make_room(bytes.len() as u64);
                }
                Err(error) => {
                    if self.counters.unkept_spans.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(%error, "the cache cannot keep what was fetched; reading goes on without it");
                    }
                }
            }
        }
        if let Some((_, sender)) = run.iter().find(|(number, _)| *number == span) {
            sender.send_replace(Some(Ok(bytes)));
        }
        Ok(())
    }
}

/// Pieces of a body held between the network and the decoder.
const PIECES_AHEAD: usize = 8;
/// Decoded bytes produced at a time.
const OUTPUT: usize = 256 << 10;
