//! A snapshotter for containerd (`containerd.services.snapshots.v1`, a proxy plugin).
//!
//! Layers of images that containerd names are not unpacked: the image is mounted, lazily, and is the one lower directory of
//! the overlays of its containers. Everything else is unpacked into directories, as by containerd's own overlay snapshotter.
//!
//! | module | knows |
//! |---|---|
//! | [`service`] | messages |
//! | [`snapshots`] | what requests do |
//! | [`records`] | what there is, on disk |
//! | [`images`] | whether an image can be mounted |
//! | [`lowers`] | what is mounted |
//! | [`labels`], [`filter`] | what containerd says and asks |

mod config;
mod disk_usage;
mod filter;
mod images;
mod labels;
mod lowers;
mod providers;
mod records;
mod root;
mod service;
mod snapshots;

/// Messages; see `grpc/generate`.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
    /// containerd's.
    pub mod containerd {
        /// Types that services share.
        pub mod types {
            include!("generated/containerd.types.rs");
        }
        /// Services.
        pub mod services {
            /// Snapshots.
            pub mod snapshots {
                /// Version 1.
                pub mod v1 {
                    include!("generated/containerd.services.snapshots.v1.rs");
                }
            }
        }
    }
}

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::{inherited, process};
use peelfs_grpc::Socket;

use config::Config;
use images::Images;
use lowers::Lowers;
use proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use root::Root;
use service::{Owner, Service};
use snapshots::Snapshots;

/// What is asked for on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket.
    pub address: PathBuf,
    /// The directory.
    pub root: PathBuf,
    /// The configuration file.
    pub config: Option<PathBuf>,
}

pub use providers::answer as answer_for_credentials;

/// Serves until a signal ends it. What is mounted stays, served by processes of its own.
///
/// # Errors
/// [`Report`]
pub fn run(options: &Options) -> Result<(), Report> {
    if !rustix::process::geteuid().is_root() || process::is_in_user_namespace() {
        return Err(Report::new(
            Code::Failure,
            "only root can be a snapshotter: overlays are mounted on what it shows",
        )
        .hint("without root, `peelfs run` runs containers, and podman has `peelfs mount`"));
    }
    let config = Arc::new(options.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?);
    let root = Root::take(&options.root)?;
    config.check(root.path())?;
    providers::write(root.path(), &config.providers).map_err(HostError::system("write what asks for credentials"))?;
    process::raise_file_limit();
    let runtime = process::runtime_of_parent()?;
    let served = runtime.block_on(serve(options, &root, config));
    // A mount that takes its time is made by another process.
    runtime.shutdown_background();
    served
}

/// Now and then lets the kernel show images that processes serve.
async fn look_at_images(snapshots: Arc<Snapshots>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let snapshots = Arc::clone(&snapshots);
        if let Err(error) = tokio::task::spawn_blocking(move || snapshots.lowers.upgrade()).await {
            tracing::error!(%error, "cannot look at images");
        }
    }
}

async fn serve(options: &Options, root: &Root, config: Arc<Config>) -> Result<(), Report> {
    let inherited = inherited::take().map_err(HostError::system("take the service manager's socket"))?;
    let socket = Socket::open(&options.address, inherited.into_values().next()).map_err(|error| {
        let report = Report::new(Code::Failure, peelfs::image::chain(&error));
        error.hint().into_iter().fold(report, Report::hint)
    })?;
    let images = Arc::new(Images::new(root.path(), Arc::clone(&config))?);
    let lowers = Arc::new(Lowers::new(root.path(), Arc::clone(&config), Arc::clone(&images)));
    let snapshots = Snapshots::open(root.path(), images, lowers);
    let snapshots = snapshots.map_err(|error| {
        Report::new(Code::Failure, peelfs::image::chain(&error)).hint(format!(
            "remove that file, then the image or container it was of; or stop containerd and remove all of `{}`",
            root.path().display()
        ))
    })?;
    let snapshots = Arc::new(snapshots);
    tokio::spawn(look_at_images(Arc::clone(&snapshots)));
    let service = Service {
        snapshots,
        root: root.path().to_owned(),
        lazy: config.lazy,
        owner: Mutex::new(Owner { plugin: root.plugin().map(str::to_owned), process: None }),
    };
    let ended = peelfs_grpc::ended().map_err(HostError::system("listen to signals"))?;
    let services = tonic::transport::Server::builder().add_service(SnapshotsServer::new(service));
    let served = peelfs_grpc::serve(services, socket, ended).await;
    served.map_err(|error| Report::new(Code::Failure, peelfs::image::chain(&error)))
}

const LOOK: Duration = Duration::from_secs(1);
