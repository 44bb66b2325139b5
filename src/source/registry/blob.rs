//! Blobs: a range of a blob as a stream that survives the connections it comes over.
//!
//! A body that is cut is asked for again from the last good byte. A server that ignores ranges is
//! read from the start and cut to size. Tries without real progress are counted, so neither a server
//! that always hangs up nor one that sends a byte a minute can hold a reader for ever.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::{Ask, Client, Ranges, Thing, Wanted};
use super::http::{Fault, Reply};
use super::patience::{Subject, Tries};
use super::ranges::{Placement, RangeFault};
use super::token::is_busy;
use crate::digest::Digest;
use crate::source::outage::Listening;
use crate::source::{Outage, SourceError};

/// A try that brought this many bytes did well, and the count of failed ones starts anew.
const PROGRESS: u64 = 64 << 10;
/// Up to this size a transfer waits with the short ones.
pub(super) const SHORT: u64 = 1 << 20;

/// A range of a blob on its way.
pub(super) struct Transfer {
    client: Arc<Client>,
    digest: Digest,
    size: u64,
    what: String,
    /// What is still to come.
    wanted: Range<u64>,
    body: Option<Body>,
    tries: Tries,
    /// Bytes delivered since the last failed try.
    progress: u64,
    /// A server lied about ranges: take whole blobs only.
    whole_only: bool,
    /// The whole blob was asked for, as a range of it was refused.
    tried_whole: bool,
    /// Where it takes its turn; none for parts of something that has its place.
    queue: Option<Arc<Semaphore>>,
}

struct Body {
    reply: Reply,
    placement: Placement,
}

impl Transfer {
    /// As [`Transfer::start`], when others of its kind leave room.
    pub(super) async fn queued(
        client: Arc<Client>,
        digest: Digest,
        size: u64,
        wanted: Range<u64>,
    ) -> Result<Self, SourceError> {
        let queue = Arc::clone(if wanted.end - wanted.start <= SHORT { &client.short } else { &client.long });
        Self::start(client, digest, size, wanted, Some(queue)).await
    }

    /// Asks for the bytes `wanted` (some, inside the blob) and returns when the first answer is good. With a
    /// queue it takes its turn there.
    pub(super) async fn start(
        client: Arc<Client>,
        digest: Digest,
        size: u64,
        wanted: Range<u64>,
        queue: Option<Arc<Semaphore>>,
    ) -> Result<Self, SourceError> {
        let mut tries = Tries::new(client.clock.clone(), &client.deadlines);
        // What cannot be had at present joins those who try it already.
        tries.place = match &queue {
            _ if client.outages.concern(&digest) => Some(place(&client.retrying).await),
            Some(queue) => Some(place(queue).await),
            None => None,
        };
        tries.listening = Some(client.outages.listen(&digest));
        let what = crate::source::blob_name(&digest);
        let mut transfer = Self {
            client,
            digest,
            size,
            what,
            wanted,
            body: None,
            tries,
            progress: 0,
            whole_only: false,
            tried_whole: false,
            queue,
        };
        transfer.listens(Listening::begin);
        transfer.body = Some(transfer.open().await?);
        transfer.listens(|listening| listening.end(0));
        Ok(transfer)
    }

    /// Whether the server took notice of the range.
    pub(super) fn is_ranged(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.placement.ranged)
    }

    /// Wants all of the blob, of a server that has begun to send it whatever was asked for.
    pub(super) fn take_all(&mut self) {
        if let Some(body) = &mut self.body {
            body.placement = Placement { skip: 0, take: self.size, ranged: false };
        }
        self.wanted = 0..self.size;
        if let Some(queue) = self.queue.as_mut().filter(|_| self.size > SHORT) {
            // It is none of the short ones any more, and it has begun: it takes a place of the others if there is one.
            *queue = Arc::clone(&self.client.long);
            self.tries.place = Arc::clone(queue).try_acquire_owned().ok();
        }
    }

    /// What is still to come.
    pub(super) fn wanted(&self) -> &Range<u64> {
        &self.wanted
    }

    /// Wants the bytes up to `end` as well, of a server that has begun to send the whole blob.
    pub(super) fn go_on_to(&mut self, end: u64) {
        if let Some(body) = &mut self.body {
            body.placement.take += end - self.wanted.end;
        }
        self.wanted.end = end;
    }

    fn listens(&mut self, change: impl FnOnce(&mut Listening)) {
        change(self.tries.listening.as_mut().expect("every transfer has it"));
    }

    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        self.listens(Listening::begin);
        let next = self.awaited().await;
        self.listens(|listening| listening.end(0));
        next
    }

    async fn awaited(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.wanted.is_empty() {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().await?,
            };
            let chunk = tokio::select! {
                biased;
                chunk = body.reply.chunk() => chunk,
                after = self.tries.worth_another() => Err(Fault::Abandoned { host: body.reply.host.clone(), after }),
            };
            match chunk {
                Ok(Some(chunk)) => {
                    self.listens(|listening| {
                        listening.end(chunk.len() as u64);
                        listening.begin();
                    });
                    let piece = self.cut_out(chunk, &mut body.placement)?;
                    self.body = (body.placement.take > 0).then_some(body);
                    if !piece.is_empty() {
                        self.wanted.start += piece.len() as u64;
                        self.progress += piece.len() as u64;
                        // A server that gives a few bytes and hangs up is not well.
                        let enough = self.progress >= PROGRESS || self.wanted.is_empty();
                        if enough {
                            let was_in_trouble = self.tries.went_well();
                            self.client.outages.hope();
                            if was_in_trouble {
                                self.tries.place = match &self.queue {
                                    Some(queue) => Some(place(queue).await),
                                    None => None,
                                };
                            }
                        }
                        if self.body.is_none() && !self.wanted.is_empty() {
                            // The server gave less than the range and said so.
                            self.set_back(&"its answer covers less than the range", Outage::Away).await?;
                        }
                        return Ok(Some(piece));
                    }
                }
                Ok(None) => {
                    let fault = Fault::Cut { host: body.reply.host.clone() };
                    drop(body);
                    self.set_back(&fault, Outage::Away).await?;
                }
                Err(fault) => {
                    drop(body);
                    self.set_back(&fault, fault.outage()).await?;
                }
            }
        }
        Ok(None)
    }

    /// The wanted part of a piece of the body.
    fn cut_out(&self, mut chunk: Bytes, placement: &mut Placement) -> Result<Bytes, SourceError> {
        let skipped = placement.skip.min(chunk.len() as u64);
        placement.skip -= skipped;
        let mut wanted = chunk.split_off(usize::try_from(skipped).expect("at most the chunk's length"));
        if wanted.len() as u64 > placement.take {
            // After a range inside a whole blob more must come; after anything else nothing may.
            if placement.ranged || self.wanted.end == self.size {
                let why = "its body is longer than the blob or range".to_owned();
                return Err(self.client.protocol(&self.what, why));
            }
            wanted.truncate(usize::try_from(placement.take).expect("less than the chunk's length"));
        }
        placement.take -= wanted.len() as u64;
        Ok(wanted)
    }

    async fn open(&mut self) -> Result<Body, SourceError> {
        // The whole blob is asked for, as it may be for its range that a request was refused.
        let mut trial = false;
        loop {
            let all = self.wanted == (0..self.size);
            let known = self.client.ranges_of(&self.digest);
            let whole = all || self.whole_only || trial || known == Some(Ranges::Refused);
            let doubtful = !whole && known.is_none() && !self.tried_whole;
            let overcomes = match (trial, doubtful) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => u32::MAX,
            };
            let wanted = || Wanted { digest: &self.digest, size: self.size, bytes: &self.wanted, whole };
            let ask = Ask { method: Method::GET, thing: Thing::Blob(wanted()), what: &self.what, overcomes };
            let mut reply = self.client.ask(&ask, &mut self.tries).await.inspect_err(|error| self.note(error))?;
            if reply.status().is_success() {
                self.client.outages.refused(None);
            }
            match wanted().place(&reply) {
                Ok(placement) => {
                    self.note_ranges(&placement, whole, &mut reply);
                    return Ok(Body { reply, placement });
                }
                Err(RangeFault::Status(status)) if doubtful && may_be_about_ranges(status) => {
                    tracing::debug!(host = reply.host, %status, "a range is refused; asking for the whole blob");
                    (trial, self.tried_whole) = (true, true);
                }
                // That was not it: the server is away, whatever it is asked for.
                Err(RangeFault::Status(status)) if trial && is_busy(status) => trial = false,
                Err(RangeFault::Status(_)) => {
                    let error = self.client.refusal(&mut reply, &self.what).await;
                    self.note(&error);
                    return Err(error);
                }
                Err(fault) if fault.is_about_ranges() && !whole => {
                    tracing::warn!(
                        "{} sent a wrong answer to a range request: {fault}; asking for the whole blob",
                        reply.host
                    );
                    self.whole_only = true;
                }
                Err(fault) => {
                    let label =
                        reply.foreign_encoding().map(|label| format!(", and is labelled as encoded: `{label}`"));
                    let why = format!("{fault}{}", label.unwrap_or_default());
                    return Err(self.client.protocol(&self.what, why));
                }
            }
        }
    }

    /// Remembers what an answer says about ranges, where one was `wanted` and not all.
    fn note_ranges(&self, placement: &Placement, asked_whole: bool, reply: &mut Reply) {
        if placement.ranged {
            return self.client.note_ranges(&self.digest, Ranges::Served);
        }
        if self.wanted == (0..self.size) {
            return;
        }
        if asked_whole {
            self.client.note_ranges(&self.digest, Ranges::Refused);
        } else if !self.client.unranged.swap(true, Ordering::Relaxed) {
            tracing::debug!(host = reply.host, "the server ignores ranges");
        }
        // What is cut here would come once more from its beginning.
        reply.be_patient(self.client.deadlines.patience);
    }

    /// A refusal is shown by `peelfs status` until something is granted.
    fn note(&self, error: &SourceError) {
        if matches!(error, SourceError::Denied { .. }) {
            self.client.outages.refused(Some(error));
        }
    }

    /// Counts a body that ended early, and waits before the next try.
    async fn set_back(&mut self, fault: &(dyn Display + Sync), trouble: Outage) -> Result<(), SourceError> {
        // Patience begins with the first failure, not while a slow reader was taking its time.
        if self.progress >= PROGRESS || self.tries.failed() == 0 {
            self.tries.renewed(&self.client.deadlines);
        }
        self.progress = 0;
        let subject = Subject { what: &self.what, blob: Some(&self.digest), trouble };
        if !self.client.again(&mut self.tries, subject, None, fault).await {
            return Err(self.client.gave_up(&self.what, fault, trouble, &self.tries));
        }
        self.client.transport.counters.resumptions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether a server may refuse a range in this way and give the whole blob. Others of these say clearly what they are about.
fn may_be_about_ranges(status: StatusCode) -> bool {
    (status.is_client_error() || status.is_server_error()) && !matches!(status.as_u16(), 401 | 404 | 429)
}

/// A place in a queue, in turn.
pub(super) async fn place(queue: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    queue.clone().acquire_owned().await.expect("the queues are never closed")
}
