//! Blobs whose bytes are inlined in their descriptors: served without a request to the source.
//!
//! Resolving an image already takes documents from their descriptors, and verifies `data` of layers. The bytes served
//! here are verified again, like all bytes of a source.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;

use super::outage::Outages;
use super::{BlobSource, BoxFuture, ByteStream, SourceError, blob_name};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::offsets::BlobOffset;
use crate::trust::Untrusted;

/// A source, with inlined data served before it.
pub struct Inlined(Arc<dyn BlobSource>);

impl Inlined {
    /// Uses `source` for blobs that are not inlined.
    pub fn before(source: Arc<dyn BlobSource>) -> Self {
        Self(source)
    }

    /// Bytes `range` of inlined data.
    fn part(&self, blob: &Descriptor, data: &Bytes, range: &Range<BlobOffset>) -> Result<ByteStream, SourceError> {
        let wanted = usize::try_from(range.start.0).ok().zip(usize::try_from(range.end.0).ok());
        let wanted = wanted.filter(|(start, end)| start <= end && *end <= data.len());
        let Some((start, end)) = wanted else {
            let why = format!("bytes {} to {} are not within its {} bytes", range.start, range.end, data.len());
            return Err(SourceError::Protocol { what: blob_name(&blob.digest), place: self.0.name().to_owned(), why });
        };
        let part = data.slice(start..end);
        Ok(ByteStream::new(stream::iter((!part.is_empty()).then_some(Ok(part)))))
    }
}

impl BlobSource for Inlined {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn outages(&self) -> Option<&Outages> {
        self.0.outages()
    }

    fn served_by(&self, blob: &Digest) -> Option<String> {
        self.0.served_by(blob)
    }

    fn explain<'a>(&'a self, blob: &'a Descriptor, range: Range<BlobOffset>) -> BoxFuture<'a, Option<SourceError>> {
        match &blob.data {
            Some(_) => Box::pin(std::future::ready(None)),
            None => self.0.explain(blob, range),
        }
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        self.0.head()
    }

    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        self.0.root()
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        match &descriptor.data {
            Some(data) => Box::pin(std::future::ready(Ok(Untrusted::new(data.clone())))),
            None => self.0.manifest(descriptor),
        }
    }

    fn manifest_by_digest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        self.0.manifest_by_digest(digest)
    }

    fn config<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        match &descriptor.data {
            Some(data) => Box::pin(std::future::ready(Ok(Untrusted::new(data.clone())))),
            None => self.0.config(descriptor),
        }
    }

    fn beside<'a>(&'a self, suffix: &'a str) -> BoxFuture<'a, Result<Option<Untrusted<Bytes>>, SourceError>> {
        self.0.beside(suffix)
    }

    fn stream<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        match &blob.data {
            Some(data) => Box::pin(std::future::ready(self.part(blob, data, &range))),
            None => self.0.stream(blob, range),
        }
    }

    fn stream_or_whole<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<(Range<BlobOffset>, ByteStream), SourceError>> {
        match &blob.data {
            Some(data) => Box::pin(std::future::ready(self.part(blob, data, &range).map(|part| (range, part)))),
            None => self.0.stream_or_whole(blob, range),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::offline::OfflineSource;
    use super::*;
    use crate::descriptor::MediaType;
    use crate::digest::{Algorithm, Digest};

    #[tokio::test]
    async fn any_range_of_inlined_data_is_served_and_no_other() {
        let digest = Digest::of(Algorithm::Sha256, b"0123456789");
        let mut blob = Descriptor::new(MediaType::parse("application/octet-stream"), digest, 10);
        let inlined = Inlined::before(Arc::new(OfflineSource::new("app".to_owned())));
        let range = |start, end| BlobOffset(start)..BlobOffset(end);
        assert!(matches!(inlined.read_at(&blob, range(0, 1)).await, Err(SourceError::NotFound { .. })));
        blob.data = Some(Bytes::from_static(b"0123456789"));
        for (start, end) in [(0, 10), (0, 0), (10, 10), (3, 7)] {
            let read = inlined.read_at(&blob, range(start, end)).await.unwrap().into_unverified();
            assert_eq!(read, b"0123456789"[start as usize..end as usize], "{start}..{end}");
            let (all, mut stream) = inlined.stream_or_whole(&blob, range(start, end)).await.unwrap();
            assert_eq!(all, range(start, end));
            let piece = stream.next().await.map(|piece| piece.unwrap().into_unverified());
            assert_eq!(piece.unwrap_or_default(), read);
        }
        for (start, end) in [(0, 11), (11, 11), (7, 3), (u64::MAX, u64::MAX)] {
            let refused = inlined.read_at(&blob, range(start, end)).await;
            assert!(matches!(refused, Err(SourceError::Protocol { .. })), "{start}..{end}");
        }
    }
}
