//! Bytes that are verified on first access.
//!
//! An index in the store may be damaged or truncated at any time. Mapping it would turn that into a signal, and
//! verifying all of it would make opening slow. So it is read in pages, each verified against a table that was verified
//! at open, and kept in memory: memory grows with access, a page is verified once, and verified pages cannot change.
//! Pages found damaged can be read from another source with the same table.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::index::IndexError;
use crate::sync::lock;

/// Bytes of a page.
pub(super) const PAGE: usize = 64 << 10;
/// Bytes of a page's checksum (blake3).
pub(super) const CHECK: usize = 32;

/// A random-access source: a file, or bytes in memory.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from the bytes at `at`.
    ///
    /// # Errors
    /// Any I/O error; [`io::ErrorKind::UnexpectedEof`] if there are fewer bytes.
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// Any I/O error.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, at)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).ok();
        let end = start.and_then(|start| start.checked_add(buf.len()));
        let bytes = start.zip(end).and_then(|(start, end)| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Box<dyn ReadAt> {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, at)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

/// A body of pages that begins at offset 0 of its source.
pub(super) struct Paged {
    origin: Mutex<Arc<Origin>>,
    len: u64,
    checks: Arc<[[u8; CHECK]]>,
    pages: Vec<OnceLock<Box<[u8]>>>,
    /// Set while a requested page cannot be read.
    damaged: Arc<AtomicBool>,
}

/// The source of pages.
struct Origin {
    source: Box<dyn ReadAt>,
    /// Called when a page cannot be read or is damaged.
    on_damage: Option<OnDamage>,
}

/// Callback for a damaged page.
pub(super) type OnDamage = Box<dyn Fn() + Send + Sync>;

impl Paged {
    /// A body of `len` bytes with one checksum per page.
    pub(super) fn new(source: Box<dyn ReadAt>, len: u64, checks: Vec<[u8; CHECK]>) -> Self {
        let pages = checks.iter().map(|_| OnceLock::new()).collect();
        let origin = Mutex::new(Arc::new(Origin { source, on_damage: None }));
        Self { origin, len, checks: checks.into(), pages, damaged: Arc::default() }
    }

    /// The same body, with no page in memory.
    pub(super) fn afresh(&self) -> Self {
        let origin = Mutex::new(Arc::clone(&lock(&self.origin)));
        let pages = self.checks.iter().map(|_| OnceLock::new()).collect();
        Self { origin, len: self.len, checks: Arc::clone(&self.checks), pages, damaged: Arc::clone(&self.damaged) }
    }

    /// Calls `then` for each damaged page.
    pub(super) fn on_damage(self, then: OnDamage) -> Self {
        let origin = self.origin.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let source = Arc::into_inner(origin).expect("it is not read yet").source;
        let origin = Mutex::new(Arc::new(Origin { source, on_damage: Some(then) }));
        Self { origin, ..self }
    }

    /// Whether a requested page could not be read.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Reads pages from the source of `other` from now on, if it has the same checksums.
    pub(super) fn mend(&self, other: &Self) -> bool {
        if self.len != other.len || self.checks != other.checks {
            return false;
        }
        let origin = Arc::clone(&lock(&other.origin));
        *lock(&self.origin) = origin;
        self.damaged.store(false, Ordering::Release);
        true
    }

    /// `N` bytes at `at`; writers never let them cross a page boundary.
    pub(super) fn array<const N: usize>(&self, at: u64) -> Result<&[u8; N], IndexError> {
        let bytes = self.slice(at, N)?;
        Ok(bytes.try_into().expect("a slice of this length was cut"))
    }

    /// `len` bytes at `at`; writers never let them cross a page boundary.
    pub(super) fn slice(&self, at: u64, len: usize) -> Result<&[u8], IndexError> {
        if len == 0 {
            return Ok(&[]);
        }
        let offset = (at % PAGE as u64) as usize;
        let bytes = self.page(at / PAGE as u64)?.get(offset..offset + len);
        bytes.ok_or(IndexError::Malformed { what: "a record lies across a page boundary" })
    }

    /// A copy of `len` bytes at `at`. Pages not in memory are verified but not kept.
    pub(super) fn copy(&self, at: u64, len: usize) -> Result<Vec<u8>, IndexError> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(IndexError::Malformed { what: "a range lies outside" });
        }
        let mut out = Vec::with_capacity(len);
        let mut at = at;
        while out.len() < len {
            let (page, offset) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let fresh;
            let bytes = match self.pages.get(page as usize).and_then(OnceLock::get) {
                Some(bytes) => bytes,
                None => {
                    fresh = self.load(page)?;
                    &fresh
                }
            };
            let take = (len - out.len()).min(bytes.len() - offset);
            out.extend_from_slice(&bytes[offset..offset + take]);
            at += take as u64;
        }
        Ok(out)
    }

    /// Reads and verifies every page, without keeping it.
    pub(super) fn check_all(&self) -> Result<(), IndexError> {
        (0..self.checks.len() as u64).try_for_each(|page| self.load(page).map(drop))
    }

    /// The checksums of all pages.
    pub(super) fn checks(&self) -> &[[u8; CHECK]] {
        &self.checks
    }

    /// Bytes held in memory.
    pub(super) fn resident(&self) -> usize {
        self.pages.iter().filter_map(|page| page.get()).map(|page| page.len()).sum()
    }

    fn page(&self, page: u64) -> Result<&[u8], IndexError> {
        let slot = usize::try_from(page).ok().and_then(|page| self.pages.get(page));
        let slot = slot.ok_or(IndexError::Malformed { what: "a range lies outside" })?;
        if let Some(bytes) = slot.get() {
            return Ok(bytes);
        }
        // Two threads may load a page concurrently; both verify it, and one copy is kept.
        let bytes = self.load(page)?;
        Ok(slot.get_or_init(|| bytes))
    }

    fn load(&self, page: u64) -> Result<Box<[u8]>, IndexError> {
        let start = page * PAGE as u64;
        let len = (self.len - start).min(PAGE as u64) as usize;
        let mut bytes = vec![0; len].into_boxed_slice();
        let origin = Arc::clone(&lock(&self.origin));
        let error = match origin.source.read_exact_at(&mut bytes, start) {
            Ok(()) if blake3::hash(&bytes).as_bytes() == &self.checks[page as usize] => return Ok(bytes),
            Err(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => IndexError::Io { cause },
            _ => IndexError::Damaged { page },
        };
        self.damaged.store(true, Ordering::Release);
        if let Some(then) = &origin.on_damage {
            then();
        }
        Err(error)
    }
}
