//! stub
use super::args::InspectArgs;
use super::report::Report;
pub(super) fn run(_: &InspectArgs) -> Result<(), Report> {
    Ok(())
}
