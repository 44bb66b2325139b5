//! SOCI indexes of version 1: found beside the image in a registry, as pushed indexes are ([`super::pushed`]), and believed as
//! those are, where the user has named the repository.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::origin::{NotOpened, Opened, Origin, open_stored};
use super::referrer::manifest_of;
use super::soci::{Maker, WantedLayer};
use super::soci_error::{NoIndex, SociError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::documents::{SOCI_V1, SociIndex, referrers};
use crate::layer::Format;
use crate::source::BlobSource;
use crate::source::registry::RegistrySource;
use crate::trust::Untrusted;

/// The SOCI index that refers to an image.
pub(super) struct SociReferrers {
    /// Where it is looked for.
    registry: Arc<RegistrySource>,
    /// The image's manifest.
    image: Digest,
    /// Registry and repository.
    place: Box<str>,
    found: OnceCell<Result<SociIndex, Arc<NoIndex>>>,
}

impl SociReferrers {
    /// That of the image with the manifest `image`, in `place`, the repository of `registry`.
    pub(super) fn new(registry: Arc<RegistrySource>, place: &str, image: &Digest) -> Self {
        Self { registry, image: image.clone(), place: place.into(), found: OnceCell::new() }
    }

    /// Opens a layer by the zTOC that the index has of it.
    ///
    /// # Errors
    /// [`NotOpened`]
    pub(super) async fn open(&self, wanted: &WantedLayer<'_>) -> Result<Opened, NotOpened> {
        let origin = Origin::Vouched(Format::SociReferrer);
        if let Ok(stored) = open_stored(wanted.layer, &[origin], wanted.store) {
            return Ok(stored);
        }
        let index = self.found().await?;
        let source = Arc::clone(&self.registry) as Arc<dyn BlobSource>;
        let (by, source) = (&*self.place, &source);
        Maker { format: Format::SociReferrer, by, source, image: &self.image }.open(index, wanted).await
    }

    /// What there is for a layer with this blob, for `--explain`.
    pub(super) async fn look(&self, layer: &Digest) -> String {
        match self.found().await {
            Err(why) => why.to_string(),
            Ok(index) => match index.ztoc(layer) {
                Some(ztoc) => format!("{} has a zTOC of {} bytes; it is not needed yet", self.place, ztoc.size),
                None => SociError::NoZtoc.to_string(),
            },
        }
    }

    async fn found(&self) -> Result<&SociIndex, SociError> {
        let found = self.found.get_or_init(|| async { self.find().await.map_err(Arc::new) }).await;
        found.as_ref().map_err(|why| SociError::Index(Arc::clone(why)))
    }

    /// The newest index that refers to the image.
    async fn find(&self) -> Result<SociIndex, NoIndex> {
        let pages = self.registry.referrers(&self.image, Some(SOCI_V1)).await?.into_pages();
        let pages: Vec<_> = pages.into_iter().map(Untrusted::into_unverified).collect();
        let mut unusable = Vec::new();
        for candidate in referrers(pages.iter().map(|page| &**page), SOCI_V1) {
            match self.read(&candidate).await {
                Ok(index) => return Ok(index),
                Err(why) => {
                    tracing::warn!(place = &*self.place, index = %candidate.digest, why, "a SOCI index is not used");
                    unusable.push(why);
                }
            }
        }
        Err(NoIndex::None { place: self.place.to_string(), unusable })
    }

    async fn read(&self, candidate: &Descriptor) -> Result<SociIndex, String> {
        let bytes = manifest_of(&self.registry, candidate).await?;
        SociIndex::parse(&bytes, Some(&self.image)).map_err(|error| format!("{}: {error}", candidate.digest))
    }
}

impl std::fmt::Debug for SociReferrers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { image, place, found, .. } = self;
        f.debug_struct("SociReferrers").field("place", place).field("image", image).field("found", found).finish()
    }
}
