//! A mount outlives the process that serves it: the keeper starts another, and readers notice nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use peelfs::loopback::faults::{Fault, Gate, Rule, Target};
use peelfs::loopback::image::{ImageBuilder, LayerBuilder};
use peelfs::loopback::registry::{Catalog, Registry};
use rustix::process::{Pid, Signal, kill_process};
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};

const FILES: usize = 64;
const READERS: usize = 32;
/// `PEELFS_KILLS` and `PEELFS_UPGRADES` make the runs longer.
const KILLS: usize = 10;
const UPGRADES: usize = 3;

fn content(number: usize) -> Vec<u8> {
    (0..20_000 + number as u32 * 997).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8 ^ number as u8).collect()
}

fn registry() -> Registry {
    let mut layer = LayerBuilder::new().dir("d");
    for number in 0..FILES {
        layer = layer.file(&format!("d/{number}"), content(number));
    }
    Registry::start(Catalog::new().image("app", "1", &ImageBuilder::new().layer(layer).build())).unwrap()
}

fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|times| times.parse().ok()).unwrap_or(default)
}

/// Reads a file past the kernel's own cache and compares it.
fn read_anew(at: &Path, number: usize) {
    let path = at.join(format!("d/{number}"));
    let mut file = File::open(&path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes == content(number), "{}: wrong bytes", path.display());
}

/// Ends the process that serves and waits until another one does.
fn kill(at: &MountPoint<'_>) {
    let before = at.server();
    kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
    until_served_by_another(at, before);
}

fn until_served_by_another(at: &MountPoint<'_>, before: i32) {
    while at.state().is_none_or(|state| state["pid"] == before) {
        std::thread::yield_now();
    }
}

/// Reads with many readers while `disturb` runs; returns the reads made and the longest in microseconds.
fn under_load(at: &MountPoint<'_>, disturb: impl FnOnce()) -> (u64, Vec<u64>) {
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Barrier::new(READERS + 1);
    let mut longest = Vec::new();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (done, reads, begin) = (&done, &reads, &begin);
                scope.spawn(move || {
                    begin.wait();
                    let mut pauses = Vec::new();
                    for number in (0..FILES).cycle().skip(reader * 7) {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let begun = std::time::Instant::now();
                        read_anew(&at.path, number);
                        pauses.push(begun.elapsed().as_micros() as u64);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    pauses
                })
            })
            .collect();
        begin.wait();
        disturb();
        done.store(true, Ordering::Relaxed);
        longest.extend(readers.into_iter().flat_map(|reader| reader.join().unwrap()));
    });
    longest.sort_unstable();
    (reads.into_inner(), longest)
}

#[test]
fn readers_notice_nothing_of_a_killed_server() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let held = File::open(at.join("d/5")).unwrap();
    let kills = times("PEELFS_KILLS", KILLS);
    let (reads, longest) = under_load(&at, || (0..kills).for_each(|_| kill(&at)));
    assert!(reads > 0);
    // Each kill holds up every reader once at most, so these are the reads that were held up.
    let held_up = &longest[longest.len().saturating_sub(kills * READERS)..];
    let of_hundred = |part: usize| held_up[(held_up.len() - 1) * part / 100] / 1000;
    println!(
        "{kills} kills, {reads} reads by {READERS}; held up: median {} ms, 99th of 100 {} ms",
        of_hundred(50),
        of_hundred(99)
    );
    let mut bytes = vec![0; content(5).len()];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == content(5));
    assert_eq!(at.state().unwrap()["takeovers"], kills);
    drop(held);
    at.unmount();
}

#[test]
fn a_reader_that_waits_for_the_registry_is_served_by_the_next_process() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    sandbox.mount(&registry.reference("app", "1"), "mnt").unmount();
    sandbox.drop_content();
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 0, gate: gate.clone() }));
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    registry.clear();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_anew(&at.path, 3));
        let opener = scope.spawn(|| std::fs::read_dir(at.join("d")).unwrap().count());
        assert!(registry.wait_until(|requests| requests.iter().any(|request| request.is_blob())));
        kill(&at);
        registry.faults().clear();
        gate.open();
        registry.drop_connections();
        reader.join().unwrap();
        assert_eq!(opener.join().unwrap(), FILES);
    });
    at.unmount();
}

#[test]
fn an_upgrade_exchanges_the_server_under_load() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let mut pauses = Vec::new();
    under_load(&at, || {
        for _ in 0..times("PEELFS_UPGRADES", UPGRADES) {
            let before = at.server();
            let output = sandbox.peelfs(["upgrade"]).arg(&at.path).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            pauses.push(String::from_utf8(output.stdout).unwrap());
            until_served_by_another(&at, before);
        }
    });
    print!("{}", pauses.concat());
    at.unmount();
}

#[test]
fn a_mount_goes_on_without_its_keeper_and_ends_with_it() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    read_anew(&at.path, 1);
    at.unmount();

    let at = sandbox.mount(&registry.reference("app", "1"), "other");
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::TERM).unwrap();
    while at.is_mounted() {
        std::thread::yield_now();
    }
}
