//! Whether failures of layers are logged, or reported by the process that waits for them.

use std::sync::atomic::{AtomicBool, Ordering};

/// Commands other than mounts report why they failed, once; so does a mount while it waits for all layers.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// Whether failures are logged now.
pub fn are_logged() -> bool {
    LOGGED.load(Ordering::Relaxed)
}

/// Turns this logging on or off.
pub fn log(logged: bool) {
    LOGGED.store(logged, Ordering::Relaxed);
}
