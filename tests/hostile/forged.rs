//! Row 21 again: another user may rename a directory above the cache, and substitutes a forged one.

use std::os::unix::fs::chown;
use std::path::Path;

use peelfs::codec::StartKind;
use peelfs::layer::{Check, IndexedLayer, LayerTree, Proof, Span, TarWalker, write_index};
use peelfs::offsets::{BlobOffset, DecodedOffset};
use peelfs_loopback::image::{Image, ImageBuilder, Layer, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};

use super::machine::is_root;
use super::tried;
use support::sandbox::{Sandbox, cannot_mount, content_file, said};

const OTHER: u32 = 65_534;

fn image(text: &str) -> Image {
    ImageBuilder::new().layer(LayerBuilder::new().file("f", text.to_owned()).packing(Packing::Stored)).build()
}

/// Puts into a cache what would be right if `layer` were another one: all checksums hold.
fn forge(cache: &Path, layer: &Layer, instead: &Layer) {
    let (mut tree, mut walker) = (LayerTree::new(peelfs::layer::Limits::default()), TarWalker::new());
    walker.push(&instead.tar, &mut tree).unwrap();
    walker.finish().unwrap();
    let decoded_size = instead.tar.len() as u64;
    let span = Span {
        decoded: DecodedOffset(0)..DecodedOffset(decoded_size),
        blob: BlobOffset(0),
        bit: 0,
        kind: StartKind::Stored,
        check: Check::blake3(&instead.tar),
        window: None,
    };
    let (blob, diff_id) = (layer.digest.clone(), layer.diff_id.clone());
    let of = IndexedLayer { blob, blob_size: layer.blob.len() as u64, diff_id, decoded_size };
    let mut index = Vec::new();
    write_index(&tree, &[span], &[], &of, &Proof::Built, &mut index).unwrap();
    for (path, bytes) in [
        (cache.join("index-v2/sha256").join(layer.digest.hex()), &index[..]),
        (content_file(cache, layer, "data"), &instead.tar[..]),
        (content_file(cache, layer, "map"), &[0x81]),
    ] {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Gives all in a directory to another user.
fn give_away(dir: &Path) {
    chown(dir, Some(OTHER), None).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { give_away(&path) } else { chown(path, Some(OTHER), None).unwrap() }
    }
}

#[test]
fn row_21_a_forged_cache_in_place_of_the_real_one_shows_nothing() {
    if !is_root() || cannot_mount() {
        return;
    }
    let (first, second) = (image("first"), image("right"));
    let registry = Registry::start(Catalog::new().image("app", "1", &first).image("app", "2", &second)).unwrap();
    let sandbox = Sandbox::new();
    let theirs = sandbox.path().join("theirs");
    let cache = theirs.join("cache");
    std::fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(OTHER), None).unwrap();
    let at_cache = ["--cache-dir", cache.to_str().unwrap()];
    let show = |tag: &str| sandbox.run(["cat", &registry.reference("app", tag), "/f", at_cache[0], at_cache[1]]);
    let forged = image("wrong");
    // Without forgery there is nothing to be seen of one.
    forge(&sandbox.cache(), &second.layers()[0], &forged.layers()[0]);
    std::fs::set_permissions(sandbox.cache(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(sandbox.run(["cat", &registry.reference("app", "2"), "/f"]).stdout, b"wrong", "it is well forged");

    let shared = [&["--share"], &at_cache[..]].concat();
    let one = sandbox.mount_with(&registry.reference("app", "1"), "one", &shared);
    std::fs::rename(&cache, theirs.join("away")).unwrap();
    forge(&cache, &second.layers()[0], &forged.layers()[0]);
    give_away(&cache);
    // A process that has the cache open continues to use it.
    let two = sandbox.mount_with(&registry.reference("app", "2"), "two", &shared);
    assert_eq!(std::fs::read(two.join("f")).unwrap(), b"right");
    // A process that opens it now refuses it.
    let refused = show("2");
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("it belongs to another user"), "{}", said(&refused));
    // Files of another user in an own directory are not trusted either.
    chown(&cache, Some(0), None).unwrap();
    std::fs::set_permissions(&cache, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let shown = show("2");
    assert_eq!(shown.stdout, b"right", "{}", said(&shown));
    one.unmount();
    two.unmount();
    tried(21, 3);
}

#[test]
fn a_cache_that_is_removed_while_it_is_used_is_made_again() {
    if cannot_mount() {
        return;
    }
    let (first, second) = (image("first"), image("second"));
    let registry = Registry::start(Catalog::new().image("app", "1", &first).image("app", "2", &second)).unwrap();
    let sandbox = Sandbox::new();
    let one = sandbox.mount_with(&registry.reference("app", "1"), "one", &["--share"]);
    std::fs::remove_dir_all(sandbox.cache()).unwrap();
    let two = sandbox.mount_with(&registry.reference("app", "2"), "two", &["--share"]);
    assert_eq!(std::fs::read(one.join("f")).unwrap(), b"first");
    assert_eq!(std::fs::read(two.join("f")).unwrap(), b"second");
    assert_eq!(sandbox.bucket("index-v2").len(), 1, "what is read from now on is kept");
    one.unmount();
    two.unmount();
}
