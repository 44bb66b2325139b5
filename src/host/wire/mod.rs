//! Messages between processes of peelfs, possibly of different versions.
//!
//! A conversation starts with an [`Offer`] of versions; the other side answers with the highest common one, or with a
//! refusal and its reason. Both then use the types of that version only: they are separate from the program's own
//! types, every struct rejects unknown fields, and a message that cannot be parsed is answered with a reason. So an
//! older process cannot ignore a newer option, which may protect something.
//!
//! A released version's module never changes, except for optional fields; a new field with a meaning requires a new
//! version.

pub mod v1;

use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The versions of this program.
pub const VERSIONS: [u32; 1] = [1];

/// The first message of a conversation. Later versions may add fields, which are ignored here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Offer {
    /// Versions of this module's messages.
    pub versions: Vec<u32>,
    /// The version of the program, for error messages.
    pub program: String,
}

/// The answer to an [`Offer`], and to anything that is refused later.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The conversation continues in this version.
    Version(u32),
    /// It ends.
    Refused {
        /// Why, for the user.
        why: String,
    },
}

/// Why a message was not understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The two programs have no version in common.
    #[error("{program} speaks the wire versions {offered:?} and this program, {}, speaks {VERSIONS:?}", env!("CARGO_PKG_VERSION"))]
    NoVersion {
        /// The other program.
        program: String,
        /// What it offered.
        offered: Vec<u32>,
    },
    /// The other side refused.
    #[error("{why}")]
    Refused {
        /// What it said.
        why: String,
    },
    /// It is not a message of the agreed version.
    #[error("a message cannot be parsed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The message exceeds the limit.
    #[error("the message has {size} bytes; at most {limit} can be sent")]
    TooLarge {
        /// Bytes of the message.
        size: usize,
        /// Bytes that can be sent.
        limit: usize,
    },
    /// A value is invalid.
    #[error("`{value}` is not a valid {what}")]
    Value {
        /// The kind of value.
        what: &'static str,
        /// The value.
        value: String,
    },
}

impl Offer {
    /// The offer of this program.
    pub fn own() -> Self {
        Self { versions: VERSIONS.to_vec(), program: format!("peelfs {}", env!("CARGO_PKG_VERSION")) }
    }

    /// The version to use.
    ///
    /// # Errors
    /// [`WireError::NoVersion`]
    pub fn choose(&self) -> Result<u32, WireError> {
        let common = self.versions.iter().filter(|version| VERSIONS.contains(version)).max();
        common
            .copied()
            .ok_or_else(|| WireError::NoVersion { program: self.program.clone(), offered: self.versions.clone() })
    }
}

impl Answer {
    /// The version that the other side chose, if this program offered it.
    ///
    /// # Errors
    /// [`WireError`]
    pub fn version(self) -> Result<u32, WireError> {
        match self {
            Self::Version(version) if VERSIONS.contains(&version) => Ok(version),
            Self::Version(version) => Err(WireError::Value { what: "offered version", value: version.to_string() }),
            Self::Refused { why } => Err(WireError::Refused { why }),
        }
    }
}

/// Parses a message; the error names the field that is missing or unknown.
///
/// # Errors
/// [`WireError::Malformed`]
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, WireError> {
    Ok(serde_json::from_slice(text)?)
}

/// Serialises a message of at most [`LARGEST`] bytes.
///
/// # Errors
/// [`WireError::TooLarge`]
pub fn text<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let text = serde_json::to_vec(message)?;
    if text.len() > LARGEST {
        return Err(WireError::TooLarge { size: text.len(), limit: LARGEST });
    }
    Ok(text)
}

/// Bytes of the largest message: some sixteen paths of 4 KiB.
pub const LARGEST: usize = 64 << 10;

/// A path: text if it is UTF-8, else base64 of its bytes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum WirePath {
    /// Valid UTF-8.
    Text(String),
    /// Any other bytes.
    Bytes {
        /// In base64.
        base64: String,
    },
}

impl From<&Path> for WirePath {
    fn from(path: &Path) -> Self {
        let bytes = path.as_os_str().as_bytes();
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes { base64: base64::engine::general_purpose::STANDARD.encode(bytes) },
        }
    }
}

impl From<&PathBuf> for WirePath {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

impl TryFrom<WirePath> for PathBuf {
    type Error = WireError;

    fn try_from(path: WirePath) -> Result<Self, WireError> {
        match path {
            WirePath::Text(text) => Ok(text.into()),
            WirePath::Bytes { base64: text } => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(&text);
                let bytes = decoded.map_err(|_| WireError::Value { what: "path", value: text })?;
                Ok(std::ffi::OsString::from_vec(bytes).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        let offer = |versions: &[u32]| Offer { versions: versions.to_vec(), program: "peelfs 9".into() };
        assert_eq!(offer(&[1]).choose().unwrap(), 1);
        assert_eq!(offer(&[7, 1, 2]).choose().unwrap(), VERSIONS.into_iter().max().unwrap());
        let refused = offer(&[0, 99]).choose().unwrap_err().to_string();
        assert!(refused.contains("peelfs 9") && refused.contains("[0, 99]"), "{refused}");
        assert!(offer(&[]).choose().is_err());
    }

    #[test]
    fn a_later_offer_with_more_fields_is_read() {
        let offer: Offer = parse(br#"{"versions":[1,2],"program":"peelfs 3","features":["erofs"]}"#).unwrap();
        assert_eq!(offer.choose().unwrap(), 1);
    }

    /// The process that serves an image shows the one that was resolved, though a tag has moved since.
    #[test]
    fn what_a_reference_was_pinned_to_travels() {
        let digest = crate::digest::Digest::of(crate::digest::Algorithm::Sha256, b"manifest");
        let reference: crate::reference::Reference = "registry.example/a:1".parse().unwrap();
        for reference in [reference.clone(), reference.pinned(&digest)] {
            let image = crate::host::spec::ImageSpec::new(reference.clone(), "/cache");
            let spec = crate::host::spec::MountSpec::new(image, "/mnt");
            let text = serde_json::to_vec(&v1::MountSpec::from(&spec)).unwrap();
            let read: crate::host::spec::MountSpec = parse::<v1::MountSpec>(&text).unwrap().try_into().unwrap();
            assert_eq!(read.image.reference, reference);
        }
    }

    #[test]
    fn a_version_that_was_not_offered_is_refused() {
        assert!(Answer::Version(99).version().is_err());
        let refused = Answer::Refused { why: "it is busy".into() }.version().unwrap_err();
        assert_eq!(refused.to_string(), "it is busy");
    }

    #[test]
    fn a_path_of_any_bytes_travels() {
        for bytes in [b"/tmp/a".to_vec(), b"/tmp/\xff\xfe".to_vec(), Vec::new()] {
            let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
            let text = text(&WirePath::from(&path)).unwrap();
            assert_eq!(PathBuf::try_from(parse::<WirePath>(&text).unwrap()).unwrap(), path);
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_not_written() {
        assert!(matches!(text(&"x".repeat(LARGEST)), Err(WireError::TooLarge { .. })));
    }
}
