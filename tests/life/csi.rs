//! The CSI plugin, called like by Kubernetes: over its socket, with the interface's messages.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use peelfs::fuse::mounts;
use peelfs_csi::generated::csi::v1::identity_client::IdentityClient;
use peelfs_csi::generated::csi::v1::node_client::NodeClient;
use peelfs_csi::generated::csi::v1::volume_capability::access_mode::Mode;
use peelfs_csi::generated::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use peelfs_csi::generated::csi::v1::*;
use peelfs_csi::generated::pluginregistration::registration_client::RegistrationClient;
use peelfs_csi::generated::pluginregistration::{InfoRequest, RegistrationStatus};
use peelfs_loopback::auth::Access;
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use rustix::process::{Pid, Signal, kill_process};
use support::sandbox::{Sandbox, cannot_mount, said};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

fn image() -> Image {
    let layer = LayerBuilder::new()
        .file("usr/lib/data", "one")
        .symlink("lib", "/usr/lib")
        .symlink("out", "../../../../../../usr")
        .file("plain", "two");
    ImageBuilder::new().layer(layer).build()
}

/// The plugin and a client; dropping ends the plugin and unpublishes everything.
struct Plugin<'a> {
    sandbox: &'a Sandbox,
    runtime: tokio::runtime::Runtime,
    process: Child,
    channel: Channel,
}

impl<'a> Plugin<'a> {
    fn start(sandbox: &'a Sandbox, more: &[&str]) -> Self {
        let socket = sandbox.path().join("run/csi.sock");
        let mut command = sandbox.peelfs(["csi", "--node-id", "node-1", "--endpoint"]);
        command.arg(format!("unix://{}", socket.display())).arg("--state-dir").arg(sandbox.path().join("state"));
        let mut process = command.args(more).spawn().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
        let channel = loop {
            if let Ok(channel) = runtime.block_on(endpoint.connect()) {
                break channel;
            }
            assert!(process.try_wait().unwrap().is_none(), "the plugin has ended");
            support::pause();
        };
        Self { sandbox, runtime, process, channel }
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// Where the pod `name` has its volume.
    fn target(&self, name: &str) -> PathBuf {
        let parent = self.sandbox.path().join("mnt").join(name);
        std::fs::create_dir_all(&parent).unwrap();
        parent.join("mount")
    }

    fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), tonic::Status> {
        self.runtime.block_on(self.node().node_publish_volume(request)).map(drop)
    }

    fn unpublish(&self, volume: &str, target: &Path) -> Result<(), tonic::Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: volume.into(), target_path: text(target) };
        self.runtime.block_on(self.node().node_unpublish_volume(request)).map(drop)
    }

    fn stats(&self, volume: &str, path: &Path) -> Result<NodeGetVolumeStatsResponse, tonic::Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.into(),
            volume_path: text(path),
            staging_target_path: String::new(),
        };
        self.runtime.block_on(self.node().node_get_volume_stats(request)).map(tonic::Response::into_inner)
    }

    /// Directories below the cache that was named.
    fn caches(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.sandbox.path().join("cache")).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Plugin<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let own = self.sandbox.path();
        for mount in mounts::all().iter().rev().filter(|mount| mount.path.starts_with(own)) {
            let _ = peelfs::fuse::unmount(&mount.path, peelfs::fuse::OpenFiles::Keep);
        }
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A request as the kubelet makes it for an inline volume with `readOnly: true`.
fn request(volume: &str, target: &Path, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let mut volume_context = map(attributes);
    volume_context.extend(map(&[
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "pod"),
        ("csi.storage.k8s.io/pod.namespace", "team"),
        ("csi.storage.k8s.io/pod.uid", "1"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
    ]));
    NodePublishVolumeRequest {
        volume_id: volume.into(),
        publish_context: HashMap::new(),
        staging_target_path: String::new(),
        target_path: text(target),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }),
        readonly: true,
        secrets: HashMap::new(),
        volume_context,
    }
}

/// What the interface asks of any plugin of nodes, in the order and with the codes that csi-sanity 5.5 has in its groups
/// "Identity Service" and "Node Service".
#[test]
fn the_plugin_answers_as_csi_sanity_asks() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let plugin = Plugin::start(&sandbox, &["--driver-name", "csi.test.example"]);
    let (run, mut node) = (&plugin.runtime, plugin.node());
    let mut identity = IdentityClient::new(plugin.channel.clone());
    let info = run.block_on(identity.get_plugin_info(GetPluginInfoRequest {})).unwrap().into_inner();
    assert_eq!(info.name, "csi.test.example");
    assert!(!info.vendor_version.is_empty());
    let offered = run.block_on(identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {})).unwrap();
    assert_eq!(offered.into_inner().capabilities, [], "there is no controller");
    assert_eq!(run.block_on(identity.probe(ProbeRequest {})).unwrap().into_inner().ready, Some(true));

    let offered = run.block_on(node.node_get_capabilities(NodeGetCapabilitiesRequest {})).unwrap().into_inner();
    assert_eq!(offered.capabilities.len(), 2);
    let info = run.block_on(node.node_get_info(NodeGetInfoRequest {})).unwrap().into_inner();
    assert_eq!((&info.node_id[..], info.accessible_topology), ("node-1", None));

    let target = plugin.target("pod");
    let whole = request("id", &target, &[("image", "127.0.0.1:1/a")]);
    for broken in [
        NodePublishVolumeRequest { volume_id: String::new(), ..whole.clone() },
        NodePublishVolumeRequest { target_path: String::new(), ..whole.clone() },
        NodePublishVolumeRequest { target_path: "relative".into(), ..whole.clone() },
        NodePublishVolumeRequest { volume_capability: None, ..whole.clone() },
        NodePublishVolumeRequest { volume_context: HashMap::new(), ..whole },
    ] {
        assert_eq!(plugin.publish(broken).unwrap_err().code(), Code::InvalidArgument);
    }
    // What is no directory is none of the plugin's, and stays.
    let file = plugin.target("file");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "mine").unwrap();
    let refused = plugin.publish(request("v", &file, &[("image", "127.0.0.1:1/app:1")])).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("it is not a directory"), "{refused}");
    plugin.unpublish("v", &file).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert_eq!(plugin.unpublish("", &target).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(plugin.unpublish("id", Path::new("")).unwrap_err().code(), Code::InvalidArgument);
    plugin.unpublish("never published", &target).unwrap();
    assert_eq!(plugin.stats("", &target).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(plugin.stats("id", Path::new("")).unwrap_err().code(), Code::InvalidArgument);
    for path in ["some/path", "/some/path"] {
        assert_eq!(plugin.stats("id", Path::new(path)).unwrap_err().code(), Code::NotFound);
    }
    let staged = run.block_on(node.node_stage_volume(NodeStageVolumeRequest::default()));
    assert_eq!(staged.unwrap_err().code(), Code::Unimplemented);
    let staged = run.block_on(node.node_unstage_volume(NodeUnstageVolumeRequest::default()));
    assert_eq!(staged.unwrap_err().code(), Code::Unimplemented);
    let expanded = run.block_on(node.node_expand_volume(NodeExpandVolumeRequest::default()));
    assert_eq!(expanded.unwrap_err().code(), Code::Unimplemented);
}

#[test]
fn a_volume_is_published_once_however_often_it_is_asked() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image()).image("other", "1", &image())).unwrap();
    let reference = registry.reference("app", "1");
    let plugin = Plugin::start(&sandbox, &[]);
    let target = plugin.target("pod");
    let wanted = request("v", &target, &[("image", &reference), ("prefetch", "none")]);
    for _ in 0..2 {
        plugin.publish(wanted.clone()).unwrap();
        assert_eq!(std::fs::read(target.join("usr/lib/data")).unwrap(), b"one");
        assert_eq!(mounts::all().iter().filter(|mount| mount.path == target).count(), 1);
    }
    let written = std::fs::write(target.join("new"), "").unwrap_err();
    assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // Users of containers are any.
    let read =
        Command::new("setpriv").args(["--reuid=1000", "--clear-groups", "cat"]).arg(target.join("plain")).output();
    assert!(read.is_err() || read.unwrap().stdout == b"two");

    let stats = plugin.stats("v", &target).unwrap();
    assert_eq!(stats.usage.len(), 2);
    assert!(stats.usage.iter().all(|usage| usage.total > 0 && usage.used == usage.total && usage.available == 0));
    assert!(!stats.volume_condition.unwrap().abnormal);
    assert_eq!(plugin.stats("other", &target).unwrap_err().code(), Code::NotFound);

    let other = request("v", &target, &[("image", &registry.reference("other", "1"))]);
    let error = plugin.publish(other).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains(&reference), "{error}");
    let error = plugin.publish(NodePublishVolumeRequest { volume_id: "w".into(), ..wanted }).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);

    for _ in 0..2 {
        plugin.unpublish("v", &target).unwrap();
        assert!(mounts::at(&target).is_none() && !target.exists());
    }
    assert_eq!(std::fs::read_dir(sandbox.path().join("state/volumes")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_directory_of_an_image_is_a_volume() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let reference = registry.reference("app", "1");
    let plugin = Plugin::start(&sandbox, &[]);
    // Where the image's symlinks lead, they lead to something in the image.
    for (path, shown) in [("usr/lib", "data"), ("/lib/", "data"), ("out", "lib/data")] {
        let target = plugin.target("pod");
        let wanted = request("v", &target, &[("image", &reference), ("subPath", path)]);
        for _ in 0..2 {
            plugin.publish(wanted.clone()).unwrap();
        }
        assert_eq!(std::fs::read(target.join(shown)).unwrap(), b"one", "{path}");
        assert!(mounts::at(&target).unwrap().is_peelfs());
        plugin.unpublish("v", &target).unwrap();
        assert!(!target.exists());
    }
    for (path, code) in
        [("plain", Code::InvalidArgument), ("missing", Code::NotFound), ("../..", Code::InvalidArgument)]
    {
        let target = plugin.target("pod");
        let wanted = request("v", &target, &[("image", &reference), ("subPath", path)]);
        let error = plugin.publish(wanted).unwrap_err();
        assert_eq!(error.code(), code, "{path}: {error}");
        assert!(!target.exists(), "nothing is left");
    }
    let own = sandbox.path();
    assert!(!mounts::all().iter().any(|mount| mount.path.starts_with(own)), "nothing is left mounted");
}

/// A request that cannot be served gets one error with what to do, and leaves nothing behind.
#[test]
fn what_cannot_be_published_is_told_in_one_line() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let reference = registry.reference("app", "1");
    let missing = registry.reference("app", "2");
    let plugin = Plugin::start(&sandbox, &[]);
    let target = plugin.target("pod");
    let image = [("image", &reference[..])];
    let good = request("v", &target, &image);
    let capability = good.volume_capability.clone().unwrap();
    let block = VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..capability.clone() };
    let suid = MountVolume { mount_flags: vec!["suid".into()], ..MountVolume::default() };
    let suid = VolumeCapability { access_type: Some(AccessType::Mount(suid)), ..capability };
    let secrets = map(&[(".dockerconfigjson", "{")]);
    for (broken, code, wanted) in [
        (NodePublishVolumeRequest { readonly: false, ..good.clone() }, Code::InvalidArgument, "set `readOnly: true`"),
        (
            NodePublishVolumeRequest { volume_capability: Some(block), ..good.clone() },
            Code::InvalidArgument,
            "not a block",
        ),
        (NodePublishVolumeRequest { volume_capability: Some(suid), ..good.clone() }, Code::InvalidArgument, "`suid`"),
        (NodePublishVolumeRequest { secrets, ..good.clone() }, Code::InvalidArgument, "`.dockerconfigjson`"),
        (
            request("v", &target, &[image[0], ("image2", "x")]),
            Code::InvalidArgument,
            "unknown volume attribute `image2`",
        ),
        (request("v", &target, &[("image", "oci:/etc")]), Code::InvalidArgument, "only images of registries"),
        (request("v", &target, &[("image", &missing)]), Code::NotFound, "manifest `2` not found"),
        (request("v", &target, &[("image", "127.0.0.1:1/a")]), Code::Unavailable, "127.0.0.1:1"),
        (request("v", &target, &[image[0], ("platform", "linux/riscv64")]), Code::NotFound, "riscv64"),
        (request("v", Path::new("/nonexistent/mount"), &image), Code::Internal, "cannot make `/nonexistent/mount`"),
    ] {
        let error = plugin.publish(broken).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(wanted) && !error.message().contains('\n'), "{wanted}: {error}");
        assert!(!target.exists() && mounts::at(&target).is_none(), "{wanted}");
    }
    // Foreign mounts are left alone.
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("mine"), "1").unwrap();
    assert_eq!(plugin.unpublish("v", &target).unwrap_err().code(), Code::Internal);
    assert_eq!(std::fs::read(target.join("mine")).unwrap(), b"1");
    std::fs::remove_dir_all(&target).unwrap();
    let state = sandbox.path().join("state/volumes");
    assert_eq!(std::fs::read_dir(state).map_or(0, Iterator::count), 0, "nothing is left");
}

/// Volumes are served by separate processes; the next plugin process can unpublish them.
#[test]
fn volumes_outlive_the_plugin_and_their_server() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let reference = registry.reference("app", "1");
    let mut plugin = Plugin::start(&sandbox, &[]);
    let (whole, part) = (plugin.target("whole"), plugin.target("part"));
    let requests = [
        request("whole", &whole, &[("image", &reference)]),
        request("part", &part, &[("image", &reference), ("subPath", "usr/lib")]),
    ];
    for request in &requests {
        plugin.publish(request.clone()).unwrap();
    }
    plugin.kill();
    let read = || (std::fs::read(whole.join("usr/lib/data")).unwrap(), std::fs::read(part.join("data")).unwrap());
    assert_eq!(read(), (b"one".to_vec(), b"one".to_vec()));
    let again = Plugin::start(&sandbox, &[]);
    for request in &requests {
        again.publish(request.clone()).unwrap();
    }
    assert_eq!(read(), (b"one".to_vec(), b"one".to_vec()));

    // Without a server, publishing mounts again, and unpublishing works as well.
    let end = || {
        let states = std::fs::read_dir(sandbox.path().join("run/peelfs")).unwrap().map(|entry| entry.unwrap().path());
        for path in states.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let state: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            // The keeper first: it would start another one.
            for process in [&state["keeper"]["pid"], &state["pid"]] {
                let process = Pid::from_raw(i32::try_from(process.as_i64().unwrap()).unwrap()).unwrap();
                let _ = kill_process(process, Signal::KILL);
            }
        }
        while mounts::is_served(&whole) || mounts::is_served(&part) {
            support::pause();
        }
    };
    end();
    assert!(again.stats("whole", &whole).unwrap().volume_condition.unwrap().abnormal);
    for request in &requests {
        again.publish(request.clone()).unwrap();
    }
    assert_eq!(read(), (b"one".to_vec(), b"one".to_vec()));
    end();
    again.unpublish("whole", &whole).unwrap();
    again.unpublish("part", &part).unwrap();
    assert!(!whole.exists() && !part.exists());
    let own = sandbox.path();
    assert!(!mounts::all().iter().any(|mount| mount.path.starts_with(own)), "nothing is left mounted");
}

/// A volume's secret logs in for that volume, is read by root alone, and is gone with the volume.
#[test]
fn secrets_of_a_volume_log_in_for_it() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    registry.set_access(Access::Basic { user: "alice".into(), password: "hunter2".into() });
    let reference = registry.reference("app", "1");
    let plugin = Plugin::start(&sandbox, &[]);
    let target = plugin.target("pod");
    let wanted = request("v", &target, &[("image", &reference)]);
    let error = plugin.publish(wanted.clone()).unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    // alice:hunter2
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "YWxpY2U6aHVudGVyMg=="}}}}}}"#, registry.addr());
    for secrets in [map(&[(".dockerconfigjson", &config)]), map(&[("username", "alice"), ("password", "hunter2")])] {
        plugin.publish(NodePublishVolumeRequest { secrets, ..wanted.clone() }).unwrap();
        assert_eq!(std::fs::read(target.join("plain")).unwrap(), b"two");
        let kept = std::fs::read_dir(sandbox.path().join("state/volumes")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(std::fs::metadata(kept.join("auth.json")).unwrap().mode() & 0o777, 0o600);
        assert!(!std::fs::read_to_string(kept.join("volume.json")).unwrap().contains("hunter2"));
        plugin.unpublish("v", &target).unwrap();
        assert!(!kept.exists());
    }
}

/// Verifiers run for volumes, too.
#[test]
fn verifiers_are_asked_for_volumes() {
    use std::os::unix::fs::PermissionsExt as _;
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let verifiers = sandbox.path().join("verifiers");
    std::fs::create_dir(&verifiers).unwrap();
    std::fs::write(verifiers.join("no"), "#!/bin/sh\necho not signed; exit 1").unwrap();
    std::fs::set_permissions(verifiers.join("no"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let plugin = Plugin::start(&sandbox, &["--verifier-dir", verifiers.to_str().unwrap()]);
    let target = plugin.target("pod");
    let error = plugin.publish(request("v", &target, &[("image", &registry.reference("app", "1"))])).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("not signed"), "{error}");
    assert!(!target.exists());
}

#[test]
fn the_kubelet_finds_the_plugin_and_may_refuse_it() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = sandbox.path().join("registry");
    std::fs::create_dir(&registry).unwrap();
    let own = "/var/lib/kubelet/plugins/csi.test.example/csi.sock";
    let options = [
        "--driver-name=csi.test.example",
        "--kubelet-registration-path",
        own,
        "--plugin-registration-dir",
        registry.to_str().unwrap(),
    ];
    let mut plugin = Plugin::start(&sandbox, &options);
    let socket = registry.join("csi.test.example-reg.sock");
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    // As the kubelet does, again and again.
    let (mut kubelet, info) = loop {
        let asked = plugin.runtime.block_on(async {
            let mut kubelet = RegistrationClient::new(endpoint.connect().await.ok()?);
            let info = kubelet.get_info(InfoRequest {}).await.ok()?.into_inner();
            Some((kubelet, info))
        });
        match asked {
            Some(asked) => break asked,
            None => support::pause(),
        }
    };
    assert_eq!((&info.r#type[..], &info.name[..], &info.endpoint[..]), ("CSIPlugin", "csi.test.example", own));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let said = |registered, error: &str| RegistrationStatus { plugin_registered: registered, error: error.to_owned() };
    plugin.runtime.block_on(kubelet.notify_registration_status(said(true, ""))).unwrap();
    assert!(plugin.process.try_wait().unwrap().is_none());
    plugin.runtime.block_on(kubelet.notify_registration_status(said(false, "another has this name"))).unwrap();
    assert_eq!(plugin.process.wait().unwrap().code(), Some(1));
    assert!(!socket.exists());
}

#[test]
fn a_plugin_with_a_wrong_name_or_socket_does_not_start() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let socket = format!("unix://{}/run/csi.sock", sandbox.path().display());
    let long = "n".repeat(257);
    for (options, wanted) in [
        (["--endpoint", "tcp://127.0.0.1:1", "--node-id", "n"], "is not a Unix socket"),
        (["--endpoint", &socket, "--node-id", &long], "1 to 256 bytes"),
        (["--endpoint", "unix:///nonexistent/csi.sock", "--node-id", "n"], "mkdir -p /nonexistent"),
    ] {
        let output = sandbox.peelfs(["csi"]).args(options).output().unwrap();
        assert!(!output.status.success() && said(&output).contains(wanted), "{}", said(&output));
    }
    let output = sandbox.peelfs(["csi", "--driver-name=-x", "--node-id=n", "--endpoint", &socket]).output().unwrap();
    assert!(said(&output).contains("is not a valid driver name"), "{}", said(&output));
    let _plugin = Plugin::start(&sandbox, &[]);
    let output = sandbox.peelfs(["csi", "--node-id=n", "--endpoint", &socket]).output().unwrap();
    assert!(said(&output).contains("is in use"), "{}", said(&output));
}

/// With `--separate-namespaces` an image that two namespaces show is fetched for each: who may not pull it does not get it by
/// naming its digest.
#[test]
fn namespaces_may_have_caches_of_their_own() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    registry.set_access(Access::Basic { user: "alice".into(), password: "hunter2".into() });
    let reference = registry.reference("app", "1");
    let cache = sandbox.path().join("cache");
    let plugin = Plugin::start(&sandbox, &["--separate-namespaces", "--cache-dir", cache.to_str().unwrap()]);
    let login = map(&[("username", "alice"), ("password", "hunter2")]);
    let of = |namespace: &str, secrets: &HashMap<String, String>| {
        let target = plugin.target(&namespace.replace(['.', '/'], "_"));
        let mut request = request(namespace, &target, &[("image", &reference)]);
        request.volume_id = format!("volume of {namespace}");
        match namespace {
            "no-name" => request.volume_context.remove("csi.storage.k8s.io/pod.namespace"),
            name => request.volume_context.insert("csi.storage.k8s.io/pod.namespace".into(), name.into()),
        };
        let published = plugin.publish(NodePublishVolumeRequest { secrets: secrets.clone(), ..request });
        published.map(|()| std::fs::read(target.join("plain")).unwrap())
    };
    assert_eq!(of("team-a", &login).unwrap(), b"two");
    assert_eq!(of("team-b", &HashMap::new()).unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(of("team-b", &login).unwrap(), b"two");
    // No name that a client makes up leads out of the cache.
    assert_eq!(of("../../etc", &login).unwrap(), b"two");
    assert_eq!(of("no-name", &login).unwrap(), b"two");
    assert_eq!(plugin.caches(), ["_", "team-a", "team-b"]);
}

/// A control group of the second version; none where it cannot be made.
fn control_groups() -> Option<PathBuf> {
    let all = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
    let all = all.into_iter().find(|all| all.join("cgroup.procs").exists())?;
    let own = all.join(format!("peelfs-test-{}", std::process::id()));
    std::fs::create_dir(&own).ok()?;
    own.join("cgroup.kill").exists().then_some(own)
}

/// A pod ends with all processes of its control group: those that serve volumes are in another one.
#[test]
fn volumes_outlive_the_control_group_of_the_plugin() {
    if cannot_mount() {
        return;
    }
    let Some(own) = control_groups() else {
        eprintln!("skipped: needs control groups of version 2 that can be made, and Linux 5.14");
        return;
    };
    let (pod, servers) = (own.join("pod"), own.join("servers"));
    std::fs::create_dir(&pod).unwrap();
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let options = ["--cgroup", servers.to_str().unwrap()];
    let mut plugin = Plugin::start(&sandbox, &options);
    std::fs::write(pod.join("cgroup.procs"), plugin.process.id().to_string()).unwrap();
    let target = plugin.target("pod");
    let wanted = request("v", &target, &[("image", &registry.reference("app", "1"))]);
    plugin.publish(wanted.clone()).unwrap();
    let processes = |group: &Path| std::fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count();
    assert_eq!((processes(&pod), processes(&servers)), (1, 2), "the plugin; a server and what starts it anew");
    std::fs::write(pod.join("cgroup.kill"), "1").unwrap();
    plugin.process.wait().unwrap();
    assert_eq!(std::fs::read(target.join("usr/lib/data")).unwrap(), b"one");

    let again = Plugin::start(&sandbox, &options);
    again.publish(wanted).unwrap();
    assert_eq!(processes(&servers), 2, "it is the same mount");
    again.unpublish("v", &target).unwrap();
    assert!(!target.exists());
    // It takes a moment until the last process has left them.
    let begun = Instant::now();
    for group in [&servers, &pod, &own] {
        while let Err(error) = std::fs::remove_dir(group) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}: {error}", group.display());
            support::pause();
        }
    }
}

#[test]
fn a_control_group_that_is_none_is_told() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let registry = Registry::start(Catalog::new().image("app", "1", &image())).unwrap();
    let wrong = sandbox.path().join("no-group");
    let plugin = Plugin::start(&sandbox, &["--cgroup", wrong.to_str().unwrap()]);
    let target = plugin.target("pod");
    let error = plugin.publish(request("v", &target, &[("image", &registry.reference("app", "1"))])).unwrap_err();
    assert!(error.message().contains("no-group/cgroup.procs"), "{error}");
    assert!(!target.exists() && !wrong.join("cgroup.procs").exists());
}

/// The manifests in `deploy/kubernetes`, by what of them can be read line by line.
fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_daemon_set_has_options_that_the_plugin_knows() {
    let daemon_set = manifest("daemonset.yaml");
    let lines = daemon_set.lines().map(str::trim);
    // Those that are commented out as well.
    let options: Vec<_> = lines.filter_map(|line| line.trim_start_matches("# ").strip_prefix("- --")).collect();
    assert!(options.len() > 7, "{options:?}");
    let mut command = Sandbox::new().peelfs(["csi"]);
    let output = command.args(options.iter().map(|option| format!("--{option}"))).arg("--help").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let driver = format!("name: {}", peelfs_csi::DRIVER);
    assert!(manifest("csidriver.yaml").lines().any(|line| line.trim() == driver));
    assert!(daemon_set.contains(&format!("/var/lib/kubelet/plugins/{}/csi.sock", peelfs_csi::DRIVER)));
}

/// Attributes of the volumes in an example.
fn attributes(example: &str) -> Vec<HashMap<String, String>> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let (mut volumes, mut below) = (Vec::new(), None);
    for line in example.lines() {
        if line.trim() == "volumeAttributes:" {
            below = Some(indent(line));
            volumes.push(HashMap::new());
        } else if below.is_some_and(|of| indent(line) > of) {
            let (key, value) = line.trim().split_once(": ").unwrap();
            volumes.last_mut().unwrap().insert(key.to_owned(), value.to_owned());
        } else {
            below = None;
        }
    }
    volumes
}

#[test]
fn volumes_of_the_examples_are_published() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let layer = LayerBuilder::new().file("usr/local/lib/python3.12/this.py", "one").file("usr/share/doc/a", "two");
    let image = ImageBuilder::new().layer(layer).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let reference = registry.reference("app", "1");
    let plugin = Plugin::start(&sandbox, &[]);
    for (example, volumes) in [("inline", 1), ("subpath", 2), ("secret", 1), ("persistent", 1)] {
        let found = attributes(&manifest(&format!("examples/{example}.yaml")));
        assert_eq!(found.len(), volumes, "{example}");
        for mut attributes in found {
            let target = plugin.target(example);
            assert!(attributes.insert("image".into(), reference.clone()).is_some(), "{example} names its image");
            let wanted = NodePublishVolumeRequest { volume_context: attributes, ..request("v", &target, &[]) };
            plugin.publish(wanted).unwrap();
            assert!(std::fs::read_dir(&target).unwrap().count() > 0);
            plugin.unpublish("v", &target).unwrap();
        }
    }
}
