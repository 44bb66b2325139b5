//! References: what a user types to name an image, read once.
//!
//! A reference becomes URLs, paths and messages. If every user of it took the string apart again, two
//! of them would sooner or later disagree about which image was meant. So it is parsed here, completely,
//! without looking at the network or the disk, and everything after passes the parsed thing.
//!
//! | typed | means |
//! |---|---|
//! | `[docker://][HOST[:PORT]/]NAME[:TAG][@DIGEST]` | a registry; no host means Docker Hub |
//! | `oci:DIR[:NAME \| :@POSITION][@DIGEST]` | an image layout (image-spec, image-layout.md) |
//! | `oci-archive:FILE[:NAME \| :@POSITION][@DIGEST]` | a tar of such a layout |
//! | `docker-archive:FILE[:NAME[:TAG] \| :@POSITION]` | what `docker save` writes |
//! | `dir:DIR` | what `skopeo copy … dir:DIR` writes |
//! | `containers-storage:[[DRIVER@]ROOT]NAME` | an [image of podman, buildah or CRI-O](EngineName) |
//! | `docker-daemon:NAME` | an [image of Docker](EngineName) |
//!
//! The first component of a registry reference is a host if it has a `.` or a `:`, or is `localhost`.
//! The tag is `latest` if there is neither tag nor digest; with both, the digest decides.
//!
//! Paths may hold colons, and so may names in a layout (podman writes whole references there). A parser
//! that does not look at the disk cannot tell `oci-archive:a:b:c` apart, so it keeps all
//! [readings](LocalName::readings); the source takes the one with the longest path that exists.

mod engine;

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

pub(crate) use self::engine::is_store_option;
pub use self::engine::{EngineName, StorageName, StoreAt};

/// The longest reference that is read, in bytes; the longest path Linux opens.
pub const REFERENCE_LIMIT: usize = 4096;
/// The longest repository name, in bytes (distribution-spec, "Pulling manifests").
pub const REPOSITORY_LIMIT: usize = 255;
/// The longest tag, in bytes (distribution-spec, "Pulling manifests").
pub const TAG_LIMIT: usize = 128;
/// What an archive is called that a user has named `-`.
pub const STANDARD_INPUT: &str = "standard input";
/// The host of names that have none.
pub const DOCKER_HUB: &str = "docker.io";

/// What a user typed to name an image. `Display` gives it back as it was typed.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reference {
    typed: Box<str>,
    place: Place,
    /// What it is called instead of what was parsed.
    called: Option<Box<str>>,
}

/// Where an image is to be looked for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Place {
    /// A repository of a registry.
    Registry(RegistryName),
    /// A directory with an image layout.
    Layout(LocalName),
    /// A tar of an image layout.
    OciArchive(LocalName),
    /// A tar as `docker save` writes it.
    DockerArchive(LocalName),
    /// A directory as `skopeo copy` writes it to `dir:`.
    Directory(PathBuf),
    /// The storage of podman, buildah and CRI-O.
    ContainersStorage(Box<StorageName>),
    /// Docker.
    DockerDaemon(Box<EngineName>),
}

impl Reference {
    /// Where the image is to be looked for.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The same image, shown as `name`: a process has it at another place than the user has named.
    #[must_use]
    pub fn called(self, name: &str) -> Self {
        let called = (*self.typed != *name).then(|| name.into());
        Self { called, ..self }
    }

    /// What was parsed, from which the reference can be made again; without what it is [called](Self::called).
    pub fn written(&self) -> &str {
        &self.typed
    }

    /// What it is [called](Self::called), if that is not what was parsed.
    pub fn other_name(&self) -> Option<&str> {
        self.called.as_deref()
    }

    /// The reference with nothing left out: host, repository, tag or digest.
    ///
    /// Two references with the same canonical form name the same image at the same time.
    pub fn canonical(&self) -> String {
        match &self.place {
            Place::Registry(name) => name.to_string(),
            Place::Layout(_)
            | Place::OciArchive(_)
            | Place::DockerArchive(_)
            | Place::Directory(_)
            | Place::ContainersStorage(_)
            | Place::DockerDaemon(_) => self.typed.to_string(),
        }
    }

    /// The same image, seen from any directory; `absolute` makes a path absolute.
    #[must_use]
    pub fn absolute(self, absolute: impl Fn(&Path) -> PathBuf) -> Self {
        let pin = self.pin().cloned();
        let typed = match (&self.place, self.typed.split_once(':')) {
            (Place::Registry(_) | Place::DockerDaemon(_), _) | (_, None) => return self,
            (Place::ContainersStorage(_), _) => engine::with_absolute_root(&self.typed, absolute),
            (_, Some((transport, path))) => format!("{transport}:{}", absolute(Path::new(path)).display()),
        };
        let same = match typed.parse::<Self>() {
            Ok(same) => Self { called: self.called, ..same },
            // It has become too long.
            Err(_) => return self,
        };
        match pin {
            Some(pin) => same.pinned(&pin),
            None => same,
        }
    }

    /// The same image for ever: what the reference names has this digest, whatever its tag. Archives and directories
    /// have no place for a digest and stay as they are.
    #[must_use]
    pub fn pinned(mut self, digest: &Digest) -> Self {
        match &mut self.place {
            Place::Registry(RegistryName { tag, digest: pin, .. }) => (*tag, *pin) = (None, Some(digest.clone())),
            Place::Layout(LocalName { digest: pin, .. }) => *pin = Some(digest.clone()),
            Place::ContainersStorage(name) => name.image.digest = Some(digest.clone()),
            Place::DockerDaemon(name) => name.digest = Some(digest.clone()),
            Place::OciArchive(_) | Place::DockerArchive(_) | Place::Directory(_) => {}
        }
        self
    }

    /// The digest that it is [pinned](Self::pinned) to where what was typed does not say so.
    pub fn pin(&self) -> Option<&Digest> {
        let typed = place(&self.typed);
        let digest = match &self.place {
            Place::Registry(RegistryName { digest, .. }) | Place::Layout(LocalName { digest, .. }) => digest.as_ref(),
            Place::ContainersStorage(name) => name.image.digest(),
            Place::DockerDaemon(name) => name.digest(),
            Place::OciArchive(_) | Place::DockerArchive(_) | Place::Directory(_) => None,
        };
        digest.filter(|_| typed.is_ok_and(|typed| typed != self.place))
    }

    /// The name as it was typed, without tag and digest, if no registry and no transport was typed before it.
    pub fn short_name(&self) -> Option<&str> {
        let Place::Registry(name) = &self.place else { return None };
        let typed = self.typed.split('@').next().unwrap_or_default();
        let (first, has_more) = typed.split_once('/').map_or((typed, false), |(first, _)| (first, true));
        let names_host = has_more && (first == "localhost" || first.contains(['.', ':']));
        if name.host() != DOCKER_HUB || names_host {
            return None;
        }
        let tag = typed.rfind(':').filter(|at| !typed[*at..].contains('/'));
        Some(&typed[..tag.unwrap_or(typed.len())])
    }

    /// What the user should be told about how the reference was understood.
    pub fn notes(&self) -> Vec<String> {
        match &self.place {
            Place::Registry(RegistryName { tag: Some(tag), digest: Some(digest), .. }) => {
                vec![format!("tag `{tag}` is ignored because the reference has a digest, {digest}")]
            }
            Place::Registry(_)
            | Place::Layout(_)
            | Place::OciArchive(_)
            | Place::DockerArchive(_)
            | Place::Directory(_)
            | Place::ContainersStorage(_)
            | Place::DockerDaemon(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.called.as_ref().unwrap_or(&self.typed))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(typed: &str) -> Result<Self, ReferenceError> {
        match place(typed) {
            Ok(place) => Ok(Self { typed: typed.into(), place, called: None }),
            Err(why) => Err(ReferenceError::of(typed, why)),
        }
    }
}

/// A repository of a registry, with the tag or digest that picks a manifest in it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RegistryName {
    host: Box<str>,
    port: Option<u16>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl RegistryName {
    /// The host, an IPv6 address with its brackets; Docker Hub is always [`DOCKER_HUB`].
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if one was typed.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// `HOST[:PORT]`, under which credentials are kept.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }

    /// The repository, as in `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was typed.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides even if there is a tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What goes after `/manifests/`: the digest if there is one, else the tag.
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    fn parse(text: &str) -> Result<Self, Why> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest.parse().map_err(Why::Digest)?)),
            None => (text, None),
        };
        let (authority, path) = match text.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), rest),
            _ => (None, text),
        };
        let (host, port) = match authority {
            Some(authority) => split_authority(authority)?,
            None => (DOCKER_HUB, None),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (path, None),
        };
        if authority.is_none() {
            refuse_lone_digest(repository, tag)?;
        }
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        check_repository(repository).map_err(|why| match (why, authority) {
            (Why::UpperCase { lower }, Some(authority)) => Why::UpperCase { lower: format!("{authority}/{lower}") },
            (why, _) => why,
        })?;

        let hub = matches!(host, DOCKER_HUB | "index.docker.io" | "registry-1.docker.io") && port.is_none();
        let repository =
            if hub && !repository.contains('/') { format!("library/{repository}") } else { repository.to_owned() };
        if repository.len() > REPOSITORY_LIMIT {
            return Err(Why::RepositoryTooLong);
        }
        let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None });
        Ok(Self {
            host: if hub { DOCKER_HUB } else { host }.into(),
            port,
            repository: repository.into(),
            tag: tag.map(Into::into),
            digest,
        })
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.authority(), self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for RegistryName {
    type Err = ReferenceError;

    /// Reads a registry reference without a transport, as it stands in the RepoTags of an archive.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let name = if text.len() > REFERENCE_LIMIT { Err(Why::TooLong) } else { Self::parse(text) };
        name.map_err(|why| ReferenceError::of(text, why))
    }
}

/// A path, perhaps followed by what picks one of the images there.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LocalName {
    text: Box<str>,
    digest: Option<Digest>,
    grammar: Grammar,
}

/// What may follow the path of a local reference.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Grammar {
    /// `org.opencontainers.image.ref.name` (image-spec, annotations.md).
    RefName,
    /// A registry reference, or `@` and a position.
    Docker,
}

/// One way to understand a [`LocalName`].
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reading {
    /// The file or directory.
    pub path: PathBuf,
    /// Which of its images is meant.
    pub pick: Pick,
}

/// Which of several images at one path is meant.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Pick {
    /// The only one there is.
    Only,
    /// The one with this name.
    Named(String),
    /// The one at this position, counted from 0.
    Position(usize),
}

impl LocalName {
    /// The digest, which decides even if there is a name.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// All ways to understand this name, the longest path first.
    pub fn readings(&self) -> Vec<Reading> {
        let whole = Reading { path: PathBuf::from(&*self.text), pick: Pick::Only };
        let splits = self.text.rmatch_indices(':').filter_map(|(at, _)| {
            let (path, rest) = (&self.text[..at], &self.text[at + 1..]);
            (!path.is_empty())
                .then(|| self.grammar.pick(rest))
                .flatten()
                .map(|pick| Reading { path: PathBuf::from(path), pick })
        });
        std::iter::once(whole).chain(splits).collect()
    }

    /// The reading whose path `exists`; the longest such path if there are several, the shortest path
    /// if none exists.
    pub fn reading(&self, exists: impl Fn(&Path) -> bool) -> Reading {
        let mut readings = self.readings();
        let at = readings.iter().position(|reading| exists(&reading.path)).unwrap_or(readings.len() - 1);
        readings.swap_remove(at)
    }

    fn parse(transport: &'static str, text: &str, grammar: Grammar) -> Result<Self, Why> {
        let (text, digest) = match text.rsplit_once('@') {
            Some((rest, digest)) if grammar == Grammar::RefName && looks_like_digest(digest) => {
                (rest, Some(digest.parse().map_err(Why::Digest)?))
            }
            _ => (text, None),
        };
        check_path(transport, text)?;
        Ok(Self { text: text.into(), digest, grammar })
    }
}

impl Grammar {
    fn pick(self, text: &str) -> Option<Pick> {
        if text.is_empty() {
            return Some(Pick::Only);
        }
        match (self, text.strip_prefix('@')) {
            (_, Some(position)) => position.parse().ok().map(Pick::Position),
            (Self::Docker, None) => RegistryName::parse(text).ok().map(|_| Pick::Named(text.to_owned())),
            (Self::RefName, None) => is_ref_name(text).then(|| Pick::Named(text.to_owned())),
        }
    }
}

/// Whether an image in a layout may have this name, if it is not empty: `org.opencontainers.image.ref.name` (image-spec,
/// annotations.md).
pub fn is_ref_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:@/+".contains(&byte))
}

fn place(typed: &str) -> Result<Place, Why> {
    if typed.is_empty() {
        return Err(Why::Empty);
    }
    if typed.len() > REFERENCE_LIMIT {
        return Err(Why::TooLong);
    }
    if typed.contains(char::is_control) {
        return Err(Why::Control);
    }
    if let Some((_, rest)) = split_login(typed) {
        return Err(Why::Login { rest: rest.to_owned() });
    }
    if let Some((transport, rest)) = typed.split_once(':') {
        match transport {
            "oci" => return Ok(Place::Layout(LocalName::parse("oci", rest, Grammar::RefName)?)),
            "oci-archive" => return Ok(Place::OciArchive(LocalName::parse("oci-archive", rest, Grammar::RefName)?)),
            "docker-archive" => {
                return Ok(Place::DockerArchive(LocalName::parse("docker-archive", rest, Grammar::Docker)?));
            }
            "dir" => {
                check_path("dir", rest)?;
                return Ok(Place::Directory(PathBuf::from(rest)));
            }
            "docker" => {
                if let Some(name) = rest.strip_prefix("//") {
                    return Ok(Place::Registry(RegistryName::parse(name)?));
                }
            }
            "containers-storage" => return Ok(Place::ContainersStorage(Box::new(StorageName::parse(rest)?))),
            "docker-daemon" => return Ok(Place::DockerDaemon(Box::new(EngineName::parse(rest)?))),
            "ostree" | "sif" | "atomic" | "tarball" => {
                return Err(Why::Storage { transport: transport.to_owned(), rest: rest.to_owned() });
            }
            "http" | "https" if rest.starts_with("//") => {
                return Err(Why::Url { rest: rest.trim_start_matches('/').to_owned() });
            }
            _ if rest.starts_with("//") => return Err(Why::Transport { transport: transport.to_owned() }),
            _ => {}
        }
    }
    if typed.starts_with(['/', '.', '~']) {
        return Err(Why::BarePath { path: typed.to_owned() });
    }
    Ok(Place::Registry(RegistryName::parse(typed)?))
}

/// What stands before and behind a user's name or password, where a registry should be named: as people know it from URLs.
fn split_login(typed: &str) -> Option<(&str, &str)> {
    let begin = match typed.split_once("://") {
        Some((scheme, _)) if matches!(scheme, "docker" | "http" | "https") => scheme.len() + 3,
        _ if LOCAL.iter().any(|transport| typed.starts_with(transport)) => return None,
        _ => 0,
    };
    let authority = match typed[begin..].split_once('/') {
        Some((authority, _)) => authority,
        None if begin > 0 => &typed[begin..],
        None => return None,
    };
    let end = authority.rfind('@')?;
    // With a digest, it is a name without a host.
    if begin > 0 && looks_like_digest(&authority[end + 1..]) {
        return None;
    }
    Some((&typed[..begin], &typed[begin + end + 1..]))
}

/// How references begin that name what is on this machine.
const LOCAL: &[&str] =
    &["oci:", "oci-archive:", "docker-archive:", "dir:", "containers-storage:", "docker-daemon:", "/", ".", "~"];

fn check_path(transport: &'static str, path: &str) -> Result<(), Why> {
    if path.is_empty() || path.starts_with(':') {
        return Err(Why::NoPath { transport });
    }
    match path.strip_prefix("//") {
        Some(rest) if !rest.starts_with('/') => Err(Why::Slashes { transport, rest: rest.to_owned() }),
        _ => Ok(()),
    }
}

fn split_authority(authority: &str) -> Result<(&str, Option<u16>), Why> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(Why::Host)?;
            let _: Ipv6Addr = address.parse().map_err(|_| Why::Host)?;
            let port = match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return Err(Why::Host),
            };
            (&authority[..address.len() + 2], port)
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            if host.len() > 253 || !host.split('.').all(is_host_label) {
                return Err(Why::Host);
            }
            (host, port)
        }
    };
    match port {
        None => Ok((host, None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => match port.parse::<u16>() {
            Ok(number) if number > 0 => Ok((host, Some(number))),
            _ => Err(Why::Port),
        },
        Some(_) => Err(Why::Port),
    }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// distribution-spec, "Pulling manifests": `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, joined by `/`.
fn check_repository(repository: &str) -> Result<(), Why> {
    if repository.is_empty() {
        return Err(Why::NoRepository);
    }
    if repository.len() > REPOSITORY_LIMIT {
        return Err(Why::RepositoryTooLong);
    }
    if repository.split('/').all(is_repository_component) {
        return Ok(());
    }
    let lower = repository.to_ascii_lowercase();
    if lower != repository && lower.split('/').all(is_repository_component) {
        return Err(Why::UpperCase { lower });
    }
    Err(Why::Repository)
}

fn is_repository_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = |s: &str| s.bytes().next().is_some_and(alphanumeric) && s.bytes().last().is_some_and(alphanumeric);
    edges(component)
        && component
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

/// distribution-spec, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn check_tag(tag: &str) -> Result<(), Why> {
    if tag.is_empty() {
        return Err(Why::NoTag);
    }
    if tag.len() > TAG_LIMIT {
        return Err(Why::TagTooLong);
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if word(tag.as_bytes()[0]) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Ok(());
    }
    Err(Why::Tag)
}

/// An image named `sha256` with a tag of hexadecimal digits is possible and never meant.
fn refuse_lone_digest(repository: &str, tag: Option<&str>) -> Result<(), Why> {
    let hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    match (repository, tag) {
        ("sha256" | "sha384" | "sha512" | "blake3", Some(tag)) if hexadecimal(tag) => Err(Why::LoneDigest),
        (id, None) if id.len() == 64 && hexadecimal(id) => Err(Why::LoneDigest),
        _ => Ok(()),
    }
}

fn looks_like_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(name, hex)| {
        matches!(name, "sha256" | "sha384" | "sha512" | "blake3" | "md5" | "sha1") && !hex.is_empty()
    })
}

const DEFAULT_TAG: &str = "latest";

/// A string that names no image.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{}` is not an image reference: {why}", typed.escape_debug())]
pub struct ReferenceError {
    typed: String,
    why: Why,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum Why {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {REFERENCE_LIMIT} bytes")]
    TooLong,
    #[error("it contains a control character")]
    Control,
    #[error("it is a URL")]
    Url { rest: String },
    #[error("a login does not belong in it")]
    Login { rest: String },
    #[error("it is a path")]
    BarePath { path: String },
    #[error("there is no transport `{}`", transport.escape_debug())]
    Transport { transport: String },
    #[error("the transport `{transport}` is not supported")]
    Storage { transport: String, rest: String },
    #[error("there is no path after `{transport}:`")]
    NoPath { transport: &'static str },
    #[error("two slashes after `{transport}:` are not part of a path")]
    Slashes { transport: &'static str, rest: String },
    #[error("the host is not a name or address that can be reached")]
    Host,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error("there is no repository name")]
    NoRepository,
    #[error("the repository name is longer than {REPOSITORY_LIMIT} bytes")]
    RepositoryTooLong,
    #[error("repository names are lower case")]
    UpperCase { lower: String },
    #[error("a repository name is made of a-z and 0-9, with `/`, `.`, `_`, `__` or `-` between them")]
    Repository,
    #[error("there is no tag after the colon")]
    NoTag,
    #[error("the tag is longer than {TAG_LIMIT} bytes")]
    TagTooLong,
    #[error("a tag is made of letters, digits, `_`, `.` and `-`, and starts with none of the last two")]
    Tag,
    #[error("it looks like a digest, but no repository stands before it")]
    LoneDigest,
    #[error("the storage in brackets has no end")]
    Bracket,
    #[error("the storage is not named by a path")]
    StorePath { path: String },
    #[error("a storage driver has a name of letters and digits")]
    Driver,
    #[error("an id is made of 3 to 64 of the digits 0-9 and a-f")]
    Id,
    #[error(transparent)]
    Digest(DigestError),
}

impl ReferenceError {
    fn of(typed: &str, why: Why) -> Self {
        // A password is not shown.
        let typed = match split_login(typed) {
            Some((before, after)) => format!("{before}…@{after}"),
            None => typed.to_owned(),
        };
        Self { typed: typed.chars().take(160).collect(), why }
    }

    /// What the user may have meant, if that can be guessed.
    pub fn hint(&self) -> Option<String> {
        match &self.why {
            Why::Empty | Why::NoRepository => Some("name an image, as in `debian:12`".to_owned()),
            Why::Url { rest } => Some(format!("leave the scheme out: `{}`", rest.escape_debug())),
            Why::Login { rest } => {
                Some(format!("leave it out: `{}`; log in with `podman login` or `docker login`", rest.escape_debug()))
            }
            Why::BarePath { path } => {
                let path = path.escape_debug();
                Some(format!(
                    "say what it is: `oci:{path}`, `oci-archive:{path}`, `docker-archive:{path}` or `dir:{path}`"
                ))
            }
            Why::Transport { .. } => Some(
                "the transports are docker://, oci:, oci-archive:, docker-archive:, dir:, containers-storage: and \
                     docker-daemon:"
                    .to_owned(),
            ),
            Why::Storage { transport, rest } => Some(format!(
                "copy it first: `skopeo copy {transport}:{} oci-archive:image.tar`, then use `oci-archive:image.tar`",
                rest.escape_debug()
            )),
            Why::NoPath { transport } => Some(format!("write `{transport}:PATH`")),
            Why::Slashes { transport, rest } => Some(format!("did you mean `{transport}:{}`?", rest.escape_debug())),
            Why::UpperCase { lower } => Some(format!("did you mean `{lower}`?")),
            Why::Bracket | Why::StorePath { .. } | Why::Driver => {
                Some("write `containers-storage:[overlay@/path/to/storage]NAME`".to_owned())
            }
            Why::NoTag => Some("write `NAME:TAG`, or leave the colon out for `latest`".to_owned()),
            Why::LoneDigest => Some("write the repository before it: `NAME@sha256:…`".to_owned()),
            Why::TooLong
            | Why::Control
            | Why::Host
            | Why::Port
            | Why::RepositoryTooLong
            | Why::Repository
            | Why::TagTooLong
            | Why::Tag
            | Why::Id
            | Why::Digest(_) => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_short_name_has_neither_registry_nor_transport() {
        let pinned = format!("team/app:1@{D}");
        for (typed, wanted) in [
            ("python", Some("python")),
            ("python:3.12", Some("python")),
            (&*pinned, Some("team/app")),
            ("team/app/sub:v1", Some("team/app/sub")),
            ("docker.io/python", None),
            ("docker://python", None),
            ("localhost/python", None),
            ("r.example/a:1", None),
            ("r:5000/a", None),
            ("oci:dir", None),
        ] {
            assert_eq!(typed.parse::<Reference>().unwrap().short_name(), wanted, "{typed}");
        }
    }

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().canonical()
    }

    #[test]
    fn a_pin_is_what_was_not_typed() {
        let digest: Digest = D.parse().unwrap();
        for (typed, is_said) in [
            ("a:1", false),
            ("a", false),
            (&*format!("a@{D}"), true),
            (&*format!("a:1@{D}"), false),
            ("oci:lay:1", false),
            (&*format!("oci:lay:1@{D}"), true),
        ] {
            let reference: Reference = typed.parse().unwrap();
            assert_eq!(reference.pin(), None, "{typed}");
            let pinned = reference.pinned(&digest);
            assert_eq!((pinned.to_string().as_str(), pinned.pin()), (typed, (!is_said).then_some(&digest)));
        }
        assert_eq!("dir:x".parse::<Reference>().unwrap().pinned(&digest).pin(), None);
    }

    fn readings(text: &str) -> Vec<(String, Pick)> {
        match text.parse::<Reference>().unwrap().place() {
            Place::Layout(name) | Place::OciArchive(name) | Place::DockerArchive(name) => {
                name.readings().into_iter().map(|r| (r.path.to_str().unwrap().to_owned(), r.pick)).collect()
            }
            place => panic!("{place:?}"),
        }
    }

    #[test]
    fn registry_references_are_completed() {
        let with_digest = format!("docker.io/library/python@{D}");
        let with_both = format!("quay.io/a/b:v1@{D}");
        let table = [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/python", "docker.io/library/python:latest"),
            ("docker.io/library/python", "docker.io/library/python:latest"),
            ("docker://python:3.12", "docker.io/library/python:3.12"),
            ("docker://localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:z", "localhost:5000/x/y:z"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("registry.example/library/python:3.12", "registry.example/library/python:3.12"),
            ("Registry.Example/a", "Registry.Example/a:latest"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[2001:db8::1]/x/y:Z", "[2001:db8::1]/x/y:Z"),
            ("docker.io:443/x", "docker.io:443/x:latest"),
            ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g:latest"),
            ("oci", "docker.io/library/oci:latest"),
            ("dir/x", "docker.io/dir/x:latest"),
            ("docker:27", "docker.io/library/docker:27"),
            ("x:_a.B-c", "docker.io/library/x:_a.B-c"),
            ("sha256/x:aa", "docker.io/sha256/x:aa"),
            (&format!("python@{D}"), &with_digest),
            (&with_both, &with_both),
        ];
        for (typed, expected) in table {
            assert_eq!(canonical(typed), expected, "{typed}");
            assert_eq!(typed.parse::<Reference>().unwrap().to_string(), typed);
        }
    }

    #[test]
    fn a_canonical_name_is_its_own_canonical_name() {
        for typed in ["python", "[::1]:5000/x:y", "localhost/x", "docker.io:443/x", &format!("a/b@{D}")] {
            assert_eq!(canonical(&canonical(typed)), canonical(typed));
        }
    }

    #[test]
    fn a_digest_beats_a_tag_and_the_user_is_told() {
        let reference: Reference = format!("python:3.12@{D}").parse().unwrap();
        let Place::Registry(name) = reference.place() else { panic!("{reference:?}") };
        assert_eq!(name.manifest_name(), D);
        assert_eq!(reference.notes(), [format!("tag `3.12` is ignored because the reference has a digest, {D}")]);
        assert!("python:3.12".parse::<Reference>().unwrap().notes().is_empty());
        assert!(format!("python@{D}").parse::<Reference>().unwrap().notes().is_empty());
    }

    #[test]
    fn refusals_say_why_and_what_to_type() {
        let table = [
            "",
            "Ubuntu",
            "Library/ubuntu:22.04",
            "registry.example:5000/Python:3.12",
            "sha256:aaaa",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "python@sha256:aaaa",
            "python@md5:d41d8cd98f00b204e9800998ecf8427e",
            "python:",
            "python:-x",
            "python:a b",
            "a//b",
            "a/../b",
            "a..b",
            "a/",
            "/etc",
            "./image",
            "localhost:x/y",
            "localhost:0/y",
            "localhost:+80/y",
            "a.b:65536/y",
            "-a.b/y",
            "[::1/x",
            "[fe80::1%eth0]/x",
            "[::1]x/x.y",
            "https://registry.example/x",
            "ftp://x",
            "oci:",
            "oci::x",
            "dir:",
            "docker-archive://image.tar",
            "containers-storage:",
            "containers-storage:[overlay@/s]",
            "containers-storage:[overlay@/s",
            "containers-storage:[overlay]x",
            "containers-storage:x@y",
            "docker-daemon:X",
            "ostree:x",
            "a\u{1b}[31m",
            "naïve",
            "http://joe:s3cret@registry.example:5000/x",
            "https://joe:s3cret@registry.example",
            "docker://joe:s3cret@registry.example/x:1",
            "joe:s3cret@registry.example/x",
            "token@registry.example/x",
        ];
        let mut all = String::new();
        for typed in table {
            let error = typed.parse::<Reference>().unwrap_err();
            all.push_str(&format!("{error}\n"));
            if let Some(hint) = error.hint() {
                all.push_str(&format!("  hint: {hint}\n"));
            }
        }
        insta::assert_snapshot!(all, @r#"
        `` is not an image reference: it is empty
          hint: name an image, as in `debian:12`
        `Ubuntu` is not an image reference: repository names are lower case
          hint: did you mean `ubuntu`?
        `Library/ubuntu:22.04` is not an image reference: repository names are lower case
          hint: did you mean `library/ubuntu`?
        `registry.example:5000/Python:3.12` is not an image reference: repository names are lower case
          hint: did you mean `registry.example:5000/python`?
        `sha256:aaaa` is not an image reference: it looks like a digest, but no repository stands before it
          hint: write the repository before it: `NAME@sha256:…`
        `e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855` is not an image reference: it looks like a digest, but no repository stands before it
          hint: write the repository before it: `NAME@sha256:…`
        `python@sha256:aaaa` is not an image reference: `sha256:aaaa` is not a usable digest: expected 64 digits, found 4
        `python@md5:d41d8cd98f00b204e9800998ecf8427e` is not an image reference: `md5:d41d8cd98f00b204e9800998ecf8427e` is not a usable digest: the algorithm is none of sha256, sha512 and blake3
        `python:` is not an image reference: there is no tag after the colon
          hint: write `NAME:TAG`, or leave the colon out for `latest`
        `python:-x` is not an image reference: a tag is made of letters, digits, `_`, `.` and `-`, and starts with none of the last two
        `python:a b` is not an image reference: a tag is made of letters, digits, `_`, `.` and `-`, and starts with none of the last two
        `a//b` is not an image reference: a repository name is made of a-z and 0-9, with `/`, `.`, `_`, `__` or `-` between them
        `a/../b` is not an image reference: a repository name is made of a-z and 0-9, with `/`, `.`, `_`, `__` or `-` between them
        `a..b` is not an image reference: a repository name is made of a-z and 0-9, with `/`, `.`, `_`, `__` or `-` between them
        `a/` is not an image reference: a repository name is made of a-z and 0-9, with `/`, `.`, `_`, `__` or `-` between them
        `/etc` is not an image reference: it is a path
          hint: say what it is: `oci:/etc`, `oci-archive:/etc`, `docker-archive:/etc` or `dir:/etc`
        `./image` is not an image reference: it is a path
          hint: say what it is: `oci:./image`, `oci-archive:./image`, `docker-archive:./image` or `dir:./image`
        `localhost:x/y` is not an image reference: the port is not a number from 1 to 65535
        `localhost:0/y` is not an image reference: the port is not a number from 1 to 65535
        `localhost:+80/y` is not an image reference: the port is not a number from 1 to 65535
        `a.b:65536/y` is not an image reference: the port is not a number from 1 to 65535
        `-a.b/y` is not an image reference: the host is not a name or address that can be reached
        `[::1/x` is not an image reference: the host is not a name or address that can be reached
        `[fe80::1%eth0]/x` is not an image reference: the host is not a name or address that can be reached
        `[::1]x/x.y` is not an image reference: the host is not a name or address that can be reached
        `https://registry.example/x` is not an image reference: it is a URL
          hint: leave the scheme out: `registry.example/x`
        `ftp://x` is not an image reference: there is no transport `ftp`
          hint: the transports are docker://, oci:, oci-archive:, docker-archive:, dir:, containers-storage: and docker-daemon:
        `oci:` is not an image reference: there is no path after `oci:`
          hint: write `oci:PATH`
        `oci::x` is not an image reference: there is no path after `oci:`
          hint: write `oci:PATH`
        `dir:` is not an image reference: there is no path after `dir:`
          hint: write `dir:PATH`
        `docker-archive://image.tar` is not an image reference: two slashes after `docker-archive:` are not part of a path
          hint: did you mean `docker-archive:image.tar`?
        `containers-storage:` is not an image reference: there is no repository name
          hint: name an image, as in `debian:12`
        `containers-storage:[overlay@/s]` is not an image reference: there is no repository name
          hint: name an image, as in `debian:12`
        `containers-storage:[overlay@/s` is not an image reference: the storage in brackets has no end
          hint: write `containers-storage:[overlay@/path/to/storage]NAME`
        `containers-storage:[overlay]x` is not an image reference: the storage is not named by a path
          hint: write `containers-storage:[overlay@/path/to/storage]NAME`
        `containers-storage:x@y` is not an image reference: an id is made of 3 to 64 of the digits 0-9 and a-f
        `docker-daemon:X` is not an image reference: repository names are lower case
          hint: did you mean `x`?
        `ostree:x` is not an image reference: the transport `ostree` is not supported
          hint: copy it first: `skopeo copy ostree:x oci-archive:image.tar`, then use `oci-archive:image.tar`
        `a\u{1b}[31m` is not an image reference: it contains a control character
        `naïve` is not an image reference: a repository name is made of a-z and 0-9, with `/`, `.`, `_`, `__` or `-` between them
        `http://…@registry.example:5000/x` is not an image reference: a login does not belong in it
          hint: leave it out: `registry.example:5000/x`; log in with `podman login` or `docker login`
        `https://…@registry.example` is not an image reference: a login does not belong in it
          hint: leave it out: `registry.example`; log in with `podman login` or `docker login`
        `docker://…@registry.example/x:1` is not an image reference: a login does not belong in it
          hint: leave it out: `registry.example/x:1`; log in with `podman login` or `docker login`
        `…@registry.example/x` is not an image reference: a login does not belong in it
          hint: leave it out: `registry.example/x`; log in with `podman login` or `docker login`
        `…@registry.example/x` is not an image reference: a login does not belong in it
          hint: leave it out: `registry.example/x`; log in with `podman login` or `docker login`
        "#);
    }

    #[test]
    fn names_that_would_change_an_address_are_refused() {
        let read =
            |host: &str, repository: &str, tag: &str| format!("{host}/{repository}:{tag}").parse::<RegistryName>();
        assert!(read("r.example", "library/a.b_c-d", "1.0-x_y").is_ok());
        for host in ["user@r.example", "user:secret@r.example", "r.example?x", "r.example#x", "r.ex%2fample"] {
            assert!(read(host, "a", "1").is_err(), "{host}");
        }
        for repository in ["", "/", "a/", "/a", "a//b", "..", "a/../b", "./a", "a?b", "a#b", "a%2fb", "a b", "é"] {
            assert!(read("r.example", repository, "1").is_err(), "{repository}");
        }
        for tag in ["", "..", "a?b", "a#b"] {
            assert!(read("r.example", "a", tag).is_err(), "{tag}");
        }
    }

    #[test]
    fn lengths_are_capped() {
        let tag = |n| format!("x:{}", "t".repeat(n)).parse::<Reference>();
        assert!(tag(TAG_LIMIT).is_ok());
        assert!(tag(TAG_LIMIT + 1).is_err());
        let name = |n| format!("h.x/{}", "n".repeat(n)).parse::<Reference>();
        assert!(name(REPOSITORY_LIMIT).is_ok());
        assert!(name(REPOSITORY_LIMIT + 1).is_err());
        // A short name is measured as what it is completed to.
        let short = |n| "n".repeat(n).parse::<Reference>();
        assert!(short(REPOSITORY_LIMIT - "library/".len()).is_ok());
        assert!(short(REPOSITORY_LIMIT - "library/".len() + 1).is_err());
        assert!(format!("oci:{}", "x".repeat(REFERENCE_LIMIT)).parse::<Reference>().is_err());
    }

    #[test]
    fn a_local_name_keeps_every_reading_longest_path_first() {
        let named = |text: &str| Pick::Named(text.to_owned());
        assert_eq!(readings("oci:dir"), [("dir".to_owned(), Pick::Only)]);
        assert_eq!(
            readings("oci-archive:a.tar:docker.io/library/x:1"),
            [
                ("a.tar:docker.io/library/x:1".to_owned(), Pick::Only),
                ("a.tar:docker.io/library/x".to_owned(), named("1")),
                ("a.tar".to_owned(), named("docker.io/library/x:1")),
            ]
        );
        assert_eq!(
            readings("docker-archive:a.tar:@2"),
            [("a.tar:@2".to_owned(), Pick::Only), ("a.tar".to_owned(), Pick::Position(2))]
        );
        assert_eq!(readings("oci:/a:b c"), [("/a:b c".to_owned(), Pick::Only)]);
        assert_eq!(readings("oci:/a:"), [("/a:".to_owned(), Pick::Only), ("/a".to_owned(), Pick::Only)]);
    }

    #[test]
    fn the_longest_existing_path_is_taken_and_else_the_shortest() {
        let reference: Reference = "oci:/a:b:c".parse().unwrap();
        let Place::Layout(name) = reference.place() else { panic!("{reference:?}") };
        let path = |there: &'static [&str]| {
            name.reading(|path| there.contains(&path.to_str().unwrap())).path.to_str().unwrap().to_owned()
        };
        assert_eq!(path(&["/a", "/a:b"]), "/a:b");
        assert_eq!(path(&["/a"]), "/a");
        assert_eq!(path(&[]), "/a");
    }

    #[test]
    fn local_digests_are_cut_off_and_checked() {
        let reference: Reference = format!("oci:/a:t@{D}").parse().unwrap();
        let Place::Layout(name) = reference.place() else { panic!("{reference:?}") };
        assert_eq!(name.digest().unwrap().to_string(), D);
        assert_eq!(name.reading(|path| path == Path::new("/a")).pick, Pick::Named("t".to_owned()));
        assert!("oci:/a@sha256:../../x".parse::<Reference>().is_err());
        assert!("oci:/a@home".parse::<Reference>().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_canonical_forms_are_stable(text in "[a-zA-Z0-9:/@.\\[\\]_~ \u{0}é-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let once = reference.canonical();
                proptest::prop_assert_eq!(canonical(&once), once);
            }
        }
    }
}
