//! Beats: show that the process that makes a first pass is running, so that others can distinguish a
//! stopped process from a slow one.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::store::{PassLock, PassNote};

/// What this process has observed of a process that makes a pass.
pub(super) struct Watch {
    note: PassNote,
    beat: Instant,
    received: Instant,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { note: PassNote::default(), beat: Instant::now(), received: Instant::now() }
    }

    /// Whether the process has stalled, given its latest note.
    pub(super) fn has_stalled(&mut self, note: PassNote, size: u64, urgent: bool) -> bool {
        let (now, before) = (Instant::now(), std::mem::replace(&mut self.note, note));
        if note != before {
            self.beat = now;
        }
        if (note.pid, note.received) != (before.pid, before.received) {
            self.received = now;
        }
        let silent = urgent && note.received < size && now - self.received >= SILENT;
        now - self.beat >= STOPPED || silent
    }
}

/// Beats until dropped, so that other processes see that this one runs.
pub(super) struct Beating(AbortHandle);

impl Beating {
    pub(super) fn begin(lock: Arc<PassLock>) -> Self {
        let beating = tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                lock.beat();
            }
        });
        Self(beating.abort_handle())
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Time between two beats.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// A process without a beat for this long has stopped.
const STOPPED: Duration = Duration::from_secs(5);
/// Readers stop waiting for a pass that receives nothing for this long; longer than a source in use takes to repeat a
/// request.
const SILENT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_is_awaited_while_it_makes_progress() {
        let mut watch = Watch::new();
        let note = |received, beats| PassNote { pid: 1, received, beats };
        let advance = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        assert!(!watch.has_stalled(note(0, 0), 100, true));
        for beats in 1..=9 {
            advance(1).await;
            assert!(!watch.has_stalled(note(0, beats), 100, true), "{beats}");
        }
        advance(1).await;
        assert!(watch.has_stalled(note(0, 10), 100, true), "nothing is received");
        assert!(!watch.has_stalled(note(0, 10), 100, false), "no reader waits");
        assert!(!watch.has_stalled(note(1, 10), 100, true), "it makes progress");
        assert!(!watch.has_stalled(note(100, 11), 100, true));
        advance(4).await;
        assert!(!watch.has_stalled(note(100, 12), 100, true));
        advance(4).await;
        advance(4).await;
        assert!(watch.has_stalled(note(100, 12), 100, true), "it has stopped");
        watch = Watch::new();
        for beats in 0..30 {
            advance(1).await;
            assert!(!watch.has_stalled(note(100, beats), 100, true), "all bytes are received and are being written");
        }
    }
}
