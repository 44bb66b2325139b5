//! An image as a [`Tree`]: maps missing layers to futures.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::fs::{DirEntry, FsError, ImageFs, NotNow, Now};
use super::read::Local;
use super::tree::{Answer, KernelContent, NoAnswer, ReadNow, SeekTo, Totals, Tree};
use crate::layer::Timestamp;
use crate::offsets::FileOffset;
use crate::overlay::{NodeAttr, NodeId};

impl ImageFs {
    /// Converts a result.
    pub(super) fn answer<T>(&self, now: Now<T>) -> Answer<T> {
        now.map_err(|not_now| match not_now {
            NotNow::Needs(number) => {
                let fs = self.shared();
                NoAnswer::Later(async move { fs.know(number).await }.boxed())
            }
            NotNow::TakesLong => NoAnswer::TakesLong,
            NotNow::Never(error) => NoAnswer::Never(error),
        })
    }
}

impl Tree for ImageFs {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<NodeAttr>> {
        self.answer(self.lookup(parent, name))
    }

    fn attr(&self, node: NodeId) -> Answer<NodeAttr> {
        self.answer(self.attr(node))
    }

    fn node(&self, node: NodeId) -> Answer<NodeAttr> {
        self.answer(self.node(node))
    }

    fn parent(&self, node: NodeId) -> Answer<NodeId> {
        self.answer(self.parent(node))
    }

    fn list(&self, node: NodeId, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Answer<()> {
        self.answer(self.list(node, from, each))
    }

    fn list_with_attrs(
        &self,
        node: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &NodeAttr) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.answer(self.list_with_attrs(node, from, each))
    }

    fn symlink_target(&self, node: NodeId) -> Answer<Vec<u8>> {
        self.answer(self.symlink_target(node))
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Answer<Option<Vec<u8>>> {
        self.answer(self.xattr(node, name))
    }

    fn xattr_names(&self, node: NodeId) -> Answer<Vec<Vec<u8>>> {
        self.answer(self.xattr_names(node))
    }

    fn all_xattr_names(&self) -> Answer<Option<BTreeSet<Vec<u8>>>> {
        self.answer(self.all_xattr_names())
    }

    fn seek(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Answer<Option<FileOffset>> {
        self.answer(self.seek(node, at, to == SeekTo::Data))
    }

    fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Answer<ReadNow> {
        Ok(match self.answer(self.read_now(node, at, buf, before_wait))? {
            Local::Bytes(length) => ReadNow::Bytes(length),
            Local::Missing(missing) => {
                let fs = self.shared();
                ReadNow::Later(async move { fs.read_missing(missing).await }.boxed())
            }
        })
    }

    fn read(
        self: Arc<Self>,
        node: NodeId,
        at: FileOffset,
        length: usize,
    ) -> BoxFuture<'static, Result<Bytes, FsError>> {
        async move { Self::read(&self, node, at, length).await }.boxed()
    }

    fn inode(&self, node: NodeId) -> u64 {
        self.identity().inode(node)
    }

    fn changed(&self, attr: &NodeAttr) -> Timestamp {
        self.identity().changed(attr)
    }

    fn generation(&self) -> u32 {
        self.identity().generation()
    }

    fn totals(&self) -> Totals {
        let (entries, bytes) = self.totals();
        Totals { entries, bytes }
    }

    fn forget(&self, node: NodeId) {
        self.forget(node);
    }

    fn end(&self) {
        self.end();
    }

    fn kernel_content(&self) -> Option<&dyn KernelContent> {
        Some(self)
    }
}

impl KernelContent for ImageFs {
    fn copy_now(&self, node: NodeId) -> Answer<Option<File>> {
        self.answer(self.passthrough_copy_now(node))
    }

    fn make_copy(&self, node: NodeId) -> Answer<Option<BoxFuture<'static, Option<File>>>> {
        let made = self.make_passthrough_copy(node).map(|made| made.map(futures_util::FutureExt::boxed));
        self.answer(made)
    }

    fn revoked(&self) -> BoxFuture<'_, Box<dyn Iterator<Item = NodeId> + Send>> {
        async move { Box::new(self.revoked().await) as Box<dyn Iterator<Item = NodeId> + Send> }.boxed()
    }
}
