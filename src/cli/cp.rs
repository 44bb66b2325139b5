//! stub
use super::args::CpArgs;
use super::report::Report;
pub(super) fn run(_: &CpArgs) -> Result<(), Report> {
    Ok(())
}
