//! HTTP: one exchange with one server, limited in time and size, and the steps of a redirect.
//!
//! The client library's own handling of redirects, cookies, Referer and decompression is off. Connections, TLS, proxies
//! and HTTP/2 are set up here, and errors are mapped to messages that name the host and the reason.

use std::collections::HashMap;
use std::error::Error as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderValue,
    LOCATION, RETRY_AFTER,
};
use reqwest::{Client, Method, StatusCode, Url};

use super::contact::LastLimit;
use super::encoding;
use super::origin::{self, Forbidden, MAX_REDIRECTS, Origin, Reach};
use super::patience::Deadlines;
use super::ranges::decimal;
use super::tls::{self, HostCertificates, TlsError, Verify};
use super::verifier::{self, Refusal};
use crate::source::Outage;

/// Limit for the body of an error, in bytes.
const SAID_LIMIT: usize = 64 << 10;
/// Limit for text of a server that is shown, in characters.
const SAID_SHOWN: usize = 200;
/// In-flight limit of one HTTP/2 stream: fills 1 Gbit/s at 30 ms. Fixed, as the adaptive window starts at 64 KiB and
/// needs several round trips to grow.
const STREAM_WINDOW: u32 = 4 << 20;
/// In-flight limit of one HTTP/2 connection, so that slow readers cannot accumulate more.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A silent connection is probed with keepalives: a slow server keeps it alive; otherwise it breaks within half a
/// minute, and its requests fail.
const PROBED_AFTER: Duration = Duration::from_secs(15);
const PROBED_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// Time for a server's machine to acknowledge sent data.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// Bytes of a file that are sent at a time.
const PIECE: usize = 256 << 10;
/// Limit for the headers of a response.
const HEADER_LIMIT: u32 = 64 << 10;

/// How servers are reached and verified.
pub(super) struct Transport {
    pub(super) verify: Verify,
    pub(super) ca: Vec<PathBuf>,
    pub(super) certs_dirs: Vec<PathBuf>,
    /// Client certificates and keys for one origin, beside those in `certs.d`.
    pub(super) identities: Option<(Origin, Vec<(PathBuf, PathBuf)>)>,
    /// The proxy, in place of those of the environment.
    pub(super) proxy: Option<Url>,
    pub(super) user_agent: String,
    pub(super) deadlines: Deadlines,
    pub(super) counters: Arc<Counters>,
    pub(super) clients: Mutex<HashMap<ClientKind, Client>>,
}

/// Counts of requests and bytes, and the limit that was told.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) resumptions: AtomicU64,
    pub(super) renewals: AtomicU64,
    pub(super) limit: LastLimit,
}

/// Groups of connections that may share a pool.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum ClientKind {
    /// To this machine, without TLS and never through a proxy.
    LoopbackPlain,
    /// To this machine over TLS, never through a proxy.
    Loopback,
    /// To any host, with the common roots.
    Common,
    /// To one host (and port) with certificates of its own.
    Special(String),
}

/// A request before it is sent.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Sent to every hop.
    pub(super) headers: HeaderMap,
    /// Sent to `url`'s origin only, as is the authorization.
    pub(super) own: HeaderMap,
    /// Sent to `url`'s origin only; in place of one among `own`.
    pub(super) authorization: Option<HeaderValue>,
    /// What is sent along, for POST and PUT.
    pub(super) body: Option<Body>,
}

/// The body of a request, with its Content-Type.
#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) media_type: HeaderValue,
    pub(super) content: Content,
}

/// Bytes to send.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Memory(Bytes),
    /// The first `size` bytes of a file; they must not change while they are sent.
    File {
        /// The file.
        file: Arc<File>,
        /// How many bytes.
        size: u64,
    },
}

impl Content {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    fn body(&self) -> reqwest::Body {
        let (file, size) = match self {
            Self::Memory(bytes) => return bytes.clone().into(),
            Self::File { file, size } => (Arc::clone(file), *size),
        };
        let pieces = (0..size).step_by(PIECE).map(move |at| {
            let mut piece = vec![0; PIECE.min((size - at) as usize)];
            file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
        });
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    }
}

impl Body {
    /// A form of a token request.
    pub(super) fn form(text: String) -> Self {
        let media_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        Self { media_type, content: Content::Memory(text.into()) }
    }

    /// A blob.
    pub(super) fn octets(content: &Content) -> Self {
        Self { media_type: HeaderValue::from_static("application/octet-stream"), content: content.clone() }
    }
}

/// Why there is no (complete) response.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("cannot reach {host}: {why}")]
    Connect { host: String, why: String },
    #[error("cannot reach {host}: {}", refusal.why)]
    Handshake { host: String, refusal: Refusal },
    #[error("{host} gave no answer within {} s", limit.as_secs_f32())]
    Silent { host: String, limit: Duration },
    #[error("{host} stopped sending: fewer than {least} bytes in {} s", limit.as_secs_f32())]
    Stalled { host: String, least: u64, limit: Duration },
    #[error("received nothing from {host} for {} s", after.as_secs())]
    Abandoned { host: String, after: Duration },
    #[error("the connection to {host} broke: {why}")]
    Broken { host: String, why: String },
    #[error("{host} ended the body early")]
    Cut { host: String },
    #[error("{host} sent more than {limit} bytes")]
    TooLong { host: String, limit: usize },
    #[error("the redirect of {host} is not followed: {why}")]
    Redirect { host: String, why: Forbidden },
    #[error("{host} sent a redirect without a `Location`")]
    NoLocation { host: String },
    #[error("more than {MAX_REDIRECTS} redirects, the last by {host}")]
    RedirectLoop { host: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Fault {
    /// No answer from a server within `limit`.
    pub(super) fn silent(url: &Url, limit: Duration) -> Self {
        Self::Silent { host: Origin::of(url).map(|origin| origin.to_string()).unwrap_or_default(), limit }
    }

    /// The kind of outage that it belongs to.
    pub(super) fn outage(&self) -> Outage {
        if self.is_silence() { Outage::Silent } else { Outage::Away }
    }

    /// Whether nothing was received within a time limit.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Stalled { .. } | Self::Abandoned { .. })
    }

    /// Whether the answer is not HTTP, as that of a server which expects TLS.
    pub(super) fn is_garbled(&self) -> bool {
        matches!(self, Self::Broken { why, .. } if why.starts_with("invalid HTTP"))
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Silent { .. }
            | Self::Stalled { .. }
            | Self::Abandoned { .. }
            | Self::Broken { .. }
            | Self::Cut { .. } => true,
            Self::TooLong { .. }
            | Self::Redirect { .. }
            | Self::NoLocation { .. }
            | Self::RedirectLoop { .. }
            | Self::Tls(_) => false,
        }
    }

    /// What the user can do, if the cause is not the network.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Handshake { refusal, .. } => refusal.hint,
            _ => None,
        }
    }
}

impl Transport {
    /// As [`Transport::answer`], with a time limit.
    pub(super) async fn answer_within(&self, request: &Outgoing, limit: Duration) -> Result<Reply, Fault> {
        match tokio::time::timeout(limit, self.answer(request, |_| true)).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::silent(&request.url, limit)),
        }
    }

    /// The response to `request`: its headers, and, if these are a success that `fits`, the first bytes of the body.
    /// Waits as long as the connection is alive: time limits are up to the caller.
    pub(super) async fn answer(&self, request: &Outgoing, fits: impl Fn(&Reply) -> bool) -> Result<Reply, Fault> {
        let mut reply = self.send(request).await?;
        if request.method == Method::GET && reply.status().is_success() && fits(&reply) {
            reply.begin().await?;
        }
        Ok(reply)
    }

    /// Sends `request` and follows redirects of GET and HEAD, by the rules of [`origin`].
    async fn send(&self, request: &Outgoing) -> Result<Reply, Fault> {
        let follows = matches!(request.method, Method::GET | Method::HEAD);
        let mut url = request.url.clone();
        let mut is_own = true;
        for hop in 0..=MAX_REDIRECTS {
            let reply = self.exchange(request, url.clone(), is_own, hop > 0).await?;
            if !follows || !is_redirect(reply.status()) {
                return Ok(reply);
            }
            let host = reply.host.clone();
            let Some(location) = reply.headers().get(LOCATION) else { return Err(Fault::NoLocation { host }) };
            // A header is bytes; a Location that is not text is invalid.
            let location = std::str::from_utf8(location.as_bytes()).unwrap_or_default();
            let next = origin::follow(&url, location, self.verify).map_err(|why| Fault::Redirect { host, why })?;
            is_own &= Origin::of(&next) == Origin::of(&url);
            url = next;
        }
        let host = Origin::of(&url).map(|origin| origin.to_string()).unwrap_or_default();
        Err(Fault::RedirectLoop { host })
    }

    async fn exchange(&self, request: &Outgoing, url: Url, is_own: bool, redirected: bool) -> Result<Reply, Fault> {
        let Some(origin) = Origin::of(&url) else {
            let host = url.host_str().unwrap_or_default().to_owned();
            return Err(Fault::Redirect { host, why: Forbidden::Scheme });
        };
        let host = origin.to_string();
        let mut builder = self.client(&origin)?.request(request.method.clone(), url.clone());
        let mut headers = request.headers.clone();
        if is_own {
            // Those that are the same for every hop are needed as they are.
            let missing = request.own.iter().filter(|(name, _)| !request.headers.contains_key(*name));
            headers.extend(missing.map(|(name, value)| (name.clone(), value.clone())));
            if let Some(mut value) = request.authorization.clone() {
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
        }
        builder = builder.headers(headers).header(ACCEPT_ENCODING, "identity");
        if let Some(Body { media_type, content }) = &request.body {
            builder = builder.header(CONTENT_TYPE, media_type).header(CONTENT_LENGTH, content.size());
            builder = builder.body(content.body());
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let answer = builder.send().await.map_err(|error| fault(error, host.clone(), &self.deadlines));
        if let Ok(response) = &answer {
            self.counters.limit.note(response.headers());
        }
        match answer {
            Ok(response) => Ok(Reply {
                response,
                host,
                method: request.method.clone(),
                url,
                redirected,
                stall: self.deadlines.stall,
                least_progress: self.deadlines.least_progress,
                window: Window::default(),
                first: None,
                counters: self.counters.clone(),
                received: 0,
                started,
            }),
            Err(fault) => {
                let ms = started.elapsed().as_millis();
                tracing::debug!(method = %request.method, host, path = url.path(), ms, "no response: {fault}");
                Err(fault)
            }
        }
    }

    /// The client whose connections to `origin` may be shared.
    fn client(&self, origin: &Origin) -> Result<Client, Fault> {
        let loopback = origin.reach() == Reach::Loopback;
        let special = if origin.is_tls() { self.certificates_for(origin)? } else { None };
        let kind = match (&special, loopback, origin.is_tls()) {
            (Some(_), ..) => ClientKind::Special(origin.host_and_port()),
            (None, true, true) => ClientKind::Loopback,
            (None, true, false) => ClientKind::LoopbackPlain,
            (None, false, _) => ClientKind::Common,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let tls = match kind {
            ClientKind::LoopbackPlain => tls::none(),
            _ => tls::config(self.verify, &self.ca, special.as_ref())?,
        };
        let client = self.build(tls, loopback)?;
        clients.insert(kind, client.clone());
        Ok(client)
    }

    /// The certificates in `certs.d` for `origin`.
    pub(super) fn certificates_for(&self, origin: &Origin) -> Result<Option<HostCertificates>, TlsError> {
        let mut names = vec![origin.host_and_port()];
        if origin.port() == 443 {
            names.push(origin.host().to_owned());
        }
        let found = HostCertificates::find(&self.certs_dirs, &names)?;
        Ok(match &self.identities {
            Some((of, pairs)) if of == origin => Some(found.unwrap_or_default().with(pairs)),
            _ => found,
        })
    }

    fn build(&self, tls: rustls::ClientConfig, direct: bool) -> Result<Client, Fault> {
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(&self.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.deadlines.connect)
            .tcp_nodelay(true)
            .tcp_keepalive(PROBED_AFTER)
            .tcp_keepalive_interval(PROBED_EVERY)
            .tcp_keepalive_retries(PROBES)
            .tcp_user_timeout(UNACKNOWLEDGED)
            .pool_idle_timeout(Duration::from_secs(90))
            .pool_max_idle_per_host(32)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(HEADER_LIMIT)
            .http2_keep_alive_interval(Duration::from_secs(15))
            .http2_keep_alive_timeout(Duration::from_secs(10));
        let unusable = |error: reqwest::Error| Fault::Connect { host: "the proxy".to_owned(), why: innermost(&error) };
        if let Some(proxy) = &self.proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(unusable)?);
        } else if direct {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| Fault::Connect { host: "any host".to_owned(), why: innermost(&error) })
    }
}

/// A response whose body has not been read yet.
pub(super) struct Reply {
    response: reqwest::Response,
    /// The host that answered, for messages.
    pub(super) host: String,
    /// The final URL, after redirects.
    pub(super) url: Url,
    /// Whether a redirect led here.
    pub(super) redirected: bool,
    method: Method,
    stall: Duration,
    least_progress: u64,
    window: Window,
    /// Bytes of the body received before it was read.
    first: Option<Bytes>,
    counters: Arc<Counters>,
    received: u64,
    started: Instant,
}

/// The current stretch of the progress rule; only time spent waiting for the server counts.
#[derive(Default)]
struct Window {
    waited: Duration,
    bytes: u64,
}

impl Reply {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header's text, if it occurs once and is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers().get_all(name).iter();
        match (all.next(), all.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
    }

    /// The declared encoding of the body, although none was requested.
    pub(super) fn foreign_encoding(&self) -> Option<String> {
        let values = self.headers().get_all(CONTENT_ENCODING).iter();
        let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let names = names.map(|name| String::from_utf8_lossy(name.trim_ascii()));
        let foreign: Vec<_> = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")).collect();
        (!foreign.is_empty()).then(|| shown(&foreign.join(", ")))
    }

    /// As [`Reply::body`], for text that may be encoded and has no digest.
    pub(super) async fn text(&mut self, limit: usize) -> Result<Bytes, Fault> {
        let body = self.body(limit).await?;
        let label = self.foreign_encoding();
        // If it cannot be decoded, the caller reports it as unreadable.
        Ok(encoding::document(body.clone(), label.as_deref(), limit, encoding::is_plain).unwrap_or(body))
    }

    /// The time that `Retry-After` asks to wait, in seconds or until a date. The date is compared with the server's own
    /// `Date`, as this machine's clock may differ.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let asked = self.header(RETRY_AFTER.as_str())?.trim();
        if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Duration::from_secs(decimal(asked).unwrap_or(u64::MAX)));
        }
        let date = |text: &str| httpdate::parse_http_date(text.trim()).ok();
        let now = self.header(DATE.as_str()).and_then(date).unwrap_or_else(SystemTime::now);
        Some(date(asked)?.duration_since(now).unwrap_or_default())
    }

    /// Waits for the first bytes of the body: a server that has sent only headers is still working on its response.
    async fn begin(&mut self) -> Result<(), Fault> {
        let first = self.response.chunk().await;
        self.first = first.map_err(|error| Fault::Broken { host: self.host.clone(), why: innermost(&error) })?;
        Ok(())
    }

    /// Raises the time limit for silence in the body.
    pub(super) fn be_patient(&mut self, stall: Duration) {
        self.stall = self.stall.max(stall);
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        if let Some(first) = self.first.take() {
            self.count(&first);
            return Ok(Some(first));
        }
        let waiting = loop {
            let started = tokio::time::Instant::now();
            // A late timer may leave no time.
            let left = self.stall.saturating_sub(self.window.waited);
            match tokio::time::timeout(left, self.response.chunk()).await {
                Ok(answer) => break answer.map(|chunk| (chunk, started.elapsed())),
                // Enough arrived earlier in this stretch; the next one starts with this silence.
                Err(_) if self.window.bytes >= self.least_progress && !self.window.waited.is_zero() => {
                    self.window = Window { waited: started.elapsed(), bytes: 0 };
                }
                Err(_) => return Err(self.stalled()),
            }
        };
        let broken = |error| Fault::Broken { host: self.host.clone(), why: innermost(&error) };
        let (Some(chunk), waited) = waiting.map_err(broken)? else { return Ok(None) };
        self.count(&chunk);
        self.window.waited += waited;
        if self.window.waited >= self.stall {
            if self.window.bytes < self.least_progress {
                return Err(self.stalled());
            }
            self.window = Window::default();
        }
        Ok(Some(chunk))
    }

    fn count(&mut self, chunk: &Bytes) {
        let length = chunk.len() as u64;
        self.received += length;
        self.counters.bytes.fetch_add(length, Ordering::Relaxed);
        self.window.bytes += length;
    }

    fn stalled(&self) -> Fault {
        Fault::Stalled { host: self.host.clone(), least: self.least_progress, limit: self.stall }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(super) async fn body(&mut self, limit: usize) -> Result<Bytes, Fault> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if chunk.len() > limit - body.len() {
                return Err(Fault::TooLong { host: self.host.clone(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Status and message of a refusal, safe to print.
    pub(super) async fn said(&mut self) -> String {
        let mut body = BytesMut::new();
        if self.foreign_encoding().is_none() && self.method != Method::HEAD {
            while body.len() < SAID_LIMIT {
                // Show what was received, even if the message is cut short.
                let Ok(Some(chunk)) = self.chunk().await else { break };
                body.extend_from_slice(&chunk[..chunk.len().min(SAID_LIMIT - body.len())]);
            }
        }
        let status = self.status().to_string();
        match message(&body) {
            Some(message) => format!("{status} ({message})"),
            None => status,
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Log no query: it may contain signatures.
        tracing::debug!(
            method = %self.method,
            host = self.host,
            path = self.url.path(),
            status = self.response.status().as_u16(),
            bytes = self.received,
            ms = self.started.elapsed().as_millis(),
            "request"
        );
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The message in an error body: distribution-spec's JSON, a token server's JSON, or plain text.
fn message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<OneError>,
        message: Option<String>,
        details: Option<String>,
        error_description: Option<String>,
        error: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(said) => match said.errors.first() {
            Some(OneError { code, message }) if message.is_empty() => code.clone(),
            Some(OneError { code, message }) if code.is_empty() => message.clone(),
            Some(OneError { code, message }) => format!("{code}: {message}"),
            None => said.message.or(said.details).or(said.error_description).or(said.error)?,
        },
        Err(_) => {
            let text = std::str::from_utf8(body).ok()?;
            text.lines().next().filter(|line| !line.trim_start().starts_with(['<', '{', '[']))?.to_owned()
        }
    };
    let text = shown(&text);
    (!text.is_empty()).then_some(text)
}

/// Untrusted text, shortened and with terminal control characters escaped.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.trim().chars().take(SAID_SHOWN).flat_map(escape).collect();
    if text.trim().chars().nth(SAID_SHOWN).is_some() {
        short.push('…');
    }
    short
}

fn escape(character: char) -> impl Iterator<Item = char> {
    // Also escape characters that change the text direction.
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let escaped = (character.is_control() || turns).then(|| character.escape_unicode());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

/// Maps an error of the HTTP library.
fn fault(error: reqwest::Error, host: String, deadlines: &Deadlines) -> Fault {
    let connecting = error.is_connect();
    if connecting && error.is_timeout() {
        let why = format!("no connection within {} s", deadlines.connect.as_secs_f32());
        return Fault::Connect { host, why };
    }
    if error.is_dns() {
        return Fault::Connect { host, why: "its name cannot be resolved".to_owned() };
    }
    let bottom = bottom(&error);
    // A server that rejects the client certificate says so after the client's side of the handshake is done.
    if let Some(refusal) = verifier::explain(bottom) {
        return Fault::Handshake { host, refusal };
    }
    let why = words(bottom);
    if connecting { Fault::Connect { host, why } } else { Fault::Broken { host, why } }
}

/// The innermost reason of an error, for messages.
fn innermost(error: &reqwest::Error) -> String {
    words(bottom(error))
}

fn bottom(error: &reqwest::Error) -> &(dyn std::error::Error + 'static) {
    let mut bottom: &(dyn std::error::Error + 'static) = error;
    let mut next = error.source();
    while let Some(source) = next {
        bottom = source;
        next = match source.downcast_ref::<std::io::Error>() {
            // An I/O error does not return the error that it wraps as its `source`.
            Some(io) => io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)).or(source.source()),
            None => source.source(),
        };
    }
    bottom
}

fn words(bottom: &(dyn std::error::Error + 'static)) -> String {
    if let Some(io) = bottom.downcast_ref::<std::io::Error>() {
        match io.kind() {
            std::io::ErrorKind::ConnectionRefused => return "connection refused".to_owned(),
            std::io::ErrorKind::ConnectionReset => return "connection reset".to_owned(),
            std::io::ErrorKind::UnexpectedEof => return "it closed the connection".to_owned(),
            _ => {}
        }
    }
    match bottom.to_string().as_str() {
        "tls handshake eof" => "it closed the connection during the TLS handshake".to_owned(),
        text => verifier::explain(bottom).map_or_else(|| shown(text), |refusal| refusal.why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_registries_are_found_and_made_harmless() {
        let table = [
            (r#"{"errors":[{"code":"DENIED","message":"no","detail":{"a":1}}]}"#, Some("DENIED: no")),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Some("DENIED")),
            (r#"{"errors":[]}"#, None),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"error":"invalid_grant"}"#, Some("invalid_grant")),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, Some("expired")),
            ("plain words\nmore", Some("plain words")),
            ("<html><body>404</body></html>", None),
            ("", None),
            ("a\u{1b}]0;x\u{7}\u{202e}b", Some(r"a\u{1b}]0;x\u{7}\u{202e}b")),
        ];
        for (body, wanted) in table {
            assert_eq!(message(body.as_bytes()).as_deref(), wanted, "{body}");
        }
        assert_eq!(shown(&"x".repeat(300)).chars().count(), SAID_SHOWN + 1);
    }
}
