//! An [image store](crate::image_store) on this machine: its directory, the process that serves it, and its images.
//!
//! `DIR` is the store: empty on disk, with images while it is served. Beside it, `DIR.images` holds a [record](records)
//! of each image, from which it is opened again whenever the store is served, without the registry. Commands write
//! records and notify the serving process over a socket in the same directory.
//!
//! That process has a [keeper](super::keeper), which starts another one when it dies. The next one uses the records, those
//! of removed images included, and the node numbers stored beside them.

mod command;
mod life;
mod records;
mod server;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use command::{Added, add, list, remove, serve};

pub(super) use life::{Handed, PreparedStore, StoreMount};
pub use life::{SOURCE, StoreHandover};
pub use records::Listed;

use super::report::Code;
use super::spec::CacheSpec;
use crate::source::outage::OnOutage;

/// A store to serve.
#[derive(Clone, Debug)]
pub struct StoreSpec {
    /// The directory that engines use.
    pub at: PathBuf,
    /// Where layers are cached.
    pub cache: CacheSpec,
    /// How long readers wait for a registry.
    pub on_outage: OnOutage,
    /// Other users' engines may use it.
    pub allow_other: bool,
    /// Where the serving process tells its metrics over HTTP.
    pub metrics: Option<SocketAddr>,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageStoreError {
    /// One of its directories or files cannot be created, read or written.
    #[error("cannot use `{}`", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The directory holds something else.
    #[error("`{}` is neither an empty directory nor a store of peelfs", at.display())]
    Foreign {
        /// The directory.
        at: PathBuf,
    },
    /// A process serves it already.
    #[error("the store `{}` is already being served", at.display())]
    Served {
        /// The directory.
        at: PathBuf,
    },
    /// It was unmounted, and is still used.
    #[error("containers, or other mount namespaces, still use the store `{}` as it was before it was unmounted", at.display())]
    InUse {
        /// The directory.
        at: PathBuf,
    },
    /// The record of an image cannot be parsed.
    #[error("`{}` is not a record of an image: {why}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// There is no such image in it.
    #[error("the store `{}` has no image `{name}`", at.display())]
    NoImage {
        /// The directory.
        at: PathBuf,
        /// Name or id.
        name: String,
    },
    /// Several images have ids with this prefix.
    #[error("the store `{}` has several images whose ids begin with `{name}`", at.display())]
    Ambiguous {
        /// The directory.
        at: PathBuf,
        /// The prefix.
        name: String,
    },
    /// Engines do not accept the name.
    #[error("`{name}` is not a name for an image in a store")]
    Name {
        /// The name.
        name: String,
    },
    /// A document of the image is not UTF-8.
    #[error("the image's documents are not UTF-8, which engines cannot read")]
    Documents,
}

impl ImageStoreError {
    fn file(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::File { path: path.clone(), cause }
    }

    /// The exit code.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoImage { .. } => Code::NotFound,
            Self::Name { .. } | Self::Ambiguous { .. } => Code::Usage,
            Self::File { .. }
            | Self::Foreign { .. }
            | Self::Served { .. }
            | Self::InUse { .. }
            | Self::Record { .. }
            | Self::Documents => Code::Failure,
        }
    }

    /// What the user can do.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Foreign { .. } => Some("choose a separate directory, not an engine's own storage".to_owned()),
            Self::Served { at } => {
                Some(format!("`peelfs store add IMAGE --store {}` adds an image to it", at.display()))
            }
            Self::InUse { .. } => Some(
                "it can be served again when they have ended; `podman system migrate` ends what podman keeps of a user, \
                 and `peelfs upgrade DIR` exchanges the process of a store while containers run"
                    .to_owned(),
            ),
            Self::NoImage { .. } => Some("`peelfs store list` lists them".to_owned()),
            Self::Ambiguous { .. } => Some("use a longer prefix".to_owned()),
            Self::Name { .. } => Some("write names like `localhost/app:1`".to_owned()),
            Self::Record { path, .. } => Some(format!("remove `{}`, and add the image again", path.display())),
            Self::File { .. } | Self::Documents => None,
        }
    }
}

/// The default directory of the store.
///
/// # Errors
/// [`super::error::HostError::NoCacheDirectory`]
pub fn default_directory() -> Result<PathBuf, super::error::HostError> {
    use etcetera::BaseStrategy as _;
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(SYSTEM));
    }
    let base = etcetera::choose_base_strategy();
    let base = base.map_err(|error| super::error::HostError::NoCacheDirectory { why: error.to_string() })?;
    Ok(base.data_dir().join("peelfs/store"))
}

/// The directory of the records of the store `at`.
fn records_of(at: &Path) -> PathBuf {
    let mut path = at.as_os_str().to_owned();
    path.push(".images");
    path.into()
}

const SYSTEM: &str = "/var/lib/peelfs/store";
