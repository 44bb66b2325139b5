//! Faults: which requests are answered wrongly, and how.
//! A test declares faults in advance ([`Rule`]: these requests, that many of them, this
//! [`Fault`]) and the registry obeys. Nothing depends on time: what must happen "while a request hangs"
//! waits for a [`Gate`] that the test opens.
//!
//! Every rule that matches a request acts on its answer, in the order the rules were added, so faults
//! can be joined: chunked *and* cut, redirected *and* slow at the target.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::auth::Tickets;
use super::http::Request;
use peelfs::digest::Digest;

/// One way of answering wrongly.
///
/// Offsets named `after` count the body bytes of one answer; only [`Fault::FlipBit`] counts in the blob.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another status with these headers and an error document instead of the answer.
    Status {
        /// The status, as 429.
        status: u16,
        /// Headers to add, as `Retry-After`.
        headers: Vec<(String, String)>,
        /// The body; empty for the registry's usual error document.
        body: Bytes,
    },
    /// One more header, replacing one of that name.
    Header(String, String),
    /// The body ends after this many bytes, with an ordinary close; the promised length stays.
    Truncate {
        /// Body bytes sent.
        after: u64,
    },
    /// The connection is reset (RST) after this many body bytes.
    Reset {
        /// Body bytes sent.
        after: u64,
    },
    /// The connection is reset (RST) before a byte of the answer.
    ResetBeforeHeaders,
    /// A range request is answered 200 with everything.
    IgnoreRange,
    /// A 206 whose `Content-Range` is shifted by this many bytes; the body is the requested one.
    ShiftContentRange(i64),
    /// A 206 with the right `Content-Range` and bytes from this much later in the blob.
    ShiftBody(u64),
    /// A 206 without `Content-Range`.
    NoContentRange,
    /// A `Content-Length` that is wrong by this many bytes; the connection closes after the body.
    ContentLength(i64),
    /// No length at all: the body ends when the connection does.
    UntilClose,
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Other bytes than the blob's; ranges are cut out of them.
    OtherBytes(Bytes),
    /// One flipped bit, if that byte of the blob is sent.
    FlipBit {
        /// The byte, counted in the blob.
        at: u64,
        /// The bit, 0 to 7.
        bit: u8,
    },
    /// This many body bytes, then nothing until the gate opens.
    Stall {
        /// Body bytes sent before.
        after: u64,
        /// What opens it.
        gate: Gate,
    },
    /// Not a byte of the answer until the gate opens.
    Hang(Gate),
    /// The body at this many bytes per second; for trying things by hand, as it takes real time.
    Pace(u64),
    /// A redirect to somewhere else.
    Redirect {
        /// The status, as 307.
        status: u16,
        /// Where to.
        to: RedirectTo,
        /// Adds a ticket to the URL that [`Fault::NeedTicket`] at the target asks for.
        tickets: Option<Tickets>,
    },
    /// 403 unless the query has a ticket that is still good.
    NeedTicket(Tickets),
    /// The body compressed, with `Content-Encoding: gzip`, though the client did not accept that.
    Gzip,
    /// The answer's head and then its body over and over, without a length, until the client leaves.
    Endless,
    /// The connection closes after the answer, without `Connection: close`.
    Close,
}

impl Fault {
    /// A bare status, as 404 or 500.
    pub fn status(status: u16) -> Self {
        Self::Status { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// 429 with `Retry-After`, in seconds or as a date.
    pub fn too_many(retry_after: &str) -> Self {
        Self::Status {
            status: 429,
            headers: vec![("Retry-After".to_owned(), retry_after.to_owned())],
            body: Bytes::new(),
        }
    }

    /// 307 to the same path at `base` (`http://127.0.0.1:PORT`).
    pub fn redirect(base: impl Into<String>) -> Self {
        Self::Redirect { status: 307, to: RedirectTo::SamePathAt(base.into()), tickets: None }
    }
}

/// Where a redirect leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RedirectTo {
    /// The request's own path and query after this scheme and authority.
    SamePathAt(String),
    /// Exactly this `Location`, whatever it is.
    Exactly(String),
}

/// The requests of a rule.
#[derive(Clone)]
pub enum Target {
    /// Every request.
    Any,
    /// `/v2/`, the version check.
    Version,
    /// Every manifest.
    Manifests,
    /// The manifest of this tag or digest.
    Manifest(String),
    /// Every blob.
    Blobs,
    /// This blob.
    Blob(Digest),
    /// `/token`, where tokens are given out.
    Tokens,
    /// Whatever the function says.
    Where(Arc<dyn Fn(&Request) -> bool + Send + Sync>),
}

impl Target {
    /// A target given by a function.
    pub fn matching(test: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        Self::Where(Arc::new(test))
    }

    fn contains(&self, request: &Request) -> bool {
        let path = request.path.as_str();
        match self {
            Self::Any => true,
            Self::Version => path == "/v2/" || path == "/v2",
            Self::Manifests => path.contains("/manifests/"),
            Self::Manifest(reference) => {
                path.rsplit_once("/manifests/").is_some_and(|(_, named)| named == reference.as_str())
            }
            Self::Blobs => path.contains("/blobs/"),
            Self::Blob(digest) => path.rsplit_once("/blobs/").is_some_and(|(_, named)| named == digest.to_string()),
            Self::Tokens => path == "/token",
            Self::Where(test) => test(request),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("Any"),
            Self::Version => f.write_str("Version"),
            Self::Manifests => f.write_str("Manifests"),
            Self::Manifest(reference) => write!(f, "Manifest({reference})"),
            Self::Blobs => f.write_str("Blobs"),
            Self::Blob(digest) => write!(f, "Blob({digest})"),
            Self::Tokens => f.write_str("Tokens"),
            Self::Where(_) => f.write_str("Where(…)"),
        }
    }
}

/// A fault and the requests it strikes: by default all that the target names.
#[derive(Clone, Debug)]
pub struct Rule {
    target: Target,
    method: Option<String>,
    skip: u64,
    times: Option<u64>,
    fault: Fault,
}

impl Rule {
    /// Strikes every request to `target`.
    pub fn new(target: Target, fault: Fault) -> Self {
        Self { target, method: None, skip: 0, times: None, fault }
    }

    /// Only requests of this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Lets the first `count` matching requests pass.
    #[must_use]
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Applies to this many requests, then never again.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }

    /// Strikes one request.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Whether this request is struck; a request that the target names is counted.
    fn strikes(&mut self, request: &Request) -> bool {
        if self.method.as_ref().is_some_and(|method| *method != request.method) || !self.target.contains(request) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.times {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// The plan of one registry, changed while it runs. Clones share the plan.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Rule>>>);

impl Faults {
    /// Adds a rule after those that are there.
    pub fn add(&self, rule: Rule) {
        self.rules().push(rule);
    }

    /// Removes all rules: from now on the registry is honest.
    pub fn clear(&self) {
        self.rules().clear();
    }

    /// The faults that strike this request.
    pub(super) fn strike(&self, request: &Request) -> Vec<Fault> {
        self.rules().iter_mut().filter_map(|rule| rule.strikes(request).then(|| rule.fault.clone())).collect()
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds answers back until it is opened. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Releases all waiting requests, and all later ones.
    pub fn open(&self) {
        *self.lock() = true;
        self.0.changed.notify_all();
    }

    /// Waits until the gate is open or `stopping` is set and [`Gate::wake`] was called.
    pub(super) fn wait(&self, stopping: &AtomicBool) {
        let mut open = self.lock();
        while !*open && !stopping.load(Ordering::SeqCst) {
            open = self.0.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes waiters look at their `stopping` flag again.
    pub(super) fn wake(&self) {
        let _held = self.lock();
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate(open: {})", *self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str) -> Request {
        Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: String::new(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    #[test]
    fn a_rule_counts_only_requests_of_its_target() {
        let faults = Faults::default();
        faults.add(Rule::new(Target::Blobs, Fault::status(500)).method("GET").skip(1).times(2));
        let struck = |method: &str, path: &str| faults.strike(&request(method, path)).len();
        assert_eq!(struck("GET", "/v2/a/manifests/1"), 0);
        assert_eq!(struck("HEAD", "/v2/a/blobs/x"), 0);
        assert_eq!(struck("GET", "/v2/a/blobs/x"), 0);
        assert_eq!(struck("GET", "/v2/a/blobs/y"), 1);
        assert_eq!(struck("GET", "/v2/a/blobs/x"), 1);
        assert_eq!(struck("GET", "/v2/a/blobs/x"), 0);
    }

    #[test]
    fn rules_act_together_in_order() {
        let faults = Faults::default();
        faults.add(Rule::new(Target::Any, Fault::Chunked));
        faults.add(Rule::new(Target::Any, Fault::Truncate { after: 3 }));
        let struck = faults.strike(&request("GET", "/v2/"));
        assert!(matches!(struck[..], [Fault::Chunked, Fault::Truncate { after: 3 }]));
        faults.clear();
        assert!(faults.strike(&request("GET", "/v2/")).is_empty());
    }

    #[test]
    fn targets_name_what_they_say() {
        let digest = Digest::of(peelfs::digest::Algorithm::Sha256, b"x");
        let blob = format!("/v2/a/b/blobs/{digest}");
        let table = [
            (Target::Version, "/v2/", true),
            (Target::Version, "/v2/a/tags/list", false),
            (Target::Manifest("1".to_owned()), "/v2/a/manifests/1", true),
            (Target::Manifest("1".to_owned()), "/v2/a/manifests/11", false),
            (Target::Blob(digest), blob.as_str(), true),
            (Target::Tokens, "/token", true),
            (Target::matching(|r| r.method == "GET"), "/", true),
        ];
        for (target, path, wanted) in table {
            assert_eq!(target.contains(&request("GET", path)), wanted, "{target:?} {path}");
        }
    }
}
