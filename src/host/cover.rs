//! Checks that a mount does not hide files that its own server reads.
//!
//! A cache or a layout below the mount point would from then on be looked up in the image itself. The server would wait
//! for its own answer, and its locks would block other mounts of the same layers. So a mount point that is such a
//! directory, or above one, is refused; so is one within the cache, whose files come and go, but for the directory of published
//! mounts, which may be there.
//!
//! Paths are not compared as text: the directories that a path passes through, including symlinks, and those above its
//! end are compared by device and inode number. A bind mount shows a directory in a second place, so positions within
//! the file system are compared as well.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::spec::{ImageSpec, MountSpec};
use super::status;
use crate::fuse::mounts::MountPoint;
use crate::fuse::{Target, mounts};
use crate::image::Network;
use crate::reference::{Place, Reference};
use crate::source::local::LocalSource;
use crate::source::registry::RegistryOptions;

/// What a server needs while its mount exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Need {
    /// The cache.
    Cache(PathBuf),
    /// The directory that holds the image.
    Layout(PathBuf),
    /// The file that holds the image.
    Archive(PathBuf),
    /// The directory of published state.
    Runtime(PathBuf),
    /// The mount's log.
    Log(PathBuf),
    /// A login file, existing or not.
    Logins(PathBuf),
    /// Trusted certificates.
    Certificates(PathBuf),
    /// What names mirrors.
    Mirrors(PathBuf),
    /// A need of another mount, and its mount point.
    OfMount(Box<Need>, PathBuf),
}

/// Why a mount point is refused.
#[derive(Debug, thiserror::Error)]
pub enum Covers {
    /// It is what is needed.
    #[error("cannot mount on `{}`: it is {need}", at.display())]
    Is {
        /// As typed by the user.
        at: PathBuf,
        /// What it is.
        need: Need,
    },
    /// What is needed is below it.
    #[error("cannot mount on `{}`: below it is {need}", at.display())]
    Holds {
        /// As typed by the user.
        at: PathBuf,
        /// What is below it.
        need: Need,
    },
    /// It is within the cache.
    #[error("cannot mount on `{}`: it is within {need}", at.display())]
    Within {
        /// As typed by the user.
        at: PathBuf,
        /// The cache.
        need: Need,
    },
}

impl Covers {
    /// What the user can do.
    pub fn hint(&self) -> String {
        let (Self::Is { need, .. } | Self::Holds { need, .. } | Self::Within { need, .. }) = self;
        let other = match need {
            Need::Cache(_) => ", or choose another cache with `--cache-dir`",
            Need::Runtime(_) => ", or set XDG_RUNTIME_DIR to another one",
            Need::Log(_) => ", or name a log elsewhere with `--log-file`",
            Need::Logins(_) => ", or name a file elsewhere with `--authfile`",
            Need::Layout(_) | Need::Archive(_) | Need::Certificates(_) | Need::Mirrors(_) | Need::OfMount(..) => "",
        };
        format!("mount on another directory{other}")
    }
}

impl Need {
    /// The needs of a mount, and those of the other published mounts.
    pub(super) fn of(spec: &MountSpec) -> Vec<Self> {
        let ImageSpec { reference, access, cache, .. } = &spec.image;
        let mut needs = Self::of_cache(&cache.dir);
        needs.extend(spec.log.clone().map(Self::Log));
        // Without a directory, no mount is published.
        let runtime = status::directory().ok();
        needs.extend(runtime.clone().map(Self::Runtime));
        needs.extend(Self::of_source(reference));
        if matches!(reference.place(), Place::Registry(_)) && access.network == Network::Allowed {
            needs.extend(access.surroundings.login_files(access.authfile.as_deref()).into_iter().map(Self::Logins));
            let certs = RegistryOptions::new(access.surroundings.clone()).certs_dirs;
            needs.extend(access.ca.iter().cloned().chain(certs).map(Self::Certificates));
            let mirrors = access.mirrors.hosts_dir.iter().chain(&access.surroundings.registries_conf);
            needs.extend(mirrors.cloned().map(Self::Mirrors));
        }
        needs.extend(runtime.iter().flat_map(|runtime| of_other_mounts(runtime, &spec.at)));
        needs
    }

    /// The files of the image itself.
    fn of_source(reference: &Reference) -> Vec<Self> {
        let exists = |path: &Path| path.exists();
        match reference.place() {
            Place::Registry(_) => Vec::new(),
            Place::ContainersStorage(_) | Place::DockerDaemon(_) => {
                LocalSource::storages(reference).into_iter().map(Self::Layout).collect()
            }
            Place::Layout(name) => {
                let layout = name.reading(exists).path;
                // Each of these may be a symlink.
                let parts = ["index.json", "blobs", "blobs/sha256", "blobs/sha512", "blobs/blake3"];
                let parts = parts.map(|part| layout.join(part));
                let parts = parts.into_iter().filter(|part| exists(part));
                std::iter::once(layout.clone()).chain(parts).map(Self::Layout).collect()
            }
            Place::Directory(directory) => vec![Self::Layout(directory.clone())],
            Place::OciArchive(name) | Place::DockerArchive(name) => vec![Self::Archive(name.reading(exists).path)],
        }
    }

    /// The cache, and parts of it that are elsewhere.
    fn of_cache(cache: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
        let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        std::iter::once(cache.to_owned()).chain(links.map(|entry| entry.path())).map(Self::Cache).collect()
    }

    fn is_cache(&self) -> bool {
        match self {
            Self::OfMount(need, _) => need.is_cache(),
            need => matches!(need, Self::Cache(_)),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Cache(path)
            | Self::Layout(path)
            | Self::Archive(path)
            | Self::Runtime(path)
            | Self::Log(path)
            | Self::Logins(path)
            | Self::Certificates(path)
            | Self::Mirrors(path) => path,
            Self::OfMount(need, _) => need.path(),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path().display();
        match self {
            Self::Cache(_) => write!(f, "the cache directory `{path}`"),
            Self::Layout(_) => write!(f, "the image itself, `{path}`"),
            Self::Archive(_) => write!(f, "the archive `{path}`"),
            Self::Runtime(_) => write!(f, "`{path}`, the directory of published mounts"),
            Self::Log(_) => write!(f, "its log `{path}`"),
            Self::Logins(_) => write!(f, "`{path}`, a login file"),
            Self::Certificates(_) => write!(f, "`{path}`, a certificate directory"),
            Self::Mirrors(_) => write!(f, "`{path}`, which names mirrors"),
            Self::OfMount(need, at) => write!(f, "{need}, of the mount on `{}`", at.display()),
        }
    }
}

/// The needs of the mounts published in `directory`, except one at `at`.
fn of_other_mounts(directory: &Path, at: &Path) -> Vec<Need> {
    let mut needs = Vec::new();
    for state in status::all(directory).into_iter().filter(|state| state.at != at) {
        let source = state.reference.parse().map(|reference| Need::of_source(&reference)).unwrap_or_default();
        let own = source.into_iter().chain([Need::Cache(state.cache)]).chain(state.log.map(Need::Log));
        needs.extend(own.map(|need| Need::OfMount(Box::new(need), state.at.clone())));
    }
    needs
}

/// Refuses to mount on `target`, typed as `typed`, if that hides one of `needs`.
pub(super) fn check(target: &Target, typed: &Path, needs: &[Need]) -> Result<(), Covers> {
    let mounted = mounts::all();
    let Some(point) = Walk::of_open(target.as_fd(), &mounted) else { return Ok(()) };
    let Some(own) = point.end else { return Ok(()) };
    // Without XDG_RUNTIME_DIR it is in the cache, and containers of `run` have their root file systems in it.
    let mut runtimes = needs.iter().filter(|need| matches!(need, Need::Runtime(_)));
    let is_in_runtime =
        runtimes.any(|need| Walk::to(need.path(), &mounted).end.is_some_and(|runtime| point.passes.contains(&runtime)));
    for need in needs {
        let walk = Walk::to(need.path(), &mounted);
        let (at, need) = (typed.to_owned(), need.clone());
        if walk.end == Some(own) || walk.is_same_place(&point) {
            return Err(Covers::Is { at, need });
        }
        if walk.passes.contains(&own) || point.lies_above(&walk) {
            return Err(Covers::Holds { at, need });
        }
        let may_not_hold = need.is_cache() && !is_in_runtime;
        if may_not_hold && walk.end.is_some_and(|end| point.passes.contains(&end) || walk.lies_above(&point)) {
            return Err(Covers::Within { at, need });
        }
    }
    Ok(())
}

/// The identity of a directory or file: device and inode number.
type Identity = (u64, u64);

/// The result of following a path.
#[derive(Debug, Default)]
struct Walk {
    /// The directories that it passes through, and those above its end.
    passes: Vec<Identity>,
    /// Its end, if that exists.
    end: Option<Identity>,
    /// The position of its end within its file system; of the parent directory, if it does not exist.
    place: Option<(String, PathBuf)>,
}

impl Walk {
    /// Follows an absolute path like the kernel; stops early at what cannot be accessed.
    fn to(path: &Path, mounted: &[MountPoint]) -> Self {
        let mut walk = Self::default();
        let Ok(root) = rustix::fs::openat(CWD, "/", LOOK, Mode::empty()) else { return walk };
        let mut at = root;
        let mut left: VecDeque<OsString> = components(path);
        let mut links = 0;
        walk.passes.extend(identity(&at));
        let mut is_whole = true;
        while let Some(name) = left.pop_front() {
            let Ok(next) = rustix::fs::openat(&at, &name, LOOK | OFlags::NOFOLLOW, Mode::empty()) else {
                is_whole = false;
                break;
            };
            if rustix::fs::fstat(&next).is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink()) {
                links += 1;
                let target = rustix::fs::readlinkat(&next, "", Vec::new()).map(|target| target.into_bytes());
                let (Ok(target), true) = (target, links <= SYMLINKS) else {
                    is_whole = false;
                    break;
                };
                let target = PathBuf::from(OsString::from_vec(target));
                if target.is_absolute() {
                    let Ok(root) = rustix::fs::openat(CWD, "/", LOOK, Mode::empty()) else { break };
                    at = root;
                }
                for name in components(&target).into_iter().rev() {
                    left.push_front(name);
                }
                continue;
            }
            at = next;
            walk.passes.extend(identity(&at));
        }
        walk.finish(&at, is_whole, mounted);
        walk
    }

    /// The same for an open directory.
    fn of_open(directory: BorrowedFd<'_>, mounted: &[MountPoint]) -> Option<Self> {
        let at = directory.try_clone_to_owned().ok()?;
        let mut walk = Self::default();
        walk.finish(&at, true, mounted);
        Some(walk)
    }

    fn finish(&mut self, end: &OwnedFd, is_whole: bool, mounted: &[MountPoint]) {
        let own = identity(end);
        if is_whole {
            self.end = own;
        } else {
            self.passes.extend(own);
        }
        self.place = place(end, mounted);
        let mut below = own;
        let mut at = rustix::fs::openat(end, "..", LOOK, Mode::empty());
        while let Ok(above) = at {
            let found = identity(&above);
            // The root is its own parent.
            if found.is_none() || found == below {
                break;
            }
            self.passes.extend(found);
            below = found;
            at = rustix::fs::openat(&above, "..", LOOK, Mode::empty());
        }
    }

    fn is_same_place(&self, other: &Self) -> bool {
        self.end.is_some() && other.end.is_some() && self.place.is_some() && self.place == other.place
    }

    /// Whether it is the other directory, or above it, within their file system.
    fn lies_above(&self, other: &Self) -> bool {
        match (&self.place, &other.place) {
            (Some((device, above)), Some((same, below))) => device == same && below.starts_with(above),
            _ => false,
        }
    }
}

/// The names to look up, in order.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn identity(of: &OwnedFd) -> Option<Identity> {
    rustix::fs::fstat(of).ok().map(|found| (found.st_dev, found.st_ino))
}

/// The device of a file system, and the path within it; equal for a bind mount.
fn place(of: &OwnedFd, mounted: &[MountPoint]) -> Option<(String, PathBuf)> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", of.as_raw_fd())).ok()?;
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", of.as_raw_fd())).ok()?;
    let id: u64 = told.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())?;
    let mount = mounted.iter().find(|mount| mount.id == id)?;
    let below = path.strip_prefix(&mount.path).ok()?;
    Some((mount.device.clone(), mount.root.join(below)))
}

const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// The kernel's limit for one path.
const SYMLINKS: usize = 40;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for name in ["a/cache/deep", "a/other", "b", "elsewhere"] {
                std::fs::create_dir_all(tree.path(name)).unwrap();
            }
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// The effect of a mount on `at` on `need`.
        fn said(&self, at: &str, need: Need) -> Option<&'static str> {
            let at = self.path(at);
            match check(&Target::open(&at).unwrap(), &at, &[need]) {
                Ok(()) => None,
                Err(Covers::Is { .. }) => Some("is"),
                Err(Covers::Holds { .. }) => Some("holds"),
                Err(Covers::Within { .. }) => Some("within"),
            }
        }

        fn cache(&self, at: &str, cache: &str) -> Option<&'static str> {
            self.said(at, Need::Cache(self.path(cache)))
        }
    }

    #[test]
    fn a_directory_of_published_mounts_in_the_cache_may_have_mounts() {
        let tree = Tree::new();
        std::fs::create_dir_all(tree.path("a/cache/run/1.run/rootfs")).unwrap();
        let needs = [Need::Cache(tree.path("a/cache")), Need::Runtime(tree.path("a/cache/run"))];
        let check = |at: &str| check(&Target::open(&tree.path(at)).unwrap(), &tree.path(at), &needs);
        assert!(check("a/cache/run/1.run/rootfs").is_ok());
        assert!(matches!(check("a/cache/run"), Err(Covers::Is { .. } | Covers::Within { .. })));
        assert!(matches!(check("a/cache/deep"), Err(Covers::Within { .. })));
    }

    #[test]
    fn what_covers_a_cache_is_known_by_any_spelling() {
        let tree = Tree::new();
        symlink("a", tree.path("link")).unwrap();
        symlink(tree.path("a/cache"), tree.path("b/cache")).unwrap();
        symlink("../elsewhere", tree.path("a/out")).unwrap();
        for (at, cache, wanted) in [
            ("a/cache", "a/cache", Some("is")),
            ("a", "a/cache", Some("holds")),
            (".", "a/cache", Some("holds")),
            ("a/cache/deep", "a/cache", Some("within")),
            ("a/other", "a/cache", None),
            ("b", "a/cache", None),
            // By other names.
            ("link", "a/cache", Some("holds")),
            ("a/cache", "link/cache", Some("is")),
            ("b/cache/..", "a/cache", Some("holds")),
            ("a/cache", "b/cache", Some("is")),
            ("a", "b/cache", Some("holds")),
            ("a/other/../cache", "link/other/../cache", Some("is")),
            // The path passes through it, though its end is elsewhere.
            ("b", "b/cache", Some("holds")),
            ("a", "a/out", Some("holds")),
            ("elsewhere", "a/out", Some("is")),
            // A path to be created there.
            ("a", "a/new/cache", Some("holds")),
            ("a/other", "a/new/cache", None),
            ("elsewhere", "a/out/new", Some("holds")),
        ] {
            assert_eq!(tree.cache(at, cache), wanted, "a mount on {at}, with the cache {cache}");
        }
    }

    #[test]
    fn a_directory_of_a_layout_without_blobs_may_be_mounted_on() {
        let tree = Tree::new();
        std::fs::create_dir_all(tree.path("b/blobs/sha256")).unwrap();
        std::fs::create_dir_all(tree.path("b/mnt")).unwrap();
        let reference: Reference = format!("oci:{}:1", tree.path("b").display()).parse().unwrap();
        let refused = |at: &str| Need::of_source(&reference).into_iter().any(|need| tree.said(at, need).is_some());
        assert!(!refused("b/mnt") && !refused("a"));
        assert!(refused("b") && refused("b/blobs") && refused("b/blobs/sha256") && refused("."));
    }

    #[test]
    fn a_symlink_that_leads_nowhere_or_in_a_circle_ends_the_walk() {
        let tree = Tree::new();
        symlink("circle", tree.path("circle")).unwrap();
        symlink(tree.path("a/none"), tree.path("b/none")).unwrap();
        assert_eq!(tree.cache("b", "circle"), None);
        assert_eq!(tree.cache(".", "circle"), Some("holds"));
        assert_eq!(tree.cache("a", "b/none/cache"), Some("holds"));
        assert_eq!(tree.cache("a/other", "b/none/cache"), None);
    }

    #[test]
    fn the_message_names_what_is_covered_and_a_way_out() {
        let covers = Covers::Holds {
            at: "~".into(),
            need: Need::OfMount(Box::new(Need::Cache("/home/me/.cache/peelfs".into())), "/mnt".into()),
        };
        let said = covers.to_string();
        assert_eq!(
            said,
            "cannot mount on `~`: below it is the cache directory `/home/me/.cache/peelfs`, of the mount on `/mnt`"
        );
        assert_eq!(covers.hint(), "mount on another directory");
    }
}
