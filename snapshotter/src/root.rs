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

/// A directory that this process has locked.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    mark: Mark,
    _lock: File,
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
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed("make", e))?;
        let path = path.canonicalize().map_err(|e| failed("open", e))?;
        let file = path.join(MARK);
        let marked = match std::fs::read(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", error)),
        };
        let mark = match marked {
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
                mark
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
                let mark = Mark { version: VERSION, plugin: None };
                write_mark(&path, &mark).map_err(|e| failed("write to", e))?;
                mark
            }
        };
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
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(|e| failed("protect", e))?;
        for name in [SNAPSHOTS, LOWERS, IMAGES] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(name));
            made.map_err(|e| failed("write to", e))?;
        }
        Ok(Self { path, mark, _lock: lock })
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

fn write_mark(directory: &Path, mark: &Mark) -> io::Result<()> {
    whole_file::write(&directory.join(MARK), &serde_json::to_vec(mark)?)
}

pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const LOWERS: &str = "lowers";
pub(crate) const IMAGES: &str = "images";
pub(crate) const RECORDS: &str = "records";
pub(crate) const CACHE: &str = "cache";
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
        let root = Root::take(&path).unwrap();
        let report = Root::take(&path).unwrap_err();
        assert!(report.message.contains("in use"), "{}", report.message);
        Root::note_plugin(root.path(), "peelfs").unwrap();
        drop(root);
        assert_eq!(Root::take(&path).unwrap().plugin(), Some("peelfs"));
        std::fs::write(path.join(MARK), r#"{"version":7}"#).unwrap();
        assert!(Root::take(&path).unwrap_err().message.contains("version 7"));
    }
}
