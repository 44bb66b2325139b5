//! Printing of failures.

use super::{progress, text};
use peelfs::host::report::{Code, Report};

/// Prints a failure to stderr: one line, and its hint.
pub(super) fn print(report: &Report) {
    progress::above(|| {
        eprintln!("error: {}", text::printable(report.message.as_bytes()));
        if let Some(hint) = &report.hint {
            eprintln!("hint: {}", text::printable(hint.as_bytes()));
        }
    });
}

/// Collects the failures of a batch; the first one decides the exit code.
#[derive(Debug, Default)]
pub(super) struct Failures {
    first: Option<Code>,
    /// Not printed yet.
    last: Option<Report>,
}

impl Failures {
    /// One more.
    pub(super) fn add(&mut self, report: Report) {
        self.first.get_or_insert(report.code);
        if let Some(before) = self.last.replace(report) {
            print(&before);
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The result of the batch.
    ///
    /// # Errors
    /// The last failure, which the caller prints.
    pub(super) fn outcome(self) -> Result<(), Report> {
        self.last.map_or(Ok(()), |last| Err(Report { code: self.first.unwrap_or(last.code), ..last }))
    }
}
