//! Steps: how much work one question may be.
//!
//! A hostile image can make any question as long as it likes: thousands of directories in each other, in a
//! thousand layers, in which one file has a hundred thousand names. So work is counted where it is done: a step
//! is one look for a name in one layer, or something that takes about as long. A question that needs more steps
//! than its thread may spend ends with [`Unknown::TakesLong`]; asked again where nothing waits for the thread,
//! with a larger allowance, it ends with an answer, or with a refusal.
//!
//! The allowance belongs to the thread and not to the question, since a question runs on one thread from its
//! beginning to its end, and every signature on its way would have to carry it. Without [`within`] there is no limit.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Unknown;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    static ENDED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Asks a question that may take so many steps on this thread, and ends early once `ended` is set.
pub fn within<T>(steps: u64, ended: Option<&Arc<AtomicBool>>, question: impl FnOnce() -> T) -> T {
    let _restored = Restored {
        left: LEFT.replace(steps),
        ended: ENDED.with_borrow_mut(|now| std::mem::replace(now, ended.map(Arc::clone))),
    };
    question()
}

/// Spends `steps`, before the work is done.
pub(super) fn take(steps: u64) -> Result<(), Unknown> {
    let before = LEFT.get();
    let left = before.checked_sub(steps).ok_or(Unknown::TakesLong)?;
    LEFT.set(left);
    // A look at the flag now and then is enough, and costs nothing.
    if before / LOOK != left / LOOK
        && ENDED.with_borrow(|ended| ended.as_ref().is_some_and(|ended| ended.load(Ordering::Relaxed)))
    {
        return Err(Unknown::TakesLong);
    }
    Ok(())
}

/// What is left of the allowance.
pub(super) fn left() -> u64 {
    LEFT.get()
}

/// What held before, also when the question panics.
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

/// Steps between two looks whether the question is still wanted.
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
