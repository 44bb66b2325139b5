//! One layer of an image alone, in the form of a lower directory for the kernel's overlayfs.
//!
//! [`overlay`](crate::overlay::LowerNode) decides which names it has and what they are. This file makes it a [`Tree`], over
//! the same engine as the image: layers below are opened only if the layer depends on them. Attributes of the layer
//! that control overlayfs are hidden: an image must not decide how it is stacked.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::fs::{DirEntry, FsError, ImageFs, NotNow, Now, not_now};
use super::tree::{Answer, KernelContent, ReadNow, SeekTo, Totals, Tree};
use super::xattrs::steers_overlayfs;
use crate::layer::{Contents, Kind, Timestamp};
use crate::offsets::FileOffset;
use crate::overlay::{LayerNo, Listed, LowerNode, NodeAttr, NodeId};

/// The uppermost layer of an image without the layers above it.
pub struct LayerFs {
    fs: Arc<ImageFs>,
    marks: OpaqueMark,
}

/// The attribute that marks an opaque directory for overlayfs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpaqueMark {
    /// `trusted.overlay.opaque`: for overlays mounted by root.
    Trusted,
    /// `user.overlay.opaque`: for overlays in a user namespace, or with the option `userxattr`.
    User,
    /// Both: for overlays of any user.
    Both,
}

impl OpaqueMark {
    fn names(self) -> &'static [&'static [u8]] {
        const NAMES: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
        match self {
            Self::Trusted => &NAMES[..1],
            Self::User => &NAMES[1..],
            Self::Both => &NAMES,
        }
    }
}

impl LayerFs {
    /// The uppermost layer of `fs`.
    pub(super) fn new(fs: Arc<ImageFs>, marks: OpaqueMark) -> Self {
        Self { fs, marks }
    }

    /// The layers up to this one as an image.
    pub fn image(&self) -> &Arc<ImageFs> {
        &self.fs
    }

    /// The layer's number in the image.
    pub fn number(&self) -> LayerNo {
        self.fs.overlay.uppermost()
    }

    /// Size of its tar, once it is available.
    pub fn decoded_size(&self) -> Option<u64> {
        self.fs.known_content(self.number()).map(|content| content.index().layer().decoded_size)
    }

    /// Waits until the layer is verified, and everything that it needs of those below is available.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn all_known(&self) -> Result<(), FsError> {
        self.fs.uppermost_known().await?;
        let overlay = &self.fs.overlay;
        let index = self.fs.awaited(|_| overlay.index(overlay.uppermost()).map_err(not_now)).await?;
        // The layers below decide which whiteouts are shown.
        if index.contents().has(Contents::WHITEOUTS) {
            self.fs.all_known().await?;
        }
        // The root's metadata comes from the uppermost layer that describes it.
        self.fs.awaited(|fs| fs.attr(NodeId::ROOT)).await.map(drop)
    }

    fn lower_node(&self, node: NodeId) -> Now<LowerNode> {
        self.fs.overlay.lower_node(node).map_err(not_now)
    }

    /// The image's node with the bytes, target and attributes of `node`.
    fn like(&self, node: NodeId) -> Now<NodeId> {
        match self.lower_node(node)? {
            LowerNode::Like(like) => Ok(like),
            LowerNode::Whiteout => Err(NotNow::Never(FsError::NotAFile)),
        }
    }

    fn lookup_now(&self, parent: NodeId, name: &[u8]) -> Now<Option<NodeAttr>> {
        let overlay = &self.fs.overlay;
        let Some(node) = overlay.lower_child(parent, name).map_err(not_now)? else { return Ok(None) };
        let attr = self.attr_now(node)?;
        if attr.kind == Kind::Directory {
            overlay.dir(parent).and_then(|dir| overlay.remember(&dir, name, node)).map_err(not_now)?;
        }
        Ok(Some(attr))
    }

    fn attr_now(&self, node: NodeId) -> Now<NodeAttr> {
        let attr = match self.lower_node(node)? {
            LowerNode::Whiteout => return Ok(NodeAttr::whiteout(node)),
            LowerNode::Like(like) => NodeAttr { node, ..self.fs.attr(like)? },
        };
        match attr.kind {
            Kind::Directory => Ok(attr),
            _ if attr.nlink == 1 => Ok(attr),
            _ => Ok(NodeAttr { nlink: self.fs.overlay.lower_link_count(node).map_err(not_now)?.max(1), ..attr }),
        }
    }

    fn node_now(&self, node: NodeId) -> Now<NodeAttr> {
        if self.fs.overlay.has_lower(node).map_err(not_now)? {
            self.attr_now(node)
        } else {
            Err(NotNow::Never(FsError::NoSuchNode(node.get())))
        }
    }

    fn require_directory(&self, node: NodeId) -> Now<()> {
        match self.lower_node(node)? {
            LowerNode::Like(_) if self.attr_now(node)?.kind == Kind::Directory => Ok(()),
            _ => Err(NotNow::Never(FsError::NotADirectory)),
        }
    }

    fn parent_now(&self, node: NodeId) -> Now<NodeId> {
        self.require_directory(node)?;
        self.fs.parent(node)
    }

    fn xattr_now(&self, node: NodeId, name: &[u8]) -> Now<Option<Vec<u8>>> {
        if steers_overlayfs(name) {
            let opaque =
                self.marks.names().contains(&name) && self.fs.overlay.is_lower_opaque(node).map_err(not_now)?;
            return Ok(opaque.then(|| b"y".to_vec()));
        }
        match self.lower_node(node)? {
            LowerNode::Whiteout => Ok(None),
            LowerNode::Like(like) => self.fs.xattr(like, name),
        }
    }

    fn xattr_names_now(&self, node: NodeId) -> Now<Vec<Vec<u8>>> {
        let LowerNode::Like(like) = self.lower_node(node)? else { return Ok(Vec::new()) };
        let mut names = self.fs.xattr_names(like)?;
        if self.fs.overlay.is_lower_opaque(node).map_err(not_now)? {
            names.extend(self.marks.names().iter().map(|name| name.to_vec()));
        }
        Ok(names)
    }

    /// The layer's own attributes, unless it shows entries of the layers below.
    fn all_xattr_names_now(&self) -> Now<Option<BTreeSet<Vec<u8>>>> {
        let overlay = &self.fs.overlay;
        let top = overlay.uppermost();
        let index = overlay.index(top).map_err(not_now)?;
        let contents = index.contents();
        let borrows = contents.has(Contents::IMPLIED)
            || contents.has(Contents::LOWER_LINKS)
            || overlay.described_by(NodeId::ROOT).map_err(not_now)?.is_some_and(|(number, _)| number != top);
        let all = if borrows { self.fs.all_xattr_names()? } else { self.fs.xattr_names_in(std::iter::once(top))? };
        Ok(all.map(|mut names| {
            if contents.has(Contents::WHITEOUTS) {
                names.extend(self.marks.names().iter().map(|name| name.to_vec()));
            }
            names
        }))
    }

    fn list_now(
        &self,
        node: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &Listed<'_>) -> Now<ControlFlow<()>>,
    ) -> Now<()> {
        self.require_directory(node)?;
        let mut failed = None;
        let listed = self.fs.overlay.list_lower(node, from, &mut |listed| {
            let kind = if listed.kind == Kind::Whiteout { Kind::CharDevice } else { listed.kind };
            let entry = DirEntry { name: listed.name, node: listed.node, kind, next: listed.next };
            Ok(match each(entry, &listed) {
                Ok(more) => more.is_continue(),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            })
        });
        listed.map_err(not_now)?;
        failed.map_or(Ok(()), Err)
    }

    fn seek_now(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Now<Option<FileOffset>> {
        self.fs.seek(self.like(node)?, at, to == SeekTo::Data)
    }
}

impl Tree for LayerFs {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<NodeAttr>> {
        self.fs.answer(self.lookup_now(parent, name))
    }

    fn attr(&self, node: NodeId) -> Answer<NodeAttr> {
        self.fs.answer(self.attr_now(node))
    }

    fn node(&self, node: NodeId) -> Answer<NodeAttr> {
        self.fs.answer(self.node_now(node))
    }

    fn parent(&self, node: NodeId) -> Answer<NodeId> {
        self.fs.answer(self.parent_now(node))
    }

    fn list(&self, node: NodeId, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Answer<()> {
        self.fs.answer(self.list_now(node, from, &mut |entry, _| Ok(each(entry))))
    }

    fn list_with_attrs(
        &self,
        node: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &NodeAttr) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.fs.answer(self.list_now(node, from, &mut |entry, listed| {
            if entry.kind == Kind::Directory {
                let overlay = &self.fs.overlay;
                let parent = overlay.dir(node);
                parent.and_then(|dir| overlay.remember(&dir, listed.name, listed.node)).map_err(not_now)?;
            }
            let attr = self.attr_now(entry.node)?;
            Ok(each(entry, &attr))
        }))
    }

    fn symlink_target(&self, node: NodeId) -> Answer<Vec<u8>> {
        self.fs.answer(self.like(node).and_then(|like| self.fs.symlink_target(like)))
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Answer<Option<Vec<u8>>> {
        self.fs.answer(self.xattr_now(node, name))
    }

    fn xattr_names(&self, node: NodeId) -> Answer<Vec<Vec<u8>>> {
        self.fs.answer(self.xattr_names_now(node))
    }

    fn all_xattr_names(&self) -> Answer<Option<BTreeSet<Vec<u8>>>> {
        self.fs.answer(self.all_xattr_names_now())
    }

    fn seek(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Answer<Option<FileOffset>> {
        self.fs.answer(self.seek_now(node, at, to))
    }

    fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Answer<ReadNow> {
        let like = self.fs.answer(self.like(node))?;
        Tree::read_now(&*self.fs, like, at, buf, before_wait)
    }

    fn read(
        self: Arc<Self>,
        node: NodeId,
        at: FileOffset,
        length: usize,
    ) -> BoxFuture<'static, Result<Bytes, FsError>> {
        async move {
            let like = self.fs.awaited(|_| self.like(node)).await?;
            ImageFs::read(&self.fs, like, at, length).await
        }
        .boxed()
    }

    fn inode(&self, node: NodeId) -> u64 {
        self.fs.identity().inode(node)
    }

    fn changed(&self, attr: &NodeAttr) -> Timestamp {
        self.fs.identity().changed(attr)
    }

    fn generation(&self) -> u32 {
        self.fs.identity().generation()
    }

    fn totals(&self) -> Totals {
        let (entries, bytes) = self.fs.totals_in(std::iter::once(self.fs.overlay.uppermost()));
        Totals { entries, bytes }
    }

    fn forget(&self, node: NodeId) {
        self.fs.forget(node);
    }

    fn end(&self) {
        self.fs.end();
    }

    fn kernel_content(&self) -> Option<&dyn KernelContent> {
        Some(self)
    }
}

impl KernelContent for LayerFs {
    fn copy_now(&self, node: NodeId) -> Answer<Option<File>> {
        let like = self.fs.answer(self.like(node))?;
        self.fs.copy_now(like)
    }

    fn make_copy(&self, node: NodeId) -> Answer<Option<BoxFuture<'static, Option<File>>>> {
        let like = self.fs.answer(self.like(node))?;
        self.fs.make_copy(like)
    }

    fn revoked(&self) -> BoxFuture<'_, Box<dyn Iterator<Item = NodeId> + Send>> {
        // The layers below show nothing unverified; where their numbers stand for something else, a new lookup gives
        // the same result.
        KernelContent::revoked(&*self.fs)
    }
}
