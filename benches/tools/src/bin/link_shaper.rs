//! A slow link on loopback: paces and delays TCP on its way to a registry, and counts what passes.
//!
//!     cargo run --release -p peelfs-bench-tools --bin link_shaper -- --upstream 127.0.0.1:5000 --rtt-ms 20 --mbit 200
//!
//! It prints the address it listens on. Each line on stdin is answered by one line of JSON, what passed
//! since the line before; the end of stdin ends it.
//!
//! The model: each direction is one link that all connections share. Bytes leave it at `--mbit`
//! (10⁶ bits a second, 0 for no bound) and arrive half a round trip later. A new connection waits one
//! round trip before it carries anything, as TCP does. With `--mbit-each`, a connection gets no more than
//! that of either direction, as from a server that gives each its share, or on a long way with loss. There
//! is no loss itself, no jitter, no slow start and no TLS. Requests are counted as HTTP/1.1 without bodies, which is what a client that pulls sends.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;

/// A slow link on loopback, with counters.
#[derive(Parser)]
struct Args {
    /// Where connections are passed on to
    #[arg(long, value_name = "ADDRESS")]
    upstream: SocketAddr,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Round trip, in milliseconds
    #[arg(long, default_value_t = 0)]
    rtt_ms: u64,
    /// Bits a second of each direction, in millions; 0 for no bound
    #[arg(long, default_value_t = 0)]
    mbit: u64,
    /// Bits a second that one connection gets in each direction, in millions; 0 for no bound
    #[arg(long, default_value_t = 0)]
    mbit_each: u64,
}

/// What passed.
#[derive(Clone, Default, Serialize)]
struct Counters {
    connections: u64,
    /// Requests of any method.
    requests: u64,
    /// HEAD requests.
    heads: u64,
    /// Requests for blobs.
    blob_requests: u64,
    /// Bytes that came down, heads of responses included.
    bytes: u64,
    /// Those of them that answered a request for a blob.
    blob_bytes: u64,
    /// The same by the blob's digest.
    by_blob: BTreeMap<String, u64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("{}", listener.local_addr()?);
    let shaper = Arc::new(Shaper {
        upstream: args.upstream,
        rtt: Duration::from_millis(args.rtt_ms),
        up: Link::new(args.mbit),
        down: Link::new(args.mbit),
        mbit_each: args.mbit_each,
        counters: Mutex::default(),
    });
    let accepting = Arc::clone(&shaper);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let shaper = Arc::clone(&accepting);
            thread::spawn(move || {
                if let Err(error) = shaper.carry(&client) {
                    eprintln!("link_shaper: {error:#}");
                }
            });
        }
    });
    for line in std::io::stdin().lock().lines() {
        line?;
        let counted = std::mem::take(&mut *shaper.counted());
        println!("{}", serde_json::to_string(&counted)?);
    }
    Ok(())
}

struct Shaper {
    upstream: SocketAddr,
    rtt: Duration,
    up: Link,
    down: Link,
    mbit_each: u64,
    counters: Mutex<Counters>,
}

impl Shaper {
    /// Carries one connection until both sides have ended.
    fn carry(&self, client: &TcpStream) -> anyhow::Result<()> {
        let accepted = Instant::now();
        let server = &TcpStream::connect(self.upstream).with_context(|| format!("cannot reach {}", self.upstream))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        self.counted().connections += 1;
        let (half, never) = (self.rtt / 2, Instant::now());
        let asked = &Mutex::new(None);
        thread::scope(|scope| {
            let mut heads = Heads::default();
            scope.spawn(move || {
                let links = [&self.up, &Link::new(self.mbit_each)];
                pump(links, half, accepted + self.rtt, client, server, |bytes| {
                    heads.feed(bytes, |method, path| self.count_request(method, path, asked));
                });
            });
            pump([&self.down, &Link::new(self.mbit_each)], half, never, server, client, |bytes| {
                let mut counters = self.counted();
                counters.bytes += bytes.len() as u64;
                // No client pipelines: bytes that come down answer the last request that went up.
                if let Some(digest) = &*asked.lock().unwrap_or_else(PoisonError::into_inner) {
                    counters.blob_bytes += bytes.len() as u64;
                    *counters.by_blob.entry(String::clone(digest)).or_default() += bytes.len() as u64;
                }
            });
        });
        Ok(())
    }

    fn count_request(&self, method: &str, path: &str, asked: &Mutex<Option<String>>) {
        let digest = path.split_once("/blobs/").map(|(_, digest)| digest.to_owned());
        let blob = digest.is_some();
        *asked.lock().unwrap_or_else(PoisonError::into_inner) = digest;
        let mut counters = self.counted();
        counters.requests += 1;
        counters.heads += u64::from(method == "HEAD");
        counters.blob_requests += u64::from(blob);
    }

    fn counted(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves bytes from one socket over the shared link and the connection's own to the other, until one of
/// them ends.
fn pump(
    links: [&Link; 2],
    delay: Duration,
    not_before: Instant,
    mut from: &TcpStream,
    to: &TcpStream,
    mut seen: impl FnMut(&[u8]),
) {
    let (sender, receiver) = sync_channel(FLYING);
    thread::scope(|scope| {
        scope.spawn(move || deliver(&receiver, from, to));
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            seen(&buffer[..read]);
            let left = links.into_iter().map(|link| link.send(read)).fold(not_before, Instant::max);
            if sender.send((left + delay, buffer[..read].to_vec())).is_err() {
                break;
            }
            // A little ahead of the link, so that it never idles, but no further, so that connections
            // take turns.
            sleep_until(left.checked_sub(AHEAD).unwrap_or(left));
        }
        drop::<SyncSender<_>>(sender);
    });
}

/// Hands over what has arrived.
fn deliver(arriving: &Receiver<(Instant, Vec<u8>)>, from: &TcpStream, mut to: &TcpStream) {
    // The default of 50 µs is a good part of the time a chunk takes. Without it the link is a little slower.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
    while let Ok((due, bytes)) = arriving.recv() {
        sleep_until(due);
        if to.write_all(&bytes).is_err() {
            // A reader must not wait for bytes that are not wanted. It may have ended already.
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn sleep_until(then: Instant) {
    thread::sleep(then.saturating_duration_since(Instant::now()));
}

/// One direction, shared by all connections.
struct Link {
    bits_per_second: u64,
    free_from: Mutex<Instant>,
}

impl Link {
    fn new(mbit: u64) -> Self {
        Self { bits_per_second: mbit.saturating_mul(1_000_000), free_from: Mutex::new(Instant::now()) }
    }

    /// Queues bytes; the moment at which the last of them has left.
    fn send(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        if self.bits_per_second == 0 {
            return now;
        }
        let mut free_from = self.free_from.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = bytes as f64 * 8.0 / self.bits_per_second as f64;
        *free_from = (*free_from).max(now) + Duration::from_secs_f64(takes);
        *free_from
    }
}

/// The request heads in what a client sends, however it is cut.
#[derive(Default)]
struct Heads {
    open: Vec<u8>,
}

impl Heads {
    fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(&str, &str)) {
        self.open.extend_from_slice(bytes);
        while let Some(end) = self.open.windows(END.len()).position(|window| window == END) {
            let head = String::from_utf8_lossy(&self.open[..end]).into_owned();
            self.open.drain(..end + END.len());
            let mut words = head.split_ascii_whitespace();
            if let (Some(method), Some(path)) = (words.next(), words.next()) {
                found(method, path);
            }
        }
        if self.open.len() > HEAD_LIMIT {
            self.open.clear();
        }
    }
}

const END: &[u8] = b"\r\n\r\n";
const HEAD_LIMIT: usize = 64 << 10;
const CHUNK: usize = 32 << 10;
/// Chunks of one connection that have left and not arrived.
const FLYING: usize = 1024;
const AHEAD: Duration = Duration::from_millis(4);
