//! Artifacts with indexes that have to be allowed: signed by `peelfs index push`, and everything that only looks so.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use peelfs::descriptor::MediaType;
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::Value;
use support::sandbox::{Sandbox, cannot_mount, is_missing, program, said};

use super::signatures::Keys;
use super::tried;

const NAME: &str = "team/app";
const EC: &str = "EC -pkeyopt ec_paramgen_curve:P-256";

fn image() -> Image {
    let layer = |name: &str| LayerBuilder::new().file(name, name.repeat(40_000)).packing(Packing::GZIP);
    ["first", "second"].map(layer).into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build()
}

/// A registry with an image, of which nothing is known there yet.
fn served() -> (Image, Registry, String) {
    let image = image();
    let registry =
        Registry::start(Catalog::new().image(NAME, "1", &image).listing_referrers().taking_pushes()).unwrap();
    let reference = registry.reference(NAME, "1");
    (image, registry, reference)
}

/// A machine that has indexes only by what is signed with the key of this name.
struct Reader {
    sandbox: Sandbox,
    verifiers: PathBuf,
}

impl Reader {
    fn trusting(key: &Path) -> Self {
        let (program, key) = (program(), key.display());
        Self::asking(&format!(
            r#"{} verify-image --key {key} --name "$2" --digest "$4" --stdin-media-type "$6""#,
            program.display()
        ))
    }

    fn asking(script: &str) -> Self {
        let sandbox = Sandbox::new();
        let verifiers = sandbox.path().join("index-verifiers");
        std::fs::create_dir_all(&verifiers).unwrap();
        let reader = Self { sandbox, verifiers };
        reader.change(script);
        reader
    }

    fn change(&self, script: &str) {
        let path = self.verifiers.join("check");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn option(&self) -> String {
        format!("--index-verifier-dir={}", self.verifiers.display())
    }

    fn run(&self, args: &[&str]) -> Output {
        self.sandbox.run([args, &["--index-from", "referrers", &self.option()]].concat())
    }

    /// What `ls` prints, on both streams.
    fn list(&self, reference: &str) -> (String, String) {
        let output = self.run(&["ls", "-lR", reference]);
        assert!(output.status.success(), "{}", said(&output));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

/// Whether bytes of a layer were sent.
fn layers_were_read(registry: &Registry, image: &Image) -> bool {
    let is_of_layer = |path: &str| image.layers().iter().any(|layer| path.ends_with(layer.digest.hex()));
    registry.requests().iter().any(|asked| asked.request.method == "GET" && is_of_layer(&asked.request.path))
}

fn push(sandbox: &Sandbox, reference: &str, more: &[&str]) -> (String, String) {
    let output = sandbox.run([&["index", "push", reference], more].concat());
    assert!(output.status.success(), "{}", said(&output));
    let told = String::from_utf8(output.stdout).unwrap();
    (told.lines().next().unwrap().rsplit(": ").next().unwrap().to_owned(), told)
}

/// The name of the only artifact.
fn named(registry: &Registry, artifact: &str) -> String {
    format!("{}/{NAME}@{artifact}", registry.addr())
}

fn private(keys: &Keys, name: &str) -> String {
    keys.path(&format!("{name}.key")).display().to_string()
}

#[test]
fn a_signed_index_saves_the_first_pass() {
    if is_missing("openssl") {
        return;
    }
    let keys = Keys::new();
    for (name, algorithm) in [("ecdsa", EC), ("ed25519", "ED25519"), ("rsa", "RSA -pkeyopt rsa_keygen_bits:2048")] {
        let public = keys.make(name, algorithm);
        let ((image, registry, reference), writer) = (served(), Sandbox::new());
        let own = String::from_utf8(writer.run(["ls", "-lR", &reference]).stdout).unwrap();
        let (artifact, told) = push(&writer, &reference, &["--sign-key", &private(&keys, name)]);
        let verified = writer.run([
            "verify-image",
            "--key",
            public.to_str().unwrap(),
            "--same-repository",
            &named(&registry, &artifact),
        ]);
        assert!(verified.status.success(), "{name}: {}", said(&verified));
        let key = told.lines().last().unwrap().strip_prefix("signed with the key ").unwrap();
        assert!(said(&verified).contains(&format!("{artifact} is signed with the key {key}")), "{}", said(&verified));

        registry.clear();
        let reader = Reader::trusting(&public);
        let (listed, warned) = reader.list(&reference);
        assert!(listed == own && warned.is_empty(), "{name}: {warned}");
        assert!(!layers_were_read(&registry, &image), "{name}");
        // It is allowed again in another process, also without the registry.
        let offline = reader.run(&["ls", "-lR", &reference, "--offline"]);
        assert!(offline.status.success() && offline.stdout == own.as_bytes(), "{name}: {}", said(&offline));
        // A second push changes nothing.
        let tag = artifact.replace(':', "-") + ".sig";
        let before = registry.document(NAME, &tag).unwrap();
        let (_, told) = push(&writer, &reference, &["--sign-key", &private(&keys, name)]);
        assert!(told.contains(" already: ") && told.contains("signed with the key"), "{told}");
        assert_eq!(registry.document(NAME, &tag).unwrap(), before);
    }
}

/// A refusal is one line that says what was refused and by what, and the layers are read.
#[test]
fn row_33_an_index_that_is_not_allowed_is_not_used() {
    if is_missing("openssl") {
        return;
    }
    let keys = Keys::new();
    let (public, other) = (keys.make("k", EC), keys.make("other", EC));
    let signed_by = |name: &str| {
        let (served, writer) = (served(), Sandbox::new());
        let (artifact, _) = push(&writer, &served.2, &["--sign-key", &private(&keys, name)]);
        (served, artifact)
    };
    let unsigned = || {
        let (served, writer) = (served(), Sandbox::new());
        let (artifact, _) = push(&writer, &served.2, &[]);
        (served, artifact)
    };
    // The signature of another artifact, under the tag of this one.
    let moved = {
        let ((_, registry, reference), _) = &unsigned();
        let (artifact, writer) = (push(&Sandbox::new(), reference, &[]).0, Sandbox::new());
        let (theirs, _) =
            push(&writer, reference, &["--as", "soci", "--min-layer-size", "1", "--sign-key", &private(&keys, "k")]);
        assert_ne!(theirs, artifact);
        let tag = |digest: &str| digest.replace(':', "-") + ".sig";
        let signature = registry.document(NAME, &tag(&theirs)).unwrap();
        let ((image, fresh, at), artifact) = unsigned();
        let manifest: Value = serde_json::from_slice(&signature).unwrap();
        for blob in [&manifest["config"], &manifest["layers"][0]] {
            let digest = blob["digest"].as_str().unwrap().parse().unwrap();
            fresh.put_blob(NAME, registry.blob(NAME, &digest).unwrap());
        }
        fresh.put_document(NAME, &tag(&artifact), MediaType::OciManifest, signature);
        (((image, fresh, at), artifact), "it is about sha256:")
    };
    let cases = [(unsigned(), "no signature of"), (signed_by("other"), "it was made with another key"), moved];
    tried(33, cases.len());
    for (((image, registry, reference), artifact), wanted) in cases {
        let reader = Reader::trusting(&public);
        let own = String::from_utf8(Sandbox::new().run(["ls", "-lR", &reference]).stdout).unwrap();
        registry.clear();
        let (listed, warned) = reader.list(&reference);
        assert_eq!(listed, own, "{wanted}");
        assert!(layers_were_read(&registry, &image), "{wanted}");
        assert_eq!(warned.lines().count(), 1, "{warned}");
        let name = named(&registry, &artifact);
        let refused = format!("{}` refused {name}: ", reader.verifiers.join("check").display());
        assert!(warned.contains(&refused) && warned.contains(wanted), "{wanted}: {warned}");
        // Where it is asked for nothing, it is used; and by its signer's key.
        if wanted.contains("another key") {
            registry.clear();
            assert_eq!(Reader::trusting(&other).list(&reference).0, own);
            assert!(!layers_were_read(&registry, &image));
        }
    }
}

/// What came without a question is asked about by those who ask.
#[test]
fn row_33_an_index_in_the_cache_is_asked_about_too() {
    let ((image, registry, reference), writer) = (served(), Sandbox::new());
    let (artifact, _) = push(&writer, &reference, &[]);
    let reader = Reader::asking("echo not ours; exit 1");
    let unasked = reader.sandbox.run(["ls", "-lR", &reference, "--index-from", "referrers"]);
    registry.clear();
    let offline = reader.run(&["ls", "-lR", &reference, "--offline"]);
    assert!(!offline.status.success(), "{}", said(&offline));
    assert!(
        said(&offline).contains(&format!("refused {}: not ours", named(&registry, &artifact))),
        "{}",
        said(&offline)
    );
    let described = |more: &[&str]| reader.run(&[&["inspect", &reference], more].concat());
    let told: Value = serde_json::from_slice(&described(&["--explain"]).stdout).unwrap();
    assert_eq!(told["layers"][0]["indexed"], false);
    let origins = told["layers"][0]["origins"].as_array().unwrap();
    let pushed = origins.iter().find(|one| one["origin"] == "a pushed index").unwrap();
    let why = pushed["why_not"].as_str().unwrap();
    assert!(why.contains("check` refused") && why.contains("not ours"), "{why}");
    let (listed, warned) = reader.list(&reference);
    assert!(listed.as_bytes() == unasked.stdout && layers_were_read(&registry, &image), "{warned}");
    assert_eq!(warned.matches("not ours").count(), 1, "{warned}");
    // The machine has proven indexes now, about which there is nothing to ask.
    let (_, warned) = reader.list(&reference);
    assert!(warned.is_empty(), "{warned}");
    tried(33, 4);
}

/// What a verifier gets, and what becomes of one that gives no answer.
#[test]
fn verifiers_of_indexes_are_run_as_those_of_images() {
    let ((image, registry, reference), writer) = (served(), Sandbox::new());
    let (artifact, _) = push(&writer, &reference, &[]);
    let reader = Reader::asking("");
    let log = reader.sandbox.path().join("log");
    reader.change(&format!("echo \"$@\" >> {0}; cat >> {0}", log.display()));
    registry.clear();
    let (_, warned) = reader.list(&reference);
    assert!(warned.is_empty() && !layers_were_read(&registry, &image), "{warned}");
    let name = named(&registry, &artifact);
    let asked = std::fs::read_to_string(&log).unwrap();
    let (line, descriptor) = asked.split_once('\n').unwrap();
    let wanted = format!("-name {name} -digest {artifact} -stdin-media-type application/vnd.oci.descriptor.v1+json");
    assert_eq!(line, wanted);
    let descriptor: Value = serde_json::from_str(descriptor).unwrap();
    assert_eq!(descriptor["mediaType"], MediaType::OciManifest.as_str());
    assert_eq!(descriptor["size"], registry.document(NAME, &artifact).unwrap().len());
    // No verifier is asked where no artifact is looked for; one that is missing allows nothing.
    let without = Sandbox::new().peelfs(["ls", &reference]).env("PEELFS_INDEX_VERIFIER_DIR", "/nonexistent").output();
    assert!(said(&without.unwrap()).lines().all(|line| !line.contains("verifier")));
    let empty = Sandbox::new();
    let variables = [("PEELFS_INDEX_FROM", "referrers"), ("PEELFS_INDEX_VERIFIER_DIR", "/nonexistent")];
    let output = empty.peelfs(["ls", &reference]).envs(variables).output().unwrap();
    assert!(
        output.status.success() && said(&output).contains("there is no directory `/nonexistent`"),
        "{}",
        said(&output)
    );
}

/// Each way to mount an image asks, and says in its status what was refused.
#[test]
fn row_33_no_mount_uses_an_index_that_is_not_allowed() {
    if cannot_mount() {
        return;
    }
    let ((image, registry, reference), writer) = (served(), Sandbox::new());
    let (artifact, _) = push(&writer, &reference, &[]);
    let ways: [&[&str]; 3] = [&[], &["--share"], &["--verify", "behind"]];
    tried(33, ways.len());
    for way in ways {
        for allowed in [false, true] {
            let reader = Reader::asking(if allowed { "exit 0" } else { "echo not ours; exit 1" });
            let mut more =
                vec!["-o".to_owned(), reader.option()[2..].replacen("index-verifier-dir", "index_verifier_dir", 1)];
            more.extend(["--index-from", "referrers", "--prefetch", "none"].map(ToOwned::to_owned));
            more.extend(way.iter().map(|word| (*word).to_owned()));
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            registry.clear();
            let at = reader.sandbox.mount_with(&reference, "m", &more);
            let names = std::fs::read_dir(&at.path).unwrap().count();
            assert_eq!(names, 2, "{way:?}");
            assert_eq!(layers_were_read(&registry, &image), !allowed, "{way:?}");
            assert_eq!(std::fs::read(at.join("first")).unwrap(), "first".repeat(40_000).as_bytes());
            let told = reader.sandbox.run(["status", "--explain", at.path.to_str().unwrap()]);
            let told = String::from_utf8(told.stdout).unwrap();
            let refused = format!("refused {}: not ours", named(&registry, &artifact));
            assert_eq!(told.contains(&refused), !allowed, "{way:?}: {told}");
            assert_eq!(
                told.contains("used: a pushed index\n") && !told.contains("not used: a pushed index"),
                allowed,
                "{told}"
            );
            // The process that takes over asks again.
            if way.is_empty() {
                at.kill_server();
                assert_eq!(std::fs::read(at.join("second")).unwrap(), "second".repeat(40_000).as_bytes());
            }
            at.unmount();
        }
    }
}

/// A mount that asks does not get what another mount of the same process has open.
#[test]
fn row_33_mounts_of_one_process_share_no_trust() {
    if cannot_mount() {
        return;
    }
    let ((_, _registry, reference), writer) = (served(), Sandbox::new());
    push(&writer, &reference, &[]);
    let reader = Reader::asking("echo not ours; exit 1");
    let share = ["--share", "--index-from", "referrers"];
    let trusting = reader.sandbox.mount_with(&reference, "trusting", &share);
    std::fs::read(trusting.join("first")).unwrap();
    let asking = reader.sandbox.mount_with(&reference, "asking", &[&share[..], &[&reader.option()]].concat());
    assert_eq!(std::fs::read(asking.join("first")).unwrap(), "first".repeat(40_000).as_bytes());
    let origin = |at: &Path| {
        let told = reader.sandbox.run(["status", "--json", at.to_str().unwrap()]);
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        told["layers"][1]["origin"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!((origin(&trusting.path).as_str(), origin(&asking.path).as_str()), ("a pushed index", "own index"));
    asking.unmount();
    trusting.unmount();
}

#[test]
fn row_33_a_soci_index_beside_the_image_is_asked_about() {
    if is_missing("openssl") {
        return;
    }
    let keys = Keys::new();
    let (public, other) = (keys.make("k", EC), keys.make("other", "ED25519"));
    let ((image, registry, reference), writer) = (served(), Sandbox::new());
    let own = String::from_utf8(writer.run(["ls", "-lR", &reference]).stdout).unwrap();
    let how = ["--as", "soci", "--min-layer-size", "1", "--sign-key", &private(&keys, "k")];
    let (artifact, told) = push(&writer, &reference, &how);
    assert!(told.contains("signed with the key sha256:"), "{told}");
    registry.clear();
    let (listed, warned) = Reader::trusting(&public).list(&reference);
    assert!(listed == own && warned.is_empty() && !layers_were_read(&registry, &image), "{warned}");
    let reader = Reader::trusting(&other);
    let (listed, warned) = reader.list(&reference);
    assert!(listed == own && layers_were_read(&registry, &image), "{warned}");
    assert_eq!(warned.matches(&format!("refused {}", named(&registry, &artifact))).count(), 1, "{warned}");
    tried(33, 1);
}

/// Others' signatures stay where they are.
#[test]
fn an_artifact_can_have_signatures_of_several_keys() {
    if is_missing("openssl") {
        return;
    }
    let keys = Keys::new();
    let publics = ["a", "b"].map(|name| keys.make(name, EC));
    let ((_, registry, reference), writer) = (served(), Sandbox::new());
    let artifacts = ["a", "b", "a"].map(|name| push(&writer, &reference, &["--sign-key", &private(&keys, name)]).0);
    assert!(artifacts.iter().all(|artifact| *artifact == artifacts[0]));
    for public in &publics {
        let verified =
            writer.run(["verify-image", "--key", public.to_str().unwrap(), &named(&registry, &artifacts[0])]);
        assert!(verified.status.success(), "{}", said(&verified));
    }
    let tag = artifacts[0].replace(':', "-") + ".sig";
    let manifest: Value = serde_json::from_slice(&registry.document(NAME, &tag).unwrap()).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    // What is under the tag and no list of signatures is not replaced.
    registry.put_document(NAME, &tag, MediaType::OciIndex, r#"{"manifests":[]}"#.into());
    let refused = writer.run(["index", "push", &reference, "--sign-key", &private(&keys, "a")]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("it is not a manifest with signatures"), "{}", said(&refused));
    assert_eq!(registry.document(NAME, &tag).unwrap(), r#"{"manifests":[]}"#);
}

/// Each is one error, before the registry is asked for anything.
#[test]
fn a_key_that_cannot_sign_is_one_error_before_anything_is_sent() {
    if is_missing("openssl") {
        return;
    }
    let keys = Keys::new();
    let public = keys.make("k", EC);
    keys.make("p384", "EC -pkeyopt ec_paramgen_curve:P-384");
    keys.make("short", "RSA -pkeyopt rsa_keygen_bits:1024");
    keys.make("x", "X25519");
    keys.openssl("ec -in k.key -out sec1.key");
    keys.make("rsa", "RSA -pkeyopt rsa_keygen_bits:2048");
    keys.openssl("rsa -in rsa.key -traditional -out pkcs1.key");
    keys.openssl("pkcs8 -topk8 -in k.key -out encrypted.key -passout pass:secret");
    let write = |name: &str, text: &str| {
        let path = keys.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    write("cosign.key", &block("ENCRYPTED SIGSTORE PRIVATE KEY"));
    write("ssh.key", &block("OPENSSH PRIVATE KEY"));
    write("wrong.key", &block("PRIVATE KEY"));
    write("empty.key", "");
    write("open.key", &std::fs::read_to_string(keys.path("k.key")).unwrap());
    std::fs::set_permissions(keys.path("open.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    write("huge.key", &"x".repeat(2 << 20));
    std::fs::create_dir(keys.path("directory")).unwrap();
    std::fs::set_permissions(keys.path("directory"), std::fs::Permissions::from_mode(0o700)).unwrap();
    // The mode of what is no private key is right.
    std::fs::set_permissions(&public, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ((_, registry, reference), sandbox) = (served(), Sandbox::new());
    let mut told = String::new();
    for (name, code) in [
        ("missing.key", 3),
        ("directory", 1),
        ("open.key", 1),
        ("huge.key", 1),
        ("empty.key", 1),
        ("wrong.key", 1),
        ("k.pub", 1),
        ("cosign.key", 1),
        ("encrypted.key", 1),
        ("ssh.key", 1),
        ("p384.key", 1),
        ("short.key", 1),
        ("x.key", 1),
    ] {
        let path = keys.path(name).display().to_string();
        let output = sandbox.run(["index", "push", &reference, "--sign-key", &path]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", said(&output));
        let text = String::from_utf8(output.stderr).unwrap().replace(&*keys.path("").display().to_string(), "");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        write!(told, "{text}").unwrap();
    }
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
    insta::assert_snapshot!(told, @r"
    error: cannot read the private key `missing.key`: No such file or directory (os error 2)
    error: cannot read the private key `directory`: Is a directory (os error 21)
    error: others may read the private key `open.key` (mode 0640)
    hint: `chmod 600 open.key`; ssh refuses such keys, too
    error: cannot read the private key `huge.key`: it has more than 1048576 bytes
    error: cannot sign with `empty.key`: it holds no private key (`-----BEGIN PRIVATE KEY-----`)
    hint: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; `openssl pkey -in KEY.pem -pubout` shows its public half
    error: cannot sign with `wrong.key`: its private key is malformed: unknown/unsupported ASN.1 DER tag: 0x00 at DER byte 1
    hint: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; `openssl pkey -in KEY.pem -pubout` shows its public half
    error: cannot sign with `k.pub`: it holds a public key; signatures are made with the private one
    hint: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; `openssl pkey -in KEY.pem -pubout` shows its public half
    error: cannot sign with `cosign.key`: its private key is encrypted by cosign
    hint: push without `--sign-key`, and sign the digest that is printed with `cosign sign --key cosign.key REPOSITORY@DIGEST`; cosign gives such a key to no other program
    error: cannot sign with `encrypted.key`: its private key is encrypted
    hint: decrypt it with `openssl pkey -in encrypted.key -out PLAIN.pem`
    error: cannot sign with `ssh.key`: its private key is in the form of OpenSSH
    hint: `ssh-keygen -p -N '' -m PKCS8 -f COPY` changes the form of a copy of ssh.key
    error: cannot sign with `p384.key`: its private key is of an algorithm or curve that is not supported (1.3.132.0.34); ECDSA with P-256, Ed25519 and RSA are
    hint: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; `openssl pkey -in KEY.pem -pubout` shows its public half
    error: cannot sign with `short.key`: it holds an RSA key of fewer than 2048 bits
    hint: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; `openssl pkey -in KEY.pem -pubout` shows its public half
    error: cannot sign with `x.key`: its private key is of an algorithm or curve that is not supported (1.3.101.110); ECDSA with P-256, Ed25519 and RSA are
    hint: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes a key; `openssl pkey -in KEY.pem -pubout` shows its public half
    ");
    for name in ["sec1.key", "pkcs1.key"] {
        std::fs::set_permissions(keys.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        push(&sandbox, &reference, &["--sign-key", keys.path(name).to_str().unwrap()]);
    }
}
