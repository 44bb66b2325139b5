//! Sparse files in tar: four notations for data runs with zeros between them.
//!
//! All notations are parsed into one validated list: runs in order, without overlap, inside the file, and together as
//! long as the stored bytes. A map that violates this would show bytes of one run in another, so it is an error.

use crate::offsets::{DecodedOffset, FileOffset};

use super::entry::DataExtent;
use super::pax::{PaxSparse, parse_decimal, parse_numeric};
use super::tar::{BLOCK, TarFault};

/// Limit for runs of a file (24 MiB of list).
const MAX_RUNS: usize = 1 << 20;

/// The list of `(offset, length)` pairs as in the tar, not validated.
#[derive(Debug, Default)]
pub(super) struct RawMap(Vec<(i64, i64)>);

impl RawMap {
    fn push(&mut self, offset: i64, length: i64) -> Result<(), TarFault> {
        if self.0.len() == MAX_RUNS {
            return Err(TarFault::SparseMap);
        }
        self.0.push((offset, length));
        Ok(())
    }

    /// The validated list for a file of `size` bytes whose `stored` bytes begin at `data`.
    pub(super) fn place(&self, size: u64, data: DecodedOffset, stored: u64) -> Result<Vec<DataExtent>, TarFault> {
        let mut runs = Vec::with_capacity(self.0.len());
        let (mut end, mut used) = (0_u64, 0_u64);
        for &(offset, length) in &self.0 {
            let start = u64::try_from(offset).map_err(|_| TarFault::SparseMap)?;
            let len = u64::try_from(length).map_err(|_| TarFault::SparseMap)?;
            if start < end {
                return Err(TarFault::SparseMap);
            }
            end = start.checked_add(len).filter(|end| *end <= size).ok_or(TarFault::SparseMap)?;
            if len > 0 {
                runs.push(DataExtent { file: FileOffset(start), decoded: DecodedOffset(data.0 + used), len });
            }
            used = used.checked_add(len).filter(|used| *used <= stored).ok_or(TarFault::SparseMap)?;
        }
        if used != stored {
            return Err(TarFault::SparseMap);
        }
        Ok(runs)
    }
}

/// The place of the map of a PAX sparse file.
#[derive(Debug)]
pub(super) enum PaxMap {
    /// In the records (formats 0.0 and 0.1).
    Here(RawMap),
    /// Before the file's bytes (format 1.0).
    InBody,
}

impl PaxSparse {
    /// The file's map, if the records describe a sparse file in a supported format.
    pub(super) fn map(&self) -> Result<Option<PaxMap>, TarFault> {
        match (self.major.as_slice(), self.minor.as_slice()) {
            (b"0", b"0" | b"1") => {}
            (b"1", b"0") => return Ok(Some(PaxMap::InBody)),
            (b"", b"") if !self.map.is_empty() => {}
            _ => return Ok(None),
        }
        let blocks = parse_decimal(&self.blocks).and_then(|blocks| usize::try_from(blocks).ok());
        let blocks = blocks.filter(|blocks| *blocks <= MAX_RUNS).ok_or(TarFault::SparseMap)?;
        let mut map = RawMap::default();
        if !self.map.is_empty() {
            let mut numbers = self.map.split(|&byte| byte == b',').map(parse_decimal);
            while let Some(offset) = numbers.next() {
                let length = numbers.next().ok_or(TarFault::SparseMap)?;
                map.push(offset.ok_or(TarFault::SparseMap)?, length.ok_or(TarFault::SparseMap)?)?;
            }
        }
        if map.0.len() != blocks {
            return Err(TarFault::SparseMap);
        }
        Ok(Some(PaxMap::Here(map)))
    }

    /// The file's full size, if the records have it.
    pub(super) fn file_size(&self) -> Result<Option<i64>, TarFault> {
        let text = if self.size.is_empty() { &self.real_size } else { &self.size };
        if text.is_empty() {
            return Ok(None);
        }
        parse_decimal(text).map(Some).ok_or(TarFault::PaxValue { key: "GNU.sparse.realsize" })
    }
}

/// Parses the map before a format 1.0 body: decimal numbers, one per line, padded to a block.
#[derive(Debug, Default)]
pub(super) struct BodyMap {
    token: Vec<u8>,
    runs: Option<usize>,
    offset: Option<i64>,
    map: RawMap,
}

impl BodyMap {
    /// Parses the next block; returns the map once it is complete.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<Option<RawMap>, TarFault> {
        for &byte in block {
            if byte != b'\n' {
                if self.token.len() == 20 {
                    return Err(TarFault::SparseMap);
                }
                self.token.push(byte);
                continue;
            }
            let number = parse_decimal(&self.token).ok_or(TarFault::SparseMap)?;
            self.token.clear();
            match (self.runs, self.offset.take()) {
                (None, _) => {
                    let runs = usize::try_from(number).ok().filter(|runs| *runs <= MAX_RUNS);
                    self.runs = Some(runs.ok_or(TarFault::SparseMap)?);
                }
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => self.map.push(offset, number)?,
            }
            if self.offset.is_none() && self.runs == Some(self.map.0.len()) {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}

/// The map of an old GNU sparse file (type `S`): four runs in the header, then blocks of 21.
#[derive(Debug, Default)]
pub(super) struct OldGnuMap(RawMap);

impl OldGnuMap {
    /// Parses the runs of the header; returns whether an extension block follows.
    pub(super) fn header(&mut self, block: &[u8; BLOCK]) -> Result<bool, TarFault> {
        self.runs(&block[386..482])?;
        Ok(block[482] != 0)
    }

    /// Parses the runs of an extension block; returns whether another follows.
    pub(super) fn extension(&mut self, block: &[u8; BLOCK]) -> Result<bool, TarFault> {
        self.runs(&block[..504])?;
        Ok(block[504] != 0)
    }

    pub(super) fn finish(self) -> RawMap {
        self.0
    }

    fn runs(&mut self, fields: &[u8]) -> Result<(), TarFault> {
        for pair in fields.chunks_exact(24) {
            // GNU and BSD tar end the list at an empty offset, even if fields follow.
            if pair[0] == 0 {
                break;
            }
            let offset = parse_numeric(&pair[..12]).ok_or(TarFault::SparseMap)?;
            let length = parse_numeric(&pair[12..]).ok_or(TarFault::SparseMap)?;
            self.0.push(offset, length)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(pairs: &[(i64, i64)], size: u64, stored: u64) -> Option<Vec<(u64, u64, u64)>> {
        let runs = RawMap(pairs.to_vec()).place(size, DecodedOffset(1000), stored).ok()?;
        Some(runs.iter().map(|run| (run.file.0, run.decoded.0, run.len)).collect())
    }

    #[test]
    fn runs_are_placed_one_after_the_other() {
        assert_eq!(place(&[(2, 5), (18, 3), (25, 0)], 25, 8), Some(vec![(2, 1000, 5), (18, 1005, 3)]));
        assert_eq!(place(&[], 25, 0), Some(vec![]));
    }

    #[test]
    fn maps_that_lie_are_refused() {
        assert_eq!(place(&[(2, 5), (6, 1)], 25, 6), None, "overlap");
        assert_eq!(place(&[(20, 6)], 25, 6), None, "beyond the file");
        assert_eq!(place(&[(0, 6)], 25, 5), None, "more than is stored");
        assert_eq!(place(&[(0, 4)], 25, 5), None, "less than is stored");
        assert_eq!(place(&[(-1, 4)], 25, 4), None, "negative offset");
        assert_eq!(place(&[(0, -4)], 25, 4), None, "negative length");
        assert_eq!(place(&[(i64::MAX, i64::MAX)], u64::MAX, 4), None, "overflow");
    }

    #[test]
    fn body_map_may_span_blocks() {
        let mut text = b"40\n".to_vec();
        for run in 0..40 {
            text.extend_from_slice(format!("{}\n{}\n", run * 10_000_000_000_i64, 7).as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut reader = BodyMap::default();
        let mut found = None;
        for (number, block) in text.chunks_exact(BLOCK).enumerate() {
            assert!(found.is_none(), "complete before block {number}");
            found = reader.feed(block.try_into().unwrap()).unwrap();
        }
        assert_eq!(found.unwrap().0.len(), 40);
    }

    #[test]
    fn body_map_without_line_ends_is_refused_early() {
        assert!(BodyMap::default().feed(&[b'1'; BLOCK]).is_err());
    }
}
