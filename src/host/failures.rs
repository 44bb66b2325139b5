//! Whether failures of layers are logged, or told by the process that waits for them.

use std::sync::atomic::{AtomicBool, Ordering};

/// Commands other than mounts tell in their own words why they failed, once, and so does a mount that waits for all
/// layers until they are there.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// Whether failures are logged now.
pub fn are_logged() -> bool {
    LOGGED.load(Ordering::Relaxed)
}

/// From now on they are, or not.
pub fn log(logged: bool) {
    LOGGED.store(logged, Ordering::Relaxed);
}
