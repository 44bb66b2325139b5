//! One layer of a mount: its pass, its state and its history.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::chain::chain;
use super::layer_failure::LayerFailure;
use super::layer_report::LayerReport;
use super::layer_state::{Failed, LayerProgress, LayerState};
use super::trust::Trust;
use crate::content::{
    Activity, Considered, ContentStats, FileActivity, FirstPass, LayerReader, Origin, PassError, PassProgress,
    PassedOver, ReadError, Reason, SharedLayer, SharedLayers, ShownSpan, explain,
};
use crate::digest::Digest;
use crate::layer::{EntryId, Format, Proof};
use crate::overlay::LayerNo;
use crate::source::SourceError;
use crate::sync::lock;

/// One layer of a mount.
pub(super) struct Slot {
    pub(super) pass: FirstPass,
    pub(super) state: watch::Sender<LayerState>,
    /// State shared with other mounts of this process.
    pub(super) shared: Arc<SharedLayer>,
    pub(super) past: Mutex<Past>,
}

/// History of the passes over a layer.
#[derive(Default)]
pub(super) struct Past {
    /// Number of failed passes.
    failures: u32,
    /// Number of rebuilt indexes.
    mended: u32,
    /// Origins that were asked in vain, and why.
    passed_over: HashMap<Origin, String>,
    /// Those of them that had something.
    unusable: HashSet<Origin>,
    /// What has opened it.
    opened: Option<Origin>,
    /// What this mount has received in passes, and is receiving.
    passed: Passed,
    /// Spans shown by passes that failed later.
    pub(super) shown: HashSet<ShownSpan>,
}

/// Bytes that a mount has received in passes over a layer.
#[derive(Default)]
struct Passed {
    bytes: u64,
    /// The progress of the pass that it makes at present, and its bytes before that.
    making: Option<(Arc<PassProgress>, u64)>,
}

/// What status shows of the activity in a layer.
pub(super) struct SlotActivity {
    pub(super) report: LayerReport,
    pub(super) files: HashMap<EntryId, FileActivity>,
    pub(super) reader: Option<Arc<LayerReader>>,
    /// If the layer is one file.
    pub(super) name: Option<Box<[u8]>>,
}

/// The state of a layer, for status.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LayerStatus {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its state.
    pub state: LayerProgress,
    /// What it was opened by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What it brings along to be opened by, and why that is not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_used: Vec<NotUsed>,
    /// All origins that its index may have, and why each is not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<Considered>,
    /// Who vouches for its index, if it was not built on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched_by: Option<String>,
    /// Whether the layer's tar was compared with an index that was not built on this machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confirmed: bool,
    /// Which host has sent bytes of it last, where there are mirrors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    /// Blob bytes that the first pass has received.
    pub received: u64,
    /// Counters of reads after the pass.
    pub reads: ContentStats,
    /// The error, if any.
    pub error: Option<String>,
}

/// A way to open a layer that was there and is not used.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NotUsed {
    /// Which.
    pub origin: String,
    /// Why not.
    pub why: String,
}

impl Slot {
    pub(super) fn new(pass: FirstPass, shared_layers: &SharedLayers) -> Self {
        let shared = shared_layers.layer(&pass.layer);
        Self { pass, state: watch::Sender::new(LayerState::Idle), shared, past: Mutex::default() }
    }

    /// The order of passes, smallest first: urgent layers, then small ones, which decide names quickly, then the
    /// largest, so that no long pass is left at the end.
    pub(super) fn urgency(&self) -> (bool, u64) {
        let size = self.pass.layer.blob.size;
        let rank = if size <= SMALL_LAYER { size } else { u64::MAX - size };
        (!self.shared.schedule.is_urgent(), rank)
    }

    /// Takes note of what it was opened by, and of what was asked in vain.
    pub(super) fn opened_by(&self, origin: Origin, over: &[PassedOver]) {
        let mut past = lock(&self.past);
        past.opened = Some(origin);
        past.passed_over.extend(over.iter().map(|over| (over.origin, chain(&over.why))));
        let is_said_of_it = |over: &&PassedOver| !over.why.is_absence() && !over.why.is_of_place();
        past.unusable.extend(over.iter().filter(is_said_of_it).map(|over| over.origin));
    }

    /// The table of contents that it was opened by is wrong.
    pub(super) fn refuted(&self, content: &LayerReader) {
        if let (Some(origin), Some(why)) = (Origin::of(content.index()), content.layer().refuted()) {
            let mut past = lock(&self.past);
            past.passed_over.insert(origin, why.to_owned());
            past.unusable.insert(origin);
        }
    }

    /// The indexes that it brings along, or that are elsewhere, and that are not used, where those of `trust` may be.
    fn not_used(&self, content: &LayerReader, trust: &Trust) -> Vec<NotUsed> {
        let used = Origin::of(content.index());
        let past = lock(&self.past);
        let others = Origin::tables(&self.pass.layer).into_iter().filter(|(origin, _)| Some(*origin) != used);
        let others = others.map(|(origin, fault)| {
            let why = match (past.passed_over.get(&origin), fault) {
                (Some(why), _) => why.clone(),
                (None, Some(fault)) => fault.to_string(),
                (None, None) if !trust.origins().contains(&origin) => {
                    "indexes of this kind are not to be used".to_owned()
                }
                (None, None) => "there is an index already".to_owned(),
            };
            NotUsed { origin: origin.name().to_owned(), why }
        });
        let elsewhere = [Format::Exported, Format::Soci, Format::Pushed, Format::SociReferrer].map(Origin::Vouched);
        let elsewhere = elsewhere.into_iter().filter(|origin| past.unusable.contains(origin) && Some(*origin) != used);
        let elsewhere = elsewhere.filter_map(|origin| {
            Some(NotUsed { origin: origin.name().to_owned(), why: past.passed_over.get(&origin)?.clone() })
        });
        others.chain(elsewhere).collect()
    }

    /// All origins that the layer's index may have.
    fn origins(&self, content: &LayerReader, trust: &Trust) -> Vec<Considered> {
        let past = lock(&self.past);
        // An index that a pass of this mount has made is in the cache now.
        let used = Origin::of(content.index()).map(|origin| match (origin, past.opened) {
            (Origin::Store, Some(Origin::FirstPass)) => Origin::FirstPass,
            (origin, _) => origin,
        });
        explain(&self.pass.layer, used, trust.origins(), &past.passed_over)
    }

    pub(super) fn status(&self, trust: &Trust) -> LayerStatus {
        let state = self.state.borrow();
        let (mut origin, mut not_used, mut origins, mut confirmed) = (None, Vec::new(), Vec::new(), false);
        let (reads, vouched_by, error) = match &*state {
            LayerState::Ready(content) => {
                let error = content.last_error().as_ref().map(|why| match why {
                    ReadError::Source { cause, .. } => with_hint(chain(why), cause),
                    _ => chain(why),
                });
                origin = Origin::of(content.index()).map(|origin| origin.name().to_owned());
                not_used = self.not_used(content, trust);
                origins = self.origins(content, trust);
                confirmed = *content.index().proof() != Proof::Built && content.layer().is_confirmed();
                (content.stats(), content.index().proof().vouched_by().map(ToOwned::to_owned), error)
            }
            LayerState::Failed(failed) => {
                let error = match &*failed.why {
                    LayerFailure::Pass(PassError::Source { cause, .. }) => with_hint(chain(&failed.why), cause),
                    why => chain(why),
                };
                (ContentStats::default(), None, Some(error))
            }
            _ => (ContentStats::default(), None, None),
        };
        LayerStatus {
            digest: self.pass.layer.blob.digest.clone(),
            size: self.pass.layer.blob.size,
            state: state.progress(),
            origin,
            not_used,
            origins,
            vouched_by,
            confirmed,
            served_by: None,
            received: self.shared.progress.received.load(Ordering::Relaxed),
            reads,
            error,
        }
    }

    /// This mount begins a pass, or whatever opens the layer.
    pub(super) fn passing(&self, progress: &Arc<PassProgress>) {
        let own = progress.own.load(Ordering::Relaxed);
        lock(&self.past).passed.making = Some((Arc::clone(progress), own));
    }

    /// It has ended.
    pub(super) fn has_passed(&self) {
        let passed = &mut lock(&self.past).passed;
        passed.bytes = passed.so_far();
        passed.making = None;
    }

    /// What this mount has fetched of the layer, the `number`th of the image.
    pub(super) fn activity(&self, number: LayerNo, of_mount: &Activity) -> SlotActivity {
        let (reader, state) = { (self.state.borrow().reader().cloned(), self.state.borrow().progress()) };
        let blob = &self.pass.layer.blob;
        let activity = of_mount.layer(&blob.digest);
        let mut counts = activity.counts();
        counts.bytes[Reason::FirstPass as usize] += lock(&self.past).passed.so_far();
        let report = LayerReport {
            number,
            digest: blob.digest.clone(),
            size: blob.size,
            state,
            decoded_size: reader.as_ref().map(|reader| reader.index().layer().decoded_size),
            cached_bytes: reader.as_ref().map_or(0, |reader| reader.layer().cached_bytes()),
            counts,
            stats: reader.as_ref().map_or_else(ContentStats::default, |reader| reader.stats()),
        };
        let files = reader.as_ref().map(|reader| activity.files(reader.index())).unwrap_or_default();
        let name = self.pass.layer.file().map(|file| file.path().into());
        SlotActivity { report, files, reader, name }
    }

    /// Counts another rebuilt index; returns whether there were too many.
    pub(super) fn is_mended_too_often(&self) -> bool {
        let mut past = lock(&self.past);
        past.mended += 1;
        past.mended > MENDED_AT_MOST
    }

    /// Resets the progress of a failed pass.
    pub(super) fn has_failed(&self, progress: &PassProgress) {
        progress.received.store(0, Ordering::Relaxed);
        self.shared.schedule.set_urgent(false);
    }

    pub(super) fn cannot_mend(&self, why: &'static str, still: Arc<LayerReader>) -> LayerState {
        let why = Arc::new(LayerFailure::Damaged { layer: self.pass.layer.blob.digest.clone(), why });
        tracing::error!(target: "peelfs::failure", error = &why as &dyn std::error::Error, "only a part of a layer can be shown");
        self.failed(why, Some(still))
    }

    /// `still` continues to be served.
    pub(super) fn cannot_be_shown(&self, why: LayerFailure, still: Option<Arc<LayerReader>>) -> LayerState {
        let why = Arc::new(why);
        let error = &why as &dyn std::error::Error;
        match &*why {
            // The cancelling code reports the reason.
            LayerFailure::Pass(PassError::Ended { .. }) => tracing::debug!(error, "a first pass was given up"),
            _ => tracing::error!(target: "peelfs::failure", error, "a layer cannot be shown"),
        }
        self.failed(why, still)
    }

    /// A failed state; the more failures, the later the next try.
    fn failed(&self, why: Arc<LayerFailure>, still: Option<Arc<LayerReader>>) -> LayerState {
        let mut past = lock(&self.past);
        let times = past.failures;
        past.failures += 1;
        LayerState::Failed(Failed { why, at: Instant::now(), times, still })
    }
}

impl Passed {
    fn so_far(&self) -> u64 {
        let making = self.making.as_ref();
        self.bytes + making.map_or(0, |(progress, before)| progress.own.load(Ordering::Relaxed) - before)
    }
}

/// With what the user can do about files on this machine that were changed.
fn with_hint(told: String, cause: &SourceError) -> String {
    match cause {
        SourceError::Unsupported { hint: Some(hint), .. } => format!("{told}; {hint}"),
        _ => told,
    }
}

/// A layer whose index is damaged more often is on an unreliable disk.
const MENDED_AT_MOST: u32 = 8;
/// A layer up to this many bytes is read quickly.
const SMALL_LAYER: u64 = 8 << 20;

#[cfg(test)]
mod tests {

    use super::*;
    use crate::content::{LayerRef, Payload};
    use crate::descriptor::{Compression, Descriptor, MediaType};
    use crate::digest::Algorithm;
    use crate::store::Store;

    fn pass() -> FirstPass {
        let media_type = MediaType::parse("application/octet-stream");
        let blob = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, b"blob"), 4);
        let (diff_id, payload) = (Some(Digest::of(Algorithm::Sha256, b"tar")), Payload::Tar(Compression::Stored));
        let layer = LayerRef { blob, diff_id, payload, soci: None };
        FirstPass { layer, codec_limits: Default::default(), layer_limits: Default::default() }
    }

    #[test]
    fn a_layer_that_fails_again_is_tried_later_and_later() {
        let digest = pass().layer.blob.digest;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&dir.path().join("cache"), None).expect("a new directory");
        let slot = Slot::new(pass(), &Arc::new(store).into());
        let pauses: Vec<u64> = (0..7)
            .map(|_| match slot.failed(Arc::new(PassError::Ended { layer: digest.clone() }.into()), None) {
                LayerState::Failed(Failed { why, times, .. }) => why.pause_after(times).as_secs(),
                _ => unreachable!("it says that it failed"),
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32]);
    }
}
