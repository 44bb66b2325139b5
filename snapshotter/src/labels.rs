//! Labels of a requested snapshot, set by containerd and its clients.
//!
//! | who | labels |
//! |---|---|
//! | CRI, containerd 2's transfer service | `…/cri.image-ref`, `…/cri.manifest-digest`, `…/cri.layer-digest`, `…/cri.image-layers` |
//! | `ctr-remote`, nerdctl for stargz | `…/remote/stargz.reference`, `…/remote/stargz.digest`, `…/remote/stargz.layers` |
//! | all of them | `containerd.io/snapshot.ref`, the chain id of the layer |
//! They are not trusted: the reference is resolved again, and the chain id is compared with the verified configuration.

use std::collections::BTreeMap;

use peelfs::digest::Digest;
use peelfs::reference::{Place, Reference, ReferenceError};

/// A layer of an image that may be mounted instead of unpacked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    /// The layer's chain id (image-spec, config.md, "Layer ChainID").
    pub(crate) chain: Digest,
    /// The image as it was named, in a registry.
    pub(crate) reference: Reference,
    /// The manifest for the pulled platform, if given.
    pub(crate) manifest: Option<Digest>,
}

impl Wanted {
    /// The requested layer; `None` for an ordinary snapshot.
    ///
    /// # Errors
    /// [`LabelError`]: the layer must be unpacked.
    pub(crate) fn of(labels: &BTreeMap<String, String>) -> Result<Option<Self>, LabelError> {
        let Some(chain) = labels.get(REF) else { return Ok(None) };
        let (label, image, manifest) = match (labels.get(CRI_IMAGE), labels.get(STARGZ_IMAGE)) {
            (Some(image), _) => (CRI_IMAGE, image, labels.get(CRI_MANIFEST)),
            (None, Some(image)) => (STARGZ_IMAGE, image, None),
            (None, None) => return Ok(None),
        };
        let digest = |label, text: &String| {
            text.parse::<Digest>().map_err(|error| LabelError::new(label, text, error.to_string()))
        };
        let chain = digest(REF, chain)?;
        let manifest = manifest.map(|text| digest(CRI_MANIFEST, text)).transpose()?;
        let reference: Reference =
            image.parse().map_err(|error: ReferenceError| LabelError::new(label, image, error.to_string()))?;
        match reference.place() {
            Place::Registry(_) => Ok(Some(Self { chain, reference, manifest })),
            // A label must not make this process read files of the machine.
            _ => Err(LabelError::new(label, image, "it names no image of a registry".to_owned())),
        }
    }
}

/// Why the image that labels name is not mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the label `{label}` with {text:?}: {why}")]
pub(crate) struct LabelError {
    label: &'static str,
    text: String,
    why: String,
}

impl LabelError {
    fn new(label: &'static str, text: &str, why: String) -> Self {
        Self { label, text: text.chars().take(SHOWN).collect(), why }
    }
}

/// The chain ids of layers with these diff_ids, base first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(peelfs::digest::Algorithm::Sha256, format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// The mapping of owners into a user namespace: `CONTAINER:HOST:COUNT`, comma separated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mapping {
    pub(crate) uid: String,
    pub(crate) gid: String,
    /// The container's root on the host.
    pub(crate) root: (u32, u32),
}

impl Mapping {
    /// The requested mapping, if any.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of(labels: &BTreeMap<String, String>) -> Result<Option<Self>, MappingError> {
        let (uid, gid) = match (labels.get(UID_MAPPING), labels.get(GID_MAPPING)) {
            (Some(uid), Some(gid)) => (uid, gid),
            (None, None) => return Ok(None),
            (one, other) => {
                let text = one.or(other).cloned().unwrap_or_default();
                return Err(MappingError { text, why: "users and groups must both be mapped" });
            }
        };
        let root = (root_in(uid)?, root_in(gid)?);
        Ok(Some(Self { uid: uid.clone(), gid: gid.clone(), root }))
    }
}

/// Why a mapping cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the mapping of users `{text}`: {why}")]
pub(crate) struct MappingError {
    text: String,
    why: &'static str,
}

fn root_in(mapping: &str) -> Result<u32, MappingError> {
    let wrong = |why| MappingError { text: mapping.to_owned(), why };
    let mut root = None;
    for range in mapping.split(',') {
        let mut numbers = range.split(':').map(str::parse::<u32>);
        let (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(count)), None) =
            (numbers.next(), numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(wrong("it is not CONTAINER:HOST:COUNT"));
        };
        if inside == 0 && count > 0 {
            root = Some(outside);
        }
    }
    root.ok_or_else(|| wrong("it has no root"))
}

/// The chain id by which the snapshot of a layer will be looked up.
pub(crate) const REF: &str = "containerd.io/snapshot.ref";
const CRI_IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const CRI_MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const STARGZ_IMAGE: &str = "containerd.io/snapshot/remote/stargz.reference";
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// How many characters of a wrong label are logged.
const SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    const CHAIN: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn images_are_named_by_cri_and_by_stargz_labels() {
        let cri = Wanted::of(&labels([(REF, CHAIN), (CRI_IMAGE, "docker.io/library/app:1"), (CRI_MANIFEST, CHAIN)]));
        let cri = cri.unwrap().unwrap();
        assert_eq!(
            (cri.chain.to_string(), cri.manifest.map(|digest| digest.to_string())),
            (CHAIN.into(), Some(CHAIN.into()))
        );
        let stargz = Wanted::of(&labels([(REF, CHAIN), (STARGZ_IMAGE, "docker.io/library/app:1")])).unwrap().unwrap();
        assert_eq!((stargz.reference, stargz.manifest), (cri.reference, None));
    }

    #[test]
    fn labels_without_an_image_of_a_registry_are_not_lazy() {
        const IMAGE: &str = "docker.io/library/app:1";
        for ordinary in [labels([(REF, CHAIN)]), labels([(CRI_IMAGE, IMAGE)]), labels([])] {
            assert_eq!(Wanted::of(&ordinary).unwrap(), None, "{ordinary:?}");
        }
        for (wrong, label) in [
            (labels([(REF, "sha256:x"), (CRI_IMAGE, IMAGE)]), REF),
            (labels([(REF, "../../etc"), (STARGZ_IMAGE, IMAGE)]), REF),
            (labels([(REF, CHAIN), (CRI_IMAGE, IMAGE), (CRI_MANIFEST, "latest")]), CRI_MANIFEST),
            (labels([(REF, CHAIN), (CRI_IMAGE, "oci:/etc")]), CRI_IMAGE),
            (labels([(REF, CHAIN), (STARGZ_IMAGE, "dir:/root")]), STARGZ_IMAGE),
            (labels([(REF, CHAIN), (CRI_IMAGE, "docker-archive:/tmp/x")]), CRI_IMAGE),
            (labels([(REF, CHAIN), (CRI_IMAGE, "a b\n")]), CRI_IMAGE),
        ] {
            let why = Wanted::of(&wrong).unwrap_err().to_string();
            assert!(why.contains(&format!("the label `{label}`")) && !why.contains('\n'), "{wrong:?}: {why}");
        }
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let [a, b] = ["a", "b"].map(|letter| format!("sha256:{}", letter.repeat(64)).parse::<Digest>().unwrap());
        let chain = chain_ids(&[a.clone(), b.clone()]);
        let text = format!("{a} {b}");
        assert_eq!(chain, [a, Digest::of(peelfs::digest::Algorithm::Sha256, text.as_bytes())]);
    }

    #[test]
    fn a_mapping_says_who_root_is_or_is_refused() {
        let mapped = |uid, gid| Mapping::of(&labels([(UID_MAPPING, uid), (GID_MAPPING, gid)]));
        assert_eq!(mapped("0:100000:65536", "1:5:2,0:7:1").unwrap().unwrap().root, (100_000, 7));
        assert_eq!(Mapping::of(&labels([])).unwrap(), None);
        for wrong in ["", "0:1", "0:1:x", "1:2:3", "0:1:2:3", "0:-1:1", "0:1:0"] {
            assert!(mapped(wrong, "0:1:1").is_err(), "{wrong}");
        }
        assert!(Mapping::of(&labels([(UID_MAPPING, "0:1:1")])).is_err());
    }
}
