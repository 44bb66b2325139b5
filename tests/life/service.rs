//! A service manager as the keeper. The one here does what systemd does with `FileDescriptorStoreMax=`: it takes
//! descriptors over the notification socket, and hands them to the process that it starts next.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal, kill_process};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said, uninterrupted};

struct Manager<'a> {
    sandbox: &'a Sandbox,
    socket: UnixDatagram,
    store: BTreeMap<String, OwnedFd>,
}

impl<'a> Manager<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        let socket = UnixDatagram::bind(sandbox.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { sandbox, socket, store: BTreeMap::new() }
    }

    /// Starts the unit, with what is in the store, and returns when it says that it is ready.
    fn start(&mut self, reference: &str, at: &MountPoint<'_>, more: &[&str]) -> Child {
        let child = self.begin(reference, at, more);
        while !self.hear().contains("READY=1") {}
        child
    }

    /// Starts the unit, with what is in the store.
    fn begin(&mut self, reference: &str, at: &MountPoint<'_>, more: &[&str]) -> Child {
        let wanted = self.sandbox.peelfs([&["mount", "-f", "--no-keeper", reference], more].concat());
        // They go in as stdin, stdout and stderr, as a child has no others; the shell puts them where they belong.
        let handed: Vec<_> = self.store.iter().map(|(name, fd)| (name.as_str(), fd.try_clone().unwrap())).collect();
        let names: Vec<_> = handed.iter().map(|(name, _)| *name).collect();
        let places = ["3<&0", "4<&1", "5<&2"][..names.len()].join(" ");
        let script = format!("exec {places} 0</dev/null 1>&0 2>>log; export LISTEN_PID=$$; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(wanted.get_program()).args(wanted.get_args()).arg(&at.path).env_clear();
        for (name, value) in wanted.get_envs() {
            value.map(|value| command.env(name, value));
        }
        command.env("NOTIFY_SOCKET", self.sandbox.path().join("notify"));
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        let mut handed = handed.into_iter().map(|(_, fd)| fd);
        command.stdin(handed.next().map_or_else(Stdio::null, Stdio::from));
        command.stdout(handed.next().map_or_else(Stdio::null, Stdio::from));
        command.stderr(handed.next().map_or_else(Stdio::null, Stdio::from));
        let child = command.current_dir(self.sandbox.path()).spawn().unwrap();
        drop(command);
        child
    }

    /// The next message; what it says of the store is done.
    fn hear(&mut self) -> String {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut text)];
        let mut receive = || rustix::net::recvmsg(&self.socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let came = uninterrupted(&mut receive).unwrap();
        let text = String::from_utf8(text[..came.bytes].to_vec()).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).map(str::to_owned);
        for message in control.drain() {
            let RecvAncillaryMessage::ScmRights(descriptors) = message else { continue };
            for descriptor in descriptors {
                assert!(text.contains("FDSTORE=1"), "{text}");
                self.store.insert(name.clone().unwrap(), descriptor);
            }
        }
        if text.contains("FDSTOREREMOVE=1") {
            self.store.remove(&name.unwrap());
        }
        text
    }
}

fn kill(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
}

fn content(length: usize) -> Vec<u8> {
    Random::new(3).bytes(length)
}

/// Images `1`, with passthrough for `f`, and `2`.
fn registry() -> Registry {
    let image = |length| {
        let layer = LayerBuilder::new().file("f", content(length)).file("g", "small");
        ImageBuilder::new().layer(layer).build()
    };
    Registry::start(Catalog::new().image("app", "1", &image(LENGTH)).image("app", "2", &image(1000))).unwrap()
}

/// More than a span, and enough for passthrough.
const LENGTH: usize = 3 << 20;

/// The kernel learns that closing a file asks for nothing. Else the copies of open files that a process gets which
/// this one starts would wait for an answer when it runs its program.
fn close_one(at: &MountPoint<'_>) {
    assert_eq!(std::fs::read(at.join("g")).unwrap(), b"small");
}

#[test]
fn a_service_manager_that_keeps_descriptors_keeps_the_mount() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let reference = registry.reference("app", "1");
    sandbox.mount(&reference, "mnt").unmount();
    sandbox.drop_content();
    let at = sandbox.mount_point("mnt");
    let mut manager = Manager::new(&sandbox);

    let first = manager.start(&reference, &at, &[]);
    assert_eq!(manager.store.keys().collect::<Vec<_>>(), ["peelfs", "peelfs-mount"]);
    close_one(&at);
    let held = File::open(at.join("g")).unwrap();
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 0, gate: gate.clone() }));
    registry.clear();
    let path = at.join("f");
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    assert!(registry.wait_until(|requests| requests.iter().any(|request| request.is_blob())));
    // Twice, so that what it wrote down about the first time is used, too.
    kill(first);
    let second = manager.start(&reference, &at, &[]);
    kill(second);
    registry.faults().clear();
    gate.open();
    let mut third = manager.start(&reference, &at, &[]);
    assert!(reader.join().unwrap() == content(LENGTH));
    let mut small = [0; 5];
    held.read_exact_at(&mut small, 0).unwrap();
    assert_eq!(&small, b"small");
    assert_eq!(at.state().unwrap()["takeovers"], 2);
    let upgrade = sandbox.peelfs(["upgrade"]).arg(&at.path).output().unwrap();
    assert_eq!(upgrade.status.code(), Some(1), "{}", said(&upgrade));
    assert!(said(&upgrade).contains("a service manager starts its process"), "{}", said(&upgrade));
    assert!(said(&upgrade).contains("`systemctl restart` its unit"), "{}", said(&upgrade));
    drop(held);

    // Ended by its own will: nothing stays with the manager.
    kill_process(Pid::from_child(&third), Signal::TERM).unwrap();
    assert!(third.wait().unwrap().success());
    while !manager.store.is_empty() {
        manager.hear();
    }
    assert!(!at.is_mounted());
}

#[test]
fn a_unit_that_waits_for_all_layers_is_ready_after_a_kill_too() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let reference = registry.reference("app", "1");
    let at = sandbox.mount_point("mnt");
    let mut manager = Manager::new(&sandbox);
    let gate = Gate::new();
    // The configuration is smaller than that.
    registry.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 100_000, gate: gate.clone() }));
    let first = manager.begin(&reference, &at, &["--wait"]);
    while !manager.store.contains_key("peelfs") {
        assert!(!manager.hear().contains("READY=1"));
    }
    kill(first);
    let mut second = manager.begin(&reference, &at, &["--wait"]);
    gate.open();
    while !manager.hear().contains("READY=1") {}
    assert_eq!(at.state().unwrap()["takeovers"], 1);
    let status = sandbox.run(["status"]);
    assert!(said(&status).contains("1 of 1 ready"), "{}", said(&status));
    at.unmount();
    assert!(second.wait().unwrap().success());
}

#[test]
fn what_a_service_manager_has_kept_of_another_mount_is_let_go() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount_point("mnt");
    let mut manager = Manager::new(&sandbox);

    // Unmounted while no process served.
    kill(manager.start(&registry.reference("app", "1"), &at, &[]));
    peelfs::fuse::unmount(&at.path, peelfs::fuse::OpenFiles::Keep).unwrap();
    let second = manager.start(&registry.reference("app", "1"), &at, &[]);
    assert!(std::fs::read(at.join("f")).unwrap() == content(LENGTH));

    // The unit names another image now.
    kill(second);
    let third = manager.start(&registry.reference("app", "2"), &at, &[]);
    assert!(std::fs::read(at.join("f")).unwrap() == content(1000));

    // What it hands over is not what it was given.
    kill(third);
    manager.store.insert("peelfs-mount".into(), File::open("/dev/zero").unwrap().into());
    let mut fourth = manager.start(&registry.reference("app", "1"), &at, &[]);
    assert!(std::fs::read(at.join("f")).unwrap() == content(LENGTH));
    at.unmount();
    assert!(fourth.wait().unwrap().success());
}

#[test]
fn a_service_manager_keeps_which_files_are_passed_through() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let reference = registry.reference("app", "1");
    let at = sandbox.mount_point("mnt");
    let mut manager = Manager::new(&sandbox);

    let first = manager.start(&reference, &at, &["--passthrough"]);
    assert_eq!(manager.store.keys().collect::<Vec<_>>(), ["peelfs", "peelfs-mount", "peelfs-opens"]);
    close_one(&at);
    let held = File::open(at.join("f")).unwrap();
    kill(first);
    let mut second = manager.start(&reference, &at, &["--passthrough"]);
    // The kernel refuses an open that is of another kind than one before.
    let again = File::open(at.join("f")).unwrap();
    for file in [held, again] {
        let mut bytes = vec![0; LENGTH];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(LENGTH));
    }
    at.unmount();
    assert!(second.wait().unwrap().success());
}
