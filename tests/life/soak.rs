//! Long runs in short: many readers, several servers on one cache, a cache too small for what is read, and
//! a registry that stalls. Every byte that is read is compared with what the images were made of.
//!
//! `make soak` runs the long forms, `PEELFS_SOAK_SECONDS` each.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount};

/// The layers of all images: directory `N` of layer `N` has the files.
struct Layers(Vec<Vec<Vec<u8>>>);

impl Layers {
    /// So many layers of so many files, of about `size` bytes each.
    fn new(layers: usize, files: usize, size: usize) -> Self {
        let mut random = Random::new(11);
        let file = |random: &mut Random| {
            let length = size / 2 + random.below(size);
            random.bytes(length)
        };
        Self((0..layers).map(|_| (0..files).map(|_| file(&mut random)).collect()).collect())
    }

    fn builder(&self, number: usize) -> LayerBuilder {
        let layer = LayerBuilder::new().dir(&number.to_string());
        let files = self.0[number].iter().enumerate();
        files.fold(layer, |layer, (file, bytes)| layer.file(&format!("{number}/{file}"), bytes.clone()))
    }

    /// A registry of images `0`, `1` and so on, each of these layers.
    fn registry(&self, images: &[Vec<usize>]) -> (Registry, u64) {
        let built: Vec<_> = (0..self.0.len()).map(|number| self.builder(number).build()).collect();
        let size = built.iter().map(|layer| layer.blob.len() as u64).sum();
        let mut catalog = Catalog::new();
        for (number, layers) in images.iter().enumerate() {
            let image = layers.iter().fold(ImageBuilder::new(), |image, layer| image.layer(built[*layer].clone()));
            catalog = catalog.image("app", &number.to_string(), &image.build());
        }
        (Registry::start(catalog).unwrap(), size)
    }

    fn bytes(&self) -> u64 {
        self.0.iter().flatten().map(|file| file.len() as u64).sum()
    }

    /// Reads a file past the kernel's own cache and compares it; returns its length.
    fn read_anew(&self, at: &Path, layer: usize, file: usize) -> u64 {
        let expected = &self.0[layer][file];
        let path = at.join(format!("{layer}/{file}"));
        let opened = File::open(&path).unwrap();
        rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = vec![0; expected.len()];
        opened.read_exact_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(bytes == *expected, "{}: wrong bytes", path.display());
        bytes.len() as u64
    }
}

/// How long a run is.
#[derive(Clone, Copy)]
enum Length {
    /// So many reads of each reader.
    Reads(u64),
    Time(Duration),
}

impl Length {
    /// The long form's, unless the environment says otherwise.
    fn long(minutes: u64) -> Self {
        let asked = std::env::var("PEELFS_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
        Self::Time(Duration::from_secs(asked.unwrap_or(minutes * 60)))
    }

    /// How much of the run is over, from 0 to 1.
    fn passed(self, reads: u64, begun: Instant) -> f64 {
        match self {
            Self::Reads(all) => reads as f64 / all as f64,
            Self::Time(all) => begun.elapsed().as_secs_f64() / all.as_secs_f64(),
        }
    }
}

/// The reads of a run.
#[derive(Debug, Default)]
struct Read {
    reads: AtomicU64,
    bytes: AtomicU64,
}

/// So many readers of each mount read files of its layers at random; `look` is called now and then with how much of
/// the run is over.
fn read_at_random(
    layers: &Layers,
    mounts: &[(&MountPoint<'_>, &[usize])],
    readers: usize,
    length: Length,
    look: &(dyn Fn(f64) + Sync),
) -> Read {
    let (done, begun) = (Read::default(), Instant::now());
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..readers {
            let (done, failed) = (&done, &failed);
            let (at, of) = mounts[reader % mounts.len()];
            scope.spawn(move || {
                let guard = Tell(failed);
                let mut random = Random::new(reader as u64 + 1);
                for reads in 0.. {
                    let passed = length.passed(reads, begun);
                    if passed >= 1.0 || failed.load(Ordering::Relaxed) {
                        break;
                    }
                    if reader == 0 {
                        look(passed);
                    }
                    let layer = of[random.below(of.len())];
                    let file = random.below(layers.0[layer].len());
                    done.bytes.fetch_add(layers.read_anew(&at.path, layer, file), Ordering::Relaxed);
                    done.reads.fetch_add(1, Ordering::Relaxed);
                }
                std::mem::forget(guard);
            });
        }
    });
    done
}

/// Ends a long run at the first failure.
struct Tell<'a>(&'a AtomicBool);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A sum over the layers of a mount of what `peelfs status` says of their reads.
fn counted(sandbox: &Sandbox, at: &MountPoint<'_>, what: &str) -> u64 {
    let output = sandbox.peelfs(["status", "--json"]).arg(&at.path).output().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    line["layers"].as_array().unwrap().iter().map(|layer| layer["reads"][what].as_u64().unwrap()).sum()
}

#[test]
fn two_processes_that_read_the_same_data_fetch_it_once() {
    if cannot_mount() {
        return;
    }
    let layers = Layers::new(3, 40, 100_000);
    let (registry, size) = layers.registry(&[vec![0, 1], vec![1, 2], vec![0, 1, 2]]);
    let sandbox = Sandbox::new();
    for image in ["0", "1"] {
        sandbox.mount(&registry.reference("app", image), "mnt").unmount();
    }
    sandbox.drop_content();
    registry.clear();
    let mounts: Vec<_> = (0..2).map(|n| sandbox.mount(&registry.reference("app", "2"), &n.to_string())).collect();
    // Side by side in the same order, which is the worst of all.
    let begin = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for at in &mounts {
            scope.spawn(|| {
                begin.wait();
                for layer in 0..layers.0.len() {
                    (0..layers.0[layer].len()).for_each(|file| {
                        layers.read_anew(&at.path, layer, file);
                    });
                }
            });
        }
    });
    assert!(registry.blob_bytes() <= size + size / 100, "{} of {size} bytes were sent", registry.blob_bytes());
    let (fetched, repeated) = fetched(&sandbox, &mounts);
    println!(
        "two processes, no eviction: {} of {size} bytes sent; {repeated} of {fetched} spans twice",
        registry.blob_bytes()
    );
    mounts.iter().for_each(MountPoint::unmount);
}

/// Spans that these mounts have fetched, and how many of them were there when they came.
fn fetched(sandbox: &Sandbox, mounts: &[MountPoint<'_>]) -> (u64, u64) {
    let sum = |what| mounts.iter().map(|at| counted(sandbox, at, what)).sum();
    (sum("fetched_spans"), sum("repeated_spans"))
}

/// Two processes with overlapping images on a cache too small for them. A span counts as fetched twice when it was
/// there already when it came: kept by the other process while this one fetched it, or before.
fn two_processes_with_eviction(layers: &Layers, readers: usize, length: Length) {
    if cannot_mount() {
        return;
    }
    let images = [vec![0, 1, 2], vec![1, 2, 3]];
    let (registry, _) = layers.registry(&images);
    let sandbox = Sandbox::new();
    let limit = (layers.bytes() / 4).to_string();
    let mounts: Vec<_> = (0..2)
        .map(|n| {
            sandbox.mount_with(&registry.reference("app", &n.to_string()), &n.to_string(), &["--cache-size", &limit])
        })
        .collect();
    let read: Vec<_> = mounts.iter().zip(&images).map(|(at, layers)| (at, layers.as_slice())).collect();
    let done = read_at_random(layers, &read, readers, length, &|_| ());
    let (fetched, repeated) = fetched(&sandbox, &mounts);
    println!(
        "two processes, a cache of {} MiB for {} MiB: {} reads, {} MiB compared, 0 wrong; {fetched} spans fetched, {repeated} of them twice",
        (layers.bytes() / 4) >> 20,
        layers.bytes() >> 20,
        done.reads.into_inner(),
        done.bytes.into_inner() >> 20,
    );
    let spans = layers.bytes() / (256 << 10);
    assert!(fetched > spans, "nothing was evicted: {fetched} spans fetched of {spans}");
    assert!(repeated * 100 <= fetched, "{repeated} of {fetched} spans were fetched twice");
    mounts.iter().for_each(MountPoint::unmount);
}

#[test]
fn two_processes_on_a_small_cache_fetch_little_twice() {
    two_processes_with_eviction(&Layers::new(4, 40, 100_000), 8, Length::Reads(100));
}

#[test]
#[ignore = "ten minutes; part of `make soak`"]
fn two_processes_on_a_small_cache_in_the_long_run() {
    two_processes_with_eviction(&Layers::new(4, 400, 100_000), 32, Length::long(10));
}

/// Reads of what is cached while `hanging` readers wait for a registry that stalls.
fn cached_reads_while_others_hang(hanging: usize, rounds: usize) {
    if cannot_mount() {
        return;
    }
    // A span each that is fetched, or more.
    let mut layers = Layers::new(2, hanging, 300_000);
    layers.0[0] = Layers::new(1, 64, 50_000).0.remove(0);
    let (registry, _) = layers.registry(&[vec![0, 1]]);
    let sandbox = Sandbox::new();
    sandbox.mount(&registry.reference("app", "0"), "mnt").unmount();
    sandbox.drop_content();
    let at =
        sandbox.mount_with(&registry.reference("app", "0"), "mnt", &["--prefetch", "none", "--on-outage", "block"]);
    let cached = layers.0[0].len();
    (0..cached).for_each(|file| assert!(layers.read_anew(&at.path, 0, file) > 0));
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blobs, Fault::Stall { after: 0, gate: gate.clone() }));
    std::thread::scope(|scope| {
        let opens = Opens(&gate, &registry);
        let (here, readers) = std::sync::mpsc::channel();
        for file in 0..hanging {
            let (layers, at, here) = (&layers, &at, here.clone());
            scope.spawn(move || {
                here.send(rustix::thread::gettid()).unwrap();
                layers.read_anew(&at.path, 1, file);
            });
        }
        let readers: Vec<_> = readers.into_iter().take(hanging).collect();
        while !readers.iter().all(|reader| waits(*reader)) {
            support::pause();
        }
        let mut took = Vec::new();
        for file in (0..cached).cycle().take(cached * rounds) {
            let begun = Instant::now();
            layers.read_anew(&at.path, 0, file);
            took.push(begun.elapsed().as_micros());
        }
        took.sort_unstable();
        let of_hundred = |part: usize| took[(took.len() - 1) * part / 100];
        println!(
            "{} reads of cached files through FUSE while {hanging} hang: median {} µs, 99th of 100 {} µs, longest {} µs",
            took.len(),
            of_hundred(50),
            of_hundred(99),
            took[took.len() - 1]
        );
        assert!(readers.iter().all(|reader| waits(*reader)), "they hang no more");
        drop(opens);
    });
    at.unmount();
}

/// Lets the registry answer when dropped, also where a test fails.
struct Opens<'a>(&'a Gate, &'a Registry);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.1.faults().clear();
        self.0.open();
    }
}

/// Whether a thread of this process waits for an answer of a FUSE file system.
fn waits(thread: rustix::process::Pid) -> bool {
    let at = std::fs::read_to_string(format!("/proc/self/task/{thread}/wchan")).unwrap_or_default();
    WAITS.contains(&at.as_str())
}

/// Where a thread sleeps that waits for an answer to a FUSE request, or for a page that one brings.
const WAITS: [&str; 5] =
    ["request_wait_answer", "folio_wait_bit_common", "__fuse_simple_request", "folio_wait_bit", "fuse_get_req"];

#[test]
fn cached_reads_go_on_while_a_hundred_readers_hang() {
    cached_reads_while_others_hang(100, 4);
}

#[test]
#[ignore = "a minute; part of `make soak`"]
fn cached_reads_go_on_while_many_readers_hang_in_the_long_run() {
    for hanging in [0, 100, 400] {
        cached_reads_while_others_hang(hanging, 200);
    }
}

/// Resource usage of processes, summed.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    rss_kib: u64,
    descriptors: u64,
    threads: u64,
}

impl Taken {
    fn by(pids: &[i32]) -> Self {
        let mut taken = Self::default();
        for pid in pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let field = |name: &str| -> u64 {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_whitespace().nth(1).unwrap().parse().unwrap()
            };
            taken.rss_kib += field("VmRSS:");
            taken.threads += field("Threads:");
            taken.descriptors += std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        }
        taken
    }

    fn most(self, other: Self) -> Self {
        Self {
            rss_kib: self.rss_kib.max(other.rss_kib),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// Many readers of eight images on a cache of a tenth of their size. What the servers take at most in the last
/// quarter may exceed what they took at most in the second by no more than the slack: the first is to warm up.
fn soak(layers: &Layers, readers: usize, length: Length) {
    if cannot_mount() {
        return;
    }
    const IMAGES: usize = 8;
    let images: Vec<_> = (1..=IMAGES).map(|own| vec![0, own]).collect();
    let (registry, _) = layers.registry(&images);
    let sandbox = Sandbox::new();
    let limit = (layers.bytes() / 10).to_string();
    let mount = |n: usize| {
        let reference = registry.reference("app", &n.to_string());
        sandbox.mount_with(&reference, &n.to_string(), &["--cache-size", &limit])
    };
    let mounts: Vec<_> = (0..IMAGES).map(mount).collect();
    let servers: Vec<_> = mounts.iter().map(MountPoint::server).collect();
    let read: Vec<_> = mounts.iter().zip(&images).map(|(at, layers)| (at, layers.as_slice())).collect();
    let quarters = Mutex::new(BTreeMap::<u64, Taken>::new());
    let looked = AtomicU64::new(u64::MAX);
    let done = read_at_random(layers, &read, readers, length, &|passed| {
        let now = (passed * LOOKS) as u64;
        if looked.swap(now, Ordering::Relaxed) != now {
            let mut quarters = quarters.lock().unwrap();
            let quarter = quarters.entry((passed * 4.0) as u64).or_default();
            *quarter = quarter.most(Taken::by(&servers));
        }
    });
    let quarters = quarters.into_inner().unwrap();
    println!(
        "{IMAGES} images of {} MiB, a cache of {} MiB, {readers} readers: {} reads, {} MiB compared, 0 wrong",
        layers.bytes() >> 20,
        (layers.bytes() / 10) >> 20,
        done.reads.into_inner(),
        done.bytes.into_inner() >> 20
    );
    for (quarter, taken) in &quarters {
        println!("quarter {}: {taken:?}", quarter + 1);
    }
    let (warm, end) = (quarters[&1], quarters[&3]);
    let slack = |what: &str, warm: u64, end: u64, slack: u64| {
        assert!(end <= warm + slack, "{what} grew from {warm} to {end} over {IMAGES} servers");
    };
    slack("memory in KiB", warm.rss_kib, end.rss_kib, 4096 * IMAGES as u64 + warm.rss_kib / 10);
    slack("descriptors", warm.descriptors, end.descriptors, 16 * IMAGES as u64);
    slack("threads", warm.threads, end.threads, 16 * IMAGES as u64);
    mounts.iter().for_each(MountPoint::unmount);
}

/// How often it is looked at what servers take.
const LOOKS: f64 = 200.0;

#[test]
fn many_readers_of_many_images_on_a_small_cache() {
    soak(&Layers::new(9, 32, 100_000), 16, Length::Reads(60));
}

#[test]
#[ignore = "half an hour; part of `make soak`"]
fn many_readers_of_many_images_on_a_small_cache_in_the_long_run() {
    soak(&Layers::new(9, 250, 100_000), 256, Length::long(30));
}
