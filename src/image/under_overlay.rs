//! A tree below the kernel's overlayfs.
//!
//! Extended attributes of lower directories control overlayfs: opaque directories, redirects. An image must not control
//! it, so such attributes are hidden. They are not escaped (`trusted.overlay.overlay.*`, which overlayfs shows without the
//! second `overlay.` since Linux 6.7): an escaped name is right below one kind of overlay, and wrong for other readers.
//! containerd does not set `trusted.*` of an image either.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::fs::{DirEntry, FsError};
use super::layer_fs::steers_overlayfs;
use super::tree::{Answer, KernelContent, ReadNow, SeekTo, Totals, Tree};
use crate::layer::Timestamp;
use crate::offsets::FileOffset;
use crate::overlay::{NodeAttr, NodeId};

/// Shows another tree without attributes that control overlayfs.
pub(super) struct UnderOverlay<T>(pub Arc<T>);

impl<T: Tree> Tree for UnderOverlay<T> {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<NodeAttr>> {
        self.0.lookup(parent, name)
    }

    fn names_stay(&self, directory: NodeId) -> bool {
        self.0.names_stay(directory)
    }

    fn attr(&self, node: NodeId) -> Answer<NodeAttr> {
        self.0.attr(node)
    }

    fn node(&self, node: NodeId) -> Answer<NodeAttr> {
        self.0.node(node)
    }

    fn parent(&self, node: NodeId) -> Answer<NodeId> {
        self.0.parent(node)
    }

    fn list(&self, node: NodeId, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Answer<()> {
        self.0.list(node, from, each)
    }

    fn list_with_attrs(
        &self,
        node: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &NodeAttr) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.0.list_with_attrs(node, from, each)
    }

    fn symlink_target(&self, node: NodeId) -> Answer<Vec<u8>> {
        self.0.symlink_target(node)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Answer<Option<Vec<u8>>> {
        if steers_overlayfs(name) { Ok(None) } else { self.0.xattr(node, name) }
    }

    fn xattr_names(&self, node: NodeId) -> Answer<Vec<Vec<u8>>> {
        let mut names = self.0.xattr_names(node)?;
        names.retain(|name| !steers_overlayfs(name));
        Ok(names)
    }

    fn all_xattr_names(&self) -> Answer<Option<BTreeSet<Vec<u8>>>> {
        let mut names = self.0.all_xattr_names()?;
        if let Some(names) = &mut names {
            names.retain(|name| !steers_overlayfs(name));
        }
        Ok(names)
    }

    fn seek(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Answer<Option<FileOffset>> {
        self.0.seek(node, at, to)
    }

    fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Answer<ReadNow> {
        self.0.read_now(node, at, buf, before_wait)
    }

    fn read(
        self: Arc<Self>,
        node: NodeId,
        at: FileOffset,
        length: usize,
    ) -> BoxFuture<'static, Result<Bytes, FsError>> {
        Arc::clone(&self.0).read(node, at, length)
    }

    fn inode(&self, node: NodeId) -> u64 {
        self.0.inode(node)
    }

    fn changed(&self, attr: &NodeAttr) -> Timestamp {
        self.0.changed(attr)
    }

    fn generation(&self) -> u32 {
        self.0.generation()
    }

    fn totals(&self) -> Totals {
        self.0.totals()
    }

    fn forget(&self, node: NodeId) {
        self.0.forget(node);
    }

    fn end(&self) {
        self.0.end();
    }

    fn kernel_content(&self) -> Option<&dyn KernelContent> {
        self.0.kernel_content()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_overlayfs_are_known_by_their_prefix() {
        for (name, steers) in [
            (&b"trusted.overlay.opaque"[..], true),
            (b"user.overlay.redirect", true),
            (b"user.overlayfs", false),
            (b"security.capability", false),
        ] {
            assert_eq!(steers_overlayfs(name), steers, "{}", String::from_utf8_lossy(name));
        }
    }
}
