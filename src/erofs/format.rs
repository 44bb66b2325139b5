//! The on-disk format, as far as it is used: EROFS with extended inodes, blocks of 512 bytes, chunk-based files and a
//! table of extra devices (kernel, `fs/erofs/erofs_fs.h`; `docs/formats.md`).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::layer::Kind;

/// Bytes of a block: file bodies in a tar begin at multiples of it.
pub(super) const BLOCK: u64 = 512;
pub(super) const BLOCK_BITS: u8 = 9;
/// Offset of the superblock.
pub(super) const SUPER_AT: u64 = 1024;
/// Offset of the device table, directly after it.
pub(super) const DEVICES_AT: u64 = SUPER_AT + size_of::<SuperBlock>() as u64;
/// Inode numbers count units of this many bytes.
pub(super) const INODE_PLACE: u64 = 32;
/// Shared attributes are addressed in units of this many bytes.
pub(super) const XATTR_UNIT: u64 = 4;
/// The address of a missing block: a hole.
pub(super) const NO_BLOCK: u32 = u32::MAX;
/// A chunk's size in blocks is two to the power of at most this.
pub(super) const CHUNK_BITS_MAX: u8 = 31;
/// Limit of extra devices.
pub(super) const DEVICES_MAX: usize = u16::MAX as usize;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// The times of inodes are modification times.
pub(super) const COMPAT_MTIME: u32 = 2;
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 4;
pub(super) const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// `erofs_super_block`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) block_bits: u8,
    pub(super) extension_slots: u8,
    pub(super) root: U16,
    pub(super) inodes: U64,
    pub(super) build_time: U64,
    pub(super) build_time_nanos: U32,
    pub(super) blocks: U32,
    pub(super) meta_block: U32,
    pub(super) xattr_block: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    pub(super) compression: U16,
    pub(super) extra_devices: U16,
    pub(super) devices_at: U16,
    pub(super) rest: [u8; 38],
}

/// `erofs_deviceslot`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct DeviceSlot {
    /// Free text: here the start of the layer's diff_id.
    pub(super) tag: [u8; 64],
    pub(super) blocks: U32,
    pub(super) mapped_block: U32,
    pub(super) rest: [u8; 56],
}

/// `erofs_inode_extended`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct Inode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    /// First block, device number, or format of chunks.
    pub(super) place: U32,
    /// For 32-bit `stat`.
    pub(super) number: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: U64,
    pub(super) mtime_nanos: U32,
    pub(super) nlink: U32,
    pub(super) rest: [u8; 16],
}

/// `erofs_xattr_ibody_header`; followed by the numbers of shared attributes, and by attributes of this inode alone.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct XattrHeader {
    pub(super) filter: U32,
    pub(super) shared: u8,
    pub(super) rest: [u8; 7],
}

/// `erofs_xattr_entry`; followed by the name, without its prefix, and the value.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct XattrHead {
    pub(super) name_len: u8,
    pub(super) prefix: u8,
    pub(super) value_size: U16,
}

/// `erofs_inode_chunk_index`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct ChunkIndex {
    pub(super) advise: U16,
    /// 0 is the image itself.
    pub(super) device: U16,
    pub(super) block: U32,
}

/// `erofs_dirent`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) inode: U64,
    pub(super) name_at: U16,
    pub(super) kind: u8,
    pub(super) rest: u8,
}

/// Where an inode's data is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Layout {
    /// In contiguous blocks.
    Plain = 0,
    /// The same, except for the tail, which follows the inode.
    Inline = 2,
    /// In a table of chunks, which follows the inode.
    Chunks = 4,
}

impl Layout {
    /// Its encoding in an extended inode.
    pub(super) fn format(self) -> U16 {
        U16::new((self as u16) << 1 | 1)
    }
}

/// The `place` of an inode of files with chunks of `2^bits` blocks.
pub(super) fn chunk_format(bits: u8) -> U32 {
    /// Indexes with a device each, not only blocks.
    const INDEXES: u32 = 0x20;
    U32::new(u32::from(bits) | INDEXES)
}

/// `S_IFMT` of an inode's mode.
pub(super) fn type_bits(kind: Kind) -> u16 {
    match kind {
        Kind::Directory => 0o040_000,
        Kind::Symlink => 0o120_000,
        Kind::CharDevice => 0o020_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Fifo => 0o010_000,
        // The others are not nodes of a tree.
        Kind::File | Kind::LowerLink | Kind::Whiteout => 0o100_000,
    }
}

/// The kind of a name in a directory.
pub(super) fn name_type(kind: Kind) -> u8 {
    match kind {
        Kind::File | Kind::LowerLink | Kind::Whiteout => 1,
        Kind::Directory => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Symlink => 7,
    }
}

/// A device number in the kernel's 32-bit encoding (`new_encode_dev`), also used by FUSE.
pub(super) fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

const _: () = assert!(size_of::<SuperBlock>() == 128 && size_of::<DeviceSlot>() == 128);
const _: () = assert!(size_of::<Inode>() == 64 && size_of::<XattrHeader>() == 12 && size_of::<Dirent>() == 12);
