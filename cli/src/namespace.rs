//! The namespaces that `peelfs run` works in: one of mounts, and for users other than root one in which they are root.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;
use rustix::mount::MountPropagationFlags;

use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::subids;

/// What this process is in its namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// Root of the machine, or of the user namespace that it was started in.
    Root,
    /// Root of a user namespace of its own, which has other users, too.
    WithUsers,
    /// Root of a user namespace of its own, which has no other user.
    Lone,
}

/// Enters namespaces of this process's own. No other thread may run.
pub(super) fn enter() -> Result<Standing, Report> {
    let standing = if rustix::process::geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
        Standing::Root
    } else {
        enter_as_user()?
    };
    // What is mounted here is seen nowhere else, and what is mounted elsewhere is seen here.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(|errno| failed(errno.into()))?;
    Ok(standing)
}

fn enter_as_user() -> Result<Standing, Report> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ranges =
        [("/etc/subuid", user), ("/etc/subgid", user)].map(|(file, user)| subids::range(Path::new(file), user));
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    if let [Some(users), Some(groups)] = ranges
        && let Some(mapper) = Mapper::start([(user, users), (group, groups)])
    {
        unshare(flags)?;
        mapper.map()?;
        return Ok(Standing::WithUsers);
    }
    unshare(flags)?;
    let write = |file: &str, text: &str| std::fs::write(Path::new("/proc/self").join(file), text).map_err(failed);
    // Without privileges, a process may map only itself, and then change no groups.
    write("setgroups", "deny")?;
    write("uid_map", &format!("0 {user} 1\n"))?;
    write("gid_map", &format!("0 {group} 1\n"))?;
    Ok(Standing::Lone)
}

fn unshare(flags: CloneFlags) -> Result<(), Report> {
    nix::sched::unshare(flags).map_err(|errno| failed(errno.into()))
}

fn failed(cause: std::io::Error) -> Report {
    let report = Report::from(HostError::system("enter a namespace")(cause));
    if rustix::process::geteuid().is_root() {
        return report;
    }
    report.hint("users other than root need user namespaces: let root allow them (`sysctl user.max_user_namespaces`, on Debian `kernel.unprivileged_userns_clone`), or run it")
}

/// A process that stays outside, and maps the users of the namespace by newuidmap and newgidmap.
struct Mapper(std::process::Child);

/// An own id, and the first and the count of the others.
type Ids = (u32, (u32, u32));

impl Mapper {
    /// None where those programs are not there.
    fn start([users, groups]: [Ids; 2]) -> Option<Self> {
        let map = |(own, (first, count)): Ids| format!("0 {own} 1 1 {first} {count}");
        let pid = std::process::id();
        let script = format!(
            "command -v newuidmap >/dev/null && command -v newgidmap >/dev/null || exit; echo; read go && newuidmap {pid} {} && newgidmap {pid} {}",
            map(users),
            map(groups)
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().ok()?;
        let told = process.stdout.as_mut().map(|stdout| stdout.read(&mut [0]));
        match told {
            Some(Ok(1)) => Some(Self(process)),
            _ => {
                let _ = process.wait();
                None
            }
        }
    }

    fn map(mut self) -> Result<(), Report> {
        if let Some(mut stdin) = self.0.stdin.take() {
            let _ = stdin.write_all(b"go\n");
        }
        let status = self.0.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(Report::new(Code::Failure, "newuidmap or newgidmap cannot map the users of the container")
            .hint("look at the lines of this user in /etc/subuid and /etc/subgid"))
    }
}
