//! `peelfs csi`

use std::net::SocketAddr;
use std::path::PathBuf;

use super::args::AccessArgs;
use super::specs;
use peelfs::host::report::Report;
use peelfs::host::spec::{ImageSpec, IndexFrom};
use peelfs::host::{http, open};
use peelfs_csi::{DRIVER, Node, Options, REGISTRY};

/// `peelfs csi`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CsiArgs {
    /// The socket to serve on, as `unix:///var/lib/kubelet/plugins/NAME/csi.sock`
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT", hide_env_values = true)]
    pub endpoint: String,
    /// The node's name in Kubernetes
    #[arg(long, value_name = "NAME", env = "NODE_ID", hide_env_values = true)]
    pub node_id: String,
    /// The plugin's name, by which volumes name it
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub driver_name: String,
    /// Register with the kubelet, which finds the socket at this path
    #[arg(long, value_name = "PATH")]
    pub kubelet_registration_path: Option<PathBuf>,
    /// The directory of the kubelet's plugin sockets
    #[arg(long, value_name = "DIR", default_value = REGISTRY)]
    pub plugin_registration_dir: PathBuf,
    /// The directory for the state of published volumes; it must be empty after a reboot
    #[arg(long, value_name = "DIR", default_value = "/run/peelfs-csi")]
    pub state_dir: PathBuf,
    /// Use one cache per namespace, so that pods of different namespaces share no layers
    #[arg(long)]
    pub separate_namespaces: bool,
    /// Run the processes that serve mounts in this control group, so that they outlive the plugin's pod
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Use the indexes of layers that `peelfs index push` has put into REPO, or, for `referrers`, into each image's own
    /// repository; its writers are trusted for names and attributes
    #[arg(long, value_name = "REPO", env = "PEELFS_INDEX_FROM", hide_env_values = true)]
    pub index_from: Option<IndexFrom>,
    /// Use such indexes only if the verifiers in this directory allow the artifact that they are in
    /// [default: /etc/peelfs/index-verifiers, if there is one]
    #[arg(long, value_name = "DIR", env = "PEELFS_INDEX_VERIFIER_DIR", hide_env_values = true)]
    pub index_verifier_dir: Option<PathBuf>,
    /// Serve Prometheus metrics of all mounts of this user at http://ADDR/metrics; a port alone is one of loopback
    #[arg(long, value_name = "ADDR", value_parser = http::parse_address)]
    pub metrics: Option<SocketAddr>,
    /// How to reach images.
    #[command(flatten)]
    pub access: AccessArgs,
}

pub(super) fn run(args: &CsiArgs) -> Result<(), Report> {
    let CsiArgs { endpoint, node_id, driver_name, kubelet_registration_path, .. } = args;
    let ImageSpec { access, cache, verifiers, platform, .. } = specs::access_with_absolute_paths(&args.access)?;
    let registry = open::absolute(&args.plugin_registration_dir);
    peelfs_csi::run(&Options {
        endpoint: endpoint.clone(),
        node_id: node_id.clone(),
        driver: driver_name.clone(),
        metrics: args.metrics,
        registration: kubelet_registration_path.as_ref().map(|path| (open::absolute(path), registry)),
        node: Node {
            access,
            cache,
            verifiers,
            platform,
            index_from: args.index_from.clone(),
            index_verifiers: args.index_verifier_dir.as_ref().map(open::absolute),
            separate_namespaces: args.separate_namespaces,
            cgroup: args.cgroup.as_ref().map(open::absolute),
            state: open::absolute(&args.state_dir),
        },
    })
}
