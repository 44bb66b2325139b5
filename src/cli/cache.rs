//! stub
use super::args::CacheArgs;
use super::report::Report;
pub(super) fn run(_: &CacheArgs) -> Result<(), Report> {
    Ok(())
}
