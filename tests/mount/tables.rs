//! Layers with tables of contents, as the tools write them: what a mount shows of them and what it fetches.

use std::path::Path;
use std::process::Command;

use peelfs_loopback::chunked::{Chunked, ChunkedBuilder, TocFormat, toc_image};
use peelfs_loopback::image::{Family, Image, ImageBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::{Entry, EntryKind};
use serde_json::Value;

use super::{assert_same, everything, packed, run, tree_of};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};
use support::walk::{self, Compare};

/// Layers with all that a table can say and a tar can, too: names that are text, none twice, no links out of a layer.
pub(super) fn layers() -> Vec<Vec<Entry>> {
    let mut layers = everything();
    for layer in &mut layers {
        let twice = |entry: &Entry| matches!(&entry.kind, EntryKind::File(content) if content == "first");
        layer.retain(|entry| {
            let elsewhere = [&b"cross-link"[..], b"usr/bin/third"].contains(&&*entry.path);
            std::str::from_utf8(&entry.path).is_ok() && !twice(entry) && !elsewhere
        });
    }
    layers[0].push(Entry::file("mixed", [Random::new(2).bytes(200_000), vec![0; 90_000], vec![7; 10]].concat()));
    layers
}

/// Serves the layout in `dir`, and counts the blobs' bytes.
fn serve(dir: &Path) -> (Registry, u64) {
    let blobs = std::fs::read_dir(dir.join("blobs/sha256")).unwrap();
    let bytes = blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
    (Registry::start(Catalog::new().layout("app", dir).unwrap()).unwrap(), bytes)
}

/// How each layer of a mount was opened.
fn origins(state: &Value) -> Vec<String> {
    let layers = state["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["origin"].as_str().unwrap().to_owned()).collect()
}

fn status(sandbox: &Sandbox, mounted: &MountPoint<'_>) -> Value {
    let told = sandbox.run(["status", "--json", mounted.path.to_str().unwrap()]);
    serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{}", said(&told)))
}

#[test]
fn chunked_images_of_skopeo_are_shown_as_umoci_unpacks_them() {
    if cannot_mount() || ["skopeo", "umoci"].into_iter().any(is_missing) {
        return;
    }
    let (sandbox, layers) = (Sandbox::new(), layers());
    let [plain, chunked, bundle] = ["plain", "chunked", "bundle"].map(|name| sandbox.path().join(name));
    packed(&layers, &[Packing::GZIP], Family::Oci).write_layout(&plain, "1").unwrap();
    let (from, to) = (format!("oci:{}:1", plain.display()), format!("oci:{}:1", chunked.display()));
    run(Command::new("skopeo").args(["copy", "--dest-compress-format", "zstd:chunked", &from, &to]));
    run(Command::new("umoci").args(["unpack", "--image", &format!("{}:1", plain.display())]).arg(&bundle));
    let unpacked = walk::seen(&bundle.join("rootfs")).unwrap();
    let (registry, bytes) = serve(&chunked);

    let mounted = sandbox.mount_with(&registry.reference("app", "1"), "a", &["--prefetch", "none"]);
    let fetched = status(&sandbox, &mounted)["received_bytes"].as_u64().unwrap();
    assert!(fetched < bytes / 20, "{fetched} of {bytes} bytes to know all names");
    assert_same("umoci", &unpacked, &mounted.path, Compare::AsUnpacked);
    assert_same("the model", &tree_of(&layers), &mounted.path, Compare::Exactly);
    assert_eq!(origins(&status(&sandbox, &mounted)), ["zstd:chunked"; 3]);
    mounted.unmount();

    // Read whole, they are the same.
    for index in ["own", "none"] {
        let cache = sandbox.path().join(index);
        let cache = ["--cache-dir", cache.to_str().unwrap(), "--index", index];
        let mounted = sandbox.mount_with(&registry.reference("app", "1"), index, &cache);
        assert_same("the model", &tree_of(&layers), &mounted.path, Compare::Exactly);
        let state = status(&sandbox, &mounted);
        assert_eq!(origins(&state), ["own index"; 3]);
        assert_eq!(state["layers"][0]["not_used"][0]["origin"], "zstd:chunked");
        mounted.unmount();
    }
}

/// A layer's own index and that of its table lie in the cache side by side, each with its content.
#[test]
fn a_table_is_used_where_there_is_an_own_index_if_wanted() {
    if cannot_mount() {
        return;
    }
    let file = Entry::file("f", Random::new(9).bytes(100_000));
    let registry =
        Registry::start(Catalog::new().image("app", "1", &image_of(vec![ChunkedBuilder::of([file]).build()]))).unwrap();
    let sandbox = Sandbox::new();
    let reference = registry.reference("app", "1");
    let mut seen = Vec::new();
    for (name, index, origin) in [
        ("a", "own", "own index"),
        ("b", "auto", "own index"),
        ("c", "foreign", "zstd:chunked"),
        ("d", "foreign", "zstd:chunked"),
        ("e", "own", "own index"),
    ] {
        registry.clear();
        let mounted = sandbox.mount_with(&reference, name, &["--index", index, "--prefetch", "none"]);
        assert_eq!(origins(&status(&sandbox, &mounted)), [origin], "{name}");
        seen.push(std::fs::read(mounted.path.join("f")).unwrap());
        mounted.unmount();
        if !["a", "c"].contains(&name) {
            assert_eq!(registry.blob_bytes(), 0, "{name}: all of it is cached");
        }
    }
    assert!(seen.iter().all(|bytes| *bytes == seen[0]));
    let checked = sandbox.run(["cache", "verify"]);
    let told = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && !told.contains("not checked"), "{told}");
    let dir = sandbox.cache().join("content-v2/sha256");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4, "two files of each");
    let dropped = sandbox.run(["cache", "drop", "--content", &reference]);
    assert!(dropped.status.success());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn what_no_table_can_say_is_read_from_the_tar() {
    if cannot_mount() || is_missing("skopeo") {
        return;
    }
    let (sandbox, layers) = (Sandbox::new(), everything());
    let [plain, chunked] = ["plain", "chunked"].map(|name| sandbox.path().join(name));
    packed(&layers, &[Packing::GZIP], Family::Oci).write_layout(&plain, "1").unwrap();
    let (from, to) = (format!("oci:{}:1", plain.display()), format!("oci:{}:1", chunked.display()));
    run(Command::new("skopeo").args(["copy", "--dest-compress-format", "zstd:chunked", &from, &to]));
    let (registry, _) = serve(&chunked);
    let mounted = sandbox.mount(&registry.reference("app", "1"), "a");
    assert_same("the model", &tree_of(&layers), &mounted.path, Compare::Exactly);
    let state = status(&sandbox, &mounted);
    assert_eq!(origins(&state), ["own index"; 3]);
    let why = |layer: usize| state["layers"][layer]["not_used"][0]["why"].as_str().unwrap().to_owned();
    assert!(why(0).contains("JSON cannot hold its name"), "{}", why(0));
    assert!(why(1).contains("hard link to nothing") || why(1).contains("two entries"), "{}", why(1));
    assert!(why(2).contains("hard link to nothing"), "{}", why(2));
    let told = String::from_utf8(sandbox.run(["status", mounted.path.to_str().unwrap()]).stdout).unwrap();
    assert!(told.contains("not used zstd:chunked of layer 1 of 3: "), "{told}");
    mounted.unmount();
}

fn image_of(layers: Vec<Chunked>) -> Image {
    let annotations: Vec<_> = layers.iter().map(|layer| layer.annotations.clone()).collect();
    let image = layers.into_iter().fold(ImageBuilder::new(), |image, layer| image.layer(layer.layer));
    let edit = move |manifest: &mut Value| {
        for (layer, annotations) in annotations.into_iter().enumerate() {
            manifest["layers"][layer]["annotations"] = annotations;
        }
    };
    image.edit_manifest(edit).build()
}

/// The ranges of blobs that were asked for, each from and up to.
fn ranges(registry: &Registry) -> Vec<(u64, u64)> {
    let requests = registry.requests();
    let ranges = requests.iter().filter(|request| request.is_blob()).filter_map(|request| {
        let (from, to) = request.range()?.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse().ok()?, to.parse::<u64>().ok()? + 1))
    });
    ranges.collect()
}

/// What the maker of a layer has put before the landmark is fetched when the image is mounted, by one request, and nothing
/// behind it.
#[test]
fn files_before_the_landmark_come_first_by_one_request() {
    if cannot_mount() {
        return;
    }
    let mut random = Random::new(4);
    let mut entries = vec![Entry::dir("usr")];
    for number in 0..12 {
        entries.push(Entry::file(format!("usr/first{number}"), random.bytes(150_000)));
    }
    entries.push(Entry::file(".prefetch.landmark", vec![0x0f]));
    for number in 0..30 {
        entries.push(Entry::file(format!("usr/then{number}"), random.bytes(100_000)));
    }
    for format in [TocFormat::EStargz, TocFormat::StargzZstd] {
        let (sent, place) = std::sync::mpsc::channel();
        let builder = ChunkedBuilder::of(entries.clone()).format(format).edit_toc(move |toc| {
            let offset = |name: &str| {
                let records = toc["entries"].as_array().unwrap();
                records.iter().find(|record| record["name"] == name).unwrap()["offset"].as_u64().unwrap()
            };
            sent.send((offset("usr/first0"), offset(".prefetch.landmark"))).unwrap();
        });
        let image = image_of(vec![builder.build()]);
        let landmark: (u64, u64) = place.recv().unwrap();
        let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
        let sandbox = Sandbox::new();
        let mounted = sandbox.mount(&registry.reference("app", "1"), "a");
        assert!(registry.wait_until(|requests| {
            requests.iter().any(|request| {
                request.range().is_some_and(|range| range.starts_with(&format!("bytes={}-", landmark.0)))
            })
        }));
        let size = image.layers()[0].blob.len() as u64;
        let asked: Vec<_> = ranges(&registry).into_iter().filter(|(_, to)| *to < size - 100).collect();
        assert_eq!(asked, [landmark], "{format:?}");
        for number in 0..12 {
            assert_eq!(std::fs::read(mounted.join(&format!("usr/first{number}"))).unwrap().len(), 150_000);
        }
        let asked: Vec<_> = ranges(&registry).into_iter().filter(|(from, _)| *from < landmark.1).collect();
        assert_eq!(asked, [landmark], "{format:?}: what came first is not fetched again");
        mounted.unmount();

        let cache = sandbox.path().join("none");
        let none = ["--prefetch", "none", "--cache-dir", cache.to_str().unwrap()];
        registry.clear();
        let mounted = sandbox.mount_with(&registry.reference("app", "1"), "none", &none);
        std::fs::read(mounted.join("usr/then29")).unwrap();
        let asked = ranges(&registry);
        assert!(asked.iter().all(|(from, _)| *from >= landmark.1), "{format:?}: {asked:?} before {landmark:?}");
        mounted.unmount();
    }
}

/// `--estargz-external-toc`: the tables are layers of another image of the repository.
#[test]
fn tables_of_an_image_of_their_own_are_found_by_its_tag() {
    if cannot_mount() {
        return;
    }
    let (sandbox, mut layers) = (Sandbox::new(), layers());
    // Tables of stargz-snapshotter have whole seconds.
    layers.iter_mut().flatten().for_each(|entry| entry.mtime.nanos = 0);
    let of = |layer: &Vec<Entry>| ChunkedBuilder::of(layer.clone()).format(TocFormat::EStargz).toc_elsewhere().build();
    let chunked: Vec<_> = layers.iter().map(of).collect();
    let tables = toc_image(chunked.iter().map(|layer| (&layer.layer.digest, layer.elsewhere.as_ref().unwrap())));
    let image = image_of(chunked);
    let tags = Catalog::new().image("app", "1", &image).image("app", "1-esgztoc", &tables);
    let tags = tags.image("app", "2", &image).image("app", "3", &image).image("app", "3-esgztoc", &image);
    let registry = Registry::start(tags).unwrap();
    let wanted = tree_of(&layers);
    for (tag, origin, why) in
        [("1", "eStargz", ""), ("2", "own index", "which is not there"), ("3", "own index", "has none of this layer")]
    {
        let cache = sandbox.path().join(tag);
        let cache = ["--cache-dir", cache.to_str().unwrap()];
        let mounted = sandbox.mount_with(&registry.reference("app", tag), tag, &cache);
        assert_same(tag, &wanted, &mounted.path, Compare::Exactly);
        let state = status(&sandbox, &mounted);
        assert_eq!(origins(&state), [origin; 3], "{tag}");
        let told = state["layers"][0]["not_used"][0]["why"].as_str().unwrap_or_default();
        assert!(told.contains(why), "{tag}: {told}");
        mounted.unmount();
    }
    // Another table than the manifest names, and one that is nothing.
    let first = &image.layers()[0];
    let other = ChunkedBuilder::of([Entry::file("other", "")]).format(TocFormat::EStargz).toc_elsewhere().build();
    for (number, table) in [other.elsewhere.unwrap(), bytes::Bytes::from_static(b"nothing")].iter().enumerate() {
        registry.push("app", "2-esgztoc", &toc_image([(&first.digest, table)]));
        let name = format!("wrong{number}");
        let cache = sandbox.path().join(&name);
        let cache = ["--cache-dir", cache.to_str().unwrap()];
        let mounted = sandbox.mount_with(&registry.reference("app", "2"), &name, &cache);
        assert_same(&name, &wanted, &mounted.path, Compare::Exactly);
        assert_eq!(origins(&status(&sandbox, &mounted)), ["own index"; 3], "{name}");
        mounted.unmount();
    }
}
