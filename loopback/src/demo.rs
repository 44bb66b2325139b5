//! The demo: everything peelfs is for, in under a minute and without a network.
//!
//!     make demo
//!
//! It makes a small image, serves it from a registry of its own on 127.0.0.1, and then does with the
//! `peelfs` program what a user would do, line by line. What each step costs is taken from the records
//! of the registry, not from what peelfs says of itself. Every answer is checked; one that is wrong
//! ends the demo with an error. Cache and mount point lie in a temporary directory that goes away.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use peelfs_loopback::image::Image;
use peelfs_loopback::registry::{Catalog, Registry};
use peelfs_loopback::sample::{GREETING, Sample};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started");
    let place = match tempfile::Builder::new().prefix("peelfs-demo-").tempdir() {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("error: cannot make a temporary directory: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stage = match Stage::new(place.path()) {
        Ok(stage) => stage,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        let play = {
            let stage = stage.clone();
            tokio::task::spawn_blocking(move || play(&stage))
        };
        tokio::select! {
            done = play => done.unwrap_or_else(|panic| bail!("the demo itself broke: {panic}")),
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    });
    stage.clear();
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The demo itself.
fn play(stage: &Stage) -> anyhow::Result<()> {
    let sample = Sample::build();
    let registry = Registry::start(Catalog::new().image("demo/sample", "latest", &sample.image))
        .context("cannot start a registry on 127.0.0.1")?;
    let image = registry.reference("demo/sample", "latest");
    let size = blob_bytes(&sample.image);
    let meter = Meter { registry: &registry, size };
    say(&format!("A registry on 127.0.0.1 serves {image}"));
    let (layers, unpacked) =
        (sample.image.layers(), sample.image.layers().iter().map(|layer| layer.tar.len() as u64).sum());
    note(&format!("{} layers, {} compressed, {} unpacked", layers.len(), human(size), human(unpacked)));

    say("Mount it: the command returns at once, layers are read and verified behind it");
    stage.peelfs(&["mount", &image, MOUNT])?;
    let listed = stage.shell(&format!("ls -C {MOUNT} {MOUNT}/usr/share/doc"))?;
    ensure!(listed.contains("var") && listed.contains("first.txt"), "the listing lacks what the image has");

    say("The third layer removed `etc/old.conf`, replaced `etc/os-release` and began `var/cache` anew");
    stage.absent(&format!("{MOUNT}/etc/old.conf"))?;
    let release = stage.shell(&format!("cat {MOUNT}/etc/os-release"))?;
    ensure!(release.contains("VERSION_ID=2"), "a lower layer shows through: {release}");
    let cache = stage.shell(&format!("ls {MOUNT}/var/cache"))?;
    ensure!(cache.trim() == "fresh", "an opaque directory shows what is below it: {cache}");

    say("Run programs from the mount");
    run_programs(stage, &sample)?;
    stage.peelfs(&["umount", MOUNT])?;
    meter.tell();
    note("every layer was read once, verified, and indexed: names, and places where decoding can begin");

    say("Mount it again: what was verified once is not asked for again");
    registry.clear();
    stage.peelfs(&["mount", &image, MOUNT])?;
    run_programs(stage, &sample)?;
    ensure!(meter.fetched() == 0, "the second mount asked for {} bytes of layers", meter.fetched());
    meter.tell();
    stage.peelfs(&["umount", MOUNT])?;

    say("Give the disk space back, keep the indexes: from now on only what is read is fetched");
    stage.peelfs(&["cache", "prune", "--content"])?;
    registry.clear();
    // Otherwise what was read first at earlier runs comes again by itself.
    stage.peelfs(&["mount", "--prefetch", "none", &image, MOUNT])?;
    let files = stage.shell(&format!("find {MOUNT} | wc -l"))?;
    ensure!(files.trim().parse::<u32>().is_ok_and(|count| count > 1000), "the image has more names than {files}");
    ensure!(meter.fetched() == 0, "listing asked for {} bytes of layers", meter.fetched());
    read_the_middle(stage, &sample)?;
    ensure!(meter.fetched() > 0, "the content was dropped, and yet nothing was fetched");
    ensure!(meter.fetched() * 4 < size, "reading 64 bytes fetched {} of {size} bytes", meter.fetched());
    meter.tell();
    stage.peelfs(&["umount", MOUNT])?;

    say("Nothing is left behind");
    ensure!(std::fs::read_dir(stage.at.join(MOUNT))?.next().is_none(), "the mount is still there");
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    ensure!(!mounts.contains(&*stage.at.to_string_lossy()), "the mount is still in the kernel's table");
    note("unmounted; the cache of this demo is removed now");
    println!("\nAll of it came out right. Next: `make install`, then `peelfs mount python:3.12-slim DIR`.");
    Ok(())
}

/// The script and the copied program of the sample say what they say on the host.
fn run_programs(stage: &Stage, sample: &Sample) -> anyhow::Result<()> {
    let said = stage.shell(&format!("{MOUNT}/{}", sample.script))?;
    let greeting = std::fs::read_to_string(stage.at.join(MOUNT).join(GREETING)).context("cannot read the greeting")?;
    ensure!(said == greeting, "the script printed {said:?}");
    let Some(program) = &sample.program else { return Ok(()) };
    let said = stage.shell(&format!("{MOUNT}/{program} --version | head -n 1"))?;
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let own = Command::new(&*name).arg("--version").output().with_context(|| format!("cannot run `{name}`"))?;
    ensure!(own.stdout.starts_with(said.as_bytes()), "`{name}` of the image and of this machine differ");
    Ok(())
}

/// A few bytes from the middle of the large file, compared with what was put there.
fn read_the_middle(stage: &Stage, sample: &Sample) -> anyhow::Result<()> {
    const LENGTH: usize = 64;
    let file = sample.large_file;
    let from = sample.large_content.len() / 2;
    let read = stage.shell(&format!("tail -c +{} {MOUNT}/{file} | head -c {LENGTH}", from + 1))?;
    ensure!(read.as_bytes() == &sample.large_content[from..from + LENGTH], "`{file}` does not hold what was put there");
    Ok(())
}

/// Where the demo takes place.
#[derive(Clone)]
struct Stage {
    /// A temporary directory; commands run in it.
    at: PathBuf,
    program: PathBuf,
}

impl Stage {
    fn new(at: &Path) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let program = own.with_file_name("peelfs");
        ensure!(program.exists(), "{} is not there; `make demo` builds it", program.display());
        for name in [MOUNT, RUN] {
            let path = at.join(name);
            std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(Self { at: at.to_owned(), program })
    }

    /// Runs `peelfs` with these words.
    fn peelfs(&self, words: &[&str]) -> anyhow::Result<()> {
        prompt(&format!("peelfs {}", words.join(" ")));
        let begun = Instant::now();
        let output = self.command(&self.program).args(words).output();
        let output = output.with_context(|| format!("cannot run {}", self.program.display()))?;
        print!("{}", indented(&output.stdout));
        if !output.status.success() {
            bail!("`peelfs {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        if words[0] == "mount" {
            note(&format!("ready after {} ms", begun.elapsed().as_millis()));
        }
        Ok(())
    }

    /// Runs a line of shell and shows what it printed.
    fn shell(&self, line: &str) -> anyhow::Result<String> {
        prompt(line);
        let Output { status, stdout, stderr } =
            self.command(Path::new("/bin/sh")).args(["-c", line]).output().context("cannot run /bin/sh")?;
        print!("{}", indented(&stdout));
        let said = String::from_utf8_lossy(&stderr).trim().to_owned();
        ensure!(status.success() && said.is_empty(), "`{line}` failed ({status}): {said}");
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Lists a path that must not exist.
    fn absent(&self, path: &str) -> anyhow::Result<()> {
        prompt(&format!("ls {path}"));
        let output = self.command(Path::new("ls")).arg(path).output().context("cannot run ls")?;
        ensure!(!output.status.success(), "`{path}` was removed by a layer, but is there");
        print!("{}", indented(&output.stderr));
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.at)
            .env("LC_ALL", "C")
            .env("PEELFS_CACHE_DIR", self.at.join("cache"))
            .env("XDG_RUNTIME_DIR", self.at.join(RUN))
            .env("NO_PROXY", "127.0.0.1")
            // Ctrl-C ends the demo, which then ends what it started.
            .process_group(0);
        for unwanted in ["PEELFS_PLATFORM", "PEELFS_CACHE_SIZE", "PEELFS_INSECURE", "REGISTRY_AUTH_FILE"] {
            command.env_remove(unwanted);
        }
        command
    }

    /// Unmounts what a failed demo left mounted.
    fn clear(&self) {
        let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounted.contains(&*self.at.to_string_lossy()) {
            // The temporary directory is removed afterwards, which fails, and shows, if this did.
            let _ = self.command(&self.program).args(["umount", "--lazy", MOUNT]).status();
        }
    }
}

/// What the registry had to send.
struct Meter<'a> {
    registry: &'a Registry,
    size: u64,
}

impl Meter<'_> {
    fn fetched(&self) -> u64 {
        self.registry.blob_bytes()
    }

    fn tell(&self) {
        let (fetched, requests) = (self.fetched(), self.registry.requests().len());
        let share = fetched as f64 * 100.0 / self.size as f64;
        let plural = if requests == 1 { "" } else { "s" };
        let (fetched, size) = (human(fetched), human(self.size));
        note(&format!("the registry sent {fetched} of {size} ({share:.1} %) in {requests} request{plural}"));
    }
}

fn blob_bytes(image: &Image) -> u64 {
    image.layers().iter().map(|layer| layer.blob.len() as u64).sum()
}

fn say(heading: &str) {
    println!("\n== {heading}");
}

fn prompt(line: &str) {
    println!("   $ {line}");
}

fn note(text: &str) {
    println!("   -- {text}");
}

fn indented(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().map(|line| format!("   {line}\n")).collect()
}

fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

const MOUNT: &str = "sample";
const RUN: &str = "run";
