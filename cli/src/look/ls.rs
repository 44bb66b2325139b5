//! `peelfs ls`: lists an image without mounting it. Reads only the layers that it needs.

use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use lscolors::{Indicator, LsColors};

use super::Stop;
use super::args::{ColorArg, LsArgs};
use super::open::{self, Looked, cannot};
use super::out::{JsonNode, Out};
use super::owners::Owners;
use super::walk::{listed, target};
use crate::failures::Failures;
use crate::text;
use peelfs::host::report::Report;
use peelfs::image::{FsError, Tree};
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr};

pub(crate) fn run(args: &LsArgs) -> Result<(), Report> {
    open::run(&args.image, &args.layer, async |looked| list(args, looked).await)
}

async fn list(args: &LsArgs, looked: Looked) -> Result<(), Stop> {
    let out = Out::new();
    let long = args.long || args.numeric;
    let named = long && !args.numeric && !args.json;
    let mut lister = Lister {
        tree: Arc::clone(&looked.tree),
        args,
        long,
        owners: if named { Owners::of(&looked.tree).await } else { Owners::default() },
        colors: colors(args.color, out.is_terminal()),
        out,
        headings: args.recursive || args.paths.len() > 1,
        printed: false,
    };
    let mut failures = Failures::default();
    // Like ls(1): files first, in one table.
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        match lister.named(&looked, path).await {
            Ok(line) if line.attr.kind == Kind::Directory && !args.directory => dirs.push(line),
            Ok(line) => files.push(line),
            Err(report) => failures.add(report),
        }
    }
    lister.files(&files)?;
    for dir in dirs {
        lister.directory(&dir.name, dir.attr, &mut failures).await?;
    }
    lister.out.flush()?;
    Ok(failures.outcome()?)
}

struct Lister<'a> {
    tree: Arc<dyn Tree>,
    args: &'a LsArgs,
    long: bool,
    owners: Owners,
    colors: Option<LsColors>,
    out: Out,
    headings: bool,
    printed: bool,
}

/// One line of a listing.
struct Line {
    name: Vec<u8>,
    attr: NodeAttr,
    target: Option<Vec<u8>>,
}

impl Lister<'_> {
    /// Lists a path that the user named.
    async fn named(&self, looked: &Looked, path: &[u8]) -> Result<Line, Report> {
        // Like ls(1): follows a symlink to a directory, except in the long form.
        let keep = (self.long || self.args.directory) && !path.ends_with(b"/");
        let attr = looked.named("list", path, if keep { Last::Keep } else { Last::Follow }).await?;
        self.line(path.to_vec(), attr).await.map_err(|error| cannot("list", path, error.into()))
    }

    fn files(&mut self, lines: &[Line]) -> io::Result<()> {
        self.printed = !lines.is_empty();
        self.print(b"", lines)
    }

    /// Lists a directory and, if recursive, its subdirectories.
    async fn directory(&mut self, path: &[u8], attr: NodeAttr, failures: &mut Failures) -> io::Result<()> {
        let mut rest = vec![(path.to_vec(), attr)];
        while let Some((path, attr)) = rest.pop() {
            let lines = match self.lines(&attr).await {
                Ok(lines) => lines,
                Err(error) => {
                    failures.add(cannot("list", &path, error.into()));
                    continue;
                }
            };
            if self.headings && !self.args.json {
                if std::mem::replace(&mut self.printed, true) {
                    writeln!(self.out)?;
                }
                self.out.name(&path)?;
                writeln!(self.out, ":")?;
            }
            self.print(&path, &lines)?;
            if self.args.recursive {
                let inside = lines.into_iter().rev().filter(|line| line.attr.kind == Kind::Directory);
                rest.extend(inside.map(|line| (joined(&path, &line.name), line.attr)));
            }
            self.tree.forget(attr.node);
        }
        Ok(())
    }

    async fn lines(&self, dir: &NodeAttr) -> Result<Vec<Line>, FsError> {
        let listed = listed(&*self.tree, dir.node).await?;
        let mut lines = Vec::with_capacity(listed.len());
        for (name, attr) in listed {
            lines.push(self.line(name, attr).await?);
        }
        Ok(lines)
    }

    async fn line(&self, name: Vec<u8>, attr: NodeAttr) -> Result<Line, FsError> {
        let target = if self.long || self.args.json { target(&*self.tree, &attr).await? } else { None };
        Ok(Line { name, attr, target })
    }

    fn print(&mut self, dir: &[u8], lines: &[Line]) -> io::Result<()> {
        let widths = if self.long && !self.args.json { self.widths(lines) } else { Widths::default() };
        for line in lines {
            if self.args.json {
                let path = if line.name.contains(&b'/') { line.name.clone() } else { joined(dir, &line.name) };
                self.out.json(&JsonNode::new(&*self.tree, &path, &line.attr, line.target.as_deref()))?;
                continue;
            }
            if self.long {
                let before = self.before_name(&line.attr, &widths);
                self.out.write_all(before.as_bytes())?;
            }
            self.name(line)?;
            if let Some(target) = &line.target {
                self.out.write_all(b" -> ")?;
                self.out.name(target)?;
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn name(&mut self, line: &Line) -> io::Result<()> {
        let style = self.colors.as_ref().and_then(|colors| style(colors, line));
        let Some(style) = style else { return self.out.name(&line.name) };
        let style = style.to_nu_ansi_term_style();
        write!(self.out, "{}", style.prefix())?;
        self.out.name(&line.name)?;
        write!(self.out, "{}", style.suffix())
    }

    /// A line of `ls -l` up to the name, with times in UTC.
    fn before_name(&self, attr: &NodeAttr, widths: &Widths) -> String {
        format!(
            "{} {:>links$} {} {} {:>size$} {} ",
            text::mode(attr.kind, attr.mode),
            attr.nlink,
            column(&self.owners.user(attr.uid), self.owners.knows_user(attr.uid), widths.owner),
            column(&self.owners.group(attr.gid), self.owners.knows_group(attr.gid), widths.group),
            self.size(attr),
            text::time(attr.mtime),
            links = widths.links,
            size = widths.size,
        )
    }

    fn size(&self, attr: &NodeAttr) -> String {
        match attr.kind {
            Kind::CharDevice | Kind::BlockDevice => format!("{}, {}", attr.device.0, attr.device.1),
            _ if self.args.human_readable => text::human(attr.size),
            _ => attr.size.to_string(),
        }
    }

    fn widths(&self, lines: &[Line]) -> Widths {
        let mut widths = Widths::default();
        for Line { attr, .. } in lines {
            widths.links = widths.links.max(attr.nlink.to_string().len());
            widths.owner = widths.owner.max(self.owners.user(attr.uid).chars().count());
            widths.group = widths.group.max(self.owners.group(attr.gid).chars().count());
            widths.size = widths.size.max(self.size(attr).len());
        }
        widths
    }
}

/// Like ls(1): names to the left, numbers to the right.
fn column(owner: &str, is_name: bool, width: usize) -> String {
    if is_name { format!("{owner:<width$}") } else { format!("{owner:>width$}") }
}

/// Widths of the columns.
#[derive(Default)]
struct Widths {
    links: usize,
    owner: usize,
    group: usize,
    size: usize,
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The colours of `LS_COLORS` (dir_colors(5)), unless there are to be none.
fn colors(wanted: ColorArg, terminal: bool) -> Option<LsColors> {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let colored = match wanted {
        ColorArg::Always => true,
        ColorArg::Auto => terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        ColorArg::Never => false,
    };
    colored.then(|| LsColors::from_env().unwrap_or_default())
}

fn style(colors: &LsColors, line: &Line) -> Option<lscolors::Style> {
    let mode = line.attr.mode;
    let indicator = match line.attr.kind {
        Kind::Directory => match (mode & 0o1000 != 0, mode & 0o002 != 0) {
            (true, true) => Indicator::StickyAndOtherWritable,
            (true, false) => Indicator::Sticky,
            (false, true) => Indicator::OtherWritable,
            (false, false) => Indicator::Directory,
        },
        Kind::Symlink => Indicator::SymbolicLink,
        Kind::CharDevice => Indicator::CharacterDevice,
        Kind::BlockDevice => Indicator::BlockDevice,
        Kind::Fifo => Indicator::FIFO,
        _ if mode & 0o4000 != 0 => Indicator::Setuid,
        _ if mode & 0o2000 != 0 => Indicator::Setgid,
        _ if mode & 0o111 != 0 => Indicator::ExecutableFile,
        _ => {
            let name = String::from_utf8_lossy(&line.name);
            return colors.style_for_str(&name).copied();
        }
    };
    colors.style_for_indicator(indicator).copied()
}
