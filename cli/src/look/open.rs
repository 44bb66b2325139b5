//! Opening an image to look into it, and naming a path in it.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use peelfs::host::open::Opened;
use peelfs::host::report::Report;
use peelfs::host::{open, process};
use peelfs::image::tree::{self, Reached};
use peelfs::image::{Eagerness, FsError, Shown, Tree, Verify};
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr, NodeId};

use super::Stop;
use crate::args::{ImageArgs, LayerArgs};
use crate::progress::Meter;
use crate::specs;

/// An image that is looked into: nothing of it is read that no question needs.
pub(crate) struct Looked {
    /// The resolved image.
    pub(crate) opened: Opened,
    /// What is shown of it.
    pub(crate) shown: Shown,
    /// The same as a tree.
    pub(crate) tree: Arc<dyn Tree>,
    /// Shows what is read of it.
    pub(crate) meter: Arc<Meter>,
}

/// Opens the image that `image` names, or one layer of it, and runs `look` on it.
pub(crate) fn run(
    image: &ImageArgs,
    layer: &LayerArgs,
    look: impl AsyncFnOnce(Looked) -> Result<(), Stop>,
) -> Result<(), Report> {
    process::runtime(process::Purpose::Reading)?.block_on(async {
        let opened = open::open_alone(&specs::image_or_layer(image, layer)?).await?;
        let meter = Meter::start("reading files", image.opening.quiet.into());
        look(Looked::of(opened, &Arc::new(meter))).await.or_else(Stop::outcome)
    })
}

impl Looked {
    /// Must be called within a tokio runtime.
    pub(crate) fn of(opened: Opened, meter: &Arc<Meter>) -> Self {
        let shown = opened.shown(Eagerness::OnDemand, Verify::BeforeShowing);
        meter.watch(shown.image());
        Self { tree: shown.tree(), opened, shown, meter: Arc::clone(meter) }
    }

    /// The node of a path that the user named. `doing` is what was to be done with it, as in `list`.
    ///
    /// # Errors
    /// A report that names the path, with the nearest name as a hint if it does not exist.
    pub(crate) async fn named(&self, doing: &str, path: &[u8], last: Last) -> Result<NodeAttr, Report> {
        named(&*self.tree, doing, path, last).await
    }
}

/// As [`Looked::named`], in any tree.
pub(crate) async fn named(tree: &dyn Tree, doing: &str, path: &[u8], last: Last) -> Result<NodeAttr, Report> {
    match tree::reach(tree, path, last).await {
        Ok(Reached::Node(attr)) if path.ends_with(b"/") && attr.kind != Kind::Directory => {
            Err(cannot(doing, path, FsError::NotADirectory.into()))
        }
        Ok(Reached::Node(attr)) => Ok(attr),
        Ok(Reached::Missing { path: missing, rest }) => {
            let report = cannot(doing, path, FsError::NotFound.into());
            Err(match nearest(tree, missing).await {
                Some(mut near) => {
                    near.extend(rest);
                    report
                        .hint(format!("did you mean `/{}`?", Path::new(OsStr::from_bytes(&near.join(&b'/'))).display()))
                }
                None => report,
            })
        }
        Err(error) => Err(cannot(doing, path, error.into())),
    }
}

/// A failure, with the path that the user named.
pub(crate) fn cannot(doing: &str, path: &[u8], report: Report) -> Report {
    let message = format!("cannot {doing} `{}`: {}", OsStr::from_bytes(path).display(), report.message);
    Report { message, ..report }
}

/// A missing path with its last name replaced by the most similar one of that directory, if one is similar.
async fn nearest(tree: &dyn Tree, mut missing: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let wanted = String::from_utf8(missing.pop()?).ok()?;
    let mut dir = NodeId::ROOT;
    for name in &missing {
        dir = tree::awaited(tree, |tree| tree.lookup(dir, name)).await.ok()??.node;
    }
    let mut best: Option<(f64, Vec<u8>)> = None;
    let listed = tree::awaited(tree, |tree| {
        best = None;
        let mut seen = 0;
        tree.list(dir, 0, &mut |entry| {
            if let Ok(name) = std::str::from_utf8(entry.name) {
                let score = strsim::normalized_damerau_levenshtein(&wanted, name);
                if score >= SIMILAR && best.as_ref().is_none_or(|(other, _)| score > *other) {
                    best = Some((score, entry.name.to_vec()));
                }
            }
            seen += 1;
            if seen < COMPARED { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    });
    listed.await.ok()?;
    missing.push(best?.1);
    Some(missing)
}

/// A read of a whole small file, such as `/etc/passwd`.
///
/// # Errors
/// [`FsError`]; larger files than `limit` bytes are [`FsError::NotAFile`].
pub(crate) async fn read_small(tree: &Arc<dyn Tree>, path: &[u8], limit: usize) -> Result<Vec<u8>, FsError> {
    let attr = tree::walk(&**tree, path, Last::Follow).await?;
    if attr.kind != Kind::File || attr.size > limit as u64 {
        return Err(FsError::NotAFile);
    }
    Ok(Arc::clone(tree).read(attr.node, peelfs::offsets::FileOffset(0), limit).await?.to_vec())
}

/// Why a path cannot be read as a file.
pub(crate) fn require_file(attr: &NodeAttr) -> Result<(), FsError> {
    match attr.kind {
        Kind::File => Ok(()),
        Kind::Directory => Err(FsError::IsADirectory),
        _ => Err(FsError::NotAFile),
    }
}

/// Least similarity of a hint, 0 to 1.
const SIMILAR: f64 = 0.6;
/// Names of a directory that are compared for a hint.
const COMPARED: usize = 20_000;
