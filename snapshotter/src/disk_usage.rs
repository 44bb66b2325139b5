//! Disk usage of a directory.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::records::Usage;

/// Blocks and inodes of `directory` and everything in it, each inode once. Files that vanish meanwhile are not counted.
///
/// # Errors
/// [`io::Error`]
pub(crate) fn of(directory: &Path) -> io::Result<Usage> {
    let root = std::fs::symlink_metadata(directory)?;
    let mut usage = Usage { bytes: 512 * root.blocks(), inodes: 1 };
    let (mut linked, mut rest) = (HashSet::new(), vec![directory.to_owned()]);
    while let Some(directory) = rest.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let found = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if found.nlink() > 1 && !found.is_dir() && !linked.insert((found.dev(), found.ino())) {
                continue;
            }
            usage.bytes += 512 * found.blocks();
            usage.inodes += 1;
            if found.is_dir() {
                rest.push(entry.path());
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_of_several_names_is_counted_once() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("a")).unwrap();
        std::fs::write(scratch.path().join("a/one"), vec![1; 100_000]).unwrap();
        let once = of(scratch.path()).unwrap();
        assert!(once.inodes == 3 && once.bytes >= 100_000, "{once:?}");
        std::fs::hard_link(scratch.path().join("a/one"), scratch.path().join("two")).unwrap();
        std::os::unix::fs::symlink("/etc", scratch.path().join("a/link")).unwrap();
        let both = of(scratch.path()).unwrap();
        assert_eq!((both.bytes, both.inodes), (once.bytes, once.inodes + 1));
    }
}
