//! Signing what is pushed, as `cosign sign --key` does: a signature beside the manifest, behind those of others.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::report::{Code, Report};
use super::signature_policy::read_bounded;
use crate::digest::{Algorithm, Digest};
use crate::reference::RegistryName;
use crate::signature::{self, Attached, NotMade, NotSignatures, PrivateKey, PrivateKeyError, Signed};
use crate::source::MANIFEST_LIMIT;
use crate::source::registry::{Content, PushError, RegistrySource};

/// Why the key in a file makes no signatures.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the private key `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Others can read it.
    #[error("others may read the private key `{}` (mode {:04o})", path.display(), mode & 0o7777)]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds no key that can be used.
    #[error("cannot sign with `{}`", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: PrivateKeyError,
    },
}

/// Why a manifest was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// No signature was made.
    #[error(transparent)]
    NotMade(#[from] NotMade),
    /// The registry does not take it.
    #[error(transparent)]
    Push(#[from] PushError),
    /// What is there is something else.
    #[error("the signatures under the tag `{tag}` cannot be extended")]
    Other {
        /// The tag.
        tag: String,
        /// Why.
        #[source]
        cause: NotSignatures,
    },
    /// There are too many.
    #[error("the signatures under the tag `{tag}` cannot be extended: they have more than {MANIFEST_LIMIT} bytes")]
    Full {
        /// The tag.
        tag: String,
    },
    /// Ours does not stay.
    #[error("other clients keep writing the signatures under the tag `{tag}`")]
    Busy {
        /// The tag.
        tag: String,
    },
}

/// Reads a private key. As ssh does, this refuses a file of the user's own that others may read.
///
/// # Errors
/// [`KeyFileError`]
pub fn private_key(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let failed = |cause| KeyFileError::File { path: path.to_owned(), cause };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let pem = read_bounded(&file).map_err(failed)?;
    // First: the mode of a file that is no private key is right.
    let key = PrivateKey::from_pem(&pem).map_err(|cause| KeyFileError::Key { path: path.to_owned(), cause })?;
    if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode: metadata.mode() });
    }
    Ok(key)
}

impl From<KeyFileError> for Report {
    fn from(error: KeyFileError) -> Self {
        let told = |code| Self::of(code, &error);
        match &error {
            KeyFileError::File { cause, .. } if cause.kind() == io::ErrorKind::NotFound => told(Code::NotFound),
            KeyFileError::File { .. } => told(Code::Failure),
            KeyFileError::Open { path, .. } => {
                told(Code::Failure).hint(format!("`chmod 600 {}`; ssh refuses such keys, too", path.display()))
            }
            KeyFileError::Key { path, cause } => {
                let path = path.display();
                let hint = match cause {
                    PrivateKeyError::EncryptedByCosign => format!(
                        "push without `--sign-key`, and sign the digest that is printed with `cosign sign --key {path} \
                         REPOSITORY@DIGEST`; cosign gives such a key to no other program"
                    ),
                    PrivateKeyError::Encrypted => format!("decrypt it with `openssl pkey -in {path} -out PLAIN.pem`"),
                    PrivateKeyError::OpenSsh => {
                        format!("`ssh-keygen -p -N '' -m PKCS8 -f COPY` changes the form of a copy of {path}")
                    }
                    PrivateKeyError::None
                    | PrivateKeyError::Public
                    | PrivateKeyError::Malformed { .. }
                    | PrivateKeyError::Algorithm { .. }
                    | PrivateKeyError::PublicHalf(_) => {
                        "`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; \
                         `openssl pkey -in KEY.pem -pubout` shows its public half"
                            .to_owned()
                    }
                };
                told(Code::Failure).hint(hint)
            }
        }
    }
}

/// Signs `manifest`, which is or will be in the repository `name` of `registry`; a signature by the same key stays as it is.
///
/// # Errors
/// [`SignError`]
pub(super) async fn sign(
    registry: &RegistrySource,
    name: &RegistryName,
    manifest: &Digest,
    key: &PrivateKey,
) -> Result<(), SignError> {
    let signed = Signed::new(manifest, &repository(name), key)?;
    let tag = signature::tag(manifest);
    for last in (0..=TRIES).map(|tried| tried == TRIES) {
        let there = registry.tagged(&tag).await.map_err(PushError::from)?;
        let mut attached = match there {
            Some(bytes) => Attached::parse(&bytes.into_unverified())
                .map_err(|cause| SignError::Other { tag: tag.clone(), cause })?,
            None => Attached::default(),
        };
        if attached.has(&signed) {
            return Ok(());
        }
        if last {
            break;
        }
        attached.add(&signed);
        let bytes = Bytes::from(attached.to_bytes());
        if bytes.len() as u64 > MANIFEST_LIMIT {
            return Err(SignError::Full { tag });
        }
        for blob in [signed.payload.clone(), attached.configuration()] {
            let digest = Digest::of(Algorithm::Sha256, &blob);
            registry.push_blob(&digest, &Content::Memory(blob.into())).await?;
        }
        // Another client may write it at the same time, so it is read again.
        registry.push_tagged(&tag, attached.media_type(), &bytes).await?;
    }
    Err(SignError::Busy { tag })
}

/// The repository as cosign writes it into signatures.
fn repository(name: &RegistryName) -> String {
    let authority = name.authority();
    let host = if authority == "docker.io" { "index.docker.io" } else { &authority };
    format!("{host}/{}", name.repository())
}

/// How often the signatures are written.
const TRIES: usize = 4;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_written_as_cosign_does() {
        for (name, wanted) in
            [("python", "index.docker.io/library/python"), ("r.example:5000/a/b", "r.example:5000/a/b")]
        {
            assert_eq!(repository(&name.parse().unwrap()), wanted);
        }
    }
}
