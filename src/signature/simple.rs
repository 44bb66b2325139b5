//! Simple signing: the payload signed by `cosign sign` (containers/image, container-signature(5), "JSON Data Format").

use serde::Deserialize;
use serde_json::json;

use super::key::maker;
use super::{IMAGE_SIGNATURES, PublicKey, SignatureError, Statement, decoded};
use crate::digest::Digest;

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Identity,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference", default)]
    reference: String,
}

/// The statement of a payload, if one of `keys` made its signature, in base64 as in the annotation.
///
/// # Errors
/// [`SignatureError`]
pub fn simple_signing(payload: &[u8], signature: &str, keys: &[PublicKey]) -> Result<Statement, SignatureError> {
    let signature = decoded(signature, "the signature")?;
    let key = maker(keys, payload, &signature).ok_or(SignatureError::OtherKey)?;
    // Parsed only after verification.
    let payload: Payload = serde_json::from_slice(payload).map_err(SignatureError::malformed)?;
    let Critical { kind, image, identity } = payload.critical;
    if !IMAGE_SIGNATURES.contains(&kind.as_str()) {
        return Err(SignatureError::OtherType { kind });
    }
    let digest: Digest = image.digest.parse().map_err(SignatureError::malformed)?;
    let reference = Some(identity.reference).filter(|reference| !reference.is_empty());
    Ok(Statement { digests: vec![digest], reference, key })
}

/// The payload that says that `repository` has the manifest with this digest.
pub(super) fn payload(manifest: &Digest, repository: &str) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": repository },
            "image": { "docker-manifest-digest": manifest.to_string() },
            "type": IMAGE_SIGNATURES[0],
        },
        "optional": null,
    });
    payload.to_string().into_bytes()
}
