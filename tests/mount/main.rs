//! Real mounts: what the kernel shows of an image, against the reference model and against what
//! `umoci unpack` makes of the same image; what a mount asks the registry for; how mounts end.
//! Needs root and `/dev/fuse`; each test prints why it skips.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod activity;
mod artifacts;
mod behind;
mod cold;
mod data;
mod descriptors;
mod ends;
mod engines;
mod handles;
mod identity;
mod kernel;
mod kernel_mount;
mod layers;
mod limits;
mod lower;
mod mount8;
mod passthrough;
mod place;
mod pushed;
mod share;
mod soci;
mod tables;
mod user;
mod web;
mod windows;
mod xattrs;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use peelfs::fuse::{self, MountOptions};
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Family, Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::{Entry, Header, append_padded, append_pax};
use rustix::process::Signal;
use support::model::{Seen, Tree};
use support::random::{self, Random, Shape};
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};
use support::shown::{self, MemorySource};
use support::walk::{self, Compare};

/// How many seeds a test of random images tries: `PEELFS_SEEDS`, or a few.
fn seeds(few: u64) -> u64 {
    std::env::var("PEELFS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

/// Layers with every kind of entry, base first.
fn everything() -> Vec<Vec<Entry>> {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let base = vec![
        Entry::dir(".").mode(0o755).mtime(1_600_000_000, 0),
        Entry::dir("usr").mtime(1_600_000_001, 123_456_789),
        Entry::dir("usr/bin"),
        Entry::symlink("bin", "usr/bin").mtime(1_600_000_002, 5),
        Entry::file("usr/bin/sh", "#!/bin/sh\n").mode(0o755),
        Entry::file("usr/bin/passwd", "set-id").mode(0o4755),
        Entry::file("usr/bin/wall", "set-gid").mode(0o2755).owner(0, 5),
        Entry::hard_link("usr/bin/bash", "usr/bin/sh").mode(0o755),
        Entry::file("usr/bin/ping", "capable").mode(0o755).xattr("security.capability", capability),
        Entry::dir("tmp").mode(0o1777).xattr("user.dir", "a directory's"),
        Entry::file("etc/implied", "parent without an entry"),
        Entry::file("old", "before 1970").mtime(-86_400, 250_000_000),
        Entry::file("future", "").mtime(4_000_000_000, 999_999_999),
        Entry::file("owners", "large ids").owner(4_000_000_000, 3_000_000_000),
        Entry::file("xattrs", "").xattr("user.empty-but-one", "x").xattr("user.binary", [0xff, 1, 2, 0xfe]),
        Entry::file(b"not-utf8-\xff\xfe".to_vec(), "bytes"),
        Entry::file("with space\nand newline", "name"),
        Entry::fifo("pipe").mode(0o600),
        Entry::char_device("null", 1, 3).mode(0o666),
        Entry::char_device("big", 4000, 1_000_000),
        Entry::block_device("disk", 8, 17).mode(0o660).owner(0, 6),
        Entry::symlink("dangling", "no/such/thing"),
        Entry::symlink("outside", "../../../../etc/passwd"),
        Entry::file("large", Random::new(1).bytes(3_000_000)),
        Entry::file("zeros", vec![0; 1_000_000]),
        Entry::file("cross", "linked from above"),
        Entry::dir("opaque"),
        Entry::file("opaque/hidden", "1"),
        Entry::dir("opaque/hidden-dir"),
        Entry::file("gone", "removed above"),
        Entry::dir("gone-dir"),
        Entry::file("gone-dir/inside", "1"),
        Entry::dir("becomes-file"),
        Entry::file("becomes-file/inside", "1"),
        Entry::file("becomes-dir", "1"),
        Entry::symlink("becomes-real", "usr"),
        Entry::dir("restarts"),
        Entry::file("restarts/lower", "1"),
    ];
    let middle = vec![
        // Written through `bin -> usr/bin`, which this layer does not mention.
        Entry::file("bin/tool", "through a link").mode(0o755),
        Entry::whiteout("gone"),
        Entry::whiteout("gone-dir"),
        Entry::file("becomes-file", "2"),
        Entry::dir("becomes-dir"),
        Entry::file("becomes-dir/inside", "2"),
        Entry::dir("becomes-real"),
        Entry::file("opaque/fresh", "2"),
        Entry::opaque("opaque"),
        Entry::hard_link("cross-link", "cross"),
        Entry::dir("restarts"),
        Entry::file("twice", "first"),
        Entry::file("twice", "second, and last"),
    ];
    let top = vec![
        Entry::hard_link("usr/bin/third", "usr/bin/bash").mode(0o755),
        Entry::dir("tmp").mode(0o1777),
        Entry::file("gone", "and back again"),
        Entry::file("cross", "no longer linked"),
        Entry::whiteout("usr/bin/wall"),
    ];
    vec![base, middle, top]
}

fn packed(layers: &[Vec<Entry>], packings: &[Packing], family: Family) -> Image {
    let packings = packings.iter().cycle();
    let layers = layers.iter().zip(packings).map(|(layer, packing)| LayerBuilder::of(layer).packing(*packing));
    layers.fold(ImageBuilder::new().family(family), ImageBuilder::layer).build()
}

fn tree_of(layers: &[Vec<Entry>]) -> BTreeMap<Vec<u8>, Seen> {
    Tree::of(layers.iter().map(Vec::as_slice)).seen()
}

fn serve(image: &Image) -> Registry {
    let registry = Registry::start(Catalog::default()).unwrap();
    registry.push("library/image", "1", image);
    registry
}

fn assert_same(what: &str, wanted: &BTreeMap<Vec<u8>, Seen>, at: &Path, compare: Compare) {
    let lines = walk::differences(wanted, &walk::seen(at).unwrap(), compare);
    assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
}

/// Mounts through the library, in this process, and calls `check` with the mount point.
fn with_mounted(image: &Image, check: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let store = Arc::new(peelfs::store::Store::open(&dir.path().join("cache"), None).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mounted = runtime.block_on(async {
        let fs = shown::open(&MemorySource::new(image), &store).await.unwrap();
        fuse::mount(fs, &fuse::Target::open(&at).unwrap(), &MountOptions::default()).unwrap()
    });
    check(&at);
    drop(mounted);
    assert!(fuse::mounts::at(&at).is_none());
}

#[test]
fn a_mount_shows_what_the_layers_say() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let table: &[(&str, &[Packing], Family)] = &[
        ("stored", &[Packing::Stored], Family::Oci),
        ("gzip", &[Packing::GZIP], Family::Oci),
        ("several members", &[Packing::Gzip { level: 1, member: Some(100_000) }], Family::Docker),
        ("zstd", &[Packing::ZSTD], Family::Oci),
        ("several frames", &[Packing::Zstd { level: 1, frame: Some(70_000), skippable: true }], Family::Oci),
        ("mixed", &[Packing::GZIP, Packing::Stored, Packing::ZSTD], Family::Docker),
    ];
    for (what, packings, family) in table {
        let registry = serve(&packed(&layers, packings, *family));
        let sandbox = Sandbox::new();
        let mounted = sandbox.mount(&registry.reference("library/image", "1"), "a");
        assert_same(what, &tree_of(&layers), &mounted.path, Compare::Exactly);
        mounted.unmount();
    }
}

#[test]
fn a_mount_of_docker_registry_shows_what_umoci_unpacks() {
    if cannot_mount() || ["docker-registry", "skopeo", "umoci"].into_iter().any(is_missing) {
        return;
    }
    let sandbox = Sandbox::new();
    let served = DockerRegistry::start(&sandbox.path().join("registry"));
    let (layout, pulled, bundle) =
        (sandbox.path().join("layout"), sandbox.path().join("pulled"), sandbox.path().join("bundle"));
    let packings = [Packing::GZIP, Packing::Stored, Packing::Gzip { level: 6, member: Some(50_000) }];
    packed(&everything(), &packings, Family::Oci).write_layout(&layout, "1").unwrap();
    let reference = format!("{}/library/image:1", served.address);
    let remote = format!("docker://{reference}");
    let (from, to) = (format!("oci:{}:1", layout.display()), format!("oci:{}:1", pulled.display()));
    run(Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &from, &remote]));
    run(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &remote, &to]));
    run(Command::new("umoci").args(["unpack", "--image", &format!("{}:1", pulled.display())]).arg(&bundle));
    let unpacked = walk::seen(&bundle.join("rootfs")).unwrap();

    let mounted = sandbox.mount(&reference, "a");
    assert_same("umoci", &unpacked, &mounted.path, Compare::AsUnpacked);
    assert_same("the model", &tree_of(&everything()), &mounted.path, Compare::Exactly);
    mounted.unmount();
}

/// It fetches what it is asked for from the registry, and keeps it.
#[test]
fn docker_registry_as_a_pull_through_cache_is_a_mirror() {
    if cannot_mount() || is_missing("docker-registry") {
        return;
    }
    let image = packed(&everything(), &[Packing::GZIP], Family::Oci);
    let registry = Registry::start(Catalog::default().image("library/image", "1", &image)).unwrap();
    let sandbox = Sandbox::new();
    let proxy = format!("proxy: {{remoteurl: '{}'}}\n", registry.base_url());
    let served = DockerRegistry::start_with(&sandbox.path().join("registry"), &proxy);
    let hosts = sandbox.path().join("certs.d").join(registry.addr().to_string());
    std::fs::create_dir_all(&hosts).unwrap();
    std::fs::write(hosts.join("hosts.toml"), format!("[host.'http://{}']\ncapabilities = ['pull']", served.address))
        .unwrap();
    let option = format!("--hosts-dir={}", sandbox.path().join("certs.d").display());
    let mounted = sandbox.mount_with(&registry.reference("library/image", "1"), "a", &[&option]);
    assert_same("the model", &tree_of(&everything()), &mounted.path, Compare::Exactly);
    let status = sandbox.peelfs(["status", "--json"]).arg(&mounted.path).output().unwrap();
    mounted.unmount();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let bytes = |number: usize| status["hosts"][number]["received_bytes"].as_u64().unwrap();
    assert!(bytes(0) > 0 && bytes(1) == 0, "{status}");
}

/// Debian's docker-registry on a free port, with storage of its own.
struct DockerRegistry {
    child: Child,
    address: String,
}

impl DockerRegistry {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// With further lines of configuration.
    fn start_with(dir: &Path, more: &str) -> Self {
        std::fs::create_dir(dir).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{more}",
            dir.display()
        );
        std::fs::write(dir.join("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut address = None;
        let mut line = String::new();
        while address.is_none() && log.read_line(&mut line).unwrap() > 0 {
            let found = line.split_once("listening on ").map(|(_, rest)| rest);
            address = found.map(|rest| rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect());
            line.clear();
        }
        // It stops when its output is no longer read.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address: address.expect("docker-registry says where it listens") }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}

#[test]
fn random_images_mounted_look_as_the_model_says() {
    if cannot_mount() {
        return;
    }
    for seed in 500..504 {
        let random = random::image(seed, &Shape { large: 2_000_000, ..Shape::default() });
        with_mounted(&random.image, |at| {
            assert_same(&format!("seed {seed}"), &random.tree.seen(), at, Compare::Exactly);
        });
    }
}

#[test]
fn a_sparse_file_has_its_holes() {
    if cannot_mount() {
        return;
    }
    const SIZE: usize = 9 << 20;
    let mut wanted = vec![0; SIZE];
    let mut random = Random::new(7);
    let mut data = format!("2\n{}\n5000\n{}\n70000\n", 4096, 5 << 20).into_bytes();
    data.resize(512, 0);
    for (at, len) in [(4096, 5000), (5 << 20, 70_000)] {
        let bytes = random.bytes(len);
        wanted[at..at + len].copy_from_slice(&bytes);
        data.extend_from_slice(&bytes);
    }
    let mut pax = Vec::new();
    for (key, value) in [("major", "1"), ("minor", "0"), ("name", "sparse"), ("realsize", &SIZE.to_string())] {
        append_pax(&mut pax, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
    }
    let mut raw = Vec::new();
    Header { name: b"pax", kind: b'x', size: pax.len() as u64, mode: 0o644, ..Header::EMPTY }.write(&mut raw);
    append_padded(&mut raw, &pax);
    let size = data.len() as u64;
    Header { name: b"GNUSparseFile.0/sparse", kind: b'0', size, mode: 0o600, mtime: 5, ..Header::EMPTY }
        .write(&mut raw);
    append_padded(&mut raw, &data);

    let image = ImageBuilder::new().layer(LayerBuilder::new().raw(&raw).file("after", "it")).build();
    with_mounted(&image, |at| {
        let file = std::fs::File::open(at.join("sparse")).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o7777), (SIZE as u64, 0o600));
        assert!(metadata.blocks() * 512 < 100_000, "{} blocks", metadata.blocks());
        let mut got = Vec::new();
        (&file).read_to_end(&mut got).unwrap();
        assert!(got == wanted);
        let seek = |from| rustix::fs::seek(&file, from).unwrap();
        assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), 4096);
        assert_eq!(seek(rustix::fs::SeekFrom::Hole(4096)), 9096);
        assert_eq!(seek(rustix::fs::SeekFrom::Data(9096)), 5 << 20);
        assert_eq!(std::fs::read(at.join("after")).unwrap(), b"it");
    });
}

#[test]
fn five_hundred_layers_are_one_tree() {
    if cannot_mount() {
        return;
    }
    let layers: Vec<Vec<Entry>> = (0..500)
        .map(|number| {
            let mut layer = vec![
                Entry::dir("d").mtime(number, 0),
                Entry::file(format!("d/{number:03}"), number.to_string()),
                Entry::file("top", number.to_string()),
            ];
            if number % 2 == 1 {
                layer.push(Entry::whiteout(format!("d/{:03}", number - 1)));
            }
            layer
        })
        .collect();
    with_mounted(&packed(&layers, &[Packing::GZIP], Family::Oci), |at| {
        assert_same("500 layers", &tree_of(&layers), at, Compare::Exactly);
    });
}

#[test]
fn a_directory_of_a_hundred_thousand_names_lists_each_once() {
    if cannot_mount() {
        return;
    }
    let names = |range: std::ops::Range<u32>| range.map(|n| Entry::file(format!("d/{n:06}"), "")).collect::<Vec<_>>();
    let mut upper = names(99_000..100_000);
    upper.extend((0..500).map(|n| Entry::whiteout(format!("d/{:06}", n * 7))));
    for layers in [vec![names(0..100_000)], vec![names(0..99_500), upper]] {
        let hidden = if layers.len() == 1 { 0 } else { 500 };
        with_mounted(&packed(&layers, &[Packing::ZSTD], Family::Oci), |at| {
            let mut listed: Vec<_> =
                std::fs::read_dir(at.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(listed.len(), 100_000 - hidden);
            listed.sort();
            listed.dedup();
            assert_eq!(listed.len(), 100_000 - hidden, "a name came twice");
            assert!(at.join("d/099999").exists() && !at.join("d/100000").exists());
            assert_eq!(at.join("d/003493").exists(), hidden == 0);
        });
    }
}

#[test]
fn a_path_of_four_thousand_names_can_be_walked() {
    if cannot_mount() {
        return;
    }
    use rustix::fs::{Mode, OFlags, openat};
    const DEPTH: usize = 4000;
    let path = ["d/".repeat(DEPTH), "bottom".to_owned()].concat();
    let layers = vec![vec![Entry::file(path.as_str(), "1")], vec![Entry::file(path.as_str(), "deep")]];
    with_mounted(&packed(&layers, &[Packing::GZIP], Family::Oci), |at| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(at, flags, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
        }
        let file = openat(&dir, "bottom", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut text = String::new();
        std::fs::File::from(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "deep");
    });
}

#[test]
fn what_is_written_is_refused_as_read_only() {
    if cannot_mount() {
        return;
    }
    let image = ImageBuilder::new().layer(LayerBuilder::new().dir("d").file("d/f", "x")).build();
    with_mounted(&image, |at| {
        let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
        let read_only = Some(rustix::io::Errno::ROFS.raw_os_error());
        assert_eq!(errno(std::fs::write(at.join("d/new"), "x")), read_only);
        assert_eq!(errno(std::fs::write(at.join("d/f"), "x")), read_only);
        assert_eq!(errno(std::fs::remove_file(at.join("d/f"))), read_only);
        assert_eq!(errno(std::fs::create_dir(at.join("e"))), read_only);
        assert_eq!(errno(std::fs::set_permissions(at.join("d/f"), PermissionsExt::from_mode(0o777))), read_only);
        assert_eq!(errno(std::os::unix::fs::symlink("x", at.join("l"))), read_only);
    });
}

/// An image whose one interesting file, `data`, is spread over many spans between two others.
fn spread(packing: Packing) -> (Image, Vec<u8>) {
    let mut random = Random::new(3);
    // Half as large when compressed, so that gzip has deflate blocks to make checkpoints at.
    let mut text = |len: usize| (0..len).map(|_| b"0123456789abcdef"[random.below(16)]).collect::<Vec<u8>>();
    let (before, data, after) = (text(6 << 20), text(100_000), text(6 << 20));
    let layer = LayerBuilder::new().file("before", before).file("data", data.clone()).file("after", after);
    (ImageBuilder::new().layer(layer.packing(packing)).build(), data)
}

const SPREAD: [Packing; 4] = [
    Packing::GZIP,
    Packing::Gzip { level: 6, member: Some(1 << 20) },
    Packing::Zstd { level: 3, frame: Some(500_000), skippable: false },
    Packing::Stored,
];

#[test]
fn a_second_mount_asks_for_no_blob() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let registry = serve(&packed(&layers, &[Packing::GZIP, Packing::ZSTD], Family::Oci));
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    sandbox.mount(&reference, "a").unmount();
    registry.clear();
    let mounted = sandbox.mount(&reference, "a");
    assert_same("second mount", &tree_of(&layers), &mounted.path, Compare::Exactly);
    let requests = registry.requests();
    assert_eq!(registry.blob_bytes(), 0);
    assert!(!requests.iter().any(|request| request.is_blob()), "{requests:?}");
    let manifests = requests.iter().filter(|request| request.is_manifest());
    assert_eq!(manifests.map(|request| request.request.method.as_str()).collect::<Vec<_>>(), ["HEAD"]);
    mounted.unmount();

    // By digest or offline, no request is needed.
    let pinned = format!(
        "{}/library/image@{}",
        registry.addr(),
        packed(&layers, &[Packing::GZIP, Packing::ZSTD], Family::Oci).root().digest
    );
    sandbox.mount(&pinned, "a").unmount();
    registry.clear();
    sandbox.mount(&pinned, "a").unmount();
    let offline = sandbox.mount_point("a");
    let output = offline.try_mount(&reference, &["--offline", "--wait"]);
    assert!(output.status.success(), "{}", said(&output));
    offline.unmount();
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());

    // Evicted data cannot be read, and is not requested.
    sandbox.drop_content();
    let output = offline.try_mount(&reference, &["--offline"]);
    assert!(output.status.success(), "{}", said(&output));
    let read = walk::seen(&offline.path).expect_err("files have bytes");
    assert_eq!(read.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    offline.unmount();
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
}

/// A mount, its reads after the cache was emptied, and the one that takes it over: none asks for a blob.
#[test]
fn layers_in_their_descriptors_are_mounted_without_a_blob() {
    if cannot_mount() {
        return;
    }
    let data = Random::new(5).bytes(600_000);
    let layers = [Packing::Stored, Packing::GZIP, Packing::ZSTD].map(|packing| {
        let name = format!("{packing:?}").split(' ').next().unwrap().to_owned();
        LayerBuilder::new().packing(packing).file(&name, data.clone())
    });
    let image = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).inlined().build();
    let registry = serve(&image);
    let (sandbox, reference) = (Sandbox::new(), registry.reference("library/image", "1"));
    let read = |mounted: &MountPoint<'_>| {
        for name in ["Stored", "Gzip", "Zstd"] {
            assert!(std::fs::read(mounted.join(name)).unwrap() == data, "{name}");
        }
    };
    let mounted = sandbox.mount(&reference, "a");
    read(&mounted);
    mounted.unmount();
    assert!(sandbox.drop_content().bytes > 0);
    let mounted = sandbox.mount(&reference, "a");
    let before = mounted.server();
    mounted.upgrade();
    mounted.until_served_by_another(before);
    read(&mounted);
    mounted.unmount();
    assert!(registry.requests().iter().all(|request| request.is_manifest()), "{:?}", registry.requests());
}

#[test]
fn layers_that_are_known_from_another_image_are_not_asked_for() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let base = packed(&layers[..2], &[Packing::GZIP], Family::Oci);
    let whole = packed(&layers, &[Packing::GZIP], Family::Oci);
    let registry = serve(&base);
    registry.push("other/image", "2", &whole);
    let sandbox = Sandbox::new();
    sandbox.mount(&registry.reference("library/image", "1"), "a").unmount();
    registry.clear();
    let mounted = sandbox.mount(&registry.reference("other/image", "2"), "b");
    assert_same("on a known base", &tree_of(&layers), &mounted.path, Compare::Exactly);
    let asked: Vec<_> = registry.requests().into_iter().filter(|request| request.is_blob()).collect();
    for layer in &whole.layers()[..2] {
        assert!(!asked.iter().any(|request| request.request.path.ends_with(layer.digest.hex())), "{asked:?}");
    }
    let config = whole.blob_size() - whole.layers().iter().map(|layer| layer.blob.len() as u64).sum::<u64>();
    assert_eq!(registry.blob_bytes(), whole.layers()[2].blob.len() as u64 + config);
    mounted.unmount();
}

#[test]
fn a_read_without_content_asks_for_its_spans_only() {
    if cannot_mount() {
        return;
    }
    for packing in SPREAD {
        let (image, data) = spread(packing);
        let registry = serve(&image);
        let reference = registry.reference("library/image", "1");
        let sandbox = Sandbox::new();
        sandbox.mount(&reference, "a").unmount();
        assert!(sandbox.drop_content().bytes > 0);
        registry.clear();
        let mounted = sandbox.mount(&reference, "a");
        assert!(mounted.join("before").exists());
        assert_eq!(registry.blob_bytes(), 0, "{packing:?}: looking is not reading");
        assert!(std::fs::read(mounted.join("data")).unwrap() == data, "{packing:?}");
        let (asked, whole) = (registry.blob_bytes(), image.layers()[0].blob.len() as u64);
        assert!(asked > 0 && asked * 4 < whole, "{packing:?}: {asked} of {whole} bytes");
        assert!(registry.requests().iter().filter(|request| request.is_blob()).all(|request| request.status == 206));
        mounted.unmount();
        // Not before: data after the file is still being fetched.
        registry.clear();
        let again = sandbox.mount_with(&reference, "a", &["--prefetch", "none"]);
        assert!(std::fs::read(again.join("data")).unwrap() == data);
        assert_eq!(registry.blob_bytes(), 0, "{packing:?}: what was read is kept");
        again.unmount();
    }
}

#[test]
fn a_cached_span_that_was_damaged_is_fetched_again() {
    if cannot_mount() {
        return;
    }
    for packing in SPREAD {
        let (image, data) = spread(packing);
        let registry = serve(&image);
        let reference = registry.reference("library/image", "1");
        let sandbox = Sandbox::new();
        sandbox.mount(&reference, "a").unmount();
        let content =
            sandbox.bucket("content-v2").into_iter().find(|path| path.extension().unwrap() == "data").unwrap();
        let file = std::fs::File::options().read(true).write(true).open(content).unwrap();
        // The tar has a header of 512 bytes before each file.
        let at = 512 + (6 << 20) + 512 + 50_000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(byte[0], data[50_000]);
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();

        registry.clear();
        let mounted = sandbox.mount(&reference, "a");
        assert!(std::fs::read(mounted.join("data")).unwrap() == data, "{packing:?}");
        let (asked, whole) = (registry.blob_bytes(), image.layers()[0].blob.len() as u64);
        assert!(asked > 0 && asked * 4 < whole, "{packing:?}: {asked} of {whole} bytes");
        mounted.unmount();
        file.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(byte[0], data[50_000], "{packing:?}: the cache is whole again");
    }
}

#[test]
fn a_damaged_or_missing_cache_file_costs_only_a_fetch() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let registry = serve(&packed(&layers, &[Packing::GZIP, Packing::ZSTD, Packing::Stored], Family::Oci));
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    sandbox.mount(&reference, "a").unmount();
    for bucket in ["content-v2", "document-v1", "tag-v1", "index-v2"] {
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 5] = [
            ("flipped", |bytes| bytes.iter_mut().step_by(61).for_each(|byte| *byte ^= 1)),
            ("first byte flipped", |bytes| bytes.iter_mut().take(1).for_each(|byte| *byte ^= 0x80)),
            ("cut short", |bytes| bytes.truncate(bytes.len() / 2)),
            ("emptied", Vec::clear),
            ("longer", |bytes| bytes.extend_from_slice(&[0x81; 5000])),
        ];
        for (what, damage) in damages {
            for path in sandbox.bucket(bucket) {
                let mut bytes = std::fs::read(&path).unwrap();
                damage(&mut bytes);
                std::fs::write(&path, bytes).unwrap();
            }
            for _ in layers.iter().filter(|_| bucket == "index-v2") {
                // A damaged page of an index is noticed when it is needed, and then it may be too late
                // for this mount. One that fails removes the index, so that the next one can do better.
                let mounted = sandbox.mount(&reference, "a");
                let failed = walk::seen(&mounted.path).err().and_then(|error| error.raw_os_error());
                assert!(matches!(failed, None | Some(5)), "{failed:?}");
                mounted.unmount();
            }
            let mounted = sandbox.mount(&reference, "a");
            assert_same(&format!("{bucket} {what}"), &tree_of(&layers), &mounted.path, Compare::Exactly);
            mounted.unmount();
        }
        sandbox.bucket(bucket).iter().for_each(|path| std::fs::remove_file(path).unwrap());
        let mounted = sandbox.mount(&reference, "a");
        assert_same(&format!("{bucket} removed"), &tree_of(&layers), &mounted.path, Compare::Exactly);
        mounted.unmount();
    }
}

#[test]
fn on_known_layers_the_first_answer_waits_for_the_new_one_only() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let registry = serve(&packed(&layers[..2], &[Packing::GZIP], Family::Oci));
    let whole = packed(&layers, &[Packing::GZIP], Family::Oci);
    registry.push("other/image", "2", &whole);
    let sandbox = Sandbox::new();
    sandbox.mount(&registry.reference("library/image", "1"), "a").unmount();
    registry.clear();
    let at = sandbox.mount_point("b");
    let output = at.try_mount(&registry.reference("other/image", "2"), &[]);
    assert!(output.status.success(), "{}", said(&output));
    // Of the lowest layer, and hidden by none above: every layer takes part in the lookup.
    assert_eq!(std::fs::read(at.join("etc/implied")).unwrap(), b"parent without an entry");
    let requests = registry.requests();
    let asked = |layer: usize| {
        let hex = whole.layers()[layer].digest.hex();
        requests.iter().filter(|request| request.is_blob() && request.request.path.ends_with(hex)).count()
    };
    assert_eq!([0, 1, 2].map(asked), [0, 0, 1], "{requests:?}");
    at.unmount();
}

/// The kernel asks what the root is like before it asks for any name in there, to know who may look; so it must be
/// known which layer describes the root.
#[test]
fn what_upper_layers_decide_is_shown_before_the_base_is_known() {
    if cannot_mount() {
        return;
    }
    let base = LayerBuilder::new().entry(Entry::dir("./").mode(0o700)).entry(Entry::file("below", "of the base"));
    let upper = LayerBuilder::new().entry(Entry::dir("./").mode(0o711)).entry(Entry::dir("app/"));
    let upper = upper.entry(Entry::file("app/program", "of the upper layer"));
    let image = ImageBuilder::new().layer(base).layer(upper).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let (gate, blob) = (Gate::new(), image.layers()[0].digest.clone());
    registry.faults().add(Rule::new(Target::Blob(blob), Fault::Stall { after: 0, gate: gate.clone() }));
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("mnt");
    let output = at.try_mount(&registry.reference("app", "1"), &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::read(at.join("app/program")).unwrap(), b"of the upper layer");
    assert_eq!(std::fs::metadata(&at.path).unwrap().permissions().mode() & 0o7777, 0o711);

    gate.open();
    assert_eq!(std::fs::read(at.join("below")).unwrap(), b"of the base");
    at.unmount();
}

#[test]
fn two_mounts_of_a_new_image_at_once_fetch_each_blob_once() {
    if cannot_mount() {
        return;
    }
    let layers = everything();
    let image = packed(&layers, &[Packing::GZIP], Family::Oci);
    let registry = serve(&image);
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let points: Vec<MountPoint<'_>> = ["a", "b", "c"].map(|name| sandbox.mount_point(name)).into();
    std::thread::scope(|scope| {
        for point in &points {
            scope.spawn(|| {
                let output = point.try_mount(&reference, &["--wait"]);
                assert!(output.status.success(), "{}", said(&output));
            });
        }
    });
    for point in &points {
        assert_same("mounted at once", &tree_of(&layers), &point.path, Compare::Exactly);
    }
    for layer in image.layers() {
        let asked =
            registry.requests().into_iter().filter(|request| request.request.path.ends_with(layer.digest.hex()));
        assert_eq!(asked.filter(|request| request.request.method == "GET").count(), 1, "{}", layer.digest);
    }
    points.iter().for_each(MountPoint::unmount);
}

#[test]
fn cold_content_read_mapped_and_run_by_many_at_once_is_right() {
    if cannot_mount() || is_missing("python3") {
        return;
    }
    let programs: Vec<(String, Vec<u8>)> = ["/bin/true", "/bin/cat", "/usr/bin/sha256sum", "/usr/bin/cmp", "/bin/ls"]
        .into_iter()
        .filter_map(|path| Some((path.rsplit('/').next()?.to_owned(), std::fs::read(path).ok()?)))
        .collect();
    let mut random = Random::new(11);
    let files: Vec<(String, Vec<u8>)> = (0..3)
        .map(|number| {
            let word = random.bytes(300);
            let content = (0..1_500_000).map(|at| word[(at * (number + 1) / 7) % 300] ^ (at >> 12) as u8).collect();
            (format!("file{number}"), content)
        })
        .collect();
    for packing in SPREAD {
        let layer = files.iter().fold(LayerBuilder::new(), |layer, (name, content)| layer.file(name, content.clone()));
        let layer = programs
            .iter()
            .fold(layer, |layer, (name, content)| layer.entry(Entry::file(name.as_str(), content.clone()).mode(0o755)));
        let registry = serve(&ImageBuilder::new().layer(layer.packing(packing)).build());
        let reference = registry.reference("library/image", "1");
        let sandbox = Sandbox::new();
        sandbox.mount(&reference, "a").unmount();
        let originals = sandbox.path().join("originals");
        std::fs::create_dir(&originals).unwrap();
        for (name, content) in files.iter().chain(&programs) {
            std::fs::write(originals.join(name), content).unwrap();
        }
        for _ in 0..2 {
            sandbox.drop_content();
            let mounted = sandbox.mount(&reference, "a");
            let mut children: Vec<Child> = Vec::new();
            for (name, _) in files.iter().chain(&programs) {
                let (shown, original) = (mounted.join(name), originals.join(name));
                let mut mapping = Command::new("python3");
                mapping.args(["-c", MAPPED]).args([&shown, &original]);
                let mut reading = Command::new("cmp");
                reading.args([&shown, &original]);
                children.extend([mapping, reading].map(|mut command| command.spawn().unwrap()));
            }
            // What runs is the image's own copy; it finds the host's libraries.
            for (name, _) in &programs {
                let mut running = Command::new(mounted.join(name));
                running.arg("--version").stdout(Stdio::null());
                children.push(running.spawn().unwrap());
            }
            for mut child in children {
                assert!(child.wait().unwrap().success(), "{packing:?}: {child:?}");
            }
            mounted.unmount();
        }
    }
}

/// Maps both files and compares them page by page, from the end to the beginning.
const MAPPED: &str = "
import mmap, sys
files = [open(path, 'rb') for path in sys.argv[1:]]
a, b = (mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in files)
assert len(a) == len(b)
for at in reversed(range(0, len(a), 4096)):
    assert a[at:at + 4096] == b[at:at + 4096], at
";

fn small() -> Image {
    ImageBuilder::new().layer(LayerBuilder::new().dir("d").file("d/f", "content")).build()
}

/// Kills the process of a mount without a keeper; returns once reads there fail.
fn kill_for_good(at: &MountPoint) {
    at.signal(Signal::KILL);
    wait_for(|| std::fs::metadata(&at.path).is_err());
}

#[test]
fn a_mount_whose_server_was_killed_is_cleared_by_the_next() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let at = sandbox.mount_with(&reference, "a", &["--no-keeper"]);
    kill_for_good(&at);
    assert!(at.is_mounted());
    let output = at.try_mount(&reference, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::read(at.join("d/f")).unwrap(), b"content");
    at.unmount();

    let at = sandbox.mount_with(&reference, "b", &["--no-keeper"]);
    kill_for_good(&at);
    at.unmount();
}

#[test]
fn of_many_that_mount_on_a_directory_at_once_one_does() {
    if cannot_mount() {
        return;
    }
    const MANY: usize = 6;
    for how in [&[][..], &["--share"]] {
        let registry = serve(&small());
        let reference = registry.reference("library/image", "1");
        let sandbox = Sandbox::new();
        let at = sandbox.mount_point("a");
        // All have seen an empty directory when they may go on.
        let gate = Gate::new();
        registry.faults().add(Rule::new(Target::Manifests, Fault::Hang(gate.clone())));
        let outputs: Vec<_> = std::thread::scope(|scope| {
            let mounting: Vec<_> = (0..MANY).map(|_| scope.spawn(|| at.try_mount(&reference, how))).collect();
            assert!(registry.wait_until(|requests| requests.len() >= MANY));
            gate.open();
            mounting.into_iter().map(|mounting| mounting.join().unwrap()).collect()
        });
        let codes: Vec<_> = outputs.iter().map(|output| output.status.code().unwrap()).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{how:?}: {codes:?}");
        for output in outputs.iter().filter(|output| !output.status.success()) {
            assert_eq!(output.status.code(), Some(2), "{how:?}: {}", said(output));
            assert!(said(output).contains("is already a peelfs mount of"), "{how:?}: {}", said(output));
        }
        assert_eq!(std::fs::read(at.join("d/f")).unwrap(), b"content");
        at.unmount();
    }
}

#[test]
fn a_mount_point_whose_server_hangs_is_taken_without_a_wait() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let at = sandbox.mount_with(&reference, "a", &["--no-keeper"]);
    at.signal(Signal::STOP);
    let output = at.try_mount(&reference, &[]);
    at.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("is already a peelfs mount"), "{}", said(&output));
    at.unmount();
}

#[test]
fn the_mounts_of_a_user_are_those_whose_status_it_may_read() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    let (own, others) = (Sandbox::new(), Sandbox::new());
    let (one, two) = (own.mount(&reference, "one"), own.mount(&reference, "two"));
    let other = others.mount(&reference, "other");
    let output = own.unmount_all();
    assert!(output.status.success(), "{}", said(&output));
    assert!(!one.is_mounted() && !two.is_mounted() && other.is_mounted());
    assert!(said(&output).contains(other.path.to_str().unwrap()), "{}", said(&output));
    other.unmount();
}

#[test]
fn a_process_with_the_number_of_a_killed_one_tells_of_its_mount() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let mut peelfs = sandbox.peelfs(["mount", "-f", "--no-keeper", &registry.reference("library/image", "1")]);
    peelfs.arg(&at.path);
    // Its number is known before it runs.
    let mut command = Command::new("sh");
    command.args(["-c", r#"read go; exec "$@""#, "sh"]).arg(peelfs.get_program()).args(peelfs.get_args());
    command.env_clear().envs(peelfs.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut server = command.stdin(Stdio::piped()).spawn().unwrap();
    let left = sandbox.path().join(format!("run/peelfs/{}-0.sock", server.id()));
    std::fs::create_dir(left.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(left).unwrap());
    server.stdin.take().unwrap().write_all(b"go\n").unwrap();
    wait_for(|| at.state().is_some() || server.try_wait().unwrap().is_some());
    assert_eq!(std::fs::read(at.join("d/f")).unwrap(), b"content");
    at.unmount();
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_signal_unmounts() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    for sent in [Signal::TERM, Signal::INT, Signal::HUP] {
        let at = sandbox.mount(&reference, "a");
        let open = std::fs::File::open(at.join("d/f")).unwrap();
        at.signal(sent);
        wait_for(|| !at.is_mounted());
        let mut text = String::new();
        (&open).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content", "an open file is read to its end");
    }
}

#[test]
fn umount_takes_away_only_what_peelfs_mounted() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
    // In a process of its own: programs that other threads of this one start have its files for a moment.
    let open = std::fs::File::open(at.join("d/f")).unwrap();
    let mut holder = Command::new("sleep").arg("1000").stdin(open).spawn().unwrap();
    let refused = sandbox.run(["umount".as_ref(), at.path.as_os_str()]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(at.is_mounted(), "files are open");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let nothing = sandbox.path().join("nothing");
    let both = sandbox.run(["umount".as_ref(), nothing.as_os_str(), at.path.as_os_str()]);
    assert_eq!(both.status.code(), Some(3), "{}", said(&both));
    assert!(!at.is_mounted(), "the other one is unmounted all the same: {}", said(&both));
    let neither = sandbox.run(["umount".as_ref(), nothing.as_os_str(), at.path.as_os_str()]);
    assert_eq!(neither.status.code(), Some(3), "{}", said(&neither));
    for path in [&nothing, &at.path] {
        assert!(said(&neither).contains(&format!("nothing is mounted on `{}`", path.display())), "{}", said(&neither));
    }

    let again = sandbox.run(["umount".as_ref(), at.path.as_os_str()]);
    assert_eq!(again.status.code(), Some(3), "{}", said(&again));
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at.path));
    let foreign = sandbox.run(["umount".as_ref(), at.path.as_os_str()]);
    assert_eq!(foreign.status.code(), Some(2), "{}", said(&foreign));
    assert!(at.is_mounted(), "a tmpfs is not ours to unmount");
    run(Command::new("umount").arg(&at.path));
}

#[test]
fn a_mount_that_cannot_be_made_leaves_nothing_mounted() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let reference = registry.reference("library/image", "1");
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let table: [(&str, &[&str], i32); 5] = [
        (&registry.reference("library/image", "2"), &[], 3),
        (&registry.reference("no/such", "1"), &[], 3),
        ("not a reference", &[], 2),
        (&reference, &["--platform", "linux/riscv64"], 3),
        ("127.0.0.1:1/library/image:1", &[], 6),
    ];
    for (reference, more, code) in table {
        let output = at.try_mount(reference, more);
        assert_eq!(output.status.code(), Some(code), "{reference}: {}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{}", said(&output));
        assert!(!at.is_mounted());
    }
    let missing = sandbox.peelfs(["mount", &reference]).arg(sandbox.path().join("nowhere")).output().unwrap();
    assert_eq!(missing.status.code(), Some(3), "{}", said(&missing));

    let mounted = sandbox.mount(&reference, "b");
    let twice = mounted.try_mount(&reference, &[]);
    assert_eq!(twice.status.code(), Some(2), "{}", said(&twice));
    assert!(mounted.join("d/f").exists());
    mounted.unmount();
}

#[test]
fn five_hundred_layers_need_no_more_files_than_a_login_allows() {
    if cannot_mount() || is_missing("prlimit") {
        return;
    }
    let layers: Vec<Vec<Entry>> = (0..500).map(|n| vec![Entry::file(format!("f{n}"), n.to_string())]).collect();
    let registry = serve(&packed(&layers, &[Packing::GZIP], Family::Oci));
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let output = Command::new("prlimit")
        .arg("--nofile=1024:")
        .arg(support::sandbox::program())
        .args(["mount", "--wait", &registry.reference("library/image", "1")])
        .arg(&at.path)
        .arg("--cache-dir")
        .arg(sandbox.cache())
        .env("XDG_RUNTIME_DIR", sandbox.path().join("run"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_same("500 layers", &tree_of(&layers), &at.path, Compare::Exactly);
    at.unmount();
}

#[test]
fn root_of_a_user_namespace_may_mount() {
    if cannot_mount() || is_missing("unshare") {
        return;
    }
    let namespace = ["--user", "--map-root-user", "--mount"];
    if !Command::new("unshare").args(namespace).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine does not allow user namespaces");
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let script = "\"$1\" mount --wait \"$2\" \"$3\" && cat \"$3/d/f\" && \"$1\" umount \"$3\"";
    let output = Command::new("unshare")
        .args(namespace)
        .args(["sh", "-c", script, "sh"])
        .arg(support::sandbox::program())
        .arg(registry.reference("library/image", "1"))
        .arg(&at.path)
        .env("PEELFS_CACHE_DIR", sandbox.cache())
        .env("XDG_RUNTIME_DIR", sandbox.path().join("run"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "content");
    assert!(!at.is_mounted(), "the namespace's mount is its own");
}

/// Polls until the condition holds; the kernel and another process need a moment.
fn wait_for(mut test: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !test() {
        assert!(begin.elapsed().as_secs() < 60, "it never came to be so");
        support::pause();
    }
}

#[test]
fn a_relative_path_means_the_same_in_every_process_of_a_mount() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let layer = LayerBuilder::new().file("f", "content").file("g", "more");
    ImageBuilder::new().layer(layer).build().write_layout(&sandbox.path().join("layout"), "1").unwrap();
    let at = sandbox.mount_point("mnt");
    let mut command = sandbox.peelfs(["mount", "oci:layout:1", "--cache-dir", "kept"]);
    let output = command.arg(&at.path).current_dir(sandbox.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let state = at.state().unwrap();
    assert_eq!(state["reference"], format!("oci:{}:1", sandbox.path().join("layout").display()));
    assert_eq!(state["cache"], *sandbox.path().join("kept").to_str().unwrap());
    assert_eq!(std::fs::read(at.join("f")).unwrap(), b"content");
    at.kill_server();
    assert_eq!(std::fs::read(at.join("g")).unwrap(), b"more");
    at.unmount();
}

#[test]
fn a_log_stays_only_if_something_stands_in_it() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    ImageBuilder::new()
        .layer(LayerBuilder::new().file("f", "content"))
        .build()
        .write_layout(&sandbox.path().join("layout"), "1")
        .unwrap();
    let reference = format!("oci:{}:1", sandbox.path().join("layout").display());
    let logs = || {
        let run = std::fs::read_dir(sandbox.path().join("run/peelfs")).unwrap().map(|entry| entry.unwrap().path());
        run.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect::<Vec<_>>()
    };
    for more in [&["--share"][..], &[]] {
        let at = sandbox.mount_with(&reference, "mnt", more);
        let log = at.state().unwrap()["log"].as_str().unwrap().to_owned();
        assert_eq!(logs(), [std::path::PathBuf::from(log)]);
        let keeper = at.state().unwrap()["keeper"]["pid"].as_i64().unwrap();
        at.unmount();
        while std::fs::exists(format!("/proc/{keeper}/fd/0")).unwrap() {
            support::pause();
        }
        assert_eq!(logs(), [] as [std::path::PathBuf; 0]);
    }
    // Those of processes that are gone: old ones go.
    let [old, new, other] =
        ["999999999.log", "999999998.log", "mine.log"].map(|name| sandbox.path().join("run/peelfs").join(name));
    for log in [&old, &new, &other] {
        std::fs::write(log, "something").unwrap();
    }
    for log in [&old, &other] {
        File::options().write(true).open(log).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    assert!(sandbox.run(["status"]).status.success());
    assert_eq!([old, new, other].map(|log| log.exists()), [false, true, true]);
}

#[test]
fn a_mount_through_a_symlink_is_known_by_both_names() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let link = at.path.with_file_name("link");
    std::os::unix::fs::symlink("a", &link).unwrap();
    let reference = registry.reference("library/image", "1");
    let mounted = sandbox.peelfs(["mount", &reference]).arg(&link).output().unwrap();
    assert!(mounted.status.success(), "{}", said(&mounted));
    assert_eq!(std::fs::read(link.join("d/f")).unwrap(), b"content");
    for name in [&at.path, &link] {
        let status = sandbox.peelfs(["status"]).arg(name).output().unwrap();
        assert!(said(&status).contains("1 of 1 ready"), "{}", said(&status));
    }
    at.unmount();
}

#[test]
fn a_log_that_cannot_be_written_is_an_error_and_no_mount() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount_point("a");
    let log = sandbox.path().join("missing/log");
    for how in [&[][..], &["--no-keeper"], &["--share"]] {
        let log = format!("--log-file={}", log.display());
        let output = at.try_mount(&registry.reference("library/image", "1"), &[&[log.as_str()], how].concat());
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{how:?}: {told}");
        assert!(told.contains("cannot write the log") && told.contains("missing/log"), "{how:?}: {told}");
        assert_eq!(told.matches("error: ").count(), 1, "{how:?}: {told}");
        assert!(!at.is_mounted(), "{how:?}");
    }
    // In the foreground the log goes to stderr.
    for option in ["--log-file=log", "-olog_file=log"] {
        let output = at.try_mount(&registry.reference("library/image", "1"), &["-f", option]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("in the foreground"), "{}", said(&output));
    }
}

#[test]
fn idle_cpus_are_kept_awake_while_reads_come_and_no_longer() {
    const WISH: &str = "/dev/cpu_dma_latency";
    if cannot_mount() {
        return;
    }
    if let Err(error) = std::fs::OpenOptions::new().write(true).open(WISH) {
        eprintln!("skipped: {WISH}: {error}");
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let reference = registry.reference("library/image", "1");
    let mounted = |name, options: &[&str]| {
        let at = sandbox.mount_with(&reference, name, options);
        let open_files = format!("/proc/{}/fd", at.server());
        let file = std::fs::File::open(at.join("d/f")).unwrap();
        let kept_awake = move || {
            let files = std::fs::read_dir(&open_files).unwrap();
            files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(WISH)))
        };
        (at, file, kept_awake)
    };
    // Each is a request, as the kernel has none of them cached.
    let ask = |file: &std::fs::File| (0..100).for_each(|_| assert!(!std::io::IsTerminal::is_terminal(file)));

    let (at, file, kept_awake) = mounted("a", &[]);
    let mut asked = 0;
    wait_for(|| {
        ask(&file);
        asked += 1;
        kept_awake()
    });
    wait_for(|| !kept_awake());
    drop(file);
    at.unmount();

    for (name, option) in [("b", "--let-cpus-sleep"), ("c", "-olet_cpus_sleep")] {
        let (at, file, kept_awake) = mounted(name, &[option]);
        for _ in 0..10 * asked {
            ask(&file);
            assert!(!kept_awake(), "{option}");
        }
        drop(file);
        at.unmount();
    }
}

#[test]
fn the_file_table_need_not_grow_while_layers_are_opened() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
    let status = std::fs::read_to_string(format!("/proc/{}/status", at.server())).unwrap();
    let table = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert!(table.trim().parse::<u64>().unwrap() >= limit.min(2048), "{table}");
    at.unmount();
}

/// The kernel reuses the numbers of a mount that is gone: a server that ends late must not unmount the next one.
#[test]
fn a_server_that_ends_late_takes_no_other_mount_away() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let reference = registry.reference("library/image", "1");
    let gone = sandbox.mount(&reference, "gone");
    let server = gone.server();
    gone.signal(Signal::STOP);
    peelfs::fuse::unmount(&gone.path, peelfs::fuse::OpenFiles::Keep).unwrap();
    // On the same directory and on another one.
    let others = [sandbox.mount(&reference, "gone"), sandbox.mount(&reference, "other")];
    rustix::process::kill_process(rustix::process::Pid::from_raw(server).unwrap(), Signal::CONT).unwrap();
    while Path::new(&format!("/proc/{server}")).exists() {
        support::pause();
    }
    for other in &others {
        assert!(other.is_mounted() && std::fs::read_dir(&other.path).unwrap().next().is_some());
    }
}

/// The kernel forwards names of up to 1,024 bytes.
#[test]
fn a_name_that_is_too_long_is_told_as_such() {
    if cannot_mount() {
        return;
    }
    let registry = serve(&small());
    let sandbox = Sandbox::new();
    let at = sandbox.mount(&registry.reference("library/image", "1"), "a");
    for (length, errno) in [(255, rustix::io::Errno::NOENT), (256, rustix::io::Errno::NAMETOOLONG)] {
        let found = rustix::fs::lstat(at.join(&"n".repeat(length)));
        assert_eq!(found.unwrap_err(), errno, "{length}");
    }
}
