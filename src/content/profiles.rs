//! Profiles in the store.

use serde::{Deserialize, Serialize};

use super::layer_ref::LayerRef;
use crate::digest::Digest;
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

/// Removes the runs of the image with the manifest `image` from the profiles of its layers; returns how many there were.
///
/// # Errors
/// [`StoreError::Io`]
pub fn forget_profiles<'a>(
    store: &Store,
    image: &Digest,
    layers: impl IntoIterator<Item = &'a LayerRef>,
) -> Result<usize, StoreError> {
    let mut forgotten = 0;
    for layer in layers {
        let layer = LayerName { blob: &layer.blob.digest, diff_id: &layer.stream_name() };
        let Some(mut profile) = load_profile(store, layer) else { continue };
        if profile.forget(image) {
            forgotten += 1;
            store.keep_profile(layer.blob, &profile.into_text(PROFILE_LIMIT))?;
        }
    }
    Ok(forgotten)
}

/// The profiles of an image's layers, as they are carried to other machines.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Profiles {
    /// The version of the format.
    peelfs_profiles: u32,
    /// One for each layer.
    pub layers: Vec<Profile>,
}

/// The version field, which all versions have.
#[derive(Deserialize)]
struct Version {
    peelfs_profiles: u32,
}

impl Profiles {
    /// A bound of the text in bytes.
    pub const LIMIT: u64 = 64 << 20;
    /// The version that is written and read.
    const VERSION: u32 = 2;

    /// The runs of the image with the manifest `image` that `store` has of its layers, each layer once.
    pub fn of<'a>(store: &Store, image: &Digest, layers: impl IntoIterator<Item = &'a LayerRef>) -> Self {
        let mut known: Vec<Profile> = Vec::new();
        for layer in layers {
            let layer = LayerName { blob: &layer.blob.digest, diff_id: &layer.stream_name() };
            let profile = load_profile(store, layer);
            let run = profile.as_ref().and_then(|profile| profile.of(image));
            let profile = run.map(|run| Profile::new(layer.blob, layer.diff_id, vec![run.clone()]));
            known.extend(profile.filter(|profile| !known.contains(profile)));
        }
        Self { peelfs_profiles: Self::VERSION, layers: known }
    }

    /// Parses the text; says why it cannot.
    ///
    /// # Errors
    /// What it is instead of profiles.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let no_profiles = |error: serde_json::Error| format!("no profiles of peelfs: {error}");
        let Version { peelfs_profiles } = serde_json::from_slice(text).map_err(no_profiles)?;
        if peelfs_profiles != Self::VERSION {
            return Err("profiles of another version".to_owned());
        }
        serde_json::from_slice(text).map_err(no_profiles)
    }

    /// Serialises them.
    pub fn to_text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("digests and numbers")
    }
}
