//! Events for predictors, and the suggestions they return.

use std::ops::Range;

use crate::layer::EntryId;
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// An event in a layer.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A piece is read, from the cache or not. `first` are its spans that are read for the first time and not covered
    /// by a profile.
    Read {
        /// The piece.
        piece: &'a Piece,
        /// Whether it is cached.
        found: Found,
        /// In order.
        first: &'a [SpanId],
        /// Whether the rest of its file may be fetched speculatively.
        speculation: Speculation,
        /// How many reads of the mount wait, with this one.
        waiting: u32,
    },
    /// A reader starts to wait for `run`, which is neither in flight nor covered by a profile.
    Missed {
        /// What the reader reads.
        piece: &'a Piece,
        /// The missing spans of the piece.
        run: SpanRange,
        /// Whether neighbours may be fetched speculatively.
        speculation: Speculation,
    },
    /// A reader that waited for `run` has it now.
    Answered {
        /// The piece that was read.
        piece: &'a Piece,
        /// The spans that were missing.
        run: SpanRange,
        /// Whether neighbours may be fetched speculatively.
        speculation: Speculation,
    },
}

impl Event<'_> {
    /// Whether it can change a prediction. Most cached reads cannot, and need not be reported.
    pub fn is_news(&self) -> bool {
        match self {
            Self::Read { piece, first, .. } => {
                !first.is_empty() || piece.may_be_streamed() || piece.file_size() >= LARGE_FILE
            }
            Self::Missed { .. } | Self::Answered { .. } => true,
        }
    }
}

/// Whether a piece must be fetched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// All of it is cached.
    Cached,
    /// Some of it is missing and its reader waits.
    Missing,
}

/// Whether spans may be fetched without a sequential reader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speculation {
    /// Speculation is allowed.
    Allowed,
    /// Only sequential readahead.
    Off,
}

/// A piece of a file that is read at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Its decoded bytes.
    pub bytes: Range<DecodedOffset>,
    /// The spans that hold them.
    pub spans: SpanRange,
    /// Its place in its file.
    pub place: PlaceInFile,
}

/// The place of a piece in its file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PlaceInFile {
    /// The file.
    pub entry: EntryId,
    /// Bytes of the file before the piece.
    pub before: u64,
    /// Bytes of the file after the piece.
    pub behind: u64,
}

impl Piece {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// The size of its file.
    pub(super) fn file_size(&self) -> u64 {
        self.place.before.saturating_add(self.length()).saturating_add(self.place.behind)
    }

    /// Whether it is a small one behind the head of its file.
    pub(super) fn is_small_inside(&self) -> bool {
        self.length() <= SMALL && self.place.before > 0
    }

    /// The end of its file, which identifies the file.
    pub(super) fn file_end(&self) -> DecodedOffset {
        DecodedOffset(self.bytes.end.0.saturating_add(self.place.behind))
    }

    /// Whether the rest of its file may be read sequentially.
    pub(super) fn may_be_streamed(&self) -> bool {
        self.place.behind > 0 && self.length() >= STREAMED
    }
}

/// Spans to fetch if they are missing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Suggestion {
    /// The spans.
    pub spans: SpanRange,
    /// Their urgency.
    pub urgency: Urgency,
}

/// The urgency of a suggestion, highest first; the budget has a share for each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// In one request with the missing spans just before it.
    Along,
    /// The next spans of a reader in tar order.
    Window,
    /// The next spans of a reader of a large file, after earlier suggestions for the same stream.
    Stream(StreamId),
    /// More of a large file of which much was read here and there, after earlier suggestions for the same file.
    Rest(StreamId),
    /// Speculation.
    Speculation(Priority),
}

/// Priority of speculation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// The most likely next read.
    High,
    /// A possible later read.
    Low,
}

/// Identifies a stream of a layer; never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamId(pub(super) u64);

/// A smaller file is read soon, or is a program; in bytes.
pub(super) const LARGE_FILE: u64 = 4 << 20;

/// Size of a large piece in bytes: the kernel's maximum without readahead of its own.
pub(super) const LARGE: u64 = 512 << 10;

/// A piece of at most this many bytes is a small one: a page or some, as of a database.
pub(super) const SMALL: u64 = 16 << 10;

/// A piece of at least this many bytes may belong to a file that is read sequentially.
pub(super) const STREAMED: u64 = 128 << 10;
