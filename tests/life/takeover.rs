//! A mount outlives the process that serves it: the keeper starts another, and readers notice nothing.

use std::fs::{DirEntry, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::containers::until;
use peelfs::host::channel::Channel;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::load::{self, times};
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};

const FILES: usize = 64;
const READERS: usize = 32;
/// `PEELFS_KILLS` and `PEELFS_UPGRADES` make the runs longer.
const KILLS: usize = 10;
const UPGRADES: usize = 3;

fn content(number: usize) -> Vec<u8> {
    (0..20_000 + number as u32 * 997).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8 ^ number as u8).collect()
}

fn registry() -> Registry {
    let mut layer = LayerBuilder::new().dir("d");
    for number in 0..FILES {
        layer = layer.file(&format!("d/{number}"), content(number));
    }
    Registry::start(Catalog::new().image("app", "1", &ImageBuilder::new().layer(layer).build())).unwrap()
}

/// Reads a file past the kernel's own cache and compares it.
fn read_anew(at: &Path, number: usize) {
    let path = at.join(format!("d/{number}"));
    let bytes = load::read_anew(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes == content(number), "{}: wrong bytes", path.display());
}

/// Has many readers read while `disturb` runs; returns how long each read took, in microseconds.
fn under_load(at: &MountPoint<'_>, disturb: impl FnOnce(&dyn Fn())) -> Vec<u64> {
    load::under_load(READERS, |reader, turn| read_anew(&at.path, (7 * reader + turn) % FILES), disturb)
}

#[test]
fn a_mount_by_tag_outlives_its_server_without_its_registry() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--on-outage", "offline"]);
    drop(registry);
    // What it needs is in use.
    let pruned = sandbox.run(["cache", "prune", "--all"]);
    assert!(pruned.status.success(), "{pruned:?}");
    at.kill_server();
    (0..FILES).for_each(|number| read_anew(&at.path, number));
    let upgraded = sandbox.run(["upgrade".as_ref(), at.path.as_os_str()]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    (0..FILES).for_each(|number| read_anew(&at.path, number));
    at.unmount();
}

#[test]
fn a_mount_outlives_its_server_registry_and_cached_documents() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let reference = registry.reference("app", "1");
    let points = [vec![], vec!["--share"]].map(|more| {
        let name = format!("mnt{}", more.len());
        sandbox.mount_with(&reference, &name, &[&["--on-outage", "offline"], more.as_slice()].concat())
    });
    drop(registry);
    for bucket in ["tag-v1", "document-v1"] {
        let files = sandbox.bucket(bucket);
        assert!(!files.is_empty(), "{bucket}");
        files.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
    for at in &points {
        at.kill_server();
        (0..FILES).for_each(|number| read_anew(&at.path, number));
        at.unmount();
    }
    // A mount that shares its process has gone before its keeper has removed what it kept of it.
    let run = sandbox.path().join("run/peelfs");
    let is_kept = |entry: std::io::Result<DirEntry>| entry.unwrap().path().extension() == Some("image".as_ref());
    until(|| !std::fs::read_dir(&run).unwrap().any(is_kept));
}

/// The archive has come through a pipe, and is read again from what the processes hand on to each other.
#[test]
fn a_mount_of_a_piped_archive_outlives_its_server() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let layout = sandbox.path().join("layout");
    let layer = (0..FILES)
        .fold(LayerBuilder::new().dir("d"), |layer, number| layer.file(&format!("d/{number}"), content(number)));
    ImageBuilder::new().layer(layer).build().write_layout(&layout, "1").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", &layout).unwrap();
    let tar = zstd::bulk::compress(&tar.into_inner().unwrap(), 1).unwrap();
    std::fs::remove_dir_all(&layout).unwrap();
    let mount = |name: &str, image: &str, how: &[&str]| {
        let at = sandbox.mount_point(name);
        let mut command = sandbox.peelfs(["mount", "--wait", image]);
        command.arg(&at.path).args(how).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().unwrap();
        let mut stdin = running.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = stdin.write_all(&tar);
                drop(stdin);
            });
            (at, running.wait_with_output().unwrap())
        })
    };
    // Processes read it by descriptors of their own; it is called what was typed.
    let is_called = |at: &MountPoint<'_>, name: &str| {
        let told = sandbox.run(["status", "--json", at.path.to_str().unwrap()]);
        let state: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(state["reference"], name);
        let listed = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = listed.lines().find(|line| line.contains(at.path.to_str().unwrap())).unwrap();
        assert!(line.starts_with(&name.replace(' ', "\\040")), "{line}");
    };
    let typed = "oci-archive:/dev/stdin:1";
    let (at, output) = mount("typed", typed, &[]);
    assert!(output.status.success(), "{}", said(&output));
    is_called(&at, typed);
    at.unmount();
    let (at, output) = mount("mnt", "-", &[]);
    assert!(output.status.success(), "{}", said(&output));
    is_called(&at, "standard input");
    let read_from_archive = || {
        let dropped = sandbox.run(["cache", "drop", "--content", "--all"]);
        assert!(dropped.status.success(), "{}", said(&dropped));
        (0..FILES).for_each(|number| read_anew(&at.path, number));
    };
    read_from_archive();
    at.kill_server();
    read_from_archive();
    at.upgrade();
    read_from_archive();
    is_called(&at, "standard input");
    at.unmount();
    let (_, output) = mount("shared", typed, &["--share"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("cannot read its archive from a pipe"), "{}", said(&output));
}

#[test]
fn readers_notice_nothing_of_a_killed_server() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let held = File::open(at.join("d/5")).unwrap();
    let kills = times("PEELFS_KILLS", KILLS);
    let mut took = under_load(&at, |until_all_have_read| {
        for _ in 0..kills {
            at.kill_server();
            until_all_have_read();
        }
    });
    took.sort_unstable();
    // Each kill holds up every reader once, so these are the reads that were held up.
    let held_up = &took[took.len().saturating_sub(kills * READERS)..];
    let of_hundred = |part: usize| held_up[(held_up.len() - 1) * part / 100] / 1000;
    println!(
        "{kills} kills, {} reads by {READERS}; held up: median {} ms, 99th of 100 {} ms",
        took.len(),
        of_hundred(50),
        of_hundred(99)
    );
    let mut bytes = vec![0; content(5).len()];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == content(5));
    assert_eq!(at.state().unwrap()["takeovers"], kills);
    drop(held);
    at.unmount();
}

#[test]
fn a_reader_that_waits_is_served_by_the_next_process() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    sandbox.mount(&registry.reference("app", "1"), "mnt").unmount();
    sandbox.drop_content();
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 0, gate: gate.clone() }));
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    registry.clear();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_anew(&at.path, 3));
        let opener = scope.spawn(|| std::fs::read_dir(at.join("d")).unwrap().count());
        assert!(registry.wait_until(|requests| requests.iter().any(|request| request.is_blob())));
        at.kill_server();
        registry.faults().clear();
        gate.open();
        registry.drop_connections();
        reader.join().unwrap();
        assert_eq!(opener.join().unwrap(), FILES);
    });
    at.unmount();
}

#[test]
fn an_upgrade_exchanges_the_server_under_load() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let mut pauses = Vec::new();
    under_load(&at, |until_all_have_read| {
        for _ in 0..times("PEELFS_UPGRADES", UPGRADES) {
            pauses.push(pause_told(&at.upgrade()));
            until_all_have_read();
        }
    });
    pauses.sort();
    let (middle, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{} upgrades; pauses: median {middle:.1?}, longest {longest:.1?}", pauses.len());
    at.unmount();
}

/// The pause that `peelfs upgrade` tells of.
fn pause_told(said: &str) -> Duration {
    let (_, pause) = said.trim_end().rsplit_once(' ').expect("it ends with the pause");
    let unit = pause.find(|part: char| part != '.' && !part.is_ascii_digit()).expect("it has a unit");
    let seconds = match &pause[unit..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        other => panic!("`{other}` in `{said}`"),
    };
    Duration::from_secs_f64(pause[..unit].parse::<f64>().expect("it is a number") * seconds)
}

#[test]
fn a_mount_goes_on_without_its_keeper_and_ends_with_it() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    let status = || String::from_utf8(sandbox.peelfs(["status"]).arg(&at.path).output().unwrap().stdout).unwrap();
    assert!(!status().contains("keeper"), "{}", status());
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    read_anew(&at.path, 1);
    while !status().contains("keeper   gone") {
        support::pause();
    }
    at.unmount();

    let at = sandbox.mount(&registry.reference("app", "1"), "other");
    let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap() as i32;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::TERM).unwrap();
    while at.is_mounted() {
        support::pause();
    }
}

/// Sends `messages`, one after the other, to the socket of a mount's keeper; what it answers to each.
fn say_to_keeper(at: &MountPoint<'_>, messages: &[Value]) -> Vec<String> {
    let socket = at.state().unwrap()["keeper"]["socket"].as_str().unwrap().to_owned();
    let channel = Channel::connect(Path::new(&socket)).unwrap();
    channel.set_timeout(Duration::from_secs(20)).unwrap();
    messages.iter().map(|message| answer(&channel, message)).collect()
}

fn answer(channel: &Channel, message: &Value) -> String {
    channel.send(message, None).unwrap();
    channel.receive().unwrap().map_or_else(String::new, |(text, _)| String::from_utf8(text).unwrap())
}

/// Reads on with a file that was open before.
fn reads_on(file: &File, number: usize) {
    let mut bytes = vec![0; content(number).len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == content(number));
}

/// What a keeper does not understand it refuses with the reason, and goes on; so does its mount.
#[test]
fn a_keeper_refuses_what_it_does_not_understand() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let open = File::open(at.join("d/3")).unwrap();
    let own = json!({"versions": [1], "program": "peelfs 0.0"});
    let refused = say_to_keeper(&at, &[json!({"versions": [0, 99], "program": "peelfs 99.0"})]);
    assert!(refused[0].contains("refused") && refused[0].contains("peelfs 99.0"), "{refused:?}");
    assert!(refused[0].contains("[0, 99]") && refused[0].contains("[1]"), "{refused:?}");
    assert!(say_to_keeper(&at, &[json!("garbage")])[0].contains("refused"));
    for (request, why) in [
        (json!({"upgrade": {"program": "/bin/true", "colour": "red"}}), "unknown field `colour`"),
        (json!({"upgrade": {}}), "missing field `program`"),
        (json!({"downgrade": {}}), "unknown variant `downgrade`"),
        (json!(7), "cannot be parsed"),
    ] {
        let answers = say_to_keeper(&at, &[own.clone(), request.clone()]);
        assert_eq!(answers[0], r#"{"version":1}"#);
        assert!(answers[1].contains("failed") && answers[1].contains(why), "{request}: {answers:?}");
    }
    // Those that say nothing hold up neither a replacement nor an upgrade.
    let socket = at.state().unwrap()["keeper"]["socket"].as_str().unwrap().to_owned();
    let silent: Vec<Channel> = (0..20).map(|_| Channel::connect(Path::new(&socket)).unwrap()).collect();
    at.kill_server();
    reads_on(&open, 3);
    at.upgrade();
    reads_on(&open, 3);
    drop(silent);
}

/// A mount that is asked for with a field more or less is refused by name, and the others stay.
#[test]
fn a_shared_mount_with_an_unknown_option_is_refused() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let reference = registry.reference("app", "1");
    let at = sandbox.mount_with(&reference, "mnt", &["--share"]);
    let open = File::open(at.join("d/3")).unwrap();
    let run = sandbox.path().join("run/peelfs");
    let socket = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let socket = socket.into_iter().find(|path| path.extension().is_some_and(|name| name == "share")).unwrap();
    let other = sandbox.mount_point("other");
    let spec = json!({
        "image": {"reference": reference, "platform": null, "offline": false, "insecure": false, "ca": [],
            "authfile": null, "cache_dir": sandbox.cache(), "cache_size": null,
            "surroundings": {"home": null, "xdg_runtime_dir": null, "xdg_config_home": null, "docker_config": null,
                "registry_auth_file": null, "path": null, "uid": 0}},
        "at": other.path, "log": null,
        "kernel": {"allow_other": false, "allow_root": false, "suid": false, "dev": false, "noexec": true, "let_cpus_sleep": false},
        "policy": {"verify": "strict", "prefetch": "none", "on_outage": "offline", "wait": true, "passthrough": false},
    });
    let ask = |spec: &Value| {
        let channel = Channel::connect(&socket).unwrap();
        answer(&channel, &json!({"versions": [2, 1], "program": "peelfs 9"}));
        let mut told = answer(&channel, &json!({"mount": spec}));
        while told.contains("progress") {
            told = String::from_utf8(channel.receive().unwrap().unwrap().0).unwrap();
        }
        told
    };
    let mut unknown = spec.clone();
    unknown["policy"]["only_signed"] = json!(true);
    let mut missing = spec.clone();
    missing["kernel"].as_object_mut().unwrap().remove("noexec");
    for (spec, why) in [(unknown, "unknown field `only_signed`"), (missing, "missing field `noexec`")] {
        let told = ask(&spec);
        assert!(told.contains("failed") && told.contains(why), "{told}");
        assert!(!other.is_mounted());
    }
    // A request that could not be handed to the next process is refused before it is acted on.
    let long: Vec<String> = (0..16).map(|number| format!("/{number}{}", "x".repeat(3900))).collect();
    let options: Vec<String> = long.iter().map(|path| format!("--ca={path}")).collect();
    let mut more = vec!["--share"];
    more.extend(options.iter().map(String::as_str));
    let output = other.try_mount(&reference, &more);
    assert!(said(&output).contains("can be sent"), "{}", said(&output));
    assert!(!other.is_mounted());
    reads_on(&open, 3);
    assert_eq!(ask(&spec), r#""ready""#);
    assert!(other.is_mounted());
    at.kill_server();
    reads_on(&open, 3);
    assert!(load::read_anew(&other.join("d/5")).unwrap() == content(5));
}

/// A program that speaks another version, or none, is refused with the reason, and the server before goes on.
#[test]
fn an_upgrade_to_another_wire_version_is_refused() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount(&registry.reference("app", "1"), "mnt");
    let open = File::open(at.join("d/3")).unwrap();
    let server = at.server();
    let newer = program(&sandbox, "newer", r#"s.recv(65536); s.send(b'{"refused":{"why":"it speaks 98 and 99"}}')"#);
    // It answers as if it had been offered what it was not.
    let liar = program(&sandbox, "liar", r#"s.recv(65536); s.send(b'{"version":99}'); s.recv(65536)"#);
    let garbled = program(&sandbox, "garbled", r#"s.recv(65536); s.send(b'hello'); s.recv(65536)"#);
    // It agrees and then does not understand what it is to take over.
    let older = program(
        &sandbox,
        "older",
        r#"s.recv(65536); s.send(b'{"version":1}'); s.recv(65536); s.recv(65536); s.send(b'{"refused":{"number":1,"why":"unknown field `spec`"}}'); s.recv(65536)"#,
    );
    for (program, why) in [
        (newer, "it speaks 98 and 99"),
        (liar, "99"),
        (garbled, "cannot be parsed"),
        (older, "unknown field `spec`"),
        ("/bin/true".into(), "the other process is gone"),
        ("/nowhere".into(), "No such file"),
    ] {
        let own = json!({"versions": [1], "program": "peelfs 0.0"});
        let answers = say_to_keeper(&at, &[own, json!({"upgrade": {"program": program}})]);
        assert!(answers[1].contains("refused") && answers[1].contains(why), "{program:?}: {answers:?}");
        assert_eq!(at.server(), server);
        reads_on(&open, 3);
    }
    at.upgrade();
    reads_on(&open, 3);
}

/// A program that does what `script` says with the channel `s` to its keeper.
fn program(sandbox: &Sandbox, name: &str, script: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = sandbox.path().join(name);
    let head = "#!/usr/bin/env python3\nimport socket\ns = socket.socket(fileno=0)\n";
    std::fs::write(&path, format!("{head}{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A server chooses a version that it supports, and refuses messages that it cannot parse.
#[test]
fn a_server_speaks_the_version_that_both_know() {
    let start = |offer: Value| {
        let (own, other) = Channel::pair().unwrap();
        let mut command = std::process::Command::new(support::sandbox::program());
        let child = command.args(["host", "server"]).stdin(other).stderr(std::process::Stdio::piped()).spawn().unwrap();
        drop(command);
        let answer = answer(&own, &offer);
        (own, child, answer)
    };
    let (own, child, chosen) = start(json!({"versions": [1, 2, 3], "program": "peelfs 3", "more": true}));
    assert_eq!(chosen, r#"{"version":1}"#);
    let refused = answer(&own, &json!({"begin": {"keeper": {"pid": 1, "socket": "/x"}, "mounts": 0, "log": null}}));
    assert!(refused.contains("missing field `shared`"), "{refused}");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
    let (own, child, refused) = start(json!({"versions": [2], "program": "peelfs 3"}));
    assert!(refused.contains("refused") && refused.contains("peelfs 3"), "{refused}");
    drop(own);
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("wire versions [2]"), "{output:?}");
}

/// Lets a process go on when dropped.
struct Stopped(i32);

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(Pid::from_raw(self.0).unwrap(), Signal::CONT).unwrap();
    }
}

/// A mount that reads a layer from a registry that falls silent, and a second one that can have it from another.
fn while_a_first_pass_stands_still(more: &[&str], disturb: impl FnOnce(&MountPoint<'_>) -> Option<Stopped>) {
    let (sandbox, silent, well) = (Sandbox::new(), registry(), registry());
    let gate = Gate::new();
    silent.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 1_000, gate: gate.clone() }));
    let mount = |registry: &Registry, name| {
        let at = sandbox.mount_point(name);
        let output = at.try_mount(&registry.reference("app", "1"), more);
        assert!(output.status.success(), "{}", said(&output));
        at
    };
    let first = mount(&silent, "first");
    assert!(silent.wait_until(|log| log.iter().any(|asked| asked.is_blob())));
    let stopped = disturb(&first);
    let second = mount(&well, "second");
    let begun = std::time::Instant::now();
    read_anew(&second.path, 3);
    let waited = begun.elapsed();
    eprintln!("the second mount waited for {waited:.1?}");
    assert!(waited < Duration::from_secs(40), "it waited as long as for a source that is away");
    silent.faults().clear();
    drop(stopped);
    gate.open();
    for at in [&first, &second] {
        (0..FILES).for_each(|number| read_anew(&at.path, number));
        at.unmount();
    }
    assert!(sandbox.run(["cache", "verify"]).status.success());
    assert!(sandbox.bucket("tmp").is_empty());
}

#[test]
fn the_first_pass_of_a_stopped_process_is_taken_over() {
    if cannot_mount() {
        return;
    }
    while_a_first_pass_stands_still(&[], |first| {
        let server = first.server();
        kill_process(Pid::from_raw(server).unwrap(), Signal::STOP).unwrap();
        Some(Stopped(server))
    });
}

#[test]
fn a_first_pass_whose_source_is_silent_is_taken_over() {
    if cannot_mount() {
        return;
    }
    while_a_first_pass_stands_still(&[], |_| None);
    while_a_first_pass_stands_still(&["--share"], |_| None);
}

/// The directory that a mount was asked for from can be unmounted while the mount is served.
#[test]
fn a_mount_leaves_the_directory_it_was_asked_for_from() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let disk = sandbox.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).arg(&disk).output().unwrap();
        assert!(output.status.success(), "{program}: {}", said(&output));
    };
    for (name, option) in [("a", None), ("b", Some("--share")), ("c", Some("--no-keeper"))] {
        run("mount", &["-t", "tmpfs", "none"]);
        let at = sandbox.mount_point(name);
        let mut mount = sandbox.peelfs(["mount", "--wait", &registry.reference("app", "1")]);
        let output = mount.arg(format!("../mnt/{name}")).args(option).current_dir(&disk).output().unwrap();
        assert!(output.status.success(), "{option:?}: {}", said(&output));
        run("umount", &[]);
        read_anew(&at.path, 3);
        at.unmount();
    }
}
