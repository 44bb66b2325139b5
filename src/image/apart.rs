//! Work that takes long, on threads that nothing waits for.
//!
//! A FUSE thread that is busy cannot be interrupted, and neither can a process that waits for it; a worker of the runtime that
//! is busy holds up the other mounts of the process. So both ask with a small allowance of steps
//! ([`overlay::within`]), and what needs more is done on a thread of its own, of which an image and its mount take
//! few each: an image to put a layer over those below, once for all who wait; a mount for anything else, for the one who
//! asks, and until the answer is not wanted any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;

use super::fs::{FsError, ImageFs, NotNow, not_now};
use super::tree::{Answer, NoAnswer, Tree};
use super::work::Preparing;
use crate::overlay::{self, LayerNo, Unknown};
use crate::sync::lock;

/// Asks a question that must not take long.
pub fn briefly<T>(question: impl FnOnce() -> T) -> T {
    overlay::within(BRIEF, None, question)
}

/// The threads of one mount for questions that take long.
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

/// Asks on another thread, until it is not waited for any more.
async fn ask_apart<T: Send + 'static, Q>(
    threads: Arc<Semaphore>,
    tree: Arc<dyn Tree>,
    mut question: Q,
) -> Result<(Answer<T>, Q), FsError>
where
    Q: FnMut(&dyn Tree) -> Answer<T> + Send + 'static,
{
    let unwanted = Unwanted::default();
    let permit = threads.acquire_owned().await.map_err(|_| FsError::TakesTooLong)?;
    let ended = Arc::clone(&unwanted.0);
    let asked = tokio::task::spawn_blocking(move || {
        let answer = overlay::within(LONG, Some(&ended), || question(&*tree));
        drop(permit);
        (answer, question)
    });
    // A panic has been told of.
    asked.await.map_err(|_| FsError::TakesTooLong)
}

impl ImageFs {
    /// Waits until a layer that is known can be asked.
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
                    // Its index was damaged when it was asked.
                    NotNow::Needs(damaged) => self.verified(damaged).await?,
                    NotNow::Never(error) => return Err(error),
                    NotNow::TakesLong => return Err(FsError::TakesTooLong),
                }
            }
        }
        Ok(())
    }

    /// Puts a layer over those below, or waits while that is done.
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

/// Set once the answer is not waited for any more.
#[derive(Default)]
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Threads that a mount takes at once for questions that take long.
const THREADS: usize = 2;
/// Steps that a thread may take which others wait for: some 10 ms.
const BRIEF: u64 = 100_000;
/// Steps in which every question has an answer: some 10 s.
const LONG: u64 = 1 << 26;
