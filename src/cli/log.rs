//! The log: warnings and errors on stderr, more with `PEELFS_LOG=info` or `debug`.
//!
//! In the background stderr is the log file, and there each line carries its time.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, filter};

use super::args::Command;

/// fuser warns at every unmount that somebody else made, which is how mounts usually end.
const DEFAULT: &str = "warn,fuser=error";

/// The target of what was wanted and cannot be had.
const FAILURE: &str = "peelfs::failure";

/// Whether nobody else tells of failures: other commands than mounts tell in their own words why they failed, once, and so
/// does a mount that waits for all layers until they are there.
static FAILURES_ARE_LOGGED: AtomicBool = AtomicBool::new(false);

/// Starts logging for this process.
pub(crate) fn start(command: &Command) {
    let in_background = matches!(command, Command::Mount(args) if args.background_child);
    let told = match command {
        Command::Mount(args) => args.wait && !args.share,
        _ => true,
    };
    FAILURES_ARE_LOGGED.store(!told, Ordering::Relaxed);
    let asked_for = EnvFilter::try_from_env("PEELFS_LOG");
    let all = asked_for.is_ok();
    let wanted = filter::dynamic_filter_fn(move |event, _| {
        all || event.target() != FAILURE || FAILURES_ARE_LOGGED.load(Ordering::Relaxed)
    });
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let log = if in_background {
        log.with_ansi(false).boxed()
    } else {
        use std::io::IsTerminal as _;
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        log.with_ansi(colours).without_time().boxed()
    };
    let level = asked_for.unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    // It fails only where a log was started before, as in tests that run several commands.
    let _ = tracing_subscriber::registry().with(level).with(log.with_filter(wanted)).try_init();
}

/// From now on nobody else tells of failures.
pub(crate) fn log_failures() {
    FAILURES_ARE_LOGGED.store(true, Ordering::Relaxed);
}
