//! A directory whose files are named by documents: what they name is in it, or is not read.
//!
//! Symbolic links are followed as long as they stay in the directory: build systems make trees of them. One that leads
//! out is refused, for the maker of the layout could have it lead anywhere. (A directory on the way to a file may be such
//! a link: layouts share their blobs so, and no document can name it.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::SourceError;
use super::local::Piece;

/// A directory that is open.
pub(super) struct Tree {
    dir: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// The directory at `path`, which a user has named; links on the way are the user's own.
    ///
    /// # Errors
    /// [`SourceError::Io`]
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let dir = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let failed = |errno: Errno| SourceError::Io { path: path.display().to_string(), cause: errno.into() };
        Ok(Self { dir: dir.map_err(failed)?, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The regular file of this name, if there is one.
    ///
    /// # Errors
    /// [`SourceError`] if it cannot be read, or is a link that leads out of the directory.
    pub(super) fn find(&self, name: &str) -> Result<Option<Piece>, SourceError> {
        let shown = self.path.join(name).display().to_string();
        match self.open_file(name) {
            Ok(file) => Piece::of(File::from(file), &shown).map(Some),
            Err(Unopened::System(Errno::NOENT)) => Ok(None),
            Err(Unopened::System(errno)) => Err(SourceError::Io { path: shown, cause: errno.into() }),
            Err(Unopened::LeadsOut) => Err(SourceError::Unsupported {
                place: format!("`{shown}`"),
                why: format!("it is a symbolic link that leads out of `{}`", self.path.display()),
                hint: Some(format!(
                    "copy it with what its links lead to, as with `cp -rL {} COPY`",
                    self.path.display()
                )),
            }),
        }
    }

    fn open_file(&self, name: &str) -> Result<OwnedFd, Unopened> {
        match self.open_within(Path::new(name)) {
            Err(Errno::XDEV) => {}
            // Links beyond all measure, or to themselves.
            Err(Errno::LOOP) => return Err(Unopened::System(Errno::LOOP)),
            // As old kernels and some sandboxes say.
            Err(Errno::NOSYS | Errno::PERM) => return Ok(self.open_no_link(name)?),
            opened => return Ok(opened?),
        }
        match self.open_no_link(name) {
            Err(Errno::LOOP) => {}
            opened => return Ok(opened?),
        }
        // It may be written from the root of the file system and lead into the directory all the same.
        let real = |path: &Path| path.canonicalize().map_err(|error| Unopened::System(errno(&error)));
        let (root, file) = (real(&self.path)?, real(&self.path.join(name))?);
        let inside = file.strip_prefix(root).map_err(|_| Unopened::LeadsOut)?;
        Ok(self.open_within(inside)?)
    }

    /// A file whose path does not leave the directory.
    fn open_within(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(self.dir.as_fd(), path, READ, Mode::empty(), resolve);
        // Something was renamed meanwhile.
        (0..TRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    }

    /// A file that is no link.
    fn open_no_link(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(self.dir.as_fd(), name, READ | OFlags::NOFOLLOW, Mode::empty())
    }
}

/// Why a file was not opened.
enum Unopened {
    LeadsOut,
    System(Errno),
}

impl From<Errno> for Unopened {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// A pipe or device must not hold up the process before it is known for what it is.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const TRIES: usize = 8;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_within_the_directory_and_not_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for path in ["root/real", "root/d", "elsewhere"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(root.join("real/file"), "inside").unwrap();
        std::fs::write(dir.path().join("elsewhere/file"), "outside").unwrap();
        for (target, link) in [
            ("../real/file", "d/relative"),
            ("relative", "d/chain"),
            ("../../root/real/file", "d/around"),
            ("../../elsewhere/file", "d/out"),
            ("/etc/passwd", "d/absolute"),
            ("nothing", "d/dangling"),
            ("itself", "d/itself"),
            ("../elsewhere", "shared"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        symlink(root.join("real/file"), root.join("d/from-the-top")).unwrap();
        let tree = Tree::open(&root).unwrap();
        let found = |name: &str| match tree.find(name) {
            Ok(Some(piece)) => String::from_utf8(piece.read_whole(100).unwrap().to_vec()).unwrap(),
            Ok(None) => "nothing".to_owned(),
            Err(SourceError::Unsupported { why, hint: Some(hint), .. }) => {
                assert!(why.contains("leads out") && hint.contains("cp -rL"), "{why}: {hint}");
                "refused".to_owned()
            }
            Err(error) => error.to_string(),
        };
        for (name, wanted) in [
            ("real/file", "inside"),
            ("d/relative", "inside"),
            ("d/chain", "inside"),
            ("d/from-the-top", "inside"),
            ("d/around", "inside"),
            ("d/out", "refused"),
            ("d/absolute", "refused"),
            ("d/dangling", "nothing"),
            ("no/file", "nothing"),
            ("shared/file", "outside"),
        ] {
            assert_eq!(found(name), wanted, "{name}");
        }
        assert!(found("d/itself").contains("cannot read"));
        assert!(Tree::open(&root.join("none")).is_err());
    }
}
