//! A layer's decoded bytes on disk: one sparse file and one byte a span.
//!
//! The map's byte has its high bit set while the span is present; the other bits count how often it
//! was written. Any process may evict a span at any time: it clears the high bit and then punches the
//! hole. Readers need no lock, within a process or between processes: they compare what they have read. One that
//! finds other bytes than it should reads the map's byte before the data and again after: if it is still the
//! same, the span is damaged, else it was evicted or written meanwhile. Processes that fill or evict take a lock,
//! so that a hole never follows a fill.
//!
//! Content that the kernel was given to read by itself is sealed: it has mode 0400, and is neither written nor punched again.
//! Evicting any of it takes its names away, and the kernel keeps the bytes for as long as it shows them.
//!
//! Both files are opened, put in place and removed under the lock of the map that is in place, so that data have
//! one map.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU8;
use std::ops::Range;
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

/// Which writing of a span is on disk: the map's byte, high bit set.
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

    /// The byte as it stands in the map; never 0.
    pub fn get(self) -> u8 {
        self.0.get()
    }
}

/// A layer's content, for reading and filling.
#[derive(Debug)]
pub struct Content {
    files: Files,
    /// Open once something is asked: most layers of a mount are never read.
    opened: Pooled<Opened>,
    /// Whether it is noted as used.
    noted: AtomicBool,
    paths: ContentPaths,
    decoded_size: u64,
    spans: u32,
    /// Taken with the map's file lock: that one excludes other processes, this one other threads.
    changing: Mutex<()>,
}

/// Where the two files of a layer's content are.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct ContentPaths {
    pub(super) data: PathBuf,
    pub(super) map: PathBuf,
}

impl ContentPaths {
    /// Those of the content that `file` belongs to.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_str()?;
        let stem = name.strip_suffix(".data").or_else(|| name.strip_suffix(".map"))?;
        let beside = |extension| file.with_file_name(format!("{stem}.{extension}"));
        Some(Self { data: beside("data"), map: beside("map") })
    }
}

#[derive(Debug)]
struct Opened {
    /// Of the cache, or of memory, which is not announced.
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
    /// The content at `paths`, neither of which is opened yet.
    pub(super) fn new(files: Files, paths: ContentPaths, decoded_size: u64, spans: u32) -> Self {
        let opened = files.pool.place();
        Self { files, opened, noted: AtomicBool::new(true), paths, decoded_size, spans, changing: Mutex::new(()) }
    }

    /// The same, noted as used when it is first opened.
    pub(super) fn when_wanted(self) -> Self {
        Self { noted: AtomicBool::new(false), ..self }
    }

    /// The same, with its files open.
    pub(super) fn opened(self) -> Result<Self, StoreError> {
        self.open()?;
        Ok(self)
    }

    /// The files. That they are others than the last time, as when they were removed, is found by comparing what they
    /// hold.
    fn open(&self) -> Result<InUse<'_, Opened>, StoreError> {
        self.opened.get(|| {
            let opened = self.open_somewhere()?;
            if !self.noted.swap(true, Ordering::Relaxed) {
                // Used now, for the order of eviction; only that depends on it.
                let _ = opened.files.touch(&opened.map, &self.paths.data);
            }
            Ok(opened)
        })
    }

    /// Opens the files; where the disk has no place for them, some of the content is kept in memory.
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
        let opened = Opened { data: files.open_write(data)?, map: held.0, files, in_memory: false };
        let opened = if self.fits(&opened)? { opened } else { self.begin_anew(opened)? };
        // It fails only for a file that is not open, or on a file system without locks.
        let _ = opened.map.unlock();
        Ok(opened)
    }

    /// Empties files that were cut short, or are of another shape. Who still reads the data goes on with what is
    /// there: another map tells of it.
    fn begin_anew(&self, Opened { files, map: map_file, in_memory, .. }: Opened) -> Result<Opened, StoreError> {
        let ContentPaths { data, map } = &self.paths;
        // The map goes first, so that no process believes in the rest.
        files.set_len(&map_file, map, 0).map_err(StoreError::io("truncate", map))?;
        files.remove(data);
        let data_file = files.open_write(data)?;
        files.set_len(&data_file, data, self.decoded_size).map_err(StoreError::io("extend", data))?;
        files.set_len(&map_file, map, self.spans.into()).map_err(StoreError::io("extend", map))?;
        Ok(Opened { files, data: data_file, map: map_file, in_memory })
    }

    /// Whether the files have the sizes that content of this layer has.
    fn fits(&self, opened: &Opened) -> Result<bool, StoreError> {
        let size = |file: &File| Ok(file.metadata().map_err(StoreError::io("read", &self.paths.data))?.len());
        Ok(size(&opened.map)? == u64::from(self.spans) && size(&opened.data)? == self.decoded_size)
    }

    fn open_memory(&self) -> Result<Opened, StoreError> {
        let file = |length: u64| {
            let file = File::from(rustix::fs::memfd_create("peelfs-content", MemfdFlags::CLOEXEC)?);
            file.set_len(length)?;
            Ok(file)
        };
        let failed = |cause: io::Error| StoreError::io("keep in memory", &self.paths.data)(cause);
        // It stays open.
        if !self.files.pool.has_room_for(Opened::COUNT) {
            return Err(failed(Errno::EMFILE.into()));
        }
        let (data, map) = (file(self.decoded_size).map_err(failed)?, file(self.spans.into()).map_err(failed)?);
        Ok(Opened { files: self.files.unwatched(), data, map, in_memory: true })
    }

    /// How many bytes too many are kept in memory, where that is the only place.
    pub fn too_much_in_memory(&self) -> Option<u64> {
        let in_memory = self.open().ok()?.in_memory;
        in_memory.then(|| self.disk_bytes().saturating_sub(IN_MEMORY))
    }

    /// The generation of a span on disk; `None` while it is absent.
    pub fn generation(&self, span: SpanId) -> Option<Generation> {
        Generation::present(self.byte(span))
    }

    /// The generation of each span of `spans`, as [`Content::generation`] tells it of one.
    pub fn generations(&self, spans: SpanRange) -> Vec<Option<Generation>> {
        let mut bytes = vec![0; spans.count() as usize];
        self.read_map_or_absent(spans.start, &mut bytes);
        bytes.into_iter().map(Generation::present).collect()
    }

    /// Whether every span of `spans` is on disk.
    pub fn has_all(&self, spans: SpanRange) -> bool {
        self.all(spans, |_, byte| byte & PRESENT != 0)
    }

    /// Whether each span of `spans` still has the generation given for it by `expected`.
    pub fn still(&self, spans: SpanRange, expected: impl Fn(SpanId) -> u8) -> bool {
        self.all(spans, |span, byte| byte & PRESENT != 0 && byte == expected(span))
    }

    /// Whether the bytes of some spans in the map are all `good`.
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

    /// Reads decoded bytes; fills `buf` or fails.
    ///
    /// # Errors
    /// [`StoreError::Io`], also when the file ends early.
    pub fn read(&self, at: DecodedOffset, buf: &mut [u8]) -> Result<(), StoreError> {
        self.open()?.data.read_exact_at(buf, at.0).map_err(StoreError::io("read", &self.paths.data))
    }

    /// As [`Content::read`]; calls `before_wait` first if the disk has to be waited for.
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

    /// As [`Content::read_telling`], into three buffers one after the other.
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
        // Whatever it could not do, the ordinary read can, or says why not.
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

    /// Keeps the verified bytes of a span.
    ///
    /// # Errors
    /// [`StoreError::Io`], as when the disk is full; the span stays absent.
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
        self.mark(&opened, span, Generation::after(before).get())
    }

    /// Makes a span absent: first for every reader, then on disk. Of content that was [sealed](Content::seal) all loses its
    /// names instead, and what holds it open, as the kernel does, goes on reading it.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn evict(&self, span: SpanId, decoded: Range<DecodedOffset>) -> Result<(), StoreError> {
        let opened = self.open()?;
        let changing = self.lock(&opened)?;
        if is_sealed(&opened.data) {
            self.remove_names(&opened);
            drop(changing);
            drop(opened);
            // What is wanted of the layer from now on goes into new files.
            self.opened.close();
            return Ok(());
        }
        self.mark(&opened, span, self.byte(span) & !PRESENT)?;
        let length = decoded.end - decoded.start;
        let punched = opened.files.punch_hole(&opened.data, &self.paths.data, decoded.start.0, length);
        punched.map_err(StoreError::io("punch a hole in", &self.paths.data))
    }

    /// Seals content of which every span is there, so that the kernel can be given its file: from then on no process
    /// that goes by this module writes to it or punches holes. `None` if some span is absent, or there is no file.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn seal(&self) -> Result<Option<File>, StoreError> {
        use std::os::unix::fs::PermissionsExt as _;
        let opened = self.open()?;
        let _changing = self.lock(&opened)?;
        let Opened { data, in_memory, .. } = &*opened;
        if *in_memory || !self.has_all(SpanRange::first(self.spans)) {
            return Ok(None);
        }
        if !is_sealed(data) {
            let sealed = data.set_permissions(std::fs::Permissions::from_mode(SEALED));
            sealed.map_err(StoreError::io("protect", &self.paths.data))?;
        }
        data.try_clone().map(Some).map_err(StoreError::io("open", &self.paths.data))
    }

    /// Where the file is.
    pub(super) fn data_path(&self) -> &Path {
        &self.paths.data
    }

    /// Takes the names of the files away, unless others have them by now.
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

    /// Whether the disk has any block for bytes in `range`, present or not.
    pub fn takes_room(&self, range: &Range<DecodedOffset>) -> bool {
        let Ok(opened) = self.open() else { return false };
        rustix::fs::seek(&opened.data, rustix::fs::SeekFrom::Data(range.start.0)).is_ok_and(|at| at < range.end.0)
    }

    /// Tries to become the process that fetches a span; `false` while another one is at it.
    ///
    /// What a process has claimed it gives back with [`Content::unclaim`], or by ending. Threads of one process
    /// settle this among themselves. Where the file system has no such locks, or a process has too few descriptors to
    /// keep the files open, every process may.
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
        // It fails only where claiming does.
        let _ = self.lock_byte(span, libc::F_UNLCK);
    }

    /// Locks or unlocks a span's byte of the map, a lock of its own beside that of the whole file.
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

    /// How many spans there are, present or not.
    pub fn spans(&self) -> u32 {
        self.spans
    }

    /// Bytes that the content takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        self.open().ok().and_then(|opened| opened.data.metadata().ok()).map_or(0, |found| found.blocks() * 512)
    }

    /// Tells the disk that `range` is read next, and with it not what it would read ahead by itself.
    pub fn read_ahead(&self, range: Range<DecodedOffset>) {
        let length = std::num::NonZeroU64::new(range.end - range.start);
        let Ok(opened) = self.open() else { return };
        // What is in memory at its beginning mostly is as a whole, and looking at each page takes longer than reading it.
        let mut first = [0];
        let parts = &mut [IoSliceMut::new(&mut first)];
        if rustix::io::preadv2(&opened.data, parts, range.start.0, ReadWriteFlags::NOWAIT) == Ok(1) {
            return;
        }
        // Advice only; a refusal costs time.
        let _ = rustix::fs::fadvise(&opened.data, range.start.0, length, rustix::fs::Advice::WillNeed);
    }

    /// Tells the kernel that the pages of `range` are not needed twice: the mount has its own copy.
    pub fn drop_pages(&self, range: Range<DecodedOffset>) {
        let length = std::num::NonZeroU64::new(range.end - range.start);
        // Advice only; a refusal changes nothing that a reader could see.
        let Ok(opened) = self.open() else { return };
        let _ = rustix::fs::fadvise(&opened.data, range.start.0, length, rustix::fs::Advice::DontNeed);
    }

    fn byte(&self, span: SpanId) -> u8 {
        let mut byte = [0];
        self.read_map_or_absent(span, &mut byte);
        byte[0]
    }

    /// As [`Content::read_map`]; what cannot be read is taken as absent.
    fn read_map_or_absent(&self, first: SpanId, bytes: &mut [u8]) {
        if let Err(error) = self.read_map(first, bytes) {
            bytes.fill(0);
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot tell whether a span is in the cache; taking it as absent");
        }
    }

    /// Fills `bytes` from the map, from the byte of `first` on.
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

    /// Writes decoded bytes as they pass.
    ///
    /// # Errors
    /// [`io::Error`], as when the disk is full.
    pub fn write(&self, at: DecodedOffset, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, at.0)
    }

    /// Reads back what [`NewContent::write`] wrote.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn read(&self, at: DecodedOffset, buf: &mut [u8]) -> io::Result<()> {
        self.data.file().read_exact_at(buf, at.0)
    }

    /// Another handle to the data file, which lives on when the content is published.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn reader(&self) -> io::Result<File> {
        self.data.file().try_clone()
    }

    /// Notes the next span, in order, as kept or not.
    pub fn span_done(&mut self, kept: bool) {
        self.present.push(if kept { Generation::after(0).get() } else { 0 });
    }

    /// Puts the content in place under these names.
    pub(super) fn publish(mut self, paths: ContentPaths, decoded_size: u64) -> Result<(), StoreError> {
        (self.data.target, self.map.target) = (paths.data, paths.map);
        self.data.set_len(decoded_size)?;
        let written = self.map.write_all_at(&self.present, 0);
        written.map_err(StoreError::io("write", &self.map.temp))?;
        // Where nothing can be locked, nothing is evicted either.
        let _held = MapInPlace::hold(&self.map.files, &self.map.target).ok();
        self.data.publish()?;
        self.map.publish()
    }
}

/// The map that is in place, locked until it is dropped, where there are locks.
pub(super) struct MapInPlace(File);

impl MapInPlace {
    /// Waits for the lock of the map at `path`, which is made if there is none.
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
        Err(StoreError::Unsafe { path: path.to_owned(), why: "another file takes its place all the time" })
    }
}

/// Whether the content of a data file was sealed: it has lost the right to be written.
fn is_sealed(data: &File) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    data.metadata().is_ok_and(|found| found.permissions().mode() & 0o200 == 0)
}

/// The mode of sealed content.
const SEALED: u32 = 0o400;

struct Changing<'a> {
    map: &'a File,
    _thread: MutexGuard<'a, ()>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // It fails only for a file that is not open, and this one is.
        let _ = self.map.unlock();
    }
}

const PRESENT: u8 = 0x80;
/// How often a map may have been replaced by the time it is locked.
const OTHERS_IN_PLACE: usize = 1000;
/// What a layer may have in memory when the disk takes nothing, in bytes: enough for readers that go on in order.
const IN_MEMORY: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn content(dir: &tempfile::TempDir) -> Content {
        let paths = ContentPaths { data: dir.path().join("c.data"), map: dir.path().join("c.map") };
        Content::new(Files::new(dir.path(), None), paths, 100, 3).opened().unwrap()
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
        content.evict(SpanId(1), DecodedOffset(40)..DecodedOffset(45)).unwrap();
        assert_eq!(content.generation(SpanId(1)), None);
        content.read(DecodedOffset(40), &mut buf).unwrap();
        assert_eq!(buf, [0; 5]);
    }

    #[test]
    fn a_map_of_the_wrong_length_means_nothing_is_here() {
        let dir = tempfile::tempdir().unwrap();
        content(&dir).fill(SpanId(0), DecodedOffset(0), b"x").unwrap();
        std::fs::write(dir.path().join("c.map"), b"\x01").unwrap();
        assert_eq!(content(&dir).generation(SpanId(0)), None);
    }

    #[test]
    fn data_whose_map_is_lost_are_left_to_who_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let reader = content(&dir);
        reader.fill(SpanId(0), DecodedOffset(0), b"hello").unwrap();
        let generation = reader.generation(SpanId(0)).unwrap();
        std::fs::remove_file(dir.path().join("c.map")).unwrap();
        let other = content(&dir);
        other.fill(SpanId(0), DecodedOffset(0), b"other").unwrap();
        other.evict(SpanId(0), DecodedOffset(0)..DecodedOffset(5)).unwrap();
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

    #[test]
    fn sealed_content_is_not_written_and_goes_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (content(&dir), content(&dir));
        assert!(one.seal().unwrap().is_none(), "some of it is missing");
        for span in 0..one.spans() {
            one.fill(SpanId(span), DecodedOffset(u64::from(span) * 30), &[7; 30]).unwrap();
        }
        let sealed = one.seal().unwrap().unwrap();
        assert!(matches!(other.fill(SpanId(0), DecodedOffset(0), &[8; 30]), Err(StoreError::Sealed { .. })));
        other.evict(SpanId(1), DecodedOffset(30)..DecodedOffset(60)).unwrap();
        assert!(!one.data_path().exists());
        let mut bytes = [0; 30];
        sealed.read_exact_at(&mut bytes, 30).unwrap();
        assert_eq!(bytes, [7; 30], "no hole was punched");
        assert!(one.generation(SpanId(1)).is_some(), "what has it open goes on reading it");
        assert!(other.generation(SpanId(1)).is_none(), "and what has evicted it does not");
        let anew = content(&dir);
        assert!(anew.generation(SpanId(1)).is_none() && anew.fill(SpanId(1), DecodedOffset(30), &[9; 30]).is_ok());
        one.evict(SpanId(0), DecodedOffset(0)..DecodedOffset(30)).unwrap();
        assert!(anew.data_path().exists(), "what has taken its place stays");
        assert!(one.generation(SpanId(1)).is_some() && one.generation(SpanId(0)).is_none(), "and is what is read");
    }
}
