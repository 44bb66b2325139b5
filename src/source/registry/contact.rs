//! What a registry has shown of itself in the answers so far.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;

use super::client::{Client, Thing};
use super::http::Reply;
use super::origin::Origin;
use super::patience::{Tries, Turn};
use super::{RegistrySource, compare, kind};
use crate::digest::Digest;
use crate::source::{MANIFEST_LIMIT, Outage, SourceError};

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
    /// Whether requests wait for it in vain, as it neither answers nor refuses.
    pub silent: bool,
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
    /// `limit`. The manifest is compared: what is in a mirror's place may answer whatever is asked, as a portal does.
    pub async fn try_mirrors(&self, digest: Option<&Digest>, limit: Duration) -> Vec<MirrorAnswer> {
        let (name, what) = (digest.map(ToString::to_string), "the image's manifest");
        let ask = |client: Arc<Client>| {
            let thing = name.as_deref().map_or(Thing::Root, Thing::Manifest);
            async move {
                let begun = Instant::now();
                let mut tries = Tries::new(client.clock.clone(), &client.deadlines);
                tries.turn = Turn::Mirror;
                let answer = {
                    let right = |_: &Reply, body: &[u8]| digest.is_none_or(|digest| digest.is_of(body));
                    let asked = client.document(thing, what, MANIFEST_LIMIT, right, &mut tries);
                    tokio::time::timeout(limit, asked).await
                };
                let late = answer.is_err();
                let answer = match answer {
                    Ok(Ok((reply, body))) => kind(&client, &reply, &body)
                        .and_then(|_| digest.map_or(Ok(()), |digest| compare(&client, what, digest, &body))),
                    Ok(Err(error)) => Err(error),
                    Err(_) => {
                        let why = format!("it gave no answer within {} s", limit.as_secs_f32());
                        Err(client.away(what, why, Outage::Silent))
                    }
                };
                let silent = late || matches!(tries.left, Some((Outage::Silent, _)));
                MirrorAnswer { host: client.host.clone(), took: begun.elapsed(), answer, silent }
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
