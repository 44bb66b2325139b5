//! The report: sections as they are done, or one JSON object at the end.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::check::{Check, Section, State};
use crate::text;
use peelfs::host::report::Report;

/// What was shown so far.
pub(super) struct Shown {
    json: bool,
    /// Columns of the terminal; without one, lines are not broken.
    width: Option<usize>,
    colors: bool,
    all: Vec<Listed>,
    /// Whether the reader has seen enough.
    ended: bool,
}

/// A check in JSON.
#[derive(Serialize)]
struct Listed {
    section: String,
    #[serde(flatten)]
    check: Check,
}

/// The JSON object.
#[derive(Serialize)]
struct Json {
    schema: u32,
    version: &'static str,
    mounts: bool,
    checks: Vec<Listed>,
}

impl Shown {
    pub(super) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = stdout.is_terminal();
        let width = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        Self {
            json,
            width: width.filter(|_| terminal).map(|width| if width < NARROWEST { WIDTH } else { width }),
            colors: terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            all: Vec::new(),
            ended: false,
        }
    }

    /// Prints a section.
    pub(super) fn section(&mut self, section: Section) -> Result<(), Report> {
        if !self.json {
            let gap = if self.all.is_empty() { "" } else { "\n" };
            let mut shown = format!("{gap}{}\n", section.title);
            let width = section.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0).min(WIDEST);
            section.checks.iter().for_each(|check| self.check(check, width, &mut shown));
            self.print(&shown)?;
        }
        let listed = |check| Listed { section: section.title.to_ascii_lowercase(), check };
        self.all.extend(section.checks.into_iter().map(listed));
        Ok(())
    }

    /// Prints the result. Returns whether mounts work.
    pub(super) fn end(mut self) -> Result<bool, Report> {
        let prevents = |listed: &&Listed| listed.check.prevents_mounts();
        let mounts = !self.all.iter().any(|listed| prevents(&listed));
        // Of this machine's own, none may be what prevents the mount of an image.
        let machine = !self.all.iter().filter(|listed| listed.section != IMAGE).any(|listed| prevents(&listed));
        let image = self.all.iter().find(prevents).map(|listed| text::printable(listed.check.name.as_bytes()));
        let count = |state| self.all.iter().filter(|listed| listed.check.state == state).count() as u64;
        let (missing, broken) = (count(State::Missing), count(State::Broken));
        let shown = if self.json {
            let checks = std::mem::take(&mut self.all);
            let json = Json { schema: 1, version: env!("CARGO_PKG_VERSION"), mounts, checks };
            serde_json::to_string(&json).expect("plain data") + "\n"
        } else {
            let works = match image.filter(|_| machine) {
                Some(image) => format!("mounts work here, but `{image}` cannot be mounted"),
                None if mounts => "mounts work here".to_owned(),
                None => "mounts do not work here".to_owned(),
            };
            format!("\n{works}; {broken} broken, {missing} missing\n")
        };
        self.print(&shown)?;
        Ok(mounts)
    }

    fn print(&mut self, shown: &str) -> Result<(), Report> {
        if self.ended {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let printed = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        self.ended = printed.is_err();
        printed.or_else(|error| text::output_ended(&error))
    }

    fn check(&self, check: &Check, names: usize, shown: &mut String) {
        let (word, color) = match check.state {
            State::Ok => ("ok", 32),
            State::Missing => ("missing", 33),
            State::Broken => ("broken", 31),
        };
        let word = format!("{word:<7}");
        let word = if self.colors { format!("\x1b[{color}m{word}\x1b[0m") } else { word };
        let printable = |text: &str| text::printable(text.as_bytes());
        let name = format!("{:<names$}", printable(&check.name));
        let before = 2 + 7 + 2 + names + 2;
        self.wrapped(&format!("  {word}  {name}  "), before, &printable(&check.found), shown);
        for (what, said) in [("costs: ", &check.costs), ("remedy: ", &check.remedy)] {
            if let Some(said) = said {
                self.wrapped(&" ".repeat(before), before, &format!("{what}{}", printable(said)), shown);
            }
        }
    }

    /// Adds `text` after `before`, which takes `columns`; on a terminal, in as many lines as it needs.
    fn wrapped(&self, before: &str, columns: usize, text: &str, shown: &mut String) {
        let Some(width) = self.width else {
            return shown.push_str(&format!("{before}{text}\n"));
        };
        let columns = columns.min(width / 2);
        let options = textwrap::Options::new(width - columns).break_words(false);
        let indent = " ".repeat(columns);
        for (number, line) in textwrap::wrap(text, options).iter().enumerate() {
            let start = if number == 0 { before } else { &indent };
            shown.push_str(&format!("{start}{line}\n"));
        }
    }
}

/// The section of the named image.
const IMAGE: &str = "image";
/// Columns of a terminal that does not say.
const WIDTH: usize = 80;
/// A narrower terminal is none.
const NARROWEST: usize = 20;
/// Names are aligned up to this width.
const WIDEST: usize = 24;
