//! Seals: record as of when a file was verified, for files that the kernel reads directly.
//!
//! The kernel does not know what such a file should hold. So the file is trusted only while its change time, which no
//! program can set, is that at which it was compared or made. A seal beside it, `NAME.seal` (JSON), shares this with
//! other processes. It is valid until a reboot: damage by a crash or by another system does not alter the change time.
//!
//! Where the file system has [fs-verity](super::verity), the kernel compares each page with what the file was when that was
//! enabled. If all of the file was verified since, its digest by fs-verity is in the seal, which is then valid as long as the
//! kernel measures the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::verity::{self, Measured, NoVerity};
use super::{Store, StoreError};
use crate::digest::Digest;

/// Identity and change time of a file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// What is recorded of a file that was verified.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Seal {
    boot: String,
    /// What the file holds: a layer's diff_id, of which the name has only a prefix, or the digest of its own bytes.
    diff_id: Digest,
    stamp: Stamp,
    /// The file's digest by fs-verity, if all of the file was verified after that was enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verity: Option<Measured>,
    /// Fs-verity was not enabled for a reason that passes: a process had the file open for writing, or it was sealed without.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    verity_later: bool,
    /// Of an EROFS image: what the content files of its layers are named by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Digest>>,
}

/// What is known of a file without reading it.
struct State<'a> {
    boot: Option<&'a str>,
    stamp: Stamp,
    measured: Option<Measured>,
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

impl Seal {
    /// That a file with this stamp was verified as `of` in this run of the machine; `None` if that has no id.
    pub(super) fn new(of: &Digest, stamp: Stamp) -> Option<Self> {
        let boot = BOOT.clone()?;
        Some(Self { boot, diff_id: of.clone(), stamp, verity: None, verity_later: false, layers: None })
    }

    /// The same of a file that was verified after the kernel was asked to do so, too.
    pub(super) fn with_verity(self, verity: &Result<Measured, NoVerity>) -> Self {
        Self {
            verity: verity.as_ref().ok().cloned(),
            verity_later: matches!(verity, Err(NoVerity::Busy | NoVerity::NotEnabled)),
            ..self
        }
    }

    /// The same of an EROFS image over these layers.
    pub(super) fn with_layers(self, layers: &[Digest]) -> Self {
        Self { layers: Some(layers.to_vec()), ..self }
    }

    /// What the file was verified as.
    pub(super) fn of(&self) -> &Digest {
        &self.diff_id
    }

    /// The layers of an EROFS image; `None` in seals of earlier versions.
    pub(super) fn layers(&self) -> Option<&[Digest]> {
        self.layers.as_deref()
    }

    /// Whether a file in this state holds what was verified.
    fn holds(&self, of: &Digest, now: &State<'_>) -> bool {
        let is_unchanged = || now.boot == Some(&*self.boot) && self.stamp == now.stamp;
        self.diff_id == *of
            && match &self.verity {
                Some(recorded) => now.measured.as_ref() == Some(recorded),
                None => is_unchanged(),
            }
    }
}

impl Store {
    /// Whether a process has sealed the current file at `path` as `of`.
    pub(super) fn seal_holds(&self, path: &Path, of: &Digest, file: &File, stamp: Stamp) -> bool {
        self.read_seal(path).is_some_and(|seal| {
            let measured = seal.verity.as_ref().and_then(|_| verity::measure(file).ok());
            seal.holds(of, &State { boot: BOOT.as_deref(), stamp, measured })
        })
    }

    /// Whether the kernel verifies a file from now on that was sealed without, for a reason that has passed. It has to be
    /// compared again then: only so it is known that the kernel compares it with the right bytes.
    pub(super) fn gets_verity(&self, path: &Path, file: &File) -> bool {
        self.read_seal(path).is_some_and(|seal| seal.verity_later) && self.files.enable_verity(file, path).is_ok()
    }

    /// The seal of the file at `path`, whether it holds or not.
    pub(super) fn read_seal(&self, path: &Path) -> Option<Seal> {
        let text = self.files.read_small(&seal_of(path), SEAL_LIMIT).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Records for other processes that the file at `path` was verified.
    pub(super) fn write_seal(&self, path: &Path, seal: Option<Seal>) -> Result<(), StoreError> {
        let Some(seal) = seal else { return Ok(()) };
        let mut new = self.new_file(seal_of(path))?;
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
/// Limit for a seal, in bytes: one of an image with 1,000 layers has 150 KiB.
const SEAL_LIMIT: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn measured(text: &str) -> Measured {
        serde_json::from_value(digest(text).to_string().into()).unwrap()
    }

    fn stamp(changed: i64) -> Stamp {
        Stamp { inode: 7, size: 100, changed: (changed, 5) }
    }

    /// The seal of a file, in a run of the machine that is called `boot`.
    fn seal(verity: Option<Measured>) -> Seal {
        let boot = "boot".to_owned();
        Seal { boot, diff_id: digest("tar"), stamp: stamp(1), verity, verity_later: false, layers: None }
    }

    #[test]
    fn a_seal_by_change_time_holds_until_a_change_or_a_reboot() {
        let holds =
            |boot: Option<&str>, stamp, measured| seal(None).holds(&digest("tar"), &State { boot, stamp, measured });
        assert!(holds(Some("boot"), stamp(1), None));
        assert!(!holds(Some("other"), stamp(1), None) && !holds(None, stamp(1), None));
        assert!(!holds(Some("boot"), stamp(2), None) && !holds(Some("boot"), Stamp { inode: 8, ..stamp(1) }, None));
        // What was measured tells nothing if it was not recorded.
        assert!(!holds(Some("other"), stamp(1), Some(measured("tree"))));
        let now = State { boot: Some("boot"), stamp: stamp(1), measured: None };
        assert!(!seal(None).holds(&digest("other"), &now));
    }

    #[test]
    fn a_seal_by_the_kernel_holds_while_it_measures_the_same() {
        let sealed = seal(Some(measured("tree")));
        for (boot, stamp) in [("boot", stamp(1)), ("other", stamp(1)), ("boot", stamp(2)), ("other", stamp(9))] {
            let now = |measured| State { boot: Some(boot), stamp, measured };
            assert!(sealed.holds(&digest("tar"), &now(Some(measured("tree")))));
            assert!(!sealed.holds(&digest("other"), &now(Some(measured("tree")))));
            assert!(!sealed.holds(&digest("tar"), &now(Some(measured("other")))));
            assert!(!sealed.holds(&digest("tar"), &now(None)), "it is not the file that was measured");
        }
    }

    #[test]
    fn seals_of_other_versions_are_read_or_not_believed() {
        let of = digest("tar");
        let stamp = r#"{"inode":7,"size":100,"changed":[1,5]}"#;
        let read = |more: &str| {
            serde_json::from_str::<Seal>(&format!(r#"{{"boot":"boot","diff_id":"{of}","stamp":{stamp}{more}}}"#))
        };
        let now = |measured| State { boot: Some("boot"), stamp: super::tests::stamp(1), measured };
        let old = read("").unwrap();
        assert!(old.holds(&of, &now(None)) && old.layers().is_none() && !old.verity_later);
        assert!(read(r#","more":[1,{}]"#).unwrap().holds(&of, &now(None)), "what it does not know is passed over");
        for lie in [r#""""#, r#""sha256:12""#, "7", "true", "[]", r#"{"on":true}"#] {
            assert!(read(&format!(r#","verity":{lie}"#)).is_err(), "{lie}");
        }
        // A digest of another kind is none that the kernel measures.
        let other = read(&format!(r#","verity":"{}""#, Digest::of(Algorithm::Sha512, b"tree"))).unwrap();
        assert!(!other.holds(&of, &now(Some(measured("tree")))));
        let written = serde_json::to_string(&seal(None)).unwrap();
        assert_eq!(written, format!(r#"{{"boot":"boot","diff_id":"{of}","stamp":{stamp}}}"#), "as earlier versions");
    }

    #[test]
    fn what_stood_in_the_way_for_a_while_is_tried_again() {
        let of = |verity| seal(None).with_verity(&verity);
        assert!(of(Err(NoVerity::Busy)).verity_later && of(Err(NoVerity::NotEnabled)).verity_later);
        for never in [NoVerity::Unsupported, NoVerity::Refused(io::ErrorKind::StorageFull.into())] {
            let sealed = of(Err(never));
            assert!(!sealed.verity_later && sealed.verity.is_none());
        }
        assert_eq!(of(Ok(measured("tree"))).verity, Some(measured("tree")));
    }
}
