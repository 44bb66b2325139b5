//! A small HTTP server for what a process shows of itself: metrics, and the page of `peelfs web`.
//!
//! It answers GET and HEAD, reads no bodies, and holds few connections; those that send nothing make room for others. A web
//! page of another site that a user has open must not get at it: on loopback, a request is refused unless its `Host` is an
//! address or name of loopback, since a name of that site may have been made to lead there (DNS rebinding).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::sync::lock;

pub use hyper::http::request::Parts;
pub use hyper::{StatusCode, header};

/// A response.
pub type Response = hyper::Response<Full<Bytes>>;

/// Answers requests; may block for a short time.
pub type Handler = Arc<dyn Fn(&Parts) -> Response + Send + Sync>;

/// A server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: AbortHandle,
}

impl Server {
    /// Listens on `address`, whose port may be 0. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`io::Error`], as if another process listens there.
    pub async fn bind(address: SocketAddr, handler: Handler) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(listener, address, handler)).abort_handle();
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response with this status, media type and body.
pub fn response(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A response of a line of text.
pub fn plain(status: StatusCode, line: &str) -> Response {
    response(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// Not found.
pub fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "there is nothing here")
}

async fn serve(listener: TcpListener, own: SocketAddr, handler: Handler) {
    let mut open = Connections::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        open.make_room().await;
        let (handler, state) = (Arc::clone(&handler), Arc::new(Mutex::new(State::New)));
        let of = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let (handler, of) = (Arc::clone(&handler), Arc::clone(&of));
                async move {
                    *lock(&of) = State::Busy;
                    let answer = answer(request, own, handler).await;
                    *lock(&of) = State::Answered(Instant::now());
                    answer
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES);
            let served = http.serve_connection(TokioIo::new(stream), answer);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIVES, served).await {
                tracing::debug!(%error, "a connection has failed");
            }
        });
        open.0.push_back((state, serving.abort_handle()));
    }
}

/// Open connections, the oldest first. They end when this is dropped.
#[derive(Default)]
struct Connections(VecDeque<(Arc<Mutex<State>>, AbortHandle)>);

/// What a connection does.
#[derive(Clone, Copy, Debug)]
enum State {
    /// It has sent no request yet.
    New,
    /// Its request is being answered.
    Busy,
    /// It was answered; the response may still be on its way.
    Answered(Instant),
}

impl Connections {
    /// Makes room for one more. Those that keep connections open and send nothing must not keep others out.
    async fn make_room(&mut self) {
        loop {
            self.0.retain(|(_, serving)| !serving.is_finished());
            if self.0.len() < CONNECTIONS {
                return;
            }
            let states: Vec<State> = self.0.iter().map(|(state, _)| *lock(state)).collect();
            let is_new = |state: &State| matches!(state, State::New);
            let is_idle = |state: &State| matches!(state, State::Answered(at) if at.elapsed() >= SENT_WITHIN);
            let idle = states.iter().position(is_new).or_else(|| states.iter().position(is_idle));
            match idle.and_then(|at| self.0.remove(at)) {
                Some((_, serving)) => serving.abort(),
                None => tokio::time::sleep(BREATH).await,
            }
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(|(_, serving)| serving.abort());
    }
}

async fn answer(request: Request<Incoming>, own: SocketAddr, handler: Handler) -> Result<Response, Infallible> {
    let (parts, _) = request.into_parts();
    if own.ip().is_loopback() && !is_loopback(parts.headers.get(HOST), &parts.uri) {
        return Ok(plain(StatusCode::MISDIRECTED_REQUEST, "this server is for names and addresses of loopback only"));
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered"));
    }
    let answered = tokio::task::spawn_blocking(move || handler(&parts)).await;
    Ok(answered.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, "answering this request failed")))
}

/// Whether a request names loopback as its host.
fn is_loopback(host: Option<&HeaderValue>, uri: &Uri) -> bool {
    let named = match uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => host.and_then(|host| host.to_str().ok()?.parse().ok()),
    };
    named.is_some_and(|named: hyper::http::uri::Authority| {
        let host = named.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    })
}

/// Parses `PORT`, which is one of loopback, or `ADDRESS:PORT`.
///
/// # Errors
/// What is wrong.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    text.parse().map_err(|_| "write `PORT`, for loopback, or `ADDRESS:PORT`, as in `127.0.0.1:9464`".to_owned())
}

/// Limit of connections; a further one takes the place of the oldest that has sent no request, or has nothing to do.
const CONNECTIONS: usize = 32;
/// Time limit for the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Limit of a connection's buffer, which holds the head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// Time limit for a connection; clients open another one.
const CONNECTION_LIVES: Duration = Duration::from_secs(600);
/// After this time, a response has been sent, and its connection is idle.
const SENT_WITHIN: Duration = Duration::from_secs(10);
const BREATH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Write as _};

    use super::*;

    /// As curl does it, on a connection of its own.
    fn get(address: SocketAddr) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_send_nothing_make_room_for_others() {
        let handler: Handler = Arc::new(|_| plain(StatusCode::OK, "here"));
        let server = Server::bind(([127, 0, 0, 1], 0).into(), handler).await.unwrap();
        let address = server.address();
        let asked = tokio::task::spawn_blocking(move || {
            let half_open = |number: usize| {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                if number.is_multiple_of(2) {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
                }
                stream
            };
            let open: Vec<_> = (0..4 * CONNECTIONS).map(half_open).collect();
            let begun = Instant::now();
            let answers = [(); 3].map(|()| get(address));
            drop(open);
            (answers, begun.elapsed())
        });
        let (answers, took) = asked.await.unwrap();
        assert!(answers.iter().all(|answer| answer.ends_with("here\n")), "{answers:?}");
        assert!(took < HEAD_WITHIN, "{took:?}");
    }

    #[test]
    fn only_names_of_loopback_are_taken_for_it() {
        let is = |host: &str| is_loopback(Some(&HeaderValue::from_str(host).unwrap()), &Uri::from_static("/"));
        for host in ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:80", "127.9.9.9", "[::1]", "[::1]:80"] {
            assert!(is(host), "{host}");
        }
        let others =
            ["", "example.org", "127.0.0.1.example.org", "localhost.example.org", "10.0.0.1", "[::2]:1", "a b", "0"];
        for host in others {
            assert!(!is(host), "{host}");
        }
        assert!(!is_loopback(None, &Uri::from_static("/")));
        let local = HeaderValue::from_static("localhost");
        assert!(!is_loopback(Some(&local), &Uri::from_static("http://example.org/")), "the target counts first");
    }

    #[test]
    fn an_address_may_be_a_port_alone() {
        for text in ["9464", ":9464", "127.0.0.1:9464"] {
            assert_eq!(parse_address(text).unwrap().to_string(), "127.0.0.1:9464", "{text}");
        }
        assert_eq!(parse_address("[::1]:0").unwrap().to_string(), "[::1]:0");
        for text in ["", "localhost:1", "70000", "1.2.3.4", "::1"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }
}
