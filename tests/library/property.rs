//! Random layered images compared with the reference model.
//!
//! `PEELFS_SEEDS=N` tries N seeds instead of a few.

use std::collections::BTreeMap;
use std::sync::Arc;

use peelfs::image::{self, FsError};
use peelfs::store::{Keep, Store};
use peelfs_loopback::chunked::{ChunkedBuilder, TocFormat};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::tar::Entry;
use support::model::{Seen, Tree};
use support::random::{self, Random, Shape};
use support::shown::{self, MemorySource};
use support::walk::{self, Compare};

pub(crate) fn seeds(few: u64) -> u64 {
    std::env::var("PEELFS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What differs between the model and what is shown: at first, from an index on disk, and with all
/// content fetched again span by span.
pub(crate) fn differences(image: &Image, wanted: &BTreeMap<Vec<u8>, Seen>, random: &mut Random) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    let source = MemorySource::new(image);
    let mut lines = Vec::new();
    for visit in ["first", "second", "third, without content,"] {
        if visit.starts_with("third") {
            assert_eq!(store.prune(Keep::Indexes).unwrap().held, 0);
        }
        source.take_asked();
        // Each visit has a runtime of its own: when it is gone, nothing holds a layer any more.
        let got = runtime().block_on(async {
            let fs = shown::open(&source, &store).await?;
            Ok(shown::seen(fs, random).await)
        });
        let got = match got {
            Ok(got) => got,
            Err::<_, FsError>(error) => return vec![format!("{visit} visit: {}", image::chain(&error))],
        };
        let found = walk::differences(wanted, &got, Compare::Exactly);
        lines.extend(found.into_iter().map(|line| format!("{visit} visit: {line}")));
        let asked = source.take_asked();
        if visit == "second" && !asked.is_empty() {
            lines.push(format!("{visit} visit: the source was asked for {asked:?}"));
        }
    }
    lines
}

fn check(seed: u64, shape: &Shape) {
    let random = random::image(seed, shape);
    let lines = differences(&random.image, &random.tree.seen(), &mut Random::new(seed));
    assert!(lines.is_empty(), "seed {seed}:\n{}\n{}", lines.join("\n"), random.listing());
}

#[test]
fn random_images_look_as_the_model_says() {
    (0..seeds(30)).for_each(|seed| check(seed, &Shape { large: 3_000_000, ..Shape::default() }));
}

/// The same with a table of contents in each layer; where none can say what the tar says, the tar counts.
#[test]
fn random_chunked_images_look_as_the_model_says() {
    for seed in 0..seeds(30) {
        let format = TocFormat::ALL[seed as usize % 3];
        let mut random = random::image(seed, &Shape { large: 300_000, ..Shape::default() });
        // Tables of stargz-snapshotter have whole seconds.
        if format != TocFormat::ZstdChunked {
            random.layers.iter_mut().flatten().for_each(|entry| entry.mtime.nanos = 0);
        }
        let mut image = ImageBuilder::new();
        let mut annotations = Vec::new();
        for layer in &mut random.layers {
            let members = [0, 30_000][seed as usize / 3 % 2];
            let chunked =
                ChunkedBuilder::of(layer.iter().cloned()).format(format).pieces_of(20_000).members_of(members);
            let chunked = chunked.build();
            image = image.layer(chunked.layer);
            annotations.push(chunked.annotations);
            layer.extend(chunked.toc);
        }
        random.tree = Tree::of(random.layers.iter().map(|layer| &layer[..]));
        let image = image.edit_manifest(move |manifest| {
            for (layer, annotations) in annotations.into_iter().enumerate() {
                manifest["layers"][layer]["annotations"] = annotations;
            }
        });
        let lines = differences(&image.build(), &random.tree.seen(), &mut Random::new(seed));
        assert!(lines.is_empty(), "seed {seed}:\n{}\n{}", lines.join("\n"), random.listing());
    }
}

#[test]
fn entries_below_links_of_lower_layers_follow_the_links() {
    (0..seeds(60)).for_each(|seed| check(seed, &Shape { through_links: true, large: 5000, ..Shape::default() }));
}

/// Whiteouts and opaque markers in every order and depth: below each other, below what is not there or is no
/// directory, through links; the model is compared with umoci on the same images in `reference_model`.
#[test]
fn whiteouts_in_every_order_and_depth_hide_what_the_model_hides() {
    (0..seeds(60)).for_each(|seed| check(2000 + seed, &Shape { through_links: seed % 2 == 0, ..Shape::whiteouts() }));
}

#[test]
fn many_small_layers_look_as_the_model_says() {
    let shape = Shape { layers: 40, entries: 4, large: 5000, ..Shape::default() };
    (0..seeds(6)).for_each(|seed| check(1000 + seed, &shape));
}

/// Layers of this kind by hand: each line is a case that has been got wrong somewhere.
#[test]
fn odd_layers_look_as_the_model_says() {
    let dir = |path: &str| Entry::dir(path);
    let file = |path: &str, content: &'static str| Entry::file(path, content);
    let link = |path: &str, target: &str| Entry::symlink(path, target);
    let cases: Vec<(&str, Vec<Vec<Entry>>)> = vec![
        (
            "an implied directory over a lower symlink is written through it",
            vec![vec![link("bin", "usr/bin"), dir("usr/bin"), file("usr/bin/sh", "1")], vec![file("bin/tool", "2")]],
        ),
        (
            "a directory with an entry replaces a lower symlink",
            vec![vec![link("bin", "usr/bin"), dir("usr/bin")], vec![dir("bin"), file("bin/tool", "2")]],
        ),
        (
            "a hidden lower symlink is not written through",
            vec![vec![dir("e"), link("l", "e")], vec![file("l/x", "2"), Entry::whiteout("l")]],
        ),
        (
            "nor one whose directory is opaque",
            vec![
                vec![dir("d"), dir("e"), link("d/l", "/e"), file("d/f", "1")],
                vec![dir("d"), Entry::opaque("d"), file("d/l/x", "2")],
            ],
        ),
        (
            "nor one whose directory was replaced",
            vec![vec![dir("d"), dir("e"), link("d/l", "/e")], vec![file("d", "x"), dir("d"), file("d/l/x", "2")]],
        ),
        (
            "nor one whose grandparent is hidden",
            vec![vec![dir("a/b"), dir("e"), link("a/b/l", "/e")], vec![Entry::whiteout("a"), file("a/b/l/x", "2")]],
        ),
        (
            "a link through a link through a lower layer",
            vec![
                vec![dir("usr/lib"), link("lib", "usr/lib")],
                vec![link("lib64", "lib")],
                vec![file("lib64/ld.so", "3"), file("lib/libc.so", "3")],
                vec![Entry::whiteout("lib64/ld.so")],
            ],
        ),
        ("a dangling lower symlink makes what it names", vec![vec![link("a", "b/c")], vec![file("a/x", "2")]]),
        ("a dangling lower symlink with dots", vec![vec![link("a", "b/../c")], vec![file("a/x", "2")]]),
        (
            "a lower symlink back over what is missing, and through another",
            vec![vec![link("a", "none/../m/c"), link("m", "d"), dir("d")], vec![file("a/x", "2")]],
        ),
        ("a lower symlink above the root", vec![vec![dir("d"), link("d/up", "../../../e")], vec![file("d/up/x", "2")]]),
        (
            "an opaque marker through a lower symlink",
            vec![vec![dir("e"), file("e/old", "1"), link("l", "e")], vec![Entry::opaque("l"), file("l/new", "2")]],
        ),
        (
            "a file, then a directory, of one name starts empty",
            vec![vec![dir("d"), file("d/a", "1")], vec![file("d", "x"), dir("d"), file("d/b", "2")]],
        ),
        (
            "an implied root keeps the lower layers' root",
            vec![vec![dir(".").mode(0o700).owner(5, 6), file("a", "1")], vec![file("b", "2")]],
        ),
        ("no layer describes the root", vec![vec![file("a", "1")], vec![file("b/c", "2")]]),
        ("an empty layer changes nothing", vec![vec![file("a", "1")], vec![], vec![file("b", "2")]]),
        (
            "an opaque root hides everything below",
            vec![vec![file("a", "1"), dir("d")], vec![Entry::opaque(""), file("b", "2")]],
        ),
        (
            "a character device 0:0 in a tar is no whiteout",
            vec![vec![file("a", "1"), dir("d")], vec![Entry::char_device("a", 0, 0), Entry::char_device("d", 0, 0)]],
        ),
        (
            "a directory comes back empty after its whiteout",
            vec![vec![dir("d"), file("d/a", "1")], vec![Entry::whiteout("d")], vec![dir("d"), file("d/b", "3")]],
        ),
        (
            "a name that only a whiteout has stays absent",
            vec![vec![dir("d")], vec![dir("d"), Entry::whiteout("d/gone")], vec![dir("d"), file("d/x", "3")]],
        ),
        (
            "a hard link across layers is counted, and survives its target",
            vec![
                vec![file("a", "1"), Entry::hard_link("b", "a")],
                vec![Entry::hard_link("c", "b"), dir("d"), Entry::hard_link("d/e", "a")],
                vec![Entry::whiteout("a"), file("b", "other")],
            ],
        ),
        (
            "a link to a lower file is not one to what replaces it later",
            vec![
                vec![dir("usr"), link("l", "usr"), file("a", "1")],
                vec![Entry::hard_link("l/b", "a"), file("a", "2"), file("l/c", "2"), Entry::hard_link("d", "usr/c")],
            ],
        ),
        (
            "a hard link in place of a directory leads nowhere",
            vec![
                vec![file("d/a", "1"), Entry::hard_link("b", "d/a")],
                vec![Entry::hard_link("c", "d/a"), Entry::hard_link("d", "b")],
            ],
        ),
        (
            "two layers give a file one name",
            vec![vec![file("a", "1"), Entry::hard_link("b", "a")], vec![Entry::hard_link("b", "a")]],
        ),
        (
            "a link to a file whose first name its own layer replaced",
            vec![vec![file("a", "1"), Entry::hard_link("b", "a"), Entry::fifo("a")], vec![Entry::hard_link("c", "b")]],
        ),
        (
            "an opaque marker says nothing about its directory",
            vec![
                vec![dir("d").mode(0o711).owner(3, 4), file("d/f", "1")],
                vec![Entry::opaque("d")],
                vec![Entry::opaque("d"), file("d/g", "3")],
            ],
        ),
        (
            "a hard link to a hard link to a lower layer's file",
            vec![
                vec![file("a", "1")],
                vec![Entry::hard_link("b", "a"), Entry::hard_link("c", "b")],
                vec![Entry::hard_link("d", "c")],
            ],
        ),
        (
            "a hard link into a lower directory through a lower symlink",
            vec![
                vec![dir("usr/bin"), file("usr/bin/sh", "1"), link("bin", "usr/bin")],
                vec![Entry::hard_link("bin/bash", "bin/sh")],
            ],
        ),
        (
            "a hard link to a lower symlink is the symlink",
            vec![vec![link("l", "nowhere")], vec![Entry::hard_link("m", "l")]],
        ),
        (
            "a whiteout hides what implied directories have below",
            vec![
                vec![file("a/b/c", "1"), file("a/b/d", "1")],
                vec![Entry::whiteout("a/b/c")],
                vec![Entry::whiteout("a/b")],
            ],
        ),
        (
            "a whiteout below a whiteout makes no directory",
            vec![vec![file("a/b", "1"), file("c", "1")], vec![Entry::whiteout("a/b"), Entry::whiteout("a")]],
        ),
        (
            "nor does it the other way round",
            vec![vec![file("a/b", "1"), file("c", "1")], vec![Entry::whiteout("a"), Entry::whiteout("a/b")]],
        ),
        (
            "nor below an opaque marker",
            vec![vec![file("a/b", "1")], vec![Entry::whiteout("a/b"), Entry::opaque(""), file("c", "2")]],
        ),
        (
            "whiteouts of what no layer has make no directories",
            vec![vec![file("c", "1")], vec![Entry::whiteout("a/b/c"), Entry::opaque("d/e"), Entry::opaque("f")]],
        ),
        (
            "a directory that only whiteouts lead through is the lower layer's",
            vec![
                vec![dir("d").mode(0o711).owner(3, 4).xattr("user.x", "y"), file("d/a", "1"), file("d/b", "1")],
                vec![Entry::whiteout("d/a")],
                vec![Entry::whiteout("d/c"), Entry::opaque("d/e")],
            ],
        ),
        (
            "and a later layer's goes on from there",
            vec![
                vec![file("d/a", "1"), file("d/b", "1"), file("e", "1")],
                vec![Entry::whiteout("d/a"), Entry::whiteout("e/x"), Entry::whiteout("f/x")],
                vec![file("d/c", "3"), file("e/c", "3"), file("f/c", "3")],
            ],
        ),
        (
            "whiteouts below files and links to nothing change nothing",
            vec![
                vec![file("f", "1"), link("l", "none"), link("o", "o")],
                vec![Entry::whiteout("f/x"), Entry::opaque("f"), Entry::whiteout("l/x/y"), Entry::opaque("l/z")],
            ],
        ),
        (
            "a whiteout below a link of a lower layer hides where the link leads",
            vec![
                vec![dir("e"), file("e/a", "1"), file("e/b/c", "1"), link("l", "e"), link("m", "/l/b")],
                vec![Entry::whiteout("l/a"), Entry::opaque("m")],
            ],
        ),
        (
            "and what it leads through there is no directory either",
            vec![
                vec![link("l", "e"), link("m", "f"), file("f", "1")],
                vec![Entry::whiteout("l/a"), Entry::opaque("m/x")],
            ],
        ),
        (
            "a whiteout that its own layer has something beside",
            vec![
                vec![file("a/b/c", "1"), file("a/d", "1")],
                vec![Entry::whiteout("a/b/c"), file("a/b/e", "2"), Entry::whiteout("a/d"), Entry::whiteout("a/b")],
            ],
        ),
        (
            "a link below itself leads each name further up",
            vec![
                vec![dir("d"), link("d/n", "../d"), link("l", "d"), file("d/x", "1")],
                vec![file("l/n/n/f", "2"), Entry::whiteout("l/n/x"), Entry::whiteout("l/n/n/y")],
            ],
        ),
        (
            "a whiteout of a link comes after one below it",
            vec![
                vec![dir("d"), file("d/x", "1"), file("d/y", "1"), link("l", "d"), link("m", "d")],
                vec![Entry::whiteout("l/x"), Entry::whiteout("l"), Entry::whiteout("m"), Entry::whiteout("m/y")],
            ],
        ),
        (
            "the longest name can be hidden",
            vec![vec![file(&"n".repeat(255), "1"), file("a", "1")], vec![Entry::whiteout("n".repeat(255))]],
        ),
        (
            "hard links of AUFS are the files, whose directory is not shown",
            vec![vec![
                dir("usr"),
                file(".wh..wh.plnk/77.1", "content"),
                Entry::hard_link("usr/a", ".wh..wh.plnk/77.1"),
                Entry::hard_link("usr/b", ".wh..wh.plnk/77.1"),
                file(".wh..wh.aufs", ""),
                dir(".wh..wh.orph"),
            ]],
        ),
        (
            "also those of another layer",
            vec![
                vec![file(".wh..wh.plnk/77.1", "content"), Entry::hard_link("a", ".wh..wh.plnk/77.1")],
                vec![Entry::hard_link("b", ".wh..wh.plnk/77.1"), Entry::hard_link("c", "a")],
                vec![Entry::whiteout("a"), file(".wh..wh.plnk/77.1", "other")],
            ],
        ),
        (
            "nothing below a name that begins like a whiteout's is shown",
            vec![
                vec![file("d/.wh.x/y/z", "1"), file("d/a", "1"), Entry::hard_link(".wh.b/c", "d/a"), file("b", "1")],
                vec![Entry::hard_link("h", "d/.wh.x/y/z"), file(".wh.x/f", "2"), Entry::hard_link("i", ".wh.x/f")],
            ],
        ),
        (
            "a file in place of a lower directory, and back",
            vec![vec![file("d/a", "1")], vec![file("d", "2")], vec![file("d/b", "3")]],
        ),
    ];
    let mut failed = Vec::new();
    for (claim, layers) in cases {
        let build = |builder: ImageBuilder, layer: &Vec<Entry>| builder.layer(LayerBuilder::of(layer));
        let image = layers.iter().fold(ImageBuilder::new(), build).build();
        let tree = Tree::of(layers.iter().map(Vec::as_slice));
        let lines = differences(&image, &tree.seen(), &mut Random::new(1));
        if !lines.is_empty() {
            failed.push(format!("{claim}:\n  {}", lines.join("\n  ")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
