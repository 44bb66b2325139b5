//! Damage in the cache, also under a reader, is detected and repaired.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use peelfs::content::evict_content;
use peelfs::image::{self, Eagerness, FsError, ImageFs, Limits, Network, Verify};
use peelfs::layer::EntryId;
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, LayerNo, NodeId};
use peelfs::platform::Platform;
use peelfs::reference::Reference;
use peelfs::source::BlobSource;
use peelfs::source::local::LocalSource;
use peelfs::source::spool::Spool;
use peelfs::store::Store;
use peelfs_loopback::image::{ImageBuilder, Layer, LayerBuilder, Packing};
use support::sandbox::{Sandbox, said};

/// One of the two files that the cache in `dir` has of a layer's content.
fn content_file(dir: &Path, layer: &Layer, extension: &str) -> PathBuf {
    let name = format!("{}.{}.{extension}", layer.digest.hex(), &layer.diff_id.hex()[..32]);
    dir.join("cache/content-v2/sha256").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_made_anew_and_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let layer = LayerBuilder::new().file("file", "content").build();
    let index = dir.path().join("cache/index-v2/sha256").join(layer.digest.hex());
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();

    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    let whole = std::fs::read(&index).unwrap();
    // The first page holds the entries; opening reads only the end of the file.
    let mut damaged = whole.clone();
    damaged[9] ^= 0x10;
    std::fs::write(&index, &damaged).unwrap();

    // Noticed when it is read: the layer is read again, and no reader sees an error.
    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    assert_eq!(std::fs::read(&index).unwrap(), whole);

    // Damaged under a mount, before the page was touched, by several hands: the same.
    let mounted = open(dir.path()).await;
    for _ in 0..3 {
        std::fs::write(&index, &damaged).unwrap();
        let other = open(dir.path()).await;
        assert_eq!(read(&other).await.unwrap(), "content");
        assert_eq!(std::fs::read(&index).unwrap(), whole);
    }
    std::fs::write(&index, &damaged).unwrap();
    assert_eq!(read(&mounted).await.unwrap(), "content");
}

/// Changes the end of an index, and gives it the checksum of an honest one.
fn with_end(index: &[u8], edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut index = index.to_vec();
    let (footer, check) = (index.len() - 512, index.len() - 32);
    edit(&mut index[footer..]);
    let body = u64::from_le_bytes(index[footer + 16..footer + 24].try_into().unwrap()) as usize;
    let seal = *blake3::hash(&index[body..check]).as_bytes();
    index[check..].copy_from_slice(&seal);
    index
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_a_later_version_is_made_anew_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let layer = LayerBuilder::new().file("file", "content").packing(Packing::Stored).build();
    let index = dir.path().join("cache/index-v2/sha256").join(layer.digest.hex());
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();
    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    let ours = std::fs::read(&index).unwrap();
    // Releases before kinds of proofs and checks have made this very file, and so know what we make.
    assert_eq!(
        blake3::hash(&ours).to_hex().as_str(),
        "da467dcda4050fc5151afc9866a8b186bc064a76f231450fd3558695b95c1ec0"
    );
    let made = || std::fs::metadata(&index).map(|found| std::os::unix::fs::MetadataExt::ino(&found)).unwrap();
    let before = made();
    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    assert_eq!(made(), before, "it is used");

    let sandbox = Sandbox::new();
    let name = format!("oci:{}", dir.path().display());
    let at_cache = ["--cache-dir", dir.path().join("cache").to_str().unwrap()].map(ToOwned::to_owned);
    for (at, value) in [(8, 4), (8, 9), (472, 77), (476, 0x40)] {
        let later = with_end(&ours, |end| {
            end[8] = 3;
            end[at] = value;
        });
        std::fs::write(&index, later).unwrap();
        let output = sandbox.run(["cat", &at_cache[0], &at_cache[1], &name, "/file"]);
        assert!(output.stdout == b"content" && output.stderr.is_empty(), "byte {at}: {}", said(&output));
        assert!(std::fs::read(&index).unwrap() == ours, "byte {at}");
        // It is not damage.
        std::fs::write(&index, with_end(&ours, |end| end[8] = 9)).unwrap();
        let output = sandbox.run(["cache", "verify", &at_cache[0], &at_cache[1]]);
        assert!(output.status.success(), "{}", said(&output));
    }
    // What cannot be distinguished from damage is reported.
    std::fs::write(&index, &ours[..ours.len() - 1]).unwrap();
    let output = sandbox.run(["cat", &at_cache[0], &at_cache[1], &name, "/file"]);
    assert!(output.stdout == b"content" && said(&output).contains("is damaged"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_in_memory_is_served_the_rest_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let layer = (0..3000).fold(LayerBuilder::new().file("a", "content"), |layer, n| layer.file(&format!("f{n}"), "x"));
    let layer = layer.build();
    let blob = dir.path().join("blobs/sha256").join(layer.digest.hex());
    let index = dir.path().join("cache/index-v2/sha256").join(layer.digest.hex());
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();
    drop(open(dir.path()).await.all_known().await);

    let mounted = open(dir.path()).await;
    // Entries are records of 64 bytes in pages of 64 KiB.
    let [first, second] = [10, 1500].map(|entry| NodeId::new(LayerNo(0), EntryId(entry)));
    mounted.awaited(|fs| fs.attr(first)).await.unwrap();
    let mut damaged = std::fs::read(&index).unwrap();
    damaged[65 << 10] ^= 1;
    std::fs::write(&index, &damaged).unwrap();
    let held = std::fs::read(&blob).unwrap();
    std::fs::remove_file(&blob).unwrap();
    let error = mounted.awaited(|fs| fs.attr(second)).await.unwrap_err();
    assert!(matches!(error, FsError::Layer { .. }), "{error:?}");
    mounted.awaited(|fs| fs.attr(first)).await.unwrap();
    std::fs::write(&blob, held).unwrap();
    while mounted.awaited(|fs| fs.attr(second)).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_changed_after_it_was_verified_is_verified_again() {
    let dir = tempfile::tempdir().unwrap();
    let layer = LayerBuilder::new().file("file", "content").build();
    let data = content_file(dir.path(), &layer, "data");
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();

    let mounted = open(dir.path()).await;
    assert_eq!(read(&mounted).await.unwrap(), "content");
    let whole = std::fs::read(&data).unwrap();
    let at = whole.windows(7).position(|bytes| bytes == b"content").unwrap();
    let file = std::fs::File::options().write(true).open(&data).unwrap();
    file.write_all_at(b"C", at as u64).unwrap();

    assert_eq!(read(&mounted).await.unwrap(), "content");
    assert_eq!(std::fs::read(&data).unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_has_evicted_is_not_believed_present() {
    const SIZE: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..SIZE).map(|at| (at % 251 + 1) as u8).collect();
    let layer = LayerBuilder::new().file("file", content.clone()).packing(Packing::Stored).build();
    let map = content_file(dir.path(), &layer, "map");
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();

    let fs = open_bounded(dir.path(), Some(SIZE as u64 / 2)).await;
    let node = fs.awaited(|fs| fs.walk(b"file", Last::Follow)).await.unwrap().node;
    let mut revived = 0;
    for _ in 0..4 {
        for at in (0..SIZE).step_by(SIZE / 16) {
            let bytes = fs.read(node, FileOffset(at as u64), SIZE / 16).await.unwrap();
            assert!(bytes == content[at..at + SIZE / 16], "at {at}");
        }
        // The upper bit says that a span is there.
        let absent = |byte: &&mut u8| **byte & 0x80 == 0 && **byte != 0;
        let mut presence = std::fs::read(&map).unwrap();
        revived += presence.iter_mut().filter(absent).map(|byte| *byte |= 0x80).count();
        std::fs::File::options().write(true).open(&map).unwrap().write_all_at(&presence, 0).unwrap();
    }
    assert!(revived > 0, "nothing was evicted");
}

/// Readers of a file whose content is evicted all the time, each of whom reads so often.
async fn read_while_it_goes(reads: usize) {
    const SIZE: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    // Without a zero, which is what holes read as.
    let content: Vec<u8> = (0..SIZE).map(|at| (at % 251 + 1) as u8).collect();
    let layer = LayerBuilder::new().file("file", content.clone()).build();
    let blob = layer.digest.clone();
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();
    let fs = open(dir.path()).await;
    fs.all_known().await.unwrap();
    let node = fs.awaited(|fs| fs.walk(b"file", Last::Follow)).await.unwrap().node;

    let reader = |number: usize| {
        let (fs, content) = (Arc::clone(&fs), content.clone());
        tokio::spawn(async move {
            for read in 0..reads {
                let at = (number * 7919 + read * 65_537) % (SIZE / 2);
                let bytes = fs.read(node, FileOffset(at as u64), SIZE / 2).await.unwrap();
                assert!(bytes == content[at..at + SIZE / 2], "reader {number}, read {read} at {at}");
            }
        })
    };
    let readers: Vec<_> = (0..12).map(reader).collect();
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    while readers.iter().any(|reader| !reader.is_finished()) {
        let (store, blob) = (Arc::clone(&store), blob.clone());
        tokio::task::spawn_blocking(move || evict_content(&store, &blob)).await.unwrap().unwrap();
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn evicted_content_is_never_shown_as_a_hole() {
    read_while_it_goes(2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "half a minute; part of `make soak`"]
async fn evicted_content_is_never_shown_as_a_hole_in_the_long_run() {
    read_while_it_goes(40_000).await;
}

async fn open(dir: &Path) -> Arc<ImageFs> {
    open_bounded(dir, None).await
}

/// With a cache of so many bytes.
async fn open_bounded(dir: &Path, limit: Option<u64>) -> Arc<ImageFs> {
    let reference: Reference = format!("oci:{}:latest", dir.display()).parse().unwrap();
    let source: Arc<dyn BlobSource> =
        Arc::new(LocalSource::open(&reference, &Spool::new(None, tempfile::tempfile)).await.unwrap().unwrap());
    let store = Arc::new(Store::open(&dir.join("cache"), limit).unwrap());
    let platform = Platform::new("linux", "amd64", None);
    let plan = image::resolve(&reference, &source, &store, &platform, Network::Allowed).await.unwrap();
    image::open(&plan, source, store, &Limits::default(), Eagerness::OnDemand, Verify::BeforeShowing)
}

async fn read(fs: &ImageFs) -> Result<String, FsError> {
    let node = fs.awaited(|fs| fs.walk(b"file", Last::Follow)).await?.node;
    let bytes = fs.read(node, FileOffset(0), 100).await?;
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}
