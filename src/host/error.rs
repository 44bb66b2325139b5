//! Why a mount could not be made, served or handed on.

use std::io;
use std::path::PathBuf;

use super::channel::ChannelError;
use super::cover::Covers;
use super::image_store::ImageStoreError;
use super::kernel::KernelError;
use super::report::{Code, Report};
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

/// Why the host could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The reference makes no sense.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The platform makes no sense.
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
    /// A verifier does not allow the image, or cannot be asked.
    #[error(transparent)]
    Verifier(#[from] VerifierError),
    /// A layer could not be read.
    #[error(transparent)]
    Image(#[from] FsError),
    /// The kernel or fusermount3 refused.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel cannot show the image by itself.
    #[error("cannot mount by the kernel alone")]
    Kernel(#[from] KernelError),
    /// The mount would cover what it needs itself.
    #[error(transparent)]
    Covers(#[from] Covers),
    /// An overlay could not be laid over the image.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The image store cannot be used so.
    #[error(transparent)]
    ImageStore(#[from] ImageStoreError),
    /// There can be no bundle of the image.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A mount could not be taken away.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    /// Another process failed and said why.
    #[error("{}", .0.message)]
    Told(Report),
    /// The file with credentials that the user named cannot be read.
    #[error("cannot read the credentials in `{}`", path.display())]
    Authfile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There is no home directory and no cache directory was named.
    #[error("cannot tell where the cache is: {why}")]
    NoCacheDirectory {
        /// Why.
        why: String,
    },
    /// The mount point does not exist or cannot be looked at.
    #[error("cannot mount on `{}`", at.display())]
    MountPoint {
        /// As the user wrote it.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The mount point is no directory.
    #[error("cannot mount on `{}`: it is not a directory", at.display())]
    NotADirectory {
        /// As the user wrote it.
        at: PathBuf,
    },
    /// The directory for logs and sockets could be written to by others.
    #[error("`{}` is not a directory that only this user can write to", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Something of the run state cannot be written.
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
    /// A signal came while every layer was waited for.
    #[error("interrupted before every layer was verified")]
    InterruptedBeforeVerified,
    /// The mount was taken away while every layer was waited for.
    #[error("unmounted before every layer was verified")]
    UnmountedBeforeVerified,
    /// What the reference names now is not what was mounted.
    #[error("{reference} is not what was mounted: it names another manifest now")]
    OtherManifest {
        /// The reference.
        reference: Reference,
    },
    /// Options of a shared mount that the process's first mount has settled otherwise.
    #[error("the process that serves shared mounts of this cache has another {option}")]
    Conflict {
        /// The long flag, without its hyphens.
        option: &'static str,
    },
    /// The process that serves shared mounts ended, several times, before it had answered.
    #[error("the process that serves shared mounts ended early")]
    SharedEnded,
    /// The process in the background ended and said nothing.
    #[error("the background process ended early ({status})")]
    BackgroundEnded {
        /// How it ended.
        status: String,
    },
    /// Which files are open cannot be kept for the next process.
    #[error("cannot keep which files are open")]
    Opens(#[source] io::Error),
    /// A process, thread or signal handler cannot be had.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The limit of address space leaves too little.
    #[error("this process may take {} MiB more of address space, and needs {} MiB", left >> 20, needed.div_ceil(1 << 20))]
    NoRoom {
        /// Bytes that it may still take.
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
    /// The other process cannot be talked to.
    #[error("cannot talk to the {peer}")]
    Channel {
        /// Which process.
        peer: &'static str,
        /// Why.
        #[source]
        cause: ChannelError,
    },
    /// This process was started by hand in a role that peelfs itself starts.
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
            HostError::Told(report) => report,
            HostError::Authfile { ref cause, .. } if cause.kind() == io::ErrorKind::NotFound => told(Code::NotFound),
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
            HostError::Authfile { .. }
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
            HostError::NoThreads { .. } => told(Code::Failure).hint(
                "raise the limits of processes (`ulimit -u`, `pids.max` of its cgroup) and address space (`ulimit -v`)",
            ),
        }
    }
}

/// What a user can do about a verifier that did not say yes.
fn verifier_hint(report: Report, why: &VerifierError) -> Report {
    match why {
        VerifierError::Refused { .. } => report,
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

/// What a user can do about a mount that the kernel does not make.
fn kernel_hint(report: Report, why: &KernelError) -> Report {
    match why {
        KernelError::OpenToOthers => report.hint("say `--allow-other`, or mount without `--kernel always`"),
        KernelError::NotWhole => report.hint("let the cache hold all of the image (`--cache-size`, free disk)"),
        KernelError::Attach(AttachError::NotAllowed) => report.hint("mount as root, or without `--kernel always`"),
        KernelError::Attach(AttachError::FileSystem { .. }) => {
            report.hint("name a cache on another file system (`--cache-dir`), or mount without `--kernel always`")
        }
        _ => report.hint("mount without `--kernel always`"),
    }
}
