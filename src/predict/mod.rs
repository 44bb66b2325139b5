//! Prediction: which spans will be read next, decided without I/O.
//!
//! Everything that is fetched before it is read costs bytes and delays the reads that wait: a link carries one byte at
//! a time. So a predictor only answers events with wishes, and the scheduler of [`crate::content`] runs them under the
//! mount's budget. In order of confidence:
//!
//! | predictor | learns from | wishes for |
//! |---|---|---|
//! | [`profile`] | the image's earlier runs | what they read in their first minute, in that order |
//! | [`readahead`], windows and streams | a reader that continues where it was | what follows in the tar, or in the file |
//! | [`elf`] | the head of a program that is loaded | the libraries that it names, and theirs |
//! | [`siblings`] | a second file with one suffix in a directory | more files with that suffix |
//! | [`readahead`], neighbours | a read that continues nothing | up to five following spans, then the two before |
//!
//! The last three are *speculation*: off with `--prefetch none`, and in a layer that a profile covers. What was tried
//! and dropped is told in `docs/benchmarks.md`.
//!
//! Nothing here waits, locks or asks the store; the state of a predictor is plain data that its owner guards.

pub mod elf;
pub mod pace;
pub mod profile;
pub mod readahead;
pub mod replay;
pub mod siblings;

use std::ops::Range;

use crate::codec::StartKind;
use crate::layer::{EntryId, IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

pub use pace::Pace;
pub use profile::{Profile, ProfileRun};
pub use readahead::ReadAhead;
pub use replay::Replay;
pub use siblings::{Group, Siblings};

/// What happens in a layer.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A piece is read, from the cache or not. `first` are those of its spans that had not been read before and that
    /// no profile covers.
    Read {
        /// What is read.
        piece: &'a Piece,
        /// Where it is.
        found: Found,
        /// In order.
        first: &'a [SpanId],
    },
    /// A reader of the piece is going to wait for `run`, which is neither in flight nor covered by a profile.
    Missed {
        /// Spans of the piece that are missing.
        run: SpanRange,
        /// Whether neighbours may be fetched on speculation.
        speculation: Speculation,
    },
    /// A reader of the piece has waited for `run` and has it now.
    Answered {
        /// What was read.
        piece: &'a Piece,
        /// What had been missed.
        run: SpanRange,
        /// Whether neighbours may be fetched on speculation.
        speculation: Speculation,
    },
}

impl Event<'_> {
    /// Whether it can change a prediction. Most reads of what is cached cannot, and need not be told.
    pub fn is_news(&self) -> bool {
        match self {
            Self::Read { piece, first, .. } => !first.is_empty() || piece.may_be_streamed(),
            Self::Missed { .. } | Self::Answered { .. } => true,
        }
    }
}

/// Whether a piece that is read has to be fetched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// All of it is cached.
    Cached,
    /// Some of it is missing: its reader waits.
    Missing,
}

/// Whether spans may be fetched that no reader's own behaviour calls for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speculation {
    /// They may.
    Allowed,
    /// Only a reader that continues is followed.
    Off,
}

/// A piece of a file that is read at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Its decoded bytes.
    pub bytes: Range<DecodedOffset>,
    /// The spans that hold them.
    pub spans: SpanRange,
    /// Where it lies in its file.
    pub place: PlaceInFile,
}

/// Where in its file a piece lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PlaceInFile {
    /// The file.
    pub entry: EntryId,
    /// Bytes of the file before the piece.
    pub before: u64,
    /// Bytes of the file behind it.
    pub behind: u64,
}

impl Piece {
    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Where its file ends, as no other file does.
    fn file_end(&self) -> DecodedOffset {
        DecodedOffset(self.bytes.end.0.saturating_add(self.place.behind))
    }

    /// Whether the rest of its file may be read piece by piece.
    fn may_be_streamed(&self) -> bool {
        self.place.behind > 0 && self.length() >= readahead::REMEMBERED
    }
}

/// Spans that should be fetched as far as they are missing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wish {
    /// Which ones.
    pub spans: SpanRange,
    /// How much depends on it.
    pub urgency: Urgency,
}

/// How much depends on a wish, from most to least; the budget has a share for each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// With the request for the missing spans just before it.
    Along,
    /// A reader that continues in tar order reads it next.
    Window,
    /// A reader of a large file comes to it; behind earlier wishes of the same stream.
    Stream(StreamId),
    /// No reader's own behaviour calls for it.
    Speculation(Priority),
}

/// Which speculation goes first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// What is read next, if anything is.
    High,
    /// What some reader may come to.
    Low,
}

/// Tells the streams of a layer apart; never used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamId(u64);

/// What a predictor knows of a layer: how its spans lie in its blob and in its decoded stream.
pub trait Layout {
    /// How many spans there are.
    fn span_count(&self) -> u32;

    /// Bytes of the blob that have to be fetched for some spans.
    ///
    /// # Errors
    /// The index is damaged.
    fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError>;

    /// Whether a span can be decoded without the one before.
    ///
    /// # Errors
    /// The index is damaged.
    fn starts_anew(&self, span: SpanId) -> Result<bool, IndexError>;

    /// The span behind those that hold the bytes up to `end`, which is not 0.
    ///
    /// # Errors
    /// The index is damaged, or the layer ends before.
    fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError>;

    /// The longest range of up to `spans` spans and `bytes` bytes of the blob that begins at `from`.
    ///
    /// # Errors
    /// The index is damaged.
    fn within(&self, from: SpanId, spans: u32, bytes: u64) -> Result<SpanRange, IndexError> {
        let last = from.forward(spans).min(SpanId(self.span_count()));
        let mut range = SpanRange::none_at(from);
        while range.end < last && self.blob_bytes(SpanRange::new(from, range.end.next()))? <= bytes {
            range.end = range.end.next();
        }
        Ok(range)
    }
}

impl Layout for LayerIndex {
    fn span_count(&self) -> u32 {
        self.span_count()
    }

    fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError> {
        let Some(last) = spans.last() else { return Ok(0) };
        let range = self.blob_range(spans.start, last)?;
        Ok(range.end.0.saturating_sub(range.start.0))
    }

    fn starts_anew(&self, span: SpanId) -> Result<bool, IndexError> {
        Ok(self.span(span)?.kind != StartKind::Continued)
    }

    fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError> {
        let end = end.0.min(self.proof().decoded_size);
        Ok(self.span_at(DecodedOffset(end.saturating_sub(1)))?.next())
    }
}

/// A request ends with the span that comes to so many bytes of the blob: as large as the source takes for short.
pub const REQUEST: u64 = 768 << 10;

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A layer whose spans are all alike.
    pub(crate) struct Even {
        pub(crate) spans: u32,
        /// Bytes of the blob in each; as many as it decodes to.
        pub(crate) bytes: u64,
    }

    impl Layout for Even {
        fn span_count(&self) -> u32 {
            self.spans
        }

        fn blob_bytes(&self, spans: SpanRange) -> Result<u64, IndexError> {
            Ok(u64::from(spans.count()) * self.bytes)
        }

        fn starts_anew(&self, _: SpanId) -> Result<bool, IndexError> {
            Ok(true)
        }

        fn end_of(&self, end: DecodedOffset) -> Result<SpanId, IndexError> {
            Ok(SpanId(u32::try_from(end.0.div_ceil(self.bytes)).unwrap_or(u32::MAX).min(self.spans)))
        }
    }
}
