//! Small private files, written completely or not at all, even in a crash: records of front ends, and logins.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file that only this user can read; concurrent readers see the old or the new content. The new file is
/// written beside it, with an extension that starts with `new`; a crash may leave it. Only one process may write a path
/// at a time.
///
/// # Errors
/// [`io::Error`]; the file is unchanged then.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    // Threads may write the same file.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let new = path.with_extension(format!("new{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    // Left by a crash.
    let _ = std::fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_is_private() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("record.json");
        for content in ["a longer first one", "second"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let contents = ["a".repeat(100_000), "b".repeat(50_000)];
        std::thread::scope(|scope| {
            contents.iter().for_each(|content| drop(scope.spawn(|| write(&path, content.as_bytes()).unwrap())));
        });
        assert!(contents.contains(&std::fs::read_to_string(&path).unwrap()));
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(write(&scratch.path().join("missing/file"), b"").is_err());
    }
}
