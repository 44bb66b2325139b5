//! Why a layer was opened as it was: each origin of an index, and why it is not the one that is used.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::layer_ref::LayerRef;
use super::opening::Origin;
use crate::layer::Format;
use crate::layer::foreign::Toc;

/// An origin that a layer's index may have, for `--explain`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Considered {
    /// Which.
    pub origin: String,
    /// Why it is not used; `None` for the one that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// All origins in the order in which they are asked, those that are not asked last. `used` has opened the layer, `asked`
/// are those that may be asked, and `failed` were asked in vain.
pub fn explain(
    layer: &LayerRef,
    used: Option<Origin>,
    asked: &[Origin],
    failed: &HashMap<Origin, String>,
) -> Vec<Considered> {
    let place = |origin: &Origin| asked.iter().position(|asked| asked == origin);
    let by_referrer = |origin: &Origin| matches!(origin, Origin::Vouched(Format::Pushed | Format::SociReferrer));
    let why_not = |origin: Origin| {
        if let Some(why) = failed.get(&origin) {
            return why.clone();
        }
        if let Origin::Vouched(format @ (Format::ZstdChunked | Format::EStargz)) = origin {
            match Toc::of(&layer.blob, format) {
                Ok(None) => return "the manifest names no such table".to_owned(),
                Err(fault) => return fault.to_string(),
                Ok(Some(_)) => {}
            }
        }
        if origin == Origin::Vouched(Format::Soci) && layer.soci.is_none() {
            return "the manifest names no SOCI index".to_owned();
        }
        match (place(&origin), used) {
            (None, _) if by_referrer(&origin) && !asked.iter().any(by_referrer) => {
                "no repository is named with `--index-from`".to_owned()
            }
            (None, _) => "`--index` leaves it out".to_owned(),
            (Some(_), None) => "not asked yet".to_owned(),
            (Some(at), Some(used)) if place(&used).is_some_and(|used| used < at) => {
                format!("{} comes before it", used.long_name())
            }
            (Some(_), Some(_)) => "there is none in the cache".to_owned(),
        }
    };
    let mut all = Origin::ALL;
    all.sort_by_key(|origin| place(origin).unwrap_or(usize::MAX));
    let considered = |origin: Origin| {
        let why_not = (Some(origin) != used).then(|| why_not(origin));
        Considered { origin: origin.long_name().to_owned(), why_not }
    };
    all.map(considered).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::layer_ref::Payload;
    use super::super::origin::{FromRegistry, IndexChoice};
    use super::*;
    use crate::descriptor::{Compression, Descriptor, MediaType};
    use crate::digest::{Algorithm, Digest};

    #[test]
    fn each_origin_is_told_once_and_one_is_used() {
        let media_type = MediaType::parse("application/vnd.oci.image.layer.v1.tar+gzip");
        let blob = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, b"blob"), 4);
        let layer = LayerRef { blob, diff_id: None, payload: Payload::Tar(Compression::Gzip), soci: None };
        let told = |used, choice: IndexChoice, pushed, failed: &[(Origin, &str)]| {
            let failed = failed.iter().map(|(origin, why)| (*origin, (*why).to_owned())).collect();
            let all = explain(&layer, used, choice.origins(pushed), &failed);
            assert_eq!(all.len(), Origin::ALL.len());
            assert_eq!(all.iter().filter(|one| one.why_not.is_none()).count(), usize::from(used.is_some()));
            all.into_iter()
                .map(|one| format!("{}: {}", one.origin, one.why_not.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        let pushed = Origin::Vouched(Format::Pushed);
        assert_eq!(
            told(Some(Origin::Store), IndexChoice::Auto, FromRegistry::Never, &[]),
            [
                "own index: ",
                "an exported index: own index comes before it",
                "zstd:chunked: the manifest names no such table",
                "eStargz: the manifest names no such table",
                "SOCI: the manifest names no SOCI index",
                "a first pass: own index comes before it",
                "a pushed index: no repository is named with `--index-from`",
                "SOCI v1: no repository is named with `--index-from`",
            ]
        );
        assert_eq!(
            told(Some(Origin::FirstPass), IndexChoice::Own, FromRegistry::Named, &[(pushed, "it is damaged")]),
            [
                "own index: there is none in the cache",
                "an exported index: there is none in the cache",
                "a pushed index: it is damaged",
                "a first pass: ",
                "zstd:chunked: the manifest names no such table",
                "eStargz: the manifest names no such table",
                "SOCI: the manifest names no SOCI index",
                "SOCI v1: `--index` leaves it out",
            ]
        );
        assert_eq!(told(None, IndexChoice::None, FromRegistry::Never, &[])[0], "own index: not asked yet");
    }
}
