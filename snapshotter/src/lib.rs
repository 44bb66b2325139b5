//! A snapshotter for containerd (`containerd.services.snapshots.v1`, a proxy plugin). Images that containerd names are
//! not unpacked but mounted lazily, as the only lower directory of their containers' overlays. Everything else is
//! unpacked into directories, as by containerd's own overlay snapshotter.
//!
//! | module | knows |
//! |---|---|
//! | [`service`] | messages |
//! | [`snapshots`] | what requests do |
//! | [`records`] | what there is, on disk |
//! | [`images`] | whether an image can be mounted |
//! | [`image_service`], [`logins`], [`providers`] | who has a login for a registry |
//! | [`lowers`] | what is mounted |
//! | [`labels`], [`filter`] | what containerd says and asks |

mod config;
mod disk_usage;
mod filter;
mod image_service;
mod images;
mod labels;
mod logins;
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

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peelfs::host::endpoint::Endpoint;
use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::{inherited, process};
use peelfs_grpc::Socket;

use config::Config;
use image_service::ImageService;
use images::Images;
use logins::Logins;
use lowers::Lowers;
use proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use root::Root;
use service::{Owner, Service};
use snapshots::Snapshots;

/// The options of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket.
    pub address: PathBuf,
    /// The directory.
    pub root: PathBuf,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// containerd's socket, to which Kubernetes' image service is passed on; it is not served without.
    pub image_service: Option<PathBuf>,
    /// Where metrics are served over HTTP.
    pub metrics: Option<SocketAddr>,
}

pub use providers::answer as answer_for_credentials;

/// Serves until a signal ends it. Mounts stay, served by their own processes.
///
/// # Errors
/// [`Report`]
pub fn run(options: &Options) -> Result<(), Report> {
    if !rustix::process::geteuid().is_root() || process::is_in_user_namespace() {
        return Err(Report::new(
            Code::Failure,
            "only root can run the snapshotter: overlays are mounted on its directories",
        )
        .hint("without root, `peelfs run` runs containers, and podman has `peelfs mount`"));
    }
    let config = options.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
    let config = Arc::new(Config { learns_logins: options.image_service.is_some(), ..config });
    if options.image_service.as_ref() == Some(&options.address) {
        return Err(Report::usage("`--image-service` names the snapshotter's own socket")
            .hint("name containerd's, as in `/run/containerd/containerd.sock`"));
    }
    if config.learns_logins && config.authfile.is_some() {
        return Err(Report::usage("`--image-service` and `authfile` of the configuration exclude each other")
            .hint("logins that pulls bring come first; the other ones can be in `~/.docker/config.json`"));
    }
    let mut root = Root::take(&options.root)?;
    config.check(root.path())?;
    providers::write(root.path(), &config).map_err(HostError::system("write what asks for credentials"))?;
    process::raise_file_limit();
    let runtime = process::runtime_of_parent()?;
    let served = runtime.block_on(serve(options, &mut root, config));
    // Slow mounts are made by other processes.
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

async fn serve(options: &Options, root: &mut Root, config: Arc<Config>) -> Result<(), Report> {
    let inherited = inherited::take().map_err(HostError::system("take the service manager's socket"))?;
    let _metrics = Endpoint::of_all(options.metrics).await?;
    let socket = open(&options.address, inherited.into_values().next())?;
    let images = Arc::new(Images::new(root.path(), Arc::clone(&config))?);
    let lowers = Arc::new(Lowers::new(root.path(), Arc::clone(&config), Arc::clone(&images)));
    let snapshots = Snapshots::open(root.path(), images, lowers);
    let snapshots = snapshots.map_err(|error| {
        Report::new(Code::Failure, peelfs::image::chain(&error)).hint(format!(
            "remove that file, then its image or container; or stop containerd and remove all of `{}`",
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
    let services = services.add_optional_service(image_service(options, root)?);
    root.keep();
    let served = peelfs_grpc::serve(services, socket, ended).await;
    served.map_err(|error| Report::new(Code::Failure, peelfs::image::chain(&error)))
}

fn open(path: &std::path::Path, inherited: Option<std::os::fd::OwnedFd>) -> Result<Socket, Report> {
    Socket::open(path, inherited).map_err(|error| {
        let report = Report::new(Code::Failure, peelfs::image::chain(&error));
        error.hint().into_iter().fold(report, Report::hint)
    })
}

/// Kubernetes' image service, if it is asked for; the logins that it learns are given to the processes that serve images.
fn image_service(options: &Options, root: &Root) -> Result<Option<ImageService>, Report> {
    let Some(containerd) = &options.image_service else { return Ok(None) };
    let logins = Arc::new(Logins::default());
    let service = ImageService::new(containerd, Arc::clone(&logins));
    let service = service.map_err(|error| Report::usage(peelfs::image::chain(&error)))?;
    let socket = open(&providers::socket(root.path()), None);
    // The user does not choose its path.
    let socket = socket.map_err(|report| report.hint("name a directory with a shorter path with `--root`"))?;
    tokio::spawn(logins.serve(socket));
    Ok(Some(service))
}

const LOOK: Duration = Duration::from_secs(1);
