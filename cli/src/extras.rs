//! Manual pages, generated from the grammar.

use clap::CommandFactory as _;

use super::args::{Args, ManArgs};
use peelfs::host::report::{Code, Report};

/// Writes `peelfs.1` and a page for each command.
pub(super) fn man(args: &ManArgs) -> Result<(), Report> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Args::command(), directory)).map_err(
        |error| Report::new(Code::Failure, format!("cannot write manual pages to `{}`: {error}", directory.display())),
    )
}
