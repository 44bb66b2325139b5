//! What a layer costs: nanoseconds an entry to walk and build, to look up, bytes an entry on disk.
//!
//! `PEELFS_BENCH_TAR=layer.tar cargo bench --bench layer` measures a real layer; without it a layer
//! of 100,000 small files is made. `cargo bench --bench layer -- --list` names the benchmarks.

use std::convert::Infallible;
use std::sync::LazyLock;

use divan::counter::ItemsCount;
use peelfs::digest::{Algorithm, Digest};
use peelfs::layer::{EntryId, Kind, LayerIndex, LayerTree, Proof, TarEntry, TarSink, TarWalker, write_index};

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

fn synthetic(files: u32) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in 0..files {
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
    let proof = Proof {
        blob: Digest::of(Algorithm::Sha256, b""),
        blob_size: 0,
        diff_id: Digest::of(Algorithm::Sha256, b""),
        decoded_size: TAR.len() as u64,
    };
    let mut out = Vec::new();
    write_index(tree, &[], &[], &proof, &mut out).expect("writing to memory");
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

#[divan::bench]
fn lookup_in_growing_tree(bencher: divan::Bencher) {
    bencher
        .counter(ItemsCount::new(QUESTIONS.len()))
        .bench_local(|| QUESTIONS.iter().filter(|(directory, name)| TREE.child(*directory, name).is_some()).count());
}
