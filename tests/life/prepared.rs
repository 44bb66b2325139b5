//! Images prepared by `ctr-remote` (stargz-snapshotter): what the unpackers of the field show of them, and what peelfs shows
//! by their tables of contents and by its first pass.
//!
//! An unpacker makes files of whatever the tar has. So the landmarks and the table itself are files for podman, containerd
//! and umoci, and they are for peelfs; stargz-snapshotter alone, which has no unpacked tree, hides them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::{Entry, EntryKind};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::model::Seen;
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};
use support::walk::{self, Compare};

use super::containers::system;

fn cannot_run() -> bool {
    cannot_mount() || ["containerd", "ctr", "ctr-remote", "skopeo", "umoci"].into_iter().any(is_missing)
}

/// A containerd of its own.
struct Containerd {
    sandbox: Sandbox,
    process: Child,
}

impl Containerd {
    fn start() -> Self {
        let sandbox = Sandbox::new();
        let path = sandbox.path().display();
        let config = format!(
            "version = 2\nroot = \"{path}/containerd\"\nstate = \"{path}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"{path}/c.sock\"\n[ttrpc]\n  address = \"{path}/t.sock\"\n"
        );
        let file = sandbox.path().join("containerd.toml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(sandbox.path().join("c.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let node = Self { process: command.spawn().unwrap(), sandbox };
        let begun = Instant::now();
        while !node.call("ctr", &["version"]).status.success() {
            assert!(begun.elapsed() < Duration::from_secs(60), "containerd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        node
    }

    fn call(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.arg("--address").arg(self.sandbox.path().join("c.sock")).args(args).stdin(Stdio::null());
        command.env("CONTAINERD_NAMESPACE", self.namespace()).current_dir(self.sandbox.path()).output().unwrap()
    }

    /// Runtimes keep the containers of all tests in one directory, by namespace.
    fn namespace(&self) -> String {
        let name = self.sandbox.path().file_name().unwrap().to_str().unwrap();
        format!("p{}", name.trim_matches('.').to_lowercase())
    }

    fn done(&self, program: &str, args: &[&str]) {
        let output = self.call(program, args);
        let log = || std::fs::read_to_string(self.sandbox.path().join("c.log")).unwrap_or_default();
        assert!(output.status.success(), "{program} {args:?}: {}\n{}", said(&output), log());
    }

    /// What `ctr` mounts of an image that its overlay snapshotter unpacks.
    fn unpacked(&self, reference: &str) -> BTreeMap<Vec<u8>, Seen> {
        let at = self.sandbox.path().join("ctr");
        std::fs::create_dir(&at).unwrap();
        let at_text = at.to_str().unwrap();
        self.done("ctr", &["image", "mount", "--snapshotter", "native", reference, at_text]);
        let seen = walk::seen(&at).unwrap();
        self.done("ctr", &["image", "unmount", "--rm", "--snapshotter", "native", at_text]);
        std::fs::remove_dir(&at).unwrap();
        seen
    }

    /// An image of the content store as a layout, and a registry that serves it as `app:1`.
    fn exported(&self, reference: &str, name: &str) -> (PathBuf, Registry) {
        let (tar, layout) = (self.sandbox.path().join("image.tar"), self.sandbox.path().join(name));
        self.done("ctr", &["image", "export", tar.to_str().unwrap(), reference]);
        let (from, to) = (format!("oci-archive:{}", tar.display()), format!("oci:{}:1", layout.display()));
        succeed(Command::new("skopeo").args(["copy", "--preserve-digests", &from, &to]));
        std::fs::remove_file(tar).unwrap();
        let registry = Registry::start(Catalog::new().layout("app", &layout).unwrap()).unwrap();
        (layout, registry)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    output
}

/// What umoci unpacks of a layout.
fn unpacked_by_umoci(layout: &Path, bundle: &Path) -> BTreeMap<Vec<u8>, Seen> {
    succeed(Command::new("umoci").args(["unpack", "--image", &format!("{}:1", layout.display())]).arg(bundle));
    walk::seen(&bundle.join("rootfs")).unwrap()
}

/// What podman mounts of an image, if it is here.
fn unpacked_by_podman(reference: &str, dir: &Path) -> Option<BTreeMap<Vec<u8>, Seen>> {
    if is_missing("podman") {
        return None;
    }
    let podman = |args: &[&str]| {
        let (root, run) = (dir.join("podman"), dir.join("podman-run"));
        let mut command = Command::new("podman");
        command.arg("--root").arg(root).arg("--runroot").arg(run).args(["--storage-driver", "vfs"]);
        let output = succeed(command.args(args));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let id = podman(&["pull", "--quiet", "--tls-verify=false", reference]);
    let id = id.lines().last().unwrap();
    let at = podman(&["image", "mount", id]);
    let seen = walk::seen(Path::new(&at)).unwrap();
    podman(&["image", "umount", id]);
    podman(&["rmi", "--force", id]);
    Some(seen)
}

fn origins(sandbox: &Sandbox, mounted: &MountPoint<'_>) -> Vec<String> {
    let told = sandbox.run(["status", "--json", mounted.path.to_str().unwrap()]);
    let state: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{}", said(&told)));
    state["layers"].as_array().unwrap().iter().map(|layer| layer["origin"].as_str().unwrap().to_owned()).collect()
}

fn app() -> Image {
    let mut random = Random::new(9);
    let base = vec![
        Entry::dir(".").mode(0o755),
        Entry::dir("usr").mode(0o755),
        Entry::dir("usr/bin").owner(3, 4),
        Entry::file("usr/bin/tool", random.bytes(300_000)).mode(0o4755),
        Entry::file("usr/bin/empty", ""),
        Entry::hard_link("usr/bin/again", "usr/bin/tool").mode(0o4755),
        Entry::symlink("bin", "usr/bin"),
        Entry::file("usr/text", "some text\n".repeat(9_000)).xattr("user.note", "kept"),
        Entry::file("usr/zeros", vec![0; 200_000]),
        Entry::dir("tmp").mode(0o1777),
        Entry::fifo("usr/pipe"),
        Entry::dir("gone"),
        Entry::file("gone/file", "gone"),
    ];
    let top = vec![Entry::whiteout("gone"), Entry::dir("usr"), Entry::file("usr/more", random.bytes(5_000_000))];
    let layers = [base, top].into_iter().map(|layer| LayerBuilder::of(&layer));
    layers.fold(ImageBuilder::new(), ImageBuilder::layer).build()
}

#[test]
fn prepared_images_look_as_podman_and_containerd_unpack_them() {
    if cannot_run() {
        return;
    }
    let node = Containerd::start();
    let served = Registry::start(Catalog::new().image("app", "1", &app())).unwrap();
    let reference = served.reference("app", "1");
    node.done("ctr", &["image", "pull", "--plain-http", "--snapshotter", "native", &reference]);
    let formats = [
        ("estargz", "--estargz", "eStargz", &[".no.prefetch.landmark", "stargz.index.json"][..]),
        ("zstd", "--zstdchunked", "zstd:chunked", &[".no.prefetch.landmark"]),
    ];
    for (name, option, origin, special) in formats {
        let converted = format!("localhost/{name}:1");
        node.done("ctr-remote", &["image", "convert", "--oci", option, &reference, &converted]);
        let by_containerd = node.unpacked(&converted);
        let (layout, registry) = node.exported(&converted, name);
        // umoci reads no zstd.
        let bundle = node.sandbox.path().join(format!("{name}-bundle"));
        let by_umoci = (name == "estargz").then(|| unpacked_by_umoci(&layout, &bundle));
        let by_podman = unpacked_by_podman(&registry.reference("app", "1"), node.sandbox.path());

        let mut all = BTreeMap::new();
        for (index, origin) in [("auto", origin), ("none", "own index")] {
            let cache = node.sandbox.path().join(format!("{name}-{index}"));
            let options = ["--cache-dir", cache.to_str().unwrap(), "--index", index];
            let mounted = node.sandbox.mount_with(&registry.reference("app", "1"), &format!("{name}{index}"), &options);
            let shown = walk::seen(&mounted.path).unwrap();
            assert_eq!(origins(&node.sandbox, &mounted), [origin; 2], "{name}");
            for special in special {
                assert!(shown.contains_key(special.as_bytes()), "{name} by {origin} has no {special}");
            }
            for (tool, wanted) in
                [("containerd", Some(&by_containerd)), ("umoci", by_umoci.as_ref()), ("podman", by_podman.as_ref())]
            {
                let Some(wanted) = wanted else { continue };
                let lines = walk::differences(wanted, &shown, Compare::AsUnpacked);
                assert!(lines.is_empty(), "{name} by {origin}, {tool}:\n{}", lines.join("\n"));
            }
            mounted.unmount();
            all.insert(index, shown);
        }
        let lines = walk::differences(&all["auto"], &all["none"], Compare::AsUnpacked);
        assert!(lines.is_empty(), "{name} by table and by pass:\n{}", lines.join("\n"));
    }
}

/// What a container of the image opened while `ctr-remote` watched comes first, by one request.
#[test]
fn files_that_an_optimizer_saw_come_by_one_request() {
    if cannot_run() || is_missing("runc") {
        return;
    }
    let Some(system) = system() else { return };
    // It wants an entry for each directory.
    let parents = system.iter().flat_map(|entry| {
        let slashes = (0..entry.path.len()).filter(|at| entry.path[*at] == b'/');
        slashes.map(|at| entry.path[..at].to_vec())
    });
    let parents: BTreeSet<Vec<u8>> = parents.collect();
    let mut entries: Vec<_> = parents.into_iter().map(Entry::dir).collect();
    entries.extend(system.into_iter().filter(|entry| entry.kind != EntryKind::Dir));
    let mut random = Random::new(8);
    for number in 0..20 {
        entries.push(Entry::file(format!("data{number}"), random.bytes(200_000)));
    }
    let image = ImageBuilder::new().layer(LayerBuilder::of(&entries)).build();
    let node = Containerd::start();
    let served = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let reference = served.reference("app", "1");
    node.done("ctr", &["image", "pull", "--plain-http", "--snapshotter", "overlayfs", &reference]);
    let optimized = "localhost/optimized:1";
    let output = node.call(
        "ctr-remote",
        &[
            "image",
            "optimize",
            "--oci",
            "--period",
            "2",
            "--entrypoint",
            "[\"/bin/cat\"]",
            "--args",
            "[\"/data7\",\"/data12\"]",
            &reference,
            optimized,
        ],
    );
    if !output.status.success() {
        eprintln!("skipped: `ctr-remote image optimize` does not run here: {}", said(&output));
        return;
    }
    let (_, registry) = node.exported(optimized, "optimized");
    let mounted = node.sandbox.mount(&registry.reference("app", "1"), "a");
    assert!(mounted.join(".prefetch.landmark").exists());
    let from_start =
        |range: &str| range.trim_start_matches("bytes=").split('-').next().unwrap().parse::<u64>().unwrap();
    // The first of its pieces is all that lies before the two files, but for headers.
    let is_first = |range: &str| from_start(range) < 4_096;
    assert!(registry.wait_until(|requests| requests.iter().filter_map(|request| request.range()).any(is_first)));
    let requests = registry.requests();
    let first: Vec<_> = requests.iter().filter_map(|request| request.range()).filter(|range| is_first(range)).collect();
    assert_eq!(first.len(), 1, "{first:?}");
    // All that a container opens was fetched by it.
    let up_to: u64 = first[0].rsplit('-').next().unwrap().parse().unwrap();
    assert!((400_000..3_000_000).contains(&up_to), "{first:?}");
    registry.clear();
    let busybox = std::fs::read(mounted.join("bin/busybox")).unwrap();
    let data = ["data7", "data12"].map(|name| std::fs::read(mounted.join(name)).unwrap().len());
    assert_eq!((busybox.is_empty(), data), (false, [200_000; 2]));
    let again: Vec<_> = registry.requests().into_iter().filter(|request| request.is_blob()).collect();
    let is_behind = |range: &str| from_start(range) > up_to;
    assert!(again.iter().all(|request| request.range().is_some_and(is_behind)), "{again:?} before {up_to}");
    mounted.unmount();
}
