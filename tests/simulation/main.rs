//! Seeded simulation: several processes on one cache, a network with all its troubles, disks that fill up, fail and
//! stop, losses of power, bytes that rot, and a clock that only the test advances. The real store, content and image
//! code runs, and every answer is compared with the model: it is right, or it is an error that the network's troubles
//! of the moment explain. Damage to the cache explains none. After the troubles, everything works again.
//!
//! `PEELFS_SEEDS=N` tries N seeds instead of 25, `PEELFS_STEPS=N` that many operations of each, `PEELFS_SEED=N` only
//! that one, `PEELFS_TRACE=1` tells what is done. A seed decides which image there is, what is done and what goes
//! wrong, each step by itself. It does not decide how the threads of a first pass or of a fetch take turns: which
//! effect on the disk is the one that fails may differ by a few the next time.

#![allow(clippy::unwrap_used, reason = "a test program")]

macro_rules! trace {
    ($world:expr, $($what:tt)*) => {
        if $world.trace {
            eprintln!("{}: {}", $world.step.load(Ordering::Relaxed), format_args!($($what)*));
        }
    };
}

mod disk;
mod network;
mod questions;
mod threads;
mod troubles;

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io::Read as _;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use peelfs::content::evict_content;
use peelfs::digest::Digest;
use peelfs::image::{self, Eagerness, FsError, ImageFs, Limits, Plan, Prefetch, SharedLayers, Verify};
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, NodeId};
use peelfs::platform::Platform;
use peelfs::source::BlobSource;
use peelfs::source::outage::OnOutage;
use peelfs::store::{Keep, Store};
use peelfs_loopback::image::Packing;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use disk::{Ill, SimulatedDisk};
use network::{Connection, Network, Trouble};
use support::doomed::Loss;
use support::model::{Node, NodeKind};
use support::random::{self, Random, RandomImage, Shape};
use support::shown;
use support::walk::{self, Compare};
use threads::Threads;

/// Counts of events.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct Counts {
    reads: u64,
    cold_reads: u64,
    lookups: u64,
    wholes: u64,
    errors: u64,
    mounts: u64,
    kills: u64,
    power_cuts: u64,
    rotten: u64,
    evictions: u64,
    outages: u64,
    bad_disks: u64,
    healed: u64,
}

/// A process that has mounted the image.
struct Process {
    store: Arc<Store>,
    shared_layers: SharedLayers,
    disk: Arc<SimulatedDisk>,
    mount: Mount,
    /// It may have done so twice; the two change places.
    other: Option<Mount>,
    /// Damages to indexes since it began; a process mends a few of them.
    rotten: u32,
    /// Tasks that run beside the steps.
    beside: Vec<Beside>,
}

/// A mount of the image.
struct Mount {
    plan: Plan,
    connection: Arc<Connection>,
    fs: Arc<ImageFs>,
    policy: OnOutage,
    verify: Verify,
    /// Files that were looked up, as the kernel remembers them.
    nodes: Vec<Option<NodeId>>,
    /// Bytes may have been shown before they were known to be wrong, as was asked for.
    tainted: Arc<AtomicBool>,
}

/// A read that runs beside other steps.
struct Beside {
    begun: Instant,
    read: JoinHandle<Result<(), FsError>>,
}

struct World {
    seed: u64,
    random: Random,
    image: RandomImage,
    files: Arc<Vec<(Vec<u8>, Bytes)>>,
    paths: Vec<Vec<u8>>,
    layers: Vec<Digest>,
    network: Arc<Network>,
    dir: tempfile::TempDir,
    processes: Vec<Option<Process>>,
    /// Disks of processes that are gone, with what they remember.
    past: Vec<Arc<SimulatedDisk>>,
    /// Counts what is done to disks and networks.
    activity: Arc<AtomicU64>,
    threads: Threads,
    counts: Counts,
    trace: bool,
    step: Arc<AtomicU64>,
    buf: Vec<u8>,
}

impl Process {
    fn is_tainted(&self) -> bool {
        let tainted = |mount: &Mount| mount.tainted.load(Ordering::Relaxed);
        tainted(&self.mount) || self.other.as_ref().is_some_and(tainted)
    }
}

impl World {
    fn new(seed: u64, threads: Threads, step: Arc<AtomicU64>) -> Self {
        let shape = Shape {
            layers: 4,
            entries: 16,
            large: [20_000, 400_000][usize::from(seed.is_multiple_of(4))],
            packings: vec![
                Packing::Stored,
                Packing::Gzip { level: 1, member: None },
                Packing::Gzip { level: 1, member: Some(30_000) },
                Packing::Zstd { level: 1, frame: Some(50_000), skippable: true },
            ],
            ..Shape::default()
        };
        // Few have no file at all.
        let images = (0..).map(|nth: u64| random::image(seed + (nth << 32), &shape));
        let has_files = |image: &RandomImage| {
            let is_file = |node: &Node| matches!(&node.kind, NodeKind::File(content) if !content.is_empty());
            image.tree.seen().values().any(|seen| is_file(&seen.node))
        };
        let image = { images }.find(has_files).expect("one of endlessly many");
        let seen = image.tree.seen();
        let files = seen.iter().filter_map(|(path, seen)| match &seen.node.kind {
            NodeKind::File(content) => Some((path.clone(), content.clone())),
            _ => None,
        });
        let files: Arc<Vec<(_, Bytes)>> = Arc::new(files.collect());
        let longest = files.iter().map(|(_, content)| content.len()).max().unwrap_or(0);
        let paths = seen.keys().cloned().collect();
        let activity = Arc::default();
        let network = Network::new(&image.image, &activity);
        let layers = image.image.layers().iter().map(|layer| layer.digest.clone()).collect();
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self {
            seed,
            random: Random::new(seed),
            image,
            files,
            paths,
            layers,
            network,
            dir,
            processes: (0..PROCESSES).map(|_| None).collect(),
            past: Vec::new(),
            activity,
            threads,
            counts: Counts::default(),
            trace: std::env::var_os("PEELFS_TRACE").is_some(),
            step,
            buf: vec![0; longest + 4_096],
        }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// What `wanted` comes to, in simulated time that passes whenever nothing else can happen; `None` when that takes
    /// more than `patience`.
    async fn within<T>(&self, patience: Duration, wanted: impl Future<Output = T>) -> Option<T> {
        let mut wanted = pin!(wanted);
        let begun = Instant::now();
        let (mut seen, mut quiet, mut stride) = (self.activity.load(Ordering::Relaxed), 0, SHORTEST_STRIDE);
        loop {
            if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(wanted.as_mut().poll(cx))).await {
                return Some(done);
            }
            // All tasks that can go on do so before this one.
            tokio::task::yield_now().await;
            let now = self.activity.load(Ordering::Relaxed);
            if now != seen {
                (seen, quiet, stride) = (now, 0, SHORTEST_STRIDE);
                thread::yield_now();
            } else if self.threads.are_busy() {
                quiet = 0;
                thread::sleep(LOOK);
            } else {
                quiet += 1;
            }
            if quiet < QUIET_LOOKS {
                continue;
            }
            if begun.elapsed() > patience {
                return None;
            }
            tokio::time::advance(stride).await;
            stride = (stride * 2).min(LONGEST_STRIDE);
            quiet = 0;
        }
    }

    /// As [`World::within`], for what must end.
    async fn done<T>(&self, what: impl Display, wanted: impl Future<Output = T>) -> T {
        match self.within(ENDLESS, wanted).await {
            Some(done) => done,
            None => panic!("{what} takes for ever"),
        }
    }

    /// Lets time pass, and tasks that wait for it do what they have to; only what goes beyond [`STROLL`] is a leap.
    async fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        self.within(time.min(STROLL), std::future::pending::<()>()).await;
        let leap = end.saturating_duration_since(Instant::now()).saturating_sub(STROLL);
        tokio::time::advance(leap).await;
        let rest = end.saturating_duration_since(Instant::now());
        self.within(rest, std::future::pending::<()>()).await;
    }

    /// A process mounts the image; it may be one that does not get far.
    async fn mount(&mut self, at: usize) {
        self.counts.mounts += 1;
        let left = if self.random.chance(15) { 1 + self.random.below(120) as u64 } else { u64::MAX };
        let attic = self.random.chance(20).then(|| self.dir.path().join(format!("attic-{}", self.counts.mounts)));
        attic.iter().for_each(|attic| std::fs::create_dir(attic).unwrap());
        let disk = SimulatedDisk::new(left, self.random.next(), attic.as_deref(), &self.activity);
        let limit = self.random.chance(30).then(|| 10_000 + self.random.below(1_000_000) as u64);
        let Ok(store) = Store::open_watched(&self.cache(), limit, Arc::clone(&disk) as _) else { return };
        if self.random.chance(20) {
            disk.fall(self.an_illness());
        }
        let store = Arc::new(store);
        let begun = Instant::now();
        let connection = Connection::new(&self.network);
        let source = Arc::clone(&connection) as Arc<dyn BlobSource>;
        let reference = "127.0.0.1:1/image:1".parse().unwrap();
        let platform = Platform::host();
        let resolving = image::resolve(&reference, &source, &store, &platform, image::Network::Allowed);
        let plan = match self.done("resolving", resolving).await {
            Ok(plan) => plan,
            Err(error) => {
                assert!(self.network.excuses(begun), "cannot resolve: {}", image::chain(&error));
                return;
            }
        };
        let shared_layers = SharedLayers::from(Arc::clone(&store));
        let mount = self.open(at, plan, connection, &shared_layers);
        trace!(self, "{at}: limit {limit:?}, dies after {left}");
        self.processes[at] =
            Some(Process { store, shared_layers, disk, mount, other: None, rotten: 0, beside: Vec::new() });
    }

    fn open(&mut self, at: usize, plan: Plan, connection: Arc<Connection>, shared_layers: &SharedLayers) -> Mount {
        let eagerness = self.random.pick(&[Eagerness::Background, Eagerness::OnDemand]);
        let verify = if self.random.chance(20) { Verify::Behind } else { Verify::BeforeShowing };
        let source = Arc::clone(&connection) as Arc<dyn BlobSource>;
        let fs = image::open(&plan, source, shared_layers.clone(), &Limits::default(), eagerness, verify);
        let patience = Duration::from_secs(1 + self.random.below(90) as u64);
        let policy = self.random.pick(&[OnOutage::Offline, OnOutage::Block, OnOutage::Deadline(patience)]);
        connection.outages().unwrap().retry_without_limit(policy);
        trace!(self, "{at} mounts: {eagerness:?} {verify:?} {policy:?}");
        let tainted = verify == Verify::Behind && self.network.trouble().is_some_and(Trouble::lies);
        let (nodes, tainted) = (vec![None; self.files.len()], Arc::new(AtomicBool::new(tainted)));
        Mount { plan, connection, fs, policy, verify, nodes, tainted }
    }

    /// A process mounts the image once more, keeps its other mount, or ends that one.
    fn turn_to_other(&mut self, at: usize) {
        let process = self.processes[at].as_ref().unwrap();
        if process.other.is_none() {
            let (plan, shared_layers) = (process.mount.plan.clone(), process.shared_layers.clone());
            let other = self.open(at, plan, Connection::new(&self.network), &shared_layers);
            self.processes[at].as_mut().unwrap().other = Some(other);
        }
        let ends = self.random.chance(20);
        trace!(self, "{at} turns to its other mount; ends the first: {ends}");
        let process = self.processes[at].as_mut().unwrap();
        let other = process.other.as_mut().expect("there is one");
        std::mem::swap(&mut process.mount, other);
        if ends {
            other.fs.keep_profiles();
            other.fs.end();
            process.other = None;
            // Those who read there get no answer.
            process.beside.drain(..).for_each(|beside| beside.read.abort());
        }
    }

    /// A process ends, well or not, and returns when nothing of it is left.
    async fn end(&mut self, at: usize, how: Ending) {
        let Some(process) = self.processes[at].take() else { return };
        trace!(self, "{at} ends: {how:?}");
        match how {
            Ending::Unmount => process.mount.fs.keep_profiles(),
            Ending::Kill => process.disk.fall(Ill::Gone),
        }
        process.mount.fs.end();
        process.other.iter().for_each(|other| other.fs.end());
        for beside in &process.beside {
            beside.read.abort();
        }
        let left = Arc::downgrade(&process.store);
        self.past.push(Arc::clone(&process.disk));
        drop(process);
        self.done("ending", async {
            while left.strong_count() > 0 {
                tokio::task::yield_now().await;
                thread::sleep(LOOK);
            }
        })
        .await;
    }

    /// The process that a step is about; dead ones are replaced.
    async fn process(&mut self) -> Option<usize> {
        let at = self.random.below(self.processes.len());
        if self.processes[at].as_ref().is_some_and(|process| process.disk.is_dead()) {
            self.counts.kills += 1;
            self.end(at, Ending::Kill).await;
        }
        if self.processes[at].is_none() {
            self.mount(at).await;
        }
        self.processes[at].is_some().then_some(at)
    }

    /// Something has failed that began at `begun`: there is a reason, or it is a mistake.
    async fn excuse(&mut self, at: usize, what: impl Display, begun: Instant, error: &FsError) {
        self.counts.errors += 1;
        let process = self.processes[at].as_ref().unwrap();
        trace!(self, "{at} fails: {what}: {}", image::chain(error));
        let tainted = process.is_tainted();
        let excused = self.network.excuses(begun) || tainted || process.rotten >= MENDED;
        assert!(excused, "{what} of process {at}: {}", image::chain(error));
        if tainted || process.rotten >= MENDED {
            self.end(at, Ending::Unmount).await;
        }
        if self.random.chance(60) {
            // Boxed, as it may read again.
            Box::pin(self.calm()).await;
        }
    }

    /// Something that began at `begun` goes on and on, as was asked for.
    fn is_patient(&self, at: usize, what: &str, begun: Instant) {
        let process = self.processes[at].as_ref().unwrap();
        let excused = process.mount.policy == OnOutage::Block && self.network.excuses(begun);
        let waits = process.mount.connection.outages().unwrap().status();
        let layers: Vec<_> =
            process.mount.fs.layer_status().iter().map(|layer| (layer.state, layer.received)).collect();
        assert!(excused, "{what} of process {at} takes for ever: layers {layers:?}, waiting for {waits:?}");
    }

    /// The network works again.
    async fn calm(&mut self) {
        trace!(self, "the network is well");
        self.network.set_trouble(None);
        for at in 0..self.processes.len() {
            if self.processes[at].as_ref().is_some_and(Process::is_tainted) {
                self.end(at, Ending::Unmount).await;
            }
        }
        if self.random.chance(30) {
            self.be_well().await;
        }
    }

    /// A while after the last trouble, every mount that was there all the time shows everything.
    async fn be_well(&mut self) {
        if self.network.trouble().is_some() {
            return;
        }
        self.pass(STROLL).await;
        for at in 0..self.processes.len() {
            let Some(process) = &self.processes[at] else { continue };
            if process.disk.is_dead() || process.rotten >= MENDED {
                continue;
            }
            let fs = Arc::clone(&process.mount.fs);
            if let Err(error) = self.done("knowing all layers", fs.all_known()).await {
                panic!("process {at} is not well again: {}", image::chain(&error));
            }
            for number in 0..self.files.len() {
                let length = self.files[number].1.len();
                self.read(at, number, 0, length).await;
            }
            self.counts.healed += 1;
        }
    }

    async fn step(&mut self, number: u64) {
        self.random = Random::new(self.seed.wrapping_mul(0x1_0000_0001).wrapping_add(number << 20));
        let Some(at) = self.process().await else {
            // The source is in trouble, and no reader can begin.
            if self.random.chance(20) {
                self.calm().await;
            }
            return;
        };
        match self.random.below(10_000) {
            0..30 => self.disturb(at).await,
            30..40 => self.read_beside(at),
            40..80 => self.look_beside(at).await,
            80..200 => self.look_up(at).await,
            200..250 => self.give_whole(at).await,
            _ => {
                let number = self.random.below(self.files.len());
                let from = self.random.below(1 + self.files[number].1.len());
                let most = if self.random.chance(1) { self.buf.len() } else { 4_096 };
                let length = 1 + self.random.below(most);
                self.read(at, number, from, length).await;
            }
        }
    }

    /// Everything is well: all mounts that are there show all there is, as does a new one, and nothing is left over.
    async fn heal(&mut self) {
        self.random = Random::new(self.seed);
        self.network.set_trouble(None);
        for at in 0..self.processes.len() {
            if self.processes[at].as_ref().is_some_and(Process::is_tainted) {
                self.end(at, Ending::Kill).await;
            }
        }
        self.be_well().await;
        for at in 0..self.processes.len() {
            self.end(at, Ending::Unmount).await;
        }
        let store = Arc::new(Store::open(&self.cache(), None).unwrap());
        let connection = Connection::new(&self.network) as Arc<dyn BlobSource>;
        let fs = async {
            let reference = "127.0.0.1:1/image:1".parse().unwrap();
            let platform = Platform::host();
            let plan = image::resolve(&reference, &connection, &store, &platform, image::Network::Allowed);
            let plan = plan.await.unwrap();
            let (limits, source) = (Limits::default(), Arc::clone(&connection));
            image::open(&plan, source, Arc::clone(&store), &limits, Eagerness::Background, Verify::BeforeShowing)
        };
        let fs = self.done("the last mount", fs).await;
        let mut random = self.random.clone();
        let got = self.done("the last walk", shown::seen(fs.clone(), &mut random)).await;
        let wrong = walk::differences(&self.image.tree.seen(), &got, Compare::Exactly);
        assert!(wrong.is_empty(), "at the end:\n{}", wrong.join("\n"));
        store.tidy().unwrap();
        assert_eq!(std::fs::read_dir(self.cache().join("tmp")).unwrap().count(), 0, "temporary files are left");
    }
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Unmount,
    Kill,
}

/// Says which seed it was.
struct Telling(u64, Arc<AtomicU64>);

impl Drop for Telling {
    fn drop(&mut self) {
        if thread::panicking() {
            let step = self.1.load(Ordering::Relaxed);
            eprintln!("seed {} failed in step {step}: PEELFS_SEED={0} tries it again", self.0);
        }
    }
}

fn simulate(seed: u64, steps: u64) -> Counts {
    let step = Arc::new(AtomicU64::new(0));
    let _telling = Telling(seed, Arc::clone(&step));
    let threads = Threads::new();
    threads.runtime().block_on(async {
        let mut world = World::new(seed, threads.clone(), Arc::clone(&step));
        trace!(world, "the image:\n{}", world.image.listing());
        for number in 0..steps {
            step.store(number, Ordering::Relaxed);
            world.step(number).await;
        }
        world.heal().await;
        world.counts
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Tries seeds, each in a process of its own: what goes on in one must not look to another as if nothing did.
#[test]
fn every_seed_shows_what_the_model_says_or_why_it_cannot() {
    let steps = number("PEELFS_STEPS").unwrap_or(100_000);
    if let Some(seed) = number("PEELFS_SEED") {
        let counts = simulate(seed, steps);
        println!("\n{COUNTED}{}", serde_json::to_string(&counts).unwrap());
        return;
    }
    let seeds = number("PEELFS_SEEDS").unwrap_or(25);
    let (next, outcome) = (AtomicU64::new(0), Mutex::new((Counts::default(), Vec::new())));
    let try_one = |seed: u64| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]);
        let output = command.env("PEELFS_SEED", seed.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        match said.lines().find_map(|line| line.strip_prefix(COUNTED)) {
            Some(counts) if output.status.success() => Ok(serde_json::from_str::<Counts>(counts).unwrap()),
            _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 * thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let tried = try_one(seed);
                    let (counts, failed) = &mut *outcome.lock().unwrap();
                    tried.map_or_else(|why| failed.push(why), |more| counts.add(&more));
                }
            });
        }
    });
    let (counts, failed) = outcome.into_inner().unwrap();
    eprintln!("{seeds} seeds of {steps} operations: {counts:?}");
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n"));
}

impl Counts {
    fn add(&mut self, more: &Self) {
        let Self { reads, cold_reads, lookups, wholes, errors, mounts, kills, power_cuts, rotten, .. } = more;
        self.reads += reads;
        self.cold_reads += cold_reads;
        self.lookups += lookups;
        self.wholes += wholes;
        self.errors += errors;
        self.mounts += mounts;
        self.kills += kills;
        self.power_cuts += power_cuts;
        self.rotten += rotten;
        self.evictions += more.evictions;
        self.outages += more.outages;
        self.bad_disks += more.bad_disks;
        self.healed += more.healed;
    }
}

const NAME: &str = "every_seed_shows_what_the_model_says_or_why_it_cannot";
/// Before what a process of one seed has counted.
const COUNTED: &str = "counted: ";
const PROCESSES: usize = 3;
/// Between two looks at whether threads are done.
const LOOK: Duration = Duration::from_micros(50);
/// Looks at which nothing has happened and no task is busy, before time passes.
const QUIET_LOOKS: u32 = 2;
/// How far time goes on when nothing happens: at first, and at most.
const SHORTEST_STRIDE: Duration = Duration::from_millis(1);
const LONGEST_STRIDE: Duration = Duration::from_secs(5);
/// Whatever may end in an error has to end in this time.
const ENDLESS: Duration = Duration::from_secs(600);
/// Time that passes in steps, longer than any pause between tries.
const STROLL: Duration = Duration::from_secs(70);
/// After so long a reader that would wait for ever is sent away.
const INTERRUPTED: Duration = Duration::from_secs(100);
/// So many damages to its indexes a process mends for certain.
const MENDED: u32 = 8;
