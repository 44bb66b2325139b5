//! What predictors are told, and what they answer.

use std::ops::Range;

use crate::layer::EntryId;
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

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
    pub(super) fn file_end(&self) -> DecodedOffset {
        DecodedOffset(self.bytes.end.0.saturating_add(self.place.behind))
    }

    /// Whether the rest of its file may be read piece by piece.
    pub(super) fn may_be_streamed(&self) -> bool {
        self.place.behind > 0 && self.length() >= STREAMED
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
pub struct StreamId(pub(super) u64);

/// A piece of at least this many bytes may be one of a file that is read from its beginning to its end.
pub(super) const STREAMED: u64 = 128 << 10;
