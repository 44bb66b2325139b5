//! What a serving process tells of itself: what it has fetched and why, who waits, and metrics.
//! Most tests need root and `/dev/fuse`, and print why they skip.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use peelfs::host::channel::Channel;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::Value;
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};

const FILE: usize = 300 << 10;

/// Two layers; what one has is far from what the other has.
fn image() -> Image {
    let mut random = Random::new(9);
    let mut layer = |dir: &str| {
        let files = (0..8).map(|number| (format!("{dir}/{number}.bin"), random.bytes(FILE)));
        files.fold(LayerBuilder::new(), |layer, (path, bytes)| layer.file(&path, bytes))
    };
    ImageBuilder::new().layer(layer("lower")).layer(layer("upper")).build()
}

fn serve() -> (Registry, String) {
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let reference = registry.reference("app", "1");
    (registry, reference)
}

fn run(sandbox: &Sandbox, args: &[&str]) -> String {
    let output = sandbox.run(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn activity(sandbox: &Sandbox, at: &MountPoint<'_>) -> Value {
    let text = run(sandbox, &["status", "--json", "--activity", at.path.to_str().unwrap()]);
    serde_json::from_str::<Value>(&text).unwrap()["activity"].clone()
}

/// A mount whose layers are indexed, with nothing cached.
fn cold<'a>(sandbox: &'a Sandbox, reference: &str, more: &[&str]) -> MountPoint<'a> {
    sandbox.mount(reference, "once").unmount();
    sandbox.drop_content();
    sandbox.mount_with(reference, "a", &[&["--prefetch", "none"], more].concat())
}

/// A program that reads a file.
fn reader(path: PathBuf) -> Child {
    std::process::Command::new("cat").arg(path).stdout(Stdio::null()).spawn().unwrap()
}

/// The answer to a request, head and body.
fn get(address: SocketAddr, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The value of a metric in Prometheus' text.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_first_pass_and_reads_are_told_apart() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve();
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&reference, "a");
    std::fs::read(at.join("upper/3.bin")).unwrap();
    let first = activity(&sandbox, &at);
    for layer in first["layers"].as_array().unwrap() {
        assert_eq!(layer["fetched"]["first_pass"], layer["size"], "{layer}");
        assert_eq!(layer["fetched_bytes"], layer["size"]);
        assert_eq!(layer["state"], "ready");
        assert!(layer["cached_bytes"].as_u64().unwrap() >= 8 * FILE as u64, "{layer}");
    }
    assert_eq!(first["files"], serde_json::json!([]), "what is cached is not recorded");
    let read = &first["layers"][1];
    assert!(read["reads"].as_u64().unwrap() > 0 && read["read_bytes"].as_u64().unwrap() >= FILE as u64, "{read}");
    assert_eq!((&read["waits"], &first["layers"][0]["reads"]), (&0.into(), &0.into()));
    at.unmount();
}

#[test]
fn files_that_are_fetched_have_reasons_and_waits() {
    if cannot_mount() {
        return;
    }
    let (registry, reference) = serve();
    let sandbox = Sandbox::new();
    let at = cold(&sandbox, &reference, &[]);
    registry.clear();
    std::fs::read(at.join("upper/3.bin")).unwrap();
    let told = activity(&sandbox, &at);
    let file = told["files"].as_array().unwrap().iter().find(|file| file["path"] == "/upper/3.bin");
    let file = file.unwrap_or_else(|| panic!("{told}"));
    assert_eq!((&file["layer"], &file["size"]), (&2.into(), &FILE.into()));
    assert!(file["fetched"]["demand"].as_u64().unwrap() > 0, "{file}");
    assert!(file["waits"].as_u64().unwrap() > 0 && file["waited_us"].as_u64().unwrap() > 0, "{file}");
    assert!(file["longest_us"].as_u64() <= file["waited_us"].as_u64());
    let layer = &told["layers"][1];
    assert_eq!(layer["fetched_bytes"], registry.blob_bytes(), "every byte has a reason: {layer}");
    assert_eq!(told["layers"][0]["fetched_bytes"], 0);
    assert!(told["registry"]["requests"].as_u64().unwrap() > 0);
    let waits: u64 = told["waits"].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).sum();
    assert!(waits > 0 && told["waited_us"].as_u64().unwrap() > 0, "{told}");
    let text = run(&sandbox, &["status", "--activity", at.path.to_str().unwrap()]);
    assert!(text.contains("\n  file     /upper/3.bin: ") && text.contains(" demand"), "{text}");
    at.unmount();
}

/// Predictions are for files, too: those that earlier runs have read.
#[test]
fn a_profile_is_a_reason_with_files() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve();
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&reference, "once");
    std::fs::read(at.join("lower/5.bin")).unwrap();
    at.unmount();
    sandbox.drop_content();
    let at = sandbox.mount_with(&reference, "a", &["--prefetch", "profile"]);
    let told = loop {
        let told = activity(&sandbox, &at);
        if told["layers"][0]["fetched"]["profile"].as_u64().is_some_and(|bytes| bytes >= FILE as u64) {
            break told;
        }
    };
    let files = told["files"].as_array().unwrap();
    let file = files.iter().find(|file| file["path"] == "/lower/5.bin").unwrap_or_else(|| panic!("{told}"));
    assert!(file["fetched"]["profile"].as_u64().unwrap() > 0 && file["waits"] == 0, "{file}");
    at.unmount();
}

#[test]
fn a_process_that_waits_is_named() {
    if cannot_mount() {
        return;
    }
    let (registry, reference) = serve();
    let sandbox = Sandbox::new();
    let at = cold(&sandbox, &reference, &[]);
    std::fs::read(at.join("upper/1.bin")).unwrap();
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blobs, Fault::Hang(gate.clone())));
    let mut waiting = reader(at.join("lower/2.bin"));
    let told = loop {
        let told = activity(&sandbox, &at);
        if told["waiting_requests"].as_array().is_some_and(|waiting| !waiting.is_empty()) {
            break told;
        }
    };
    let request = &told["waiting_requests"][0];
    assert_eq!((&request["path"], &request["operation"]), (&"/lower/2.bin".into(), &"read".into()), "{told}");
    assert_eq!((&request["pid"], &request["command"]), (&waiting.id().into(), &"cat".into()), "{told}");
    assert!(told["waiting"].as_u64().unwrap() > 0);
    let text = run(&sandbox, &["status", "--activity", at.path.to_str().unwrap()]);
    assert!(text.contains(&format!("\n  waiting  cat ({}): read /lower/2.bin, for ", waiting.id())), "{text}");
    assert_documented(&told);
    gate.open();
    assert!(waiting.wait().unwrap().success());
    let told = activity(&sandbox, &at);
    assert_eq!((&told["waiting"], &told["waiting_requests"]), (&0.into(), &serde_json::json!([])));
    at.unmount();
}

/// docs/json.md has all fields.
fn assert_documented(told: &Value) {
    fn collect(above: &str, value: &Value, fields: &mut BTreeSet<String>) {
        let reasons = ["layers.fetched", "layers.fetches", "files.fetched"];
        match value {
            Value::Object(object) => {
                for (name, value) in object.iter().filter(|_| !reasons.contains(&above)) {
                    let name = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                    collect(&name, value, fields);
                    fields.insert(name);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| collect(above, value, fields)),
            _ => {}
        }
    }
    let mut fields = BTreeSet::new();
    collect("", told, &mut fields);
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json.md")).unwrap();
    let section = text.split("## `activity` of `status --activity`").nth(1).unwrap();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let documented: BTreeSet<String> = names.map(|(name, _)| name.to_owned()).collect();
    let unknown: Vec<_> = fields.difference(&documented).collect();
    assert!(unknown.is_empty(), "docs/json.md does not list {unknown:?}");
    let missing = documented.difference(&fields).filter(|name| !name.ends_with("_hex") && *name != "images");
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&String>::new(), "docs/json.md lists what is not printed");
}

/// Nothing is known of the root before the uppermost layer is.
#[test]
fn a_process_that_waits_for_a_layer_is_named() {
    if cannot_mount() {
        return;
    }
    let (registry, reference) = serve();
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blob(image().layers()[1].digest.clone()), Fault::Hang(gate.clone())));
    let at = sandbox.mount_point("a");
    assert!(at.try_mount(&reference, &[]).status.success());
    let mut waiting = reader(at.join("upper/1.bin"));
    let told = loop {
        let told = activity(&sandbox, &at);
        if told["waiting"] != 0 {
            break told;
        }
    };
    let request = &told["waiting_requests"][0];
    assert_eq!((&request["path"], &request["command"]), (&"/".into(), &"cat".into()), "{told}");
    assert_eq!(told["layers"][1]["state"], "reading", "{told}");
    gate.open();
    assert!(waiting.wait().unwrap().success());
    at.unmount();
}

#[test]
fn metrics_are_served_and_survive_a_take_over() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve();
    let sandbox = Sandbox::new();
    let port = free_port();
    let at = cold(&sandbox, &reference, &["--metrics", &port.to_string()]);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    std::fs::read(at.join("upper/0.bin")).unwrap();
    let text = get(address, "/metrics", "localhost");
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("text/plain; version=0.0.4"), "{text}");
    let mount = format!("mount=\"{}\"", at.path.display());
    assert!(text.contains(&format!("peelfs_mount_info{{{mount},reference=\"{reference}\"")), "{text}");
    assert!(metric(&text, "peelfs_fetched_bytes_total") > 0.0);
    assert_eq!(metric(&text, "peelfs_layers"), 0.0, "the first state is of layers that wait");
    assert!(metric(&text, "peelfs_request_wait_seconds_count") > 0.0);
    let printed = run(&sandbox, &["status", "--metrics", at.path.to_str().unwrap()]);
    for metric in peelfs::host::metrics::ALL.iter().filter(|metric| metric.full_name() != "peelfs_images") {
        let name = metric.full_name();
        assert!(printed.contains(&format!("\n{name}")), "{name} is not in {printed}");
        assert!(text.contains(&format!("\n{name}")), "{name} is not served");
    }
    for (path, host, status) in [
        ("/metrics", "example.org", "421"),
        ("/", "127.0.0.1:1", "200"),
        ("/secrets", "localhost", "404"),
        ("/metrics/", "localhost", "404"),
    ] {
        let answer = get(address, path, host);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {host}: {answer}");
    }
    let status = run(&sandbox, &["status", at.path.to_str().unwrap()]);
    assert!(status.contains(&format!("\n  metrics  http://{address}/metrics\n")), "{status}");
    at.kill_server();
    assert_eq!(metric(&get(address, "/metrics", "localhost"), "peelfs_takeovers_total"), 1.0);
    at.unmount();
    assert!(TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_err());
}

#[test]
fn an_address_that_is_taken_is_refused_before_mounting() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve();
    let sandbox = Sandbox::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference, &["--metrics", &address.to_string()]);
    let said = said(&output);
    assert!(!output.status.success() && !at.is_mounted(), "{said}");
    assert!(said.contains(&format!("cannot serve metrics at {address}: ")) && said.contains("hint: "), "{said}");
}

/// Mounts of one process that name one address are told together.
#[test]
fn shared_mounts_share_an_address_of_metrics() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve();
    let sandbox = Sandbox::new();
    let port = free_port().to_string();
    let mounts = ["a", "b"].map(|name| sandbox.mount_with(&reference, name, &["--share", "--metrics", &port]));
    let address = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let told = |text: &str| text.lines().filter(|line| line.starts_with("peelfs_mount_info{")).count();
    assert_eq!(told(&get(address, "/metrics", "localhost")), 2);
    let [a, b] = mounts;
    a.unmount();
    assert_eq!(told(&get(address, "/metrics", "localhost")), 1);
    b.unmount();
}

/// A question of another release is answered with a reason.
#[test]
fn a_question_that_is_not_understood_is_refused() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve();
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&reference, "a");
    let socket = at.state().unwrap()["questions"].as_str().unwrap().to_owned();
    let questions = [serde_json::json!({"activity": {"files": 1, "colour": "red"}}), serde_json::json!("weather")];
    for question in questions {
        let channel = Channel::connect(Path::new(&socket)).unwrap();
        channel.set_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(channel.offer().unwrap(), 1);
        channel.send(&question, None).unwrap();
        let (text, _) = channel.receive().unwrap().unwrap();
        let told: Value = serde_json::from_slice(&text).unwrap();
        assert!(told["refused"]["why"].as_str().is_some_and(|why| why.contains("unknown")), "{told}");
    }
    at.unmount();
    assert!(!Path::new(&socket).exists());
}
