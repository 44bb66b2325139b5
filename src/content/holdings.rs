//! What one process has of its layers, however many of its mounts show them.
//!
//! Mounts that share a layer have one copy of what is in memory of its index, one pair of open files, one
//! record of what was verified, and one first pass; what one of them fetches the others do not fetch again.
//! What they do not share is the source: each mount reads from its own place with its own credentials, and
//! gets what another one has read as it would get it from the store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, Weak};

use super::{Counters, PassProgress, Turn, Turns, fetch, pass};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::layer::{EntryId, LayerIndex};
use crate::store::{Content, Stamp, Store};
use crate::sync::lock;

/// The layers of a process. Clones are the same.
#[derive(Clone)]
pub struct Holdings(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    turns: Arc<Turns>,
    layers: Mutex<HashMap<(Digest, Digest), Weak<Held>>>,
}

/// One layer of a process, known or not.
pub struct Held {
    /// Urgent when somebody waits for the layer.
    pub turn: Turn,
    /// How far its first pass is.
    pub progress: Arc<PassProgress>,
    /// Held by the mount that makes the first pass.
    pub passing: tokio::sync::Mutex<()>,
    kept: Mutex<Weak<Kept>>,
}

/// What a process has of a layer whose index is known.
pub struct Kept {
    pub(super) index: Arc<LayerIndex>,
    pub(super) content: Content,
    /// For each span, the generation under which this process has verified it; 0 while it has not.
    pub(super) verified: Box<[AtomicU8]>,
    /// The content's stamp as of which `verified` holds; see [`Content::stamp`].
    pub(super) stamp: AtomicU64,
    pub(super) flights: Mutex<fetch::Flights>,
    pub(super) counters: Counters,
    /// The span at which the search for something to evict goes on.
    pub(super) hand: AtomicU32,
    /// Files of entries that this process has found right, and as of which change.
    pub(super) wholes: Mutex<HashMap<EntryId, Stamp>>,
}

impl From<Arc<Store>> for Holdings {
    /// Nothing yet, of what `store` has.
    fn from(store: Arc<Store>) -> Self {
        Self(Arc::new(Inner { store, turns: Turns::new(), layers: Mutex::default() }))
    }
}

impl Holdings {
    /// Where the layers are kept.
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// What is shared of a layer, for as long as somebody has it.
    pub fn layer(&self, blob: &Digest, diff_id: &Digest) -> Arc<Held> {
        let mut layers = lock(&self.0.layers);
        let name = (blob.clone(), diff_id.clone());
        if let Some(held) = layers.get(&name).and_then(Weak::upgrade) {
            return held;
        }
        if layers.len() == layers.capacity() {
            layers.retain(|_, held| held.strong_count() > 0);
        }
        let held = Arc::new(Held {
            turn: Turn::new(&self.0.turns),
            progress: Arc::default(),
            passing: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
        });
        layers.insert(name, Arc::downgrade(&held));
        held
    }
}

impl Held {
    /// What the process or else the store has of the layer, if its index is known.
    pub fn known(&self, store: &Store, blob: &Descriptor, diff_id: &Digest) -> Option<Arc<Kept>> {
        let mut kept = lock(&self.kept);
        if let Some(known) = kept.upgrade().filter(|known| !known.index.is_damaged()) {
            return Some(known);
        }
        let opened = Arc::new(Kept::new(pass::open_index(store, blob, diff_id)?, store, blob));
        *kept = Arc::downgrade(&opened);
        Some(opened)
    }

    /// The layer's index has just been made; the files of its content are new.
    pub fn made(&self, index: Arc<LayerIndex>, store: &Store, blob: &Descriptor) -> Arc<Kept> {
        let made = Arc::new(Kept::new(index, store, blob));
        *lock(&self.kept) = Arc::downgrade(&made);
        made
    }
}

impl Kept {
    fn new(index: Arc<LayerIndex>, store: &Store, blob: &Descriptor) -> Self {
        let spans = index.span_count();
        let content = store.content_when_wanted(&blob.digest, index.proof().decoded_size, spans);
        Self {
            index,
            content,
            verified: (0..spans).map(|_| AtomicU8::new(0)).collect(),
            stamp: AtomicU64::new(0),
            flights: Mutex::default(),
            counters: Counters::default(),
            hand: AtomicU32::new(0),
            wholes: Mutex::default(),
        }
    }

    /// The layer's own index.
    pub fn index(&self) -> &Arc<LayerIndex> {
        &self.index
    }
}
