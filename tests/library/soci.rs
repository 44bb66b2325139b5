//! Layers with zTOCs: those that soci-snapshotter's own code has written, and random ones.
//!
//! `soci/` has layers of zlib (level 6, small blocks; in one member, and in members of 13,111 bytes) and their zTOCs as
//! soci-snapshotter 0.15's packages `ztoc` and `ztoc/compression` write them, with spans of 9,000 bytes (40,000 for the plain tar).

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use peelfs::codec::{BlockStart, LayerDecoder, Limits, OutputBuffer, Status};
use peelfs::store::Store;
use peelfs_loopback::image::{Image, ImageBuilder, Layer, Packing};
use peelfs_loopback::soci::{self, SociBuilder};
use support::random::{self, Random, Shape};
use support::shown::{self, MemorySource};

use super::property::{differences, runtime, seeds};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/library/soci")).join(name)).unwrap()
}

fn indexed(layers: &[(Layer, Vec<u8>)]) -> Image {
    let index = soci::index(soci::V2, layers.iter().map(|(layer, ztoc)| (&layer.digest, ztoc.clone()))).build();
    let image = layers.iter().fold(ImageBuilder::new(), |image, (layer, _)| image.layer(layer.clone()));
    soci::bound(image, &index)
}

/// What opens the layers of an image.
fn origins(image: &Image) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    runtime().block_on(async {
        let fs = shown::open(&MemorySource::new(image), &store).await.unwrap();
        fs.all_known().await.unwrap();
        fs.layer_status().into_iter().filter_map(|layer| layer.origin).collect()
    })
}

/// What an image shows whose layers are read whole.
fn read_whole(image: &Image) -> std::collections::BTreeMap<Vec<u8>, support::model::Seen> {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    runtime().block_on(async {
        let fs = shown::open(&MemorySource::new(image), &store).await.unwrap();
        shown::seen(fs, &mut Random::new(1)).await
    })
}

#[test]
fn ztocs_of_soci_snapshotter_show_what_the_tar_has() {
    let mut tar = Vec::new();
    flate2::bufread::MultiGzDecoder::new(&file("one.tar.gz")[..]).read_to_end(&mut tar).unwrap();
    let layers = [
        Layer::of(tar.clone(), file("one.tar.gz"), Packing::GZIP),
        Layer::of(tar.clone(), file("members.tar.gz"), Packing::GZIP),
        Layer::of(tar.clone(), tar, Packing::Stored),
    ];
    for (layer, name) in layers.into_iter().zip(["one", "members", "plain"]) {
        let wanted = read_whole(&ImageBuilder::new().layer(layer.clone()).build());
        assert_eq!(wanted.len(), 13 + 2 + 1, "all that is shown, two implied directories and the root");
        let ztoc = zstd::decode_all(&file(&format!("{name}.ztoc.zst"))[..]).unwrap();
        let image = indexed(&[(layer, ztoc)]);
        assert_eq!(origins(&image), ["SOCI"], "{name}");
        for seed in 0..3 {
            let lines = differences(&image, &wanted, &mut Random::new(seed));
            assert!(lines.is_empty(), "{name}, seed {seed}:\n{}", lines.join("\n"));
        }
    }
}

/// Where a zTOC cannot say what the tar says, the tar counts.
#[test]
fn random_indexed_images_look_as_the_model_says() {
    let mut by_ztoc = 0;
    for seed in 0..seeds(30) {
        let random = random::image(seed, &Shape { large: 300_000, ..Shape::default() });
        let mut choice = Random::new(seed);
        let layers = random.layers.iter().map(|layer| {
            let builder = SociBuilder::of(layer.iter().cloned()).spans_of(5_000 + choice.below(60_000));
            let soci = match choice.below(3) {
                0 => builder.build(),
                1 => builder.members_of(1_000 + choice.below(90_000)).build(),
                _ => builder.build_stored(),
            };
            (soci.layer, soci.ztoc.to_bytes())
        });
        let image = indexed(&layers.collect::<Vec<_>>());
        let lines = differences(&image, &random.tree.seen(), &mut Random::new(seed));
        assert!(lines.is_empty(), "seed {seed}:\n{}\n{}", lines.join("\n"), random.listing());
        by_ztoc += origins(&image).iter().filter(|origin| *origin == "SOCI").count();
    }
    assert!(by_ztoc > 0, "some layers are opened by their zTOCs");
}

/// Bit for bit, and byte for byte before them.
#[test]
fn blocks_are_noted_where_soci_snapshotter_notes_them() {
    for name in ["one", "members"] {
        let (blob, ztoc) = (file(&format!("{name}.tar.gz")), zstd::decode_all(&file(&format!("{name}.ztoc.zst"))[..]));
        let ztoc = ztoc.unwrap();
        let spacing = 9_000_i64.to_le_bytes();
        let at = ztoc.windows(8).position(|bytes| bytes == spacing).unwrap();
        let have = i32::from_le_bytes(ztoc[at - 4..at].try_into().unwrap()) as usize;
        let theirs: Vec<&[u8]> = ztoc[at + 8..].chunks(17 + (32 << 10)).take(have).collect();
        for piece in [usize::MAX, 1000, 1] {
            let mut decoder = LayerDecoder::noting_blocks(Limits::default(), 9_000);
            let (mut out, mut starts) = (OutputBuffer::new(10_000), Vec::new());
            for mut input in blob.chunks(piece.min(blob.len())) {
                loop {
                    let status = decoder.decode(&mut input, &mut out).unwrap();
                    starts.extend(decoder.take_starts());
                    out.discard();
                    if status != Status::OutputFull {
                        break;
                    }
                }
            }
            decoder.finish().unwrap();
            let ours: Vec<Vec<u8>> = starts.iter().map(packed).collect();
            assert!(ours.iter().map(Vec::as_slice).eq(theirs.iter().copied()), "{name}, pieces of {piece}");
        }
    }
}

/// As `gzip_zinfo.c` packs it.
fn packed(start: &BlockStart) -> Vec<u8> {
    let (whole, bits) = match start.mark.bit {
        0 => (start.mark.blob.0, 0),
        bit => (start.mark.blob.0 + 1, 8 - bit),
    };
    let before = vec![0; (32 << 10) - start.history.len()];
    [&whole.to_le_bytes()[..], &start.mark.decoded.0.to_le_bytes(), &[bits], &before, &start.history].concat()
}
