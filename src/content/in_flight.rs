//! Spans in flight: each span is requested once, however many readers wait for it.
//!
//! All mounts of the process share one table per layer. A mount waits for spans that another mount fetches, but only
//! for a limited time: the other mount's source may be unreachable while its own is not.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::ReadError;
use super::scope::MountId;
use crate::span::SpanId;
use crate::sync::lock;

/// `None` while a span is in flight.
pub(super) type Outcome = Option<Result<Bytes, ReadError>>;

/// The spans of one layer in flight: which mount fetches each of them, and the channel that reports the outcome.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Table>);

type Table = BTreeMap<(SpanId, MountId), watch::Receiver<Outcome>>;

/// The table, locked.
pub(super) struct Locked<'a>(MutexGuard<'a, Table>);

/// A pending fetch of one span, as seen by a reader.
pub(super) struct Arrival {
    outcome: watch::Receiver<Outcome>,
    /// When to stop waiting, if another mount fetches the span.
    until: Option<Instant>,
}

impl InFlight {
    /// The table, without the entries of ended mounts.
    pub(super) fn lock(&self) -> Locked<'_> {
        let mut table = lock(&self.0);
        table.retain(|_, outcome| is_live(outcome));
        Locked(table)
    }

    /// As [`Locked::remove`], but only if `sender` reports the outcome: another request may have begun since.
    pub(super) fn remove_if_reported_by(&self, span: SpanId, mount: MountId, sender: &watch::Sender<Outcome>) {
        let mut table = lock(&self.0);
        if table.get(&(span, mount)).is_some_and(|outcome| outcome.same_channel(&sender.subscribe())) {
            table.remove(&(span, mount));
        }
    }

    /// Whether any mount of this process fetches the span.
    pub(super) fn has(&self, span: SpanId) -> bool {
        of(&lock(&self.0), span).any(is_live)
    }

    /// Calls `then` under the lock if no mount of this process fetches the span.
    pub(super) fn unless_fetched(&self, span: SpanId, then: impl FnOnce()) {
        let table = lock(&self.0);
        if !of(&table, span).any(is_live) {
            then();
        }
    }
}

impl Locked<'_> {
    /// The fetch of the span by `mount`.
    pub(super) fn own(&self, span: SpanId, mount: MountId) -> Option<Arrival> {
        Some(Arrival { outcome: self.0.get(&(span, mount))?.clone(), until: None })
    }

    /// The fetch of the span by any mount, to be waited for until `until`.
    pub(super) fn any(&self, span: SpanId, until: Instant) -> Option<Arrival> {
        Some(Arrival { outcome: of(&self.0, span).next()?.clone(), until: Some(until) })
    }

    /// Registers that `mount` fetches the span.
    pub(super) fn insert(&mut self, span: SpanId, mount: MountId) -> (watch::Sender<Outcome>, Arrival) {
        let (sender, outcome) = watch::channel(None);
        self.0.insert((span, mount), outcome.clone());
        (sender, Arrival { outcome, until: None })
    }

    /// Removes the fetch of the span by `mount`.
    pub(super) fn remove(&mut self, span: SpanId, mount: MountId) {
        self.0.remove(&(span, mount));
    }
}

impl Arrival {
    /// The span, or the error of this mount's source; `None` if the request ended without an outcome, or another
    /// mount's request failed or timed out.
    pub(super) async fn outcome(mut self) -> Option<Result<Bytes, ReadError>> {
        let told = async { self.outcome.wait_for(Option::is_some).await.ok()?.clone() };
        match self.until {
            None => told.await,
            Some(until) => tokio::time::timeout_at(until, told).await.ok()?.filter(Result::is_ok),
        }
    }
}

fn of(table: &Table, span: SpanId) -> impl Iterator<Item = &watch::Receiver<Outcome>> {
    table.range((span, MountId::FIRST)..=(span, MountId::LAST)).map(|(_, outcome)| outcome)
}

/// Whether the sender still exists; it is dropped with its mount.
fn is_live(outcome: &watch::Receiver<Outcome>) -> bool {
    outcome.has_changed().is_ok()
}
