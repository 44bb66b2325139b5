//! Long lookups, on separate threads.
//!
//! A FUSE thread that is busy cannot be interrupted, nor can the process that waits for it; a busy worker of the
//! runtime blocks the other mounts of the process. So both run lookups with a low limit of steps ([`overlay::within`]),
//! and longer ones run on a separate thread. The number of such threads is limited: per image for preparing a layer,
//! once for all waiting lookups; per mount for any other lookup, until it is cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;

use super::fs::{FsError, ImageFs, NotNow, not_now};
use super::tree::{Answer, NoAnswer, Tree};
use super::work::Preparing;
use crate::overlay::{self, LayerNo, Unknown};
use crate::sync::lock;

/// Runs a lookup with a low limit of steps.
pub fn briefly<T>(question: impl FnOnce() -> T) -> T {
    overlay::within(BRIEF, None, question)
}

/// The threads of one mount for long lookups.
#[derive(Debug)]
pub struct Apart(Arc<Semaphore>);

impl Default for Apart {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(THREADS)))
    }
}

impl Apart {
    /// As [`awaited`](super::tree::awaited), for tasks that share their thread with others.
    ///
    /// # Errors
    /// [`FsError`]
    pub fn awaited<T: Send + 'static, Q>(
        &self,
        tree: Arc<dyn Tree>,
        mut question: Q,
    ) -> impl Future<Output = Result<T, FsError>> + Send + use<T, Q>
    where
        Q: FnMut(&dyn Tree) -> Answer<T> + Send + 'static,
    {
        let threads = Arc::clone(&self.0);
        async move {
            loop {
                let mut answer = briefly(|| question(&*tree));
                if matches!(answer, Err(NoAnswer::TakesLong)) {
                    (answer, question) = ask_apart(Arc::clone(&threads), Arc::clone(&tree), question).await?;
                }
                let wait = match answer {
                    Ok(answer) => return Ok(answer),
                    Err(NoAnswer::Never(error)) => return Err(error),
                    Err(NoAnswer::TakesLong) => return Err(FsError::TakesTooLong),
                    Err(NoAnswer::Later(wait)) => wait,
                };
                wait.await?;
            }
        }
    }
}

/// Runs a lookup on another thread, until it is cancelled.
async fn ask_apart<T: Send + 'static, Q>(
    threads: Arc<Semaphore>,
    tree: Arc<dyn Tree>,
    mut question: Q,
) -> Result<(Answer<T>, Q), FsError>
where
    Q: FnMut(&dyn Tree) -> Answer<T> + Send + 'static,
{
    let unwanted = Unwanted::default();
    let permit = threads.acquire_owned().await.map_err(|_| FsError::Ended)?;
    let ended = Arc::clone(&unwanted.0);
    let asked = tokio::task::spawn_blocking(move || {
        let answer = overlay::within(LONG, Some(&ended), || question(&*tree));
        drop(permit);
        (answer, question)
    });
    // A panic was already reported.
    asked.await.map_err(|_| FsError::Ended)
}

impl ImageFs {
    /// Waits until a complete layer is prepared.
    pub(super) async fn prepared(&self, number: LayerNo) -> Result<(), FsError> {
        let depends = !self.overlay.is_prepared(number);
        for below in (if depends { 0 } else { number.0 }..=number.0).map(LayerNo) {
            loop {
                if !self.overlay.knows(below) {
                    self.verified(below).await?;
                }
                let unknown = match self.overlay.index(below) {
                    Ok(_) => break,
                    Err(Unknown::Needs(_)) => match self.prepare(below).await {
                        Ok(()) => continue,
                        Err(unknown) => unknown,
                    },
                    Err(unknown) => unknown,
                };
                match not_now(unknown) {
                    // Its index was found damaged during the lookup.
                    NotNow::Needs(damaged) => self.verified(damaged).await?,
                    NotNow::Never(error) => return Err(error),
                    NotNow::TakesLong => return Err(FsError::TakesTooLong),
                }
            }
        }
        Ok(())
    }

    /// Prepares a layer, or waits while another task does.
    async fn prepare(&self, layer: LayerNo) -> Result<(), Unknown> {
        let preparing = lock(&self.work.preparing).entry(layer).or_insert_with(|| self.start_to_prepare(layer)).clone();
        let prepared = preparing.clone().await;
        let mut all = lock(&self.work.preparing);
        if all.get(&layer).is_some_and(|now| now.ptr_eq(&preparing)) {
            all.remove(&layer);
        }
        prepared
    }

    fn start_to_prepare(&self, layer: LayerNo) -> Preparing {
        let (overlay, threads) = (Arc::clone(&self.overlay), Arc::clone(&self.work.threads));
        let prepared = async move {
            let permit = threads.acquire_owned().await.map_err(|_| Unknown::TakesLong)?;
            let prepare = move || {
                let prepared = overlay.prepare(layer);
                drop(permit);
                if let Err(Unknown::Refused { cause, .. }) = overlay.index(layer) {
                    let error = &cause as &dyn std::error::Error;
                    tracing::error!(target: "peelfs::failure", %layer, error, "a layer cannot be shown");
                }
                prepared
            };
            tokio::task::spawn_blocking(prepare).await.unwrap_or(Err(Unknown::TakesLong))
        };
        prepared.boxed().shared()
    }
}

/// Set once the lookup is cancelled.
#[derive(Default)]
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Limit for threads of a mount for long lookups.
const THREADS: usize = 2;
/// Step limit for threads that others wait for: some 10 ms.
const BRIEF: u64 = 100_000;
/// Step limit for any lookup: some 10 s.
const LONG: u64 = 1 << 26;
