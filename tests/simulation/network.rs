//! The network of a simulation: one image, and everything that can be wrong between it and its readers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use peelfs::descriptor::Descriptor;
use peelfs::digest::Digest;
use peelfs::offsets::BlobOffset;
use peelfs::source::outage::{Failing, Outages};
use peelfs::source::registry::Clock;
use peelfs::source::{BlobSource, BoxFuture, ByteStream, SourceError};
use peelfs::trust::Untrusted;
use peelfs_loopback::image::Image;
use tokio::time::Instant;

/// What is wrong; numbers are places, counted round and round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trouble {
    /// Connections are refused.
    Down,
    /// No answer comes.
    Hangs,
    /// Bodies end after so many bytes.
    Cuts(u64),
    /// One bit of each body is wrong.
    Flips(u64),
    /// Other bytes of the blob come than those that were asked for.
    Misplaces(u64),
    /// Fewer bytes come, or more, and that is said to be all.
    Miscounts(u64),
    /// Not for us.
    Refuses,
    /// Everything comes, but slowly; this is no reason for any error.
    Slow,
}

impl Trouble {
    pub(crate) fn lies(self) -> bool {
        matches!(self, Self::Flips(_) | Self::Misplaces(_) | Self::Miscounts(_))
    }
}

/// What all processes are connected to.
#[derive(Debug)]
pub(crate) struct Network {
    root: Descriptor,
    documents: HashMap<Digest, Bytes>,
    blobs: HashMap<Digest, Bytes>,
    state: Mutex<State>,
    /// Counts what happens, so that it can be seen when nothing does.
    activity: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// What is wrong, and with which blob if not with all.
    trouble: Option<(Trouble, Option<Digest>)>,
    /// When something other than slowness was wrong last.
    ended: Option<Instant>,
}

impl Network {
    pub(crate) fn new(image: &Image, activity: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            root: image.root().clone(),
            documents: image.documents().map(|(digest, _, bytes)| (digest.clone(), bytes.clone())).collect(),
            blobs: image.blobs().map(|(digest, bytes)| (digest.clone(), bytes.clone())).collect(),
            state: Mutex::default(),
            activity: Arc::clone(activity),
        })
    }

    /// From now on this is wrong, with one blob or with all, or nothing.
    pub(crate) fn set_trouble(&self, trouble: Option<(Trouble, Option<Digest>)>) {
        let mut state = self.state.lock().unwrap();
        if state.trouble.as_ref().is_some_and(|(trouble, _)| *trouble != Trouble::Slow) {
            state.ended = Some(Instant::now());
        }
        state.trouble = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.state.lock().unwrap().trouble.as_ref().map(|(trouble, _)| *trouble)
    }

    /// Whether an error of something that began at `begun` may be this network's fault.
    pub(crate) fn excuses(&self, begun: Instant) -> bool {
        let state = self.state.lock().unwrap();
        let now = state.trouble.as_ref().is_some_and(|(trouble, _)| *trouble != Trouble::Slow);
        now || state.ended.is_some_and(|ended| ended + AFTERMATH > begun)
    }

    fn trouble_with(&self, blob: &Digest) -> Option<Trouble> {
        self.activity.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let (trouble, with) = state.trouble.as_ref()?;
        with.as_ref().is_none_or(|with| with == blob).then_some(*trouble)
    }
}

/// One process's connection to the network. It tries again as the registry client does.
pub(crate) struct Connection {
    network: Arc<Network>,
    outages: Outages,
}

/// Simulated time: that of the runtime, which only the test advances.
#[derive(Debug)]
struct SimulatedClock(Instant);

impl Clock for SimulatedClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

impl Connection {
    pub(crate) fn new(network: &Arc<Network>) -> Arc<Self> {
        let outages = Outages::new(Arc::new(SimulatedClock(Instant::now())));
        Arc::new(Self { network: Arc::clone(network), outages })
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        let place = self.name().to_owned();
        let missing = || SourceError::NotFound { what: descriptor.digest.to_string(), place, said: None, hint: None };
        self.network.documents.get(&descriptor.digest).cloned().ok_or_else(missing)
    }

    fn transfer(&self, blob: &Descriptor, wanted: Range<u64>) -> Transfer {
        Transfer {
            network: Arc::clone(&self.network),
            outages: self.outages.clone(),
            blob: blob.digest.clone(),
            bytes: self.network.blobs[&blob.digest].clone(),
            wanted,
            since_cut: 0,
            tries: 0,
            failing: None,
        }
    }

    /// Returns when a document may come, with what is wrong with it.
    async fn asked(&self, descriptor: &Descriptor) -> Result<Option<Trouble>, SourceError> {
        let mut tries = 0;
        loop {
            match self.network.trouble_with(&descriptor.digest) {
                Some(Trouble::Down | Trouble::Cuts(_)) => {}
                Some(Trouble::Hangs) => tokio::time::sleep(SILENCE).await,
                Some(Trouble::Refuses) => return Err(refused(&descriptor.digest)),
                other => return Ok(other),
            }
            tries += 1;
            if tries == TRIES {
                return Err(away(&descriptor.digest));
            }
            tokio::time::sleep(Duration::from_millis(50 << tries)).await;
        }
    }
}

impl BlobSource for Connection {
    fn name(&self) -> &str {
        "the network"
    }

    fn outages(&self) -> Option<&Outages> {
        Some(&self.outages)
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        Box::pin(async {
            let root = &self.network.root;
            self.asked(root).await.map(|_| root.clone())
        })
    }

    // What a tag names is what the registry says: whether that is a lie cannot be told.
    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        Box::pin(async {
            let root = self.head().await?;
            let bytes = self.document(&root)?;
            Ok((root, Untrusted::new(bytes)))
        })
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(async move {
            let trouble = self.asked(descriptor).await?;
            let bytes = self.document(descriptor)?;
            Ok(Untrusted::new(match trouble {
                Some(Trouble::Flips(at)) => flipped(&bytes, at),
                Some(Trouble::Miscounts(at)) => bytes.slice(..at as usize % bytes.len()),
                _ => bytes,
            }))
        })
    }

    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        let transfer = self.transfer(blob, range.start.0..range.end.0);
        let stream = futures_util::stream::unfold(Some(transfer), |transfer| async {
            let mut transfer = transfer?;
            match transfer.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(transfer))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Box::pin(async { Ok(ByteStream::new(stream)) })
    }
}

/// A range of a blob in flight.
struct Transfer {
    network: Arc<Network>,
    outages: Outages,
    blob: Digest,
    bytes: Bytes,
    wanted: Range<u64>,
    /// Bytes that came since the connection was made.
    since_cut: u64,
    tries: u32,
    failing: Option<Failing>,
}

impl Transfer {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.wanted.is_empty() {
            let trouble = self.network.trouble_with(&self.blob);
            let at = self.wanted.start as usize;
            let length = PIECE.min((self.wanted.end - self.wanted.start) as usize);
            let mut piece = self.bytes.slice(at..at + length);
            let fault = match trouble {
                Some(Trouble::Refuses) => return Err(refused(&self.blob)),
                Some(Trouble::Down) => Some("connection refused"),
                Some(Trouble::Hangs) => {
                    tokio::time::sleep(SILENCE).await;
                    Some("no answer")
                }
                // A server that hangs up at once brings nothing; one that hangs up later is taken up again.
                Some(Trouble::Cuts(after)) if self.since_cut >= after % (4 * PIECE as u64) => Some("cut"),
                _ => None,
            };
            if let Some(fault) = fault {
                self.set_back(fault).await?;
                continue;
            }
            match trouble {
                Some(Trouble::Slow) => tokio::time::sleep(Duration::from_millis(5)).await,
                Some(Trouble::Flips(at)) => piece = flipped(&piece, at),
                Some(Trouble::Misplaces(at)) => {
                    let from = at as usize % (1 + self.bytes.len() - length);
                    piece = self.bytes.slice(from..from + length);
                }
                Some(Trouble::Miscounts(at)) if at % 2 == 0 => {
                    self.wanted.start = self.wanted.end;
                    return Ok((at % 4 == 0).then(|| piece.slice(..at as usize % length)));
                }
                Some(Trouble::Miscounts(_)) => {
                    self.wanted.start += length as u64;
                    return Ok(Some([&piece[..], b"more"].concat().into()));
                }
                _ => {}
            }
            self.wanted.start += length as u64;
            self.since_cut += length as u64;
            self.tries = 0;
            self.failing = None;
            self.outages.retry_soon();
            return Ok(Some(piece));
        }
        Ok(None)
    }

    async fn set_back(&mut self, fault: &str) -> Result<(), SourceError> {
        self.since_cut = 0;
        self.tries += 1;
        let what = format!("blob {}", self.blob);
        self.failing = Some(self.outages.failed(self.failing.take(), &what, Some(&self.blob), fault));
        let pause = Duration::from_millis((50 << self.tries.min(10)).min(5_000));
        if self.outages.retries_without_limit() {
            self.outages.pause(pause).await;
            return Ok(());
        }
        if self.tries == TRIES {
            return Err(away(&self.blob));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn away(what: &Digest) -> SourceError {
    let (what, place, why) = (what.to_string(), "the network".to_owned(), "it is away".to_owned());
    SourceError::Unreachable { what, place, why, hint: None }
}

fn refused(what: &Digest) -> SourceError {
    let (what, place) = (what.to_string(), "the network".to_owned());
    SourceError::Denied { what, place, said: "401".to_owned(), tried: "anonymous".to_owned() }
}

fn flipped(bytes: &Bytes, at: u64) -> Bytes {
    let mut wrong = bytes.to_vec();
    let bit = at % (wrong.len() as u64 * 8);
    wrong[(bit / 8) as usize] ^= 1 << (bit % 8);
    wrong.into()
}

/// Bytes in a piece: an odd number, so that nothing ends where it would be convenient.
const PIECE: usize = 7919;
/// Until a server that does not answer is given up.
const SILENCE: Duration = Duration::from_secs(20);
const TRIES: u32 = 6;
/// So long after a trouble, a reader may still be told of it: what failed is tried again after 32 seconds, or when a
/// server that did not answer has been given up.
const AFTERMATH: Duration = Duration::from_secs(60);
