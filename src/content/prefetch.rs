//! Prefetch: fetches what earlier runs of the image read, and then everything else while no read waits.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::activity::{Cause, Reason};
use super::budget::{BACKGROUND, Prefetch, Quiet};
use super::confirm::confirm;
use super::error::ReadError;
use super::open_layer::profile_name_of;
use super::origin::Origin;
use super::profiles::{keep_profile, load_profile};
use super::reader::LayerReader;
use crate::digest::Digest;
use crate::layer::IndexError;
use crate::layer::foreign::estargz;
use crate::predict::{Layout as _, Lesson, Pace, Profile, ProfileRun, Replay};
use crate::span::{SpanId, SpanRange};
use crate::sync::lock;

/// Prefetches for one mount of `image`, as `policy` says.
pub async fn prefetch(image: &Digest, layers: Vec<Arc<LayerReader>>, policy: Prefetch) {
    for layer in &layers {
        layer.fetcher.scope.budget().set_prefetch(policy);
    }
    if policy == Prefetch::None {
        return;
    }
    if let Err(error) = replay(image, &layers).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot use a profile");
    }
    for layer in &layers {
        prioritized(layer).await;
    }
    if policy == Prefetch::All {
        fill(&layers).await;
        for layer in layers.iter().filter(|layer| missing(layer) == 0) {
            confirm(layer).await;
        }
    }
}

/// Stores the start-up reads of `image` for its next mount.
pub fn keep_profiles(image: &Digest, layers: &[Arc<LayerReader>]) {
    let known_of = |reader: &LayerReader| {
        let (name, store) = (profile_name_of(reader.index()), &reader.layer.store);
        load_profile(store, name).map_or(Vec::new(), |profile| profile.runs)
    };
    let mut all: Vec<_> = layers.iter().map(|reader| (reader, known_of(reader))).collect();
    let own = |runs: &[ProfileRun]| runs.iter().find(|run| run.image == *image).map_or(0, |run| run.wanted.len());
    let known = all.iter().map(|(_, runs)| own(runs)).sum();
    let spans = all.iter().map(|(reader, _)| reader.index().span_count() as usize).sum();
    let lesson = Lesson::of(all.iter().flat_map(|(reader, _)| reader.times()).collect(), spans, known);
    for (reader, known) in all.drain(..) {
        let (name, store) = (profile_name_of(reader.index()), &reader.layer.store);
        // A run that adds nothing still becomes the most recent one.
        let is_first = known.first().is_some_and(|run| run.image == *image);
        let known = known.into_iter().find(|run| run.image == *image);
        match reader.run(image, known, (lesson, is_first)) {
            Ok(None) => {}
            Ok(Some(run)) => {
                if let Err(error) = keep_profile(store, Profile::new(name.blob, name.diff_id, vec![run])) {
                    store.cannot_keep("a profile", &error);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot make a profile"),
        }
    }
}

/// Fetches what the layers' profiles cover, in the order of first use.
async fn replay(image: &Digest, layers: &[Arc<LayerReader>]) -> Result<(), ReadError> {
    let mut uses = Vec::new();
    for (number, reader) in layers.iter().enumerate() {
        let layer = &reader.layer;
        let Some(profile) = load_profile(&layer.store, profile_name_of(reader.index())) else { continue };
        let Some(run) = profile.of(image) else { continue };
        let spans = run.spans(reader.index()).map_err(|cause| layer.index_error(cause))?;
        reader.scheduler.demand.mark_in_profile(spans.iter().map(|(_, span)| *span));
        windows_ahead(reader, &spans).await;
        uses.extend(spans.into_iter().map(|(at, span)| (at, number, span)));
    }
    let mut replay = Replay::new(uses);
    let mut requests = JoinSet::new();
    while !replay.is_done() {
        let runs = replay.next_batch(|number, span| {
            let layer = &layers[number].layer;
            let missing = layer.content.generation(span).is_none();
            missing.then(|| layer.blob_bytes(SpanRange::one(span))).transpose()
        })?;
        for (number, spans) in runs {
            let fetcher = Arc::clone(&layers[number].fetcher);
            let room = fetcher.scope.budget().background(fetcher.layer.blob_bytes(spans)?).await;
            while requests.len() >= REPLAY_REQUESTS {
                if !requests.join_next().await.is_some_and(|ended| ended.unwrap_or(false)) {
                    return Ok(()); // the source has failed; the next reader gets the error
                }
            }
            requests.spawn(async move {
                let good = fetcher.in_background(spans, Cause::spans(Reason::Profile)).await;
                drop(room);
                good
            });
        }
    }
    requests.join_all().await;
    Ok(())
}

/// Begins to fetch the windows that the spans of a profile need, if they are in a blob of their own: by fewer requests than
/// each span's own.
async fn windows_ahead(reader: &LayerReader, spans: &[(u32, SpanId)]) {
    let layer = &reader.layer;
    let mut missing: Vec<_> =
        spans.iter().map(|(_, span)| *span).filter(|span| layer.content.generation(*span).is_none()).collect();
    missing.sort_unstable();
    // Neighbours are decoded one after the other.
    let starts: Vec<_> = SpanRange::join(missing).into_iter().map(|run| run.start).collect();
    let (begun, has_begun) = oneshot::channel();
    let fetcher = Arc::clone(&reader.fetcher);
    reader.fetcher.scope.spawn(async move { fetcher.windows_ahead(&starts, begun).await });
    // The sender is dropped: nothing is sent.
    let _ = has_begun.await;
}

/// Fetches what the maker of a layer has put before a landmark, where no profile knows better: in the order of the blob, by
/// as few requests as there can be.
async fn prioritized(reader: &Arc<LayerReader>) {
    let layer = &reader.layer;
    let has_landmarks = Origin::of(&layer.index).is_some_and(Origin::is_toc);
    if !has_landmarks || reader.scheduler.demand.has_profile() {
        return;
    }
    let fetch = async || {
        let spans = estargz::prioritized(&layer.index)?;
        if spans.count() > 0 {
            let _room = reader.fetcher.scope.budget().background(layer.index.blob_bytes(spans)?).await;
            reader.fetcher.at_once(spans, Cause::spans(Reason::Profile)).await;
        }
        Ok::<_, IndexError>(())
    };
    if let Err(error) = fetch().await {
        tracing::debug!(%error, "cannot look for a landmark");
    }
}

/// Fetches all missing spans while no reader waits, base layer first, until all are cached or the source or the cache
/// fails.
async fn fill(layers: &[Arc<LayerReader>]) {
    let Some(scope) = layers.first().map(|layer| &layer.fetcher.scope) else { return };
    let (pace, mut quiet) = (Arc::new(Mutex::new(Pace::new(BACKGROUND))), scope.budget().quiet());
    for layer in layers {
        loop {
            let missing = missing(layer);
            if missing == 0 || !sweep(layer, &pace, &mut quiet).await {
                break;
            }
            // Spans evicted meanwhile are missing again; without progress, stop.
            if layer.layer.is_crowded() || self::missing(layer) >= missing {
                return;
            }
        }
    }
}

/// Passes once over a layer's missing spans; `false` if the source has failed. Begins no request while readers wait, and
/// little at first after that ([`Pace`]).
async fn sweep(reader: &LayerReader, pace: &Arc<Mutex<Pace>>, quiet: &mut Quiet) -> bool {
    let (layer, budget) = (&reader.layer, reader.fetcher.scope.budget());
    let all = layer.index.spans();
    let is_absent = |span: SpanId| layer.content.generation(span).is_none();
    let mut requests = JoinSet::new();
    let mut at = all.start;
    while at < all.end && !layer.is_crowded() {
        if !is_absent(at) {
            at = at.next();
            continue;
        }
        let mut run = SpanRange::one(at);
        let (window, request) = lock(pace).sizes();
        let fits = |end: SpanId| layer.blob_bytes(SpanRange::new(at, end)).is_ok_and(|bytes| bytes <= request);
        let continues = |span: SpanId| layer.index.starts_anew(span).is_ok_and(|anew| !anew);
        // What decodes only from an earlier start would have that fetched twice.
        while run.end < all.end && is_absent(run.end) && (fits(run.end.next()) || continues(run.end)) {
            run.end = run.end.next();
        }
        let Ok(bytes) = layer.blob_bytes(run) else { return false };
        // Scales the request's share of the budget to its share of the window.
        let room = budget.background(bytes.saturating_mul(BACKGROUND / window)).await;
        if quiet.disturbed().await {
            lock(pace).disturbed(reader.fetcher.scope.age());
            continue;
        }
        let (fetcher, pace) = (Arc::clone(&reader.fetcher), Arc::clone(pace));
        requests.spawn(async move {
            let begun = fetcher.scope.age();
            let good = fetcher.in_background(run, Cause::spans(Reason::Fill)).await;
            if good && !fetcher.scope.budget().has_waiting_reads() {
                lock(&pace).ended(begun, fetcher.scope.age());
            }
            drop(room);
            good
        });
        at = run.end;
        while let Some(ended) = requests.try_join_next() {
            if !ended.unwrap_or(false) {
                return false;
            }
        }
    }
    requests.join_all().await.into_iter().all(|good| good)
}

fn missing(reader: &LayerReader) -> usize {
    let layer = &reader.layer;
    layer.content.generations(layer.index.spans()).into_iter().filter(Option::is_none).count()
}

/// Concurrent requests of a replay; registries accept more, so readers need not queue behind it.
const REPLAY_REQUESTS: usize = 8;
