//! The layers of one process, shared by all its mounts.
//!
//! Mounts that share a layer have one copy of its index in memory, one pair of files, one record of verified spans, and
//! one first pass; a span that one mount has fetched is not fetched again by another. They do not share the source:
//! each mount reads from its own source with its own credentials, and gets spans of other mounts as if from the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use super::layer_ref::LayerRef;
use super::open_layer::OpenLayer;
use super::origin::{Origin, is_from, open_stored};
use super::pass::PassProgress;
use super::pass_schedule::{PassScheduler, ScheduledPass};
use super::pushed::PushedIndexes;
use crate::digest::Digest;
use crate::layer::LayerIndex;
use crate::store::Store;
use crate::sync::lock;

/// The layers of a process. Clones share one table.
#[derive(Clone)]
pub struct SharedLayers(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    scheduler: Arc<PassScheduler>,
    /// By the digests of the blob and of its decoded stream.
    layers: Mutex<HashMap<(Digest, Digest), Weak<SharedLayer>>>,
}

/// One layer of a process, whether or not its index is known.
pub struct SharedLayer {
    /// Urgent when a reader waits for the layer.
    pub schedule: ScheduledPass,
    /// Progress of its first pass.
    pub progress: Arc<PassProgress>,
    /// Held by the mount that makes the first pass.
    pub passing: tokio::sync::Mutex<()>,
    open: Mutex<Weak<OpenLayer>>,
}

impl From<Arc<Store>> for SharedLayers {
    /// No layers yet; `store` caches them.
    fn from(store: Arc<Store>) -> Self {
        Self(Arc::new(Inner { store, scheduler: PassScheduler::new(), layers: Mutex::default() }))
    }
}

impl SharedLayers {
    /// Where the layers are cached.
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// The shared state of a layer, for as long as a reference to it exists.
    pub fn layer(&self, layer: &LayerRef) -> Arc<SharedLayer> {
        let mut layers = lock(&self.0.layers);
        let name = (layer.blob.digest.clone(), layer.stream_name().into_owned());
        if let Some(shared) = layers.get(&name).and_then(Weak::upgrade) {
            return shared;
        }
        if layers.len() == layers.capacity() {
            layers.retain(|_, shared| shared.strong_count() > 0);
        }
        let shared = Arc::new(SharedLayer {
            schedule: ScheduledPass::new(&self.0.scheduler),
            progress: Arc::default(),
            passing: tokio::sync::Mutex::default(),
            open: Mutex::default(),
        });
        layers.insert(name, Arc::downgrade(&shared));
        shared
    }
}

impl SharedLayer {
    /// The open layer in this process, or else in the store, if its index comes from one of `origins`; one of an artifact,
    /// if `pushed` has been told that it may be used.
    pub fn known(
        &self,
        store: &Arc<Store>,
        layer: &LayerRef,
        origins: &[Origin],
        pushed: Option<&PushedIndexes>,
    ) -> Option<Arc<OpenLayer>> {
        let mut open = lock(&self.open);
        let admitted = |index: &LayerIndex| pushed.is_none_or(|pushed| pushed.admit(index.proof()));
        let usable = |known: &Arc<OpenLayer>| {
            !known.index.is_damaged()
                && !known.is_refuted()
                && is_from(layer, &known.index, origins)
                && admitted(&known.index)
        };
        if let Some(known) = open.upgrade().filter(usable) {
            return Some(known);
        }
        let index = open_stored(layer, origins, store).ok()?.index;
        if !admitted(&index) {
            return None;
        }
        let opened = Arc::new(OpenLayer::new(index, store));
        *open = Arc::downgrade(&opened);
        Some(opened)
    }

    /// Registers a newly built index of the layer; its content files are new.
    pub fn made(&self, index: Arc<LayerIndex>, store: &Arc<Store>) -> Arc<OpenLayer> {
        let made = Arc::new(OpenLayer::new(index, store));
        *lock(&self.open) = Arc::downgrade(&made);
        made
    }
}
