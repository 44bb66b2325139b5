//! Hundreds of layers in a process with a limit of 64 open files.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use peelfs_loopback::image::{Family, Packing};
use peelfs_loopback::registry::Registry;
use peelfs_loopback::tar::Entry;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};
use support::walk::Compare;

use super::{assert_same, packed, serve, tree_of};

const LAYERS: usize = 600;
/// Still more than the limit, for commands that run again and again.
const FEWER: usize = 100;

fn layers(count: usize) -> Vec<Vec<Entry>> {
    (0..count).map(|n| vec![Entry::file(format!("d{}/f{n}", n % 7), content(n))]).collect()
}

fn content(number: usize) -> Vec<u8> {
    number.to_string().repeat(2000).into_bytes()
}

/// As [`Sandbox::peelfs`], with this limit.
fn limited(sandbox: &Sandbox, args: &[&str]) -> Command {
    let unlimited = sandbox.peelfs(args);
    let mut command = Command::new("prlimit");
    command.arg("--nofile=64:64").arg(unlimited.get_program()).args(unlimited.get_args()).env_clear();
    for (name, value) in unlimited.get_envs() {
        value.map(|value| command.env(name, value));
    }
    command
}

fn mount<'a>(sandbox: &'a Sandbox, reference: &str, name: &str, more: &[&str]) -> MountPoint<'a> {
    let at = sandbox.mount_point(name);
    let args = [&["mount", reference, at.path.to_str().unwrap()], more].concat();
    succeeded(&limited(sandbox, &args).output().unwrap());
    at
}

fn succeeded(output: &Output) {
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(output));
}

/// Reads the files of all `layers` with several readers at the same time.
fn read_all(at: &Path, layers: usize, readers: usize) {
    std::thread::scope(|scope| {
        for first in 0..readers {
            scope.spawn(move || {
                for n in (0..layers).map(|n| (n + first * layers / readers) % layers) {
                    let path = at.join(format!("d{}/f{n}", n % 7));
                    let read = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    assert!(read == content(n), "{}", path.display());
                }
            });
        }
    });
}

fn registry(count: usize) -> Option<Registry> {
    (!cannot_mount() && !is_missing("prlimit")).then(|| serve(&packed(&layers(count), &[Packing::GZIP], Family::Oci)))
}

#[test]
fn six_hundred_layers_are_mounted_with_64_descriptors() {
    let Some(registry) = registry(LAYERS) else { return };
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    for more in [&[][..], &["--share"], &["--passthrough"]] {
        let at = mount(&sandbox, &reference, "a", more);
        read_all(&at.path, LAYERS, 4);
        assert_same("600 layers", &tree_of(&layers(LAYERS)), &at.path, Compare::Exactly);
        at.unmount();
        assert_eq!(sandbox.logs(), "", "{more:?}");
    }
}

/// What is evicted while it is read is fetched again.
#[test]
fn eviction_and_few_descriptors_go_together() {
    let Some(registry) = registry(FEWER) else { return };
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let done = AtomicBool::new(false);
    let at = mount(&sandbox, &reference, "a", &["--wait", "--cache-size", "700KiB"]);
    let pruned = std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut pruned = 0;
            while !done.load(Ordering::Relaxed) || pruned == 0 {
                let all = [
                    &["prune", "--content"][..],
                    &["prune", "--all"],
                    &["prune", "--to", "200KiB"],
                    &["drop", "--content", &reference],
                ];
                for what in all {
                    succeeded(&limited(&sandbox, &[&["cache"], what].concat()).output().unwrap());
                }
                pruned += 1;
            }
            pruned
        });
        read_all(&at.path, FEWER, 2);
        done.store(true, Ordering::Relaxed);
        pruning.join().unwrap()
    });
    assert!(pruned > 0);
    at.unmount();
}

#[test]
fn commands_read_six_hundred_layers_with_64_descriptors() {
    let Some(registry) = registry(LAYERS) else { return };
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    // The first reads the layers, and the others what is cached then.
    let copied = sandbox.path().join("copied");
    succeeded(&limited(&sandbox, &["cp", &reference, "/", copied.to_str().unwrap()]).output().unwrap());
    assert_same("600 layers", &tree_of(&layers(LAYERS)), &copied, Compare::Exactly);
    let listed = limited(&sandbox, &["ls", "-R", &reference, "/"]).output().unwrap();
    succeeded(&listed);
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!((0..LAYERS).all(|n| names.contains(&format!("f{n}"))), "{names}");
    let files: Vec<_> = (0..LAYERS).map(|n| format!("/d{}/f{n}", n % 7)).collect();
    let args: Vec<&str> = ["cat", &reference].into_iter().chain(files.iter().map(String::as_str)).collect();
    let shown = limited(&sandbox, &args).output().unwrap();
    succeeded(&shown);
    assert!(shown.stdout == (0..LAYERS).flat_map(content).collect::<Vec<_>>());
    succeeded(&limited(&sandbox, &["inspect", &reference]).output().unwrap());
    let indexes = sandbox.path().join("indexes");
    let export = ["index", "export", &reference, indexes.to_str().unwrap()];
    succeeded(&limited(&sandbox, &export).output().unwrap());
    succeeded(&limited(&sandbox, &["cache", "verify"]).output().unwrap());
}
