//! `peelfs snapshotter`

use std::net::SocketAddr;
use std::path::PathBuf;

use peelfs::host::report::Report;
use peelfs::host::{http, open};
use peelfs_snapshotter::Options;

/// `peelfs snapshotter`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SnapshotterArgs {
    /// The socket, as named in containerd's configuration
    #[arg(long, value_name = "SOCKET")]
    pub address: PathBuf,
    /// The directory for snapshots, mounts and the cache; not shared with other programs
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve Kubernetes' image service as well, passed on to containerd at SOCKET: its pulls bring logins
    #[arg(long, value_name = "SOCKET")]
    pub image_service: Option<PathBuf>,
    /// Serve Prometheus metrics of all mounts of this user at http://ADDR/metrics; a port alone is one of loopback
    #[arg(long, value_name = "ADDR", value_parser = http::parse_address)]
    pub metrics: Option<SocketAddr>,
}

/// A credential helper of docker, for the processes that serve images of containerd.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CredentialArgs {
    /// The providers
    pub providers: PathBuf,
    /// The verb of the credential helper protocol
    pub verb: String,
}

pub(super) fn credentials(args: &CredentialArgs) -> Result<(), Report> {
    peelfs_snapshotter::answer_for_credentials(&args.providers, &args.verb)
}

pub(super) fn run(args: &SnapshotterArgs) -> Result<(), Report> {
    let SnapshotterArgs { address, root, config, image_service, metrics } = args;
    peelfs_snapshotter::run(&Options {
        address: open::absolute(address),
        root: open::absolute(root),
        config: config.as_ref().map(open::absolute),
        image_service: image_service.as_ref().map(open::absolute),
        metrics: *metrics,
    })
}
