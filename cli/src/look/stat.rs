//! `peelfs stat`: the metadata of a path, as stat(1) prints it, with the layer that it comes from and its extended
//! attributes.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

use super::Stop;
use super::args::StatArgs;
use super::open::{self, Looked, cannot};
use super::out::{JsonNode, Out, json_name};
use super::owners::Owners;
use super::walk::target;
use crate::failures::Failures;
use crate::text;
use peelfs::digest::Digest;
use peelfs::host::report::Report;
use peelfs::image::{FsError, tree};
use peelfs::layer::Kind;
use peelfs::overlay::{Last, NodeAttr};

pub(crate) fn run(args: &StatArgs) -> Result<(), Report> {
    open::run(&args.image, &args.layer, async |looked| stat(args, looked).await)
}

async fn stat(args: &StatArgs, looked: Looked) -> Result<(), Stop> {
    let owners = if args.needs_owners() { Owners::of(&looked.tree).await } else { Owners::default() };
    let (mut out, mut failures) = (Out::new(), Failures::default());
    for path in args.paths.iter().map(|path| path.as_os_str().as_bytes()) {
        let last = if args.dereference || path.ends_with(b"/") { Last::Follow } else { Last::Keep };
        let found = match looked.named("look at", path, last).await {
            Ok(attr) => Found::of(&looked, &owners, path, attr).await,
            Err(report) => {
                failures.add(report);
                continue;
            }
        };
        match found {
            Ok(found) if args.json => out.json(&found.json(&looked))?,
            Ok(found) => match &args.format {
                Some(format) => {
                    found.formatted(format.as_os_str().as_bytes(), &mut out)?;
                    writeln!(out)?;
                }
                None => found.print(&mut out)?,
            },
            Err(error) => failures.add(cannot("look at", path, error.into())),
        }
    }
    out.flush()?;
    Ok(failures.outcome()?)
}

/// A path with all that is known of it.
struct Found<'a> {
    path: &'a [u8],
    attr: NodeAttr,
    inode: u64,
    changed: (i64, u32),
    user: String,
    group: String,
    target: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Number and digest.
    layer: Option<(u32, &'a Digest)>,
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonStat<'a> {
    #[serde(flatten)]
    node: JsonNode,
    user: &'a str,
    group: &'a str,
    blocks: u64,
    ctime: i64,
    ctime_ns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_digest: Option<&'a Digest>,
    xattrs: Vec<JsonXattr>,
}

#[derive(Serialize)]
struct JsonXattr {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
}

impl<'a> Found<'a> {
    async fn of(looked: &'a Looked, owners: &Owners, path: &'a [u8], attr: NodeAttr) -> Result<Self, FsError> {
        let tree = &*looked.tree;
        let xattrs = tree::awaited(tree, |tree| {
            let mut xattrs = Vec::new();
            for name in tree.xattr_names(attr.node)? {
                xattrs.extend(tree.xattr(attr.node, &name)?.map(|value| (name, value)));
            }
            Ok(xattrs)
        });
        let changed = tree.changed(&attr);
        let layers = &looked.opened.plan.layers;
        let layer = attr.node.parts().and_then(|(layer, _)| {
            let blob = &layers.get(usize::from(layer.0))?.blob;
            Some((u32::from(layer.0) + 1, &blob.digest))
        });
        Ok(Self {
            path,
            inode: tree.inode(attr.node),
            changed: (changed.seconds, changed.nanos),
            user: owners.user(attr.uid).into_owned(),
            group: owners.group(attr.gid).into_owned(),
            target: target(tree, &attr).await?,
            xattrs: xattrs.await?,
            layer,
            attr,
        })
    }

    fn json(&'a self, looked: &Looked) -> JsonStat<'a> {
        let xattrs = self.xattrs.iter().map(|(name, value)| {
            let ((name, name_hex), (value, value_hex)) = (json_name(name), json_name(value));
            JsonXattr { name, name_hex, value, value_hex }
        });
        JsonStat {
            node: JsonNode::new(&*looked.tree, self.path, &self.attr, self.target.as_deref()),
            user: &self.user,
            group: &self.group,
            blocks: self.attr.blocks,
            ctime: self.changed.0,
            ctime_ns: self.changed.1,
            layer: self.layer.map(|(number, _)| number),
            layer_digest: self.layer.map(|(_, digest)| digest),
            xattrs: xattrs.collect(),
        }
    }

    fn print(&self, out: &mut Out) -> std::io::Result<()> {
        self.formatted(b"  File: ", out)?;
        out.name(self.path)?;
        if let Some(target) = &self.target {
            write!(out, " -> ")?;
            out.name(target)?;
        }
        let device = matches!(self.attr.kind, Kind::CharDevice | Kind::BlockDevice);
        let (major, minor) = self.attr.device;
        let device = if device { format!("     Device type: {major},{minor}") } else { String::new() };
        writeln!(out)?;
        writeln!(
            out,
            "  Size: {:<15} Blocks: {:<10} IO Block: {BLOCK:<6} {}",
            self.attr.size,
            self.attr.blocks,
            self.kind()
        )?;
        writeln!(out, " Inode: {:<15} Links: {}{device}", self.inode, self.attr.nlink)?;
        writeln!(
            out,
            "Access: ({:04o}/{})  Uid: ({:>5}/{:>8})   Gid: ({:>5}/{:>8})",
            self.attr.mode,
            text::mode(self.attr.kind, self.attr.mode),
            self.attr.uid,
            self.user,
            self.attr.gid,
            self.group,
        )?;
        let modified = exact((self.attr.mtime, self.attr.mtime_ns));
        writeln!(out, "Access: {modified}\nModify: {modified}\nChange: {}\n Birth: -", exact(self.changed))?;
        if let Some((number, digest)) = self.layer {
            writeln!(out, " Layer: {number} {digest}")?;
        }
        for (name, value) in &self.xattrs {
            writeln!(out, " Xattr: {}=\"{}\"", text::printable(name), value.escape_ascii())?;
        }
        Ok(())
    }

    fn kind(&self) -> &'static str {
        match self.attr.kind {
            Kind::Directory => "directory",
            Kind::Symlink => "symbolic link",
            Kind::CharDevice => "character special file",
            Kind::BlockDevice => "block special file",
            Kind::Fifo => "fifo",
            _ if self.attr.size == 0 => "regular empty file",
            _ => "regular file",
        }
    }

    /// Type and mode as in `st_mode` (inode(7)).
    fn raw_mode(&self) -> u32 {
        let kind = match self.attr.kind {
            Kind::Directory => 0o040_000,
            Kind::Symlink => 0o120_000,
            Kind::CharDevice => 0o020_000,
            Kind::BlockDevice => 0o060_000,
            Kind::Fifo => 0o010_000,
            _ => 0o100_000,
        };
        kind | u32::from(self.attr.mode)
    }

    /// Prints by a format of `stat -c`; unknown letters are printed as `?`, as there.
    fn formatted(&self, format: &[u8], out: &mut Out) -> std::io::Result<()> {
        let attr = &self.attr;
        let mut bytes = format.iter();
        while let Some(byte) = bytes.next() {
            if *byte != b'%' {
                out.write_all(&[*byte])?;
                continue;
            }
            match bytes.next() {
                Some(b'n') => out.name(self.path)?,
                Some(b'N') => {
                    write!(out, "'")?;
                    out.name(self.path)?;
                    write!(out, "'")?;
                    if let Some(target) = &self.target {
                        write!(out, " -> '")?;
                        out.name(target)?;
                        write!(out, "'")?;
                    }
                }
                Some(b's') => write!(out, "{}", attr.size)?,
                Some(b'b') => write!(out, "{}", attr.blocks)?,
                Some(b'B') => write!(out, "512")?,
                Some(b'o') => write!(out, "{BLOCK}")?,
                Some(b'a') => write!(out, "{:o}", attr.mode)?,
                Some(b'A') => write!(out, "{}", text::mode(attr.kind, attr.mode))?,
                Some(b'f') => write!(out, "{:x}", self.raw_mode())?,
                Some(b'F') => write!(out, "{}", self.kind())?,
                Some(b'u') => write!(out, "{}", attr.uid)?,
                Some(b'U') => write!(out, "{}", self.user)?,
                Some(b'g') => write!(out, "{}", attr.gid)?,
                Some(b'G') => write!(out, "{}", self.group)?,
                Some(b'h') => write!(out, "{}", attr.nlink)?,
                Some(b'i') => write!(out, "{}", self.inode)?,
                Some(b't') => write!(out, "{:x}", attr.device.0)?,
                Some(b'T') => write!(out, "{:x}", attr.device.1)?,
                Some(b'X' | b'Y') => write!(out, "{}", attr.mtime)?,
                Some(b'Z') => write!(out, "{}", self.changed.0)?,
                Some(b'x' | b'y') => write!(out, "{}", exact((attr.mtime, attr.mtime_ns)))?,
                Some(b'z') => write!(out, "{}", exact(self.changed))?,
                Some(b'w') => write!(out, "-")?,
                Some(b'W') => write!(out, "0")?,
                Some(b'%') | None => write!(out, "%")?,
                Some(_) => write!(out, "?")?,
            }
        }
        Ok(())
    }
}

/// A time in UTC with nanoseconds, as stat(1) prints it.
fn exact((seconds, nanos): (i64, u32)) -> String {
    format!("{}.{nanos:09} +0000", text::time(seconds))
}

/// The size of blocks for I/O that a mount has.
const BLOCK: u32 = 4096;
