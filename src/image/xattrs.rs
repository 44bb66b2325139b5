//! Extended attributes of an image.
//!
//! Those of lower directories control overlayfs: opaque directories, redirects. Any mount may become a lower directory, and an
//! image must not control the overlay on it, so such attributes are left out. They are not escaped
//! (`trusted.overlay.overlay.*`, which overlayfs shows without the second `overlay.` since Linux 6.7): an escaped name is right
//! below one kind of overlay, and wrong for other readers. containerd does not set `trusted.*` of an image either.

use std::collections::BTreeSet;

use super::fs::{ImageFs, NotNow, Now, damaged, not_now};
use crate::overlay::{LayerNo, NodeId};

impl ImageFs {
    /// A node's extended attributes, sorted by name.
    ///
    /// # Errors
    /// [`NotNow`](super::NotNow)
    pub fn xattrs(&self, node: NodeId) -> Now<Vec<(Vec<u8>, Vec<u8>)>> {
        let Some((number, id)) = self.overlay.described_by(node).map_err(not_now)? else { return Ok(Vec::new()) };
        let index = self.overlay.index(number).map_err(not_now)?;
        let unreadable = |cause| damaged(number, cause);
        if !index.entry(id).map_err(unreadable)?.has_xattrs() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for name in index.xattr_names(id).map_err(unreadable)?.into_iter().filter(|name| !steers_overlayfs(name)) {
            if let Some(value) = index.xattr(id, &name).map_err(unreadable)? {
                all.push((name, value));
            }
        }
        Ok(all)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Now<Option<Vec<u8>>> {
        if steers_overlayfs(name) {
            return Ok(None);
        }
        let Some((number, entry)) = self.overlay.described_by(node).map_err(not_now)? else { return Ok(None) };
        let index = self.overlay.index(number).map_err(not_now)?;
        index.xattr(entry, name).map_err(|cause| damaged(number, cause))
    }

    /// The names of a node's extended attributes.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn xattr_names(&self, node: NodeId) -> Now<Vec<Vec<u8>>> {
        let Some((number, entry)) = self.overlay.described_by(node).map_err(not_now)? else { return Ok(Vec::new()) };
        let index = self.overlay.index(number).map_err(not_now)?;
        let mut names = index.xattr_names(entry).map_err(|cause| damaged(number, cause))?;
        names.retain(|name| !steers_overlayfs(name));
        Ok(names)
    }

    /// The names of all extended attributes in any layer; `None` if there are too many to scan. Needs all layers.
    ///
    /// # Errors
    /// [`NotNow`]
    pub fn all_xattr_names(&self) -> Now<Option<BTreeSet<Vec<u8>>>> {
        self.xattr_names_in((0..self.overlay.layer_count()).map(LayerNo))
    }

    /// As [`ImageFs::all_xattr_names`], for some layers.
    pub(super) fn xattr_names_in(
        &self,
        layers: impl Iterator<Item = LayerNo> + Clone,
    ) -> Now<Option<BTreeSet<Vec<u8>>>> {
        if let Some(unknown) = layers.clone().find(|number| !self.overlay.knows(*number)) {
            return Err(NotNow::Needs(unknown));
        }
        let (mut all, mut left) = (BTreeSet::new(), XATTRS_LOOKED_AT);
        for number in layers {
            let index = self.overlay.index(number).map_err(not_now)?;
            match index.all_xattr_names(&mut left).map_err(|cause| damaged(number, cause))? {
                Some(names) => all.extend(names.into_iter().filter(|name| !steers_overlayfs(name))),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }
}

/// Whether an attribute controls overlayfs.
pub(super) fn steers_overlayfs(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Limit for extended attributes scanned for their names, in bytes; most images have fewer than a hundred.
const XATTRS_LOOKED_AT: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_overlayfs_are_known_by_their_prefix() {
        for (name, steers) in [
            (&b"trusted.overlay.opaque"[..], true),
            (b"user.overlay.redirect", true),
            (b"user.overlayfs", false),
            (b"security.capability", false),
        ] {
            assert_eq!(steers_overlayfs(name), steers, "{}", String::from_utf8_lossy(name));
        }
    }
}
