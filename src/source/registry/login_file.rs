//! Login files: `auth.json`, `config.json` and `.dockercfg` as tools write them.
//!
//! Many programs write these files and most read them with Go's decoder, which takes `null` for an empty map, field
//! names in any case, and base64 with line breaks. A stricter reader would fail for users who are logged in everywhere
//! else. So values are read one by one: an invalid value is skipped and reported, and only a file that is not a JSON
//! object is refused.

use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::credentials::{Credential, HUB_KEYS, Secret};
use super::http::shown;

/// Limit for a credentials file or a helper's output, in bytes.
pub(super) const FILE_LIMIT: u64 = 1 << 20;
/// Stands for all names of Docker Hub in comparisons.
const HUB: &str = "docker.io";
/// Limit for keys named in a warning.
const MOST_NAMED: usize = 8;

/// A credentials file that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot use {path}: {why}")]
pub(super) struct UnusableFile {
    pub(super) path: String,
    why: String,
}

impl UnusableFile {
    pub(super) fn missing(path: &Path) -> Self {
        Self { path: path.display().to_string(), why: "it does not exist".to_owned() }
    }
}

/// The content of a login file.
#[derive(Default)]
pub(super) struct LoginFile {
    /// Logins by key, normalised by [`key_of`].
    pub(super) logins: Vec<(String, Credential)>,
    /// Helpers for one host each, by key.
    pub(super) helpers: Vec<(String, String)>,
    /// The helper for all other hosts.
    pub(super) store: Option<String>,
    /// Keys with invalid values, for a warning.
    pub(super) invalid: Vec<String>,
}

/// Identity and state of the file at a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mark([i64; 2], [u64; 3]);

impl Mark {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self([found.ctime(), found.ctime_nsec()], [found.dev(), found.ino(), found.size()]))
    }
}

impl LoginFile {
    /// Reads a file; `None` if it does not exist. A `legacy` file has the logins at the top level.
    pub(super) fn read(path: &Path, legacy: bool) -> Result<Option<Self>, UnusableFile> {
        let unusable = |why: String| UnusableFile { path: path.display().to_string(), why };
        let open = match std::fs::File::open(path) {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let metadata = open.metadata().map_err(|error| unusable(error.to_string()))?;
        if is_null_device(&metadata) {
            return Ok(Some(Self::default()));
        }
        if !metadata.is_file() {
            return Err(unusable("it is not a file".to_owned()));
        }
        let mut text = Vec::new();
        open.take(FILE_LIMIT + 1).read_to_end(&mut text).map_err(|error| unusable(error.to_string()))?;
        if text.len() as u64 > FILE_LIMIT {
            return Err(unusable("it is larger than 1 MiB".to_owned()));
        }
        Self::parse(&text, legacy).map(Some).map_err(unusable)
    }

    fn parse(text: &[u8], legacy: bool) -> Result<Self, String> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text).trim_ascii();
        let mut file = Self::default();
        if text.is_empty() {
            return Ok(file);
        }
        // serde_json's own message may quote the invalid value, which may be a password.
        let top = serde_json::from_slice(text)
            .map_err(|error| format!("line {}, column {} is not valid", error.line(), error.column()))?;
        let top = match top {
            Value::Null => return Ok(file),
            Value::Object(top) => top,
            _ => return Err("it is not a JSON object".to_owned()),
        };
        if legacy {
            file.add_logins(top);
            return Ok(file);
        }
        for (name, value) in top {
            match (name.to_ascii_lowercase().as_str(), value) {
                ("auths" | "credhelpers" | "credsstore", Value::Null) => {}
                ("auths", Value::Object(logins)) => file.add_logins(logins),
                ("credhelpers", Value::Object(helpers)) => file.add_helpers(helpers),
                ("credsstore", Value::String(store)) => file.store = Some(store).filter(|store| !store.is_empty()),
                ("auths" | "credhelpers" | "credsstore", _) => file.complain(&name),
                _ => {}
            }
        }
        Ok(file)
    }

    /// Whether it has no login, no helper and no invalid entry.
    pub(super) fn is_empty(&self) -> bool {
        self.logins.is_empty() && self.helpers.is_empty() && self.store.is_none() && self.invalid.is_empty()
    }

    fn add_logins(&mut self, logins: Map<String, Value>) {
        for (key, value) in logins {
            let login = match value {
                Value::Null => Ok(None),
                Value::Object(fields) => login(fields),
                _ => Err(InvalidEntry),
            };
            match login {
                Ok(Some(login)) => self.logins.push((key_of(&key), login)),
                Ok(None) => {}
                Err(InvalidEntry) => self.complain(&key),
            }
        }
    }

    fn add_helpers(&mut self, helpers: Map<String, Value>) {
        for (key, value) in helpers {
            match value {
                Value::Null => {}
                Value::String(helper) if helper.is_empty() => {}
                Value::String(helper) => self.helpers.push((key_of(&key), helper)),
                _ => self.complain(&key),
            }
        }
    }

    fn complain(&mut self, key: &str) {
        if self.invalid.len() < MOST_NAMED {
            self.invalid.push(format!("`{}`", shown(key)));
        }
    }
}

fn is_null_device(metadata: &std::fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == rustix::fs::makedev(1, 3)
}

/// An entry that is not a valid login.
struct InvalidEntry;

fn login(fields: Map<String, Value>) -> Result<Option<Credential>, InvalidEntry> {
    let (mut auth, mut user, mut password, mut identity, mut registry) = (None, None, None, None, None);
    for (name, value) in fields {
        let field = match name.to_ascii_lowercase().as_str() {
            "auth" => &mut auth,
            "username" => &mut user,
            "password" => &mut password,
            "identitytoken" => &mut identity,
            "registrytoken" => &mut registry,
            _ => continue,
        };
        match value {
            Value::Null => {}
            Value::String(text) => *field = Some(text),
            _ => return Err(InvalidEntry),
        }
    }
    let given = |field: Option<String>| field.filter(|text| !text.is_empty());
    if let Some(token) = given(identity) {
        return Ok(Some(Credential::Identity { token: Secret::new(token) }));
    }
    if let Some(token) = given(registry) {
        return Ok(Some(Credential::Registry { token: Secret::new(token) }));
    }
    let (user, password) = match (given(auth), given(user), password) {
        (Some(auth), ..) => decode(&auth).ok_or(InvalidEntry)?,
        (None, Some(user), Some(password)) => (user, password),
        (None, ..) => return Ok(None),
    };
    if user.is_empty() {
        return Err(InvalidEntry);
    }
    Ok(Some(Credential::Password { user, password: Secret::new(password) }))
}

/// `user:password` in base64, with or without padding and line breaks; Docker ends some passwords with NULs.
fn decode(auth: &str) -> Option<(String, String)> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let bare: Vec<u8> = auth.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let plain = String::from_utf8(GeneralPurpose::new(&STANDARD, lenient).decode(bare).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.trim_matches('\0').to_owned()))
}

/// Normalises a key of a file, or a registry's host, for comparison.
///
/// Old tools wrote URLs, of which only the host counts; `HOST/v1/` and `HOST/v2/` are URLs without a scheme. Hosts are
/// compared without case, and all names of Docker Hub are equal.
pub(super) fn key_of(written: &str) -> String {
    let schemes = ["https://", "http://"];
    let rest = schemes.iter().find_map(|scheme| {
        written.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme)).map(|_| &written[scheme.len()..])
    });
    let (host, path) = match rest {
        Some(rest) => (rest.split('/').next().unwrap_or(rest), ""),
        None => written.split_once('/').unwrap_or((written, "")),
    };
    let host = host.to_ascii_lowercase();
    let host = if HUB_KEYS.contains(&host.as_str()) { HUB } else { &host };
    match path {
        "v1/" | "v2/" => host.to_owned(),
        path => format!("{host}/{}", path.trim_end_matches('/')).trim_end_matches('/').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_by_what_they_mean() {
        for (written, wanted) in [
            ("r.example", "r.example"),
            ("R.Example:5000", "r.example:5000"),
            ("https://r.example/v1/", "r.example"),
            ("HTTP://R.example/v2/", "r.example"),
            ("https://r.example/team/app", "r.example"),
            ("r.example/v1/", "r.example"),
            ("r.example/v2", "r.example/v2"),
            ("r.example/team/app", "r.example/team/app"),
            ("r.example/team/", "r.example/team"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io/library/a", "docker.io/library/a"),
            ("registry-1.docker.io", "docker.io"),
            ("[::1]:5000", "[::1]:5000"),
            ("", ""),
            ("é", "é"),
        ] {
            assert_eq!(key_of(written), wanted, "{written}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_without_panic(text: Vec<u8>, legacy: bool) {
            let _ = LoginFile::parse(&text, legacy);
        }

        #[test]
        fn any_key_is_compared_without_panic(key: String) {
            let _ = key_of(&key);
        }
    }
}
