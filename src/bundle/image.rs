//! An image's configuration for running it (image-spec, config.md).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::BundleError;

/// The fields of an image's configuration that concern a container.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Configured {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
    author: Option<String>,
    created: Option<String>,
    #[serde(default, rename = "config", deserialize_with = "or_default")]
    process: Process,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    /// A set, written as an object of empty objects.
    volumes: Option<BTreeMap<String, Value>>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    stop_signal: Option<String>,
}

impl Configured {
    /// Parses an image's configuration.
    ///
    /// # Errors
    /// [`BundleError::Configuration`]
    pub fn parse(configuration: &str) -> Result<Self, BundleError> {
        serde_json::from_str(configuration).map_err(|error| BundleError::Configuration { why: error.to_string() })
    }

    /// `User`, as written; empty if there is none.
    pub fn user(&self) -> &str {
        self.process.user.as_deref().unwrap_or_default()
    }

    /// `Env`, as written.
    pub fn environment(&self) -> &[String] {
        self.process.env.as_deref().unwrap_or_default()
    }

    /// `Entrypoint`
    pub fn entrypoint(&self) -> &[String] {
        self.process.entrypoint.as_deref().unwrap_or_default()
    }

    /// `Cmd`
    pub fn command(&self) -> &[String] {
        self.process.cmd.as_deref().unwrap_or_default()
    }

    /// `WorkingDir`, if there is one.
    pub fn directory(&self) -> Option<&str> {
        self.process.working_dir.as_deref().filter(|directory| !directory.is_empty())
    }

    /// The paths of `Volumes`.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.process.volumes.iter().flatten().map(|(path, _)| path.as_str())
    }

    /// The annotations of the runtime's configuration; labels override other fields.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let joined = |list: &Vec<String>| (!list.is_empty()).then(|| list.join(","));
        let ports = self.process.exposed_ports.as_ref().filter(|ports| !ports.is_empty());
        let fields = [
            ("os", self.os.clone()),
            ("architecture", self.architecture.clone()),
            ("variant", self.variant.clone()),
            ("os.version", self.os_version.clone()),
            ("os.features", self.os_features.as_ref().and_then(joined)),
            ("author", self.author.clone()),
            ("created", self.created.clone()),
            ("stopSignal", self.process.stop_signal.clone()),
            ("exposedPorts", ports.map(|ports| ports.keys().map(String::as_str).collect::<Vec<_>>().join(","))),
        ];
        let fields =
            fields.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
        let mut annotations: BTreeMap<_, _> =
            fields.map(|(name, value)| (format!("org.opencontainers.image.{name}"), value)).collect();
        annotations.extend(self.process.labels.clone().unwrap_or_default());
        annotations
    }
}

/// A field that may be missing or `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn annotations_are_fields_and_labels_and_labels_win() {
        let text = r#"{"os":"linux","architecture":"arm64","variant":"v8","created":"2026-01-01T00:00:00Z","author":"",
            "os.features":["a","b"],"config":{"StopSignal":"SIGQUIT","ExposedPorts":{"80/tcp":{},"53/udp":{}},
            "Labels":{"org.opencontainers.image.os":"mine","x":"y"}}}"#;
        let annotations = Configured::parse(text).unwrap().annotations();
        let wanted = [
            ("org.opencontainers.image.architecture", "arm64"),
            ("org.opencontainers.image.created", "2026-01-01T00:00:00Z"),
            ("org.opencontainers.image.exposedPorts", "53/udp,80/tcp"),
            ("org.opencontainers.image.os", "mine"),
            ("org.opencontainers.image.os.features", "a,b"),
            ("org.opencontainers.image.stopSignal", "SIGQUIT"),
            ("org.opencontainers.image.variant", "v8"),
            ("x", "y"),
        ];
        assert_eq!(annotations, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn what_is_null_or_missing_is_not_there() {
        for text in ["{}", r#"{"config":null}"#, r#"{"config":{"Env":null,"Volumes":null,"WorkingDir":""}}"#] {
            let image = Configured::parse(text).unwrap();
            assert_eq!((image.user(), image.environment().len(), image.volumes().count()), ("", 0, 0), "{text}");
            assert_eq!((image.directory(), image.annotations().len()), (None, 0), "{text}");
        }
        let error = Configured::parse(r#"{"config":{"Cmd":"sh"}}"#).unwrap_err();
        assert!(error.to_string().contains("expected a sequence"), "{error}");
    }
}
