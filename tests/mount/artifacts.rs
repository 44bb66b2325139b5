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
fn files_that_are_hidden_or_renamed_are_told_once() {
    let artifact = ["same", "dir/below", "../../out", "same", "dir", "/plain"]
        .iter()
        .fold(ArtifactBuilder::new("application/x"), |artifact, title| artifact.file(title, *title))
        .build();
    let (registry, sandbox) = (registry(&artifact), Sandbox::new());
    let reference = registry.reference("m", "1");
    let hidden = format!(
        "note: files of {reference} are hidden by later ones: `same` of layer 1 by layer 4, `dir/below` of layer 2 by \
         layer 5; `peelfs mount --as-layout` shows every blob\n"
    );
    let renamed =
        format!("note: names of {reference} lead out of it, and files are shown within it: `../../out` as `out`\n");
    for command in ["ls", "inspect"] {
        let output = sandbox.run([command, &reference]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("{hidden}{renamed}"), "{command}");
        if command == "ls" {
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "dir\nout\nplain\nsame\n");
        } else {
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let layers = told["layers"].as_array().unwrap();
            let found = layers.iter().map(|layer| (layer["shown_as"].as_str(), layer["hidden_by"].as_u64()));
            assert_eq!(
                found.collect::<Vec<_>>(),
                [
                    (None, Some(4)),
                    (None, Some(5)),
                    (Some("out"), None),
                    (None, None),
                    (None, None),
                    (Some("plain"), None)
                ]
            );
        }
    }
    if cannot_mount() {
        return;
    }
    let at = sandbox.mount_point("m");
    let mounted = at.try_mount(&reference, &[]);
    assert_eq!(String::from_utf8(mounted.stderr).unwrap(), format!("{hidden}{renamed}"));
    at.unmount();
    assert_eq!(sandbox.logs(), "");
    let whole = at.try_mount(&reference, &["--as-layout"]);
    assert_eq!(String::from_utf8(whole.stderr).unwrap(), "", "it shows every blob");
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
    let layers = [Packing::GZIP, Packing::Stored].map(|packing| {
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
    let named = sandbox.mount_point("named").try_mount(&registry.reference("m", "1"), &["--as-layout=a b"]);
    assert!(named.status.code() == Some(2) && said(&named).contains("`a b` is not a name"), "{}", said(&named));
    let at = sandbox.mount_with(&registry.reference("m", "1"), "layout", &["--as-layout=app"]);
    if !is_missing("umoci") {
        let unpacked = sandbox.path().join("unpacked");
        let unpacking = Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:app", at.path.display()))
            .arg(&unpacked)
            .output()
            .unwrap();
        assert!(unpacking.status.success(), "{}", said(&unpacking));
        assert_eq!(std::fs::read_dir(unpacked.join("rootfs")).unwrap().count(), 2);
    }
}

#[test]
fn an_imported_index_lets_a_file_be_read_by_range() {
    let weights = Random::new(7).bytes(4 << 20);
    let artifact = ArtifactBuilder::new("application/x").file("w", weights.clone()).build();
    let (registry, here, there) = (registry(&artifact), Sandbox::new(), Sandbox::new());
    let reference = registry.reference("m", "1");
    let known = here.path().join("known").display().to_string();
    assert!(here.run(["cat", &reference, "/w"]).stdout == weights);
    let exported = here.run(["index", "export", &reference, &known]);
    assert!(exported.status.success(), "{}", said(&exported));
    let imported = there.run(["index", "import", &known]);
    assert!(imported.status.success(), "{}", said(&imported));
    registry.clear();
    assert!(there.run(["cat", &reference, "/w"]).stdout == weights);
    let blobs: Vec<_> = registry.requests().into_iter().filter(|request| request.is_blob()).collect();
    assert!(blobs.iter().all(|request| request.range().is_some()), "{blobs:?}");
    let inspected = there.run(["inspect", &reference]);
    assert!(said(&inspected).contains(&format!("\"vouched_by\": \"{known}\"")), "{}", said(&inspected));
}

#[test]
fn the_kernel_mounts_and_reads_files_of_artifacts() {
    if cannot_mount() {
        return;
    }
    let weights = Random::new(8).bytes((3 << 20) + 77);
    let named = |path: &str| {
        let layers = [(path, weights.clone()), ("small", b"small".to_vec()), ("again", weights.clone())];
        let builder = ArtifactBuilder::new("application/vnd.cncf.model.manifest.v1+json");
        layers.into_iter().fold(builder, |of, (path, blob)| of.layer(RAW, blob, &[(FILE_PATH, path)])).build()
    };
    let catalog = Catalog::new().image("m", "1", &named("one/w")).image("m", "2", &named("two/w"));
    let (registry, sandbox) = (Registry::start(catalog).unwrap(), Sandbox::new());
    for (tag, dir) in [("1", "one"), ("2", "two"), ("1", "one")] {
        let at = sandbox.mount_with(&registry.reference("m", tag), "k", &["--kernel=always", "--allow-other"]);
        let mut names = ["againf".to_owned(), format!("{dir}/wf"), format!("{dir}d"), "smallf".to_owned()];
        names.sort();
        assert_eq!(listed(&at.join("")), names);
        for path in [&format!("{dir}/w"), "again"] {
            assert!(std::fs::read(at.join(path)).unwrap() == weights, "{path}");
        }
        assert_eq!(std::fs::read(at.join("small")).unwrap(), b"small");
        at.unmount();
        // One of them is cached already, under another name.
        let at = sandbox.mount_with(&registry.reference("m", tag), "p", &["--passthrough=auto"]);
        for path in [&format!("{dir}/w"), "again", &format!("{dir}/w")] {
            assert!(std::fs::read(at.join(path)).unwrap() == weights, "{path}");
        }
        assert_eq!(std::fs::read(at.join("small")).unwrap(), b"small");
        at.unmount();
    }
    assert!(sandbox.bucket("whole-v2").is_empty(), "a file that is all of its layer needs no copy");
    let checked = sandbox.run(["cache", "verify"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

#[test]
fn a_server_that_dies_is_replaced_and_shows_the_same() {
    if cannot_mount() {
        return;
    }
    let weights = Random::new(9).bytes(1 << 20);
    let (registry, sandbox) = (registry(&model(&weights)), Sandbox::new());
    let reference = registry.reference("m", "1");
    for (how, path) in [("--prefetch=none", "w/model.safetensors"), ("--as-layout", "index.json")] {
        let at = sandbox.mount_with(&reference, "m", &[how]);
        let before = (std::fs::read(at.join(path)).unwrap(), listed(&at.join("")));
        // The kernel has it no more.
        let file = std::fs::File::open(at.join(path)).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        drop(file);
        let server = at.server();
        at.kill_server();
        at.until_served_by_another(server);
        assert_eq!((std::fs::read(at.join(path)).unwrap(), listed(&at.join(""))), before);
        at.unmount();
    }
}

#[test]
fn artifacts_that_share_a_blob_share_a_process() {
    if cannot_mount() {
        return;
    }
    let weights = Random::new(10).bytes(1 << 20);
    let named = |path: &str| ArtifactBuilder::new("application/x").file(path, weights.clone()).build();
    let catalog = Catalog::new().image("m", "1", &named("a/one")).image("m", "2", &named("two"));
    let (registry, sandbox) = (Registry::start(catalog).unwrap(), Sandbox::new());
    let one = sandbox.mount_with(&registry.reference("m", "1"), "one", &["--share"]);
    let two = sandbox.mount_with(&registry.reference("m", "2"), "two", &["--share"]);
    assert!(std::fs::read(one.join("a/one")).unwrap() == weights);
    assert!(std::fs::read(two.join("two")).unwrap() == weights);
    let blobs = registry.requests().iter().filter(|request| request.is_blob()).count();
    assert_eq!(blobs, 1, "one pass reads it for both");
}

#[test]
fn charts_and_directories_are_unpacked() {
    let tar = |name: &str| {
        let layer = LayerBuilder::new().file(&format!("{name}/values.yaml"), "a: 1").file(&format!("{name}/t/x"), "x");
        layer.packing(Packing::GZIP).build()
    };
    let (web, dir) = (tar("web"), tar("dir"));
    let chart = ArtifactBuilder::new("")
        .edit(|manifest| drop(manifest.as_object_mut().unwrap().remove("artifactType")))
        .config("application/vnd.cncf.helm.config.v1+json", r#"{"name":"web","version":"1.2.3"}"#)
        .layer("application/vnd.cncf.helm.chart.provenance.v1.prov", "signed", &[])
        .layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", web.blob.clone(), &[])
        .build();
    let unpacked = |digest: &str| {
        let annotations = [
            ("org.opencontainers.image.title", "dir"),
            ("io.deis.oras.content.unpack", "true"),
            ("io.deis.oras.content.digest", digest),
        ];
        let artifact = ArtifactBuilder::new("application/x");
        artifact.layer("application/vnd.oci.image.layer.v1.tar+gzip", dir.blob.clone(), &annotations).build()
    };
    let (right, wrong) = (unpacked(&dir.diff_id.to_string()), unpacked(&web.diff_id.to_string()));
    let catalog = Catalog::new().image("m", "chart", &chart).image("m", "right", &right).image("m", "wrong", &wrong);
    let (registry, sandbox) = (Registry::start(catalog).unwrap(), Sandbox::new());
    let cat = |tag: &str, path: &str| sandbox.run(["cat", &registry.reference("m", tag), path]);
    assert_eq!(cat("chart", "/web/values.yaml").stdout, b"a: 1");
    assert_eq!(cat("chart", "/web-1.2.3.tgz.prov").stdout, b"signed");
    assert_eq!(cat("right", "/dir/values.yaml").stdout, b"a: 1");
    let refused = cat("wrong", "/dir/values.yaml");
    assert_eq!(refused.status.code(), Some(5), "{}", said(&refused));
    let inspected = sandbox.run(["inspect", &registry.reference("m", "chart")]);
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((&inspected["artifact"], &inspected["config"]["name"]), (&"Helm chart".into(), &"web".into()));
    assert_eq!(inspected["layers"][0]["path"], "web-1.2.3.tgz.prov");
}

#[test]
fn hostile_names_are_refused_with_the_layer_and_what_to_do() {
    let refused = |titles: &[&str]| {
        let artifact = titles
            .iter()
            .fold(ArtifactBuilder::new("application/x"), |of, title| of.file(title, title.as_bytes().to_vec()));
        let (registry, sandbox) = (registry(&artifact.build()), Sandbox::new());
        let output = sandbox.run(["ls", "-R", &registry.reference("m", "1")]);
        (output.status.code(), said(&output).replace(&registry.base_url(), ""))
    };
    let long = "n".repeat(300);
    for (titles, why) in [
        (&["ok", "a\0b"][..], "contains a NUL byte"),
        (&[&long], "has 300 bytes, the limit is 255"),
        (&["a", "a/b"], "leads through `a`, which is not a directory"),
        (&[".."], "`..` names no file"),
        (&["d/.wh.x"], "`d/.wh.x` has the name of a whiteout in it"),
    ] {
        let (code, said) = refused(titles);
        assert!(code == Some(5) && said.contains(why) && said.contains("--as-layout"), "{said}");
        assert!(said.contains(&format!("layer {}", titles.len())), "{said}");
    }
    let (code, said) = refused(&["/etc/passwd", "../../up", "twice", "twice"]);
    assert_eq!(code, Some(0), "{said}");
    for path in ["passwd", "up", "twice"] {
        assert!(said.contains(path), "{said}");
    }
}
