//! Passthrough: which large files are open, and which of them the kernel reads by itself.
//!
//! The kernel wants all opens of one inode to be alike: served by this process, or from one and the same backing
//! file. So how an inode is read is decided when it is opened for the first time and stays so until the last
//! one closes it. That has to outlive this process: each change is written to a file before the kernel is
//! answered, and a process that takes over the mount begins with what stands there.
//!
//! A process that is killed between the two leaves an open counted that never was, or one that has ended. Such an inode
//! stays as it is until the mount ends, which costs nothing but room; counting too few would cost readers errors.

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

/// What a mount with passthrough needs.
#[derive(Debug)]
pub struct Passthrough {
    /// An empty file on the file system that files will be given to the kernel from, to try it out.
    pub trial: File,
    /// An empty file that outlives this process, for what another one needs to go on with the mount, if one is to.
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
    /// Places in the file that hold nothing.
    free: Vec<u64>,
    /// Places in the file.
    places: u64,
    kept: Option<File>,
}

/// An inode that is open.
#[derive(Clone, Copy)]
struct Inode {
    opens: u32,
    backing: Option<BackingId>,
    place: u64,
}

/// As an inode stands in the file; `opens` is 0 where there is none.
#[derive(Clone, Copy, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Record {
    node: u64,
    opens: u32,
    backing: u32,
}

impl Through {
    /// For a mount that begins.
    ///
    /// # Errors
    /// When the file cannot be had once more.
    pub(super) fn new(device: Arc<Device>, passthrough: &Passthrough) -> io::Result<Self> {
        let kept = passthrough.opens.as_ref().map(File::try_clone).transpose()?;
        Ok(Self { device, opens: Mutex::new(Opens { kept, ..Opens::default() }) })
    }

    /// For a mount that another process had served.
    ///
    /// # Errors
    /// When the file cannot be read.
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

    /// How to open an inode that is open already; counts one more.
    pub(super) fn again(&self, node: NodeId) -> Option<Opened> {
        let mut opens = lock(&self.opens);
        let mut inode = *opens.inodes.get(&node)?;
        inode.opens += 1;
        Some(opens.count(node, inode))
    }

    /// How to open an inode that was not open a moment ago, whose bytes are those of `whole`, if anywhere.
    pub(super) fn first(&self, node: NodeId, whole: Option<&File>) -> Opened {
        let mut opens = lock(&self.opens);
        let mut inode = match opens.inodes.get(&node) {
            Some(inode) => *inode,
            None => {
                let backing = whole.and_then(|file| {
                    BackingId::open(&self.device, file)
                        .map_err(|error| tracing::warn!(%error, "the kernel does not take a file for passthrough"))
                        .ok()
                });
                Inode { opens: 0, backing, place: opens.place() }
            }
        };
        inode.opens += 1;
        opens.count(node, inode)
    }

    /// An inode was closed once; to be called after the kernel was answered.
    pub(super) fn closed(&self, node: NodeId) {
        let mut opens = lock(&self.opens);
        // Files that are not large are not counted.
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

    /// Notes how often an inode is open; what OPEN is answered with.
    fn count(&mut self, node: NodeId, inode: Inode) -> Opened {
        self.inodes.insert(node, inode);
        let backing = inode.backing.map_or(0, BackingId::number);
        let record = Record { node: node.get(), opens: inode.opens, backing };
        let kept = self.kept.as_ref().map(|kept| kept.write_all_at(record.as_bytes(), inode.place * RECORD));
        if let Some(Err(error)) = kept {
            tracing::error!(%error, "should this process die, the next one may not be able to open files that are open");
        }
        inode.backing.map_or(Opened::cached(), |backing| Opened::passthrough(backing.number()))
    }
}

/// Finds out whether the kernel reads files of the cache by itself.
///
/// # Errors
/// Why it does not.
pub(super) fn try_out(device: &Device, trial: &File) -> io::Result<()> {
    BackingId::open(device, trial).map(|backing| backing.close(device))
}

const RECORD: u64 = size_of::<Record>() as u64;
