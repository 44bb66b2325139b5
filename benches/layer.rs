//! What a layer costs: nanoseconds an entry to walk and build, to look up, bytes an entry on disk.
//!
//! `PEELFS_BENCH_TAR=layer.tar cargo bench --bench layer` measures a real layer; without it a layer
//! of 100,000 small files is made. `cargo bench --bench layer -- --list` names the benchmarks.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use divan::counter::ItemsCount;
use peelfs::digest::{Algorithm, Digest};
use peelfs::layer::{
    EntryId, IndexedLayer, Kind, LayerIndex, LayerTree, Proof, TarEntry, TarSink, TarWalker, write_index,
};
use peelfs::overlay::{Dir, KnownLayer, KnownLayers, LayerNo, Listed, Overlay};

fn main() {
    let bytes = INDEX.len() as f64 / f64::from(TREE.len());
    let names: u64 = (0..TREE.len()).map(|id| TREE.name(EntryId(id)).len() as u64).sum();
    println!(
        "{} bytes of tar, {} entries, {:.1} bytes of name each, {bytes:.1} bytes of index each",
        TAR.len(),
        TREE.len(),
        names as f64 / f64::from(TREE.len()),
    );
    divan::main();
}

static TAR: LazyLock<Vec<u8>> = LazyLock::new(|| match std::env::var_os("PEELFS_BENCH_TAR") {
    Some(path) => std::fs::read(path).expect("PEELFS_BENCH_TAR can be read"),
    None => synthetic(100_000),
});

static TREE: LazyLock<LayerTree> = LazyLock::new(|| {
    let mut tree = LayerTree::default();
    walk(&mut tree);
    tree
});

static INDEX: LazyLock<Vec<u8>> = LazyLock::new(|| write(&TREE));

/// Every (directory, name) of the layer, shuffled.
static QUESTIONS: LazyLock<Vec<(EntryId, Vec<u8>)>> = LazyLock::new(|| {
    let mut all: Vec<(EntryId, Vec<u8>)> = (0..TREE.len())
        .map(EntryId)
        .flat_map(|directory| TREE.children(directory).map(move |id| (directory, TREE.name(id).to_vec())))
        .collect();
    let mut state = 1_u64;
    for at in (1..all.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        all.swap(at, (state >> 33) as usize % (at + 1));
    }
    all
});

/// Layers one over the other, each of which replaces a file in every directory of the lowest.
static LAYERS: LazyLock<Vec<Arc<LayerIndex>>> = LazyLock::new(|| {
    let indexes = (0..5).map(|layer| {
        let tar = if layer == 0 { TAR.clone() } else { files((0..2500).map(|file| 40 * file + layer)) };
        let (mut walker, mut tree) = (TarWalker::new(), LayerTree::default());
        walker.push(&tar, &mut tree).expect("the tar is good");
        walker.finish().expect("the tar is whole");
        Arc::new(LayerIndex::open(write(&tree)).expect("the index is good"))
    });
    indexes.collect()
});

fn overlay() -> Overlay {
    let overlay = Overlay::new(LAYERS.len() as u16, Arc::new(AllKnown));
    for number in 0..LAYERS.len() as u16 {
        overlay.prepare(LayerNo(number)).expect("the layers fit each other");
    }
    overlay
}

/// All of [`LAYERS`].
struct AllKnown;

impl KnownLayers for AllKnown {
    fn known(&self, layer: LayerNo) -> KnownLayer {
        KnownLayer::Whole(Arc::clone(&LAYERS[usize::from(layer.0)]))
    }
}

fn synthetic(count: u32) -> Vec<u8> {
    files(0..count)
}

fn files(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in numbers {
        let mut header = tar::Header::new_gnu();
        header.set_size(100);
        header.set_mode(0o644);
        let path = format!("usr/lib/package-{}/module-{file}.js", file / 40);
        builder.append_data(&mut header, path, &[b'x'; 100][..]).expect("writing to memory");
    }
    builder.into_inner().expect("writing to memory")
}

fn walk(tree: &mut LayerTree) {
    let mut walker = TarWalker::new();
    for piece in TAR.chunks(128 << 10) {
        walker.push(piece, tree).expect("the tar is good");
    }
    walker.finish().expect("the tar is whole");
}

fn write(tree: &LayerTree) -> Vec<u8> {
    let of = IndexedLayer {
        blob: Digest::of(Algorithm::Sha256, b""),
        blob_size: 0,
        diff_id: Digest::of(Algorithm::Sha256, b""),
        decoded_size: TAR.len() as u64,
    };
    let mut out = Vec::new();
    write_index(tree, &[], &[], &of, &Proof::Built, &mut out).expect("writing to memory");
    out
}

struct Count(u64);

impl TarSink for Count {
    type Error = Infallible;

    fn accept(&mut self, _: &TarEntry<'_>) -> Result<(), Infallible> {
        self.0 += 1;
        Ok(())
    }
}

#[divan::bench]
fn tar_walk(bencher: divan::Bencher) {
    let entries = TREE.len();
    bencher.counter(ItemsCount::new(entries)).bench(|| {
        let (mut walker, mut count) = (TarWalker::new(), Count(0));
        for piece in TAR.chunks(128 << 10) {
            walker.push(piece, &mut count).expect("the tar is good");
        }
        count.0
    });
}

#[divan::bench]
fn tar_walk_and_tree(bencher: divan::Bencher) {
    bencher.counter(ItemsCount::new(TREE.len())).bench(|| {
        let mut tree = LayerTree::default();
        walk(&mut tree);
        tree
    });
}

#[divan::bench]
fn write_whole_index(bencher: divan::Bencher) {
    bencher.counter(ItemsCount::new(TREE.len())).bench(|| write(&TREE));
}

#[divan::bench]
fn open_and_first_lookup(bencher: divan::Bencher) {
    bencher.with_inputs(|| INDEX.clone()).bench_values(|bytes| {
        let index = LayerIndex::open(bytes).expect("the index is good");
        let (directory, name) = &QUESTIONS[0];
        index.child(*directory, name).expect("the index is good")
    });
}

#[divan::bench]
fn lookup_in_index(bencher: divan::Bencher) {
    let index = LayerIndex::open(INDEX.clone()).expect("the index is good");
    bencher.counter(ItemsCount::new(QUESTIONS.len())).bench_local(|| {
        let mut directories = 0;
        for (directory, name) in QUESTIONS.iter() {
            let id = index.child(*directory, name).expect("the index is good").expect("the name exists");
            directories += u32::from(index.entry(id).expect("the index is good").kind() == Kind::Directory);
        }
        directories
    });
}

/// Every (directory, name) of the merged view.
fn merged(overlay: &Overlay) -> Vec<(Arc<Dir>, Vec<u8>)> {
    let (mut all, mut dirs) = (Vec::new(), vec![Arc::clone(overlay.root())]);
    while let Some(dir) = dirs.pop() {
        let mut each = |listed: Listed<'_>| {
            all.push((Arc::clone(&dir), listed.name.to_vec()));
            if listed.kind == Kind::Directory {
                dirs.push(overlay.dir(listed.node)?);
            }
            Ok(true)
        };
        overlay.list(&dir, 0, &mut each).expect("every layer is known");
    }
    all
}

/// Lists every directory of five layers, each looked at for the first time.
#[divan::bench]
fn merge_and_list(bencher: divan::Bencher) {
    let names = merged(&overlay()).len();
    bencher.counter(ItemsCount::new(names)).with_inputs(overlay).bench_refs(|overlay| merged(overlay));
}

#[divan::bench]
fn lookup_in_merged_view(bencher: divan::Bencher) {
    let overlay = overlay();
    let names = merged(&overlay);
    bencher.counter(ItemsCount::new(names.len())).bench_local(|| {
        names.iter().filter(|(dir, name)| overlay.lookup(dir, name).expect("every layer is known").is_some()).count()
    });
}

#[divan::bench]
fn lookup_in_growing_tree(bencher: divan::Bencher) {
    bencher
        .counter(ItemsCount::new(QUESTIONS.len()))
        .bench_local(|| QUESTIONS.iter().filter(|(directory, name)| TREE.child(*directory, name).is_some()).count());
}
