//! Bind mounts of a directory of an image. Symlinks on the path lead to something in the image, never to the node: the
//! kernel resolves the path with the mount as the root.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// Mounts the directory `path` of the mount on `image` at `target` as well. Waits until it is indexed.
///
/// # Errors
/// Those of the calls; [`io::ErrorKind::NotADirectory`] and [`io::ErrorKind::NotFound`] say what `path` is.
pub(crate) fn show(image: &Path, path: &Path, target: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(image, flags, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let directory = loop {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            // A race with a mount or rename elsewhere.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => break opened?,
        }
    };
    let target = rustix::fs::open(target, flags | OFlags::NOFOLLOW, Mode::empty())?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let shown = rustix::mount::open_tree(&directory, "", clone)?;
    let move_flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&shown, "", &target, "", move_flags)?)
}
