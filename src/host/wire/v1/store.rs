//! Image stores: what is asked for, and how another process takes one over.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::super::{WireError, WirePath};
use super::{OutagePolicy, Place, path};
use crate::host::image_store;
use crate::host::spec::CacheSpec;

/// A store that is to be served.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSpec {
    at: WirePath,
    cache_dir: WirePath,
    cache_size: Option<u64>,
    on_outage: OutagePolicy,
    allow_other: bool,
    /// Programs that cannot tell any refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metrics: Option<SocketAddr>,
}

/// What another process needs to take a store over, besides its connection and what lies beside the store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoreHandover {
    spec: StoreSpec,
    place: Place,
    log: Option<WirePath>,
    since: u64,
    takeovers: u32,
    ended: Option<String>,
    awaited: bool,
}

impl From<&image_store::StoreSpec> for StoreSpec {
    fn from(spec: &image_store::StoreSpec) -> Self {
        let image_store::StoreSpec { at, cache, on_outage, allow_other, metrics } = spec;
        Self {
            at: at.into(),
            cache_dir: (&cache.dir).into(),
            cache_size: cache.limit,
            on_outage: (*on_outage).into(),
            allow_other: *allow_other,
            metrics: *metrics,
        }
    }
}

impl TryFrom<StoreSpec> for image_store::StoreSpec {
    type Error = WireError;

    fn try_from(spec: StoreSpec) -> Result<Self, WireError> {
        let StoreSpec { at, cache_dir, cache_size, on_outage, allow_other, metrics } = spec;
        let cache = CacheSpec { dir: cache_dir.try_into()?, limit: cache_size };
        Ok(Self { at: at.try_into()?, cache, on_outage: on_outage.into(), allow_other, metrics })
    }
}

impl From<&image_store::StoreHandover> for StoreHandover {
    fn from(handover: &image_store::StoreHandover) -> Self {
        let image_store::StoreHandover { spec, place, log, since, takeovers, ended, awaited } = handover;
        Self {
            spec: spec.into(),
            place: place.into(),
            log: log.as_ref().map(WirePath::from),
            since: *since,
            takeovers: *takeovers,
            ended: ended.clone(),
            awaited: *awaited,
        }
    }
}

impl TryFrom<StoreHandover> for image_store::StoreHandover {
    type Error = WireError;

    fn try_from(handover: StoreHandover) -> Result<Self, WireError> {
        let StoreHandover { spec, place, log, since, takeovers, ended, awaited } = handover;
        let (spec, place, log) = (spec.try_into()?, place.try_into()?, path(log)?);
        Ok(Self { spec, place, log, since, takeovers, ended, awaited })
    }
}
