//! Sources: where the bytes of an image come from.
//!
//! A source serves one reference: it resolves the reference, and delivers documents and ranges of blobs. Its bytes are
//! not trusted: everything is returned as [`Untrusted`]. Tests inject faults behind this trait, and the simulation
//! replaces it.

mod archive;
mod directory;
mod docker;
pub mod inlined;
mod layout;
pub mod local;
pub mod nearby;
pub mod offline;
pub mod outage;
mod rebuilt;
pub mod registry;
mod silence;
pub mod spool;
pub mod storage;
mod tarfile;
mod tree;
mod unpacked;

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::offsets::BlobOffset;
use crate::trust::{Mismatch, Untrusted};

/// A boxed future, so that sources can be used as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Limit for manifests and image indexes, in bytes.
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// Limit for image configurations, in bytes.
pub const CONFIG_LIMIT: u64 = 4 << 20;

/// Where one image's bytes come from.
pub trait BlobSource: Send + Sync {
    /// The reference as the user wrote it, for messages.
    fn name(&self) -> &str;

    /// The failures that the source retries at present; `None` for a source that is never unreachable.
    fn outages(&self) -> Option<&outage::Outages> {
        None
    }

    /// Which host has sent a blob last, where several are asked.
    fn served_by(&self, _blob: &Digest) -> Option<String> {
        None
    }

    /// Where the image is unpacked, if its layers are rebuilt from files.
    fn rebuilt_from(&self) -> Option<&Rebuilt> {
        None
    }

    /// What the reference names now, without fetching it (one HEAD request to a registry).
    ///
    /// # Errors
    /// [`SourceError`]; if a registry does not support HEAD, GET is used.
    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>>;

    /// The root document (image index or manifest) and the descriptor under which it was served.
    ///
    /// The descriptor's digest is that of the reference if it has one; otherwise it is computed from the bytes.
    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>>;

    /// A manifest or nested image index, by descriptor; at most [`MANIFEST_LIMIT`] bytes.
    ///
    /// The source compares the Content-Type with the descriptor's media type and refuses another kind of document.
    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>>;

    /// A manifest whose size is not known; at most [`MANIFEST_LIMIT`] bytes.
    fn manifest_by_digest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        let (what, place) = (format!("manifest {digest}"), self.name().to_owned());
        Box::pin(std::future::ready(Err(SourceError::NotFound { what, place, said: None, hint: None })))
    }

    /// An image configuration, by descriptor; at most [`CONFIG_LIMIT`] bytes.
    fn config<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        self.read_at(descriptor, BlobOffset(0)..BlobOffset(descriptor.size))
    }

    /// The document under the reference's tag with `suffix` behind it, in the same repository, whose blobs this source
    /// has; `None` where there is none. Nothing says what it must hash to.
    fn beside<'a>(&'a self, _suffix: &'a str) -> BoxFuture<'a, Result<Option<Untrusted<Bytes>>, SourceError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The bytes `range` of a blob, in order: exactly the length of the range, or an error.
    ///
    /// A truncated body is resumed inside; callers see an error only when the source has given up.
    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>>;

    /// As [`BlobSource::stream`]; if the source ignores ranges, the whole blob from its start. Returns the range of the
    /// bytes.
    fn stream_or_whole<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<(Range<BlobOffset>, ByteStream), SourceError>> {
        Box::pin(async move { Ok((range.clone(), self.stream(blob, range).await?)) })
    }

    /// Why the bytes `range` of a blob are not the right ones, if the source can find that out, as that a file was changed.
    fn explain<'a>(&'a self, _blob: &'a Descriptor, _range: Range<BlobOffset>) -> BoxFuture<'a, Option<SourceError>> {
        Box::pin(std::future::ready(None))
    }

    /// The bytes `range` of a blob in one buffer; for small ranges.
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

/// An image that an engine has unpacked. Its manifest was written by peelfs, and names layers by their diff_ids.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// The directory of the engine's storage.
    pub store: PathBuf,
    /// The image's id in it.
    pub image: String,
    /// The digest of the manifest that the engine has pulled or made, if it keeps that.
    pub manifest: Option<Digest>,
}

/// Blob bytes in flight: exactly the requested range, or an error.
pub struct ByteStream {
    bytes: Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>,
    sent_by: SentBy,
}

/// What a source that asks several hosts knows of a stream.
pub trait PassOver: Send + Sync {
    /// The bytes were wrong: those hosts that have sent them, and that others stand in for, are not asked for this blob
    /// again. Returns whether there are such: then another request may bring the right bytes.
    fn pass_over(&self) -> bool;
}

/// The hosts that have sent the bytes of a stream.
#[derive(Clone, Default)]
pub struct SentBy(Option<Arc<dyn PassOver>>);

impl SentBy {
    /// As [`PassOver::pass_over`]; `false` for a source without several hosts.
    pub fn pass_over(&self) -> bool {
        self.0.as_ref().is_some_and(|senders| senders.pass_over())
    }
}

impl ByteStream {
    /// Wraps a stream that yields exactly the requested bytes, or ends in an error.
    pub fn new(stream: impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static) -> Self {
        Self { bytes: Box::pin(stream), sent_by: SentBy::default() }
    }

    /// The same, from hosts that others stand in for.
    #[must_use]
    pub fn sent_by(self, hosts: Arc<dyn PassOver>) -> Self {
        Self { sent_by: SentBy(Some(hosts)), ..self }
    }

    /// Those that have sent the bytes so far.
    pub fn senders(&self) -> SentBy {
        self.sent_by.clone()
    }

    /// The next piece; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Untrusted<Bytes>, SourceError>> {
        Some(self.bytes.next().await?.map(Untrusted::new))
    }
}

/// Why a source failed.
///
/// The variants are those that a user must tell apart (they decide exit code and hint), not internal causes; the cause
/// goes in `#[source]`.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such repository, tag, file or blob.
    #[error("{what} not found in {place}")]
    NotFound {
        /// What was requested, as in `manifest \`3.12\`` or `blob sha256:…`.
        what: String,
        /// The source.
        place: String,
        /// What the source said, if anything.
        said: Option<String>,
        /// What the user can do, if anything.
        hint: Option<Box<str>>,
    },
    /// The source requires credentials, or other ones.
    #[error("{place} denied access to {what}: {said}")]
    Denied {
        /// What was requested.
        what: String,
        /// The source.
        place: String,
        /// Status and message of the refusal.
        said: String,
        /// Which credentials were tried, as in `anonymous, then user \`alice\` from …`; never a secret.
        tried: String,
    },
    /// The source cannot be reached or gives no usable answer; trying later may help.
    #[error("cannot read {what} from {place}: {why}")]
    Unreachable {
        /// What was requested.
        what: String,
        /// The source.
        place: String,
        /// What happened, as in `no answer within 10 s`.
        why: String,
        /// What the user can do, if the cause is not the network.
        hint: Option<&'static str>,
    },
    /// The answer violates the protocol.
    #[error("{place} sent an invalid response for {what}: {why}")]
    Protocol {
        /// What was requested.
        what: String,
        /// The source.
        place: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// The bytes do not match their digest.
    #[error("{what} from {place} is not what its digest says")]
    Corrupt {
        /// What was requested.
        what: String,
        /// The source.
        place: String,
        /// Expected and actual digests and sizes.
        #[source]
        mismatch: Box<Mismatch>,
    },
    /// A file has another size than its descriptor says.
    #[error("{what} in {place} has {actual} bytes, and its descriptor says {expected}")]
    WrongSize {
        /// What was requested.
        what: String,
        /// The source.
        place: String,
        /// The size in the descriptor.
        expected: u64,
        /// The size of the file.
        actual: u64,
    },
    /// peelfs cannot use what the source holds, as a schema 1 manifest or a broken archive.
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

/// The kind of an outage; it decides the hint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outage {
    /// The source cannot be reached, or connections to it break.
    Away,
    /// The source accepts requests and does not answer.
    Silent,
    /// This machine or user sends too many requests (429).
    TooMany,
    /// The source reports an error of its own (5xx and the like).
    Unwell,
}

impl Outage {
    /// What the user can do, if the cause is not the network.
    fn hint(self) -> Option<&'static str> {
        match self {
            Self::Away => None,
            Self::Silent => Some(
                "it may still be working on the response: wait longer with `--on-outage deadline=SECONDS`, or without \
                 limit with `--on-outage block`; what is cached can be used with `--offline`",
            ),
            Self::TooMany => Some(
                "registries limit the rate of requests, especially without a login: log in with `podman login` or \
                 `docker login`, or try again later; what is cached can be used with `--offline`",
            ),
            Self::Unwell => {
                Some("the registry reports an error; try again later, or use what is cached with `--offline`")
            }
        }
    }
}

/// The name of a blob in messages.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blob {digest}")
}
