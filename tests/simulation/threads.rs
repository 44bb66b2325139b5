//! Detects idleness: simulated time passes only when every thread waits for another.
//!
//! Tokio lets its stopped clock go on by itself when nothing is left to do, but not while blocking tasks run; those of
//! a first pass wait for the network, which waits for time.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use tokio::runtime::{Builder, Runtime};

/// The threads that the runtime has beside its own, by what proc_pid_stat(5) says about them.
#[derive(Clone)]
pub(crate) struct Threads {
    running: Arc<Mutex<HashMap<ThreadId, File>>>,
    /// Threads of the process that are none of them.
    others: usize,
}

impl Threads {
    pub(crate) fn new() -> Self {
        Self { running: Arc::default(), others: Self::of_process() }
    }

    /// A runtime with these threads and paused time.
    pub(crate) fn runtime(&self) -> Runtime {
        let (begun, ended) = (Arc::clone(&self.running), Arc::clone(&self.running));
        let begin = move || {
            let stat = File::open("/proc/thread-self/stat").unwrap();
            begun.lock().unwrap().insert(thread::current().id(), stat);
        };
        let end = move || drop(ended.lock().unwrap().remove(&thread::current().id()));
        let mut builder = Builder::new_current_thread();
        builder.enable_time().start_paused(true).on_thread_start(begin).on_thread_stop(end).build().unwrap()
    }

    /// Whether one of them does something, and does not wait for another, or is only about to begin.
    pub(crate) fn are_busy(&self) -> bool {
        let is_busy = |stat: &File| {
            let mut text = [0; 64];
            let read = stat.read_at(&mut text, 0).unwrap_or(0);
            // The state comes behind the name, which is in parentheses.
            !text[..read].windows(3).any(|part| part == b") S")
        };
        let running = self.running.lock().unwrap();
        self.others + running.len() != Self::of_process() || running.values().any(is_busy)
    }

    fn of_process() -> usize {
        // Each is a directory there.
        std::fs::metadata("/proc/self/task").unwrap().nlink() as usize - 2
    }
}
