//! A registry that misbehaves: either the right bytes come, or one clear error; never a wrong byte,
//! never a leftover, and when the registry is well again, so is the mount.

use std::path::Path;
use std::process::{Output, Stdio};

use peelfs::digest::{Algorithm, Digest};
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;
use peelfs_loopback::auth::{Access, Realm, TokenRules, TokenService};
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};
use support::shown::{self, MemorySource};
use support::side_by_side;

const NAME: &str = "library/image";

/// Two layers; the upper one has the files that are read.
struct Served {
    registry: Registry,
    image: Image,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Served {
    fn new(packing: Packing) -> Self {
        let mut random = Random::new(5);
        let mut text = |len: usize| (0..len).map(|_| b"0123456789abcdef"[random.below(16)]).collect::<Vec<u8>>();
        let files = vec![("first", text(3_000_000)), ("second", text(200_000)), ("third", text(3_000_000))];
        // It describes the root, so that its own names can be shown before the base is known.
        let upper =
            files.iter().fold(LayerBuilder::new().dir("."), |layer, (name, content)| layer.file(name, content.clone()));
        let base = LayerBuilder::new().dir("etc").file("etc/base", "base");
        let image = ImageBuilder::new().layer(base).layer(upper.packing(packing)).build();
        let registry = Registry::start(Catalog::default()).unwrap();
        registry.push(NAME, "1", &image);
        Self { registry, image, files }
    }

    fn reference(&self) -> String {
        self.registry.reference(NAME, "1")
    }

    fn upper(&self) -> Target {
        Target::Blob(self.image.layers()[1].digest.clone())
    }

    fn upper_size(&self) -> u64 {
        self.image.layers()[1].blob.len() as u64
    }

    fn assert_right(&self, at: &Path, what: &str) {
        assert_eq!(std::fs::read(at.join("etc/base")).unwrap(), b"base", "{what}");
        for (name, content) in &self.files {
            match std::fs::read(at.join(name)) {
                Ok(got) => assert!(got == *content, "{what}: `{name}` has wrong bytes"),
                Err(error) => panic!("{what}: `{name}`: {error}"),
            }
        }
    }

    fn second(&self) -> &[u8] {
        &self.files[1].1
    }
}

fn errno(result: std::io::Result<Vec<u8>>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A mount that must fail: the exit code, one error, nothing mounted, nothing of `layer` kept.
fn assert_refused(sandbox: &Sandbox, reference: &str, code: i32, what: &str, kept_nothing_of: &[&Digest]) -> Output {
    let at = sandbox.mount_point("refused");
    let output = at.try_mount(reference, &["--wait"]);
    assert_eq!(output.status.code(), Some(code), "{what}: {}", said(&output));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{what}: {told}");
    assert!(!told.contains("ERROR"), "{what}: told again as a line of the log: {told}");
    assert!(!at.is_mounted(), "{what}");
    for digest in kept_nothing_of {
        for bucket in ["index-v2", "content-v2", "document-v1"] {
            let kept = sandbox.bucket(bucket);
            assert!(!kept.iter().any(|path| path.to_string_lossy().contains(digest.hex())), "{what}: {kept:?}");
        }
    }
    assert!(sandbox.bucket("tmp").is_empty(), "{what}: {:?}", sandbox.bucket("tmp"));
    output
}

#[test]
fn a_fault_that_passes_costs_time_and_nothing_else() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let half = served.upper_size() / 2;
    let table: Vec<(&str, Vec<Rule>)> = vec![
        ("cut", vec![Rule::new(served.upper(), Fault::Truncate { after: half }).once()]),
        ("cut at once", vec![Rule::new(served.upper(), Fault::Truncate { after: 0 }).once()]),
        ("reset", vec![Rule::new(served.upper(), Fault::Reset { after: half }).once()]),
        ("reset before a byte", vec![Rule::new(Target::Any, Fault::ResetBeforeHeaders).once()]),
        ("cut three times", vec![Rule::new(served.upper(), Fault::Truncate { after: half / 4 }).times(3)]),
        ("429", vec![Rule::new(served.upper(), Fault::too_many("0")).times(2)]),
        ("503", vec![Rule::new(Target::Any, Fault::status(503)).times(2)]),
        ("500 for the manifest", vec![Rule::new(Target::Manifests, Fault::status(500)).once()]),
        ("chunked", vec![Rule::new(Target::Blobs, Fault::Chunked)]),
        ("without a length", vec![Rule::new(Target::Blobs, Fault::UntilClose)]),
        (
            "cut, and the rest is everything",
            vec![
                Rule::new(served.upper(), Fault::Truncate { after: half }).once(),
                Rule::new(served.upper(), Fault::IgnoreRange),
            ],
        ),
        (
            "cut, and the rest says it is something else",
            vec![
                Rule::new(served.upper(), Fault::Truncate { after: half }).once(),
                Rule::new(served.upper(), Fault::ShiftContentRange(1)).times(2),
            ],
        ),
        (
            "cut, and the rest does not say what it is",
            vec![
                Rule::new(served.upper(), Fault::Truncate { after: half }).once(),
                Rule::new(served.upper(), Fault::NoContentRange).times(2),
            ],
        ),
        ("one wrong bit", vec![Rule::new(served.upper(), Fault::FlipBit { at: half, bit: 3 }).once()]),
    ];
    for (what, rules) in table {
        served.registry.faults().clear();
        rules.into_iter().for_each(|rule| served.registry.faults().add(rule));
        let sandbox = Sandbox::new();
        let at = sandbox.mount_point("a");
        let output = at.try_mount(&served.reference(), &["--wait"]);
        assert!(output.status.success(), "{what}: {}", said(&output));
        served.assert_right(&at.path, what);
        at.unmount();
    }
}

#[test]
fn a_lasting_fault_is_one_error_and_nothing_is_kept() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let layer = &served.image.layers()[1];
    let half = served.upper_size() / 2;
    let config = served
        .image
        .blobs()
        .map(|(digest, _)| digest)
        .find(|digest| served.image.layers().iter().all(|layer| layer.digest != **digest));
    let config = config.unwrap().clone();
    let mut longer = layer.blob.to_vec();
    longer.extend_from_slice(b"more");
    let other = Served::new(Packing::Gzip { level: 1, member: None }).image.layers()[1].blob.clone();
    let table: Vec<(&str, i32, Target, Fault, &Digest)> = vec![
        ("a wrong bit", 5, served.upper(), Fault::FlipBit { at: half, bit: 0 }, &layer.digest),
        ("a wrong bit in the gzip header", 5, served.upper(), Fault::FlipBit { at: 1, bit: 0 }, &layer.digest),
        ("a wrong bit at the end", 5, served.upper(), Fault::FlipBit { at: half * 2 - 1, bit: 7 }, &layer.digest),
        ("another layer's bytes", 6, served.upper(), Fault::OtherBytes(other), &layer.digest),
        ("a longer blob", 6, served.upper(), Fault::OtherBytes(longer.into()), &layer.digest),
        ("no blob", 3, served.upper(), Fault::status(404), &layer.digest),
        ("a refused blob", 4, served.upper(), Fault::status(403), &layer.digest),
        ("a registry that is down", 6, served.upper(), Fault::status(500), &layer.digest),
        ("a body that is always cut", 6, served.upper(), Fault::Truncate { after: 0 }, &layer.digest),
        ("an encoded body", 6, served.upper(), Fault::Gzip, &layer.digest),
        ("an endless body", 6, served.upper(), Fault::Endless, &layer.digest),
        ("a wrong configuration", 5, Target::Blob(config.clone()), Fault::FlipBit { at: 5, bit: 0 }, &config),
    ];
    for (what, code, target, fault, kept_nothing_of) in table {
        served.registry.faults().clear();
        served.registry.faults().add(Rule::new(target, fault));
        let sandbox = Sandbox::new();
        let output = assert_refused(&sandbox, &served.reference(), code, what, &[kept_nothing_of]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if what.starts_with("a wrong bit") {
            assert!(told.contains(&layer.digest.to_string()), "{told}");
            assert!(told.matches("sha256:").count() >= 2, "both digests: {told}");
        }
        // And well again, in the same cache.
        served.registry.faults().clear();
        let at = sandbox.mount(&served.reference(), "a");
        served.assert_right(&at.path, what);
        at.unmount();
    }
}

#[test]
fn an_image_that_contradicts_itself_is_refused() {
    if cannot_mount() {
        return;
    }
    let wrong = Digest::of(Algorithm::Sha256, b"something else").to_string();
    let layer = || LayerBuilder::new().file("f", "x".repeat(100_000));
    let (diff_id, digest) = (wrong.clone(), wrong);
    let table: Vec<(&str, i32, Image)> = vec![
        (
            "a wrong diff_id",
            5,
            ImageBuilder::new()
                .layer(layer())
                .edit_config(move |config| config["rootfs"]["diff_ids"][0] = json!(diff_id))
                .build(),
        ),
        (
            "too few diff_ids",
            5,
            ImageBuilder::new().layer(layer()).edit_config(|config| config["rootfs"]["diff_ids"] = json!([])).build(),
        ),
        (
            "a size too small",
            6,
            ImageBuilder::new()
                .layer(layer())
                .edit_manifest(|manifest| {
                    let size = manifest["layers"][0]["size"].as_u64().unwrap();
                    manifest["layers"][0]["size"] = json!(size - 1);
                })
                .build(),
        ),
        (
            "a size too large",
            6,
            ImageBuilder::new()
                .layer(layer())
                .edit_manifest(|manifest| manifest["layers"][0]["size"] = json!(1_u64 << 40))
                .build(),
        ),
        (
            "a blob that is nowhere",
            3,
            ImageBuilder::new()
                .layer(layer())
                .edit_manifest(move |manifest| manifest["layers"][0]["digest"] = json!(digest))
                .build(),
        ),
        ("no tar", 5, ImageBuilder::new().layer(LayerBuilder::new().raw(&[0x55; 4096])).build()),
        (
            "layers and manifests",
            5,
            ImageBuilder::new().layer(layer()).edit_manifest(|m| m["manifests"] = json!([])).build(),
        ),
    ];
    for (what, code, image) in table {
        let registry = Registry::start(Catalog::default()).unwrap();
        registry.push(NAME, "1", &image);
        let sandbox = Sandbox::new();
        assert_refused(&sandbox, &registry.reference(NAME, "1"), code, what, &[]);
        assert!(sandbox.bucket("index-v2").is_empty(), "{what}");
        assert!(sandbox.bucket("content-v2").is_empty(), "{what}");
    }
}

#[test]
fn a_manifest_that_is_not_what_was_named_is_refused() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let pinned = served.registry.pinned(NAME, &served.image.root().digest);
    let other = Served::new(Packing::ZSTD);
    let lie = other.image.documents().next().unwrap().2.clone();
    served.registry.faults().add(Rule::new(Target::Manifests, Fault::OtherBytes(lie)));
    let sandbox = Sandbox::new();
    assert_refused(&sandbox, &pinned, 5, "another manifest", &[&served.image.root().digest]);
}

#[test]
fn a_token_that_runs_out_in_the_middle_is_renewed() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let rules = TokenRules { uses: Some(2), ..TokenRules::default() };
    let tokens = TokenService::new(rules);
    served.registry.set_access(Access::Bearer { tokens: tokens.clone(), realm: Realm::Here });
    let eighth = served.upper_size() / 8;
    served.registry.faults().add(Rule::new(served.upper(), Fault::Truncate { after: eighth }).times(4));
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&served.reference(), "a");
    served.assert_right(&at.path, "tokens");
    assert!(tokens.issued() > 1);
    at.unmount();
}

#[test]
fn credentials_do_not_follow_a_redirect() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let storage = Registry::start(Catalog::default()).unwrap();
    storage.push(NAME, "1", &served.image);
    let (user, password) = ("alice".to_owned(), "secret".to_owned());
    served.registry.set_access(Access::Basic { user, password });
    served.registry.faults().add(Rule::new(Target::Blobs, Fault::redirect(storage.base_url())));
    let sandbox = Sandbox::new();
    let config = json!({ "auths": { served.registry.addr().to_string(): { "auth": "YWxpY2U6c2VjcmV0" } } });
    let authfile = sandbox.path().join("auth.json");
    std::fs::write(&authfile, config.to_string()).unwrap();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&served.reference(), &["--wait", "--authfile", authfile.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    served.assert_right(&at.path, "redirected");
    assert!(served.registry.requests().iter().any(|request| request.request.header("authorization").is_some()));
    let followed = storage.requests();
    assert!(!followed.is_empty());
    for request in followed {
        for header in ["authorization", "cookie", "referer"] {
            assert!(request.request.header(header).is_none(), "{header}: {request:?}");
        }
    }
    at.unmount();
}

/// Mounted with indexes and without content: every read requests a range.
fn mounted_cold<'a>(served: &Served, sandbox: &'a Sandbox) -> MountPoint<'a> {
    sandbox.mount(&served.reference(), "a").unmount();
    sandbox.drop_content();
    served.registry.clear();
    let at = sandbox.mount_point("a");
    // Errors that last are to be seen before the test is over.
    let options = ["--wait", "--on-outage", "deadline=1", "--prefetch", "none"];
    let output = at.try_mount(&served.reference(), &options);
    assert!(output.status.success(), "{}", said(&output));
    at
}

#[test]
fn a_cold_read_gets_the_right_bytes_or_an_error_and_heals() {
    if cannot_mount() {
        return;
    }
    let packings = [
        Packing::GZIP,
        Packing::Gzip { level: 6, member: Some(400_000) },
        Packing::Zstd { level: 1, frame: Some(300_000), skippable: true },
        Packing::Stored,
    ];
    side_by_side(packings.len(), packings, |packing| {
        let served = Served::new(packing);
        // Where the second file lies in the blob, roughly: behind half of it less a little.
        let within = served.upper_size() / 2;
        let passing: Vec<(&str, Fault)> = vec![
            ("cut", Fault::Truncate { after: 1000 }),
            ("reset", Fault::Reset { after: 1000 }),
            ("reset before a byte", Fault::ResetBeforeHeaders),
            ("429", Fault::too_many("0")),
            ("502", Fault::status(502)),
            ("everything instead of a range", Fault::IgnoreRange),
            ("another range than asked for", Fault::ShiftContentRange(512)),
            ("a range without its place", Fault::NoContentRange),
            ("the bytes beside those asked for", Fault::ShiftBody(100)),
            ("a wrong bit", Fault::FlipBit { at: within, bit: 5 }),
        ];
        let sandbox = Sandbox::new();
        for (what, fault) in passing {
            served.registry.faults().clear();
            let at = mounted_cold(&served, &sandbox);
            served.registry.faults().add(Rule::new(served.upper(), fault).once());
            let got = std::fs::read(at.join("second")).unwrap_or_else(|error| panic!("{packing:?}, {what}: {error}"));
            assert!(got == served.second(), "{packing:?}, {what}");
            at.unmount();
        }
        let lasting: Vec<(&str, Fault)> = vec![
            ("the bytes beside those asked for", Fault::ShiftBody(100)),
            ("wrong bits", Fault::OtherBytes(flipped(&served.image.layers()[1].blob).into())),
            ("no blob", Fault::status(404)),
            ("reset", Fault::Reset { after: 0 }),
        ];
        for (what, fault) in lasting {
            served.registry.faults().clear();
            let at = mounted_cold(&served, &sandbox);
            served.registry.faults().add(Rule::new(served.upper(), fault));
            let eio = Some(rustix::io::Errno::IO.raw_os_error());
            assert_eq!(errno(std::fs::read(at.join("second"))), eio, "{packing:?}, {what}");
            let logs = sandbox.logs();
            assert!(logs.contains(served.image.layers()[1].digest.hex()), "{packing:?}, {what}: {logs}");
            if packing == Packing::Stored && what == "wrong bits" {
                assert!(logs.contains("expected ") && logs.contains(", got "), "both digests: {logs}");
            }
            served.registry.faults().clear();
            served.assert_right(&at.path, &format!("{packing:?}, {what}, well again"));
            at.unmount();
        }
    });
}

fn flipped(blob: &[u8]) -> Vec<u8> {
    blob.iter().map(|byte| byte ^ 0x10).collect()
}

#[test]
fn a_stalled_read_holds_up_no_other() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::Zstd { level: 1, frame: Some(300_000), skippable: false });
    let sandbox = Sandbox::new();
    let at = mounted_cold(&served, &sandbox);
    assert!(std::fs::read(at.join("second")).unwrap() == served.second());
    let gate = Gate::new();
    served.registry.faults().add(Rule::new(served.upper(), Fault::Stall { after: 10, gate: gate.clone() }));
    served.registry.clear();
    std::thread::scope(|scope| {
        // More of them than the mount has threads.
        let readers: Vec<_> = (0..8)
            .map(|number| {
                let path = at.join(if number % 2 == 0 { "first" } else { "third" });
                scope.spawn(move || std::fs::read(path))
            })
            .collect();
        assert!(served.registry.wait_until(|requests| requests.iter().any(|request| request.body_bytes >= 10)));
        assert!(std::fs::read(at.join("second")).unwrap() == served.second());
        assert_eq!(std::fs::read(at.join("etc/base")).unwrap(), b"base");
        assert_eq!(std::fs::read_dir(&at.path).unwrap().count(), 4);
        assert!(!at.join("no-such-name").exists());
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        gate.open();
        for (number, reader) in readers.into_iter().enumerate() {
            let wanted = &served.files[if number % 2 == 0 { 0 } else { 2 }].1;
            assert!(reader.join().unwrap().unwrap() == *wanted);
        }
    });
    at.unmount();
}

#[test]
fn a_stalled_pass_shows_upper_layers_and_lets_the_mount_end() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let gate = Gate::new();
    let base = Target::Blob(served.image.layers()[0].digest.clone());
    served.registry.faults().add(Rule::new(base, Fault::Stall { after: 10, gate: gate.clone() }));
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&served.reference(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    // The upper layer's names are answered while the base is downloaded.
    assert!(std::fs::read(at.join("second")).unwrap() == served.second());
    let waiting = std::thread::scope(|scope| {
        let path = at.join("etc/base");
        let reader = scope.spawn(move || std::fs::read(path));
        assert!(std::fs::read(at.join("first")).unwrap() == served.files[0].1);
        let waiting = !reader.is_finished();
        gate.open();
        assert_eq!(reader.join().unwrap().unwrap(), b"base");
        waiting
    });
    assert!(waiting, "what the base holds cannot be known");
    at.unmount();

    // With a base that never arrives, a signal still ends it.
    served.registry.faults().clear();
    let gate = Gate::new();
    let base = Target::Blob(served.image.layers()[0].digest.clone());
    served.registry.faults().add(Rule::new(base, Fault::Hang(gate.clone())));
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&served.reference(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    at.unmount();
    gate.open();
}

#[test]
fn a_wait_for_a_mount_ends_when_it_is_unmounted_or_given_up() {
    if cannot_mount() {
        return;
    }
    for how in [&[][..], &["--share"]] {
        let served = Served::new(Packing::GZIP);
        let gate = Gate::new();
        served.registry.faults().add(Rule::new(served.upper(), Fault::Stall { after: 10, gate: gate.clone() }));
        let sandbox = Sandbox::new();
        let at = sandbox.mount_point("a");
        let begin = || {
            let mut command = sandbox.peelfs(["mount", &served.reference()]);
            command.arg(&at.path).arg("--wait").args(how).stderr(Stdio::piped());
            let waiting = command.spawn().unwrap();
            while !at.is_mounted() || at.state().is_none() {
                support::pause();
            }
            waiting
        };
        let waiting = begin();
        at.unmount();
        let output = waiting.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{how:?}");
        assert!(said(&output).contains("unmounted before every layer was verified"), "{how:?}: {}", said(&output));

        let mut waiting = begin();
        let upgrade = sandbox.peelfs(["upgrade"]).arg(&at.path).output().unwrap();
        assert_eq!(upgrade.status.code(), Some(1), "{how:?}: {}", said(&upgrade));
        assert!(said(&upgrade).contains("still waited for"), "{how:?}: {}", said(&upgrade));
        let server = at.server();
        waiting.kill().unwrap();
        waiting.wait().unwrap();
        while at.is_mounted() || Path::new(&format!("/proc/{server}")).exists() {
            support::pause();
        }
        gate.open();
    }
}

#[test]
fn a_wait_for_a_mount_goes_on_with_the_server_that_takes_over() {
    if cannot_mount() {
        return;
    }
    for (how, code) in [(&[][..], 0), (&["--share"], 0), (&[], 5), (&["--share"], 5)] {
        let served = Served::new(Packing::GZIP);
        let gate = Gate::new();
        served.registry.faults().add(Rule::new(served.upper(), Fault::Stall { after: 10, gate: gate.clone() }));
        if code != 0 {
            let at = served.upper_size() / 2;
            served.registry.faults().add(Rule::new(served.upper(), Fault::FlipBit { at, bit: 0 }));
        }
        let sandbox = Sandbox::new();
        let at = sandbox.mount_point("a");
        let mut command = sandbox.peelfs(["mount", "--wait", &served.reference()]);
        let waiting = command.arg(&at.path).args(how).stderr(Stdio::piped()).spawn().unwrap();
        while !at.is_mounted() || at.state().is_none() {
            support::pause();
        }
        for _ in 0..2 {
            let before = at.server();
            kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
            while at.state().is_none_or(|state| state["pid"] == before) {
                support::pause();
            }
        }
        gate.open();
        let output = waiting.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{how:?}: {}", said(&output));
        if code == 0 {
            let status = sandbox.run(["status"]);
            assert!(said(&status).contains("2 of 2 ready"), "{how:?}: {}", said(&status));
            served.assert_right(&at.path, "taken over");
            at.unmount();
        } else {
            assert!(said(&output).contains("is corrupt"), "{how:?}: {}", said(&output));
            assert!(!at.is_mounted(), "{how:?}");
        }
    }
}

#[test]
fn a_failed_layer_is_shown_when_the_registry_is_back() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    served.registry.faults().add(Rule::new(served.upper(), Fault::status(404)));
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&served.reference(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let eio = Some(rustix::io::Errno::IO.raw_os_error());
    assert_eq!(errno(std::fs::read(at.join("second"))), eio);
    served.registry.faults().clear();
    // It is not asked at every read, but soon.
    let begin = std::time::Instant::now();
    loop {
        match std::fs::read(at.join("second")) {
            Ok(got) => break assert!(got == served.second()),
            Err(error) => assert!(begin.elapsed().as_secs() < 30, "{error}"),
        }
        support::pause();
    }
    served.assert_right(&at.path, "well again");
    at.unmount();
}

#[test]
fn content_that_is_cut_under_a_reader_is_filled_again() {
    let served = Served::new(Packing::Zstd { level: 1, frame: Some(300_000), skippable: false });
    let sandbox = Sandbox::new();
    let source = MemorySource::new(&served.image);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let fs = shown::open(&source, &sandbox.store()).await.unwrap();
        let second = fs.awaited(|fs| fs.walk(b"second", Last::Follow)).await.unwrap();
        let read = || async { fs.read(second.node, FileOffset(0), 200_000).await.unwrap() };
        assert!(read().await == served.second());
        for path in sandbox.bucket("content-v2").iter().filter(|path| path.extension().unwrap() == "data") {
            std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap();
        }
        source.take_asked();
        assert!(read().await == served.second());
        assert!(!source.take_asked().is_empty());
        assert!(read().await == served.second());
        assert!(source.take_asked().is_empty(), "what was fetched is kept");
    });
}
