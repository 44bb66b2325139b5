//! Mirrors that lack, lie and fail: what is read is right, and the registry is asked for no more than it must be.

use std::path::Path;

use peelfs_loopback::auth::Access;
use peelfs_loopback::faults::{Fault, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::Value;
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};

const NAME: &str = "team/app";

/// A registry and a mirror of it.
struct Served {
    mirror: Registry,
    own: Registry,
    image: Image,
    content: Vec<u8>,
}

impl Served {
    fn new() -> Self {
        let mut random = Random::new(7);
        let content: Vec<u8> = (0..3_000_000).map(|_| b"0123456789abcdef"[random.below(16)]).collect();
        let layer = LayerBuilder::new().dir(".").file("small", "small").file("large", content.clone());
        let image = ImageBuilder::new().layer(layer.packing(Packing::GZIP)).build();
        let [mirror, own] = [(); 2].map(|()| Registry::start(Catalog::default()).unwrap());
        for registry in [&mirror, &own] {
            registry.push(NAME, "1", &image);
        }
        Self { mirror, own, image, content }
    }

    fn reference(&self) -> String {
        self.own.reference(NAME, "1")
    }

    /// `--mirror`, for this registry.
    fn option(&self) -> String {
        format!("--mirror={}={}", self.own.addr(), self.mirror.addr())
    }

    fn mount<'a>(&self, sandbox: &'a Sandbox, more: &[&str]) -> MountPoint<'a> {
        sandbox.mount_with(&self.reference(), "a", &[&[&*self.option()], more].concat())
    }

    fn assert_right(&self, at: &Path) {
        assert_eq!(std::fs::read(at.join("small")).unwrap(), b"small");
        assert!(std::fs::read(at.join("large")).unwrap() == self.content, "wrong bytes");
    }

    fn layer(&self) -> Target {
        Target::Blob(self.image.layers()[0].digest.clone())
    }
}

fn status(sandbox: &Sandbox, mounted: &MountPoint<'_>) -> (Value, String) {
    let json = sandbox.peelfs(["status", "--json"]).arg(&mounted.path).output().unwrap();
    let text = sandbox.peelfs(["status", "--explain"]).arg(&mounted.path).output().unwrap();
    (serde_json::from_slice(&json.stdout).unwrap(), String::from_utf8(text.stdout).unwrap())
}

#[test]
fn a_mirror_serves_a_mount_and_the_registry_sees_nothing() {
    if cannot_mount() {
        return;
    }
    let (served, sandbox) = (Served::new(), Sandbox::new());
    let mounted = served.mount(&sandbox, &[]);
    served.assert_right(&mounted.path);
    let (json, text) = status(&sandbox, &mounted);
    mounted.unmount();
    assert_eq!(served.own.requests().len(), 0);
    let mirror = served.mirror.addr().to_string();
    assert_eq!((&json["hosts"][0]["host"], &json["hosts"][0]["mirror"]), (&mirror.as_str().into(), &true.into()));
    assert_eq!((&json["hosts"][1]["received_bytes"], &json["hosts"][1]["mirror"]), (&0.into(), &false.into()));
    assert_eq!(json["layers"][0]["served_by"], mirror);
    assert!(
        text.contains(&format!("from mirror {mirror}\n")) && text.contains(&format!("sent by: {mirror}\n")),
        "{text}"
    );
}

/// In a first pass, which verifies all of a layer at its end, and in a read of a part, which is verified by itself.
#[test]
fn bytes_that_a_mirror_has_changed_come_from_the_registry() {
    if cannot_mount() {
        return;
    }
    let (served, sandbox) = (Served::new(), Sandbox::new());
    served.mirror.faults().add(Rule::new(served.layer(), Fault::FlipBit { at: 900_000, bit: 3 }));
    for part in [false, true] {
        let mounted = sandbox.mount_point("a");
        let output = mounted.try_mount(&served.reference(), &["--wait", "--prefetch=none", &served.option()]);
        assert!(output.status.success(), "{}", said(&output));
        served.assert_right(&mounted.path);
        let told = said(&output) + &sandbox.logs();
        mounted.unmount();
        assert!(told.contains("sent wrong bytes of blob sha256:"), "{told}");
        assert!(served.own.requests().iter().any(|request| request.is_blob()), "part: {part}");
        served.own.clear();
        sandbox.drop_content();
    }
    let verified = sandbox.run(["cache", "verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn a_mirror_that_ends_while_it_is_read_from_is_replaced() {
    if cannot_mount() {
        return;
    }
    let (served, sandbox) = (Served::new(), Sandbox::new());
    served.mount(&sandbox, &[]).unmount();
    sandbox.drop_content();
    let mounted = served.mount(&sandbox, &["--prefetch=none"]);
    assert_eq!(std::fs::read(mounted.join("small")).unwrap(), b"small");
    served.mirror.faults().add(Rule::new(Target::Any, Fault::ResetBeforeHeaders));
    served.mirror.drop_connections();
    served.assert_right(&mounted.path);
    let (_, text) = status(&sandbox, &mounted);
    mounted.unmount();
    assert!(text.contains("; not asked for 1") || text.contains("; it is tried again"), "{text}");
}

#[test]
fn without_the_registry_a_mirror_is_enough() {
    if cannot_mount() {
        return;
    }
    let (served, sandbox) = (Served::new(), Sandbox::new());
    served.own.faults().add(Rule::new(Target::Any, Fault::ResetBeforeHeaders));
    let mounted = served.mount(&sandbox, &[]);
    served.assert_right(&mounted.path);
    // The process that takes over asks the same mirror.
    mounted.kill_server();
    served.assert_right(&mounted.path);
    mounted.unmount();
}

#[test]
fn files_of_containerd_and_podman_name_mirrors() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    let list = |with: &[(&str, &Path)], more: &[&str]| {
        served.mirror.clear();
        served.own.clear();
        let cache = tempfile::tempdir().unwrap();
        let mut command = sandbox.peelfs(["ls", &served.reference(), "/"]);
        command.args(more).envs(with.iter().copied()).env("PEELFS_CACHE_DIR", cache.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        (!served.mirror.requests().is_empty(), !served.own.requests().is_empty())
    };
    let hosts = sandbox.path().join("certs.d");
    let directory = hosts.join(served.own.addr().to_string());
    std::fs::create_dir_all(&directory).unwrap();
    let mirror = served.mirror.addr();
    std::fs::write(directory.join("hosts.toml"), format!("[host.'http://{mirror}']")).unwrap();
    let conf = sandbox.path().join("registries.conf");
    let text =
        format!("[[registry]]\nlocation = '{}'\n[[registry.mirror]]\nlocation = '{mirror}'\n", served.own.addr());
    std::fs::write(&conf, text).unwrap();
    assert_eq!(list(&[], &[]), (false, true));
    assert_eq!(list(&[("PEELFS_HOSTS_DIR", &hosts)], &[]), (true, false));
    assert_eq!(list(&[("CONTAINERS_REGISTRIES_CONF", &conf)], &[]), (true, false));
    assert_eq!(list(&[("CONTAINERS_REGISTRIES_CONF", &conf)], &["--mirror=none"]), (false, true));
    // By digest alone: what the tag names is asked of the registry, the rest of the mirror.
    let text = std::fs::read_to_string(&conf).unwrap() + "pull-from-mirror = 'digest-only'\n";
    std::fs::write(&conf, text).unwrap();
    assert_eq!(list(&[("CONTAINERS_REGISTRIES_CONF", &conf)], &[]), (true, true));
    assert!(served.own.requests().iter().all(|request| !request.is_blob()));
}

#[test]
fn a_file_that_cannot_be_used_is_one_error_with_its_line() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    let conf = sandbox.path().join("registries.conf");
    for (text, wanted) in [
        ("[[registry]]\nlocation = 5\n", "line 2, cannot be used: `location` is not text in quotes"),
        ("[[registry]\n", "line 1, cannot be used: "),
        (&format!("[[registry]]\nlocation = '{}'\nblocked = true\n", served.own.addr()), "line 1, blocks it"),
    ] {
        std::fs::write(&conf, text).unwrap();
        let mut command = sandbox.peelfs(["ls", &served.reference()]);
        let output = command.env("CONTAINERS_REGISTRIES_CONF", &conf).output().unwrap();
        let told = said(&output);
        assert!(!output.status.success() && told.contains(&format!("`{}`, {wanted}", conf.display())), "{told}");
        assert_eq!(told.matches("error: ").count(), 1, "{told}");
    }
    assert_eq!(served.own.requests().len(), 0);
    let output = sandbox.run(["ls", &served.reference(), "--mirror", "ftp://m"]);
    assert!(said(&output).contains("`ftp://m` is not a mirror"), "{}", said(&output));
}

/// A pipe without a writer would be waited for.
#[test]
fn what_is_not_a_file_or_directory_is_one_error() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    let hosts = sandbox.path().join("certs.d");
    let directory = hosts.join(served.own.addr().to_string());
    std::fs::create_dir_all(&directory).unwrap();
    let [pipe, file, none] = ["pipe", "file", "none"].map(|name| sandbox.path().join(name));
    std::fs::write(&file, "").unwrap();
    for pipe in [&pipe, &directory.join("hosts.toml")] {
        rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    }
    for (variable, path, wanted) in [
        ("PEELFS_HOSTS_DIR", &none, "there is no such directory"),
        ("PEELFS_HOSTS_DIR", &file, "it is not a directory"),
        ("PEELFS_HOSTS_DIR", &hosts, "/hosts.toml` cannot be used: it is not a regular file"),
        ("CONTAINERS_REGISTRIES_CONF", &pipe, "/pipe` cannot be used: it is not a regular file"),
    ] {
        let list = |more: &[&str]| {
            sandbox.peelfs(["ls", &served.reference()]).args(more).env(variable, path).output().unwrap()
        };
        let told = said(&list(&[]));
        assert!(told.contains(wanted) && told.contains(path.to_str().unwrap()), "{told}");
        assert_eq!(told.matches("error: ").count(), 1, "{told}");
        assert_eq!(served.own.requests().len(), 0);
        let unread = list(&["--mirror=none"]);
        assert!(unread.status.success(), "{}", said(&unread));
        served.own.clear();
    }
    let null = sandbox.peelfs(["ls", &served.reference()]).env("CONTAINERS_REGISTRIES_CONF", "/dev/null").output();
    assert!(null.unwrap().status.success(), "it says nothing");
}

#[test]
fn a_missing_certificate_is_named_with_the_file_and_line() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    let hosts = sandbox.path().join("certs.d");
    let directory = hosts.join(served.own.addr().to_string());
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("hosts.toml");
    for field in ["ca", "client"] {
        std::fs::write(&file, format!("[host.'https://m.example']\n{field} = 'none.pem'\n")).unwrap();
        let output = sandbox.peelfs(["ls", &served.reference()]).env("PEELFS_HOSTS_DIR", &hosts).output().unwrap();
        let told = said(&output);
        let wanted = format!("`{}`, line 2, cannot be used: cannot read ", file.display());
        assert!(!output.status.success() && told.contains(&wanted) && told.contains("/none.pem: No such"), "{told}");
    }
}

#[test]
fn a_mirror_that_is_no_host_is_one_error() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    for (mirror, wanted) in [
        ("..", "`..` is not a mirror: what stands there for the host is neither a name nor an address"),
        ("127.0.0.1:99999", "`127.0.0.1:99999` is not a mirror: its port is not a number from 1 to 65535"),
        ("m\x1bx", "`m\\u{1b}x` is not a mirror: there is a space, a control character"),
    ] {
        let told = said(&sandbox.run(["ls", &served.reference(), "--mirror", mirror]));
        assert!(told.contains(wanted) && told.matches("error: ").count() == 1, "{told}");
        assert!(!told.contains('\x1b'), "{told:?}");
    }
}

/// A body without an end is left at the end of the blob, and the warning names the host that sends it.
#[test]
fn an_endless_body_is_told_of_the_mirror() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    served.mirror.faults().add(Rule::new(served.layer(), Fault::Endless));
    let output = sandbox.run(["cat", &served.reference(), "large", &served.option()]);
    assert!(output.status.success() && output.stdout == served.content, "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &sandbox.logs();
    let mirror = served.mirror.addr();
    let passed_over: Vec<_> = told.lines().filter(|line| line.contains("is passed over: ")).collect();
    assert!(!passed_over.is_empty(), "{told}");
    assert!(
        passed_over.iter().all(|line| line.contains(&format!("is passed over: {mirror} sent an invalid"))),
        "{told}"
    );
}

#[test]
fn inspect_says_who_is_asked() {
    let (served, sandbox) = (Served::new(), Sandbox::new());
    let (user, password) = ("alice".to_owned(), "s3cret".to_owned());
    served.mirror.set_access(Access::Basic { user, password });
    let output = sandbox.run(["inspect", "--explain", &served.reference(), &served.option()]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert_eq!(told["mirrors_named_by"], "--mirror");
    assert_eq!(told["hosts"][0]["received_bytes"], 0, "it wants a login");
    assert!(told["hosts"][1]["received_bytes"].as_u64().unwrap() > 0);
    assert!(served.mirror.requests().iter().all(|asked| asked.request.header("authorization").is_none()));
}
