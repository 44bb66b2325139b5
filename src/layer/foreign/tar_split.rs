//! tar-split, as containers/storage puts it into zstd:chunked: what is needed besides the bodies of files to make a layer's tar
//! again, byte for byte. It is JSON, one object after the other: bytes of the tar, or a place at which the body of a file
//! stands.
//!
//! Its digest is in the table of contents, so it is as old as that, and has the same author. What it proves, it proves
//! because the tar that comes of it and of the bodies has the digest that the image's configuration says: then the names
//! of its headers are those of the layer.

use std::borrow::Cow;

use base64::Engine as _;
use serde::Deserialize;

use super::zstd_chunked::Packed;
use super::{LARGEST_TOC, PlaceError, TocError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::offsets::BlobOffset;

/// The annotation with the place of the data in the blob: offset, length, length when decoded.
const POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// A piece of the tar, in its order.
#[derive(Debug, Eq, PartialEq)]
pub enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The body of the file whose header came last, of so many bytes; 0 for what has no body.
    Body(u64),
}

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

/// Hands each piece of the tar to `each`, in order.
///
/// # Errors
/// The data's own fault, or the first that `each` finds.
pub fn read<E: From<TocError>>(json: &[u8], mut each: impl FnMut(Piece) -> Result<(), E>) -> Result<(), E> {
    let malformed = || TocError::Unusable { what: "its tar-split data are malformed" };
    for record in serde_json::Deserializer::from_slice(json).into_iter::<Record<'_>>() {
        let record = record.map_err(TocError::Json)?;
        let piece = match record.kind {
            BODY => Piece::Body(record.size),
            BYTES => {
                let payload = record.payload.unwrap_or_default();
                let bytes = base64::engine::general_purpose::STANDARD.decode(payload.as_bytes());
                Piece::Bytes(bytes.map_err(|_| malformed())?)
            }
            _ => return Err(malformed().into()),
        };
        each(piece)?;
    }
    Ok(())
}

/// One object.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(rename = "type")]
    kind: u64,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
}

/// The types of objects.
const BODY: u64 = 1;
const BYTES: u64 = 2;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pieces(json: &str) -> Result<Vec<Piece>, TocError> {
        let mut all = Vec::new();
        read(json.as_bytes(), |piece| {
            all.push(piece);
            Ok::<_, TocError>(())
        })
        .map(|()| all)
    }

    #[test]
    fn tar_split_is_read_as_vbatts_writes_it() {
        let text = "{\"type\":2,\"payload\":\"YWI=\",\"position\":0}\n\
                    {\"type\":1,\"name\":\"a\",\"size\":5,\"payload\":\"AAAAAAAAAAA=\",\"position\":1}\n\
                    {\"type\":1,\"name\":\"d/\",\"name_raw\":\"ZC8=\",\"payload\":null,\"position\":2}\n";
        assert_eq!(pieces(text).unwrap(), [Piece::Bytes(b"ab".to_vec()), Piece::Body(5), Piece::Body(0)]);
        assert_eq!(pieces("").unwrap(), []);
        for wrong in ["{", "[]", "{\"type\":3}", "{\"type\":2,\"payload\":\"%\"}", "{\"type\":1,\"size\":-1}", "{}"] {
            pieces(wrong).expect_err(wrong);
        }
    }
}
