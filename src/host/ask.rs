//! Asks the processes that serve mounts what these do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::activity::{Activity, ActivityError};
use super::status::MountState;
use crate::sync::lock;

/// Asks about several mounts at the same time: one whose process is stopped delays no other.
pub fn all(states: Vec<MountState>, files: u32) -> Vec<(MountState, Result<Activity, ActivityError>)> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let ask = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(state) = states.get(at) else { return };
                let answer = state.activity(files);
                lock(&answers).push((at, answer));
            }
        };
        for _ in 1..states.len().min(ASKED_AT_ONCE) {
            // Without another thread it takes longer.
            let _ = std::thread::Builder::new().spawn_scoped(scope, ask);
        }
        ask();
    });
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by_key(|(at, _)| *at);
    states.into_iter().zip(answers.into_iter().map(|(_, answer)| answer)).collect()
}

/// Mounts that are asked at the same time.
const ASKED_AT_ONCE: usize = 8;
