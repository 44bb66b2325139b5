//! `peelfs cp`: copies a tree out of an image with its metadata.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::CpArgs;
use super::look::cat::PIECE;
use super::look::open::{cannot, named};
use super::look::walk::{listed, size_of_all};
use super::progress::Meter;
use super::tree::{Entry, Owners, Target, TargetError, What};
use super::{specs, text};
use peelfs::host::report::{Code, Report};
use peelfs::host::{open, process};
use peelfs::image::{Eagerness, FsError, SeekTo, Tree, Verify, tree};
use peelfs::layer::Kind;
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, NodeAttr, NodeId};

pub(super) fn run(args: &CpArgs) -> Result<(), Report> {
    process::runtime(process::Purpose::Reading)?.block_on(async {
        let opened = open::open_alone(&specs::image_or_layer(&args.image, &args.layer)?).await?;
        let shown = opened.shown(Eagerness::OnDemand, Verify::BeforeShowing);
        let (tree, meter) = (shown.tree(), Meter::start("copying", args.image.opening.quiet.into()));
        meter.watch(shown.image());
        meter.total_will_be(size_of_all(&tree, std::slice::from_ref(&args.from)));
        let from = args.from.as_os_str().as_bytes();
        // Like cp -a: a symlink is copied as such, unless it ends in a slash.
        let last = if from.ends_with(b"/") { Last::Follow } else { Last::Keep };
        let attr = named(&*tree, "copy", from, last).await?;
        let (parent, name) = destination(&args.to, &args.from, attr.kind)?;
        let target = Target::open(&parent, owners(args)).map_err(|error| unfit(&args.to, &parent, &error))?;
        let copy = name.as_ref().map_or(parent.clone(), |name| parent.join(OsStr::from_bytes(name)));
        let copy = (from.len(), copy);
        let mut copier = Copier { tree, target, copy, meter, links: HashMap::new(), skipped_devices: 0 };
        copier.tree(from, name, attr).await?;
        // No bar is over its notes.
        drop(copier.meter);
        report_skipped(&copier.target, copier.skipped_devices);
        Ok(())
    })
}

fn owners(args: &CpArgs) -> Owners {
    let root = rustix::process::geteuid().is_root();
    if args.same_owner || (root && !args.no_same_owner) { Owners::OfTheImage } else { Owners::TheCaller }
}

/// The directory to copy into and the name of the copy there; without a name, the directory itself is the copy, as for
/// the root of the image.
fn destination(to: &Path, from: &Path, kind: Kind) -> Result<(PathBuf, Option<Vec<u8>>), Report> {
    if to.is_dir() {
        // `/`, `.` and `..` have no name for the copy.
        let name = from.file_name().filter(|_| !from.as_os_str().as_bytes().ends_with(b"/."));
        return Ok((to.to_owned(), name.map(|name| name.as_bytes().to_vec())));
    }
    let shown = to.display();
    // Do not replace a symlink or a device by accident.
    if to.symlink_metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Err(Report::usage(format!("cannot copy to `{shown}`: it exists and is not a regular file"))
            .hint("remove it first, or choose another name"));
    }
    if to.as_os_str().as_bytes().ends_with(b"/") && kind != Kind::Directory {
        return Err(Report::new(Code::NotFound, format!("cannot copy to `{shown}`: no such directory"))
            .hint(format!("make it with `mkdir -p {shown}`")));
    }
    let Some(name) = to.file_name() else {
        return Err(Report::new(Code::NotFound, format!("cannot copy to `{shown}`: no such directory")));
    };
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_owned(), Some(name.as_bytes().to_vec())))
}

struct Copier {
    tree: Arc<dyn Tree>,
    target: Target,
    /// The length of the path that is copied, and where the copy is.
    copy: (usize, PathBuf),
    meter: Meter,
    /// Where the first name of an inode with several was copied to.
    links: HashMap<NodeId, Vec<Vec<u8>>>,
    skipped_devices: u64,
}

/// A directory in progress, and the metadata that it gets at the end.
struct Open {
    /// Length of its path in the image.
    path: usize,
    entry: Entry,
    rest: std::vec::IntoIter<(Vec<u8>, NodeAttr)>,
}

impl Copier {
    /// Copies `path` and everything below it to `name`.
    async fn tree(&mut self, path: &[u8], name: Option<Vec<u8>>, attr: NodeAttr) -> Result<(), Report> {
        let mut path = path.to_vec();
        let mut open = Vec::new();
        match name {
            Some(name) if attr.kind != Kind::Directory => {
                let device = matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice);
                self.leaf(&path, &name, &attr).await?;
                // Devices in a tree may be skipped; a device named by the user may not.
                if device && self.skipped_devices > 0 {
                    let cause = std::io::Error::from(rustix::io::Errno::PERM);
                    return Err(
                        failed(shown(&path), Report::new(Code::Failure, cause)).hint("only root can create devices")
                    );
                }
                return Ok(());
            }
            Some(name) => {
                self.target.enter(&name).map_err(|error| self.target_failed(&path, &error))?;
            }
            None => {}
        }
        open.push(self.opened(&path, &attr).await?);
        while let Some(dir) = open.last_mut() {
            path.truncate(dir.path);
            let Some((name, attr)) = dir.rest.next() else {
                let done = self.target.leave(&dir.entry);
                done.map_err(|error| self.target_failed(&path, &error))?;
                open.pop();
                continue;
            };
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if attr.kind == Kind::Directory {
                self.target.enter(&name).map_err(|error| self.target_failed(&path, &error))?;
                let inner = self.opened(&path, &attr).await?;
                open.push(inner);
            } else {
                self.leaf(&path, &name, &attr).await?;
            }
        }
        Ok(())
    }

    async fn opened(&self, path: &[u8], attr: &NodeAttr) -> Result<Open, Report> {
        let listed = listed(&*self.tree, attr.node).await.map_err(|error| failed(shown(path), error.into()))?;
        let entry = self.entry(path, attr).await?;
        Ok(Open { path: path.len(), entry, rest: listed.into_iter() })
    }

    /// Copies anything but a directory.
    async fn leaf(&mut self, path: &[u8], name: &[u8], attr: &NodeAttr) -> Result<(), Report> {
        if attr.nlink > 1
            && let Some(first) = self.links.get(&attr.node)
        {
            let linked = self.target.link(first, name);
            return linked.map_err(|error| self.target_failed(path, &error));
        }
        let entry = self.entry(path, attr).await?;
        let what = match attr.kind {
            Kind::Symlink => {
                let target = tree::awaited(&*self.tree, |tree| tree.symlink_target(attr.node)).await;
                What::Symlink(target.map_err(|error| failed(shown(path), error.into()))?)
            }
            Kind::CharDevice => What::CharDevice(attr.device),
            Kind::BlockDevice => What::BlockDevice(attr.device),
            Kind::Fifo => What::Fifo,
            Kind::File | Kind::Directory | Kind::Whiteout | Kind::LowerLink => {
                let mut new =
                    self.target.new_file(name, attr.size).map_err(|error| self.target_failed(path, &error))?;
                self.fill(path, attr, &mut new).await?;
                What::File(new)
            }
        };
        match self.target.put(name, what, &entry) {
            Ok(()) => {}
            Err(TargetError::NoDevice) => {
                self.skipped_devices += 1;
                return Ok(());
            }
            Err(error) => return Err(self.target_failed(path, &error)),
        }
        if attr.nlink > 1 {
            self.links.insert(attr.node, self.target.place(name));
        }
        Ok(())
    }

    /// Writes a file's bytes; holes stay holes.
    async fn fill(&self, path: &[u8], attr: &NodeAttr, new: &mut super::tree::NewFile) -> Result<(), Report> {
        let unreadable = |error: FsError| failed(shown(path), error.into());
        let (mut at, mut copied) = (FileOffset(0), 0);
        while let Some(start) = self.seek(attr, at, SeekTo::Data).await.map_err(unreadable)? {
            let end = self.seek(attr, start, SeekTo::Hole).await.map_err(unreadable)?;
            let end = end.map_or(attr.size, |end| end.0);
            at = start;
            while at.0 < end {
                let length = usize::try_from(end - at.0).unwrap_or(PIECE).min(PIECE);
                let piece = Arc::clone(&self.tree).read(attr.node, at, length).await.map_err(unreadable)?;
                new.write(at.0, &piece).map_err(|error| self.target_failed(path, &error))?;
                self.meter.add(piece.len() as u64);
                copied += piece.len() as u64;
                at = at + piece.len() as u64;
            }
        }
        // Its holes need no copying.
        self.meter.add(attr.size.saturating_sub(copied));
        Ok(())
    }

    async fn seek(&self, attr: &NodeAttr, at: FileOffset, to: SeekTo) -> Result<Option<FileOffset>, FsError> {
        tree::awaited(&*self.tree, |tree| tree.seek(attr.node, at, to)).await
    }

    async fn entry(&self, path: &[u8], attr: &NodeAttr) -> Result<Entry, Report> {
        let xattrs = tree::awaited(&*self.tree, |tree| {
            let mut xattrs = Vec::new();
            for name in tree.xattr_names(attr.node)? {
                if let Some(value) = tree.xattr(attr.node, &name)? {
                    xattrs.push((name, value));
                }
            }
            Ok(xattrs)
        });
        Ok(Entry {
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            mtime: (attr.mtime, attr.mtime_ns),
            xattrs: xattrs.await.map_err(|error| failed(shown(path), error.into()))?,
        })
    }

    fn target_failed(&self, path: &[u8], error: &TargetError) -> Report {
        let (before, copy) = &self.copy;
        let below = path.get(*before..).unwrap_or_default();
        let below = &below[below.iter().take_while(|byte| **byte == b'/').count()..];
        let to = if below.is_empty() { copy.clone() } else { copy.join(shown(below)) };
        let (from, to) = (shown(path).display(), to.display());
        let report =
            Report::new(Code::Failure, format!("cannot copy `{from}` to `{to}`: {}", peelfs::image::chain(error)));
        match error {
            TargetError::Owner { .. } => report.hint("copy with `--no-same-owner` to own the copies yourself"),
            TargetError::Io { cause, .. }
                if matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                report.hint("make room on that disk, or copy to another one; what was copied before is complete")
            }
            _ => report,
        }
    }
}

fn report_skipped(target: &Target, devices: u64) {
    let skipped = target.skipped();
    let notes = [
        (devices, "", "device", ", which only root can create"),
        (skipped.xattrs, "", "extended attribute", ", which this user or file system cannot set"),
        (skipped.set_ids, "the set-id bits of ", "file", ", as the copy has another owner"),
    ];
    for (count, before, what, why) in notes.into_iter().filter(|(count, ..)| *count > 0) {
        eprintln!("note: skipped {before}{}{why}", text::count(count, what));
    }
}

fn failed(path: &Path, cause: Report) -> Report {
    cannot("copy", path.as_os_str().as_bytes(), cause)
}

fn unfit(to: &Path, parent: &Path, error: &TargetError) -> Report {
    let (to, parent) = (to.display(), parent.display());
    match error {
        TargetError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
            Report::new(Code::NotFound, format!("cannot copy to `{to}`: there is no directory `{parent}`"))
                .hint(format!("make it with `mkdir -p {parent}`"))
        }
        error => Report::new(Code::Failure, format!("cannot copy to `{to}`: {}", peelfs::image::chain(error))),
    }
}

fn shown(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}
