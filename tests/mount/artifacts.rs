//! Artifacts as files: what a mount shows of each kind, what it asks the registry for, and what lies do.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::image::{ArtifactBuilder, Image, ImageBuilder, IndexBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};

const RAW: &str = "application/vnd.cncf.model.weight.v1.raw";
const FILE_PATH: &str = "org.cncf.model.filepath";
const METADATA: &str = "org.cncf.model.file.metadata+json";

/// A model as `modctl` pushes it: files, and a tar of the code.
fn model(weights: &[u8]) -> Image {
    let code = LayerBuilder::new().dir("code").file("code/run.py", "print(1)").packing(Packing::GZIP).build();
    let metadata = r#"{"name":"model.safetensors","mode":416,"uid":1000,"gid":100,"size":1,"mtime":"2025-01-02T03:04:05Z","typeflag":48}"#;
    ArtifactBuilder::new("application/vnd.cncf.model.manifest.v1+json")
        .config("application/vnd.cncf.model.config.v1+json", r#"{"descriptor":{"name":"m"}}"#)
        .layer(RAW, weights.to_vec(), &[(FILE_PATH, "w/model.safetensors"), (METADATA, metadata)])
        .layer("application/vnd.cncf.model.weight.config.v1.raw", "{\"a\":1}", &[(FILE_PATH, "config.json")])
        .layer("application/vnd.cncf.model.code.v1.tar+gzip", code.blob, &[(FILE_PATH, "code")])
        .layer("application/vnd.cncf.model.doc.v1.raw", "", &[(FILE_PATH, "empty.md")])
        .build()
}

fn registry(artifact: &Image) -> Registry {
    Registry::start(Catalog::new().image("m", "1", artifact)).unwrap()
}

/// A mount that is ready as soon as names are known.
fn mounted<'a>(sandbox: &'a Sandbox, reference: &str, how: &str) -> MountPoint<'a> {
    let at = sandbox.mount_point("m");
    let output = at.try_mount(reference, &[how]);
    assert!(output.status.success(), "mount: {}", said(&output));
    at
}

/// The paths below a directory, in order, directories with a slash.
fn listed(at: &Path) -> Vec<String> {
    let found =
        Command::new("find").current_dir(at).args([".", "-mindepth", "1", "-printf", "%P%y\n"]).output().unwrap();
    let mut paths: Vec<String> = String::from_utf8(found.stdout).unwrap().lines().map(ToOwned::to_owned).collect();
    paths.sort();
    paths
}

#[test]
fn a_model_is_shown_as_its_files() {
    if cannot_mount() {
        return;
    }
    let weights = Random::new(1).bytes(3_000_001);
    let (registry, sandbox) = (registry(&model(&weights)), Sandbox::new());
    let at = sandbox.mount(&registry.reference("m", "1"), "m");
    assert_eq!(
        listed(&at.join("")),
        ["code/run.pyf", "coded", "config.jsonf", "empty.mdf", "w/model.safetensorsf", "wd"]
    );
    let file = at.join("w/model.safetensors");
    assert!(std::fs::read(&file).unwrap() == weights);
    let found = file.metadata().unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid(), found.mtime()), (0o640, 1000, 100, 1_735_787_045));
    assert_eq!(std::fs::read(at.join("code/run.py")).unwrap(), b"print(1)");
    assert_eq!(std::fs::read(at.join("empty.md")).unwrap(), b"");
}

#[test]
fn names_of_files_need_no_byte_of_them() {
    let (registry, sandbox) = (registry(&model(&Random::new(2).bytes(100_000))), Sandbox::new());
    let reference = registry.reference("m", "1");
    let listed = sandbox.run(["ls", "-l", &reference, "/w"]);
    assert!(said(&listed).contains("model.safetensors"), "{}", said(&listed));
    let asked: Vec<_> = registry.requests().into_iter().filter(|request| request.is_blob()).collect();
    // The tar has to be read, as names in it would be in the listing; and the configuration.
    assert_eq!(asked.len(), 2, "{asked:?}");
}

#[test]
fn a_file_that_was_read_before_is_read_by_range() {
    if cannot_mount() {
        return;
    }
    let weights = Random::new(3).bytes(8 << 20);
    let (registry, sandbox) = (registry(&model(&weights)), Sandbox::new());
    let reference = registry.reference("m", "1");
    sandbox.mount(&reference, "first").unmount();
    sandbox.drop_content();
    registry.clear();
    let at = sandbox.mount_with(&reference, "m", &["--prefetch=none"]);
    let file = std::fs::File::open(at.join("w/model.safetensors")).unwrap();
    let mut head = [0; 8192];
    file.read_exact_at(&mut head, 0).unwrap();
    assert!(head[..] == weights[..8192]);
    // What the tag names, and one range.
    let asked = registry.requests();
    assert!(asked.len() <= 3, "{asked:?}");
    assert!(registry.blob_bytes() <= 1 << 20, "{}", registry.blob_bytes());
    let mut tail = [0; 100];
    file.read_exact_at(&mut tail, (8 << 20) - 100).unwrap();
    assert!(tail[..] == weights[(8 << 20) - 100..]);
    assert!(registry.requests().iter().filter(|request| request.is_blob()).all(|request| request.range().is_some()));
}

#[test]
fn a_header_is_read_behind_the_pass_in_three_requests() {
    if cannot_mount() {
        return;
    }
    let weights = Random::new(4).bytes(2 << 20);
    let artifact = ArtifactBuilder::new("application/vnd.cncf.model.manifest.v1+json")
        .config("application/vnd.cncf.model.config.v1+json", "{}")
        .layer(RAW, weights.clone(), &[(FILE_PATH, "w")])
        .build();
    let (registry, sandbox) = (registry(&artifact), Sandbox::new());
    let at = mounted(&sandbox, &registry.reference("m", "1"), "--verify=behind");
    let mut head = [0; 8192];
    std::fs::File::open(at.join("w")).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert!(head[..] == weights[..8192]);
    assert!(registry.requests().len() <= 3, "{:?}", registry.requests());
    assert!(std::fs::read(at.join("w")).unwrap() == weights);
}

#[test]
fn a_file_that_is_not_what_its_digest_says_is_never_read() {
    if cannot_mount() {
        return;
    }
    for how in ["--verify=strict", "--verify=behind"] {
        let (registry, sandbox) = (registry(&model(&Random::new(5).bytes(2 << 20))), Sandbox::new());
        registry.faults().add(Rule::new(Target::Blobs, Fault::FlipBit { at: 2_000_000, bit: 1 }));
        let at = mounted(&sandbox, &registry.reference("m", "1"), how);
        let read = std::fs::read(at.join("w/model.safetensors"));
        assert!(read.is_err() || how == "--verify=behind", "{how}");
        // Whatever was shown behind the pass is an error once the pass has ended.
        while std::fs::read(at.join("w/model.safetensors")).is_ok() {}
        assert_eq!(std::fs::read(at.join("config.json")).unwrap(), b"{\"a\":1}", "others are unharmed");
        assert!(at.join("w/model.safetensors").metadata().is_ok(), "its name is the manifest's");
    }
}

#[test]
fn one_blob_may_be_a_file_here_and_a_layer_there() {
    let layer = LayerBuilder::new().file("inside", "in the tar").packing(Packing::Stored).build();
    let image = ImageBuilder::new().layer(layer.clone()).build();
    let files =
        ArtifactBuilder::new("application/x").file("a.tar", layer.blob.clone()).file("b", layer.blob.clone()).build();
    let catalog = Catalog::new().image("m", "image", &image).image("m", "files", &files);
    let (registry, sandbox) = (Registry::start(catalog).unwrap(), Sandbox::new());
    for _ in 0..2 {
        for path in ["/a.tar", "/b"] {
            let shown = sandbox.run(["cat", &registry.reference("m", "files"), path]);
            assert!(shown.status.success() && shown.stdout == layer.blob, "{}", said(&shown));
        }
        let shown = sandbox.run(["cat", &registry.reference("m", "image"), "/inside"]);
        assert!(shown.status.success() && shown.stdout == b"in the tar", "{}", said(&shown));
    }
    let as_files = sandbox.run(["ls", "--artifact", &registry.reference("m", "image")]);
    assert_eq!(String::from_utf8_lossy(&as_files.stdout).trim(), format!("{}.tar", layer.digest.hex()));
    let checked = sandbox.run(["cache", "verify"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

#[test]
fn an_index_leads_to_an_artifact_if_it_has_no_image() {
    let (image, files) = (
        ImageBuilder::new().layer(LayerBuilder::new().file("of-image", "i")).build(),
        ArtifactBuilder::new("application/x").file("of-artifact", "a").build(),
    );
    let entry = |entry: &mut serde_json::Value| entry["artifactType"] = "application/x".into();
    let both = IndexBuilder::new().image(&files).edit_last(entry).image(&image).build();
    let alone = IndexBuilder::new().image(&files).edit_last(entry).build();
    let unsaid = IndexBuilder::new().image(&files).build();
    let nested = IndexBuilder::new().image(&alone).build();
    let several = IndexBuilder::new()
        .image(&files)
        .edit_last(entry)
        .image(&ArtifactBuilder::new("application/x").file("other", "o").build())
        .edit_last(entry)
        .build();
    let catalog = [("both", &both), ("alone", &alone), ("unsaid", &unsaid), ("nested", &nested), ("several", &several)]
        .into_iter()
        .fold(Catalog::new(), |catalog, (tag, image)| catalog.image("m", tag, image));
    let (registry, sandbox) = (Registry::start(catalog).unwrap(), Sandbox::new());
    let ls = |tag: &str| sandbox.run(["ls", &registry.reference("m", tag)]);
    for (tag, expected) in
        [("both", "of-image"), ("alone", "of-artifact"), ("unsaid", "of-artifact"), ("nested", "of-artifact")]
    {
        let listed = ls(tag);
        assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), expected, "{tag}: {}", said(&listed));
    }
    let refused = said(&ls("several"));
    assert!(refused.contains("2 artifacts") && refused.contains("choose one by its digest"), "{refused}");
}

#[test]
fn a_layout_is_what_skopeo_and_umoci_read() {
    if cannot_mount() {
        return;
    }
    let layers = [Packing::GZIP, Packing::ZSTD, Packing::Stored].map(|packing| {
        LayerBuilder::new().file(&format!("{packing:?}"), Random::new(6).bytes(300_000)).packing(packing)
    });
    let image = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build();
    let catalog = Catalog::new().image("m", "1", &image).image("m", "files", &model(b"weights"));
    let (registry, sandbox) = (Registry::start(catalog).unwrap(), Sandbox::new());
    for tag in ["1", "files"] {
        let reference = registry.reference("m", tag);
        let at = sandbox.mount_with(&reference, tag, &["--as-layout"]);
        let layout = format!("oci:{}", at.join("").display());
        let same = sandbox.run(["inspect", layout.trim_end_matches('/')]);
        let named = sandbox.run(["inspect", &reference]);
        let digest = |output: &std::process::Output| {
            let value: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)));
            value["manifest"]["digest"].clone()
        };
        assert_eq!(digest(&same), digest(&named));
        assert!(std::fs::write(at.join("index.json"), "").is_err(), "a layout is read-only");
        if is_missing("skopeo") {
            continue;
        }
        let copy = sandbox.path().join(format!("copy-{tag}"));
        let copied = Command::new("skopeo")
            .args(["copy", "--quiet", "--preserve-digests", layout.trim_end_matches('/')])
            .arg(format!("oci:{}:copied", copy.display()))
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", said(&copied));
        for (digest, blob) in if tag == "1" { image.blobs().collect::<Vec<_>>() } else { Vec::new() } {
            assert!(std::fs::read(copy.join("blobs/sha256").join(digest.hex())).unwrap() == blob[..]);
        }
    }
    let at = sandbox.mount_with(&registry.reference("m", "1"), "layout", &["--as-layout"]);
    if !is_missing("umoci") {
        let unpacked = sandbox.path().join("unpacked");
        let unpacking = Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:{}", at.join("").display(), registry.reference("m", "1")))
            .arg(&unpacked)
            .output()
            .unwrap();
        assert!(!unpacking.status.success() || unpacked.join("rootfs").is_dir(), "{}", said(&unpacking));
    }
}
