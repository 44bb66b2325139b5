//! One image as a file system, independent of FUSE.
//!
//! Every operation has two forms: *now*, which uses memory and the store and never waits for the network, and
//! *awaited*, which also waits for layers and content. Front ends that must not block use the first form, and pass the
//! operation to a task if there is no result yet.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::identity::Identity;
use super::layer_failure::LayerFailure;
use super::layers::{Layers, Waited};
use super::read::{DecodedBytes, Local, MissingBytes, ReadPlan, Unfilled};
use super::slot::LayerStatus;
use super::work::Work;
use crate::content::{LayerReader, Prefetch, ReadError};
use crate::layer::{EntryId, IndexError, Kind};
use crate::offsets::FileOffset;
use crate::overlay::{Last, LayerNo, MergeError, NodeAttr, NodeId, Overlay, Unknown, Walked};
use crate::predict::PlaceInFile;

/// The files of one image.
pub struct ImageFs {
    pub(super) overlay: Arc<Overlay>,
    pub(super) work: Work,
    pub(super) layers: Arc<Layers>,
    size: u64,
    identity: Identity,
    /// Held while a copy is made, see [`ImageFs::make_passthrough_copy`].
    making: Arc<Semaphore>,
    /// Observes reads.
    observer: OnceLock<Box<dyn ReadObserver>>,
    own: Weak<Self>,
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// A required layer cannot be shown.
    #[error("layer {number} cannot be shown")]
    Layer {
        /// The layer, counted from the base.
        number: LayerNo,
        /// Why.
        #[source]
        cause: Arc<LayerFailure>,
    },
    /// The bytes of a file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A layer index has valid checksums but is inconsistent.
    #[error("the index of layer {number} is inconsistent")]
    Malformed {
        /// The layer.
        number: LayerNo,
        /// The inconsistency.
        #[source]
        cause: Arc<IndexError>,
    },
    /// A layer cannot be merged with those below it, or that takes too long.
    #[error("layer {number} cannot be shown")]
    Refused {
        /// The layer, counted from the base.
        number: LayerNo,
        /// Why.
        #[source]
        cause: Arc<MergeError>,
    },
    /// The lookup exceeds its limit; only a hostile image can cause this.
    #[error("the lookup takes too long")]
    TakesTooLong,
    /// What is made for a reader cannot be written to this machine's disk.
    #[error("cannot write to the cache")]
    Disk(#[source] Arc<std::io::Error>),
    /// The process ends.
    #[error("the process ends")]
    Ended,
    /// The image has no such node.
    #[error("there is no node {0}")]
    NoSuchNode(u64),
    /// The operation needs a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The operation needs a regular file.
    #[error("is a directory")]
    IsADirectory,
    /// The operation needs a regular file or a symlink.
    #[error("not a regular file")]
    NotAFile,
    /// The path does not exist.
    #[error("no such file or directory")]
    NotFound,
    /// The path leads through too many symlinks.
    #[error("too many levels of symbolic links")]
    Loop,
}

/// Observes reads of an image, on the thread that reads: it must not wait.
pub trait ReadObserver: Send + Sync {
    /// `bytes` of `node` are read at offset `at`.
    fn read(&self, node: NodeId, at: FileOffset, bytes: &[u8]);
}

/// The result, or the reason why there is none now.
pub type Now<T> = Result<T, NotNow>;

/// Why there is no result now.
#[derive(Debug)]
pub enum NotNow {
    /// This layer is needed first.
    Needs(LayerNo),
    /// It exceeds this thread's limit of steps; see [`Apart`](super::Apart).
    TakesLong,
    /// It has failed.
    Never(FsError),
}

/// An entry of a directory listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its node.
    pub node: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// Position of the next name.
    pub next: u64,
}

impl ImageFs {
    /// A file system over `count` layers.
    pub fn new(layers: Arc<Layers>, count: u16, size: u64, identity: Identity) -> Arc<Self> {
        Self::over(Overlay::new(count, Arc::clone(&layers) as _), layers, size, identity)
    }

    fn over(overlay: Overlay, layers: Arc<Layers>, size: u64, identity: Identity) -> Arc<Self> {
        let (making, work, observer) = (Arc::new(Semaphore::new(1)), Work::new(), OnceLock::new());
        let overlay = Arc::new(overlay);
        Arc::new_cyclic(|own| {
            let own = Weak::clone(own);
            Self { overlay, work, layers, size, identity, making, observer, own }
        })
    }

    /// The same files with no index page in memory, for a walk of the whole tree. All layers must be known.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn afresh(&self) -> Now<Arc<Self>> {
        let overlay = self.overlay.afresh().map_err(not_now)?;
        Ok(Self::over(overlay, Arc::clone(&self.layers), self.size, self.identity.clone()))
    }

    /// A reference to itself, for tasks that outlive the call.
    pub(super) fn shared(&self) -> Arc<Self> {
        self.own.upgrade().expect("it is made in an `Arc`, which the caller borrows from")
    }

    /// Registers `observer`; an image has at most one, the first.
    pub fn observe(&self, observer: Box<dyn ReadObserver>) {
        let _ = self.observer.set(observer);
    }

    fn observed(&self, node: NodeId, at: FileOffset, bytes: &[u8]) {
        if let Some(observer) = self.observer.get() {
            observer.read(node, at, bytes);
        }
    }

    /// Runs `question` once the layers it needs are available.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn awaited<T>(&self, mut question: impl FnMut(&Self) -> Now<T>) -> Result<T, FsError> {
        loop {
            match question(self) {
                Ok(answer) => return Ok(answer),
                Err(NotNow::Never(error)) => return Err(error),
                Err(NotNow::Needs(number)) => self.know(number).await?,
                Err(NotNow::TakesLong) => return Err(FsError::TakesTooLong),
            }
        }
    }

    /// The result of `wanted`, which waits for a layer, or an error once the source has been unreachable for too long.
    async fn patiently<T>(&self, number: LayerNo, wanted: impl Future<Output = T>) -> Result<T, FsError> {
        tokio::select! {
            biased;
            error = self.layers.timed_out(number) => Err(error.into()),
            done = wanted => Ok(done),
        }
    }

    /// Waits until a layer is available.
    pub(super) async fn know(&self, number: LayerNo) -> Result<(), FsError> {
        // The names of a file are known before its bytes are, which may not be what is needed.
        if self.overlay.knows(number) && !self.overlay.is_prepared(number) {
            return self.prepared(number).await;
        }
        match self.patiently(number, self.layers.known_or_partial(number)).await? {
            Ok(Waited::Whole) => self.prepared(number).await,
            Ok(Waited::Further) => Ok(()),
            Err(cause) => Err(FsError::Layer { number, cause }),
        }
    }

    /// Waits until a layer is verified or has failed.
    async fn know_whole(&self, number: LayerNo) -> Result<(), FsError> {
        self.verified(number).await?;
        self.prepared(number).await
    }

    /// Waits until a layer is complete; it may still have to be [prepared](Self::prepared).
    pub(super) async fn verified(&self, number: LayerNo) -> Result<(), FsError> {
        let ready = self.patiently(number, self.layers.ready(number)).await?;
        ready.map(drop).map_err(|cause| FsError::Layer { number, cause })
    }

    /// Waits until every layer is complete and prepared.
    ///
    /// # Errors
    /// [`FsError::Layer`] for the first layer that cannot be shown.
    pub async fn all_known(&self) -> Result<(), FsError> {
        for number in (0..self.overlay.layer_count()).map(LayerNo) {
            self.know_whole(number).await?;
        }
        Ok(())
    }

    /// Waits until the uppermost layer is complete, with everything it needs of those below.
    pub(super) async fn uppermost_known(&self) -> Result<(), FsError> {
        self.know_whole(self.overlay.uppermost()).await
    }

    /// A node by name.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Now<Option<NodeAttr>> {
        let dir = self.overlay.dir(parent).map_err(not_now)?;
        let Some(node) = self.overlay.lookup(&dir, name).map_err(not_now)? else { return Ok(None) };
        if self.kind(node)? == Kind::Directory {
            self.overlay.remember(&dir, name, node).map_err(not_now)?;
        }
        self.attr(node).map(Some)
    }

    /// A node's metadata.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn attr(&self, node: NodeId) -> Now<NodeAttr> {
        self.overlay.attr(node).map_err(not_now)
    }

    /// The metadata of a node whose number may be stale, as from a file handle that outlived the node's cache entry.
    ///
    /// # Errors
    /// [`NotNow`]; [`FsError::NoSuchNode`] if the image has no such node.
    pub fn node(&self, node: NodeId) -> Now<NodeAttr> {
        if self.overlay.shows(node).map_err(not_now)? {
            self.attr(node)
        } else {
            Err(NotNow::Never(FsError::NoSuchNode(node.get())))
        }
    }

    /// The names of a directory from position `from`, without `.` and `..`.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn list(&self, node: NodeId, from: u64, mut each: impl FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Now<()> {
        let dir = self.directory(node)?;
        self.overlay
            .list(&dir, from, &mut |listed| {
                let entry = DirEntry { name: listed.name, node: listed.node, kind: listed.kind, next: listed.next };
                Ok(each(entry).is_continue())
            })
            .map_err(not_now)
    }

    /// As [`ImageFs::list`], with each node's metadata.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn list_with_attrs(
        &self,
        node: NodeId,
        from: u64,
        mut each: impl FnMut(DirEntry<'_>, &NodeAttr) -> ControlFlow<()>,
    ) -> Now<()> {
        let dir = self.directory(node)?;
        self.overlay
            .list(&dir, from, &mut |listed| {
                if listed.kind == Kind::Directory {
                    self.overlay.remember(&dir, listed.name, listed.node)?;
                }
                let attr = self.overlay.attr(listed.node)?;
                let entry = DirEntry { name: listed.name, node: listed.node, kind: listed.kind, next: listed.next };
                Ok(each(entry, &attr).is_continue())
            })
            .map_err(not_now)
    }

    /// The parent of a directory; the root is its own parent.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn parent(&self, node: NodeId) -> Now<NodeId> {
        let dir = self.directory(node)?;
        Ok(dir.parent().map_or(NodeId::ROOT, |parent| parent.id()))
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn symlink_target(&self, node: NodeId) -> Now<Vec<u8>> {
        let (number, entry) = self.carrier(node, Kind::Symlink)?;
        let index = self.overlay.index(number).map_err(not_now)?;
        Ok(index.symlink_target(entry).map_err(|cause| damaged(number, cause))?.unwrap_or_default().to_vec())
    }

    /// Reads cached bytes of a file into `buf`; fewer bytes than requested only at the end of the file. Calls
    /// `before_wait` before it waits for the disk.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn read_now(&self, node: NodeId, at: FileOffset, buf: &mut [u8], before_wait: &mut dyn FnMut()) -> Now<Local> {
        let plan = self.plan_read(node, at, buf.len())?;
        let number = plan.layer;
        let local = plan.read_now(buf, before_wait).map_err(|error| unread(number, error))?;
        if let Local::Bytes(length) = local {
            self.observed(node, at, &buf[..length]);
        }
        Ok(local)
    }

    /// Continues a read that has to wait; fetches missing bytes.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn read_missing(&self, missing: MissingBytes) -> Result<Bytes, FsError> {
        let (node, at, length) = (missing.plan.node, missing.plan.at, missing.plan.length);
        let mut missing = missing;
        loop {
            let number = missing.plan.layer;
            match self.patiently(number, missing.wait()).await? {
                Ok(bytes) => {
                    self.observed(node, at, &bytes);
                    return Ok(bytes);
                }
                Err(Unfilled::Failed(error)) => match unread(number, error) {
                    NotNow::Never(error) => return Err(error),
                    NotNow::Needs(number) => self.know(number).await?,
                    NotNow::TakesLong => return Err(FsError::TakesTooLong),
                },
                // The layer's pass has ended since.
                Err(Unfilled::Closed) => self.know_whole(number).await?,
            }
            missing = match self.read_or_missing(node, at, length).await? {
                Ok(bytes) => return Ok(bytes),
                Err(still) => still,
            };
        }
    }

    /// Reads up to `length` bytes of a file; fetches missing ones.
    ///
    /// # Errors
    /// [`FsError`]
    pub async fn read(&self, node: NodeId, at: FileOffset, length: usize) -> Result<Bytes, FsError> {
        match self.read_or_missing(node, at, length).await? {
            Ok(bytes) => Ok(bytes),
            Err(missing) => self.read_missing(missing).await,
        }
    }

    /// Reads cached bytes once the layer is available.
    async fn read_or_missing(
        &self,
        node: NodeId,
        at: FileOffset,
        length: usize,
    ) -> Result<Result<Bytes, MissingBytes>, FsError> {
        self.awaited(|fs| {
            let plan = fs.plan_read(node, at, length)?;
            let mut buf = vec![0; plan.length];
            let number = plan.layer;
            match plan.read_now(&mut buf, &mut || ()).map_err(|error| unread(number, error))? {
                Local::Missing(missing) => Ok(Err(missing)),
                Local::Bytes(_) => {
                    fs.observed(node, at, &buf);
                    Ok(Ok(buf.into()))
                }
            }
        })
        .await
    }

    /// A verified passthrough copy of `node` for the kernel, if there is one.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn passthrough_copy_now(&self, node: NodeId) -> Now<Option<File>> {
        let (number, entry) = self.carrier(node, Kind::File)?;
        let entry = self.layers.read_by(number, entry);
        Ok(self.layers.known(number).and_then(|content| content.passthrough_copy_now(entry)))
    }

    /// Makes the copy of [`ImageFs::passthrough_copy_now`], if all its bytes are cached and the cache has room;
    /// completes even if the future is dropped.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn make_passthrough_copy(
        &self,
        node: NodeId,
    ) -> Now<Option<impl Future<Output = Option<File>> + Send + 'static>> {
        let (number, entry) = self.carrier(node, Kind::File)?;
        let entry = self.layers.read_by(number, entry);
        let content = self.layers.known(number).filter(|content| content.could_have_passthrough_copy(entry));
        let Some(content) = content else { return Ok(None) };
        let making = Arc::clone(&self.making);
        let made = async move {
            // One at a time, as they share the disk.
            let permit = making.acquire_owned().await.ok()?;
            let made = tokio::task::spawn_blocking(move || {
                let made = content.make_passthrough_copy(entry);
                drop(permit);
                if matches!(made, Ok(Some(_))) {
                    tokio::task::spawn_blocking(move || content.seal_passthrough_copy(entry));
                }
                made
            });
            match made.await.ok()? {
                Ok(made) => made,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a large file is read without passthrough"
                    );
                    None
                }
            }
        };
        Ok(Some(made))
    }

    /// The next offset at or after `at` that holds data (`true`) or a hole (`false`), as in lseek(2); `None` past the
    /// end.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn seek(&self, node: NodeId, at: FileOffset, data: bool) -> Now<Option<FileOffset>> {
        let (number, entry) = self.carrier(node, Kind::File)?;
        let index = self.overlay.index(number).map_err(not_now)?;
        let size = index.entry(entry).map_err(|cause| damaged(number, cause))?.size();
        if at.0 >= size {
            return Ok(None);
        }
        // A file may have a million extents, and callers iterate over them: search nearby first.
        let mut from = at;
        let mut window = SEEK_WINDOW;
        while from.0 < size {
            let to = FileOffset(from.0.saturating_add(window).min(size));
            let extents = index.extents(entry, from..to).map_err(|cause| damaged(number, cause))?;
            if let Some(extent) = extents.iter().find(|extent| extent.decoded.is_some() == data) {
                return Ok(Some(extent.file.start.max(from)));
            }
            from = to;
            window = window.saturating_mul(2);
        }
        // Every file ends with a hole; no data follows.
        Ok((!data).then_some(FileOffset(size)))
    }

    /// Resolves a path of the image.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn walk(&self, path: &[u8], last: Last) -> Now<NodeAttr> {
        match self.overlay.walk(path, last).map_err(not_now)? {
            Walked::Found { node, .. } => self.attr(node),
            Walked::Missing => Err(NotNow::Never(FsError::NotFound)),
            Walked::NotADirectory => Err(NotNow::Never(FsError::NotADirectory)),
            Walked::Loop => Err(NotNow::Never(FsError::Loop)),
        }
    }

    /// The kernel has dropped a node.
    pub fn forget(&self, node: NodeId) {
        self.overlay.forget(node);
    }

    /// The state of each layer.
    pub fn layer_status(&self) -> Vec<LayerStatus> {
        self.layers.status()
    }

    /// Why no index of its layers that others have pushed is used, if it is the same for all of them.
    pub fn no_pushed_index(&self) -> Option<&str> {
        self.layers.no_pushed_index()
    }

    /// What the cache cannot keep.
    pub fn not_kept(&self) -> Option<crate::store::NotKept> {
        self.layers.not_kept()
    }

    /// Prefetches missing parts of the layers that are available now, as `policy` says.
    pub async fn prefetch(&self, policy: Prefetch) {
        self.layers.prefetch(policy).await;
    }

    /// After a take-over: the mount is already `before` old, so reads may no longer count as start-up.
    pub fn set_prior_age(&self, before: Duration) {
        self.layers.set_prior_age(before);
    }

    /// [Stores](Self::keep_profiles) the start-up reads as soon as start-up is over: a mount may last for years, and
    /// end with a crash.
    pub async fn record(self: &Arc<Self>) {
        self.layers.started().await;
        let fs = Arc::clone(self);
        // Failures are logged; a panic ends only this task.
        let _ = tokio::task::spawn_blocking(move || fs.keep_profiles()).await;
    }

    /// Stores the start-up reads, so that the next mount can prefetch them.
    pub fn keep_profiles(&self) {
        self.layers.keep_profiles();
    }

    /// Ends the mount and its requests in flight.
    pub fn end(&self) {
        self.layers.end();
        self.overlay.end();
    }

    /// Waits until a layer fails verification after it was shown; returns its nodes that may have been shown. For one
    /// caller; never returns if nothing is shown before it is verified.
    pub async fn revoked(&self) -> impl Iterator<Item = NodeId> + use<> {
        let (layer, entries) = self.layers.revoked().await;
        (0..entries).map(move |entry| NodeId::new(layer, EntryId(entry)))
    }

    /// Bytes of blobs to be read by first passes, and bytes read so far.
    pub fn progress(&self) -> (u64, u64) {
        self.layers.progress()
    }

    /// The inputs of its inode numbers and change times.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Total size of all layers' blobs.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of entries of all available layers, and their decoded bytes.
    pub fn totals(&self) -> (u64, u64) {
        self.totals_in((0..self.overlay.layer_count()).map(LayerNo))
    }

    /// As [`ImageFs::totals`], for some layers.
    pub(super) fn totals_in(&self, layers: impl Iterator<Item = LayerNo>) -> (u64, u64) {
        let mut totals = (0, 0);
        for number in layers {
            let index = self.layers.file(number).cloned();
            let index = index.or_else(|| Some(Arc::clone(self.layers.known(number)?.index())));
            if let Some(index) = index {
                totals.0 += u64::from(index.len());
                totals.1 += index.layer().decoded_size;
            }
        }
        totals
    }

    fn directory(&self, node: NodeId) -> Now<Arc<crate::overlay::Dir>> {
        if node != NodeId::ROOT && self.kind(node)? != Kind::Directory {
            return Err(NotNow::Never(FsError::NotADirectory));
        }
        self.overlay.dir(node).map_err(not_now)
    }

    fn kind(&self, node: NodeId) -> Now<Kind> {
        if node == NodeId::ROOT {
            return Ok(Kind::Directory);
        }
        let (number, entry) = self.overlay.parse(node).map_err(not_now)?;
        let index = self.overlay.index(number).map_err(not_now)?;
        Ok(index.entry(entry).map_err(|cause| damaged(number, cause))?.kind())
    }

    pub(super) fn carrier(&self, node: NodeId, wanted: Kind) -> Now<(LayerNo, EntryId)> {
        match self.kind(node)? {
            kind if kind == wanted => self.overlay.parse(node).map_err(not_now),
            Kind::Directory => Err(NotNow::Never(FsError::IsADirectory)),
            _ => Err(NotNow::Never(FsError::NotAFile)),
        }
    }

    /// The reader of a layer, if it is available now.
    pub(super) fn known_content(&self, number: LayerNo) -> Option<Arc<LayerReader>> {
        self.layers.known(number)
    }

    pub(super) fn plan_read(&self, node: NodeId, at: FileOffset, length: usize) -> Now<ReadPlan> {
        let (number, shown) = self.carrier(node, Kind::File)?;
        // Where bytes lie is said by the index that they are read by: another may have taken the place of the one by which
        // the tree is shown.
        let (index, entry, bytes) = match self.layers.known(number) {
            Some(content) if content.layer().is_wrong() => return Err(NotNow::Needs(number)),
            Some(content) => {
                let entry = self.layers.read_by(number, shown);
                (Arc::clone(content.index()), entry, DecodedBytes::Layer(content))
            }
            None => {
                let partial = self.layers.partial(number).ok_or(NotNow::Needs(number))?;
                (self.overlay.index(number).map_err(not_now)?, shown, DecodedBytes::Partial(partial))
            }
        };
        let size = index.entry(entry).map_err(|cause| damaged(number, cause))?.size();
        let end = at.0.saturating_add(length as u64).min(size);
        if at.0 >= end {
            let place = PlaceInFile { entry, before: size, behind: 0 };
            return Ok(ReadPlan { layer: number, node, at, bytes, extents: Vec::new(), length: 0, place });
        }
        let extents = index.extents(entry, at..FileOffset(end)).map_err(|cause| damaged(number, cause))?;
        // Sparse files have fewer bytes in the layer, so predictions for them may be wrong.
        let place = PlaceInFile { entry, before: at.0, behind: size - end };
        Ok(ReadPlan { layer: number, node, at, bytes, extents, length: (end - at.0) as usize, place })
    }
}

impl Drop for ImageFs {
    fn drop(&mut self) {
        self.overlay.end();
    }
}

/// Initial window of a seek, in bytes.
const SEEK_WINDOW: u64 = 4096;

pub(super) fn not_now(unknown: Unknown) -> NotNow {
    match unknown {
        Unknown::Needs(layer) => NotNow::Needs(layer),
        Unknown::TakesLong => NotNow::TakesLong,
        Unknown::Refused { layer: number, cause } => NotNow::Never(FsError::Refused { number, cause }),
        Unknown::Damaged { layer, cause } => unusable(layer, cause),
        Unknown::NoSuchNode(node) => NotNow::Never(FsError::NoSuchNode(node)),
    }
}

pub(super) fn damaged(number: LayerNo, cause: IndexError) -> NotNow {
    unusable(number, Arc::new(cause))
}

/// A damaged index is rebuilt when its layer is needed; an inconsistent one cannot be repaired.
fn unusable(number: LayerNo, cause: Arc<IndexError>) -> NotNow {
    if cause.is_damage() { NotNow::Needs(number) } else { NotNow::Never(FsError::Malformed { number, cause }) }
}

fn unread(number: LayerNo, error: ReadError) -> NotNow {
    match error {
        ReadError::Index { cause, .. } if cause.is_damage() => NotNow::Needs(number),
        ReadError::Refuted { .. } => NotNow::Needs(number),
        error => NotNow::Never(error.into()),
    }
}
