//! Queries over a whole image, for writers of other formats.

use std::sync::Arc;

use super::fs::{ImageFs, Now, damaged, not_now};
use crate::content::LayerReader;
use crate::layer::{DataExtent, Kind};
use crate::offsets::FileOffset;
use crate::overlay::{LayerNo, NodeId};

impl ImageFs {
    /// The number of layers.
    pub fn layer_count(&self) -> u16 {
        self.overlay.layer_count()
    }

    /// Bytes of index pages in memory.
    pub fn resident_bytes(&self) -> usize {
        self.overlay.resident_bytes()
    }

    /// The reader of a layer, if it is available now.
    pub fn layer(&self, number: LayerNo) -> Option<Arc<LayerReader>> {
        self.known_content(number)
    }

    /// Calls `each` for the data runs of a file, in order; returns their layer.
    ///
    /// # Errors
    /// [`NotNow`](super::NotNow)
    pub fn runs(&self, node: NodeId, mut each: impl FnMut(DataExtent)) -> Now<LayerNo> {
        let (number, id) = self.carrier(node, Kind::File)?;
        let index = self.overlay.index(number).map_err(not_now)?;
        let unreadable = |cause| damaged(number, cause);
        let entry = index.entry(id).map_err(unreadable)?;
        match entry.data() {
            Some(decoded) if entry.size() > 0 => each(DataExtent { file: FileOffset(0), decoded, len: entry.size() }),
            Some(_) => {}
            None => {
                let (_, runs) = index.runs(id).map_err(unreadable)?;
                for run in runs {
                    each(run.map_err(unreadable)?);
                }
            }
        }
        Ok(number)
    }
}
