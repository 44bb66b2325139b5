//! Mirrors: which servers are asked for an image, and in which order.
//!
//! Users have told containerd or podman already which mirrors there are, so peelfs reads their files. The first of these
//! that says something about an image decides alone:
//!
//! 1. `--mirror`
//! 2. `hosts.toml` of containerd, in `--hosts-dir`, else `/etc/containerd/certs.d` and `/etc/docker/certs.d`
//! 3. `registries.conf` of podman
//!
//! Whatever decides, an image that `registries.conf` blocks is refused, unless no file is read. An entry for all registries
//! (`_default`) is not one for a registry on this machine.
//!
//! | file | contents |
//! |---|---|
//! | `file` | TOML with line numbers |
//! | `hosts_toml`, `registries_conf` | the two formats |

mod file;
mod hosts_toml;
mod registries_conf;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::HUB_SERVER;
use super::credentials::Surroundings;
use super::origin::Reach;
use crate::reference::{DOCKER_HUB, RegistryName};
use crate::source::SourceError;

pub use self::file::ConfigError;
use self::hosts_toml::{Api, Fallback, Host, HostsToml};
use self::registries_conf::{Entry, PullFrom};
pub use self::registries_conf::{Files, RegistriesConf, ShortNames};

/// The directories of `hosts.toml` files that containerd and Docker use.
const HOSTS_DIRS: [&str; 2] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];

/// Why an address without a host cannot be used.
const NO_HOST: &str = "what stands there for the host is neither a name nor an address";

/// Which mirrors the user names, and where others are looked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mirrors {
    /// `--mirror`, in order.
    pub named: Vec<NamedMirror>,
    /// The directory of `hosts.toml` files in place of those of containerd and Docker.
    pub hosts_dir: Option<PathBuf>,
    /// No file is read.
    pub no_files: bool,
}

/// A mirror that the user names, as `[REGISTRY=]MIRROR`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedMirror {
    /// The registry, as `HOST[:PORT]`; any if it is not named.
    registry: Option<String>,
    place: Place,
    typed: String,
}

/// The address of a mirror cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{}` is not a mirror: {why}; write `[REGISTRY=]HOST[:PORT]` or `[REGISTRY=]URL`", typed.escape_debug())]
pub struct MirrorError {
    typed: String,
    why: &'static str,
}

/// The servers that are asked for an image.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The mirrors, in order.
    pub(super) mirrors: Vec<Endpoint>,
    /// The registry itself, asked last.
    pub(super) own: Endpoint,
    /// What says so.
    pub(super) by: Option<String>,
}

/// A server, and where an image is on it.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) place: Place,
    /// The repository, as the server calls it.
    pub(super) repository: String,
    /// The tag or digest.
    pub(super) reference: String,
    /// The registry that it stands for, which it is told (distribution-spec, "Registry Proxying").
    pub(super) namespace: Option<String>,
    pub(super) abilities: Abilities,
    pub(super) connection: Connection,
}

/// What a server is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Abilities {
    /// What has a digest.
    pub(super) pull: bool,
    /// What a tag names.
    pub(super) resolve: bool,
}

impl Abilities {
    pub(super) const ALL: Self = Self { pull: true, resolve: true };
    const NONE: Self = Self { pull: false, resolve: false };
}

/// How a server is reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Connection {
    /// Its certificate is not verified.
    pub(super) insecure: bool,
    /// Further certificates that are trusted.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificates and their keys.
    pub(super) clients: Vec<(PathBuf, PathBuf)>,
    /// Headers for this server alone.
    pub(super) headers: HeaderMap,
    /// Limit for establishing a connection.
    pub(super) dial_timeout: Option<Duration>,
    /// The proxy, in place of those of the environment.
    pub(super) proxy: Option<Url>,
}

/// The address of a server's API.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) scheme: Scheme,
    /// `HOST[:PORT]`, as credentials and certificates are named.
    pub(super) authority: String,
    /// The path before a repository's name, as in `/v2`.
    pub(super) root: String,
    /// What comes before the names of repositories there; empty, or with a slash at its end.
    pub(super) prefix: String,
}

/// Whether a server uses TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scheme {
    /// It does, unless it is on this machine and has no certificates in `certs.d`.
    Guess,
    Https,
    Http,
    /// With TLS if it has it.
    Either,
}

impl Place {
    /// The server `authority`, with the API where the specification has it.
    fn of(authority: String, scheme: Scheme) -> Self {
        Self { scheme, authority, root: "/v2".to_owned(), prefix: String::new() }
    }

    /// `[http[s]://]HOST[:PORT][/PATH]`.
    fn parse(written: &str, api: Api) -> Result<Self, &'static str> {
        let has_scheme = written.starts_with("http://") || written.starts_with("https://");
        if !has_scheme && written.contains("://") {
            return Err("its address begins with neither http:// nor https://");
        }
        // Parsers of URLs leave some of these out and take others for a slash.
        if written.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err("there is a space, a control character or a backslash in it");
        }
        let rest = written.split_once("://").map_or(written, |(_, rest)| rest);
        let server = rest.split(['/', '?', '#']).next().filter(|server| !server.is_empty()).ok_or("it has no host")?;
        let port = server.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains([']', '@']));
        if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
            return Err("its port is not a number from 1 to 65535");
        }
        let url = if has_scheme { written.to_owned() } else { format!("https://{written}") };
        let url = Url::parse(&url).map_err(|_| NO_HOST)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a login does not belong in it");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("it has more than a host, a port and a path");
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("it has no host")?;
        let is_host = match url.domain() {
            Some(name) => is_host_name(name),
            // `5000` would be an address, too.
            None => server.starts_with(host) || host.starts_with('['),
        };
        if !is_host {
            return Err(NO_HOST);
        }
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            _ => Scheme::Https,
        };
        let path = url.path().trim_end_matches('/');
        let root = match api {
            Api::Usual if !path.ends_with("/v2") => format!("{path}/v2"),
            Api::Usual | Api::AsWritten => path.to_owned(),
        };
        // What follows `/v2` is part of the names that the server's logins are for.
        let (root, prefix) = match root.strip_prefix("/v2/") {
            Some(rest) if api == Api::AsWritten => ("/v2".to_owned(), format!("{rest}/")),
            _ => (root, String::new()),
        };
        let authority = if authority == DOCKER_HUB { HUB_SERVER.to_owned() } else { authority };
        Ok(Self { scheme, authority, root, prefix })
    }

    /// The host alone.
    fn host(&self) -> &str {
        let port = self.authority.rfind(':').filter(|at| !self.authority[*at..].contains(']'));
        port.map_or(&self.authority, |at| &self.authority[..at])
    }

    /// Its candidate addresses, preferred first; none if it is not a host. `certified` if it has certificates of its own.
    pub(super) fn bases(&self, insecure: bool, certified: impl FnOnce(&Url) -> bool) -> Vec<Url> {
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{}/", self.authority)).ok();
        let (Some(https), Some(http)) = (parse("https"), parse("http")) else { return Vec::new() };
        if https.host_str().is_none_or(str::is_empty) {
            return Vec::new();
        }
        match self.scheme {
            Scheme::Http => vec![http],
            Scheme::Either => vec![https, http],
            Scheme::Guess | Scheme::Https if insecure => vec![https, http],
            Scheme::Https => vec![https],
            // Plain HTTP is used only for this machine; certificates for a registry on this machine imply TLS.
            Scheme::Guess => {
                let is_local = Reach::of(self.host()) == Reach::Loopback;
                let plain = is_local && !self.authority.ends_with(":443") && !certified(&https);
                vec![if plain { http } else { https }]
            }
        }
    }

    /// Where it may speak TLS, if it is asked without at first, as its scheme is a guess.
    pub(super) fn twin(&self, bases: &[Url]) -> Option<Url> {
        let is_guess = self.scheme == Scheme::Guess && bases.iter().all(|base| base.scheme() == "http");
        is_guess.then(|| Url::parse(&format!("https://{}/", self.authority)).ok()).flatten()
    }

    /// As credentials for it are named.
    pub(super) fn login_host(&self) -> String {
        if self.authority == HUB_SERVER { DOCKER_HUB.to_owned() } else { self.authority.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.scheme == Scheme::Http { "http" } else { "https" };
        let Self { authority, root, prefix, .. } = self;
        let prefix = prefix.trim_end_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{authority}{root}{slash}{prefix}")
    }
}

impl FromStr for NamedMirror {
    type Err = MirrorError;

    fn from_str(typed: &str) -> Result<Self, MirrorError> {
        let error = |why| MirrorError { typed: without_login(typed), why };
        let (registry, mirror) = match typed.split_once('=') {
            Some((registry, mirror)) => (Some(registry), mirror),
            None => (None, typed),
        };
        let registry = registry.map(|registry| {
            // It is one if an image can be named on it.
            let name: Option<RegistryName> = format!("{registry}/x/x").parse().ok();
            let name = name.filter(|name| name.repository() == "x/x" && !registry.contains('/'));
            name.map(|name| name.authority()).ok_or_else(|| error("what stands before `=` is not a registry"))
        });
        let mut place = Place::parse(mirror, Api::Usual).map_err(error)?;
        if !mirror.contains("://") {
            place.scheme = Scheme::Guess;
        }
        Ok(Self { registry: registry.transpose()?, place, typed: typed.to_owned() })
    }
}

impl fmt::Display for NamedMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl Endpoint {
    /// The registry of `name` itself.
    fn own(name: &RegistryName) -> Self {
        let authority = name.authority();
        let authority = if authority == DOCKER_HUB { HUB_SERVER.to_owned() } else { authority };
        Self::of(name, Place::of(authority, Scheme::Guess), None)
    }

    /// The image `name` at `place`, which stands for the registry of that name.
    fn of(name: &RegistryName, place: Place, namespace: Option<String>) -> Self {
        let repository = format!("{}{}", place.prefix, name.repository());
        let (reference, abilities) = (name.manifest_name(), Abilities::ALL);
        Self { place, repository, reference, namespace, abilities, connection: Connection::default() }
    }

    /// The image `name` at a host, which is told which registry it stands for.
    fn at(name: &RegistryName, place: Place) -> Self {
        let registry = name.authority();
        let is_own = place.authority == registry || (registry == DOCKER_HUB && place.authority == HUB_SERVER);
        Self::of(name, place, (!is_own).then_some(registry))
    }

    fn host(name: &RegistryName, host: Host) -> Self {
        let Host { place, abilities, connection, .. } = host;
        let at = place.map_or_else(|| Self::own(name), |place| Self::at(name, place));
        Self { abilities, connection, ..at }
    }
}

impl Route {
    /// The servers to ask for `name`.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] for a file that cannot be used, and for an image that is blocked.
    pub(super) fn find(name: &RegistryName, mirrors: &Mirrors, around: &Surroundings) -> Result<Self, SourceError> {
        let bad = |error: ConfigError| unusable(&error);
        let entry = match mirrors.no_files {
            true => None,
            false => RegistriesConf::load(&Files::of(around)).map_err(bad)?.entry(name),
        };
        if let Some(entry) = entry.as_ref().filter(|entry| entry.blocked) {
            let why = format!("{} blocks it (`blocked = true` for `{}`)", entry.place(), entry.prefix);
            return Err(SourceError::Unsupported { place: name.to_string(), why, hint: None });
        }
        let named =
            || mirrors.named.iter().filter(|mirror| mirror.registry.as_ref().is_none_or(|of| *of == name.authority()));
        if named().next().is_some() {
            let mirrors = named().map(|mirror| Endpoint::at(name, mirror.place.clone())).collect();
            return Ok(Self { mirrors, own: Endpoint::own(name), by: Some("--mirror".to_owned()) });
        }
        if mirrors.no_files {
            return Ok(Self { mirrors: Vec::new(), own: Endpoint::own(name), by: None });
        }
        let roots = match &mirrors.hosts_dir {
            Some(root) => vec![root.clone()],
            None => HOSTS_DIRS.map(PathBuf::from).to_vec(),
        };
        let is_local = Reach::of(name.host()) == Reach::Loopback;
        let fallback = if is_local { Fallback::None } else { Fallback::Default };
        if let Some(HostsToml { path, hosts, server }) =
            hosts_toml::find(&roots, &name.authority(), fallback).map_err(bad)?
        {
            let mirrors = hosts.into_iter().map(|host| Endpoint::host(name, host)).collect();
            return Ok(Self { mirrors, own: Endpoint::host(name, server), by: Some(path.display().to_string()) });
        }
        match entry {
            Some(entry) => Self::of_entry(name, &entry).map_err(bad),
            None => Ok(Self { mirrors: Vec::new(), own: Endpoint::own(name), by: None }),
        }
    }

    /// The place that is pushed to: the registry itself, whatever stands for it.
    pub(super) fn for_pushes(self, name: &RegistryName) -> Self {
        let own = Endpoint::own(name);
        let is_own = self.own.place.authority == own.place.authority && self.own.repository == own.repository;
        Self { mirrors: Vec::new(), own: if is_own { self.own } else { own }, by: None }
    }

    fn of_entry(name: &RegistryName, entry: &Entry) -> Result<Self, ConfigError> {
        let by_digest = name.digest().is_some();
        let endpoint = |location: &registries_conf::Location, pull: PullFrom| {
            let moved = entry.moved(name, location)?;
            let at = Endpoint::own(&moved);
            let scheme = if location.insecure { Scheme::Either } else { at.place.scheme };
            // A mirror for digests alone has what a tag names elsewhere, too.
            let abilities = match pull {
                PullFrom::All => Abilities::ALL,
                PullFrom::DigestOnly => Abilities { resolve: false, ..Abilities::ALL },
                PullFrom::TagOnly => Abilities { pull: !by_digest, resolve: !by_digest },
            };
            let connection =
                Connection { insecure: location.insecure, proxy: location.proxy.clone(), ..Connection::default() };
            Ok(Endpoint { place: Place { scheme, ..at.place.clone() }, abilities, connection, ..at })
        };
        let mirrors =
            entry.mirrors.iter().map(|(location, pull)| endpoint(location, *pull)).collect::<Result<_, _>>()?;
        let own = endpoint(&entry.location, PullFrom::All)?;
        Ok(Self { mirrors, own, by: Some(entry.file.display().to_string()) })
    }
}

/// Whether a name may be that of a host: labels of letters, digits, `-` and `_`.
fn is_host_name(name: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 254 && name.strip_suffix('.').unwrap_or(name).split('.').all(is_label)
}

/// An address as it may be shown: a login in it is left out.
fn without_login(address: &str) -> String {
    let begin = address.find("://").map_or(0, |at| at + 3);
    match address[begin..].rfind('@') {
        Some(at) => format!("{}…{}", &address[..begin], &address[begin + at..]),
        None => address.to_owned(),
    }
}

/// The error for a file that cannot be used.
pub fn unusable(error: &ConfigError) -> SourceError {
    let hint = Some("correct it, or use no such file with `--mirror none`".to_owned());
    let line = error.line.map(|line| format!(", line {line},")).unwrap_or_default();
    SourceError::Unsupported { place: format!("`{}`{line}", error.path.display()), why: error.why.clone(), hint }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Machine {
        dir: tempfile::TempDir,
        mirrors: Mirrors,
        around: Surroundings,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let around = Surroundings {
                registries_conf: Some(dir.path().join("registries.conf")),
                xdg_config_home: Some(dir.path().join("config")),
                ..Surroundings::default()
            };
            let mirrors = Mirrors { hosts_dir: Some(dir.path().join("certs.d")), ..Mirrors::default() };
            let machine = Self { dir, mirrors, around };
            machine.write("registries.conf", "");
            machine
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        /// Where an image is looked for, in order: `ADDRESS REPOSITORY REFERENCE [NAMESPACE]`.
        fn route(&self, name: &str) -> Result<Vec<String>, String> {
            let route = Route::find(&name.parse().unwrap(), &self.mirrors, &self.around);
            let route = route.map_err(|error| error.to_string().replace(self.dir.path().to_str().unwrap(), "@"))?;
            let written = |endpoint: &Endpoint| {
                let Endpoint { place, repository, reference, namespace, .. } = endpoint;
                let base = place.bases(endpoint.connection.insecure, |_| false)[0].to_string();
                let ns = namespace.as_ref().map(|namespace| format!(" ns={namespace}")).unwrap_or_default();
                format!("{}{} {repository} {reference}{ns}", base.trim_end_matches('/'), place.root)
            };
            Ok(route.mirrors.iter().chain([&route.own]).map(written).collect())
        }
    }

    #[test]
    fn without_files_the_registry_itself_is_asked() {
        let machine = Machine::new();
        for (name, wanted) in [
            ("python:3.12", "https://registry-1.docker.io/v2 library/python 3.12"),
            ("r.example:5000/a/b", "https://r.example:5000/v2 a/b latest"),
            ("localhost:5000/a", "http://localhost:5000/v2 a latest"),
            ("[::1]:5000/a", "http://[::1]:5000/v2 a latest"),
            ("localhost:443/a", "https://localhost/v2 a latest"),
        ] {
            assert_eq!(machine.route(name).unwrap(), [wanted], "{name}");
        }
    }

    #[test]
    fn hosts_are_asked_before_the_registry_and_told_its_name() {
        let machine = Machine::new();
        let text = "[host.'http://127.0.0.1:30020']\n[host.'https://harbor.example/v2/hub']\noverride_path = true\n";
        machine.write("certs.d/docker.io/hosts.toml", text);
        let wanted = [
            "http://127.0.0.1:30020/v2 library/python latest ns=docker.io",
            "https://harbor.example/v2 hub/library/python latest ns=docker.io",
            "https://registry-1.docker.io/v2 library/python latest",
        ];
        assert_eq!(machine.route("python").unwrap(), wanted);
        machine.write("certs.d/r.example/hosts.toml", "server = 'https://other.example/x'");
        assert_eq!(machine.route("r.example/a:1").unwrap(), ["https://other.example/x/v2 a 1 ns=r.example"]);
        machine.write("certs.d/docker.io/hosts.toml", "server = 'https://docker.io'");
        assert_eq!(machine.route("python").unwrap(), ["https://registry-1.docker.io/v2 library/python latest"]);
    }

    #[test]
    fn an_entry_for_all_registries_is_none_for_this_machine() {
        let machine = Machine::new();
        machine.write("certs.d/_default/hosts.toml", "[host.'https://m.example']");
        assert_eq!(machine.route("r.example/a").unwrap()[0], "https://m.example/v2 a latest ns=r.example");
        for local in ["localhost/a", "localhost:5000/a", "127.0.0.1:5000/a", "[::1]:5000/a"] {
            assert_eq!(machine.route(local).unwrap().len(), 1, "{local}");
        }
        machine.write("certs.d/localhost:5000/hosts.toml", "[host.'https://m.example']");
        assert_eq!(machine.route("localhost:5000/a").unwrap().len(), 2, "it is named");
    }

    #[test]
    fn the_first_that_says_something_decides_alone() {
        let mut machine = Machine::new();
        machine.write(
            "registries.conf",
            "[[registry]]\nlocation = 'r.example'\n[[registry.mirror]]\nlocation = 'podman.example'",
        );
        assert_eq!(machine.route("r.example/a").unwrap()[0], "https://podman.example/v2 a latest");
        machine.write("certs.d/r.example/hosts.toml", "[host.'https://containerd.example']");
        let by_containerd = ["https://containerd.example/v2 a latest ns=r.example", "https://r.example/v2 a latest"];
        assert_eq!(machine.route("r.example/a").unwrap(), by_containerd);
        machine.mirrors.named = vec!["docker.io=https://hub.example/proxy".parse().unwrap()];
        assert_eq!(machine.route("r.example/a").unwrap(), by_containerd, "it is for another registry");
        machine.mirrors.named.push("localhost:5000".parse().unwrap());
        let named = ["http://localhost:5000/v2 a latest ns=r.example", "https://r.example/v2 a latest"];
        assert_eq!(machine.route("r.example/a").unwrap(), named);
        let hub = "https://hub.example/proxy/v2 library/a latest ns=docker.io";
        assert_eq!(machine.route("a").unwrap()[0], hub);
        machine.mirrors = Mirrors { named: Vec::new(), no_files: true, ..machine.mirrors };
        assert_eq!(machine.route("r.example/a").unwrap(), ["https://r.example/v2 a latest"]);
    }

    #[test]
    fn a_blocked_image_is_refused_whatever_else_is_said() {
        let mut machine = Machine::new();
        machine.write("registries.conf", "[[registry]]\nlocation = 'r.example/bad'\nblocked = true");
        machine.mirrors.named = vec!["m.example".parse().unwrap()];
        let error = machine.route("r.example/bad/a:1").unwrap_err();
        let wanted = "r.example/bad/a:1 cannot be used: `@/registries.conf`, line 1, blocks it (`blocked = true` for `r.example/bad`)";
        assert_eq!(error, wanted);
        assert!(machine.route("r.example/badly").is_ok());
    }

    #[test]
    fn a_bad_file_is_named_with_its_line() {
        let machine = Machine::new();
        machine.write("certs.d/r.example/hosts.toml", "\nserver = 1");
        let error = machine.route("r.example/a").unwrap_err();
        assert_eq!(error, "`@/certs.d/r.example/hosts.toml`, line 2, cannot be used: `server` is not text in quotes");
        assert!(machine.route("other.example/a").is_ok(), "the file is not for it");
        machine.write("registries.conf", "x = [\n");
        assert!(
            machine.route("other.example/a").unwrap_err().starts_with("`@/registries.conf`, line 1, cannot be used: ")
        );
    }

    #[test]
    fn mirrors_are_named_with_or_without_their_registry() {
        let parsed = |typed: &str| typed.parse::<NamedMirror>();
        for typed in [
            "m",
            "m.example.",
            "127.0.0.1",
            "http://10.0.0.1:5000/x",
            "m_1.example:443",
            "m.example",
            "https://m.example/x/",
            "docker.io=m.example:5000",
            "r:5000=http://[::1]:80",
        ] {
            assert_eq!(parsed(typed).unwrap().to_string(), typed);
        }
        assert!(parsed("m.example\\x").unwrap_err().why.contains("a backslash"));
        let error = parsed("m.exa\n\u{1b}mple").unwrap_err().to_string();
        assert!(error.starts_with("`m.exa\\n\\u{1b}mple` is not a mirror: there is a space, a control"), "{error}");
        for (typed, why) in [
            ("", "it has no host"),
            ("=m.example", "what stands before `=` is not a registry"),
            ("a/b=m.example", "what stands before `=` is not a registry"),
            ("r.example=", "it has no host"),
            ("ftp://m.example", "neither http:// nor https://"),
            ("http://u:p@m.example", "a login does not belong in it"),
            ("https://m.example/?x", "more than a host, a port and a path"),
            ("..", "neither a name nor an address"),
            ("https://a..b/x", "neither a name nor an address"),
            ("%2e%2e", "neither a name nor an address"),
            ("-m.example", "neither a name nor an address"),
            ("5000", "neither a name nor an address"),
            ("300.1.1.1", "neither a name nor an address"),
            ("m.exam*ple", "neither a name nor an address"),
            ("127.0.0.1:99999", "its port is not a number from 1 to 65535"),
            ("127.0.0.1:0", "its port is not a number from 1 to 65535"),
            ("m.example:x", "its port is not a number from 1 to 65535"),
            (" m.example", "a space, a control character or a backslash"),
        ] {
            let error = parsed(typed).unwrap_err().to_string();
            let shown = typed.replace("u:p@", "…@");
            assert!(error.contains(why) && error.contains(&format!("`{shown}`")), "{error}");
        }
    }
}
