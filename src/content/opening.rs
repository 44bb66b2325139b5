//! Opening a layer: one question with several answers.
//!
//! | origin | what it has | why it is believed | what it costs |
//! |---|---|---|---|
//! | [`Origin::Store`] | the index of an earlier first pass on this machine | digest, size and diff_id matched then | a small read |
//! | [`Origin::Vouched`] | an index that was made elsewhere | its maker is trusted, or the manifest has its digest | a small read, or some requests |
//! | [`Origin::FirstPass`] | the layer itself | blob digest, size and diff_id are computed | all of the blob |
//!
//! Every origin yields a layer index; above this file the origin matters only where it is shown
//! ([`crate::layer::Proof`]). Reads compare bytes span by span with the checks in the index ([`crate::layer::Check`]),
//! so a voucher is trusted for the tree and for these checks.
//!
//! How another format is added is in `CONTRIBUTING.md`.

use super::origin::{NotOpened, PassedOver, open_stored};
pub use super::origin::{Opened, Origin};
use super::pass::{FirstPass, Means, PassError};
use super::soci::WantedLayer;
use super::toc::open_by_toc;
use crate::layer::Format;
use crate::layer::foreign::Bounds;

/// Opens the layer of `pass` from the first of `origins` that has it. The first pass can open every layer, so it is the
/// fallback even when `origins` does not name it.
///
/// # Errors
/// [`PassError`]; nothing of the layer is cached then.
pub async fn open(pass: &FirstPass, origins: &[Origin], means: &Means<'_>) -> Result<Opened, PassError> {
    let bounds = Bounds { tree: pass.layer_limits.of_blob(pass.layer.blob.size), decoded: pass.codec_limits.decoded };
    let wanted = WantedLayer { layer: &pass.layer, bounds, store: means.store };
    let mut passed_over = Vec::new();
    for origin in origins {
        let opened = match origin {
            // An exported index reaches the store by import, so the store answers for both.
            Origin::Store | Origin::Vouched(Format::Exported) => {
                open_stored(&pass.layer, &[*origin], means.store).map_err(NotOpened::from)
            }
            Origin::Vouched(format @ (Format::ZstdChunked | Format::EStargz)) => {
                open_by_toc(pass, *format, means).await
            }
            Origin::Vouched(Format::Soci) => match means.soci {
                Some(soci) => soci.open(&wanted, means.source).await,
                None => Err(NotOpened::None),
            },
            Origin::Vouched(Format::SociReferrer) => match means.pushed {
                Some(pushed) => pushed.open_by_ztoc(&wanted).await,
                None => open_stored(&pass.layer, &[*origin], means.store).map_err(NotOpened::from),
            },
            Origin::Vouched(Format::Pushed) => match means.pushed {
                Some(pushed) => pushed.open(&pass.layer, means.store).await,
                None => open_stored(&pass.layer, &[*origin], means.store).map_err(NotOpened::from),
            },
            Origin::FirstPass => break,
        };
        let why = match opened {
            Ok(opened) => return Ok(Opened { passed_over, ..opened }),
            Err(NotOpened::None) => continue,
            Err(why) => why,
        };
        if origin.is_fetched() && !why.is_absence() && !why.was_told() {
            let (layer, origin, error) = (&pass.layer.blob.digest, origin.name(), &why as &dyn std::error::Error);
            tracing::warn!(%layer, origin, error, "an index is not used; the layer is opened otherwise");
        }
        passed_over.push(PassedOver { origin: *origin, why });
    }
    tracing::debug!(layer = %pass.layer.blob.digest, ?passed_over, "a first pass is made");
    if let Some(pushed) = means.pushed {
        pushed.tell_absence(&passed_over);
    }
    Ok(Opened { index: pass.run(means).await?, origin: Origin::FirstPass, passed_over })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use peelfs_loopback::image::{LayerBuilder, Packing};

    use super::super::layer_ref::{LayerRef, Payload};
    use super::super::origin::NotStored;
    use super::super::pass::Others;
    use super::super::pass_schedule::{PassScheduler, ScheduledPass};
    use super::super::transfer::{export_indexes, import_indexes};
    use super::*;
    use crate::descriptor::{Compression, Descriptor, MediaType};
    use crate::digest::{Algorithm, Digest};
    use crate::layer::Proof;
    use crate::source::BlobSource;
    use crate::source::inlined::Inlined;
    use crate::source::offline::OfflineSource;
    use crate::store::Store;

    /// A layer whose bytes are inlined in its descriptor: any source delivers it.
    fn pass(known: bool) -> FirstPass {
        let layer = LayerBuilder::new().packing(Packing::GZIP).file("f", "content").build();
        let of = |bytes: &[u8]| Digest::of(Algorithm::Sha256, bytes);
        let blob = Descriptor {
            media_type: MediaType::parse("application/vnd.oci.image.layer.v1.tar+gzip"),
            digest: of(&layer.blob),
            size: layer.blob.len() as u64,
            data: Some(layer.blob.clone()),
            annotations: Default::default(),
        };
        let (diff_id, payload) = (known.then(|| of(&layer.tar)), Payload::Tar(Compression::Gzip));
        let layer = LayerRef { blob, diff_id, payload, soci: None };
        FirstPass { layer, codec_limits: Default::default(), layer_limits: Default::default() }
    }

    fn store(dir: &tempfile::TempDir, name: &str) -> Arc<Store> {
        Arc::new(Store::open(&dir.path().join(name), None).unwrap())
    }

    async fn opened(pass: &FirstPass, origins: &[Origin], store: &Arc<Store>) -> Opened {
        let source: Arc<dyn BlobSource> = Arc::new(Inlined::before(Arc::new(OfflineSource::new("app".to_owned()))));
        let (progress, schedule) = (Arc::default(), ScheduledPass::new(&PassScheduler::new()));
        let (source, progress, schedule, partial, others) = (&source, &progress, &schedule, None, Others::Wait);
        open(
            pass,
            origins,
            &Means { source, store, progress, schedule, partial, others, pushed: None, soci: None, turns: None },
        )
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn the_first_origin_that_has_a_layer_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there, pass) = (store(&dir, "here"), store(&dir, "there"), pass(true));
        let made = opened(&pass, &Origin::ALL, &here).await;
        assert_eq!((made.origin, made.index.proof()), (Origin::FirstPass, &Proof::Built));
        let tried: Vec<_> = made.passed_over.iter().map(|over| over.origin).collect();
        // Of tables of contents the manifest says nothing.
        let [exported, pushed, soci] = [Format::Exported, Format::Pushed, Format::SociReferrer].map(Origin::Vouched);
        assert_eq!(tried, [Origin::Store, exported, pushed, soci]);
        assert!(made.passed_over.iter().all(|over| matches!(over.why, NotOpened::Stored(NotStored::Absent))));
        let again = opened(&pass, &Origin::ALL, &here).await;
        assert!(again.origin == Origin::Store && again.passed_over.is_empty());

        let mut of_other_size = self::pass(true);
        of_other_size.layer.blob.size += 1;
        let passed_over = open_stored(&of_other_size.layer, &Origin::ALL, &here).unwrap_err();
        assert!(matches!(passed_over, NotStored::OtherSize { .. }), "{passed_over}");

        let mut file = Vec::new();
        export_indexes(&here, std::slice::from_ref(&pass.layer), &mut file).unwrap();
        import_indexes(&there, &mut &file[..], "/indexes/app").unwrap();
        let vouched = opened(&pass, &Origin::ALL, &there).await;
        assert_eq!(vouched.origin, Origin::Vouched(Format::Exported));
        assert_eq!(vouched.index.proof().vouched_by(), Some("/indexes/app"));
        assert!(matches!(
            vouched.passed_over[..],
            [PassedOver { why: NotOpened::Stored(NotStored::OtherOrigin { .. }), .. }]
        ));
        // If no voucher is accepted, a first pass reads the layer and replaces the imported index.
        let built = opened(&pass, &[Origin::Store, Origin::FirstPass], &there).await;
        assert_eq!((built.origin, built.index.proof()), (Origin::FirstPass, &Proof::Built));
        assert_eq!(opened(&pass, &Origin::ALL, &there).await.origin, Origin::Store);
    }

    #[tokio::test]
    async fn a_layer_without_a_diff_id_is_what_its_blob_decodes_to() {
        let dir = tempfile::tempdir().unwrap();
        let (store, named, nameless) = (store(&dir, "cache"), pass(true), pass(false));
        let made = opened(&nameless, &Origin::ALL, &store).await;
        assert_eq!(Some(&made.index.layer().diff_id), named.layer.diff_id.as_ref());
        // Index and content equal those of the layer with its diff_id declared.
        assert_eq!(opened(&named, &Origin::ALL, &store).await.origin, Origin::Store);
        let layer = super::super::open_layer::OpenLayer::new(made.index, &store);
        let span = layer.index().spans().start;
        assert!(layer.cached_span(span).is_some());
    }
}
