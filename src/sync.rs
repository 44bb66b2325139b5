//! Locks, as all of this crate takes them.
//!
//! What our locks guard is whole between any two statements, so a thread that panicked while it held one
//! leaves nothing half done, and the others go on.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock, also one whose last holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
