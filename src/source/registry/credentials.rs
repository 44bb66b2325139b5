//! Credentials: who the user is to a registry, from the files and helpers other tools fill.
//!
//! People have logged in with podman or docker already, so peelfs reads what those left behind, in
//! the order users know (containers-auth.json(5)), and falls through to the next place when one has
//! nothing. Files and helpers are asked again for every new token: a login made while an image is
//! mounted takes effect without a remount.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The largest credentials file or helper answer that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// The keys under which tools store the login to Docker Hub, beside `docker.io` itself.
const HUB_KEYS: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];
/// The name Docker Hub has in Docker's own files and helpers.
const HUB_URL: &str = "https://index.docker.io/v1/";

/// A string that no message, log or debug output shows.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be put into a request and nowhere else.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What is shown to a registry or its token server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Credential {
    /// A user's name and password.
    Password { user: String, password: Secret },
    /// An OAuth2 refresh token (`identitytoken`).
    Identity { token: Secret },
    /// A token for the registry itself (`registrytoken`).
    Registry { token: Secret },
}

/// A credential and where it was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Found {
    pub(super) credential: Credential,
    /// The file, or the helper, as a person would name it.
    pub(super) origin: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.credential {
            Credential::Password { user, .. } => write!(f, "user `{}` from {}", user.escape_debug(), self.origin),
            Credential::Identity { .. } => write!(f, "the identity token from {}", self.origin),
            Credential::Registry { .. } => write!(f, "the registry token from {}", self.origin),
        }
    }
}

/// The part of the process's environment that decides where credentials and certificates are.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`, a directory.
    pub docker_config: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`.
    pub registry_auth_file: Option<PathBuf>,
    /// `PATH`, in which credential helpers are looked for.
    pub path: Option<OsString>,
    /// The user's number: without `XDG_RUNTIME_DIR`, podman uses `/run/containers/UID`.
    pub uid: Option<u32>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            home: path("HOME"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            path: std::env::var_os("PATH"),
            uid: Some(rustix::process::getuid().as_raw()),
        }
    }

    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub(super) fn config_home(&self) -> Option<PathBuf> {
        self.xdg_config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))
    }
}

/// Credentials could not be read from a place that the user named.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot use {path}: {why}")]
pub(super) struct UnusableFile {
    pub(super) path: String,
    why: String,
}

/// All places where credentials for one repository may be.
#[derive(Debug)]
pub(super) struct Keyring {
    files: Vec<File>,
    host: String,
    repository: String,
    path: Option<OsString>,
    helper_limit: Duration,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// `~/.dockercfg` has the `auths` map alone.
    legacy: bool,
    /// The user named it, so it must be there and readable.
    named: bool,
}

impl Keyring {
    /// The places for `host` (with its port, if one was given) and `repository`.
    pub(super) fn new(
        host: String,
        repository: String,
        authfile: Option<PathBuf>,
        around: &Surroundings,
        helper_limit: Duration,
    ) -> Self {
        let mut files = Vec::new();
        let mut add = |path: Option<PathBuf>, legacy, named| {
            files.extend(path.map(|path| File { path, legacy, named }));
        };
        add(authfile, false, true);
        add(around.registry_auth_file.clone(), false, false);
        let runtime = around.xdg_runtime_dir.as_ref().map(|dir| dir.join("containers"));
        let runtime = runtime.or_else(|| Some(PathBuf::from(format!("/run/containers/{}", around.uid?))));
        add(runtime.map(|dir| dir.join("auth.json")), false, false);
        add(around.config_home().map(|dir| dir.join("containers/auth.json")), false, false);
        let docker = around.docker_config.clone().or_else(|| Some(around.home.as_ref()?.join(".docker")));
        add(docker.map(|dir| dir.join("config.json")), false, false);
        add(around.home.as_ref().map(|home| home.join(".dockercfg")), true, false);
        Self { files, host, repository, path: around.path.clone(), helper_limit }
    }

    /// The first credential found, if any; files and helpers are read anew.
    ///
    /// # Errors
    /// [`UnusableFile`] for the file the user named; trouble with any other is logged and passed over.
    pub(super) async fn find(&self) -> Result<Option<Found>, UnusableFile> {
        for file in &self.files {
            let config = match Config::read(file) {
                Ok(Some(config)) => config,
                Ok(None) => continue,
                Err(error) if file.named => return Err(error),
                Err(error) => {
                    tracing::warn!("{error}; looking for credentials elsewhere");
                    continue;
                }
            };
            if let Some(found) = self.look_in(&config, &file.path).await {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn look_in(&self, config: &Config, path: &Path) -> Option<Found> {
        for name in self.host_names() {
            if let Some(helper) = config.cred_helpers.get(name) {
                if let Some(found) = self.ask(helper).await {
                    return Some(found);
                }
                break;
            }
        }
        for key in self.keys() {
            let entries = config.auths.iter().filter(|(written, _)| normal(written) == key);
            if let Some(credential) = entries.filter_map(|(_, entry)| entry.credential()).next() {
                return Some(Found { credential, origin: path.display().to_string() });
            }
        }
        self.ask(config.creds_store.as_deref().filter(|name| !name.is_empty())?).await
    }

    fn is_hub(&self) -> bool {
        HUB_KEYS.contains(&self.host.as_str())
    }

    fn host_names(&self) -> Vec<&str> {
        if self.is_hub() { [HUB_URL].into_iter().chain(HUB_KEYS).collect() } else { vec![&self.host] }
    }

    /// What an entry may be called, most special first: the repository's path, its parents, the host.
    fn keys(&self) -> Vec<String> {
        let first = if self.is_hub() { "docker.io" } else { &self.host };
        let mut key = format!("{first}/{}", self.repository);
        let mut keys = Vec::new();
        while let Some(slash) = key.rfind('/') {
            keys.push(key.clone());
            key.truncate(slash);
        }
        keys.push(key);
        if self.is_hub() {
            keys.extend(HUB_KEYS.iter().filter(|name| **name != "docker.io").map(|name| (*name).to_owned()));
        }
        keys
    }

    /// The answer of the helper `docker-credential-NAME`; trouble is logged and counts as no answer.
    async fn ask(&self, name: &str) -> Option<Found> {
        for server in self.host_names() {
            match self.ask_for(name, server).await {
                Ok(Some(credential)) => {
                    return Some(Found { credential, origin: format!("docker-credential-{name}") });
                }
                Ok(None) => {}
                Err(why) => {
                    let name = name.escape_debug();
                    tracing::warn!("credential helper `{name}` gave nothing: {why}; looking elsewhere");
                    return None;
                }
            }
        }
        None
    }

    async fn ask_for(&self, name: &str, server: &str) -> Result<Option<Credential>, HelperFault> {
        let program = self.program(name)?;
        let mut child = tokio::process::Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(HelperFault::Start)?;
        let mut input = child.stdin.take().expect("stdin is piped");
        let output = child.stdout.take().expect("stdout is piped");
        let conversation = async {
            // A helper may answer without reading; what counts is what it says.
            let _ = input.write_all(server.as_bytes()).await;
            drop(input);
            let mut said = Vec::new();
            output.take(FILE_LIMIT).read_to_end(&mut said).await.map_err(HelperFault::Start)?;
            Ok((said, child.wait().await.map_err(HelperFault::Start)?))
        };
        // Dropping the conversation at the limit drops the child, which kills it.
        let (said, status) = match tokio::time::timeout(self.helper_limit, conversation).await {
            Ok(ended) => ended?,
            Err(_) => return Err(HelperFault::Late(self.helper_limit)),
        };
        if !status.success() {
            // The protocol's words for "I have none".
            let none = String::from_utf8_lossy(&said).contains("credentials not found");
            return if none { Ok(None) } else { Err(HelperFault::Failed(status)) };
        }
        let answer: HelperAnswer = serde_json::from_slice(&said).map_err(|_| HelperFault::Nonsense)?;
        let secret = Secret::new(answer.secret);
        Ok(match answer.username.as_str() {
            "<token>" => Some(Credential::Identity { token: secret }),
            "" => None,
            _ => Some(Credential::Password { user: answer.username, password: secret }),
        })
    }

    fn program(&self, name: &str) -> Result<PathBuf, HelperFault> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(HelperFault::Name);
        }
        let file = format!("docker-credential-{name}");
        // Relative entries would run what lies in the current directory.
        let directories = self.path.as_deref().map(std::env::split_paths).into_iter().flatten();
        let mut programs = directories.filter(|dir| dir.is_absolute()).map(|dir| dir.join(&file));
        programs.find(|program| program.is_file()).ok_or(HelperFault::Missing)
    }
}

/// Why a credential helper gave nothing.
#[derive(Debug, thiserror::Error)]
enum HelperFault {
    #[error("its name may have only letters, digits, `-`, `_` and `.`")]
    Name,
    #[error("it is not in PATH")]
    Missing,
    #[error("{0}")]
    Start(std::io::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("it failed with {0}")]
    Failed(std::process::ExitStatus),
    #[error("its answer cannot be read")]
    Nonsense,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// A credentials file.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(default, rename = "registrytoken")]
    registry_token: Option<String>,
}

impl Config {
    /// Reads a file; `None` if it is not there.
    fn read(file: &File) -> Result<Option<Self>, UnusableFile> {
        let unusable = |why: String| UnusableFile { path: file.path.display().to_string(), why };
        let open = match std::fs::File::open(&file.path) {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !file.named => return Ok(None),
            Err(error) => return Err(unusable(error.to_string())),
        };
        if !open.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(unusable("it is not a file".to_owned()));
        }
        let mut text = Vec::new();
        open.take(FILE_LIMIT + 1).read_to_end(&mut text).map_err(|error| unusable(error.to_string()))?;
        if text.len() as u64 > FILE_LIMIT {
            return Err(unusable("it is larger than 1 MiB".to_owned()));
        }
        // serde_json's own text would quote the value it stumbled over, which may be a password.
        let place = |error: serde_json::Error| {
            unusable(format!("line {}, column {} is not as expected", error.line(), error.column()))
        };
        let config = if file.legacy {
            Self { auths: serde_json::from_slice(&text).map_err(place)?, ..Self::default() }
        } else {
            serde_json::from_slice(&text).map_err(place)?
        };
        Ok(Some(config))
    }
}

impl Entry {
    fn credential(&self) -> Option<Credential> {
        let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identity_token) {
            return Some(Credential::Identity { token: Secret::new(token) });
        }
        if let Some(token) = given(&self.registry_token) {
            return Some(Credential::Registry { token: Secret::new(token) });
        }
        let (user, password) = match given(&self.auth) {
            Some(auth) => decode(&auth)?,
            None => (given(&self.username)?, self.password.clone()?),
        };
        (!user.is_empty()).then(|| Credential::Password { user, password: Secret::new(password) })
    }
}

/// `user:password` in base64, with or without padding; Docker ends some passwords with NULs.
fn decode(auth: &str) -> Option<(String, String)> {
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let plain = GeneralPurpose::new(&STANDARD, lenient).decode(auth.trim()).ok()?;
    let plain = String::from_utf8(plain).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.trim_matches('\0').to_owned()))
}

/// A key of `auths` as it is compared: old tools wrote URLs, of which the host counts.
fn normal(key: &str) -> &str {
    match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key.trim_end_matches('/'),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Home {
        dir: tempfile::TempDir,
        around: Surroundings,
    }

    impl Home {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| Some(dir.path().join(name));
            let around = Surroundings {
                home: at("home"),
                xdg_runtime_dir: at("run"),
                xdg_config_home: at("config"),
                docker_config: None,
                registry_auth_file: at("env.json"),
                path: Some(dir.path().join("bin").into()),
                uid: None,
            };
            Self { dir, around }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        }

        fn helper(&self, name: &str, script: &str) {
            let path = self.write(&format!("bin/docker-credential-{name}"), &format!("#!/bin/sh\n{script}\n"));
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn keyring(&self, host: &str, repository: &str, authfile: Option<PathBuf>) -> Keyring {
            let limit = Duration::from_secs(10);
            Keyring::new(host.to_owned(), repository.to_owned(), authfile, &self.around, limit)
        }

        async fn user(&self, host: &str, repository: &str) -> Option<String> {
            match self.keyring(host, repository, None).find().await.unwrap()?.credential {
                Credential::Password { user, .. } => Some(user),
                Credential::Identity { .. } => Some("identity".to_owned()),
                Credential::Registry { .. } => Some("registry".to_owned()),
            }
        }
    }

    fn auths(entries: &[(&str, &str)]) -> String {
        let entries: Vec<String> = entries
            .iter()
            .map(|(key, user)| {
                let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:pw:{user}"));
                format!(r#""{key}": {{"auth": "{auth}"}}"#)
            })
            .collect();
        format!(r#"{{"auths": {{{}}}}}"#, entries.join(","))
    }

    #[tokio::test]
    async fn places_are_asked_in_the_order_users_know() {
        let home = Home::new();
        assert_eq!(home.user("r.example", "a").await, None);
        let dockercfg = auths(&[("r.example", "six")]);
        home.write("home/.dockercfg", dockercfg.strip_prefix(r#"{"auths": "#).unwrap().strip_suffix('}').unwrap());
        for (file, user) in [
            ("home/.docker/config.json", "five"),
            ("config/containers/auth.json", "four"),
            ("run/containers/auth.json", "three"),
            ("env.json", "two"),
        ] {
            let below = home.user("r.example", "a").await.unwrap();
            // A file that lacks the registry, or is broken, lets the next one speak.
            home.write(file, &auths(&[("other.example", user)]));
            assert_eq!(home.user("r.example", "a").await.as_ref(), Some(&below));
            home.write(file, "{broken");
            assert_eq!(home.user("r.example", "a").await.as_ref(), Some(&below));
            home.write(file, &auths(&[("r.example", user)]));
            assert_eq!(home.user("r.example", "a").await.as_deref(), Some(user));
        }
        let named = home.write("named.json", &auths(&[("r.example", "one")]));
        let found = home.keyring("r.example", "a", Some(named.clone())).find().await.unwrap().unwrap();
        assert_eq!(found.to_string(), format!("user `one` from {}", named.display()));
    }

    #[tokio::test]
    async fn a_file_the_user_named_must_be_usable() {
        let home = Home::new();
        let missing = home.dir.path().join("nothing.json");
        assert!(home.keyring("r", "a", Some(missing)).find().await.is_err());
        let broken = home.write("broken.json", r#"{"auths": {"r": {"auth": 12345}}}"#);
        let error = home.keyring("r", "a", Some(broken)).find().await.unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("12345"), "{error}");
    }

    #[tokio::test]
    async fn the_longest_path_wins() {
        let home = Home::new();
        let file = [
            ("r.example", "host"),
            ("r.example/team", "team"),
            ("r.example/team/app/deep/er", "deeper"),
            ("https://legacy.example/v1/", "legacy"),
            ("127.0.0.1:5000", "port"),
        ];
        home.write("env.json", &auths(&file));
        for (host, repository, user) in [
            ("r.example", "a", Some("host")),
            ("r.example", "teams", Some("host")),
            ("r.example", "team", Some("team")),
            ("r.example", "team/app/deep", Some("team")),
            ("r.example", "team/app/deep/er", Some("deeper")),
            ("legacy.example", "x", Some("legacy")),
            ("127.0.0.1:5000", "x", Some("port")),
            ("127.0.0.1", "x", None),
            ("example", "x", None),
        ] {
            assert_eq!(home.user(host, repository).await.as_deref(), user, "{host}/{repository}");
        }
    }

    #[tokio::test]
    async fn docker_hub_is_known_by_four_names() {
        for key in ["docker.io", HUB_URL, "index.docker.io", "registry-1.docker.io"] {
            let home = Home::new();
            home.write("env.json", &auths(&[(key, "hub")]));
            assert_eq!(home.user("docker.io", "library/a").await.as_deref(), Some("hub"), "{key}");
        }
    }

    #[tokio::test]
    async fn entries_in_all_their_forms() {
        let home = Home::new();
        for (entry, wanted) in [
            (r#"{"username": "u", "password": "p"}"#, Some("u")),
            (r#"{"auth": "dTpw"}"#, Some("u")),
            (r#"{"auth": "dTpwcA"}"#, Some("u")),
            (r#"{"auth": "dTpwcA=="}"#, Some("u")),
            (r#"{"auth": "PHRva2VuPjo=", "identitytoken": "t"}"#, Some("identity")),
            (r#"{"registrytoken": "t"}"#, Some("registry")),
            (r#"{}"#, None),
            (r#"{"auth": "%%%"}"#, None),
            (r#"{"auth": "bm8tY29sb24="}"#, None),
        ] {
            home.write("env.json", &format!(r#"{{"auths": {{"r": {entry}}}, "HttpHeaders": {{"a": "b"}}}}"#));
            assert_eq!(home.user("r", "a").await.as_deref(), wanted, "{entry}");
        }
    }

    #[tokio::test]
    async fn helpers_are_asked_and_fall_through() {
        let home = Home::new();
        home.helper("good", r#"read server; echo "{\"Username\":\"$server\",\"Secret\":\"s\"}""#);
        home.helper("token", r#"echo '{"Username":"<token>","Secret":"s"}'"#);
        home.helper("none", "echo credentials not found in native keychain; exit 1");
        home.helper("bad", "echo nonsense");
        home.write("run/containers/auth.json", &auths(&[("r", "next")]));
        for (config, wanted) in [
            (r#"{"credHelpers": {"r": "good"}, "auths": {"r": {"username": "x", "password": "y"}}}"#, "r"),
            (r#"{"credsStore": "good", "auths": {"r": {}}}"#, "r"),
            (r#"{"credsStore": "good", "auths": {"r": {"username": "x", "password": "y"}}}"#, "x"),
            (r#"{"credsStore": "token"}"#, "identity"),
            (r#"{"credHelpers": {"r": "none"}, "credsStore": "good"}"#, "r"),
            (r#"{"credHelpers": {"other": "good"}}"#, "next"),
            (r#"{"credsStore": "none"}"#, "next"),
            (r#"{"credsStore": "bad"}"#, "next"),
            (r#"{"credsStore": "missing"}"#, "next"),
            (r#"{"credsStore": "../../../bin/sh"}"#, "next"),
            (r#"{"credsStore": ""}"#, "next"),
        ] {
            home.write("env.json", config);
            assert_eq!(home.user("r", "a").await.as_deref(), Some(wanted), "{config}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_killed() {
        let home = Home::new();
        let pid = home.dir.path().join("pid");
        home.helper("slow", &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600", pid.display()));
        home.write("env.json", r#"{"credsStore": "slow"}"#);
        let mut keyring = home.keyring("r", "a", None);
        keyring.helper_limit = Duration::from_secs(1);
        assert_eq!(keyring.find().await.unwrap(), None);
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        // Killed and, at the latest when the runtime next looks, reaped: it no longer sleeps.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while state().contains(") S ") {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn secrets_print_nothing() {
        let secret = Secret::new("hunter2");
        let credential = Credential::Password { user: "u".to_owned(), password: secret.clone() };
        for text in [format!("{secret:?}"), format!("{credential:?}"), format!("{credential:#?}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
