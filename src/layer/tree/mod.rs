//! The tree of one layer, built while its tar streams past.
//!
//! A layer is a change, not a file system: it lists what it adds and hides, and much of its meaning depends on the
//! layers below. This tree holds exactly what the layer states. The result is that of containerd's unpacker on an
//! otherwise unknown image, with one difference required by the image specification: a whiteout hides names of *lower*
//! layers wherever it is in the tar, never those of its own layer.
//!
//! Paths are first cleaned as text (`a/../b` is `b`, `..` stops at the root), then their parents are resolved through
//! symlinks of this layer. A parent without an entry becomes an implied directory; a lower layer may have a symlink
//! there, and then [`LayerTree::graft`] moves its entries. The path of a whiteout or an opaque marker implies nothing:
//! its directories are kept as [`Flags::WHITEOUT_PATH`], and exist only if a lower layer has them.
//!
//! Directories whose names begin with `.wh.` (AUFS has a few, with the bodies of hard links) are kept for the hard
//! links into them, and are never shown; see [`is_hidden`].
//!
//! Everything is limited by [`Limits`], nothing recurses, and no path can leave the root, since the tree consists of
//! names only.

mod apply;
mod error;
mod graft;
mod limits;
mod path;

pub use error::TreeError;
pub use limits::Limits;
pub(super) use path::clean;

use std::ops::Range;

use crate::offsets::FileOffset;

use super::entry::{DataExtent, Entry, EntryId, Extent, Flags, Kind, Record};
use super::extents::{Laying, whole_extent};
use super::names::{ID_LIMIT, NameTable};
use super::xattrs::{self, XattrSets};
use error::{too_long, too_many};

/// Bytes of an entry in an index besides its name: its record and its place among the children.
const ENTRY_BYTES: u64 = 68;
/// Limit for the depth of directories: more than any path that Linux can resolve at once.
const DEPTH_MAX: usize = 4096;
/// Limit for a name on Linux, in bytes.
const NAME_MAX: usize = 255;
/// Limit for a symlink target on Linux, in bytes.
const TARGET_MAX: usize = 4095;
const NONE: u32 = u32::MAX;
/// Prefix of whiteout names.
const WHITEOUT: &[u8] = b".wh.";

/// Whether a name is never shown: a whiteout, or a private directory of a union file system.
pub fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// The tree of one layer.
#[derive(Debug)]
pub struct LayerTree {
    limits: Limits,
    nodes: Vec<Node>,
    pub(super) names: Vec<u8>,
    table: NameTable,
    pub(super) extents: Vec<DataExtent>,
    pub(super) xattrs: XattrSets,
    link_steps: u64,
    ignored: u64,
    /// The parent path of the last entry and its directory; cleared when an entry is detached.
    last_parent: Option<(Vec<u8>, EntryId)>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    record: Record,
    /// Siblings, newest first. A directory's first child is its record's `b`.
    next: u32,
    previous: u32,
}

impl Default for LayerTree {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl LayerTree {
    /// A tree with only an implied root.
    pub fn new(limits: Limits) -> Self {
        let mut root = Record::implied(EntryId::ROOT, EntryId::ROOT);
        root.b = u64::from(NONE);
        Self {
            limits: Limits { entries: limits.entries.min(ID_LIMIT), ..limits },
            nodes: vec![Node { record: root, next: NONE, previous: NONE }],
            names: Vec::new(),
            table: NameTable::default(),
            extents: Vec::new(),
            xattrs: XattrSets::default(),
            link_steps: 0,
            ignored: 0,
            last_parent: None,
        }
    }

    /// Number of entries, including detached ones; ids are below this.
    pub fn len(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// Whether the layer is empty.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes[0].record.flags == Flags::IMPLIED
    }

    /// Number of ignored tar entries: a root that is not a directory, AUFS's own names (`.wh..wh.*`).
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The metadata of an entry.
    ///
    /// # Panics
    /// If the id is not below [`LayerTree::len`].
    pub fn entry(&self, id: EntryId) -> Entry {
        let own = self.nodes[id.index()].record;
        let mut record = self.nodes[own.inode as usize].record;
        record.parent = own.parent;
        record.name_at = own.name_at;
        record.name_len = own.name_len;
        record.flags = own.flags;
        if own.inode != id.0 {
            record.flags.set(self.nodes[own.inode as usize].record.flags & Flags::SPARSE);
        }
        Entry { record }
    }

    /// An entry's name in its directory; the root's is empty.
    pub fn name(&self, id: EntryId) -> &[u8] {
        let record = &self.nodes[id.index()].record;
        &self.names[record.name_at as usize..][..usize::from(record.name_len)]
    }

    /// The entry with this name in a directory.
    pub fn child(&self, directory: EntryId, name: &[u8]) -> Option<EntryId> {
        let hash = self.table.hash(directory.0, name);
        let is = |id: u32| {
            let record = &self.nodes[id as usize].record;
            record.parent == directory.0 && self.name(EntryId(id)) == name
        };
        self.table.find(hash, is).map(EntryId)
    }

    /// The entries of a directory, newest first; empty for other entries.
    pub fn children(&self, directory: EntryId) -> impl Iterator<Item = EntryId> + '_ {
        let record = &self.nodes[directory.index()].record;
        let mut next = if record.kind == Kind::Directory { record.b as u32 } else { NONE };
        std::iter::from_fn(move || {
            let id = (next != NONE).then_some(EntryId(next))?;
            next = self.nodes[id.index()].next;
            Some(id)
        })
    }

    /// The target of a symlink, as written.
    pub fn symlink_target(&self, id: EntryId) -> Option<&[u8]> {
        self.target(id, Kind::Symlink)
    }

    /// The target path of a [`Kind::LowerLink`], from the root, without a leading slash.
    pub fn link_target(&self, id: EntryId) -> Option<&[u8]> {
        self.target(id, Kind::LowerLink)
    }

    /// The extended attributes of an entry, by name.
    pub fn xattrs(&self, id: EntryId) -> impl Iterator<Item = (&[u8], &[u8])> {
        xattrs::parse(self.xattrs.raw(self.entry(id).record.xattrs)).flatten()
    }

    /// The extents of a file within `range`, including holes; empty for other entries.
    pub fn extents(&self, id: EntryId, range: Range<FileOffset>) -> Vec<Extent> {
        let record = self.entry(id).record;
        if record.kind != Kind::File {
            return Vec::new();
        }
        let end = range.end.0.min(record.a);
        if !record.flags.has(Flags::SPARSE) {
            return whole_extent(record.b, range.start.0, end);
        }
        let (first, count) = record.extent_run();
        let runs = &self.extents[first as usize..][..count as usize];
        let from = runs.partition_point(|run| run.file.0 + run.len <= range.start.0);
        let mut lay = Laying::new(range.start.0, end);
        for run in &runs[from..] {
            if !lay.run(*run) {
                break;
            }
        }
        lay.finish()
    }

    /// Implied directories in a described one or in the root: a lower layer may have something else at these paths.
    /// Their children are implied, too, down to described entries.
    pub fn implied_roots(&self) -> impl Iterator<Item = EntryId> + '_ {
        let implied = |id: u32| {
            let record = &self.nodes[id as usize].record;
            record.kind == Kind::Directory && record.flags & (Flags::IMPLIED | Flags::DETACHED) == Flags::IMPLIED
        };
        (1..self.len())
            .filter(move |&id| {
                let parent = self.nodes[id as usize].record.parent;
                implied(id) && (parent == 0 || !implied(parent))
            })
            .map(EntryId)
    }

    /// Inodes that are hard links into lower layers and still have a name.
    pub fn lower_links(&self) -> impl Iterator<Item = EntryId> + '_ {
        let live = |record: &Record, id: u32| record.kind == Kind::LowerLink && record.inode == id && record.nlink > 0;
        (1..self.len()).filter(move |&id| live(&self.nodes[id as usize].record, id)).map(EntryId)
    }

    /// The path of an entry from the root, without a leading slash.
    pub fn path(&self, id: EntryId) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = id;
        while at != EntryId::ROOT {
            parts.push(self.name(at));
            at = EntryId(self.nodes[at.index()].record.parent);
        }
        parts.reverse();
        parts.join(&b'/')
    }

    fn keep_runs(&mut self, runs: &[DataExtent]) -> Result<u64, TreeError> {
        if self.extents.len() + runs.len() > self.limits.extents {
            return Err(too_many("runs of sparse files", self.limits.extents as u64));
        }
        self.is_in_proportion(std::mem::size_of_val(runs) as u64)?;
        let first = self.extents.len() as u64;
        self.extents.extend_from_slice(runs);
        Ok(first | (runs.len() as u64) << 32)
    }

    /// Checks that `more` bytes of index are in proportion to the blob.
    fn is_in_proportion(&self, more: u64) -> Result<(), TreeError> {
        let runs = std::mem::size_of_val(&*self.extents) + self.xattrs.taken();
        let taken = self.nodes.len() as u64 * ENTRY_BYTES + self.names.len() as u64 + runs as u64;
        match taken.checked_add(more) {
            Some(all) if all <= self.limits.index => Ok(()),
            _ => Err(TreeError::OutOfProportion { limit: self.limits.index }),
        }
    }

    /// Stores a name or target; returns its length and place.
    fn keep(&mut self, bytes: &[u8]) -> Result<(u64, u64), TreeError> {
        if self.names.len() + bytes.len() > self.limits.names.min(u32::MAX as usize) {
            return Err(too_many("bytes of names", self.limits.names as u64));
        }
        self.is_in_proportion(bytes.len() as u64)?;
        let at = self.names.len();
        self.names.extend_from_slice(bytes);
        Ok((bytes.len() as u64, at as u64))
    }

    /// A new node with a name, without a place yet.
    fn fresh(&mut self, mut record: Record, name: &[u8]) -> Result<EntryId, TreeError> {
        if self.len() >= self.limits.entries {
            return Err(too_many("entries", u64::from(self.limits.entries)));
        }
        let (len, at) = self.keep(name)?;
        record.name_len = u8::try_from(len).map_err(|_| too_long(name))?;
        record.name_at = at as u32;
        if record.kind == Kind::Directory {
            record.b = u64::from(NONE);
        }
        let id = EntryId(self.len());
        self.nodes.push(Node { record, next: NONE, previous: NONE });
        Ok(id)
    }

    /// Adds an unplaced node to a directory.
    fn hook(&mut self, id: EntryId, directory: EntryId) {
        let first = self.nodes[directory.index()].record.b as u32;
        let node = &mut self.nodes[id.index()];
        node.record.parent = directory.0;
        (node.next, node.previous) = (first, NONE);
        if first != NONE {
            self.nodes[first as usize].previous = id.0;
        }
        let parent = &mut self.nodes[directory.index()].record;
        parent.b = u64::from(id.0);
        parent.a += 1;
        let hash = self.table.hash(directory.0, self.name(id));
        let (nodes, names) = (&self.nodes, &self.names);
        self.table.insert(hash, id.0, |table, id| {
            let record = &nodes[id as usize].record;
            table.hash(record.parent, &names[record.name_at as usize..][..usize::from(record.name_len)])
        });
    }

    /// Removes a node from its directory, with everything below it.
    fn unhook(&mut self, id: EntryId) {
        let Node { next, previous, record } = self.nodes[id.index()];
        let hash = self.table.hash(record.parent, self.name(id));
        self.table.remove(hash, id.0);
        let parent = &mut self.nodes[record.parent as usize].record;
        parent.a -= 1;
        if previous == NONE {
            parent.b = u64::from(next);
        } else {
            self.nodes[previous as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
    }

    /// Removes a node and everything below it from the tree. Ids stay valid, and so do inodes with other names.
    fn detach(&mut self, id: EntryId) {
        self.last_parent = None;
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            // A directory emptied by a merge has left its parent already.
            if !self.nodes[id.index()].record.flags.has(Flags::DETACHED) {
                self.unhook(id);
            }
            let record = &mut self.nodes[id.index()].record;
            record.flags.set(Flags::DETACHED);
            let (kind, inode) = (record.kind, record.inode);
            if kind == Kind::Directory && inode == id.0 {
                stack.extend(self.children(id).collect::<Vec<_>>());
            } else {
                let links = &mut self.nodes[inode as usize].record.nlink;
                *links = links.saturating_sub(1);
            }
        }
    }

    fn target(&self, id: EntryId, kind: Kind) -> Option<&[u8]> {
        let record = self.entry(id).record;
        (record.kind == kind).then(|| &self.names[record.b as usize..][..record.a as usize])
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }
}

/// Used to restore a tree from a written index, with its ids.
impl LayerTree {
    /// Adds the next id without a place; the record already refers to this tree's data.
    pub(super) fn restore(&mut self, record: Record, name: &[u8]) -> Result<EntryId, TreeError> {
        self.fresh(record, name)
    }

    pub(super) fn restore_root(&mut self, record: Record) {
        let b = self.nodes[0].record.b;
        self.nodes[0].record = Record { a: 0, b, parent: 0, inode: 0, name_at: 0, name_len: 0, ..record };
    }

    pub(super) fn restore_child(&mut self, directory: EntryId, id: EntryId) {
        self.hook(id, directory);
    }

    /// Marks entries without a place as detached.
    pub(super) fn detach_unplaced(&mut self, placed: &[bool]) {
        for (node, placed) in self.nodes.iter_mut().zip(placed) {
            if !placed {
                node.record.flags.set(Flags::DETACHED);
            }
        }
    }

    pub(super) fn restore_target(&mut self, target: &[u8]) -> Result<(u64, u64), TreeError> {
        self.keep(target)
    }

    pub(super) fn restore_runs(&mut self, runs: &[DataExtent]) -> Result<u64, TreeError> {
        self.keep_runs(runs)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tar::WalkError;
    use super::super::testing::{Dice, Tar, everything, render, short, tree, walk};
    use super::*;
    use crate::offsets::DecodedOffset;

    fn shape(tar: Tar) -> Vec<String> {
        short(&tree(&tar.end()).unwrap())
    }

    fn refusal(tar: Tar) -> TreeError {
        match tree(&tar.end()) {
            Err(WalkError::Entry { cause, .. }) => cause,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn at(tree: &LayerTree, path: &str) -> EntryId {
        path.split('/').fold(EntryId::ROOT, |id, name| tree.child(id, name.as_bytes()).unwrap())
    }

    #[test]
    fn indexes_of_an_image_are_in_proportion_to_its_blobs() {
        let limit = |layers, size| Limits::default().of_image(layers).of_blob(size).index;
        assert_eq!([limit(1, 0), limit(102, 0), limit(1000, 0)], [640 << 10, 640 << 10, 67_108]);
        for layers in [1, 10, 100, 300, 1000] {
            assert!(layers as u64 * limit(layers, 0) <= 64 << 20, "{layers}");
            // A path of maximum depth takes 300 KiB.
            assert!(layers > 100 || limit(layers, 164) > 500 << 10);
        }
        let mebibyte = limit(1, 1 << 20);
        assert!(mebibyte < 128 << 20 && mebibyte > 47 << 20, "{mebibyte}");
        assert_eq!(limit(1, u64::MAX), u64::MAX);
    }

    #[test]
    fn names_stay_inside_the_root() {
        let table: &[(&str, &[&str])] = &[
            ("/etc/x", &["etc/ implied", "etc/x"]),
            ("./x", &["x"]),
            ("a//b/./c", &["a/ implied", "a/b/ implied", "a/b/c"]),
            ("../../x", &["x"]),
            ("a/../../../x", &["x"]),
            ("a/../b/..//c", &["c"]),
            ("/..", &[]),
            (".", &[]),
            ("", &[]),
        ];
        for (path, wanted) in table {
            assert_eq!(shape(Tar::default().file(path, b"")), *wanted, "{path}");
        }
    }

    #[test]
    fn parents_are_followed_through_links_of_the_same_layer() {
        let table = [
            (Tar::default().symlink("lib", "usr/lib").file("lib/x", b""), "usr/lib/x"),
            (Tar::default().symlink("lib", "/usr/lib").file("lib/x", b""), "usr/lib/x"),
            (Tar::default().symlink("a", "/etc/../../../b").file("a/x", b""), "b/x"),
            (Tar::default().symlink("d/up", "..").file("d/up/x", b""), "x"),
            (Tar::default().symlink("out", "../../../../etc").file("out/passwd", b""), "etc/passwd"),
            (Tar::default().symlink("a", "b").symlink("b", "c").file("a/x", b""), "c/x"),
            (Tar::default().symlink("root", "/").file("root/x", b""), "x"),
            // The last component of a name is never followed.
            (Tar::default().symlink("x", "/etc/passwd").file("x", b""), "x"),
            // `..` in a name is text; in a symlink's target it is the parent directory.
            (Tar::default().symlink("l", "deep/er").file("l/../x", b""), "x"),
            (Tar::default().symlink("l", "deep/er").symlink("m", "l/..").file("m/x", b""), "deep/x"),
            (Tar::default().dir("far/down").symlink("l", "far/down").symlink("m", "l/..").file("m/x", b""), "far/x"),
        ];
        for (tar, wanted) in table {
            let lines = shape(tar);
            assert!(lines.iter().any(|line| line.split(' ').next() == Some(wanted)), "{wanted}: {lines:?}");
        }
    }

    #[test]
    fn links_back_over_missing_names_make_no_directories() {
        let lines = shape(Tar::default().symlink("l", "b/none/../c").file("l/x", b""));
        assert_eq!(lines, ["b/ implied", "b/c/ implied", "b/c/x", "l@b/none/../c"]);
        let lines = shape(Tar::default().symlink("l", "b/none/..").hard("h", "l/x"));
        assert_eq!(lines, ["h=b/x", "l@b/none/.."]);
    }

    #[test]
    fn link_loops_and_files_as_parents_are_errors() {
        let ring = Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b"");
        assert!(matches!(refusal(ring), TreeError::TooManyLinks { .. }));
        let mut chain = Tar::default();
        for link in 0..300 {
            chain = chain.symlink(&format!("l{link}"), &format!("l{}", link + 1));
        }
        assert!(matches!(refusal(chain.file("l0/x", b"")), TreeError::TooManyLinks { .. }));
        let growing = Tar::default().symlink("a", "a/a").file("a/x", b"");
        assert!(matches!(refusal(growing), TreeError::TooManyLinks { .. }));
        let file = Tar::default().file("a", b"").file("a/x", b"");
        assert!(matches!(refusal(file), TreeError::NotADirectory { .. }));
    }

    #[test]
    fn bombs_of_links_and_depth_end_in_an_error() {
        let limits = Limits { link_steps: 10_000, ..Limits::default() };
        let mut tar = Tar::default().dir("d").symlink("d/long", &"./".repeat(40).to_string());
        for file in 0..1000 {
            tar = tar.file(&format!("d/long/{file}"), b"");
        }
        // One parent is resolved once; different parents must each be resolved.
        let mut tree = LayerTree::new(limits);
        walk(&tar.clone().end(), &mut tree).unwrap();
        for dir in 0..1000 {
            tar = tar.file(&format!("d/long/d{dir}/x"), b"");
        }
        let mut tree = LayerTree::new(limits);
        let error = walk(&tar.end(), &mut tree).unwrap_err();
        assert!(matches!(error, WalkError::Entry { cause: TreeError::TooManyLinks { .. }, .. }), "{error:?}");

        let path = "d/".repeat(5000) + "x";
        let deep = Tar::default().pax(&[("path", path.as_bytes())]).file("x", b"");
        assert!(matches!(refusal(deep), TreeError::TooDeep { .. }));
        let mut tree = LayerTree::new(Limits { entries: 10, ..Limits::default() });
        let wide = (0..20).fold(Tar::default(), |tar, file| tar.file(&format!("f{file}"), b""));
        let error = walk(&wide.end(), &mut tree).unwrap_err();
        assert!(matches!(error, WalkError::Entry { cause: TreeError::TooMany { .. }, .. }), "{error:?}");
    }

    #[test]
    fn names_linux_cannot_hold_are_errors() {
        let long = "n".repeat(256);
        let tar = Tar::default().pax(&[("path", long.as_bytes())]).file("x", b"");
        assert!(matches!(refusal(tar), TreeError::NameTooLong { len: 256, .. }));
        let tar = Tar::default().pax(&[("linkpath", "t".repeat(4096).as_bytes())]).symlink("x", "y");
        assert!(matches!(refusal(tar), TreeError::TargetLength { len: 4096, .. }));
        assert!(matches!(refusal(Tar::default().symlink("x", "")), TreeError::TargetLength { len: 0, .. }));
        let huge = vec![b'v'; 65_537];
        let tar = Tar::default().pax(&[("SCHILY.xattr.user.x", &huge)]).file("x", b"");
        assert!(matches!(refusal(tar), TreeError::Xattr { .. }));
        let long = "p/".repeat(40_000);
        let tar = Tar::default().pax(&[("path", long.as_bytes())]).file("x", b"");
        assert!(matches!(refusal(tar), TreeError::PathTooLong { .. }));
    }

    #[test]
    fn the_last_of_duplicates_wins() {
        let both = |first: fn(Tar) -> Tar, second: fn(Tar) -> Tar| shape(second(first(Tar::default())));
        let file = |tar: Tar| tar.file("a", b"one");
        let full = |tar: Tar| tar.dir("a").file("a/b", b"");
        let dir = |tar: Tar| tar.dir("a");
        let link = |tar: Tar| tar.symlink("a", "b");
        assert_eq!(both(file, file), ["a hides"]);
        assert_eq!(both(full, file), ["a hides"]);
        assert_eq!(both(full, dir), ["a/", "a/b"]);
        assert_eq!(both(file, dir), ["a/ opaque hides"]);
        assert_eq!(both(link, dir), ["a/ opaque hides"]);
        assert_eq!(both(file, link), ["a@b hides"]);
    }

    #[test]
    fn a_directory_described_later_keeps_its_children() {
        let tree = tree(&Tar::default().file("a/b", b"").dir("a").end()).unwrap();
        let entry = tree.entry(at(&tree, "a"));
        assert_eq!((entry.mode(), entry.flags(), entry.mtime().seconds), (0o700, Flags::default(), 100));
        assert_eq!(tree.children(at(&tree, "a")).count(), 1);
        assert_eq!(tree.implied_roots().count(), 0);
    }

    #[test]
    fn whiteouts_hide_lower_names_only_wherever_they_stand() {
        let before = Tar::default().file("d/.wh.x", b"").file("d/x", b"");
        let after = Tar::default().file("d/x", b"").file("d/.wh.x", b"");
        for tar in [before, after] {
            assert_eq!(shape(tar), ["d/ implied", "d/x hides"]);
        }
        let table: [(Tar, &[&str]); 8] = [
            (Tar::default().file(".wh.x", b""), &["x!"]),
            (Tar::default().dir(".wh.x"), &["x!"]),
            (Tar::default().file("d/x", b"").file("d/.wh..wh..opq", b""), &["d/ implied opaque", "d/x"]),
            (Tar::default().file("d/.wh..wh..opq", b"").file("d/x", b""), &["d/ implied opaque", "d/x"]),
            (Tar::default().file(".wh.d", b"").file("d/x", b""), &["d/ implied opaque hides", "d/x"]),
            (Tar::default().file("d/x", b"").file(".wh.d", b""), &["d/ implied opaque hides", "d/x"]),
            (
                Tar::default().file(".wh..wh.plnk", b"").file(".wh..wh.aufs/x", b""),
                &[".wh..wh.aufs/ implied", ".wh..wh.aufs/x"],
            ),
            (Tar::default().symlink("l", "d").file("l/.wh.x", b""), &["d/ path", "d/x!", "l@d"]),
        ];
        for (tar, wanted) in table {
            assert_eq!(shape(tar), wanted);
        }
        let root = tree(&Tar::default().file(".wh..wh..opq", b"").end()).unwrap();
        assert!(root.entry(EntryId::ROOT).is(Flags::OPAQUE));
    }

    /// In every order and depth: the path of a whiteout or an opaque marker exists only if another entry of the layer
    /// needs it.
    #[test]
    fn paths_of_whiteouts_imply_no_directory() {
        let long = format!("d/.wh.{}", "n".repeat(255));
        let hidden = format!("d/{}!", "n".repeat(255));
        let table: [(&[&str], &[&str]); 19] = [
            (&["a/.wh.b"], &["a/ path", "a/b!"]),
            (&["a/b/c/.wh.d"], &["a/ path", "a/b/ path", "a/b/c/ path", "a/b/c/d!"]),
            (&["a/.wh..wh..opq"], &["a/ path opaque"]),
            (&["a/b/.wh..wh..opq", "a/.wh.b"], &["a/ path", "a/b/ path opaque hides"]),
            (&["a/.wh.b", ".wh.a"], &["a/ path hides", "a/b!"]),
            (&[".wh.a", "a/.wh.b"], &["a!"]),
            (&[".wh.a", "a/b/.wh..wh..opq", "a/.wh..wh..opq"], &["a!"]),
            (&["a/.wh.b", ".wh.a", "a/.wh.c"], &["a/ path hides", "a/b!"]),
            // With an entry in it, it is a directory like any other.
            (&["a/.wh.b", "a/c"], &["a/ implied", "a/b!", "a/c"]),
            (&["a/c", "a/.wh.b"], &["a/ implied", "a/b!", "a/c"]),
            (&["a/b/.wh.c", "a/d"], &["a/ implied", "a/b/ path", "a/b/c!", "a/d"]),
            (&["a/b/.wh.c", "a/b/"], &["a/ implied", "a/b/", "a/b/c!"]),
            (&["a/.wh.b", ".wh.a", "a/c"], &["a/ implied opaque hides", "a/b!", "a/c"]),
            (&["a/.wh.b", ".wh.a", "a/"], &["a/ opaque hides", "a/b!"]),
            (&[".wh.a", "a/c", "a/.wh.b"], &["a/ implied opaque hides", "a/b!", "a/c"]),
            // Nothing can be hidden below a file, and a file in place of a path removes the path.
            (&["a", "a/.wh.b", "a/b/.wh..wh..opq"], &["a"]),
            (&["a/b/.wh.c", "a"], &["a hides"]),
            (&["a/b/.wh.c", "a/b"], &["a/ implied", "a/b hides"]),
            (&[&long], &["d/ path", &hidden]),
        ];
        for (names, wanted) in table {
            let add = |tar: Tar, name: &&str| match name.strip_suffix('/') {
                _ if name.len() > 100 => tar.pax(&[("path", name.as_bytes())]).file("x", b""),
                Some(dir) => tar.dir(dir),
                None => tar.file(name, b""),
            };
            assert_eq!(shape(names.iter().fold(Tar::default(), add)), wanted, "{names:?}");
        }
        let link = Tar::default().file("a/.wh.b", b"").hard("h", "a").hard("i", "a/b").hard("a", "a");
        assert_eq!(shape(link), ["a=a hides", "h=a", "i=a/b"], "a hard link asks the layers below");
        let back = Tar::default().file("g/.wh.x", b"").symlink("l", "g/../c").file("l/f", b"");
        assert_eq!(shape(back), ["c/ implied", "c/f", "g/ path", "g/x!", "l@g/../c"], "gone back over");
    }

    #[test]
    fn whiteouts_of_nothing_are_errors() {
        for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh...", "d/.wh../"] {
            assert!(matches!(refusal(Tar::default().file(name, b"")), TreeError::Whiteout { .. }), "{name}");
        }
    }

    #[test]
    fn hard_links_share_an_inode_and_count_it() {
        let tar = Tar::default().file("a", b"one").hard("b", "/a").hard("c", "./b").file("a", b"other");
        let tree = tree(&tar.end()).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| tree.entry(at(&tree, name)));
        assert_eq!((b.inode(), b.nlink(), b.size(), b.kind()), (EntryId(1), 2, 3, Kind::File));
        assert_eq!((c.inode(), c.nlink()), (EntryId(1), 2));
        assert_eq!((a.inode(), a.nlink(), a.size()), (EntryId(4), 1, 5));
        assert!(tree.entry(EntryId(1)).is(Flags::DETACHED));
    }

    #[test]
    fn hard_links_of_every_kind() {
        let table: [(Tar, &[&str]); 8] = [
            (Tar::default().symlink("s", "t").hard("h", "s"), &["h@t", "s@t"]),
            (Tar::default().hard("h", "../../etc/passwd"), &["h=etc/passwd"]),
            (Tar::default().hard("h", "h"), &["h=h"]),
            (Tar::default().file("h", b"").hard("h", "h"), &["h"]),
            (Tar::default().symlink("l", "/usr").hard("h", "l/x"), &["h=usr/x", "l@/usr"]),
            (Tar::default().file(".wh.x", b"").hard("h", "x"), &["h=x", "x!"]),
            (Tar::default().hard("a", "low").hard("b", "a"), &["a=low", "b=low"]),
            (Tar::default().file("d/x", b"").hard("d", "d/x"), &["d=d/x hides"]),
        ];
        for (tar, wanted) in table {
            assert_eq!(shape(tar), wanted);
        }
        for (path, target) in [("h", "d"), ("h", "/"), ("h", ""), ("h", ".."), ("d", "d")] {
            let tar = Tar::default().dir("d").hard(path, target);
            assert!(matches!(refusal(tar), TreeError::LinkToDirectory { .. }), "{target}");
        }
    }

    #[test]
    fn later_link_headers_describe_the_shared_inode() {
        let tar = Tar::default().file("a", b"").header(b'1', b"b", 0, |block| {
            block[157] = b'a';
            block[100..108].copy_from_slice(b"0004755\0");
        });
        let tree = tree(&tar.end()).unwrap();
        assert_eq!(tree.entry(at(&tree, "a")).mode(), 0o4755);
    }

    #[test]
    fn implied_roots_and_lower_links_are_listed() {
        let tar = Tar::default().file("a/b/x", b"").dir("c").file("c/d/x", b"").hard("h", "low").hard("i", "h");
        let tree = tree(&tar.end()).unwrap();
        let paths = |ids: Vec<EntryId>| ids.into_iter().map(|id| tree.path(id)).collect::<Vec<_>>();
        assert_eq!(paths(tree.implied_roots().collect()), [b"a".to_vec(), b"c/d".to_vec()]);
        assert_eq!(paths(tree.lower_links().collect()), [b"h"]);
    }

    #[test]
    fn graft_moves_children_and_keeps_ids() {
        let tar = Tar::default()
            .file("bin/sh", b"old")
            .file("bin/sub/x", b"")
            .file("bin/.wh.gone", b"")
            .dir("usr/bin")
            .file("usr/bin/sh", b"newer")
            .file("usr/bin/sub/y", b"")
            .file("usr/bin/gone", b"")
            .hard("link", "usr/bin/sub/x");
        let mut tree = tree(&tar.end()).unwrap();
        let x = at(&tree, "bin/sub/x");
        assert_eq!(tree.lower_links().count(), 1);
        tree.graft(at(&tree, "bin"), b"/usr/bin").unwrap();
        tree.join_lower_links().unwrap();
        let wanted = [
            "link",
            "usr/ implied",
            "usr/bin/",
            "usr/bin/gone hides",
            "usr/bin/sh hides",
            "usr/bin/sub/ implied",
            "usr/bin/sub/x",
            "usr/bin/sub/y",
        ];
        assert_eq!(short(&tree), wanted);
        assert_eq!(at(&tree, "usr/bin/sub/x"), x);
        assert_eq!(tree.entry(at(&tree, "usr/bin/sh")).size(), 5);
        assert_eq!((tree.entry(x).nlink(), tree.lower_links().count()), (2, 0));
        assert_eq!(tree.entry(at(&tree, "link")).inode(), x);
    }

    #[test]
    fn graft_makes_parents_and_refuses_a_place_below_itself() {
        let mut tree = tree(&Tar::default().file("a/x", b"").file("a/.wh..wh..opq", b"").end()).unwrap();
        let a = at(&tree, "a");
        assert!(matches!(tree.graft(a, b"a/b"), Err(TreeError::GraftIntoItself { .. })));
        assert!(matches!(tree.graft(a, b"a"), Err(TreeError::GraftIntoItself { .. })));
        let mut tree =
            super::super::testing::tree(&Tar::default().file("a/x", b"").file("a/.wh..wh..opq", b"").end()).unwrap();
        tree.graft(a, b"../p/q").unwrap();
        assert_eq!(short(&tree), ["p/ implied", "p/q/ implied opaque", "p/q/x"]);
    }

    #[test]
    fn graft_of_whiteouts_makes_no_directory() {
        let graft = |names: &[&str]| {
            let tar = names.iter().fold(Tar::default(), |tar, name| tar.file(name, b""));
            let mut tree = tree(&tar.end()).unwrap();
            tree.graft(at(&tree, "l"), b"p/q").unwrap();
            short(&tree)
        };
        assert_eq!(graft(&["l/.wh.x"]), ["p/ path", "p/q/ path", "p/q/x!"]);
        assert_eq!(
            graft(&["l/d/.wh.x", "p/q/d/y"]),
            ["p/ implied", "p/q/ implied", "p/q/d/ implied", "p/q/d/x!", "p/q/d/y"]
        );
        assert_eq!(
            graft(&["l/d/y", "p/q/d/.wh.x"]),
            ["p/ implied", "p/q/ implied", "p/q/d/ implied", "p/q/d/x!", "p/q/d/y"]
        );
        assert_eq!(graft(&["l/d/.wh.x", "p/q/d"]), ["p/ implied", "p/q/ implied", "p/q/d hides"]);
        assert_eq!(graft(&["l/d", "p/q/d/.wh.x"]), ["p/ implied", "p/q/ implied", "p/q/d hides"]);
        assert_eq!(graft(&["l/d/.wh.x", "p/q/.wh.d"]), ["p/ path", "p/q/ path", "p/q/d/ path hides", "p/q/d/x!"]);
        assert_eq!(graft(&["l/.wh.x", "p/.wh.q"]), ["p/ path", "p/q!"]);
        assert_eq!(graft(&["l/.wh.x", "p"]), ["p"]);
        // A whiteout of the link itself came later, and stays in its place.
        assert_eq!(graft(&["l/.wh.x", ".wh.l"]), ["l/ path hides", "p/ path", "p/q/ path", "p/q/x!"]);
        assert_eq!(graft(&["l/.wh..wh..opq", ".wh.l"]), ["l/ path opaque hides", "p/ path", "p/q/ path opaque"]);
    }

    #[test]
    fn answers_do_not_change_while_the_tree_grows() {
        let tar = everything();
        let mut walker = super::super::tar::TarWalker::new();
        let mut tree = LayerTree::default();
        let mut seen = false;
        for piece in tar.chunks(700) {
            walker.push(piece, &mut tree).unwrap();
            if let Some(etc) = tree.child(EntryId::ROOT, b"etc")
                && let Some(passwd) = tree.child(etc, b"passwd")
            {
                seen = true;
                assert_eq!((passwd, tree.entry(passwd).data()), (EntryId(2), Some(DecodedOffset(2560))));
            }
        }
        assert!(seen);
    }

    #[test]
    fn sparse_files_show_their_holes() {
        let tree = tree(&everything()).unwrap();
        let extents = |range: Range<u64>| -> Vec<_> {
            let range = FileOffset(range.start)..FileOffset(range.end);
            let extents = tree.extents(at(&tree, "old-sparse"), range);
            extents.into_iter().map(|run| (run.file.start.0, run.file.end.0, run.decoded.map(|at| at.0))).collect()
        };
        let all = [(0, 2, None), (2, 7, Some(13_312)), (7, 18, None), (18, 21, Some(13_317)), (21, 64, None)];
        assert_eq!(extents(0..u64::MAX), all);
        assert_eq!(extents(4..19), [(4, 7, Some(13_314)), (7, 18, None), (18, 19, Some(13_317))]);
        assert_eq!(extents(30..40), [(30, 40, None)]);
        assert_eq!(extents(64..70), []);
    }

    /// A plain map from path to kind: the result of applying the operations one after another.
    #[test]
    fn random_layers_agree_with_a_plain_model() {
        let mut dice = Dice(11);
        for _ in 0..400 {
            let mut model: BTreeMap<String, char> = BTreeMap::new();
            let mut tar = Tar::default();
            for _ in 0..12 {
                let names = ["a", "b", "a/c", "a/d", "b/c", "a/c/e", "b/c/e"];
                let name = names[dice.roll(names.len())];
                let parents: Vec<&str> = name.match_indices('/').map(|(slash, _)| &name[..slash]).collect();
                if parents.iter().any(|parent| model.get(*parent) == Some(&'f')) {
                    continue;
                }
                for parent in parents {
                    model.insert(parent.into(), 'd');
                }
                let below = format!("{name}/");
                if dice.roll(2) == 0 {
                    tar = tar.file(name, b"");
                    model.retain(|path, _| !path.starts_with(&below));
                    model.insert(name.into(), 'f');
                } else {
                    tar = tar.dir(name);
                    model.insert(name.into(), 'd');
                }
            }
            let tree = tree(&tar.end()).unwrap();
            let lines = short(&tree);
            let got: Vec<String> = lines.iter().map(|line| line.split(' ').next().unwrap().to_string()).collect();
            let wanted: Vec<String> =
                model.iter().map(|(path, kind)| if *kind == 'd' { format!("{path}/") } else { path.clone() }).collect();
            let sort = |mut list: Vec<String>| {
                list.sort();
                list
            };
            assert_eq!(sort(got), sort(wanted));
            assert_eq!(render(&tree).len(), model.len() + 1);
        }
    }
}
