//! Locks of first passes, and their progress.
//!
//! One process makes the pass of a layer and others wait, so that a layer is downloaded once. But that process may be
//! stopped (Ctrl-Z, the freezer), or its source may be unreachable while another's is not: the locks of a layer have
//! ranks, and a process that gives up on the holder of one rank takes the next. Two passes have the same result, and it
//! is published by rename, so both may finish.
//!
//! ```text
//! lock-v1/ALG/HEX        rank 0: process u32, bytes received u64, beats u64 of its holder, little-endian
//! lock-v1/ALG/HEX.RANK   further ranks
//! ```

use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Mutex;

use super::files::Files;
use super::{LOCK, Store, StoreError};
use crate::digest::Digest;
use crate::sync::lock;

/// Held while this process makes a layer's first pass.
#[derive(Debug)]
pub struct PassLock {
    rank: u32,
    /// `None` if nothing can be locked.
    file: Option<LockFile>,
}

#[derive(Debug)]
struct LockFile {
    files: Files,
    file: File,
    path: PathBuf,
    note: Mutex<PassNote>,
}

/// What the process of a first pass reports to waiting processes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PassNote {
    /// The process.
    pub pid: u32,
    /// Bytes of the blob received.
    pub received: u64,
    /// Increments while the process runs, whether bytes arrive or not.
    pub beats: u64,
}

impl Store {
    /// Takes the lock for this layer's first pass; `None` while another process holds it.
    ///
    /// If no lock is possible, as on a full or read-only disk, every process makes a pass.
    pub fn try_lock_pass(&self, blob: &Digest) -> Option<PassLock> {
        self.try_lock_pass_of(blob, 0)
    }

    /// As [`Store::try_lock_pass`], for this rank.
    pub fn try_lock_pass_of(&self, blob: &Digest, rank: u32) -> Option<PassLock> {
        let path = self.pass_path(blob, rank);
        let locked =
            self.in_place(|| self.files.open_write(&path)).and_then(|file| match self.files.try_lock(&file, &path) {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(cause)) => Err(StoreError::io("lock", &path)(cause)),
            });
        let file = match locked {
            Ok(file) => Some(LockFile { files: self.files.clone(), file: file?, path, note: Mutex::default() }),
            Err(error) => {
                self.cannot_keep("a lock", &error);
                None
            }
        };
        let lock = PassLock { rank, file };
        lock.note(0);
        Some(lock)
    }

    /// The note of the process that holds the lock of this rank.
    pub fn pass_note(&self, blob: &Digest, rank: u32) -> Option<PassNote> {
        let mut note = [0; NOTE];
        let file = self.files.open_read(&self.pass_path(blob, rank)).ok()?;
        // Notes of earlier versions lack the beats.
        let length = file.read_at(&mut note, 0).ok().filter(|length| *length >= NOTE - 8)?;
        let number = |at: usize| u64::from_le_bytes(note[at..at + 8].try_into().expect("8 bytes were cut"));
        let pid = u32::from_le_bytes(note[..4].try_into().expect("4 bytes were cut"));
        Some(PassNote { pid, received: number(4), beats: if length == NOTE { number(12) } else { 0 } })
    }

    fn pass_path(&self, blob: &Digest, rank: u32) -> PathBuf {
        let path = self.path(LOCK, blob);
        if rank == 0 { path } else { path.with_extension(rank.to_string()) }
    }
}

impl PassLock {
    /// The number of stalled processes that this one bypasses.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Reports how many bytes of the blob this pass has received.
    pub fn note(&self, received: u64) {
        self.tell(|note| note.received = received);
    }

    /// Reports that this process is running.
    pub fn beat(&self) {
        self.tell(|note| note.beats += 1);
    }

    fn tell(&self, change: impl FnOnce(&mut PassNote)) {
        let Some(LockFile { files, file, path, note }) = &self.file else { return };
        let mut note = lock(note);
        note.pid = std::process::id();
        change(&mut note);
        let bytes = [&note.pid.to_le_bytes()[..], &note.received.to_le_bytes(), &note.beats.to_le_bytes()].concat();
        // On a full disk the pass seems stalled, and others make their own.
        let _ = files.write_all_at(file, path, &bytes, 0);
    }

    /// Whether other processes are locked out.
    pub fn is_real(&self) -> bool {
        self.file.is_some()
    }
}

/// Size of a note in bytes.
const NOTE: usize = 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn each_rank_has_its_lock_and_note() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let blob = Digest::of(Algorithm::Sha256, b"layer");
        assert_eq!(store.pass_note(&blob, 0), None);
        let first = store.try_lock_pass(&blob).unwrap();
        let second = store.try_lock_pass_of(&blob, 1).unwrap();
        assert!(store.try_lock_pass(&blob).is_none() && store.try_lock_pass_of(&blob, 1).is_none());
        first.note(1000);
        second.beat();
        second.beat();
        let note = |rank| store.pass_note(&blob, rank).map(|note| (note.pid, note.received, note.beats));
        let own = std::process::id();
        assert_eq!([note(0), note(1)], [Some((own, 1000, 0)), Some((own, 0, 2))]);
        drop(first);
        assert_eq!(store.try_lock_pass(&blob).unwrap().rank(), 0);
        assert_eq!(note(0), Some((own, 0, 0)), "it begins anew");
    }

    #[test]
    fn a_note_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), None).unwrap();
        let blob = Digest::of(Algorithm::Sha256, b"layer");
        std::fs::write(store.pass_path(&blob, 0), [7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(store.pass_note(&blob, 0), Some(PassNote { pid: 7, received: 9, beats: 0 }));
        std::fs::write(store.pass_path(&blob, 0), [7, 0]).unwrap();
        assert_eq!(store.pass_note(&blob, 0), None);
    }
}
