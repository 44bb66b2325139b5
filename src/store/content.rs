//! A layer's decoded bytes on disk: one sparse file, and a map with one byte per span.
//!
//! The high bit of a map byte is set while its span is present; the other bits count writes. Any process may evict a
//! span at any time: it clears the high bit and then punches the hole. Readers take no lock: they verify what they have
//! read. A reader that finds wrong bytes compares the map byte from before the read with the one after it: if it is the
//! same, the span is damaged; otherwise the span was evicted or written meanwhile. Processes that fill or evict take a
//! lock, so that a hole never follows a fill.
//!
//! Content that the kernel reads directly is sealed: it has mode 0400, and is neither written nor punched again.
//! Evicting any of it unlinks the files; the kernel keeps the bytes while it shows them.
//!
//! Both files are opened, published and removed under the lock of the current map, so that a data file has only one
//! map.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU8;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::MemfdFlags;
use rustix::io::ReadWriteFlags;

use super::files::Files;
use super::open_files::{InUse, Pool, Pooled};
use super::seal::seal_of;
use super::{NewFile, StoreError, identity};
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// The generation of a span on disk: the map byte, high bit set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Generation(NonZeroU8);

impl Generation {
    fn present(byte: u8) -> Option<Self> {
        (byte & PRESENT != 0).then(|| NonZeroU8::new(byte).map(Self)).flatten()
    }

    fn after(byte: u8) -> Self {
        let count = byte.wrapping_add(1) & !PRESENT;
        Self(NonZeroU8::new(count | PRESENT).expect("the high bit is set"))
    }

    /// The byte in the map; never 0.
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

/// What a map has for each of so many spans.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapSize {
    /// How many spans.
    pub spans: u32,
    /// Whether digests of their decoded bytes lie behind the bytes that say what is present: of spans whose index has
    /// digests of the blob's bytes, which are at hand on arrival only.
    pub digests: bool,
}

impl MapSize {
    /// Bytes of the file.
    pub(super) fn length(self) -> u64 {
        let spans = u64::from(self.spans);
        if self.digests { spans * (1 + DIGEST as u64) } else { spans }
    }
}

impl From<u32> for MapSize {
    fn from(spans: u32) -> Self {
        Self { spans, digests: false }
    }
}

/// A layer's content, for reading and filling.
#[derive(Debug)]
pub struct Content {
    files: Files,
    /// Opened on first use: most layers of a mount are never read.
    opened: Pooled<Opened>,
    /// Whether the layer was marked as used.
    noted: AtomicBool,
    paths: ContentPaths,
    decoded_size: u64,
    map: MapSize,
    /// Taken with the map's file lock, which excludes other processes; this one excludes other threads.
    changing: Mutex<()>,
}

/// Paths of the two files of a layer's content.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct ContentPaths {
    pub(super) data: PathBuf,
    pub(super) map: PathBuf,
}

impl ContentPaths {
    /// The paths of the content that `file` belongs to.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_str()?;
        let stem = name.strip_suffix(".data").or_else(|| name.strip_suffix(".map"))?;
        let beside = |extension| file.with_file_name(format!("{stem}.{extension}"));
        Some(Self { data: beside("data"), map: beside("map") })
    }
}

#[derive(Debug)]
struct Opened {
    /// The cache's files, or files in memory, which are not announced.
    files: Files,
    data: File,
    map: File,
    in_memory: bool,
}

impl Pool for Opened {
    const COUNT: usize = 2;

    fn can_be_reopened(&self) -> bool {
        !self.in_memory
    }
}

/// A layer's content while its first pass writes it.
#[derive(Debug)]
pub struct NewContent {
    data: NewFile,
    map: NewFile,
    present: Vec<u8>,
}

impl Content {
    /// The content at `paths`, not opened yet.
    pub(super) fn new(files: Files, paths: ContentPaths, decoded_size: u64, map: MapSize) -> Self {
        let opened = files.pool.place();
        Self { files, opened, noted: AtomicBool::new(true), paths, decoded_size, map, changing: Mutex::new(()) }
    }

    /// Marks the layer as used when it is first opened.
    pub(super) fn opened_on_demand(self) -> Self {
        Self { noted: AtomicBool::new(false), ..self }
    }

    /// Opens the files.
    pub(super) fn opened(self) -> Result<Self, StoreError> {
        self.open()?;
        Ok(self)
    }

    /// The open files. If they were replaced since the last time, verifying what is read detects it.
    fn open(&self) -> Result<InUse<'_, Opened>, StoreError> {
        self.opened.get(|| {
            let opened = self.open_somewhere()?;
            if !self.noted.swap(true, Ordering::Relaxed) {
                // Used for the order of eviction only.
                let _ = opened.files.touch(&opened.map, &self.paths.data);
            }
            Ok(opened)
        })
    }

    /// Opens the files; if the disk cannot store them, keeps some of the content in memory.
    fn open_somewhere(&self) -> Result<Opened, StoreError> {
        self.open_files().or_else(|error| {
            self.files.cannot_keep("the content of a layer", &error);
            self.open_memory()
        })
    }

    fn open_files(&self) -> Result<Opened, StoreError> {
        let ContentPaths { data, map } = &self.paths;
        let files = self.files.clone();
        let held = MapInPlace::hold(&files, map)?;
        let opened = Opened { data: open_data(&files, data)?, map: held.0, files, in_memory: false };
        let opened = if self.fits(&opened)? { opened } else { self.begin_anew(opened)? };
        // Fails only for a file that is not open, or on a file system without locks.
        let _ = opened.map.unlock();
        Ok(opened)
    }

    /// Replaces files of a wrong size. Readers of the old data file keep it: it has another map.
    fn begin_anew(&self, Opened { files, map: map_file, in_memory, .. }: Opened) -> Result<Opened, StoreError> {
        let ContentPaths { data, map } = &self.paths;
        // The map first, so that no process trusts the data.
        files.set_len(&map_file, map, 0).map_err(StoreError::io("truncate", map))?;
        files.remove(data);
        let data_file = files.open_write(data)?;
        files.set_len(&data_file, data, self.decoded_size).map_err(StoreError::io("extend", data))?;
        files.set_len(&map_file, map, self.map.length()).map_err(StoreError::io("extend", map))?;
        Ok(Opened { files, data: data_file, map: map_file, in_memory })
    }

    /// Whether the files have the sizes of this layer's content.
    fn fits(&self, opened: &Opened) -> Result<bool, StoreError> {
        let size = |file: &File| Ok(file.metadata().map_err(StoreError::io("read", &self.paths.data))?.len());
        Ok(size(&opened.map)? == self.map.length() && size(&opened.data)? == self.decoded_size)
    }

    fn open_memory(&self) -> Result<Opened, StoreError> {
        let file = |length: u64| {
            let file = File::from(rustix::fs::memfd_create("peelfs-content", MemfdFlags::CLOEXEC)?);
            file.set_len(length)?;
            Ok(file)
        };
        let failed = |cause: io::Error| StoreError::io("keep in memory", &self.paths.data)(cause);
        // Files in memory cannot be reopened, so they stay open.
        if !self.files.pool.has_room_for(Opened::COUNT) {
            return Err(failed(Errno::EMFILE.into()));
        }
        let (data, map) = (file(self.decoded_size).map_err(failed)?, file(self.map.length()).map_err(failed)?);
        Ok(Opened { files: self.files.unwatched(), data, map, in_memory: true })
    }

    /// The number of bytes in memory beyond the limit, if the content is kept there.
    pub fn excess_in_memory(&self) -> Option<u64> {
        let in_memory = self.open().ok()?.in_memory;
        in_memory.then(|| self.disk_bytes().saturating_sub(IN_MEMORY))
    }

    /// The generation of a span; `None` if it is absent.
    pub fn generation(&self, span: SpanId) -> Option<Generation> {
        Generation::present(self.byte(span))
    }

    /// The generation of each of `spans`.
    pub fn generations(&self, spans: SpanRange) -> Vec<Option<Generation>> {
        let mut bytes = vec![0; spans.count() as usize];
        self.read_map_or_absent(spans.start, &mut bytes);
        bytes.into_iter().map(Generation::present).collect()
    }

    /// Whether all of `spans` are present.
    pub fn has_all(&self, spans: SpanRange) -> bool {
        self.all(spans, |_, byte| byte & PRESENT != 0)
    }

    /// Whether each of `spans` still has the generation that `expected` returns.
    pub fn still(&self, spans: SpanRange, expected: impl Fn(SpanId) -> u8) -> bool {
        self.all(spans, |span, byte| byte & PRESENT != 0 && byte == expected(span))
    }

    /// Whether the map bytes of all spans are `good`.
    fn all(&self, spans: SpanRange, good: impl Fn(SpanId, u8) -> bool) -> bool {
        let mut bytes = [0; 64];
        let mut at = spans.start;
        while at < spans.end {
            let some = usize::min(bytes.len(), SpanRange::new(at, spans.end).count() as usize);
            if self.read_map(at, &mut bytes[..some]).is_err() {
                return false;
            }
            for byte in &bytes[..some] {
                if !good(at, *byte) {
                    return false;
                }
                at = at.next();
            }
        }
        true
    }

    /// Reads decoded bytes into all of `buf`.
    ///
    /// # Errors
    /// [`StoreError::Io`], also when the file ends early.
    pub fn read(&self, at: DecodedOffset, buf: &mut [u8]) -> Result<(), StoreError> {
        self.open()?.data.read_exact_at(buf, at.0).map_err(StoreError::io("read", &self.paths.data))
    }

    /// As [`Content::read`]; calls `before_wait` before it waits for the disk.
    ///
    /// # Errors
    /// As [`Content::read`].
    pub fn read_telling(
        &self,
        at: DecodedOffset,
        buf: &mut [u8],
        before_wait: &mut dyn FnMut(),
    ) -> Result<(), StoreError> {
        self.read_parts(at, [&mut [], buf, &mut []], before_wait)
    }

    /// As [`Content::read_telling`], into three consecutive buffers.
    ///
    /// # Errors
    /// As [`Content::read`].
    pub fn read_parts(
        &self,
        at: DecodedOffset,
        parts: [&mut [u8]; 3],
        before_wait: &mut dyn FnMut(),
    ) -> Result<(), StoreError> {
        let [first, second, third] = parts;
        let length = first.len() + second.len() + third.len();
        if length == 0 {
            return Ok(());
        }
        let all = &mut [IoSliceMut::new(first), IoSliceMut::new(second), IoSliceMut::new(third)];
        let at_once = rustix::io::preadv2(&self.open()?.data, all, at.0, ReadWriteFlags::NOWAIT);
        // On a failure, the ordinary read succeeds or reports the error.
        let got = at_once.unwrap_or(0);
        if got == length {
            return Ok(());
        }
        before_wait();
        let mut start = 0;
        for part in [first, second, third] {
            let read = got.saturating_sub(start).min(part.len());
            if read < part.len() {
                self.read(at + (start + read) as u64, &mut part[read..])?;
            }
            start += part.len();
        }
        Ok(())
    }

    /// Stores the verified bytes of a span.
    ///
    /// # Errors
    /// [`StoreError::Io`], as on a full disk; the span stays absent.
    pub fn fill(&self, span: SpanId, at: DecodedOffset, verified: &[u8]) -> Result<(), StoreError> {
        let opened = self.open()?;
        let _changing = self.lock(&opened)?;
        let before = self.byte(span);
        if is_sealed(&opened.data) {
            return Err(StoreError::Sealed { path: self.paths.data.clone() });
        }
        self.mark(&opened, span, before & !PRESENT)?;
        let written = opened.files.write_all_at(&opened.data, &self.paths.data, verified, at.0);
        written.map_err(StoreError::io("write", &self.paths.data))?;
        if let Some(at) = self.digest_at(span) {
            let digest = blake3::hash(verified);
            let noted = opened.files.write_all_at(&opened.map, &self.paths.data, digest.as_bytes(), at);
            noted.map_err(StoreError::io("write the presence map of", &self.paths.data))?;
        }
        self.mark(&opened, span, Generation::after(before).get())?;
        if !opened.in_memory {
            opened.files.has_kept();
        }
        Ok(())
    }

    /// Whether these are the bytes that a present span was filled with, as far as the map has digests.
    pub fn is_as_filled(&self, span: SpanId, decoded: &[u8]) -> bool {
        let (Some(at), Ok(opened)) = (self.digest_at(span), self.open()) else { return false };
        let mut noted = [0; DIGEST];
        opened.map.read_exact_at(&mut noted, at).is_ok() && blake3::hash(decoded) == blake3::Hash::from_bytes(noted)
    }

    /// Where the map has the digest of a span's decoded bytes.
    fn digest_at(&self, span: SpanId) -> Option<u64> {
        let (spans, number) = (u64::from(self.map.spans), u64::from(span.0));
        (self.map.digests && number < spans).then(|| spans + number * DIGEST as u64)
    }

    /// Evicts spans, which hold these bytes: first in the map, then on disk, where pages that other spans share stay.
    /// [Sealed](Content::seal) content is unlinked as a whole instead; open files of it, such as the kernel's, stay
    /// readable.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn evict(&self, spans: SpanRange, decoded: Range<DecodedOffset>) -> Result<(), StoreError> {
        let opened = self.open()?;
        let changing = self.lock(&opened)?;
        if is_sealed(&opened.data) {
            self.remove_names(&opened);
            drop(changing);
            drop(opened);
            // Later reads of the layer use new files.
            self.opened.close();
            return Ok(());
        }
        for span in spans.iter() {
            self.mark(&opened, span, self.byte(span) & !PRESENT)?;
        }
        let length = decoded.end - decoded.start;
        if length == 0 {
            return Ok(());
        }
        let punched = opened.files.punch_hole(&opened.data, &self.paths.data, decoded.start.0, length);
        punched.map_err(StoreError::io("punch a hole in", &self.paths.data))
    }

    /// Seals complete content, so that the kernel can get its file: afterwards no process writes to it or punches
    /// holes. Returns the file, open for reading; `None` if a span is absent, or the content is not on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn seal(&self) -> Result<Option<File>, StoreError> {
        use std::os::unix::fs::PermissionsExt as _;
        let opened = self.open()?;
        let changing = self.lock(&opened)?;
        let Opened { data, in_memory, .. } = &*opened;
        if *in_memory || !self.has_all(SpanRange::first(self.map.spans)) {
            return Ok(None);
        }
        if !is_sealed(data) {
            let sealed = data.set_permissions(std::fs::Permissions::from_mode(SEALED));
            sealed.map_err(StoreError::io("protect", &self.paths.data))?;
        }
        let file = File::open(format!("/proc/self/fd/{}", data.as_raw_fd()));
        let file = file.map_err(StoreError::io("open", &self.paths.data))?;
        drop(changing);
        drop(opened);
        // From now on it is opened for reading only.
        self.opened.close();
        Ok(Some(file))
    }

    /// Path of the data file.
    pub(super) fn data_path(&self) -> &Path {
        &self.paths.data
    }

    /// Unlinks the files, unless others have replaced them.
    fn remove_names(&self, Opened { files, data, map, .. }: &Opened) {
        for (file, path) in [(data, &self.paths.data), (map, &self.paths.map)] {
            let own =
                file.metadata().is_ok_and(|own| files.look(path).is_ok_and(|named| named.identity() == identity(&own)));
            if own {
                files.remove(&seal_of(path));
                files.remove(path);
            }
        }
    }

    /// Whether the disk has blocks for bytes in `range`, present or not.
    pub fn takes_room(&self, range: &Range<DecodedOffset>) -> bool {
        let Ok(opened) = self.open() else { return false };
        rustix::fs::seek(&opened.data, rustix::fs::SeekFrom::Data(range.start.0)).is_ok_and(|at| at < range.end.0)
    }

    /// Claims a span for fetching by this process; `false` while another process has claimed it.
    ///
    /// A claim ends with [`Content::unclaim`], or with the process. Threads of a process share its claims. Without such
    /// locks on the file system, or with too few descriptors to keep the files open, every claim succeeds.
    pub fn claim(&self, span: SpanId) -> bool {
        let claimed = !matches!(self.lock_byte(span, libc::F_WRLCK), Err(Errno::EAGAIN | Errno::EACCES));
        if claimed {
            self.opened.pin();
        }
        claimed
    }

    /// Ends the claim to a span.
    pub fn unclaim(&self, span: SpanId) {
        self.opened.unpin();
        // Fails only if claiming does.
        let _ = self.lock_byte(span, libc::F_UNLCK);
    }

    /// Locks or unlocks the byte of a span in the map, separately from the lock of the whole file.
    fn lock_byte(&self, span: SpanId, how: i32) -> nix::Result<i32> {
        let byte = libc::flock {
            l_type: how as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: span.0.into(),
            l_len: 1,
            l_pid: 0,
        };
        let opened = self.open().map_err(|_| Errno::EBADF)?;
        fcntl(&opened.map, FcntlArg::F_OFD_SETLK(&byte))
    }

    /// The number of spans, present or not.
    pub fn spans(&self) -> u32 {
        self.map.spans
    }

    /// Disk usage of the content, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        self.open().ok().and_then(|opened| opened.data.metadata().ok()).map_or(0, |found| found.blocks() * 512)
    }

    /// Advises the disk that `range` is read next, and turns off its own readahead for it.
    pub fn read_ahead(&self, range: Range<DecodedOffset>) {
        let length = std::num::NonZeroU64::new(range.end - range.start);
        let Ok(opened) = self.open() else { return };
        // If the first byte is in memory, usually all are; checking every page takes longer than reading.
        let mut first = [0];
        let parts = &mut [IoSliceMut::new(&mut first)];
        if rustix::io::preadv2(&opened.data, parts, range.start.0, ReadWriteFlags::NOWAIT) == Ok(1) {
            return;
        }
        // Advice only; a failure costs time.
        let _ = rustix::fs::fadvise(&opened.data, range.start.0, length, rustix::fs::Advice::WillNeed);
    }

    /// Drops the pages of `range` from the page cache: the mount has its own copy.
    pub fn drop_pages(&self, range: Range<DecodedOffset>) {
        let length = std::num::NonZeroU64::new(range.end - range.start);
        // Advice only; a failure has no visible effect.
        let Ok(opened) = self.open() else { return };
        let _ = rustix::fs::fadvise(&opened.data, range.start.0, length, rustix::fs::Advice::DontNeed);
    }

    fn byte(&self, span: SpanId) -> u8 {
        let mut byte = [0];
        self.read_map_or_absent(span, &mut byte);
        byte[0]
    }

    /// As [`Content::read_map`]; an unreadable map counts as absent.
    fn read_map_or_absent(&self, first: SpanId, bytes: &mut [u8]) {
        if let Err(error) = self.read_map(first, bytes) {
            bytes.fill(0);
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot read whether a span is cached; treating it as absent");
        }
    }

    /// Fills `bytes` from the map, starting at `first`.
    fn read_map(&self, first: SpanId, bytes: &mut [u8]) -> Result<(), StoreError> {
        let read = self.open()?.map.read_exact_at(bytes, first.0.into());
        read.map_err(StoreError::io("read the presence map of", &self.paths.data))
    }

    fn lock<'a>(&'a self, Opened { files, map, .. }: &'a Opened) -> Result<Changing<'a>, StoreError> {
        let thread = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = files.lock(map, &self.paths.data);
        locked.map_err(StoreError::io("lock the presence map of", &self.paths.data))?;
        Ok(Changing { map, _thread: thread })
    }

    fn mark(&self, Opened { files, map, .. }: &Opened, span: SpanId, byte: u8) -> Result<(), StoreError> {
        let marked = files.write_all_at(map, &self.paths.data, &[byte], span.0.into());
        marked.map_err(StoreError::io("write the presence map of", &self.paths.data))
    }
}

impl NewContent {
    pub(super) fn new(data: NewFile, map: NewFile) -> Self {
        Self { data, map, present: Vec::new() }
    }

    /// Writes decoded bytes of the running pass.
    ///
    /// # Errors
    /// [`io::Error`], as when the disk is full.
    pub fn write(&self, at: DecodedOffset, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, at.0)
    }

    /// Reads bytes that [`NewContent::write`] wrote.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn read(&self, at: DecodedOffset, buf: &mut [u8]) -> io::Result<()> {
        self.data.file().read_exact_at(buf, at.0)
    }

    /// Another handle to the data file, valid after the content is published.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn reader(&self) -> io::Result<File> {
        self.data.file().try_clone()
    }

    /// Records the next span as kept or not.
    pub fn span_done(&mut self, kept: bool) {
        self.present.push(if kept { Generation::after(0).get() } else { 0 });
    }

    /// Publishes the content under these names.
    pub(super) fn publish(mut self, paths: ContentPaths, decoded_size: u64) -> Result<(), StoreError> {
        (self.data.target, self.map.target) = (paths.data, paths.map);
        self.data.set_len(decoded_size)?;
        let written = self.map.write_all_at(&self.present, 0);
        written.map_err(StoreError::io("write", &self.map.temp))?;
        // Without locks nothing is evicted either.
        let _held = MapInPlace::hold(&self.map.files, &self.map.target).ok();
        self.data.publish()?;
        self.map.publish()
    }
}

/// The current map, locked until dropped, if the file system has locks.
pub(super) struct MapInPlace(File);

impl MapInPlace {
    /// Locks the map at `path`, and creates it if it is missing.
    pub(super) fn hold(files: &Files, path: &Path) -> Result<Self, StoreError> {
        for _ in 0..OTHERS_IN_PLACE {
            let file = files.open_write(path)?;
            if let Err(error) = files.lock(&file, path) {
                // Without locks nothing is filled or evicted.
                tracing::debug!(path = %path.display(), %error, "cannot lock");
                return Ok(Self(file));
            }
            let found = file.metadata().map_err(StoreError::io("read", path))?;
            if files.look(path).is_ok_and(|named| named.identity() == identity(&found)) {
                return Ok(Self(file));
            }
        }
        Err(StoreError::Unsafe { path: path.to_owned(), why: "it keeps being replaced" })
    }
}

/// Opens a data file, for reading only if it is sealed: the kernel refuses writes to a file that it verifies, and
/// verifies none that is open for writing.
fn open_data(files: &Files, path: &Path) -> Result<File, StoreError> {
    if files.look(path).is_ok_and(|found| found.is_file() && found.mode() & WRITABLE == 0) {
        return files.open_read(path);
    }
    match files.open_write(path) {
        // It was sealed meanwhile.
        Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied => files.open_read(path),
        opened => opened,
    }
}

/// Whether a data file was sealed: it has lost the write permission.
fn is_sealed(data: &File) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    data.metadata().is_ok_and(|found| found.permissions().mode() & WRITABLE == 0)
}

/// The mode of sealed content.
const SEALED: u32 = 0o400;
/// The permission that sealed content lacks.
const WRITABLE: u32 = 0o200;

struct Changing<'a> {
    map: &'a File,
    _thread: MutexGuard<'a, ()>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // Fails only for a file that is not open; this one is.
        let _ = self.map.unlock();
    }
}

const PRESENT: u8 = 0x80;
/// Bytes of a digest in a map, BLAKE3.
const DIGEST: usize = 32;
/// Limit for a map replaced between opening and locking.
const OTHERS_IN_PLACE: usize = 1000;
/// Limit for a layer kept in memory because the disk is full, in bytes: enough for sequential readers.
const IN_MEMORY: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustix::fs::OFlags;

    use super::*;

    fn content(dir: &tempfile::TempDir) -> Content {
        let paths = ContentPaths { data: dir.path().join("c.data"), map: dir.path().join("c.map") };
        Content::new(Files::new(dir.path(), None), paths, 100, 3.into()).opened().unwrap()
    }

    fn spans(start: u32, end: u32) -> SpanRange {
        SpanRange::new(SpanId(start), SpanId(end))
    }

    #[test]
    fn a_span_is_present_once_filled_and_absent_once_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(&dir);
        assert_eq!(content.generation(SpanId(1)), None);
        content.fill(SpanId(1), DecodedOffset(40), b"hello").unwrap();
        let first = content.generation(SpanId(1)).unwrap();
        assert!(content.still(spans(1, 2), |_| first.get()));
        assert!(!content.still(spans(0, 2), |_| first.get()));
        assert!(content.has_all(spans(1, 2)) && !content.has_all(spans(0, 2)) && !content.has_all(spans(1, 3)));
        let mut buf = [0; 5];
        content.read(DecodedOffset(40), &mut buf).unwrap();
        assert_eq!(&buf, b"hello");
        content.evict(SpanRange::one(SpanId(1)), DecodedOffset(40)..DecodedOffset(45)).unwrap();
        assert_eq!(content.generation(SpanId(1)), None);
        content.read(DecodedOffset(40), &mut buf).unwrap();
        assert_eq!(buf, [0; 5]);
    }

    #[test]
    fn a_map_with_digests_knows_what_spans_were_filled_with() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ContentPaths { data: dir.path().join("c.data"), map: dir.path().join("c.map") };
        let open = |map: MapSize| Content::new(Files::new(dir.path(), None), paths.clone(), 100, map).opened().unwrap();
        let noted = MapSize { spans: 3, digests: true };
        let content = open(noted);
        assert!(!content.is_as_filled(SpanId(1), b"hello"), "it is absent");
        content.fill(SpanId(1), DecodedOffset(40), b"hello").unwrap();
        let again = open(noted);
        assert!(again.is_as_filled(SpanId(1), b"hello") && !again.is_as_filled(SpanId(1), b"hellO"));
        assert!(!again.is_as_filled(SpanId(2), b"") && !again.is_as_filled(SpanId(3), b"hello"));
        assert!(again.generation(SpanId(1)).is_some() && again.generation(SpanId(0)).is_none());
        let without = open(3.into());
        assert!(without.generation(SpanId(1)).is_none() && !without.is_as_filled(SpanId(1), b"hello"));
    }

    #[test]
    fn a_map_of_the_wrong_length_means_nothing_is_here() {
        let dir = tempfile::tempdir().unwrap();
        content(&dir).fill(SpanId(0), DecodedOffset(0), b"x").unwrap();
        std::fs::write(dir.path().join("c.map"), b"\x01").unwrap();
        assert_eq!(content(&dir).generation(SpanId(0)), None);
    }

    #[test]
    fn data_without_a_map_stay_with_their_readers() {
        let dir = tempfile::tempdir().unwrap();
        let reader = content(&dir);
        reader.fill(SpanId(0), DecodedOffset(0), b"hello").unwrap();
        let generation = reader.generation(SpanId(0)).unwrap();
        std::fs::remove_file(dir.path().join("c.map")).unwrap();
        let other = content(&dir);
        other.fill(SpanId(0), DecodedOffset(0), b"other").unwrap();
        other.evict(SpanRange::one(SpanId(0)), DecodedOffset(0)..DecodedOffset(5)).unwrap();
        let mut buf = [0; 5];
        reader.read(DecodedOffset(0), &mut buf).unwrap();
        assert!(reader.still(spans(0, 1), |_| generation.get()) && &buf == b"hello");
    }

    #[test]
    fn a_span_is_claimed_once_until_it_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (content(&dir), content(&dir));
        assert!(one.claim(SpanId(1)));
        assert!(!other.claim(SpanId(1)));
        assert!(other.claim(SpanId(2)));
        one.unclaim(SpanId(1));
        assert!(other.claim(SpanId(1)));
        one.fill(SpanId(1), DecodedOffset(40), b"claims and fills are locked apart").unwrap();
        assert!(!one.claim(SpanId(1)));
        drop(other);
        assert!(one.claim(SpanId(1)) && one.claim(SpanId(2)));
    }

    #[test]
    fn a_process_that_stops_while_it_holds_a_lock_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let one = content(&dir);
        one.fill(SpanId(0), DecodedOffset(0), b"x").unwrap();
        let stopped = File::open(dir.path().join("c.map")).unwrap();
        stopped.lock().unwrap();
        let begun = std::time::Instant::now();
        for span in 0..100 {
            let filled = one.fill(SpanId(span % 3), DecodedOffset(40), b"y");
            assert!(matches!(filled, Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::TimedOut));
        }
        // Nor one that opens the content.
        let other = content(&dir);
        assert!(other.generation(SpanId(0)).is_some() && other.generation(SpanId(1)).is_none());
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        drop(stopped);
        one.fill(SpanId(1), DecodedOffset(40), b"y").unwrap();
    }

    #[test]
    fn a_refilled_span_has_another_generation() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(&dir);
        content.fill(SpanId(2), DecodedOffset(0), b"x").unwrap();
        let first = content.generation(SpanId(2));
        content.fill(SpanId(2), DecodedOffset(0), b"x").unwrap();
        assert_ne!(content.generation(SpanId(2)), first);
    }

    /// As the kernel verifies no file that is open for writing.
    #[test]
    fn sealed_content_is_opened_for_reading_only() {
        let dir = tempfile::tempdir().unwrap();
        let one = content(&dir);
        (0..3).for_each(|span| one.fill(SpanId(span), DecodedOffset(u64::from(span) * 30), &[7; 30]).unwrap());
        let is_open = |flag: OFlags| {
            let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| {
                let number = fd.file_name().into_string().unwrap().parse::<i32>().unwrap();
                let is_it = std::fs::read_link(fd.path()).is_ok_and(|path| path == dir.path().join("c.data"));
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok().filter(|_| is_it)?;
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
                Some(OFlags::from_bits_retain(u32::from_str_radix(&flags, 8).unwrap()))
            });
            open.filter(|flags| (*flags & OFlags::ACCMODE) == flag).count()
        };
        assert_eq!((is_open(OFlags::RDWR), is_open(OFlags::RDONLY)), (1, 0));
        let sealed = one.seal().unwrap().unwrap();
        assert_eq!((is_open(OFlags::RDWR), is_open(OFlags::RDONLY)), (0, 1));
        assert!(one.generation(SpanId(2)).is_some() && content(&dir).generation(SpanId(2)).is_some());
        assert_eq!((is_open(OFlags::RDWR), is_open(OFlags::RDONLY)), (0, 2));
        drop(sealed);
    }

    #[test]
    fn sealed_content_is_not_written_and_goes_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other, sealer] = [(); 3].map(|()| content(&dir));
        assert!(sealer.seal().unwrap().is_none(), "some of it is missing");
        for span in 0..one.spans() {
            one.fill(SpanId(span), DecodedOffset(u64::from(span) * 30), &[7; 30]).unwrap();
        }
        let sealed = sealer.seal().unwrap().unwrap();
        assert!(sealed.write_at(b"x", 0).is_err() && sealer.generation(SpanId(2)).is_some());
        assert!(matches!(other.fill(SpanId(0), DecodedOffset(0), &[8; 30]), Err(StoreError::Sealed { .. })));
        other.evict(SpanRange::one(SpanId(1)), DecodedOffset(30)..DecodedOffset(60)).unwrap();
        assert!(!one.data_path().exists());
        let mut bytes = [0; 30];
        sealed.read_exact_at(&mut bytes, 30).unwrap();
        assert_eq!(bytes, [7; 30], "no hole was punched");
        assert!(one.generation(SpanId(1)).is_some(), "what has it open goes on reading it");
        assert!(other.generation(SpanId(1)).is_none(), "and what has evicted it does not");
        let anew = content(&dir);
        assert!(anew.generation(SpanId(1)).is_none() && anew.fill(SpanId(1), DecodedOffset(30), &[9; 30]).is_ok());
        one.evict(SpanRange::one(SpanId(0)), DecodedOffset(0)..DecodedOffset(30)).unwrap();
        assert!(anew.data_path().exists(), "what has taken its place stays");
        assert!(one.generation(SpanId(1)).is_some() && one.generation(SpanId(0)).is_none(), "and is what is read");
    }
}
