//! Blobs: a range of a blob as a stream that survives broken connections.
//!
//! A truncated body is requested again from the last good byte. If a server ignores ranges, its body is read from the
//! start and cut. Tries without progress are counted, so neither a server that always hangs up nor one that sends a
//! byte per minute can hold a reader forever.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use reqwest::{Method, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::circuit::Failure;
use super::client::{Ask, Client, Ranges, Thing, Wanted};
use super::hosts::{Need, Senders};
use super::http::{Fault, Reply};
use super::patience::{Subject, Tries, Turn};
use super::ranges::{Placement, RangeFault};
use super::rival::{Overtaken, Reading, Rival};
use super::token::is_busy;
use crate::digest::Digest;
use crate::source::outage::SilenceTimer;
use crate::source::{BoxFuture, Outage, SourceError};

/// After this many bytes a try counts as a success, and the count of failures restarts.
const PROGRESS: u64 = 64 << 10;
/// Transfers up to this size use the queue of short ones.
pub(super) const SHORT: u64 = 1 << 20;

/// A transfer of a range of a blob.
pub(super) struct Transfer {
    client: Arc<Client>,
    /// Who may be asked, and who has sent what.
    senders: Arc<Senders>,
    /// The host of the current body.
    at: usize,
    digest: Digest,
    size: u64,
    what: String,
    /// The bytes still to be received.
    wanted: Range<u64>,
    body: Option<Body>,
    tries: Tries,
    /// Bytes delivered since the last failed try.
    progress: u64,
    /// The server sent an invalid response to a range request: request whole blobs only.
    whole_only: bool,
    /// The whole blob was requested because a range was refused.
    tried_whole: bool,
    /// The queue of the transfer; `None` for a part of a transfer that has its place.
    queue: Option<Arc<Semaphore>>,
    /// The first host that is asked: those before it are slow.
    from: usize,
    /// It is part of a comparison, and asks each host once.
    compares: bool,
    rival: Rival,
    /// Bytes of the next host, when a mirror was too slow.
    ready: Option<Bytes>,
}

struct Body {
    reply: Reply,
    placement: Placement,
}

impl Transfer {
    /// As [`Transfer::start`], once its queue has a free place.
    pub(super) async fn queued(
        client: Arc<Client>,
        senders: Arc<Senders>,
        size: u64,
        wanted: Range<u64>,
    ) -> Result<Self, SourceError> {
        let queue = Arc::clone(if wanted.end - wanted.start <= SHORT { &client.short } else { &client.long });
        Self::start(client, senders, size, wanted, Some(queue)).await
    }

    /// Requests the bytes `wanted` (not empty, within the blob) and returns once the first response is valid. With a
    /// queue it waits for a place there.
    pub(super) async fn start(
        client: Arc<Client>,
        senders: Arc<Senders>,
        size: u64,
        wanted: Range<u64>,
        queue: Option<Arc<Semaphore>>,
    ) -> Result<Self, SourceError> {
        let mut transfer = Self::new(client, senders, size, wanted, queue).await;
        transfer.time(SilenceTimer::begin);
        transfer.body = transfer.open().await?;
        transfer.time(|timer| timer.end(0));
        Ok(transfer)
    }

    /// The bytes `wanted` of one of the hosts from the number `from` on, and its number.
    pub(super) fn beside(
        client: Arc<Client>,
        senders: Arc<Senders>,
        size: u64,
        wanted: Range<u64>,
        from: usize,
    ) -> BoxFuture<'static, Result<(usize, Bytes), SourceError>> {
        Box::pin(async move {
            let mut bytes = BytesMut::new();
            let mut transfer = Self::new(client, senders, size, wanted, None).await;
            (transfer.from, transfer.compares) = (from, true);
            while let Some(piece) = transfer.next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok((transfer.at, bytes.freeze()))
        })
    }

    async fn new(
        client: Arc<Client>,
        senders: Arc<Senders>,
        size: u64,
        wanted: Range<u64>,
        queue: Option<Arc<Semaphore>>,
    ) -> Self {
        let digest = senders.blob().clone();
        let mut tries = Tries::new(client.clock.clone(), &client.deadlines);
        // A blob that is failing at present joins the queue of retries.
        tries.place = match &queue {
            _ if client.outages.concern(&digest) => Some(place(&client.retrying).await),
            Some(queue) => Some(place(queue).await),
            None => None,
        };
        tries.timer = Some(client.outages.time_silence(&digest));
        tries.by_time = client.outages.is_waited_out();
        let what = crate::source::blob_name(&digest);
        Self {
            client,
            senders,
            at: 0,
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
            from: 0,
            compares: false,
            rival: Rival::default(),
            ready: None,
        }
    }

    /// Whether the server served the range.
    pub(super) fn is_ranged(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.placement.ranged)
    }

    /// Receives the whole blob, after a server has ignored the range.
    pub(super) fn receive_whole(&mut self) {
        if let Some(body) = &mut self.body {
            body.placement = Placement { skip: 0, take: self.size, ranged: false };
        }
        self.wanted = 0..self.size;
        if let Some(queue) = self.queue.as_mut().filter(|_| self.size > SHORT) {
            // It is no longer short, and it has begun: take a place in the other queue if one is free.
            *queue = Arc::clone(&self.client.long);
            self.tries.place = Arc::clone(queue).try_acquire_owned().ok();
        }
    }

    /// The bytes still to be received.
    pub(super) fn wanted(&self) -> &Range<u64> {
        &self.wanted
    }

    /// Extends the transfer to `end`, if the server sends the whole blob.
    pub(super) fn extend_to(&mut self, end: u64) {
        if let Some(body) = &mut self.body {
            body.placement.take += end - self.wanted.end;
        }
        self.wanted.end = end;
    }

    fn time(&mut self, change: impl FnOnce(&mut SilenceTimer)) {
        change(self.tries.timer.as_mut().expect("every transfer has it"));
    }

    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        self.time(SilenceTimer::begin);
        let next = self.awaited().await;
        self.time(|timer| timer.end(0));
        self.rival.pause();
        next
    }

    async fn awaited(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.wanted.is_empty() {
            if let Some(piece) = self.ready.take() {
                self.advanced(piece.len() as u64).await;
                return Ok(Some(piece));
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => match self.open().await? {
                    Some(body) => body,
                    None => continue,
                },
            };
            let reading = self.reading();
            let chunk = tokio::select! {
                biased;
                chunk = body.reply.chunk() => chunk,
                after = self.tries.should_retry() => Err(Fault::Abandoned { host: body.reply.host.clone(), after }),
                overtaken = self.rival.overtaken(reading) => {
                    self.overtaken(overtaken);
                    continue;
                }
            };
            match chunk {
                Ok(Some(chunk)) => {
                    let length = chunk.len() as u64;
                    self.rival.received(length);
                    self.time(|timer| {
                        timer.end(length);
                        timer.begin();
                    });
                    let piece = match self.cut_out(chunk, &mut body.placement) {
                        Ok(piece) => piece,
                        // The next is asked for the rest.
                        Err(error) if self.senders.hosts().leave(self.at, &self.digest, &error) => continue,
                        Err(error) => return Err(error),
                    };
                    self.body = (body.placement.take > 0).then_some(body);
                    if !piece.is_empty() {
                        self.senders.received(self.at, piece.len() as u64);
                        self.advanced(piece.len() as u64).await;
                        if self.body.is_none() && !self.wanted.is_empty() {
                            // The server served less than the range and said so.
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

    fn reading(&self) -> Reading {
        let (client, senders) = (Arc::clone(&self.client), Arc::clone(&self.senders));
        Reading { client, senders, size: self.size, wanted: self.wanted.clone() }
    }

    /// The mirror that is read from is left; the rest is asked of those after it.
    fn overtaken(&mut self, overtaken: Overtaken) {
        self.from = self.at + 1;
        if let Overtaken::By(mut piece) = overtaken {
            let skipped = usize::try_from(self.wanted.start - piece.at).expect("it covers what is wanted next");
            let length = piece.bytes.len() as u64;
            self.time(|timer| {
                timer.end(length);
                timer.begin();
            });
            self.at = piece.host;
            self.ready = Some(piece.bytes.split_off(skipped));
        }
    }

    /// Takes note of bytes that are delivered.
    async fn advanced(&mut self, bytes: u64) {
        self.wanted.start += bytes;
        self.progress += bytes;
        // A server that sends a few bytes and hangs up does not count as recovered.
        if self.progress < PROGRESS && !self.wanted.is_empty() {
            return;
        }
        self.senders.hosts().succeeded(self.at);
        let was_in_trouble = self.tries.went_well();
        self.client.outages.retry_soon();
        if was_in_trouble {
            self.tries.place = match &self.queue {
                Some(queue) => Some(place(queue).await),
                None => None,
            };
        }
    }

    /// The wanted part of a piece of the body.
    fn cut_out(&self, mut chunk: Bytes, placement: &mut Placement) -> Result<Bytes, SourceError> {
        let skipped = placement.skip.min(chunk.len() as u64);
        placement.skip -= skipped;
        let mut wanted = chunk.split_off(usize::try_from(skipped).expect("at most the chunk's length"));
        if wanted.len() as u64 > placement.take {
            // For a whole blob, more bytes may follow the wanted range; otherwise none may.
            if placement.ranged || self.wanted.end == self.size {
                let why = "its body is longer than the blob or range".to_owned();
                return Err(self.senders.hosts().client(self.at).protocol(&self.what, why));
            }
            wanted.truncate(usize::try_from(placement.take).expect("less than the chunk's length"));
        }
        placement.take -= wanted.len() as u64;
        Ok(wanted)
    }

    /// Asks the hosts in turn until one has an answer that fits; `None` if bytes are ready instead.
    async fn open(&mut self) -> Result<Option<Body>, SourceError> {
        let senders = Arc::clone(&self.senders);
        let (hosts, need) = (senders.hosts(), Need::Pull(senders.blob()));
        let mut round = hosts.round_from(need, self.from);
        loop {
            let Some((number, host)) = round.next(&mut self.tries) else {
                if self.compares {
                    return Err(round.error(&self.what));
                }
                if std::mem::take(&mut self.from) > 0 {
                    // A slow one is better than none.
                    round = hosts.round(need);
                    continue;
                }
                let again = round.again(&self.what, &mut self.tries).await;
                round = again.inspect_err(|error| self.note(error))?;
                continue;
            };
            let mut rival = Rival::of((!self.compares && !hosts.is_own(number)).then_some(number));
            let reading = self.reading();
            let opened = tokio::select! {
                biased;
                opened = self.open_at(&host.client) => opened,
                overtaken = rival.overtaken(reading) => match overtaken {
                    Overtaken::By(_) => {
                        self.tries.turn = Turn::Alone;
                        self.at = number;
                        self.overtaken(overtaken);
                        return Ok(None);
                    }
                    Overtaken::Known => {
                        let why = format!("{} is slower than the next", host.client.host);
                        Err(host.client.away(&self.what, why, Outage::Silent))
                    }
                },
            };
            match opened {
                Ok(body) => {
                    rival.pause();
                    self.rival = rival;
                    self.tries.turn = Turn::Alone;
                    self.at = number;
                    self.senders.add(number);
                    return Ok(Some(body));
                }
                Err(error) => round.failed(error, &mut self.tries).inspect_err(|error| self.note(error))?,
            }
        }
    }

    async fn open_at(&mut self, client: &Arc<Client>) -> Result<Body, SourceError> {
        let alone = self.tries.turn == Turn::Alone;
        // Request the whole blob if the refusal may have been about the range.
        let mut trial = false;
        loop {
            let all = self.wanted == (0..self.size);
            let known = client.ranges_of(&self.digest);
            let whole = all || self.whole_only || trial || known == Some(Ranges::Refused);
            let doubtful = !whole && known.is_none() && !self.tried_whole;
            let overcomes = match (trial, doubtful) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => u32::MAX,
            };
            let wanted = || Wanted { digest: &self.digest, size: self.size, bytes: &self.wanted, whole };
            let ask = Ask { method: Method::GET, thing: Thing::Blob(wanted()), what: &self.what, overcomes };
            let mut reply = client.ask(&ask, &mut self.tries).await?;
            if reply.status().is_success() {
                self.client.outages.refused(None);
            }
            match wanted().place(&reply) {
                Ok(placement) => {
                    self.note_ranges(client, &placement, whole, &mut reply);
                    return Ok(Body { reply, placement });
                }
                Err(RangeFault::Status(status)) if doubtful && may_be_about_ranges(status) => {
                    tracing::debug!(host = reply.host, %status, "a range is refused; requesting the whole blob");
                    (trial, self.tried_whole) = (true, true);
                }
                // The range was not the cause: the server is unavailable.
                Err(RangeFault::Status(status)) if trial && is_busy(status) => trial = false,
                Err(RangeFault::Status(_)) => {
                    return Err(client.refusal(&mut reply, &self.what).await);
                }
                Err(fault) if fault.is_about_ranges() && !whole => {
                    tracing::warn!(
                        "{} sent an invalid response to a range request: {fault}; requesting the whole blob",
                        reply.host
                    );
                    if !alone {
                        // Others may do better.
                        return Err(client.protocol(&self.what, fault.to_string()));
                    }
                    self.whole_only = true;
                }
                Err(fault) => {
                    let label =
                        reply.foreign_encoding().map(|label| format!(", and is labelled as encoded: `{label}`"));
                    let why = format!("{fault}{}", label.unwrap_or_default());
                    return Err(client.protocol(&self.what, why));
                }
            }
        }
    }

    /// Records what a response says about ranges, unless the whole blob was wanted.
    fn note_ranges(&self, client: &Client, placement: &Placement, asked_whole: bool, reply: &mut Reply) {
        if placement.ranged {
            return client.note_ranges(&self.digest, Ranges::Served);
        }
        if self.wanted == (0..self.size) {
            return;
        }
        if asked_whole {
            client.note_ranges(&self.digest, Ranges::Refused);
        } else if !client.unranged.swap(true, Ordering::Relaxed) {
            tracing::debug!(host = reply.host, "the server ignores ranges");
        }
        // Cutting this body short would make it start over, so be patient with it.
        reply.be_patient(self.client.deadlines.patience);
    }

    /// `peelfs status` shows a refusal until a request is granted.
    fn note(&self, error: &SourceError) {
        if matches!(error, SourceError::Denied { .. }) {
            self.client.outages.refused(Some(error));
        }
    }

    /// Counts a body that ended early, and waits before the next try.
    async fn set_back(&mut self, fault: &(dyn Display + Sync), trouble: Outage) -> Result<(), SourceError> {
        let failure = if trouble == Outage::Silent { Failure::Slow } else { Failure::Quick };
        self.senders.hosts().broke(self.at, failure, &fault.to_string());
        // The time limit starts with the first failure, not while a slow reader consumed data.
        if self.progress >= PROGRESS || self.tries.failed() == 0 {
            self.tries.renewed(&self.client.deadlines);
        }
        self.progress = 0;
        let subject = Subject { what: &self.what, blob: Some(&self.digest), trouble };
        if self.compares || !self.client.again(&mut self.tries, subject, None, fault).await {
            let asked = self.senders.hosts().client(self.at);
            return Err(asked.gave_up(&self.what, fault, trouble, &self.tries));
        }
        self.client.transport.counters.resumptions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether a server that refuses a range with this status may serve the whole blob. 401, 404 and 429 have other
/// reasons.
fn may_be_about_ranges(status: StatusCode) -> bool {
    (status.is_client_error() || status.is_server_error()) && !matches!(status.as_u16(), 401 | 404 | 429)
}

/// Waits for a place in a queue, in order.
pub(super) async fn place(queue: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    queue.clone().acquire_owned().await.expect("the queues are never closed")
}
