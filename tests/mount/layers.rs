//! Layers alone: each as overlayfs holds it in a lower directory, and all of them stacked by the kernel's overlayfs, which has to
//! come to the merged tree that a mount of the whole image shows.
//!
//! The stack differs from the merged tree where overlayfs has no other way, and nowhere else:
//!
//! - a file has the links that its own layer gives it: overlayfs has no hard links across layers, and takes the link count
//!   from the layer that the file comes from, also where another layer hides some of its names ([`links_agree`]);
//! - a character device 0:0 of the image is a whiteout ([`without_devices_zero`]);
//! - attributes by which overlayfs is steered are not shown by a layer;
//! - link counts and numbers of directories, and device numbers of files, are overlayfs's own; no comparison looks at them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use peelfs::fuse::{self, MountOptions, Mounted};
use peelfs::image::{self, Eagerness, Limits, Network, OpaqueMark, SharedLayers, Verify};
use peelfs::overlay::LayerNo;
use peelfs::platform::Platform;
use peelfs::source::BlobSource;
use peelfs::store::Store;
use peelfs_loopback::image::{Family, Image, Packing};
use peelfs_loopback::tar::Entry;

use super::{everything, packed, run, seeds, tree_of};
use support::model::{NodeKind, Seen};
use support::random::{self, Shape};
use support::sandbox::cannot_mount;
use support::shown::MemorySource;
use support::walk::{self, Compare};

/// Why this machine cannot stack, if it cannot; said on stderr for those who read test logs.
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
        run(Command::new("umount").arg(&self.0));
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

/// What a stack of the layers has to show of a merged tree.
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
        let Ok(found) = std::fs::symlink_metadata(stack.join(String::from_utf8_lossy(path).as_ref())) else { continue };
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
