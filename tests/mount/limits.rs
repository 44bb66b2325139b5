//! Limits of address space, threads and open files: too low a limit gives one error, no panic and no hang.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output};

use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

/// The user whose processes are counted: one with a name and no other processes.
const USER: u32 = 2;

/// An image of forty layers that any user may read.
fn image(sandbox: &Sandbox) -> String {
    let dir = sandbox.path().join("layout");
    let bytes = |n: u32| (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761 + n) >> 11) as u8).collect::<Vec<_>>();
    let layer = |n| LayerBuilder::new().file(&format!("f{n}"), bytes(n));
    (0..40).map(layer).fold(ImageBuilder::new(), ImageBuilder::layer).build().write_layout(&dir, "1").unwrap();
    std::fs::set_permissions(sandbox.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("oci:{}:1", dir.display())
}

/// What is run under a limit.
fn commands<'a>(image: &'a str, out: &'a str, at: &'a str) -> [Vec<&'a str>; 5] {
    [
        vec!["ls", "-R", image],
        vec!["cat", image, "/f7"],
        vec!["cp", image, "/f3", out],
        vec!["inspect", image],
        vec!["mount", "--wait", image, at],
    ]
}

/// Runs a command of peelfs under a limit, for two minutes at most, with a cache that holds nothing.
fn run(sandbox: &Sandbox, before: &[&str], program: &Path, args: &[&str]) -> Output {
    let _ = std::fs::remove_dir_all(sandbox.cache());
    let _ = std::fs::remove_dir_all(sandbox.path().join("home/out"));
    let all = sandbox.peelfs(args);
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "120"]).args(before).arg(program).args(args).env_clear();
    for (name, value) in all.get_envs() {
        value.map(|value| command.env(name, value));
    }
    command.output().unwrap()
}

/// Succeeds, or names the low limit in one error; `true` if it succeeds.
fn judged(what: &str, output: &Output) -> bool {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!told.contains("panicked"), "{what}: {}", said(output));
    if output.status.success() {
        return true;
    }
    let lines = |begin| told.lines().filter(|line| line.starts_with(begin)).count();
    assert!(
        output.status.code() == Some(1) && lines("error: ") == 1 && lines("hint: ") == 1,
        "{what}: {}",
        said(output)
    );
    false
}

#[test]
fn too_little_address_space_is_one_error() {
    if cannot_mount() || is_missing("prlimit") || is_missing("timeout") {
        return;
    }
    let sandbox = Sandbox::new();
    let (image, at) = (image(&sandbox), sandbox.mount_point("a"));
    let (out, place) = (sandbox.path().join("home/out"), at.path.to_str().unwrap());
    // With less than its own size and some libraries, the program is not even loaded.
    let program = std::fs::metadata(support::sandbox::program()).unwrap().len() >> 20;
    for more in [16, 32, 64, 128, 224, 1000] {
        let mebibytes = program + more;
        let limit = format!("--as={}", mebibytes << 20);
        for args in commands(&image, out.to_str().unwrap(), place) {
            let what = format!("{} MiB: {}", mebibytes, args[0]);
            let output = run(&sandbox, &["prlimit", &limit], &support::sandbox::program(), &args);
            assert!(judged(&what, &output) || more < 224, "{what}: {}", said(&output));
            if at.is_mounted() {
                let read = (0..40).map(|n| std::fs::read(at.join(&format!("f{n}"))).unwrap().len()).sum::<usize>();
                assert_eq!(read, 40 * 200_000, "{what}");
                at.unmount();
            }
        }
    }
    assert!(!sandbox.logs().contains("panicked"), "{}", sandbox.logs());
}

#[test]
fn too_few_threads_are_one_error() {
    if cannot_mount() || is_missing("prlimit") || is_missing("setpriv") || is_missing("timeout") {
        return;
    }
    let sandbox = Sandbox::new();
    let (image, at) = (image(&sandbox), sandbox.mount_point("a"));
    let program = sandbox.path().join("peelfs");
    std::fs::copy(support::sandbox::program(), &program).unwrap();
    for name in ["home", "run", "mnt", "mnt/a"] {
        chown(sandbox.path().join(name), Some(USER), Some(USER)).unwrap();
    }
    let (out, place) = (sandbox.path().join("home/out"), at.path.to_str().unwrap());
    let (reuid, regid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    for threads in [1, 2, 4, 6, 16, 200] {
        let limit = format!("--nproc={threads}");
        let before = ["setpriv", &reuid, &regid, "--clear-groups", "prlimit", &limit];
        for args in commands(&image, out.to_str().unwrap(), place) {
            let what = format!("{threads} threads: {}", args[0]);
            let output = run(&sandbox, &before, &program, &args);
            // Whether users may mount is another question.
            let may_fail = threads < 200 || args[0] == "mount";
            assert!(judged(&what, &output) || may_fail, "{what}: {}", said(&output));
            if at.is_mounted() {
                peelfs::fuse::unmount(&at.path, peelfs::fuse::OpenFiles::Keep).unwrap();
            }
        }
    }
    assert!(!sandbox.logs().contains("panicked"), "{}", sandbox.logs());
}

#[test]
fn too_few_open_files_are_one_error() {
    if cannot_mount() || is_missing("prlimit") || is_missing("timeout") {
        return;
    }
    let sandbox = Sandbox::new();
    let (image, at) = (image(&sandbox), sandbox.mount_point("a"));
    let (out, place) = (sandbox.path().join("home/out"), at.path.to_str().unwrap());
    // Below, the program cannot be started.
    for files in [5, 8, 10, 16, 24, 40, 64] {
        let limit = format!("--nofile={files}");
        for args in commands(&image, out.to_str().unwrap(), place) {
            let what = format!("{files} files: {}", args[0]);
            let output = run(&sandbox, &["prlimit", &limit], &support::sandbox::program(), &args);
            assert!(judged(&what, &output) || files < 48, "{what}: {}", said(&output));
            if at.is_mounted() {
                at.unmount();
            }
        }
    }
    assert!(!sandbox.logs().contains("panicked"), "{}", sandbox.logs());
}

/// Commands clear away what belongs to processes that are gone. One that cannot learn whether a process is there did so too,
/// and mounts that went on lost the socket of their keeper.
#[test]
fn too_few_open_files_take_nothing_from_other_mounts() {
    if cannot_mount() || is_missing("prlimit") || is_missing("timeout") {
        return;
    }
    let sandbox = Sandbox::new();
    let (image, at) = (image(&sandbox), sandbox.mount_point("a"));
    let mounted = sandbox.peelfs(["mount", "--wait", &image, at.path.to_str().unwrap()]).output().unwrap();
    assert!(mounted.status.success(), "{}", said(&mounted));
    let names = || {
        let found = std::fs::read_dir(sandbox.path().join("run/peelfs")).unwrap();
        let names = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    for files in 4..16 {
        let limit = format!("--nofile={files}");
        let output = run(&sandbox, &["prlimit", &limit], &support::sandbox::program(), &["status"]);
        assert_eq!(names(), before, "{files} files: {}", said(&output));
    }
    let upgraded = sandbox.peelfs(["upgrade", at.path.to_str().unwrap()]).output().unwrap();
    assert!(upgraded.status.success(), "{}", said(&upgraded));
    at.unmount();
}
