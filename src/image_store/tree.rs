//! The store as a [`Tree`]: its own files in memory, and layers as [`LayerFs`].

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::documents::{self, Stored, StoredLayer};
use super::ids::IdMap;
use super::nodes::{Directory, List, Node, OfLayer};
use super::numbers::{Keep, Numbers, Remembered};
use super::tar_split::{MakeFile, TarSplit};
use crate::image::{Answer, DirEntry, FsError, LayerFs, NoAnswer, ReadNow, SeekTo, Totals, Tree};
use crate::layer::{Kind, Timestamp};
use crate::offsets::FileOffset;
use crate::overlay::{NodeAttr, NodeId};
use crate::sync::lock;

/// The tree of a store.
pub struct StoreTree {
    shown: RwLock<Arc<Shown>>,
    /// Held while that is replaced, which may write to the disk; readers are not blocked.
    changing: Mutex<()>,
    keep: Keep,
    /// Lists of earlier generations that may still be open, by generation.
    past: Mutex<BTreeMap<u64, Arc<Lists>>>,
    /// The mapping of users and groups.
    ids: Option<(IdMap, IdMap)>,
    owner: (u32, u32),
    make_file: MakeFile,
}

/// The content at one time.
#[derive(Clone)]
struct Shown {
    /// By number; removed ones leave a gap.
    images: BTreeMap<u32, Arc<Stored>>,
    /// By number; includes removed ones, since containers may still use them.
    layers: BTreeMap<u32, Arc<Layer>>,
    /// The numbers of layers of images, by id.
    layer_numbers: BTreeMap<String, u32>,
    /// All that were ever given.
    numbers: Arc<Numbers>,
    lists: Arc<Lists>,
}

struct Layer {
    of: StoredLayer,
    link: String,
    lower: String,
    fs: Arc<LayerFs>,
    tar_split: TarSplit,
}

#[derive(Default)]
struct Lists {
    generation: u64,
    changed: Timestamp,
    texts: [Bytes; 4],
}

impl Lists {
    /// Those of a store that has never had an image.
    fn first() -> Self {
        let none = documents::images_json(std::iter::empty());
        Self::new(1, now(), [none.clone(), none])
    }

    /// With the lock that goes with each list.
    fn new(generation: u64, changed: Timestamp, [images, layers]: [Bytes; 2]) -> Self {
        let [images_lock, layers_lock] = [&images, &layers].map(|list| documents::lock_text(list, generation));
        Self { generation, changed, texts: [images, images_lock, layers, layers_lock] }
    }

    fn text(&self, list: List) -> &Bytes {
        &self.texts[list as usize]
    }
}

impl Shown {
    fn remembered(&self) -> Remembered {
        let lists = &self.lists;
        let texts = [List::Images, List::Layers].map(|list| String::from_utf8_lossy(lists.text(list)).into_owned());
        Remembered::new((*self.numbers).clone(), lists.generation, lists.changed, texts)
    }
}

/// An image to show, with its layers, base first.
pub struct Image {
    /// Its description for engines.
    pub stored: Stored,
    /// Each layer alone.
    pub layers: Vec<Arc<LayerFs>>,
}

impl StoreTree {
    /// An empty store of the user `owner`. `ids` maps the owners of images' files, `make_file` makes a file that is
    /// deleted with this process, and `keep` stores what the next process has to know that shows the store.
    pub fn new(owner: (u32, u32), ids: Option<(IdMap, IdMap)>, make_file: MakeFile, keep: Keep) -> Self {
        let (images, layers, layer_numbers, numbers) = Default::default();
        let shown = Shown { images, layers, layer_numbers, numbers, lists: Arc::new(Lists::first()) };
        let (shown, changing, past) = (RwLock::new(Arc::new(shown)), Mutex::default(), Mutex::default());
        Self { shown, changing, keep, past, ids, owner, make_file }
    }

    /// Continues from the state of another process; before anything is shown.
    pub fn go_on(&self, before: Remembered) {
        let _changing = lock(&self.changing);
        let (numbers, generation, changed, texts) = before.parts();
        let lists = Lists::new(generation, changed, texts.map(Bytes::from));
        let shown = Shown { numbers: Arc::new(numbers), lists: Arc::new(lists), ..Shown::clone(&self.shown()) };
        self.exchange(shown);
    }

    /// The layer with this id, if it is shown, to share it with further images.
    pub fn layer(&self, id: &str) -> Option<Arc<LayerFs>> {
        let shown = self.shown();
        let number = shown.layer_numbers.get(id)?;
        shown.layers.get(number).map(|layer| Arc::clone(&layer.fs))
    }

    /// The layers of a shown image, base first; empty for any other.
    pub fn layers_of(&self, id: &str) -> Vec<Arc<LayerFs>> {
        let shown = self.shown();
        let image = shown.images.values().find(|image| image.config.hex() == id);
        let layers = image.iter().flat_map(|image| &image.layers);
        let numbers = layers.filter_map(|layer| shown.layer_numbers.get(&layer.id));
        numbers.filter_map(|number| shown.layers.get(number)).map(|layer| Arc::clone(&layer.fs)).collect()
    }

    /// How many images are shown, and their layers: bytes of each blob, and the layer alone.
    pub fn shown_layers(&self) -> (usize, Vec<(u64, Arc<LayerFs>)>) {
        let shown = self.shown();
        let layers = shown.layer_numbers.values().filter_map(|number| shown.layers.get(number));
        (shown.images.len(), layers.map(|layer| (layer.of.blob_size, Arc::clone(&layer.fs))).collect())
    }

    /// The path of a file in its layer, from the root, without a leading slash; `None` for other nodes.
    pub fn path_of(&self, node: NodeId) -> Option<Vec<u8>> {
        match Node::of(node)? {
            Node::Inside(number, node) => self.shown().layers.get(&number)?.fs.image().path_of(node),
            _ => None,
        }
    }

    /// Replaces the shown images. Images that stay keep their node numbers; containers that use removed ones keep their
    /// files, also of those `removed` while another process showed the store.
    ///
    /// # Errors
    /// [`io::Error`] if no other process could go on with it; what is shown is as before then.
    pub fn show(&self, images: Vec<Image>, removed: &[Image]) -> io::Result<()> {
        self.change(|shown| {
            let mut wanted: BTreeMap<String, Image> =
                images.into_iter().map(|image| (image.stored.config.hex().to_owned(), image)).collect();
            for image in removed {
                self.take_layers(shown, image);
            }
            shown.images.retain(|_, image| wanted.contains_key(image.config.hex()));
            shown.layer_numbers.clear();
            let before: Vec<(u32, Arc<Stored>)> =
                shown.images.iter().map(|(number, image)| (*number, Arc::clone(image))).collect();
            for (number, image) in before {
                let now = wanted.remove(image.config.hex()).expect("the others were dropped");
                self.take_layers(shown, &now);
                shown.images.insert(number, Arc::new(now.stored));
            }
            for image in wanted.into_values() {
                self.take_layers(shown, &image);
                let number = Arc::make_mut(&mut shown.numbers).of_image(image.stored.config.hex());
                shown.images.insert(number, Arc::new(image.stored));
            }
        })
    }

    fn take_layers(&self, shown: &mut Shown, image: &Image) {
        for (place, (of, fs)) in image.stored.layers.iter().zip(&image.layers).enumerate() {
            if shown.layer_numbers.contains_key(&of.id) {
                continue;
            }
            let number = Arc::make_mut(&mut shown.numbers).of_layer(&of.id);
            shown.layers.entry(number).or_insert_with(|| {
                Arc::new(Layer {
                    of: of.clone(),
                    link: documents::link(&of.id),
                    lower: documents::lower(&image.stored.layers[..place]),
                    fs: Arc::clone(fs),
                    tar_split: TarSplit::new(Arc::clone(fs), Arc::clone(&self.make_file)),
                })
            });
            shown.layer_numbers.insert(of.id.clone(), number);
        }
    }

    /// Updates the sizes of the layers, as far as they are known now.
    ///
    /// # Errors
    /// As [`StoreTree::show`].
    pub fn refresh(&self) -> io::Result<()> {
        self.change(|_| ())
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let mut shown = Shown::clone(&self.shown());
        let (before, numbers) = (Arc::clone(&shown.lists), Arc::clone(&shown.numbers));
        change(&mut shown);
        let images = || shown.images.values().map(Arc::as_ref);
        let size = |id: &str| {
            let layer = shown.layers.get(shown.layer_numbers.get(id)?)?;
            layer.fs.decoded_size()
        };
        let texts = [documents::images_json(images()), documents::layers_json(images(), size)];
        let has_changed = [List::Images, List::Layers].map(|list| before.text(list)) != [&texts[0], &texts[1]];
        if has_changed {
            let changed = now();
            shown.lists = Arc::new(Lists::new(later(before.generation, changed), changed, texts));
        }
        // Before the kernel hears of it: a process that takes over must not give a number to anything else. Without the
        // lists it makes new ones, of a later generation.
        if has_changed || shown.numbers != numbers {
            match (self.keep)(&shown.remembered()) {
                Err(error) if shown.numbers != numbers => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the lists of the store for a process that takes over");
                }
                Ok(()) => {}
            }
        }
        if has_changed {
            let mut past = lock(&self.past);
            past.insert(before.generation, before);
            while past.len() > PAST_AT_MOST {
                past.pop_first();
            }
        }
        self.exchange(shown);
        Ok(())
    }

    fn exchange(&self, shown: Shown) {
        *self.shown.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(shown);
    }

    fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn lists(&self, shown: &Shown, generation: u64) -> Option<Arc<Lists>> {
        if shown.lists.generation == generation {
            return Some(Arc::clone(&shown.lists));
        }
        lock(&self.past).get(&generation).cloned()
    }

    /// Asks a layer, and translates its nodes to this tree's.
    fn inside<T>(&self, number: u32, ask: impl FnOnce(&LayerFs) -> Answer<T>) -> Answer<T> {
        ask(&layer(&self.shown(), number)?.fs)
    }

    fn attr_of(&self, number: u32, attr: NodeAttr) -> NodeAttr {
        let node = Node::Inside(number, attr.node).id();
        match self.ids {
            None => NodeAttr { node, ..attr },
            Some((users, groups)) => {
                NodeAttr { node, uid: users.outside(attr.uid), gid: groups.outside(attr.gid), ..attr }
            }
        }
    }

    /// A node of the store itself.
    fn own_attr(&self, shown: &Shown, node: Node) -> Answer<NodeAttr> {
        let file = |size: usize| (Kind::File, 0o644, size as u64);
        let directory = (Kind::Directory, 0o755, 4096);
        let (kind, mode, size) = match node {
            Node::Directory(_) => directory,
            Node::Image(number) => image(shown, number).map(|_| directory)?,
            Node::Layer(number) => layer(shown, number).map(|_| directory)?,
            Node::List(generation, list) => {
                let lists = self.lists(shown, generation).ok_or_else(|| no_such(node))?;
                file(lists.text(list).len())
            }
            Node::Document(number, document) => {
                let image = image(shown, number)?;
                let (_, text) = image.documents.get(usize::from(document)).ok_or_else(|| no_such(node))?;
                file(text.len())
            }
            Node::OfLayer(number, what) => {
                let layer = layer(shown, number)?;
                match what {
                    OfLayer::Link => file(layer.link.len()),
                    OfLayer::Lower => file(layer.lower.len()),
                    OfLayer::Symlink => (Kind::Symlink, 0o777, layer.target().len() as u64),
                    OfLayer::TarSplit => (Kind::File, 0o644, layer.tar_split.size().unwrap_or(0)),
                }
            }
            Node::Inside(..) => return Err(no_such(node)),
        };
        let (uid, gid) = self.owner;
        let changed = shown.lists.changed;
        Ok(NodeAttr {
            node: node.id(),
            kind,
            mode,
            uid,
            gid,
            size,
            blocks: size.div_ceil(512),
            mtime: changed.seconds,
            mtime_ns: changed.nanos,
            nlink: 1,
            device: (0, 0),
            settled: false,
        })
    }

    /// The content of a file of the store itself.
    fn text(&self, node: Node) -> Answer<Bytes> {
        let shown = self.shown();
        match node {
            Node::List(generation, list) => {
                let lists = self.lists(&shown, generation).ok_or_else(|| no_such(node))?;
                Ok(lists.text(list).clone())
            }
            Node::Document(number, document) => {
                let image = image(&shown, number)?;
                image.documents.get(usize::from(document)).map(|(_, text)| text.clone()).ok_or_else(|| no_such(node))
            }
            Node::OfLayer(number, what @ (OfLayer::Link | OfLayer::Lower)) => {
                let layer = layer(&shown, number)?;
                let text = if what == OfLayer::Link { &layer.link } else { &layer.lower };
                Ok(Bytes::copy_from_slice(text.as_bytes()))
            }
            Node::Directory(_) | Node::Image(_) | Node::Layer(_) => Err(NoAnswer::Never(FsError::IsADirectory)),
            Node::OfLayer(..) | Node::Inside(..) => Err(NoAnswer::Never(FsError::NotAFile)),
        }
    }

    /// The names of a directory of the store itself, with their positions.
    fn names(&self, shown: &Shown, directory: Node) -> Answer<Vec<(u64, String, Node)>> {
        let fixed = |number: u64, node: Node, name: &str| (number, name.to_owned(), node);
        Ok(match directory {
            Node::Directory(own @ (Directory::Images | Directory::Layers)) => {
                let lists = List::ALL.into_iter().filter(|list| list.parent() == own);
                let lists = lists.map(|list| fixed(list as u64, Node::List(shown.lists.generation, list), list.name()));
                let images = shown.images.iter().filter(|_| own == Directory::Images);
                let images = images.map(|(number, image)| {
                    fixed(FIXED_NAMES + u64::from(*number), Node::Image(*number), image.config.hex())
                });
                lists.chain(images).collect()
            }
            Node::Directory(own @ (Directory::Root | Directory::Overlay)) => {
                let below =
                    Directory::ALL.into_iter().filter(|below| *below != Directory::Root && below.parent() == own);
                let below = below.map(|below| fixed(below as u64, Node::Directory(below), below.name()));
                let layers = shown.layer_numbers.iter().filter(|_| own == Directory::Overlay);
                let layers =
                    layers.map(|(id, number)| fixed(FIXED_NAMES + u64::from(*number), Node::Layer(*number), id));
                below.chain(layers).collect()
            }
            Node::Directory(Directory::Links) => {
                let links = shown.layer_numbers.values().filter_map(|number| {
                    let layer = shown.layers.get(number)?;
                    Some(fixed(u64::from(*number), Node::OfLayer(*number, OfLayer::Symlink), &layer.link))
                });
                links.collect()
            }
            Node::Image(number) => {
                let documents = image(shown, number)?.documents.iter().zip(0..);
                let name = |document: &str| documents::file_name(document);
                documents.map(|((text, _), at)| (u64::from(at), name(text), Node::Document(number, at))).collect()
            }
            Node::Layer(number) => {
                let layer = layer(shown, number)?;
                let mut names = vec![
                    fixed(0, Node::Inside(number, NodeId::ROOT), "diff"),
                    fixed(1, Node::OfLayer(number, OfLayer::Link), "link"),
                ];
                // The lowest layer has none.
                if !layer.lower.is_empty() {
                    names.push(fixed(2, Node::OfLayer(number, OfLayer::Lower), "lower"));
                }
                names
            }
            Node::List(..) | Node::Document(..) | Node::OfLayer(..) | Node::Inside(..) => {
                return Err(NoAnswer::Never(FsError::NotADirectory));
            }
        })
    }

    fn find(&self, shown: &Shown, directory: Node, name: &[u8]) -> Answer<Option<Node>> {
        if directory == Node::Directory(Directory::Layers)
            && let Some(id) = name.strip_suffix(TAR_SPLIT)
        {
            let number = std::str::from_utf8(id).ok().and_then(|id| shown.layer_numbers.get(id));
            return Ok(number.map(|number| Node::OfLayer(*number, OfLayer::TarSplit)));
        }
        let names = self.names(shown, directory)?;
        Ok(names.into_iter().find(|(_, known, _)| known.as_bytes() == name).map(|(_, _, node)| node))
    }

    /// The attributes of a node that may be in a layer; `ask` asks the layer.
    fn any_attr(&self, id: NodeId, ask: impl FnOnce(&LayerFs, NodeId) -> Answer<NodeAttr>) -> Answer<NodeAttr> {
        match node_of(id)? {
            Node::Inside(number, inner) => {
                self.inside(number, |fs| ask(fs, inner)).map(|attr| self.attr_of(number, attr))
            }
            node @ Node::OfLayer(number, OfLayer::TarSplit) => {
                // Its size is known once it is made.
                let shown = self.shown();
                layer(&shown, number)?.tar_split.made()?;
                self.own_attr(&shown, node)
            }
            node => self.own_attr(&self.shown(), node),
        }
    }

    fn list_any(
        &self,
        directory: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, Option<&NodeAttr>) -> ControlFlow<()>,
        with_attrs: bool,
    ) -> Answer<()> {
        let node = node_of(directory)?;
        if let Node::Inside(number, inner) = node {
            let outer = |entry: DirEntry<'_>| Node::Inside(number, entry.node).id();
            return self.inside(number, |fs| {
                if with_attrs {
                    fs.list_with_attrs(inner, from, &mut |entry, attr| {
                        let attr = self.attr_of(number, *attr);
                        each(DirEntry { node: attr.node, ..entry }, Some(&attr))
                    })
                } else {
                    fs.list(inner, from, &mut |entry| {
                        let (name, kind, next) = (entry.name, entry.kind, entry.next);
                        each(DirEntry { name, node: outer(entry), kind, next }, None)
                    })
                }
            });
        }
        let shown = self.shown();
        let mut names = self.names(&shown, node)?;
        names.sort_by_key(|(at, ..)| *at);
        for (at, name, node) in names.into_iter().filter(|(at, ..)| *at >= from) {
            let attr = match node {
                // Asked separately, once its layer is indexed.
                Node::Inside(..) => None,
                node => Some(self.own_attr(&shown, node)?),
            };
            let kind = attr.map_or(Kind::Directory, |attr| attr.kind);
            let entry = DirEntry { name: name.as_bytes(), node: node.id(), kind, next: at + 1 };
            let attr = match (attr, with_attrs) {
                (None, true) => Some(self.any_attr(node.id(), <LayerFs as Tree>::attr)?),
                (attr, _) => attr,
            };
            if each(entry, attr.as_ref()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Layer {
    fn target(&self) -> String {
        format!("../{}/diff", self.of.id)
    }
}

fn image(shown: &Shown, number: u32) -> Answer<&Stored> {
    shown.images.get(&number).map(Arc::as_ref).ok_or_else(|| no_such(Node::Image(number)))
}

fn layer(shown: &Shown, number: u32) -> Answer<&Layer> {
    shown.layers.get(&number).map(Arc::as_ref).ok_or_else(|| no_such(Node::Layer(number)))
}

fn node_of(id: NodeId) -> Answer<Node> {
    Node::of(id).ok_or(NoAnswer::Never(FsError::NoSuchNode(id.get())))
}

fn no_such(node: Node) -> NoAnswer {
    NoAnswer::Never(FsError::NoSuchNode(node.id().get()))
}

/// A generation after this one, and after all that another process can have made without keeping them.
fn later(generation: u64, now: Timestamp) -> u64 {
    let sixteenths = (now.seconds.unsigned_abs() << 4) | u64::from(now.nanos / (1_000_000_000 / 16));
    // The bits that a node number has for it.
    (generation + 1).max(sixteenths & ((1 << 38) - 1))
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: now.as_secs().cast_signed(), nanos: now.subsec_nanos() }
}

impl Tree for StoreTree {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Answer<Option<NodeAttr>> {
        let parent = node_of(parent)?;
        if let Node::Inside(number, inner) = parent {
            let found = self.inside(number, |fs| Tree::lookup(fs, inner, name))?;
            return Ok(found.map(|attr| self.attr_of(number, attr)));
        }
        let shown = self.shown();
        match self.find(&shown, parent, name)? {
            None => Ok(None),
            Some(node @ Node::Inside(..)) => self.any_attr(node.id(), <LayerFs as Tree>::attr).map(Some),
            Some(node) => self.own_attr(&shown, node).map(Some),
        }
    }

    fn names_stay(&self, directory: NodeId) -> bool {
        matches!(Node::of(directory), Some(Node::Inside(..)))
    }

    fn attr(&self, node: NodeId) -> Answer<NodeAttr> {
        self.any_attr(node, <LayerFs as Tree>::attr)
    }

    fn node(&self, node: NodeId) -> Answer<NodeAttr> {
        self.any_attr(node, <LayerFs as Tree>::node)
    }

    fn parent(&self, node: NodeId) -> Answer<NodeId> {
        let parent = match node_of(node)? {
            Node::Directory(directory) => Node::Directory(directory.parent()),
            Node::Image(_) => Node::Directory(Directory::Images),
            Node::Layer(_) => Node::Directory(Directory::Overlay),
            Node::Inside(number, NodeId::ROOT) => Node::Layer(number),
            Node::Inside(number, inner) => Node::Inside(number, self.inside(number, |fs| Tree::parent(fs, inner))?),
            Node::List(..) | Node::Document(..) | Node::OfLayer(..) => {
                return Err(NoAnswer::Never(FsError::NotADirectory));
            }
        };
        Ok(parent.id())
    }

    fn list(&self, node: NodeId, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Answer<()> {
        self.list_any(node, from, &mut |entry, _| each(entry), false)
    }

    fn list_with_attrs(
        &self,
        node: NodeId,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &NodeAttr) -> ControlFlow<()>,
    ) -> Answer<()> {
        let each = &mut |entry: DirEntry<'_>, attr: Option<&NodeAttr>| match attr {
            Some(attr) => each(entry, attr),
            None => ControlFlow::Continue(()),
        };
        self.list_any(node, from, each, true)
    }

    fn symlink_target(&self, node: NodeId) -> Answer<Vec<u8>> {
        match node_of(node)? {
            Node::Inside(number, inner) => self.inside(number, |fs| Tree::symlink_target(fs, inner)),
            Node::OfLayer(number, OfLayer::Symlink) => Ok(layer(&self.shown(), number)?.target().into_bytes()),
            _ => Err(NoAnswer::Never(FsError::NotAFile)),
        }
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Answer<Option<Vec<u8>>> {
        match node_of(node)? {
            Node::Inside(number, inner) => self.inside(number, |fs| Tree::xattr(fs, inner, name)),
            _ => Ok(None),
        }
    }

    fn xattr_names(&self, node: NodeId) -> Answer<Vec<Vec<u8>>> {
        match node_of(node)? {
            Node::Inside(number, inner) => self.inside(number, |fs| Tree::xattr_names(fs, inner)),
            _ => Ok(Vec::new()),
        }
    }

    fn seek(&self, node: NodeId, at: FileOffset, to: SeekTo) -> Answer<Option<FileOffset>> {
        let id = node;
        match node_of(node)? {
            Node::Inside(number, inner) => self.inside(number, |fs| Tree::seek(fs, inner, at, to)),
            _ => {
                let size = self.attr(id)?.size;
                let found = if to == SeekTo::Data { at } else { FileOffset(size) };
                Ok((at.0 < size).then_some(found))
            }
        }
    }

    fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Answer<ReadNow> {
        match node_of(node)? {
            Node::Inside(number, inner) => self.inside(number, |fs| Tree::read_now(fs, inner, at, buf, before_wait)),
            Node::OfLayer(number, OfLayer::TarSplit) => {
                let made = layer(&self.shown(), number)?.tar_split.made()?;
                before_wait();
                made.read(at, buf).map(ReadNow::Bytes)
            }
            node => {
                let text = self.text(node)?;
                let rest = text.get(usize::try_from(at.0).unwrap_or(usize::MAX)..).unwrap_or_default();
                let length = rest.len().min(buf.len());
                buf[..length].copy_from_slice(&rest[..length]);
                Ok(ReadNow::Bytes(length))
            }
        }
    }

    fn read(
        self: Arc<Self>,
        node: NodeId,
        at: FileOffset,
        length: usize,
    ) -> BoxFuture<'static, Result<Bytes, FsError>> {
        if let Some(Node::Inside(number, inner)) = Node::of(node)
            && let Ok(layer) = layer(&self.shown(), number)
        {
            return Tree::read(Arc::clone(&layer.fs), inner, at, length);
        }
        async move {
            loop {
                let mut buf = vec![0; length];
                match self.read_now(node, at, &mut buf, &mut || ()) {
                    Ok(ReadNow::Bytes(got)) => {
                        buf.truncate(got);
                        return Ok(buf.into());
                    }
                    Ok(ReadNow::Later(read)) => return read.await,
                    Err(NoAnswer::Later(wait)) => wait.await?,
                    Err(NoAnswer::TakesLong) => return Err(FsError::TakesTooLong),
                    Err(NoAnswer::Never(error)) => return Err(error),
                }
            }
        }
        .boxed()
    }

    fn inode(&self, node: NodeId) -> u64 {
        match Node::of(node) {
            Some(Node::Inside(number, inner)) => {
                let entry = match inner.parts() {
                    None => 0,
                    Some((layer, entry)) if self.is_top(number, layer) => u64::from(entry.0),
                    // A whiteout that only an opaque root needs; only overlays look it up.
                    Some(_) => return OWN_INODES << 1 | node.get(),
                };
                // Small for the first thousand layers: programs that truncate them to 32 bits fail otherwise.
                let (high, low) = (u64::from(number) / NEAR, u64::from(number) % NEAR);
                high << 43 | ((entry + 1) * NEAR + low)
            }
            _ if node == NodeId::ROOT => 1,
            _ => OWN_INODES | node.get(),
        }
    }

    fn changed(&self, attr: &NodeAttr) -> Timestamp {
        if let Some(Node::Inside(number, inner)) = Node::of(attr.node)
            && let Ok(layer) = layer(&self.shown(), number)
        {
            return Tree::changed(&*layer.fs, &NodeAttr { node: inner, ..*attr });
        }
        Timestamp { seconds: attr.mtime, nanos: attr.mtime_ns }
    }

    fn generation(&self) -> u32 {
        1
    }

    fn totals(&self) -> Totals {
        let shown = self.shown();
        let layers = shown.layer_numbers.values().filter_map(|number| shown.layers.get(number));
        layers.map(|layer| Tree::totals(&*layer.fs)).fold(Totals::default(), |sum, one| Totals {
            entries: sum.entries + one.entries,
            bytes: sum.bytes + one.bytes,
        })
    }

    fn forget(&self, node: NodeId) {
        if let Some(Node::Inside(number, inner)) = Node::of(node)
            && let Ok(layer) = layer(&self.shown(), number)
        {
            Tree::forget(&*layer.fs, inner);
        }
    }

    fn end(&self) {
        self.shown().layers.values().for_each(|layer| Tree::end(&*layer.fs));
    }
}

impl StoreTree {
    fn is_top(&self, number: u32, layer_no: crate::overlay::LayerNo) -> bool {
        layer(&self.shown(), number).is_ok_and(|layer| layer.fs.number() == layer_no)
    }
}

const TAR_SPLIT: &[u8] = b".tar-split.gz";
/// Positions of fixed names; those of images and layers follow.
const FIXED_NAMES: u64 = 8;
/// Limit of earlier generations of lists.
const PAST_AT_MOST: usize = 64;
const NEAR: u64 = 1 << 10;
/// This bit marks inode numbers of the store's own files.
const OWN_INODES: u64 = 1 << 61;
