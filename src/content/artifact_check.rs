//! Which artifacts with indexes may be used: each is asked about once for an image, before anything in it is believed.
//!
//! An index in the store carries the name of its artifact (`REPOSITORY@DIGEST`), so it is asked about as well when it was put
//! there by a command that asked no verifier.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::layer::{Format, Proof};
use crate::source::BoxFuture;
use crate::sync::lock;

/// Says whether an artifact may be used.
pub trait ArtifactCheck: Send + Sync {
    /// Whether the artifact of this name, `REPOSITORY@DIGEST`, may be used; `artifact` describes its manifest.
    ///
    /// # Errors
    /// [`Refusal`]
    fn check<'a>(&'a self, name: &'a str, artifact: &'a Descriptor) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// An artifact is not used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// Why.
    pub why: Arc<str>,
    /// Whether another one may be allowed; otherwise no answer can be had.
    pub others_may_be: bool,
}

/// The answers about the artifacts of one image.
#[derive(Default)]
pub(super) struct ArtifactChecks {
    /// `None` allows all.
    check: Option<Arc<dyn ArtifactCheck>>,
    answers: Mutex<HashMap<String, Result<(), Refusal>>>,
    asking: tokio::sync::Mutex<()>,
}

impl ArtifactChecks {
    pub(super) fn new(check: Option<Arc<dyn ArtifactCheck>>) -> Self {
        Self { check, ..Self::default() }
    }

    /// Whether it is asked at all.
    pub(super) fn is_asked(&self) -> bool {
        self.check.is_some()
    }

    /// Whether an index with this proof may be used, by the answers so far.
    pub(super) fn admit(&self, proof: &Proof) -> bool {
        !self.is_asked() || artifact_of(proof).is_none_or(|name| matches!(lock(&self.answers).get(name), Some(Ok(()))))
    }

    /// Asks, unless it was asked before. A refusal is logged once.
    pub(super) async fn ask(&self, name: &str, artifact: &Descriptor) -> Result<(), Refusal> {
        let Some(check) = &self.check else { return Ok(()) };
        let _one_at_a_time = self.asking.lock().await;
        if let Some(answer) = self.answer(name) {
            return answer;
        }
        let answer = check.check(name, artifact).await;
        if let Err(refusal) = &answer {
            tracing::warn!(artifact = name, why = &*refusal.why, "an artifact with indexes is not used");
        }
        lock(&self.answers).insert(name.to_owned(), answer.clone());
        answer
    }

    /// The answer to an earlier question.
    pub(super) fn answer(&self, name: &str) -> Option<Result<(), Refusal>> {
        lock(&self.answers).get(name).cloned()
    }
}

impl std::fmt::Debug for ArtifactChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArtifactChecks").field("answers", &self.answers).finish_non_exhaustive()
    }
}

/// The name of an artifact in `place`, a registry and a repository, as in proofs of its indexes.
pub(super) fn name_of(place: &str, artifact: &Digest) -> String {
    format!("{place}@{artifact}")
}

/// What [`name_of`] was made of.
pub(super) fn parse_name(name: &str) -> Option<(&str, Digest)> {
    let (place, digest) = name.rsplit_once('@')?;
    Some((place, digest.parse().ok()?))
}

/// The artifact that an index with this proof is from.
pub(super) fn artifact_of(proof: &Proof) -> Option<&str> {
    match proof {
        Proof::Vouched { format: Format::Pushed | Format::SociReferrer, by, .. } => Some(by),
        Proof::Vouched { .. } | Proof::Built | Proof::Unproven => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::descriptor::MediaType;
    use crate::digest::Algorithm;

    /// Allows artifacts of one repository.
    struct Only(&'static str, AtomicUsize);

    impl ArtifactCheck for Only {
        fn check<'a>(&'a self, name: &'a str, _: &'a Descriptor) -> BoxFuture<'a, Result<(), Refusal>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let is_allowed = name.starts_with(self.0);
            let refusal = Refusal { why: "no".into(), others_may_be: true };
            Box::pin(async move { if is_allowed { Ok(()) } else { Err(refusal) } })
        }
    }

    #[tokio::test]
    async fn each_artifact_is_asked_about_once_and_before_use() {
        let digest = Digest::of(Algorithm::Sha256, b"artifact");
        let artifact = Descriptor::new(MediaType::OciManifest, digest.clone(), 1);
        let only = Arc::new(Only("good/", AtomicUsize::new(0)));
        let checks = ArtifactChecks::new(Some(only.clone()));
        let (good, bad) = (name_of("good/a", &digest), name_of("bad/a", &digest));
        assert_eq!(parse_name(&good), Some(("good/a", digest)));
        let [good_proof, bad_proof] = [&good, &bad].map(|name| Proof::vouched(Format::Pushed, name));
        assert!(!checks.admit(&good_proof), "nothing was asked");
        for _ in 0..2 {
            assert!(checks.ask(&good, &artifact).await.is_ok() && checks.ask(&bad, &artifact).await.is_err());
        }
        assert_eq!(only.1.load(Ordering::Relaxed), 2);
        assert!(checks.admit(&good_proof) && !checks.admit(&bad_proof));
        assert!(checks.admit(&Proof::vouched(Format::SociReferrer, &good)));
        assert!(!checks.admit(&Proof::vouched(Format::SociReferrer, "good/a")), "the artifact is not known");
        for other in [Proof::Built, Proof::vouched(Format::Exported, "file"), Proof::vouched(Format::EStargz, "x")] {
            assert!(checks.admit(&other), "{other:?} is from no artifact");
        }
        let all = ArtifactChecks::default();
        assert!(all.ask(&bad, &artifact).await.is_ok() && all.admit(&bad_proof));
    }
}
