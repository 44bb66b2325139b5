//! The layers of one image: which are known, which are being read, which have failed.
//!
//! A layer whose index is in the store is known at once. Every other one needs a first pass; a few run at a time. Layers
//! that a reader waits for go first, also when other passes are running already ([`content::PassScheduler`]). An index
//! that turns out damaged is made anew by another pass over its layer; what is in memory of it is served meanwhile.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::layer_failure::LayerFailure;
use super::layer_state::{Failed, LayerProgress, LayerState, Showing};
use super::slot::{LayerStatus, Slot};
use crate::content::{
    self, FirstPass, LayerReader, LayerRef, Means, MountScope, OpenLayer, Opened, Origin, Others, PartialLayer,
    PassError, PassProgress, Prefetch, ReadError, SharedLayers, opening,
};
use crate::digest::Digest;
use crate::overlay::{KnownLayer, KnownLayers, LayerNo};
use crate::source::BlobSource;
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

/// What opening a layer came to.
struct Outcome {
    state: LayerState,
    /// So many entries may have been shown of it that are not its own.
    disowned: Option<u32>,
}

impl From<LayerState> for Outcome {
    fn from(state: LayerState) -> Self {
        Self { state, disowned: None }
    }
}

/// How much of a layer has become known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Waited {
    /// All of it, verified.
    Whole,
    /// More than before, not verified yet.
    Further,
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
                let (codec_limits, layer_limits) = (limits.codec, limits.layer);
                let pass = FirstPass { layer: layer.clone(), codec_limits, layer_limits };
                slots.push(Arc::new(Slot::new(pass, &shared_layers)));
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
                    slot.state.send_replace(self.content(slot, open).state);
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
            LayerState::Ready(content) => Some(Arc::clone(content)),
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
        self.slot(layer).state.borrow().reader().cloned()
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
        self.need(&slot);
        match changes.wait_for(LayerState::is_settled).await.as_deref() {
            Ok(LayerState::Ready(content)) => Ok(Arc::clone(content)),
            Ok(LayerState::Failed(failed)) => Err(Arc::clone(&failed.why)),
            _ => Err(Arc::new(PassError::Ended { layer: slot.pass.layer.blob.digest.clone() }.into())),
        }
    }

    /// Sees to it that a layer that is needed is opened or mended, unless it has failed and is not to be tried again.
    fn need(self: &Arc<Self>, slot: &Arc<Slot>) {
        let mut start = false;
        slot.state.send_if_modified(|state| {
            if let LayerState::Ready(content) = state
                && content.index().is_damaged()
                && slot.is_mended_too_often()
            {
                *state = slot.beyond_repair("is damaged again and again", Arc::clone(content));
                return true;
            }
            start = state.needed(|Failed { why, at, times, .. }| {
                // Tries for a source that is away pace themselves.
                self.may_pass(why) && (why.is_outage() || at.elapsed() >= why.pause_after(*times))
            });
            start
        });
        if start {
            self.start(slot);
        }
    }

    /// As [`Layers::ready`]; where layers are shown while they are read, returns as soon as there is noticeably more of
    /// it than in the latest snapshot.
    ///
    /// # Errors
    /// [`LayerFailure`]
    pub async fn known_or_partial(self: &Arc<Self>, layer: LayerNo) -> Result<Waited, Arc<LayerFailure>> {
        let whole = self.ready(layer);
        if self.verify == Verify::BeforeShowing {
            return whole.await.map(|_| Waited::Whole);
        }
        let slot = self.slot(layer);
        let further = async {
            let mut changes = slot.state.subscribe();
            let before = slot.state.borrow().showing().map_or(0, |showing| showing.entries());
            // The state's sender lives as long as the slot.
            let showing = changes.wait_for(|state| state.showing().is_some()).await;
            let showing = showing.ok().and_then(|state| state.showing().cloned());
            if let Some(showing) = showing
                && showing.further(&slot.pass.layer, before).await.is_ok()
            {
                return Waited::Further;
            }
            // The pass has ended; `whole` tells how.
            std::future::pending().await
        };
        tokio::select! {
            biased;
            whole = whole => whole.map(|_| Waited::Whole),
            further = further => Ok(further),
        }
    }

    /// A layer that is being read and shown.
    pub fn partial(&self, layer: LayerNo) -> Option<Arc<PartialLayer>> {
        self.slot(layer).state.borrow().showing().map(|showing| Arc::clone(&showing.partial))
    }

    /// The state of each layer that is shown, and of those below that are needed and not ready; base first.
    pub fn status(&self) -> Vec<LayerStatus> {
        let slots = self.slot_of.iter().map(|slot| &self.slots[*slot]);
        let matter = |slot: &&Arc<Slot>| {
            let progress = slot.state.borrow().progress();
            self.is_shown(slot) || matches!(progress, LayerProgress::Reading | LayerProgress::Failed)
        };
        slots.filter(matter).map(|slot| slot.status()).collect()
    }

    /// Bytes of blobs to be read by first passes, and bytes read so far.
    pub fn progress(&self) -> (u64, u64) {
        let mut total = 0;
        let mut received = 0;
        for slot in &self.slots {
            if matches!(*slot.state.borrow(), LayerState::Idle) && !self.is_shown(slot) {
                continue;
            }
            let got = slot.shared.progress.received.load(Ordering::Relaxed);
            if got > 0 || !matches!(*slot.state.borrow(), LayerState::Ready(_)) {
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
    pub async fn timed_out(&self, layer: LayerNo) -> ReadError {
        let Some(outages) = self.source.outages() else { return std::future::pending().await };
        let digest = &self.slot(layer).pass.layer.blob.digest;
        let cause = Arc::new(outages.timed_out(digest, self.source.name()).await);
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

    fn content(&self, slot: &Slot, open: Arc<OpenLayer>) -> Outcome {
        if !lock(&slot.past).shown.iter().all(|shown| shown.is_of(open.index())) {
            let why = LayerFailure::ShownOtherwise { layer: slot.pass.layer.blob.digest.clone() };
            return Outcome { state: slot.cannot_be_shown(why, None), disowned: Some(open.index().len()) };
        }
        let (blob, source, scope) = (slot.pass.layer.blob.clone(), Arc::clone(&self.source), Arc::clone(&self.scope));
        LayerState::Ready(Arc::new(LayerReader::new(open, blob, source, scope))).into()
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
            let idle = |slot: &&Arc<Slot>| matches!(*slot.state.borrow(), LayerState::Idle) && self.is_shown(slot);
            let Some(next) = self.slots.iter().filter(idle).min_by_key(|slot| slot.urgency()) else { return };
            if next.state.send_if_modified(LayerState::begin) {
                self.start(&Arc::clone(next));
            }
        }
    }

    /// Opens a layer that has just begun to be opened or mended.
    fn start(self: &Arc<Self>, slot: &Arc<Slot>) {
        *lock(&self.running) += 1;
        let (layers, slot) = (Arc::clone(self), Arc::clone(slot));
        self.scope.spawn(async move {
            let Outcome { state, disowned } = layers.run(&slot).await;
            *lock(&layers.running) -= 1;
            slot.state.send_replace(state);
            // What is asked from now on is not answered by what was shown.
            if let Some(entries) = disowned {
                layers.disown(&slot, entries);
            }
            layers.start_more();
        });
    }

    async fn run(&self, slot: &Slot) -> Outcome {
        let shared = &slot.shared;
        let mending = slot.state.borrow().reader().cloned();
        let status = || {
            let received = shared.progress.received.load(Ordering::Relaxed);
            format!("another mount is reading it and has {received} of {} bytes", slot.pass.layer.blob.size)
        };
        let passing = tokio::select! {
            biased;
            passing = slot.pass.wait_for(&self.source, shared.passing.lock(), status) => match passing {
                Ok(passing) => Some(passing),
                Err(why) => return slot.cannot_be_shown(why.into(), mending).into(),
            },
            // Its source delivers nothing, but this mount's may.
            () = slot.pass.stalled(&shared.progress, &shared.schedule) => None,
        };
        let (others, progress) = match passing {
            Some(_) => (Others::Wait, Arc::clone(&shared.progress)),
            None => (Others::Bypass, Arc::default()),
        };
        match mending {
            Some(before) => self.mend(slot, before, others, &progress).await.into(),
            None => match self.shared(slot) {
                Some(open) => self.content(slot, open), // another mount has made the pass meanwhile
                None => self.make(slot, others, &progress).await,
            },
        }
    }

    /// Opens a layer that this process does not know.
    async fn make(&self, slot: &Slot, others: Others, progress: &Arc<PassProgress>) -> Outcome {
        if self.verify == Verify::BeforeShowing {
            let made = self.open_twice(slot, &Origin::ALL, others, progress).await;
            return self.opened(slot, made, progress);
        }
        let showing = Arc::<Showing>::default();
        slot.state.send_replace(LayerState::Showing(Arc::clone(&showing)));
        let made = self.open_once(slot, &Origin::ALL, others, progress, Some(&showing.partial)).await;
        // What was shown cannot be taken back, so there is no silent second try.
        let spoilt = made.as_ref().is_err_and(PassError::is_corruption);
        if made.is_err() {
            lock(&slot.past).shown.extend(showing.partial.take_shown());
        }
        let outcome = self.opened(slot, made, progress);
        Outcome { disowned: outcome.disowned.or(spoilt.then(|| showing.partial.entries())), ..outcome }
    }

    /// Makes the damaged index of a layer anew. Its tree continues to be shown by the one that was opened first.
    async fn mend(
        &self,
        slot: &Slot,
        before: Arc<LayerReader>,
        others: Others,
        progress: &Arc<PassProgress>,
    ) -> LayerState {
        // What the store has is what the damage was found in.
        match self.open_twice(slot, &[Origin::FirstPass], others, progress).await {
            Ok(Opened { index, .. }) if before.index().mend(&index) => {
                let made = slot.shared.made(Arc::clone(before.index()), self.shared_layers.store());
                self.content(slot, made).state
            }
            Ok(_) => slot.beyond_repair("differs from the one made anew; mount again", before),
            Err(why) => {
                slot.has_failed(progress);
                slot.cannot_be_shown(why.into(), Some(before))
            }
        }
    }

    fn opened(&self, slot: &Slot, made: Result<Opened, PassError>, progress: &PassProgress) -> Outcome {
        match made {
            Ok(Opened { index, .. }) => self.content(slot, slot.shared.made(index, self.shared_layers.store())),
            Err(why) => {
                slot.has_failed(progress);
                slot.cannot_be_shown(why.into(), None).into()
            }
        }
    }

    /// Once more if the bytes were wrong: a proxy may have spoilt the first answer.
    async fn open_twice(
        &self,
        slot: &Slot,
        origins: &[Origin],
        others: Others,
        progress: &Arc<PassProgress>,
    ) -> Result<Opened, PassError> {
        let made = self.open_once(slot, origins, others, progress, None).await;
        if !made.as_ref().is_err_and(PassError::is_corruption) {
            return made;
        }
        progress.received.store(0, Ordering::Relaxed);
        self.open_once(slot, origins, others, progress, None).await
    }

    async fn open_once(
        &self,
        slot: &Slot,
        origins: &[Origin],
        others: Others,
        progress: &Arc<PassProgress>,
        partial: Option<&Arc<PartialLayer>>,
    ) -> Result<Opened, PassError> {
        let (source, store, schedule) = (&self.source, self.shared_layers.store(), &slot.shared.schedule);
        opening::open(&slot.pass, origins, &Means { source, store, progress, schedule, partial, others }).await
    }
}

/// As much of each layer as can be asked now.
impl KnownLayers for Layers {
    fn known(&self, layer: LayerNo) -> KnownLayer {
        self.slot(layer).state.borrow().known()
    }
}

/// Layers for which one more thread is worth starting.
const OPENED_AT_ONCE: usize = 32;
