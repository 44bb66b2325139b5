//! SOCI indexes of version 1: found beside the image in a registry, as pushed indexes are ([`super::pushed`]), and believed as
//! those are, where the user has named the repository.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::artifact_check::{ArtifactChecks, name_of};
use super::origin::{NotOpened, Opened};
use super::referrer::{Referring, described, manifest_of};
use super::soci::{Maker, WantedLayer};
use super::soci_error::{NoIndex, SociError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::documents::{SOCI_V1, SociIndex};
use crate::layer::Format;
use crate::source::BlobSource;
use crate::source::registry::RegistrySource;
use crate::store::Store;

/// The SOCI index that refers to an image.
pub(super) struct SociReferrers {
    /// Where it is looked for.
    registry: Arc<RegistrySource>,
    referring: Arc<Referring>,
    /// The image's manifest.
    image: Digest,
    /// Registry and repository.
    place: Box<str>,
    found: OnceCell<Result<Found, Arc<NoIndex>>>,
    checks: Arc<ArtifactChecks>,
}

/// An index, and the name of it.
#[derive(Debug)]
struct Found {
    index: SociIndex,
    name: String,
}

impl SociReferrers {
    /// That of the image with the manifest `image`, in `place`, the repository of `registry`, if `checks` allow it.
    pub(super) fn new(
        registry: Arc<RegistrySource>,
        (place, image): (&str, &Digest),
        referring: Arc<Referring>,
        checks: Arc<ArtifactChecks>,
    ) -> Self {
        Self { registry, referring, image: image.clone(), place: place.into(), found: OnceCell::new(), checks }
    }

    /// Opens a layer by the zTOC that the index has of it, which is fetched.
    ///
    /// # Errors
    /// [`NotOpened`]
    pub(super) async fn open(&self, wanted: &WantedLayer<'_>) -> Result<Opened, NotOpened> {
        let found = self.found(Some(wanted.store)).await;
        let Found { index, name } = found.inspect_err(|_| self.referring.tell_failure())?;
        let source = Arc::clone(&self.registry) as Arc<dyn BlobSource>;
        let (by, source) = (&**name, &source);
        Maker { format: Format::SociReferrer, by, source, image: &self.image }.open(index, wanted).await
    }

    /// What there is for a layer with this blob, for `--explain`.
    pub(super) async fn look(&self, layer: &Digest) -> String {
        match self.found(None).await {
            Err(why) => why.to_string(),
            Ok(Found { index, .. }) => match index.ztoc(layer) {
                Some(ztoc) => format!("{} has a zTOC of {} bytes; it is not needed yet", self.place, ztoc.size),
                None => SociError::NoZtoc.to_string(),
            },
        }
    }

    async fn found(&self, store: Option<&Store>) -> Result<&Found, SociError> {
        let found = self.found.get_or_init(|| async { self.find(store).await.map_err(Arc::new) }).await;
        found.as_ref().map_err(|why| SociError::Index(Arc::clone(why)))
    }

    /// The newest index that refers to the image and may be used.
    async fn find(&self, store: Option<&Store>) -> Result<Found, NoIndex> {
        let mut unusable = Vec::new();
        for candidate in self.referring.of_type(SOCI_V1).await.map_err(|why| NoIndex::NotListed { why })? {
            let (index, manifest) = match self.read(&candidate, store).await {
                Ok(read) => read,
                Err(why) => {
                    tracing::warn!(place = &*self.place, index = %candidate.digest, why, "a SOCI index is not used");
                    unusable.push(why);
                    continue;
                }
            };
            let name = name_of(&self.place, &candidate.digest);
            match self.checks.ask(&name, &manifest).await {
                Ok(()) => return Ok(Found { index, name }),
                Err(refusal) => {
                    unusable.push(refusal.why.to_string());
                    if !refusal.others_may_be {
                        break;
                    }
                }
            }
        }
        Err(NoIndex::None { place: self.place.to_string(), unusable })
    }

    async fn read(&self, candidate: &Descriptor, store: Option<&Store>) -> Result<(SociIndex, Descriptor), String> {
        let bytes = manifest_of(&self.registry, candidate, store).await?;
        let index = SociIndex::parse(&bytes, Some(&self.image));
        let index = index.map_err(|error| format!("{}: {error}", candidate.digest))?;
        Ok((index, described(&candidate.digest, &bytes)))
    }
}

impl std::fmt::Debug for SociReferrers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { image, place, found, .. } = self;
        f.debug_struct("SociReferrers").field("place", place).field("image", image).field("found", found).finish()
    }
}
