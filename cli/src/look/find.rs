//! `peelfs find`: prints the paths of an image that match an expression, in the order and form of find(1).

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use super::Stop;
use super::args::FindArgs;
use super::expression::{Candidate, Expression, Facts, Print};
use super::open::{self, Looked, cannot};
use super::out::{JsonNode, Out};
use super::owners::Owners;
use super::printf::{Followed, Subject};
use super::walk::{Step, Walk, is_empty, target};
use crate::failures::Failures;
use crate::text;
use peelfs::host::report::Report;
use peelfs::image::tree::{self, Reached};
use peelfs::image::{FsError, Tree};
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr};

pub(crate) fn run(args: &FindArgs) -> Result<(), Report> {
    let expression = Expression::parse(&args.expression)?;
    open::run(&args.image, &args.layer, async |looked| find(args, &expression, looked).await)
}

async fn find(args: &FindArgs, expression: &Expression, looked: Looked) -> Result<(), Stop> {
    let mut newer = Vec::new();
    for path in &expression.newer {
        let attr = looked.named("compare with", path, Last::Keep).await?;
        newer.push((attr.mtime, attr.mtime_ns));
    }
    let mut same = Vec::new();
    for path in &expression.same {
        same.push(looked.named("compare with", path, Last::Keep).await?.node);
    }
    let facts = Facts {
        owners: if expression.needs_owners { Owners::of(&looked.tree).await } else { Owners::default() },
        newer,
        same,
        now: jiff::Timestamp::now().as_second(),
    };
    let mut search = Search { args, expression, facts, looked, out: Out::new(), failures: Failures::default() };
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        match search.looked.named("search", path, Last::Keep).await {
            Ok(start) => {
                if search.below(path, start).await? == Goes::Ended {
                    break;
                }
            }
            Err(report) => search.failures.add(report),
        }
    }
    search.out.flush()?;
    Ok(search.failures.outcome()?)
}

struct Search<'a> {
    args: &'a FindArgs,
    expression: &'a Expression,
    facts: Facts,
    looked: Looked,
    out: Out,
    failures: Failures,
}

#[derive(Eq, PartialEq)]
enum Goes {
    On,
    Ended,
}

impl Search<'_> {
    async fn below(&mut self, path: &[u8], start: NodeAttr) -> Result<Goes, Stop> {
        let mut walk = Walk::new(&self.looked.tree, path, start);
        // Directories that come behind what is in them.
        let mut entered = Vec::new();
        loop {
            let attr = match walk.next().await {
                Ok(Some(Step::Node(attr))) => {
                    let is_entered = attr.kind == Kind::Directory && walk.depth() < self.expression.max_depth;
                    if self.expression.depth_first && is_entered {
                        entered.push(attr);
                        continue;
                    }
                    attr
                }
                Ok(Some(Step::Leave)) => match entered.pop() {
                    Some(attr) => attr,
                    None => continue,
                },
                Ok(None) => return Ok(Goes::On),
                Err(error) => {
                    self.failures.add(cannot("list", walk.path(), error.into()));
                    continue;
                }
            };
            if walk.depth() >= self.expression.max_depth {
                walk.skip();
            }
            if walk.depth() < self.expression.min_depth {
                continue;
            }
            match self.node(&walk, &attr).await {
                Ok(asked) => {
                    if asked.prune {
                        walk.skip();
                    }
                    if asked.quit {
                        return Ok(Goes::Ended);
                    }
                }
                Err(Stop::Failed(report)) => self.failures.add(report),
                Err(stop) => return Err(stop),
            }
        }
    }

    async fn node(&mut self, walk: &Walk, attr: &NodeAttr) -> Result<super::expression::Verdict, Stop> {
        let tree = &*self.looked.tree;
        let failed = |error: FsError| cannot("look at", walk.path(), error.into());
        let wants_target = self.expression.needs_target || self.args.json;
        let target = if wants_target { target(tree, attr).await.map_err(failed)? } else { None };
        let empty_dir = self.expression.needs_empty
            && attr.kind == Kind::Directory
            && is_empty(tree, attr).await.map_err(failed)?;
        let inode = tree.inode(attr.node);
        let (path, name, target_of) = (walk.path(), walk.name(), target.as_deref());
        let candidate = Candidate { path, name, attr, inode, target: target_of, empty_dir };
        let verdict = self.expression.ask(&candidate, &self.facts);
        let followed = match attr.kind {
            Kind::Symlink if self.expression.needs_followed && !verdict.prints.is_empty() => {
                followed(tree, walk.path()).await.map_err(failed)?
            }
            kind => Followed::To(kind),
        };
        for print in &verdict.prints {
            self.print(*print, walk, attr, target.as_deref(), followed)?;
        }
        Ok(verdict)
    }

    fn print(
        &mut self,
        print: Print,
        walk: &Walk,
        attr: &NodeAttr,
        target: Option<&[u8]>,
        followed: Followed,
    ) -> std::io::Result<()> {
        let path = walk.path();
        if self.args.json {
            return self.out.json(&JsonNode::new(&*self.looked.tree, path, attr, target));
        }
        match print {
            Print::Line => self.out.line("", path),
            Print::Zero => {
                self.out.write_all(path)?;
                self.out.write_all(b"\0")
            }
            Print::Format(number) => {
                let changed = self.looked.tree.changed(attr);
                let subject = Subject {
                    path,
                    start: walk.start(),
                    depth: walk.depth(),
                    attr,
                    inode: self.looked.tree.inode(attr.node),
                    changed: (changed.seconds, changed.nanos),
                    target,
                    followed,
                    owners: &self.facts.owners,
                };
                self.expression.formats[number].print(&subject, &mut self.out)
            }
            Print::Long => {
                let before = self.long(attr);
                self.out.write_all(before.as_bytes())?;
                let target = target.map(|target| format!(" -> {}", text::quoted_as_find(target))).unwrap_or_default();
                writeln!(self.out, "{}{target}", text::quoted_as_find(path))
            }
        }
    }

    /// A line of `find -ls` up to the path, with times in UTC.
    fn long(&self, attr: &NodeAttr) -> String {
        let owners = &self.facts.owners;
        let size = match attr.kind {
            Kind::CharDevice | Kind::BlockDevice => format!("{:>3}, {:>3}", attr.device.0, attr.device.1),
            _ => attr.size.to_string(),
        };
        format!(
            "{:>9} {:>6} {} {:>3} {:<8} {:<8} {size:>8} {} ",
            self.looked.tree.inode(attr.node),
            attr.blocks.div_ceil(2),
            text::mode(attr.kind, attr.mode),
            attr.nlink,
            owners.user(attr.uid),
            owners.group(attr.gid),
            text::time(attr.mtime),
        )
    }
}

/// Where a path leads that ends in a symlink.
async fn followed(tree: &dyn Tree, path: &[u8]) -> Result<Followed, FsError> {
    match tree::reach(tree, path, Last::Follow).await {
        Ok(Reached::Node(attr)) => Ok(Followed::To(attr.kind)),
        Ok(Reached::Missing { .. }) | Err(FsError::NotADirectory) => Ok(Followed::Nothing),
        Err(FsError::Loop) => Ok(Followed::Loop),
        Err(error) => Err(error),
    }
}
