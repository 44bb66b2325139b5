//! What an image has under way on threads of its own; see [`apart`](super::apart).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use crate::overlay::{LayerNo, Unknown};

/// What an image has under way.
pub(super) struct Work {
    /// Layers that are being put over those below.
    pub(super) preparing: Mutex<HashMap<LayerNo, Preparing>>,
    pub(super) threads: Arc<Semaphore>,
}

pub(super) type Preparing = Shared<BoxFuture<'static, Result<(), Unknown>>>;

impl Work {
    pub(super) fn new() -> Self {
        Self { preparing: Mutex::default(), threads: Arc::new(Semaphore::new(THREADS)) }
    }
}

/// Threads that an image takes at once to put layers over those below.
const THREADS: usize = 2;
