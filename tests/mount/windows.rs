//! Decoder windows of pushed indexes: a blob of their own, of which a machine asks for what it reads by.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Recorded, Registry};
use serde_json::Value;
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, said};
use support::side_by_side;

const NAME: &str = "team/app";
const OPTIONS: [&str; 4] = ["--index-from", "referrers", "--prefetch", "none"];

/// What programs and their data are like: some of it has been there before, not far away.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut all = random.bytes(4096);
    while all.len() < size {
        match random.below(3) {
            0 => {
                let (back, length) = (1 + random.below(all.len().min(30_000)), 4 + random.below(60));
                let from = all.len() - back;
                let again: Vec<u8> = all[from..].iter().copied().take(length).collect();
                all.extend(again);
            }
            _ => all.extend(random.bytes(200).iter().map(|byte| byte & 0x3f)),
        }
    }
    all.truncate(size);
    all
}

const FILES: usize = 16;
const FILE: usize = 1 << 20;

fn name(file: usize) -> String {
    format!("d/{file:02}")
}

/// A registry with an image of one layer, and what was pushed of it.
struct Served {
    registry: Registry,
    reference: String,
    image: Image,
    /// The windows, by digest, and their sizes.
    windows: BTreeMap<String, u64>,
    /// Bytes of the index without them.
    head: u64,
    here: Sandbox,
}

impl Served {
    fn new(packing: Packing) -> Self {
        let files = (0..FILES).map(|file| (name(file), content(file as u64, FILE)));
        let layer = files.fold(LayerBuilder::new(), |layer, (name, content)| layer.file(&name, content));
        let image = ImageBuilder::new().layer(layer.packing(packing)).build();
        let catalog = Catalog::new().image(NAME, "1", &image).listing_referrers().taking_pushes();
        let registry = Registry::start(catalog).unwrap();
        let (reference, here) = (registry.reference(NAME, "1"), Sandbox::new());
        let told = done(&here, &["index", "push", &reference]);
        let artifact = told.lines().next().unwrap().rsplit_once(": ").unwrap().1;
        let artifact: Value = serde_json::from_slice(&registry.document(NAME, artifact).unwrap()).unwrap();
        let (mut windows, mut head) = (BTreeMap::new(), 0);
        for blob in artifact["layers"].as_array().unwrap() {
            let size = blob["size"].as_u64().unwrap();
            match blob["mediaType"].as_str().unwrap() {
                "application/vnd.peelfs.windows.v1" => {
                    windows.insert(blob["digest"].as_str().unwrap().to_owned(), size);
                }
                "application/vnd.peelfs.layer-index-head.v1+zstd" => head += size,
                other => panic!("{other}"),
            }
        }
        assert_eq!(windows.len(), 1);
        registry.clear();
        Self { registry, reference, image, windows, head, here }
    }

    fn all_windows(&self) -> u64 {
        self.windows.values().sum()
    }

    fn layer_bytes(&self) -> u64 {
        self.image.layers().iter().map(|layer| layer.blob.len() as u64).sum()
    }

    /// The ranges of windows that were asked for, in order.
    fn asked(&self) -> Vec<Range<u64>> {
        let log = self.registry.requests().into_iter().filter(|asked| asked.request.method == "GET");
        let of_windows = log.filter(|asked| self.windows.keys().any(|digest| asked.request.path.ends_with(digest)));
        let range = |text: &str| {
            let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
            Some(start.parse().ok()?..last.parse::<u64>().ok()? + 1)
        };
        // Without one, everything is asked for.
        let ranges = of_windows.map(|asked| asked.range().map_or(0..self.all_windows(), |text| range(text).unwrap()));
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// Whether all of the layer was sent at once.
    fn is_passed(&self) -> bool {
        let layer = self.image.layers()[0].digest.to_string();
        self.registry.requests().iter().any(|asked| asked.request.path.ends_with(&layer) && asked.status == 200)
    }

    fn windows_digest(&self) -> peelfs::digest::Digest {
        self.windows.keys().next().unwrap().parse().unwrap()
    }
}

fn done(sandbox: &Sandbox, args: &[&str]) -> String {
    let output = sandbox.run(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn are_apart(ranges: &[Range<u64>]) -> bool {
    ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

fn is_right(at: &Path, file: usize) {
    assert!(std::fs::read(at.join(name(file))).unwrap() == content(file as u64, FILE), "{file}");
}

/// Until it has read a file, a machine has fetched the index and the windows near that file.
#[test]
fn windows_are_fetched_where_a_reader_needs_them() {
    for packing in [Packing::GZIP, Packing::OneBlock] {
        let served = Served::new(packing);
        let (there, reference) = (Sandbox::new(), &*served.reference);
        done(&there, &[&["ls", "-lR", reference], &OPTIONS[..2]].concat());
        assert_eq!(served.asked(), [], "names need none");
        assert!(!served.is_passed());
        let wanted = content(9, FILE);
        let read = there.run([&["cat", reference, &format!("/{}", name(9))], &OPTIONS[..2]].concat());
        assert!(read.stdout == wanted, "{}", said(&read));
        let asked = served.asked();
        let (bytes, all) = (sum(&asked), served.all_windows());
        eprintln!("{packing:?}: {asked:?}, {bytes} of {all}; head {}; layer {}", served.head, served.layer_bytes());
        assert!((1..=2).contains(&asked.len()) && bytes * 2 <= all, "{asked:?} of {all}");
        let share = (served.head + bytes) * 1000 / served.layer_bytes();
        assert!(share <= 12, "{share} thousandths of the layer");
        // And not again.
        done(&there, &["cache", "drop", "--content", reference]);
        served.registry.clear();
        let read = there.run([&["cat", reference, &format!("/{}", name(9))], &OPTIONS[..2]].concat());
        assert!(read.stdout == wanted && !served.is_passed(), "{}", said(&read));
        assert_eq!(served.asked(), []);
    }
}

#[test]
fn many_readers_share_the_windows_that_they_fetch() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let there = Sandbox::new();
    let at = there.mount_with(&served.reference, "a", &OPTIONS);
    side_by_side(8, 0..FILES * 2, |reader| is_right(&at.path, reader * 7 % FILES));
    let asked = served.asked();
    let status: Value = serde_json::from_str(&done(&there, &["status", "--json", at.path.to_str().unwrap()])).unwrap();
    assert_eq!(status["layers"][0]["reads"]["window_bytes"], sum(&asked));
    at.unmount();
    assert!(are_apart(&asked) && !served.is_passed(), "{asked:?}");
    // `cat` may ask for a span in the middle, which this has not needed.
    assert!(sum(&asked) <= served.all_windows());
    for file in 0..FILES {
        let read = there.run([&["cat", &*served.reference, &format!("/{}", name(file))], &OPTIONS[..2]].concat());
        assert!(read.stdout == content(file as u64, FILE));
    }
    assert!(there.run([&["ls", &*served.reference, "--offline"], &OPTIONS[..2]].concat()).status.success());
}

#[test]
fn windows_that_were_fetched_survive_a_restart() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let there = Sandbox::new();
    let at = there.mount_with(&served.reference, "a", &OPTIONS);
    (0..FILES / 2).for_each(|file| is_right(&at.path, file));
    at.unmount();
    let before = served.asked();
    done(&there, &["cache", "drop", "--content", &served.reference]);
    served.registry.clear();
    let at = there.mount_with(&served.reference, "a", &OPTIONS);
    side_by_side(8, 0..FILES, |file| is_right(&at.path, file));
    at.unmount();
    let after = served.asked();
    assert!(!before.is_empty() && !after.is_empty() && !served.is_passed());
    let mut all = [before, after].concat();
    all.sort_by_key(|range| range.start);
    assert!(are_apart(&all), "{all:?}");
}

#[test]
fn an_outage_of_everything_ends_no_use_of_an_index() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let there = Sandbox::new();
    let options = [&OPTIONS[..], &["--on-outage", "deadline=1"]].concat();
    let at = there.mount_with(&served.reference, "a", &options);
    is_right(&at.path, 0);
    served.registry.faults().add(Rule::new(Target::Any, Fault::status(503)));
    is_right(&at.path, 0);
    assert!(std::fs::read(at.path.join(name(FILES - 1))).is_err());
    served.registry.faults().clear();
    assert!((0..100).any(|_| std::fs::read(at.path.join(name(FILES - 1))).is_ok()));
    side_by_side(8, 0..FILES, |file| is_right(&at.path, file));
    assert!(!served.is_passed());
    at.unmount();
    assert!(!there.logs().contains("is read instead"), "{}", there.logs());
}

/// The windows are in a repository that serves none of them, and the layer comes from elsewhere.
#[test]
fn a_layer_whose_windows_are_withheld_is_read_whole() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let there = Sandbox::new();
    let at = there.mount_with(&served.reference, "a", &OPTIONS);
    is_right(&at.path, 0);
    let target = Target::Blob(served.windows_digest());
    served.registry.faults().add(Rule::new(target, Fault::status(404)));
    side_by_side(8, 0..FILES, |file| is_right(&at.path, file));
    assert!(served.is_passed());
    at.unmount();
    let told = there.logs();
    assert_eq!(told.matches("windows of an index that was not made here cannot be fetched").count(), 1, "{told}");
}

#[test]
fn what_is_cached_is_shown_while_windows_are_withheld() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let there = Sandbox::new();
    let at = there.mount_with(&served.reference, "a", &OPTIONS);
    is_right(&at.path, 3);
    at.unmount();
    // Another process, without a page of it in memory.
    let at = there.mount_with(&served.reference, "a", &OPTIONS);
    let (gate, layer) = (Gate::new(), served.image.layers()[0].digest.to_string());
    let of_layer = layer.clone();
    let whole = Target::matching(move |asked| asked.path.ends_with(&of_layer) && asked.header("range").is_none());
    served.registry.faults().add(Rule::new(Target::Blob(served.windows_digest()), Fault::status(404)));
    served.registry.faults().add(Rule::new(whole, Fault::Hang(gate.clone())));
    served.registry.clear();
    std::thread::scope(|scope| {
        scope.spawn(|| is_right(&at.path, FILES - 1));
        let is_pass = |asked: &Recorded| asked.request.path.ends_with(&layer) && asked.range().is_none();
        assert!(served.registry.wait_until(|log| log.iter().any(is_pass)), "a first pass");
        is_right(&at.path, 3);
        gate.open();
    });
    at.unmount();
}

#[test]
fn an_exported_index_has_the_windows_that_were_missing() {
    let served = Served::new(Packing::GZIP);
    let (there, third, reference) = (Sandbox::new(), Sandbox::new(), &*served.reference);
    done(&there, &[&["ls", reference], &OPTIONS[..2]].concat());
    let file = there.path().join("indexes").display().to_string();
    let output = there.run(["index", "export", reference, &file]);
    assert!(
        !output.status.success() && said(&output).contains("--index-from REGISTRY/REPOSITORY"),
        "{}",
        said(&output)
    );
    done(&there, &["index", "export", reference, &file, "--index-from", "referrers"]);
    let asked = served.asked();
    assert!(asked.len() <= 2 && are_apart(&asked) && sum(&asked) == served.all_windows(), "{asked:?}");
    done(&third, &["index", "import", &file]);
    served.registry.clear();
    let read = third.run(["cat", reference, &format!("/{}", name(5))]);
    assert!(read.stdout == content(5, FILE), "{}", said(&read));
    assert!(!served.is_passed() && served.asked().is_empty());
    // It is what the first machine has, but for who vouches.
    let own = served.here.path().join("own").display().to_string();
    done(&served.here, &["index", "export", reference, &own]);
    let (own, other) = (std::fs::read(own).unwrap(), std::fs::read(file).unwrap());
    assert!(own.len() > served.all_windows() as usize);
    assert_eq!(own[200..own.len() - 2000], other[200..own.len() - 2000]);
}

#[test]
fn damaged_windows_are_found_and_fetched_again() {
    let served = Served::new(Packing::GZIP);
    let (there, reference) = (Sandbox::new(), &*served.reference);
    let cat = [&["cat", reference, "/d/03"], &OPTIONS[..2]].concat();
    assert!(there.run(&cat).stdout == content(3, FILE));
    let file = there.bucket("index-v2").into_iter().find(|path| path.extension().is_some()).unwrap();
    let damage = || {
        let mut windows = std::fs::read(&file).unwrap();
        windows.iter_mut().filter(|byte| **byte != 0).for_each(|byte| *byte ^= 0x55);
        std::fs::write(&file, windows).unwrap();
        done(&there, &["cache", "drop", "--content", reference]);
        served.registry.clear();
    };
    damage();
    assert!(there.run(&cat).stdout == content(3, FILE));
    assert!(!served.asked().is_empty() && !served.is_passed(), "they are not used");
    assert!(there.run(["cache", "verify"]).status.success());
    damage();
    let found = there.run(["cache", "verify"]);
    assert!(!found.status.success() && said(&found).contains(" decoder windows of layer sha256:"), "{}", said(&found));
    assert!(!file.exists() && there.run(["cache", "verify"]).status.success());
    assert!(there.run(&cat).stdout == content(3, FILE));
    assert!(!served.is_passed());
    // They go with the index, and with nothing else.
    assert!(file.exists());
    done(&there, &["cache", "prune"]);
    assert!(file.exists());
    done(&there, &["cache", "prune", "--all"]);
    assert!(there.bucket("index-v2").is_empty(), "{:?}", there.bucket("index-v2"));
}

#[test]
fn a_first_pass_leaves_no_windows_of_another_index() {
    let served = Served::new(Packing::GZIP);
    let (there, reference) = (Sandbox::new(), &*served.reference);
    assert!(there.run(["cat", reference, "/d/03", OPTIONS[0], OPTIONS[1]]).status.success());
    assert_eq!(there.bucket("index-v2").len(), 2);
    done(&there, &["ls", reference]);
    assert_eq!(there.bucket("index-v2").len(), 1, "the index of the pass has its own");
}

/// What earlier runs have read is known beforehand, and so are the windows of that.
#[test]
fn windows_of_a_profile_take_few_requests() {
    if cannot_mount() {
        return;
    }
    let served = Served::new(Packing::GZIP);
    let read = |at: &Path| (0..FILES).step_by(2).for_each(|file| is_right(at, file));
    let at = served.here.mount_with(&served.reference, "a", &["--prefetch", "none"]);
    read(&at.path);
    at.unmount();
    done(&served.here, &["index", "push", &served.reference]);
    served.registry.clear();
    let there = Sandbox::new();
    let at = there.mount_with(&served.reference, "a", &OPTIONS[..2]);
    read(&at.path);
    at.unmount();
    let asked = served.asked();
    assert!((1..=2).contains(&asked.len()) && are_apart(&asked), "{asked:?}");
    assert!(!served.is_passed());
}
