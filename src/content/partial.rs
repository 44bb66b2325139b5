//! A layer that is shown while its first pass still runs (`--verify=behind`).
//!
//! Nothing here is verified yet. The current tree is served as a *snapshot*: a layer index in memory whose entries keep
//! their numbers in every later snapshot and in the final index. Reads come from the content file that the pass is
//! writing, once their span is complete. When the pass ends, the partial layer is closed, and readers switch to the
//! verified layer or get its error. If the layer fails verification, every later request to it fails and nothing is
//! kept. An interrupted pass is repeated; since the kernel may have cached what the first pass showed, its spans are
//! remembered ([`ShownSpan`]) and compared with the verified layer.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::layer_ref::LayerRef;
use crate::layer::{Check, IndexError, IndexedLayer, LayerIndex, LayerTree, Proof, Span, write_index};
use crate::offsets::DecodedOffset;
use crate::sync::lock;

/// The result of a running pass so far.
pub struct PartialLayer {
    tree: Mutex<Option<LayerTree>>,
    progress: watch::Sender<Progress>,
    shown: Mutex<Vec<ShownSpan>>,
}

/// Bytes that a pass has made readable, whether or not they were read.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ShownSpan {
    decoded: Range<DecodedOffset>,
    check: Check,
}

impl ShownSpan {
    /// Whether the layer has exactly these bytes at this place.
    pub fn is_of(&self, index: &LayerIndex) -> bool {
        let found = index.span_at(self.decoded.start).and_then(|span| index.span(span));
        found.is_ok_and(|span| span.decoded == self.decoded && span.check == self.check)
    }
}

/// Progress of a running pass.
#[derive(Clone, Default)]
struct Progress {
    entries: u32,
    /// Decoded bytes written to the content file, in whole spans.
    written: DecodedOffset,
    data: Option<Arc<File>>,
    closed: bool,
}

/// The pass has ended: the layer is verified, or has failed.
#[derive(Debug)]
pub struct Closed;

impl PartialLayer {
    /// A partial layer before its pass begins.
    pub fn new() -> Self {
        Self { tree: Mutex::new(None), progress: watch::Sender::new(Progress::default()), shown: Mutex::default() }
    }

    /// Begins a pass with an empty tree and the file that receives the decoded bytes.
    pub(super) fn begin(&self, tree: LayerTree, data: Option<File>) {
        *self.tree() = Some(tree);
        self.progress.send_replace(Progress { data: data.map(Arc::new), ..Progress::default() });
    }

    /// Runs `work` on the tree; `None` after [`PartialLayer::end`].
    pub(super) fn with_tree<T>(&self, work: impl FnOnce(&mut LayerTree) -> T) -> Option<T> {
        self.tree().as_mut().map(work)
    }

    /// The pass has written whole spans up to `written`.
    pub(super) fn advance_to(&self, written: DecodedOffset) {
        let entries = self.tree().as_ref().map_or(0, LayerTree::len);
        self.progress.send_modify(|progress| {
            progress.entries = entries;
            progress.written = written;
        });
    }

    /// Ends the pass with its whole spans, and returns the tree.
    pub(super) fn end(&self, spans: &[Span]) -> Option<LayerTree> {
        let shown = spans.iter().map(|span| ShownSpan { decoded: span.decoded.clone(), check: span.check.clone() });
        *lock(&self.shown) = shown.collect();
        let tree = self.tree().take();
        if let Some(tree) = &tree {
            self.progress.send_modify(|progress| progress.entries = tree.len());
        }
        self.close();
        tree
    }

    /// The spans that the ended pass has shown; empty when called again.
    pub fn take_shown(&self) -> Vec<ShownSpan> {
        std::mem::take(&mut *lock(&self.shown))
    }

    /// The number of entries that may have been shown.
    pub fn entries(&self) -> u32 {
        self.progress.borrow().entries
    }

    /// Refuses all further reads.
    pub(super) fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// Waits until there are at least `seen + more` entries, or the pass has ended.
    pub async fn more_than(&self, seen: u32, more: u32) {
        let enough = |progress: &Progress| progress.closed || progress.entries >= seen.saturating_add(more);
        // The sender lives in `self`, so the wait ends only with what it waits for.
        let _ = self.progress.subscribe().wait_for(enough).await;
    }

    /// The current tree as a layer index without spans.
    ///
    /// # Errors
    /// [`Closed`], also if the index cannot be built: building the final one will report why.
    pub fn snapshot(&self, layer: &LayerRef) -> Result<LayerIndex, Closed> {
        let layer = IndexedLayer {
            blob: layer.blob.digest.clone(),
            blob_size: layer.blob.size,
            diff_id: layer.content().clone(),
            // The decoded size is unknown until the pass ends, so accept bodies at any offset.
            decoded_size: i64::MAX.cast_unsigned(),
        };
        let mut bytes = Vec::new();
        let tree = self.tree();
        write_index(tree.as_ref().ok_or(Closed)?, &[], &[], &layer, &Proof::Unproven, &mut bytes)
            .map_err(|_| Closed)?;
        drop(tree);
        LayerIndex::open(bytes).map_err(|_: IndexError| Closed)
    }

    /// Reads decoded bytes that the pass has already written; `false` if some are not written yet.
    ///
    /// # Errors
    /// [`Closed`]
    pub fn read_now(&self, from: DecodedOffset, buf: &mut [u8]) -> Result<bool, Closed> {
        let seen = self.progress.borrow().clone();
        self.read_seen(seen, from, buf)
    }

    /// As [`PartialLayer::read_now`], with `seen` taken just before.
    fn read_seen(&self, seen: Progress, from: DecodedOffset, buf: &mut [u8]) -> Result<bool, Closed> {
        if seen.closed {
            return Err(Closed);
        }
        if from.0 + buf.len() as u64 > seen.written.0 {
            return Ok(false);
        }
        let data = seen.data.ok_or(Closed)?;
        data.read_exact_at(buf, from.0).map_err(|_| Closed)?;
        // Once the layer is verified its spans may be evicted, which punches holes into this file.
        if self.progress.borrow().closed { Err(Closed) } else { Ok(true) }
    }

    /// Reads decoded bytes as soon as the pass has written them.
    ///
    /// # Errors
    /// [`Closed`]
    pub async fn read(&self, from: DecodedOffset, buf: &mut [u8]) -> Result<(), Closed> {
        let end = from + buf.len() as u64;
        let written = |progress: &Progress| progress.closed || progress.written >= end;
        let _ = self.progress.subscribe().wait_for(written).await;
        if self.read_now(from, buf)? { Ok(()) } else { Err(Closed) }
    }

    fn tree(&self) -> MutexGuard<'_, Option<LayerTree>> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for PartialLayer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bytes_read_while_the_pass_ended_are_not_shown() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"data", 0).unwrap();
        let partial = PartialLayer::new();
        partial.begin(LayerTree::default(), Some(file));
        partial.advance_to(DecodedOffset(4));
        let mut buf = [0; 4];
        assert!(partial.read_now(DecodedOffset(0), &mut buf).unwrap());
        assert_eq!(&buf, b"data");

        let seen = partial.progress.borrow().clone();
        partial.end(&[]);
        assert!(partial.read_seen(seen, DecodedOffset(0), &mut buf).is_err());
    }
}
