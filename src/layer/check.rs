//! Checks of a span's bytes.

use std::fmt;

use sha2::Digest as _;

use crate::digest::{Algorithm, Digest};

/// The digest of a span's decoded bytes.
///
/// Bytes are verified on arrival, and whenever a process first reads them from the cache. A new kind of check (of
/// compressed bytes, of parts of files) is a new variant; the compiler then lists the code to adapt.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Check {
    /// BLAKE3, computed by a first pass.
    Blake3([u8; 32]),
    /// SHA-256, used by formats of other tools.
    Sha256([u8; 32]),
}

impl Check {
    /// Kinds that this version supports, as bits of the footer's field.
    pub(super) const KNOWN: u32 = (1 << 0) | (1 << 1);

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

    /// A check of the same kind for these bytes.
    pub fn of_same_kind(&self, decoded: &[u8]) -> Self {
        match self {
            Self::Blake3(_) => Self::blake3(decoded),
            Self::Sha256(_) => Self::sha256(decoded),
        }
    }

    /// Whether these bytes match.
    pub fn holds(&self, decoded: &[u8]) -> bool {
        self.of_same_kind(decoded) == *self
    }

    /// The number on disk, below 32.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Blake3(_) => 0,
            Self::Sha256(_) => 1,
        }
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        match self {
            Self::Blake3(bytes) | Self::Sha256(bytes) => bytes,
        }
    }

    /// `None` for a kind of a later version.
    pub(super) fn from_kind(kind: u8, bytes: [u8; 32]) -> Option<Self> {
        match kind {
            0 => Some(Self::Blake3(bytes)),
            1 => Some(Self::Sha256(bytes)),
            _ => None,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Sha256(_) = self {
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
        assert_eq!(Check::of_sha256(&Digest::of(Algorithm::Sha256, b"bytes")), Some(Check::sha256(b"bytes")));
        assert_eq!(Check::of_sha256(&Digest::of(Algorithm::Sha512, b"bytes")), None);
        assert_eq!(Check::from_kind(2, [0; 32]), None);
        let shown = Check::sha256(b"").to_string();
        assert_eq!(shown, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
