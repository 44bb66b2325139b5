//! Windows in a blob of their own.
//!
//! Windows are nearly all of an index, and a reader needs few of them. So an index can be taken apart: one without them, with
//! a check of each, and a blob of the windows one after the other, of which ranges are fetched. A span's
//! [`WindowAt`](super::WindowAt) is its window's place in either. The section of windows then has:
//!
//! | bytes | |
//! |---|---|
//! | 16 for each span | the first bytes of the BLAKE3 of its window; zeros if it has none |
//! | 8 | size of the blob |
//! | 1, and so many | the digest of the blob, as text |
//!
//! The check says whether the bytes of a window are those that the index was made with. What a wrong window would do to
//! decoded bytes is found by the checks of spans, as everywhere.

use std::io::{self, Write};

use super::entry::le64;
use super::footer::{Footer, Place, Section, VERSIONS};
use super::index::{IndexError, LayerIndex};
use super::paged::PAGE;
use super::proof::Stream;
use super::write::{PageWriter, WriteError};
use crate::digest::Digest;
use crate::span::SpanId;

/// The blob that has the windows of an index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WindowsBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why an index cannot be taken apart, or put together.
#[derive(Debug, thiserror::Error)]
pub enum TakeApartError {
    /// It cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The other one cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl LayerIndex {
    /// The version of an index without its windows.
    pub const VERSION_WITHOUT_WINDOWS: u32 = *VERSIONS.end();

    /// Bytes of the windows that are in it.
    pub fn window_bytes(&self) -> u64 {
        let is_inside = !self.footer.has_windows_blob() && self.footer.stream != Stream::Bodies;
        if is_inside { self.place(Section::Windows).count } else { 0 }
    }

    /// The blob that its windows are in; `None` if they are in the index, or there are none.
    ///
    /// # Errors
    /// The index is damaged, or does not describe the blob.
    pub fn windows_blob(&self) -> Result<Option<WindowsBlob>, IndexError> {
        if !self.footer.has_windows_blob() {
            return Ok(None);
        }
        let malformed = IndexError::Malformed { what: "the blob of its windows is not described" };
        let Place { start, count } = self.place(Section::Windows);
        let checks = u64::from(self.span_count()) * CHECK as u64;
        let Some(rest) = count.checked_sub(checks).filter(|rest| (DESCRIBED..=DESCRIBED + 255).contains(rest)) else {
            return Err(malformed);
        };
        let bytes = self.pages.copy(start + checks, rest as usize)?;
        let (size, text) = (le64(&bytes, 0), &bytes[DESCRIBED as usize..]);
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == usize::from(bytes[8]));
        let digest = text.and_then(|text| text.parse().ok()).ok_or(malformed)?;
        Ok(Some(WindowsBlob { digest, size }))
    }

    /// Whether `window` is the window of a span, as stored in a blob of windows.
    ///
    /// # Errors
    /// [`IndexError::NoSpan`]; the windows are in the index; or the index is damaged.
    pub fn is_window(&self, id: SpanId, window: &[u8]) -> Result<bool, IndexError> {
        let Place { start, count } = self.place(Section::Windows);
        let at = u64::from(id.0) * CHECK as u64;
        if !self.footer.has_windows_blob() || id.0 >= self.span_count() || at + CHECK as u64 > count {
            return Err(IndexError::NoSpan { what: u64::from(id.0) });
        }
        Ok(*self.pages.array::<CHECK>(start + at)? == check_of(window))
    }

    /// Checks that all windows lie within a blob of this size.
    ///
    /// # Errors
    /// [`IndexError::Malformed`], or the index is damaged.
    pub fn check_windows_within(&self, size: u64) -> Result<(), IndexError> {
        for id in self.spans().iter() {
            let within =
                |window: super::WindowAt| window.start.checked_add(window.len.into()).is_some_and(|end| end <= size);
            if !self.span(id)?.window.is_none_or(within) {
                return Err(IndexError::Malformed { what: "a window lies outside" });
            }
        }
        Ok(())
    }

    /// Writes all its windows, as a blob of their own has them.
    ///
    /// # Errors
    /// [`TakeApartError`], also if they are in a blob of their own already.
    pub fn copy_windows(&self, out: &mut impl Write) -> Result<(), TakeApartError> {
        if self.footer.has_windows_blob() || self.footer.stream == Stream::Bodies {
            return Err(IndexError::Malformed { what: "its windows are in a blob of their own" }.into());
        }
        let Place { start, count } = self.place(Section::Windows);
        for at in (start..start + count).step_by(PAGE) {
            let piece = self.pages.copy(at, (start + count - at).min(PAGE as u64) as usize)?;
            out.write_all(&piece).map_err(WriteError::from)?;
        }
        Ok(())
    }

    /// Writes everything before the windows.
    fn copy_head<'a, W: Write>(&self, out: &'a mut W) -> Result<PageWriter<'a, W>, TakeApartError> {
        let mut body = PageWriter::new(out);
        let end = self.place(Section::Windows).start;
        for at in (0..end).step_by(PAGE) {
            let piece = self.pages.copy(at, (end - at).min(PAGE as u64) as usize)?;
            body.put(&piece).map_err(WriteError::from)?;
        }
        Ok(body)
    }

    /// The footer of the same index with other bytes in the place of its windows.
    fn footer_with(&self, windows: u64, checks: u32) -> Footer {
        let mut footer = Footer { checks, ..self.footer.clone() };
        let place = &mut footer.places[Section::Windows as usize];
        place.count = windows;
        footer.body = place.start + windows;
        footer
    }
}

/// Writes `index` without its windows, which are in `blob`.
///
/// # Errors
/// [`TakeApartError`]; the output is unusable then.
pub fn write_without_windows(
    index: &LayerIndex,
    blob: &WindowsBlob,
    out: &mut impl Write,
) -> Result<(), TakeApartError> {
    let mut body = index.copy_head(out)?;
    for id in index.spans().iter() {
        let check = index.window(id)?.map_or([0; CHECK], |window| check_of(&window));
        body.put(&check).map_err(WriteError::from)?;
    }
    let text = blob.digest.to_string();
    body.put(&blob.size.to_le_bytes()).map_err(WriteError::from)?;
    body.put(&[u8::try_from(text.len()).expect("the longest digest has 135 characters")]).map_err(WriteError::from)?;
    body.put(text.as_bytes()).map_err(WriteError::from)?;
    let windows = u64::from(index.span_count()) * CHECK as u64 + DESCRIBED + text.len() as u64;
    Ok(body.finish(index.footer_with(windows, index.footer.checks | Footer::WINDOWS_BLOB))?)
}

/// Writes an `index` that was written without its windows, with them: the same bytes as before, where all of these are some
/// span's. `read` has the blob's bytes from an offset on.
///
/// # Errors
/// [`TakeApartError`], also for other windows; the output is unusable then.
pub fn write_with_windows(
    index: &LayerIndex,
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    out: &mut impl Write,
) -> Result<(), TakeApartError> {
    let Some(blob) = index.windows_blob()? else {
        return Err(IndexError::Malformed { what: "it has its windows" }.into());
    };
    index.check_windows_within(blob.size)?;
    let mut body = index.copy_head(out)?;
    let base = body.position;
    let mut room = Vec::new();
    for id in index.spans().iter() {
        let Some(window) = index.span(id)?.window else { continue };
        if base + window.start < body.position {
            return Err(IndexError::Malformed { what: "windows do not follow one another" }.into());
        }
        room.resize(window.len as usize, 0);
        read(&mut room, window.start).map_err(|cause| IndexError::Io { cause })?;
        if !index.is_window(id, &room)? {
            return Err(IndexError::Malformed { what: "a window is another one" }.into());
        }
        // What no span refers to is left out.
        body.pad_to(base + window.start).map_err(WriteError::from)?;
        body.put(&room).map_err(WriteError::from)?;
    }
    let windows = body.position - base;
    Ok(body.finish(index.footer_with(windows, index.footer.checks & !Footer::WINDOWS_BLOB))?)
}

fn check_of(window: &[u8]) -> [u8; CHECK] {
    let mut check = [0; CHECK];
    check.copy_from_slice(&blake3::hash(window).as_bytes()[..CHECK]);
    check
}

/// Bytes of a window's check.
const CHECK: usize = 16;
/// Bytes before the text of the digest.
const DESCRIBED: u64 = 9;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::check::Check;
    use super::super::spans::{Span, WindowAt};
    use super::super::testing::{everything, layer, render_index, tree};
    use super::super::{Proof, write_index};
    use super::*;
    use crate::codec::StartKind;
    use crate::digest::Algorithm;
    use crate::offsets::{BlobOffset, DecodedOffset};

    /// An index whose spans have windows of this many bytes each.
    fn indexed(lengths: &[u32]) -> (Vec<u8>, LayerIndex) {
        let mut windows = Vec::new();
        let spans: Vec<_> = (0..)
            .zip(lengths)
            .map(|(number, &len)| {
                let start = windows.len() as u64;
                windows.extend((0..len).map(|at| (at * number) as u8));
                Span {
                    decoded: DecodedOffset(u64::from(number) * 100)..DecodedOffset(u64::from(number) * 100 + 100),
                    blob: BlobOffset(u64::from(number) * 30),
                    bit: 0,
                    kind: StartKind::Checkpoint,
                    check: Check::Blake3([9; 32]),
                    window: (len > 0).then_some(WindowAt { start, len }),
                }
            })
            .collect();
        let mut bytes = Vec::new();
        write_index(&tree(&everything()).unwrap(), &spans, &windows, &layer(), &Proof::Built, &mut bytes).unwrap();
        (bytes.clone(), LayerIndex::open(bytes).unwrap())
    }

    fn apart(index: &LayerIndex) -> (WindowsBlob, Vec<u8>, LayerIndex) {
        let mut windows = Vec::new();
        index.copy_windows(&mut windows).unwrap();
        let blob = WindowsBlob { digest: Digest::of(Algorithm::Sha256, &windows), size: windows.len() as u64 };
        let mut head = Vec::new();
        write_without_windows(index, &blob, &mut head).unwrap();
        (blob, windows, LayerIndex::open(head).unwrap())
    }

    fn from(windows: &[u8]) -> impl Fn(&mut [u8], u64) -> io::Result<()> {
        let windows = windows.to_vec();
        move |buf, at| crate::layer::ReadAt::read_exact_at(&windows, buf, at)
    }

    #[test]
    fn an_index_without_windows_is_the_same_otherwise() {
        for lengths in [&[0, 5, 60_000, 0, 60_000, 1][..], &[0], &[3; 40], &[1; 9000][..35]] {
            let (bytes, whole) = indexed(lengths);
            let (blob, windows, head) = apart(&whole);
            assert_eq!(head.windows_blob().unwrap(), Some(blob));
            assert_eq!((whole.windows_blob().unwrap(), whole.version(), head.version()), (None, 2, 3));
            assert_eq!(render_index(&head).unwrap(), render_index(&whole).unwrap());
            head.check_all().unwrap();
            for id in whole.spans().iter() {
                assert_eq!(head.span(id).unwrap(), whole.span(id).unwrap());
                let Some(mut window) = whole.window(id).unwrap() else { continue };
                assert!(head.window(id).is_err());
                assert!(head.is_window(id, &window).unwrap());
                window[0] ^= 1;
                assert!(!head.is_window(id, &window).unwrap());
            }
            let mut again = Vec::new();
            write_with_windows(&head, from(&windows), &mut again).unwrap();
            assert!(again == bytes);
        }
    }

    #[test]
    fn windows_of_another_index_make_no_whole_one() {
        let (_, whole) = indexed(&[0, 50, 60]);
        let (blob, mut windows, head) = apart(&whole);
        head.check_windows_within(blob.size).unwrap();
        assert!(head.check_windows_within(blob.size - 1).is_err());
        windows[55] ^= 1;
        assert!(write_with_windows(&head, from(&windows), &mut Vec::new()).is_err());
        assert!(write_with_windows(&head, from(&windows[..50]), &mut Vec::new()).is_err());
        assert!(write_with_windows(&whole, from(&windows), &mut Vec::new()).is_err());
        assert!(write_without_windows(&head, &blob, &mut Vec::new()).is_err());
        assert!(head.is_window(SpanId(3), b"").is_err() && whole.is_window(SpanId(1), b"").is_err());
    }
}
