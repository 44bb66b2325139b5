//! Indexes that one machine pushes and another one uses: what is asked of the registry, and what is shown.

use std::path::Path;
use std::process::Command;

use peelfs_loopback::auth::{Access, Realm, TokenRules, TokenService};
use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::image::{Family, Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Recorded, Registry, Settings};
use serde_json::Value;

use super::{DockerRegistry, assert_same, everything, packed, run, tree_of};
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};
use support::walk::Compare;

const PACKINGS: [Packing; 3] =
    [Packing::GZIP, Packing::Stored, Packing::Zstd { level: 3, frame: Some(300_000), skippable: false }];

fn done(sandbox: &Sandbox, args: &[&str]) -> String {
    let output = sandbox.run(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn json(sandbox: &Sandbox, args: &[&str]) -> Value {
    serde_json::from_str(&done(sandbox, args)).unwrap()
}

/// A layer of large files: their bytes are much more than its index.
fn large(seed: u64) -> LayerBuilder {
    let mut random = Random::new(seed);
    let mut text = |len: usize| (0..len).map(|_| b"0123456789abcdef"[random.below(16)]).collect::<Vec<u8>>();
    (0..8).fold(LayerBuilder::new(), |layer, n| layer.file(&format!("{seed}/{n}"), text(512 << 10)))
}

fn image() -> Image {
    let layers = (0..3).zip(PACKINGS).map(|(seed, packing)| large(seed).packing(packing));
    layers.fold(ImageBuilder::new(), ImageBuilder::layer).build()
}

fn taking_pushes(image: &Image) -> Registry {
    let catalog = Catalog::new().image("team/app", "1", image).listing_referrers().taking_pushes();
    Registry::start(catalog).unwrap()
}

/// The answers with bytes of an image's layers.
fn of_layers(registry: &Registry, image: &Image) -> Vec<Recorded> {
    let layers: Vec<_> = image.layers().iter().map(|layer| layer.digest.hex().to_owned()).collect();
    let asked = registry.requests().into_iter().filter(|asked| asked.request.method == "GET");
    asked.filter(|asked| layers.iter().any(|layer| asked.request.path.ends_with(&**layer))).collect()
}

#[test]
fn a_pushed_index_saves_another_machine_the_first_pass() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let image = packed(&layers, &[Packing::GZIP, Packing::Stored], Family::Oci);
    let registry = taking_pushes(&image);
    let reference = registry.reference("team/app", "1");
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let told = done(&here, &["index", "push", &reference]);
    assert!(told.starts_with("pushed the indexes of "), "{told}");
    let artifact = told.lines().next().unwrap().rsplit_once(": ").unwrap().1;

    let own = here.mount_with(&reference, "a", &[]);
    assert_same("the model", &tree_of(&layers), &own.path, Compare::Exactly);
    own.unmount();
    registry.clear();
    let mounted = there.mount_with(&reference, "a", &["--index-from", "referrers", "--prefetch", "none"]);
    assert!(of_layers(&registry, &image).is_empty(), "the names are known without a byte of a layer");
    assert_same("the model", &tree_of(&layers), &mounted.path, Compare::Exactly);
    let status = json(&there, &["status", "--json", mounted.path.to_str().unwrap()]);
    for layer in status["layers"].as_array().unwrap() {
        assert_eq!((&layer["origin"], &layer["received"]), (&"a pushed index".into(), &0.into()), "no first pass");
        assert_eq!(layer["vouched_by"], format!("{}/team/app@{artifact}", registry.addr()));
    }
    let told = done(&there, &["status", "--explain", mounted.path.to_str().unwrap()]);
    assert!(told.contains("  used: a pushed index\n"), "{told}");
    assert!(told.contains("not used: own index: there is no index in the cache\n"), "{told}");
    mounted.unmount();
}

#[test]
fn a_pushed_index_costs_few_requests_and_bytes() {
    let image = image();
    let registry = taking_pushes(&image);
    let reference = registry.reference("team/app", "1");
    let (here, there) = (Sandbox::new(), Sandbox::new());
    done(&here, &["ls", &reference]);
    done(&here, &["index", "push", &reference]);
    let wanted = done(&here, &["cat", &reference, "/1/3"]);
    done(&here, &["cache", "drop", "--content", &reference]);

    let cost = |sandbox: &Sandbox, more: &[&str]| {
        registry.clear();
        assert!(done(sandbox, &[&["cat", &reference, "/1/3"], more].concat()) == wanted);
        let log = registry.requests();
        let bytes = log.iter().map(|asked| asked.body_bytes).sum::<u64>();
        let list: Vec<_> = log.iter().map(|asked| format!("{} {}", asked.request.method, asked.request.path)).collect();
        (log.len(), bytes, list.join("\n"))
    };
    let known = cost(&here, &[]);
    let pushed = cost(&there, &["--index-from", "referrers"]);
    let size: u64 = image.layers().iter().map(|layer| layer.blob.len() as u64).sum();
    // The config, the list at its endpoint and its tag, the artifact, and an index for each layer, beside what a known index
    // costs.
    assert!(pushed.0 <= known.0 + 7, "{known:?} {pushed:?}");
    let index = pushed.1 - known.1;
    assert!(index * 40 <= size, "{index} bytes of indexes for layers of {size}\n{}", pushed.2);
    // What has been fetched is used again, where that is asked for.
    registry.clear();
    done(&there, &["ls", "-lR", &reference, "--index-from", "referrers"]);
    assert!(registry.requests().iter().all(|asked| !asked.is_blob()), "{:?}", registry.requests());
    let explained = json(&there, &["inspect", "--explain", "--index-from", "referrers", &reference]);
    let origins = &explained["layers"][0]["origins"];
    assert_eq!(origins.as_array().unwrap().len(), 8, "{origins}");
    let used = |origins: &Value| {
        let used = origins.as_array().unwrap().iter().find(|one| one["why_not"].is_null());
        used.map(|used| used["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(used(origins).as_deref(), Some("a pushed index"));
    // Without it, nothing vouches.
    let explained = json(&there, &["inspect", "--explain", &reference]);
    assert_eq!((used(&explained["layers"][0]["origins"]), &explained["layers"][0]["indexed"]), (None, &false.into()));
    done(&there, &["ls", &reference]);
    assert!(of_layers(&registry, &image).iter().any(|asked| asked.status == 200), "a first pass");
}

/// Also where stderr is a file: until a mount is ready, its processes say what they have to say as the command does.
#[test]
fn a_registry_that_is_away_is_told_once() {
    if cannot_mount() {
        return;
    }
    let registry = taking_pushes(&image());
    let reference = registry.reference("team/app", "1");
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let from = format!("{away}/team/indexes");
    for choice in ["auto", "own", "foreign"] {
        let sandbox = Sandbox::new();
        let (at, file) = (sandbox.mount_point("a"), sandbox.path().join("stderr"));
        let mut mount = sandbox.peelfs(["mount", "--wait", "--index", choice, "--index-from", &from, &reference]);
        let mounted = mount.arg(&at.path).stderr(std::fs::File::create(&file).unwrap()).status().unwrap();
        let told = std::fs::read_to_string(&file).unwrap();
        assert!(mounted.success(), "{told}");
        let wanted = format!("warning: {from} cannot be asked for indexes of this image: ");
        assert!(told.starts_with(&wanted) && told.lines().count() == 1, "{choice}: {told}");
        let status = done(&sandbox, &["status", at.path.to_str().unwrap()]);
        assert!(status.contains(&format!("  indexes  {from} cannot be asked for indexes")), "{status}");
        assert!(!status.contains("not used"), "{status}");
        at.unmount();
        assert_eq!(sandbox.logs(), "", "{choice}");
        drop(std::fs::remove_dir_all(sandbox.cache()));
        let listed = sandbox.run(["ls", "--index", choice, "--index-from", &from, &reference]);
        let told = String::from_utf8(listed.stderr).unwrap();
        assert!(told.starts_with(&wanted) && told.lines().count() == 1, "{choice}: {told}");
    }
}

#[test]
fn a_repository_without_indexes_is_told_once() {
    if cannot_mount() {
        return;
    }
    let registry = taking_pushes(&image());
    let reference = registry.reference("team/app", "1");
    let elsewhere = format!("{}/team/indexes", registry.addr());
    for (from, place) in [("referrers", format!("{}/team/app", registry.addr())), (&elsewhere, elsewhere.clone())] {
        let sandbox = Sandbox::new();
        let note = format!("note: {place} has no index of this image; layers that are not cached are read whole\n");
        let list = || {
            let listed = sandbox.peelfs(["ls", &reference]).env("PEELFS_INDEX_FROM", from).output().unwrap();
            assert!(listed.status.success(), "{}", said(&listed));
            String::from_utf8(listed.stderr).unwrap()
        };
        assert_eq!(list(), note);
        // Nothing is looked for where this machine has indexes.
        assert_eq!(list(), "");
        sandbox.store().prune(peelfs::store::Keep::Nothing).unwrap();
        let at = sandbox.mount_with(&reference, "a", &["--index-from", from]);
        let status = done(&sandbox, &["status", at.path.to_str().unwrap()]);
        assert!(status.contains(&format!("  indexes  {place} has no index of this image\n")), "{status}");
    }
}

/// Of a layer that is one deflate block, as `igzip -0` writes it.
#[test]
fn a_pushed_index_has_starts_inside_a_block() {
    let image = ImageBuilder::new().layer(large(9).packing(Packing::OneBlock)).build();
    let registry = taking_pushes(&image);
    let reference = registry.reference("team/app", "1");
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let wanted = done(&here, &["cat", &reference, "/9/6"]);
    done(&here, &["index", "push", &reference]);
    registry.clear();
    let cat = ["cat", &reference, "/9/6", "--index-from", "referrers"];
    assert!(done(&there, &cat) == wanted);
    let asked = of_layers(&registry, &image);
    let bytes: u64 = asked.iter().inspect(|asked| assert_eq!(asked.status, 206)).map(|asked| asked.body_bytes).sum();
    let whole = image.layers()[0].blob.len() as u64;
    // The file is an eighth of the layer, and begins and ends inside a span.
    assert!(bytes * 4 < whole, "{bytes} of {whole}");
    let explained = json(&there, &["inspect", "--explain", "--index-from", "referrers", &reference]);
    let used = explained["layers"][0]["origins"].as_array().unwrap().iter().find(|one| one["why_not"].is_null());
    assert_eq!(used.unwrap()["origin"], "a pushed index");
}

#[test]
fn a_profile_goes_with_the_indexes() {
    if cannot_mount() {
        return;
    }
    let image = image();
    let registry = taking_pushes(&image);
    let reference = registry.reference("team/app", "1");
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let names = ["1/6", "0/2", "2/1"];
    let read = |at: &Path| names.map(|name| std::fs::read(at.join(name)).unwrap());
    let at = here.mount_with(&reference, "a", &[]);
    let wanted = read(&at.path);
    at.unmount();
    let told = done(&here, &["index", "push", &reference]);
    assert!(told.contains(", and its profiles to "), "{told}");
    // What a reader asks for by itself, without any prediction.
    done(&here, &["cache", "drop", "--content", &reference]);
    registry.clear();
    let at = here.mount_with(&reference, "a", &["--prefetch", "none"]);
    assert!(read(&at.path) == wanted);
    at.unmount();
    let demanded = of_layers(&registry, &image).iter().map(|asked| asked.body_bytes).sum::<u64>();

    registry.clear();
    let at = there.mount_with(&reference, "a", &["--index-from", "referrers"]);
    let enough = |log: &[Recorded]| log.iter().map(|asked| asked.body_bytes).sum::<u64>() >= demanded;
    assert!(registry.wait_until(enough), "the profile is replayed before anything is read");
    assert!(read(&at.path) == wanted);
    at.unmount();
    let bytes = of_layers(&registry, &image).iter().map(|asked| asked.body_bytes).sum::<u64>();
    assert!(bytes * 10 <= demanded * 11, "{bytes} bytes where {demanded} are read");
}

#[test]
fn docker_registry_keeps_indexes_under_the_tag() {
    if ["docker-registry", "skopeo"].into_iter().any(is_missing) {
        return;
    }
    let (here, there, third) = (Sandbox::new(), Sandbox::new(), Sandbox::new());
    let served = DockerRegistry::start(&here.path().join("registry"));
    let layout = here.path().join("layout");
    let image = image();
    image.write_layout(&layout, "1").unwrap();
    let reference = format!("{}/team/app:1", served.address);
    let from = format!("oci:{}:1", layout.display());
    run(Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &from, &format!("docker://{reference}")]));
    assert!(done(&here, &["index", "push", &reference]).starts_with("pushed the indexes of 3 layers"));
    let again = done(&here, &["index", "push", &reference]);
    assert!(again.contains("has the indexes of 3 layers already"), "{again}");
    // Another machine makes the same of the same layers.
    let again = done(&third, &["index", "push", &reference]);
    assert!(again.contains("has the indexes of 3 layers already"), "{again}");
    // skopeo has compressed the plain layer, so it is another manifest.
    let manifest = json(&here, &["inspect", &reference])["manifest"]["digest"].as_str().unwrap().replace(':', "-");
    let tag = format!("docker://{}/team/app:{manifest}", served.address);
    let listed = Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &tag]).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_else(|_| panic!("{}", said(&listed)));
    assert_eq!(listed["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(listed["manifests"][0]["artifactType"], "application/vnd.peelfs.index.v1");

    let own = done(&here, &["ls", "-lR", &reference]);
    assert_eq!(done(&there, &["ls", "-lR", &reference, "--index-from", "referrers"]), own);
    let told = json(&there, &["inspect", &reference, "--index-from", "referrers"]);
    assert_eq!(told["layers"][2]["origin"], "a pushed index");
    assert_eq!(told["layers"][2]["content_bytes_on_disk"], 0, "no layer was read");
    let file = "/2/7";
    assert!(
        done(&there, &["cat", &reference, file, "--index-from", "referrers"])
            == done(&here, &["cat", &reference, file])
    );
}

/// Signed there, and used by machines whose verifier of indexes has the right key.
#[test]
fn docker_registry_keeps_signatures_beside_indexes() {
    if ["docker-registry", "skopeo", "openssl"].into_iter().any(is_missing) || cannot_mount() {
        return;
    }
    let (here, there, stranger) = (Sandbox::new(), Sandbox::new(), Sandbox::new());
    let served = DockerRegistry::start(&here.path().join("registry"));
    let (layout, image) = (here.path().join("layout"), image());
    image.write_layout(&layout, "1").unwrap();
    let reference = format!("{}/team/app:1", served.address);
    let from = format!("oci:{}:1", layout.display());
    run(Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &from, &format!("docker://{reference}")]));
    let key = |name: &str| {
        let at = |suffix: &str| here.path().join(format!("{name}.{suffix}")).display().to_string();
        let (private, public) = (at("key"), at("pub"));
        let openssl = |args: &[&str]| run(Command::new("openssl").args(args));
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &private]);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        (private, public)
    };
    let ((private, public), (_, other)) = (key("ours"), key("theirs"));
    let told = done(&here, &["index", "push", &reference, "--sign-key", &private]);
    let artifact = told.lines().next().unwrap().rsplit_once(": ").unwrap().1;
    let name = format!("{}/team/app@{artifact}", served.address);
    let own = done(&here, &["ls", "-lR", &reference]);

    let verifier = |sandbox: &Sandbox, key: &str| {
        let directory = sandbox.path().join("index-verifiers");
        std::fs::create_dir(&directory).unwrap();
        let (path, program) = (directory.join("cosign"), support::sandbox::program());
        let script = format!(
            "#!/bin/sh\nexec {} verify-image --key {key} --name $2 --digest $4 --stdin-media-type $6\n",
            program.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        directory.display().to_string()
    };
    let by_ours = verifier(&there, &public);
    let options = ["--index-from", "referrers", "--prefetch", "none", "--index-verifier-dir", &by_ours];
    let at = there.mount_with(&reference, "a", &options);
    assert_eq!(std::fs::read_dir(&at.path).unwrap().count(), 3);
    let status = json(&there, &["status", "--json", at.path.to_str().unwrap()]);
    for layer in status["layers"].as_array().unwrap() {
        assert_eq!((&layer["vouched_by"], &layer["received"]), (&name.as_str().into(), &0.into()));
    }
    at.unmount();
    assert_eq!(done(&there, &["ls", "-lR", &reference, options[0], options[1], options[4], options[5]]), own);
    let by_theirs = verifier(&stranger, &other);
    let output = stranger.run(["ls", "-lR", &reference, options[0], options[1], options[4], &by_theirs]);
    assert!(output.status.success() && output.stdout == own.as_bytes(), "{}", said(&output));
    assert!(said(&output).contains(&format!("cosign` refused {name}: none of 1 signatures")), "{}", said(&output));

    // What is signed is what cosign signs, and openssl agrees. (skopeo could verify it, but Debian's does not.)
    let tag = format!("docker://{}/team/app:{}.sig", served.address, artifact.replace(':', "-"));
    let attached = Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &tag]).output().unwrap();
    let attached: Value = serde_json::from_slice(&attached.stdout).unwrap_or_else(|_| panic!("{}", said(&attached)));
    let layer = &attached["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.dev.cosign.simplesigning.v1+json");
    let copy = here.path().join("signatures");
    let to = format!("dir:{}", copy.display());
    run(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &tag, &to]));
    let payload = copy.join(layer["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    let signed: Value = serde_json::from_slice(&std::fs::read(&payload).unwrap()).unwrap();
    assert_eq!(signed["critical"]["image"]["docker-manifest-digest"], artifact);
    assert_eq!(signed["critical"]["identity"]["docker-reference"], format!("{}/team/app", served.address));
    let signature = layer["annotations"]["dev.cosignproject.cosign/signature"].as_str().unwrap();
    let (encoded, decoded) = (here.path().join("base64"), here.path().join("signature"));
    std::fs::write(&encoded, signature).unwrap();
    let openssl = |args: &[&str]| run(Command::new("openssl").args(args));
    openssl(&["base64", "-d", "-A", "-in", encoded.to_str().unwrap(), "-out", decoded.to_str().unwrap()]);
    openssl(&[
        "dgst",
        "-sha256",
        "-verify",
        &public,
        "-signature",
        decoded.to_str().unwrap(),
        payload.to_str().unwrap(),
    ]);
}

#[test]
fn indexes_can_be_kept_in_a_repository_of_their_own() {
    let image = image();
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let rules = TokenRules { user: Some(("push".to_owned(), "secret".to_owned())), ..TokenRules::default() };
    let access = Access::Bearer { tokens: TokenService::new(rules), realm: Realm::Here };
    let images = Registry::start(Catalog::new().image("team/app", "1", &image)).unwrap();
    let indexes =
        Registry::start_with(Settings { catalog: Catalog::new().taking_pushes(), access, ..Settings::default() })
            .unwrap();
    let reference = images.reference("team/app", "1");
    let to = format!("{}/fleet/indexes", indexes.addr());
    let login = |sandbox: &Sandbox| {
        let file = sandbox.path().join("auth.json");
        let auth = "cHVzaDpzZWNyZXQ=";
        std::fs::write(&file, format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, indexes.addr())).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let denied = here.run(["index", "push", &reference, "--to", &to]);
    assert_eq!(denied.status.code(), Some(4), "{}", said(&denied));
    let file = login(&here);
    let told = done(&here, &["index", "push", &reference, "--to", &to, "--authfile", &file]);
    assert!(told.contains(&format!("to {to}: sha256:")), "{told}");
    assert!(images.requests().iter().all(|asked| asked.request.method == "GET" || asked.request.method == "HEAD"));
    // Its layers are known there: nothing is sent again for another image with them.
    indexes.clear();
    let file = login(&there);
    let args = ["ls", "-lR", &reference, "--index-from", &to, "--authfile", &file];
    assert_eq!(done(&there, &args), done(&here, &["ls", "-lR", &reference]));
    assert!(of_layers(&images, &image).iter().filter(|asked| asked.status == 200).count() <= 3, "by the first machine");
    let told = json(&there, &["inspect", &reference, "--index-from", &to, "--authfile", &file]);
    assert!(told["layers"][0]["vouched_by"].as_str().unwrap().starts_with(&format!("{to}@sha256:")), "{told}");
    // A layout has no repository of its own.
    let layout = here.path().join("layout");
    image.write_layout(&layout, "1").unwrap();
    let local = format!("oci:{}:1", layout.display());
    let nowhere = here.run(["index", "push", &local]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", said(&nowhere));
    assert!(said(&nowhere).contains("--to REGISTRY/REPOSITORY"), "{}", said(&nowhere));
    let again = done(&here, &["index", "push", &local, "--to", &to, "--authfile", &login(&here)]);
    assert!(again.contains("already"), "{again}");
}

#[test]
fn a_registry_that_refuses_pushes_is_one_error() {
    let image = image();
    let (sandbox, registry) = (Sandbox::new(), taking_pushes(&image));
    let reference = registry.reference("team/app", "1");
    for (method, status, code, hint) in [
        ("POST", 401, 4, "log in with `podman login"),
        ("POST", 403, 4, "log in with `podman login"),
        ("POST", 405, 1, "--to REGISTRY/REPOSITORY"),
        ("POST", 404, 1, "--to REGISTRY/REPOSITORY"),
        ("PUT", 413, 1, "--to REGISTRY/REPOSITORY"),
    ] {
        registry.faults().clear();
        registry.faults().add(Rule::new(Target::Any, Fault::status(status)).method(method));
        let output = sandbox.run(["index", "push", &reference]);
        assert_eq!(output.status.code(), Some(code), "{method} {status}: {}", said(&output));
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(told.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{told}");
        assert!(told.contains(hint) && told.contains(&status.to_string()), "{method} {status}: {told}");
        assert!(of_layers(&registry, &image).is_empty(), "nothing is read in vain");
    }
    // It takes blobs, and a connection breaks.
    registry.faults().clear();
    registry.faults().add(Rule::new(Target::Any, Fault::ResetBeforeHeaders).method("PUT").times(2));
    done(&sandbox, &["index", "push", &reference]);
    let reading = Registry::start(Catalog::new().image("team/app", "1", &image)).unwrap();
    let output = sandbox.run(["index", "push", &reading.reference("team/app", "1")]);
    assert!(said(&output).contains("does not accept blob sha256:"), "{}", said(&output));
}
