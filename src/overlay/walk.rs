//! Paths: resolves a path from the root through symlinks, never out of the image.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{NodeId, Overlay, Unknown, damaged, steps};
use crate::layer::Kind;

/// Whether to follow a symlink at the end of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Last {
    /// As `stat` does.
    Follow,
    /// As `lstat` does.
    Keep,
}

/// Result of a walk.
#[derive(Debug)]
pub enum Walked {
    /// A node.
    Found {
        /// The node.
        node: NodeId,
        /// Its kind.
        kind: Kind,
    },
    /// The path does not exist.
    Missing,
    /// A component of the path is not a directory.
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
        let mut here = Arc::clone(&self.root);
        let mut rest: VecDeque<Vec<u8>> = names(path).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                here = here.parent().map_or_else(|| Arc::clone(&self.root), Arc::clone);
                continue;
            }
            steps::take(1)?;
            let Some(node) = self.lookup(&here, &name)? else { return Ok(Walked::Missing) };
            let (layer, id) = self.parse(node)?;
            let index = self.index(layer)?;
            match index.entry(id).map_err(damaged(layer))?.kind() {
                Kind::Directory => here = self.child_dir(&here, &name, node)?,
                Kind::Symlink if !rest.is_empty() || last == Last::Follow => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(Walked::Loop);
                    }
                    let target = index.symlink_target(id).map_err(damaged(layer))?.unwrap_or_default().to_vec();
                    if target.starts_with(b"/") {
                        here = Arc::clone(&self.root);
                    }
                    for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(name.to_vec());
                    }
                }
                kind if rest.is_empty() => return Ok(Walked::Found { node, kind }),
                _ => return Ok(Walked::NotADirectory),
            }
        }
        Ok(Walked::Found { node: here.id(), kind: Kind::Directory })
    }
}

/// The names of a path; skips empty ones and `.`.
pub(super) fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

pub(super) fn extend(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Limit for symlinks, as in containerd when it unpacks.
pub const MAX_LINKS: u32 = 255;
