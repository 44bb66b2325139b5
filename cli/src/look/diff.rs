//! `peelfs diff`: what differs between two images.
//!
//! Layers that both images have at their bottom are the same on both sides. Only names that the other layers have are
//! compared; of the shared ones, an index is read where a name is not decided above, and never a byte of a file.

use std::cmp::Ordering;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use serde::Serialize;

use super::Stop;
use super::args::DiffArgs;
use super::cat::PIECE;
use super::open::{Looked, cannot, named};
use super::out::{JsonNode, Out, json_name};
use super::walk::{Step, Walk, listed, target};
use crate::args::ImageArgs;
use crate::progress::Meter;
use crate::{specs, text};
use peelfs::host::report::{Code, Report};
use peelfs::host::{open, process};
use peelfs::image::{FsError, ImageFs, LayerIndexes, LayerRef, NearFiles, Tree, Version, tree};
use peelfs::layer::{Flags, Kind};
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, LayerNo, NodeAttr, NodeId};

/// Whether the images differ.
///
/// # Errors
/// A report whose code is not 1, which says that they differ.
pub(crate) fn run(args: &DiffArgs) -> Result<bool, Report> {
    if specs::is_piped(&args.image.reference) && specs::is_piped(&args.other) {
        return Err(Report::usage("standard input can be only one of the two images"));
    }
    let compared = process::runtime(process::Purpose::Reading)?.block_on(async {
        let before = specs::image(&args.image)?;
        let after = ImageArgs { reference: args.other.clone(), ..args.image.clone() };
        let after = specs::image(&after)?;
        // Layers that both have are open once.
        let shared_layers = open::shared_layers(&before.cache)?;
        let meter = Arc::new(Meter::start("comparing files", args.image.opening.quiet.into()));
        let before = Looked::of(open::open(&before, &shared_layers).await?, &meter);
        let after = Looked::of(open::open(&after, &shared_layers).await?, &meter);
        compare(args, [before, after]).await
    });
    compared.map_err(|report| match report.code {
        Code::Failure => Report { code: Code::Usage, ..report },
        _ => report,
    })
}

async fn compare(args: &DiffArgs, images: [Looked; 2]) -> Result<bool, Report> {
    let layers = images.each_ref().map(|image| &image.opened.plan.layers[..]);
    let shared = layers[0].iter().zip(layers[1]).take_while(|(a, b)| a.content() == b.content()).count();
    let all_shared = layers.iter().all(|layers| layers.len() == shared);
    let first = LayerNo(u16::try_from(shared).expect("a manifest has at most 1000 layers"));
    let [before, after] = &images;
    let sides = [Side::of(before, first).await?, Side::of(after, first).await?];
    let mut comparison = Comparison {
        args,
        shared: first,
        sides,
        near: Default::default(),
        meter: &before.meter,
        out: Out::new(),
        counts: Counts::default(),
        path: Vec::new(),
    };
    let compared = match all_shared {
        true => Ok(()),
        false => comparison.start(args.path.as_os_str().as_bytes()).await,
    };
    let differ = comparison.counts.differ();
    match compared.and_then(|()| comparison.end().map_err(Stop::from)) {
        Ok(()) => Ok(differ),
        // As in `diff a b | head`.
        Err(stop) => stop.outcome().map(|()| true),
    }
}

/// One of the images.
struct Side<'a> {
    image: &'a Arc<ImageFs>,
    tree: &'a Arc<dyn Tree>,
    layers: &'a [LayerRef],
    /// Indexes of the layers that the other image does not share.
    own: LayerIndexes,
    /// Whether any of its files may have extended attributes.
    has_xattrs: bool,
}

impl<'a> Side<'a> {
    async fn of(looked: &'a Looked, first: LayerNo) -> Result<Self, FsError> {
        let image = looked.shown.image();
        let own = image.layer_indexes(first).await?;
        // Of shared layers nothing may be known, and nothing need be.
        let has_xattrs = first != LayerNo(0)
            || tree::awaited(&*looked.tree, |tree| tree.all_xattr_names()).await?.is_none_or(|names| !names.is_empty());
        Ok(Self { image, tree: &looked.tree, layers: &looked.opened.plan.layers, own, has_xattrs })
    }

    /// Whether names of the shared layers show through in a directory of these versions.
    fn sees_shared(&self, versions: &[Version]) -> Result<bool, FsError> {
        for version in versions {
            if version.hides {
                return Ok(false);
            }
            if let Some(id) = version.entry {
                let entry = self.own.entry(version.layer, id)?;
                if entry.kind() != Kind::Directory || entry.is(Flags::OPAQUE) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeAttr>, FsError> {
        tree::awaited(&**self.tree, |tree| tree.lookup(dir, name)).await
    }

    async fn xattrs(&self, attr: &NodeAttr) -> Result<Vec<(Vec<u8>, Vec<u8>)>, FsError> {
        if !self.has_xattrs {
            return Ok(Vec::new());
        }
        tree::awaited(&**self.tree, |tree| {
            let mut xattrs = Vec::new();
            for name in tree.xattr_names(attr.node)? {
                xattrs.extend(tree.xattr(attr.node, &name)?.map(|value| (name, value)));
            }
            Ok(xattrs)
        })
        .await
    }
}

struct Comparison<'a> {
    args: &'a DiffArgs,
    /// The number of layers that both have at the bottom.
    shared: LayerNo,
    sides: [Side<'a>; 2],
    /// What small files were read of each.
    near: [NearFiles; 2],
    /// Shows what is read of both.
    meter: &'a Meter,
    out: Out,
    counts: Counts,
    path: Vec<u8>,
}

#[derive(Default)]
struct Counts {
    added: u64,
    added_bytes: u64,
    deleted: u64,
    deleted_bytes: u64,
    changed: u64,
}

impl Counts {
    fn differ(&self) -> bool {
        self.added + self.deleted + self.changed > 0
    }
}

/// A name that one or both images have.
struct Pair {
    name: Vec<u8>,
    nodes: [Option<NodeAttr>; 2],
    /// What the layers that are not shared have there.
    versions: [Vec<Version>; 2],
}

/// What differs of a path that both images have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Aspect {
    Type,
    Content,
    Mode,
    Owner,
    Time,
    Xattrs,
    Target,
    Device,
}

impl Comparison<'_> {
    async fn start(&mut self, path: &[u8]) -> Result<(), Stop> {
        let mut names = [Vec::new(), Vec::new()];
        let mut versions = [Vec::new(), Vec::new()];
        for ((side, names), versions) in self.sides.iter().zip(&mut names).zip(&mut versions) {
            *names =
                tree::real_path(&**side.tree, path).await.map_err(|error| cannot("compare", path, error.into()))?;
            *versions = side.own.root()?;
            for name in &*names {
                *versions = side.own.child(versions, name)?;
            }
        }
        self.path = [b"/", &names[0].join(&b'/')[..]].concat();
        if names.iter().all(Vec::is_empty) && self.shares_root(&versions)? {
            let inside = self.inside([NodeId::ROOT; 2], &versions).await?;
            return self.pairs(inside).await;
        }
        let [a, b] = [&self.sides[0], &self.sides[1]];
        let found = (
            named(&**a.tree, "compare", path, Last::Follow).await,
            named(&**b.tree, "compare", path, Last::Follow).await,
        );
        let nodes = match found {
            (Ok(a), Ok(b)) => [Some(a), Some(b)],
            (Ok(a), Err(error)) if error.code == Code::NotFound => [Some(a), None],
            (Err(error), Ok(b)) if error.code == Code::NotFound => [None, Some(b)],
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        self.pairs(vec![Pair { name: Vec::new(), nodes, versions }]).await
    }

    /// Whether the root is described by shared layers only, so that no layer has to be asked for its metadata.
    fn shares_root(&self, versions: &[Vec<Version>; 2]) -> Result<bool, FsError> {
        for (side, versions) in self.sides.iter().zip(versions) {
            for version in versions {
                let entry = version.entry.map(|id| side.own.entry(version.layer, id)).transpose()?;
                if entry.is_none_or(|entry| !entry.is(Flags::IMPLIED)) {
                    return Ok(false);
                }
            }
        }
        Ok(self.shared != LayerNo(0))
    }

    /// Compares pairs of names in one directory, and all that is below them.
    async fn pairs(&mut self, top: Vec<Pair>) -> Result<(), Stop> {
        // The rest of each directory on the way, and the length of its path.
        let mut open: Vec<(usize, std::vec::IntoIter<Pair>)> = vec![(self.path.len(), top.into_iter())];
        while let Some((length, rest)) = open.last_mut() {
            self.path.truncate(*length);
            let Some(pair) = rest.next() else {
                open.pop();
                continue;
            };
            if !pair.name.is_empty() {
                if !self.path.ends_with(b"/") {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(&pair.name);
            }
            match &pair.nodes {
                [None, None] => {}
                [Some(node), None] => self.whole(0, node).await?,
                [None, Some(node)] => self.whole(1, node).await?,
                [Some(before), Some(after)] => {
                    self.both(before, after).await?;
                    match (before.kind, after.kind) {
                        (Kind::Directory, Kind::Directory) => {
                            let inside = self.inside([before.node, after.node], &pair.versions).await;
                            let inside = inside.map_err(|error| cannot("compare", &self.path, error.into()))?;
                            open.push((self.path.len(), inside.into_iter()));
                        }
                        (Kind::Directory, _) => self.below(0, before).await?,
                        (_, Kind::Directory) => self.below(1, after).await?,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The names of two directories that may differ, sorted by bytes.
    async fn inside(&self, dirs: [NodeId; 2], versions: &[Vec<Version>; 2]) -> Result<Vec<Pair>, FsError> {
        let [a, b] = &self.sides;
        let sees = [a.sees_shared(&versions[0])?, b.sees_shared(&versions[1])?];
        if self.shared == LayerNo(0) || sees != [true, true] {
            let lists = [listed(&**a.tree, dirs[0]).await?, listed(&**b.tree, dirs[1]).await?];
            for (side, dir) in self.sides.iter().zip(dirs) {
                side.tree.forget(dir);
            }
            return self.joined(lists, versions);
        }
        let [own, others] = [a.own.children(&versions[0])?, b.own.children(&versions[1])?];
        let mut pairs = Vec::new();
        for pair in merge(own, others, |(a, _), (b, _)| a.cmp(b)) {
            let (a_versions, b_versions) = pair;
            let name = a_versions.as_ref().or(b_versions.as_ref()).map_or(&[][..], |(name, _)| name).to_vec();
            let nodes = [a.lookup(dirs[0], &name).await?, b.lookup(dirs[1], &name).await?];
            let versions = [a_versions, b_versions].map(|side| side.map(|(_, versions)| versions).unwrap_or_default());
            pairs.push(Pair { name, nodes, versions });
        }
        Ok(pairs)
    }

    fn joined(
        &self,
        [own, others]: [Vec<(Vec<u8>, NodeAttr)>; 2],
        versions: &[Vec<Version>; 2],
    ) -> Result<Vec<Pair>, FsError> {
        let mut pairs = Vec::with_capacity(own.len().max(others.len()));
        for pair in merge(own, others, |(a, _), (b, _)| a.cmp(b)) {
            let (name, nodes) = match pair {
                (Some((name, a)), b) => (name, [Some(a), b.map(|(_, attr)| attr)]),
                (None, Some((name, b))) => (name, [None, Some(b)]),
                (None, None) => continue,
            };
            let mut inside = [Vec::new(), Vec::new()];
            // Only directories of both are compared by what is in them.
            if self.shared != LayerNo(0)
                && nodes.iter().all(|node| node.is_some_and(|node| node.kind == Kind::Directory))
            {
                for ((side, versions), inside) in self.sides.iter().zip(versions).zip(&mut inside) {
                    *inside = side.own.child(versions, &name)?;
                }
            }
            pairs.push(Pair { name, nodes, versions: inside });
        }
        Ok(pairs)
    }

    /// A node that one image has, and all that is in it.
    async fn whole(&mut self, side: usize, node: &NodeAttr) -> Result<(), Stop> {
        self.one(side, &self.path.clone(), node).await?;
        if node.kind == Kind::Directory { self.below(side, node).await } else { Ok(()) }
    }

    /// What is in a directory that one image has.
    async fn below(&mut self, side: usize, dir: &NodeAttr) -> Result<(), Stop> {
        let mut walk = Walk::new(self.sides[side].tree, &self.path, *dir);
        loop {
            match walk.next().await {
                Ok(Some(Step::Node(attr))) if walk.depth() > 0 => self.one(side, walk.path(), &attr).await?,
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) => return Err(cannot("compare", walk.path(), error.into()).into()),
            }
        }
    }

    /// A path that one image has.
    async fn one(&mut self, side: usize, path: &[u8], node: &NodeAttr) -> Result<(), Stop> {
        let (letter, count, bytes) = match side {
            0 => ('D', &mut self.counts.deleted, &mut self.counts.deleted_bytes),
            _ => ('A', &mut self.counts.added, &mut self.counts.added_bytes),
        };
        *count += 1;
        *bytes += if node.kind == Kind::File { node.size } else { 0 };
        let mut nodes = [None, None];
        nodes[side] = Some(node);
        self.print(letter, path, nodes, &[]).await
    }

    /// A path that both images have.
    async fn both(&mut self, before: &NodeAttr, after: &NodeAttr) -> Result<(), Stop> {
        let aspects = self.aspects(before, after).await;
        let aspects = aspects.map_err(|error| cannot("compare", &self.path, error.into()))?;
        if aspects.is_empty() {
            return Ok(());
        }
        self.counts.changed += 1;
        let letter = if aspects[0] == Aspect::Type { 'T' } else { 'M' };
        self.print(letter, &self.path.clone(), [Some(before), Some(after)], &aspects).await
    }

    async fn aspects(&mut self, before: &NodeAttr, after: &NodeAttr) -> Result<Vec<Aspect>, FsError> {
        if before.kind != after.kind {
            return Ok(vec![Aspect::Type]);
        }
        let is_dir = before.kind == Kind::Directory;
        let is_shared = |node: &NodeAttr| node.node.parts().is_some_and(|(layer, _)| layer < self.shared);
        if !is_dir && before.node == after.node && is_shared(before) {
            return Ok(Vec::new());
        }
        let [a, b] = &self.sides;
        let mut aspects = Vec::new();
        let mut differs = |aspect, differ: bool| aspects.extend(differ.then_some(aspect));
        differs(Aspect::Mode, before.mode != after.mode);
        differs(Aspect::Owner, (before.uid, before.gid) != (after.uid, after.gid));
        let same_time = (before.mtime, before.mtime_ns) == (after.mtime, after.mtime_ns);
        // Whatever is added to a directory changes its time.
        differs(Aspect::Time, !same_time && !is_dir && !self.args.ignore_times);
        differs(Aspect::Device, before.device != after.device);
        differs(Aspect::Xattrs, a.xattrs(before).await? != b.xattrs(after).await?);
        if before.kind == Kind::Symlink {
            let targets = (target(&**a.tree, before).await?, target(&**b.tree, after).await?);
            differs(Aspect::Target, targets.0 != targets.1);
        }
        // What is not printed is not read.
        let is_asked = aspects.is_empty() || self.args.json || self.args.stat;
        if before.kind == Kind::File && is_asked && !(self.args.quick && same_time && before.size == after.size) {
            let same = self.same_content(before, after).await?;
            aspects.extend((!same).then_some(Aspect::Content));
        }
        Ok(aspects)
    }

    /// Whether two files have the same content: as the layers' indexes tell, else by reading both.
    async fn same_content(&mut self, before: &NodeAttr, after: &NodeAttr) -> Result<bool, FsError> {
        if before.size != after.size {
            return Ok(false);
        }
        let [a, b] = &self.sides;
        let known = [
            a.image.awaited(|image| image.known_content_of(before.node, a.layers)).await?,
            b.image.awaited(|image| image.known_content_of(after.node, b.layers)).await?,
        ];
        if let Some(same) = known[0].is_same_as(&known[1]) {
            return Ok(same);
        }
        if before.size <= NearFiles::SMALL {
            let [near_a, near_b] = &mut self.near;
            let own = a.image.awaited(|image| image.near_file(before.node, near_a)).await?;
            let other = b.image.awaited(|image| image.near_file(after.node, near_b)).await?;
            if let (Some(own), Some(other)) = (own, other) {
                self.meter.add(before.size + after.size);
                return Ok(near_a.bytes(&own) == near_b.bytes(&other));
            }
        }
        let mut at = FileOffset(0);
        while at.0 < before.size {
            let read = |side: &Side<'_>, node: &NodeAttr| Arc::clone(side.tree).read(node.node, at, PIECE);
            let (own, other) = tokio::try_join!(read(a, before), read(b, after))?;
            self.meter.add((own.len() + other.len()) as u64);
            if own != other {
                return Ok(false);
            }
            at = at + own.len() as u64;
        }
        Ok(true)
    }

    async fn print(
        &mut self,
        letter: char,
        path: &[u8],
        nodes: [Option<&NodeAttr>; 2],
        aspects: &[Aspect],
    ) -> Result<(), Stop> {
        if self.args.image.opening.quiet {
            return Err(Stop::Enough);
        }
        if self.args.json {
            let mut sides = [None, None];
            for ((side, node), shown) in self.sides.iter().zip(nodes).zip(&mut sides) {
                if let Some(node) = node {
                    let target = target(&**side.tree, node).await?;
                    *shown = Some(JsonNode::new(&**side.tree, path, node, target.as_deref()));
                }
            }
            let [before, after] = sides;
            let (path, path_hex) = json_name(path);
            return Ok(self.out.json(&Difference {
                status: letter,
                path,
                path_hex,
                changes: aspects,
                before,
                after,
            })?);
        }
        if self.args.stat {
            let size = |node: Option<&NodeAttr>| match node {
                Some(node) if node.kind == Kind::File => text::size(node.size),
                Some(node) => text::kind(node.kind).to_owned(),
                None => "-".to_owned(),
            };
            let what: Vec<_> = aspects.iter().map(|aspect| format!("{aspect:?}").to_lowercase()).collect();
            let [before, after] = nodes.map(size);
            write!(self.out, "{letter} {before:>12} -> {after:<12} ")?;
            self.out.name(path)?;
            if !what.is_empty() {
                write!(self.out, "  ({})", what.join(", "))?;
            }
            return Ok(writeln!(self.out)?);
        }
        Ok(self.out.line(&format!("{letter}\t"), path)?)
    }

    fn end(&mut self) -> std::io::Result<()> {
        let counts = &self.counts;
        if self.args.stat && !self.args.json && !self.args.image.opening.quiet {
            writeln!(
                self.out,
                "{} changed, {} added ({}), {} deleted ({})",
                text::count(counts.changed, "path"),
                counts.added,
                text::size(counts.added_bytes),
                counts.deleted,
                text::size(counts.deleted_bytes),
            )?;
        }
        self.out.flush()
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct Difference<'a> {
    status: char,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    changes: &'a [Aspect],
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<JsonNode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<JsonNode>,
}

/// Joins two lists that are sorted by `order`; each pair has one of them at least.
fn merge<T>(own: Vec<T>, others: Vec<T>, order: impl Fn(&T, &T) -> Ordering) -> Vec<(Option<T>, Option<T>)> {
    let mut merged = Vec::with_capacity(own.len().max(others.len()));
    let (mut own, mut others) = (own.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let order = match (own.peek(), others.peek()) {
            (Some(a), Some(b)) => order(a, b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged,
        };
        let a = if order.is_le() { own.next() } else { None };
        let b = if order.is_ge() { others.next() } else { None };
        merged.push((a, b));
    }
}
