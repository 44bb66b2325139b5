//! stub
use super::args::StatusArgs;
use super::report::Report;
pub(super) fn run(_: &StatusArgs) -> Result<(), Report> {
    Ok(())
}
