//! Replay: the order and the requests in which profiled spans are fetched.
//!
//! Spans are fetched in the order of their first use, over all layers of the image. Neighbours used shortly after each
//! other share a request: the queue is split into batches, small at first for low latency, and neighbours within a
//! batch are joined.

use std::collections::{HashMap, VecDeque};

use crate::span::{SpanId, SpanRange};

/// The profiled spans in the layers of an image.
#[derive(Debug)]
pub struct Replay {
    /// Each span with the number of its layer, in the order of first use.
    queue: VecDeque<(usize, SpanId)>,
    /// Limit for the next batch, in bytes of blobs.
    batch: u64,
}

impl Replay {
    /// A replay of `uses`: milliseconds after the mount, the number of a layer, and a span.
    pub fn new(uses: impl IntoIterator<Item = (u32, usize, SpanId)>) -> Self {
        let mut uses: Vec<_> = uses.into_iter().collect();
        uses.sort_unstable();
        Self { queue: uses.into_iter().map(|(_, layer, span)| (layer, span)).collect(), batch: FIRST_BATCH }
    }

    /// The next requests, in the order of first use; empty at the end. `cost` returns the bytes of a span in its blob,
    /// or `None` if it need not be fetched.
    ///
    /// # Errors
    /// The errors of `cost`.
    pub fn next_batch<E>(
        &mut self,
        mut cost: impl FnMut(usize, SpanId) -> Result<Option<u64>, E>,
    ) -> Result<Vec<(usize, SpanRange)>, E> {
        let (mut together, mut bytes) = (Vec::new(), 0);
        while bytes < self.batch
            && let Some((layer, span)) = self.queue.pop_front()
        {
            if let Some(more) = cost(layer, span)? {
                bytes += more;
                together.push((layer, span));
            }
        }
        self.batch = (self.batch * 2).min(LARGEST_BATCH);
        let first_use: HashMap<_, _> = together.iter().enumerate().map(|(order, place)| (*place, order)).collect();
        together.sort_unstable();
        let mut runs: Vec<(usize, SpanRange)> = Vec::new();
        for layer in together.chunk_by(|one, other| one.0 == other.0) {
            let joined = SpanRange::join(layer.iter().map(|(_, span)| *span));
            runs.extend(joined.into_iter().map(|run| (layer[0].0, run)));
        }
        runs.sort_by_key(|(layer, run)| run.iter().map(|span| first_use[&(*layer, span)]).min());
        Ok(runs)
    }

    /// Whether all spans were returned.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty()
    }
}

/// Limit for the first batch, in bytes of blobs: small, for low latency.
const FIRST_BATCH: u64 = 256 << 10;
/// A larger batch joins more neighbours, but delays the first spans.
const LARGEST_BATCH: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn neighbours_of_a_batch_travel_together_in_order_of_use() {
        let uses = [(30, 1, 7), (10, 0, 5), (20, 1, 8), (15, 0, 9), (25, 0, 4)];
        let mut replay = Replay::new(uses.map(|(at, layer, span)| (at, layer, SpanId(span))));
        let cost = |layer, span: SpanId| Ok::<_, Infallible>((layer != 0 || span.0 != 9).then_some(1));
        let Ok(batch) = replay.next_batch(cost);
        let batch: Vec<_> = batch.iter().map(|(layer, run)| (*layer, run.start.0, run.end.0)).collect();
        assert_eq!(batch, [(0, 4, 6), (1, 7, 9)], "one is cached");
        assert!(replay.is_done());
    }

    #[test]
    fn batches_grow() {
        let mut replay = Replay::new((0..100).map(|number| (number, 0, SpanId(number))));
        let mut sizes = Vec::new();
        while !replay.is_done() {
            let Ok(batch) = replay.next_batch(|_, _| Ok::<_, Infallible>(Some(FIRST_BATCH)));
            sizes.push(batch.iter().map(|(_, run)| run.count()).sum::<u32>());
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16, 16, 16, 5]);
    }
}
