//! The layers of one image and their states.
//!
//! A layer with an index in the store is opened at once. Every other layer needs a first pass; a few run at a time.
//! Layers that a reader waits for go first, even if other passes are already running ([`content::PassScheduler`]). A
//! damaged index is rebuilt by another pass; the parts of it in memory are served meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::layer_failure::LayerFailure;
use super::layer_state::{Failed, LayerProgress, LayerState, Showing};
use super::slot::{LayerStatus, Slot, SlotActivity};
use super::trust::{Trust, Verify};
use crate::content::{
    self, BoundSoci, FirstPass, LayerReader, LayerRef, Means, MountScope, OpenLayer, Opened, Origin, Others,
    PartialLayer, PassError, PassProgress, Prefetch, ReadError, SharedLayers, opening,
};
use crate::digest::Digest;
use crate::layer::{EntryId, LayerIndex, NamedFile};
use crate::overlay::{KnownLayer, KnownLayers, LayerNo};
use crate::source::BlobSource;
use crate::sync::lock;

/// When layers are read that no reader has needed yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Eagerness {
    /// At once, after those that are needed.
    Background,
    /// The uppermost one at once; only that one is shown, and those below are read when it needs them.
    Uppermost,
    /// Never.
    OnDemand,
}

/// Limits of first passes.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Limits of decoding.
    pub codec: crate::codec::Limits,
    /// Limits of the tree.
    pub layer: crate::layer::Limits,
}

/// All layers of one image.
pub struct Layers {
    /// The manifest; profiles are stored under it.
    image: Digest,
    slots: Vec<Arc<Slot>>,
    /// The slot of each layer; layers with the same blob share one.
    slot_of: Vec<usize>,
    /// The file that each layer is, where it is one: known from the manifest, before anything of the layer is.
    files: Vec<Option<Arc<LayerIndex>>>,
    source: Arc<dyn BlobSource>,
    shared_layers: SharedLayers,
    /// Tasks, clock and budget of the mount.
    scope: Arc<MountScope>,
    running: Mutex<usize>,
    at_once: usize,
    /// Permits of first passes that no reader waits for.
    turns: Semaphore,
    eagerness: Eagerness,
    trust: Trust,
    /// The SOCI index that the manifest binds.
    soci: Option<BoundSoci>,
    /// Layers that failed verification after they were shown, with the number of entries that may have been shown.
    revoked: Mutex<Vec<(LayerNo, u32)>>,
    revoking: Notify,
}

/// Result of opening a layer.
struct Outcome {
    state: LayerState,
    /// The number of entries shown that do not belong to the verified layer.
    revoked: Option<u32>,
}

impl From<LayerState> for Outcome {
    fn from(state: LayerState) -> Self {
        Self { state, revoked: None }
    }
}

/// What has become available of a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Waited {
    /// The complete layer, verified.
    Whole,
    /// More entries than before, not verified yet.
    Further,
}

impl Layers {
    /// Opens the layers of `image` in `planned` that the store has, and starts reading the others as `eagerness` says.
    pub fn open(
        image: &Digest,
        planned: &[LayerRef],
        source: Arc<dyn BlobSource>,
        shared_layers: SharedLayers,
        limits: &Limits,
        eagerness: Eagerness,
        trust: Trust,
    ) -> Arc<Self> {
        let limits = Limits { layer: limits.layer.of_image(planned.len()), ..limits.clone() };
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        let mut by_blob = HashMap::<(Digest, Digest), usize>::new();
        let mut slot_of = Vec::new();
        let names = |layer: &LayerRef| Some(Arc::new(layer.file()?.names(&layer.blob.digest, layer.blob.size)));
        let files = planned.iter().map(names).collect();
        for layer in planned {
            let key = (layer.blob.digest.clone(), layer.stream_name().into_owned());
            let slot = *by_blob.entry(key).or_insert_with(|| {
                let (codec_limits, layer_limits) = (limits.codec, limits.layer);
                let pass = FirstPass { layer: layer.clone(), codec_limits, layer_limits };
                slots.push(Arc::new(Slot::new(pass, &shared_layers)));
                slots.len() - 1
            });
            slot_of.push(slot);
        }
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let at_once = (cores + 1).min(content::passes_at_once());
        let layers = Arc::new(Self {
            image: image.clone(),
            slots,
            slot_of,
            files,
            source,
            shared_layers,
            scope: Arc::default(),
            running: Mutex::new(0),
            at_once,
            turns: Semaphore::new(at_once),
            eagerness,
            trust,
            soci: BoundSoci::of(image, planned),
            revoked: Mutex::default(),
            revoking: Notify::new(),
        });
        layers.open_known(cores);
        layers.start_more();
        layers
    }

    /// Opens layers from the store; fast for one, slow for hundreds.
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
                // Without another thread it takes longer.
                if begun.is_err() {
                    open(slots);
                }
            }
            open(first);
        });
    }

    /// Fetches ahead of readers, as `policy` says, in the layers that are known now, and in those that are then opened by
    /// an index that is fetched; what is read first is cached by its pass.
    pub async fn prefetch(self: &Arc<Self>, policy: Prefetch) {
        self.scope.set_prefetch(policy);
        let is_unknown = |slot: &&Arc<Slot>| self.is_shown(slot) && slot.state.borrow().reader().is_none();
        let unknown: Vec<_> = self.slots.iter().filter(is_unknown).collect();
        content::prefetch(&self.image, self.all_known(), policy).await;
        if policy == Prefetch::None {
            return;
        }
        let opened = unknown.into_iter().map(|slot| async move {
            let mut changes = slot.state.subscribe();
            let reader = match changes.wait_for(LayerState::is_settled).await.as_deref() {
                Ok(LayerState::Ready(reader)) => Arc::clone(reader),
                _ => return,
            };
            if Origin::of(reader.index()).is_some_and(Origin::is_fetched) {
                content::prefetch(&self.image, vec![reader], policy).await;
            }
        });
        futures_util::future::join_all(opened).await;
        // What turned out to be wrong about its layer is shown no longer than it takes to know better.
        for slot in &self.slots {
            let is_refuted = slot.state.borrow().reader().is_some_and(|reader| reader.layer().is_refuted());
            if is_refuted {
                self.need(slot);
            }
        }
    }

    /// Ends the tasks of these layers.
    pub fn end(&self) {
        self.scope.end();
    }

    /// After a take-over: another process had served the mount for `before`.
    pub fn set_prior_age(&self, before: Duration) {
        self.scope.set_prior_age(before);
    }

    /// Waits until the mount's start-up is over.
    pub async fn started(&self) {
        self.scope.started().await;
    }

    /// Stores the start-up reads of each layer for the next mount.
    pub fn keep_profiles(&self) {
        content::keep_profiles(&self.image, &self.all_known());
    }

    /// Evicts what exceeds the cache's limit, which may have been lowered.
    pub fn keep_within_limit(&self) {
        self.all_known().iter().for_each(|content| content.layer().keep_within_limit());
    }

    /// The readers of all available layers, each once.
    fn all_known(&self) -> Vec<Arc<LayerReader>> {
        let known = |slot: &Arc<Slot>| match &*slot.state.borrow() {
            LayerState::Ready(content) => Some(Arc::clone(content)),
            _ => None,
        };
        self.slots.iter().filter(|slot| self.is_shown(slot)).filter_map(known).collect()
    }

    /// Whether a layer is opened before it is needed.
    fn is_shown(&self, slot: &Arc<Slot>) -> bool {
        let uppermost = || self.slot_of.last().is_some_and(|last| Arc::ptr_eq(&self.slots[*last], slot));
        self.eagerness != Eagerness::Uppermost || uppermost()
    }

    /// The reader of a layer, if it is available now.
    pub fn known(&self, layer: LayerNo) -> Option<Arc<LayerReader>> {
        self.slot(layer).state.borrow().reader().cloned()
    }

    /// The reader of a layer, once its first pass is done. Makes the layer urgent.
    ///
    /// A layer with a passing failure is retried when it is needed, at growing intervals; one with a damaged index is
    /// read again.
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

    /// Starts opening or mending a needed layer, unless it has failed and must not be retried.
    fn need(self: &Arc<Self>, slot: &Arc<Slot>) {
        let mut start = false;
        slot.state.send_if_modified(|state| {
            if let LayerState::Ready(content) = state
                && content.is_to_be_replaced()
                && slot.is_mended_too_often()
            {
                *state = slot.cannot_mend("keeps getting damaged", Arc::clone(content));
                return true;
            }
            start = state.needed(|Failed { why, at, times, .. }| {
                // Retries of an unreachable source have their own pauses.
                self.may_pass(why) && (why.is_outage() || at.elapsed() >= why.pause_after(*times))
            });
            start
        });
        if start {
            self.start(slot);
        }
    }

    /// As [`Layers::ready`]; if layers are shown while they are read, returns as soon as there are noticeably more
    /// entries than in the latest snapshot.
    ///
    /// # Errors
    /// [`LayerFailure`]
    pub async fn known_or_partial(self: &Arc<Self>, layer: LayerNo) -> Result<Waited, Arc<LayerFailure>> {
        let whole = self.ready(layer);
        if self.trust.verify == Verify::BeforeShowing {
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
            // The pass has ended; `whole` returns the result.
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
        slots
            .filter(matter)
            .map(|slot| {
                let served_by = self.source.served_by(&slot.pass.layer.blob.digest);
                LayerStatus { served_by, ..slot.status(&self.trust) }
            })
            .collect()
    }

    /// Why no index that others have pushed is used, if it is the same for all layers.
    pub fn no_pushed_index(&self) -> Option<&str> {
        self.trust.pushed.as_ref()?.said()
    }

    /// What the cache cannot keep.
    pub fn not_kept(&self) -> Option<crate::store::NotKept> {
        self.shared_layers.store().not_kept()
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

    /// Whether a later retry may help. A wrong blob may be a proxy's fault; but bytes of it that were shown cannot be
    /// withdrawn.
    fn may_pass(&self, why: &LayerFailure) -> bool {
        let wrong_blob = matches!(why, LayerFailure::Pass(PassError::Blob { .. }));
        why.is_passing() || (wrong_blob && self.trust.verify == Verify::BeforeShowing)
    }

    /// Returns when the source has been unreachable for longer than a reader that comes now waits, with the error for
    /// that reader. Until something is received, this is the layer's last error.
    pub async fn timed_out(&self, layer: LayerNo) -> ReadError {
        let Some(outages) = self.source.outages() else { return std::future::pending().await };
        let digest = &self.slot(layer).pass.layer.blob.digest;
        let cause = Arc::new(outages.timed_out(digest, self.source.name()).await);
        let error = ReadError::Source { layer: digest.clone(), cause };
        if let Some(content) = self.known(layer) {
            content.set_outage(&error);
        }
        error
    }

    /// The names of a layer that is one file.
    pub(super) fn file(&self, layer: LayerNo) -> Option<&Arc<LayerIndex>> {
        self.files[usize::from(layer.0)].as_ref()
    }

    /// The entry in the layer's own index that a file is read by.
    pub fn read_by(&self, layer: LayerNo, shown: EntryId) -> EntryId {
        if self.file(layer).is_some() { NamedFile::ENTRY } else { shown }
    }

    fn slot(&self, layer: LayerNo) -> &Arc<Slot> {
        &self.slots[self.slot_of[usize::from(layer.0)]]
    }

    /// The open layer in this process or in the store.
    fn shared(&self, slot: &Slot) -> Option<Arc<OpenLayer>> {
        let (store, layer, pushed) = (self.shared_layers.store(), &slot.pass.layer, self.trust.pushed.as_deref());
        slot.shared.known(store, layer, self.trust.stored_origins(layer), pushed)
    }

    /// The same, once it is known whether an index of an artifact may be used.
    async fn shared_if_allowed(&self, slot: &Slot) -> Option<Arc<OpenLayer>> {
        if let Some(pushed) = &self.trust.pushed {
            pushed.ask_about(&slot.pass.layer, self.shared_layers.store()).await;
        }
        self.shared(slot)
    }

    fn content(&self, slot: &Slot, open: Arc<OpenLayer>) -> Outcome {
        if !lock(&slot.past).shown.iter().all(|shown| shown.is_of(open.index())) {
            let why = LayerFailure::ShownOtherwise { layer: slot.pass.layer.blob.digest.clone() };
            return Outcome { state: slot.cannot_be_shown(why, None), revoked: Some(open.index().len()) };
        }
        let (blob, source, scope) = (slot.pass.layer.blob.clone(), Arc::clone(&self.source), Arc::clone(&self.scope));
        let windows = self.trust.pushed.as_ref().and_then(|pushed| pushed.window_source());
        LayerState::Ready(Arc::new(LayerReader::new(open, blob, (source, windows), scope))).into()
    }

    /// Records that a layer failed verification after it was shown.
    fn revoke(&self, slot: &Slot, entries: u32) {
        let same = |at: &usize| std::ptr::eq(&*self.slots[*at], slot);
        let numbers = (0..).map(LayerNo).zip(&self.slot_of).filter(|(_, at)| same(at));
        let shown = |number| self.file(number).map_or(entries, |names| names.len());
        lock(&self.revoked).extend(numbers.map(|(number, _)| (number, shown(number))));
        self.revoking.notify_one();
    }

    /// Waits until a layer fails verification after it was shown; returns it, and how many of its entries may have been
    /// shown. For one caller; never returns if nothing is shown before it is verified.
    pub async fn revoked(&self) -> (LayerNo, u32) {
        loop {
            if let Some(revoked) = { lock(&self.revoked).pop() } {
                return revoked;
            }
            self.revoking.notified().await;
        }
    }

    /// Starts background passes up to the limit. Indexes that are fetched are small, and all of an image are needed for its
    /// first name: their layers are opened side by side, and only passes wait for their turn.
    fn start_more(self: &Arc<Self>) {
        if self.eagerness == Eagerness::OnDemand {
            return;
        }
        loop {
            let running = *lock(&self.running);
            let idle = |slot: &&Arc<Slot>| matches!(*slot.state.borrow(), LayerState::Idle) && self.is_shown(slot);
            let may_begin = |slot: &&Arc<Slot>| {
                running < self.at_once || (running < INDEXES_AT_ONCE && self.trust.may_fetch_index(&slot.pass.layer))
            };
            let waiting = self.slots.iter().filter(idle).filter(may_begin);
            let Some(next) = waiting.min_by_key(|slot| slot.urgency()) else { return };
            if next.state.send_if_modified(LayerState::begin) {
                self.start(&Arc::clone(next));
            }
        }
    }

    /// Runs the task that opens or mends a layer; its state was set before.
    fn start(self: &Arc<Self>, slot: &Arc<Slot>) {
        *lock(&self.running) += 1;
        let (layers, slot) = (Arc::clone(self), Arc::clone(slot));
        self.scope.spawn(async move {
            let Outcome { state, revoked } = layers.run(&slot).await;
            *lock(&layers.running) -= 1;
            slot.state.send_replace(state);
            // Later lookups do not use what was shown.
            if let Some(entries) = revoked {
                layers.revoke(&slot, entries);
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
        slot.passing(&progress);
        let outcome = match mending {
            Some(before) => self.mend(slot, before, others, &progress).await,
            None => match self.shared_if_allowed(slot).await {
                Some(open) => self.content(slot, open), // another mount has made the pass meanwhile
                None => self.make(slot, others, &progress).await,
            },
        };
        slot.has_passed();
        outcome
    }

    /// What the mount has fetched of each layer, base first. Layers that are neither shown nor needed are left out.
    pub(super) fn activity(&self) -> Vec<SlotActivity> {
        let numbered = (0..).map(LayerNo).zip(&self.slot_of);
        let mut seen = HashSet::new();
        let first = numbered.filter(|(_, slot)| seen.insert(**slot)).map(|(number, slot)| (number, &self.slots[*slot]));
        let matters =
            first.filter(|(_, slot)| self.is_shown(slot) || slot.state.borrow().progress() != LayerProgress::Waiting);
        matters.map(|(number, slot)| slot.activity(number, self.scope.activity())).collect()
    }

    /// Opens a layer that is not open in this process.
    async fn make(&self, slot: &Slot, others: Others, progress: &Arc<PassProgress>) -> Outcome {
        if self.trust.verify == Verify::BeforeShowing {
            let made = self.open_twice(slot, self.trust.origins(), others, progress).await;
            return self.opened(slot, made, progress);
        }
        let showing = Arc::<Showing>::default();
        slot.state.send_replace(LayerState::Showing(Arc::clone(&showing)));
        let made = self.open_once(slot, self.trust.origins(), others, progress, Some(&showing.partial)).await;
        // Shown bytes cannot be withdrawn, so there is no silent second try.
        let corrupt = made.as_ref().is_err_and(PassError::is_corruption);
        if made.is_err() {
            lock(&slot.past).shown.extend(showing.partial.take_shown());
        }
        let outcome = self.opened(slot, made, progress);
        Outcome { revoked: outcome.revoked.or(corrupt.then(|| showing.partial.entries())), ..outcome }
    }

    /// Makes the index of a layer anew that is damaged, or was made of a table of contents that is wrong. The tree
    /// continues to be shown by the one that was opened first, or by another that shows the same.
    async fn mend(
        &self,
        slot: &Slot,
        before: Arc<LayerReader>,
        others: Others,
        progress: &Arc<PassProgress>,
    ) -> Outcome {
        let refuted = before.layer().is_refuted();
        slot.refuted(&before);
        let origin = Origin::of(before.index()).filter(|_| !refuted);
        // The stored index is the damaged one.
        let origins = [origin.filter(|origin| origin.is_fetched()), Some(Origin::FirstPass)];
        let origins: Vec<_> = origins.into_iter().flatten().collect();
        let index = match self.open_twice(slot, &origins, others, progress).await {
            Ok(Opened { index, .. }) => index,
            Err(why) => {
                slot.has_failed(progress);
                return slot.cannot_be_shown(why.into(), Some(before)).into();
            }
        };
        if !refuted && before.index().mend(&index) {
            let made = slot.shared.made(Arc::clone(before.index()), self.shared_layers.store());
            return self.content(slot, made);
        }
        if before.index().shows_the_same(&index).unwrap_or(false) {
            let outcome = self.content(slot, slot.shared.made(index, self.shared_layers.store()));
            // The names were right; bytes that were read by what was wrong may not have been, and the kernel keeps them.
            let revoked = outcome.revoked.or(refuted.then(|| before.index().len()));
            return Outcome { revoked, ..outcome };
        }
        if refuted {
            let why = LayerFailure::ShownOtherwise { layer: slot.pass.layer.blob.digest.clone() };
            let entries = before.index().len();
            return Outcome { state: slot.cannot_be_shown(why, None), revoked: Some(entries) };
        }
        slot.cannot_mend("differs from the rebuilt one; mount again", before).into()
    }

    fn opened(&self, slot: &Slot, made: Result<Opened, PassError>, progress: &PassProgress) -> Outcome {
        match made {
            Ok(Opened { index, origin, passed_over }) => {
                slot.opened_by(origin, &passed_over);
                self.content(slot, slot.shared.made(index, self.shared_layers.store()))
            }
            Err(why) => {
                slot.has_failed(progress);
                slot.cannot_be_shown(why.into(), None).into()
            }
        }
    }

    /// Opens a layer; retries once if the bytes were wrong, as a proxy may have corrupted them.
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
        let pushed = self.trust.pushed.as_deref();
        let soci = self.soci.as_ref();
        let turns = Some(&self.turns);
        let means = Means { source, store, progress, schedule, partial, others, pushed, soci, turns };
        opening::open(&slot.pass, origins, &means).await
    }
}

/// The available part of each layer.
impl KnownLayers for Layers {
    fn known(&self, layer: LayerNo) -> KnownLayer {
        match self.file(layer) {
            Some(names) => KnownLayer::Whole(Arc::clone(names)),
            None => self.slot(layer).state.borrow().known(),
        }
    }
}

/// Layers whose indexes are fetched at a time.
const INDEXES_AT_ONCE: usize = 16;
/// Number of layers that justify another thread.
const OPENED_AT_ONCE: usize = 32;
