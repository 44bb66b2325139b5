//! Asks the source of an image step by step, as a mount would: for a report of what works and what does not.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::error::HostError;
use super::open;
use super::spec::{Access, ImageSpec};
use crate::descriptor::Descriptor;
use crate::image::Network;
use crate::offsets::BlobOffset;
use crate::reference::Place;
use crate::source::outage::OnOutage;
use crate::source::registry::{Contact, MirrorAnswer, RegistrySource, Rights};
use crate::source::{BlobSource as _, SourceError};

/// How far an image can be reached.
#[derive(Debug)]
pub struct Reached {
    /// The answers of its registry; `None` for an image that is not in one, or must not be asked for.
    pub registry: Option<ReachedRegistry>,
    /// What a mount would show: how many layers, of how many bytes.
    pub image: Result<(usize, u64), HostError>,
}

/// How far a registry can be reached.
#[derive(Debug)]
pub struct ReachedRegistry {
    /// Its name, with its port if it has one.
    pub host: String,
    /// The addresses of its host; `None` if a proxy is asked, which resolves it.
    pub addresses: Option<io::Result<Vec<IpAddr>>>,
    /// What it says that the reference names now.
    pub manifest: Result<Descriptor, SourceError>,
    /// How it was reached.
    pub contact: Contact,
    /// Whether it serves ranges of blobs; `None` if that was not asked.
    pub ranges: Option<Result<bool, SourceError>>,
    /// What names its mirrors: a file, or an option.
    pub mirrors_by: Option<String>,
    /// The answers of its mirrors.
    pub mirrors: Vec<MirrorAnswer>,
}

/// Asks for the image: its registry's address, its manifest, its mirrors, and a few bytes in the middle of its largest
/// layer. Takes at most some ten seconds. Needs a tokio runtime.
///
/// # Errors
/// [`HostError`] if the registry cannot be asked at all, as with invalid certificates.
pub async fn reach(image: &ImageSpec) -> Result<Reached, HostError> {
    // No reader waits for this image, so a few seconds are enough.
    let access = Access { on_outage: OnOutage::Deadline(PATIENCE), ..image.access.clone() };
    let image = &ImageSpec { access, ..image.clone() };
    let is_offline = image.access.network == Network::Offline;
    let name = match image.reference.place() {
        Place::Registry(name) if !is_offline => name,
        _ => return Ok(Reached { registry: None, image: described(image).await.map(|layers| size(&layers)) }),
    };
    let source = open::registry(name, &image.reference.to_string(), &image.access, Rights::Pull)?;
    let addresses = async {
        let found = tokio::time::timeout(PATIENCE, source.addresses());
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()));
        if is_proxied() { None } else { Some(found.await.unwrap_or_else(|_| Err(late()))) }
    };
    let manifest = async {
        let manifest = within(PATIENCE, &name.authority(), source.head()).await;
        let digest = manifest.as_ref().ok().map(|found: &Descriptor| found.digest.clone());
        let mirrors = source.try_mirrors(digest.as_ref(), MIRRORS_WITHIN).await;
        (manifest, mirrors)
    };
    // Of a registry that is away, the cache may know the image.
    let (addresses, (manifest, mirrors), described) = tokio::join!(addresses, manifest, described(image));
    let largest = described.as_ref().ok().and_then(|layers| layers.iter().max_by_key(|layer| layer.size));
    let ranges = match largest.filter(|layer| manifest.is_ok() && layer.data.is_none() && layer.size > LEAST) {
        Some(layer) => Some(within(RANGES_WITHIN, &name.authority(), serves_ranges(&source, layer)).await),
        None => None,
    };
    let contact = source.contact().await;
    let mirrors_by = source.mirrors_named_by().map(ToOwned::to_owned);
    let registry =
        ReachedRegistry { host: name.authority(), addresses, manifest, contact, ranges, mirrors_by, mirrors };
    Ok(Reached { registry: Some(registry), image: described.map(|layers| size(&layers)) })
}

/// The answer of `host`, or that there was none in time.
async fn within<T>(
    limit: Duration,
    host: &str,
    answer: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    tokio::time::timeout(limit + BREATH, answer).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", limit.as_secs());
        Err(SourceError::Unreachable { what: "the image".to_owned(), place: host.to_owned(), why, hint: None })
    })
}

/// The blobs of the image's layers.
async fn described(image: &ImageSpec) -> Result<Vec<Descriptor>, HostError> {
    let opened = tokio::time::timeout(DESCRIBED_WITHIN, open::open_to_describe(image)).await;
    let opened = opened.unwrap_or_else(|_| {
        let (what, place) = ("the image".to_owned(), image.reference.to_string());
        let why = format!("no answer within {} s", DESCRIBED_WITHIN.as_secs());
        Err(SourceError::Unreachable { what, place, why, hint: None }.into())
    })?;
    Ok(opened.plan.layers.into_iter().map(|layer| layer.blob).collect())
}

fn size(layers: &[Descriptor]) -> (usize, u64) {
    (layers.len(), layers.iter().map(|layer| layer.size).sum())
}

/// Asks for bytes in the middle of a blob. A registry that answers with all of it is not listened to.
async fn serves_ranges(source: &RegistrySource, blob: &Descriptor) -> Result<bool, SourceError> {
    let middle = blob.size / 2;
    let wanted = BlobOffset(middle)..BlobOffset((middle + ASKED).min(blob.size));
    let (comes, mut bytes) = source.stream_or_whole(blob, wanted.clone()).await?;
    if comes != wanted {
        return Ok(false);
    }
    while let Some(piece) = bytes.next().await {
        piece?;
    }
    Ok(true)
}

/// Whether the environment names a proxy for HTTPS.
fn is_proxied() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(is_set)
}

/// How long the registry is waited for.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long the whole image is; it may take several requests.
const DESCRIBED_WITHIN: Duration = Duration::from_secs(9);
/// How long mirrors are, all at once.
const MIRRORS_WITHIN: Duration = Duration::from_secs(3);
const RANGES_WITHIN: Duration = Duration::from_secs(3);
/// The source has limits of its own, whose errors say more.
const BREATH: Duration = Duration::from_millis(500);
/// Bytes that are asked for.
const ASKED: u64 = 16;
/// A blob so small has no middle worth asking for, in bytes.
const LEAST: u64 = 64;
