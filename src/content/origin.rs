//! Where a layer's index comes from, and opening the indexes in the store.

use std::sync::Arc;

use super::layer_ref::LayerRef;
use crate::digest::Digest;
use crate::layer::{Format, IndexError, LayerIndex, Proof};
use crate::store::Store;

/// Where a layer's index comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Origin {
    /// The store has it from an earlier first pass.
    Store,
    /// It was made elsewhere, in this format, and its maker is trusted.
    Vouched(Format),
    /// A first pass reads the whole layer.
    FirstPass,
}

impl Origin {
    /// All origins, cheapest first.
    pub const ALL: [Self; 3] = [Self::Store, Self::Vouched(Format::Exported), Self::FirstPass];

    /// The origin of a stored index with this proof.
    fn of_stored(proof: &Proof) -> Option<Self> {
        match proof {
            Proof::Built => Some(Self::Store),
            Proof::Vouched { format, .. } => Some(Self::Vouched(*format)),
            // Never written to the store.
            Proof::Unproven => None,
        }
    }
}

/// An opened layer.
#[derive(Debug)]
pub struct Opened {
    /// Its index, which carries its proof.
    pub index: Arc<LayerIndex>,
    /// Where it came from.
    pub origin: Origin,
    /// The origins tried before, without success.
    pub passed_over: Vec<PassedOver>,
}

/// An origin that could not open the layer.
#[derive(Debug)]
pub struct PassedOver {
    /// The origin.
    pub origin: Origin,
    /// Why it failed.
    pub why: NotStored,
}

/// Why the store has no usable index of a layer.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// There is none.
    #[error("there is no index in the cache")]
    Absent,
    /// It belongs to a layer with the same blob and another diff_id.
    #[error("the index in the cache is of diff_id {proven}")]
    OtherLayer {
        /// The diff_id of that layer.
        proven: Digest,
    },
    /// Its origin is not among those allowed.
    #[error("the index in the cache is not to be used: {proof:?}")]
    OtherOrigin {
        /// The proof in the index.
        proof: Proof,
    },
    /// It is damaged, or of another version of peelfs.
    #[error("the index in the cache cannot be used")]
    Unusable(#[source] IndexError),
}

/// Opens a layer by its index in the store, if the index comes from one of `origins`.
///
/// Pages are checked on first access; a page that is found damaged later is read from a rebuilt index
/// ([`LayerIndex::mend`]).
///
/// # Errors
/// [`NotStored`]; a damaged index is removed.
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

/// Whether an open index comes from one of `origins`.
pub(super) fn is_from(index: &LayerIndex, origins: &[Origin]) -> bool {
    Origin::of_stored(index.proof()).is_some_and(|origin| origins.contains(&origin))
}
