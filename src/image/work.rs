//! Work of an image on separate threads; see [`apart`](super::apart).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use crate::overlay::{LayerNo, Unknown};

/// Work in progress.
pub(super) struct Work {
    /// Layers being prepared.
    pub(super) preparing: Mutex<HashMap<LayerNo, Preparing>>,
    pub(super) threads: Arc<Semaphore>,
}

pub(super) type Preparing = Shared<BoxFuture<'static, Result<(), Unknown>>>;

impl Work {
    pub(super) fn new() -> Self {
        Self { preparing: Mutex::default(), threads: Arc::new(Semaphore::new(THREADS)) }
    }
}

/// Limit for threads that prepare layers of an image.
const THREADS: usize = 2;
