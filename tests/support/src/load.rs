//! Readers that go on while something is done to what they read.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Has so many readers call `read` with their number and their turn until `disturb` has ended; returns how long each
/// read took, in microseconds.
///
/// `disturb` is given a function that waits until each reader has ended the read that it was in, whatever held that up.
pub fn under_load(readers: usize, read: impl Fn(usize, usize) + Sync, disturb: impl FnOnce(&dyn Fn())) -> Vec<u64> {
    let (done, begin) = (AtomicBool::new(false), Barrier::new(readers + 1));
    let ended: Vec<_> = (0..readers).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = ended
            .iter()
            .enumerate()
            .map(|(reader, ended)| {
                let (read, done, begin) = (&read, &done, &begin);
                scope.spawn(move || {
                    begin.wait();
                    let mut took = Vec::new();
                    for turn in 0.. {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let begun = Instant::now();
                        read(reader, turn);
                        took.push(begun.elapsed().as_micros() as u64);
                        ended.store(turn + 1, Ordering::Relaxed);
                    }
                    took
                })
            })
            .collect();
        begin.wait();
        let ends = Ends(&done);
        disturb(&|| {
            let count = || ended.iter().map(|ended| ended.load(Ordering::Relaxed));
            let before: Vec<_> = count().collect();
            while count().zip(&before).any(|(now, before)| now == *before) {
                assert!(!readers.iter().any(|reader| reader.is_finished()), "a reader has failed");
                std::thread::yield_now();
            }
        });
        drop(ends);
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    })
}

/// Ends the readers, also where what disturbs them fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads a file past the kernel's own cache.
pub fn read_anew(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How often something is done: as the environment says, or `few` times.
pub fn times(variable: &str, few: usize) -> usize {
    std::env::var(variable).ok().and_then(|times| times.parse().ok()).unwrap_or(few)
}
