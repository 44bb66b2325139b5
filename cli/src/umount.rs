//! `peelfs umount`

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::args::UmountArgs;
use super::bundle;
use super::container::ROOTFS;
use super::failures::Failures;
use peelfs::fuse::mounts::{self, MountPoint};
use peelfs::fuse::{MountPlace, OpenFiles, UnmountError, unmount_with_cover};
use peelfs::host::report::{Code, Report};
use peelfs::host::status::{self, MountState};

pub(super) fn run(args: &UmountArgs) -> Result<(), Report> {
    let open_files = if args.lazy { OpenFiles::Keep } else { OpenFiles::Refuse };
    let mut failures = Failures::default();
    let (bundles, at): (Vec<_>, Vec<_>) = args.at.iter().partition(|typed| bundle::is_bundle(typed));
    for bundle in bundles {
        if let Err(report) = bundle::take_away(bundle, open_files) {
            failures.add(report);
        }
    }
    let targets: Vec<Result<MountPoint, Report>> = if args.all {
        own_mounts()?.into_iter().map(Ok).collect()
    } else {
        at.into_iter().map(|typed| target(typed)).collect()
    };
    for at in targets {
        // The others are unmounted regardless.
        if let Err(report) = at.and_then(|mount| unmount_one(&mount, open_files)) {
            failures.add(report);
        }
    }
    failures.outcome()
}

/// Mounts of this user and session, the newest first.
fn own_mounts() -> Result<Vec<MountPoint>, Report> {
    let states = status::all(&status::directory()?);
    let all = mounts::all().into_iter().rev().filter(MountPoint::is_peelfs);
    let by_kernel = status::kernel_mounts(&status::directory()?);
    let is_own = |mount: &MountPoint| {
        by_kernel.iter().any(|noted| noted.is_of(mount)) || states.iter().any(|state| state.is_of(mount))
    };
    let (own, others): (Vec<_>, Vec<_>) = all.partition(is_own);
    if !others.is_empty() {
        let shown = others.iter().map(|mount| format!("`{}`", mount.path.display())).collect::<Vec<_>>().join(", ");
        eprintln!("note: not unmounted, as they belong to another session or user: {shown}");
    }
    Ok(own)
}

fn unmount_one(mount: &MountPoint, open_files: OpenFiles) -> Result<(), Report> {
    // Without this directory the serving process is unknown.
    let directory = status::directory().unwrap_or_default();
    // The connection is dead: waiting readers fail now, and open files could not be read anyway.
    if let Some(pid) = status::hanging_server(&directory, mount) {
        eprintln!(
            "note: aborting the connection of `{}`: its process {pid} was killed and hangs",
            mount.path.display()
        );
        return MountPlace::of(mount).abort().map_err(|error| {
            let shown = mount.path.display();
            Report::new(Code::Failure, format!("cannot unmount `{shown}`, whose process {pid} hangs: {error}"))
                .hint("run `umount -f -l` as root")
        });
    }
    let server = status::all(&directory).into_iter().rev().find(|state| state.is_of(mount));
    match unmount_with_cover(mount, open_files) {
        Err(UnmountError::Busy { .. }) if server.as_ref().is_some_and(MountState::is_stopped) => {
            let (shown, pid) = (mount.path.display(), server.map_or(0, |server| server.pid));
            let message =
                format!("cannot unmount `{shown}`: its process {pid} is stopped, and waiting readers keep it busy");
            return Err(Report::new(Code::Failure, message)
                .hint(format!("resume it with `kill -CONT {pid}`, or detach with `peelfs umount --lazy {shown}`")));
        }
        unmounted => unmounted?,
    }
    if open_files == OpenFiles::Refuse
        && let Some(server) = server
    {
        wait_for_end(&server);
    }
    Ok(())
}

/// The mount at this path, if it is one of peelfs.
pub(super) fn target(typed: &Path) -> Result<MountPoint, Report> {
    let shown = typed.display();
    let not_mounted = || {
        Report::new(Code::NotFound, format!("nothing is mounted on `{shown}`"))
            .hint("`peelfs status` lists what peelfs has mounted")
    };
    let at = mounts::absolute(typed).map_err(|_| not_mounted())?;
    // A symlink to a mount point is followed, unless the mount itself does not answer.
    let found = mounts::at(&at).or_else(|| mounts::at(&at.canonicalize().ok()?));
    match found.map(|top| mounts::peelfs_at(&top.path).unwrap_or(top)) {
        Some(mount) if mount.is_peelfs() => Ok(mount),
        Some(mount) => Err(Report::usage(format!("`{shown}` is mounted as {}, not by peelfs", mount.kind))
            .hint(format!("use `umount {shown}`"))),
        // A bundle's mount is the one on its root file system.
        None if bundle::is_bundle(typed) => target(&typed.join(ROOTFS)),
        None => Err(not_mounted()),
    }
}

/// Waits a moment for the serving process to exit, or to drop this mount if it serves others, so that its cache locks
/// are released.
fn wait_for_end(state: &MountState) {
    let begun = Instant::now();
    while state.shared && state.is_published() && begun.elapsed() < END_WITHIN {
        std::thread::sleep(Duration::from_millis(2));
    }
    let server = i32::try_from(state.pid).ok().and_then(Pid::from_raw).filter(|_| !state.shared);
    let Some(process) = server.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    let mut ended = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    // A slow end is no failure of the unmount.
    let _ = poll(&mut ended, Some(&Timespec { tv_sec: END_WITHIN.as_secs().cast_signed(), tv_nsec: 0 }));
}

const END_WITHIN: Duration = Duration::from_secs(5);
