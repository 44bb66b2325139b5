//! The lists of images and layers in a store of containers/storage.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::conf::StoreDir;
use crate::documents::LAYERS_LIMIT;
use crate::reference::EngineName;
use crate::source::SourceError;
use crate::source::local::listed;
use crate::source::tree::Tree;

/// An image of the list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageEntry {
    pub(super) id: String,
    #[serde(default)]
    pub(super) digest: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// The uppermost layer.
    #[serde(default)]
    pub(super) layer: Option<String>,
    #[serde(default)]
    big_data_names: Option<Vec<String>>,
}

/// A layer of the list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LayerEntry {
    pub(super) id: String,
    #[serde(default)]
    parent: Option<String>,
    /// The digest of its tar.
    #[serde(default)]
    pub(super) diff_digest: Option<String>,
    /// Bytes of its tar.
    #[serde(default)]
    pub(super) diff_size: Option<i64>,
    #[serde(default)]
    flags: Option<HashMap<String, serde_json::Value>>,
}

/// A store with its lists.
pub(super) struct Store {
    pub(super) tree: Arc<Tree>,
    pub(super) driver: Driver,
    pub(super) images: Vec<ImageEntry>,
    layers: HashMap<String, LayerEntry>,
}

/// A storage driver whose layers are directories.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Driver {
    Overlay,
    Vfs,
    Btrfs,
}

impl ImageEntry {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flatten().map(String::as_str)
    }

    /// Whether a document is kept under this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.big_data_names.iter().flatten().any(|known| known == name)
    }
}

impl LayerEntry {
    pub(super) fn is_incomplete(&self) -> bool {
        self.flags.as_ref().is_some_and(|flags| flags.get("incomplete") == Some(&serde_json::Value::Bool(true)))
    }
}

impl Driver {
    const ALL: [Self; 3] = [Self::Overlay, Self::Vfs, Self::Btrfs];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Vfs => "vfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The directory with a layer's files.
    pub(super) fn files(self, layer: &str) -> String {
        match self {
            Self::Overlay => format!("overlay/{layer}/diff"),
            Self::Vfs => format!("vfs/dir/{layer}"),
            Self::Btrfs => format!("btrfs/subvolumes/{layer}"),
        }
    }

    fn of(dir: &StoreDir, tree: &Tree) -> Result<Self, SourceError> {
        match dir.driver.as_deref() {
            Some("overlay" | "overlay2") => Ok(Self::Overlay),
            Some("vfs") => Ok(Self::Vfs),
            Some("btrfs") => Ok(Self::Btrfs),
            Some(other) => Err(SourceError::Unsupported {
                place: format!("the storage `{}`", tree.path().display()),
                why: format!("layers of its driver, `{}`, are not directories", other.escape_debug()),
                hint: Some("copy the image: `skopeo copy containers-storage:NAME oci-archive:image.tar`".to_owned()),
            }),
            None => {
                let has = |driver: &Self| tree.path().join(format!("{}-images", driver.name())).is_dir();
                Ok(Self::ALL.into_iter().find(has).unwrap_or(Self::Overlay))
            }
        }
    }
}

impl Store {
    /// Reads the lists; `None` if there is no such directory.
    pub(super) fn open(dir: &StoreDir) -> Result<Option<Self>, SourceError> {
        let tree = match Tree::open(&dir.root) {
            Err(SourceError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(readable(error)),
            Ok(tree) => Arc::new(tree),
        };
        let driver = Driver::of(dir, &tree)?;
        let images = list(&tree, &format!("{}-images/images.json", driver.name()))?;
        let layers: Vec<LayerEntry> = list(&tree, &format!("{}-layers/layers.json", driver.name()))?;
        let layers = layers.into_iter().map(|layer| (layer.id.clone(), layer)).collect();
        Ok(Some(Self { tree, driver, images, layers }))
    }
}

/// A list of a store; empty if there is none yet.
fn list<T: DeserializeOwned>(tree: &Tree, name: &str) -> Result<Vec<T>, SourceError> {
    let Some(piece) = tree.find(name).map_err(readable)? else { return Ok(Vec::new()) };
    let text = piece.read_whole(LIST_LIMIT)?;
    serde_json::from_slice::<Option<Vec<T>>>(&text).map(Option::unwrap_or_default).map_err(|error| {
        let why = error.to_string().chars().take(200).flat_map(char::escape_debug).collect::<String>();
        let why = format!("it is not a list of containers/storage: {why}");
        SourceError::Unsupported { place: format!("`{}`", piece.path()), why, hint: None }
    })
}

/// The error, with what can be done if the store belongs to another user.
fn readable(error: SourceError) -> SourceError {
    match error {
        SourceError::Io { path, cause } if cause.kind() == io::ErrorKind::PermissionDenied => {
            SourceError::Unsupported {
                place: format!("`{path}`"),
                why: "this user must not read it".to_owned(),
                hint: Some(
                    "the storage belongs to another user, whose images only that user and root can read".to_owned(),
                ),
            }
        }
        error => error,
    }
}

/// The image that is meant, by its place in `stores`.
pub(super) fn choose<'a>(stores: &'a [Store], wanted: &EngineName) -> Result<(usize, &'a ImageEntry), SourceError> {
    let all = || stores.iter().enumerate().flat_map(|(at, store)| store.images.iter().map(move |image| (at, image)));
    if wanted.id().is_none() || wanted.name().is_some() {
        for full in wanted.full_names().iter().map(String::as_str).chain([wanted.typed()]) {
            if let Some(found) = all().find(|(_, image)| image.names().any(|name| name == full)) {
                return Ok(found);
            }
        }
    }
    let mut fits: Vec<(usize, &ImageEntry)> = match wanted.id() {
        Some(id) => all().filter(|(_, image)| image.id.starts_with(id)).collect(),
        None => Vec::new(),
    };
    if let (true, Some(ending)) = (fits.is_empty(), wanted.ending()) {
        fits = all().filter(|(_, image)| image.names().any(|name| name.ends_with(&ending))).collect();
    }
    let same = fits.windows(2).all(|pair| pair[0].1.id == pair[1].1.id);
    let by_id = wanted.id().is_some_and(|id| fits.iter().all(|(_, image)| image.id.starts_with(id)));
    match fits.first() {
        Some(found) if same => Ok(*found),
        Some(_) => Err(SourceError::Unsupported {
            place: shown(stores),
            why: format!("it holds {} images that `{}` could mean", fits.len(), named(wanted)),
            hint: Some(match by_id {
                true => {
                    format!("write more of its id: one of {}", listed(fits.iter().map(|(_, image)| told_id(&image.id))))
                }
                false => format!("write one of {}", listed(fits.iter().flat_map(|(_, image)| called(image)))),
            }),
        }),
        None => Err(not_found(stores, wanted)),
    }
}

/// The names of an image, or its id.
fn called(image: &ImageEntry) -> Vec<&str> {
    let names: Vec<_> = image.names().collect();
    if names.is_empty() { vec![image.id.as_str()] } else { names }
}

/// The error for an image that is in none of the stores.
pub(super) fn not_found(stores: &[Store], wanted: &EngineName) -> SourceError {
    let images = || stores.iter().flat_map(|store| &store.images);
    let named_ones = listed(images().flat_map(ImageEntry::names));
    let said = match images().count() {
        0 => "it has no image".to_owned(),
        count if named_ones.is_empty() => format!("it has {count} images without names"),
        _ => format!("it has {named_ones}"),
    };
    let hint = nearest(stores, wanted).unwrap_or_else(|| {
        "each user has a storage, and root another one; one elsewhere is named as \
         `containers-storage:[overlay@/path/to/storage]NAME`"
            .to_owned()
    });
    let what = format!("image `{}`", named(wanted));
    SourceError::NotFound { what, place: shown(stores), said: Some(said), hint: Some(hint.into()) }
}

/// The images that may be meant by a name with another tag, or by too few digits of an id.
fn nearest(stores: &[Store], wanted: &EngineName) -> Option<String> {
    let images = || stores.iter().flat_map(|store| &store.images);
    let without_tag = |full: &str| full.rsplit_once(':').map(|(repository, _)| repository.to_owned());
    let repositories: Vec<_> = wanted.full_names().iter().filter_map(|full| without_tag(full)).collect();
    let ending = wanted.ending().as_deref().and_then(without_tag);
    let typed = wanted.typed().rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let typed = typed.map_or(wanted.typed(), |(repository, _)| repository);
    let with_tag = |full: &str| {
        let (repository, tag) = full.rsplit_once(':')?;
        let is_meant = repositories.iter().any(|one| one == repository)
            || ending.as_ref().is_some_and(|ending| repository.ends_with(ending));
        is_meant.then(|| format!("{typed}:{tag}"))
    };
    let mut tags: Vec<_> = images().flat_map(ImageEntry::names).filter_map(with_tag).collect();
    tags.sort_unstable();
    tags.dedup();
    match &tags[..] {
        [] => {}
        [one] => return Some(format!("did you mean `{one}`?")),
        several => return Some(format!("did you mean one of {}?", listed(several.iter().map(String::as_str)))),
    }
    let digits = wanted.id().unwrap_or(wanted.typed());
    let is_id = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_id {
        return None;
    }
    let ids: std::collections::BTreeSet<_> =
        images().map(|image| &*image.id).filter(|id| id.starts_with(digits)).map(told_id).collect();
    (!ids.is_empty()).then(|| format!("an id needs three digits at least: {}", listed(ids)))
}

/// As much of an id as engines show.
fn told_id(id: &str) -> &str {
    id.get(..ID_TOLD).unwrap_or(id)
}

/// What was typed.
fn named(wanted: &EngineName) -> String {
    match (wanted.typed(), wanted.digest(), wanted.id()) {
        (name, Some(digest), _) => format!("{name}@{digest}"),
        ("", None, Some(id)) => id.to_owned(),
        (name, None, _) => name.to_owned(),
    }
}

/// The stores, in messages.
pub(super) fn shown(stores: &[Store]) -> String {
    match stores {
        [] => "containers-storage".to_owned(),
        [first, ..] => format!("the storage `{}`", first.tree.path().display()),
    }
}

/// The layers from `upper` down to the lowest, base first; each with its store.
pub(super) fn chain<'a>(
    stores: &'a [Store],
    upper: Option<&str>,
) -> Result<Vec<(&'a Store, &'a LayerEntry)>, SourceError> {
    let (mut chain, mut next) = (Vec::new(), upper.filter(|id| !id.is_empty()));
    while let Some(id) = next {
        let unusable = |why: &str| SourceError::Unsupported {
            place: shown(stores),
            why: format!("layer `{}` {why}", id.chars().take(128).flat_map(char::escape_debug).collect::<String>()),
            hint: Some("the engine may have removed it; pull the image again".to_owned()),
        };
        if chain.len() == LAYERS_LIMIT {
            return Err(unusable(&format!("is below {LAYERS_LIMIT} others, or below itself")));
        }
        let found = stores.iter().find_map(|store| Some((store, store.layers.get(id)?)));
        let (store, layer) = found.ok_or_else(|| unusable("is not in its list of layers"))?;
        if !is_name(id) {
            return Err(unusable("has an id that is not a file name"));
        }
        chain.push((store, layer));
        next = layer.parent.as_deref().filter(|parent| !parent.is_empty());
    }
    chain.reverse();
    Ok(chain)
}

/// Whether an id can be the name of a file, which leads nowhere else.
pub(in super::super) fn is_name(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Digits of an id that engines show.
const ID_TOLD: usize = 12;
const LIST_LIMIT: u64 = 64 << 20;
