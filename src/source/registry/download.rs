//! Downloads: a large range of a blob, over several connections where one does not fill the link.
//!
//! A long way, a lossy one, or a server that gives each connection its share: one connection then brings
//! less than the link could. So a large range is asked for in parts, one behind the other, and while its
//! reader waits for bytes, further parts are asked for ahead, over connections of their own, as long as
//! each brings something ([`Lanes`]). A link that is full already, as with other layers under way, shows
//! no gain, and then one connection is all that a download has.
//!
//! Parts are delivered in order; what comes ahead of its turn is held in memory, within bounds. No byte is
//! asked for twice. A server that ignores ranges is found out by the first part, which then goes on to the
//! end as one stream.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::blob::Transfer;
use super::client::Client;
use crate::digest::Digest;
use crate::source::SourceError;
use crate::sync::lock;

/// How ranges are cut into parts, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// A part that comes alone. Ranges up to twice as long are not cut.
    pub(super) alone: u64,
    /// A part beside others; each may be in memory as a whole.
    pub(super) beside: u64,
    /// When so much of a part is left, the next one is asked for, to hide the round trip.
    pub(super) near: u64,
}

impl Default for Cut {
    fn default() -> Self {
        Self { alone: 16 << 20, beside: 2 << 20, near: 2 << 20 }
    }
}

/// A large range on its way.
pub(super) struct Download {
    client: Arc<Client>,
    digest: Digest,
    size: u64,
    /// Parts on their way, in order; the first one is being delivered.
    parts: VecDeque<Part>,
    /// What has not been asked for.
    rest: Range<u64>,
    /// Tells it from others of the same source.
    number: u64,
    _permit: OwnedSemaphorePermit,
}

struct Part {
    /// Bytes not delivered yet.
    left: u64,
    pieces: mpsc::UnboundedReceiver<Result<Held, SourceError>>,
    /// Ends the transfer when the part is dropped.
    transfer: AbortHandle,
    _room: Option<Taken>,
}

/// A piece in memory, and the room it takes.
type Held = (Bytes, OwnedSemaphorePermit);

impl Download {
    /// Asks for the first part of `wanted` and returns when its answer is good.
    pub(super) async fn start(
        client: Arc<Client>,
        digest: Digest,
        size: u64,
        wanted: Range<u64>,
    ) -> Result<Self, SourceError> {
        let permit = client.long.clone().acquire_owned().await.expect("the queues are never closed");
        let first = wanted.start..wanted.start + client.cut.alone;
        let mut transfer = Transfer::start(client.clone(), digest.clone(), size, first.clone(), None).await?;
        let (parts, rest, number) = (VecDeque::new(), first.end..wanted.end, lock(&client.lanes).number());
        let mut download = Self { client, digest, size, parts, rest, number, _permit: permit };
        let mut length = download.client.cut.alone;
        if !transfer.is_ranged() {
            transfer.go_on_to(wanted.end);
            (download.rest, length) = (wanted.end..wanted.end, wanted.end - wanted.start);
        }
        download.add(length, None, std::future::ready(Ok(transfer)));
        Ok(download)
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
                    let what = crate::source::blob_name(&self.digest);
                    return Err(self.client.unreachable(&what, "its transfer was ended".to_owned()));
                }
            }
        }
    }

    /// Asks for the parts that should be on their way by now.
    fn look_ahead(&mut self) {
        let Cut { alone, beside, near } = self.client.cut;
        if self.parts.is_empty() || (self.parts.len() == 1 && self.parts[0].left <= near) {
            self.begin(if lock(&self.client.lanes).allowed > 0 { beside } else { alone }, None);
        }
        while !self.rest.is_empty() {
            let Some(lane) = Taken::lane(&self.client) else { return };
            let Some(room) = Taken::room(&self.client) else { return };
            self.begin(beside, Some((lane, room)));
        }
    }

    /// Asks for the next part, of at most `length` bytes.
    fn begin(&mut self, length: u64, beside: Option<(Taken, Taken)>) {
        let end = self.rest.end.min(self.rest.start + length);
        let range = std::mem::replace(&mut self.rest.start, end)..end;
        if range.is_empty() {
            return;
        }
        let length = range.end - range.start;
        let transfer = Transfer::start(self.client.clone(), self.digest.clone(), self.size, range, None);
        self.add(length, beside, transfer);
    }

    fn add(
        &mut self,
        length: u64,
        beside: Option<(Taken, Taken)>,
        transfer: impl Future<Output = Result<Transfer, SourceError>> + Send + 'static,
    ) {
        let (sender, pieces) = mpsc::unbounded_channel();
        let ahead = if beside.is_some() { self.client.cut.beside } else { ALONE_AHEAD };
        let (lane, room) = beside.unzip();
        let pumping = tokio::spawn(async move {
            if let Err(error) = pump(transfer, ahead, &sender).await {
                // Whoever does not listen any more does not need to know.
                let _ = sender.send(Err(error));
            }
            drop(lane);
        });
        self.parts.push_back(Part { left: length, pieces, transfer: pumping.abort_handle(), _room: room });
    }
}

/// Moves a transfer's pieces to where they wait for their turn, at most `ahead` bytes at a time.
async fn pump(
    transfer: impl Future<Output = Result<Transfer, SourceError>>,
    ahead: u64,
    to: &mpsc::UnboundedSender<Result<Held, SourceError>>,
) -> Result<(), SourceError> {
    let ahead = u32::try_from(ahead).expect("parts beside others have a few MiB");
    let free = Arc::new(Semaphore::new(ahead as usize));
    let mut transfer = transfer.await?;
    while let Some(piece) = transfer.next().await? {
        let takes = u32::try_from(piece.len()).map_or(ahead, |length| length.min(ahead));
        let held = Arc::clone(&free).acquire_many_owned(takes).await.expect("it is never closed");
        // A piece may be a small part of a large buffer of the connection's.
        if to.send(Ok((Bytes::copy_from_slice(&piece), held))).is_err() {
            break;
        }
    }
    Ok(())
}

impl Drop for Part {
    fn drop(&mut self) {
        self.transfer.abort();
    }
}

/// How many connections there may be beyond one for each download.
///
/// One more is tried while readers wait for bytes. It stays, and another is tried, when all together
/// then bring most of what it would add if nothing else were in its way. Otherwise the link is full: it
/// goes, and for a while none is tried. When nobody waits for bytes, all go.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    allowed: u32,
    used: u32,
    /// Parts beside others that are not delivered yet, on their way or not.
    rooms: u32,
    numbers: u64,
    stretch: Option<Stretch>,
    /// Who read in the stretch before.
    readers: BTreeSet<u64>,
    /// Bytes a second before the last one was allowed.
    before: Option<f64>,
    full_until: Duration,
}

/// A stretch of time over which a rate is measured.
#[derive(Debug)]
struct Stretch {
    begun: Duration,
    /// Bytes received by then.
    received: u64,
    /// How long readers have waited for bytes since then.
    waited: Duration,
    /// Which of them; those that pause leave the link to others.
    readers: BTreeSet<u64>,
}

impl Lanes {
    #[cfg(test)]
    pub(super) fn with_allowed(allowed: u32) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// A number that no other download of this source has.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A reader has waited until `now` for its next bytes.
    fn waited(&mut self, reader: u64, now: Duration, waited: Duration, received: u64) {
        let fresh = || Stretch { begun: now, received, waited: Duration::ZERO, readers: BTreeSet::new() };
        let stretch = self.stretch.get_or_insert_with(fresh);
        stretch.waited += waited;
        stretch.readers.insert(reader);
        let took = now.saturating_sub(stretch.begun);
        if took < STRETCH {
            return;
        }
        let stretch = self.stretch.replace(fresh()).expect("it was looked at above");
        let before = self.before.take();
        if took > 4 * STRETCH || stretch.waited < took / 2 {
            self.allowed = 0;
            return;
        }
        let readers = stretch.readers.len() as u32;
        if std::mem::replace(&mut self.readers, stretch.readers) != self.readers {
            // Others came or went, or it is the first stretch: there are no rates to compare.
            self.allowed -= u32::from(before.is_some());
            return;
        }
        let rate = received.saturating_sub(stretch.received) as f64 / took.as_secs_f64();
        match before {
            Some(before) if rate < before * (1.0 + GAIN / f64::from(readers + self.allowed - 1)) => {
                self.allowed -= 1;
                self.full_until = now + REST;
            }
            _ if self.allowed < MOST && now >= self.full_until => {
                self.before = Some(rate);
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

/// One of a number of things, until it is dropped.
struct Taken {
    client: Arc<Client>,
    of: fn(&mut Lanes) -> &mut u32,
}

impl Taken {
    /// A connection beyond one for each download, if there may be one more.
    fn lane(client: &Arc<Client>) -> Option<Self> {
        let allowed = lock(&client.lanes).allowed;
        Self::up_to(allowed, client, |lanes| &mut lanes.used)
    }

    /// Memory for a part that comes ahead of its turn. There is more of it than there are connections, as
    /// the parts that are done wait for the first.
    fn room(client: &Arc<Client>) -> Option<Self> {
        Self::up_to(2 * MOST, client, |lanes| &mut lanes.rooms)
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

/// Bytes of a part without a lane that are held ahead of its reader.
const ALONE_AHEAD: u64 = 512 << 10;
/// Long enough for a connection to get up to speed.
const STRETCH: Duration = Duration::from_millis(500);
/// What one more connection must bring, of what it would if nothing were in its way.
const GAIN: f64 = 0.75;
/// How long a full link is believed to stay full.
const REST: Duration = Duration::from_secs(10);
/// Most connections beyond one for each download.
const MOST: u32 = 4;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `readers` wait all the time, and the link brings so much a second with so many extra connections.
    fn after(stretches: u32, readers: u64, rate: impl Fn(u32) -> u64) -> Lanes {
        let (mut lanes, mut received) = (Lanes::default(), 0);
        for stretch in 0..=stretches {
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
    fn a_full_link_gets_one_try_in_a_while() {
        let tries = |stretches| after(stretches, 1, |_| 1000).allowed;
        assert_eq!([2, 3, 4, 22].map(tries), [1, 0, 0, 0]);
        assert_eq!(tries(23), 1, "after ten seconds it may be another link");
    }

    #[test]
    fn nobody_in_need_has_one_connection() {
        let mut lanes = Lanes::with_allowed(3);
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
