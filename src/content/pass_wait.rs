//! Waiting for a first pass that another process or mount makes, and when to make the pass here as well.
//!
//! A process that makes a pass counts beats while it runs, and the bytes received ([`PassLock`]). Others stop waiting
//! for a process that has stopped, and, if a reader waits for the layer, for one that receives nothing: its source may
//! be unreachable while this process's is not. A process that took over gives up again when the earlier one has caught
//! up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::beat::{BEAT, Watch};
use super::pass::{FirstPass, Means, Others, PassError, PassProgress};
use super::pass_schedule::ScheduledPass;
use crate::source::outage::Outages;
use crate::source::{BlobSource, SourceError};
use crate::store::{PassLock, PassNote, Store};

impl FirstPass {
    /// Waits until this process may make the pass: no other process makes it, or all that do have stalled.
    pub(super) async fn admitted(&self, means: &Means<'_>) -> Result<PassLock, PassError> {
        let Means { source, store, progress, schedule, others, .. } = *means;
        let least = u32::from(others == Others::Bypass);
        if let Some(lock) = store.try_lock_pass_of(&self.layer.blob.digest, 0) {
            return Ok(lock);
        }
        tracing::info!(layer = %self.layer.blob.digest, "another process is reading this layer; waiting for it");
        // The highest rank tried so far; this process waits for its holder.
        let last = AtomicU32::new(least);
        let freed = async {
            let mut watch = Watch::new();
            loop {
                let rank = last.load(Ordering::Relaxed);
                if let Some(lock) = (0..=rank).find_map(|rank| store.try_lock_pass_of(&self.layer.blob.digest, rank)) {
                    return lock;
                }
                let note = store.pass_note(&self.layer.blob.digest, rank).unwrap_or_default();
                if rank < HIGHEST_RANK && watch.has_stalled(note, self.layer.blob.size, schedule.is_urgent()) {
                    tracing::warn!(layer = %self.layer.blob.digest, process = note.pid, received = note.received,
                        "the process that reads this layer has stalled; reading it here, too");
                    last.store(rank + 1, Ordering::Relaxed);
                    watch = Watch::new();
                } else {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let status = || {
            let rank = last.load(Ordering::Relaxed);
            let PassNote { pid, received, .. } = store.pass_note(&self.layer.blob.digest, rank).unwrap_or_default();
            progress.received.store(received, Ordering::Relaxed);
            format!("process {pid} is reading it and has {received} of {} bytes", self.layer.blob.size)
        };
        let lock = self.wait_for(source, freed, status).await?;
        progress.received.store(0, Ordering::Relaxed);
        Ok(lock)
    }

    /// Waits until the other pass has `freed` the layer. Every second in which `status` does not change counts as a
    /// failed try, so that readers of the layer wait as long as for an unreachable source.
    ///
    /// # Errors
    /// [`PassError::Source`] after a minute without progress, if no policy sets how long to wait.
    pub async fn wait_for<T>(
        &self,
        source: &Arc<dyn BlobSource>,
        freed: impl Future<Output = T>,
        status: impl Fn() -> String,
    ) -> Result<T, PassError> {
        let mut freed = std::pin::pin!(freed);
        let (mut waiting, mut seen, mut tries) = (None, String::new(), 0);
        loop {
            tokio::select! {
                biased;
                freed = &mut freed => return Ok(freed),
                () = tokio::time::sleep(TRY) => {}
            }
            let why = status();
            tries = if why == seen { tries + 1 } else { 0 };
            seen.clone_from(&why);
            // Checked every time, as the mount may have come up meanwhile.
            if tries > STALLED_TRIES && !source.outages().is_some_and(Outages::retries_without_limit) {
                let (what, place) = (format!("blob {}", self.layer.blob.digest), source.name().to_owned());
                let cause = SourceError::Unreachable { what, place, why, hint: None };
                return Err(PassError::Source { layer: self.layer.blob.digest.clone(), cause });
            }
            let elsewhere = || source.outages().map(|outages| outages.elsewhere(&self.layer.blob.digest));
            waiting = waiting.or_else(elsewhere);
            match &waiting {
                Some(waiting) if tries > 0 => waiting.stalled(&why),
                Some(waiting) => waiting.progressed(&why),
                None => {}
            }
        }
    }

    /// Returns when a process that had stalled is ahead of this one again, or has finished the pass.
    pub(super) async fn overtaken(&self, store: &Store, progress: &PassProgress, lock: &PassLock) {
        if lock.rank() == 0 {
            return std::future::pending().await;
        }
        let received = || -> Vec<u64> {
            let note = |rank| store.pass_note(&self.layer.blob.digest, rank).unwrap_or_default();
            (0..lock.rank()).map(|rank| note(rank).received).collect()
        };
        let before = received();
        loop {
            tokio::time::sleep(BEAT).await;
            let own = progress.received.load(Ordering::Relaxed);
            let ahead = before.iter().zip(received()).any(|(before, now)| now != *before && now > own);
            let ended = || store.try_lock_pass(&self.layer.blob.digest).is_some();
            if ahead || (ended() && self.made(store).is_some()) {
                return;
            }
        }
    }

    /// Returns when the pass of another mount of this process has stalled while a reader waits for the layer.
    pub async fn stalled(&self, progress: &PassProgress, schedule: &ScheduledPass) {
        let mut watch = Watch::new();
        for beats in 1.. {
            // The other mount is in this process, so it beats by definition.
            let note = PassNote { beats, received: progress.received.load(Ordering::Relaxed), ..PassNote::default() };
            if watch.has_stalled(note, self.layer.blob.size, schedule.is_urgent()) {
                return;
            }
            tokio::time::sleep(BEAT).await;
        }
    }
}

/// Pause between two checks whether another process has ended its pass.
const LOOK: Duration = Duration::from_millis(20);
/// A pass of another process without progress for this long counts as one failed try.
const TRY: Duration = Duration::from_secs(1);
/// Failed tries after which a command, or a mount that is not up yet, gives up.
const STALLED_TRIES: u32 = 60;
/// At most this many processes, and one more, read the same layer at a time.
const HIGHEST_RANK: u32 = 3;
