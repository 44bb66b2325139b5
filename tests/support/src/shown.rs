//! An image as [`ImageFs`] shows it, in the model's terms and with no FUSE in between.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use peelfs::content::SharedLayers;
use peelfs::descriptor::Descriptor;
use peelfs::digest::Digest;
use peelfs::image::tree::awaited;
use peelfs::image::{self, Eagerness, FsError, ImageFs, Limits, Network, Tree, Verify};
use peelfs::layer::Kind;
use peelfs::offsets::{BlobOffset, FileOffset};
use peelfs::overlay::{NodeAttr, NodeId};
use peelfs::platform::Platform;
use peelfs::source::{BlobSource, BoxFuture, ByteStream, SourceError};
use peelfs::store::Store;
use peelfs::trust::Untrusted;
use peelfs_loopback::image::Image;
use peelfs_loopback::tar::Mtime;

use super::link::Link;
use super::model::{Node, NodeKind, Seen, join};
use super::random::Random;

/// A source that has one image in memory and writes down what it is asked for.
pub struct MemorySource {
    root: Descriptor,
    documents: HashMap<Digest, Bytes>,
    blobs: HashMap<Digest, Bytes>,
    layers: Vec<Digest>,
    asked: Mutex<Vec<(Digest, Range<u64>)>>,
    flipped: Mutex<Option<(Digest, u64, u8)>>,
    hangs: AtomicBool,
    link: Option<Link>,
}

impl MemorySource {
    pub fn new(image: &Image) -> Arc<Self> {
        Arc::new(Self::of(image))
    }

    /// The same, with other bytes under the digest of a blob.
    pub fn with_blob_under(self: &Arc<Self>, digest: &Digest, bytes: Vec<u8>) -> Self {
        let mut blobs = self.blobs.clone();
        blobs.insert(digest.clone(), bytes.into());
        Self {
            root: self.root.clone(),
            documents: self.documents.clone(),
            blobs,
            layers: self.layers.clone(),
            asked: Mutex::default(),
            flipped: Mutex::default(),
            hangs: AtomicBool::new(false),
            link: None,
        }
    }

    /// As [`MemorySource::new`], with this link before it.
    pub fn over(link: Link, image: &Image) -> Arc<Self> {
        Arc::new(Self { link: Some(link), ..Self::of(image) })
    }

    fn of(image: &Image) -> Self {
        Self {
            root: image.root().clone(),
            documents: image.documents().map(|(digest, _, bytes)| (digest.clone(), bytes.clone())).collect(),
            blobs: image.blobs().map(|(digest, bytes)| (digest.clone(), bytes.clone())).collect(),
            layers: image.layers().iter().map(|layer| layer.digest.clone()).collect(),
            asked: Mutex::default(),
            flipped: Mutex::default(),
            hangs: AtomicBool::new(false),
            link: None,
        }
    }

    /// From now on one bit of one blob is wrong: `(blob, byte, bit)`.
    pub fn flip(&self, bit: Option<(Digest, u64, u8)>) {
        *self.flipped.lock().unwrap() = bit;
    }

    /// From now on no request for a layer is answered.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// How many ranges of blobs were asked for since the last call of [`MemorySource::take_asked`].
    pub fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Ranges of blobs that were asked for since the last call.
    pub fn take_asked(&self) -> Vec<(Digest, Range<u64>)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn missing(&self, digest: &Digest) -> SourceError {
        SourceError::NotFound { what: digest.to_string(), place: self.name().to_owned(), said: None, hint: None }
    }
}

impl BlobSource for MemorySource {
    fn name(&self) -> &str {
        "memory"
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        Box::pin(async { Ok(self.root.clone()) })
    }

    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        Box::pin(async { Ok((self.root.clone(), self.manifest(&self.root).await?)) })
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        let found = self.documents.get(&descriptor.digest).cloned();
        Box::pin(async move { found.map(Untrusted::new).ok_or_else(|| self.missing(&descriptor.digest)) })
    }

    fn manifest_by_digest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        let found = self.documents.get(digest).cloned();
        Box::pin(async move { found.map(Untrusted::new).ok_or_else(|| self.missing(digest)) })
    }

    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let bytes = self.blobs.get(&blob.digest).ok_or_else(|| self.missing(&blob.digest))?;
            self.asked.lock().unwrap().push((blob.digest.clone(), range.start.0..range.end.0));
            if self.hangs.load(Ordering::Relaxed) && self.layers.contains(&blob.digest) {
                return std::future::pending().await;
            }
            if let Some(link) = &self.link {
                link.carry(range.end - range.start).await;
            }
            let mut bytes = bytes.slice(range.start.0 as usize..range.end.0 as usize);
            let flipped = self.flipped.lock().unwrap().clone();
            if let Some((_, at, bit)) =
                flipped.filter(|(of, at, _)| *of == blob.digest && (range.start.0..range.end.0).contains(at))
            {
                let mut wrong = bytes.to_vec();
                wrong[(at - range.start.0) as usize] ^= 1 << bit;
                bytes = wrong.into();
            }
            // Pieces of an odd size, so that nothing ends where it would be convenient.
            let pieces: Vec<_> = bytes.chunks(7919).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            Ok(ByteStream::new(futures_util::stream::iter(pieces)))
        })
    }
}

/// Opens an image whose layers are all known when this returns.
///
/// # Errors
/// Of the first layer that cannot be shown.
pub async fn open(source: &Arc<MemorySource>, store: &Arc<Store>) -> Result<Arc<ImageFs>, FsError> {
    open_beside(source, &Arc::clone(store).into()).await
}

/// As [`open`], in a process that has `shared_layers`.
///
/// # Errors
/// Of the first layer that cannot be shown.
pub async fn open_beside(source: &Arc<MemorySource>, shared_layers: &SharedLayers) -> Result<Arc<ImageFs>, FsError> {
    let reference = "127.0.0.1:1/image:1".parse().unwrap();
    let dyn_source = Arc::clone(source) as Arc<dyn BlobSource>;
    let plan = image::resolve(&reference, &dyn_source, shared_layers.store(), &Platform::host(), Network::Allowed)
        .await
        .unwrap();
    let fs = image::open(
        &plan,
        dyn_source,
        shared_layers.clone(),
        &Limits::default(),
        Eagerness::Background,
        Verify::BeforeShowing,
    );
    fs.all_known().await?;
    Ok(fs)
}

/// Everything that a tree shows, the root included; files are read in slices of odd sizes.
pub async fn seen(tree: Arc<dyn Tree>, random: &mut Random) -> BTreeMap<Vec<u8>, Seen> {
    let mut found: BTreeMap<Vec<u8>, (NodeAttr, Node)> = BTreeMap::new();
    let root = awaited(&*tree, |tree| tree.attr(NodeId::ROOT)).await.unwrap();
    let mut pending = vec![(Vec::new(), root)];
    while let Some((path, attr)) = pending.pop() {
        if attr.kind == Kind::Directory {
            for (name, listed) in children(&*tree, attr.node).await {
                let looked_up = awaited(&*tree, |tree| tree.lookup(attr.node, &name)).await.unwrap();
                assert_eq!(looked_up, Some(listed), "`{}` listed and looked up", name.escape_ascii());
                pending.push((join(&path, &name), listed));
            }
        }
        let node = node(&tree, &attr, random).await;
        found.insert(path, (attr, node));
    }
    let mut names: BTreeMap<NodeId, Vec<Vec<u8>>> = BTreeMap::new();
    for (name, (attr, _)) in &found {
        names.entry(attr.node).or_default().push(name.clone());
    }
    let seen =
        |(attr, node): (NodeAttr, Node)| Seen { node, names: names[&attr.node].clone(), nlink: attr.nlink.into() };
    found.into_iter().map(|(path, found)| (path, seen(found))).collect()
}

/// The names of a directory, a few at a time, as a small buffer of the kernel would ask.
async fn children(tree: &dyn Tree, dir: NodeId) -> Vec<(Vec<u8>, NodeAttr)> {
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let mut some = Vec::new();
        let next = awaited(tree, |tree| {
            some.clear();
            let mut next = from;
            tree.list_with_attrs(dir, from, &mut |entry, attr| {
                assert_eq!(entry.kind, attr.kind);
                assert_eq!(entry.node, attr.node);
                some.push((entry.name.to_vec(), *attr));
                next = entry.next;
                if some.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok(next)
        })
        .await
        .unwrap();
        if some.is_empty() {
            return all;
        }
        all.append(&mut some);
        from = next;
    }
}

async fn node(tree: &Arc<dyn Tree>, attr: &NodeAttr, random: &mut Random) -> Node {
    let (major, minor) = attr.device;
    let kind = match attr.kind {
        Kind::Directory => NodeKind::Dir,
        Kind::Symlink => {
            let target = awaited(&**tree, |tree| tree.symlink_target(attr.node)).await.unwrap();
            NodeKind::Symlink(target)
        }
        Kind::Fifo => NodeKind::Fifo,
        Kind::CharDevice => NodeKind::CharDevice { major, minor },
        Kind::BlockDevice => NodeKind::BlockDevice { major, minor },
        Kind::File => NodeKind::File(content(tree, attr, random).await),
        Kind::Whiteout | Kind::LowerLink => panic!("{:?} is nothing to show", attr.kind),
    };
    let mut xattrs = BTreeMap::new();
    for name in awaited(&**tree, |tree| tree.xattr_names(attr.node)).await.unwrap() {
        let value = awaited(&**tree, |tree| tree.xattr(attr.node, &name)).await.unwrap().expect("it was listed");
        xattrs.insert(name, value);
    }
    Node {
        kind,
        mode: attr.mode.into(),
        uid: attr.uid.into(),
        gid: attr.gid.into(),
        mtime: Mtime { seconds: attr.mtime, nanos: attr.mtime_ns },
        xattrs,
        implied: false,
    }
}

/// A file's bytes: slices in a random order, and reads over the end.
async fn content(tree: &Arc<dyn Tree>, attr: &NodeAttr, random: &mut Random) -> Bytes {
    let size = attr.size as usize;
    let mut cuts: Vec<usize> = (0..random.below(6)).map(|_| random.below(size + 1)).collect();
    cuts.extend([0, size]);
    cuts.sort_unstable();
    let mut slices: Vec<Range<usize>> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let mut whole = vec![0xee; size];
    while !slices.is_empty() {
        let slice = slices.swap_remove(random.below(slices.len()));
        let bytes = Arc::clone(tree).read(attr.node, FileOffset(slice.start as u64), slice.len()).await.unwrap();
        whole[slice].copy_from_slice(&bytes);
    }
    let beyond = Arc::clone(tree).read(attr.node, FileOffset(attr.size.saturating_sub(1)), 100).await.unwrap();
    assert_eq!(beyond.len(), size.min(1), "a read over the end");
    assert!(Arc::clone(tree).read(attr.node, FileOffset(attr.size), 1).await.unwrap().is_empty());
    whole.into()
}
