//! The directory to mount on.

use std::path::{Path, PathBuf};

use super::cover::{self, Need};
use super::error::HostError;
use super::spec::MountSpec;
use super::{Progress, probe, status};
use crate::fuse::{self, MountError, MountPlace, OpenFiles, Target, mounts};

/// The directory to mount on, absolute and suitable; clears a mount on it whose process is gone.
///
/// # Errors
/// [`HostError`]
pub fn find(typed: &Path, progress: &mut dyn Progress) -> Result<PathBuf, HostError> {
    let refused = |cause| HostError::MountPoint { at: typed.to_owned(), cause };
    let at = mounts::followed(typed).map_err(refused)?;
    // First: never access a mount whose server hangs.
    if let Some(mounted) = mounts::peelfs_at(&at) {
        let hangs = status::directory().is_ok_and(|directory| status::hanging_server(&directory, &mounted).is_some());
        if !hangs && probe::ask(&at) != probe::Answer::Gone {
            return Err(MountError::Taken { at: typed.to_owned(), reference: mounted.reference().to_owned() }.into());
        }
        progress.note(&format!("clearing a mount on `{}` whose process is gone", typed.display()));
        if hangs {
            MountPlace::of(&mounted).abort().map_err(HostError::system("abort the connection of a mount"))?;
        } else {
            fuse::unmount_with_cover(&mounted, OpenFiles::Keep)?;
        }
        return find(typed, progress);
    }
    match std::fs::metadata(&at) {
        Err(cause) => Err(refused(cause)),
        Ok(found) if !found.is_dir() => Err(HostError::NotADirectory { at: typed.to_owned() }),
        Ok(_) => Ok(at),
    }
}

/// The mount point of `spec`, held open, if a mount there hides nothing that its own server or another one needs. The
/// user typed it as `typed`.
///
/// # Errors
/// [`HostError`]
pub fn hold(spec: &MountSpec, typed: &Path) -> Result<Target, HostError> {
    let target = Target::open(&spec.at)?;
    cover::check(&target, typed, &Need::of(spec))?;
    Ok(target)
}
