//! Public keys as written by `cosign generate-key-pair` and openssl: PEM with a SubjectPublicKeyInfo (RFC 5280).

use std::fmt;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::digest::{Algorithm, Digest};

/// A key that verifies signatures.
#[derive(Clone)]
pub struct PublicKey {
    /// The algorithms that can be used with it; cosign hashes with SHA-256 for every curve.
    algorithms: &'static [&'static dyn VerificationAlgorithm],
    key: Box<[u8]>,
    fingerprint: Digest,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// The file holds none.
    #[error("it holds no public key (`-----BEGIN PUBLIC KEY-----`)")]
    None,
    /// It is not PEM, or not a key.
    #[error("it holds a public key that is malformed: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// The algorithm is not supported.
    #[error("it holds a key of an algorithm or curve that is not supported ({oid}); ECDSA, RSA and Ed25519 are")]
    Algorithm {
        /// Its object identifier.
        oid: String,
    },
    /// An RSA key that is too short.
    #[error("it holds an RSA key of fewer than 2048 bits")]
    Short,
}

impl PublicKey {
    /// All keys of a PEM file; other content is ignored.
    ///
    /// # Errors
    /// [`KeyError`]; a file without a key is one.
    pub fn all(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for der in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| KeyError::Malformed { why: error.to_string() })?;
            keys.push(Self::from_der(&der)?);
        }
        if keys.is_empty() { Err(KeyError::None) } else { Ok(keys) }
    }

    /// The key in a SubjectPublicKeyInfo.
    pub(super) fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let malformed = |why: &dyn fmt::Display| KeyError::Malformed { why: why.to_string() };
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|error| malformed(&error))?;
        let key = info.subject_public_key.as_bytes().ok_or_else(|| malformed(&"it has a part of a byte"))?;
        let algorithms: &'static [&'static dyn VerificationAlgorithm] = match info.algorithm.oid {
            ED25519 => &[&signature::ED25519],
            RSA if key.len() < SHORTEST_RSA => return Err(KeyError::Short),
            RSA => &[&signature::RSA_PKCS1_2048_8192_SHA256, &signature::RSA_PSS_2048_8192_SHA256],
            EC => {
                let curve = info.algorithm.parameters_oid().map_err(|error| malformed(&error))?;
                match curve {
                    P256 => &[&signature::ECDSA_P256_SHA256_ASN1],
                    P384 => &[&signature::ECDSA_P384_SHA256_ASN1],
                    P521 => &[&signature::ECDSA_P521_SHA256_ASN1],
                    other => return Err(KeyError::Algorithm { oid: other.to_string() }),
                }
            }
            other => return Err(KeyError::Algorithm { oid: other.to_string() }),
        };
        Ok(Self { algorithms, key: key.into(), fingerprint: Digest::of(Algorithm::Sha256, der) })
    }

    /// SHA-256 of the decoded key: what `openssl pkey -pubin -outform DER | sha256sum` prints.
    pub fn fingerprint(&self) -> &Digest {
        &self.fingerprint
    }

    /// Whether this key made the signature of these bytes.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.key).verify(message, signature).is_ok()
        };
        self.algorithms.iter().any(verified)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint)
    }
}

/// Which of `keys` made the signature.
pub(super) fn maker(keys: &[PublicKey], message: &[u8], signature: &[u8]) -> Option<usize> {
    keys.iter().position(|key| key.verifies(message, signature))
}

pub(super) const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(super) const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
pub(super) const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
pub(super) const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// A modulus of 2048 bits has 256 bytes; the encoding adds some ten.
const SHORTEST_RSA: usize = 257;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_no_usable_key_says_why() {
        let told = |pem: &str| PublicKey::all(pem.as_bytes()).unwrap_err().to_string();
        assert!(told("").contains("no public key"));
        assert!(told("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").contains("malformed"));
        assert!(told("-----BEGIN PUBLIC KEY-----\nAAAA\n").contains("malformed"));
        // X25519, which cannot sign.
        let x25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEAELwGaqPGo9MVqFYg2wJ3rn1HOAqDtdOSMo9kPkBo2GU=\n-----END PUBLIC KEY-----";
        assert!(told(x25519).contains("1.3.101.110"), "{}", told(x25519));
    }
}
