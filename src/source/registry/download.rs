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

use std::collections::VecDeque;
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
        Self { alone: 16 << 20, beside: 4 << 20, near: 1 << 20 }
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
    _permit: OwnedSemaphorePermit,
}

struct Part {
    /// Bytes not delivered yet.
    left: u64,
    pieces: mpsc::UnboundedReceiver<Result<Held, SourceError>>,
    /// Ends the transfer when the part is dropped.
    transfer: AbortHandle,
    _lane: Option<Lane>,
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
        let mut download =
            Self { client, digest, size, parts: VecDeque::new(), rest: first.end..wanted.end, _permit: permit };
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
            self.client.waited_for_bytes(begun);
            match got {
                Some(Ok((piece, _room))) => {
                    part.left -= piece.len() as u64;
                    return Ok(Some(piece));
                }
                Some(Err(error)) => return Err(error),
                None if part.left == 0 => {
                    self.parts.pop_front();
                    if let Some(next) = self.parts.front_mut() {
                        next._lane = None;
                    }
                }
                None => return Err(self.client.protocol("a blob", "its transfer was ended".to_owned())),
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
            let Some(lane) = Lane::take(&self.client) else { return };
            self.begin(beside, Some(lane));
        }
    }

    /// Asks for the next part, of at most `length` bytes.
    fn begin(&mut self, length: u64, lane: Option<Lane>) {
        let end = self.rest.end.min(self.rest.start + length);
        let range = std::mem::replace(&mut self.rest.start, end)..end;
        if range.is_empty() {
            return;
        }
        let length = range.end - range.start;
        let transfer = Transfer::start(self.client.clone(), self.digest.clone(), self.size, range, None);
        self.add(length, lane, transfer);
    }

    fn add(
        &mut self,
        length: u64,
        lane: Option<Lane>,
        transfer: impl Future<Output = Result<Transfer, SourceError>> + Send + 'static,
    ) {
        let Cut { beside, near, .. } = self.client.cut;
        let (sender, pieces) = mpsc::unbounded_channel();
        let room = if lane.is_some() { beside } else { near };
        let pumping = tokio::spawn(async move {
            if let Err(error) = pump(transfer, room, &sender).await {
                // Whoever does not listen any more does not need to know.
                let _ = sender.send(Err(error));
            }
        });
        self.parts.push_back(Part { left: length, pieces, transfer: pumping.abort_handle(), _lane: lane });
    }
}

/// Moves a transfer's pieces to where they wait for their turn, at most `room` bytes at a time.
async fn pump(
    transfer: impl Future<Output = Result<Transfer, SourceError>>,
    room: u64,
    to: &mpsc::UnboundedSender<Result<Held, SourceError>>,
) -> Result<(), SourceError> {
    let room = u32::try_from(room).expect("parts beside others have a few MiB");
    let free = Arc::new(Semaphore::new(room as usize));
    let mut transfer = transfer.await?;
    while let Some(piece) = transfer.next().await? {
        let takes = u32::try_from(piece.len()).map_or(room, |length| length.min(room));
        let held = Arc::clone(&free).acquire_many_owned(takes).await.expect("it is never closed");
        if to.send(Ok((piece, held))).is_err() {
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
/// then bring at least half of what it would add if nothing else were in its way. Otherwise the link is
/// full: it goes, and for a while none is tried.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    allowed: u32,
    used: u32,
    stretch: Option<Stretch>,
    /// Bytes a second before the last one was allowed.
    before: Option<f64>,
    full_until: Duration,
}

/// A stretch of time over which a rate is measured.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    begun: Duration,
    /// Bytes received by then.
    received: u64,
    /// How long readers have waited for bytes since then.
    waited: Duration,
    /// Transfers that share the link.
    transfers: usize,
}

impl Lanes {
    #[cfg(test)]
    pub(super) fn with_allowed(allowed: u32) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// A reader has waited until `now` for its next bytes.
    fn waited(&mut self, now: Duration, waited: Duration, received: u64, transfers: usize) {
        let fresh = Stretch { begun: now, received, waited: Duration::ZERO, transfers };
        let Some(stretch) = &mut self.stretch else {
            self.stretch = Some(fresh);
            return;
        };
        stretch.waited += waited;
        let took = now.saturating_sub(stretch.begun);
        if took < STRETCH {
            return;
        }
        let stretch = self.stretch.replace(fresh).expect("it was looked at above");
        if stretch.transfers != transfers || took > 4 * STRETCH || stretch.waited < took / 2 {
            // Others came or went, or nobody was in need: no rates to compare.
            self.before = None;
            return;
        }
        let rate = received.saturating_sub(stretch.received) as f64 / took.as_secs_f64();
        match self.before.take() {
            Some(before) if rate < before * (1.0 + 0.5 / f64::from(transfers as u32 + self.allowed - 1)) => {
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
    fn waited_for_bytes(&self, begun: Duration) {
        let now = self.clock.now();
        let received = self.transport.counters.bytes.load(Ordering::Relaxed);
        let transfers = self.connections - self.long.available_permits().min(self.connections);
        lock(&self.lanes).waited(now, now.saturating_sub(begun), received, transfers.max(1));
    }
}

/// The right to one more connection.
struct Lane(Arc<Client>);

impl Lane {
    fn take(client: &Arc<Client>) -> Option<Self> {
        let mut lanes = lock(&client.lanes);
        if lanes.used >= lanes.allowed {
            return None;
        }
        lanes.used += 1;
        Some(Self(Arc::clone(client)))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        lock(&self.0.lanes).used -= 1;
    }
}

/// Long enough for a connection to get up to speed.
const STRETCH: Duration = Duration::from_millis(500);
/// How long a full link is believed to stay full.
const REST: Duration = Duration::from_secs(10);
/// Most connections beyond one for each download.
const MOST: u32 = 4;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Readers always wait, and the link brings so much a second with so many extra connections.
    fn after(stretches: u32, transfers: usize, rate: impl Fn(u32) -> u64) -> Lanes {
        let (mut lanes, mut received) = (Lanes::default(), 0);
        for stretch in 0..=stretches {
            lanes.waited(stretch * STRETCH, STRETCH, received, transfers);
            received += rate(lanes.allowed) / 2;
        }
        lanes
    }

    #[test]
    fn connections_are_added_while_each_brings_its_share() {
        assert_eq!(after(0, 1, |_| 1000).allowed, 0);
        assert_eq!(after(1, 1, |extra| 1000 * u64::from(1 + extra)).allowed, 1);
        assert_eq!(after(20, 1, |extra| 1000 * u64::from(1 + extra)).allowed, MOST);
        assert_eq!(after(19, 1, |extra| 1000 * u64::from(1 + extra).min(3)).allowed, 2, "three fill the link");
        assert_eq!(after(20, 3, |extra| 1000 * u64::from(3 + extra)).allowed, MOST);
    }

    #[test]
    fn a_full_link_gets_one_try_in_a_while() {
        let tries = |stretches| after(stretches, 3, |_| 1000);
        assert_eq!([1, 2, 3, 21].map(|stretches| tries(stretches).allowed), [1, 0, 0, 0]);
        assert_eq!(tries(22).allowed, 1, "after ten seconds it may be another link");
    }

    #[test]
    fn nobody_in_need_adds_nothing() {
        let mut lanes = Lanes::default();
        for stretch in 0..20 {
            lanes.waited(stretch * STRETCH, STRETCH / 10, u64::from(stretch) * 1000, 1);
        }
        assert_eq!(lanes.allowed, 0);
    }
}
