//! Profiles: which parts of a layer the runs of an image read first, and in which order.
//!
//! The reads of a mount's first minute are stored in the layers' profiles after that minute, or at unmount. The next
//! mount without cached content fetches them in the order of first use ([`super::replay`]). A layer has one run per
//! image, since images share layers but read different parts of them. A rebuilt image is another image without a run;
//! in the layers that it kept, it replays the most recent run.
//!
//! Not everything that is read in the first minute belongs to a start-up ([`Lesson`]). What searches or copies the whole image
//! teaches nothing, what one run may add is limited, and what later runs do not read is forgotten after a few of them.
//!
//! A profile is a hint. It contains offsets in the decoded stream, not spans, so it remains valid if the layer is split
//! differently; a wrong one costs bytes and never affects content.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::{IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::span::SpanId;

/// The reads of earlier runs in one layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Profile {
    /// The layer's blob.
    pub layer: Digest,
    /// Digest of the decoded blob; missing in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// One run per image, the most recent first.
    pub runs: Vec<ProfileRun>,
}

/// The reads of one image's run in a layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProfileRun {
    /// The image's manifest.
    pub image: Digest,
    /// Milliseconds since the mount, and a decoded offset read then, sorted.
    pub wanted: Vec<(u32, u64)>,
    /// Of those offsets that the last runs have not read: how many runs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unread: BTreeMap<u64, u8>,
}

/// What is learnt from a run, by its first reads of spans in all layers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lesson {
    /// Reads from this time on are not, in milliseconds since the mount.
    until: u32,
    /// Whether what it has not read is one run nearer to being forgotten.
    pub ages: bool,
}

impl Lesson {
    /// The lesson of first reads at these times, in milliseconds since the mount, in an image with so many `spans`, of
    /// which earlier runs have read those that are `known`.
    pub fn of(mut read: Vec<u32>, spans: usize, known: usize) -> Self {
        let is_scan = read.len() > FEW && read.len() > spans / 4 * 3;
        if is_scan {
            return Self { until: 0, ages: false };
        }
        // Who reads a file or two is not the program that the profile is for.
        let ages = read.len() >= ENOUGH || (!read.is_empty() && read.len() >= known / 4);
        let most = FEW.max(spans / 4);
        if read.len() <= most {
            return Self { until: u32::MAX, ages };
        }
        read.sort_unstable();
        Self { until: read[most], ages }
    }

    /// Whether it tells anything of a read at this time, in milliseconds since the mount.
    pub fn covers(&self, at: u32) -> bool {
        at < self.until
    }
}

impl Profile {
    /// A profile of these runs, for the layer with this blob and diff_id.
    pub fn new(blob: &Digest, diff_id: &Digest, runs: Vec<ProfileRun>) -> Self {
        Self { layer: blob.clone(), diff_id: Some(diff_id.clone()), runs }
    }

    /// Parses a profile; `None` if it belongs to another layer.
    pub fn parse(text: &[u8], blob: &Digest, diff_id: Option<&Digest>) -> Option<Self> {
        let profile: Self = serde_json::from_slice(text).ok()?;
        // The same blob can be another layer, if it decodes differently.
        let same = profile.diff_id.is_none() || diff_id.is_none() || profile.diff_id.as_ref() == diff_id;
        (profile.layer == *blob && same).then_some(profile)
    }

    /// Serialises it in at most `limit` bytes, dropping the least recent runs if necessary.
    pub fn into_text(mut self, limit: u64) -> Vec<u8> {
        loop {
            let text = serde_json::to_vec(&self).expect("digests and numbers");
            if text.len() as u64 <= limit || self.runs.len() <= 1 {
                return text;
            }
            self.runs.pop();
        }
    }

    /// The run of `image`, or else the most recent one.
    pub fn of(&self, image: &Digest) -> Option<&ProfileRun> {
        self.runs.iter().find(|run| run.image == *image).or_else(|| self.runs.first())
    }

    /// Removes the run of `image`; `false` if there is none.
    pub fn forget(&mut self, image: &Digest) -> bool {
        let before = self.runs.len();
        self.runs.retain(|run| run.image != *image);
        self.runs.len() < before
    }

    /// These runs, followed by the `known` runs of other images.
    #[must_use]
    pub fn and_known(mut self, known: Option<Self>) -> Self {
        self.runs.iter_mut().for_each(ProfileRun::put_in_order);
        if let Some(known) = known {
            for run in known.runs {
                if !self.runs.iter().any(|own| own.image == run.image) {
                    self.runs.push(run);
                }
            }
            self.diff_id = self.diff_id.or(known.diff_id);
        }
        self.runs.truncate(MOST_IMAGES);
        self
    }
}

impl ProfileRun {
    /// A run of `image` that reads at these times and offsets.
    pub fn new(image: Digest, wanted: Vec<(u32, u64)>) -> Self {
        Self { image, wanted, unread: BTreeMap::new() }
    }

    /// Takes note of another run, by whether it has read what is at an offset: what several in a row have not is forgotten.
    pub fn age(&mut self, was_read: impl Fn(u64) -> bool) {
        let unread = &mut self.unread;
        self.wanted.retain(|(_, offset)| {
            if was_read(*offset) {
                unread.remove(offset);
                return true;
            }
            let runs = unread.entry(*offset).or_default();
            *runs = runs.saturating_add(1);
            let stays = *runs < FORGOTTEN;
            if !stays {
                unread.remove(offset);
            }
            stays
        });
    }

    /// Sorts it, and limits its length.
    fn put_in_order(&mut self) {
        self.wanted.sort_unstable();
        self.wanted.truncate(MOST);
    }

    /// The spans of this run, each once, with its time, in order; offsets outside the layer are skipped.
    ///
    /// # Errors
    /// The index is damaged.
    pub fn spans(&self, index: &LayerIndex) -> Result<Vec<(u32, SpanId)>, IndexError> {
        let mut seen = HashSet::new();
        let mut spans = Vec::new();
        for (at, offset) in self.wanted.iter().take(MOST) {
            match index.span_at(DecodedOffset(*offset)) {
                Ok(span) if seen.insert(span) => spans.push((*at, span)),
                Ok(_) | Err(IndexError::NoSpan { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(spans)
    }
}

/// Runs in a row after which what they do not read is forgotten.
const FORGOTTEN: u8 = 3;
/// So many spans may be learnt of one run whatever the size of the image, and reading all of them is no scan.
const FEW: usize = 512;
/// A run that reads so many spans is one of a program that counts.
const ENOUGH: usize = 64;
/// Limit for images per layer.
const MOST_IMAGES: usize = 16;
/// Limit for offsets per image and layer.
const MOST: usize = 1 << 18;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn profile(image: &str, wanted: &[(u32, u64)]) -> Profile {
        let run = ProfileRun::new(digest(image), wanted.to_vec());
        Profile::new(&digest("layer"), &digest("tar"), vec![run])
    }

    #[test]
    fn what_reads_a_whole_image_teaches_nothing() {
        let times = |count: u32| (0..count).collect::<Vec<_>>();
        let learnt = |read: u32, spans| {
            let lesson = Lesson::of(times(read), spans, 0);
            times(read).into_iter().filter(|at| lesson.covers(*at)).count()
        };
        assert_eq!(learnt(4000, 4000), 0);
        assert_eq!(learnt(3001, 4000), 0);
        assert_eq!(learnt(3000, 4000), 1000, "it may have been cut off by the minute");
        assert_eq!(learnt(900, 4000), 900);
        assert_eq!(learnt(512, 512), 512, "a small image is read whole");
        assert!(!Lesson::of(times(4000), 4000, 100).ages);
    }

    #[test]
    fn what_three_runs_do_not_read_is_forgotten() {
        let mut run = ProfileRun::new(digest("a"), vec![(1, 10), (2, 20), (3, 30)]);
        let left = |run: &ProfileRun| run.wanted.iter().map(|(_, offset)| *offset).collect::<Vec<_>>();
        run.age(|offset| offset == 10);
        run.age(|offset| offset != 30);
        assert_eq!((left(&run), run.unread.len()), (vec![10, 20, 30], 1));
        run.age(|offset| offset == 10);
        assert_eq!(left(&run), [10, 20]);
        run.age(|_| false);
        run.age(|_| true);
        assert!(run.unread.is_empty());
        assert_eq!(left(&run), [10, 20]);
    }

    #[test]
    fn a_run_that_reads_little_ages_nothing() {
        let ages = |read: usize, known| Lesson::of(vec![0; read], 10_000, known).ages;
        assert!(!ages(0, 0) && !ages(0, 100) && !ages(2, 100) && ages(25, 100));
        assert!(ages(64, 100_000), "a scan may have been learnt");
    }

    #[test]
    fn one_image_is_forgotten_and_others_stay() {
        let mut known = profile("a", &[(1, 10)]).and_known(Some(profile("b", &[(2, 20)])));
        assert!(known.forget(&digest("a")) && !known.forget(&digest("a")));
        assert_eq!(known, profile("b", &[(2, 20)]));
    }

    #[test]
    fn each_image_has_its_run_and_a_new_one_the_latest() {
        let of = |profile: &Profile, image: &str| profile.of(&digest(image)).unwrap().wanted.clone();
        let known = profile("a", &[(2, 20), (1, 10)]).and_known(None);
        let known = profile("b", &[(3, 30)]).and_known(Some(known));
        assert_eq!(of(&known, "a"), [(1, 10), (2, 20)]);
        assert_eq!(of(&known, "b"), [(3, 30)]);
        assert_eq!(of(&known, "rebuilt"), [(3, 30)]);
        let mut known = profile("a", &[(1, 10)]).and_known(Some(known));
        assert_eq!(of(&known, "rebuilt"), [(1, 10)]);
        for number in 0..2 * MOST_IMAGES {
            known = profile(&number.to_string(), &[]).and_known(Some(known));
        }
        assert_eq!(known.runs.len(), MOST_IMAGES);
    }

    #[test]
    fn a_profile_is_of_one_layer_and_one_reading_of_it() {
        let (blob, diff_id, other) = (digest("layer"), digest("tar"), digest("other"));
        let text = profile("a", &[]).into_text(u64::MAX);
        assert!(Profile::parse(&text, &blob, Some(&diff_id)).is_some());
        assert!(Profile::parse(&text, &blob, None).is_some());
        assert!(Profile::parse(&text, &other, Some(&diff_id)).is_none());
        assert!(Profile::parse(&text, &blob, Some(&other)).is_none(), "read otherwise");
        let older = Profile { diff_id: None, ..profile("b", &[]) };
        assert!(Profile::parse(&older.clone().into_text(u64::MAX), &blob, Some(&diff_id)).is_some());
        let both = older.and_known(Some(profile("a", &[])));
        assert_eq!((both.diff_id, both.runs.len()), (Some(diff_id), 2), "an older file adds to it");
    }

    #[test]
    fn the_least_recent_runs_go_when_there_is_no_room() {
        let two = profile("a", &[(1, 10)]).and_known(Some(profile("b", &[(2, 20)])));
        let one = profile("a", &[(1, 10)]).into_text(u64::MAX);
        assert_eq!(two.into_text(one.len() as u64), one);
    }
}
