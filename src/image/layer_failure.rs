//! Why a layer cannot be shown, and whether a retry may help.

use std::time::Duration;

use crate::content::PassError;
use crate::digest::Digest;
use crate::source::SourceError;

/// Why a layer cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum LayerFailure {
    /// Its first pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Its index was damaged while it was open, and could not be rebuilt.
    #[error("the index of layer {layer} was damaged on disk and {why}")]
    Damaged {
        /// The blob.
        layer: Digest,
        /// Why it could not be rebuilt.
        why: &'static str,
    },
    /// It is verified now, but other bytes were shown before, and the kernel may have cached them.
    #[error("wrong bytes of layer {layer} were shown before it was verified; mount the image again")]
    ShownOtherwise {
        /// The blob.
        layer: Digest,
    },
}

impl LayerFailure {
    pub(super) fn is_outage(&self) -> bool {
        matches!(self, Self::Pass(PassError::Source { cause: SourceError::Unreachable { .. }, .. }))
    }

    /// The pause before the next try, after this many failures in a row. A refusal costs one request, any other failure
    /// a download.
    pub(super) fn pause_after(&self, times: u32) -> Duration {
        let refusal = matches!(
            self,
            Self::Pass(PassError::Source { cause: SourceError::Denied { .. } | SourceError::NotFound { .. }, .. })
        );
        Duration::from_secs(if refusal { 1 } else { 1 << times.min(5) })
    }

    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Pass(error) => error.is_passing(),
            Self::Damaged { .. } | Self::ShownOtherwise { .. } => false,
        }
    }
}
