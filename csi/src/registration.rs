//! Registration with the kubelet. The kubelet finds sockets in a directory, queries each plugin, and reports whether it
//! accepts it. A refused plugin exits, so that it is restarted and queried again.

use std::sync::Arc;

use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::generated::pluginregistration as api;

/// The plugin's answers to the kubelet.
pub(crate) struct Registration {
    pub(crate) driver: String,
    /// The plugin's own socket.
    pub(crate) endpoint: String,
    /// Notified when the plugin is refused.
    pub(crate) refused: Arc<Notify>,
}

#[tonic::async_trait]
impl api::registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<api::InfoRequest>) -> Result<Response<api::PluginInfo>, Status> {
        Ok(Response::new(api::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<api::RegistrationStatus>,
    ) -> Result<Response<api::RegistrationStatusResponse>, Status> {
        let api::RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!(driver = self.driver, "the kubelet has registered the plugin");
        } else {
            tracing::error!("the kubelet refused the plugin: {error}");
            self.refused.notify_one();
        }
        Ok(Response::new(api::RegistrationStatusResponse {}))
    }
}
