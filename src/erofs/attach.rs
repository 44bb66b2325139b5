//! Mounting: gives the kernel an EROFS image and the content files of its layers.
//!
//! The files are passed by descriptor, so what was verified is mounted, wherever their names lead by now.
//!
//! EROFS shows the path of its image as the source of a mount. So the image gets the name `peelfs:REFERENCE`, in a
//! tmpfs that is mounted nowhere and is gone once the mount is made.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::fuse::fs_context::{self, by_descriptor, said_by};
use crate::fuse::mounts::{KERNEL_SOURCE as SOURCE, OVERLAYFS};

/// The files of an image.
#[derive(Debug)]
pub struct Files {
    /// The image.
    pub image: File,
    /// The files of its layers, in the order of its devices.
    pub devices: Vec<File>,
}

/// Mount options.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The source in the table of mounts.
    pub reference: String,
    /// Set-user-id programs work.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs do not run.
    pub noexec: bool,
}

/// Why the kernel does not mount an image.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// This process may not mount.
    #[error("only root may mount EROFS")]
    NotAllowed,
    /// The kernel lacks EROFS.
    #[error("this kernel has no EROFS")]
    NoErofs,
    /// The kernel has EROFS, but does not mount it from files.
    #[error("this kernel does not mount EROFS from files, as Linux 6.12 and later do where they are built to")]
    NotFromFiles,
    /// The kernel does not mount EROFS from files of this file system.
    #[error("the kernel does not mount EROFS from files of {file_system}, where the cache is")]
    FileSystem {
        /// Its name.
        file_system: &'static str,
    },
    /// The kernel refuses this image.
    #[error("the kernel rejects the image{}", if said.is_empty() { String::new() } else { format!(" ({said})") })]
    Refused {
        /// Its message.
        said: String,
        /// The error.
        #[source]
        cause: io::Error,
    },
}

/// Whether this process may mount EROFS, as far as that shows without an image.
///
/// # Errors
/// [`AttachError`]
pub fn is_possible() -> Result<(), AttachError> {
    begin().map(drop)
}

fn begin() -> Result<OwnedFd, AttachError> {
    rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::PERM => AttachError::NotAllowed,
        Errno::NODEV => AttachError::NoErofs,
        errno => refused("")(errno),
    })
}

/// Mounts an image on a directory that is held by descriptor.
///
/// # Errors
/// [`AttachError`]; nothing is mounted then.
pub fn attach(target: impl AsFd, files: &Files, terms: &Terms) -> Result<(), AttachError> {
    let target = target.as_fd();
    // In a separate thread with its own working directory: the source is a path relative to it.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || attach_here(target, files, terms));
        let thread = thread
            .map_err(|error| refused("starting a thread")(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        thread.join().unwrap_or_else(|_| Err(refused("")(Errno::IO)))
    })
}

fn attach_here(target: BorrowedFd<'_>, files: &Files, terms: &Terms) -> Result<(), AttachError> {
    let context = begin()?;
    let names = Names::make(&terms.reference, &files.image).map_err(refused("naming it"))?;
    nix::sched::unshare(CloneFlags::CLONE_FS).map_err(|errno| refused("")(Errno::from_raw_os_error(errno as i32)))?;
    rustix::process::fchdir(&names.root).map_err(refused("naming it"))?;
    let configure = || {
        rustix::mount::fsconfig_set_string(&context, "source", &names.source)?;
        for device in &files.devices {
            rustix::mount::fsconfig_set_string(&context, "device", by_descriptor(device))?;
        }
        rustix::mount::fsconfig_set_flag(&context, "ro")?;
        rustix::mount::fsconfig_create(&context)
    };
    configure().map_err(|errno| match errno {
        // The kernel's error for files that it cannot mount from, for any reason.
        Errno::NOTBLK => match file_system_without_read_folio(&files.image) {
            Some(file_system) => AttachError::FileSystem { file_system },
            None => AttachError::NotFromFiles,
        },
        errno => refused(&said_by(&context))(errno),
    })?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOATIME
        | fs_context::attributes(terms.suid, terms.dev, terms.noexec);
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused(""))?;
    fs_context::move_onto(mount, target).map_err(refused(""))
}

/// The name of the image.
struct Names {
    /// The directory of the image, mounted nowhere.
    root: OwnedFd,
    /// The path of the image relative to it.
    source: String,
}

impl Names {
    fn make(reference: &str, image: &File) -> Result<Self, Errno> {
        let root = fs_context::tmpfs(&[])?;
        let source = source_of(reference);
        let mut path = String::new();
        let mut parts = source.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            path.push_str(part);
            if parts.peek().is_none() {
                rustix::fs::symlinkat(by_descriptor(image), &root, &path)?;
            } else {
                rustix::fs::mkdirat(&root, &path, Mode::RWXU)?;
                path.push('/');
            }
        }
        Ok(Self { root, source })
    }
}

/// The source in the table of mounts; a relative path, too.
fn source_of(reference: &str) -> String {
    let source = format!("{SOURCE}{reference}");
    let fits = |part: &str| part.len() <= 255 && !matches!(part, "." | "..");
    let is_path = source.len() < 4096 && !source.ends_with('/') && !source.contains('\0');
    if is_path && source.split('/').all(fits) { source } else { format!("{SOURCE}image") }
}

/// The name of the file system of `file`, if the kernel does not mount EROFS from files of it.
///
/// EROFS needs the operation `read_folio` of the file system. These lack it.
pub fn file_system_without_read_folio(file: &File) -> Option<&'static str> {
    /// `TMPFS_MAGIC`
    const TMPFS: u64 = 0x0102_1994;
    match rustix::fs::fstatfs(file).ok()?.f_type as u64 {
        OVERLAYFS => Some("overlayfs"),
        TMPFS => Some("tmpfs"),
        _ => None,
    }
}

fn refused(said: &str) -> impl FnOnce(Errno) -> AttachError {
    let said = said.to_owned();
    move |errno| AttachError::Refused { said, cause: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_the_image_and_is_a_path() {
        for (reference, wanted) in [
            ("docker.io/library/python:3.12", "peelfs:docker.io/library/python:3.12"),
            ("oci:/images/app:1", "peelfs:oci:/images/app:1"),
            ("oci:/a/../app:1", "peelfs:image"),
            ("oci:/images/", "peelfs:image"),
        ] {
            assert_eq!(source_of(reference), wanted);
        }
        assert_eq!(source_of(&"x".repeat(300)), "peelfs:image");
    }
}
