//! What is damaged in the cache, also under a reader, is noticed and made anew.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use peelfs::image::{self, Eagerness, FsError, ImageFs, Limits, Network, Verify};
use peelfs::loopback::image::{ImageBuilder, LayerBuilder};
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;
use peelfs::platform::Platform;
use peelfs::reference::Reference;
use peelfs::source::BlobSource;
use peelfs::source::local::LocalSource;
use peelfs::store::Store;

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_made_anew_and_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let layer = LayerBuilder::new().file("file", "content").build();
    let index = dir.path().join("cache/index-v1/sha256").join(layer.digest.hex());
    ImageBuilder::new().layer(layer).platform("linux/amd64").build().write_layout(dir.path(), "latest").unwrap();

    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    let whole = std::fs::read(&index).unwrap();
    // The first page holds the entries; opening reads only the end of the file.
    let mut damaged = whole.clone();
    damaged[9] ^= 0x10;
    std::fs::write(&index, &damaged).unwrap();

    // Noticed when it is opened: the layer is read again, and nobody sees an error.
    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    assert_eq!(std::fs::read(&index).unwrap(), whole);

    // Damaged after that, and before the page was touched: an error, and healed by the next mount.
    let mounted = open(dir.path()).await;
    std::fs::write(&index, &damaged).unwrap();
    let error = read(&mounted).await.unwrap_err();
    assert!(matches!(error, FsError::Damaged { .. }), "{error:?}");
    drop(mounted);
    assert_eq!(read(&*open(dir.path()).await).await.unwrap(), "content");
    assert_eq!(std::fs::read(&index).unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_changed_under_a_reader_that_has_verified_it_is_not_believed_again() {
    let dir = tempfile::tempdir().unwrap();
    let layer = LayerBuilder::new().file("file", "content").build();
    let data = dir.path().join("cache/content-v1/sha256").join(format!("{}.data", layer.digest.hex()));
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

async fn open(dir: &Path) -> Arc<ImageFs> {
    let reference: Reference = format!("oci:{}:latest", dir.display()).parse().unwrap();
    let source: Arc<dyn BlobSource> = Arc::new(LocalSource::open(&reference).await.unwrap().unwrap());
    let store = Arc::new(Store::open(&dir.join("cache"), None).unwrap());
    let platform = Platform::new("linux", "amd64", None);
    let plan = image::resolve(&reference, &source, &store, &platform, Network::Allowed).await.unwrap();
    image::open(&plan, source, store, &Limits::default(), Eagerness::OnDemand, Verify::BeforeShowing)
}

async fn read(fs: &ImageFs) -> Result<String, FsError> {
    let node = fs.awaited(|fs| fs.walk(b"file", Last::Follow)).await?.node;
    let bytes = fs.read(node, FileOffset(0), 100).await?;
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}
