//! Crash points: the process or the machine ends at each single write operation on the cache. The next process opens
//! the cache at once, shows no wrong byte, and cleans up.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use peelfs::content::{check_layer, evict_content};
use peelfs::image::{ImageFs, Prefetch};
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;
use peelfs::store::{Disk, Effect, Keep, Store};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::tar::Entry;
use support::doomed::{Doomed, Loss};
use support::model::{NodeKind, Seen, Tree};
use support::random::Random;
use support::sandbox::content_file;
use support::shown::{self, MemorySource};
use support::walk::{self, Compare};

/// Three layers of several spans, packed in all ways, and what is to be seen of them.
fn image() -> &'static (Image, BTreeMap<Vec<u8>, Seen>) {
    static IMAGE: OnceLock<(Image, BTreeMap<Vec<u8>, Seen>)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut random = Random::new(5);
        let packings =
            [Packing::GZIP, Packing::Zstd { level: 1, frame: Some(40_000), skippable: true }, Packing::Stored];
        let layers: Vec<Vec<Entry>> = (0..packings.len())
            .map(|layer| {
                let mut entries = vec![Entry::dir(format!("d{layer}"))];
                for file in 0..4 {
                    let content = random.bytes(210_000 + random.clone().below(9_000));
                    entries.push(Entry::file(format!("d{layer}/f{file}"), content));
                }
                entries.push(Entry::file("shared", format!("of layer {layer}")));
                entries
            })
            .collect();
        let seen = Tree::of(layers.iter().map(Vec::as_slice)).seen();
        let build = |builder: ImageBuilder, (entries, packing): (&Vec<Entry>, &Packing)| {
            builder.layer(LayerBuilder::of(entries).packing(*packing))
        };
        (layers.iter().zip(&packings).fold(ImageBuilder::new(), build).build(), seen)
    })
}

/// Directories in memory, where there is such a file system: a crash is a matter of order, not of platters.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// One life of a process: opens the image, does something with it, ends.
fn life<T>(store: &Arc<Store>, what: impl AsyncFnOnce(Arc<ImageFs>) -> T) -> Option<T> {
    runtime().block_on(async {
        let fs = shown::open(&MemorySource::new(&image().0), store).await.ok()?;
        Some(what(fs).await)
    })
}

async fn read_some(fs: &ImageFs, random: &mut Random, reads: usize) {
    for _ in 0..reads {
        let path = format!("d{}/f{}", random.below(3), random.below(4));
        let node = fs.awaited(|fs| fs.walk(path.as_bytes(), Last::Follow)).await.unwrap().node;
        let at = random.below(200_000);
        let got = fs.read(node, FileOffset(at as u64), 9_000).await.unwrap();
        let NodeKind::File(content) = &image().1[path.as_bytes()].node.kind else { panic!("a file") };
        assert!(got == content[at..at + 9_000], "a wrong byte of {path}");
    }
}

/// Makes a file's own file, as for `--passthrough`.
async fn make_passthrough_copy(fs: &ImageFs, path: &str) {
    let node = fs.awaited(|fs| fs.walk(path.as_bytes(), Last::Follow)).await.unwrap().node;
    if let Ok(Some(made)) = fs.make_passthrough_copy(node) {
        made.await;
    }
}

/// What the own file of one holds, if there is one that counts.
async fn whole(fs: &ImageFs, path: &str) -> Option<Vec<u8>> {
    let node = fs.awaited(|fs| fs.walk(path.as_bytes(), Last::Follow)).await.unwrap().node;
    let mut bytes = Vec::new();
    fs.passthrough_copy_now(node).unwrap()?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

/// A sequence of operations on caches; ends early once `over` returns `true`.
fn lives(disk: &Arc<dyn Disk>, cache: &Path, over: &dyn Fn() -> bool) {
    let open = |limit| Store::open_watched(cache, limit, Arc::clone(disk)).ok().map(Arc::new);
    let Some(store) = &open(None) else { return };
    let mut random = Random::new(3);
    let layers: Vec<_> = image().0.layers().iter().map(|layer| layer.digest.clone()).collect();
    let index = |layer: usize| cache.join("index-v2/sha256").join(layers[layer].hex());
    // Known from the first pass on; what was read goes into profiles.
    life(store, async |fs| {
        read_some(&fs, &mut random, 8).await;
        fs.keep_profiles();
    });
    for round in 0..4 {
        if over() {
            return;
        }
        // Content goes, and comes back as it is read: after profiles, at random, all of it.
        drop(store.prune(Keep::Indexes));
        life(store, async |fs| {
            fs.prefetch(if round == 0 { Prefetch::Profile } else { Prefetch::None }).await;
            read_some(&fs, &mut random, 6).await;
            // Also under a mount, span by span.
            for layer in &layers {
                drop(evict_content(store, layer));
            }
            read_some(&fs, &mut random, 4).await;
            if round > 1 {
                fs.prefetch(Prefetch::All).await;
                make_passthrough_copy(&fs, WHOLE).await;
            }
            fs.keep_profiles();
        });
        if over() {
            return;
        }
        match round {
            0 => {
                // A process has ended early, and an index is gone: neither its content nor data in flight is kept.
                drop(std::fs::write(cache.join("tmp/1-1"), "left behind"));
                drop(std::fs::remove_file(index(2)));
                drop(store.prune(Keep::Bytes(900_000)));
            }
            // An index is damaged, and made anew with the content in place.
            1 => drop(std::fs::File::options().write(true).open(index(1)).and_then(|file| file.write_all_at(b"x", 40))),
            2 => {
                let root = image().0.root().digest.hex();
                drop(std::fs::write(cache.join("document-v1/sha256").join(root), "damaged"));
                drop(store.check_documents());
                for own in files(&cache.join("whole-v2")) {
                    drop(std::fs::File::options().write(true).open(own).and_then(|file| file.write_all_at(b"x", 40)));
                }
                layers.iter().for_each(|layer| drop(check_layer(store, layer)));
            }
            _ => {
                std::fs::create_dir_all(cache.join("index-v0/sha256")).unwrap();
                drop(store.prune(Keep::Nothing));
            }
        }
    }
    // With less room than data, each fetch evicts cached content.
    let Some(small) = &open(Some(400_000)) else { return };
    life(small, async |fs| read_some(&fs, &mut random, 8).await);
}

/// Of the layers of [`image`], a file that is made whole.
const WHOLE: &str = "d0/f1";

fn files(dir: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    listed.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// What is done to a cache: how often each kind of thing, in each bucket.
#[derive(Debug)]
struct Noted {
    cache: PathBuf,
    done: Mutex<BTreeMap<(&'static str, String), u64>>,
}

impl Disk for Noted {
    fn before(&self, effect: Effect<'_>) -> io::Result<()> {
        let (kind, path) = match effect {
            Effect::MakeDir(path) => ("mkdir", path),
            Effect::Create(path) => ("create", path),
            Effect::Write(_, path, ..) => ("write", path),
            Effect::Resize(_, path, _) => ("resize", path),
            Effect::Punch(_, path, ..) => ("punch", path),
            Effect::Sync(_, path) => ("sync", path),
            Effect::Rename(_, path) => ("rename", path),
            Effect::Remove(path) => ("remove", path),
            Effect::Lock(path) => ("lock", path),
            Effect::Touch(path) => ("touch", path),
            Effect::Verity(_, path) => ("verity", path),
        };
        let below = path.strip_prefix(&self.cache).unwrap().iter().next().unwrap_or_default();
        let bucket = below.to_str().unwrap().split("-v").next().unwrap().to_owned();
        *self.done.lock().unwrap().entry((kind, bucket)).or_default() += 1;
        Ok(())
    }
}

/// How many things are done to the cache in [`lives`]: some of every kind that is ever done to a bucket.
fn points() -> u64 {
    let dir = fast_dir();
    let cache = dir.path().join("cache");
    let noted = Arc::new(Noted { cache: cache.clone(), done: Mutex::default() });
    lives(&(Arc::clone(&noted) as _), &cache, &|| false);
    let done = noted.done.lock().unwrap();
    let points = done.values().sum();
    let all: Vec<_> = done.iter().map(|((kind, bucket), times)| format!("{kind} {bucket} {times}")).collect();
    eprintln!("{points} points: {}", all.join(", "));
    for (kind, buckets) in EVERYTHING {
        for bucket in buckets.split(' ') {
            assert!(done.contains_key(&(kind, bucket.to_owned())), "no {kind} in `{bucket}`");
        }
    }
    points
}

/// What a store ever does, and to which buckets; what is written anywhere else gets its name from `tmp`.
const EVERYTHING: [(&str, &str); 10] = [
    ("mkdir", " index content whole document tag profile lock tmp"),
    ("create", "tmp content lock"),
    ("write", "tmp content lock"),
    ("resize", "tmp content"),
    ("punch", "content"),
    ("sync", "whole"),
    ("rename", "index content whole document tag profile"),
    ("remove", "index content whole document tag profile tmp"),
    ("lock", "tmp content lock"),
    ("touch", "content"),
];

fn attic(dir: &Path) -> PathBuf {
    let attic = dir.join("attic");
    std::fs::create_dir_all(&attic).unwrap();
    attic
}

/// What one crash came to.
#[derive(Default)]
struct Found {
    reopened: Duration,
    refetched: u64,
}

/// Everything ends at `point`; then the cache is opened again and read.
fn crash(point: u64, loss: Loss) -> Found {
    let at = format!("point {point}, {loss:?}");
    let dir = fast_dir();
    let (cache, attic) = (dir.path().join("cache"), attic(dir.path()));
    let disk = Doomed::new(point, point, Some(&attic));
    lives(&(Arc::clone(&disk) as _), &cache, &|| disk.is_dead());
    disk.lose(loss, &cache);
    let absent = absent_spans(&cache);

    let begun = Instant::now();
    let store = Arc::new(Store::open(&cache, None).unwrap());
    let refetched = life(&store, async |fs| {
        let reopened = begun.elapsed();
        if let Some(bytes) = whole(&fs, WHOLE).await {
            let NodeKind::File(expected) = &image().1[WHOLE.as_bytes()].node.kind else { panic!("a file") };
            assert!(bytes == *expected, "{at}: a file that the kernel would be given holds something else");
        }
        let got = shown::seen(fs.clone(), &mut Random::new(point)).await;
        let wrong = walk::differences(&image().1, &got, Compare::Exactly);
        assert!(wrong.is_empty(), "{at}:\n{}", wrong.join("\n"));
        let reads = fs.layer_status().into_iter().map(|layer| layer.reads);
        let (fetched, damaged) =
            reads.fold((0, 0), |sum, reads| (sum.0 + reads.fetched_spans, sum.1 + reads.damaged_spans));
        if loss == Loss::Kill {
            assert_eq!(damaged, 0, "{at}: a span is called present before it is whole");
            assert!(fetched <= absent, "{at}: {fetched} spans were fetched, {absent} were absent");
        }
        (reopened, fetched)
    });
    let (reopened, refetched) = refetched.unwrap_or_else(|| panic!("{at}: the image cannot be opened"));
    // As a process does a moment after it has opened an image.
    store.tidy().unwrap();
    leaks(&store, &cache, &at);
    Found { reopened, refetched }
}

/// Spans that the maps of layers with an index call absent; all of a layer without content.
fn absent_spans(cache: &Path) -> u64 {
    let mut absent = 0;
    for layer in image().0.layers() {
        let file = |extension| content_file(cache, layer, extension);
        match std::fs::read(file("map")) {
            Ok(map) if !map.is_empty() && file("data").exists() => {
                absent += map.iter().filter(|byte| **byte & 0x80 == 0).count() as u64;
            }
            _ => absent += 100,
        }
    }
    absent
}

/// Nothing is left that is unknown: no temporary file, no content without an index, and no byte of
/// content once it is dropped.
fn leaks(store: &Store, cache: &Path, at: &str) {
    let names = |bucket: &str| -> Vec<String> {
        let listed = std::fs::read_dir(cache.join(bucket)).unwrap();
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names("tmp"), Vec::<String>::new(), "{at}: temporary files");
    let indexes = names("index-v2/sha256");
    for name in names("content-v2/sha256") {
        assert!(indexes.iter().any(|index| name.starts_with(index.as_str())), "{at}: {name} has no index");
    }
    for layer in image().0.layers() {
        let held = store.index(&layer.digest).unwrap();
        evict_content(store, &layer.digest).unwrap();
        let data = content_file(cache, layer, "data");
        let blocks = std::fs::metadata(&data).map_or(0, |found| found.blocks());
        // Pages that two spans share stay.
        assert!(blocks <= 8 * 8, "{at}: {blocks} blocks are left of {}", data.display());
        drop(held);
    }
}

fn crashes(wanted: impl Iterator<Item = (u64, Loss)>) {
    let all: Vec<_> = wanted.collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = std::sync::Mutex::new((0, Found::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((point, loss)) = all.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let one = crash(*point, *loss);
                    let mut found = found.lock().unwrap();
                    found.0 += 1;
                    found.1.reopened = found.1.reopened.max(one.reopened);
                    found.1.refetched += one.refetched;
                }
            });
        }
    });
    let (count, found) = found.into_inner().unwrap();
    assert_eq!(count, all.len(), "every crash was tried");
    eprintln!("{count} crashes: reopened within {:?}, {} spans fetched again", found.reopened, found.refetched);
    // Some 50 ms; a machine that does much else at the same time is not the cache's fault.
    assert!(found.reopened < Duration::from_secs(10));
}

/// The last point of a life, and how many there are.
fn counted() -> u64 {
    let points = points();
    assert!(points >= 500, "only {points} points");
    points
}

#[test]
fn a_cache_is_whole_after_a_crash_at_any_point() {
    // A step that shares no factor with the number of losses, so that all of them meet all kinds of points.
    crashes((1..=counted()).step_by(4).enumerate().map(|(number, point)| (point, Loss::ALL[number % 7])));
}

#[test]
#[ignore = "minutes; part of `make soak`"]
fn a_cache_is_whole_after_every_crash_in_the_long_run() {
    crashes((1..=counted()).flat_map(|point| Loss::ALL.map(|loss| (point, loss))));
}
