//! Paths: from the root to a node, through symlinks, never out of the image.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Dir, NodeId, Overlay, Unknown, damaged};
use crate::layer::Kind;

/// Whether a symlink at the very end of a path is followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Last {
    /// As `stat` does.
    Follow,
    /// As `lstat` does.
    Keep,
}

/// Makes the directory that a walk goes into.
type Enter<'a> = dyn Fn(&Arc<Dir>, &[u8], NodeId) -> Result<Arc<Dir>, Unknown> + 'a;

/// Where a path leads.
#[derive(Debug)]
pub enum Walked {
    /// To a node.
    Found {
        /// The node.
        node: NodeId,
        /// What it is.
        kind: Kind,
        /// The path without symlinks and dots.
        path: Vec<u8>,
    },
    /// Nowhere: the rest of the path does not exist.
    Missing {
        /// The path without symlinks, as far as it exists, and the rest as it was asked for.
        path: Vec<u8>,
    },
    /// Something on the way is not a directory.
    NotADirectory,
    /// More than 255 symlinks on the way.
    Loop,
}

impl Overlay {
    /// Walks `path` from the root.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn walk(&self, path: &[u8], last: Last) -> Result<Walked, Unknown> {
        self.walk_from(&self.root, path, last, &|parent, name, node| self.child_dir(parent, name, node))
    }

    /// Walks `path` in the view over the layers below, whose root is `root`; that view's directories
    /// are not remembered, as they have the same numbers as the merged tree's and other parts.
    pub(super) fn walk_below(&self, root: &Arc<Dir>, path: &[u8], last: Last) -> Result<Walked, Unknown> {
        self.walk_from(root, path, last, &|parent, name, node| {
            let (layer, entry) = self.parse(node)?;
            Ok(Arc::new(Dir::child(parent, name, layer, entry)))
        })
    }

    fn walk_from(&self, root: &Arc<Dir>, path: &[u8], last: Last, enter: &Enter<'_>) -> Result<Walked, Unknown> {
        let mut here = Arc::clone(root);
        let mut rest: VecDeque<Vec<u8>> = names(path).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                here = here.parent().map_or_else(|| Arc::clone(root), Arc::clone);
                continue;
            }
            let Some(node) = self.lookup(&here, &name)? else {
                let mut path = here.path();
                for name in std::iter::once(name).chain(rest) {
                    extend(&mut path, &name);
                }
                return Ok(Walked::Missing { path });
            };
            let (layer, id) = self.parse(node)?;
            let index = self.index(layer)?;
            match index.entry(id).map_err(damaged(layer))?.kind() {
                Kind::Directory => here = enter(&here, &name, node)?,
                Kind::Symlink if !rest.is_empty() || last == Last::Follow => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(Walked::Loop);
                    }
                    let target = index.symlink_target(id).map_err(damaged(layer))?.unwrap_or_default().to_vec();
                    if target.starts_with(b"/") {
                        here = Arc::clone(root);
                    }
                    for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(name.to_vec());
                    }
                }
                kind if rest.is_empty() => {
                    let mut path = here.path();
                    extend(&mut path, &name);
                    return Ok(Walked::Found { node, kind, path });
                }
                _ => return Ok(Walked::NotADirectory),
            }
        }
        Ok(Walked::Found { node: here.id(), kind: Kind::Directory, path: here.path() })
    }
}

/// The names of a path; empty ones and `.` lead nowhere.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

fn extend(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// As many symlinks as containerd follows when it unpacks.
const MAX_LINKS: u32 = 255;
