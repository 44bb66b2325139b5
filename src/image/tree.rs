//! Trees: file trees for the kernel, for commands that inspect them, and for other front ends.
//!
//! A tree has two kinds of operations. *Now*: the result comes from memory or the store, without waiting for the
//! network; if there is none yet, [`NoAnswer::Later`] carries the future to await before a retry ([`awaited`],
//! [`Apart`](super::Apart)). *To the end*: [`Tree::read`] fetches what is missing.
//!
//! Front ends do not depend on layers, formats or sources: waiting is a future, so a tree may consist of other trees
//! and forward their results. A tree chooses its node numbers; 1 is the root, and a number refers to the same node
//! while the tree is shown, in every process that shows it.
//!
//! Content that the kernel may hold itself (files that it reads directly, bytes that turn out wrong) is a separate
//! trait, [`KernelContent`], which few trees have.

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

/// A result, or the reason why there is none now.
pub type Answer<T> = Result<T, NoAnswer>;

/// To be awaited before an operation is retried.
pub type Wait = BoxFuture<'static, Result<(), FsError>>;

/// Why there is no result now.
pub enum NoAnswer {
    /// Retry after this.
    Later(Wait),
    /// It exceeds this thread's limit of steps; see [`Apart`](super::Apart).
    TakesLong,
    /// It has failed.
    Never(FsError),
}

/// Result of a read that may not wait.
pub enum ReadNow {
    /// The number of bytes read; nothing is missing.
    Bytes(usize),
    /// Some bytes must be fetched; yields all bytes of the read.
    Later(BoxFuture<'static, Result<Bytes, FsError>>),
}

/// The target of a seek.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SeekTo {
    /// The next stored byte.
    Data,
    /// The next hole; every file ends in one.
    Hole,
}

/// Content of a tree, as far as it is available.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A tree of immutable files; the names of some directories may change ([`Tree::names_stay`]).
pub trait Tree: Send + Sync + 'static {
    /// A node by name; `None` if the directory has no such name.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<NodeAttr>>;

    /// Whether a missing name of a directory stays missing.
    fn names_stay(&self, _directory: NodeId) -> bool {
        true
    }

    /// A node's metadata.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn attr(&self, node: NodeId) -> Answer<NodeAttr>;

    /// The metadata of a node whose number may be stale, as from a file handle that outlived the node's cache entry.
    ///
    /// # Errors
    /// [`NoAnswer`]; [`FsError::NoSuchNode`] if the tree has no such node.
    fn node(&self, node: NodeId) -> Answer<NodeAttr>;

    /// The parent of a directory; the root is its own parent.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn parent(&self, node: NodeId) -> Answer<NodeId>;

    /// The names of a directory from position `from`, without `.` and `..`. Positions never change.
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

    /// The target of a symlink.
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

    /// The names of all extended attributes of any node; `None` if there are too many to scan.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn all_xattr_names(&self) -> Answer<Option<BTreeSet<Vec<u8>>>> {
        Ok(None)
    }

    /// The next offset of a file at or after `at` that matches, as in lseek(2); `None` past the end.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn seek(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Answer<Option<FileOffset>>;

    /// Reads cached bytes of a file into `buf`; fewer bytes than requested only at the end of the file. Calls
    /// `before_wait` before it waits for the disk.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Answer<ReadNow>;

    /// Reads up to `length` bytes of a file; fetches missing ones.
    fn read(self: Arc<Self>, node: NodeId, at: FileOffset, length: usize)
    -> BoxFuture<'static, Result<Bytes, FsError>>;

    /// The inode number shown to programs: 1 for the root, unique for all others.
    fn inode(&self, node: NodeId) -> u64;

    /// The ctime of a node.
    fn changed(&self, attr: &NodeAttr) -> Timestamp;

    /// Distinguishes nodes with the same number in two trees, for file handles that outlive a mount.
    fn generation(&self) -> u32;

    /// Its content.
    fn totals(&self) -> Totals {
        Totals::default()
    }

    /// The kernel has dropped a node: its cache entries can be dropped.
    fn forget(&self, _node: NodeId) {}

    /// Ends the mount and its requests in flight.
    fn end(&self) {}

    /// The content that the kernel may hold itself, if any.
    fn kernel_content(&self) -> Option<&dyn KernelContent> {
        None
    }
}

/// Content that the kernel reads directly, and has to drop if it turns out wrong.
pub trait KernelContent: Send + Sync {
    /// A verified copy of `node` for the kernel, if there is one.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn copy_now(&self, node: NodeId) -> Answer<Option<File>>;

    /// Makes the copy of [`KernelContent::copy_now`], if that is possible and worthwhile; completes even if the future
    /// is dropped.
    ///
    /// # Errors
    /// [`NoAnswer`]
    fn make_copy(&self, node: NodeId) -> Answer<Option<BoxFuture<'static, Option<File>>>>;

    /// Waits until shown content turns out wrong; returns the nodes that may have been shown. For one caller; never
    /// returns if nothing is shown before it is verified.
    fn revoked(&self) -> BoxFuture<'_, Box<dyn Iterator<Item = NodeId> + Send>>;
}

/// Runs `question` until it has a result.
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

/// Target of a path.
pub enum Reached {
    /// A node.
    Node(NodeAttr),
    /// A name that its directory does not have.
    Missing {
        /// The names from the root to the missing one, without symlinks.
        path: Vec<Vec<u8>>,
        /// The rest of the path.
        rest: VecDeque<Vec<u8>>,
    },
}

/// Resolves a path from the root, through symlinks, never out of the tree.
///
/// # Errors
/// [`FsError`]
pub async fn walk(tree: &dyn Tree, path: &[u8], last: Last) -> Result<NodeAttr, FsError> {
    match reach(tree, path, last).await? {
        Reached::Node(attr) => Ok(attr),
        Reached::Missing { .. } => Err(FsError::NotFound),
    }
}

/// As [`walk`]; also returns the place of a missing name.
///
/// # Errors
/// [`FsError`]; a missing name is not an error.
pub async fn reach(tree: &dyn Tree, path: &[u8], last: Last) -> Result<Reached, FsError> {
    match resolve(tree, path, last).await? {
        Resolved::Found(mut names) => match names.pop() {
            Some((_, attr)) => Ok(Reached::Node(attr)),
            // The root's metadata may come from any layer, so it is asked for only if it is wanted.
            None => awaited(tree, |tree| tree.attr(NodeId::ROOT)).await.map(Reached::Node),
        },
        Resolved::Missing { path, rest } => Ok(Reached::Missing { path, rest }),
        Resolved::Beyond { .. } => Err(FsError::NotADirectory),
    }
}

/// The names from the root to what `path` names, without symlinks on the way; the last name is not followed. What does
/// not exist (any more) stays as it was named.
///
/// # Errors
/// [`FsError`]
pub async fn real_path(tree: &dyn Tree, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
    let (mut names, rest) = match resolve(tree, path, Last::Keep).await? {
        Resolved::Found(names) => return Ok(names.into_iter().map(|(name, _)| name).collect()),
        Resolved::Missing { path, rest } | Resolved::Beyond { path, rest } => (path, rest),
    };
    for name in rest {
        if name == b".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    Ok(names)
}

enum Resolved {
    /// The names below the root, with their nodes.
    Found(Vec<(Vec<u8>, NodeAttr)>),
    /// As [`Reached::Missing`].
    Missing { path: Vec<Vec<u8>>, rest: VecDeque<Vec<u8>> },
    /// A name on the way is not a directory; `rest` begins behind it.
    Beyond { path: Vec<Vec<u8>>, rest: VecDeque<Vec<u8>> },
}

async fn resolve(tree: &dyn Tree, path: &[u8], last: Last) -> Result<Resolved, FsError> {
    // The directories on the way, with their names, below the root.
    let mut above = Vec::<(Vec<u8>, NodeAttr)>::new();
    let mut rest: VecDeque<Vec<u8>> = names(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let here = above.last().map(|(_, attr)| attr);
        if here.is_some_and(|here| here.kind != Kind::Directory) {
            rest.push_front(name);
            return Ok(Resolved::Beyond { path: above.into_iter().map(|(name, _)| name).collect(), rest });
        }
        if name == b".." {
            above.pop();
            continue;
        }
        let parent = here.map_or(NodeId::ROOT, |here| here.node);
        let Some(found) = awaited(tree, |tree| tree.lookup(parent, &name)).await? else {
            let path = above.into_iter().map(|(name, _)| name).chain([name]).collect();
            return Ok(Resolved::Missing { path, rest });
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
    Ok(Resolved::Found(above))
}

/// The names of a path; skips empty ones and `.`.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}
