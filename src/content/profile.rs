//! Profiles: which parts of a layer the runs of an image wanted first, and in which order.
//!
//! Images share layers, and want other parts of them: so a layer's profile has a run for each image. One that was
//! rebuilt is another image, of which nothing is known yet; in the layers that it kept, it wants what the others did.
//!
//! A profile is a hint. It names places in the decoded stream, not spans, so it means the same to
//! whoever cut the layer's spans elsewhere; one that is wrong or made up costs bytes and never shows any.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::{IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::store::{LayerName, PROFILE_LIMIT, Store, StoreError};

/// What earlier runs wanted of one layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Profile {
    /// The layer's blob.
    pub layer: Digest,
    /// What the blob decodes to; older files do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// One for each image, the one that was kept last first.
    pub runs: Vec<ProfileRun>,
}

/// What the runs of one image wanted of a layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProfileRun {
    /// The image's manifest.
    pub image: Digest,
    /// Milliseconds since the mount began, and a decoded offset that was wanted then; in this order.
    pub wanted: Vec<(u32, u64)>,
}

impl Profile {
    /// A profile of these runs.
    pub fn of_layer(LayerName { blob, diff_id }: LayerName<'_>, runs: Vec<ProfileRun>) -> Self {
        Self { layer: blob.clone(), diff_id: Some(diff_id.clone()), runs }
    }

    /// The profile that the store has of a layer.
    pub fn load(store: &Store, layer: LayerName<'_>) -> Option<Self> {
        Self::load_of(store, layer.blob, Some(layer.diff_id))
    }

    fn load_of(store: &Store, blob: &Digest, diff_id: Option<&Digest>) -> Option<Self> {
        let profile: Self = serde_json::from_slice(&store.profile(blob)?).ok()?;
        // The same blob may be another layer, read otherwise.
        let same = profile.diff_id.is_none() || diff_id.is_none() || profile.diff_id.as_ref() == diff_id;
        (profile.layer == *blob && same).then_some(profile)
    }

    /// What is known of `image`; where nothing is, of the image that was kept last.
    pub fn of(&self, image: &Digest) -> Option<&ProfileRun> {
        self.runs.iter().find(|run| run.image == *image).or_else(|| self.runs.first())
    }

    /// Puts these runs into the store's profile of the layer, each in place of what is there of its image, the first one
    /// first.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep(mut self, store: &Store) -> Result<(), StoreError> {
        let runs = &mut self.runs;
        runs.iter_mut().for_each(ProfileRun::put_in_order);
        if let Some(known) = Self::load_of(store, &self.layer, self.diff_id.as_ref()) {
            for known in known.runs {
                if !runs.iter().any(|run| run.image == known.image) {
                    runs.push(known);
                }
            }
            self.diff_id = self.diff_id.or(known.diff_id);
        }
        runs.truncate(MOST_IMAGES);
        loop {
            let text = serde_json::to_vec(&self).expect("digests and numbers");
            if text.len() as u64 <= PROFILE_LIMIT || self.runs.len() <= 1 {
                return store.keep_profile(&self.layer, &text);
            }
            self.runs.pop();
        }
    }
}

impl ProfileRun {
    /// Sorted, and no longer than any layer has spans to tell of.
    fn put_in_order(&mut self) {
        self.wanted.sort_unstable();
        self.wanted.truncate(MOST);
    }

    /// The spans that it speaks of, each once, with its time, in this order; places outside the layer are left out.
    pub(super) fn spans(&self, index: &LayerIndex) -> Result<Vec<(u32, u32)>, IndexError> {
        let mut seen = HashSet::new();
        let mut spans = Vec::new();
        for (at, offset) in self.wanted.iter().take(MOST) {
            match index.span_at(DecodedOffset(*offset)) {
                Ok(span) if seen.insert(span.0) => spans.push((*at, span.0)),
                Ok(_) | Err(IndexError::NoSpan { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(spans)
    }
}

/// Images that are remembered of a layer.
const MOST_IMAGES: usize = 16;
/// More places than this are not remembered of an image and layer.
const MOST: usize = 1 << 18;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn each_image_has_its_own_and_a_new_one_what_the_last_one_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let (blob, diff_id) = (digest("layer"), digest("tar"));
        let layer = LayerName { blob: &blob, diff_id: &diff_id };
        let profile_of =
            |diff_id: Option<&str>, runs| Profile { layer: blob.clone(), diff_id: diff_id.map(digest), runs };
        let keep = |image: &str, wanted: &[(u32, u64)]| {
            let run = ProfileRun { image: digest(image), wanted: wanted.to_vec() };
            profile_of(Some("tar"), vec![run]).keep(&store).unwrap();
        };
        let of = |image: &str| Profile::load(&store, layer).unwrap().of(&digest(image)).unwrap().wanted.clone();
        assert_eq!(Profile::load(&store, layer), None);
        keep("a", &[(2, 20), (1, 10)]);
        keep("b", &[(3, 30)]);
        assert_eq!(of("a"), [(1, 10), (2, 20)]);
        assert_eq!(of("b"), [(3, 30)]);
        assert_eq!(of("rebuilt"), [(3, 30)]);
        keep("a", &[(1, 10)]);
        assert_eq!(of("rebuilt"), [(1, 10)]);
        for number in 0..2 * MOST_IMAGES {
            keep(&number.to_string(), &[]);
        }
        assert_eq!(Profile::load(&store, layer).unwrap().runs.len(), MOST_IMAGES);
        let another = digest("another");
        assert_eq!(Profile::load(&store, LayerName { blob: &another, ..layer }), None);
        assert_eq!(Profile::load(&store, LayerName { diff_id: &another, ..layer }), None, "read otherwise");
        profile_of(None, Vec::new()).keep(&store).unwrap();
        assert_eq!(Profile::load(&store, layer).unwrap().runs.len(), MOST_IMAGES, "an older file adds to it");
    }
}
