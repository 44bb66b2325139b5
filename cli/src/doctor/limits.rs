//! Limits of this process, its user and its control group.

use rustix::process::{Resource, getrlimit};

use super::check::Check;
use crate::text;
use peelfs::host::control_group::ControlGroup;
use peelfs::host::process::{self, Purpose};
use peelfs::host::report::Report;

pub(super) fn checks() -> Vec<Check> {
    // Before the next check raises the limit.
    let files = open_files();
    let mut checks = vec![processes(), files, locked_memory()];
    checks.extend(ControlGroup::own().as_ref().map_or_else(Vec::new, control_group));
    checks
}

/// Starts the threads that a mount would start.
fn processes() -> Check {
    let name = "threads and memory";
    match process::runtime(Purpose::Starting) {
        Ok(runtime) => {
            runtime.shutdown_background();
            let most = getrlimit(Resource::Nproc).current;
            let most = most.map_or("no limit".to_owned(), |most| format!("at most {most} processes of this user"));
            Check::ok(name, format!("enough for a mount; {most}"))
        }
        Err(error) => {
            let check = Check::failed(name, Report::from(error)).costs("nothing can be mounted").needed();
            match check.remedy {
                Some(_) => check,
                None => check.remedy("raise the limit: `ulimit -u`, `ulimit -v`, or in a unit `TasksMax=`, `LimitAS=`"),
            }
        }
    }
}

fn open_files() -> Check {
    let (name, limit) = ("open files", getrlimit(Resource::Nofile));
    let Some(most) = limit.maximum else { return Check::ok(name, "no limit") };
    let found = format!("at most {most}");
    if most < USUAL_FILES {
        return Check::broken(name, found)
            .costs("mounts of images with many layers open and close files all the time")
            .remedy("raise the hard limit: `ulimit -Hn`, /etc/security/limits.conf, or in a unit `LimitNOFILE=`");
    }
    Check::ok(name, found)
}

/// Nothing is locked in memory; said because other FUSE servers need it.
fn locked_memory() -> Check {
    let limit = getrlimit(Resource::Memlock).current.map_or("no limit".to_owned(), text::size);
    Check::ok("locked memory", format!("{limit}; peelfs locks none"))
}

fn control_group(group: &ControlGroup) -> Vec<Check> {
    let mut checks = Vec::new();
    let name = "control group";
    checks.push(match group.memory {
        Some(bytes) if bytes < LEAST_MEMORY => {
            Check::broken(format!("{name}: memory"), format!("at most {}", text::size(bytes)))
                .costs("the kernel may kill the process that serves a mount; readers then wait for the next one")
                .remedy(format!(
                    "allow {} or more: `MemoryMax=` of the unit, `--memory` of the container",
                    text::size(LEAST_MEMORY)
                ))
        }
        Some(bytes) => Check::ok(format!("{name}: memory"), format!("at most {}", text::size(bytes))),
        None => Check::ok(format!("{name}: memory"), "no limit"),
    });
    if let Some(tasks) = group.tasks.filter(|tasks| *tasks < LEAST_TASKS) {
        checks.push(
            Check::broken(format!("{name}: tasks"), format!("at most {tasks}"))
                .costs("few mounts at a time: each has some 20 threads")
                .remedy("`TasksMax=` of the unit, `--pids-limit` of the container"),
        );
    }
    if let Some(service) = group.service() {
        checks.push(
            Check::broken(format!("{name}: service"), format!("this process is part of `{service}`"))
                .costs(format!("mounts made here end when `{service}` stops"))
                .remedy("mount with `systemd-run --scope peelfs mount …`, or in a unit of its own"),
        );
    }
    checks
}

/// Enough for the files of hundreds of layers.
const USUAL_FILES: u64 = 2048;
/// In bytes; a server with a few first passes takes less, and the rest is page cache.
const LEAST_MEMORY: u64 = 128 << 20;
/// Of a server, a keeper and the command.
const LEAST_TASKS: u64 = 64;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn a_small_or_foreign_control_group_is_told() {
        let small = ControlGroup { path: "/system.slice/ci.service".into(), memory: Some(64 << 20), tasks: Some(20) };
        let checks = control_group(&small);
        assert!(checks.len() == 3 && checks.iter().all(|check| check.state == State::Broken && check.remedy.is_some()));
        assert!(checks[2].costs.as_ref().unwrap().contains("`ci.service`"));
        let large = ControlGroup { path: "/".into(), memory: Some(8 << 30), tasks: Some(4096) };
        assert!(control_group(&large).iter().all(|check| check.state == State::Ok));
    }
}
