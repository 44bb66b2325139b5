//! Logins from `nodePublishSecretRef`, as a login file for one volume.

use std::collections::HashMap;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use crate::attributes::NotPossible;

/// Credentials as a file has them (containers-auth.json(5)), of secrets of the types `kubernetes.io/dockerconfigjson` and
/// `kubernetes.io/dockercfg`; or user name and password for the image's registry. `None` without secrets.
///
/// Only what logs in is taken: helpers that a pod's author names would be programs of the node.
pub(crate) fn file(secrets: &HashMap<String, String>, registry: &str) -> Result<Option<Vec<u8>>, NotPossible> {
    let mut auths = Map::new();
    let mut keys: Vec<_> = secrets.keys().map(String::as_str).collect();
    keys.sort_unstable();
    for key in keys {
        let found = match key {
            ".dockerconfigjson" => parsed(key, &secrets[key])?.remove("auths").unwrap_or_else(|| json!({})),
            ".dockercfg" => Value::Object(parsed(key, &secrets[key])?),
            "username" | "password" => continue,
            other => {
                return Err(NotPossible(format!(
                    "unknown secret key `{}`; keys are `.dockerconfigjson`, `.dockercfg`, and `username` with \
                     `password`",
                    other.escape_debug()
                )));
            }
        };
        match found {
            Value::Object(found) => auths.extend(found),
            _ => return Err(malformed(key)),
        }
    }
    match (secrets.get("username"), secrets.get("password")) {
        (Some(user), Some(password)) => {
            let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            auths.insert(registry.to_owned(), json!({ "auth": auth }));
        }
        (None, None) => {}
        _ => return Err(NotPossible("the secret has only one of `username` and `password`".to_owned())),
    }
    if secrets.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::to_vec(&json!({ "auths": auths })).expect("plain data")))
}

/// The error must not contain any of the secret.
fn malformed(key: &str) -> NotPossible {
    NotPossible(format!("secret key `{key}` is not the JSON of a login file"))
}

fn parsed(key: &str, text: &str) -> Result<Map<String, Value>, NotPossible> {
    serde_json::from_str(text).map_err(|_| malformed(key))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(secrets: &[(&str, &str)]) -> Result<Option<Value>, String> {
        let secrets = secrets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let file = file(&secrets, "r.example").map_err(|error| error.to_string())?;
        Ok(file.map(|file| serde_json::from_slice(&file).unwrap()))
    }

    #[test]
    fn secrets_of_kubernetes_become_a_file_of_credentials() {
        assert_eq!(of(&[]), Ok(None));
        let config =
            r#"{ "auths": { "a": { "auth": "eDp5" } }, "credsStore": "evil", "credHelpers": { "b": "evil" } }"#;
        assert_eq!(of(&[(".dockerconfigjson", config)]), Ok(Some(json!({ "auths": { "a": { "auth": "eDp5" } } }))));
        assert_eq!(of(&[(".dockercfg", r#"{ "a": {} }"#)]), Ok(Some(json!({ "auths": { "a": {} } }))));
        let login = json!({ "auths": { "r.example": { "auth": "eDp5" } } });
        assert_eq!(of(&[("username", "x"), ("password", "y")]), Ok(Some(login)));
        for wrong in [
            (&[(".dockerconfigjson", "s3cret")][..], "not the JSON"),
            (&[(".dockerconfigjson", r#"{"auths": "s3cret"}"#)], "not the JSON"),
            (&[("username", "s3cret")], "only one of"),
            (&[("token", "s3cret")], "unknown secret key `token`"),
        ] {
            let error = of(wrong.0).unwrap_err();
            assert!(error.contains(wrong.1) && !error.contains("s3cret"), "{error}");
        }
    }
}
