//! The image store: podman and buildah with images that were never pulled.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use peelfs::fuse::mounts;
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::sandbox::{Sandbox, cannot_mount, is_missing, said};

use crate::containers::system;

/// A served store with engines that use it; ended when dropped.
pub(super) struct Store<'a> {
    sandbox: &'a Sandbox,
    pub(super) at: PathBuf,
    keeper: Child,
}

impl<'a> Store<'a> {
    fn serve(sandbox: &'a Sandbox) -> Self {
        Self::serve_at(sandbox, sandbox.path().join("store"), &[])
    }

    /// A store in another directory, served with further options.
    pub(super) fn serve_at(sandbox: &'a Sandbox, at: PathBuf, more: &[&str]) -> Self {
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/runroot\"\n[storage.options]\nadditionalimagestores = [\"{1}\"]\n",
            sandbox.path().display(),
            at.display()
        );
        std::fs::write(sandbox.path().join("storage.conf"), storage).unwrap();
        let keeper = sandbox.peelfs(["store", "serve"]).args(more).arg(&at).stderr(Stdio::inherit()).spawn().unwrap();
        let store = Self { sandbox, at, keeper };
        store.wait_until_served();
        store
    }

    fn serve_again(&mut self) {
        self.keeper = self.sandbox.peelfs(["store", "serve"]).arg(&self.at).spawn().unwrap();
        self.wait_until_served();
    }

    fn wait_until_served(&self) {
        let begun = Instant::now();
        while self.state().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the store is not served");
            support::pause();
        }
    }

    /// What `peelfs status` says of it, if a process serves it.
    fn state(&self) -> Option<Value> {
        let output = self.sandbox.peelfs(["status", "--json"]).arg(&self.at).output().unwrap();
        let state: Value = serde_json::from_slice(&output.stdout).ok()?;
        state["pid"].is_i64().then_some(state)
    }

    /// The process that serves now.
    pub(super) fn server(&self) -> Pid {
        let begun = Instant::now();
        loop {
            if let Some(state) = self.state() {
                return Pid::from_raw(state["pid"].as_i64().unwrap() as i32).unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no process serves the store");
        }
    }

    /// Kills it; its keeper starts another one.
    pub(super) fn kill_server(&self) {
        kill_process(self.server(), Signal::KILL).unwrap();
    }

    fn kill_keeper(&mut self) {
        kill_process(Pid::from_child(&self.keeper), Signal::KILL).unwrap();
        self.keeper.wait().unwrap();
    }

    /// The process that unmounts the store when the others are gone.
    fn guard(&self) -> Pid {
        let begun = Instant::now();
        loop {
            let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.keeper.id())).unwrap();
            let guard = children.split_whitespace().find(|pid| {
                let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.contains("store-guard")
            });
            if let Some(pid) = guard {
                return Pid::from_raw(pid.parse().unwrap()).unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no guard runs");
            support::pause();
        }
    }

    fn wait_until_unmounted(&self) {
        let begun = Instant::now();
        while mounts::at(&self.at).is_some() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the store is left without a server");
            support::pause();
        }
    }

    /// `peelfs store` on it.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.sandbox.peelfs(["store"]);
        command
            .args(words)
            .arg("--store")
            .arg(&self.at)
            .env("CONTAINERS_STORAGE_CONF", self.sandbox.path().join("storage.conf"));
        command
    }

    pub(super) fn peelfs(&self, words: &[&str]) -> Output {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        output
    }

    /// An engine with a storage of its own.
    fn engine(&self, program: &str) -> Command {
        let directory = self.sandbox.path();
        let mut command = Command::new(program);
        command.env("CONTAINERS_STORAGE_CONF", directory.join("storage.conf")).env("HOME", directory.join("home"));
        command.env("XDG_RUNTIME_DIR", directory.join("run")).stdin(Stdio::null());
        if program == "podman" {
            command.args(["--events-backend=none", "--cgroup-manager=cgroupfs", "--runtime=runc"]);
        }
        command
    }

    pub(super) fn podman(&self, words: &[&str]) -> Output {
        self.engine("podman").args(words).output().unwrap()
    }

    pub(super) fn done(&self, words: &[&str]) -> String {
        let output = self.podman(words);
        assert!(output.status.success(), "podman {words:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs a container that is gone afterwards.
    pub(super) fn run(&self, words: &[&str]) -> String {
        let fixed =
            ["run", "--rm", "--pull=never", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"];
        self.done(&[&fixed, words].concat())
    }

    /// Names that `peelfs store list` shows.
    pub(super) fn listed(&self) -> Vec<String> {
        let output = self.peelfs(&["list"]);
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Names that engines show.
    pub(super) fn names(&self) -> Vec<String> {
        let images = self.done(&["images", "--format={{.Repository}}:{{.Tag}}"]);
        let mut names: Vec<String> = images.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.keeper), Signal::TERM);
        let _ = self.keeper.wait();
        let _ = self.engine("podman").args(["rm", "--all", "--force"]).output();
        while mounts::peelfs_at(&self.at).is_some()
            && peelfs::fuse::unmount(&self.at, peelfs::fuse::OpenFiles::Keep).is_ok()
        {}
    }
}

pub(super) fn cannot_run() -> bool {
    cannot_mount() || is_missing("podman") || is_missing("runc")
}

/// Three layers: one removes, one hides a directory, one replaces and links.
fn layered(config: Value) -> Option<Image> {
    let mut base = system()?;
    base.extend([
        Entry::dir("data"),
        Entry::file("data/old", "old\n"),
        Entry::file("data/kept", "kept\n"),
        Entry::dir("hidden"),
        Entry::file("hidden/below", "1"),
    ]);
    let second =
        [Entry::whiteout("data/old"), Entry::opaque("hidden"), Entry::dir("hidden"), Entry::file("hidden/above", "2")];
    let third = [Entry::file("data/new", "new\n"), Entry::hard_link("data/linked", "data/new")];
    let image = ImageBuilder::new().layer(LayerBuilder::of(&base)).layer(LayerBuilder::of(&second));
    Some(image.layer(LayerBuilder::of(&third)).config(config).build())
}

fn layout(directory: &Path, image: &Image) -> String {
    image.write_layout(directory, "1").unwrap();
    format!("oci:{}:1", directory.display())
}

/// The digest of an image's configuration.
fn config_of(image: &Image) -> String {
    let is_layer = |digest: &_| image.layers().iter().any(|layer| &layer.digest == digest);
    image.blobs().find(|(digest, _)| !is_layer(digest)).unwrap().0.to_string()
}

const SEEN: &str = "data/kept data/linked data/new hidden/above";

/// Nothing is pulled, and what containers, builds and commits see is the image.
#[test]
fn podman_runs_builds_and_commits_from_the_store() {
    let Some(image) = layered(json!({ "Cmd": ["sh", "-c", "cd /; echo data/* hidden/*"], "Env": ["PATH=/bin"] }))
    else {
        return;
    };
    if cannot_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let store = Store::serve(&sandbox);
    assert_eq!(store.names(), [""; 0], "no image yet");
    store.peelfs(&["add", &layout(&sandbox.path().join("layout"), &image), "--name", "localhost/app:1"]);
    assert_eq!(store.names(), ["localhost/app:1"]);
    assert_eq!(store.run(&["localhost/app:1"]), SEEN);
    let id = store.done(&["image", "inspect", "--format={{.Id}}", "app:1"]);
    assert_eq!(id, config_of(&image).trim_start_matches("sha256:"));
    assert_eq!(store.done(&["history", "--quiet", "app:1"]).lines().count(), 3);

    // A container that is kept: its changes are listed and committed.
    store.done(&[
        "run",
        "--name=c",
        "--network=none",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=4096:4096",
        "app:1",
        "sh",
        "-c",
        "echo x > /data/own; touch /etc/passwd",
    ]);
    let changed = store.done(&["diff", "c"]);
    assert!(changed.lines().any(|line| line == "A /data/own"), "{changed}");
    store.done(&["commit", "--quiet", "c", "localhost/committed:1"]);
    assert_eq!(
        store.run(&["localhost/committed:1", "sh", "-c", "cat /data/own; cd /; echo hidden/*"]),
        "x\nhidden/above"
    );
    store.done(&["rm", "c"]);

    let context = sandbox.path().join("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Containerfile"), "FROM localhost/app:1\nCOPY Containerfile /data/copied\n").unwrap();
    store.done(&["build", "--quiet", "--pull=never", "--tag=localhost/built:1", context.to_str().unwrap()]);
    assert_eq!(
        store.run(&["localhost/built:1", "sh", "-c", "cd /; echo data/*"]),
        "data/copied data/kept data/linked data/new"
    );
    if !is_missing("buildah") {
        let output =
            store.engine("buildah").args(["from", "--pull-never", "--name=b", "localhost/app:1"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let output =
            store.engine("buildah").args(["commit", "--quiet", "b", "localhost/by-buildah:1"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    // The store is no engine's to change.
    assert!(
        !store.podman(&["rmi", "--force", "localhost/app:1"]).status.success()
            || store.names().contains(&"localhost/app:1".into())
    );
}

/// Layers are saved as they were: with their digests, though they were never on disk as tars.
#[test]
fn saved_images_have_the_digests_they_had() {
    let Some(image) = layered(json!({ "Cmd": ["true"] })).filter(|_| !cannot_run()) else { return };
    let sandbox = Sandbox::new();
    let store = Store::serve(&sandbox);
    store.peelfs(&["add", "--wait", &layout(&sandbox.path().join("layout"), &image), "--name=localhost/app:1"]);
    let saved = sandbox.path().join("saved");
    store.done(&["save", "--quiet", "--format=oci-dir", "--output", saved.to_str().unwrap(), "localhost/app:1"]);
    let index: Value = serde_json::from_slice(&std::fs::read(saved.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(saved.join("blobs/sha256").join(digest)).unwrap()).unwrap();
    assert_eq!(manifest["config"]["digest"], config_of(&image));
    let output = sandbox.run(["inspect", &format!("oci:{}", saved.display())]);
    assert!(output.status.success(), "{}", said(&output));
    let archive = sandbox.path().join("saved.tar");
    store.done(&["save", "--quiet", "--output", archive.to_str().unwrap(), "localhost/app:1"]);
}

/// Images come and go while an engine has the store open; a name moves to the image that got it last.
#[test]
fn images_come_and_go_while_engines_look() {
    let Some(one) = layered(json!({ "Cmd": ["cat", "/data/kept"] })).filter(|_| !cannot_run()) else { return };
    let two = ImageBuilder::new().layer(LayerBuilder::of(&[Entry::file("only", "2")])).build();
    let sandbox = Sandbox::new();
    let [one, two] = [("one", &one), ("two", &two)].map(|(name, image)| layout(&sandbox.path().join(name), image));
    let mut store = Store::serve(&sandbox);
    store.peelfs(&["add", &one, "--name=localhost/a:1", "--name=localhost/b:1"]);
    store.peelfs(&["add", &two, "--name=localhost/b:1"]);
    assert_eq!(store.names(), ["localhost/a:1", "localhost/b:1"]);
    assert_ne!(store.done(&["images", "--quiet", "a:1"]), store.done(&["images", "--quiet", "b:1"]));
    let removed = store.peelfs(&["remove", "localhost/b:1"]);
    assert!(said(&removed).contains("`layer not known`, add it again"), "{}", said(&removed));
    assert_eq!(store.names(), ["localhost/a:1"]);
    assert_eq!(store.run(&["a:1"]), "kept");

    let missing = sandbox.peelfs(["store", "remove", "localhost/none:1", "--store"]).arg(&store.at).output().unwrap();
    assert_eq!(missing.status.code(), Some(3), "{}", said(&missing));

    // Without its server the directory is a store without images, and podman works.
    kill_process(Pid::from_child(&store.keeper), Signal::TERM).unwrap();
    store.keeper.wait().unwrap();
    assert!(mounts::peelfs_at(&store.at).is_none());
    assert_eq!(store.names(), [""; 0]);
    // What is added meanwhile is there when it is served again, and so is what was.
    let output = store.peelfs(&["add", &two, "--name=localhost/later:1"]);
    assert!(said(&output).contains("is not served; engines see the image once"), "{}", said(&output));
    store.serve_again();
    assert_eq!(store.names(), ["localhost/a:1", "localhost/later:1"]);
    assert_eq!(store.run(&["a:1"]), "kept");
}

/// An engine that pulls the same image, or one that shares layers, finds what the store has.
#[test]
fn a_pull_of_what_the_store_has_fetches_nothing() {
    let Some(image) = layered(json!({ "Cmd": ["cat", "/data/kept"] })).filter(|_| !cannot_run()) else { return };
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let reference = registry.reference("app", "1");
    let store = Store::serve(&sandbox);
    store.peelfs(&["add", "--wait", &reference]);
    assert_eq!(store.names(), std::slice::from_ref(&reference));
    registry.clear();
    store.done(&["pull", "--quiet", "--tls-verify=false", &reference]);
    let is_layer = |path: &str| image.layers().iter().any(|layer| path.ends_with(&layer.digest.to_string()));
    let fetched = registry.requests().into_iter().filter(|seen| seen.request.method == "GET");
    assert_eq!(fetched.filter(|seen| is_layer(&seen.request.path)).count(), 0, "its layers are the store's");
    assert_eq!(store.run(&[&reference]), "kept");
}

/// A directory that is no store, or a store that is already served, is refused, and nothing is mounted.
#[test]
fn a_directory_that_is_no_store_is_refused() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let at = sandbox.path().join("other");
    std::fs::create_dir_all(at.join("overlay-images")).unwrap();
    std::fs::write(at.join("db.sql"), "").unwrap();
    let output = sandbox.peelfs(["store", "serve"]).arg(&at).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("is neither an empty directory nor a store of peelfs"), "{}", said(&output));
    assert!(mounts::at(&at).is_none());
    assert!(!sandbox.path().join("other.images").exists(), "nothing is left");

    let store = Store::serve(&sandbox);
    let output = sandbox.peelfs(["store", "serve"]).arg(&store.at).output().unwrap();
    assert!(said(&output).contains("is already being served"), "{}", said(&output));
    let output = sandbox.peelfs(["store", "add", "oci:/nowhere", "--store"]).arg(&store.at).output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    let listed = sandbox.peelfs(["store", "list", "--store"]).arg(&store.at).output().unwrap();
    assert!(listed.status.success() && listed.stdout.is_empty(), "{}", said(&listed));
}

/// A container that reads a file whenever it is told a name of one.
struct Reader {
    podman: Child,
    said: std::io::Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn start(store: &Store, image: &str) -> Self {
        let mut podman = store.engine("podman");
        podman.args(["run", "--rm", "--interactive", "--pull=never", "--network=none"]);
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", image]);
        let script = "cd /files; exec 3<open; echo ready; while read name; do cat $name; done; cat <&3";
        let mut podman =
            podman.args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(podman.stdout.take().unwrap()).lines();
        let mut reader = Self { podman, said };
        assert_eq!(reader.next(), "ready");
        reader
    }

    fn next(&mut self) -> String {
        self.said.next().expect("the container has ended").unwrap()
    }

    fn read(&mut self, name: &str) -> String {
        writeln!(self.podman.stdin.as_mut().unwrap(), "{name}").unwrap();
        self.next()
    }

    /// Ends the container, whose files may be gone.
    fn leave(mut self) {
        drop(self.podman.stdin.take());
        self.podman.wait().unwrap();
    }

    /// Reads the file that was open all the time.
    fn end(mut self) -> String {
        drop(self.podman.stdin.take());
        let open = self.next();
        assert!(self.podman.wait().unwrap().success());
        open
    }
}

/// Files that no container has read before, and one that was open all the time, also of an image that was removed meanwhile; and
/// lists, numbers and answers to commands go on.
#[test]
fn containers_read_on_when_the_server_is_killed() {
    let Some(mut base) = system().filter(|_| !cannot_run()) else { return };
    base.push(Entry::dir("files"));
    base.extend(
        ["open", "0", "1", "2", "3", "4"].map(|name| Entry::file(format!("files/{name}"), format!("{name}\n"))),
    );
    let upper = [Entry::file("files/upper", "upper\n"), Entry::file("files/last", "last\n")];
    let image = ImageBuilder::new().layer(LayerBuilder::of(&base)).layer(LayerBuilder::of(&upper)).build();
    let other = ImageBuilder::new().layer(LayerBuilder::of(&[Entry::file("only", "2")])).build();
    let sandbox = Sandbox::new();
    let [image, other] =
        [("image", &image), ("other", &other)].map(|(name, image)| layout(&sandbox.path().join(name), image));
    let store = Store::serve(&sandbox);
    // Numbers that the next process would give other layers if it counted anew.
    store.peelfs(&["add", &other, "--name=localhost/gone:1"]);
    store.peelfs(&["add", &image, "--name=localhost/app:1"]);
    store.peelfs(&["remove", "localhost/gone:1"]);
    let mut reader = Reader::start(&store, "localhost/app:1");
    for name in ["0", "upper"] {
        store.kill_server();
        assert_eq!(reader.read(name), name);
    }
    // Engines, and commands that come before another process serves.
    store.kill_server();
    store.peelfs(&["add", &other, "--name=localhost/other:1"]);
    assert_eq!(store.names(), ["localhost/app:1", "localhost/other:1"]);
    store.peelfs(&["remove", "localhost/app:1"]);
    store.kill_server();
    assert_eq!(reader.read("1"), "1", "its image was removed");
    assert_eq!(store.names(), ["localhost/other:1"]);
    let upgraded = sandbox.peelfs(["upgrade"]).arg(&store.at).output().unwrap();
    assert!(upgraded.status.success(), "{}", said(&upgraded));
    assert_eq!(reader.read("last"), "last");
    store.peelfs(&["add", &image, "--name=localhost/app:1"]);
    store.kill_server();
    assert_eq!([reader.read("2"), reader.end()], ["2", "open"]);
    assert_eq!(store.run(&["localhost/app:1", "cat", "/files/3", "/files/upper"]), "3\nupper");
    let state = store.state().unwrap();
    assert_eq!((&state["takeovers"], &state["images"], &state["store"]), (&json!(6), &json!(2), &json!(true)));
}

/// A store whose keeper and server were killed has no images, and podman works: whichever is killed first, with a container that
/// reads from it, and if the guard was killed before.
#[test]
fn a_store_without_processes_is_an_empty_store() {
    let Some(mut base) = system().filter(|_| !cannot_run()) else { return };
    base.extend([Entry::dir("files"), Entry::file("files/open", "open\n")]);
    let image = ImageBuilder::new().layer(LayerBuilder::of(&base)).build();
    let sandbox = Sandbox::new();
    let mut store = Store::serve(&sandbox);
    store.peelfs(&["add", &layout(&sandbox.path().join("layout"), &image), "--name=localhost/app:1"]);
    // The keeper first: its server goes on.
    store.kill_keeper();
    assert_eq!(store.run(&["app:1", "cat", "/files/open"]), "open");
    store.kill_server();
    store.wait_until_unmounted();
    assert_eq!(store.names(), [""; 0]);
    store.serve_again();
    assert_eq!(store.run(&["app:1", "cat", "/files/open"]), "open");

    let reader = Reader::start(&store, "app:1");
    let guard = store.guard();
    kill_process(guard, Signal::KILL).unwrap();
    let begun = Instant::now();
    while store.guard() == guard {
        assert!(begun.elapsed() < Duration::from_secs(60), "no other guard is started");
    }
    let server = store.server();
    // A stopped keeper starts no other server.
    kill_process(Pid::from_child(&store.keeper), Signal::STOP).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    store.kill_keeper();
    store.wait_until_unmounted();
    assert_eq!(store.names(), [""; 0]);
    reader.leave();
    assert_eq!(store.done(&["ps", "--all", "--quiet"]), "", "its container is removed");
    store.serve_again();
    assert_eq!(store.run(&["app:1", "cat", "/files/open"]), "open");
}

/// Owners of files are mapped by the kernel: no file is copied to change its owner.
#[test]
fn containers_in_user_namespaces_copy_nothing() {
    let Some(image) = layered(json!({ "Cmd": ["stat", "-c", "%u:%g", "/etc/passwd", "/data/new"] })) else { return };
    if cannot_run() {
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let numbers: Vec<u32> = release.split(['.', '-']).map_while(|number| number.parse().ok()).collect();
    if numbers < vec![6, 12] {
        eprintln!("skipped: FUSE mounts with other owners need Linux 6.12");
        return;
    }
    let sandbox = Sandbox::new();
    let store = Store::serve(&sandbox);
    store.peelfs(&["add", &layout(&sandbox.path().join("layout"), &image), "--name=localhost/app:1"]);
    let mapped = ["--uidmap=0:100000:65536", "--gidmap=0:100000:65536"];
    assert_eq!(store.run(&[&mapped[..], &["localhost/app:1"]].concat()), "0:0\n0:0");
    let read = store.run(&[&mapped[..], &["localhost/app:1", "cat", "/proc/self/uid_map", "/data/kept"]].concat());
    assert_eq!(read.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536", "kept"]);
    // A copy would be a layer of the engine's own.
    let layers = std::fs::read_to_string(sandbox.path().join("root/overlay-layers/layers.json")).unwrap_or_default();
    assert!(["", "[]"].contains(&layers.trim()), "{layers}");
}
