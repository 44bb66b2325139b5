//! A stand-in for a registry that must not be contacted: every request fails with a hint.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BlobSource, ByteStream, SourceError};
use crate::descriptor::Descriptor;
use crate::offsets::BlobOffset;
use crate::trust::Untrusted;

/// Replaces the source of an image that may only be read from the cache.
pub struct OfflineSource {
    name: String,
}

impl OfflineSource {
    /// For the image that the user named `name`.
    pub fn new(name: String) -> Self {
        Self { name }
    }

    fn missing(what: String) -> SourceError {
        let hint = Some("leave out `--offline`, so that it can be fetched".into());
        SourceError::NotFound { what, place: "the cache".to_owned(), said: None, hint }
    }
}

impl BlobSource for OfflineSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        Box::pin(std::future::ready(Err(Self::missing(self.name.clone()))))
    }

    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        Box::pin(std::future::ready(Err(Self::missing(self.name.clone()))))
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        Box::pin(std::future::ready(Err(Self::missing(format!("manifest {}", descriptor.digest)))))
    }

    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        _range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(std::future::ready(Err(Self::missing(format!("blob {}", blob.digest)))))
    }
}
