//! Tags: which ones a repository has, for the hint that comes with one that it does not have.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::client::Thing;
use super::referrers::next_query;
use super::{RegistrySource, Reply, encoding};
use crate::source::{MANIFEST_LIMIT, SourceError};

/// Pages of a list that are read.
const MAX_PAGES: usize = 8;
/// Tags that are asked for at a time.
pub(super) const PAGE: &str = "n=1000";
/// The longest tag, in bytes (distribution-spec, "Pulling manifests"); longer ones are none.
const LONGEST: usize = crate::reference::TAG_LIMIT;

/// A page of the list (distribution-spec, "Listing Tags").
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl RegistrySource {
    /// Tags of the repository, of a long list the first some thousand.
    ///
    /// # Errors
    /// [`SourceError`], also if the registry does not list them.
    pub async fn tags(&self) -> Result<BTreeSet<String>, SourceError> {
        let (what, plain) = ("the list of tags", |_: &Reply, body: &[u8]| encoding::is_plain(body));
        let mut tags = BTreeSet::new();
        let mut next = None::<String>;
        for _ in 0..MAX_PAGES {
            let mut tries = self.tries();
            let thing = Thing::Tags { next: next.as_deref() };
            let (reply, body) = {
                let _permit = self.client.short.acquire().await.expect("the queues are never closed");
                self.client.document(thing, what, MANIFEST_LIMIT, plain, &mut tries).await?
            };
            let page: Page = serde_json::from_slice(&body)
                .map_err(|_| self.client.protocol(what, "it is not a list of tags".to_owned()))?;
            tags.extend(page.tags.unwrap_or_default().into_iter().filter(|tag| tag.len() <= LONGEST));
            let following = reply.header("link").and_then(|link| next_query(link, reply.url.path()));
            match following {
                Some(following) if next.as_ref() != Some(&following) => next = Some(following),
                _ => break,
            }
        }
        Ok(tags)
    }
}
