//! Images of Docker: read where they are, or as the daemon sends them.
//!
//! Docker keeps images unpacked, by the driver of its storage (moby, `layer/` and `image/`):
//!
//! ```text
//! ROOT/image/DRIVER/repositories.json                      names and ids
//! ROOT/image/DRIVER/imagedb/content/sha256/ID              the configuration; its digest is the id
//! ROOT/image/DRIVER/layerdb/sha256/CHAIN/                  a layer: `diff` (diff_id), `cache-id`, `tar-split.json.gz`
//! ROOT/overlay2/CACHE-ID/diff                              its files (driver overlay2)
//! ```
//!
//! Only root can read that, and where Docker keeps images in containerd there is no such thing. Then the daemon is asked
//! for what `docker save` writes, over its socket.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use super::local::{LocalSource, Piece, blocking, listed, unusable};
use super::rebuilt::Ingredients;
use super::spool::Spool;
use super::storage::is_name;
use super::tarfile::TarFile;
use super::tree::Tree;
use super::unpacked::{LayerFiles, Unpacked};
use super::{CONFIG_LIMIT, SourceError, archive};
use crate::digest::{Algorithm, Digest};
use crate::documents::{ImageConfig, LAYERS_LIMIT};
use crate::reference::{EngineName, Pick, RegistryName};

/// What decides where Docker is.
#[derive(Clone, Debug, Default)]
pub(super) struct DockerAt {
    /// `DOCKER_HOST`
    host: Option<String>,
    /// Directories that may have images.
    roots: Vec<PathBuf>,
    /// Sockets that may be the daemon's.
    sockets: Vec<PathBuf>,
}

impl DockerAt {
    /// That of this process.
    pub(super) fn of_process() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (home, config) = (text("HOME").map(PathBuf::from), text("XDG_CONFIG_HOME").map(PathBuf::from));
        let mut at = Self { host: text("DOCKER_HOST"), ..Self::default() };
        if !rustix::process::geteuid().is_root() {
            // Rootless Docker.
            let config = config.or_else(|| Some(home.as_ref()?.join(".config")));
            let data = text("XDG_DATA_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".local/share")));
            let root = config.and_then(|config| data_root(&config.join("docker/daemon.json")));
            at.roots.extend(root.or_else(|| Some(data?.join("docker"))));
            at.sockets.extend(text("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("docker.sock")));
        }
        at.roots.push(data_root(Path::new("/etc/docker/daemon.json")).unwrap_or_else(|| "/var/lib/docker".into()));
        at.sockets.push("/var/run/docker.sock".into());
        at
    }

    /// Directories that may have images.
    pub(super) fn directories(self) -> Vec<PathBuf> {
        self.roots
    }

    /// The sockets to ask; an error if the daemon is on another machine.
    fn sockets(&self) -> Result<Vec<PathBuf>, SourceError> {
        match self.host.as_deref().map(|host| (host, host.strip_prefix("unix://"))) {
            None => Ok(self.sockets.clone()),
            Some((_, Some(path))) => Ok(vec![PathBuf::from(path)]),
            Some((host, None)) => Err(SourceError::Unsupported {
                place: format!("DOCKER_HOST, `{}`,", host.escape_debug()),
                why: "only daemons with a Unix socket are asked".to_owned(),
                hint: Some("pipe the image: `docker save NAME | peelfs … -`".to_owned()),
            }),
        }
    }
}

/// The directory that a daemon's configuration names.
fn data_root(path: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Daemon {
        #[serde(rename = "data-root")]
        root: Option<PathBuf>,
    }
    let daemon: Daemon = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    daemon.root
}

/// Where an image of Docker was found.
pub(super) enum Found {
    /// In files of its storage.
    Unpacked(Box<Unpacked>),
    /// The daemon has it: what it sends, as `docker save`.
    Sent(Piece),
}

impl Found {
    pub(super) fn into_source(self, name: String, spool: &Spool) -> Result<LocalSource, SourceError> {
        match self {
            Self::Unpacked(image) => Ok(image.into_source(name, spool)),
            Self::Sent(piece) => archive::open_saved(name, &TarFile::read(piece)?, &Pick::Only),
        }
    }
}

/// Finds an image.
///
/// # Errors
/// [`SourceError`] if neither the storage nor the daemon has it.
pub(super) async fn find(wanted: &EngineName, at: &DockerAt, spool: &Spool) -> Result<Found, SourceError> {
    let mut looked = Vec::new();
    // Another daemon keeps its images elsewhere.
    if at.host.is_none() {
        let (wanted, roots) = (wanted.clone(), at.roots.clone());
        let look = move || Ok(roots.iter().map(|root| in_storage(root, &wanted)).collect::<Vec<_>>());
        for found in blocking(look).await? {
            match found {
                Ok(Some(image)) => return Ok(Found::Unpacked(Box::new(image))),
                Ok(None) => {}
                Err(error) => looked.push(error),
            }
        }
    }
    let mut unreachable = None;
    for socket in at.sockets()? {
        match ask(&socket, wanted).await {
            Ok(body) => {
                let (spool, shown) = (spool.clone(), format!("the Docker daemon at `{}`", socket.display()));
                let reader = BodyReader { body, handle: Handle::current(), rest: Bytes::new() };
                let sent = blocking(move || Piece::of(spool.copy_of(&shown, reader)?, &shown)).await?;
                return Ok(Found::Sent(sent));
            }
            Err(error @ SourceError::Unreachable { .. }) => unreachable = Some(error),
            Err(error) => return Err(error),
        }
    }
    // What is wrong with an image that was found says more than that no daemon runs.
    let found = |error: &SourceError| !matches!(error, SourceError::Io { .. });
    let at = looked.iter().position(found);
    Err(at.map(|at| looked.swap_remove(at)).or(unreachable).expect("at least one socket is asked"))
}

/// The image in a storage; `None` if there is no such storage, or it is for others to read.
fn in_storage(root: &Path, wanted: &EngineName) -> Result<Option<Unpacked>, SourceError> {
    let tree = match Tree::open(root) {
        Err(SourceError::Io { .. }) => return Ok(None),
        tree => Arc::new(tree?),
    };
    let mut stores = Vec::new();
    for driver in DRIVERS {
        let list = match tree.find(&format!("image/{driver}/repositories.json")) {
            Err(SourceError::Io { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            list => list?,
        };
        if let Some(list) = list {
            stores.push(Storage { tree: Arc::clone(&tree), driver, names: names(&list)? });
        }
    }
    let Some(first) = stores.first() else { return Ok(None) };
    let shown = first.shown();
    for store in &stores {
        if let Some(image) = store.image(wanted)? {
            return Ok(Some(image));
        }
    }
    let of = listed(stores.iter().flat_map(|store| &store.names).map(|(name, _)| name.as_str()));
    let said = if of.is_empty() { "it has no image with a name".to_owned() } else { format!("it has {of}") };
    let what = format!("image `{}`", asked(wanted));
    Err(SourceError::NotFound { what, place: shown, said: Some(said), hint: None })
}

/// Names as Docker writes them, and the ids of their images.
fn names(list: &Piece) -> Result<Vec<(String, String)>, SourceError> {
    #[derive(Deserialize)]
    struct Repositories {
        #[serde(rename = "Repositories", default)]
        all: Option<HashMap<String, HashMap<String, String>>>,
    }
    let text = list.read_whole(LIST_LIMIT)?;
    let repositories: Repositories = serde_json::from_slice(&text).map_err(|error| {
        let why: String = error.to_string().chars().take(200).flat_map(char::escape_debug).collect();
        SourceError::Unsupported {
            place: format!("`{}`", list.path()),
            why: format!("it is not Docker's list of images: {why}"),
            hint: None,
        }
    })?;
    Ok(repositories.all.unwrap_or_default().into_values().flatten().collect())
}

/// The images of one driver.
struct Storage {
    tree: Arc<Tree>,
    driver: &'static str,
    names: Vec<(String, String)>,
}

impl Storage {
    fn shown(&self) -> String {
        format!("Docker's storage `{}`", self.tree.path().display())
    }

    fn image(&self, wanted: &EngineName) -> Result<Option<Unpacked>, SourceError> {
        let full = |name: &str| name.parse::<RegistryName>().ok().map(|name| name.to_string());
        let of_name = |wanted: String| {
            let named = self.names.iter().find(|(name, _)| full(name).as_ref() == Some(&wanted));
            named.map(|(_, id)| id.trim_start_matches("sha256:").to_owned())
        };
        let by_tag = wanted.full_names().into_iter().next().and_then(of_name);
        if let Some(digest) = wanted.digest() {
            let repository = wanted.name().map(|name| format!("{}/{}", name.authority(), name.repository()));
            if let Some(id) = repository.and_then(|repository| of_name(format!("{repository}@{digest}"))) {
                return self.unpacked(&id).map(Some);
            }
            // The manifest that was written for the image before.
            let written = by_tag.into_iter().chain(self.ids()).filter_map(|id| self.unpacked(&id).ok());
            return Ok(written.into_iter().find(|image| image.digest() == *digest));
        }
        let by_id = || {
            let id = wanted.id()?;
            let mut found = self.ids().into_iter().filter(|known| known.starts_with(id));
            Some(found.next().ok_or(id).and_then(|first| found.next().map_or(Ok(first), |_| Err(id))))
        };
        match by_tag.map(Ok).or_else(by_id) {
            Some(Ok(id)) => self.unpacked(&id).map(Some),
            Some(Err(_)) | None => Ok(None),
        }
    }

    /// The ids of all images.
    fn ids(&self) -> Vec<String> {
        let dir = self.tree.path().join(format!("image/{}/imagedb/content/sha256", self.driver));
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn unpacked(&self, id: &str) -> Result<Unpacked, SourceError> {
        let shown = format!("image `{}` of {}", id.escape_debug(), self.shown());
        let refused = |why: String| SourceError::Unsupported { place: shown.clone(), why, hint: None };
        let digest: Digest =
            format!("sha256:{id}").parse().map_err(|_| refused("its id is not a digest".to_owned()))?;
        let text = self.read(&format!("imagedb/content/sha256/{}", digest.hex()), CONFIG_LIMIT)?;
        if Digest::of(Algorithm::Sha256, &text) != digest {
            return Err(refused("its configuration is not what its id says".to_owned()));
        }
        let count = diff_ids(&text).filter(|count| *count <= LAYERS_LIMIT);
        let count =
            count.ok_or_else(|| refused(format!("it has more than {LAYERS_LIMIT} layers, or none are named")))?;
        let config = ImageConfig::parse(&text, count).map_err(|error| unusable(&shown, "configuration", &error))?;
        let (mut layers, mut chain) = (Vec::new(), None::<Digest>);
        for diff_id in config.diff_ids {
            let own = match chain {
                None => diff_id.clone(),
                Some(below) => Digest::of(Algorithm::Sha256, format!("{below} {diff_id}").as_bytes()),
            };
            layers.push(self.layer(&own, diff_id)?);
            chain = Some(own);
        }
        Unpacked::new((digest, text), layers, self.tree.path().to_owned(), id.to_owned(), None)
    }

    /// The layer whose chain id is `chain`.
    fn layer(&self, chain: &Digest, diff_id: Digest) -> Result<LayerFiles, SourceError> {
        let shown = format!("layer `{chain}` of {}", self.shown());
        let dir = format!("layerdb/{}/{}", chain.algorithm().name(), chain.hex());
        let word = |name: &str| {
            let text = self.read(&format!("{dir}/{name}"), WORD_LIMIT)?;
            Ok::<_, SourceError>(String::from_utf8_lossy(&text).trim().to_owned())
        };
        let (known, cache) = (word("diff")?, word("cache-id")?);
        let unusable = |why: &str| SourceError::Unsupported { place: shown.clone(), why: why.to_owned(), hint: None };
        if known != diff_id.to_string() {
            return Err(unusable("it is another layer than the configuration names"));
        }
        if !is_name(&cache) {
            return Err(unusable("its cache-id is not a file name"));
        }
        let path = self.tree.path().join(match self.driver {
            "vfs" => format!("vfs/dir/{cache}"),
            "btrfs" => format!("btrfs/subvolumes/{cache}"),
            overlay => format!("{overlay}/{cache}/diff"),
        });
        let tar_split = self.find(&format!("{dir}/tar-split.json.gz"))?;
        let files = Arc::new(Tree::open(&path)?);
        let hint = "Docker has removed or changed it: remove the image there, and pull it again".to_owned();
        // Docker keeps the size of the files only.
        Ok(LayerFiles { diff_id, size: None, of: Ingredients { layer: shown, hint, tar_split, files } })
    }

    fn read(&self, name: &str, limit: u64) -> Result<Bytes, SourceError> {
        self.find(name)?.read_whole(limit)
    }

    fn find(&self, name: &str) -> Result<Piece, SourceError> {
        let name = format!("image/{}/{name}", self.driver);
        self.tree.find(&name)?.ok_or_else(|| SourceError::NotFound {
            what: format!("file `{name}`"),
            place: self.shown(),
            said: None,
            hint: Some("Docker may have removed the image; pull it again".into()),
        })
    }
}

/// How many layers a configuration names.
fn diff_ids(config: &[u8]) -> Option<usize> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: Rootfs,
    }
    #[derive(Deserialize)]
    struct Rootfs {
        #[serde(default)]
        diff_ids: Option<Vec<serde::de::IgnoredAny>>,
    }
    let config: Config = serde_json::from_slice(config).ok()?;
    Some(config.rootfs.diff_ids.unwrap_or_default().len())
}

/// The name by which the daemon is asked.
fn asked(wanted: &EngineName) -> String {
    let name = wanted.full_names().into_iter().next();
    match (name, wanted.digest(), wanted.id()) {
        (_, None, Some(id)) if wanted.typed().is_empty() => id.to_owned(),
        (Some(_), Some(digest), _) => {
            let name = wanted.name().expect("it has full names");
            format!("{}/{}@{digest}", name.authority(), name.repository())
        }
        // It may be the beginning of an id.
        (_, None, Some(_)) => wanted.typed().to_owned(),
        (Some(name), None, None) => name,
        (None, digest, _) => digest.map(Digest::to_string).unwrap_or_default(),
    }
}

/// Asks the daemon for an image.
async fn ask(socket: &Path, wanted: &EngineName) -> Result<Incoming, SourceError> {
    let place = format!("the Docker daemon at `{}`", socket.display());
    let what = format!("image `{}`", asked(wanted));
    let unreachable = |cause: &dyn std::fmt::Display, hint| SourceError::Unreachable {
        what: what.clone(),
        place: place.clone(),
        why: cause.to_string(),
        hint: Some(hint),
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => unreachable(&error, "run as root, or as a member of the group `docker`"),
        _ => unreachable(&error, NO_DAEMON),
    })?;
    let broken = |error: hyper::Error| unreachable(&error, NO_DAEMON);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the body.
    tokio::spawn(connection);
    let path = format!("/images/{}/get", asked(wanted).replace('[', "%5B").replace(']', "%5D"));
    let request = Request::get(path).header("host", "docker").body(Empty::<Bytes>::new());
    let request = request.expect("names of images are made of what a path may have");
    let response: Response<Incoming> = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response.into_body());
    }
    let said = Limited::new(response.into_body(), SAID_LIMIT).collect().await;
    let said = said.map(|said| message(&said.to_bytes())).unwrap_or_default();
    match status {
        StatusCode::NOT_FOUND => Err(SourceError::NotFound { what, place, said: Some(said), hint: None }),
        status => Err(SourceError::Protocol { what, place, why: format!("{status}: {said}") }),
    }
}

/// What the daemon says in an error.
fn message(text: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    let said = serde_json::from_slice(text)
        .map_or_else(|_| String::from_utf8_lossy(text).into_owned(), |said: Said| said.message);
    said.chars().take(200).flat_map(char::escape_debug).collect()
}

/// A body as a thread that may block reads it.
struct BodyReader {
    body: Incoming,
    handle: Handle,
    rest: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.handle.block_on(self.body.frame()) {
                None => return Ok(0),
                Some(frame) => self.rest = frame.map_err(io::Error::other)?.into_data().unwrap_or_default(),
            }
        }
        let len = self.rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.rest.split_to(len));
        Ok(len)
    }
}

/// Drivers whose layers are directories.
const DRIVERS: [&str; 4] = ["overlay2", "fuse-overlayfs", "vfs", "btrfs"];
const NO_DAEMON: &str =
    "start Docker, name its socket with DOCKER_HOST, or pipe the image: `docker save NAME | peelfs … -`";
const LIST_LIMIT: u64 = 64 << 20;
const WORD_LIMIT: u64 = 4096;
const SAID_LIMIT: usize = 64 << 10;
