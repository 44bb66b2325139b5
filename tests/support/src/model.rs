//! The plain reference model: layers applied one over the other into a map from paths to nodes.
//!
//! It is as slow and as simple as image-spec, layer.md reads, and was written without looking at how
//! peelfs does it. Where the specification is silent it does what containerd and umoci do when they
//! unpack one layer after the other:
//!
//! - a layer's whiteouts act before its entries, wherever they stand, and so on lower layers only; among
//!   themselves in their order; they make no directory, and do nothing where there is none;
//! - what lies in a directory whose name begins with `.wh.` is there for hard links, and is not shown;
//! - entries act in their order; the last of a name wins; a directory over a directory changes its
//!   metadata (extended attributes included) and keeps its children, everything else replaces the
//!   subtree that was there, and a directory that comes after such a replacement starts empty;
//! - parents that are missing are directories of mode 0755, owner 0, time 0 ([`Node::implied`]);
//!   parents that are symbolic links are followed inside the image, and a `..` in a link goes back over
//!   a name that is missing without making it; any other parent is replaced;
//! - a hard link is another name of the node its target names at that moment, in this layer or a lower
//!   one, and changes nothing about that node; without a target it is left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use peelfs_loopback::tar::{Entry, EntryKind, Mtime};

/// What one inode is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    pub kind: NodeKind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Mtime,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// No layer has an entry for this directory; its metadata is a convention.
    pub implied: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeKind {
    File(Bytes),
    Dir,
    Symlink(Vec<u8>),
    Fifo,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// A node as seen under one of its names: what two trees must agree on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    pub node: Node,
    /// All names of this inode in order; one name for directories.
    pub names: Vec<Vec<u8>>,
    /// What `stat` says about their number; 1 for directories, where it says something else.
    pub nlink: u64,
}

/// A tree of names; the root's name is empty, no name begins or ends with a slash.
#[derive(Clone, Debug)]
pub struct Tree {
    names: BTreeMap<Vec<u8>, usize>,
    nodes: Vec<Node>,
}

impl Tree {
    /// A root and nothing in it.
    pub fn new() -> Self {
        Self { names: BTreeMap::from([(Vec::new(), 0)]), nodes: vec![Node::implied_dir()] }
    }

    /// All layers applied, base first.
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a [Entry]>) -> Self {
        let mut tree = Self::new();
        layers.into_iter().for_each(|layer| tree.apply(layer));
        tree
    }

    /// Applies one layer over what is there.
    pub fn apply(&mut self, layer: &[Entry]) {
        layer.iter().for_each(|entry| self.apply_whiteout(entry));
        layer.iter().filter(|entry| !is_whiteout(entry)).for_each(|entry| self.apply_entry(entry));
    }

    /// Removes from the lower layers what this entry hides, if it is a whiteout.
    pub fn apply_whiteout(&mut self, entry: &Entry) {
        let parts = components(&entry.path);
        let Some((name, parents)) = parts.split_last() else { return };
        let Some(hidden) = name.strip_prefix(b".wh.") else { return };
        let Some(parent) = self.walk(parents, |_| None) else { return };
        if hidden == b".wh..opq" {
            self.remove_below(&parent);
        } else if !hidden.starts_with(b".wh.") && !matches!(hidden, b"" | b"." | b"..") {
            self.remove(&join(&parent, hidden));
        }
    }

    /// Applies one entry that is no whiteout.
    pub fn apply_entry(&mut self, entry: &Entry) {
        let parts = components(&entry.path);
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind == EntryKind::Dir {
                self.nodes[self.names[&Vec::new()]] = Node::of(entry, NodeKind::Dir);
            }
            return;
        };
        let Some(parent) = self.make_parents(parents) else { return };
        let path = join(&parent, name);
        let kind = match &entry.kind {
            EntryKind::File(content) => NodeKind::File(content.clone()),
            EntryKind::Dir => NodeKind::Dir,
            EntryKind::Symlink(target) => NodeKind::Symlink(target.clone()),
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major: *major, minor: *minor },
            EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major: *major, minor: *minor },
            EntryKind::HardLink(target) => {
                let found = self.resolve(&components(target)).and_then(|target| self.names.get(&target).copied());
                if let Some(inode) = found.filter(|inode| self.nodes[*inode].kind != NodeKind::Dir) {
                    self.remove(&path);
                    self.names.insert(path, inode);
                }
                return;
            }
        };
        let node = Node::of(entry, kind);
        match self.names.get(&path) {
            Some(inode) if node.kind == NodeKind::Dir && self.nodes[*inode].kind == NodeKind::Dir => {
                self.nodes[*inode] = node;
            }
            _ => {
                self.remove(&path);
                self.insert(path, node);
            }
        }
    }

    /// The node of a name.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.names.get(path).map(|inode| &self.nodes[*inode])
    }

    /// All names with their nodes, the root first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.names.iter().map(|(path, inode)| (path.as_slice(), &self.nodes[*inode]))
    }

    /// The names that are shown directly in a directory, in order.
    pub fn children(&self, dir: &[u8]) -> Vec<&[u8]> {
        let shown = self.names.keys().filter(|path| !is_hidden(path));
        let inside = shown.filter(|path| !path.is_empty() && parent_of(path) == dir);
        inside.map(|path| &path[if dir.is_empty() { 0 } else { dir.len() + 1 }..]).collect()
    }

    /// Everything there is to see, for comparing.
    pub fn seen(&self) -> BTreeMap<Vec<u8>, Seen> {
        let shown = || self.names.iter().filter(|(path, _)| !is_hidden(path));
        let mut names: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, inode) in shown() {
            names.entry(*inode).or_default().push(path.clone());
        }
        let seen = |inode: &usize| Seen {
            node: self.nodes[*inode].clone(),
            names: names[inode].clone(),
            nlink: names[inode].len() as u64,
        };
        shown().map(|(path, inode)| (path.clone(), seen(inode))).collect()
    }

    fn insert(&mut self, path: Vec<u8>, node: Node) {
        self.names.insert(path, self.nodes.len());
        self.nodes.push(node);
    }

    fn remove(&mut self, path: &[u8]) {
        self.names.remove(path);
        self.remove_below(path);
    }

    fn remove_below(&mut self, dir: &[u8]) {
        self.names.retain(|path, _| !is_below(path, dir));
    }

    /// The directory these names lead to, links followed inside the image; it is made where it is missing.
    fn make_parents(&mut self, parents: &[&[u8]]) -> Option<Vec<u8>> {
        let dir = self.walk(parents, |_| Some(()))?;
        for end in (0..=dir.len()).filter(|end| *end == dir.len() || dir[*end] == b'/') {
            let path = &dir[..end];
            if self.get(path).is_none_or(|node| node.kind != NodeKind::Dir) {
                self.remove(path);
                self.insert(path.to_vec(), Node::implied_dir());
            }
        }
        Some(dir)
    }

    /// Where an entry of this name would land.
    pub fn landing(&self, path: &[u8]) -> Option<Vec<u8>> {
        let parts = components(path);
        let (name, parents) = parts.split_last()?;
        Some(join(&self.walk(parents, |_| Some(()))?, name))
    }

    /// The symbolic links on the way to a directory of this name.
    pub fn links_on_the_way(&self, dir: &[u8]) -> Vec<Vec<u8>> {
        let links = RefCell::new(Vec::new());
        let seen = |link: &[u8]| links.borrow_mut().push(link.to_vec());
        self.walk_telling(&components(dir), |_| Some(()), seen);
        links.into_inner()
    }

    /// The path these names lead to if all but the last are there; the last may be anything or nothing.
    fn resolve(&self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let Some((name, parents)) = parts.split_last() else { return Some(Vec::new()) };
        let parent = self.walk(parents, |_| None)?;
        Some(join(&parent, name))
    }

    fn walk(&self, parts: &[&[u8]], missing: impl Fn(&[u8]) -> Option<()>) -> Option<Vec<u8>> {
        self.walk_telling(parts, missing, |_| {})
    }

    fn walk_telling(
        &self,
        parts: &[&[u8]],
        missing: impl Fn(&[u8]) -> Option<()>,
        link: impl Fn(&[u8]),
    ) -> Option<Vec<u8>> {
        let mut rest: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut at: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == b".." {
                at = parent_of(&at).to_vec();
                continue;
            }
            let next = join(&at, &part);
            match self.get(&next).map(|node| node.kind.clone()) {
                Some(NodeKind::Dir) => at = next,
                Some(NodeKind::Symlink(target)) => {
                    link(&next);
                    links += 1;
                    if links > 255 {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    for part in target.split(|byte| *byte == b'/').rev().filter(|part| !matches!(*part, b"" | b".")) {
                        rest.push_front(part.to_vec());
                    }
                }
                _ => {
                    missing(&next)?;
                    at = next;
                }
            }
        }
        Some(at)
    }
}

impl Node {
    fn of(entry: &Entry, kind: NodeKind) -> Self {
        Self {
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.iter().cloned().collect(),
            implied: false,
        }
    }

    fn implied_dir() -> Self {
        let mtime = Mtime { seconds: 0, nanos: 0 };
        Self { kind: NodeKind::Dir, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new(), implied: true }
    }
}

/// Whether the entry hides things and shows nothing.
pub fn is_whiteout(entry: &Entry) -> bool {
    components(&entry.path).last().is_some_and(|name| name.starts_with(b".wh."))
}

/// Whether a name of this path is never shown.
pub fn is_hidden(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".wh."))
}

/// The names of a path; `..` never leads above the root.
pub fn components(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts
}

/// `name` in `dir`.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The directory a name is in; the root is in itself.
pub fn parent_of(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
}

/// Whether `path` is anywhere below `dir`.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    match dir {
        b"" => !path.is_empty(),
        _ => path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/")),
    }
}
