//! An additional image store: images as podman, buildah and CRI-O have them on disk (containers/storage, driver `overlay`),
//! without any of them being pulled.
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
//! Engines read all of it anew whenever the text of a lock file is another one, so images come and go while they run. A store
//! that is missing, or of which a lock file is, makes every command of an engine fail; so the directory below the mount is a
//! store without images ([`empty`]).
//!
//! Images are what they are elsewhere: the id is the digest of the configuration, the manifest is the one of the registry, and
//! layers have the ids that containers/image gives them. So an engine that pulls one finds that it has it.

mod documents;
pub mod empty;
mod ids;
mod nodes;
mod tar_split;
mod tree;

pub use documents::{Stored, layer_ids};
pub use ids::IdMap;
pub use tar_split::MakeFile;
pub use tree::{Image, StoreTree};
