//! What a registry has shown of itself in the answers so far.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::HeaderMap;

use super::RegistrySource;
use super::client::{Ask, Client, Thing};
use super::origin::Origin;
use super::patience::{Tries, Turn};
use crate::digest::Digest;
use crate::source::{Outage, SourceError};

/// How a registry is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Contact {
    /// The scheme, host and port that answer; `None` before an answer.
    pub address: Option<String>,
    /// The credentials that were tried, as in `anonymous` or `user \`alice\` from …`; never a secret.
    pub login: String,
    /// Its limit of requests, if it tells one.
    pub limit: Option<RateLimit>,
}

/// A limit of requests, as in the headers `RateLimit-Limit` and `RateLimit-Remaining`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RateLimit {
    /// Requests in a window.
    pub limit: u64,
    /// Those that are left.
    pub remaining: u64,
    /// Length of the window in seconds, if it is told.
    pub seconds: Option<u64>,
}

/// What a mirror has answered.
#[derive(Debug)]
pub struct MirrorAnswer {
    /// `HOST[:PORT]`.
    pub host: String,
    /// How long it took.
    pub took: Duration,
    /// Why it cannot be used for the image, if it cannot.
    pub answer: Result<(), SourceError>,
}

impl RateLimit {
    /// Parses `100;w=21600` and `76;w=21600`.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let number = |text: &str| text.split(';').next()?.trim().parse().ok();
        let limit = text("ratelimit-limit")?;
        let window = limit.split(';').find_map(|part| part.trim().strip_prefix("w="));
        Some(Self {
            limit: number(limit)?,
            remaining: number(text("ratelimit-remaining")?)?,
            seconds: window.and_then(|seconds| seconds.parse().ok()),
        })
    }
}

/// The last limit that was told.
#[derive(Debug, Default)]
pub(super) struct LastLimit(Mutex<Option<RateLimit>>);

impl LastLimit {
    /// Notes the limit in the headers of a response.
    pub(super) fn note(&self, headers: &HeaderMap) {
        if let Some(limit) = RateLimit::of(headers) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(limit);
        }
    }

    fn get(&self) -> Option<RateLimit> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegistrySource {
    /// The addresses of its host.
    ///
    /// # Errors
    /// If the name cannot be resolved.
    pub async fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let base = self.client.bases.first().expect("there is a base");
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = base.port_or_known_default().unwrap_or_default();
        let mut addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.map(|address| address.ip()).collect();
        addresses.dedup();
        Ok(addresses)
    }

    /// Asks all mirrors at once for the manifest `digest`, or for what the tag names if it is not known, for at most
    /// `limit`.
    pub async fn try_mirrors(&self, digest: Option<&Digest>, limit: Duration) -> Vec<MirrorAnswer> {
        let digest = digest.map(ToString::to_string);
        let what = "the image's manifest";
        let ask = |client: Arc<Client>| {
            let digest = digest.as_deref();
            async move {
                let begun = Instant::now();
                let thing = digest.map_or(Thing::Root, Thing::Manifest);
                let ask = Ask { method: Method::HEAD, thing, what, overcomes: 0 };
                let mut tries = Tries::new(client.clock.clone(), &client.deadlines);
                tries.turn = Turn::Mirror;
                let answer = match tokio::time::timeout(limit, client.ask(&ask, &mut tries)).await {
                    Ok(Ok(reply)) if reply.status().is_success() => Ok(()),
                    Ok(Ok(mut reply)) => Err(client.refusal(&mut reply, what).await),
                    Ok(Err(error)) => Err(error),
                    Err(_) => {
                        let why = format!("it gave no answer within {} s", limit.as_secs_f32());
                        Err(client.away(what, why, Outage::Silent))
                    }
                };
                MirrorAnswer { host: client.host.clone(), took: begun.elapsed(), answer }
            }
        };
        futures_util::future::join_all(self.hosts.mirrors().map(ask)).await
    }

    /// How the registry was reached so far.
    pub async fn contact(&self) -> Contact {
        let client = &self.client;
        let address = client.settled.get().and_then(|base| Some((base.scheme(), Origin::of(base)?)));
        let authorizer = &client.authorizer;
        Contact {
            address: address.map(|(scheme, origin)| format!("{scheme}://{origin}")),
            login: authorizer.told(&authorizer.present()).await,
            limit: self.counters.limit.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn limits_are_read_as_registries_write_them() {
        for (limit, remaining, wanted) in [
            ("100;w=21600", "76;w=21600", Some(RateLimit { limit: 100, remaining: 76, seconds: Some(21600) })),
            ("5000", "0", Some(RateLimit { limit: 5000, remaining: 0, seconds: None })),
            ("many", "1", None),
            ("100", "", None),
            ("-1", "-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("ratelimit-limit", HeaderValue::from_static(limit));
            assert_eq!(RateLimit::of(&headers), None);
            headers.insert("ratelimit-remaining", HeaderValue::from_static(remaining));
            assert_eq!(RateLimit::of(&headers), wanted, "{limit} {remaining}");
        }
    }
}
