//! Whether containers can be run, by this user or by others: namespaces, the ids in them, overlays.

use std::path::Path;
use std::process::{Command, Stdio};

use super::check::Check;
use super::tools::{find, install};
use crate::namespace::{Standing, Trial};
use peelfs::host::subids;

pub(super) fn checks() -> Vec<Check> {
    let user = rustix::process::geteuid().as_raw();
    let mut checks = vec![ids(user, Path::new("/etc"))];
    checks.extend(namespaces(user == 0));
    checks
}

/// Enters namespaces as `peelfs run` does, in another process.
fn namespaces(is_root: bool) -> Vec<Check> {
    let name = if is_root { "mount namespaces" } else { "user namespaces" };
    let costs = "`peelfs run` does not work";
    let told = Command::new("/proc/self/exe").args(["host", "namespace"]).stdin(Stdio::null()).output();
    let told = match told {
        Ok(told) => told,
        Err(error) => return vec![Check::broken(name, format!("cannot be tried: {error}")).costs(costs)],
    };
    let trial = serde_json::from_slice::<Trial>(&told.stdout).ok().filter(|_| told.status.success());
    let Some(Trial { standing, overlay }) = trial else {
        let said = String::from_utf8_lossy(&told.stderr);
        let mut lines = said.lines();
        let error = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let hint = lines.find_map(|line| line.strip_prefix("hint: ")).map(str::to_owned);
        let check = Check::missing(name, error).costs(costs);
        return vec![match hint {
            Some(hint) => check.remedy(hint),
            None => check,
        }];
    };
    let entered = match standing {
        Standing::Root => "entered as root",
        Standing::WithUsers => "entered, with the subordinate ids of this user",
        Standing::Lone => "entered, with this user as the only one",
    };
    let overlay = match overlay {
        None => Check::ok("overlayfs", "mounted in the namespace"),
        Some(why) => Check::missing("overlayfs", why)
            .costs("`peelfs run` and `mount --writable` need an overlay over the image")
            .remedy("`modprobe overlay`; in a user namespace, Linux 5.11 or later"),
    };
    vec![Check::ok(name, entered), overlay]
}

/// The subordinate ids of `user`, in files in `etc`, and the programs that map them.
fn ids(user: u32, etc: &Path) -> Check {
    let name = "subordinate ids";
    if user == 0 {
        return Check::ok(name, "not needed by root");
    }
    let costs = "containers of this user have one user, root: programs that run as another one do not start";
    let ranges = ["subuid", "subgid"].map(|file| subids::range(&etc.join(file), user));
    match (ranges, find("newuidmap"), find("newgidmap")) {
        ([Some((first, count)), Some(_)], Some(_), Some(_)) => Check::ok(name, format!("{count} from {first} on")),
        ([Some(_), Some(_)], ..) => Check::missing(name, "newuidmap or newgidmap is not installed")
            .costs(costs)
            .remedy(install("uidmap", "shadow-utils")),
        _ => Check::missing(name, format!("no line for user {user} in /etc/subuid and /etc/subgid"))
            .costs(costs)
            .remedy("as root, `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn a_user_without_subordinate_ids_is_told_how_to_get_them() {
        let etc = tempfile::tempdir().unwrap();
        let check = ids(4321, etc.path());
        assert!(check.state == State::Missing && check.remedy.unwrap().contains("usermod"));
        for file in ["subuid", "subgid"] {
            std::fs::write(etc.path().join(file), "4321:200000:65536\n").unwrap();
        }
        let check = ids(4321, etc.path());
        assert!(check.state == State::Ok || check.remedy.unwrap().contains("install"));
        assert_eq!(ids(0, etc.path()).state, State::Ok);
    }
}
