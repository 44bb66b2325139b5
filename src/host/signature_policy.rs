//! Which images need which signatures: the configuration of `peelfs verify-image`.
//!
//! ```json
//! { "images": {
//!     "registry.example/team": { "keys": ["team.pub"], "same-repository": true },
//!     "docker.io/library":     { "accept": true },
//!     "*":                     { "keys": ["ours.pub", "theirs.pub"] } } }
//! ```
//!
//! A name matches a host, everything below it, or one repository; the longest match decides. An image without a match
//! is refused.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::signed::Demand;
use super::verifiers::{self, VerifierError};
use crate::reference::{Place, Reference};
use crate::signature::{KeyError, PublicKey};

/// The default path.
pub const DEFAULT_FILE: &str = "/etc/peelfs/verify-image.json";

/// Required signatures, by image.
#[derive(Debug)]
pub struct Policy {
    file: PathBuf,
    images: BTreeMap<String, Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    images: BTreeMap<String, Rule>,
}

/// The rule for some images.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rule {
    #[serde(default)]
    keys: Vec<PathBuf>,
    #[serde(default)]
    same_repository: bool,
    #[serde(default)]
    accept: bool,
}

/// The requirement for one image.
#[derive(Clone, Debug)]
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// A signature.
    Signature(Demand),
}

/// Why the requirement cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It cannot be parsed.
    #[error("`{}` is not a configuration of `peelfs verify-image`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// A rule without a requirement, or with two.
    #[error("`{}`: `{name}` needs either `keys` or `\"accept\": true`", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// The images it is for.
        name: String,
    },
    /// A key cannot be used.
    #[error("cannot use the key `{}`", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: KeyError,
    },
    /// Other users can change it.
    #[error(transparent)]
    Unsafe(#[from] VerifierError),
    /// No rule matches this image.
    #[error("`{}` has no rule for {name}", path.display())]
    NoRule {
        /// The file.
        path: PathBuf,
        /// The image.
        name: String,
    },
}

impl Policy {
    /// Reads it.
    ///
    /// # Errors
    /// [`PolicyError`]
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = read(path)?;
        let malformed = |cause| PolicyError::Malformed { path: path.to_owned(), cause };
        let File { images } = serde_json::from_slice(&text).map_err(malformed)?;
        for (name, rule) in &images {
            if rule.accept != rule.keys.is_empty() || (rule.accept && rule.same_repository) {
                return Err(PolicyError::Rule { path: path.to_owned(), name: name.clone() });
            }
        }
        Ok(Self { file: path.to_owned(), images })
    }

    /// The requirement for this image.
    ///
    /// # Errors
    /// [`PolicyError::NoRule`]; [`PolicyError::Key`] and others for its keys
    pub fn requirement(&self, image: &Reference) -> Result<Requirement, PolicyError> {
        let name = scope(image);
        let fitting = self.images.iter().filter(|(scope, _)| covers(scope, &name));
        let Some((_, rule)) = fitting.max_by_key(|(scope, _)| if *scope == ANY { 0 } else { scope.len() }) else {
            return Err(PolicyError::NoRule { path: self.file.clone(), name });
        };
        if rule.accept {
            return Ok(Requirement::Nothing);
        }
        let beside = self.file.parent().unwrap_or(Path::new("."));
        let keys: Vec<_> = rule.keys.iter().map(|key| beside.join(key)).collect();
        Ok(Requirement::Signature(Demand { keys: self::keys(&keys)?, same_repository: rule.same_repository }))
    }
}

/// The keys in these files.
///
/// # Errors
/// [`PolicyError`]
pub fn keys(paths: &[impl AsRef<Path>]) -> Result<Vec<PublicKey>, PolicyError> {
    let mut keys = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        let all = PublicKey::all(&read(path)?);
        keys.extend(all.map_err(|cause| PolicyError::Key { path: path.to_owned(), cause })?);
    }
    Ok(keys)
}

/// A file that decides what is allowed.
fn read(path: &Path) -> Result<Vec<u8>, PolicyError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |cause| PolicyError::File { path: path.to_owned(), cause };
    // Do not block on something that is not a regular file.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("flags of open(2)");
    let file = std::fs::File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    verifiers::check_writers(path)?;
    read_bounded(&file).map_err(failed)
}

/// The bytes of a key or a policy, which have some KiB at most.
pub(super) fn read_bounded(file: &std::fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other(format!("it has more than {FILE_LIMIT} bytes")));
    }
    Ok(bytes)
}

/// The name that rules are matched with: a repository or a local path.
fn scope(image: &Reference) -> String {
    match image.place() {
        Place::Registry(name) => format!("{}/{}", name.authority(), name.repository()),
        Place::Layout(_)
        | Place::OciArchive(_)
        | Place::DockerArchive(_)
        | Place::Directory(_)
        | Place::ContainersStorage(_)
        | Place::DockerDaemon(_) => image.canonical(),
    }
}

/// Whether the rule `name` matches `scope`: the name itself, or a parent.
fn covers(scope: &str, name: &str) -> bool {
    let scope = scope.trim_end_matches('/');
    // After a host, a port names another registry; after a path, the rest selects an image.
    let ends: &[char] = if scope.contains('/') { &['/', ':', '@'] } else { &['/'] };
    scope == ANY || name.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with(ends))
}

/// Matches every image.
const ANY: &str = "*";
const FILE_LIMIT: u64 = 1 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    fn policy(text: &str) -> (tempfile::TempDir, Result<Policy, PolicyError>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("k.pub"), KEY).unwrap();
        std::fs::write(dir.path().join("policy"), text).unwrap();
        let policy = Policy::read(&dir.path().join("policy"));
        (dir, policy)
    }

    /// The requirement: nothing, a signature, one for the repository, or an error.
    fn requirement(policy: &Policy, image: &str) -> String {
        match policy.requirement(&image.parse().unwrap()) {
            Ok(Requirement::Nothing) => "nothing".to_owned(),
            Ok(Requirement::Signature(demand)) => format!("{} {}", demand.keys.len(), demand.same_repository),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_longest_name_that_fits_decides() {
        let text = r#"{ "images": {
            "r.example": { "keys": ["k.pub"] },
            "r.example/team/": { "keys": ["k.pub", "k.pub"], "same-repository": true },
            "r.example/team/open": { "accept": true },
            "oci:/srv": { "accept": true } } }"#;
        let (_dir, policy) = policy(text);
        let policy = policy.unwrap();
        for (image, wanted) in [
            ("r.example/a", "1 false"),
            ("r.example/team/a:1", "2 true"),
            ("r.example/team/open", "nothing"),
            ("r.example/team/opened", "2 true"),
            ("oci:/srv/x:latest", "nothing"),
            ("oci:/srv:latest", "nothing"),
        ] {
            assert_eq!(requirement(&policy, image), wanted, "{image}");
        }
        for image in ["r.example:5000/a", "python", "oci:/srvx", "oci-archive:/srv/x"] {
            assert!(
                requirement(&policy, image).contains("has no rule for"),
                "{image}: {}",
                requirement(&policy, image)
            );
        }
    }

    #[test]
    fn a_configuration_with_mistakes_allows_nothing() {
        for (text, wanted) in [
            ("", "EOF"),
            ("[]", "expected struct File"),
            (r#"{ "images": {}, "default": "accept" }"#, "unknown field `default`"),
            (r#"{ "images": { "*": { "key": "k.pub" } } }"#, "unknown field `key`"),
            (r#"{ "images": { "*": {} } }"#, "`*` needs either"),
            (r#"{ "images": { "*": { "accept": true, "keys": ["k.pub"] } } }"#, "`*` needs either"),
        ] {
            let error = crate::image::chain(&policy(text).1.unwrap_err());
            assert!(error.contains(wanted), "{text}: {error}");
        }
        let (_dir, missing) = policy(r#"{ "images": { "*": { "keys": ["other.pub"] } } }"#);
        assert!(requirement(&missing.unwrap(), "python").contains("other.pub"));
        let (dir, own) = policy(r#"{ "images": { "*": { "keys": ["policy"] } } }"#);
        assert!(requirement(&own.unwrap(), "python").starts_with("cannot use the key"));
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join("policy");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(Policy::read(&path), Err(PolicyError::Unsafe(_))));
        assert!(matches!(Policy::read(dir.path()), Err(PolicyError::File { .. })));
    }
}
