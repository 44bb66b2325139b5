//! Descriptors: a media type, a digest and a size (image-spec, descriptor.md).

use std::collections::BTreeMap;

use bytes::Bytes;

pub use peelfs_codec::Compression;

use crate::digest::Digest;
use crate::trust::{Mismatch, Untrusted};

/// What a document or blob is, what it must hash to, and how many bytes it has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Descriptor {
    /// The media type as written, without parameters.
    pub media_type: MediaType,
    /// The digest of the content.
    pub digest: Digest,
    /// The size of the content in bytes.
    pub size: u64,
    /// `data`, decoded: the content itself, inlined; not verified yet.
    pub data: Option<Bytes>,
    /// `annotations` (image-spec, annotations.md).
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// One without data and annotations.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self { media_type, digest, size, data: None, annotations: BTreeMap::new() }
    }

    /// The content, if it is inlined (image-spec, descriptor.md, "Embedded Content").
    ///
    /// # Errors
    /// [`Mismatch`] if it is not what digest and size say: the descriptor contradicts itself, and which of the two was
    /// meant cannot be told. So there is no second try with what a source has under the digest.
    pub fn inlined(&self) -> Result<Option<Bytes>, Mismatch> {
        let data = self.data.clone().map(Untrusted::new);
        data.map(|data| data.verify(&self.digest, self.size)).transpose()
    }
}

/// The media types that decide how a document or layer is read (image-spec, media-types.md,
/// and their Docker twins).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum MediaType {
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerList,
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// Docker's schema 1, signed or not: recognised only to be refused with a hint.
    DockerSchema1,
    /// An image configuration, OCI or Docker.
    Config(Box<str>),
    /// A layer, of whatever spelling (OCI, Docker, non-distributable, foreign).
    Layer(Compression, Box<str>),
    /// Anything else: artifacts, signatures, attestations.
    Other(Box<str>),
}

impl MediaType {
    /// The four types a client must accept for a manifest.
    pub const MANIFESTS: [&'static str; 4] = [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ];

    /// Reads a media type; parameters (`; charset=…`) and letter case do not matter.
    pub fn parse(text: &str) -> Self {
        let base = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match base.as_str() {
            "application/vnd.oci.image.index.v1+json" => Self::OciIndex,
            "application/vnd.docker.distribution.manifest.list.v2+json" => Self::DockerList,
            "application/vnd.oci.image.manifest.v1+json" => Self::OciManifest,
            "application/vnd.docker.distribution.manifest.v2+json" => Self::DockerManifest,
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Self::DockerSchema1,
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {
                Self::Config(base.into())
            }
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Self::Layer(Compression::Stored, base.into()),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
                Self::Layer(Compression::Gzip, base.into())
            }
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => {
                Self::Layer(Compression::Zstd, base.into())
            }
            _ => Self::Other(base.into()),
        }
    }

    /// The type as it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::OciIndex => Self::MANIFESTS[0],
            Self::OciManifest => Self::MANIFESTS[1],
            Self::DockerList => Self::MANIFESTS[2],
            Self::DockerManifest => Self::MANIFESTS[3],
            Self::DockerSchema1 => "application/vnd.docker.distribution.manifest.v1+json",
            Self::Config(text) | Self::Layer(_, text) | Self::Other(text) => text,
        }
    }

    /// Whether this is an image index or manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    /// Whether this is an image manifest.
    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }
}

impl std::fmt::Display for MediaType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_survive_a_round_trip() {
        for text in MediaType::MANIFESTS.iter().chain(&[
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.in-toto+json",
        ]) {
            assert_eq!(MediaType::parse(text).as_str(), *text);
        }
    }

    #[test]
    fn parameters_and_case_do_not_matter() {
        assert_eq!(MediaType::parse("Application/vnd.OCI.image.index.v1+json; charset=utf-8"), MediaType::OciIndex);
    }
}
