//! What another process needs in order to take a mount over.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::open::Opened;
use super::spec::MountSpec;
use crate::digest::Digest;
use crate::fuse::MountPlace;
use crate::image::Documents;

/// A mount's state for the process that takes it over; its connection to the kernel is passed along with it.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The request.
    pub spec: MountSpec,
    /// Where it is mounted.
    pub place: MountPlace,
    /// The digest that the reference resolved to when it was mounted.
    pub root: Digest,
    /// The manifest that was chosen there.
    pub manifest: Digest,
    /// The log file; none in the foreground.
    pub log: Option<PathBuf>,
    /// Seconds since 1970 at which it was mounted.
    pub since: u64,
    /// How often the mount was taken over.
    pub takeovers: u32,
    /// How the previous process ended, if it died.
    pub ended: Option<String>,
    /// The requesting process was not yet notified that the mount is ready.
    pub awaited: bool,
}

impl Handover {
    /// The state of a new mount.
    pub fn of(spec: &MountSpec, place: MountPlace, opened: &Opened, log: Option<PathBuf>) -> Self {
        Self {
            spec: spec.clone(),
            place,
            root: opened.plan.root.digest.clone(),
            manifest: opened.plan.manifest.digest.clone(),
            log,
            since: now(),
            takeovers: 0,
            ended: None,
            awaited: true,
        }
    }

    /// The state for the next process; `ended` says how this one died.
    #[must_use]
    pub fn to_next(&self, ended: Option<String>) -> Self {
        Self { takeovers: self.takeovers + 1, ended, ..self.clone() }
    }

    /// The mount's age by the wall clock; the maximum if the clock was set back.
    pub fn age(&self) -> Duration {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(self.since));
        since.and_then(|since| since.elapsed().ok()).unwrap_or(Duration::MAX)
    }
}

/// A mount that this process is about to take over.
#[derive(Debug)]
pub struct Handed {
    /// The mount.
    pub handover: Handover,
    /// Its connection to the kernel.
    pub connection: OwnedFd,
    /// The record of open files, of a mount with passthrough.
    pub opens: Option<File>,
}

/// A keeper: the process that holds connections and starts another server when one dies.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeeperId {
    /// The process.
    pub pid: u32,
    /// The socket for upgrade requests.
    pub socket: PathBuf,
}

impl KeeperId {
    /// The file that records a passthrough mount's open files for the next process.
    pub fn opens(&self, number: u64) -> PathBuf {
        self.socket.with_extension(format!("{number}.opens"))
    }

    /// The file of the image's documents for the next process.
    pub fn documents(&self, number: u64) -> PathBuf {
        self.socket.with_extension(format!("{number}.image"))
    }

    /// Stores the documents of a mount: a process that takes it over may find them evicted and the registry away.
    pub fn keep_documents(&self, number: u64, documents: &Documents) {
        let path = self.documents(number);
        let text = serde_json::to_vec(documents).expect("plain data");
        let kept = create_private(&path).and_then(|mut file| file.write_all(&text));
        if let Err(error) = kept {
            tracing::warn!(%error, path = %path.display(), "cannot store an image's documents for a take-over");
        }
    }

    /// What [`KeeperId::keep_documents`] stored; `None` if it is missing or damaged.
    pub fn kept_documents(&self, number: u64) -> Documents {
        let text = std::fs::read(self.documents(number)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Removes the files of a mount.
    pub fn forget(&self, number: u64) {
        // Leftovers are also removed by the next scan of the directory.
        let _ = std::fs::remove_file(self.documents(number));
        let _ = std::fs::remove_file(self.opens(number));
    }
}

/// An empty file that only this user can read.
pub(super) fn create_private(path: &std::path::Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
