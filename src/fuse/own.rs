//! Whether a request comes from the serving process itself.
//!
//! A server that looks for its cache or its layout below its own mount would wait for its own answer, for ever, and so
//! would every reader: in a state that not even `SIGKILL` ends. Mount points that cover what their server needs are
//! refused, but a bind mount can be made at any time. So what the process asks itself is an error at once.

use std::cell::Cell;

use super::wire::Operation;

/// Whether a process that asks itself this waits for itself. What is answered without looking anywhere is harmless.
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

/// Those that ask are few at a time, and the kernel gives numbers in a circle; so what was found out holds for a while.
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
    /// Threads of other processes that have asked lately.
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
