//! Nodes of the merged tree, and their numbers.

use std::num::NonZeroU64;

use crate::layer::{Entry, EntryId, Kind};

/// A layer's position in its image; 0 is the base. Users see numbers from 1.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LayerNo(pub u16);

impl std::fmt::Display for LayerNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (u32::from(self.0) + 1).fmt(f)
    }
}

/// An inode of the merged tree, and its number in the FUSE protocol. The root is 1.
///
/// Other nodes are `(layer + 1) << 32 | entry`; a hard link uses the entry that carries the inode, a directory its
/// uppermost entry. The inode number shown by `stat` is derived from it, and smaller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(NonZeroU64);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(NonZeroU64::MIN);

    /// The node that `entry` of `layer` carries.
    pub fn new(layer: LayerNo, entry: EntryId) -> Self {
        let number = (u64::from(layer.0) + 1) << 32 | u64::from(entry.0);
        Self(NonZeroU64::new(number).expect("the layer part is at least 1"))
    }

    /// A node number from the kernel; `None` for 0.
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// Its number in the FUSE protocol.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// Layer and entry; `None` for the root and for invalid numbers.
    pub fn parts(self) -> Option<(LayerNo, EntryId)> {
        let layer = u16::try_from((self.get() >> 32).checked_sub(1)?).ok()?;
        Some((LayerNo(layer), EntryId((self.get() & u64::from(u32::MAX)) as u32)))
    }
}

/// Metadata shown by `stat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeAttr {
    /// The node.
    pub node: NodeId,
    /// Its kind; never a whiteout.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symlink's target.
    pub size: u64,
    /// Units of 512 bytes, without holes of sparse files.
    pub blocks: u64,
    /// Modification time: seconds since 1970, may be negative.
    pub mtime: i64,
    /// Nanoseconds to add to `mtime`.
    pub mtime_ns: u32,
    /// Number of names in the merged tree; 1 for directories, whose count would need all layers.
    pub nlink: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Whether the metadata is final; `false` while the node's layer is being read.
    pub settled: bool,
}

impl NodeAttr {
    pub(super) fn of(node: NodeId, entry: &Entry, nlink: u32, disk_size: u64) -> Self {
        let (size, blocks) = match entry.kind() {
            Kind::Directory => (DIR_SIZE, DIR_SIZE / 512),
            Kind::File => (entry.size(), disk_size.div_ceil(512)),
            Kind::Symlink => (entry.size(), 0),
            _ => (0, 0),
        };
        Self {
            node,
            kind: entry.kind(),
            mode: entry.mode(),
            uid: entry.uid(),
            gid: entry.gid(),
            size,
            blocks,
            mtime: entry.mtime().seconds,
            mtime_ns: entry.mtime().nanos,
            nlink,
            device: entry.device().map_or((0, 0), |device| (device.major, device.minor)),
            settled: true,
        }
    }

    /// A whiteout of overlayfs: a character device 0:0 that no process may open.
    pub(crate) fn whiteout(node: NodeId) -> Self {
        Self { kind: Kind::CharDevice, mode: 0, size: 0, blocks: 0, ..Self::implied_dir(node) }
    }

    /// A directory that no layer describes: layers only have entries inside it.
    pub(super) fn implied_dir(node: NodeId) -> Self {
        Self {
            node,
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: DIR_SIZE,
            blocks: DIR_SIZE / 512,
            mtime: 0,
            mtime_ns: 0,
            nlink: 1,
            device: (0, 0),
            settled: true,
        }
    }
}

const DIR_SIZE: u64 = 4096;
