//! A cache on a disk that is full or read-only, or that has no disk at all: every read succeeds while the
//! registry is up.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use support::model::Tree;
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, said};
use support::walk::{self, Compare};

const NAME: &str = "library/image";

fn served(image: &Image) -> Registry {
    Registry::start(Catalog::new().image(NAME, "1", image)).unwrap()
}

/// A small file system in memory, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let size: &std::ffi::CStr = c"size=4m,nr_inodes=200,mode=700";
        match rustix::mount::mount("tmpfs", &at, "tmpfs", rustix::mount::MountFlags::empty(), Some(size)) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                eprintln!("skipped: cannot mount a tmpfs: {error}");
                None
            }
        }
    }

    /// Takes all bytes that there are.
    fn fill_bytes(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    /// Takes all the room there is.
    fn fill(&self) {
        self.fill_bytes();
        // Nor is there room for another name.
        let mut names = 0;
        while File::create(self.0.join(format!("name{names}"))).is_ok() {
            names += 1;
        }
    }

    fn empty(&self) {
        for entry in std::fs::read_dir(&self.0).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    fn make_read_only(&self) {
        rustix::mount::mount_remount(&self.0, rustix::mount::MountFlags::RDONLY, "").unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[test]
fn a_full_or_read_only_cache_serves_every_layer_it_knows() {
    let content = Random::new(4).bytes(2_000_000);
    let image = ImageBuilder::new().layer(LayerBuilder::new().file("f", content.clone())).build();
    let registry = served(&image);
    let reference = registry.reference(NAME, "1");
    let sandbox = Sandbox::new();
    let Some(disk) = SmallDisk::mount(sandbox.cache()) else { return };
    assert!(sandbox.run(["ls", &reference]).status.success());
    sandbox.drop_content();
    let read = |what: &str| {
        let output = sandbox.run(["cat", &reference, "/f"]);
        assert!(output.stdout == content, "{what}: {}", String::from_utf8_lossy(&output.stderr));
    };

    disk.fill();
    for _ in 0..3 {
        read("full");
    }
    disk.empty();
    read("with room again");
    registry.clear();
    read("kept");
    assert!(registry.requests().iter().all(|asked| !asked.is_blob()), "what was read is kept");

    disk.make_read_only();
    read("read-only");
    assert!(registry.requests().iter().all(|asked| !asked.is_blob()), "and read from there");
    for line in [&["cache", "prune", "--all"][..], &["cache", "drop", "--content", "--all"]] {
        let output = sandbox.run(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("nothing can be removed"), "{line:?}: {said}");
        assert!(output.stdout.is_empty(), "{line:?} freed nothing");
    }
}

/// Decoder windows are fetched for a span that is read, and need no room then.
#[test]
fn windows_that_the_cache_cannot_keep_serve_what_they_are_for() {
    let lines: Vec<String> = (0..400_u64).map(|seed| format!("{:x?}\n", Random::new(seed).bytes(40))).collect();
    let mut random = Random::new(8);
    let text: String = (0..16_000).map(|_| &*lines[random.below(lines.len())]).collect();
    let layer = LayerBuilder::new().file("before", text.clone()).file("f", text.clone()).packing(Packing::GZIP);
    let image = ImageBuilder::new().layer(layer).build();
    let catalog = Catalog::new().image(NAME, "1", &image).listing_referrers().taking_pushes();
    let registry = Registry::start(catalog).unwrap();
    let (reference, here, there) = (registry.reference(NAME, "1"), Sandbox::new(), Sandbox::new());
    let pushed = here.run(["index", "push", &reference]);
    assert!(said(&pushed).contains(" of decoder windows"), "{}", said(&pushed));
    let Some(disk) = SmallDisk::mount(there.cache()) else { return };
    assert!(there.run(["ls", &reference, "--index-from", "referrers"]).status.success());
    disk.fill();
    registry.clear();
    for _ in 0..2 {
        let read = there.run(["cat", &reference, "/f", "--index-from", "referrers"]);
        assert!(read.stdout == text.as_bytes(), "{}", String::from_utf8_lossy(&read.stderr));
    }
    let layer = image.layers()[0].digest.to_string();
    let mut of_layer = registry.requests().into_iter().filter(|asked| asked.request.path.ends_with(&layer));
    assert!(of_layer.all(|asked| asked.status == 206), "no first pass");
}

/// Layers of all packings, one of them larger than the small disk.
fn large() -> (Image, Tree) {
    let mut random = Random::new(6);
    let packings = [Packing::GZIP, Packing::Stored, Packing::Zstd { level: 1, frame: Some(60_000), skippable: false }];
    let layers: Vec<Vec<Entry>> = [2, 9, 3]
        .iter()
        .enumerate()
        .map(|(layer, files)| {
            (0..*files).map(|file| Entry::file(format!("f{layer}-{file}"), random.bytes(600_000))).collect()
        })
        .collect();
    let tree = Tree::of(layers.iter().map(Vec::as_slice));
    let build = |builder: ImageBuilder, (entries, packing): (&Vec<Entry>, &Packing)| {
        builder.layer(LayerBuilder::of(entries).packing(*packing))
    };
    (layers.iter().zip(&packings).fold(ImageBuilder::new(), build).build(), tree)
}

/// Mounts an image that was never seen with this cache, reads all of it twice, and returns the messages for the user.
fn mount_and_read(sandbox: &Sandbox, cache: &Path, what: &str) -> String {
    let (image, tree) = large();
    let registry = served(&image);
    let cache = cache.to_str().unwrap();
    let at = sandbox.mount_point("a");
    let mounted = at.try_mount(&registry.reference(NAME, "1"), &["--wait", "--cache-dir", cache]);
    assert!(mounted.status.success(), "{what}: {}", said(&mounted));
    for _ in 0..2 {
        let real = walk::seen(&at.path).unwrap();
        let root = |seen: &std::collections::BTreeMap<Vec<u8>, support::model::Seen>| {
            seen.iter().filter(|(path, _)| !path.is_empty()).map(|(path, seen)| (path.clone(), seen.clone())).collect()
        };
        let lines = walk::differences(&root(&tree.seen()), &root(&real), Compare::Exactly);
        assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
    }
    let whole =
        |asked: &&peelfs_loopback::registry::Recorded| asked.is_blob() && asked.request.header("range").is_none();
    let requests = registry.requests();
    // Each layer is read once from end to end, and the configuration; the rest is ranges.
    let streams = requests.iter().filter(whole).count();
    assert!(streams <= 4, "{what}: {streams} whole blobs were asked for");
    let bytes: u64 = requests.iter().map(|asked| asked.body_bytes).sum();
    eprintln!("{what}: read twice, {} bytes fetched for an image of {}", bytes, image.blob_size());
    let told = said(&mounted) + &sandbox.logs();
    at.unmount();
    told
}

/// The user gets one message, not more.
fn told_once(log: &str, what: &str) {
    let told = log.lines().filter(|line| line.contains("cannot keep")).count();
    assert_eq!(told, 1, "{what}: {log}");
}

/// A cache that is on a small disk, made beforehand or not, while `what` is wrong with that.
fn ill_from_the_start(what: &str, fall: fn(&SmallDisk)) {
    if cannot_mount() {
        return;
    }
    for beforehand in [false, true] {
        let sandbox = Sandbox::new();
        let Some(disk) = SmallDisk::mount(sandbox.cache()) else { return };
        if beforehand {
            // The directories are there.
            assert!(sandbox.run(["cache"]).status.success());
        }
        fall(&disk);
        told_once(&mount_and_read(&sandbox, &sandbox.cache(), what), what);
    }
}

#[test]
fn never_seen_layers_are_read_with_the_disk_full() {
    ill_from_the_start("full", SmallDisk::fill);
}

#[test]
fn never_seen_layers_are_read_with_a_read_only_cache() {
    ill_from_the_start("read-only", SmallDisk::make_read_only);
}

/// What it is, since when, and what to do, until there is room again.
#[test]
fn status_tells_what_a_full_disk_does_not_keep() {
    if cannot_mount() {
        return;
    }
    let [first, second] = [1, 2].map(|seed| Random::new(seed).bytes(600_000));
    let layer =
        LayerBuilder::new().packing(Packing::Stored).file("first", first.clone()).file("second", second.clone());
    let registry = served(&ImageBuilder::new().layer(layer).build());
    let reference = registry.reference(NAME, "1");
    let sandbox = Sandbox::new();
    let Some(disk) = SmallDisk::mount(sandbox.cache()) else { return };
    assert!(sandbox.run(["ls", &reference]).status.success());
    sandbox.drop_content();
    disk.fill_bytes();
    let at = sandbox.mount_with(&reference, "a", &["--prefetch=none"]);
    let status = |more: &[&str]| {
        let output = sandbox.peelfs(["status"]).args(more).arg(&at.path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let not_kept = || serde_json::from_str::<serde_json::Value>(&status(&["--json"])).unwrap()["not_kept"].clone();
    assert!(not_kept().is_null(), "nothing was to be kept yet");
    assert!(std::fs::read(at.join("first")).unwrap() == first);
    let told = not_kept();
    let is_now = |since: u64| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() - since < 3600;
    assert!(told["full"] == true && told["since"].as_u64().is_some_and(is_now), "{told}");
    let text = status(&[]);
    for wanted in [" cannot keep a fetched span, since ", "No space left on device", "`peelfs cache prune`"] {
        assert!(text.contains(wanted), "{text}");
    }
    disk.empty();
    assert!(std::fs::read(at.join("second")).unwrap() == second);
    assert!(not_kept().is_null(), "{}", status(&[]));
    at.unmount();
}

#[test]
fn a_copy_that_has_no_room_names_where_it_should_be() {
    let image = ImageBuilder::new().layer(LayerBuilder::new().file("dir/large", Random::new(3).bytes(6 << 20))).build();
    let registry = served(&image);
    let reference = registry.reference(NAME, "1");
    let sandbox = Sandbox::new();
    let to = sandbox.path().join("small");
    let Some(_disk) = SmallDisk::mount(to.clone()) else { return };
    for (from, copied) in [("/", "dir/large"), ("/dir", "dir/large"), ("dir/large", "large")] {
        let output = sandbox.peelfs(["cp", &reference, from]).arg(&to).output().unwrap();
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let wanted = format!("` to `{}`: cannot write it: No space left on device", to.join(copied).display());
        assert!(told.contains(&wanted) && told.contains("hint: make room on that disk"), "{from}: {told}");
    }
}

#[test]
fn layers_are_read_without_a_cache_directory() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("file");
    std::fs::write(&file, "").unwrap();
    told_once(&mount_and_read(&sandbox, &file.join("cache"), "no directory"), "no directory");
}

#[test]
fn a_disk_that_fills_up_in_a_pass_costs_content_and_no_index() {
    if cannot_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let Some(_disk) = SmallDisk::mount(sandbox.cache()) else { return };
    told_once(&mount_and_read(&sandbox, &sandbox.cache(), "fills up"), "fills up");
    let indexes = sandbox.bucket("index-v2");
    assert_eq!(indexes.len(), 3, "every layer is known the next time");
    assert_eq!(sandbox.bucket("tmp"), [] as [PathBuf; 0]);
}

#[test]
fn an_index_has_its_room_before_the_disk_fills_up() {
    if cannot_mount() {
        return;
    }
    let layer = LayerBuilder::new().packing(Packing::Stored).file("f", Random::new(9).bytes(600_000));
    let image = ImageBuilder::new().layer(layer).build();
    let registry = served(&image);
    let (gate, blob) = (Gate::new(), image.layers()[0].digest.to_string());
    let target = Target::matching(move |asked| asked.path.ends_with(&blob));
    registry.faults().add(Rule::new(target, Fault::Stall { after: 100_000, gate: gate.clone() }));
    let sandbox = Sandbox::new();
    let Some(disk) = SmallDisk::mount(sandbox.cache()) else { return };
    let listing = sandbox.peelfs(["ls", &registry.reference(NAME, "1")]).spawn().unwrap();
    // The index and the content, in this order.
    let begun = std::time::Instant::now();
    while sandbox.bucket("tmp").len() < 2 {
        assert!(begun.elapsed().as_secs() < 60, "no pass begins");
        support::pause();
    }
    disk.fill();
    gate.open();
    assert!(listing.wait_with_output().unwrap().status.success());
    assert_eq!(sandbox.bucket("index-v2").len(), 1, "the layer is known the next time");
    assert_eq!(sandbox.bucket("tmp"), [] as [PathBuf; 0]);
}
