//! stub
use super::args::{CompletionsArgs, ManArgs};
use super::report::Report;
pub(super) fn completions(_: &CompletionsArgs) -> Result<(), Report> {
    Ok(())
}
pub(super) fn man(_: &ManArgs) -> Result<(), Report> {
    Ok(())
}
