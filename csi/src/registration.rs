//! Registration: how the kubelet comes to know of the plugin.
//!
//! It looks for sockets in a directory, asks each what it is, and says whether it takes it. A plugin that is refused ends, so
//! that it is started anew and asked again.

use std::sync::Arc;

use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::generated::pluginregistration as api;

/// What the kubelet is told.
pub(crate) struct Registration {
    pub(crate) driver: String,
    /// Where it finds the plugin's own socket.
    pub(crate) endpoint: String,
    /// Told when the plugin is refused.
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
