//! `hosts.toml`: which hosts are asked in place of a registry, as containerd reads it (containerd, docs/hosts.md).
//!
//! A directory has one directory for each registry, called `HOST`, `HOST:PORT` or `HOST_PORT_`, or `_default`; in it is
//! the file. Its hosts are asked in their order, then `server`, which is the registry itself if it is not named.

use std::path::{Path, PathBuf};
use std::slice;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::file::{self, ConfigError, Table, Text, Value};
use super::{Abilities, Connection, Place, Scheme, without_login};
use crate::source::registry::tls;

/// The name of the file.
const FILE: &str = "hosts.toml";
/// The directory for registries that have none.
const DEFAULT: &str = "_default";
/// Limit for hosts of one file.
const MOST: usize = 32;

/// What a file says.
#[derive(Clone, Debug)]
pub(super) struct HostsToml {
    pub(super) path: PathBuf,
    /// The hosts, in order.
    pub(super) hosts: Vec<Host>,
    /// What stands for the registry; it has a place if the file names one.
    pub(super) server: Host,
}

/// A host.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) place: Option<Place>,
    pub(super) abilities: Abilities,
    pub(super) connection: Connection,
    /// The lines at which its `ca` are, and its `client`.
    lines: (Vec<usize>, Vec<usize>),
}

/// A client certificate and its key.
type Pair = (PathBuf, PathBuf);

/// Whether a registry without a directory of its own has `_default`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fallback {
    Default,
    None,
}

/// What the first of `roots` with a file for `registry` (`HOST[:PORT]`) says.
pub(super) fn find(roots: &[PathBuf], registry: &str, fallback: Fallback) -> Result<Option<HostsToml>, ConfigError> {
    let names = names(registry);
    // containerd does not look at `_default` either where a registry has a directory, as for certificates alone.
    let own = |root: &PathBuf| names.iter().map(|name| root.join(name)).find(|directory| directory.is_dir());
    for directory in roots.iter().filter_map(own) {
        if let Some(found) = read(&directory.join(FILE))? {
            return Ok(Some(found));
        }
    }
    let others = roots.iter().filter(|root| fallback == Fallback::Default && own(root).is_none());
    for directory in others.map(|root| root.join(DEFAULT)) {
        if let Some(found) = read(&directory.join(FILE))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The names that the directory of a registry may have.
fn names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(host, _)| !host.is_empty()) {
        names.insert(0, format!("{host}_{port}_"));
    }
    names
}

/// Reads a file; `None` if there is none, or an empty one.
fn read(path: &Path) -> Result<Option<HostsToml>, ConfigError> {
    let text = Text::read(path)?;
    let found = text.map(|text| parse(&text)).transpose()?.flatten();
    if let Some(HostsToml { hosts, server, .. }) = &found {
        hosts.iter().chain([server]).try_for_each(|host| host.check(path))?;
    }
    Ok(found)
}

impl Host {
    /// Reads the certificates that the file at `path` names, so that what is wrong with them is known before they are needed.
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let Connection { ca, clients, .. } = &self.connection;
        let fault = |line: usize, why: String| ConfigError { path: path.to_owned(), line: Some(line), why };
        let files = |line: usize, files: &[&PathBuf]| {
            // A pipe would be waited for.
            let unreadable = |file: &Path, error| fault(line, format!("cannot read {}: {error}", file.display()));
            files.iter().try_for_each(|file| file::is_readable(file).map_err(|error| unreadable(file, error)))
        };
        for (ca, line) in ca.iter().zip(&self.lines.0) {
            files(*line, &[ca])?;
            tls::check(slice::from_ref(ca), &[]).map_err(|error| fault(*line, error.to_string()))?;
        }
        for (pair, line) in clients.iter().zip(&self.lines.1) {
            files(*line, &[&pair.0, &pair.1])?;
            tls::check(&[], slice::from_ref(pair)).map_err(|error| fault(*line, error.to_string()))?;
        }
        Ok(())
    }
}

fn parse(text: &Text) -> Result<Option<HostsToml>, ConfigError> {
    let document = text.parse()?;
    let root = document.root();
    let directory = text.path.parent().unwrap_or(Path::new("/"));
    if root.values().is_empty() {
        return Ok(None);
    }
    let mut hosts = Vec::new();
    for value in root.table("host")?.map(Table::values).unwrap_or_default() {
        if hosts.len() == MOST {
            return Err(value.error(format!("there are more than {MOST} hosts")));
        }
        let table = value.table()?;
        if table.get("host").is_some() {
            return Err(value.error("a host cannot have hosts of its own"));
        }
        let place = place(value.key, table, value)?;
        hosts.push(host(Some(place), table, directory)?);
    }
    let server = match root.text("server")? {
        Some((server, value)) => host(Some(place(server, root, value)?), root, directory)?,
        // Of a registry that is not named only the connection can be configured.
        None => Host { abilities: Abilities::ALL, ..host(None, root, directory)? },
    };
    Ok(Some(HostsToml { path: text.path.clone(), hosts, server }))
}

/// The address in `written`.
fn place(written: &str, table: Table<'_>, value: Value<'_>) -> Result<Place, ConfigError> {
    let api = if table.flag("override_path")?.unwrap_or(false) { Api::AsWritten } else { Api::Usual };
    let shown = || without_login(written).escape_debug().to_string();
    Place::parse(written, api).map_err(|why| value.error(format!("`{}` is not a host: {why}", shown())))
}

/// Where the API begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Api {
    /// At `/v2` behind what is written.
    Usual,
    /// At what is written: `override_path`.
    AsWritten,
}

fn host(place: Option<Place>, table: Table<'_>, directory: &Path) -> Result<Host, ConfigError> {
    let path = |path: &str| directory.join(path);
    let (ca, ca_lines) =
        table.texts("ca")?.unwrap_or_default().into_iter().map(|(file, at)| (path(file), at.line())).unzip();
    let mut place = place;
    let insecure = table.flag("skip_verify")?;
    let (clients, client_lines) = clients(table, directory)?.into_iter().unzip();
    let connection = Connection {
        insecure: insecure.unwrap_or(false),
        ca,
        clients,
        headers: headers(table)?,
        dial_timeout: dial_timeout(table)?,
        proxy: proxy(table)?,
    };
    // Who configures TLS for an address of plain HTTP may mean either.
    let configures_tls = insecure.is_some() || !connection.ca.is_empty() || !connection.clients.is_empty();
    if let Some(place) = &mut place
        && place.scheme == Scheme::Http
        && configures_tls
        && !place.authority.ends_with(":80")
    {
        place.scheme = Scheme::Either;
    }
    Ok(Host { place, abilities: abilities(table)?, connection, lines: (ca_lines, client_lines) })
}

fn abilities(table: Table<'_>) -> Result<Abilities, ConfigError> {
    let named = table.texts("capabilities")?.unwrap_or_default();
    if named.is_empty() {
        return Ok(Abilities::ALL);
    }
    let mut abilities = Abilities::NONE;
    for (name, value) in named {
        match name.to_ascii_lowercase().as_str() {
            "pull" => abilities.pull = true,
            "resolve" => abilities.resolve = true,
            "push" => {}
            _ => {
                let name = name.escape_debug();
                return Err(
                    value.error(format!("there is no capability `{name}`; there are `pull`, `resolve` and `push`"))
                );
            }
        }
    }
    Ok(abilities)
}

/// Client certificates with their keys, which may be in the same file, and the lines of both.
fn clients(table: Table<'_>, directory: &Path) -> Result<Vec<(Pair, usize)>, ConfigError> {
    let Some(value) = table.get("client") else { return Ok(Vec::new()) };
    let items = value.items().unwrap_or_else(|| vec![value]);
    let pair = |item: Value<'_>| {
        let Some(pair) = item.items() else {
            let file = directory.join(item.text()?);
            return Ok(((file.clone(), file), item.line()));
        };
        match pair[..] {
            [certificate, key] => {
                let certificate = directory.join(certificate.text()?);
                let key = Some(key.text()?).filter(|key| !key.is_empty()).map(|key| directory.join(key));
                Ok(((certificate.clone(), key.unwrap_or(certificate)), item.line()))
            }
            _ => Err(item.error("`client` needs pairs of a certificate and its key")),
        }
    };
    items.into_iter().map(pair).collect()
}

fn headers(table: Table<'_>) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    let Some(named) = table.table("header")? else { return Ok(headers) };
    for value in named.values() {
        let unusable = || value.error(format!("`{}` is not a header with usable values", value.key.escape_debug()));
        let name = HeaderName::try_from(value.key).map_err(|_| unusable())?;
        for (text, _) in named.texts(value.key)?.unwrap_or_default() {
            let mut text = HeaderValue::try_from(text).map_err(|_| unusable())?;
            text.set_sensitive(true);
            headers.append(name.clone(), text);
        }
    }
    Ok(headers)
}

fn dial_timeout(table: Table<'_>) -> Result<Option<Duration>, ConfigError> {
    let Some((text, value)) = table.text("dial_timeout")? else { return Ok(None) };
    let time = duration(text).filter(|time| !time.is_zero());
    time.map(Some).ok_or_else(|| value.error(format!("`{}` is not a time, as `30s` or `500ms`", text.escape_debug())))
}

/// A proxy's address.
pub(super) fn proxy(table: Table<'_>) -> Result<Option<Url>, ConfigError> {
    let Some((text, value)) = table.text("proxy")? else { return Ok(None) };
    match Url::parse(text).ok().filter(|url| url.has_host()) {
        Some(url) if matches!(url.scheme(), "http" | "https") => Ok(Some(url)),
        // Asking without it would go past what the proxy is there for.
        _ => Err(value.error("`proxy` is not an http:// or https:// address; peelfs supports no other proxies")),
    }
}

/// A time as Go writes it: numbers with units, as in `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut sum = Duration::ZERO;
    if rest == "0" {
        return Some(sum);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let units = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Result<Option<HostsToml>, ConfigError> {
        parse(&Text::of("/certs.d/r.example/hosts.toml", text))
    }

    /// The example of containerd's own documents, as far as it is one file.
    #[test]
    fn all_that_a_file_can_say_is_read() {
        let file = parsed(
            r#"
server = "https://registry-1.docker.io"

[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = "mirror.pem"
  skip_verify = false
  dial_timeout = "1.5s"
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]
    x-one = "1"

[host."http://mirror-bak.registry:8080/us"]
  skip_verify = true

[host."a.registry"]
  ca = ["/etc/certs/a.pem", "b.pem"]
  client = [["/etc/certs/client.cert", "client.key"],["c.pem", ""], "d.pem"]

[host."https://odd.registry/v2/upstream"]
  capabilities = ["Pull", "resolve", "push"]
  override_path = true
  proxy = "http://proxy:8080"

[host."http://plain.registry"]
"#,
        );
        let file = file.unwrap().unwrap();
        let place = |host: &Host| host.place.clone().unwrap();
        let places: Vec<_> = file.hosts.iter().map(|host| place(host).to_string()).collect();
        let wanted = [
            "https://mirror.registry/v2",
            "https://mirror-bak.registry:8080/us/v2",
            "https://a.registry/v2",
            "https://odd.registry/v2/upstream",
            "http://plain.registry/v2",
        ];
        assert_eq!(places, wanted);
        let schemes: Vec<_> = file.hosts.iter().map(|host| place(host).scheme).collect();
        assert_eq!(schemes, [Scheme::Https, Scheme::Either, Scheme::Https, Scheme::Https, Scheme::Http]);
        let abilities: Vec<_> = file.hosts.iter().map(|host| (host.abilities.pull, host.abilities.resolve)).collect();
        assert_eq!(abilities, [(true, false), (true, true), (true, true), (true, true), (true, true)]);
        let Connection { ca, headers, dial_timeout, insecure, .. } = &file.hosts[0].connection;
        assert_eq!(ca[..], [PathBuf::from("/certs.d/r.example/mirror.pem")]);
        assert_eq!((headers.get_all("x-custom-2").iter().count(), headers.len()), (2, 3));
        assert_eq!((*dial_timeout, *insecure), (Some(Duration::from_millis(1500)), false));
        assert!(file.hosts[1].connection.insecure);
        let in_directory = |name: &str| PathBuf::from("/certs.d/r.example").join(name);
        let wanted = [
            (in_directory("/etc/certs/client.cert"), in_directory("client.key")),
            (in_directory("c.pem"), in_directory("c.pem")),
            (in_directory("d.pem"), in_directory("d.pem")),
        ];
        assert_eq!(file.hosts[2].connection.clients, wanted);
        assert_eq!(file.hosts[3].connection.proxy.as_ref().unwrap().as_str(), "http://proxy:8080/");
        assert_eq!(place(&file.hosts[3]).prefix, "upstream/");
        assert_eq!(place(&file.server).authority, "registry-1.docker.io");
        assert!(parsed("# nothing\n").unwrap().is_none());
    }

    #[test]
    fn a_registry_that_is_not_named_can_be_configured() {
        let file = parsed("ca = 'own.pem'\ncapabilities = ['pull']\n").unwrap().unwrap();
        assert!(file.server.place.is_none() && file.server.abilities.resolve);
        assert_eq!(file.server.connection.ca, [PathBuf::from("/certs.d/r.example/own.pem")]);
    }

    #[test]
    fn a_bad_file_is_one_error_with_its_line() {
        for (text, wanted) in [
            (
                "server = 'https://a'\n[host.'https://b']\ncapabilities = ['pull', 'fetch']",
                "line 3: there is no capability `fetch`",
            ),
            ("\nserver = 3", "line 2: `server` is not text in quotes"),
            ("[host.'ftp://b']", "line 1: `ftp://b` is not a host"),
            ("[host.'https://u:p@b']", "line 1: `https://…@b` is not a host"),
            ("[host.'https://b?x=1']", "line 1: `https://b?x=1` is not a host"),
            ("[host.'']", "line 1: `` is not a host"),
            ("[host.'b']\ndial_timeout = '3'", "line 2: `3` is not a time"),
            ("[host.'b']\nclient = [['a']]", "line 2: `client` needs pairs"),
            ("[host.'b']\n[host.'b'.header]\n'x y' = '1'", "line 3: `x y` is not a header"),
            ("[host.'b']\nskip_verify = 'yes'", "line 2: `skip_verify` is neither true nor false"),
            ("[host.'b']\nproxy = 'socks5://p:1'", "line 2: `proxy` is not an http:// or https:// address"),
            ("[host.'b']\n[host.'b'.host.'c']", "line 1: a host cannot have hosts"),
            ("host = 1", "line 1: `host` is not a table"),
            ("[host.'b'\n", "line 1: "),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`/certs.d/r.example/hosts.toml`, {wanted}")), "{text}: {error}");
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_used_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("r.example")).unwrap();
        std::fs::write(path("r.example/bad.pem"), "no certificate").unwrap();
        let fifo = path("r.example/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for (text, line, wanted) in [
            ("[host.'https://m.example']\nca = 'none.pem'", 2, "none.pem: No such file"),
            ("ca = [\n'bad.pem']\n", 2, "bad.pem holds no certificate"),
            ("[host.m]\n\nclient = 'none.pem'", 3, "none.pem: No such file"),
            ("[host.m]\nclient = [['bad.pem', '']]", 2, "bad.pem holds no certificate"),
            ("[host.m]\nclient = [['bad.pem', 'none.key']]", 2, "none.key: No such file"),
            ("[host.m]\nca = 'fifo'", 2, "fifo: it is not a regular file"),
        ] {
            std::fs::write(path("r.example/hosts.toml"), text).unwrap();
            let error = find(&[dir.path().to_owned()], "r.example", Fallback::None).unwrap_err().to_string();
            let file = path("r.example/hosts.toml");
            assert!(error.starts_with(&format!("`{}`, line {line}: ", file.display())), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn times_are_those_of_go() {
        for (text, wanted) in [
            ("30s", Some(30_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("200ms", Some(200)),
            ("2000us", Some(2)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text), wanted.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn directories_are_searched_as_containerd_does() {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["one", "two"].map(|root| dir.path().join(root));
        let write = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "server = 'https://x.example'").unwrap();
        };
        let found = |registry: &str, fallback| {
            let found = find(&roots, registry, fallback).unwrap();
            found.map(|found| found.path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(found("r.example", Fallback::Default), None);
        write("two/_default/hosts.toml");
        write("two/r.example/hosts.toml");
        write("one/p.example:5000/hosts.toml");
        assert_eq!(found("r.example", Fallback::Default).unwrap(), "two/r.example/hosts.toml");
        assert_eq!(found("p.example:5000", Fallback::None).unwrap(), "one/p.example:5000/hosts.toml");
        write("one/p.example_5000_/hosts.toml");
        assert_eq!(found("p.example:5000", Fallback::None).unwrap(), "one/p.example_5000_/hosts.toml");
        assert_eq!(found("p.example", Fallback::Default).unwrap(), "two/_default/hosts.toml");
        assert_eq!(found("p.example", Fallback::None), None);
        std::fs::create_dir(dir.path().join("two/certs.example")).unwrap();
        assert_eq!(found("certs.example", Fallback::Default), None, "it has a directory, with certificates alone");
    }
}
