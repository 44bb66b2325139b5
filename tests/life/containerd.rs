//! containerd with `peelfs snapshotter`: Debian's containerd, ctr and runc, pulls by `ctr`, by `ctr-remote` and by
//! Kubernetes' interface (CRI), and requests that no containerd sends.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use peelfs::fuse::mounts::{self, MountPoint};
use peelfs_loopback::auth::Access;
use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, IndexBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use peelfs_snapshotter::proto::containerd::services::snapshots::v1 as api;
use peelfs_snapshotter::proto::containerd::types;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::load::times;
use support::model::Tree;
use support::sandbox::{Sandbox, cannot_mount, is_missing, said, uninterrupted};
use support::walk::{self, Compare};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::containers::system;

type Client = api::snapshots_client::SnapshotsClient<Channel>;

/// Whether something is missing that these tests need.
fn cannot_run() -> bool {
    cannot_mount() || ["containerd", "ctr", "runc", "ctr-remote"].into_iter().any(is_missing)
}

/// A machine with a snapshotter and containerd; nothing is left of it when dropped, whatever happened.
struct Node {
    sandbox: Sandbox,
    /// Further ones of the snapshotter.
    options: &'static [&'static str],
    /// Listens for the snapshotter, as a socket unit of systemd does; it listens itself otherwise.
    listening: Option<UnixListener>,
    snapshotter: Option<Child>,
    containerd: Option<Child>,
}

impl Node {
    fn new() -> Self {
        Self::with("")
    }

    fn with(config: &str) -> Self {
        Self::with_options(config, &[])
    }

    /// With a snapshotter that has this configuration and these options; they may name files of the sandbox.
    fn with_options(config: &str, options: &'static [&'static str]) -> Self {
        let mut node = Self::new_without_any(config);
        node.options = options;
        node.start_snapshotter();
        node.start_containerd();
        node
    }

    /// With a socket that is there while the snapshotter is not.
    fn with_socket_unit() -> Self {
        let mut node = Self::new_without_any("");
        node.listening = Some(UnixListener::bind(node.socket()).unwrap());
        node.start_snapshotter();
        node.start_containerd();
        node
    }

    fn without_containerd(config: &str) -> Self {
        let mut node = Self::new_without_any(config);
        node.start_snapshotter();
        node
    }

    fn new_without_any(config: &str) -> Self {
        let sandbox = Sandbox::new();
        std::fs::write(sandbox.path().join("snapshotter.toml"), config).unwrap();
        Self { sandbox, options: &[], listening: None, snapshotter: None, containerd: None }
    }

    fn root(&self) -> PathBuf {
        self.sandbox.path().join("root")
    }

    fn socket(&self) -> PathBuf {
        self.sandbox.path().join("s.sock")
    }

    fn command(&self) -> Command {
        let mut command = self.sandbox.peelfs(["snapshotter", "--address"]);
        command.arg(self.socket()).arg("--root").arg(self.root());
        command.arg("--config").arg(self.sandbox.path().join("snapshotter.toml"));
        command.args(self.options).current_dir(self.sandbox.path()).stdin(Stdio::null());
        let Some(listening) = &self.listening else { return command };
        // It goes in as stdin; the shell puts it where it belongs.
        let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
        let mut unit = Command::new("sh");
        unit.args(["-c", script]).arg(command.get_program()).args(command.get_args());
        unit.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        unit.current_dir(self.sandbox.path()).stdin(OwnedFd::from(listening.try_clone().unwrap()));
        unit
    }

    /// Returns when it says that it is ready.
    fn start_snapshotter(&mut self) {
        let told = self.sandbox.path().join("notify");
        let _ = std::fs::remove_file(&told);
        let notify = UnixDatagram::bind(&told).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.sandbox.path().join("log")).unwrap();
        let mut command = self.command();
        command.env("NOTIFY_SOCKET", &told).stderr(log);
        self.snapshotter = Some(command.spawn().unwrap());
        let mut text = [0; 256];
        let length = uninterrupted(|| notify.recv(&mut text)).unwrap();
        assert_eq!(&text[..length], b"READY=1\n");
    }

    fn start_containerd(&mut self) {
        let path = self.sandbox.path().display();
        let config = format!(
            r#"
            version = 2
            root = "{path}/containerd"
            state = "{path}/state"
            [grpc]
              address = "{path}/c.sock"
            [ttrpc]
              address = "{path}/t.sock"
            [proxy_plugins.peelfs]
              type = "snapshot"
              address = "{path}/s.sock"
            [plugins."io.containerd.grpc.v1.cri"]
              disable_tcp_service = true
            [plugins."io.containerd.grpc.v1.cri".containerd]
              snapshotter = "peelfs"
              disable_snapshot_annotations = false
            "#
        );
        let file = self.sandbox.path().join("containerd.toml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.sandbox.path().join("c.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.containerd = Some(command.spawn().unwrap());
        let begun = Instant::now();
        while !self.ctr(["version"]).status.success() {
            assert!(begun.elapsed() < Duration::from_secs(60), "containerd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn client_of(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--address").arg(self.sandbox.path().join("c.sock")).stdin(Stdio::null());
        command.env("CONTAINERD_NAMESPACE", self.namespace());
        command
    }

    /// Runtimes keep the containers of all tests in one directory, by namespace.
    fn namespace(&self) -> String {
        let name = self.sandbox.path().file_name().unwrap().to_str().unwrap();
        format!("n{}", name.trim_matches('.').to_lowercase())
    }

    fn ctr<const N: usize>(&self, args: [&str; N]) -> Output {
        self.client_of("ctr").args(args).output().unwrap()
    }

    fn done<const N: usize>(&self, args: [&str; N]) -> String {
        let output = self.ctr(args);
        assert!(output.status.success(), "{args:?}: {}\n{}", said(&output), self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Pulls without labels that name the image.
    fn pull(&self, reference: &str) -> String {
        self.done(["image", "pull", "--plain-http", "--snapshotter", "peelfs", reference])
    }

    /// Pulls with labels of stargz.
    fn pull_lazily(&self, reference: &str) {
        let output = self.lazy_pull(reference).output().unwrap();
        assert!(output.status.success(), "{}\n{}", said(&output), self.log());
    }

    fn lazy_pull(&self, reference: &str) -> Command {
        let mut command = self.client_of("ctr-remote");
        command.args(["image", "rpull", "--plain-http", "--snapshotter", "peelfs", reference]);
        command
    }

    /// Pulls as Kubernetes does.
    fn pull_by_cri(&self, reference: &str) -> Result<(), tonic::Status> {
        self.pull_at("c.sock", reference, None)
    }

    /// The same, with a login, at a socket of the sandbox.
    fn pull_at(&self, socket: &str, reference: &str, login: Option<(&str, &str)>) -> Result<(), tonic::Status> {
        let image = Some(cri::ImageSpec { image: reference.to_owned() });
        let auth = login.map(|(username, password)| cri::AuthConfig {
            username: username.to_owned(),
            password: password.to_owned(),
        });
        let request = prost::Message::encode_to_vec(&cri::PullImageRequest { image, auth });
        self.image_service(socket, "PullImage", request).map(drop)
    }

    /// What a call of Kubernetes' image service is answered, byte by byte.
    fn image_service(&self, socket: &str, method: &str, request: Vec<u8>) -> Result<Vec<u8>, tonic::Status> {
        let socket = self.sandbox.path().join(socket);
        run(async {
            let mut client = tonic::client::Grpc::new(connect(&socket).await);
            client.ready().await.unwrap();
            let path = format!("/runtime.v1.ImageService/{method}").parse().unwrap();
            let answer = client.unary(tonic::Request::new(request), path, cri::Bytes).await;
            answer.map(tonic::Response::into_inner)
        })
    }

    /// The output of a command in a new container.
    fn run<const N: usize>(&self, reference: &str, name: &str, args: [&str; N]) -> String {
        self.run_in(&self.namespace(), reference, name, args)
    }

    fn run_in<const N: usize>(&self, namespace: &str, reference: &str, name: &str, args: [&str; N]) -> String {
        let mut command = self.client_of("ctr");
        command.args(["-n", namespace, "run", "--rm", "--snapshotter", "peelfs", reference, name]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}\n{}", said(&output), self.log());
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// A running container, and its root file system on this machine.
    fn start<const N: usize>(&self, reference: &str, name: &str, args: [&str; N]) -> PathBuf {
        let mut command = self.client_of("ctr");
        command.args(["run", "-d", "--snapshotter", "peelfs", reference, name]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}\n{}", said(&output), self.log());
        self.rootfs(name)
    }

    fn rootfs(&self, name: &str) -> PathBuf {
        let tasks = self.sandbox.path().join("state/io.containerd.runtime.v2.task");
        tasks.join(self.namespace()).join(name).join("rootfs")
    }

    fn end(&self, name: &str) {
        let _ = self.ctr(["task", "kill", "-s", "KILL", name]);
        let begun = Instant::now();
        while !self.ctr(["task", "rm", name]).status.success() {
            if self.ctr(["task", "ls", "-q"]).stdout.is_empty() || begun.elapsed() > Duration::from_secs(20) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.ctr(["container", "rm", name]);
    }

    /// Images that are mounted, by this snapshotter.
    fn lowers(&self) -> Vec<MountPoint> {
        let lowers = self.root().canonicalize().unwrap().join("lowers");
        mounts::all().into_iter().filter(|mount| mount.path.starts_with(&lowers) && mount.is_peelfs()).collect()
    }

    /// Directories of snapshots.
    fn directories(&self) -> usize {
        std::fs::read_dir(self.root().join("snapshots")).unwrap().count()
    }

    fn kill_snapshotter(&mut self) {
        let mut process = self.snapshotter.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn stop_containerd(&mut self) {
        let Some(mut process) = self.containerd.take() else { return };
        let _ = kill_process(Pid::from_child(&process), Signal::TERM);
        process.wait().unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.sandbox.path().join("log")).unwrap_or_default()
    }

    /// A client of the snapshotter itself.
    fn ask<T>(&self, ask: impl AsyncFnOnce(Client) -> T) -> T {
        let socket = self.socket();
        run(async { ask(Client::new(connect(&socket).await)).await })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.containerd.is_some() {
            let names = String::from_utf8(self.ctr(["task", "ls", "-q"]).stdout).unwrap();
            names.lines().for_each(|name| self.end(name));
        }
        self.stop_containerd();
        if let Some(mut process) = self.snapshotter.take() {
            let _ = kill_process(Pid::from_child(&process), Signal::TERM);
            let _ = process.wait();
        }
        let below = self.sandbox.path().canonicalize().unwrap();
        for mount in mounts::all().into_iter().rev().filter(|mount| mount.path.starts_with(&below)) {
            let _ = peelfs::fuse::unmount(&mount.path, peelfs::fuse::OpenFiles::Keep);
        }
    }
}

/// Of Kubernetes' interface, what a pull takes.
mod cri {
    use bytes::{Buf as _, BufMut as _};
    use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ImageSpec {
        #[prost(string, tag = "1")]
        pub(super) image: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct AuthConfig {
        #[prost(string, tag = "1")]
        pub(super) username: String,
        #[prost(string, tag = "2")]
        pub(super) password: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PullImageRequest {
        #[prost(message, optional, tag = "1")]
        pub(super) image: Option<ImageSpec>,
        #[prost(message, optional, tag = "2")]
        pub(super) auth: Option<AuthConfig>,
    }

    /// Messages as they are.
    pub(super) struct Bytes;

    impl Codec for Bytes {
        type Encode = Vec<u8>;
        type Decode = Vec<u8>;
        type Encoder = Self;
        type Decoder = Self;

        fn encoder(&mut self) -> Self {
            Self
        }

        fn decoder(&mut self) -> Self {
            Self
        }
    }

    impl Encoder for Bytes {
        type Item = Vec<u8>;
        type Error = tonic::Status;

        fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
            into.put_slice(&message);
            Ok(())
        }
    }

    impl Decoder for Bytes {
        type Item = Vec<u8>;
        type Error = tonic::Status;

        fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, tonic::Status> {
            Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
        }
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

/// A system in two layers: the second has whiteouts, an opaque directory, owners and modes.
fn layers() -> Option<Vec<Vec<Entry>>> {
    let mut base = system()?;
    base.extend([
        Entry::dir("data").mode(0o1777),
        Entry::file("data/old", "old"),
        Entry::file("data/kept", "kept"),
        Entry::dir("hidden"),
        Entry::file("hidden/below", "below"),
        Entry::file("bin/raised", "x").mode(0o4755),
    ]);
    let mut top = vec![
        Entry::dir("data").mode(0o2750).owner(1000, 1001),
        Entry::file("data/.wh.old", ""),
        Entry::dir("hidden"),
        Entry::file("hidden/.wh..wh..opq", ""),
        Entry::file("hidden/above", "above"),
        Entry::file("big", (0..900_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()),
    ];
    for mount in ["proc", "dev", "sys", "run", "tmp"] {
        top.push(Entry::dir(mount));
    }
    Some(vec![base, top])
}

fn image_of(layers: &[Vec<Entry>]) -> Image {
    let image = layers.iter().fold(ImageBuilder::new(), |image, layer| image.layer(LayerBuilder::of(layer)));
    image.config(json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] })).build()
}

/// Compares what a container sees, without what runtimes mount, with what the layers make.
fn assert_shows(layers: &[Vec<Entry>], root: &Path) {
    let wanted = Tree::of(layers.iter().map(Vec::as_slice)).seen();
    let lines = walk::differences(&wanted, &walk::seen(root).unwrap(), Compare::AsUnpacked);
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

fn registry_of(images: &[(&str, &Image)]) -> Registry {
    let catalog = images.iter().fold(Catalog::new(), |catalog, (name, image)| catalog.image(name, "1", image));
    Registry::start(catalog).unwrap()
}

/// `ctr image pull` does not name the image, so it is unpacked; all of it is removed with the image.
#[test]
fn a_plain_pull_is_unpacked_as_by_any_snapshotter() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let registry = registry_of(&[("app", &image_of(&layers))]);
    let reference = registry.reference("app", "1");
    let node = Node::new();
    node.pull(&reference);
    assert_eq!((node.directories(), node.lowers().len()), (2, 0));
    let root = node.start(&reference, "stays", ["sleep", "1000"]);
    assert_shows(&layers, &root);
    let said = node.run(&reference, "one", ["sh", "-c", "echo new > /data/new && cat /data/new /hidden/above"]);
    assert_eq!(said, "new\nabove");
    assert!(!root.join("data/new").exists(), "containers do not share what they write");
    // Both layers and the container; the big file makes most of it.
    let usage = node.done(["snapshot", "--snapshotter", "peelfs", "usage", "-b"]);
    let sizes: Vec<u64> =
        usage.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    assert!(sizes.iter().any(|size| (3_600_000..3_800_000).contains(size)), "{usage}");
    node.end("stays");
    node.done(["image", "rm", "--sync", &reference]);
    assert_eq!(node.done(["snapshot", "--snapshotter", "peelfs", "ls"]).lines().count(), 1);
    eventually(|| node.directories() == 0);
}

/// No layer is downloaded by containerd; eight containers lie on one mount, and each has what it writes for itself.
#[test]
fn an_image_that_is_named_is_mounted_once_for_all() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let registry = registry_of(&[("app", &image_of(&layers))]);
    let reference = registry.reference("app", "1");
    // By one process for all of it: the kernel may not take over meanwhile.
    let node = Node::with("kernel = false\n");
    node.pull_lazily(&reference);
    assert_eq!(node.directories(), 0, "nothing is unpacked");
    let roots: Vec<_> = (0..8).map(|number| node.start(&reference, &format!("c{number}"), ["sleep", "1000"])).collect();
    assert_eq!(node.lowers().len(), 1);
    roots.iter().for_each(|root| assert_shows(&layers, root));
    for (number, root) in roots.iter().enumerate() {
        std::fs::write(root.join("data/kept"), number.to_string()).unwrap();
    }
    for (number, root) in roots.iter().enumerate() {
        assert_eq!(std::fs::read_to_string(root.join("data/kept")).unwrap(), number.to_string());
        assert_eq!(std::fs::metadata(root.join("bin/raised")).unwrap().mode() & 0o7777, 0o4755);
    }
    (0..8).for_each(|number| node.end(&format!("c{number}")));
    node.done(["image", "rm", "--sync", &reference]);
    eventually(|| node.lowers().is_empty() && node.directories() == 0);
    assert_eq!(std::fs::read_dir(node.root().join("records")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(node.root().join("images")).unwrap().count(), 0);
}

/// Once all of it is cached, later containers of an image get a kernel mount.
#[test]
fn later_containers_lie_on_a_mount_of_the_kernel() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    if let Err(error) = peelfs::erofs::is_possible() {
        eprintln!("skipped: {error}");
        return;
    }
    let registry = registry_of(&[("app", &image_of(&layers))]);
    let reference = registry.reference("app", "1");
    let node = Node::new();
    node.pull_lazily(&reference);
    // It continues, and so does its server.
    let first = node.start(&reference, "first", ["sleep", "1000"]);
    node.run(&reference, "second", ["sh", "-c", "cat /big > /dev/null"]);
    eventually(|| node.lowers().iter().any(MountPoint::is_shown_by_kernel));
    let third = node.start(&reference, "third", ["sleep", "1000"]);
    assert_shows(&layers, &third);
    assert_shows(&layers, &first);
}

/// CRI has its own labels. An image whose layers are the lower layers of another one is mounted as that part.
#[test]
fn kubernetes_pulls_share_layers_and_mount_what_each_has() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let (whole, lower) = (image_of(&layers), image_of(&layers[..1]));
    let registry = registry_of(&[("whole", &whole), ("lower", &lower)]);
    let node = Node::new();
    node.pull_by_cri(&registry.reference("whole", "1")).unwrap();
    node.pull_by_cri(&registry.reference("lower", "1")).unwrap();
    assert_eq!(node.directories(), 0, "nothing is unpacked: {}", node.log());
    let run = |name: &str| {
        node.run_in(
            "k8s.io",
            &registry.reference(name, "1"),
            &format!("{}-{name}", node.namespace()),
            ["sh", "-c", "cat /data/*"],
        )
    };
    assert_eq!(run("whole"), "kept");
    assert_eq!(run("lower"), "keptold");
}

/// Layers on top of a mounted image may be unpacked: containerd treats the mounted ones as its own.
#[test]
fn a_layer_is_unpacked_on_layers_that_are_mounted() {
    let Some(mut layers) = layers().filter(|_| !cannot_run()) else { return };
    let base = image_of(&layers);
    layers.push(vec![Entry::file("data/third", "third"), Entry::file("hidden/.wh.above", "")]);
    let registry = registry_of(&[("base", &base), ("app", &image_of(&layers))]);
    let node = Node::new();
    node.pull_lazily(&registry.reference("base", "1"));
    node.pull(&registry.reference("app", "1"));
    assert_eq!(node.directories(), 1);
    let root = node.start(&registry.reference("app", "1"), "app", ["sleep", "1000"]);
    assert_shows(&layers, &root);
}

/// The decision is made before any layer is reported as present: no image is half present.
#[test]
fn an_image_that_cannot_be_mounted_is_unpacked() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let image = image_of(&layers);
    let registry = registry_of(&[("app", &image)]);
    let top = image.layers()[1].digest.clone();
    let node = Node::new();
    // For one who asks for a piece of the upper layer, it is not there.
    let asked = Target::matching(move |request| {
        request.path.ends_with(&top.to_string()) && request.header("range").is_some_and(|range| range.ends_with("-0"))
    });
    registry.faults().add(Rule::new(asked, Fault::status(404)));
    node.pull_lazily(&registry.reference("app", "1"));
    assert_eq!((node.directories(), node.lowers().len()), (2, 0), "{}", node.log());
    assert!(node.log().contains("this image is unpacked, not mounted"), "{}", node.log());
    assert_eq!(node.run(&registry.reference("app", "1"), "one", ["cat", "/hidden/above"]), "above");
}

/// Four pulls of one image and two of another on the same layers, all at once.
#[test]
fn pulls_at_the_same_time_find_each_other_s_layers() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let more = [layers.clone(), vec![vec![Entry::file("more", "more")]]].concat();
    let registry = registry_of(&[("app", &image_of(&layers)), ("more", &image_of(&more))]);
    let node = Node::new();
    let names = ["app", "more", "app", "app", "more", "app"].map(|name| registry.reference(name, "1"));
    let pulls: Vec<_> = names.iter().map(|name| node.lazy_pull(name).stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut pull in pulls {
        assert!(pull.wait().unwrap().success(), "{}", node.log());
    }
    assert_eq!(node.run(&names[1], "one", ["cat", "/more", "/data/kept"]), "morekept");
    assert_eq!(node.run(&names[0], "two", ["ls", "/hidden"]), "above");
}

/// A pulled image and a container outlive everything but the disk: no network is needed.
#[test]
fn after_a_reboot_containers_start_without_a_registry() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let registry = registry_of(&[("app", &image_of(&layers))]);
    let reference = registry.reference("app", "1");
    let mut node = Node::new();
    node.pull_lazily(&reference);
    node.start(
        &reference,
        "stays",
        ["sh", "-c", "cat /big > /data/copy; cat /data/copy | cat > /dev/null; sleep 1000"],
    );
    node.done(["task", "exec", "--exec-id", "x", "stays", "sh", "-c", "cat /big > /data/second"]);
    let _ = node.ctr(["task", "kill", "-s", "KILL", "stays"]);
    eventually(|| node.ctr(["task", "rm", "stays"]).status.success());
    node.stop_containerd();
    node.kill_snapshotter();
    for mount in node.lowers() {
        peelfs::fuse::unmount(&mount.path, peelfs::fuse::OpenFiles::Keep).unwrap();
    }
    drop(registry);
    node.start_snapshotter();
    node.start_containerd();
    node.done(["task", "start", "-d", "stays"]);
    let root = node.rootfs("stays");
    assert_eq!(std::fs::read(root.join("data/second")).unwrap(), std::fs::read(root.join("big")).unwrap());
    assert_eq!(node.run(&reference, "new", ["cat", "/hidden/above"]), "above");
    node.end("stays");
}

/// Containers under load see nothing of a snapshotter that is killed, and new ones start at once when it is back.
#[test]
fn a_killed_snapshotter_disturbs_no_container() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let kills = times("PEELFS_KILLS", 4);
    let containers = if kills > 10 { 8 } else { 2 };
    let registry = registry_of(&[("app", &image_of(&layers))]);
    let reference = registry.reference("app", "1");
    let mut node = Node::with_socket_unit();
    node.pull_lazily(&reference);
    // Each reads all of the image over and over, and says how often that failed.
    let script = "n=0; while ! test -e /stop; do cat /big /data/kept /hidden/above > /out 2>/err || echo bad >> /bad; \
                  stat /bin/* > /out || echo bad >> /bad; n=$((n+1)); echo $n > /count; done; echo ended > /ended; sleep 1000";
    let roots: Vec<_> =
        (0..containers).map(|number| node.start(&reference, &format!("c{number}"), ["sh", "-c", script])).collect();
    let begun = Instant::now();
    node.run(&reference, "usual", ["cat", "/hidden/above"]);
    let (usual, mut slowest) = (begun.elapsed(), Duration::ZERO);
    for kill in 0..kills {
        let begun = Instant::now();
        node.kill_snapshotter();
        node.start_snapshotter();
        assert_eq!(node.run(&reference, &format!("new{kill}"), ["cat", "/hidden/above"]), "above");
        slowest = slowest.max(begun.elapsed());
    }
    for root in &roots {
        std::fs::write(root.join("stop"), "").unwrap();
        eventually(|| root.join("ended").exists());
        let errors = std::fs::read_to_string(root.join("bad")).unwrap_or_default();
        assert_eq!(errors, "", "errors in a container: {}", std::fs::read_to_string(root.join("err")).unwrap());
        assert_ne!(std::fs::read_to_string(root.join("count")).unwrap().trim(), "0");
    }
    println!(
        "{kills} kills under {containers} containers: 0 errors, slowest new container {slowest:.2?}, usual {usual:.2?}"
    );
}

/// containerd does not pass its login on; a provider of the kubelet is asked for one.
#[test]
fn logins_come_from_providers_of_the_kubelet() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let registry = registry_of(&[("app", &image_of(&layers))]);
    registry.set_access(Access::Basic { user: "robot".into(), password: "p\"w".into() });
    let host = registry.addr();
    let scripts = tempfile::tempdir().unwrap();
    let script = scripts.path().join("provider");
    let answer = format!(r#"{{"auth":{{"{host}":{{"username":"robot","password":"p\"w"}}}}}}"#);
    std::fs::write(
        &script,
        format!("#!/bin/sh\ngrep -q '\"image\":\"{host}\"' && echo \"$1\" > $0.asked && echo '{answer}'\n"),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[[credential-provider]]\nmatch = [\"127.0.*.1:{}\"]\ncommand = \"{}\"\nargs = [\"get-credentials\"]\n",
        host.port(),
        script.display()
    );
    let node = Node::with(&config);
    let reference = registry.reference("app", "1");
    let pulled = node.lazy_pull(&reference).args(["--user", "robot:p\"w"]).output().unwrap();
    assert!(pulled.status.success(), "{}", said(&pulled));
    assert_eq!(node.directories(), 0, "{}", node.log());
    assert_eq!(std::fs::read_to_string(scripts.path().join("provider.asked")).unwrap(), "get-credentials\n");
    assert_eq!(node.run(&reference, "one", ["cat", "/hidden/above"]), "above");
}

/// The kubelet's logins come with its pulls, which pass through the snapshotter to containerd.
#[test]
fn pulls_of_kubernetes_bring_logins_for_their_image() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let registry = registry_of(&[("team/app", &image_of(&layers)), ("other", &image_of(&layers[..1]))]);
    registry.set_access(Access::Basic { user: "robot".into(), password: "s3cret".into() });
    let (app, other) = (registry.reference("team/app", "1"), registry.reference("other", "1"));
    let mut node = Node::with_options("", &["--image-service", "c.sock"]);
    let (right, wrong) = (Some(("robot", "s3cret")), Some(("robot", "wrong")));
    // An image whose login only containerd has is unpacked.
    node.pull_at("c.sock", &other, right).unwrap();
    assert_eq!((node.directories(), node.lowers().len()), (1, 0), "{}", node.log());
    assert!(node.pull_at("s.sock", &app, wrong).is_err());
    assert!(node.pull_at("s.sock", &app, None).is_err());
    node.pull_at("s.sock", &app, right).unwrap();
    assert_eq!(node.directories(), 1, "{}", node.log());
    // The process that serves the image logs in with it, at any time.
    let name = format!("{}-app", node.namespace());
    let said = |node: &Node| node.run_in("k8s.io", &app, &name, ["cat", "/hidden/above", "/data/kept"]);
    assert_eq!(said(&node), "abovekept");
    for (method, request) in [("ListImages", vec![]), ("ImageFsInfo", vec![]), ("ImageStatus", vec![0x0a, 0])] {
        let [direct, passed] = ["c.sock", "s.sock"].map(|socket| node.image_service(socket, method, request.clone()));
        // Images come in any order.
        let outcome = |answer: Result<Vec<u8>, tonic::Status>| {
            answer
                .map(|mut bytes| {
                    bytes.sort_unstable();
                    bytes
                })
                .map_err(|status| (status.code(), status.message().to_owned()))
        };
        let (direct, passed) = (outcome(direct), outcome(passed));
        // The time stands in it.
        assert!(direct == passed || method == "ImageFsInfo" && passed.is_ok(), "{method}: {direct:?} {passed:?}");
    }
    let kept = Command::new("grep").args(["-r", "s3cret"]).arg(node.root()).output().unwrap();
    assert!(kept.stdout.is_empty(), "nothing of it is on disk: {}", said_by(&kept));
    assert!(!node.log().contains("s3cret"));

    node.stop_containerd();
    let away = node.image_service("s.sock", "ListImages", vec![]).unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{away}");
    assert!(away.message().contains("containerd cannot be reached"), "{away}");
}

fn said_by(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A verifier that allows what has this line in `allowed`, and notes what it was asked.
fn verifier(directory: &Path, allowed: &[String]) {
    std::fs::create_dir_all(directory).unwrap();
    let script = directory.join("verifier");
    std::fs::write(directory.with_extension("allowed"), allowed.join("\n") + "\n").unwrap();
    let text = "#!/bin/sh\necho \"$2 $4\" >> \"${0%/*}.asked\"\ngrep -qxF \"$4\" \"${0%/*}.allowed\" || { echo not signed; exit 1; }\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Verifiers are asked about the index that an image's name leads to; what they refuse is not unpacked either.
#[test]
fn verifiers_are_asked_about_what_a_name_leads_to() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let image = image_of(&layers);
    let index = IndexBuilder::new().image(&image).attestation(&image).build();
    let lone = image_of(&layers[..1]);
    let registry = registry_of(&[("index", &index), ("lone", &lone)]);
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("verifiers");
    verifier(&directory, &[]);
    let node = Node::with(&format!("verifier-dir = \"{}\"\n", directory.display()));
    let pull = |name: &str| node.pull_by_cri(&registry.reference(name, "1"));
    for name in ["index", "lone"] {
        let refused = pull(name).unwrap_err();
        assert!(refused.message().contains("not signed"), "{refused}");
    }
    assert_eq!((node.directories(), node.lowers().len()), (0, 0), "{}", node.log());
    verifier(&directory, &[index.root().digest.to_string(), lone.root().digest.to_string()]);
    for name in ["index", "lone"] {
        pull(name).unwrap();
    }
    assert_eq!(node.directories(), 0, "{}", node.log());
    let asked = std::fs::read_to_string(directory.with_extension("asked")).unwrap();
    let line = |name: &str, root: &Image| format!("{} {}", registry.reference(name, "1"), root.root().digest);
    assert!(asked.lines().any(|asked| asked == line("index", &index)), "{asked}");
    assert!(asked.lines().any(|asked| asked == line("lone", &lone)), "{asked}");
    assert!(!asked.contains(&image.root().digest.to_string()), "{asked}");
}

/// containerd removes unknown snapshots: a second containerd, or a second name, must not use the snapshotter.
#[test]
fn a_second_containerd_is_told_to_go() {
    let Some(layers) = layers().filter(|_| !cannot_run()) else { return };
    let registry = registry_of(&[("app", &image_of(&layers))]);
    let node = Node::new();
    node.pull_lazily(&registry.reference("app", "1"));
    let refused = node.ask(async |mut client| client.cleanup(api::CleanupRequest::default()).await).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("needs its own"), "{}", refused.message());
    assert_eq!(node.run(&registry.reference("app", "1"), "one", ["cat", "/hidden/above"]), "above");
}

fn prepare(key: &str, parent: &str, labels: &[(&str, &str)]) -> api::PrepareSnapshotRequest {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    api::PrepareSnapshotRequest { snapshotter: "peelfs".into(), key: key.into(), parent: parent.into(), labels }
}

fn commit(name: &str, key: &str) -> api::CommitSnapshotRequest {
    api::CommitSnapshotRequest { name: name.into(), key: key.into(), ..Default::default() }
}

fn option<'a>(mounts: &'a [types::Mount], name: &str) -> Option<&'a str> {
    mounts[0].options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// containerd evaluates the codes.
#[test]
fn requests_are_answered_as_containerd_expects() {
    if cannot_mount() {
        return;
    }
    let node = Node::without_containerd("");
    node.ask(async |mut of| {
        let base = of.prepare(prepare("k/1", "", &[])).await.unwrap().into_inner().mounts;
        assert_eq!((base[0].r#type.as_str(), base[0].options.join(",").as_str()), ("bind", "rw,rbind"));
        std::fs::write(Path::new(&base[0].source).join("file"), vec![1; 1 << 20]).unwrap();
        std::fs::set_permissions(&base[0].source, std::fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::chown(&base[0].source, Some(7), Some(8)).unwrap();
        let code = |answer: Result<_, tonic::Status>| answer.map(|_: tonic::Response<_>| ()).unwrap_err().code();
        assert_eq!(code(of.prepare(prepare("k/1", "", &[])).await), Code::AlreadyExists);
        assert_eq!(code(of.prepare(prepare("k/2", "none", &[])).await), Code::NotFound);
        assert_eq!(code(of.prepare(prepare("k/2", "k/1", &[])).await), Code::FailedPrecondition);
        of.commit(commit("base", "k/1")).await.unwrap();
        assert_eq!(
            code(of.commit(commit("other", "k/1")).await.map(|_| tonic::Response::new(Default::default()))),
            Code::NotFound
        );
        let upper = of.prepare(prepare("k/2", "base", &[])).await.unwrap().into_inner().mounts;
        assert_eq!(option(&upper, "lowerdir"), Some(base[0].source.as_str()));
        let made = std::fs::metadata(option(&upper, "upperdir").unwrap()).unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o751, 7, 8));
        let view = api::ViewSnapshotRequest { key: "v".into(), parent: "base".into(), ..Default::default() };
        let view = of.view(view).await.unwrap().into_inner().mounts;
        assert_eq!((view[0].r#type.as_str(), view[0].options.join(",").as_str()), ("bind", "ro,rbind"));
        // In a user namespace, its root owns what is written.
        let mapped = [
            ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
            ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
        ];
        let mapped = of.prepare(prepare("k/3", "base", &mapped)).await.unwrap().into_inner().mounts;
        assert_eq!(
            (option(&mapped, "uidmap"), option(&mapped, "gidmap")),
            (Some("0:100000:65536"), Some("0:200000:65536"))
        );
        let made = std::fs::metadata(option(&mapped, "upperdir").unwrap()).unwrap();
        assert_eq!((made.uid(), made.gid()), (100_000, 200_000));
        // Where containerd has changed the owners itself, they are not changed again.
        of.prepare(prepare("k/base-remap", "base", &[])).await.unwrap();
        of.commit(commit("remapped", "k/base-remap")).await.unwrap();
        let own = [("containerd.io/snapshot/uidmapping", "0:1:5"), ("containerd.io/snapshot/gidmapping", "0:1:5")];
        let own = of.prepare(prepare("k/4", "remapped", &own)).await.unwrap().into_inner().mounts;
        assert_eq!(option(&own, "uidmap"), None);

        let usage = api::UsageRequest { key: "base".into(), ..Default::default() };
        let usage = of.usage(usage).await.unwrap().into_inner();
        assert!(usage.inodes == 2 && (1 << 20..(1 << 20) + 20_000).contains(&usage.size), "{usage:?}");
        let remove = |key: &str| api::RemoveSnapshotRequest { key: key.into(), ..Default::default() };
        assert_eq!(of.remove(remove("base")).await.unwrap_err().code(), Code::FailedPrecondition);
        let info =
            api::Info { name: "base".into(), labels: HashMap::from([("a".into(), "b".into())]), ..Default::default() };
        let update = api::UpdateSnapshotRequest { info: Some(info), ..Default::default() };
        assert_eq!(of.update(update).await.unwrap().into_inner().info.unwrap().labels.len(), 1);
        let update = api::UpdateSnapshotRequest {
            info: Some(api::Info { name: "base".into(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["parent".into()] }),
            ..Default::default()
        };
        assert_eq!(of.update(update).await.unwrap_err().code(), Code::InvalidArgument);
        for key in ["k/2", "k/3", "k/4", "v", "remapped", "base"] {
            of.remove(remove(key)).await.unwrap();
        }
        assert_eq!(of.remove(remove("base")).await.unwrap_err().code(), Code::NotFound);
        of.cleanup(api::CleanupRequest::default()).await.unwrap();
    });
    eventually(|| node.directories() == 0);
}

/// Labels come from any client that pulls: none makes the snapshotter read this machine, or hang, or fail.
#[test]
fn hostile_labels_make_an_ordinary_snapshot() {
    if cannot_mount() {
        return;
    }
    let Some(layers) = layers() else { return };
    let (image, other) = (image_of(&layers), image_of(&layers[..1]));
    let registry = registry_of(&[("app", &image), ("other", &other)]);
    let node = Node::without_containerd("resolve-within = 3\n");
    let (app, other) = (registry.reference("app", "1"), registry.reference("other", "1"));
    let chain = image.layers()[0].diff_id.to_string();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("127.0.0.1:{}/app:1", silent.local_addr().unwrap().port());
    let wrong = format!("sha256:{}", "0".repeat(64));
    let long = "x".repeat(4000);
    let name = |label: &str| format!("containerd.io/snapshot/{label}");
    let cases: [(&str, &str, Option<&str>); 9] = [
        (&wrong, &app, None),
        (&image.layers()[1].diff_id.to_string(), &other, None),
        (&chain, "oci:/etc", None),
        (&chain, "dir:/root", None),
        (&chain, "../../etc", None),
        (&chain, &long, None),
        (&chain, &app, Some(&wrong)),
        (&chain, &silent, None),
        ("sha256:short", &app, None),
    ];
    node.ask(async |mut of| {
        assert_eq!(of.prepare(prepare("", "", &[])).await.unwrap_err().code(), Code::InvalidArgument);
        for (number, (chain, image, manifest)) in cases.into_iter().enumerate() {
            let (image_ref, digest) = (name("cri.image-ref"), name("cri.manifest-digest"));
            let mut labels = vec![("containerd.io/snapshot.ref", chain), (image_ref.as_str(), image)];
            labels.extend(manifest.map(|manifest| (digest.as_str(), manifest)));
            let mounts = of.prepare(prepare(&format!("k{number}"), "", &labels)).await.unwrap().into_inner().mounts;
            assert_eq!(mounts[0].r#type, "bind", "{chain} {image}");
        }
        // The right ones are answered for, as often as they are asked for.
        let image_ref = name("cri.image-ref");
        let labels = [("containerd.io/snapshot.ref", chain.as_str()), (image_ref.as_str(), app.as_str())];
        for _ in 0..2 {
            assert_eq!(of.prepare(prepare("right", "", &labels)).await.unwrap_err().code(), Code::AlreadyExists);
        }
        let filters = vec![format!("labels.\"containerd.io/snapshot.ref\"=={chain},parent==\"\"")];
        let mut pages =
            of.list(api::ListSnapshotsRequest { filters, ..Default::default() }).await.unwrap().into_inner();
        let found = pages.message().await.unwrap().unwrap().info;
        let committed = found.iter().filter(|info| info.kind() == api::Kind::Committed).count();
        assert_eq!((committed, pages.message().await.unwrap().is_none()), (1, true));
    });
    assert_eq!(node.lowers().len(), 0, "one layer of an image was asked for, not all");
    for label in ["cri.image-ref` with \"oci:/etc\"", ".ref` with \"sha256:short\""] {
        assert!(node.log().contains(label), "why is in the log: {}", node.log());
    }
}

/// An image is asked about again after a while only: each of its layers says why it is unpacked.
#[test]
fn a_refused_image_says_why_for_each_of_its_layers() {
    if cannot_mount() {
        return;
    }
    let Some(layers) = layers() else { return };
    let image = image_of(&layers);
    let registry = registry_of(&[("app", &image)]);
    let absent = registry.reference("app", "2");
    let node = Node::without_containerd("");
    let chain = image.layers()[0].diff_id.to_string();
    let labels = [("containerd.io/snapshot.ref", &chain[..]), ("containerd.io/snapshot/cri.image-ref", &absent[..])];
    node.ask(async |mut of| {
        for key in ["one", "two"] {
            of.prepare(prepare(key, "", &labels)).await.unwrap();
        }
    });
    let log = node.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("this image is unpacked, not mounted")).collect();
    assert_eq!(told.len(), 2, "{log}");
    assert!(told.iter().all(|line| line.contains(&absent) && line.contains("404 Not Found")), "{log}");
    assert!(told[1].contains("asked again 60 s after that"), "{log}");
}

/// One line that names the thing, one hint; nothing is made.
#[test]
fn what_a_snapshotter_cannot_use_is_said_in_one_line() {
    if cannot_mount() {
        return;
    }
    let node = Node::without_containerd("");
    let fresh = node.sandbox.path().join("fresh");
    let foreign = node.sandbox.path().join("foreign");
    std::fs::create_dir_all(foreign.join("snapshots/1/fs")).unwrap();
    let config = node.sandbox.path().join("bad.toml");
    std::fs::write(&config, "cache-size = \"much\"\n").unwrap();
    let (socket, other) = (node.socket(), node.sandbox.path().join("other.sock"));
    let none = node.sandbox.path().join("none/s.sock");
    let cases: [(&Path, &Path, Option<&Path>, &str); 6] = [
        (&socket, &fresh, None, "is in use: another process listens there"),
        (&other, &node.root(), None, "is in use by another snapshotter"),
        (&other, &foreign, None, "is not empty, and not a directory of this snapshotter"),
        (&other, &fresh, Some(&config), "line 1: `much` is not a size"),
        (&none, &fresh, None, "cannot listen at"),
        (&config, &fresh, None, "exists and is no socket"),
    ];
    for (address, root, config, wanted) in cases {
        let mut command = node.sandbox.peelfs(["snapshotter", "--address"]);
        command.arg(address).arg("--root").arg(root);
        config.map(|config| command.arg("--config").arg(config));
        let output = command.output().unwrap();
        assert!(!output.status.success(), "{wanted}");
        let text = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{text}");
        assert!(lines[0].contains(wanted), "{text}");
        assert!(!other.exists() && !fresh.exists(), "{wanted}");
    }
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
}

/// A full disk is an error of one request; existing snapshots are unaffected.
#[test]
fn a_full_disk_fails_a_request_and_forgets_nothing() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let root = sandbox.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&root).status().unwrap();
    assert!(mounted.success());
    std::fs::write(sandbox.path().join("snapshotter.toml"), "").unwrap();
    let mut node = Node { sandbox, options: &[], listening: None, snapshotter: None, containerd: None };
    node.start_snapshotter();
    let filling = root.join("snapshots/filling");
    node.ask(async |mut of| {
        of.prepare(prepare("k1", "", &[])).await.unwrap();
        of.commit(commit("base", "k1")).await.unwrap();
        let mut zeros = std::io::repeat(0).take(4 << 20);
        let _ = std::io::copy(&mut zeros, &mut std::fs::File::create(&filling).unwrap());
        let failed = of.prepare(prepare("k2", "base", &[])).await.unwrap_err();
        assert!(failed.code() == Code::Internal && failed.message().contains("No space left"), "{}", failed.message());
        std::fs::remove_file(&filling).unwrap();
        of.prepare(prepare("k2", "base", &[])).await.unwrap();
    });
    node.kill_snapshotter();
    node.start_snapshotter();
    let stat = |key: &str| api::StatSnapshotRequest { key: key.into(), ..Default::default() };
    node.ask(async |mut of| {
        let kind =
            async |of: &mut Client, key: &str| of.stat(stat(key)).await.unwrap().into_inner().info.unwrap().kind();
        assert_eq!(kind(&mut of, "base").await, api::Kind::Committed);
        assert_eq!(kind(&mut of, "k2").await, api::Kind::Active);
    });
}

/// Figures of requests; `cargo test … -- --ignored --nocapture` shows them.
#[test]
#[ignore = "measures"]
fn requests_take_so_long() {
    let node = Node::without_containerd("");
    let mut taken = BTreeMap::<&str, Vec<Duration>>::new();
    node.ask(async |mut of| {
        for number in 0..1000 {
            let begun = Instant::now();
            of.prepare(prepare(&format!("k{number}"), "", &[])).await.unwrap();
            taken.entry("prepare").or_default().push(begun.elapsed());
            let begun = Instant::now();
            of.commit(commit(&format!("sha256:{number}"), &format!("k{number}"))).await.unwrap();
            taken.entry("commit").or_default().push(begun.elapsed());
        }
        for _ in 0..20 {
            let begun = Instant::now();
            let mut pages = of.list(api::ListSnapshotsRequest::default()).await.unwrap().into_inner();
            let mut count = 0;
            while let Some(page) = pages.message().await.unwrap() {
                count += page.info.len();
            }
            assert_eq!(count, 1000);
            taken.entry("list").or_default().push(begun.elapsed());
        }
    });
    for (what, mut taken) in taken {
        taken.sort();
        println!("{what}: median {:.2?}, 90 % {:.2?}", taken[taken.len() / 2], taken[taken.len() * 9 / 10]);
    }
}

/// Waits until something is true that other processes make so.
#[track_caller]
fn eventually(is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
