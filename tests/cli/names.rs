//! Images by the names that users type: short ones, wrong tags, other digests.

use std::path::Path;

use peelfs::digest::{Algorithm, Digest};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::json;

use super::user::User;

fn small() -> Image {
    ImageBuilder::new().layer(LayerBuilder::new().file("a", "one")).build()
}

/// What a command says with this `registries.conf`.
fn with_conf(user: &User, line: &[&str], conf: &str) -> (Option<i32>, String, String) {
    let file = user.path("registries.conf");
    std::fs::write(&file, conf).unwrap();
    let output = user.command(line).env("CONTAINERS_REGISTRIES_CONF", &file).output().unwrap();
    let text = |bytes: &[u8]| {
        user.hidden.iter().fold(String::from_utf8(bytes.to_vec()).unwrap(), |text, (from, to)| text.replace(from, to))
    };
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_short_name_stands_for_what_a_file_says() {
    let [empty, full] = [
        Registry::start(Catalog::default()).unwrap(),
        Registry::start(Catalog::new().image("team/app", "1", &small())).unwrap(),
    ];
    let user = User::at(&full);
    let alias = format!("[aliases]\n'app' = '{}/team/app'\n", full.addr());
    let (code, out, told) = with_conf(&user, &["cat", "app:1", "/a"], &alias);
    assert_eq!((code, &*out), (Some(0), "one"), "{told}");
    assert!(told.starts_with("note: `app:1` stands for `registry.test/team/app:1`, by `$DIR/work/registries.conf`\n"));

    let search = format!("unqualified-search-registries = ['{}', '{}']\n", empty.addr(), full.addr());
    let (code, out, told) = with_conf(&user, &["cat", "team/app:1", "/a"], &search);
    assert_eq!((code, &*out), (Some(0), "one"), "{told}");
    assert!(!empty.requests().is_empty());
    let (code, _, told) = with_conf(&user, &["cat", "team/none:1", "/a"], &search);
    assert!(code == Some(3) && told.contains("not found in"), "{told}");
    let enforcing = format!("{search}short-name-mode = 'enforcing'\n");
    let (code, _, told) = with_conf(&user, &["cat", "team/app:1", "/a"], &enforcing);
    assert!(code == Some(2) && told.contains("`team/app:1` may be any of `127."), "{told}");
    // Full names and transports are what they are.
    let before = empty.requests().len();
    let typed = full.reference("team/app", "1");
    assert_eq!(with_conf(&user, &["cat", &typed, "/a"], &enforcing).1, "one");
    assert_eq!(empty.requests().len(), before);
    let (code, _, told) = with_conf(&user, &["cat", "app", "/a"], "[aliases]\n'app' = 'x'\n");
    let wanted = "error: `$DIR/work/registries.conf`, line 2, cannot be used: `x` is not the full name of a repository";
    assert!(code == Some(1) && told.starts_with(wanted), "{told}");
}

#[test]
fn a_wrong_tag_comes_with_the_nearest_one() {
    let mut catalog = Catalog::new();
    for tag in ["3.11", "3.12", "3.12-slim"] {
        catalog = catalog.image("team/app", tag, &small());
    }
    let registry = Registry::start(catalog).unwrap();
    let user = User::at(&registry);
    let told = |tag: &str| user.run(&["ls", &registry.reference("team/app", tag)]).text;
    assert!(
        told("3.12-slm").contains("hint: did you mean `registry.test/team/app:3.12-slim`?"),
        "{}",
        told("3.12-slm")
    );
    assert!(told("stable").contains("the tags of registry.test/team/app are `3.11`, `3.12`, `3.12-slim`"));
    let none = user.run(&["ls", &registry.reference("team/none", "1")]).text;
    assert!(none.contains("hint: check the spelling"), "{none}");
}

/// Writes a layout whose documents and blobs are all named by BLAKE3.
fn write_blake3(layout: &Path) -> Digest {
    let layer = small().layers()[0].clone();
    std::fs::create_dir_all(layout.join("blobs/blake3")).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(Algorithm::Blake3, bytes);
        std::fs::write(layout.join("blobs/blake3").join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let diff_id = Digest::of(Algorithm::Blake3, &layer.tar).to_string();
    let platform = peelfs::platform::Platform::host().to_string();
    let (os, rest) = platform.split_once('/').unwrap();
    let architecture = rest.split('/').next().unwrap();
    let config =
        json!({ "os": os, "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let layer = put("application/vnd.oci.image.layer.v1.tar+gzip", &layer.blob);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let manifest = put(kind, manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn an_image_whose_digests_are_blake3_is_read() {
    let user = User::new();
    let manifest = write_blake3(&user.path("layout"));
    for reference in ["oci:layout".to_owned(), format!("oci:layout@{manifest}")] {
        let ran = user.run(&["cat", &reference, "/a"]);
        assert_eq!(ran.output.stdout, b"one", "{}", ran.text);
    }
    // A flipped bit is found as with any other algorithm.
    let other = User::new();
    write_blake3(&other.path("layout"));
    let layer = Digest::of(Algorithm::Blake3, &small().layers()[0].blob);
    let path = other.path("layout/blobs/blake3").join(layer.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let ran = other.run(&["cat", "oci:layout", "/a"]);
    assert_eq!(ran.output.status.code(), Some(5), "{}", ran.text);
}
