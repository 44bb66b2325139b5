//! Seeds of fuzzing: small valid inputs for every target, always the same.

use std::collections::BTreeMap;
use std::io::Write as _;

use peelfs::codec::{LayerDecoder, Limits, Mark, OutputBuffer, StartKind, Status};
use peelfs::descriptor::{Compression, Descriptor, MediaType};
use peelfs::digest::{Algorithm, Digest};
use peelfs::documents::{IndexArtifact, PushedBlob, PushedIndex, PushedWindows};
use peelfs::layer::{
    Check, IndexedLayer, LayerIndex, LayerTree, Proof, Span, TarWalker, WindowAt, WindowsBlob, write_index,
    write_without_windows,
};
use peelfs_loopback::image::{Family, Image, ImageBuilder, IndexBuilder, Layer, LayerBuilder, Packing};
use peelfs_loopback::soci::{Soci, SociBuilder};
use peelfs_loopback::tar::{Entry, Header, append_end, append_padded, append_pax};

use super::targets::unsealed_index;

/// The seeds of a target.
pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        // The byte in front says: checksums are put right, pieces of 50 × 7 bytes.
        "tar" => tars().into_iter().map(|tar| [&[101], tar.as_slice()].concat()).collect(),
        "index" => indexes().iter().map(|index| [unsealed_index(index).as_slice(), &[1]].concat()).collect(),
        "gzip" => [
            blobs([Packing::GZIP, Packing::Gzip { level: 1, member: Some(9000) }]),
            blobs([Packing::OneBlock, Packing::Gzip { level: 1, member: None }]),
        ]
        .concat(),
        "zstd" => [
            blobs([Packing::ZSTD, Packing::Zstd { level: 1, frame: Some(9000), skippable: true }]),
            [1, 3, 19].map(frame_of_blocks).into(),
        ]
        .concat(),
        "checkpoint" => [checkpoints(), checkpoints_inside_blocks()].concat(),
        "documents" => documents(),
        "reference" => REFERENCES.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "platform" => PLATFORMS.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "wire" => REQUESTS.iter().map(|(opcode, body)| request(*opcode, body)).collect(),
        "pushed" => pushed(),
        "toc" => tables(),
        "estargz" => vec![stargz()],
        "ztoc" => ztocs(),
        unknown => panic!("there is no target `{unknown}`"),
    }
}

/// A zstd frame of many small blocks.
fn frame_of_blocks(level: i32) -> Vec<u8> {
    let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), level).expect("there is memory");
    encoder.include_checksum(true).expect("a frame may have one");
    let mut number = 1_u32;
    for block in 0..30 {
        let words = (0..60).flat_map(|_| {
            number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            ["blob ", "digest ", "layer of ", "an ", "index\n", "\0\0\0\0\0"][(number >> 16) as usize % 6].bytes()
        });
        let bytes: Vec<u8> = if block % 7 == 3 { vec![b'x'; 500] } else { words.collect() };
        encoder.write_all(&bytes).and_then(|()| encoder.flush()).expect("writes to memory");
    }
    encoder.finish().expect("writes to memory")
}

/// Checkpoints in such frames, and the blocks that follow them.
fn checkpoints() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for level in [1, 3, 19] {
        let blob = frame_of_blocks(level);
        let limits = Limits { zstd_spacing: 300, ..Limits::default() };
        let mut decoder = LayerDecoder::first_pass(Compression::Zstd, limits).expect("there is memory");
        let mut out = OutputBuffer::new(1 << 20);
        decoder.decode(&mut &blob[..], &mut out).expect("it was just written");
        let marks = decoder.take_marks();
        for (number, window) in decoder.take_windows() {
            let checkpoint = ::zstd::bulk::decompress(&window.to_bytes(), 1 << 20).expect("it was just packed");
            let length = u16::try_from(checkpoint.len()).expect("its frame is short").to_le_bytes();
            all.push([&length[..], &checkpoint, &blob[marks[number].blob.0 as usize..]].concat());
        }
    }
    all
}

/// Checkpoints inside deflate blocks, and what follows them.
fn checkpoints_inside_blocks() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for packing in
        [Packing::OneBlock, Packing::Gzip { level: 1, member: None }, Packing::Gzip { level: 0, member: None }]
    {
        let blob = LayerBuilder::new().file("text", words(20_000)).packing(packing).build().blob;
        let limits = Limits { deflate_spacing: 64, ..Limits::default() };
        let mut decoder = LayerDecoder::first_pass(Compression::Gzip, limits).expect("there is memory");
        let mut out = OutputBuffer::new(1 << 20);
        decoder.decode(&mut &blob[..], &mut out).expect("it was just written");
        let marks = decoder.take_marks();
        let windows = decoder.take_windows().into_iter();
        for (number, window) in windows.filter(|(number, _)| marks[*number].kind == StartKind::InsideBlock) {
            let checkpoint = ::zstd::bulk::decompress(&window.to_bytes(), 1 << 20).expect("it was just packed");
            let Some(length) = u16::try_from(checkpoint.len()).ok().filter(|length| length >> 15 == 0) else {
                continue;
            };
            let Mark { blob: from, bit, .. } = marks[number];
            let rest = &blob[from.0 as usize..];
            all.push([&(length | 1 << 15).to_le_bytes()[..], &checkpoint, &[bit], rest].concat());
        }
    }
    let has = |kind| all.iter().any(|seed| seed[2] & 3 == kind);
    assert!((0..3).all(has), "blocks of all kinds");
    all
}

/// The manifest of pushed indexes, and a list that names it.
fn pushed() -> Vec<Vec<u8>> {
    let of = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    let blob = |name| PushedBlob { digest: of(name), size: 9, decoded: 90 };
    let whole = PushedIndex { layer: of("layer"), version: 2, blob: blob("index"), windows: None };
    let windows = Some(PushedWindows { digest: of("windows"), size: 7 });
    let head = PushedIndex { layer: of("another"), version: 3, blob: blob("head"), windows };
    let artifact = IndexArtifact { layers: vec![whole, head], profiles: Some(blob("profiles")) };
    let (media_type, annotations) = (MediaType::OciManifest, BTreeMap::new());
    let subject = Descriptor { media_type, digest: of("image"), size: 5, data: None, annotations };
    let created = "2026-01-01T00:00:00Z";
    let manifest = artifact.manifest(&subject, created);
    let entry = IndexArtifact::entry(&manifest, created);
    vec![manifest, format!(r#"{{"manifests":[{entry},{entry}]}}"#).into_bytes()]
}

/// Tables of contents, as zstd:chunked and eStargz have them.
fn tables() -> Vec<Vec<u8>> {
    let digest = Digest::of(Algorithm::Sha256, b"piece").to_string();
    let file =
        |more: &str| format!(r#"{{"type":"reg","name":"d/f","mode":33188,"size":9,"digest":"{digest}",{more}}}"#);
    let piece = |more: &str| format!(r#"{{"type":"chunk","name":"d/f","chunkDigest":"{digest}",{more}}}"#);
    let rest = r#"{"type":"dir","name":"e/","uid":7,"gid":4,"modtime":"2023-11-14T22:13:20.25Z"},
        {"type":"hardlink","name":"e/h","linkName":"d/f"},{"type":"symlink","name":"e/s","linkName":"../d"},
        {"type":"char","name":"null","devMajor":1,"devMinor":3},{"type":"fifo","name":"p","xattrs":{"user.a":"Yg=="}}"#;
    let chunked = [
        file(&format!(r#""offset":100,"endOffset":190,"chunkSize":4,"chunkDigest":"{digest}""#)),
        piece(r#""offset":150,"chunkOffset":4,"chunkSize":5,"chunkType":"""#),
    ];
    let stargz = [
        file(&format!(r#""offset":100,"chunkSize":4,"chunkDigest":"{digest}""#)),
        piece(r#""offset":150,"chunkOffset":4"#),
        file(&format!(r#""offset":150,"innerOffset":512,"chunkDigest":"{digest}""#)).replace("d/f", "d/g"),
    ];
    let table = |records: &[String]| format!(r#"{{"version":1,"entries":[{},{rest}]}}"#, records.join(","));
    let split = br#"3{"type":2,"payload":"YWI=","position":0}{"type":1,"name":"a","size":5,"position":1}"#;
    vec![[b"1", table(&chunked).as_bytes()].concat(), [b"0", table(&stargz).as_bytes()].concat(), split.to_vec()]
}

/// An eStargz layer with nothing but its table.
fn stargz() -> Vec<u8> {
    let json = br#"{"version":1,"entries":[]}"#;
    let tar = LayerBuilder::new().file("stargz.index.json", &json[..]).build();
    let mut blob = tar.blob.to_vec();
    blob.splice(0..0, json.iter().copied());
    let place = format!("{:016x}STARGZ", json.len());
    let footer = [
        &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0][..],
        place.as_bytes(),
        &[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    // The byte in front says what the table must hash to: the first bytes.
    [&[json.len() as u8][..], &blob, &footer.concat()].concat()
}

/// zTOCs of a small layer: with two places to start from, with the first one left out, and of a plain tar.
fn ztocs() -> Vec<Vec<u8>> {
    let builder = || {
        SociBuilder::of([
            Entry::dir("d").mode(0o1777),
            Entry::file("d/f", "content of a file\n".repeat(40)).xattr("user.a", "b").mtime(5, 250_000_000),
            Entry::hard_link("d/h", "d/f"),
            Entry::symlink("d/s", "f"),
            Entry::char_device("null", 1, 3),
            Entry::fifo("p"),
        ])
    };
    let two = builder().spans_of(1000).build();
    let mut left_out = builder().spans_of(100_000).build();
    left_out.ztoc.checkpoints.clear();
    let stored = builder().spans_of(1000).build_stored();
    let seed = |how: u8, soci: &Soci| {
        let size = u32::try_from(soci.layer.blob.len()).expect("it is small").to_le_bytes();
        [&[how][..], &size, &soci.ztoc.to_bytes()].concat()
    };
    vec![seed(0, &left_out), seed(1, &stored), seed(0, &two)]
}

fn tars() -> Vec<Vec<u8>> {
    let kinds = LayerBuilder::new()
        .dir("usr")
        .file("usr/file", "content of a file\n".repeat(40))
        .symlink("usr/link", "../etc/passwd")
        .hard_link("usr/hard", "usr/file")
        .hard_link("usr/lower", "lib/of-a-lower-layer")
        .entry(Entry::fifo("run/pipe"))
        .entry(Entry::char_device("dev/null", 1, 3))
        .entry(Entry::block_device("dev/sda", 8, 0).mode(0o4660).owner(7, 3_000_000))
        .build();
    let hiding = LayerBuilder::new()
        .file("a/b", "first")
        .whiteout("a/c")
        .opaque("a")
        .dir("a/b")
        .file("a/b/c", "in place of a file")
        .whiteout("a/b")
        .symlink("d", "a")
        .file("d/e", "through a symlink")
        .without_end()
        .build();
    let long = "long/".repeat(60);
    let pax = LayerBuilder::new()
        .entry(Entry::file(format!("{long}name"), "x").mtime(-5, 999_999_999))
        .entry(Entry::file("cap", "y").xattr("security.capability", &[1, 0, 0, 2, 0, 4][..]).xattr("user.a", ""))
        .entry(Entry::symlink("far", long))
        .build();
    let mut sparse = Vec::new();
    append_pax(&mut sparse, b"GNU.sparse.major", b"1");
    append_pax(&mut sparse, b"GNU.sparse.minor", b"0");
    append_pax(&mut sparse, b"GNU.sparse.realsize", b"100000");
    let sparse = pax_entry(&sparse, &{
        let mut body = b"2\n0\n5\n99990\n10\n".to_vec();
        body.resize(512, 0);
        body.extend_from_slice(b"hello0123456789");
        body
    });
    let mut old = Vec::new();
    append_pax(&mut old, b"GNU.sparse.map", b"0,5,4096,10");
    append_pax(&mut old, b"GNU.sparse.size", b"8192");
    append_pax(&mut old, b"GNU.sparse.numblocks", b"2");
    let old = pax_entry(&old, b"hello0123456789");
    let mut all: Vec<Vec<u8>> = [kinds, hiding, pax].into_iter().map(|layer: Layer| layer.tar.to_vec()).collect();
    all.extend([sparse, old]);
    all
}

/// One file with these PAX records and this body.
fn pax_entry(records: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, content) in [(&b"pax"[..], b'x', records), (b"file", b'0', body)] {
        Header { name, kind, size: content.len() as u64, mode: 0o644, ..Header::EMPTY }.write(&mut out);
        append_padded(&mut out, content);
    }
    append_end(&mut out);
    out
}

fn indexes() -> Vec<Vec<u8>> {
    let whole: Vec<_> = tars().iter().map(|tar| index(tar)).collect();
    let heads: Vec<_> = whole.iter().map(|index| without_windows(index)).collect();
    [whole, heads].concat()
}

/// An index whose windows are in a blob of their own.
fn without_windows(index: &[u8]) -> Vec<u8> {
    let index = LayerIndex::open(index.to_vec()).expect("the seed is good");
    let (mut windows, mut head) = (Vec::new(), Vec::new());
    index.copy_windows(&mut windows).expect("the seed is good");
    let blob = WindowsBlob { digest: Digest::of(Algorithm::Sha256, &windows), size: windows.len() as u64 };
    write_without_windows(&index, &blob, &mut head).expect("the seed is small");
    head
}

/// The index of a layer, with a span and a window.
fn index(tar: &[u8]) -> Vec<u8> {
    let mut tree = LayerTree::default();
    let mut walker = TarWalker::new();
    walker.push(tar, &mut tree).expect("the seed is good");
    walker.finish().expect("the seed is whole");
    let digest = Digest::of(Algorithm::Sha256, tar);
    let size = tar.len() as u64;
    let of = IndexedLayer { blob: digest.clone(), blob_size: size, diff_id: digest, decoded_size: size };
    let mut decoder = LayerDecoder::first_pass(Compression::Stored, Limits::default()).expect("stored needs nothing");
    let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
    let mut input = tar;
    assert_eq!(decoder.decode(&mut input, &mut out).expect("stored is never wrong"), Status::NeedInput);
    let spans: Vec<Span> = decoder
        .take_marks()
        .into_iter()
        .map(|mark| Span {
            decoded: mark.decoded..peelfs::offsets::DecodedOffset(size),
            blob: mark.blob,
            bit: mark.bit,
            kind: mark.kind,
            check: Check::blake3(tar),
            window: Some(WindowAt { start: 0, len: 3 }),
        })
        .collect();
    let mut file = Vec::new();
    write_index(&tree, &spans, &[0, 1, 2], &of, &Proof::Built, &mut file).expect("the seed is small");
    file
}

/// A short and a long text, packed either way; the long one has marks in its middle.
fn blobs(packings: [Packing; 2]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (count, packing) in [(3000, packings[0]), (3000, packings[1]), (60_000, packings[0])] {
        all.push(LayerBuilder::new().file("text", words(count)).packing(packing).build().blob.to_vec());
    }
    all
}

fn words(count: u32) -> Vec<u8> {
    let word = |n: u32| n.wrapping_mul(0x9e37_79b9) >> 22;
    (0..count).flat_map(|n| format!("word{} ", word(n)).into_bytes()).collect()
}

fn documents() -> Vec<Vec<u8>> {
    let image = |family, platform| {
        let layer = LayerBuilder::new().file("a", "b");
        ImageBuilder::new().family(family).layer(layer).platform(platform).build()
    };
    let (arm, amd) = (image(Family::Oci, "linux/arm/v7"), image(Family::Docker, "linux/amd64"));
    let index = IndexBuilder::new().image(&arm).image(&amd).attestation(&amd).build();
    let mut all: Vec<Vec<u8>> = Vec::new();
    for image in [&arm, &amd, &index] {
        all.extend(image.documents().map(|(_, _, bytes)| bytes.to_vec()));
        all.extend(configurations(image));
    }
    all.push(br#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#.to_vec());
    all
}

/// Blobs that are JSON.
fn configurations(image: &Image) -> impl Iterator<Item = Vec<u8>> {
    image.blobs().map(|(_, bytes)| bytes.to_vec()).filter(|bytes| bytes.starts_with(b"{"))
}

/// A request of the kernel's, behind the byte that puts its length right.
fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1];
    for word in [40 + body.len() as u32, opcode, 7, 0, 1, 0, 0, 0, 1, 0] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

const REQUESTS: [(u32, &[u8]); 8] = [
    (1, b"name\0"),
    (3, &[0; 16]),
    (15, &[0; 40]),
    (22, b"\x10\0\0\0\0\0\0\0user.a\0"),
    (36, &[1; 8]),
    (42, &[2; 40]),
    (44, &[0; 40]),
    (46, &[0; 24]),
];

const REFERENCES: [&str; 12] = [
    "python:3.12-slim",
    "user/app",
    "docker://docker.io/library/alpine:3",
    "127.0.0.1:5000/demo/sample:latest",
    "[::1]:5000/a/b__c/d-e.f:v1.2_3",
    "registry.example/app:1.4@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "oci:./layout:latest",
    "oci:/srv/with:colons@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "oci-archive:/tmp/image.tar:tag",
    "docker-archive:image.tar:docker.io/library/a:b",
    "dir:/srv/dir",
    "https://registry.example/v2/",
];

const PLATFORMS: [&str; 8] = [
    "linux/amd64",
    "linux/amd64/v3",
    "linux/arm64/v8",
    "linux/arm/v7",
    "linux/armhf",
    "windows/amd64",
    "aarch64",
    "x86_64",
];
