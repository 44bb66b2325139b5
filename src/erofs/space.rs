//! Where things are put into the image, which is written from the beginning to the end but for what is filled in later.
//!
//! Inodes and attributes, which are small, fill areas one after the other; directories, and bytes of files, go behind the
//! area that is being filled.

use std::io;

use super::EncodeError;
use super::format::{BLOCK, INODE_PLACE};

/// Where an image is written to.
pub trait Output {
    /// Writes `bytes` at `at`; what is never written is zeros.
    ///
    /// # Errors
    /// [`io::Error`], as when the disk is full.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// All was written; the file is to have `size` bytes, of which the last may be none that were written.
    ///
    /// # Errors
    /// [`io::Error`]
    fn finish(&mut self, size: u64) -> io::Result<()>;
}

pub(super) struct Space<'a> {
    out: &'a mut dyn Output,
    /// The area that is being filled: where it begins, and what it holds so far.
    area: u64,
    filled: Vec<u8>,
    area_end: u64,
    /// Behind everything.
    end: u64,
}

impl<'a> Space<'a> {
    /// Begins behind the first `taken` bytes.
    pub(super) fn new(out: &'a mut dyn Output, taken: u64) -> Self {
        let area = taken.next_multiple_of(INODE_PLACE);
        let area_end = (area + AREA).next_multiple_of(BLOCK);
        Self { out, area, filled: Vec::with_capacity(AREA as usize), area_end, end: area_end }
    }

    /// Room for `size` bytes at a multiple of `unit`; the last `uncut` of them lie in one block.
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

    /// Room for `size` bytes at the beginning of a block.
    pub(super) fn blocks(&mut self, size: u64) -> Result<u64, EncodeError> {
        let at = self.end;
        self.end =
            at.checked_add(size.next_multiple_of(BLOCK)).filter(|end| *end <= REACH).ok_or(EncodeError::TooLarge)?;
        Ok(at)
    }

    /// Bytes that are left until block numbers end.
    pub(super) fn room(&self) -> u64 {
        REACH - self.end.min(REACH)
    }

    /// Fills in bytes whose room was given.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), EncodeError> {
        match at.checked_sub(self.area) {
            Some(from) if at < self.area_end => {
                self.filled[from as usize..from as usize + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            _ => self.out.write_at(at, bytes).map_err(EncodeError::Write),
        }
    }

    /// Writes what is still in memory; how many bytes the image has, and where the rest of it is to be written.
    pub(super) fn finish(mut self) -> Result<(&'a mut dyn Output, u64), EncodeError> {
        let used = (self.area + self.filled.len() as u64).next_multiple_of(BLOCK);
        // The last area may be the last of everything, and is cut short then.
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

/// Bytes of inodes and attributes that lie together.
const AREA: u64 = 64 << 10;
/// Some readers read so many bytes at once to find the superblock.
const SIZE_MIN: u64 = 4096;
/// Where block numbers, of 32 bits, end; the last of them is a hole.
const REACH: u64 = (u32::MAX as u64) * BLOCK;

impl Output for std::fs::File {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, at)
    }

    fn finish(&mut self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }
}
