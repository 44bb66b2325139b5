//! No unkillable process remains: a process whose threads hang loses its connection to the kernel.
//!
//! A thread hangs where the cache lies on a file system that is frozen (fsfreeze(8)): a thread that writes there waits, and
//! not even SIGKILL ends that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use peelfs::fuse::mounts;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::registry::Registry;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::{kill_for_good, run, serve, small, wait_for};
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};

/// A file system of its own for the cache, which can be frozen; thawed and unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// None where there are no loop devices.
    fn new(sandbox: &Sandbox) -> Option<Self> {
        if cannot_mount() || is_missing("fsfreeze") {
            return None;
        }
        let (image, at) = (sandbox.path().join("disk"), sandbox.path().join("cache"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&image, &at]).stderr(Stdio::null()).status();
        if !made.is_ok_and(|made| made.success()) || !mounted.is_ok_and(|mounted| mounted.success()) {
            eprintln!("skipped: needs mkfs.ext4 and loop devices");
            return None;
        }
        Some(Self(at))
    }

    fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(&self.0));
    }

    fn thaw(&self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).stderr(Stdio::null()).status();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        // Processes that hung there can exit now.
        let begun = std::time::Instant::now();
        while rustix::mount::unmount(&self.0, UnmountFlags::empty()).is_err() && begun.elapsed().as_secs() < 10 {
            support::pause();
        }
    }
}

/// An image that is being mounted, whose server hangs while it writes the first layer to its cache, and a reader of it.
struct Hanging<'a> {
    at: MountPoint<'a>,
    server: i32,
    reader: Child,
}

/// The states of a process's threads, one letter each.
fn states(pid: i32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |thread: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.rsplit(')').next()?.trim_start().chars().next()
    };
    threads.filter_map(state).collect()
}

fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

impl<'a> Hanging<'a> {
    fn begin(sandbox: &'a Sandbox, disk: &Disk, registry: &Registry, how: &[&str]) -> Self {
        let image = small();
        let (gate, blob) = (Gate::new(), image.layers()[0].digest.clone());
        registry.faults().add(Rule::new(Target::Blob(blob.clone()), Fault::Stall { after: 0, gate: gate.clone() }));
        let at = sandbox.mount_point("a");
        let cache = disk.cache();
        let output = at.try_mount(
            &registry.reference("library/image", "1"),
            &[&["--cache-dir", cache.to_str().unwrap()], how].concat(),
        );
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            registry.wait_until(|requests| requests.iter().any(|request| request.request.path.ends_with(blob.hex())))
        );
        let server = at.server();
        disk.freeze();
        gate.open();
        let reader = Command::new("cat").arg(at.join("d/f")).stderr(Stdio::null()).spawn().unwrap();
        wait_for(|| states(server).contains('D'));
        Self { at, server, reader }
    }

    /// The reader got an error, and nothing is mounted any more.
    fn assert_over(mut self) {
        wait_for(|| self.reader.try_wait().unwrap().is_some());
        wait_for(|| !self.at.is_mounted());
        assert!(!self.reader.wait().unwrap().success(), "what it reads cannot be had");
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        // Also of a test that failed.
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE;
        while self.at.is_mounted() && rustix::mount::unmount(&self.at.path, flags).is_ok() {}
    }
}

#[test]
fn a_keeper_that_ends_frees_readers_of_a_hanging_server() {
    for how in [&[][..], &["--share"]] {
        let (sandbox, registry) = (Sandbox::new(), serve(&small()));
        let Some(disk) = Disk::new(&sandbox) else { return };
        let hanging = Hanging::begin(&sandbox, &disk, &registry, how);
        let keeper = hanging.at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
        signal(hanging.server, Signal::KILL);
        wait_for(|| states(hanging.server).starts_with('Z'));
        assert!(states(hanging.server).contains('D'), "a thread of it hangs");
        signal(keeper, Signal::TERM);
        hanging.assert_over();
        disk.thaw();
        wait_for(|| !Path::new(&format!("/proc/{keeper}/fd/0")).exists());
    }
}

/// The keeper gets no exit event, as the process has not exited.
#[test]
fn a_killed_server_that_hangs_is_replaced_and_readers_go_on() {
    let (sandbox, registry) = (Sandbox::new(), serve(&small()));
    let Some(disk) = Disk::new(&sandbox) else { return };
    let mut hanging = Hanging::begin(&sandbox, &disk, &registry, &[]);
    signal(hanging.server, Signal::KILL);
    wait_for(|| sandbox.logs().contains("threads of it hang"));
    disk.thaw();
    assert!(hanging.reader.wait().unwrap().success());
    hanging.at.until_served_by_another(hanging.server);
    hanging.at.unmount();
}

#[test]
fn the_second_signal_ends_a_server_that_hangs_and_its_readers() {
    for how in [&["--no-keeper"][..], &[]] {
        let (sandbox, registry) = (Sandbox::new(), serve(&small()));
        let Some(disk) = Disk::new(&sandbox) else { return };
        let hanging = Hanging::begin(&sandbox, &disk, &registry, how);
        let server = hanging.server;
        signal(server, Signal::TERM);
        wait_for(|| !hanging.at.is_mounted());
        signal(server, Signal::TERM);
        hanging.assert_over();
        disk.thaw();
        wait_for(|| !Path::new(&format!("/proc/{server}/fd/0")).exists());
    }
}

/// Without a keeper.
#[test]
fn umount_ends_the_connection_of_a_killed_server_that_hangs() {
    let (sandbox, registry) = (Sandbox::new(), serve(&small()));
    let Some(disk) = Disk::new(&sandbox) else { return };
    let hanging = Hanging::begin(&sandbox, &disk, &registry, &["--no-keeper"]);
    signal(hanging.server, Signal::KILL);
    wait_for(|| states(hanging.server).starts_with('Z'));
    // It looks for leftovers of processes that are gone, and this one is not.
    assert!(sandbox.run(["status"]).status.success());
    let output = sandbox.peelfs(["umount"]).arg(&hanging.at.path).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains(&format!("its process {} was killed and hangs", hanging.server)),
        "{}",
        said(&output)
    );
    hanging.assert_over();
}

/// Failures of its layers are not reported.
#[test]
fn a_mount_given_up_in_its_first_pass_says_nothing_else() {
    if cannot_mount() {
        return;
    }
    let image = small();
    for how in [&["-f"][..], &["-f", "--no-keeper"], &["-f", "--wait"], &["-f", "--no-keeper", "--wait"]] {
        let (sandbox, registry) = (Sandbox::new(), serve(&image));
        let (gate, blob) = (Gate::new(), image.layers()[0].digest.clone());
        registry.faults().add(Rule::new(Target::Blob(blob), Fault::Stall { after: 0, gate: gate.clone() }));
        let at = sandbox.mount_point("a");
        let mut command = sandbox.peelfs(["mount", &registry.reference("library/image", "1")]);
        let serving = command.arg(&at.path).args(how).stderr(Stdio::piped()).spawn().unwrap();
        let run = sandbox.path().join("run/peelfs");
        wait_for(|| run.exists() && at.state().is_some());
        signal(serving.id() as i32, Signal::INT);
        let output = serving.wait_with_output().unwrap();
        let wanted = match how.contains(&"--wait") {
            true => "error: interrupted before every layer was verified\n",
            false => "",
        };
        assert_eq!(String::from_utf8_lossy(&output.stderr), wanted, "{how:?}");
        assert!(!at.is_mounted(), "{how:?}");
        gate.open();
    }
}

#[test]
fn umount_says_that_the_process_of_a_busy_mount_is_stopped() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), serve(&small()));
    let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
    let mut inside = Command::new("cat").current_dir(&at.path).stdin(Stdio::piped()).spawn().unwrap();
    at.signal(Signal::STOP);
    let output = sandbox.peelfs(["umount"]).arg(&at.path).output().unwrap();
    at.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(&format!("its process {} is stopped", at.server())), "{}", said(&output));
    drop(inside.stdin.take());
    inside.wait().unwrap();
    at.unmount();
    assert!(!mounts::all().iter().any(|mount| mount.path == at.path));
}

#[test]
fn metrics_say_which_mount_has_no_process() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let at = sandbox.mount_with(&reference, "a", &["--no-keeper"]);
    kill_for_good(&at);
    let output = sandbox.peelfs(["status", "--metrics"]).arg(&at.path).output().unwrap();
    let told = said(&output);
    at.unmount();
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("note: no metrics of ").count(), 1, "{told}");
}

#[test]
fn a_warning_before_a_mount_is_in_the_background_is_no_log_line() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&registry.reference("library/image", "1"), &["--cache-dir", "/proc/x"]);
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    at.unmount();
    assert!(told.contains("warning: the cache `/proc/x` cannot keep anything") && !told.contains("WARN"), "{told}");
}
