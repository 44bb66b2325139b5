//! `peelfs du`: the space that files of an image take, by directory as du(1), or by the layer that they come from.
//!
//! Space is that of the unpacked files: 512-byte blocks without holes, hard links once. What a layer takes as a blob, and
//! what of it no longer shows, is told by `peelfs layers`.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

use super::Stop;
use super::args::DuArgs;
use super::open::{self, Looked, cannot};
use super::out::{Out, json_name};
use super::walk::{Step, Walk};
use crate::failures::Failures;
use crate::text;
use peelfs::host::report::Report;
use peelfs::layer::Kind;
use peelfs::overlay::{Last, LayerNo, NodeAttr, NodeId};

pub(crate) fn run(args: &DuArgs) -> Result<(), Report> {
    open::run(&args.image, &args.layer, async |looked| sum(args, looked).await)
}

async fn sum(args: &DuArgs, looked: Looked) -> Result<(), Stop> {
    let mut counter = Counter {
        args,
        looked,
        out: Out::new(),
        failures: Failures::default(),
        seen: HashSet::new(),
        layers: BTreeMap::new(),
    };
    let mut total = Used::default();
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        match counter.looked.named("read", path, Last::Keep).await {
            Ok(start) => total.add(counter.below(path, start).await?),
            Err(report) => counter.failures.add(report),
        }
    }
    if args.layers {
        counter.by_layer()?;
    }
    if args.total {
        counter.line(b"total", total)?;
    }
    counter.out.flush()?;
    Ok(counter.failures.outcome()?)
}

struct Counter<'a> {
    args: &'a DuArgs,
    looked: Looked,
    out: Out,
    failures: Failures,
    /// What is counted and may be met again.
    seen: HashSet<NodeId>,
    layers: BTreeMap<LayerNo, Used>,
}

#[derive(Clone, Copy, Default)]
struct Used {
    bytes: u64,
    files: u64,
}

impl Used {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.files += other.files;
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonUsed {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    bytes: u64,
    files: u64,
}

/// One line of `--layers --json`.
#[derive(Serialize)]
struct JsonLayerUsed<'a> {
    number: u32,
    digest: &'a peelfs::digest::Digest,
    bytes: u64,
    files: u64,
}

impl Counter<'_> {
    /// What a path takes; prints the lines of directories, those inside first.
    async fn below(&mut self, path: &[u8], start: NodeAttr) -> Result<Used, Stop> {
        let mut walk = Walk::new(&self.looked.tree, path, start);
        // What the directories on the way take so far, and the start.
        let mut sums = vec![Used::default()];
        loop {
            match walk.next().await {
                Ok(Some(Step::Node(attr))) => {
                    let Some(used) = self.of(&attr) else {
                        walk.skip();
                        continue;
                    };
                    if attr.kind == Kind::Directory {
                        sums.push(used);
                        continue;
                    }
                    if let Some(sum) = sums.last_mut() {
                        sum.add(used);
                    }
                    if walk.depth() == 0 || (self.args.all && self.is_shown(walk.depth())) {
                        self.line(walk.path(), used)?;
                    }
                }
                Ok(Some(Step::Leave)) => {
                    let used = sums.pop().unwrap_or_default();
                    if let Some(sum) = sums.last_mut() {
                        sum.add(used);
                    }
                    if self.is_shown(walk.depth()) {
                        self.line(walk.path(), used)?;
                    }
                }
                Ok(None) => return Ok(sums.pop().unwrap_or_default()),
                Err(error) => self.failures.add(cannot("read", walk.path(), error.into())),
            }
        }
    }

    fn is_shown(&self, depth: usize) -> bool {
        depth == 0 || (!self.args.summarize && self.args.max_depth.is_none_or(|most| depth <= most))
    }

    /// What a node takes itself; `None` if it is counted already, by another name or below another PATH.
    fn of(&mut self, attr: &NodeAttr) -> Option<Used> {
        let again = self.args.paths.len() > 1 || (attr.nlink > 1 && attr.kind != Kind::Directory);
        if again && !self.seen.insert(attr.node) {
            return None;
        }
        let apparent = self.args.apparent_size || self.args.bytes;
        let used = Used { bytes: if apparent { attr.size } else { attr.blocks * 512 }, files: 1 };
        // The root is one of no layer alone.
        if self.args.layers
            && let Some((layer, _)) = attr.node.parts()
        {
            self.layers.entry(layer).or_default().add(used);
        }
        Some(used)
    }

    fn line(&mut self, path: &[u8], used: Used) -> io::Result<()> {
        if self.args.layers {
            return Ok(());
        }
        if self.args.json {
            let (path, path_hex) = json_name(path);
            return self.out.json(&JsonUsed { path, path_hex, bytes: used.bytes, files: used.files });
        }
        let size = self.size(used.bytes);
        self.out.line(&format!("{size}\t"), path)
    }

    fn size(&self, bytes: u64) -> String {
        match () {
            () if self.args.human_readable => text::human(bytes),
            () if self.args.bytes => bytes.to_string(),
            () => bytes.div_ceil(1024).to_string(),
        }
    }

    fn by_layer(&mut self) -> io::Result<()> {
        let layers = std::mem::take(&mut self.layers);
        for (number, layer) in (0..).map(LayerNo).zip(&self.looked.opened.plan.layers) {
            let used = layers.get(&number).copied().unwrap_or_default();
            if self.looked.opened.layer.is_some_and(|only| only != number) {
                continue;
            }
            let (number, digest) = (u32::from(number.0) + 1, &layer.blob.digest);
            if self.args.json {
                self.out.json(&JsonLayerUsed { number, digest, bytes: used.bytes, files: used.files })?;
            } else {
                let size = self.size(used.bytes);
                writeln!(self.out, "{size}\tlayer {number} {digest}")?;
            }
        }
        Ok(())
    }
}
