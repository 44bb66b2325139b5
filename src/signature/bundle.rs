//! Sigstore bundles: an in-toto statement in a DSSE envelope, as made by `cosign sign` since version 3.
//!
//! Only signatures by keys are checked; certificates and transparency log entries in a bundle are ignored.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::key::maker;
use super::{IMAGE_SIGNATURES, PublicKey, SignatureError, Statement, decoded};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    #[serde(default)]
    dsse_envelope: Option<Envelope>,
}

/// DSSE, protocol.md and envelope.md.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

/// in-toto, spec/v1/statement.md.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InToto {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// The statement of a bundle, if one of `keys` made its signature.
///
/// # Errors
/// [`SignatureError`]
pub fn bundle(bundle: &[u8], keys: &[PublicKey]) -> Result<Statement, SignatureError> {
    let bundle: Bundle = serde_json::from_slice(bundle).map_err(SignatureError::malformed)?;
    let envelope = bundle.dsse_envelope.ok_or_else(|| SignatureError::malformed("it has no DSSE envelope"))?;
    let payload = decoded(&envelope.payload, "the payload")?;
    let signed = authenticated(&envelope.payload_type, &payload);
    let mut key = None;
    for signature in envelope.signatures.iter().take(SIGNATURES_LIMIT) {
        key = key.or(maker(keys, &signed, &decoded(&signature.sig, "the signature")?));
    }
    let key = key.ok_or(SignatureError::OtherKey)?;
    if envelope.payload_type != IN_TOTO {
        return Err(SignatureError::OtherType { kind: envelope.payload_type });
    }
    let statement: InToto = serde_json::from_slice(&payload).map_err(SignatureError::malformed)?;
    if !IMAGE_SIGNATURES.contains(&statement.predicate_type.as_str()) {
        return Err(SignatureError::OtherType { kind: statement.predicate_type });
    }
    let digests = statement.subject.iter().flat_map(|subject| &subject.digest);
    // A digest with an unknown algorithm cannot be that of an image opened here.
    let digests = digests.filter_map(|(algorithm, hex)| format!("{algorithm}:{hex}").parse().ok()).collect();
    Ok(Statement { digests, reference: None, key })
}

/// DSSE's pre-authentication encoding: the signed bytes.
fn authenticated(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut signed = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    signed.extend_from_slice(payload);
    signed
}

const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Envelopes of cosign have one signature.
const SIGNATURES_LIMIT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of DSSE's protocol.md.
    #[test]
    fn what_is_signed_is_the_encoding_of_the_specification() {
        let signed = authenticated("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
