//! A layer that is one file: the blob itself, under the name that a manifest gives it.
//!
//! Its blob is its decoded stream, so only the digests of its spans come from reading it: they are in an index of their own
//! kind ([`Stream::Blob`](super::Stream)), which knows the file by no name. Name and metadata are from the manifest, and are
//! known before any byte of the blob is.

use std::fmt;

use crate::digest::Digest;
use crate::offsets::DecodedOffset;

use super::entry::{EntryId, Timestamp};
use super::index::LayerIndex;
use super::proof::{IndexedLayer, Proof, Stream};
use super::tar::{TarEntry, TarKind};
use super::tree::{LayerTree, Limits, TreeError, clean, is_hidden};
use super::write::write_index_of;

/// The name and metadata of a file that is all of a layer.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NamedFile {
    path: Box<[u8]>,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
}

/// Why a file of a manifest cannot be shown under its name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// No tar could have it, or not after those before it.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The path has no name in it.
    #[error("`{}` names no file", .path.escape_ascii())]
    Nothing {
        /// The path.
        path: Vec<u8>,
    },
    /// A name of a whiteout, which is never shown.
    #[error("`{}` has the name of a whiteout in it", .path.escape_ascii())]
    Whiteout {
        /// The path.
        path: Vec<u8>,
    },
}

/// All of it, in one line.
impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, mode, uid, gid, mtime: Timestamp { seconds, nanos } } = self;
        write!(f, "{mode:04o} {uid}:{gid} {seconds}.{nanos:09} {}", path.escape_ascii())
    }
}

impl NamedFile {
    /// The entry of the file in the index of its blob.
    pub const ENTRY: EntryId = EntryId(1);

    /// A file with this path and metadata. Files of one manifest are added to `tree` one after the other, which settles what
    /// their names mean to each other.
    ///
    /// # Errors
    /// [`NameError`]
    pub fn new(
        path: &[u8],
        (mode, uid, gid): (u16, u32, u32),
        mtime: Timestamp,
        tree: &mut LayerTree,
    ) -> Result<Self, NameError> {
        let named = Self { path: path.into(), mode, uid, gid, mtime };
        let path = || path[..path.len().min(SHOWN)].to_vec();
        if named.path.split(|byte| *byte == b'/').any(is_hidden) {
            return Err(NameError::Whiteout { path: path() });
        }
        let before = tree.ignored();
        tree.add(&named.entry(0))?;
        if tree.ignored() > before {
            return Err(NameError::Nothing { path: path() });
        }
        Ok(named)
    }

    /// The path as the manifest has it.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path under which it is shown: as in a tar, none leads out of the root.
    pub fn shown_path(&self) -> Vec<u8> {
        clean(&self.path, usize::MAX).expect("a path is cleaned once before")
    }

    /// An index that has the file of this blob, with its name, and no spans.
    pub fn names(&self, blob: &Digest, size: u64) -> LayerIndex {
        index_of(&self.entry(size), blob, size)
    }

    fn entry(&self, size: u64) -> TarEntry<'_> {
        let kind = TarKind::File { size, data: DecodedOffset(0), extents: None };
        let (mode, uid, gid, mtime) = (self.mode, self.uid, self.gid, self.mtime);
        TarEntry { at: DecodedOffset(0), path: &self.path, kind, mode, uid, gid, mtime, xattrs: &[] }
    }
}

/// The tree of the index of a blob of this size: one file, [`NamedFile::ENTRY`].
pub fn tree_of_blob(size: u64) -> LayerTree {
    let kind = TarKind::File { size, data: DecodedOffset(0), extents: None };
    let (at, mtime) = (DecodedOffset(0), Timestamp::default());
    let mut tree = LayerTree::new(Limits::default());
    let entry = TarEntry { at, path: b"blob", kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: &[] };
    tree.add(&entry).expect("a plain name");
    tree
}

/// The name of a blob's stream in a cache: not the blob's digest, by which a plain tar is known.
pub fn stream_of_blob(blob: &Digest) -> Digest {
    Digest::of(crate::digest::Algorithm::Sha256, format!("blob {blob}").as_bytes())
}

fn index_of(entry: &TarEntry<'_>, blob: &Digest, size: u64) -> LayerIndex {
    let mut tree = LayerTree::new(Limits::default());
    tree.add(entry).expect("a path is added once before");
    let layer = IndexedLayer { blob: blob.clone(), blob_size: size, diff_id: blob.clone(), decoded_size: size };
    let mut bytes = Vec::new();
    write_index_of(Stream::Blob, &tree, &[], &[], &layer, &Proof::Unproven, &mut bytes).expect("one short path");
    LayerIndex::open(bytes).expect("it was just written")
}

/// Bytes of a path that are shown in an error.
const SHOWN: usize = 256;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn named(paths: &[&str]) -> Result<Vec<NamedFile>, NameError> {
        let mut tree = LayerTree::new(Limits::default());
        paths
            .iter()
            .map(|path| NamedFile::new(path.as_bytes(), (0o644, 0, 0), Timestamp::default(), &mut tree))
            .collect()
    }

    #[test]
    fn hostile_names_are_settled_or_refused_as_in_tars() {
        let shown = |path: &str| {
            let file = named(&[path]).unwrap().remove(0);
            let index = file.names(&Digest::of(Algorithm::Sha256, b"b"), 5);
            String::from_utf8(index.path(EntryId(index.len() - 1)).unwrap()).unwrap()
        };
        for (path, expected) in [
            ("a/b", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("../../x", "x"),
            ("a/../../b/./c//d", "b/c/d"),
            ("a\nb", "a\nb"),
        ] {
            assert_eq!(shown(path), expected);
            assert_eq!(named(&[path]).unwrap()[0].shown_path(), expected.as_bytes());
        }
        let long = "n".repeat(256);
        let refused: Vec<_> = [&["a\0b"][..], &[&long], &[".."], &["."], &["a/.wh.b"], &["a", "a/b"]]
            .iter()
            .map(|paths| named(paths).unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(refused.join("\n"), @r"
        the path `a\x00b` contains a NUL byte
        the name `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…` has 256 bytes, the limit is 255
        `..` names no file
        `.` names no file
        `a/.wh.b` has the name of a whiteout in it
        `a` leads through `a`, which is not a directory
        ");
        assert!(named(&["a", "a"]).is_ok() && named(&["a/b", "a"]).is_ok(), "the later one wins");
    }

    #[test]
    fn the_file_of_a_blob_has_its_number() {
        let tree = tree_of_blob(7);
        assert_eq!((tree.len(), tree.entry(NamedFile::ENTRY).size()), (2, 7));
    }
}
