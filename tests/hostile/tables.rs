//! Row 11 again: layers whose tables of contents (zstd:chunked of two makers, eStargz) lie. What is shown is what the tar has,
//! in the end by a first pass over all of the layer, or nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use peelfs::content::Prefetch;
use peelfs::image::{LayerStatus, Limits, Verify, chain};
use peelfs::source::BlobSource;
use peelfs::store::Store;
use peelfs_loopback::chunked::{Chunked, ChunkedBuilder, TocFormat, stargz_footer};
use peelfs_loopback::image::{Image, ImageBuilder};
use peelfs_loopback::tar::Entry;
use serde_json::{Value, json};

use super::{NAME, bounded, lines, open, runtime, served, tried};
use support::random::Random;
use support::sandbox::{Sandbox, said};
use support::shown::MemorySource;

fn entries() -> Vec<Entry> {
    let mut random = Random::new(3);
    let large = [random.bytes(20_000), vec![0; 8_000], random.bytes(12_345)].concat();
    vec![
        Entry::dir("d").mode(0o1777),
        Entry::file("d/empty", ""),
        Entry::file("d/large", large).mtime(1_600_000_000, 0),
        Entry::file("d/text", "a text"),
        Entry::file("d/other", "other text").xattr("user.a", "b"),
        Entry::hard_link("d/same", "d/text"),
        Entry::symlink("d/link", "text"),
        Entry::char_device("d/null", 1, 3),
        Entry::file("d/zeros", vec![0; 5_000]),
        Entry::whiteout("d/gone"),
    ]
}

fn chunked(format: TocFormat) -> ChunkedBuilder {
    ChunkedBuilder::of(entries()).format(format).pieces_of(4_000)
}

/// What such a layer is opened by.
fn origin(format: TocFormat) -> &'static str {
    match format {
        TocFormat::ZstdChunked | TocFormat::StargzZstd => "zstd:chunked",
        TocFormat::EStargz => "eStargz",
    }
}

/// What a layer without lies shows.
fn right(format: TocFormat) -> Vec<String> {
    let (_dir, store) = store();
    let (shown, status) = seen(&MemorySource::new(&image(chunked(format).build())), &store);
    assert_eq!((status.origin.as_deref(), &status.not_used[..]), (Some(origin(format)), &[][..]));
    shown.unwrap()
}

fn image(chunked: Chunked) -> Image {
    let annotations = chunked.annotations;
    let image = ImageBuilder::new().layer(chunked.layer);
    image.edit_manifest(move |manifest| manifest["layers"][0]["annotations"] = annotations).build()
}

/// What an image shows when all of it is read, or the one error; and what status says of its layer.
pub(super) fn seen(source: &Arc<MemorySource>, store: &Arc<Store>) -> (Result<Vec<String>, String>, LayerStatus) {
    seen_with(Prefetch::None, source, store)
}

/// The same, once all of it was prefetched, if `prefetch` says so.
fn seen_with(
    prefetch: Prefetch,
    source: &Arc<MemorySource>,
    store: &Arc<Store>,
) -> (Result<Vec<String>, String>, LayerStatus) {
    let source = Arc::clone(source) as Arc<dyn BlobSource>;
    runtime().block_on(async {
        let fs = open(&source, store, &Limits::default(), Verify::BeforeShowing).await.unwrap();
        let known = fs.all_known().await.map_err(|error| chain(&error));
        if prefetch != Prefetch::None {
            fs.prefetch(prefetch).await;
        }
        let known = match known {
            Ok(()) => fs.all_known().await.map_err(|error| chain(&error)),
            failed => failed,
        };
        let shown = tokio::spawn({
            let fs = Arc::clone(&fs);
            async move { lines(&fs).await }
        });
        let shown = match (known, shown.await) {
            (Err(why), _) => Err(why),
            // The table itself is a file of eStargz layers, and is what lies here.
            (Ok(()), Ok(shown)) => {
                Ok(shown.into_iter().filter(|line| !line.starts_with("stargz.index.json=")).collect())
            }
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

/// The annotation of zstd:chunked whose name ends so, by whichever maker.
fn annotation<'a>(of: &'a mut Value, end: &str) -> &'a mut Value {
    let named = of.as_object_mut().unwrap().iter_mut().find(|(name, _)| name.ends_with(end));
    named.unwrap().1
}

/// A change, by name.
type Named<T> = (&'static str, fn(&mut T));

/// Changes the numbers of `manifest-position`: offset, length, length when decoded, kind.
fn edit_position(annotations: &mut Value, edit: fn(&mut [u64; 4])) {
    let position = annotation(annotations, ".manifest-position");
    let numbers: Vec<u64> = position.as_str().unwrap().split(':').map(|number| number.parse().unwrap()).collect();
    let mut numbers = <[u64; 4]>::try_from(numbers).unwrap();
    edit(&mut numbers);
    *position = json!(numbers.map(|number| number.to_string()).join(":"));
}

/// Kinds of lies. Each format is tried with each.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    Digests,
    Overlap,
    OtherLayer,
    Outside,
    Bomb,
    Twice,
    Name,
    Link,
    Size,
    Place,
    Malformed,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Digests,
        Self::Overlap,
        Self::OtherLayer,
        Self::Outside,
        Self::Bomb,
        Self::Twice,
        Self::Name,
        Self::Link,
        Self::Size,
        Self::Place,
        Self::Malformed,
    ];
}

/// What a lie changes.
#[derive(Clone, Copy)]
enum How {
    Toc(fn(&mut Value)),
    Json(fn(&mut String)),
    Footer(fn(&mut Vec<u8>)),
    Annotations(fn(&mut Value)),
    /// The table is that of these entries.
    TocOf(fn() -> Vec<Entry>),
}

/// The kind of a lie, the formats that can tell it, what status then says of it, and the lie.
type Lie = (Kind, &'static [TocFormat], &'static str, How);

const CHUNKED: &[TocFormat] = &[TocFormat::ZstdChunked];
const ZSTD: &[TocFormat] = &[TocFormat::ZstdChunked, TocFormat::StargzZstd];
const STARGZ: &[TocFormat] = &[TocFormat::StargzZstd, TocFormat::EStargz];
const ESTARGZ: &[TocFormat] = &[TocFormat::EStargz];
const ALL: &[TocFormat] = &TocFormat::ALL;

fn lying(format: TocFormat, how: How) -> Chunked {
    let builder = chunked(format);
    match how {
        How::Toc(edit) => builder.edit_toc(edit).build(),
        How::Json(edit) => builder.edit_json(edit).build(),
        How::Footer(edit) => builder.edit_footer(edit).build(),
        How::TocOf(entries) => {
            let other = toc_of(format, entries());
            builder.edit_toc(move |toc| *toc = other).build()
        }
        How::Annotations(edit) => {
            let mut layer = builder.build();
            edit(&mut layer.annotations);
            layer
        }
    }
}

fn digest_of(bytes: &[u8]) -> Value {
    json!(peelfs::digest::Digest::of(peelfs::digest::Algorithm::Sha256, bytes))
}

/// The digest of a file that is in one piece.
fn set_digest(toc: &mut Value, name: &str, digest: &Value) {
    let record = record(toc, name);
    let field = if record.get("chunkDigest").is_some() { "chunkDigest" } else { "digest" };
    record[field] = digest.clone();
}

fn digest(toc: &mut Value, name: &str) -> Value {
    let record = record(toc, name);
    record.get("chunkDigest").unwrap_or(&record["digest"]).clone()
}

/// What a table may say that is no table of its layer, and what status then says of it.
const LIES: &[Lie] = &[
    (Kind::Malformed, ALL, "has version 2", How::Toc(|toc| toc["version"] = json!(2))),
    (Kind::Malformed, ALL, "has version 0", How::Toc(|toc| drop(toc.as_object_mut().unwrap().remove("version")))),
    (Kind::Malformed, ALL, "it has no entries", How::Toc(|toc| drop(toc.as_object_mut().unwrap().remove("entries")))),
    (Kind::Malformed, ALL, "is none", How::Toc(|toc| toc["entries"] = json!("text"))),
    (Kind::Malformed, ALL, "is none", How::Json(|json| json.truncate(json.len() - 1))),
    (Kind::Malformed, ALL, "is none", How::Json(|json| json.push_str("{}"))),
    (Kind::Malformed, ALL, "is none", How::Json(|json| json.insert_str(1, "\"entries\":[],"))),
    (Kind::Malformed, ALL, "is none", How::Json(|json| *json = format!("{{\"x\":{}", "[".repeat(1_000_000)))),
    (Kind::Malformed, ALL, "its type is unknown", How::Toc(|toc| record(toc, "d/link")["type"] = json!("door"))),
    (Kind::Malformed, ALL, "pieces follow no file", How::Toc(|toc| record(toc, "d/large")["type"] = json!("dir"))),
    (
        Kind::Malformed,
        ALL,
        "its owner is out of range",
        How::Toc(|toc| record(toc, "d/text")["uid"] = json!(1_u64 << 32)),
    ),
    (Kind::Malformed, ALL, "its time is none", How::Toc(|toc| record(toc, "d/text")["modtime"] = json!("yesterday"))),
    (
        Kind::Malformed,
        ALL,
        "attribute that cannot be read",
        How::Toc(|toc| {
            record(toc, "d/other")["xattrs"] = json!({ "user.a": "%" });
        }),
    ),
    (
        Kind::Malformed,
        CHUNKED,
        "of an unknown type",
        How::Toc(|toc| record(toc, "d/large")["chunkType"] = json!("ones")),
    ),
    (
        Kind::Malformed,
        ALL,
        "said to be zeros, and is not",
        How::Toc(|toc| {
            record(toc, "d/large")["chunkType"] = json!("zeros");
        }),
    ),
    (
        Kind::Digests,
        ALL,
        "it is wrong about the layer",
        How::Toc(|toc| {
            set_digest(toc, "d/text", &json!(format!("sha256:{:064}", 0)));
        }),
    ),
    (
        Kind::Digests,
        ALL,
        "it is wrong about the layer",
        How::Toc(|toc| {
            let [one, two] = ["d/text", "d/other"].map(|name| digest(toc, name));
            set_digest(toc, "d/text", &two);
            set_digest(toc, "d/other", &one);
        }),
    ),
    // The first two pieces of the large file.
    (
        Kind::Digests,
        ALL,
        "it is wrong about the layer",
        How::Toc(|toc| {
            let records = toc["entries"].as_array_mut().unwrap();
            let at = records.iter().position(|record| record["name"] == "d/large").unwrap();
            let [one, two] = [at, at + 1].map(|at| records[at]["chunkDigest"].clone());
            (records[at]["chunkDigest"], records[at + 1]["chunkDigest"]) = (two, one);
        }),
    ),
    (Kind::Digests, ALL, "no SHA-256 digest", How::Toc(|toc| set_digest(toc, "d/text", &json!("md5:0")))),
    (
        Kind::Digests,
        ALL,
        "no SHA-256 digest",
        How::Toc(|toc| {
            for field in ["digest", "chunkDigest"] {
                record(toc, "d/text").as_object_mut().unwrap().remove(field);
            }
        }),
    ),
    (
        Kind::Overlap,
        ALL,
        "overlaps another",
        How::Toc(|toc| {
            let before = record(toc, "d/large")["offset"].clone();
            record(toc, "d/other")["offset"] = before;
        }),
    ),
    (
        Kind::Overlap,
        CHUNKED,
        "overlaps another",
        How::Toc(|toc| {
            let behind = record(toc, "d/other")["offset"].as_u64().unwrap() + 1;
            record(toc, "d/text")["endOffset"] = json!(behind);
        }),
    ),
    (
        Kind::Overlap,
        ALL,
        "overlaps another",
        How::Toc(|toc| {
            let before = record(toc, "d/text")["offset"].clone();
            record(toc, "d/other")["offset"] = before;
        }),
    ),
    // With the same names, sizes and places, and other bytes in its files.
    (
        Kind::OtherLayer,
        ALL,
        "it is wrong about the layer",
        How::TocOf(|| {
            let mut others = entries();
            let (mut random, zeros) = (Random::new(4), vec![0; 8_000]);
            let large = [random.bytes(20_000), zeros, random.bytes(12_345)].concat();
            others[2] = Entry::file("d/large", large).mtime(1_600_000_000, 0);
            others[3] = Entry::file("d/text", "b text");
            others
        }),
    ),
    // A longer one.
    (
        Kind::OtherLayer,
        ALL,
        "lies outside",
        How::TocOf(|| {
            let mut others = entries();
            others.insert(2, Entry::file("d/more", Random::new(4).bytes(100_000)));
            others
        }),
    ),
    (Kind::Outside, ALL, "lies outside", How::Toc(|toc| record(toc, "d/zeros")["offset"] = json!(1_u64 << 40))),
    (Kind::Outside, ALL, "lies outside", How::Toc(|toc| record(toc, "d/zeros")["offset"] = json!(u64::MAX))),
    (Kind::Outside, ALL, "is none", How::Toc(|toc| record(toc, "d/text")["offset"] = json!(-1))),
    (Kind::Outside, ALL, "is none", How::Toc(|toc| record(toc, "d/text")["offset"] = json!(1e300))),
    (Kind::Outside, CHUNKED, "lies outside", How::Toc(|toc| record(toc, "d/text")["endOffset"] = json!(1_u64 << 40))),
    (Kind::Outside, CHUNKED, "lies outside", How::Toc(|toc| record(toc, "d/text")["endOffset"] = json!(1))),
    (Kind::Outside, ALL, "lies outside", How::Toc(|toc| record(toc, "d/text")["innerOffset"] = json!(u64::MAX))),
    (
        Kind::Outside,
        ALL,
        "it is wrong about the layer",
        How::Toc(|toc| {
            record(toc, "d/other")["innerOffset"] = json!(60_u64 << 20);
        }),
    ),
    (
        Kind::Outside,
        ALL,
        "it is wrong about the layer",
        How::Toc(|toc| record(toc, "d/text")["innerOffset"] = json!(1)),
    ),
    (
        Kind::Outside,
        ALL,
        "it is wrong about the layer",
        How::Toc(|toc| {
            let at = record(toc, "d/large")["offset"].as_u64().unwrap();
            record(toc, "d/large")["offset"] = json!(at + 1);
        }),
    ),
    (
        Kind::Outside,
        CHUNKED,
        "it is wrong about the layer",
        How::Toc(|toc| {
            let end = record(toc, "d/other")["endOffset"].as_u64().unwrap();
            record(toc, "d/other")["endOffset"] = json!(end - 1);
        }),
    ),
    // The table.
    (Kind::Bomb, ZSTD, "does not decode", How::Annotations(|of| edit_position(of, |[_, _, decoded, _]| *decoded -= 1))),
    (Kind::Bomb, ZSTD, "and the limit is", How::Json(|json| json.push_str(&" ".repeat(151 << 20)))),
    (Kind::Bomb, ESTARGZ, "does not decode", How::Json(|json| json.push_str(&" ".repeat(151 << 20)))),
    (
        Kind::Bomb,
        ZSTD,
        "out of proportion",
        How::Toc(|toc| {
            for number in 0..100_000 {
                push(toc, json!({ "type": "dir", "name": format!("{number}/a/b/c/") }));
            }
        }),
    ),
    // A piece: what comes before it, and itself.
    (Kind::Bomb, ALL, "lies outside", How::Toc(|toc| record(toc, "d/text")["innerOffset"] = json!(65_u64 << 20))),
    (
        Kind::Bomb,
        ALL,
        "too large to be read at once",
        How::Toc(|toc| {
            record(toc, "d/text")["size"] = json!(65_u64 << 20);
        }),
    ),
    (
        Kind::Twice,
        ALL,
        "two entries of this name",
        How::Toc(|toc| {
            let again = record(toc, "d/empty").clone();
            push(toc, again);
        }),
    ),
    (Kind::Twice, ALL, "two entries of this name", How::Toc(|toc| record(toc, "d/link")["name"] = json!("d/./text"))),
    (
        Kind::Twice,
        ALL,
        "is none",
        How::Json(|json| {
            *json = json.replacen("\"name\":\"d/text\"", "\"name\":\"d/text\",\"name\":\"d/twice\"", 1);
        }),
    ),
    (Kind::Name, ALL, "leads upwards", How::Toc(|toc| record(toc, "d/text")["name"] = json!("d/../../text"))),
    (Kind::Name, ALL, "leads upwards", How::Toc(|toc| record(toc, "d/")["name"] = json!(".."))),
    (Kind::Name, ALL, "JSON cannot hold its name", How::Toc(|toc| record(toc, "d/text")["name"] = json!("d/\u{fffd}"))),
    (Kind::Name, ALL, "contains a NUL", How::Toc(|toc| record(toc, "d/text")["name"] = json!("d/te\0xt"))),
    (Kind::Name, ALL, "has 256 bytes", How::Toc(|toc| record(toc, "d/text")["name"] = json!("n".repeat(256)))),
    (Kind::Name, ALL, "is not a directory", How::Toc(|toc| record(toc, "d/text")["name"] = json!("d/empty/text"))),
    (Kind::Name, ALL, "pieces follow another file", How::Toc(|toc| record(toc, "d/large")["name"] = json!("d/larger"))),
    (Kind::Name, ALL, "it has no name", How::Toc(|toc| record(toc, "d/text")["name"] = json!(""))),
    (Kind::Name, ALL, "it has no name", How::Toc(|toc| record(toc, "d/text")["name"] = json!("/./"))),
    // Go's readers take a field of any case.
    (
        Kind::Name,
        ALL,
        "it has no name",
        How::Json(|json| {
            *json = json.replacen("\"name\":\"d/text\"", "\"Name\":\"d/text\"", 1);
        }),
    ),
    (Kind::Name, ALL, "whiteout", How::Toc(|toc| record(toc, "d/.wh.gone")["name"] = json!("d/.wh."))),
    (Kind::Name, ALL, "whiteout", How::Toc(|toc| record(toc, "d/.wh.gone")["name"] = json!("d/.wh..."))),
    (Kind::Link, ALL, "hard link to nothing", How::Toc(|toc| record(toc, "d/same")["linkName"] = json!("d/nothing"))),
    (Kind::Link, ALL, "hard link to nothing", How::Toc(|toc| record(toc, "d/same")["linkName"] = json!("d/.wh.gone"))),
    (Kind::Link, ALL, "hard link to nothing", How::Toc(|toc| record(toc, "d/same")["linkName"] = json!("d/same"))),
    (
        Kind::Link,
        ALL,
        "hard link to nothing",
        How::Toc(|toc| {
            record(toc, "d/same")["linkName"] = json!("d/again");
            push(toc, json!({ "type": "hardlink", "name": "d/again", "linkName": "d/same" }));
        }),
    ),
    (Kind::Link, ALL, "leads upwards", How::Toc(|toc| record(toc, "d/same")["linkName"] = json!("../d/text"))),
    (Kind::Link, ALL, "hard link", How::Toc(|toc| record(toc, "d/same")["linkName"] = json!("d"))),
    (Kind::Size, ALL, "is none", How::Toc(|toc| record(toc, "d/text")["size"] = json!(-1))),
    (Kind::Size, ALL, "do not follow one another", How::Toc(|toc| record(toc, "d/large")["chunkSize"] = json!(3_999))),
    (
        Kind::Size,
        ALL,
        "do not follow one another",
        How::Toc(|toc| record(toc, "d/large")["chunkSize"] = json!(u64::MAX)),
    ),
    (Kind::Size, CHUNKED, "do not add up", How::Toc(|toc| record(toc, "d/large")["size"] = json!(1_u64 << 62))),
    (
        Kind::Size,
        STARGZ,
        "too large to be read at once",
        How::Toc(|toc| {
            record(toc, "d/large")["size"] = json!(1_u64 << 62);
        }),
    ),
    (Kind::Size, ALL, "more pieces than bytes", How::Toc(|toc| record(toc, "d/large")["size"] = json!(4_000))),
    (Kind::Place, ESTARGZ, "does not end with its place", How::Footer(Vec::clear)),
    (Kind::Place, ESTARGZ, "does not end with its place", How::Footer(|footer| footer[0] ^= 1)),
    (Kind::Place, ESTARGZ, "does not end with its place", How::Footer(|footer| footer[12] = b's')),
    (Kind::Place, ESTARGZ, "its place is outside", How::Footer(|footer| *footer = stargz_footer(u64::MAX))),
    (Kind::Place, ESTARGZ, "its place is outside", How::Footer(|footer| *footer = stargz_footer(1 << 40))),
    (Kind::Place, ESTARGZ, "its place is outside", How::Footer(|footer| footer[16] = b'x')),
    (Kind::Place, ESTARGZ, "lies outside", How::Footer(|footer| *footer = stargz_footer(0))),
    (Kind::Place, ESTARGZ, "does not decode", How::Footer(|footer| *footer = stargz_footer(1))),
    (
        Kind::Place,
        ESTARGZ,
        "not the one that the manifest names",
        How::Annotations(|of| {
            *annotation(of, "toc.digest") = json!(format!("sha256:{:064}", 1));
        }),
    ),
    (
        Kind::Place,
        ESTARGZ,
        "incomplete or malformed",
        How::Annotations(|of| *annotation(of, "toc.digest") = json!("none")),
    ),
    (
        Kind::Place,
        ZSTD,
        "not the one that the manifest names",
        How::Annotations(|of| {
            *annotation(of, "manifest-checksum") = json!(format!("sha256:{:064}", 1));
        }),
    ),
    (
        Kind::Place,
        ZSTD,
        "not the one that the manifest names",
        How::Annotations(|of| edit_position(of, |[at, ..]| *at -= 1)),
    ),
    (Kind::Place, ZSTD, "incomplete or malformed", How::Annotations(|of| *annotation(of, "checksum") = json!("none"))),
    (Kind::Place, ZSTD, "outside the layer", How::Annotations(|of| edit_position(of, |[at, ..]| *at = 100_000_000))),
    (Kind::Place, ZSTD, "outside the layer", How::Annotations(|of| edit_position(of, |[at, ..]| *at = u64::MAX))),
    (Kind::Place, ZSTD, "outside the layer", How::Annotations(|of| edit_position(of, |[_, length, ..]| *length = 0))),
    (Kind::Place, ZSTD, "incomplete or malformed", How::Annotations(|of| *annotation(of, "position") = json!("1:2:3"))),
    (Kind::Place, ZSTD, "is of kind 2", How::Annotations(|of| edit_position(of, |[.., kind]| *kind = 2))),
    (
        Kind::Place,
        ZSTD,
        "and the limit is",
        How::Annotations(|of| edit_position(of, |[_, _, decoded, _]| *decoded = 1 << 40)),
    ),
    (
        Kind::Place,
        ZSTD,
        "does not decode",
        How::Annotations(|of| edit_position(of, |[_, _, decoded, _]| *decoded += 1)),
    ),
    (
        Kind::Place,
        ZSTD,
        "of two kinds",
        How::Annotations(|of| {
            of["io.containers.zstd-chunked.manifest-position"] = json!("100:2:3:1");
            of["io.github.containers.zstd-chunked.manifest-position"] = json!("100:2:3:1");
        }),
    ),
];

/// The table of a layer of these entries.
fn toc_of(format: TocFormat, entries: Vec<Entry>) -> Value {
    let toc = Rc::new(RefCell::new(Value::Null));
    let taken = Rc::clone(&toc);
    let builder = ChunkedBuilder::of(entries).format(format).pieces_of(4_000);
    builder.edit_toc(move |toc| *taken.borrow_mut() = toc.clone()).build();
    toc.take()
}

#[test]
fn row_11_a_table_of_contents_that_lies_is_not_used() {
    let mut inputs = 0;
    for format in TocFormat::ALL {
        let right = right(format);
        let lies = LIES.iter().enumerate().filter(|(_, (_, of, ..))| of.contains(&format));
        let mut kinds = BTreeSet::new();
        for (number, (kind, _, told, how)) in lies {
            let what = format!("lie {number} of {format:?}: {told}");
            let (_dir, store) = store();
            let source = MemorySource::new(&image(lying(format, *how)));
            let (shown, status) = seen(&source, &store);
            assert_eq!(shown.as_ref(), Ok(&right), "{what}");
            assert_eq!(status.origin.as_deref(), Some("own index"), "{what}");
            let why = &status.not_used[0].why;
            assert!(why.contains(told), "{what}: {why}");
            // The next mount has an index of its own.
            source.take_asked();
            assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "{what}");
            assert_eq!(source.asked(), 0, "{what}");
            kinds.insert(*kind);
            inputs += 1;
        }
        assert_eq!(kinds.len(), Kind::ALL.len(), "{format:?} is not tried with each kind of lie: {kinds:?}");
    }
    tried(11, inputs);
}

/// What differs in the end cannot be taken back, so it is shown no more.
#[test]
fn row_11_names_of_another_layer_are_not_shown_on() {
    const NO_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let lies: &[Named<Value>] = &[
        ("a name", |toc| record(toc, "d/empty")["name"] = json!("d/full")),
        ("an owner", |toc| record(toc, "d/empty")["uid"] = json!(1)),
        ("an entry more", |toc| push(toc, json!({ "type": "dir", "name": "more/" }))),
        ("an entry less", |toc| {
            toc["entries"].as_array_mut().unwrap().retain(|record| record["name"] != "d/null");
        }),
        ("a whiteout more", |toc| push(toc, json!({ "type": "reg", "name": "d/.wh..wh..opq" }))),
        ("a whiteout less", |toc| {
            toc["entries"].as_array_mut().unwrap().retain(|record| record["name"] != "d/.wh.gone");
        }),
        ("an attribute", |toc| record(toc, "d/other")["xattrs"] = json!({ "user.a": "Yw==" })),
        ("a larger size", |toc| record(toc, "d/text")["size"] = json!(7)),
        ("a smaller size", |toc| record(toc, "d/text")["size"] = json!(5)),
        ("a size of far more than there is", |toc| record(toc, "d/text")["size"] = json!(60_u64 << 20)),
        ("a set-id bit", |toc| record(toc, "d/empty")["mode"] = json!(0o104755)),
        ("a device", |toc| record(toc, "d/null")["devMinor"] = json!(8)),
        ("another layer", |toc| {
            let foreign =
                json!({ "type": "reg", "name": "sh", "size": 4, "offset": 1, "digest": NO_DIGEST, "mode": 0o755 });
            *toc = json!({ "version": 1, "entries": [foreign, record(toc, "d/text").clone()] });
        }),
    ];
    for format in TocFormat::ALL {
        let right = right(format);
        for (told, lie) in lies {
            let (_dir, store) = store();
            // A piece that is wrong is what has the layer read.
            let lie = move |toc: &mut Value| {
                set_digest(toc, "d/text", &json!(NO_DIGEST));
                lie(toc);
            };
            let source = MemorySource::new(&image(chunked(format).edit_toc(lie).build()));
            let (shown, status) = seen(&source, &store);
            let why = shown.expect_err(told);
            assert!(why.contains("mount the image again"), "{told}: {why}");
            assert!(status.error.is_some(), "{told}");
            assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "{told}");
        }
    }
    tried(11, 3 * lies.len());
}

/// Absolute names, and such as begin with `./`, mean what they mean in a tar.
#[test]
fn row_11_names_of_tables_are_cleaned_as_those_of_tars() {
    for format in TocFormat::ALL {
        for prefix in ["/", "./", "//./"] {
            let (_dir, store) = store();
            let edit = move |toc: &mut Value| {
                for record in toc["entries"].as_array_mut().unwrap() {
                    for field in ["name", "linkName"] {
                        if let Some(name) = record[field].as_str().filter(|_| record["type"] != "symlink") {
                            record[field] = json!(format!("{prefix}{name}"));
                        }
                    }
                }
            };
            let (shown, status) = seen(&MemorySource::new(&image(chunked(format).edit_toc(edit).build())), &store);
            assert_eq!(shown.as_ref(), Ok(&right(format)), "{format:?} {prefix}");
            assert_eq!(status.origin.as_deref(), Some(origin(format)), "{format:?} {prefix}");
        }
    }
    tried(11, 9);
}

/// Only annotations say where tables in zstd are.
#[test]
fn row_11_the_footer_of_zstd_chunked_is_not_read() {
    for format in ZSTD {
        let (_dir, store) = store();
        let chunked = chunked(*format).edit_footer(|footer| footer.fill(0xff)).build();
        let (shown, status) = seen(&MemorySource::new(&image(chunked)), &store);
        assert_eq!((shown.as_ref(), status.origin.as_deref()), (Ok(&right(*format)), Some(origin(*format))));
    }
    tried(11, 2);
}

/// Pieces of files in one member: where it ends is not where a piece ends.
#[test]
fn row_11_pieces_that_share_a_member_are_told_apart() {
    for format in STARGZ {
        let right = right(*format);
        for member in [2_000, 9_000, 1 << 20] {
            let (_dir, store) = store();
            let (shown, status) = seen(&MemorySource::new(&image(chunked(*format).members_of(member).build())), &store);
            assert_eq!(shown.as_ref(), Ok(&right), "{format:?}, {member}");
            assert_eq!(status.origin.as_deref(), Some(origin(*format)), "{format:?}, {member}");
        }
    }
    tried(11, 6);
}

/// A piece of 4 bytes behind 60 MiB, one of 59 MiB, and one of which the blob is said to have 140 MiB.
#[test]
fn row_11_bombs_in_pieces_take_no_memory() {
    let zeros = vec![0; 59 << 20];
    for format in TocFormat::ALL {
        let edit = move |toc: &mut Value| {
            let [first, noise, last] = ["zeros", "noise", "last"].map(|name| record(toc, name).clone());
            let piece = |name: &str, of: &Value, bytes: &[u8]| json!({ "type": "reg", "name": name, "size": bytes.len(), "offset": of["offset"], "digest": digest_of(bytes) });
            let (mut few, mut all) = (piece("few", &first, &[0; 4]), piece("all", &noise, &[7; 4]));
            few["innerOffset"] = json!(60 << 20);
            all["endOffset"] = last["offset"].clone();
            toc["entries"] = json!([piece("zeros", &first, &vec![0; 59 << 20]), few, all, last]);
        };
        let noise = [vec![7; 4], Random::new(5).bytes(140 << 20)].concat();
        let entries =
            [Entry::file("zeros", vec![0; 61 << 20]), Entry::file("noise", noise), Entry::file("last", "last")];
        let builder = ChunkedBuilder::of(entries).format(format).pieces_of(70 << 20).edit_toc(edit);
        let registry = served(&image(builder.build()));
        for (name, wanted) in [("few", &[0; 4][..]), ("all", &[7; 4]), ("zeros", &zeros)] {
            let sandbox = Sandbox::new();
            let output = bounded(&sandbox, ["cat", &registry.reference(NAME, "1"), name]).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{format:?} {name}: {}", said(&output));
            assert!(output.stdout == wanted, "{format:?} {name}");
        }
    }
    tried(11, 9);
}

/// The same blob may be in an image whose manifest names no table, or another one.
#[test]
fn row_11_a_table_counts_only_where_the_manifest_names_it() {
    for format in TocFormat::ALL {
        let lie = || chunked(format).edit_toc(|toc| record(toc, "d/empty")["name"] = json!("d/full")).build();
        let (_dir, store) = store();
        let (lying, status) = seen(&MemorySource::new(&image(lie())), &store);
        assert_eq!(status.origin.as_deref(), Some(origin(format)), "nothing contradicts it");
        assert!(lying.unwrap().iter().any(|line| line == "d/full="));
        let honest = MemorySource::new(&ImageBuilder::new().layer(lie().layer).build());
        let (shown, status) = seen(&honest, &store);
        assert_eq!(status.origin.as_deref(), Some("own index"));
        assert!(shown.unwrap().iter().any(|line| line == "d/empty="));
    }
    tried(11, 3);
}

/// With tar-split data, a table is compared with the tar once all of its files are cached.
#[test]
fn row_11_a_table_is_confirmed_by_the_tar_of_tar_split() {
    let right = right(TocFormat::ZstdChunked);
    let (_dir, store) = store();
    let source = MemorySource::new(&image(chunked(TocFormat::ZstdChunked).tar_split(|_| ()).build()));
    let (shown, status) = seen(&source, &store);
    assert_eq!((shown.as_ref(), status.confirmed), (Ok(&right), false), "nothing was prefetched");
    let (shown, status) = seen_with(Prefetch::All, &source, &store);
    assert_eq!((shown.as_ref(), status.confirmed), (Ok(&right), true));
    assert_eq!(status.origin.as_deref(), Some("zstd:chunked"));
    // That is kept, and is not tried again.
    source.take_asked();
    let (shown, status) = seen_with(Prefetch::All, &source, &store);
    assert_eq!((shown.as_ref(), status.confirmed, source.asked()), (Ok(&right), true, 0));
    // Without such data, it is not known.
    let (_dir, store) = self::store();
    let source = MemorySource::new(&image(chunked(TocFormat::ZstdChunked).build()));
    let (shown, status) = seen_with(Prefetch::All, &source, &store);
    assert_eq!((shown.as_ref(), status.confirmed, &status.not_used[..]), (Ok(&right), false, &[][..]));
}

#[test]
fn row_11_a_table_that_the_tar_contradicts_is_not_used() {
    let right = right(TocFormat::ZstdChunked);
    let lie = |edit: fn(&mut Value), split: fn(&mut String)| {
        MemorySource::new(&image(chunked(TocFormat::ZstdChunked).edit_toc(edit).tar_split(split).build()))
    };
    // The table lacks, adds or changes names that the tar has: what was shown was wrong.
    let tables: [fn(&mut Value); 5] = [
        |toc| {
            toc["entries"].as_array_mut().unwrap().retain(|record| record["name"] != "d/null");
        },
        |toc| {
            toc["entries"].as_array_mut().unwrap().retain(|record| record["name"] != "d/empty");
        },
        |toc| push(toc, json!({ "type": "dir", "name": "more/" })),
        |toc| record(toc, "d/empty")["uid"] = json!(1),
        |toc| record(toc, "d/null")["name"] = json!("d/nil"),
    ];
    for (number, table) in tables.into_iter().enumerate() {
        let (_dir, store) = store();
        let source = lie(table, |_| ());
        let why = seen_with(Prefetch::All, &source, &store).0.expect_err("it was refuted");
        assert!(why.contains("mount the image again"), "table {number}: {why}");
        let (shown, status) = seen(&source, &store);
        assert_eq!((shown.as_ref(), status.origin.as_deref()), (Ok(&right), Some("own index")), "table {number}");
    }
    // tar-split data that make another tar.
    let splits: [Named<String>; 4] = [
        ("has the digest", |split| split.push_str("{\"type\":2,\"payload\":\"AAAA\"}")),
        ("make is none", |split| *split = split.replacen("\"payload\":\"Z", "\"payload\":\"b", 1)),
        ("another size", |split| *split = split.replacen("\"size\":6", "\"size\":5", 1)),
        ("other entries", |split| split.insert_str(0, "{\"type\":1,\"name\":\"f\",\"size\":5}\n")),
    ];
    for (told, split) in splits {
        let (_dir, store) = store();
        let (shown, status) = seen_with(Prefetch::All, &lie(|_| (), split), &store);
        assert_eq!((shown.as_ref(), status.origin.as_deref()), (Ok(&right), Some("own index")), "{told}");
        assert!(status.not_used[0].why.contains(told), "{told}: {}", status.not_used[0].why);
    }
    // Such that make none say nothing.
    let malformed: [fn(&mut String); 3] =
        [|split| split.push('{'), |split| split.push_str("{\"type\":7}"), |split| *split = "[".repeat(1_000_000)];
    for (number, split) in malformed.into_iter().enumerate() {
        let (_dir, store) = store();
        let (shown, status) = seen_with(Prefetch::All, &lie(|_| (), split), &store);
        assert_eq!((shown.as_ref(), status.confirmed), (Ok(&right), false), "malformed {number}");
        assert_eq!(status.origin.as_deref(), Some("zstd:chunked"), "malformed {number}");
    }
    // Nor do such whose place is not said, or that are others than the table says.
    let annotations: [fn(&mut Value); 4] = [
        |of| drop(of.as_object_mut().unwrap().remove("io.github.containers.zstd-chunked.tarsplit-position")),
        |of| *annotation(of, "tarsplit-position") = json!("1:2"),
        |of| *annotation(of, "tarsplit-position") = json!("1:18446744073709551615:3"),
        |of| *annotation(of, "tarsplit-position") = json!("1:2:3"),
    ];
    for (number, edit) in annotations.into_iter().enumerate() {
        let (_dir, store) = store();
        let mut layer = chunked(TocFormat::ZstdChunked).tar_split(|_| ()).build();
        edit(&mut layer.annotations);
        let (shown, status) = seen_with(Prefetch::All, &MemorySource::new(&image(layer)), &store);
        assert_eq!((shown.as_ref(), status.confirmed), (Ok(&right), false), "annotation {number}");
        assert_eq!(status.origin.as_deref(), Some("zstd:chunked"), "annotation {number}");
    }
    tried(11, tables.len() + splits.len() + malformed.len() + annotations.len());
}

/// Bits that are wrong on the way are no lie of the table: the piece is asked for again, or the layer read.
#[test]
fn row_12_no_wrong_byte_of_a_chunked_layer_is_shown() {
    let mut random = Random::new(12);
    let count = 60;
    for format in TocFormat::ALL {
        let image = image(chunked(format).build());
        let blob = &image.layers()[0];
        let source = MemorySource::new(&image);
        let right = right(format);
        for number in 0..count {
            let at = random.below(blob.blob.len()) as u64;
            let (_dir, store) = store();
            source.flip(Some((blob.digest.clone(), at, (number % 8) as u8)));
            let (shown, _) = seen(&source, &store);
            // Where the flip is in what no reader needs, it is not even seen.
            if let Ok(shown) = shown {
                assert_eq!(shown, right, "byte {at} of {format:?}");
            }
            source.flip(None);
            assert_eq!(seen(&source, &store).0.as_ref(), Ok(&right), "byte {at} of {format:?}");
        }
    }
    tried(12, 3 * count);
}
