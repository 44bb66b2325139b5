//! The first pass over a layer: one stream in, index and content out.
//!
//! ```text
//! source --pieces--> [inflate, note checkpoints] --buffers--> [diff_id, span digests, tar walk, content file]
//!               \--> [hash the blob]
//! ```
//!
//! The stages overlap on three threads and the network's tasks, with bounded buffers between them, so the pass runs at
//! the speed of its slowest stage and in constant memory. The decoder is the slowest stage, so its thread does nothing
//! else. Index and content are published only when the blob's digest and size and the diff_id all match; until then
//! nothing of the layer is visible, and on a mismatch nothing is kept.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::beat::Beating;
use super::layer_ref::{LayerRef, Payload};
use super::origin::{Origin, open_stored};
use super::partial::PartialLayer;
use super::pass_output::{ContentWriter, PackedWindows, SpanCutter};
use super::pass_schedule::{ScheduledPass, ThreadPriority};
use super::peek::Peeked;
use super::pushed::PushedIndexes;
use super::soci::BoundSoci;
use super::superseded::{drop_unneeded_windows, replaced_by_pass};
use crate::codec::{
    CodecError, Filled, LayerDecoder, Limits as CodecLimits, Mark, OutputBuffer, Status, Window, WindowPacker,
    compression_of,
};
use crate::descriptor::Compression;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::tar::WalkError;
use crate::layer::{
    IndexedLayer, LayerIndex, LayerTree, Limits as LayerLimits, Proof, Span, Stream, TarWalker, TreeError, WriteError,
    tree_of_blob, write_index_of,
};
use crate::offsets::{BlobOffset, DecodedOffset};
use crate::source::{BlobSource, SentBy, SourceError};
use crate::store::{LayerName, NewContent, NewFile, PassLock, Store, StoreError};
use crate::trust::Untrusted;

/// Why a decoded stream cannot be shown as a tree.
pub type LayerError = WalkError<TreeError>;

/// A layer to be read once, and the limits of that pass.
#[derive(Clone)]
pub struct FirstPass {
    /// The layer.
    pub layer: LayerRef,
    /// Limits against decompression bombs.
    pub codec_limits: CodecLimits,
    /// Limits on the tree.
    pub layer_limits: LayerLimits,
}

/// What opening a layer needs.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Delivers the layer's bytes.
    pub source: &'a Arc<dyn BlobSource>,
    /// Receives index and content.
    pub store: &'a Arc<Store>,
    /// Receives the progress of the pass.
    pub progress: &'a Arc<PassProgress>,
    /// Decides when the pass may read its stream.
    pub schedule: &'a ScheduledPass,
    /// Shows the tree and the content of the running pass.
    pub partial: Option<&'a Arc<PartialLayer>>,
    /// Whether to wait for other processes that read the layer.
    pub others: Others,
    /// Indexes of the image's layers in a registry.
    pub pushed: Option<&'a PushedIndexes>,
    /// The SOCI index that the image's manifest binds.
    pub soci: Option<&'a BoundSoci>,
    /// Permits of passes that no reader waits for, if these are limited.
    pub turns: Option<&'a Semaphore>,
}

/// Whether to wait for other processes that make the same pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Others {
    /// Wait while they make progress.
    Wait,
    /// Do not wait for the first of them: it is a pass of this process that has stalled.
    Bypass,
}

/// Progress of a pass, for status.
#[derive(Debug, Default)]
pub struct PassProgress {
    /// Blob bytes received.
    pub received: AtomicU64,
    /// Those that this process has received, in failed passes, too.
    pub own: AtomicU64,
}

/// Why a layer could not be indexed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The source did not deliver.
    #[error("cannot fetch layer {layer}")]
    Source {
        /// The blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: SourceError,
    },
    /// The blob is not the one the manifest names.
    #[error("layer {expected} is corrupt: {}", difference(*expected_size, *actual_size, actual))]
    Blob {
        /// Digest in the manifest.
        expected: Digest,
        /// Size in the manifest.
        expected_size: u64,
        /// Digest of what was received.
        actual: Digest,
        /// Size of what was received.
        actual_size: u64,
    },
    /// The blob is the one named, but its tar is not the one the configuration names.
    #[error("layer {layer} is not what the image configuration says: expected diff_id {expected}, got {actual}{}", lacks(*padding))]
    DiffId {
        /// The blob.
        layer: Digest,
        /// The configuration's diff_id.
        expected: Digest,
        /// Digest of the decoded stream.
        actual: Digest,
        /// The number of missing zero bytes, if they alone explain the mismatch.
        padding: Option<u64>,
    },
    /// The blob does not decode.
    #[error("layer {layer} does not decode")]
    Codec {
        /// The blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: CodecError,
    },
    /// The decoded stream is not a tar that can be shown.
    #[error("layer {layer} is not a usable tar")]
    Tar {
        /// The blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: LayerError,
    },
    /// The layer's index could not be written.
    #[error("cannot write the index of layer {layer}")]
    Index {
        /// The blob.
        layer: Digest,
        /// Why.
        #[source]
        cause: WriteError,
    },
    /// The process is shutting down.
    #[error("the first pass over layer {layer} was ended")]
    Ended {
        /// The blob.
        layer: Digest,
    },
}

fn lacks(padding: Option<u64>) -> String {
    padding.map(|padding| format!("; its tar lacks the last {padding} bytes, all zeros")).unwrap_or_default()
}

fn difference(expected_size: u64, actual_size: u64, actual: &Digest) -> String {
    if expected_size == actual_size {
        format!("got {actual_size} bytes with digest {actual}")
    } else {
        format!("expected {expected_size} bytes, got {actual_size} with digest {actual}")
    }
}

impl PassError {
    /// Whether a later try may succeed.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Source { .. } | Self::Index { .. } | Self::Ended { .. })
    }

    /// Whether other bytes than the right ones may explain it.
    fn may_be_of_sender(&self) -> bool {
        // A format that peelfs does not read is known before the digest is.
        matches!(self, Self::Blob { .. } | Self::Codec { cause: CodecError::Foreign { .. }, .. })
    }

    /// Whether the source sent other bytes than those requested.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Blob { .. } | Self::DiffId { .. })
    }
}

impl FirstPass {
    /// Reads the layer from its source once and puts its index and content into the store.
    ///
    /// If another process makes the same pass, waits while it makes progress, and uses its result. With
    /// [`Others::Bypass`], does not wait for the process that began first.
    ///
    /// # Errors
    /// [`PassError`]; nothing of the layer is cached then.
    pub async fn run(&self, means: &Means<'_>) -> Result<Arc<LayerIndex>, PassError> {
        let _turn = means.schedule.turn(means.turns).await;
        let _place = means.schedule.place().await;
        loop {
            let lock = Arc::new(self.admitted(means).await?);
            if let Some(index) = self.made(means.store) {
                return Ok(index);
            }
            let _beating = Beating::begin(Arc::clone(&lock));
            let mut senders = SentBy::default();
            match self.make(means, &lock, &mut senders).await {
                Ok(Some(index)) => return Ok(index),
                // Another host may have the right bytes. What was shown of them cannot be withdrawn.
                Err(why) if means.partial.is_none() && why.may_be_of_sender() && senders.pass_over() => {
                    means.progress.received.store(0, Ordering::Relaxed);
                }
                Err(why) => return Err(self.explained(why, means.source).await),
                Ok(None) => {
                    tracing::info!(layer = %self.layer.blob.digest, "the stalled process makes progress again; waiting for it");
                }
            }
        }
    }

    /// The same failure, with its cause if the source knows why its bytes are wrong.
    async fn explained(&self, why: PassError, source: &Arc<dyn BlobSource>) -> PassError {
        if !why.is_corruption() {
            return why;
        }
        let blob = &self.layer.blob;
        match source.explain(blob, BlobOffset(0)..BlobOffset(blob.size)).await {
            Some(cause) => PassError::Source { layer: blob.digest.clone(), cause },
            None => why,
        }
    }

    /// Makes the pass; `None` if a process that stalled before has caught up.
    async fn make(
        &self,
        means: &Means<'_>,
        lock: &PassLock,
        senders: &mut SentBy,
    ) -> Result<Option<Arc<LayerIndex>>, PassError> {
        let Means { source, store, progress, schedule, partial, .. } = *means;
        let layer = || self.layer.blob.digest.clone();
        let ended = |_| PassError::Ended { layer: layer() };
        let failed = |cause| PassError::Source { layer: layer(), cause };
        // Opens the stream at once, whatever the schedule: a round trip takes no bandwidth. And before starting
        // threads: the runtime has a bounded number, and none should wait for an unreachable source.
        let whole = BlobOffset(0)..BlobOffset(self.layer.blob.size);
        let mut overtaken = std::pin::pin!(self.overtaken(store, progress, lock));
        let begun = async { Peeked::new(source.stream(&self.layer.blob, whole).await?).await };
        let mut blob = tokio::select! {
            biased;
            blob = begun => blob.map_err(failed)?,
            () = &mut overtaken => return Ok(None),
        };
        *senders = blob.senders();
        let pass = self.sniffed(&blob.first).map_err(|cause| PassError::Codec { layer: layer(), cause })?;
        let (to_decoder, encoded) = mpsc::channel(PIECES_AHEAD);
        let (to_hasher, hashed) = mpsc::channel(PIECES_AHEAD);
        let (buffer_sender, buffers) = std::sync::mpsc::sync_channel(BUFFERS_AHEAD);
        let (empty_sender, empties) = std::sync::mpsc::channel();
        let hashing = {
            let (algorithm, priority) = (self.layer.blob.digest.algorithm(), schedule.priority());
            tokio::task::spawn_blocking(move || hash(algorithm, hashed, priority()))
        };
        let decoding = {
            let (pass, priority) = (pass.clone(), schedule.priority());
            tokio::task::spawn_blocking(move || pass.decode(encoded, &buffer_sender, &empties, priority()))
        };
        let walking = {
            let (pass, store) = (pass.clone(), Arc::clone(store));
            // If the pass is not shown, its partial layer is dropped.
            let (partial, priority) = (partial.map_or_else(Arc::default, Arc::clone), schedule.priority());
            tokio::task::spawn_blocking(move || pass.walk(&store, &buffers, &empty_sender, &partial, priority()))
        };

        let mut given_up = false;
        let fetched = async {
            let mut lease = schedule.take();
            let mut noted = Instant::now();
            loop {
                let piece = tokio::select! {
                    biased;
                    piece = blob.next() => piece,
                    // What this pass has shown to readers cannot be withdrawn.
                    () = &mut overtaken, if partial.is_none() => {
                        given_up = true;
                        break;
                    }
                };
                let Some(piece) = piece else { break };
                let piece = piece?.into_unverified();
                lease.progressed();
                progress.own.fetch_add(piece.len() as u64, Ordering::Relaxed);
                let before = progress.received.fetch_add(piece.len() as u64, Ordering::Relaxed);
                let received = before + piece.len() as u64;
                if before / NOTED != received / NOTED || noted.elapsed() >= NOTED_EVERY {
                    lock.note(received);
                    noted = Instant::now();
                }
                if to_decoder.capacity() == 0 {
                    lease.full();
                }
                let sent = to_hasher.send(Untrusted::new(piece.clone())).await.is_ok();
                if !sent || to_decoder.send(Untrusted::new(piece)).await.is_err() {
                    break; // a later stage has failed and says why itself
                }
                lease.next().await;
            }
            Ok(())
        }
        .await;
        drop((to_hasher, to_decoder));
        let (digest, size) = hashing.await.map_err(ended)?;
        let decoded = decoding.await.map_err(ended)?;
        let walked = walking.await.map_err(ended)?;
        if given_up {
            return Ok(None);
        }
        // Report the first cause: a truncated stream also looks like a codec error.
        fetched.map_err(failed)?;
        let (walked, narrowed) = match decoded {
            Ok(narrowed) => (walked?, narrowed),
            // The walker has failed before, and holds the error.
            Err(Undecoded::Unwanted) => {
                return Err(walked.err().unwrap_or_else(|| PassError::Ended { layer: layer() }));
            }
            Err(Undecoded::Codec(cause)) => {
                // A blob with a wrong digest explains any other error.
                self.check_blob(&digest, size)?;
                return Err(PassError::Codec { layer: layer(), cause });
            }
        };
        self.check_blob(&digest, size)?;
        let store = Arc::clone(store);
        let published = tokio::task::spawn_blocking(move || pass.publish(&store, walked)).await.map_err(ended)?;
        match (published, narrowed) {
            // With a reduced window, its frames may refer to bytes that were no longer held.
            (Err(PassError::DiffId { layer, .. }), Some(cause)) => Err(PassError::Codec { layer, cause }),
            (published, _) => published.map(Some),
        }
    }

    /// The index that another process or mount has made meanwhile.
    pub(super) fn made(&self, store: &Store) -> Option<Arc<LayerIndex>> {
        open_stored(&self.layer, &[Origin::Store], store).ok().map(|opened| opened.index)
    }

    fn compression(&self) -> Compression {
        match &self.layer.payload {
            Payload::Tar(compression) => *compression,
            Payload::File(_) => Compression::Stored,
        }
    }

    /// The tree before any of the layer was read, and what reads a tar's entries into it. A file is known beforehand.
    fn begun(&self) -> (LayerTree, Option<TarWalker>) {
        match self.layer.payload {
            Payload::Tar(_) => {
                (LayerTree::new(self.layer_limits.of_blob(self.layer.blob.size)), Some(TarWalker::new()))
            }
            Payload::File(_) => (tree_of_blob(self.layer.blob.size), None),
        }
    }

    /// This pass with the compression that the first bytes of the blob show.
    fn sniffed(&self, first: &[u8]) -> Result<Self, CodecError> {
        if self.layer.file().is_some() {
            return Ok(self.clone());
        }
        let compression = compression_of(first, self.compression())?;
        if compression != self.compression() {
            tracing::warn!(
                layer = %self.layer.blob.digest, media_type = self.layer.blob.media_type.as_str(), ?compression,
                "the media type of a layer is wrong; decoding it as its first bytes say"
            );
        }
        let layer = LayerRef { payload: Payload::Tar(compression), ..self.layer.clone() };
        Ok(Self { layer, ..self.clone() })
    }

    /// First stage: decodes the blob and passes buffers on. Returns the error of the frame whose window was reduced to
    /// the memory limit, if any.
    fn decode(
        &self,
        mut pieces: mpsc::Receiver<Untrusted<Bytes>>,
        buffers: &std::sync::mpsc::SyncSender<Decoded>,
        empties: &std::sync::mpsc::Receiver<Filled>,
        mut priority: ThreadPriority,
    ) -> Result<Option<CodecError>, Undecoded> {
        let mut limits = self.codec_limits.of_blob(self.layer.blob.size);
        if self.layer.file().is_some() {
            // It decodes to itself, and its size is compared with the manifest's.
            limits.decoded = u64::MAX;
        }
        let mut decoder = LayerDecoder::first_pass(self.compression(), limits)?;
        let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
        let mut failed = None;
        while let Some(piece) = pieces.blocking_recv() {
            priority.settle();
            let piece = piece.into_unverified();
            let mut input: &[u8] = &piece;
            // After an error, keep receiving, so that the whole blob is hashed.
            while failed.is_none() {
                match decoder.decode(&mut input, &mut out) {
                    Ok(Status::OutputFull) => pass_on(&mut out, &mut decoder, buffers, empties)?,
                    Ok(Status::NeedInput | Status::End) => break,
                    Err(cause) => failed = Some(cause),
                }
            }
        }
        match failed {
            None => decoder.finish()?,
            Some(cause) => return Err(cause.into()),
        }
        pass_on(&mut out, &mut decoder, buffers, empties)?;
        Ok(decoder.narrowed())
    }

    /// Second stage: hashes and cuts the decoded stream, walks the tar, writes the content.
    fn walk(
        &self,
        store: &Arc<Store>,
        buffers: &std::sync::mpsc::Receiver<Decoded>,
        empties: &std::sync::mpsc::Sender<Filled>,
        partial: &PartialLayer,
        mut priority: ThreadPriority,
    ) -> Result<Walked, PassError> {
        let tar_error = |cause: LayerError| PassError::Tar { layer: self.layer.blob.digest.clone(), cause };
        // A stored layer decodes to itself, and its blob is hashed already.
        let algorithm = self.layer.content().algorithm();
        let same = self.compression() == Compression::Stored && self.layer.blob.digest.algorithm() == algorithm;
        let mut diff_id = (!same).then(|| Hasher::new(algorithm));
        let (tree, mut walker) = self.begun();
        let stream_name = self.layer.stream_name();
        let index_file = self.reserve_index(store);
        let mut content = ContentWriter::new(store, LayerName { blob: &self.layer.blob.digest, diff_id: &stream_name });
        partial.begin(tree, content.reader());
        let mut spans = SpanCutter::default();
        let (mut windows, mut packer) = (PackedWindows::default(), WindowPacker::new());
        let mut at = DecodedOffset(0);
        // Reported only after the blob's digest was checked.
        let mut failed = None;
        while let Ok(Decoded { buffer, marks, windows: found }) = buffers.recv() {
            priority.settle();
            let bytes: &[u8] = &buffer;
            windows.pack(found, &mut packer);
            if let Some(diff_id) = &mut diff_id {
                diff_id.update(bytes);
            }
            spans.cut(at, bytes, marks, &mut content);
            content.write(at, bytes);
            if let (None, Some(walker)) = (&failed, &mut walker) {
                failed = partial.with_tree(|tree| walker.push(bytes, tree)).and_then(Result::err);
            }
            at = at + bytes.len() as u64;
            partial.advance_to(content.stopped_at.unwrap_or(at).min(spans.whole_to()));
            // Fails once the decoder has ended and needs no more buffers.
            let _ = empties.send(buffer);
        }
        let ended = partial.end(&spans.done).ok_or_else(|| PassError::Ended { layer: self.layer.blob.digest.clone() });
        spans.end(&mut content);
        let tree = match failed {
            None => walker
                .map_or(Ok(()), |walker| walker.finish().map(drop))
                .map_err(|cause| tar_error(cause.into()))
                .and(ended),
            Some(cause) => Err(tar_error(cause)),
        };
        let padding = diff_id.as_ref().and_then(|so_far| missing_padding(so_far, self.layer.diff_id.as_ref()?));
        let (diff_id, content) = (diff_id.map(Hasher::finish), content.into_content());
        Ok(Walked { diff_id, padding, size: at, tree, spans: spans.done, windows, content, index_file })
    }

    fn check_blob(&self, digest: &Digest, size: u64) -> Result<(), PassError> {
        if *digest == self.layer.blob.digest && size == self.layer.blob.size {
            return Ok(());
        }
        Err(PassError::Blob {
            expected: self.layer.blob.digest.clone(),
            expected_size: self.layer.blob.size,
            actual: digest.clone(),
            actual_size: size,
        })
    }

    /// Last stage: publishes index and content if the diff_id matches; else keeps nothing. The blob was checked before.
    fn publish(&self, store: &Arc<Store>, walked: Walked) -> Result<Arc<LayerIndex>, PassError> {
        let index_error = |cause| PassError::Index { layer: self.layer.blob.digest.clone(), cause };
        let actual = walked.diff_id.unwrap_or_else(|| self.layer.blob.digest.clone());
        if let Some(expected) = self.layer.diff_id.clone().filter(|expected| *expected != actual) {
            let layer = self.layer.blob.digest.clone();
            return Err(PassError::DiffId { layer, expected, actual, padding: walked.padding });
        }
        let tree = walked.tree?;
        // Another process that also made this pass may have published it first.
        if let Some(index) = self.made(store) {
            return Ok(index);
        }
        let (mut spans, mut windows) = (walked.spans, walked.windows);
        windows.assign(&mut spans);
        let layer = IndexedLayer {
            blob: self.layer.blob.digest.clone(),
            blob_size: self.layer.blob.size,
            diff_id: actual,
            decoded_size: walked.size.0,
        };
        let stream = if self.layer.file().is_some() { Stream::Blob } else { Stream::Tar };
        let write = |mut out: &mut dyn Write| {
            write_index_of(stream, &tree, &spans, &windows.bytes, &layer, &Proof::Built, &mut out)
        };
        let mut content = walked.content;
        let mut kept = self.store_index(store, walked.index_file, write);
        if matches!(kept, Err(NotStored::Disk(_))) && content.take().is_some() {
            // If the disk has room for one of the two, keep the index.
            kept = self.store_index(store, None, write);
        }
        let own = LayerRef { diff_id: Some(layer.diff_id.clone()), ..self.layer.clone() };
        let replaced = replaced_by_pass(store, &own);
        let kept = kept.and_then(|file| {
            let name = LayerName { blob: &layer.blob, diff_id: &own.stream_name() };
            let publish = |content| store.publish_content(content, name, walked.size.0);
            if let Some(Err(error)) = content.map(publish) {
                store.cannot_keep("the content of a layer", &error);
            }
            file.publish().map_err(NotStored::Disk)
        });
        match kept {
            Ok(()) => {
                if let Some(diff_id) = &replaced {
                    store.drop_content_of(LayerName { blob: &layer.blob, diff_id });
                }
                drop_unneeded_windows(store, &layer.blob);
                if let Some(index) = self.made(store) {
                    return Ok(index);
                }
            }
            Err(NotStored::Index(cause)) => return Err(index_error(cause)),
            Err(NotStored::Disk(error)) => store.cannot_keep("the index of a layer", &error),
        }
        // Keep the index in memory for the life of this process.
        let mut bytes = Vec::new();
        write(&mut bytes).map_err(index_error)?;
        let index = LayerIndex::open(bytes).map_err(|_| PassError::Ended { layer: self.layer.blob.digest.clone() })?;
        Ok(Arc::new(index))
    }

    /// On a disk that may fill up before the pass ends, a file with room for the index: contents of other layers would take
    /// it, and are worth less.
    fn reserve_index(&self, store: &Store) -> Option<NewFile> {
        let size = self.layer.blob.size;
        if store.free_on_disk()? > size.saturating_mul(ROOMY) {
            return None;
        }
        let file = store.new_index(self.layer.index_name()).ok()?;
        file.reserve(size / INDEX_SHARE + INDEX_RESERVE).ok()?;
        Some(file)
    }

    /// Writes the index to `reserved` or to a new file of the store, without publishing it.
    fn store_index(
        &self,
        store: &Store,
        reserved: Option<NewFile>,
        write: impl Fn(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<NewFile, NotStored> {
        let (mut file, reserves) = match reserved {
            Some(file) => (file, true),
            None => (store.new_index(self.layer.index_name()).map_err(NotStored::Disk)?, false),
        };
        let mut out = io::BufWriter::with_capacity(1 << 20, &mut file);
        match write(&mut out).and_then(|()| Ok(out.flush()?)) {
            Err(WriteError::Io { cause }) => {
                // Do not flush the rest after a write error.
                drop(out.into_parts());
                return Err(NotStored::Disk(StoreError::Io { doing: "write", path: store.root().to_owned(), cause }));
            }
            written => written.map_err(NotStored::Index)?,
        }
        drop(out);
        if reserves {
            file.cut(file.length()).map_err(NotStored::Disk)?;
        }
        if file.length() > SYNCED {
            file.sync().map_err(NotStored::Disk)?;
        }
        Ok(file)
    }
}

/// Why an index was not put into the store.
enum NotStored {
    Disk(StoreError),
    Index(WriteError),
}

/// The number of trailing zeros that a tar lacks, if with them it has the digest `wanted`. Skopeo 1.9 drops the padding
/// of a tar when it writes zstd:chunked, and keeps the diff_id.
fn missing_padding(so_far: &Hasher, wanted: &Digest) -> Option<u64> {
    if so_far.clone().finish() == *wanted {
        return None;
    }
    let (mut hasher, block) = (so_far.clone(), [0; 512]);
    (1..=MOST_PADDING / 512).find_map(|blocks| {
        hasher.update(&block);
        (hasher.clone().finish() == *wanted).then_some(blocks * 512)
    })
}

/// A buffer of decoded bytes, the marks that lie in it, and the windows completed in it.
struct Decoded {
    buffer: Filled,
    marks: Vec<Mark>,
    windows: Vec<(usize, Window)>,
}

/// Why decoding ended early.
enum Undecoded {
    Codec(CodecError),
    /// The next stage has ended.
    Unwanted,
}

impl From<CodecError> for Undecoded {
    fn from(cause: CodecError) -> Self {
        Self::Codec(cause)
    }
}

struct Walked {
    /// `None` if it equals the blob's digest.
    diff_id: Option<Digest>,
    /// Trailing zeros that are missing, if they alone explain the mismatch.
    padding: Option<u64>,
    size: DecodedOffset,
    tree: Result<LayerTree, PassError>,
    spans: Vec<Span>,
    windows: PackedWindows,
    content: Option<NewContent>,
    index_file: Option<NewFile>,
}

/// Beside the stages: hashes the blob.
fn hash(
    algorithm: Algorithm,
    mut pieces: mpsc::Receiver<Untrusted<Bytes>>,
    mut priority: ThreadPriority,
) -> (Digest, u64) {
    let mut hasher = Hasher::new(algorithm);
    let mut size = 0;
    while let Some(piece) = pieces.blocking_recv() {
        priority.settle();
        let piece = piece.into_unverified();
        hasher.update(&piece);
        size += piece.len() as u64;
    }
    (hasher.finish(), size)
}

/// Passes a full buffer on and takes an empty one.
fn pass_on(
    out: &mut OutputBuffer,
    decoder: &mut LayerDecoder,
    buffers: &std::sync::mpsc::SyncSender<Decoded>,
    empties: &std::sync::mpsc::Receiver<Filled>,
) -> Result<(), Undecoded> {
    let buffer = out.hand_over(empties.try_recv().ok());
    let decoded = Decoded { buffer, marks: decoder.take_marks(), windows: decoder.take_windows() };
    buffers.send(decoded).map_err(|_| Undecoded::Unwanted)
}

/// GNU tar pads to records of 10 KiB by default, or of the size given to it.
const MOST_PADDING: u64 = 64 << 10;
/// Bytes received between two progress notes for waiting processes.
const NOTED: u64 = 64 << 10;
/// While bytes arrive, a note is at most this old.
const NOTED_EVERY: Duration = Duration::from_secs(1);
/// Pieces of the body, of up to half a MiB, held between the network and the decoder.
const PIECES_AHEAD: usize = 4;
/// Buffers of decoded bytes, 1 MiB each, between the decoder and the walker.
const BUFFERS_AHEAD: usize = 2;
/// A disk with room for so many times a layer's blob does not fill up while the layers of its image are read.
const ROOMY: u64 = 32;
/// Disk space that is taken for an index beforehand: this share of the blob, and so many bytes. An index of a gzip layer has
/// a tenth of it at most, unless all files are small.
const INDEX_SHARE: u64 = 8;
const INDEX_RESERVE: u64 = 256 << 10;
/// Larger indexes are synced before they are published: readers detect an index damaged by a power loss, but repairing
/// it takes a second pass, which is slow for a layer this large.
const SYNCED: u64 = 32 << 20;
