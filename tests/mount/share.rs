//! Many mounts in one process: common layers exist once, everything else is separate.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use rustix::process::{Pid, Signal, kill_process};
use support::load;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};

const FILES: usize = 24;

fn content(image: &str, number: usize) -> Vec<u8> {
    let salt = image.bytes().map(u32::from).sum::<u32>() + number as u32;
    (0..9_000 + number as u32 * 401).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ salt as u8).collect()
}

fn files(dir: &str) -> LayerBuilder {
    (0..FILES).fold(LayerBuilder::new().dir(dir), |layer, n| layer.file(&format!("{dir}/{n}"), content(dir, n)))
}

/// Two on one base.
fn images() -> [Image; 2] {
    ["app", "tool"].map(|own| ImageBuilder::new().layer(files("base")).layer(files(own)).build())
}

fn registry() -> Registry {
    let [app, tool] = images();
    Registry::start(Catalog::new().image("app", "1", &app).image("tool", "1", &tool)).unwrap()
}

fn mount<'a>(sandbox: &'a Sandbox, reference: &str, name: &str) -> MountPoint<'a> {
    sandbox.mount_with(reference, name, &["--share"])
}

/// Reads a file past the kernel's own cache and compares it.
fn read_anew(at: &Path, dir: &str, number: usize) {
    let path = at.join(dir).join(number.to_string());
    let bytes = load::read_anew(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes == content(dir, number), "{}: wrong bytes", path.display());
}

fn read_all(at: &Path, own: &str) {
    for number in 0..FILES {
        read_anew(at, "base", number);
        read_anew(at, own, number);
    }
}

fn until_ended(pid: i32) {
    let stat = format!("/proc/{pid}/stat");
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        support::pause();
    }
}

#[test]
fn one_process_serves_three_mounts_and_reads_a_layer_once() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let [app, tool] = ["app", "tool"].map(|name| registry.reference(name, "1"));
    // At the same time, so that they find each other at work, also at starting the process.
    let [a, b, c] = std::thread::scope(|scope| {
        [(&app, "a"), (&tool, "b"), (&app, "c")]
            .map(|(reference, name)| scope.spawn(|| mount(&sandbox, reference, name)))
            .map(|mounting| mounting.join().unwrap())
    });
    for (at, own) in [(&a, "app"), (&b, "tool"), (&c, "app")] {
        read_all(&at.path, own);
        assert!(!at.join(if own == "app" { "tool" } else { "app" }).exists());
    }
    // For any number of mounts and images.
    let mut times = HashMap::new();
    for found in registry.requests().iter().filter(|found| found.is_blob()) {
        *times.entry(found.request.path.rsplit('/').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    for layer in images().iter().flat_map(|image| image.layers()) {
        assert_eq!(times.get(&layer.digest.to_string()), Some(&1), "{times:?}");
    }

    let server = a.server();
    assert_eq!([b.server(), c.server()], [server; 2]);
    let status = sandbox.peelfs(["status"]).args([&a.path, &b.path, &c.path]).output().unwrap();
    let told = String::from_utf8(status.stdout).unwrap();
    for at in [&a, &b, &c] {
        assert!(told.contains(at.path.to_str().unwrap()), "{told}");
    }
    let keeper = a.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    let run = std::fs::read_dir(sandbox.path().join("run/peelfs")).unwrap().map(|entry| entry.unwrap().path());
    assert!(run.into_iter().all(|path| path.extension().is_none_or(|extension| extension != "starting")));
    a.unmount();
    read_all(&b.path, "tool");
    read_all(&c.path, "app");
    c.unmount();
    b.unmount();
    until_ended(server);
    until_ended(keeper);

    // And from the beginning, with a process of its own.
    let again = mount(&sandbox, &tool, "b");
    assert_ne!(again.server(), server);
    read_all(&again.path, "tool");
    again.unmount();
}

#[test]
fn readers_on_all_mounts_outlive_a_killed_or_upgraded_server() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let mounts = [("app", "a"), ("tool", "b"), ("app", "c")]
        .map(|(image, name)| (image, mount(&sandbox, &registry.reference(image, "1"), name)));
    let read = |reader: usize, turn: usize| {
        let (own, at) = &mounts[reader % mounts.len()];
        let number = (5 * reader + turn) % FILES;
        read_anew(&at.path, own, number);
        read_anew(&at.path, "base", number);
    };
    let reads = load::under_load(3 * mounts.len(), read, |_| {
        for _ in 0..3 {
            let before = mounts[0].1.server();
            mounts[0].1.signal(Signal::KILL);
            mounts.iter().for_each(|(_, at)| at.until_served_by_another(before));
        }
        let before = mounts[1].1.server();
        let output = sandbox.peelfs(["upgrade"]).args(mounts.iter().map(|(_, at)| &at.path)).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        mounts.iter().for_each(|(_, at)| at.until_served_by_another(before));
    });
    assert!(!reads.is_empty());
    let states = mounts.each_ref().map(|(_, at)| at.state().unwrap());
    assert!(states.iter().all(|state| state["pid"] == states[0]["pid"] && state["takeovers"] == 4), "{states:?}");
    // After a take-over, the process accepts more mounts.
    let more = mount(&sandbox, &registry.reference("tool", "1"), "d");
    assert_eq!(more.server(), mounts[0].1.server());
    read_all(&more.path, "tool");
    more.unmount();
    for (own, at) in &mounts {
        read_all(&at.path, own);
        at.unmount();
    }
}

#[test]
fn a_mount_that_cannot_be_is_told_as_ever_and_disturbs_no_other() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let missing = sandbox.mount_point("x").try_mount(&registry.reference("nothing", "1"), &["--share"]);
    assert_eq!(missing.status.code(), Some(3), "{}", said(&missing));
    let at = mount(&sandbox, &registry.reference("app", "1"), "a");
    for (more, code) in [
        (["--share", "--cache-size=1GiB"], 2),
        (["--share", "--log-file=other"], 2),
        (["--share", "--platform=linux/s390x"], 3),
    ] {
        let refused = sandbox.mount_point("x").try_mount(&registry.reference("app", "1"), &more);
        assert_eq!(refused.status.code(), Some(code), "{}", said(&refused));
    }
    let twice = at.try_mount(&registry.reference("app", "1"), &["--share"]);
    assert_eq!(twice.status.code(), Some(2), "{}", said(&twice));
    read_all(&at.path, "app");
    at.unmount();
}

/// Layers of a few hundred bytes that take long to make sense of: paths as deep as they may be over each other, and
/// many hard links through a chain of symlinks. A reader that asks for a name of them gets it or is ended, and other mounts of
/// the process notice nothing.
#[test]
fn a_layer_that_takes_long_to_merge_holds_up_no_other_mount() {
    if cannot_mount() {
        return;
    }
    let deep = |name: &str| Entry::file(format!("{name}/{}f", "a/".repeat(4_090)), "");
    let chain =
        (0..250).fold(LayerBuilder::new(), |layer, at| layer.symlink(&format!("l{at}"), &format!("l{}", at + 1)));
    let base = chain.dir("l250").file("l250/f", "linked").entry(deep("x"));
    let links = (0..60_000).fold(LayerBuilder::new(), |layer, at| layer.hard_link(&format!("h/{at}"), "l0/f"));
    let upper = links.entry(deep("x")).entry(deep("y"));
    let bomb = ImageBuilder::new().layer(base.packing(Packing::ZSTD)).layer(upper.packing(Packing::GZIP)).build();
    let small = [deep("x"), deep("x"), deep("x")];
    let small = small
        .into_iter()
        .fold(ImageBuilder::new(), |image, deep| image.layer(LayerBuilder::new().entry(deep).packing(Packing::ZSTD)));
    let (sandbox, registry) = (Sandbox::new(), registry());
    registry.push("bomb", "1", &bomb);
    registry.push("small", "1", &small.build());
    let good = mount(&sandbox, &registry.reference("tool", "1"), "good");
    let (bombs, smalls) = (sandbox.mount_point("bombs"), sandbox.mount_point("smalls"));
    for (at, name) in [(&bombs, "bomb"), (&smalls, "small")] {
        let output = at.try_mount(&registry.reference(name, "1"), &["--share"]);
        assert!(output.status.success(), "{}", said(&output));
    }
    let stat = |path: std::path::PathBuf| {
        Command::new("env").args(["--default-signal", "stat"]).arg(path).stdout(Stdio::null()).spawn().unwrap()
    };
    let names = ["h/7", "x", "y/a/a/a", "h", "none", "x/a/none"];
    let asking: Vec<_> = names.iter().flat_map(|name| [&bombs, &smalls].map(|at| stat(at.join(name)))).collect();
    read_all(&good.path, "tool");
    let another = mount(&sandbox, &registry.reference("app", "1"), "another");
    read_all(&another.path, "app");
    for mut child in asking {
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
    }
    assert_eq!(std::fs::read(bombs.join("h/59999")).unwrap(), b"linked");
    assert_eq!(std::fs::metadata(bombs.join("h/0")).unwrap().nlink(), 60_001);
    assert!(smalls.join("x/a/a/a/a/a").is_dir() && !smalls.join("x/a/a/none").exists());
    [bombs, smalls, good, another].iter().for_each(MountPoint::unmount);
}
