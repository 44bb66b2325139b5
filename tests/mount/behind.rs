//! What `--verify=behind` shows while a layer is downloaded, and after the layer has failed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use peelfs::content::PassError;
use peelfs::fuse::{self, MountOptions};
use peelfs::image::{self, Eagerness, FsError, ImageFs, LayerFailure, Limits, Network, NotNow, Verify};
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, NodeId};
use peelfs::platform::Platform;
use peelfs::source::BlobSource;
use peelfs::source::registry::{RegistryOptions, RegistrySource, Surroundings};
use peelfs::store::Store;
use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::tar::Entry;
use support::sandbox::cannot_mount;

const EARLY: &[u8] = b"early in the tar";
const LATE: &[u8] = b"late in the tar";

struct Scene {
    registry: Registry,
    store: Arc<Store>,
    fs: Arc<ImageFs>,
    gate: Gate,
    _dir: tempfile::TempDir,
}

/// An image of one layer whose blob stops arriving in its middle until a gate opens.
async fn scene(verify: Verify, also: Option<Fault>) -> Scene {
    scene_of([Entry::file("late", LATE)], verify, also).await
}

/// As [`scene`], with `late` behind the middle.
async fn scene_of(late: impl IntoIterator<Item = Entry>, verify: Verify, also: Option<Fault>) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let mut filler = noise();
    let more = filler.split_off(1_000_000);
    let early = LayerBuilder::new()
        .entry(Entry::dir("./"))
        .entry(Entry::whiteout("both"))
        .entry(Entry::file("early", EARLY))
        .entry(Entry::file("filler", filler))
        .entry(Entry::file("more", more));
    let layer = late.into_iter().fold(early, LayerBuilder::entry).packing(Packing::Stored);
    let built = ImageBuilder::new().layer(layer).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &built)).unwrap();
    let gate = Gate::new();
    let blobs = || Target::matching(|request| request.path.contains("/blobs/") && request.header("range").is_none());
    registry.faults().add(Rule::new(blobs(), Fault::Stall { after: 3_000_000, gate: gate.clone() }));
    if let Some(fault) = also {
        registry.faults().add(Rule::new(Target::Blobs, fault));
    }

    let name = registry.reference("app", "1");
    let reference = name.parse().unwrap();
    let options = RegistryOptions { certs_dirs: Vec::new(), ..RegistryOptions::new(Surroundings::default()) };
    let source: Arc<dyn BlobSource> = Arc::new(RegistrySource::new(name.parse().unwrap(), name, options).unwrap());
    let store = Arc::new(Store::open(&dir.path().join("cache"), None).unwrap());
    let plan = image::resolve(&reference, &source, &store, &Platform::host(), Network::Allowed).await.unwrap();
    let fs = image::open(&plan, source, Arc::clone(&store), &Limits::default(), Eagerness::Background, verify);
    Scene { registry, store, fs, gate, _dir: dir }
}

/// Bytes without short repetitions.
fn noise() -> Vec<u8> {
    (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn content(fs: &ImageFs, path: &[u8]) -> Result<Vec<u8>, FsError> {
    let attr = fs.awaited(|fs| fs.walk(path, Last::Follow)).await?;
    Ok(fs.read(attr.node, FileOffset(0), attr.size as usize).await?.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_early_in_the_tar_is_read_before_the_layer_has_come() {
    let scene = scene(Verify::Behind, None).await;
    assert_eq!(content(&scene.fs, b"early").await.unwrap(), EARLY);
    let attr = scene.fs.awaited(|fs| fs.walk(b"early", Last::Follow)).await.unwrap();
    assert!(!attr.settled, "what is not verified may not be cached by the kernel");

    scene.gate.open();
    assert_eq!(content(&scene.fs, b"late").await.unwrap(), LATE);
    scene.fs.all_known().await.unwrap();
    let after = scene.fs.awaited(|fs| fs.walk(b"early", Last::Follow)).await.unwrap();
    assert!(after.settled);
    assert_eq!(after.node, attr.node, "what was open stays what it was");
    assert_eq!(content(&scene.fs, b"early").await.unwrap(), EARLY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_fails_after_it_was_shown_turns_into_errors() {
    let scene = scene(Verify::Behind, Some(Fault::FlipBit { at: 3_900_000, bit: 1 })).await;
    assert_eq!(content(&scene.fs, b"early").await.unwrap(), EARLY);

    scene.gate.open();
    assert!(matches!(scene.fs.all_known().await, Err(FsError::Layer { .. })));
    assert!(matches!(content(&scene.fs, b"early").await, Err(FsError::Layer { .. })));
    let usage = scene.store.usage().unwrap();
    assert!(usage.layers.is_empty() && usage.temporary == 0, "{usage:?}");
    drop(scene.registry);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_keeps_of_a_layer_that_fails_is_taken_back() {
    if cannot_mount() {
        return;
    }
    let scene = scene(Verify::Behind, Some(Fault::FlipBit { at: 500_000, bit: 1 })).await;
    let at = tempfile::tempdir().unwrap();
    let target = fuse::Target::open(at.path()).unwrap();
    let mounted = fuse::mount(scene.fs.clone(), &target, &MountOptions::default()).unwrap();
    let path = at.path().join("filler");
    let read_all = |file: &File| {
        let mut bytes = vec![0; 1_000_000];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    let (file, shown) = tokio::task::spawn_blocking(move || {
        let file = File::open(path).unwrap();
        let shown = read_all(&file).unwrap();
        (file, shown)
    })
    .await
    .unwrap();
    assert_ne!(shown, noise()[..1_000_000], "it is shown before it is verified");

    scene.gate.open();
    assert!(scene.fs.all_known().await.is_err());
    tokio::task::spawn_blocking(move || while read_all(&file).is_ok() {}).await.unwrap();
    drop(mounted);
}

/// The result for a layer that was partly read before its first transfer broke off, `also` with a fault, if the next
/// transfer is good.
async fn after_a_transfer_that_breaks_off(also: Option<Fault>) -> Result<Vec<u8>, FsError> {
    let scene = scene(Verify::Behind, also).await;
    assert!(content(&scene.fs, b"early").await.is_ok());
    assert!(content(&scene.fs, b"filler").await.is_ok());
    // The registry neither resumes nor answers for a while.
    scene.registry.faults().clear();
    scene.registry.faults().add(Rule::new(Target::Blobs, Fault::status(404)));
    scene.registry.drop_connections();
    scene.gate.open();
    assert!(scene.fs.all_known().await.is_err());
    scene.registry.faults().clear();
    loop {
        // It is tried again at growing intervals.
        match scene.fs.all_known().await {
            Err(FsError::Layer { cause, .. }) if matches!(*cause, LayerFailure::Pass(PassError::Source { .. })) => {
                tokio::task::yield_now().await;
            }
            _ => return content(&scene.fs, b"early").await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_transfer_has_shown_is_compared_with_the_layer() {
    assert_eq!(after_a_transfer_that_breaks_off(None).await.unwrap(), EARLY);
    // In the file itself, and elsewhere in what could be read.
    for at in [3 * 512, 300_000] {
        let outcome = after_a_transfer_that_breaks_off(Some(Fault::FlipBit { at, bit: 0 })).await;
        let Err(FsError::Layer { cause, .. }) = outcome else { panic!("{at}: {outcome:?}") };
        assert!(matches!(*cause, LayerFailure::ShownOtherwise { .. }), "{at}: {cause}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_of_xattrs_is_not_told_before_the_layer_is_known() {
    let capable = Entry::file("late", LATE).xattr("security.capability", "any");
    let scene = scene_of([capable], Verify::Behind, None).await;
    scene.fs.awaited(|fs| fs.walk(b"early", Last::Keep)).await.unwrap();
    assert!(matches!(scene.fs.all_xattr_names(), Err(NotNow::Needs(_))));

    scene.gate.open();
    let names = scene.fs.awaited(ImageFs::all_xattr_names).await.unwrap().unwrap();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), [b"security.capability"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whiteout_decides_nothing_before_the_layer_has_come() {
    let scene = scene_of([Entry::file("both", LATE)], Verify::Behind, None).await;
    scene.fs.awaited(|fs| fs.walk(b"early", Last::Keep)).await.unwrap();
    assert!(matches!(scene.fs.lookup(NodeId::ROOT, b"both"), Err(NotNow::Needs(_))));

    scene.gate.open();
    assert_eq!(content(&scene.fs, b"both").await.unwrap(), LATE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_node_waits_for_a_layer_that_is_read_again() {
    let before = scene(Verify::Behind, None).await;
    before.gate.open();
    let late = before.fs.awaited(|fs| fs.walk(b"late", Last::Keep)).await.unwrap().node;

    let again = scene(Verify::Behind, None).await;
    again.fs.awaited(|fs| fs.walk(b"early", Last::Keep)).await.unwrap();
    assert!(matches!(again.fs.attr(late), Err(NotNow::Needs(_))));
    again.gate.open();
    assert_eq!(again.fs.read(late, FileOffset(0), LATE.len()).await.unwrap(), LATE);
    let never = NodeId::from_number(late.get() + 1000).unwrap();
    assert!(matches!(again.fs.awaited(|fs| fs.attr(never)).await, Err(FsError::NoSuchNode(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_nothing_is_shown_before_the_layer_is_verified() {
    let scene = scene(Verify::BeforeShowing, None).await;
    assert!(matches!(scene.fs.lookup(NodeId::ROOT, b"early"), Err(NotNow::Needs(_))));
    scene.gate.open();
    assert_eq!(content(&scene.fs, b"early").await.unwrap(), EARLY);
}
