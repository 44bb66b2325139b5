//! An archive from a pipe, or from the Docker daemon: mounts need it after the pipe is closed.
//!
//! It is copied into an unnamed file, whose descriptor the processes behind the mount inherit: it is deleted with the
//! last of them, however they end.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use rustix::io::FdFlags;

use super::error::HostError;
use super::open;
use super::process;
use super::spec::{ImageSpec, MountSpec};
use crate::reference::{Place, Reference};
use crate::source::local::LocalSource;

/// `spec`, with an archive that can be read more than once; hold the returned file until the serving processes have
/// started.
///
/// # Errors
/// [`HostError`] if the archive cannot be copied.
pub fn hold(spec: MountSpec) -> Result<(MountSpec, Option<File>), HostError> {
    let spool = || Ok::<_, HostError>(open::spool(&Arc::new(open::store(&spec.image.cache)?)));
    let reference = &spec.image.reference;
    let (file, of) = match (reference.place(), archive(reference)) {
        (Place::DockerDaemon(_), _) => {
            let runtime = process::runtime(process::Purpose::Reading)?;
            match runtime.block_on(LocalSource::sent(reference, &spool()?))? {
                Some(file) => (file, None),
                None => return Ok((spec, None)),
            }
        }
        (_, Some(path)) => match spool()?.pipe(&path)? {
            Some(file) => (file, Some(path)),
            // Another process has other descriptors.
            None if is_descriptor(&path) => {
                (File::open(&path).map_err(HostError::system("read the archive"))?, Some(path))
            }
            None => return Ok((spec, None)),
        },
        _ => return Ok((spec, None)),
    };
    let inherited = rustix::io::fcntl_setfd(&file, FdFlags::empty());
    inherited.map_err(|errno| HostError::system("pass the archive on")(errno.into()))?;
    let held = format!("/proc/self/fd/{}", file.as_raw_fd());
    let held = match of {
        Some(path) => reference.written().replacen(&path.display().to_string(), &held, 1),
        None => format!("docker-archive:{held}"),
    };
    let held: Reference = held.parse().expect("a path in place of a path is a reference");
    // What the user has named, wherever the processes have it.
    let reference = held.called(&reference.to_string());
    Ok((MountSpec { image: ImageSpec { reference, ..spec.image }, ..spec }, Some(file)))
}

/// Whether this is one of the process's own descriptors.
fn is_descriptor(path: &Path) -> bool {
    path == Path::new("/dev/stdin")
        || ["/dev/fd", "/proc/self/fd"].iter().any(|descriptors| path.starts_with(descriptors))
}

/// The file of an archive.
fn archive(reference: &Reference) -> Option<std::path::PathBuf> {
    let (Place::OciArchive(local) | Place::DockerArchive(local)) = reference.place() else { return None };
    Some(local.reading(Path::exists).path)
}
