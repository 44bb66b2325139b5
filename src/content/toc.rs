//! Opening a layer by the table of contents that it brings along.
//!
//! The manifest says where the table lies and what it hashes to, so it is fetched by itself, compared, and made an index like
//! that of a first pass. What it says is believed because of who wrote the manifest; each piece of a file is compared with
//! the table's digest whenever it comes. Of a table that cannot be used the reason is told, and the layer is opened
//! otherwise.

use std::ops::Range;
use std::sync::Arc;

use super::origin::{NotOpened, Opened, Origin, open_stored, voucher};
use super::pass::{FirstPass, Means};
use super::superseded::open_foreign;
use crate::documents::Document;
use crate::layer::foreign::estargz::{self, Place};
use crate::layer::foreign::{Bounds, ForeignLayer, Toc, TocError};
use crate::layer::{Format, IndexedLayer, LayerIndex, Proof, write_index_of_bodies};
use crate::offsets::BlobOffset;
use crate::source::{SentBy, SourceError};
use crate::store::Store;

/// Opens the layer of `pass` by its table of contents.
///
/// # Errors
/// [`NotOpened`]
pub(super) async fn open_by_toc(pass: &FirstPass, format: Format, means: &Means<'_>) -> Result<Opened, NotOpened> {
    if pass.layer.file().is_some() {
        return Err(NotOpened::None);
    }
    let toc = Toc::of(&pass.layer.blob, format)?.ok_or(NotOpened::None)?;
    let origin = Origin::Vouched(format);
    if let Ok(stored) = open_stored(&pass.layer, &[origin], means.store) {
        return Ok(stored);
    }
    loop {
        let mut senders = Vec::new();
        match fetch_and_make(pass, format, toc.clone(), means, &mut senders).await {
            Ok(index) => return Ok(Opened { index, origin, passed_over: Vec::new() }),
            // Of several hosts, another may have the right one.
            Err(NotMade::Unproven(why)) => {
                let others = senders.iter().filter(|senders: &&SentBy| senders.pass_over()).count();
                if others == 0 {
                    return Err(why);
                }
            }
            Err(NotMade::Proven(why)) => return Err(why),
        }
    }
}

/// Why no index was made of a table.
enum NotMade {
    /// What came may not be the table that the manifest names.
    Unproven(NotOpened),
    Proven(NotOpened),
}

impl From<TocError> for NotMade {
    fn from(error: TocError) -> Self {
        match error {
            TocError::Other { .. } | TocError::Unusable { .. } => Self::Unproven(error.into()),
            _ => Self::Proven(error.into()),
        }
    }
}

async fn fetch_and_make(
    pass: &FirstPass,
    format: Format,
    toc: Toc,
    means: &Means<'_>,
    senders: &mut Vec<SentBy>,
) -> Result<Arc<LayerIndex>, NotMade> {
    let (place, bytes) = fetch(pass, &toc, means, senders).await?;
    let (pass, store) = (pass.clone(), Arc::clone(means.store));
    let made = tokio::task::spawn_blocking(move || {
        let bounds =
            Bounds { tree: pass.layer_limits.of_blob(pass.layer.blob.size), decoded: pass.codec_limits.decoded };
        let read = match &toc {
            Toc::ZstdChunked(toc) => toc.read(&bytes, bounds),
            Toc::EStargz(toc) => toc.read(&place, &bytes, bounds),
        }?;
        make(&pass, format, &toc, read, &store).map_err(NotMade::Proven)
    });
    made.await.map_err(|_| NotMade::Proven(NotOpened::Ended))?
}

/// The table's bytes, unverified, and where they are.
async fn fetch(
    pass: &FirstPass,
    toc: &Toc,
    means: &Means<'_>,
    senders: &mut Vec<SentBy>,
) -> Result<(Place, Vec<u8>), NotMade> {
    let toc = match toc {
        Toc::ZstdChunked(toc) => {
            let place = toc.packed.range();
            let bytes = range(pass, place.clone(), means, senders).await?;
            return Ok((Place::Here(place), bytes));
        }
        Toc::EStargz(toc) => toc,
    };
    let tail_at = toc.tail();
    let tail = range(pass, tail_at.clone(), means, senders).await?;
    // Nothing says yet that the tail is right.
    let unproven = |error: TocError| NotMade::Unproven(error.into());
    let place = match toc.place(&tail).map_err(unproven)? {
        Place::Here(place) => place,
        Place::Elsewhere => return Ok((Place::Elsewhere, elsewhere(pass, means).await.map_err(NotMade::Unproven)?)),
    };
    let behind = (tail_at.end - place.end) as usize;
    let bytes = match place.start.0.checked_sub(tail_at.start.0) {
        Some(at) => tail[at as usize..tail.len() - behind].to_vec(),
        // Its place may lie before what was fetched, or it may all lie there.
        None => {
            let first = range(pass, place.start..tail_at.start.min(place.end), means, senders).await?;
            let rest = tail
                .len()
                .checked_sub(behind)
                .ok_or(TocError::Unusable { what: "it is cut short" })
                .map_err(unproven)?;
            [&first[..], &tail[..rest]].concat()
        }
    };
    Ok((Place::Here(place), bytes))
}

/// The bytes of a table that is a layer of another image, unverified.
async fn elsewhere(pass: &FirstPass, means: &Means<'_>) -> Result<Vec<u8>, NotOpened> {
    let unusable = |what| NotOpened::Toc(TocError::Unusable { what });
    let document = means.source.beside(estargz::TOC_IMAGE).await?;
    let document = document.ok_or(unusable("it is in an image of its own, which is not there"))?.into_unverified();
    let layers = match Document::parse(&document, None) {
        Ok(Document::Manifest(image)) => image.layers,
        Ok(Document::Artifact(artifact)) => artifact.layers,
        Ok(Document::Index(_)) | Err(_) => return Err(unusable("it is in an image of its own, which is none")),
    };
    let toc = estargz::toc_among(&layers, &pass.layer.blob.digest)?;
    let bytes = means.source.read_at(toc, BlobOffset(0)..BlobOffset(toc.size)).await?;
    Ok(bytes.into_unverified().to_vec())
}

/// Some bytes of the blob, from a source that has them by themselves.
async fn range(
    pass: &FirstPass,
    range: Range<BlobOffset>,
    means: &Means<'_>,
    senders: &mut Vec<SentBy>,
) -> Result<Vec<u8>, NotMade> {
    let failed = |error: SourceError| NotMade::Proven(error.into());
    let (comes, mut stream) = means.source.stream_or_whole(&pass.layer.blob, range.clone()).await.map_err(failed)?;
    if comes != range {
        return Err(NotMade::Proven(NotOpened::NoRanges));
    }
    senders.push(stream.senders());
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.map_err(failed)?.into_unverified());
    }
    Ok(bytes)
}

/// Makes the index, and puts it into the store.
fn make(
    pass: &FirstPass,
    format: Format,
    toc: &Toc,
    read: ForeignLayer,
    store: &Store,
) -> Result<Arc<LayerIndex>, NotOpened> {
    let ForeignLayer { tree, spans, sources, decoded_size } = read;
    let blob = &pass.layer.blob;
    let (blob, blob_size, diff_id) = (blob.digest.clone(), blob.size, pass.layer.content().clone());
    let layer = IndexedLayer { blob, blob_size, diff_id, decoded_size };
    let mut index = Vec::new();
    let proof = Proof::vouched(format, &voucher(toc));
    write_index_of_bodies(&tree, &spans, &sources, &layer, &proof, &mut index).map_err(NotOpened::NotWritten)?;
    drop((tree, spans, sources));
    open_foreign(&pass.layer, index, (Origin::Vouched(format), &proof), store)
}
