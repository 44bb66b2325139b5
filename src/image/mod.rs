//! An image: resolve a reference, open its layers, show them as one file system.

pub mod fs;
pub mod layers;
pub mod plan;

use std::sync::Arc;

pub use fs::{DirEntry, FsError, ImageFs, NotNow, Now};
pub use layers::{Eagerness, LayerFailure, LayerStatus, Layers, Limits};
pub use plan::{Network, Plan, PlanError, PlannedLayer, resolve};

use crate::source::BlobSource;
use crate::store::Store;

/// Shows the layers of `plan` as one file system; layers that were never seen are read by `eagerness`.
///
/// Must be called within a tokio runtime.
pub fn open(
    plan: &Plan,
    source: Arc<dyn BlobSource>,
    store: Arc<Store>,
    limits: &Limits,
    eagerness: Eagerness,
) -> Arc<ImageFs> {
    let count = u16::try_from(plan.layers.len()).expect("a parsed manifest has at most 1000 layers");
    let size = plan.layers.iter().map(|layer| layer.blob.size).sum();
    let layers = Layers::open(&plan.layers, source, store, limits, eagerness);
    Arc::new(ImageFs::new(layers, count, size))
}

/// An error and its causes in one line, for logs and status.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
