//! Nodes: what a merged tree consists of, and how their numbers are made.

use std::num::NonZeroU64;

use crate::layer::{Entry, EntryId, Kind};

/// A layer's position in its image; 0 is the base. People are shown numbers from 1 on.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LayerNo(pub u16);

impl std::fmt::Display for LayerNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (u32::from(self.0) + 1).fmt(f)
    }
}

/// One inode of the merged tree, and the number by which the kernel asks for it. The root is 1.
///
/// The others are `(layer + 1) << 32 | entry`, where a hard link counts as the entry that carries
/// the inode, and a directory as its uppermost entry. What `stat` shows as inode number is made from it, and smaller.
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

    /// A node number as the kernel hands it back; `None` for 0.
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number by which the kernel asks for it.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// Layer and entry; `None` for the root and for numbers that no node has.
    pub fn parts(self) -> Option<(LayerNo, EntryId)> {
        let layer = u16::try_from((self.get() >> 32).checked_sub(1)?).ok()?;
        Some((LayerNo(layer), EntryId((self.get() & u64::from(u32::MAX)) as u32)))
    }
}

/// What `stat` shows of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeAttr {
    /// The node.
    pub node: NodeId,
    /// What it is; never a whiteout.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symlink's target.
    pub size: u64,
    /// Units of 512 bytes, holes of sparse files left out.
    pub blocks: u64,
    /// Modification time: seconds since 1970, perhaps negative.
    pub mtime: i64,
    /// Nanoseconds to be added to `mtime`.
    pub mtime_ns: u32,
    /// Names this inode has in the merged tree; 1 for directories, whose count would need all layers.
    pub nlink: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Whether this stays so for ever; not while the node's layer is still being read.
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

    /// As which overlayfs stores that a name is gone: a character device without numbers, that no process may open.
    pub(crate) fn whiteout(node: NodeId) -> Self {
        Self { kind: Kind::CharDevice, mode: 0, size: 0, blocks: 0, ..Self::implied_dir(node) }
    }

    /// A directory that no layer describes: some layer only has something inside it.
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
