//! Downloads: a large range of a blob, over several connections if one does not fill the link.
//!
//! On a long or lossy path, or with a server that limits each connection, one connection is slower than the link. So a
//! large range is requested in parts, one after another, and while its reader waits for bytes, further parts are
//! requested in advance over more connections, as long as each adds throughput ([`Lanes`]). On a full link, as with
//! other layers in progress, another connection adds nothing, and the download keeps one.
//! With one connection, parts are long. Once another connection has added throughput, the current long part is
//! shortened and the others fetch its rest; else their bytes would have to wait for it in limited memory. The shortened
//! part's connection is dropped, with the bytes in flight; no other byte is sent twice.
//!
//! Parts are delivered in order; parts that arrive early are held in memory, within limits. A server that ignores
//! ranges is detected at the first part, which then continues to the end as one stream.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::blob::Transfer;
use super::client::Client;
use super::hosts::Senders;
use crate::source::{Outage, SourceError};
use crate::sync::lock;

/// How ranges are split into parts, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Size of a part fetched alone. Ranges up to twice as long are not split.
    pub(super) alone: u64,
    /// Size of a part fetched beside others; each may be held in memory completely.
    pub(super) beside: u64,
    /// The next part is requested when this much of a part is left, to hide the round trip; less for a short part.
    pub(super) near: u64,
}

impl Default for Cut {
    fn default() -> Self {
        Self { alone: 16 << 20, beside: 2 << 20, near: 2 << 20 }
    }
}

/// A large range in flight.
pub(super) struct Download {
    client: Arc<Client>,
    senders: Arc<Senders>,
    size: u64,
    /// Parts in flight, in order; the first one is being delivered.
    parts: VecDeque<Part>,
    /// Ranges not requested yet, in order: what was cut off a part, and what follows all parts.
    rest: VecDeque<Range<u64>>,
    /// Identifies it among the downloads of its source.
    number: u64,
    _counted: Taken,
    _permit: OwnedSemaphorePermit,
}

struct Part {
    /// Its end in the blob.
    end: u64,
    /// Bytes not delivered yet.
    left: u64,
    /// Bytes not received yet.
    coming: Arc<AtomicU64>,
    pieces: mpsc::UnboundedReceiver<Result<BudgetedBytes, SourceError>>,
    /// Ends the transfer when the part is dropped.
    transfer: AbortHandle,
    _room: Option<Taken>,
}

/// A piece in memory, and its share of the memory budget.
type BudgetedBytes = (Bytes, OwnedSemaphorePermit);

impl Download {
    /// Requests the first part of `wanted` and returns once the response is valid. It delivers `wanted`, or, with
    /// `all`, everything that the server sends.
    pub(super) async fn start(
        client: Arc<Client>,
        senders: Arc<Senders>,
        size: u64,
        mut wanted: Range<u64>,
        all: bool,
    ) -> Result<(Range<u64>, Self), SourceError> {
        let permit = client.long.clone().acquire_owned().await.expect("the queues are never closed");
        let counted = Taken::download(&client);
        let (length, number) = {
            let mut lanes = lock(&client.lanes);
            (lanes.length(client.cut), lanes.number())
        };
        let mut first = wanted.start..wanted.start + length;
        let connection = Taken::connection(&client);
        let mut transfer = Transfer::start(client.clone(), Arc::clone(&senders), size, first.clone(), None).await?;
        if !transfer.is_ranged() && all {
            transfer.receive_whole();
            (first, wanted) = (0..size, 0..size);
        } else if !transfer.is_ranged() {
            transfer.extend_to(wanted.end);
            first.end = wanted.end;
        }
        let rest = VecDeque::from_iter((first.end < wanted.end).then_some(first.end..wanted.end));
        let parts = VecDeque::new();
        let mut download = Self { client, senders, size, parts, rest, number, _counted: counted, _permit: permit };
        download.add(first, connection, None, std::future::ready(Ok(transfer)));
        Ok((wanted, download))
    }

    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            self.look_ahead();
            let Some(part) = self.parts.front_mut() else { return Ok(None) };
            let begun = self.client.clock.now();
            let got = part.pieces.recv().await;
            self.client.waited_for_bytes(self.number, begun);
            match got {
                Some(Ok((piece, _room))) => {
                    part.left -= piece.len() as u64;
                    return Ok(Some(piece));
                }
                Some(Err(error)) => return Err(error),
                None if part.left == 0 => {
                    self.parts.pop_front();
                }
                None => {
                    let what = crate::source::blob_name(self.senders.blob());
                    return Err(self.client.away(&what, "its transfer was ended".to_owned(), Outage::Away));
                }
            }
        }
    }

    /// Requests the parts that are due by now.
    fn look_ahead(&mut self) {
        let length = lock(&self.client.lanes).length(self.client.cut);
        if self.is_next_due(length) {
            self.begin(length, Taken::connection(&self.client), None);
        }
        while !self.parts.is_empty() && !self.is_unranged() {
            let Some(lane) = Taken::lane(&self.client) else { return };
            let Some(room) = Taken::room(&self.client) else { return };
            self.shorten_first();
            if self.rest.is_empty() {
                return;
            }
            self.begin(self.client.cut.beside, lane, Some(room));
        }
    }

    /// Whether the `length` bytes after the first part are not requested yet, and that part is about to end.
    fn is_next_due(&self, length: u64) -> bool {
        let Some(rest) = self.rest.front() else { return false };
        let near = self.client.cut.near.min(length / 4);
        self.parts.front().is_none_or(|part| part.end == rest.start && part.left <= near)
    }

    fn is_unranged(&self) -> bool {
        self.senders.hosts().preferred(self.senders.blob()).unranged.load(Ordering::Relaxed)
    }

    /// Leaves most of a long first part to other connections, once one has added throughput.
    fn shorten_first(&mut self) {
        let proven = {
            let lanes = lock(&self.client.lanes);
            // If its reader paused, much is in buffers, and would be lost with the connection.
            lanes.proven() > 0 && lanes.readers.contains(&self.number)
        };
        let Some(part) = self.parts.front_mut() else { return };
        if !proven {
            return;
        }
        // Do not request again what is already in flight.
        let keep = self.client.cut.beside;
        let shortened = |coming| (coming > 2 * keep).then_some(keep);
        let Ok(coming) = part.coming.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shortened) else { return };
        let end = part.end;
        part.end -= coming - keep;
        part.left -= coming - keep;
        self.rest.push_front(part.end..end);
    }

    /// Requests at most `length` bytes of the rest.
    fn begin(&mut self, length: u64, connection: Taken, room: Option<Taken>) {
        // A server that ignores ranges sends everything before a part as well.
        let length = if self.is_unranged() { self.size } else { length };
        let Some(rest) = self.rest.front_mut() else { return };
        let end = rest.end.min(rest.start.saturating_add(length));
        let range = std::mem::replace(&mut rest.start, end)..end;
        if rest.is_empty() {
            self.rest.pop_front();
        }
        let senders = Arc::clone(&self.senders);
        let transfer = Transfer::start(self.client.clone(), senders, self.size, range.clone(), None);
        self.add(range, connection, room, transfer);
    }

    fn add(
        &mut self,
        range: Range<u64>,
        connection: Taken,
        room: Option<Taken>,
        transfer: impl Future<Output = Result<Transfer, SourceError>> + Send + 'static,
    ) {
        let (sender, pieces) = mpsc::unbounded_channel();
        let ahead = if room.is_some() { self.client.cut.beside } else { ALONE_AHEAD };
        let left = range.end - range.start;
        let coming = Arc::new(AtomicU64::new(left));
        let to_come = Arc::clone(&coming);
        let pumping = tokio::spawn(async move {
            if let Err(error) = pump(transfer, &to_come, ahead, &sender).await {
                // Ignored if the reader is gone.
                let _ = sender.send(Err(error));
            }
            drop(connection);
        });
        let at = self.parts.partition_point(|part| part.end <= range.start);
        let part = Part { end: range.end, left, coming, pieces, transfer: pumping.abort_handle(), _room: room };
        self.parts.insert(at, part);
    }
}

/// Moves the pieces of a transfer to the queue of its part, at most `ahead` bytes in advance, until `coming` is zero.
/// That may be less than was requested: shortening the part reduces it.
async fn pump(
    transfer: impl Future<Output = Result<Transfer, SourceError>>,
    coming: &AtomicU64,
    ahead: u64,
    to: &mpsc::UnboundedSender<Result<BudgetedBytes, SourceError>>,
) -> Result<(), SourceError> {
    let ahead = u32::try_from(ahead).expect("parts beside others have a few MiB");
    let free = Arc::new(Semaphore::new(ahead as usize));
    let mut transfer = transfer.await?;
    while let Some(mut piece) = transfer.next().await? {
        let got = piece.len() as u64;
        let wanted =
            coming.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |coming| Some(coming.saturating_sub(got)));
        let (Ok(wanted) | Err(wanted)) = wanted;
        piece.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        let takes = u32::try_from(piece.len()).map_or(ahead, |length| length.min(ahead));
        let held = Arc::clone(&free).acquire_many_owned(takes).await.expect("it is never closed");
        // A piece may be a small slice of a large buffer of the connection; copy it to free the buffer.
        if to.send(Ok((Bytes::copy_from_slice(&piece), held))).is_err() || wanted <= got {
            break;
        }
    }
    Ok(())
}

impl Drop for Download {
    fn drop(&mut self) {
        // Its share of the link is free now.
        lock(&self.client.lanes).full_until = Duration::ZERO;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.transfer.abort();
    }
}

/// Limits the connections beyond one per download.
///
/// One more connection is tried while readers wait for bytes. It is kept, and another one is tried, if the total
/// throughput then rises by most of what one connection adds on an idle path, at once or after it had time to get up to
/// speed. Otherwise the link is full: the connection is dropped, and none is tried for a while or until a download
/// ends. When no reader waits for bytes, all extra connections are dropped.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    allowed: u32,
    /// Connections in use for parts, including one per download.
    used: u32,
    downloads: u32,
    /// Parts fetched beside others that are not delivered yet, complete or not.
    rooms: u32,
    numbers: u64,
    stretch: Option<Stretch>,
    /// The readers of the previous stretch.
    readers: BTreeSet<u64>,
    /// The trial of the last connection allowed, until it has added throughput.
    trial: Option<Trial>,
    full_until: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Bytes per second before it was allowed.
    before: f64,
    /// It has had time to get up to speed.
    settled: bool,
}

/// A period over which a rate is measured.
#[derive(Debug)]
struct Stretch {
    begun: Duration,
    /// Bytes received at its start.
    received: u64,
    /// Connections in use at its start.
    used: u32,
    /// Time that readers have waited for bytes since then.
    waited: Duration,
    /// These readers; readers that pause leave the link to others.
    readers: BTreeSet<u64>,
}

impl Lanes {
    #[cfg(test)]
    pub(super) fn allow(&mut self, lanes: u32) {
        self.allowed = lanes;
        self.readers.extend(1..=self.numbers);
    }

    /// A number that no other download of this source has.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The number of extra connections that have added throughput.
    fn proven(&self) -> u32 {
        self.allowed - u32::from(self.trial.is_some())
    }

    /// Length of the next part that a reader needs.
    fn length(&self, cut: Cut) -> u64 {
        if self.proven() > 0 { cut.beside } else { cut.alone }
    }

    /// A reader has waited until `now` for its next bytes.
    fn waited(&mut self, reader: u64, now: Duration, waited: Duration, received: u64) {
        let used = self.used;
        let fresh = || Stretch { begun: now, received, used, waited: Duration::ZERO, readers: BTreeSet::new() };
        let stretch = self.stretch.get_or_insert_with(fresh);
        stretch.waited += waited;
        stretch.readers.insert(reader);
        let took = now.saturating_sub(stretch.begun);
        if took < STRETCH {
            return;
        }
        let stretch = self.stretch.replace(fresh()).expect("it was looked at above");
        let trial = self.trial.take();
        if took > 4 * STRETCH || stretch.waited < took / 8 {
            self.allowed = 0;
            return;
        }
        let readers = stretch.readers.len() as u32;
        let others = std::mem::replace(&mut self.readers, stretch.readers);
        let expected = self.downloads + self.allowed;
        let idle = trial.is_some() && used < expected;
        if others != self.readers || stretch.waited < took / 2 || idle {
            // Readers came or went, or it is the first stretch, or the link was not the bottleneck, or there was
            // nothing to request: rates cannot be compared.
            self.allowed -= u32::from(trial.is_some());
            return;
        }
        let rate = received.saturating_sub(stretch.received) as f64 / took.as_secs_f64();
        let connections = f64::from(readers + self.allowed);
        match trial {
            // More than one connection can add came from buffers.
            Some(Trial { before, .. }) if rate > before * (1.0 + BURST / (connections - 1.0)) => self.allowed -= 1,
            Some(Trial { before, settled }) if rate < before * (1.0 + GAIN / (connections - 1.0)) => {
                if settled {
                    self.allowed -= 1;
                    // A lower rate means that earlier bytes came from buffers.
                    if rate > before * STEADY {
                        self.full_until = now + REST;
                    }
                } else {
                    self.trial = Some(Trial { before, settled: true });
                }
            }
            // A dropped connection ends its part first.
            _ if self.allowed < MOST && now >= self.full_until && stretch.used <= expected => {
                self.trial = Some(Trial { before: rate, settled: false });
                self.allowed += 1;
            }
            _ => {}
        }
    }
}

impl Client {
    fn waited_for_bytes(&self, reader: u64, begun: Duration) {
        let now = self.clock.now();
        let received = self.transport.counters.bytes.load(Ordering::Relaxed);
        lock(&self.lanes).waited(reader, now, now.saturating_sub(begun), received);
    }
}

/// A counted resource, until dropped.
struct Taken {
    client: Arc<Client>,
    of: fn(&mut Lanes) -> &mut u32,
}

impl Taken {
    /// A place among the downloads.
    fn download(client: &Arc<Client>) -> Self {
        Self::one(client, |lanes| &mut lanes.downloads)
    }

    /// A connection for a part that is needed now.
    fn connection(client: &Arc<Client>) -> Self {
        Self::one(client, |lanes| &mut lanes.used)
    }

    /// A connection for a part in advance, if one more is allowed.
    fn lane(client: &Arc<Client>) -> Option<Self> {
        let limit = {
            let lanes = lock(&client.lanes);
            if lanes.allowed > 0 { lanes.downloads + lanes.allowed } else { 0 }
        };
        Self::up_to(limit, client, |lanes| &mut lanes.used)
    }

    /// Memory for a part in advance. There is more of it than there are connections, as complete parts wait for the
    /// first.
    fn room(client: &Arc<Client>) -> Option<Self> {
        Self::up_to(2 * MOST, client, |lanes| &mut lanes.rooms)
    }

    fn one(client: &Arc<Client>, of: fn(&mut Lanes) -> &mut u32) -> Self {
        *of(&mut lock(&client.lanes)) += 1;
        Self { client: Arc::clone(client), of }
    }

    fn up_to(limit: u32, client: &Arc<Client>, of: fn(&mut Lanes) -> &mut u32) -> Option<Self> {
        let mut lanes = lock(&client.lanes);
        let taken = of(&mut lanes);
        if *taken >= limit {
            return None;
        }
        *taken += 1;
        drop(lanes);
        Some(Self { client: Arc::clone(client), of })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *(self.of)(&mut lock(&self.client.lanes)) -= 1;
    }
}

/// Bytes that a part without an extra connection may receive ahead of its reader.
const ALONE_AHEAD: u64 = 512 << 10;
/// The period over which a rate is measured; also the time for a connection to get up to speed.
const STRETCH: Duration = Duration::from_millis(500);
/// The share of an idle connection's throughput that one more connection must add.
const GAIN: f64 = 0.75;
/// More than this share cannot come from one more connection.
const BURST: f64 = 2.0;
/// A full link keeps at least this share of its rate when one more connection is tried.
const STEADY: f64 = 0.85;
/// How long a full link is assumed to stay full.
const REST: Duration = Duration::from_secs(10);
/// Limit of connections beyond one per download.
const MOST: u32 = 4;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `readers` wait all the time; the link has this rate per number of extra connections.
    fn after(stretches: u32, readers: u64, rate: impl Fn(u32) -> u64) -> Lanes {
        let (mut lanes, mut received) = (Lanes::default(), 0);
        for stretch in 0..=stretches {
            (lanes.downloads, lanes.used) = (readers as u32, readers as u32 + lanes.allowed);
            for reader in 0..readers {
                lanes.waited(reader, stretch * STRETCH, STRETCH / readers as u32, received);
            }
            received += rate(lanes.allowed) / 2;
        }
        lanes
    }

    #[test]
    fn connections_are_added_while_each_brings_its_share() {
        assert_eq!(after(1, 1, |_| 1000).allowed, 0);
        assert_eq!(after(2, 1, |extra| 1000 * u64::from(1 + extra)).allowed, 1);
        assert_eq!(after(20, 1, |extra| 1000 * u64::from(1 + extra)).allowed, MOST);
        assert_eq!(after(20, 1, |extra| 1000 * u64::from(1 + extra).min(3)).allowed, 2, "three fill the link");
    }

    #[test]
    fn a_full_link_is_retried_occasionally() {
        let tries = |stretches| after(stretches, 1, |_| 1000).allowed;
        assert_eq!([2, 3, 4, 5, 23].map(tries), [1, 1, 0, 0, 0]);
        assert_eq!(tries(24), 1, "after ten seconds it may be another link");
    }

    /// One reader waits all the time; the bytes received in each stretch, and connections in use at its end.
    fn over(stretches: &[(u64, u32)]) -> Lanes {
        let (mut lanes, mut received) = (Lanes { downloads: 1, used: 1, ..Lanes::default() }, 0);
        lanes.waited(0, Duration::ZERO, Duration::ZERO, 0);
        for (number, (bytes, used)) in (1..).zip(stretches) {
            received += bytes;
            lanes.used = *used;
            lanes.waited(0, number * STRETCH, STRETCH, received);
        }
        lanes
    }

    #[test]
    fn a_new_connection_has_time_to_get_up_to_speed() {
        let tried = [(500, 1), (1000, 1), (1500, 2)];
        assert_eq!((over(&tried).allowed, over(&tried).proven()), (1, 0));
        let proven = [&tried[..], &[(2000, 2)]].concat();
        assert_eq!((over(&proven).allowed, over(&proven).proven()), (2, 1));
        let full = [&tried[..], &[(1500, 2)]].concat();
        assert_eq!((over(&full).allowed, over(&full).full_until), (0, 4 * STRETCH + REST));
    }

    #[test]
    fn a_connection_that_has_nothing_to_do_proves_nothing() {
        let idle = over(&[(1000, 1); 3]);
        assert_eq!((idle.allowed, idle.full_until), (0, Duration::ZERO));
    }

    #[test]
    fn bytes_from_buffers_prove_nothing() {
        let burst = over(&[(500, 1), (1500, 1), (1000, 2), (1000, 2)]);
        assert_eq!((burst.allowed, burst.full_until), (0, Duration::ZERO));
        let burst = over(&[(500, 1), (1000, 1), (3500, 2)]);
        assert_eq!((burst.allowed, burst.full_until), (0, Duration::ZERO));
    }

    #[test]
    fn no_copy_is_made_before_the_evicted_one_is_gone() {
        let going = [(1000, 2), (2000, 2)];
        assert_eq!(over(&going).allowed, 0);
        assert_eq!(over(&[&going[..], &[(1000, 1), (1000, 1)]].concat()).allowed, 1);
    }

    #[test]
    fn a_layer_without_waiting_readers_has_one_connection() {
        let mut lanes = Lanes { allowed: 3, ..Lanes::default() };
        for stretch in 0..20 {
            lanes.waited(0, stretch * STRETCH, STRETCH / 10, u64::from(stretch) * 1000);
        }
        assert_eq!(lanes.allowed, 0);
    }

    #[test]
    fn readers_that_come_and_go_prove_nothing() {
        let mut lanes = Lanes::default();
        for stretch in 0..20 {
            let received = u64::from(stretch * stretch) * 1000;
            lanes.waited(u64::from(stretch), stretch * STRETCH, STRETCH, received);
            assert_eq!(lanes.allowed, 0);
        }
    }
}
