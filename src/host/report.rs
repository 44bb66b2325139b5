//! Failures for the user: one line, one hint, one exit code.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use rustix::io::Errno;

use crate::bundle::BundleError;
use crate::codec::CodecError;
use crate::content::{PassError, TransferError, WindowsError};
use crate::fuse::{MountError, UnmountError};
use crate::host::cover::Covers;
use crate::host::writable::OverlayError;
use crate::image::{FsError, LayerFailure, PlanError};
use crate::platform::PlatformError;
use crate::reference::ReferenceError;
use crate::source::SourceError;
use crate::store::StoreError;

/// A failure for the user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// What failed, with its causes, in one line.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// The exit code.
    pub code: Code,
}

/// Exit codes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// 1: another failure.
    Failure,
    /// 2: the command line is wrong.
    Usage,
    /// 3: image, tag, platform or path not found.
    NotFound,
    /// 4: the registry requires (other) credentials.
    Authentication,
    /// 5: the data does not match its digest or signature.
    Verification,
    /// 6: the registry cannot be reached or gives no usable answer.
    Network,
}

impl Code {
    /// The number of the exit code.
    pub fn number(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Authentication => 4,
            Self::Verification => 5,
            Self::Network => 6,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        code.number().into()
    }
}

impl Report {
    /// A failure with an exit code and no hint.
    pub fn new(code: Code, message: impl Display) -> Self {
        Self { message: message.to_string(), hint: None, code }
    }

    /// A usage error.
    pub fn usage(message: impl Display) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Adds something that the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    fn maybe_hint(mut self, hint: Option<impl Display>) -> Self {
        self.hint = hint.map(|hint| hint.to_string());
        self
    }

    pub(super) fn of(code: Code, error: &dyn Error) -> Self {
        Self::new(code, crate::image::chain(error))
    }
}

impl From<ReferenceError> for Report {
    fn from(error: ReferenceError) -> Self {
        Self::of(Code::Usage, &error).maybe_hint(error.hint())
    }
}

impl From<PlatformError> for Report {
    fn from(error: PlatformError) -> Self {
        Self::of(Code::Usage, &error).hint(error.hint())
    }
}

impl From<StoreError> for Report {
    fn from(error: StoreError) -> Self {
        Self::of(Code::Failure, &error).hint("choose another cache directory with `--cache-dir`")
    }
}

impl From<TransferError> for Report {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Store(cause) => cause.into(),
            TransferError::Missing { .. } => {
                Self::of(Code::NotFound, &error).hint("read every layer once, as with `peelfs mount --wait`")
            }
            TransferError::TablesOnly => Self::of(Code::Failure, &error)
                .hint("other machines read these tables, too; `--index none` makes an index that can be carried"),
            TransferError::Windows { cause: WindowsError::Source(ref cause), .. } => {
                let Self { code, hint, .. } = Self::from_source(cause);
                Self { hint, ..Self::of(code, &error) }
            }
            TransferError::Windows { .. } => Self::of(Code::Failure, &error)
                .hint("name the repository that the index is from with `--index-from REGISTRY/REPOSITORY`"),
            TransferError::NotAnExport { .. } | TransferError::Index { .. } => Self::of(Code::Verification, &error),
            TransferError::Io(_) => Self::of(Code::Failure, &error),
        }
    }
}

impl From<SourceError> for Report {
    fn from(error: SourceError) -> Self {
        source(&error)
    }
}

impl Report {
    /// As its conversion, of an error that is part of another one.
    pub(super) fn from_source(error: &SourceError) -> Self {
        source(error)
    }
}

impl From<PassError> for Report {
    fn from(error: PassError) -> Self {
        layer(&error.into())
    }
}

impl From<PlanError> for Report {
    fn from(error: PlanError) -> Self {
        let told = |code| Self::of(code, &error);
        match &error {
            PlanError::Source(cause) => source(cause),
            PlanError::Document { cause, .. } => told(Code::Verification).maybe_hint(cause.hint()),
            PlanError::Corrupt { .. } => {
                told(Code::Verification).hint("the registry or a proxy changed it; try again, or another mirror")
            }
            PlanError::Inlined { .. } => told(Code::Verification)
                .hint("the image has `data` that does not match its digest; it has to be rebuilt"),
            PlanError::Choice { cause, .. } => told(Code::NotFound).maybe_hint(cause.hint()),
            PlanError::TooLarge { .. } => told(Code::Verification),
            PlanError::Name { .. } => told(Code::Verification)
                .hint("`--as-layout` shows the blobs by their digests, whatever they are called"),
            PlanError::Offline { .. } => told(Code::NotFound).hint("run it once without `--offline` to fetch it"),
        }
    }
}

impl From<FsError> for Report {
    fn from(error: FsError) -> Self {
        match &error {
            FsError::Layer { cause, .. } => layer(cause),
            FsError::Refused { .. } | FsError::TakesTooLong => {
                Self::of(Code::Verification, &error).hint("the image has to be rebuilt")
            }
            FsError::NotFound | FsError::NotADirectory | FsError::Loop => Self::of(Code::NotFound, &error),
            FsError::Read(_) => {
                let mut report = Self::of(Code::Verification, &error);
                if let FsError::Read(crate::content::ReadError::Source { cause, .. }) = &error {
                    let told = source(cause);
                    report.code = told.code;
                    report.hint = told.hint;
                }
                report
            }
            FsError::Disk(_) | FsError::Ended => Self::of(Code::Failure, &error),
            FsError::Malformed { .. } | FsError::NoSuchNode(_) | FsError::IsADirectory | FsError::NotAFile => {
                Self::of(Code::Failure, &error)
            }
        }
    }
}

/// What can be done where a thread or a process cannot be started.
pub(super) const TOO_FEW_PROCESSES: &str =
    "raise the limits of processes (`ulimit -u`, `pids.max` of its cgroup) and address space (`ulimit -v`)";

impl From<MountError> for Report {
    fn from(error: MountError) -> Self {
        let told = Self::of(Code::Failure, &error);
        let without = "mount without `--passthrough`";
        let cause = match &error {
            MountError::Taken { at, .. } => {
                let hint = format!("unmount it with `peelfs umount {}`", at.display());
                return Report { code: Code::Usage, ..told.hint(hint) };
            }
            MountError::NoDirectory { at, cause } => {
                return match cause.kind() {
                    std::io::ErrorKind::NotFound => {
                        Self { code: Code::NotFound, ..told }.hint(format!("make it with `mkdir -p {}`", at.display()))
                    }
                    std::io::ErrorKind::NotADirectory => Self { code: Code::Usage, ..told },
                    _ => told,
                };
            }
            MountError::Moved { .. } => return told.hint("mount again"),
            MountError::Refused { cause, .. } => cause,
            MountError::NoPassthrough => return told.hint(without),
            MountError::RefusedPassthrough(cause) => {
                return match cause.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::PERM) => told.hint(format!("only root outside of containers may use it; {without}")),
                    Some(Errno::LOOP) => told.hint(format!(
                        "the cache is on a stacked file system such as overlayfs; choose a directory on a disk file system with `--cache-dir`, or {without}"
                    )),
                    _ => told.hint(without),
                };
            }
        };
        match cause.kind() {
            std::io::ErrorKind::NotFound => told.hint("is FUSE there? `modprobe fuse`, and for users other than root `apt install fuse3`"),
            std::io::ErrorKind::PermissionDenied if told.message.contains("user_allow_other") => {
                told.hint("let root write `user_allow_other` into /etc/fuse.conf, or leave out `allow_other` and `allow_root`")
            }
            std::io::ErrorKind::PermissionDenied => told.hint(
                "users other than root need fusermount3 (`apt install fuse3`), a readable and writable /dev/fuse, and a mount point they own",
            ),
            // A thread or a process that could not be started.
            std::io::ErrorKind::WouldBlock => told.hint(TOO_FEW_PROCESSES),
            _ => told,
        }
    }
}

impl From<Covers> for Report {
    fn from(error: Covers) -> Self {
        Self::of(Code::Usage, &error).hint(error.hint())
    }
}

impl From<OverlayError> for Report {
    fn from(error: OverlayError) -> Self {
        let told = Self::of(Code::Failure, &error);
        match &error {
            OverlayError::Directory { .. } => told,
            OverlayError::Covered { .. } => Self { code: Code::Usage, ..told }.hint("choose a directory outside it"),
            OverlayError::InUse { .. } => told.hint("unmount that first, or choose another directory"),
            OverlayError::OtherImage { path, .. } => Self { code: Code::Usage, ..told }
                .hint(format!("choose another directory, or start over with `rm -r {}`", path.display())),
            OverlayError::NotAllowed => told.hint("`peelfs run` works for other users, too; or mount as root"),
            OverlayError::Refused { .. } => {
                told.hint("changes need a disk file system or tmpfs: no overlay, NFS or FUSE")
            }
        }
    }
}

impl From<BundleError> for Report {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::NoUser { .. } | BundleError::NoGroup { .. } => {
                Self::of(Code::NotFound, &error).hint("give an existing one, or a number, with `--user`")
            }
            BundleError::Configuration { .. } => Self::of(Code::Verification, &error),
            BundleError::InProc { .. } => {
                Self::of(Code::Usage, &error).hint("choose a directory of the container's own")
            }
            // What gives a command is the front end's.
            BundleError::NoCommand
            | BundleError::Variable { .. }
            | BundleError::Zero { .. }
            | BundleError::Path { .. }
            | BundleError::OnRoot { .. }
            | BundleError::Number { .. } => Self::of(Code::Usage, &error),
        }
    }
}

impl From<UnmountError> for Report {
    fn from(error: UnmountError) -> Self {
        let told = Self::of(Code::Failure, &error);
        match &error {
            UnmountError::Busy { at } => told.hint(format!(
                "end those processes (`fuser -vm {0}` lists them), or detach with `peelfs umount --lazy {0}`",
                at.display()
            )),
            UnmountError::Below { below, .. } => {
                let command = if below.is_peelfs() { "peelfs umount" } else { "umount" };
                told.hint(format!("unmount that first: `{command} {}`", below.path.display()))
            }
            UnmountError::NoHelper { .. } => told.hint("install it with `apt install fuse3`"),
            UnmountError::Refused { .. } => told,
        }
    }
}

fn layer(failure: &LayerFailure) -> Report {
    let told = |code| Report::of(code, failure);
    match failure {
        LayerFailure::Pass(PassError::Source { cause, .. }) => {
            let inner = source(cause);
            told(inner.code).maybe_hint(inner.hint)
        }
        LayerFailure::Pass(PassError::DiffId { padding: Some(_), .. }) => told(Code::Verification).hint(
            "skopeo 1.9 loses the padding of a tar when it writes zstd:chunked; copy the image again with a newer skopeo, \
             or with `--dest-compress-format gzip`",
        ),
        LayerFailure::Pass(PassError::Blob { .. } | PassError::DiffId { .. }) => {
            told(Code::Verification).hint("the image or its transfer is broken; the layer was discarded")
        }
        LayerFailure::Pass(PassError::Codec { cause: CodecError::ZstdWindow { .. }, .. }) => told(Code::Failure)
            .hint("compress the layer again with a smaller window: at most `zstd --long=28`, or without `--long`"),
        LayerFailure::Pass(PassError::Codec { cause: CodecError::TooLong { .. } | CodecError::Ratio { .. }, .. }) => {
            told(Code::Failure)
        }
        LayerFailure::Pass(PassError::Codec { cause: CodecError::Foreign { .. }, .. }) => {
            told(Code::Failure).hint("push the image again with a current tool; layers are tar, tar+gzip or tar+zstd")
        }
        LayerFailure::Pass(PassError::Codec { .. } | PassError::Tar { .. }) | LayerFailure::ShownOtherwise { .. } => {
            told(Code::Verification)
        }
        LayerFailure::Pass(PassError::Index { .. } | PassError::Ended { .. }) | LayerFailure::Damaged { .. } => {
            told(Code::Failure)
        }
    }
}

fn source(error: &SourceError) -> Report {
    let told = |code| Report::of(code, error);
    match error {
        SourceError::NotFound { said, hint, .. } => {
            let report = told(Code::NotFound);
            match said {
                Some(said) => Report { message: format!("{}: {said}", report.message), ..report },
                None => report,
            }
            .maybe_hint(hint.as_ref())
        }
        SourceError::Denied { place, tried, .. } => {
            let report = told(Code::Authentication);
            Report { message: format!("{} (tried: {tried})", report.message), ..report }
                .hint(format!("log in with `podman login {place}` or `docker login {place}`, or pass `--authfile`"))
        }
        SourceError::Unreachable { hint: Some(hint), .. } => told(Code::Network).hint(hint),
        SourceError::Unreachable { hint: None, .. } => told(Code::Network)
            .hint("check the network and the name of the registry; what is cached can be used with `--offline`"),
        SourceError::Protocol { .. } => told(Code::Network),
        SourceError::Corrupt { .. } | SourceError::WrongSize { .. } => told(Code::Verification),
        SourceError::Unsupported { hint, .. } => told(Code::Failure).maybe_hint(hint.as_ref()),
        SourceError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => told(Code::NotFound),
        SourceError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::Deadlock => told(Code::Failure)
            .hint("it is in a mount of the same process: mount without `--share`, or on another directory"),
        SourceError::Io { .. } => told(Code::Failure),
    }
}
