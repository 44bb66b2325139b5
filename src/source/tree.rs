//! A directory whose files are named by documents; names cannot leave it.
//!
//! Symbolic links are followed within the directory: build systems create trees of them. A link that leads out is
//! refused, since the maker of the layout controls it. (A directory on the way to a file may be such a link: layouts
//! share blobs this way, and no document can name it.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::SourceError;
use super::local::Piece;

/// An open directory.
#[derive(Debug)]
pub(super) struct Tree {
    dir: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// Opens the directory at `path`, which the user has named and whose links are trusted.
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

    /// The regular file of this name, if it exists.
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
            // Too many links, or a cycle.
            Err(Errno::LOOP) => return Err(Unopened::System(Errno::LOOP)),
            // Old kernels and some sandboxes return these.
            Err(Errno::NOSYS | Errno::PERM) => return Ok(self.open_no_link(name)?),
            opened => return Ok(opened?),
        }
        match self.open_no_link(name) {
            Err(Errno::LOOP) => {}
            opened => return Ok(opened?),
        }
        // An absolute link may still lead into the directory.
        let real = |path: &Path| path.canonicalize().map_err(|error| Unopened::System(errno(&error)));
        let (root, file) = (real(&self.path)?, real(&self.path.join(name))?);
        let inside = file.strip_prefix(root).map_err(|_| Unopened::LeadsOut)?;
        Ok(self.open_within(inside)?)
    }

    /// Opens a file whose path does not leave the directory.
    fn open_within(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(self.dir.as_fd(), path, READ, Mode::empty(), resolve);
        // Retry: a path component was renamed.
        (0..TRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    }

    /// Opens a file as a process would whose root directory this is: links on the way lead to what is in it. The file
    /// itself is not a link.
    ///
    /// # Errors
    /// [`Errno`]
    pub(super) fn open_in_root(&self, path: &Path) -> rustix::io::Result<File> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = READ | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat2(self.dir.as_fd(), path, flags, Mode::empty(), resolve);
        let mut opened = (0..TRIES).map(|_| open());
        match opened.find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN)) {
            // Old kernels and some sandboxes return these.
            Err(Errno::NOSYS | Errno::PERM) => self.open_by_components(path),
            opened => opened.map(File::from),
        }
    }

    /// Opens a file whose path has no links and no `..`.
    fn open_by_components(&self, path: &Path) -> rustix::io::Result<File> {
        let (mut dir, mut last) = (self.dir.try_clone().map_err(|error| errno(&error))?, None);
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::XDEV),
            };
            if let Some(parent) = last.replace(name) {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                dir = rustix::fs::openat(&dir, parent, flags, Mode::empty())?;
            }
        }
        let name = last.ok_or(Errno::ISDIR)?;
        rustix::fs::openat(&dir, name, READ | OFlags::NOFOLLOW, Mode::empty()).map(File::from)
    }

    /// Opens a file that is not a link.
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

/// Do not block on a pipe or device before its type is known.
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

    #[test]
    fn a_path_in_a_root_does_not_leave_it() {
        use std::io::Read as _;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "inside").unwrap();
        std::fs::write(root.join("secret"), "inside").unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        for (target, link) in [("a/b", "to"), ("/a/b", "absolute"), ("../..", "a/up"), ("../secret", "file")] {
            symlink(target, root.join(link)).unwrap();
        }
        let tree = Tree::open(&root).unwrap();
        let read = |opened: rustix::io::Result<File>| {
            opened.map(|mut file| {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            })
        };
        let inside = Ok("inside".to_owned());
        for path in ["a/b/file", "/a/b/file", "./a/b/file", "to/file", "absolute/file", "../secret", "a/up/secret"] {
            assert_eq!(read(tree.open_in_root(Path::new(path))), inside, "{path}");
        }
        assert_eq!(read(tree.open_in_root(Path::new("file"))), Err(Errno::LOOP));
        for (path, wanted) in [
            ("a/b/file", inside.clone()),
            ("/./a/b/file", inside),
            ("to/file", Err(Errno::NOTDIR)),
            ("../secret", Err(Errno::XDEV)),
            ("file", Err(Errno::LOOP)),
            ("/", Err(Errno::ISDIR)),
        ] {
            assert_eq!(read(tree.open_by_components(Path::new(path))), wanted, "{path}");
        }
    }
}
