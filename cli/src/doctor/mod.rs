//! `peelfs doctor`: what works on this machine, what does not, what that costs, and what to do about it.
//!
//! Checks ask what a mount asks, and in the same way: a mount is made, a runtime is started, login files are read by
//! the code that uses them. So there is no second opinion that could differ.

mod cache;
mod check;
mod credentials;
mod kernel;
mod limits;
mod mounting;
mod registry;
mod show;
mod tools;
mod users;

use clap_complete::engine::ArgValueCompleter;

use super::args::{AccessArgs, CacheDirArgs};
use super::{complete, specs};
use check::{Check, Section};
use peelfs::host::report::Report;
use show::Shown;

/// `peelfs doctor`
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// An image to be reached, too: its registry, the login, ranges of its layers
    #[arg(value_name = "IMAGE", add = ArgValueCompleter::new(complete::images))]
    pub reference: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How to reach the image, and where the cache is.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Whether a mount works here, of the named image if there is one.
pub(super) fn run(args: &DoctorArgs) -> Result<bool, Report> {
    // A reference that is none is an error of the command line.
    let image = args.reference.as_deref().map(|reference| specs::image_named(&args.access, reference)).transpose()?;
    let mut shown = Shown::new(args.json);
    let limits = limits::checks();
    // A process that lacks memory for a mount could die in the middle of one, and leave it behind.
    let tried = match limits.iter().any(Check::prevents_mounts) {
        true => mounting::Tried::not("not tried, as the limits of this process are too low"),
        false => mounting::Tried::of(&args.access.cache),
    };
    shown.section(Section { title: "Mounts", checks: mounting::checks(&tried) })?;
    shown.section(Section { title: "Kernel", checks: kernel::checks(tried.offers()) })?;
    shown.section(Section { title: "Limits", checks: limits })?;
    shown.section(Section { title: "Users", checks: users::checks() })?;
    shown.section(Section { title: "Cache", checks: cache::checks(&args.access.cache) })?;
    shown.section(Section { title: "Logins", checks: credentials::checks(args.access.authfile.as_deref()) })?;
    shown.section(Section { title: "Programs", checks: tools::checks() })?;
    if let Some(image) = image {
        shown.section(Section { title: "Image", checks: registry::checks(&image) })?;
    }
    shown.end()
}

/// The cache directory that the arguments name, or the default.
fn cache_dir(args: &CacheDirArgs) -> Result<std::path::PathBuf, Report> {
    specs::cache_dir(args)
}
