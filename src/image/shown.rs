//! What is shown of an image: all of it, or one layer.

use std::sync::Arc;

use super::fs::{FsError, ImageFs};
use super::layer_fs::LayerFs;
use super::tree::Tree;

/// What is shown.
#[derive(Clone)]
pub enum Shown {
    /// The merged tree of all layers.
    Image(Arc<ImageFs>),
    /// One layer alone.
    Layer(Arc<LayerFs>),
}

impl Shown {
    /// The tree that is shown.
    pub fn tree(&self) -> Arc<dyn Tree> {
        match self {
            Self::Image(fs) => fs.clone(),
            Self::Layer(fs) => fs.clone(),
        }
    }

    /// The image that reads the layers.
    pub fn image(&self) -> &Arc<ImageFs> {
        match self {
            Self::Image(fs) => fs,
            Self::Layer(fs) => fs.image(),
        }
    }

    /// Waits until every layer that is shown is verified.
    ///
    /// # Errors
    /// [`FsError`] of the first layer that cannot be shown.
    pub async fn all_known(&self) -> Result<(), FsError> {
        match self {
            Self::Image(fs) => fs.all_known().await,
            Self::Layer(fs) => fs.all_known().await,
        }
    }
}
