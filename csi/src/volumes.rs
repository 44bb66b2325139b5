//! Publishes and unpublishes volumes. Every call may be repeated at any point, also to another plugin process.
//!
//! ```text
//! STATE/volumes/ID/             ID: 32 hex digits of the target path's SHA-256
//!     volume.json               what is published there, and under which volume id
//!     auth.json                 credentials of this volume
//!     image/                    the whole image, where a directory of it is published
//! ```
//! The record is written before anything is mounted, and removed after everything is unmounted, so it leads to what a
//! killed process has left. The mounts are served by separate processes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use peelfs::digest::{Algorithm, Digest};
use peelfs::fuse::mounts::{self, MountPoint};
use peelfs::fuse::{MountPlace, OpenFiles, UnmountError, unmount_with_cover};
use peelfs::host::background::{self, Keeper};
use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::spec::{Access, CacheSpec, ImageSpec, IndexFrom, MountSpec, Passthrough, Policy};
use peelfs::host::{Silent, mount_point, probe, status, whole_file};
use peelfs::platform::Platform;
use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, NotPossible};
use crate::sub_path;

/// Settings for every volume of the node.
#[derive(Clone, Debug)]
pub struct Node {
    /// How to reach registries; secrets of a volume take precedence over its credentials.
    pub access: Access,
    /// Where layers are cached.
    pub cache: CacheSpec,
    /// The directory of verifiers.
    pub verifiers: PathBuf,
    /// The platform for volumes that name none; by default the machine's.
    pub platform: Option<Platform>,
    /// Where indexes of layers are looked for that others have pushed.
    pub index_from: Option<IndexFrom>,
    /// The directory of verifiers that have to allow them; by default that of the machine, if there is one.
    pub index_verifiers: Option<PathBuf>,
    /// One cache per namespace below `cache`, so that pods of different namespaces share no layers.
    pub separate_namespaces: bool,
    /// The control group in which the processes that serve mounts run.
    pub cgroup: Option<PathBuf>,
    /// The directory of records; lost at a reboot, with the mounts.
    pub state: PathBuf,
}

/// The volumes of a node.
pub(crate) struct Volumes {
    node: Node,
    /// Target paths for which something is being done.
    busy: Mutex<HashSet<PathBuf>>,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The request is invalid.
    #[error(transparent)]
    NotPossible(#[from] NotPossible),
    /// Something else is published there.
    #[error("something else is published at `{}`: {what}", at.display())]
    Other {
        /// The target path.
        at: PathBuf,
        /// What.
        what: String,
    },
    /// A call for this target is not finished.
    #[error("an earlier call for `{}` is not finished", at.display())]
    Pending {
        /// The target path.
        at: PathBuf,
    },
    /// The target path is a file.
    #[error("cannot publish at `{}`: it is not a directory", at.display())]
    NotADirectory {
        /// The target path.
        at: PathBuf,
    },
    /// No such volume is published there.
    #[error("volume `{}` is not published at `{}`", id.escape_debug(), at.display())]
    NotPublished {
        /// The volume id.
        id: String,
        /// The path.
        at: PathBuf,
    },
    /// The requested directory cannot be mounted.
    #[error("cannot show `{}` of the image", path.display())]
    SubPath {
        /// The path in the image.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file or directory cannot be created or removed.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The image cannot be mounted.
    #[error("{}", told(.0))]
    Host(Report),
}

/// Message and hint: Kubernetes shows one line.
fn told(report: &Report) -> String {
    match &report.hint {
        // An option of the command line is an attribute here.
        Some(hint) => format!("{}; {}", report.message, hint.replace("`--platform", "the attribute `platform")),
        None => report.message.clone(),
    }
}

impl From<HostError> for VolumeError {
    fn from(error: HostError) -> Self {
        Self::Host(error.into())
    }
}

impl From<UnmountError> for VolumeError {
    fn from(error: UnmountError) -> Self {
        Self::Host(error.into())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |cause| VolumeError::Io { what, path, cause }
}

/// The record of a target.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Record {
    volume: String,
    target: PathBuf,
    attributes: Attributes,
}

/// Usage of a file system, and whether it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stats {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// An operation on a target is in progress.
struct Turn<'a> {
    volumes: &'a Volumes,
    target: PathBuf,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.volumes.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}

impl Volumes {
    pub(crate) fn new(node: Node) -> Self {
        Self { node, busy: Mutex::default() }
    }

    /// Publishes an image at `target`; idempotent. Returns when names can be looked up, long before all of it is
    /// fetched.
    pub(crate) fn publish(
        &self,
        volume: &str,
        target: &Path,
        attributes: Attributes,
        login: Option<&[u8]>,
    ) -> Result<(), VolumeError> {
        let _turn = self.turn(target)?;
        if fs::symlink_metadata(target).is_ok_and(|found| found.is_file()) {
            return Err(VolumeError::NotADirectory { at: target.to_owned() });
        }
        let own = self.own(target);
        let record = Record { volume: volume.to_owned(), target: target.to_owned(), attributes };
        let before = own.record();
        match (&before, mounts::at(target)) {
            (Some(before), Some(mounted)) if is_served(&mounted) => {
                if *before != record {
                    let what =
                        format!("volume `{}`, image {}", before.volume.escape_debug(), before.attributes.image());
                    return Err(VolumeError::Other { at: target.to_owned(), what });
                }
                // Publishing again renews secrets; the mount reads them when it logs in.
                return own.keep_login(login);
            }
            (None, Some(mounted)) if !mounted.is_peelfs() || is_served(&mounted) => {
                let what = format!("{} of type {}", mounted.source, mounted.kind);
                return Err(VolumeError::Other { at: target.to_owned(), what });
            }
            // Left by a killed process, or no longer served.
            (Some(_), _) => self.take_away(target, &own)?,
            (None, _) => {}
        }
        let published = self.make(&record, &own, login);
        if published.is_err()
            && let Err(error) = self.take_away(target, &own)
        {
            tracing::error!(%error, "cannot clean up after a volume that could not be published");
        }
        published
    }

    fn make(&self, record: &Record, own: &Own, login: Option<&[u8]>) -> Result<(), VolumeError> {
        let target = &record.target;
        make_directory(target, 0o750)?;
        make_directory(&own.directory, 0o700)?;
        own.write(record)?;
        own.keep_login(login)?;
        let wanted = record.attributes.parsed()?;
        let mut access = self.node.access.clone();
        access.on_outage = wanted.on_outage.unwrap_or(access.on_outage);
        access.authfile = login.map(|_| own.login()).or(access.authfile);
        let mut cache = self.node.cache.clone();
        if self.node.separate_namespaces {
            cache.dir.push(record.attributes.namespace.as_deref().map_or(NO_NAMESPACE, plain));
        }
        let image = ImageSpec {
            platform: wanted.platform.or_else(|| self.node.platform.clone()),
            access,
            verifiers: self.node.verifiers.clone(),
            index_from: self.node.index_from.clone(),
            index_verifiers: self.node.index_verifiers.clone(),
            ..ImageSpec::new(wanted.reference, &cache.dir)
        };
        let image = ImageSpec { cache, ..image };
        let (verify, prefetch) = (wanted.verify, wanted.prefetch);
        let policy = Policy { verify, prefetch, wait: false, passthrough: Passthrough::Never };
        let at = match &record.attributes.sub_path {
            None => target.clone(),
            Some(_) => {
                make_directory(&own.image(), 0o700)?;
                own.image()
            }
        };
        let spec = MountSpec { kernel: wanted.kernel, policy, ..MountSpec::new(image, &at) };
        let spec = MountSpec { at: mount_point::find(&at, &mut Silent)?, ..spec };
        mount_point::hold(&spec, &at)?;
        background::mount_in(&spec, Keeper::Process, self.node.cgroup.as_deref(), &mut Silent)?;
        if let Some(path) = &record.attributes.sub_path {
            let shown = sub_path::show(&at, path, target);
            shown.map_err(|cause| VolumeError::SubPath { path: path.clone(), cause })?;
        }
        Ok(())
    }

    /// Unpublishes `target`, and removes it; idempotent.
    pub(crate) fn unpublish(&self, target: &Path) -> Result<(), VolumeError> {
        let _turn = self.turn(target)?;
        self.take_away(target, &self.own(target))
    }

    fn take_away(&self, target: &Path, own: &Own) -> Result<(), VolumeError> {
        unmount_all(target)?;
        unmount_all(&own.image())?;
        // Never its content: if it is not empty, it does not belong to the plugin.
        match removed(fs::remove_dir(target)) {
            // Nothing was ever published at a file.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            result => result.map_err(failed("remove", target))?,
        }
        removed(fs::remove_dir_all(&own.directory)).map_err(failed("remove", &own.directory))
    }

    /// The size of the image published at `path`.
    pub(crate) fn stats(&self, volume: &str, path: &Path) -> Result<Option<Stats>, VolumeError> {
        let not_published = || VolumeError::NotPublished { id: volume.to_owned(), at: path.to_owned() };
        let record = self.own(path).record().filter(|record| record.volume == volume).ok_or_else(not_published)?;
        let mounted = mounts::at(&record.target).ok_or_else(not_published)?;
        // A mount that does not answer would block this thread.
        if probe::ask(&mounted.path) != probe::Answer::Served {
            return Ok(None);
        }
        let found = rustix::fs::statvfs(&mounted.path).map_err(|errno| failed("look at", path)(errno.into()))?;
        Ok(Some(Stats { bytes: found.f_blocks.saturating_mul(found.f_frsize), inodes: found.f_files }))
    }

    /// The files of a target.
    fn own(&self, target: &Path) -> Own {
        use std::os::unix::ffi::OsStrExt as _;
        let name = Digest::of(Algorithm::Sha256, target.as_os_str().as_bytes());
        Own { directory: self.node.state.join("volumes").join(&name.hex()[..32]) }
    }

    fn turn(&self, target: &Path) -> Result<Turn<'_>, VolumeError> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(target.to_owned()) {
            return Err(VolumeError::Pending { at: target.to_owned() });
        }
        Ok(Turn { volumes: self, target: target.to_owned() })
    }
}

/// The files of one target.
struct Own {
    directory: PathBuf,
}

impl Own {
    fn file(&self) -> PathBuf {
        self.directory.join("volume.json")
    }

    fn login(&self) -> PathBuf {
        self.directory.join("auth.json")
    }

    fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// The record; `None` if it cannot be read.
    fn record(&self) -> Option<Record> {
        let text = fs::read(self.file()).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write(&self, record: &Record) -> Result<(), VolumeError> {
        let text = serde_json::to_vec(record).expect("plain data");
        whole_file::write(&self.file(), &text).map_err(failed("write", &self.file()))
    }

    fn keep_login(&self, login: Option<&[u8]>) -> Result<(), VolumeError> {
        let Some(login) = login else { return Ok(()) };
        whole_file::write(&self.login(), login).map_err(failed("write", &self.login()))
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), VolumeError> {
    let made = fs::DirBuilder::new().recursive(mode == 0o700).mode(mode).create(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.map_err(failed("make", path)),
    }
}

/// Ignores that it was missing.
fn removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether its process answers, or it needs none.
fn is_served(mount: &MountPoint) -> bool {
    let hangs = status::directory().is_ok_and(|directory| status::hanging_server(&directory, mount).is_some());
    !hangs && probe::ask(&mount.path) != probe::Answer::Gone
}

/// Unmounts everything that peelfs has mounted there.
fn unmount_all(at: &Path) -> Result<(), VolumeError> {
    while let Some(mount) = mounts::at(at) {
        if !mount.is_peelfs() {
            let what = format!("{} of type {}", mount.source, mount.kind);
            return Err(VolumeError::Other { at: at.to_owned(), what });
        }
        let directory = status::directory().unwrap_or_default();
        if status::hanging_server(&directory, &mount).is_some() {
            MountPlace::of(&mount).abort().map_err(HostError::system("abort the connection of a mount"))?;
            unmount_with_cover(&mount, OpenFiles::Keep)?;
            continue;
        }
        // Open files of a dead mount cannot be read anyway.
        let open_files = if is_served(&mount) { OpenFiles::Refuse } else { OpenFiles::Keep };
        unmount_with_cover(&mount, open_files)?;
    }
    Ok(())
}

/// A namespace as the name of a directory; Kubernetes gives DNS labels only.
fn plain(namespace: &str) -> &str {
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if namespace.bytes().all(is_label) { namespace } else { NO_NAMESPACE }
}

/// The cache of volumes without a known namespace; not a valid namespace.
const NO_NAMESPACE: &str = "_";

impl VolumeError {
    /// What kind of failure it is, for gRPC.
    pub(crate) fn code(&self) -> tonic::Code {
        match self {
            Self::NotPossible(_) | Self::NotADirectory { .. } => tonic::Code::InvalidArgument,
            Self::Other { .. } => tonic::Code::AlreadyExists,
            Self::Pending { .. } => tonic::Code::Aborted,
            Self::NotPublished { .. } => tonic::Code::NotFound,
            Self::SubPath { cause, .. } => match cause.kind() {
                io::ErrorKind::NotFound => tonic::Code::NotFound,
                io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => tonic::Code::InvalidArgument,
                _ => tonic::Code::Internal,
            },
            Self::Io { .. } => tonic::Code::Internal,
            Self::Host(report) => match report.code {
                Code::Failure => tonic::Code::Internal,
                Code::Usage => tonic::Code::InvalidArgument,
                Code::NotFound => tonic::Code::NotFound,
                Code::Authentication => tonic::Code::Unauthenticated,
                Code::Verification => tonic::Code::FailedPrecondition,
                Code::Network => tonic::Code::Unavailable,
            },
        }
    }
}
