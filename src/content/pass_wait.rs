//! Waiting for a first pass that another process or mount makes, and when to make one's own instead.
//!
//! A process that makes a pass counts beats as long as it runs, and bytes as they come ([`PassLock`]). One that has
//! stopped is not waited for any longer; nor, where a reader waits for the layer, is one whose source brings nothing,
//! as this one's may. A process that has taken over lets go again when the one before has caught up with it.

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
    /// Waits until this process may make the pass: none other makes it, or those that do stand still.
    pub(super) async fn admitted(&self, means: &Means<'_>) -> Result<PassLock, PassError> {
        let Means { source, store, progress, schedule, others, .. } = *means;
        let least = u32::from(others == Others::StandStill);
        if let Some(lock) = store.try_lock_pass_of(&self.layer.blob.digest, 0) {
            return Ok(lock);
        }
        tracing::info!(layer = %self.layer.blob.digest, "another process is reading this layer; waiting for it");
        // The last of the ranks that are tried; its holder is the one to be waited for.
        let last = AtomicU32::new(least);
        let freed = async {
            let mut watch = Watch::new();
            loop {
                let rank = last.load(Ordering::Relaxed);
                if let Some(lock) = (0..=rank).find_map(|rank| store.try_lock_pass_of(&self.layer.blob.digest, rank)) {
                    return lock;
                }
                let note = store.pass_note(&self.layer.blob.digest, rank).unwrap_or_default();
                if rank < HIGHEST_RANK && watch.is_in_vain(note, self.layer.blob.size, schedule.is_urgent()) {
                    tracing::warn!(layer = %self.layer.blob.digest, process = note.pid, received = note.received,
                        "the process that reads this layer stands still; reading it here, too");
                    last.store(rank + 1, Ordering::Relaxed);
                    watch = Watch::new();
                } else {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let how_far = || {
            let rank = last.load(Ordering::Relaxed);
            let PassNote { pid, received, .. } = store.pass_note(&self.layer.blob.digest, rank).unwrap_or_default();
            progress.received.store(received, Ordering::Relaxed);
            format!("process {pid} is reading it, and has {received} of {} bytes", self.layer.blob.size)
        };
        let lock = self.wait_for(source, freed, how_far).await?;
        progress.received.store(0, Ordering::Relaxed);
        Ok(lock)
    }

    /// Waits until the other pass has `freed` it. A pass that, by what `how_far` tells, does not get on counts as a
    /// failed try every second, so that readers of the layer wait as long as they do for a source that is away.
    ///
    /// # Errors
    /// [`PassError::Source`] where no policy says how long to wait, after a minute without progress.
    pub async fn wait_for<T>(
        &self,
        source: &Arc<dyn BlobSource>,
        freed: impl Future<Output = T>,
        how_far: impl Fn() -> String,
    ) -> Result<T, PassError> {
        let mut freed = std::pin::pin!(freed);
        let (mut waiting, mut seen, mut tries) = (None, String::new(), 0);
        loop {
            tokio::select! {
                biased;
                freed = &mut freed => return Ok(freed),
                () = tokio::time::sleep(TRY) => {}
            }
            let why = how_far();
            tries = if why == seen { tries + 1 } else { 0 };
            seen.clone_from(&why);
            // Looked at every time: the mount may have come up since.
            if tries > TRIES_IN_VAIN && !source.outages().is_some_and(Outages::are_outlasted) {
                let (what, place) = (format!("blob {}", self.layer.blob.digest), source.name().to_owned());
                let cause = SourceError::Unreachable { what, place, why, hint: None };
                return Err(PassError::Source { layer: self.layer.blob.digest.clone(), cause });
            }
            let elsewhere = || source.outages().map(|outages| outages.elsewhere(&self.layer.blob.digest));
            waiting = waiting.or_else(elsewhere);
            match &waiting {
                Some(waiting) if tries > 0 => waiting.in_vain(&why),
                Some(waiting) => waiting.gets_on(&why),
                None => {}
            }
        }
    }

    /// Returns when a process that this one has not waited for any longer is ahead of it, or has ended the pass.
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

    /// Returns when the pass of another mount of this process stands still while a reader waits for the layer.
    pub async fn stands_still(&self, progress: &PassProgress, schedule: &ScheduledPass) {
        let mut watch = Watch::new();
        for beats in 1.. {
            // The process runs, as this does.
            let note = PassNote { beats, received: progress.received.load(Ordering::Relaxed), ..PassNote::default() };
            if watch.is_in_vain(note, self.layer.blob.size, schedule.is_urgent()) {
                return;
            }
            tokio::time::sleep(BEAT).await;
        }
    }
}

/// Between two looks whether another process has ended its pass.
const LOOK: Duration = Duration::from_millis(20);
/// How long a pass that another process makes may stand still before that counts as a try in vain.
const TRY: Duration = Duration::from_secs(1);
/// Tries in vain before a command, or a mount that is not up yet, gives up.
const TRIES_IN_VAIN: u32 = 60;
/// As many processes read the same layer at a time, and one more.
const HIGHEST_RANK: u32 = 3;
