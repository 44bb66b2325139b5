//! A process that is killed at any instant while readers read: the cache that it leaves opens at once, shows no
//! wrong byte, has all that a reader was given, and lacks no span but those that were just being written.
//!
//! Needs root and `/dev/fuse`, and says so when it skips. `PEELFS_KILLS` makes the run longer.

use std::fs::File;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peelfs::image::ImageFs;
use peelfs::layer::LayerIndex;
use peelfs::offsets::{DecodedOffset, FileOffset};
use peelfs::overlay::Last;
use peelfs::store::{Keep, LayerName, Store};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use support::load::{read_anew, times};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount};
use support::shown::{self, MemorySource};

const KILLS: usize = 10;
const READERS: usize = 8;
/// Files of a layer, and their size: several spans, none of which ends where a file does.
const FILES: usize = 6;
const SIZE: usize = 350_000;

const PACKINGS: [Packing; 3] =
    [Packing::GZIP, Packing::Zstd { level: 1, frame: Some(60_000), skippable: true }, Packing::Stored];

/// An image, and what its files hold by name.
struct Scene {
    image: Image,
    files: Vec<(String, Vec<u8>)>,
}

impl Scene {
    fn new() -> Self {
        let mut random = Random::new(7);
        let names = (0..PACKINGS.len()).flat_map(|layer| (0..FILES).map(move |file| format!("{layer}-{file}")));
        let files: Vec<_> = names.map(|name| (name, random.bytes(SIZE))).collect();
        let build = |builder: ImageBuilder, (files, packing): (&[(String, Vec<u8>)], &Packing)| {
            let layer = files.iter().fold(LayerBuilder::new(), |layer, (name, bytes)| layer.file(name, bytes.clone()));
            builder.layer(layer.packing(*packing))
        };
        let image = files.chunks(FILES).zip(&PACKINGS).fold(ImageBuilder::new(), build).build();
        Self { image, files }
    }

    fn bytes(&self) -> u64 {
        (self.files.len() * SIZE) as u64
    }
}

/// The state of the cache, and the work of the process that is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    /// Nothing is indexed, and first passes run.
    Passes,
    /// All layers are indexed, and their content is fetched.
    Fetches,
    /// The cache is full, and each fetch evicts something.
    Evictions,
}

#[derive(Debug, Default)]
struct Found {
    reads: u64,
    reopened: Duration,
    lost: u64,
    most_lost: u64,
}

fn served(sandbox: &Sandbox, at: &MountPoint<'_>, reference: &str, more: &[&str]) -> Child {
    let mut command = sandbox.peelfs(["mount", "-f", "--no-keeper", reference]);
    let said = sandbox.path().join("said");
    command.arg(&at.path).args(more).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
    let mut server = command.spawn().unwrap();
    while !at.is_mounted() {
        if let Some(status) = server.try_wait().unwrap() {
            panic!("it does not mount: {status}: {}", std::fs::read_to_string(said).unwrap());
        }
        support::pause();
    }
    server
}

/// Has a mount read until it is killed, at an instant that `random` decides; returns which files were read.
fn kill_under_load(
    scene: &Scene,
    at: &MountPoint<'_>,
    registry: &Registry,
    server: &mut Child,
    random: &mut Random,
) -> Vec<usize> {
    let (most_reads, most_bytes) = match random.chance(50) {
        true => (random.below(100) as u64, u64::MAX),
        false => (u64::MAX, random.below(scene.bytes() as usize * 3 / 4) as u64),
    };
    let (reads, killed) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let (mut random, reads, killed) = (Random::new(random.next()), &reads, &killed);
                scope.spawn(move || {
                    let mut given = Vec::new();
                    loop {
                        let number = random.below(scene.files.len());
                        let (name, expected) = &scene.files[number];
                        match read_anew(&at.join(name)) {
                            Ok(bytes) => assert!(bytes == *expected, "{name}: wrong bytes"),
                            Err(error) => {
                                assert!(killed.load(Ordering::SeqCst), "{name}: {error}");
                                return given;
                            }
                        }
                        given.push(number);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // A reader that ends before the kill has seen what it should not, and says so.
        let all_read = || !readers.iter().any(|reader| reader.is_finished());
        while all_read() && reads.load(Ordering::Relaxed) < most_reads && registry.blob_bytes() < most_bytes {
            std::thread::yield_now();
        }
        killed.store(true, Ordering::SeqCst);
        server.kill().unwrap();
        server.wait().unwrap();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    })
}

/// Spans that are on the disk, in part at least, while their maps call them absent.
fn half_written(store: &Store, image: &Image) -> u64 {
    let mut count = 0;
    for layer in image.layers() {
        let Some(file) = store.index(&layer.digest) else { continue };
        let index = LayerIndex::open(file).unwrap();
        let name = LayerName { blob: &layer.digest, diff_id: &layer.diff_id };
        let content = store.content(name, index.layer().decoded_size, index.span_count()).unwrap();
        for number in index.spans().iter().filter(|number| content.generation(*number).is_none()) {
            // Pages at both ends may be a neighbour's.
            let span = index.span(number).unwrap().decoded;
            let pages = span.start.0.next_multiple_of(PAGE)..span.end.0 / PAGE * PAGE;
            count += u64::from(content.takes_room(&(DecodedOffset(pages.start)..DecodedOffset(pages.end))));
        }
    }
    count
}

async fn read(fs: &ImageFs, name: &str) -> Vec<u8> {
    let node = fs.awaited(|fs| fs.walk(name.as_bytes(), Last::Follow)).await.unwrap().node;
    fs.read(node, FileOffset(0), SIZE + 1).await.unwrap().to_vec()
}

/// Opens the cache that a killed process has left, and reads all of the image.
fn reopen(scene: &Scene, sandbox: &Sandbox, load: Load, given: &[usize], found: &mut Found) {
    let begun = Instant::now();
    let store = sandbox.store();
    let lost = half_written(&store, &scene.image);
    let source = MemorySource::new(&scene.image);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let fs = shown::open(&source, &store).await.unwrap();
        found.reopened = found.reopened.max(begun.elapsed());
        assert!(load == Load::Passes || source.asked() == 0, "{load:?}: a layer is known no more");
        source.take_asked();
        for number in given {
            let (name, expected) = &scene.files[*number];
            assert!(read(&fs, name).await == *expected, "{load:?}: {name}: wrong bytes");
        }
        let asked = source.take_asked();
        assert!(load == Load::Evictions || asked.is_empty(), "{load:?}: {asked:?} was given to a reader, and is gone");
        for (name, expected) in &scene.files {
            assert!(read(&fs, name).await == *expected, "{load:?}: {name}: wrong bytes");
        }
        let damaged: u64 = fs.layer_status().iter().map(|layer| layer.reads.damaged_spans).sum();
        assert_eq!(damaged, 0, "{load:?}: a span is called present before it is whole");
    });
    store.tidy().unwrap();
    assert!(sandbox.bucket("tmp").is_empty(), "{load:?}: temporary files are left");
    found.lost += lost;
    found.most_lost = found.most_lost.max(lost);
}

#[test]
fn a_process_killed_under_load_leaves_a_cache_that_is_whole() {
    if cannot_mount() {
        return;
    }
    let (scene, sandbox, mut random) = (Scene::new(), Sandbox::new(), Random::new(11));
    let registry = Registry::start(Catalog::new().image("app", "1", &scene.image)).unwrap();
    let reference = registry.reference("app", "1");
    let third = (scene.bytes() / 3).to_string();
    let (kills, mut found) = (times("PEELFS_KILLS", KILLS), Found::default());
    for kill in 0..kills {
        let load = [Load::Passes, Load::Fetches, Load::Evictions, Load::Fetches][kill % 4];
        let (keep, options): (_, &[&str]) = match load {
            Load::Passes => (Keep::Nothing, &[]),
            Load::Fetches => (Keep::Indexes, &["--prefetch", random.pick(&["none", "all"])]),
            Load::Evictions => (Keep::Bytes(scene.bytes() / 3), &["--cache-size", &third]),
        };
        assert_eq!(sandbox.store().prune(keep).unwrap().held, 0);
        registry.clear();
        let at = sandbox.mount_point("mnt");
        let mut server = served(&sandbox, &at, &reference, options);
        let given = kill_under_load(&scene, &at, &registry, &mut server, &mut random);
        drop(at);
        found.reads += given.len() as u64;
        reopen(&scene, &sandbox, load, &given, &mut found);
    }
    println!(
        "{kills} kills under {READERS} readers: {} reads compared, 0 wrong; reopened within {} ms; {} spans were being \
         written, at most {} at a kill",
        found.reads,
        found.reopened.as_millis(),
        found.lost,
        found.most_lost
    );
    // Some 50 ms; a machine that does much else at the same time is not the cache's fault.
    assert!(found.reopened < Duration::from_secs(10));
    assert!(found.most_lost <= PACKINGS.len() as u64, "one thread at a time writes to a layer");
}

const PAGE: u64 = 4096;
