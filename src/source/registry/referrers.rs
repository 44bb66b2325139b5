//! Referrers: which manifests of a repository have a given one as their subject.
//!
//! Registries list them at an endpoint of its own, in pages (distribution-spec, "Listing Referrers"). Where there is no
//! such endpoint, clients keep the list themselves, in an image index under a tag that is made of the digest ("Referrers
//! Tag Schema"). Those who may push decide what a list holds, so only a part of a long one is read.

use bytes::Bytes;
use reqwest::{Method, StatusCode};

use super::client::{Ask, Listing, Thing};
use super::{RegistrySource, Reply, encoding, known_type, manifest_name};
use crate::digest::Digest;
use crate::source::{MANIFEST_LIMIT, SourceError};
use crate::trust::Untrusted;

/// Pages of a list that are read.
const MAX_PAGES: usize = 8;

/// A list of manifests that refer to one.
#[derive(Debug)]
pub enum Referrers {
    /// From the registry's endpoint: one image index for each page.
    Listed(Vec<Untrusted<Bytes>>),
    /// From the tag, in a registry without the endpoint; `None` if there is no such tag.
    Tagged(Option<Untrusted<Bytes>>),
}

impl Referrers {
    /// The image indexes.
    pub fn into_pages(self) -> Vec<Untrusted<Bytes>> {
        match self {
            Self::Listed(pages) => pages,
            Self::Tagged(page) => page.into_iter().collect(),
        }
    }
}

/// The tag under which the referrers of `of` are listed where there is no endpoint that lists them.
pub fn tag(of: &Digest) -> String {
    // The specification shortens what is longer: a tag has at most 128 characters.
    format!("{}-{}", of.algorithm().name(), &of.hex()[..64])
}

impl RegistrySource {
    /// The artifacts that refer to `of`: of type `kind`, or of all types. A registry may list others as well.
    ///
    /// The tag is asked for at the same time as the endpoint: many registries have none, and there it would cost a round trip.
    ///
    /// # Errors
    /// [`SourceError`]
    pub async fn referrers(&self, of: &Digest, kind: Option<&str>) -> Result<Referrers, SourceError> {
        let tag = tag(of);
        let (mut tagged, mut early) = (std::pin::pin!(self.tagged(&tag)), None);
        let mut pages = Vec::new();
        let mut next = None::<String>;
        while pages.len() < MAX_PAGES {
            let page = {
                let page = self.page(Listing { of, kind, next: next.as_deref() });
                let mut page = std::pin::pin!(page);
                loop {
                    tokio::select! {
                        biased;
                        page = &mut page => break page?,
                        tagged = &mut tagged, if early.is_none() && pages.is_empty() => early = Some(tagged),
                    }
                }
            };
            let Some((page, following)) = page else { break };
            pages.push(page);
            match following {
                Some(following) if next.as_ref() != Some(&following) => next = Some(following),
                _ => return Ok(Referrers::Listed(pages)),
            }
        }
        if !pages.is_empty() {
            tracing::debug!(%of, pages = pages.len(), "only the first pages of the referrers are read");
            return Ok(Referrers::Listed(pages));
        }
        Ok(Referrers::Tagged(match early {
            Some(tagged) => tagged?,
            None => tagged.await?,
        }))
    }

    /// The document under a tag, if there is one.
    ///
    /// # Errors
    /// [`SourceError`]
    pub async fn tagged(&self, tag: &str) -> Result<Option<Untrusted<Bytes>>, SourceError> {
        let plain = |_: &Reply, body: &[u8]| encoding::is_plain(body);
        let mut tries = self.tries();
        let thing = Thing::Manifest(tag);
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        match self.client.document(thing, &manifest_name(tag), MANIFEST_LIMIT, plain, &mut tries).await {
            Ok((_, body)) => Ok(Some(Untrusted::new(body))),
            Err(SourceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page of referrers, and the query of the next one; `None` if the registry has no such endpoint.
    async fn page(&self, listing: Listing<'_>) -> Result<Option<(Untrusted<Bytes>, Option<String>)>, SourceError> {
        let what = format!("the referrers of {}", listing.of);
        let plain = |_: &Reply, body: &[u8]| encoding::is_plain(body);
        let mut tries = self.tries();
        let thing = Thing::Referrers(listing);
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        match self.client.document(thing, &what, MANIFEST_LIMIT, plain, &mut tries).await {
            Ok((reply, body)) if known_type(&reply).is_some_and(|kind| kind.is_index()) => {
                let next = reply.header("link").and_then(|link| next_query(link, reply.url.path()));
                Ok(Some((Untrusted::new(body), next)))
            }
            // Registries without this endpoint answer with a page or with any refusal.
            Ok(_) | Err(SourceError::NotFound { .. } | SourceError::Protocol { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the repository has a blob.
    pub(super) async fn has(&self, thing: Thing<'_>, what: &str) -> Result<bool, SourceError> {
        let _permit = self.client.short.acquire().await.expect("the queues are never closed");
        let ask = Ask { method: Method::HEAD, thing, what, overcomes: u32::MAX };
        let mut reply = self.client.ask(&ask, &mut self.tries()).await?;
        match reply.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(self.client.refusal(&mut reply, what).await),
        }
    }
}

/// The query of the next page (RFC 8288), if it is one of the same list.
pub(super) fn next_query(link: &str, path: &str) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
    });
    let (before, query) = target.split_once('?')?;
    // Whatever the host that is written there, the same registry is asked.
    let own = before.is_empty() || before.ends_with(path);
    (is_next && own && !query.is_empty() && query.len() <= QUERY_LIMIT).then(|| query.to_owned())
}

/// A bound in bytes.
const QUERY_LIMIT: usize = 2 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_one_of_the_same_list() {
        let path = "/v2/app/referrers/sha256:00";
        for (link, wanted) in [
            (r#"</v2/app/referrers/sha256:00?n=2&last=x>; rel="next""#, Some("n=2&last=x")),
            (r#"<https://r.example/v2/app/referrers/sha256:00?last=x>; rel=next"#, Some("last=x")),
            (r#"<?last=x>;rel="next""#, Some("last=x")),
            (r#"</v2/other/referrers/sha256:00?last=x>; rel="next""#, None),
            (r#"</v2/app/referrers/sha256:00?last=x>; rel="prev""#, None),
            (r#"</v2/app/referrers/sha256:00>; rel="next""#, None),
            (r#"</v2/app/referrers/sha256:00?>; rel="next""#, None),
            ("last=x; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_query(link, path).as_deref(), wanted, "{link}");
        }
        let long = format!("</v2/app/referrers/sha256:00?{}>; rel=next", "a".repeat(QUERY_LIMIT + 1));
        assert_eq!(next_query(&long, path), None);
    }
}
