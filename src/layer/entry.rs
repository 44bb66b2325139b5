//! Entries: one layer's record of one name.
//!
//! Memory and disk use the same record, so an entry has the same properties while its layer is read and later, and its
//! id stays valid.

use crate::offsets::{DecodedOffset, FileOffset};

/// Position of an entry in its layer: creation order, the root is 0. Never reused, kept on disk.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EntryId(pub u32);

impl EntryId {
    /// The layer's root directory.
    pub const ROOT: Self = Self(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// A directory, explicit or implied by a path below it.
    Directory = 1,
    /// A regular file, whole or sparse.
    File = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A character device node.
    CharDevice = 4,
    /// A block device node.
    BlockDevice = 5,
    /// A named pipe.
    Fifo = 6,
    /// A hard link to a path that this layer does not contain: content comes from a lower layer, ownership, mode and
    /// times from this one.
    LowerLink = 7,
    /// Hides one name of the lower layers; invisible itself.
    Whiteout = 8,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Directory,
            2 => Self::File,
            3 => Self::Symlink,
            4 => Self::CharDevice,
            5 => Self::BlockDevice,
            6 => Self::Fifo,
            7 => Self::LowerLink,
            8 => Self::Whiteout,
            _ => return None,
        })
    }
}

/// Further properties of an entry.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flags(pub(super) u16);

impl Flags {
    /// A directory without an entry of its own, needed as a parent: mode 0755, owner 0 and time 0 are defaults that a
    /// lower layer may correct.
    pub const IMPLIED: Self = Self(1);
    /// A directory that hides its content in lower layers.
    pub const OPAQUE: Self = Self(2);
    /// Hides its name in lower layers, because the layer also has a whiteout for it or replaced it. A directory with
    /// this flag is also [`Flags::OPAQUE`], except for a [`Flags::WHITEOUT_PATH`].
    pub const HIDES_LOWER: Self = Self(4);
    /// A file with holes; its content is a list of extents.
    pub const SPARSE: Self = Self(8);
    /// No longer in the tree: replaced later in the same layer. The id stays valid, since hard links or open files may
    /// refer to it.
    pub const DETACHED: Self = Self(16);
    /// A directory that only contains whiteouts and opaque markers of this layer. It exists only if a lower layer has a
    /// directory of its name. It is also [`Flags::IMPLIED`]; with [`Flags::HIDES_LOWER`] it is a whiteout itself.
    pub const WHITEOUT_PATH: Self = Self(32);

    /// Whether every flag of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) fn set(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn clear(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitAnd for Flags {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// A point in time; `nanos` counts forward from `seconds`, also before 1970.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// Numbers of a device node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// A data run of a sparse file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DataExtent {
    /// Offset in the file.
    pub file: FileOffset,
    /// Offset of its bytes in the layer.
    pub decoded: DecodedOffset,
    /// Length in bytes, not 0.
    pub len: u64,
}

/// A range of a file: bytes of the layer, or a hole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Extent {
    /// Range in the file.
    pub file: std::ops::Range<FileOffset>,
    /// Offset of its bytes in the layer; `None` for a hole.
    pub decoded: Option<DecodedOffset>,
}

/// The metadata of an entry, without name, target and extended attributes.
///
/// For a hard link: the metadata of the shared inode, with the link's own parent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    pub(super) record: Record,
}

impl Entry {
    /// The parent directory; the root's parent is the root.
    pub fn parent(&self) -> EntryId {
        EntryId(self.record.parent)
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.record.kind
    }

    /// Its flags.
    pub fn flags(&self) -> Flags {
        self.record.flags
    }

    /// Whether every flag of `flags` is set.
    pub fn is(&self, flags: Flags) -> bool {
        self.record.flags.has(flags)
    }

    /// Permission bits with set-id and sticky bits, no type bits.
    pub fn mode(&self) -> u16 {
        self.record.mode
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.record.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.record.gid
    }

    /// Time of last modification.
    pub fn mtime(&self) -> Timestamp {
        Timestamp { seconds: self.record.mtime, nanos: self.record.mtime_nanos }
    }

    /// Bytes of a file, or length of a symlink's target; 0 for others.
    pub fn size(&self) -> u64 {
        match self.record.kind {
            Kind::File | Kind::Symlink => self.record.a,
            _ => 0,
        }
    }

    /// Numbers of a device node.
    pub fn device(&self) -> Option<Device> {
        match self.record.kind {
            Kind::CharDevice | Kind::BlockDevice => Some(self.record.device()),
            _ => None,
        }
    }

    /// Offset of a file's bytes in the decoded stream, unless it is sparse.
    pub fn data(&self) -> Option<DecodedOffset> {
        let whole = self.record.kind == Kind::File && !self.is(Flags::SPARSE);
        whole.then_some(DecodedOffset(self.record.b))
    }

    /// The entry that carries the inode: itself, or for a hard link the first name.
    pub fn inode(&self) -> EntryId {
        EntryId(self.record.inode)
    }

    /// Number of names of the inode within this layer; 1 for a directory.
    pub fn nlink(&self) -> u32 {
        self.record.nlink
    }

    /// Whether it has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.record.xattrs != 0
    }
}

/// The stored form: 64 bytes on disk, in the order of the fields.
///
/// | kind | `a` | `b` |
/// |---|---|---|
/// | directory | children | first child (memory: entry id; disk: position in the children section) |
/// | file | size | decoded offset |
/// | sparse file | size | first extent, count in the upper half |
/// | symlink, lower link | target length | target position in the names |
/// | device | major in the upper half, minor | 0 |
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) parent: u32,
    pub(super) name_at: u32,
    pub(super) name_len: u8,
    pub(super) kind: Kind,
    pub(super) flags: Flags,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nanos: u32,
    /// Number of the attribute set, counted from 1; 0 for none.
    pub(super) xattrs: u32,
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) inode: u32,
    pub(super) nlink: u32,
}

impl Record {
    pub(super) const BYTES: usize = 64;

    /// A directory without an entry yet.
    pub(super) fn implied(parent: EntryId, id: EntryId) -> Self {
        Self {
            parent: parent.0,
            name_at: 0,
            name_len: 0,
            kind: Kind::Directory,
            flags: Flags::IMPLIED,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nanos: 0,
            xattrs: 0,
            a: 0,
            b: 0,
            inode: id.0,
            nlink: 1,
        }
    }

    pub(super) fn device(&self) -> Device {
        Device { major: (self.a >> 32) as u32, minor: self.a as u32 }
    }

    /// First extent and number of extents of a sparse file.
    pub(super) fn extent_run(&self) -> (u64, u64) {
        (self.b & 0xffff_ffff, self.b >> 32)
    }

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..4].copy_from_slice(&self.parent.to_le_bytes());
        out[4..8].copy_from_slice(&self.name_at.to_le_bytes());
        out[8] = self.name_len;
        out[9] = self.kind as u8;
        out[10..12].copy_from_slice(&self.flags.0.to_le_bytes());
        out[12..14].copy_from_slice(&self.mode.to_le_bytes());
        out[16..20].copy_from_slice(&self.uid.to_le_bytes());
        out[20..24].copy_from_slice(&self.gid.to_le_bytes());
        out[24..32].copy_from_slice(&self.mtime.to_le_bytes());
        out[32..36].copy_from_slice(&self.mtime_nanos.to_le_bytes());
        out[36..40].copy_from_slice(&self.xattrs.to_le_bytes());
        out[40..48].copy_from_slice(&self.a.to_le_bytes());
        out[48..56].copy_from_slice(&self.b.to_le_bytes());
        out[56..60].copy_from_slice(&self.inode.to_le_bytes());
        out[60..64].copy_from_slice(&self.nlink.to_le_bytes());
        out
    }

    /// `None` if the kind is unknown.
    pub(super) fn from_bytes(raw: &[u8; Self::BYTES]) -> Option<Self> {
        Some(Self {
            parent: le32(raw, 0),
            name_at: le32(raw, 4),
            name_len: raw[8],
            kind: Kind::from_byte(raw[9])?,
            flags: Flags(u16::from_le_bytes([raw[10], raw[11]])),
            mode: u16::from_le_bytes([raw[12], raw[13]]),
            uid: le32(raw, 16),
            gid: le32(raw, 20),
            mtime: le64(raw, 24) as i64,
            mtime_nanos: le32(raw, 32),
            xattrs: le32(raw, 36),
            a: le64(raw, 40),
            b: le64(raw, 48),
            inode: le32(raw, 56),
            nlink: le32(raw, 60),
        })
    }
}

/// The little-endian number at `at`, which must be in bounds.
pub(super) fn le32(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes were cut"))
}

/// The little-endian number at `at`, which must be in bounds.
pub(super) fn le64(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes were cut"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_survives_its_disk_form() {
        let record = Record {
            parent: 1,
            name_at: 0xfffe_0102,
            name_len: 255,
            kind: Kind::Symlink,
            flags: Flags::HIDES_LOWER | Flags::OPAQUE,
            mode: 0o7777,
            uid: u32::MAX - 1,
            gid: 7,
            mtime: -5,
            mtime_nanos: 999_999_999,
            xattrs: 3,
            a: u64::MAX,
            b: 1 << 40,
            inode: 9,
            nlink: 2,
        };
        assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record));
    }

    #[test]
    fn every_kind_has_its_own_byte() {
        for byte in 0..=255 {
            assert!(Kind::from_byte(byte).is_none_or(|kind| kind as u8 == byte));
        }
    }
}
