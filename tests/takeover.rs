//! A mount outlives the process that serves it: the keeper starts another, and readers notice nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use peelfs::loopback::faults::{Fault, Gate, Rule, Target};
use peelfs::loopback::image::{ImageBuilder, LayerBuilder};
use peelfs::loopback::registry::{Catalog, Registry};
use rustix::process::{Pid, Signal, kill_process};
use support::load::{self, times};
use support::sandbox::{MountPoint, Sandbox, cannot_mount};

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

/// Reads a file past the kernel's own cache and compares it.
fn read_anew(at: &Path, number: usize) {
    let path = at.join(format!("d/{number}"));
    let bytes = load::read_anew(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes == content(number), "{}: wrong bytes", path.display());
}

/// Has many readers read while `disturb` runs; returns how long each read took, in microseconds.
fn under_load(at: &MountPoint<'_>, disturb: impl FnOnce(&dyn Fn())) -> Vec<u64> {
    load::under_load(READERS, |reader, turn| read_anew(&at.path, (7 * reader + turn) % FILES), disturb)
}

#[test]
fn a_mount_by_tag_outlives_its_server_while_its_registry_is_away() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--on-outage", "offline"]);
    drop(registry);
    // What it needs is in use.
    let pruned = sandbox.run(["cache", "prune", "--all"]);
    assert!(pruned.status.success(), "{pruned:?}");
    at.kill_server();
    (0..FILES).for_each(|number| read_anew(&at.path, number));
    let upgraded = sandbox.run(["upgrade".as_ref(), at.path.as_os_str()]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    (0..FILES).for_each(|number| read_anew(&at.path, number));
    at.unmount();
}

#[test]
fn a_mount_outlives_its_server_while_its_registry_is_away_and_the_cache_has_lost_what_it_was_resolved_by() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let reference = registry.reference("app", "1");
    let points = [vec![], vec!["--share"]].map(|more| {
        let name = format!("mnt{}", more.len());
        sandbox.mount_with(&reference, &name, &[&["--on-outage", "offline"], more.as_slice()].concat())
    });
    drop(registry);
    for bucket in ["tag-v1", "document-v1"] {
        let files = sandbox.bucket(bucket);
        assert!(!files.is_empty(), "{bucket}");
        files.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
    for at in &points {
        at.kill_server();
        (0..FILES).for_each(|number| read_anew(&at.path, number));
        at.unmount();
    }
    let left = std::fs::read_dir(sandbox.path().join("run/peelfs")).unwrap();
    let left: Vec<_> =
        left.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("image".as_ref())).collect();
    assert!(left.is_empty(), "{left:?}");
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
    let mut took = under_load(&at, |until_all_have_read| {
        for _ in 0..kills {
            at.kill_server();
            until_all_have_read();
        }
    });
    took.sort_unstable();
    // Each kill holds up every reader once, so these are the reads that were held up.
    let held_up = &took[took.len().saturating_sub(kills * READERS)..];
    let of_hundred = |part: usize| held_up[(held_up.len() - 1) * part / 100] / 1000;
    println!(
        "{kills} kills, {} reads by {READERS}; held up: median {} ms, 99th of 100 {} ms",
        took.len(),
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
        at.kill_server();
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
    under_load(&at, |until_all_have_read| {
        for _ in 0..times("PEELFS_UPGRADES", UPGRADES) {
            pauses.push(pause_told(&at.upgrade()));
            until_all_have_read();
        }
    });
    pauses.sort();
    let (middle, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{} upgrades; pauses: median {middle:.1?}, longest {longest:.1?}", pauses.len());
    at.unmount();
}

/// The pause that `peelfs upgrade` tells of.
fn pause_told(said: &str) -> Duration {
    let (_, pause) = said.trim_end().rsplit_once(' ').expect("it ends with the pause");
    let unit = pause.find(|part: char| part != '.' && !part.is_ascii_digit()).expect("it has a unit");
    let seconds = match &pause[unit..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        other => panic!("`{other}` in `{said}`"),
    };
    Duration::from_secs_f64(pause[..unit].parse::<f64>().expect("it is a number") * seconds)
}

#[test]
fn a_mount_goes_on_without_its_keeper_and_ends_with_it() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    let status = || String::from_utf8(sandbox.peelfs(["status"]).arg(&at.path).output().unwrap().stdout).unwrap();
    assert!(!status().contains("keeper"), "{}", status());
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    read_anew(&at.path, 1);
    while !status().contains("keeper   gone") {
        std::thread::yield_now();
    }
    at.unmount();

    let at = sandbox.mount(&registry.reference("app", "1"), "other");
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::TERM).unwrap();
    while at.is_mounted() {
        std::thread::yield_now();
    }
}
