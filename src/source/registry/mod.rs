//! Registries: images over HTTP, by the OCI distribution specification.
//!
//! A lazy mount requests small ranges for weeks, where a pull requests everything once. So this client resumes
//! transfers, renews tokens, waits within limits, rejects responses that do not fit the request, and sends credentials
//! only to the registry and its token server.
//!
//! | file | contents |
//! |---|---|
//! | `origin` | where a request may go |
//! | `tls`, `verifier` | which certificates are trusted |
//! | `http` | one exchange, limited |
//! | `patience` | time limits and retries |
//! | `challenge`, `login_file`, `credentials`, `refusals`, `token`, `auth` | logins |
//! | `access` | handling of refusals |
//! | `client` | from a request to its final response |
//! | `encoding` | documents compressed in transit |
//! | `ranges`, `blob` | which bytes a response carries, and how to get the rest |
//! | `download` | how many connections a large blob needs |
//! | `referrers` | which manifests refer to one |
//! | `push` | storing blobs and manifests |
//! | `contact`, `survey` | what is told of registries and login files, for `peelfs doctor` |

mod access;
mod auth;
mod blob;
mod challenge;
mod client;
mod contact;
mod credentials;
mod download;
mod encoding;
mod http;
mod login_file;
mod origin;
mod patience;
mod push;
mod ranges;
mod referrers;
mod refusals;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod scripted;
mod survey;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tls;
mod token;
mod verifier;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Semaphore;

use self::access::Logins;
use self::blob::Transfer;
use self::client::{Ask, Client, Ranges, Thing, Wanted};
use self::download::{Cut, Download};
use self::http::{Counters, Fault, Reply, Transport};
use self::origin::{Origin, Reach};
use self::patience::{Subject, Tries};
use self::ranges::decimal;
use self::tls::Verify;
use super::outage::Outages;
use super::{BlobSource, BoxFuture, ByteStream, CONFIG_LIMIT, MANIFEST_LIMIT, SourceError};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::offsets::BlobOffset;
use crate::reference::{DOCKER_HUB, RegistryName};
use crate::trust::{Mismatch, Untrusted};

pub use self::auth::Rights;
pub use self::contact::{Contact, RateLimit};
pub use self::credentials::{Secret, Surroundings};
pub use self::http::Content;
pub use self::patience::{Clock, Deadlines, MonotonicClock};
pub use self::push::{PushError, Stored};
pub use self::referrers::{Referrers, tag as referrers_tag};
pub use self::survey::{SurveyedFile, SurveyedLogins};

/// The server of Docker Hub.
const HUB_SERVER: &str = "registry-1.docker.io";

/// Time limit for resolving a tag.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);

/// Failed transfers that may retry at the same time.
const RETRYING: usize = 2;

/// How to reach a registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Accept any certificate, and plain HTTP where there is no TLS.
    pub insecure: bool,
    /// Files of certificates to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// A credentials file that takes precedence over all others.
    pub authfile: Option<PathBuf>,
    /// Directories searched for `HOST:PORT/*.crt` and so on; the first match wins.
    pub certs_dirs: Vec<PathBuf>,
    /// Where the user's files are.
    pub surroundings: Surroundings,
    /// Time limits.
    pub deadlines: Deadlines,
    /// `User-Agent`.
    pub user_agent: String,
    /// Whether it is also written to.
    pub rights: Rights,
    /// Limit for concurrent long transfers; twice as many short ones may run beside them.
    pub connections: usize,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl RegistryOptions {
    /// The defaults for a user with these surroundings.
    pub fn new(surroundings: Surroundings) -> Self {
        // The user's own before the machine's, as in containers-certs.d(5).
        let own = surroundings.config_home().map(|config| config.join("containers/certs.d"));
        let certs_dirs = own.into_iter().chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
        Self {
            insecure: false,
            ca: Vec::new(),
            authfile: None,
            certs_dirs: certs_dirs.collect(),
            surroundings,
            deadlines: Deadlines::default(),
            user_agent: concat!("peelfs/", env!("CARGO_PKG_VERSION")).to_owned(),
            rights: Rights::Pull,
            connections: 8,
            clock: Arc::new(MonotonicClock::default()),
        }
    }
}

/// Counters of a source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SourceStats {
    /// Requests sent, redirects and tokens included.
    pub requests: u64,
    /// Bytes of bodies received.
    pub bytes_received: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Truncated bodies that were resumed.
    pub resumptions: u64,
    /// Logins and renewals of tokens.
    pub renewals: u64,
}

/// One image in a registry.
pub struct RegistrySource {
    client: Arc<Client>,
    name: RegistryName,
    typed: String,
    counters: Arc<Counters>,
}

impl RegistrySource {
    /// Prepares requests for the image that the user called `typed`; does not connect yet. Requests need a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] for an invalid host, or unusable certificates.
    pub fn new(name: RegistryName, typed: String, options: RegistryOptions) -> Result<Self, SourceError> {
        let unusable = |why: String| SourceError::Unsupported { place: typed.clone(), why, hint: None };
        let verify = if options.insecure { Verify::No } else { Verify::Yes };
        let counters = Arc::new(Counters::default());
        let transport = Transport {
            verify,
            ca: options.ca,
            certs_dirs: options.certs_dirs,
            user_agent: options.user_agent,
            deadlines: options.deadlines.clone(),
            counters: counters.clone(),
            clients: std::sync::Mutex::default(),
        };
        let host = name.authority();
        let bases = bases(&name, &transport).map_err(|error| unusable(error.to_string()))?;
        if bases.is_empty() {
            return Err(unusable(format!("`{}` is not a host", host.escape_debug())));
        }
        let (clock, deadlines) = (options.clock, options.deadlines);
        let logins = Logins {
            authfile: options.authfile,
            surroundings: options.surroundings,
            rights: options.rights,
            verify,
            clock: clock.clone(),
            deadlines: deadlines.clone(),
        };
        let authorizer = logins.authorizer(host.clone(), name.repository());
        let outages = Outages::new(clock.clone());
        let client = Client {
            transport,
            authorizer: Arc::new(authorizer),
            elsewhere: std::sync::Mutex::default(),
            logins,
            clock,
            deadlines,
            bases,
            settled: std::sync::OnceLock::new(),
            repository: name.repository().to_owned(),
            host,
            locations: std::sync::Mutex::default(),
            unranged: std::sync::atomic::AtomicBool::new(false),
            ranges: std::sync::Mutex::default(),
            long: Arc::new(Semaphore::new(options.connections.max(1))),
            short: Arc::new(Semaphore::new(2 * options.connections.max(1))),
            cut: Cut::default(),
            lanes: std::sync::Mutex::default(),
            retrying: Arc::new(Semaphore::new(RETRYING)),
            late: Semaphore::new(client::MAX_LATE),
            outages,
        };
        Ok(Self { client: Arc::new(client), name, typed, counters })
    }

    /// Counters so far.
    pub fn stats(&self) -> SourceStats {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        SourceStats {
            requests: read(&self.counters.requests),
            bytes_received: read(&self.counters.bytes),
            retries: read(&self.counters.retries),
            resumptions: read(&self.counters.resumptions),
            renewals: read(&self.counters.renewals),
        }
    }

    /// `false` once a range request was answered with a whole blob: a small range then costs everything before it, and
    /// one stream from the start is cheaper.
    pub fn serves_ranges(&self) -> bool {
        !self.client.unranged.load(Ordering::Relaxed)
    }

    async fn head_by_head(&self) -> Result<Option<Descriptor>, SourceError> {
        let reference = self.name.manifest_name();
        let what = manifest_name(&reference);
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        let thing = Thing::Manifest(&reference);
        let ask = Ask { method: Method::HEAD, thing, what: &what, overcomes: u32::MAX };
        // The caller may have a fallback, such as a cached answer, so the time limit is short.
        let reply = self.client.ask(&ask, &mut self.tries().within(HEAD_PATIENCE)).await?;
        if reply.status() != StatusCode::OK {
            // The registry may not support HEAD; if it does, only GET returns the reason.
            return Ok(None);
        }
        // With an encoding, the length is not that of the document.
        let length = reply.header(CONTENT_LENGTH.as_str()).filter(|_| reply.foreign_encoding().is_none());
        let length = length.and_then(decimal);
        let Some(size) = length.filter(|size| (1..=MANIFEST_LIMIT).contains(size)) else { return Ok(None) };
        let Some(media_type) = known_type(&reply) else { return Ok(None) };
        let served = reply.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let digest = match (self.name.digest(), served) {
            (Some(named), Some(served)) if served == *named => served,
            (None, Some(served)) => served,
            (_, _) => return Ok(None),
        };
        Ok(Some(descriptor(media_type, digest, size)))
    }

    async fn fetch_root(&self) -> Result<(Descriptor, Untrusted<Bytes>), SourceError> {
        let reference = self.name.manifest_name();
        let what = manifest_name(&reference);
        // The digest of the reference and the one that the registry declares must both match.
        let served = |reply: &Reply| reply.header("docker-content-digest")?.parse::<Digest>().ok();
        let right = |reply: &Reply, body: &[u8]| {
            let served = served(reply);
            let mut expected = self.name.digest().into_iter().chain(&served).peekable();
            if expected.peek().is_none() {
                return encoding::is_plain(body);
            }
            expected.all(|expected| Digest::of(expected.algorithm(), body) == *expected)
        };
        let (reply, body) = self.document(Thing::Manifest(&reference), &what, MANIFEST_LIMIT, right).await?;
        let media_type = self.kind(&reply, &body)?;
        for expected in self.name.digest().into_iter().chain(&served(&reply)) {
            self.compare(&what, expected, &body)?;
        }
        let digest = self.name.digest().cloned().unwrap_or_else(|| Digest::of(Algorithm::Sha256, &body));
        Ok((descriptor(media_type, digest, body.len() as u64), Untrusted::new(body)))
    }

    fn compare(&self, what: &str, expected: &Digest, body: &Bytes) -> Result<(), SourceError> {
        let actual = Digest::of(expected.algorithm(), body);
        if actual == *expected {
            return Ok(());
        }
        let size = body.len() as u64;
        let expected = expected.clone();
        let mismatch = Box::new(Mismatch { expected, expected_size: size, actual, actual_size: size });
        Err(SourceError::Corrupt { what: what.to_owned(), place: self.client.host.clone(), mismatch })
    }

    async fn fetch_manifest(&self, wanted: &Descriptor) -> Result<Untrusted<Bytes>, SourceError> {
        let reference = wanted.digest.to_string();
        let what = manifest_name(&reference);
        if wanted.size > MANIFEST_LIMIT {
            let why = format!("{what} has {} bytes; at most {MANIFEST_LIMIT} are read", wanted.size);
            return Err(SourceError::Unsupported { place: self.client.place(), why, hint: None });
        }
        let right = |_: &Reply, body: &[u8]| is_described(wanted, body);
        let (reply, body) = self.document(Thing::Manifest(&reference), &what, wanted.size, right).await?;
        if body.len() as u64 != wanted.size {
            let why = format!("expected {} bytes, got {}", wanted.size, body.len());
            return Err(self.client.protocol(&what, why));
        }
        let served = self.kind(&reply, &body)?;
        if (served.is_index(), served.is_manifest()) != (wanted.media_type.is_index(), wanted.media_type.is_manifest())
        {
            let why = format!("it is served as `{served}`, but its descriptor says `{}`", wanted.media_type);
            return Err(self.client.protocol(&what, why));
        }
        Ok(Untrusted::new(body))
    }

    async fn fetch_config(&self, wanted: &Descriptor) -> Result<Untrusted<Bytes>, SourceError> {
        let what = super::blob_name(&wanted.digest);
        if wanted.size > CONFIG_LIMIT {
            let why = format!("{what} has {} bytes; at most {CONFIG_LIMIT} are read", wanted.size);
            return Err(SourceError::Unsupported { place: self.client.place(), why, hint: None });
        }
        let (digest, bytes) = (&wanted.digest, 0..wanted.size);
        let thing = Thing::Blob(Wanted { digest, size: wanted.size, bytes: &bytes, whole: true });
        let right = |_: &Reply, body: &[u8]| is_described(wanted, body);
        let (_, body) = self.document(thing, &what, wanted.size, right).await?;
        Ok(Untrusted::new(body))
    }

    /// A document of at most `limit` bytes, decoded if that makes it `right`; a truncated one is fetched again.
    async fn document(
        &self,
        thing: Thing<'_>,
        what: &str,
        limit: u64,
        right: impl Fn(&Reply, &[u8]) -> bool,
    ) -> Result<(Reply, Bytes), SourceError> {
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        let client = &self.client;
        let mut tries = self.tries();
        let ask = Ask { method: Method::GET, thing, what, overcomes: u32::MAX };
        let limit = usize::try_from(limit).expect("documents are limited to a few MiB");
        loop {
            let mut reply = client.ask(&ask, &mut tries).await?;
            if reply.status() != StatusCode::OK {
                return Err(client.refusal(&mut reply, what).await);
            }
            let label = reply.foreign_encoding();
            match reply.body(if label.is_some() { limit + encoding::OVERHEAD } else { limit }).await {
                Ok(body) => {
                    let body = encoding::document(body, label.as_deref(), limit, |body| right(&reply, body));
                    return body.map(|body| (reply, body)).map_err(|why| client.protocol(what, why));
                }
                Err(Fault::TooLong { .. }) => {
                    return Err(client.protocol(what, format!("it has more than {limit} bytes")));
                }
                Err(fault)
                    if client
                        .again(&mut tries, Subject { what, blob: None, trouble: fault.outage() }, None, &fault)
                        .await => {}
                Err(fault) => return Err(client.gave_up(what, &fault, fault.outage(), &tries)),
            }
        }
    }

    /// Index or manifest: by Content-Type, or, if that is generic, by the document itself.
    fn kind(&self, reply: &Reply, body: &[u8]) -> Result<MediaType, SourceError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outline {
            #[serde(default)]
            schema_version: u64,
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
        }
        let served = MediaType::parse(reply.header("content-type").unwrap_or_default());
        let schema1 = || SourceError::Unsupported {
            place: self.client.place(),
            why: "the image is in Docker's schema 1 format, which names no file system to mount".to_owned(),
            hint: Some("push the image again with a current tool".to_owned()),
        };
        match &served {
            MediaType::DockerSchema1 => return Err(schema1()),
            known if known.is_index() || known.is_manifest() => return Ok(served),
            MediaType::Other(generic) if GENERIC.contains(&&**generic) => {}
            other => {
                let why = format!("it answered with `{}`, which is not an image manifest", http::shown(other.as_str()));
                return Err(self.client.protocol("the image", why));
            }
        }
        let outline: Outline = serde_json::from_slice(body)
            .map_err(|_| self.client.protocol("the image", "its response is not a manifest".to_owned()))?;
        if outline.schema_version == 1 {
            return Err(schema1());
        }
        match (outline.media_type.as_deref().map(MediaType::parse), outline.manifests, outline.layers) {
            (Some(said), ..) if said.is_index() || said.is_manifest() => Ok(said),
            (None, Some(_), None) => Ok(MediaType::OciIndex),
            (None, None, Some(_)) => Ok(MediaType::OciManifest),
            _ => Err(self.client.protocol("the image", "it is neither an image index nor a manifest".to_owned())),
        }
    }

    fn tries(&self) -> Tries {
        Tries::new(self.client.clock.clone(), &self.client.deadlines)
    }
}

/// Content types that do not tell the kind of a manifest.
const GENERIC: [&str; 5] = ["", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"];

impl BlobSource for RegistrySource {
    fn name(&self) -> &str {
        &self.typed
    }

    fn outages(&self) -> Option<&Outages> {
        Some(&self.client.outages)
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        Box::pin(async move {
            match self.head_by_head().await? {
                Some(descriptor) => Ok(descriptor),
                None => Ok(self.fetch_root().await?.0),
            }
        })
    }

    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        Box::pin(self.fetch_root())
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(self.fetch_manifest(descriptor))
    }

    fn config<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(self.fetch_config(descriptor))
    }

    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move { Ok(self.begin(blob, range, false).await?.1) })
    }

    fn stream_or_whole<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<(Range<BlobOffset>, ByteStream), SourceError>> {
        Box::pin(self.begin(blob, range, true))
    }
}

impl RegistrySource {
    /// Requests a range of a blob; returns the range that will arrive: the requested one, or, with `all`, everything
    /// that the server sends.
    async fn begin(
        &self,
        blob: &Descriptor,
        range: Range<BlobOffset>,
        all: bool,
    ) -> Result<(Range<BlobOffset>, ByteStream), SourceError> {
        if range.start > range.end || range.end.0 > blob.size {
            let why = format!("bytes {} to {} are wanted of {}", range.start, range.end, blob.size);
            return Err(self.client.protocol(&super::blob_name(&blob.digest), why));
        }
        if range.start == range.end {
            return Ok((range, ByteStream::new(stream::empty())));
        }
        let (client, digest, wanted) = (self.client.clone(), blob.digest.clone(), range.start.0..range.end.0);
        let large = wanted.end - wanted.start > 2 * client.cut.alone;
        let ranged = self.serves_ranges() && client.ranges_of(&digest) != Some(Ranges::Refused);
        let (comes, coming) = if large && ranged {
            let (comes, download) = Download::start(client, digest, blob.size, wanted, all).await?;
            (comes, InFlight::InParts(download))
        } else {
            let mut transfer = Transfer::queued(client, digest, blob.size, wanted).await?;
            if all && !transfer.is_ranged() {
                transfer.receive_whole();
            }
            (transfer.wanted().clone(), InFlight::Whole(Box::new(transfer)))
        };
        let stream = stream::unfold(Some(coming), |coming| async move {
            let mut coming = coming?;
            match coming.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(coming))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok((BlobOffset(comes.start)..BlobOffset(comes.end), ByteStream::new(stream)))
    }
}

/// A range of a blob in flight.
enum InFlight {
    Whole(Box<Transfer>),
    InParts(Download),
}

impl InFlight {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        match self {
            Self::Whole(transfer) => transfer.next().await,
            Self::InParts(download) => download.next().await,
        }
    }
}

fn descriptor(media_type: MediaType, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type, digest, size, data: None, annotations: std::collections::BTreeMap::new() }
}

/// Whether these bytes match the descriptor.
fn is_described(wanted: &Descriptor, body: &[u8]) -> bool {
    body.len() as u64 == wanted.size && Digest::of(wanted.digest.algorithm(), body) == wanted.digest
}

fn known_type(reply: &Reply) -> Option<MediaType> {
    let served = MediaType::parse(reply.header("content-type")?);
    (served.is_index() || served.is_manifest()).then_some(served)
}

fn manifest_name(reference: &str) -> String {
    format!("manifest `{reference}`")
}

/// The candidate addresses of the registry, preferred first.
///
/// Plain HTTP is used only for this machine, unless the user asked for less security; certificates given for a registry
/// on this machine imply TLS.
fn bases(name: &RegistryName, transport: &Transport) -> Result<Vec<Url>, tls::TlsError> {
    let written = name.authority();
    let host = if written == DOCKER_HUB { HUB_SERVER } else { &written };
    let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/")).ok();
    let (Some(https), Some(http)) = (parse("https"), parse("http")) else { return Ok(Vec::new()) };
    let Some(origin) = Origin::of(&https) else { return Ok(Vec::new()) };
    if transport.verify == Verify::No {
        return Ok(vec![https, http]);
    }
    let certified = !transport.ca.is_empty() || transport.certificates_for(&origin)?.is_some();
    let plain = origin.reach() == Reach::Loopback && !certified && name.port() != Some(443);
    Ok(vec![if plain { http } else { https }])
}
