//! `mount --passthrough`: the kernel reads large files directly from the cache, and readers see no difference.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use peelfs_loopback::image::{ArtifactBuilder, ImageBuilder, Layer, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::{Entry, Header, append_padded, append_pax};
use rustix::process::Signal;
use support::load::{self, times};
use support::sandbox::{MountPoint, Sandbox, cannot_mount, said};

const LARGE: usize = 3 << 20;
/// Not whole pages, so that ends of files are tried, too.
const ODD: usize = (1 << 20) + 12_345;
const READERS: usize = 8;
/// `PEELFS_KILLS` makes the run longer.
const KILLS: usize = 10;

fn content(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| ((at / 7).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// A program that is large: what follows its segments is never read.
fn program() -> Vec<u8> {
    let mut bytes = std::fs::read("/bin/true").unwrap();
    bytes.resize(bytes.len() + LARGE, 0x5a);
    bytes
}

fn registry() -> Registry {
    let layer = LayerBuilder::new()
        .file("small", "small")
        .dir("d")
        .file("d/large", content(1, LARGE))
        .file("d/odd", content(2, ODD))
        .hard_link("d/link", "d/large")
        .entry(Entry::file("tool", program()).mode(0o755));
    Registry::start(Catalog::new().image("app", "1", &ImageBuilder::new().layer(layer).build())).unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes
}

/// Runs `work` while the process that serves the mount is stopped; `None` if it needed that process.
fn without_server<T: Send + 'static>(at: &MountPoint<'_>, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    at.signal(Signal::STOP);
    std::thread::spawn(move || sender.send(work()));
    let done = receiver.recv_timeout(Duration::from_secs(10)).ok();
    at.signal(Signal::CONT);
    done
}

/// Whether the kernel reads an open file directly.
fn is_passed_through(at: &MountPoint<'_>, file: &File, expected: Vec<u8>) -> bool {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let file = file.try_clone().unwrap();
    without_server(at, move || {
        let mut bytes = vec![0; expected.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "wrong bytes");
    })
    .is_some()
}

fn own_files(sandbox: &Sandbox) -> usize {
    sandbox.bucket("whole-v2").iter().filter(|path| path.extension().unwrap() != "seal").count()
}

#[test]
fn only_large_files_are_read_without_the_server() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--passthrough"]);
    assert_eq!(read(&at.join("small")), b"small");
    assert_eq!(own_files(&sandbox), 0);
    let large = File::open(at.join("d/large")).unwrap();
    let link = File::open(at.join("d/link")).unwrap();
    let odd = File::open(at.join("d/odd")).unwrap();
    assert!(is_passed_through(&at, &large, content(1, LARGE)));
    assert!(is_passed_through(&at, &link, content(1, LARGE)));
    assert!(is_passed_through(&at, &odd, content(2, ODD)));
    assert_eq!(own_files(&sandbox), 2, "hard links are one file");
    assert_eq!(large.metadata().unwrap().len(), LARGE as u64);
    assert!(read(&at.join("d/odd")) == content(2, ODD));
    // Running it maps it.
    assert!(Command::new(at.join("tool")).status().unwrap().success());
    assert!(read(&at.join("tool")) == program());
    drop((large, link, odd));
    at.unmount();
    assert!(sandbox.bucket("tmp").is_empty());
}

#[test]
fn an_open_file_outlives_its_eviction() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--passthrough"]);
    let held = File::open(at.join("d/large")).unwrap();
    assert_eq!(own_files(&sandbox), 1);
    let dropped = sandbox.run(["cache", "drop", "--content", "--all"]);
    assert!(dropped.status.success(), "{}", said(&dropped));
    assert_eq!(own_files(&sandbox), 0);
    assert!(is_passed_through(&at, &held, content(1, LARGE)));
    // A second open uses the same way as the first.
    assert!(is_passed_through(&at, &File::open(at.join("d/link")).unwrap(), content(1, LARGE)));
    drop(held);
    // And now from the registry, through the server.
    assert!(read(&at.join("d/large")) == content(1, LARGE));
    at.unmount();
}

#[test]
fn missing_content_is_read_and_passed_through_the_next_time() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    sandbox.mount(&registry.reference("app", "1"), "mnt").unmount();
    sandbox.drop_content();
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--passthrough"]);
    let first = File::open(at.join("d/odd")).unwrap();
    let second = File::open(at.join("d/odd")).unwrap();
    let mut bytes = vec![0; ODD];
    first.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == content(2, ODD));
    assert_eq!(own_files(&sandbox), 0);
    // Now it is completely cached, but an open file keeps its way of reading.
    assert!(read(&at.join("d/odd")) == content(2, ODD));
    assert_eq!(own_files(&sandbox), 0);
    drop((first, second));
    // close(2) does not wait for RELEASE.
    let opened = loop {
        let opened = File::open(at.join("d/odd")).unwrap();
        if own_files(&sandbox) == 1 {
            break opened;
        }
    };
    assert!(is_passed_through(&at, &opened, content(2, ODD)));
    drop(opened);
    at.unmount();
}

/// One blob that is a gzip file of `packed` and a tar of `plain`: the header of a PAX global header begins as a gzip
/// file does, whose extra field goes up to the value of the one record, which is the rest of that file.
fn two_readings(packed: LayerBuilder, plain: &Entry) -> [Layer; 2] {
    let mut packed = packed.build();
    let member = packed.blob.slice(10..);
    let mut record = Vec::new();
    append_pax(&mut record, b"comment", &member);
    let extra = u16::try_from(512 - 12 + record.len() - member.len() - 1).unwrap();
    let name = [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff], &extra.to_le_bytes()[..]].concat();
    let mut tar = Vec::new();
    Header { name: &name, kind: b'g', size: record.len() as u64, ..Header::EMPTY }.write(&mut tar);
    append_padded(&mut tar, &record);
    let plain = LayerBuilder::new().raw(&tar).entry(plain.clone()).packing(Packing::Stored).build();
    packed.blob = plain.blob.clone();
    packed.digest = plain.digest.clone();
    [packed, plain]
}

#[test]
fn one_blob_with_two_readings_shows_each_image_its_own() {
    if cannot_mount() {
        return;
    }
    let layers =
        two_readings(LayerBuilder::new().file("app", content(3, LARGE)), &Entry::file("app", content(4, LARGE)));
    assert_eq!(layers[0].digest, layers[1].digest);
    let images = layers.map(|layer| ImageBuilder::new().layer(layer).build());
    let catalog = Catalog::new().image("app", "packed", &images[0]).image("app", "plain", &images[1]);
    let registry = Registry::start(catalog).unwrap();
    let sandbox = Sandbox::new();
    let passthrough: &[&str] = &["--passthrough"];
    for options in [passthrough, passthrough, &[], &["--share"], &["--verify", "behind"], &["--prefetch", "all"]] {
        let mount = |tag: &str| sandbox.mount_with(&registry.reference("app", tag), tag, options);
        let (packed, plain) = (mount("packed"), mount("plain"));
        for _ in 0..3 {
            for (at, seed) in [(&packed, 3), (&plain, 4)] {
                let file = File::open(at.join("app")).unwrap();
                if options == passthrough {
                    assert!(is_passed_through(at, &file, content(seed, LARGE)));
                }
                assert!(read(&at.join("app")) == content(seed, LARGE), "{options:?}: {seed}");
            }
        }
        packed.unmount();
        plain.unmount();
        if options == passthrough {
            assert_eq!(own_files(&sandbox), 2);
        }
        assert!(sandbox.run(["cache", "verify"]).status.success());
    }
    assert_eq!(
        own_files(&sandbox),
        1,
        "the index is that of one reading, and nothing describes the content of the other"
    );
    assert!(sandbox.run(["cache", "prune", "--content"]).status.success());
    assert_eq!((own_files(&sandbox), sandbox.bucket("content-v2").len()), (0, 0));
}

#[test]
fn a_file_that_is_all_of_its_layer_needs_no_copy() {
    if cannot_mount() {
        return;
    }
    let artifact = ArtifactBuilder::new("application/x").file("weights", content(1, LARGE)).build();
    let registry = Registry::start(Catalog::new().image("m", "1", &artifact)).unwrap();
    let sandbox = Sandbox::new();
    let mount = || sandbox.mount_with(&registry.reference("m", "1"), "mnt", &["--passthrough"]);
    let at = mount();
    assert!(read(&at.join("weights")) == content(1, LARGE));
    let held = File::open(at.join("weights")).unwrap();
    assert!(is_passed_through(&at, &held, content(1, LARGE)));
    assert_eq!(own_files(&sandbox), 0);
    let dropped = sandbox.run(["cache", "drop", "--content", "--all"]);
    assert!(dropped.status.success(), "{}", said(&dropped));
    assert!(is_passed_through(&at, &held, content(1, LARGE)));
    drop(held);
    // From the registry, through the server.
    assert!(read(&at.join("weights")) == content(1, LARGE));
    at.unmount();

    // Another process finds what was changed since, and fetches it again.
    let files = sandbox.bucket("content-v2");
    let own = files.iter().find(|path| path.extension().unwrap() == "data").unwrap();
    File::options().write(true).open(own).unwrap().write_all_at(b"wrong", 1_234_567).unwrap();
    let at = mount();
    assert!(read(&at.join("weights")) == content(1, LARGE));
    let again = File::open(at.join("weights")).unwrap();
    assert!(is_passed_through(&at, &again, content(1, LARGE)));
    drop(again);
    at.unmount();
    assert_eq!(own_files(&sandbox), 0);
}

#[test]
fn two_mounts_read_one_file() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let one = sandbox.mount_with(&registry.reference("app", "1"), "one", &["--passthrough"]);
    let other = sandbox.mount_with(&registry.reference("app", "1"), "other", &["--passthrough"]);
    let files = [&one, &other].map(|at| File::open(at.join("d/large")).unwrap());
    let made = sandbox.bucket("whole-v2");
    assert_eq!(own_files(&sandbox), 1);
    for (at, file) in [&one, &other].into_iter().zip(&files) {
        assert!(is_passed_through(at, file, content(1, LARGE)));
    }
    // They show the content of that file, without further requests while it is open.
    let own = made.iter().find(|path| path.extension().unwrap() != "seal").unwrap();
    File::options().write(true).open(own).unwrap().write_all_at(b"another file's ", 100).unwrap();
    for file in &files {
        let mut bytes = [0; 15];
        file.read_exact_at(&mut bytes, 100).unwrap();
        assert_eq!(&bytes, b"another file's ");
    }
    drop(files);
    one.unmount();
    other.unmount();
}

#[test]
fn a_changed_copy_is_found_at_its_opening_and_by_verify() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let damage = || {
        let files = sandbox.bucket("whole-v2");
        let own = files.iter().find(|path| path.extension().unwrap() != "seal").unwrap();
        File::options().write(true).open(own).unwrap().write_all_at(b"wrong", 1_234_567).unwrap();
    };
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--passthrough"]);
    assert!(read(&at.join("d/large")) == content(1, LARGE));
    at.unmount();
    damage();
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--passthrough"]);
    let again = File::open(at.join("d/large")).unwrap();
    assert!(is_passed_through(&at, &again, content(1, LARGE)));
    drop(again);
    at.unmount();

    damage();
    let verified = sandbox.run(["cache", "verify"]);
    assert_eq!(verified.status.code(), Some(5), "{}", said(&verified));
    assert!(said(&verified).contains("damaged, removed: file "), "{}", said(&verified));
    assert_eq!(own_files(&sandbox), 0);
    let verified = sandbox.run(["cache", "verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn without_room_for_copies_the_server_reads_large_files() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    // Enough for what the layer holds, and for little more.
    let options = ["--passthrough", "--cache-size", "9MiB"];
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &options);
    assert!(read(&at.join("d/large")) == content(1, LARGE));
    assert_eq!(own_files(&sandbox), 0);
    at.unmount();
}

#[test]
fn a_cache_on_a_stacked_file_system_is_refused_with_a_hint() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let stacked = sandbox.path().join("stacked");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| sandbox.path().join(name));
    for dir in [&stacked, &lower, &upper, &work] {
        std::fs::create_dir(dir).unwrap();
    }
    let layers = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mounted =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(&stacked).output().unwrap();
    if !mounted.status.success() {
        eprintln!("skipped: no overlayfs here: {}", said(&mounted));
        return;
    }
    let at = sandbox.mount_point("mnt");
    let cache = stacked.join("cache");
    let output =
        at.try_mount(&registry.reference("app", "1"), &["--passthrough", "--cache-dir", cache.to_str().unwrap()]);
    assert!(Command::new("umount").arg(&stacked).status().unwrap().success());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("the kernel refuses passthrough"), "{}", said(&output));
    assert!(said(&output).contains("a stacked file system"), "{}", said(&output));
    assert!(!at.is_mounted());
}

/// Opens and reads files while `disturb` runs, of which one stays open all the time; returns how many reads there were.
fn under_load(at: &MountPoint<'_>, disturb: impl FnOnce(&dyn Fn())) -> usize {
    let held = File::open(at.join("d/large")).unwrap();
    let (large, odd) = (content(1, LARGE), content(2, ODD));
    let read = |reader: usize, turn: usize| match (turn + reader) % 3 {
        0 => assert!(read(&at.join("d/link")) == large, "wrong bytes"),
        1 => assert!(read(&at.join("d/odd")) == odd, "wrong bytes"),
        _ => {
            let mut bytes = vec![0; LARGE];
            held.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == large, "wrong bytes");
        }
    };
    let reads = load::under_load(READERS, read, disturb).len();
    assert!(is_passed_through(at, &held, large));
    reads
}

#[test]
fn passed_through_reads_outlive_killed_servers_and_upgrades() {
    if cannot_mount() {
        return;
    }
    let (sandbox, registry) = (Sandbox::new(), registry());
    let at = sandbox.mount_with(&registry.reference("app", "1"), "mnt", &["--passthrough"]);
    let kills = times("PEELFS_KILLS", KILLS);
    let reads = under_load(&at, |_| {
        (0..kills).for_each(|_| at.kill_server());
        at.upgrade();
    });
    println!("{kills} kills and an upgrade, {reads} reads by {READERS}");
    // Once they are no longer open, they are opened anew.
    assert!(read(&at.join("d/large")) == content(1, LARGE));
    at.unmount();
}

/// `--passthrough=auto` uses passthrough for indexed layers only, and not for images of small files.
#[test]
fn auto_passes_through_images_of_mostly_large_files() {
    if cannot_mount() {
        return;
    }
    let many = (0..40).fold(LayerBuilder::new(), |layer, n| layer.file(&format!("{n}"), content(n, 300_000)));
    let small = ImageBuilder::new().layer(many.file("d/large", content(1, LARGE))).build();
    let large = LayerBuilder::new().file("small", "small").dir("d").file("d/large", content(1, LARGE));
    let catalog = Catalog::new().image("large", "1", &ImageBuilder::new().layer(large).build());
    let registry = Registry::start(catalog.image("small", "1", &small)).unwrap();
    let sandbox = Sandbox::new();
    for (name, passed_through) in [("large", true), ("small", false)] {
        let reference = registry.reference(name, "1");
        sandbox.mount(&reference, name).unmount();
        for how in ["--passthrough=auto", "-opassthrough=auto"] {
            let at = sandbox.mount_with(&reference, name, &[how]);
            let file = File::open(at.join("d/large")).unwrap();
            assert!(read(&at.join("d/large")) == content(1, LARGE), "{name}");
            assert_eq!(own_files(&sandbox), usize::from(passed_through), "{name}, {how}");
            assert_eq!(at.state().unwrap()["passthrough"], passed_through);
            if passed_through {
                let told = sandbox.run([OsStr::new("status"), at.path.as_os_str()]);
                assert!(said(&told).contains("kernel   reads large files directly (passthrough)"), "{}", said(&told));
                assert!(is_passed_through(&at, &file, content(1, LARGE)), "{how}");
            }
            drop(file);
            at.unmount();
        }
        sandbox.drop_content();
    }
    // With a layer that is not indexed yet, the mount works without passthrough.
    let output = sandbox.run(["cache", "prune", "--all"]);
    assert!(output.status.success(), "{}", said(&output));
    let at = sandbox.mount_with(&registry.reference("large", "1"), "unknown", &["--passthrough=auto"]);
    assert!(read(&at.join("d/large")) == content(1, LARGE));
    assert_eq!(own_files(&sandbox), 0);
    at.unmount();
}
