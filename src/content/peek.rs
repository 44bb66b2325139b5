//! Reads the first bytes of a blob, which show its format, before the rest.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::codec::MAGIC;
use crate::source::{ByteStream, SentBy, SourceError};
use crate::trust::Untrusted;

/// A blob's stream, with the bytes received so far.
pub(super) struct Peeked {
    /// `None` after the end of the stream.
    stream: Option<ByteStream>,
    senders: SentBy,
    /// The first [`MAGIC`] bytes, or fewer if the blob is shorter.
    pub(super) first: Bytes,
    /// The pieces received while reading them.
    pieces: VecDeque<Bytes>,
}

impl Peeked {
    /// Waits for the first bytes of `stream`.
    pub(super) async fn new(stream: ByteStream) -> Result<Self, SourceError> {
        let senders = stream.senders();
        let mut blob = Self { stream: Some(stream), senders, first: Bytes::new(), pieces: VecDeque::new() };
        let mut first = BytesMut::new();
        while first.len() < MAGIC {
            let Some(piece) = blob.more().await else { break };
            let piece = piece?.into_unverified();
            first.extend_from_slice(&piece[..piece.len().min(MAGIC - first.len())]);
            blob.pieces.push_back(piece);
        }
        Ok(Self { first: first.freeze(), ..blob })
    }

    /// The hosts that have sent it so far.
    pub(super) fn senders(&self) -> SentBy {
        self.senders.clone()
    }

    /// The next piece, from the beginning of the blob; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<Untrusted<Bytes>, SourceError>> {
        match self.pieces.pop_front() {
            Some(piece) => Some(Ok(Untrusted::new(piece))),
            None => self.more().await,
        }
    }

    async fn more(&mut self) -> Option<Result<Untrusted<Bytes>, SourceError>> {
        let next = self.stream.as_mut()?.next().await;
        if next.is_none() {
            self.stream = None;
        }
        next
    }
}
