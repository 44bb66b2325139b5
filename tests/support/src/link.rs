//! A link between an image and its source, in the runtime's time: where that is paused, tests see how long readers wait
//! without waiting themselves.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

/// A link that all requests share.
pub struct Link {
    round_trip: Duration,
    /// Bytes a second.
    rate: f64,
    /// When what is on the link has left it.
    free: Mutex<Option<Instant>>,
}

impl Link {
    /// A link of this round trip and rate in bytes a second.
    pub fn new(round_trip: Duration, rate: u64) -> Self {
        Self { round_trip, rate: rate as f64, free: Mutex::default() }
    }

    /// Returns when a response of this many bytes has arrived that is asked for now. Responses share the link.
    pub async fn carry(&self, mut bytes: u64) {
        sleep(self.round_trip).await;
        let mut on_link = VecDeque::new();
        while bytes > 0 || !on_link.is_empty() {
            while bytes > 0 && on_link.len() < ON_LINK {
                let piece = bytes.min(PIECE);
                on_link.push_back(self.leaves(piece));
                bytes -= piece;
            }
            if let Some(leaves) = on_link.pop_front() {
                sleep_until(leaves).await;
            }
        }
    }

    /// When this many bytes have left the link that are put on it now.
    fn leaves(&self, bytes: u64) -> Instant {
        let mut free = self.free.lock().unwrap();
        let leaves = free.map_or_else(Instant::now, |free| free.max(Instant::now()))
            + Duration::from_secs_f64(bytes as f64 / self.rate);
        *free = Some(leaves);
        leaves
    }
}

/// Responses take turns on the link with pieces of this many bytes.
const PIECE: u64 = 16 << 10;
/// Pieces of one response on the link at once, so that timers of a millisecond do not leave it idle.
const ON_LINK: usize = 4;
