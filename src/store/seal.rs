//! Seals: record at which change time a file was verified, for files that the kernel reads directly.
//!
//! The kernel does not verify its reads. So such a file is trusted only while its change time, which no program can
//! set, is that at which it was compared or made. A seal beside it, `NAME.seal` (JSON), shares this with other
//! processes. It is valid until a reboot: damage by a crash or by another system does not alter the change time.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::digest::Digest;

/// Identity and change time of a file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Deserialize, Serialize)]
struct Seal {
    boot: String,
    /// What the file holds: a layer's diff_id, of which the name has only a prefix, or the digest of its own bytes.
    diff_id: Digest,
    stamp: Stamp,
}

impl Stamp {
    /// The current stamp of the file.
    ///
    /// # Errors
    /// [`io::Error`]
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { inode: found.ino(), size: found.size(), changed: (found.ctime(), found.ctime_nsec()) })
    }

    pub(super) fn inode(self) -> u64 {
        self.inode
    }

    /// Size of the file in bytes.
    pub(super) fn size(self) -> u64 {
        self.size
    }
}

impl Store {
    /// Whether a process has sealed the current file at `path` as `of`.
    pub(super) fn seal_holds(&self, path: &Path, of: &Digest, stamp: Stamp) -> bool {
        self.read_seal(path).is_some_and(|seal| {
            BOOT.as_ref().is_some_and(|boot| seal.boot == *boot) && seal.diff_id == *of && seal.stamp == stamp
        })
    }

    /// What the file at `path` was sealed as, also before a reboot.
    pub(super) fn was_sealed_as(&self, path: &Path) -> Option<Digest> {
        self.read_seal(path).map(|seal| seal.diff_id)
    }

    fn read_seal(&self, path: &Path) -> Option<Seal> {
        let text = self.files.read_small(&seal_of(path), SEAL_LIMIT).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Records for other processes that the file at `path` was verified as `of`.
    pub(super) fn write_seal(&self, path: &Path, of: &Digest, stamp: Stamp) -> Result<(), StoreError> {
        let Some(boot) = BOOT.clone() else { return Ok(()) };
        let mut new = self.new_file(seal_of(path))?;
        let seal = Seal { boot, diff_id: of.clone(), stamp };
        new.write_all(&serde_json::to_vec(&seal).expect("a seal is strings and numbers"))?;
        new.publish()
    }
}

/// The path of a file's seal.
pub(super) fn seal_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".seal");
    name.into()
}

/// The boot id (proc_sys_kernel(5), `random/boot_id`).
static BOOT: LazyLock<Option<String>> =
    LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()));
/// Limit for a seal, in bytes.
const SEAL_LIMIT: u64 = 4096;
