//! Credential providers of the kubelet: programs that return a registry's login on demand
//! (`credentialprovider.kubelet.k8s.io/v1`, JSON on stdin and stdout).
//!
//! The processes that serve images know docker's credential helpers. So one of these is written into the root directory, and
//! found by them before any other place: it asks for [what pulls have brought](crate::logins), then the providers.
//!
//! ```text
//! credentials/auth.json                              names the helper for every registry
//! credentials/bin/docker-credential-peelfs-providers runs this program
//! credentials/providers.json                         the providers, as the configuration has them
//! credentials/logins.sock                            asked for what pulls have brought
//! ```

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use peelfs::host::report::{Code, Report};
use peelfs::host::whole_file;
use peelfs::source::registry::Surroundings;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::logins::{self, Login as Learnt};

/// A program, and the registries that it knows.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Provider {
    /// Hosts, with `*` for a part between dots, as in the kubelet's `matchImages`.
    #[serde(rename = "match")]
    pub(crate) hosts: Vec<String>,
    pub(crate) command: PathBuf,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    auth: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    username: &'a str,
    secret: &'a str,
}

/// Whether there is anything to ask for logins but docker's and podman's files.
fn has_helper(config: &Config) -> bool {
    config.learns_logins || !config.providers.is_empty()
}

/// Where [`crate::logins`] is asked.
pub(crate) fn socket(root: &Path) -> PathBuf {
    root.join(DIRECTORY).join(SOCKET)
}

/// Where logins are looked for: at what pulls have brought and at the providers first, if there are any.
pub(crate) fn surroundings(root: &Path, config: &Config) -> Surroundings {
    let of_process = Surroundings::of_process();
    if !has_helper(config) {
        return of_process;
    }
    let own = root.join(DIRECTORY);
    let paths = of_process.path.as_deref().map(std::env::split_paths).into_iter().flatten();
    let path = std::env::join_paths(std::iter::once(own.join("bin")).chain(paths)).ok();
    Surroundings { registry_auth_file: Some(own.join(AUTH)), path: path.or(of_process.path), ..of_process }
}

/// Writes what [`surroundings`] names.
///
/// # Errors
/// [`io::Error`]
pub(crate) fn write(root: &Path, config: &Config) -> io::Result<()> {
    if !has_helper(config) {
        return Ok(());
    }
    let own = root.join(DIRECTORY);
    let helper = own.join("bin").join(format!("docker-credential-{HELPER}"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(own.join("bin"))?;
    let program = std::env::current_exe()?;
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let script =
        format!("#!/bin/sh\nexec {} credential-provider {} \"$@\"\n", quoted(&program), quoted(&own.join(PROVIDERS)));
    whole_file::write(&own.join(PROVIDERS), &serde_json::to_vec(&config.providers)?)?;
    whole_file::write(&helper, script.as_bytes())?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o700))?;
    whole_file::write(&own.join(AUTH), format!("{{\"credsStore\":\"{HELPER}\"}}").as_bytes())
}

/// Answers as a credential helper of docker: the registry on stdin, the login on stdout.
///
/// # Errors
/// [`Report`]; that no provider knows the registry is said on stdout, as the protocol has it.
pub fn answer(providers: &Path, verb: &str) -> Result<(), Report> {
    if verb != "get" {
        return Err(Report::usage(format!("`{verb}` is not supported by credential providers")));
    }
    let failed =
        |what: &str, cause: &dyn std::fmt::Display| Report::new(Code::Failure, format!("cannot {what}: {cause}"));
    let text = std::fs::read(providers).map_err(|error| failed("read the providers", &error))?;
    let socket = providers.with_file_name(SOCKET);
    let providers: Vec<Provider> =
        serde_json::from_slice(&text).map_err(|error| failed("read the providers", &error))?;
    let mut server = String::new();
    io::stdin().take(4096).read_to_string(&mut server).map_err(|error| failed("read the registry's name", &error))?;
    let (server, host) = (server.trim(), host_of(server.trim()));
    let say = |username: &str, secret: &str| {
        println!("{}", serde_json::to_string(&Answer { server, username, secret }).expect("plain data"));
    };
    let repository =
        std::env::var("PEELFS_REPOSITORY").ok().filter(|repository| repository.starts_with(&format!("{host}/")));
    if let Some(Learnt { username, secret }) = repository.and_then(|repository| logins::ask(&socket, &repository)) {
        say(&username, &secret);
        return Ok(());
    }
    for provider in providers.iter().filter(|provider| provider.hosts.iter().any(|pattern| fits(pattern, &host))) {
        let shown = provider.command.display();
        let response = ask(provider, &host).map_err(|error| failed(&format!("ask `{shown}`"), &error))?;
        // The longest match is the most specific.
        let login = response.auth.iter().filter(|(pattern, _)| fits(pattern, &host)).max_by_key(|(key, _)| key.len());
        if let Some((_, Login { username, password })) = login {
            say(username, password);
            return Ok(());
        }
    }
    println!("credentials not found in native keychain");
    Err(Report::new(Code::NotFound, format!("no pull and no provider has brought a login for `{host}`")))
}

fn ask(provider: &Provider, host: &str) -> io::Result<Response> {
    let mut command = Command::new(&provider.command);
    command.args(&provider.args).envs(&provider.env).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let request = Request { kind: "CredentialProviderRequest", api_version: VERSION, image: host };
    if let Some(mut stdin) = child.stdin.take() {
        // It may answer without reading its input.
        let _ = stdin.write_all(&serde_json::to_vec(&request)?);
    }
    let mut said = Vec::new();
    child.stdout.take().into_iter().try_for_each(|stdout| stdout.take(LONGEST).read_to_end(&mut said).map(drop))?;
    let status = child.wait()?;
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    Ok(serde_json::from_slice(&said)?)
}

/// The host in a helper's request: docker uses a URL for its own registry.
fn host_of(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io".to_owned() } else { host.to_owned() }
}

/// Whether a pattern matches this host: part by part, and the same port.
fn fits(pattern: &str, host: &str) -> bool {
    let pattern = host_of(pattern);
    let split = |text: &str| match text.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), Some(port.to_owned())),
        None => (text.to_owned(), None),
    };
    let ((pattern, pattern_port), (host, port)) = (split(&pattern), split(host));
    let (parts, wanted): (Vec<_>, Vec<_>) = (host.split('.').collect(), pattern.split('.').collect());
    pattern_port == port
        && parts.len() == wanted.len()
        && parts.iter().zip(wanted).all(|(part, pattern)| part_fits(pattern, part))
}

/// `*` stands for any characters.
fn part_fits(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == part,
        Some((before, after)) => part
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && part_fits(after, &rest[at..]))),
    }
}

const DIRECTORY: &str = crate::root::CREDENTIALS;
const AUTH: &str = "auth.json";
const PROVIDERS: &str = "providers.json";
const SOCKET: &str = "logins.sock";
const HELPER: &str = "peelfs-providers";
const VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
/// Bytes of an answer.
const LONGEST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_matched_part_by_part_as_by_the_kubelet() {
        for (pattern, host, wanted) in [
            ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com", true),
            ("*.dkr.ecr.*.amazonaws.com", "1.2.dkr.ecr.eu.amazonaws.com", false),
            ("*.io", "docker.io", true),
            ("docker.io", "https://index.docker.io/v1/", true),
            ("reg*y.test:5000/path", "registry.test:5000", true),
            ("registry.test:5000", "registry.test", false),
            ("registry.test", "registry.test.evil", false),
            ("*", "localhost", true),
        ] {
            assert_eq!(fits(pattern, &host_of(host)), wanted, "{pattern} {host}");
        }
    }
}
