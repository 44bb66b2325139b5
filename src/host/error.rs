//! Errors of the mount service.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::channel::ChannelError;
use super::cover::Covers;
use super::image_store::ImageStoreError;
use super::kernel::KernelError;
use super::report::{Code, Report, TOO_FEW_PROCESSES};
use super::verifiers::VerifierError;
use super::wire::WireError;
use super::writable::OverlayError;
use crate::bundle::BundleError;
use crate::erofs::AttachError;
use crate::fuse::{MountError, UnmountError};
use crate::image::{FsError, NoSuchLayer, PlanError};
use crate::platform::PlatformError;
use crate::reference::{Reference, ReferenceError};
use crate::source::SourceError;
use crate::store::StoreError;

/// Why the host could not do what was requested.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The reference is invalid.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The platform is invalid.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The cache cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The reference could not be resolved.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The image has no such layer.
    #[error("{reference}: {cause}")]
    Layer {
        /// The image.
        reference: String,
        /// Why not.
        cause: Box<NoSuchLayer>,
    },
    /// A verifier refused the image, or cannot be run.
    #[error(transparent)]
    Verifier(#[from] VerifierError),
    /// A layer could not be read.
    #[error(transparent)]
    Image(#[from] FsError),
    /// The kernel or fusermount3 refused.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel cannot mount the image.
    #[error("cannot make a kernel mount")]
    Kernel(#[from] KernelError),
    /// The mount would hide what it needs itself.
    #[error(transparent)]
    Covers(#[from] Covers),
    /// An overlay could not be mounted over the image.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The image store cannot be used.
    #[error(transparent)]
    ImageStore(#[from] ImageStoreError),
    /// No bundle can be made of the image.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A mount could not be unmounted.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    /// Another process failed with this error.
    #[error("{}", .0.message)]
    Reported(Report),
    /// A file of credentials or certificates that the user has given cannot be read.
    #[error("cannot read the {what} in `{}`", path.display())]
    Unreadable {
        /// What it has.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There is no home directory and no cache directory was given.
    #[error("there is no default cache directory: {why}")]
    NoCacheDirectory {
        /// Why.
        why: String,
    },
    /// The mount point does not exist or cannot be accessed.
    #[error("cannot mount on `{}`", at.display())]
    MountPoint {
        /// As typed by the user.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The mount point is not a directory.
    #[error("cannot mount on `{}`: it is not a directory", at.display())]
    NotADirectory {
        /// As typed by the user.
        at: PathBuf,
    },
    /// Other users could write to the directory for logs and sockets.
    #[error("`{}` is not a directory that only this user can write to", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the runtime directory cannot be written.
    #[error("cannot write `{}`", path.display())]
    RunState {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The log cannot be written.
    #[error("cannot write the log `{}`", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A signal came before the mount was made.
    #[error("interrupted before the image was mounted")]
    InterruptedBeforeMount,
    /// A signal came while waiting for every layer.
    #[error("interrupted before every layer was verified")]
    InterruptedBeforeVerified,
    /// It was unmounted while waiting for every layer.
    #[error("unmounted before every layer was verified")]
    UnmountedBeforeVerified,
    /// The reference resolves to another manifest now.
    #[error("{reference} now names another manifest than the one that was mounted")]
    OtherManifest {
        /// The reference.
        reference: Reference,
    },
    /// Options of a shared mount that differ from those of the process.
    #[error("the process that serves shared mounts of this cache has another {option}")]
    Conflict {
        /// The long flag, without its hyphens.
        option: &'static str,
    },
    /// Metrics cannot be served there.
    #[error("cannot serve metrics at {address}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The process for shared mounts ended several times before it answered.
    #[error("the process that serves shared mounts ended early")]
    SharedEnded,
    /// The background process ended without a message.
    #[error("the background process ended early ({status})")]
    BackgroundEnded {
        /// How it ended.
        status: String,
    },
    /// The record of open files cannot be kept for the next process.
    #[error("cannot keep the record of open files")]
    Opens(#[source] io::Error),
    /// A process, thread or signal handler cannot be created.
    #[error("cannot {what}")]
    System {
        /// The operation.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The limit of address space is too low.
    #[error("this process may take {} MiB more of address space, and needs {} MiB", left >> 20, needed.div_ceil(1 << 20))]
    NoRoom {
        /// Bytes that it may still use.
        left: u64,
        /// Bytes that it needs.
        needed: u64,
    },
    /// The limit of open files is too low.
    #[error("this process may open {limit} files, and needs {needed}")]
    NoFiles {
        /// How many it may have open.
        limit: u64,
        /// How many it needs.
        needed: u64,
    },
    /// Too few threads can be started.
    #[error("cannot start threads")]
    NoThreads {
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Messages cannot be exchanged with the other process.
    #[error("cannot communicate with the {peer}")]
    Channel {
        /// Which process.
        peer: &'static str,
        /// Why.
        #[source]
        cause: ChannelError,
    },
    /// The user started this process in a role that is internal.
    #[error("`peelfs host` is for peelfs itself")]
    NotStartedByPeelfs,
}

impl HostError {
    /// A system call that failed.
    pub fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::System { what, cause }
    }
}

impl From<HostError> for Report {
    fn from(error: HostError) -> Self {
        let told = |code| Report::of(code, &error);
        match error {
            HostError::Reference(cause) => cause.into(),
            HostError::Platform(cause) => cause.into(),
            HostError::Store(cause) => cause.into(),
            HostError::Source(cause) => cause.into(),
            HostError::Plan(cause) => cause.into(),
            HostError::Verifier(ref cause) => verifier_hint(told(Code::Verification), cause),
            HostError::Image(cause) => cause.into(),
            HostError::Mount(cause) => cause.into(),
            HostError::Kernel(ref cause) => kernel_hint(told(Code::Failure), cause),
            HostError::Covers(cause) => cause.into(),
            HostError::Overlay(cause) => cause.into(),
            HostError::ImageStore(ref cause) => {
                let report = told(cause.code());
                match cause.hint() {
                    Some(hint) => report.hint(hint),
                    None => report,
                }
            }
            HostError::Bundle(cause) => cause.into(),
            HostError::Unmount(cause) => cause.into(),
            HostError::Reported(report) => report,
            HostError::Unreadable { ref cause, .. } if cause.kind() == io::ErrorKind::NotFound => told(Code::NotFound),
            HostError::NoCacheDirectory { .. } => told(Code::Usage).hint("name a directory with `--cache-dir`"),
            HostError::MountPoint { ref at, .. } => {
                told(Code::NotFound).hint(format!("make it with `mkdir -p {}`", at.display()))
            }
            HostError::NotADirectory { .. } => told(Code::Usage),
            HostError::UnsafeDirectory { .. } => {
                told(Code::Failure).hint("remove it, or set XDG_RUNTIME_DIR to a directory of your own")
            }
            HostError::OtherManifest { .. } => told(Code::Verification),
            HostError::Conflict { option } => {
                told(Code::Usage).hint(format!("leave out `--{option}`, or mount without `--share`"))
            }
            HostError::Metrics { .. } => {
                told(Code::Failure).hint("name another port with `--metrics`, or 0 for one that is free")
            }
            HostError::Layer { .. } => {
                told(Code::NotFound).hint("`peelfs inspect` lists the layers with their numbers")
            }
            HostError::SharedEnded => told(Code::Failure)
                .hint("its log is in the directory that `peelfs status` shows; mount without `--share`"),
            HostError::Channel { cause: ChannelError::Wire(WireError::TooLarge { .. }), .. } => {
                told(Code::Usage).hint("use fewer or shorter paths in the options")
            }
            HostError::Channel {
                cause: ChannelError::Wire(WireError::NoVersion { .. } | WireError::Refused { .. }),
                ..
            } => told(Code::Failure).hint("unmount what the older program serves, and mount it again"),
            HostError::NotStartedByPeelfs => told(Code::Usage).hint("mount an image with `peelfs mount`"),
            HostError::Unreadable { .. }
            | HostError::RunState { .. }
            | HostError::Log { .. }
            | HostError::InterruptedBeforeMount
            | HostError::InterruptedBeforeVerified
            | HostError::UnmountedBeforeVerified
            | HostError::BackgroundEnded { .. }
            | HostError::Opens(_)
            | HostError::System { .. }
            | HostError::Channel { .. } => told(Code::Failure),
            HostError::NoRoom { .. } => told(Code::Failure).hint("raise the limit of address space (`ulimit -v`)"),
            HostError::NoFiles { .. } => told(Code::Failure).hint("raise the limit of open files (`ulimit -n`)"),
            HostError::NoThreads { .. } => told(Code::Failure).hint(TOO_FEW_PROCESSES),
        }
    }
}

/// What the user can do about a verifier that did not allow the image.
fn verifier_hint(report: Report, why: &VerifierError) -> Report {
    match why {
        VerifierError::Refused { .. } | VerifierError::None { .. } => report,
        VerifierError::NoDirectory { .. } => report
            .hint("correct the directory, or make it: an empty one refuses no image, and allows no index of others"),
        VerifierError::Late { .. } => report.hint("try again, or end what it waits for"),
        VerifierError::CannotRun { .. } | VerifierError::NotAProgram { .. } => {
            report.hint("every file of that directory is run: make it a program, or remove it")
        }
        VerifierError::Unsafe { path, .. } => {
            report.hint(format!("`chown root {0}` and `chmod go-w {0}`", path.display()))
        }
        VerifierError::TooMany { .. } => report.hint("let one of them call the others"),
        VerifierError::Unreadable { .. } => report.hint("name the directory of verifiers with `--verifier-dir`"),
    }
}

/// What the user can do about a failed kernel mount.
fn kernel_hint(report: Report, why: &KernelError) -> Report {
    match why {
        KernelError::OpenToOthers => report.hint("add `--allow-other`, or mount without `--kernel always`"),
        KernelError::NotWhole => report.hint("let the cache hold all of the image (`--cache-size`, free disk)"),
        KernelError::Attach(AttachError::NotAllowed) => report.hint("mount as root, or without `--kernel always`"),
        KernelError::Attach(AttachError::FileSystem { .. }) => {
            report.hint("use a cache on another file system (`--cache-dir`), or mount without `--kernel always`")
        }
        _ => report.hint("mount without `--kernel always`"),
    }
}
