//! Commands that look into an image without mounting it, and what they share: one way to open an image, to name a path
//! in it, to walk it and to print.

pub(super) mod args;
pub(super) mod cat;
pub(super) mod diff;
pub(super) mod du;
pub(super) mod expression;
pub(super) mod find;
pub(super) mod grep;
mod history;
pub(super) mod layers;
pub(super) mod ls;
pub(super) mod open;
pub(crate) mod out;
mod owners;
mod printf;
pub(super) mod stat;
pub(super) mod sums;
pub(super) mod tree;
pub(super) mod walk;
pub(super) mod which;

use std::io;

use peelfs::host::report::Report;
use peelfs::image::FsError;

use super::text;

/// Why a command cannot go on.
pub(super) enum Stop {
    /// A failure for the user.
    Failed(Report),
    /// The output cannot be written.
    Output(io::Error),
    /// The result is known.
    Enough,
}

impl From<FsError> for Stop {
    fn from(error: FsError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Report> for Stop {
    fn from(report: Report) -> Self {
        Self::Failed(report)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Stop {
    /// The result of a command that stopped; a closed output is no failure.
    fn outcome(self) -> Result<(), Report> {
        match self {
            Self::Failed(report) => Err(report),
            Self::Output(error) => text::output_ended(&error),
            Self::Enough => Ok(()),
        }
    }
}
