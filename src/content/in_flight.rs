//! Spans in flight: one span is asked for once, however many readers wait for it.
//!
//! A layer has one table of them for all mounts of the process. What one mount fetches the others wait for, within
//! reason: its source may be away while theirs is not.

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

/// The spans of one layer that are in flight, each with the mount that fetches it, and where their outcome is told.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Table>);

type Table = BTreeMap<(SpanId, MountId), watch::Receiver<Outcome>>;

/// The table, locked.
pub(super) struct Locked<'a>(MutexGuard<'a, Table>);

/// A span that is waited for.
pub(super) struct Arrival {
    outcome: watch::Receiver<Outcome>,
    /// How long to wait for it, where another mount fetches it.
    until: Option<Instant>,
}

impl InFlight {
    /// The table, without what was ended with its mount.
    pub(super) fn lock(&self) -> Locked<'_> {
        let mut table = lock(&self.0);
        table.retain(|_, outcome| is_live(outcome));
        Locked(table)
    }

    /// Whether a mount of this process fetches the span.
    pub(super) fn has(&self, span: SpanId) -> bool {
        of(&lock(&self.0), span).any(is_live)
    }

    /// Calls `then` if no mount of this process fetches the span, and before one begins to.
    pub(super) fn unless_fetched(&self, span: SpanId, then: impl FnOnce()) {
        let table = lock(&self.0);
        if !of(&table, span).any(is_live) {
            then();
        }
    }
}

impl Locked<'_> {
    /// What `mount` fetches.
    pub(super) fn own(&self, span: SpanId, mount: MountId) -> Option<Arrival> {
        Some(Arrival { outcome: self.0.get(&(span, mount))?.clone(), until: None })
    }

    /// What any mount fetches, to be waited for until then.
    pub(super) fn any(&self, span: SpanId, until: Instant) -> Option<Arrival> {
        Some(Arrival { outcome: of(&self.0, span).next()?.clone(), until: Some(until) })
    }

    /// From now on `mount` fetches the span.
    pub(super) fn insert(&mut self, span: SpanId, mount: MountId) -> (watch::Sender<Outcome>, Arrival) {
        let (sender, outcome) = watch::channel(None);
        self.0.insert((span, mount), outcome.clone());
        (sender, Arrival { outcome, until: None })
    }

    /// The mount no longer fetches the span.
    pub(super) fn remove(&mut self, span: SpanId, mount: MountId) {
        self.0.remove(&(span, mount));
    }

    /// As [`Locked::remove`], if the outcome is told by this sender: another request may have begun since.
    pub(super) fn remove_if_told_by(&mut self, span: SpanId, mount: MountId, sender: &watch::Sender<Outcome>) {
        if self.0.get(&(span, mount)).is_some_and(|outcome| outcome.same_channel(&sender.subscribe())) {
            self.0.remove(&(span, mount));
        }
    }
}

impl Arrival {
    /// The span, or why the source of this mount does not deliver it; `None` when the request was ended, or is another
    /// mount's that does not bring it.
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

/// Whether its sender still is there; it ends with the mount.
fn is_live(outcome: &watch::Receiver<Outcome>) -> bool {
    outcome.has_changed().is_ok()
}
