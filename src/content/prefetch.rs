//! Prefetch: what earlier runs wanted is fetched before this one asks, and the rest when nothing else is.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fetch::{self, Preempt};
use super::scope::BACKGROUND;
use super::{LayerReader, Prefetch, Profile, ReadError, name_of};
use crate::digest::Digest;
use crate::sync::lock;

/// Fetches ahead of the readers of some layers, which belong to one mount of `image`, as `policy` says.
pub async fn prefetch(image: &Digest, layers: Vec<Arc<LayerReader>>, policy: Prefetch) {
    for layer in &layers {
        layer.scope.set_prefetch(policy);
    }
    if policy == Prefetch::None {
        return;
    }
    if let Err(error) = replay(image, &layers).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot use a profile");
    }
    if policy == Prefetch::All {
        fill(&layers).await;
    }
}

/// Keeps what readers of `image` wanted, for the next mount of it.
pub fn keep_profiles(image: &Digest, layers: &[Arc<LayerReader>]) {
    for layer in layers {
        let name = name_of(&layer.index);
        let known = Profile::load(&layer.store, name).map_or(Vec::new(), |profile| profile.runs);
        // Also what brings nothing new comes first from now on.
        let is_first = known.first().is_some_and(|run| run.image == *image);
        let known = known.into_iter().find(|run| run.image == *image);
        let kept = layer.run(image, known, is_first);
        let kept = kept.map(|new| new.map(|run| Profile::of_layer(name, vec![run]).keep(&layer.store)));
        match kept {
            Ok(None | Some(Ok(()))) => {}
            Ok(Some(Err(error))) => layer.store.cannot_keep("a profile", &error),
            Err(error) => tracing::warn!(%error, "cannot make a profile"),
        }
    }
}

/// Fetches what the layers' profiles speak of, in the order of first use; neighbours that were used
/// shortly one after the other travel together.
async fn replay(image: &Digest, layers: &[Arc<LayerReader>]) -> Result<(), ReadError> {
    let mut queue = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let Some(profile) = Profile::load(&layer.store, name_of(&layer.index)) else { continue };
        let Some(run) = profile.of(image) else { continue };
        let spans = run.spans(&layer.index).map_err(|cause| layer.index_error(cause))?;
        layer.mark_in_profile(spans.iter().map(|(_, span)| *span));
        queue.extend(spans.into_iter().map(|(at, span)| (at, number, span)));
    }
    queue.sort_unstable();
    let mut rest = queue.as_slice();
    let mut batch = FIRST_BATCH;
    let mut fetching = JoinSet::new();
    while !rest.is_empty() {
        let mut together = Vec::new();
        let mut bytes = 0;
        while let Some(((_, number, span), later)) = rest.split_first().filter(|_| bytes < batch) {
            rest = later;
            if layers[*number].content.generation(*span).is_none() {
                bytes += layers[*number].blob_bytes(&(*span..span + 1))?;
                together.push((*number, *span));
            }
        }
        batch = (batch * 2).min(LARGEST_BATCH);
        let first_use: HashMap<_, _> = together.iter().enumerate().map(|(order, span)| (*span, order)).collect();
        together.sort_unstable();
        let mut runs = joined(&together);
        runs.sort_by_key(|(number, run)| run.clone().map(|span| first_use[&(*number, span)]).min());
        for (number, spans) in runs {
            let layer = Arc::clone(&layers[number]);
            let room = layer.scope.room_behind(layer.blob_bytes(&spans)?).await;
            while fetching.len() >= REPLAY_REQUESTS {
                if !fetching.join_next().await.is_some_and(|ended| ended.unwrap_or(false)) {
                    return Ok(()); // the source does not deliver; whoever reads will be told
                }
            }
            fetching.spawn(async move {
                let good = fetch::in_background(&layer, spans, Preempt::Stay).await;
                drop(room);
                good
            });
        }
    }
    fetching.join_all().await;
    Ok(())
}

/// Neighbours in one piece.
fn joined(spans: &[(usize, u32)]) -> Vec<(usize, Range<u32>)> {
    let mut runs: Vec<(usize, Range<u32>)> = Vec::new();
    for (number, span) in spans {
        match runs.last_mut() {
            Some((same, run)) if same == number && run.end == *span => run.end += 1,
            _ => runs.push((*number, *span..span + 1)),
        }
    }
    runs
}

/// Fetches everything that is missing while no reader waits, base first, until it is there, or the
/// source or the cache can do no more.
async fn fill(layers: &[Arc<LayerReader>]) {
    let pace = Arc::<Mutex<Pace>>::default();
    for layer in layers {
        loop {
            let missing = missing(layer);
            if missing == 0 || !sweep(layer, &pace).await {
                break;
            }
            // What gave way to readers is still missing; what cannot be kept always will be.
            if layer.is_crowded() || self::missing(layer) >= missing {
                return;
            }
        }
    }
}

/// One turn over a layer's missing spans; `false` when the source does not deliver.
async fn sweep(layer: &Arc<LayerReader>, pace: &Arc<Mutex<Pace>>) -> bool {
    let spans = layer.index.span_count();
    let mut fetching = JoinSet::new();
    let mut at = 0;
    while at < spans && !layer.is_crowded() {
        if layer.content.generation(at).is_some() {
            at += 1;
            continue;
        }
        let mut end = at + 1;
        let window = lock(pace).window;
        let fits = |end: u32| layer.blob_bytes(&(at..end + 1)).is_ok_and(|bytes| bytes <= window / FILL_REQUESTS);
        while end < spans && layer.content.generation(end).is_none() && fits(end) {
            end += 1;
        }
        let Ok(bytes) = layer.blob_bytes(&(at..end)) else { return false };
        // As large a share of the budget as it is of the window.
        let room = layer.scope.room_behind(bytes.saturating_mul(BACKGROUND / window)).await;
        layer.scope.idle().await;
        let (layer, pace, run) = (Arc::clone(layer), Arc::clone(pace), at..end);
        fetching.spawn(async move {
            let begun = Instant::now();
            let good = fetch::in_background(&layer, run, Preempt::ForReaders).await;
            if good && !layer.scope.has_waiting_reads() {
                lock(&pace).came(begun, Instant::now());
            }
            drop(room);
            good
        });
        at = end;
        while let Some(ended) = fetching.try_join_next() {
            if !ended.unwrap_or(false) {
                return false;
            }
        }
    }
    fetching.join_all().await.into_iter().all(|good| good)
}

fn missing(layer: &LayerReader) -> u32 {
    let absent = (0..layer.index.span_count()).filter(|span| layer.content.generation(*span).is_none());
    u32::try_from(absent.count()).unwrap_or(u32::MAX)
}

/// Bytes of the blobs that the first batch of a replay may have: soon there, as somebody wants it now.
const FIRST_BATCH: u64 = 256 << 10;
/// In a larger batch more neighbours meet, but what is wanted first comes later.
const LARGEST_BATCH: u64 = 4 << 20;
/// Requests of a replay at a time; a registry answers some more beside them, so that readers need not queue.
const REPLAY_REQUESTS: usize = 8;
/// How much a fill has on its way: what the link takes to be busy, and little more, since a reader who comes in
/// between waits behind that.
#[derive(Debug)]
struct Pace {
    /// Bytes of blobs.
    window: u64,
    /// What a request took at least: the way there and back, and hardly a queue.
    shortest: Duration,
    /// When the window was changed last.
    changed: Option<Instant>,
}

impl Pace {
    /// A request that was `begun` then has come now, with the others beside it.
    fn came(&mut self, begun: Instant, now: Instant) {
        let took = now - begun;
        self.shortest = self.shortest.min(took);
        // What was begun before the window changed says nothing about it.
        if self.changed.is_some_and(|changed| begun < changed) {
            return;
        }
        let wanted = GOOD_TIME.max(2 * self.shortest);
        let window = if took < wanted.mul_f64(0.7) {
            (self.window * 2).min(BACKGROUND)
        } else if took > wanted.mul_f64(1.2) {
            (self.window / 2).max(NARROWEST)
        } else {
            self.window
        };
        if window != self.window {
            (self.window, self.changed) = (window, Some(now));
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: NARROWEST, shortest: Duration::MAX, changed: None }
    }
}

/// Requests that a fill has on their way.
const FILL_REQUESTS: u64 = 4;
/// The window that a fill begins with, and has at least, in bytes; a span that is larger travels alone.
const NARROWEST: u64 = 64 << 10;
/// How long a request may take with those beside it: a reader who comes in between waits for no longer, or, where the
/// way alone takes about as long, for twice that, or for one span.
const GOOD_TIME: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    /// The window that settles on a link with this round trip, in ms, and so many Mbit/s: all of them that it takes.
    fn windows(rtt: u64, mbit: u64) -> (u64, u64) {
        let mut pace = Pace::default();
        let (mut settled, mut now) = (Vec::new(), Instant::now());
        for step in 0..40 {
            let queued = Duration::from_secs_f64(pace.window as f64 * 8.0 / (mbit as f64 * 1e6));
            let begun = now;
            now += Duration::from_millis(rtt) + queued;
            pace.came(begun, now);
            settled.extend((step >= 20).then_some(pace.window));
        }
        (*settled.iter().min().unwrap_or(&0), *settled.iter().max().unwrap_or(&0))
    }

    #[test]
    fn a_fill_takes_what_fills_the_link_and_leaves_no_long_queue() {
        for (rtt, mbit) in [(1, 1000), (20, 200), (80, 50), (20, 64), (20, 8), (5, 2), (300, 20)] {
            let (least, most) = windows(rtt, mbit);
            let held = mbit * 1_000_000 / 8 * rtt / 1000;
            assert!(
                least >= held.min(BACKGROUND) * 2 / 3,
                "{mbit} Mbit/s, {rtt} ms hold {held}: {least} is too little"
            );
            let waits = Duration::from_secs_f64(most as f64 * 8.0 / (mbit as f64 * 1e6));
            let bound = Duration::from_millis(270).max(Duration::from_millis(2 * rtt));
            assert!(waits <= bound || most <= 2 * NARROWEST, "{mbit} Mbit/s, {rtt} ms: {most} take {waits:?}");
        }
    }
}
