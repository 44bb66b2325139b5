//! The log: warnings and errors on stderr, more with `PEELFS_LOG=info` or `debug`.
//!
//! In the background stderr is the log file, and there each line carries its time.

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, filter};

use super::args::{Command, HostCommand};
use crate::host::failures;

/// fuser warns at every unmount that somebody else made, which is how mounts usually end.
const DEFAULT: &str = "warn,fuser=error";

/// The target of what was wanted and cannot be had.
const FAILURE: &str = "peelfs::failure";

/// Starts logging for this process.
pub(crate) fn start(command: &Command) {
    let in_background = match command {
        Command::Host(args) => match args.command {
            HostCommand::Keeper { in_background, .. }
            | HostCommand::Server { in_background }
            | HostCommand::Alone { in_background } => in_background,
        },
        _ => false,
    };
    let asked_for = EnvFilter::try_from_env("PEELFS_LOG");
    let all = asked_for.is_ok();
    let wanted = filter::dynamic_filter_fn(move |event, _| all || event.target() != FAILURE || failures::are_logged());
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
