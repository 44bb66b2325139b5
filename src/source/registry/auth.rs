//! Authorization: what is put into the `Authorization` header, and how it is renewed.
//!
//! Registries hand out tokens that live for a minute or an hour while an image is mounted for weeks,
//! so renewal is ordinary life and not an error. When a token ends, every reader finds out at once;
//! one of them renews and the others wait for what it got, be it a token or a refusal.
//!
//! How a registry says that a login has ended differs: 401 with a challenge, 401 without one (Docker
//! Hub), 401 with the challenge of another scheme (Harbor), 403 (ECR). What was granted before and is
//! refused now is therefore taken for stale, whatever the answer looks like: credentials are looked
//! for again and shown by the challenge that worked. One that hides private images answers 404, and
//! has to be asked at `/v2/` whether it knows logins.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};

use super::challenge::{self, Challenge, Offer};
use super::credentials::{Credential, Found, Keyring};
use super::http::{Fault, Outgoing, Transport};
use super::login_file::{Mark, UnusableFile};
use super::origin::Origin;
use super::patience::{Clock, Deadlines};
use super::refusals::{Attempt, Refusals};
use super::tls::Verify;
use super::token::{Life, RealmFault, TokenServer, basic, header};
use crate::source::Outage;

/// The most logins for one question.
const MOST_LOGINS: u32 = 4;
/// After a login that was no use, helpers are asked again when this has passed, and files when they change.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// 403 may mean that a login has ended, or that it may not see this one thing. It is taken for the former once in
/// this time.
const FORBIDDEN_AGAIN: Duration = Duration::from_secs(5);
/// A registry that named no challenge when it was asked for one is asked again when this has passed.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Answers challenges for one repository.
pub(super) struct Authorizer {
    keyring: Keyring,
    /// `repository:NAME:pull`.
    scope: String,
    verify: Verify,
    clock: Arc<dyn Clock>,
    deadlines: Deadlines,
    state: Mutex<State>,
    /// Held by the task that renews. A task that waits for it wants exactly what its holder is fetching.
    flight: tokio::sync::Mutex<()>,
}

/// What is shown to the registry at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Grant {
    /// Counts renewals; tells whether another reader has renewed already.
    generation: u64,
    /// Marked as sensitive; absent while nothing was asked for.
    pub(super) header: Option<HeaderValue>,
    life: Option<Life>,
    /// How it was had.
    by: Option<Attempt>,
    /// From whom the challenge came.
    from: Option<Origin>,
}

impl Grant {
    fn used(&self) -> Option<&Found> {
        self.by.as_ref()?.used.as_ref()
    }

    /// The scope that it has beside that of its repository.
    fn other_scope(&self) -> Option<String> {
        self.by.as_ref()?.scopes.get(1).cloned()
    }
}

#[derive(Default)]
struct State {
    grant: Grant,
    /// Whether the registry has ever granted something to the present grant.
    proven: bool,
    /// The challenge that was answered with success last, else the first, and whose it was.
    challenge: Option<(Origin, Challenge)>,
    refusals: Refusals,
    looked: Option<Looked>,
    forbidden: Option<Duration>,
    /// When `/v2/`, or the question without a login, was asked for a challenge last.
    asked: Option<Duration>,
    flights: u64,
    outcome: Option<(StatusCode, Result<Remedy, AuthError>)>,
}

/// What was found when credentials were looked for last.
struct Looked {
    marks: Vec<Option<Mark>>,
    at: Duration,
    found: Option<Found>,
}

/// An answer of 401, 403 or 404.
pub(super) struct Refused<'a> {
    /// What was asked.
    pub(super) request: &'a Outgoing,
    pub(super) status: StatusCode,
    /// The challenge in the answer.
    pub(super) offer: Option<Offer>,
    /// Logins for this question so far.
    pub(super) logins: u32,
}

/// What becomes of a refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Remedy {
    /// There is another grant: the question may be asked again.
    AskAgain,
    /// It stands.
    None,
}

/// Why there is no authorization.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AuthError {
    #[error(transparent)]
    File(#[from] UnusableFile),
    #[error("it wants a user name and password")]
    WantsPassword { tried: String },
    #[error("the credentials have not changed since they were refused")]
    Unchanged { tried: String },
    #[error("its token server `{realm}` is not asked: {why}")]
    Realm { realm: String, why: RealmFault },
    #[error("the token server {host} answered {said}")]
    Refused { host: String, said: String, tried: String },
    #[error("no token: {0}")]
    Unreachable(Fault),
    #[error("no token: {host} answered {said}")]
    Failing { host: String, said: String, outage: Outage },
    #[error("the token server {host} sent no usable token")]
    NoToken { host: String },
}

/// Who `found` is, for messages.
pub(super) fn tried(found: Option<&Found>) -> String {
    found.map_or_else(|| "anonymous, as no credentials were found".to_owned(), Found::to_string)
}

impl Authorizer {
    pub(super) fn new(
        keyring: Keyring,
        repository: &str,
        verify: Verify,
        clock: Arc<dyn Clock>,
        deadlines: Deadlines,
    ) -> Self {
        Self {
            keyring,
            scope: format!("repository:{repository}:pull"),
            verify,
            clock,
            deadlines,
            state: Mutex::default(),
            flight: tokio::sync::Mutex::new(()),
        }
    }

    /// What to show now; renewed first if it is about to end.
    pub(super) async fn grant(&self, transport: &Transport) -> Result<Grant, AuthError> {
        let grant = self.state().grant.clone();
        let now = self.clock.since_boot();
        let Some(life) = grant.life.filter(|life| now >= life.renew) else { return Ok(grant) };
        match self.renew(transport, &grant).await {
            Err(error) if now < life.end => {
                tracing::debug!("{error}; the present token is used till it ends");
                Ok(grant)
            }
            result => result,
        }
    }

    /// What was shown last.
    pub(super) fn present(&self) -> Grant {
        self.state().grant.clone()
    }

    /// Whether it has anything to show.
    pub(super) fn has_login(&self) -> bool {
        self.state().grant.header.is_some()
    }

    /// The registry has granted something to `grant`.
    pub(super) fn granted(&self, grant: &Grant) {
        let mut state = self.state();
        if !state.proven && state.grant.generation == grant.generation && grant.header.is_some() {
            state.proven = true;
            state.refusals.granted(grant.used());
            if let Some((by, from)) = grant.by.as_ref().zip(grant.from.as_ref()) {
                state.challenge = Some((from.clone(), by.challenge.clone()));
            }
        }
    }

    /// Who we are with `grant`, and why, for messages.
    pub(super) async fn told(&self, grant: &Grant) -> String {
        if let Some(used) = grant.used() {
            return used.to_string();
        }
        let looked = self.state().looked.as_ref().map(|looked| looked.found.clone());
        let found = match looked {
            Some(found) => found,
            None => self.keyring.find().await.unwrap_or_default(),
        };
        match found {
            None => tried(None),
            Some(found) => {
                format!("anonymous: no login was tried, as {} asks for none; there is {found}", self.keyring.host())
            }
        }
    }

    /// What was tried with a thing that was not found, where that is more than to ask.
    pub(super) fn told_of_missing(&self, grant: &Grant) -> Option<String> {
        if let Some(used) = grant.used() {
            return Some(format!("asked as {used}"));
        }
        let found = self.state().looked.as_ref().and_then(|looked| looked.found.clone())?;
        Some(format!("asked without the login of {found}, as {} asks for none", self.keyring.host()))
    }

    /// A grant newer than `old`, which is about to end. Of any number of callers, one asks; all get its result.
    async fn renew(&self, transport: &Transport, old: &Grant) -> Result<Grant, AuthError> {
        let seen = self.state().flights;
        let _ticket = self.flight.lock().await;
        let challenge = {
            let state = self.state();
            if state.grant.generation != old.generation {
                return Ok(state.grant.clone());
            }
            if let Some((_, Err(failure))) = state.outcome.as_ref().filter(|_| state.flights != seen) {
                return Err(failure.clone());
            }
            state.challenge.clone()
        };
        let result = match (self.look().await, challenge) {
            (Err(error), _) => Err(error.into()),
            (Ok(found), Some(challenge)) => {
                let other_scope = old.other_scope().map(|scope| (scope, Order::First));
                self.log_in(transport, Login { found, ways: vec![challenge], other_scope, due: None }).await
            }
            (Ok(_), None) => Ok(Remedy::None),
        };
        self.settle(StatusCode::UNAUTHORIZED, result.clone());
        match result? {
            Remedy::AskAgain => Ok(self.state().grant.clone()),
            Remedy::None => Err(AuthError::Unchanged { tried: tried(old.used()) }),
        }
    }

    /// Looks for a better grant than `grant`, with which the registry has refused what was asked for.
    ///
    /// Of any number of callers, one asks; all get its result.
    pub(super) async fn refused(
        &self,
        transport: &Transport,
        grant: &Grant,
        refused: Refused<'_>,
    ) -> Result<Remedy, AuthError> {
        if refused.logins >= MOST_LOGINS {
            return Ok(Remedy::None);
        }
        let seen = self.state().flights;
        let _ticket = self.flight.lock().await;
        {
            let state = self.state();
            if state.grant.generation != grant.generation {
                return Ok(Remedy::AskAgain);
            }
            if let Some((status, outcome)) = state.outcome.as_ref().filter(|_| state.flights != seen)
                && *status == refused.status
            {
                return outcome.clone();
            }
        }
        let status = refused.status;
        let result = self.overcome(transport, grant, refused).await;
        self.settle(status, result.clone());
        result
    }

    /// Ends a flight.
    fn settle(&self, status: StatusCode, outcome: Result<Remedy, AuthError>) {
        let mut state = self.state();
        state.flights += 1;
        state.outcome = Some((status, outcome));
    }

    async fn overcome(&self, transport: &Transport, grant: &Grant, refused: Refused<'_>) -> Result<Remedy, AuthError> {
        if refused.status == StatusCode::NOT_FOUND && grant.used().is_some() {
            return Ok(Remedy::None);
        }
        let found = self.look().await?;
        // What is not there for the anonymous may be there for those who log in.
        let hidden = grant.used().is_none() && found.is_some();
        if refused.status == StatusCode::NOT_FOUND && !hidden {
            return Ok(Remedy::None);
        }
        let (stale, due) = match self.judge(grant, &refused, found.as_ref()) {
            Some(judged) => judged,
            None => return Ok(Remedy::None),
        };
        let remembered = self.state().challenge.clone();
        let origin = Origin::of(&refused.request.url);
        let offered = refused.offer.zip(origin.clone());
        let offers_nothing = offered.is_none();
        let offered_scope = offered.as_ref().and_then(|(offer, _)| offer.scope_beside(&self.scope));
        let other_scope = grant.other_scope().map(|scope| (scope, Order::First));
        let other_scope = other_scope.or(offered_scope.map(|scope| (scope, Order::Last)));
        let ways = ways_in(offered.map(|(offer, origin)| (origin, offer.challenge)), remembered);
        let login = Login { found: found.clone(), ways: ways.clone(), other_scope: other_scope.clone(), due };
        let result = self.log_in(transport, login).await;
        if matches!(result, Err(AuthError::Unreachable(_) | AuthError::Failing { .. })) {
            // Nothing was found out about the refusal.
            self.state().forbidden = None;
        }
        let unusable = matches!(&result, Ok(Remedy::None) | Err(AuthError::Refused { .. } | AuthError::Unreachable(_)));
        let may_help = offers_nothing && unusable && (hidden || stale || refused.status == StatusCode::UNAUTHORIZED);
        if !may_help || (grant.header.is_none() && found.is_none()) || !self.may_ask() {
            return result;
        }
        let asked = match grant.header {
            Some(_) => self.asked_openly(transport, refused.request).await,
            None => self.asked_for_a_challenge(transport, &refused.request.url).await,
        };
        match asked.zip(origin) {
            Some((Asked::Challenge(offer), origin)) if !ways.iter().any(|(_, way)| *way == offer.challenge) => {
                let ways = vec![(origin, offer.challenge)];
                self.log_in(transport, Login { found, ways, other_scope, due: None }).await
            }
            Some((Asked::Granted, _)) => {
                self.install(Grant::default());
                Ok(Remedy::AskAgain)
            }
            _ => result,
        }
    }

    /// Whether what was shown has grown old, and what of it may be tried once more though it was refused; `None` if
    /// the refusal is not about who asks.
    fn judge(&self, grant: &Grant, refused: &Refused<'_>, found: Option<&Found>) -> Option<(bool, Option<Attempt>)> {
        let (mut state, now) = (self.state(), self.clock.since_boot());
        if refused.status == StatusCode::NOT_FOUND {
            return Some((false, None));
        }
        // Between this reader's logins others may have had use of them, and used them up.
        let proven = state.proven && refused.logins + 1 < MOST_LOGINS;
        if refused.status == StatusCode::FORBIDDEN && proven && found == grant.used() {
            if state.forbidden.is_some_and(|again| now < again) {
                return None;
            }
            state.forbidden = Some(now + FORBIDDEN_AGAIN);
        }
        let is_basic = grant.by.as_ref().is_some_and(|by| by.challenge == Challenge::Basic);
        // Of a token that ended nothing is to be noted; a password that is refused is refused itself.
        let noted = grant.by.as_ref().filter(|_| !proven || is_basic);
        let due = noted.filter(|by| state.refusals.refused(by, now, None));
        // The same password in the same header was just refused: showing it again is no other question.
        let due = due.filter(|_| !is_basic);
        let stale = proven || state.refusals.was_good(grant.used());
        Some((stale, due.cloned()))
    }

    /// Credentials from files and helpers, read anew unless they were just now of no use.
    async fn look(&self) -> Result<Option<Found>, UnusableFile> {
        let (marks, now) = (self.keyring.marks(), self.clock.since_boot());
        let known = {
            let state = self.state();
            let of_no_use = matches!(state.outcome, Some((_, Ok(Remedy::None) | Err(_))));
            let looked = state.looked.as_ref().filter(|_| of_no_use);
            looked
                .filter(|looked| looked.marks == marks && now < looked.at + LOOK_AGAIN)
                .map(|looked| looked.found.clone())
        };
        if let Some(found) = known {
            return Ok(found);
        }
        let found = self.keyring.find().await?;
        self.state().looked = Some(Looked { marks, at: now, found: found.clone() });
        Ok(found)
    }

    /// Tries one way to log in after the other, but none that was refused already.
    async fn log_in(&self, transport: &Transport, login: Login) -> Result<Remedy, AuthError> {
        let mut failed = None;
        for (origin, challenge) in &login.ways {
            for scopes in self.scopes(challenge, login.other_scope.as_ref()) {
                let attempt = Attempt { used: login.found.clone(), challenge: challenge.clone(), scopes };
                let now = self.clock.since_boot();
                if login.due.as_ref() != Some(&attempt)
                    && let Err(why) = self.state().refusals.may(&attempt, now)
                {
                    failed = failed.or(why);
                    continue;
                }
                transport.counters.renewals.fetch_add(1, Ordering::Relaxed);
                match self.obtain(transport, origin, &attempt).await {
                    Ok((header, life)) => {
                        let grant = Grant {
                            generation: 0,
                            header: Some(header),
                            life,
                            by: Some(attempt),
                            from: Some(origin.clone()),
                        };
                        self.state().challenge.get_or_insert_with(|| (origin.clone(), challenge.clone()));
                        self.install(grant);
                        return Ok(Remedy::AskAgain);
                    }
                    // Its token server is away; that says nothing about other ways.
                    Err(error @ (AuthError::Unreachable(_) | AuthError::Failing { .. })) => return Err(error),
                    Err(error) => {
                        if matches!(error, AuthError::Refused { .. }) {
                            self.state().refusals.refused(&attempt, now, Some(error.clone()));
                        }
                        failed = Some(error);
                    }
                }
            }
        }
        failed.map_or(Ok(Remedy::None), Err)
    }

    /// For what a token may be asked, one after the other.
    fn scopes(&self, challenge: &Challenge, other: Option<&(String, Order)>) -> Vec<Vec<String>> {
        let own = vec![self.scope.clone()];
        let both = other.map(|(other, _)| vec![self.scope.clone(), other.clone()]);
        match (challenge, both, other) {
            (Challenge::Basic, ..) => vec![Vec::new()],
            (_, Some(both), Some((_, Order::First))) => vec![both, own],
            (_, both, _) => std::iter::once(own).chain(both).collect(),
        }
    }

    fn install(&self, grant: Grant) {
        let mut state = self.state();
        state.grant = Grant { generation: state.grant.generation + 1, ..grant };
        state.proven = false;
    }

    /// Whether the registry may be asked for a challenge now.
    fn may_ask(&self) -> bool {
        let (mut state, now) = (self.state(), self.clock.since_boot());
        let may = state.asked.is_none_or(|asked| now >= asked + ASK_AGAIN);
        if may {
            state.asked = Some(now);
        }
        may
    }

    /// The answer to the same question without a login.
    async fn asked_openly(&self, transport: &Transport, request: &Outgoing) -> Option<Asked> {
        let (method, url, headers) = (request.method.clone(), request.url.clone(), request.headers.clone());
        asked(transport, &Outgoing { method, url, headers, authorization: None, form: None }).await
    }

    /// The challenge that the registry of `url` has for those who want to log in.
    async fn asked_for_a_challenge(&self, transport: &Transport, url: &Url) -> Option<Asked> {
        let mut url = url.clone();
        url.set_path("/v2/");
        url.set_query(None);
        let request = Outgoing { method: Method::GET, url, headers: HeaderMap::new(), authorization: None, form: None };
        asked(transport, &request).await.filter(|asked| matches!(asked, Asked::Challenge(_)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn obtain(
        &self,
        transport: &Transport,
        registry: &Origin,
        attempt: &Attempt,
    ) -> Result<(HeaderValue, Option<Life>), AuthError> {
        let found = attempt.used.as_ref();
        if let Some(Credential::Registry { token }) = found.map(|found| &found.credential) {
            let header = header("Bearer", token.reveal());
            return Ok((header.ok_or_else(|| AuthError::NoToken { host: registry.to_string() })?, None));
        }
        match &attempt.challenge {
            Challenge::Basic => match found.map(|found| &found.credential) {
                Some(Credential::Password { user, password }) => Ok((basic(user, password), None)),
                _ => Err(AuthError::WantsPassword { tried: tried(found) }),
            },
            Challenge::Bearer { realm, service } => {
                let server = TokenServer::of(registry, realm, service.as_deref(), self.verify)?;
                let (header, life) = server.token(transport, attempt, &self.clock, &self.deadlines).await?;
                Ok((header, Some(life)))
            }
        }
    }
}

/// What to log in with, and by which challenges.
struct Login {
    found: Option<Found>,
    /// Best first.
    ways: Vec<(Origin, Challenge)>,
    /// The scope of another name that the registry has for the repository.
    other_scope: Option<(String, Order)>,
    /// An attempt that was refused and may be made nevertheless.
    due: Option<Attempt>,
}

/// When something is tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Order {
    First,
    /// When all else was refused.
    Last,
}

/// What a registry said when it was asked without a login.
enum Asked {
    Challenge(Offer),
    Granted,
}

async fn asked(transport: &Transport, request: &Outgoing) -> Option<Asked> {
    let limit = transport.deadlines.connect + transport.deadlines.header;
    let reply = transport.answer_within(request, limit).await.ok()?;
    if reply.status().is_success() {
        return Some(Asked::Granted);
    }
    let own = Origin::of(&reply.url) == Origin::of(&request.url) && reply.status() == StatusCode::UNAUTHORIZED;
    let challenges = reply.headers().get_all(WWW_AUTHENTICATE).iter();
    challenge::choose(challenges.map(HeaderValue::as_bytes)).filter(|_| own).map(Asked::Challenge)
}

/// The challenges to answer, best first: what is offered, but for a password in place of a token only when the token's
/// server did not help.
fn ways_in(offered: Option<(Origin, Challenge)>, remembered: Option<(Origin, Challenge)>) -> Vec<(Origin, Challenge)> {
    match (offered, remembered) {
        (Some(basic @ (_, Challenge::Basic)), Some(bearer @ (_, Challenge::Bearer { .. }))) => vec![bearer, basic],
        (Some(offered), _) => vec![offered],
        (None, remembered) => remembered.into_iter().collect(),
    }
}
