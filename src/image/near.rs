//! Small files one after the other, as a comparison of two images reads them: the span that several of them lie in is read,
//! and compared with what was verified, once for all of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::fs::{ImageFs, Now, damaged};
use super::read::DecodedBytes;
use crate::content::LayerReader;
use crate::offsets::{DecodedOffset, FileOffset};
use crate::overlay::NodeId;

/// Spans of an image that small files were found in lately.
#[derive(Default)]
pub struct NearFiles {
    /// Where spans begin that a file was wanted of, the latest last.
    wanted: VecDeque<(Arc<LayerReader>, DecodedOffset)>,
    held: VecDeque<HeldSpan>,
}

struct HeldSpan {
    /// A layer that is opened anew may have its bytes elsewhere.
    of: Arc<LayerReader>,
    decoded: Range<DecodedOffset>,
    bytes: Vec<u8>,
}

/// Where a file lies in what is held; valid until the next one is looked for.
pub struct NearFile {
    held: usize,
    bytes: Range<usize>,
}

impl NearFiles {
    /// Files up to this many bytes are looked for.
    pub const SMALL: u64 = 64 << 10;

    /// The bytes of a file.
    pub fn bytes(&self, file: &NearFile) -> &[u8] {
        &self.held[file.held].bytes[file.bytes.clone()]
    }

    fn held(&self, of: &Arc<LayerReader>, wanted: &Range<DecodedOffset>) -> Option<NearFile> {
        let fits = |span: &HeldSpan| {
            Arc::ptr_eq(&span.of, of) && span.decoded.start <= wanted.start && wanted.end <= span.decoded.end
        };
        let held = self.held.iter().position(fits)?;
        let start = (wanted.start - self.held[held].decoded.start) as usize;
        Some(NearFile { held, bytes: start..start + (wanted.end - wanted.start) as usize })
    }

    /// Whether a file of this span was wanted before.
    fn is_wanted_again(&mut self, of: &Arc<LayerReader>, start: DecodedOffset) -> bool {
        if self.wanted.iter().any(|(reader, known)| Arc::ptr_eq(reader, of) && *known == start) {
            return true;
        }
        if self.wanted.len() == REMEMBERED {
            self.wanted.pop_front();
        }
        self.wanted.push_back((Arc::clone(of), start));
        false
    }
}

impl ImageFs {
    /// All bytes of a small file, in `near`; `None` for one that is better read alone, as it is large, not cached, in several
    /// spans, or the first that is wanted of its span.
    ///
    /// # Errors
    /// [`NotNow`](super::NotNow)
    pub fn near_file(&self, node: NodeId, near: &mut NearFiles) -> Now<Option<NearFile>> {
        let plan = self.plan_read(node, FileOffset(0), NearFiles::SMALL as usize + 1)?;
        let (DecodedBytes::Layer(of), [extent]) = (&plan.bytes, &plan.extents[..]) else { return Ok(None) };
        let Some(start) = extent.decoded.filter(|_| plan.length as u64 <= NearFiles::SMALL) else { return Ok(None) };
        let wanted = start..start + plan.length as u64;
        if let Some(file) = near.held(of, &wanted) {
            return Ok(Some(file));
        }
        let index = of.index();
        let span = index.span_at(start).and_then(|id| index.span(id)).map_err(|cause| damaged(plan.layer, cause))?;
        let length = span.decoded.end - span.decoded.start;
        if span.decoded.end < wanted.end || length > LARGEST || !near.is_wanted_again(of, span.decoded.start) {
            return Ok(None);
        }
        let mut bytes = match near.held.len() {
            HELD => near.held.pop_front().map(|span| span.bytes).unwrap_or_default(),
            _ => Vec::new(),
        };
        bytes.resize(length as usize, 0);
        // An error is that of the file when it is read alone.
        if !of.peek(span.decoded.start, &mut bytes).unwrap_or(false) {
            return Ok(None);
        }
        near.held.push_back(HeldSpan { of: Arc::clone(of), decoded: span.decoded, bytes });
        Ok(near.held(of, &wanted))
    }
}

/// Spans in memory; where a tar has no order, the files of a directory lie in several.
const HELD: usize = 4;
/// Larger spans are not read for a small file, in bytes.
const LARGEST: u64 = 1 << 20;
/// Spans that are remembered without being read.
const REMEMBERED: usize = 16;
