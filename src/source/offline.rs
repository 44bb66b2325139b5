//! A registry that may not be asked: it has nothing, and says how to change that.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BlobSource, ByteStream, SourceError};
use crate::descriptor::Descriptor;
use crate::offsets::BlobOffset;
use crate::trust::Untrusted;

/// What stands in for the source of an image of which only what is in the cache may be used.
pub struct OfflineSource {
    name: String,
}

impl OfflineSource {
    /// For the image that the user named so.
    pub fn new(name: String) -> Self {
        Self { name }
    }

    fn missing(what: String) -> SourceError {
        let hint = Some("leave out `--offline`, so that it can be fetched");
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
