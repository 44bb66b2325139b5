//! The uppermost layer alone, in the form of a lower directory for the kernel's overlayfs.
//!
//! Stacked on the lower directories of the layers below, it must yield the merged tree. So it represents the layer
//! *relative to the layers below*, which needs more than the layer's own entries, and then those layers:
//!
//! - A whiteout is a character device 0:0. It is present only if the layers below have the name: overlayfs ignores
//!   whiteouts in directories that it merges, and lists any other one as a name that does not exist.
//! - An opaque directory carries an attribute, which overlayfs ignores on a root. So an opaque root has a whiteout for
//!   every name of the layers below, and the layer's directories in it are opaque.
//! - An implied directory has the metadata of the layers below, since overlayfs shows that of the uppermost directory.
//!   It is where their symlinks lead, as in the merged tree.
//! - A directory that only contains whiteouts is present if the layers below have that directory.
//! - A hard link to a file of a lower layer is a copy of that file: overlayfs has no links across layers.
//!
//! Its nodes are `(uppermost layer, entry)`, and `(lower layer, entry)` for whiteouts of an opaque root.

use std::sync::Arc;

use super::dir::Dir;
use super::list::Listed;
use super::prepare::Prepared;
use super::{Layer, LayerNo, NodeId, Overlay, Unknown, damaged, steps};
use crate::layer::{Entry, EntryId, Flags, Kind, is_hidden};

/// The kind of a node in the uppermost layer's lower directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LowerNode {
    /// The same as this node of the merged tree.
    Like(NodeId),
    /// A whiteout.
    Whiteout,
}

impl Overlay {
    /// The uppermost layer.
    pub fn uppermost(&self) -> LayerNo {
        LayerNo(self.layer_count().saturating_sub(1))
    }

    /// The node of the uppermost layer at `name` in the directory `dir`.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn lower_child(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, Unknown> {
        if is_hidden(name) {
            return Ok(None);
        }
        let (top, own, parent) = (self.uppermost(), self.own_dir(dir)?, self.dir(dir)?);
        let layer = self.layer(top)?;
        let held = self.lower_child_of_layer(&layer, own, &parent, name)?;
        if held.is_none() && dir == NodeId::ROOT && self.is_opaque_root(&layer)? {
            return self.find(&self.root_below(), name);
        }
        Ok(held)
    }

    /// Calls `each` for the uppermost layer's names in the directory `dir`, from position `from` (0 is the first),
    /// until it returns `false`. Positions never change.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn list_lower(
        &self,
        dir: NodeId,
        from: u64,
        each: &mut dyn FnMut(Listed<'_>) -> Result<bool, Unknown>,
    ) -> Result<(), Unknown> {
        let (top, own, parent) = (self.uppermost(), self.own_dir(dir)?, self.dir(dir)?);
        let layer = Layer::Whole(self.whole(top)?);
        let count = layer.index.child_count(own).map_err(damaged(top))?;
        for at in from.min(count.into()) as u32..count {
            steps::take(1)?;
            let Some(id) = layer.index.child_at(own, at).map_err(damaged(top))? else { break };
            let name = layer.index.name(id).map_err(damaged(top))?;
            if is_hidden(name) {
                continue;
            }
            let Some(node) = self.lower_child_of_entry(&layer, &parent, name, id)? else { continue };
            let (kind, next) = (self.lower_kind(node)?, u64::from(at) + 1);
            if !each(Listed { name, node, kind, next })? {
                return Ok(());
            }
        }
        if dir != NodeId::ROOT || !self.is_opaque_root(&layer)? {
            return Ok(());
        }
        let count = u64::from(count);
        self.list(&self.root_below(), from.saturating_sub(count), &mut |listed| {
            if self.lower_child_of_layer(&layer, own, &parent, listed.name)?.is_some() {
                return Ok(true);
            }
            each(Listed { kind: Kind::Whiteout, next: count + listed.next, ..listed })
        })
    }

    /// The kind of a node returned by [`Overlay::lower_child`].
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn lower_node(&self, node: NodeId) -> Result<LowerNode, Unknown> {
        if node == NodeId::ROOT {
            return Ok(LowerNode::Like(node));
        }
        let (number, id) = self.parse(node)?;
        if number < self.uppermost() {
            return Ok(LowerNode::Whiteout);
        }
        let layer = self.layer(number)?;
        let entry = layer.index.entry(id).map_err(damaged(number))?;
        Ok(match entry.kind() {
            Kind::LowerLink => {
                layer.lower_links.get(&entry.inode()).map_or(LowerNode::Whiteout, |node| LowerNode::Like(*node))
            }
            _ if is_whiteout(&entry) => LowerNode::Whiteout,
            _ => LowerNode::Like(node),
        })
    }

    /// Whether the uppermost layer has `node`; its number may be stale.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn has_lower(&self, node: NodeId) -> Result<bool, Unknown> {
        if node == NodeId::ROOT {
            return Ok(true);
        }
        let (number, id) = self.parse(node)?;
        let index = self.index(number)?;
        let entry = index.entry(id).map_err(damaged(number))?;
        if number == self.uppermost() && self.layer(number)?.first_link(&entry) == Some(id) {
            return Ok(self.lower_link_count(node)? > 0);
        }
        if number == self.uppermost() && !is_whiteout(&entry) && entry.kind() != Kind::LowerLink {
            return self.shows(node);
        }
        if entry.is(Flags::DETACHED) {
            return Ok(false);
        }
        let parent = match entry.parent() {
            EntryId::ROOT => NodeId::ROOT,
            parent if number == self.uppermost() => NodeId::new(number, parent),
            _ => return Ok(false),
        };
        match self.lower_child(parent, index.name(id).map_err(damaged(number))?) {
            Ok(held) => Ok(held == Some(node)),
            Err(Unknown::NoSuchNode(_)) => Ok(false),
            Err(unknown) => Err(unknown),
        }
    }

    /// The number of names in the uppermost layer of a node that is not a directory.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn lower_link_count(&self, node: NodeId) -> Result<u32, Unknown> {
        match self.lower_node(node)? {
            LowerNode::Whiteout => Ok(1),
            LowerNode::Like(like) => {
                let (number, id) = self.parse(node)?;
                let layer = self.layer(number)?;
                let own = [id];
                self.names_within(number, layer.links_to.get(&like).map_or(&own, Vec::as_slice), like)
            }
        }
    }

    /// Whether a directory of the uppermost layer hides everything that the layers below have in it.
    ///
    /// # Errors
    /// [`Unknown`]; needs the complete layer, since the marker may be its last entry.
    pub fn is_lower_opaque(&self, node: NodeId) -> Result<bool, Unknown> {
        let top = self.uppermost();
        if let LowerNode::Whiteout = self.lower_node(node)? {
            return Ok(false);
        }
        let layer = Layer::Whole(self.whole(top)?);
        let entry = layer.index.entry(self.own_dir(node)?).map_err(damaged(top))?;
        let in_root = node != NodeId::ROOT && entry.parent() == EntryId::ROOT;
        Ok(entry.kind() == Kind::Directory && (entry.is(Flags::OPAQUE) || (in_root && self.is_opaque_root(&layer)?)))
    }

    /// The node of the uppermost layer's own entry at `name`; `own` is the entry of the directory.
    fn lower_child_of_layer(
        &self,
        layer: &Layer<'_>,
        own: EntryId,
        parent: &Arc<Dir>,
        name: &[u8],
    ) -> Result<Option<NodeId>, Unknown> {
        match layer.index.child(own, name).map_err(damaged(self.uppermost()))? {
            Some(id) => self.lower_child_of_entry(layer, parent, name, id),
            None if layer.partial => Err(Unknown::Needs(self.uppermost())),
            None => Ok(None),
        }
    }

    /// The node of an entry of the uppermost layer that is named `name` in `parent`.
    fn lower_child_of_entry(
        &self,
        layer: &Layer<'_>,
        parent: &Arc<Dir>,
        name: &[u8],
        id: EntryId,
    ) -> Result<Option<NodeId>, Unknown> {
        let top = self.uppermost();
        let entry = layer.index.entry(id).map_err(damaged(top))?;
        let own = NodeId::new(top, id);
        match entry.kind() {
            _ if is_whiteout(&entry) => {}
            Kind::Directory if entry.is(Flags::WHITEOUT_PATH) => {
                return Ok(self.find(parent, name)?.filter(|node| *node == own));
            }
            Kind::Directory => return Ok(Some(own)),
            Kind::LowerLink => {
                if let Some(first) = layer.first_link(&entry) {
                    return Ok(Some(NodeId::new(top, first)));
                }
            }
            _ => return Ok(Some(NodeId::new(top, entry.inode()))),
        }
        // The layer's own entry for this name may still follow.
        if layer.partial {
            return Err(Unknown::Needs(top));
        }
        Ok(self.find_from(parent, 1, name)?.map(|_| own))
    }

    fn lower_kind(&self, node: NodeId) -> Result<Kind, Unknown> {
        match self.lower_node(node)? {
            LowerNode::Whiteout => Ok(Kind::Whiteout),
            LowerNode::Like(NodeId::ROOT) => Ok(Kind::Directory),
            LowerNode::Like(like) => {
                let (number, id) = self.parse(like)?;
                Ok(self.layer(number)?.index.entry(id).map_err(damaged(number))?.kind())
            }
        }
    }

    /// The entry of a directory of the uppermost layer.
    fn own_dir(&self, dir: NodeId) -> Result<EntryId, Unknown> {
        match self.parse(dir) {
            _ if dir == NodeId::ROOT => Ok(EntryId::ROOT),
            Ok((number, entry)) if number == self.uppermost() => Ok(entry),
            Ok(_) => Err(Unknown::NoSuchNode(dir.get())),
            Err(unknown) => Err(unknown),
        }
    }

    fn is_opaque_root(&self, layer: &Layer<'_>) -> Result<bool, Unknown> {
        Ok(layer.index.entry(EntryId::ROOT).map_err(damaged(self.uppermost()))?.is(Flags::OPAQUE))
    }

    /// The root of the layers below the uppermost one, which an opaque root hides.
    fn root_below(&self) -> Arc<Dir> {
        Arc::new(Dir::root(self.uppermost().0))
    }
}

impl Prepared {
    /// The first of this layer's links to the lower file that `entry` links to; all of them share its node.
    fn first_link(&self, entry: &Entry) -> Option<EntryId> {
        let lower = self.lower_links.get(&entry.inode()).filter(|_| entry.kind() == Kind::LowerLink)?;
        self.links_to.get(lower)?.first().copied()
    }
}

fn is_whiteout(entry: &Entry) -> bool {
    entry.kind() == Kind::Whiteout
        || (entry.kind() == Kind::Directory && entry.is(Flags::WHITEOUT_PATH | Flags::HIDES_LOWER))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::KnownLayer;
    use super::super::testing::{index, over, settable};
    use super::*;
    use peelfs_loopback::tar::Entry;

    fn names(overlay: &Overlay, dir: NodeId) -> Vec<(String, Kind)> {
        let mut names = Vec::new();
        let mut each = |listed: Listed<'_>| {
            assert_eq!(overlay.lower_child(dir, listed.name).unwrap(), Some(listed.node));
            names.push((String::from_utf8(listed.name.to_vec()).unwrap(), listed.kind));
            Ok(true)
        };
        overlay.list_lower(dir, 0, &mut each).unwrap();
        names
    }

    fn held(overlay: &Overlay, path: &str) -> NodeId {
        path.split('/').fold(NodeId::ROOT, |dir, name| overlay.lower_child(dir, name.as_bytes()).unwrap().unwrap())
    }

    fn named(names: &[(&str, Kind)]) -> Vec<(String, Kind)> {
        names.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
    }

    #[test]
    fn whiteouts_stand_only_where_they_hide_something() {
        let lower = [Entry::dir("d"), Entry::file("d/a", "1"), Entry::file("b", "1")];
        let upper = [Entry::whiteout("b"), Entry::whiteout("c"), Entry::whiteout("d/a"), Entry::whiteout("e/x")];
        let (overlay, _) = over(&[index(lower), index(upper)]);
        assert_eq!(names(&overlay, NodeId::ROOT), named(&[("b", Kind::Whiteout), ("d", Kind::Directory)]));
        assert_eq!(names(&overlay, held(&overlay, "d")), named(&[("a", Kind::Whiteout)]));
        assert_eq!(overlay.lower_child(NodeId::ROOT, b"e").unwrap(), None, "no layer has it");
    }

    #[test]
    fn an_opaque_root_is_whiteouts_and_opaque_directories() {
        let lower = [Entry::dir("d"), Entry::file("d/a", "1"), Entry::file("b", "1"), Entry::file("c", "1")];
        let upper =
            [Entry::opaque(""), Entry::dir("d"), Entry::dir("d/e"), Entry::file("c", "2"), Entry::whiteout("b")];
        let (overlay, _) = over(&[index(lower), index(upper)]);
        let wanted = [("c", Kind::File), ("d", Kind::Directory), ("b", Kind::Whiteout)];
        assert_eq!(names(&overlay, NodeId::ROOT), named(&wanted));
        assert!(overlay.is_lower_opaque(held(&overlay, "d")).unwrap());
        assert!(!overlay.is_lower_opaque(held(&overlay, "d/e")).unwrap());
        assert_eq!(overlay.lower_node(held(&overlay, "b")).unwrap(), LowerNode::Whiteout);
    }

    #[test]
    fn links_to_one_lower_file_are_one_node() {
        let lower = [Entry::file("a", "1"), Entry::hard_link("b", "a"), Entry::file("gone", "")];
        let upper = [Entry::hard_link("c", "a"), Entry::hard_link("d", "b"), Entry::hard_link("gone", "nowhere")];
        let (overlay, _) = over(&[index(lower), index(upper)]);
        let (c, d) = (held(&overlay, "c"), held(&overlay, "d"));
        assert_eq!(c, d);
        assert_eq!(overlay.lower_link_count(c).unwrap(), 2);
        assert_eq!(overlay.lower_node(c).unwrap(), LowerNode::Like(NodeId::new(LayerNo(0), EntryId(1))));
        assert!(overlay.has_lower(c).unwrap());
        assert_eq!(
            overlay.lower_node(held(&overlay, "gone")).unwrap(),
            LowerNode::Whiteout,
            "its link hides the lower name"
        );
    }

    /// The layer's own entries are shown while the layers below are unknown.
    #[test]
    fn layers_below_are_needed_only_where_they_matter() {
        let (overlay, layers) = settable(2);
        let entries =
            [Entry::dir("."), Entry::dir("d"), Entry::file("d/f", "1"), Entry::whiteout("w"), Entry::opaque("d")];
        layers.set(LayerNo(1), KnownLayer::Whole(index(entries)));
        let d = held(&overlay, "d");
        assert!(overlay.is_lower_opaque(d).unwrap());
        assert_eq!(names(&overlay, d), named(&[("f", Kind::File)]));
        assert_eq!(overlay.lower_child(NodeId::ROOT, b"absent").unwrap(), None);
        assert!(matches!(overlay.lower_child(NodeId::ROOT, b"w"), Err(Unknown::Needs(LayerNo(0)))));
        layers.set(LayerNo(0), KnownLayer::Whole(index([Entry::file("w", "1")])));
        assert_eq!(overlay.lower_node(held(&overlay, "w")).unwrap(), LowerNode::Whiteout);
    }
}
