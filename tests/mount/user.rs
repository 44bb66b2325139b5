//! Mounts of users other than root, with fusermount3.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Family, Packing};
use peelfs_loopback::tar::Entry;

use super::{packed, serve, small};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

/// `nobody`: fusermount3 requires that its user has a name.
const USER: u32 = 65_534;

/// A user with directories of its own, and a copy of the program that it may run, in a mount namespace where users may
/// open /dev/fuse, as they may on most machines.
struct User {
    sandbox: Sandbox,
    program: PathBuf,
    /// It holds the namespace.
    namespace: Child,
}

impl User {
    /// `None` without a setuid fusermount3.
    fn new() -> Option<Self> {
        if cannot_mount() || is_missing("setpriv") || is_missing("unshare") {
            return None;
        }
        let helpers = ["/bin/fusermount3", "/usr/bin/fusermount3"].map(std::fs::metadata);
        if !helpers.into_iter().flatten().any(|helper| helper.mode() & 0o4000 != 0) {
            eprintln!("skipped: needs fusermount3 with its set-user-id bit");
            return None;
        }
        let sandbox = Sandbox::new();
        let program = sandbox.path().join("peelfs");
        std::fs::copy(support::sandbox::program(), &program).unwrap();
        std::fs::set_permissions(sandbox.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["home", "run", "mnt"] {
            chown(sandbox.path().join(name), Some(USER), Some(USER)).unwrap();
        }
        let script = r#"
            mknod -m 666 "$1/fuse" c 10 229
            mount --bind "$1/fuse" /dev/fuse
            echo user_allow_other > "$1/fuse.conf"
            echo ready
            exec cat
        "#;
        let mut namespace = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"])
            .arg(sandbox.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(namespace.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let user = Self { sandbox, program, namespace };
        if line != "ready\n" {
            eprintln!("skipped: cannot make a device that users may open");
            return None;
        }
        Some(user)
    }

    /// A command of root in the namespace.
    fn root(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.namespace.id())).arg(program);
        command
    }

    /// A command of another user there.
    fn as_user(&self, user: u32, program: &Path) -> Command {
        let mut command = self.root("setpriv");
        command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--clear-groups").arg(program);
        command
    }

    /// What peelfs has mounted there: mount point and source.
    fn mounted(&self) -> Vec<(PathBuf, String)> {
        let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.namespace.id())).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(" - fuse.peelfs "));
        let mounted = lines.map(|(before, behind)| {
            (before.split(' ').nth(4).unwrap().into(), behind.split(' ').next().unwrap().to_owned())
        });
        mounted.filter(|(path, _): &(PathBuf, String)| path.starts_with(self.sandbox.path())).collect()
    }

    /// A directory that the user owns.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.sandbox.path().join("mnt").join(name);
        std::fs::create_dir(&path).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    fn peelfs(&self, words: &[&str]) -> Command {
        let mut command = self.as_user(USER, &self.program);
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.sandbox.path().join("home")).env("XDG_RUNTIME_DIR", self.sandbox.path().join("run"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.peelfs(words).output().unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // It reads until its input ends; what is mounted in the namespace goes with the last process in it.
        for (at, _) in self.mounted() {
            let _ = self.root("umount").arg("-fl").arg(at).status();
        }
        drop(self.namespace.stdin.take());
        let _ = self.namespace.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_user_mounts_and_unmounts_by_fusermount3() {
    let Some(user) = User::new() else { return };
    let registry = serve(&small());
    let (at, image) = (user.directory("a"), registry.reference("library/image", "1"));
    for how in [&["--wait"][..], &["--wait", "--share"]] {
        let output = user.run(&[&["mount", &image, text(&at)], how].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
        assert_eq!(user.mounted(), [(at.clone(), image.clone())]);
        let status = user.run(&["status", text(&at)]);
        assert!(said(&status).contains("1 of 1 ready"), "{}", said(&status));
        let output = user.run(&["umount", text(&at)]);
        assert!(output.status.success() && user.mounted().is_empty(), "{}", said(&output));
    }
}

#[test]
fn what_fusermount3_refuses_is_told_on_one_line() {
    let Some(user) = User::new() else { return };
    let registry = serve(&small());
    let (own, image) = (user.directory("own"), registry.reference("library/image", "1"));
    let foreign = user.sandbox.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    for (at, more, code, wanted) in [
        (&foreign, &[][..], 1, format!("fusermount3: user has no write access to mountpoint {}\n", foreign.display())),
        (&own, &["--allow-other"], 1, "set in /etc/fuse.conf\nhint: let root write `user_allow_other`".to_owned()),
        (&own, &["-o", "allow_root"], 1, "set in /etc/fuse.conf\nhint: let root write `user_allow_other`".to_owned()),
    ] {
        // With a layer that is being read, too.
        let output = user.run(&[&["mount", &image, text(at)], more].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.starts_with("error: cannot mount on `") && told.contains(&wanted), "{told}");
        assert!(!told.contains("\\n") && told.lines().count() <= 2, "{told}");
        assert!(user.mounted().is_empty());
    }
}

/// By the kernel alone only root mounts.
#[test]
fn a_user_is_told_why_the_kernel_does_not_show_an_image() {
    let Some(user) = User::new() else { return };
    let registry = serve(&small());
    let (at, image) = (user.directory("a"), registry.reference("library/image", "1"));
    let output = user.run(&["mount", "--kernel", "always", "--allow-other", &image, text(&at)]);
    assert!(!output.status.success() && said(&output).contains("only root may mount EROFS"), "{}", said(&output));
    assert!(user.mounted().is_empty() && registry.blob_bytes() == 0, "nothing was fetched in vain");
    let output = user.run(&["mount", "--kernel", "auto", "--wait", &image, text(&at)]);
    assert!(output.status.success(), "{}", said(&output));
    let state = user.run(&["status", "--json", text(&at)]);
    let state: serde_json::Value = serde_json::from_slice(&state.stdout).unwrap();
    assert_eq!(state["by_fuse"], "only root may mount EROFS");
    assert!(user.run(&["umount", text(&at)]).status.success());
}

/// fusermount3 mounts on the directory itself, wherever its path leads by then.
#[test]
fn a_users_mount_point_exchanged_meanwhile_mounts_nowhere() {
    let Some(user) = User::new() else { return };
    let registry = serve(&small());
    let (at, victim) = (user.directory("a"), user.directory("victim"));
    let moved = at.with_file_name("moved");
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Manifests, Fault::Hang(gate.clone())));
    let output = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| user.run(&["mount", &registry.reference("library/image", "1"), text(&at)]));
        assert!(registry.wait_until(|requests| !requests.is_empty()));
        std::fs::rename(&at, &moved).unwrap();
        symlink(&victim, &at).unwrap();
        gate.open();
        mounting.join().unwrap()
    });
    assert!(output.status.code() == Some(1) && said(&output).contains("moved or replaced"), "{}", said(&output));
    assert!(user.mounted().is_empty(), "{:?}", user.mounted());
}

/// Also what the kernel has in memory of what the user has read.
#[test]
fn allow_root_lets_root_in_and_no_other_user() {
    let Some(user) = User::new() else { return };
    let registry = serve(&small());
    let at = user.directory("a");
    let bound = user
        .root("mount")
        .arg("--bind")
        .args([&user.sandbox.path().join("fuse.conf"), Path::new("/etc/fuse.conf")])
        .status();
    assert!(bound.unwrap().success());
    let output =
        user.run(&["mount", "--wait", "-o", "allow_root", &registry.reference("library/image", "1"), text(&at)]);
    assert!(output.status.success(), "{}", said(&output));
    let file = at.join("d/f");
    let reads = |mut command: Command, path: &Path| command.arg(path).output().unwrap().status.success();
    let cat = |id: u32| user.as_user(id, Path::new("cat"));
    for _ in 0..2 {
        assert!(reads(cat(USER), &file), "its user reads");
        assert!(reads(user.root("cat"), &file), "root reads");
        assert!(!reads(cat(1), &file), "another user does not");
        assert!(!reads(user.as_user(1, Path::new("ls")), &at), "nor does it list");
        // The same holds for the next process.
        let state = user.run(&["status", "--json", text(&at)]);
        let state: serde_json::Value = serde_json::from_slice(&state.stdout).unwrap();
        let pid = state["pid"].to_string();
        assert!(user.root("kill").args(["-9", &pid]).status().unwrap().success());
    }
    assert!(user.run(&["umount", text(&at)]).status.success());
}

/// For root, whose own mount admits only root.
#[test]
fn allow_root_changes_nothing_for_root() {
    if cannot_mount() || is_missing("setpriv") {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    std::fs::set_permissions(sandbox.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let at = sandbox.mount_with(&registry.reference("library/image", "1"), "a", &["-o", "allow_root"]);
    assert_eq!(std::fs::metadata(&at.path).unwrap().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read(at.join("d/f")).unwrap(), b"content");
    let other = Command::new("setpriv").args(["--reuid=1", "--regid=1", "--clear-groups", "ls"]).arg(&at.path).output();
    assert!(!other.unwrap().status.success());
    at.unmount();
}

/// overlayfs takes a user's orders by other attributes than root's, and looks at them in a user namespace.
#[test]
fn a_user_stacks_layers_in_a_namespace() {
    let Some(user) = User::new() else { return };
    let base = [Entry::dir("d"), Entry::file("d/a", "1"), Entry::dir("o"), Entry::file("o/a", "1")];
    let top = [Entry::dir("."), Entry::dir("d"), Entry::whiteout("d/a"), Entry::dir("o"), Entry::opaque("o")];
    let image = packed(&[base.to_vec(), top.to_vec()], &[Packing::GZIP], Family::Oci);
    let registry = serve(&image);
    let image = registry.reference("library/image", "1");
    let (lower, upper, stack) = (user.directory("1"), user.directory("2"), user.directory("stack"));
    for (layer, at) in [("1", &lower), ("2", &upper)] {
        let output = user.run(&["mount", "--wait", "--layer", layer, &image, text(at)]);
        assert!(output.status.success(), "{}", said(&output));
    }
    let script =
        r#"mount -t overlay overlay -o "userxattr,lowerdir=$1:$2" "$3" && find "$3" -mindepth 1 -printf '%P\n' | sort"#;
    let mut stacked = user.as_user(USER, Path::new("unshare"));
    stacked.args(["-Urm", "sh", "-ec", script, "sh"]).args([&upper, &lower, &stack]);
    let output = stacked.output().unwrap();
    if said(&output).contains("unshare failed") {
        eprintln!("skipped: users may not make user namespaces here");
    } else {
        assert_eq!(String::from_utf8_lossy(&output.stdout), "d\no\n", "{}", said(&output));
    }
    for at in [&lower, &upper] {
        let output = user.run(&["umount", text(at)]);
        assert!(output.status.success(), "{}", said(&output));
    }
}
