//! Checks that a process may have the threads, files and address space that it needs.
//!
//! A runtime that cannot start its threads panics or stalls, and a failed allocation aborts the process. So limits are
//! checked first, and give one error that names them. Not covered: what other processes of the user take meanwhile, and
//! single images with large needs (a decoder window has up to 256 MiB).

use std::io;
use std::sync::Mutex;

use nix::libc;
use rustix::process::{Resource, getrlimit};

use super::error::HostError;
use crate::sync::lock;

/// What a process will do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Read images.
    Reading,
    /// Read images and serve mounts.
    Serving,
    /// Start a serving process and a keeper.
    Starting,
}

/// Checks the limits, and returns how many worker threads a runtime may have.
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
    /// Number of open files needed: for the runtime, the cache, and some layers at a time.
    fn files(self) -> u64 {
        match self {
            Self::Reading => 32,
            Self::Serving | Self::Starting => 48,
        }
    }

    /// Number of threads and processes needed besides those of the runtime.
    fn threads(self) -> usize {
        match self {
            Self::Reading => 0,
            Self::Serving => SERVING_THREADS,
            Self::Starting => SERVING_THREADS + 4,
        }
    }
}

/// Bytes of address space in use.
fn taken() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').next()?.parse::<u64>().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Bytes of address space needed with this many CPUs.
fn needed(purpose: Purpose, cpus: usize) -> u64 {
    let passes = (cpus + 1) as u64 * (PASS_THREADS as u64 * STACK + PASS_BUFFERS);
    let serving = match purpose {
        Purpose::Reading => 0,
        Purpose::Serving | Purpose::Starting => NEGOTIATION + (cpus + FUSE_THREADS) as u64 * (STACK + (1 << 20)),
    };
    cpus as u64 * STACK + passes + serving
}

/// How many threads can run at the same time, up to `wanted`, and why no more.
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

/// Makes all threads share one memory arena. Each would reserve 64 MiB of address space for its own.
#[allow(unsafe_code)] // there is no safe wrapper for this call
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and may be called at any time; it fails for numbers that it does not know.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// With limited address space, fewer tasks run at a time.
const CPUS_UNDER_LIMIT: usize = 4;
/// Needs of one first pass.
const PASS_THREADS: usize = 3;
const PASS_BUFFERS: u64 = 8 << 20;
/// Of a thread.
const STACK: u64 = 2 << 20;
/// Of a mount: a buffer for negotiation, and threads besides one for each CPU.
const NEGOTIATION: u64 = 17 << 20;
const FUSE_THREADS: usize = 6;
/// Threads that a mount needs at least.
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
