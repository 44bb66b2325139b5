//! Identity: the metadata by which programs recognise files and images without reading them.
//!
//! Backup tools, git, locate and NFS clients treat a file as unchanged if inode number, size and times are the same.
//! Image builds often use equal times, and another image on the same mount point has its own files at the same
//! positions. So the metadata is derived from digests: whatever may have changed looks changed, whatever cannot have
//! changed looks the same, in every mount and every process.

use std::time::Duration;

use crate::content::LayerRef;
use crate::digest::{Algorithm, Digest};
use crate::layer::{Kind, Timestamp};
use crate::overlay::{NodeAttr, NodeId};

/// The identity of one image's files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Difference between ctime and mtime for the files of each layer, base first.
    layers: Box<[Duration]>,
    /// The same for directories.
    directories: Duration,
    generation: u32,
}

impl Identity {
    /// The identity of an image of these layers, base first.
    pub fn new(layers: &[LayerRef]) -> Self {
        Self::of("", layers.iter().map(LayerRef::content))
    }

    /// The identity of the uppermost one of these layers, shown alone.
    pub fn of_layer(layers: &[LayerRef]) -> Self {
        Self::of("uppermost\n", layers.iter().map(LayerRef::content))
    }

    fn of<'a>(view: &str, diff_ids: impl IntoIterator<Item = &'a Digest>) -> Self {
        let (mut chain, mut layers) = (view.to_owned(), Vec::new());
        for diff_id in diff_ids {
            layers.push(after_mtime(diff_id));
            chain.push_str(&diff_id.to_string());
            chain.push('\n');
        }
        let image = Digest::of(Algorithm::Sha256, chain.as_bytes());
        // The high half; change times use all of it.
        let generation = (number(&image) >> 32) as u32;
        Self { layers: layers.into(), directories: after_mtime(&image), generation }
    }

    /// The inode number of a node: 1 for the root, unique for all others.
    ///
    /// It grows with the entry's position in its layer, so that it fits into 32 bits unless entries times layers exceed
    /// that: programs with 32-bit inode numbers either fail or mix up files. It does not depend on a layer's size,
    /// which is unknown until all of the layer is read.
    pub fn inode(&self, node: NodeId) -> u64 {
        match node.parts() {
            Some((layer, entry)) => u64::from(entry.0) * self.layers.len() as u64 + u64::from(layer.0) + 1,
            None => node.get(),
        }
    }

    /// The ctime of a node: after its mtime by less than a day; the difference depends on the layer's content, or for a
    /// directory, whose names may come from any layer, on that of all layers.
    ///
    /// Later, since programs use the later of the two times; by whole seconds, since git compares no less; and not by
    /// more, since a recent build would then have changed in the future. Two contents have the same second with a
    /// probability of 1 in 65,536.
    pub fn changed(&self, attr: &NodeAttr) -> Timestamp {
        let layer = attr.node.parts().and_then(|(layer, _)| self.layers.get(usize::from(layer.0)));
        let after = match layer {
            Some(after) if attr.kind != Kind::Directory => *after,
            _ => self.directories,
        };
        let nanos = u64::from(attr.mtime_ns) + u64::from(after.subsec_nanos());
        let seconds = after.as_secs() + nanos / NANOS;
        Timestamp { seconds: attr.mtime.saturating_add(seconds.cast_signed()), nanos: (nanos % NANOS) as u32 }
    }

    /// Distinguishes nodes with the same number in two images, for file handles that outlive a mount.
    pub fn generation(&self) -> u32 {
        self.generation
    }
}

fn after_mtime(content: &Digest) -> Duration {
    Duration::from_secs(1) + Duration::from_nanos(number(content) % (CHANGED_WITHIN * NANOS))
}

/// The first 64 bits of a digest.
fn number(digest: &Digest) -> u64 {
    u64::from_str_radix(&digest.hex()[..16], 16).expect("a digest has 64 hexadecimal digits or more")
}

/// In seconds: 18 hours.
const CHANGED_WITHIN: u64 = 1 << 16;
const NANOS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::layer::EntryId;
    use crate::overlay::LayerNo;

    fn digest(content: &str) -> Digest {
        Digest::of(Algorithm::Sha256, content.as_bytes())
    }

    fn attr(node: NodeId, kind: Kind, mtime: (i64, u32)) -> NodeAttr {
        let (mtime, mtime_ns) = mtime;
        let (mode, uid, gid, nlink, device) = (0o644, 0, 0, 1, (0, 0));
        NodeAttr { node, kind, mode, uid, gid, size: 5, blocks: 1, mtime, mtime_ns, nlink, device, settled: true }
    }

    fn file(layer: u16, entry: u32) -> NodeId {
        NodeId::new(LayerNo(layer), EntryId(entry))
    }

    #[test]
    fn inode_numbers_differ_and_are_small() {
        let image = Identity::of("", [&digest("a"), &digest("b"), &digest("c")]);
        assert_eq!(image.inode(NodeId::ROOT), 1);
        let mut seen = HashSet::from([1]);
        for layer in 0..3 {
            // Entry 0 is the layer's root, shown as the image's root.
            for entry in 1..1000 {
                let number = image.inode(file(layer, entry));
                assert!(number <= 3000 && seen.insert(number), "{layer} {entry}: {number}");
            }
        }
        let thousand: Vec<Digest> = (0..1000).map(|layer| digest(&layer.to_string())).collect();
        let deep = Identity::of("", &thousand);
        assert!(deep.inode(file(999, 4_000_000)) <= u64::from(u32::MAX));
        assert!(deep.inode(file(999, u32::MAX)) > u64::from(u32::MAX));
    }

    #[test]
    fn a_file_looks_changed_if_its_layer_is_another() {
        let before = Identity::of("", [&digest("base"), &digest("app 1")]);
        let after = Identity::of("", [&digest("base"), &digest("app 2")]);
        let changed = |layer, kind| {
            let attr = attr(file(layer, 7), kind, (0, 0));
            (before.changed(&attr), after.changed(&attr))
        };
        let (one, two) = changed(0, Kind::File);
        assert_eq!(one, two, "its layer is the same");
        for (layer, kind) in [(1, Kind::File), (1, Kind::Symlink), (0, Kind::Directory), (1, Kind::Directory)] {
            let (one, two) = changed(layer, kind);
            assert!(one.seconds != two.seconds && one.nanos != two.nanos, "{layer} {kind:?}");
        }
        let root = attr(NodeId::ROOT, Kind::Directory, (0, 0));
        assert_ne!(before.changed(&root).seconds, after.changed(&root).seconds);
        assert_ne!(before.generation(), after.generation());
    }

    #[test]
    fn a_layer_alone_looks_changed_from_its_image() {
        let [a, b] = [digest("a"), digest("b")];
        let (image, layer) = (Identity::of("", [&a, &b]), Identity::of("uppermost\n", [&a, &b]));
        assert_ne!(image.generation(), layer.generation());
        let root = attr(NodeId::ROOT, Kind::Directory, (0, 0));
        assert_ne!(image.changed(&root).seconds, layer.changed(&root).seconds);
    }

    #[test]
    fn the_order_of_layers_counts() {
        let [a, b] = [digest("a"), digest("b")];
        assert_ne!(Identity::of("", [&a, &b]).generation(), Identity::of("", [&b, &a]).generation());
        assert_ne!(Identity::of("", [&a]).generation(), Identity::of("", [&a, &a]).generation());
    }

    proptest! {
        #[test]
        fn a_change_is_after_the_mtime_and_within_a_day(content: String, seconds: i64, nanos in 0_u32..1_000_000_000) {
            let image = Identity::of("", [&digest(&content)]);
            let attr = attr(file(0, 1), Kind::File, (seconds, nanos));
            let changed = image.changed(&attr);
            prop_assert!(changed.nanos < 1_000_000_000);
            prop_assert!(changed.seconds > seconds || seconds == i64::MAX);
            prop_assert!(changed.seconds <= seconds.saturating_add(86_400));
        }
    }
}
