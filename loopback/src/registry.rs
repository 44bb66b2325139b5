//! The registry: routes, threads, and the handle a test holds.
//!
//! It answers what docker-registry answers to a client that pulls (distribution-spec, "Pull"): version
//! check, manifests by tag and digest, blobs with one range, tags; and, where that is allowed, to one that
//! pushes. It is as strict as docker-registry about `Accept`. Everything it is asked is written down.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::answer::{After, Answer, Waiting};
use super::auth::{Access, Realm, TokenService};
pub use super::catalog::Catalog;
use super::catalog::Content;
use super::faults::Faults;
use super::http::Request;
use super::image::Image;
use super::push;
use peelfs::descriptor::MediaType;
use peelfs::digest::Digest;

/// What a registry is started with.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is served.
    pub catalog: Catalog,
    /// What clients must present.
    pub access: Access,
    /// A token service to answer for at `/token`; that of [`Access::Bearer`] with [`Realm::Here`] is
    /// answered for without being named here.
    pub tokens: Option<TokenService>,
    /// The port; 0 takes a free one.
    pub port: u16,
}

/// A running registry on 127.0.0.1. Dropping it ends all connections and waits for the threads.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Counts requests since the start.
    pub number: u64,
    /// Counts connections; requests with the same number came over the same one.
    pub connection: u64,
    /// The request.
    pub request: Request,
    /// The status of the answer.
    pub status: u16,
    /// The faults that struck, as `Truncate { after: 3 }`.
    pub faults: Vec<String>,
    /// Body bytes written or being written, chunk framing apart.
    pub body_bytes: u64,
    /// Whether nothing more will be written: the answer ended, a fault ended it, or the client left.
    pub finished: bool,
}

impl Recorded {
    /// The `Range` that was asked for.
    pub fn range(&self) -> Option<&str> {
        self.request.header("range")
    }

    /// Whether a blob was asked for, by GET or HEAD.
    pub fn is_blob(&self) -> bool {
        self.request.path.contains("/blobs/")
    }

    /// Whether a manifest was asked for, by GET or HEAD.
    pub fn is_manifest(&self) -> bool {
        self.request.path.contains("/manifests/")
    }
}

impl Registry {
    /// Starts an open registry on a free port.
    ///
    /// # Errors
    /// If no socket or thread is to be had.
    pub fn start(catalog: Catalog) -> io::Result<Self> {
        Self::start_with(Settings { catalog, ..Settings::default() })
    }

    /// Starts a registry.
    ///
    /// # Errors
    /// If the port is taken, or no socket or thread is to be had.
    pub fn start_with(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, settings.port))?;
        let shared = Arc::new(Shared {
            addr: listener.local_addr()?,
            catalog: RwLock::new(settings.catalog),
            access: RwLock::new(settings.access),
            tokens: settings.tokens,
            faults: Faults::default(),
            waiting: Waiting::default(),
            log: Mutex::default(),
            logged: Condvar::new(),
            numbers: AtomicU64::new(0),
            connections: Mutex::default(),
            connection_ended: Condvar::new(),
        });
        let accepting = std::thread::Builder::new().name("loopback-accept".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, &listener)
        })?;
        Ok(Self { shared, accepting: Some(accepting) })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// `http://127.0.0.1:PORT`, for redirects and realms.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.shared.addr)
    }

    /// `127.0.0.1:PORT/NAME:TAG`
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.shared.addr)
    }

    /// `127.0.0.1:PORT/NAME@DIGEST`
    pub fn pinned(&self, name: &str, digest: &Digest) -> String {
        format!("{}/{name}@{digest}", self.shared.addr)
    }

    /// What goes wrong; rules may be added and cleared at any time.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Adds an image or moves its tag.
    pub fn push(&self, name: &str, tag: &str, image: &Image) {
        self.shared.catalog.write().unwrap_or_else(PoisonError::into_inner).push(name, tag, image);
    }

    /// Adds a blob.
    pub fn put_blob(&self, name: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(peelfs::digest::Algorithm::Sha256, &bytes);
        self.shared.catalog.write().unwrap_or_else(PoisonError::into_inner).put_blob(name, &digest, bytes);
        digest
    }

    /// Adds a document under its digest, and moves a tag to it if `reference` is one.
    pub fn put_document(&self, name: &str, reference: &str, media_type: MediaType, bytes: Bytes) -> Digest {
        let mut catalog = self.shared.catalog.write().unwrap_or_else(PoisonError::into_inner);
        catalog.put_document(name, reference, media_type, bytes)
    }

    /// A blob that was pushed or is part of an image in memory.
    pub fn blob(&self, name: &str, digest: &Digest) -> Option<Bytes> {
        let catalog = self.shared.catalog.read().unwrap_or_else(PoisonError::into_inner);
        match catalog.blob(name, digest)? {
            Content::Memory(bytes) => Some(bytes),
            Content::File { .. } => None,
        }
    }

    /// A document by tag or digest.
    pub fn document(&self, name: &str, reference: &str) -> Option<Bytes> {
        let catalog = self.shared.catalog.read().unwrap_or_else(PoisonError::into_inner);
        catalog.document(name, reference).map(|(_, _, bytes)| bytes)
    }

    /// Changes the access rules from now on.
    pub fn set_access(&self, access: Access) {
        *self.shared.access.write().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// Every request since the start or the last [`Registry::clear`], in order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.log().clone()
    }

    /// Body bytes of blobs sent since then.
    pub fn blob_bytes(&self) -> u64 {
        self.shared.log().iter().filter(|record| record.is_blob()).map(|record| record.body_bytes).sum()
    }

    /// Clears the log of requests.
    pub fn clear(&self) {
        self.shared.log().clear();
    }

    /// Waits until the requests so far look as `test` says; false if they have not within a minute. With this a test
    /// waits, without sleeping, until a request hangs at a [`Gate`](super::faults::Gate) without sleeping.
    #[must_use]
    pub fn wait_until(&self, test: impl Fn(&[Recorded]) -> bool) -> bool {
        let log = self.shared.log();
        let waited = self.shared.logged.wait_timeout_while(log, PATIENCE, |log| !test(log));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Ends all open connections, as a registry that is restarted; new ones are taken.
    pub fn drop_connections(&self) {
        for stream in self.shared.connections().values().filter_map(Weak::upgrade) {
            // A failure means that it has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.waiting.stop();
        // The accepting thread looks at the flag when something connects, or when a connection ends.
        let _ = TcpStream::connect(self.shared.addr);
        self.shared.connection_ended.notify_all();
        self.drop_connections();
        if let Some(thread) = self.accepting.take() {
            // Its panic, if any, was printed when it happened.
            let _ = thread.join();
        }
        self.drop_connections();
        let live = self.shared.connections();
        let ended = self.shared.connection_ended.wait_while(live, |live| !live.is_empty());
        drop(ended);
    }
}

#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    catalog: RwLock<Catalog>,
    access: RwLock<Access>,
    tokens: Option<TokenService>,
    faults: Faults,
    waiting: Waiting,
    log: Mutex<Vec<Recorded>>,
    logged: Condvar,
    numbers: AtomicU64,
    connections: Mutex<HashMap<u64, Weak<TcpStream>>>,
    connection_ended: Condvar,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Recorded>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Weak<TcpStream>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, number: u64, change: impl FnOnce(&mut Recorded)) {
        if let Some(record) = self.log().iter_mut().rev().find(|record| record.number == number) {
            change(record);
        }
        self.logged.notify_all();
    }

    /// What an honest registry answers.
    fn answer(&self, request: &Request) -> Answer {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner).clone();
        if request.path == "/token" {
            let own = match &access {
                Access::Bearer { tokens, realm: Realm::Here } => Some(tokens),
                _ => None,
            };
            return match own.or(self.tokens.as_ref()) {
                Some(tokens) => tokens.answer(request).into(),
                None => Answer::error(404, "NOT_FOUND", "no tokens here"),
            };
        }
        let Some(route) = Route::of(&request.path) else {
            return Answer::error(404, "NOT_FOUND", "there is nothing at this path");
        };
        if let Some(refusal) = access.refuse(request, route.repository(), &self.addr.to_string()) {
            return refusal.into();
        }
        if request.method != "GET" && request.method != "HEAD" {
            return push::answer(request, route, &self.catalog);
        }
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        match route {
            Route::Version => Answer::new(200, "application/json", "{}"),
            Route::Tags { name } => match catalog.tags(name) {
                Some(tags) => Answer::new(200, "application/json", json!({ "name": name, "tags": tags }).to_string()),
                None => Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry"),
            },
            Route::Manifest { name, reference } => match catalog.document(name, reference) {
                None => Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
                Some((_, media_type, _)) if !accepts(request, media_type.as_str()) => {
                    Answer::error(404, "MANIFEST_UNKNOWN", "manifest found, but the accept header does not support it")
                }
                Some((digest, media_type, bytes)) => {
                    Answer::new(200, media_type.as_str(), bytes).header("Docker-Content-Digest", &digest.to_string())
                }
            },
            Route::Referrers { name, subject } => {
                let page = request.query.strip_prefix("page=").and_then(|page| page.parse().ok()).unwrap_or(0);
                match catalog.referrers(name, subject, page) {
                    Some((index, more)) => {
                        let answer = Answer::new(200, MediaType::OciIndex.as_str(), index.to_string());
                        let next = || format!("<{}?page={}>; rel=\"next\"", request.path, page + 1);
                        if more { answer.header("Link", &next()) } else { answer }
                    }
                    None => Answer::error(404, "NOT_FOUND", "there is nothing at this path"),
                }
            }
            Route::Blob { name, digest } => match digest.parse().ok().and_then(|d| catalog.blob(name, &d)) {
                None => Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
                Some(content) => Answer::blob(request, content).header("Docker-Content-Digest", digest),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Route<'a> {
    Version,
    Tags { name: &'a str },
    Manifest { name: &'a str, reference: &'a str },
    Referrers { name: &'a str, subject: &'a str },
    Blob { name: &'a str, digest: &'a str },
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Self::Version);
        }
        let rest = rest.strip_prefix('/')?;
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags { name });
        }
        if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
            return Some(Self::Manifest { name, reference });
        }
        if let Some((name, subject)) = rest.rsplit_once("/referrers/") {
            return Some(Self::Referrers { name, subject });
        }
        let (name, digest) = rest.rsplit_once("/blobs/")?;
        Some(Self::Blob { name, digest })
    }

    fn repository(self) -> Option<&'a str> {
        match self {
            Self::Version => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Referrers { name, .. }
            | Self::Blob { name, .. } => Some(name),
        }
    }
}

/// Whether one of the `Accept` headers allows the type; none at all allows everything.
fn accepts(request: &Request, media_type: &str) -> bool {
    let mut accepted = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept")).peekable();
    accepted.peek().is_none()
        || accepted.flat_map(|(_, value)| value.split(',')).any(|choice| {
            let choice = choice.split(';').next().unwrap_or_default().trim();
            choice == "*/*" || choice == "application/*" || choice.eq_ignore_ascii_case(media_type)
        })
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for connection in 0.. {
        let full = |live: &mut HashMap<_, _>| live.len() >= MAX_CONNECTIONS && !shared.waiting.is_stopping();
        drop(shared.connection_ended.wait_while(shared.connections(), full));
        let Ok((stream, _)) = listener.accept() else { continue };
        if shared.waiting.is_stopping() {
            return;
        }
        let stream = Arc::new(stream);
        shared.connections().insert(connection, Arc::downgrade(&stream));
        let ended = Ended { shared: Arc::clone(shared), connection };
        // Without a thread the connection is dropped with the closure: the client sees it closed.
        let _ = std::thread::Builder::new().name(format!("loopback-{connection}")).stack_size(STACK).spawn(move || {
            serve(&ended.shared, &stream, connection);
            drop(stream);
            drop(ended);
        });
    }
}

/// Takes a connection off the list when its thread ends, however it ends.
struct Ended {
    shared: Arc<Shared>,
    connection: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.shared.connections().remove(&self.connection);
        self.shared.connection_ended.notify_all();
    }
}

fn serve(shared: &Shared, stream: &TcpStream, connection: u64) {
    // Pieces are written when they are ready; Nagle's algorithm would hold a stalled body's last piece.
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    while let Ok(Some(request)) = Request::read(&mut reader) {
        let faults = shared.faults.strike(&request);
        let names = faults.iter().map(|fault| format!("{fault:?}")).collect();
        let honest = shared.answer(&request).header("Docker-Distribution-Api-Version", "registry/2.0");
        let answer = faults.into_iter().fold(honest, |answer, fault| answer.struck(fault, &request));
        let number = shared.numbers.fetch_add(1, Ordering::SeqCst);
        let record = Recorded {
            number,
            connection,
            request: request.clone(),
            status: answer.status(),
            faults: names,
            body_bytes: 0,
            finished: false,
        };
        shared.log().push(record);
        shared.logged.notify_all();
        let sent = |bytes| shared.update(number, |record| record.body_bytes += bytes);
        let after = answer.send(stream, &request, &shared.waiting, sent);
        shared.update(number, |record| record.finished = true);
        let Ok(after) = after else { return };
        after.carry_out(stream);
        if after != After::KeepOpen || request.closes() || shared.waiting.is_stopping() {
            return;
        }
    }
}

/// More connections than this wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// A thread's stack; it holds one piece of a body on the heap and little else.
const STACK: usize = 256 << 10;
/// How long a test's condition may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};

    use bytes::Bytes;

    use super::*;
    use crate::auth::{Tickets, TokenRules};
    use crate::faults::{Fault, Gate, RedirectTo, Rule, Target};
    use crate::image::{ImageBuilder, LayerBuilder, Packing};
    use peelfs::digest::Algorithm;

    /// What came back over a connection that the server closed.
    #[derive(Debug)]
    struct Reply {
        status: u16,
        head: String,
        body: Vec<u8>,
        reset: bool,
    }

    impl Reply {
        fn header(&self, name: &str) -> Option<&str> {
            let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        }
    }

    fn ask(registry: &Registry, method: &str, target: &str, headers: &str) -> Reply {
        let mut stream = TcpStream::connect(registry.addr()).unwrap();
        write!(stream, "{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n").unwrap();
        finish(&mut stream)
    }

    fn finish(stream: &mut TcpStream) -> Reply {
        let (mut bytes, mut piece, mut reset) = (Vec::new(), [0; 4096], false);
        loop {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(len) => bytes.extend_from_slice(&piece[..len]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    reset = true;
                    break;
                }
            }
        }
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        Reply { status, head, body: bytes[end..].to_vec(), reset }
    }

    fn image() -> Image {
        let layer = LayerBuilder::new().file("f", (0..100_000u32).map(|i| i as u8).collect::<Vec<_>>());
        ImageBuilder::new().layer(layer.packing(Packing::Stored)).build()
    }

    /// A registry with one image, the path of its layer's blob, and that blob.
    fn served() -> (Registry, String, Bytes) {
        let image = image();
        let layer = &image.layers()[0];
        let registry = Registry::start(Catalog::new().image("a/b", "1", &image)).unwrap();
        (registry, format!("/v2/a/b/blobs/{}", layer.digest), layer.blob.clone())
    }

    #[test]
    fn manifests_are_served_by_tag_and_digest_with_their_type() {
        let (registry, ..) = served();
        let image = image();
        let root = image.root();
        for reference in ["1", &root.digest.to_string()] {
            for method in ["GET", "HEAD"] {
                let reply = ask(&registry, method, &format!("/v2/a/b/manifests/{reference}"), "");
                assert_eq!(reply.status, 200);
                assert_eq!(reply.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
                assert_eq!(reply.header("docker-content-digest"), Some(root.digest.to_string().as_str()));
                assert_eq!(reply.header("content-length"), Some(root.size.to_string().as_str()));
                assert_eq!(reply.body.len() as u64, if method == "GET" { root.size } else { 0 });
            }
        }
        let table = [
            ("/v2/", "", 200),
            ("/v2/a/b/tags/list", "", 200),
            ("/v2/a/c/tags/list", "", 404),
            ("/v2/a/b/manifests/2", "", 404),
            ("/v2/a/b/manifests/1", "Accept: application/json\r\n", 404),
            ("/v2/a/b/manifests/1", "Accept: x, application/vnd.oci.image.manifest.v1+json;q=1\r\n", 200),
            ("/v2/a/b/manifests/1", "Accept: x\r\nAccept: */*\r\n", 200),
            ("/v2/a/b/blobs/sha256:00", "", 404),
            ("/v2/../../etc/passwd", "", 404),
            ("/token", "", 404),
        ];
        for (path, headers, wanted) in table {
            assert_eq!(ask(&registry, "GET", path, headers).status, wanted, "{path} {headers}");
        }
        assert_eq!(ask(&registry, "PUT", "/v2/a/b/manifests/1", "").status, 405);
    }

    #[test]
    fn a_pushed_image_moves_the_tag() {
        let (registry, ..) = served();
        let other = ImageBuilder::new().layer(LayerBuilder::new().file("g", "other")).build();
        registry.push("a/b", "1", &other);
        let reply = ask(&registry, "HEAD", "/v2/a/b/manifests/1", "");
        assert_eq!(reply.header("docker-content-digest"), Some(other.root().digest.to_string().as_str()));
    }

    #[test]
    fn blobs_are_served_whole_and_in_ranges() {
        let (registry, path, blob) = served();
        let whole = ask(&registry, "GET", &path, "");
        assert_eq!((whole.status, whole.body), (200, blob.to_vec()));
        let part = ask(&registry, "GET", &path, "Range: bytes=1000-1999\r\n");
        assert_eq!((part.status, &part.body[..]), (206, &blob[1000..2000]));
        assert_eq!(part.header("content-range"), Some(format!("bytes 1000-1999/{}", blob.len()).as_str()));
        let beyond = ask(&registry, "GET", &path, &format!("Range: bytes={}-\r\n", blob.len()));
        assert_eq!(beyond.status, 416);
        assert_eq!(beyond.header("content-range"), Some(format!("bytes */{}", blob.len()).as_str()));
        assert_eq!(ask(&registry, "GET", &path, "Range: bytes=0-1,4-5\r\n").status, 200);
    }

    #[test]
    fn one_connection_serves_many_requests_and_all_are_recorded() {
        let (registry, path, blob) = served();
        let mut stream = TcpStream::connect(registry.addr()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nRange: bytes=0-9\r\nX-Who: me\r\n\r\n").unwrap();
        write!(stream, "HEAD {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let both = finish(&mut stream);
        assert!(both.body.starts_with(&blob[..10]));
        assert!(both.body[10..].starts_with(b"HTTP/1.1 200 OK"));
        assert!(registry.wait_until(|log| log.len() == 2 && log.iter().all(|record| record.finished)));
        let log = registry.requests();
        assert_eq!(log[0].connection, log[1].connection);
        assert_eq!((log[0].status, log[0].range(), log[0].body_bytes), (206, Some("bytes=0-9"), 10));
        assert_eq!(log[0].request.header("x-who"), Some("me"));
        assert_eq!((log[1].status, log[1].range(), log[1].body_bytes), (200, None, 0));
        assert_eq!(registry.blob_bytes(), 10);
        registry.clear();
        assert_eq!((registry.requests().len(), registry.blob_bytes()), (0, 0));
    }

    /// One fault, one ranged request for bytes 100 to 199 of the blob.
    fn struck(fault: Fault) -> (Reply, Bytes) {
        let (registry, path, blob) = served();
        registry.faults().add(Rule::new(Target::Blobs, fault));
        let reply = ask(&registry, "GET", &path, "Range: bytes=100-199\r\n");
        assert_eq!(registry.requests()[0].faults.len(), 1);
        (reply, blob)
    }

    #[test]
    fn bodies_are_cut_and_reset_at_the_byte() {
        let (reply, blob) = struck(Fault::Truncate { after: 7 });
        assert_eq!((reply.header("content-length"), &reply.body[..]), (Some("100"), &blob[100..107]));
        assert!(!reply.reset);
        let (reply, _) = struck(Fault::Reset { after: 7 });
        assert!(reply.reset && reply.body.len() <= 7);
        let (reply, _) = struck(Fault::ResetBeforeHeaders);
        assert!(reply.reset && reply.head.is_empty());
    }

    #[test]
    fn statuses_come_with_their_headers() {
        let (reply, _) = struck(Fault::too_many("7"));
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("7")));
        assert!(reply.body.starts_with(b"{\"errors\""));
        for status in [401, 403, 404, 500, 503] {
            assert_eq!(struck(Fault::status(status)).0.status, status);
        }
        let (reply, _) = struck(Fault::Header("docker-content-digest".to_owned(), "lie".to_owned()));
        assert_eq!((reply.status, reply.header("Docker-Content-Digest")), (206, Some("lie")));
    }

    #[test]
    fn ranges_are_lied_about() {
        let (reply, blob) = struck(Fault::IgnoreRange);
        assert_eq!((reply.status, reply.header("content-range"), &reply.body[..]), (200, None, &blob[..]));
        let size = blob.len();
        let (reply, _) = struck(Fault::ShiftContentRange(5));
        assert_eq!(reply.header("content-range"), Some(format!("bytes 105-204/{size}").as_str()));
        assert_eq!(&reply.body[..], &blob[100..200]);
        let (reply, _) = struck(Fault::ShiftBody(5));
        assert_eq!(reply.header("content-range"), Some(format!("bytes 100-199/{size}").as_str()));
        assert_eq!(&reply.body[..], &blob[105..205]);
        let (reply, _) = struck(Fault::NoContentRange);
        assert_eq!((reply.status, reply.header("content-range"), reply.body.len()), (206, None, 100));
    }

    #[test]
    fn lengths_are_lied_about() {
        let (reply, _) = struck(Fault::ContentLength(3));
        assert_eq!((reply.header("content-length"), reply.body.len()), (Some("103"), 100));
        let (reply, _) = struck(Fault::ContentLength(-3));
        assert_eq!((reply.header("content-length"), reply.body.len()), (Some("97"), 100));
        let (reply, _) = struck(Fault::UntilClose);
        assert_eq!((reply.header("content-length"), reply.body.len()), (None, 100));
        let (reply, blob) = struck(Fault::Chunked);
        assert_eq!(reply.header("content-length"), None);
        assert_eq!(reply.body, [b"64\r\n", &blob[100..200], b"\r\n0\r\n\r\n"].concat());
    }

    #[test]
    fn bytes_are_lied_about() {
        let (reply, blob) = struck(Fault::FlipBit { at: 150, bit: 3 });
        let mut wanted = blob[100..200].to_vec();
        wanted[50] ^= 8;
        assert_eq!(reply.body, wanted);
        let (reply, blob) = struck(Fault::FlipBit { at: 200, bit: 3 });
        assert_eq!(reply.body, blob[100..200]);
        let (reply, _) = struck(Fault::OtherBytes(Bytes::from(vec![7; 150])));
        assert_eq!((reply.header("content-range"), reply.body.clone()), (Some("bytes 100-149/150"), vec![7; 50]));
        let (reply, blob) = struck(Fault::Gzip);
        assert_eq!(reply.header("content-encoding"), Some("gzip"));
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&reply.body[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, blob[100..200]);
    }

    #[test]
    fn a_stalled_body_goes_on_when_the_gate_opens() {
        let (registry, path, blob) = served();
        let gate = Gate::new();
        registry.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 10, gate: gate.clone() }));
        let mut stream = TcpStream::connect(registry.addr()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        assert!(registry.wait_until(|log| log.first().is_some_and(|record| record.body_bytes == 10)));
        assert!(!registry.requests()[0].finished);
        gate.open();
        assert_eq!(finish(&mut stream).body, blob);
    }

    #[test]
    fn a_hanging_answer_sends_nothing_before_the_gate_opens() {
        let (registry, path, blob) = served();
        let gate = Gate::new();
        registry.faults().add(Rule::new(Target::Blobs, Fault::Hang(gate.clone())));
        let mut stream = TcpStream::connect(registry.addr()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        assert!(registry.wait_until(|log| log.len() == 1));
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        gate.open();
        assert_eq!(finish(&mut stream).body, blob);
    }

    #[test]
    fn dropping_the_registry_frees_what_hangs_or_never_ends() {
        let (registry, path, _) = served();
        let faults = registry.faults();
        faults.add(Rule::new(Target::Blobs, Fault::Hang(Gate::new())).once());
        faults.add(Rule::new(Target::Blobs, Fault::Stall { after: 1, gate: Gate::new() }).skip(1).once());
        faults.add(Rule::new(Target::Blobs, Fault::Endless).skip(2).once());
        faults.add(Rule::new(Target::Blobs, Fault::Pace(1)).skip(3));
        let streams: Vec<TcpStream> = (1..=4)
            .map(|number| {
                let mut stream = TcpStream::connect(registry.addr()).unwrap();
                write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
                assert!(registry.wait_until(|log| log.len() == number));
                stream
            })
            .collect();
        let idle = TcpStream::connect(registry.addr()).unwrap();
        drop(registry);
        drop((streams, idle));
    }

    #[test]
    fn an_endless_body_outlasts_the_blob() {
        let (registry, path, blob) = served();
        registry.faults().add(Rule::new(Target::Any, Fault::Endless));
        let mut stream = TcpStream::connect(registry.addr()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        let mut body = vec![0; blob.len() * 3];
        stream.read_exact(&mut body).unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("Content-Length"));
    }

    #[test]
    fn redirects_carry_tickets_that_expire() {
        let (registry, path, blob) = served();
        let (target, ..) = served();
        let tickets = Tickets::new(1);
        registry.faults().add(Rule::new(
            Target::Blobs,
            Fault::Redirect {
                status: 307,
                to: RedirectTo::SamePathAt(target.base_url()),
                tickets: Some(tickets.clone()),
            },
        ));
        target.faults().add(Rule::new(Target::Blobs, Fault::NeedTicket(tickets)));
        let reply = ask(&registry, "GET", &path, "");
        assert_eq!(reply.status, 307);
        let location = reply.header("location").unwrap().strip_prefix(&target.base_url()).unwrap();
        assert_eq!(location, format!("{path}?ticket=1").replace("=1", "=ticket-1"));
        assert_eq!(ask(&target, "GET", location, "").body, blob);
        assert_eq!(ask(&target, "GET", location, "").status, 403);
        assert_eq!(ask(&target, "GET", &path, "").status, 403);
    }

    #[test]
    fn faults_are_joined_and_end_when_cleared() {
        let (registry, path, blob) = served();
        registry.faults().add(Rule::new(Target::Blobs, Fault::Chunked));
        registry.faults().add(Rule::new(Target::Blobs, Fault::Truncate { after: 4 }).once());
        assert_eq!(ask(&registry, "GET", &path, "").body, [b"4\r\n", &blob[..4], b"\r\n"].concat());
        assert!(ask(&registry, "GET", &path, "").body.ends_with(b"\r\n0\r\n\r\n"));
        registry.faults().clear();
        assert_eq!(ask(&registry, "GET", &path, "").body, blob);
    }

    #[test]
    fn a_closing_answer_ends_the_connection_without_saying_so() {
        let (registry, path, blob) = served();
        registry.faults().add(Rule::new(Target::Any, Fault::Close));
        let mut stream = TcpStream::connect(registry.addr()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        let reply = finish(&mut stream);
        assert_eq!((reply.header("connection"), reply.body.clone()), (None, blob.to_vec()));
    }

    #[test]
    fn tokens_come_from_the_realm_and_open_the_registry() {
        let tokens = TokenService::new(TokenRules::default());
        let issuer = Registry::start_with(Settings { tokens: Some(tokens.clone()), ..Settings::default() }).unwrap();
        let realm = Realm::At(format!("{}/token", issuer.base_url()));
        let (registry, path, blob) = served();
        registry.set_access(Access::Bearer { tokens: tokens.clone(), realm });
        let reply = ask(&registry, "GET", &path, "");
        assert_eq!(reply.status, 401);
        assert!(reply.header("www-authenticate").unwrap().contains(&issuer.base_url()));
        let token = ask(&issuer, "GET", "/token?scope=repository:a/b:pull", "").body;
        let token: serde_json::Value = serde_json::from_slice(&token).unwrap();
        let bearer = format!("Authorization: Bearer {}\r\n", token["token"].as_str().unwrap());
        assert_eq!(ask(&registry, "GET", &path, &bearer).body, blob);
        tokens.expire_tokens();
        assert_eq!(ask(&registry, "GET", &path, &bearer).status, 401);
        registry.set_access(Access::Basic { user: "alice".to_owned(), password: "s3cret".to_owned() });
        let basic = "Authorization: Basic YWxpY2U6czNjcmV0\r\n";
        assert_eq!(ask(&registry, "GET", &path, basic).body, blob);
        assert_eq!(ask(&registry, "GET", "/v2/", "").header("www-authenticate"), Some("Basic realm=\"loopback\""));
    }

    #[test]
    fn names_for_users_lead_here() {
        let (registry, ..) = served();
        let digest = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(registry.reference("a/b", "1"), format!("{}/a/b:1", registry.addr()));
        assert_eq!(registry.pinned("a/b", &digest), format!("{}/a/b@{digest}", registry.addr()));
        assert!(registry.addr().ip().is_loopback());
    }
}
