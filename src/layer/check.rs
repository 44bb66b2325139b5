//! What a span's bytes are compared with before they are shown.

use std::fmt;

use sha2::Digest as _;

/// What the decoded bytes of a span must hash to.
///
/// The check of a span decides when its bytes may be shown: here, on arrival and whenever a process first takes them
/// from the cache. A check of another kind (of compressed bytes, of each file's part) is another variant, and the
/// compiler then names what has to know it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Check {
    /// BLAKE3, as a first pass computes it.
    Blake3([u8; 32]),
    /// SHA-256, as formats of other makers have it.
    Sha256([u8; 32]),
}

impl Check {
    /// Kinds that this version knows, as bits of the footer's field.
    pub(super) const KNOWN: u32 = (1 << 0) | (1 << 1);

    /// The BLAKE3 of these bytes.
    pub fn blake3(decoded: &[u8]) -> Self {
        Self::Blake3(*blake3::hash(decoded).as_bytes())
    }

    /// The SHA-256 of these bytes.
    pub fn sha256(decoded: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(decoded).into())
    }

    /// What a check of this kind would be of these bytes.
    pub fn of_same_kind(&self, decoded: &[u8]) -> Self {
        match self {
            Self::Blake3(_) => Self::blake3(decoded),
            Self::Sha256(_) => Self::sha256(decoded),
        }
    }

    /// Whether these are the bytes.
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
        assert_eq!(Check::from_kind(2, [0; 32]), None);
        let shown = Check::sha256(b"").to_string();
        assert_eq!(shown, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
