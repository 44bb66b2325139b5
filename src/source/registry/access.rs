//! Access: handling of responses that refuse access.
//!
//! The refusal may come from the registry; then a login may help. It may come from another registry to which a redirect
//! led, as with hosts that are only another name for a registry. That registry has its own login, which is sent only
//! there, as the first registry's login is sent only to the first. Or it comes from blob storage, which gets no login.

use std::path::PathBuf;
use std::sync::Arc;

use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};

use super::HUB_SERVER;
use super::auth::{AuthError, Authorizer, Grant, Refused, Remedy, Rights};
use super::challenge::{self, Challenge, Offer, is_repository};
use super::client::{Ask, Client, Thing};
use super::credentials::{Keyring, Surroundings};
use super::http::{Outgoing, Reply};
use super::origin::{Origin, Reach};
use super::patience::{Clock, Deadlines};
use super::tls::Verify;
use crate::reference::DOCKER_HUB;
use crate::source::SourceError;

/// Limit for logins at registries reached by redirects; usually there are one or two.
const MOST_ELSEWHERE: usize = 16;

/// Inputs of a login at any registry.
pub(super) struct Logins {
    pub(super) authfile: Option<PathBuf>,
    pub(super) surroundings: Surroundings,
    pub(super) rights: Rights,
    pub(super) verify: Verify,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) deadlines: Deadlines,
}

impl Logins {
    /// The authorizer for `repository` at `host`, as users write it.
    pub(super) fn authorizer(&self, host: String, repository: &str) -> Authorizer {
        let (authfile, helper) = (self.authfile.clone(), self.deadlines.helper);
        let keyring = Keyring::new(host, repository.to_owned(), authfile, &self.surroundings, helper);
        Authorizer::new(keyring, (repository, self.rights), self.verify, self.clock.clone(), self.deadlines.clone())
    }
}

/// A request and the grant sent with it.
pub(super) struct Shown<'a> {
    pub(super) request: &'a Outgoing,
    /// The authorizer of the grant; storage gets none.
    pub(super) who: Option<&'a Arc<Authorizer>>,
    pub(super) grant: &'a Grant,
    /// Logins for this request so far.
    pub(super) logins: u32,
    /// Whether nothing else is left to try if the refusal is final.
    pub(super) is_last: bool,
}

/// What to do next.
pub(super) enum Step {
    AskAgain,
    /// Repeat the request at this URL, with that registry's login.
    AskAt(Url),
    /// The response is final.
    Stands,
}

impl Client {
    /// The authorizer for `url`, to which a redirect led, if there was a login at that registry.
    pub(super) fn authorizer_at(&self, url: &Url) -> Option<Arc<Authorizer>> {
        let place = (Origin::of(url)?, repository_at(url)?.to_owned());
        self.elsewhere().get(&place).cloned()
    }

    /// Handles a response of 401, 403 or 404.
    ///
    /// # Errors
    /// If the refusal is final, or the login fails.
    pub(super) async fn overcome(
        &self,
        reply: &mut Reply,
        ask: &Ask<'_>,
        shown: &Shown<'_>,
    ) -> Result<Step, SourceError> {
        let status = reply.status();
        let challenges = reply.headers().get_all(WWW_AUTHENTICATE).iter();
        let offer = challenge::choose(challenges.map(HeaderValue::as_bytes));
        if Origin::of(&reply.url) != Origin::of(&shown.request.url) {
            let offer = offer.filter(|_| status == StatusCode::UNAUTHORIZED);
            return match offer.zip(repository_at(&reply.url).map(str::to_owned)) {
                Some((offer, repository)) => self.log_in_elsewhere(reply, ask, shown, (offer, &repository)).await,
                None => Ok(Step::Stands),
            };
        }
        let Some(who) = shown.who else { return Ok(Step::Stands) };
        let own = Arc::ptr_eq(who, &self.authorizer);
        let offers_no_login = offer.is_none() && shown.grant.header.is_none();
        let refused = Refused { request: shown.request, status, offer, logins: shown.logins };
        match who.refused(&self.transport, shown.grant, refused).await {
            Ok(Remedy::AskAgain) => Ok(Step::AskAgain),
            Ok(Remedy::None) | Err(AuthError::Unchanged { .. }) => {
                if !shown.is_last || status == StatusCode::NOT_FOUND || (own && status == StatusCode::FORBIDDEN) {
                    return Ok(Step::Stands);
                }
                let mut said = reply.said().await;
                if offers_no_login {
                    said.push_str("; it offers no login method that peelfs supports");
                }
                Err(self.denied(reply, ask.what, said, who.told(shown.grant).await))
            }
            Err(error) if own => Err(self.no_grant(error, ask.what)),
            Err(error) => Err(self.no_grant_at(error, ask.what, &reply.host)),
        }
    }

    async fn log_in_elsewhere(
        &self,
        reply: &mut Reply,
        ask: &Ask<'_>,
        shown: &Shown<'_>,
        (offer, repository): (Offer, &str),
    ) -> Result<Step, SourceError> {
        let Some(origin) = Origin::of(&reply.url) else { return Ok(Step::Stands) };
        let who = self.authorizer_elsewhere(&origin, repository);
        let is_clear = !origin.is_tls() && origin.reach() != Reach::Loopback && self.logins.verify == Verify::Yes;
        // Storage may answer like this, too. A host that serves manifests is a registry, and its blobs are its own.
        let may_be_storage = matches!(ask.thing, Thing::Blob(..)) && !who.has_login();
        let unsafe_for = match &offer.challenge {
            _ if is_clear => Some("none, as it does not use TLS"),
            Challenge::Basic if may_be_storage => {
                Some("none, as no password is sent to the target of a redirected blob")
            }
            _ => None,
        };
        if let Some(tried) = unsafe_for {
            let said = reply.said().await;
            return Err(self.denied(reply, ask.what, said, tried.to_owned()));
        }
        let (url, headers) = (reply.url.clone(), shown.request.headers.clone());
        let own = reqwest::header::HeaderMap::new();
        let request = Outgoing { method: Method::GET, url, headers, own, authorization: None, body: None };
        let (status, logins) = (reply.status(), shown.logins);
        let refused = Refused { request: &request, status, offer: Some(offer), logins };
        let nothing = Grant::default();
        match who.refused(&self.transport, &nothing, refused).await {
            Ok(Remedy::AskAgain) => Ok(Step::AskAt(request.url)),
            Ok(Remedy::None) | Err(AuthError::Unchanged { .. }) => {
                let said = reply.said().await;
                Err(self.denied(reply, ask.what, said, who.told(&who.present()).await))
            }
            Err(error) => Err(self.no_grant_at(error, ask.what, &reply.host)),
        }
    }

    fn authorizer_elsewhere(&self, origin: &Origin, repository: &str) -> Arc<Authorizer> {
        let mut elsewhere = self.elsewhere();
        let place = (origin.clone(), repository.to_owned());
        if elsewhere.len() >= MOST_ELSEWHERE && !elsewhere.contains_key(&place) {
            elsewhere.clear();
        }
        let written = origin.to_string();
        let host = if written == HUB_SERVER { DOCKER_HUB.to_owned() } else { written };
        Arc::clone(elsewhere.entry(place).or_insert_with(|| Arc::new(self.logins.authorizer(host, repository))))
    }

    /// The error for a refusal by the host that sent `reply`.
    fn denied(&self, reply: &Reply, what: &str, said: String, tried: String) -> SourceError {
        let is_own = self.settled.get().is_some_and(|base| Origin::of(base) == Origin::of(&reply.url));
        let (place, said) = match is_own {
            true => (self.host.clone(), said),
            false => (reply.host.clone(), format!("{said}, where {} redirects to", self.host)),
        };
        SourceError::Denied { what: what.to_owned(), place, said, tried }
    }
}

/// The repository in the path of a manifest or blob URL.
fn repository_at(url: &Url) -> Option<&str> {
    let rest = url.path().strip_prefix("/v2/")?;
    let (name, _) = rest.rsplit_once("/manifests/").or_else(|| rest.rsplit_once("/blobs/"))?;
    is_repository(name).then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn registries_differ_from_storage_by_their_paths() {
        for (path, wanted) in [
            ("/v2/team/app/manifests/1", Some("team/app")),
            ("/v2/app/blobs/sha256:00?ns=x", Some("app")),
            ("/v2/manifests/manifests/1", Some("manifests")),
            ("/v2/r.example/app/manifests/1", Some("r.example/app")),
            ("/v2/", None),
            ("/v2/app/tags/list", None),
            ("/bucket/v2/app/blobs/x", None),
            ("/v2/a%20b/blobs/x", None),
            ("/v2//blobs/x", None),
            ("/x", None),
        ] {
            let url = Url::parse(&format!("https://r.example{path}")).unwrap();
            assert_eq!(repository_at(&url), wanted, "{path}");
        }
    }
}
