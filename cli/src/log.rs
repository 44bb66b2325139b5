//! The log: warnings and errors on stderr; `PEELFS_LOG=info` or `debug` writes more.
//!
//! In the background, stderr is the log file and each line has a time. Repeated lines are counted ([`Repeats`]), and a
//! log in the runtime directory does not exceed [`LARGEST_LOG`].

use std::io::{self, Write};
use std::sync::LazyLock;

use rustix::fs::{fstat, ftruncate};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use super::args::{Command, HostCommand};
use super::progress;
use super::repeats::{Counted, Repeats};
use peelfs::host::{background, failures};

/// fuser warns at every unmount by another process, which is the usual case.
const DEFAULT: &str = "warn,fuser=error";

/// The target of failed requests.
const FAILURE: &str = "peelfs::failure";

/// Size limit in bytes of a log in the runtime directory; it is truncated then.
const LARGEST_LOG: i64 = 4 << 20;

static REPEATS: LazyLock<Repeats> = LazyLock::new(Repeats::default);

/// Starts logging for this process.
pub(crate) fn start(command: &Command) {
    let in_background = match command {
        Command::Host(args) => match args.command {
            HostCommand::Keeper { in_background, .. }
            | HostCommand::Server { in_background }
            | HostCommand::Alone { in_background }
            | HostCommand::Cover { in_background } => in_background,
            HostCommand::Guard { .. } => true,
            HostCommand::StoreGuard { .. } | HostCommand::Namespace => false,
        },
        _ => false,
    };
    let asked_for = EnvFilter::try_from_env("PEELFS_LOG");
    let wanted = Wanted { all: asked_for.is_ok() };
    let format = fmt::format().with_target(false);
    let log = if in_background {
        let log = fmt::layer().with_ansi(false).event_format(Counted(format.with_ansi(false)));
        log.with_writer(|| Log).boxed()
    } else {
        use std::io::IsTerminal as _;
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let log = fmt::layer().with_ansi(colours).event_format(Counted(format.with_ansi(colours).without_time()));
        log.with_writer(|| Terminal).boxed()
    };
    // A line of the log would stand in the middle of the screen.
    let default = if matches!(command, Command::Top(_)) { "off" } else { DEFAULT };
    let level = asked_for.unwrap_or_else(|_| EnvFilter::new(default));
    // Fails only if a log was started before, as in tests that run several commands.
    let _ = tracing_subscriber::registry().with(level).with(log.with_filter(wanted)).try_init();
}

/// Logs the counts of repeated lines that were not written.
pub(crate) fn end() {
    for line in REPEATS.rest() {
        // A failed write at exit is ignored.
        let _ = writeln!(Log, "{line}");
    }
}

/// Which events are written.
struct Wanted {
    /// Also events that are reported elsewhere.
    all: bool,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for Wanted {
    fn enabled(&self, event: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.all || event.target() != FAILURE || failures::are_logged()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        REPEATS.admit(event)
    }
}

/// The terminal of a command, above the bar that shows its progress.
struct Terminal;

impl Write for Terminal {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::above(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The log of a background process.
struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut log = io::stderr().lock();
        if background::log_is_own() {
            let size = fstat(&log).map_or(0, |found| found.st_size);
            if size > LARGEST_LOG && ftruncate(&log, 0).is_ok() {
                writeln!(log, "log truncated at {} MiB", size >> 20)?;
            }
        }
        log.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
