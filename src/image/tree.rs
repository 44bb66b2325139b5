//! Trees: what can be shown to the kernel, to a user who looks into it, to any front end.
//!
//! A tree is asked two ways. *Now*: the answer comes from memory or from the store, and no question waits for the network;
//! where there is no answer yet, [`NoAnswer::Later`] carries what has to happen first, and the question is asked again
//! after that ([`awaited`], [`Apart`](super::Apart)). *Read to the end*: [`Tree::read`] fetches what is missing.
//!
//! Front ends know nothing of layers, formats or sources: a question that waits is a future, so a tree may consist of other
//! trees and pass their answers on. Nodes are numbers that a tree makes as it likes; 1 is its root, and a number means the same
//! node for as long as the tree is shown, in every process that shows it.
//!
//! What the kernel may hold of a tree beyond answers (files that it reads by itself, bytes that turn out to be wrong) is a trait
//! of its own, [`KernelContent`], which few trees have.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::fs::{DirEntry, FsError};
use crate::layer::{Kind, Timestamp};
use crate::offsets::FileOffset;
use crate::overlay::{Last, MAX_LINKS, NodeAttr, NodeId};

/// An answer, or why there is none now.
pub type Answer<T> = Result<T, NoAnswer>;

/// What has to happen before a question can be answered; then it is asked again.
pub type Wait = BoxFuture<'static, Result<(), FsError>>;

/// Why there is no answer now.
pub enum NoAnswer {
    /// There may be one after this.
    Later(Wait),
    /// It takes more steps than this thread may spend; see [`Apart`](super::Apart).
    TakesLong,
    /// There will be none.
    Never(FsError),
}

/// What a read came to that may not wait.
pub enum ReadNow {
    /// All bytes were read: this many.
    Bytes(usize),
    /// Some have to be fetched; then all of them are here.
    Later(BoxFuture<'static, Result<Bytes, FsError>>),
}

/// What a seek looks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SeekTo {
    /// The next byte that is stored.
    Data,
    /// The next hole; every file ends in one.
    Hole,
}

/// What a tree holds, as far as that is known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A tree of files that never change; which files there are may change in some directories ([`Tree::names_stay`]).
pub trait Tree: Send + Sync + 'static {
    /// A node by name; `None` where the directory has no such name.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<NodeAttr>>;

    /// Whether a name that a directory does not have will never come.
    fn names_stay(&self, _directory: NodeId) -> bool {
        true
    }

    /// A node's metadata.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn attr(&self, node: NodeId) -> Answer<NodeAttr>;

    /// The metadata of a node whose number comes from elsewhere, as from a file handle that has outlived what was known
    /// of the node.
    ///
    /// # Errors
    /// [`NoAnswer`]; [`FsError::NoSuchNode`] where the tree has no such node.
    fn node(&self, node: NodeId) -> Answer<NodeAttr>;

    /// The directory that a directory lies in; the root lies in itself.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn parent(&self, node: NodeId) -> Answer<NodeId>;

    /// The names of a directory from position `from` on, without `.` and `..`. Positions stay the same for ever.
    ///
    /// # Errors
    /// [`NoAnswer`], also after some names.
    fn list(&self, node: NodeId, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Answer<()>;

    /// As [`Tree::list`], with each node's metadata.
    ///
    /// # Errors
    /// [`NoAnswer`], also after some names.
    fn list_with_attrs(
        &self,
        node: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &NodeAttr) -> ControlFlow<()>,
    ) -> Answer<()>;

    /// Where a symlink points.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn symlink_target(&self, node: NodeId) -> Answer<Vec<u8>>;

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn xattr(&self, node: NodeId, name: &[u8]) -> Answer<Option<Vec<u8>>>;

    /// The names of a node's extended attributes.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn xattr_names(&self, node: NodeId) -> Answer<Vec<Vec<u8>>>;

    /// The names of all extended attributes that any node has; `None` where that is much to look at.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn all_xattr_names(&self) -> Answer<Option<BTreeSet<Vec<u8>>>> {
        Ok(None)
    }

    /// The next offset of a file at or after `at` that is what the seek looks for, as lseek(2) has it; `None` past the end.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn seek(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Answer<Option<FileOffset>>;

    /// Reads a file into `buf` from what is on this machine; fewer bytes than asked for only at the end of the file.
    /// `before_wait` is called before the disk is waited for.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Answer<ReadNow>;

    /// Reads up to `length` bytes of a file, fetching what is missing.
    fn read(self: Arc<Self>, node: NodeId, at: FileOffset, length: usize)
    -> BoxFuture<'static, Result<Bytes, FsError>>;

    /// The inode number that programs see: 1 for the root, and different for all others.
    fn inode(&self, node: NodeId) -> u64;

    /// When a node has changed last, as its ctime says it.
    fn changed(&self, attr: &NodeAttr) -> Timestamp;

    /// What distinguishes nodes of the same number in two trees, as for file handles that outlive a mount.
    fn generation(&self) -> u32;

    /// What it holds.
    fn totals(&self) -> Totals {
        Totals::default()
    }

    /// The kernel has forgotten a node: what is remembered of it can go.
    fn forget(&self, _node: NodeId) {}

    /// The mount is gone: requests in flight for it alone are ended.
    fn end(&self) {}

    /// What the kernel may hold of it, if it is such a tree.
    fn kernel_content(&self) -> Option<&dyn KernelContent> {
        None
    }
}

/// Content that the kernel holds by itself: it reads it without asking, and has to drop it where it turns out wrong.
pub trait KernelContent: Send + Sync {
    /// A verified file that holds just the bytes of `node`, for the kernel to read, if there is one.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn copy_now(&self, node: NodeId) -> Answer<Option<File>>;

    /// Makes the file of [`KernelContent::copy_now`], if that is possible and worth it; also when the future is dropped
    /// meanwhile.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn make_copy(&self, node: NodeId) -> Answer<Option<BoxFuture<'static, Option<File>>>>;

    /// Waits until something was shown that turns out wrong; gives the nodes that may have been shown of it. For one caller;
    /// never returns where nothing is shown before it is verified.
    fn revoked(&self) -> BoxFuture<'_, Box<dyn Iterator<Item = NodeId> + Send>>;
}

/// Answers `question` once it can be answered.
///
/// # Errors
/// [`FsError`]
pub async fn awaited<T>(tree: &dyn Tree, mut question: impl FnMut(&dyn Tree) -> Answer<T>) -> Result<T, FsError> {
    loop {
        let wait = match question(tree) {
            Ok(answer) => return Ok(answer),
            Err(NoAnswer::Never(error)) => return Err(error),
            Err(NoAnswer::TakesLong) => return Err(FsError::TakesTooLong),
            Err(NoAnswer::Later(wait)) => wait,
        };
        wait.await?;
    }
}

/// Where a path leads.
pub enum Reached {
    /// To a node.
    Node(NodeAttr),
    /// To a name that its directory does not have.
    Missing {
        /// The names from the root to that one, without symlinks.
        path: Vec<Vec<u8>>,
        /// What is left of the path behind it.
        rest: VecDeque<Vec<u8>>,
    },
}

/// Walks a path from the root, through symlinks, never out of the tree.
///
/// # Errors
/// [`FsError`]
pub async fn walk(tree: &dyn Tree, path: &[u8], last: Last) -> Result<NodeAttr, FsError> {
    match reach(tree, path, last).await? {
        Reached::Node(attr) => Ok(attr),
        Reached::Missing { .. } => Err(FsError::NotFound),
    }
}

/// As [`walk`], for those that also ask where a missing name would be.
///
/// # Errors
/// [`FsError`]; none for a name that is missing.
pub async fn reach(tree: &dyn Tree, path: &[u8], last: Last) -> Result<Reached, FsError> {
    // The directories that were gone through, with their names, below the root.
    let (root, mut above) = (awaited(tree, |tree| tree.attr(NodeId::ROOT)).await?, Vec::<(Vec<u8>, NodeAttr)>::new());
    let mut rest: VecDeque<Vec<u8>> = names(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let here = above.last().map_or(&root, |(_, attr)| attr);
        if here.kind != Kind::Directory {
            return Err(FsError::NotADirectory);
        }
        if name == b".." {
            above.pop();
            continue;
        }
        let parent = here.node;
        let Some(found) = awaited(tree, |tree| tree.lookup(parent, &name)).await? else {
            let path = above.into_iter().map(|(name, _)| name).chain([name]).collect();
            return Ok(Reached::Missing { path, rest });
        };
        if found.kind != Kind::Symlink || (rest.is_empty() && last == Last::Keep) {
            above.push((name, found));
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(FsError::Loop);
        }
        let target = awaited(tree, |tree| tree.symlink_target(found.node)).await?;
        if target.starts_with(b"/") {
            above.clear();
        }
        names(&target).rev().for_each(|name| rest.push_front(name));
    }
    Ok(Reached::Node(above.pop().map_or(root, |(_, attr)| attr)))
}

/// The names of a path; empty ones and `.` lead nowhere.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}
