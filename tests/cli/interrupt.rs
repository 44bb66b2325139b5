//! A process that waits for a registry that does not answer can be interrupted.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peelfs::digest::Digest;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use rustix::process::{Pid, Signal, kill_process};
use support::sandbox::{Sandbox, cannot_mount};

const READERS: usize = 8;
/// `PEELFS_ROUNDS` makes the runs longer.
const ROUNDS: usize = 4;

fn rounds() -> usize {
    std::env::var("PEELFS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

/// A registry with one image of one layer, and that layer's blob.
fn registry() -> (Registry, Digest) {
    let filler: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let layer = LayerBuilder::new().entry(Entry::file("file", filler)).packing(Packing::GZIP);
    let image = ImageBuilder::new().layer(layer).build();
    let blob = image.layers()[0].digest.clone();
    (Registry::start(Catalog::new().image("app", "1", &image)).unwrap(), blob)
}

/// Makes requests for a blob hang until the gate opens.
fn hang(registry: &Registry, blob: Digest) -> Gate {
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blob(blob), Fault::Stall { after: 0, gate: gate.clone() }));
    gate
}

/// Interrupts each of `children`, which all wait, and checks how they end. A child that cannot be interrupted would
/// never end. Returns the time until the last has ended.
fn interrupt(children: Vec<Child>, signal: Signal) -> Duration {
    let begun = Instant::now();
    for child in &children {
        kill_process(Pid::from_child(child), signal).unwrap();
    }
    for mut child in children {
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal.as_raw()));
    }
    begun.elapsed()
}

/// Starts a program that signals end, also where the runner of the tests ignores them, as a shell's background does.
fn start(program: &str, argument: &std::path::Path) -> Child {
    Command::new("env")
        .args(["--default-signal", program])
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until every child waits for an answer of the kernel's file system.
fn until_all_wait(children: &[Child]) {
    for child in children {
        let state = format!("/proc/{}/wchan", child.id());
        while !std::fs::read_to_string(&state).is_ok_and(|at| WAITS.contains(&at.as_str())) {
            support::pause();
        }
    }
}

/// Where a process sleeps that waits for an answer to a FUSE request, or for a page, or behind another
/// one that does.
const WAITS: [&str; 6] = [
    "request_wait_answer",
    "folio_wait_bit_common",
    "__fuse_simple_request",
    "d_alloc_parallel",
    "fuse_lock_inode",
    "folio_wait_bit",
];

#[test]
fn interrupted_readers_of_content_that_does_not_come_end() {
    if cannot_mount() {
        return;
    }
    let (sandbox, (registry, blob)) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    at.unmount();
    sandbox.drop_content();
    let gate = hang(&registry, blob);
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let mut longest = Duration::ZERO;
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        for _ in 0..rounds() {
            let readers: Vec<_> = (0..READERS).map(|_| start("cat", &at.join("file"))).collect();
            until_all_wait(&readers);
            longest = longest.max(interrupt(readers, signal));
        }
    }
    println!("{} readers interrupted, {READERS} at a time, gone within {longest:?}", 3 * rounds() * READERS);
    // A reader that asks when the registry is back is served.
    registry.faults().clear();
    gate.open();
    assert!(start("cat", &at.join("file")).wait().unwrap().success());
    at.unmount();
}

#[test]
fn interrupted_lookups_in_a_layer_that_does_not_come_end() {
    if cannot_mount() {
        return;
    }
    let (sandbox, (registry, blob)) = (Sandbox::new(), registry());
    let gate = hang(&registry, blob);
    let at = sandbox.mount_point("mnt");
    let output = at.try_mount(&registry.reference("app", "1"), &[]);
    assert!(output.status.success(), "{output:?}");
    let mut longest = Duration::ZERO;
    for signal in [Signal::INT, Signal::KILL] {
        for round in 0..rounds() {
            let lookups: Vec<_> =
                (0..READERS).map(|number| start("stat", &at.join(&format!("file-{round}-{number}")))).collect();
            until_all_wait(&lookups);
            longest = longest.max(interrupt(lookups, signal));
            let listing = vec![start("ls", &at.path)];
            until_all_wait(&listing);
            longest = longest.max(interrupt(listing, signal));
        }
    }
    println!("{} lookups interrupted, {READERS} at a time, gone within {longest:?}", 2 * rounds() * READERS);
    registry.faults().clear();
    gate.open();
    assert!(start("stat", &at.join("file")).wait().unwrap().success());
    at.unmount();
}

/// `stat` of the root waits for the layer that describes it, and can be interrupted. Making, listing and ending mounts
/// do not call it.
#[test]
fn stat_of_the_root_waits_for_the_layer_that_describes_it() {
    if cannot_mount() {
        return;
    }
    let base = LayerBuilder::new().entry(Entry::dir(".").mode(0o710).owner(5, 6).mtime(1_600_000_000, 0));
    let image = ImageBuilder::new().layer(base).layer(LayerBuilder::new().entry(Entry::file("top", "top"))).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let sandbox = Sandbox::new();
    let gate = hang(&registry, image.layers()[0].digest.clone());
    for ended in [true, false] {
        let at = sandbox.mount_point("mnt");
        let output = at.try_mount(&registry.reference("app", "1"), &[]);
        assert!(output.status.success(), "{output:?}");
        let waiting: Vec<_> = ["stat", "mountpoint", "ls"].map(|program| start(program, &at.path)).into();
        until_all_wait(&waiting);
        let status = sandbox.run(["status"]);
        assert!(String::from_utf8_lossy(&status.stdout).contains("mnt"), "{status:?}");
        if ended {
            interrupt(waiting, Signal::INT);
            let again = at.try_mount(&registry.reference("app", "1"), &[]);
            assert!(String::from_utf8_lossy(&again.stderr).contains("already"), "{again:?}");
            at.unmount();
            continue;
        }
        registry.faults().clear();
        gate.open();
        for mut child in waiting {
            assert!(child.wait().unwrap().success());
        }
        let root = std::fs::metadata(&at.path).unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid(), root.gid(), root.mtime()), (0o710, 5, 6, 1_600_000_000));
        at.unmount();
    }
}
