//! Trust as a type: bytes from a source are not bytes of an image until a digest says so.

use bytes::Bytes;

use crate::digest::{Digest, Hasher};

/// Something a source sent that nothing has vouched for yet.
///
/// Only a check against a digest, or code whose output is checked afterwards, may look inside.
#[derive(Clone, Debug)]
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    /// Marks what a source sent.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// Hands the value to a decoder or hasher whose *output* is verified before it is shown.
    pub fn into_unverified(self) -> T {
        self.0
    }
}

impl Untrusted<Bytes> {
    /// How many bytes there are.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// The bytes, if they have this size and digest.
    ///
    /// # Errors
    /// [`Mismatch`] with both sizes and both digests.
    pub fn verify(self, digest: &Digest, size: u64) -> Result<Bytes, Mismatch> {
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&self.0);
        let got = hasher.finish();
        if got == *digest && self.0.len() as u64 == size {
            return Ok(self.0);
        }
        Err(Mismatch { expected: digest.clone(), expected_size: size, actual: got, actual_size: self.0.len() as u64 })
    }
}

/// Bytes that are not the ones their descriptor names.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected {expected} ({expected_size} bytes), got {actual} ({actual_size} bytes)")]
pub struct Mismatch {
    /// The digest that was asked for.
    pub expected: Digest,
    /// The size that was promised, in bytes.
    pub expected_size: u64,
    /// The digest of what came.
    pub actual: Digest,
    /// The size of what came, in bytes.
    pub actual_size: u64,
}
