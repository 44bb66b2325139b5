//! Encodes nodes for the kernel: single ones, and the entries of a directory.

use std::ops::ControlFlow;

use super::BLOCK;
use super::wire::{self, Listing};
use crate::image::{Answer, Tree};
use crate::layer::Kind;
use crate::overlay::{NodeAttr, NodeId};

/// What differs between mounts of a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// The generation of this mount's node numbers.
    pub(super) generation: u32,
    /// Besides root, only this user may access the mount. The kernel admits either all users or the user of the mount
    /// alone, and answers from its cache what was asked before; so the root is shown as a directory that is private to
    /// this user.
    pub(super) private_to: Option<u32>,
}

/// For how many seconds the kernel may cache a node.
fn life(attr: &NodeAttr) -> u64 {
    if attr.settled { FOR_EVER } else { 0 }
}

/// Looks up a node by name. The kernel looks up `.` and `..` when a file handle names a node that it has dropped
/// (`FUSE_EXPORT_SUPPORT`); a process's path never reaches this code with them.
pub(super) fn lookup(tree: &dyn Tree, view: View, node: NodeId, name: &[u8]) -> Answer<wire::Entry> {
    let found = match name {
        b"." => Some(tree.node(node)?),
        b".." => Some(tree.attr(tree.parent(node)?)?),
        name => tree.lookup(node, name)?,
    };
    Ok(found.map_or_else(|| absent(tree, node), |found| entry(tree, view, &found)))
}

fn entry(tree: &dyn Tree, view: View, found: &NodeAttr) -> wire::Entry {
    let life = life(found);
    wire::Entry {
        nodeid: found.node.get(),
        // The kernel requires 0 for the root.
        generation: if found.node == NodeId::ROOT { 0 } else { view.generation.into() },
        entry_valid: life,
        attr_valid: life,
        attr: attr(tree, view, found),
        ..Default::default()
    }
}

/// Node 0 says that the name does not exist, and lets the kernel cache that.
fn absent(tree: &dyn Tree, directory: NodeId) -> wire::Entry {
    let life = if tree.names_stay(directory) { FOR_EVER } else { 0 };
    wire::Entry { nodeid: 0, entry_valid: life, attr_valid: life, ..Default::default() }
}

/// The attributes of a node by its number.
pub(super) fn attr_out(tree: &dyn Tree, view: View, found: &NodeAttr) -> wire::AttrOut {
    wire::AttrOut { attr_valid: life(found), attr: attr(tree, view, found), ..Default::default() }
}

fn attr(tree: &dyn Tree, view: View, found: &NodeAttr) -> wire::Attr {
    let (mut mode, mut uid) = (found.mode, found.uid);
    if let Some(user) = view.private_to.filter(|_| found.node == NodeId::ROOT) {
        (mode, uid) = (mode & 0o700 | 0o500, user);
    }
    let changed = tree.changed(found);
    wire::Attr {
        ino: tree.inode(found.node),
        size: found.size,
        blocks: found.blocks,
        atime: found.mtime,
        mtime: found.mtime,
        ctime: changed.seconds,
        atimensec: found.mtime_ns,
        mtimensec: found.mtime_ns,
        ctimensec: changed.nanos,
        mode: file_type(found.kind) | u32::from(mode),
        nlink: found.nlink,
        uid,
        gid: found.gid,
        rdev: makedev(found.device),
        blksize: BLOCK,
        flags: 0,
    }
}

/// The file type bits of a mode.
fn file_type(kind: Kind) -> u32 {
    match kind {
        Kind::Directory => S_IFDIR,
        Kind::Symlink => 0o120_000,
        Kind::CharDevice => 0o020_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Fifo => 0o010_000,
        // The overlay has resolved these two already.
        Kind::File | Kind::Whiteout | Kind::LowerLink => 0o100_000,
    }
}

/// The kernel's 32-bit encoding of a device number (`new_encode_dev`).
fn makedev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The names of a directory from position `offset` on, until `listing` is full.
///
/// A missing layer ends the listing early; the kernel asks for the rest.
pub(super) fn names(tree: &dyn Tree, node: NodeId, offset: u64, mut listing: Listing) -> Answer<Listing> {
    let dots = [(node, b".".as_slice()), (tree.parent(node)?, b"..")];
    for (at, (dot, name)) in (1..).zip(dots).skip(offset.min(DOTS) as usize) {
        if !listing.add(tree.inode(dot), at, S_IFDIR, name) {
            return Ok(listing);
        }
    }
    let listed = tree.list(node, offset.saturating_sub(DOTS), &mut |entry| {
        let room = listing.add(tree.inode(entry.node), entry.next + DOTS, file_type(entry.kind), entry.name);
        if room { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if listing.is_empty() { listed.map(|()| listing) } else { Ok(listing) }
}

/// As [`names`], with metadata.
pub(super) fn entries(tree: &dyn Tree, view: View, node: NodeId, offset: u64, mut listing: Listing) -> Answer<Listing> {
    if offset < DOTS {
        let dots = [(tree.attr(node)?, b".".as_slice()), (tree.attr(tree.parent(node)?)?, b"..")];
        for (at, (dot, name)) in (1..).zip(dots).skip(offset as usize) {
            if !listing.add_plus(&entry(tree, view, &dot), at, name) {
                return Ok(listing);
            }
        }
    }
    let listed = tree.list_with_attrs(node, offset.saturating_sub(DOTS), &mut |listed, attr| {
        let room = listing.add_plus(&entry(tree, view, attr), listed.next + DOTS, listed.name);
        if room { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if listing.is_empty() { listed.map(|()| listing) } else { Ok(listing) }
}

/// Seconds: over a century.
const FOR_EVER: u64 = u32::MAX as u64;
/// Positions that `.` and `..` take before the first name.
const DOTS: u64 = 2;
const S_IFDIR: u32 = 0o040_000;
