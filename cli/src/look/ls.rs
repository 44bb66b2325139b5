//! `peelfs ls`: lists an image without mounting it. Reads only the layers that it needs.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use serde::Serialize;

use super::args::LsArgs;
use super::{specs, text};
use peelfs::host::report::Report;
use peelfs::host::{open, process};
use peelfs::image::{Eagerness, FsError, Tree, Verify, tree};
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr};

pub(super) fn run(args: &LsArgs) -> Result<(), Report> {
    process::runtime(process::Purpose::Reading)?.block_on(async {
        let opened = open::open_alone(&specs::image_or_layer(&args.image, &args.layer)?).await?;
        let tree = opened.shown(Eagerness::OnDemand, Verify::BeforeShowing).tree();
        let mut lister = Lister {
            tree,
            args,
            out: BufWriter::new(io::stdout().lock()),
            headings: args.recursive || args.paths.len() > 1,
            printed: false,
        };
        let mut failed = None;
        let mut note = |path: &[u8], error: FsError| {
            let report = Report::from(error);
            let message = format!("cannot list `{}`: {}", text::printable(path), report.message);
            failed.get_or_insert(Report { message, ..report });
        };
        // Like ls(1): files first, in one table.
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
            match lister.named(path).await {
                Ok(line) if line.attr.kind == Kind::Directory => dirs.push(line),
                Ok(line) => files.push(line),
                Err(error) => note(path, error),
            }
        }
        if let Err(error) = lister.files(&files) {
            return text::output_ended(&error);
        }
        for dir in dirs {
            match lister.directory(&dir.name, dir.attr).await {
                Ok(()) => {}
                Err(Trouble::Output(error)) => return text::output_ended(&error),
                Err(Trouble::Image(error)) => note(&dir.name, error),
            }
        }
        match lister.out.flush() {
            Ok(()) => failed.map_or(Ok(()), Err),
            Err(error) => super::text::output_ended(&error),
        }
    })
}

struct Lister<'a> {
    tree: Arc<dyn Tree>,
    args: &'a LsArgs,
    out: BufWriter<io::StdoutLock<'static>>,
    headings: bool,
    printed: bool,
}

/// One line of a listing.
struct Line {
    name: Vec<u8>,
    attr: NodeAttr,
    target: Option<Vec<u8>>,
}

enum Trouble {
    Image(FsError),
    Output(io::Error),
}

impl From<FsError> for Trouble {
    fn from(error: FsError) -> Self {
        Self::Image(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Lister<'_> {
    /// Lists a path that the user named.
    async fn named(&self, path: &[u8]) -> Result<Line, FsError> {
        // Like ls(1): follows a symlink to a directory, except in the long form.
        let last = if self.args.long && !path.ends_with(b"/") { Last::Keep } else { Last::Follow };
        let attr = tree::walk(&*self.tree, path, last).await?;
        self.line(path.to_vec(), attr).await
    }

    fn files(&mut self, lines: &[Line]) -> io::Result<()> {
        self.printed = !lines.is_empty();
        self.print(b"", lines)
    }

    /// Lists a directory and, if recursive, its subdirectories.
    async fn directory(&mut self, path: &[u8], attr: NodeAttr) -> Result<(), Trouble> {
        let mut rest = vec![(path.to_vec(), attr)];
        while let Some((path, attr)) = rest.pop() {
            let lines = self.lines(&attr).await?;
            if self.headings && !self.args.json {
                if std::mem::replace(&mut self.printed, true) {
                    writeln!(self.out)?;
                }
                writeln!(self.out, "{}:", text::printable(&path))?;
            }
            self.print(&path, &lines)?;
            if self.args.recursive {
                let inside = lines.into_iter().rev().filter(|line| line.attr.kind == Kind::Directory);
                rest.extend(inside.map(|line| (joined(&path, &line.name), line.attr)));
            }
        }
        Ok(())
    }

    async fn lines(&self, dir: &NodeAttr) -> Result<Vec<Line>, FsError> {
        let listed = tree::awaited(&*self.tree, |tree| {
            let mut listed = Vec::new();
            tree.list_with_attrs(dir.node, 0, &mut |entry, attr| {
                listed.push((entry.name.to_vec(), *attr));
                ControlFlow::Continue(())
            })?;
            Ok(listed)
        })
        .await?;
        let mut lines = Vec::with_capacity(listed.len());
        for (name, attr) in listed {
            lines.push(self.line(name, attr).await?);
        }
        Ok(lines)
    }

    async fn line(&self, name: Vec<u8>, attr: NodeAttr) -> Result<Line, FsError> {
        let target = match attr.kind {
            Kind::Symlink => Some(tree::awaited(&*self.tree, |tree| tree.symlink_target(attr.node)).await?),
            _ => None,
        };
        Ok(Line { name, attr, target })
    }

    fn print(&mut self, dir: &[u8], lines: &[Line]) -> io::Result<()> {
        if self.args.json {
            for line in lines {
                serde_json::to_writer(&mut self.out, &json(dir, line)).map_err(io::Error::from)?;
                writeln!(self.out)?;
            }
        } else if self.args.long {
            let widths = Widths::of(lines);
            for line in lines {
                writeln!(self.out, "{}", long(line, &widths))?;
            }
        } else {
            for line in lines {
                writeln!(self.out, "{}", text::printable(&line.name))?;
            }
        }
        Ok(())
    }
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Widths of the columns.
#[derive(Default)]
struct Widths {
    links: usize,
    owner: usize,
    group: usize,
    size: usize,
}

impl Widths {
    fn of(lines: &[Line]) -> Self {
        let mut widths = Self::default();
        for line in lines {
            let attr = &line.attr;
            widths.links = widths.links.max(attr.nlink.to_string().len());
            widths.owner = widths.owner.max(attr.uid.to_string().len());
            widths.group = widths.group.max(attr.gid.to_string().len());
            widths.size = widths.size.max(size(attr).len());
        }
        widths
    }
}

/// One line of `ls -ln`, in UTC; user names are not resolved, as they depend on the image.
fn long(line: &Line, widths: &Widths) -> String {
    let attr = &line.attr;
    let mut text = format!(
        "{} {:>links$} {:>owner$} {:>group$} {:>size$} {} {}",
        text::mode(attr.kind, attr.mode),
        attr.nlink,
        attr.uid,
        attr.gid,
        size(attr),
        text::time(attr.mtime),
        text::printable(&line.name),
        links = widths.links,
        owner = widths.owner,
        group = widths.group,
        size = widths.size,
    );
    if let Some(target) = &line.target {
        text.push_str(" -> ");
        text.push_str(&text::printable(target));
    }
    text
}

fn size(attr: &NodeAttr) -> String {
    match attr.kind {
        Kind::CharDevice | Kind::BlockDevice => format!("{}, {}", attr.device.0, attr.device.1),
        _ => attr.size.to_string(),
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonLine {
    path: String,
    /// The path's bytes in hexadecimal, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    mtime_ns: u32,
    nlink: u32,
    inode: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u32; 2]>,
}

fn json(dir: &[u8], line: &Line) -> JsonLine {
    let attr = &line.attr;
    let path = if line.name.contains(&b'/') { line.name.clone() } else { joined(dir, &line.name) };
    let is_device = matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice);
    JsonLine {
        path_hex: std::str::from_utf8(&path).is_err().then(|| text::hex(&path)),
        path: String::from_utf8_lossy(&path).into_owned(),
        kind: text::kind(attr.kind),
        mode: format!("{:04o}", attr.mode),
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        mtime: attr.mtime,
        mtime_ns: attr.mtime_ns,
        nlink: attr.nlink,
        inode: attr.node.get(),
        target: line.target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned()),
        device: is_device.then_some([attr.device.0, attr.device.1]),
    }
}
