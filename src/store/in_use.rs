//! Marks the layers that processes use, so that eviction skips them.
//!
//! ```text
//! lock-v1/in-use      an empty file: a process that uses a layer has a read lock on the byte of that layer
//! ```
//!
//! All marks of a process are on one descriptor, however many layers it uses. They are open file description locks
//! (OFD, fcntl(2)), which end with the process. A layer's byte follows from its blob's digest, far beyond the file's
//! end; two layers may share a byte, which only keeps one of them longer. A process that removes a layer holds a write
//! lock on its byte, from another descriptor, which excludes all users, also in the same process.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::files::Files;
use super::{StoreError, identity};
use crate::digest::Digest;
use crate::sync::lock;

/// The marks of this process.
#[derive(Debug)]
pub(super) struct Marks {
    files: Files,
    path: PathBuf,
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    file: Option<Arc<File>>,
    /// The number of marks per byte.
    counts: HashMap<u64, u32>,
}

/// Marks a layer as used until dropped.
#[derive(Debug)]
pub(super) struct Mark {
    marks: Arc<Marks>,
    byte: u64,
}

/// Keeps a layer from being used until dropped.
#[derive(Debug)]
pub(super) struct Unused {
    /// `None` on a file system without locks.
    _file: Option<File>,
}

impl Marks {
    pub(super) fn new(files: &Files, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { files: files.clone(), path, own: Mutex::default() })
    }

    /// Marks a layer as used; without locks the layer may be evicted in use. Waits briefly for a process that checks
    /// whether the layer is used.
    pub(super) fn mark(self: &Arc<Self>, blob: &Digest) -> Mark {
        let byte = byte_of(blob);
        let mut own = lock(&self.own);
        let count = own.counts.entry(byte).or_default();
        *count += 1;
        if *count == 1 {
            match self.current(&mut own) {
                Ok(file) => {
                    // Other threads may mark meanwhile.
                    drop(own);
                    self.set(&file, byte);
                }
                Err(error) => tracing::debug!(%error, "cannot mark a layer as used"),
            }
        }
        Mark { marks: Arc::clone(self), byte }
    }

    /// The current file; sets the marks again if it was replaced.
    fn current(&self, own: &mut Own) -> Result<Arc<File>, StoreError> {
        let named = self.files.look(&self.path).ok().map(|found| found.identity());
        if let Some(file) = &own.file
            && file.metadata().is_ok_and(|found| Some(identity(&found)) == named)
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(self.files.open_write(&self.path)?);
        own.counts.keys().for_each(|byte| self.set(&file, *byte));
        own.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn set(&self, file: &File, byte: u64) {
        for _ in 0..LOOKS {
            match self.lock_byte(file, byte, libc::F_RDLCK) {
                Err(Errno::EAGAIN | Errno::EACCES) => std::thread::sleep(LOOK),
                _ => return,
            }
        }
    }

    fn lock_byte(&self, file: &File, byte: u64, how: i32) -> Result<(), Errno> {
        self.files.announce_lock(&self.path).map_err(|_| Errno::ENOLCK)?;
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&one_byte(byte, how))).map(drop)
    }

    /// Whether any process uses the layer, including this one.
    pub(super) fn is_marked(&self, blob: &Digest) -> bool {
        let Ok(file) = self.files.open_read(&self.path) else { return false };
        let mut found = one_byte(byte_of(blob), libc::F_WRLCK);
        let told = fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut found));
        told.is_ok() && i32::from(found.l_type) != libc::F_UNLCK
    }

    /// Locks an unused layer against use.
    pub(super) fn unused(&self, blob: &Digest) -> Option<Unused> {
        let Ok(file) = self.files.open_write(&self.path) else { return Some(Unused { _file: None }) };
        match self.lock_byte(&file, byte_of(blob), libc::F_WRLCK) {
            Ok(()) => Some(Unused { _file: Some(file) }),
            Err(Errno::EAGAIN | Errno::EACCES) => None,
            Err(_) => Some(Unused { _file: None }),
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut own = lock(&self.marks.own);
        let Some(count) = own.counts.get_mut(&self.byte) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        own.counts.remove(&self.byte);
        if let Some(file) = &own.file {
            // Fails only if marking does.
            let _ = fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&one_byte(self.byte, libc::F_UNLCK)));
        }
    }
}

fn one_byte(byte: u64, how: i32) -> libc::flock {
    libc::flock {
        l_type: how as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte.cast_signed(),
        l_len: 1,
        l_pid: 0,
    }
}

/// The byte of a layer, from the first digits of its digest; the last offset of a file is 2^63 - 2.
fn byte_of(blob: &Digest) -> u64 {
    let digits = blob.hex().get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    digits.expect("a digest has at least 64 digits") >> 2
}

/// Tries to mark a layer that another process checks, and the pause between them.
const LOOKS: usize = 100;
const LOOK: std::time::Duration = std::time::Duration::from_millis(1);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;

    fn blob(text: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, text)
    }

    /// Simulates two processes, since locks belong to open files.
    fn two(dir: &tempfile::TempDir) -> [Arc<Marks>; 2] {
        [(); 2].map(|()| Marks::new(&Files::new(dir.path(), None), dir.path().join("in-use")))
    }

    #[test]
    fn a_layer_is_in_use_until_its_last_user_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = two(&dir);
        let [layer, unused] = [blob(b"layer"), blob(b"unused")];
        let marks = [one.mark(&layer), one.mark(&layer), other.mark(&layer)];
        for mark in marks {
            for seen_by in [&one, &other] {
                assert!(seen_by.is_marked(&layer) && seen_by.unused(&layer).is_none());
                assert!(!seen_by.is_marked(&unused) && seen_by.unused(&unused).is_some());
            }
            drop(mark);
        }
        assert!(!one.is_marked(&layer) && other.unused(&layer).is_some());
    }

    #[test]
    fn a_layer_is_kept_from_use_for_a_moment_only() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = two(&dir);
        let layer = blob(b"layer");
        let unused = one.unused(&layer).unwrap();
        assert!(one.unused(&layer).is_none(), "one removes it at a time");
        std::thread::scope(|scope| {
            let marking = scope.spawn(|| other.mark(&layer));
            drop(unused);
            let _mark = marking.join().unwrap();
            assert!(one.is_marked(&layer));
        });
    }

    #[test]
    fn marks_are_set_anew_in_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = two(&dir);
        let [layer, later] = [blob(b"layer"), blob(b"later")];
        let _mark = one.mark(&layer);
        std::fs::remove_file(dir.path().join("in-use")).unwrap();
        assert!(!other.is_marked(&layer));
        let _later = one.mark(&later);
        assert!(other.is_marked(&layer) && other.is_marked(&later));
    }
}
