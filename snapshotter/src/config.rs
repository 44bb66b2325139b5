//! The configuration file: TOML, as containerd's. All fields are optional.

use std::path::{Path, PathBuf};

use peelfs::host::report::{Code, Report};
use peelfs::host::size;
use peelfs::host::spec::{CacheSpec, IndexFrom};
use peelfs::source::outage::OnOutage;
use serde::{Deserialize, Deserializer};

use crate::providers::Provider;
use crate::root;

/// The fields of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where content of layers is cached; by default in the root directory.
    pub(crate) cache_dir: Option<PathBuf>,
    /// Limit of its size, as in `"20GiB"`.
    #[serde(deserialize_with = "size")]
    pub(crate) cache_size: Option<u64>,
    /// Credentials, besides those of docker and podman.
    pub(crate) authfile: Option<PathBuf>,
    /// Credential providers.
    #[serde(rename = "credential-provider")]
    pub(crate) providers: Vec<Provider>,
    /// Further trusted certificates.
    pub(crate) ca: Vec<PathBuf>,
    /// The directory of `hosts.toml` files, in place of containerd's and Docker's.
    pub(crate) hosts_dir: Option<PathBuf>,
    /// Registries, as HOST or HOST:PORT, that use plain HTTP or unverified TLS.
    pub(crate) insecure: Vec<String>,
    /// How long reads wait for a registry that does not answer.
    #[serde(deserialize_with = "parsed")]
    pub(crate) on_outage: OnOutage,
    /// Whether images are mounted instead of unpacked, if containerd names a layer's image.
    pub(crate) lazy: bool,
    /// Whether the kernel mounts images once all of them is cached.
    pub(crate) kernel: bool,
    /// Whether bytes of an image may be read while it is being verified.
    pub(crate) verify_behind: bool,
    /// The directory of verifiers, which must allow images before they are mounted; `None` runs none.
    pub(crate) verifier_dir: Option<PathBuf>,
    /// The repository whose pushed indexes of layers are used: `"referrers"` for the image's own.
    #[serde(deserialize_with = "index_from")]
    pub(crate) index_from: Option<IndexFrom>,
    /// The directory of verifiers that have to allow them; by default that of the machine, if there is one.
    pub(crate) index_verifier_dir: Option<PathBuf>,
    /// Time limit in seconds for resolving an image at its registry; after it, the image is pulled and unpacked.
    pub(crate) resolve_within: u64,
    /// Whether pulls of Kubernetes bring logins; set on the command line.
    #[serde(skip)]
    pub(crate) learns_logins: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_dir: None,
            cache_size: None,
            authfile: None,
            providers: Vec::new(),
            ca: Vec::new(),
            hosts_dir: None,
            insecure: Vec::new(),
            on_outage: OnOutage::default(),
            lazy: true,
            kernel: true,
            verify_behind: false,
            verifier_dir: None,
            index_from: None,
            index_verifier_dir: None,
            resolve_within: 20,
            learns_logins: false,
        }
    }
}

impl Config {
    /// Parses `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, Report> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|cause| {
            let code = if cause.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Failure };
            Report::new(code, format!("cannot read the configuration `{shown}`: {cause}"))
                .hint("`--config` names a TOML file; without it, defaults apply")
        })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Report::usage(format!("cannot use the configuration `{shown}`, line {line}: {}", error.message().trim()))
                .hint("docs/containerd.md lists the fields")
        })?;
        if config.authfile.is_some() && !config.providers.is_empty() {
            return Err(Report::usage(format!(
                "cannot use the configuration `{shown}`: `authfile` and `credential-provider` exclude each other"
            ))
            .hint("other logins can be in `~/.docker/config.json` of the snapshotter's user"));
        }
        config.check_paths().map_err(|(path, why)| {
            Report::usage(format!("cannot use the configuration `{shown}`: `{}` {why}", path.display()))
                .hint("paths must be absolute and exist; only `cache-dir` is created")
        })?;
        Ok(config)
    }

    /// Checks that named files exist: otherwise images would be unpacked, or used without verification.
    fn check_paths(&self) -> Result<(), (&Path, String)> {
        let commands = self.providers.iter().map(|provider| &provider.command);
        let directories = self.hosts_dir.iter().chain(&self.verifier_dir).chain(&self.index_verifier_dir);
        let needed = self.authfile.iter().chain(directories.clone()).chain(&self.ca).chain(commands);
        for path in self.cache_dir.iter().chain(needed.clone()) {
            if !path.is_absolute() {
                return Err((path, "is not an absolute path".to_owned()));
            }
        }
        for path in needed {
            std::fs::metadata(path).map_err(|cause| (path.as_path(), format!("cannot be used: {cause}")))?;
        }
        for path in directories {
            let read = std::fs::read_dir(path);
            read.map_err(|cause| (path.as_path(), format!("cannot be read as a directory: {cause}")))?;
        }
        Ok(())
    }

    /// Checks the place of the cache: nothing may be mounted in it.
    pub(crate) fn check(&self, root: &Path) -> Result<(), Report> {
        let cache = self.cache(root).dir;
        if root.starts_with(&cache) {
            let cache = cache.display();
            return Err(Report::usage(format!("`{}` is within the cache `{cache}`", root.display()))
                .hint("use another directory in `cache-dir`"));
        }
        Ok(())
    }

    /// The cache, for a snapshotter with this root directory.
    pub(crate) fn cache(&self, root: &Path) -> CacheSpec {
        CacheSpec { dir: self.cache_dir.clone().unwrap_or_else(|| root.join(root::CACHE)), limit: self.cache_size }
    }
}

fn parsed<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

fn index_from<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IndexFrom>, D::Error> {
    parsed(from).map(Some)
}

/// Bytes, as a number or with a unit.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "this is not a size; write it as \"20GiB\", \"500M\" or 1000000")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(from)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => size::parse(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Config, Report> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn a_file_says_what_differs() {
        let config =
            read("cache-size = \"20GiB\"\ninsecure = [\"reg:5000\"]\non-outage = \"block\"\nkernel = false\n").unwrap();
        assert_eq!((config.cache_size, config.kernel, config.lazy), (Some(20 << 30), false, true));
        assert_eq!((config.insecure, config.on_outage), (vec!["reg:5000".to_owned()], OnOutage::Block));
        assert_eq!(read("index-from = \"referrers\"").unwrap().index_from, Some(IndexFrom::Referrers));
        let verified = read("index-from = \"referrers\"\nindex-verifier-dir = \"/etc\"").unwrap();
        assert_eq!(verified.index_verifier_dir.as_deref(), Some(Path::new("/etc")));
        assert_eq!(read("cache-size = 1000000").unwrap().cache_size, Some(1_000_000));
        assert_eq!(read("cache-size = \"1.5k\"").unwrap().cache_size, Some(1536));
        assert_eq!(read("").unwrap().cache(Path::new("/r")).dir, Path::new("/r/cache"));
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (text, said) in [
            ("\ncolour = 1\n", "line 2: unknown field `colour`"),
            ("cache-size = \"20 apples\"", "`20 apples` is not a size"),
            ("cache-size = -1", "line 1: this is not a size"),
            ("on-outage = \"never\"", "line 1"),
            ("cache-dir = \"here\"", "`here` is not an absolute path"),
            ("ca = [\"/nonexistent.pem\"]", "`/nonexistent.pem` cannot be used: No such file"),
            ("verifier-dir = \"/nonexistent\"", "`/nonexistent` cannot be used: No such file"),
            ("index-verifier-dir = \"/nonexistent\"", "`/nonexistent` cannot be used: No such file"),
            ("index-from = \"reg/app:1\"", "has a tag or a digest"),
            ("= 3", "line 1"),
        ] {
            let report = read(text).unwrap_err();
            assert!(report.message.contains(said), "{}", report.message);
            assert!(!report.message.contains('\n') && report.hint.is_some(), "{}", report.message);
        }
    }
}
