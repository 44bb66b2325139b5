//! Builders and renderers for the tests of this module.

#![allow(clippy::unwrap_used)]

use crate::digest::{Algorithm, Digest};
use crate::offsets::FileOffset;

use super::entry::{EntryId, Extent, Flags, Kind};
use super::index::{IndexError, LayerIndex};
use super::proof::{IndexedLayer, Proof};
use super::tar::{TarEntry, TarKind, TarSink, TarWalker, WalkError};
use super::tree::{LayerTree, TreeError};
use super::write::write_index;

/// Builds a tar block by block.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// A ustar header, changed by `edit` before its checksum is computed.
    pub(super) fn header(mut self, kind: u8, path: &[u8], size: u64, edit: impl FnOnce(&mut [u8])) -> Self {
        let mut block = [0_u8; 512];
        block[..path.len()].copy_from_slice(path);
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000001\0");
        block[116..124].copy_from_slice(b"0000002\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"00000000144\0");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        edit(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn padded(self, bytes: &[u8]) -> Self {
        let mut this = self.raw(bytes);
        this.0.resize(this.0.len().next_multiple_of(512), 0);
        this
    }

    pub(super) fn file(self, path: &str, body: &[u8]) -> Self {
        self.header(b'0', path.as_bytes(), body.len() as u64, |_| {}).padded(body)
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.header(b'5', path.as_bytes(), 0, |block| block[100..108].copy_from_slice(b"0000700\0"))
    }

    pub(super) fn link(self, kind: u8, path: &str, target: &str) -> Self {
        self.header(kind, path.as_bytes(), 0, |block| {
            block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(b'2', path, target)
    }

    pub(super) fn hard(self, path: &str, target: &str) -> Self {
        self.link(b'1', path, target)
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', records)
    }

    pub(super) fn extended(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.header(kind, b"PaxHeaders/x", body.len() as u64, |_| {}).padded(&body)
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

/// One line per entry of a walk.
#[derive(Default)]
pub(super) struct Listing(pub(super) Vec<String>);

impl TarSink for Listing {
    type Error = TreeError;

    fn accept(&mut self, entry: &TarEntry<'_>) -> Result<(), TreeError> {
        let what = match &entry.kind {
            TarKind::File { size, data, extents: None } => format!("file {size}@{data}"),
            TarKind::File { size, extents: Some(runs), .. } => {
                let runs: Vec<_> = runs.iter().map(|run| format!("{}+{}@{}", run.file, run.len, run.decoded)).collect();
                format!("sparse {size} [{}]", runs.join(" "))
            }
            TarKind::Directory => "dir".into(),
            TarKind::Symlink(target) => format!("symlink {}", target.escape_ascii()),
            TarKind::HardLink(target) => format!("hard {}", target.escape_ascii()),
            TarKind::CharDevice(device) => format!("char {}:{}", device.major, device.minor),
            TarKind::BlockDevice(device) => format!("block {}:{}", device.major, device.minor),
            TarKind::Fifo => "fifo".into(),
        };
        let mut line = format!(
            "{} {what} {:o} {}:{} {}.{:09}",
            entry.path.escape_ascii(),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime.seconds,
            entry.mtime.nanos
        );
        for xattr in entry.xattrs {
            line += &format!(" {}={}", xattr.name.escape_ascii(), xattr.value.escape_ascii());
        }
        self.0.push(line);
        Ok(())
    }
}

/// Walks a whole tar.
pub(super) fn walk<S>(tar: &[u8], sink: &mut S) -> Result<super::tar::TarSummary, WalkError<S::Error>>
where
    S: TarSink<Error = TreeError>,
{
    let mut walker = TarWalker::new();
    walker.push(tar, sink)?;
    Ok(walker.finish()?)
}

pub(super) fn list(tar: &[u8]) -> Result<Vec<String>, WalkError<TreeError>> {
    let mut listing = Listing::default();
    walk(tar, &mut listing)?;
    Ok(listing.0)
}

pub(super) fn tree(tar: &[u8]) -> Result<LayerTree, WalkError<TreeError>> {
    let mut tree = LayerTree::default();
    walk(tar, &mut tree)?;
    Ok(tree)
}

pub(super) fn layer() -> IndexedLayer {
    IndexedLayer {
        blob: Digest::of(Algorithm::Sha256, b"blob"),
        blob_size: 1 << 50,
        diff_id: Digest::of(Algorithm::Sha512, b"diff"),
        decoded_size: u64::MAX / 2,
    }
}

pub(super) fn written(tree: &LayerTree) -> Vec<u8> {
    let mut out = Vec::new();
    write_index(tree, &[], &[], &layer(), &Proof::Built, &mut out).unwrap();
    out
}

/// The tree as text, one entry per line, sorted, with all metadata.
pub(super) fn render(tree: &LayerTree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stack = vec![EntryId::ROOT];
    while let Some(id) = stack.pop() {
        let entry = tree.entry(id);
        let xattrs = tree.xattrs(id).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let target = tree.symlink_target(id).or_else(|| tree.link_target(id)).map(<[u8]>::to_vec);
        let runs = tree.extents(id, FileOffset(0)..FileOffset(u64::MAX));
        lines.push(line(&tree.path(id), id, &entry, target, xattrs, &runs));
        stack.extend(tree.children(id));
    }
    lines.sort();
    lines
}

/// The same for a written index.
pub(super) fn render_index(index: &LayerIndex) -> Result<Vec<String>, IndexError> {
    let mut lines = Vec::new();
    let mut stack = vec![EntryId::ROOT];
    while let Some(id) = stack.pop() {
        if lines.len() > 10_000 {
            return Err(IndexError::Malformed { what: "the test's patience" });
        }
        let entry = index.entry(id)?;
        let mut xattrs = Vec::new();
        for name in index.xattr_names(id)? {
            let value = index.xattr(id, &name)?.unwrap();
            xattrs.push((name, value));
        }
        let target = index.symlink_target(id)?.or(index.link_target(id)?).map(<[u8]>::to_vec);
        let runs = index.extents(id, FileOffset(0)..FileOffset(u64::MAX))?;
        lines.push(line(&index.path(id)?, id, &entry, target, xattrs, &runs));
        for child in index.children(id)? {
            let child = child?;
            index.child(id, index.name(child)?)?;
            stack.push(child);
        }
    }
    for list in [index.implied_roots().collect::<Vec<_>>(), index.lower_links().collect()] {
        list.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    lines.sort();
    Ok(lines)
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn line(
    path: &[u8],
    id: EntryId,
    entry: &super::entry::Entry,
    target: Option<Vec<u8>>,
    xattrs: Pairs,
    runs: &[Extent],
) -> String {
    let runs: Vec<_> = runs
        .iter()
        .map(|run| format!("{}..{}={:?}", run.file.start, run.file.end, run.decoded.map(|at| at.0)))
        .collect();
    format!(
        "/{} #{id} {:?} {:?} {:o} {}:{} {:?} size {} {:?} inode {} nlink {} {:?} {xattrs:?} {runs:?}",
        path.escape_ascii(),
        entry.kind(),
        entry.flags(),
        entry.mode(),
        entry.uid(),
        entry.gid(),
        entry.mtime(),
        entry.size(),
        entry.device(),
        entry.inode(),
        entry.nlink(),
        target.map(|target| target.escape_ascii().to_string()),
    )
}

/// The tree in short: path, kind, and flags except `IMPLIED` on the root.
pub(super) fn short(tree: &LayerTree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stack: Vec<EntryId> = tree.children(EntryId::ROOT).collect();
    while let Some(id) = stack.pop() {
        let entry = tree.entry(id);
        let mut text = tree.path(id).escape_ascii().to_string();
        text += match entry.kind() {
            Kind::Directory => "/",
            Kind::File => "",
            Kind::Symlink => "@",
            Kind::CharDevice => "%",
            Kind::BlockDevice => "#",
            Kind::Fifo => "|",
            Kind::LowerLink => "=",
            Kind::Whiteout => "!",
        };
        if let Some(target) = tree.symlink_target(id).or_else(|| tree.link_target(id)) {
            text += &format!("{}", target.escape_ascii());
        }
        let path = entry.is(Flags::WHITEOUT_PATH);
        let flags = [
            (if path { "path" } else { "implied" }, Flags::IMPLIED),
            ("opaque", Flags::OPAQUE),
            ("hides", Flags::HIDES_LOWER),
        ];
        for (name, flag) in flags {
            if entry.is(flag) {
                text += &format!(" {name}");
            }
        }
        lines.push(text);
        stack.extend(tree.children(id));
    }
    lines.sort();
    lines
}

/// A tar with every feature at once.
pub(super) fn everything() -> Vec<u8> {
    let gnu = |block: &mut [u8]| block[257..265].copy_from_slice(b"ustar  \0");
    Tar::default()
        .extended(b'g', &[("comment", b"0123456789abcdef")])
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", &[b'p'; 700])
        .file("etc/empty", b"")
        .pax(&[
            ("path", b"etc/\xff-name"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.b", b"\0\n="),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ])
        .file("short", b"body")
        .symlink("lib", "usr/lib")
        .file("lib/a.so", b"elf")
        .hard("etc/shadow", "etc/passwd")
        .hard("lower", "bin/outside")
        .header(b'L', b"././@LongLink", 201, gnu)
        .padded(&[&[b'n'; 200][..], b"\0"].concat())
        .header(b'K', b"././@LongLink", 301, gnu)
        .padded(&[&[b't'; 300][..], b"\0"].concat())
        .symlink("short", "short")
        .header(b'3', b"dev/null", 0, |block| {
            block[329..337].copy_from_slice(b"0000001\0");
            block[337..345].copy_from_slice(b"0000003\0");
        })
        .header(b'6', b"fifo", 0, |_| {})
        .header(b'S', b"old-sparse", 8, |block| {
            gnu(block);
            for (pair, text) in [b"00000000002\x0000000000005\0", b"00000000022\x0000000000003\0"].iter().enumerate() {
                block[386 + pair * 24..][..24].copy_from_slice(&text[..]);
            }
            block[482] = 1;
            block[483..495].copy_from_slice(b"00000000100\0");
        })
        .padded(b"00000000100\x0000000000000\0")
        .padded(b"datadata")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"new-sparse"),
            ("GNU.sparse.realsize", b"5000"),
        ])
        .header(b'0', b"GNUSparseFile.0/x", 512 + 4, |_| {})
        .padded(b"1\n4000\n4\n")
        .padded(b"data")
        .file("gone/.wh.deleted", b"")
        .file("var/.wh..wh..opq", b"")
        .file("var/cache/x", b"x")
        .header(b'Z', b"unknown", 3, |_| {})
        .padded(b"???")
        .file("last", b"end")
        .end()
}

/// A small generator for reproducible tests.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }
}
