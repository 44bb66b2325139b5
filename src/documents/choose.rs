//! Which manifest of an image index is the image that was asked for.

use super::{Artifact, Document, Index, IndexEntry, Manifest, NESTING_LIMIT};
use crate::digest::Digest;
use crate::platform::{self, Platform};

/// What to do with a document on the way from a reference to a manifest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Fetch these, best first, until one leads to an image that runs.
    ///
    /// Those with a platform come first; the configuration of the others has to be
    /// [asked](ImageConfig::require).
    Descend(Vec<IndexEntry>),
    /// This is the image; its configuration may still [belong](ImageConfig::require) to another platform.
    Arrived(Manifest),
    /// This is an artifact.
    Files(Artifact),
}

/// Decides how to go on from `document`, which was reached through `depth` image indexes.
///
/// # Errors
/// [`ResolveError`] if nothing in the document fits, or it lies too deep.
pub fn resolve_step(document: Document, depth: usize, wanted: &Platform) -> Result<Step, ResolveError> {
    match document {
        Document::Manifest(manifest) => Ok(Step::Arrived(manifest)),
        Document::Artifact(artifact) => Ok(Step::Files(artifact)),
        Document::Index(_) if depth >= NESTING_LIMIT => Err(ResolveError::TooDeep),
        Document::Index(index) => {
            select(&index, wanted)?;
            Ok(Step::Descend(candidates(&index, wanted).into_iter().cloned().collect()))
        }
    }
}

/// The entries that may lead to an image for `wanted`: those that say so, best first, then those that
/// do not say what they run on.
pub fn candidates<'a>(index: &'a Index, wanted: &Platform) -> Vec<&'a IndexEntry> {
    let images = index.entries.iter().filter(|entry| entry.may_be_image());
    let (silent, spoken): (Vec<_>, Vec<_>) = images.partition(|entry| entry.platform.is_none());
    let platforms: Vec<_> = spoken.iter().filter_map(|entry| entry.platform.clone()).collect();
    let fitting = platform::best_first(wanted, &platforms).into_iter().map(|at| spoken[at]);
    fitting.chain(silent).collect()
}

/// The artifact that an index without images lists for `wanted`, or for all platforms.
///
/// # Errors
/// [`ResolveError::Artifacts`] if there are several; [`ResolveError::NoPlatform`] if there is none.
pub fn lone_artifact<'a>(index: &'a Index, wanted: &Platform) -> Result<&'a IndexEntry, ResolveError> {
    let runs = |entry: &&IndexEntry| entry.platform.as_ref().is_none_or(|platform| wanted.runs(platform));
    let found: Vec<_> = index.entries.iter().filter(|entry| entry.may_be_artifact()).filter(runs).collect();
    match &found[..] {
        [only] if !index.entries.iter().any(IndexEntry::may_be_image) => Ok(only),
        [_, _, ..] if !index.entries.iter().any(IndexEntry::may_be_image) => {
            let artifacts = found.iter().map(|entry| {
                let kind = entry.artifact_type.as_deref().unwrap_or_default();
                (entry.descriptor.digest.clone(), super::shown(kind))
            });
            Err(ResolveError::Artifacts { artifacts: artifacts.collect() })
        }
        _ => Err(ResolveError::NoPlatform { wanted: wanted.clone(), offered: index.offered() }),
    }
}

/// The entry that fits `wanted` best.
///
/// # Errors
/// [`ResolveError::NoPlatform`] with all that is offered.
pub fn select<'a>(index: &'a Index, wanted: &Platform) -> Result<&'a IndexEntry, ResolveError> {
    let first = candidates(index, wanted).into_iter().next();
    first.ok_or_else(|| ResolveError::NoPlatform { wanted: wanted.clone(), offered: index.offered() })
}

/// Why no manifest could be chosen.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResolveError {
    /// Nothing runs on the platform.
    #[error("there is no image for {wanted}; {}", offers(offered))]
    NoPlatform {
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms there are, each once, in order.
        offered: Vec<Platform>,
    },
    /// There is no image, and several artifacts.
    #[error("it lists no image, and {} artifacts: {}", artifacts.len(), listed(artifacts))]
    Artifacts {
        /// Digest and type of each.
        artifacts: Vec<(Digest, String)>,
    },
    /// Image indexes list image indexes, too many times over.
    #[error("image indexes are nested more than {NESTING_LIMIT} deep")]
    TooDeep,
}

impl ResolveError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoPlatform { offered, .. } => {
                offered.first().map(|first| format!("choose one with `--platform {first}`"))
            }
            Self::Artifacts { artifacts } => {
                artifacts.first().map(|(digest, _)| format!("choose one by its digest: `NAME@{digest}`"))
            }
            Self::TooDeep => None,
        }
    }
}

fn offers(offered: &[Platform]) -> String {
    if offered.is_empty() {
        return "it offers none at all".to_owned();
    }
    let names: Vec<_> = offered.iter().take(OFFERS_SHOWN).map(Platform::to_string).collect();
    let more = match offered.len().saturating_sub(OFFERS_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("it offers {}{more}", names.join(", "))
}

fn listed(artifacts: &[(Digest, String)]) -> String {
    let shown = artifacts.iter().take(OFFERS_SHOWN).map(|(digest, kind)| format!("{digest} ({kind})"));
    shown.collect::<Vec<_>>().join(", ")
}

const OFFERS_SHOWN: usize = 20;
