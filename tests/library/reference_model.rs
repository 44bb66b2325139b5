//! The reference model: what the other tests call right must be right, and must be what `umoci unpack`
//! makes of the same images.
//!
//! The comparison with umoci is skipped without umoci or without root, which alone may set owners.

use std::process::Command;

use peelfs_loopback::image::Packing;
use peelfs_loopback::tar::{Entry, EntryKind};
use support::model::{self, NodeKind, Tree};
use support::random::{self, Markers, RandomImage, Shape};
use support::walk::{self, Compare};

#[test]
fn the_model_sees_what_umoci_unpacks() {
    if Command::new("umoci").arg("--version").output().is_err() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs umoci and root");
        return;
    }
    let shape = Shape {
        // umoci 0.4 does not support zstd.
        packings: vec![Packing::Stored, Packing::GZIP, Packing::Gzip { level: 1, member: Some(3000) }],
        devices: may_make_devices(),
        markers: Markers::Anywhere,
        large: 20_000,
        ..Shape::default()
    };
    let whiteouts = Shape { packings: shape.packings.clone(), devices: shape.devices, ..Shape::whiteouts() };
    let seeds = std::env::var("PEELFS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    for seed in 0..2 * seeds {
        let random = random::image(seed, if seed % 2 == 0 { &shape } else { &whiteouts });
        let dir = tempfile::tempdir().unwrap();
        let (layout, bundle) = (dir.path().join("layout"), dir.path().join("bundle"));
        random.image.write_layout(&layout, "1").unwrap();
        let image = format!("{}:1", layout.display());
        let output = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output().unwrap();
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
        let real = walk::without_hidden(walk::seen(&bundle.join("rootfs")).unwrap());
        let lines = walk::differences(&random.tree.seen(), &real, Compare::AsUnpacked);
        assert!(lines.is_empty(), "seed {seed}:\n{}\n{}", lines.join("\n"), random.listing());
    }
}

fn may_make_devices() -> bool {
    let dir = tempfile::tempdir().unwrap();
    Command::new("mknod").arg(dir.path().join("d")).args(["c", "1", "3"]).status().is_ok_and(|status| status.success())
}

fn paths(layers: &[&[Entry]]) -> Vec<String> {
    let tree = Tree::of(layers.iter().copied());
    tree.iter().skip(1).map(|(path, _)| String::from_utf8(path.to_vec()).unwrap()).collect()
}

#[test]
fn a_whiteout_hides_lower_names_only_wherever_it_stands() {
    let base = [Entry::dir("d"), Entry::file("d/a", "1"), Entry::file("d/b", "1")];
    let upper = [Entry::file("d/a", "2"), Entry::whiteout("d/a"), Entry::whiteout("d/b")];
    assert_eq!(paths(&[&base, &upper]), ["d", "d/a"]);
    let late = [Entry::file("d/c", "2"), Entry::opaque("d")];
    assert_eq!(paths(&[&base, &late]), ["d", "d/c"]);
}

#[test]
fn a_hidden_link_leads_its_own_layer_nowhere() {
    let base = [Entry::dir("e"), Entry::symlink("l", "e")];
    let upper = [Entry::file("l/x", "2"), Entry::whiteout("l")];
    assert_eq!(paths(&[&base, &upper]), ["e", "l", "l/x"]);
}

#[test]
fn a_directory_after_a_file_of_its_name_starts_empty() {
    let base = [Entry::dir("d"), Entry::file("d/a", "1")];
    assert_eq!(paths(&[&base, &[Entry::dir("d")]]), ["d", "d/a"]);
    assert_eq!(paths(&[&base, &[Entry::file("d", ""), Entry::dir("d")]]), ["d"]);
}

#[test]
fn hard_links_keep_the_node_that_is_replaced_above() {
    let base = [Entry::file("a", "1"), Entry::hard_link("b", "./a")];
    let upper = [Entry::hard_link("c", "/b"), Entry::file("a", "2"), Entry::hard_link("x", "gone")];
    let seen = Tree::of([&base[..], &upper[..]]).seen();
    assert_eq!(seen[&b"b"[..]].names, [b"b", b"c"]);
    assert_eq!(seen[&b"b"[..]].node.kind, NodeKind::File("1".into()));
    assert_eq!(seen[&b"a"[..]].node.kind, NodeKind::File("2".into()));
    assert!(!seen.contains_key(&b"x"[..]));
}

#[test]
fn parents_are_made_followed_and_kept_inside() {
    let base = [Entry::symlink("bin", "../../usr/bin"), Entry::file("/bin/../bin/sh", "x"), Entry::file("../e", "")];
    assert_eq!(paths(&[&base]), ["bin", "e", "usr", "usr/bin", "usr/bin/sh"]);
    let looped = [Entry::symlink("l", "l"), Entry::file("l/x", "")];
    assert_eq!(paths(&[&looped]), ["l"]);
    assert!(Tree::of([&base[..]]).get(b"usr").unwrap().implied);
    assert_eq!(Tree::of([&base[..]]).children(b"usr"), [b"bin"]);
}

#[test]
fn the_same_seed_gives_the_same_image() {
    let shape = Shape { large: 20_000, ..Shape::default() };
    for seed in 0..20 {
        let (one, two) = (random::image(seed, &shape), random::image(seed, &shape));
        assert_eq!(one.image.root(), two.image.root());
        assert_eq!(one.tree.seen(), two.tree.seen());
    }
}

#[test]
fn every_feature_turns_up() {
    let shape = Shape { large: 20_000, ..Shape::default() };
    let images: Vec<RandomImage> = (0..200).map(|seed| random::image(seed, &shape)).collect();
    let entries = || images.iter().flat_map(|image| image.layers.iter().flatten());
    let kind = |test: fn(&EntryKind) -> bool| entries().filter(|entry| test(&entry.kind)).count();
    assert!(kind(|kind| matches!(kind, EntryKind::HardLink(_))) > 100);
    assert!(kind(|kind| matches!(kind, EntryKind::BlockDevice { .. })) > 20);
    assert!(entries().filter(|entry| entry.path.ends_with(b".wh..wh..opq")).count() > 50);
    assert!(entries().filter(|entry| model::is_whiteout(entry)).count() > 200);
    assert!(images.iter().any(|image| image.tree.iter().any(|(_, node)| node.implied)));
    let linked = |image: &RandomImage| image.tree.seen().values().any(|seen| seen.names.len() > 2);
    assert!(images.iter().any(linked));
}
