//! Content for the kernel to read by itself: all of it there, compared with its digests, and not written again.

use std::fs::File;

use super::error::ReadError;
use super::open_layer::{OpenLayer, name_of};
use super::spans;
use crate::layer::Span;
use crate::store::{SealedContent, StoreError};

/// Why the content of a layer cannot be given to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Some of it is not cached.
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
    /// Whether all of the layer is cached, as far as the presence map says.
    pub fn is_whole(&self) -> bool {
        self.content.has_all(self.index.spans())
    }

    /// The layer's content file, sealed, and compared with its digests unless that was done and nothing was written to it
    /// since. Reads all of it, blocking this thread. A span that is damaged is discarded, and missing then.
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

/// How often a layer's content is compared that is written to meanwhile.
const TRIES: usize = 3;
