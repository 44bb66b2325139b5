//! Reads layer indexes from files of the store.

use std::io;

use crate::layer::ReadAt;
use crate::store::IndexFile;

impl ReadAt for IndexFile {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        Self::read_exact_at(self, buf, at)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(Self::size(self))
    }
}
