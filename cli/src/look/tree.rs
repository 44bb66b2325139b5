//! `peelfs tree`: a directory with all that is in it, drawn as by tree(1).

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

use super::Stop;
use super::args::TreeArgs;
use super::open::{self, Looked, cannot};
use super::out::{JsonNode, Out};
use super::walk::{listed, target};
use crate::failures::Failures;
use crate::text;
use peelfs::host::report::Report;
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr};

pub(crate) fn run(args: &TreeArgs) -> Result<(), Report> {
    open::run(&args.image, &args.layer, async |looked| draw(args, looked).await)
}

async fn draw(args: &TreeArgs, looked: Looked) -> Result<(), Stop> {
    let counts = (0, 0);
    let mut drawing = Drawing { args, looked, out: Out::new(), failures: Failures::default(), counts };
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        match drawing.looked.named("list", path, Last::Follow).await {
            Ok(start) => drawing.below(path, start).await?,
            Err(report) => drawing.failures.add(report),
        }
    }
    if !args.json {
        let (dirs, files) = drawing.counts;
        let dirs = if dirs == 1 { "1 directory".to_owned() } else { format!("{dirs} directories") };
        let files = if args.dirs { String::new() } else { format!(", {}", text::count(files, "file")) };
        let rest = if drawing.failures.is_empty() { "" } else { "; not all could be listed" };
        writeln!(drawing.out, "\n{dirs}{files}{rest}")?;
    }
    drawing.out.flush()?;
    Ok(drawing.failures.outcome()?)
}

struct Drawing<'a> {
    args: &'a TreeArgs,
    looked: Looked,
    out: Out,
    failures: Failures,
    /// Directories and others.
    counts: (u64, u64),
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonLine {
    #[serde(flatten)]
    node: JsonNode,
    depth: usize,
}

/// A directory that is being drawn.
struct Level {
    dir: NodeAttr,
    /// Length of its path.
    path: usize,
    rest: std::vec::IntoIter<(Vec<u8>, NodeAttr)>,
}

impl Drawing<'_> {
    async fn below(&mut self, path: &[u8], start: NodeAttr) -> Result<(), Stop> {
        let mut path = path.to_vec();
        self.line("", path.clone(), &path, &start, 0).await?;
        let mut open: Vec<Level> = Vec::new();
        // Whether further names follow on each level.
        if start.kind == Kind::Directory {
            open.extend(self.level(&path, start, 1).await);
        }
        while let Some(level) = open.last_mut() {
            path.truncate(level.path);
            let Some((name, attr)) = level.rest.next() else {
                self.looked.tree.forget(level.dir.node);
                open.pop();
                continue;
            };
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let mut before = String::new();
            if let Some((last, above)) = open.split_last() {
                for level in above {
                    before.push_str(if level.rest.len() > 0 { "│   " } else { "    " });
                }
                before.push_str(if last.rest.len() > 0 { "├── " } else { "└── " });
            }
            let depth = open.len();
            match attr.kind {
                Kind::Directory => self.counts.0 += 1,
                _ => self.counts.1 += 1,
            }
            self.line(&before, name, &path, &attr, depth).await?;
            if attr.kind == Kind::Directory {
                open.extend(self.level(&path, attr, depth + 1).await);
            }
        }
        Ok(())
    }

    /// The names of a directory that are shown; `None` if it is too deep or cannot be listed.
    async fn level(&mut self, path: &[u8], dir: NodeAttr, depth: usize) -> Option<Level> {
        if self.args.level.is_some_and(|most| depth > most) {
            return None;
        }
        match listed(&*self.looked.tree, dir.node).await {
            Ok(mut rest) => {
                rest.retain(|(name, attr)| {
                    (self.args.all || !name.starts_with(b".")) && (!self.args.dirs || attr.kind == Kind::Directory)
                });
                Some(Level { dir, path: path.len(), rest: rest.into_iter() })
            }
            Err(error) => {
                self.failures.add(cannot("list", path, error.into()));
                None
            }
        }
    }

    async fn line(
        &mut self,
        before: &str,
        name: Vec<u8>,
        path: &[u8],
        attr: &NodeAttr,
        depth: usize,
    ) -> Result<(), Stop> {
        let tree = &*self.looked.tree;
        let target = target(tree, attr).await.map_err(|error| cannot("list", path, error.into()))?;
        if self.args.json {
            let node = JsonNode::new(tree, path, attr, target.as_deref());
            return Ok(self.out.json(&JsonLine { node, depth })?);
        }
        self.out.write_all(before.as_bytes())?;
        let mut columns = Vec::new();
        if self.args.modes {
            columns.push(text::mode(attr.kind, attr.mode));
        }
        if self.args.human_readable {
            columns.push(format!("{:>4}", text::human(attr.size)));
        } else if self.args.sizes {
            columns.push(format!("{:>11}", attr.size));
        }
        if !columns.is_empty() {
            write!(self.out, "[{}]  ", columns.join(" "))?;
        }
        self.out.name(&name)?;
        if let Some(target) = &target {
            self.out.write_all(b" -> ")?;
            self.out.name(target)?;
        }
        Ok(writeln!(self.out)?)
    }
}
