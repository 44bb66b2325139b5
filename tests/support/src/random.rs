//! Random layered images, the same for the same seed.
//!
//! They hold what real layers hold and what the specification defines: every kind of entry, metadata of
//! all sorts, whiteouts and opaque markers at any place, duplicates, replaced kinds, parents without
//! entries, hard links within and across layers. They avoid what unpackers disagree about: entries below
//! symbolic links or below files (also below those that a whiteout of the same layer removes), links to
//! things that are gone, links with metadata of their own.

use std::collections::BTreeMap;

use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::tar::{Entry, EntryKind};

use super::model::{self, NodeKind, Tree};

/// A generator of numbers (xorshift64*), the same for the same seed on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1));
        // Seeds that are near each other start far apart only after a few steps.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number less than `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 56) as u8).collect()
    }
}

/// Where whiteouts and opaque markers stand in their layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Markers {
    /// Before all entries, as most tools write them.
    First,
    /// Anywhere.
    Anywhere,
}

/// What images may be like.
#[derive(Clone, Debug)]
pub struct Shape {
    pub layers: usize,
    pub entries: usize,
    pub markers: Markers,
    /// How many of them a layer may begin with.
    pub most_markers: usize,
    /// Device nodes, which an unpacker may not be allowed to make.
    pub devices: bool,
    /// `security.capability` and `user.*`.
    pub xattrs: bool,
    /// Layers are packed in one of these ways.
    pub packings: Vec<Packing>,
    /// Some archives lack their end.
    pub unterminated: bool,
    /// Some files are this large.
    pub large: usize,
    /// Entries also lie below symbolic links of lower layers, which their own layer leaves alone.
    pub through_links: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            layers: 5,
            entries: 30,
            markers: Markers::Anywhere,
            most_markers: 4,
            devices: true,
            xattrs: true,
            packings: vec![
                Packing::Stored,
                Packing::GZIP,
                Packing::Gzip { level: 1, member: Some(3000) },
                Packing::Gzip { level: 0, member: None },
                Packing::ZSTD,
                Packing::Zstd { level: 1, frame: Some(5000), skippable: true },
            ],
            unterminated: true,
            large: 300_000,
            through_links: false,
        }
    }
}

impl Shape {
    /// Small layers with more whiteouts and opaque markers than anything else.
    pub fn whiteouts() -> Self {
        Self { layers: 7, entries: 8, most_markers: 12, large: 5000, ..Self::default() }
    }
}

/// An image and what it must look like.
#[derive(Clone, Debug)]
pub struct RandomImage {
    pub seed: u64,
    /// The entries of each layer in tar order, base first.
    pub layers: Vec<Vec<Entry>>,
    pub image: Image,
    pub tree: Tree,
}

impl RandomImage {
    /// What its layers hold, a line for each entry, for people.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        for (number, layer) in self.layers.iter().enumerate() {
            for entry in layer {
                let kind = match &entry.kind {
                    EntryKind::File(content) => format!("file of {} bytes", content.len()),
                    EntryKind::HardLink(target) => format!("hard link to {}", target.escape_ascii()),
                    other => format!("{other:?}"),
                };
                text.push_str(&format!("layer {number}: {} {kind}\n", entry.path.escape_ascii()));
            }
        }
        text
    }
}

/// The image of a seed.
pub fn image(seed: u64, shape: &Shape) -> RandomImage {
    let mut random = Random::new(seed);
    let mut tree = Tree::new();
    let mut layers = Vec::new();
    let mut builder = ImageBuilder::new();
    for _ in 0..1 + random.below(shape.layers) {
        let entries = Sketch::new(&mut random, shape, &tree).finish();
        tree.apply(&entries);
        let mut layer = LayerBuilder::of(&entries).packing(random.pick(&shape.packings));
        if shape.unterminated && random.chance(20) {
            layer = layer.without_end();
        }
        builder = builder.layer(layer);
        layers.push(entries);
    }
    RandomImage { seed, layers, image: builder.build(), tree }
}

/// One layer while it is thought up.
struct Sketch<'a> {
    random: &'a mut Random,
    shape: &'a Shape,
    lower: &'a Tree,
    /// What the layer's entries so far make of the lower layers, its whiteouts applied.
    tree: Tree,
    entries: Vec<Entry>,
    markers: Vec<Entry>,
    /// Directories that hold a marker, or that a link leads to; they must stay directories.
    marked: Vec<Vec<u8>>,
    /// Links of lower layers that a marker lies below; they must stay.
    followed: Vec<Vec<u8>>,
    /// Links of lower layers that entries may lie below.
    links: Vec<Vec<u8>>,
    /// Where entries landed, and under which name: a layer that has one thing under two names says
    /// something only to those who know the lower layers when they read it.
    landed: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<'a> Sketch<'a> {
    fn new(random: &'a mut Random, shape: &'a Shape, lower: &'a Tree) -> Self {
        let mut sketch = Self {
            random,
            shape,
            lower,
            tree: lower.clone(),
            entries: Vec::new(),
            markers: Vec::new(),
            marked: Vec::new(),
            followed: Vec::new(),
            links: Vec::new(),
            landed: BTreeMap::new(),
        };
        let names: Vec<Vec<u8>> = lower.iter().skip(1).map(|(path, _)| path.to_vec()).collect();
        if !names.is_empty() {
            for _ in 0..sketch.random.below(shape.most_markers + 1) {
                let name = sketch.random.pick(&names);
                sketch.marker(name);
            }
        }
        if shape.through_links {
            let is_link = |node: &model::Node| matches!(node.kind, NodeKind::Symlink(_));
            let links = sketch.tree.iter().filter(|(_, node)| is_link(node)).map(|(path, _)| path.to_vec());
            sketch.links = links.collect();
        }
        for _ in 0..1 + sketch.random.below(shape.entries) {
            sketch.entry();
        }
        sketch
    }

    /// The entries in tar order, in one of the spellings in which tools write names.
    fn finish(mut self) -> Vec<Entry> {
        let mut all = std::mem::take(&mut self.entries);
        // Among themselves they stay in their order: a later one may lie below a link that it would follow.
        let markers = std::mem::take(&mut self.markers);
        let mut places: Vec<usize> = match self.shape.markers {
            Markers::First => vec![0; markers.len()],
            Markers::Anywhere => markers.iter().map(|_| self.random.below(all.len() + 1)).collect(),
        };
        places.sort_unstable();
        for (marker, at) in markers.into_iter().zip(places).rev() {
            all.insert(at, marker);
        }
        if self.random.chance(30) {
            let root = Entry { path: b".".to_vec(), ..self.dressed(Entry::dir("")) };
            all.insert(0, root);
        }
        let prefix: &[u8] = if self.random.chance(30) { b"./" } else { b"" };
        for entry in all.iter_mut().filter(|entry| entry.path != b".") {
            entry.path.splice(0..0, prefix.iter().copied());
            if let EntryKind::HardLink(target) = &mut entry.kind {
                target.splice(0..0, prefix.iter().copied());
            }
        }
        all
    }

    /// Hides something of the lower layers, or what they do not have.
    fn marker(&mut self, mut name: Vec<u8>) {
        while self.random.chance(20) {
            name = model::join(&name, self.random.pick(NAMES));
        }
        let is_dir = self.tree.get(&name).is_some_and(|node| node.kind == NodeKind::Dir);
        let opaque = self.random.chance(if is_dir { 50 } else { 15 });
        let (marker, parent) = if opaque {
            (Entry::opaque(&name), name.as_slice())
        } else {
            (Entry::whiteout(&name), model::parent_of(&name))
        };
        if !opaque && model::is_hidden(&name[if parent.is_empty() { 0 } else { parent.len() + 1 }..]) {
            return;
        }
        // Where links lead in a circle unpackers give up.
        let Some(landing) = self.tree.landing(&model::join(parent, b"x")) else { return };
        let links = self.tree.links_on_the_way(parent);
        if !links.is_empty() && self.lower.landing(&model::join(parent, b"x")).as_ref() != Some(&landing) {
            return; // this layer has hidden a link that another leads to
        }
        self.followed.extend(links);
        self.marked.push(model::parent_of(&landing).to_vec());
        self.tree.apply_whiteout(&marker);
        self.markers.push(marker);
    }

    fn entry(&mut self) {
        let Some(path) = self.path() else { return };
        let Some(landing) = self.tree.landing(&path) else { return };
        let must_stay_link = self.links.contains(&landing) || self.followed.contains(&landing);
        let is_marker = model::is_hidden(&path[model::parent_of(&path).len()..]);
        if must_stay_link || is_marker || self.landed.get(&landing).is_some_and(|name| *name != path) {
            return;
        }
        self.landed.insert(landing.clone(), path.clone());
        let must_stay = self.marked.iter().chain(&self.links).chain(&self.followed);
        let must_be_dir = must_stay.into_iter().any(|dir| *dir == landing || model::is_below(dir, &landing));
        let is_dir = self.tree.get(&landing).is_some_and(|node| node.kind == NodeKind::Dir);
        // Directories are replaced now and then, but seldom enough for trees to grow.
        let entry = match self.random.below(if self.shape.devices { 16 } else { 14 }) {
            _ if must_be_dir || (is_dir && self.random.chance(80)) => Entry::dir(path),
            0..=3 => Entry::dir(path),
            4..=8 => {
                let content = self.content();
                Entry::file(path, content)
            }
            9 | 10 => Entry::symlink(path, self.random.pick(TARGETS).to_vec()),
            11 | 12 => match self.link_target(&landing) {
                Some(target) => {
                    let link = self.hard_link(path, target);
                    self.add(link);
                    return;
                }
                None => return,
            },
            13 => Entry::fifo(path),
            14 => Entry::char_device(path, 1 + self.random.below(200) as u32, self.random.below(200) as u32),
            _ => Entry::block_device(path, 1 + self.random.below(200) as u32, self.random.below(200) as u32),
        };
        let entry = self.dressed(entry);
        // A marker in what replaces a link would be about what the link leads to, or about the directory.
        let was_link = self.lower.get(&landing).is_some_and(|node| matches!(node.kind, NodeKind::Symlink(_)));
        let new_dir = entry.kind == EntryKind::Dir && !is_dir && !was_link && landing == entry.path;
        let path = entry.path.clone();
        self.add(entry);
        if new_dir && self.random.chance(10) {
            // Hides nothing, but is often there; it must come after what makes the directory.
            let marker = Entry::opaque(&path);
            if self.shape.markers == Markers::Anywhere {
                self.entries.push(marker);
                self.marked.push(path);
            }
        }
    }

    fn add(&mut self, entry: Entry) {
        self.tree.apply_entry(&entry);
        self.entries.push(entry);
    }

    /// A name whose parents are directories or missing.
    fn path(&mut self) -> Option<Vec<u8>> {
        if !self.links.is_empty() && self.random.chance(30) {
            return self.path_below_a_link();
        }
        let known: Vec<Vec<u8>> = self.tree.iter().skip(1).map(|(path, _)| path.to_vec()).collect();
        if !known.is_empty() && self.random.chance(25) {
            return Some(self.random.pick(&known));
        }
        let dirs: Vec<Vec<u8>> =
            self.tree.iter().filter(|(_, node)| node.kind == NodeKind::Dir).map(|(path, _)| path.to_vec()).collect();
        let mut path = self.random.pick(&dirs);
        while self.random.chance(20) {
            let name = if self.random.chance(15) { self.random.pick(HIDDEN) } else { self.random.pick(NAMES) };
            path = model::join(&path, name);
            let in_the_way = |tree: &Tree| tree.get(&path).is_some_and(|node| node.kind != NodeKind::Dir);
            if in_the_way(&self.tree) || in_the_way(self.lower) {
                return None;
            }
        }
        Some(model::join(&path, self.random.pick(NAMES)))
    }

    /// A name below a link that leads to a directory, or to where one can be made.
    fn path_below_a_link(&mut self) -> Option<Vec<u8>> {
        let link = self.random.pick(&self.links);
        let path = model::join(&link, self.random.pick(NAMES));
        let landing = self.tree.landing(&path)?;
        if self.lower.landing(&path).as_ref() != Some(&landing) {
            return None; // this layer has put a link of its own on the way
        }
        let dir = model::parent_of(&landing).to_vec();
        let mut above = dir.as_slice();
        while !above.is_empty() {
            let in_the_way = |tree: &Tree| tree.get(above).is_some_and(|node| node.kind != NodeKind::Dir);
            if in_the_way(&self.tree) || in_the_way(self.lower) {
                return None;
            }
            above = model::parent_of(above);
        }
        self.marked.push(dir);
        Some(path)
    }

    /// A regular file that stays when `path` is replaced.
    fn link_target(&mut self, path: &[u8]) -> Option<Vec<u8>> {
        let files: Vec<Vec<u8>> = self
            .tree
            .iter()
            .filter(|(_, node)| matches!(node.kind, NodeKind::File(_)))
            .map(|(target, _)| target.to_vec())
            .filter(|target| target != path && !model::is_below(target, path))
            .filter(|target| self.landed.get(target).is_none_or(|name| name == target))
            .collect();
        (!files.is_empty()).then(|| self.random.pick(&files))
    }

    /// A hard link with the metadata of its target, as tar writes it.
    fn hard_link(&self, path: Vec<u8>, target: Vec<u8>) -> Entry {
        let node = self.tree.get(&target).expect("the target was taken from the tree");
        let link = Entry::hard_link(path, target).mode(node.mode).owner(node.uid, node.gid);
        let link = link.mtime(node.mtime.seconds, node.mtime.nanos);
        node.xattrs.iter().fold(link, |link, (name, value)| link.xattr(name.clone(), value.clone()))
    }

    fn dressed(&mut self, mut entry: Entry) -> Entry {
        let is_file = matches!(entry.kind, EntryKind::File(_));
        if !matches!(entry.kind, EntryKind::Symlink(_)) && self.random.chance(50) {
            entry.mode = self.random.pick(&[0, 0o400, 0o600, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o6711, 0o777]);
        }
        if self.random.chance(40) {
            entry = entry.owner(self.random.pick(IDS), self.random.pick(IDS));
        }
        if self.random.chance(70) {
            let seconds = self.random.pick(&[0, 1, -1, -1_000_000, 1_234_567_890, 1_700_000_001, 4_000_000_000]);
            let nanos = self.random.pick(&[0, 0, 1, 500_000_000, 999_999_999]);
            entry = entry.mtime(seconds, nanos);
        }
        if self.shape.xattrs && (is_file || entry.kind == EntryKind::Dir) && self.random.chance(25) {
            for name in ["user.a", "user.b.c"] {
                // An empty value in a PAX record takes the record back.
                let len = 1 + self.random.below(60);
                entry = entry.xattr(name, self.random.bytes(len));
            }
            if is_file && self.random.chance(50) {
                entry = entry.xattr("security.capability", CAPABILITY);
            }
        }
        entry
    }

    fn content(&mut self) -> Vec<u8> {
        let size = match self.random.below(20) {
            0 => self.shape.large,
            _ => self.random.pick(&[0, 1, 100, 511, 512, 513, 1024, 4095, 4096, 4097, 10_000]),
        };
        if self.random.chance(50) {
            return self.random.bytes(size);
        }
        let words = self.random.bytes(16);
        (0..size).map(|at| words[(at / 3 + at / 50) % 16]).collect()
    }
}

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"ab",
    b"a.b",
    b"a-b",
    b"A",
    b"with space",
    b"new\nline",
    "h\u{e4}".as_bytes(),
    b"\xff\x80",
    b".hidden",
    b"..dots",
    b"wh.",
    b"a-name-that-is-longer-than-one-hundred-bytes-and-so-does-not-fit-into-the-name-field-of-a-ustar-header-at-all",
];
/// Names of directories that are never shown.
const HIDDEN: &[&[u8]] = &[b".wh..wh.plnk", b".wh..wh.orph", b".wh.a", b".wh.x"];
const TARGETS: &[&[u8]] = &[
    b"a",
    b"../b",
    b"/a/b",
    b"../../../../outside",
    b"/nowhere",
    b".",
    b"with space/\xff",
    b"a-target-that-is-longer-than-one-hundred-bytes-and-so-does-not-fit-into-the-link-field-of-a-ustar-header-at-all",
];
const IDS: &[u64] = &[0, 1, 1000, 65534, 2_097_151, 2_097_152, 4_000_000_000];
/// `cap_net_bind_service=ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
