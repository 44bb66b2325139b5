//! Checks of a span's bytes.

use std::fmt;

use sha2::Digest as _;

use crate::digest::{Algorithm, Digest};

/// The digest of a span's bytes.
///
/// Bytes are verified on arrival, and whenever a process first reads them from the cache. A check of the blob's bytes can
/// be made on arrival only; from then on the cache has a digest of what they decoded to. A new kind of check (of parts of
/// files) is a new variant; the compiler then lists the code to adapt.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Check {
    /// BLAKE3 of the decoded bytes, computed by a first pass.
    Blake3([u8; 32]),
    /// SHA-256 of the decoded bytes, used by formats of other tools.
    Sha256([u8; 32]),
    /// SHA-256 of the bytes of the blob that the span is decoded from, up to where the next one begins.
    BlobSha256([u8; 32]),
}

impl Check {
    /// Kinds that this version supports, as bits of the footer's field.
    pub(super) const KNOWN: u32 = (1 << 0) | (1 << 1) | Self::OF_BLOB;
    /// The bit of checks of the blob's bytes.
    pub(super) const OF_BLOB: u32 = 1 << 2;

    /// The BLAKE3 check of these bytes.
    pub fn blake3(decoded: &[u8]) -> Self {
        Self::Blake3(*blake3::hash(decoded).as_bytes())
    }

    /// The SHA-256 check of these bytes.
    pub fn sha256(decoded: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(decoded).into())
    }

    /// What a digest says; `None` where it is none of SHA-256.
    pub fn of_sha256(digest: &Digest) -> Option<Self> {
        let mut bytes = [0; 32];
        let digits = (digest.algorithm() == Algorithm::Sha256).then(|| digest.hex().as_bytes())?;
        for (byte, digits) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self::Sha256(bytes))
    }

    /// Whether this is a check of the blob's bytes, and not of what they decode to.
    pub fn is_of_blob(&self) -> bool {
        matches!(self, Self::BlobSha256(_))
    }

    /// A check of the same kind for these bytes, decoded or of the blob as the kind demands.
    pub fn of_same_kind(&self, bytes: &[u8]) -> Self {
        match self {
            Self::Blake3(_) => Self::blake3(bytes),
            Self::Sha256(_) => Self::sha256(bytes),
            Self::BlobSha256(_) => Self::BlobSha256(sha2::Sha256::digest(bytes).into()),
        }
    }

    /// Whether these decoded bytes match; `false` for a check of the blob's bytes, which says nothing of them.
    pub fn holds(&self, decoded: &[u8]) -> bool {
        !self.is_of_blob() && self.of_same_kind(decoded) == *self
    }

    /// The number on disk, below 32.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Blake3(_) => 0,
            Self::Sha256(_) => 1,
            Self::BlobSha256(_) => 2,
        }
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        match self {
            Self::Blake3(bytes) | Self::Sha256(bytes) | Self::BlobSha256(bytes) => bytes,
        }
    }

    /// `None` for a kind of a later version.
    pub(super) fn from_kind(kind: u8, bytes: [u8; 32]) -> Option<Self> {
        match kind {
            0 => Some(Self::Blake3(bytes)),
            1 => Some(Self::Sha256(bytes)),
            2 => Some(Self::BlobSha256(bytes)),
            _ => None,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Sha256(_) | Self::BlobSha256(_) = self {
            f.write_str("sha256:")?;
        }
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_holds_for_its_bytes_and_no_others() {
        for check in [Check::blake3(b"bytes"), Check::sha256(b"bytes")] {
            assert!(check.holds(b"bytes") && !check.holds(b"byteS") && !check.holds(b""));
            assert_eq!(Check::from_kind(check.kind(), *check.bytes()), Some(check.clone()));
            assert!(Check::KNOWN & (1 << check.kind()) != 0);
        }
        assert_ne!(Check::Blake3([1; 32]), Check::Sha256([1; 32]));
        let of_blob = Check::BlobSha256(*Check::sha256(b"bytes").bytes());
        assert!(of_blob.is_of_blob() && of_blob.of_same_kind(b"bytes") == of_blob && !of_blob.holds(b"bytes"));
        assert_eq!(Check::from_kind(of_blob.kind(), *of_blob.bytes()), Some(of_blob.clone()));
        assert!(Check::KNOWN & (1 << of_blob.kind()) != 0);
        assert_eq!(Check::of_sha256(&Digest::of(Algorithm::Sha256, b"bytes")), Some(Check::sha256(b"bytes")));
        assert_eq!(Check::of_sha256(&Digest::of(Algorithm::Sha512, b"bytes")), None);
        assert_eq!(Check::from_kind(3, [0; 32]), None);
        let shown = Check::sha256(b"").to_string();
        assert_eq!(shown, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
