//! Layers that are indexed but not cached: the requests of reads, counted at the registry.
//! Most tests need root and `/dev/fuse`, and print why they skip.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use peelfs::content::{SharedLayers, evict_content, keep_profile, load_profile};
use peelfs::documents::Command;
use peelfs::image::{ImageFs, Local, Prefetch, Programs};
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;
use peelfs::predict::{Profile, ProfileRun};
use peelfs::store::{Keep, LayerName, Store};
use peelfs_loopback::image::{Image, ImageBuilder, Layer, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Recorded, Registry};
use support::random::Random;
use support::sandbox::{MountPoint, Sandbox, cannot_mount, is_missing, said};
use support::shown::{self, MemorySource};

/// One layer of 24 files of half a MiB, named by number.
fn image(packing: Packing) -> Image {
    ImageBuilder::new().layer(image_layer(packing)).build()
}

fn image_layer(packing: Packing) -> LayerBuilder {
    let mut random = Random::new(5);
    let mut text = |len: usize| (0..len).map(|_| b"0123456789abcdef"[random.below(16)]).collect::<Vec<u8>>();
    let layer = (0..24).fold(LayerBuilder::new(), |layer, n| layer.file(&format!("{n}"), text(512 << 10)));
    layer.packing(packing)
}

const PACKINGS: [Packing; 3] =
    [Packing::GZIP, Packing::Zstd { level: 3, frame: Some(300_000), skippable: false }, Packing::Stored];

fn serve(image: &Image) -> (Registry, String) {
    let registry = Registry::start(Catalog::new().image("library/image", "1", image)).unwrap();
    let reference = registry.reference("library/image", "1");
    (registry, reference)
}

fn mount<'a>(sandbox: &'a Sandbox, reference: &str, more: &[&str]) -> MountPoint<'a> {
    let at = sandbox.mount_point("a");
    let output = at.try_mount(reference, more);
    assert!(output.status.success(), "mount: {}", said(&output));
    at
}

/// Reads files and returns what they hold.
fn read(at: &MountPoint<'_>, names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| std::fs::read(at.join(name)).unwrap()).collect()
}

fn run(sandbox: &Sandbox, args: &[&str]) -> String {
    let output = sandbox.run(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The blob bytes that are fetched for reading `names` without cached content and prediction.
fn exact(sandbox: &Sandbox, registry: &Registry, reference: &str, names: &[&str]) -> u64 {
    run(sandbox, &["cache", "drop", "--content", reference]);
    registry.clear();
    let at = mount(sandbox, reference, &["--prefetch", "none"]);
    read(&at, names);
    at.unmount();
    registry.blob_bytes()
}

#[test]
fn content_dropped_under_a_mount_is_fetched_again() {
    if cannot_mount() {
        return;
    }
    for packing in PACKINGS {
        let (registry, reference) = serve(&image(packing));
        let sandbox = Sandbox::new();
        let at = mount(&sandbox, &reference, &["--wait", "--prefetch", "none"]);
        let all: Vec<String> = (0..24).map(|n| n.to_string()).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let wanted = read(&at, &all[..12]);
        for drop in [&["cache", "drop", "--content", &reference][..], &["cache", "drop", "--content", "--all"]] {
            assert!(run(&sandbox, drop).contains("MiB"), "{packing:?}: something was freed");
            registry.clear();
            // Not from the page cache.
            rustix::fs::fadvise(std::fs::File::open(at.join("3")).unwrap(), 0, None, rustix::fs::Advice::DontNeed)
                .unwrap();
            assert!(read(&at, &all[3..4]) == wanted[3..4]);
            read(&at, &all[12..]);
            assert!(registry.requests().iter().any(|request| request.is_blob()), "{packing:?}");
            assert!(registry.requests().iter().filter(|request| request.is_blob()).all(|found| found.status == 206));
            let fresh = sandbox.path().join("fresh");
            std::fs::write(&fresh, run(&sandbox, &["cat", &reference, "/0"])).unwrap();
            assert!(std::fs::read(&fresh).unwrap() == wanted[0], "{packing:?}");
            for name in &all[12..] {
                rustix::fs::fadvise(std::fs::File::open(at.join(name)).unwrap(), 0, None, rustix::fs::Advice::DontNeed)
                    .unwrap();
            }
        }
        at.unmount();
    }
}

#[test]
fn an_imported_index_saves_the_first_pass() {
    if cannot_mount() {
        return;
    }
    for packing in PACKINGS {
        let image = image(packing);
        let (registry, reference) = serve(&image);
        let (here, there) = (Sandbox::new(), Sandbox::new());
        let at = mount(&here, &reference, &["--wait"]);
        let wanted = read(&at, &["11"]);
        at.unmount();
        let file = here.path().join("indexes");
        run(&here, &["index", "export", &reference, text(&file)]);
        assert_eq!(run(&there, &["index", "import", text(&file)]), "imported the indexes of 1 layer\n");
        assert_eq!(
            run(&there, &["index", "import", text(&file)]),
            "imported the indexes of 0 layers; 1 known already\n"
        );
        registry.clear();
        let at = mount(&there, &reference, &["--wait", "--prefetch", "none"]);
        assert!(read(&at, &["11"]) == wanted, "{packing:?}");
        let status: serde_json::Value =
            serde_json::from_str(&run(&there, &["status", "--json", text(&at.path)])).unwrap();
        assert_eq!(status["layers"][0]["vouched_by"], text(&file), "{packing:?}");
        assert_eq!(status["layers"][0]["state"], "ready");
        let told = run(&there, &["status", text(&at.path)]);
        assert!(told.contains(&format!("\n  vouched  1 of 1 by {}\n", file.display())), "{told}");
        at.unmount();
        let inspected = |sandbox| -> serde_json::Value {
            let told: serde_json::Value = serde_json::from_str(&run(sandbox, &["inspect", &reference])).unwrap();
            told["layers"][0]["vouched_by"].clone()
        };
        assert_eq!((inspected(&there), inspected(&here)), (text(&file).into(), serde_json::Value::Null));
        let layers: Vec<_> = image.layers().iter().map(|layer| layer.digest.hex()).collect();
        let asked =
            registry.requests().into_iter().filter(|found| layers.iter().any(|l| found.request.path.ends_with(l)));
        let bytes: u64 = asked.inspect(|found| assert_eq!(found.status, 206)).map(|found| found.body_bytes).sum();
        let whole = image.layers()[0].blob.len() as u64;
        assert!(bytes > 0 && bytes * 4 < whole, "{packing:?}: {bytes} of {whole}");
    }
}

#[test]
fn an_index_file_that_is_not_whole_is_refused() {
    if cannot_mount() {
        return;
    }
    let (_registry, reference) = serve(&image(Packing::GZIP));
    let (here, there) = (Sandbox::new(), Sandbox::new());
    mount(&here, &reference, &["--wait"]).unmount();
    let file = here.path().join("indexes");
    run(&here, &["index", "export", &reference, text(&file)]);
    let good = std::fs::read(&file).unwrap();
    let mut bad: Vec<Vec<u8>> = [0, 10, 16, 60, good.len() / 2, good.len() - 1].map(|end| good[..end].to_vec()).into();
    for at in [0, 8, 30, 200, good.len() / 2, good.len() - 600, good.len() - 10] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        bad.push(flipped);
    }
    for bytes in bad {
        std::fs::write(&file, &bytes).unwrap();
        let output = there.run(["index", "import", text(&file)]);
        assert_eq!(output.status.code(), Some(5), "{}", said(&output));
        assert!(there.bucket("index-v2").is_empty() && there.bucket("tmp").is_empty());
    }
    let absent = there.run(["index", "export", &reference, text(&file)]);
    assert_eq!(absent.status.code(), Some(3), "{}", said(&absent));
}

/// Files of half a MiB, as compressible as programs: words, and copies of what stands nearby.
fn of_words() -> LayerBuilder {
    let mut random = Random::new(6);
    let words: Vec<Vec<u8>> =
        (0..4000).map(|_| (0..3 + random.below(9)).map(|_| b"etaoinshrdlucmfw"[random.below(16)]).collect()).collect();
    let mut text: Vec<u8> = Vec::new();
    while text.len() < 16 << 20 {
        if random.below(8) == 0 && text.len() > 1 << 20 {
            let from = text.len() - 1 - random.below(1 << 20);
            text.extend_from_within(from..text.len().min(from + random.below(400)));
        } else if random.below(3) == 0 {
            text.extend((0..random.below(24)).map(|_| random.below(256) as u8));
        } else {
            text.extend_from_slice(&words[random.below(words.len())]);
        }
    }
    let files = text.chunks(512 << 10).enumerate();
    files.fold(LayerBuilder::new(), |layer, (n, bytes)| layer.file(&format!("{n}"), bytes.to_vec()))
}

/// One frame, as most writers of zstd make it: libzstd decodes it from its beginning only.
#[test]
fn a_zstd_frame_is_read_from_its_middle() {
    if cannot_mount() {
        return;
    }
    for level in [3, 19] {
        let image = ImageBuilder::new()
            .layer(of_words().packing(Packing::Zstd { level, frame: None, skippable: false }))
            .build();
        let (registry, reference) = serve(&image);
        let sandbox = Sandbox::new();
        let at = mount(&sandbox, &reference, &["--wait", "--prefetch", "none"]);
        let names: Vec<String> = (0..24).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let wanted = read(&at, &names);
        at.unmount();
        let whole = image.layers()[0].blob.len() as u64;
        for name in ["12", "23"] {
            run(&sandbox, &["cache", "drop", "--content", &reference]);
            registry.clear();
            let at = mount(&sandbox, &reference, &["--prefetch", "none"]);
            let file = std::fs::File::open(at.join(name)).unwrap();
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, 300_000).unwrap();
            let number: usize = name.parse().unwrap();
            assert!(bytes == wanted[number][300_000..][..4096], "{level}");
            drop(file);
            let fetched = registry.blob_bytes();
            assert!(fetched > 0 && fetched <= 5 << 19 && fetched * 3 < whole, "{level}: {fetched} of {whole}");
            // From there on, and before it. What decodes from one start is fetched once, whichever part is read first.
            assert!(read(&at, &names) == wanted, "{level}");
            let fetched = registry.blob_bytes();
            assert!(fetched * 100 <= whole * 104, "{level}: {fetched} of {whole}");
            at.unmount();
        }
    }
}

/// As `igzip -0` and level 1 of zlib-ng write layers: no decoder can begin anywhere but at the beginning, unless it knows
/// the codes of the block.
#[test]
fn a_deflate_block_is_read_from_its_middle() {
    if cannot_mount() {
        return;
    }
    for packing in [Packing::OneBlock, Packing::Gzip { level: 1, member: None }] {
        few_spans_are_fetched(of_words().packing(packing).build());
    }
}

#[test]
fn a_layer_by_igzip_is_read_from_its_middle() {
    if cannot_mount() || is_missing("igzip") {
        return;
    }
    let tar = of_words().packing(Packing::Stored).build().tar;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("layer.tar"), dir.path().join("layer.tar.gz"));
    std::fs::write(&from, &tar).unwrap();
    let packed = std::process::Command::new("igzip").args(["-0", "-f", "-o", text(&to), text(&from)]).output().unwrap();
    assert!(packed.status.success(), "{}", said(&packed));
    few_spans_are_fetched(Layer::of(tar, std::fs::read(to).unwrap(), Packing::GZIP));
}

/// Reads 4 KiB from the middle of such files when nothing is cached.
fn few_spans_are_fetched(layer: Layer) {
    let whole = layer.blob.len() as u64;
    let (registry, reference) = serve(&ImageBuilder::new().layer(layer).build());
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &reference, &["--wait", "--prefetch", "none"]);
    let names: Vec<String> = (0..32).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wanted = read(&at, &names);
    at.unmount();
    for number in [5, 20, 31] {
        run(&sandbox, &["cache", "drop", "--content", &reference]);
        registry.clear();
        let at = mount(&sandbox, &reference, &["--prefetch", "none"]);
        let file = std::fs::File::open(at.join(names[number])).unwrap();
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, 300_000).unwrap();
        assert!(bytes == wanted[number][300_000..][..4096]);
        drop(file);
        let fetched = registry.blob_bytes();
        assert!(fetched > 0 && fetched <= 512 << 10 && fetched * 16 < whole, "{fetched} of {whole}");
        // From there on, and before it.
        assert!(read(&at, &names) == wanted);
        at.unmount();
    }
}

/// A file of half a MiB compresses to a little less than half.
const ONE_AT_LEAST: u64 = (512 << 10) * 9 / 20;

fn fetched_by_range(log: &[Recorded]) -> u64 {
    log.iter().filter(|found| found.status == 206).map(|found| found.body_bytes).sum()
}

#[test]
fn a_profile_is_replayed_before_the_first_read() {
    if cannot_mount() {
        return;
    }
    for packing in PACKINGS {
        let (registry, reference) = serve(&image(packing));
        let (here, there) = (Sandbox::new(), Sandbox::new());
        let names = ["17", "3", "4"];
        // The first run: its content came with the first pass.
        let at = mount(&here, &reference, &["--wait"]);
        let wanted = read(&at, &names);
        at.unmount();
        let (index, profile) = (here.path().join("indexes"), here.path().join("profile"));
        run(&here, &["index", "export", &reference, text(&index)]);
        run(&here, &["profile", "export", &reference, text(&profile)]);
        let piped = run(&here, &["profile", "export", &reference, "-"]);
        assert_eq!(piped, std::fs::read_to_string(&profile).unwrap());
        let exact = exact(&here, &registry, &reference, &names);
        run(&here, &["cache", "drop", "--content", &reference]);
        let indexes = std::fs::File::open(&index).unwrap();
        let imported = there.peelfs(["index", "import", "-"]).stdin(indexes).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&imported.stdout),
            "imported the indexes of 1 layer\n",
            "{}",
            said(&imported)
        );
        assert_eq!(run(&there, &["profile", "import", text(&profile)]), "imported the profiles of 1 layer\n");

        for sandbox in [&here, &there] {
            registry.clear();
            let at = mount(sandbox, &reference, &[]);
            assert!(registry.wait_until(|log| fetched_by_range(log) >= 3 * ONE_AT_LEAST), "{packing:?}");
            assert!(read(&at, &names) == wanted, "{packing:?}");
            at.unmount();
            let bytes = fetched_by_range(&registry.requests());
            assert!(bytes * 10 <= exact * 11, "{packing:?}: {bytes} bytes where {exact} are read");
        }
    }
}

#[test]
fn a_profile_is_forgotten_on_request() {
    if cannot_mount() {
        return;
    }
    let (registry, reference) = serve(&image(Packing::GZIP));
    let sandbox = Sandbox::new();
    let at = mount(&sandbox, &reference, &["--wait"]);
    read(&at, &["17"]);
    at.unmount();
    registry.clear();
    assert_eq!(run(&sandbox, &["profile", "forget", &reference]), "forgot the profiles of 1 layer\n");
    assert!(registry.requests().is_empty(), "the cache knows what was mounted");
    let none = format!("no run of {reference} has been recorded");
    assert_eq!(run(&sandbox, &["profile", "forget", &reference]), format!("{none}\n"));
    let exported = sandbox.run(["profile", "export", &reference, "-"]);
    assert!(!exported.status.success() && said(&exported).contains(&none), "{}", said(&exported));
}

#[test]
fn images_that_share_a_layer_have_profiles_of_their_own() {
    if cannot_mount() {
        return;
    }
    let shared = image(Packing::GZIP);
    let base = || image_layer(Packing::GZIP);
    let with = |upper: &'static str| {
        let upper = LayerBuilder::new().file("upper", upper);
        ImageBuilder::new().layer(base()).layer(upper.packing(Packing::GZIP)).build()
    };
    let images = ["a", "b", "rebuilt"].map(|name| (name, with(name)));
    assert_eq!(images[0].1.layers()[0].digest, shared.layers()[0].digest);
    let catalog =
        images.iter().fold(Catalog::new(), |catalog, (name, image)| catalog.image("library/image", name, image));
    let registry = Registry::start(catalog).unwrap();
    let reference = |name: &str| registry.reference("library/image", name);
    let sandbox = Sandbox::new();
    let learn = |name: &str, files: &[&str]| {
        let at = mount(&sandbox, &reference(name), &["--wait"]);
        read(&at, files);
        at.unmount();
    };
    learn("a", &["17", "3", "4"]);
    learn("b", &["9"]);
    let [three, one] = [("a", &["17", "3", "4"][..]), ("b", &["9"])]
        .map(|(name, files)| exact(&sandbox, &registry, &reference(name), files));
    for (name, files, exact) in [("a", 3, three), ("b", 1, one), ("rebuilt", 1, one), ("rebuilt", 3, three)] {
        if (name, files) == ("rebuilt", 3) {
            // It reads nothing new, and is now the latest run.
            learn("a", &["17"]);
        }
        run(&sandbox, &["cache", "drop", "--content", "--all"]);
        registry.clear();
        let at = mount(&sandbox, &reference(name), &["--wait"]);
        assert!(registry.wait_until(|log| fetched_by_range(log) >= files * ONE_AT_LEAST), "{name}");
        at.unmount();
        let bytes = fetched_by_range(&registry.requests());
        assert!(bytes * 10 <= exact * 11, "{name}: {bytes} bytes where {exact} were read");
    }
}

#[test]
fn an_export_that_fails_takes_nothing_away() {
    let (_registry, reference) = serve(&image(Packing::Stored));
    let (knows, knows_not) = (Sandbox::new(), Sandbox::new());
    run(&knows, &["ls", &reference]);
    let dir = tempfile::tempdir().unwrap();
    let [file, link] = ["known", "link"].map(|name| dir.path().join(name));
    std::fs::write(&file, "older").unwrap();
    std::os::unix::fs::symlink("known", &link).unwrap();
    run(&knows, &["index", "export", &reference, text(&link)]);
    let exported = std::fs::read(&file).unwrap();
    assert!(link.is_symlink() && exported != b"older");

    let failed = knows_not.run(["index", "export", &reference, text(&file)]);
    assert_eq!(failed.status.code(), Some(3), "{}", said(&failed));
    assert_eq!(std::fs::read(&file).unwrap(), exported);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something is left beside");
}

/// A runtime in which time passes only while it is idle.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// A longer wait counts as a hang.
const HANGS: Duration = Duration::from_secs(30);

/// Reads one file of [`image`].
async fn read_one(fs: &ImageFs, name: u32) {
    let node = fs.awaited(|fs| fs.walk(name.to_string().as_bytes(), Last::Follow)).await.unwrap().node;
    assert_eq!(fs.read(node, FileOffset(0), 512 << 10).await.unwrap().len(), 512 << 10);
}

/// How long it takes to read all of [`image`].
async fn time_to_read(fs: &ImageFs) -> Duration {
    let begun = tokio::time::Instant::now();
    for name in 0..24 {
        read_one(fs, name).await;
    }
    begun.elapsed()
}

#[test]
fn reads_of_the_start_of_a_mount_are_kept_when_it_is_over() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let store = learnt(&image, dir.path());
    let kept = || load_profile(&store, name_of(&image)).map_or(0, |profile| profile.runs[0].wanted.len());
    runtime().block_on(async {
        let fs = shown::open(&MemorySource::new(&image), &store).await.unwrap();
        read_one(&fs, 3).await;
        fs.record().await;
        let recorded = kept();
        assert!(recorded > 0);
        read_one(&fs, 12).await;
        fs.keep_profiles();
        assert_eq!(kept(), recorded, "that was read later");
        fs.end();

        let fs = shown::open(&MemorySource::new(&image), &store).await.unwrap();
        fs.set_prior_age(Duration::from_secs(3600));
        read_one(&fs, 20).await;
        fs.record().await;
        assert_eq!(kept(), recorded, "the mount began long before this process");
    });
}

#[test]
fn a_cache_above_its_new_limit_shrinks_under_a_mount() {
    let [image, other] = [Packing::Stored, Packing::GZIP].map(image);
    let dir = tempfile::tempdir().unwrap();
    let open = |limit| Arc::new(Store::open(dir.path(), limit).unwrap());
    let limit = 5 << 20;
    runtime().block_on(async {
        for image in [&image, &other] {
            shown::open(&MemorySource::new(image), &open(None)).await.unwrap().end();
        }
        let limited = open(Some(limit));
        assert!(limited.usage().unwrap().layer_bytes() > 4 * limit);
        let fs = shown::open(&MemorySource::new(&image), &limited).await.unwrap();
        tokio::time::timeout(HANGS, async {
            while limited.usage().unwrap().layer_bytes() > limit + (1 << 20) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .expect("it shrinks");
        drop(fs);
    });
}

#[test]
fn what_an_ended_mount_was_to_fetch_others_fetch_at_once() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let store = || Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    drop(learnt(&image, &dir.path().join("cache")));
    let wanted = (0..48).map(|quarter| (0, quarter * (256 << 10))).collect();
    let run = ProfileRun::new(image.root().digest.clone(), wanted);
    keep_profile(&store(), profile_of(&image, run)).unwrap();
    runtime().block_on(async {
        let silent = MemorySource::new(&image);
        let ended = shown::open(&silent, &store()).await.unwrap();
        silent.hang();
        // The third is the first of several runs, and the others wait for it.
        let asked = until_asked(&silent, 3);
        tokio::select! {
            () = ended.prefetch(Prefetch::Profile) => panic!("nothing can be fetched"),
            () = asked => ended.end(),
        }
        let other = shown::open(&MemorySource::new(&image), &store()).await.unwrap();
        let took = time_to_read(&other).await;
        assert!(took < Duration::from_secs(1), "waited {took:?} for a mount that has ended");
        drop(ended);
    });
}

/// A replay joins neighbours, which take several requests, one after the other.
#[test]
fn a_read_overtakes_what_a_replay_has_not_asked_for() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let store = learnt(&image, dir.path());
    let wanted = (0..700).map(|span| (0, span * (16 << 10))).collect();
    let run = ProfileRun::new(image.root().digest.clone(), wanted);
    keep_profile(&store, profile_of(&image, run)).unwrap();
    runtime().block_on(async {
        let silent = MemorySource::new(&image);
        let fs = shown::open(&silent, &store).await.unwrap();
        silent.hang();
        let replaying = Arc::clone(&fs);
        tokio::spawn(async move { replaying.prefetch(Prefetch::Profile).await });
        // 256 KiB, 512 KiB, and 768 KiB of 1 MiB.
        until_asked(&silent, 3).await;
        let node = fs.awaited(|fs| fs.walk(b"3", Last::Follow)).await.unwrap().node;
        let reading = Arc::clone(&fs);
        tokio::spawn(async move { reading.read(node, FileOffset(64 << 10), 4096).await });
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(silent.asked(), 4, "the read asks for what it needs");
        fs.end();
    });
}

/// A runtime with this many blocking threads.
fn runtime_with_threads(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(threads).build().unwrap()
}

/// A store in `dir` with the indexes of `image` and no content.
fn learnt(image: &Image, dir: &Path) -> Arc<Store> {
    let store = Arc::new(Store::open(dir, None).unwrap());
    runtime().block_on(async { shown::open(&MemorySource::new(image), &store).await.unwrap().end() });
    // A program that another test is starting may inherit open files and their locks.
    let begun = std::time::Instant::now();
    while store.prune(Keep::Indexes).unwrap().held > 0 {
        assert!(begun.elapsed() < HANGS, "the layer is held");
        support::pause();
    }
    store
}

/// Waits until `source` has had this many requests for blobs or ranges.
async fn until_asked(source: &MemorySource, times: usize) {
    while source.asked() < times {
        tokio::task::yield_now().await;
    }
}

#[test]
fn reads_that_wait_for_a_source_take_no_thread_from_others() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["a", "b"].map(|name| learnt(&image, &dir.path().join(name)));
    runtime_with_threads(1).block_on(async {
        let (silent, well) = (MemorySource::new(&image), MemorySource::new(&image));
        let waiting = shown::open(&silent, &here).await.unwrap();
        let other = shown::open(&well, &there).await.unwrap();
        silent.hang();
        let reading = tokio::spawn(async move { time_to_read(&waiting).await });
        until_asked(&silent, 1).await;
        tokio::time::timeout(HANGS, time_to_read(&other)).await.expect("a thread to decode with");
        assert!(!reading.is_finished());
    });
}

#[test]
fn passes_that_wait_for_a_source_take_no_thread_from_others() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["a", "b"].map(|name| Arc::new(Store::open(&dir.path().join(name), None).unwrap()));
    // One for each stage of a pass.
    runtime_with_threads(3).block_on(async {
        let (silent, well) = (MemorySource::new(&image), MemorySource::new(&image));
        silent.hang();
        let opening = {
            let silent = Arc::clone(&silent);
            tokio::spawn(async move { shown::open(&silent, &here).await.map(drop) })
        };
        // Its configuration, and its layer.
        until_asked(&silent, 2).await;
        tokio::time::timeout(HANGS, shown::open(&well, &there)).await.expect("threads for a pass").unwrap();
        assert!(!opening.is_finished());
    });
}

#[test]
fn a_span_another_source_does_not_bring_comes_from_ones_own() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let shared_layers = SharedLayers::from(learnt(&image, dir.path()));
    runtime().block_on(async {
        let (silent, well) = (MemorySource::new(&image), MemorySource::new(&image));
        let waiting = shown::open_beside(&silent, &shared_layers).await.unwrap();
        let other = shown::open_beside(&well, &shared_layers).await.unwrap();
        silent.hang();
        let reading = tokio::spawn(async move { time_to_read(&waiting).await });
        until_asked(&silent, 1).await;
        let took = tokio::time::timeout(HANGS, time_to_read(&other)).await.expect("its own source answers");
        assert!(took >= Duration::from_secs(1), "it came with what another mount fetches, if that were to come");
        assert!(!reading.is_finished());
        assert!(silent.asked() < 24, "who waits asks once");
    });
}

#[test]
fn a_reader_outlives_all_mounts_that_fetch_what_it_wants() {
    let image = image(Packing::Stored);
    let dir = tempfile::tempdir().unwrap();
    let shared_layers = SharedLayers::from(learnt(&image, dir.path()));
    runtime().block_on(async {
        let sources = [(); 3].map(|()| MemorySource::new(&image));
        let mut mounts = Vec::new();
        for source in &sources {
            mounts.push(shown::open_beside(source, &shared_layers).await.unwrap());
        }
        let [first, second, third] = mounts.try_into().unwrap_or_else(|_| unreachable!());
        sources[0].hang();
        sources[1].hang();
        let read = |fs: &Arc<ImageFs>| {
            let fs = Arc::clone(fs);
            tokio::spawn(async move { time_to_read(&fs).await })
        };
        read(&first);
        until_asked(&sources[0], 1).await;
        let reading = read(&third);
        tokio::task::yield_now().await;
        // The second begins where the first ends, before the third notices.
        first.end();
        read(&second);
        until_asked(&sources[1], 1).await;
        second.end();
        tokio::time::timeout(HANGS, reading).await.expect("its own source answers").unwrap();
    });
}

/// A read that has to wait continues after the spans found first; one that need not wait returns them.
#[test]
fn a_read_looks_at_the_store_once() {
    for packing in PACKINGS {
        let image = image(packing);
        let dir = tempfile::tempdir().unwrap();
        let shared_layers = SharedLayers::from(learnt(&image, dir.path()));
        let source = MemorySource::new(&image);
        runtime().block_on(async {
            let fs = shown::open_beside(&source, &shared_layers).await.unwrap();
            let looks = || fs.layer_status()[0].reads.looks;
            let mut buf = vec![0; 512 << 10];
            for (name, cold) in [("3", true), ("3", false), ("17", true)] {
                let node = fs.walk(name.as_bytes(), Last::Follow).unwrap().node;
                let before = looks();
                match fs.read_now(node, FileOffset(0), &mut buf, &mut || ()).unwrap() {
                    Local::Bytes(length) => assert!(!cold && length == buf.len()),
                    Local::Missing(missing) => {
                        assert!(cold);
                        assert_eq!(fs.read_missing(missing).await.unwrap().len(), buf.len());
                    }
                }
                assert_eq!(looks() - before, 1, "{name}, {packing:?}");
            }
        });
    }
}

/// The first layer of an image, from the store.
fn name_of(image: &Image) -> LayerName<'_> {
    let layer = &image.layers()[0];
    LayerName { blob: &layer.digest, diff_id: &layer.diff_id }
}

/// A profile of the only layer of an image.
fn profile_of(image: &Image, run: ProfileRun) -> Profile {
    let LayerName { blob, diff_id } = name_of(image);
    Profile::new(blob, diff_id, vec![run])
}

/// A program of 1 MiB that needs these libraries.
fn program(needed: &[&str]) -> Vec<u8> {
    let strings = needed.iter().fold(vec![0], |text, name| [&text, name.as_bytes(), &[0]].concat());
    let mut dynamic = vec![(5, PROGRAM - STRINGS)];
    let places = needed.iter().scan(1, |at, name| Some(std::mem::replace(at, *at + name.len() as u64 + 1)));
    dynamic.extend(places.map(|at| (1, at)));
    let mut raw = vec![0; PROGRAM as usize];
    let mut random = Random::new(needed.len() as u64);
    raw.iter_mut().for_each(|byte| *byte = b"0123456789abcdef"[random.below(16)]);
    let mut put = |at: u64, bytes: &[u8]| raw[at as usize..][..bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(32, &[0; 8]);
    for (at, number) in [(32, 64), (54, 56), (56, 2)] {
        put(at, &u16::to_le_bytes(number));
    }
    let length = 16 * (dynamic.len() as u64 + 1);
    for (at, kind, offset, length) in [(64, 1, 0, PROGRAM), (120, 2, PROGRAM - DYNAMIC, length)] {
        put(at, &[0; 56]);
        put(at, &u32::to_le_bytes(kind));
        put(at + 4, &u32::to_le_bytes(4));
        for (place, number) in [(8, offset), (16, offset), (32, length)] {
            put(at + place, &u64::to_le_bytes(number));
        }
    }
    for (number, (tag, value)) in dynamic.into_iter().chain([(0, 0)]).enumerate() {
        let at = PROGRAM - DYNAMIC + 16 * number as u64;
        put(at, &u64::to_le_bytes(tag));
        put(at + 8, &u64::to_le_bytes(value));
    }
    put(PROGRAM - STRINGS, &strings);
    raw
}

const PROGRAM: u64 = 1 << 20;
/// Distance from its end.
const DYNAMIC: u64 = 64 << 10;
const STRINGS: u64 = 32 << 10;

/// Prefetches what programs name of which one was read so far, and waits until nothing more comes of it.
async fn prefetch_named(programs: Programs, command: &Command) {
    let _ = tokio::time::timeout(Duration::from_secs(10), programs.prefetch(command)).await;
}

/// Begins to load a program, as a kernel does.
async fn load(fs: &Arc<ImageFs>, name: &str) -> Programs {
    let programs = Programs::observe(fs);
    let node = fs.walk(name.as_bytes(), Last::Follow).unwrap().node;
    fs.read(node, FileOffset(0), 16 << 10).await.unwrap();
    programs
}

#[test]
fn what_a_program_will_want_is_fetched_before_its_loader_asks() {
    let layer = LayerBuilder::new()
        .file("usr/lib/libtwo.so.2.1", program(&[]))
        .file("other", program(&["libtwo.so.2"]))
        .file("usr/lib/libone.so", program(&["libtwo.so.2", "libnone.so"]))
        .symlink("usr/lib/libtwo.so.2", "libtwo.so.2.1")
        .file("bin/tool", program(&["libone.so"]))
        .file("bin/sh", program(&[]));
    let image = ImageBuilder::new().layer(layer.packing(Packing::GZIP)).build();
    let dir = tempfile::tempdir().unwrap();
    let store = learnt(&image, dir.path());
    let command =
        Command { programs: vec!["tool".into()], path: vec!["/sbin".into(), "/bin".into()], ..Default::default() };
    runtime().block_on(async {
        let source = MemorySource::new(&image);
        let fs = shown::open(&source, &store).await.unwrap();
        let programs = load(&fs, "bin/sh").await;
        source.take_asked();
        prefetch_named(programs, &command).await;
        assert_eq!(source.asked(), 0, "nothing is to be fetched on speculation");
        fs.end();

        let fs = shown::open(&source, &store).await.unwrap();
        fs.prefetch(Prefetch::Profile).await;
        source.take_asked();
        let programs = Programs::observe(&fs);
        let node = fs.walk(b"other", Last::Follow).unwrap().node;
        fs.read(node, FileOffset(0), 256 << 10).await.unwrap();
        source.take_asked();
        prefetch_named(programs, &command).await;
        assert_eq!(source.asked(), 0, "it is copied");
        fs.end();
        evict_content(&store, &image.layers()[0].digest).unwrap();

        let fs = shown::open(&source, &store).await.unwrap();
        fs.prefetch(Prefetch::Profile).await;
        source.take_asked();
        let programs = load(&fs, "bin/sh").await;
        prefetch_named(programs, &command).await;
        let asked: u64 = source.take_asked().into_iter().map(|(_, range)| range.end - range.start).sum();
        let whole = image.layers()[0].blob.len() as u64;
        assert!(asked * 10 < whole * 9, "{asked} of {whole}: the other one is not wanted");
        source.hang();
        for name in ["bin/tool", "usr/lib/libone.so", "usr/lib/libtwo.so.2"] {
            let node = fs.walk(name.as_bytes(), Last::Follow).unwrap().node;
            let read = tokio::time::timeout(HANGS, fs.read(node, FileOffset(0), PROGRAM as usize)).await;
            assert!(read.is_ok(), "{name} is not here");
        }
        fs.end();
    });
}

/// A program that names a library 256 times, to which a walk over a quarter of a million names leads nowhere.
#[test]
fn programs_that_name_very_much_cost_a_bounded_time() {
    let layer = LayerBuilder::new()
        .dir("lib/d")
        .symlink("lib/loop", &format!("{}loop", "d/../".repeat(500)))
        .file("bin/tool", program(&["loop"; 256]));
    let image = ImageBuilder::new().layer(layer.packing(Packing::GZIP)).build();
    let dir = tempfile::tempdir().unwrap();
    let store = learnt(&image, dir.path());
    runtime().block_on(async {
        let fs = shown::open(&MemorySource::new(&image), &store).await.unwrap();
        fs.prefetch(Prefetch::Profile).await;
        let programs = load(&fs, "bin/tool").await;
        let ended = tokio::time::timeout(HANGS, programs.prefetch(&Command::default())).await;
        assert!(ended.is_ok(), "it is looked at for ever");
        fs.end();
    });
}

#[test]
fn where_a_profile_speaks_no_program_is_looked_at() {
    let image =
        ImageBuilder::new().layer(LayerBuilder::new().file("tool", program(&[])).packing(Packing::GZIP)).build();
    let dir = tempfile::tempdir().unwrap();
    let store = learnt(&image, dir.path());
    let run = ProfileRun::new(image.root().digest.clone(), vec![(0, 0)]);
    keep_profile(&store, profile_of(&image, run)).unwrap();
    runtime().block_on(async {
        let source = MemorySource::new(&image);
        let fs = shown::open(&source, &store).await.unwrap();
        fs.prefetch(Prefetch::Profile).await;
        let programs = load(&fs, "tool").await;
        source.take_asked();
        prefetch_named(programs, &Command { programs: vec!["/tool".into()], ..Default::default() }).await;
        assert_eq!(source.asked(), 0);
        fs.end();
    });
}

#[test]
fn files_of_one_kind_in_a_directory_let_others_of_it_be_fetched() {
    let mut random = Random::new(9);
    let mut text = || (0..64 << 10).map(|_| b"0123456789abcdef"[random.below(16)]).collect::<Vec<u8>>();
    let layer = (0..120).fold(LayerBuilder::new(), |layer, n| {
        let kind = if n < 60 { "js" } else { "md" };
        layer.file(&format!("d/{n}.{kind}"), text())
    });
    let image = ImageBuilder::new().layer(layer.packing(Packing::GZIP)).build();
    let dir = tempfile::tempdir().unwrap();
    let bytes_for = |names: [&str; 2]| {
        let store = learnt(&image, dir.path());
        runtime().block_on(async {
            let source = MemorySource::new(&image);
            let fs = shown::open(&source, &store).await.unwrap();
            fs.prefetch(Prefetch::Profile).await;
            source.take_asked();
            for name in names {
                let node = fs.walk(name.as_bytes(), Last::Follow).unwrap().node;
                fs.read(node, FileOffset(0), 64 << 10).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            fs.end();
            source.take_asked().into_iter().map(|(_, range)| range.end - range.start).sum::<u64>()
        })
    };
    let (one, two) = (bytes_for(["d/10.js", "d/45.js"]), bytes_for(["d/10.js", "d/105.md"]));
    assert!(one > two + (100 << 10), "{one} of one kind, {two} of two");
}

#[test]
fn everything_is_fetched_behind_readers_when_asked_for() {
    if cannot_mount() {
        return;
    }
    for packing in PACKINGS {
        let image = image(packing);
        let (registry, reference) = serve(&image);
        let sandbox = Sandbox::new();
        mount(&sandbox, &reference, &["--wait"]).unmount();
        run(&sandbox, &["cache", "drop", "--content", &reference]);
        registry.clear();
        let at = mount(&sandbox, &reference, &["--prefetch", "all"]);
        let read_before = read(&at, &["20"]);
        let whole = image.layers()[0].blob.len() as u64;
        assert!(registry.wait_until(|log| log.iter().map(|found| found.body_bytes).sum::<u64>() >= whole - 64));
        assert!(registry.wait_until(|log| log.iter().all(|found| found.finished)));
        at.unmount();
        registry.clear();
        let at = mount(&sandbox, &reference, &["--prefetch", "none"]);
        assert!(read(&at, &["20"]) == read_before);
        assert_eq!(read(&at, &["0", "23"]).concat().len(), 1 << 20, "{packing:?}");
        at.unmount();
        assert!(registry.blob_bytes() < whole / 4, "{packing:?}: almost nothing was left");
    }
}

#[test]
fn a_reader_in_order_is_served_by_few_requests() {
    if cannot_mount() {
        return;
    }
    for packing in PACKINGS {
        let image = image(packing);
        let (registry, reference) = serve(&image);
        let sandbox = Sandbox::new();
        mount(&sandbox, &reference, &["--wait"]).unmount();
        run(&sandbox, &["cache", "drop", "--content", &reference]);
        registry.clear();
        let at = mount(&sandbox, &reference, &["--prefetch", "none"]);
        let names: Vec<String> = (0..24).map(|n| n.to_string()).collect();
        read(&at, &names.iter().map(String::as_str).collect::<Vec<_>>());
        at.unmount();
        let whole = image.layers()[0].blob.len() as u64;
        let ranges: Vec<_> = registry.requests().into_iter().filter(|found| found.status == 206).collect();
        let bytes: u64 = ranges.iter().map(|found| found.body_bytes).sum();
        assert!(bytes * 100 <= whole * 102, "{packing:?}: {bytes} of {whole} bytes: nothing travels twice");
        assert!(ranges.len() as u64 <= 4 + whole / (400 << 10), "{packing:?}: {} requests", ranges.len());
    }
}
