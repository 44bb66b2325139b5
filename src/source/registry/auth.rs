//! Authorization: the `Authorization` header, and its renewal.
//!
//! Tokens live for minutes or hours, mounts for weeks, so renewal is part of normal operation. When a token ends, all
//! readers notice at once; one of them renews it and the others wait for its result, a token or a refusal.
//!
//! Registries report an ended login in different ways: 401 with a challenge, 401 without one (Docker Hub), 401 with
//! another scheme's challenge (Harbor), 403 (ECR). So if a grant that worked is refused, it counts as stale, whatever
//! the response is: credentials are looked up again and sent by the challenge that worked. Registries that hide private
//! images answer 404; they are asked at `/v2/` whether they offer logins.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode};

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

/// Limit of logins per request.
const MOST_LOGINS: u32 = 4;
/// After a failed login, helpers are asked again after this time, and files are read again when they change.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// 403 may mean that a login has ended, or that it has no right to this object. It is taken for an ended login once per
/// this time.
const FORBIDDEN_AGAIN: Duration = Duration::from_secs(5);
/// A registry that gave no challenge on request is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Where the API of a registry begins.
const ROOT: &str = "/v2/";

/// Answers challenges for one repository.
pub(super) struct Authorizer {
    keyring: Keyring,
    /// `repository:NAME:pull`.
    pull: String,
    /// The same, or with `push` where that is needed.
    scope: String,
    verify: Verify,
    clock: Arc<dyn Clock>,
    deadlines: Deadlines,
    state: Mutex<State>,
    /// Held by the task that renews; the others wait for its result.
    flight: tokio::sync::Mutex<()>,
}

/// What requests need to be allowed to do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Rights {
    /// Read.
    #[default]
    Pull,
    /// Read and write.
    Push,
}

/// What requests carry at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Grant {
    /// Counts renewals; shows whether another reader has renewed already.
    generation: u64,
    /// Marked as sensitive; absent until a login was needed.
    pub(super) header: Option<HeaderValue>,
    life: Option<Life>,
    /// The attempt that obtained it.
    by: Option<Attempt>,
    /// The origin of the challenge.
    from: Option<Origin>,
}

impl Grant {
    fn used(&self) -> Option<&Found> {
        self.by.as_ref()?.used.as_ref()
    }

    /// Its second scope, besides that of the repository.
    fn other_scope(&self) -> Option<String> {
        self.by.as_ref()?.scopes.get(1).cloned()
    }
}

#[derive(Default)]
struct State {
    grant: Grant,
    /// Whether the registry has accepted the current grant.
    proven: bool,
    /// The last challenge answered with success, or else the first one, with its origin.
    challenge: Option<(Origin, Challenge)>,
    refusals: Refusals,
    looked: Option<Looked>,
    forbidden: Option<Duration>,
    /// When the registry was last asked for a challenge, at `/v2/` or without a login.
    asked: Option<Duration>,
    flights: u64,
    outcome: Option<(StatusCode, Result<Remedy, AuthError>)>,
}

/// Result of the last lookup of credentials.
struct Looked {
    marks: Vec<Option<Mark>>,
    at: Duration,
    found: Option<Found>,
}

/// A response of 401, 403 or 404.
pub(super) struct Refused<'a> {
    /// The request.
    pub(super) request: &'a Outgoing,
    pub(super) status: StatusCode,
    /// The challenge in the response.
    pub(super) offer: Option<Offer>,
    /// Logins for this request so far.
    pub(super) logins: u32,
}

/// Outcome of a refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Remedy {
    /// There is another grant: repeat the request.
    AskAgain,
    /// The refusal is final.
    None,
}

/// Why there is no authorization.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AuthError {
    #[error(transparent)]
    File(#[from] UnusableFile),
    #[error("it requires a user name and password")]
    WantsPassword { tried: String },
    #[error("the credentials have not changed since they were refused")]
    Unchanged { tried: String },
    #[error("its token server `{realm}` is not used: {why}")]
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

/// Description of `found` for messages.
pub(super) fn tried(found: Option<&Found>) -> String {
    found.map_or_else(|| format!("{ANONYMOUS}, as no credentials were found"), Found::to_string)
}

/// How a request without credentials is told.
const ANONYMOUS: &str = "anonymous";

impl Authorizer {
    pub(super) fn new(
        keyring: Keyring,
        (repository, rights): (&str, Rights),
        verify: Verify,
        clock: Arc<dyn Clock>,
        deadlines: Deadlines,
    ) -> Self {
        let pull = format!("repository:{repository}:pull");
        let scope = match rights {
            Rights::Pull => pull.clone(),
            Rights::Push => format!("{pull},push"),
        };
        Self {
            keyring,
            pull,
            scope,
            verify,
            clock,
            deadlines,
            state: Mutex::default(),
            flight: tokio::sync::Mutex::new(()),
        }
    }

    /// The grant to send; renewed first if it is about to end.
    pub(super) async fn grant(&self, transport: &Transport) -> Result<Grant, AuthError> {
        let grant = self.state().grant.clone();
        let now = self.clock.since_boot();
        let Some(life) = grant.life.filter(|life| now >= life.renew) else { return Ok(grant) };
        match self.renew(transport, &grant).await {
            Err(error) if now < life.end => {
                tracing::debug!("{error}; using the current token until it expires");
                Ok(grant)
            }
            result => result,
        }
    }

    /// The current grant, without renewal.
    pub(super) fn present(&self) -> Grant {
        self.state().grant.clone()
    }

    /// Whether there is a header to send.
    pub(super) fn has_login(&self) -> bool {
        self.state().grant.header.is_some()
    }

    /// Records that the registry has accepted `grant`.
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

    /// Describes the credentials of `grant` for messages, and why they were chosen.
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
                format!("{ANONYMOUS}: no login was tried, as {} asks for none; there is {found}", self.keyring.host())
            }
        }
    }

    /// What was `tried`, and which file was missing if that was nothing.
    pub(super) fn with_missing_file(&self, tried: String) -> String {
        match self.keyring.missing() {
            Some(path) if tried.starts_with(ANONYMOUS) => {
                format!("{tried}; `REGISTRY_AUTH_FILE` names `{}`, which does not exist", path.display())
            }
            _ => tried,
        }
    }

    /// Describes the credentials used for an object that was not found, if there is more to say than the request
    /// itself.
    pub(super) fn describe_missing(&self, grant: &Grant) -> Option<String> {
        if let Some(used) = grant.used() {
            return Some(format!("asked as {used}"));
        }
        let found = self.state().looked.as_ref().and_then(|looked| looked.found.clone())?;
        Some(format!("asked without the login of {found}, as {} asks for none", self.keyring.host()))
    }

    /// Renews `old`, which is about to end. Of all concurrent callers one sends requests; all get its result.
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

    /// Looks for another grant after the registry refused a request with `grant`.
    ///
    /// Of all concurrent callers one sends requests; all get its result.
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

    /// Ends a renewal and publishes its result.
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
        // An object hidden from anonymous requests may be visible with a login.
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
        let offered_scope = offered.as_ref().and_then(|(offer, _)| offer.scope_beside(&self.pull));
        let other_scope = grant.other_scope().map(|scope| (scope, Order::First));
        let other_scope = other_scope.or(offered_scope.map(|scope| (scope, Order::Last)));
        let ways = ways_in(offered.map(|(offer, origin)| (origin, offer.challenge)), remembered);
        let login = Login { found: found.clone(), ways: ways.clone(), other_scope: other_scope.clone(), due };
        let result = self.log_in(transport, login).await;
        if matches!(result, Err(AuthError::Unreachable(_) | AuthError::Failing { .. })) {
            // The login failed for another reason; the refusal is still unexplained.
            self.state().forbidden = None;
        }
        let unusable = matches!(&result, Ok(Remedy::None) | Err(AuthError::Refused { .. } | AuthError::Unreachable(_)));
        let may_help = offers_nothing && unusable && (hidden || stale || refused.status == StatusCode::UNAUTHORIZED);
        if !may_help || (grant.header.is_none() && found.is_none()) || !self.may_ask() {
            return result;
        }
        let reads = matches!(refused.request.method, Method::GET | Method::HEAD);
        let asked = match grant.header {
            Some(_) if reads => self.probe_anonymously(transport, refused.request).await,
            _ => self.probe_for_challenge(transport, refused.request).await,
        };
        match asked.zip(origin) {
            Some((Probe::Challenge(offer), origin)) if !ways.iter().any(|(_, way)| *way == offer.challenge) => {
                let ways = vec![(origin, offer.challenge)];
                self.log_in(transport, Login { found, ways, other_scope, due: None }).await
            }
            Some((Probe::Granted, _)) => {
                self.install(Grant::default());
                Ok(Remedy::AskAgain)
            }
            _ => result,
        }
    }

    /// Whether the grant is stale, and which refused attempt may be repeated; `None` if the refusal is not about the
    /// login.
    fn judge(&self, grant: &Grant, refused: &Refused<'_>, found: Option<&Found>) -> Option<(bool, Option<Attempt>)> {
        let (mut state, now) = (self.state(), self.clock.since_boot());
        if refused.status == StatusCode::NOT_FOUND {
            return Some((false, None));
        }
        // Between this reader's logins, other readers may have used them up.
        let proven = state.proven && refused.logins + 1 < MOST_LOGINS;
        if refused.status == StatusCode::FORBIDDEN && proven && found == grant.used() {
            if state.forbidden.is_some_and(|again| now < again) {
                return None;
            }
            state.forbidden = Some(now + FORBIDDEN_AGAIN);
        }
        let is_basic = grant.by.as_ref().is_some_and(|by| by.challenge == Challenge::Basic);
        // An ended token says nothing about the credentials; a refused password does.
        let noted = grant.by.as_ref().filter(|_| !proven || is_basic);
        let due = noted.filter(|by| state.refusals.refused(by, now, None));
        // The same password in the same header was just refused; do not send it again.
        let due = due.filter(|_| !is_basic);
        let stale = proven || state.refusals.has_worked(grant.used());
        Some((stale, due.cloned()))
    }

    /// Credentials from files and helpers; looked up again unless the last lookup has just failed to help.
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

    /// Tries the ways to log in one after another, except those already refused.
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
                    // The token server is unreachable; that says nothing about other ways.
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

    /// The scopes to request a token for, one set after another.
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

    /// Repeats the request without a login.
    async fn probe_anonymously(&self, transport: &Transport, request: &Outgoing) -> Option<Probe> {
        let (method, url, headers) = (request.method.clone(), request.url.clone(), request.headers.clone());
        let own = request.own.clone();
        probe(transport, &Outgoing { method, url, headers, own, authorization: None, body: None }).await
    }

    /// Asks the registry that got `request` for a challenge, at `/v2/`.
    async fn probe_for_challenge(&self, transport: &Transport, request: &Outgoing) -> Option<Probe> {
        let mut url = request.url.clone();
        let path = url.path().find(ROOT).map_or(ROOT, |at| &url.path()[..at + ROOT.len()]).to_owned();
        url.set_path(&path);
        url.set_query(None);
        let (headers, own) = (HeaderMap::new(), request.own.clone());
        let request = Outgoing { method: Method::GET, url, headers, own, authorization: None, body: None };
        probe(transport, &request).await.filter(|probe| matches!(probe, Probe::Challenge(_)))
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

/// Credentials, and the challenges to answer with them.
struct Login {
    found: Option<Found>,
    /// Best first.
    ways: Vec<(Origin, Challenge)>,
    /// The scope of another name of the repository at the registry.
    other_scope: Option<(String, Order)>,
    /// A refused attempt that may be repeated.
    due: Option<Attempt>,
}

/// When something is tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Order {
    First,
    /// After all else was refused.
    Last,
}

/// Response of a registry to a request without a login.
enum Probe {
    Challenge(Offer),
    Granted,
}

async fn probe(transport: &Transport, request: &Outgoing) -> Option<Probe> {
    let limit = transport.deadlines.connect + transport.deadlines.header;
    let reply = transport.answer_within(request, limit).await.ok()?;
    if reply.status().is_success() {
        return Some(Probe::Granted);
    }
    let own = Origin::of(&reply.url) == Origin::of(&request.url) && reply.status() == StatusCode::UNAUTHORIZED;
    let challenges = reply.headers().get_all(WWW_AUTHENTICATE).iter();
    challenge::choose(challenges.map(HeaderValue::as_bytes)).filter(|_| own).map(Probe::Challenge)
}

/// The challenges to answer, best first: the offered one; but a password is offered in place of a token only after the
/// token server.
fn ways_in(offered: Option<(Origin, Challenge)>, remembered: Option<(Origin, Challenge)>) -> Vec<(Origin, Challenge)> {
    match (offered, remembered) {
        (Some(basic @ (_, Challenge::Basic)), Some(bearer @ (_, Challenge::Bearer { .. }))) => vec![bearer, basic],
        (Some(offered), _) => vec![offered],
        (None, remembered) => remembered.into_iter().collect(),
    }
}
