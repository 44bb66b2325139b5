//! The gRPC services: requests into calls, results into messages.
//!
//! Requests carry secrets: they are never logged as they are.

use std::path::PathBuf;
use std::sync::Arc;

use peelfs::image::chain;
use tonic::{Request, Response, Status};

use crate::attributes::{self, Attributes};
use crate::generated::csi::v1 as api;
use crate::generated::csi::v1::node_service_capability::{Rpc, Type as Capability, rpc};
use crate::generated::csi::v1::volume_usage::Unit;
use crate::login;
use crate::volumes::{VolumeError, Volumes};

/// The plugin's services.
#[derive(Clone)]
pub(crate) struct Plugin {
    pub(crate) driver: String,
    pub(crate) node_id: String,
    pub(crate) volumes: Arc<Volumes>,
}

type Answer<T> = Result<Response<T>, Status>;

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}

/// Runs blocking code. A call that is cancelled meanwhile continues, and is complete when it is repeated.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::internal(format!("the call ended early: {error}")))?;
    Ok(done?)
}

fn required<'a>(text: &'a str, what: &str) -> Result<&'a str, Status> {
    if text.is_empty() { Err(Status::invalid_argument(format!("the {what} is missing"))) } else { Ok(text) }
}

fn absolute(text: &str, what: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(required(text, what)?);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain && !text.contains('\0') {
        // In the form of the table of mounts.
        return Ok(path.components().collect());
    }
    Err(Status::invalid_argument(format!("the {what} `{}` is not an absolute path", text.escape_debug())))
}

#[tonic::async_trait]
impl api::identity_server::Identity for Plugin {
    async fn get_plugin_info(&self, _: Request<api::GetPluginInfoRequest>) -> Answer<api::GetPluginInfoResponse> {
        Ok(Response::new(api::GetPluginInfoResponse {
            name: self.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: std::collections::HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<api::GetPluginCapabilitiesRequest>,
    ) -> Answer<api::GetPluginCapabilitiesResponse> {
        Ok(Response::new(api::GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(&self, _: Request<api::ProbeRequest>) -> Answer<api::ProbeResponse> {
        Ok(Response::new(api::ProbeResponse { ready: Some(true) }))
    }
}

#[tonic::async_trait]
impl api::node_server::Node for Plugin {
    async fn node_publish_volume(
        &self,
        request: Request<api::NodePublishVolumeRequest>,
    ) -> Answer<api::NodePublishVolumeResponse> {
        let request = request.into_inner();
        let volume = required(&request.volume_id, "volume id")?.to_owned();
        let target = absolute(&request.target_path, "target path")?;
        let capability = request.volume_capability.as_ref();
        let capability = capability.ok_or_else(|| Status::invalid_argument("the volume capability is missing"))?;
        let flags = attributes::mount_flags(capability, request.readonly).map_err(VolumeError::from)?;
        let attributes = Attributes::parse(&request.volume_context, flags).map_err(VolumeError::from)?;
        let login = login::file(&request.secrets, &attributes.registry()).map_err(VolumeError::from)?;
        let volumes = Arc::clone(&self.volumes);
        tracing::info!(volume, target = %target.display(), image = attributes.image(), "publishing");
        blocking(move || volumes.publish(&volume, &target, attributes, login.as_deref())).await?;
        Ok(Response::new(api::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<api::NodeUnpublishVolumeRequest>,
    ) -> Answer<api::NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let volume = required(&request.volume_id, "volume id")?;
        let target = absolute(&request.target_path, "target path")?;
        let volumes = Arc::clone(&self.volumes);
        tracing::info!(volume, target = %target.display(), "unpublishing");
        blocking(move || volumes.unpublish(&target)).await?;
        Ok(Response::new(api::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<api::NodeGetVolumeStatsRequest>,
    ) -> Answer<api::NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let volume = required(&request.volume_id, "volume id")?.to_owned();
        // csi-sanity expects "not found" for a relative path.
        let path = PathBuf::from(required(&request.volume_path, "volume path")?).components().collect::<PathBuf>();
        let volumes = Arc::clone(&self.volumes);
        let stats = blocking(move || volumes.stats(&volume, &path)).await?;
        let (abnormal, message) = match stats {
            Some(_) => (false, "the image is served".to_owned()),
            None => (true, "no process serves the image; publish the volume again to remount it".to_owned()),
        };
        // Full, as it is read-only.
        let usage = |all: u64, unit: Unit| {
            let all = i64::try_from(all).unwrap_or(i64::MAX);
            api::VolumeUsage { available: 0, total: all, used: all, unit: unit.into() }
        };
        Ok(Response::new(api::NodeGetVolumeStatsResponse {
            usage: stats.map_or_else(Vec::new, |stats| {
                vec![usage(stats.bytes, Unit::Bytes), usage(stats.inodes, Unit::Inodes)]
            }),
            volume_condition: Some(api::VolumeCondition { abnormal, message }),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<api::NodeGetCapabilitiesRequest>,
    ) -> Answer<api::NodeGetCapabilitiesResponse> {
        let capabilities = [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition];
        let capability =
            |kind: rpc::Type| api::NodeServiceCapability { r#type: Some(Capability::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(api::NodeGetCapabilitiesResponse {
            capabilities: capabilities.into_iter().map(capability).collect(),
        }))
    }

    async fn node_get_info(&self, _: Request<api::NodeGetInfoRequest>) -> Answer<api::NodeGetInfoResponse> {
        Ok(Response::new(api::NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }

    async fn node_stage_volume(&self, _: Request<api::NodeStageVolumeRequest>) -> Answer<api::NodeStageVolumeResponse> {
        Err(not_offered("NodeStageVolume"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<api::NodeUnstageVolumeRequest>,
    ) -> Answer<api::NodeUnstageVolumeResponse> {
        Err(not_offered("NodeUnstageVolume"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<api::NodeExpandVolumeRequest>,
    ) -> Answer<api::NodeExpandVolumeResponse> {
        Err(not_offered("NodeExpandVolume"))
    }
}

fn not_offered(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not offered: images are published at once and have one size"))
}
