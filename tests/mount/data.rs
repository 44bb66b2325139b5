//! Large files as the libraries of data formats read them: what is asked of the source, and how long readers wait by the
//! model of a link ([`Link`]). Indexes are known, no content is.

use std::sync::Arc;
use std::time::Duration;

use peelfs::image::{ImageFs, Prefetch};
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, NodeId};
use peelfs::store::{Keep, Store};
use peelfs_loopback::image::{Image, ImageBuilder, LayerBuilder, Packing};
use support::link::Link;
use support::random::Random;
use support::shown::{self, MemorySource};

/// 200 Mbit/s.
const RATE: u64 = 25_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(20);
const MIB: u64 = 1 << 20;
const SPAN: u64 = 256 << 10;

/// How a file was read.
struct Read {
    took: Duration,
    requests: usize,
    /// Bytes of the blob that were asked for.
    bytes: u64,
}

/// A layer with one file of random bytes, `data`, stored as it is.
fn image(size: u64) -> Image {
    let content = Random::new(7).bytes(size as usize);
    ImageBuilder::new().layer(LayerBuilder::new().file("data", content).packing(Packing::Stored)).build()
}

/// A runtime in which time passes only while it is idle.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Pieces of `data` that are read one after the other: offsets and lengths.
type Pieces = Vec<(u64, u64)>;

/// Reads pieces of `data` one after the other, with `policy`, until all of its prefetching has ended.
fn read(image: &Image, policy: Prefetch, pieces: &Pieces) -> Read {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), None).unwrap());
    runtime().block_on(async {
        shown::open(&MemorySource::new(image), &store).await.unwrap().end();
        forget(&store);
        let source = MemorySource::over(Link::new(ROUND_TRIP, RATE), image);
        let fs = shown::open(&source, &store).await.unwrap();
        let node = fs.awaited(|fs| fs.walk(b"data", Last::Follow)).await.unwrap().node;
        source.take_asked();
        let begun = tokio::time::Instant::now();
        let (took, ()) = tokio::join!(
            async {
                for (at, length) in pieces {
                    read_piece(&fs, node, *at, *length).await;
                }
                begun.elapsed()
            },
            fs.prefetch(policy),
        );
        tokio::time::sleep(Duration::from_secs(30)).await;
        fs.end();
        let asked = source.take_asked();
        let bytes = asked.iter().map(|(_, range)| range.end - range.start).sum();
        Read { took, requests: asked.len(), bytes }
    })
}

async fn read_piece(fs: &ImageFs, node: NodeId, at: u64, length: u64) {
    assert_eq!(fs.read(node, FileOffset(at), length as usize).await.unwrap().len() as u64, length);
}

/// Drops the content of all layers.
fn forget(store: &Store) {
    // A program that another test is starting may inherit open files and their locks.
    let begun = std::time::Instant::now();
    while store.prune(Keep::Indexes).unwrap().held > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the layer is held");
        support::pause();
    }
}

/// 4 KiB of each span of a file of this size, in random order.
fn shuffled(size: u64) -> Pieces {
    let mut order: Vec<_> = (0..size / SPAN).map(|span| (span * SPAN, 4096)).collect();
    let mut random = Random::new(3);
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at + 1));
    }
    order
}

#[test]
fn all_is_fetched_once_beside_a_reader() {
    let image = image(32 * MIB);
    let blob = image.layers()[0].blob.len() as u64;
    for pieces in [shuffled(32 * MIB), shuffled(32 * MIB)[..20].to_vec()] {
        let usual = read(&image, Prefetch::Profile, &pieces);
        let all = read(&image, Prefetch::All, &pieces);
        assert!(all.bytes * 100 <= blob * 102, "{} bytes of {blob} asked for", all.bytes);
        let allowed = usual.took.mul_f64(1.05) + ROUND_TRIP;
        assert!(all.took <= allowed, "the reader took {:?}, without the rest {:?}", all.took, usual.took);
    }
}

/// The time that these bytes take on the link.
fn line(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / RATE as f64)
}

/// Every piece of this size of a file, in random order.
fn jumps(size: u64, piece: u64) -> Pieces {
    let spans = size / piece * SPAN;
    shuffled(spans).iter().map(|(at, _)| (at / SPAN * piece, piece)).collect()
}

#[test]
fn all_of_a_file_in_any_order_comes_at_nearly_line_rate() {
    let size = 64 * MIB;
    let image = image(size);
    let blob = image.layers()[0].blob.len() as u64;
    // Newest first, in many rounds, as git walks through a pack.
    let rounds = (0..6).flat_map(|round| (0..40).map(move |step| ((239 - step * 6 - round) * SPAN, 4096))).collect();
    // Backwards, here and there in what it has reached.
    let mut reached = Random::new(4);
    let mut walk: Pieces =
        (0..8000).map(|read| ((255 - reached.below((read * 2 + 20).min(256)) as u64) * SPAN, 4096)).collect();
    let mut seen = std::collections::HashSet::new();
    walk.retain(|(at, _)| seen.insert(*at));
    assert!(walk.len() > 250);
    for (what, pieces, most) in [
        ("samples", shuffled(size), 1.3),
        ("mapped pages", jumps(size, 2 * SPAN), 1.3),
        ("rounds", rounds, 1.3),
        ("a walk", walk, 1.4),
    ] {
        let found = read(&image, Prefetch::Profile, &pieces);
        let times = found.took.as_secs_f64() / line(blob).as_secs_f64();
        assert!(times <= most, "{what}: {times:.2} times the line, {} requests", found.requests);
        assert!(found.bytes * 100 <= blob * 102, "{what}: {} of {blob} bytes", found.bytes);
    }
}

#[test]
fn few_reads_here_and_there_fetch_little_more_than_they_need() {
    let size = 64 * MIB;
    let image = image(size);
    for reads in [5, 20] {
        let pieces = shuffled(size)[..reads].to_vec();
        let (none, usual) = (read(&image, Prefetch::None, &pieces), read(&image, Prefetch::Profile, &pieces));
        assert!(usual.bytes <= none.bytes * 12 / 10 + MIB, "{reads}: {} bytes instead of {}", usual.bytes, none.bytes);
        let allowed = none.took + line(MIB) + ROUND_TRIP;
        assert!(usual.took <= allowed, "{reads}: {:?} instead of {:?}", usual.took, none.took);
    }
}

#[test]
fn the_rest_of_a_file_is_not_fetched_for_a_reader_that_stops() {
    let size = 64 * MIB;
    let image = image(size);
    let pieces = shuffled(size)[..40].to_vec();
    let found = read(&image, Prefetch::Profile, &pieces);
    assert!(found.bytes <= size / 2, "{} of {size} bytes for 40 of 256 spans", found.bytes);
}

#[test]
fn a_column_of_a_file_does_not_let_the_others_be_fetched() {
    let size = 64 * MIB;
    let image = image(size);
    let pieces: Pieces = (0..32).map(|group| (group * 2 * MIB, 4096)).collect();
    let (none, usual) = (read(&image, Prefetch::None, &pieces), read(&image, Prefetch::Profile, &pieces));
    assert!(usual.bytes <= none.bytes + 2 * MIB, "{} bytes instead of {}", usual.bytes, none.bytes);
}
