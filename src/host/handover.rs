//! What another process needs to take a mount over.

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

/// A mount, as another process could take it over; its connection to the kernel goes beside.
#[derive(Clone, Debug)]
pub struct Handover {
    /// What was asked for.
    pub spec: MountSpec,
    /// Where it is mounted.
    pub place: MountPlace,
    /// What the reference named when it was mounted.
    pub root: Digest,
    /// The manifest that was chosen there.
    pub manifest: Digest,
    /// Where the log is written; none in the foreground.
    pub log: Option<PathBuf>,
    /// Seconds since 1970 at which it was mounted.
    pub since: u64,
    /// How often another process has taken it over.
    pub takeovers: u32,
    /// How the process before ended, if it died.
    pub ended: Option<String>,
    /// The process that asked for the mount has not been told yet that it is ready.
    pub awaited: bool,
}

impl Handover {
    /// Of a mount that was just made.
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

    /// As it is told to the next process; `ended` says how the one before died.
    #[must_use]
    pub fn to_next(&self, ended: Option<String>) -> Self {
        Self { takeovers: self.takeovers + 1, ended, ..self.clone() }
    }

    /// How long ago the mount was made, by the wall clock; for ever, if that has been set back since.
    pub fn age(&self) -> Duration {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(self.since));
        since.and_then(|since| since.elapsed().ok()).unwrap_or(Duration::MAX)
    }
}

/// A mount that this process is to take over.
#[derive(Debug)]
pub struct Handed {
    /// The mount.
    pub handover: Handover,
    /// Its connection to the kernel.
    pub connection: OwnedFd,
    /// Which files are open, of a mount with passthrough.
    pub opens: Option<File>,
}

/// A keeper: the process that holds connections and starts another server when one dies.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeeperId {
    /// The process.
    pub pid: u32,
    /// Where it can be asked for an upgrade.
    pub socket: PathBuf,
}

impl KeeperId {
    /// Where a mount with passthrough keeps which files are open, for the next process.
    pub fn opens(&self, number: u64) -> PathBuf {
        self.socket.with_extension(format!("{number}.opens"))
    }

    /// Where the documents of a mount are kept for the next process.
    pub fn documents(&self, number: u64) -> PathBuf {
        self.socket.with_extension(format!("{number}.image"))
    }

    /// Keeps the documents of a mount: a process that takes it over may find that the cache has lost them and that the
    /// registry is away.
    pub fn keep_documents(&self, number: u64, documents: &Documents) {
        let path = self.documents(number);
        let text = serde_json::to_vec(documents).expect("it is digests and texts");
        let kept = create_private(&path).and_then(|mut file| file.write_all(&text));
        if let Err(error) = kept {
            tracing::warn!(%error, path = %path.display(), "cannot keep an image's documents beside its mount");
        }
    }

    /// What [`KeeperId::keep_documents`] has kept; nothing, if it is missing or no longer whole.
    pub fn kept_documents(&self, number: u64) -> Documents {
        let text = std::fs::read(self.documents(number)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Removes what was kept of a mount.
    pub fn forget(&self, number: u64) {
        // What is left is also removed by the next look at the directory.
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
