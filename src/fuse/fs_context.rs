//! Mounts with the kernel's newer calls (fsopen(2), fsmount(2), move_mount(2)): the parts that all file systems share.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

/// A path to an open file of this process.
pub(crate) fn by_descriptor(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// The attributes of a mount for these permissions.
pub(crate) fn attributes(suid: bool, dev: bool, noexec: bool) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !suid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !dev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, noexec);
    attributes
}

/// A new tmpfs that is not mounted yet.
///
/// # Errors
/// Those of the calls.
pub(crate) fn tmpfs(settings: &[(&str, &str)]) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in settings {
        rustix::mount::fsconfig_set_string(&context, *name, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Mounts a detached mount on a directory that is held by descriptor.
///
/// # Errors
/// Those of move_mount(2).
pub(crate) fn move_onto(mount: impl AsFd, directory: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", directory, "", flags)
}

/// The kernel's message about a file system that it refuses, as one line; empty if there is none.
pub(crate) fn said_by(context: &OwnedFd) -> String {
    let Ok(context) = context.try_clone().map(File::from) else { return String::new() };
    let (mut lines, mut buf) = (Vec::new(), [0; 1024]);
    while let Ok(length @ 1..) = rustix::io::read(&context, &mut buf[..]) {
        lines.push(line(&buf[..length]));
    }
    lines.retain(|line| !line.is_empty());
    lines.join("; ")
}

/// One line without the leading letter for its kind (`e`, `w` or `i`).
fn line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().get(2..).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_loses_the_letter_of_its_kind_only() {
        for (said, wanted) in [
            (&b"e erofs: cannot find device\n"[..], "erofs: cannot find device"),
            (b"i image is fine", "image is fine"),
            (b"w", ""),
            (b"\n", ""),
        ] {
            assert_eq!(line(said), wanted);
        }
    }
}
