//! Extents of files: splits a range into data and holes.

use super::entry::{DataExtent, Extent};
use crate::offsets::{DecodedOffset, FileOffset};

/// Places data runs into a range and fills the holes between them.
pub(super) struct Laying {
    at: u64,
    end: u64,
    out: Vec<Extent>,
}

impl Laying {
    pub(super) fn new(start: u64, end: u64) -> Self {
        Self { at: start, end, out: Vec::new() }
    }

    /// Places the next run, in order; returns whether the range has more room.
    pub(super) fn run(&mut self, run: DataExtent) -> bool {
        let (start, end) = (run.file.0.max(self.at), (run.file.0 + run.len).min(self.end));
        if start < end {
            self.hole(start);
            let decoded = DecodedOffset(run.decoded.0 + (start - run.file.0));
            self.out.push(Extent { file: FileOffset(start)..FileOffset(end), decoded: Some(decoded) });
            self.at = end;
        }
        run.file.0 + run.len < self.end
    }

    pub(super) fn finish(mut self) -> Vec<Extent> {
        self.hole(self.end);
        self.out
    }

    fn hole(&mut self, to: u64) {
        if self.at < to {
            self.out.push(Extent { file: FileOffset(self.at)..FileOffset(to), decoded: None });
            self.at = to;
        }
    }
}

/// The only extent of a file without holes.
pub(super) fn whole_extent(data: u64, start: u64, end: u64) -> Vec<Extent> {
    if start >= end {
        return Vec::new();
    }
    vec![Extent { file: FileOffset(start)..FileOffset(end), decoded: Some(DecodedOffset(data + start)) }]
}
