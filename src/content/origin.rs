//! Where a layer's index comes from, and opening the indexes in the store.

use std::sync::Arc;

use super::layer_ref::LayerRef;
use super::pushed_error::PushedError;
use super::soci_error::{NoIndex, SociError};
use crate::digest::Digest;
use crate::layer::foreign::{PlaceError, Toc, TocError};
use crate::layer::{Format, IndexError, LayerIndex, Proof, WriteError};
use crate::source::SourceError;
use crate::store::{IndexName, Store};

/// Where a layer's index comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Origin {
    /// The store has it from an earlier first pass.
    Store,
    /// It was made elsewhere, in this format, and its maker is trusted.
    Vouched(Format),
    /// A first pass reads the whole layer.
    FirstPass,
}

impl Origin {
    /// All origins, cheapest first.
    pub const ALL: [Self; 8] = [
        Self::Store,
        Self::Vouched(Format::Exported),
        Self::Vouched(Format::ZstdChunked),
        Self::Vouched(Format::EStargz),
        Self::Vouched(Format::Soci),
        Self::Vouched(Format::Pushed),
        Self::Vouched(Format::SociReferrer),
        Self::FirstPass,
    ];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store | Self::FirstPass => "own index",
            Self::Vouched(format) => format.name(),
        }
    }

    /// The same, where an index that was there differs from one that was made.
    pub fn long_name(self) -> &'static str {
        match self {
            Self::FirstPass => "a first pass",
            Self::Store | Self::Vouched(_) => self.name(),
        }
    }

    /// The tables of contents that the manifest says a layer brings along, and what is wrong with what it says of each.
    pub fn tables(layer: &LayerRef) -> Vec<(Self, Option<PlaceError>)> {
        if layer.file().is_some() {
            return Vec::new();
        }
        let named = |format| match Toc::of(&layer.blob, format) {
            Ok(toc) => toc.map(|_| (Self::Vouched(format), None)),
            Err(why) => Some((Self::Vouched(format), Some(why))),
        };
        [Format::ZstdChunked, Format::EStargz].into_iter().filter_map(named).collect()
    }

    /// Where an index came from.
    pub fn of(index: &LayerIndex) -> Option<Self> {
        Self::of_stored(index.proof())
    }

    /// Whether the layer brings it along.
    pub fn is_toc(self) -> bool {
        matches!(self, Self::Vouched(format) if format.is_in_layer())
    }

    /// Whether it is fetched for the layer, by some requests.
    pub fn is_fetched(self) -> bool {
        self.is_toc() || matches!(self, Self::Vouched(Format::Pushed | Format::Soci | Format::SociReferrer))
    }

    /// The origin of a stored index with this proof.
    fn of_stored(proof: &Proof) -> Option<Self> {
        match proof {
            Proof::Built => Some(Self::Store),
            Proof::Vouched { format, .. } => Some(Self::Vouched(*format)),
            // Never written to the store.
            Proof::Unproven => None,
        }
    }
}

/// Which indexes of layers may be used that this machine has not made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum IndexChoice {
    /// All: those that were imported, and tables of contents of other makers where this machine has no index.
    #[default]
    Auto,
    /// Those of peelfs alone: no tables of contents of other makers.
    Own,
    /// As `Auto`, and a table of contents also where this machine has an index.
    Foreign,
    /// None.
    None,
}

impl IndexChoice {
    /// The same, for what needs layers as tars: without tables of contents, which do not have them so.
    #[must_use]
    pub fn of_tars(self) -> Self {
        match self {
            Self::Auto | Self::Own | Self::Foreign => Self::Own,
            Self::None => Self::None,
        }
    }

    /// Where an index may come from, in the order in which it is asked for.
    pub fn origins(self, pushed: FromRegistry) -> &'static [Origin] {
        const STORE: Origin = Origin::Store;
        const EXPORTED: Origin = Origin::Vouched(Format::Exported);
        const PUSHED: Origin = Origin::Vouched(Format::Pushed);
        const ZSTD_CHUNKED: Origin = Origin::Vouched(Format::ZstdChunked);
        const ESTARGZ: Origin = Origin::Vouched(Format::EStargz);
        const SOCI: Origin = Origin::Vouched(Format::Soci);
        const SOCI_V1: Origin = Origin::Vouched(Format::SociReferrer);
        const PASS: Origin = Origin::FirstPass;
        match (self, pushed) {
            (Self::Auto, FromRegistry::Named) => &Origin::ALL,
            (Self::Auto, FromRegistry::Never) => &[STORE, EXPORTED, ZSTD_CHUNKED, ESTARGZ, SOCI, PASS],
            (Self::Own, FromRegistry::Named) => &[STORE, EXPORTED, PUSHED, PASS],
            (Self::Own, FromRegistry::Never) => &[STORE, EXPORTED, PASS],
            (Self::Foreign, FromRegistry::Named) => {
                &[ZSTD_CHUNKED, ESTARGZ, SOCI, SOCI_V1, STORE, EXPORTED, PUSHED, PASS]
            }
            (Self::Foreign, FromRegistry::Never) => &[ZSTD_CHUNKED, ESTARGZ, SOCI, STORE, EXPORTED, PASS],
            (Self::None, _) => &[STORE, PASS],
        }
    }
}

/// Whether indexes that others have pushed to a registry may be used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FromRegistry {
    /// No.
    #[default]
    Never,
    /// Those in the repository that the user has named.
    Named,
}

/// An opened layer.
#[derive(Debug)]
pub struct Opened {
    /// Its index, which carries its proof.
    pub index: Arc<LayerIndex>,
    /// Where it came from.
    pub origin: Origin,
    /// The origins tried before, without success.
    pub passed_over: Vec<PassedOver>,
}

/// An origin that could not open the layer.
#[derive(Debug)]
pub struct PassedOver {
    /// The origin.
    pub origin: Origin,
    /// Why it failed.
    pub why: NotOpened,
}

/// Why a layer cannot be opened by an origin.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// The store has no index of it that will do.
    #[error(transparent)]
    Stored(#[from] NotStored),
    /// The layer brings no table of contents of this format.
    #[error("the manifest names no table of contents")]
    None,
    /// The manifest names one that cannot be.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The table cannot be fetched.
    #[error("the table of contents cannot be fetched")]
    Source(#[from] SourceError),
    /// The source sends all of the blob whatever is asked for.
    #[error("the source sends whole layers only")]
    NoRanges,
    /// The table cannot be used.
    #[error(transparent)]
    Toc(#[from] TocError),
    /// No index can be made of it.
    #[error("no index can be made of the table of contents")]
    NotWritten(#[source] WriteError),
    /// The index that was made of it cannot be used.
    #[error("the index that was made of the table of contents cannot be used")]
    Unusable(#[source] IndexError),
    /// No zTOC of SOCI can be used.
    #[error(transparent)]
    Soci(#[from] SociError),
    /// No pushed index of it can be used.
    #[error(transparent)]
    Pushed(#[from] PushedError),
    /// The process is ending.
    #[error("the process is ending")]
    Ended,
}

impl NotOpened {
    /// Whether there is nothing of this origin.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::None | Self::Stored(NotStored::Absent | NotStored::OtherOrigin { .. }) => true,
            Self::Pushed(PushedError::None { unusable, .. }) => unusable.is_empty(),
            Self::Soci(SociError::NoZtoc) => true,
            Self::Soci(SociError::Index(why)) => {
                matches!(&**why, NoIndex::None { unusable, .. } if unusable.is_empty())
            }
            _ => false,
        }
    }

    /// Whether the place of the index cannot be asked, which is said of the image, and not of each layer.
    pub fn is_of_place(&self) -> bool {
        match self {
            Self::Pushed(PushedError::NotListed { .. }) => true,
            Self::Soci(SociError::Index(why)) => matches!(**why, NoIndex::NotListed { .. }),
            _ => false,
        }
    }

    /// Whether a line of the log has said it of the artifact or its place, for all layers.
    pub(super) fn was_told(&self) -> bool {
        use PushedError::{None, NotListed, Refused};
        matches!(
            self,
            Self::Pushed(None { .. } | Refused(_) | NotListed { .. })
                | Self::Soci(SociError::Index(_) | SociError::Away(_))
        )
    }
}

/// Who vouches for a table of contents: the author of the manifest, which has its digest.
pub(super) fn voucher(toc: &Toc) -> String {
    format!("annotation {}", toc.digest())
}

/// Who vouches for zTOCs: the author of the manifest, which has the digest of the `index` that names them.
pub(super) fn bound(index: &Digest) -> String {
    format!("bound {index}")
}

/// Whether what vouches for an index vouches for it as that of this very layer. The same blob may be in two images, of
/// which only one's manifest names the table that the index was made of.
fn is_vouched_for(layer: &LayerRef, proof: &Proof) -> bool {
    match proof {
        Proof::Vouched { format, by, .. } if format.is_in_layer() => {
            matches!(Toc::of(&layer.blob, *format), Ok(Some(toc)) if voucher(&toc) == **by)
        }
        Proof::Vouched { format: Format::Soci, by, .. } => {
            layer.soci.as_ref().is_some_and(|index| bound(index) == **by)
        }
        Proof::Vouched { .. } | Proof::Built | Proof::Unproven => true,
    }
}

/// Why the store has no usable index of a layer.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// There is none.
    #[error("there is no index in the cache")]
    Absent,
    /// It belongs to a layer with the same blob and another diff_id.
    #[error("the index in the cache is of diff_id {proven}")]
    OtherLayer {
        /// The diff_id of that layer.
        proven: Digest,
    },
    /// It is of a blob of another size than the manifest says.
    #[error("the index in the cache is of a blob of {known} bytes")]
    OtherSize {
        /// The size in the index.
        known: u64,
    },
    /// Its origin is not among those allowed.
    #[error("the proof of the index in the cache is not accepted: {proof:?}")]
    OtherOrigin {
        /// The proof in the index.
        proof: Proof,
    },
    /// It is damaged, or of another version of peelfs.
    #[error("the index in the cache cannot be used")]
    Unusable(#[source] IndexError),
}

/// Opens a layer by its index in the store, if the index comes from one of `origins`.
///
/// Pages are checked on first access; a page that is found damaged later is read from a rebuilt index
/// ([`LayerIndex::mend`]).
///
/// # Errors
/// [`NotStored`]; a damaged index is removed.
pub fn open_stored(layer: &LayerRef, origins: &[Origin], store: &Store) -> Result<Opened, NotStored> {
    let mut passed_over = NotStored::Absent;
    for name in layer.index_name().alternatives() {
        match open_named(name, layer, origins, store) {
            Err(NotStored::Absent) => {}
            // Of the index that the layer usually has, the reason says more.
            Err(why) if matches!(passed_over, NotStored::Absent) => passed_over = why,
            Err(_) => {}
            opened => return opened,
        }
    }
    Err(passed_over)
}

fn open_named(name: IndexName<'_>, layer: &LayerRef, origins: &[Origin], store: &Store) -> Result<Opened, NotStored> {
    let blob = &layer.blob.digest;
    let file = store.index(name).ok_or(NotStored::Absent)?;
    let dropper = store.index_dropper(name, &file);
    let index = match LayerIndex::open(file) {
        Ok(index) => index,
        Err(error) => {
            if error.is_of_another_version() {
                tracing::debug!(layer = %blob, %error, "the layer will be read again");
            } else {
                tracing::warn!(layer = %blob, %error, "the cached layer index is damaged; the layer will be read again");
                store.drop_index(name);
            }
            return Err(NotStored::Unusable(error));
        }
    };
    if !layer.is(&index) {
        let indexed = index.layer();
        if indexed.blob == *blob && indexed.blob_size != layer.blob.size {
            // Which of the two is right is seen by the bytes.
            let (size, known) = (layer.blob.size, indexed.blob_size);
            tracing::warn!(layer = %blob, size, known, "the manifest says another size of a layer than its cached index");
            return Err(NotStored::OtherSize { known });
        }
        let proven = indexed.diff_id.clone();
        tracing::warn!(layer = %blob, diff_id = %layer.content(), %proven, "the cached layer index proves another diff_id");
        return Err(NotStored::OtherLayer { proven });
    }
    match origin_of(layer, &index).filter(|origin| origins.contains(origin)) {
        Some(origin) => Ok(Opened { index: Arc::new(index.on_damage(dropper)), origin, passed_over: Vec::new() }),
        None => Err(NotStored::OtherOrigin { proof: index.proof().clone() }),
    }
}

/// Whether an open index of `layer` comes from one of `origins`.
pub(super) fn is_from(layer: &LayerRef, index: &LayerIndex, origins: &[Origin]) -> bool {
    origin_of(layer, index).is_some_and(|origin| origins.contains(&origin))
}

fn origin_of(layer: &LayerRef, index: &LayerIndex) -> Option<Origin> {
    Origin::of_stored(index.proof()).filter(|_| is_vouched_for(layer, index.proof()))
}
