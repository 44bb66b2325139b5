//! Seals: that a file was found right, as of which change, for files that the kernel reads without asking.
//!
//! What is given to the kernel is not checked with each read. So such a file counts as right only for as long as its change
//! time, which no program can set, is that at which it was compared or made. A seal beside it, `NAME.seal` (JSON), tells other
//! processes. It ends with the machine's run: what a crash or another system did to the disk changes no change time.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::digest::Digest;

/// Which file it is, and when it was changed last.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Deserialize, Serialize)]
struct Seal {
    boot: String,
    /// What the file is of: a layer's diff_id, whose beginning alone is in its name, or the digest of its own bytes.
    diff_id: Digest,
    stamp: Stamp,
}

impl Stamp {
    /// As the file is now.
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

    /// Bytes in the file.
    pub(super) fn size(self) -> u64 {
        self.size
    }
}

impl Store {
    /// Whether a process has sealed the file at `path` as it is, as one of `of`.
    pub(super) fn seal_holds(&self, path: &Path, of: &Digest, stamp: Stamp) -> bool {
        self.read_seal(path).is_some_and(|seal| {
            BOOT.as_ref().is_some_and(|boot| seal.boot == *boot) && seal.diff_id == *of && seal.stamp == stamp
        })
    }

    /// What the file at `path` was when it was sealed, also in an earlier run of the machine.
    pub(super) fn was_sealed_as(&self, path: &Path) -> Option<Digest> {
        self.read_seal(path).map(|seal| seal.diff_id)
    }

    fn read_seal(&self, path: &Path) -> Option<Seal> {
        let text = self.files.read_small(&seal_of(path), SEAL_LIMIT).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Tells other processes that the file at `path`, as it is, was found to be of `of`.
    pub(super) fn write_seal(&self, path: &Path, of: &Digest, stamp: Stamp) -> Result<(), StoreError> {
        let Some(boot) = BOOT.clone() else { return Ok(()) };
        let mut new = self.new_file(seal_of(path))?;
        let seal = Seal { boot, diff_id: of.clone(), stamp };
        new.write_all(&serde_json::to_vec(&seal).expect("a seal is strings and numbers"))?;
        new.publish()
    }
}

/// Where the seal of a file is.
pub(super) fn seal_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".seal");
    name.into()
}

/// Which run of the machine this is (proc_sys_kernel(5), `random/boot_id`).
static BOOT: LazyLock<Option<String>> =
    LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()));
/// Larger than any seal, in bytes.
const SEAL_LIMIT: u64 = 4096;
