//! Credentials of the user at a registry, from the files and helpers that other tools fill.
//!
//! Users have already logged in with podman or docker, so peelfs reads their files in the documented order
//! (containers-auth.json(5)), and continues with the next one if a file has no matching login. A file named by the user
//! replaces podman's files; a named file without any login means that none is used. Files and helpers are read again
//! for every new token: a login made while an image is mounted takes effect without a remount.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::login_file::{FILE_LIMIT, LoginFile, Mark, UnusableFile, key_of};
use crate::process_group::ProcessGroup;
use crate::sync::lock;

/// The keys under which tools store the login to Docker Hub, besides `docker.io`.
pub(super) const HUB_KEYS: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];
/// Docker Hub's name in Docker's files and helpers.
const HUB_URL: &str = "https://index.docker.io/v1/";

/// A string that is never shown in messages, logs or debug output.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text, for use in a request only.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What is sent to a registry or its token server.
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
    /// The file or helper, for messages.
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

/// The environment variables that decide where credentials and certificates are.
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
    /// `XDG_CACHE_HOME`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`.
    pub registry_auth_file: Option<PathBuf>,
    /// `CONTAINERS_REGISTRIES_CONF`.
    pub registries_conf: Option<PathBuf>,
    /// `PATH`, searched for credential helpers.
    pub path: Option<OsString>,
    /// The user id: without `XDG_RUNTIME_DIR`, podman uses `/run/containers/UID`.
    pub uid: Option<u32>,
}

impl Surroundings {
    /// The surroundings of this process.
    pub fn of_process() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            home: path("HOME"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            registries_conf: path("CONTAINERS_REGISTRIES_CONF"),
            path: std::env::var_os("PATH"),
            uid: Some(rustix::process::getuid().as_raw()),
        }
    }

    /// The files searched for logins at every new token, whether they exist or not.
    pub fn login_files(&self, authfile: Option<&Path>) -> Vec<PathBuf> {
        let named = authfile.map(Path::to_owned);
        let keyring = Keyring::new(String::new(), String::new(), named, self, Duration::ZERO);
        keyring.files.into_iter().map(|file| file.path).collect()
    }

    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub(super) fn config_home(&self) -> Option<PathBuf> {
        self.xdg_config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))
    }

    /// `$XDG_CACHE_HOME`, else `~/.cache`.
    pub(super) fn cache_home(&self) -> Option<PathBuf> {
        self.xdg_cache_home.clone().or_else(|| Some(self.home.as_ref()?.join(".cache")))
    }
}

/// All places that may hold credentials for one repository.
#[derive(Debug)]
pub(super) struct Keyring {
    files: Vec<File>,
    host: String,
    repository: String,
    path: Option<OsString>,
    helper_limit: Duration,
    /// Warnings already logged.
    told: Mutex<HashSet<String>>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// `~/.dockercfg` consists of the `auths` map only.
    legacy: bool,
    named: Named,
}

/// Whether the user named a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Named {
    /// A default location.
    No,
    /// By `REGISTRY_AUTH_FILE`: it may be missing.
    ByVariable,
    /// By `--authfile`: it must exist and be readable.
    ByFlag,
}

impl Keyring {
    /// The places for `host` (with its port, if any) and `repository`.
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
        match (authfile, &around.registry_auth_file) {
            (Some(path), _) => add(Some(path), false, Named::ByFlag),
            (None, Some(path)) => add(Some(path.clone()), false, Named::ByVariable),
            (None, None) => {
                let runtime = around.xdg_runtime_dir.as_ref().map(|dir| dir.join("containers"));
                let runtime = runtime.or_else(|| Some(PathBuf::from(format!("/run/containers/{}", around.uid?))));
                add(runtime.map(|dir| dir.join("auth.json")), false, Named::No);
                add(around.config_home().map(|dir| dir.join("containers/auth.json")), false, Named::No);
            }
        }
        let docker = around.docker_config.clone().or_else(|| Some(around.home.as_ref()?.join(".docker")));
        add(docker.map(|dir| dir.join("config.json")), false, Named::No);
        add(around.home.as_ref().map(|home| home.join(".dockercfg")), true, Named::No);
        let told = Mutex::default();
        Self { files, host, repository, path: around.path.clone(), helper_limit, told }
    }

    /// The files, whether their form is the legacy one, and whether the user has named them.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, bool, bool)> {
        self.files.iter().map(|file| (file.path.as_path(), file.legacy, file.named != Named::No))
    }

    /// The file that `REGISTRY_AUTH_FILE` names, if it is missing.
    pub(super) fn missing(&self) -> Option<&Path> {
        let missing = |file: &&File| file.named == Named::ByVariable && !file.path.exists();
        self.files.iter().find(missing).map(|file| file.path.as_path())
    }

    /// The program of a helper, if it is installed.
    pub(super) fn installed(&self, helper: &str) -> Option<PathBuf> {
        self.program(helper).ok()
    }

    /// The host of these credentials, as users write it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Changes when a file is written, removed or replaced. Helpers are not covered.
    pub(super) fn marks(&self) -> Vec<Option<Mark>> {
        self.files.iter().map(|file| Mark::of(&file.path)).collect()
    }

    /// The first credential found; reads files and helpers again.
    ///
    /// # Errors
    /// [`UnusableFile`] for the file of `--authfile`; faults of other files are logged and skipped.
    pub(super) async fn find(&self) -> Result<Option<Found>, UnusableFile> {
        for file in &self.files {
            let read = match LoginFile::read(&file.path, file.legacy) {
                Ok(Some(read)) => read,
                Ok(None) if file.named == Named::ByFlag => return Err(UnusableFile::missing(&file.path)),
                Ok(None) => continue,
                Err(error) if file.named == Named::ByFlag => return Err(error),
                Err(error) => {
                    self.tell(format!("{error}; looking for credentials elsewhere"));
                    continue;
                }
            };
            if !read.invalid.is_empty() {
                let (path, keys) = (file.path.display(), read.invalid.join(", "));
                self.tell(format!("ignoring invalid entries in {path}: {keys}"));
            }
            if file.named != Named::No && read.is_empty() {
                return Ok(None);
            }
            if let Some(found) = self.look_in(&read, &file.path).await {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Logs a warning once, as files are read for every token.
    fn tell(&self, complaint: String) {
        if !lock(&self.told).contains(&complaint) {
            tracing::warn!("{complaint}");
            lock(&self.told).insert(complaint);
        }
    }

    async fn look_in(&self, file: &LoginFile, path: &Path) -> Option<Found> {
        let host = key_of(&self.host);
        if let Some(helper) = file.helpers.iter().find(|(key, _)| *key == host).map(|(_, helper)| helper)
            && let Some(found) = self.ask(helper).await
        {
            return Some(found);
        }
        for key in self.keys() {
            if let Some((_, credential)) = file.logins.iter().find(|(written, _)| *written == key) {
                return Some(Found { credential: credential.clone(), origin: path.display().to_string() });
            }
        }
        self.ask(file.store.as_deref()?).await
    }

    /// The names under which a helper may store the host.
    fn host_names(&self) -> Vec<&str> {
        let is_hub = HUB_KEYS.contains(&self.host.as_str());
        if is_hub { [HUB_URL].into_iter().chain(HUB_KEYS).collect() } else { vec![&self.host] }
    }

    /// The keys of matching entries, most specific first: the repository's path, its parents, the host.
    fn keys(&self) -> Vec<String> {
        let host = key_of(&self.host);
        let mut key = format!("{host}/{}", self.repository);
        let mut keys = Vec::new();
        while key.len() > host.len() {
            keys.push(key.clone());
            key.truncate(key.rfind('/').unwrap_or_default());
        }
        keys.push(host);
        keys
    }

    /// Asks the helper `docker-credential-NAME`; faults are logged and count as no credential.
    async fn ask(&self, name: &str) -> Option<Found> {
        for server in self.host_names() {
            match self.ask_for(name, server).await {
                Ok(Some(credential)) => {
                    return Some(Found { credential, origin: format!("docker-credential-{name}") });
                }
                Ok(None) => {}
                Err(why) => {
                    let name = name.escape_debug();
                    tracing::warn!("credential helper `{name}` failed: {why}; looking elsewhere");
                    return None;
                }
            }
        }
        None
    }

    async fn ask_for(&self, name: &str, server: &str) -> Result<Option<Credential>, HelperFault> {
        let program = self.program(name)?;
        let mut command = tokio::process::Command::new(program);
        command
            .arg("get")
            // The helper protocol passes only the host; peelfs' own helper also needs the repository.
            .env("PEELFS_REPOSITORY", format!("{}/{}", self.host, self.repository))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut group = ProcessGroup::spawn(&mut command).map_err(HelperFault::Start)?;
        let mut input = group.child.stdin.take().expect("stdin is piped");
        let output = group.child.stdout.take().expect("stdout is piped");
        let conversation = async {
            // A helper may answer without reading its input; only its output counts.
            let _ = input.write_all(server.as_bytes()).await;
            drop(input);
            let mut said = Vec::new();
            output.take(FILE_LIMIT).read_to_end(&mut said).await.map_err(HelperFault::Start)?;
            Ok((said, group.wait().await.map_err(HelperFault::Start)?))
        };
        // Dropping the group kills the helper and what it has started.
        let (said, status) = match tokio::time::timeout(self.helper_limit, conversation).await {
            Ok(ended) => ended?,
            Err(_) => return Err(HelperFault::Late(self.helper_limit)),
        };
        if !status.success() {
            // The helper protocol's message for a missing credential.
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
        // Relative entries would run programs from the current directory.
        let directories = self.path.as_deref().map(std::env::split_paths).into_iter().flatten();
        let mut programs = directories.filter(|dir| dir.is_absolute()).map(|dir| dir.join(&file));
        programs.find(|program| program.is_file()).ok_or(HelperFault::Missing)
    }
}

/// Why a credential helper failed.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use base64::Engine as _;

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
                registry_auth_file: None,
                xdg_cache_home: None,
                registries_conf: None,
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

        /// As if `REGISTRY_AUTH_FILE` named this file.
        fn naming(mut self, name: &str) -> Self {
            self.around.registry_auth_file = Some(self.dir.path().join(name));
            self
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
        ] {
            let below = home.user("r.example", "a").await.unwrap();
            // A file without the registry, or a broken file, is skipped.
            for lacking in [&auths(&[("other.example", user)]), "{broken", "", " \n", "null", "{}"] {
                home.write(file, lacking);
                assert_eq!(home.user("r.example", "a").await.as_ref(), Some(&below), "{lacking}");
            }
            home.write(file, &auths(&[("r.example", user)]));
            assert_eq!(home.user("r.example", "a").await.as_deref(), Some(user));
        }
        let home = home.naming("env.json");
        home.write("env.json", &auths(&[("r.example", "two")]));
        assert_eq!(home.user("r.example", "a").await.as_deref(), Some("two"));
        let named = home.write("named.json", &auths(&[("r.example", "one")]));
        let found = home.keyring("r.example", "a", Some(named.clone())).find().await.unwrap().unwrap();
        assert_eq!(found.to_string(), format!("user `one` from {}", named.display()));
    }

    /// Docker's files are read after it, as after podman's.
    #[tokio::test]
    async fn a_named_file_stands_for_those_of_podman() {
        let home = Home::new();
        home.write("run/containers/auth.json", &auths(&[("r.example", "runtime")]));
        home.write("config/containers/auth.json", &auths(&[("r.example", "config")]));
        let other = home.write("other.json", &auths(&[("other.example", "other")]));
        let by_flag = |home: &Home| {
            let keyring = home.keyring("r.example", "a", Some(other.clone()));
            async move { keyring.find().await.unwrap().map(|found| found.to_string()) }
        };
        assert_eq!(by_flag(&home).await, None);
        let home = home.naming("other.json");
        assert_eq!(home.user("r.example", "a").await, None);
        let home = home.naming("missing.json");
        assert_eq!(home.user("r.example", "a").await, None);
        home.write("home/.docker/config.json", &auths(&[("r.example", "docker")]));
        assert_eq!(home.user("r.example", "a").await.as_deref(), Some("docker"));
        assert!(by_flag(&home).await.unwrap().starts_with("user `docker`"));
    }

    #[tokio::test]
    async fn a_named_file_without_a_login_means_no_login() {
        let home = Home::new();
        for file in ["run/containers/auth.json", "config/containers/auth.json", "home/.docker/config.json"] {
            home.write(file, &auths(&[("r.example", "other")]));
        }
        let mut paths = vec![PathBuf::from("/dev/null")];
        for (number, empty) in ["", "\n", "{}", "null", r#"{"auths": {}}"#, r#"{"auths": null}"#].iter().enumerate() {
            paths.push(home.write(&format!("{number}.json"), empty));
        }
        for path in paths {
            assert_eq!(home.keyring("r.example", "a", Some(path.clone())).find().await.unwrap(), None, "{path:?}");
            let mut named = Home::new();
            named.around = Surroundings { registry_auth_file: Some(path.clone()), ..home.around.clone() };
            assert_eq!(named.user("r.example", "a").await, None, "{path:?}");
        }
    }

    #[tokio::test]
    async fn a_file_the_user_named_must_be_usable() {
        let home = Home::new();
        let missing = home.dir.path().join("nothing.json");
        assert!(home.keyring("r", "a", Some(missing)).find().await.is_err());
        for path in [home.dir.path().to_owned(), PathBuf::from("/dev/zero")] {
            assert!(home.keyring("r", "a", Some(path)).find().await.is_err());
        }
        let broken = home.write("broken.json", r#"{"auths": {"r": {"auth": "secret""#);
        let error = home.keyring("r", "a", Some(broken)).find().await.unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn the_longest_path_wins() {
        let home = Home::new().naming("env.json");
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
            let home = Home::new().naming("env.json");
            home.write("env.json", &auths(&[(key, "hub")]));
            assert_eq!(home.user("docker.io", "library/a").await.as_deref(), Some("hub"), "{key}");
        }
    }

    #[tokio::test]
    async fn entries_in_all_their_forms() {
        let home = Home::new().naming("env.json");
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

    /// Also null where Go's encoder writes an empty map, and base64 with line breaks.
    #[tokio::test]
    async fn files_as_real_tools_write_them() {
        let home = Home::new().naming("env.json");
        home.helper("good", r#"read server; echo "{\"Username\":\"$server\",\"Secret\":\"s\"}""#);
        for (file, wanted) in [
            (r#"{"auths":{"R":{"auth":"dTpw"}},"credHelpers":null,"credsStore":null}"#, Some("u")),
            (r#"{"auths":{"r":{"auth":"dTpw"},"other":null,"third":{"auth":null}}}"#, Some("u")),
            (r#"{"auths":{"r":{"auth":null,"username":"u","password":"p"}}}"#, Some("u")),
            (r#"{"auths":{"r":{"auth":"dT\npw\r\n"}}}"#, Some("u")),
            (r#"{"auths":{"r":{"auth":" dT pw\t"}}}"#, Some("u")),
            (r#"{"auths":{"r":{"auth":"dTpx"},"a":12,"b":[],"c":"x","d":{"auth":5},"e":{"auth":"%"}}}"#, Some("u")),
            (r#"{"Auths":{"r":{"Auth":"dTpw"}}}"#, Some("u")),
            (r#"{"AUTHS":{"r":{"USERNAME":"u","Password":"p"}}}"#, Some("u")),
            (r#"{"auths":{"HTTPS://R/v1/":{"auth":"dTpw"}}}"#, Some("u")),
            (r#"{"auths":{"r/v2/":{"auth":"dTpw"}}}"#, Some("u")),
            (r#"{"auths":{"r/":{"auth":"dTpw"}}}"#, Some("u")),
            (r#"{"auths":{"r":{"auth":"PHRva2VuPjo=","IdentityToken":"t"}}}"#, Some("identity")),
            (r#"{"auths":[],"credHelpers":{"r":"good","x":null,"y":7}}"#, Some("r")),
            (r#"{"CredHelpers":{"https://R":"good"}}"#, Some("r")),
            (r#"{"credsstore":"good"}"#, Some("r")),
            (r#"{"auths":"text","credsStore":5}"#, None),
            ("\u{feff}{\"auths\":{\"r\":{\"auth\":\"dTpw\"}}}", Some("u")),
        ] {
            home.write("env.json", file);
            assert_eq!(home.user("r", "a").await.as_deref(), wanted, "{file}");
        }
    }

    #[tokio::test]
    async fn invalid_entries_are_reported_once() {
        let home = Home::new();
        let text = r#"{"auths": {"r": {"auth": "dTpw"}, "x": {"auth": "c2VjcmV0"}, "y": 12345}}"#;
        let path = home.write("env.json", text);
        let keyring = home.keyring("r", "a", Some(path));
        for _ in 0..3 {
            assert!(keyring.find().await.unwrap().is_some());
        }
        let told: Vec<String> = lock(&keyring.told).iter().cloned().collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("`x`") && told[0].contains("`y`") && !told[0].contains("`r`"), "{told:?}");
        assert!(!told[0].contains("c2VjcmV0") && !told[0].contains("12345"), "{told:?}");
    }

    #[tokio::test]
    async fn helpers_are_asked_and_fall_through() {
        let home = Home::new().naming("env.json");
        home.helper("good", r#"read server; echo "{\"Username\":\"$server\",\"Secret\":\"s\"}""#);
        home.helper("token", r#"echo '{"Username":"<token>","Secret":"s"}'"#);
        home.helper("none", "echo credentials not found in native keychain; exit 1");
        home.helper("bad", "echo nonsense");
        home.write("home/.docker/config.json", &auths(&[("r", "next")]));
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
        ] {
            home.write("env.json", config);
            assert_eq!(home.user("r", "a").await.as_deref(), Some(wanted), "{config}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_killed_with_all_it_started() {
        let home = Home::new().naming("env.json");
        let pid = home.dir.path().join("pid");
        // It waits for what it has started.
        home.helper("slow", &format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", pid.display()));
        home.write("env.json", r#"{"credsStore": "slow"}"#);
        let mut keyring = home.keyring("r", "a", None);
        keyring.helper_limit = Duration::from_secs(1);
        assert_eq!(keyring.find().await.unwrap(), None);
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        // Killed, and reaped by another process: it is no longer running.
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
