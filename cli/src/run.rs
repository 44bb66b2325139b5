//! `peelfs run`: runs one container with runc or crun, and removes it.
//!
//! This process enters its own mount namespace. A tmpfs there holds all that the container needs: the image with an
//! overlay, `config.json`, the runtime's state. The runtime is a child process on the same terminal; signals and the
//! exit status are passed on. A [guard](super::guard) cleans up, however this process ends.

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::process::{Resource, Signal, getrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use super::args::{AccessArgs, ImageArgs, OpeningArgs};
use super::container::{self, ContainerArgs, ImageVolume, NetworkArg, Plan, ROOTFS};
use super::failures;
use super::guard::STATE;
use super::namespace::{self, Standing};
use super::runtime::{self, FAILED, Refusal, Stderr};
use peelfs::bundle::{BundleOptions, Identity, Limit};
use peelfs::host::error::HostError;
use peelfs::host::report::Report;
use peelfs::host::spec::Writable;
use peelfs::host::{open, process, status};

/// `peelfs run`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Ignored: containers are always removed when they end; changes kept by `--keep` stay
    #[arg(long)]
    pub rm: bool,
    /// Connect stdin to the container
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Make the root file system read-only; volumes stay writable
    #[arg(long)]
    pub read_only: bool,
    /// Keep changes in DIR, for the next container of the image with the same DIR
    #[arg(long, value_name = "DIR", conflicts_with = "read_only")]
    pub keep: Option<PathBuf>,
    /// The container's name; also its host name if it has its own network
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The network of the container
    #[arg(long, alias = "net", value_enum, default_value = "host", value_name = "NETWORK", help_heading = "Container")]
    pub network: NetworkArg,
    /// The container runtime: crun, runc or a path [default: the one that is installed]
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<PathBuf>,
    /// Differences from the image's configuration.
    #[command(flatten)]
    pub container: ContainerArgs,
    /// How its layers are opened.
    #[command(flatten)]
    pub opening: OpeningArgs,
    /// How to reach the image.
    #[command(flatten)]
    pub access: AccessArgs,
    /// The image, and a command to run instead of its own; all arguments after the image belong to the command
    #[arg(value_names = ["IMAGE", "COMMAND"], required = true, num_args = 1.., trailing_var_arg = true)]
    pub line: Vec<String>,
}

/// Runs a container and returns its exit status.
pub(super) fn run(args: &RunArgs) -> Result<u8, Report> {
    let limits = limits();
    let runtime = runtime::find(args.runtime.as_deref())?;
    if args.tty && !std::io::stdin().is_terminal() {
        return Err(Report::usage("stdin is not a terminal").hint("leave out `-t`"));
    }
    let (reference, command) = args.line.split_first().expect("it is required");
    let name = args.name.clone().unwrap_or_else(|| format!("peelfs-{}", std::process::id()));
    // It is a directory's name as well.
    let name = container::host_name("container", &name)?;
    let image_volume = if args.read_only { ImageVolume::Tmpfs } else { ImageVolume::Ignore };
    let options = args.container.options(args.network, image_volume)?;
    let own_name = match args.network {
        NetworkArg::Host => own_hostname().unwrap_or_else(|| name.clone()),
        NetworkArg::None => name.clone(),
    };
    let options = BundleOptions {
        command: (!command.is_empty()).then(|| command.to_vec()),
        terminal: args.tty,
        readonly: args.read_only,
        hostname: Some(options.hostname.clone().unwrap_or(own_name)),
        limits,
        ..options
    };
    let (reference, access) = (reference.clone(), args.access.clone());
    let image = args.container.image(&ImageArgs { reference, opening: args.opening.clone(), access })?;
    let keep = args.keep.as_ref().map(open::absolute);

    let place = Place::enter()?;
    let container = Arc::new(Container::new(Guard::start(&runtime, &place.path, &name)?, place.path.join(STARTED)));
    pass_signals_on(&container)?;
    let made = place.make(args, image, options, keep);
    let finished = made.and_then(|mut made| {
        let finished = container.run(args, &runtime, &place, &name)?;
        let refusal = matches!(finished.ended, Ended::With(1..)).then(|| place.refusal()).flatten();
        let refusal = refusal.or_else(|| match finished.ended {
            // It has written no process number, and said nothing.
            Ended::With(status) if !container.started.exists() => Some(Refusal::Silent(status)),
            _ => None,
        });
        if refusal.is_none() {
            made.keep();
        }
        Ok((finished, refusal, made))
    });
    // Only then nothing of the container holds its stderr, nor the directory that keeps changes.
    container.end();
    let (Finished { ended, stderr }, refusal, made) = finished?;
    let program = made.program.clone();
    drop(made);
    let kept_back = stderr.end();
    Ok(match (ended, refusal) {
        (Ended::By(signal), _) => SIGNALLED + signal.as_raw() as u8,
        (Ended::With(_), Some(refusal)) => {
            if matches!(refusal, Refusal::Silent(_)) {
                // Its log has nothing, so this may say why.
                let _ = std::io::stderr().write_all(&kept_back);
            }
            failures::print(&refusal.report(&runtime, &program));
            refusal.status()
        }
        (Ended::With(status), None) => {
            // Its reader may be gone.
            let _ = std::io::stderr().write_all(&kept_back);
            status
        }
    })
}

/// This machine's host name, for containers on its network.
fn own_hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Limits that this process has changed, restored for the container.
fn limits() -> Vec<Limit> {
    let of = |kind, resource| {
        let found = getrlimit(resource);
        Limit { kind, soft: found.current.unwrap_or(u64::MAX), hard: found.maximum.unwrap_or(u64::MAX) }
    };
    vec![of("RLIMIT_NOFILE", Resource::Nofile), of("RLIMIT_CORE", Resource::Core)]
}

/// The directory of one container, in a mount namespace of this process and its children.
struct Place {
    path: PathBuf,
    standing: Standing,
}

impl Place {
    /// Enters the namespace. No other thread may run yet.
    fn enter() -> Result<Self, Report> {
        let failed = |what| move |errno: rustix::io::Errno| Report::from(HostError::system(what)(errno.into()));
        let run = status::make_directory()?;
        remove_leftovers(&run);
        let standing = namespace::enter()?;
        let path = run.join(format!("{}.{EXTENSION}", std::process::id()));
        container::make_private(&path)?;
        let mounted = rustix::mount::mount("peelfs", &path, "tmpfs", MountFlags::empty(), Some(c"mode=0700"));
        if let Err(errno) = mounted {
            let _ = std::fs::remove_dir(&path);
            return Err(failed("mount a file system in memory")(errno));
        }
        Ok(Self { path, standing })
    }

    /// Whether root here is an ordinary user outside.
    fn is_in_user_namespace(&self) -> bool {
        self.standing != Standing::Root || process::is_in_user_namespace()
    }

    /// Makes the bundle.
    fn make(
        &self,
        args: &RunArgs,
        image: peelfs::host::spec::ImageSpec,
        options: BundleOptions,
        keep: Option<PathBuf>,
    ) -> Result<container::Made, Report> {
        for name in [ROOTFS, STATE, UPPER] {
            container::make_private(&self.path.join(name))?;
        }
        container::make_stubs_directory(&self.path)?;
        let writable = match (args.read_only, keep) {
            (true, _) => None,
            (false, keep) => Some(Writable::Directory(keep.unwrap_or_else(|| self.path.join(UPPER)))),
        };
        let identity = if self.is_in_user_namespace() { Identity::UserNamespace } else { Identity::Root };
        let options = BundleOptions { identity, ..options };
        let only_root = self.standing == Standing::Lone;
        let plan = Plan {
            image,
            args: &args.container,
            only_root,
            options,
            directory: &self.path,
            own: &self.path,
            in_own_namespace: true,
            writable,
            stubs: &[],
            without_command: "give one after the image, as in `peelfs run IMAGE sh`",
            quiet: args.opening.quiet.into(),
        };
        let runtime = process::runtime_of_parent()?;
        let made = plan.make(&runtime);
        runtime.shutdown_background();
        made
    }
}

impl Place {
    /// Why the runtime did not start the program, from its log.
    fn refusal(&self) -> Option<Refusal> {
        let log = std::fs::read(self.path.join(LOG)).ok()?;
        Refusal::in_log(&String::from_utf8_lossy(&log))
    }
}

/// Removes the empty directories of containers whose processes were killed.
fn remove_leftovers(run: &Path) {
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        let path = entry.path();
        let pid = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u32>().ok());
        if let (Some(pid), Some(EXTENSION)) = (pid, path.extension().and_then(|extension| extension.to_str()))
            && (pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists())
        {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// The process that cleans up after the container.
struct Guard {
    process: Child,
    pipe: ChildStdin,
}

impl Guard {
    fn start(runtime: &Path, directory: &Path, name: &str) -> Result<Self, Report> {
        let failed = HostError::system("start the guard process");
        let start = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["host", "guard"]).arg(runtime).arg(directory).arg(name);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let mut process = start().map_err(failed)?;
        let pipe = process.stdin.take().expect("it is piped");
        Ok(Self { process, pipe })
    }

    /// Lets it clean up, and waits for that.
    fn end(self) {
        let Self { mut process, pipe } = self;
        drop(pipe);
        let _ = process.wait();
    }
}

/// A container from its creation to its end.
struct Container {
    state: Mutex<State>,
    /// A file that the runtime makes when the container's program runs.
    started: PathBuf,
    /// The last signal that ends a container, set when it arrives; 0 if none has.
    signal: Arc<AtomicUsize>,
}

struct State {
    guard: Option<Guard>,
    runtime: Option<rustix::process::Pid>,
    /// The number of ending signals so far.
    ends: u32,
    /// What the runtime was killed for.
    killed_for: Option<Signal>,
}

/// A container whose runtime has ended.
struct Finished {
    ended: Ended,
    stderr: Stderr,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    /// With this exit status of the runtime.
    With(u8),
    /// By a signal that came before its program ran, or by SIGKILL after too many.
    By(Signal),
}

impl Container {
    fn new(guard: Guard, started: PathBuf) -> Self {
        let state = State { guard: Some(guard), runtime: None, ends: 0, killed_for: None };
        Self { state: Mutex::new(state), started, signal: Arc::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs it until the runtime has ended.
    fn run(&self, args: &RunArgs, runtime: &Path, place: &Place, name: &str) -> Result<Finished, Report> {
        let failed = |what| move |error| Report::from(HostError::system(what)(error));
        let mut command = Command::new(runtime);
        // Other users usually have no control groups of their own; runc detects that.
        let is_crun = runtime.file_name().is_some_and(|name| name.to_string_lossy().contains("crun"));
        if is_crun && place.is_in_user_namespace() {
            command.arg("--cgroup-manager=disabled");
        }
        let directory = &place.path;
        command.arg("--log").arg(directory.join(LOG));
        // Otherwise crun prints JSON to the user after it has closed the log.
        if !is_crun {
            command.arg("--log-format=json");
        }
        command.arg("--root").arg(directory.join(STATE)).arg("run").arg("--bundle").arg(directory);
        command.arg("--pid-file").arg(&self.started).arg(name).stderr(Stdio::piped());
        if !args.interactive {
            command.stdin(Stdio::null());
        }
        let mut process = {
            let mut state = self.state();
            let process = command.spawn().map_err(failed("start the container runtime"))?;
            state.runtime = rustix::process::Pid::from_raw(process.id().cast_signed());
            if let Some(guard) = &mut state.guard {
                writeln!(guard.pipe, "{}", process.id()).map_err(failed("write to the guard process"))?;
            }
            process
        };
        let stderr = process.stderr.take().expect("it is piped");
        let stderr = Stderr::pass_on(stderr, self.started.clone()).map_err(failed("start a thread"))?;
        let status = process.wait();
        let killed_for = {
            let mut state = self.state();
            state.runtime = None;
            state.killed_for
        };
        // The terminal sends a signal to both, and the runtime may end first.
        let before_start = || Signal::from_named_raw(self.signal.load(Ordering::Relaxed) as i32);
        let killed_for = killed_for.or_else(|| if self.started.exists() { None } else { before_start() });
        let status = status.map_err(failed("wait for the container runtime"))?;
        let code = status.code().unwrap_or_else(|| i32::from(SIGNALLED) + status.signal().unwrap_or_default());
        let ended = killed_for.map_or_else(|| Ended::With(u8::try_from(code).unwrap_or(FAILED)), Ended::By);
        Ok(Finished { ended, stderr })
    }

    /// Returns when everything of it is removed.
    fn end(&self) {
        let guard = self.state().guard.take();
        if let Some(guard) = guard {
            guard.end();
        }
    }

    /// Handles a signal; `from_terminal` if the runtime received it as well.
    ///
    /// If the program does not run yet, it ends the container.
    fn signal(&self, signal: Signal, from_terminal: bool) {
        let ends = ENDING.contains(&signal.as_raw());
        let mut state = self.state();
        state.ends += u32::from(ends);
        match state.runtime {
            Some(runtime) if ends && !self.started.exists() => state.kill(runtime, signal),
            Some(runtime) if state.ends >= ENDS => state.kill(runtime, Signal::KILL),
            Some(_) if from_terminal || !self.started.exists() => {}
            Some(runtime) => {
                // If it has ended, that is noticed soon.
                let _ = rustix::process::kill_process(runtime, signal);
            }
            None if ends => {
                drop(state);
                self.end();
                std::process::exit(i32::from(SIGNALLED) + signal.as_raw());
            }
            None => {}
        }
    }

    /// Whether the runtime runs, and the program does not.
    fn is_starting(&self) -> bool {
        self.state().runtime.is_some() && !self.started.exists()
    }
}

impl State {
    /// Kills the runtime; the guard removes what it has made.
    fn kill(&mut self, runtime: rustix::process::Pid, because: Signal) {
        self.killed_for.get_or_insert(because);
        let _ = rustix::process::kill_process(runtime, Signal::KILL);
    }
}

/// Forwards signals to a container until this process ends.
fn pass_signals_on(container: &Arc<Container>) -> Result<(), Report> {
    let failed = HostError::system("listen to signals");
    for signal in ENDING {
        let seen = Arc::clone(&container.signal);
        signal_hook::flag::register_usize(signal, seen, signal as usize).map_err(&failed)?;
    }
    let mut signals = SignalsInfo::<WithOrigin>::new(PASSED_ON).map_err(&failed)?;
    let container = Arc::clone(container);
    let pass_on = move || {
        loop {
            let mut arrived: Vec<_> = signals.wait().collect();
            // A runtime that has just started would die of it, in ways of its own. So signals wait until the program runs, but
            // not for ever, and a second one that ends the container does so at once.
            let begun = Instant::now();
            while container.is_starting() && begun.elapsed() < STARTED_WITHIN && count_ending(&arrived) < 2 {
                std::thread::sleep(LOOK);
                arrived.extend(signals.pending());
            }
            for origin in arrived {
                // The terminal sends signals to all its processes, including the runtime.
                let from_terminal = matches!(origin.cause, Cause::Kernel);
                if let Some(signal) = Signal::from_named_raw(origin.signal) {
                    container.signal(signal, from_terminal);
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(pass_on).map(drop).map_err(failed)?;
    Ok(())
}

fn count_ending(arrived: &[Origin]) -> usize {
    arrived.iter().filter(|origin| ENDING.contains(&origin.signal)).count()
}

/// Signals that end a container whose program does not run yet.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
/// The exit status of what a signal has ended is larger by this.
const SIGNALLED: u8 = 128;
const PASSED_ON: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
/// Ending signals after which the container is killed.
const ENDS: u32 = 3;
/// How long a signal waits for the program to run.
const STARTED_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);
const UPPER: &str = "upper";
const LOG: &str = "runtime.log";
/// The file with the process number of a container's program.
const STARTED: &str = "pid";
/// In the directory of a container; preceded by the process number.
const EXTENSION: &str = "run";
