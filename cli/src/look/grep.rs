//! `peelfs grep`: searches files of an image, with the output and the exit codes of grep(1).
//!
//! Files are read as far as the search needs them. A file with a zero byte is a binary file: its lines are not printed.

use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkFinish, SinkMatch};
use serde::Serialize;
use tokio::runtime::Handle;

use super::Stop;
use super::args::GrepArgs;
use super::open::{self, Looked, cannot, require_file};
use super::out::{Out, json_name};
use super::walk::{Step, Walk, size_of_all};
use crate::failures::Failures;
use crate::progress::{self, Meter};
use peelfs::host::report::{Code, Report};
use peelfs::image::{FsError, Tree};
use peelfs::layer::Kind;
use peelfs::offsets::FileOffset;
use peelfs::overlay::{Last, NodeAttr, NodeId};

/// Whether a line was found.
///
/// # Errors
/// A report whose code is not 1, which says that none was.
pub(crate) fn run(args: &GrepArgs) -> Result<bool, Report> {
    let pattern = RegexMatcherBuilder::new()
        .case_insensitive(args.ignore_case)
        .fixed_strings(args.fixed_strings)
        .word(args.word_regexp)
        .whole_line(args.line_regexp)
        .line_terminator(Some(b'\n'))
        .build(&args.pattern);
    let matcher = pattern.map_err(|error| {
        let why = error.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Report::usage(format!("`{}` is not a pattern: {why}", args.pattern))
            .hint("patterns are those of ripgrep; `-F` searches for the text as it is")
    })?;
    let mut found = false;
    let searched = open::run(&args.image, &args.layer, async |looked| search(args, matcher, looked, &mut found).await);
    match searched {
        Ok(()) => Ok(found),
        Err(report) if report.code == Code::Failure => Err(Report { code: Code::Usage, ..report }),
        Err(report) => Err(report),
    }
}

async fn search(args: &GrepArgs, matcher: RegexMatcher, looked: Looked, found: &mut bool) -> Result<(), Stop> {
    let binary = if args.text { BinaryDetection::none() } else { BinaryDetection::convert(b'\0') };
    let recursive = args.recursive || args.paths.is_empty();
    let searcher = SearcherBuilder::new()
        .binary_detection(binary)
        .invert_match(args.invert_match)
        .line_number(true)
        .heap_limit(Some(LONGEST_LINE))
        .build();
    let (out, failures, meter) = (Out::new(), Failures::default(), Arc::clone(&looked.meter));
    let mut grep = Grep { args, matcher, searcher, meter, named: false, out, failures, found };
    let root = [std::path::PathBuf::from("/")];
    let paths = if args.paths.is_empty() { &root[..] } else { &args.paths };
    looked.meter.total_will_be(size_of_all(&looked.tree, paths));
    for path in paths.iter().map(|path| path.as_os_str().as_bytes()) {
        let start = match looked.named("search", path, Last::Follow).await {
            Ok(start) => start,
            Err(report) => {
                grep.failures.add(report);
                continue;
            }
        };
        // Like grep(1): one file needs no name.
        let several = args.paths.len() > 1 || start.kind == Kind::Directory;
        grep.named = !args.no_filename && (args.with_filename || several);
        if start.kind != Kind::Directory || !recursive {
            grep.file(&looked.tree, path, &start)?;
            continue;
        }
        let mut walk = Walk::new(&looked.tree, path, start);
        loop {
            match walk.next().await {
                // Like `grep -r`: symlinks and devices are left out.
                Ok(Some(Step::Node(attr))) if attr.kind == Kind::File => {
                    grep.file(&looked.tree, walk.path(), &attr)?;
                    if args.image.opening.quiet && *grep.found {
                        return Ok(());
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => grep.failures.add(cannot("list", walk.path(), error.into())),
            }
        }
    }
    grep.out.flush()?;
    Ok(grep.failures.outcome()?)
}

struct Grep<'a> {
    args: &'a GrepArgs,
    matcher: RegexMatcher,
    searcher: Searcher,
    meter: Arc<Meter>,
    /// Whether lines begin with the file's name.
    named: bool,
    out: Out,
    failures: Failures,
    found: &'a mut bool,
}

impl Grep<'_> {
    fn file(&mut self, tree: &Arc<dyn Tree>, path: &[u8], attr: &NodeAttr) -> Result<(), Stop> {
        if let Err(error) = require_file(attr) {
            let report = cannot("search", path, error.into());
            let is_dir = attr.kind == Kind::Directory;
            self.failures.add(if is_dir { report.hint("`-r` searches what is in it") } else { report });
            return Ok(());
        }
        let mut file = File { tree: Arc::clone(tree), node: attr.node, at: 0, size: attr.size, meter: &self.meter };
        let mut lines = Lines { args: self.args, named: self.named, out: &mut self.out, path, count: 0, binary: false };
        // The search reads as programs do, and waits for the network.
        let searched =
            tokio::task::block_in_place(|| self.searcher.search_reader(&self.matcher, &mut file, &mut lines));
        // A search may end sooner.
        self.meter.add(file.size - file.at);
        let count = lines.count;
        *self.found |= count > 0;
        match searched {
            Ok(()) => Ok(self.summary(path, count)?),
            Err(Trouble::Output(error)) => Err(error.into()),
            Err(Trouble::Read(error)) => {
                self.failures.add(cannot("search", path, report_of(error)));
                Ok(())
            }
        }
    }

    /// What is printed for a file as a whole.
    fn summary(&mut self, path: &[u8], count: u64) -> io::Result<()> {
        if self.args.image.opening.quiet {
            return Ok(());
        }
        if self.args.files_with_matches && count > 0 {
            if self.args.json {
                let (path, path_hex) = json_name(path);
                return self.out.json(&JsonMatch { path, path_hex, line_number: None, line: None, line_hex: None });
            }
            return self.out.line("", path);
        }
        if self.args.count {
            if self.named {
                self.out.name(path)?;
                write!(self.out, ":")?;
            }
            writeln!(self.out, "{count}")?;
        }
        Ok(())
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonMatch {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line_number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line_hex: Option<String>,
}

/// Prints the lines of a file that match.
struct Lines<'a> {
    args: &'a GrepArgs,
    named: bool,
    out: &'a mut Out,
    path: &'a [u8],
    count: u64,
    binary: bool,
}

enum Trouble {
    Read(io::Error),
    Output(io::Error),
}

impl grep_searcher::SinkError for Trouble {
    fn error_message<T: std::fmt::Display>(message: T) -> Self {
        Self::Read(io::Error::other(message.to_string()))
    }

    fn error_io(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl Lines<'_> {
    fn line(&mut self, number: u64, line: &[u8]) -> io::Result<()> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if self.args.json {
            let ((path, path_hex), (line, line_hex)) = (json_name(self.path), json_name(line));
            return self.out.json(&JsonMatch { path, path_hex, line_number: Some(number), line: Some(line), line_hex });
        }
        if self.named {
            self.out.name(self.path)?;
            write!(self.out, ":")?;
        }
        if self.args.line_number {
            write!(self.out, "{number}:")?;
        }
        self.out.name(line)?;
        writeln!(self.out)
    }
}

impl Sink for Lines<'_> {
    type Error = Trouble;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, Trouble> {
        for (number, line) in (found.line_number().unwrap_or_default()..).zip(found.lines()) {
            self.count += 1;
            if self.args.image.opening.quiet || self.args.files_with_matches {
                return Ok(false);
            }
            if self.args.count {
                continue;
            }
            if self.binary {
                return Ok(false);
            }
            self.line(number, line).map_err(Trouble::Output)?;
        }
        Ok(true)
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> Result<bool, Trouble> {
        self.binary = true;
        Ok(true)
    }

    fn finish(&mut self, _: &Searcher, _: &SinkFinish) -> Result<(), Trouble> {
        let silent = self.args.image.opening.quiet || self.args.files_with_matches || self.args.count || self.args.json;
        if self.binary && self.count > 0 && !silent {
            let path = crate::text::printable(self.path);
            progress::above(|| eprintln!("peelfs grep: {path}: binary file matches"));
        }
        Ok(())
    }
}

/// A file of an image as a program reads one.
struct File<'a> {
    tree: Arc<dyn Tree>,
    node: NodeId,
    at: u64,
    size: u64,
    meter: &'a Meter,
}

impl Read for File<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size || buf.is_empty() {
            return Ok(0);
        }
        let read = Arc::clone(&self.tree).read(self.node, FileOffset(self.at), buf.len());
        let bytes = Handle::current().block_on(read).map_err(io::Error::other)?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        self.meter.add(bytes.len() as u64);
        Ok(bytes.len())
    }
}

/// The failure of a read, which may be one of the image.
fn report_of(error: io::Error) -> Report {
    match error.downcast::<FsError>() {
        Ok(error) => error.into(),
        Err(error) => Report::new(Code::Failure, error),
    }
}

/// Bytes of a line in memory; a longer line is an error.
const LONGEST_LINE: usize = 256 << 20;
