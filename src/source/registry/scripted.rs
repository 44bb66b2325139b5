//! A server that follows a test's script exactly and records its requests.
//!
//! Real servers cannot cut a body at a chosen byte or lie about a range.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A request as received.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// First and last byte of a `Range` header.
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().unwrap(), last.parse().unwrap()))
    }
}

/// The response, byte for byte, and what happens to the connection afterwards.
pub(super) struct Response {
    bytes: Vec<u8>,
    then: Then,
    held: Option<Hold>,
}

/// An offset, and a function that returns when the bytes from there may be sent.
type Hold = (usize, Box<dyn FnOnce() + Send>);

enum Then {
    Keep,
    HangUp,
    Hang,
    /// Sends the bytes again and again until the client disconnects.
    Repeat(Vec<u8>),
    /// Waits, then sends the bytes and hangs up.
    Last(Box<dyn FnOnce() + Send>, Vec<u8>),
}

impl Response {
    /// A response with the right Content-Length.
    pub(super) fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let length = body.len().to_string();
        let mut response = Self::head(status, &[headers, &[("Content-Length", &length)]].concat());
        response.bytes.extend_from_slice(body);
        response
    }

    /// A response with these headers only, without a body yet.
    pub(super) fn head(status: u16, headers: &[(&str, &str)]) -> Self {
        let mut text = format!("HTTP/1.1 {status} Scripted\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        Self { bytes: text.into_bytes(), then: Then::Keep, held: None }
    }

    /// Adds a header.
    pub(super) fn labelled(mut self, name: &str, value: &str) -> Self {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 2;
        self.bytes.splice(end..end, format!("{name}: {value}\r\n").into_bytes());
        self
    }

    /// Sends nothing.
    pub(super) fn nothing() -> Self {
        Self { bytes: Vec::new(), then: Then::Keep, held: None }
    }

    /// Sends nothing before `wait` returns, or only the head with `head_first`.
    pub(super) fn held(self, head_first: bool, wait: impl FnOnce() + Send + 'static) -> Self {
        let head = self.bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |end| end + 4);
        Self { held: Some((if head_first { head } else { 0 }, Box::new(wait))), ..self }
    }

    /// Appends these bytes.
    pub(super) fn and(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(super) fn then_hang_up(self) -> Self {
        Self { then: Then::HangUp, ..self }
    }

    /// Keeps the connection open and sends nothing more.
    pub(super) fn then_hang(self) -> Self {
        Self { then: Then::Hang, ..self }
    }

    pub(super) fn then_repeat(self, bytes: &[u8]) -> Self {
        Self { then: Then::Repeat(bytes.to_vec()), ..self }
    }

    /// Calls `wait`, then sends these bytes and hangs up.
    pub(super) fn then_last(self, wait: impl FnOnce() + Send + 'static, bytes: &[u8]) -> Self {
        Self { then: Then::Last(Box::new(wait), bytes.to_vec()), ..self }
    }
}

/// A listening server; its threads end with the test process.
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    /// Answers every request with what `script` returns.
    pub(super) fn start(script: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::start_with(None, script)
    }

    /// The same over TLS.
    pub(super) fn start_tls(
        tls: rustls::ServerConfig,
        script: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(Arc::new(tls)), script)
    }

    fn start_with(
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let script = Arc::new(script);
        let (log, count) = (requests.clone(), connections.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, log, tls) = (script.clone(), log.clone(), tls.clone());
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // Clients that disconnect early are part of many tests.
                    let _ = stream.and_then(|stream| match tls {
                        None => serve(stream, &*script, &log),
                        Some(tls) => {
                            let session = rustls::ServerConnection::new(tls).unwrap();
                            serve(rustls::StreamOwned::new(session, stream), &*script, &log)
                        }
                    });
                });
            }
        });
        Self { address, requests, connections }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve(
    stream: impl Read + Write,
    script: &dyn Fn(&Request) -> Response,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Request { method, target, headers, body: String::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        request.body = String::from_utf8(body).unwrap();
        log.lock().unwrap().push(request.clone());
        let response = script(&request);
        let (first, wait) = response.held.map_or((response.bytes.len(), None), |(first, wait)| (first, Some(wait)));
        reader.get_mut().write_all(&response.bytes[..first])?;
        reader.get_mut().flush()?;
        wait.into_iter().for_each(|wait| wait());
        reader.get_mut().write_all(&response.bytes[first..])?;
        reader.get_mut().flush()?;
        match response.then {
            Then::Keep => {}
            Then::HangUp => return Ok(()),
            Then::Hang => {
                // Returns when the client closes.
                reader.read_line(&mut String::new())?;
                return Ok(());
            }
            Then::Repeat(bytes) => loop {
                reader.get_mut().write_all(&bytes)?;
            },
            Then::Last(wait, bytes) => {
                wait();
                return reader.get_mut().write_all(&bytes);
            }
        }
    }
}
