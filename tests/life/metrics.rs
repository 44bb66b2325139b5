//! Metrics of the servers that show many images: of a store, of all mounts of a user.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder};
use support::sandbox::{Sandbox, cannot_mount, is_missing};

use super::containers::layout;
use super::image_store::Store;

fn small() -> Image {
    ImageBuilder::new().layer(LayerBuilder::new().file("a", "one")).build()
}

/// A port of loopback that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The metrics that are served there, checked by Prometheus' own tool where it is installed.
fn metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    if !is_missing("promtool") {
        let mut tool = Command::new("promtool");
        tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tool = tool.spawn().unwrap();
        tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = tool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&said));
    }
    text.to_owned()
}

fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).rsplit(' ').next().unwrap()
}

#[test]
fn a_store_tells_how_many_images_it_shows() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let address = free_address();
    let store = Store::serve_at(&sandbox, sandbox.path().join("store"), &["--metrics", &address.to_string()]);
    assert_eq!(value(&metrics(address), "peelfs_images"), "0");
    store.peelfs(&["add", "--wait", &layout(&sandbox, &small())]);
    let text = metrics(address);
    assert_eq!(value(&text, "peelfs_images"), "1");
    assert!(text.contains(&format!("peelfs_mount_info{{mount=\"{}\"", store.at.display())), "{text}");
    let before = store.server();
    store.kill_server();
    let begun = std::time::Instant::now();
    while store.server() == before || TcpStream::connect(address).is_err() {
        assert!(begun.elapsed().as_secs() < 60, "the process that takes over serves no metrics");
        support::pause();
    }
    assert_eq!(value(&metrics(address), "peelfs_images"), "1");
}

/// A service, ended when dropped.
struct Service(Child);

impl Service {
    /// Waits until it serves metrics.
    fn start(mut command: Command, address: SocketAddr) -> Self {
        command.args(["--metrics", &address.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut service = Self(command.spawn().unwrap());
        while TcpStream::connect(address).is_err() {
            assert!(service.0.try_wait().unwrap().is_none(), "the service has ended");
            support::pause();
        }
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn services_tell_of_all_mounts_of_their_user() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let run = |name: &str| sandbox.path().join("run").join(name);
    let mut snapshotter = sandbox.peelfs(["snapshotter", "--address"]);
    snapshotter.arg(run("s.sock")).arg("--root").arg(sandbox.path().join("root"));
    let mut csi = sandbox.peelfs(["csi", "--node-id", "node-1", "--endpoint"]);
    csi.arg(format!("unix://{}", run("csi.sock").display())).arg("--state-dir").arg(sandbox.path().join("state"));
    for (what, command) in [("snapshotter", snapshotter), ("csi", csi)] {
        let address = free_address();
        let _service = Service::start(command, address);
        let mounts = |text: &str| text.lines().filter(|line| line.starts_with("peelfs_mount_info{")).count();
        assert_eq!(mounts(&metrics(address)), 0, "{what}");
        let mounted = sandbox.mount(&layout(&sandbox, &small()), what);
        let text = metrics(address);
        assert_eq!(mounts(&text), 1, "{what}: {text}");
        assert!(text.contains(&format!("mount=\"{}\"", mounted.path.display())), "{what}: {text}");
        mounted.unmount();
        assert_eq!(mounts(&metrics(address)), 0, "{what}");
    }
}
