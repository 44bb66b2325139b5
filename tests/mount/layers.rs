//! Single layers: each as a lower directory of overlayfs, and all of them stacked by the kernel's overlayfs, which must
//! give the merged tree of a mount of the whole image.
//! The stack differs from the merged tree only where overlayfs cannot do otherwise:
//!
//! - a file has the links that its own layer gives it: overlayfs has no hard links across layers, and takes the link count
//!   from the layer that the file comes from, also where another layer hides some of its names ([`links_agree`]);
//! - a character device 0:0 of the image is a whiteout ([`without_devices_zero`]);
//! - a layer hides attributes that control overlayfs;
//! - link counts and numbers of directories, and device numbers of files, are overlayfs's own; no comparison looks at them.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use peelfs::fuse::{self, MountOptions, Mounted};
use peelfs::image::{self, Eagerness, Limits, Network, OpaqueMark, SharedLayers, Verify};
use peelfs::overlay::LayerNo;
use peelfs::platform::Platform;
use peelfs::source::BlobSource;
use peelfs::store::Store;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Family, Image, Packing};
use peelfs_loopback::tar::Entry;

use super::{everything, packed, run, seeds, serve, tree_of};
use support::model::{NodeKind, Seen};
use support::random::{self, Shape};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};
use support::shown::MemorySource;
use support::walk::{self, Compare};

/// Why this machine cannot stack layers, if it cannot; printed to stderr for test logs.
fn cannot_stack() -> bool {
    if cannot_mount() {
        return true;
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let missing = !known.lines().any(|line| line.trim_end().ends_with("\toverlay"));
    if missing {
        eprintln!("skipped: this kernel has no overlayfs");
    }
    missing
}

/// An overlay of lower directories, the uppermost first; unmounted when dropped.
struct Stack(PathBuf);

impl Stack {
    /// Stacks over one more directory, which is empty: overlayfs takes no fewer than two.
    fn new(dir: &Path, uppermost_first: &[PathBuf]) -> Self {
        let (at, empty) = (dir.join("stack"), dir.join("empty"));
        [&at, &empty].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let lower: Vec<_> =
            uppermost_first.iter().chain([&empty]).map(|path| path.to_str().unwrap().to_owned()).collect();
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &format!("lowerdir={}", lower.join(":"))])
            .arg(&at));
        Self(at)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Another test that starts a program has this one's open files until the program runs.
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// Mounts each layer of an image alone and stacks them; calls `check` with the stack and the layers, base first.
fn with_stacked(image: &Image, verify: Verify, check: impl FnOnce(&Path, &[PathBuf])) {
    let dir = tempfile::tempdir().unwrap();
    let shared: SharedLayers = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap()).into();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mounted, layers): (Vec<Mounted>, Vec<PathBuf>) = runtime.block_on(async {
        let source = MemorySource::new(image) as Arc<dyn BlobSource>;
        let reference = "127.0.0.1:1/image:1".parse().unwrap();
        let (host, limits) = (Platform::host(), Limits::default());
        let plan = image::resolve(&reference, &source, shared.store(), &host, Network::Allowed).await.unwrap();
        let mount = |number: usize| {
            let at = dir.path().join(number.to_string());
            std::fs::create_dir(&at).unwrap();
            let layer = (LayerNo(number as u16), OpaqueMark::Trusted);
            let (source, shared) = (Arc::clone(&source), shared.clone());
            let fs = image::open_layer(&plan, layer, source, shared, &limits, Eagerness::Background, verify);
            let target = fuse::Target::open(&at).unwrap();
            (fuse::mount(fs, &target, &MountOptions::default()).unwrap(), at)
        };
        (0..plan.layers.len()).map(mount).unzip()
    });
    let uppermost_first: Vec<_> = layers.iter().rev().cloned().collect();
    let stack = Stack::new(dir.path(), &uppermost_first);
    check(&stack.0, &layers);
    drop(stack);
    drop(mounted);
}

/// The part of a merged tree that a stack of the layers must show.
fn as_stacked(merged: &BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    let one = |(path, seen): (&Vec<u8>, &Seen)| {
        let mut node = seen.node.clone();
        node.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
        (path.clone(), Seen { node, names: vec![path.clone()], nlink: 1 })
    };
    merged.iter().map(one).collect()
}

/// A character device 0:0 is how overlayfs stores that a name is gone; no unpacker can put one into a lower directory.
fn without_devices_zero(mut merged: BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    merged.retain(|_, seen| seen.node.kind != NodeKind::CharDevice { major: 0, minor: 0 });
    merged
}

/// What differs in a stack from the merged tree, one line for each.
fn differences(merged: &BTreeMap<Vec<u8>, Seen>, stack: &Path, compare: Compare) -> Vec<String> {
    let real = walk::seen(stack).unwrap();
    let mut lines = walk::differences(&as_stacked(merged), &as_stacked(&real), compare);
    lines.extend(links_agree(merged, stack));
    lines
}

/// Names of one inode are names of one file, and names that one layer gives to a file are those of one inode. Of files,
/// overlayfs shows the layer as the device.
fn links_agree(merged: &BTreeMap<Vec<u8>, Seen>, stack: &Path) -> Vec<String> {
    let mut inodes = BTreeMap::new();
    let mut lines = Vec::new();
    for (path, seen) in merged.iter().filter(|(_, seen)| seen.node.kind != NodeKind::Dir) {
        let Ok(found) = std::fs::symlink_metadata(stack.join(std::ffi::OsStr::from_bytes(path))) else { continue };
        let (file, layer, inode) = (seen.names[0].clone(), found.dev(), found.ino());
        let of_inode = inodes.entry((layer, inode)).or_insert_with(|| file.clone());
        if *of_inode != file {
            lines.push(format!("`{}` is one inode with another file", String::from_utf8_lossy(path)));
        }
    }
    let mut of_file: BTreeMap<(Vec<u8>, u64), u64> = BTreeMap::new();
    for ((layer, inode), file) in inodes {
        if of_file.insert((file.clone(), layer), inode).is_some_and(|other| other != inode) {
            lines.push(format!("`{}` is two inodes of one layer", String::from_utf8_lossy(&file)));
        }
    }
    lines
}

#[test]
fn stacked_layers_are_the_merged_tree() {
    if cannot_stack() {
        return;
    }
    let image = packed(&everything(), &[Packing::GZIP], Family::Oci);
    with_stacked(&image, Verify::BeforeShowing, |stack, _| {
        let lines = differences(&tree_of(&everything()), stack, Compare::Exactly);
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    });
}

/// Cases that random images have turned up.
#[test]
fn odd_layers_stacked_are_the_merged_tree() {
    if cannot_stack() {
        return;
    }
    let dir = |path: &str| Entry::dir(path);
    let file = |path: &str| Entry::file(path, "content");
    let cases: Vec<(&str, Vec<Vec<Entry>>)> = vec![
        (
            "a root made opaque through a link, and a whiteout beside",
            vec![
                vec![file("a"), Entry::symlink("c", "."), dir("d"), file("d/e")],
                vec![Entry::opaque("c"), Entry::whiteout("a"), dir("d"), file("d/f")],
            ],
        ),
        (
            "a path of whiteouts below an opaque root",
            vec![
                vec![dir("a"), file("a/b"), Entry::symlink("c", ".")],
                vec![file("n"), Entry::whiteout("a/b"), Entry::opaque("c")],
            ],
        ),
        (
            "a whiteout of nothing in a directory of one layer",
            vec![vec![file("x")], vec![dir("d"), Entry::whiteout("d/x")]],
        ),
        (
            "a whiteout in an opaque directory",
            vec![vec![dir("d"), file("d/x")], vec![dir("d"), Entry::opaque("d"), Entry::whiteout("d/x"), file("d/y")]],
        ),
        (
            "implied directories look as below",
            vec![
                vec![dir("d").mode(0o711).owner(3, 4).mtime(5, 6).xattr("user.x", "y"), file("d/a")],
                vec![file("d/b/c")],
            ],
        ),
        (
            "links across layers, one of which takes the place of a file",
            vec![
                vec![file("a"), Entry::hard_link("b", "a"), Entry::symlink("l", "a")],
                vec![Entry::hard_link("c", "a"), Entry::hard_link("d/e", "b"), Entry::hard_link("m", "l")],
            ],
        ),
        ("a device 0:0 hides what is below", vec![vec![file("a"), dir("d")], vec![Entry::char_device("a", 0, 0)]]),
        (
            "attributes that would steer overlayfs",
            vec![
                vec![dir("d"), file("d/a")],
                vec![
                    dir("d")
                        .xattr("trusted.overlay.opaque", "y")
                        .xattr("user.overlay.opaque", "y")
                        .xattr("user.x", "y"),
                    file("d/b").xattr("trusted.overlay.redirect", "/a").xattr("trusted.other", "z"),
                ],
            ],
        ),
        (
            "names of AUFS's own",
            vec![vec![
                file(".wh..wh.plnk/77.1"),
                Entry::hard_link("a", ".wh..wh.plnk/77.1"),
                Entry::hard_link("b", ".wh..wh.plnk/77.1"),
                dir(".wh..wh.orph"),
            ]],
        ),
    ];
    for (claim, layers) in cases {
        let image = packed(&layers, &[Packing::GZIP], Family::Oci);
        with_stacked(&image, Verify::BeforeShowing, |stack, _| {
            let lines = differences(&without_devices_zero(tree_of(&layers)), stack, Compare::Exactly);
            assert!(lines.is_empty(), "{claim}:\n{}", lines.join("\n"));
        });
    }
}

/// Random images with whiteouts and opaque markers of what is there and what is not, in described and implied
/// directories, hard links within and across layers, and paths through symlinks of lower layers.
#[test]
fn random_layers_stacked_are_the_merged_tree() {
    if cannot_stack() {
        return;
    }
    let whiteouts = Shape::whiteouts();
    let through = Shape { through_links: true, large: 5000, ..Shape::default() };
    for seed in 0..seeds(12) {
        let random = random::image(9000 + seed, [&whiteouts, &through][seed as usize % 2]);
        let verify = [Verify::BeforeShowing, Verify::Behind][seed as usize / 2 % 2];
        with_stacked(&random.image, verify, |stack, _| {
            let merged = without_devices_zero(random.tree.seen());
            let lines = differences(&merged, stack, Compare::Exactly);
            assert!(lines.is_empty(), "seed {seed}:\n{}\n{}", lines.join("\n"), random.listing());
        });
    }
}

#[test]
fn stacked_layers_are_what_umoci_unpacks() {
    if cannot_stack() || is_missing("umoci") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (layout, bundle) = (dir.path().join("layout"), dir.path().join("bundle"));
    let image = packed(&everything(), &[Packing::GZIP], Family::Oci);
    image.write_layout(&layout, "1").unwrap();
    run(Command::new("umoci").args(["unpack", "--image", &format!("{}:1", layout.display())]).arg(&bundle));
    let unpacked = walk::seen(&bundle.join("rootfs")).unwrap();
    with_stacked(&image, Verify::BeforeShowing, |stack, _| {
        let lines = differences(&unpacked, stack, Compare::AsUnpacked);
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    });
}

fn three() -> Vec<Vec<Entry>> {
    let base =
        vec![Entry::dir("."), Entry::dir("d"), Entry::file("d/a", "1"), Entry::dir("o"), Entry::file("o/a", "1")];
    let middle = vec![Entry::dir("."), Entry::dir("d"), Entry::whiteout("d/a"), Entry::dir("o"), Entry::opaque("o")];
    let top = vec![Entry::dir("."), Entry::file("f", "top"), Entry::hard_link("g", "f")];
    vec![base, middle, top]
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, rustix::io::Errno> {
    let mut value = vec![0; 64];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

#[test]
fn a_layer_has_whiteouts_and_opaque_directories() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&packed(&three(), &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    let middle = sandbox.mount_with(&registry.reference("library/image", "1"), "middle", &["--layer", "2"]);
    let whiteout = std::fs::symlink_metadata(middle.join("d/a")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0 && whiteout.mode() & 0o7777 == 0);
    assert_eq!(xattr(&middle.join("o"), "trusted.overlay.opaque"), Ok(b"y".to_vec()));
    assert_eq!(xattr(&middle.join("d"), "trusted.overlay.opaque"), Err(rustix::io::Errno::NODATA));
    assert_eq!(xattr(&middle.join("o"), "user.overlay.opaque"), Err(rustix::io::Errno::NODATA));
    let names = |dir: &str| {
        let mut names: Vec<_> =
            std::fs::read_dir(middle.join(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["d", "o"]);
    assert_eq!(names("d"), ["a"]);
    assert!(names("o").is_empty());
    middle.unmount();
}

/// A layer without whiteouts that describes its directories needs no other layer.
#[test]
fn a_layer_alone_fetches_no_other_where_it_needs_none() {
    if cannot_mount() {
        return;
    }
    let image = packed(&three(), &[Packing::GZIP], Family::Oci);
    let registry = serve(&image);
    let sandbox = Sandbox::new();
    let reference = registry.reference("library/image", "1");
    let top = sandbox.mount_with(&reference, "top", &["--layer", "3"]);
    assert_eq!(std::fs::read(top.join("g")).unwrap(), b"top");
    assert_eq!(std::fs::metadata(top.join("f")).unwrap().nlink(), 2);
    assert!(std::fs::symlink_metadata(top.join("d")).is_err());
    let wanted = format!("/blobs/{}", image.layers()[2].digest);
    let layers: Vec<_> = image.layers().iter().map(|layer| format!("/blobs/{}", layer.digest)).collect();
    let asked: Vec<_> = registry.requests().into_iter().map(|recorded| recorded.request.path).collect();
    let of_layers = || asked.iter().filter(|path| layers.iter().any(|layer| path.contains(layer.as_str())));
    assert!(of_layers().count() > 0 && of_layers().all(|path| path.contains(&wanted)), "{asked:?}");
    top.unmount();
}

/// The number is counted from the lowest; a digest may be that of the blob or of the tar.
#[test]
fn a_layer_mount_outlives_its_server_and_is_told_of() {
    if cannot_mount() {
        return;
    }
    let image = packed(&three(), &[Packing::GZIP], Family::Oci);
    let registry = serve(&image);
    let sandbox = Sandbox::new();
    let reference = registry.reference("library/image", "1");
    let blob = &image.layers()[2].digest;
    let names = ["3".to_owned(), blob.hex()[..12].to_owned(), image.layers()[2].diff_id.to_string()[..20].to_owned()];
    for (name, more) in names.iter().zip([&[][..], &["--share"], &["--no-keeper"]]) {
        let at = sandbox.mount_with(&reference, "top", &[&["--layer", name][..], more].concat());
        let source = fuse::mounts::at(&at.path).unwrap().source;
        assert_eq!(source, format!("{reference}#layer=3"));
        let told = || {
            let output = sandbox.peelfs(["status"]).arg(&at.path).output().unwrap();
            assert!(said(&output).contains(&format!("layer    3 of 3, {blob}")), "{}", said(&output));
            assert!(said(&output).contains("1 of 1 ready"), "{}", said(&output));
            assert!(std::fs::symlink_metadata(at.join("d")).is_err(), "the lower layers' names are not its own");
            assert_eq!(std::fs::read(at.join("g")).unwrap(), b"top");
        };
        told();
        if !more.contains(&"--no-keeper") {
            at.upgrade();
            told();
            at.kill_server();
            told();
        }
        at.unmount();
    }
}

#[test]
fn a_layer_that_is_not_there_is_told_with_their_number() {
    let dir = tempfile::tempdir().unwrap();
    packed(&three(), &[Packing::GZIP], Family::Oci).write_layout(dir.path(), "1").unwrap();
    let sandbox = Sandbox::new();
    let reference = format!("oci:{}:1", dir.path().display());
    let at = sandbox.mount_point("a");
    for (layer, code, text) in [
        ("4", 3, "there is no layer 4: the image has 3 layers, of which 1 is the lowest"),
        ("0123456789", 3, "no layer's digest begins with `0123456789`: the image has 3 layers"),
        ("0", 2, "`0` is neither the number of a layer"),
        ("top", 2, "`top` is neither the number of a layer"),
    ] {
        for command in [&["ls", &reference, "/"][..], &["mount", &reference, at.path.to_str().unwrap()]] {
            let output = sandbox.run([command, &["--layer", layer]].concat());
            assert!(output.status.code() == Some(code) && said(&output).contains(text), "{layer}: {}", said(&output));
        }
    }
    assert!(!at.is_mounted());
}

#[test]
fn a_layer_is_listed_printed_copied_and_described() {
    let dir = tempfile::tempdir().unwrap();
    packed(&three(), &[Packing::GZIP], Family::Oci).write_layout(&dir.path().join("layout"), "1").unwrap();
    let sandbox = Sandbox::new();
    let reference = format!("oci:{}:1", dir.path().join("layout").display());
    let run = |words: &[&str]| {
        let output = sandbox.run(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["ls", "--layer", "3", &reference]), "f\ng\n");
    assert!(run(&["ls", "-l", "--layer", "2", &reference, "d"]).starts_with("c--------- 1 0 0 0, 0 "));
    assert_eq!(run(&["cat", "--layer", "1", &reference, "/d/a"]), "1");
    let described: serde_json::Value = serde_json::from_str(&run(&["inspect", "--layer", "2", &reference])).unwrap();
    assert!(described["layers"].as_array().is_some_and(|layers| layers.len() == 1 && layers[0]["number"] == 2));
    if rustix::process::geteuid().is_root() {
        let copy = dir.path().join("copy");
        run(&["cp", "--layer", "2", &reference, "/", copy.to_str().unwrap()]);
        assert_eq!(std::fs::symlink_metadata(copy.join("d/a")).unwrap().rdev(), 0);
        assert_eq!(xattr(&copy.join("o"), "trusted.overlay.opaque"), Ok(b"y".to_vec()));
    }
}

/// With `--verify behind`, as a whole image: names that the layer has are there, and what may yet come is waited for.
#[test]
fn a_layer_is_shown_while_it_streams_in() {
    if cannot_mount() {
        return;
    }
    let noise: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let entries = vec![
        Entry::dir("."),
        Entry::dir("d"),
        Entry::file("d/early", "early"),
        Entry::whiteout("gone"),
        Entry::file("filler", noise),
        Entry::opaque("d"),
        Entry::file("late", "late"),
    ];
    let image = packed(&[vec![Entry::file("gone", "")], entries], &[Packing::Stored], Family::Oci);
    let registry = serve(&image);
    let gate = Gate::new();
    let blob = format!("/blobs/{}", image.layers()[1].digest);
    let large = Target::matching(move |request| request.path.contains(&blob));
    registry.faults().add(Rule::new(large, Fault::Stall { after: 3_000_000, gate: gate.clone() }));
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&registry.reference("library/image", "1"), &["--layer", "2", "--verify", "behind"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::read(at.join("d/early")).unwrap(), b"early");
    let path = at.join("d");
    let opaque = std::thread::spawn(move || xattr(&path, "trusted.overlay.opaque"));
    gate.open();
    assert_eq!(opaque.join().unwrap(), Ok(b"y".to_vec()), "the marker comes last");
    assert_eq!(std::fs::read(at.join("late")).unwrap(), b"late");
    assert!(std::fs::symlink_metadata(at.join("gone")).unwrap().file_type().is_char_device());
    at.unmount();
}

/// A lower layer that is unavailable causes errors only where it is needed.
#[test]
fn a_missing_lower_layer_fails_what_depends_on_it_only() {
    if cannot_mount() {
        return;
    }
    let image = packed(&three(), &[Packing::GZIP], Family::Oci);
    let registry = serve(&image);
    let blob = format!("/blobs/{}", image.layers()[0].digest);
    let base = Target::matching(move |request| request.path.contains(&blob));
    registry.faults().add(Rule::new(base, Fault::status(404)));
    let sandbox = Sandbox::new();
    let reference = registry.reference("library/image", "1");
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference, &["--layer", "2"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(xattr(&at.join("o"), "trusted.overlay.opaque"), Ok(b"y".to_vec()));
    assert!(std::fs::symlink_metadata(at.join("none")).is_err_and(|error| error.raw_os_error() == Some(2)));
    assert!(std::fs::symlink_metadata(at.join("d/a")).is_err_and(|error| error.raw_os_error() == Some(5)));
    at.unmount();
    let output = at.try_mount(&reference, &["--layer", "2", "--wait"]);
    assert!(output.status.code() == Some(3) && said(&output).contains("not found"), "{}", said(&output));
    assert!(!at.is_mounted());
    let listed = sandbox.run(["ls", "--layer", "2", &reference, "d"]);
    assert_eq!(listed.status.code(), Some(3), "{}", said(&listed));
}
