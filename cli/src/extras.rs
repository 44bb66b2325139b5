//! Completion scripts and manual pages, generated from the grammar.

use std::io::Write as _;

use clap::CommandFactory as _;

use super::args::{Args, CompletionsArgs, ManArgs};
use super::text;
use peelfs::host::report::{Code, Report};

/// Prints a completion script.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Report> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "peelfs", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script).and_then(|()| out.flush()).or_else(|error| text::output_ended(&error))
}

/// Writes `peelfs.1` and a page for each command.
pub(super) fn man(args: &ManArgs) -> Result<(), Report> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Args::command(), directory)).map_err(
        |error| Report::new(Code::Failure, format!("cannot write manual pages to `{}`: {error}", directory.display())),
    )
}
