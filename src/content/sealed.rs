//! Content files that the kernel reads itself: complete, compared with their digests, and sealed against writes.

use std::fs::File;

use super::error::ReadError;
use super::open_layer::{OpenLayer, name_of};
use super::spans;
use crate::layer::Span;
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

impl OpenLayer {
    /// Whether the presence map has all spans of the layer.
    pub fn is_whole(&self) -> bool {
        self.content.has_all(self.index.spans())
    }

    /// The layer's sealed content file, compared with its digests unless nothing was written since the last comparison.
    /// Reads the whole file and blocks the thread. A damaged span is evicted and then missing.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn seal(&self) -> Result<File, SealError> {
        let name = name_of(&self.index);
        if let Some(sealed) = self.store.content_found_right(name) {
            return Ok(sealed.file);
        }
        for _ in 0..TRIES {
            let missing = || SealError::Missing(self.blob().clone());
            let sealed = self.store.seal_content(&self.content)?.ok_or_else(missing)?;
            for span in self.index.spans().iter() {
                let known = self.span(span)?;
                if !self.compare(&sealed, &known) {
                    tracing::warn!(layer = %self.blob(), %span, "a cached span was damaged; it will be fetched again");
                    self.content.evict(span, known.decoded)?;
                    return Err(missing());
                }
            }
            if self.store.found_right(name, &self.content, &sealed) {
                return Ok(sealed.file);
            }
        }
        Err(SealError::Missing(self.blob().clone()))
    }

    fn compare(&self, sealed: &SealedContent, known: &Span) -> bool {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; spans::length(known)];
        let read = sealed.file.read_exact_at(&mut bytes, known.decoded.start.0);
        read.is_ok() && known.check.holds(&bytes)
    }
}

/// Tries to compare a layer's content while it is being written.
const TRIES: usize = 3;
