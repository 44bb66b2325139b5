//! Where decoding can start in a layer, as a zTOC says it: one place a span.

use super::super::TocError;
use super::buffer::{TarZinfo, root};
use crate::codec::Window;

/// A place in a gzip layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Checkpoint<'a> {
    /// The first byte of the blob that belongs to the block as a whole.
    pub(super) whole: u64,
    /// How many bits of the byte before it belong to the block, too.
    pub(super) bits: u8,
    /// The decoded byte that the block begins with.
    pub(super) decoded: u64,
    /// The decoded bytes before it.
    pub(super) window: &'a [u8],
}

/// The places of a gzip layer (`gzip_zinfo.c`), in order.
///
/// Blobs of version 1 leave the first place out: it is that behind a gzip header of ten bytes. The versions are told apart by
/// the length.
///
/// # Errors
/// [`TocError::Unusable`]
pub(super) fn of_gzip(bytes: &[u8]) -> Result<Vec<Checkpoint<'_>>, TocError> {
    let unusable = TocError::Unusable { what: "its checkpoints are malformed" };
    let Some((have, rest)) = bytes.split_first_chunk().map(|(have, rest)| (i32::from_le_bytes(*have), rest)) else {
        return Err(unusable);
    };
    let (Ok(have), Some((_, packed))) = (usize::try_from(have), rest.split_first_chunk::<SPAN_SIZE>()) else {
        return Err(unusable);
    };
    let (stored, odd) = (packed.len() / PACKED, packed.len() % PACKED);
    let is_first_left_out = Some(stored) == have.checked_sub(1);
    if have == 0 || odd != 0 || !(stored == have || is_first_left_out) {
        return Err(unusable);
    }
    let mut all = Vec::with_capacity(have);
    if is_first_left_out {
        all.push(Checkpoint { whole: GZIP_HEADER, bits: 0, decoded: 0, window: &[] });
    }
    for packed in packed.chunks_exact(PACKED) {
        let number = |at: usize| i64::from_le_bytes(packed[at..at + 8].try_into().expect("eight bytes"));
        let (Ok(whole), Ok(decoded)) = (u64::try_from(number(0)), u64::try_from(number(8))) else {
            return Err(unusable);
        };
        let (bits, window) = (packed[16], &packed[17..]);
        // Before the stream's start there is nothing, which is written as zeros.
        let known = usize::try_from(decoded).unwrap_or(usize::MAX).min(Window::MAX);
        all.push(Checkpoint { whole, bits, decoded, window: &window[Window::MAX - known..] });
    }
    Ok(all)
}

/// How long the spans of a plain tar of `size` bytes are (`tar_zinfo.go`).
///
/// # Errors
/// [`TocError::Unusable`]
pub(super) fn span_size_of_tar(bytes: &[u8], size: u64) -> Result<u64, TocError> {
    let info = root::<TarZinfo<'_>>(bytes).ok();
    let said = |number: Option<i64>| u64::try_from(number.unwrap_or(0)).ok();
    let info = info.filter(|info| said(info.size()) == Some(size));
    let span_size = info.and_then(|info| said(info.span_size())).filter(|size| *size > 0);
    span_size.ok_or(TocError::Unusable { what: "its checkpoints are malformed" })
}

/// Bytes of the size that spans should have, which nothing depends on.
const SPAN_SIZE: usize = 8;
/// A place: two numbers of eight bytes, the bits, and a window.
const PACKED: usize = 17 + Window::MAX;
/// A gzip header without a name.
const GZIP_HEADER: u64 = 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn packed(have: i32, places: &[(i64, i64, u8)]) -> Vec<u8> {
        let mut bytes = [&have.to_le_bytes()[..], &(4_i64 << 20).to_le_bytes()].concat();
        for (whole, decoded, bits) in places {
            bytes.extend([&whole.to_le_bytes()[..], &decoded.to_le_bytes(), &[*bits], &[7; Window::MAX]].concat());
        }
        bytes
    }

    #[test]
    fn both_versions_are_told_apart_by_their_length() {
        let second = (2, [(12, 0, 0), (500, 100, 3)]);
        let second = packed(second.0, &second.1);
        let places = of_gzip(&second).unwrap();
        let found = places.iter().map(|place| (place.whole, place.decoded, place.bits, place.window.len()));
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(12, 0, 0, 0), (500, 100, 3, 100)]);
        let first = packed(3, &[(500, 100, 3), (900, 70_000, 0)]);
        let found: Vec<_> = of_gzip(&first).unwrap().iter().map(|place| (place.whole, place.window.len())).collect();
        assert_eq!(found, [(10, 0), (500, 100), (900, Window::MAX)]);
        assert_eq!(of_gzip(&packed(1, &[])).unwrap().len(), 1);
    }

    #[test]
    fn counts_and_places_that_cannot_be_are_refused() {
        for (have, places) in [
            (0, &[][..]),
            (-1, &[][..]),
            (i32::MAX, &[(10, 0, 0)][..]),
            (3, &[(10, 0, 0)][..]),
            (1, &[(10, 0, 0), (20, 9, 0)][..]),
            (1, &[(-1, 0, 0)][..]),
            (1, &[(10, i64::MIN, 0)][..]),
        ] {
            assert!(of_gzip(&packed(have, places)).is_err(), "{have} {places:?}");
        }
        let whole = packed(1, &[(10, 0, 0)]);
        for cut in [0, 3, 11, 13, whole.len() - 1] {
            assert!(of_gzip(&whole[..cut]).is_err(), "{cut}");
        }
        assert!(span_size_of_tar(b"", 0).is_err() && span_size_of_tar(&whole, 5).is_err());
    }
}
