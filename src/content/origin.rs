//! Where a layer's index comes from, and what this machine has of it already.

use std::sync::Arc;

use super::layer_ref::LayerRef;
use crate::digest::Digest;
use crate::layer::{Format, IndexError, LayerIndex, Proof};
use crate::store::Store;

/// Where a layer's index comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Origin {
    /// The store has it, of an earlier first pass.
    Store,
    /// It was made elsewhere, in this format, and its maker is trusted.
    Vouched(Format),
    /// The whole layer is read.
    FirstPass,
}

impl Origin {
    /// All, cheapest first.
    pub const ALL: [Self; 3] = [Self::Store, Self::Vouched(Format::Exported), Self::FirstPass];

    /// Where an index of the store with this proof came from.
    fn of_stored(proof: &Proof) -> Option<Self> {
        match proof {
            Proof::Built => Some(Self::Store),
            Proof::Vouched { format, .. } => Some(Self::Vouched(*format)),
            // Never written to a store.
            Proof::Unproven => None,
        }
    }
}

/// A layer that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Its index; what proves it, it says itself.
    pub index: Arc<LayerIndex>,
    /// Where it came from.
    pub origin: Origin,
    /// What was tried before that.
    pub passed_over: Vec<PassedOver>,
}

/// An origin that has not answered.
#[derive(Debug)]
pub struct PassedOver {
    /// Which.
    pub origin: Origin,
    /// Why not.
    pub why: NotStored,
}

/// Why an origin has no index of a layer that will do.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// It has none.
    #[error("there is no index in the cache")]
    Absent,
    /// It has one of another layer that is the same blob.
    #[error("the index in the cache is of diff_id {proven}")]
    OtherLayer {
        /// That one's.
        proven: Digest,
    },
    /// It has one that comes from elsewhere than it may.
    #[error("the index in the cache is not to be used: {proof:?}")]
    OtherOrigin {
        /// Why it would be believed.
        proof: Proof,
    },
    /// It has one, of another version of peelfs or damaged.
    #[error("the index in the cache cannot be used")]
    Unusable(#[source] IndexError),
}

/// Opens a layer by the index that the store has of it, if that is from one of `origins`.
///
/// Its pages are checked when they are first touched; one that is damaged then is read from an index that was made anew
/// ([`LayerIndex::mend`]).
///
/// # Errors
/// [`NotStored`]; an index that is damaged is removed.
pub fn open_stored(layer: &LayerRef, origins: &[Origin], store: &Store) -> Result<Opened, NotStored> {
    let blob = &layer.blob.digest;
    let file = store.index(blob).ok_or(NotStored::Absent)?;
    let dropper = store.index_dropper(blob, &file);
    let index = match LayerIndex::open(file) {
        Ok(index) => index,
        Err(error) => {
            if error.is_of_another_version() {
                tracing::debug!(layer = %blob, %error, "the layer will be read again");
            } else {
                tracing::warn!(layer = %blob, %error, "the cached layer index is damaged; the layer will be read again");
                store.drop_index(blob);
            }
            return Err(NotStored::Unusable(error));
        }
    };
    if !layer.is(index.layer()) {
        let proven = index.layer().diff_id.clone();
        tracing::warn!(layer = %blob, diff_id = %layer.content(), %proven, "the cached layer index proves another diff_id");
        return Err(NotStored::OtherLayer { proven });
    }
    match Origin::of_stored(index.proof()).filter(|origin| origins.contains(origin)) {
        Some(origin) => Ok(Opened { index: Arc::new(index.on_damage(dropper)), origin, passed_over: Vec::new() }),
        None => Err(NotStored::OtherOrigin { proof: index.proof().clone() }),
    }
}

/// Whether an index may be used that is open already.
pub(super) fn is_from(index: &LayerIndex, origins: &[Origin]) -> bool {
    Origin::of_stored(index.proof()).is_some_and(|origin| origins.contains(&origin))
}
