//! Sources: where the bytes of an image come from.
//!
//! A source serves one reference: it says what the reference names, and hands out documents and
//! ranges of blobs. It promises nothing about the bytes: everything leaves as [`Untrusted`]. It is
//! the network seam: faults are injected behind this trait, and a simulation can replace it.

mod archive;
mod directory;
pub mod inlined;
mod layout;
pub mod local;
pub mod nearby;
pub mod offline;
pub mod outage;
pub mod registry;
mod silence;
pub mod spool;
mod tarfile;
mod tree;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::offsets::BlobOffset;
use crate::trust::{Mismatch, Untrusted};

/// A boxed future, so that sources can stand behind `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The largest manifest or image index that is read, in bytes.
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// The largest image configuration that is read, in bytes.
pub const CONFIG_LIMIT: u64 = 4 << 20;

/// Where one image's bytes come from.
pub trait BlobSource: Send + Sync {
    /// The reference as the user named it, for messages.
    fn name(&self) -> &str;

    /// What is tried in vain at present; `None` for a source that is never away.
    fn outages(&self) -> Option<&outage::Outages> {
        None
    }

    /// What the reference names now, without fetching it (a registry is asked with one HEAD).
    ///
    /// # Errors
    /// [`SourceError`]; a registry that cannot answer HEAD is asked by GET instead.
    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>>;

    /// The root document (image index or manifest) and the descriptor under which it was served.
    ///
    /// The descriptor's digest is the one in the reference, when it has one; else it is computed
    /// from the bytes.
    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>>;

    /// A manifest or nested image index, by descriptor; at most [`MANIFEST_LIMIT`] bytes.
    ///
    /// The source compares the Content-Type it sees with the descriptor's media type and refuses a
    /// difference in kind.
    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>>;

    /// An image configuration, by descriptor; at most [`CONFIG_LIMIT`] bytes.
    fn config<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        self.read_at(descriptor, BlobOffset(0)..BlobOffset(descriptor.size))
    }

    /// The bytes `range` of a blob, in order: exactly as many as the range is long, or an error.
    ///
    /// A body that is cut is resumed inside; a caller sees an error only when the source has given up.
    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>>;

    /// As [`BlobSource::stream`]; where the source sends all of the blob whatever is asked for, all of it, from its
    /// beginning. Returns which bytes these are.
    fn stream_all_that_comes<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<(Range<BlobOffset>, ByteStream), SourceError>> {
        Box::pin(async move { Ok((range.clone(), self.stream(blob, range).await?)) })
    }

    /// The bytes `range` of a blob in one piece; for small ranges.
    fn read_at<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(async move {
            let mut stream = self.stream(blob, range).await?;
            let mut all = BytesMut::new();
            while let Some(piece) = stream.next().await {
                all.extend_from_slice(&piece?.into_unverified());
            }
            Ok(Untrusted::new(all.freeze()))
        })
    }
}

/// Blob bytes on their way; exactly the range that was asked for, or an error.
pub struct ByteStream(Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>);

impl ByteStream {
    /// Wraps a stream that yields exactly the bytes asked for, or ends in an error.
    pub fn new(stream: impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }

    /// The next piece; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Untrusted<Bytes>, SourceError>> {
        Some(self.0.next().await?.map(Untrusted::new))
    }
}

/// Why a source could not do what was asked.
///
/// The variants are what a user must tell apart (they decide exit code and hint), not what went on
/// inside; the cause goes in `#[source]`.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source does not have it: no such repository, tag, file, blob.
    #[error("{what} not found in {place}")]
    NotFound {
        /// What was asked for, as in `manifest \`3.12\`` or `blob sha256:…`.
        what: String,
        /// Where it was asked for.
        place: String,
        /// What the source itself said, if anything.
        said: Option<String>,
        /// What the user can do, if anything.
        hint: Option<&'static str>,
    },
    /// The source wants credentials, or other ones.
    #[error("{place} denied access to {what}: {said}")]
    Denied {
        /// What was asked for.
        what: String,
        /// Who denied it.
        place: String,
        /// Status and message of the refusal.
        said: String,
        /// Which credentials were tried, as in `anonymous, then user \`alice\` from …`; never a secret.
        tried: String,
    },
    /// The source cannot be reached or does not answer usefully; trying later may help.
    #[error("cannot read {what} from {place}: {why}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Who was asked.
        place: String,
        /// What happened, as in `no answer within 10 s`.
        why: String,
        /// What the user can do, where it is not about the network.
        hint: Option<&'static str>,
    },
    /// The source answered with something that no conforming source sends.
    #[error("{place} sent a wrong answer for {what}: {why}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// Who answered.
        place: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// The source's bytes are not the ones that were named.
    #[error("{what} from {place} is not what its digest says")]
    Corrupt {
        /// What was asked for.
        what: String,
        /// Who sent it.
        place: String,
        /// Expected and actual digests and sizes.
        #[source]
        mismatch: Box<Mismatch>,
    },
    /// A file is not as long as what was named.
    #[error("{what} in {place} has {actual} bytes, and its descriptor says {expected}")]
    WrongSize {
        /// What was asked for.
        what: String,
        /// Where it is.
        place: String,
        /// Bytes that were promised.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// The source holds something peelfs cannot use, as a schema 1 manifest or a broken archive.
    #[error("{place} cannot be used: {why}")]
    Unsupported {
        /// The file, directory or repository.
        place: String,
        /// What is missing or wrong.
        why: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// A file of a local source could not be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        #[source]
        cause: std::io::Error,
    },
}

/// What kind of outage makes a source unreachable; what the user can do about it differs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outage {
    /// It cannot be reached, or connections to it break.
    Away,
    /// It takes questions and does not answer them.
    Silent,
    /// It is asked too often, by this machine or this user (429).
    TooMany,
    /// It says that it is in trouble itself (5xx and the like).
    Unwell,
}

impl Outage {
    /// What the user can do, where it is not about the network.
    fn hint(self) -> Option<&'static str> {
        match self {
            Self::Away => None,
            Self::Silent => Some(
                "it may be at work on the answer: wait longer with `--on-outage deadline=SECONDS`, or until it comes with \
                 `--on-outage block`; what is cached can be used with `--offline`",
            ),
            Self::TooMany => Some(
                "registries limit how often they are asked, above all without a login: log in with `podman login` or \
                 `docker login`, or come back later; what is cached can be used with `--offline`",
            ),
            Self::Unwell => Some("the registry is in trouble; try again later, or use what is cached with `--offline`"),
        }
    }
}

/// The blob's own name for messages.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blob {digest}")
}
