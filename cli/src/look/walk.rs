//! A walk through a tree in the order of `find`: a directory before what is in it, names sorted by bytes.
//!
//! At most [`BATCH`] names of each directory on the way are in memory, so a walk needs the same memory for an image of
//! ten files and of ten million.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use peelfs::image::{FsError, Tree, tree};
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr, NodeId};

/// A walk. [`Walk::path`] is the path of the latest step.
pub(crate) struct Walk {
    tree: Arc<dyn Tree>,
    path: Vec<u8>,
    /// Bytes of the path from which it started.
    start: usize,
    /// Where the last name begins in `path`.
    name: usize,
    levels: Vec<Level>,
    next: Next,
}

/// One step of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A node; what is in it follows if it is a directory.
    Node(NodeAttr),
    /// The end of a directory.
    Leave,
}

enum Next {
    Start(NodeAttr),
    /// Enter this directory.
    Enter(NodeAttr),
    /// The next name of the innermost directory.
    Name,
}

/// The bytes of all files at `paths` and below them, an inode once; `None` if they cannot all be listed.
pub(crate) fn size_of_all(tree: &Arc<dyn Tree>, paths: &[PathBuf]) -> impl Future<Output = Option<u64>> + Send + use<> {
    let (tree, paths) = (Arc::clone(tree), paths.to_vec());
    async move {
        let (mut total, mut seen) = (0, HashSet::new());
        for path in &paths {
            let path = path.as_os_str().as_bytes();
            let mut walk = Walk::new(&tree, path, tree::walk(&*tree, path, Last::Follow).await.ok()?);
            while let Some(step) = walk.next().await.ok()? {
                if let Step::Node(attr) = step
                    && attr.kind == Kind::File
                    && (attr.nlink < 2 || seen.insert(attr.node))
                {
                    total += attr.size;
                }
            }
        }
        Some(total)
    }
}

/// A directory that the walk is in.
struct Level {
    dir: NodeAttr,
    /// Length of its path, and where its name begins.
    path: usize,
    name: usize,
    /// Position of the names that are not in `batch` yet; `None` if there are no more.
    rest: Option<u64>,
    batch: VecDeque<(Vec<u8>, NodeAttr)>,
}

impl Walk {
    /// A walk from `path`, whose node is `start`.
    pub(crate) fn new(tree: &Arc<dyn Tree>, path: &[u8], start: NodeAttr) -> Self {
        let trimmed = path.len() - path.iter().rev().take_while(|byte| **byte == b'/').count();
        let name = path[..trimmed].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (path, begin) = (path.to_vec(), path.len());
        Self { tree: Arc::clone(tree), path, start: begin, name, levels: Vec::new(), next: Next::Start(start) }
    }

    /// The path of the latest step: the start as it was named, names joined by `/`.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path from which it started, as it was named.
    pub(crate) fn start(&self) -> &[u8] {
        &self.path[..self.start.min(self.path.len())]
    }

    /// The last name of [`Walk::path`]; as `find` has it, a start keeps its slashes.
    pub(crate) fn name(&self) -> &[u8] {
        match self.path[self.name..].split(|byte| *byte == b'/').next() {
            Some([]) | None => b"/",
            Some(name) => name,
        }
    }

    /// Levels below the start of the latest [`Step::Node`].
    pub(crate) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Does not enter the directory of the latest step.
    pub(crate) fn skip(&mut self) {
        self.next = Next::Name;
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// [`FsError`] if a directory cannot be listed, which is that of [`Walk::path`]; the walk continues behind it.
    pub(crate) async fn next(&mut self) -> Result<Option<Step>, FsError> {
        match std::mem::replace(&mut self.next, Next::Name) {
            Next::Start(attr) => return Ok(Some(self.node(attr))),
            Next::Enter(dir) => {
                let (path, name) = (self.path.len(), self.name);
                self.levels.push(Level { dir, path, name, rest: Some(0), batch: VecDeque::new() });
            }
            Next::Name => {}
        }
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.batch.is_empty()
            && let Some(from) = level.rest
        {
            let filled = fill(&*self.tree, level, from).await;
            if filled.is_err() {
                (level.rest, level.batch) = (None, VecDeque::new());
                self.path.truncate(level.path);
                self.name = level.name;
            }
            filled?;
        }
        let level = self.levels.last_mut().expect("it was there");
        self.path.truncate(level.path);
        let Some((name, attr)) = level.batch.pop_front() else {
            let Level { dir, name, .. } = self.levels.pop().expect("it was there");
            self.name = name;
            // Its names are not asked for again; a large image has many directories.
            self.tree.forget(dir.node);
            return Ok(Some(Step::Leave));
        };
        if !self.path.ends_with(b"/") {
            self.path.push(b'/');
        }
        self.name = self.path.len();
        self.path.extend_from_slice(&name);
        Ok(Some(self.node(attr)))
    }

    fn node(&mut self, attr: NodeAttr) -> Step {
        if attr.kind == Kind::Directory {
            self.next = Next::Enter(attr);
        }
        Step::Node(attr)
    }
}

async fn fill(tree: &dyn Tree, level: &mut Level, from: u64) -> Result<(), FsError> {
    let dir = level.dir.node;
    let (batch, rest) = tree::awaited(tree, |tree| {
        let (mut batch, mut rest) = (VecDeque::new(), None);
        tree.list_with_attrs(dir, from, &mut |entry, attr| {
            batch.push_back((entry.name.to_vec(), *attr));
            if batch.len() < BATCH {
                return ControlFlow::Continue(());
            }
            rest = Some(entry.next);
            ControlFlow::Break(())
        })?;
        Ok((batch, rest))
    })
    .await?;
    (level.batch, level.rest) = (batch, rest);
    Ok(())
}

/// All names of a directory with their metadata, in memory.
///
/// # Errors
/// [`FsError`]
pub(crate) async fn listed(tree: &dyn Tree, dir: NodeId) -> Result<Vec<(Vec<u8>, NodeAttr)>, FsError> {
    tree::awaited(tree, |tree| {
        let mut listed = Vec::new();
        tree.list_with_attrs(dir, 0, &mut |entry, attr| {
            listed.push((entry.name.to_vec(), *attr));
            ControlFlow::Continue(())
        })?;
        Ok(listed)
    })
    .await
}

/// Whether a directory has no names.
///
/// # Errors
/// [`FsError`]
pub(crate) async fn is_empty(tree: &dyn Tree, dir: &NodeAttr) -> Result<bool, FsError> {
    tree::awaited(tree, |tree| {
        let mut empty = true;
        tree.list(dir.node, 0, &mut |_| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    })
    .await
}

/// The target of a symlink; `None` for others.
///
/// # Errors
/// [`FsError`]
pub(crate) async fn target(tree: &dyn Tree, attr: &NodeAttr) -> Result<Option<Vec<u8>>, FsError> {
    match attr.kind {
        Kind::Symlink => tree::awaited(tree, |tree| tree.symlink_target(attr.node)).await.map(Some),
        _ => Ok(None),
    }
}

/// Names of a directory in memory at a time.
const BATCH: usize = 1024;
