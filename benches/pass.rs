//! The whole first pass over a layer that comes from memory: how long it takes, and how well it uses the
//! processor. Nothing is faster than its CPU time spread evenly over the cores, or than its decoder alone.
//!
//! `cargo bench --bench pass`; with `LAYER=path/to/layer.tar.gz`, that layer instead of a generated one.

#[path = "support/generated.rs"]
mod generated;

use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use futures_util::stream;
use peelfs::codec::{LayerDecoder, OutputBuffer, Status, Window, WindowPacker};
use peelfs::content::{FirstPass, LayerRef, Means, Others, PassScheduler, Payload, ScheduledPass};
use peelfs::descriptor::{Compression, Descriptor, MediaType};
use peelfs::digest::{Algorithm, Digest};
use peelfs::offsets::BlobOffset;
use peelfs::source::{BlobSource, BoxFuture, ByteStream, SourceError};
use peelfs::store::Store;
use peelfs::trust::Untrusted;
use rustix::time::{ClockId, clock_gettime};

/// Input comes in pieces of this size, as from the network.
const PIECE: usize = 64 << 10;
/// About the decoded bytes between two marks.
const SPAN: usize = 256 << 10;

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for layer in [&*GZIP, &*ZSTD, &*STORED] {
        let runs: Vec<(f64, f64)> = (0..5).map(|_| layer.timed()).collect();
        let (wall, cpu) = runs.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are some");
        let decoder = (0..3).map(|_| layer.decoded_alone()).min_by(f64::total_cmp).expect("there are some");
        let bound = decoder.max(cpu / cores as f64);
        println!(
            "{:?}: {:.1} MB, decoded {:.1}: {wall:.3} s, CPU {cpu:.3} s on {cores} cores, decoder alone {decoder:.3} s: {:.2} of the bound",
            layer.compression,
            layer.blob.len() as f64 / 1e6,
            layer.decoded as f64 / 1e6,
            bound / wall,
        );
    }
    for (stage, seconds) in GZIP.stages() {
        println!("{stage}, alone: {seconds:.3} s of CPU");
    }
    divan::main();
}

struct Layer {
    compression: Compression,
    blob: Bytes,
    decoded: usize,
    digest: Digest,
    diff_id: Digest,
}

static TAR: LazyLock<Bytes> = LazyLock::new(|| match std::env::var_os("LAYER") {
    Some(path) => {
        let gzip = std::fs::read(path).expect("LAYER can be read");
        let mut tar = Vec::new();
        flate2::bufread::MultiGzDecoder::new(&gzip[..]).read_to_end(&mut tar).expect("LAYER is gzip");
        tar.into()
    }
    None => generated::tar(256 << 20).into(),
});

static GZIP: LazyLock<Layer> = LazyLock::new(|| {
    let blob = match std::env::var_os("LAYER") {
        Some(path) => std::fs::read(path).expect("LAYER can be read"),
        None => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&TAR).expect("writes to memory");
            encoder.finish().expect("writes to memory")
        }
    };
    Layer::new(Compression::Gzip, blob.into())
});

static ZSTD: LazyLock<Layer> =
    LazyLock::new(|| Layer::new(Compression::Zstd, zstd::bulk::compress(&TAR, 3).expect("zstd compresses").into()));

static STORED: LazyLock<Layer> = LazyLock::new(|| Layer::new(Compression::Stored, TAR.clone()));

impl Layer {
    fn new(compression: Compression, blob: Bytes) -> Self {
        let of = |bytes: &Bytes| Digest::of(Algorithm::Sha256, bytes);
        Self { compression, decoded: TAR.len(), digest: of(&blob), diff_id: of(&TAR), blob }
    }

    /// Makes the pass once, into a store of its own.
    fn pass(&self, runtime: &tokio::runtime::Runtime) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::open(dir.path(), None).expect("a store"));
        let source: Arc<dyn BlobSource> = Arc::new(Memory(self.blob.clone()));
        let blob = Descriptor {
            media_type: MediaType::OciManifest,
            digest: self.digest.clone(),
            size: self.blob.len() as u64,
            data: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let (diff_id, payload) = (Some(self.diff_id.clone()), Payload::Tar(self.compression));
        let pass = FirstPass {
            layer: LayerRef { blob, diff_id, payload, soci: None },
            codec_limits: peelfs::codec::Limits::default(),
            layer_limits: peelfs::layer::Limits::default(),
        };
        let (progress, schedule) = (Arc::default(), ScheduledPass::new(&PassScheduler::new()));
        let (partial, others) = (None, Others::Wait);
        let (source, store, progress, schedule) = (&source, &store, &progress, &schedule);
        runtime
            .block_on(pass.run(&Means {
                source,
                store,
                progress,
                schedule,
                partial,
                others,
                pushed: None,
                soci: None,
                turns: None,
            }))
            .expect("the layer is good");
        dir
    }

    /// Seconds of a pass, and its CPU seconds.
    fn timed(&self) -> (f64, f64) {
        let runtime = runtime();
        let (begun, cpu) = (Instant::now(), cpu_time());
        let dir = self.pass(&runtime);
        let took = (begun.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
        drop(dir);
        took
    }

    /// CPU seconds of each stage of the pass: the least of three runs.
    fn stages(&self) -> [(&'static str, f64); 6] {
        let least = |stage: &dyn Fn()| {
            let timed = || {
                let begun = cpu_time();
                stage();
                (cpu_time() - begun).as_secs_f64()
            };
            (0..3).map(|_| timed()).min_by(f64::total_cmp).expect("there are some")
        };
        let windows = self.windows();
        [
            ("decoding", least(&|| _ = self.decoded_alone())),
            ("SHA-256 of the blob", least(&|| _ = Digest::of(Algorithm::Sha256, &self.blob))),
            ("SHA-256 of the decoded stream", least(&|| _ = Digest::of(Algorithm::Sha256, &TAR))),
            (
                "BLAKE3 of spans",
                least(&|| {
                    for span in TAR.chunks(SPAN) {
                        std::hint::black_box(blake3::hash(span));
                    }
                }),
            ),
            (
                "packing windows",
                least(&|| {
                    let mut packer = WindowPacker::new();
                    for window in &windows {
                        std::hint::black_box(packer.pack(window));
                    }
                }),
            ),
            (
                "writing",
                least(&|| {
                    let file = tempfile::tempfile().expect("a file");
                    TAR.chunks(OutputBuffer::CAPACITY).for_each(|bytes| (&file).write_all(bytes).expect("room"));
                }),
            ),
        ]
    }

    fn windows(&self) -> Vec<Window> {
        let mut windows = Vec::new();
        self.decode(|decoder| windows.extend(decoder.take_windows().into_iter().map(|(_, window)| window)));
        windows
    }

    /// Seconds that the decoder takes when nothing else is done.
    fn decoded_alone(&self) -> f64 {
        let begun = Instant::now();
        self.decode(|decoder| _ = std::hint::black_box((decoder.take_marks(), decoder.take_windows())));
        begun.elapsed().as_secs_f64()
    }

    fn decode(&self, mut each: impl FnMut(&mut LayerDecoder)) {
        let limits = peelfs::codec::Limits::default();
        let mut decoder = LayerDecoder::first_pass(self.compression, limits).expect("a decoder");
        let mut out = OutputBuffer::new(OutputBuffer::CAPACITY);
        let mut recycled = None;
        for mut piece in self.blob.chunks(PIECE) {
            while decoder.decode(&mut piece, &mut out).expect("a valid layer") == Status::OutputFull {
                recycled = Some(out.hand_over(recycled.take()));
                each(&mut decoder);
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

struct Memory(Bytes);

impl BlobSource for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn head(&self) -> BoxFuture<'_, Result<Descriptor, SourceError>> {
        unreachable!("a pass asks for blobs only")
    }

    fn root(&self) -> BoxFuture<'_, Result<(Descriptor, Untrusted<Bytes>), SourceError>> {
        unreachable!("a pass asks for blobs only")
    }

    fn manifest<'a>(&'a self, _: &'a Descriptor) -> BoxFuture<'a, Result<Untrusted<Bytes>, SourceError>> {
        unreachable!("a pass asks for blobs only")
    }

    fn stream<'a>(
        &'a self,
        _: &'a Descriptor,
        range: Range<BlobOffset>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        let blob = self.0.slice(range.start.0 as usize..range.end.0 as usize);
        let pieces = (0..blob.len()).step_by(PIECE);
        let pieces = pieces.map(move |at| Ok(blob.slice(at..blob.len().min(at + PIECE))));
        Box::pin(std::future::ready(Ok(ByteStream::new(stream::iter(pieces)))))
    }
}

fn bench(bencher: Bencher, layer: &Layer) {
    let runtime = runtime();
    bencher.counter(BytesCount::new(layer.decoded)).bench_local(|| layer.pass(&runtime));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn gzip(bencher: Bencher) {
    bench(bencher, &GZIP);
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn zstd_of_one_frame(bencher: Bencher) {
    bench(bencher, &ZSTD);
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn stored(bencher: Bencher) {
    bench(bencher, &STORED);
}
