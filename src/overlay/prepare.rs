//! Prepares a layer for the layers below it.
//!
//! A layer index is built from the layer alone. Two things in it depend on the layers below:
//!
//! - a hard link to a file of a lower layer;
//! - an *implied* directory: the layer has `bin/tool` but no `bin`. If the lower layers have a symlink `bin ->
//!   usr/bin`, an unpacker writes through it, so `bin/tool` is `usr/bin/tool`.
//!
//! [`Overlay::prepare`] resolves both once, as soon as all layers below are complete. Most layers have neither, and do
//! not depend on lower layers.
//!
//! Preparing visits all of a layer, so a thread that serves a lookup never does it: it returns that the layer is
//! needed. The work is linear in the layer's entries. All layers of an image together may take [`PREPARE_STEPS`]; a
//! layer that takes more, or cannot be merged with those below, is refused.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::below::{Below, Child};
use super::{KnownLayer, LayerNo, NodeId, Overlay, Unknown, damaged, steps, through};
use crate::layer::{Contents, EntryId, LayerIndex, TreeError, WriteError};

/// A layer, prepared for its image.
pub(super) struct Prepared {
    /// The layer is partial: entries may still follow.
    pub(super) partial: bool,
    pub(super) index: Arc<LayerIndex>,
    /// Hard links to files of lower layers, and their nodes; without links to missing files.
    pub(super) lower_links: Arc<HashMap<EntryId, NodeId>>,
    /// The inverse, sorted.
    pub(super) links_to: Arc<HashMap<NodeId, Vec<EntryId>>>,
    /// The names of each inode with several names; computed on first use.
    pub(super) names: Arc<OnceLock<HashMap<EntryId, Vec<EntryId>>>>,
}

/// Why a layer cannot be merged with the layers below it.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// It takes too many steps.
    #[error("merging it with the layers below takes more than {PREPARE_STEPS} steps")]
    Steps,
    /// Its entries conflict with the targets of symlinks in lower layers.
    #[error("it cannot be merged with the layers below")]
    Tree {
        /// The conflict.
        #[from]
        cause: TreeError,
    },
    /// The merged layer does not fit into an index.
    #[error("the merged layer does not fit an index")]
    Write {
        /// Why.
        #[from]
        cause: WriteError,
    },
}

impl Overlay {
    /// Whether a complete layer needs no more preparation.
    pub fn is_prepared(&self, layer: LayerNo) -> bool {
        !matches!(self.whole(layer), Err(Unknown::Needs(_)))
    }

    /// Prepares a complete layer, once all those below are prepared. May take long.
    ///
    /// # Errors
    /// [`Unknown`]; [`Unknown::Refused`] is permanent. [`Unknown::TakesLong`] after [`Overlay::end`].
    pub fn prepare(&self, number: LayerNo) -> Result<(), Unknown> {
        let slot = &self.layers[usize::from(number.0)];
        if self.is_prepared(number) {
            return Ok(());
        }
        let KnownLayer::Whole(index) = self.known.known(number) else { return Err(Unknown::Needs(number)) };
        for below in (0..number.0).map(LayerNo) {
            self.whole(below)?;
        }
        let allowed = self.steps_left.load(Ordering::Relaxed);
        let (prepared, left) =
            steps::within(allowed, Some(&self.ended), || (self.prepare_over(number, &index), steps::left()));
        self.steps_left.fetch_sub(allowed - left, Ordering::Relaxed);
        let prepared = match prepared {
            Ok(prepared) => Ok(prepared),
            Err(Unknown::TakesLong) if !self.ended.load(Ordering::Relaxed) => Err(Arc::new(MergeError::Steps)),
            Err(Unknown::Refused { cause, .. }) => Err(cause),
            Err(unknown) => return Err(unknown),
        };
        // Two threads may do this concurrently, with the same result.
        let _ = slot.prepared.set(prepared);
        Ok(())
    }

    fn prepare_over(&self, number: LayerNo, index: &Arc<LayerIndex>) -> Result<Prepared, Unknown> {
        let mut below = Below::new(self, number);
        let index = through::write_through_symlinks(number, index, &mut below)?;
        let lower_links = resolve_lower_links(number, &index, &mut below)?;
        Ok(Prepared::alone(index, false).with_lower_links(lower_links))
    }
}

fn resolve_lower_links(
    number: LayerNo,
    index: &LayerIndex,
    below: &mut Below<'_>,
) -> Result<HashMap<EntryId, NodeId>, Unknown> {
    let mut resolved = HashMap::new();
    let mut missing: Option<(Vec<u8>, u64)> = None;
    for link in index.lower_links() {
        let link = link.map_err(damaged(number))?;
        let target = index.link_target(link).map_err(damaged(number))?.unwrap_or_default();
        // The index stores it without dots, so this is its last component, which is not followed.
        let name_at = target.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let found = match below.directory(&target[..name_at])? {
            Some(dir) => below.child(&dir, &target[name_at..])?,
            None => Child::Missing,
        };
        match found {
            Child::Other { node, .. } => {
                resolved.insert(link, node);
            }
            Child::Missing | Child::Directory(_) => {
                missing.get_or_insert_with(|| (target.to_vec(), 0)).1 += 1;
            }
        }
    }
    if let Some((target, count)) = missing {
        tracing::warn!(
            layer = %number,
            target = %target.escape_ascii(),
            count,
            "ignoring hard links to files that no lower layer has; this is the first"
        );
    }
    Ok(resolved)
}

impl Prepared {
    /// A layer that does not depend on those below.
    pub(super) fn alone(index: Arc<LayerIndex>, partial: bool) -> Self {
        Self { partial, index, lower_links: Arc::default(), links_to: Arc::default(), names: Arc::default() }
    }

    /// The same, with no page of the index in memory.
    pub(super) fn afresh(&self) -> Self {
        Self {
            partial: self.partial,
            index: Arc::new(self.index.afresh()),
            lower_links: Arc::clone(&self.lower_links),
            links_to: Arc::clone(&self.links_to),
            names: Arc::clone(&self.names),
        }
    }

    fn with_lower_links(self, lower_links: HashMap<EntryId, NodeId>) -> Self {
        let mut links_to = HashMap::<_, Vec<_>>::new();
        for (link, node) in &lower_links {
            links_to.entry(*node).or_default().push(*link);
        }
        links_to.values_mut().for_each(|links| links.sort_unstable());
        Self { lower_links: Arc::new(lower_links), links_to: Arc::new(links_to), ..self }
    }
}

pub(super) fn depends_on_lower(index: &LayerIndex) -> bool {
    index.contents().has(Contents::IMPLIED) || index.contents().has(Contents::LOWER_LINKS)
}

/// Limit of steps for preparing all layers of an image: some minutes of one CPU. A million files in implied directories
/// over a hundred layers take a tenth.
pub(super) const PREPARE_STEPS: u64 = 1 << 28;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::{index, of, over, steps_of};
    use super::*;
    use crate::overlay::{Last, Walked};
    use peelfs_loopback::tar::Entry;

    /// `x{number}/a/a/a/…/f`, with the maximum depth of a path.
    fn deep(number: usize) -> Entry {
        Entry::file(format!("x{number}/{}f", "a/".repeat(4_090)), "")
    }

    fn found(overlay: &Overlay, path: &str) -> bool {
        matches!(overlay.walk(path.as_bytes(), Last::Keep).unwrap(), Walked::Found { .. })
    }

    /// One PAX path creates thousands of implied directories; a layer of 164 bytes took 12 s, one of 1,668 bytes did
    /// not end.
    #[test]
    fn implied_directories_take_a_few_steps_each() {
        let layer = |paths: usize| index((0..paths).map(deep));
        let (_, alone) = over(&[layer(1)]);
        assert!(alone[0] < 100, "nothing is below it: {alone:?}");
        let (overlay, steps) = over(&[layer(8), layer(1), layer(8)]);
        assert!(steps[1] < 5 * 4_092, "{steps:?}");
        assert!(steps[2] < 5 * 8 * 4_092, "{steps:?}");
        assert!(found(&overlay, &format!("x7/{}f", "a/".repeat(4_090))));
        let miss = steps_of(|| assert!(!found(&overlay, &format!("x0/{}g", "a/".repeat(4_090)))));
        assert!(miss < 5 * 3 * 4_092, "{miss} steps");
    }

    /// Every directory of the path is a symlink of a lower layer: each is followed once, and nothing is rewritten.
    #[test]
    fn symlinks_on_one_path_are_written_through_once_each() {
        let links = |count: usize| {
            let lower = (0..count).flat_map(|at| {
                let link = if at == 0 { "l0".to_owned() } else { format!("d{}/l{at}", at - 1) };
                [Entry::dir(format!("d{at}")), Entry::symlink(link, format!("/d{at}"))]
            });
            let path = (0..count).map(|at| format!("l{at}/")).collect::<String>();
            over(&[index(lower), index([Entry::file(format!("{path}f"), "")])])
        };
        let ((_, few), (overlay, many)) = (links(125), links(250));
        assert!(found(&overlay, "d249/f") && !found(&overlay, "d249/l249"));
        // Each one creates a directory at its target, which counts as 256 steps.
        assert!(many[1] < 3 * few[1] && many[1] < (256 + 20) * 250, "{few:?} {many:?}");
    }

    /// Files below a symlink of a lower layer move once, even if a tree of symlinks leads further.
    #[test]
    fn what_lies_below_symlinks_moves_once() {
        let layer = |files: usize| {
            let lower =
                [Entry::dir("d"), Entry::symlink("l", "m"), Entry::symlink("m", "d"), Entry::symlink("d/n", "../d")];
            over(&[index(lower), index((0..files).map(|file| Entry::file(format!("l/n/n/n/{file}"), "")))])
        };
        let ((_, few), (overlay, many)) = (layer(1_000), layer(10_000));
        assert!(found(&overlay, "d/9999"));
        assert!(many[1] < 11 * few[1].max(1_000), "{few:?} {many:?}");
    }

    #[test]
    fn hard_links_follow_a_chain_of_symlinks_once() {
        let chain = (0..250).map(|at| Entry::symlink(format!("l{at}"), format!("l{}", at + 1)));
        let lower = index(chain.chain([Entry::dir("l250"), Entry::file("l250/f", "")]));
        let links = |count: usize| index((0..count).map(|at| Entry::hard_link(format!("h{at}"), "l0/f")));
        let (overlay, steps) = over(&[lower, links(10_000)]);
        assert!(found(&overlay, "h9999"));
        assert!(steps[1] < 2 * 10_000, "{steps:?}");
        let attr = overlay.attr(overlay.lookup(overlay.root(), b"h7").unwrap().unwrap()).unwrap();
        assert_eq!(attr.nlink, 10_001);
    }

    /// The names of an inode are counted once, whichever of them is looked up.
    #[test]
    fn names_of_many_hard_links_are_counted_once() {
        let base = index([Entry::file("f", ""), Entry::dir("d")]);
        let links = index((0..5_000).map(|at| Entry::hard_link(format!("h{at}"), "f")));
        let (overlay, _) = over(&[base, links]);
        let steps = steps_of(|| {
            for at in 0..5_000 {
                let node = overlay.lookup(overlay.root(), format!("h{at}").as_bytes()).unwrap().unwrap();
                assert_eq!(overlay.attr(node).unwrap().nlink, 5_001);
            }
        });
        assert!(steps < 20 * 5_000, "{steps} steps");
    }

    /// Chains are cached, so their maximum length must not depend on earlier lookups.
    #[test]
    fn more_than_255_symlinks_lead_nowhere() {
        let chain = (0..300).map(|at| Entry::symlink(format!("l{at}"), format!("l{}", at + 1)));
        let lower = index(chain.chain([Entry::dir("l300"), Entry::file("l300/f", "")]));
        let links = [200, 0, 45, 44].map(|at| Entry::hard_link(format!("h{at}"), format!("l{at}/f")));
        let (overlay, _) = over(&[lower, index(links)]);
        assert_eq!([200, 0, 45, 44].map(|at| found(&overlay, &format!("h{at}"))), [true, false, true, false]);
    }

    #[test]
    fn a_layer_with_too_many_steps_is_refused() {
        let overlay = of([(); 2].map(|()| index([deep(0), deep(1)])));
        overlay.steps_left.store(5_000, Ordering::Relaxed);
        overlay.prepare(LayerNo(0)).unwrap();
        assert!(matches!(overlay.lookup(overlay.root(), b"x0"), Err(Unknown::Needs(LayerNo(1)))));
        overlay.prepare(LayerNo(1)).unwrap();
        let Err(Unknown::Refused { layer, cause }) = overlay.lookup(overlay.root(), b"x0") else {
            panic!("not refused")
        };
        assert_eq!(layer, LayerNo(1));
        assert!(cause.to_string().contains("268435456 steps"), "{cause}");
    }

    #[test]
    fn preparing_ends_with_the_mount() {
        let overlay = of([(); 2].map(|()| index([deep(0), deep(1)])));
        overlay.prepare(LayerNo(0)).unwrap();
        overlay.end();
        assert!(matches!(overlay.prepare(LayerNo(1)), Err(Unknown::TakesLong)));
        assert!(!overlay.is_prepared(LayerNo(1)), "it was not too much");
    }

    /// Dangling symlinks create directories at their targets, and could create any number of them.
    #[test]
    fn directories_made_where_links_lead_are_bounded() {
        let links = |count: usize| {
            let lower = (0..count).map(|at| Entry::symlink(format!("l{at}"), format!("{at}/{}", "a/".repeat(2_000))));
            over(&[index(lower), index((0..count).map(|at| Entry::file(format!("l{at}/f"), "")))]).0
        };
        assert!(found(&links(10), &format!("9/{}f", "a/".repeat(2_000))));
        let overlay = links(40);
        let Err(Unknown::Refused { cause, .. }) = overlay.lookup(overlay.root(), b"l0") else { panic!("not refused") };
        assert!(matches!(*cause, MergeError::Tree { .. }), "{cause:?}");
    }

    /// The directories of all names are searched together, and each is found once.
    #[test]
    fn names_deep_down_are_counted_in_a_few_steps_each() {
        let dir = "d/".repeat(1_000);
        let first = Entry::file(format!("{dir}f"), "");
        let links = (0..5_000).map(|at| Entry::hard_link(format!("{dir}{at}"), format!("{dir}f")));
        let (overlay, _) = over(&[index(std::iter::once(first).chain(links))]);
        let Walked::Found { node, .. } = overlay.walk(format!("{dir}4999").as_bytes(), Last::Keep).unwrap() else {
            panic!("it is there");
        };
        let steps = steps_of(|| assert_eq!(overlay.attr(node).unwrap().nlink, 5_001));
        assert!(steps < 4 * 5_001 + 4 * 1_000, "{steps} steps");
    }

    /// A layer may empty a directory without describing it; then the layers below are searched, once each.
    #[test]
    fn who_describes_a_directory_is_found_in_a_few_steps_a_layer() {
        let dir = "d/".repeat(500);
        let base = index([Entry::dir(&*dir).mode(0o711)]);
        let upper = index([Entry::opaque(&dir[..dir.len() - 1]), Entry::file(format!("{dir}f"), "")]);
        let (overlay, _) = over(&[&[base][..], &vec![upper; 100]].concat());
        let Walked::Found { node, .. } = overlay.walk(dir.as_bytes(), Last::Keep).unwrap() else {
            panic!("it is there")
        };
        let steps = steps_of(|| assert_eq!(overlay.attr(node).unwrap().mode, 0o711));
        assert!(steps < 4 * 100 * 500, "{steps} steps, of which most go to the parents");
        let again = steps_of(|| assert_eq!(overlay.attr(node).unwrap().mode, 0o711));
        assert!(again < 4 * 100, "{again} steps");
    }
}
