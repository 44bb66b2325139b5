//! Signatures of images by keys.
//!
//! cosign has two forms. A *simple signing* payload contains the manifest's digest and the repository it was signed
//! for, and its bytes are signed. A *bundle* (sigstore, version 0.3) holds an in-toto statement in a DSSE envelope,
//! with the digest only. The place of a signature proves nothing, as every writer of a repository can put it there: its
//! digest is always compared, its repository on request. Signatures are made in the first form.
//!
//! Everything here is a pure function of bytes; the cryptography is from aws-lc.

mod attached;
mod bundle;
mod key;
mod private_key;
mod simple;

pub use attached::{Attached, NotSignatures, SIGNATURE, SIMPLE_SIGNING, Signed, tag};
pub use bundle::bundle;
pub use key::{KeyError, PublicKey};
pub use private_key::{NotMade, PrivateKey, PrivateKeyError};
pub use simple::simple_signing;

use crate::digest::Digest;

/// The content of a verified signature.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statement {
    /// The manifests or image indexes that it is about.
    pub digests: Vec<Digest>,
    /// The repository it was signed for, as written; a bundle names none.
    pub reference: Option<String>,
    /// The index of the key that made it.
    pub key: usize,
}

impl Statement {
    /// Whether it is about this manifest.
    pub fn is_about(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }
}

/// Why a signature proves nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignatureError {
    /// None of the keys made it.
    #[error("it was made with another key")]
    OtherKey,
    /// It is not in a form that cosign makes.
    #[error("it is malformed: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// The signed content is not a signature of an image but, for example, an attestation.
    #[error("it is of the type `{}`, which signs no image", kind.escape_debug())]
    OtherType {
        /// The type of the content.
        kind: String,
    },
}

impl SignatureError {
    fn malformed(why: impl ToString) -> Self {
        Self::Malformed { why: why.to_string() }
    }
}

/// cosign's types for signatures of images: in payloads before version 3 and since, and in statements.
const IMAGE_SIGNATURES: [&str; 2] = ["cosign container image signature", "https://sigstore.dev/cosign/sign/v1"];

/// Decodes standard base64; ignores a line break at the end of a file.
fn decoded(text: &str, what: &str) -> Result<Vec<u8>, SignatureError> {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim_end());
    decoded.map_err(|error| SignatureError::malformed(format!("{what} is not base64: {error}")))
}
