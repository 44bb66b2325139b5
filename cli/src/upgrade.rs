//! `peelfs upgrade`: moves mounts to a process of this version of peelfs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::UpgradeArgs;
use super::failures::Failures;
use super::umount;
use peelfs::host;
use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::status::{self, MountState};

pub(super) fn run(args: &UpgradeArgs) -> Result<(), Report> {
    let states = known(&status::directory()?, &args.at);
    let chosen: Vec<Result<Option<&MountState>, Report>> = if args.all {
        states.iter().map(|state| Ok(Some(state))).collect()
    } else {
        args.at
            .iter()
            .map(|typed| if is_shown_by_kernel(typed) { Ok(None) } else { served_at(typed, &states).map(Some) })
            .collect()
    };
    let mut failures = Failures::default();
    // Mounts that share a process are upgraded together.
    let mut upgraded = HashMap::new();
    for state in chosen {
        let state = match state {
            Ok(None) => continue,
            Ok(Some(state)) => Ok(state),
            Err(report) => Err(report),
        };
        let done = state.and_then(|state| {
            let keeper = state.keeper.as_ref().map(|keeper| keeper.pid);
            let (pid, pause) = match upgraded.get(&keeper).copied() {
                Some(done) if state.shared => done,
                _ => upgrade(state)?,
            };
            upgraded.insert(keeper, (pid, pause));
            println!("{}: served by process {pid} now, after a pause of {pause:.1?}", state.at.display());
            Ok(())
        });
        // The others are upgraded regardless.
        if let Err(report) = done {
            failures.add(report);
        }
    }
    failures.outcome()
}

/// All mounts with a state file, and those of `wanted` that another process is just taking over.
fn known(directory: &Path, wanted: &[PathBuf]) -> Vec<MountState> {
    let begun = Instant::now();
    loop {
        let states = status::all(directory);
        let known = |typed: &PathBuf| {
            served_at(typed, &states).is_ok() || umount::target(typed).is_ok_and(|mount| mount.is_shown_by_kernel())
        };
        if wanted.iter().all(known) || begun.elapsed() > TAKEN_OVER_WITHIN {
            return states;
        }
        std::thread::sleep(TAKEN_OVER_WITHIN / 50);
    }
}

/// Whether it is a kernel mount, which has nothing to upgrade; prints that.
fn is_shown_by_kernel(typed: &Path) -> bool {
    let by_kernel = umount::target(typed).is_ok_and(|mount| mount.is_shown_by_kernel());
    if by_kernel {
        println!("{}: a kernel mount without a process: nothing to upgrade", typed.display());
    }
    by_kernel
}

fn served_at<'a>(typed: &Path, states: &'a [MountState]) -> Result<&'a MountState, Report> {
    let mount = umount::target(typed)?;
    states.iter().rev().find(|state| state.is_of(&mount)).ok_or_else(|| {
        Report::new(Code::NotFound, format!("`{}` is served for another user or session", mount.path.display()))
            .hint("run `peelfs upgrade` as the user who mounted it")
    })
}

/// Asks a mount's keeper; returns the new serving process, and the pause.
fn upgrade(state: &MountState) -> Result<(u32, Duration), Report> {
    let shown = state.at.display();
    let Some(keeper) = &state.keeper else {
        let (why, hint) = if state.service {
            let hint =
                "`systemctl restart` its unit; with `RestartKillSignal=SIGKILL` in it, files stay open meanwhile";
            ("a service manager starts its process", hint)
        } else {
            ("it was mounted with `--no-keeper`", "unmount it and mount it again")
        };
        return Err(Report::new(Code::Failure, format!("cannot upgrade `{shown}`: {why}")).hint(hint));
    };
    let failed = |why: &dyn std::fmt::Display| {
        Report::new(Code::Failure, format!("cannot upgrade `{shown}`: {why}"))
            .hint("it is served as before; `peelfs status` shows its log")
    };
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let slow = || eprintln!("note: waiting for the keeper of `{shown}`, process {}, to answer", keeper.pid);
    host::upgrade::ask(keeper, &program, slow).map_err(|error| match error {
        HostError::Reported(report) => failed(&report.message),
        error => failed(&format!("its keeper, process {}: {}", keeper.pid, peelfs::image::chain(&error)))
            .hint("it is served as before; unmount it and mount it again to have a keeper"),
    })
}

/// A process that takes a mount over writes its state after some 30 ms.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(1);
