//! Whether a process may have the threads, files and address space that it is about to need.
//!
//! A runtime that cannot start its threads panics or leaves work undone, and memory that cannot be had ends the process.
//! So limits are looked at before either is needed, and end in one error that names them. What is left to chance is
//! what other processes of the user take meanwhile, and what single images take: a decoder has windows of up to 256 MiB.

use std::io;
use std::sync::Mutex;

use nix::libc;
use rustix::process::{Resource, getrlimit};

use super::error::HostError;
use crate::sync::lock;

/// What a process is about to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// It reads images.
    Reading,
    /// It serves mounts as well.
    Serving,
    /// It starts a process that serves mounts, and one that keeps it.
    Starting,
}

/// Looks whether there is room, and returns how many threads a runtime may have for its tasks.
///
/// # Errors
/// [`HostError::NoFiles`], [`HostError::NoRoom`], [`HostError::NoThreads`]
pub(super) fn workers(purpose: Purpose) -> Result<usize, HostError> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < purpose.files() {
        return Err(HostError::NoFiles { limit: files, needed: purpose.files() });
    }
    let mut wanted = std::thread::available_parallelism().map_or(2, usize::from);
    if let Some(limit) = getrlimit(Resource::As).current {
        wanted = wanted.min(CPUS_UNDER_LIMIT);
        let (taken, needed) = (taken().unwrap_or(0), needed(purpose, wanted));
        if limit < taken + needed {
            return Err(HostError::NoRoom { left: limit.saturating_sub(taken), needed });
        }
        one_arena();
    }
    let others = PASS_THREADS + purpose.threads();
    match startable(wanted + others) {
        (count, Some(cause)) if count <= others => Err(HostError::NoThreads { cause }),
        (count, _) => Ok(count - others),
    }
}

impl Purpose {
    /// How many open files it has to be allowed: those of the runtime, of the cache, and of some layers at a time.
    fn files(self) -> u64 {
        match self {
            Self::Reading => 32,
            Self::Serving | Self::Starting => 48,
        }
    }

    /// How many threads and processes it needs beside those of the runtime.
    fn threads(self) -> usize {
        match self {
            Self::Reading => 0,
            Self::Serving => SERVING_THREADS,
            Self::Starting => SERVING_THREADS + 4,
        }
    }
}

/// Bytes of address space that are taken.
fn taken() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').next()?.parse::<u64>().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Bytes of address space that are needed with so many CPUs.
fn needed(purpose: Purpose, cpus: usize) -> u64 {
    let passes = (cpus + 1) as u64 * (PASS_THREADS as u64 * STACK + PASS_BUFFERS);
    let serving = match purpose {
        Purpose::Reading => 0,
        Purpose::Serving | Purpose::Starting => NEGOTIATION + (cpus + FUSE_THREADS) as u64 * (STACK + (1 << 20)),
    };
    cpus as u64 * STACK + passes + serving
}

/// How many threads can be started at the same time, up to so many, and why no more.
fn startable(wanted: usize) -> (usize, Option<io::Error>) {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let closed = lock(&gate);
        for count in 0..wanted {
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, || drop(lock(&gate))) {
                return (count, Some(error));
            }
        }
        drop(closed);
        (wanted, None)
    })
}

/// Has all threads take memory from one arena. Each would reserve 64 MiB of address space for its own.
#[allow(unsafe_code)] // there is no safe wrapper for this call
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and may be called at any time; it fails for numbers that it does not know.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Address space is kept by less work at a time.
const CPUS_UNDER_LIMIT: usize = 4;
/// What one first pass takes.
const PASS_THREADS: usize = 3;
const PASS_BUFFERS: u64 = 8 << 20;
/// Of a thread.
const STACK: u64 = 2 << 20;
/// Of a mount: a buffer in which terms are negotiated, and threads beside one for each CPU.
const NEGOTIATION: u64 = 17 << 20;
const FUSE_THREADS: usize = 6;
/// Threads without which no mount is served.
const SERVING_THREADS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_threads_start_as_are_wanted() {
        assert!(matches!(startable(5), (5, None)));
        assert!(matches!(startable(0), (0, None)));
    }

    #[test]
    fn serving_takes_more_than_reading() {
        for cpus in 1..=CPUS_UNDER_LIMIT {
            assert!(needed(Purpose::Serving, cpus) > needed(Purpose::Reading, cpus));
        }
        assert!(taken().is_some_and(|taken| taken > 1 << 20));
    }
}
