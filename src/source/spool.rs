//! Spooling: copies an archive that cannot be read in place to a file that can.
//!
//! A compressed archive has no random access, and a pipe can be read only once. Both are copied, decompressed, to an
//! unnamed file, which disappears with the process. Decompression bombs are limited as in layers; the copy is trusted
//! no more than any archive, since all of it is checked by digests.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::SourceError;
use super::local::Piece;
use crate::reference::STANDARD_INPUT;

/// Where archives are spooled.
#[derive(Clone)]
pub struct Spool {
    file: Arc<dyn Fn() -> io::Result<File> + Send + Sync>,
    limit: u64,
}

impl Spool {
    /// `file` creates an unnamed file on a disk where archives may use `limit` bytes, or all of it.
    pub fn new(limit: Option<u64>, file: impl Fn() -> io::Result<File> + Send + Sync + 'static) -> Self {
        Self { file: Arc::new(file), limit: limit.unwrap_or(MOST).min(MOST) }
    }

    /// The content of the pipe at `path`, decompressed; `None` if it is not a pipe.
    ///
    /// # Errors
    /// [`SourceError`] if it cannot be copied.
    pub fn pipe(&self, path: &Path) -> Result<Option<File>, SourceError> {
        let shown = shown(path, "");
        match open(path) {
            Ok(Archive::Stream(stream)) => self.stream(&shown, stream).map(Some),
            // Other faults are reported when it is read.
            Ok(Archive::File(_)) | Err(_) => Ok(None),
        }
    }

    /// A seekable file with the archive that a user has named; messages call it `shown`.
    ///
    /// # Errors
    /// [`SourceError`] if it does not exist, does not decompress, or is too large.
    pub(super) fn archive(&self, path: &Path, shown: &str) -> Result<Piece, SourceError> {
        let failed = |cause| SourceError::Io { path: shown.to_owned(), cause };
        match open(path).map_err(failed)? {
            Archive::File(file) => {
                let piece = Piece::of(file, shown)?;
                let mut magic = [0; MAGIC];
                let seen = usize::try_from(piece.len().min(MAGIC as u64)).expect("at most MAGIC");
                piece.read_at(0, &mut magic[..seen])?;
                match Format::of(&magic[..seen]) {
                    Some(format) => Piece::of(self.copy(shown, piece.reader(), Some(format))?, shown),
                    None => Ok(piece),
                }
            }
            Archive::Stream(stream) => Piece::of(self.stream(shown, stream)?, shown),
        }
    }

    /// A copy of an archive that comes from elsewhere.
    pub(super) fn copy_of(&self, shown: &str, from: impl Read) -> Result<File, SourceError> {
        self.copy(shown, from, None)
    }

    /// An unnamed file in the cache.
    pub(super) fn unnamed(&self) -> Result<File, SourceError> {
        (self.file)().map_err(|cause| SourceError::Io { path: "the cache".to_owned(), cause })
    }

    /// Copies the content of a pipe.
    fn stream(&self, shown: &str, mut stream: File) -> Result<File, SourceError> {
        let mut magic = Vec::new();
        let first = stream.by_ref().take(MAGIC as u64).read_to_end(&mut magic);
        first.map_err(|cause| SourceError::Io { path: shown.to_owned(), cause })?;
        let format = Format::of(&magic);
        self.copy(shown, io::Cursor::new(magic).chain(stream), format)
    }

    /// Copies an archive, decompressed.
    fn copy(&self, shown: &str, from: impl Read, format: Option<Format>) -> Result<File, SourceError> {
        let into = self.unnamed()?;
        let taken = AtomicU64::new(0);
        let mut counted = Counted { from, taken: &taken };
        let copied = match format {
            None => copy(&mut counted, &into, self.limit, || u64::MAX),
            Some(format) => {
                let bound = || RATIO_FREE.max(taken.load(Ordering::Relaxed).saturating_mul(RATIO));
                let decoder = format.decoder(&mut counted).map_err(Uncopied::Read);
                decoder.and_then(|mut decoder| copy(&mut *decoder, &into, self.limit, bound))
            }
        };
        copied.map_err(|error| error.told(shown, format, self.limit)).map(|()| into)
    }
}

/// What an archive at `path` is called, of an image called `name`. A process that reads a pipe for a user has it under a
/// descriptor of its own.
pub(super) fn shown(path: &Path, name: &str) -> String {
    let is_held = path.starts_with("/proc/self/fd") || path.starts_with("/dev/fd");
    let path = path.display().to_string();
    match is_held {
        _ if path == "/dev/stdin" => STANDARD_INPUT.to_owned(),
        true if name == STANDARD_INPUT || name.contains(":/dev/stdin") => STANDARD_INPUT.to_owned(),
        true if !name.is_empty() && !name.contains(&path) => name.to_owned(),
        _ => path,
    }
}

/// A path that a user has named.
enum Archive {
    File(File),
    Stream(File),
}

fn open(path: &Path) -> io::Result<Archive> {
    if path == Path::new("/dev/stdin") {
        // Duplicate the descriptor: a socket cannot be opened by name, and all of a pipe must be read.
        return kind_of(File::from(io::stdin().as_fd().try_clone_to_owned()?), path);
    }
    // Do not block on a pipe or device before its type is known.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("open flags are small");
    kind_of(File::options().read(true).custom_flags(flags).open(path)?, path)
}

fn kind_of(file: File, path: &Path) -> io::Result<Archive> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        // A file at another offset shares that offset with its descriptor; it is read by absolute offset.
        return Ok(Archive::File(file));
    }
    if !kind.is_fifo() && !kind.is_socket() {
        return Err(io::Error::other("it is neither a file nor a pipe"));
    }
    if path.symlink_metadata().is_ok_and(|named| named.file_type().is_fifo()) {
        // A FIFO opened by name may have no writer yet, so wait for one. Do not open it again: the writer of a short
        // archive may be gone, and its bytes go with the last descriptor.
        while let Err(Errno::INTR) = poll(&mut [PollFd::new(&file, PollFlags::IN)], None) {}
    }
    let flags = rustix::fs::fcntl_getfl(&file)?;
    if flags.contains(OFlags::NONBLOCK) && path != Path::new("/dev/stdin") {
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    }
    Ok(Archive::Stream(file))
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Format {
    fn of(magic: &[u8]) -> Option<Self> {
        let formats: [(&[u8], Self); 4] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"BZh", Self::Bzip2),
        ];
        formats.into_iter().find_map(|(begins, format)| magic.starts_with(begins).then_some(format))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    fn decoder<'a>(self, from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let from = BufReader::with_capacity(CHUNK, from);
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(from, true, XZ_MEMORY)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        })
    }
}

/// Why an archive was not copied.
enum Uncopied {
    Read(io::Error),
    Write(io::Error),
    /// Larger than the limit.
    Large,
    /// More than [`RATIO`] times its compressed size.
    Bomb,
}

impl Uncopied {
    fn told(self, shown: &str, format: Option<Format>, limit: u64) -> SourceError {
        let unusable = |why, hint: Option<&str>| SourceError::Unsupported {
            place: format!("`{shown}`"),
            why,
            hint: hint.map(str::to_owned),
        };
        match (self, format) {
            (Self::Read(cause), Some(format)) => {
                let name = format.name();
                unusable(format!("it is compressed with {name}, and does not decompress: {cause}"), None)
            }
            (Self::Read(cause), None) => SourceError::Io { path: shown.to_owned(), cause },
            (Self::Write(cause), _) if cause.kind() == io::ErrorKind::StorageFull => unusable(
                "there is no room in the cache to unpack it".to_owned(),
                Some("name a cache on another disk with `--cache-dir`, or decompress it yourself"),
            ),
            (Self::Write(cause), _) => SourceError::Io { path: "the cache".to_owned(), cause },
            (Self::Large, _) => unusable(
                format!("it unpacks to more than the {limit} bytes that the cache may take"),
                Some("raise `--cache-size`, or decompress it yourself, so that it is read in place"),
            ),
            (Self::Bomb, _) => unusable(
                format!("it unpacks to more than {RATIO} times its size, which looks like a decompression bomb"),
                None,
            ),
        }
    }
}

/// Copies `from` to `into`, with holes for zeros; at most `limit` bytes, and never more than `bound` returns.
fn copy(from: &mut dyn Read, into: &File, limit: u64, bound: impl Fn() -> u64) -> Result<(), Uncopied> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let got = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Uncopied::Read(error)),
        };
        if at + got as u64 > limit {
            return Err(Uncopied::Large);
        }
        if at + got as u64 > bound() {
            return Err(Uncopied::Bomb);
        }
        if chunk[..got].iter().any(|byte| *byte != 0) {
            into.write_all_at(&chunk[..got], at).map_err(Uncopied::Write)?;
        }
        at += got as u64;
    }
    into.set_len(at).map_err(Uncopied::Write)
}

/// A reader that counts the bytes read.
struct Counted<'a, R> {
    from: R,
    taken: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(buffer)?;
        self.taken.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// Bytes needed to detect every format.
const MAGIC: usize = 6;
const CHUNK: usize = 256 << 10;
/// Limit for a spooled archive.
const MOST: u64 = 256 << 30;
/// Limit for the ratio of decompressed to compressed bytes, beyond [`RATIO_FREE`].
const RATIO: u64 = 2000;
const RATIO_FREE: u64 = 1 << 30;
/// Windows of 256 MiB.
const ZSTD_WINDOW_LOG: u32 = 28;
/// Memory limit of the xz decoder, in KiB: `xz -9` needs 65 MiB.
const XZ_MEMORY: u32 = 256 << 10;
