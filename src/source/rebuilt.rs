//! A layer's tar that is nowhere as a whole: an engine has unpacked it, and kept what is needed to rebuild it.
//!
//! The [tar-split](crate::codec) data is read once, when the layer is first needed: literal bytes go to an unnamed
//! file, and a table says for each offset of the tar whether such bytes or those of a file stand there. After that any
//! range is read without the rest. Files are opened below the layer's directory only, whatever their paths say, and are
//! never written.
//!
//! Whether the result is the layer is for the reader to verify, by its diff_id. The checksums of the tar-split data only
//! name the file that was changed, where the result is not the layer.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flate2::bufread::MultiGzDecoder;
use rustix::io::Errno;

use super::SourceError;
use super::local::Piece;
use super::spool::Spool;
use super::tree::Tree;
use crate::codec::tar_split::{self, Crc64, Next, TarSplitError};
use crate::sync::lock;

/// What a layer is rebuilt from.
#[derive(Clone, Debug)]
pub(super) struct Ingredients {
    /// The layer, in messages.
    pub(super) layer: String,
    /// What can be done where it cannot be rebuilt.
    pub(super) hint: String,
    /// The tar-split data.
    pub(super) tar_split: Piece,
    /// The directory with its files.
    pub(super) files: Arc<Tree>,
}

impl Ingredients {
    /// Bytes of the tar; reads all of the tar-split data.
    pub(super) fn size(&self) -> Result<u64, SourceError> {
        let mut size = 0_u64;
        let read = tar_split::read(self.lines(), |next| {
            let more = match next {
                Next::Literal(bytes) => bytes.len() as u64,
                Next::File { size, .. } => size,
            };
            size = size.checked_add(more).filter(|size| *size <= SIZE_LIMIT).ok_or(Unusable::Size)?;
            Ok(())
        });
        read.map(|()| size).map_err(|error| self.unusable(&error))
    }

    /// The tar-split data, decompressed.
    fn lines(&self) -> impl BufRead {
        let packed = BufReader::with_capacity(BUFFER, self.tar_split.reader());
        BufReader::with_capacity(BUFFER, MultiGzDecoder::new(packed))
    }

    fn unusable(&self, error: &Unusable) -> SourceError {
        SourceError::Unsupported {
            place: self.layer.clone(),
            why: format!("its tar-split data is not usable: {error}"),
            hint: Some(self.hint.clone()),
        }
    }
}

/// A tar in pieces.
#[derive(Debug)]
pub(super) struct RebuiltTar {
    of: Ingredients,
    /// Literal bytes and names, each where its part says.
    kept: File,
    parts: Vec<Part>,
    size: u64,
    /// The file that was read last, by its part.
    last: Mutex<Option<(usize, Arc<File>)>>,
    /// A part whose file was seen to be changed.
    changed: AtomicUsize,
}

/// A run of the tar; it ends where the next one begins.
#[derive(Clone, Copy, Debug)]
struct Part {
    at: u64,
    /// Where its bytes, or the name of its file, are kept.
    kept: u64,
    /// Bytes of the name; 0 for literal bytes.
    name: u32,
    sum: Option<u64>,
}

/// Why tar-split data is not usable.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Data(#[from] TarSplitError),
    #[error("it describes more than {SIZE_LIMIT} bytes")]
    Size,
    #[error("it describes more files than a tar of {size} bytes has headers")]
    Files { size: u64 },
    #[error("it describes {actual} bytes, and the layer has {expected}")]
    WrongSize { expected: u64, actual: u64 },
    #[error("a name has {0} bytes")]
    Name(usize),
    #[error("it cannot be kept in the cache: {0}")]
    Keep(#[source] std::io::Error),
}

impl RebuiltTar {
    /// Reads the tar-split data of a layer of `size` bytes.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] if it is damaged, or describes another size.
    pub(super) fn new(of: Ingredients, size: u64, spool: &Spool) -> Result<Self, SourceError> {
        let file = spool.unnamed()?;
        match table(&of, size, &file) {
            Ok(parts) => {
                Ok(Self { of, kept: file, parts, size, last: Mutex::new(None), changed: AtomicUsize::new(usize::MAX) })
            }
            Err(error) => Err(of.unusable(&error)),
        }
    }

    /// Bytes of the tar.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The layer, in messages.
    pub(super) fn shown(&self) -> &str {
        &self.of.layer
    }

    /// Fills `buffer` from offset `at`, which must be within the tar.
    pub(super) fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let mut done = 0;
        while done < buffer.len() {
            let number = self.part_at(at + done as u64);
            done += self.read_part(number, at + done as u64, &mut buffer[done..])?;
        }
        Ok(())
    }

    /// Reads from one part; how many bytes.
    fn read_part(&self, number: usize, at: u64, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let part = self.parts[number];
        let (begin, end) = (at - part.at, self.end(number));
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..len];
        if part.name == 0 {
            let kept = self.kept.read_exact_at(buffer, part.kept + begin);
            kept.map_err(|cause| SourceError::Io { path: "the cache".to_owned(), cause })?;
            return Ok(len);
        }
        let file = self.file(number)?;
        file.read_exact_at(buffer, begin).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::UnexpectedEof => self.changed(number, "it was cut short"),
            _ => SourceError::Io { path: self.path(number), cause },
        })?;
        Ok(len)
    }

    fn end(&self, number: usize) -> u64 {
        self.parts.get(number + 1).map_or(self.size, |next| next.at)
    }

    fn part_at(&self, at: u64) -> usize {
        self.parts.partition_point(|part| part.at <= at) - 1
    }

    /// The file of a part.
    fn file(&self, number: usize) -> Result<Arc<File>, SourceError> {
        if let Some((last, file)) = &*lock(&self.last)
            && *last == number
        {
            return Ok(Arc::clone(file));
        }
        let name = self.name(number)?;
        let opened = self.of.files.open_in_root(Path::new(std::ffi::OsStr::from_bytes(&name)));
        let file = opened.map_err(|errno| self.unopened(number, errno))?;
        let failed = |cause| SourceError::Io { path: self.path(number), cause };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(self.changed(number, "it is not a regular file"));
        }
        let expected = self.end(number) - self.parts[number].at;
        if metadata.len() != expected {
            let why = format!("it has {} bytes instead of {expected}", metadata.len());
            return Err(self.changed(number, &why));
        }
        let file = Arc::new(file);
        *lock(&self.last) = Some((number, Arc::clone(&file)));
        Ok(file)
    }

    fn name(&self, number: usize) -> Result<Vec<u8>, SourceError> {
        let part = self.parts[number];
        let mut name = vec![0; part.name as usize];
        let read = self.kept.read_exact_at(&mut name, part.kept);
        read.map_err(|cause| SourceError::Io { path: "the cache".to_owned(), cause })?;
        Ok(name)
    }

    /// The path of a part's file, in messages.
    fn path(&self, number: usize) -> String {
        let name = self.name(number).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).chars().flat_map(char::escape_debug).collect::<String>();
        format!("{}/{}", self.of.files.path().display(), name.trim_start_matches(['.', '/']))
    }

    fn unopened(&self, number: usize, errno: Errno) -> SourceError {
        let path = self.path(number);
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::STALE => SourceError::NotFound {
                what: format!("file `{path}`"),
                place: self.of.layer.clone(),
                said: None,
                hint: Some(self.of.hint.clone().into()),
            },
            Errno::ACCESS | Errno::PERM => SourceError::Unsupported {
                place: format!("`{path}`"),
                why: "this user must not read it".to_owned(),
                hint: Some(
                    "it belongs to another user id of the engine: `podman unshare peelfs …` reads it, or `podman save NAME | \
                     peelfs … -`"
                        .to_owned(),
                ),
            },
            Errno::LOOP | Errno::XDEV => self.changed(number, "it is a symbolic link"),
            errno => SourceError::Io { path, cause: errno.into() },
        }
    }

    /// The error for a file with bytes of `range` that is not what was unpacked; `None` if all are.
    pub(super) fn changed_in(&self, range: Range<u64>) -> Option<SourceError> {
        let last = self.part_at(range.end.checked_sub(1)?);
        let parts = self.part_at(range.start)..last + 1;
        let seen = self.changed.load(Ordering::Relaxed);
        let seen = parts.contains(&seen).then_some(seen);
        seen.into_iter().chain(parts).find_map(|number| self.changed_part(number).err())
    }

    /// Compares the file of a part with what was unpacked.
    fn changed_part(&self, number: usize) -> Result<(), SourceError> {
        let Part { at, name, sum: Some(wanted), .. } = self.parts[number] else { return Ok(()) };
        if name == 0 {
            return Ok(());
        }
        let (mut sum, mut at, mut buffer) = (Crc64::new(), at, vec![0; BUFFER]);
        while at < self.end(number) {
            let got = self.read_part(number, at, &mut buffer)?;
            sum.add(&buffer[..got]);
            at += got as u64;
        }
        if sum.finish() == wanted { Ok(()) } else { Err(self.changed(number, "")) }
    }

    fn changed(&self, number: usize, why: &str) -> SourceError {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        SourceError::Unsupported {
            place: self.of.layer.clone(),
            why: format!("`{}` was changed after it was unpacked{why}", self.path(number)),
            hint: Some(self.of.hint.clone()),
        }
    }
}

/// Reads the bytes of a tar in order, and notes a file that was changed.
pub(super) struct InOrder {
    tar: Arc<RebuiltTar>,
    at: u64,
    sum: Crc64,
    /// The part that is summed up, from its beginning.
    summed: Option<usize>,
}

impl InOrder {
    pub(super) fn new(tar: Arc<RebuiltTar>, at: u64) -> Self {
        Self { tar, at, sum: Crc64::new(), summed: None }
    }

    /// Fills `buffer` with the next bytes.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<(), SourceError> {
        let mut done = 0;
        while done < buffer.len() {
            let number = self.tar.part_at(self.at);
            let (part, end) = (self.tar.parts[number], self.tar.end(number));
            let got = self.tar.read_part(number, self.at, &mut buffer[done..])?;
            if let Some(wanted) = part.sum {
                if self.at == part.at {
                    (self.sum, self.summed) = (Crc64::new(), Some(number));
                }
                if self.summed == Some(number) {
                    self.sum.add(&buffer[done..done + got]);
                    if self.at + got as u64 == end && self.sum.finish() != wanted {
                        self.tar.changed.store(number, Ordering::Relaxed);
                    }
                }
            }
            done += got;
            self.at += got as u64;
        }
        Ok(())
    }
}

/// Keeps literal bytes and names in `file`, and returns what stands where.
fn table(of: &Ingredients, size: u64, file: &File) -> Result<Vec<Part>, Unusable> {
    let mut into = BufWriter::with_capacity(256 << 10, file);
    let (mut parts, mut at, mut kept, mut files) = (Vec::<Part>::new(), 0_u64, 0_u64, 0_u64);
    let wrong = |actual| Unusable::WrongSize { expected: size, actual };
    tar_split::read(of.lines(), |next| {
        let (bytes, len) = match next {
            Next::Literal(bytes) => (bytes, bytes.len() as u64),
            Next::File { name, size, .. } => (name, size),
        };
        let end = at.checked_add(len).filter(|end| *end <= size).ok_or_else(|| wrong(at.saturating_add(len)))?;
        match next {
            Next::Literal([]) => return Ok(()),
            Next::Literal(_) if parts.last().is_some_and(|last| last.name == 0) => {}
            Next::Literal(_) => parts.push(Part { at, kept, name: 0, sum: None }),
            Next::File { name, sum, .. } => {
                files += 1;
                // Each has a header before it.
                if files > size / HEADER {
                    return Err(Unusable::Files { size });
                }
                let name = u32::try_from(name.len()).ok().filter(|len| *len <= NAME_LIMIT);
                let name = name.ok_or(Unusable::Name(bytes.len()))?;
                parts.push(Part { at, kept, name, sum });
            }
        }
        into.write_all(bytes).map_err(Unusable::Keep)?;
        (at, kept) = (end, kept + bytes.len() as u64);
        Ok(())
    })?;
    if at != size {
        return Err(wrong(at));
    }
    into.flush().map_err(Unusable::Keep)?;
    drop(into);
    Ok(parts)
}

const HEADER: u64 = 512;
/// The longest path that a system call takes.
const NAME_LIMIT: u32 = 4096;
/// No layer is larger.
const SIZE_LIMIT: u64 = 1 << 50;
const BUFFER: usize = 64 << 10;
