//! Windows of an index that has them in a blob of their own: fetched by ranges, where spans are decoded that need them.
//!
//! A span is asked for, and its window with it, at the same time. What lies near the window in the blob comes along, so that
//! reads near that one need no further request. Each window is compared with the index and then cached; one that cannot be
//! had ends the use of the index, and the layer is opened as it would be without.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::descriptor::{Descriptor, MediaType};
use crate::digest::Digest;
use crate::layer::{IndexError, LayerIndex, WindowAt};
use crate::offsets::BlobOffset;
use crate::source::registry::RegistrySource;
use crate::source::{BlobSource, SentBy, SourceError};
use crate::span::{SpanId, SpanRange};
use crate::store::{Store, WindowsFile};
use crate::sync::lock;

/// The windows of one layer.
pub(super) struct LayerWindows {
    index: Arc<LayerIndex>,
    blob: Descriptor,
    cached: WindowsFile,
    store: Arc<Store>,
    /// Those that the cache could not keep.
    in_memory: Mutex<HashMap<SpanId, Bytes>>,
    in_flight: Mutex<HashMap<GroupId, watch::Receiver<()>>>,
}

/// The repository that an index is from.
#[derive(Clone)]
pub struct WindowSource {
    registry: Arc<RegistrySource>,
    place: Box<str>,
}

/// Why windows cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WindowsError {
    /// No repository is named, or no network may be used.
    #[error("nothing says where they are, or it may not be asked")]
    Nowhere,
    /// The registry does not send them.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The registry takes too long.
    #[error("{place} did not send them within {seconds} s")]
    Late {
        /// Registry and repository.
        place: String,
        /// The limit.
        seconds: u64,
    },
    /// They are others than those that the index was made with.
    #[error("blob {blob} has other windows than its index says")]
    Others {
        /// The blob.
        blob: Digest,
    },
    /// The index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Windows that begin in the same piece of the blob.
type GroupId = u64;
/// The windows of groups; the first one of a group is needed, if any is.
type Groups = BTreeMap<GroupId, Vec<(SpanId, WindowAt)>>;

/// Windows that are fetched by one request.
struct Run {
    bytes: Range<u64>,
    windows: Vec<(SpanId, WindowAt)>,
}

/// Groups that a task fetches; others wait until this is dropped.
struct Claimed<'a> {
    of: &'a LayerWindows,
    groups: Vec<GroupId>,
    runs: Vec<Run>,
    _waited_for: Vec<watch::Sender<()>>,
}

impl Claimed<'_> {
    /// Adds the windows of a group, which lies behind those before.
    fn add(&mut self, windows: Vec<(SpanId, WindowAt)>) {
        let start = windows.iter().map(|(_, at)| at.start).min().unwrap_or(0);
        let end = windows.iter().map(|(_, at)| at.start + u64::from(at.len)).max().unwrap_or(0);
        if let Some(last) = self.runs.last_mut()
            && (last.bytes.end..=last.bytes.end + GAP).contains(&start)
            && end - last.bytes.start <= REQUEST
        {
            last.bytes.end = end;
            last.windows.extend(windows);
        } else {
            self.runs.push(Run { bytes: start..end, windows });
        }
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        let mut in_flight = lock(&self.of.in_flight);
        self.groups.iter().for_each(|group| drop(in_flight.remove(group)));
    }
}

impl WindowSource {
    /// The repository `place` of `registry`.
    pub(super) fn new(registry: Arc<RegistrySource>, place: &str) -> Self {
        Self { registry, place: place.into() }
    }

    async fn read(&self, blob: &Descriptor, range: &Range<u64>) -> Result<(Bytes, SentBy), WindowsError> {
        let seconds = LIMIT.as_secs() + (range.end - range.start) / LEAST_RATE;
        let read = async {
            let mut stream = self.registry.stream(blob, BlobOffset(range.start)..BlobOffset(range.end)).await?;
            let mut all = BytesMut::new();
            while let Some(piece) = stream.next().await {
                // Compared with the index before they are used.
                all.extend_from_slice(&piece?.into_unverified());
            }
            Ok((all.freeze(), stream.senders()))
        };
        let begun = Instant::now();
        let late = || {
            let seconds = begun.elapsed().as_secs_f64().ceil() as u64;
            Err(WindowsError::Late { place: self.place.to_string(), seconds })
        };
        let unneeded = async {
            match self.registry.outages() {
                Some(outages) => outages.dispensable(&blob.digest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = tokio::time::timeout(Duration::from_secs(seconds), read) => read.unwrap_or_else(|_| late()),
            () = unneeded => late(),
        }
    }
}

impl LayerWindows {
    /// Those of an index that has them in a blob of their own.
    ///
    /// # Errors
    /// [`IndexError`], if the blob is not described.
    pub(super) fn of(index: &Arc<LayerIndex>, store: &Arc<Store>) -> Result<Option<Self>, IndexError> {
        let Some(blob) = index.windows_blob()? else { return Ok(None) };
        let media_type = MediaType::parse("application/octet-stream");
        Ok(Some(Self {
            blob: Descriptor::new(media_type, blob.digest, blob.size),
            cached: store.windows(&index.layer().blob),
            index: Arc::clone(index),
            store: Arc::clone(store),
            in_memory: Mutex::default(),
            in_flight: Mutex::default(),
        }))
    }

    /// The window of a span as it is stored, if it is here; empty if the span needs none.
    ///
    /// # Errors
    /// The index is damaged.
    pub(super) fn get(&self, span: SpanId) -> Result<Option<Bytes>, IndexError> {
        let Some(at) = self.index.span(span)?.window else { return Ok(Some(Bytes::new())) };
        if let Some(window) = lock(&self.in_memory).get(&span) {
            return Ok(Some(window.clone()));
        }
        let mut window = vec![0; at.len as usize];
        let is_right =
            self.cached.read_exact_at(&mut window, at.start).is_ok() && self.index.is_window(span, &window)?;
        Ok(is_right.then(|| window.into()))
    }

    /// Fetches the windows of `spans` that are not here. Returns the bytes that were received. `begun` is dropped as soon as
    /// others wait for what this fetches.
    ///
    /// # Errors
    /// [`WindowsError`]; some may be here all the same.
    pub(super) async fn fetch(
        &self,
        spans: &[SpanId],
        source: Option<&WindowSource>,
        mut begun: Option<oneshot::Sender<()>>,
    ) -> Result<u64, WindowsError> {
        let mut received = 0;
        for _ in 0..TRIES {
            let missing = self.missing(spans)?;
            if missing.is_empty() {
                return Ok(received);
            }
            let source = source.ok_or(WindowsError::Nowhere)?;
            let (claimed, elsewhere) = self.claim(missing)?;
            drop(begun.take());
            let fetched = join_all(claimed.runs.iter().map(|run| self.fetch_run(run, source))).await;
            drop(claimed);
            for bytes in fetched {
                received += bytes?;
            }
            if elsewhere.is_empty() {
                break;
            }
            for mut other in elsewhere {
                // An error says that the other task has ended.
                while other.changed().await.is_ok() {}
            }
        }
        match self.missing(spans)?.is_empty() {
            true => Ok(received),
            false => Err(WindowsError::Others { blob: self.blob.digest.clone() }),
        }
    }

    /// The groups of the windows that some spans need and that are not here; and those between two of them, if one request is
    /// to bring both.
    fn missing(&self, spans: &[SpanId]) -> Result<Groups, IndexError> {
        let mut groups = BTreeMap::new();
        for span in spans {
            let Some(at) = self.index.span(*span)?.window else { continue };
            let group = at.start / GROUP;
            if !groups.contains_key(&group) && self.get(*span)?.is_none() {
                groups.insert(group, self.group(*span, at)?);
            }
        }
        let between = self.between(&groups)?;
        groups.extend(between);
        Ok(groups)
    }

    /// The groups between neighbours of `groups` that are close to each other.
    fn between(&self, groups: &Groups) -> Result<Groups, IndexError> {
        let mut between = Groups::new();
        for ((before, one), (behind, other)) in groups.iter().zip(groups.iter().skip(1)) {
            if !(2..=1 + GAP / GROUP).contains(&(behind - before)) {
                continue;
            }
            let last = one.iter().map(|(span, _)| *span).max();
            let first = other.iter().map(|(span, _)| *span).min();
            let Some((last, first)) = last.zip(first) else { continue };
            for span in SpanRange::new(last.next(), first.min(last.forward(NEAR))).iter() {
                let Some(at) = self.index.span(span)?.window else { continue };
                let group = at.start / GROUP;
                if (before + 1..*behind).contains(&group) && u64::from(at.len) <= GROUP {
                    between.entry(group).or_default().push((span, at));
                }
            }
        }
        Ok(between)
    }

    /// The window of `span`, and those that begin in the same piece of the blob.
    fn group(&self, span: SpanId, at: WindowAt) -> Result<Vec<(SpanId, WindowAt)>, IndexError> {
        let mut windows = vec![(span, at)];
        let mut add = |span: SpanId| {
            let Some(other) = self.index.span(span)?.window else { return Ok(true) };
            let is_near = other.start / GROUP == at.start / GROUP && u64::from(other.len) <= GROUP;
            if is_near {
                windows.push((span, other));
            }
            Ok::<_, IndexError>(is_near)
        };
        let before = SpanRange::new(span.back(NEAR), span);
        for near in before.iter().collect::<Vec<_>>().into_iter().rev() {
            if !add(near)? {
                break;
            }
        }
        for near in SpanRange::new(span.next(), span.forward(NEAR).min(self.index.spans().end)).iter() {
            if !add(near)? {
                break;
            }
        }
        Ok(windows)
    }

    /// Takes on the groups that no other task fetches, and returns what tells of the others.
    fn claim(&self, groups: Groups) -> Result<(Claimed<'_>, Vec<watch::Receiver<()>>), IndexError> {
        let mut claimed = Claimed { of: self, groups: Vec::new(), runs: Vec::new(), _waited_for: Vec::new() };
        let (mut elsewhere, mut mine) = (Vec::new(), Vec::new());
        {
            let mut in_flight = lock(&self.in_flight);
            for (group, windows) in groups {
                if let Some(other) = in_flight.get(&group) {
                    elsewhere.push(other.clone());
                    continue;
                }
                let (sender, receiver) = watch::channel(());
                in_flight.insert(group, receiver);
                claimed.groups.push(group);
                claimed._waited_for.push(sender);
                mine.push(windows);
            }
        }
        for windows in mine {
            // A task that had it in flight may have ended since it was found missing.
            if let Some((needed, _)) = windows.first()
                && self.get(*needed)?.is_none()
            {
                claimed.add(windows);
            }
        }
        Ok((claimed, elsewhere))
    }

    /// Fetches and keeps the windows of a run; asks once more, or as often as there are other hosts, if they are not right.
    async fn fetch_run(&self, run: &Run, source: &WindowSource) -> Result<u64, WindowsError> {
        let (mut received, mut retried) = (0, false);
        loop {
            let (bytes, senders) = source.read(&self.blob, &run.bytes).await?;
            received += bytes.len() as u64;
            if self.keep(run, &bytes)? || (!senders.pass_over() && std::mem::replace(&mut retried, true)) {
                return Ok(received);
            }
        }
    }

    /// Keeps what is right of the bytes of a run; whether all is.
    fn keep(&self, run: &Run, bytes: &Bytes) -> Result<bool, IndexError> {
        let mut right = Vec::new();
        for (span, at) in &run.windows {
            let from = (at.start - run.bytes.start) as usize;
            let window = from..from + at.len as usize;
            if bytes.get(window.clone()).is_some_and(|window| self.index.is_window(*span, window).unwrap_or(false)) {
                right.push((*span, at.start, window));
            }
        }
        let all = right.len() == run.windows.len();
        let kept = match all {
            true => self.cached.write_all_at(bytes, run.bytes.start),
            false => right.iter().try_for_each(|(_, at, window)| self.cached.write_all_at(&bytes[window.clone()], *at)),
        };
        if let Err(error) = kept {
            self.store.cannot_keep("decoder windows of a layer", &error);
            let mut in_memory = lock(&self.in_memory);
            if in_memory.len() > IN_MEMORY {
                in_memory.clear();
            }
            in_memory.extend(right.into_iter().map(|(span, _, window)| (span, bytes.slice(window))));
        }
        Ok(all)
    }
}

/// Fetches all windows of a layer's index in the store that are not cached yet, if they are in a blob of their own.
///
/// # Errors
/// [`WindowsError`]
pub(super) async fn complete_windows(
    store: &Arc<Store>,
    index: &Arc<LayerIndex>,
    source: Option<&WindowSource>,
) -> Result<(), WindowsError> {
    let Some(windows) = LayerWindows::of(index, store)? else { return Ok(()) };
    let all: Vec<_> = index.spans().iter().collect();
    windows.fetch(&all, source, None).await.map(drop)
}

/// Bytes of the blob in which the windows of a group begin.
const GROUP: u64 = 8 << 10;
/// Bytes that nothing needs yet, if they save a request.
const GAP: u64 = 16 << 10;
/// The most bytes of a request, but for one large window.
const REQUEST: u64 = 1 << 20;
/// Spans before and behind one that are looked at for neighbours: most have a window each.
const NEAR: u32 = 256;
/// Windows that are kept in memory, where the cache keeps none.
const IN_MEMORY: usize = 4096;
/// Times that windows which another task fetches are waited for.
const TRIES: usize = 8;
/// Time limit of a request, besides that for its bytes, if readers wait longer than that for a source: a first pass does as
/// well.
const LIMIT: Duration = Duration::from_secs(60);
/// A transfer at this rate, in bytes a second, is within the limit.
const LEAST_RATE: u64 = 8 << 10;
