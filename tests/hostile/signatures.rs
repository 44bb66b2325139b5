//! Verifiers, which run before an image is used, and `peelfs verify-image` as one of them.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use peelfs::digest::{Algorithm, Digest};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::{Value, json};
use support::sandbox::{Sandbox, cannot_mount, is_missing, program, said};

use super::tried;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn image() -> Image {
    let layer = LayerBuilder::new().file("etc/motd", "hello");
    ImageBuilder::new().layer(layer).config(json!({ "Cmd": ["true"] })).build()
}

/// Keys made by openssl, and what they sign.
pub(super) struct Keys {
    dir: tempfile::TempDir,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn openssl(&self, args: &str) -> Output {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "openssl {args}: {}", said(&output));
        output
    }

    /// Makes `NAME.key` and `NAME.pub`.
    pub(super) fn make(&self, name: &str, algorithm: &str) -> PathBuf {
        self.openssl(&format!("genpkey -out {name}.key -algorithm {algorithm}"));
        self.openssl(&format!("pkey -in {name}.key -pubout -out {name}.pub"));
        self.public(name)
    }

    fn public(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.pub"))
    }

    /// The path of a file beside the keys.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The signature that `NAME.key` makes of `message`, in base64.
    fn sign(&self, name: &str, how: &str, message: &[u8]) -> String {
        std::fs::write(self.dir.path().join("message"), message).unwrap();
        let signed = if how == "raw" {
            self.openssl(&format!("pkeyutl -sign -rawin -inkey {name}.key -in message"))
        } else {
            self.openssl(&format!("dgst -sha256{how} -sign {name}.key message"))
        };
        BASE64.encode(signed.stdout)
    }

    /// What `cosign sign --key` pushes for an image of this digest.
    fn signature(&self, name: &str, how: &str, payload: &Value) -> Image {
        let payload = payload.to_string();
        let layer = layer(SIMPLE_SIGNING, payload.as_bytes());
        let mut layer = layer;
        layer["annotations"] =
            json!({ "dev.cosignproject.cosign/signature": self.sign(name, how, payload.as_bytes()) });
        artifact(layer, &payload, json!({}))
    }
}

/// The algorithm, how it is made, and how it signs.
const ALGORITHMS: [(&str, &str, &str); 5] = [
    ("ecdsa", "EC -pkeyopt ec_paramgen_curve:P-256", ""),
    ("p384", "EC -pkeyopt ec_paramgen_curve:P-384", ""),
    ("rsa", "RSA -pkeyopt rsa_keygen_bits:2048", ""),
    ("pss", "RSA -pkeyopt rsa_keygen_bits:2048", " -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32"),
    ("ed25519", "ED25519", "raw"),
];

fn layer(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(Algorithm::Sha256, content), "size": content.len() })
}

fn artifact(layer: Value, content: &str, more: Value) -> Image {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(Algorithm::Sha256, b"{}"), "size": 2 },
        "layers": [layer],
    });
    for (key, value) in more.as_object().unwrap() {
        manifest[key] = value.clone();
    }
    Image::from_document(MANIFEST, manifest.to_string()).with_blob("{}").with_blob(content.to_owned())
}

fn payload(digest: &Digest, reference: &str) -> Value {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
}

fn tag(digest: &Digest, suffix: &str) -> String {
    format!("sha256-{}{suffix}", digest.hex())
}

/// A directory of verifiers with this script in it.
fn verifiers(sandbox: &Sandbox, script: &str) -> PathBuf {
    let directory = sandbox.path().join("verifiers");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("check");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn verify(sandbox: &Sandbox, keys: &[&Path], more: &[&str]) -> Output {
    let mut command = sandbox.peelfs(["verify-image"]);
    for key in keys {
        command.arg("--key").arg(key);
    }
    command.args(more).output().unwrap()
}

/// Everything that shows an image runs the verifiers first, and reports the reason of a refusal.
#[test]
fn row_33_no_way_into_an_image_leads_past_a_verifier() {
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("team/app", "1", &image())).unwrap();
    let reference = registry.reference("team/app", "1");
    let log = sandbox.path().join("log");
    let directory = verifiers(&sandbox, &format!("echo \"$@\" >> {}; echo not today; exit 1", log.display()));
    let at = sandbox.mount_point("m");
    let (to, bundle) = (sandbox.path().join("to"), sandbox.path().join("bundle"));
    let (m, to, b) = (at.path.to_str().unwrap(), to.to_str().unwrap(), bundle.to_str().unwrap());
    let mut ways = vec![vec!["ls", "IMAGE"], vec!["cat", "IMAGE", "/etc/motd"], vec!["cp", "IMAGE", "/etc/motd", to]];
    if !cannot_mount() {
        ways.extend([
            vec!["mount", "IMAGE", m],
            vec!["mount", "--share", "IMAGE", m],
            vec!["mount", "--foreground", "IMAGE", m],
            vec!["mount", "--kernel=auto", "--allow-other", "IMAGE", m],
            vec!["bundle", "IMAGE", b],
            vec!["run", "IMAGE"],
        ]);
    }
    tried(33, ways.len());
    for way in ways {
        let words: Vec<_> = way.iter().map(|word| if *word == "IMAGE" { reference.as_str() } else { *word }).collect();
        let output = sandbox.peelfs(&words).env("PEELFS_VERIFIER_DIR", &directory).output().unwrap();
        let said = said(&output);
        let status = if way[0] == "run" { 125 } else { 5 };
        assert_eq!(output.status.code(), Some(status), "{way:?}: {said}");
        assert!(said.contains(&format!("check` refused {reference}")) && said.contains("not today"), "{way:?}: {said}");
        assert!(output.stdout.is_empty(), "{way:?}: {said}");
        assert!(!at.is_mounted(), "{way:?}");
        assert!(!Path::new(to).exists() && !bundle.exists(), "{way:?}");
    }
    // Of what is only described nothing is shown.
    let output = sandbox.peelfs(["inspect", &reference]).env("PEELFS_VERIFIER_DIR", &directory).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let asked = std::fs::read_to_string(log).unwrap();
    let wanted = format!(
        "-name {reference} -digest {} -stdin-media-type application/vnd.oci.descriptor.v1+json",
        image().root().digest
    );
    assert!(asked.lines().all(|line| line == wanted), "{asked}");
}

/// A mistyped name switches no verifier off; the usual directory may be missing.
#[test]
fn verifiers_in_a_directory_that_is_missing_allow_nothing() {
    let sandbox = Sandbox::new();
    let layout = sandbox.path().join("layout");
    image().write_layout(&layout, "1").unwrap();
    let reference = format!("oci:{}:1", layout.display());
    let missing = sandbox.path().join("missing");
    let wanted = format!("error: there is no directory `{}` of verifiers\n", missing.display());
    let by_option = sandbox.peelfs(["ls", &reference, "--verifier-dir"]).arg(&missing).output().unwrap();
    let by_variable = sandbox.peelfs(["ls", &reference]).env("PEELFS_VERIFIER_DIR", &missing).output().unwrap();
    for output in [by_option, by_variable] {
        let told = said(&output);
        assert_eq!(output.status.code(), Some(5), "{told}");
        assert!(told.contains(&wanted) && output.stdout.is_empty(), "{told}");
    }
}

/// A mount that was allowed continues, whatever verifiers answer later.
#[test]
fn what_is_mounted_is_not_asked_about_again() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let layout = sandbox.path().join("layout");
    image().write_layout(&layout, "1").unwrap();
    let directory = verifiers(&sandbox, "exit 0");
    let option = format!("--verifier-dir={}", directory.display());
    let at = sandbox.mount_with(&format!("oci:{}:1", layout.display()), "m", &[&option]);
    verifiers(&sandbox, "exit 1");
    at.kill_server();
    assert_eq!(std::fs::read(at.join("etc/motd")).unwrap(), b"hello");
    at.unmount();
    let output = at.try_mount(&format!("oci:{}:1", layout.display()), &["-o", &option[2..].replacen('-', "_", 1)]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
}

/// Signatures as cosign makes them with each kind of key, in a registry and in a layout.
#[test]
fn signatures_of_every_kind_of_key_are_verified() {
    if is_missing("openssl") {
        return;
    }
    let (sandbox, keys, image) = (Sandbox::new(), Keys::new(), image());
    let digest = &image.root().digest;
    let other = keys.make("other", "ED25519");
    for (name, algorithm, how) in ALGORITHMS {
        let key = keys.make(name, algorithm);
        let signature = keys.signature(name, how, &payload(digest, "registry.example/team/app"));
        let registry =
            Registry::start(Catalog::new().image("app", "1", &image).image("app", &tag(digest, ".sig"), &signature))
                .unwrap();
        let reference = registry.reference("app", "1");
        let output = verify(&sandbox, &[&other, &key], &[&reference]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        assert!(said(&output).contains(&format!("{digest} is signed with the key sha256:")), "{}", said(&output));
        let output = verify(&sandbox, &[&other], &[&reference]);
        assert_eq!(output.status.code(), Some(5), "{name}: {}", said(&output));
        assert!(
            said(&output).contains("none of 1 signatures") && said(&output).contains("another key"),
            "{}",
            said(&output)
        );

        let layout = sandbox.path().join(name);
        image.write_layout(&layout, "1").unwrap();
        signature.write_layout(&layout, &tag(digest, ".sig")).unwrap();
        let output = verify(&sandbox, &[&key], &[&format!("oci:{}:1", layout.display())]);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
}

/// A tag that was verified once is verified again without its registry, as `ls` lists an image that it has listed.
#[test]
fn a_tag_is_verified_again_while_its_registry_is_away() {
    if is_missing("openssl") {
        return;
    }
    let (sandbox, keys, image) = (Sandbox::new(), Keys::new(), image());
    let digest = &image.root().digest;
    let key = keys.make("ecdsa", ALGORITHMS[0].1);
    let signature = keys.signature("ecdsa", "", &payload(digest, "registry.example/team/app"));
    let catalog = Catalog::new().image("app", "1", &image).image("app", &tag(digest, ".sig"), &signature);
    let registry = Registry::start(catalog).unwrap();
    let (reference, other) = (registry.reference("app", "1"), registry.reference("app", "2"));
    let online = verify(&sandbox, &[&key], &[&reference]);
    assert!(online.status.success(), "{}", said(&online));
    drop(registry);
    for more in [&["--offline"][..], &[]] {
        let output = verify(&sandbox, &[&key], &[&[&reference[..]], more].concat());
        assert!(output.status.success(), "{more:?}: {}", said(&output));
        assert!(said(&output).contains(&format!("{digest} is signed")), "{}", said(&output));
    }
    let never_seen = verify(&sandbox, &[&key], &[&other]);
    assert_eq!(never_seen.status.code(), Some(6), "{}", said(&never_seen));
    assert!(!said(&never_seen).contains("--offline"), "{}", said(&never_seen));
    let never_seen = verify(&sandbox, &[&key], &["--offline", &other]);
    assert_eq!(never_seen.status.code(), Some(3), "{}", said(&never_seen));
}

/// Only the content of a signature counts, not its place, as all writers of a repository can put it there.
#[test]
fn row_33_a_signature_of_something_else_counts_for_nothing() {
    if is_missing("openssl") {
        return;
    }
    let (sandbox, keys, image) = (Sandbox::new(), Keys::new(), image());
    let key = keys.make("k", "EC -pkeyopt ec_paramgen_curve:P-256");
    let digest = &image.root().digest;
    let another = Digest::of(Algorithm::Sha256, b"another");
    let right = payload(digest, "registry.example/team/app");
    let mut attested = right.clone();
    attested["critical"]["type"] = "something else".into();
    let changed = {
        let signature = keys.signature("k", "", &right);
        let manifest: Value = serde_json::from_slice(signature.documents().next().unwrap().2).unwrap();
        let payload = right.to_string() + " ";
        let mut layer = layer(SIMPLE_SIGNING, payload.as_bytes());
        layer["annotations"] = manifest["layers"][0]["annotations"].clone();
        artifact(layer, &payload, json!({}))
    };
    let unsigned = artifact(layer(SIMPLE_SIGNING, right.to_string().as_bytes()), &right.to_string(), json!({}));
    let huge = artifact(json!({ "mediaType": SIMPLE_SIGNING, "digest": digest, "size": 1_u64 << 40 }), "", json!({}));
    let odd = Image::from_document(MANIFEST, json!({ "schemaVersion": 2, "layers": [{ "mediaType": 7 }] }).to_string());
    for (signature, wanted) in [
        (keys.signature("k", "", &payload(&another, "registry.example/team/app")), format!("it is about {another}")),
        (keys.signature("k", "", &attested), "`something else`, which signs no image".to_owned()),
        (keys.signature("k", "", &json!({ "critical": {} })), "malformed".to_owned()),
        (changed, "another key".to_owned()),
        (unsigned, "no annotation".to_owned()),
        (huge, "at most 1048576 are read".to_owned()),
        (odd, "no signature of".to_owned()),
    ] {
        let catalog = Catalog::new().image("app", "1", &image).image("app", &tag(digest, ".sig"), &signature);
        let registry = Registry::start(catalog).unwrap();
        let output = verify(&sandbox, &[&key], &[&registry.reference("app", "1")]);
        assert_eq!(output.status.code(), Some(5), "{}", said(&output));
        assert!(said(&output).contains(&wanted), "{wanted}: {}", said(&output));
    }
    tried(33, 9);
    // Its repository is compared on request.
    for repository in ["team/app", "team/copy"] {
        let catalog = Catalog::new().image(repository, "1", &image);
        let registry = Registry::start(catalog).unwrap();
        let signed_for = registry.reference("team/app", "1");
        registry.push(repository, &tag(digest, ".sig"), &keys.signature("k", "", &payload(digest, &signed_for)));
        let reference = registry.reference(repository, "1");
        assert!(verify(&sandbox, &[&key], &[&reference]).status.success());
        let output = verify(&sandbox, &[&key], &["--same-repository", &reference]);
        assert_eq!(output.status.success(), repository == "team/app", "{}", said(&output));
        assert!(output.status.success() || said(&output).contains("it was made for"), "{}", said(&output));
    }
}

/// The form of cosign 3: found as a referrer where the registry lists them, and else by the tag of their list.
#[test]
fn bundles_are_found_as_referrers_and_by_their_tag() {
    if is_missing("openssl") {
        return;
    }
    let (sandbox, keys, image) = (Sandbox::new(), Keys::new(), image());
    let key = keys.make("k", "EC -pkeyopt ec_paramgen_curve:P-256");
    let digest = &image.root().digest;
    let made = |predicate: &str| {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate,
            "subject": [{ "digest": { "sha256": digest.hex() } }],
        });
        let (kind, statement) = ("application/vnd.in-toto+json", statement.to_string());
        let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle = json!({
            "mediaType": BUNDLE, "verificationMaterial": { "publicKey": { "hint": "x" } },
            "dsseEnvelope": {
                "payload": BASE64.encode(&statement), "payloadType": kind,
                "signatures": [{ "sig": keys.sign("k", "", signed.as_bytes()) }],
            },
        });
        let bundle = bundle.to_string();
        let root = image.root();
        let subject = json!({ "mediaType": MANIFEST, "digest": digest, "size": root.size });
        artifact(layer(BUNDLE, bundle.as_bytes()), &bundle, json!({ "artifactType": BUNDLE, "subject": subject }))
    };
    let (signature, attestation) =
        (made("https://sigstore.dev/cosign/sign/v1"), made("https://slsa.dev/provenance/v1"));
    for page in [Some(usize::MAX), Some(1), None] {
        for (bundles, counts) in [(&[&attestation, &signature][..], true), (&[&attestation], false)] {
            let entries: Vec<_> = bundles
                .iter()
                .map(|bundle| {
                    let root = bundle.root();
                    json!({ "mediaType": MANIFEST, "digest": root.digest, "size": root.size, "artifactType": BUNDLE })
                })
                .collect();
            let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
            let list = bundles.iter().fold(Image::from_document(INDEX, list), |list, bundle| list.with_image(bundle));
            let mut catalog = Catalog::new().image("app", "1", &image);
            if let Some(page) = page {
                let listing = catalog.listing_referrers_by(page);
                catalog = bundles.iter().fold(listing, |all, bundle| all.image("app", "other", bundle));
            } else {
                catalog = catalog.image("app", &tag(digest, ""), &list);
            }
            let registry = Registry::start(catalog).unwrap();
            let output = verify(&sandbox, &[&key], &[&registry.reference("app", "1")]);
            assert_eq!(output.status.code(), Some(if counts { 0 } else { 5 }), "{page:?}: {}", said(&output));
            assert!(counts || said(&output).contains("provenance/v1`, which signs no image"), "{}", said(&output));
        }
    }
}

/// A link to peelfs in a directory of verifiers uses the configuration.
#[test]
fn a_link_to_peelfs_is_a_verifier() {
    if is_missing("openssl") {
        return;
    }
    let (sandbox, keys, image) = (Sandbox::new(), Keys::new(), image());
    let key = keys.make("k", "EC -pkeyopt ec_paramgen_curve:P-256");
    let digest = &image.root().digest;
    let registry =
        Registry::start(Catalog::new().image("team/app", "1", &image).image("open/app", "1", &image)).unwrap();
    let directory = sandbox.path().join("verifiers");
    std::fs::create_dir(&directory).unwrap();
    // The tests' own directory may be writable by a group.
    let copy = sandbox.path().join("peelfs");
    std::fs::copy(program(), &copy).unwrap();
    symlink(&copy, directory.join("cosign")).unwrap();
    let config = sandbox.path().join("config.json");
    let rules = json!({ "images": {
        registry.addr().to_string(): { "keys": [key] }, format!("{}/open", registry.addr()): { "accept": true },
    } });
    std::fs::write(&config, rules.to_string()).unwrap();
    let cat = |reference: &str, more: &[&str]| {
        let mut command = sandbox.peelfs(["cat", reference, "/etc/motd"]);
        command.args(more).env("PEELFS_VERIFIER_DIR", &directory).env("PEELFS_VERIFY_IMAGE_CONFIG", &config);
        command.output().unwrap()
    };
    let reference = registry.reference("team/app", "1");
    let output = cat(&reference, &[]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    let wanted = format!("cosign` refused {reference}: no signature of {digest} was found beside {reference}");
    assert!(said(&output).contains(&wanted), "{}", said(&output));
    registry.push("team/app", &tag(digest, ".sig"), &keys.signature("k", "", &payload(digest, "")));
    for more in [&[][..], &["--offline"]] {
        let output = cat(&reference, more);
        assert_eq!(output.stdout, b"hello", "{more:?}: {}", said(&output));
    }
    assert_eq!(cat(&registry.reference("open/app", "1"), &[]).stdout, b"hello");
    // What has no rule is refused.
    let layout = sandbox.path().join("layout");
    image.write_layout(&layout, "1").unwrap();
    let output = cat(&format!("oci:{}:1", layout.display()), &[]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(said(&output).contains("config.json` has no rule for oci:"), "{}", said(&output));
}
