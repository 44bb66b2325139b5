//! HTTP conversation with one repository: repeats a request until there is a final response or no prospect of one.
//!
//! A request may need a login, a new token, a redirect to storage, a fresh signed URL, or a pause for a busy registry.
//! All of that happens here, so the code above sees only final responses.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Semaphore;

use super::access::{Logins, Shown, Step};
use super::auth::{AuthError, Authorizer, Grant};
use super::blob::place;
use super::download::{Cut, Lanes};
use super::http::{Body, Content, Fault, Outgoing, Reply, Transport};
use super::origin::Origin;
use super::patience::{Clock, Deadlines, Subject, Tries, Turn};
use super::ranges::{self, Placement, RangeFault};
use super::tags;
use super::token::{is_busy, trouble};
use crate::descriptor::MediaType;
use crate::digest::Digest;
use crate::source::outage::{OnOutage, Outages};
use crate::source::{Outage, SourceError};
use crate::sync::lock;

/// Limit for remembered redirects; at least the number of layers of an image.
const MAX_LOCATIONS: usize = 1024;
/// Minimum time for a response, even if a pause has used up the time limit.
const SHORTEST_TRY: Duration = Duration::from_secs(1);
/// Limit for late responses that are still awaited.
pub(super) const MAX_LATE: usize = 16;

/// Asks one repository.
pub(super) struct Client {
    pub(super) transport: Transport,
    pub(super) authorizer: Arc<Authorizer>,
    /// The authorizers of registries to which redirects led, by registry and repository.
    pub(super) elsewhere: Mutex<HashMap<(Origin, String), Arc<Authorizer>>>,
    pub(super) logins: Logins,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) deadlines: Deadlines,
    /// Candidate addresses of the registry, preferred first; the first response settles it.
    pub(super) bases: Vec<Url>,
    /// The same address with TLS, for a registry on this machine, which is asked without it first.
    pub(super) twin: Option<Url>,
    pub(super) settled: OnceLock<Url>,
    /// The path before the name of the repository.
    pub(super) root: String,
    pub(super) repository: String,
    /// The tag or digest of the image.
    pub(super) reference: String,
    /// The registry, for messages.
    pub(super) host: String,
    /// The registry that it stands for.
    pub(super) namespace: Option<String>,
    /// Headers for it alone.
    pub(super) headers: HeaderMap,
    /// Redirect targets of blobs: a redirect costs a round trip, and is the same for all ranges until its signature
    /// expires.
    pub(super) locations: Mutex<HashMap<Digest, Url>>,
    /// Whether some server has answered a range request with the whole blob.
    pub(super) unranged: AtomicBool,
    /// What is known about ranges, per blob.
    pub(super) ranges: Mutex<HashMap<Digest, Ranges>>,
    /// Long and short transfers have separate queues, so that a reader who needs a page never waits for a whole layer.
    pub(super) long: Arc<Semaphore>,
    pub(super) short: Arc<Semaphore>,
    /// How large ranges are split, and how many parts may be in flight.
    pub(super) cut: Cut,
    pub(super) lanes: Mutex<Lanes>,
    /// Failed transfers retry in a third queue, so that they do not hold up working ones.
    pub(super) retrying: Arc<Semaphore>,
    /// Late responses that are still awaited.
    pub(super) late: Semaphore,
    pub(super) outages: Outages,
}

/// One request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) thing: Thing<'a>,
    /// For messages.
    pub(super) what: &'a str,
    /// How many passing refusals are retried; the next one is final.
    pub(super) overcomes: u32,
}

/// The object of a request.
#[derive(Clone, Copy)]
pub(super) enum Thing<'a> {
    /// What the image's name refers to.
    Root,
    /// By tag or digest.
    Manifest(&'a str),
    /// A page of the manifests that refer to one.
    Referrers(Listing<'a>),
    /// A page of the tags; the query that the page before named, if there was one.
    Tags { next: Option<&'a str> },
    /// Bytes of a blob.
    Blob(Wanted<'a>),
    /// A place to upload a blob to.
    NewUpload,
    /// The upload of a blob, all of it, to such a place.
    Upload { url: &'a Url, content: &'a Content },
    /// A manifest to store, by tag or digest.
    NewManifest { reference: &'a str, media_type: &'a str, bytes: &'a Bytes },
}

/// A page of referrers.
#[derive(Clone, Copy)]
pub(super) struct Listing<'a> {
    pub(super) of: &'a Digest,
    /// Only artifacts of this type; a registry may ignore it.
    pub(super) kind: Option<&'a str>,
    /// The query that the page before named, in place of the others.
    pub(super) next: Option<&'a str>,
}

/// Bytes of a blob.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) digest: &'a Digest,
    /// The size of the blob in bytes.
    pub(super) size: u64,
    pub(super) bytes: &'a Range<u64>,
    /// Whether to request the whole blob, of which these bytes are a part.
    pub(super) whole: bool,
}

/// Whether a remembered redirect may be used for this request.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Shortcut {
    Take,
    /// It has failed once already.
    Avoid,
}

/// What is known about ranges of a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ranges {
    /// The server serves them.
    Served,
    /// The server refuses them, but serves the whole blob.
    Refused,
}

impl Wanted<'_> {
    /// Where the bytes lie in the response.
    pub(super) fn place(&self, reply: &Reply) -> Result<Placement, RangeFault> {
        ranges::place(reply.status(), reply.headers(), self.bytes, self.size)
    }
}

impl Ask<'_> {
    fn subject(&self) -> Subject<'_> {
        let blob = match &self.thing {
            Thing::Blob(wanted) => Some(wanted.digest),
            _ => None,
        };
        Subject { what: self.what, blob, trouble: Outage::Away }
    }

    /// Whether the headers of a successful response fit the request.
    fn fits(&self, reply: &Reply) -> bool {
        match &self.thing {
            Thing::Blob(wanted) => wanted.place(reply).is_ok(),
            _ => true,
        }
    }
}

impl Client {
    /// The registry's response, of any status except those that a retry can overcome.
    ///
    /// `tries` limits this request together with earlier ones.
    pub(super) async fn ask(&self, ask: &Ask<'_>, tries: &mut Tries) -> Result<Reply, SourceError> {
        let (mut logins, mut overcome) = (0, 0);
        let mut candidates = self.bases.iter();
        let mut base = self.settled.get().or_else(|| candidates.next()).expect("there is a base");
        let mut first_fault = None;
        let mut twin = self.twin.as_ref().filter(|_| self.settled.get().is_none());
        let mut is_twin = false;
        let mut shortcut = Shortcut::Take;
        // Another registry, to which this one redirects.
        let mut elsewhere: Option<Url> = None;
        loop {
            let known = self.location(&ask.thing).filter(|_| shortcut == Shortcut::Take);
            let known = elsewhere.clone().or(known);
            let who = known.as_ref().map_or_else(|| Some(Arc::clone(&self.authorizer)), |url| self.authorizer_at(url));
            let grant = match &who {
                Some(who) => who.grant(&self.transport).await,
                None => Ok(Grant::default()),
            };
            let grant = match grant {
                Ok(grant) => grant,
                Err(error) if self.is_retried(&error) && self.again(tries, ask.subject(), None, &error).await => {
                    continue;
                }
                Err(error) => return Err(self.no_grant(error, ask.what)),
            };
            let request = self.request(base, ask, known.clone(), &grant);
            let mut reply = match self.send(&request, tries, ask).await {
                Ok(reply) => reply,
                Err(fault) if known.is_some() => {
                    tracing::debug!("{fault}; asking the registry itself");
                    self.forget(&ask.thing);
                    elsewhere = None;
                    shortcut = Shortcut::Avoid;
                    continue;
                }
                Err(fault)
                    if fault.is_garbled()
                        && let Some(with_tls) = twin.take() =>
                {
                    (base, is_twin) = (with_tls, true);
                    continue;
                }
                // It does not speak TLS either.
                Err(Fault::Connect { .. } | Fault::Broken { .. }) if is_twin && self.settled.get().is_none() => {
                    (base, is_twin) = (&self.bases[0], false);
                    continue;
                }
                Err(fault @ (Fault::Connect { .. } | Fault::Handshake { .. } | Fault::Silent { .. }))
                    if self.settled.get().is_none()
                        && (tries.turn != Turn::Alone || !(tries.by_time || self.outages.retries_without_limit())) =>
                {
                    // No response ever: fail at once with a clear error instead of retrying for a minute.
                    let connects = !fault.is_silence();
                    match candidates.next().filter(|_| connects) {
                        Some(next) => base = next,
                        None => {
                            let fault = first_fault.unwrap_or(fault);
                            tries.left = Some((fault.outage(), None));
                            return Err(self.cannot_reach(ask.what, &fault, fault.to_string()));
                        }
                    }
                    first_fault.get_or_insert(fault);
                    continue;
                }
                Err(fault) if fault.is_passing() => {
                    let subject = Subject { trouble: fault.outage(), ..ask.subject() };
                    if !self.again(tries, subject, None, &fault).await {
                        return Err(hinted(self.gave_up(ask.what, &fault, fault.outage(), tries), fault.hint()));
                    }
                    // Which of its addresses will recover is not known yet.
                    if self.settled.get().is_none() {
                        base = candidates.next().unwrap_or(&self.bases[0]);
                    }
                    continue;
                }
                Err(Fault::Tls(error)) => {
                    let place = self.host.clone();
                    return Err(SourceError::Unsupported { place, why: error.to_string(), hint: None });
                }
                Err(fault) => return Err(self.protocol(ask.what, fault.to_string())),
            };
            // So servers that speak TLS answer to plain HTTP.
            if reply.status() == StatusCode::BAD_REQUEST
                && !matches!(ask.thing, Thing::Blob(_))
                && let Some(with_tls) = twin.take()
            {
                (base, is_twin) = (with_tls, true);
                continue;
            }
            // The host that answered the first request is the registry.
            self.settled.get_or_init(|| base.clone());
            let status = reply.status();
            if matches!(status.as_u16(), 401 | 403 | 404) {
                let is_last = known.is_none() || elsewhere.is_some();
                let shown = Shown { request: &request, who: who.as_ref(), grant: &grant, logins, is_last };
                match self.overcome(&mut reply, ask, &shown).await {
                    Ok(Step::AskAgain) => {
                        logins += 1;
                        continue;
                    }
                    Ok(Step::AskAt(url)) => {
                        logins += 1;
                        elsewhere = Some(url);
                        continue;
                    }
                    Ok(Step::Stands) => {}
                    Err(error @ SourceError::Unreachable { .. })
                        if self.outages.retries_without_limit()
                            && self.again(tries, ask.subject(), None, &error).await =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            if known.is_some()
                && elsewhere.is_none()
                && status.is_client_error()
                && status != StatusCode::RANGE_NOT_SATISFIABLE
                && !is_busy(status)
            {
                tracing::debug!(
                    status = status.as_u16(),
                    "a remembered redirect has expired; asking the registry again"
                );
                self.forget(&ask.thing);
                shortcut = Shortcut::Avoid;
                continue;
            }
            let redirected = Origin::of(&reply.url) != Origin::of(&request.url);
            if let Some(who) = &who
                && (status.is_success() || redirected)
            {
                who.granted(&grant);
            }
            let away = redirected || (known.is_some() && who.is_none());
            // A fresh signature was refused: a new one may be accepted.
            let unsigned = away && matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let asked = reply.retry_after();
            // A server that gives a time to retry is taken at its word.
            let lasting = overcome >= ask.overcomes && asked.is_none() && status != StatusCode::TOO_MANY_REQUESTS;
            if (is_busy(status) || unsigned) && !lasting {
                overcome += 1;
                let said = reply.said().await;
                let mut fault = format!("{} answered {said}", reply.host);
                if let Some(asked) = asked.filter(|asked| !asked.is_zero()) {
                    fault = format!("{fault} and asks to wait {} s", asked.as_secs());
                }
                drop(reply);
                let subject = Subject { trouble: trouble(status), ..ask.subject() };
                if !self.again(tries, subject, asked, &fault).await {
                    return Err(self.gave_up(ask.what, &fault, trouble(status), tries));
                }
                continue;
            }
            if status.is_success() && ((reply.redirected && away) || elsewhere.is_some()) {
                self.remember(&ask.thing, &reply.url);
            }
            return Ok(reply);
        }
    }

    /// The response. A late response is awaited within the time limit: a server that is working on it would start over
    /// for another request. With unlimited retries the request is also sent a second time, once
    /// [`Tries::should_retry`] returns, and the first response counts.
    async fn send(&self, request: &Outgoing, tries: &mut Tries, ask: &Ask<'_>) -> Result<Reply, Fault> {
        let answer = || self.transport.answer(request, |reply| ask.fits(reply));
        let mut asked = FuturesUnordered::new();
        asked.push(answer());
        let (late_after, patience) = (self.deadlines.late(), tries.patience());
        let mut late = std::pin::pin!(tokio::time::sleep(late_after));
        let mut end = std::pin::pin!(tokio::time::sleep(tries.left().max(SHORTEST_TRY.min(patience))));
        let (mut waits_on, mut ended) = (None, false);
        loop {
            tokio::select! {
                biased;
                Some(answer) = asked.next() => match answer {
                    Ok(reply) => {
                        tries.came();
                        return Ok(reply);
                    }
                    Err(fault) if asked.is_empty() => return Err(fault),
                    Err(fault) => tracing::debug!("{fault}; a repeated request is in flight"),
                },
                () = &mut end, if !ended => {
                    if tries.turn != Turn::Alone || !self.outages.retries_without_limit() {
                        return Err(Fault::silent(&request.url, patience));
                    }
                    ended = true;
                }
                () = &mut late, if waits_on.is_none() => {
                    let silent = Fault::silent(&request.url, late_after);
                    if tries.turn == Turn::Mirror {
                        return Err(silent);
                    }
                    // Other late requests are retried from time to time, so that not all connections wait.
                    let Ok(permit) = self.late.try_acquire() else { return Err(silent) };
                    if self.outages.policy() == Some(OnOutage::Offline) {
                        return Err(silent);
                    }
                    waits_on = Some(permit);
                    let subject = Subject { trouble: Outage::Silent, ..ask.subject() };
                    tries.late(&self.outages, &subject, &format!("{silent} yet"));
                }
                _ = tries.should_retry(), if asked.len() < 2 => {
                    self.transport.counters.retries.fetch_add(1, Ordering::Relaxed);
                    asked.push(answer());
                }
            }
        }
    }

    fn request(&self, base: &Url, ask: &Ask<'_>, known: Option<Url>, grant: &Grant) -> Outgoing {
        let mut headers = HeaderMap::new();
        let (mut query, mut body) = (None, None);
        let mut authorization = grant.header.clone();
        let (root, repository) = (&self.root, &self.repository);
        let path = match &ask.thing {
            Thing::Root | Thing::Manifest(_) => {
                let accept = MediaType::MANIFESTS.join(", ");
                headers.insert(ACCEPT, HeaderValue::try_from(accept).expect("media types are plain text"));
                let reference = if let Thing::Manifest(reference) = &ask.thing { reference } else { &*self.reference };
                format!("{root}/{repository}/manifests/{reference}")
            }
            Thing::Referrers(Listing { of, kind, next }) => {
                headers.insert(ACCEPT, HeaderValue::from_static(MediaType::MANIFESTS[0]));
                let kind = kind.map(|kind| format!("artifactType={kind}"));
                query = next.map(str::to_owned).or(kind);
                format!("{root}/{repository}/referrers/{of}")
            }
            Thing::Tags { next } => {
                query = Some(next.unwrap_or(tags::PAGE).to_owned());
                format!("{root}/{repository}/tags/list")
            }
            Thing::NewUpload => {
                body = Some(Body::octets(&Content::Memory(Bytes::new())));
                format!("{root}/{repository}/blobs/uploads/")
            }
            Thing::Upload { url, content } => {
                let url = (*url).clone();
                // Storage that the registry hands uploads to gets no login.
                authorization = authorization.filter(|_| Origin::of(&url) == Origin::of(base));
                let body = Some(Body::octets(content));
                let own = self.own_headers(&url, base);
                return Outgoing { method: ask.method.clone(), url, headers, own, authorization, body };
            }
            Thing::NewManifest { reference, media_type, bytes } => {
                let media_type = HeaderValue::try_from(*media_type).expect("media types are plain text");
                body = Some(Body { media_type, content: Content::Memory((*bytes).clone()) });
                format!("{root}/{repository}/manifests/{reference}")
            }
            Thing::Blob(Wanted { digest, bytes, whole, .. }) => {
                if !whole {
                    let range = format!("bytes={}-{}", bytes.start, bytes.end - 1);
                    headers.insert(RANGE, HeaderValue::try_from(range).expect("numbers are plain text"));
                }
                format!("{root}/{repository}/blobs/{digest}")
            }
        };
        let url = known.unwrap_or_else(|| {
            let mut url = base.clone();
            url.set_path(&path);
            url.set_query(query.as_deref());
            if let Some(namespace) = &self.namespace {
                url.query_pairs_mut().append_pair("ns", namespace);
            }
            url
        });
        debug_assert!(!headers.contains_key(AUTHORIZATION));
        let own = self.own_headers(&url, base);
        Outgoing { method: ask.method.clone(), url, headers, own, authorization, body }
    }

    /// The headers for `url` that are for the server at `base` alone.
    fn own_headers(&self, url: &Url, base: &Url) -> HeaderMap {
        if Origin::of(url) == Origin::of(base) { self.headers.clone() } else { HeaderMap::new() }
    }

    pub(super) fn no_grant(&self, error: AuthError, what: &str) -> SourceError {
        self.no_grant_at(error, what, &self.host)
    }

    /// The error for a failed login at `place`.
    pub(super) fn no_grant_at(&self, error: AuthError, what: &str, place: &str) -> SourceError {
        let tried = match &error {
            AuthError::Refused { tried, .. } | AuthError::WantsPassword { tried } | AuthError::Unchanged { tried } => {
                tried.clone()
            }
            AuthError::Unreachable(fault) => return self.cannot_reach(what, fault, error.to_string()),
            AuthError::Failing { outage, .. } => return self.away(what, error.to_string(), *outage),
            AuthError::NoToken { .. } => return self.protocol(what, error.to_string()),
            AuthError::File(file) => {
                return SourceError::Unsupported { place: file.path.clone(), why: error.to_string(), hint: None };
            }
            AuthError::Realm { .. } => "nothing".to_owned(),
        };
        let mut said = error.to_string();
        if place != self.host {
            said.push_str(&format!(", where {} redirects to", self.host));
        }
        let tried = self.authorizer.with_missing_file(tried);
        SourceError::Denied { what: what.to_owned(), place: place.to_owned(), said, tried }
    }

    /// The error for a final response other than success.
    pub(super) async fn refusal(&self, reply: &mut Reply, what: &str) -> SourceError {
        let said = reply.said().await;
        let what = what.to_owned();
        match reply.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                let asked = self.authorizer.describe_missing(&self.authorizer.present());
                let hint = match &asked {
                    _ if what.starts_with("blob ") => {
                        "the registry lacks a blob that the image's manifest names; push the image again"
                    }
                    _ if let Some(hint) = self.local_hint() => hint,
                    Some(_) => "check the spelling, and whether the user may read this repository",
                    None => {
                        "check the spelling; a private repository also looks like this to those who are not logged in"
                    }
                };
                let said = asked.map_or(said.clone(), |asked| format!("{said}; {asked}"));
                SourceError::NotFound { what, place: self.place(), said: Some(said), hint: Some(hint.into()) }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let tried = self.authorizer.with_missing_file(self.authorizer.told(&self.authorizer.present()).await);
                SourceError::Denied { what, place: self.host.clone(), said, tried }
            }
            _ => SourceError::Protocol { what, place: self.host.clone(), why: format!("it answered {said}") },
        }
    }

    /// Registry and repository, for messages.
    pub(super) fn place(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    pub(super) fn protocol(&self, what: &str, why: String) -> SourceError {
        SourceError::Protocol { what: what.to_owned(), place: self.host.clone(), why }
    }

    pub(super) fn away(&self, what: &str, why: String, outage: Outage) -> SourceError {
        let hint = if outage == Outage::Away { self.local_hint() } else { None }.or(outage.hint());
        SourceError::Unreachable { what: what.to_owned(), place: self.host.clone(), why, hint }
    }

    /// Hint for a registry without the image, if the user probably meant no registry.
    fn local_hint(&self) -> Option<&'static str> {
        (self.host == "localhost").then_some(
            "podman names what it builds `localhost/NAME`, and its storage is not read here: write it to a file with \
             `podman save -o FILE localhost/NAME` and name that, as in `docker-archive:FILE`, or push it to a registry",
        )
    }

    fn cannot_reach(&self, what: &str, fault: &Fault, why: String) -> SourceError {
        hinted(self.away(what, why, fault.outage()), fault.hint())
    }

    pub(super) fn gave_up(
        &self,
        what: &str,
        fault: &(dyn Display + Sync),
        outage: Outage,
        tries: &Tries,
    ) -> SourceError {
        self.away(what, format!("{fault}{}", tries.told()), outage)
    }

    /// Counts and logs a failed try, and waits before the next; `false` if there is none.
    pub(super) async fn again(
        &self,
        tries: &mut Tries,
        subject: Subject<'_>,
        asked: Option<Duration>,
        fault: &(dyn Display + Sync),
    ) -> bool {
        let again = tries.again_within(&self.outages, &subject, asked, &fault.to_string()).await;
        if again {
            if subject.blob.is_some() {
                tries.place = Some(place(&self.retrying).await);
            }
            self.transport.counters.retries.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("{fault}; trying again");
        }
        again
    }

    /// Whether a failed login is retried without limit.
    fn is_retried(&self, error: &AuthError) -> bool {
        let passing = match error {
            AuthError::Unreachable(fault) => fault.is_passing(),
            AuthError::Failing { .. } => true,
            _ => false,
        };
        passing && self.outages.retries_without_limit()
    }

    /// What is known about ranges of this blob.
    pub(super) fn ranges_of(&self, blob: &Digest) -> Option<Ranges> {
        lock(&self.ranges).get(blob).copied()
    }

    /// Records how the first range request of a blob was answered.
    pub(super) fn note_ranges(&self, blob: &Digest, are: Ranges) {
        let mut ranges = lock(&self.ranges);
        if ranges.contains_key(blob) {
            return;
        }
        if ranges.len() >= MAX_LOCATIONS {
            ranges.clear();
        }
        ranges.insert(blob.clone(), are);
    }

    fn location(&self, thing: &Thing<'_>) -> Option<Url> {
        let Thing::Blob(wanted) = thing else { return None };
        self.locations().get(wanted.digest).cloned()
    }

    fn remember(&self, thing: &Thing<'_>, url: &Url) {
        let Thing::Blob(wanted) = thing else { return };
        let mut locations = self.locations();
        if locations.len() >= MAX_LOCATIONS {
            locations.clear();
        }
        locations.insert(wanted.digest.clone(), url.clone());
    }

    fn forget(&self, thing: &Thing<'_>) {
        if let Thing::Blob(wanted) = thing {
            self.locations().remove(wanted.digest);
        }
    }

    pub(super) fn elsewhere(&self) -> MutexGuard<'_, HashMap<(Origin, String), Arc<Authorizer>>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locations(&self) -> MutexGuard<'_, HashMap<Digest, Url>> {
        self.locations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error with a better hint, if there is one.
fn hinted(error: SourceError, better: Option<&'static str>) -> SourceError {
    match error {
        SourceError::Unreachable { what, place, why, hint } => {
            SourceError::Unreachable { what, place, why, hint: better.or(hint) }
        }
        other => other,
    }
}
