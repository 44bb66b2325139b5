//! Profiles in the store.

use crate::predict::Profile;
use crate::store::{LayerName, PROFILE_LIMIT, Store, StoreError};

/// The stored profile of a layer.
pub fn load_profile(store: &Store, layer: LayerName<'_>) -> Option<Profile> {
    Profile::parse(&store.profile(layer.blob)?, layer.blob, Some(layer.diff_id))
}

/// Merges runs into the stored profile of their layer, ahead of the known ones; each replaces the run of its image.
///
/// # Errors
/// [`StoreError::Io`]
pub fn keep_profile(store: &Store, profile: Profile) -> Result<(), StoreError> {
    let known = store.profile(&profile.layer);
    let known = known.and_then(|text| Profile::parse(&text, &profile.layer, profile.diff_id.as_ref()));
    let layer = profile.layer.clone();
    store.keep_profile(&layer, &profile.and_known(known).into_text(PROFILE_LIMIT))
}
