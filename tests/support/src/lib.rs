//! What several test programs share: random images, the model of what they must look like, walks over
//! a real directory and over an image in the model's terms, a place to run peelfs in, and readers
//! that put it under load.

#![allow(
    missing_docs,
    clippy::new_without_default,
    clippy::should_implement_trait,
    clippy::unwrap_used,
    reason = "only test programs use this"
)]

pub mod doomed;
pub mod link;
pub mod load;
pub mod model;
pub mod random;
pub mod sandbox;
pub mod shown;
pub mod walk;

/// Between two looks at what a test waits for: the CPUs are left to what it waits for.
pub fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(1));
}

/// Runs `work` on every item, on as many threads. A panic in one is passed on once all threads have ended.
pub fn side_by_side<T: Send>(threads: usize, items: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
    let items = std::sync::Mutex::new(items.into_iter().collect::<std::collections::VecDeque<T>>());
    let next = || items.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = next() {
                    work(item);
                }
            });
        }
    });
}
