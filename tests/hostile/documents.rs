//! Rows 13 to 16: documents, digests and sizes.

use peelfs::digest::{Algorithm, Digest};
use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, IndexBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::{Value, json};

use super::{NAME, bounded, refused, served, tried};
use support::sandbox::{Sandbox, said};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn small() -> Image {
    ImageBuilder::new().layer(LayerBuilder::new().file("f", "x".repeat(5_000))).build()
}

fn manifest_of(image: &Image) -> Value {
    serde_json::from_slice(image.documents().next().unwrap().2).unwrap()
}

/// `image` with another root document; its blobs are the same.
fn rooted(image: &Image, media_type: &str, document: impl Into<Vec<u8>>) -> Image {
    image
        .blobs()
        .fold(Image::from_document(media_type, document.into()), |image, (_, blob)| image.with_blob(blob.clone()))
}

#[test]
fn row_13_a_body_that_is_not_the_blob_is_not_kept() {
    let image = small();
    let layer = &image.layers()[0];
    let blob = || Target::Blob(layer.digest.clone());
    let other = Digest::of(Algorithm::Sha256, b"other").to_string();
    let shorter = layer.blob.slice(..layer.blob.len() - 1);
    let longer = [&layer.blob[..], b"x"].concat();
    let table: Vec<(&str, Vec<i32>, Target, Fault)> = vec![
        ("one byte less", vec![6], blob(), Fault::OtherBytes(shorter)),
        ("one byte more", vec![6], blob(), Fault::OtherBytes(longer.into())),
        ("nothing", vec![6], blob(), Fault::OtherBytes(Vec::new().into())),
        ("another blob of that size", vec![5], blob(), Fault::OtherBytes(vec![7; layer.blob.len()].into())),
        ("the blob shifted", vec![5], blob(), Fault::ShiftBody(1)),
        ("a length too small", vec![6], blob(), Fault::ContentLength(-1)),
        ("a length too large", vec![6], blob(), Fault::ContentLength(1)),
        ("no content", vec![6], blob(), Fault::status(204)),
        ("a partial answer to no range", vec![6], blob(), Fault::status(206)),
        (
            "another digest for the manifest",
            vec![5],
            Target::Manifests,
            Fault::Header("Docker-Content-Digest".to_owned(), other),
        ),
        ("an empty manifest", vec![5, 6], Target::Manifests, Fault::OtherBytes(Vec::new().into())),
        ("a manifest cut short", vec![5, 6], Target::Manifests, Fault::Truncate { after: 20 }),
    ];
    let inputs = table.len();
    for (what, codes, target, fault) in table {
        let registry = served(&image);
        registry.faults().add(Rule::new(target, fault));
        let sandbox = Sandbox::new();
        let output = sandbox.run(["ls", &registry.reference(NAME, "1")]);
        assert!(codes.contains(&output.status.code().unwrap()), "{what}: {}", said(&output));
        refused(&output, output.status.code().unwrap(), what);
        for bucket in ["index-v2", "content-v2", "tmp"] {
            assert!(sandbox.bucket(bucket).is_empty(), "{what}: {:?}", sandbox.bucket(bucket));
        }
        registry.faults().clear();
        assert_eq!(sandbox.run(["ls", &registry.reference(NAME, "1")]).stdout, b"f\n", "{what}, honest again");
    }
    // A Docker-Content-Digest on a blob is not looked at: the digest that was asked for decides.
    let registry = served(&image);
    registry
        .faults()
        .add(Rule::new(Target::Blobs, Fault::Header("Docker-Content-Digest".to_owned(), "sha256:x".to_owned())));
    assert_eq!(Sandbox::new().run(["ls", &registry.reference(NAME, "1")]).stdout, b"f\n");
    tried(13, inputs + 1);
}

#[test]
fn row_14_documents_that_can_be_read_in_two_ways_are_refused() {
    let image = small();
    let manifest = manifest_of(&image);
    let with = |key: &str, value: Value| {
        let mut changed = manifest.clone();
        changed[key] = value;
        changed.to_string()
    };
    let text = manifest.to_string();
    let table: Vec<(&str, &str, String)> = vec![
        ("manifests too", MANIFEST, with("manifests", json!([]))),
        ("manifests too, served as an index", INDEX, with("manifests", json!([]))),
        ("fsLayers too", MANIFEST, with("fsLayers", json!([]))),
        ("a manifest served as an index", INDEX, text.clone()),
        ("an index served as a manifest", MANIFEST, json!({ "schemaVersion": 2, "manifests": [] }).to_string()),
        ("a manifest that says it is an index", MANIFEST, with("mediaType", json!(INDEX))),
        ("a manifest that says it is a picture", MANIFEST, with("mediaType", json!("image/png"))),
        (
            "schema 1",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            json!({ "schemaVersion": 1, "fsLayers": [] }).to_string(),
        ),
        ("schema 1 in disguise", MANIFEST, json!({ "schemaVersion": 1, "fsLayers": [], "history": [] }).to_string()),
        ("schema 3", MANIFEST, with("schemaVersion", json!(3))),
        ("layers twice", MANIFEST, text.replacen("\"layers\"", "\"layers\":[],\"layers\"", 1)),
        ("Layers", MANIFEST, text.replacen("\"layers\"", "\"Layers\"", 1)),
        ("something behind", MANIFEST, format!("{text}{text}")),
        ("a web page", "text/html", "<html>".to_owned()),
        ("a web page served as a manifest", MANIFEST, "<html>".to_owned()),
    ];
    let inputs = table.len();
    for (what, media_type, document) in table {
        let registry = Registry::start(Catalog::default()).unwrap();
        registry.push(NAME, "1", &rooted(&image, media_type, document));
        let output = Sandbox::new().run(["ls", &registry.reference(NAME, "1")]);
        refused(&output, output.status.code().unwrap(), what);
        assert!(!output.status.success(), "{what}");
    }
    // What was a manifest by its descriptor stays one, whatever type it is served as.
    let index = IndexBuilder::new().image(&image).build();
    let registry = served(&index);
    let manifest = Target::Manifest(image.root().digest.to_string());
    registry.faults().add(Rule::new(manifest, Fault::Header("Content-Type".to_owned(), INDEX.to_owned())));
    let output = Sandbox::new().run(["ls", &registry.reference(NAME, "1")]);
    assert!(!output.status.success(), "{}", said(&output));
    tried(14, inputs + 1);
}

#[test]
fn row_15_only_exact_digests_become_paths_and_addresses() {
    let hex = "a".repeat(64);
    let bad: Vec<String> = vec![
        String::new(),
        "sha256:".to_owned(),
        "sha256".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}a"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}g", &hex[1..]),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}"),
        format!("md5:{}", &hex[..32]),
        "md5:aa".to_owned(),
        format!("sha1:{}", &hex[..40]),
        format!("sha384:{}", "a".repeat(96)),
        format!("blake2b:{hex}"),
        format!("sha256+b64:{hex}"),
        "sha256:../../../../../../etc/passwd".to_owned(),
        format!("../sha256:{hex}"),
        format!("sha256:{hex}/../x"),
        format!("sha256:{hex}?x=y"),
        format!("sha256:{hex}#x"),
        format!("sha256:{hex}\n"),
        format!(" sha256:{hex}"),
        format!("sha256:{hex} "),
        format!("sha256:{}\0", &hex[1..]),
        format!("sha256:sha256:{hex}"),
        format!("sha256-{hex}"),
        format!("sha256:{}", "\u{ff41}".repeat(64)),
        format!("sha256:{}", "%61".repeat(64)),
        format!(":{hex}"),
        hex.clone(),
    ];
    let image = small();
    type Put = fn(&mut Value, Value);
    let places: [(&str, Put); 2] = [
        ("a layer", |manifest, digest| manifest["layers"][0]["digest"] = digest),
        ("the configuration", |manifest, digest| manifest["config"]["digest"] = digest),
    ];
    let mut inputs = 0;
    let registry = Registry::start(Catalog::default()).unwrap();
    let sandbox = Sandbox::new();
    for digest in &bad {
        let mut roots = Vec::new();
        for (what, put) in places {
            let mut manifest = manifest_of(&image);
            put(&mut manifest, json!(digest));
            roots.push((what, rooted(&image, MANIFEST, manifest.to_string())));
        }
        let entry = json!({ "mediaType": MANIFEST, "digest": digest, "size": 7, "platform": { "os": "linux", "architecture": "amd64" } });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        roots.push(("an entry of an index", rooted(&image, INDEX, index.to_string())));
        let value = digest.clone();
        let config = ImageBuilder::new().layer(LayerBuilder::new().file("f", "x"));
        roots.push((
            "a diff_id",
            config.edit_config(move |config| config["rootfs"]["diff_ids"][0] = json!(value)).build(),
        ));
        for (what, root) in roots {
            registry.push(NAME, "1", &root);
            let output = sandbox.run(["ls", &registry.reference(NAME, "1")]);
            refused(&output, 5, &format!("{what} is {digest:?}"));
            inputs += 1;
        }
        if !digest.contains('\0') {
            let output = sandbox.run(["ls", &format!("{}/{NAME}@{digest}", registry.addr())]);
            refused(&output, 2, &format!("the reference's is {digest:?}"));
            inputs += 1;
        }
    }
    for request in registry.requests() {
        let last = request.request.path.rsplit('/').next().unwrap().to_owned();
        assert!(last == "1" || last.parse::<Digest>().is_ok(), "{request:?}");
    }
    assert!(!sandbox.bucket("document-v1").iter().any(|path| path.to_string_lossy().contains("..")));
    tried(15, inputs);
}

#[test]
fn row_16_documents_have_limits() {
    let image = small();
    let text = manifest_of(&image).to_string();
    let deep = format!("{{\"schemaVersion\":2,\"config\":{}1{}", "{\"a\":".repeat(2_000), "}".repeat(2_001));
    let padded = |size: usize| format!("{text}{}", " ".repeat(size - text.len()));
    let entry = json!({ "mediaType": MANIFEST, "digest": image.root().digest, "size": 7 });
    let documents: Vec<(&str, &str, String, bool)> = vec![
        ("4 MiB", MANIFEST, padded(4 << 20), true),
        ("4 MiB and a byte", MANIFEST, padded((4 << 20) + 1), false),
        ("2,000 objects deep", MANIFEST, deep, false),
        ("100,000 brackets deep", MANIFEST, "[".repeat(100_000), false),
        ("20,000 entries", INDEX, json!({ "schemaVersion": 2, "manifests": vec![&entry; 20_000] }).to_string(), false),
        (
            "a number of a million digits",
            MANIFEST,
            text.replacen("\"schemaVersion\":2", &format!("\"schemaVersion\":{}", "2".repeat(1 << 20)), 1),
            false,
        ),
        ("sizes below zero", MANIFEST, text.replacen("\"size\":", "\"size\":-", 1), false),
        ("sizes beyond 2⁶⁴", MANIFEST, text.replacen("\"size\":", "\"size\":99999999999999999999", 1), false),
    ];
    let mut inputs = documents.len();
    for (what, media_type, document, good) in documents {
        let registry = Registry::start(Catalog::default()).unwrap();
        registry.push(NAME, "1", &rooted(&image, media_type, document));
        let sandbox = Sandbox::new();
        let output = bounded(&sandbox, ["ls", &registry.reference(NAME, "1")]).output().unwrap();
        assert_eq!(output.status.success(), good, "{what}: {:.500}", said(&output));
        if !good {
            let told = refused(&output, output.status.code().unwrap(), what);
            assert!(told.len() < 1_000, "{what}: {} bytes of error", told.len());
        }
    }
    for (what, target) in [("a manifest", Target::Manifests), ("a configuration or layer", Target::Blobs)] {
        let registry = served(&image);
        registry.faults().add(Rule::new(target, Fault::Endless));
        let sandbox = Sandbox::new();
        let output = bounded(&sandbox, ["ls", &registry.reference(NAME, "1")]).output().unwrap();
        refused(&output, output.status.code().unwrap(), &format!("{what} without end"));
        inputs += 1;
    }
    // Index in index in index; and one that leads to itself, which a digest forbids, so a tag has to lie.
    for (depth, good) in [(1, true), (3, true), (4, false), (40, false)] {
        let nested = (0..depth).fold(image.clone(), |image, _| IndexBuilder::new().image(&image).build());
        let output = Sandbox::new().run(["ls", &served(&nested).reference(NAME, "1")]);
        assert_eq!(output.status.success(), good, "{depth} indexes: {}", said(&output));
        inputs += 1;
    }
    let index = IndexBuilder::new().image(&IndexBuilder::new().image(&image).build()).build();
    let registry = served(&index);
    let own = index.documents().find(|(digest, ..)| **digest == index.root().digest).unwrap().2.clone();
    registry.faults().add(Rule::new(Target::Manifests, Fault::OtherBytes(own)));
    let output = Sandbox::new().run(["ls", &registry.reference(NAME, "1")]);
    refused(&output, output.status.code().unwrap(), "an index in itself");
    tried(16, inputs + 1);
}
