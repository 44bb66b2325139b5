//! Rivals: how a slow mirror is left, or is not waited for.
//!
//! A mirror that is slow never fails, and would be read from forever while the registry is healthy. So when it has not
//! answered for a while, the next host is asked as well, and the first answer counts. When it has sent little while a
//! reader waited, the next host is asked for a short range of the same bytes. If these arrive in a fraction of the time
//! that the mirror takes, the mirror is left, and its breaker opens.
//!
//! Where everything is slow, as on a slow link, the mirror is kept, and this must cost little there. A short range is a
//! few times what the mirror has sent, within [`MOST`], and is given up after as much time. One is requested at a time,
//! then none for a minute, and less and less often (see `circuit`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::blob::Transfer;
use super::circuit::Failure;
use super::client::Client;
use super::hosts::{Hosts, Need, Senders};
use super::patience::Tries;
use crate::source::{BoxFuture, SourceError};

/// A mirror that sends fewer bytes per second may be compared.
const SLOW: u64 = 128 << 10;
/// The next host is far faster if it is this many times as fast.
const FAR: u32 = 4;
/// Least and most bytes that are requested to compare.
const LEAST: u64 = 16 << 10;
const MOST: u64 = 1 << 20;

/// What is asked of one host after another.
pub(super) trait Question: Sync {
    type Answer: Send;

    /// Asks one of them; `None` if its answer says nothing.
    fn ask<'a>(
        &'a self,
        client: &'a Client,
        tries: &'a mut Tries,
    ) -> BoxFuture<'a, Result<Option<Self::Answer>, SourceError>>;
}

impl Hosts {
    /// The first answer, and the host that gave it; `None` if there are only answers that say nothing.
    pub(super) async fn ask<Q: Question>(
        &self,
        question: &Q,
        (what, need): (&str, Need<'_>),
        tries: &mut Tries,
    ) -> Result<Option<(usize, Q::Answer)>, SourceError> {
        let mut round = self.round(need);
        let mut silent = false;
        loop {
            let Some((number, _)) = round.next(tries) else {
                if silent {
                    return Ok(None);
                }
                round = round.again(what, tries).await?;
                continue;
            };
            match self.ask_at(number, question, need, tries).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) if self.is_alone() => return Ok(None),
                Ok(None) => silent = true,
                Err(error) => round.failed(error, tries)?,
            }
        }
    }

    /// The answer of one host, or of one after it if that comes first.
    async fn ask_at<Q: Question>(
        &self,
        number: usize,
        question: &Q,
        need: Need<'_>,
        tries: &mut Tries,
    ) -> Result<Option<(usize, Q::Answer)>, SourceError> {
        let mut others = tries.beside();
        let client = self.client(number);
        let mut asked = question.ask(client, tries);
        let answer = match self.has_next(number, need) {
            false => asked.await,
            true => match tokio::time::timeout(client.deadlines.mirror, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    let rest = self.ask_after(number, question, need, &mut others);
                    return match self.first_of(number, asked, std::pin::pin!(rest)).await {
                        Ok(found) => Ok(Some(found)),
                        Err(answer) => answer.map(|_| None),
                    };
                }
            },
        };
        Ok(answer?.map(|answer| self.answered(number, answer)))
    }

    /// The first answer of two; the mirror `number` is slow if it is not its own. Its failure if there is none.
    async fn first_of<T>(
        &self,
        number: usize,
        mut asked: impl Future<Output = Result<Option<T>, SourceError>> + Unpin,
        mut rest: impl Future<Output = Option<(usize, T)>> + Unpin,
    ) -> Result<(usize, T), Result<Option<T>, SourceError>> {
        let begun = Instant::now();
        let limit = self.client(number).deadlines.mirror;
        tokio::select! {
            biased;
            answer = &mut asked => match answer {
                Ok(Some(answer)) => Ok(self.answered(number, answer)),
                Err(error) => {
                    let found = rest.await;
                    if let (Some(_), SourceError::Unreachable { why, .. }) = (&found, &error) {
                        self.broke(number, Failure::Slow, why);
                    }
                    found.ok_or(Err(error))
                }
                Ok(None) => rest.await.ok_or(Ok(None)),
            },
            found = &mut rest => {
                let Some((by, answer)) = found else {
                    return match asked.await {
                        Ok(Some(answer)) => Ok(self.answered(number, answer)),
                        other => Err(other),
                    };
                };
                let took = begun.elapsed();
                if is_far((LEAST, took), (LEAST, limit + took)) {
                    let by = &self.client(by).host;
                    let (limit, took) = ((limit + took).as_secs_f32(), took.as_secs_f32());
                    let why = format!("it gave no answer within {limit:.1} s, and {by} did within {took:.1} s");
                    self.broke(number, Failure::Outrun, &why);
                }
                Ok((by, answer))
            }
        }
    }

    fn answered<T>(&self, number: usize, answer: T) -> (usize, T) {
        self.succeeded(number);
        (number, answer)
    }

    /// As [`Hosts::ask`], of the hosts after `number`, once.
    async fn ask_after<Q: Question>(
        &self,
        number: usize,
        question: &Q,
        need: Need<'_>,
        tries: &mut Tries,
    ) -> Option<(usize, Q::Answer)> {
        let mut round = self.round_from(need, number + 1);
        while let Some((number, host)) = round.next(tries) {
            match question.ask(&host.client, tries).await {
                Ok(Some(answer)) => return Some(self.answered(number, answer)),
                Ok(None) => {}
                Err(error) => round.failed(error, tries).ok()?,
            }
        }
        None
    }
}

/// What a transfer reads.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) client: Arc<Client>,
    pub(super) senders: Arc<Senders>,
    pub(super) size: u64,
    /// The bytes still to be received.
    pub(super) wanted: Range<u64>,
}

/// Bytes of the next host.
pub(super) struct Piece {
    /// Where they begin in the blob.
    pub(super) at: u64,
    pub(super) bytes: Bytes,
    pub(super) host: usize,
    took: Duration,
}

/// Why a mirror is to be left.
pub(super) enum Overtaken {
    /// The next host was faster.
    By(Piece),
    /// It was found to be slow meanwhile.
    Known,
}

/// Measures the mirror that a transfer is read from, and compares it.
#[derive(Default)]
pub(super) struct Rival {
    /// The mirror, if it may be compared.
    of: Option<usize>,
    /// Time that the reader has waited for it in this stretch, without the current wait.
    waited: Duration,
    begun: Option<Instant>,
    /// Bytes that it has sent in this stretch.
    received: u64,
    race: Option<Race>,
}

/// A request to the next host; ends when dropped.
struct Race(JoinHandle<Option<Piece>>);

impl Drop for Race {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Rival {
    /// Another host is asked from now on: a mirror with this number, or one that is not compared.
    pub(super) fn of(number: Option<usize>) -> Self {
        Self { of: number, ..Self::default() }
    }

    /// These bytes have come from it.
    pub(super) fn received(&mut self, bytes: u64) {
        self.pause();
        self.received += bytes;
    }

    /// Its reader does not wait at present.
    pub(super) fn pause(&mut self) {
        self.waited = self.waited();
        self.begun = None;
    }

    /// Returns when the mirror is to be left.
    pub(super) async fn overtaken(&mut self, reading: Reading) -> Overtaken {
        let Some(number) = self.of else { return std::future::pending().await };
        let (hosts, need) = (reading.senders.hosts(), Need::Pull(reading.senders.blob()));
        let stretch = hosts.client(number).deadlines.mirror;
        self.begun.get_or_insert_with(Instant::now);
        loop {
            if let Some(race) = &mut self.race {
                let piece = (&mut race.0).await.ok().flatten();
                self.race = None;
                if let Some(piece) = piece
                    && self.is_beaten(number, &piece, &reading)
                {
                    return Overtaken::By(piece);
                }
                self.restart();
            }
            tokio::time::sleep(stretch.saturating_sub(self.waited())).await;
            if self.is_slow(&reading.wanted, stretch) {
                if hosts.is_open(number) {
                    return Overtaken::Known;
                }
                if hosts.has_next(number, need) && hosts.may_be_compared(number) {
                    self.race = Some(self.race(number, &reading));
                    continue;
                }
            }
            self.restart();
        }
    }

    fn waited(&self) -> Duration {
        self.waited + self.begun.map_or(Duration::ZERO, |begun| begun.elapsed())
    }

    fn restart(&mut self) {
        (self.waited, self.begun, self.received) = (Duration::ZERO, Some(Instant::now()), 0);
    }

    /// Whether it has sent little, and at this rate takes longer than another stretch.
    fn is_slow(&self, wanted: &Range<u64>, stretch: Duration) -> bool {
        let (seconds, received) = (self.waited().as_secs_f64(), self.received as f64);
        let left = (wanted.end - wanted.start) as f64;
        received < SLOW as f64 * seconds && left * seconds > received * stretch.as_secs_f64()
    }

    fn race(&self, number: usize, reading: &Reading) -> Race {
        let Reading { client, senders, size, wanted } = reading.clone();
        let length = self.received.saturating_mul(FAR.into()).clamp(LEAST, MOST);
        let range = wanted.start..wanted.end.min(wanted.start.saturating_add(length));
        let (at, limit, begun) = (range.start, self.waited(), Instant::now());
        let requested = Transfer::beside(client, senders, size, range, number + 1);
        Race(tokio::spawn(async move {
            match tokio::time::timeout(limit, requested).await {
                Ok(Ok((host, bytes))) => Some(Piece { at, bytes, host, took: begun.elapsed() }),
                Ok(Err(error)) => {
                    tracing::debug!("a slow mirror is kept: {error}");
                    None
                }
                Err(_) => {
                    tracing::debug!("a slow mirror is kept: the next is as slow");
                    None
                }
            }
        }))
    }

    /// Whether `piece` is of use. If it came far faster than what the mirror sends, its breaker opens.
    fn is_beaten(&self, number: usize, piece: &Piece, reading: &Reading) -> bool {
        let (length, waited) = (piece.bytes.len() as u64, self.waited());
        let is_far = is_far((length, piece.took), (self.received.max(LEAST), waited));
        if is_far {
            let hosts = reading.senders.hosts();
            let (by, received) = (&hosts.client(piece.host).host, self.received);
            let (waited, took) = (waited.as_secs_f32(), piece.took.as_secs_f32());
            let why =
                format!("it is slow: {received} bytes in {waited:.1} s, and {by} sent {length} bytes in {took:.1} s");
            hosts.broke(number, Failure::Outrun, &why);
        }
        let end = piece.at + length;
        end > reading.wanted.start && (is_far || self.received == 0 || end >= reading.wanted.end)
    }
}

/// Whether bytes in some time are [`FAR`] times as fast as others.
fn is_far((bytes, took): (u64, Duration), (others, waited): (u64, Duration)) -> bool {
    bytes as f64 * waited.as_secs_f64() >= f64::from(FAR) * others as f64 * took.as_secs_f64()
}
