//! Keeps files open while the process has descriptors to spare.
//!
//! An image may have hundreds of layers, and a process as few as 64 descriptors. So the number of open layer files is
//! limited; beyond it, files not used since the last scan are closed (second chance) and reopened by name on demand.
//! Readers never wait for closing: files in use are skipped.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard, TryLockError, Weak};

use rustix::process::{Resource, getrlimit};

use crate::sync::lock;

/// The open files, and their limit. Clones share state.
#[derive(Clone, Debug)]
pub(super) struct OpenFiles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Limit for descriptors; queried each time, since a process may raise its own limit.
    most: fn() -> usize,
    open: AtomicUsize,
    /// Open files, in the order in which they are scanned.
    queue: Mutex<VecDeque<Weak<dyn Close>>>,
}

/// One or more files that are opened and closed together.
#[derive(Debug)]
pub(super) struct Pooled<T: Pool> {
    slot: Arc<Slot<T>>,
    /// One thread opens; the others wait.
    opening: Mutex<()>,
}

#[derive(Debug)]
struct Slot<T: Pool> {
    files: RwLock<Option<T>>,
    /// Set at each use, cleared at each scan.
    used: AtomicBool,
    /// While above zero, others are closed first.
    pins: AtomicU32,
    all: OpenFiles,
}

/// Open files, which stay open until dropped.
#[derive(Debug)]
pub(super) struct InUse<'a, T>(RwLockReadGuard<'a, Option<T>>);

/// Files that can be kept open on demand.
pub(super) trait Pool: Send + Sync + std::fmt::Debug + 'static {
    /// The number of its descriptors.
    const COUNT: usize;

    /// Whether it can be reopened.
    fn can_be_reopened(&self) -> bool {
        true
    }
}

impl Pool for File {
    const COUNT: usize = 1;
}

trait Close: Send + Sync + std::fmt::Debug {
    /// Closes the files if they are not in use; returns whether they are closed.
    fn close(&self, chance: Chance) -> bool;
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Chance {
    /// Keep files that are pinned or were used since the last scan.
    First,
    /// Close them, too.
    Second,
}

impl Default for OpenFiles {
    /// The open files of this process, which has one limit for all.
    fn default() -> Self {
        static ALL: LazyLock<OpenFiles> = LazyLock::new(|| OpenFiles::at_most(|| share(descriptor_limit())));
        ALL.clone()
    }
}

impl OpenFiles {
    pub(super) fn at_most(most: fn() -> usize) -> Self {
        Self(Arc::new(Inner { most, open: AtomicUsize::new(0), queue: Mutex::default() }))
    }

    /// A slot for files, not opened yet.
    pub(super) fn place<T: Pool>(&self) -> Pooled<T> {
        let (files, used, pins) = (RwLock::new(None), AtomicBool::new(false), AtomicU32::new(0));
        Pooled { slot: Arc::new(Slot { files, used, pins, all: self.clone() }), opening: Mutex::new(()) }
    }

    /// Whether `count` more files may be opened, after closing what can be closed.
    pub(super) fn has_room_for(&self, count: usize) -> bool {
        self.0.open.load(Ordering::Relaxed) + count <= (self.0.most)()
    }

    /// Closes half of the files, as the process has no descriptor left.
    pub(super) fn close_half(&self) {
        self.close_down_to(self.0.open.load(Ordering::Relaxed) / 2);
    }

    fn make_room_for(&self, count: usize) {
        self.close_down_to((self.0.most)().saturating_sub(count));
    }

    /// Closes unused files until at most `most` are open, or none can be closed.
    fn close_down_to(&self, most: usize) {
        if self.0.open.load(Ordering::Relaxed) <= most {
            return;
        }
        let mut queue = lock(&self.0.queue);
        for chance in [Chance::First, Chance::Second] {
            for _ in 0..queue.len() {
                let Some(next) = queue.pop_front() else { return };
                // Dropped files are already closed.
                if next.upgrade().is_some_and(|slot| !slot.close(chance)) {
                    queue.push_back(next);
                }
                if self.0.open.load(Ordering::Relaxed) <= most {
                    return;
                }
            }
        }
    }

    fn add(&self, opened: Weak<dyn Close>) {
        let mut queue = lock(&self.0.queue);
        if queue.len() == queue.capacity() {
            queue.retain(|slot| slot.strong_count() > 0);
        }
        queue.push_back(opened);
    }
}

impl<T: Pool> Pooled<T> {
    /// The files, opened by `open` if they are closed.
    ///
    /// # Errors
    /// The error of `open`.
    pub(super) fn get<E>(&self, open: impl Fn() -> Result<T, E>) -> Result<InUse<'_, T>, E> {
        loop {
            if let Some(files) = self.slot.now() {
                // Written only if it changes, so that readers on several CPUs share the cache line.
                if !self.slot.used.load(Ordering::Relaxed) {
                    self.slot.used.store(true, Ordering::Relaxed);
                }
                return Ok(files);
            }
            let _opening = lock(&self.opening);
            if self.slot.now().is_none() {
                self.slot.all.make_room_for(T::COUNT);
                self.set(open()?);
            }
        }
    }

    /// The same, with files that are already open.
    pub(super) fn with(self, opened: T) -> Self {
        self.slot.all.make_room_for(T::COUNT);
        self.set(opened);
        self
    }

    /// Stores newly opened files; no other thread opens them as well.
    fn set(&self, opened: T) {
        // Other lock holders only check for files, and release it at once.
        *self.slot.files.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        self.slot.used.store(true, Ordering::Relaxed);
        self.slot.all.0.open.fetch_add(T::COUNT, Ordering::Relaxed);
        let slot: Weak<Slot<T>> = Arc::downgrade(&self.slot);
        self.slot.all.add(slot);
    }

    /// Closes the files unless they are in use: the next use opens the current ones.
    pub(super) fn close(&self) {
        self.slot.close(Chance::Second);
    }

    /// Closes others before these.
    pub(super) fn pin(&self) {
        self.slot.pins.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends one [`Pooled::pin`].
    pub(super) fn unpin(&self) {
        let _ = self.slot.pins.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pins| pins.checked_sub(1));
    }
}

impl<T: Pool> Slot<T> {
    fn now(&self) -> Option<InUse<'_, T>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.is_some().then_some(InUse(files))
    }
}

impl<T: Pool> Close for Slot<T> {
    fn close(&self, chance: Chance) -> bool {
        if chance == Chance::First
            && (self.used.swap(false, Ordering::Relaxed) || self.pins.load(Ordering::Relaxed) > 0)
        {
            return false;
        }
        let mut files = match self.files.try_write() {
            Ok(files) => files,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if files.as_ref().is_some_and(|files| !files.can_be_reopened()) {
            return false;
        }
        if files.take().is_some() {
            self.all.0.open.fetch_sub(T::COUNT, Ordering::Relaxed);
        }
        true
    }
}

impl<T: Pool> Drop for Slot<T> {
    fn drop(&mut self) {
        if self.files.get_mut().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.all.0.open.fetch_sub(T::COUNT, Ordering::Relaxed);
        }
    }
}

impl<T> Deref for InUse<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is made of open files, which stay open meanwhile")
    }
}

/// The limit of open files of this process.
pub fn descriptor_limit() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// The share of `limit` descriptors for layer files; the rest is for connections, first passes and mounts.
fn share(limit: usize) -> usize {
    limit.saturating_sub((limit / 2).clamp(LEFT_AT_LEAST, LEFT_AT_MOST)).clamp(OPEN_AT_LEAST, OPEN_AT_MOST)
}

/// Descriptors left for other uses, with a small and a large limit.
const LEFT_AT_LEAST: usize = 48;
const LEFT_AT_MOST: usize = 512;
/// Files of four layers.
const OPEN_AT_LEAST: usize = 12;
/// An open file takes about 2 KiB of the kernel's memory.
const OPEN_AT_MOST: usize = 16 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;

    use super::*;

    fn open() -> io::Result<File> {
        File::open("/dev/null")
    }

    fn is_open(place: &Pooled<File>) -> bool {
        place.slot.now().is_some()
    }

    #[test]
    fn no_more_files_are_open_than_may_be() {
        let all = OpenFiles::at_most(|| 3);
        let places: Vec<Pooled<File>> = (0..10).map(|_| all.place()).collect();
        for _ in 0..3 {
            for place in &places {
                drop(place.get(open).unwrap());
                assert!(is_open(place) && all.0.open.load(Ordering::Relaxed) <= 3);
            }
        }
        drop(places);
        assert_eq!(all.0.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn files_in_use_stay_open_and_others_close() {
        let all = OpenFiles::at_most(|| 2);
        let [one, two, three] = [(); 3].map(|()| all.place::<File>());
        let used = one.get(open).unwrap();
        two.pin();
        two.get(open).unwrap();
        three.get(open).unwrap();
        assert!(is_open(&one) && !is_open(&two) && is_open(&three), "pins yield to what is being used");
        two.get(open).unwrap();
        assert!(is_open(&one) && is_open(&two) && !is_open(&three));
        drop(used);
        three.get(open).unwrap();
        assert!(!is_open(&one) && is_open(&two) && is_open(&three), "what is pinned stays while others can be closed");
    }

    #[test]
    fn a_file_that_was_used_again_has_a_second_chance() {
        let all = OpenFiles::at_most(|| 3);
        let [one, two, three, four, five] = [(); 5].map(|()| all.place::<File>());
        for place in [&one, &two, &three, &four] {
            place.get(open).unwrap();
        }
        // The first scan has found all of them used, and closed the first.
        assert!(!is_open(&one));
        two.get(open).unwrap();
        five.get(open).unwrap();
        assert!(is_open(&two) && !is_open(&three));
    }

    #[test]
    fn a_limit_is_divided_between_layers_and_the_rest() {
        for (limit, layers) in [(0, 12), (64, 16), (256, 128), (1024, 512), (1 << 20, 16 << 10), (usize::MAX, 16 << 10)]
        {
            assert_eq!(share(limit), layers, "{limit}");
        }
    }
}
