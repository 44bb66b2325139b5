//! Hosts: the servers that may have an image, asked one after another.
//!
//! Mirrors come first, in the order in which they are configured, then the registry itself. Each is asked once; whatever is
//! wrong with its answer, the next one is asked at once, and the reader does not wait. Only when all have failed is there a
//! pause, as for a registry alone. So an image can be read while any of them has it. A mirror that is slow is compared with
//! the next (see `rival`).
//!
//! What a mirror sends is verified like everything else. A mirror that lacks a blob, or has sent wrong bytes of it, is not
//! asked for that blob for a while; one that fails, or sends wrong bytes of several, is not asked for anything (see `circuit`).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::circuit::{Circuit, Failure};
use super::client::Client;
use super::mirrors::Abilities;
use super::patience::{Subject, Tries, Turn};
use crate::digest::Digest;
use crate::source::{Outage, PassOver, SourceError};
use crate::sync::lock;

/// For how long a mirror is not asked for a blob that it lacks: it may be fetching it.
const LACKING: Duration = Duration::from_secs(60);
/// For how long it is not asked for a blob of which it has sent wrong bytes.
const WRONG: Duration = Duration::from_secs(600);
/// Limit for remembered pairs of a mirror and a blob.
const MOST: usize = 4096;
/// A request that fails after this time has cost its reader a time limit.
const SLOW: Duration = Duration::from_secs(1);

/// The servers of one image.
pub(super) struct Hosts {
    /// The registry itself is the last.
    hosts: Vec<Host>,
    /// What is not asked for, and until when.
    passed_over: Mutex<HashMap<(usize, Digest), Duration>>,
    /// Which host has sent a blob last.
    served: Mutex<HashMap<Digest, usize>>,
    /// What says that these are asked.
    by: Option<String>,
}

/// One of them.
pub(super) struct Host {
    pub(super) client: Arc<Client>,
    abilities: Abilities,
    /// The registry itself is always asked.
    circuit: Option<Circuit>,
    received: AtomicU64,
}

/// A host of a source, for status.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HostStatus {
    /// `HOST[:PORT]`.
    pub host: String,
    /// Whether it stands for the registry that the image is named by.
    pub mirror: bool,
    /// Bytes that it has sent.
    pub received_bytes: u64,
    /// Why it is not asked at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need<'a> {
    /// What a tag names.
    Resolve,
    /// What has this digest.
    Pull(&'a Digest),
}

/// One round of questions for one thing.
pub(super) struct Round<'a> {
    hosts: &'a Hosts,
    need: Need<'a>,
    next: usize,
    /// Mirrors that were passed over since they have failed; asked if nothing else is left.
    spare: Vec<usize>,
    asked: Option<(usize, Duration)>,
    failures: Vec<(usize, SourceError)>,
}

impl Host {
    pub(super) fn new(client: Arc<Client>, abilities: Abilities, circuit: Option<Circuit>) -> Self {
        Self { client, abilities, circuit, received: AtomicU64::new(0) }
    }

    fn serves(&self, need: Need<'_>) -> bool {
        match need {
            Need::Resolve => self.abilities.resolve,
            Need::Pull(_) => self.abilities.pull,
        }
    }
}

impl Hosts {
    /// `hosts` ends with the registry itself.
    pub(super) fn new(hosts: Vec<Host>, by: Option<String>) -> Self {
        Self { hosts, passed_over: Mutex::default(), served: Mutex::default(), by }
    }

    /// Whether there are no mirrors.
    pub(super) fn is_alone(&self) -> bool {
        self.hosts.len() == 1
    }

    /// What names the mirrors: a file, or an option.
    pub(super) fn named_by(&self) -> Option<&str> {
        self.by.as_deref()
    }

    /// The clients for the mirrors, in order.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = Arc<Client>> {
        self.hosts[..self.hosts.len() - 1].iter().map(|host| Arc::clone(&host.client))
    }

    /// Starts asking for something.
    pub(super) fn round<'a>(&'a self, need: Need<'a>) -> Round<'a> {
        self.round_from(need, 0)
    }

    /// The same without the hosts before `first`.
    pub(super) fn round_from<'a>(&'a self, need: Need<'a>, first: usize) -> Round<'a> {
        Round { hosts: self, need, next: first, spare: Vec::new(), asked: None, failures: Vec::new() }
    }

    /// Whether another host would be asked after the mirror `number`.
    pub(super) fn has_next(&self, number: usize, need: Need<'_>) -> bool {
        let is_asked = |(number, host): (usize, &Host)| {
            host.serves(need)
                && host.circuit.as_ref().is_none_or(|circuit| circuit.open().is_none())
                && !self.is_left_out(number, need)
        };
        self.hosts.iter().enumerate().skip(number + 1).any(is_asked)
    }

    /// Whether a mirror has failed, and is not asked.
    pub(super) fn is_open(&self, number: usize) -> bool {
        self.hosts[number].circuit.as_ref().is_some_and(Circuit::is_open)
    }

    /// As [`Circuit::may_be_compared`]; `false` for the registry itself.
    pub(super) fn may_be_compared(&self, number: usize) -> bool {
        self.hosts[number].circuit.as_ref().is_some_and(Circuit::may_be_compared)
    }

    /// The host that would be asked for a blob first.
    pub(super) fn preferred(&self, blob: &Digest) -> &Arc<Client> {
        let usable = |(number, host): &(usize, &Host)| {
            host.abilities.pull
                && host.circuit.as_ref().is_none_or(|circuit| circuit.open().is_none())
                && !self.is_passed_over(*number, blob)
        };
        let found = self.hosts.iter().enumerate().find(usable).map(|(_, host)| &host.client);
        found.unwrap_or(&self.hosts[self.hosts.len() - 1].client)
    }

    /// Takes note of bytes that a host has sent of a blob.
    pub(super) fn received(&self, number: usize, blob: &Digest, bytes: u64) {
        self.hosts[number].received.fetch_add(bytes, Ordering::Relaxed);
        if self.is_alone() {
            return;
        }
        let mut served = lock(&self.served);
        if served.get(blob) != Some(&number) {
            if served.len() >= MOST {
                served.clear();
            }
            served.insert(blob.clone(), number);
        }
    }

    /// The client for a host.
    pub(super) fn client(&self, number: usize) -> &Client {
        &self.hosts[number].client
    }

    /// A host has delivered what was asked for.
    pub(super) fn succeeded(&self, number: usize) {
        if let Some(circuit) = &self.hosts[number].circuit {
            circuit.succeeded();
        }
    }

    /// A host has begun to deliver, and has failed.
    pub(super) fn broke(&self, number: usize, failure: Failure, why: &str) {
        let Host { client, circuit, .. } = &self.hosts[number];
        let Some(pause) = circuit.as_ref().and_then(|circuit| circuit.failed(failure, why)) else { return };
        let (host, seconds) = (&client.host, pause.as_secs());
        tracing::warn!("the mirror {host} is not asked for {seconds} s: {why}");
    }

    /// Leaves a mirror that has begun to send what it must not; `false` if it is the registry itself.
    pub(super) fn leave(&self, number: usize, blob: &Digest, why: &SourceError) -> bool {
        let is_mirror = !self.is_own(number);
        // Another part of the blob may have said so already.
        if is_mirror && !self.is_passed_over(number, blob) {
            tracing::warn!("the mirror {} is passed over: {why}", self.hosts[number].client.host);
            self.pass_over(number, blob, WRONG);
            self.broke(number, Failure::Wrong, &brief(why));
        }
        is_mirror
    }

    /// The host that has sent a blob last.
    pub(super) fn served_by(&self, blob: &Digest) -> Option<&str> {
        let number = *lock(&self.served).get(blob)?;
        Some(&self.hosts[number].client.host)
    }

    /// All hosts, in order.
    pub(super) fn status(&self) -> Vec<HostStatus> {
        let status = |(number, host): (usize, &Host)| HostStatus {
            host: host.client.host.clone(),
            mirror: !self.is_own(number),
            received_bytes: host.received.load(Ordering::Relaxed),
            passed_over: host.circuit.as_ref().and_then(Circuit::open).map(|(why, left)| match left.as_secs() {
                0 => format!("it is tried again: {why}"),
                seconds => format!("not asked for {seconds} s: {why}"),
            }),
        };
        self.hosts.iter().enumerate().map(status).collect()
    }

    pub(super) fn is_own(&self, number: usize) -> bool {
        number + 1 == self.hosts.len()
    }

    fn now(&self) -> Duration {
        self.hosts[0].client.clock.now()
    }

    fn is_passed_over(&self, number: usize, digest: &Digest) -> bool {
        let until = lock(&self.passed_over).get(&(number, digest.clone())).copied();
        until.is_some_and(|until| self.now() < until)
    }

    /// Whether a mirror is passed over for what is needed.
    fn is_left_out(&self, number: usize, need: Need<'_>) -> bool {
        match need {
            Need::Pull(digest) => !self.is_own(number) && self.is_passed_over(number, digest),
            Need::Resolve => false,
        }
    }

    fn pass_over(&self, number: usize, digest: &Digest, time: Duration) {
        let until = self.now() + time;
        let mut passed_over = lock(&self.passed_over);
        if passed_over.len() >= MOST {
            passed_over.clear();
        }
        passed_over.insert((number, digest.clone()), until);
    }
}

impl<'a> Round<'a> {
    /// The next host to ask, and its number. While it is asked, `tries` knows that there are others.
    pub(super) fn next(&mut self, tries: &mut Tries) -> Option<(usize, &'a Host)> {
        let number = self.next_number()?;
        let host = &self.hosts.hosts[number];
        tries.turn = match (self.hosts.is_alone(), self.hosts.is_own(number)) {
            (true, _) => Turn::Alone,
            (false, true) => Turn::Last,
            (false, false) => Turn::Mirror,
        };
        tries.left = None;
        self.asked = Some((number, self.hosts.now()));
        Some((number, host))
    }

    fn next_number(&mut self) -> Option<usize> {
        while self.next < self.hosts.hosts.len() {
            let number = self.next;
            self.next += 1;
            let host = &self.hosts.hosts[number];
            if !host.serves(self.need) || self.hosts.is_left_out(number, self.need) {
                continue;
            }
            if host.circuit.as_ref().is_none_or(Circuit::admits) {
                return Some(number);
            }
            self.spare.push(number);
        }
        // With the registry away, a mirror that was away may be back. Of what the registry lacks, none has anything.
        let is_away = |(_, error): &(usize, SourceError)| matches!(error, SourceError::Unreachable { .. });
        let spare = !self.spare.is_empty() && self.failures.last().is_none_or(is_away);
        spare.then(|| self.spare.remove(0))
    }

    /// The host that was asked has failed.
    ///
    /// # Errors
    /// The same error if there is no other host.
    pub(super) fn failed(&mut self, error: SourceError, tries: &mut Tries) -> Result<(), SourceError> {
        if self.hosts.is_alone() {
            return Err(error);
        }
        tries.turn = Turn::Alone;
        let Some((number, begun)) = self.asked.take() else { return Ok(()) };
        let client = &self.hosts.hosts[number].client;
        if !self.hosts.is_own(number) {
            tracing::debug!(mirror = client.host, "{error}; asking the next");
            let digest = match self.need {
                Need::Pull(digest) => Some(digest),
                Need::Resolve => None,
            };
            match &error {
                SourceError::Unreachable { why, .. } => {
                    let silent = matches!(tries.left, Some((Outage::Silent, _)));
                    let slow = silent || self.hosts.now().saturating_sub(begun) >= SLOW;
                    self.hosts.broke(number, if slow { Failure::Slow } else { Failure::Quick }, why);
                }
                SourceError::NotFound { .. } | SourceError::Denied { .. } => {
                    // It has answered.
                    self.hosts.succeeded(number);
                    digest.into_iter().for_each(|digest| self.hosts.pass_over(number, digest, LACKING));
                }
                _ => {
                    tracing::warn!("the mirror {} is passed over: {error}", client.host);
                    digest.into_iter().for_each(|digest| self.hosts.pass_over(number, digest, WRONG));
                    if matches!(error, SourceError::Protocol { .. }) {
                        self.hosts.broke(number, Failure::Quick, &brief(&error));
                    }
                }
            }
        }
        self.failures.push((number, error));
        Ok(())
    }

    /// After all hosts have failed: waits until they are to be asked again.
    ///
    /// # Errors
    /// That of the registry itself, with what its mirrors have answered, if they are not to be asked again.
    pub(super) async fn again(self, what: &str, tries: &mut Tries) -> Result<Round<'a>, SourceError> {
        let (hosts, need) = (self.hosts, self.need);
        let own = &hosts.hosts[hosts.hosts.len() - 1].client;
        let answered = hosts.hosts.iter().any(|host| host.client.settled.get().is_some());
        let left = tries.left.take();
        let error = self.error(what);
        tries.turn = Turn::Alone;
        // As for a registry alone: if there was never an answer, the error comes at once.
        if answered || own.outages.retries_without_limit() {
            let trouble = left.map_or(Outage::Away, |(trouble, _)| trouble);
            let blob = match need {
                Need::Pull(digest) if what.starts_with("blob ") => Some(digest),
                _ => None,
            };
            if let SourceError::Unreachable { why, .. } = &error
                && own.again(tries, Subject { what, blob, trouble }, left.and_then(|(_, asked)| asked), why).await
            {
                return Ok(hosts.round(need));
            }
        }
        Err(match error {
            SourceError::Unreachable { what, place, why, hint } => {
                SourceError::Unreachable { what, place, why: format!("{why}{}", tries.told()), hint }
            }
            other => other,
        })
    }

    /// The error of the registry itself, with what its mirrors have answered; that of the last mirror if it was not asked.
    pub(super) fn error(mut self, what: &str) -> SourceError {
        let own = self.failures.iter().position(|(number, _)| self.hosts.is_own(*number));
        let main = own.unwrap_or(self.failures.len().saturating_sub(1));
        if self.failures.is_empty() {
            let host = self.hosts.hosts[self.hosts.hosts.len() - 1].client.place();
            let by = self.hosts.named_by().unwrap_or_default();
            let why = format!("no host has {what} and may be asked for it, by `{by}`");
            return SourceError::Unsupported { place: host, why, hint: None };
        }
        let (_, error) = self.failures.remove(main);
        let name = |number: usize| &self.hosts.hosts[number].client.host;
        let mirrors = self.failures.iter().map(|(number, error)| format!("mirror {}: {}", name(*number), brief(error)));
        let others: String = mirrors.map(|told| format!("; {told}")).collect();
        match error {
            SourceError::Unreachable { what, place, why, hint } => {
                SourceError::Unreachable { what, place, why: why + &others, hint }
            }
            SourceError::NotFound { what, place, said, hint } => {
                let said = match said {
                    Some(said) => said + &others,
                    None => others.trim_start_matches("; ").to_owned(),
                };
                SourceError::NotFound { what, place, said: Some(said).filter(|said| !said.is_empty()), hint }
            }
            SourceError::Denied { what, place, said, tried } => {
                SourceError::Denied { what, place, said: said + &others, tried }
            }
            SourceError::Protocol { what, place, why } => SourceError::Protocol { what, place, why: why + &others },
            other => other,
        }
    }
}

/// What a mirror has answered, in a few words.
fn brief(error: &SourceError) -> String {
    match error {
        SourceError::NotFound { .. } => "it does not have it".to_owned(),
        SourceError::Denied { said, .. } => said.clone(),
        SourceError::Unreachable { why, .. } | SourceError::Protocol { why, .. } => why.clone(),
        other => other.to_string(),
    }
}

/// The hosts that have sent the bytes of one stream.
pub(super) struct Senders {
    hosts: Arc<Hosts>,
    blob: Digest,
    numbers: Mutex<BTreeSet<usize>>,
}

impl Senders {
    pub(super) fn new(hosts: Arc<Hosts>, blob: Digest) -> Self {
        Self { hosts, blob, numbers: Mutex::default() }
    }

    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The blob that is sent.
    pub(super) fn blob(&self) -> &Digest {
        &self.blob
    }

    /// Takes note of bytes that a host has sent.
    pub(super) fn received(&self, number: usize, bytes: u64) {
        self.hosts.received(number, &self.blob, bytes);
    }

    pub(super) fn add(&self, number: usize) {
        lock(&self.numbers).insert(number);
    }
}

impl PassOver for Senders {
    fn pass_over(&self) -> bool {
        let mut others = false;
        for number in lock(&self.numbers).iter().copied().filter(|number| !self.hosts.is_own(*number)) {
            // Another reader may have said so already.
            if !self.hosts.is_passed_over(number, &self.blob) {
                let host = &self.hosts.hosts[number].client.host;
                tracing::warn!("the mirror {host} sent wrong bytes of blob {}; asking the next", self.blob);
                self.hosts.pass_over(number, &self.blob, WRONG);
                self.hosts.broke(number, Failure::Wrong, "it sent wrong bytes");
            }
            others = true;
        }
        others
    }
}
