//! Images with SOCI indexes: what a mount shows of them, what it fetches, and which it believes.

use std::process::Command;

use peelfs_loopback::image::{ArtifactBuilder, Image, ImageBuilder, IndexBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::soci::{self, Soci, SociBuilder};
use peelfs_loopback::tar::Entry;
use serde_json::{Value, json};

use super::tables::layers;
use super::{assert_same, run, tree_of};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};
use support::walk::{self, Compare};

fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| b"0123456789abcdef"[random.below(16)]).collect()
}

fn indexed(layers: &[Vec<Entry>]) -> Vec<Soci> {
    layers.iter().map(|layer| SociBuilder::of(layer.iter().cloned()).spans_of(100_000).build()).collect()
}

fn plain(layers: &[Soci]) -> ImageBuilder {
    layers.iter().fold(ImageBuilder::new(), |image, layer| image.layer(layer.layer.clone()))
}

fn index(kind: &str, layers: &[Soci]) -> ArtifactBuilder {
    soci::index(kind, layers.iter().map(|layer| (&layer.layer.digest, layer.ztoc.to_bytes())))
}

/// As `soci convert` makes it: an image index with the image and its SOCI index, for the same platform.
fn converted(layers: &[Soci]) -> Image {
    let index = index(soci::V2, layers).build();
    let image = soci::bound(plain(layers), &index);
    let manifest = image.root().digest.to_string();
    let entries = IndexBuilder::new().image(&index).edit_last(move |entry| {
        entry["artifactType"] = json!(soci::V2);
        entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        entry["annotations"] = json!({ "com.amazon.soci.image-manifest-digest": manifest });
    });
    entries.image(&image).build()
}

fn status(sandbox: &Sandbox, mounted: &MountPoint<'_>, more: &[&str]) -> Value {
    let told = sandbox.run([&["status", "--json", mounted.path.to_str().unwrap()], more].concat());
    serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{}", said(&told)))
}

fn of_layers(state: &Value, key: &str) -> Vec<String> {
    let layers = state["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer[key].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn converted_images_are_shown_as_umoci_unpacks_them() {
    if cannot_mount() || is_missing("umoci") {
        return;
    }
    let (sandbox, mut entries) = (Sandbox::new(), layers());
    entries[0].push(Entry::file("spans", text(1, 3 << 20)));
    let layers = indexed(&entries);
    let [layout, bundle] = ["layout", "bundle"].map(|name| sandbox.path().join(name));
    plain(&layers).build().write_layout(&layout, "1").unwrap();
    run(Command::new("umoci").args(["unpack", "--image", &format!("{}:1", layout.display())]).arg(&bundle));
    let unpacked = walk::seen(&bundle.join("rootfs")).unwrap();

    let image = converted(&layers);
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let bytes: usize = layers.iter().map(|layer| layer.layer.blob.len()).sum();
    let mounted = sandbox.mount_with(&registry.reference("app", "1"), "a", &["--prefetch", "none"]);
    let fetched = registry.requests().iter().filter(|asked| asked.is_blob()).count();
    assert_eq!(fetched, layers.len() + 1, "the configuration and a zTOC a layer");
    assert_same("umoci", &unpacked, &mounted.path, Compare::AsUnpacked);
    assert_same("the model", &tree_of(&entries), &mounted.path, Compare::Exactly);
    let state = status(&sandbox, &mounted, &[]);
    assert_eq!(of_layers(&state, "origin"), ["SOCI"; 3]);
    assert!(of_layers(&state, "vouched_by").iter().all(|by| by.starts_with("bound sha256:")), "{state}");
    mounted.unmount();

    // What is cached is right, says the next process, and is not asked for again.
    registry.clear();
    let offline = sandbox.mount_with(&registry.reference("app", "1"), "b", &["--offline"]);
    assert_same("the model", &tree_of(&entries), &offline.path, Compare::Exactly);
    assert_eq!(registry.blob_bytes(), 0);
    offline.unmount();

    // Of a large file, what is read is fetched.
    let other = Sandbox::new();
    let mounted = other.mount_with(&registry.reference("app", "1"), "c", &["--prefetch", "none"]);
    registry.clear();
    let read = std::fs::File::open(mounted.path.join("spans")).unwrap();
    let mut some = [0; 100];
    std::os::unix::fs::FileExt::read_exact_at(&read, &mut some, 1_500_000).unwrap();
    assert_eq!(some[..], text(1, 3 << 20)[1_500_000..1_500_100]);
    assert!(registry.blob_bytes() < bytes as u64 / 3, "{} of {bytes} bytes", registry.blob_bytes());
    drop(read);
    mounted.unmount();

    for index in ["own", "none"] {
        let cache = sandbox.path().join(index);
        let cache = ["--cache-dir", cache.to_str().unwrap(), "--index", index];
        let mounted = sandbox.mount_with(&registry.reference("app", "1"), index, &cache);
        assert_same("the model", &tree_of(&entries), &mounted.path, Compare::Exactly);
        let state = status(&sandbox, &mounted, &["--explain"]);
        assert_eq!(of_layers(&state, "origin"), ["own index"; 3]);
        let origins = state["layers"][0]["origins"].as_array().unwrap();
        let soci = origins.iter().find(|origin| origin["origin"] == "SOCI").unwrap();
        assert_eq!(soci["why_not"], "`--index` leaves it out");
        mounted.unmount();
    }
}

#[test]
fn an_index_beside_the_image_is_used_where_that_is_wanted() {
    if cannot_mount() {
        return;
    }
    let entries = vec![vec![Entry::file("f", text(3, 400_000)), Entry::file("g", "small")]];
    let layers = indexed(&entries);
    let image = plain(&layers).build();
    let subject = json!({
        "mediaType": image.root().media_type.as_str(),
        "digest": image.root().digest.to_string(),
        "size": image.root().size,
    });
    let beside = index(soci::V1, &layers).edit(|index| index["subject"] = subject).build();
    let catalog = Catalog::new().image("team/app", "1", &image).image("team/app", "soci", &beside).listing_referrers();
    let registry = Registry::start(catalog).unwrap();
    let reference = registry.reference("team/app", "1");
    let place = format!("{}/team/app@{}", registry.addr(), beside.root().digest);

    let by_default = Sandbox::new();
    let mounted = by_default.mount_with(&reference, "a", &[]);
    assert_eq!(of_layers(&status(&by_default, &mounted, &[]), "origin"), ["own index"]);
    assert!(!registry.requests().iter().any(|asked| asked.request.path.contains("referrers")));
    let explained = by_default.run(["status", "--explain", mounted.path.to_str().unwrap()]);
    let told = String::from_utf8(explained.stdout).unwrap();
    assert!(told.contains("SOCI v1: no repository is named with `--index-from`"), "{told}");
    mounted.unmount();

    for more in [&["--verify", "vouched"][..], &["--index-from", "referrers"]] {
        let sandbox = Sandbox::new();
        let mounted = sandbox.mount_with(&reference, "a", more);
        assert_same("the model", &tree_of(&entries), &mounted.path, Compare::Exactly);
        let state = status(&sandbox, &mounted, &[]);
        assert_eq!(
            (of_layers(&state, "origin"), of_layers(&state, "vouched_by")),
            (vec!["SOCI v1".into()], vec![place.clone()])
        );
        let told = String::from_utf8(sandbox.run(["status", mounted.path.to_str().unwrap()]).stdout).unwrap();
        assert!(told.contains(&place), "{told}");
        mounted.unmount();
        // It is not believed where that is not said.
        let strict = sandbox.mount_with(&reference, "b", &[]);
        assert_eq!(of_layers(&status(&sandbox, &strict, &[]), "origin"), ["own index"]);
        strict.unmount();
    }
    one_content_is_cached_whichever_index_reads_a_layer(&registry, &layers[0]);
    let sandbox = Sandbox::new();
    let explained = sandbox.run(["inspect", "--explain", "--index-from", "referrers", &reference]);
    let told = String::from_utf8(explained.stdout).unwrap();
    assert!(told.contains("has a zTOC of"), "{told}");
}

fn one_content_is_cached_whichever_index_reads_a_layer(registry: &Registry, layer: &Soci) {
    let reference = registry.reference("team/app", "1");
    let sandbox = Sandbox::new();
    let contents = || {
        let dir = sandbox.cache().join("content-v2/sha256");
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".data")).collect::<Vec<_>>()
    };
    let verified = || {
        let checked = sandbox.run(["cache", "verify"]);
        assert!(checked.status.success(), "{}", said(&checked));
        String::from_utf8(checked.stdout).unwrap()
    };
    let content_bytes = || {
        let shown = sandbox.run(["cache", "show", "--json"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["layers"][0]["content_bytes"].as_u64().unwrap()
    };
    let decoded = layer.layer.tar.len() as u64;
    let read = |mounted: &MountPoint<'_>| std::fs::read(mounted.path.join("f")).unwrap();
    let vouched = sandbox.mount_with(&reference, "vouched", &["--verify", "vouched"]);
    let expected = read(&vouched);
    let by_foreign = contents();
    assert_eq!(by_foreign.len(), 1);
    assert!(!verified().contains("not checked"));
    // While the other index is in use, too.
    let strict = sandbox.mount_with(&reference, "strict", &[]);
    assert_eq!(read(&strict), expected);
    let by_own = contents();
    assert!(by_own.len() == 1 && by_own != by_foreign, "{by_own:?}");
    assert!(content_bytes() < 2 * decoded);
    assert_eq!(read(&vouched), expected);
    let told = verified();
    assert!(!told.contains("not checked") && !told.contains("in 0 spans"), "{told}");
    vouched.unmount();
    strict.unmount();
    // What an earlier release has left is removed.
    let dir = sandbox.cache().join("content-v2/sha256");
    let stem = by_foreign[0].trim_end_matches(".data");
    std::fs::write(dir.join(&by_foreign[0]), vec![1; 300_000]).unwrap();
    std::fs::write(dir.join(format!("{stem}.map")), [1; 4]).unwrap();
    let told = verified();
    assert!(told.contains("of leftovers, which nothing uses"), "{told}");
    assert_eq!(contents(), by_own);
}

#[test]
fn what_soci_lists_is_fetched_at_the_mount() {
    if cannot_mount() {
        return;
    }
    let entries = vec![vec![Entry::file("first", text(4, 400_000)), Entry::file("last", text(5, 400_000))]];
    let layers = indexed(&entries);
    let blob = &layers[0].layer.digest;
    let index = soci::prefetched(index(soci::V2, &layers), blob, &[(5, 6)]).build();
    let image = soci::bound(plain(&layers), &index);
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let sandbox = Sandbox::new();
    let mounted = sandbox.mount_with(&registry.reference("app", "1"), "a", &[]);
    let path = format!("/{}", blob.hex());
    let came = registry.wait_until(|asked| {
        asked.iter().any(|asked| asked.request.path.ends_with(path.trim_start_matches('/')) && asked.range().is_some())
    });
    assert!(came, "a part of the layer is fetched though no reader asks");
    let ranges: Vec<String> = registry
        .requests()
        .iter()
        .filter(|asked| asked.request.path.ends_with(blob.hex()))
        .filter_map(|asked| asked.range().map(ToOwned::to_owned))
        .collect();
    let start = layers[0].ztoc.checkpoints[5].whole;
    assert!(ranges[0].contains(&format!("bytes={start}-")), "{ranges:?}");
    assert_same("the model", &tree_of(&entries), &mounted.path, Compare::Exactly);
    mounted.unmount();
}

#[test]
fn layers_without_a_ztoc_get_a_first_pass() {
    if cannot_mount() {
        return;
    }
    let layers = indexed(&[vec![Entry::file("f", text(6, 300_000))]]);
    let image = plain(&layers)
        .layer(LayerBuilder::new().file("zstd", text(7, 300_000)).packing(Packing::ZSTD))
        .layer(LayerBuilder::new().file("small", "small"));
    let image = soci::bound(image, &index(soci::V2, &layers).build());
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let sandbox = Sandbox::new();
    let mounted = sandbox.mount_with(&registry.reference("app", "1"), "a", &[]);
    let state = status(&sandbox, &mounted, &["--explain"]);
    assert_eq!(of_layers(&state, "origin"), ["SOCI", "own index", "own index"]);
    assert!(state["layers"][1]["not_used"].is_null(), "{state}");
    let origins = state["layers"][1]["origins"].as_array().unwrap();
    let soci = origins.iter().find(|origin| origin["origin"] == "SOCI").unwrap();
    assert_eq!(soci["why_not"], "the SOCI index has no zTOC of this layer");
    assert_eq!(std::fs::read(mounted.path.join("small")).unwrap(), b"small");
    mounted.unmount();
}

#[test]
fn a_soci_index_is_pushed_and_used_by_another_machine() {
    if cannot_mount() {
        return;
    }
    let mut entries = layers();
    entries[0].push(Entry::file("spans", text(8, 11 << 20)));
    let packings = [Packing::GZIP, Packing::Gzip { level: 1, member: Some(300_000) }, Packing::ZSTD];
    let image = super::packed(&entries, &packings, peelfs_loopback::image::Family::Oci);
    let catalog = Catalog::new().image("team/app", "1", &image).listing_referrers().taking_pushes();
    let registry = Registry::start(catalog).unwrap();
    let reference = registry.reference("team/app", "1");
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let refused = here.run(["index", "push", "--as", "soci", "--min-layer-size", "1GiB", &reference]);
    assert!(said(&refused).contains("--min-layer-size"), "{}", said(&refused));
    let small = here.run(["index", "push", "--as", "soci", "--span-size", "200KiB", &reference]);
    assert!(said(&small).contains("from 256KiB to 64MiB"), "{}", said(&small));
    let push = |span_size: &str| {
        here.run(["index", "push", "--as", "soci", "--min-layer-size", "1", "--span-size", span_size, &reference])
    };
    let (pushed, finer) = (push("4MiB"), push("1MiB"));
    assert!(pushed.status.success() && finer.status.success(), "{}{}", said(&pushed), said(&finer));
    let told = String::from_utf8(pushed.stdout).unwrap();
    assert!(told.starts_with("pushed the SOCI index of 2 layers to "), "{told}");

    let digest = told.lines().next().unwrap().rsplit(": ").next().unwrap();
    let index: Value = serde_json::from_slice(&registry.document("team/app", digest).unwrap()).unwrap();
    assert_eq!(index["config"]["mediaType"], soci::V1);
    assert_eq!(index["subject"]["digest"], image.root().digest.to_string());
    let span_size = |told: &str, size: &str| {
        let digest = told.lines().next().unwrap().rsplit(": ").next().unwrap();
        let index: Value = serde_json::from_slice(&registry.document("team/app", digest).unwrap()).unwrap();
        let ztoc = index["layers"].as_array().unwrap().iter().max_by_key(|ztoc| ztoc["size"].as_u64()).unwrap();
        assert_eq!(ztoc["annotations"]["com.amazon.soci.span-size"], size);
        ztoc["size"].as_u64().unwrap()
    };
    let finer = String::from_utf8(finer.stdout).unwrap();
    let (coarse, fine) = (span_size(&told, "4194304"), span_size(&finer, "1048576"));
    // 11 MiB: two places to begin at, or ten.
    assert!(fine >= coarse + (6 << 15), "{coarse} {fine}");
    let mounted = there.mount_with(&reference, "a", &["--verify", "vouched", "--prefetch", "none"]);
    assert_same("the model", &tree_of(&entries), &mounted.path, Compare::Exactly);
    assert_eq!(of_layers(&status(&there, &mounted, &[]), "origin"), ["SOCI v1", "SOCI v1", "own index"]);
    mounted.unmount();
}
