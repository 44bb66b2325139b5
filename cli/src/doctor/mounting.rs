//! Whether FUSE is there, and whether a mount can be made.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::cache_dir;
use super::check::Check;
use super::tools::install;
use crate::args::CacheDirArgs;
use peelfs::fuse::{self, MountError, Offers, Target};
use peelfs::host::report::{Code, Report};
use peelfs::host::status;
use peelfs::store::Store;

/// The result of a mount that was made and unmounted.
pub(super) struct Tried(Result<Offers, Report>);

impl Tried {
    /// Not tried.
    pub(super) fn not(why: &str) -> Self {
        Self(Err(Report::new(Code::Failure, why)))
    }

    /// Mounts in the directory where sockets and logs of mounts are.
    pub(super) fn of(cache: &CacheDirArgs) -> Self {
        Self(try_mount(cache))
    }

    /// What the kernel offers, if it could be asked.
    pub(super) fn offers(&self) -> Option<&Offers> {
        self.0.as_ref().ok()
    }
}

fn try_mount(cache: &CacheDirArgs) -> Result<Offers, Report> {
    let missing: Vec<PathBuf> =
        status::directory()?.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
    let tried = try_mount_in(&status::make_directory()?, cache);
    // What is used by now stays.
    missing.iter().for_each(|path| drop(std::fs::remove_dir(path)));
    tried
}

fn try_mount_in(directory: &Path, cache: &CacheDirArgs) -> Result<Offers, Report> {
    let at = directory.join(format!("doctor-{}", std::process::id()));
    let failed = |cause| Report::from(MountError::NoDirectory { at: at.clone(), cause });
    std::fs::DirBuilder::new().mode(0o700).create(&at).map_err(failed)?;
    let trial = cache_dir(cache).ok().and_then(|cache| trial_file(&cache));
    let tried = Target::open(&at).and_then(|target| fuse::try_mount(&target, trial.as_ref()));
    // Not removed while something is mounted on it.
    if let Err(error) = std::fs::remove_dir(&at) {
        tracing::warn!(%error, "cannot remove `{}`", at.display());
    }
    Ok(tried?)
}

/// An unnamed file where the cache is or will be.
fn trial_file(cache: &Path) -> Option<File> {
    let store = Store::open_existing(cache, None).ok()?;
    if cache.is_dir() {
        return store.unnamed_file().ok();
    }
    let there = cache.ancestors().find(|above| above.is_dir())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(there, flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).ok().map(File::from)
}

pub(super) fn checks(tried: &Tried) -> Vec<Check> {
    let mount = match &tried.0 {
        Ok(_) => Check::ok("a mount", "made, and unmounted"),
        Err(report) => Check::failed("a mount", report.clone()).costs("nothing can be mounted"),
    };
    let helper = fuse::installed_helper();
    vec![mount.needed(), device(tried.0.is_ok()), helper_check(helper), others()]
}

fn device(mounts: bool) -> Check {
    let check = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Check::missing(DEVICE, "there is no such device")
            .costs("nothing can be mounted")
            .remedy("load it with `modprobe fuse`; in a container, add `--device /dev/fuse`"),
        _ if mounts => Check::ok(DEVICE, "fusermount3 opens it for this user"),
        io::ErrorKind::PermissionDenied => Check::broken(DEVICE, "this user may not open it")
            .costs("nothing can be mounted")
            .remedy(format!("as root, `chmod 666 {DEVICE}`, as a rule of the package fuse3 does where udev runs")),
        _ => Check::broken(DEVICE, error)
            .costs("nothing can be mounted")
            .remedy("is the FUSE module loaded (`modprobe fuse`), and may this user and container use it?"),
    };
    let opened = File::options().read(true).write(true).open(DEVICE);
    opened.map_or_else(check, |_| Check::ok(DEVICE, "readable and writable"))
}

fn helper_check(found: Option<PathBuf>) -> Check {
    let who = if rustix::process::geteuid().is_root() { "users other than root" } else { "this user" };
    let costs = format!("{who} cannot mount");
    let Some(path) = found else {
        return Check::missing(HELPER, "not installed").costs(costs).remedy(install("fuse3", "fuse3"));
    };
    let shown = path.display().to_string();
    match std::fs::metadata(&path) {
        Ok(found) if found.mode() & 0o4000 != 0 && found.uid() == 0 => Check::ok(HELPER, shown),
        // In a user namespace, the owner may be shown as another one.
        Ok(found) if found.mode() & 0o4000 != 0 => Check::ok(HELPER, format!("{shown}, owned by user {}", found.uid())),
        Ok(_) => Check::broken(HELPER, format!("`{shown}` is not set-user-id root"))
            .costs(costs)
            .remedy(format!("as root, `chown root:root {shown} && chmod 4755 {shown}`")),
        Err(error) => Check::broken(HELPER, format!("`{shown}`: {error}")).costs(costs),
    }
}

fn others() -> Check {
    let text = std::fs::read_to_string(CONFIGURATION).unwrap_or_default();
    if allows_others(&text) {
        return Check::ok(OTHERS, format!("set in {CONFIGURATION}"));
    }
    Check::missing(OTHERS, format!("not set in {CONFIGURATION}"))
        .costs("`--allow-other` and `--allow-root` work for root only")
        .remedy(format!("as root, `echo {OTHERS} >> {CONFIGURATION}`"))
}

fn allows_others(configuration: &str) -> bool {
    configuration.lines().any(|line| line.trim() == OTHERS)
}

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
const OTHERS: &str = "user_allow_other";
const CONFIGURATION: &str = "/etc/fuse.conf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commented_line_allows_nothing() {
        assert!(allows_others("# a file\nmount_max = 7\nuser_allow_other\n"));
        assert!(!allows_others("#user_allow_other\n") && !allows_others("") && !allows_others("user_allow_others"));
    }
}
