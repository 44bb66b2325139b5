//! Private keys as openssl writes them, and `cosign import-key-pair` reads them: PEM with PKCS#8 (RFC 5208), SEC1 (RFC
//! 5915) or PKCS#1 (RFC 8017), not encrypted.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use x509_cert::der::{Decode as _, Header, SliceReader};
use x509_cert::spki::AlgorithmIdentifierRef;

use super::key::{EC, ED25519, KeyError, P256, PublicKey, RSA};

/// A key that makes signatures.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
}

/// The algorithms that cosign makes signatures with, and verifies: ECDSA with SHA-256, Ed25519, RSASSA-PKCS1-v1_5.
enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// Why a key cannot make signatures.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PrivateKeyError {
    /// The file holds none.
    #[error("it holds no private key (`-----BEGIN PRIVATE KEY-----`)")]
    None,
    /// It holds the other half.
    #[error("it holds a public key; signatures are made with the private one")]
    Public,
    /// The key is encrypted, in the form of cosign alone.
    #[error("its private key is encrypted by cosign")]
    EncryptedByCosign,
    /// The key is encrypted.
    #[error("its private key is encrypted")]
    Encrypted,
    /// It is a key of ssh, in a form of its own.
    #[error("its private key is in the form of OpenSSH")]
    OpenSsh,
    /// It is not PEM, or not a key.
    #[error("its private key is malformed: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// The algorithm is not supported.
    #[error(
        "its private key is of an algorithm or curve that is not supported ({oid}); ECDSA with P-256, Ed25519 and RSA are"
    )]
    Algorithm {
        /// Its object identifier.
        oid: String,
    },
    /// The public half cannot be used.
    #[error(transparent)]
    PublicHalf(#[from] KeyError),
}

/// A signature could not be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the cryptographic library made no signature")]
pub struct NotMade;

impl From<Unspecified> for NotMade {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

impl PrivateKey {
    /// The first key of a PEM file; other content is ignored.
    ///
    /// # Errors
    /// [`PrivateKeyError`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, PrivateKeyError> {
        if let Some(why) = known_otherwise(pem) {
            return Err(why);
        }
        let der = match PrivateKeyDer::pem_slice_iter(pem).next() {
            Some(Ok(der)) => der,
            Some(Err(error)) => return Err(malformed(&error)),
            None => return Err(PrivateKeyError::None),
        };
        match &der {
            PrivateKeyDer::Pkcs8(key) => Self::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(key) => Self::from_sec1(key.secret_sec1_der()),
            PrivateKeyDer::Pkcs1(key) => Self::of_rsa(RsaKeyPair::from_der(key.secret_pkcs1_der())),
            _ => Err(PrivateKeyError::None),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, PrivateKeyError> {
        let algorithm = algorithm(der).map_err(|error| malformed(&error))?;
        let unknown = |oid: &dyn fmt::Display| PrivateKeyError::Algorithm { oid: oid.to_string() };
        match algorithm.oid {
            EC => match algorithm.parameters_oid().map_err(|error| malformed(&error))? {
                P256 => Self::of(Pair::Ecdsa(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)?)),
                curve => Err(unknown(&curve)),
            },
            ED25519 => Self::of(Pair::Ed25519(Ed25519KeyPair::from_pkcs8(der)?)),
            RSA => Self::of_rsa(RsaKeyPair::from_pkcs8(der)),
            other => Err(unknown(&other)),
        }
    }

    fn from_sec1(der: &[u8]) -> Result<Self, PrivateKeyError> {
        // The curve need not be named in this form.
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der);
        let why = |error| PrivateKeyError::Malformed { why: format!("it is no key of the curve P-256 ({error})") };
        Self::of(Pair::Ecdsa(pair.map_err(why)?))
    }

    fn of_rsa(pair: Result<RsaKeyPair, KeyRejected>) -> Result<Self, PrivateKeyError> {
        Self::of(Pair::Rsa(pair.map_err(|error| match error.to_string().as_str() {
            "TooSmall" => KeyError::Short.into(),
            _ => PrivateKeyError::from(error),
        })?))
    }

    fn of(pair: Pair) -> Result<Self, PrivateKeyError> {
        let der: Result<PublicKeyX509Der<'static>, Unspecified> = match &pair {
            Pair::Ecdsa(pair) => pair.public_key().as_der(),
            Pair::Ed25519(pair) => pair.public_key().as_der(),
            Pair::Rsa(pair) => pair.public_key().as_der(),
        };
        let der = der.map_err(|error| malformed(&error))?;
        Ok(Self { public: PublicKey::from_der(der.as_ref())?, pair })
    }

    /// The key that verifies its signatures.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A signature of these bytes.
    ///
    /// # Errors
    /// [`NotMade`]
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, NotMade> {
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.try_sign(message)?.as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
        };
        Ok(signature)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {:?})", self.public)
    }
}

impl From<KeyRejected> for PrivateKeyError {
    fn from(error: KeyRejected) -> Self {
        malformed(&error)
    }
}

fn malformed(why: &dyn fmt::Display) -> PrivateKeyError {
    PrivateKeyError::Malformed { why: why.to_string() }
}

/// The algorithm of a PKCS#8 key: `PrivateKeyInfo ::= SEQUENCE { version INTEGER, privateKeyAlgorithm, … }`.
fn algorithm(der: &[u8]) -> Result<AlgorithmIdentifierRef<'_>, x509_cert::der::Error> {
    let mut reader = SliceReader::new(der)?;
    Header::decode(&mut reader)?;
    u8::decode(&mut reader)?;
    AlgorithmIdentifierRef::decode(&mut reader)
}

/// What is known to be wrong with the first key, by the lines around it.
fn known_otherwise(pem: &[u8]) -> Option<PrivateKeyError> {
    let text = String::from_utf8_lossy(pem);
    let label = |line: &str| Some(line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----")?.to_owned());
    let labels: Vec<_> = text.lines().filter_map(label).collect();
    let Some(private) = labels.iter().find(|label| label.ends_with("PRIVATE KEY")) else {
        return labels.iter().any(|label| label.ends_with("PUBLIC KEY")).then_some(PrivateKeyError::Public);
    };
    // RFC 1421, as openssl writes keys in older forms.
    let is_encrypted = |line: &str| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED");
    match &**private {
        "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => Some(PrivateKeyError::EncryptedByCosign),
        label if label.starts_with("ENCRYPTED ") => Some(PrivateKeyError::Encrypted),
        "OPENSSH PRIVATE KEY" => Some(PrivateKeyError::OpenSsh),
        _ => text.lines().any(is_encrypted).then_some(PrivateKeyError::Encrypted),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn why(pem: &str) -> PrivateKeyError {
        PrivateKey::from_pem(pem.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_file_without_a_usable_private_key_says_why() {
        let file = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        assert_eq!(why(""), PrivateKeyError::None);
        assert_eq!(why(&file("CERTIFICATE", "AAAA")), PrivateKeyError::None);
        assert_eq!(why(&file("PUBLIC KEY", "AAAA")), PrivateKeyError::Public);
        assert_eq!(why(&file("ENCRYPTED SIGSTORE PRIVATE KEY", "AAAA")), PrivateKeyError::EncryptedByCosign);
        assert_eq!(why(&file("ENCRYPTED COSIGN PRIVATE KEY", "AAAA")), PrivateKeyError::EncryptedByCosign);
        assert_eq!(why(&file("ENCRYPTED PRIVATE KEY", "AAAA")), PrivateKeyError::Encrypted);
        let older = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA";
        assert_eq!(why(&file("RSA PRIVATE KEY", older)), PrivateKeyError::Encrypted);
        assert_eq!(why(&file("OPENSSH PRIVATE KEY", "AAAA")), PrivateKeyError::OpenSsh);
        for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
            for body in ["AAAA", "", "*", "MAMCAQA=", "MIIBAAIBADAAAA=="] {
                let why = why(&file(label, body));
                assert!(matches!(why, PrivateKeyError::Malformed { .. }), "{label} {body}: {why}");
            }
            assert!(matches!(why(&format!("-----BEGIN {label}-----\nAAAA\n")), PrivateKeyError::Malformed { .. }));
        }
        // X25519, which cannot sign.
        let x25519 = file("PRIVATE KEY", "MC4CAQAwBQYDK2VuBCIEIHBbYEZ2ddYd8D7kEgnxP2vRMfnFhY5u4DwVQa9kJ0lK");
        assert!(matches!(why(&x25519), PrivateKeyError::Algorithm { oid } if oid == "1.3.101.110"));
    }

    /// The key of RFC 8410, section 10.3, and its public half there.
    #[test]
    fn a_signature_is_verified_by_the_public_half() {
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let (private, public) =
            (PrivateKey::from_pem(private.as_bytes()).unwrap(), PublicKey::all(public.as_bytes()).unwrap());
        assert_eq!(private.public().fingerprint(), public[0].fingerprint());
        let signature = private.sign(b"message").unwrap();
        assert!(public[0].verifies(b"message", &signature) && !public[0].verifies(b"massage", &signature));
        assert!(!format!("{private:?}").contains("1O5y"), "{private:?}");
    }
}
