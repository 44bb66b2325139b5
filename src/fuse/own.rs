//! Detects requests of the serving process itself.
//!
//! A server that accesses its cache or layout below its own mount would wait for its own answer, and block every reader
//! in a state that not even `SIGKILL` ends. Mount points that hide what their server needs are refused, but a bind
//! mount can be made at any time. So a request of the process itself fails at once.

use std::cell::Cell;

use super::wire::Operation;

/// Whether the process would wait for itself with this request. Requests answered without any lookup are harmless.
pub(super) fn is_of_this_process(thread: u32, operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Forget
        | Operation::BatchForget { .. }
        | Operation::Interrupt { .. }
        | Operation::Release
        | Operation::ReleaseDir
        | Operation::Flush
        | Operation::StatFs
        | Operation::Destroy => false,
        _ => thread != 0 && is_own_thread(thread),
    }
}

/// Few threads ask at a time, and thread numbers are reused late; so results are cached.
fn is_own_thread(thread: u32) -> bool {
    let place = thread as usize % FOREIGN;
    if KNOWN_FOREIGN.with(|known| known[place].get()) == thread {
        return false;
    }
    let own = rustix::fs::access(format!("/proc/self/task/{thread}"), rustix::fs::Access::EXISTS).is_ok();
    if !own {
        KNOWN_FOREIGN.with(|known| known[place].set(thread));
    }
    own
}

thread_local! {
    /// Threads of other processes that have asked recently.
    static KNOWN_FOREIGN: [Cell<u32>; FOREIGN] = const { [const { Cell::new(0) }; FOREIGN] };
}

const FOREIGN: usize = 64;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_thread_is_known_by_its_process() {
        let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let foreign = rustix::process::getppid().unwrap().as_raw_nonzero().get().unsigned_abs();
        for _ in 0..2 {
            assert!(is_of_this_process(own, &Operation::GetAttr));
            assert!(!is_of_this_process(own, &Operation::Forget));
            assert!(!is_of_this_process(foreign, &Operation::GetAttr));
            assert!(!is_of_this_process(0, &Operation::GetAttr));
        }
    }
}
