//! What a mount has fetched of its image, why, and which files its readers waited for.

use std::time::Duration;

use super::fs::ImageFs;
use super::layer_report::LayerReport;
use crate::content::{ByReason, FileActivity};
use crate::overlay::{LayerNo, NodeId};

/// The activity of a mount.
#[derive(Clone, Debug, Default)]
pub struct ImageActivity {
    /// Each layer with a blob of its own, base first.
    pub layers: Vec<LayerReport>,
    /// The files that were fetched or waited for last, in no order.
    pub files: Vec<FileReport>,
}

/// The activity of one file.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// The layer that has it.
    pub layer: LayerNo,
    /// Its path in the layer, without a leading slash.
    pub path: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
    /// Blob bytes fetched for it.
    pub bytes: ByReason,
    /// Reads that had to wait.
    pub waits: u64,
    /// How long, all together.
    pub waited: Duration,
    /// The longest of them.
    pub longest: Duration,
    /// How long ago something of it was last fetched or waited for.
    pub idle: Duration,
}

impl ImageFs {
    /// The activity of the mount so far. Reads of the index may take some milliseconds.
    pub fn activity(&self) -> ImageActivity {
        let mut activity = ImageActivity::default();
        for slot in self.layers.activity() {
            activity.files.extend(slot.files.into_iter().filter_map(|(entry, file)| {
                let index = slot.reader.as_ref()?.index();
                // A layer that is one file has its name from the manifest.
                let named = slot.name.as_ref().map(|name| Ok(name.to_vec()));
                let path = named.unwrap_or_else(|| index.path(entry)).ok()?;
                Some(report(slot.report.number, path, index.entry(entry).ok()?.size(), &file))
            }));
            activity.layers.push(slot.report);
        }
        activity
    }

    /// The path of a node in the layer that carries it, from the root, without a leading slash; `None` if it is not
    /// known without waiting.
    pub fn path_of(&self, node: NodeId) -> Option<Vec<u8>> {
        if node == NodeId::ROOT {
            return Some(Vec::new());
        }
        let (number, entry) = self.overlay.parse(node).ok()?;
        self.overlay.index(number).ok()?.path(entry).ok()
    }
}

fn report(layer: LayerNo, path: Vec<u8>, size: u64, file: &FileActivity) -> FileReport {
    let FileActivity { bytes, waits, waited, longest, last } = *file;
    FileReport { layer, path, size, bytes, waits, waited, longest, idle: last.elapsed() }
}
