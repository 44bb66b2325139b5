//! Row 11 again: layers whose zTOCs (SOCI) lie. What is shown is what the tar has, in the end by a first pass over all of the layer,
//! or nothing.

use std::sync::Arc;
use std::time::Duration;

use peelfs::digest::{Algorithm, Digest};
use peelfs::image::{Limits, Verify};
use peelfs::source::BlobSource;
use peelfs::store::Keep;
use peelfs_loopback::image::{Image, ImageBuilder, Layer, Packing};
use peelfs_loopback::soci::{self, Checkpoint, File, Soci, SociBuilder};
use peelfs_loopback::tar::Entry;

use super::tables::{seen, store};
use super::{lines, open, runtime, tried};
use support::random::Random;
use support::shown::MemorySource;

const SOCI: &str = "SOCI";

/// Some text that depends on what comes before it, so that places to start from need their windows.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words: Vec<Vec<u8>> = (0..200).map(|_| random.bytes(12)).collect();
    let mut text = Vec::new();
    while text.len() < length {
        text.extend_from_slice(&random.pick(&words));
    }
    text.truncate(length);
    text
}

fn entries() -> Vec<Entry> {
    vec![
        Entry::dir("d").mode(0o1777),
        Entry::file("d/empty", ""),
        Entry::file("d/large", text(1, 50_000)).mtime(1_600_000_000, 250_000_000),
        Entry::file("d/text", "a text"),
        Entry::file("d/other", text(2, 20_000)).xattr("user.a", "b").owner(7, 8),
        Entry::file(&b"d/n\xff"[..], "its name is no text"),
        Entry::hard_link("d/same", "d/text"),
        Entry::symlink("d/link", "text"),
        Entry::char_device("d/null", 1, 3),
        Entry::whiteout("d/gone"),
    ]
}

fn soci() -> Soci {
    SociBuilder::of(entries()).build()
}

/// An image whose manifest binds an index that has this `ztoc` of the layer.
fn image_of(layer: &Soci, ztoc: Vec<u8>) -> Image {
    let index = soci::index(soci::V2, [(&layer.layer.digest, ztoc)]).build();
    soci::bound(ImageBuilder::new().layer(layer.layer.clone()), &index)
}

fn image(layer: &Soci) -> Image {
    image_of(layer, layer.ztoc.to_bytes())
}

fn shown_by_a_pass() -> Vec<String> {
    let (_dir, store) = store();
    let (shown, status) = seen(&MemorySource::new(&ImageBuilder::new().layer(soci().layer).build()), &store);
    assert_eq!(status.origin.as_deref(), Some("own index"));
    shown.unwrap()
}

type Lie = (&'static str, fn(&mut Soci));

/// What a zTOC may say that is none of its layer, and what status then says of it.
const LIES: &[Lie] = &[
    ("its version is unknown", |soci| soci.ztoc.version = "1.0".to_owned()),
    ("of a layer of another size", |soci| soci.ztoc.compressed += 1),
    ("of a layer of another size", |soci| soci.ztoc.compressed = -1),
    ("has no bytes, or more", |soci| soci.ztoc.uncompressed = 0),
    ("has no bytes, or more", |soci| soci.ztoc.uncompressed = i64::MAX),
    ("compressed otherwise", |soci| soci.ztoc.algorithm = 2),
    ("compressed otherwise", |soci| soci.ztoc.algorithm = 9),
    // Span counts.
    ("one digest and one checkpoint", |soci| soci.ztoc.last_span += 1),
    ("one digest and one checkpoint", |soci| soci.ztoc.last_span = -1),
    ("one digest and one checkpoint", |soci| soci.ztoc.last_span = i32::MAX),
    ("one digest and one checkpoint", |soci| drop(soci.ztoc.digests.pop())),
    ("one digest and one checkpoint", |soci| soci.ztoc.digests.clear()),
    ("no SHA-256 digest", |soci| soci.ztoc.digests[1] = "sha256:xyz".to_owned()),
    ("no SHA-256 digest", |soci| soci.ztoc.digests[1] = Digest::of(Algorithm::Sha512, b"").to_string()),
    // Checkpoints.
    ("checkpoints are malformed", |soci| soci.ztoc.have = 0),
    ("checkpoints are malformed", |soci| soci.ztoc.have = i32::MAX),
    ("checkpoints are malformed", |soci| soci.ztoc.have = -5),
    ("checkpoints are malformed", |soci| soci.ztoc.have += 2),
    ("checkpoints are malformed", |soci| soci.ztoc.other_checkpoints = Some(vec![1; 100_000])),
    ("checkpoints are malformed", |soci| soci.ztoc.other_checkpoints = Some(Vec::new())),
    ("checkpoints are malformed", |soci| soci.ztoc.checkpoints[1].whole = -1),
    ("do not follow one another", |soci| soci.ztoc.checkpoints.swap(1, 2)),
    ("do not follow one another", |soci| soci.ztoc.checkpoints[2].whole = i64::MAX),
    ("do not follow one another", |soci| soci.ztoc.checkpoints[2].decoded = i64::MAX),
    ("do not follow one another", |soci| soci.ztoc.checkpoints[0].decoded = 1),
    ("do not follow one another", |soci| soci.ztoc.checkpoints[1].bits = 8),
    ("do not follow one another", |soci| {
        soci.ztoc.checkpoints[0].whole = 0;
        soci.ztoc.checkpoints[0].bits = 3;
    }),
    ("too far apart", |soci| {
        // A span of terabytes.
        soci.ztoc.uncompressed = 1 << 35;
    }),
    // Files.
    ("overlap others, or lie outside", |soci| {
        let at = soci.ztoc.file("d/text").at;
        soci.ztoc.file("d/other").at = at;
    }),
    ("overlap others, or lie outside", |soci| soci.ztoc.file("d/large").size += 100_000),
    ("overlap others, or lie outside", |soci| soci.ztoc.file("d/large").size = i64::MAX),
    ("overlap others, or lie outside", |soci| soci.ztoc.file("d/text").at = 1 << 40),
    ("overlap others, or lie outside", |soci| soci.ztoc.file("d/text").at += 1),
    ("its place is none", |soci| soci.ztoc.file("d/text").at = i64::MIN),
    ("its size is none", |soci| soci.ztoc.file("d/text").size = -1),
    ("two entries of this name", |soci| soci.ztoc.file("d/other").name = b"d/text".to_vec()),
    ("two entries of this name", |soci| soci.ztoc.file("d/link").name = b"d/./text".to_vec()),
    ("leads upwards", |soci| soci.ztoc.file("d/text").name = b"d/../../text".to_vec()),
    ("leads upwards", |soci| soci.ztoc.file("d/same").target = b"../d/text".to_vec()),
    ("contains a NUL", |soci| soci.ztoc.file("d/text").name = b"d/te\0xt".to_vec()),
    ("has 256 bytes", |soci| soci.ztoc.file("d/text").name = vec![b'n'; 256]),
    ("is not a directory", |soci| soci.ztoc.file("d/text").name = b"d/empty/text".to_vec()),
    ("its type is unknown", |soci| soci.ztoc.file("d/link").kind = "door".to_owned()),
    ("its type is unknown", |soci| soci.ztoc.file("d/link").kind = String::new()),
    ("its time is none", |soci| soci.ztoc.file("d/text").mtime = "yesterday".to_owned()),
    ("its time is none", |soci| soci.ztoc.file("d/text").mtime = String::new()),
    ("its device number is out of range", |soci| soci.ztoc.file("d/null").device = (-1, 0)),
    ("it is sparse", |soci| {
        soci.ztoc.file("d/text").records.push((b"GNU.sparse.major".to_vec(), b"1".to_vec()));
    }),
    ("an attribute twice", |soci| {
        soci.ztoc.file("d/other").records.push((b"SCHILY.xattr.user.a".to_vec(), b"c".to_vec()));
    }),
    ("out of proportion", |soci| {
        let place = soci.ztoc.uncompressed;
        soci.ztoc.uncompressed += 512 * 50_000;
        soci.ztoc.files.extend((0..50_000).map(|number| File {
            name: format!("{number}/a/b/c/").into_bytes(),
            kind: "dir".to_owned(),
            at: place + 512 * number,
            mtime: "2024-01-01T00:00:00Z".to_owned(),
            ..File::default()
        }));
    }),
    // What only shows when it is read.
    ("it is wrong about the layer", |soci| soci.ztoc.digests.swap(1, 2)),
    ("it is wrong about the layer", |soci| soci.ztoc.digests[0] = format!("sha256:{:064}", 0)),
    ("it is wrong about the layer", |soci| soci.ztoc.checkpoints[2].window[32_000..].fill(0)),
    ("it is wrong about the layer", |soci| soci.ztoc.checkpoints[2].window[..20_000].fill(1)),
    ("it is wrong about the layer", |soci| {
        soci.ztoc.checkpoints[1].whole += 1;
        soci.ztoc.digest(&soci.layer.blob);
    }),
    ("it is wrong about the layer", |soci| {
        soci.ztoc.checkpoints[1].bits = 5;
        soci.ztoc.digest(&soci.layer.blob);
    }),
    ("it is wrong about the layer", |soci| {
        soci.ztoc.checkpoints[1].decoded += 512;
        soci.ztoc.digest(&soci.layer.blob);
    }),
    ("it is wrong about the layer", |soci| {
        // All of the rest is one span, of which there is less than is said.
        soci.ztoc.checkpoints.truncate(2);
        (soci.ztoc.have, soci.ztoc.last_span) = (2, 1);
        soci.ztoc.uncompressed += 100_000;
        soci.ztoc.digest(&soci.layer.blob);
    }),
    ("it is wrong about the layer", |soci| {
        // Of another layer with a blob of the same size.
        let mut other = entries();
        other[2] = Entry::file("d/large", text(9, 50_000)).mtime(1_600_000_000, 250_000_000);
        let other = SociBuilder::of(other).build();
        soci.ztoc.digests = other.ztoc.digests;
        soci.ztoc.digests.truncate(soci.ztoc.checkpoints.len());
    }),
];

#[test]
fn row_11_a_ztoc_that_lies_is_not_used() {
    let right = shown_by_a_pass();
    {
        let (_dir, store) = store();
        let (shown, status) = seen(&MemorySource::new(&image(&soci())), &store);
        assert_eq!((status.origin.as_deref(), &status.not_used[..]), (Some(SOCI), &[][..]));
        assert_eq!(shown.as_ref(), Ok(&right));
        assert!(status.vouched_by.unwrap().starts_with("bound sha256:"));
    }
    for (number, (told, lie)) in LIES.iter().enumerate() {
        let (_dir, store) = store();
        let mut soci = soci();
        lie(&mut soci);
        let source = MemorySource::new(&image(&soci));
        let (shown, status) = seen(&source, &store);
        assert_eq!(shown.as_ref(), Ok(&right), "lie {number}: {told}: {status:?}");
        assert_eq!(status.origin.as_deref(), Some("own index"), "lie {number}: {told}");
        let why = &status.not_used[0].why;
        assert!(why.contains(told), "lie {number}: {why}, not {told}");
        // The next mount has an index of its own.
        source.take_asked();
        assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "lie {number}: {told}");
        assert_eq!(source.asked(), 0, "lie {number}: {told}");
    }
    tried(11, LIES.len());
}

/// Names of a zTOC that is wrong about bytes stay; the kernel is told to ask for all content again, since what was read
/// before the fault was found may be wrong.
#[test]
fn row_11_content_of_a_wrong_ztoc_is_revoked() {
    let (mut soci, right) = (soci(), shown_by_a_pass());
    soci.ztoc.checkpoints[2].window[32_000..].fill(0);
    let source = MemorySource::new(&image(&soci)) as Arc<dyn BlobSource>;
    let (_dir, store) = store();
    runtime().block_on(async {
        let fs = open(&source, &store, &Limits::default(), Verify::BeforeShowing).await.unwrap();
        let shown = lines(&fs).await;
        let revoked = tokio::time::timeout(Duration::from_secs(20), fs.revoked()).await.expect("nothing is revoked");
        assert!(revoked.count() >= shown.len());
        assert_eq!(lines(&fs).await, right);
    });
}

#[test]
fn row_11_a_ztoc_is_what_the_index_says_it_is() {
    let (soci, right) = (soci(), shown_by_a_pass());
    let bytes = soci.ztoc.to_bytes();
    let layer = || ImageBuilder::new().layer(soci.layer.clone());
    let index = || soci::index(soci::V2, [(&soci.layer.digest, bytes.clone())]);
    let edited = |edit: fn(&mut serde_json::Value)| soci::bound(layer(), &index().edit(edit).build());
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let of_ztoc = Digest::of(Algorithm::Sha256, &bytes);
    let to_nothing = layer()
        .edit_manifest(|manifest| manifest["annotations"][soci::INDEX_DIGEST] = format!("sha256:{:064}", 5).into())
        .build();
    let images = [
        ("is not what its digest says", (image(&soci), of_ztoc.clone(), flipped)),
        ("the SOCI index cannot be fetched", (to_nothing, Digest::of(Algorithm::Sha256, b""), Vec::new())),
    ];
    for (told, (image, digest, blob)) in images {
        let (_dir, store) = store();
        let source = Arc::new(MemorySource::new(&image).with_blob_under(&digest, blob));
        let (shown, status) = seen(&source, &store);
        assert_eq!(shown.as_ref(), Ok(&right), "{told}");
        let why = status.not_used.first().map(|not| not.why.clone()).unwrap_or_default();
        assert!(why.contains(told), "{why}, not {told}");
    }
    for (told, image) in [
        (
            "it is an artifact of type `application/x`",
            edited(|index| index["config"]["mediaType"] = "application/x".into()),
        ),
        ("it is not an image manifest", edited(|index| index["layers"] = "none".into())),
        ("bytes, and ", edited(|index| index["layers"][0]["size"] = (1_u64 << 40).into())),
        ("its bytes are not a zTOC", image_of(&soci, vec![7; 1000])),
        ("its bytes are not a zTOC", image_of(&soci, bytes[..bytes.len() - 1000].to_vec())),
        ("its bytes are not a zTOC", image_of(&soci, Vec::new())),
    ] {
        let (_dir, store) = store();
        let (shown, status) = seen(&MemorySource::new(&image), &store);
        assert_eq!(shown.as_ref(), Ok(&right), "{told}");
        let why = status.not_used.first().map(|not| not.why.clone()).unwrap_or_default();
        assert!(why.contains(told), "{why}, not {told}");
    }
    // Of a layer that the index does not name, nothing is said.
    let (_dir, store) = store();
    let none = soci::index(soci::V2, []).build();
    let (shown, status) = seen(&MemorySource::new(&soci::bound(layer(), &none)), &store);
    assert_eq!((shown.as_ref(), status.origin.as_deref()), (Ok(&right), Some("own index")));
    assert!(status.not_used.is_empty(), "{:?}", status.not_used);
    tried(11, 9);
}

/// The same blob may be in an image whose manifest binds no index, or another one.
#[test]
fn row_11_a_ztoc_counts_only_where_the_manifest_binds_it() {
    let mut lie = soci();
    lie.ztoc.file("d/empty").name = b"d/full".to_vec();
    let (_dir, store) = store();
    let (lying, status) = seen(&MemorySource::new(&image(&lie)), &store);
    assert_eq!(status.origin.as_deref(), Some(SOCI), "nothing contradicts it");
    assert!(lying.unwrap().iter().any(|line| line == "d/full="));
    for honest in [ImageBuilder::new().layer(soci().layer).build(), image(&soci())] {
        let (shown, status) = seen(&MemorySource::new(&honest), &store);
        assert!(shown.unwrap().iter().any(|line| line == "d/empty="), "{status:?}");
    }
    tried(11, 2);
}

/// Bits that are wrong on the way are no lie of the zTOC: the span is asked for again, or the layer read.
#[test]
fn row_12_no_wrong_byte_of_an_indexed_layer_is_shown() {
    let image = image(&soci());
    let blob = &image.layers()[0];
    let source = MemorySource::new(&image);
    let (_dir, first) = store();
    let right = seen(&source, &first).0.unwrap();
    let mut random = Random::new(12);
    let count = 60;
    for number in 0..count {
        let at = random.below(blob.blob.len()) as u64;
        let (_dir, store) = store();
        source.flip(Some((blob.digest.clone(), at, (number % 8) as u8)));
        if let Ok(shown) = seen(&source, &store).0 {
            assert_eq!(shown, right, "byte {at}");
        }
        source.flip(None);
        assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "byte {at}");
    }
    tried(12, count);
}

/// A place to start from whose span has the end of a member in it, and one behind the header of a later member.
#[test]
fn row_11_members_end_within_spans() {
    let right = shown_by_a_pass();
    for (span, member) in [(16 << 10, 10_000), (16 << 10, 16 << 10), (9_000, 33_000), (64 << 10, 500)] {
        let soci = SociBuilder::of(entries()).spans_of(span).members_of(member).build();
        let (_dir, store) = store();
        let (shown, status) = seen(&MemorySource::new(&image(&soci)), &store);
        assert_eq!(shown.as_ref(), Ok(&right), "{span} {member}: {status:?}");
        assert_eq!(status.origin.as_deref(), Some(SOCI), "{span} {member}");
        // As written before such layers were understood: of the first member only.
        let mut first = soci.clone();
        first.ztoc.checkpoints.retain(|place: &Checkpoint| place.decoded < member as i64);
        let count = first.ztoc.checkpoints.len() as i32;
        (first.ztoc.have, first.ztoc.last_span) = (count, count - 1);
        first.ztoc.digest(&first.layer.blob);
        let (_dir, store) = super::tables::store();
        assert_eq!(seen(&MemorySource::new(&image(&first)), &store).0.as_ref(), Ok(&right), "{span} {member}");
        first.ztoc.uncompressed = member as i64;
        let (_dir, store) = super::tables::store();
        assert_eq!(seen(&MemorySource::new(&image(&first)), &store).0.as_ref(), Ok(&right), "{span} {member}");
    }
    tried(11, 12);
}

/// Compressors end with an empty block, which may be a place to start from, behind what the tar is said to have.
#[test]
fn row_11_the_last_span_may_be_empty() {
    let right = shown_by_a_pass();
    for less in [0, 512] {
        let mut soci = soci();
        // A stored block without a byte, and the last one.
        let member = soci.layer.blob.len() - 8;
        let last = soci.ztoc.checkpoints.len() - 1;
        let (start, tar) = (soci.ztoc.checkpoints[last].whole as usize, soci.layer.tar.clone());
        let from = soci.ztoc.checkpoints[last].decoded as usize;
        let mut deflate = flate2::Compress::new(flate2::Compression::default(), false);
        deflate.set_dictionary(&tar[from - 32_000.min(from)..from]).unwrap();
        let mut rest = Vec::with_capacity(tar.len());
        deflate.compress_vec(&tar[from..], &mut rest, flate2::FlushCompress::Sync).unwrap();
        let place = start + rest.len();
        let blob = [&soci.layer.blob[..start], &rest, &[1, 0, 0, 0xff, 0xff], &soci.layer.blob[member..]].concat();
        let window = [vec![0; 32 << 10], tar.to_vec()].concat();
        let window = window[window.len() - (32 << 10)..].to_vec();
        soci.ztoc.checkpoints.push(Checkpoint { whole: place as i64, decoded: tar.len() as i64, bits: 0, window });
        (soci.ztoc.have, soci.ztoc.last_span) = (last as i32 + 2, last as i32 + 1);
        soci.ztoc.compressed = blob.len() as i64;
        soci.ztoc.uncompressed -= less;
        soci.ztoc.digest(&blob);
        soci.layer = Layer::of(tar, blob, Packing::GZIP);
        let (_dir, store) = store();
        let source = MemorySource::new(&image(&soci));
        let (shown, status) = seen(&source, &store);
        assert_eq!((shown.as_ref(), status.origin.as_deref()), (Ok(&right), Some(SOCI)), "{status:?}");
        assert!(store.prune(Keep::Indexes).is_ok());
        assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right));
    }
    tried(11, 2);
}

#[test]
fn row_11_plain_tars_have_ztocs_too() {
    let right = shown_by_a_pass();
    let soci = SociBuilder::of(entries()).build_stored();
    let (_dir, store) = store();
    let (shown, status) = seen(&MemorySource::new(&image(&soci)), &store);
    assert_eq!((shown.as_ref(), status.origin.as_deref()), (Ok(&right), Some(SOCI)));
    let lies: &[Lie] = &[
        ("it is wrong about the layer", |soci| soci.ztoc.digests.swap(0, 1)),
        ("checkpoints are malformed", |soci| soci.ztoc.other_checkpoints = Some(vec![4, 0, 0, 0])),
        ("one digest and one checkpoint", |soci| drop(soci.ztoc.digests.pop())),
        ("compressed otherwise", |soci| soci.ztoc.algorithm = 1),
        ("compressed otherwise", |soci| soci.ztoc.uncompressed += 1),
    ];
    for (told, lie) in lies {
        let mut soci = soci.clone();
        lie(&mut soci);
        let (_dir, store) = super::tables::store();
        let (shown, status) = seen(&MemorySource::new(&image(&soci)), &store);
        assert_eq!(shown.as_ref(), Ok(&right), "{told}");
        assert!(status.not_used[0].why.contains(told), "{}, not {told}", status.not_used[0].why);
    }
    tried(11, lies.len());
}
