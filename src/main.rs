//! The `peelfs` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    peelfs::cli::run(std::env::args_os())
}
