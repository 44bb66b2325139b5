//! Layers with tables of contents, as the tools write them: what a mount shows of them and what it fetches.

use std::path::Path;
use std::process::Command;

use peelfs_loopback::image::{Family, Packing};
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
