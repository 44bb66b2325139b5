//! The log: warnings and errors on stderr; `PEELFS_LOG=info` or `debug` writes more.
//!
//! On stderr a line reads as other messages of a command, and with `PEELFS_LOG` as one of a log.
//!
//! A process in the background has the stderr of the command that started it, be that a terminal, a pipe or a file, until its
//! mount is ready; from then on, stderr is the log file and each line has a time. Repeated lines are counted ([`Repeats`]),
//! and a log in the runtime directory does not exceed [`LARGEST_LOG`].

use std::io::{self, Write};
use std::sync::LazyLock;

use rustix::fs::{fstat, ftruncate};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use super::args::{Command, HostArgs, HostCommand};
use super::repeats::{Counted, Repeats};
use super::{progress, text};
use peelfs::host::{background, failures};

/// fuser warns at every unmount by another process, which is the usual case.
const DEFAULT: &str = "warn,fuser=error,peelfs::note=info";

/// The target of failed requests.
const FAILURE: &str = "peelfs::failure";

/// Size limit in bytes of a log in the runtime directory; it is truncated then.
const LARGEST_LOG: i64 = 4 << 20;

static REPEATS: LazyLock<Repeats> = LazyLock::new(Repeats::default);

/// Starts logging for this process.
pub(crate) fn start(command: &Command) {
    if let Command::Host(HostArgs { command: HostCommand::Cover { in_background: true } }) = command {
        background::inherits_log();
    }
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
    // An empty one would be `off` for all but errors.
    let is_set = std::env::var_os("PEELFS_LOG").is_some_and(|value| !value.is_empty());
    let asked_for = EnvFilter::try_from_env("PEELFS_LOG").ok().filter(|_| is_set);
    let wanted = Wanted { all: asked_for.is_some() };
    let format = fmt::format().with_target(false);
    let log = if in_background {
        let log = fmt::layer().with_ansi(false).with_writer(|| Log);
        match wanted.all {
            true => log.event_format(Counted(format.with_ansi(false))).boxed(),
            false => log.event_format(Counted(InBackground(format.with_ansi(false)))).boxed(),
        }
    } else {
        use std::io::IsTerminal as _;
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let log = fmt::layer().with_ansi(colours).with_writer(|| Terminal);
        match wanted.all {
            true => log.event_format(Counted(format.with_ansi(colours).without_time())).boxed(),
            false => log.event_format(Counted(Told)).boxed(),
        }
    };
    // A line of the log would stand in the middle of the screen.
    let default = if matches!(command, Command::Top(_)) { "off" } else { DEFAULT };
    let level = asked_for.unwrap_or_else(|| EnvFilter::new(default));
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

/// Warnings and errors as a command tells them: one line, as its other messages.
struct Told;

impl<S, N> FormatEvent<S, N> for Told
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let word = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            _ => "note",
        };
        let mut line = Line::default();
        event.record(&mut line);
        let Line { message, cause, others } = line;
        let cause = if cause.is_empty() { cause } else { format!(": {cause}") };
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        writeln!(writer, "{word}: {}", text::printable(format!("{message}{cause}{others}").as_bytes()))
    }
}

/// Lines of a log, once there is one: until then, the process shares the stderr of a command.
struct InBackground<F>(F);

impl<S, N, F> FormatEvent<S, N> for InBackground<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        match background::has_log() {
            true => self.0.format_event(context, writer, event),
            false => Told.format_event(context, writer, event),
        }
    }
}

/// The parts of such a line.
#[derive(Default)]
struct Line {
    message: String,
    cause: String,
    others: Vec<String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "error" => self.cause = format!("{value:?}"),
            name => self.others.push(format!("{name} {value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", peelfs::image::chain(value)));
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
