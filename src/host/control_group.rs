//! The control group of this process (cgroups(7)): limits of it that could end a server, and whose it is.

use std::path::{Path, PathBuf};

/// A control group, with the least limits of it and of those above it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ControlGroup {
    /// Its path in the hierarchy.
    pub path: PathBuf,
    /// Bytes of memory that its processes may use, page cache included.
    pub memory: Option<u64>,
    /// How many processes and threads it may have.
    pub tasks: Option<u64>,
}

impl ControlGroup {
    /// That of this process; `None` if the kernel has no control groups.
    pub fn own() -> Option<Self> {
        Self::read(&std::fs::read_to_string("/proc/self/cgroup").ok()?, Path::new("/sys/fs/cgroup"))
    }

    /// `text` is that of `/proc/PID/cgroup`; control groups are mounted on `root`: those of version 2, or a directory for
    /// each controller of version 1.
    fn read(text: &str, root: &Path) -> Option<Self> {
        let mut found = None;
        let mut limits = [None; 2];
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, Path::new(fields.next()?));
            let has = |name: &str| controllers.split(',').any(|controller| controller == name);
            if controllers.is_empty() {
                limits = [limits[0].or(least(root, path, "memory.max")), limits[1].or(least(root, path, "pids.max"))];
            }
            if has("memory") {
                limits[0] = least(&root.join("memory"), path, "memory.limit_in_bytes").or(limits[0]);
            }
            if has("pids") {
                limits[1] = least(&root.join("pids"), path, "pids.max").or(limits[1]);
            }
            // systemd's own hierarchy, in both versions.
            if has("name=systemd") || (controllers.is_empty() && found.is_none()) {
                found = Some(path.to_owned());
            }
        }
        Some(Self { path: found?, memory: limits[0], tasks: limits[1] })
    }

    /// The service that it is part of, as in `cron.service`: systemd ends all its processes when the service stops. The
    /// manager of a user's services is none, and neither is a scope, such as a session's.
    pub fn service(&self) -> Option<&str> {
        let name = self
            .path
            .iter()
            .rev()
            .filter_map(|name| name.to_str())
            .find(|name| [".service", ".scope", ".slice"].iter().any(|unit| name.ends_with(unit)))?;
        (name.ends_with(".service") && !name.starts_with("user@")).then_some(name)
    }
}

/// The least number in the files `file` of a group and those above it. What is no number, as `max`, is no limit, and
/// neither is what version 1 has for none.
fn least(root: &Path, group: &Path, file: &str) -> Option<u64> {
    let group = group.strip_prefix("/").unwrap_or(group);
    let limits = group.ancestors().filter_map(|above| {
        let text = std::fs::read_to_string(root.join(above).join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    });
    limits.min().filter(|limit| *limit < NO_LIMIT)
}

/// No machine has that much memory; version 1 has a number just below 2⁶³ for none.
const NO_LIMIT: u64 = 1 << 60;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_least_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "system.slice/memory.max", "300000000\n");
        write(root.path(), "system.slice/cron.service/memory.max", "max\n");
        write(root.path(), "system.slice/cron.service/pids.max", "90\n");
        let group = ControlGroup::read("0::/system.slice/cron.service\n", root.path()).unwrap();
        assert_eq!((group.memory, group.tasks), (Some(300_000_000), Some(90)));
        assert_eq!(group.service(), Some("cron.service"));
    }

    #[test]
    fn groups_of_version_1_have_a_directory_a_controller() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory/box/memory.limit_in_bytes", "67108864\n");
        write(root.path(), "memory/memory.limit_in_bytes", "9223372036854771712\n");
        write(root.path(), "pids/pids.max", "max\n");
        let text = "5:pids:/\n4:cpuacct,memory:/box\n1:name=systemd:/system.slice/a.service\n0::/\n";
        let group = ControlGroup::read(text, root.path()).unwrap();
        assert_eq!((group.memory, group.tasks, group.service()), (Some(64 << 20), None, Some("a.service")));
        assert!(ControlGroup::read("", root.path()).is_none());
    }

    #[test]
    fn sessions_and_user_managers_are_no_services() {
        for (path, wanted) in [
            ("/", None),
            ("/user.slice/user-1000.slice/session-3.scope", None),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/tmux.scope", None),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", Some("x.service")),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", None),
            ("/system.slice/ci.service/job-7", Some("ci.service")),
            ("/docker/0123", None),
        ] {
            let group = ControlGroup { path: path.into(), ..ControlGroup::default() };
            assert_eq!(group.service(), wanted, "{path}");
        }
    }
}
