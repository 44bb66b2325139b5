//! Checking a layer in the store from end to end, with no source at hand.

use super::open_layer::name_of;
use super::passthrough_copy::{self, Compared};
use super::spans::{self, Stored};
use crate::digest::Digest;
use crate::layer::{EntryId, IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};
use crate::store::{Content, Shape, Store, StoreError};

/// What a check of one layer found. What was damaged is removed and will be fetched again.
#[derive(Clone, Debug, Default)]
pub struct CheckedLayer {
    /// Why the layer index could not be used, if it was damaged.
    pub index: Option<String>,
    /// Spans that were cached.
    pub spans: u32,
    /// Their decoded bytes.
    pub bytes: u64,
    /// Those of them that were damaged.
    pub damaged: Vec<SpanId>,
    /// Entries whose copy for the kernel held something else.
    pub damaged_passthrough_copies: Vec<u32>,
    /// The content files were of another size than the index says, so none of it counts.
    pub misshapen: bool,
}

impl CheckedLayer {
    /// Whether everything was as it was written.
    pub fn is_intact(&self) -> bool {
        self.index.is_none() && self.damaged.is_empty() && self.damaged_passthrough_copies.is_empty() && !self.misshapen
    }
}

/// Checks every page of a layer's index and every span that the store has of it.
///
/// # Errors
/// [`StoreError::Io`] when the content cannot be opened.
pub fn check_layer(store: &Store, blob: &Digest) -> Result<CheckedLayer, StoreError> {
    let mut found = CheckedLayer::default();
    let Some(index) = store.index(blob) else { return Ok(found) };
    let opened = LayerIndex::open(index).and_then(|index| {
        index.check_all()?;
        if index.layer().blob == *blob { Ok(index) } else { Err(IndexError::NotAnIndex) }
    });
    let index = match opened {
        Ok(index) => index,
        // There is nothing wrong with it, and nothing that could be compared.
        Err(error) if error.is_of_another_version() => return Ok(found),
        Err(error) => {
            store.drop_index(blob);
            found.index = Some(error.to_string());
            return Ok(found);
        }
    };
    let (layer, size, count) = (name_of(&index), index.layer().decoded_size, index.span_count());
    match store.content_shape(layer, size, count) {
        Shape::Absent => {
            // There is nothing to compare with; a process that wants to use them must.
            store.passthrough_copies(layer).into_iter().for_each(|entry| store.break_seal(layer, entry));
            return Ok(found);
        }
        Shape::Right => {}
        Shape::Wrong => {
            found.misshapen = true;
            store.remove_what_is_no_content(layer);
        }
    }
    // Opening gives content of a wrong shape the right one, with nothing in it.
    let content = store.content(layer, size, count)?;
    match check_spans(&content, &index, &mut found) {
        Ok(()) => check_passthrough_copies(store, &content, &index, &mut found),
        // There is nothing wrong with it, and nothing that could be compared.
        Err(error) if error.is_of_another_version() => return Ok(found),
        Err(error) => {
            store.drop_index(blob);
            found.index = Some(error.to_string());
        }
    }
    Ok(found)
}

/// Compares copies for the kernel with the spans, which have been checked.
fn check_passthrough_copies(store: &Store, content: &Content, index: &LayerIndex, found: &mut CheckedLayer) {
    let layer = name_of(index);
    let mut read = |from: DecodedOffset, buf: &mut [u8]| {
        let Ok(spans) = index.spans_of(from..from + buf.len() as u64) else { return false };
        let generations: Option<Vec<_>> = content.generations(spans).into_iter().collect();
        let Some(generations) = generations else { return false };
        let first = spans.start.0;
        content.read(from, buf).is_ok() && content.still(spans, |span| generations[(span.0 - first) as usize].get())
    };
    for number in store.passthrough_copies(layer) {
        let Some(copy) = store.passthrough_copy(layer, number) else { continue };
        // An entry that does not exist, or is no file, never had one.
        let run = passthrough_copy::decoded_range(index, EntryId(number)).ok().flatten();
        let compared = run.map_or(Compared::Differs, |run| passthrough_copy::compare(&run, &copy, &mut read));
        match compared {
            Compared::Same => found.bytes += copy.size(),
            Compared::Differs => {
                store.drop_passthrough_copy(layer, number);
                found.damaged_passthrough_copies.push(number);
            }
            Compared::Unknown => store.break_seal(layer, number),
        }
    }
}

fn check_spans(content: &Content, index: &LayerIndex, found: &mut CheckedLayer) -> Result<(), IndexError> {
    for span in SpanRange::first(content.spans()).iter() {
        let known = index.span(span)?;
        match spans::check(content, &known, span, &mut || (), |_| ()) {
            Stored::Absent | Stored::Changing => continue,
            Stored::Intact => {}
            Stored::Damaged => found.damaged.push(span),
        }
        found.spans += 1;
        found.bytes += spans::length(&known) as u64;
    }
    Ok(())
}
