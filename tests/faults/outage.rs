//! The fault matrix: every fault, in every format, under every policy. Either the right bytes come or a
//! clean error within the deadline, and when the fault is over the same mount is well again by itself.
//! Time runs a thousand times as fast in here: a limit of sixty seconds is sixty milliseconds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use peelfs::content::{FirstPass, LayerRef, Payload, SharedLayers};
use peelfs::descriptor::Compression;
use peelfs::digest::Digest;
use peelfs::image::{self, Eagerness, FsError, ImageFs, Limits, Network, Verify};
use peelfs::offsets::FileOffset;
use peelfs::overlay::Last;
use peelfs::platform::Platform;
use peelfs::source::outage::OnOutage;
use peelfs::source::registry::{Clock, Deadlines, RegistryOptions, RegistrySource, Surroundings};
use peelfs::source::{BlobSource, BoxFuture};
use peelfs::store::{Keep, Store};
use peelfs_loopback::Request;
use peelfs_loopback::auth::{Access, Realm, TokenRules, TokenService};
use peelfs_loopback::faults::{Fault, Gate, RedirectTo, Rule, Target};
use peelfs_loopback::image::{self as built, Image, ImageBuilder, LayerBuilder, Packing};
use peelfs_loopback::registry::{Catalog, Registry, Settings};
use serde_json::json;
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount, said};
use support::side_by_side;

const NAME: &str = "library/image";

/// A clock that runs [`HURRY`] times as fast as the machine's.
#[derive(Debug)]
struct Hurried {
    since: Instant,
    times: u32,
}

const HURRY: u32 = 1_000;

impl Clock for Hurried {
    fn now(&self) -> Duration {
        self.since.elapsed() * self.times
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time / self.times))
    }
}

static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

/// One image in one registry, opened as a mount opens it.
struct Bench {
    registry: Registry,
    image: Image,
    content: Vec<u8>,
    dir: tempfile::TempDir,
    port: u16,
    access: Option<TokenService>,
    /// How long a connection or an answer may take.
    limit: Duration,
    /// How many times as fast as the machine's clock the source's goes.
    hurry: u32,
}

/// An image as it is mounted, and the source behind it.
struct Mounted {
    fs: Arc<ImageFs>,
    source: Arc<RegistrySource>,
}

impl Bench {
    fn new(packing: Packing) -> Self {
        let content = Random::new(7).bytes(600_000);
        let layer = LayerBuilder::new().file("f", content.clone()).file("g", "behind it").packing(packing);
        Self::of(ImageBuilder::new().layer(layer).build(), content)
    }

    /// One whose image has this content in one of its files.
    fn of(image: Image, content: Vec<u8>) -> Self {
        let registry = loop {
            // Outside the system's ephemeral ports, so that no other process gets it while the registry is stopped.
            let port = 20_000 + (std::process::id() % 4_000 + NEXT_PORT.fetch_add(1, Ordering::Relaxed)) as u16;
            let catalog = Catalog::new().image(NAME, "1", &image);
            if let Ok(registry) = Registry::start_with(Settings { catalog, port, ..Settings::default() }) {
                break registry;
            }
        };
        let port = registry.addr().port();
        let dir = tempfile::tempdir().unwrap();
        Self { registry, image, content, dir, port, access: None, limit: LONGER_THAN_ANY_ANSWER, hurry: HURRY }
    }

    fn layer(&self) -> &Digest {
        &self.image.layers()[0].digest
    }

    fn blob(&self) -> Target {
        Target::Blob(self.layer().clone())
    }

    fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.dir.path().join("cache"), None).unwrap())
    }

    fn source(&self, policy: OnOutage) -> Arc<RegistrySource> {
        let authfile = self.dir.path().join("auth.json");
        let mut options = RegistryOptions::new(Surroundings::default());
        options.authfile = authfile.exists().then_some(authfile);
        options.clock = Arc::new(Hurried { since: Instant::now(), times: self.hurry });
        let limit = self.limit;
        let deadlines = Deadlines { connect: limit, header: limit, stall: limit, ..Deadlines::default() };
        options.deadlines = deadlines.waiting_as(policy);
        let name = format!("127.0.0.1:{}/{NAME}:1", self.port);
        Arc::new(RegistrySource::new(name.parse().unwrap(), name, options).unwrap())
    }

    async fn open(&self, policy: OnOutage) -> Result<Mounted, image::PlanError> {
        self.open_beside(&self.store().into(), policy).await
    }

    /// As [`Bench::open`], in a process that has `shared_layers`.
    async fn open_beside(&self, shared_layers: &SharedLayers, policy: OnOutage) -> Result<Mounted, image::PlanError> {
        let (source, shared_layers) = (self.source(policy), shared_layers.clone());
        let reference = format!("127.0.0.1:{}/{NAME}:1", self.port).parse().unwrap();
        let dyn_source = Arc::clone(&source) as Arc<dyn BlobSource>;
        let plan =
            image::resolve(&reference, &dyn_source, shared_layers.store(), &Platform::host(), Network::Allowed).await?;
        source.outages().unwrap().retry_without_limit(policy);
        let fs = image::open(
            &plan,
            dyn_source,
            shared_layers,
            &Limits::default(),
            Eagerness::OnDemand,
            Verify::BeforeShowing,
        );
        Ok(Mounted { fs, source })
    }

    /// All layers are indexed and nothing is cached, so that a read requests a range.
    async fn learn_and_drop(&self) {
        let mounted = self.open(OnOutage::Block).await.unwrap();
        mounted.fs.all_known().await.unwrap();
        drop(mounted);
        // Passes may still hold the layer for a moment.
        while self.store().prune(Keep::Indexes).unwrap().held > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Stops the registry; returns how to start it again.
    fn stop(&mut self) {
        let gone = Registry::start(Catalog::default()).unwrap();
        drop(std::mem::replace(&mut self.registry, gone));
    }

    fn start(&mut self) {
        let catalog = Catalog::new().image(NAME, "1", &self.image);
        let settings = || Settings { catalog: catalog.clone(), port: self.port, ..Settings::default() };
        let registry = loop {
            // Connections of before may hold the port for a moment.
            match Registry::start_with(settings()) {
                Ok(registry) => break registry,
                Err(_) => support::pause(),
            }
        };
        self.registry = registry;
    }
}

impl Mounted {
    async fn read(&self, path: &str) -> Result<Vec<u8>, FsError> {
        let node = self.fs.awaited(|fs| fs.walk(path.as_bytes(), Last::Follow)).await?;
        let mut all = Vec::new();
        while (all.len() as u64) < node.size {
            let piece = self.fs.read(node.node, FileOffset(all.len() as u64), 128 << 10).await?;
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// Reads until it works, as a user does when the registry is back.
    /// Returns when nothing is waiting; requests that are no longer needed may still be in flight.
    async fn waits_for_nothing(&self) {
        let begun = Instant::now();
        loop {
            match self.source.outages().unwrap().status() {
                waits if waits.is_empty() => return,
                waits => assert!(begun.elapsed() < HANGS, "still waited for: {waits:?}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn read_when_well(&self, path: &str) -> Vec<u8> {
        let begun = Instant::now();
        loop {
            match self.read(path).await {
                Ok(bytes) => return bytes,
                Err(error) => assert!(begun.elapsed() < HANGS, "not well again: {}", image::chain(&error)),
            }
            tokio::task::yield_now().await;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The required result of a lasting fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Comes {
    /// The right bytes, in spite of it.
    Bytes,
    /// An error at once: a retry is useless.
    Error,
    /// An error when the reader's patience ends.
    Patience,
    /// Either of the first two, by format and way.
    BytesOrError,
    /// Any of them, by format: a fault at one place of the blob strikes whom it strikes.
    Any,
}

const PACKINGS: [Packing; 3] =
    [Packing::GZIP, Packing::Zstd { level: 1, frame: Some(200_000), skippable: true }, Packing::Stored];

/// Faults by name, with the result while each lasts.
fn faults(bench: &Bench, gate: &Gate) -> Vec<(&'static str, Vec<Rule>, Comes)> {
    use Comes::{Any, Bytes, BytesOrError, Error, Patience};
    let size = bench.image.layers()[0].blob.len() as u64;
    let half = size / 2;
    let one = |fault: Fault| vec![Rule::new(bench.blob(), fault)];
    let header = |name: &str, value: &str| Fault::Header(name.to_owned(), value.to_owned());
    let exactly =
        |location: &str| Fault::Redirect { status: 307, to: RedirectTo::Exactly(location.to_owned()), tickets: None };
    let flipped = || bench.image.layers()[0].blob.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>();
    vec![
        ("reset before the head", one(Fault::ResetBeforeHeaders), Patience),
        ("reset before a byte", one(Fault::Reset { after: 0 }), Patience),
        ("reset after a few bytes", one(Fault::Reset { after: 100 }), Any),
        ("reset after half", one(Fault::Reset { after: half }), Bytes),
        ("cut before a byte", one(Fault::Truncate { after: 0 }), Patience),
        ("cut after a few bytes", one(Fault::Truncate { after: 100 }), Any),
        ("cut after half", one(Fault::Truncate { after: half }), Bytes),
        ("closed after each answer", one(Fault::Close), Bytes),
        ("silent", one(Fault::Hang(gate.clone())), Patience),
        ("silent after the head", one(Fault::Stall { after: 0, gate: gate.clone() }), Patience),
        ("silent after a few bytes", one(Fault::Stall { after: 100, gate: gate.clone() }), Any),
        ("a drip", one(Fault::Pace(100)), Any),
        ("500", one(Fault::status(500)), Patience),
        ("502", one(Fault::status(502)), Patience),
        ("503", one(Fault::status(503)), Patience),
        (
            "503, come back in an hour",
            vec![Rule::new(
                bench.blob(),
                Fault::Status {
                    status: 503,
                    headers: vec![("Retry-After".to_owned(), "3600".to_owned())],
                    body: bytes::Bytes::new(),
                },
            )],
            Patience,
        ),
        ("504", one(Fault::status(504)), Patience),
        ("408", one(Fault::status(408)), Patience),
        ("425", one(Fault::status(425)), Patience),
        ("429", one(Fault::too_many("0")), Patience),
        ("429, come back in an hour", one(Fault::too_many("3600")), Patience),
        ("429, come back at a date", one(Fault::too_many("Fri, 31 Dec 2099 23:59:59 GMT")), Patience),
        ("429, come back never", one(Fault::too_many("99999999999999999999")), Patience),
        ("400", one(Fault::status(400)), Error),
        ("403", one(Fault::status(403)), Error),
        ("the blob is gone", one(Fault::status(404)), Error),
        ("410", one(Fault::status(410)), Error),
        ("416", one(Fault::status(416)), Error),
        ("418", one(Fault::status(418)), Error),
        ("204", one(Fault::status(204)), Error),
        ("401 without a challenge", one(Fault::status(401)), Error),
        ("a wrong bit", one(Fault::FlipBit { at: half, bit: 3 }), BytesOrError),
        ("wrong bits everywhere", one(Fault::OtherBytes(flipped().into())), Error),
        ("another length", one(Fault::OtherBytes(vec![0; 1_000].into())), Error),
        ("an empty blob", one(Fault::OtherBytes(bytes::Bytes::new())), Any),
        ("the bytes beside those asked for", one(Fault::ShiftBody(1)), Error),
        ("another Content-Range", one(Fault::ShiftContentRange(1)), BytesOrError),
        ("no Content-Range", one(Fault::NoContentRange), BytesOrError),
        ("ranges ignored", one(Fault::IgnoreRange), Bytes),
        ("a length too small", one(Fault::ContentLength(-1)), Any),
        ("a length too large", one(Fault::ContentLength(1)), Any),
        ("no length", one(Fault::UntilClose), Bytes),
        ("chunks", one(Fault::Chunked), Bytes),
        ("encoded", one(Fault::Gzip), Error),
        ("encoded in name", one(header("Content-Encoding", "br")), Bytes),
        ("without end", one(Fault::Endless), BytesOrError),
        ("a redirect that leads nowhere", one(exactly("http://127.0.0.1:1/x")), Patience),
        ("a redirect to a name that is none", one(exactly("http://no-such-name.invalid/x")), Patience),
        ("a redirect to a file", one(exactly("file:///etc/passwd")), Error),
        ("a redirect without an end", one(exactly(&format!("/v2/{NAME}/blobs/{}", bench.layer()))), Error),
        ("tokens are not to be had", vec![Rule::new(Target::Tokens, Fault::status(503))], Patience),
        ("tokens are refused", vec![Rule::new(Target::Tokens, Fault::status(401))], Error),
        ("the token server says nothing", vec![Rule::new(Target::Tokens, Fault::Hang(gate.clone()))], Patience),
    ]
}

/// Most of a cell is waiting, so that many of them go side by side.
const SIDE_BY_SIDE: usize = 8;

/// Runs every fault in every format under `policy`; `cold` reads ranges, else the first pass is under way.
fn matrix(policy: OnOutage, cold: bool) {
    let names = faults(&Bench::new(Packing::Stored), &Gate::new()).len();
    let cells: Vec<_> =
        PACKINGS.into_iter().flat_map(|packing| (0..names).map(move |number| (packing, number))).collect();
    let (count, served) = (cells.len(), AtomicU32::new(0));
    side_by_side(SIDE_BY_SIDE, cells, |(packing, number)| {
        let read = cell(packing, number, policy, cold);
        served.fetch_add(u32::from(read), Ordering::Relaxed);
    });
    let served = served.into_inner();
    let failed = count as u32 - served;
    eprintln!("{count} faults by format under {policy:?}: {served} reads, {failed} errors, 0 wrong bytes");
}

/// Runs one fault in one format, and tells whether the file could be read in spite of it.
fn cell(packing: Packing, number: usize, policy: OnOutage, cold: bool) -> bool {
    let mut bench = Bench::new(packing);
    let gate = Gate::new();
    let (what, rules, comes) = faults(&bench, &gate).swap_remove(number);
    let what = format!("{what}, {packing:?}, {policy:?}, {}", if cold { "range" } else { "first pass" });
    // Where an answer comes, no limit may be what ends it, however busy the machine is.
    bench.limit = match comes {
        Comes::Bytes | Comes::Error | Comes::BytesOrError => LONGER_THAN_ANY_ANSWER,
        _ if ["nothing", "silent", "drip"].iter().any(|word| what.contains(word)) => Duration::from_millis(150),
        Comes::Patience | Comes::Any => Duration::from_secs(3),
    };
    // Nor may the three seconds of silence after which `offline` gives up.
    if policy == OnOutage::Offline && bench.limit == LONGER_THAN_ANY_ANSWER {
        bench.hurry = 2;
    }
    if what.contains("token") {
        let tokens = TokenService::new(TokenRules::default());
        bench.registry.set_access(Access::Bearer { tokens: tokens.clone(), realm: Realm::Here });
        bench.access = Some(tokens);
    }
    runtime().block_on(async {
        if cold {
            bench.learn_and_drop().await;
        }
        // If an answer is required, the limit is longer than any takes, however busy the machine is.
        let policy = match (policy, comes) {
            (policy, Comes::Patience | Comes::Any) => policy,
            (OnOutage::Deadline(_), _) => PATIENT,
            (policy, _) => policy,
        };
        let mounted = bench.open(policy).await.unwrap();
        if let Some(tokens) = &bench.access {
            tokens.expire_tokens();
        }
        rules.into_iter().for_each(|rule| bench.registry.faults().add(rule));
        let begun = Instant::now();
        let reading = tokio::time::timeout(HANGS, mounted.read("f"));
        let read = reading.await.unwrap_or_else(|_| panic!("{what}: no answer"));
        match &read {
            Ok(bytes) => assert!(*bytes == bench.content, "{what}: wrong bytes"),
            Err(FsError::Layer { .. } | FsError::Read(_)) => {}
            Err(error) => panic!("{what}: {error}"),
        }
        let away = matches!(&read, Err(error) if image::chain(error).contains("waited"));
        let fits = match comes {
            Comes::Bytes => read.is_ok(),
            Comes::Error => read.is_err() && !away,
            Comes::Patience => away,
            Comes::BytesOrError => read.is_ok() || !away,
            Comes::Any => true,
        };
        assert!(
            fits,
            "{what}: {comes:?}, but {:?} after {:?}",
            read.as_ref().map(Vec::len).map_err(|error| image::chain(error)),
            begun.elapsed()
        );
        if away {
            let waiting = mounted.source.outages().unwrap().status();
            assert!(
                waiting.iter().any(|wait| wait.what.contains(bench.layer().hex()) && wait.tries > 0),
                "{what}: {waiting:?}"
            );
        }
        let told = || mounted.fs.layer_status().iter().any(|layer| layer.error.is_some());
        assert!(read.is_ok() || away || told(), "{what}: `status` does not say why reads fail");
        // The fault is over, and the same mount reads.
        bench.registry.faults().clear();
        gate.open();
        assert!(mounted.read_when_well("f").await == bench.content, "{what}: wrong bytes afterwards");
        assert_eq!(mounted.read_when_well("g").await, b"behind it", "{what}");
        mounted.waits_for_nothing().await;
        // What was asked for during the fault may fail after it, where limits are short.
        while told() {
            assert!(begun.elapsed() < HANGS, "{what}: nothing fails any more");
            mounted.read_when_well("g").await;
        }
        read.is_ok()
    })
}

/// Hours of the machine's.
const LONGER_THAN_ANY_ANSWER: Duration = Duration::from_secs(20_000_000);
/// What has not come after this time of the machine's never comes, however busy it is.
const HANGS: Duration = Duration::from_secs(600);
const DEADLINE: OnOutage = OnOutage::Deadline(Duration::from_secs(60));
/// More than any answer takes here, however busy the machine is.
const PATIENT: OnOutage = OnOutage::Deadline(LONGER_THAN_ANY_ANSWER);
/// Half a second of the machine's: for reads that have to fail.
const ENDING: OnOutage = OnOutage::Deadline(Duration::from_secs(600));

#[test]
fn every_fault_of_a_range_ends_in_time_and_heals() {
    matrix(DEADLINE, true);
}

#[test]
fn every_fault_of_a_first_pass_ends_in_time_and_heals() {
    matrix(DEADLINE, false);
}

#[test]
fn offline_every_fault_of_a_range_ends_at_once_and_heals() {
    matrix(OnOutage::Offline, true);
}

/// A server that ignores or refuses ranges sends the whole blob; all of it is cached.
#[test]
fn a_blob_that_comes_as_a_whole_is_asked_for_once() {
    let ranged = |bench: &Bench| {
        let blob = bench.layer().to_string();
        Target::matching(move |asked| asked.path.ends_with(&blob) && asked.header("range").is_some())
    };
    for packing in PACKINGS {
        for (fault, requests) in [(Fault::IgnoreRange, 1), (Fault::status(400), 2), (Fault::status(503), 3)] {
            let bench = Bench::new(packing);
            runtime().block_on(async {
                bench.learn_and_drop().await;
                let mounted = bench.open(PATIENT).await.unwrap();
                bench.registry.clear();
                bench.registry.faults().add(Rule::new(ranged(&bench), fault.clone()));
                assert_eq!(mounted.read("g").await.unwrap(), b"behind it");
                assert!(mounted.read("f").await.unwrap() == bench.content);
                let asked: Vec<_> = bench.registry.requests().into_iter().filter(|asked| asked.is_blob()).collect();
                assert_eq!(asked.len(), requests, "{packing:?}, {fault:?}: {asked:?}");
                assert!(mounted.read("f").await.unwrap() == bench.content);
                assert_eq!(bench.registry.requests().len(), requests, "{packing:?}, {fault:?}: it is kept");
            });
        }
    }
}

/// Also for requests that were all made before the first answer.
#[test]
fn a_blob_that_comes_as_a_whole_comes_once_for_all_readers() {
    const FILES: usize = 8;
    let content = Random::new(7).bytes(3 << 20);
    let layer = (0..FILES)
        .fold(LayerBuilder::new().packing(Packing::Stored), |layer, n| layer.file(&format!("f{n}"), content.clone()));
    let image = ImageBuilder::new().layer(layer).build();
    for refused in [Fault::IgnoreRange, Fault::status(400)] {
        let mut bench = Bench::of(image.clone(), content.clone());
        // No transfer is to be taken for stalled, however busy the machine is.
        bench.hurry = 1;
        let blob = bench.layer().to_string();
        let ranged = Target::matching(move |asked| asked.path.ends_with(&blob) && asked.header("range").is_some());
        runtime().block_on(async {
            bench.learn_and_drop().await;
            let mounted = Arc::new(bench.open(PATIENT).await.unwrap());
            bench.registry.clear();
            let gate = Gate::new();
            bench.registry.faults().add(Rule::new(ranged.clone(), Fault::Hang(gate.clone())));
            bench.registry.faults().add(Rule::new(ranged, refused.clone()));
            let reading: Vec<_> = (0..FILES)
                .map(|n| {
                    let mounted = Arc::clone(&mounted);
                    tokio::spawn(async move { mounted.read(&format!("f{n}")).await.unwrap() })
                })
                .collect();
            assert!(bench.registry.wait_until(|asked| asked.len() >= FILES));
            gate.open();
            for read in reading {
                assert!(read.await.unwrap() == content);
            }
            // The other connections receive what their buffers hold.
            let all = bench.image.layers()[0].blob.len() as u64;
            let came: Vec<_> = bench.registry.requests().iter().map(|asked| asked.body_bytes).collect();
            assert_eq!(came.iter().filter(|came| **came > all / 2).count(), 1, "{refused:?}: {came:?} of {all}");
        });
    }
}

#[test]
fn a_silent_transfer_is_waited_for_as_long_as_the_policy_says() {
    for (cold, after) in [(true, 0), (true, 100_000), (false, 0), (false, 100_000)] {
        let bench = Bench { limit: Duration::from_secs(3600), ..Bench::new(Packing::Stored) };
        runtime().block_on(async {
            if cold {
                bench.learn_and_drop().await;
            }
            let mounted = bench.open(OnOutage::Deadline(Duration::from_secs(20))).await.unwrap();
            let gate = Gate::new();
            bench.registry.faults().add(Rule::new(bench.blob(), Fault::Stall { after, gate: gate.clone() }));
            let told = image::chain(&mounted.read("f").await.unwrap_err());
            assert!(told.contains("no data received"), "{told}");
            let waiting = mounted.source.outages().unwrap().status();
            assert_eq!(waiting.len(), 1, "{waiting:?}");
            assert!(waiting[0].what.contains(bench.layer().hex()) && waiting[0].seconds >= 20, "{waiting:?}");
            assert_eq!(waiting[0].tries, 1);
            bench.registry.faults().clear();
            gate.open();
            assert!(mounted.read_when_well("f").await == bench.content);
        });
    }
}

#[test]
fn a_connection_that_died_unnoticed_is_replaced_at_a_read() {
    for (cold, after) in [(true, None), (true, Some(100_000)), (false, None), (false, Some(100_000))] {
        let bench = Bench { limit: Duration::from_secs(3600), ..Bench::new(Packing::Stored) };
        runtime().block_on(async {
            if cold {
                bench.learn_and_drop().await;
            }
            let mounted = Arc::new(bench.open(OnOutage::Block).await.unwrap());
            let gate = Gate::new();
            let fault = match after {
                Some(after) => Fault::Stall { after, gate: gate.clone() },
                None => Fault::Hang(gate.clone()),
            };
            bench.registry.faults().add(Rule::new(bench.blob(), fault).once());
            let read = || {
                let mounted = Arc::clone(&mounted);
                tokio::spawn(async move { mounted.read("f").await })
            };
            let mut readers = vec![read()];
            let outages = mounted.source.outages().unwrap();
            let mut seconds = 0;
            // The gate stays closed: that connection brings nothing any more.
            while !readers[0].is_finished() {
                if let Some(wait) = outages.status().first().filter(|wait| wait.seconds > seconds) {
                    seconds = wait.seconds;
                    readers.push(read());
                }
                tokio::task::yield_now().await;
            }
            for reader in readers {
                assert!(reader.await.unwrap().unwrap() == bench.content);
            }
            gate.open();
        });
    }
}

#[test]
fn offline_a_registry_that_says_nothing_is_asked_once() {
    let bench = Bench { limit: Duration::from_millis(150), ..Bench::new(Packing::Stored) };
    runtime().block_on(async {
        bench.learn_and_drop().await;
        let mounted = bench.open(OnOutage::Offline).await.unwrap();
        bench.registry.faults().add(Rule::new(bench.blob(), Fault::Hang(Gate::new())));
        let told = image::chain(&mounted.read("f").await.unwrap_err());
        assert!(told.contains("gave no answer") && told.contains("tried 1 time,"), "{told}");
    });
}

#[test]
fn a_mount_without_its_registry_serves_what_is_cached() {
    let mut bench = Bench::new(Packing::Zstd { level: 1, frame: Some(200_000), skippable: false });
    runtime().block_on(async {
        bench.learn_and_drop().await;
        let mounted = bench.open(ENDING).await.unwrap();
        assert_eq!(mounted.read("g").await.unwrap(), b"behind it");
        bench.stop();
        assert_eq!(mounted.read("g").await.unwrap(), b"behind it", "what is cached is served");
        for _ in 0..3 {
            let told = image::chain(&mounted.read("f").await.unwrap_err());
            assert!(told.contains("cannot reach 127.0.0.1") && told.contains("tried"), "{told}");
        }
        bench.start();
        assert!(mounted.read_when_well("f").await == bench.content);

        // The next one, too: a tag that was resolved once is mounted without its registry.
        bench.stop();
        let next = bench.open(OnOutage::Offline).await.unwrap();
        assert!(next.read("f").await.unwrap() == bench.content);
    });
}

#[test]
fn what_no_reader_waits_for_any_more_is_not_tried_for_ever() {
    let mut bench = Bench::new(Packing::Stored);
    runtime().block_on(async {
        bench.learn_and_drop().await;
        let mounted = bench.open(DEADLINE).await.unwrap();
        bench.stop();
        mounted.read("f").await.unwrap_err();
        mounted.waits_for_nothing().await;
        bench.start();
        assert!(mounted.read_when_well("f").await == bench.content);
    });
}

#[test]
fn readers_that_block_get_their_bytes_when_the_registry_is_back() {
    let mut bench = Bench::new(Packing::GZIP);
    runtime().block_on(async {
        let mounted = Arc::new(bench.open(OnOutage::Block).await.unwrap());
        bench.stop();
        let readers: Vec<_> = (0..32)
            .map(|_| {
                let mounted = Arc::clone(&mounted);
                tokio::spawn(async move { mounted.read("f").await })
            })
            .collect();
        let outages = mounted.source.outages().unwrap().clone();
        // Longer than any deadline.
        while outages.status().first().is_none_or(|wait| wait.seconds < 120) {
            tokio::task::yield_now().await;
        }
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        bench.start();
        for reader in readers {
            assert!(reader.await.unwrap().unwrap() == bench.content);
        }
        let blobs = bench.registry.requests().iter().filter(|asked| asked.is_blob()).count();
        assert!(blobs <= 2, "one pass for all: {blobs} requests");
    });
}

/// With the answers of the specification, Harbor, Docker Hub and ECR.
#[test]
fn expired_credentials_are_asked_for_once_for_all_that_wait() {
    let basic = ("WWW-Authenticate".to_owned(), "Basic realm=\"harbor\"".to_owned());
    for refusal in [None, Some((401, vec![basic])), Some((401, Vec::new())), Some((403, Vec::new()))] {
        credentials_that_ended_are_asked_for_again(refusal);
    }
}

/// With this answer to a token that has ended.
fn credentials_that_ended_are_asked_for_again(refusal: Option<(u16, Vec<(String, String)>)>) {
    let bench = Bench::new(Packing::Stored);
    let login = |password: &str| {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("alice:{password}"));
        let auths = json!({ "auths": { format!("127.0.0.1:{}", bench.port): { "auth": auth } } });
        std::fs::write(bench.dir.path().join("auth.json"), auths.to_string()).unwrap();
    };
    let user = |password: &str| Some(("alice".to_owned(), password.to_owned()));
    let tokens = TokenService::new(TokenRules { user: user("old"), expires_in: Some(86_400), ..TokenRules::default() });
    bench.registry.set_access(Access::Bearer { tokens: tokens.clone(), realm: Realm::Here });
    login("old");
    runtime().block_on(async {
        bench.learn_and_drop().await;
        let mounted = Arc::new(bench.open(PATIENT).await.unwrap());
        assert_eq!(mounted.read("g").await.unwrap(), b"behind it");
        // The token has ended, and so has the password behind it.
        tokens.expire_tokens();
        tokens.change(|rules| rules.user = user("new"));
        let last = tokens.issued();
        let has_ended = move |asked: &Request| {
            let token = asked.header("authorization").and_then(|shown| shown.strip_prefix("Bearer opaque."));
            token.is_some_and(|number| number.parse::<u64>().unwrap() <= last)
        };
        if let Some((status, headers)) = refusal.clone() {
            let fault = Fault::Status { status, headers, body: bytes::Bytes::new() };
            bench.registry.faults().add(Rule::new(Target::matching(has_ended), fault));
        }
        let told = image::chain(&mounted.read("f").await.unwrap_err());
        assert!(told.contains("denied access") && !told.contains("old"), "{told}");
        let outages = mounted.source.outages().unwrap();
        assert!(outages.refusal().is_some_and(|why| why.contains("denied access")), "{:?}", outages.refusal());
        assert_eq!(mounted.read("g").await.unwrap(), b"behind it");

        login("new");
        let before = tokens.issued();
        let readers: Vec<_> = (0..64)
            .map(|_| {
                let mounted = Arc::clone(&mounted);
                tokio::spawn(async move { mounted.read("f").await })
            })
            .collect();
        for reader in readers {
            assert!(reader.await.unwrap().unwrap() == bench.content);
        }
        assert_eq!(tokens.issued() - before, 1, "one renewal for 64 readers, refused with {refusal:?}");
        assert_eq!(outages.refusal(), None);
    });
}

#[test]
fn what_cannot_be_had_holds_up_nothing_that_can() {
    let content = Random::new(9).bytes(300_000);
    let layers = ["a", "b"].map(|name| LayerBuilder::new().file(name, content.clone()).packing(Packing::Stored));
    let image = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build();
    let mut bench = Bench::new(Packing::Stored);
    bench.registry.push(NAME, "1", &image);
    bench.image = image;
    runtime().block_on(async {
        let mounted = Arc::new(bench.open(OnOutage::Block).await.unwrap());
        let gate = Gate::new();
        bench.registry.faults().add(Rule::new(bench.blob(), Fault::Hang(gate.clone())));
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let mounted = Arc::clone(&mounted);
                tokio::spawn(async move { mounted.read("a").await })
            })
            .collect();
        for _ in 0..20 {
            assert!(mounted.read("b").await.unwrap() == content);
        }
        assert!(waiting.iter().all(|reader| !reader.is_finished()));
        bench.registry.faults().clear();
        gate.open();
        for reader in waiting {
            assert!(reader.await.unwrap().unwrap() == content);
        }
    });
}

#[test]
fn a_layer_that_another_process_reads_is_waited_for_by_policy() {
    for policy in [DEADLINE, OnOutage::Offline] {
        let bench = Bench::new(Packing::GZIP);
        let other = bench.store().try_lock_pass(bench.layer()).unwrap();
        other.note(1000);
        runtime().block_on(async {
            let mounted = bench.open(policy).await.unwrap();
            let told = image::chain(&mounted.read("f").await.unwrap_err());
            let pid = std::process::id();
            assert!(told.contains(&format!("process {pid} is reading it and has 1000 of")), "{told}");
            let status = mounted.source.outages().unwrap().status();
            assert!(status[0].what.contains(bench.layer().hex()), "{status:?}");
            drop(other);
            assert!(mounted.read_when_well("f").await == bench.content);
            mounted.waits_for_nothing().await;
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_began_before_the_mount_was_up_follows_the_policy() {
    let bench = Bench::new(Packing::GZIP);
    let source = bench.source(OnOutage::Block) as Arc<dyn BlobSource>;
    let layer = &bench.image.layers()[0];
    let pass = FirstPass {
        layer: LayerRef {
            blob: built::descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.blob),
            diff_id: Some(layer.diff_id.clone()),
            payload: Payload::Tar(Compression::Gzip),
            soci: None,
        },
        codec_limits: Limits::default().codec,
        layer_limits: Limits::default().layer,
    };
    let freed = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        source.outages().unwrap().retry_without_limit(OnOutage::Block);
        tokio::time::sleep(Duration::from_secs(600)).await;
    };
    pass.wait_for(&source, freed, || "no progress".to_owned()).await.unwrap();
}

#[test]
fn a_layer_that_another_mount_reads_is_waited_for_by_policy() {
    let bench = Bench::new(Packing::GZIP);
    runtime().block_on(async {
        let shared_layers = bench.store().into();
        let first = bench.open_beside(&shared_layers, OnOutage::Block).await.unwrap();
        let second = bench.open_beside(&shared_layers, DEADLINE).await.unwrap();
        let gate = Gate::new();
        bench.registry.faults().add(Rule::new(bench.blob(), Fault::Hang(gate.clone())));
        let waiting = tokio::spawn(async move { first.read("f").await });
        while !bench.registry.requests().iter().any(|found| found.request.path.ends_with(bench.layer().hex())) {
            tokio::task::yield_now().await;
        }
        let read = tokio::time::timeout(Duration::from_secs(30), second.read("f")).await;
        let told = image::chain(&read.expect("no longer than its policy says").unwrap_err());
        assert!(told.contains("another mount is reading it and has 0 of"), "{told}");
        bench.registry.faults().clear();
        gate.open();
        assert!(waiting.await.unwrap().unwrap() == bench.content);
        assert!(second.read_when_well("f").await == bench.content);
        second.waits_for_nothing().await;
    });
}

#[test]
fn a_real_mount_tells_what_it_waits_for_heals_and_unmounts() {
    if cannot_mount() {
        return;
    }
    let mut bench = Bench::new(Packing::Zstd { level: 1, frame: Some(200_000), skippable: false });
    let reference = bench.registry.reference(NAME, "1");
    let sandbox = Sandbox::new();
    sandbox.mount(&reference, "a").unmount();
    sandbox.drop_content();
    let eio = Some(rustix::io::Errno::IO.raw_os_error());
    let status = |at: &Path, how: &[&str]| said(&sandbox.peelfs(["status"]).args(how).arg(at).output().unwrap());
    for policy in ["deadline=0.5", "offline"] {
        let at = sandbox.mount_point("a");
        let output = at.try_mount(&reference, &["--on-outage", policy, "--prefetch", "none"]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(std::fs::read(at.join("g")).unwrap(), b"behind it");
        bench.stop();
        assert_eq!(std::fs::read(at.join("g")).unwrap(), b"behind it");
        assert_eq!(std::fs::read(at.join("f")).unwrap_err().raw_os_error(), eio, "{policy}");
        // Also when no reader waits and no retries are made any more.
        let told = status(&at.path, &[]);
        assert!(told.contains("failing") && told.contains(bench.layer().hex()) && told.contains("(tried "), "{told}");
        let json = status(&at.path, &["--json"]);
        assert!(json.contains("cannot be fetched: cannot ") && json.contains("connection refused (tried "), "{json}");
        bench.start();
        let begun = Instant::now();
        let read = loop {
            match std::fs::read(at.join("f")) {
                Ok(read) => break read,
                Err(error) => assert!(begun.elapsed().as_secs() < 30, "{error}"),
            }
            support::pause();
        };
        assert!(read == bench.content);
        let told = status(&at.path, &[]);
        assert!(!told.contains("waiting") && !told.contains("failing"), "{told}");
        at.unmount();
        sandbox.drop_content();
    }

    // Gone from the start: what is known is mounted, with a warning, and can be unmounted.
    bench.stop();
    let at = sandbox.mount_point("a");
    let output = at.try_mount(&reference, &["--on-outage", "offline", "--prefetch", "none"]);
    assert!(output.status.success() && said(&output).contains("using the last known target"), "{}", said(&output));
    assert_eq!(std::fs::metadata(at.join("f")).unwrap().len(), 600_000);
    assert_eq!(std::fs::read(at.join("f")).unwrap_err().raw_os_error(), eio);
    at.unmount();
    // What is not known is one error at once.
    let output = at.try_mount(&format!("127.0.0.1:{}/{NAME}:other", bench.port), &[]);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    let output = at.try_mount(&format!("no-such-name.invalid/{NAME}:1"), &[]);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
}

/// Runs these commands against a registry at the same time; what each came to.
fn at_once(sandbox: &Sandbox, reference: &str, policy: &str) -> Vec<(&'static str, std::process::Output)> {
    let to = sandbox.path().join("copy");
    let at = sandbox.mount_point("a");
    let commands: [(&str, Vec<&str>); 5] = [
        ("ls", vec![]),
        ("cat", vec!["/g"]),
        ("cp", vec!["/g", to.to_str().unwrap()]),
        ("inspect", vec![]),
        ("mount", vec![at.path.to_str().unwrap(), "--wait"]),
    ];
    std::thread::scope(|scope| {
        let running: Vec<_> = commands
            .into_iter()
            .filter(|(command, _)| *command != "mount" || !cannot_mount())
            .map(|(command, args)| {
                // Each has its own cache, so that none waits for another.
                let cache = sandbox.path().join(command);
                let mut line = sandbox.peelfs([command, "--on-outage", policy, reference]);
                line.args(args).env("PEELFS_CACHE_DIR", cache);
                (command, scope.spawn(move || line.output().unwrap()))
            })
            .collect();
        running.into_iter().map(|(command, run)| (command, run.join().unwrap())).collect()
    })
}

#[test]
fn every_command_waits_for_a_silent_registry_as_it_is_told() {
    for what in [Target::Manifests, Target::Blobs] {
        let bench = Bench::new(Packing::GZIP);
        let reference = bench.registry.reference(NAME, "1");
        let gate = Gate::new();
        bench.registry.faults().add(Rule::new(what.clone(), Fault::Hang(gate.clone())));
        let sandbox = Sandbox::new();
        let begun = Instant::now();
        // The shortest silence that counts is one of three seconds.
        let runs = at_once(&sandbox, &reference, "deadline=1");
        assert!(begun.elapsed() >= Duration::from_secs(3), "{what:?}");
        let count = runs.len();
        for (command, output) in runs {
            let told = said(&output);
            assert_eq!(output.status.code(), Some(6), "{command}, {what:?}: {told}");
            assert!(told.contains(&format!("127.0.0.1:{}", bench.port)), "{command}, {what:?}: {told}");
            assert!(told.contains("3 s") || told.contains("waited 3."), "{command}, {what:?}: {told}");
            assert!(told.contains("hint: it may still be working on the response"), "{command}, {what:?}: {told}");
        }
        let asked = bench.registry.requests();
        let hung = asked.iter().filter(|asked| !asked.faults.is_empty()).count();
        assert_eq!(hung, count, "{what:?}: each asks once");
        gate.open();
    }
}

/// The content of an image that is known is waited for, also if the registry was away when the command started.
#[test]
fn a_command_waits_until_its_registry_is_back() {
    use std::io::BufRead as _;
    let mut bench = Bench::new(Packing::Zstd { level: 1, frame: Some(200_000), skippable: false });
    let reference = bench.registry.reference(NAME, "1");
    let sandbox = Sandbox::new();
    assert!(sandbox.run(["ls", &reference]).status.success());
    sandbox.drop_content();
    bench.stop();
    let output = sandbox.run(["cat", "--on-outage", "offline", &reference, "/f"]);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    let output = sandbox.run(["cat", "--on-outage", "deadline=1", &reference, "/f"]);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(
        said(&output).contains("connection refused (tried ") && said(&output).contains("waited 1."),
        "{}",
        said(&output)
    );

    let mut command = sandbox.peelfs(["cat", "--on-outage", "block", &reference, "/f"]);
    command.env("PEELFS_LOG", "debug").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut running = command.spawn().unwrap();
    let told = std::io::BufReader::new(running.stderr.take().unwrap());
    let mut lines = told.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("trying again")), "it ended without trying again");
    bench.start();
    // Read on, or the command could wait for its log.
    let rest = std::thread::spawn(move || lines.count());
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout == bench.content);
    rest.join().unwrap();
}

#[test]
fn a_registry_that_is_asked_too_often_is_left_alone() {
    for (after, asks, requests) in [("3600", " and asks to wait 3600 s", 1), ("0", "", 3)] {
        for what in [Target::Manifests, Target::Blobs] {
            let bench = Bench::new(Packing::GZIP);
            let limited = Fault::Status {
                status: 429,
                headers: vec![("Retry-After".to_owned(), after.to_owned())],
                body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#.into(),
            };
            bench.registry.faults().add(Rule::new(what.clone(), limited));
            let sandbox = Sandbox::new();
            let output = sandbox.run(["cat", &bench.registry.reference(NAME, "1"), "/g"]);
            let told = said(&output);
            assert_eq!(output.status.code(), Some(6), "{what:?}: {told}");
            let host = format!("127.0.0.1:{}", bench.port);
            let refusal = "answered 429 Too Many Requests (TOOMANYREQUESTS: slow down)";
            assert!(told.contains(&format!("{host} {refusal}{asks} (tried {requests} time")), "{what:?}: {told}");
            assert!(told.contains("`podman login`"), "{what:?}: {told}");
            let asked = bench.registry.requests();
            assert_eq!(asked.iter().filter(|asked| asked.status == 429).count(), requests, "{what:?}");
        }
    }
}

#[test]
fn few_descriptors_are_enough() {
    let layers = (0..8).map(|number| LayerBuilder::new().file(&format!("f{number}"), vec![number; 100_000]));
    let image = layers.fold(ImageBuilder::new(), ImageBuilder::layer).build();
    let registry = Registry::start(Catalog::new().image(NAME, "1", &image)).unwrap();
    let sandbox = Sandbox::new();
    let wanted = sandbox.peelfs(["cat", &registry.reference(NAME, "1"), "/f0", "/f7"]);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""])
        .arg(wanted.get_program())
        .args(wanted.get_args())
        .env_clear();
    for (name, value) in wanted.get_envs() {
        value.map(|value| command.env(name, value));
    }
    let output = command.output().unwrap();
    assert!(
        output.stdout == [vec![0; 100_000], vec![7; 100_000]].concat(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
