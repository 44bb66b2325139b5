//! `PEELFS_…`: variables of the environment that stand for options.
//!
//! An empty one counts as one that is not set, as scripts and unit files write it. An error about a value that comes from one
//! names it, since the option that it stands for was never typed.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use super::args::Args;

/// Parses a command line.
pub(super) fn parse(line: &[OsString]) -> Result<Args, clap::Error> {
    let mut matches = without_empty(Args::command()).try_get_matches_from(line)?;
    Args::from_arg_matches_mut(&mut matches)
}

/// The command without the variables that are empty.
fn without_empty(command: Command) -> Command {
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None::<&str>) } else { arg });
    command.mut_subcommands(without_empty)
}

/// The variable that an error of `line` is about: its option was not typed.
pub(super) fn named_by(error: &clap::Error, line: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = shown.split([' ', '=', '[']).next().filter(|flag| flag.starts_with("--"))?;
    let is_typed = |word: &OsString| {
        let word = word.to_string_lossy();
        word == flag || word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
    };
    if line.iter().any(is_typed) {
        return None;
    }
    let variable = variable_of(&Args::command(), flag.trim_start_matches("--"))?;
    std::env::var_os(&variable).is_some_and(|value| !value.is_empty()).then_some(variable)
}

fn variable_of(command: &Command, long: &str) -> Option<String> {
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(long)).and_then(clap::Arg::get_env);
    let own = own.map(|name| name.to_string_lossy().into_owned());
    own.or_else(|| command.get_subcommands().find_map(|command| variable_of(command, long)))
}
