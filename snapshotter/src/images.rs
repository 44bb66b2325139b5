//! Images that are mounted instead of unpacked: decides for each image, and resolves it. The decision is made for the
//! whole image, before its first layer is reported as present: containerd does not ask again. So manifest and
//! configuration are fetched and verified, the requested chain id is compared with theirs, and each layer's blob is
//! checked to exist. If any of that fails, containerd unpacks the image, as with any other snapshotter.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use peelfs::digest::Digest;
use peelfs::host::error::HostError;
use peelfs::host::open::{self, Opened};
use peelfs::host::report::Report;
use peelfs::host::spec::{Access, CacheSpec, ImageSpec};
use peelfs::host::verifiers::{self, Question};
use peelfs::host::whole_file;
use peelfs::image::{Documents, Network, SharedLayers, View};
use peelfs::offsets::BlobOffset;
use peelfs::reference::{Place, Reference};
use peelfs::source::registry::mirrors::Mirrors;

use crate::config::Config;
use crate::labels::{self, Wanted};
use crate::providers;
use crate::records::Remote;
use crate::root::IMAGES;

/// An image that can be mounted.
#[derive(Debug)]
pub(crate) struct Image {
    reference: String,
    manifest: Digest,
    /// Base first.
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    chain: Digest,
    blob: Digest,
    diff_id: Digest,
}

/// Why an image is not mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{}", .0.message)]
    Image(Report),
    #[error("its configuration has no layer {chain}")]
    OtherChain { chain: Digest },
    #[error("its registry did not answer within {0} s")]
    Late(u64),
    /// As of this long ago.
    #[error("{why} (as of {} s ago; asked again {} s after that)", ago.as_secs(), REFUSED_FOR.as_secs())]
    Before { why: String, ago: Duration },
    /// Verifiers refused it, or cannot be run: it is not unpacked either.
    #[error("{}", .0.message)]
    NotAllowed(Report),
}

/// The decisions about images.
pub(crate) struct Images {
    root: PathBuf,
    config: Arc<Config>,
    layers: SharedLayers,
    /// By reference and manifest.
    decided: Mutex<HashMap<(String, Option<Digest>), Deciding>>,
}

type Deciding = Arc<tokio::sync::Mutex<Decision>>;

#[derive(Default)]
enum Decision {
    #[default]
    Open,
    Mounted(Arc<Image>),
    Refused(Instant, String),
}

impl Image {
    /// The layer with this chain id, and those below it.
    pub(crate) fn up_to(&self, chain: &Digest) -> Option<Remote> {
        let at = self.layers.iter().position(|layer| layer.chain == *chain)?;
        let Layer { chain, blob, diff_id } = &self.layers[at];
        Some(Remote {
            chain: chain.clone(),
            layers: u16::try_from(at + 1).ok()?,
            of: u16::try_from(self.layers.len()).ok()?,
            reference: self.reference.clone(),
            manifest: self.manifest.clone(),
            blob: blob.clone(),
            diff_id: diff_id.clone(),
        })
    }
}

impl Images {
    pub(crate) fn new(root: &Path, config: Arc<Config>) -> Result<Self, HostError> {
        let layers = open::shared_layers(&config.cache(root))?;
        Ok(Self { root: root.to_owned(), config, layers, decided: Mutex::default() })
    }

    /// The image of a layer, if it can be mounted.
    ///
    /// # Errors
    /// [`Refusal`]; its other layers are refused without asking again, for a while.
    pub(crate) async fn decide(&self, wanted: &Wanted) -> Result<Arc<Image>, Refusal> {
        let key = (wanted.reference.to_string(), wanted.manifest.clone());
        let decision = {
            let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
            if decided.len() > DECISIONS_KEPT {
                decided.retain(|_, decision| Arc::strong_count(decision) > 1);
            }
            Arc::clone(decided.entry(key).or_default())
        };
        // Pulls of the same image wait for one decision.
        let mut decision = decision.lock().await;
        match &*decision {
            Decision::Mounted(image) if image.up_to(&wanted.chain).is_some() => return Ok(Arc::clone(image)),
            Decision::Refused(when, why) if when.elapsed() < REFUSED_FOR => {
                return Err(Refusal::Before { why: why.clone(), ago: when.elapsed() });
            }
            _ => {}
        }
        let allowed = self.allowed(wanted).await?;
        let within = self.config.resolve_within;
        let manifest = allowed.as_ref().or(wanted.manifest.as_ref());
        let resolved = tokio::time::timeout(Duration::from_secs(within), self.resolve(wanted, manifest)).await;
        let resolved = resolved.unwrap_or(Err(Refusal::Late(within)));
        *decision = match &resolved {
            Ok(image) => Decision::Mounted(Arc::clone(image)),
            Err(why) => Decision::Refused(Instant::now(), why.to_string()),
        };
        let other = || Refusal::OtherChain { chain: wanted.chain.clone() };
        resolved.and_then(|image| if image.up_to(&wanted.chain).is_some() { Ok(image) } else { Err(other()) })
    }

    /// Runs the verifiers, if any, for the digest that the image's name resolves to, which may be an image index. If it
    /// now resolves to another manifest than containerd's, they are run for containerd's manifest. Returns the allowed
    /// manifest.
    async fn allowed(&self, wanted: &Wanted) -> Result<Option<Digest>, Refusal> {
        let Some(directory) = &self.config.verifier_dir else { return Ok(None) };
        let not_allowed = |error: HostError| Refusal::NotAllowed(error.into());
        let spec = self.spec(wanted.reference.clone());
        let asked = async {
            let named = open::open_in_cache(&spec, &self.layers).await?;
            let opened = match &wanted.manifest {
                Some(manifest) if named.plan.manifest.digest != *manifest => {
                    open::open_in_cache(&self.spec(wanted.reference.clone().pinned(manifest)), &self.layers).await?
                }
                _ => named,
            };
            let name = wanted.reference.canonical();
            let question = Question { name: &name, root: &opened.plan.root, access: &spec.access };
            verifiers::ask(directory, &question, &verifiers::Limits::default()).await?;
            Ok(opened.plan.manifest.digest.clone())
        };
        asked.await.map(Some).map_err(not_allowed)
    }

    async fn resolve(&self, wanted: &Wanted, manifest: Option<&Digest>) -> Result<Arc<Image>, Refusal> {
        let refused = |error: HostError| Refusal::Image(error.into());
        let reference = match manifest {
            Some(manifest) => wanted.reference.clone().pinned(manifest),
            None => wanted.reference.clone(),
        };
        let opened = open::open(&self.spec(reference), &self.layers).await.map_err(refused)?;
        let plan = &opened.plan;
        let chains = labels::chain_ids(&plan.configuration.diff_ids);
        let layers = chains.into_iter().zip(plan.layers.iter().zip(&plan.configuration.diff_ids));
        let layers = layers.map(|(chain, (layer, diff_id))| Layer {
            chain,
            blob: layer.blob.digest.clone(),
            diff_id: diff_id.clone(),
        });
        let (reference, manifest) = (wanted.reference.to_string(), plan.manifest.digest.clone());
        let image = Image { reference, manifest, layers: layers.collect() };
        blobs_exist(&opened).await.map_err(refused)?;
        self.keep(&image.manifest, &plan.documents).map_err(refused)?;
        Ok(Arc::new(image))
    }

    /// How to reach an image: credentials are looked up by the registry's name each time.
    pub(crate) fn spec(&self, reference: Reference) -> ImageSpec {
        let insecure = match reference.place() {
            Place::Registry(name) => {
                self.config.insecure.iter().any(|host| *host == name.authority() || *host == name.host())
            }
            _ => false,
        };
        let access = Access {
            network: Network::Allowed,
            insecure,
            ca: self.config.ca.clone(),
            authfile: self.config.authfile.clone(),
            mirrors: Mirrors { hosts_dir: self.config.hosts_dir.clone(), ..Mirrors::default() },
            on_outage: self.config.on_outage,
            surroundings: providers::surroundings(&self.root, &self.config),
        };
        let cache = self.cache();
        let index_from = self.config.index_from.clone();
        // Verifiers run when an image is pulled; a later mount does not run them again.
        let (view, verifiers) = (View::Image, PathBuf::new());
        let index_verifiers = self.config.index_verifier_dir.clone();
        ImageSpec { view, access, cache, index_from, index_verifiers, verifiers, ..ImageSpec::new(reference, "") }
    }

    pub(crate) fn cache(&self) -> CacheSpec {
        self.config.cache(&self.root)
    }

    /// Stores the documents of an image, so that it can be mounted without the cache's copy and without the registry.
    fn keep(&self, manifest: &Digest, documents: &Documents) -> Result<(), HostError> {
        let path = self.path(manifest);
        let written =
            serde_json::to_vec(documents).map_err(Into::into).and_then(|text| whole_file::write(&path, &text));
        written.map_err(|cause| HostError::RunState { path, cause })
    }

    /// Restores the documents of an image to the cache if they are missing there.
    pub(crate) fn restore(&self, manifest: &Digest) {
        let path = self.path(manifest);
        let documents = std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Documents>(&text)?));
        let documents = match documents {
            Ok(documents) => documents,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the registry will be asked for an image's documents");
                return;
            }
        };
        if let Err(error) = documents.restore(self.layers.store()) {
            self.layers.store().cannot_keep("a document", &error);
        }
    }

    /// Removes the documents of other images.
    pub(crate) fn sweep(&self, used: impl Fn(&str) -> bool) {
        for entry in std::fs::read_dir(self.root.join(IMAGES)).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.file_stem().and_then(|stem| stem.to_str()).is_some_and(&used) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    /// Disk usage of a layer in the cache: bytes and files.
    pub(crate) fn disk_usage(&self, remote: &Remote) -> (u64, u64) {
        let name = peelfs::store::LayerName { blob: &remote.blob, diff_id: &remote.diff_id };
        self.layers.store().disk_usage(name)
    }

    fn path(&self, manifest: &Digest) -> PathBuf {
        self.root.join(IMAGES).join(format!("{}.json", manifest.hex()))
    }
}

/// Requests one byte of each layer.
async fn blobs_exist(opened: &Opened) -> Result<(), HostError> {
    let asked = opened
        .plan
        .layers
        .iter()
        .filter(|layer| layer.blob.size > 0)
        .map(async |layer| opened.source.read_at(&layer.blob, BlobOffset(0)..BlobOffset(1)).await.map(drop));
    Ok(try_join_all(asked).await.map(drop)?)
}

/// How long a refusal is cached for the image's other layers.
const REFUSED_FOR: Duration = Duration::from_secs(60);
const DECISIONS_KEPT: usize = 256;
