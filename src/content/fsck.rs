//! Checks a layer in the store from end to end, without a source.

use super::open_layer::{map_of, name_of};
use super::passthrough_copy::{self, Compared};
use super::spans::{self, Stored};
use super::superseded::undescribed;
use crate::digest::Digest;
use crate::layer::{EntryId, IndexError, LayerIndex};
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};
use crate::store::{Content, IndexName, Shape, Store, StoreError};

/// Result of checking one layer. Damaged parts were removed and will be fetched again.
#[derive(Clone, Debug, Default)]
pub struct CheckedLayer {
    /// Why the layer index could not be used, if it was damaged.
    pub index: Option<String>,
    /// Spans that were cached.
    pub spans: u32,
    /// Their decoded bytes.
    pub bytes: u64,
    /// Spans that were damaged.
    pub damaged: Vec<SpanId>,
    /// Entries whose passthrough copy was damaged.
    pub damaged_passthrough_copies: Vec<u32>,
    /// Cached decoder windows that were damaged; all of the layer's were removed then.
    pub damaged_windows: u32,
    /// The content file had another size than the index says, so all content was dropped.
    pub misshapen: bool,
    /// Bytes of content that no index in the store describes: those of an index that is in the memory of a process alone.
    /// That process compares them before it uses them.
    pub undescribed: u64,
}

impl CheckedLayer {
    /// Whether no damage was found.
    pub fn is_intact(&self) -> bool {
        self.index.is_none()
            && self.damaged.is_empty()
            && self.damaged_passthrough_copies.is_empty()
            && self.damaged_windows == 0
            && !self.misshapen
    }
}

/// Checks every page of a layer's index and every cached span.
///
/// # Errors
/// [`StoreError::Io`] when the content cannot be opened.
pub fn check_layer(store: &Store, blob: &Digest) -> Result<CheckedLayer, StoreError> {
    let mut found = CheckedLayer::default();
    for name in IndexName::all(blob) {
        check_index(store, blob, name, &mut found)?;
    }
    found.undescribed = undescribed(store, blob);
    Ok(found)
}

/// Looks at the footers of a layer's indexes and at the size of its content, which takes a few small reads, and removes
/// nothing. Returns what is damaged, if that shows.
pub fn glance_at_layer(store: &Store, blob: &Digest) -> Option<String> {
    IndexName::all(blob).into_iter().find_map(|name| {
        let index = match LayerIndex::open(store.index(name)?) {
            Ok(index) if index.layer().blob == *blob => index,
            Ok(_) => return Some(IndexError::NotAnIndex.to_string()),
            Err(error) if error.is_of_another_version() => return None,
            Err(error) => return Some(error.to_string()),
        };
        let shape = store.content_shape(name_of(&index), index.layer().decoded_size, map_of(&index));
        (shape == Shape::Wrong).then(|| "its content does not match its index".to_owned())
    })
}

/// Checks one index of a blob, and the content that it is about.
fn check_index(store: &Store, blob: &Digest, name: IndexName<'_>, found: &mut CheckedLayer) -> Result<(), StoreError> {
    let Some(index) = store.index(name) else { return Ok(()) };
    let opened = LayerIndex::open(index).and_then(|index| {
        index.check_all()?;
        if index.layer().blob == *blob { Ok(index) } else { Err(IndexError::NotAnIndex) }
    });
    let index = match opened {
        Ok(index) => index,
        // An index of another version is not damaged, and cannot be compared.
        Err(error) if error.is_of_another_version() => return Ok(()),
        Err(error) => {
            store.drop_index(name);
            found.index = Some(error.to_string());
            return Ok(());
        }
    };
    match check_windows(store, &index) {
        Ok(0) => {}
        Ok(damaged) => {
            store.drop_windows(blob);
            found.damaged_windows += damaged;
        }
        Err(error) => {
            store.drop_index(name);
            found.index = Some(error.to_string());
            return Ok(());
        }
    }
    let (layer, size, map) = (name_of(&index), index.layer().decoded_size, map_of(&index));
    match store.content_shape(layer, size, map) {
        Shape::Absent => {
            // Without content there is nothing to compare copies with: revoke their seals, so that processes compare
            // them first.
            store.passthrough_copies(layer).into_iter().for_each(|entry| store.break_seal(layer, entry));
            return Ok(());
        }
        Shape::Right => {}
        Shape::Wrong => {
            found.misshapen = true;
            store.remove_non_content(layer);
        }
    }
    // Opening content of a wrong size replaces it with empty content.
    let content = store.content(layer, size, map)?;
    match check_spans(&content, &index, found) {
        Ok(()) => check_passthrough_copies(store, &content, &index, found),
        // An index of another version is not damaged, and cannot be compared.
        Err(error) if error.is_of_another_version() => return Ok(()),
        Err(error) => {
            store.drop_index(name);
            found.index = Some(error.to_string());
        }
    }
    Ok(())
}

/// Compares cached windows with the index, if it has them in a blob of their own; returns how many are damaged.
fn check_windows(store: &Store, index: &LayerIndex) -> Result<u32, IndexError> {
    if index.windows_blob()?.is_none() {
        return Ok(0);
    }
    let Some(windows) = store.existing_windows(&index.layer().blob) else { return Ok(0) };
    let (mut damaged, mut window) = (0, Vec::new());
    for span in index.spans().iter() {
        let Some(at) = index.span(span)?.window else { continue };
        window.resize(at.len as usize, 0);
        // What is not cached is a hole, or behind the end; no window consists of zeros.
        let is_cached = windows.read_exact_at(&mut window, at.start).is_ok() && window.iter().any(|byte| *byte != 0);
        damaged += u32::from(is_cached && !index.is_window(span, &window)?);
    }
    Ok(damaged)
}

/// Compares passthrough copies with the spans, which were checked before.
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
        // Entries that do not exist or are not files cannot have a copy.
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
