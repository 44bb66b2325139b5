//! Outputs of a first pass besides the tree: spans with their digests, checkpoint windows, and the content file.

use std::sync::Arc;

use crate::codec::{Mark, StartKind, Window, WindowPacker};
use crate::layer::{Check, Span, WindowAt};
use crate::offsets::DecodedOffset;
use crate::store::{LayerName, NewContent, Store};

/// Cuts the decoded stream at the marks and digests the spans between them.
#[derive(Default)]
pub(super) struct SpanCutter {
    pub(super) done: Vec<Span>,
    open: Option<(Mark, blake3::Hasher)>,
    end: DecodedOffset,
}

impl SpanCutter {
    pub(super) fn cut(&mut self, at: DecodedOffset, bytes: &[u8], marks: Vec<Mark>, content: &mut ContentWriter) {
        let mut from = 0;
        for mark in marks {
            let to = (mark.decoded - at) as usize;
            self.add(&bytes[from..to]);
            from = to;
            self.end(content);
            self.end = mark.decoded;
            self.open = Some((mark, blake3::Hasher::new()));
        }
        self.add(&bytes[from..]);
    }

    /// Where the last complete span ends.
    pub(super) fn whole_to(&self) -> DecodedOffset {
        self.done.last().map_or(DecodedOffset(0), |span| span.decoded.end)
    }

    fn add(&mut self, bytes: &[u8]) {
        if let Some((_, hasher)) = &mut self.open {
            hasher.update(bytes);
            self.end = self.end + bytes.len() as u64;
        }
    }

    pub(super) fn end(&mut self, content: &mut ContentWriter) {
        let Some((mark, hasher)) = self.open.take() else { return };
        if self.end == mark.decoded {
            return; // a mark at the very end, or two at one place: no bytes lie between
        }
        content.span_ends(self.end);
        self.done.push(Span {
            decoded: mark.decoded..self.end,
            blob: mark.blob,
            bit: mark.bit,
            kind: mark.kind,
            check: Check::Blake3(*hasher.finalize().as_bytes()),
            window: None,
        });
    }
}

/// Writes decoded bytes to the content file until the disk or the cache's limit is full; the index is useful without
/// them.
pub(super) struct ContentWriter {
    store: Arc<Store>,
    /// `None` if the file could not be created.
    content: Option<NewContent>,
    since_check: u64,
    /// End of each span, and the offset at which writing stopped, if it did.
    ends: Vec<DecodedOffset>,
    pub(super) stopped_at: Option<DecodedOffset>,
}

impl ContentWriter {
    pub(super) fn new(store: &Arc<Store>, layer: LayerName<'_>) -> Self {
        let content = store.new_content(layer);
        let content = content.map_err(|error| store.cannot_keep("the content of a layer", &error)).ok();
        let stopped_at = content.is_none().then_some(DecodedOffset(0));
        // Forces a limit check on the first write; otherwise an image of many small layers would never be checked.
        let since_check = ROOM_CHECK;
        Self { store: Arc::clone(store), content, since_check, ends: Vec::new(), stopped_at }
    }

    pub(super) fn write(&mut self, at: DecodedOffset, bytes: &[u8]) {
        let Some(content) = self.content.as_ref().filter(|_| self.stopped_at.is_none()) else { return };
        self.since_check += bytes.len() as u64;
        if self.since_check >= ROOM_CHECK.min(self.store.limit().unwrap_or(ROOM_CHECK) / 16) {
            self.since_check = 0;
            if self.store.make_room(0).unwrap_or(0) > 0 {
                tracing::info!(
                    "the cache is full; the rest of this layer is not cached and will be fetched when it is read"
                );
                self.stopped_at = Some(at);
                return;
            }
        }
        if let Err(error) = content.write(at, bytes) {
            self.store.cannot_keep("the rest of a layer", &error);
            self.stopped_at = Some(at);
        }
    }

    /// A handle for reading back what is written; without one, readers wait for the end of the pass.
    pub(super) fn reader(&self) -> Option<std::fs::File> {
        self.content.as_ref()?.reader().ok()
    }

    fn span_ends(&mut self, at: DecodedOffset) {
        self.ends.push(at);
    }

    pub(super) fn into_content(mut self) -> Option<NewContent> {
        let content = self.content.as_mut()?;
        if self.stopped_at.is_none() {
            self.store.has_kept();
        }
        for end in &self.ends {
            content.span_done(self.stopped_at.is_none_or(|stopped| *end <= stopped));
        }
        self.content
    }
}

/// Checkpoint windows, packed back to back.
#[derive(Default)]
pub(super) struct PackedWindows {
    pub(super) bytes: Vec<u8>,
    pub(super) places: Vec<(usize, WindowAt)>,
}

impl PackedWindows {
    pub(super) fn pack(&mut self, windows: Vec<(usize, Window)>, packer: &mut WindowPacker) {
        for (number, window) in windows {
            let packed = packer.pack(&window);
            if packed.is_empty() || !WindowAt::fits(self.bytes.len(), packed.len()) {
                continue; // no later byte refers back past the checkpoint, or decoding cannot begin there
            }
            self.places.push((
                number,
                WindowAt {
                    start: self.bytes.len() as u64,
                    len: u32::try_from(packed.len()).expect("windows have limits of some MiB"),
                },
            ));
            self.bytes.extend_from_slice(&packed);
        }
    }

    /// Tells each span its window, and drops those behind the last one that a span has.
    pub(super) fn assign(&mut self, spans: &mut [Span]) {
        for (number, place) in &self.places {
            // A mark at the very end of the stream begins no span.
            if let Some(span) = spans.get_mut(*number) {
                span.window = Some(*place);
            }
        }
        // Without its block's codes, decoding begins where it can before that.
        for span in spans.iter_mut().filter(|span| span.kind == StartKind::InsideBlock && span.window.is_none()) {
            span.kind = StartKind::Continued;
        }
        // Where the decoder could not follow a zstd frame, or a window is too large, a block has none. What lies behind it can
        // be decoded from the frame's beginning only, so no block is a start.
        let is_block = |span: &Span| span.kind == StartKind::Block;
        if spans.iter().any(|span| is_block(span) && span.window.is_none()) {
            for span in spans.iter_mut().filter(|span| is_block(span)) {
                (span.kind, span.window) = (StartKind::Continued, None);
            }
        }
        let used = spans.iter().filter_map(|span| span.window).map(|window| window.start + u64::from(window.len)).max();
        self.bytes.truncate(used.unwrap_or(0) as usize);
    }
}

/// Bytes written between two checks of the cache's limit; less if the limit is small.
const ROOM_CHECK: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offsets::BlobOffset;

    fn span(kind: StartKind) -> Span {
        Span {
            decoded: DecodedOffset(0)..DecodedOffset(1),
            blob: BlobOffset(0),
            bit: 0,
            kind,
            check: Check::blake3(b""),
            window: None,
        }
    }

    #[test]
    fn a_start_inside_a_block_without_its_codes_is_continued() {
        let mut windows = PackedWindows { bytes: vec![0], places: vec![(1, WindowAt { start: 0, len: 1 })] };
        let mut spans = [StartKind::Member, StartKind::InsideBlock, StartKind::InsideBlock].map(span);
        windows.assign(&mut spans);
        assert_eq!(spans.map(|span| span.kind), [StartKind::Member, StartKind::InsideBlock, StartKind::Continued]);
    }

    #[test]
    fn a_block_without_a_window_makes_all_blocks_continued() {
        let of = |places: &[usize]| {
            let place = |number: &usize| (*number, WindowAt { start: 0, len: 1 });
            let mut windows = PackedWindows { bytes: vec![0], places: places.iter().map(place).collect() };
            let mut spans = [StartKind::Frame, StartKind::Block, StartKind::Continued, StartKind::Block].map(span);
            windows.assign(&mut spans);
            spans.map(|span| (span.kind, span.window.is_some()))
        };
        let continued = (StartKind::Continued, false);
        let with = (StartKind::Block, true);
        assert_eq!(of(&[1, 3]), [(StartKind::Frame, false), with, continued, with]);
        assert_eq!(of(&[1]), [(StartKind::Frame, false), continued, continued, continued]);
        assert_eq!(of(&[3]), of(&[]), "what lies before is decoded from the frame as well");
    }
}
