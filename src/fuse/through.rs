//! Passthrough: which large files are open, and which of them the kernel reads directly.
//!
//! The kernel requires that all opens of one inode are alike: served by this process, or from the same backing file. So
//! the first open of an inode decides, until the last one is closed. That has to outlive this process: each change is
//! written to a file before the kernel is answered, and a process that takes over the mount reads that file.
//!
//! A process that is killed between the two leaves an open counted too much. Such an inode stays as it is until the
//! mount ends, which costs only memory; counting too few would cause errors for readers.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::backing::BackingId;
use super::device::Device;
use super::wire::Opened;
use crate::overlay::NodeId;
use crate::sync::lock;

/// The files that passthrough needs.
#[derive(Debug)]
pub struct Passthrough {
    /// An empty file on the cache's file system, to test passthrough with.
    pub trial: File,
    /// An empty file that outlives this process and records open files for a successor, if there is to be one.
    pub opens: Option<File>,
}

/// The large files that are open.
pub(super) struct Through {
    device: Arc<Device>,
    opens: Mutex<Opens>,
}

#[derive(Default)]
struct Opens {
    inodes: HashMap<NodeId, Inode>,
    /// Free slots of the file.
    free: Vec<u64>,
    /// Slots in the file.
    places: u64,
    kept: Option<File>,
}

/// An open inode.
#[derive(Clone, Copy)]
struct Inode {
    opens: u32,
    backing: Option<BackingId>,
    place: u64,
}

/// An inode's record in the file; `opens` is 0 in a free slot.
#[derive(Clone, Copy, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Record {
    node: u64,
    opens: u32,
    backing: u32,
}

impl Through {
    /// For a new mount.
    ///
    /// # Errors
    /// If the file cannot be duplicated.
    pub(super) fn new(device: Arc<Device>, passthrough: &Passthrough) -> io::Result<Self> {
        let kept = passthrough.opens.as_ref().map(File::try_clone).transpose()?;
        Ok(Self { device, opens: Mutex::new(Opens { kept, ..Opens::default() }) })
    }

    /// For a mount taken over from another process.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn go_on(device: Arc<Device>, kept: File) -> io::Result<Self> {
        let mut opens = Opens { places: kept.metadata()?.len() / RECORD, ..Opens::default() };
        for place in 0..opens.places {
            let mut record = Record::default();
            kept.read_exact_at(record.as_mut_bytes(), place * RECORD)?;
            match NodeId::from_number(record.node).filter(|_| record.opens > 0) {
                Some(node) => {
                    let backing = BackingId::from_number(record.backing);
                    opens.inodes.insert(node, Inode { opens: record.opens, backing, place });
                }
                None => opens.free.push(place),
            }
        }
        opens.kept = Some(kept);
        Ok(Self { device, opens: Mutex::new(opens) })
    }

    /// How to open an inode that is already open; counts the open.
    pub(super) fn again(&self, node: NodeId) -> Option<Opened> {
        let mut opens = lock(&self.opens);
        let mut inode = *opens.inodes.get(&node)?;
        inode.opens += 1;
        Some(opens.count(node, inode))
    }

    /// How to open an inode that is not open yet, whose bytes are also in `whole`, if given.
    pub(super) fn first(&self, node: NodeId, whole: Option<&File>) -> Opened {
        let mut opens = lock(&self.opens);
        let mut inode = match opens.inodes.get(&node) {
            Some(inode) => *inode,
            None => {
                let backing = whole.and_then(|file| {
                    BackingId::open(&self.device, file)
                        .map_err(|error| tracing::warn!(%error, "the kernel does not accept a file for passthrough"))
                        .ok()
                });
                Inode { opens: 0, backing, place: opens.place() }
            }
        };
        inode.opens += 1;
        opens.count(node, inode)
    }

    /// An open of the inode was closed; to be called after the kernel was answered.
    pub(super) fn closed(&self, node: NodeId) {
        let mut opens = lock(&self.opens);
        // Small files are not counted.
        let Some(mut inode) = opens.inodes.get(&node).copied() else { return };
        inode.opens -= 1;
        opens.count(node, inode);
        if inode.opens == 0 {
            opens.inodes.remove(&node);
            opens.free.push(inode.place);
            if let Some(backing) = inode.backing {
                backing.close(&self.device);
            }
        }
    }
}

impl Opens {
    fn place(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.places += 1;
            self.places - 1
        })
    }

    /// Records how often an inode is open; returns the answer to OPEN.
    fn count(&mut self, node: NodeId, inode: Inode) -> Opened {
        self.inodes.insert(node, inode);
        let backing = inode.backing.map_or(0, BackingId::number);
        let record = Record { node: node.get(), opens: inode.opens, backing };
        let kept = self.kept.as_ref().map(|kept| kept.write_all_at(record.as_bytes(), inode.place * RECORD));
        if let Some(Err(error)) = kept {
            tracing::error!(%error, "cannot record an open file; if this process dies, its successor may fail to open it");
        }
        inode.backing.map_or(Opened::cached(), |backing| Opened::passthrough(backing.number()))
    }
}

/// Tests whether the kernel accepts files of the cache for passthrough.
///
/// # Errors
/// Why it does not.
pub(super) fn try_out(device: &Device, trial: &File) -> io::Result<()> {
    BackingId::open(device, trial).map(|backing| backing.close(device))
}

const RECORD: u64 = size_of::<Record>() as u64;
