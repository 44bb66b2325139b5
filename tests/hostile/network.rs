//! Rows 17 to 20, 26 to 29 and 34: redirects, realms, credentials and mirrors.

use std::time::Duration;

use peelfs::source::BlobSource as _;
use peelfs::source::SourceError;
use peelfs::source::registry::{Deadlines, RegistryOptions, RegistrySource, Surroundings};
use peelfs_loopback::auth::{Access, Realm, TokenRules, TokenService};
use peelfs_loopback::faults::{Fault, Gate, RedirectTo, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::json;

use super::{NAME, refused, runtime, served, tried};
use support::sandbox::{Sandbox, said};

fn small() -> Image {
    ImageBuilder::new().layer(LayerBuilder::new().file("f", "x".repeat(5_000))).build()
}

/// A sandbox whose user is logged in at `hosts` as `alice` with the password `secret`.
fn logged_in(hosts: &[&str]) -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let auths: serde_json::Map<_, _> =
        hosts.iter().map(|host| ((*host).to_owned(), json!({ "auth": "YWxpY2U6c2VjcmV0" }))).collect();
    let path = sandbox.path().join("auth.json");
    std::fs::write(&path, json!({ "auths": auths }).to_string()).unwrap();
    (sandbox, path.to_str().unwrap().to_owned())
}

fn basic() -> Access {
    Access::Basic { user: "alice".to_owned(), password: "secret".to_owned() }
}

fn saw_credentials(registry: &Registry) -> bool {
    registry.requests().iter().any(|seen| {
        ["authorization", "cookie", "referer", "proxy-authorization"]
            .iter()
            .any(|name| seen.request.header(name).is_some())
    })
}

#[test]
fn row_17_redirects_carry_no_credentials() {
    let image = small();
    let storage = Registry::start(Catalog::new().image(NAME, "1", &image)).unwrap();
    let mut inputs = 0;
    for status in [301, 302, 303, 307, 308] {
        for target in [Target::Blobs, Target::Manifests] {
            storage.clear();
            let registry = served(&image);
            registry.set_access(basic());
            let to = RedirectTo::SamePathAt(storage.base_url());
            registry.faults().add(Rule::new(target.clone(), Fault::Redirect { status, to, tickets: None }));
            let (sandbox, authfile) = logged_in(&[&registry.addr().to_string(), &storage.addr().to_string()]);
            let output = sandbox.run(["ls", &registry.reference(NAME, "1"), "--authfile", &authfile]);
            assert_eq!(output.stdout, b"f\n", "{status} {target:?}: {}", said(&output));
            assert!(saw_credentials(&registry) && !storage.requests().is_empty());
            assert!(!saw_credentials(&storage), "{status} {target:?}");
            inputs += 1;
        }
    }
    // Storage that asks for a password gets none, though there is one for its name.
    storage.set_access(basic());
    let registry = served(&image);
    registry.faults().add(Rule::new(Target::Blobs, Fault::redirect(storage.base_url())));
    let (sandbox, authfile) = logged_in(&[&registry.addr().to_string(), &storage.addr().to_string()]);
    storage.clear();
    let output = sandbox.run(["ls", &registry.reference(NAME, "1"), "--authfile", &authfile]);
    assert!(!output.status.success() && !saw_credentials(&storage), "{}", said(&output));

    let astray = [
        "file:///etc/passwd",
        "unix:///run/docker.sock",
        "ftp://127.0.0.1/x",
        "data:,x",
        "javascript:1",
        "http://",
        "//",
        "",
        "http://[::1",
        "/v2/library/image/again",
    ];
    for location in astray {
        let registry = served(&image);
        let to = RedirectTo::Exactly(location.to_owned());
        registry.faults().add(Rule::new(
            Target::matching(|asked| asked.path.contains("/blobs/") || asked.path.contains("again")),
            Fault::Redirect { status: 307, to, tickets: None },
        ));
        let output = Sandbox::new().run(["ls", &registry.reference(NAME, "1")]);
        refused(&output, 6, location);
        assert!(registry.requests().len() < 20, "{location}: {} requests", registry.requests().len());
    }
    tried(17, inputs + 1 + astray.len());
}

#[test]
fn row_18_urls_of_foreign_layers_are_not_asked() {
    let elsewhere = Registry::start(Catalog::new().image(NAME, "1", &small())).unwrap();
    elsewhere.set_access(Access::Bearer { tokens: TokenService::new(TokenRules::default()), realm: Realm::Here });
    let types = [
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ];
    for media_type in types {
        for blob_is_there in [true, false] {
            let url = format!("{}/v2/{NAME}/blobs/x", elsewhere.base_url());
            let image = ImageBuilder::new().layer(LayerBuilder::new().file("f", "x").media_type(media_type));
            let image = image.edit_manifest(move |manifest| manifest["layers"][0]["urls"] = json!([url])).build();
            let registry = served(&image);
            if !blob_is_there {
                let layer = Target::Blob(image.layers()[0].digest.clone());
                registry.faults().add(Rule::new(layer, Fault::status(404)));
            }
            let (sandbox, authfile) = logged_in(&[&registry.addr().to_string(), &elsewhere.addr().to_string()]);
            let output = sandbox.run(["ls", &registry.reference(NAME, "1"), "--authfile", &authfile]);
            assert!(output.status.success() || !blob_is_there || media_type != types[0], "{}", said(&output));
            assert!(blob_is_there || !output.status.success());
            assert!(elsewhere.requests().is_empty(), "{media_type}: {:?}", elsewhere.requests());
        }
    }
    tried(18, 2 * types.len());
}

#[test]
fn row_19_passwords_go_to_no_realm_that_is_not_trusted() {
    let long = format!("http://127.0.0.1/{}", "x".repeat(3_000));
    let realms = [
        "http://169.254.169.254/latest/meta-data",
        "http://auth.example/token",
        "http://[fd00:ec2::254]/token",
        "ftp://127.0.0.1/token",
        "file:///etc/passwd",
        "/token",
        "",
        "http://alice:secret@127.0.0.1/token",
        &long,
    ];
    let image = small();
    for realm in realms {
        let registry = served(&image);
        registry.set_access(Access::Bearer {
            tokens: TokenService::new(TokenRules::default()),
            realm: Realm::At(realm.to_owned()),
        });
        let (sandbox, authfile) = logged_in(&[&registry.addr().to_string()]);
        let output = sandbox.run(["ls", &registry.reference(NAME, "1"), "--authfile", &authfile]);
        let told = refused(&output, 4, realm);
        assert!(!told.contains("secret") || realm.contains("secret"), "{told}");
        assert!(!saw_credentials(&registry), "{realm}");
    }
    let challenges = [
        "Bearer realm=\"http://127.0.0.1:1/a\",realm=\"http://127.0.0.1:2/b\"",
        "Bearer realm=\"http://127.0.0.1:1/a",
        "Bearer realm",
        "Bearer",
        "Digest realm=\"x\",nonce=\"y\"",
        "Negotiate",
        "NTLM",
        ",,,",
    ];
    for challenge in challenges {
        let registry = served(&image);
        let headers = vec![("WWW-Authenticate".to_owned(), challenge.to_owned())];
        let refusal = Fault::Status { status: 401, headers, body: bytes::Bytes::new() };
        registry.faults().add(Rule::new(Target::Any, refusal));
        let (sandbox, authfile) = logged_in(&[&registry.addr().to_string()]);
        refused(&sandbox.run(["ls", &registry.reference(NAME, "1"), "--authfile", &authfile]), 4, challenge);
        assert!(!saw_credentials(&registry), "{challenge}");
    }
    tried(19, realms.len() + challenges.len());
}

#[test]
fn row_20_a_token_is_used_for_its_repository_only() {
    let image = small();
    let registry = Registry::start(Catalog::new().image("a/one", "1", &image).image("b/two", "1", &image)).unwrap();
    let tokens = TokenService::new(TokenRules::default());
    registry.set_access(Access::Bearer { tokens: tokens.clone(), realm: Realm::Here });
    // A challenge that proposes more than is wanted.
    let greedy = format!(
        "Bearer realm=\"{}/token\",service=\"x\",scope=\"repository:a/one:push,delete registry:catalog:*\"",
        registry.base_url()
    );
    let status = Fault::Status {
        status: 401,
        headers: vec![("WWW-Authenticate".to_owned(), greedy)],
        body: bytes::Bytes::new(),
    };
    registry.faults().add(Rule::new(Target::Manifests, status).once());
    let sandbox = Sandbox::new();
    for name in ["a/one", "b/two"] {
        let output = sandbox.run(["ls", &registry.reference(name, "1")]);
        assert_eq!(output.stdout, b"f\n", "{}", said(&output));
    }
    let requests = registry.requests();
    let scopes: Vec<String> = requests.iter().filter_map(|asked| asked.request.parameter("scope")).collect();
    assert_eq!(scopes, ["repository:a/one:pull", "repository:b/two:pull"]);
    let shown = |name: &str| -> Vec<&str> {
        let mut shown: Vec<_> = requests
            .iter()
            .filter(|asked| asked.request.path.contains(name))
            .filter_map(|asked| asked.request.header("authorization"))
            .collect();
        shown.dedup();
        shown
    };
    assert_eq!((shown("a/one").len(), shown("b/two").len()), (1, 1));
    assert_ne!(shown("a/one"), shown("b/two"));
    assert!(requests.iter().all(|asked| !asked.request.query.contains("mount=") && asked.request.method != "POST"));
    tried(20, 2);
}

#[test]
fn row_26_no_list_is_ever_asked_for() {
    let registry = served(&small());
    let link = format!("<{}/v2/{NAME}/tags/list?last=x>; rel=\"next\"", registry.base_url());
    registry.faults().add(Rule::new(Target::Any, Fault::Header("Link".to_owned(), link)));
    let sandbox = Sandbox::new();
    for command in ["ls", "inspect", "ls"] {
        assert!(sandbox.run([command, &registry.reference(NAME, "1")]).status.success());
    }
    assert!(sandbox.run(["cat", &registry.reference(NAME, "1"), "/f"]).status.success());
    for asked in registry.requests() {
        assert!(asked.is_blob() || asked.is_manifest(), "{asked:?}");
    }
    tried(26, 4);
}

/// A client with time limits of milliseconds.
fn hasty(registry: &Registry) -> RegistrySource {
    let mut options = RegistryOptions::new(Surroundings::default());
    let limit = Duration::from_millis(40);
    options.deadlines =
        Deadlines { connect: limit, header: limit, stall: limit, patience: 5 * limit, ..Deadlines::default() };
    RegistrySource::new(registry.reference(NAME, "1").parse().unwrap(), "image".to_owned(), options).unwrap()
}

#[test]
fn row_27_a_registry_that_drips_or_says_nothing_is_given_up() {
    let image = small();
    let layer = &image.layers()[0];
    let blob = peelfs_loopback::image::descriptor("application/octet-stream", &layer.blob);
    let whole = peelfs::offsets::BlobOffset(0)..peelfs::offsets::BlobOffset(blob.size);
    let gate = Gate::new();
    let faults = [
        ("silent", Fault::Hang(gate.clone())),
        ("silent after the head", Fault::Stall { after: 0, gate: gate.clone() }),
        ("silent after ten bytes", Fault::Stall { after: 10, gate: gate.clone() }),
        ("dripping", Fault::Pace(100)),
    ];
    for (what, fault) in &faults {
        let registry = served(&image);
        registry.faults().add(Rule::new(Target::Blobs, fault.clone()));
        let source = hasty(&registry);
        let error = runtime().block_on(source.read_at(&blob, whole.clone())).expect_err(what);
        assert!(matches!(error, SourceError::Unreachable { .. }), "{what}: {error}");
    }
    gate.open();
    tried(27, faults.len());
}

#[test]
fn row_28_answers_that_are_not_what_was_asked_are_refused() {
    let image = small();
    let header = |name: &str, value: &str| Fault::Header(name.to_owned(), value.to_owned());
    let refusals = [
        ("gzip", Fault::Gzip),
        ("a header that is none", header("Content-Encoding", "zstd\u{1b}")),
        (
            "many ranges",
            Fault::Status {
                status: 206,
                headers: vec![("Content-Type".to_owned(), "multipart/byteranges; boundary=x".to_owned())],
                body: "--x\r\n".repeat(10_000).into(),
            },
        ),
        ("a head of 10 MiB", header("X-Padding", &"x".repeat(10 << 20))),
        ("another range", header("Content-Range", "bytes 5-6/7")),
        ("nothing new", Fault::status(304)),
        ("a protocol that was not asked for", Fault::status(101)),
        ("300 choices", Fault::status(300)),
    ];
    let mut told = Vec::new();
    for (what, fault) in &refusals {
        let registry = served(&image);
        registry.faults().add(Rule::new(Target::Blobs, fault.clone()));
        let output = Sandbox::new().run(["ls", &registry.reference(NAME, "1")]);
        if *what == "another range" {
            // A whole blob that claims to be a range: the status says what it is, and the digest is right.
            assert!(output.status.success() || output.status.code() == Some(6), "{}", said(&output));
            continue;
        }
        told.push(refused(&output, 6, what));
    }
    assert!(told.iter().all(|told| !told.contains('\u{1b}') && told.len() < 1_000), "{told:?}");
    for (what, fault) in [
        ("identity", header("Content-Encoding", "identity")),
        ("an encoding by name only", header("Content-Encoding", "gzip")),
        ("two encodings by name", header("Content-Encoding", "gzip, br")),
        ("an unknown encoding by name", header("Content-Encoding", "br")),
        ("chunks", Fault::Chunked),
        ("until the end", Fault::UntilClose),
    ] {
        let registry = served(&image);
        registry.faults().add(Rule::new(Target::Blobs, fault));
        assert!(Sandbox::new().run(["ls", &registry.reference(NAME, "1")]).status.success(), "{what}");
    }
    tried(28, refusals.len() + 6);
}

#[test]
fn row_29_a_remote_registry_redirects_to_no_local_address() {
    let image = small();
    let inside = Registry::start(Catalog::new().image(NAME, "1", &image)).unwrap();
    let locations = [
        format!("{}/x", inside.base_url()),
        format!("http://localhost:{}/x", inside.addr().port()),
        format!("http://127.1:{}/x", inside.addr().port()),
        format!("http://2130706433:{}/x", inside.addr().port()),
        format!("http://[::ffff:127.0.0.1]:{}/x", inside.addr().port()),
        format!("http://0.0.0.0:{}/x", inside.addr().port()),
        "http://169.254.169.254/latest/meta-data/iam".to_owned(),
        "http://[fe80::1]/".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
    ];
    for location in &locations {
        // A proxy stands for the registry elsewhere.
        let proxy = served(&image);
        let to = RedirectTo::Exactly(location.clone());
        proxy.faults().add(Rule::new(Target::Blobs, Fault::Redirect { status: 307, to, tickets: None }));
        let sandbox = Sandbox::new();
        let mut command = sandbox.peelfs(["ls", "--insecure", &format!("registry.example/{NAME}:1")]);
        let output = command.env("http_proxy", proxy.base_url()).env("https_proxy", proxy.base_url()).output().unwrap();
        let told = refused(&output, 6, location);
        assert!(told.contains("an address of this machine or link"), "{told}");
        assert!(inside.requests().is_empty());
    }
    // And a realm: a password would go with it.
    for realm in [format!("{}/token", inside.base_url()), "http://169.254.169.254/token".to_owned()] {
        let proxy = served(&image);
        proxy.set_access(Access::Bearer { tokens: TokenService::new(TokenRules::default()), realm: Realm::At(realm) });
        let (sandbox, authfile) = logged_in(&["registry.example"]);
        let mut command =
            sandbox.peelfs(["ls", "--insecure", "--authfile", &authfile, &format!("registry.example/{NAME}:1")]);
        let output = command.env("http_proxy", proxy.base_url()).env("https_proxy", proxy.base_url()).output().unwrap();
        let told = refused(&output, 4, "realm");
        assert!(told.contains("on this machine or link"), "{told}");
        assert!(inside.requests().is_empty());
    }
    tried(29, locations.len() + 2);
}

/// What comes is the image of the registry, and the mirror learns no login of it.
#[test]
fn row_34_a_mirror_cannot_change_an_image() {
    let image = small();
    let other = ImageBuilder::new().layer(LayerBuilder::new().file("other", "y".repeat(5_000))).build();
    let blob = |image: &Image| image.layers()[0].blob.clone();
    let header = |name: &str, value: &str| Fault::Header(name.to_owned(), value.to_owned());
    let faults = [
        Fault::OtherBytes(blob(&other)),
        Fault::OtherBytes(blob(&image).slice(1..)),
        Fault::OtherBytes("BZh91AY".into()),
        Fault::FlipBit { at: 20, bit: 0 },
        Fault::ShiftContentRange(3),
        Fault::ShiftBody(7),
        Fault::NoContentRange,
        Fault::ContentLength(5),
        Fault::Truncate { after: 10 },
        Fault::Endless,
        Fault::Gzip,
        header("Content-Type", "text/html"),
        header("Docker-Content-Digest", &format!("sha256:{}", "0".repeat(64))),
        Fault::redirect("http://169.254.169.254"),
        Fault::status(206),
        Fault::status(401),
    ];
    let mut inputs = 0;
    for fault in faults {
        for target in [Target::Manifests, Target::Blobs] {
            // Its tags are not to be believed.
            let (mirror, registry) = (served(&image), served(&image));
            mirror.faults().add(Rule::new(target.clone(), fault.clone()));
            registry.set_access(basic());
            let (sandbox, authfile) = logged_in(&[&registry.addr().to_string()]);
            let hosts = sandbox.path().join("certs.d");
            std::fs::create_dir_all(hosts.join(registry.addr().to_string())).unwrap();
            let text = format!("[host.'{}']\ncapabilities = ['pull']\n", mirror.base_url());
            std::fs::write(hosts.join(registry.addr().to_string()).join("hosts.toml"), text).unwrap();
            let hosts = format!("--hosts-dir={}", hosts.display());
            let line = ["cat", &registry.reference(NAME, "1"), "f", "--authfile", &authfile, &hosts];
            let output = sandbox.run(line);
            let is_right = output.stdout == "x".repeat(5_000).as_bytes();
            assert!(is_right, "{fault:?} {target:?}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && !saw_credentials(&mirror), "{fault:?}: {}", said(&output));
            inputs += 1;
        }
    }
    tried(34, inputs);
}
