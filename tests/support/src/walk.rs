//! A real directory in the model's terms: what an unpacker or a mount shows.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use peelfs_loopback::tar::Mtime;

use super::model::{Node, NodeKind, Seen, is_hidden, join};

/// Everything below `root`, the root included; nothing is followed.
pub fn seen(root: &Path) -> io::Result<BTreeMap<Vec<u8>, Seen>> {
    let mut found: BTreeMap<Vec<u8>, ((u64, u64), u64, Node)> = BTreeMap::new();
    let mut pending: Vec<(Vec<u8>, PathBuf)> = vec![(Vec::new(), root.to_owned())];
    while let Some((name, path)) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path)?;
        let file_type = metadata.file_type();
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let kind = if file_type.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                let (told, real) = (entry.file_type()?, std::fs::symlink_metadata(entry.path())?.file_type());
                assert_eq!(told, real, "the kind of {} as it is listed", entry.path().display());
                pending.push((join(&name, entry.file_name().as_bytes()), entry.path()));
            }
            NodeKind::Dir
        } else if file_type.is_symlink() {
            NodeKind::Symlink(std::fs::read_link(&path)?.into_os_string().into_vec())
        } else if file_type.is_fifo() {
            NodeKind::Fifo
        } else if file_type.is_char_device() {
            NodeKind::CharDevice { major, minor }
        } else if file_type.is_block_device() {
            NodeKind::BlockDevice { major, minor }
        } else {
            let content = std::fs::read(&path)?;
            assert_eq!(content.len() as u64, metadata.len(), "the size of {}", path.display());
            NodeKind::File(content.into())
        };
        let nlink = if file_type.is_dir() { 1 } else { metadata.nlink() };
        let node = Node {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid().into(),
            gid: metadata.gid().into(),
            mtime: Mtime { seconds: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 },
            xattrs: xattrs(&path)?,
            implied: false,
        };
        found.insert(name, ((metadata.dev(), metadata.ino()), nlink, node));
    }
    let mut names: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
    for (name, (inode, ..)) in &found {
        names.entry(*inode).or_default().push(name.clone());
    }
    let seen = |(inode, nlink, node)| Seen { node, names: names[&inode].clone(), nlink };
    Ok(found.into_iter().map(|(name, found)| (name, seen(found))).collect())
}

/// The same without names that are never shown: umoci leaves them in the tree like any others.
pub fn without_hidden(mut real: BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    real.retain(|path, _| !is_hidden(path));
    for seen in real.values_mut() {
        let all = seen.names.len();
        seen.names.retain(|name| !is_hidden(name));
        seen.nlink -= (all - seen.names.len()) as u64;
    }
    real
}

/// What differs between a model and a walk, one line for each.
pub fn differences(model: &BTreeMap<Vec<u8>, Seen>, real: &BTreeMap<Vec<u8>, Seen>, compare: Compare) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, wanted) in model {
        let name = String::from_utf8_lossy(path);
        let Some(got) = real.get(path) else {
            lines.push(format!("`{name}` is missing"));
            continue;
        };
        let (mut one, mut two) = (wanted.node.clone(), got.node.clone());
        if compare == Compare::AsUnpacked && one.kind == NodeKind::Dir {
            one.mtime = two.mtime;
            if one.implied {
                one = Node { kind: NodeKind::Dir, ..two.clone() };
            }
        }
        (one.implied, two.implied) = (false, false);
        if one.kind != two.kind {
            lines.push(format!("`{name}` should be {} and is {}", brief(&one.kind), brief(&two.kind)));
        }
        if metadata(&one) != metadata(&two) {
            lines.push(format!("`{name}` should have {} and has {}", metadata(&one), metadata(&two)));
        }
        if wanted.nlink != got.nlink {
            lines.push(format!("`{name}` should have a link count of {} and has {}", wanted.nlink, got.nlink));
        }
        if wanted.names != got.names {
            lines.push(format!("`{name}` should have {} names and has {}", wanted.names.len(), got.names.len()));
        }
    }
    let surplus = real.keys().filter(|path| !model.contains_key(*path));
    lines.extend(surplus.map(|path| format!("`{}` should not be there", String::from_utf8_lossy(path))));
    lines
}

/// What counts as a difference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compare {
    /// Everything: for mounts.
    Exactly,
    /// Everything but the times of directories, which unpackers change as they go, and the metadata of
    /// directories without an entry, which the specification leaves to them.
    AsUnpacked,
}

fn brief(kind: &NodeKind) -> String {
    match kind {
        NodeKind::File(content) if content.len() > 40 => {
            let digest = peelfs::digest::Digest::of(peelfs::digest::Algorithm::Sha256, content);
            format!("a file of {} bytes with {}", content.len(), digest.short())
        }
        other => format!("{other:?}"),
    }
}

fn metadata(node: &Node) -> String {
    let Node { mode, uid, gid, mtime, .. } = node;
    let escaped = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let xattrs: Vec<String> =
        node.xattrs.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
    format!("{mode:04o} {uid}:{gid} {}+{}ns {xattrs:?}", mtime.seconds, mtime.nanos)
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
