//! An image: resolve a reference, open its layers, show them as one file system.

mod apart;
mod chain;
pub mod fs;
pub mod identity;
mod image_tree;
pub mod layers;
pub mod plan;
mod programs;
mod read;
pub mod tree;
mod whole;
mod work;

use std::sync::Arc;

pub use crate::content::{Prefetch, SharedLayers};
pub use apart::{Apart, briefly};
pub use chain::chain;
pub use fs::{DirEntry, FsError, ImageFs, NotNow, Now, ReadObserver};
pub use identity::Identity;
pub use layers::{Eagerness, LayerFailure, LayerStatus, Layers, Limits, Verify};
pub use plan::{Documents, Fit, Network, Plan, PlanError, PlannedLayer, resolve, resolve_again};
pub use programs::Programs;
pub use read::{Local, MissingBytes};
pub use tree::{Answer, KernelContent, NoAnswer, ReadNow, SeekTo, Totals, Tree};

use crate::source::BlobSource;
use crate::source::inlined::Inlined;

/// Shows the layers of `plan` as one file system; layers that were never seen are read by `eagerness`.
///
/// Must be called within a tokio runtime.
pub fn open(
    plan: &Plan,
    source: Arc<dyn BlobSource>,
    shared_layers: impl Into<SharedLayers>,
    limits: &Limits,
    eagerness: Eagerness,
    verify: Verify,
) -> Arc<ImageFs> {
    let count = u16::try_from(plan.layers.len()).expect("a parsed manifest has at most 1000 layers");
    let size = plan.layers.iter().map(|layer| layer.blob.size).sum();
    let shared_layers = shared_layers.into();
    let store = Arc::clone(shared_layers.store());
    let source = Arc::new(Inlined::before(source));
    let layers = Layers::open(&plan.manifest.digest, &plan.layers, source, shared_layers, limits, eagerness, verify);
    let shown = Arc::downgrade(&layers);
    tokio::spawn(async move {
        // The first reads of the image go before.
        tokio::time::sleep(TIDY_AFTER).await;
        let tidied = tokio::task::spawn_blocking(move || {
            shown.upgrade().iter().for_each(|layers| layers.keep_within_limit());
            store.tidy()
        });
        if let Ok(Err(error)) = tidied.await {
            tracing::debug!(%error, "cannot look for leftovers of ended processes in the cache");
        }
    });
    let fs = ImageFs::new(Arc::clone(&layers), count, size, Identity::new(&plan.layers));
    if verify == Verify::Behind {
        for number in (0..count).map(crate::overlay::LayerNo) {
            let shown = Arc::downgrade(&fs);
            let settle = move |whole: Option<&_>| shown.upgrade().is_some_and(|fs| fs.settle(number, whole));
            tokio::spawn(layers.watch(number, settle));
        }
    }
    fs
}

/// How long after it opens an image a process begins to look for leftovers in the cache.
const TIDY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);
