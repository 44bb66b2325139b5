//! A CSI plugin (Container Storage Interface 1.12): volumes of Kubernetes that show images, mounted lazily.
//!
//! It serves the identity and node services; there is nothing to provision, so it has no controller. It registers with
//! the kubelet. Mounts are served by separate processes, which continue when the plugin ends.
//!
//! | module | knows |
//! |---|---|
//! | [`service`] | messages |
//! | [`registration`] | the kubelet |
//! | [`volumes`] | what publishing and unpublishing do |
//! | [`attributes`] | parsing of a volume's attributes |
//! | [`login`] | secrets |
//! | [`sub_path`] | how a directory of an image is shown |

mod attributes;
mod login;
mod registration;
mod service;
mod sub_path;
mod volumes;

/// Messages; see `grpc/generate`.
pub mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
    /// The interface.
    pub mod csi {
        /// Version 1.
        pub mod v1 {
            include!("generated/csi.v1.rs");
        }
    }
    /// The kubelet's.
    pub mod pluginregistration {
        include!("generated/pluginregistration.rs");
    }
}

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use peelfs::host::endpoint::Endpoint;
use peelfs::host::error::HostError;
use peelfs::host::process;
use peelfs::host::report::{Code, Report};
use peelfs::image::chain;
use peelfs_grpc::Socket;
use tokio::sync::Notify;
use tonic::transport::Server;

use generated::csi::v1::identity_server::IdentityServer;
use generated::csi::v1::node_server::NodeServer;
use generated::pluginregistration::registration_server::RegistrationServer;
use registration::Registration;
use service::Plugin;
pub use volumes::Node;
use volumes::Volumes;

/// The default name of the plugin in volumes and the `CSIDriver` object.
pub const DRIVER: &str = "csi.peelfs.example";

/// The directory of the kubelet's plugin sockets.
pub const REGISTRY: &str = "/var/lib/kubelet/plugins_registry";

/// The options of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket, as `unix:///path`, `unix:/path` or a path.
    pub endpoint: String,
    /// The node's name.
    pub node_id: String,
    /// The plugin's name.
    pub driver: String,
    /// Where the kubelet finds the socket, and the directory of its plugins; without it nothing is registered.
    pub registration: Option<(PathBuf, PathBuf)>,
    /// Where metrics are served over HTTP.
    pub metrics: Option<SocketAddr>,
    /// Settings for all volumes.
    pub node: Node,
}

/// Serves until a signal ends it, or the kubelet refuses it.
///
/// # Errors
/// [`Report`]
pub fn run(options: &Options) -> Result<(), Report> {
    if !rustix::process::geteuid().is_root() || process::is_in_user_namespace() {
        return Err(Report::new(Code::Failure, "only root can publish volumes: other users' containers read them")
            .hint("run it as a DaemonSet with `privileged: true`, or as a service of the machine"));
    }
    check(options)?;
    process::raise_file_limit();
    let runtime = process::runtime_of_parent()?;
    let served = runtime.block_on(serve(options));
    // Slow mounts are made by other processes.
    runtime.shutdown_background();
    served
}

/// Checks names against the specification.
fn check(options: &Options) -> Result<(), Report> {
    let Options { driver, node_id, .. } = options;
    let is_alphanumeric = |text: &str, at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_alphanumeric);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    let ends_well = is_alphanumeric(driver, 0) && is_alphanumeric(driver, driver.len().saturating_sub(1));
    if driver.len() > 63 || !ends_well || !driver.bytes().all(allowed) {
        let what = format!("`{}` is not a valid driver name", driver.escape_debug());
        return Err(Report::usage(what).hint("up to 63 letters, digits, `-` and `.`, as in `csi.example.org`"));
    }
    if node_id.is_empty() || node_id.len() > 256 {
        return Err(Report::usage("the node's name must have 1 to 256 bytes")
            .hint("pass on the node's name, `spec.nodeName` of the pod"));
    }
    Ok(())
}

/// The path of an endpoint.
fn path_of(endpoint: &str) -> Result<PathBuf, Report> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if path.is_empty() || path.contains("://") {
        return Err(Report::usage(format!("`{}` is not a Unix socket", endpoint.escape_debug()))
            .hint("name it as `unix:///var/lib/kubelet/plugins/NAME/csi.sock`"));
    }
    Ok(peelfs::host::open::absolute(path))
}

fn socket(path: &std::path::Path) -> Result<Socket, Report> {
    Socket::open(path, None).map_err(|error| {
        let report = Report::new(Code::Failure, chain(&error));
        error.hint().into_iter().fold(report, Report::hint)
    })
}

async fn serve(options: &Options) -> Result<(), Report> {
    let own = socket(&path_of(&options.endpoint)?)?;
    let _metrics = Endpoint::of_all(options.metrics).await?;
    let volumes = Arc::new(Volumes::new(options.node.clone()));
    let plugin = Plugin { driver: options.driver.clone(), node_id: options.node_id.clone(), volumes };
    let services =
        Server::builder().add_service(IdentityServer::new(plugin.clone())).add_service(NodeServer::new(plugin));
    let refused = Arc::new(Notify::new());
    let mut registered = None;
    // The kubelet calls the plugin's own socket as soon as it finds this one.
    if let Some((endpoint, registry)) = &options.registration {
        let found_at = socket(&registry.join(format!("{}-reg.sock", options.driver)))?;
        let registration = Registration {
            driver: options.driver.clone(),
            endpoint: endpoint.display().to_string(),
            refused: Arc::clone(&refused),
        };
        let services = Server::builder().add_service(RegistrationServer::new(registration));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(peelfs_grpc::serve_beside(services, found_at, async {
            // An error means that the other end was dropped, which is an end as well.
            let _ = stopped.await;
        }));
        registered = Some((stop, served));
    }
    let signal = peelfs_grpc::ended().map_err(HostError::system("listen to signals"))?;
    let (tell, was_refused) = tokio::sync::oneshot::channel();
    let ended = async move {
        tokio::select! {
            () = signal => {}
            () = refused.notified() => {
                let _ = tell.send(());
            }
        }
    };
    let served = peelfs_grpc::serve(services, own, ended).await;
    // Remove the socket, so that the kubelet drops the plugin. A kubelet that has just refused it gets its answer.
    if let Some((stop, registered)) = registered {
        let _ = stop.send(());
        let _ = registered.await;
    }
    served.map_err(|error| Report::new(Code::Failure, chain(&error)))?;
    match was_refused.await {
        Ok(()) => Err(Report::new(Code::Failure, "the kubelet refused the plugin; the log above has the reason")),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for endpoint in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            assert_eq!(path_of(endpoint).unwrap(), PathBuf::from("/run/csi.sock"), "{endpoint}");
        }
        for endpoint in ["", "unix://", "tcp://127.0.0.1:1"] {
            assert!(path_of(endpoint).is_err(), "{endpoint}");
        }
    }
}
