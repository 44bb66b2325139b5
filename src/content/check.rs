//! Checking a layer in the store from end to end, with no source at hand.

use super::spans::{self, Stored};
use crate::digest::Digest;
use crate::layer::{IndexError, LayerIndex, SpanId};
use crate::store::{Content, Shape, Store, StoreError};

/// What a check of one layer found. What was damaged is removed and will be read again.
#[derive(Clone, Debug, Default)]
pub struct CheckedLayer {
    /// Why the layer index could not be used, if it was damaged.
    pub index: Option<String>,
    /// Spans that were there.
    pub spans: u32,
    /// Their decoded bytes.
    pub bytes: u64,
    /// Those of them that were damaged.
    pub damaged: Vec<u32>,
    /// The content was of another shape than the index says, so none of it counts.
    pub misshapen: bool,
}

impl CheckedLayer {
    /// Whether everything was as it was written.
    pub fn is_intact(&self) -> bool {
        self.index.is_none() && self.damaged.is_empty() && !self.misshapen
    }
}

/// Checks every page of a layer's index and every span that the store has of it.
///
/// # Errors
/// [`StoreError::Io`] when the content cannot be opened.
pub fn check_layer(store: &Store, blob: &Digest) -> Result<CheckedLayer, StoreError> {
    let mut found = CheckedLayer::default();
    let Some(file) = store.index(blob) else { return Ok(found) };
    let opened = LayerIndex::open(file).and_then(|index| {
        index.check_all()?;
        if index.proof().blob == *blob { Ok(index) } else { Err(IndexError::NotAnIndex) }
    });
    let index = match opened {
        Ok(index) => index,
        Err(error) => {
            store.drop_index(blob);
            found.index = Some(error.to_string());
            return Ok(found);
        }
    };
    let (size, count) = (index.proof().decoded_size, index.span_count());
    match store.content_shape(blob, size, count) {
        Shape::Absent => return Ok(found),
        Shape::Right => {}
        Shape::Wrong => found.misshapen = true,
    }
    // Opening gives content of a wrong shape the right one, with nothing in it.
    let content = store.content(blob, size, count)?;
    if let Err(error) = check_spans(&content, &index, &mut found) {
        store.drop_index(blob);
        found.index = Some(error.to_string());
    }
    Ok(found)
}

fn check_spans(content: &Content, index: &LayerIndex, found: &mut CheckedLayer) -> Result<(), IndexError> {
    for number in 0..content.spans() {
        match spans::check(content, index, number, &mut || (), |_, _| ())? {
            Stored::Absent | Stored::Changing => continue,
            Stored::Intact(_) => {}
            Stored::Damaged => found.damaged.push(number),
        }
        found.spans += 1;
        found.bytes += spans::length(&index.span(SpanId(number))?) as u64;
    }
    Ok(())
}
