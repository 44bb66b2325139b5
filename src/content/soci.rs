//! zTOCs of SOCI: found by an index of the image, fetched, and made indexes like that of a first pass.
//!
//! An index is bound where the manifest has its digest, so its author is that of the manifest; it is found by its digest. One
//! that refers to the manifest is vouched for by those who can write to the repository ([`super::pushed`]). Either way a zTOC
//! is what the index says that it is, and what it says of the layer is believed because of who wrote it; each span is compared
//! with the zTOC's digest of the blob's bytes when it comes. Of a zTOC that cannot be used the reason is told, and the layer is
//! opened otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::layer_ref::LayerRef;
use super::origin::{NotOpened, Opened, Origin, bound, open_stored};
use super::profiles::{keep_profile, load_profile};
use super::soci_error::{NoIndex, SociError};
use super::superseded::open_foreign;
use crate::descriptor::{Compression, Descriptor};
use crate::digest::{Digest, Hasher};
use crate::documents::{SociIndex, SociPrefetch};
use crate::layer::foreign::{Bounds, soci};
use crate::layer::{Format, IndexedLayer, LayerIndex, Proof, write_index};
use crate::offsets::BlobOffset;
use crate::predict::{Profile, ProfileRun};
use crate::source::{BlobSource, MANIFEST_LIMIT, SourceError};
use crate::span::SpanId;
use crate::store::{LayerName, Store};

/// A layer to be opened.
pub(super) struct WantedLayer<'a> {
    pub(super) layer: &'a LayerRef,
    /// What its zTOC is held to.
    pub(super) bounds: Bounds,
    /// Receives its index.
    pub(super) store: &'a Arc<Store>,
}

/// The SOCI index that the manifest of an image binds.
#[derive(Debug)]
pub struct BoundSoci {
    digest: Digest,
    /// The image's manifest.
    image: Digest,
    found: OnceCell<Result<SociIndex, Arc<NoIndex>>>,
    /// Whether a line of the log has said that it cannot be used.
    told: AtomicBool,
}

impl BoundSoci {
    /// That of the image with the manifest `image` and these layers; `None` if there is none.
    pub fn of<'a>(image: &Digest, layers: impl IntoIterator<Item = &'a LayerRef>) -> Option<Self> {
        let digest = layers.into_iter().find_map(|layer| layer.soci.clone())?;
        Some(Self { digest, image: image.clone(), found: OnceCell::new(), told: AtomicBool::new(false) })
    }

    /// Opens a layer by the zTOC that the index has of it.
    ///
    /// # Errors
    /// [`NotOpened`]
    pub(super) async fn open(
        &self,
        wanted: &WantedLayer<'_>,
        source: &Arc<dyn BlobSource>,
    ) -> Result<Opened, NotOpened> {
        let origin = Origin::Vouched(Format::Soci);
        if let Ok(stored) = open_stored(wanted.layer, &[origin], wanted.store) {
            return Ok(stored);
        }
        let index = self.found(source, wanted.store).await.inspect_err(|error| self.tell(error))?;
        let maker = Maker { format: Format::Soci, by: &bound(&self.digest), source, image: &self.image };
        maker.open(index, wanted).await
    }

    /// Logs that the index cannot be used, once for all layers.
    fn tell(&self, error: &SociError) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let error = error as &dyn std::error::Error;
            tracing::warn!(index = %self.digest, error, "the SOCI index of the image is not used; its layers are opened otherwise");
        }
    }

    async fn found(&self, source: &Arc<dyn BlobSource>, store: &Store) -> Result<&SociIndex, SociError> {
        let find = || async {
            match fetch_index(&self.digest, source, store).await {
                // It may be there later.
                Err(NoIndex::Source(error @ SourceError::Unreachable { .. })) => Err(SociError::Away(error)),
                found => Ok(found.map_err(Arc::new)),
            }
        };
        let found = self.found.get_or_try_init(find).await?;
        found.as_ref().map_err(|why| SociError::Index(Arc::clone(why)))
    }
}

/// The bound index with this digest.
async fn fetch_index(digest: &Digest, source: &Arc<dyn BlobSource>, store: &Store) -> Result<SociIndex, NoIndex> {
    let known = store.document_by_digest(digest, MANIFEST_LIMIT);
    let bytes = match known {
        Some(bytes) => bytes,
        None => {
            let bytes = source.manifest_by_digest(digest).await?;
            let length = bytes.length() as u64;
            let bytes = bytes.verify(digest, length).map_err(|mismatch| NoIndex::Other(Box::new(mismatch)))?;
            if let Err(error) = store.keep_document(digest, &bytes) {
                store.cannot_keep("a SOCI index", &error);
            }
            bytes
        }
    };
    Ok(SociIndex::parse(&bytes, None)?)
}

/// Makes indexes of zTOCs: where these come from, and why they are believed.
pub(super) struct Maker<'a> {
    pub(super) format: Format,
    /// Who vouches for them.
    pub(super) by: &'a str,
    pub(super) source: &'a Arc<dyn BlobSource>,
    /// The image's manifest.
    pub(super) image: &'a Digest,
}

impl Maker<'_> {
    /// Opens a layer by the zTOC that `index` has of it.
    pub(super) async fn open(&self, index: &SociIndex, wanted: &WantedLayer<'_>) -> Result<Opened, NotOpened> {
        let layer = &wanted.layer.blob.digest;
        let compression = wanted.layer.compression().ok_or(SociError::NoZtoc)?;
        let ztoc = index.ztoc(layer).ok_or(SociError::NoZtoc)?;
        let (opened, prefetch) = tokio::join!(self.by_ztoc(ztoc, wanted, compression), self.prefetch_of(index, layer));
        let opened = opened?;
        if let Some(prefetch) = prefetch {
            self.keep_prefetch(&prefetch, &opened.index, wanted.store);
        }
        Ok(opened)
    }

    async fn by_ztoc(
        &self,
        ztoc: &Descriptor,
        wanted: &WantedLayer<'_>,
        compression: Compression,
    ) -> Result<Opened, NotOpened> {
        let bytes = fetch(self.source, ztoc, soci::largest(wanted.layer.blob.size)).await?;
        let (layer, bounds, store) = (wanted.layer.clone(), wanted.bounds, Arc::clone(wanted.store));
        let (proof, origin) = (Proof::vouched(self.format, self.by), Origin::Vouched(self.format));
        let made = tokio::task::spawn_blocking(move || {
            let read = soci::parse(&bytes, &layer.blob, compression, bounds)?;
            drop(bytes);
            make(&layer, &read, &proof, origin, &store)
        });
        let index = made.await.map_err(|_| NotOpened::Ended)??;
        Ok(Opened { index, origin, passed_over: Vec::new() })
    }

    /// What should be fetched of a layer first; nothing depends on it.
    async fn prefetch_of(&self, index: &SociIndex, layer: &Digest) -> Option<SociPrefetch> {
        let blob = index.prefetch(layer)?;
        let bytes = fetch(self.source, blob, LONGEST_LIST).await;
        let list = bytes.and_then(|bytes| SociPrefetch::parse(&bytes).map_err(SociError::from));
        list.inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(%layer, error, "a SOCI prefetch list is not used");
        })
        .ok()
    }

    /// Makes it the image's start-up profile, where this machine has none.
    fn keep_prefetch(&self, SociPrefetch(ranges): &SociPrefetch, index: &LayerIndex, store: &Store) {
        let layer = index.layer();
        let name = LayerName { blob: &layer.blob, diff_id: &layer.diff_id };
        let image = self.image.clone();
        if load_profile(store, name).is_some_and(|known| known.runs.iter().any(|run| run.image == image)) {
            return;
        }
        let ranges = ranges.iter().map(|(first, last)| *first..=(*last).min(index.span_count().saturating_sub(1)));
        let spans = ranges.flatten().take(index.span_count() as usize).map(SpanId);
        let wanted = spans.filter_map(|span| index.span(span).ok()).map(|span| (0, span.decoded.start.0)).collect();
        let profile = Profile::new(name.blob, name.diff_id, vec![ProfileRun::new(image, wanted)]);
        if let Err(error) = keep_profile(store, profile) {
            store.cannot_keep("a profile", &error);
        }
    }
}

/// A blob of at most `limit` bytes, verified.
async fn fetch(source: &Arc<dyn BlobSource>, blob: &Descriptor, limit: u64) -> Result<Bytes, SociError> {
    if blob.size > limit {
        return Err(SociError::TooLarge { size: blob.size, limit });
    }
    loop {
        let mut stream = source.stream(blob, BlobOffset(0)..BlobOffset(blob.size)).await?;
        let senders = stream.senders();
        let (mut bytes, mut hasher) = (Vec::new(), Hasher::new(blob.digest.algorithm()));
        while let Some(piece) = stream.next().await {
            let piece = piece?.into_unverified();
            hasher.update(&piece);
            bytes.extend_from_slice(&piece);
        }
        if hasher.finish() == blob.digest {
            return Ok(bytes.into());
        }
        // Of several hosts, another may have the right one.
        if !senders.pass_over() {
            return Err(SociError::Corrupt { blob: blob.digest.clone() });
        }
    }
}

/// Makes the index, and puts it into the store.
fn make(
    layer: &LayerRef,
    read: &soci::SociLayer,
    proof: &Proof,
    origin: Origin,
    store: &Store,
) -> Result<Arc<LayerIndex>, NotOpened> {
    let (blob, diff_id) = (layer.blob.digest.clone(), layer.content().clone());
    let indexed = IndexedLayer { blob, blob_size: layer.blob.size, diff_id, decoded_size: read.decoded_size };
    let mut index = Vec::new();
    write_index(&read.tree, &read.spans, &read.windows, &indexed, proof, &mut index).map_err(NotOpened::NotWritten)?;
    open_foreign(layer, index, (origin, proof), store)
}

/// Limit for a list of what to fetch first, in bytes.
const LONGEST_LIST: u64 = 1 << 20;
