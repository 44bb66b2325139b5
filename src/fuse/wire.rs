//! The kernel's FUSE protocol (`include/uapi/linux/fuse.h`, version 7.31 and up), as far as a read-only mount uses it:
//! parsing of requests, and layout of answers.
//!
//! Plain functions over byte slices: any bytes are either parsed or refused.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The longest request that is not a write: header, a name of 255 bytes, a little more. The kernel requires this much
/// room for each (`FUSE_MIN_READ_BUFFER`) and for the payload of a write, see [`MAX_WRITE`].
pub(super) const REQUEST_ROOM: usize = MAX_WRITE as usize + 8192;

/// The negotiated maximum size of writes. Nothing is ever written, but it also limits the size of a read request.
pub(super) const MAX_WRITE: u32 = 1 << 20;

/// `fuse_in_header`: the start of each request.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct InHeader {
    len: u32,
    opcode: u32,
    unique: u64,
    nodeid: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    total_extlen: u16,
    padding: u16,
}

/// `fuse_out_header`: the start of each answer.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    /// 0 or a negated errno; in a notification, its kind.
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// `fuse_notify_inval_inode_out`: bytes of an inode to drop from the cache; a length of 0 means all.
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct InvalidInode {
    pub(super) node: u64,
    pub(super) offset: i64,
    pub(super) length: i64,
}

/// One request.
#[derive(Debug, PartialEq)]
pub(super) struct Request<'a> {
    /// The kernel's number of the request, repeated in the answer.
    pub(super) unique: u64,
    /// The inode it is about.
    pub(super) node: u64,
    /// The requesting thread, by its number in the mount's pid namespace; 0 if it has none there.
    pub(super) thread: u32,
    /// The operation.
    pub(super) operation: Operation<'a>,
}

/// The operation; those with a fixed answer on a read-only mount are not distinguished.
#[derive(Debug, PartialEq)]
pub(super) enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget,
    BatchForget {
        nodes: &'a [u8],
    },
    GetAttr,
    ReadLink,
    Open,
    OpenDir,
    Read {
        offset: u64,
        size: u32,
    },
    ReadDir {
        offset: u64,
        size: u32,
    },
    ReadDirPlus {
        offset: u64,
        size: u32,
    },
    Release,
    ReleaseDir,
    Flush,
    StatFs,
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    Access {
        mask: u32,
    },
    Seek {
        offset: u64,
        whence: u32,
    },
    Ioctl,
    Interrupt {
        unique: u64,
    },
    Destroy,
    /// Another operation, by its number.
    Other(u32),
}

impl Operation<'_> {
    /// Its name, for status.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "lookup",
            Self::GetAttr => "getattr",
            Self::ReadLink => "readlink",
            Self::Open => "open",
            Self::Read { .. } => "read",
            Self::ReadDir { .. } | Self::ReadDirPlus { .. } => "readdir",
            Self::GetXattr { .. } => "getxattr",
            Self::ListXattr { .. } => "listxattr",
            Self::Seek { .. } => "lseek",
            Self::StatFs => "statfs",
            // They are answered at once.
            Self::Forget
            | Self::BatchForget { .. }
            | Self::OpenDir
            | Self::Release
            | Self::ReleaseDir
            | Self::Flush
            | Self::Access { .. }
            | Self::Ioctl
            | Self::Interrupt { .. }
            | Self::Destroy
            | Self::Other(_) => "other",
        }
    }
}

/// Bytes that are not a request. `unique` is set if an answer can be sent.
#[derive(Debug, PartialEq)]
pub(super) struct Malformed {
    pub(super) unique: Option<u64>,
}

impl<'a> Request<'a> {
    /// Parses what one read of the kernel returned.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = InHeader::read_from_prefix(bytes).map_err(|_| Malformed { unique: None })?;
        let malformed = || Malformed { unique: Some(header.unique) };
        if header.len as usize != bytes.len() {
            return Err(malformed());
        }
        // Extensions follow the arguments and are only sent if negotiated.
        let extensions = usize::from(header.total_extlen) * 8;
        let body = &rest[..rest.len().checked_sub(extensions).ok_or_else(malformed)?];
        let operation = operation(header.opcode, body).ok_or_else(malformed)?;
        Ok(Self { unique: header.unique, node: header.nodeid, thread: header.pid, operation })
    }
}

/// Whether these bytes are parsed as a request with all of its content; for fuzzing.
pub fn is_request(bytes: &[u8]) -> bool {
    let Ok(request) = Request::parse(bytes) else { return false };
    if let Operation::BatchForget { nodes } = request.operation {
        forgotten(nodes).for_each(drop);
    }
    true
}

fn operation(opcode: u32, body: &[u8]) -> Option<Operation<'_>> {
    Some(match opcode {
        1 => Operation::Lookup { name: name(body)? },
        2 => Operation::Forget,
        3 => Operation::GetAttr,
        5 => Operation::ReadLink,
        14 => Operation::Open,
        15 => read(body, |offset, size| Operation::Read { offset, size })?,
        17 => Operation::StatFs,
        18 => Operation::Release,
        22 => {
            let (size, rest) = xattr_size(body)?;
            Operation::GetXattr { name: name(rest)?, size }
        }
        23 => Operation::ListXattr { size: xattr_size(body)?.0 },
        25 => Operation::Flush,
        27 => Operation::OpenDir,
        28 => read(body, |offset, size| Operation::ReadDir { offset, size })?,
        29 => Operation::ReleaseDir,
        34 => Operation::Access { mask: u32_at(body, 0)? },
        36 => Operation::Interrupt { unique: u64_at(body, 0)? },
        38 => Operation::Destroy,
        39 => Operation::Ioctl,
        42 => Operation::BatchForget { nodes: body.get(8..)? },
        44 => read(body, |offset, size| Operation::ReadDirPlus { offset, size })?,
        46 => Operation::Seek { offset: u64_at(body, 8)?, whence: u32_at(body, 16)? },
        other => Operation::Other(other),
    })
}

/// The inodes of a batch of forgets (`fuse_forget_one`).
pub(super) fn forgotten(nodes: &[u8]) -> impl Iterator<Item = u64> {
    nodes.chunks_exact(16).filter_map(|one| u64_at(one, 0))
}

/// `fuse_read_in`
fn read<'a>(body: &[u8], make: impl Fn(u64, u32) -> Operation<'a>) -> Option<Operation<'a>> {
    Some(make(u64_at(body, 8)?, u32_at(body, 16)?))
}

/// `fuse_getxattr_in`, and what follows.
fn xattr_size(body: &[u8]) -> Option<(u32, &[u8])> {
    Some((u32_at(body, 0)?, body.get(8..)?))
}

/// A name that ends in a zero byte.
fn name(body: &[u8]) -> Option<&[u8]> {
    let end = body.iter().position(|byte| *byte == 0)?;
    Some(&body[..end])
}

fn u32_at(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(body: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(body.get(at..at + 8)?.try_into().ok()?))
}

/// `fuse_attr`
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub(super) struct Attr {
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: i64,
    pub(super) mtime: i64,
    pub(super) ctime: i64,
    pub(super) atimensec: u32,
    pub(super) mtimensec: u32,
    pub(super) ctimensec: u32,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) blksize: u32,
    pub(super) flags: u32,
}

/// `fuse_entry_out`: a node, and how many seconds its name and attributes may be cached.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct Entry {
    /// 0: the name does not exist.
    pub(super) nodeid: u64,
    pub(super) generation: u64,
    pub(super) entry_valid: u64,
    pub(super) attr_valid: u64,
    pub(super) entry_valid_nsec: u32,
    pub(super) attr_valid_nsec: u32,
    pub(super) attr: Attr,
}

/// `fuse_attr_out`
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) dummy: u32,
    pub(super) attr: Attr,
}

/// `fuse_open_out`: how an open file is read.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub(super) struct Opened {
    handle: u64,
    flags: u32,
    backing: u32,
}

impl Opened {
    /// Over the page cache, which stays valid, and without FLUSH.
    pub(super) fn cached() -> Self {
        const KEEP_CACHE: u32 = 1 << 1;
        Self { handle: 0, flags: KEEP_CACHE | Self::NOFLUSH, backing: 0 }
    }

    /// From a registered file.
    pub(super) fn passthrough(backing: u32) -> Self {
        const PASSTHROUGH: u32 = 1 << 7;
        Self { handle: 0, flags: PASSTHROUGH | Self::NOFLUSH, backing }
    }

    const NOFLUSH: u32 = 1 << 5;
}

/// `fuse_kstatfs`
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct StatFs {
    pub(super) blocks: u64,
    pub(super) bfree: u64,
    pub(super) bavail: u64,
    pub(super) files: u64,
    pub(super) ffree: u64,
    pub(super) bsize: u32,
    pub(super) namelen: u32,
    pub(super) frsize: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

/// `fuse_getxattr_out`: the length of a value, without the value.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct XattrSize {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// The entries of a directory, as many as fit the kernel's buffer.
#[derive(Debug)]
pub(super) struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    /// An empty listing of at most `room` bytes.
    pub(super) fn new(room: u32) -> Self {
        Self { bytes: Vec::new(), room: (room as usize).min(MAX_WRITE as usize) }
    }

    /// Adds a name (`fuse_dirent`); `false` if it does not fit. `next` is the position after it, `kind` the file type
    /// bits of a mode.
    pub(super) fn add(&mut self, node: u64, next: u64, kind: u32, name: &[u8]) -> bool {
        self.put(None, node, next, kind, name)
    }

    /// Adds a name with its attributes (`fuse_direntplus`).
    pub(super) fn add_plus(&mut self, entry: &Entry, next: u64, name: &[u8]) -> bool {
        self.put(Some(entry), entry.attr.ino, next, entry.attr.mode, name)
    }

    fn put(&mut self, entry: Option<&Entry>, node: u64, next: u64, mode: u32, name: &[u8]) -> bool {
        let entry = entry.map_or(&[][..], IntoBytes::as_bytes);
        let length = (entry.len() + DIRENT + name.len()).next_multiple_of(8);
        if self.bytes.len() + length > self.room {
            return false;
        }
        let end = self.bytes.len() + length;
        self.bytes.extend_from_slice(entry);
        self.bytes.extend_from_slice(&node.to_ne_bytes());
        self.bytes.extend_from_slice(&next.to_ne_bytes());
        self.bytes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        // DT_DIR and the like are the file type bits of a mode.
        self.bytes.extend_from_slice(&(mode >> 12 & 0xf).to_ne_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }

    /// Whether nothing has been added.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes of a `fuse_dirent` before the name.
const DIRENT: usize = 24;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: 7,
            nodeid: 1,
            uid: 0,
            gid: 0,
            pid: 1,
            total_extlen: 0,
            padding: 0,
        };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn sizes_are_the_kernels() {
        assert_eq!(
            [size_of::<InHeader>(), size_of::<OutHeader>(), size_of::<Attr>(), size_of::<Entry>()],
            [40, 16, 88, 128]
        );
        let others = [size_of::<AttrOut>(), size_of::<StatFs>(), size_of::<XattrSize>(), size_of::<Opened>()];
        assert_eq!(others, [104, 80, 8, 16]);
    }

    #[test]
    fn a_lookup_carries_a_name() {
        let bytes = request(1, b"etc\0");
        let expected = Request { unique: 7, node: 1, thread: 1, operation: Operation::Lookup { name: b"etc" } };
        assert_eq!(Request::parse(&bytes), Ok(expected));
    }

    #[test]
    fn a_name_without_its_end_is_refused_with_the_request_number() {
        assert_eq!(Request::parse(&request(1, b"etc")), Err(Malformed { unique: Some(7) }));
    }

    #[test]
    fn a_read_carries_offset_and_size() {
        let body = [7_u64.to_ne_bytes(), 4096_u64.to_ne_bytes(), 512_u64.to_ne_bytes()].concat();
        let operation = Operation::Read { offset: 4096, size: 512 };
        assert_eq!(Request::parse(&request(15, &body)).unwrap().operation, operation);
    }

    #[test]
    fn a_batch_of_forgets_names_its_nodes() {
        let body = [[2_u32, 0].as_bytes(), [5_u64, 1, 6, 3].as_bytes()].concat();
        let bytes = request(42, &body);
        let Operation::BatchForget { nodes } = Request::parse(&bytes).unwrap().operation else { panic!() };
        assert_eq!(forgotten(nodes).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn a_listing_ends_where_the_room_does() {
        let mut listing = Listing::new(70);
        assert!(listing.add(2, 1, 0o040_000, b"a"));
        assert!(listing.add(3, 2, 0o100_000, b"longer-b"));
        assert!(!listing.add(4, 3, 0o100_000, b"c"));
        assert_eq!(listing.as_bytes().len(), 64);
        assert_eq!(listing.as_bytes()[20], 4, "DT_DIR");
        assert_eq!(listing.as_bytes()[32 + 20], 8, "DT_REG");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_understood_or_refused(opcode in 0_u32..60, body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let bytes = request(opcode, &body);
            match Request::parse(&bytes) {
                Ok(request) => prop_assert_eq!(request.unique, 7),
                Err(malformed) => prop_assert_eq!(malformed.unique, Some(7)),
            }
            let _ = Request::parse(&body);
        }
    }
}
