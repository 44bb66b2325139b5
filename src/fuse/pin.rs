//! Pins session threads, one to each CPU.
//!
//! Nearly all of what a FUSE request costs is waking another CPU: 19 µs, but 9 µs when the thread
//! that serves it sits on the caller's CPU. fuser has no hook at the start of a thread, so each thread
//! is pinned when it serves its first request.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs to hand out.
pub(super) struct Pins {
    cpus: Vec<usize>,
    next: AtomicUsize,
}

impl Pins {
    /// All CPUs this process may run on; none (and so no pinning) when that cannot be found out.
    pub(super) fn new() -> Self {
        let cpus = match sched_getaffinity(None) {
            Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
            Err(_) => Vec::new(),
        };
        Self { cpus, next: AtomicUsize::new(0) }
    }

    /// How many threads make sense: one a CPU, at least two.
    pub(super) fn threads(&self) -> usize {
        self.cpus.len().max(2)
    }

    pub(super) fn pin_this_thread(&self) {
        thread_local!(static PINNED: Cell<bool> = const { Cell::new(false) });
        if PINNED.replace(true) || self.cpus.is_empty() {
            return;
        }
        let mut set = CpuSet::new();
        set.set(self.cpus[self.next.fetch_add(1, Ordering::Relaxed) % self.cpus.len()]);
        // It only makes things faster.
        let _ = sched_setaffinity(None, &set);
    }
}
