//! Row 11 again: layers whose tables of contents (zstd:chunked) lie. What is shown is what the tar has, in the end by a first
//! pass over all of the layer, or nothing.

use std::sync::Arc;

use peelfs::image::{LayerStatus, Limits, Verify, chain};
use peelfs::source::BlobSource;
use peelfs::store::Store;
use peelfs_loopback::chunked::{Chunked, ChunkedBuilder};
use peelfs_loopback::image::{Image, ImageBuilder};
use peelfs_loopback::tar::Entry;
use serde_json::{Value, json};

use super::{lines, open, runtime, tried};
use support::random::Random;
use support::shown::MemorySource;

const ZSTD_CHUNKED: &str = "zstd:chunked";

fn entries() -> Vec<Entry> {
    let mut random = Random::new(3);
    let large = [random.bytes(20_000), vec![0; 8_000], random.bytes(12_345)].concat();
    vec![
        Entry::dir("d").mode(0o1777),
        Entry::file("d/empty", ""),
        Entry::file("d/large", large).mtime(1_600_000_000, 250_000_000),
        Entry::file("d/text", "a text"),
        Entry::file("d/other", "other text").xattr("user.a", "b"),
        Entry::hard_link("d/same", "d/text"),
        Entry::symlink("d/link", "text"),
        Entry::char_device("d/null", 1, 3),
        Entry::file("d/zeros", vec![0; 5_000]),
        Entry::whiteout("d/gone"),
    ]
}

fn chunked() -> ChunkedBuilder {
    ChunkedBuilder::of(entries()).pieces_of(4_000)
}

fn image(chunked: Chunked) -> Image {
    let annotations = chunked.annotations;
    let image = ImageBuilder::new().layer(chunked.layer);
    image.edit_manifest(move |manifest| manifest["layers"][0]["annotations"] = annotations).build()
}

/// What an image shows when all of it is read, or the one error; and what status says of its layer.
pub(super) fn seen(source: &Arc<MemorySource>, store: &Arc<Store>) -> (Result<Vec<String>, String>, LayerStatus) {
    let source = Arc::clone(source) as Arc<dyn BlobSource>;
    runtime().block_on(async {
        let fs = open(&source, store, &Limits::default(), Verify::BeforeShowing).await.unwrap();
        let known = fs.all_known().await.map_err(|error| chain(&error));
        let shown = tokio::spawn({
            let fs = Arc::clone(&fs);
            async move { lines(&fs).await }
        });
        let shown = match (known, shown.await) {
            (Err(why), _) => Err(why),
            (Ok(()), Ok(shown)) => Ok(shown),
            // What could be read so far cannot be read on.
            (Ok(()), Err(_)) => Err(fs.all_known().await.map_err(|error| chain(&error)).err().unwrap_or_default()),
        };
        (shown, fs.layer_status().remove(0))
    })
}

pub(super) fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    (dir, store)
}

/// The record of a name.
fn record<'a>(toc: &'a mut Value, name: &str) -> &'a mut Value {
    let records = toc["entries"].as_array_mut().unwrap();
    records.iter_mut().find(|record| record["name"] == name).unwrap()
}

fn push(toc: &mut Value, record: Value) {
    toc["entries"].as_array_mut().unwrap().push(record);
}

type Lie = (&'static str, fn(&mut Value));

/// What a table may say that is no table of its layer, and what status then says of it.
const LIES: &[Lie] = &[
    ("has version 2", |toc| toc["version"] = json!(2)),
    ("has version 0", |toc| drop(toc.as_object_mut().unwrap().remove("version"))),
    ("it has no entries", |toc| drop(toc.as_object_mut().unwrap().remove("entries"))),
    ("is none", |toc| toc["entries"] = json!("text")),
    ("is none", |toc| record(toc, "d/text")["size"] = json!(-1)),
    ("is none", |toc| record(toc, "d/text")["offset"] = json!(1e300)),
    ("overlaps another", |toc| {
        let before = record(toc, "d/text")["offset"].clone();
        record(toc, "d/other")["offset"] = before;
    }),
    ("lies outside", |toc| record(toc, "d/text")["endOffset"] = json!(1_u64 << 40)),
    ("lies outside", |toc| record(toc, "d/zeros")["offset"] = json!(u64::MAX)),
    ("lies outside", |toc| record(toc, "d/text")["endOffset"] = json!(1)),
    ("do not follow one another", |toc| record(toc, "d/large")["chunkSize"] = json!(3_999)),
    ("do not follow one another", |toc| record(toc, "d/large")["chunkSize"] = json!(u64::MAX)),
    ("do not add up", |toc| record(toc, "d/large")["size"] = json!(1_u64 << 62)),
    ("more pieces than bytes", |toc| record(toc, "d/large")["size"] = json!(4_000)),
    ("two entries of this name", |toc| {
        let again = record(toc, "d/empty").clone();
        push(toc, again);
    }),
    ("two entries of this name", |toc| record(toc, "d/link")["name"] = json!("d/./text")),
    ("hard link to nothing", |toc| record(toc, "d/same")["linkName"] = json!("d/nothing")),
    ("leads upwards", |toc| record(toc, "d/text")["name"] = json!("d/../../text")),
    ("leads upwards", |toc| record(toc, "d/same")["linkName"] = json!("../d/text")),
    ("JSON cannot hold its name", |toc| record(toc, "d/text")["name"] = json!("d/\u{fffd}")),
    ("contains a NUL", |toc| record(toc, "d/text")["name"] = json!("d/te\0xt")),
    ("has 256 bytes", |toc| record(toc, "d/text")["name"] = json!("n".repeat(256))),
    ("is not a directory", |toc| record(toc, "d/text")["name"] = json!("d/empty/text")),
    ("its type is unknown", |toc| record(toc, "d/link")["type"] = json!("door")),
    ("pieces follow no file", |toc| record(toc, "d/large")["type"] = json!("dir")),
    ("pieces follow another file", |toc| record(toc, "d/large")["name"] = json!("d/larger")),
    ("no SHA-256 digest", |toc| record(toc, "d/text")["digest"] = json!("md5:0")),
    ("no SHA-256 digest", |toc| drop(record(toc, "d/text").as_object_mut().unwrap().remove("digest"))),
    ("its owner is out of range", |toc| record(toc, "d/text")["uid"] = json!(1_u64 << 32)),
    ("its time is none", |toc| record(toc, "d/text")["modtime"] = json!("yesterday")),
    ("attribute that cannot be read", |toc| record(toc, "d/other")["xattrs"] = json!({ "user.a": "%" })),
    ("of an unknown type", |toc| record(toc, "d/large")["chunkType"] = json!("ones")),
    ("said to be zeros, and is not", |toc| record(toc, "d/large")["chunkType"] = json!("zeros")),
    ("out of proportion", |toc| {
        for number in 0..100_000 {
            push(toc, json!({ "type": "dir", "name": format!("{number}/a/b/c/") }));
        }
    }),
    // What only shows when it is read.
    ("it is wrong about the layer", |toc| record(toc, "d/text")["innerOffset"] = json!(512)),
    ("it is wrong about the layer", |toc| record(toc, "d/text")["digest"] = json!(format!("sha256:{:064}", 0))),
    ("it is wrong about the layer", |toc| {
        let digests = ["d/text", "d/zeros"].map(|name| record(toc, name)["digest"].clone());
        let [one, two] = digests;
        record(toc, "d/text")["digest"] = two;
        record(toc, "d/zeros")["digest"] = one;
    }),
    ("it is wrong about the layer", |toc| {
        let at = record(toc, "d/large")["offset"].as_u64().unwrap();
        record(toc, "d/large")["offset"] = json!(at + 1);
    }),
    ("it is wrong about the layer", |toc| {
        let end = record(toc, "d/other")["endOffset"].as_u64().unwrap();
        record(toc, "d/other")["endOffset"] = json!(end - 1);
    }),
];

#[test]
fn row_11_a_table_of_contents_that_lies_is_not_used() {
    let right = {
        let (_dir, store) = store();
        let (shown, status) = seen(&MemorySource::new(&image(chunked().build())), &store);
        assert_eq!((status.origin.as_deref(), &status.not_used[..]), (Some(ZSTD_CHUNKED), &[][..]));
        shown.unwrap()
    };
    for (number, (told, lie)) in LIES.iter().enumerate() {
        let (_dir, store) = store();
        let source = MemorySource::new(&image(chunked().edit_toc(lie).build()));
        let (shown, status) = seen(&source, &store);
        assert_eq!(shown.as_ref(), Ok(&right), "lie {number}: {told}");
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

/// What differs in the end cannot be taken back, so it is shown no more.
#[test]
fn row_11_names_of_another_layer_are_not_shown_on() {
    let lies: &[Lie] = &[
        ("a name", |toc| {
            record(toc, "d/text")["digest"] = json!(format!("sha256:{:064}", 0));
            record(toc, "d/empty")["name"] = json!("d/full");
        }),
        ("an owner", |toc| {
            record(toc, "d/text")["digest"] = json!(format!("sha256:{:064}", 0));
            record(toc, "d/empty")["uid"] = json!(1);
        }),
        ("an entry", |toc| {
            record(toc, "d/text")["digest"] = json!(format!("sha256:{:064}", 0));
            push(toc, json!({ "type": "dir", "name": "more/" }));
        }),
    ];
    let right = {
        let (_dir, store) = store();
        seen(&MemorySource::new(&image(chunked().build())), &store).0.unwrap()
    };
    for (told, lie) in lies {
        let (_dir, store) = store();
        let source = MemorySource::new(&image(chunked().edit_toc(lie).build()));
        let (shown, status) = seen(&source, &store);
        let why = shown.expect_err(told);
        assert!(why.contains("mount the image again"), "{told}: {why}");
        assert!(status.error.is_some(), "{told}");
        assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "{told}");
    }
    tried(11, lies.len());
}

#[test]
fn row_11_annotations_that_name_another_table_are_not_believed() {
    let checksum = "io.github.containers.zstd-chunked.manifest-checksum";
    let position = "io.github.containers.zstd-chunked.manifest-position";
    let right = {
        let (_dir, store) = store();
        seen(&MemorySource::new(&image(chunked().build())), &store).0.unwrap()
    };
    let lies: &[Lie] = &[
        ("not the one that the manifest names", |of| {
            of["io.github.containers.zstd-chunked.manifest-checksum"] = json!(format!("sha256:{:064}", 1));
        }),
        ("incomplete or malformed", |of| of["io.github.containers.zstd-chunked.manifest-checksum"] = json!("none")),
        ("outside the layer", |of| {
            of["io.github.containers.zstd-chunked.manifest-position"] = json!("100000000:1:1:1");
        }),
        ("outside the layer", |of| {
            of["io.github.containers.zstd-chunked.manifest-position"] = json!("18446744073709551615:1:1:1");
        }),
        ("outside the layer", |of| of["io.github.containers.zstd-chunked.manifest-position"] = json!("100:0:1:1")),
        ("incomplete or malformed", |of| of["io.github.containers.zstd-chunked.manifest-position"] = json!("1:2:3")),
        ("is of kind 2", |of| of["io.github.containers.zstd-chunked.manifest-position"] = json!("100:2:3:2")),
        ("and the limit is", |of| {
            of["io.github.containers.zstd-chunked.manifest-position"] = json!("100:2:999999999999:1");
        }),
        ("of two kinds", |of| of["io.containers.zstd-chunked.manifest-position"] = json!("100:2:3:1")),
    ];
    for (told, lie) in lies {
        let (_dir, store) = store();
        let mut layer = chunked().build();
        lie(&mut layer.annotations);
        let (shown, status) = seen(&MemorySource::new(&image(layer)), &store);
        assert_eq!(shown.as_ref(), Ok(&right), "{told}");
        assert!(status.not_used[0].why.contains(told), "{}, not {told}", status.not_used[0].why);
    }
    // A table that does not decode to as much as is said.
    let (_dir, store) = store();
    let mut layer = chunked().build();
    let place = layer.annotations[position].as_str().unwrap().to_owned();
    let parts: Vec<u64> = place.split(':').map(|part| part.parse().unwrap()).collect();
    layer.annotations[position] = json!(format!("{}:{}:{}:1", parts[0], parts[1], parts[2] + 1));
    assert!(layer.annotations[checksum].is_string());
    let (shown, status) = seen(&MemorySource::new(&image(layer)), &store);
    assert_eq!(shown.as_ref(), Ok(&right));
    assert!(status.not_used[0].why.contains("does not decode"), "{}", status.not_used[0].why);
    tried(11, lies.len() + 1);
}

/// The same blob may be in an image whose manifest names no table, or another one.
#[test]
fn row_11_a_table_counts_only_where_the_manifest_names_it() {
    let lie = || chunked().edit_toc(|toc| record(toc, "d/empty")["name"] = json!("d/full")).build();
    let (_dir, store) = store();
    let (lying, status) = seen(&MemorySource::new(&image(lie())), &store);
    assert_eq!(status.origin.as_deref(), Some(ZSTD_CHUNKED), "nothing contradicts it");
    assert!(lying.unwrap().iter().any(|line| line == "d/full="));
    let honest = MemorySource::new(&ImageBuilder::new().layer(lie().layer).build());
    let (shown, status) = seen(&honest, &store);
    assert_eq!(status.origin.as_deref(), Some("own index"));
    assert!(shown.unwrap().iter().any(|line| line == "d/empty="));
    tried(11, 1);
}

/// Bits that are wrong on the way are no lie of the table: the piece is asked for again, or the layer read.
#[test]
fn row_12_no_wrong_byte_of_a_chunked_layer_is_shown() {
    let image = image(chunked().build());
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
        let (shown, _) = seen(&source, &store);
        // Where the flip is in what no reader needs, it is not even seen.
        if let Ok(shown) = shown {
            assert_eq!(shown, right, "byte {at}");
        }
        source.flip(None);
        assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "byte {at}");
    }
    tried(12, count);
}
