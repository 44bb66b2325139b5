//! The progress bar of a first pass; shown only on a terminal, after a short delay.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use peelfs::host::Progress;

/// A bar that appears after a delay.
pub(super) struct Bar {
    began: Instant,
    wanted: bool,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar on stderr; hidden unless that is a terminal.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), wanted: std::io::stderr().is_terminal(), bar: None }
    }
}

impl Progress for Bar {
    fn show(&mut self, total: u64, done: u64) {
        if !self.wanted || total == 0 || (self.bar.is_none() && self.began.elapsed() < PATIENCE) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant");
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    fn note(&mut self, note: &str) {
        eprintln!("note: {}", super::text::printable(note.as_bytes()));
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

const TEMPLATE: &str = "reading layers {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
/// Delay before the bar appears.
const PATIENCE: Duration = Duration::from_millis(300);
