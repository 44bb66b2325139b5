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
//! | `mirrors` | which servers are asked, by options and files |
//! | `hosts`, `circuit` | asking them in turn, and which are not asked as they have failed |
//! | `rival` | leaving those that are slow |
//! | `endpoint` | a client for each server |
//! | `client` | from a request to one server to its final response |
//! | `encoding` | documents compressed in transit |
//! | `ranges`, `blob` | which bytes a response carries, and how to get the rest |
//! | `download` | how many connections a large blob needs |
//! | `referrers` | which manifests refer to one |
//! | `tags` | which tags there are |
//! | `push` | storing blobs and manifests |
//! | `contact`, `survey` | what is told of registries and login files, for `peelfs doctor` |

mod access;
mod auth;
mod blob;
mod challenge;
mod circuit;
mod client;
mod contact;
mod credentials;
mod download;
mod encoding;
mod endpoint;
mod hosts;
mod http;
mod login_file;
pub mod mirrors;
mod origin;
mod patience;
mod push;
mod ranges;
mod referrers;
mod refusals;
mod rival;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod scripted;
mod survey;
mod tags;
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
use reqwest::{Method, StatusCode};

use self::blob::Transfer;
use self::client::{Ask, Client, Ranges, Thing, Wanted};
use self::download::Download;
use self::endpoint::{Role, client};
use self::hosts::{Host, Hosts, Need, Senders};
use self::http::{Counters, Fault, Reply};
use self::mirrors::{Mirrors, Route};
use self::origin::Origin;
use self::patience::{Subject, Tries};
use self::ranges::decimal;
use self::rival::Question;
use super::outage::Outages;
use super::{BlobSource, BoxFuture, ByteStream, CONFIG_LIMIT, MANIFEST_LIMIT, SourceError};
use crate::descriptor::{Descriptor, MediaType};
use crate::digest::{Algorithm, Digest};
use crate::offsets::BlobOffset;
use crate::reference::RegistryName;
use crate::trust::{Mismatch, Untrusted};

pub use self::auth::Rights;
pub use self::circuit::{Circuits, Notes};
pub use self::contact::{Contact, MirrorAnswer, RateLimit};
pub use self::credentials::{Secret, Surroundings};
pub use self::hosts::HostStatus;
pub use self::http::Content;
pub use self::patience::{Clock, Deadlines, MonotonicClock};
pub use self::push::{PushError, Stored};
pub use self::referrers::{Referrers, tag as referrers_tag};
pub use self::survey::{SurveyedFile, SurveyedLogins};

/// The server of Docker Hub.
const HUB_SERVER: &str = "registry-1.docker.io";

/// Time limit for resolving a tag.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);

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
    /// Mirrors, and where others are looked for.
    pub mirrors: Mirrors,
    /// Which of them have failed.
    pub circuits: Circuits,
    /// Where the user's files are.
    pub surroundings: Surroundings,
    /// Time limits.
    pub deadlines: Deadlines,
    /// `User-Agent`.
    pub user_agent: String,
    /// Whether it is also written to.
    pub rights: Rights,
    /// Limit for concurrent long transfers; four times as many short ones may run beside them.
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
            mirrors: Mirrors::default(),
            circuits: Circuits::of_process(),
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
    /// Of the registry itself.
    client: Arc<Client>,
    /// All that are asked.
    hosts: Arc<Hosts>,
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
        let mut route = Route::find(&name, &options.mirrors, &options.surroundings)?;
        if options.rights == Rights::Push {
            // What is pushed has one place.
            route = route.for_pushes(&name);
        }
        let counters = Arc::new(Counters::default());
        let outages = Outages::new(options.clock.clone());
        let mut hosts = Vec::new();
        for endpoint in route.mirrors {
            let abilities = endpoint.abilities;
            let client = client(endpoint, Role::Mirror, &typed, &options, (&counters, &outages))?;
            let circuit = Origin::of(&client.bases[0]).map(|origin| options.circuits.of(&origin));
            hosts.push(Host::new(Arc::new(client), abilities, circuit));
        }
        let abilities = route.own.abilities;
        let client = Arc::new(client(route.own, Role::Own, &typed, &options, (&counters, &outages))?);
        hosts.push(Host::new(Arc::clone(&client), abilities, None));
        Ok(Self { client, hosts: Arc::new(Hosts::new(hosts, route.by)), name, typed, counters })
    }

    /// The servers that are asked, in order, and what they have sent; the registry itself is the last.
    pub fn hosts(&self) -> Vec<HostStatus> {
        self.hosts.status()
    }

    /// What names its mirrors: a file, or an option.
    pub fn mirrors_named_by(&self) -> Option<&str> {
        self.hosts.named_by()
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

    /// `false` once a range request for this blob, or for another, was answered with a whole blob: a small range then costs
    /// everything before it, and one stream from the start is cheaper.
    fn serves_ranges(&self, blob: &Digest) -> bool {
        let client = self.hosts.preferred(blob);
        !client.unranged.load(Ordering::Relaxed) && client.ranges_of(blob) != Some(Ranges::Refused)
    }

    async fn head_by_head(&self) -> Result<Option<Descriptor>, SourceError> {
        let what = manifest_name(&self.name.manifest_name());
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        // The caller may have a fallback, such as a cached answer, so the time limit is short.
        let mut tries = self.tries().within(HEAD_PATIENCE);
        let question = HeadOfRoot { source: self, what: &what };
        let answer = self.hosts.ask(&question, (&what, self.need_of_root()), &mut tries).await?;
        Ok(answer.map(|(_, descriptor)| descriptor))
    }

    /// What a response to HEAD says of the manifest.
    fn described(&self, reply: &Reply) -> Option<Descriptor> {
        if reply.status() != StatusCode::OK {
            return None;
        }
        // With an encoding, the length is not that of the document.
        let length = reply.header(CONTENT_LENGTH.as_str()).filter(|_| reply.foreign_encoding().is_none());
        let size = length.and_then(decimal).filter(|size| (1..=MANIFEST_LIMIT).contains(size))?;
        let media_type = known_type(reply)?;
        let served = reply.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok())?;
        let is_named = self.name.digest().is_none_or(|named| *named == served);
        is_named.then(|| Descriptor::new(media_type, served, size))
    }

    fn need_of_root(&self) -> Need<'_> {
        self.name.digest().map_or(Need::Resolve, Need::Pull)
    }

    async fn fetch_root(&self) -> Result<(Descriptor, Untrusted<Bytes>), SourceError> {
        let what = manifest_name(&self.name.manifest_name());
        // The digest of the reference and the one that the registry declares must both match.
        let served = |reply: &Reply| reply.header("docker-content-digest")?.parse::<Digest>().ok();
        let right = |reply: &Reply, body: &[u8]| {
            let served = served(reply);
            let mut expected = self.name.digest().into_iter().chain(&served).peekable();
            if expected.peek().is_none() {
                return encoding::is_plain(body);
            }
            expected.all(|expected| expected.is_of(body))
        };
        let check = |client: &Client, reply: Reply, body: Bytes| {
            let media_type = kind(client, &reply, &body)?;
            for expected in self.name.digest().into_iter().chain(&served(&reply)) {
                compare(client, &what, expected, &body)?;
            }
            let digest = self.name.digest().cloned().unwrap_or_else(|| Digest::of(Algorithm::Sha256, &body));
            Ok((Descriptor::new(media_type, digest, body.len() as u64), Untrusted::new(body)))
        };
        self.document(Thing::Root, (&what, self.need_of_root()), MANIFEST_LIMIT, right, check).await
    }

    async fn fetch_manifest(&self, wanted: &Descriptor) -> Result<Untrusted<Bytes>, SourceError> {
        let reference = wanted.digest.to_string();
        let what = manifest_name(&reference);
        if wanted.size > MANIFEST_LIMIT {
            let why = format!("{what} has {} bytes; at most {MANIFEST_LIMIT} are read", wanted.size);
            return Err(SourceError::Unsupported { place: self.client.place(), why, hint: None });
        }
        let right = |_: &Reply, body: &[u8]| is_described(wanted, body);
        let check = |client: &Client, reply: Reply, body: Bytes| {
            if body.len() as u64 != wanted.size {
                let why = format!("expected {} bytes, got {}", wanted.size, body.len());
                return Err(client.protocol(&what, why));
            }
            let served = kind(client, &reply, &body)?;
            let wanted_type = &wanted.media_type;
            if (served.is_index(), served.is_manifest()) != (wanted_type.is_index(), wanted_type.is_manifest()) {
                let why = format!("it is served as `{served}`, but its descriptor says `{wanted_type}`");
                return Err(client.protocol(&what, why));
            }
            self.compare_of_several(client, &what, &wanted.digest, &body)?;
            Ok(Untrusted::new(body))
        };
        let need = Need::Pull(&wanted.digest);
        self.document(Thing::Manifest(&reference), (&what, need), wanted.size, right, check).await
    }

    async fn fetch_manifest_by_digest(&self, digest: &Digest) -> Result<Untrusted<Bytes>, SourceError> {
        let reference = digest.to_string();
        let what = manifest_name(&reference);
        let right = |_: &Reply, body: &[u8]| digest.is_of(body);
        let check = |client: &Client, _: Reply, body: Bytes| {
            self.compare_of_several(client, &what, digest, &body)?;
            Ok(Untrusted::new(body))
        };
        self.document(Thing::Manifest(&reference), (&what, Need::Pull(digest)), MANIFEST_LIMIT, right, check).await
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
        let check = |client: &Client, _: Reply, body: Bytes| {
            self.compare_of_several(client, &what, digest, &body)?;
            Ok(Untrusted::new(body))
        };
        self.document(thing, (&what, Need::Pull(digest)), wanted.size, right, check).await
    }

    /// Where several hosts are asked, a document with the wrong digest is a reason to ask the next; the caller compares it
    /// in any case.
    fn compare_of_several(&self, of: &Client, what: &str, wanted: &Digest, body: &Bytes) -> Result<(), SourceError> {
        if self.hosts.is_alone() { Ok(()) } else { compare(of, what, wanted, body) }
    }

    /// A document of at most `limit` bytes, decoded if that makes it `right`, from the first host whose answer passes
    /// `check`.
    async fn document<T: Send>(
        &self,
        thing: Thing<'_>,
        (what, need): (&str, Need<'_>),
        limit: u64,
        right: impl Fn(&Reply, &[u8]) -> bool + Sync,
        check: impl Fn(&Client, Reply, Bytes) -> Result<T, SourceError> + Sync,
    ) -> Result<T, SourceError> {
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        let question = Document { thing, what, limit, right, check };
        let answer = self.hosts.ask(&question, (what, need), &mut self.tries()).await?;
        let (number, (checked, size)) = answer.expect("every document says something");
        if let Need::Pull(digest) = need {
            self.hosts.received(number, digest, size);
        }
        Ok(checked)
    }

    fn tries(&self) -> Tries {
        Tries::new(self.client.clock.clone(), &self.client.deadlines)
    }
}

/// What HEAD says of the manifest that the image's name refers to.
struct HeadOfRoot<'s> {
    source: &'s RegistrySource,
    what: &'s str,
}

impl Question for HeadOfRoot<'_> {
    type Answer = Descriptor;

    fn ask<'a>(
        &'a self,
        client: &'a Client,
        tries: &'a mut Tries,
    ) -> BoxFuture<'a, Result<Option<Descriptor>, SourceError>> {
        Box::pin(async move {
            let ask = Ask { method: Method::HEAD, thing: Thing::Root, what: self.what, overcomes: u32::MAX };
            // It may not support HEAD; if it does, only GET returns the reason.
            Ok(self.source.described(&client.ask(&ask, tries).await?))
        })
    }
}

/// See [`RegistrySource::document`].
struct Document<'s, R, C> {
    thing: Thing<'s>,
    what: &'s str,
    limit: u64,
    right: R,
    check: C,
}

impl<T, R, C> Question for Document<'_, R, C>
where
    T: Send,
    R: Fn(&Reply, &[u8]) -> bool + Sync,
    C: Fn(&Client, Reply, Bytes) -> Result<T, SourceError> + Sync,
{
    /// With the size of the document.
    type Answer = (T, u64);

    fn ask<'a>(
        &'a self,
        client: &'a Client,
        tries: &'a mut Tries,
    ) -> BoxFuture<'a, Result<Option<(T, u64)>, SourceError>> {
        Box::pin(async move {
            let (reply, body) = client.document(self.thing, self.what, self.limit, &self.right, tries).await?;
            let size = body.len() as u64;
            Ok(Some(((self.check)(client, reply, body)?, size)))
        })
    }
}

impl Client {
    /// A document of at most `limit` bytes, decoded if that makes it `right`; a truncated one is fetched again.
    async fn document(
        &self,
        thing: Thing<'_>,
        what: &str,
        limit: u64,
        right: impl Fn(&Reply, &[u8]) -> bool,
        tries: &mut Tries,
    ) -> Result<(Reply, Bytes), SourceError> {
        let ask = Ask { method: Method::GET, thing, what, overcomes: u32::MAX };
        let limit = usize::try_from(limit).expect("documents are limited to a few MiB");
        loop {
            let mut reply = self.ask(&ask, tries).await?;
            if reply.status() != StatusCode::OK {
                return Err(self.refusal(&mut reply, what).await);
            }
            let label = reply.foreign_encoding();
            match reply.body(if label.is_some() { limit + encoding::OVERHEAD } else { limit }).await {
                Ok(body) => {
                    let body = encoding::document(body, label.as_deref(), limit, |body| right(&reply, body));
                    return body.map(|body| (reply, body)).map_err(|why| self.protocol(what, why));
                }
                Err(Fault::TooLong { .. }) => {
                    return Err(self.protocol(what, format!("it has more than {limit} bytes")));
                }
                Err(fault)
                    if self.again(tries, Subject { what, blob: None, trouble: fault.outage() }, None, &fault).await => {
                }
                Err(fault) => return Err(self.gave_up(what, &fault, fault.outage(), tries)),
            }
        }
    }
}

fn compare(client: &Client, what: &str, expected: &Digest, body: &Bytes) -> Result<(), SourceError> {
    let actual = Digest::of(expected.algorithm(), body);
    if actual == *expected {
        return Ok(());
    }
    let size = body.len() as u64;
    let expected = expected.clone();
    let mismatch = Box::new(Mismatch { expected, expected_size: size, actual, actual_size: size });
    Err(SourceError::Corrupt { what: what.to_owned(), place: client.host.clone(), mismatch })
}

/// Index or manifest: by Content-Type, or, if that is generic, by the document itself.
fn kind(client: &Client, reply: &Reply, body: &[u8]) -> Result<MediaType, SourceError> {
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
        place: client.place(),
        why: "the image is in Docker's schema 1 format, which names no file system to mount".to_owned(),
        hint: Some("push the image again with a current tool".to_owned()),
    };
    match &served {
        MediaType::DockerSchema1 => return Err(schema1()),
        known if known.is_index() || known.is_manifest() => return Ok(served),
        MediaType::Other(generic) if GENERIC.contains(&&**generic) => {}
        other => {
            let why = format!("it answered with `{}`, which is not an image manifest", http::shown(other.as_str()));
            return Err(client.protocol("the image", why));
        }
    }
    let outline: Outline = serde_json::from_slice(body)
        .map_err(|_| client.protocol("the image", "its response is not a manifest".to_owned()))?;
    if outline.schema_version == 1 {
        return Err(schema1());
    }
    match (outline.media_type.as_deref().map(MediaType::parse), outline.manifests, outline.layers) {
        (Some(said), ..) if said.is_index() || said.is_manifest() => Ok(said),
        (None, Some(_), None) => Ok(MediaType::OciIndex),
        (None, None, Some(_)) => Ok(MediaType::OciManifest),
        _ => Err(client.protocol("the image", "it is neither an image index nor a manifest".to_owned())),
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

    fn served_by(&self, blob: &Digest) -> Option<String> {
        self.hosts.served_by(blob).map(str::to_owned)
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

    fn manifest_by_digest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(self.fetch_manifest_by_digest(digest))
    }

    fn config<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(self.fetch_config(descriptor))
    }

    fn beside<'a>(&'a self, suffix: &'a str) -> BoxFuture<'a, Result<Option<Untrusted<Bytes>>, SourceError>> {
        Box::pin(async move {
            match self.name.tag() {
                Some(tag) => self.tagged(&format!("{tag}{suffix}")).await,
                None => Ok(None),
            }
        })
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
        let ranged = self.serves_ranges(&digest);
        let senders = Arc::new(Senders::new(Arc::clone(&self.hosts), digest));
        let sent_by = Arc::clone(&senders);
        let (comes, coming) = if large && ranged {
            let (comes, download) = Download::start(client, senders, blob.size, wanted, all).await?;
            (comes, InFlight::InParts(download))
        } else {
            let mut transfer = Transfer::queued(client, senders, blob.size, wanted).await?;
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
        Ok((BlobOffset(comes.start)..BlobOffset(comes.end), ByteStream::new(stream).sent_by(sent_by)))
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

/// Whether these bytes match the descriptor.
fn is_described(wanted: &Descriptor, body: &[u8]) -> bool {
    body.len() as u64 == wanted.size && wanted.digest.is_of(body)
}

fn known_type(reply: &Reply) -> Option<MediaType> {
    let served = MediaType::parse(reply.header("content-type")?);
    (served.is_index() || served.is_manifest()).then_some(served)
}

fn manifest_name(reference: &str) -> String {
    format!("manifest `{reference}`")
}
