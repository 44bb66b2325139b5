//! Rows 11 and 12: forged bytes and indexes.

use std::sync::Arc;

use peelfs::image::{Limits, Verify, chain};
use peelfs::source::BlobSource;
use peelfs::store::Store;
use peelfs_loopback::image::{ImageBuilder, LayerBuilder, Packing};
use serde_json::json;

use super::{image, lines, look, open, runtime, tried};
use support::random::Random;
use support::shown::MemorySource;

#[test]
fn row_11_indexes_made_by_others_decide_nothing() {
    // An eStargz layer whose table of contents names other files than its tar, and annotations that vouch for it.
    let lie = json!({ "version": 1, "entries": [
        { "name": "sh", "type": "reg", "size": 4, "offset": 0, "chunkDigest": format!("sha256:{}", "0".repeat(64)) },
        { "name": "planted", "type": "reg", "size": 1_u64 << 40, "offset": -1 },
    ]});
    let layer = || LayerBuilder::new().file("bash", "bash").file("stargz.index.json", lie.to_string());
    let plain = look([layer()]).unwrap();
    assert_eq!(
        plain.iter().filter(|line| line.starts_with("bash=") || line.starts_with("stargz")).count(),
        plain.len()
    );
    let annotations = [
        ("containerd.io/snapshot/stargz/toc.digest", format!("sha256:{}", "1".repeat(64))),
        ("io.containers.estargz.uncompressed-size", "99999999999999".to_owned()),
        ("io.github.containers.zstd-chunked.manifest-checksum", format!("sha256:{}", "2".repeat(64))),
        ("io.github.containers.zstd-chunked.manifest-position", "0:18446744073709551615:1:1".to_owned()),
        ("com.amazon.soci.index-digest", format!("sha256:{}", "3".repeat(64))),
    ];
    for (key, value) in &annotations {
        for packing in [Packing::GZIP, Packing::ZSTD] {
            let (key, value) = ((*key).to_owned(), value.clone());
            let image = ImageBuilder::new().layer(layer().packing(packing)).edit_manifest(move |manifest| {
                manifest["layers"][0]["annotations"] = json!({ key: value });
            });
            let source = MemorySource::new(&image.build());
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
            let shown = runtime().block_on(async {
                let source = Arc::clone(&source) as Arc<dyn BlobSource>;
                let fs = open(&source, &store, &Limits::default(), Verify::BeforeShowing).await.unwrap();
                fs.all_known().await.unwrap();
                lines(&fs).await
            });
            assert_eq!(shown, plain);
        }
    }
    tried(11, 1 + 2 * annotations.len());
}

/// One wrong bit at a random place of a blob, `count` times for each packing and policy.
fn flips(count: usize) -> usize {
    let mut random = Random::new(12);
    let packings = [
        Packing::GZIP,
        Packing::Gzip { level: 1, member: Some(3_000) },
        Packing::ZSTD,
        Packing::Zstd { level: 1, frame: Some(5_000), skippable: true },
        Packing::Stored,
    ];
    let mut inputs = 0;
    for packing in packings {
        let layer = (0..20).fold(LayerBuilder::new().packing(packing), |layer, number| {
            layer.file(&format!("f{number}"), random.bytes(500)).file(&format!("t{number}"), "text ".repeat(200))
        });
        let image = image([layer]);
        let blob = &image.layers()[0];
        let source = MemorySource::new(&image);
        let dyn_source = Arc::clone(&source) as Arc<dyn BlobSource>;
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
            let fs = open(&dyn_source, &store, &Limits::default(), Verify::BeforeShowing).await.unwrap();
            fs.all_known().await.unwrap();
            let right = lines(&fs).await;
            for number in 0..count {
                let at = random.below(blob.blob.len()) as u64;
                let bit = Some((blob.digest.clone(), at, (number % 8) as u8));
                for verify in [Verify::BeforeShowing, Verify::Behind] {
                    inputs += 1;
                    let dir = tempfile::tempdir().unwrap();
                    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
                    source.flip(bit.clone());
                    let fs = open(&dyn_source, &store, &Limits::default(), verify).await.unwrap();
                    let told = chain(&fs.all_known().await.expect_err("every flip is found"));
                    assert!(told.contains(&blob.digest.to_string()), "{told}");
                    // What has failed stays failed in this mount, and nothing of it is kept for the next.
                    source.flip(None);
                    let fs = open(&dyn_source, &store, &Limits::default(), verify).await.unwrap();
                    fs.all_known().await.unwrap();
                    assert_eq!(lines(&fs).await, right, "{packing:?} byte {at}");
                }
            }
        });
    }
    inputs
}

#[test]
fn row_12_no_wrong_byte_of_a_blob_is_shown() {
    tried(12, flips(20));
}

#[test]
#[ignore = "a minute; part of `make soak`"]
fn row_12_no_wrong_byte_of_a_blob_is_shown_in_the_long_run() {
    tried(12, flips(1_000));
}
