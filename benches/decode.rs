//! Decoding speed, in bytes of output, of a generated layer-like stream: our gzip decoder with marks and
//! windows, against flate2 (zlib-rs) without; and of one zstd frame, against libzstd without marks.
//!
//! `cargo bench --bench decode`; with `LAYER=path/to/layer.tar.gz`, that layer instead of the generated one, and with
//! `LEVEL=19`, zstd at another level than 3.

#[path = "support/generated.rs"]
mod generated;

use std::io::{BufReader, Read, Write};
use std::sync::LazyLock;

use divan::Bencher;
use divan::counter::BytesCount;
use peelfs::codec::{LayerDecoder, Limits, OutputBuffer, Status};
use peelfs::descriptor::Compression;

fn main() {
    divan::main();
}

/// Input comes in pieces of this size, as from the network.
const PIECE: usize = 256 << 10;

struct Layer {
    gzip: Vec<u8>,
    zstd: Vec<u8>,
    length: usize,
}

static LAYER: LazyLock<Layer> = LazyLock::new(|| {
    let (tar, gzip) = match std::env::var_os("LAYER") {
        Some(path) => {
            let gzip = std::fs::read(path).expect("LAYER can be read");
            let mut tar = Vec::new();
            flate2::bufread::MultiGzDecoder::new(&gzip[..]).read_to_end(&mut tar).expect("LAYER is gzip");
            (tar, gzip)
        }
        None => {
            let tar = generated::tar(64 << 20);
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&tar).expect("writes to memory");
            let gzip = encoder.finish().expect("writes to memory");
            (tar, gzip)
        }
    };
    let level = std::env::var("LEVEL").map_or(3, |level| level.parse().expect("LEVEL is a number"));
    Layer { zstd: zstd::bulk::compress(&tar, level).expect("zstd compresses"), gzip, length: tar.len() }
});

fn decode(compression: Compression, blob: &[u8]) -> usize {
    let mut decoder = LayerDecoder::first_pass(compression, Limits::default()).expect("a decoder");
    let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
    let mut recycled = None;
    let mut decoded = 0;
    for mut piece in blob.chunks(PIECE) {
        while decoder.decode(&mut piece, &mut out).expect("a valid layer") == Status::OutputFull {
            let filled = out.hand_over(recycled.take());
            decoded += filled.len();
            recycled = Some(filled);
            divan::black_box((decoder.take_marks(), decoder.take_windows()));
        }
    }
    decoder.finish().expect("a whole layer");
    decoded + out.decoded().len()
}

/// How many bytes a decoder of another library gives.
fn read_all(mut decoder: impl Read) -> usize {
    let mut out = vec![0; OutputBuffer::CAPACITY];
    let mut decoded = 0;
    loop {
        match decoder.read(&mut out).expect("a valid layer") {
            0 => return decoded,
            length => decoded += length,
        }
    }
}

#[divan::bench(sample_count = 10)]
fn gzip_with_marks(bencher: Bencher) {
    let layer = &*LAYER;
    bencher.counter(BytesCount::new(layer.length)).bench(|| {
        assert_eq!(decode(Compression::Gzip, &layer.gzip), layer.length);
    });
}

#[divan::bench(sample_count = 10)]
fn gzip_by_flate2(bencher: Bencher) {
    let layer = &*LAYER;
    bencher.counter(BytesCount::new(layer.length)).bench(|| {
        let input = BufReader::with_capacity(PIECE, &layer.gzip[..]);
        assert_eq!(read_all(flate2::bufread::MultiGzDecoder::new(input)), layer.length);
    });
}

#[divan::bench(sample_count = 10)]
fn zstd_with_marks(bencher: Bencher) {
    let layer = &*LAYER;
    bencher.counter(BytesCount::new(layer.length)).bench(|| {
        assert_eq!(decode(Compression::Zstd, &layer.zstd), layer.length);
    });
}

#[divan::bench(sample_count = 10)]
fn zstd_by_libzstd(bencher: Bencher) {
    let layer = &*LAYER;
    bencher.counter(BytesCount::new(layer.length)).bench(|| {
        let input = BufReader::with_capacity(PIECE, &layer.zstd[..]);
        let decoder = zstd::stream::read::Decoder::with_buffer(input).expect("a decoder");
        assert_eq!(read_all(decoder), layer.length);
    });
}
