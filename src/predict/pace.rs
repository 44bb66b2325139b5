//! Pace: how much a background fill has in flight.
//!
//! `--prefetch all` fetches the rest of the image while no read waits. It should keep the link busy with little in
//! flight, since a new reader waits behind that. So the window follows the duration of requests: 64 KiB to 2 MiB, such
//! that a read waits for at most a quarter of a second, or for one span.

use std::time::Duration;

/// Window size of a background fill.
#[derive(Debug)]
pub struct Pace {
    /// Window size in bytes of blobs.
    window: u64,
    /// Maximum window size.
    widest: u64,
    /// Shortest duration of a request: the round trip, with almost no queue.
    shortest: Duration,
    /// Time of the last change of the window.
    changed: Option<Duration>,
}

impl Pace {
    /// Starts with the smallest window; never exceeds `widest` bytes.
    pub fn new(widest: u64) -> Self {
        Self { window: NARROWEST, widest, shortest: Duration::MAX, changed: None }
    }

    /// Bytes of blobs to have in flight, and the size of one request.
    pub fn sizes(&self) -> (u64, u64) {
        (self.window, self.window / REQUESTS)
    }

    /// Records that reads have waited until `now`: begins with the smallest window again.
    pub fn disturbed(&mut self, now: Duration) {
        (self.window, self.changed) = (NARROWEST, Some(now));
    }

    /// Records a request that began at `begun` and ended at `now`.
    pub fn ended(&mut self, begun: Duration, now: Duration) {
        let took = now.saturating_sub(begun);
        self.shortest = self.shortest.min(took);
        // A request from before the last change says nothing about the current window.
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

/// Number of requests in flight.
const REQUESTS: u64 = 4;
/// Initial and minimum window size, in bytes; a larger span is fetched alone.
const NARROWEST: u64 = 64 << 10;
/// Target duration of a request: a new reader waits no longer, or for twice that if the round trip alone takes about as
/// long, or for one span.
const GOOD_TIME: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    const WIDEST: u64 = 2 << 20;

    /// The least and the largest window on a link with this round trip, in ms, and rate, in Mbit/s, after it has
    /// settled.
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
    fn a_fill_begins_small_after_each_read_that_waited() {
        let (mut pace, ms) = (Pace::new(WIDEST), Duration::from_millis);
        (0..20).for_each(|round| pace.ended(ms(round * 30), ms(round * 30 + 30)));
        assert_eq!(pace.sizes().0, WIDEST);
        pace.disturbed(ms(1000));
        assert_eq!(pace.sizes().0, NARROWEST);
        pace.ended(ms(990), ms(1020));
        assert_eq!(pace.sizes().0, NARROWEST, "it began before");
        pace.ended(ms(1000), ms(1030));
        assert_eq!(pace.sizes().0, 2 * NARROWEST);
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
