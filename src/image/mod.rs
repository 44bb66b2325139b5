//! An image: resolves a reference, opens its layers, and shows them as one file system.

mod activity;
mod apart;
mod artifact;
mod chain;
mod choice;
pub mod fs;
pub mod identity;
mod image_tree;
mod large;
mod layer_failure;
mod layer_fs;
mod layer_report;
mod layer_state;
mod layer_tar;
pub mod layers;
mod near;
pub mod plan;
mod programs;
mod read;
mod same;
mod shown;
mod slot;
pub mod tree;
mod trust;
mod versions;
mod whole;
mod work;
mod xattrs;

use std::sync::Arc;

pub use crate::content::{Considered, IndexChoice, LayerRef, Prefetch, SharedLayers};
pub use activity::{FileReport, ImageActivity};
pub use apart::{Apart, briefly};
pub use artifact::{ShownOtherwise, View, shown_otherwise};
pub use chain::chain;
pub use choice::{LayerChoice, LayerChoiceError, NoSuchLayer};
pub use fs::{DirEntry, FsError, ImageFs, NotNow, Now, ReadObserver};
pub use identity::Identity;
pub use layer_failure::LayerFailure;
pub use layer_fs::{LayerFs, OpaqueMark};
pub use layer_report::LayerReport;
pub use layer_state::LayerProgress;
pub use layer_tar::{FileInTar, LayerTar};
pub use layers::{Eagerness, Layers, Limits};
pub use near::{NearFile, NearFiles};
pub use plan::{Documents, Fit, Network, OnManifest, Plan, PlanError, Pull, Wanted, resolve, resolve_again};
pub use programs::Programs;
pub use read::{Local, MissingBytes};
pub use same::KnownContent;
pub use shown::Shown;
pub use slot::{LayerStatus, NotUsed};
pub use tree::{Answer, KernelContent, NoAnswer, ReadNow, SeekTo, Totals, Tree};
pub use trust::{Trust, Verify};
pub use versions::{Change, Effect, LayerIndexes, LayerSummary, NamedVersions, Version, Waste};

use crate::content::tidy;
use crate::overlay::LayerNo;
use crate::source::BlobSource;
use crate::source::inlined::Inlined;

/// Shows the layers of `plan` as one file system; new layers are read as `eagerness` says.
///
/// Must be called within a tokio runtime.
pub fn open(
    plan: &Plan,
    source: Arc<dyn BlobSource>,
    shared_layers: impl Into<SharedLayers>,
    limits: &Limits,
    eagerness: Eagerness,
    trust: impl Into<Trust>,
) -> Arc<ImageFs> {
    let of = Part { layers: &plan.layers, size: blob_sizes(&plan.layers), identity: Identity::new(&plan.layers) };
    open_part(plan, of, source, shared_layers.into(), limits, eagerness, trust.into())
}

/// Shows one layer of `plan` alone, in the form of a lower directory of overlayfs, with `marks` on its opaque
/// directories. Layers below it are read when it needs them; otherwise as [`open`].
pub fn open_layer(
    plan: &Plan,
    (layer, marks): (LayerNo, OpaqueMark),
    source: Arc<dyn BlobSource>,
    shared_layers: impl Into<SharedLayers>,
    limits: &Limits,
    eagerness: Eagerness,
    trust: impl Into<Trust>,
) -> Arc<LayerFs> {
    let layers = &plan.layers[..=usize::from(layer.0)];
    let size = blob_sizes(&layers[usize::from(layer.0)..]);
    let of = Part { layers, size, identity: Identity::of_layer(layers) };
    let eagerness = if eagerness == Eagerness::Background { Eagerness::Uppermost } else { eagerness };
    let fs = open_part(plan, of, source, shared_layers.into(), limits, eagerness, trust.into());
    Arc::new(LayerFs::new(fs, marks))
}

/// The layers of an image up to one, and which of them are shown.
struct Part<'a> {
    layers: &'a [LayerRef],
    /// Size of the blobs that are shown.
    size: u64,
    identity: Identity,
}

fn blob_sizes(layers: &[LayerRef]) -> u64 {
    layers.iter().map(|layer| layer.blob.size).sum()
}

fn open_part(
    plan: &Plan,
    of: Part<'_>,
    source: Arc<dyn BlobSource>,
    shared_layers: SharedLayers,
    limits: &Limits,
    eagerness: Eagerness,
    trust: Trust,
) -> Arc<ImageFs> {
    let Part { layers: planned, size, identity } = of;
    let count = u16::try_from(planned.len()).expect("a parsed manifest has at most 1000 layers");
    let store = Arc::clone(shared_layers.store());
    let source = Arc::new(Inlined::before(source));
    let layers = Layers::open(&plan.manifest.digest, planned, source, shared_layers, limits, eagerness, trust);
    let shown = Arc::downgrade(&layers);
    tokio::spawn(async move {
        // Give the image's first reads priority.
        tokio::time::sleep(TIDY_AFTER).await;
        let tidied = tokio::task::spawn_blocking(move || {
            shown.upgrade().iter().for_each(|layers| layers.keep_within_limit());
            tidy(&store)
        });
        if let Ok(Err(error)) = tidied.await {
            tracing::debug!(%error, "cannot look for leftovers of ended processes in the cache");
        }
    });
    ImageFs::new(layers, count, size, identity)
}

/// Pause before a process that opens an image searches the cache for leftovers.
const TIDY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);
