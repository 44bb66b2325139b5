//! An additional image store: images in the on-disk form of podman, buildah and CRI-O (containers/storage, driver
//! `overlay`), without pulling them.
//!
//! ```text
//! overlay-images/images.json, images.lock          which images there are
//! overlay-images/IMAGE/{manifest, =BASE64, …}      their documents
//! overlay-layers/layers.json, layers.lock          which layers there are
//! overlay-layers/LAYER.tar-split.gz                how the layer's tar is made of its files again
//! overlay/LAYER/{diff/, link, lower}               a layer: its files, its short name, those of the layers below
//! overlay/l/LINK -> ../LAYER/diff                  short names
//! ```
//!
//! Engines reread everything when the content of a lock file changes, so images may be added and removed while they
//! run. A missing store or lock file makes every command of an engine fail; so the directory below the mount is an
//! empty store ([`empty`]).
//!
//! Images keep their identity: the id is the digest of the configuration, the manifest is the registry's, and layers
//! have the ids of containers/image. So an engine that pulls the image finds that it has it.

mod documents;
pub mod empty;
mod ids;
mod nodes;
mod numbers;
mod tar_split;
mod tree;

pub use documents::{Stored, layer_ids};
pub use ids::IdMap;
pub use numbers::{Keep, Remembered};
pub use tar_split::MakeFile;
pub use tree::{Image, StoreTree};
