//! Allocates space in the image, which is written sequentially except for parts filled in later.
//!
//! Inodes and attributes, which are small, fill areas one after the other; directories and file bytes go after the area
//! that is being filled.

use std::io;

use super::EncodeError;
use super::format::{BLOCK, INODE_PLACE};

/// The output of an image.
pub trait Output {
    /// Writes `bytes` at `at`; unwritten bytes are zeros.
    ///
    /// # Errors
    /// [`io::Error`], as when the disk is full.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// All was written; sets the size of the file, whose last bytes may be unwritten.
    ///
    /// # Errors
    /// [`io::Error`]
    fn finish(&mut self, size: u64) -> io::Result<()>;
}

pub(super) struct Space<'a> {
    out: &'a mut dyn Output,
    /// The area being filled: its start, and its content so far.
    area: u64,
    filled: Vec<u8>,
    area_end: u64,
    /// The end of everything.
    end: u64,
}

impl<'a> Space<'a> {
    /// Starts after the first `taken` bytes.
    pub(super) fn new(out: &'a mut dyn Output, taken: u64) -> Self {
        let area = taken.next_multiple_of(INODE_PLACE);
        let area_end = (area + AREA).next_multiple_of(BLOCK);
        Self { out, area, filled: Vec::with_capacity(AREA as usize), area_end, end: area_end }
    }

    /// Allocates `size` bytes at a multiple of `unit`; the last `uncut` of them are in one block.
    pub(super) fn small(&mut self, size: usize, unit: u64, uncut: usize) -> Result<u64, EncodeError> {
        let (size, uncut) = (size as u64, uncut as u64);
        let fit = |from: u64| {
            let mut at = from.next_multiple_of(unit);
            let cut = |at: u64| uncut > 0 && (at + size - uncut) / BLOCK != (at + size - 1) / BLOCK;
            while cut(at) {
                at += unit;
            }
            at
        };
        let mut at = fit(self.area + self.filled.len() as u64);
        if at + size > self.area_end {
            self.flush()?;
            self.area = self.end;
            self.area_end = (self.area + u64::max(AREA, size + 2 * BLOCK)).next_multiple_of(BLOCK);
            self.end = self.area_end;
            at = fit(self.area);
        }
        self.filled.resize((at + size - self.area) as usize, 0);
        Ok(at)
    }

    /// Allocates `size` bytes at the start of a block.
    pub(super) fn blocks(&mut self, size: u64) -> Result<u64, EncodeError> {
        let at = self.end;
        self.end =
            at.checked_add(size.next_multiple_of(BLOCK)).filter(|end| *end <= REACH).ok_or(EncodeError::TooLarge)?;
        Ok(at)
    }

    /// Bytes left until block numbers end.
    pub(super) fn room(&self) -> u64 {
        REACH - self.end.min(REACH)
    }

    /// Fills in bytes that were allocated.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), EncodeError> {
        match at.checked_sub(self.area) {
            Some(from) if at < self.area_end => {
                self.filled[from as usize..from as usize + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            _ => self.out.write_at(at, bytes).map_err(EncodeError::Write),
        }
    }

    /// Writes what is still in memory; returns the image's size, and where to write the rest.
    pub(super) fn finish(mut self) -> Result<(&'a mut dyn Output, u64), EncodeError> {
        let used = (self.area + self.filled.len() as u64).next_multiple_of(BLOCK);
        // The last area may be the end of the image, and is cut short then.
        let end = if self.end == self.area_end { used } else { self.end };
        self.filled.resize((used - self.area) as usize, 0);
        self.flush()?;
        Ok((self.out, end.max(SIZE_MIN)))
    }

    fn flush(&mut self) -> Result<(), EncodeError> {
        if !self.filled.is_empty() {
            self.out.write_at(self.area, &self.filled).map_err(EncodeError::Write)?;
            self.filled.clear();
        }
        Ok(())
    }
}

/// Size in bytes of an area of inodes and attributes.
const AREA: u64 = 64 << 10;
/// Some readers read this many bytes at once to find the superblock.
const SIZE_MIN: u64 = 4096;
/// The end of 32-bit block numbers; the last one means a hole.
const REACH: u64 = (u32::MAX as u64) * BLOCK;

impl Output for std::fs::File {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, at)
    }

    fn finish(&mut self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }
}
