//! What an image lacks as a container's root file system, and its users: read from the image itself, without a mount.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::error::HostError;
use crate::bundle::{self, BundleError, User};
use crate::image::tree::{self, Reached};
use crate::image::{FsError, ImageFs};
use crate::layer::Kind;
use crate::offsets::FileOffset;
use crate::overlay::Last;

/// Something that a root file system needs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stub {
    /// An empty directory.
    Directory,
    /// An empty file.
    File,
}

/// The user that `typed` names, by the image's `/etc/passwd` and `/etc/group`. Follows symlinks within the image.
///
/// # Errors
/// [`HostError`]
pub async fn user(fs: &ImageFs, typed: &str) -> Result<User, HostError> {
    let passwd = read_small(fs, "/etc/passwd").await?;
    // A numeric user has no supplementary groups.
    let group = read_small(fs, "/etc/group").await?;
    Ok(bundle::resolve_user(typed, &passwd, &group)?)
}

/// A small file, read as a whole; empty if it is missing.
async fn read_small(fs: &ImageFs, path: &'static str) -> Result<Vec<u8>, HostError> {
    let found = match fs.awaited(|fs| fs.walk(path.as_bytes(), Last::Follow)).await {
        Ok(found) if found.kind == Kind::File => found,
        Ok(_) | Err(FsError::NotFound | FsError::NotADirectory | FsError::Loop) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    if found.size > SMALL {
        let why = format!("its {path} has {} bytes, more than the {SMALL} that are read", found.size);
        return Err(BundleError::Configuration { why }.into());
    }
    let mut text = Vec::new();
    while (text.len() as u64) < found.size {
        let piece = fs.read(found.node, FileOffset(text.len() as u64), found.size as usize - text.len()).await?;
        if piece.is_empty() {
            break;
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}

/// The path, without symlinks, that is missing in the image; `None` if it exists or can never exist.
async fn missing(fs: &ImageFs, path: &str) -> Result<Option<PathBuf>, FsError> {
    match tree::reach(fs, path.as_bytes(), Last::Follow).await {
        Ok(Reached::Missing { path, rest }) => {
            let leads_up = rest.iter().any(|name| name == b"..");
            let all = path.iter().chain(&rest).map(|name| OsStr::from_bytes(name));
            Ok((!leads_up).then(|| all.collect()))
        }
        Ok(Reached::Node(_)) | Err(FsError::NotADirectory | FsError::Loop) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates in `directory` those of `stubs` that the image lacks.
///
/// # Errors
/// [`HostError`]
pub async fn make_stubs(fs: &ImageFs, stubs: &[(String, Stub)], directory: &Path) -> Result<(), HostError> {
    for (path, stub) in stubs {
        let Some(place) = missing(fs, path).await? else { continue };
        make_stub(directory, &place, *stub)
            .map_err(|cause| HostError::RunState { path: directory.join(place), cause })?;
    }
    Ok(())
}

/// Independent of the umask: every user of the container sees them.
fn make_stub(directory: &Path, place: &Path, stub: Stub) -> io::Result<()> {
    let mut path = directory.to_owned();
    let mut names = place.components().peekable();
    while let Some(name) = names.next() {
        path.push(name);
        let made = match (names.peek(), stub) {
            (None, Stub::File) => {
                File::create_new(&path).and_then(|file| file.set_permissions(Permissions::from_mode(0o644)))
            }
            _ => DirBuilder::new()
                .mode(0o755)
                .create(&path)
                .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o755))),
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    Ok(())
}

/// A bound in bytes; user databases are smaller.
const SMALL: u64 = 16 << 20;
