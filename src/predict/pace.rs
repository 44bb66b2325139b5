//! Pace: how much a fill of everything that is missing has in flight.
//!
//! `--prefetch all` fetches the rest of the image while no read waits. It should take what the link needs to be busy,
//! and little more, since a reader that comes in between waits behind that. So the window follows how long requests
//! take: 64 KiB to 2 MiB, such that a read waits for a quarter of a second at most, or for one span.

use std::time::Duration;

/// How much a fill has in flight.
#[derive(Debug)]
pub struct Pace {
    /// Bytes of blobs.
    window: u64,
    /// The most that the window may be.
    widest: u64,
    /// What a request took at least: the way there and back, and hardly a queue.
    shortest: Duration,
    /// When the window was changed last.
    changed: Option<Duration>,
}

impl Pace {
    /// A fill that begins slowly, and never has more than `widest` bytes in flight.
    pub fn new(widest: u64) -> Self {
        Self { window: NARROWEST, widest, shortest: Duration::MAX, changed: None }
    }

    /// Bytes of blobs that should be in flight, and how large one of the requests beside each other may be.
    pub fn sizes(&self) -> (u64, u64) {
        (self.window, self.window / REQUESTS)
    }

    /// A request has ended at `now` that began at `begun`, both by one clock.
    pub fn ended(&mut self, begun: Duration, now: Duration) {
        let took = now.saturating_sub(begun);
        self.shortest = self.shortest.min(took);
        // What was begun before the window changed says nothing about it.
        if self.changed.is_some_and(|changed| begun < changed) {
            return;
        }
        let good = GOOD_TIME.max(2 * self.shortest);
        let window = if took < good.mul_f64(0.7) {
            (self.window * 2).min(self.widest)
        } else if took > good.mul_f64(1.2) {
            (self.window / 2).max(NARROWEST)
        } else {
            self.window
        };
        if window != self.window {
            (self.window, self.changed) = (window, Some(now));
        }
    }
}

/// Requests that a fill has in flight.
const REQUESTS: u64 = 4;
/// The window that a fill begins with, and has at least, in bytes; a span that is larger travels alone.
const NARROWEST: u64 = 64 << 10;
/// How long a request may take with those beside it: a reader that comes in between waits for no longer, or, where the
/// way alone takes about as long, for twice that, or for one span.
const GOOD_TIME: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    const WIDEST: u64 = 2 << 20;

    /// The window that settles on a link with this round trip, in ms, and rate, in Mbit/s: the least and the most of it.
    fn windows(rtt: u64, mbit: u64) -> (u64, u64) {
        let mut pace = Pace::new(WIDEST);
        let (mut settled, mut now) = (Vec::new(), Duration::ZERO);
        for step in 0..40 {
            let queued = Duration::from_secs_f64(pace.window as f64 * 8.0 / (mbit as f64 * 1e6));
            let begun = now;
            now += Duration::from_millis(rtt) + queued;
            pace.ended(begun, now);
            settled.extend((step >= 20).then_some(pace.window));
        }
        (*settled.iter().min().unwrap_or(&0), *settled.iter().max().unwrap_or(&0))
    }

    #[test]
    fn a_fill_takes_what_fills_the_link_and_leaves_no_long_queue() {
        for (rtt, mbit) in [(1, 1000), (20, 200), (80, 50), (20, 64), (20, 8), (5, 2), (300, 20)] {
            let (least, most) = windows(rtt, mbit);
            let held = mbit * 1_000_000 / 8 * rtt / 1000;
            assert!(least >= held.min(WIDEST) * 2 / 3, "{mbit} Mbit/s, {rtt} ms hold {held}: {least} is too little");
            let waits = Duration::from_secs_f64(most as f64 * 8.0 / (mbit as f64 * 1e6));
            let bound = Duration::from_millis(270).max(Duration::from_millis(2 * rtt));
            assert!(waits <= bound || most <= 2 * NARROWEST, "{mbit} Mbit/s, {rtt} ms: {most} take {waits:?}");
        }
    }
}
