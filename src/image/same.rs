//! What is known of a file's content without reading it: enough to tell that two files are equal, or that they are not.

use super::fs::{ImageFs, NotNow, Now, damaged};
use crate::content::LayerRef;
use crate::digest::Digest;
use crate::layer::{Check, EntryId, Kind, LayerIndex};
use crate::offsets::FileOffset;
use crate::overlay::NodeId;

/// What is known of a file's content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KnownContent<'a> {
    /// The layer, by its decoded content, and the entry in it.
    place: (&'a Digest, EntryId),
    size: u64,
    /// Lengths and digests of its pieces in their order, if the layer's index has digests of just these bytes.
    pieces: Option<Vec<(u64, Check)>>,
}

impl KnownContent<'_> {
    /// Whether two files have the same content; `None` if that takes reading them.
    pub fn is_same_as(&self, other: &Self) -> Option<bool> {
        if self.size != other.size {
            return Some(false);
        }
        if self.place == other.place || self.size == 0 {
            return Some(true);
        }
        let (own, others) = (self.pieces.as_ref()?, other.pieces.as_ref()?);
        let same_kind = |a: &Check, b: &Check| std::mem::discriminant(a) == std::mem::discriminant(b);
        let comparable =
            own.len() == others.len() && own.iter().zip(others).all(|(a, b)| a.0 == b.0 && same_kind(&a.1, &b.1));
        comparable.then(|| own == others)
    }
}

impl ImageFs {
    /// What is known of the content of a file, which is in one of `layers`, the layers of this image.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn known_content_of<'a>(&self, node: NodeId, layers: &'a [LayerRef]) -> Now<KnownContent<'a>> {
        let (number, entry) = self.carrier(node, Kind::File)?;
        let reader = self.known_content(number).ok_or(NotNow::Needs(number))?;
        let index = reader.index();
        let size = index.entry(entry).map_err(|cause| damaged(number, cause))?.size();
        let place = (layers[usize::from(number.0)].content(), entry);
        let pieces = pieces(index, entry, size).map_err(|cause| damaged(number, cause))?;
        Ok(KnownContent { place, size, pieces })
    }
}

/// The digests of a file's bytes, if spans begin and end with it; a file with holes has none.
fn pieces(
    index: &LayerIndex,
    entry: EntryId,
    size: u64,
) -> Result<Option<Vec<(u64, Check)>>, crate::layer::IndexError> {
    let extents = index.extents(entry, FileOffset(0)..FileOffset(size))?;
    let [extent] = &extents[..] else { return Ok(None) };
    let Some(mut at) = extent.decoded else { return Ok(None) };
    let end = at + size;
    let mut pieces = Vec::new();
    let mut id = index.span_at(at)?;
    while at < end {
        let span = index.span(id)?;
        // A digest of the blob's bytes says nothing of those of a file.
        if span.decoded.start != at || span.decoded.end > end || span.check.is_of_blob() {
            return Ok(None);
        }
        at = span.decoded.end;
        pieces.push((span.decoded.end - span.decoded.start, span.check));
        id.0 += 1;
    }
    Ok(Some(pieces))
}
