//! The log: warnings and errors on stderr, more with `PEELFS_LOG=info` or `debug`.
//!
//! In the background stderr is the log file, and there each line carries its time.

use tracing_subscriber::EnvFilter;

use super::args::Command;

/// fuser warns at every unmount that somebody else made, which is how mounts usually end.
const DEFAULT: &str = "warn,fuser=error";

/// Other commands than mounts tell in their own words why they failed, once.
const DEFAULT_OF_OTHERS: &str = "warn,peelfs::failure=off";

/// Starts logging for this process.
pub(super) fn start(command: &Command) {
    let in_background = matches!(command, Command::Mount(args) if args.background_child);
    let default = if matches!(command, Command::Mount(_)) { DEFAULT } else { DEFAULT_OF_OTHERS };
    let filter = EnvFilter::try_from_env("PEELFS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // It fails only where a log was started before, as in tests that run several commands.
    let _ = if in_background {
        log.with_ansi(false).try_init()
    } else {
        use std::io::IsTerminal as _;
        log.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .without_time()
            .try_init()
    };
}
