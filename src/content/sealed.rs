//! Content files that the kernel reads itself: complete, compared with their digests, and sealed against writes.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::error::ReadError;
use super::open_layer::{OpenLayer, name_of};
use super::spans;
use crate::layer::Span;
use crate::span::{SpanId, SpanRange};
use crate::store::{SealedContent, StoreError};

/// Why the content of a layer cannot be handed to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Some spans are not cached.
    #[error("not all of layer {0} is cached")]
    Missing(crate::digest::Digest),
    /// The index cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The cache cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether the kernel is to verify what it reads of the content, too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ByKernel {
    /// Where it can; that waits for the disk.
    IfItCan,
    /// It is not asked to.
    No,
}

impl OpenLayer {
    /// Whether the presence map has all spans of the layer.
    pub fn is_whole(&self) -> bool {
        self.content.has_all(self.index.spans())
    }

    /// The layer's sealed content file, compared with its digests unless nothing was written since the last comparison.
    /// Reads the whole file on all CPUs and blocks the thread. A damaged span is evicted and then missing.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn seal(&self) -> Result<File, SealError> {
        let name = name_of(&self.index);
        if let Some(file) = self.store.verified_content_for_mount(name) {
            return Ok(file);
        }
        for _ in 0..TRIES {
            let sealed = self.compared(ByKernel::IfItCan)?;
            if self.store.record_verified(name, &self.content, &sealed)? {
                return Ok(sealed.file);
            }
        }
        Err(SealError::Missing(self.blob().clone()))
    }

    /// As [`OpenLayer::seal`], for this process alone.
    pub(super) fn compared(&self, by_kernel: ByKernel) -> Result<SealedContent, SealError> {
        let missing = || SealError::Missing(self.blob().clone());
        let mut sealed = self.store.seal_content(&self.content)?.ok_or_else(missing)?;
        // First, as the kernel takes whatever the disk holds for right.
        if by_kernel == ByKernel::IfItCan {
            sealed = self.store.verify_by_kernel(&self.content, sealed)?;
        }
        if let Some(damaged) = self.find_damaged(&sealed)? {
            tracing::warn!(layer = %self.blob(), span = %damaged, "a cached span was damaged; it will be fetched again");
            self.content.evict(SpanRange::one(damaged), self.span(damaged)?.decoded)?;
            return Err(missing());
        }
        Ok(sealed)
    }

    /// A span that is not what it should be, if there is one.
    fn find_damaged(&self, sealed: &SealedContent) -> Result<Option<SpanId>, ReadError> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let threads = cpus.min(self.index.layer().decoded_size / BYTES_A_THREAD).max(1);
        let (next, stopped) = (AtomicU32::new(0), AtomicBool::new(false));
        let compare = || -> Result<Option<SpanId>, ReadError> {
            let mut bytes = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let span = SpanId(next.fetch_add(1, Ordering::Relaxed));
                if span >= self.index.spans().end {
                    break;
                }
                let found =
                    self.span(span).map(|known| (!self.compare(sealed, (span, &known), &mut bytes)).then_some(span));
                if !matches!(found, Ok(None)) {
                    stopped.store(true, Ordering::Relaxed);
                    return found;
                }
            }
            Ok(None)
        };
        std::thread::scope(|scope| {
            // A thread that cannot be started is done without.
            let others: Vec<_> =
                (1..threads).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, compare).ok()).collect();
            let mut found = compare();
            for other in others {
                match (&found, other.join()) {
                    (Ok(None), Ok(theirs)) => found = theirs,
                    (_, Err(panic)) => std::panic::resume_unwind(panic),
                    _ => {}
                }
            }
            found
        })
    }

    fn compare(&self, sealed: &SealedContent, (span, known): (SpanId, &Span), bytes: &mut Vec<u8>) -> bool {
        use std::os::unix::fs::FileExt as _;
        bytes.resize(spans::length(known), 0);
        let read = sealed.file.read_exact_at(bytes, known.decoded.start.0);
        read.is_ok() && spans::holds(&self.content, span, known, bytes)
    }
}

/// Bytes of content for each thread that compares.
const BYTES_A_THREAD: u64 = 8 << 20;
/// Tries to compare a layer's content while it is being written.
const TRIES: usize = 3;
