//! The directory of a snapshotter.
//!
//! ```text
//! peelfs-snapshotter.json   says whose directory it is; locked while a snapshotter runs
//! records/ID.json           snapshots (see `records`)
//! snapshots/ID/fs, work     what is unpacked or written: upper directories of overlays
//! lowers/CHAIN/NAME/fs      images that are mounted, each with a directory of its own
//! images/DIGEST.json        documents of images, so that a start needs no network
//! credentials               what asks for logins (see `providers`)
//! cache                     content of layers, unless the configuration names another
//! ```

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use peelfs::host::report::{Code, Report};
use peelfs::host::whole_file;
use serde::{Deserialize, Serialize};

/// A directory that this process has locked. What was made of it is removed again when this is dropped, unless
/// [`Root::keep`] was called: a snapshotter that is refused leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    mark: Mark,
    _lock: File,
    /// Directories on the way that were missing, outermost first.
    made: Vec<PathBuf>,
    /// It was empty: everything in it is this process's.
    fresh: bool,
    kept: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    version: u32,
    /// The plugin's name in containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plugin: Option<String>,
}

impl Root {
    /// Locks a directory; creates it if it is missing. It must be empty or a directory of this snapshotter.
    pub(crate) fn take(path: &Path) -> Result<Self, Report> {
        let shown = path.display();
        let failed = |what: &str, cause: io::Error| {
            Report::new(Code::Failure, format!("cannot {what} the directory `{shown}`: {cause}"))
                .hint("use a writable directory with `--root`")
        };
        let missing: Vec<PathBuf> = path.ancestors().take_while(|above| !above.exists()).map(Path::to_owned).collect();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed("make", e))?;
        let path = path.canonicalize().map_err(|e| failed("open", e))?;
        // Lock the directory: the file is replaced when it is written.
        let lock = File::open(&path).map_err(|e| failed("open", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Report::new(Code::Failure, format!("`{shown}` is in use by another snapshotter"))
                    .hint("end that one, or name another directory with `--root`"));
            }
            Err(TryLockError::Error(cause)) => return Err(failed("lock", cause)),
        }
        let mark = Mark { version: VERSION, plugin: None };
        let made = missing.into_iter().rev().collect();
        let mut root = Self { path, mark, _lock: lock, made, fresh: false, kept: false };
        let path = root.path.clone();
        let file = path.join(MARK);
        let marked = match std::fs::read(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", error)),
        };
        match marked {
            Some(text) => {
                let mark: Mark = serde_json::from_slice(&text).map_err(|error| {
                    Report::new(Code::Failure, format!("`{}` is damaged: {error}", file.display()))
                        .hint("name another directory with `--root`")
                })?;
                if mark.version != VERSION {
                    let version = mark.version;
                    return Err(Report::new(Code::Failure, format!("`{shown}` was written by another release: it has version {version}, this release supports {VERSION}"))
                        .hint("use that release, or name another directory with `--root`"));
                }
                root.mark = mark;
            }
            None => {
                let mut entries = std::fs::read_dir(&path).map_err(|e| failed("read", e))?;
                // Created by mkfs.
                if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found")) {
                    return Err(Report::usage(format!(
                        "`{shown}` is not empty, and not a directory of this snapshotter"
                    ))
                    .hint("each snapshotter needs a directory of its own: name another one with `--root`"));
                }
                root.fresh = true;
                write_mark(&path, &root.mark).map_err(|e| failed("write to", e))?;
            }
        }
        if is_overlay(&path) {
            tracing::warn!(root = %path.display(), "this directory is on an overlay: most kernels refuse what containers write there; name one on a disk with `--root`");
        }
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(|e| failed("protect", e))?;
        for name in [SNAPSHOTS, LOWERS, IMAGES] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(name));
            made.map_err(|e| failed("write to", e))?;
        }
        Ok(root)
    }

    /// Keeps what was made of it: the snapshotter serves.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The plugin's name in the containerd that has used this directory.
    pub(crate) fn plugin(&self) -> Option<&str> {
        self.mark.plugin.as_deref()
    }

    /// Stores the name.
    pub(crate) fn note_plugin(path: &Path, name: &str) -> io::Result<()> {
        write_mark(path, &Mark { version: VERSION, plugin: Some(name.to_owned()) })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if self.fresh {
            for name in [SNAPSHOTS, LOWERS, IMAGES, RECORDS, CACHE, CREDENTIALS] {
                let _ = std::fs::remove_dir_all(self.path.join(name));
            }
            let _ = std::fs::remove_file(self.path.join(MARK));
        }
        for made in self.made.iter().rev() {
            let _ = std::fs::remove_dir(made);
        }
    }
}

/// Whether the directory is on an overlay, which cannot be the upper directory of another one.
fn is_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u64 == peelfs::fuse::mounts::OVERLAYFS)
}

fn write_mark(directory: &Path, mark: &Mark) -> io::Result<()> {
    whole_file::write(&directory.join(MARK), &serde_json::to_vec(mark)?)
}

pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const LOWERS: &str = "lowers";
pub(crate) const IMAGES: &str = "images";
pub(crate) const RECORDS: &str = "records";
pub(crate) const CACHE: &str = "cache";
pub(crate) const CREDENTIALS: &str = "credentials";
const MARK: &str = "peelfs-snapshotter.json";
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_of_another_program_is_refused_and_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        // As containerd's overlayfs snapshotter has it.
        std::fs::create_dir(scratch.path().join("snapshots")).unwrap();
        std::fs::write(scratch.path().join("metadata.db"), "").unwrap();
        let report = Root::take(scratch.path()).unwrap_err();
        assert!(report.message.contains("is not empty") && report.hint.unwrap().contains("--root"));
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_directory_is_told_with_what_to_do() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        let report = Root::take(&file).unwrap_err();
        assert!(report.message.contains("cannot make the directory") && report.hint.unwrap().contains("--root"));
    }

    #[test]
    fn a_directory_has_one_snapshotter_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("new/one");
        let mut root = Root::take(&path).unwrap();
        let report = Root::take(&path).unwrap_err();
        assert!(report.message.contains("in use"), "{}", report.message);
        root.keep();
        Root::note_plugin(root.path(), "peelfs").unwrap();
        drop(root);
        assert_eq!(Root::take(&path).unwrap().plugin(), Some("peelfs"));
        std::fs::write(path.join(MARK), r#"{"version":7}"#).unwrap();
        assert!(Root::take(&path).unwrap_err().message.contains("version 7"));
    }

    #[test]
    fn a_refused_snapshotter_leaves_only_what_was_there() {
        let scratch = tempfile::tempdir().unwrap();
        drop(Root::take(&scratch.path().join("new/one")).unwrap());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        std::fs::create_dir(scratch.path().join("lost+found")).unwrap();
        drop(Root::take(scratch.path()).unwrap());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        Root::take(scratch.path()).unwrap().keep();
        drop(Root::take(scratch.path()).unwrap());
        assert!(scratch.path().join(MARK).exists());
    }
}
