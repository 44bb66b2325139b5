//! Why a document cannot be used.

use super::DOCUMENT_LIMIT;
use crate::digest::Digest;

/// Why a document cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DocumentError {
    /// It has more than [`DOCUMENT_LIMIT`] bytes.
    #[error("the document has {size} bytes; at most {DOCUMENT_LIMIT} are read")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// It is not JSON, or not of the shape the specification gives.
    #[error("the document is malformed: {why}")]
    Malformed {
        /// What is wrong, and where.
        why: String,
    },
    /// It is an image index and a manifest at once.
    #[error("the document is ambiguous: it has both `manifests` and `{key}`")]
    BothKinds {
        /// The manifest's key.
        key: &'static str,
    },
    /// It can be read in two ways.
    #[error("the document is ambiguous: {why}")]
    Ambiguous {
        /// What makes it so.
        why: String,
    },
    /// It was served as one kind and calls itself the other.
    #[error("the document is ambiguous: it came as `{declared}` and calls itself `{own}`")]
    MediaTypes {
        /// The Content-Type, or the media type of the descriptor that led here.
        declared: String,
        /// Its own `mediaType`.
        own: String,
    },
    /// It is a Docker schema 1 manifest.
    #[error("the manifest has Docker's old schema 1, which names no verifiable layers")]
    Schema1,
    /// `schemaVersion` is not 2.
    #[error("`schemaVersion` must be 2, and is {}", found.map_or("missing".to_owned(), |found| found.to_string()))]
    SchemaVersion {
        /// What stands there.
        found: Option<u64>,
    },
    /// A key that makes the document what it is.
    #[error("the document has no `{key}`, so it is not {kind}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it would be with it.
        kind: &'static str,
    },
    /// It is an artifact, where an image is needed.
    #[error("this is not a container image but an artifact of type `{kind}`")]
    NotAnImage {
        /// Its artifact type or media type.
        kind: String,
    },
    /// It calls itself something else than a manifest or an image index.
    #[error("a document of type `{kind}` is neither a manifest nor an image index")]
    NoManifest {
        /// The media type.
        kind: String,
    },
    /// It lists more than is read.
    #[error("`{key}` has {count} entries; at most {limit} are read")]
    TooMany {
        /// The list.
        key: &'static str,
        /// Its length.
        count: usize,
        /// The greatest length.
        limit: usize,
    },
    /// A size that no file has.
    #[error("the size of {digest} is {size} bytes, more than any file can have")]
    Size {
        /// What is that large.
        digest: Digest,
        /// The size in bytes.
        size: u64,
    },
    /// Inlined content that is not what its descriptor says.
    #[error("the inlined data of {digest} is not base64 for {size} bytes")]
    Data {
        /// The descriptor's digest.
        digest: Digest,
        /// The descriptor's size in bytes.
        size: u64,
    },
    /// A layer that is not a tar, or that is encrypted.
    #[error("layer {number}, {digest}, is of the unknown type `{media_type}`")]
    LayerType {
        /// Its position, 0 = base.
        number: usize,
        /// Its digest.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A configuration without a root file system.
    #[error("the configuration has no `rootfs`, so it is not one of a container image")]
    NoRootfs,
    /// A root file system that is not made of layers.
    #[error("the configuration's `rootfs` is of type `{kind}`; only `layers` is known")]
    RootfsType {
        /// Its type.
        kind: String,
    },
    /// Manifest and configuration disagree.
    #[error("the configuration has {diff_ids} diff_ids for the {layers} layers of the manifest")]
    LayerCount {
        /// How many diff_ids the configuration has.
        diff_ids: usize,
        /// How many layers the manifest has.
        layers: usize,
    },
}

impl DocumentError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Schema1 => Some(
                "push the image again with a client from 2016 or later, or copy it with `skopeo copy --format oci`"
                    .to_owned(),
            ),
            Self::LayerType { media_type, .. } if media_type.ends_with("+encrypted") => {
                Some("decrypt the image first: `skopeo copy --decryption-key KEY …`".to_owned())
            }
            Self::NoManifest { kind } if kind.starts_with("application/vnd.oci.artifact.manifest.") => Some(
                "the specification has withdrawn this type; push the artifact again with a current client".to_owned(),
            ),
            Self::NotAnImage { .. } => Some("`peelfs mount` shows the files of an artifact".to_owned()),
            Self::LayerType { .. } | Self::NoRootfs => {
                Some("if this is an artifact, `--artifact` shows its layers as files".to_owned())
            }
            Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::BothKinds { .. }
            | Self::Ambiguous { .. }
            | Self::MediaTypes { .. }
            | Self::SchemaVersion { .. }
            | Self::Missing { .. }
            | Self::NoManifest { .. }
            | Self::TooMany { .. }
            | Self::Size { .. }
            | Self::Data { .. }
            | Self::RootfsType { .. }
            | Self::LayerCount { .. } => None,
        }
    }
}
