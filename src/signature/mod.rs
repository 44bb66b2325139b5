//! Signatures of images by keys: who says that a manifest is theirs.
//!
//! cosign has two forms. Of a *simple signing* payload the bytes are signed, which name the manifest's digest and the
//! repository it was signed for. A *bundle* (sigstore, version 0.3) holds an in-toto statement in a DSSE envelope, which
//! names the digest alone. That a signature lies beside an image says nothing, as all writers of a repository can put it
//! there: the digest that it names is compared always, and the repository where that is asked for.
//!
//! Everything here is a pure function of bytes; the cryptography is that of aws-lc.

mod bundle;
mod key;
mod simple;

pub use bundle::bundle;
pub use key::{KeyError, PublicKey};
pub use simple::simple_signing;

use crate::digest::Digest;

/// What a verified signature says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statement {
    /// The manifests or image indexes that it is about.
    pub digests: Vec<Digest>,
    /// The repository it was signed for, as written; a bundle names none.
    pub reference: Option<String>,
    /// Which of the keys made it, as a position among those that were given.
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
    /// It is no signature that cosign makes.
    #[error("it is malformed: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// What is signed is no signature of an image, but an attestation, say.
    #[error("it is of the type `{}`, which signs no image", kind.escape_debug())]
    OtherType {
        /// The type it has.
        kind: String,
    },
}

impl SignatureError {
    fn malformed(why: impl ToString) -> Self {
        Self::Malformed { why: why.to_string() }
    }
}

/// What cosign calls the signature of an image, in payloads (before version 3, and since) and in statements.
const IMAGE_SIGNATURES: [&str; 2] = ["cosign container image signature", "https://sigstore.dev/cosign/sign/v1"];

/// Standard base64; line breaks at the end are those of files.
fn decoded(text: &str, what: &str) -> Result<Vec<u8>, SignatureError> {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim_end());
    decoded.map_err(|error| SignatureError::malformed(format!("{what} is not base64: {error}")))
}
