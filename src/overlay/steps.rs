//! Steps: limit the work of one lookup.
//!
//! A hostile image can make any lookup arbitrarily expensive: thousands of nested directories, in a thousand layers,
//! with a hundred thousand names of one file. So work is counted where it is done: a step is one name lookup in one
//! layer, or something that takes about as long. A lookup that exceeds its thread's limit ends with
//! [`Unknown::TakesLong`]; retried on a thread that may take longer, with a higher limit, it ends with a result or is
//! refused.
//!
//! The limit belongs to the thread, since a lookup runs on one thread, and every signature would otherwise have to
//! carry it. Outside [`within`] there is no limit.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Unknown;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    static ENDED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Runs `question` with a limit of `steps` on this thread; it ends early once `ended` is set.
pub fn within<T>(steps: u64, ended: Option<&Arc<AtomicBool>>, question: impl FnOnce() -> T) -> T {
    let _restored = Restored {
        left: LEFT.replace(steps),
        ended: ENDED.with_borrow_mut(|now| std::mem::replace(now, ended.map(Arc::clone))),
    };
    question()
}

/// Takes `steps` before the work is done.
pub(super) fn take(steps: u64) -> Result<(), Unknown> {
    let before = LEFT.get();
    let left = before.checked_sub(steps).ok_or(Unknown::TakesLong)?;
    LEFT.set(left);
    // The flag is checked only occasionally, which costs nothing.
    if before / LOOK != left / LOOK
        && ENDED.with_borrow(|ended| ended.as_ref().is_some_and(|ended| ended.load(Ordering::Relaxed)))
    {
        return Err(Unknown::TakesLong);
    }
    Ok(())
}

/// The steps left.
pub(super) fn left() -> u64 {
    LEFT.get()
}

/// Restores the previous limit, also after a panic.
struct Restored {
    left: u64,
    ended: Option<Arc<AtomicBool>>,
}

impl Drop for Restored {
    fn drop(&mut self) {
        LEFT.set(self.left);
        ENDED.set(self.ended.take());
    }
}

/// Steps between two checks of the flag.
const LOOK: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_ends_at_its_allowance_and_when_it_is_not_wanted() {
        let spend = |steps| (0..steps).try_for_each(|_| take(1));
        assert!(within(10, None, || spend(10)).is_ok());
        assert!(matches!(within(10, None, || spend(11)), Err(Unknown::TakesLong)));
        assert!(within(5, None, || within(20, None, || spend(20)).and_then(|()| spend(5))).is_ok(), "each its own");
        let ended = Arc::new(AtomicBool::new(true));
        assert!(matches!(within(u64::MAX, Some(&ended), || spend(2 * LOOK)), Err(Unknown::TakesLong)));
        assert!(spend(2 * LOOK).is_ok(), "there is no limit outside");
    }
}
