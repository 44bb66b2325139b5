//! Tokens: requests to a token server, and which servers may be asked.
//!
//! The registry names the realm in a challenge, and a password is sent there. So the realm must use TLS or be on this
//! machine, and a remote registry cannot point to this machine or link.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};

use super::auth::{AuthError, tried};
use super::credentials::{Credential, Found, Secret};
use super::http::{Body, Outgoing, Transport, shown};
use super::origin::{Origin, Reach};
use super::patience::{Clock, Deadlines, Tries};
use super::refusals::Attempt;
use super::tls::Verify;
use crate::source::Outage;

/// Limit for a response of a token server, in bytes.
const TOKEN_LIMIT: usize = 1 << 20;
/// The life of a token if the server does not state it ("Token Authentication", `expires_in`).
const USUAL_LIFE: Duration = Duration::from_secs(60);
/// Limit for a stated life; a registry that ends a token sooner answers 401.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Limit for waiting for a token, whatever the readers' limits.
const LONGEST_ANSWER: Duration = Duration::from_secs(300);
/// Limit for a realm, in bytes.
const REALM_LIMIT: usize = 2 << 10;
/// The client id sent to token servers.
const CLIENT_ID: &str = "peelfs";

/// The server that issues tokens for a registry.
pub(super) struct TokenServer<'a> {
    realm: Url,
    service: Option<&'a str>,
}

/// By the clock that includes suspended time: a token expires while a laptop sleeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) renew: Duration,
    pub(super) end: Duration,
}

/// Why a realm is not used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RealmFault {
    #[error("it is not an http or https address")]
    Address,
    #[error("it is on this machine or link, and the registry is not")]
    Inward,
    #[error("it does not use TLS")]
    Plain,
}

impl<'a> TokenServer<'a> {
    /// The server of `realm`, if `registry` may name it.
    pub(super) fn of(
        registry: &Origin,
        realm: &str,
        service: Option<&'a str>,
        verify: Verify,
    ) -> Result<Self, AuthError> {
        let realm = check_realm(registry, realm, verify).map_err(|why| {
            let shown = shown(realm.split('?').next().unwrap_or_default());
            AuthError::Realm { realm: shown, why }
        })?;
        Ok(Self { realm, service })
    }

    /// Requests a token for `attempt`; returns it as a header.
    pub(super) async fn token(
        &self,
        transport: &Transport,
        attempt: &Attempt,
        clock: &Arc<dyn Clock>,
        deadlines: &Deadlines,
    ) -> Result<(HeaderValue, Life), AuthError> {
        let host = Origin::of(&self.realm).map(|origin| origin.to_string()).unwrap_or_default();
        let found = attempt.used.as_ref();
        let tried = || tried(found);
        let mut ways = ways(&self.realm, self.service, &attempt.scopes, found)?.into_iter();
        let mut way = ways.next().expect("there is always a first way");
        let mut tries = Tries::new(clock.clone(), deadlines);
        loop {
            let asked_at = clock.since_boot();
            let limit = deadlines.patience.min(LONGEST_ANSWER);
            let mut reply = match transport.answer_within(&way, limit).await {
                Ok(reply) => reply,
                Err(fault) if fault.is_passing() && tries.again_after(fault.outage(), None).await => continue,
                Err(fault) => return Err(AuthError::Unreachable(fault)),
            };
            match reply.status() {
                StatusCode::OK | StatusCode::CREATED => {
                    let body = match reply.text(TOKEN_LIMIT).await {
                        Ok(body) => body,
                        Err(fault) if fault.is_passing() && tries.again().await => continue,
                        Err(fault) => return Err(AuthError::Unreachable(fault)),
                    };
                    let read = read_token(&body);
                    let read = read.and_then(|(token, life)| Some((header("Bearer", token.reveal())?, life)));
                    let (header, life) = read.ok_or(AuthError::NoToken { host })?;
                    // Renew early enough that no request is sent with a token that expires on the way.
                    let margin = (life / 5).min(Duration::from_secs(30));
                    return Ok((header, Life { renew: asked_at + life - margin, end: asked_at + life }));
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(AuthError::Refused { host, said: reply.said().await, tried: tried() });
                }
                status if is_busy(status) => {
                    let asked = reply.retry_after();
                    let said = reply.said().await;
                    drop(reply);
                    if !tries.again_after(trouble(status), asked).await {
                        return Err(AuthError::Failing { host, said, outage: trouble(status) });
                    }
                }
                // Some servers support only GET, some only POST, and they report that in different ways.
                _ => match ways.next() {
                    Some(next) => way = next,
                    None => return Err(AuthError::Refused { host, said: reply.said().await, tried: tried() }),
                },
            }
        }
    }
}

/// The kind of outage of a server that [is busy](is_busy).
pub(super) fn trouble(status: StatusCode) -> Outage {
    if status == StatusCode::TOO_MANY_REQUESTS { Outage::TooMany } else { Outage::Unwell }
}

/// Whether the server may answer the same request later.
pub(super) fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// The requests that may yield a token, best first; never empty.
fn ways(
    realm: &Url,
    service: Option<&str>,
    scopes: &[String],
    found: Option<&Found>,
) -> Result<Vec<Outgoing>, AuthError> {
    let get = |authorization: Option<HeaderValue>, account: Option<&str>| {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            for (name, value) in [("account", account), ("service", service)] {
                value.map(|value| query.append_pair(name, value));
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
        }
        Outgoing {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            own: HeaderMap::new(),
            authorization,
            body: None,
        }
    };
    let post = |fields: &[(&str, &str)]| {
        let mut form = realm.clone();
        form.set_query(None);
        {
            let mut query = form.query_pairs_mut();
            query.extend_pairs(fields);
            query.append_pair("service", service.unwrap_or_default());
            query.append_pair("scope", &scopes.join(" ")).append_pair("client_id", CLIENT_ID);
        }
        let body = form.query().map(|form| Body::form(form.to_owned()));
        let url = realm.clone();
        Outgoing {
            method: Method::POST,
            url,
            headers: HeaderMap::new(),
            own: HeaderMap::new(),
            authorization: None,
            body,
        }
    };
    Ok(match found.map(|found| &found.credential) {
        None | Some(Credential::Registry { .. }) => vec![get(None, None)],
        Some(Credential::Password { user, password }) => vec![
            get(Some(basic(user, password)), Some(user)),
            post(&[("grant_type", "password"), ("username", user), ("password", password.reveal())]),
        ],
        Some(Credential::Identity { token }) => {
            let origin = Origin::of(realm);
            if !origin.is_some_and(|origin| origin.is_tls() || origin.reach() == Reach::Loopback) {
                let realm = shown(realm.path());
                return Err(AuthError::Realm { realm, why: RealmFault::Plain });
            }
            vec![
                post(&[("grant_type", "refresh_token"), ("refresh_token", token.reveal())]),
                get(Some(basic("<token>", token)), None),
            ]
        }
    })
}

fn check_realm(registry: &Origin, realm: &str, verify: Verify) -> Result<Url, RealmFault> {
    let url = Some(realm).filter(|realm| realm.len() <= REALM_LIMIT).and_then(|realm| Url::parse(realm).ok());
    let url = url.filter(|url| url.username().is_empty() && url.password().is_none()).ok_or(RealmFault::Address)?;
    let origin = Origin::of(&url).ok_or(RealmFault::Address)?;
    let inward = origin.reach() != Reach::Elsewhere;
    if inward && registry.reach() != origin.reach() && registry.reach() != Reach::Loopback {
        return Err(RealmFault::Inward);
    }
    let clear = !origin.is_tls() && origin.reach() != Reach::Loopback;
    if clear && verify == Verify::Yes {
        return Err(RealmFault::Plain);
    }
    Ok(url)
}

fn read_token(body: &[u8]) -> Option<(Secret, Duration)> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<f64>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let given = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = given(answer.token).or_else(|| given(answer.access_token))?;
    let life = match answer.expires_in {
        Some(seconds) if seconds > 0.0 => {
            Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE)
        }
        _ => USUAL_LIFE,
    };
    Some((Secret::new(token), life))
}

pub(super) fn basic(user: &str, password: &Secret) -> HeaderValue {
    let pair = STANDARD.encode(format!("{user}:{}", password.reveal()));
    header("Basic", &pair).expect("base64 is plain text")
}

/// `SCHEME VALUE`, if the value is valid in a header.
pub(super) fn header(scheme: &str, value: &str) -> Option<HeaderValue> {
    let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    let mut header = HeaderValue::try_from(format!("{scheme} {value}")).ok().filter(|_| plain)?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn passwords_go_to_realms_with_tls_or_on_this_machine_only() {
        use RealmFault::{Address, Inward, Plain};
        let public = "https://r.example/";
        let local = "http://127.0.0.1:5000/";
        let long = format!("https://a/{}", "x".repeat(REALM_LIMIT));
        for (registry, realm, wanted) in [
            (public, "https://auth.example/token", None),
            (public, "https://auth.example/token?x=y", None),
            (public, "http://auth.example/token", Some(Plain)),
            (public, "https://169.254.169.254/latest", Some(Inward)),
            (public, "http://169.254.169.254/latest", Some(Inward)),
            (public, "https://localhost/token", Some(Inward)),
            (public, "http://[::1]:80/token", Some(Inward)),
            (public, "ftp://auth.example/", Some(Address)),
            (public, "/token", Some(Address)),
            (public, "", Some(Address)),
            (public, "https://user:pw@auth.example/", Some(Address)),
            (public, &long, Some(Address)),
            (local, "http://127.0.0.1:5001/token", None),
            (local, "https://auth.example/token", None),
            (local, "http://auth.example/token", Some(Plain)),
        ] {
            let result = check_realm(&origin(registry), realm, Verify::Yes).err();
            assert_eq!(result, wanted, "{registry} {realm:.60}");
        }
        assert!(check_realm(&origin(public), "http://auth.example/", Verify::No).is_ok());
        assert_eq!(check_realm(&origin(public), "http://127.0.0.1/", Verify::No), Err(Inward));
    }

    #[test]
    fn tokens_as_servers_send_them() {
        for (body, wanted) in [
            (r#"{"token":"a","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#, Some(("a", 300))),
            (r#"{"access_token":"b"}"#, Some(("b", 60))),
            (r#"{"token":"","access_token":"b","expires_in":0}"#, Some(("b", 60))),
            (r#"{"token":"a","expires_in":1e300}"#, Some(("a", 24 * 3600))),
            (r#"{"token":"a","expires_in":-5}"#, Some(("a", 60))),
            (r#"{"expires_in":300}"#, None),
            ("", None),
        ] {
            let wanted = wanted.map(|(token, life)| (Secret::new(token), Duration::from_secs(life)));
            assert_eq!(read_token(body.as_bytes()), wanted, "{body}");
        }
    }

    #[test]
    fn a_token_cannot_smuggle_a_header() {
        for token in ["", "a\r\nX: y", "a b", "\u{e9}"] {
            assert!(header("Bearer", token).is_none(), "{token:?}");
        }
        assert!(!format!("{:?}", header("Bearer", "hunter2").unwrap()).contains("hunter2"));
    }

    #[test]
    fn refresh_tokens_never_travel_in_clear() {
        let credential = Credential::Identity { token: Secret::new("t") };
        let found = Found { credential, origin: String::new() };
        let ask = |realm: &str| ways(&Url::parse(realm).unwrap(), None, &["s".to_owned()], Some(&found)).is_ok();
        assert!(ask("https://auth.example/token"));
        assert!(ask("http://127.0.0.1:5001/token"));
        assert!(!ask("http://auth.example/token"));
    }
}
