//! A mount request: which image, where, and how it is served.
//!
//! Everything is parsed and checked, and every path is absolute: it means the same in any process, directory and
//! environment. Front ends build it from their arguments; processes exchange a separate type ([`wire`](super::wire)),
//! so that a field added here cannot change what an older process understands.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use super::verifiers;
use crate::image::{IndexChoice, LayerChoice, Network, Prefetch, Verify, View};
use crate::platform::Platform;
use crate::reference::{Reference, ReferenceError, RegistryName};
use crate::source::outage::OnOutage;
use crate::source::registry::Surroundings;
use crate::source::registry::mirrors::Mirrors;

/// One mount.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// What is shown.
    pub image: ImageSpec,
    /// The mount point.
    pub at: PathBuf,
    /// Options for the kernel.
    pub kernel: KernelOptions,
    /// How it is served.
    pub policy: Policy,
    /// The log file, if the user gave one.
    pub log: Option<PathBuf>,
    /// Why a process serves it although a kernel mount was requested.
    pub by_fuse: Option<String>,
    /// Where an overlay puts changes, if it is writable.
    pub writable: Option<Writable>,
    /// Where the serving process tells its metrics over HTTP.
    pub metrics: Option<SocketAddr>,
}

/// Where changes to an image go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Writable {
    /// Into memory; discarded with the mount.
    Memory,
    /// Into a directory that is kept.
    Directory(PathBuf),
}

impl MountSpec {
    /// `image` on the directory `at`, with the defaults of `peelfs mount`.
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
            metrics: None,
        }
    }
}

/// Options for the kernel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KernelOptions {
    /// Other users may access the mount.
    pub allow_other: bool,
    /// Root may access the mount, besides the user who mounts.
    pub allow_root: bool,
    /// Set-user-id programs of the image work.
    pub suid: bool,
    /// Device nodes of the image work.
    pub dev: bool,
    /// Programs of the image do not run.
    pub noexec: bool,
    /// Idle CPUs may sleep between requests.
    pub let_cpus_sleep: bool,
}

/// One image, and how to reach it.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// As named by the user.
    pub reference: Reference,
    /// The requested platform; this machine's by default.
    pub platform: Option<Platform>,
    /// The only layer to show; all by default.
    pub layer: Option<LayerChoice>,
    /// How many layers to show, from the lowest; all by default.
    pub up_to: Option<NonZeroU16>,
    /// What of it is shown.
    pub view: View,
    /// How to reach it.
    pub access: Access,
    /// Where its layers are cached.
    pub cache: CacheSpec,
    /// Which indexes of its layers may be used.
    pub index: IndexChoice,
    /// Where indexes are looked for that others have pushed; they are used only if this is said.
    pub index_from: Option<IndexFrom>,
    /// The directory of [`verifiers`](super::verifiers), which all have to allow an artifact with such indexes. By default
    /// that of the machine, if there is one.
    pub index_verifiers: Option<PathBuf>,
    /// The directory of [`verifiers`](super::verifiers), which all have to allow the image; empty for none.
    pub verifiers: PathBuf,
}

impl ImageSpec {
    /// `reference` for this machine's platform, with the credentials and certificates of this process's user, the cache
    /// `cache`, and the machine's verifiers.
    pub fn new(reference: Reference, cache: impl Into<PathBuf>) -> Self {
        let access = Access {
            network: Network::Allowed,
            insecure: false,
            ca: Vec::new(),
            authfile: None,
            mirrors: Mirrors::default(),
            on_outage: OnOutage::default(),
            surroundings: Surroundings::of_process(),
        };
        let cache = CacheSpec { dir: cache.into(), limit: None };
        Self {
            reference,
            platform: None,
            layer: None,
            up_to: None,
            view: View::default(),
            access,
            cache,
            index: IndexChoice::default(),
            index_from: None,
            index_verifiers: None,
            verifiers: verifiers::DEFAULT_DIR.into(),
        }
    }
}

impl ImageSpec {
    /// The directory of verifiers that decide about artifacts with indexes, if there is one and such artifacts are looked for.
    pub(super) fn index_verifiers_in_force(&self) -> Option<PathBuf> {
        self.index_from.as_ref()?;
        // One that cannot be looked at is not passed over.
        let default = || Path::new(verifiers::DEFAULT_INDEX_DIR).try_exists().unwrap_or(true);
        self.index_verifiers.clone().or_else(|| default().then(|| verifiers::DEFAULT_INDEX_DIR.into()))
    }
}

/// The repository whose pushed indexes are trusted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IndexFrom {
    /// The image's own.
    Referrers,
    /// This one.
    Repository(RegistryName),
}

/// Why a text names no repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// It is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It names an image in it.
    #[error("`{text}` has a tag or a digest; name the repository alone")]
    TooMuch {
        /// As it was typed.
        text: String,
    },
}

/// A repository of a registry, without tag or digest, as in `docker://registry.example/team/indexes`; the transport may be
/// left out.
///
/// # Errors
/// [`RepositoryError`]
pub fn repository(text: &str) -> Result<RegistryName, RepositoryError> {
    let plain = text.strip_prefix("docker://").unwrap_or(text);
    if plain.contains("://") {
        // Says what is wrong with a URL.
        plain.parse::<Reference>()?;
    }
    let name: RegistryName = plain.parse()?;
    if name.digest().is_some() || plain.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        return Err(RepositoryError::TooMuch { text: text.to_owned() });
    }
    Ok(name)
}

impl std::str::FromStr for IndexFrom {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        if text == REFERRERS { Ok(Self::Referrers) } else { repository(text).map(Self::Repository) }
    }
}

impl std::fmt::Display for IndexFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Referrers => f.write_str(REFERRERS),
            Self::Repository(name) => write!(f, "{}/{}", name.authority(), name.repository()),
        }
    }
}

/// Stands for the image's own repository.
const REFERRERS: &str = "referrers";

/// How to reach a registry.
#[derive(Clone, Debug)]
pub struct Access {
    /// Whether the network may be used.
    pub network: Network,
    /// Plain HTTP and unverified TLS are allowed.
    pub insecure: bool,
    /// Further trusted certificates, PEM files.
    pub ca: Vec<PathBuf>,
    /// The credential file given by the user.
    pub authfile: Option<PathBuf>,
    /// Which mirrors are asked before the registry.
    pub mirrors: Mirrors,
    /// How long to wait for a registry that does not answer.
    pub on_outage: OnOutage,
    /// Where to look for credentials and certificates otherwise.
    pub surroundings: Surroundings,
}

/// A cache directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CacheSpec {
    /// The directory.
    pub dir: PathBuf,
    /// Limit in bytes for layers.
    pub limit: Option<u64>,
}

/// How to serve a mount.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// When bytes may be read.
    pub verify: Verify,
    /// What to prefetch.
    pub prefetch: Prefetch,
    /// The command waits until every layer is verified.
    pub wait: bool,
    /// Whether the kernel reads large files directly from the cache.
    pub passthrough: Passthrough,
}

/// Whether the kernel reads large files directly from the cache, which costs an open file each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Passthrough {
    /// No.
    Never,
    /// If the image is mostly large files, as far as it is indexed, and the kernel supports it.
    Auto,
    /// Yes.
    Always,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_repository_has_no_tag_whether_or_not_it_has_a_path() {
        for text in ["a:9", "r.example/a:9", "r.example:5000/a:9", "docker://r.example/a:9", "localhost:5000"] {
            assert!(matches!(repository(text), Err(RepositoryError::TooMuch { .. })), "{text}");
        }
        for text in ["a", "r.example:5000/a", "docker://r.example:5000/a/b"] {
            repository(text).unwrap();
        }
        let url = repository("http://r.example/a").unwrap_err().to_string();
        assert!(url.contains("it is a URL"), "{url}");
    }
}
