//! Signatures as cosign attaches them to a manifest: an image manifest with the tag `ALGORITHM-HEX.sig`, whose layers are
//! payloads of simple signing with their signatures as annotations (cosign, specs/SIGNATURE_SPEC.md).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::key::maker;
use super::{NotMade, PrivateKey, PublicKey, decoded, simple};
use crate::descriptor::MediaType;
use crate::digest::{Algorithm, Digest};

/// The media type of a payload.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of a payload with its signature, in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The tag of the signatures that are attached to `manifest`.
pub fn tag(manifest: &Digest) -> String {
    format!("{}-{}.sig", manifest.algorithm().name(), manifest.hex())
}

/// A signed payload.
#[derive(Debug)]
pub struct Signed {
    /// What was signed.
    pub payload: Vec<u8>,
    signature: Vec<u8>,
    by: PublicKey,
}

/// The signatures that are attached to one manifest.
#[derive(Clone, Debug)]
pub struct Attached {
    manifest: Value,
}

/// The document under the tag cannot be extended.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is not a manifest with signatures: {why}")]
pub struct NotSignatures {
    why: String,
}

impl Signed {
    /// Signs `manifest` as that of `repository`.
    ///
    /// # Errors
    /// [`NotMade`]
    pub fn new(manifest: &Digest, repository: &str, key: &PrivateKey) -> Result<Self, NotMade> {
        let payload = simple::payload(manifest, repository);
        Ok(Self { signature: key.sign(&payload)?, payload, by: key.public().clone() })
    }

    /// The payload's digest.
    pub fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.payload)
    }
}

impl Default for Attached {
    /// None.
    fn default() -> Self {
        Self {
            manifest: json!({
                "schemaVersion": 2,
                "mediaType": MediaType::OciManifest.as_str(),
                "config": { "mediaType": CONFIG },
                "layers": [],
            }),
        }
    }
}

impl Attached {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`NotSignatures`]
    pub fn parse(manifest: &[u8]) -> Result<Self, NotSignatures> {
        let manifest = serde_json::from_slice::<Value>(manifest);
        let manifest = manifest.map_err(|error| NotSignatures { why: error.to_string() })?;
        if !manifest["layers"].is_array() || !manifest["config"].is_object() {
            return Err(NotSignatures { why: "it has no configuration, or no layers".to_owned() });
        }
        Ok(Self { manifest })
    }

    /// Whether the same key has signed the same.
    pub fn has(&self, signed: &Signed) -> bool {
        let digest = signed.digest().to_string();
        let is_same = |layer: &Value| {
            let signature = layer["annotations"][SIGNATURE].as_str().and_then(|text| decoded(text, "it").ok());
            let by = std::slice::from_ref(&signed.by);
            layer["mediaType"] == SIMPLE_SIGNING
                && layer["digest"] == digest
                && signature.is_some_and(|signature| maker(by, &signed.payload, &signature).is_some())
        };
        self.manifest["layers"].as_array().is_some_and(|layers| layers.iter().any(is_same))
    }

    /// Adds a signature behind the others.
    pub fn add(&mut self, signed: &Signed) {
        if let Value::Array(layers) = &mut self.manifest["layers"] {
            layers.push(json!({
                "mediaType": SIMPLE_SIGNING,
                "digest": signed.digest().to_string(),
                "size": signed.payload.len(),
                "annotations": { SIGNATURE: STANDARD.encode(&signed.signature) },
            }));
        }
        let config = self.configuration();
        self.manifest["config"]["digest"] = Digest::of(Algorithm::Sha256, &config).to_string().into();
        self.manifest["config"]["size"] = config.len().into();
    }

    /// The configuration of the manifest: cosign writes that of an image, whose layers are the payloads.
    pub fn configuration(&self) -> Vec<u8> {
        let layers = self.manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let payloads: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        let configuration = json!({
            "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": payloads },
        });
        configuration.to_string().into_bytes()
    }

    /// The manifest.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// Its media type.
    pub fn media_type(&self) -> &str {
        self.manifest["mediaType"].as_str().unwrap_or(MediaType::OciManifest.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::simple_signing;
    use super::*;

    fn key() -> PrivateKey {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        PrivateKey::from_pem(pem.as_bytes()).unwrap()
    }

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn what_is_signed_is_what_cosign_signs() {
        let signed = Signed::new(&digest("manifest"), "r.example/a", &key()).unwrap();
        let wanted = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r.example/a"}},"image":{{"docker-manifest-digest":"{}"}},"type":"cosign container image signature"}},"optional":null}}"#,
            digest("manifest")
        );
        assert_eq!(String::from_utf8(signed.payload.clone()).unwrap(), wanted);
        let mut attached = Attached::default();
        attached.add(&signed);
        let manifest: Value = serde_json::from_slice(&attached.to_bytes()).unwrap();
        let layer = &manifest["layers"][0];
        assert_eq!(layer["digest"], signed.digest().to_string());
        let signature = layer["annotations"][SIGNATURE].as_str().unwrap();
        let statement = simple_signing(&signed.payload, signature, &[key().public().clone()]).unwrap();
        assert!(statement.is_about(&digest("manifest")) && !statement.is_about(&digest("other")));
        assert_eq!(statement.reference.as_deref(), Some("r.example/a"));
        assert_eq!(manifest["config"]["digest"], Digest::of(Algorithm::Sha256, &attached.configuration()).to_string());
    }

    #[test]
    fn signatures_of_others_stay_and_none_is_there_twice() {
        let theirs = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "annotations": { "a": "b" },
            "config": { "mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest("c"), "size": 1 },
            "layers": [{ "mediaType": SIMPLE_SIGNING, "digest": digest("p"), "size": 1,
                         "annotations": { SIGNATURE: "AA==", "dev.sigstore.cosign/bundle": "{}" } }],
        });
        let mut attached = Attached::parse(theirs.to_string().as_bytes()).unwrap();
        let signed = Signed::new(&digest("manifest"), "r.example/a", &key()).unwrap();
        assert!(!attached.has(&signed));
        attached.add(&signed);
        let ours: Value = serde_json::from_slice(&attached.to_bytes()).unwrap();
        assert_eq!(ours["layers"].as_array().unwrap().len(), 2);
        for same in ["schemaVersion", "mediaType", "annotations"] {
            assert_eq!(ours[same], theirs[same]);
        }
        assert_eq!(
            (&ours["layers"][0], &ours["config"]["mediaType"]),
            (&theirs["layers"][0], &theirs["config"]["mediaType"])
        );
        assert_eq!(attached.media_type(), theirs["mediaType"]);
        let again = Signed::new(&digest("manifest"), "r.example/a", &key()).unwrap();
        assert!(attached.has(&again));
        assert!(!attached.has(&Signed::new(&digest("other"), "r.example/a", &key()).unwrap()));
        assert!(!attached.has(&Signed::new(&digest("manifest"), "r.example/b", &key()).unwrap()));
        // A signature that is none stands there for the same payload.
        let text = String::from_utf8(attached.to_bytes()).unwrap().replace("\"AA==\"", "\"*\"");
        let mut forged: Value = serde_json::from_str(&text).unwrap();
        forged["layers"][1]["annotations"][SIGNATURE] = "AA==".into();
        assert!(!Attached::parse(forged.to_string().as_bytes()).unwrap().has(&again));
        for wrong in ["", "[]", "{}", r#"{"layers":[]}"#, r#"{"layers":{},"config":{}}"#] {
            assert!(Attached::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
