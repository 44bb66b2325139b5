//! What is asked for: which image, where it is mounted, and how it is served.
//!
//! Everything in here is parsed and checked, and every path of a mount is absolute: it means the same in any process,
//! directory and environment. Front ends make it out of their own arguments; what travels between processes is a type of its own
//! ([`wire`](super::wire)), so that a field added here cannot change what an older process understands.

use std::num::NonZeroU16;
use std::path::PathBuf;

use super::verifiers;
use crate::image::{LayerChoice, Network, Prefetch, Verify};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::source::outage::OnOutage;
use crate::source::registry::Surroundings;

/// One mount.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// What is shown.
    pub image: ImageSpec,
    /// The mount point.
    pub at: PathBuf,
    /// What the kernel is told.
    pub kernel: KernelOptions,
    /// How it is served.
    pub policy: Policy,
    /// Where the log is written, if the user named a file.
    pub log: Option<PathBuf>,
    /// Why a process serves it, where the kernel was to show it by itself.
    pub by_fuse: Option<String>,
    /// An overlay takes what is written to the mount.
    pub writable: Option<Writable>,
}

/// Where what is written over an image goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Writable {
    /// Into memory; it is gone with the mount.
    Memory,
    /// Into a directory, where it stays.
    Kept(PathBuf),
}

impl MountSpec {
    /// `image` on the directory `at`, as `peelfs mount` does without options.
    pub fn new(image: ImageSpec, at: impl Into<PathBuf>) -> Self {
        let policy = Policy {
            verify: Verify::BeforeShowing,
            prefetch: Prefetch::default(),
            wait: false,
            passthrough: Passthrough::Never,
        };
        Self {
            image,
            at: at.into(),
            kernel: KernelOptions::default(),
            policy,
            log: None,
            by_fuse: None,
            writable: None,
        }
    }
}

/// What the kernel is told of a mount.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KernelOptions {
    /// Other users may enter.
    pub allow_other: bool,
    /// Root may enter, besides the user who mounts.
    pub allow_root: bool,
    /// Set-user-id programs of the image work.
    pub suid: bool,
    /// Device nodes of the image work.
    pub dev: bool,
    /// Programs of the image do not run.
    pub noexec: bool,
    /// Idle CPUs may sleep while requests come in quick succession.
    pub let_cpus_sleep: bool,
    /// It lies below an overlay, which the image must not steer.
    pub under_overlay: bool,
}

/// One image, and how it is reached.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// What the user named.
    pub reference: Reference,
    /// The platform that the user asked for; this machine's otherwise.
    pub platform: Option<Platform>,
    /// The layer that is shown alone; all of them otherwise.
    pub layer: Option<LayerChoice>,
    /// How many of its layers are shown, counted from the lowest; all of them otherwise.
    pub up_to: Option<NonZeroU16>,
    /// How it is reached.
    pub access: Access,
    /// Where its layers are kept.
    pub cache: CacheSpec,
    /// The directory of programs that have to allow it ([`verifiers`](super::verifiers)); none are asked where it is empty.
    pub verifiers: PathBuf,
}

impl ImageSpec {
    /// `reference` for this machine's platform, with the credentials and certificates of this process's user, a cache
    /// in `cache`, and the machine's verifiers.
    pub fn new(reference: Reference, cache: impl Into<PathBuf>) -> Self {
        let access = Access {
            network: Network::Allowed,
            insecure: false,
            ca: Vec::new(),
            authfile: None,
            on_outage: OnOutage::default(),
            surroundings: Surroundings::of_process(),
        };
        let cache = CacheSpec { dir: cache.into(), limit: None };
        Self {
            reference,
            platform: None,
            layer: None,
            up_to: None,
            access,
            cache,
            verifiers: verifiers::DEFAULT_DIR.into(),
        }
    }
}

/// How a registry is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// Whether the network may be asked.
    pub network: Network,
    /// Plain HTTP and unverified TLS are allowed.
    pub insecure: bool,
    /// Further trusted certificates, PEM files.
    pub ca: Vec<PathBuf>,
    /// The file with credentials that the user named.
    pub authfile: Option<PathBuf>,
    /// How long is waited for it while it is away or does not answer.
    pub on_outage: OnOutage,
    /// Where credentials and certificates are looked for otherwise.
    pub surroundings: Surroundings,
}

/// A cache directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CacheSpec {
    /// The directory.
    pub dir: PathBuf,
    /// Bytes that layers may take.
    pub limit: Option<u64>,
}

/// How a mount is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// When bytes may be shown.
    pub verify: Verify,
    /// What is fetched before it is read.
    pub prefetch: Prefetch,
    /// The command returns when every layer is verified.
    pub wait: bool,
    /// Whether the kernel reads large files from files of the cache.
    pub passthrough: Passthrough,
}

/// Whether the kernel reads large files from files of the cache by itself, for which every file has to be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Passthrough {
    /// No.
    Never,
    /// If the image is known to be mostly large files, and the kernel does so.
    Auto,
    /// Yes.
    Always,
}
