//! The namespaces of `peelfs run`: a mount namespace, and for users other than root a user namespace.

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use peelfs::host::error::HostError;
use peelfs::host::report::{Code, Report};
use peelfs::host::subids;

/// The privileges of this process in its namespaces.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Standing {
    /// Root of the machine, or of the user namespace that it was started in.
    Root,
    /// Root of its own user namespace, which has other users.
    WithUsers,
    /// Root of its own user namespace, without other users.
    Lone,
}

/// Enters new namespaces. Must run before other threads start.
pub(super) fn enter() -> Result<Standing, Report> {
    let standing = if rustix::process::geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
        Standing::Root
    } else {
        enter_as_user()?
    };
    // Mounts made here stay here; mounts made outside appear here.
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
    // An unprivileged process may map only itself, and must give up setgroups.
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

/// What a process found that entered namespaces.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Trial {
    pub(super) standing: Standing,
    /// Why no overlay can be mounted there.
    pub(super) overlay: Option<String>,
}

/// `peelfs host namespace`: enters namespaces, mounts an overlay there, and prints the [`Trial`]. All that it mounts is gone
/// with it.
pub(super) fn try_out() -> Result<(), Report> {
    let standing = enter()?;
    let trial = Trial { standing, overlay: try_overlay().err().map(|errno| errno.to_string()) };
    println!("{}", serde_json::to_string(&trial).expect("plain data"));
    Ok(())
}

/// Mounts a tmpfs over the temporary directory, and an overlay of directories in it.
fn try_overlay() -> Result<(), rustix::io::Errno> {
    let at = std::env::temp_dir();
    rustix::mount::mount("peelfs", &at, "tmpfs", MountFlags::empty(), Some(c"mode=0700"))?;
    for name in ["lower", "upper", "work", "all"] {
        rustix::fs::mkdir(at.join(name), Mode::RWXU)?;
    }
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| at.join(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},userxattr");
    let options = CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::mount::mount("peelfs", at.join("all"), "overlay", MountFlags::empty(), Some(options.as_c_str()))
}

/// A process that stays outside and maps the namespace's users with newuidmap and newgidmap.
struct Mapper(std::process::Child);

/// The own id; the first and the count of the others.
type Ids = (u32, (u32, u32));

impl Mapper {
    /// `None` if those programs are missing.
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
