//! tar-split, as containers/storage puts it into zstd:chunked: what is needed besides the bodies of files to make a layer's tar
//! again, byte for byte ([`crate::codec`] reads it).
//!
//! Its digest is in the table of contents, so it is as old as that, and has the same author. What it proves, it proves
//! because the tar that comes of it and of the bodies has the digest that the image's configuration says: then the names
//! of its headers are those of the layer.

use std::borrow::Cow;

use serde::Deserialize;

use super::zstd_chunked::Packed;
use super::{LARGEST_TOC, PlaceError, TocError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::offsets::BlobOffset;

/// The annotation with the place of the data in the blob: offset, length, length when decoded.
const POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// Where such data are, and what they hash to, say the annotations of `layer` and its table, whose JSON this is; `None`
/// where the layer has none.
///
/// # Errors
/// [`PlaceError`], or the table is none.
pub fn tar_split_of(layer: &Descriptor, json: &[u8]) -> Result<Option<Packed>, TocError> {
    let table: Bound<'_> = serde_json::from_slice(json).map_err(TocError::Json)?;
    let Some(digest) = table.tar_split_digest else { return Ok(None) };
    let digest: Digest = digest.parse().map_err(|_| PlaceError::Malformed)?;
    let position = layer.annotations.get(POSITION).ok_or(PlaceError::Malformed)?;
    let numbers: Option<Vec<u64>> = position.split(':').map(|number| number.parse().ok()).collect();
    let Some(&[at, length, decoded]) = numbers.as_deref() else { return Err(PlaceError::Malformed.into()) };
    if length == 0 || at.checked_add(length).is_none_or(|end| end > layer.size) {
        return Err(PlaceError::Outside.into());
    }
    match [length, decoded].into_iter().find(|size| *size > LARGEST_TOC) {
        Some(size) => Err(PlaceError::TooLarge(size).into()),
        None => Ok(Some(Packed { at: BlobOffset(at), length, decoded, digest })),
    }
}

/// What a table says of such data.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bound<'a> {
    #[serde(borrow, default)]
    tar_split_digest: Option<Cow<'a, str>>,
}
