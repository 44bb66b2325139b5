//! A push-based tar walker that never buffers a body.
//!
//! Decoders return slices of their own window, split anywhere; a pull-based reader would need a copy of every byte or a
//! thread. This walker accepts any split and buffers at most one header.
//!
//! The validity and meaning of headers follow Go's `archive/tar`, since nearly every runtime unpacks images with it: a
//! tree that differs from theirs is wrong. The most important rules, each tested below:
//!
//! - Two zero blocks end the archive and the rest is ignored; the end of the stream ends it too, even inside padding; a
//!   single zero block before a header is an error.
//! - A PAX size replaces the header's size, always, but only for the entry it describes.
//! - Directories, links and device nodes have no body, whatever their size field says.
//! - Records of global headers apply to nothing; a global header drops pending local records.
//!
//! Two deviations: type `7` and old GNU sparse files are files, and an entry of an unregistered type is skipped and
//! counted, where containerd refuses the layer.

use std::fmt;

use crate::offsets::DecodedOffset;

use super::entry::{DataExtent, Device, Timestamp};
use super::pax::{PaxRecords, Xattr, parse_decimal, parse_numeric, parse_octal, parse_time, until_nul};
use super::sparse::{BodyMap, OldGnuMap, PaxMap, RawMap};

/// The block size of a tar.
pub(super) const BLOCK: usize = 512;
/// Limit for an extended header or long name, in bytes, as in Go.
const META_LIMIT: u64 = 1 << 20;

/// An entry of the tar. Names are not normalised.
#[derive(Clone, Debug)]
pub struct TarEntry<'a> {
    /// Offset of its header.
    pub at: DecodedOffset,
    /// Its path, any bytes.
    pub path: &'a [u8],
    /// Its kind.
    pub kind: TarKind<'a>,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name, no name twice.
    pub xattrs: &'a [Xattr],
}

/// The kind of a tar entry.
#[derive(Clone, Debug)]
pub enum TarKind<'a> {
    /// A regular file.
    File {
        /// Its size, holes included.
        size: u64,
        /// Offset of its stored bytes.
        data: DecodedOffset,
        /// The data runs, if it is sparse.
        extents: Option<&'a [DataExtent]>,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A hard link and its target path.
    HardLink(&'a [u8]),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// Receives the entries of a tar in order.
pub trait TarSink {
    /// Why an entry is refused.
    type Error;

    /// Receives the next entry. A file's bytes follow later.
    ///
    /// # Errors
    /// Any error ends the walk.
    fn accept(&mut self, entry: &TarEntry<'_>) -> Result<(), Self::Error>;
}

/// Summary of a finished walk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TarSummary {
    /// Entries passed to the sink.
    pub entries: u64,
    /// Skipped entries of unknown types.
    pub skipped: u64,
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub enum WalkError<E: std::error::Error + 'static> {
    /// The stream is not a usable tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The sink refused an entry.
    #[error("tar entry at offset {at} cannot be used")]
    Entry {
        /// Offset of the entry's header.
        at: DecodedOffset,
        /// The sink's reason.
        #[source]
        cause: E,
    },
}

/// A fault in a tar, with its offset.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("broken tar at offset {at}: {fault}")]
pub struct TarError {
    /// Offset of the faulty entry's header.
    pub at: DecodedOffset,
    /// The fault.
    pub fault: TarFault,
}

/// The faults of a tar.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TarFault {
    /// The checksum is wrong in both conventions.
    #[error("the header's checksum does not match")]
    Checksum,
    /// A single zero block is followed by other data.
    #[error("a single zero block is followed by more data")]
    LoneZeroBlock,
    /// A numeric field is not a number, or out of range.
    #[error("the header's {field} is not a usable number")]
    Number {
        /// The field's name.
        field: &'static str,
    },
    /// Header and body together reach beyond 2⁶⁴.
    #[error("the body reaches beyond the largest offset")]
    Overflow,
    /// An extended header exceeds the limit.
    #[error("an extended header has {size} bytes, the limit is {META_LIMIT}")]
    MetaTooLong {
        /// Its size in bytes.
        size: u64,
    },
    /// A PAX record is malformed.
    #[error("a PAX record is malformed")]
    PaxRecord,
    /// A PAX record's value cannot be used.
    #[error("the PAX record {key} has an unusable value")]
    PaxValue {
        /// The record's key.
        key: &'static str,
    },
    /// A sparse map is malformed or contradicts the file.
    #[error("the sparse map is malformed or does not fit the file")]
    SparseMap,
    /// The stream ends inside a header or body.
    #[error("the stream ends inside the entry")]
    Truncated,
    /// The walk was continued after an error.
    #[error("an earlier fault has ended the walk")]
    Ended,
}

/// Walks a tar that is pushed in pieces.
pub struct TarWalker {
    state: State,
    /// Offset of the next byte.
    position: u64,
    /// Offset of the current header.
    header_at: u64,
    block: Box<[u8; BLOCK]>,
    filled: usize,
    meta: Vec<u8>,
    pending: Pending,
    summary: TarSummary,
}

enum State {
    /// Collecting a header.
    Header,
    /// After one zero block; collecting the next block.
    AfterZero,
    /// Collecting the body of an extended header.
    Meta { kind: Meta, left: u64, pad: u64 },
    /// Collecting extension blocks of an old GNU sparse header.
    OldGnu { head: Box<Head>, map: OldGnuMap },
    /// Collecting the map in front of a PAX 1.0 sparse body.
    BodyMap { head: Box<Head>, map: BodyMap, left: u64 },
    /// Skipping a body and its padding.
    Body { left: u64, pad: u64 },
    /// The archive has ended.
    Done,
    /// A fault has ended the walk.
    Failed,
}

#[derive(Clone, Copy)]
enum Meta {
    Local,
    Global,
    LongName,
    LongLink,
}

/// Extended headers for the next entry.
#[derive(Default)]
struct Pending {
    pax: Option<PaxRecords>,
    name: Vec<u8>,
    link: Vec<u8>,
}

/// An entry with all its headers.
struct Head {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    device: Device,
    /// Bytes stored in the tar.
    stored: u64,
    /// Bytes of the file.
    size: u64,
    xattrs: Vec<Xattr>,
}

impl Default for TarWalker {
    fn default() -> Self {
        Self::new()
    }
}

impl TarWalker {
    /// A walker at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            position: 0,
            header_at: 0,
            block: Box::new([0; BLOCK]),
            filled: 0,
            meta: Vec::new(),
            pending: Pending::default(),
            summary: TarSummary::default(),
        }
    }

    /// Parses the next decoded bytes and passes complete entries to `sink`.
    ///
    /// # Errors
    /// A fault of the tar, or the sink's error. Nothing can be pushed afterwards.
    pub fn push<S>(&mut self, decoded: &[u8], sink: &mut S) -> Result<(), WalkError<S::Error>>
    where
        S: TarSink,
        S::Error: std::error::Error + 'static,
    {
        let mut rest = decoded;
        while !rest.is_empty() {
            if let Err(error) = self.step(&mut rest, sink) {
                self.state = State::Failed;
                return Err(match error {
                    Stop::Fault(fault) => TarError { at: DecodedOffset(self.header_at), fault }.into(),
                    Stop::Sink(cause) => WalkError::Entry { at: DecodedOffset(self.header_at), cause },
                });
            }
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`TarFault::Truncated`] if it ends inside a header or a body. A missing end-of-archive marker or padding is no
    /// fault: real tools write such layers.
    pub fn finish(self) -> Result<TarSummary, TarError> {
        let fault = match self.state {
            State::Header | State::AfterZero if self.filled == 0 => return Ok(self.summary),
            State::Body { left: 0, .. } | State::Meta { left: 0, .. } | State::Done => return Ok(self.summary),
            State::Failed => TarFault::Ended,
            _ => TarFault::Truncated,
        };
        Err(TarError { at: DecodedOffset(self.header_at), fault })
    }

    /// Number of decoded bytes so far.
    pub fn position(&self) -> DecodedOffset {
        DecodedOffset(self.position)
    }

    fn step<S: TarSink>(&mut self, rest: &mut &[u8], sink: &mut S) -> Result<(), Stop<S::Error>> {
        match &mut self.state {
            State::Done => {
                let all = rest.len() as u64;
                self.take(rest, all)?;
            }
            State::Failed => return Err(TarFault::Ended.into()),
            State::Body { left, pad } => {
                let (left, pad) = (*left, *pad);
                let taken = self.take(rest, left.saturating_add(pad))?;
                let (from_body, from_pad) = (taken.min(left), taken - taken.min(left));
                self.state = match (left - from_body, pad - from_pad) {
                    (0, 0) => State::Header,
                    (left, pad) => State::Body { left, pad },
                };
            }
            State::Meta { left, .. } => {
                let take = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                self.meta.extend_from_slice(&rest[..take]);
                *left -= take as u64;
                let done = *left == 0;
                self.take(rest, take as u64)?;
                if done {
                    self.finish_meta()?;
                }
            }
            State::Header | State::AfterZero | State::OldGnu { .. } | State::BodyMap { .. } => {
                if self.filled == 0 && matches!(self.state, State::Header) {
                    self.header_at = self.position;
                }
                let take = rest.len().min(BLOCK - self.filled);
                self.block[self.filled..self.filled + take].copy_from_slice(&rest[..take]);
                self.filled += take;
                self.take(rest, take as u64)?;
                if self.filled == BLOCK {
                    self.filled = 0;
                    self.block(sink)?;
                }
            }
        }
        Ok(())
    }

    /// Skips up to `limit` bytes of `rest`.
    fn take(&mut self, rest: &mut &[u8], limit: u64) -> Result<u64, TarFault> {
        let taken = rest.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        *rest = &rest[taken..];
        self.position = self.position.checked_add(taken as u64).ok_or(TarFault::Overflow)?;
        Ok(taken as u64)
    }

    /// Handles a complete block in a state that collects blocks.
    fn block<S: TarSink>(&mut self, sink: &mut S) -> Result<(), Stop<S::Error>> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header if is_zero(&self.block) => self.state = State::AfterZero,
            State::Header => self.header(sink)?,
            State::AfterZero if is_zero(&self.block) => self.state = State::Done,
            State::AfterZero => return Err(TarFault::LoneZeroBlock.into()),
            State::OldGnu { head, mut map } => {
                if map.extension(&self.block)? {
                    self.state = State::OldGnu { head, map };
                } else {
                    let stored = head.stored;
                    self.emit_sparse(&head, &map.finish(), stored, sink)?;
                }
            }
            State::BodyMap { head, mut map, left } => match map.feed(&self.block)? {
                Some(map) => self.emit_sparse(&head, &map, left, sink)?,
                None => {
                    let left = left.checked_sub(BLOCK as u64).ok_or(TarFault::SparseMap)?;
                    self.state = State::BodyMap { head, map, left };
                }
            },
            State::Meta { .. } | State::Body { .. } | State::Done | State::Failed => {
                unreachable!("these states collect no blocks")
            }
        }
        Ok(())
    }

    fn header<S: TarSink>(&mut self, sink: &mut S) -> Result<(), Stop<S::Error>> {
        let header = Header::parse(&self.block)?;
        let meta = match header.kind {
            b'x' => Meta::Local,
            b'g' => Meta::Global,
            b'L' => Meta::LongName,
            b'K' => Meta::LongLink,
            _ => return self.file(header, sink),
        };
        let size = u64::try_from(header.size).map_err(|_| TarFault::Number { field: "size" })?;
        if size > META_LIMIT {
            return Err(TarFault::MetaTooLong { size }.into());
        }
        self.meta.clear();
        self.state = State::Meta { kind: meta, left: size, pad: padding(size) };
        if size == 0 {
            self.finish_meta()?;
        }
        Ok(())
    }

    fn finish_meta(&mut self) -> Result<(), TarFault> {
        let State::Meta { kind, pad, .. } = self.state else { unreachable!("only called in this state") };
        match kind {
            Meta::Local => self.pending.pax = Some(PaxRecords::parse(&self.meta)?),
            Meta::Global => {
                PaxRecords::parse(&self.meta)?;
                self.pending = Pending::default();
            }
            Meta::LongName => self.pending.name = until_nul(&self.meta).to_vec(),
            Meta::LongLink => self.pending.link = until_nul(&self.meta).to_vec(),
        }
        self.state = if pad == 0 { State::Header } else { State::Body { left: 0, pad } };
        Ok(())
    }

    /// Handles a header that describes an entry.
    fn file<S: TarSink>(&mut self, header: Header, sink: &mut S) -> Result<(), Stop<S::Error>> {
        let pending = std::mem::take(&mut self.pending);
        let (mut head, sparse) = Head::new(header, pending)?;
        let known = matches!(head.kind, b'0' | b'7' | b'S' | b'1'..=b'6');
        if !known {
            self.summary.skipped += 1;
            return Ok(self.body(head.stored)?);
        }
        if head.kind == b'S' {
            if !is_gnu(&self.block) {
                // star uses the same type for another layout.
                return Err(TarFault::SparseMap.into());
            }
            head.size = size_of(parse_numeric(&self.block[483..495]))?;
            let mut map = OldGnuMap::default();
            if map.header(&self.block)? {
                self.state = State::OldGnu { head: Box::new(head), map };
                return Ok(());
            }
            let stored = head.stored;
            return self.emit_sparse(&head, &map.finish(), stored, sink);
        }
        let map = match sparse {
            Some(_) if !has_body(head.kind) => return Err(TarFault::SparseMap.into()),
            None => {
                let stored = head.stored;
                self.emit(&head, None, stored, sink)?;
                return Ok(self.body(stored)?);
            }
            Some(map) => map,
        };
        match map {
            PaxMap::Here(map) => {
                let stored = head.stored;
                self.emit_sparse(&head, &map, stored, sink)
            }
            PaxMap::InBody => {
                let left = head.stored.checked_sub(BLOCK as u64).ok_or(TarFault::SparseMap)?;
                self.state = State::BodyMap { head: Box::new(head), map: BodyMap::default(), left };
                Ok(())
            }
        }
    }

    /// Emits a sparse file whose remaining `stored` bytes begin at the current position.
    fn emit_sparse<S: TarSink>(
        &mut self,
        head: &Head,
        map: &RawMap,
        stored: u64,
        sink: &mut S,
    ) -> Result<(), Stop<S::Error>> {
        self.position.checked_add(stored).ok_or(TarFault::Overflow)?;
        let extents = map.place(head.size, DecodedOffset(self.position), stored)?;
        self.emit(head, Some(&extents), stored, sink)?;
        Ok(self.body(stored)?)
    }

    fn emit<S: TarSink>(
        &mut self,
        head: &Head,
        extents: Option<&[DataExtent]>,
        stored: u64,
        sink: &mut S,
    ) -> Result<(), Stop<S::Error>> {
        self.position.checked_add(stored).ok_or(TarFault::Overflow)?;
        let kind = match head.kind {
            b'1' => TarKind::HardLink(&head.link),
            b'2' => TarKind::Symlink(&head.link),
            b'3' => TarKind::CharDevice(head.device),
            b'4' => TarKind::BlockDevice(head.device),
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            _ => TarKind::File { size: head.size, data: DecodedOffset(self.position), extents },
        };
        let entry = TarEntry {
            at: DecodedOffset(self.header_at),
            path: &head.name,
            kind,
            mode: head.mode,
            uid: head.uid,
            gid: head.gid,
            mtime: head.mtime,
            xattrs: &head.xattrs,
        };
        sink.accept(&entry).map_err(Stop::Sink)?;
        self.summary.entries += 1;
        Ok(())
    }

    fn body(&mut self, stored: u64) -> Result<(), TarFault> {
        let pad = padding(stored);
        self.position.checked_add(stored).and_then(|end| end.checked_add(pad)).ok_or(TarFault::Overflow)?;
        if stored + pad > 0 {
            self.state = State::Body { left: stored, pad };
        }
        Ok(())
    }
}

impl fmt::Debug for TarWalker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TarWalker").field("position", &self.position).field("summary", &self.summary).finish()
    }
}

enum Stop<E> {
    Fault(TarFault),
    Sink(E),
}

impl<E> From<TarFault> for Stop<E> {
    fn from(fault: TarFault) -> Self {
        Self::Fault(fault)
    }
}

impl Head {
    /// Combines a header with the extended headers before it.
    fn new(header: Header, pending: Pending) -> Result<(Self, Option<PaxMap>), TarFault> {
        let mut pax = pending.pax.unwrap_or_default();
        let mut name = or(std::mem::take(&mut pax.path), header.name);
        let mut link = or(std::mem::take(&mut pax.linkpath), header.link);
        let uid = pax_number(&pax.uid, "uid")?.unwrap_or(header.uid);
        let gid = pax_number(&pax.gid, "gid")?.unwrap_or(header.gid);
        let size = pax_number(&pax.size, "size")?.unwrap_or(header.size);
        let mtime = match pax.mtime.as_slice() {
            [] => Timestamp { seconds: header.mtime, nanos: 0 },
            text => parse_time(text)?,
        };
        pax.check_unused_times()?;
        name = or(pending.name, name);
        link = or(pending.link, link);
        let kind = match header.kind {
            // Archives older than ustar mark directories with a trailing slash.
            0 if name.ends_with(b"/") => b'5',
            0 => b'0',
            kind => kind,
        };
        let stored = if has_body(kind) { size_of(Some(size))? } else { 0 };
        let mut full = stored;
        let mut map = None;
        if kind != b'S' {
            map = pax.sparse.map()?;
            if map.is_some() {
                name = or(std::mem::take(&mut pax.sparse.name), name);
                if let Some(size) = pax.sparse.file_size()? {
                    full = size_of(Some(size))?;
                }
            }
        }
        let device = match kind {
            b'3' | b'4' => Device {
                major: u32::try_from(header.major).map_err(|_| TarFault::Number { field: "device number" })?,
                minor: u32::try_from(header.minor).map_err(|_| TarFault::Number { field: "device number" })?,
            },
            _ => Device { major: 0, minor: 0 },
        };
        let head = Self {
            name,
            link,
            kind,
            mode: (header.mode & 0o7777) as u16,
            uid: owner(uid, "owner")?,
            gid: owner(gid, "group")?,
            mtime,
            device,
            stored,
            size: full,
            xattrs: pax.xattrs,
        };
        Ok((head, map))
    }
}

/// The fields of one header block, without extended headers.
struct Header {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: i64,
    uid: i64,
    gid: i64,
    size: i64,
    mtime: i64,
    major: i64,
    minor: i64,
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> Result<Self, TarFault> {
        check_sum(block)?;
        let number =
            |range: std::ops::Range<usize>, field| parse_numeric(&block[range]).ok_or(TarFault::Number { field });
        let mut header = Self {
            name: until_nul(&block[..100]).to_vec(),
            link: until_nul(&block[157..257]).to_vec(),
            kind: block[156],
            mode: number(100..108, "mode")?,
            uid: number(108..116, "owner")?,
            gid: number(116..124, "group")?,
            size: number(124..136, "size")?,
            mtime: number(136..148, "mtime")?,
            major: 0,
            minor: 0,
        };
        let ustar = &block[257..263] == b"ustar\0";
        if !ustar && !is_gnu(block) {
            return Ok(header);
        }
        header.major = number(329..337, "device number")?;
        header.minor = number(337..345, "device number")?;
        let prefix = if ustar && &block[508..512] == b"tar\0" {
            number(476..488, "atime")?;
            number(488..500, "ctime")?;
            until_nul(&block[345..476])
        } else if ustar {
            until_nul(&block[345..500])
        } else {
            gnu_prefix(block)
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }
}

/// GNU headers have times where ustar has the prefix. Old Go versions wrote a prefix there, so Go reads one if the
/// times are invalid and the text is ASCII.
fn gnu_prefix(block: &[u8; BLOCK]) -> &[u8] {
    let time_is_sane = |field: &[u8]| field[0] == 0 || parse_numeric(field).is_some();
    if time_is_sane(&block[345..357]) && time_is_sane(&block[357..369]) {
        return &[];
    }
    let prefix = until_nul(&block[345..500]);
    if prefix.is_ascii() { prefix } else { &[] }
}

/// The checksum counts its own field as blanks; historic tools summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), TarFault> {
    // Sums everything and corrects afterwards, so that the loop is vectorised.
    let unsigned = |bytes: &[u8]| bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>();
    let signed = |bytes: &[u8]| bytes.iter().map(|&byte| i32::from(byte as i8)).sum::<i32>();
    let (field, blanks) = (&block[148..156], 8 * i32::from(b' '));
    let unsigned = i64::from(unsigned(block) - unsigned(field) + blanks);
    let signed = i64::from(signed(block) - signed(field) + blanks);
    match parse_octal(&block[148..156]) {
        Some(sum) if sum == unsigned || sum == signed => Ok(()),
        _ => Err(TarFault::Checksum),
    }
}

fn is_gnu(block: &[u8; BLOCK]) -> bool {
    &block[257..265] == b"ustar  \0"
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

/// Links, devices, directories and pipes have no body, whatever their size field says.
fn has_body(kind: u8) -> bool {
    !matches!(kind, b'1'..=b'6')
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn or(first: Vec<u8>, second: Vec<u8>) -> Vec<u8> {
    if first.is_empty() { second } else { first }
}

fn pax_number(text: &[u8], key: &'static str) -> Result<Option<i64>, TarFault> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_decimal(text).map(Some).ok_or(TarFault::PaxValue { key })
}

fn size_of(size: Option<i64>) -> Result<u64, TarFault> {
    size.and_then(|size| u64::try_from(size).ok()).ok_or(TarFault::Number { field: "size" })
}

/// An owner as the kernel treats it: 32 bits, negative values wrap (-2 is `nobody`), and -1, which chown treats as
/// "unchanged", is root.
fn owner(id: i64, field: &'static str) -> Result<u32, TarFault> {
    if id == -1 || id == i64::from(u32::MAX) {
        return Ok(0);
    }
    u32::try_from(id).or_else(|_| i32::try_from(id).map(|id| id as u32)).map_err(|_| TarFault::Number { field })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Dice, Listing, Tar, everything, list, tree, walk};
    use super::*;

    const FILE: &str = "644 1:2 100.000000000";

    fn fault(tar: &[u8]) -> TarFault {
        match list(tar) {
            Err(WalkError::Tar(error)) => error.fault,
            other => panic!("expected a fault, got {other:?}"),
        }
    }

    #[test]
    fn every_feature_is_read() {
        let lines = list(&everything()).unwrap();
        let wanted = [
            "./ dir 700 1:2 100.000000000",
            "etc/ dir 700 1:2 100.000000000",
            "etc/passwd file 700@2560 644 1:2 100.000000000",
            "etc/empty file 0@4096 644 1:2 100.000000000",
            "etc/\\xff-name file 4@5632 644 1:2 -2.750000000 security.capability=\\x01\\x00\\x00\\x02 user.b=\\x00\\n=",
            "lib symlink usr/lib 644 1:2 100.000000000",
            "lib/a.so file 3@7168 644 1:2 100.000000000",
            "etc/shadow hard etc/passwd 644 1:2 100.000000000",
            "lower hard bin/outside 644 1:2 100.000000000",
        ];
        assert_eq!(lines[..wanted.len()], wanted);
        let rest = [
            &format!("{} symlink {} {FILE}", "n".repeat(200), "t".repeat(300)),
            "dev/null char 1:3 644 1:2 100.000000000",
            "fifo fifo 644 1:2 100.000000000",
            "old-sparse sparse 64 [2+5@13312 18+3@13317] 644 1:2 100.000000000",
            "new-sparse sparse 5000 [4000+4@15872] 644 1:2 100.000000000",
            "gone/.wh.deleted file 0@16896 644 1:2 100.000000000",
            "var/.wh..wh..opq file 0@17408 644 1:2 100.000000000",
            "var/cache/x file 1@17920 644 1:2 100.000000000",
            "last file 3@19968 644 1:2 100.000000000",
        ];
        assert_eq!(lines[wanted.len()..], rest);
        let summary = walk(&everything(), &mut Listing::default()).unwrap();
        assert_eq!(summary, TarSummary { entries: 18, skipped: 1 });
    }

    #[test]
    fn headers_of_every_age_are_read() {
        let v7 = Tar::default().header(0, b"old/", 5, |block| block[257..].fill(0)).file("new", b"");
        let prefix = Tar::default().header(b'0', b"name", 0, |block| block[345..351].copy_from_slice(b"prefix"));
        let star = Tar::default().header(b'0', b"name", 0, |block| {
            block[345..351].copy_from_slice(b"prefix");
            block[476..500].copy_from_slice(b"00000000000\x0000000000000\0");
            block[508..512].copy_from_slice(b"tar\0");
        });
        let contiguous = Tar::default().header(b'7', b"file", 1, |_| {}).padded(b"x");
        let base_256 = Tar::default().header(b'0', b"file", 0, |block| {
            block[136..148].copy_from_slice(&[&[0xff; 11][..], &[0xfe]].concat());
            block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xee, 0, 0, 0]);
        });
        let table = [
            (v7, vec![format!("old/ dir {FILE}"), format!("new file 0@1024 {FILE}")]),
            (prefix, vec![format!("prefix/name file 0@512 {FILE}")]),
            (star, vec![format!("prefix/name file 0@512 {FILE}")]),
            (contiguous, vec![format!("file file 1@512 {FILE}")]),
            (base_256, vec!["file file 0@512 644 3992977408:2 -2.000000000".into()]),
        ];
        for (tar, wanted) in table {
            assert_eq!(list(&tar.end()).unwrap(), wanted);
        }
    }

    #[test]
    fn both_checksums_are_accepted() {
        let mut tar = Tar::default().file("caf\u{e9}", b"").0;
        let signed: i64 = (0..512).map(|at| if (148..156).contains(&at) { 32 } else { i64::from(tar[at] as i8) }).sum();
        tar[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        assert_eq!(list(&tar).unwrap().len(), 1);
        tar[0] ^= 1;
        assert_eq!(fault(&tar), TarFault::Checksum);
    }

    #[test]
    fn stream_may_end_where_go_lets_it() {
        let whole = Tar::default().file("a", b"12345").file("b", b"12345");
        assert_eq!(list(&whole.0).unwrap().len(), 2, "no end mark");
        assert_eq!(list(&whole.0[..1024 + 512 + 5]).unwrap().len(), 2, "last file not padded");
        assert_eq!(list(&whole.0[..1024 + 512 + 9]).unwrap().len(), 2, "padding cut");
        assert_eq!(list(&whole.clone().raw(&[0; 512]).0).unwrap().len(), 2, "one zero block");
        assert_eq!(list(&whole.clone().raw(&[0; 1024]).raw(b"junk").0).unwrap().len(), 2, "bytes after the end");
        assert_eq!(list(&[]).unwrap().len(), 0, "nothing at all");
        assert_eq!(list(&Tar::default().pax(&[("path", b"x")]).0).unwrap().len(), 0, "only an extended header");
        assert_eq!(fault(&whole.0[..1024 + 512 + 4]), TarFault::Truncated);
        assert_eq!(fault(&whole.0[..100]), TarFault::Truncated);
        assert_eq!(fault(&Tar::default().pax(&[("path", b"x")]).0[..520]), TarFault::Truncated);
        assert_eq!(fault(&whole.clone().raw(&[0; 700]).0), TarFault::Truncated);
        let more = whole.clone().raw(&[0; 512]).file("c", b"");
        assert_eq!(fault(&more.0), TarFault::LoneZeroBlock);
    }

    #[test]
    fn faults_name_the_header_they_are_in() {
        let tar = Tar::default().file("a", b"x").pax(&[("uid", b"many")]).file("b", b"").end();
        let error = list(&tar).unwrap_err();
        assert_eq!(error.to_string(), "broken tar at offset 2048: the PAX record uid has an unusable value");
    }

    #[test]
    fn pax_size_wins_for_its_entry_only() {
        // TARmageddon: a reader that uses the header's size 0 would find an archive in the body.
        let inner = Tar::default().file("inner", b"").0;
        let tar = Tar::default()
            .pax(&[("size", inner.len().to_string().as_bytes())])
            .header(b'0', b"outer", 0, |_| {})
            .padded(&inner)
            .file("after", b"");
        assert_eq!(
            list(&tar.end()).unwrap(),
            [format!("outer file 512@1536 {FILE}"), format!("after file 0@2560 {FILE}")]
        );
        let tar = Tar::default().pax(&[("size", b"1")]).pax(&[("path", b"x")]).file("a", b"");
        assert_eq!(list(&tar.end()).unwrap(), [format!("x file 0@2560 {FILE}")], "the last extended header replaces");
    }

    #[test]
    fn global_records_apply_to_nothing() {
        let tar = Tar::default()
            .pax(&[("path", b"lost")])
            .extended(b'g', &[("path", b"global"), ("size", b"512"), ("uid", b"9")])
            .file("a", b"")
            .file("b", b"");
        assert_eq!(list(&tar.end()).unwrap().len(), 2);
        let broken = Tar::default().header(b'g', b"x", 3, |_| {}).padded(b"???");
        assert_eq!(fault(&broken.end()), TarFault::PaxRecord);
    }

    #[test]
    fn bodies_of_links_and_directories_do_not_exist() {
        for kind in b'1'..=b'6' {
            let tar = Tar::default().header(kind, b"a", 512, |_| {}).file("b", b"");
            assert_eq!(list(&tar.end()).unwrap().len(), 2, "{}", char::from(kind));
        }
    }

    #[test]
    fn long_names_win_over_pax_and_empty_values_over_nothing() {
        let tar =
            Tar::default().header(b'L', b"l", 5, |_| {}).padded(b"long\0").pax(&[("path", b"pax")]).file("a", b"");
        assert_eq!(list(&tar.end()).unwrap(), [format!("long file 0@2560 {FILE}")]);
        let tar = Tar::default().pax(&[("path", b"x"), ("path", b""), ("uid", b"")]).file("a", b"");
        assert_eq!(list(&tar.end()).unwrap(), [format!("a file 0@1536 {FILE}")]);
    }

    #[test]
    fn pax_sparse_files_of_every_format_agree() {
        let numbers: [(&str, &[u8]); 4] = [
            ("GNU.sparse.offset", b"2"),
            ("GNU.sparse.numbytes", b"5"),
            ("GNU.sparse.offset", b"18"),
            ("GNU.sparse.numbytes", b"3"),
        ];
        let format_0_0 = [&[("GNU.sparse.size", &b"25"[..]), ("GNU.sparse.numblocks", b"2")], &numbers[..]].concat();
        let format_0_1: [(&str, &[u8]); 3] =
            [("GNU.sparse.size", b"25"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"2,5,18,3")];
        for records in [&format_0_0[..], &format_0_1] {
            let tar = Tar::default().pax(records).file("a", b"abcdefgh").file("b", b"");
            let lines = list(&tar.end()).unwrap();
            assert_eq!(lines[0], format!("a sparse 25 [2+5@1536 18+3@1541] {FILE}"));
            assert_eq!(lines.len(), 2);
        }
        let wrong: [(&str, &[u8]); 3] =
            [("GNU.sparse.size", b"25"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"2,5,18,3")];
        assert_eq!(fault(&Tar::default().pax(&wrong).file("a", b"abcdefgh").end()), TarFault::SparseMap);
        let dir = Tar::default().pax(&format_0_1).dir("a");
        assert_eq!(fault(&dir.end()), TarFault::SparseMap);
    }

    #[test]
    fn headers_that_lie_are_errors() {
        let number = |field| TarFault::Number { field };
        let edit = |range: std::ops::Range<usize>, text: &'static [u8]| {
            fault(&Tar::default().header(b'0', b"a", 0, |block| block[range].copy_from_slice(text)).end())
        };
        assert_eq!(edit(124..136, b"0000000000x\0"), number("size"));
        assert_eq!(edit(124..136, &[0xff; 12]), number("size"));
        assert_eq!(edit(136..148, b"9999\0\0\0\0\0\0\0\0"), number("mtime"));
        assert_eq!(edit(108..116, &[0x80, 0, 0, 1, 0, 0, 0, 0]), number("owner"));
        let huge = Tar::default().pax(&[("size", b"9223372036854775807")]).file("a", b"").0;
        assert_eq!(fault(&huge), TarFault::Truncated);
        let long = Tar::default().header(b'x', b"a", META_LIMIT + 1, |_| {}).end();
        assert_eq!(fault(&long), TarFault::MetaTooLong { size: META_LIMIT + 1 });
        let negative = Tar::default().pax(&[("size", b"-1")]).file("a", b"").end();
        assert_eq!(fault(&negative), number("size"));
    }

    #[test]
    fn sizes_at_the_end_of_the_ruler_do_not_overflow() {
        let mut walker = TarWalker::new();
        walker.position = u64::MAX - 1024;
        let tar = Tar::default().header(b'0', b"a", 0o7_777_777_777, |_| {}).0;
        let error = walker.push(&tar, &mut Listing::default()).unwrap_err();
        assert!(matches!(error, WalkError::Tar(TarError { fault: TarFault::Overflow, .. })), "{error:?}");
        let again = walker.push(&tar, &mut Listing::default()).unwrap_err();
        assert!(matches!(again, WalkError::Tar(TarError { fault: TarFault::Ended, .. })), "{again:?}");
    }

    #[test]
    fn mutated_tars_never_panic() {
        let whole = everything();
        let mut dice = Dice(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..6000 {
            let mut tar = whole.clone();
            for _ in 0..1 + dice.roll(4) {
                let at = dice.roll(tar.len());
                match dice.roll(4) {
                    0 => tar[at] = dice.roll(256) as u8,
                    1 => tar[at] ^= 1 << dice.roll(8),
                    2 => tar.truncate(at.max(1)),
                    _ => drop(tar.splice(at..at, std::iter::repeat_n(b'7', dice.roll(600)))),
                }
            }
            // Half of them get valid checksums again, so that deeper checks are reached.
            if dice.roll(2) == 0 {
                for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            match tree(&tar) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
        assert!(good > 500 && bad > 500, "{good} {bad}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_split_gives_the_same_entries(cuts in proptest::collection::vec(0_usize..20_480, 0..60)) {
            let tar = everything();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(tar.len())).collect();
            cuts.extend([0, tar.len()]);
            cuts.sort_unstable();
            let mut walker = TarWalker::new();
            let mut listing = Listing::default();
            for pair in cuts.windows(2) {
                walker.push(&tar[pair[0]..pair[1]], &mut listing).unwrap();
            }
            walker.finish().unwrap();
            prop_assert_eq!(listing.0, list(&tar).unwrap());
        }
    }

    #[test]
    fn byte_by_byte_gives_the_same_entries() {
        let tar = everything();
        let mut walker = TarWalker::new();
        let mut listing = Listing::default();
        for byte in &tar {
            walker.push(std::slice::from_ref(byte), &mut listing).unwrap();
        }
        assert_eq!(listing.0, list(&tar).unwrap());
    }
}
