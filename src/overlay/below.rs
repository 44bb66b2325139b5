//! The layers below a layer that is being prepared: lookups in them, and targets of paths.
//!
//! Directories of this view are not cached beyond it: they have the same numbers as those of the merged tree, but other
//! parts. Symlink targets are cached, so that a chain is followed once, however many paths run through it.

use std::collections::HashMap;
use std::sync::Arc;

use super::walk::{MAX_LINKS, extend, names};
use super::{Dir, LayerNo, NodeId, Overlay, Unknown, damaged, steps};
use crate::layer::Kind;

/// A view of the layers below one.
pub(super) struct Below<'a> {
    overlay: &'a Overlay,
    root: Arc<Dir>,
    /// The directory that a symlink leads to and the number of symlinks on the way, by the symlink's directory and
    /// node.
    followed: HashMap<(NodeId, NodeId), (Arc<Dir>, u32)>,
    /// The directories of paths, as far as resolved.
    reached: HashMap<Vec<u8>, Option<Arc<Dir>>>,
}

/// Result of a name lookup.
pub(super) enum Child {
    Missing,
    Directory(Arc<Dir>),
    Other { node: NodeId, kind: Kind },
}

/// Target of a path.
pub(super) enum Target {
    Directory(Arc<Dir>),
    /// A path without symlinks and dots, of which the last components do not exist.
    Missing(Vec<u8>),
    /// Something that is not a directory, or a loop of symlinks.
    Invalid,
}

/// The next step of a walk.
enum Next {
    Name(Vec<u8>),
    /// The symlink has been followed to its end.
    Followed {
        link: (NodeId, NodeId),
        links_before: u32,
    },
}

impl<'a> Below<'a> {
    /// The view below `layer`.
    pub(super) fn new(overlay: &'a Overlay, layer: LayerNo) -> Self {
        let root = Arc::new(Dir::root(layer.0));
        Self { overlay, root, followed: HashMap::new(), reached: HashMap::new() }
    }

    pub(super) fn root(&self) -> &Arc<Dir> {
        &self.root
    }

    /// Looks up a name in `dir`.
    pub(super) fn child(&self, dir: &Arc<Dir>, name: &[u8]) -> Result<Child, Unknown> {
        let Some(node) = self.overlay.find(dir, name)? else { return Ok(Child::Missing) };
        let (layer, id) = self.overlay.parse(node)?;
        Ok(match self.overlay.index(layer)?.entry(id).map_err(damaged(layer))?.kind() {
            Kind::Directory => Child::Directory(Arc::new(Dir::child(dir, name, layer, id))),
            kind => Child::Other { node, kind },
        })
    }

    /// The target of the symlink `link` in `dir`.
    pub(super) fn follow(&mut self, dir: &Arc<Dir>, link: NodeId) -> Result<Target, Unknown> {
        self.walk(dir, vec![], Some(link))
    }

    /// The directory at a path from the root.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Option<Arc<Dir>>, Unknown> {
        if let Some(known) = self.reached.get(path) {
            return Ok(known.clone());
        }
        let rest = names(path).map(|name| Next::Name(name.to_vec())).collect::<Vec<_>>();
        let led = match self.walk(&Arc::clone(&self.root), rest.into_iter().rev().collect(), None)? {
            Target::Directory(dir) => Some(dir),
            Target::Missing(_) | Target::Invalid => None,
        };
        if self.reached.len() >= REACHED {
            self.reached.clear();
        }
        self.reached.insert(path.to_vec(), led.clone());
        Ok(led)
    }

    /// Walks from `from`: through `link` first, if given, then through `rest`, last element first.
    ///
    /// A `..` goes back over a missing name, as in containerd.
    fn walk(&mut self, from: &Arc<Dir>, mut rest: Vec<Next>, mut link: Option<NodeId>) -> Result<Target, Unknown> {
        let mut here = Arc::clone(from);
        // Missing names below `here`.
        let mut absent: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        loop {
            if let Some(node) = link.take() {
                let key = (here.id(), node);
                match self.followed.get(&key) {
                    Some((dir, more)) => {
                        links += more;
                        here = Arc::clone(dir);
                    }
                    None => {
                        rest.push(Next::Followed { link: key, links_before: links });
                        links += 1;
                        let target = self.target(node)?;
                        if target.starts_with(b"/") {
                            here = Arc::clone(&self.root);
                        }
                        let at = rest.len();
                        rest.extend(names(&target).map(|name| Next::Name(name.to_vec())));
                        rest[at..].reverse();
                    }
                }
                if links > MAX_LINKS {
                    return Ok(Target::Invalid);
                }
            }
            let name = match rest.pop() {
                None if absent.is_empty() => return Ok(Target::Directory(here)),
                None => {
                    let mut path = here.path();
                    absent.iter().for_each(|name| extend(&mut path, name));
                    return Ok(Target::Missing(path));
                }
                Some(Next::Name(name)) => name,
                Some(Next::Followed { link, links_before }) => {
                    if absent.is_empty() {
                        self.followed.insert(link, (Arc::clone(&here), links - links_before));
                    }
                    continue;
                }
            };
            steps::take(1)?;
            if name == b".." {
                if absent.pop().is_none() {
                    here = here.parent().map_or_else(|| Arc::clone(&self.root), Arc::clone);
                }
                continue;
            }
            if !absent.is_empty() {
                absent.push(name);
                continue;
            }
            match self.child(&here, &name)? {
                Child::Directory(dir) => here = dir,
                Child::Other { node, kind: Kind::Symlink } => link = Some(node),
                Child::Other { .. } => return Ok(Target::Invalid),
                Child::Missing => absent.push(name),
            }
        }
    }

    fn target(&self, link: NodeId) -> Result<Vec<u8>, Unknown> {
        let (layer, id) = self.overlay.parse(link)?;
        let index = self.overlay.index(layer)?;
        Ok(index.symlink_target(id).map_err(damaged(layer))?.unwrap_or_default().to_vec())
    }
}

/// Limit for cached paths.
const REACHED: usize = 1 << 16;
