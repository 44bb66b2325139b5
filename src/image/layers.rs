//! The layers of one image: which are known, which are being read, which have failed.
//!
//! A layer whose index is in the store is known at once. Every other one needs a first pass; a few run at a time. Layers
//! that a reader waits for go first, also when other passes are running already ([`content::PassScheduler`]). An index
//! that turns out damaged is made anew by another pass over its layer; what is in memory of it is served meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::chain::chain;
use crate::content::{
    self, Closed, ContentStats, FirstPass, LayerReader, LayerRef, Means, MountScope, OpenLayer, Opened, Origin, Others,
    PartialLayer, PassError, Prefetch, ReadError, SharedLayer, SharedLayers, ShownSpan, opening,
};
use crate::digest::Digest;
use crate::layer::LayerIndex;
use crate::overlay::LayerNo;
use crate::source::{BlobSource, SourceError};
use crate::sync::lock;

/// When layers are read that no reader has needed yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Eagerness {
    /// Right away, behind those that are needed.
    Background,
    /// The uppermost one right away; it alone is shown, and those below are read when it needs them.
    Uppermost,
    /// Never.
    OnDemand,
}

/// When a layer's files may be shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verify {
    /// Once the whole layer is verified.
    BeforeShowing,
    /// While it streams in; if it then fails, all of it turns into errors.
    Behind,
}

/// Bounds of first passes.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Of decoding.
    pub codec: crate::codec::Limits,
    /// Of the tree.
    pub layer: crate::layer::Limits,
}

/// All layers of one image.
pub struct Layers {
    /// The manifest, under which profiles are kept.
    image: Digest,
    slots: Vec<Arc<Slot>>,
    /// Which slot a layer has; layers that are the same blob share one.
    slot_of: Vec<usize>,
    source: Arc<dyn BlobSource>,
    shared_layers: SharedLayers,
    /// Tasks, clock and budget of the mount.
    scope: Arc<MountScope>,
    running: Mutex<usize>,
    at_once: usize,
    eagerness: Eagerness,
    verify: Verify,
    /// Layers that were shown and then failed verification, and how many entries of each may have been shown.
    disowned: Mutex<Vec<(LayerNo, u32)>>,
    disowning: Notify,
}

struct Slot {
    pass: FirstPass,
    state: watch::Sender<State>,
    /// What it shares with other mounts of this process.
    shared: Arc<SharedLayer>,
    /// How often its pass has failed.
    failures: AtomicU32,
    /// The content whose index is damaged, while the layer is read again for it.
    mending: Mutex<Option<Arc<LayerReader>>>,
    /// How often its index was made anew.
    mended: AtomicU32,
    /// The running pass, where it is shown while it runs.
    partial: Mutex<Option<Arc<PartialLayer>>>,
    /// The latest snapshot, and of which pass; made by one task at a time.
    shown: tokio::sync::Mutex<Option<(Arc<PartialLayer>, Arc<LayerIndex>)>>,
    /// Entries in the latest snapshot.
    shown_entries: AtomicU32,
    /// What passes have shown of it that then failed.
    shown_unverified: Mutex<HashSet<ShownSpan>>,
}

/// What waiting for a layer came to.
pub enum Known {
    /// The layer, verified.
    PassthroughCopy(Arc<LayerReader>),
    /// More of it than before, not verified yet.
    Further(Arc<LayerIndex>),
}

#[derive(Clone)]
enum State {
    Idle,
    Running,
    Ready(Arc<LayerReader>),
    Failed { why: Arc<LayerFailure>, at: Instant, times: u32 },
}

/// Why a layer cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum LayerFailure {
    /// Its first pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Its index was damaged after it had been opened, and could not be made anew.
    #[error("the index of layer {layer} was damaged on disk and {why}")]
    Damaged {
        /// The blob.
        layer: Digest,
        /// Why not.
        why: &'static str,
    },
    /// It is verified now, but other bytes were shown before, and the kernel may have cached them.
    #[error("layer {layer} was shown with bytes that are not its own before it was verified; mount the image again")]
    ShownOtherwise {
        /// The blob.
        layer: Digest,
    },
}

/// The state of a layer, for status.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LayerStatus {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How far it is.
    pub state: LayerProgress,
    /// Who vouches for its index, if this machine has not made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched_by: Option<String>,
    /// Blob bytes that the first pass has received.
    pub received: u64,
    /// Reads after the pass.
    pub reads: ContentStats,
    /// What went wrong, if it did.
    pub error: Option<String>,
}

/// How far a layer is, for status.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerProgress {
    /// It has not been needed yet, or its turn is to come.
    Waiting,
    /// Its first pass runs.
    Reading,
    /// It is verified.
    Ready,
    /// It cannot be shown.
    Failed,
    /// What a later version says.
    #[serde(other)]
    Other,
}

impl Layers {
    /// Opens what the store knows of `planned`, the layers of `image`, and, by `eagerness`, begins to read the rest.
    pub fn open(
        image: &Digest,
        planned: &[LayerRef],
        source: Arc<dyn BlobSource>,
        shared_layers: SharedLayers,
        limits: &Limits,
        eagerness: Eagerness,
        verify: Verify,
    ) -> Arc<Self> {
        let limits = Limits { layer: limits.layer.of_image(planned.len()), ..limits.clone() };
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        let mut by_blob = HashMap::<(Digest, Digest), usize>::new();
        let mut slot_of = Vec::new();
        for layer in planned {
            let key = (layer.blob.digest.clone(), layer.content().clone());
            let slot = *by_blob.entry(key).or_insert_with(|| {
                slots.push(Arc::new(Slot::new(layer, &limits, &shared_layers)));
                slots.len() - 1
            });
            slot_of.push(slot);
        }
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let layers = Arc::new(Self {
            image: image.clone(),
            slots,
            slot_of,
            source,
            shared_layers,
            scope: Arc::default(),
            running: Mutex::new(0),
            at_once: (cores + 1).min(content::passes_at_once()),
            eagerness,
            verify,
            disowned: Mutex::default(),
            disowning: Notify::new(),
        });
        layers.open_known(cores);
        layers.start_more();
        layers
    }

    /// Opens what is known, which is quick for one layer and not for hundreds.
    fn open_known(&self, cores: usize) {
        let open = |slots: &[Arc<Slot>]| {
            for slot in slots {
                if let Some(open) = self.shared(slot) {
                    slot.state.send_replace(self.content(slot, open));
                }
            }
        };
        let share = self.slots.len().div_ceil(cores).max(OPENED_AT_ONCE);
        let (first, rest) = self.slots.split_at(share.min(self.slots.len()));
        std::thread::scope(|scope| {
            for slots in rest.chunks(share) {
                let begun = std::thread::Builder::new().spawn_scoped(scope, move || open(slots));
                // Where no thread can be had it takes longer.
                if begun.is_err() {
                    open(slots);
                }
            }
            open(first);
        });
    }

    /// Fetches ahead of readers, as `policy` says, in the layers that are known now; those that are read first are cached
    /// by their passes.
    pub async fn prefetch(&self, policy: Prefetch) {
        content::prefetch(&self.image, self.all_known(), policy).await;
    }

    /// Ends the tasks of these layers, for good.
    pub fn end(&self) {
        self.scope.end();
    }

    /// After a take-over: another process had served the mount for `before`.
    pub fn goes_on_after(&self, before: Duration) {
        self.scope.goes_on_after(before);
    }

    /// Waits until the mount's start-up is over.
    pub async fn started(&self) {
        self.scope.started().await;
    }

    /// Keeps what was read of each layer at the start, so that the next mount can fetch it before it is read.
    pub fn keep_profiles(&self) {
        content::keep_profiles(&self.image, &self.all_known());
    }

    /// Evicts what the cache has beyond its limit, which may be lower than when these layers were cached.
    pub fn keep_within_limit(&self) {
        self.all_known().iter().for_each(|content| content.layer().keep_within_limit());
    }

    /// The contents of all layers that are known now, each once.
    fn all_known(&self) -> Vec<Arc<LayerReader>> {
        let known = |slot: &Arc<Slot>| match &*slot.state.borrow() {
            State::Ready(content) => Some(Arc::clone(content)),
            _ => None,
        };
        self.slots.iter().filter(|slot| self.is_shown(slot)).filter_map(known).collect()
    }

    /// Whether anything is done for a layer before it is needed.
    fn is_shown(&self, slot: &Arc<Slot>) -> bool {
        let uppermost = || self.slot_of.last().is_some_and(|last| Arc::ptr_eq(&self.slots[*last], slot));
        self.eagerness != Eagerness::Uppermost || uppermost()
    }

    /// The content of a layer, if it is known now.
    pub fn known(&self, layer: LayerNo) -> Option<Arc<LayerReader>> {
        let slot = self.slot(layer);
        match &*slot.state.borrow() {
            State::Ready(content) => Some(Arc::clone(content)),
            _ => lock(&slot.mending).clone(),
        }
    }

    /// The content of a layer, as soon as its first pass is done. Asking makes the layer urgent.
    ///
    /// A layer that failed for a reason that may pass is tried again when it is asked for, at growing
    /// intervals; one whose index has turned out damaged is read again.
    ///
    /// # Errors
    /// [`LayerFailure`]
    pub async fn ready(self: &Arc<Self>, layer: LayerNo) -> Result<Arc<LayerReader>, Arc<LayerFailure>> {
        let slot = Arc::clone(self.slot(layer));
        let mut changes = slot.state.subscribe();
        slot.shared.schedule.set_urgent(true);
        slot.state.send_if_modified(|state| match state {
            // Tries for a source that is away pace themselves.
            State::Failed { why, at, times }
                if self.may_pass(why) && (why.is_outage() || at.elapsed() >= why.pause_after(*times)) =>
            {
                *state = State::Idle;
                true
            }
            State::Ready(content) if content.index().is_damaged() => {
                *lock(&slot.mending) = Some(Arc::clone(content));
                *state = match slot.mended.fetch_add(1, Ordering::Relaxed) {
                    MENDED_AT_MOST.. => slot.beyond_repair("is damaged again and again"),
                    _ => State::Idle,
                };
                true
            }
            _ => false,
        });
        if matches!(*slot.state.borrow(), State::Idle) {
            self.start(&slot);
        }
        let settled = changes.wait_for(|state| matches!(state, State::Ready(_) | State::Failed { .. })).await;
        match settled.as_deref() {
            Ok(State::Ready(content)) => Ok(Arc::clone(content)),
            Ok(State::Failed { why, .. }) => Err(Arc::clone(why)),
            _ => Err(Arc::new(PassError::Ended { layer: slot.pass.layer.blob.digest.clone() }.into())),
        }
    }

    /// As [`Layers::ready`]; where layers are shown while they are read, returns as soon as there is noticeably more of
    /// it than in the latest snapshot.
    ///
    /// # Errors
    /// [`LayerFailure`]
    pub async fn known_or_partial(self: &Arc<Self>, layer: LayerNo) -> Result<Known, Arc<LayerFailure>> {
        let whole = self.ready(layer);
        if self.verify == Verify::BeforeShowing {
            return whole.await.map(Known::PassthroughCopy);
        }
        let slot = self.slot(layer);
        let further = async {
            let before = slot.shown_entries.load(Ordering::Acquire);
            let mut changes = slot.state.subscribe();
            let mut shown = slot.shown.lock().await;
            let partial = loop {
                match self.partial(layer) {
                    Some(partial) => break partial,
                    // The state's sender lives as long as the slot.
                    None => drop(changes.changed().await),
                }
            };
            // What an earlier pass has shown says nothing about this one.
            let of_this_pass = shown.as_ref().filter(|(of, _)| Arc::ptr_eq(of, &partial));
            if let Some((_, index)) = of_this_pass.filter(|(_, index)| index.len() > before) {
                return Known::Further(Arc::clone(index)); // another task has made it meanwhile
            }
            partial.more_than(before, 1 + before / SNAPSHOT_GROWTH).await;
            let (shown_now, layer) = (Arc::clone(&partial), slot.pass.layer.clone());
            // As much work as the layer has entries.
            match tokio::task::spawn_blocking(move || shown_now.snapshot(&layer)).await {
                Ok(Ok(index)) => {
                    slot.shown_entries.store(index.len(), Ordering::Release);
                    let index = Arc::new(index);
                    *shown = Some((partial, Arc::clone(&index)));
                    Known::Further(index)
                }
                // The pass has ended; `whole` tells how.
                Ok(Err(Closed)) | Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            whole = whole => whole.map(Known::PassthroughCopy),
            further = further => Ok(further),
        }
    }

    /// A layer that is being read and shown.
    pub fn partial(&self, layer: LayerNo) -> Option<Arc<PartialLayer>> {
        lock(&self.slot(layer).partial).clone()
    }

    /// Calls `tell` whenever a layer turns out to be verified or failed, until `tell` returns `false`, the layer is
    /// verified, or these layers are dropped.
    pub fn watch<T>(&self, layer: LayerNo, tell: T) -> impl Future<Output = ()> + use<T>
    where
        T: Fn(Option<&Arc<LayerReader>>) -> bool,
    {
        let mut changes = self.slot(layer).state.subscribe();
        async move {
            loop {
                let go_on = match &*changes.borrow_and_update() {
                    State::Ready(content) => {
                        tell(Some(content));
                        false
                    }
                    State::Failed { .. } => tell(None),
                    State::Idle | State::Running => true,
                };
                if !go_on || changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// The state of each layer that is shown, and of those below that are needed and not ready; base first.
    pub fn status(&self) -> Vec<LayerStatus> {
        let slots = self.slot_of.iter().map(|slot| &self.slots[*slot]);
        let matter = |slot: &&Arc<Slot>| {
            self.is_shown(slot) || matches!(*slot.state.borrow(), State::Running | State::Failed { .. })
        };
        slots.filter(matter).map(|slot| slot.status()).collect()
    }

    /// Bytes of blobs to be read by first passes, and bytes read so far.
    pub fn progress(&self) -> (u64, u64) {
        let mut total = 0;
        let mut received = 0;
        for slot in &self.slots {
            if matches!(*slot.state.borrow(), State::Idle) && !self.is_shown(slot) {
                continue;
            }
            let got = slot.shared.progress.received.load(Ordering::Relaxed);
            if got > 0 || !matches!(*slot.state.borrow(), State::Ready(_)) {
                total += slot.pass.layer.blob.size;
                received += got.min(slot.pass.layer.blob.size);
            }
        }
        (total, received)
    }

    /// Whether trying again later may help. A wrong blob may have been a proxy's fault; but what was shown of one cannot
    /// be taken back.
    fn may_pass(&self, why: &LayerFailure) -> bool {
        let wrong_blob = matches!(why, LayerFailure::Pass(PassError::Blob { .. }));
        why.is_passing() || (wrong_blob && self.verify == Verify::BeforeShowing)
    }

    /// Returns when the source has been away from a layer for longer than a reader that comes now waits, with the error
    /// for that reader. Until something is received, that is the layer's last error.
    pub async fn outlived(&self, layer: LayerNo) -> ReadError {
        let Some(outages) = self.source.outages() else { return std::future::pending().await };
        let digest = &self.slot(layer).pass.layer.blob.digest;
        let cause = Arc::new(outages.outlived(digest, self.source.name()).await);
        let error = ReadError::Source { layer: digest.clone(), cause };
        if let Some(content) = self.known(layer) {
            content.set_error(&error);
        }
        error
    }

    fn slot(&self, layer: LayerNo) -> &Arc<Slot> {
        &self.slots[self.slot_of[usize::from(layer.0)]]
    }

    /// What this process or its store has of a layer.
    fn shared(&self, slot: &Slot) -> Option<Arc<OpenLayer>> {
        slot.shared.known(self.shared_layers.store(), &slot.pass.layer, &Origin::ALL)
    }

    fn content(&self, slot: &Slot, open: Arc<OpenLayer>) -> State {
        if !lock(&slot.shown_unverified).iter().all(|shown| shown.is_of(open.index())) {
            self.disown(slot, open.index().len());
            return slot.cannot_be_shown(LayerFailure::ShownOtherwise { layer: slot.pass.layer.blob.digest.clone() });
        }
        State::Ready(Arc::new(LayerReader::new(
            open,
            slot.pass.layer.blob.clone(),
            Arc::clone(&self.source),
            Arc::clone(&self.scope),
        )))
    }

    /// What was shown of a layer has failed verification.
    fn disown(&self, slot: &Slot, entries: u32) {
        let same = |at: &usize| std::ptr::eq(&*self.slots[*at], slot);
        let numbers = (0..).map(LayerNo).zip(&self.slot_of).filter(|(_, at)| same(at));
        lock(&self.disowned).extend(numbers.map(|(number, _)| (number, entries)));
        self.disowning.notify_one();
    }

    /// Waits until a layer fails verification after it was shown; says which, and how many of its entries may have been
    /// shown. For one caller; never returns where nothing is shown before it is verified.
    pub async fn disowned(&self) -> (LayerNo, u32) {
        loop {
            if let Some(disowned) = { lock(&self.disowned).pop() } {
                return disowned;
            }
            self.disowning.notified().await;
        }
    }

    /// Starts passes in the background while fewer than allowed are running.
    fn start_more(self: &Arc<Self>) {
        if self.eagerness == Eagerness::OnDemand {
            return;
        }
        while *lock(&self.running) < self.at_once {
            let idle = |slot: &&Arc<Slot>| matches!(*slot.state.borrow(), State::Idle) && self.is_shown(slot);
            let Some(next) = self.slots.iter().filter(idle).min_by_key(|slot| slot.urgency()) else { return };
            self.start(&Arc::clone(next));
        }
    }

    /// Starts a slot's pass unless it runs already.
    fn start(self: &Arc<Self>, slot: &Arc<Slot>) {
        let started = slot.state.send_if_modified(|state| {
            let idle = matches!(state, State::Idle);
            if idle {
                *state = State::Running;
            }
            idle
        });
        if !started {
            return;
        }
        *lock(&self.running) += 1;
        let (layers, slot) = (Arc::clone(self), Arc::clone(slot));
        self.scope.spawn(async move {
            let state = layers.run(&slot).await;
            *lock(&layers.running) -= 1;
            slot.state.send_replace(state);
            layers.start_more();
        });
    }

    async fn run(&self, slot: &Slot) -> State {
        let how_far = || {
            let received = slot.shared.progress.received.load(Ordering::Relaxed);
            format!("another mount is reading it, and has {received} of {} bytes", slot.pass.layer.blob.size)
        };
        let shared = &slot.shared;
        let passing = tokio::select! {
            biased;
            passing = slot.pass.wait_for(&self.source, shared.passing.lock(), how_far) => match passing {
                Ok(passing) => Some(passing),
                Err(why) => return slot.cannot_be_shown(why.into()),
            },
            // Its source brings nothing, and this mount's may.
            () = slot.pass.stands_still(&shared.progress, &shared.schedule) => None,
        };
        let (others, progress) = match passing {
            Some(_) => (Others::GetOn, Arc::clone(&shared.progress)),
            None => (Others::StandStill, Arc::default()),
        };
        let store = self.shared_layers.store();
        let mending = lock(&slot.mending).clone();
        if mending.is_none()
            && let Some(open) = self.shared(slot)
        {
            return self.content(slot, open); // another mount has made the pass meanwhile
        }
        let grows = (self.verify == Verify::Behind).then(Arc::<PartialLayer>::default);
        lock(&slot.partial).clone_from(&grows);
        slot.state.send_modify(|_| {});
        let (source, schedule) = (&self.source, &shared.schedule);
        let means = Means { source, store, progress: &progress, schedule, partial: grows.as_ref(), others };
        // What the store has of a layer whose index is damaged is what the damage was found in.
        let origins = if mending.is_some() { &[Origin::FirstPass][..] } else { &Origin::ALL };
        let mut made = opening::open(&slot.pass, origins, &means).await;
        *lock(&slot.partial) = None;
        if let (Some(grows), Err(why)) = (&grows, &made) {
            lock(&slot.shown_unverified).extend(grows.take_shown());
            if why.is_corruption() {
                self.disown(slot, grows.entries());
            }
        }
        // A task that holds the lock waits for this pass to end, and must not be waited for.
        if let Ok(mut shown) = slot.shown.try_lock() {
            *shown = None;
        }
        slot.shown_entries.store(0, Ordering::Release);
        // What was shown cannot be taken back, so where layers are shown early there is no silent second try.
        if self.verify == Verify::BeforeShowing && made.as_ref().is_err_and(PassError::is_corruption) {
            // Once more: a proxy may have spoilt the first answer.
            progress.received.store(0, Ordering::Relaxed);
            made = opening::open(&slot.pass, origins, &means).await;
        }
        match made {
            Ok(Opened { index, .. }) => {
                let Some(before) = mending else {
                    return self.content(slot, slot.shared.made(index, store));
                };
                // The tree continues to be shown by the index that was opened first.
                if !before.index().mend(&index) {
                    return slot.beyond_repair("differs from the one made anew; mount again");
                }
                let state = self.content(slot, slot.shared.made(Arc::clone(before.index()), store));
                *lock(&slot.mending) = None;
                state
            }
            Err(why) => {
                progress.received.store(0, Ordering::Relaxed);
                slot.shared.schedule.set_urgent(false);
                slot.cannot_be_shown(why.into())
            }
        }
    }
}

impl Slot {
    fn new(layer: &LayerRef, limits: &Limits, shared_layers: &SharedLayers) -> Self {
        Self {
            pass: FirstPass { layer: layer.clone(), codec_limits: limits.codec, layer_limits: limits.layer },
            state: watch::Sender::new(State::Idle),
            shared: shared_layers.layer(layer),
            failures: AtomicU32::new(0),
            mending: Mutex::default(),
            mended: AtomicU32::new(0),
            partial: Mutex::default(),
            shown: tokio::sync::Mutex::default(),
            shown_entries: AtomicU32::new(0),
            shown_unverified: Mutex::default(),
        }
    }

    /// The order of passes, smallest first: layers that are waited for, then small ones, which decide names at once, then
    /// the largest, so that no long pass is left over at the end.
    fn urgency(&self) -> (bool, u64) {
        let size = self.pass.layer.blob.size;
        let rank = if size <= SMALL_LAYER { size } else { u64::MAX - size };
        (!self.shared.schedule.is_urgent(), rank)
    }

    fn status(&self) -> LayerStatus {
        let mut vouched_by = None;
        let (state, reads, error) = match &*self.state.borrow() {
            State::Idle => (LayerProgress::Waiting, ContentStats::default(), None),
            State::Running => (LayerProgress::Reading, ContentStats::default(), None),
            State::Ready(content) => {
                vouched_by = content.index().proof().vouched_by().map(ToOwned::to_owned);
                let last_error = content.last_error();
                (LayerProgress::Ready, content.stats(), last_error.as_ref().map(|why| chain(why)))
            }
            State::Failed { why, .. } => (LayerProgress::Failed, ContentStats::default(), Some(chain(why))),
        };
        LayerStatus {
            digest: self.pass.layer.blob.digest.clone(),
            size: self.pass.layer.blob.size,
            state,
            vouched_by,
            received: self.shared.progress.received.load(Ordering::Relaxed),
            reads,
            error,
        }
    }

    fn beyond_repair(&self, why: &'static str) -> State {
        let why = Arc::new(LayerFailure::Damaged { layer: self.pass.layer.blob.digest.clone(), why });
        tracing::error!(target: "peelfs::failure", error = &why as &dyn std::error::Error, "a layer can be shown only in part");
        self.failed(why)
    }

    fn cannot_be_shown(&self, why: LayerFailure) -> State {
        let why = Arc::new(why);
        let error = &why as &dyn std::error::Error;
        match &*why {
            // What ends it says why.
            LayerFailure::Pass(PassError::Ended { .. }) => tracing::debug!(error, "a first pass was given up"),
            _ => tracing::error!(target: "peelfs::failure", error, "a layer cannot be shown"),
        }
        self.failed(why)
    }

    /// Failed now; the more often, the later it is tried again.
    fn failed(&self, why: Arc<LayerFailure>) -> State {
        State::Failed { why, at: Instant::now(), times: self.failures.fetch_add(1, Ordering::Relaxed) }
    }
}

impl LayerFailure {
    fn is_outage(&self) -> bool {
        matches!(self, Self::Pass(PassError::Source { cause: SourceError::Unreachable { .. }, .. }))
    }

    /// How long to wait before another try, after this many failures in a row. A refusal costs one request, anything else
    /// a download.
    fn pause_after(&self, times: u32) -> Duration {
        let refusal = matches!(
            self,
            Self::Pass(PassError::Source { cause: SourceError::Denied { .. } | SourceError::NotFound { .. }, .. })
        );
        Duration::from_secs(if refusal { 1 } else { 1 << times.min(5) })
    }

    fn is_passing(&self) -> bool {
        match self {
            Self::Pass(error) => error.is_passing(),
            Self::Damaged { .. } | Self::ShownOtherwise { .. } => false,
        }
    }
}

/// Layers for which one more thread is worth starting.
const OPENED_AT_ONCE: usize = 32;
/// A layer whose index is damaged more often is on a disk that cannot be trusted.
const MENDED_AT_MOST: u32 = 8;
/// A layer of up to this many bytes is read in a moment.
const SMALL_LAYER: u64 = 8 << 20;
/// A snapshot is made once the tree has grown by an eighth, so that all snapshots of a layer together cost a few times its
/// index.
const SNAPSHOT_GROWTH: u32 = 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Range;

    use bytes::Bytes;

    use super::*;
    use crate::content::Payload;
    use crate::descriptor::{Compression, Descriptor, MediaType};
    use crate::digest::Algorithm;
    use crate::offsets::BlobOffset;
    use crate::source::{BoxFuture, ByteStream};
    use crate::store::Store;
    use crate::trust::Untrusted;

    fn planned() -> LayerRef {
        let blob = Descriptor {
            media_type: MediaType::parse("application/octet-stream"),
            digest: Digest::of(Algorithm::Sha256, b"blob"),
            size: 4,
            data: None,
            annotations: BTreeMap::new(),
        };
        LayerRef {
            blob,
            diff_id: Some(Digest::of(Algorithm::Sha256, b"tar")),
            payload: Payload::Tar(Compression::Stored),
        }
    }

    /// A source that is never asked.
    struct Unasked;

    impl BlobSource for Unasked {
        fn name(&self) -> &str {
            "nowhere"
        }

        fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
            unreachable!()
        }

        fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
            unreachable!()
        }

        fn manifest<'a>(&'a self, _: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
            unreachable!()
        }

        fn stream<'a>(
            &'a self,
            _: &'a Descriptor,
            _: Range<BlobOffset>,
        ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
            unreachable!()
        }
    }

    #[tokio::test]
    async fn a_watcher_of_a_layer_keeps_nothing_of_an_ended_mount() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Arc::new(Store::open(&dir.path().join("cache"), None).expect("a new directory"));
        let (source, limits) = (Arc::new(Unasked), Limits::default());
        let shared_layers = Arc::clone(&store).into();
        let (planned, eagerness) = (planned(), Eagerness::OnDemand);
        let image = planned.blob.digest.clone();
        let layers = Layers::open(&image, &[planned], source, shared_layers, &limits, eagerness, Verify::BeforeShowing);
        let watching = tokio::spawn(layers.watch(LayerNo(0), |_| true));
        tokio::task::yield_now().await;
        drop(layers);
        watching.await.expect("it ends by itself");
        assert_eq!(Arc::strong_count(&store), 1);
    }

    #[test]
    fn a_layer_that_fails_again_is_tried_later_and_later() {
        let planned = planned();
        let digest = planned.blob.digest.clone();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&dir.path().join("cache"), None).expect("a new directory");
        let slot = Slot::new(&planned, &Limits::default(), &Arc::new(store).into());
        let pauses: Vec<u64> = (0..7)
            .map(|_| match slot.failed(Arc::new(PassError::Ended { layer: digest.clone() }.into())) {
                State::Failed { why, times, .. } => why.pause_after(times).as_secs(),
                _ => unreachable!("it says that it failed"),
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32]);
    }
}
